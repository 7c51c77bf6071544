"""Layouts: every order and block is an ordered partition, and wrong ones are refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unimodal_ar import ORDERS, Layout, register_order
from unimodal_ar.layout import cached_layout

sizes = st.integers(1, 4)
grids = st.tuples(sizes, sizes, sizes)
orders = st.sampled_from(["raster", "random"])
any_order = st.sampled_from(["raster", "random", "neighbor", "coarse_first", "columns"])


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@st.composite
def any_block(draw: st.DrawFn, grid: tuple[int, int, int]) -> Any:
    """A legal `block` of any kind for the grid."""
    n = grid[0] * grid[1] * grid[2]
    kind = draw(st.sampled_from(["none", "int", "list", "name", "cell", "mapping"]))
    if kind == "none":
        return None
    if kind == "int":
        return draw(st.integers(1, n + 2))
    if kind == "list":
        parts: list[int] = []
        while sum(parts) < n:
            parts.append(draw(st.integers(1, n - sum(parts))))
        return parts
    if kind == "name":
        return draw(st.sampled_from(["row", "frame", "whole"]))
    cell = tuple(draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])) for size in grid)
    return cell if kind == "cell" else {"cell": list(cell)}


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    grid = draw(grids)
    return Layout.from_grid(grid, draw(any_order), draw(any_block(grid)), seeded(draw(st.integers(0, 9))))


@given(layouts())
def test_is_an_ordered_partition(layout: Layout) -> None:
    t, h, w = layout.grid
    assert sorted(layout.index.tolist()) == list(range(t * h * w)) and len(layout) == t * h * w
    steps = layout.block.diff()
    assert layout.block[0] == 0 and set(steps.tolist()) <= {0, 1}
    assert layout.block_sizes == [(layout.block == b).sum().item() for b in range(layout.num_blocks)]
    assert layout.num_blocks == layout.block[-1] + 1
    assert layout.is_sequential == (layout.num_blocks == len(layout))


@given(layouts())
def test_coords_are_those_of_the_index(layout: Layout) -> None:
    _, h, w = layout.grid
    t, row, column = layout.coords.unbind(1)
    assert torch.equal((t * h + row) * w + column, layout.index)
    assert (layout.coords >= 0).all() and (layout.coords < torch.tensor(layout.grid)).all()


@given(layouts())
def test_source_is_the_element_of_equal_rank_one_block_earlier(layout: Layout) -> None:
    blocks: list[list[int]] = [[] for _ in range(layout.num_blocks)]
    for place, block in enumerate(layout.block.tolist()):
        blocks[block].append(layout.index[place].item())
    for place, block in enumerate(layout.block.tolist()):
        if block == 0:
            expected, at = -1, layout.index[place].item()
        else:
            rank = blocks[block].index(layout.index[place].item())
            expected = at = blocks[block - 1][min(rank, len(blocks[block - 1]) - 1)]
        assert layout.source[place] == expected
        _, h, w = layout.grid
        assert layout.source_coords[place].tolist() == [at // (h * w), at // w % h, at % w]


@given(layouts())
def test_shares_source_says_whether_one_element_is_read_twice(layout: Layout) -> None:
    assert layout.shares_source == (len(set(layout.source.tolist())) < len(layout))


@given(layouts(), st.integers(0, 9))
def test_scatter_and_gather_are_inverse(layout: Layout, seed: int) -> None:
    values = torch.randn(2, len(layout), 3, generator=seeded(seed))
    gathered = layout.gather(values)
    assert torch.equal(gathered[1, 0], values[1, layout.index[0]])
    assert torch.equal(layout.scatter(gathered), values)
    assert torch.equal(layout.gather(layout.scatter(values)), values)


@given(layouts(), st.data())
def test_block_range_finds_the_places_of_blocks(layout: Layout, data: st.DataObject) -> None:
    first = data.draw(st.integers(0, layout.num_blocks - 1))
    last = data.draw(st.integers(first, layout.num_blocks))
    places = torch.arange(len(layout))
    assert places[layout.block_range(first)].tolist() == places[layout.block == first].tolist()
    inside = (layout.block >= first) & (layout.block < last)
    assert places[layout.block_range(first, last)].tolist() == places[inside].tolist()


@given(grids, orders, st.sampled_from(["row", "frame", "whole"]))
def test_named_blocks_are_whole_rows_and_frames(grid: tuple[int, int, int], order: str, name: str) -> None:
    layout = Layout.from_grid(grid, order, name, seeded())
    size = {"row": grid[2], "frame": grid[1] * grid[2], "whole": grid[0] * grid[1] * grid[2]}[name]
    assert layout.block_sizes == [size] * layout.num_blocks
    for elements in layout.index.split(size):  # each starts at a multiple of its size and stays in raster order
        assert elements[0] % size == 0 and (elements.diff() == 1).all()


@given(grids, orders, st.data())
def test_cells_are_boxes_in_raster_order(grid: tuple[int, int, int], order: str, data: st.DataObject) -> None:
    cell = tuple(data.draw(st.sampled_from([d for d in range(1, size + 1) if size % d == 0])) for size in grid)
    layout = Layout.from_grid(grid, order, cell, seeded())
    corners = []
    for box in layout.coords.split(cell[0] * cell[1] * cell[2]):
        corner = box[0]
        inside = torch.cartesian_prod(*(torch.arange(size) for size in cell)).view(-1, 3)
        assert torch.equal(box, corner + inside) and (corner % torch.tensor(cell) == 0).all()
        corners.append(corner.tolist())
    if order == "raster":
        assert corners == sorted(corners)


@given(grids, orders, st.integers(1, 70))
def test_only_the_last_block_of_an_int_is_shorter(grid: tuple[int, int, int], order: str, block: int) -> None:
    n = grid[0] * grid[1] * grid[2]
    layout = Layout.from_grid(grid, order, block, seeded())
    assert layout.block_sizes == [min(block, n - start) for start in range(0, n, block)]


def test_a_known_layout_in_full() -> None:
    layout = Layout.from_grid((1, 2, 4), block=(1, 2, 2))
    assert layout.index.tolist() == [0, 1, 4, 5, 2, 3, 6, 7]
    assert layout.block.tolist() == [0, 0, 0, 0, 1, 1, 1, 1]
    assert layout.source.tolist() == [-1, -1, -1, -1, 0, 1, 4, 5]
    assert layout.coords[3].tolist() == [0, 1, 1]
    grown = Layout.from_grid((5, 1, 1), block=[1, 3, 1])
    assert grown.source.tolist() == [-1, 0, 0, 0, 1] and grown.shares_source


def test_random_order_follows_the_generator() -> None:
    one, same = (Layout.from_grid((4, 4, 4), "random", None, seeded(3)) for _ in range(2))
    other = Layout.from_grid((4, 4, 4), "random", None, seeded(4))
    assert torch.equal(one.index, same.index) and not torch.equal(one.index, other.index)
    torch.manual_seed(3)
    free = Layout.from_grid((4, 4, 4), "random")
    assert not torch.equal(free.index, Layout.from_grid((4, 4, 4), "random").index)
    torch.manual_seed(3)
    assert torch.equal(free.index, Layout.from_grid((4, 4, 4), "random").index)


def test_random_order_is_uniform_over_permutations() -> None:
    generator = seeded()
    first = torch.stack([Layout.from_grid((4, 1, 1), "random", None, generator).index for _ in range(2000)])
    counts = torch.stack([torch.bincount(first[:, place], minlength=4) for place in range(4)])
    assert (counts - 500).abs().max() < 5 * (2000 * 3 / 16) ** 0.5  # five standard deviations


def test_cached_layouts_are_fixed_by_their_seed() -> None:
    device = torch.device("cpu")
    first = cached_layout((4, 4, 1), "random", "row", 1, device)
    assert first is cached_layout((4, 4, 1), "random", "row", 1, device)
    assert torch.equal(first.index, Layout.from_grid((4, 4, 1), "random", "row", seeded(1)).index)


def test_is_real_where_the_default_device_is_meta() -> None:
    with torch.device("meta"):
        layout = Layout.from_grid((2, 3, 4), "random", 5, seeded())
    assert {tensor.device.type for tensor in (layout.index, layout.block, layout.source, layout.coords)} == {"cpu"}
    assert torch.equal(layout.index, Layout.from_grid((2, 3, 4), "random", 5, seeded()).index)
    assert layout.to("meta").source.device.type == "meta"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(grid=(0, 2, 2)), r"grid is \(0, 2, 2\); it must be three positive integers"),
        (dict(grid=(2, 2)), r"grid is \(2, 2\); it must be three positive integers"),
        (dict(grid=7), r"grid is 7; it must be three positive integers"),
        (dict(order="diagonal"), r"order is 'diagonal'; known orders are \['coarse_first'"),
        (dict(block=0), r"block is 0; a block must have at least 1 element"),
        (dict(block=-3), r"block is -3; a block must have at least 1 element"),
        (dict(block=True), r"block is True; it must be None, an int, a list"),
        (dict(block=2.0), r"block is 2.0; it must be None, an int, a list"),
        (dict(block="column"), r"block is 'column'; named blocks are \['frame', 'row', 'whole'\]"),
        (dict(block=[2, 5]), r"block is the list of sizes \[2, 5\]; .* add up to the grid's 8 elements"),
        (dict(block=[8, 0]), r"block is the list of sizes \[8, 0\]; sizes must be positive"),
        (dict(block=[4.0, 4.0]), r"block is the list of sizes \[4.0, 4.0\]; sizes must be positive integers"),
        (dict(block=(1, 2, 3)), r"cell \(1, 2, 3\) does not divide grid \(2, 2, 2\)"),
        (dict(block=(1, 2)), r"block is the cell \(1, 2\); a cell must be three positive integers"),
        (dict(block=(0, 1, 1)), r"block is the cell \(0, 1, 1\); a cell must be three positive integers"),
        (dict(block={"cell": [1, 1, 3]}), r"cell \(1, 1, 3\) does not divide grid"),
        (dict(block={"box": [1, 1, 1]}), r"block is \{'box': \[1, 1, 1\]\}; as a mapping it must be"),
    ],
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Layout.from_grid(**({"grid": (2, 2, 2)} | arguments))


def test_an_order_is_registered_once() -> None:
    with pytest.raises(ValueError, match=r"order 'raster' is already registered; taken names are \['coarse_first'"):
        register_order("raster")(ORDERS["raster"].function)
    try:
        register_order("reverse")(lambda grid, generator: (torch.arange(grid[0]).flip(0), None))
        assert Layout.from_grid((3, 1, 1), "reverse").index.tolist() == [2, 1, 0]
        assert not ORDERS["reverse"].random
    finally:
        del ORDERS["reverse"]


def test_an_order_may_bring_its_own_blocks() -> None:
    try:
        blocks = torch.tensor([0, 1, 1, 2])
        register_order("grown")(lambda grid, generator: (torch.arange(4), blocks))
        assert torch.equal(Layout.from_grid((4, 1, 1), "grown").block, blocks)
        assert Layout.from_grid((4, 1, 1), "grown", 2).block.tolist() == [0, 0, 1, 1]
    finally:
        del ORDERS["grown"]
