"""Continuous elements: a vector carried from noise to data in a few long steps (shortcut models).

Shapes: hidden [..., H], D values per element, R noise draws in the loss, C of them for self-consistency; values
[..., D]. Time runs from 0 (data) to 1 (noise).
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field, PositiveInt, ValidationInfo, field_validator
from torch import Tensor

from ..schema import ContinuousElement, DiscreteElement
from .base import mean_observed
from .flow import PathHead, PathOptions, Velocity, noised


class ShortcutOptions(PathOptions):
    """consistency: the part of the draws that learns long steps from short ones; draws times it must be a whole number.
    finest: a power of two; steps of 1 / finest and below follow the velocity itself. steps: evaluations of the network
    per draw, where the caller names no other number."""

    consistency: float = Field(0.25, gt=0, lt=1, validate_default=True)
    finest: PositiveInt = 128
    steps: PositiveInt = 4

    @field_validator("consistency")
    @classmethod
    def _whole(cls, consistency: float, info: ValidationInfo) -> float:
        draws = info.data.get("draws", 4)  # missing where draws itself is not legal, which is told then
        if not math.isclose(consistency * draws, round(consistency * draws)):
            raise ValueError(f"times draws, which is {draws}, it must be a whole number")
        return consistency

    @field_validator("finest")
    @classmethod
    def _power(cls, finest: int) -> int:
        if finest < 2 or finest & (finest - 1):
            raise ValueError("it must be a power of two, and at least 2")
        return finest


class ShortcutHead(PathHead):
    """The head of FAR (arXiv 2504.18391): a shortcut model (Frans et al., arXiv 2410.12557) per element.

    The network s(x_t, t, d) is told the step d that will be taken, x_(t-d) = x_t - d s(x_t, t, d). At d = 0 it learns
    the velocity as the flow head does. A long step learns to do what two of half its length do (eq. 4 and 5):
    s(x_t, t, 2d) -> s(x_t, t, d) / 2 + s(x_(t-d), t - d, d) / 2, without gradient through the right-hand side, with 2d
    one of 1, 1/2, ..., 2 / finest and t a multiple of it.
    """

    Options = ShortcutOptions
    levels: ClassVar[int] = 2

    def __init__(
        self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: ShortcutOptions
    ) -> None:
        super().__init__(hidden_size, element, options)
        self.bootstraps = round(options.consistency * options.draws)
        self.halvings = options.finest.bit_length() - 1

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] squared error of the velocity (R - C draws) and of the long steps (C draws): mean over the R draws and
        an element's observed values."""
        target, mask = self.fill_missing(hidden, target, observed)
        features = self.features(hidden)
        elements, device = target.shape[:-1], target.device
        long = torch.randint(self.halvings, (self.bootstraps, *elements), device=device)  # a step of 1 / 2^long
        step = 0.5**long
        place = (torch.rand(step.shape, device=device) / step).floor()  # 0 ... 2^long - 1
        flowing = self.times(self.draws - self.bootstraps, *elements, device=device)
        time = torch.cat([(place + 1) * step, flowing])
        halvings = torch.cat([long, torch.full_like(flowing, self.halvings, dtype=torch.long)])
        x, goal = noised(target, time)
        boot = slice(self.bootstraps)
        with torch.no_grad():
            goal[boot] = self._two_half_steps(x[boot], features, time[boot], step, long + 1)
        error = self.velocity(x, features, time, self.level(halvings)) - goal
        return mean_observed(error.square().mean(0), mask)

    def _two_half_steps(self, x: Tensor, features: Tensor, time: Tensor, step: Tensor, halvings: Tensor) -> Tensor:
        level, half = self.level(halvings), step / 2
        first = self.velocity(x, features, time, level)
        second = self.velocity(x - half[..., None] * first, features, time - half, level)
        return (first + second) / 2

    def level(self, halvings: Tensor) -> Tensor:
        """What the network is told of a step of 1 / 2^halvings: 1 for the whole way, 0 for the velocity."""
        return 1 - halvings.clamp(max=self.halvings) / self.halvings

    def integrate(self, velocity: Velocity, x: Tensor, steps: int) -> Tensor:
        """A power of two is as many equal steps. For a number between two of them, the last steps of the smaller are
        halved: every step has a length, and starts at a time, that was learnt."""
        halvings = steps.bit_length() - 1
        halved = steps - (1 << halvings)
        each = [halvings] * ((1 << halvings) - halved) + [halvings + 1] * (2 * halved)
        time = 1.0
        for number in each:
            at, level = x.new_tensor(time), self.level(torch.tensor(number, device=x.device))
            x = x - 0.5**number * velocity(x, at, level)
            time -= 0.5**number
        return x
