"""From segments to one sequence of backbone positions, all at once (training) or piece by piece (generation).

Shapes: B batch, n positions of a part, L of all parts placed so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import Layout
from .masks import AttentionPattern

Sizes = tuple[int, tuple[int, ...]]
"""A number of a block, and how many positions that block and each after it has."""


@dataclass(frozen=True)
class Part:
    """Consecutive positions that one segment contributes.

    Attributes:
        embeds: [B, n, H].
        coords: [B or 1, n, 3] long, position inside the segment's grid.
        block: [n] long, block number inside the segment.
        sequential, single: every position is its own block; all positions are one block.
        valid: [B, n] bool, False for positions nobody else may attend to; None: all may be.
        lead: [B] long on the first part of a segment that may start with padding: how many leading slices along t are
            wholly unobserved. Positions count from the first observed slice, so that padding changes nothing.
        skip: [B] long, where there is a lead: how many positions of padding come before the segment's first that
            counts; None: those of this part (the only one that begins with padding).
        closes: the segment's (extent along t, number of blocks) on its last part, else None.
        noisy: these are noisy copies of blocks whose clean ones follow: both have the same places in the sequence.
        conditioning: [B, n, H], what is added to the conditioning of these positions (a noise level); None: nothing.
        sizes: what `block` says, without a look at the device: see `Sizes`.
    """

    embeds: Tensor
    coords: Tensor
    block: Tensor
    sizes: Sizes
    sequential: bool
    single: bool
    valid: Tensor | None = None
    lead: Tensor | None = None
    skip: Tensor | None = None
    closes: tuple[int, int] | None = None
    noisy: bool = False
    conditioning: Tensor | None = None


@dataclass(frozen=True)
class Inputs:
    """What the backbone is called with.

    Attributes:
        embeds: [B, n, H].
        coords: [B or 1, n, 3] long.
        position_ids: [B or 1, n] long, running number of the position.
        pattern: who attends to whom.
        length: places in the sequence so far: positions, but noisy copies share those of their blocks.
        conditioning: [B, n, H], what the positions add to the sequence's conditioning; None: nothing.
    """

    embeds: Tensor
    coords: Tensor
    position_ids: Tensor
    pattern: AttentionPattern
    length: int
    conditioning: Tensor | None = None

    def filled(self, multiple: int) -> Inputs:
        """With positions that no other one sees at the end, up to a multiple of so many."""
        more = -self.embeds.shape[1] % multiple
        if not more:
            return self
        wide = (0, 0, 0, more)
        return replace(
            self,
            embeds=F.pad(self.embeds, wide),
            coords=F.pad(self.coords, wide),
            position_ids=F.pad(self.position_ids, (0, more)),
            pattern=self.pattern.padded(more),
            conditioning=None if self.conditioning is None else F.pad(self.conditioning, wide),
        )


class Cursor:
    """Where a sequence has got to: hands every new part its place after all earlier ones."""

    def __init__(self) -> None:
        self.length = 0  # positions so far
        self.count = 0  # places in the sequence so far: noisy copies share those of their blocks
        self.blocks = 0  # blocks in closed segments
        self.time: int | Tensor = 0  # offset along t of the open segment: an int, or [B, 1] where padding differs
        self.skipped: int | Tensor = 0  # leading padding positions so far: an int or [B, 1]
        self.key_block: Tensor | None = None
        self.valid: Tensor | None = None
        self.noisy: Tensor | None = None
        self.key: tuple[Any, ...] = ()  # what `key_block` and `noisy` say

    def place(self, parts: list[Part]) -> Inputs:
        """Appends `parts` and returns the backbone's inputs for them."""
        coords, positions, blocks = [], [], []
        reach = self.count
        for part in parts:
            if part.lead is not None:
                self._skip_padding(part)
            t = part.coords[..., 0] + self.time
            coords.append(torch.stack([t, *(part.coords[..., axis].expand_as(t) for axis in (1, 2))], -1))
            n = part.embeds.shape[1]
            numbers = torch.arange(self.count, self.count + n, device=part.embeds.device)
            reach = max(reach, self.count + n)
            positions.append(numbers[None] - self.skipped)
            blocks.append(part.block + self.blocks)
            self._extend_valid(part)
            self._extend_noisy(part)
            self.key += ((self.blocks + part.sizes[0], part.sizes[1], part.noisy),)
            self.length += n
            self.count += 0 if part.noisy else n
            if part.closes is not None:
                self.time = self.time + part.closes[0]
                self.blocks += part.closes[1]
        new = torch.cat(blocks)
        self.key_block = new if self.key_block is None else torch.cat([self.key_block, new])
        pattern = AttentionPattern(
            block=self.key_block,
            queries=len(new),
            valid=self.valid,
            noisy=self.noisy,
            places=reach,
            sequential=self.noisy is None and all(part.sequential for part in parts),
            single=len(parts) == 1 and parts[0].single,
            key=self.key,
        )
        embeds = parts[0].embeds if len(parts) == 1 else torch.cat([part.embeds for part in parts], 1)
        ids = _cat(positions).clamp(min=0)
        return Inputs(embeds, _cat(coords), ids, pattern, reach, _conditioning(parts))

    def repeat_interleave(self, repeats: int) -> None:
        """Every example `repeats` times, as `Tensor.repeat_interleave` does along the batch."""
        for name in ("time", "skipped", "valid"):
            value = getattr(self, name)
            if isinstance(value, Tensor):
                setattr(self, name, value.repeat_interleave(repeats, 0))

    def _skip_padding(self, part: Part) -> None:
        assert part.lead is not None
        self.time = self.time - part.lead[:, None]
        if part.skip is not None:
            self.skipped = self.skipped + part.skip[:, None]
        elif part.valid is not None:
            self.skipped = self.skipped + count_leading(~part.valid)[:, None]

    def _extend_valid(self, part: Part) -> None:
        if part.valid is None and self.valid is None:
            return
        batch, n = part.embeds.shape[:2]
        ones = part.embeds.new_ones(batch, self.length, dtype=torch.bool)
        before = ones if self.valid is None else self.valid
        new = part.embeds.new_ones(batch, n, dtype=torch.bool) if part.valid is None else part.valid
        self.valid = torch.cat([before, new], 1)

    def _extend_noisy(self, part: Part) -> None:
        if not part.noisy and self.noisy is None:
            return
        before = part.block.new_zeros(self.length, dtype=torch.bool) if self.noisy is None else self.noisy
        self.noisy = torch.cat([before, torch.full_like(part.block, part.noisy, dtype=torch.bool)])


def leading_padding(observed: Tensor, layout: Layout) -> Tensor:
    """[B] long: leading slices along t that are wholly unobserved, from the elements' mask [B, N] in raster order."""
    return count_leading(~observed.view(len(observed), layout.grid[0], -1).any(-1))


def count_leading(missing: Tensor) -> Tensor:
    """[B] long: of bool [B, n], how many are True before the first that is not. (By a sum: ONNX has no running
    product.)"""
    return ((~missing).long().cumsum(1) == 0).sum(1)


def _cat(parts: list[Tensor]) -> Tensor:
    batch = max(part.shape[0] for part in parts)
    return torch.cat([part.expand(batch, *part.shape[1:]) for part in parts], 1)


def _conditioning(parts: list[Part]) -> Tensor | None:
    """[B, n, H], 0 for parts that have none."""
    if all(part.conditioning is None for part in parts):
        return None
    return torch.cat(
        [torch.zeros_like(part.embeds) if part.conditioning is None else part.conditioning for part in parts], 1
    )
