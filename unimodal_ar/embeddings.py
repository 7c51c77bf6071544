"""Embeddings: how an element's value, or the lack of one, enters the backbone.

Shapes: B batch, N elements of the grid, n places asked for, H width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .configuration import ModalityOptions
from .layout import Layout
from .schema import ContinuousElement, DiscreteElement
from .sequence import leading_padding


class ZeroLinear(nn.Linear):
    """A linear map that starts at zero. A class of its own, because transformers initialises code outside of its own
    tree module by module and leaves out those that hold no parameter directly: the owner of such a map is never asked.
    """


class CoordinateEmbedding(nn.Module):
    """Fourier features of (t, h, w), mapped linearly to the width. Any grid size, absolute positions.

    Args:
        hidden_size: H.
        frequencies: per axis; wavelengths run from 2 pi to about 10^4 elements.
        zero_init: start from no contribution, so that a pretrained backbone first computes what it always did.
    """

    def __init__(self, hidden_size: int, frequencies: int = 32, zero_init: bool = False) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.proj = (ZeroLinear if zero_init else nn.Linear)(6 * frequencies, hidden_size, bias=False)

    def forward(self, coords: Tensor) -> Tensor:
        """[..., 3] -> [..., H]."""
        steps = torch.arange(self.frequencies, device=coords.device, dtype=torch.float32)
        angle = coords.float()[..., None] * (10000.0 ** (-steps / self.frequencies))
        features = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
        return self.proj(features.to(self.proj.weight.dtype))


class Embedding(nn.Module):
    """Turns values of one modality into inputs of the backbone; a subclass embeds one kind of element.

    A place that reads nothing (the start, or a source of which no value is observed) gets the start vector, which thus
    stands for "nothing is known here".
    """

    def __init__(self, hidden_size: int, options: ModalityOptions) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(hidden_size)) if options.start == "learned" else None
        self.null = nn.Parameter(torch.empty(hidden_size)) if options.null_probability > 0 else None
        self.covariates = nn.Linear(options.covariates, hidden_size) if options.covariates else None
        needs_position = options.head is not None and options.has_shared_sources
        self.target_position = CoordinateEmbedding(hidden_size) if needs_position else None

    def embed(self, values: Tensor, observed: Tensor) -> Tensor:
        """Values [B, n, ...] with observed [B, n] or [B, n, D] -> [B, n, H]; unobserved values are not read."""
        raise NotImplementedError

    def read(self, values: Tensor, observed: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Embeds the elements at raster indices `places` [n], -1 for the start.

        Returns:
            embeddings [B, n, H], and [B, n] bool: whether there was anything to read.
        """
        index = places.clamp(min=0)
        seen = observed[:, index]
        known = (seen if seen.dim() == 2 else seen.any(-1)) & (places >= 0)
        embeds = self.embed(values[:, index], seen)
        nothing = embeds.new_zeros(()) if self.start is None else self.start.to(embeds.dtype)
        return torch.where(known[..., None], embeds, nothing), known

    def inputs(
        self,
        values: Tensor,
        layout: Layout,
        observed: Tensor | None = None,
        covariates: Tensor | None = None,
        places: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """The inputs at which elements are predicted (teacher forcing), in generation order.

        Args:
            values: [B, N, ...] in raster order; observed: bool mask of it or None; covariates: [B, N, F] or None.
            places: which n places of the generation order; all by default.

        Returns:
            embeddings [B, n, H], and [B, n] bool: whether the source was known.
        """
        observed = _all_observed(values) if observed is None else observed
        embeds, known = self.read(values, observed, layout.source[places])
        embeds = self._with_covariates(embeds, covariates, layout.index[places])
        if self.target_position is not None:
            seen = observed if observed.dim() == 2 else observed.any(-1)
            first = nn.functional.pad(leading_padding(seen, layout)[:, None, None], (0, 2))  # padding must not shift t
            embeds = embeds + self.target_position(layout.coords[None, places] - first).to(embeds.dtype)
        return embeds, known

    def next_inputs(
        self,
        values_so_far: Tensor,
        layout: Layout,
        block: int,
        observed: Tensor | None = None,
        covariates: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same for block number `block` alone; of the values only those of earlier blocks are read."""
        return self.inputs(values_so_far, layout, observed, covariates, layout.block_range(block))

    def context(
        self,
        values: Tensor,
        layout: Layout,
        observed: Tensor | None = None,
        covariates: Tensor | None = None,
        places: slice = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Each element's own value at its own place, in generation order: [B, n, H], and [B, n] bool."""
        observed = _all_observed(values) if observed is None else observed
        embeds, known = self.read(values, observed, layout.index[places])
        return self._with_covariates(embeds, covariates, layout.index[places]), known

    def _with_covariates(self, embeds: Tensor, covariates: Tensor | None, index: Tensor) -> Tensor:
        if self.covariates is None:
            return embeds
        if covariates is None:
            raise ValueError(f"covariates is None; this modality needs {self.covariates.in_features} features")
        return embeds + self.covariates(covariates[:, index].to(embeds.dtype))

    def init_weights(self, std: float) -> None:
        """Initialises what transformers' rules do not reach: bare parameters."""
        for parameter in (self.start, self.null):
            if parameter is not None:
                init.normal_(parameter, mean=0.0, std=std)


class DiscreteEmbedding(Embedding):
    """A table per codebook; an element of several codes is the sum of its codes' vectors."""

    def __init__(self, hidden_size: int, options: ModalityOptions) -> None:
        super().__init__(hidden_size, options)
        element = cast(DiscreteElement, options.element)
        self.codes, self.vocab_size = element.codes, element.vocab_size
        self.table = nn.Embedding(self.codes * self.vocab_size, hidden_size)

    def embed(self, values: Tensor, observed: Tensor) -> Tensor:
        codes = values if values.dim() == 3 else values[..., None]
        codes = torch.where(observed[..., None], codes, 0)
        offsets = torch.arange(self.codes, device=values.device) * self.vocab_size
        return self.table(codes + offsets).sum(-2)


class ContinuousEmbedding(Embedding):
    """A linear map of the vector; missing values count as 0 and each adds a learned vector that says so."""

    def __init__(self, hidden_size: int, options: ModalityOptions) -> None:
        super().__init__(hidden_size, options)
        dim = cast(ContinuousElement, options.element).dim
        self.value = nn.Linear(dim, hidden_size)
        self.missing = nn.Linear(dim, hidden_size, bias=False)

    def embed(self, values: Tensor, observed: Tensor) -> Tensor:
        seen = (observed if observed.dim() == 3 else observed[..., None]).expand_as(values)
        dtype = self.value.weight.dtype
        values = torch.where(seen, values, 0).to(dtype)  # `where`, not a product: 0 * NaN is NaN
        return self.value(values) + self.missing((~seen).to(dtype))


EMBEDDINGS: dict[str, type[Embedding]] = {"discrete": DiscreteEmbedding, "continuous": ContinuousEmbedding}


def build_embedding(hidden_size: int, options: ModalityOptions) -> Any:
    return EMBEDDINGS[options.element.kind](hidden_size, options)


def _all_observed(values: Tensor) -> Tensor:
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)
