"""The shortcut head: its loss, its steps, and what few of them are worth. (See test_flow_head for what both share.)"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from tests.test_flow_head import DIM, build, distances, floors, seeded_loss, some_hidden, some_values, train


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finest": 48}, "head.finest is 48: it must be a power of two, and at least 2"),
        ({"finest": 1}, "head.finest is 1: it must be a power of two, and at least 2"),
        ({"consistency": 0.3}, "head.consistency is 0.3: times draws, which is 4, it must be a whole number"),
        ({"draws": 2}, "head.consistency is 0.25: times draws, which is 2, it must be a whole number"),
        ({"consistency": 1e-9}, "head.consistency is 1e-09: times draws, which is 4, it must be a whole number"),
        ({"consistency": 1.0}, "head.consistency is 1.0: "),
        ({"solver": "heun"}, "head has an unknown key 'solver'"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build("shortcut", **options)


def test_the_loss_is_that_of_the_velocity_and_of_the_long_steps() -> None:
    """Straight from the formulas, draw by draw and element by element; 1 of 3 draws is of a long step."""
    head = build("shortcut", draws=3, consistency=1 / 3, finest=8, time_mean=0.5, time_std=0.7)
    hidden, values = some_hidden(2, 30), some_values(2, 30)
    observed = torch.rand(2, 30, DIM, generator=torch.Generator().manual_seed(5)) < 0.7
    loss = seeded_loss(head, hidden, values, observed)
    torch.manual_seed(4)
    k, u = torch.randint(3, (1, 2, 30)), torch.rand(1, 2, 30)
    z, e = torch.randn(2, 2, 30), torch.randn(3, 2, 30, DIM)
    told = {0: 1.0, 1: 2 / 3, 2: 1 / 3, 3: 0.0}  # by halvings of the step; that of 1/8 is the velocity itself

    @torch.no_grad()
    def network(x: torch.Tensor, place: tuple[int, int], t: float, halvings: int) -> torch.Tensor:
        return head.denoiser(x, hidden[place], torch.tensor(t), torch.tensor(told[halvings]))

    met = set()
    for place in [(i, j) for i in range(2) for j in range(30)]:
        x, seen, errors = torch.where(observed[place], values[place], 0.0), observed[place], torch.zeros(DIM)
        halvings = int(k[0][place])
        step = 1 / 2**halvings
        t = (int(float(u[0][place]) * 2**halvings) + 1) * step
        met.add((halvings, t))
        x_t = (1 - t) * x + t * e[0][place]
        first = network(x_t, place, t, halvings + 1)
        second = network(x_t - step / 2 * first, place, t - step / 2, halvings + 1)
        errors += (network(x_t, place, t, halvings) - (first + second) / 2) ** 2
        for draw in range(2):
            t = 1 / (1 + math.exp(-(0.5 + 0.7 * float(z[draw][place]))))
            noise = e[1 + draw][place]
            errors += (network((1 - t) * x + t * noise, place, t, 3) - (noise - x)) ** 2
        expected = float(errors[seen].mean() / 3) if seen.any() else 0.0
        assert float(loss[place].detach()) == pytest.approx(expected, rel=1e-4), place
    assert met == {(0, 1.0), (1, 0.5), (1, 1.0), (2, 0.25), (2, 0.5), (2, 0.75), (2, 1.0)}


def test_two_short_steps_are_a_goal_without_gradient() -> None:
    head, hidden = build("shortcut", draws=2, consistency=0.5, finest=2), some_hidden(6)
    right, levels = head.denoiser.forward, []

    def forward(x: torch.Tensor, hidden: torch.Tensor, time: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        levels.append((float(level.min()), torch.is_grad_enabled()))
        return right(x, hidden, time, level)

    head.denoiser.forward = forward
    head.loss(hidden, some_values(6)).sum().backward()
    assert levels == [(0.0, False), (0.0, False), (0.0, True)]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1 / 2), (1 / 2, 1 / 2)]),
        (3, [(1, 1 / 2), (1 / 2, 1 / 4), (1 / 4, 1 / 4)]),
        (4, [(1, 1 / 4), (3 / 4, 1 / 4), (1 / 2, 1 / 4), (1 / 4, 1 / 4)]),
        (5, [(1, 1 / 4), (3 / 4, 1 / 4), (1 / 2, 1 / 4), (1 / 4, 1 / 8), (1 / 8, 1 / 8)]),
    ],
)
def test_every_number_of_steps_is_made_of_learnt_ones(steps: int, expected: list[tuple[float, float]]) -> None:
    head, hidden, calls = build("shortcut"), some_hidden(2), []
    head.denoiser.register_forward_hook(lambda module, inputs, output: calls.append((*inputs, output)))
    drawn = head.sample(hidden, torch.Generator().manual_seed(0), head_steps=steps)
    assert len(calls) == steps
    after = [call[0] for call in calls[1:]] + [drawn]
    for (x, _, time, level, slope), (at, step), then in zip(calls, expected, after, strict=True):
        assert time == at and float(level) == pytest.approx(1 + math.log2(step) / 7)
        torch.testing.assert_close(then, x - step * slope[0])


def test_steps_below_the_finest_follow_the_velocity() -> None:
    head, told = build("shortcut", finest=4, steps=3), []
    head.denoiser.register_forward_hook(lambda module, inputs, output: told.append(float(inputs[3])))
    for steps, levels in {2: [0.5] * 2, 3: [0.5, 0, 0], 4: [0] * 4, 6: [0] * 6, 8: [0] * 8, None: [0.5, 0, 0]}.items():
        told.clear()
        head.sample(some_hidden(2), head_steps=steps)
        assert told == levels


# --- recovery ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Any:
    return train("shortcut", 500, width=48)


def test_samples_follow_the_data_in_few_steps(trained: Any) -> None:
    floor = floors()
    for steps in (4, 6, 8, 16):
        reached = distances(trained, head_steps=steps)
        assert all(distance <= 3 * least for distance, least in zip(reached, floor, strict=True)), (steps, reached)
    told = trained.level
    trained.level = lambda halvings: torch.zeros_like(told(halvings))  # long steps along the velocity
    try:
        assert all(distance > 3 * least for distance, least in zip(distances(trained), floor, strict=True))
    finally:
        trained.level = told


def test_few_steps_are_better_than_the_flow_head_s(trained: Any) -> None:
    """At equal size and training, and with either solver."""
    flow = train("flow", 500, width=48)
    for steps, factor in {1: 10, 2: 10, 4: 2}.items():
        ours = distances(trained, head_steps=steps)
        for flow.heun in (False, True):
            theirs = distances(flow, head_steps=steps)
            assert all(factor * ours[k] < theirs[k] for k in range(2)), (steps, ours, theirs)
