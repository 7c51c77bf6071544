"""Drawing by block diffusion: passes over a cache that they do not change, and what a sample depends on."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

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
    noise_as,
    predicting,
    series,
)
from unimodal_ar import Layout, Segment
from unimodal_ar.generation.configuration import Steps
from unimodal_ar.generation.decoding import CachedDecoding
from unimodal_ar.noise import SampleNoise
from unimodal_ar.objectives.gaussian_noise import FlowSampler, GaussianNoise
from unimodal_ar.objectives.levels import parse_levels
from unimodal_ar.objectives.noise import Noisy
from unimodal_ar.sequence import Inputs

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


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@dataclass
class Step:
    """A denoising pass: what went in, what came out, and what the backbone was called with."""

    noisy: Noisy
    states: tuple[Tensor, ...]
    inputs: Inputs


@contextmanager
def passes(model: Any) -> Iterator[list[list[Step]]]:
    """Collects the denoising passes of each block that is drawn."""
    noise, found = model.objectives["x"].noise, []
    draw = noise.draw
    with backbone_inputs(model) as inputs:

        def recorded(restore: Any, *args: Any, **kwargs: Any) -> Tensor:
            steps: list[Step] = []
            found.append(steps)

            def spy(noisy: Noisy) -> tuple[Tensor, ...]:
                states = restore(noisy)
                steps.append(Step(noisy, states, inputs[-1]))
                return states

            return draw(spy, *args, **kwargs)

        noise.draw = recorded
        try:
            yield found
        finally:
            del noise.draw


def joined(blocks: list[list[Step]], number: int) -> tuple[list[Step], Noisy]:
    """Pass `number` of every block (its last one, where there are fewer), and their noise as that of all blocks."""
    steps = [block[min(number, len(block) - 1)] for block in blocks]
    fields = [name for name, x in vars(steps[0].noisy).items() if x is not None]
    parts: Any = {name: torch.cat([getattr(step.noisy, name) for step in steps], 1) for name in fields}
    return steps, Noisy(**parts)


def without_context(model: Any) -> Any:
    """The same model where every label looks like the null vector."""
    free = copy.deepcopy(model)
    with torch.no_grad():
        embedding = free.embeddings["label"]
        embedding.table.weight.copy_(embedding.null.expand_as(embedding.table.weight))
    return free


def placed(step: Step, name: str, side: int, rows: int) -> Tensor:
    """Coordinates or numbers of the noisy positions: [rows, n, ...]."""
    found = getattr(step.inputs, name)[:, -step.states[0].shape[1] :]
    return found.expand(rows, *found.shape[1:]) if len(found) == 1 else found.chunk(len(step.states))[side]


def compare(model: Any, blocks: list[list[Step]], before: list[Segment], drawn: Segment, first: int = 0) -> None:
    """Every pass equals the noisy copies of one two-stream pass over the finished sequence that is given its noise.
    `first`: how many elements were given, as whole blocks."""
    bodies = [model] if len(blocks[0][0].states) == 1 else [model, without_context(model)]
    offset, rows = sum(segment.num_elements for segment in before), drawn.batch_size
    places = slice(offset + first, offset + drawn.num_elements)
    for number in range(max(map(len, blocks))):
        steps, noisy = joined(blocks, number)
        for side, body in enumerate(bodies):
            with noise_as(body, lengthened(noisy, first)), backbone_inputs(body) as inputs:
                hidden = full_hidden(body, [*before, drawn])[:, places]
            cached = torch.cat([step.states[side] for step in steps], 1)
            torch.testing.assert_close(cached, hidden, atol=1e-5, rtol=1e-5)
            assert hidden.std() > 0.1
            for name in ("coords", "position_ids"):
                full = getattr(inputs[0], name)[:, places]
                cached = torch.cat([placed(step, name, side, rows) for step in steps], 1)
                assert torch.equal(cached, full.expand_as(cached))


# --- the cache --------------------------------------------------------------------------------------------------------


@every_layout
@every_noise
@every_backbone
def test_passes_over_the_cache_equal_one_full_pass(backbone: str, noise: str, order: str, block: Any) -> None:
    model = build({"x": vectors(noise, block, order), "label": label()}, backbone)
    with passes(model) as blocks:
        drawn = model.generate([labels(0, 3)], "x", steps=2, num_samples=2, generator=seeded())
    assert len(blocks) == model.layout("x", GRID).num_blocks
    compare(model, blocks, [labels(0, 0, 3, 3)], drawn)


@every_noise
@every_backbone
def test_passes_with_guidance_equal_full_passes_with_and_without_context(backbone: str, noise: str) -> None:
    modalities = {"x": vectors(noise, 5, "random"), "label": label(null_probability=0.2), "note": codes(grid=(2, 1, 1))}
    model = build(modalities, backbone)
    note = Segment("note", torch.randint(0, 3, (2, 2)), (2, 1, 1), target=False)
    with passes(model) as blocks:
        drawn = model.generate([note, labels(0, 3)], "x", steps=2, guidance_scale=2.5, generator=seeded())
    assert (blocks[0][0].states[0] - blocks[0][0].states[1]).abs().max() > 1e-2
    compare(model, blocks, [note, labels(0, 3)], drawn)


@every_noise
@every_backbone
def test_passes_after_given_blocks_with_gaps_and_padding(backbone: str, noise: str) -> None:
    """With covariates and a table of positions, without a start and without context."""
    grid = (9, 1, 1)
    options: dict[str, Any] = dict(covariates=2, absolute_positions=True, start="none")
    model = build({"x": vectors(noise, 3, grid=grid, **options)}, backbone)
    observed = torch.tensor([[1] * 6 + [0] * 3, [0, 0, 1, 1, 0, 1, 0, 0, 0], [0] * 4 + [1, 1] + [0] * 3]).bool()
    values = torch.where(observed[..., None], torch.randn(3, 9, 3), torch.nan)
    given = Segment("x", values, grid, observed=observed, covariates=torch.randn(3, 9, 2))
    with passes(model) as blocks:
        drawn = model.generate([], "x", given=given, known_blocks=2, steps=2, generator=seeded())
    assert len(blocks) == 1 and drawn.observed is not None
    assert torch.equal(drawn.observed, observed | (torch.arange(9) > 5))
    compare(model, blocks, [], drawn, first=6)


@every_noise
@every_backbone
def test_a_segment_drawn_after_another(backbone: str, noise: str) -> None:
    """Block diffusion after next-block prediction, and the other way round."""
    y = series(grid=(4, 1, 1), block=3)
    model = build({"x": vectors(noise, 2, grid=(5, 1, 1)), "y": y, "label": label()}, backbone)
    earlier = Segment("y", torch.randn(2, 4, 3), (4, 1, 1))
    with passes(model) as blocks:
        drawn = model.generate([labels(1, 2), earlier], "x", steps=2, generator=seeded())
    # Next-block prediction takes 4 positions, and one that shows the last block to what follows.
    whole = Segment("y", earlier.values, (4, 1, 1))
    steps, noisy = joined(blocks, 1)
    with noise_as(model, noisy):
        hidden = full_hidden(model, [labels(1, 2), whole, drawn])
    before = hidden.shape[1] - 5 - 4  # the clean copies of two blocks stand last
    torch.testing.assert_close(
        torch.cat([step.states[0] for step in steps], 1), hidden[:, before : before + 5], atol=1e-5, rtol=1e-5
    )
    with backbone_inputs(model):
        later = model.generate([labels(1, 2), drawn], "y", generator=seeded())
    with noise_as(model, noisy):
        hidden = full_hidden(model, [labels(1, 2), drawn, later])[:, 1 + 2 * 5 :]
    found = model.heads["y"].mean(hidden[:, predicting(model.layout("y", (4, 1, 1)))])
    torch.testing.assert_close(later.values, found, atol=1e-5, rtol=1e-5)


def stored(cache: Any) -> list[Tensor]:
    layers = [layer for layer in cache.layers if layer.is_initialized]
    return [tensor.clone() for layer in layers for tensor in (layer.keys, layer.values)]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@every_noise
@every_backbone
def test_a_pass_changes_nothing_but_what_was_held(
    backbone: str, noise: str, guidance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every key and value that was stored stays as it is, and each clean block is stored once, with a pass of the next
    one: as many calls of the backbone as there are passes."""
    model = build({"x": vectors(noise, 5), "label": label(null_probability=0.1)}, backbone)
    lengths: list[tuple[int, int, int]] = []
    run = CachedDecoding._run

    def checked(self: CachedDecoding, parts: Any, commit: bool) -> Any:
        held = sum(part.embeds.shape[1] for part in self.held[0])
        before, placed = stored(self.cache), self.cursor.length
        result = run(self, parts, commit)
        after = stored(self.cache)
        size = before[0].shape[-2] if before else 0
        assert not commit
        assert after[0].shape[-2] == size + held == self.cursor.length == placed + held
        assert all(torch.equal(one, two[..., :size, :]) for one, two in zip(before, after, strict=False))
        assert self.cache.keep is None
        lengths.append((size, held, parts[0][0].embeds.shape[1]))
        return result

    monkeypatch.setattr(CachedDecoding, "_run", checked)
    with backbone_inputs(model) as inputs:
        model.generate([labels(1, 2)], "x", steps=3, guidance_scale=guidance, generator=seeded())
    expected = [(0, 1, 5), (1, 0, 5), (1, 0, 5), (1, 5, 5), (6, 0, 5), (6, 0, 5), (6, 5, 2)]
    expected += [(11, 0, 2)] * (1 if noise == "mask" else 2)  # of two elements more than two passes would be idle
    assert lengths == expected and len(inputs) == len(expected)


# --- what a sample depends on -----------------------------------------------------------------------------------------

SAMPLERS: list[tuple[str, dict[str, Any]]] = [
    ("mask", {}),
    ("mask", {"sampler": {"kind": "ancestral"}, "steps": 3}),
    ("mask", {"sampler": {"kind": "confidence"}, "steps": 3}),
    ("mask", {"sampler": {"kind": "threshold", "probability": 0.6}}),
    ("mask", {"sampler": {"kind": "entropy_bound", "bound": 0.7}}),
    ("gaussian", {"steps": 3}),
    ("gaussian", {"sampler": {"kind": "heun"}, "steps": 3}),
]
every_sampler = pytest.mark.parametrize(("noise", "sampling"), SAMPLERS, ids=str)


def sampled(noise: str, block: Any = 4, order: str = "raster", **more: Any) -> Any:
    """Codes with masks, vectors with Gaussian noise."""
    kind = codes(3, GRID, block, order) if noise == "mask" else series(grid=GRID, block=block, order=order)
    return build({"x": kind | diffusion(noise) | more, "label": label(null_probability=0.2)})


@every_sampler
def test_a_sample_does_not_depend_on_the_batch(noise: str, sampling: dict[str, Any]) -> None:
    model = sampled(noise)
    sampling = sampling | {"guidance_scale": 1.5}
    rows = range(5)
    with passes(model) as blocks:
        together = model.generate([labels(*rows)], "x", generator=SampleNoise(7, torch.arange(5)), **sampling).values
    counts = []
    for row in rows:
        with passes(model) as own:
            alone = model.generate([labels(row)], "x", generator=SampleNoise(7, torch.tensor([row])), **sampling)
        torch.testing.assert_close(alone.values, together[row : row + 1], atol=1e-5, rtol=1e-5)
        counts.append([len(block) for block in own])
    assert [len(block) for block in blocks] == [max(column) for column in zip(*counts, strict=True)]
    if sampling.get("sampler", {}).get("kind") in ("threshold", "entropy_bound"):
        assert any(len(set(column)) > 1 for column in zip(*counts, strict=True))  # some are done before others
    few, more = (
        model.generate([labels(1)], "x", num_samples=s, generator=seeded(7), **sampling).values for s in (2, 5)
    )
    torch.testing.assert_close(few, more[:2], atol=1e-5, rtol=1e-5)
    assert len(more.unique(dim=0)) > 1


@every_sampler
def test_stream_ends_in_what_generate_returns(noise: str, sampling: dict[str, Any]) -> None:
    model = sampled(noise, "row", "random")
    layout = model.layout("x", GRID)
    final = model.generate([labels(0, 1)], "x", num_samples=2, generator=seeded(), **sampling)
    parts = list(model.stream([labels(0, 1)], "x", num_samples=2, generator=seeded(), **sampling))
    assert len(parts) == layout.num_blocks and parts[-1].observed is None
    assert torch.equal(parts[-1].values, final.values)
    for number, part in enumerate(parts):
        observed = layout.scatter((layout.block <= number)[None]).expand(4, -1)
        assert torch.equal(part.element_observed, observed)
        assert torch.equal(part.values[observed], final.values[observed])


@every_noise
@every_backbone
def test_padding_changes_no_continuation(backbone: str, noise: str) -> None:
    model = build({"x": vectors(noise, 2, grid=(12, 1, 1), absolute_positions=True), "label": label()}, backbone)
    values, observed = torch.randn(2, 4, 3), torch.tensor([[1, 1, 0, 1], [0, 1, 0, 1]]).bool()

    def continuation(pad: int) -> Tensor:
        longer = torch.cat([torch.full((2, pad, 3), torch.nan), values, torch.zeros(2, 3, 3)], 1)
        known = torch.cat([torch.zeros(2, pad), observed, torch.zeros(2, 3)], 1).bool()
        given = Segment("x", longer, (pad + 7, 1, 1), observed=known)
        drawn = model.generate(
            [labels(1, 2)], "x", given=given, known_blocks=(4 + pad) // 2, steps=3, generator=seeded()
        )
        return drawn.values[:, -3:]

    torch.testing.assert_close(continuation(0), continuation(4), atol=1e-4, rtol=1e-4)


# --- what is given ----------------------------------------------------------------------------------------------------


@every_layout
@every_noise
def test_any_subset_can_be_given(noise: str, order: str, block: Any) -> None:
    """It stays as it is, in orders that are not random with another subset in every example, with and without
    guidance."""
    model = sampled(noise, block, order)
    observed = torch.rand(6, N) < torch.tensor([0, 0.2, 0.5, 0.8, 1, 0.5])[:, None]
    if order == "random":
        observed = observed[2].expand(6, -1)
    values = torch.randint(0, 3, (6, N)) if noise == "mask" else torch.randn(6, N, 3)
    unknown = 2 if noise == "mask" else torch.nan
    held = torch.where(observed if noise == "mask" else observed[..., None], values, unknown)
    given = Segment("x", held, GRID, observed=observed)
    for guidance in (1.0, 2.0):
        drawn = model.generate(
            [labels(*range(5), 0)],
            "x",
            given=given,
            steps=2,
            num_samples=2,
            guidance_scale=guidance,
            generator=seeded(),
        )
        twice = observed.repeat_interleave(2, 0)
        assert torch.equal(drawn.values[twice], values.repeat_interleave(2, 0)[twice])
        assert drawn.observed is None
        if noise == "gaussian":
            assert drawn.values.isfinite().all()
    parts = list(model.stream([labels(*range(5), 0)], "x", given=given, steps=2, generator=seeded()))
    assert torch.equal(parts[-1].values[observed], values[observed])


@every_noise
def test_what_is_given_is_seen_by_the_rest_of_its_block(noise: str) -> None:
    """And by later blocks, but not by earlier ones."""
    model = sampled(noise, 4)
    observed = torch.zeros(1, N, dtype=torch.bool)
    observed[0, 6] = True
    drawn = []
    for value in (0, 2):
        values = torch.zeros(1, N, dtype=torch.long) + value if noise == "mask" else torch.full((1, N, 3), value * 1.0)
        given = Segment("x", values, GRID, observed=observed)
        sampling = dict(num_samples=40, steps=4, generator=seeded())
        drawn.append(model.generate([labels(1)], "x", given=given, **sampling).values.float())
    same = (drawn[0] == drawn[1]).view(40, N, -1).all(-1).all(0)
    assert same[:4].all() and not same[4:].any()


@pytest.mark.parametrize(("steps", "expected"), [(None, [2, 1]), (2, [2, 1]), (1, [2])])
def test_what_is_hidden_at_first_is_spread_over_the_passes(steps: int | None, expected: list[int]) -> None:
    """With two of four elements known: with a pass for every element never two at once, and no pass for nothing."""
    model = sampled("mask", 4)
    observed = torch.zeros(1, N, dtype=torch.bool)
    observed[0, [5, 7, 8]] = True
    given = Segment("x", torch.zeros(1, N, dtype=torch.long), GRID, observed=observed)
    with passes(model) as blocks:
        model.generate([labels(1)], "x", given=given, steps=steps, num_samples=3, generator=seeded())
    hidden = [step.noisy.masked.sum(1).tolist() for step in blocks[1] if step.noisy.masked is not None]
    assert hidden == [[count] * 3 for count in expected]


@every_noise
def test_cells_known_in_part_come_in_their_turn(noise: str) -> None:
    """In a random order whole known cells come first and are not drawn; a part of a cell is heeded when it is drawn."""
    grid = (1, 4, 4)
    kind = (
        codes(3, grid, {"cell": [1, 2, 2]}, "random")
        if noise == "mask"
        else series(3, grid, {"cell": [1, 2, 2]}, "random")
    )
    model = build({"x": kind | diffusion(noise)})
    observed = torch.zeros(2, 16, dtype=torch.bool)
    observed[:, [10, 11, 14, 15]] = True  # the last cell
    observed[:, [0, 7]] = True
    values = torch.randint(0, 3, (2, 16)) if noise == "mask" else torch.randn(2, 16, 3)
    given = Segment("x", values, grid, observed=observed)
    with passes(model) as blocks:
        drawn = model.generate([], "x", given=given, steps=2, generator=seeded())
    assert len(blocks) == 3 and torch.equal(drawn.values[observed], values[observed])
    # A clean copy of the known cell goes with the first pass.
    assert blocks[0][0].inputs.embeds.shape[1] == 8
    assert sorted(blocks[0][0].inputs.coords[0, :4, 1:].tolist()) == [[2, 2], [2, 3], [3, 2], [3, 3]]


# --- Gaussian noise ---------------------------------------------------------------------------------------------------


class Direct:
    """In place of decoding and head: the model is a function of (x, t)."""

    def __init__(self, velocity: Any) -> None:
        self.velocity, self.progress = velocity, 0.0
        self.seen: list[tuple[Tensor, float]] = []

    def restore(self, noisy: Noisy) -> tuple[Tensor, ...]:
        assert noisy.level is not None and (noisy.level == noisy.level[0, 0]).all()
        self.seen.append((noisy.values, float(noisy.level[0, 0])))
        return (self.velocity(noisy.values, float(noisy.level[0, 0])),)

    def guide(self, states: tuple[Tensor, ...]) -> Tensor:
        return states[0]

    def mean(self, hidden: Tensor) -> Tensor:
        return hidden


MEAN, SPREAD = 1.5, 0.4


def velocity(x: Tensor, t: float) -> Tensor:
    """E[e - x0 | x_t = x] where x0 is normal: of mean MEAN and standard deviation SPREAD."""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    off = x - (1 - t) * MEAN
    return t / variance * off - (MEAN + (1 - t) * SPREAD**2 / variance * off)


def flow(steps: int, temperature: float = 1.0, known: Any = None, **sampler: Any) -> tuple[Any, Direct]:
    direct = Direct(velocity)
    values = torch.full((3, 50, 2), 7.0, dtype=torch.float64)
    fixed = torch.zeros(3, 50, dtype=torch.bool) if known is None else known
    decoding: Any = direct
    drawn = GaussianNoise(None).draw(
        direct.restore,
        decoding,
        direct,
        values,
        fixed,
        alone=False,
        generator=SampleNoise(0, torch.arange(3)),
        steps=Steps(steps, steps),
        sampler=FlowSampler(**sampler),
        temperature=temperature,
    )
    return drawn, direct


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
@pytest.mark.parametrize(("kind", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_to_the_flow_at_their_order(kind: str, order: int, shift: float) -> None:
    """The flow of a normal distribution takes noise z to MEAN + SPREAD z."""
    errors = []
    for passes in (200, 400, 800):
        drawn, direct = flow(passes, kind=kind, shift=shift)
        start = direct.seen[0][0]
        assert abs(start.mean()) < 0.2 and abs(start.std() - 1) < 0.1
        errors.append((drawn - (MEAN + SPREAD * start)).abs().max())
        assert len(direct.seen) == passes
    rates = [float(torch.log2(a / b)) for a, b in pairwise(errors)]
    assert all(abs(rate - order) < 0.3 for rate in rates), rates  # of shift 3 the last steps are the longest
    assert errors[-1] < (0.02 if order == 1 else 5e-4)


@pytest.mark.parametrize("shift", [1.0, 2.5])
@pytest.mark.parametrize("kind", ["euler", "heun"])
def test_solvers_against_a_straight_line_reference(kind: str, shift: float) -> None:
    drawn, direct = flow(7, kind=kind, shift=shift)
    steps = 7 if kind == "euler" else 4
    times = [1 - i / steps for i in range(steps + 1)]
    times = [shift * t / (1 + (shift - 1) * t) for t in times]
    assert times[0] == 1 and times[-1] == 0
    x = direct.seen[0][0]
    for i in range(steps):
        dt = times[i + 1] - times[i]
        first = velocity(x, times[i])
        slope = first
        if kind == "heun" and i > 0:  # an odd number of passes: the first step is Euler's
            slope = (first + velocity(x + dt * first, times[i + 1])) / 2
        x = x + dt * slope
    torch.testing.assert_close(drawn, x)
    met = times[:-1] if kind == "euler" else times
    torch.testing.assert_close(torch.tensor(sorted({t for _, t in direct.seen})), torch.tensor(met[::-1]))


def test_one_step_of_euler_is_the_mean() -> None:
    torch.testing.assert_close(flow(1)[0], torch.full((3, 50, 2), MEAN, dtype=torch.float64))
    torch.testing.assert_close(flow(1, kind="heun")[0], flow(1)[0])


def test_the_shift_spends_steps_on_noise() -> None:
    even, much = (FlowSampler(shift=shift).times(4) for shift in (1.0, 3.0))
    assert even == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert much == pytest.approx([1.0, 0.9, 0.75, 0.5, 0.0])


def test_what_is_known_passes_through_the_same_times() -> None:
    known = torch.zeros(3, 50, dtype=torch.bool)
    known[:, ::7] = True
    drawn, direct = flow(5, known=known)
    start = flow(5)[1].seen[0][0]
    for x, t in direct.seen:
        torch.testing.assert_close(x[known], (1 - t) * 7 + t * start[known])
    assert (drawn[known] == 7).all() and not (drawn[~known] == 7).any()
    torch.testing.assert_close(drawn[~known], flow(5)[0][~known])


@every_backbone
def test_temperature_0_is_one_sample(backbone: str) -> None:
    model = build({"x": vectors("gaussian", 5), "label": label()}, backbone)
    sampling: dict[str, Any] = dict(num_samples=4, steps=3)
    cold = model.generate([labels(1)], "x", temperature=0.0, generator=seeded(), **sampling).values
    other = model.generate([labels(1)], "x", temperature=0.0, generator=seeded(9), **sampling).values
    warm = model.generate([labels(1)], "x", generator=seeded(), **sampling).values
    assert torch.equal(cold, other) and torch.equal(cold, cold[:1].expand_as(cold))
    assert (warm - warm[:1])[1:].abs().amax((1, 2)).min() > 1e-2


def test_temperature_scales_the_first_noise() -> None:
    one, half = (flow(3, temperature)[1].seen[0][0] for temperature in (1.0, 0.5))
    torch.testing.assert_close(half, one / 2)


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_is_linear_in_the_velocity(scale: float) -> None:
    model = build({"x": vectors("gaussian", 5), "label": label(null_probability=0.2)})
    with passes(model) as blocks:
        drawn = model.generate([labels(0, 3)], "x", steps=1, guidance_scale=scale, generator=seeded()).values
    steps, noisy = joined(blocks, 0)
    given, free = (model.heads["x"].mean(torch.cat([step.states[side] for step in steps], 1)) for side in (0, 1))
    torch.testing.assert_close(drawn, noisy.values - (free + scale * (given - free)), atol=1e-5, rtol=1e-5)
    assert (given - free).abs().max() > 1e-2


# --- numbers of passes ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "steps", "sampler", "expected"),
    [
        ("gaussian", None, None, [20] * 4),
        ("gaussian", [8, 4], None, [8, 7, 5, 4]),
        ("gaussian", [2, 6], None, [2, 3, 5, 6]),
        ("gaussian", 5, {"kind": "heun"}, [5] * 4),
        ("gaussian", 6, {"kind": "heun"}, [6] * 4),
        ("mask", None, None, [3] * 4),
        ("mask", 2, None, [2] * 4),
        ("mask", 9, None, [3] * 4),  # more than elements would be idle
        ("mask", [3, 1], None, [3, 2, 2, 1]),
    ],
)
def test_steps_are_passes(noise: str, steps: Any, sampler: Any, expected: list[int]) -> None:
    model = sampled(noise, 3)
    with passes(model) as blocks, backbone_inputs(model) as inputs:
        model.generate([labels(1, 2)], "x", steps=steps, sampler=sampler, generator=seeded())
    assert [len(block) for block in blocks] == expected
    assert len(inputs) == sum(expected)
    saved = copy.deepcopy(model)
    saved.generation_config = saved.generation_config.updated(steps=steps, sampler=sampler)
    with passes(saved) as again:
        saved.generate([labels(1, 2)], "x", generator=seeded())
    assert [len(block) for block in again] == expected


@pytest.mark.parametrize(("block", "steps", "expected"), [(4, 2, [13, 13, 7, 7, 1, 1]), ("whole", 4, [13, 9, 5, 1])])
def test_steps_of_a_head_follow_the_blocks(block: Any, steps: int, expected: list[int]) -> None:
    """Or the passes of the only one."""
    kind = series(grid=GRID, block=block, head={"kind": "flow"}) | diffusion("mask")
    model = build({"x": kind})
    asked: list[int] = []
    sample = model.heads["x"].sample

    def counted(*args: Any, head_steps: int, **options: Any) -> Tensor:
        asked.append(head_steps)
        return sample(*args, head_steps=head_steps, **options)

    model.heads["x"].sample = counted
    model.generate([], "x", steps=steps, head_steps=[13, 1], generator=seeded())
    assert asked == expected


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("noise", "sampling", "message"),
    [
        ("mask", dict(sampler={"kind": "euler"}), "sampler is {'kind': 'euler'}; for mask noise it must be a mapping"),
        ("mask", dict(sampler={"kind": "threshold", "probability": 2}), "sampler.probability"),
        ("mask", dict(sampler={"kind": "ancestral", "curve": "linear"}), "sampler has an unknown key 'curve'"),
        ("mask", dict(steps=0), "steps is 0; it must be an integer >= 1, a pair"),
        ("mask", dict(steps=[1, 2, 3]), r"steps is [1, 2, 3]; it must be an integer"),
        ("mask", dict(steps=True), "steps is True; it must be an integer"),
        ("mask", dict(head_steps=3), "head_steps is 3; CategoricalHead draws in one step"),
        ("gaussian", dict(sampler={"kind": "confidence"}), "sampler is {'kind': 'confidence'}; for Gaussian noise it"),
        ("gaussian", dict(sampler={"kind": "euler", "shift": 0}), "sampler.shift"),
        ("gaussian", dict(top_k=3), "top_k is 3; RegressionHead draws real vectors and takes no top_k"),
        ("gaussian", dict(temperature=-1.0), "temperature is -1.0"),
        ("gaussian", dict(head_steps=[3, 1]), "head_steps is [3, 1]; RegressionHead draws in one step"),
    ],
)
def test_what_cannot_be_drawn_is_refused(noise: str, sampling: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sampled(noise).generate([labels(1)], "x", **sampling)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(start="context"), "modalities.x.start is 'context'; under block diffusion no position reads another"),
        (dict(target_positions="fourier"), "modalities.x.target_positions is 'fourier'; under block diffusion every"),
        (diffusion("gaussian"), "modalities.x.objective.noise is 'gaussian', which is for continuous elements"),
        (diffusion("salt"), "modalities.x.objective.noise"),
        (diffusion("mask", levels={"kind": "beta"}), "it must be a mapping whose 'kind' is one of ['cosine'"),
        (diffusion("mask", levels={"kind": "uniform", "low": 0.5, "high": 0.4}), "low is 0.5 and high 0.4; high must"),
        (diffusion("mask", lebels={}), "did you mean 'levels'?"),
    ],
)
def test_options_that_do_not_go_together_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build({"x": codes() | diffusion("mask") | change})


def test_gaussian_noise_wants_a_regression() -> None:
    for head in ({"kind": "mixture"}, {"kind": "regression", "loss": "mae"}):
        with pytest.raises(ValueError, match="with Gaussian noise it predicts velocities, so it must be a regression"):
            build({"x": series(head=head) | diffusion("gaussian")})


def test_a_grid_of_one_block_without_a_start_is_refused() -> None:
    model = build({"x": codes(block=4, start="none") | diffusion("mask")})
    with pytest.raises(ValueError, match="a single block; with start 'none' it needs two"):
        model([Segment("x", torch.zeros(1, 4, dtype=torch.long), (4, 1, 1))])


def test_levels_are_saved_in_full() -> None:
    model = build({"x": codes() | diffusion("mask", levels={"kind": "truncated_normal"})})
    saved = model.config.modalities["x"]["objective"]["levels"]
    assert saved == {"kind": "truncated_normal", "mean": 1.0, "std": 0.25, "low": 0.7}
    assert model.objectives["x"].noise.levels == parse_levels(saved)


def test_layouts_agree_with_the_models() -> None:
    """The layouts of these tests hold what they are named for: a short last block, cells, blocks that grow."""
    sizes = [build({"x": vectors("mask", block, order)}).layout("x", GRID).block_sizes for order, block in LAYOUTS]
    assert sizes[2] == [5, 5, 2] and sizes[4] == [2] * 6 and sizes[7] == [1, 3, 4, 3, 1]
    assert isinstance(Layout.from_grid(GRID), Layout)
