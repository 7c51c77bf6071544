"""Positions that hold elements' own values: contexts, what is known already, and the clean copies of blocks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..layout import Layout
from ..segment import Segment
from ..sequence import Part, Sizes, leading_padding


def context_part(embedding: Any, segment: Segment, layout: Layout) -> Part:
    """All positions of a context segment: each holds its own element's value and predicts nothing."""
    return closed([leading(own_values(embedding, segment, layout, 0, layout.num_blocks), segment, layout)], layout)[0]


def own_values(embedding: Any, segment: Segment, layout: Layout, first: int, last: int) -> Part:
    """Positions that hold the elements of blocks first..last-1."""
    part = elements_at(embedding, segment, layout, layout.block_range(first, last), layout.sizes(first, last))
    return replace(part, single=last - first == 1)


def elements_at(
    embedding: Any, segment: Segment, layout: Layout, places: slice | Tensor, sizes: Sizes, after: int = 0
) -> Part:
    """Positions that hold the elements at `places` of the generation order, in the block `after` their own; `sizes` of
    the latter."""
    embeds, known = embedding.context(segment.values, layout, segment.observed, segment.covariates, places)
    valid = None if segment.observed is None or bool(known.all()) else known
    block = layout.block[places] + after
    numbers = sizes[0] + after, sizes[1]
    return Part(embeds, layout.coords[None, places], block, numbers, layout.is_sequential, single=True, valid=valid)


def leading(part: Part, segment: Segment, layout: Layout) -> Part:
    """As the first part of a segment, which may start with padding."""
    if segment.observed is None:
        return part
    missing = ~layout.gather(segment.element_observed)
    skip = missing.long().cumprod(1).sum(1)  # padding may be longer than the part
    return replace(part, lead=leading_padding(segment.element_observed, layout), skip=skip)


def closed(parts: list[Part], layout: Layout) -> list[Part]:
    """Marks the last part as the segment's end."""
    return [*parts[:-1], replace(parts[-1], closes=(layout.grid[0], layout.num_blocks + 1))]


def seen_before(observed: Tensor, layout: Layout) -> Tensor:
    """[B, N] bool in generation order: whether any element of an earlier block is observed."""
    count = torch.cat([observed.new_zeros(len(observed), 1, dtype=torch.long), observed.long().cumsum(1)], 1)
    block_start = torch.searchsorted(layout.block, layout.block)
    return count[:, block_start] > 0


def first_block(embedding: Any) -> int:
    """The first block that is predicted."""
    return 1 if embedding.start_kind == "none" else 0


def check_predicted(embedding: Any, segment: Segment, layout: Layout) -> None:
    """Raises ValueError where no block is predicted."""
    if first_block(embedding) >= layout.num_blocks:
        raise ValueError(
            f"grid of {segment.modality!r} is {segment.grid}, a single block; with start 'none' it needs two"
        )
