"""Which masked elements are shown after a denoising pass, and how many.

Shapes: B samples, n elements of a block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from ..heads.base import Head
from ..noise import SampleNoise
from ..schema import Strict, parse

Curve = Literal["linear", "cosine"]


@dataclass(frozen=True)
class Pass:
    """Pass `number` of `passes` over a block.

    Attributes:
        masked: [B, n] bool, what is still hidden.
        initially: [B] long, how many elements were hidden before the first pass.
        noise: source of randomness.
        asked: [B, n], what the sampler asks the head for, of what is still hidden; None: nothing.
    """

    number: int
    passes: int
    masked: Tensor
    initially: Tensor
    noise: SampleNoise
    asked: Tensor | None = None

    def due(self, curve: Curve) -> Tensor:
        """[B] long: how many to show so that, of all, a linearly or cosinely falling share stays hidden."""
        left = self.passes - self.number - 1
        if curve == "linear":  # in whole numbers: one more than is due would already be another distribution
            hidden = self.initially * left // self.passes
        else:
            part = math.cos(math.pi / 2 * (self.number + 1) / self.passes) if left else 0.0
            hidden = (self.initially * part).floor().long()
        return self.masked.sum(1) - hidden

    def first(self, scores: Tensor, count: Tensor) -> Tensor:
        """[B, n] bool: the `count` [B] masked elements of the highest scores [B, n]."""
        order = scores.masked_fill(~self.masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        return (order.argsort(1) < count[:, None]) & self.masked


class Sampler(Strict):
    """Chooses what is shown. In the last pass that is everything."""

    asks: ClassVar[str | None] = None  # what the head must be able to tell: its method of that name

    def passes(self, steps: int | None, n: int) -> int:
        """Over a block of n elements."""
        return n if steps is None else min(steps, n)

    def candidates(self, now: Pass) -> Tensor:
        """[B, n] bool: what may be shown in this pass. (Its `asked` is None yet.)"""
        return now.masked if self.asks else self.shown(now)

    def cold(self) -> Sampler:
        """The same without randomness of its own, for temperature 0."""
        return self

    def shown(self, now: Pass) -> Tensor:
        """[B, n] bool."""
        raise NotImplementedError


class FirstHitting(Sampler):
    """Elements in random order, equally many in each pass (or, with curve "cosine", few at first).

    With as many passes as elements, the default, this draws from the model's own distribution exactly: it is the
    first-hitting sampler (arXiv 2409.02908), whose times a model that is not told of them does not need. order
    "forward": in the order of the layout instead, as always at temperature 0."""

    kind: Literal["first_hitting"] = "first_hitting"
    curve: Curve = "linear"
    order: Literal["random", "forward"] = "random"

    def cold(self) -> Sampler:
        return self.model_copy(update={"order": "forward"})

    def shown(self, now: Pass) -> Tensor:
        if self.order == "random":
            scores = now.noise.uniform(now.masked.shape)
        else:
            n = now.masked.shape[1]
            scores = -torch.arange(n, device=now.masked.device).expand_as(now.masked).double()
        return now.first(scores, now.due(self.curve))


class Ancestral(Sampler):
    """Each element on its own: from level t to s it is shown with probability (t - s) / t (MDLM, arXiv 2406.07524).
    There may be more passes than elements; those that show nothing are not run."""

    kind: Literal["ancestral"] = "ancestral"

    def passes(self, steps: int | None, n: int) -> int:
        return n if steps is None else steps

    def shown(self, now: Pass) -> Tensor:
        return now.masked & (now.noise.uniform(now.masked.shape) < 1 / (now.passes - now.number))


class Confidence(Sampler):
    """The most probable values first, with Gumbel noise on their log-probabilities that `randomness` scales and that
    fades out (MaskGIT, arXiv 2202.04200, whose numbers are the defaults); without it at temperature 0."""

    asks = "log_prob"

    kind: Literal["confidence"] = "confidence"
    curve: Curve = "cosine"
    randomness: float = Field(4.5, ge=0, allow_inf_nan=False)

    def cold(self) -> Sampler:
        return self.model_copy(update={"randomness": 0.0})

    def candidates(self, now: Pass) -> Tensor:
        return now.masked & (now.due(self.curve) > 0)[:, None]

    def shown(self, now: Pass) -> Tensor:
        assert now.asked is not None
        gumbel = -(-now.noise.uniform(now.masked.shape).log()).log()
        fade = 1 - (now.number + 1) / now.passes
        return now.first(now.asked + self.randomness * fade * gumbel, now.due(self.curve))


class Threshold(Sampler):
    """All elements whose most probable value has at least `probability`, so that easy blocks take few passes, and at
    least the surest one (Fast-dLLM, arXiv 2505.22618; SDAR, arXiv 2510.06303), or as many as are due. Which are shown
    does not depend on what is drawn of them, so that at temperature 1, too, each is drawn from its own distribution.

    With order "random" it is the first element of a random order, and those after it up to the first unsure one: blocks
    are uncovered in the orders of training, not from what is easy to what is hard. (At temperature 0 "sure" holds.)"""

    asks = "max_log_prob"

    kind: Literal["threshold"] = "threshold"
    probability: float = Field(0.9, gt=0, le=1)
    order: Literal["sure", "random"] = "sure"

    def cold(self) -> Sampler:
        return self.model_copy(update={"order": "sure"})

    def shown(self, now: Pass) -> Tensor:
        assert now.asked is not None
        sure = now.masked & (now.asked >= math.log(self.probability))
        due = now.due("linear").clamp(min=1)
        if self.order == "sure":
            return sure | now.first(now.asked, due)
        scores = now.noise.uniform(now.masked.shape)
        order = scores.masked_fill(~now.masked, -torch.inf).argsort(dim=1, descending=True, stable=True)
        run = sure.gather(1, order)[:, 1:].long().cumprod(1).sum(1)
        return now.first(scores, due.maximum(1 + run))


class EntropyBound(Sampler):
    """The surest elements, as many as can be drawn independently at little loss: the sum of their entropies without the
    largest is at most `bound` nats (EB-Sampler, arXiv 2505.24857, equation 8), which one always is, or as many as are
    due."""

    asks = "entropy"

    kind: Literal["entropy_bound"] = "entropy_bound"
    bound: float = Field(0.1, ge=0, allow_inf_nan=False)

    def shown(self, now: Pass) -> Tensor:
        assert now.asked is not None
        entropy = now.asked.double().masked_fill(~now.masked, torch.inf)
        ordered, order = entropy.sort(dim=1, stable=True)
        rest = torch.nn.functional.pad(ordered, (1, -1)).cumsum(1)  # of ordered entropies the last is the largest
        sure = torch.zeros_like(now.masked).scatter(1, order, rest <= self.bound)
        return (sure & now.masked) | now.first(-now.asked, now.due("linear"))


SAMPLERS: dict[str, type[Sampler]] = {
    "first_hitting": FirstHitting,
    "ancestral": Ancestral,
    "confidence": Confidence,
    "threshold": Threshold,
    "entropy_bound": EntropyBound,
}


def build_sampler(written: dict[str, Any] | None, head: Head) -> Sampler:
    """The sampler that `{kind: ..., **options}` describes; None: `FirstHitting`.

    Raises:
        ValueError: an unknown kind or option, or one that asks the head for what it does not have.
    """
    if written is None:
        return FirstHitting()
    kind = written.get("kind") if isinstance(written, dict) else None
    if kind not in list(SAMPLERS):
        raise ValueError(
            f"sampler is {written!r}; for mask noise it must be a mapping whose 'kind' is one of {sorted(SAMPLERS)}"
        )
    sampler = parse(SAMPLERS[kind], written, "sampler")
    if not _goes_with(sampler, head):
        able = [name for name, other in SAMPLERS.items() if _goes_with(other, head)]
        raise ValueError(
            f"sampler.kind is {kind!r}, which asks the head for its {sampler.asks}; {type(head).__name__} has none, "
            f"and goes with {able}"
        )
    return sampler


def _goes_with(sampler: Sampler | type[Sampler], head: Head) -> bool:
    return sampler.asks is None or hasattr(head, sampler.asks)
