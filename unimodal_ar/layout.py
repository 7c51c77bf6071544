"""Layouts: in which order, and in which blocks, the elements of a grid are generated. Pure data.

Shapes: N = T*H*W elements; every tensor lists the elements in **generation order**.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from .segment import Grid, check_grid

Block = int | str | tuple[int, ...] | list[int] | Mapping[str, Any] | None


@dataclass(frozen=True)
class Order:
    """A named order: `function(grid, generator)` gives a permutation of the raster indices, and the order's own
    blocks (non-decreasing from 0) or None for blocks of one. `random`: every call may give another permutation.
    `source(grid)`: for each raster index that of what is read there, of an earlier block, or -1; None: what is of equal
    rank one block earlier. Where cells are put in order, both speak of the grid of cells."""

    function: Callable[[Grid, torch.Generator | None], tuple[Tensor, Tensor | None]]
    random: bool = False
    source: Callable[[Grid], Tensor] | None = None


ORDERS: dict[str, Order] = {}


def register_order(name: str, random: bool = False, source: Callable[[Grid], Tensor] | None = None) -> Callable:
    """Decorator that adds an order to `ORDERS`; a name that is taken raises ValueError."""

    def register(function: Callable) -> Callable:
        if name in ORDERS:
            raise ValueError(f"order {name!r} is already registered; taken names are {sorted(ORDERS)}")
        ORDERS[name] = Order(function, random, source)
        return function

    return register


@register_order("raster")
def _raster(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, None]:
    return torch.arange(_count(grid)), None


@register_order("random", random=True)
def _random(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, None]:
    return torch.randperm(_count(grid), generator=generator), None


@register_order("neighbor")
def _neighbor(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """From the first corner outwards, all elements of one Manhattan distance together (NAR, arXiv 2503.10696). On the
    grid (T, 1, codebooks) that is the delay of MusicGen (arXiv 2306.05284): codebook k comes k steps late."""
    distance = _unravel(torch.arange(_count(grid)), grid).sum(-1)
    index = distance.argsort(stable=True)
    return index, distance[index]


@register_order("coarse_first")
def _coarse_first(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The first column element by element, then the rest of each row together: on the grid (T, 1, codebooks) the first
    codebook of all steps, then the finer ones step by step (audiocraft's coarse-first pattern, arXiv 2306.05284)."""
    rows = torch.arange(_count(grid)).view(-1, grid[2])
    steps = torch.arange(len(rows))
    index = torch.cat([rows[:, 0], rows[:, 1:].flatten()])
    return index, torch.cat([steps, (steps + len(rows)).repeat_interleave(grid[2] - 1)])


@register_order("columns")
def _columns(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """Column after column, each a block of its own: on the grid (T, 1, codebooks) codebook after codebook (MAGNeT,
    arXiv 2401.04577; SoundStorm, arXiv 2305.09636). Block 1 draws them element by element; the sizes [1] * T +
    [T] * (codebooks - 1) only the first (VALL-E, arXiv 2301.02111)."""
    columns = torch.arange(_count(grid)).view(-1, grid[2]).T
    return columns.flatten(), torch.arange(grid[2]).repeat_interleave(columns.shape[1])


def _one_frame_earlier(grid: Grid) -> Tensor:
    """In the first frame what is one before, later what is at the same place one frame earlier."""
    frame = grid[1] * grid[2]
    places = torch.arange(_count(grid))
    return torch.where(places < frame, places - 1, places - frame)


@register_order("first_frame", source=_one_frame_earlier)
def _first_frame(grid: Grid, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
    """The first frame element by element (row by row with block "row", cell by cell), each reading the one before, then
    frame after frame as a whole, each element reading its counterpart one frame earlier (the hybrid of NBP,
    arXiv 2502.07737)."""
    index, frame = torch.arange(_count(grid)), grid[1] * grid[2]
    return index, torch.where(index < frame, index, frame - 1 + index // frame)


def _strided(grid: Grid, generator: torch.Generator | None, regions: int) -> tuple[Tensor, Tensor]:
    """Each frame is cut into regions x regions parts. Their first elements come one by one, then the elements at the
    second place of every region together, and so on in raster order: what is drawn together is far apart (PAR,
    arXiv 2412.15119)."""
    frames, height, width = grid
    if height % regions or width % regions:
        raise ValueError(f"frames of {height} x {width} cannot be cut into {regions} x {regions} regions of equal size")
    cell = (1, height // regions, width // regions)
    index = cells(grid, cell).view(frames, regions**2, -1).transpose(1, 2)
    blocks = torch.ones(frames, *index.shape[1:], dtype=torch.long)
    blocks[:, 1:, 1:] = 0  # from the second place on only the first region's element begins a block
    return index.flatten(), blocks.flatten().cumsum(0) - 1


register_order("strided")(partial(_strided, regions=2))
register_order("strided_4x4")(partial(_strided, regions=4))


@dataclass(frozen=True)
class Layout:
    """An ordered partition of a grid's elements into blocks.

    Attributes:
        grid: (T, H, W).
        index: [N] long, raster index of each element.
        block: [N] long, number of its block, non-decreasing from 0.
        source: [N] long, raster index of the element whose value is read when this one is predicted under next-block,
            or -1 for the start. Where the order names no other: the element of equal rank one block earlier, ranks
            clipped to that block.
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
        known: Tensor | None = None,
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
            known: [N] bool in raster order, for random orders: these elements come first, in blocks of their own.

        Raises:
            ValueError: an empty grid, an unknown order, sizes that do not add up or come with an order that has sources
                of its own, such a source that is of no earlier block, a cell that does not divide the grid, `known`
                with an order that is not random or with a part of a cell.
        """
        grid = check_grid(grid)
        if not isinstance(order, str) or order not in ORDERS:
            raise ValueError(f"order is {order!r}; known orders are {sorted(ORDERS)}")
        cell = _cell(block, grid)
        units = (grid[0] // cell[0], grid[1] // cell[1], grid[2] // cell[2])
        with torch.device("cpu"):  # models ask for layouts while they are being built on the meta device
            try:
                permutation, own_blocks = ORDERS[order].function(units, generator)
            except ValueError as error:
                of = f" in blocks of {cell}" if cell != (1, 1, 1) else ""
                raise ValueError(f"order {order!r} does not go with grid {grid}{of}: {error}") from None
            if own_blocks is None:
                own_blocks = torch.arange(len(permutation))
            first = 0
            if known is not None:
                permutation, first = _known_first(permutation, known.cpu(), order, grid, cell)
            members = cells(grid, cell)
            index = members[permutation].flatten()
            sizes = _sizes(block, len(index), first % len(index))
            if sizes is None:
                numbers = own_blocks.repeat_interleave(_count(cell))
            else:
                numbers = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
            source = _equal_rank(index, numbers)
            if ORDERS[order].source is not None:
                source = _own_source(order, block, units, members)[index]
                if not ((source < 0) | (numbers[index.argsort()][source] < numbers)).all():
                    raise ValueError(f"order {order!r} has a source that is of no earlier block, on grid {grid}")
            return Layout(grid, index, numbers, source, _unravel(index, grid))

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
        """Whether two elements read the same source, so that the source does not tell them apart."""
        return len(torch.unique(self.source)) < len(self)

    @cached_property
    @torch.inference_mode(False)  # else training could not use what sampling made
    def rank(self) -> Tensor:
        """[N] long: place of each element in its block."""
        return torch.arange(len(self), device=self.block.device) - torch.searchsorted(self.block, self.block)

    @cached_property
    @torch.inference_mode(False)
    def own_source(self) -> Tensor:
        """[N] long: `source`, but -1 where the element before in the block reads the same one."""
        shared = torch.zeros_like(self.source, dtype=torch.bool)
        shared[1:] = (self.source[1:] == self.source[:-1]) & (self.block[1:] == self.block[:-1])
        return self.source.masked_fill(shared, -1)

    @cached_property
    @torch.inference_mode(False)
    def unread(self) -> Tensor:
        """[E] long: places in generation order whose element is the source of none in the block after its own."""
        read = torch.zeros_like(self.block, dtype=torch.bool)
        known = self.source >= 0
        places = self.index.argsort()[self.source[known]]
        read[places[self.block[places] + 1 == self.block[known]]] = True
        return (~read & (self.block < self.num_blocks - 1)).nonzero().flatten()

    @cached_property
    def _shown(self) -> list[int]:
        """How many of `unread` lie before each block."""
        counts = torch.bincount(self.block[self.unread], minlength=self.num_blocks)
        return [0, *accumulate(counts.tolist())]

    def unread_range(self, first: int, last: int) -> Tensor:
        """[E] long: the `unread` of blocks first..last-1."""
        return self.unread[self._shown[max(first, 0)] : self._shown[max(last, 0)]]

    def sizes(self, first: int, last: int) -> tuple[int, tuple[int, ...]]:
        """Of blocks first..last-1: the first, and how many elements each has."""
        return first, tuple(self.block_sizes[first:last])

    def unread_sizes(self, first: int, last: int) -> tuple[int, tuple[int, ...]]:
        """The same of their `unread`. (Block -1, before all, has none.)"""
        counts = (self._shown[max(block + 1, 0)] - self._shown[max(block, 0)] for block in range(first, last))
        return first, tuple(counts)

    @cached_property
    @torch.inference_mode(False)
    def source_coords(self) -> Tensor:
        """[N, 3] long: coordinates of each element's source; a start has those of the element itself."""
        return self.coords_of(torch.where(self.source < 0, self.index, self.source))

    def coords_of(self, index: Tensor) -> Tensor:
        """[n] raster indices -> [n, 3] coordinates (t, h, w)."""
        return _unravel(index, self.grid)

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
        moved = Layout(self.grid, *(tensor.to(device) for tensor in tensors))
        # Counted where it is cheap: on an accelerator the host would wait for the answers.
        moved.__dict__.update(block_sizes=self.block_sizes, unread=self.unread.to(device), _shown=self._shown)
        return moved


@lru_cache(maxsize=256)
@torch.inference_mode(False)
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
        block = tuple(block["cell"]) if isinstance(block["cell"], Sequence) else (block["cell"],)
    if not isinstance(block, tuple):
        return 1, 1, 1
    if len(block) != 3 or any(not isinstance(size, int) or size < 1 for size in block):
        raise ValueError(f"block is the cell {block!r}; a cell must be three positive integers (t, h, w)")
    if any(whole % part for whole, part in zip(grid, block, strict=True)):
        raise ValueError(f"cell {block} does not divide grid {grid}; each of its sizes must divide the grid's")
    return block[0], block[1], block[2]


def _known_first(permutation: Tensor, known: Tensor, order: str, grid: Grid, cell: Grid) -> tuple[Tensor, int]:
    """The permutation with the known units in front, and how many elements these are."""
    if not ORDERS[order].random:
        raise ValueError(f"order is {order!r}; only in random orders can what is known come first")
    if known.dtype != torch.bool or tuple(known.shape) != (_count(grid),):
        raise ValueError(f"known is {known.dtype} of shape {list(known.shape)}; it must be torch.bool [{_count(grid)}]")
    units = known[cells(grid, cell)]
    whole = units.all(1)
    if bool((units.any(1) & ~whole).any()):
        raise ValueError(f"a part of a cell {cell} is known; known elements must make up whole cells")
    ahead = whole[permutation]
    return torch.cat([permutation[ahead], permutation[~ahead]]), int(whole.sum()) * _count(cell)


def whole_cells(known: Tensor, grid: Grid, block: Block) -> Tensor:
    """[N] bool in raster order: the elements of cells, rows or frames of `block` that are known [N] as a whole; all
    that are known where it does not speak of any."""
    members = cells(grid, _cell(block, grid)).to(known.device)
    return torch.zeros_like(known).index_put((members,), known[members].all(1, keepdim=True).expand_as(members))


def _sizes(block: Block, n: int, first: int = 0) -> list[int] | None:
    """The sizes of the blocks where `block` gives them as a number or a list, else None. Blocks of a number begin anew
    after the `first` elements."""
    if isinstance(block, bool) or not isinstance(block, (int, list, tuple, str, Mapping, type(None))):
        raise ValueError(f"block is {block!r}; it must be None, an int, a list of sizes, a name or a cell (t, h, w)")
    if isinstance(block, int):
        if block < 1:
            raise ValueError(f"block is {block}; a block must have at least 1 element")
        # A short block of what is known comes first: before what is drawn it would leave elements unread.
        known = [first % block] * (first % block > 0) + [block] * (first // block)
        return known + [min(block, n - start) for start in range(first, n, block)]
    if isinstance(block, list):
        if any(not isinstance(size, int) or size < 1 for size in block) or sum(block) != n:
            raise ValueError(
                f"block is the list of sizes {block}; sizes must be positive integers that add up to the grid's {n} "
                "elements (a cell is written (t, h, w) or {'cell': [t, h, w]})"
            )
        return block
    return None


def cells(grid: Grid, cell: Grid) -> Tensor:
    """[cells, elements per cell] raster indices of what each cell of a grid holds, cells and elements in raster order.
    The cell's sizes must divide the grid's."""
    (gt, gh, gw), (ct, ch, cw) = grid, cell
    raster = torch.arange(_count(grid)).view(gt // ct, ct, gh // ch, ch, gw // cw, cw)
    return raster.permute(0, 2, 4, 1, 3, 5).reshape(-1, _count(cell))


def _own_source(order: str, block: Block, units: Grid, members: Tensor) -> Tensor:
    """The sources that an order names, in raster order, of cells [U, n]: of equal rank in the cell that is read."""
    if isinstance(block, (int, list)):
        raise ValueError(
            f"block is {block} with order {order!r}, which has blocks of its own and says what each reads; it must be "
            "None, a name or a cell"
        )
    read = ORDERS[order].source(units)[:, None]  # type: ignore[misc]
    source = torch.empty(members.numel(), dtype=torch.long)
    source[members] = torch.where(read < 0, -1, members[read.flatten()])
    return source


def _equal_rank(index: Tensor, block: Tensor) -> Tensor:
    sizes = torch.bincount(block)
    starts = sizes.cumsum(0) - sizes
    rank = torch.arange(len(index)) - starts[block]
    previous = (block - 1).clamp(min=0)
    place = starts[previous] + torch.minimum(rank, sizes[previous] - 1)
    return torch.where(block == 0, -1, index[place])


def _unravel(index: Tensor, grid: Grid) -> Tensor:
    _, height, width = grid
    return torch.stack([index // (height * width), index // width % height, index % width], -1)
