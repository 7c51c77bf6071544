"""Converters: the weights of published code in our models, one small file each.

A converter is a configuration map (original arguments -> `UnimodalARConfig`) and a map of weight names.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .autotimes import convert_autotimes, load_autotimes
from .bd3lm import convert_bd3lm, load_bd3lm
from .block_diffusion import adapted, convert_to_block_diffusion
from .llamagen import convert_llamagen, load_llamagen
from .nbp import convert_nbp, load_nbp
from .rar import convert_rar, load_rar
from .timer import convert_timer, load_timer
from .weights import load, read_weights, rename

CONVERTERS: dict[str, Callable[..., Any]] = {
    "autotimes": load_autotimes,
    "bd3lm": load_bd3lm,
    "llamagen": load_llamagen,
    "nbp": load_nbp,
    "rar": load_rar,
    "timer": load_timer,
}
"""Name -> `function(path of the weights, **settings) -> (model, adapters)`, adapters in the order of the sequence."""

__all__ = [
    "CONVERTERS",
    "adapted",
    "convert_autotimes",
    "convert_bd3lm",
    "convert_llamagen",
    "convert_nbp",
    "convert_rar",
    "convert_timer",
    "convert_to_block_diffusion",
    "load",
    "load_autotimes",
    "load_bd3lm",
    "load_llamagen",
    "load_nbp",
    "load_rar",
    "load_timer",
    "read_weights",
    "rename",
]
