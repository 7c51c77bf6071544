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
    uniform where the head has a likelihood, so that the loss is a bound on the negative log-likelihood.
    """

    masks = True
    default_levels = parse_levels({"kind": "uniform"})

    def problem(self, element: Element, head: dict[str, Any]) -> str | None:
        return None

    def add(self, segment: Segment, layout: Layout, training: bool) -> Noisy:
        observed = layout.gather(segment.element_observed)
        uniform = stratified((segment.batch_size, layout.num_blocks), observed.device)
        level = (self.levels if training or not self.is_bound else self.default_levels).quantile(uniform)
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
        alone: bool,
        generator: SampleNoise,
        steps: Any,
        sampler: Sampler,
        temperature: float = 1.0,
        **sampling: Any,
    ) -> Tensor:
        masked = ~(known if known.dim() == 2 else known.all(-1))
        sampler, given = sampler.cold() if temperature == 0 else sampler, values
        sampling |= {"temperature": temperature}
        initially, passes = masked.sum(1), sampler.passes(steps and steps.at(decoding.progress), masked.shape[1])
        for number in range(passes):
            # A stream for each pass: whether it is run depends on the other samples, too.
            now = Pass(number, passes, masked, initially, generator.numbered(number))
            chosen = sampler.candidates(now)
            rows, places = chosen.nonzero(as_tuple=True)
            if not len(rows):
                continue
            if alone:
                decoding.progress = number / max(passes - 1, 1)
            hidden = tuple(states[rows, places] for states in restore(Noisy(values, masked=masked)))
            drawn = None
            if sampler.asks == "log_prob":
                drawn = decoding.sample(head, hidden, generator=now.noise.at(rows, places), **sampling)
            if sampler.asks is not None:
                asked = _asked(sampler.asks, head, decoding.guide(hidden), drawn)
                asked = asked.new_zeros(masked.shape).index_put((rows, places), asked)
                chosen = sampler.shown(replace(now, asked=asked))
                kept = chosen[rows, places]
                rows, places, hidden = rows[kept], places[kept], tuple(states[kept] for states in hidden)
                drawn = None if drawn is None else drawn[kept]
            if drawn is None:
                drawn = decoding.sample(head, hidden, generator=now.noise.at(rows, places), **sampling)
            values = values.index_put((rows, places), drawn.to(values.dtype))
            masked = masked & ~chosen
        return values if known.dim() == 2 else torch.where(known, given, values)


def _asked(what: str, head: Any, hidden: Tensor, drawn: Tensor | None) -> Tensor:
    """[k], of guided hidden states. (For heads that guide their logits it approximates what is drawn from; it only
    decides what is shown first.)"""
    return getattr(head, what)(hidden, *([] if drawn is None else [drawn]))
