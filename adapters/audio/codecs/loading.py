"""From a folder, an id on the Hub or a module to the audio tokenizer around it."""

from __future__ import annotations

import os

from torch import nn

from ...pretrained import load_pretrained
from .base import AudioTokenizer
from .from_transformers import DacTokenizer, EncodecTokenizer, MimiTokenizer

# The class in transformers -> the tokenizer around it.
CODECS: dict[str, type[AudioTokenizer]] = {
    "DacModel": DacTokenizer,
    "EncodecModel": EncodecTokenizer,
    "MimiModel": MimiTokenizer,
}

# What config.json calls a class of transformers where it does not name it.
MODEL_TYPES = {"dac": "DacModel", "encodec": "EncodecModel", "mimi": "MimiModel"}


def load_codec(
    source: nn.Module | str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
) -> AudioTokenizer:
    """The frozen audio tokenizer of a folder, of the Hub or around a module; see `load_pretrained`.

    Args:
        source: what `save_pretrained` of a class in `CODECS` wrote, an id on the Hub, or a module.
        folder: where a relative path is looked for first.

    Raises:
        ValueError: nothing there, a class that is not in `CODECS`, no safetensors, weights that do not fit, an EnCodec
            that normalises; the message names the folder or the class.
    """
    return load_pretrained(source, folder, CODECS, MODEL_TYPES)
