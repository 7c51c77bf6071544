"""Noise levels in (0, 1]: how they are distributed in training.

A level is the share of a block's elements that is masked, or the time t of Gaussian noise (1: nothing but noise).
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..schema import Strict, parse


class UniformLevels(Strict):
    """U(low, high). Away from the ends it is BD3-LM's clipped schedule (arXiv 2503.09573, section 5): blocks that are
    hardly or wholly noisy teach little, and their losses vary much."""

    kind: Literal["uniform"] = "uniform"
    low: float = Field(0.0, ge=0, lt=1)
    high: float = Field(1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _increasing(self) -> UniformLevels:
        if self.low >= self.high:
            raise ValueError(f"low is {self.low} and high {self.high}; high must be greater")
        return self

    def quantile(self, u: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * u


class CosineLevels(Strict):
    """cos(pi u / 2) of a uniform u: mostly much noise (MaskGIT, arXiv 2202.04200)."""

    kind: Literal["cosine"] = "cosine"

    def quantile(self, u: Tensor) -> Tensor:
        return torch.cos(math.pi / 2 * u)


class TruncatedNormalLevels(Strict):
    """A normal distribution, cut to [low, 1] (MAR, arXiv 2406.11838, whose numbers are the defaults)."""

    kind: Literal["truncated_normal"] = "truncated_normal"
    mean: float = Field(1.0, allow_inf_nan=False)
    std: float = Field(0.25, gt=0, allow_inf_nan=False)
    low: float = Field(0.7, ge=0, lt=1)

    def quantile(self, u: Tensor) -> Tensor:
        ends = torch.tensor([self.low, 1.0], dtype=torch.float64, device=u.device)
        low, high = torch.special.ndtr((ends - self.mean) / self.std)
        return (self.mean + self.std * torch.special.ndtri(low + (high - low) * u)).clamp(self.low, 1.0)


class LogitNormalLevels(Strict):
    """sigmoid of a normal variable: mostly the middle, where restoring is hardest (Esser et al., arXiv 2403.03206)."""

    kind: Literal["logit_normal"] = "logit_normal"
    mean: float = Field(0.0, allow_inf_nan=False)
    std: float = Field(1.0, gt=0, allow_inf_nan=False)

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))


Levels = UniformLevels | CosineLevels | TruncatedNormalLevels | LogitNormalLevels

LEVELS: dict[str, type[Levels]] = {
    "uniform": UniformLevels,
    "cosine": CosineLevels,
    "truncated_normal": TruncatedNormalLevels,
    "logit_normal": LogitNormalLevels,
}


def parse_levels(written: Any) -> Levels:
    """The distribution that `{kind: ..., **options}` describes, checked."""
    kind = written.get("kind") if isinstance(written, dict) else None
    if kind not in list(LEVELS):
        raise ValueError(f"it must be a mapping whose 'kind' is one of {sorted(LEVELS)}")
    return parse(LEVELS[kind], written, "levels")


def stratified(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Float64 in (0, 1): each uniform, and all of them spread evenly, so that a batch sees every level (VDM, arXiv
    2107.00630, appendix I.1). From torch's global generator."""
    count = math.prod(shape)
    strata = torch.randperm(count, device=device).double()
    return ((strata + torch.rand(count, dtype=torch.float64, device=device).clamp(1e-6, 1 - 1e-6)) / count).view(shape)
