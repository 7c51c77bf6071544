"""From a folder, an id on the Hub or a module to the tokenizer around it."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
from pathlib import Path
from typing import Any

from torch import nn

from .base import ImageTokenizer
from .from_diffusers import AutoencoderKLTokenizer, AutoencoderTinyTokenizer, VQModelTokenizer
from .from_transformers import Emu3Tokenizer, JanusTokenizer

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

# Library -> the only file that weights are read from: no pickle is ever opened.
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+")


def load_tokenizer(
    source: nn.Module | str | os.PathLike[str], folder: str | os.PathLike[str] | None = None
) -> ImageTokenizer:
    """The frozen tokenizer of a folder, of the Hub or around a module.

    Args:
        source: a folder that `save_pretrained` of a class in `TOKENIZERS` wrote; an id on the Hub, "owner/name" or,
            for a folder of a repository, "owner/name/folder"; or a module of such a class, which is copied.
        folder: where a relative path is looked for first; then comes the working directory, then the Hub.

    Raises:
        ValueError: nothing there, a class that is not in `TOKENIZERS`, no safetensors, weights that do not fit; the
            message names the folder.
        ImportError: diffusers is needed and missing.
    """
    if isinstance(source, nn.Module):
        kind = type(source)
        name = _known(kind.__name__, "the module given as tokenizer")
        library = TOKENIZERS[name].library
        if kind.__module__.partition(".")[0] != library:
            raise ValueError(f"the module given as tokenizer is {kind.__module__}.{name}; it must be that of {library}")
        return TOKENIZERS[name](copy.deepcopy(source))
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"tokenizer is {source!r}; it must be a folder, an id on the Hub or a module")
    path = _locate(os.fspath(source), folder)
    name = _known(_class_name(path), str(path / "config.json"))
    return TOKENIZERS[name](_load(name, TOKENIZERS[name].library, path))


def _known(name: object, where: str) -> str:
    """`name` if it is in TOKENIZERS."""
    if name in ENCODE_ONLY:
        raise ValueError(
            f"{where} is of class {name!r}, which has no decoder in transformers; classes that encode and decode are "
            f"{sorted(TOKENIZERS)}"
        )
    if not isinstance(name, str) or name not in TOKENIZERS:
        raise ValueError(f"{where} is of class {name!r}; known classes are {sorted(TOKENIZERS)}")
    return name


def _locate(source: str, folder: str | os.PathLike[str] | None) -> Path:
    places = [Path(source)] if folder is None else [Path(folder, source), Path(source)]
    for place in places:
        if place.is_dir():
            return place
    if HUB_ID.fullmatch(source):
        return _download(source)
    raise ValueError(
        f"tokenizer {source!r} is no folder (looked for {' and '.join(map(str, places))}) and no id on the Hub; an id "
        "is 'owner/name' or 'owner/name/folder'"
    )


def _download(source: str) -> Path:
    """The local copy of what is needed of 'owner/name/folder'."""
    from huggingface_hub import snapshot_download

    owner, name, *inside = source.split("/")
    wanted = ["/".join([*inside, file]) for file in ("config.json", *WEIGHTS.values())]
    try:
        return Path(snapshot_download(f"{owner}/{name}", allow_patterns=wanted), *inside)
    except (OSError, ValueError) as error:
        raise ValueError(f"tokenizer {source!r} is no folder, and not to be had from the Hub: {_line(error)}") from None


def _class_name(path: Path) -> object:
    """What config.json says; None where it does not."""
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} has no config.json; a tokenizer's folder is one that its save_pretrained wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds {config!r}; it must be a JSON object")
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    return named or MODEL_TYPES.get(str(config.get("model_type")), config.get("model_type"))


def _load(name: str, library: str, path: Path) -> nn.Module:
    """The model of the library's class `name`, with all of its weights."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    if not (path / WEIGHTS[library]).is_file():
        raise ValueError(f"{path} has no {WEIGHTS[library]}; weights in other formats are not read")
    kind: Any = getattr(_library(library, name), name)
    try:  # weights of a wrong shape are ignored here to be told below, by name
        model, report = kind.from_pretrained(
            path, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{name} in {path} cannot be loaded: {_line(error)}") from None
    for problem in ("missing_keys", "mismatched_keys"):
        if report[problem]:
            raise ValueError(
                f"weights in {path} do not fit its config.json: {problem} {sorted(map(str, report[problem]))[:3]}"
            )
    return model


def _library(library: str, name: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ImportError(f"loading a {name} needs {library}: pip install unimodal-ar[image]") from None


def _line(error: Exception) -> str:
    """The first line of a library's message, or its kind where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
