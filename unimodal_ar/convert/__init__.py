"""Converters: the weights of published code in our models, one small file each.

A converter is a configuration map (original arguments -> `UnimodalARConfig`) and a map of weight names. What they share
is here: reading a file, and renaming that is loud about every name it does not know or does not find.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a torch file (itself a state dict, or with one under "state_dict" as
    Lightning writes it), on the CPU. Torch files are read without running any code in them.

    Raises:
        ValueError: there is no such file, or it holds something besides tensors that only code could read.
    """
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"weights file {str(path)!r} does not exist")
    if file.suffix == ".safetensors":
        return load_file(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"weights file {str(path)!r} is not a torch file of tensors alone; save its state dict by itself ({error})"
        ) from None
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"weights file {str(path)!r} holds no state dict; it must be a dict of tensors")
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


def load(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies `weights`, all of the model's and no others, into `model`.

    Raises:
        ValueError: a name or a shape does not fit; the message lists them.
    """
    try:
        model.load_state_dict(weights, strict=True)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit the configuration: {error}") from None
