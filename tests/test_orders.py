"""The orders beside raster and random, and blocks that shrink: what they are, and that nothing leaks."""

from __future__ import annotations

import itertools
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import (
    BACKBONES,
    P_VALUE,
    all_sequences,
    build,
    chi_square,
    codes,
    frequencies,
    full_hidden,
    hidden_states,
    label,
    labels,
    predicting,
    series,
)
from unimodal_ar import ORDERS, Layout, Segment, register_order

Grid = tuple[int, int, int]
NEW = ["neighbor", "coarse_first", "columns", "first_frame", "strided", "strided_4x4"]

# Order, block and grid. Among them blocks that grow, that shrink, and both.
LAYOUTS: list[tuple[str, Any, Grid]] = [
    ("neighbor", None, (1, 3, 4)),
    ("neighbor", None, (2, 2, 3)),
    ("neighbor", {"cell": [1, 2, 1]}, (1, 4, 3)),
    ("neighbor", 5, (1, 3, 4)),
    ("neighbor", None, (4, 1, 3)),
    ("coarse_first", None, (4, 1, 3)),
    ("coarse_first", None, (2, 2, 3)),
    ("columns", None, (4, 1, 3)),
    ("columns", 1, (3, 1, 3)),
    ("columns", [1, 1, 1, 3, 3], (3, 1, 3)),
    ("first_frame", None, (3, 2, 2)),
    ("first_frame", "row", (3, 2, 2)),
    ("first_frame", {"cell": [2, 1, 2]}, (4, 2, 4)),
    ("first_frame", "frame", (3, 1, 2)),
    ("strided", None, (1, 4, 4)),
    ("strided", None, (2, 2, 4)),
    ("strided_4x4", None, (1, 4, 8)),
    ("raster", [4, 2, 5, 1], (1, 3, 4)),
    ("random", [4, 2, 5, 1], (1, 3, 4)),
]

every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
each_layout = pytest.mark.parametrize(("order", "block", "grid"), LAYOUTS, ids=str)


def blocks_on_the_grid(layout: Layout) -> list[list[int]]:
    """The number of the block at every place of the first frame."""
    return layout.scatter(layout.block[None])[0].view(layout.grid)[0].tolist()


def patches(batch: int, grid: Grid) -> Tensor:
    return torch.randn(batch, grid[0] * grid[1] * grid[2], 3)


def drawn_sizes(layout: Layout) -> list[int]:
    """How many positions each block takes: its own, and those that show what it does not read of the one before."""
    sizes = []
    for block, own in enumerate(layout.block_sizes):
        read = set(layout.source[layout.block == block].tolist())
        sizes.append(own + len(set(layout.index[layout.block == block - 1].tolist()) - read))
    return sizes


# --- the orders themselves --------------------------------------------------------------------------------------------


def test_neighbor_goes_outwards_from_the_corner() -> None:
    layout = Layout.from_grid((1, 4, 4), "neighbor")
    assert blocks_on_the_grid(layout) == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5], [3, 4, 5, 6]]
    assert layout.index.tolist() == [0, 1, 4, 2, 5, 8, 3, 6, 9, 12, 7, 10, 13, 11, 14, 15]


def test_codebooks_of_a_clip_are_a_grid() -> None:
    """MusicGen's patterns (arXiv 2306.05284, figure 1) on 4 steps of 3 codebooks: at every place the number of the
    block, a row for each codebook."""

    def pattern(order: str, block: Any = None) -> list[list[int]]:
        layout = Layout.from_grid((4, 1, 3), order, block)
        return layout.scatter(layout.block[None])[0].view(4, 3).T.tolist()

    assert pattern("raster", "row") == [[0, 1, 2, 3]] * 3  # parallel
    assert pattern("raster") == [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]  # flatten
    assert pattern("neighbor") == [[0, 1, 2, 3], [1, 2, 3, 4], [2, 3, 4, 5]]  # delay
    assert pattern("coarse_first") == [[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]]
    assert pattern("columns") == [[0] * 4, [1] * 4, [2] * 4]  # MAGNeT, SoundStorm
    assert pattern("columns", [1, 1, 1, 1, 4, 4]) == [[0, 1, 2, 3], [4] * 4, [5] * 4]  # VALL-E
    assert pattern("columns", 1) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


def test_a_single_column_is_coarse_through_and_through() -> None:
    for order in ("coarse_first", "columns"):
        assert Layout.from_grid((2, 3, 1), order).index.tolist() == list(range(6))
    assert Layout.from_grid((2, 3, 1), "coarse_first").is_sequential
    assert Layout.from_grid((2, 3, 1), "columns").num_blocks == 1
    cells = Layout.from_grid((4, 1, 2), "columns", (2, 1, 1))
    assert cells.index.tolist() == [0, 2, 4, 6, 1, 3, 5, 7] and cells.block_sizes == [4, 4]


def test_strided_draws_far_elements_together_after_a_start_one_by_one() -> None:
    layout = Layout.from_grid((1, 4, 4), "strided")
    assert blocks_on_the_grid(layout) == [[0, 4, 1, 4], [5, 6, 5, 6], [2, 4, 3, 4], [5, 6, 5, 6]]
    assert layout.index.tolist() == [0, 2, 8, 10, 1, 3, 9, 11, 4, 6, 12, 14, 5, 7, 13, 15]
    fine = Layout.from_grid((1, 4, 8), "strided_4x4")
    assert blocks_on_the_grid(fine) == [[4 * row + column // 2 if column % 2 == 0 else 16 for column in range(8)]
                                        for row in range(4)]  # fmt: skip
    assert Layout.from_grid((1, 4, 4), "strided_4x4").is_sequential


def test_the_first_frame_is_drawn_bit_by_bit_and_the_others_whole() -> None:
    """Later elements read their counterpart one frame earlier, not the last element of the first frame."""
    layout = Layout.from_grid((3, 2, 2), "first_frame")
    assert layout.index.tolist() == list(range(12))
    assert layout.block.tolist() == [0, 1, 2, 3, 4, 4, 4, 4, 5, 5, 5, 5]
    assert layout.source.tolist() == [-1, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7]
    rows = Layout.from_grid((3, 2, 2), "first_frame", "row")
    assert rows.block.tolist() == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3]
    assert rows.source.tolist() == [-1, -1, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7]
    cells = Layout.from_grid((4, 1, 4), "first_frame", (2, 1, 2))
    assert cells.index.tolist() == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]
    assert cells.block.tolist() == [0] * 4 + [1] * 4 + [2] * 8
    assert cells.source.tolist() == [-1, -1, -1, -1, 0, 1, 4, 5, 0, 1, 4, 5, 2, 3, 6, 7]
    assert not any(len(each.unread) for each in (layout, rows, cells))
    for block in ("frame", "whole"):
        first, plain = (Layout.from_grid((3, 2, 2), order, block) for order in ("first_frame", "raster"))
        assert torch.equal(first.source, plain.source) and torch.equal(first.block, plain.block)


def test_a_source_that_several_read_at_different_times_does_not_tell_them_apart() -> None:
    assert Layout.from_grid((2, 1, 3), "first_frame").shares_source
    assert not Layout.from_grid((1, 1, 3), "first_frame").shares_source
    model = build({"x": codes(grid=(2, 1, 3), block=None, order="first_frame")})
    assert model.embeddings["x"].target_position is not None
    alone = build({"x": codes(grid=(1, 1, 3), block=None, order="first_frame")})
    assert alone.embeddings["x"].target_position is None
    with pytest.raises(
        ValueError, match=r"^grid of 'x' is \(2, 1, 3\), where elements read the same source, unlike on"
    ):
        alone.generate([], "x", grid=(2, 1, 3))


@pytest.mark.parametrize("block", [1, 4, [1, 1, 4]])
def test_blocks_whose_sources_are_named_cannot_be_others(block: Any) -> None:
    sentence = (
        f"block is {block} with order 'first_frame', which has blocks of its own and says what each reads; it must"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        Layout.from_grid((2, 1, 3), "first_frame", block)


@st.composite
def grids(draw: st.DrawFn, order: str) -> Grid:
    side = {"strided": 2, "strided_4x4": 4}.get(order, 1)
    return draw(st.integers(1, 3)), side * draw(st.integers(1, 3)), side * draw(st.integers(1, 3))


@pytest.mark.parametrize("order", NEW)
@given(data=st.data())
def test_every_grid_gets_an_ordered_partition(order: str, data: st.DataObject) -> None:
    layout = Layout.from_grid(data.draw(grids(order)), order)
    assert sorted(layout.index.tolist()) == list(range(len(layout)))
    assert layout.block[0] == 0 and set(layout.block.diff().tolist()) <= {0, 1}


@given(data=st.data())
def test_neighbor_blocks_are_distances(data: st.DataObject) -> None:
    layout = Layout.from_grid(data.draw(grids("neighbor")), "neighbor")
    assert torch.equal(layout.block, layout.coords.sum(1))


@pytest.mark.parametrize(("order", "side"), [("strided", 2), ("strided_4x4", 4)])
@given(data=st.data())
def test_strided_blocks_hold_one_element_of_every_region(order: str, side: int, data: st.DataObject) -> None:
    layout = Layout.from_grid(data.draw(grids(order)), order)
    frames, height, width = layout.grid
    regions, places = side**2, height * width // side**2
    assert layout.block_sizes == ([1] * regions + [regions] * (places - 1)) * frames
    t, row, column = layout.coords.unbind(1)
    inside = torch.stack([t, row % (height // side), column % (width // side)], 1)
    region = row // (height // side) * side + column // (width // side)
    step = (inside[:, 0] * places + inside[:, 1] * (width // side) + inside[:, 2]).tolist()
    assert step == sorted(step)  # frame by frame, and place by place inside the regions
    assert region.tolist() == list(range(regions)) * (frames * places)


@pytest.mark.parametrize(
    ("order", "grid", "sentence"),
    [
        ("strided", (1, 3, 4), "frames of 3 x 4 cannot be cut into 2 x 2 regions of equal size"),
        ("strided", (8, 1, 1), "frames of 1 x 1 cannot be cut into 2 x 2 regions of equal size"),
        ("strided_4x4", (1, 4, 6), "frames of 4 x 6 cannot be cut into 4 x 4 regions of equal size"),
    ],
)
def test_regions_of_unequal_size_are_refused(order: str, grid: Grid, sentence: str) -> None:
    sentence = f"order {order!r} does not go with grid {grid}: {sentence}"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        Layout.from_grid(grid, order)
    with pytest.raises(ValueError, match=r"modalities\.x\.layout: order 'strided"):
        build({"x": codes(grid=grid, block=None, order=order)})


@st.composite
def any_sizes(draw: st.DrawFn) -> list[int]:
    return draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))


@given(any_sizes(), st.sampled_from(["raster", "random"]))
def test_unread_is_what_the_next_block_does_not_read(sizes: list[int], order: str) -> None:
    layout = Layout.from_grid((sum(sizes), 1, 1), order, sizes)
    expected = []
    for place, (index, block) in enumerate(zip(layout.index.tolist(), layout.block.tolist(), strict=True)):
        read = set(layout.source[layout.block == block + 1].tolist())
        expected += [place] if block + 1 < len(sizes) and index not in read else []
    assert layout.unread.tolist() == expected
    assert layout.to("cpu").unread.tolist() == expected
    assert len(expected) == sum(max(a - b, 0) for a, b in itertools.pairwise(sizes))


def test_what_only_a_later_block_reads_is_unread() -> None:
    """An order may name sources that skip blocks; the block after must see them all the same."""
    try:
        register_order("skipping", source=lambda grid: torch.tensor([-1, 0, 0, 1]))(
            lambda grid, generator: (torch.tensor([0, 1, 2, 3]), torch.arange(4))
        )
        assert Layout.from_grid((4, 1, 1), "skipping").unread.tolist() == [1, 2]
        register_order("leaking", source=lambda grid: torch.tensor([-1, 0, 1, 3]))(ORDERS["skipping"].function)
        sentence = r"^order 'leaking' has a source that is of no earlier block, on grid \(4, 1, 1\)$"
        with pytest.raises(ValueError, match=sentence):
            Layout.from_grid((4, 1, 1), "leaking")
        model = build({"x": series(grid=(4, 1, 1), block=None, order="skipping")})
        drawn = model.generate([], "x")
        assert model([drawn]).element_losses["x"].max() < 1e-8
    finally:
        for name in ("skipping", "leaking"):
            ORDERS.pop(name, None)


# --- what is read -----------------------------------------------------------------------------------------------------


@each_layout
@every_backbone
def test_a_block_sees_all_of_the_blocks_before_it_and_nothing_else(
    backbone: str, order: str, block: Any, grid: Grid
) -> None:
    """By gradient: row b of the batch holds the derivative of block b's hidden states by every element."""
    model = build({"x": series(grid=grid, block=block, order=order)}, backbone)
    layout = model.layout("x", grid)
    values = patches(1, grid).expand(layout.num_blocks, -1, -1).clone().requires_grad_()
    hidden = full_hidden(model, [Segment("x", values, grid)])[:, predicting(layout)]
    own = layout.block[None, :] == torch.arange(layout.num_blocks)[:, None]
    (gradient,) = torch.autograd.grad((hidden * torch.randn_like(hidden) * own[..., None]).sum(), values)
    influence = gradient.abs().amax(-1)
    for b in range(layout.num_blocks):
        earlier, later = layout.index[layout.block < b], layout.index[layout.block >= b]
        assert (influence[b, later] == 0).all()
        assert (influence[b, earlier] > 1e-6).all()


@each_layout
@every_backbone
def test_cached_decoding_equals_one_full_pass(backbone: str, order: str, block: Any, grid: Grid) -> None:
    model = build({"x": series(grid=grid, block=block, order=order), "label": label()}, backbone)
    context = labels(0, 3)
    with hidden_states(model) as states:
        drawn = model.generate([context], "x")
    first, *later = drawn_sizes(model.layout("x", grid))
    assert [state.shape[1] for state in states] == [1 + first, *later]  # the label's goes with the first block's
    torch.testing.assert_close(torch.cat(states, 1), full_hidden(model, [context, drawn]), atol=1e-5, rtol=1e-5)
    # The regression head draws its mean, so that the drawn values are what the full pass predicts.
    assert model([context, drawn]).element_losses["x"].max() < 1e-8


@each_layout
def test_a_given_start_is_committed_as_it_would_have_been_drawn(order: str, block: Any, grid: Grid) -> None:
    model = build({"x": series(grid=grid, block=block, order=order), "label": label()})
    layout, context = model.layout("x", grid), labels(0, 3)
    whole = model.generate([context], "x")
    for known in range(1, layout.num_blocks):
        observed = layout.scatter((layout.block < known)[None]).expand(2, -1)
        given = whole.replace(values=torch.where(observed[..., None], whole.values, 9.0), observed=observed)
        again = model.generate([context], "x", given=given)
        torch.testing.assert_close(again.values, whole.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("target", [True, False])
@pytest.mark.parametrize(
    ("order", "grid"),
    [
        ("neighbor", (1, 2, 2)),
        ("coarse_first", (2, 1, 3)),
        ("columns", (2, 1, 3)),
        ("first_frame", (2, 1, 3)),
        ("strided", (1, 2, 4)),
    ],
)
def test_what_follows_sees_every_element(order: str, grid: Grid, target: bool) -> None:
    model = build({"x": series(grid=grid, block=None, order=order), "y": series(grid=(2, 1, 1))})
    values = patches(1, grid).requires_grad_()
    after = Segment("y", patches(1, (2, 1, 1)), (2, 1, 1))
    before = Segment("x", values, grid, target=target)
    first = model([before, after]).element_losses["y"][0, 0]
    (gradient,) = torch.autograd.grad(first, values)
    assert (gradient.abs().amax(-1) > 1e-7).all()
    drawn = model.generate([before], "y")
    assert model([before, drawn]).element_losses["y"].max() < 1e-8


@pytest.mark.parametrize("start", ["learned", "none"])
@each_layout
def test_gaps_and_the_rest_of_the_batch(order: str, block: Any, grid: Grid, start: str) -> None:
    """What is missing is not read, also where an element is shown apart, and the batch changes no example. (A random
    order needs a start: the first block is not always the same.)"""
    start = "learned" if ORDERS[order].random else start
    model = build({"x": series(grid=grid, block=block, order=order, start=start), "label": label()})
    layout, values = model.layout("x", grid), patches(3, grid)
    observed = torch.rand(values.shape[:2]) > 0.3
    observed[0] = True
    observed[:, layout.index[layout.block == 0]] = True
    poisoned = torch.where(observed[..., None], values, torch.nan)
    together = model([labels(0, 1, 2), Segment("x", poisoned, grid, observed=observed)]).element_losses["x"]
    assert together.isfinite().all() and (together[~observed] == 0).all()
    for row in range(3):
        one = Segment("x", values[row : row + 1], grid, observed=observed[row : row + 1])
        alone = model([labels(row), one]).element_losses["x"]
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-4, rtol=1e-5)
    bare = model([labels(0), Segment("x", values[:1], grid)]).element_losses["x"]
    torch.testing.assert_close(bare, together[:1], atol=1e-4, rtol=1e-5)


def test_nobody_attends_to_a_missing_element_that_is_shown_apart() -> None:
    model = build({"x": series(grid=(1, 4, 4), block=None, order="neighbor")})
    layout = model.layout("x", (1, 4, 4))
    assert len(layout.unread) > 2
    observed = torch.ones(2, 16, dtype=torch.bool)
    observed[1, layout.index[layout.unread[1:]]] = False
    valid: list[Tensor] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, args: valid.append(args[0].pattern.valid))
    model([Segment("x", patches(2, (1, 4, 4)), (1, 4, 4), observed=observed)])
    hook.remove()
    shown = [place for place in range(valid[0].shape[1]) if place not in predicting(layout)]
    assert torch.equal(valid[0][:, shown], observed[:, layout.index[layout.unread]])


# --- the joint --------------------------------------------------------------------------------------------------------

JOINTS: list[tuple[str, Any, Grid, int]] = [
    ("neighbor", None, (1, 2, 2), 3),
    ("neighbor", None, (2, 2, 2), 2),
    ("strided", None, (1, 2, 4), 2),
    ("coarse_first", None, (2, 1, 3), 2),
    ("columns", None, (2, 1, 2), 3),
    ("first_frame", None, (2, 1, 2), 3),
    ("first_frame", "row", (2, 2, 2), 2),
    ("first_frame", {"cell": [1, 1, 2]}, (2, 1, 4), 2),
    ("raster", [3, 1, 2], (1, 2, 3), 2),
]


def factorised(probability: np.ndarray, vocab: int) -> np.ndarray:
    """The joint of independent elements with the same marginals."""
    places = round(np.log(len(probability)) / np.log(vocab))
    table = probability.reshape([vocab] * places)
    product = np.ones(())
    for place in range(places):
        marginal = table.sum(tuple(other for other in range(places) if other != place))
        product = np.multiply.outer(product, marginal)
    return product.flatten()


def spread_out(model: Any, segment: Segment) -> None:
    """Takes what all hidden states share out of the head, so that no code wins everywhere and elements differ."""
    hidden = full_hidden(model, [labels(*[2] * segment.batch_size), segment]).detach()[:, 1:]
    mean = hidden.mean((0, 1))
    with torch.no_grad():
        weight = model.heads["x"].proj.weight
        weight.sub_((weight @ mean)[:, None] * mean / mean.square().sum())
        weight.mul_(2 / (hidden @ weight.T).std())


@pytest.mark.parametrize(("order", "block", "grid", "vocab"), JOINTS, ids=str)
@every_backbone
def test_samples_follow_the_normalised_joint(backbone: str, order: str, block: Any, grid: Grid, vocab: int) -> None:
    model = build({"x": codes(vocab, grid, block, order), "label": label()}, backbone)
    every = all_sequences(vocab, grid[0] * grid[1] * grid[2])
    spread_out(model, Segment("x", every, grid))

    def joint(value: int) -> np.ndarray:
        losses = model([labels(*[value] * len(every)), Segment("x", every, grid)]).element_losses["x"]
        return (-losses.double().sum(1)).exp().detach().numpy()

    probability = joint(2)
    assert abs(probability.sum() - 1) < 1e-5
    drawn = model.generate([labels(2)], "x", num_samples=6000, generator=torch.Generator().manual_seed(1)).values
    assert chi_square(frequencies(drawn, vocab), probability) > P_VALUE
    independent = factorised(probability, vocab)
    assert chi_square(frequencies(drawn, vocab), independent) < P_VALUE  # what came before matters
    assert (
        min(chi_square(frequencies(drawn, vocab), joint(other)) for other in (0, 1, 3, 4)) < P_VALUE
    )  # the label, too
