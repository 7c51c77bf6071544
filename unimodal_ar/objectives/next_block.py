"""Next-block prediction: all elements of a block at once, from the blocks before it.

Blocks of one are next-token and next-patch prediction; rows or frames are Next-Block Prediction (arXiv 2502.07737).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..heads.base import Head
from ..layout import Layout
from ..segment import Segment
from ..sequence import Part, leading_padding
from .base import Decoding, Objective, TrainingPlan


class NextBlock(Objective):
    """The position of element i reads the value of `source(i)`, attends to positions of blocks up to its own, and
    predicts element i.

    Positions without anything to read or to predict (padding) are attended to by nobody. Without a start vector the
    first block is not predicted and has no positions.
    """

    def training_plan(self, embedding: Any, segment: Segment, layout: Layout, last: bool) -> TrainingPlan:
        first = _first_block(embedding)
        if first >= layout.num_blocks:
            raise ValueError(
                f"grid of {segment.modality!r} is {segment.grid}, a single block; with start 'none' it needs two"
            )
        parts = [_positions(embedding, segment, layout, first, layout.num_blocks)]
        places = slice(0, parts[0].embeds.shape[1])
        elements = layout.block_range(first, layout.num_blocks)
        predicted = layout.gather(segment.element_observed)
        if embedding.start is None:
            predicted = predicted & seen_before(predicted, layout)
        if not last:
            parts.append(_closing(embedding, segment, layout))
        return TrainingPlan(_closed(parts, layout), places, elements, predicted[:, elements])

    def known_parts(self, embedding: Any, segment: Segment, layout: Layout, blocks: int) -> list[Part]:
        first = _first_block(embedding)
        parts = [_positions(embedding, segment, layout, first, blocks)] if blocks > first else []
        if blocks == layout.num_blocks:  # else drawing the next block reads the last known one, and so commits it
            parts = _closed([*parts, _closing(embedding, segment, layout)], layout)
        return parts

    def draw(
        self,
        decoding: Decoding,
        embedding: Any,
        head: Head,
        segment: Segment,
        layout: Layout,
        block: int,
        steps: int | None = None,
        **sampling: Any,
    ) -> Tensor:
        if steps is not None:
            raise ValueError(f"steps is {steps}; next-block prediction draws a block in one pass and takes no steps")
        inputs = embedding.next_inputs(segment.values, layout, block, segment.observed, segment.covariates)
        hidden = decoding.append([_positions(embedding, segment, layout, block, block + 1, inputs)])
        return head.sample(hidden, **sampling)


def _first_block(embedding: Any) -> int:
    """The first block that has predicting positions."""
    return 1 if embedding.start is None else 0


def _positions(
    embedding: Any, segment: Segment, layout: Layout, first: int, last: int, inputs: tuple[Tensor, Tensor] | None = None
) -> Part:
    """The predicting positions of blocks first..last-1, with their inputs where the embedding has made them already."""
    places = layout.block_range(first, last)
    embeds, known = inputs or embedding.inputs(segment.values, layout, segment.observed, segment.covariates, places)
    coords, valid, lead = layout.source_coords[None, places], None, None
    if segment.observed is not None:
        coords = torch.where(known[..., None], coords, layout.coords[places])  # a start takes its target's place
        observed = layout.gather(segment.element_observed)
        valid = known | observed[:, places]
        if embedding.start is None:
            valid = valid & seen_before(observed, layout)[:, places]
        lead = leading_padding(segment.element_observed, layout) if first == _first_block(embedding) else None
    return Part(
        embeds=embeds,
        coords=coords,
        block=layout.block[places],
        sequential=layout.is_sequential,
        single=last - first == 1,
        valid=None if valid is None or bool(valid.all()) else valid,
        lead=lead,
    )


def context_part(embedding: Any, segment: Segment, layout: Layout) -> Part:
    """All positions of a context segment: each holds its own element's value and predicts nothing."""
    lead = None if segment.observed is None else leading_padding(segment.element_observed, layout)
    part = _own_values(embedding, segment, layout, slice(0, len(layout)), layout.num_blocks == 1)
    return _closed([replace(part, lead=lead)], layout)[0]


def _closing(embedding: Any, segment: Segment, layout: Layout) -> Part:
    """Positions that show the last block, which no predicting position reads, to the segments that follow."""
    return _own_values(embedding, segment, layout, layout.block_range(layout.num_blocks - 1), True, after=1)


def _own_values(embedding: Any, segment: Segment, layout: Layout, places: slice, single: bool, after: int = 0) -> Part:
    embeds, known = embedding.context(segment.values, layout, segment.observed, segment.covariates, places)
    valid = None if segment.observed is None or bool(known.all()) else known
    return Part(embeds, layout.coords[None, places], layout.block[places] + after, layout.is_sequential, single, valid)


def _closed(parts: list[Part], layout: Layout) -> list[Part]:
    """Marks the last part as the segment's end."""
    return [*parts[:-1], replace(parts[-1], closes=(layout.grid[0], layout.num_blocks + 1))]


def seen_before(observed: Tensor, layout: Layout) -> Tensor:
    """[B, N] bool in generation order: whether any element of an earlier block is observed."""
    count = torch.cat([observed.new_zeros(len(observed), 1, dtype=torch.long), observed.long().cumsum(1)], 1)
    block_start = torch.searchsorted(layout.block, layout.block)
    return count[:, block_start] > 0
