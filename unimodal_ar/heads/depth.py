"""Discrete elements of several codes: one code after the other, by a small transformer inside the element.

Shapes: hidden [..., H], K codes per element, V vocabulary size, W width and A attention heads of the depth transformer;
values [..., K].
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from ..merging import ResidualMLP
from ..noise import Generator
from ..schema import ContinuousElement, DiscreteElement, Strict
from . import chunked
from .base import Head
from .categorical import draw_codes, guide

Past = tuple[Tensor, Tensor] | None


class DepthOptions(Strict):
    """layers: of the depth transformer. width: its channels; None: the hidden size. heads: of its attention, a divisor
    of the width."""

    layers: PositiveInt = 2
    width: PositiveInt | None = None
    heads: PositiveInt = 4


class DepthLayer(nn.Module):
    """Causal self-attention over an element's codes and an MLP, each after a norm and with a residual.

    The attention is written out: there are K x K scores only, and fused kernels have limits on the number of sequences,
    which here is that of the batch's elements.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.mlp = ResidualMLP(width, expansion=4)

    def forward(self, x: Tensor, past: Past = None) -> tuple[Tensor, Past]:
        """x [..., n, W] at the n places after those whose keys and values are `past` [..., A, p, W / A].

        Returns:
            the layer's output, and keys and values of all p + n places.
        """
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for y in self.qkv(self.norm(x)).chunk(3, -1))
        if past is not None:
            k, v = torch.cat([past[0], k], -2), torch.cat([past[1], v], -2)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1 + k.shape[-2] - q.shape[-2])
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1, dtype=wide).to(v.dtype)
        return self.mlp(x + self.out((weights @ v).transpose(-2, -3).flatten(-2))), (k, v)


class DepthHead(Head):
    """p(codes | hidden) = prod_k p(code_k | hidden, code_<k), by a depth transformer as RQ-Transformer has one (arXiv
    2203.01941, section 3.2).

    Place k reads code k - 1 and predicts code k. `hidden` is added at every place (as in MEGABYTE, arXiv 2305.07185),
    not read at the first alone: later codes then follow it from the start of training. Each code has its own table and
    projection, unless `element.merge` says that all are of one codebook. An element costs K places of a small
    transformer, where the categorical head costs one projection.

    Raises:
        ValueError: the element has a single code, or `heads` does not divide the width.
    """

    Options = DepthOptions
    element_kind = "discrete"
    least_codes = 2  # of a single one there is nothing before

    def __init__(self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: DepthOptions) -> None:
        super().__init__(hidden_size, element, options)
        assert isinstance(element, DiscreteElement)
        width = options.width or hidden_size
        if width % options.heads:
            raise ValueError(f"head.heads is {options.heads}; it must divide the depth transformer's width {width}")
        self.codes, self.vocab_size, self.shared = element.codes, element.vocab_size, element.merge
        self.context = nn.Linear(hidden_size, width)
        self.table = nn.Embedding((1 if self.shared else self.codes - 1) * self.vocab_size, width)
        self.place = nn.Embedding(self.codes, width)
        self.layers = nn.ModuleList([DepthLayer(width, options.heads) for _ in range(options.layers)])
        self.norm = nn.LayerNorm(width)
        projections = 1 if self.shared else self.codes
        self.projections = nn.ModuleList([nn.Linear(width, self.vocab_size, bias=False) for _ in range(projections)])

    def log_prob(self, hidden: Tensor, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] log-probability in nats of an element's codes, jointly; 0 where it is not observed.

        Args:
            values: [..., K] long codes in 0..V-1; anything where they are not observed.
            observed: [...] bool; None: all of them. Whole elements only: the codes after a missing one would have to be
                summed over all that it can be.

        Raises:
            ValueError: the shape of `values` or `observed` does not fit `hidden`.
        """
        elements = tuple(hidden.shape[:-1])
        shape = (*elements, self.codes)
        if tuple(values.shape) != shape:
            raise ValueError(f"values have shape {tuple(values.shape)}; hidden and the element's codes ask for {shape}")
        if observed is not None and tuple(observed.shape) != elements:
            raise ValueError(
                f"observed has shape {tuple(observed.shape)}; it must be {elements}, because {type(self).__name__} "
                "predicts a code from all codes before it: an element is observed as a whole or not at all"
            )
        codes = values if observed is None else torch.where(observed[..., None], values, 0)
        before = F.pad(self._embed(codes[..., :-1], 0), (0, 0, 1, 0))
        x, _ = self._transform(self._context(hidden) + before, 0, [None] * len(self.layers))
        picked = self._picked(x, codes).sum(-1)
        return picked if observed is None else torch.where(observed, picked, 0.0)

    def _picked(self, x: Tensor, codes: Tensor) -> Tensor:
        """[..., K] log-probability of each code given those before, from what the transformer says of its place."""
        if codes.numel() * self.vocab_size > chunked.LIMIT and all(map(chunked.is_bare, self.projections)):
            places = []
            for place in range(self.codes):
                weight = self.projections[0 if self.shared else place].weight
                rows, code = x[..., place, :].reshape(-1, x.shape[-1]), codes[..., place].reshape(-1, 1)
                places.append(chunked.log_prob(rows, cast(Tensor, weight), None, code).view(codes.shape[:-1]))
            return torch.stack(places, -1)
        logits = torch.stack([self._logits(x[..., place, :], place) for place in range(self.codes)], -2)
        # gather, not cross_entropy: that one silently takes a code of -100 for "no loss"
        return logits.log_softmax(-1).gather(-1, codes[..., None]).squeeze(-1)

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] exact negative log-likelihood in nats of an element's codes; 0 where it is not observed."""
        return -self.log_prob(hidden, target, observed)

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """[..., K] long: draws code by code, each from its conditional distribution.

        Temperature, top_k and top_p are those of `CategoricalHead.sample` and act on each conditional distribution.
        Temperature 0 takes the most probable code every time, which need not be the mode of the joint.

        Raises:
            ValueError: temperature < 0, top_k < 1, or top_p outside (0, 1].
        """
        sampling = {"generator": generator, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        return self._draw(hidden[None], 1.0, **sampling)

    def sample_guided(self, hidden: Tensor, unconditional: Tensor, guidance_scale: float, **sampling: Any) -> Tensor:
        """With and without context, the transformer reads the same drawn codes; their logits are combined."""
        return self._draw(torch.stack([hidden, unconditional]), guidance_scale, **sampling)

    def _draw(self, hidden: Tensor, guidance_scale: float, **sampling: Any) -> Tensor:
        """hidden [1 or 2, ..., H]: with the context and, where guidance needs it, without."""
        context = x = self._context(hidden)
        past: list[Past] = [None] * len(self.layers)
        drawn: list[Tensor] = []
        for place in range(self.codes):
            if drawn:
                x = context + self._embed(drawn[-1][..., None], place - 1)
            x, past = self._transform(x, place, past)
            drawn.append(draw_codes(guide(self._logits(x[..., 0, :], place), guidance_scale), **sampling))
        return torch.stack(drawn, -1)

    def _context(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., 1, W]: what every place of an element reads."""
        return self.context(hidden.to(self.context.weight.dtype))[..., None, :]

    def _embed(self, codes: Tensor, first: int) -> Tensor:
        """[..., n] -> [..., n, W]: codes number first, first + 1, ... of an element."""
        if self.shared:
            return self.table(codes)
        return self.table(codes + torch.arange(first, first + codes.shape[-1], device=codes.device) * self.vocab_size)

    def _transform(self, x: Tensor, first: int, past: list[Past]) -> tuple[Tensor, list[Past]]:
        """x [..., n, W] at places first, first + 1, ... through all layers."""
        x = x + self.place(torch.arange(first, first + x.shape[-2], device=x.device))
        present: list[Past] = []
        for layer, before in zip(self.layers, past, strict=True):
            x, after = layer(x, before)
            present.append(after)
        return self.norm(x), present

    def _logits(self, x: Tensor, place: int) -> Tensor:
        """[..., W] -> [..., V] in float32 or wider."""
        raw = self.projections[0 if self.shared else place](x)
        return raw.to(torch.promote_types(raw.dtype, torch.float32))
