"""Targets longer than a window: each window is what `generate` draws when it is given what is carried over, and of a
chain that can be solved the samples follow the law."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import (
    P_VALUE,
    all_sequences,
    backbone_inputs,
    build,
    chi_square,
    codes,
    diffusion,
    frequencies,
    label,
    labels,
    series,
)
from unimodal_ar import Segment
from unimodal_ar.noise import SampleNoise

V = 3

# Name -> modality on the grid (4, 1, 2), backbone.
MODELS: dict[str, tuple[dict[str, Any], str]] = {
    "token": (codes(V, (4, 1, 2)), "native"),
    "token, additive positions": (codes(V, (4, 1, 2)), "gpt2"),
    "frame": (codes(V, (4, 1, 2), "frame"), "native"),
    "first frame": (codes(V, (4, 1, 2), None, "first_frame"), "native"),
    "patch": (series(3, (4, 1, 2), head={"kind": "mixture"}), "native"),
    "random": (codes(V, (4, 1, 2), 1, "random"), "native"),
    "mask": (codes(V, (4, 1, 2), 2, **diffusion("mask")), "native"),
    "mask, one block": (codes(V, (4, 1, 2), "whole", **diffusion("mask")), "llama"),
    "gaussian": (series(3, (4, 1, 2), 2, **diffusion("gaussian")), "native"),
}
each_model = pytest.mark.parametrize("name", MODELS)


def toy(name: str = "token", null: float = 0.2, **more: Any) -> Any:
    modality, backbone = MODELS[name]
    # With wilder weights a chain of vectors blows rounding up.
    return build(
        {"label": label(null_probability=null), "x": modality | more}, backbone, 0.1 if name == "patch" else 0.3
    )


def noise(rows: int, seed: int = 7) -> SampleNoise:
    return SampleNoise(seed, torch.arange(rows))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def reference(
    model: Any, context: list[Segment], steps: int, window: int, overlap: int, sink: int, given: Segment | None = None
) -> Tensor:
    """The same, window by window, by calls of `generate` with what is to be known."""
    rows, width, generator = context[0].batch_size, 2, noise(context[0].batch_size)
    done, values = 0, None
    if given is not None:
        done = int(given.element_observed[0].sum()) // width
        values = given.values[:, : done * width]
    while done < steps:
        first = done < window
        held = list(range(done)) if first else [*range(sink), *range(done - overlap, done)]
        known = None
        if held:
            assert values is not None
            carried = values.unflatten(1, (-1, width))[:, held].flatten(1, 2)
            rest = carried.new_zeros(rows, (window - len(held)) * width, *carried.shape[2:])
            observed = torch.arange(window * width).expand(rows, -1) < len(held) * width
            known = Segment("x", torch.cat([carried, rest], 1), (window, 1, width), observed=observed)
        drawn = model.generate(
            context, "x", grid=(window, 1, width), given=known, generator=generator.child(), guidance_scale=1.5
        ).values
        new = drawn[:, len(held) * width :]
        values = new if values is None else torch.cat([values, new], 1)
        done = values.shape[1] // width
    assert values is not None
    return values[:, : steps * width]


@each_model
@pytest.mark.parametrize(("window", "overlap", "sink"), [(4, 2, 0), (4, 1, 1), (3, 0, 0), (4, 1, 2)])
def test_each_window_is_an_ordinary_call(name: str, window: int, overlap: int, sink: int) -> None:
    model, context = toy(name), [labels(0, 3)]
    expected = reference(model, context, 9, window, overlap, sink)
    arguments: dict[str, Any] = dict(grid=(9, 1, 2), window=window, overlap=overlap, sink=sink, guidance_scale=1.5)
    drawn = model.generate(context, "x", generator=noise(2), **arguments)
    torch.testing.assert_close(drawn.values, expected, atol=1e-5, rtol=1e-5)
    assert drawn.grid == (9, 1, 2) and drawn.observed is None and drawn.target
    other = model.generate(context, "x", generator=noise(2), **(arguments | dict(overlap=abs(overlap - 1))))
    assert not torch.equal(other.values, drawn.values)


@each_model
@pytest.mark.parametrize("known", [1, 2, 3, 4, 7, 9])
def test_a_prompt_may_be_of_any_length(name: str, known: int) -> None:
    model, context = toy(name), [labels(0, 3)]
    values = model.generate(context, "x", grid=(9, 1, 2), window=4, generator=noise(2, 1)).values
    observed = (torch.arange(18) < known * 2).expand(2, -1)
    shape = observed.view(2, 18, *[1] * (values.dim() - 2))
    given = Segment("x", torch.where(shape, values, 0), (9, 1, 2), observed=observed)
    drawn = model.generate(context, "x", given=given, window=4, generator=noise(2), guidance_scale=1.5).values
    torch.testing.assert_close(
        drawn, reference(model, context, 9, 4, 2, 0, given) if known < 9 else values, atol=1e-5, rtol=1e-5
    )
    assert torch.equal(drawn[:, : 2 * known], values[:, : 2 * known])


def test_of_a_long_prompt_only_what_a_window_carries_is_read() -> None:
    model = toy("patch")
    values, observed = torch.randn(1, 18, 3), (torch.arange(18) < 14)[None]

    def continued(*changed: int, sink: int = 0) -> Tensor:
        other = values.clone()
        other[:, list(changed)] += 1
        given = Segment("x", other, (9, 1, 2), observed=observed)
        return model.generate([labels(1)], "x", given=given, window=4, overlap=2, sink=sink, generator=noise(1)).values

    same = continued()[:, 14:]
    assert torch.equal(continued(*range(10))[:, 14:], same)
    assert not torch.equal(continued(10)[:, 14:], same)
    same = continued(sink=1)[:, 14:]
    assert torch.equal(continued(*range(2, 10), sink=1)[:, 14:], same)
    assert not torch.equal(continued(0, sink=1)[:, 14:], same)


# --- the law ----------------------------------------------------------------------------------------------------------


def conditionals(model: Any, length: int) -> np.ndarray:
    """[V, ..., V, length] probabilities of each of `length` elements given those before it, in a window of `length`."""
    every = all_sequences(V, length)
    losses = model([Segment("x", every, (length, 1, 1))]).element_losses["x"]
    return (-losses.double()).exp().detach().numpy().reshape(*[V] * length, length)


@pytest.mark.parametrize("backbone", ["native", "gpt2"])
def test_a_window_of_two_draws_a_markov_chain(backbone: str) -> None:
    """Whose transition is the conditional of a window's second element."""
    model = build({"x": codes(V, (2, 1, 1))}, backbone)
    first, transition = conditionals(model, 2)[:, 0, 0], conditionals(model, 2)[..., 1]
    law = np.einsum("a,ab,bc,cd->abcd", first, transition, transition, transition).flatten()
    drawn = model.generate([], "x", (4, 1, 1), window=2, overlap=1, num_samples=6000, generator=seeded(1)).values
    assert chi_square(frequencies(drawn, V), law) > P_VALUE
    independent = model.generate([], "x", (4, 1, 1), window=2, overlap=0, num_samples=6000, generator=seeded(1)).values
    assert chi_square(frequencies(independent, V), law) < P_VALUE


def test_the_law_of_longer_windows_and_of_a_sink() -> None:
    model = build({"x": codes(V, (3, 1, 1))})
    three = conditionals(model, 3)
    whole = three.prod(-1)
    two_more = whole / whole.sum((1, 2), keepdims=True)  # the second and third given the first
    law = np.einsum("abc,cde->abcde", whole, two_more).flatten()
    arguments: dict[str, Any] = dict(grid=(5, 1, 1), num_samples=8000, window=3, overlap=1)
    drawn = model.generate([], "x", generator=seeded(1), **arguments).values
    assert chi_square(frequencies(drawn, V), law) > P_VALUE
    third = three[..., 2]
    law = np.einsum("abc,acd,ade->abcde", whole, third, third).flatten()
    assert chi_square(frequencies(drawn, V), law) < P_VALUE
    drawn = model.generate([], "x", generator=seeded(1), sink=1, **arguments).values
    assert chi_square(frequencies(drawn, V), law) > P_VALUE


# --- memory and streams -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["token", "frame", "first frame", "mask", "gaussian"])
def test_memory_stays_that_of_a_window(name: str) -> None:
    model = toy(name)
    with backbone_inputs(model) as inputs:
        steps = 2 if name == "gaussian" else None
        model.generate([labels(1)], "x", grid=(200, 1, 2), window=4, steps=steps, generator=noise(1))
    assert len(inputs) >= 200
    assert max(each.length for each in inputs) <= 1 + 4 * 2
    assert max(len(each.pattern.block) for each in inputs) <= 1 + 2 * 4 * 2  # where noisy copies are beside clean ones


@each_model
def test_the_stream_ends_in_what_generate_returns(name: str) -> None:
    model = toy(name)
    arguments: dict[str, Any] = dict(grid=(9, 1, 2), window=4, overlap=1, num_samples=2)  # the last reaches beyond
    final = model.generate([labels(0, 3)], "x", generator=seeded(), **arguments)
    parts = list(model.stream([labels(0, 3)], "x", generator=seeded(), **arguments))
    assert torch.equal(parts[-1].values, final.values) and parts[-1].observed is None
    known = torch.zeros_like(final.element_observed)
    for part in parts:
        assert part.grid == (9, 1, 2) and bool((part.element_observed | ~known).all())  # what was there stays
        known = part.element_observed
        assert torch.equal(part.values[known], final.values[known])
        assert not part.values[~known].any()  # nobody writes to what was handed out
    grown = [int(part.element_observed[0].sum()) for part in parts]
    size = {"token": 1, "token, additive positions": 1, "frame": 2, "patch": 1, "mask": 2, "gaussian": 2}.get(name)
    if size is not None:  # a block at a time, and none too many at the end
        assert grown == list(range(size, 19, size))
    if name != "mask, one block":
        assert not parts[0].element_observed.all()


@each_model
def test_a_sample_depends_on_the_seed_and_its_number_alone(name: str) -> None:
    model = toy(name)
    arguments: dict[str, Any] = dict(grid=(9, 1, 2), window=4, overlap=1)
    together = model.generate([labels(0, 3)], "x", num_samples=3, generator=noise(6), **arguments).values
    assert len(together.flatten(1).unique(dim=0)) == 6
    for row in range(6):
        one = SampleNoise(7, torch.tensor([row]))
        alone = model.generate([labels(0 if row < 3 else 3)], "x", generator=one, **arguments).values
        # Each step adds rounding, which the next ones are fed; without it another batch changes nothing.
        torch.testing.assert_close(alone, together[row : row + 1], atol=1e-4, rtol=1e-4)


def test_where_one_window_holds_the_target_nothing_changes() -> None:
    model = toy()
    for window in (4, 5):
        for arguments in (dict(num_samples=5), dict(num_samples=5, overlap=3, sink=0)):
            rolled = model.generate([labels(1)], "x", generator=seeded(), window=window, **arguments).values
            assert torch.equal(rolled, model.generate([labels(1)], "x", generator=seeded(), num_samples=5).values)


# --- covariates, and what is known elsewhere --------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, diffusion("gaussian"), {"layout": {"order": "raster", "block": "whole"}}])
def test_covariates_go_with_their_steps(options: dict[str, Any]) -> None:
    """Beyond the end they stay as they are in the last step."""
    model = build({"x": series(3, (3, 1, 1), 3 if options else 1, covariates=2) | options})
    covariates = torch.randn(1, 5, 2)
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    given = Segment("x", torch.zeros(1, 5, 3), (5, 1, 1), observed=nothing, covariates=covariates)
    whole = "layout" in options and options["layout"]["block"] == "whole"
    overlap = 0 if whole else 1
    drawn = model.generate([], "x", given=given, window=3, overlap=overlap, generator=noise(1))
    assert torch.equal(drawn.covariates, covariates)
    generator, values = noise(1), torch.zeros(1, 0, 3)
    while values.shape[1] < 5:
        held = overlap if values.shape[1] else 0
        steps = torch.arange(3) + values.shape[1] - held
        before = torch.cat([values[:, values.shape[1] - held :], torch.zeros(1, 3 - held, 3)], 1)
        local = Segment(
            "x",
            before,
            (3, 1, 1),
            observed=(torch.arange(3) < held)[None],
            covariates=covariates[:, steps.clamp(max=4)],
        )
        new = model.generate([], "x", given=local, generator=generator.child()).values[:, held:]
        values = torch.cat([values, new], 1)
    torch.testing.assert_close(drawn.values, values[:, :5], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["mask", "gaussian", "mask, one block", "random"])
def test_anything_may_be_known_where_the_model_allows_it(name: str) -> None:
    model = toy(name)
    values = model.generate([labels(1)], "x", grid=(9, 1, 2), window=4, generator=noise(1, 1)).values
    observed = torch.zeros(1, 18, dtype=torch.bool)
    observed[:, [0, 5, 9, 10, 17]] = True
    given = Segment("x", values, (9, 1, 2), observed=observed)
    drawn = model.generate([labels(1)], "x", given=given, window=4, overlap=2, generator=noise(1)).values
    assert torch.equal(drawn[observed], values[observed])
    assert not torch.equal(drawn[~observed], values[~observed])


def test_parts_of_an_element_may_be_known() -> None:
    model = toy("gaussian")
    values = torch.randn(1, 18, 3)
    observed = torch.zeros(1, 18, 3, dtype=torch.bool)
    observed[:, :, 1] = True
    given = Segment("x", values, (9, 1, 2), observed=observed)
    parts = list(model.stream([labels(1)], "x", given=given, window=4, generator=noise(1)))
    assert torch.equal(parts[-1].values[..., 1], values[..., 1])
    assert parts[0].element_observed.sum() == 2


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(window=0), "window is 0; it must be an integer >= 1"),
        (dict(window=2.0), "window is 2.0; it must be an integer >= 1"),
        (dict(window=4, overlap=-1), "overlap is -1; it must be an integer >= 0, in steps"),
        (dict(window=4, overlap=True), "overlap is True; it must be an integer >= 0, in steps"),
        (dict(window=4, sink=1.5), "sink is 1.5; it must be an integer >= 0, in steps"),
        (
            dict(window=4, overlap=3, sink=1),
            "window is 4 steps, overlap 3 and sink 1; a window must be longer than overlap and sink together, or",
        ),
        (dict(overlap=2), "overlap is 2 without a window; it says what windows have in common"),
        (dict(sink=1), "sink is 1 without a window; it says what windows have in common"),
        (dict(window=4, known_blocks=2), "known_blocks is 2 with a window of 4 steps for 9; what is missing stays"),
    ],
)
def test_wrong_windows_are_told(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
        toy().generate([labels(1)], "x", grid=(9, 1, 2), **arguments)


def test_a_layout_that_cannot_go_on_is_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build({"x": codes(V, (4, 1, 2), None, "neighbor")})
    monkeypatch.setattr(type(model), "_draw", None)
    sentence = (
        "window is 4, overlap 2 and sink 1, so that the first 3 of a window's steps are carried over, but given knows "
        "elements of block 3 or later, but not all of the blocks before; under next-block with order 'neighbor' the "
        "known part must be whole leading blocks"
    )
    for call in (model.generate, lambda *a, **k: next(model.stream(*a, **k))):
        with pytest.raises(ValueError, match=f"^{re.escape(sentence)}"):
            call([], "x", grid=(9, 1, 2), window=4, sink=1)
    blocks = build({"x": codes(V, (4, 1, 2), 4)})
    monkeypatch.setattr(type(blocks), "_draw", None)
    with pytest.raises(ValueError, match=r"^window is 4, overlap 1 and sink 0, .* order 'raster' the known part"):
        blocks.generate([], "x", grid=(9, 1, 2), window=4, overlap=1)


def test_what_is_known_too_far_ahead_is_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy()
    monkeypatch.setattr(type(model), "_draw", None)
    observed = torch.zeros(1, 18, dtype=torch.bool)
    observed[:, 16] = True
    given = Segment("x", torch.zeros(1, 18, dtype=torch.long), (9, 1, 2), observed=observed)
    sentence = "given knows elements after step 0, the first that it does not know as a whole; under next-block with "
    with pytest.raises(ValueError, match=f"^{sentence}order 'raster' the known part must be whole leading blocks$"):
        model.generate([labels(1)], "x", given=given, window=4)
    observed = (torch.arange(18) == 1)[None]
    with pytest.raises(ValueError, match=r"^given knows elements of block 0 or later"):
        model.generate([labels(1)], "x", given=given.replace(observed=observed), window=4)
    with pytest.raises(ValueError, match=r"given is a segment of 'x' on grid \(9, 1, 2\); it must be of 'x' on \(8"):
        model.generate([labels(1)], "x", grid=(8, 1, 2), given=given, window=4)


def test_a_part_of_a_cell_that_is_known_later_is_told_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build({"x": codes(V, (4, 1, 2), "row", "random")})
    monkeypatch.setattr(type(model), "_draw", None)
    observed = (torch.arange(18) == 15)[None]
    given = Segment("x", torch.zeros(1, 18, dtype=torch.long), (9, 1, 2), observed=observed)
    with pytest.raises(ValueError, match=r"^window is 4, .* but a part of a cell \(1, 1, 2\) is known"):
        model.generate([], "x", given=given, window=4)


def test_without_a_start_something_must_be_carried_over() -> None:
    model = build({"x": series(start="none")})
    given = Segment("x", torch.randn(1, 9, 3), (9, 1, 1), observed=(torch.arange(9) < 2)[None])
    assert model.generate([], "x", given=given, window=4).values.shape == (1, 9, 3)
    with pytest.raises(ValueError, match="carried over, but modality 'x' has no start vector; its first block must be"):
        model.generate([], "x", given=given, window=4, overlap=0)
