"""Codebook patterns: where the codes of a codec, K for each time step, stand on a grid. Pure data, exact inverses.

A pattern decides which codes are one element and which are elements of their own; the order in which elements are
drawn, and how many together, is the layout's. With T steps of K codes, at f steps a second:

| pattern and layout                   | elements  | passes    | positions a second | codes of a step      |
|--------------------------------------|-----------|-----------|--------------------|----------------------|
| parallel, block 1                    | T         | T         | f                  | independent          |
| delay, block 1                       | T + K - 1 | T + K - 1 | f                  | one after the other  |
| grid: raster, block 1 (flatten)      | T K       | T K       | f K                | one after the other  |
| grid: raster, block "row" (parallel) | T K       | T         | f K                | independent          |
| grid: "neighbor" (delay)             | T K       | T + K - 1 | f K                | one after the other  |
| grid: "coarse_first"                 | T K       | 2 T       | f K                | first, then the rest |
| grid: "columns"                      | T K       | K         | f K                | one after the other  |

The first five and coarse-first are those of Copet et al. 2023 (MusicGen, arXiv 2306.05284, figure 1). Codes that are
drawn in one pass are independent given what came before, so that only flattening leaves nothing out.

The delay comes in two forms, with as many passes. As elements (pattern "delay") a row costs one position, the sum of K
embeddings, so that attention and its cache are K times as short: take it for long clips, for many codebooks, and to
train as MusicGen was. As an order on the grid every code is a position of its own: K times as many, but each is
attended to by itself, one coordinate tells the codebooks apart, any subset of codes can be given, and the same values
can be trained under all the layouts above.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...segment import Grid


@dataclass(frozen=True)
class Pattern:
    """A place for every code: those of a step stand in one row of the grid, or each `delay` rows below the one before.

    Args:
        delay: rows of the grid's T axis by which a codebook's codes stand later than those of the codebook before.
        single: whether a code is an element, those of a row side by side along W; else a row is one element of K.
    """

    delay: int
    single: bool

    def lag(self, codebooks: int) -> int:
        """Rows that have to come after a step's own until its last code has come."""
        return self.delay * (codebooks - 1)

    def width(self, codebooks: int) -> int:
        """W of the grid."""
        return codebooks if self.single else 1

    def codes(self, codebooks: int) -> int:
        """Codes of an element."""
        return 1 if self.single else codebooks

    def grid(self, steps: int, codebooks: int) -> Grid:
        """(T, 1, W) of so many steps of so many codebooks."""
        return (steps + self.lag(codebooks), 1, self.width(codebooks))

    def places(self, steps: int, codebooks: int) -> Tensor:
        """[steps, codebooks] long: where each code stands among the rows * codebooks places, row by row."""
        book = torch.arange(codebooks)
        return (torch.arange(steps)[:, None] + self.delay * book) * codebooks + book

    def build(self, codes: Tensor) -> Tensor:
        """Codes [B, steps, K] -> values in raster order of the grid: [B, N, K], or [B, N] where an element is one code.

        Places that no code falls on (the corners of a delay) hold 0, a code like any other: whatever is drawn there can
        be decoded, and `revert` drops it.
        """
        batch, steps, books = codes.shape
        rows, _, width = self.grid(steps, books)
        values = codes.new_zeros(batch, rows * books)
        values[:, self.places(steps, books).flatten().to(codes.device)] = codes.flatten(1)
        return values.view(batch, rows * width, -1) if self.codes(books) > 1 else values

    def revert(self, values: Tensor, codebooks: int) -> Tensor:
        """The inverse of `build`: values of whole rows -> the codes [B, steps, K] of the steps that are complete in
        them, possibly none. Rows need not begin at the first: those of steps s, s + 1, ... give the codes of these."""
        places = values.flatten(1)
        steps = max(places.shape[1] // codebooks - self.lag(codebooks), 0)
        return places[:, self.places(steps, codebooks).to(values.device)]


PATTERNS = {
    "parallel": Pattern(delay=0, single=False),
    "delay": Pattern(delay=1, single=False),
    "grid": Pattern(delay=0, single=True),
}
