"""Continuous elements: a vector that a small network denoises step by step (a diffusion process per element).

Shapes: hidden [..., H], D values per element, R noise draws in the loss; values [..., D]. Level 0 is nearly data, level
999 nearly noise.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..noise import Generator, normal
from ..schema import ContinuousElement, DiscreteElement, positive_int
from .base import ContinuousHead, ContinuousOptions, check_temperature, mean_observed, reject_truncation
from .categorical import guide
from .denoiser import Denoiser

LEVELS = 1000  # of the noise, in training


def _cosine_schedule() -> np.ndarray:
    """[LEVELS] float64: which part of the variance is signal, a_t, by the cosine schedule (Nichol & Dhariwal, arXiv
    2102.09672, equation 17). A level's own noise, 1 - a_t / a_{t-1}, is at most 0.999, so that a_t stays above 0."""
    time = np.arange(LEVELS + 1) / LEVELS
    signal = np.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.cumprod(np.maximum(signal[1:] / signal[:-1], 0.001))


# Not a buffer: transformers does not restore non-persistent buffers on load.
SIGNAL = _cosine_schedule()


class DiffusionOptions(ContinuousOptions):
    """width: of the network; None: the hidden size. layers: of the network. steps: evaluations of the network per draw,
    where the caller names no other number. draws: noise draws per element in the loss, which share the backbone's pass
    (MAR, arXiv 2406.11838, section 4.2)."""

    width: PositiveInt | None = None
    layers: PositiveInt = 3
    steps: int = Field(50, ge=1, le=LEVELS)
    draws: PositiveInt = 4


class DiffusionHead(ContinuousHead):
    """A diffusion model (DDPM, Ho et al., arXiv 2006.11239) with a small network per element: the head of MAR (Li et
    al., arXiv 2406.11838, sections 3.2 and 4.2).

    x_t = sqrt(a_t) x + sqrt(1 - a_t) e, e ~ N(0, I), at 1,000 levels t; the loss is the squared error of e. Two things
    differ from MAR:
    - The network returns v and e is sqrt(1 - a_t) x_t + sqrt(a_t) v (Salimans & Ho, arXiv 2202.00512). The loss is the
      same, but where a_t is nearly 0 the first steps multiply an error of e by hundreds, one of v by nothing: after 600
      steps of training on 2-D data a network that returned e itself drew values far off any data, this one drew well.
    - The variance that a step from t to s adds is not learnt; it is 1 - a_t / a_s, DDPM's choice for data of unit
      variance. With it a network that returns 0, as one does at first, draws N(0, I) in any number of steps.

    A value that is missing takes part in the process as 0, and in no loss. Values should be of about unit scale.
    """

    Options = DiffusionOptions
    iterates = True

    def __init__(
        self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: DiffusionOptions
    ) -> None:
        super().__init__(hidden_size, element, options)
        self.draws, self.steps = options.draws, options.steps
        self.denoiser = Denoiser(self.width, self.dim, options.width or hidden_size, options.layers)

    def velocity(self, x: Tensor, features: Tensor, level: Tensor) -> Tensor:
        """[..., D] v = sqrt(a_t) e - sqrt(1 - a_t) x that the network predicts at x [..., D] of `level` [...], with
        `features` of a hidden state [..., W]; in float32 or wider."""
        # Under autocast each step would round to 1/256 of a value, and so would the loss.
        with torch.autocast(features.device.type, enabled=False):
            return self.denoiser(x, features, level / LEVELS)

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] squared error of the noise: mean over R draws of level and noise and an element's observed values."""
        target, mask = self.fill_missing(hidden, target, observed)
        values = target.to(torch.promote_types(target.dtype, torch.float32))
        noise = torch.randn((self.draws, *values.shape), dtype=values.dtype, device=values.device)
        level = torch.randint(LEVELS, noise.shape[:-1], device=values.device)
        # Both roots from float64: 1 - a_t has no digits left where a_t is rounded to 1.
        roots = np.sqrt([SIGNAL, 1 - SIGNAL])
        data, rest = torch.as_tensor(roots, dtype=values.dtype, device=values.device)[:, level, None]
        x = data * values + rest * noise
        error = rest * x + data * self.velocity(x, self.features(hidden), level) - noise
        return mean_observed(error.square().mean(0), mask)

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        head_steps: int | None = None,
    ) -> Tensor:
        """[..., D] drawn by DDPM's ancestral steps over evenly spaced levels.

        Args:
            hidden: [..., H]; with a `SampleNoise` dimension 0 counts the samples.
            temperature: scales the noise that each step adds (MAR, section 3.2) and, so that 0 is deterministic, the
                noise that the first step starts from, of which later steps keep next to nothing.
            head_steps: evaluations of the network, at most 1,000; None: the option `steps`.

        Raises:
            ValueError: temperature < 0, head_steps outside 1..1000, or top_k or top_p is given.
        """
        return self._draw(hidden[None], 1.0, generator, temperature, top_k, top_p, head_steps)

    def sample_guided(self, hidden: Tensor, unconditional: Tensor, guidance_scale: float, **sampling: Any) -> Tensor:
        """With and without context, the network reads the same x at every step; its predictions are combined."""
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
        if steps > LEVELS:
            raise ValueError(f"head_steps is {steps}; it must be at most {LEVELS}, the number of noise levels")
        wide = torch.promote_types(self.denoiser.output.weight.dtype, torch.float32)
        shape = (*hidden.shape[1:-1], self.dim)
        features = self.features(hidden)

        def noise() -> Tensor:
            return temperature * normal(shape, generator, hidden.device).to(wide)

        x = noise()
        levels = np.linspace(LEVELS - 1, 0, steps).round().astype(int)
        for level, later in zip(levels.tolist(), [*levels[1:].tolist(), None], strict=True):
            v = guide(self.velocity(x, features, torch.tensor(level, device=x.device)), guidance_scale)
            x = _towards(x, v, level, later)
            if later is not None:
                x = x + math.sqrt(1 - SIGNAL[level] / SIGNAL[later]) * noise()
        return x


def _towards(x: Tensor, v: Tensor, level: int, later: int | None) -> Tensor:
    """The mean of x_s given x_t and the x that `v` predicts (arXiv 2006.11239, equation 7), for t = `level` and
    s = `later`; None: x itself."""
    signal, after = float(SIGNAL[level]), 1.0 if later is None else float(SIGNAL[later])
    clean = math.sqrt(signal) * x - math.sqrt(1 - signal) * v
    kept = signal / after
    return (math.sqrt(after) * (1 - kept) * clean + math.sqrt(kept) * (1 - after) * x) / (1 - signal)
