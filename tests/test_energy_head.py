"""The energy head: its score against the formula, and that samples follow the data they learnt from. What it has in
common with the diffusion head is in `test_diffusion_head`."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.test_flow_head import (
    CONTEXT,
    DIM,
    build,
    distances,
    floors,
    noise,
    seeded_loss,
    some_hidden,
    some_values,
    train,
)
from unimodal_ar.heads import EnergyHead
from unimodal_ar.noise import uniform


@pytest.mark.parametrize(("draws", "alpha"), [(2, 1.0), (3, 0.5), (5, 1.7)])
def test_the_loss_is_the_energy_score(draws: int, alpha: float) -> None:
    """Straight from the formula, pair by pair and element by element."""
    head = build("energy", draws=draws, alpha=alpha, noise=6)
    hidden, values = some_hidden(2, 3), some_values(2, 3)
    observed = torch.rand(2, 3, DIM, generator=torch.Generator().manual_seed(5)) < 0.7
    observed[1, 1] = False
    loss = seeded_loss(head, hidden, values, observed)
    torch.manual_seed(4)
    random = torch.rand(draws, 2, 3, 6) - 0.5
    for place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]:
        seen = [d for d in range(DIM) if observed[place][d]]
        drawn = [head.network(hidden[place], random[r][place]).tolist() for r in range(draws)]
        x = values[place].tolist()

        def apart(y: list[float], z: list[float], seen: list[int] = seen) -> float:
            return math.sqrt(sum((y[d] - z[d]) ** 2 for d in seen) / max(len(seen), 1)) ** alpha

        between = [apart(drawn[r], drawn[s]) for r in range(draws) for s in range(draws) if r != s]
        expected = sum(apart(y, x) for y in drawn) / draws - sum(between) / len(between) / 2
        assert float(loss[place].detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5), place


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_draws_that_agree_have_a_finite_gradient(alpha: float) -> None:
    """A distance of 0 has none, and a network that ignores the noise draws the same vector over and over."""
    head = build("energy", alpha=alpha)
    for parameter in (head.network.condition.weight, head.network.output.bias):
        torch.nn.init.zeros_(parameter)
    hidden = some_hidden(2, 4)
    target = torch.cat([head.sample(hidden[:1]).detach(), some_values(1, 4)])
    loss = seeded_loss(head, hidden, target)
    loss.sum().backward()
    assert (loss[0] == 0).all() and (loss[1] > 0).all()
    assert all(torch.isfinite(parameter.grad).all() for parameter in head.parameters())
    assert head.network.output.weight.grad.abs().max() > 0


def test_a_sample_is_one_pass_over_scaled_uniform_noise() -> None:
    head, hidden, free = build("energy", noise=5), some_hidden(3, 2), some_hidden(3, 2, seed=6)
    random = uniform((3, 2, 5), noise(3), torch.device("cpu")) - 0.5
    for temperature in (0.0, 0.5, 1.0):
        expected = head.network(hidden, temperature * random)
        torch.testing.assert_close(head.sample(hidden, noise(3), temperature), expected)
    # Guided, the linear map's output is what it would be with both states' own outputs combined; the noise is one.
    read: list[Tensor] = []
    head.network.input.register_forward_hook(lambda module, inputs, output: read.append(output))
    for state in (hidden, free):
        head.sample(state, noise(3))
    guided = head.sample_guided(hidden, free, 3.0, generator=noise(3))
    torch.testing.assert_close(read[2], read[1] + 3 * (read[0] - read[1]))
    torch.testing.assert_close(guided, head.network(free + 3 * (hidden - free), random))
    assert len(read) == 4
    assert not head.iterates


# --- recovery ---------------------------------------------------------------------------------------------------------

FACTOR = 4.0  # of the floor: a single pass gets less close than many


@pytest.fixture(scope="module")
def trained() -> Any:
    return train("energy", 1000, width=48, noise=16)


def within(reached: list[float], floor: list[float], factor: float) -> list[bool]:
    return [distance <= factor * least for distance, least in zip(reached, floor, strict=True)]


def test_samples_follow_the_data(trained: Any) -> None:
    floor, reached = floors(), distances(trained)
    assert all(within(reached, floor, FACTOR)), (reached, floor)


def test_wrong_samplers_do_not_follow_the_data(trained: Any) -> None:
    """What the distance above is worth: it sees each of these."""
    floor = floors()
    for name, reached in {
        "the other context": distances(trained, CONTEXT.flip(0)),
        "half of the noise": distances(trained, temperature=0.5),
        "twice the noise": distances(trained, temperature=2.0),
    }.items():
        assert not any(within(reached, floor, 2 * FACTOR)), (name, reached)


def test_without_the_spread_all_draws_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second term of the score is what keeps the draws apart."""
    whole = EnergyHead._distance

    def half(head: EnergyHead, difference: Tensor, mask: Tensor) -> Tensor:
        between = len(difference) != head.draws  # six pairs of four draws
        return whole(head, difference, mask) * (0.0 if between else 1.0)

    monkeypatch.setattr(EnergyHead, "_distance", half)
    head = train("energy", 60, width=16)
    drawn = head.sample(CONTEXT.expand(500, -1, -1), noise(500))
    assert drawn.std(0).max() < 0.05
