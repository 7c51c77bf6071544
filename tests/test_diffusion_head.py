"""The diffusion head, what it shares with the energy head, and that samples follow the data they learnt from."""

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
from unimodal_ar.heads.diffusion import LEVELS, SIGNAL
from unimodal_ar.noise import SampleNoise, normal

KINDS = ["diffusion", "energy"]


# --- options and inputs -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "diffusion", "steps": 0}, "head.steps is 0: "),
        ({"kind": "diffusion", "steps": 1001}, "head.steps is 1001: .*less than or equal to 1000"),
        ({"kind": "diffusion", "draws": 0}, "head.draws is 0: "),
        ({"kind": "diffusion", "alpha": 1.0}, "head has an unknown key 'alpha'"),
        ({"kind": "energy", "width": 0}, "head.width is 0: "),
        ({"kind": "energy", "layers": 0}, "head.layers is 0: "),
        ({"kind": "energy", "noise": 0}, "head.noise is 0: "),
        ({"kind": "energy", "draws": 1}, "head.draws is 1: .*greater than or equal to 2"),
        ({"kind": "energy", "alpha": 0.0}, "head.alpha is 0.0: .*greater than 0"),
        ({"kind": "energy", "alpha": 2.0}, "head.alpha is 2.0: .*less than 2"),
    ],
)
def test_options_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        ({"top_k": 5}, r"top_k is 5; \w+ draws real vectors and takes no top_k"),
        ({"top_p": 0.9}, r"top_p is 0.9; \w+ draws real vectors and takes no top_p"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be a finite number >= 0"),
        ({"temperature": math.nan}, "temperature is nan; it must be a finite number >= 0"),
    ],
)
def test_sampling_is_checked(kind: str, sampling: dict[str, Any], message: str) -> None:
    head, hidden = build(kind), some_hidden(2, 1)
    with pytest.raises(ValueError, match=message):
        head.sample(hidden, **sampling)
    with pytest.raises(ValueError, match=message):
        head.sample_guided(hidden, hidden, 2.0, **sampling)


@pytest.mark.parametrize(
    ("steps", "message"),
    [(0, "an integer >= 1"), (2.5, "an integer >= 1"), (1001, "at most 1000, the number of noise levels")],
)
def test_the_number_of_steps_is_checked(steps: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"head_steps is {steps}; it must be {message}"):
        build("diffusion").sample(some_hidden(2), head_steps=steps)


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_checked(kind: str) -> None:
    with pytest.raises(ValueError, match=r"values have shape \(2, 5, 1\); .* ask for \(2, 5, 3\)"):
        build(kind).loss(some_hidden(2, 5), torch.zeros(2, 5, 1))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(), (4,), (4, 5), (2, 3, 4)])
def test_any_leading_shape(kind: str, shape: tuple[int, ...]) -> None:
    head, hidden = build(kind, width=12, layers=2), some_hidden(*shape)
    assert head.loss(hidden, some_values(*shape)).shape == shape
    assert head.sample(hidden, torch.Generator().manual_seed(0)).shape == (*shape, DIM)
    assert head.sample_guided(hidden, hidden + 1, 2.0).shape == (*shape, DIM)


# --- the loss ---------------------------------------------------------------------------------------------------------


def test_the_schedule_is_the_cosine() -> None:
    ideal = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1, 1000)]
    start = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    assert SIGNAL[:-1].tolist() == pytest.approx([a / start for a in ideal], rel=1e-9)
    assert SIGNAL[-1] == pytest.approx(SIGNAL[-2] / 1000) and len(SIGNAL) == LEVELS


def test_the_loss_is_the_noise_s_squared_error() -> None:
    """Straight from the formula, draw by draw and element by element."""
    head, hidden, values = build("diffusion", draws=2), some_hidden(2, 3), some_values(2, 3)
    observed = torch.rand(2, 3, DIM, generator=torch.Generator().manual_seed(5)) < 0.7
    observed[1, 1] = False
    loss = seeded_loss(head, hidden, values, observed)
    torch.manual_seed(4)
    e, level = torch.randn(2, 2, 3, DIM), torch.randint(1000, (2, 2, 3))
    for place in [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]:
        x, seen = torch.where(observed[place], values[place], 0.0), observed[place].tolist()
        errors = []
        for draw in range(2):
            t, drawn = int(level[draw][place]), e[draw][place]
            a = float(SIGNAL[t])
            x_t = math.sqrt(a) * x + math.sqrt(1 - a) * drawn
            v = head.denoiser(x_t, hidden[place], torch.tensor(t / 1000)).detach()
            guess = math.sqrt(1 - a) * x_t + math.sqrt(a) * v
            errors += [float(guess[d] - drawn[d]) ** 2 for d in range(DIM) if seen[d]]
        expected = sum(errors) / len(errors) if errors else 0.0
        assert float(loss[place].detach()) == pytest.approx(expected, rel=1e-4), place


def test_the_loss_is_safe_at_both_ends() -> None:
    """At level 0 the noise's own part is 1/25,000 of the variance, and at level 999 the signal's 1/400,000,000."""
    head, hidden, values = build("diffusion"), some_hidden(4, 500), some_values(4, 500)
    for level in (0, 999):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(torch, "randint", lambda high, size, device, t=level: torch.full(size, t, device=device))
            loss, exact = (seeded_loss(head.to(kind), hidden, values) for kind in (torch.float32, torch.float64))
        torch.testing.assert_close(loss.double(), exact.double(), rtol=1e-3, atol=1e-6)
        assert loss.max() < 20 if level == 0 else loss.max() < 1e-6


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
    full, whole = seeded_loss(head, hidden, target), observed.all(-1)
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
    gradient = (head.denoiser if kind == "diffusion" else head.network).output.weight.grad
    assert (gradient[1] == 0).all() and (gradient[[0, 2]] != 0).all()


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
    torch.testing.assert_close(sample.double(), drawn, rtol=1e-3, atol=1e-3)
    coarse = values.bfloat16()
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
            torch.testing.assert_close(alone[0], together[i], rtol=1e-3, atol=1e-3)
        assert not torch.isclose(draw(slice(None), noise(7, seed=6)), together).any()


@pytest.mark.parametrize("kind", KINDS)
def test_temperature_zero_is_deterministic(kind: str) -> None:
    head, hidden = build(kind), some_hidden(3, 2)
    drawn = head.sample(hidden, noise(3), temperature=0.0)
    assert torch.equal(head.sample(hidden, noise(3, seed=1), temperature=0.0), drawn)
    assert not torch.isclose(head.sample(hidden, noise(3), temperature=0.5), drawn).any()


@pytest.mark.parametrize("kind", KINDS)
def test_guidance_one_is_none_and_zero_leaves_the_context_out(kind: str) -> None:
    head, hidden, free = build(kind), some_hidden(3, 2), some_hidden(3, 2, seed=6)
    guided = [head.sample_guided(hidden, free, scale, generator=noise(3)) for scale in (0.0, 1.0, 2.0)]
    torch.testing.assert_close(guided[0], head.sample(free, noise(3)), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(guided[1], head.sample(hidden, noise(3)), rtol=1e-3, atol=1e-3)
    assert not torch.isclose(guided[2], 2 * guided[1] - guided[0], rtol=1e-2).all()  # it acts inside, not at the end


def test_two_steps_by_hand() -> None:
    """Levels 999 and 0: DDPM's posterior mean, its noise of variance 1 - a_999 / a_0, and the mean of x at the end."""
    head, hidden, free = build("diffusion").double(), some_hidden(3, 2).double(), some_hidden(3, 2, seed=6).double()
    source = noise(3)
    first, second = (normal((3, 2, DIM), source, torch.device("cpu")) for _ in range(2))
    a, b = float(SIGNAL[999]), float(SIGNAL[0])

    def clean(x: Tensor, level: int, signal: float) -> Tensor:
        guesses = []
        for context in (free, hidden):
            v = head.denoiser(x, context, torch.tensor(level / 1000))
            e = math.sqrt(1 - signal) * x + math.sqrt(signal) * v
            guesses.append((x - math.sqrt(1 - signal) * e) / math.sqrt(signal))
        return guesses[0] + 2 * (guesses[1] - guesses[0])

    for temperature in (1.0, 0.6):
        x = temperature * first
        mean = math.sqrt(b) * (1 - a / b) / (1 - a) * clean(x, 999, a) + math.sqrt(a / b) * (1 - b) / (1 - a) * x
        x = mean + temperature * math.sqrt(1 - a / b) * second
        drawn = head.sample_guided(hidden, free, 2.0, generator=noise(3), temperature=temperature, head_steps=2)
        torch.testing.assert_close(drawn, clean(x, 0, b))


def test_steps_count_evaluations_at_evenly_spaced_levels() -> None:
    head, hidden, told = build("diffusion", steps=6), some_hidden(2, 1), []
    head.denoiser.register_forward_hook(lambda module, inputs, output: told.append(float(inputs[2])))
    for steps, levels in {
        1: [0.999],
        4: [0.999, 0.666, 0.333, 0.0],
        None: [0.999, 0.799, 0.599, 0.4, 0.2, 0.0],
    }.items():
        told.clear()
        head.sample(hidden, head_steps=steps)
        assert told == pytest.approx(levels, abs=1e-6)
    told.clear()
    head.sample(hidden, head_steps=1000)
    assert told == pytest.approx([t / 1000 for t in range(999, -1, -1)])


@pytest.mark.parametrize("steps", [2, 10, 40])
def test_a_network_of_zeros_draws_the_standard_normal(steps: int) -> None:
    """Variance by variance, as the class says: no step may lose or add any."""
    head = build("diffusion")
    torch.nn.init.zeros_(head.denoiser.output.weight)
    torch.nn.init.zeros_(head.denoiser.output.bias)
    drawn = head.sample(some_hidden(8_000), noise(8_000), head_steps=steps).double()
    assert drawn.mean(0).abs().max() < 4 / math.sqrt(8_000)
    torch.testing.assert_close(drawn.T.cov(), torch.eye(DIM, dtype=torch.float64), rtol=0, atol=0.06)


# --- recovery ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Any:
    return train("diffusion", 500, width=48)


def test_samples_follow_the_data(trained: Any) -> None:
    floor = floors()
    for steps in (None, 100):
        reached = distances(trained, head_steps=steps)
        assert all(distance <= 3 * least for distance, least in zip(reached, floor, strict=True)), (reached, floor)


def test_wrong_samplers_do_not_follow_the_data(trained: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the distance above is worth: it sees each of these."""
    floor, right = floors(), trained.denoiser.forward
    wrong = {
        "prediction with the wrong sign": lambda x, hidden, level: -right(x, hidden, level),
        "levels in the wrong direction": lambda x, hidden, level: right(x, hidden, 0.999 - level),
        "half of the prediction": lambda x, hidden, level: right(x, hidden, level) / 2,
    }
    for name, forward in wrong.items():
        monkeypatch.setattr(trained.denoiser, "forward", forward)
        reached = distances(trained)
        assert all(distance > 6 * least for distance, least in zip(reached, floor, strict=True)), (name, reached)
    monkeypatch.undo()
    for name, reached in {
        "the other context": distances(trained, CONTEXT.flip(0)),
        "half of the noise": distances(trained, temperature=0.5),
        "one step": distances(trained, head_steps=1),
    }.items():
        assert all(distance > 6 * least for distance, least in zip(reached, floor, strict=True)), (name, reached)
