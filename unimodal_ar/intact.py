"""Whether the files of a model's folder are whole, of the formats that are read, and inside it.

Weights are safetensors: a pickle can run any code when it is read, so none is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from safetensors import SafetensorError, safe_open

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
LAYERS = "adapter_model.safetensors"
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
# Keys under which processor_config.json says where something is.
_PLACES = ("path", "vocoder", "pretrained")


def leaves(path: str) -> bool:
    """Whether a relative path could lead out of the folder that it is relative to, on any system, or is none."""
    parts = (*PurePosixPath(path).parts, *PureWindowsPath(path).parts)
    rooted = PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor
    return not parts or bool(rooted) or ".." in parts or path.startswith("~") or "\0" in path


def read_json(file: Path) -> dict[str, Any]:
    """Raises ValueError where `file` holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no readable JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}; it must be a JSON object")
    return content


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a model's weights in `folder`; [] where there are none.

    Raises:
        ValueError: the index of shards is damaged, names a file outside the folder or no safetensors, or a shard is
            missing.
    """
    if (folder / LAYERS).is_file():
        return [folder / LAYERS]
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / INDEX
    if not index.is_file():
        return []
    named = read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise ValueError(f"{index} has no weight_map of names of files; download or save the model again")
    shards = sorted(set(named.values()))
    for name in shards:
        if leaves(name) or len(PurePosixPath(name).parts) != 1 or not name.endswith(".safetensors"):
            raise ValueError(f"{index} names the shard {name!r}; it must be a .safetensors file in the same folder")
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ValueError(
            f"{str(folder)!r} lacks {', '.join(missing[:3])}, {len(missing)} of the {len(shards)} shards that {INDEX} "
            "names; download or copy it again"
        )
    return [folder / name for name in shards]


def check_weights(folder: Path) -> dict[str, tuple[int, ...]]:
    """The name and shape of every weight in `folder`, read from the files' headers.

    Raises:
        ValueError: as `weight_files`; or there are none, or a file is no whole safetensors file.
    """
    files = weight_files(folder)
    if not files:
        others = sorted(file.name for file in folder.glob("*") if file.suffix in _PICKLES)
        told = f" ({', '.join(others)} may run code when it is read, so it is not)" if others else ""
        raise ValueError(f"{str(folder)!r} holds no {WEIGHTS}, and weights in other formats are not read{told}")
    return {name: shape for file in files for name, shape in header(file)}


def header(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight in `file`.

    Raises:
        ValueError: it is cut off, damaged, or of another format.
    """
    try:
        with safe_open(file, "pt") as weights:
            for name in weights.keys():  # noqa: SIM118  # not a mapping
                yield name, tuple(weights.get_slice(name).get_shape())
    except (SafetensorError, OSError) as error:
        reason = str(error).strip(" .")
        raise ValueError(
            f"{str(file)!r} is no whole safetensors file ({reason}); download or copy it again (pickles and other "
            "formats are not read)"
        ) from None


def named_places(content: Any) -> Iterator[tuple[str, str]]:
    """(key, place) of every folder or id that the content of a processor_config.json names."""
    return ((key, value) for key, value in _texts(content) if key in _PLACES)


def check_kernels(config: Any, where: str) -> None:
    """Raises ValueError where the content of a config.json asks for kernels on the Hub ("owner/name"): they are code,
    which transformers would get and run. (Whoever loads a model may ask for them, by `attn_implementation`.)"""
    for key, value in _texts(config):
        if key.endswith("_implementation") and "/" in value:
            raise ValueError(
                f"{key} in {where} is {value!r}, which is code on the Hub; it must be named when the model is loaded"
            )


def _texts(content: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of all texts in JSON; those in a list, or in a mapping of a key with "_implementation" (parts of a
    model -> kernel), are of that key."""
    if isinstance(content, str):
        yield key, content
    elif isinstance(content, Mapping):
        for inner, value in content.items():
            yield from _texts(value, key if key.endswith("_implementation") else inner)
    elif isinstance(content, list):
        for value in content:
            yield from _texts(value, key)
