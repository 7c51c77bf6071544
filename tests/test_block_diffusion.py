"""Training by block diffusion: what each copy sees, what it costs, and what it does not depend on (DESIGN 5)."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel

from tests.helpers import (
    BACKBONES,
    backbone_inputs,
    build,
    codes,
    diffusion,
    full_hidden,
    label,
    labels,
    lengthened,
    made_noise,
    noise_as,
    perturb,
    series,
    toy_backbones,
)
from unimodal_ar import Segment, UnimodalARForGeneration, collate
from unimodal_ar.objectives.noise import Noisy

GRID, N = (2, 2, 3), 12
NOISES = ["mask", "gaussian"]
LAYOUTS: list[tuple[str, Any]] = [
    *(("raster", block) for block in (1, 2, 5, "row", {"cell": [2, 1, 1]}, "whole")),
    ("random", 2),
    ("neighbor", None),
]

every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
every_noise = pytest.mark.parametrize("noise", NOISES)
every_layout = pytest.mark.parametrize(("order", "block"), LAYOUTS, ids=str)


def vectors(noise: str, block: Any = 1, order: str = "raster", grid: Any = GRID, **more: Any) -> dict[str, Any]:
    return series(grid=grid, block=block, order=order, **diffusion(noise), **more)


def patches(batch: int, grid: tuple[int, int, int] = GRID) -> Tensor:
    return torch.randn(batch, grid[0] * grid[1] * grid[2], 3)


def places(influence: Tensor) -> set[int]:
    return set(influence.nonzero().flatten().tolist())


# --- who sees what ----------------------------------------------------------------------------------------------------


@every_layout
@every_noise
@every_backbone
def test_a_block_is_restored_from_itself_and_the_clean_blocks_before_it(
    backbone: str, noise: str, order: str, block: Any
) -> None:
    """By gradient: row b of the batch holds the derivatives of block b's noisy, then of its clean copy."""
    model = build({"x": vectors(noise, block, order)}, backbone)
    layout = model.layout("x", GRID)
    blocks = layout.num_blocks
    clean = patches(1).expand(blocks, -1, -1).clone().requires_grad_()
    made = made_noise(noise, clean, layout)
    made.values.requires_grad_()
    if made.masked is not None:  # in every block something is shown
        made.masked[:, layout.block_range(0).start :: max(layout.block_sizes)] = False
        made.masked[:, torch.searchsorted(layout.block, torch.arange(blocks))] = False
    leaves = [clean, made.values] + ([made.level.requires_grad_()] if made.level is not None else [])
    with noise_as(model, made):
        hidden = full_hidden(model, [Segment("x", clean, GRID)])
    read = layout.block_range(0, blocks - 1).stop
    assert hidden.shape[1] == N + read
    own = layout.block[None] == torch.arange(blocks)[:, None]
    weight = torch.randn_like(hidden) * torch.cat([own, torch.zeros(blocks, read)], 1)[..., None]
    gradients = torch.autograd.grad((hidden * weight).sum(), leaves, retain_graph=True, materialize_grads=True)
    for b in range(blocks):
        before, itself = places(layout.block < b), places(layout.block == b)
        assert places(gradients[0][b].abs().amax(-1)) == set(layout.index[list(before)].tolist())
        assert b == 0 or gradients[0][b].abs().max() > 1e-3
        shown = itself if made.masked is None else itself - places(made.masked[b])
        assert places(gradients[1][b].abs().amax(-1)) == shown
        if made.level is not None:
            assert places(gradients[2][b]) == itself
    if read:
        of_clean = hidden[:, N:] * own[:, :read, None] * torch.randn_like(hidden[:, N:])
        gradients = torch.autograd.grad(of_clean.sum(), leaves, materialize_grads=True)
        assert all((gradient == 0).all() for gradient in gradients[1:])
        for b in range(blocks - 1):
            expected = set(layout.index[layout.block <= b].tolist())
            assert places(gradients[0][b].abs().amax(-1)) == expected


@every_layout
@every_noise
def test_the_noise_itself_leaks_nothing(noise: str, order: str, block: Any) -> None:
    """With noise as it is drawn: of its own block a prediction knows what is not masked, or everything a little."""
    model = build({"x": vectors(noise, block, order)})
    layout = model.layout("x", GRID)
    values = patches(1).expand(layout.num_blocks, -1, -1).clone().requires_grad_()
    segment = Segment("x", values, GRID)
    made = model.objectives["x"].noise.add(segment, layout, True)
    with noise_as(model, made):
        hidden = full_hidden(model, [segment])[:, :N]
    own = layout.block[None] == torch.arange(layout.num_blocks)[:, None]
    (gradient,) = torch.autograd.grad((hidden * own[..., None] * torch.randn_like(hidden)).sum(), values)
    for b in range(layout.num_blocks):
        known = layout.block <= b
        if made.masked is not None:
            known = known & ~((layout.block == b) & made.masked[b])
        assert places(gradient[b].abs().amax(-1)) == set(layout.index[known].tolist())


@pytest.mark.parametrize("after", ["block_diffusion", "next_block"])
@pytest.mark.parametrize("before", ["block_diffusion", "next_block"])
@every_noise
@every_backbone
def test_segments_see_the_clean_copies_of_earlier_ones(backbone: str, noise: str, before: str, after: str) -> None:
    """Two targets and two contexts: a later one depends on all clean values of an earlier one, and on no noise."""
    one = vectors(noise, 2, grid=(5, 1, 1)) if before == "block_diffusion" else series(grid=(5, 1, 1), block=2)
    two = vectors(noise, 3, grid=(4, 1, 1)) if after == "block_diffusion" else series(grid=(4, 1, 1), block=3)
    model = build({"x": one, "y": two, "label": label(), "note": series(head=None, grid=(2, 1, 1))}, backbone)
    x, y, note = (patches(1, grid).requires_grad_() for grid in ((5, 1, 1), (4, 1, 1), (2, 1, 1)))
    segments = [
        labels(1),
        Segment("x", x, (5, 1, 1)),
        Segment("note", note, (2, 1, 1), target=False),
        Segment("y", y, (4, 1, 1)),
    ]
    made = made_noise(noise, x, model.layout("x", (5, 1, 1)))
    made.values.requires_grad_()
    if before == "block_diffusion":
        with noise_as(model, made):
            losses = model(segments).element_losses
    else:
        losses = model(segments).element_losses
    gradients = torch.autograd.grad(losses["y"].sum(), [x, note, made.values], retain_graph=True, allow_unused=True)
    assert (gradients[0].abs().amax(-1) > 0).all() and (gradients[1].abs().amax(-1) > 0).all()
    assert gradients[2] is None or (gradients[2] == 0).all()
    backwards = torch.autograd.grad(losses["x"].sum(), [note, y], allow_unused=True)
    assert all(gradient is None or (gradient == 0).all() for gradient in backwards)


# --- where positions are ----------------------------------------------------------------------------------------------


@every_layout
@every_noise
@pytest.mark.parametrize("context", [False, True])
def test_both_copies_have_the_same_places(noise: str, order: str, block: Any, context: bool) -> None:
    model = build({"x": vectors(noise, block, order), "label": label(), "y": series(grid=(2, 1, 1))})
    layout = model.layout("x", GRID)
    first = [labels(1, 2)] if context else []
    segment, y = Segment("x", patches(2), GRID), Segment("y", patches(2, (2, 1, 1)), (2, 1, 1))
    with backbone_inputs(model) as inputs:
        model([*first, segment])
        model([*first, segment, y])
    alone, followed = inputs
    offset = len(first)
    for found, read in ((alone, N - layout.block_sizes[-1]), (followed, N)):
        coords, ids = found.coords[0, offset:], found.position_ids[0, offset:]
        expected = layout.coords + torch.tensor([offset, 0, 0])  # a segment before it moves it along t
        assert torch.equal(coords[:N], expected) and torch.equal(coords[N : N + read], expected[:read])
        assert ids[:N].tolist() == list(range(offset, offset + N))
        assert ids[N : N + read].tolist() == list(range(offset, offset + read))
    assert followed.position_ids[0, offset + 2 * N :].tolist() == [offset + N, offset + N + 1]
    assert followed.coords[0, offset + 2 * N :].tolist() == [[offset + 2, 0, 0]] * 2  # each reads one place earlier
    assert alone.pattern.noisy is None or block != "whole"
    assert (alone.pattern.noisy is None) == (layout.num_blocks == 1)  # one stream where nobody reads the only block


def test_a_given_first_block_has_one_copy() -> None:
    model = build({"x": vectors("mask", 2, grid=(6, 1, 1), start="none")})
    with backbone_inputs(model) as inputs:
        model([Segment("x", patches(1, (6, 1, 1)), (6, 1, 1))])
    assert inputs[0].position_ids[0].tolist() == [0, 1, 2, 3, 4, 5, 2, 3]
    assert inputs[0].pattern.noisy is not None
    assert inputs[0].pattern.noisy.tolist() == [False] * 2 + [True] * 4 + [False] * 2


def test_a_table_of_positions_need_only_be_as_long_as_the_sequence() -> None:
    """Both copies share their positions, so that twice as many fit."""
    gpt = {**toy_backbones()["gpt2"], "n_positions": N}
    model = build({"x": vectors("mask", 2)}, gpt)
    assert model([Segment("x", patches(1), GRID)]).loss.isfinite()
    short = build({"x": vectors("mask", 2)}, {**gpt, "n_positions": N - 1})
    with pytest.raises(ValueError, match="the sequence has 12 positions; a gpt2 backbone of this configuration has 11"):
        short([Segment("x", patches(1), GRID)])


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["learned", "none"])
@every_noise
def test_losses_are_the_heads_with_targets_and_weights(noise: str, start: str) -> None:
    """Against the head applied by hand to the noisy copies, with a context and missing values."""
    model = build({"x": vectors(noise, 5, "raster", start=start), "label": label()})
    layout = model.layout("x", GRID)
    first = 5 if start == "none" else 0
    observed = torch.rand(2, N, 3) > 0.3
    observed[0, 7] = False
    segment = Segment("x", patches(2), GRID, observed=observed)
    weights = torch.rand(2, N) + 0.5
    made = replace(made_noise(noise, segment.values, layout), weights=weights)
    with noise_as(model, made):
        hidden = full_hidden(model, [labels(1, 2), segment])[:, 1 + first : 1 + first + N - first]
        output = model([labels(1, 2), segment])
    target = segment.values if made.targets is None else made.targets  # raster order is the order here
    error = (model.heads["x"].mean(hidden) - target[:, first:]).square() * observed[:, first:]
    per_element = error.sum(-1) / observed[:, first:].sum(-1).clamp(min=1) * weights[:, first:]
    expected = torch.cat([torch.zeros(2, first), per_element], 1)
    torch.testing.assert_close(output.element_losses["x"], expected, atol=1e-5, rtol=1e-5)
    fraction = observed.float().mean(-1)
    fraction[:, :first] = 0
    torch.testing.assert_close(output.loss, (expected * fraction).sum() / fraction.sum())
    torch.testing.assert_close(model.count_items([segment]), fraction.sum())


@pytest.mark.parametrize("element", ["continuous", "discrete"])
def test_mask_noise_masks_its_share_of_what_is_observed(element: str) -> None:
    """k = ceil(t L) elements of each block, and each of these weighs L / k: the weights of a block sum to L."""
    kind = codes(grid=GRID, block=5, order="random") if element == "discrete" else series(grid=GRID, block=5)
    model = build({"x": kind | diffusion("mask")})
    layout = model.layout("x", GRID)
    rows = 200
    observed = torch.rand(rows, N) > 0.3
    observed[0], observed[1] = False, True
    values = torch.randint(0, 3, (rows, N)) if element == "discrete" else patches(rows)
    made = model.objectives["x"].noise.add(Segment("x", values, GRID, observed=observed), layout, False)
    assert made.masked is not None and made.weights is not None and made.level is None and made.targets is None
    seen = observed[:, layout.index]
    assert not (made.masked & ~seen).any()
    assert ((made.weights > 0) == made.masked).all()
    assert torch.equal(made.values, values[:, layout.index])
    drawn = set()
    for b in range(layout.num_blocks):
        block = layout.block_range(b)
        masked, length = made.masked[:, block].sum(1), seen[:, block].sum(1)
        assert ((masked >= 1) | (length == 0)).all()
        torch.testing.assert_close(made.weights[:, block].sum(1), length.float())
        weight = torch.where(made.masked[:, block], (length / masked.clamp(min=1))[:, None], 0.0)
        torch.testing.assert_close(made.weights[:, block], weight)
        drawn |= {(int(a), int(c)) for a, c in zip(masked, length, strict=True) if b == 0}
    assert {(k, 5) for k in range(1, 6)} <= drawn  # a block of five has one to five masks


def test_levels_rule_training_and_not_evaluation() -> None:
    """In evaluation mode t is uniform, so that what is measured is a bound."""
    kind = codes(grid=(1, 1, 10), block=10) | diffusion("mask", levels={"kind": "uniform", "low": 0.75, "high": 0.9})
    model = build({"x": kind})
    segment = Segment("x", torch.zeros(400, 10, dtype=torch.long), (1, 1, 10))
    layout, noise = model.layout("x", (1, 1, 10)), model.objectives["x"].noise
    training, evaluation = (noise.add(segment, layout, training).masked.sum(1) for training in (True, False))
    assert set(training.tolist()) == {8, 9}
    assert evaluation.bincount(minlength=11)[1:].tolist() == [40] * 10  # stratified, so even exactly


def test_gaussian_noise_is_a_straight_line_from_data_to_noise() -> None:
    model = build({"x": vectors("gaussian", 5, "random")})
    layout, values = model.layout("x", GRID), patches(300)
    made = model.objectives["x"].noise.add(Segment("x", values, GRID), layout, True)
    assert made.level is not None and made.targets is not None and made.weights is None and made.masked is None
    clean, level = values[:, layout.index], made.level[..., None]
    for b in range(layout.num_blocks):  # one level per block
        own = made.level[:, layout.block_range(b)]
        assert (own == own[:, :1]).all()
    noise = made.targets + clean
    torch.testing.assert_close(made.values, (1 - level) * clean + level * noise, atol=1e-5, rtol=1e-5)
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    assert abs(torch.corrcoef(torch.stack([noise.flatten(), clean.flatten()]))[0, 1]) < 0.05
    assert len(made.level.unique()) == 300 * layout.num_blocks


@every_backbone
@pytest.mark.parametrize("block", [1, 2, 5])
def test_blocks_of_one_with_masks_have_no_randomness(backbone: str, block: int) -> None:
    model = build({"x": codes(grid=GRID, block=block) | diffusion("mask")}, backbone)
    segment = Segment("x", torch.randint(0, 3, (2, N)), GRID)
    one, two = (model([segment]).element_losses["x"] for _ in range(2))
    assert torch.equal(one, two) == (block == 1)


# --- what losses do not depend on -------------------------------------------------------------------------------------


def cut(noisy: Noisy, keep: Tensor | slice, places: slice = slice(None)) -> Noisy:
    """Some rows and places of noise."""
    rows = {name: x[keep] for name, x in vars(noisy).items() if x is not None}
    return replace(noisy, **rows).at(places)


@every_layout
@every_noise
@every_backbone
def test_the_rest_of_the_batch_is_irrelevant(backbone: str, noise: str, order: str, block: Any) -> None:
    model = build({"x": vectors(noise, block, order), "label": label()}, backbone)
    observed = torch.rand(3, N, 3) > 0.4
    observed[0] = True
    segment = Segment("x", patches(3), GRID, observed=observed)
    made = made_noise(noise, segment.values, model.layout("x", GRID))
    with noise_as(model, made):
        together = model([labels(0, 1, 2), segment]).element_losses["x"]
    for row in range(3):
        rows = slice(row, row + 1)
        with noise_as(model, cut(made, rows)):
            alone = model([labels(row), segment.select(rows)]).element_losses["x"]
        torch.testing.assert_close(alone, together[rows], atol=1e-4, rtol=1e-5)
    with noise_as(model, cut(made, slice(1))):
        bare = model([labels(0), segment.select(slice(1)).replace(observed=None)]).element_losses["x"]
    torch.testing.assert_close(bare, together[:1], atol=1e-4, rtol=1e-5)


def padded(segment: Segment, slices: int) -> Segment:
    """The same example with unobserved NaN before it along t."""
    (t, h, w), rows = segment.grid, segment.batch_size
    nothing = torch.full((rows, slices * h * w, 3), torch.nan)
    missing = torch.zeros(rows, slices * h * w, dtype=torch.bool)
    extra: dict[str, Any] = {}
    if segment.covariates is not None:
        extra["covariates"] = torch.cat([torch.randn(rows, slices * h * w, 2), segment.covariates], 1)
    values, observed = torch.cat([nothing, segment.values], 1), torch.cat([missing, segment.element_observed], 1)
    return Segment("x", values, (t + slices, h, w), observed=observed, **extra)


@pytest.mark.parametrize("start", ["learned", "none"])
@pytest.mark.parametrize(
    ("grid", "block", "slices"),
    [((5, 1, 1), 1, 3), ((6, 1, 1), 2, 4), ((6, 1, 1), 3, 3), ((3, 2, 2), "frame", 2), ((3, 2, 2), "row", 1)],
)
@every_noise
@every_backbone
def test_left_padding_changes_nothing(
    backbone: str, noise: str, grid: tuple[int, int, int], block: Any, slices: int, start: str
) -> None:
    """Alone, padded, and padded beside a longer example; with covariates, a table of positions, and other segments."""
    t, h, w = grid
    options: dict[str, Any] = dict(start=start, covariates=2, absolute_positions=True)
    kind = vectors(noise, block, grid=(t + slices, h, w), **options)
    model = build({"x": kind, "label": label(), "after": codes(grid=(2, 1, 1))}, backbone)
    n, extra = t * h * w, slices * h * w
    observed = torch.ones(2, n, dtype=torch.bool)
    observed[1, n - 2] = False
    covariates = torch.randn(2, n, 2)
    segment = Segment("x", patches(2, grid), grid, observed=observed, covariates=covariates)
    after = Segment("after", torch.randint(0, 3, (2, 2)), (2, 1, 1))
    made = made_noise(noise, segment.values, model.layout("x", grid))
    with noise_as(model, made):
        alone = model([labels(1, 2), segment, after]).element_losses
    long, longer = padded(segment, slices), lengthened(made, extra)
    with noise_as(model, longer):
        wide = model([labels(1, 2), long, after]).element_losses
    torch.testing.assert_close(wide["x"][:, extra:], alone["x"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(wide["after"], alone["after"], atol=1e-4, rtol=1e-5)
    assert (wide["x"][:, :extra] == 0).all()

    other = long.select(slice(1)).replace(
        values=patches(1, long.grid), observed=torch.ones(1, n + extra, dtype=torch.bool)
    )
    (mixed,) = collate([[other], [long]])
    three = replace(longer, **{k: torch.cat([x[:1], x]) for k, x in vars(longer).items() if x is not None})
    after = after.replace(values=torch.cat([after.values[:1], after.values]))
    with noise_as(model, three):
        beside = model([labels(0, 1, 2), mixed, after]).element_losses
    torch.testing.assert_close(beside["x"][1:, extra:], alone["x"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(beside["after"][1:], alone["after"], atol=1e-4, rtol=1e-5)


@every_layout
@every_noise
@every_backbone
def test_a_gap_is_never_read_and_changes_nothing_before_it(backbone: str, noise: str, order: str, block: Any) -> None:
    model = build({"x": vectors(noise, block, order)}, backbone)
    layout = model.layout("x", GRID)
    place = 7
    gap = int(layout.index[place])
    values, observed = patches(2), torch.ones(2, N, dtype=torch.bool)
    made = made_noise(noise, values, layout)
    poisoned = values.clone()
    poisoned[:, gap] = torch.nan
    spoilt = made.values.clone()
    spoilt[:, place] = torch.nan  # noise was added to what is missing
    with noise_as(model, made):
        whole = full_hidden(model, [Segment("x", values, GRID, observed=observed)])[:, :N]
        observed[:, gap] = False
        again = full_hidden(model, [Segment("x", values, GRID, observed=observed)])[:, :N]
    with noise_as(model, replace(made, values=spoilt)):
        segment = Segment("x", poisoned, GRID, observed=observed)
        missing, output = full_hidden(model, [segment])[:, :N], model([segment])
    assert torch.equal(missing, again)
    earlier, others = layout.block < layout.block[place], torch.arange(N) != place
    torch.testing.assert_close(missing[:, earlier], whole[:, earlier], atol=1e-5, rtol=1e-5)
    touched = ~earlier & others
    if touched.any():
        assert (missing - whole)[:, touched].abs().amax(-1).max() > 1e-4
    assert output.loss.isfinite() and (output.element_losses["x"][:, gap] == 0).all()
    assert (output.element_losses["x"] != 0).any()


# --- training ---------------------------------------------------------------------------------------------------------


@every_noise
@every_backbone
def test_every_trainable_parameter_gets_a_finite_gradient(backbone: str, noise: str) -> None:
    kind = vectors(noise, 5, "random", covariates=2, absolute_positions=True, context_noise=0.3)
    model = build({"x": kind, "label": label(null_probability=0.5)}, backbone).train()
    values, observed = patches(8), torch.rand(8, N, 3) > 0.3
    values[~observed] = torch.nan
    segment = Segment("x", values, GRID, observed=observed, covariates=torch.randn(8, N, 2))
    model([labels(*range(4), *range(4)), segment]).loss.backward()
    # A context has no start to speak of; with Gaussian noise there is always something to read.
    idle = {"embeddings.label.start"} | ({"embeddings.x.start"} if noise == "gaussian" else set())
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    assert {name for name, grad in found.items() if grad is None or not (grad != 0).any()} <= idle
    assert all(grad.isfinite().all() for grad in found.values() if grad is not None)


@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@every_noise
def test_gradient_checkpointing_changes_nothing(noise: str) -> None:
    model = build({"x": vectors(noise, 2)}).train()
    segment = Segment("x", patches(2), GRID)
    made = made_noise(noise, segment.values, model.layout("x", GRID))
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        with noise_as(model, made):
            model([segment]).loss.backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert model.is_gradient_checkpointing and len(gradients[0]) > 10
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("kind", ["next_block", "mask", "gaussian", "context"])
@pytest.mark.parametrize("element", ["continuous", "discrete"])
def test_the_first_steps_can_be_spared_by_context_noise(kind: str, element: str) -> None:
    """In every way in which elements are read: as sources, as clean and as masked copies, as a context."""
    if (kind, element) == ("gaussian", "discrete"):
        return
    grid = (4, 1, 2)
    own = codes(50, grid, 2, "random") if element == "discrete" else series(3, grid, 2, "random")
    own |= dict(context_noise=0.9, clean_steps=2) | (diffusion(kind) if kind in ("mask", "gaussian") else {})
    if kind == "context":
        del own["head"]
    model = build({"x": own, "y": series(grid=(1, 1, 1))}).train()
    whole = torch.randint(0, 50, (300, 8)) if element == "discrete" else torch.randn(300, 8, 3)
    spared: list[bool] = []
    disturbed: list[bool] = []
    embedding = model.embeddings["x"]
    disturb = embedding._disturbed

    def watched(values: Tensor, index: Tensor, layout: Any) -> Tensor:
        assert torch.equal(values, whole[:, index])
        made = disturb(values, index, layout)
        changed = (made != values).view(*made.shape[:2], -1).any(-1).any(0)
        spared.extend(changed[index < 4].tolist())
        disturbed.extend(changed[index >= 4].tolist())
        return made

    embedding._disturbed = watched
    model([Segment("x", whole, grid, target=kind != "context"), Segment("y", torch.randn(300, 1, 3), (1, 1, 1))])
    assert spared and not any(spared)
    assert disturbed and all(disturbed)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (dict(clean_steps=1), "clean_steps is 1: with context_noise 0 nothing that is read is noisy, so that no steps"),
        (dict(clean_steps=4, context_noise=0.1), "clean_steps is 4: it must be fewer than the grid's steps, 4"),
        (dict(clean_steps=-1, context_noise=0.1), "clean_steps is -1: "),
    ],
)
def test_steps_that_cannot_be_spared_are_told(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"modalities.x.{sentence}")):
        build({"x": codes(grid=(4, 1, 2), **options)})


@pytest.mark.parametrize("element", ["continuous", "discrete"])
@pytest.mark.parametrize("objective", ["next_block", "block_diffusion"])
def test_context_noise_disturbs_what_is_read_in_training(objective: str, element: str) -> None:
    """Not in evaluation mode, and not the targets."""
    kind = codes(50, (2, 1, 1), 1) if element == "discrete" else series(grid=(2, 1, 1))
    kind = kind | (diffusion("mask") if objective == "block_diffusion" else {}) | {"context_noise": 0.4}
    model = build({"x": kind})
    embedding = model.embeddings["x"]
    rows = 4000
    values = torch.randint(0, 50, (rows, 2)) if element == "discrete" else torch.randn(rows, 2, 3) * 3
    segment = Segment("x", values, (2, 1, 1))
    seen: list[Tensor] = []
    embed = embedding.embed

    def watched(values: Tensor, observed: Tensor) -> Tensor:
        seen.append(values)
        return embed(values, observed)

    def aimed(hidden: Tensor, target: Tensor, observed: Tensor) -> Tensor:
        targets.append(target)
        return loss(hidden, target, observed)

    embedding.embed = watched
    targets: list[Tensor] = []
    loss = model.heads["x"].loss
    model.heads["x"].loss = aimed
    model([segment])
    assert all(any(torch.equal(x, y) for y in (values, values[:, :1], values[:, [0, 0]])) for x in seen)
    seen.clear()
    targets.clear()
    model.train()([segment])
    assert torch.equal(targets[0], values)
    read = seen[-1][:, -1]  # the first element is the only one that is read
    if element == "discrete":
        wrong = (read != values[:, 0]).double().mean()
        assert abs(wrong - 0.2 * 49 / 50) < 5 * (0.16 / rows) ** 0.5
    else:
        # (1 - s) x + s e with s uniform on (0, 0.4): E[(y - x)^2] = E[s^2] (Var x + 1)
        spread = (read - values[:, 0]).square().mean()
        assert abs(spread / (0.16 / 3 * 10) - 1) < 0.1
        slope = (read * values[:, 0]).mean() / values[:, 0].square().mean()
        assert abs(slope - 0.8) < 0.02


# --- bodies and files -------------------------------------------------------------------------------------------------


@every_noise
@pytest.mark.parametrize("body", ["llama", "gpt2", "qwen3"])
def test_a_pretrained_body_starts_undisturbed(body: str, noise: str) -> None:
    """Neither coordinates nor levels add anything at first."""
    options = {key: value for key, value in toy_backbones()[body].items() if key != "model_type"}
    pretrained = AutoModel.from_config(CONFIG_MAPPING[body](**options))
    perturb(pretrained, 0.1)
    model = UnimodalARForGeneration.from_backbone(pretrained, {"x": vectors(noise, "whole", "random")}).eval()
    assert model.backbone.coordinates is not None and (model.backbone.level is None) == (noise == "mask")
    segment = Segment("x", patches(1), GRID)
    made = made_noise(noise, segment.values, model.layout("x", GRID))
    with noise_as(model, made), backbone_inputs(model) as inputs:
        hidden = full_hidden(model, [segment])
    alone = pretrained.eval()(
        inputs_embeds=inputs[0].embeds, attention_mask=torch.zeros(1, 1, N, N), position_ids=torch.arange(N)[None]
    )
    torch.testing.assert_close(hidden, alone.last_hidden_state, atol=1e-6, rtol=1e-6)


SAVED = [(body, noise) for body in ("native", "llama", "gpt2") for noise in NOISES]


def saved_model(body: str, noise: str) -> Any:
    element = vectors(noise, 2, "random") if noise == "gaussian" else codes(5, GRID, 2) | diffusion(noise)
    return build({"x": element, "label": label(null_probability=0.1)}, body)


def outcome(model: Any, noise: str) -> list[Tensor]:
    """Losses and samples."""
    torch.manual_seed(0)
    values = patches(2) if noise == "gaussian" else torch.randint(0, 5, (2, N))
    loss = model([labels(1, 2), Segment("x", values, GRID)]).element_losses["x"]
    seed = torch.Generator().manual_seed(2)
    drawn = model.generate([labels(1, 2)], "x", steps=2, guidance_scale=2.0, generator=seed)
    return [loss.detach(), drawn.values]


CHILD = """
import json, sys, torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
from transformers import AutoModel
import unimodal_ar
from tests.test_block_diffusion import SAVED, outcome

root, report = sys.argv[1], {}
for body, noise in SAVED:
    model, info = AutoModel.from_pretrained(f"{root}/{body}-{noise}", output_loading_info=True)
    expected = torch.load(f"{root}/{body}-{noise}.pt")
    same = [torch.equal(one, two) for one, two in zip(outcome(model, noise), expected)]
    strays = sorted(map(str, [*info["missing_keys"], *info["unexpected_keys"]]))
    report[f"{body}-{noise}"] = [same, strays]
print(json.dumps(report))
"""


def test_a_fresh_process_computes_and_draws_the_same(tmp_path: Path) -> None:
    for body, noise in SAVED:
        model = saved_model(body, noise)
        model.save_pretrained(tmp_path / f"{body}-{noise}")
        torch.save(outcome(model, noise), tmp_path / f"{body}-{noise}.pt")
    repository = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": repository}
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repository)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report == {f"{body}-{noise}": [[True, True], []] for body, noise in SAVED}
