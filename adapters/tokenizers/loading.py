"""From a folder, an id on the Hub or a module to the tokenizer around it."""

from __future__ import annotations

import os

from torch import nn

from ..pretrained import load_pretrained
from .base import ImageTokenizer
from .from_diffusers import AutoencoderKLTokenizer, AutoencoderTinyTokenizer, VQModelTokenizer
from .from_transformers import Emu3Tokenizer, JanusTokenizer
from .video import VIDEO_TOKENIZERS, VideoTokenizer

# The library's class -> the tokenizer around it.
TOKENIZERS: dict[str, type[ImageTokenizer]] = {
    "AutoencoderKL": AutoencoderKLTokenizer,
    "AutoencoderTiny": AutoencoderTinyTokenizer,
    "Emu3VQVAE": Emu3Tokenizer,
    "JanusVQVAE": JanusTokenizer,
    "VQModel": VQModelTokenizer,
}

# Tokenizers of transformers that have no decoder there.
ENCODE_ONLY = ("ChameleonVQVAE", "GlmImageVQVAE")

# What config.json calls a class of transformers where it does not name it.
MODEL_TYPES = {
    "chameleon_vqgan": "ChameleonVQVAE",
    "emu3_vqgan": "Emu3VQVAE",
    "glm_image_vqmodel": "GlmImageVQVAE",
    "janus_vqgan": "JanusVQVAE",
}


def load_tokenizer(
    source: nn.Module | str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
) -> ImageTokenizer:
    """The frozen image tokenizer of a folder, of the Hub or around a module; see `load_pretrained`.

    Args:
        source: what `save_pretrained` of a class in `TOKENIZERS` wrote, an id on the Hub, or a module.
        folder: where a relative path is looked for first.

    Raises:
        ValueError: nothing there, a class that is not in `TOKENIZERS`, no safetensors, weights that do not fit; the
            message names the folder.
        ImportError: diffusers is needed and missing.
    """
    return load_pretrained(source, folder, TOKENIZERS, MODEL_TYPES, ENCODE_ONLY)


def load_video_tokenizer(
    source: nn.Module | str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
) -> ImageTokenizer | VideoTokenizer:
    """Likewise the frozen tokenizer of videos: one that joins frames, of a class in `VIDEO_TOKENIZERS`, or one of
    images, of a class in `TOKENIZERS`, for frame after frame.

    Raises:
        ValueError, ImportError: as `load_tokenizer`.
    """
    classes: dict[str, type[ImageTokenizer | VideoTokenizer]] = {**TOKENIZERS, **VIDEO_TOKENIZERS}
    return load_pretrained(source, folder, classes, MODEL_TYPES, ENCODE_ONLY)
