"""What converters share: reading a file, and renaming that is loud about every name it does not know or find."""

from __future__ import annotations

import argparse
import os
import pickle
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

# What safetensors and torch raise on files that are broken in one way or another.
BROKEN = (
    *(SafetensorError, EOFError, LookupError, OSError, RuntimeError, ValueError, TypeError, AttributeError),
    *(AssertionError, ArithmeticError, MemoryError, struct.error),
)


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file (itself a state dict, or with one under "state_dict",
    "model" or "module"), on the CPU. Torch files are read without running any code in them.

    Raises:
        ValueError: there is no such file, it is damaged, or it holds something besides tensors that only code could
            read.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"weights file {str(path)!r} does not exist")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        with torch.serialization.safe_globals([argparse.Namespace]):  # training scripts save their arguments, too
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise ValueError(
            f"weights file {str(path)!r} is not a torch file of tensors alone; save its state dict by itself"
        ) from None
    except BROKEN as error:
        reason = " ".join([f"{type(error).__name__}:", *str(error).split()]).rstrip(":")
        raise ValueError(
            f"weights file {str(path)!r} cannot be read ({reason}); it is damaged, or neither "
            "a safetensors nor a torch file"
        ) from None
    for key in ("state_dict", "model", "module"):
        content = content.get(key, content) if isinstance(content, dict) else content
    entries = content.items() if isinstance(content, dict) else [(None, None)]
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in entries):
        raise ValueError(f"weights file {str(path)!r} holds no state dict; it must be a dict of tensors by name")
    return content


def rename(state_dict: Mapping[str, Tensor], names: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under their new names.

    Args:
        state_dict: by original name.
        names: original name -> ours, for every tensor there is.

    Raises:
        ValueError: listing the names that are unknown and those that are missing.
    """
    problems = {
        "unknown": sorted(state_dict.keys() - names.keys()),
        "missing": sorted(names.keys() - state_dict.keys()),
    }
    if any(problems.values()):
        told = "; ".join(f"{what} are {found}" for what, found in problems.items() if found)
        raise ValueError(f"weight names do not fit the configuration: {told}")
    return {new: state_dict[old] for old, new in names.items()}


def shape_of(weights: Mapping[str, Tensor], name: str) -> tuple[int, ...]:
    """The shape of a weight that the configuration is read off; raises ValueError where it is missing."""
    if name not in weights:
        raise ValueError(f"weight {name!r} is missing; the file is of other code, or only a part of it")
    return tuple(weights[name].shape)


def count_layers(weights: Mapping[str, Tensor], prefix: str) -> int:
    """How many layers there are whose weights are named `prefix.NUMBER. ...`."""
    numbers = {int(match[1]) for name in weights if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))}
    return max(numbers, default=-1) + 1


def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights`, all of the model's and no others, into `model`.

    Raises:
        ValueError: a name or a shape does not fit; the message lists them.
    """
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit the configuration: {error}") from None
