"""The flow head, what it shares with the shortcut head, and that samples follow the data they learnt from."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import perturb
from unimodal_ar.heads import build_head
from unimodal_ar.noise import SampleNoise, normal
from unimodal_ar.schema import ContinuousElement

HIDDEN, DIM = 8, 3
KINDS = ["flow", "shortcut"]


def build(kind: str, dim: int = DIM, hidden_size: int = HIDDEN, spread: float = 0.2, **options: Any) -> Any:
    torch.manual_seed(0)
    head = build_head(hidden_size, ContinuousElement(kind="continuous", dim=dim), {"kind": kind, **options})
    perturb(head, spread)
    return head


def some_hidden(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed))


def some_values(*shape: int) -> Tensor:
    return torch.randn(*shape, DIM, generator=torch.Generator().manual_seed(3))


def noise(count: int, seed: int = 0) -> SampleNoise:
    return SampleNoise(seed, torch.arange(count))


def seeded_loss(head: Any, *inputs: Tensor | None) -> Tensor:
    torch.manual_seed(4)
    return head.loss(*inputs)


# --- options and inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "head.width is 0: "),
        ({"layers": 0}, "head.layers is 0: "),
        ({"draws": 0}, "head.draws is 0: "),
        ({"steps": 0}, "head.steps is 0: "),
        ({"time_std": 0.0}, "head.time_std is 0.0: "),
        ({"time_mean": math.inf}, "head.time_mean is inf: "),
        ({"solvers": "heun"}, "head has an unknown key 'solvers'"),
    ],
)
def test_options_are_checked(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(kind, **options)


def test_solvers_are_named() -> None:
    with pytest.raises(ValueError, match=r"head.solver is 'rk4': .*'euler' or 'heun'"):
        build("flow", solver="rk4")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"top_k": 5}, r"top_k is 5; \w+ draws real vectors and takes no top_k"),
        ({"top_p": 0.9}, r"top_p is 0.9; \w+ draws real vectors and takes no top_p"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be a finite number >= 0"),
        ({"temperature": math.nan}, "temperature is nan; it must be a finite number >= 0"),
        ({"head_steps": 0}, "head_steps is 0; it must be an integer >= 1"),
        ({"head_steps": 2.5}, "head_steps is 2.5; it must be an integer >= 1"),
    ],
)
def test_sampling_is_checked(kind: str, sampling: dict[str, Any], message: str) -> None:
    head, hidden = build(kind), some_hidden(2, 1)
    with pytest.raises(ValueError, match=message):
        head.sample(hidden, **sampling)
    with pytest.raises(ValueError, match=message):
        head.sample_guided(hidden, hidden, 2.0, **sampling)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_checked(kind: str) -> None:
    with pytest.raises(ValueError, match=r"values have shape \(2, 5, 1\); .* ask for \(2, 5, 3\)"):
        build(kind).loss(some_hidden(2, 5), torch.zeros(2, 5, 1))
    with pytest.raises(ValueError, match=r"observed has shape \(2, 1\); it must be \(2, 5\) or \(2, 5, 3\)"):
        build(kind).loss(some_hidden(2, 5), torch.zeros(2, 5, 3), torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (2, 3, 4)])
def test_any_leading_shape(kind: str, shape: tuple[int, ...]) -> None:
    head, hidden = build(kind, width=12, layers=2), some_hidden(*shape)
    assert head.loss(hidden, some_values(*shape)).shape == shape
    assert head.sample(hidden, torch.Generator().manual_seed(0)).shape == (*shape, DIM)
    assert head.sample_guided(hidden, hidden + 1, 2.0).shape == (*shape, DIM)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_loss_is_the_velocity_s_squared_error() -> None:
    """Straight from the formula, draw by draw and element by element."""
    head, hidden, values = build("flow", draws=2, time_mean=0.5, time_std=0.7), some_hidden(2, 3), some_values(2, 3)
    observed = torch.rand(2, 3, DIM, generator=torch.Generator().manual_seed(5)) < 0.7
    observed[1, 1] = False
    loss = seeded_loss(head, hidden, values, observed)
    torch.manual_seed(4)
    z, e = torch.randn(2, 2, 3), torch.randn(2, 2, 3, DIM)
    for place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]:
        x, seen = torch.where(observed[place], values[place], 0.0), observed[place].tolist()
        errors = []
        for draw in range(2):
            t = 1 / (1 + math.exp(-(0.5 + 0.7 * float(z[draw][place]))))
            x_t = (1 - t) * x + t * e[draw][place]
            miss = (head.denoiser(x_t, hidden[place], torch.tensor(t)) - (e[draw][place] - x)).detach()
            errors += [float(miss[d]) ** 2 for d in range(DIM) if seen[d]]
        expected = sum(errors) / len(errors) if errors else 0.0
        assert float(loss[place].detach()) == pytest.approx(expected, rel=1e-4), place


@pytest.mark.parametrize("kind", KINDS)
def test_missing_values_neither_count_nor_poison(kind: str) -> None:
    head, hidden, target = build(kind), some_hidden(2, 4).requires_grad_(), some_values(2, 4)
    observed = torch.ones(2, 4, DIM, dtype=torch.bool)
    observed[0, 1, 2] = observed[1, 0, 0] = observed[1, 0, 1] = False
    observed[1, 3] = False
    loss = seeded_loss(head, hidden, torch.where(observed, target, torch.nan), observed)
    loss.sum().backward()
    assert hidden.grad is not None
    gradients = [hidden.grad, *(parameter.grad for parameter in head.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert loss[1, 3] == 0 and (hidden.grad[1, 3] == 0).all() and (hidden.grad[0] != 0).all()
    full = seeded_loss(head, hidden, target)
    whole = observed.all(-1)
    torch.testing.assert_close(loss[whole], full[whole])
    assert not torch.isclose(loss[0, 1], full[0, 1])
    torch.testing.assert_close(seeded_loss(head, hidden, torch.where(observed, target, 1e9), observed), loss)
    elements = torch.tensor([[True] * 4, [True, True, True, False]])
    by_value = elements[..., None].expand(2, 4, DIM)
    torch.testing.assert_close(seeded_loss(head, hidden, target, elements), seeded_loss(head, hidden, target, by_value))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_come_from_observed_values_alone(kind: str) -> None:
    """Of the last layer, each row belongs to one value."""
    head, hidden = build(kind), some_hidden(2, 4)
    observed = torch.tensor([True, False, True]).expand(2, 4, DIM)
    seeded_loss(head, hidden, some_values(2, 4), observed).sum().backward()
    assert (head.denoiser.output.weight.grad[1] == 0).all()
    assert (head.denoiser.output.weight.grad[[0, 2]] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_hidden_gives_float32(kind: str, autocast: bool) -> None:
    head, hidden, values = build(kind), some_hidden(4, 5).bfloat16(), some_values(4, 5)
    exact = seeded_loss(head.double(), hidden.double(), values)
    drawn = head.sample(hidden.double(), noise(4))
    head.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss, sample = seeded_loss(head, hidden, values), head.sample(hidden, noise(4))
    assert loss.dtype == sample.dtype == torch.float32 and exact.dtype == drawn.dtype == torch.float64
    torch.testing.assert_close(loss.double(), exact, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(sample.double(), drawn, rtol=1e-4, atol=1e-4)
    coarse = values.bfloat16()  # the path between such values and noise is finer
    torch.testing.assert_close(seeded_loss(head, hidden, coarse), seeded_loss(head, hidden, coarse.float()))
    head.bfloat16()
    low, sample = seeded_loss(head, hidden, values.bfloat16()), head.sample(hidden, noise(4))
    assert low.dtype == sample.dtype == torch.float32 and torch.isfinite(low).all()


# --- drawing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_sample_depends_on_seed_and_number_alone(kind: str) -> None:
    head, hidden, other = build(kind), some_hidden(7, 4), some_hidden(7, 4, seed=6)
    for draw in (
        lambda rows, n: head.sample(hidden[rows], n),
        lambda rows, n: head.sample_guided(hidden[rows], other[rows], 2.0, generator=n),
    ):
        together = draw(slice(None), noise(7, seed=5))
        for i in range(7):
            alone = draw(slice(i, i + 1), SampleNoise(5, torch.tensor([i])))
            torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-4)
        assert not torch.isclose(draw(slice(None), noise(7, seed=6)), together).any()


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_zero_is_deterministic(kind: str) -> None:
    head, hidden = build(kind), some_hidden(3, 2)
    drawn = head.sample(hidden, noise(3), temperature=0.0)
    assert torch.equal(head.sample(hidden, noise(3, seed=1), temperature=0.0), drawn)
    assert not torch.isclose(head.sample(hidden, noise(3), temperature=0.5), drawn).any()


@pytest.mark.parametrize("kind", KINDS)
def test_guidance(kind: str) -> None:
    head, hidden, free = build(kind), some_hidden(3, 2), some_hidden(3, 2, seed=6)
    with_context, without = head.sample(hidden, noise(3)), head.sample(free, noise(3))
    torch.testing.assert_close(head.sample_guided(hidden, free, 1.0, generator=noise(3)), with_context)
    torch.testing.assert_close(head.sample_guided(hidden, free, 0.0, generator=noise(3)), without)
    two = head.sample_guided(hidden, free, 2.0, generator=noise(3))
    assert not torch.isclose(two, 2 * with_context - without, rtol=1e-3).all()  # it acts on every step, not at the end
    # one step at twice the guidance, by hand
    e = normal((3, 2, DIM), noise(3), torch.device("cpu")).float()
    levels = [torch.tensor(1.0)] * head.levels
    slope, plain = head.denoiser(e, hidden, *levels), head.denoiser(e, free, *levels)
    one = head.sample_guided(hidden, free, 2.0, generator=noise(3), head_steps=1)
    torch.testing.assert_close(one, e - (plain + 2 * (slope - plain)))


def exact_velocity(mean: float, std: float) -> Callable[..., Tensor]:
    """Of the path from N(mean, std^2) to N(0, 1): E[e - x | x_t], a linear map."""

    def velocity(x: Tensor, time: Tensor, *_: Tensor) -> Tensor:
        variance = (1 - time) ** 2 * std**2 + time**2
        return (time - (1 - time) * std**2) / variance * (x - (1 - time) * mean) - mean

    return velocity


def test_temperature_scales_a_normal_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """The flow of a normal distribution is x = mean + std e: scaled noise is a scaled standard deviation."""
    head, hidden = build("flow").double(), some_hidden(50, 2).double()
    velocity = exact_velocity(0.7, 0.5)
    monkeypatch.setattr(head, "velocity", lambda x, hidden, time: velocity(x, time)[None])
    e = normal((50, 2, DIM), noise(50), torch.device("cpu"))
    for temperature in (0.0, 0.5, 1.0, 2.0):
        drawn = head.sample(hidden, noise(50), temperature, head_steps=200)
        torch.testing.assert_close(drawn, 0.7 + 0.5 * temperature * e, rtol=0, atol=2e-4)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_solvers_converge_with_their_order(solver: str, order: int) -> None:
    head, velocity = build("flow", solver=solver), exact_velocity(0.7, 0.5)
    start = torch.tensor([-1.5, 0.3, 2.0], dtype=torch.float64)
    errors = [(head.integrate(velocity, start, steps) - (0.7 + 0.5 * start)).abs().max() for steps in (64, 128)]
    assert float((errors[0] / errors[1]).log2()) == pytest.approx(order, abs=0.1)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_steps_count_evaluations_of_the_network(solver: str) -> None:
    head, hidden, calls = build("flow", solver=solver, steps=6), some_hidden(2, 1), []
    head.denoiser.register_forward_hook(lambda module, inputs, output: calls.append(float(inputs[2])))
    for steps in (1, 2, 3, 4, 5, 8):
        calls.clear()
        head.sample(hidden, head_steps=steps)
        assert len(calls) == steps and calls[0] == 1
    calls.clear()
    head.sample(hidden)
    assert len(calls) == 6
    calls.clear()
    head.sample(hidden, head_steps=5)
    expected = [1, 0.8, 0.6, 0.4, 0.2] if solver == "euler" else [1, 2 / 3, 1 / 3, 1 / 3, 0]
    assert calls == pytest.approx(expected)


# --- recovery ---------------------------------------------------------------------------------------------------------


def four_gaussians(count: int, generator: torch.Generator) -> Tensor:
    centres = torch.tensor([[1.3, 1.0], [-1.2, 0.8], [-0.9, -1.3], [1.0, -0.9]])
    which = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), count, replacement=True, generator=generator)
    return centres[which] + 0.15 * torch.randn(count, 2, generator=generator)


def spiral(count: int, generator: torch.Generator) -> Tensor:
    angle = 1.5 * math.pi * torch.rand(count, generator=generator)
    arm = (0.4 + 0.3 * angle) * torch.stack([angle.cos(), angle.sin()])
    return arm.T + 0.06 * torch.randn(count, 2, generator=generator)


DATA = [four_gaussians, spiral]
CONTEXT = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(9))
COUNT = 2000


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|x - y| - E|x - x'| - E|y - y'| without bias, so that it is about 0 for equal distributions."""
    n = len(x)
    within = torch.cdist(x, x).sum() + torch.cdist(y, y).sum()
    return float(2 * torch.cdist(x, y).mean() - within / (n * (n - 1)))


def floors() -> list[float]:
    """For each density, the 95% quantile of the distance between two of its samples."""
    generator = torch.Generator().manual_seed(6)
    pairs = [[energy_distance(f(COUNT, generator), f(COUNT, generator)) for _ in range(20)] for f in DATA]
    return [sorted(pair)[18] for pair in pairs]


def train(kind: str, steps: int, **options: Any) -> Any:
    """A head that has seen both densities, each with its own context, from the weights a model starts with."""
    head = build(kind, dim=2, spread=0.0, **options)
    for module in head.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)
    generator = torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(head.parameters(), 4e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        values = torch.stack([density(128, generator) for density in DATA])
        optimizer.zero_grad()
        head.loss(CONTEXT[:, None].expand(-1, 128, -1), values).mean().backward()
        optimizer.step()
        schedule.step()
    return head


@torch.no_grad()
def distances(head: Any, contexts: Tensor = CONTEXT, **sampling: Any) -> list[float]:
    """For each density, that of the head's samples and a fresh sample of the data."""
    generator = torch.Generator().manual_seed(7)
    hidden = contexts.expand(COUNT, -1, -1)
    drawn = head.sample(hidden, noise(COUNT), **sampling)
    return [energy_distance(drawn[:, k], DATA[k](COUNT, generator)) for k in range(2)]


@pytest.fixture(scope="module")
def trained() -> Any:
    return train("flow", 500, width=48)


def test_samples_follow_the_data(trained: Any) -> None:
    floor = floors()
    for steps in (16, 32):
        reached = distances(trained, head_steps=steps)
        assert all(distance <= 3 * least for distance, least in zip(reached, floor, strict=True)), (reached, floor)


def test_wrong_samplers_do_not_follow_the_data(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the distance above is worth: it sees each of these, and a normal distribution of the right covariance."""
    floor, right = floors(), trained.denoiser.forward
    wrong = {
        "velocity with the wrong sign": lambda x, hidden, time: -right(x, hidden, time),
        "time in the wrong direction": lambda x, hidden, time: right(x, hidden, 1 - time),
        "half of the way": lambda x, hidden, time: right(x, hidden, time) / 2,
    }
    for name, forward in wrong.items():
        monkeypatch.setattr(trained.denoiser, "forward", forward)
        reached = distances(trained, head_steps=16)
        assert all(distance > 6 * least for distance, least in zip(reached, floor, strict=True)), (name, reached)
    monkeypatch.undo()
    for name, reached in {
        "the other context": distances(trained, CONTEXT.flip(0), head_steps=16),
        "a third of the noise": distances(trained, temperature=0.3, head_steps=16),
    }.items():
        assert all(distance > 6 * least for distance, least in zip(reached, floor, strict=True)), (name, reached)
    generator = torch.Generator().manual_seed(8)
    for density, least in zip(DATA, floor, strict=True):
        data = density(COUNT, generator)
        plain = data.mean(0) + torch.randn(COUNT, 2, generator=generator) @ torch.linalg.cholesky(data.T.cov()).T
        assert energy_distance(plain, data) > 6 * least
