"""What block diffusion draws at the edges: hidden values that are no codes, batches that know different things, vectors
known in part, bfloat16, heads that are asked for what is shown only."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unimodal_ar import SampleNoise, Segment

from .helpers import build, codes, diffusion, hidden_states, series

GRID = (8, 1, 1)


def model(noise: str, block: Any = 4, **more: Any) -> Any:
    kind = codes(5, GRID, block) if noise == "mask" else series(3, GRID, block)
    return build({"x": kind | diffusion(noise) | more})


def streams(count: int = 1, first: int = 0) -> SampleNoise:
    return SampleNoise(3, torch.arange(first, first + count))


def given(values: Tensor, observed: Tensor) -> Segment:
    return Segment("x", values, GRID, observed=observed)


@pytest.mark.parametrize("hidden", [-100, 5, 10**6])
def test_what_is_hidden_may_be_anything(hidden: int) -> None:
    observed = torch.tensor([[True, False] * 4])
    drawn = [
        model("mask").generate([], "x", given=given(values, observed), generator=streams()).values
        for values in (torch.where(observed, 2, hidden), torch.where(observed, 2, 0))
    ]
    assert torch.equal(*drawn)


@pytest.mark.parametrize("noise", ["mask", "gaussian"])
def test_a_sample_does_not_depend_on_what_others_know(noise: str) -> None:
    values = torch.randint(0, 5, (3, 8)) if noise == "mask" else torch.randn(3, 8, 3)
    observed = torch.arange(8) < torch.tensor([[4], [0], [6]])
    both = model(noise).generate([], "x", given=given(values, observed), generator=streams(3)).values
    for row in range(3):
        alone = given(values[row : row + 1], observed[row : row + 1])
        drawn = model(noise).generate([], "x", given=alone, generator=streams(1, row)).values
        torch.testing.assert_close(drawn[0], both[row], atol=1e-5, rtol=1e-5)


def test_random_orders_want_the_same_known_in_all() -> None:
    source = build({"x": codes(5, GRID, 2, "random") | diffusion("mask")})
    observed = torch.eye(2, 8, dtype=torch.bool)
    with pytest.raises(ValueError, match="given knows other elements in some examples of the batch"):
        source.generate([], "x", given=given(torch.zeros(2, 8, dtype=torch.long), observed))


@pytest.mark.parametrize("noise", ["mask", "gaussian"])
def test_vectors_known_in_part_keep_that_part(noise: str) -> None:
    source = build({"x": series(3, GRID, 4) | diffusion(noise)})
    observed = torch.zeros(1, 8, 3, dtype=torch.bool)
    observed[0, 1] = torch.tensor([True, True, False])
    observed[0, 6] = True
    values = torch.randn(1, 8, 3)
    drawn = source.generate([], "x", given=given(values.masked_fill(~observed, torch.nan), observed)).values
    assert torch.equal(drawn[observed], values[observed]) and drawn.isfinite().all()


def test_stream_tells_what_is_given_further_on() -> None:
    observed = torch.zeros(1, 8, dtype=torch.bool)
    observed[0, 6] = True
    first = next(iter(model("mask").stream([], "x", given=given(torch.ones(1, 8, dtype=torch.long), observed))))
    assert first.observed.tolist() == [[True] * 4 + [False, False, True, False]]


def test_a_bfloat16_model_integrates_in_float32() -> None:
    exact = model("gaussian")
    rough = model("gaussian").to(torch.bfloat16)
    seen: list[Tensor] = []
    rough.embeddings["x"].level.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    drawn = rough.generate([], "x", steps=7, generator=streams()).values
    assert drawn.dtype == torch.float32 and exact.generate([], "x", steps=7).values.dtype == torch.float32
    times = sorted({float(level.flatten()[0]) for level in seen})
    assert times == pytest.approx([1 - i / 7 for i in range(6, -1, -1)], abs=1e-6)  # bfloat16 rounds them to 1/256


@pytest.mark.parametrize(("steps", "calls"), [(8, 8), (4, 4), (1, 1)])
def test_a_head_is_asked_for_what_is_shown_only(steps: int, calls: int) -> None:
    source = build({"x": series(3, GRID, "whole", head={"kind": "flow"}) | diffusion("mask")})
    rows: list[int] = []
    source.heads["x"].denoiser.register_forward_pre_hook(lambda module, args: rows.append(args[0].numel() // 3))
    source.generate([], "x", steps=steps, head_steps=2, num_samples=3, generator=streams(3))
    assert len(rows) == 2 * calls and sum(rows) == 2 * 3 * 8


def test_ancestral_steps_may_outnumber_the_elements() -> None:
    """In the limit no two elements are shown at once; passes that show nothing are not run."""
    source = model("mask", 2)
    with hidden_states(source) as states:
        source.generate([], "x", steps=1000, sampler={"kind": "ancestral"}, generator=streams())
    assert 4 < len(states) <= 8  # four blocks of two


@pytest.mark.parametrize("sampler", [None, {"kind": "confidence"}, {"kind": "threshold"}])
def test_temperature_0_is_deterministic(sampler: Any) -> None:
    drawn = [
        model("mask").generate([], "x", temperature=0, sampler=sampler, steps=3, generator=streams(1, seed)).values
        for seed in range(8)
    ]
    assert all(torch.equal(one, drawn[0]) for one in drawn)


def test_a_known_block_takes_no_passes() -> None:
    source = model("gaussian")
    observed = torch.arange(8)[None] >= 4
    with hidden_states(source) as states:
        source.generate([], "x", given=given(torch.randn(1, 8, 3), observed), steps=5)
    assert len(states) == 5


def test_of_a_single_block_the_first_number_of_steps_holds() -> None:
    source = model("gaussian", "whole")
    with hidden_states(source) as states:
        source.generate([], "x", steps=[4, 2])
    assert len(states) == 4


def test_saved_options_hold_for_the_modality_that_takes_them() -> None:
    source = build({"x": codes(5, GRID, 4) | diffusion("mask"), "z": codes(5, GRID)})
    source.generation_config = source.generation_config.updated(steps=2, sampler={"kind": "confidence"})
    assert source.generate([], "z").values.shape == (1, 8)
    with hidden_states(source) as states:
        source.generate([], "x")
    assert len(states) == 4
    with pytest.raises(ValueError, match="steps is 3; next-block prediction"):
        source.generate([], "z", steps=3)


def test_what_is_not_masked_is_disturbed_in_training() -> None:
    source = model("mask", "whole", context_noise=0.9).train()
    read: list[Tensor] = []
    embed = source.embeddings["x"].embed

    def watched(values: Tensor, seen: Tensor) -> Tensor:
        read.append(torch.where(seen, values, 0))
        return embed(values, seen)

    source.embeddings["x"].embed = watched
    segment = given(torch.ones(400, 8, dtype=torch.long), torch.ones(400, 8, dtype=torch.bool))
    source([segment])
    assert (read[0] > 1).any()
    read.clear()
    source.eval()([segment])
    assert not (read[0] > 1).any()


@pytest.mark.parametrize(("head", "uniform"), [("mixture", True), ("flow", False)])
def test_heads_without_a_likelihood_are_judged_at_the_levels_they_learn(head: str, uniform: bool) -> None:
    levels = {"kind": "uniform", "low": 0.8, "high": 1.0}
    source = build({"x": series(3, GRID, "whole", head={"kind": head}) | diffusion("mask", levels=levels)})
    values = given(torch.randn(64, 8, 3), torch.ones(64, 8, dtype=torch.bool))
    noisy = source.objectives["x"].noise.add(values, source.layout("x", GRID), training=False)
    assert bool((noisy.masked.sum(1) < 6).any()) == uniform


@pytest.mark.parametrize("kind", ["threshold", "entropy_bound", "first_hitting", "ancestral"])
def test_what_is_shown_first_does_not_depend_on_what_is_drawn(kind: str) -> None:
    """Or likely values would come first, and so more often: here all are independent, 0 with probability 0.6."""
    source = build({"x": codes(2, GRID, 4, head={"kind": "categorical", "bias": True}) | diffusion("mask")})
    with torch.no_grad():
        source.heads["x"].proj.weight.zero_()
        source.heads["x"].proj.bias.copy_(torch.tensor([0.6, 0.4]).log())
    drawn = source.generate([], "x", sampler={"kind": kind}, num_samples=1000, generator=streams(1000)).values
    assert abs((drawn == 0).double().mean() - 0.6) < 5 * (0.24 / drawn.numel()) ** 0.5


def test_thresholds_go_on_where_the_sure_ones_end() -> None:
    """Three sure elements take one pass together, and the others one each, at once."""
    source = model("mask", "whole")
    logits = torch.zeros(8, 5)
    logits[:3, 0] = 20.0
    source.heads["x"].max_log_prob = lambda hidden: logits.log_softmax(-1).amax(-1)[-len(hidden) :]
    with hidden_states(source) as states:
        source.generate([], "x", sampler={"kind": "threshold"}, generator=streams())
    assert len(states) == 6
