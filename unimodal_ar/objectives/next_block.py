"""Next-block prediction: all elements of a block at once, from the blocks before it.

Blocks of one are next-token and next-patch prediction; rows or frames are Next-Block Prediction (arXiv 2502.07737).
"""

from __future__ import annotations

from dataclasses import replace
from operator import add
from typing import Any

import torch
from torch import Tensor

from ..heads.base import Head
from ..layout import Layout
from ..segment import Segment
from ..sequence import Part, leading_padding
from .base import Decoding, Objective, TrainingPlan
from .parts import check_predicted, closed, elements_at, first_block, seen_before


class NextBlock(Objective):
    """The position of element i reads the value of `source(i)`, attends to positions of blocks up to its own, and
    predicts element i.

    What no position of the next block reads (where blocks shrink) is shown to it by positions that hold the element's
    own value and predict nothing. Positions without anything to read or to predict (padding) are attended to by
    nobody. Without a start the first block is not predicted and has no positions.
    """

    likelihood = "exact"

    def training_plan(
        self, embedding: Any, segment: Segment, layout: Layout, last: bool, start: Tensor | None = None
    ) -> TrainingPlan:
        check_predicted(embedding, segment, layout)
        first = first_block(embedding)
        part, places = _positions(embedding, segment, layout, first, layout.num_blocks, start)
        parts = [part]
        elements = layout.block_range(first, layout.num_blocks)
        predicted = layout.gather(segment.element_observed)
        if embedding.start_kind == "none":
            predicted = predicted & seen_before(predicted, layout)
        if not last:
            parts.append(_closing(embedding, segment, layout))
        return TrainingPlan(closed(parts, layout), places, elements, predicted[:, elements])

    def known_parts(
        self, embedding: Any, segment: Segment, layout: Layout, blocks: int, start: Tensor | None = None
    ) -> list[Part]:
        first = first_block(embedding)
        parts = [_positions(embedding, segment, layout, first, blocks, start)[0]] if blocks > first else []
        if blocks == layout.num_blocks:  # else drawing the next block reads the last known one, and so commits it
            parts = closed([*parts, _closing(embedding, segment, layout)], layout)
        return parts

    def sampling(self, head: Head, steps: Any, sampler: dict[str, Any] | None) -> dict[str, Any]:
        for name, value in (("steps", steps), ("sampler", sampler)):
            if value is not None:
                raise ValueError(
                    f"{name} is {value}; next-block prediction draws a block in one pass and takes no {name}"
                )
        return {}

    def draw(
        self,
        decoding: Decoding,
        embedding: Any,
        head: Head,
        segment: Segment,
        layout: Layout,
        block: int,
        known: Tensor | None = None,
        alone: bool = False,
        **sampling: Any,
    ) -> Tensor:
        made = [_positions(embedding, segment, layout, block, block + 1, start) for start in decoding.starts]
        hidden = decoding.append(*([part] for part, _ in made))
        places = made[0][1]
        return decoding.sample(head, tuple(states[:, places] for states in hidden), **sampling)


def _positions(
    embedding: Any, segment: Segment, layout: Layout, first: int, last: int, start: Tensor | None
) -> tuple[Part, slice | Tensor]:
    """The positions of blocks first..last-1, and which of them predict."""
    part = _predicting(embedding, segment, layout, first, last, start)
    unread = layout.unread_range(first - 1, last - 1)
    if not len(unread):
        return part, slice(0, part.embeds.shape[1])
    # Block by block, what is shown before what predicts: the order in which drawing appends them.
    shown = elements_at(embedding, segment, layout, unread, layout.unread_sizes(first - 1, last - 1), after=1)
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
        lead = leading_padding(segment.element_observed, layout) if first == first_block(embedding) else None
    else:
        coords = coords[:1]  # they are the same for all
    return Part(
        embeds=embeds,
        coords=coords,
        block=layout.block[places],
        sizes=layout.sizes(first, last),
        sequential=layout.is_sequential,
        single=last - first == 1,
        valid=None if valid is None or bool(valid.all()) else valid,
        lead=lead,
    )


def _closing(embedding: Any, segment: Segment, layout: Layout) -> Part:
    """Positions that show the last block, which no predicting position reads, to the segments that follow."""
    final = layout.num_blocks - 1
    return elements_at(embedding, segment, layout, layout.block_range(final), layout.sizes(final, final + 1), after=1)


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
        sizes=(second.sizes[0], tuple(map(add, first.sizes[1], second.sizes[1]))),
        sequential=False,  # even where blocks are of one: what is shown is in the block that it is shown to
        valid=valid,
    )
