"""Gaussian noise: x_t = (1 - t) x + t e, whose velocity e - x the model predicts (flow matching, arXiv 2210.02747;
rectified flow, arXiv 2209.03003).

Shapes: B examples, n elements of a block, D values of each.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..heads.base import Head, check_temperature
from ..layout import Layout
from ..noise import SampleNoise, normal
from ..schema import Element, Strict, parse
from ..segment import Segment
from .base import Decoding
from .levels import parse_levels, stratified
from .noise import Noise, Noisy, Restore

DEFAULT_STEPS = 20


class FlowSampler(Strict):
    """kind: "euler" (one pass per step) or "heun" (two; of an odd number of passes the first is an Euler step, because
    where all is noise the path is straightest). shift: above 1, more of the steps go to
    much noise: t becomes shift t / (1 + (shift - 1) t) (arXiv 2403.03206, section 5.3.2)."""

    kind: Literal["euler", "heun"] = "euler"
    shift: float = Field(1.0, gt=0, allow_inf_nan=False)

    def times(self, passes: int) -> list[float]:
        """From 1 to 0."""
        steps = passes if self.kind == "euler" else (passes + 1) // 2
        even = [1 - step / steps for step in range(steps + 1)]
        return [self.shift * t / (1 + (self.shift - 1) * t) for t in even]


class GaussianNoise(Noise):
    """The backbone itself is the denoiser: a regression head turns its hidden states into velocities, and every
    position is told its time."""

    has_levels = True
    default_levels = parse_levels({"kind": "logit_normal"})

    def problem(self, element: Element, head: dict[str, Any]) -> str | None:
        if element.kind != "continuous":
            return f"objective.noise is 'gaussian', which is for continuous elements; the element is {element.kind}"
        if head["kind"] != "regression" or head["loss"] != "mse":
            return (
                f"head is {head!r}; with Gaussian noise it predicts velocities, so it must be a regression with loss "
                "'mse'"
            )
        return None

    def add(self, segment: Segment, layout: Layout, training: bool) -> Noisy:
        values = layout.gather(segment.values)
        uniform = stratified((segment.batch_size, layout.num_blocks), values.device)
        level = self.levels.quantile(uniform)[:, layout.block].float()
        noise = torch.randn_like(values)
        return Noisy(_mixed(values, noise, level), level=level, targets=noise - values)

    def sampler(self, head: Head, written: dict[str, Any] | None) -> FlowSampler:
        kind = "euler" if written is None else written.get("kind") if isinstance(written, dict) else None
        if kind not in ("euler", "heun"):
            raise ValueError(
                f"sampler is {written!r}; for Gaussian noise it must be a mapping whose 'kind' is 'euler' or 'heun'"
            )
        return parse(FlowSampler, written or {}, "sampler")

    def draw(
        self,
        restore: Restore,
        decoding: Decoding,
        head: Any,
        values: Tensor,
        known: Tensor,
        alone: bool,
        generator: SampleNoise,
        steps: Any,
        sampler: FlowSampler,
        temperature: float = 1.0,
        **sampling: Any,
    ) -> Tensor:
        """`temperature` scales the noise that a block begins as; at 0 all samples are one. What is known of the block
        passes through the same times as the rest, which approximates the distribution given it."""
        check_temperature(temperature)
        assert not sampling, "the generation config lets none through"
        wide = values.to(torch.promote_types(values.dtype, torch.float32))  # times would be rounded, too
        noise = (temperature * normal(values.shape, generator, values.device)).to(wide.dtype)
        passes = DEFAULT_STEPS if steps is None else steps.at(decoding.progress)
        times = sampler.times(passes)
        fixed = known if known.dim() == 3 else known[..., None]

        def velocity(x: Tensor, t: float) -> Tensor:
            level = x.new_full(x.shape[:2], t)
            x = torch.where(fixed, _mixed(wide, noise, level), x)
            return decoding.guide(tuple(map(head.mean, restore(Noisy(x, level=level))))).to(x.dtype)

        x = noise
        for number, (t, following) in enumerate(pairwise(times)):
            slope = velocity(x, t)
            if sampler.kind == "heun" and not (number == 0 and passes % 2):
                slope = (slope + velocity(x + (following - t) * slope, following)) / 2
            x = x + (following - t) * slope
        return torch.where(fixed, values, x)


def _mixed(values: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    return values + level[..., None] * (noise - values)
