"""Heads: what the distribution of one element is, given the backbone's hidden state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..schema import ContinuousElement, DiscreteElement, parse
from .base import ContinuousHead, Head
from .categorical import CategoricalHead
from .depth import DepthHead
from .diffusion import DiffusionHead
from .energy import EnergyHead
from .flow import FlowHead
from .mixture import MixtureHead
from .quantile import QuantileHead
from .regression import RegressionHead
from .shortcut import ShortcutHead

HEADS: dict[str, type[Head]] = {
    "categorical": CategoricalHead,
    "depth_ar": DepthHead,
    "regression": RegressionHead,
    "quantile": QuantileHead,
    "mixture": MixtureHead,
    "flow": FlowHead,
    "diffusion": DiffusionHead,
    "energy": EnergyHead,
    "shortcut": ShortcutHead,
}


def build_head(hidden_size: int, element: DiscreteElement | ContinuousElement, config: Mapping[str, Any]) -> Head:
    """The head that `config` = {"kind": a name in `HEADS`, **its options} asks for.

    Raises:
        ValueError: an unknown kind or option, an option's value that is not legal, or a head that does not describe
            this kind of element.
    """
    # A list, because a dict cannot be asked about a kind that is not hashable.
    if not isinstance(config, Mapping) or config.get("kind") not in list(HEADS):
        raise ValueError(f"head is {config!r}; it must be a mapping whose 'kind' is one of {sorted(HEADS)}")
    head = HEADS[config["kind"]]
    options = {key: value for key, value in config.items() if key != "kind"}
    return head(hidden_size, element, parse(head.Options, options, "head"))


__all__ = [
    "HEADS",
    "CategoricalHead",
    "ContinuousHead",
    "DepthHead",
    "DiffusionHead",
    "EnergyHead",
    "FlowHead",
    "Head",
    "MixtureHead",
    "QuantileHead",
    "RegressionHead",
    "ShortcutHead",
    "build_head",
]
