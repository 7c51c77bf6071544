"""Codebook patterns: exact inverses, MusicGen's figure, steps that complete one by one, and models over each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.helpers import build, codes
from unimodal_ar import Segment
from unimodal_ar.adapters.audio.codebooks import PATTERNS

sizes = st.integers(1, 7)
every = pytest.mark.parametrize("name", PATTERNS)


def numbered(batch: int, steps: int, books: int) -> Tensor:
    """Codes that are all different, and none of them 0."""
    return torch.arange(1, batch * steps * books + 1).view(batch, steps, books)


def delayed(steps: int, books: int, clip: Tensor) -> Tensor:
    """MusicGen's pattern, code by code: [rows, K]."""
    rows = torch.zeros(steps + books - 1, books, dtype=torch.long)
    for t in range(steps):
        for k in range(books):
            rows[t + k, k] = clip[t, k]
    return rows


@every
@given(batch=st.integers(1, 3), steps=sizes, books=sizes)
def test_revert_undoes_build(name: str, batch: int, steps: int, books: int) -> None:
    pattern = PATTERNS[name]
    original = numbered(batch, steps, books)
    values = pattern.build(original)
    rows, height, width = pattern.grid(steps, books)
    own = pattern.codes(books)
    assert height == 1 and (rows - pattern.lag(books), width * own) == (steps, books)
    assert values.shape == ((batch, rows * width, own) if own > 1 else (batch, rows * width))
    assert values.dtype == torch.long
    assert torch.equal(pattern.revert(values, books), original)
    # Nothing is there twice, and what is no code is 0.
    assert torch.equal(values[values > 0].sort().values, original.flatten())


@every
@given(steps=sizes, books=st.integers(2, 5), data=st.data())
def test_build_undoes_revert_where_codes_stand(name: str, steps: int, books: int, data: st.DataObject) -> None:
    """Whatever a model draws in places that no code falls on is dropped."""
    pattern = PATTERNS[name]
    values = pattern.build(numbered(1, steps, books))
    noise = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=values.numel(), max_size=values.numel())))
    drawn = torch.where(values == 0, noise.view_as(values), values)
    assert torch.equal(pattern.build(pattern.revert(drawn, books)), values)


def test_the_patterns_are_those_of_the_figure() -> None:
    """T = 3 steps of K = 2 codebooks; the digits are step and codebook."""
    figure = torch.tensor([[[11, 12], [21, 22], [31, 32]]])
    assert PATTERNS["parallel"].build(figure).tolist() == [[[11, 12], [21, 22], [31, 32]]]
    assert PATTERNS["delay"].build(figure).tolist() == [[[11, 0], [21, 12], [31, 22], [0, 32]]]
    assert PATTERNS["grid"].build(figure).tolist() == [[11, 12, 21, 22, 31, 32]]
    grids = {name: pattern.grid(3, 2) for name, pattern in PATTERNS.items()}
    assert grids == {"parallel": (3, 1, 1), "delay": (4, 1, 1), "grid": (3, 1, 2)}


@given(steps=sizes, books=st.integers(2, 6))
def test_the_delay_equals_a_naive_one(steps: int, books: int) -> None:
    original = numbered(2, steps, books)
    expected = torch.stack([delayed(steps, books, clip) for clip in original])
    assert torch.equal(PATTERNS["delay"].build(original), expected)


@every
@given(steps=sizes, books=st.integers(2, 5))
def test_steps_complete_as_rows_come(name: str, steps: int, books: int) -> None:
    """A step's codes are there when `lag` more rows are; those before can be forgotten."""
    pattern = PATTERNS[name]
    original = numbered(1, steps, books)
    values = pattern.build(original)
    lag, width = pattern.lag(books), pattern.width(books)
    assert lag == (books - 1 if name == "delay" else 0)
    for row in range(1, steps + lag + 1):
        complete = max(row - lag, 0)
        assert torch.equal(pattern.revert(values[:, : row * width], books), original[:, :complete])
        late = pattern.revert(values[:, (row - 1) * width :], books)  # without the first rows
        assert torch.equal(late, original[:, row - 1 :])


V, STEPS, K = 5, 4, 3

LAYOUTS: list[tuple[str, dict[str, Any], int]] = [
    ("grid", {"order": "raster", "block": 1}, STEPS * K),
    ("grid", {"order": "raster", "block": "row"}, STEPS),
    ("grid", {"order": "neighbor", "block": None}, STEPS + K - 1),
    ("grid", {"order": "coarse_first", "block": None}, 2 * STEPS),
    ("grid", {"order": "columns", "block": None}, K),
    ("parallel", {"order": "raster", "block": 1}, STEPS),
    ("delay", {"order": "raster", "block": 1}, STEPS + K - 1),
]


@pytest.mark.parametrize(("name", "layout", "passes"), LAYOUTS, ids=str)
def test_a_model_trains_and_draws_under_every_pattern(name: str, layout: dict[str, Any], passes: int) -> None:
    pattern = PATTERNS[name]
    element = {"kind": "discrete", "vocab_size": V, "codes": pattern.codes(K)}
    grid = pattern.grid(STEPS, K)
    model = build({"x": codes(grid=grid, **layout, element=element)})
    assert model.layout("x", grid).num_blocks == passes

    original = torch.randint(V, (8, STEPS, K))
    segment = Segment("x", pattern.build(original), grid)
    before = model([segment]).loss
    before.backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter -= 1e-3 * parameter.grad
        assert model([segment]).loss < before

    # Cached decoding draws the modes of a full pass over what it drew: with temperature 0 no other code is likelier.
    drawn = model.generate([], "x", grid=grid, num_samples=2, temperature=0.0)
    assert drawn.values.shape == pattern.build(original[:2]).shape
    assert pattern.revert(drawn.values, K).shape == (2, STEPS, K)
    own = model([drawn]).element_losses["x"]
    for place in range(grid[0] * grid[2]):
        for other in range(1, V):
            changed = drawn.values.clone()
            changed[:, place] = (changed[:, place] + other) % V
            losses = model([Segment("x", changed, grid)]).element_losses["x"]
            assert (own[:, place] <= losses[:, place] + 1e-5).all()
