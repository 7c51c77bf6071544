"""What tells the weights of one pretrained body from those of another, and how transformers reads such a body."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModel
from transformers.utils.quantization_config import GgufConfig

from .places import check_config, folder_of

FLOAT16 = (torch.float16, "float16")


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and values of weights; about a second for 10^9 bytes.

    Floating-point values count as rounded to bfloat16. So float32 and bfloat16 give one fingerprint, exactly, whichever
    of them weights are stored in and loaded in; to float16 only what is stored as such may be cast. (What the rounding
    hides is smaller than what loading in bfloat16 changes.) Whole numbers, such as packed weights, count as they are.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        value = value.to(torch.bfloat16) if value.is_floating_point() else value
        digest.update(f"{name} {list(value.shape)} ".encode())
        digest.update(cast(Any, value.cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


def read_body(place: str, dtype: Any = "auto", **kwargs: Any) -> Any:
    """A body of `place` (see `places.folder_of`) as transformers loads it. To be had in float16 it is read in float32,
    which has the fingerprint of what is stored; casting it is the caller's. No pickle is read, and no code of a
    repository is run unless the caller says so (ValueError where its config.json asks for some)."""
    place = folder_of(place)
    plain = kwargs.get("quantization_config") is None
    if plain and kwargs.get("gguf_file") is not None:  # else the machine would decide whether weights are left packed
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    dtype = torch.float32 if plain and dtype in FLOAT16 else dtype
    if kwargs.get("gguf_file") is None:
        kwargs.setdefault("use_safetensors", True)
        if kwargs.get("config") is None:
            check_config(place, kwargs)
    kwargs.setdefault("trust_remote_code", False)
    return AutoModel.from_pretrained(place, dtype=dtype, **kwargs)
