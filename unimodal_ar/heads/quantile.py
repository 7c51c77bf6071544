"""Continuous elements: a quantile function per value, learnt at fixed levels.

Shapes: hidden [..., H], D values per element, M learnt levels, L asked levels; values [..., D].
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist

import torch
import torch.nn.functional as F
from pydantic import field_validator
from torch import Tensor, nn

from ..noise import Generator, uniform
from ..schema import ContinuousElement, DiscreteElement
from .base import (
    ContinuousHead,
    ContinuousOptions,
    check_levels,
    check_temperature,
    inverse_softplus,
    mean_observed,
    reject_truncation,
)


class QuantileOptions(ContinuousOptions):
    """levels: what is learnt; strictly increasing in (0, 1), with 0.5 and at least one level on either side of it."""

    levels: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)

    @field_validator("levels")
    @classmethod
    def _check(cls, levels: tuple[float, ...]) -> tuple[float, ...]:
        rising = all(low < high for low, high in pairwise(levels))
        if not rising or 0.5 not in levels[1:-1] or not (0 < levels[0] and levels[-1] < 1):
            raise ValueError(
                "levels must be strictly increasing in (0, 1), with 0.5 and at least one level on either side of it"
            )
        return levels


class QuantileHead(ContinuousHead):
    """M quantiles of each value, by the pinball loss (Koenker & Bassett, "Regression Quantiles", 1978).

    Quantiles cannot cross: `proj` gives the median and the gaps outward from it, which a softplus keeps >= 0. With
    zero weights they are those of the standard normal.

    Between learnt levels the quantile function Q is linear. Below the lowest, q_1, it goes on as the exponential tail
    Q(q) = Q(q_1) + s q_1 log(q / q_1), s the slope of the lowest segment, so that the slope has no jump; above the
    highest alike. Its mean and all its samples are therefore finite, and its spread reaches beyond the outermost
    levels.
    """

    Options = QuantileOptions

    def __init__(
        self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: QuantileOptions
    ) -> None:
        super().__init__(hidden_size, element, options)
        self.levels = options.levels
        self.middle = options.levels.index(0.5)
        normal = [NormalDist().inv_cdf(level) for level in options.levels]
        # Python floats, not a buffer: transformers does not restore non-persistent buffers on load.
        self.gap_shift = [inverse_softplus(high - low) for low, high in pairwise(normal)]
        self.proj = nn.Linear(self.width, self.dim * len(self.levels))

    def knots(self, hidden: Tensor) -> Tensor:
        """[..., D, M] the quantiles at the learnt levels, non-decreasing along the last axis."""
        raw = self.project(hidden).unflatten(-1, (self.dim, len(self.levels)))
        gaps = F.softplus(raw[..., 1:] + raw.new_tensor(self.gap_shift))
        median = raw[..., :1]
        below = median - gaps[..., : self.middle].flip(-1).cumsum(-1).flip(-1)
        above = median + gaps[..., self.middle :].cumsum(-1)
        return torch.cat([below, median, above], -1)

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] mean over an element's observed values, and over the learnt levels, of twice the pinball loss: the
        median's term is the absolute error, and the whole approximates the CRPS."""
        target, mask = self.fill_missing(hidden, target, observed)
        error = target[..., None] - self.knots(hidden)
        levels = error.new_tensor(self.levels)
        pinball = torch.maximum(levels * error, (levels - 1) * error)
        return mean_observed(2 * pinball.mean(-1), mask)

    def quantiles(self, hidden: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        """[..., D, L] quantiles of each value at any `levels` in (0, 1); ValueError outside."""
        knots = self.knots(hidden)
        asked = check_levels(levels, hidden.device)
        return self._quantile_function(knots, asked.expand(*knots.shape[:-1], -1))

    def _quantile_function(self, knots: Tensor, asked: Tensor) -> Tensor:
        """Q [..., D, L] through `knots` [..., D, M] at the levels `asked` [..., D, L] float64."""
        levels = torch.tensor(self.levels, dtype=torch.float64, device=knots.device)
        first, last = self.levels[0], self.levels[-1]
        upper = torch.searchsorted(levels, asked.contiguous()).clamp(1, len(levels) - 1)
        lower_value, upper_value = knots.double().gather(-1, upper - 1), knots.double().gather(-1, upper)
        slope = (upper_value - lower_value) / (levels[upper] - levels[upper - 1])
        inside = lower_value + slope * (asked.clamp(first, last) - levels[upper - 1])
        # Both logarithms are 0 between the outermost levels.
        left = first * (asked / first).clamp(max=1).log()
        right = (1 - last) * ((1 - asked) / (1 - last)).clamp(max=1).log()
        return (inside + slope * (left - right)).to(knots.dtype)

    def mean(self, hidden: Tensor) -> Tensor:
        """[..., D] the integral of Q over (0, 1): trapezia between the levels, q_1 (Q(q_1) - s q_1) for the lower
        tail of slope s, and the mirror image for the upper one."""
        knots = self.knots(hidden)
        levels = knots.new_tensor(self.levels)
        widths = levels.diff()
        slopes = knots.diff(dim=-1) / widths
        trapezia = (widths * (knots[..., 1:] + knots[..., :-1]) / 2).sum(-1)
        left, right = levels[0], 1 - levels[-1]
        lower = left * (knots[..., 0] - left * slopes[..., 0])
        upper = right * (knots[..., -1] + right * slopes[..., -1])
        return lower + trapezia + upper

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """[..., D] Q at ONE uniform level per element, shared by the values of its patch: each value's marginal is
        exact, and a path is smooth inside a patch (the comonotone coupling; nothing was learnt about any other).

        Args:
            hidden: [..., H]; with a `SampleNoise` dimension 0 counts the samples.
            temperature: scales the distance from the median, so that 0 is the median.

        Raises:
            ValueError: temperature < 0, or top_k or top_p is given.
        """
        check_temperature(temperature)
        reject_truncation(self, top_k, top_p)
        knots = self.knots(hidden)
        median = knots[..., self.middle]
        if temperature == 0:
            return median
        level = uniform((*hidden.shape[:-1], 1, 1), generator, hidden.device)
        drawn = self._quantile_function(knots, level.expand(*knots.shape[:-1], 1)).squeeze(-1)
        return median + temperature * (drawn - median)
