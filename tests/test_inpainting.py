"""Any subset of the elements can be given where the order is random; elsewhere the error says what can."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given as for_any
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
    hidden_states,
    label,
    labels,
    series,
)
from unimodal_ar import Layout, Segment

V, N, GRID = 3, 4, (1, 2, 2)
EVERY = all_sequences(V, N)
VALUES = torch.tensor([[2, 0, 1, 2]])


def mask(*known: int, n: int = N) -> Tensor:
    observed = torch.zeros(1, n, dtype=torch.bool)
    observed[:, list(known)] = True
    return observed


def toy(backbone: str = "native", block: Any = 1, grid: Any = GRID, null: float = 0.0, **more: Any) -> Any:
    modalities = {"label": label(null_probability=null), "x": codes(V, grid, block, "random", **more)}
    return build(modalities, backbone)


def conditional(model: Any, known: Tensor, value: int) -> np.ndarray:
    """[V^N] the probability of every sequence given the known elements, from one pass in that very order."""
    layout = model.layout("x", GRID, known[0])
    context = labels(*[value] * len(EVERY))
    losses = model([context, Segment("x", EVERY, GRID)], layouts={"x": layout}).element_losses["x"]
    drawn = ~known[0]
    probability = (-losses[:, drawn].double().sum(1)).exp().detach().numpy()
    agrees = (EVERY[:, known[0]] == VALUES[:, known[0]]).all(1).numpy()
    return np.where(agrees, probability, 0)


def draw(model: Any, known: Tensor, **sampling: Any) -> Tensor:
    segment = Segment("x", torch.where(known, VALUES, 0), GRID, observed=known)
    generator = torch.Generator().manual_seed(1)
    return model.generate([labels(2)], "x", given=segment, num_samples=4000, generator=generator, **sampling).values


# --- the layout -------------------------------------------------------------------------------------------------------


@st.composite
def known_parts(draw_from: st.DrawFn) -> tuple[tuple[int, int, int], Any, Tensor]:
    """A grid, a block, and what is known: whole cells, where the block is a cell."""
    cells = draw_from(st.tuples(*[st.integers(1, 3)] * 3))
    cell = draw_from(st.tuples(*[st.integers(1, 2)] * 3))
    block = draw_from(st.one_of(st.none(), st.integers(1, 5), st.just(cell)))
    cell = cell if block == cell else (1, 1, 1)
    units = draw_from(st.lists(st.booleans(), min_size=cells[0] * cells[1] * cells[2]).map(torch.tensor))
    units = units[: cells[0] * cells[1] * cells[2]].bool().view(cells)
    for axis in range(3):
        units = units.repeat_interleave(cell[axis], axis)
    return tuple(units.shape), block, units.flatten()  # type: ignore[return-value]


@for_any(known_parts())
def test_what_is_known_comes_first_in_blocks_of_its_own(part: tuple[tuple[int, int, int], Any, Tensor]) -> None:
    grid, block, known = part
    generator = torch.Generator().manual_seed(4)
    layout = Layout.from_grid(grid, "random", block, generator, known=known)
    assert sorted(layout.index.tolist()) == list(range(len(known)))
    assert layout.block[0] == 0 and set(layout.block.diff().tolist()) <= {0, 1}
    flags = known[layout.index].long()
    assert (flags.diff() <= 0).all()  # all that is known, then the rest
    for number in range(layout.num_blocks):
        assert len(set(flags[layout.block == number].tolist())) == 1
    # In each part the elements keep the order that they have without one.
    free = Layout.from_grid(grid, "random", block, torch.Generator().manual_seed(4))
    if isinstance(block, tuple) or block in (None, 1):
        for part_of in (known, ~known):
            assert layout.index[part_of[layout.index]].tolist() == free.index[part_of[free.index]].tolist()


def test_blocks_of_a_number_begin_anew_after_what_is_known() -> None:
    known = mask(1, 4, 5, 6, 9, n=12)[0]
    layout = Layout.from_grid((1, 3, 4), "random", 3, torch.Generator().manual_seed(0), known)
    assert layout.block_sizes == [2, 3, 3, 3, 1]
    assert set(layout.index[:5].tolist()) == {1, 4, 5, 6, 9}


@pytest.mark.parametrize("known", [[], list(range(12))])
@pytest.mark.parametrize("block", [None, 5, "row"])
def test_nothing_or_everything_known_changes_no_order(block: Any, known: list[int]) -> None:
    plain, same = (
        Layout.from_grid((1, 3, 4), "random", block, torch.Generator().manual_seed(0), part)
        for part in (None, mask(*known, n=12)[0])
    )
    assert torch.equal(plain.index, same.index) and torch.equal(plain.block, same.block)


@pytest.mark.parametrize("order", ["raster", "neighbor", "strided"])
def test_only_random_orders_take_a_known_part(order: str) -> None:
    sentence = f"order is '{order}'; only in random orders can what is known come first"
    with pytest.raises(ValueError, match=sentence):
        Layout.from_grid((1, 2, 4), order, known=torch.ones(8, dtype=torch.bool))


def test_cells_are_known_as_a_whole() -> None:
    sentence = "a part of a cell (1, 2, 2) is known; known elements must make up whole cells"
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Layout.from_grid((1, 4, 4), "random", (1, 2, 2), known=mask(0, 1, 4, n=16)[0])


# --- the distribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [(0,), (3,), (1, 2), (0, 1, 3)])
@pytest.mark.parametrize("block", [1, 2, {"cell": [1, 1, 1]}], ids=str)
def test_the_rest_is_drawn_from_the_conditional(block: Any, known: tuple[int, ...]) -> None:
    model = toy(block=block)
    observed = mask(*known)
    probability = conditional(model, observed, 2)
    assert abs(probability.sum() - 1) < 1e-5
    drawn = draw(model, observed)
    assert (drawn[:, observed[0]] == VALUES[observed]).all()
    assert chi_square(frequencies(drawn, V), probability) > P_VALUE
    others = [conditional(model, observed, value) for value in (0, 1, 3, 4)]
    assert min(chi_square(frequencies(drawn, V), other) for other in others) < P_VALUE  # the test can fail


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_the_rest_is_drawn_from_the_conditional_of_hosted_bodies(backbone: str) -> None:
    model = toy(backbone)
    assert chi_square(frequencies(draw(model, mask(3)), V), conditional(model, mask(3), 2)) > P_VALUE


def test_a_target_that_starts_from_its_context_too() -> None:
    model = toy(start="context")
    assert chi_square(frequencies(draw(model, mask(1, 2)), V), conditional(model, mask(1, 2), 2)) > P_VALUE


def test_what_is_known_matters() -> None:
    model = toy()
    drawn = frequencies(draw(model, mask(3)), V).reshape(V, V, V, V).sum(3).flatten()
    free = model.generate([labels(2)], "x", num_samples=4000, generator=torch.Generator().manual_seed(1)).values
    free_counts = frequencies(free, V).reshape(V, V, V, V).sum(3).flatten()
    assert chi_square(drawn, free_counts / free_counts.sum()) < P_VALUE


@pytest.mark.parametrize("block", [1, 3, "row"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_cache_changes_nothing(backbone: str, block: Any) -> None:
    """Against one pass in the order in which the known elements come first; two samples, with guidance or without."""
    grid = (1, 3, 4)
    modalities = {"label": label(null_probability=0.1), "x": series(grid=grid, block=block, order="random")}
    model = build(modalities, backbone)
    observed = mask(4, 5, 6, 7, *([] if block == "row" else [0, 9]), n=12)
    values = torch.where(observed[..., None], torch.randn(2, 12, 3), torch.nan)
    given = Segment("x", values, grid, observed=observed.expand(2, -1))
    with hidden_states(model) as states:
        drawn = model.generate([labels(0, 3)], "x", given=given, num_samples=2)
    assert drawn.observed is None
    kept = drawn.values[:, observed[0]]
    assert torch.equal(kept, values.repeat_interleave(2, 0)[:, observed[0]])
    layout = model.layout("x", grid, observed[0])
    with hidden_states(model) as full:
        out = model([labels(0, 0, 3, 3), drawn], layouts={"x": layout})
    known = 1 + int(observed.sum())
    torch.testing.assert_close(states[0], full[0][::2, :known], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(torch.cat(states[1:], 1), full[0][:, known:], atol=1e-5, rtol=1e-5)
    assert out.element_losses["x"][:, ~observed[0]].max() < 1e-8
    guided = model.generate([labels(0, 3)], "x", given=given, guidance_scale=3.0)
    assert torch.equal(guided.values[:, observed[0]], values[:, observed[0]])
    assert (guided.values - drawn.values[::2]).abs().max() > 1e-2


def test_stream_fills_the_rest() -> None:
    model = toy()
    known = mask(1, 3)
    given = Segment("x", VALUES, GRID, observed=known)
    parts = list(model.stream([labels(1)], "x", given=given, generator=torch.Generator().manual_seed(1)))
    final = model.generate([labels(1)], "x", given=given, generator=torch.Generator().manual_seed(1))
    assert [int(part.element_observed.sum()) for part in parts] == [3, 4]
    assert parts[0].element_observed[:, known[0]].all()
    assert torch.equal(parts[-1].values, final.values) and parts[-1].observed is None


def test_what_is_given_is_not_written_to_and_the_order_is_the_models_again() -> None:
    model = toy()
    before = model.layout("x", GRID).index.clone()
    given = Segment("x", torch.full((1, N), 2), GRID, observed=mask(2))
    state = torch.get_rng_state()
    model.generate([labels(1)], "x", given=given, generator=torch.Generator().manual_seed(0))
    assert torch.equal(torch.get_rng_state(), state)
    assert (given.values == 2).all() and torch.equal(given.observed, mask(2))  # type: ignore[arg-type]
    assert torch.equal(model.layout("x", GRID).index, before)


def test_a_model_that_trains_fills_gaps_as_one_that_does_not() -> None:
    model = toy()
    evaluated = draw(model, mask(1, 2))
    assert torch.equal(draw(model.train(), mask(1, 2)), evaluated) and model.training


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "block"), [("raster", 1), ("raster", "row"), ("neighbor", None)])
def test_other_orders_take_whole_leading_blocks_only(order: str, block: Any) -> None:
    model = build({"x": codes(V, GRID, block, order)})
    first = int(model.layout("x", GRID).block_sizes[0])
    sentence = (
        f"given knows elements of block 0 or later, but not all of the blocks before; under next-block with order "
        f"{order!r} the known part must be whole leading blocks (random orders without a list of "
        "block sizes take any elements; known_blocks counts gaps as missing)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        model.generate([], "x", given=Segment("x", VALUES, GRID, observed=mask(3)))
    known = mask(*range(first))
    drawn = model.generate([], "x", given=Segment("x", VALUES, GRID, observed=known))
    assert torch.equal(drawn.values[known], VALUES[known])


def test_a_part_of_a_cell_cannot_be_given() -> None:
    with pytest.raises(ValueError, match=r"a part of a cell \(1, 1, 2\) is known; known elements must make up whole"):
        toy(block="row").generate([labels(1)], "x", given=Segment("x", VALUES, GRID, observed=mask(0)))


def test_all_examples_know_the_same() -> None:
    given = Segment("x", VALUES.expand(2, -1), GRID, observed=torch.cat([mask(0), mask(1)]))
    sentence = "given knows other elements in some examples of the batch; it must know the same in all"
    with pytest.raises(ValueError, match=sentence):
        toy().generate([labels(1, 2)], "x", given=given)


def test_known_blocks_counts_in_the_order_of_the_model() -> None:
    """With known_blocks the order is not rearranged: what is unobserved there stays missing."""
    grid = (1, 2, 3)
    model = build({"x": series(grid=grid, order="random")})
    layout = model.layout("x", grid)
    observed = torch.ones(1, 6, dtype=torch.bool)
    observed[:, layout.index[1]] = False
    given = Segment("x", torch.randn(1, 6, 3), grid, observed=observed)
    drawn = model.generate([], "x", given=given, known_blocks=3)
    assert drawn.observed is not None
    assert (~drawn.observed).nonzero().tolist() == [[0, int(layout.index[1])]]
    assert torch.equal(drawn.values[:, layout.index[[0, 2]]], given.values[:, layout.index[[0, 2]]])
    assert model([drawn]).element_losses["x"][:, layout.index[3:]].max() < 1e-8
