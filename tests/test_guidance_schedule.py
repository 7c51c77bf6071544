"""How the guidance scale changes from block to block."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.helpers import (
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
)
from unimodal_ar import Segment, UnimodalARForGeneration, UnimodalARGenerationConfig

V, N, GRID = 3, 4, (4, 1, 1)
EVERY = all_sequences(V, N)
INTERVAL = {"kind": "interval", "start": 0.25, "stop": 0.75}
COSINE = {"kind": "cosine", "power": 0.5}


def toy(**more: Any) -> Any:
    return build({"x": codes(V, GRID, **more), "label": label(null_probability=0.1)})


def without_context(model: Any) -> Any:
    """The same model where every label looks like the null vector."""
    free = copy.deepcopy(model)
    with torch.no_grad():
        embedding = free.embeddings["label"]
        embedding.table.weight.copy_(embedding.null.expand_as(embedding.table.weight))
    return free


def logits(model: Any) -> Tensor:
    """[V^N, N, V] of every element of every sequence, given the elements before it."""
    hidden = full_hidden(model, [labels(*[2] * len(EVERY)), Segment("x", EVERY, GRID)])[:, -N:]
    return model.heads["x"].logits(hidden).squeeze(-2).detach().double()


def guided(model: Any, scales: list[float]) -> np.ndarray:
    """[V^N] the joint in which element i is guided by scales[i]."""
    given, free = logits(model), logits(without_context(model))
    mixed = free + torch.tensor(scales).double()[:, None] * (given - free)
    return mixed.softmax(-1).gather(-1, EVERY[..., None]).squeeze(-1).prod(1).numpy()


def scales_of(schedule: dict[str, Any] | None, scale: float, blocks: int) -> list[float]:
    options = UnimodalARGenerationConfig(guidance_scale=scale, guidance_schedule=schedule)
    return options.guidance_scales(blocks)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (None, [3, 3, 3, 3, 3, 3, 3, 3]),
        ({"kind": "interval"}, [3, 3, 3, 3, 3, 3, 3, 3]),
        (INTERVAL, [1, 1, 3, 3, 3, 3, 1, 1]),
        ({"kind": "interval", "stop": 3 / 8}, [3, 3, 3, 1, 1, 1, 1, 1]),
        ({"kind": "interval", "start": 7 / 8}, [1, 1, 1, 1, 1, 1, 1, 3]),
        ({"kind": "interval", "start": 0.5, "stop": 0.5}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"kind": "cosine", "power": 1}, [1 + 1 - math.cos(math.pi * i / 8) for i in range(8)]),
        ({"kind": "cosine", "power": 2.75}, [1 + 1 - math.cos(math.pi * (i / 8) ** 2.75) for i in range(8)]),
    ],
    ids=str,
)
def test_the_scale_of_every_block(schedule: dict[str, Any] | None, expected: list[float]) -> None:
    assert scales_of(schedule, 3.0, 8) == pytest.approx(expected, abs=1e-12)
    weaker = [1 + (scale - 1) / 4 for scale in expected]
    assert scales_of(schedule, 1.5, 8) == pytest.approx(weaker, abs=1e-12)
    assert scales_of(schedule, 1.0, 8) == [1] * 8


@pytest.mark.parametrize("blocks", [3, 7, 10, 49, 100])
def test_fractions_are_not_rounded_away(blocks: int) -> None:
    """Fractions k / blocks in floating point: exactly k blocks lie before, for every k."""
    for k in range(blocks + 1):
        assert scales_of({"kind": "interval", "stop": k / blocks}, 2.0, blocks) == [2] * k + [1] * (blocks - k)
        assert scales_of({"kind": "interval", "start": k / blocks}, 2.0, blocks) == [1] * k + [2] * (blocks - k)


@pytest.mark.parametrize(
    ("schedule", "scales"),
    [
        (INTERVAL, [1.0, 3.0, 3.0, 1.0]),
        ({"kind": "interval", "stop": 0.5}, [3.0, 3.0, 1.0, 1.0]),
        (COSINE, [2 - math.cos(math.pi * (i / 4) ** 0.5) for i in range(4)]),
    ],
    ids=str,
)
def test_samples_follow_the_guided_joint(schedule: dict[str, Any], scales: list[float]) -> None:
    model = toy()
    probability = guided(model, scales)
    sampling = dict(num_samples=6000, guidance_scale=3.0, guidance_schedule=schedule)
    drawn = model.generate([labels(2)], "x", generator=torch.Generator().manual_seed(1), **sampling)
    counts = frequencies(drawn.values, V)
    assert chi_square(counts, probability) > P_VALUE
    for other in ([1.0] * 4, [3.0] * 4, scales[::-1]):
        assert scales == other or chi_square(counts, guided(model, other)) < P_VALUE


@pytest.mark.parametrize("known", [1, 2])
def test_blocks_are_counted_from_the_start_of_the_grid(known: int) -> None:
    """What is given does not shift the schedule."""
    model = toy()
    probability = guided(model, [1.0, 3.0, 3.0, 1.0])
    values = torch.tensor([[2, 0, 0, 0]])
    given = Segment("x", values, GRID, observed=torch.arange(N)[None] < known)
    sampling = dict(num_samples=4000, guidance_scale=3.0, guidance_schedule=INTERVAL)
    drawn = model.generate([labels(2)], "x", given=given, generator=torch.Generator().manual_seed(1), **sampling)
    kept = np.where((EVERY[:, :known] == values[:, :known]).all(1).numpy(), probability, 0)
    assert chi_square(frequencies(drawn.values, V), kept / kept.sum()) > P_VALUE


def test_blocks_that_are_not_guided_still_count_for_those_that_are() -> None:
    """The counterpart without context reads them too: each pass runs both halves."""
    model = toy()
    with hidden_states(model) as states:
        model.generate([labels(2)], "x", guidance_scale=3.0, guidance_schedule={"kind": "interval", "start": 0.5})
    assert [len(state) for state in states] == [2] * len(states)


def test_without_a_scale_a_schedule_does_nothing() -> None:
    model = toy()
    plain, scheduled = (
        model.generate([labels(2)], "x", num_samples=50, generator=torch.Generator().manual_seed(2), **more).values
        for more in ({}, {"guidance_schedule": COSINE})
    )
    assert torch.equal(plain, scheduled)


def test_stream_and_generate_agree() -> None:
    model = toy()
    sampling: dict[str, Any] = dict(num_samples=40, guidance_scale=4.0, guidance_schedule=COSINE)
    drawn = model.generate([labels(2)], "x", generator=torch.Generator().manual_seed(2), **sampling).values
    *_, last = model.stream([labels(2)], "x", generator=torch.Generator().manual_seed(2), **sampling)
    assert torch.equal(drawn, last.values)


def test_the_models_own_schedule_holds_and_is_saved(tmp_path: Any) -> None:
    model = toy()
    named = dict(guidance_scale=4.0, guidance_schedule=INTERVAL)
    sampling: dict[str, Any] = dict(num_samples=60)

    def draw(of: Any, **more: Any) -> Tensor:
        return of.generate([labels(2)], "x", generator=torch.Generator().manual_seed(2), **sampling, **more).values

    expected = draw(model, **named)
    model.generation_config = UnimodalARGenerationConfig(**named)
    assert torch.equal(draw(model), expected)
    model.save_pretrained(tmp_path)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.guidance_schedule == INTERVAL
    assert torch.equal(draw(loaded), expected)
    assert not torch.equal(draw(loaded, guidance_schedule={"kind": "interval"}), expected)


@pytest.mark.parametrize(
    ("schedule", "sentence"),
    [
        ("cosine", "guidance_schedule is 'cosine'; it must be None or a mapping whose 'kind' is one of ['cosine', 'i"),
        ({"kind": "linear"}, "guidance_schedule is {'kind': 'linear'}; it must be None or a mapping whose 'kind' is"),
        ({"power": 1.0}, "guidance_schedule is {'power': 1.0}; it must be None or a mapping whose 'kind' is one of"),
        ({"kind": []}, "guidance_schedule is {'kind': []}; it must be None or a mapping whose 'kind' is one of"),
        ({"kind": "cosine"}, "guidance_schedule.power"),
        ({"kind": "cosine", "power": 0}, "guidance_schedule.power is 0"),
        ({"kind": "cosine", "power": math.inf}, "guidance_schedule.power is inf"),
        ({"kind": "interval", "stop": 1.5}, "guidance_schedule.stop is 1.5"),
        ({"kind": "interval", "start": -0.1}, "guidance_schedule.start is -0.1"),
        ({"kind": "interval", "end": 0.5}, "guidance_schedule has an unknown key 'end'"),
    ],
    ids=str,
)
def test_wrong_schedules_are_refused(schedule: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        UnimodalARGenerationConfig(guidance_schedule=schedule)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        toy().generate([labels(2)], "x", guidance_scale=2.0, guidance_schedule=schedule)
