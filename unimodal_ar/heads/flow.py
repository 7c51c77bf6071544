"""Continuous elements: a vector carried from noise to data by a learnt velocity (flow matching).

Shapes: hidden [..., H], D values per element, R noise draws in the loss; values [..., D]. Time runs from 0 (data) to 1
(noise).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..noise import Generator, normal
from ..schema import ContinuousElement, DiscreteElement, positive_int
from .base import ContinuousHead, ContinuousOptions, check_temperature, mean_observed, reject_truncation
from .categorical import guide
from .denoiser import Denoiser

Velocity = Callable[..., Tensor]  # (x [..., D], levels []) -> [..., D]


class PathOptions(ContinuousOptions):
    """width: of the network; None: the hidden size. layers: of the network. draws: noise draws per element in the loss,
    which share the backbone's pass (MAR, arXiv 2406.11838). time_mean, time_std: the loss is taken at times
    1 / (1 + exp(-z)), z normal with these two (Esser et al., arXiv 2403.03206, whose std of 1 leaves the end of the
    path, where narrow densities take shape, almost without training: one time in 600 is below 0.05, at 1.5 one in 40).
    """

    width: PositiveInt | None = None
    layers: PositiveInt = 3
    draws: PositiveInt = 4
    time_mean: float = Field(0.0, allow_inf_nan=False)
    time_std: float = Field(1.5, gt=0, allow_inf_nan=False)


class FlowOptions(PathOptions):
    """steps: evaluations of the network per draw, where the caller names no other number. solver: "euler" takes as many
    intervals of time; "heun", of second order, takes half as many."""

    solver: Literal["euler", "heun"] = "heun"
    steps: PositiveInt = 16


class PathHead(ContinuousHead):
    """What heads share that walk the straight path x_t = (1 - t) x + t e between data x and noise e ~ N(0, I).

    A value that is missing takes part in the path as 0, and in no loss. Values should be of about unit scale, as the
    noise is.
    """

    iterates = True
    levels: ClassVar[int] = 1  # numbers that the network is told besides the hidden state

    def __init__(self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: Any) -> None:
        super().__init__(hidden_size, element, options)
        self.draws, self.steps = options.draws, options.steps
        self.time_mean, self.time_std = options.time_mean, options.time_std
        width = options.width or hidden_size
        self.denoiser = Denoiser(self.width, self.dim, width, options.layers, self.levels)

    def velocity(self, x: Tensor, features: Tensor, *levels: Tensor) -> Tensor:
        """[..., D] what the network says at x [..., D] with `features` of a hidden state [..., W], each level [...]; in
        float32 or wider."""
        # Under autocast each step would round to 1/256 of a value, and so would the loss.
        with torch.autocast(features.device.type, enabled=False):
            return self.denoiser(x, features, *levels)

    def integrate(self, velocity: Velocity, x: Tensor, steps: int) -> Tensor:
        """Noise x [..., D] at time 1 -> values at time 0, in `steps` evaluations of `velocity`."""
        raise NotImplementedError

    def times(self, *shape: int, device: torch.device) -> Tensor:
        """Random times for the loss, float32 in (0, 1)."""
        return (self.time_mean + self.time_std * torch.randn(shape, device=device)).sigmoid()

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        head_steps: int | None = None,
    ) -> Tensor:
        """[..., D] drawn by following the velocity from noise at time 1 to time 0.

        Args:
            hidden: [..., H]; with a `SampleNoise` dimension 0 counts the samples.
            temperature: scales the noise that the path starts from: for a normal distribution it scales the standard
                deviation, for others it keeps to their dense parts. 0 follows the path of e = 0, the noise's mode.
            head_steps: evaluations of the network; None: the option `steps`.

        Raises:
            ValueError: temperature < 0, head_steps < 1, or top_k or top_p is given.
        """
        return self._draw(hidden[None], 1.0, generator, temperature, top_k, top_p, head_steps)

    def sample_guided(self, hidden: Tensor, unconditional: Tensor, guidance_scale: float, **sampling: Any) -> Tensor:
        """With and without context, the network reads the same x at every step; its velocities are combined."""
        return self._draw(torch.stack([hidden, unconditional]), guidance_scale, **sampling)

    def _draw(
        self,
        hidden: Tensor,
        guidance_scale: float,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        head_steps: int | None = None,
    ) -> Tensor:
        """hidden [1 or 2, ..., H]: with the context and, where guidance needs it, without."""
        check_temperature(temperature)
        reject_truncation(self, top_k, top_p)
        steps = self.steps if head_steps is None else positive_int("head_steps", head_steps)
        noise = temperature * normal((*hidden.shape[1:-1], self.dim), generator, hidden.device)
        features = self.features(hidden)
        wide = torch.promote_types(self.denoiser.output.weight.dtype, torch.float32)

        def velocity(x: Tensor, *levels: Tensor) -> Tensor:
            return guide(self.velocity(x, features, *levels), guidance_scale)

        return self.integrate(velocity, noise.to(wide), steps)


class FlowHead(PathHead):
    """Flow matching (Lipman et al., arXiv 2210.02747; as rectified flow Liu et al., arXiv 2209.03003) with a small
    network per element: the TimeFlow head of Sundial (arXiv 2502.00816), for any continuous element.

    The network learns the velocity e - x of the path, of which at a given place the conditional mean is left; following
    it from noise gives exactly the distribution of x, up to the network's error and the solver's.
    """

    Options = FlowOptions

    def __init__(self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: FlowOptions) -> None:
        super().__init__(hidden_size, element, options)
        self.heun = options.solver == "heun"

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] squared error of the velocity: mean over R draws of time and noise and an element's observed values."""
        target, mask = self.fill_missing(hidden, target, observed)
        time = self.times(self.draws, *target.shape[:-1], device=target.device)
        x, velocity = noised(target, time)
        error = self.velocity(x, self.features(hidden), time) - velocity
        return mean_observed(error.square().mean(0), mask)

    def integrate(self, velocity: Velocity, x: Tensor, steps: int) -> Tensor:
        """Equal intervals of time. Heun takes two evaluations for each; of an odd number the first is an Euler step:
        where all is noise the path is straightest, and a last one costs most of what Heun gained."""
        intervals = (steps + 1) // 2 if self.heun else steps
        times = torch.linspace(1, 0, intervals + 1, dtype=x.dtype, device=x.device)
        for number, (time, later) in enumerate(pairwise(times)):
            slope = velocity(x, time)
            if self.heun and not (number == 0 and steps % 2):
                slope = (slope + velocity(x + (later - time) * slope, later)) / 2
            x = x + (later - time) * slope
        return x


def noised(values: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Values [..., D] at times [R, ...] of paths to R independent noises from torch's global generator.

    Returns:
        x_t and the path's velocity e - x, both [R, ..., D] in float32 or wider.
    """
    values = values.to(torch.promote_types(values.dtype, torch.float32))
    noise = torch.randn((*time.shape, values.shape[-1]), dtype=values.dtype, device=values.device)
    return values + time[..., None] * (noise - values), noise - values
