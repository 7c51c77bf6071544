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

    What no position of the next block reads (where blocks shrink) is shown to it by positions that hold the element's
    own value and predict nothing. Positions without anything to read or to predict (padding) are attended to by
    nobody. Without a start the first block is not predicted and has no positions.
    """

    def training_plan(
        self, embedding: Any, segment: Segment, layout: Layout, last: bool, start: Tensor | None = None
    ) -> TrainingPlan:
        first = _first_block(embedding)
        if first >= layout.num_blocks:
            raise ValueError(
                f"grid of {segment.modality!r} is {segment.grid}, a single block; with start 'none' it needs two"
            )
        part, places = _positions(embedding, segment, layout, first, layout.num_blocks, start)
        parts = [part]
        elements = layout.block_range(first, layout.num_blocks)
        predicted = layout.gather(segment.element_observed)
        if embedding.start_kind == "none":
            predicted = predicted & seen_before(predicted, layout)
        if not last:
            parts.append(_closing(embedding, segment, layout))
        return TrainingPlan(_closed(parts, layout), places, elements, predicted[:, elements])

    def known_parts(
        self, embedding: Any, segment: Segment, layout: Layout, blocks: int, start: Tensor | None = None
    ) -> list[Part]:
        first = _first_block(embedding)
        parts = [_positions(embedding, segment, layout, first, blocks, start)[0]] if blocks > first else []
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
        made = [_positions(embedding, segment, layout, block, block + 1, start) for start in decoding.starts]
        hidden = decoding.append(*([part] for part, _ in made))
        places = made[0][1]
        return decoding.sample(head, tuple(states[:, places] for states in hidden), **sampling)


def _first_block(embedding: Any) -> int:
    """The first block that has predicting positions."""
    return 1 if embedding.start_kind == "none" else 0


def _positions(
    embedding: Any, segment: Segment, layout: Layout, first: int, last: int, start: Tensor | None
) -> tuple[Part, slice | Tensor]:
    """The positions of blocks first..last-1, and which of them predict."""
    part = _predicting(embedding, segment, layout, first, last, start)
    unread = layout.unread_range(first - 1, last - 1)
    if not len(unread):
        return part, slice(0, part.embeds.shape[1])
    # Block by block, what is shown before what predicts: the order in which drawing appends them.
    shown = _own_values(embedding, segment, layout, unread, after=1)
    order = torch.cat([shown.block, part.block]).argsort(stable=True)
    return _merged(shown, part, order), order.argsort()[len(unread) :]


def _predicting(embedding: Any, segment: Segment, layout: Layout, first: int, last: int, start: Tensor | None) -> Part:
    places = layout.block_range(first, last)
    arguments = segment.values, layout, segment.observed, segment.covariates
    if last - first == 1:
        embeds, known = embedding.next_inputs(*arguments[:2], first, *arguments[2:], start)
    else:
        embeds, known = embedding.inputs(*arguments, places, start)
    own, valid, lead = layout.coords[places], None, None
    if embedding.start_kind == "context":
        own = torch.full_like(own, -1)  # the context's embedding has no place in the grid
    # Any other start takes its target's place.
    coords = torch.where(known[..., None], layout.source_coords[places], own)
    if segment.observed is not None:
        observed = layout.gather(segment.element_observed)
        valid = known | observed[:, places]
        if embedding.start_kind == "none":
            valid = valid & seen_before(observed, layout)[:, places]
        lead = leading_padding(segment.element_observed, layout) if first == _first_block(embedding) else None
    else:
        coords = coords[:1]  # they are the same for all
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
    part = _own_values(embedding, segment, layout, slice(0, len(layout)))
    return _closed([replace(part, single=layout.num_blocks == 1, lead=lead)], layout)[0]


def _closing(embedding: Any, segment: Segment, layout: Layout) -> Part:
    """Positions that show the last block, which no predicting position reads, to the segments that follow."""
    return _own_values(embedding, segment, layout, layout.block_range(layout.num_blocks - 1), after=1)


def _own_values(embedding: Any, segment: Segment, layout: Layout, places: slice | Tensor, after: int = 0) -> Part:
    """Positions that hold the elements at `places` of the generation order, in the block `after` their own."""
    embeds, known = embedding.context(segment.values, layout, segment.observed, segment.covariates, places)
    valid = None if segment.observed is None or bool(known.all()) else known
    return Part(embeds, layout.coords[None, places], layout.block[places] + after, layout.is_sequential, True, valid)


def _merged(first: Part, second: Part, order: Tensor) -> Part:
    """Two parts of the same blocks as one, its positions in `order`."""
    batch = max(len(first.coords), len(second.coords))
    coords = torch.cat([part.coords.expand(batch, -1, -1) for part in (first, second)], 1)
    valid = None
    if first.valid is not None or second.valid is not None:
        masks = [
            part.embeds.new_ones(part.embeds.shape[:2], dtype=torch.bool) if part.valid is None else part.valid
            for part in (first, second)
        ]
        valid = torch.cat(masks, 1)[:, order]
    return replace(
        second,
        embeds=torch.cat([first.embeds, second.embeds], 1)[:, order],
        coords=coords[:, order],
        block=torch.cat([first.block, second.block])[order],
        valid=valid,
    )


def _closed(parts: list[Part], layout: Layout) -> list[Part]:
    """Marks the last part as the segment's end."""
    return [*parts[:-1], replace(parts[-1], closes=(layout.grid[0], layout.num_blocks + 1))]


def seen_before(observed: Tensor, layout: Layout) -> Tensor:
    """[B, N] bool in generation order: whether any element of an earlier block is observed."""
    count = torch.cat([observed.new_zeros(len(observed), 1, dtype=torch.long), observed.long().cumsum(1)], 1)
    block_start = torch.searchsorted(layout.block, layout.block)
    return count[:, block_start] > 0
