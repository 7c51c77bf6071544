"""`target_positions: starts`: what would share a source reads a start vector of its own (NBP, arXiv 2502.07737)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.helpers import (
    BACKBONES,
    P_VALUE,
    all_sequences,
    build,
    chi_square,
    codes,
    diffusion,
    frequencies,
    full_hidden,
    hidden_states,
    label,
    labels,
    predicting,
    series,
)
from unimodal_ar import Layout, Segment
from unimodal_ar.convert import convert_to_block_diffusion

GRID = (1, 2, 3)
N = 6
# Blocks that grow, a first block of several elements, and blocks that shrink before they grow.
BLOCKS: dict[str, Any] = {"growing": [1, 2, 3], "rows": "row", "shrinking": [2, 1, 3]}
STARTS = ["learned", "context", "none"]

every_layout = pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
every_start = pytest.mark.parametrize("start", STARTS)


def toy(block: Any, backbone: str = "native", start: str = "learned", **more: Any) -> Any:
    x = series(grid=GRID, block=block, start=start, target_positions="starts", **more)
    return build({"label": label(), "x": x}, backbone)


def test_each_element_reads_its_source_or_its_own_start() -> None:
    model = toy([1, 2, 3]).double()
    embedding = model.embeddings["x"]
    values = torch.randn(2, N, 3).double()
    element, start, table = embedding.value(values), embedding.start, embedding.target_position.weight
    assert table.shape == (3, 32)
    first, second, third = ((start + row).expand(2, -1) for row in table)
    expected = [first, element[:, 0], second, element[:, 1], element[:, 2], third]
    read, known = embedding.inputs(values, model.layout("x", GRID))
    torch.testing.assert_close(read, torch.stack(expected, 1))
    assert known.tolist() == [[False, True, False, True, True, False]] * 2


def test_what_is_missing_is_read_as_the_start_of_its_place() -> None:
    model = toy("row").double()
    embedding = model.embeddings["x"]
    values = torch.randn(1, N, 3).double()
    observed = torch.ones(1, N, dtype=torch.bool)
    observed[:, 1] = False
    read, _ = embedding.inputs(values, model.layout("x", GRID), observed)
    torch.testing.assert_close(read[0, 4], embedding.start + embedding.target_position.weight[1])
    torch.testing.assert_close(read[0, 4], read[0, 1])


@every_start
@every_layout
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_cache_changes_nothing(backbone: str, block: Any, start: str) -> None:
    model = toy(block, backbone, start)
    layout, context = model.layout("x", GRID), labels(0, 3)
    values = torch.randn(2, N, 3)
    given = None
    if start == "none":
        given = Segment("x", values, GRID, observed=layout.scatter((layout.block < 1)[None].expand(2, -1)))
    with hidden_states(model) as states:
        drawn = model.generate([context], "x", given=given)
    assert len(states) == layout.num_blocks - (start == "none")
    torch.testing.assert_close(torch.cat(states, 1), full_hidden(model, [context, drawn]), atol=1e-5, rtol=1e-5)


@every_start
@every_layout
def test_a_block_sees_all_blocks_before_it_and_no_others(block: Any, start: str) -> None:
    model = toy(block, start=start)
    layout, first = model.layout("x", GRID), int(start == "none")
    values = torch.randn(1, N, 3).requires_grad_()
    hidden = full_hidden(model, [labels(1), Segment("x", values, GRID)])[0]
    places = predicting(layout, first)
    own = hidden[-(places[-1] + 1) :][places]
    blocks = layout.block[layout.block >= first]
    for b in range(first, layout.num_blocks):
        mixed = (own[blocks == b] * torch.randn_like(own[blocks == b])).sum()
        (gradient,) = torch.autograd.grad(mixed, values, retain_graph=True)
        seen = set(gradient[0].abs().amax(-1).nonzero().flatten().tolist())
        assert seen == set(layout.index[layout.block < b].tolist())


@pytest.mark.parametrize("block", [None, "row", {"cell": [1, 1, 2]}], ids=str)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_first_frame_that_comes_bit_by_bit_needs_them_for_its_first_block_only(backbone: str, block: Any) -> None:
    """The hybrid of NBP: later frames read their counterparts."""
    grid = (3, 2, 2)
    x = series(grid=grid, block=block, order="first_frame", target_positions="starts")
    model = build({"label": label(), "x": x}, backbone)
    layout, context = model.layout("x", grid), labels(0, 3)
    read, known = model.embeddings["x"].inputs(torch.randn(1, 12, 3), layout)
    assert known[0].tolist() == [False] * layout.block_sizes[0] + [True] * (12 - layout.block_sizes[0])
    assert len(read[0, : layout.block_sizes[0]].unique(dim=0)) == layout.block_sizes[0]
    with hidden_states(model) as states:
        drawn = model.generate([context], "x")
    assert len(states) == layout.num_blocks == (6 if block is None else 4)
    torch.testing.assert_close(torch.cat(states, 1), full_hidden(model, [context, drawn]), atol=1e-5, rtol=1e-5)


@every_layout
def test_samples_follow_the_normalised_joint(block: Any) -> None:
    every = all_sequences(2, N)
    model = build({"x": codes(2, GRID, block=block, target_positions="starts")})
    losses = model([Segment("x", every, GRID)]).element_losses["x"]
    probability = (-losses.double().sum(1)).exp().detach().numpy()
    assert abs(probability.sum() - 1) < 1e-5
    drawn = model.generate([], "x", num_samples=5000, generator=torch.Generator().manual_seed(1))
    assert chi_square(frequencies(drawn.values, 2), probability) > P_VALUE


@pytest.mark.parametrize("backbone", ["native", "gpt2"])
def test_elements_of_a_block_differ_by_their_starts_alone(backbone: str) -> None:
    """Without positions nothing else could tell them apart."""
    native: dict[str, Any] = {"position": "none"} if backbone == "native" else {}
    model = build({"x": codes(3, GRID, block="row", target_positions="starts")}, backbone, **native)
    segment = Segment("x", torch.zeros(1, N, dtype=torch.long), GRID)
    apart = full_hidden(model, [segment])[0, :3]
    assert min((apart[i] - apart[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-3
    with torch.no_grad():
        model.embeddings["x"].target_position.weight.zero_()
    alike = full_hidden(model, [segment])[0, :3]
    if backbone == "native":
        torch.testing.assert_close(alike, alike[:1].expand(3, -1))
    assert (alike - apart).abs().max() > 1e-3


def test_what_turns_to_block_diffusion_loses_its_starts() -> None:
    model = build({"x": codes(3, GRID, block="row", target_positions="starts")})
    with pytest.warns(UserWarning, match="target positions of 'x' are left out"):
        turned: Any = convert_to_block_diffusion(model, "row")
    assert turned.embeddings["x"].target_position is None


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "sentence"),
    [
        (
            series(order="random"),
            "modalities.x.target_positions is 'starts' with the random order 'random', where no s",
        ),
        (codes(**diffusion("mask")), "modalities.x.target_positions is 'starts'; under block diffusion every position"),
        (label(), "has target_positions 'starts' but no head"),
    ],
)
def test_where_starts_tell_nothing_they_are_refused(modality: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        build({"x": {**modality, "target_positions": "starts"}})


def test_there_are_starts_for_the_largest_block_only() -> None:
    model = toy("row")
    longer = Segment("x", torch.randn(1, 8, 3), (1, 2, 4))
    with pytest.raises(ValueError, match=r"grid of 'x' is \(1, 2, 4\); its learned positions end at \(1, 2, 3\)"):
        model([labels(1), longer])
    segment = Segment("x", torch.randn(1, N, 3), GRID)
    with pytest.raises(ValueError, match="layout has a block of 6 elements; with target_positions 'starts' the larges"):
        model([labels(1), segment], layouts={"x": Layout.from_grid(GRID, block="whole")})
    smaller = Segment("x", torch.randn(1, 4, 3), (1, 2, 2))
    assert model([labels(1), smaller]).loss.isfinite()
