"""Embeddings: how an element's value, or the lack of one, enters the backbone.

Shapes: B batch, N elements of the grid, n places asked for, H width.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import initialization as init

from .heads.denoiser import LevelEmbedding
from .heads.mlp import HiddenLayers
from .layout import Layout
from .merging import CodeMerge
from .modality import ModalityOptions
from .schema import ContinuousElement, DiscreteElement
from .segment import Grid
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


class SoftPrompt(nn.Module):
    """Learned vectors in front of every sequence (prompt tuning, arXiv 2104.08691). They are read like what a sequence
    begins with, one after the other; nothing is predicted from them."""

    def __init__(self, length: int, hidden_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(length, hidden_size))

    def init_weights(self, std: float) -> None:
        init.normal_(self.weight, std=std)

    def forward(self, batch: int) -> Tensor:
        """[batch, length, H]."""
        return self.weight.expand(batch, -1, -1)


class PositionTable(nn.Module):
    """A learned vector for every place of a grid: coords [..., 3] -> [..., H]."""

    def __init__(self, hidden_size: int, grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.table = nn.Embedding(grid[0] * grid[1] * grid[2], hidden_size)

    def forward(self, coords: Tensor) -> Tensor:
        _, height, width = self.grid
        coords = coords.clamp(min=0)  # padding, which nobody reads, lies before the grid
        return self.table((coords[..., 0] * height + coords[..., 1]) * width + coords[..., 2])


class LinearCovariates(nn.Linear):
    """Covariates [B, n, F], mapped linearly and added to embeddings [B, n, H] where there are any (`has` [n, 1])."""

    @property
    def features(self) -> int:
        """F."""
        return self.in_features

    def mix(self, embeds: Tensor, covariates: Tensor, has: Tensor) -> Tensor:
        mapped = self(covariates.to(embeds.dtype))
        return embeds + torch.where(has, mapped, 0)


class ScaledCovariates(nn.Module):
    """e / |e| + s c / |c| for embeddings e and covariates c [B, n, H] with a learnt number s that begins at 1, as in
    AutoTimes (arXiv 2402.02370; github.com/thuml/AutoTimes). Of a vector of zeros, and of covariates where there are
    none (`has` [n, 1]), the share is 0."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.features = hidden_size
        self.scale = nn.Parameter(torch.empty(1))  # no scalar: FSDP takes none

    def mix(self, embeds: Tensor, covariates: Tensor, has: Tensor) -> Tensor:
        return (_unit(embeds) + self.scale * torch.where(has, _unit(covariates), 0)).to(embeds.dtype)

    def init_weights(self, std: float) -> None:
        init.ones_(self.scale)


class Embedding(nn.Module):
    """Turns values of one modality into inputs of the backbone; a subclass embeds one kind of element.

    A place that reads nothing (the start, a source of which no value is observed, what is masked) gets the start
    vector, which thus stands for "nothing is known here". It is a parameter, or handed in from the context (`start`
    [B, 1, H]).
    """

    def __init__(self, hidden_size: int, options: ModalityOptions) -> None:
        super().__init__()
        self.start_kind = options.start
        self.codes = options.element.codes if isinstance(options.element, DiscreteElement) else 0
        objective = options.built_objective
        nothing = options.start == "learned" if objective is None else objective.holds_nothing(options.start)
        self.start = nn.Parameter(torch.empty(hidden_size)) if nothing else None
        self.level = LevelEmbedding(hidden_size) if objective is not None and objective.has_levels else None
        self.context_noise, self.clean_steps = options.context_noise, options.clean_steps
        self.null = nn.Parameter(torch.empty(hidden_size)) if options.null_probability > 0 else None
        self.covariates = _covariates(hidden_size, options)
        self.covariates_of_source = options.covariates_of == "source"
        self.absolute_position = PositionTable(hidden_size, options.grid) if options.absolute_positions else None
        self.target_position: nn.Module | None = None
        self.own_starts = options.target_positions == "starts"
        if options.target_positions == "learned":
            self.target_position = PositionTable(hidden_size, options.grid)
        elif self.own_starts:
            layout = Layout.from_grid(options.grid, options.layout.order, options.layout.block)
            self.target_position = nn.Embedding(max(layout.block_sizes), hidden_size)
        elif options.target_positions or options.has_shared_sources:
            self.target_position = CoordinateEmbedding(hidden_size)

    def embed(self, values: Tensor, observed: Tensor) -> Tensor:
        """Values [B, n, ...] with observed [B, n] or [B, n, D] -> [B, n, H]; unobserved values are not read."""
        raise NotImplementedError

    def read(
        self, values: Tensor, layout: Layout, observed: Tensor, places: Tensor, start: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Embeds the elements at raster indices `places` [n], -1 for the start.

        Returns:
            embeddings [B, n, H], and [B, n] bool: whether there was anything to read.
        """
        index = places.clamp(min=0)
        seen = observed[:, index]
        known = (seen if seen.dim() == 2 else seen.any(-1)) & (places >= 0)
        values = self._disturbed(values[:, index], index, layout)
        embeds = self._placed(self._embed(values, seen), index, observed, layout)
        start = self.start if start is None else start
        nothing = embeds.new_zeros(()) if start is None else start.to(embeds.dtype)
        return torch.where(known[..., None], embeds, nothing), known

    def _embed(self, values: Tensor, seen: Tensor) -> Tensor:
        if self.codes != 1 or values.dim() != 3:
            return self.embed(values, seen)
        # a group of codes is the mean of its codes (NPP, arXiv 2412.15321)
        each = self.embed(values.flatten(1), seen.repeat_interleave(values.shape[2], 1))
        return each.unflatten(1, values.shape[1:]).mean(2)

    def _placed(self, embeds: Tensor, index: Tensor, observed: Tensor, layout: Layout) -> Tensor:
        """With what the table of absolute positions, where there is one, adds to elements at raster indices `index`."""
        if self.absolute_position is None:
            return embeds
        coords = _after_padding(layout.coords_of(index), observed, layout)
        return embeds + self.absolute_position(coords).to(embeds.dtype)

    def _disturbed(self, values: Tensor, index: Tensor, layout: Layout) -> Tensor:
        """Values [B, n, ...] of raster indices `index` as they are read in training: up to `context_noise` of each is
        noise, a share that is drawn anew for every example, but for the first `clean_steps`."""
        if not (self.training and self.context_noise):
            return values
        share = self.context_noise * torch.rand(len(values), *[1] * (values.dim() - 1), device=values.device)
        spared = layout.coords_of(index)[:, 0] < self.clean_steps
        return self.disturb(values, share * ~spared.view(-1, *[1] * (values.dim() - 2)))

    def disturb(self, values: Tensor, share: Tensor) -> Tensor:
        """Values of which a `share` is noise."""
        raise NotImplementedError

    def inputs(
        self,
        values: Tensor,
        layout: Layout,
        observed: Tensor | None = None,
        covariates: Tensor | None = None,
        places: slice = slice(None),
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The inputs at which elements are predicted (teacher forcing), in generation order.

        Args:
            values: [B, N, ...] in raster order; observed: bool mask of it or None; covariates: [B, N, F] or None.
            places: which n places of the generation order; all by default.
            start: [B, 1, H], what the first block reads where that is the context's embedding.

        Returns:
            embeddings [B, n, H], and [B, n] bool: whether the source was known.
        """
        observed = _all_observed(values) if observed is None else observed
        source = (layout.own_source if self.own_starts else layout.source)[places]
        embeds, known = self.read(values, layout, observed, source, start)
        described = source if self.covariates_of_source else layout.index[places]
        embeds = self._with_covariates(embeds, covariates, described)
        if self.own_starts:
            own = self._own_start(layout, places).to(embeds.dtype)
            return torch.where(known[..., None], embeds, embeds + own), known
        if self.target_position is not None:
            coords = _after_padding(layout.coords[places], observed, layout)
            embeds = embeds + self.target_position(coords).to(embeds.dtype)
        return embeds, known

    def _own_start(self, layout: Layout, places: slice) -> Tensor:
        """[n, H], what a place that reads nothing gets besides the start."""
        table = cast(nn.Embedding, self.target_position)
        largest = max(layout.block_sizes)
        if largest > table.num_embeddings:
            raise ValueError(
                f"layout has a block of {largest} elements; with target_positions 'starts' the largest block of this "
                f"model has {table.num_embeddings}"
            )
        return table(layout.rank[places])

    def next_inputs(
        self,
        values_so_far: Tensor,
        layout: Layout,
        block: int,
        observed: Tensor | None = None,
        covariates: Tensor | None = None,
        start: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The same for block number `block` alone; of the values only those of earlier blocks are read."""
        return self.inputs(values_so_far, layout, observed, covariates, layout.block_range(block), start)

    def context(
        self,
        values: Tensor,
        layout: Layout,
        observed: Tensor | None = None,
        covariates: Tensor | None = None,
        places: slice | Tensor = slice(None),
    ) -> tuple[Tensor, Tensor]:
        """Each element's own value at its own place, in generation order: [B, n, H], and [B, n] bool."""
        observed = _all_observed(values) if observed is None else observed
        embeds, known = self.read(values, layout, observed, layout.index[places])
        return self._with_covariates(embeds, covariates, layout.index[places]), known

    def noisy(
        self,
        values: Tensor,
        layout: Layout,
        observed: Tensor | None = None,
        covariates: Tensor | None = None,
        places: slice = slice(None),
        masked: Tensor | None = None,
    ) -> Tensor:
        """[B, n, H]: noisy copies of the elements at `places` of the generation order, each at its own place.

        Args:
            values: [B, n, ...] with noise, in generation order; observed: of the segment, as in `inputs`.
            masked: [B, n] bool, what is hidden altogether; None: nothing is.
        """
        index = layout.index[places]
        if observed is None:
            observed = torch.ones(len(values), len(layout), dtype=torch.bool, device=values.device)
        seen = observed[:, index]
        if masked is not None:  # of what is hidden nothing is read: it may be anything
            seen = seen & ~(masked if seen.dim() == 2 else masked[..., None])
            values = self._disturbed(values, index, layout)
        embeds = self._embed(values, seen)
        if masked is not None:
            assert self.start is not None, "objectives that mask hold nothing at some places"
            embeds = torch.where(masked[..., None], self.start.to(embeds.dtype), embeds)
        return self._with_covariates(self._placed(embeds, index, observed, layout), covariates, index)

    def _with_covariates(self, embeds: Tensor, covariates: Tensor | None, index: Tensor) -> Tensor:
        """Embeddings [B, n, H] with the covariates of raster indices `index` [n], -1 for none."""
        if self.covariates is None:
            return embeds
        if covariates is None:
            raise ValueError(f"covariates is None; this modality needs {self.covariates.features} features")
        return self.covariates.mix(embeds, covariates[:, index.clamp(min=0)], (index >= 0)[:, None])

    def init_weights(self, std: float) -> None:
        """Initialises what transformers' rules do not reach: bare parameters."""
        for parameter in (self.start, self.null):
            if parameter is not None:
                init.normal_(parameter, mean=0.0, std=std)


class DiscreteEmbedding(Embedding):
    """A table per codebook; an element of several codes is the sum of its codes' vectors, or, where they are of one
    codebook, merges them."""

    def __init__(self, hidden_size: int, options: ModalityOptions) -> None:
        super().__init__(hidden_size, options)
        element = cast(DiscreteElement, options.element)
        self.vocab_size = element.vocab_size
        self.merge = CodeMerge(hidden_size, element.codes) if element.merge else None
        self.table = nn.Embedding((1 if element.merge else self.codes) * self.vocab_size, hidden_size)

    def embed(self, values: Tensor, observed: Tensor) -> Tensor:
        codes = values if values.dim() == 3 else values[..., None]
        codes = torch.where(observed[..., None], codes, 0)
        if self.merge is not None:
            return self.merge(self.table(codes))
        offsets = torch.arange(self.codes, device=values.device) * self.vocab_size
        return self.table(codes + offsets).sum(-2)

    def disturb(self, values: Tensor, share: Tensor) -> Tensor:
        """Each code is replaced, with probability `share`, by one drawn uniformly."""
        drawn = torch.randint_like(values, self.vocab_size)
        return torch.where(torch.rand(values.shape, device=values.device) < share, drawn, values)


class ContinuousEmbedding(Embedding):
    """A linear map of the vector, or an MLP; missing values count as 0 and each adds a learned vector that says so."""

    def __init__(self, hidden_size: int, options: ModalityOptions) -> None:
        super().__init__(hidden_size, options)
        self.dim = cast(ContinuousElement, options.element).dim
        self.layers = HiddenLayers(self.dim, options.embedding)
        self.value = nn.Linear(self.layers.width, hidden_size)
        self.missing = nn.Linear(self.dim, hidden_size, bias=False)

    def embed(self, values: Tensor, observed: Tensor) -> Tensor:
        seen = (observed if observed.dim() == 3 else observed[..., None]).expand_as(values)
        dtype = self.value.weight.dtype
        values = torch.where(seen, values, 0).to(dtype)  # `where`, not a product: 0 * NaN is NaN
        return self.value(self.layers(values)) + self.missing((~seen).to(dtype))

    def disturb(self, values: Tensor, share: Tensor) -> Tensor:
        """(1 - share) values + share e, with e standard normal (CAM, arXiv 2411.18447)."""
        return values + share.to(values.dtype) * (torch.randn_like(values) - values)


EMBEDDINGS: dict[str, type[Embedding]] = {"discrete": DiscreteEmbedding, "continuous": ContinuousEmbedding}


def build_embedding(hidden_size: int, options: ModalityOptions) -> Any:
    return EMBEDDINGS[options.element.kind](hidden_size, options)


def _unit(x: Tensor) -> Tensor:
    """x / |x| [..., H], in float32 or wider; 0 where x is."""
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    return x / torch.where(norm > 0, norm, 1)


def _covariates(hidden_size: int, options: ModalityOptions) -> LinearCovariates | ScaledCovariates | None:
    if not options.covariates:
        return None
    if options.covariates_mixing == "linear":
        return LinearCovariates(options.covariates, hidden_size)
    if options.covariates != hidden_size:
        raise ValueError(
            f"covariates is {options.covariates}; with covariates_mixing 'scaled' it must be the backbone's "
            f"hidden_size, {hidden_size}"
        )
    return ScaledCovariates(hidden_size)


def _all_observed(values: Tensor) -> Tensor:
    return torch.ones(values.shape[:2], dtype=torch.bool, device=values.device)


def _after_padding(coords: Tensor, observed: Tensor, layout: Layout) -> Tensor:
    """[n, 3] -> [B, n, 3]: t counts from the first slice with anything observed, so that padding does not shift it."""
    seen = observed if observed.dim() == 2 else observed.any(-1)
    return coords[None] - nn.functional.pad(leading_padding(seen, layout)[:, None, None], (0, 2))
