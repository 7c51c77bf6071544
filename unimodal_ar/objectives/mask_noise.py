"""Mask noise: elements are hidden, and restored in several passes. This is absorbing-state diffusion without a time
input, for the number of masks tells the time (RADD, arXiv 2406.03736).

Shapes: B examples, N elements of a segment, n of a block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..heads.base import Head
from ..layout import Layout
from ..noise import SampleNoise
from ..schema import Element
from ..segment import Segment
from .base import Decoding
from .levels import parse_levels, stratified
from .noise import Noise, Noisy, Restore
from .unmasking import Pass, Sampler, build_sampler


class MaskNoise(Noise):
    """Of a block's L observed elements k = ceil(t L) are masked, and each of these weighs L / k.

    With t uniform the sum of the losses estimates, without bias, the negative evidence lower bound of BD3-LM (arXiv
    2503.09573, equation 8): the integral over t of the losses of elements masked with probability t, over t, is the sum
    over k of the losses of k random ones, over k (Hoogeboom et al., arXiv 2110.02037). Fixing k takes its variance
    away, and makes blocks of one exact next-token prediction. Other distributions of t train; in evaluation mode t is
    uniform, so that the loss is a bound on the negative log-likelihood.
    """

    masks = True
    default_levels = parse_levels({"kind": "uniform"})

    def problem(self, element: Element, head: dict[str, Any]) -> str | None:
        return None

    def add(self, segment: Segment, layout: Layout, training: bool) -> Noisy:
        observed = layout.gather(segment.element_observed)
        uniform = stratified((segment.batch_size, layout.num_blocks), observed.device)
        level = (self.levels if training else self.default_levels).quantile(uniform)
        # Within blocks, which follow each other: observed elements in random order, then the others.
        scores = torch.rand(observed.shape, dtype=torch.float64, device=observed.device)
        rank = (2 * layout.block + torch.where(observed, scores, 1.5)).argsort(1).argsort(1)
        rank = rank - torch.searchsorted(layout.block, layout.block)
        sizes = observed.new_zeros(level.shape, dtype=torch.long).index_add(1, layout.block, observed.long())
        count = torch.minimum((level * sizes).ceil().long().clamp(min=1), sizes)
        masked = rank < count[:, layout.block]
        weights = (sizes / count.clamp(min=1))[:, layout.block] * masked
        return Noisy(layout.gather(segment.values), masked=masked, weights=weights)

    def sampler(self, head: Head, written: dict[str, Any] | None) -> Sampler:
        return build_sampler(written, head)

    def draw(
        self,
        restore: Restore,
        decoding: Decoding,
        head: Head,
        values: Tensor,
        known: Tensor,
        share: float,
        generator: SampleNoise,
        steps: Any,
        sampler: Sampler,
        **sampling: Any,
    ) -> Tensor:
        masked, before = ~known, decoding.progress
        initially, n = masked.sum(1), masked.shape[1]
        passes = n if steps is None else min(steps.at(before), n)
        for number in range(passes):
            # A stream for each pass: whether it is run depends on the other samples, too.
            now = Pass(number, passes, masked, initially, generator.child())
            if not bool(masked.any()):
                break
            if sampler.is_idle(now):
                continue
            decoding.progress = before + share * number / passes
            hidden = restore(Noisy(values, masked=masked))
            drawn = decoding.sample(head, hidden, generator=now.noise, **sampling).to(values.dtype)
            shown = sampler.shown(replace(now, asked=self._asked(sampler, decoding, head, hidden, drawn)))
            values = torch.where(shown if values.dim() == 2 else shown[..., None], drawn, values)
            masked = masked & ~shown
        return values

    def _asked(
        self, sampler: Sampler, decoding: Decoding, head: Any, hidden: tuple[Tensor, ...], drawn: Tensor
    ) -> Tensor | None:
        """[B, n], of the guided hidden state. (For heads that guide their logits it approximates what was drawn from;
        it only decides what is shown first.)"""
        if sampler.asks is None:
            return None
        arguments = (drawn,) if sampler.asks == "log_prob" else ()
        return getattr(head, sampler.asks)(decoding.guide(hidden), *arguments)
