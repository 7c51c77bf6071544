"""Layouts: in which order, and in which blocks, the elements of a grid are generated. Pure data.

Shapes: N = T*H*W elements; every tensor lists the elements in **generation order**.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .segment import Grid, check_grid

Block = int | str | tuple[int, ...] | list[int] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Order:
    """A named order: `function(grid, generator)` gives a permutation of the raster indices, and the order's own
    blocks (non-decreasing from 0) or None for blocks of one. `random`: every call may give another permutation."""

    function: Callable[[Grid, torch.Generator | None], tuple[Tensor, Tensor | None]]
    random: bool = False


ORDERS: dict[str, Order] = {}


def register_order(name: str, random: bool = False) -> Callable:
    """Decorator that adds an order to `ORDERS`; a name that is taken raises ValueError."""

    def register(function: Callable) -> Callable:
        if name in ORDERS:
            raise ValueError(f"order {name!r} is already registered; taken names are {sorted(ORDERS)}")
        ORDERS[name] = Order(function, random)
        return function

    return register


@register_order("raster")
def _raster(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, None]:
    return torch.arange(_count(grid)), None


@register_order("random", random=True)
def _random(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, None]:
    return torch.randperm(_count(grid), generator=generator), None


@dataclass(frozen=True)
class Layout:
    """An ordered partition of a grid's elements into blocks.

    Attributes:
        grid: (T, H, W).
        index: [N] long, raster index of each element.
        block: [N] long, number of its block, non-decreasing from 0.
        source: [N] long, raster index of the element whose value is read when this one is predicted under next-block,
            or -1 for the start. Default: the element of equal rank one block earlier, ranks clipped to that block.
        coords: [N, 3] long, (t, h, w) of each element.
    """

    grid: Grid
    index: Tensor
    block: Tensor
    source: Tensor
    coords: Tensor

    @staticmethod
    def from_grid(
        grid: Sequence[int],
        order: str = "raster",
        block: Block = None,
        generator: torch.Generator | None = None,
    ) -> Layout:
        """Builds the layout of a grid.

        Args:
            grid: (T, H, W), each at least 1.
            order: a name in `ORDERS`.
            block: None (the order's own blocks; one element each for raster and random), an int n (n elements in
                order; the last block may be shorter), a list of sizes, "row", "frame", "whole", or a cell as a tuple
                (t, h, w) or `{"cell": [t, h, w]}`. With rows, frames and cells it is these that are put in order;
                inside them elements stay in raster order.
            generator: source of randomness for random orders; None uses torch's global one.

        Raises:
            ValueError: an empty grid, an unknown order, sizes that do not add up, a cell that does not divide the grid.
        """
        grid = check_grid(grid)
        if not isinstance(order, str) or order not in ORDERS:
            raise ValueError(f"order is {order!r}; known orders are {sorted(ORDERS)}")
        cell = _cell(block, grid)
        units = (grid[0] // cell[0], grid[1] // cell[1], grid[2] // cell[2])
        with torch.device("cpu"):  # models ask for layouts while they are being built on the meta device
            permutation, own_blocks = ORDERS[order].function(units, generator)
            if own_blocks is None:
                own_blocks = torch.arange(len(permutation))
            index = _raster_of_cells(grid, cell)[permutation].flatten()
            sizes = _sizes(block, len(index))
            if sizes is None:
                numbers = own_blocks.repeat_interleave(_count(cell))
            else:
                numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            return Layout(grid, index, numbers, _equal_rank_source(index, numbers), _unravel(index, grid))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_blocks(self) -> int:
        return len(self.block_sizes)

    @cached_property
    def block_sizes(self) -> list[int]:
        return torch.bincount(self.block).tolist()

    @cached_property
    def _starts(self) -> list[int]:
        return [0, *accumulate(self.block_sizes)]

    @property
    def is_sequential(self) -> bool:
        """Whether every block is a single element."""
        return self.num_blocks == len(self)

    @cached_property
    def shares_source(self) -> bool:
        """Whether two elements of one block read the same source, so that the source does not tell them apart."""
        pairs = torch.stack([self.block, self.source], 1)
        return len(torch.unique(pairs, dim=0)) < len(self)

    @cached_property
    def source_coords(self) -> Tensor:
        """[N, 3] long: coordinates of each element's source; a start has those of the element itself."""
        return _unravel(torch.where(self.source < 0, self.index, self.source), self.grid)

    def block_range(self, first: int, last: int | None = None) -> slice:
        """The places in generation order of blocks first..last-1 (`last` None: of block `first` alone)."""
        return slice(self._starts[first], self._starts[first + 1 if last is None else last])

    def gather(self, values: Tensor) -> Tensor:
        """Raster order -> generation order, along dimension 1 of [B, N, ...]."""
        return values[:, self.index]

    def scatter(self, values: Tensor) -> Tensor:
        """Generation order -> raster order, along dimension 1 of [B, N, ...]; the exact inverse of `gather`."""
        return values[:, torch.argsort(self.index)]

    def to(self, device: torch.device | str) -> Layout:
        tensors = (self.index, self.block, self.source, self.coords)
        return Layout(self.grid, *(tensor.to(device) for tensor in tensors))


@lru_cache(maxsize=256)
def cached_layout(grid: Grid, order: str, block: Any, seed: int | None, device: torch.device) -> Layout:
    """A layout that is asked for again and again; `block` must be hashable, `seed` fixes a random order."""
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    return Layout.from_grid(grid, order, block, generator).to(device)


def _count(grid: Sequence[int]) -> int:
    return grid[0] * grid[1] * grid[2]


def _cell(block: Block, grid: Grid) -> Grid:
    """The shape of the cells that `block` cuts the grid into; (1, 1, 1) where it does not speak of cells."""
    named = {"row": (1, 1, grid[2]), "frame": (1, grid[1], grid[2]), "whole": grid}
    if isinstance(block, str):
        if block not in named:
            raise ValueError(f"block is {block!r}; named blocks are {sorted(named)}")
        return named[block]
    if isinstance(block, Mapping):
        if set(block) != {"cell"}:
            raise ValueError(f"block is {dict(block)!r}; as a mapping it must be {{'cell': [t, h, w]}}")
        cell = block["cell"]
        block = tuple(cell) if isinstance(cell, Sequence) else (cell,)
    if not isinstance(block, tuple):
        return 1, 1, 1
    if len(block) != 3 or any(not isinstance(size, int) or size < 1 for size in block):
        raise ValueError(f"block is the cell {block!r}; a cell must be three positive integers (t, h, w)")
    if any(whole % part for whole, part in zip(grid, block, strict=True)):
        raise ValueError(f"cell {block} does not divide grid {grid}; each of its sizes must divide the grid's")
    return block[0], block[1], block[2]


def _sizes(block: Block, n: int) -> list[int] | None:
    """The sizes of the blocks where `block` gives them as a number or a list, else None."""
    if isinstance(block, bool) or not isinstance(block, (int, list, tuple, str, Mapping, type(None))):
        raise ValueError(f"block is {block!r}; it must be None, an int, a list of sizes, a name or a cell (t, h, w)")
    if isinstance(block, int):
        if block < 1:
            raise ValueError(f"block is {block}; a block must have at least 1 element")
        return [block] * (n // block) + ([n % block] if n % block else [])
    if isinstance(block, list):
        if any(not isinstance(size, int) or size < 1 for size in block) or sum(block) != n:
            raise ValueError(
                f"block is the list of sizes {block}; sizes must be positive integers that add up to the grid's {n} "
                "elements (a cell is written (t, h, w) or {'cell': [t, h, w]})"
            )
        return block
    return None


def _raster_of_cells(grid: Grid, cell: Grid) -> Tensor:
    """[cells, elements per cell] raster indices, cells and elements in raster order."""
    (gt, gh, gw), (ct, ch, cw) = grid, cell
    raster = torch.arange(_count(grid)).view(gt // ct, ct, gh // ch, ch, gw // cw, cw)
    return raster.permute(0, 2, 4, 1, 3, 5).reshape(-1, _count(cell))


def _equal_rank_source(index: Tensor, block: Tensor) -> Tensor:
    sizes = torch.bincount(block)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(index)) - starts[block]
    previous = (block - 1).clamp(min=0)
    place = starts[previous] + torch.minimum(rank, sizes[previous] - 1)
    return torch.where(block == 0, -1, index[place])


def _unravel(index: Tensor, grid: Grid) -> Tensor:
    _, height, width = grid
    return torch.stack([index // (height * width), index // width % height, index % width], -1)
