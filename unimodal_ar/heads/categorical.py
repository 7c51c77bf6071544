"""Discrete elements: a softmax over the codes of a vocabulary.

Shapes: hidden [..., H], K codes per element, V vocabulary size; values [...] where K is 1, else [..., K].
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..merging import CodeSplit
from ..noise import Generator, uniform
from ..schema import ContinuousElement, DiscreteElement, Strict
from . import chunked
from .base import Head, broadcast_observed, check_temperature


class CategoricalOptions(Strict):
    """bias: whether the linear map to the logits has one."""

    bias: bool = False


class CategoricalHead(Head):
    """p(codes | hidden) = prod_k softmax(logits_k)[code_k]: K codes in parallel, independent given `hidden`.

    The logits are a linear map of `hidden`. Those of merged codes (`element.merge`) are one linear map, the same for
    each code, of the K vectors into which `hidden` is split.
    """

    Options = CategoricalOptions
    element_kind = "discrete"

    def __init__(
        self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: CategoricalOptions
    ) -> None:
        super().__init__(hidden_size, element, options)
        assert isinstance(element, DiscreteElement)
        self.codes, self.vocab_size = element.codes, element.vocab_size
        self.split = CodeSplit(hidden_size, element.codes) if element.merge else None
        self.proj = nn.Linear(hidden_size, (1 if element.merge else self.codes) * self.vocab_size, bias=options.bias)

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., K, V] in float32 or wider; K is kept where it is 1."""
        if self.split is not None:
            return self.project(self.split(hidden.to(self.proj.weight.dtype)))
        return self.project(hidden).unflatten(-1, (self.codes, self.vocab_size))

    def log_prob(self, hidden: Tensor, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] log-probability in nats of an element's codes, summed over those that are observed.

        Args:
            values: long codes in 0..V-1, [...] or [..., K]; anything where they are not observed.
            observed: bool, [...] or the shape of `values`; None: all of them.

        Raises:
            ValueError: the shape of `values` or `observed` does not fit `hidden`.
        """
        elements = tuple(hidden.shape[:-1])
        shape = elements if self.codes == 1 else (*elements, self.codes)
        if tuple(values.shape) != shape:
            raise ValueError(f"values have shape {tuple(values.shape)}; hidden and the element's codes ask for {shape}")
        codes = values.view(*elements, self.codes)
        mask = broadcast_observed(observed, codes, elements)
        return torch.where(mask, self._picked(hidden, torch.where(mask, codes, 0)), 0.0).sum(-1)

    def _picked(self, hidden: Tensor, codes: Tensor) -> Tensor:
        """[..., K] log-probability of each code; all are in 0..V-1."""
        if chunked.is_bare(self.proj) and codes.numel() * self.vocab_size > chunked.LIMIT:
            rows = hidden if self.split is None else self.split(hidden.to(self.proj.weight.dtype))
            each = 1 if self.split is not None else self.codes
            flat = rows.reshape(-1, rows.shape[-1]), self.proj.weight, self.proj.bias, codes.reshape(-1, each)
            return chunked.log_prob(*flat).view(codes.shape)
        # gather, not cross_entropy: that one silently takes a code of -100 for "no loss"
        return self.logits(hidden).log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1)

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] exact negative log-likelihood in nats, summed over an element's observed codes."""
        return -self.log_prob(hidden, target, observed)

    def max_log_prob(self, hidden: Tensor) -> Tensor:
        """[...] log-probability in nats of the most probable codes."""
        return self.logits(hidden).log_softmax(-1).amax(-1).sum(-1)

    def entropy(self, hidden: Tensor) -> Tensor:
        """[...] in nats, summed over an element's codes."""
        log_prob = self.logits(hidden).log_softmax(-1)
        return -(log_prob.exp() * log_prob).sum((-1, -2))

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Draws the codes of every element.

        Args:
            hidden: [..., H]; with a `SampleNoise` dimension 0 counts the samples.
            temperature: the logits are divided by it; 0 takes the mode.
            top_k: keeps only the k most probable codes (all, where there are fewer).
            top_p: then keeps only the smallest set of most probable codes that reaches probability p, at least one
                (nucleus sampling, Holtzman et al., arXiv 1904.09751). Both act after the temperature.

        Returns:
            long [...] or [..., K].

        Raises:
            ValueError: temperature < 0, top_k < 1, or top_p outside (0, 1].
        """
        codes = draw_codes(self.logits(hidden), generator, temperature, top_k, top_p)
        return codes.squeeze(-1) if self.codes == 1 else codes

    def sample_guided(self, hidden: Tensor, unconditional: Tensor, guidance_scale: float, **sampling: Any) -> Tensor:
        if self.split is None:
            return super().sample_guided(hidden, unconditional, guidance_scale, **sampling)
        both = torch.stack([hidden, unconditional])
        return draw_codes(guide(self.logits(both), guidance_scale), **sampling)


def guide(logits: Tensor, guidance_scale: float) -> Tensor:
    """Classifier-free guidance of the logits [2, ...], with the context and without it; [1, ...] are left alone."""
    if len(logits) == 1:
        return logits[0]
    conditional, free = logits
    return free + guidance_scale * (conditional - free)


def draw_codes(
    logits: Tensor,
    generator: Generator = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
) -> Tensor:
    """[..., V] -> [...] long: codes drawn as `CategoricalHead.sample` says.

    Raises:
        ValueError: temperature < 0, top_k < 1, or top_p outside (0, 1].
    """
    check_temperature(temperature)
    check_truncation(top_k, top_p)
    if temperature == 0:
        return logits.argmax(-1)
    return draw_category(truncate(logits.double() / temperature, top_k, top_p), generator)


def check_truncation(top_k: int | None, top_p: float | None) -> None:
    if top_k is not None and (not isinstance(top_k, int) or isinstance(top_k, bool) or top_k < 1):
        raise ValueError(f"top_k is {top_k}; it must be an integer >= 1, or None to keep every code")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}; it must lie in (0, 1], or be None to keep every code")


def truncate(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """[..., V] logits with -inf for every code that top-k, then top-p, leaves out."""
    if top_k is None and top_p is None:
        return logits
    ordered, order = logits.sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered[..., top_k:] = -torch.inf
    if top_p is not None:
        probability = ordered.softmax(-1)
        before = probability.cumsum(-1) - probability
        ordered = ordered.masked_fill(before >= top_p, -torch.inf)
    return torch.empty_like(logits).scatter(-1, order, ordered)


def draw_category(logits: Tensor, generator: Generator) -> Tensor:
    """[..., V] -> [...] long: a draw from softmax(logits) by the Gumbel-max trick.

    In float64, because float32 noise cuts the Gumbel's tail off and so acts like a lower temperature, which shows
    where many codes are drawn at once (Zheng et al., arXiv 2409.02908).
    """
    noise = uniform(logits.shape, generator, logits.device)
    return (logits.double() - (-noise.log()).log()).argmax(-1)
