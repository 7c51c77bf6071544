"""Heads: exact where a reference exists (scipy, torch.distributions), statistical with stated bounds elsewhere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn

from unimodal_ar.heads import CategoricalHead, MixtureHead, build_head
from unimodal_ar.heads.mixture import StudentT
from unimodal_ar.noise import SampleNoise
from unimodal_ar.schema import ContinuousElement, DiscreteElement

HIDDEN = 8
CONTINUOUS = ["regression", "quantile", "mixture"]
P_VALUE = 1e-4  # a goodness-of-fit test with a fixed seed fails below it


def discrete(vocab_size: int = 6, codes: int = 1, **options: Any) -> CategoricalHead:
    torch.manual_seed(0)
    element = DiscreteElement(kind="discrete", vocab_size=vocab_size, codes=codes)
    head = build_head(HIDDEN, element, {"kind": "categorical", **options})
    assert isinstance(head, CategoricalHead)
    return head


def continuous(kind: str, dim: int = 3, hidden_size: int = HIDDEN, **options: Any) -> Any:
    torch.manual_seed(0)
    return build_head(hidden_size, ContinuousElement(kind="continuous", dim=dim), {"kind": kind, **options})


def wide(head, spread: float = 1.0):
    """Gives a fresh head parameters far from its initialisation."""
    torch.manual_seed(1)
    nn.init.normal_(head.proj.weight, std=spread)
    return head


def some_hidden(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed))


def noise(count: int, seed: int = 0) -> SampleNoise:
    return SampleNoise(seed, torch.arange(count))


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"kind": "categorial"}, r"head is \{'kind': 'categorial'\}; .*one of \['categorical', 'depth_ar'"),
        ({}, r"head is \{\}; it must be a mapping whose 'kind'"),
        ({"kind": ["quantile"]}, "whose 'kind' is one of"),
        ("quantile", "head is 'quantile'; it must be a mapping"),
        ({"kind": "quantile", "level": [0.5]}, "head has an unknown key 'level'; did you mean 'levels'"),
        ({"kind": "quantile", "levels": [0.1, 0.9]}, r"head.levels is .*with 0.5"),
        ({"kind": "quantile", "levels": [0.5, 0.9]}, "at least one level on either side"),
        ({"kind": "quantile", "levels": [0.6, 0.5, 0.9]}, "strictly increasing"),
        ({"kind": "quantile", "levels": [0.0, 0.5, 0.9]}, r"in \(0, 1\)"),
        ({"kind": "mixture", "components": 0}, "head.components is 0"),
        ({"kind": "mixture", "min_scale": 0.0}, "head.min_scale is 0.0"),
        ({"kind": "mixture", "family": "cauchy"}, "head.family is 'cauchy'"),
        ({"kind": "regression", "loss": "l2"}, "head.loss is 'l2'"),
        ({"kind": "regression", "loss": "huber", "delta": -1.0}, "head.delta is -1.0"),
        ({"kind": "regression", "loss": "mae", "delta": 2.0}, "head.delta is 2.0: only loss 'huber' has a delta"),
        ({"kind": "categorical"}, "element.kind is 'continuous'; CategoricalHead describes discrete elements only"),
    ],
)
def test_config_errors_name_the_culprit(config, message):
    with pytest.raises(ValueError, match=message):
        build_head(HIDDEN, ContinuousElement(kind="continuous", dim=2), config)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_continuous_heads_refuse_codes(kind):
    with pytest.raises(ValueError, match=r"element.kind is 'discrete'; \w+ describes continuous elements only"):
        build_head(HIDDEN, DiscreteElement(kind="discrete", vocab_size=4), {"kind": kind})


@pytest.mark.parametrize("kind", ["categorical", *CONTINUOUS])
def test_one_linear_layer_holds_all_parameters(kind):
    head = discrete() if kind == "categorical" else continuous(kind)
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"proj"}
    assert not list(head.buffers())


# --- categorical ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codes", [1, 3])
def test_categorical_log_prob_is_exact(codes):
    head, hidden = discrete(codes=codes, bias=True), some_hidden(2, 5)
    values = torch.randint(6, (2, 5) if codes == 1 else (2, 5, codes), generator=torch.Generator().manual_seed(0))
    reference = torch.distributions.Categorical(logits=head.logits(hidden)).log_prob(values.view(2, 5, codes)).sum(-1)
    torch.testing.assert_close(head.log_prob(hidden, values), reference)
    torch.testing.assert_close(head.loss(hidden, values), -reference)
    assert head.logits(hidden).shape == (2, 5, codes, 6)


def test_categorical_unobserved_codes_count_nothing():
    head, hidden = discrete(codes=2), some_hidden(1, 3)
    values = torch.tensor([[[1, 2], [3, -100], [9, 99]]])
    observed = torch.tensor([[[True, True], [True, False], [False, False]]])
    loss = head.loss(hidden, values, observed)
    table = -head.logits(hidden).log_softmax(-1)[0]
    torch.testing.assert_close(loss[0, 0], table[0, 0, 1] + table[0, 1, 2])
    torch.testing.assert_close(loss[0, 1], table[1, 0, 3])
    assert loss[0, 2] == 0
    elements = torch.tensor([[True, False, False]])
    torch.testing.assert_close(
        head.loss(hidden, values, elements)[0], torch.stack([loss[0, 0], loss[0, 2], loss[0, 2]])
    )
    with pytest.raises(RuntimeError):  # an observed code of -100 is an error, not "no loss"
        head.loss(hidden, values, observed=None)


def chi_square(codes: Tensor, probability: Tensor) -> float:
    """p-value of the counts; a code of probability 0 that was drawn gives 0."""
    counts = torch.bincount(codes.flatten(), minlength=len(probability)).double()
    kept = probability > 0
    if kept.sum() == 1 or counts[~kept].sum() > 0:
        return float(counts[~kept].sum() == 0)
    expected = probability[kept] / probability[kept].sum() * counts.sum()
    return stats.chisquare(counts[kept].numpy(), expected.numpy()).pvalue


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({}, [0, 1, 2, 3, 4]),
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 9}, [0, 1, 2, 3, 4]),
        ({"top_p": 0.8}, [0, 1, 2]),
        ({"top_p": 0.01}, [0]),
        ({"top_p": 1.0}, [0, 1, 2, 3, 4]),
        ({"top_k": 4, "top_p": 0.8}, [0, 1, 2]),  # after top-k: 0.42, 0.32, 0.16, 0.11
        ({"top_k": 2, "top_p": 0.5}, [0]),  # after top-k: 0.57, 0.43
    ],
)
def test_categorical_samples_what_it_claims(options, kept):
    probability = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05], dtype=torch.float64)
    shuffle = torch.tensor([3, 0, 4, 1, 2])
    head = discrete(vocab_size=5)
    head.proj.weight.data = probability[shuffle].log()[:, None].repeat(1, HIDDEN).float()
    hidden = torch.full((40_000, 1, HIDDEN), 1 / HIDDEN)
    target = torch.where(torch.isin(torch.arange(5), torch.tensor(kept)), probability, 0.0)[shuffle]
    for generator in (torch.Generator().manual_seed(0), noise(40_000)):
        codes = head.sample(hidden, generator, **options)
        assert codes.shape == (40_000, 1) and codes.dtype == torch.long
        assert chi_square(codes, target) > P_VALUE


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_categorical_temperature_and_codes(temperature):
    head = wide(discrete(vocab_size=5, codes=2), 0.3)
    hidden = some_hidden(1, 1)
    codes = head.sample(hidden.expand(40_000, 1, HIDDEN), noise(40_000), temperature)
    claimed = (head.logits(hidden)[0, 0].double() / temperature).softmax(-1).detach()
    joint = claimed[0, :, None] * claimed[1]
    assert codes.shape == (40_000, 1, 2)
    assert chi_square(codes[..., 0] * 5 + codes[..., 1], joint.flatten()) > P_VALUE
    assert torch.equal(head.sample(hidden, temperature=0), head.logits(hidden).argmax(-1))


class GivenNoise(SampleNoise):
    def __init__(self, values: Tensor) -> None:
        self.values = values

    def uniform(self, shape: Sequence[int]) -> Tensor:
        return self.values.view(*shape)


def test_categorical_noise_is_not_rounded_to_float32():
    # In float32 both 1 - 2e-9 and 1 - 1e-9 are 1, so that the rare code (20 nats down) would win in both cases.
    head = discrete(vocab_size=2)
    head.proj.weight.data = torch.tensor([[0.0], [20.0]]).repeat(1, HIDDEN) / HIDDEN
    for tail, winner in ((2e-9, 1), (1e-9, 0)):
        pair = torch.tensor([1 - tail, 0.5], dtype=torch.float64)
        assert head.sample(torch.ones(1, HIDDEN), GivenNoise(pair)).item() == winner


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be a finite number >= 0"),
        ({"temperature": math.nan}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be an integer >= 1"),
        ({"top_k": 1.5}, "top_k is 1.5"),
        ({"top_p": 0.0}, r"top_p is 0.0; it must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"top_p": math.nan}, "top_p is nan"),
    ],
)
def test_categorical_sampling_errors(options, message):
    with pytest.raises(ValueError, match=message):
        discrete().sample(some_hidden(1, 1), **options)


# --- what all heads share ---------------------------------------------------------------------------------------------


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"values have shape \(2, 5, 1\); .* ask for \(2, 5\)"):
        discrete().loss(some_hidden(2, 5), torch.zeros(2, 5, 1, dtype=torch.long))
    for kind in CONTINUOUS:
        with pytest.raises(ValueError, match=r"values have shape \(2, 5, 1\); .* ask for \(2, 5, 3\)"):
            continuous(kind).loss(some_hidden(2, 5), torch.zeros(2, 5, 1))
        with pytest.raises(ValueError, match=r"observed has shape \(2, 1\); it must be \(2, 5\) or \(2, 5, 3\)"):
            continuous(kind).loss(some_hidden(2, 5), torch.zeros(2, 5, 3), torch.ones(2, 1, dtype=torch.bool))


@pytest.mark.parametrize("kind", CONTINUOUS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": 5}, r"top_k is 5; \w+ draws real vectors and takes no top_k"),
        ({"top_p": 0.9}, r"top_p is 0.9; \w+ draws real vectors and takes no top_p"),
        ({"temperature": -1.0}, "temperature is -1.0"),
    ],
)
def test_continuous_sampling_errors(kind, options, message):
    with pytest.raises(ValueError, match=message):
        continuous(kind).sample(some_hidden(1, 1), **options)


@pytest.mark.parametrize("kind", ["quantile", "mixture"])
@pytest.mark.parametrize("levels", [[0.0], [0.5, 1.0], [], [math.nan], [[0.5]]])
def test_quantile_levels_are_checked(kind, levels):
    with pytest.raises(ValueError, match=r"levels are .* strictly between 0 and 1"):
        continuous(kind).quantiles(some_hidden(1), levels)


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_missing_values_neither_count_nor_poison(kind):
    head, hidden = wide(continuous(kind), 0.3), some_hidden(2, 4).requires_grad_()
    target = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(3))
    observed = torch.ones(2, 4, 3, dtype=torch.bool)
    observed[0, 1, 2] = observed[1, 0, 0] = observed[1, 0, 1] = False
    observed[1, 3] = False
    poisoned = torch.where(observed, target, torch.nan)
    loss = head.loss(hidden, poisoned, observed)
    loss.sum().backward()
    assert hidden.grad is not None
    gradients = [hidden.grad, *(parameter.grad for parameter in head.parameters())]
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    assert loss[1, 3] == 0 and (hidden.grad[1, 3] == 0).all() and (hidden.grad[0] != 0).all()
    full = head.loss(hidden, target)
    whole = observed.all(-1)
    torch.testing.assert_close(loss[whole], full[whole])
    assert not torch.isclose(loss[0, 1], full[0, 1])
    # what a missing value is does not matter, and a mask of elements is one of all their values
    torch.testing.assert_close(head.loss(hidden, torch.where(observed, target, 1e9), observed), loss)
    elements = torch.tensor([[True] * 4, [True, True, True, False]])
    torch.testing.assert_close(
        head.loss(hidden, target, elements), head.loss(hidden, target, elements[..., None].expand(2, 4, 3))
    )


@pytest.mark.parametrize("kind", ["categorical", *CONTINUOUS])
def test_sample_does_not_depend_on_the_batch(kind):
    head = wide(discrete(codes=2) if kind == "categorical" else continuous(kind), 0.5)
    hidden = some_hidden(7, 4)
    together = head.sample(hidden, noise(7, seed=5))
    for i in range(7):
        alone = head.sample(hidden[i : i + 1], SampleNoise(5, torch.tensor([i])))
        torch.testing.assert_close(alone[0], together[i], rtol=1e-4, atol=1e-5)
    if kind != "regression":
        assert not torch.equal(head.sample(hidden, noise(7, seed=6)), together)


@pytest.mark.parametrize("kind", ["categorical", *CONTINUOUS])
@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_hidden_gives_float32_losses(kind, autocast):
    head = wide(discrete() if kind == "categorical" else continuous(kind), 0.5)
    hidden = some_hidden(4, 5).bfloat16()
    target = torch.randint(6, (4, 5)) if kind == "categorical" else torch.randn(4, 5, 3)
    exact = head.double().loss(hidden.double(), target if kind == "categorical" else target.double())
    assert exact.dtype == torch.float64
    head.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = head.loss(hidden, target)
        sample = head.sample(hidden, torch.Generator().manual_seed(0))
    assert loss.dtype == torch.float32
    assert sample.dtype == (torch.long if kind == "categorical" else torch.float32)
    # Under autocast the categorical head's matrix product is in bfloat16; the others' never is.
    tolerance = 0.05 if autocast and kind == "categorical" else 1e-5
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=tolerance)
    low = head.bfloat16().loss(hidden, target)
    assert low.dtype == torch.float32 and torch.isfinite(low).all()


# --- regression -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, (0.25 + 9.0) / 2),
        ({"loss": "mae"}, (0.5 + 3.0) / 2),
        ({"loss": "huber"}, (0.125 + 2.5) / 2),
        ({"loss": "huber", "delta": 2.0}, (0.125 + 4.0) / 2),
    ],
)
def test_regression_losses(options, expected):
    head = continuous("regression", dim=2, **options)
    nn.init.zeros_(head.proj.weight), nn.init.constant_(head.proj.bias, 1.0)
    loss = head.loss(some_hidden(1), torch.tensor([[1.5, -2.0]]))
    torch.testing.assert_close(loss, torch.tensor([expected]))


def test_regression_sample_is_the_mean():
    head, hidden = continuous("regression", bias=False), some_hidden(2, 3)
    assert head.proj.bias is None
    for temperature in (0, 1.0):
        assert torch.equal(head.sample(hidden, temperature=temperature), head.mean(hidden))
    with pytest.raises(ValueError, match=r"temperature is 0.5; RegressionHead has no spread"):
        head.sample(hidden, temperature=0.5)


# --- quantile ---------------------------------------------------------------------------------------------------------


def test_quantiles_start_as_the_standard_normal():
    head = continuous("quantile")
    nn.init.zeros_(head.proj.weight), nn.init.zeros_(head.proj.bias)
    expected = torch.tensor(stats.norm.ppf(head.levels), dtype=torch.float32).expand(2, 3, -1)
    torch.testing.assert_close(head.quantiles(some_hidden(2), head.levels), expected, rtol=1e-5, atol=1e-6)


@settings(max_examples=50, deadline=None)
@given(
    scale=st.floats(1e-4, 1e4),
    seed=st.integers(0, 2**31),
    levels=st.sampled_from([(0.4, 0.5, 0.6), (0.001, 0.2, 0.5, 0.9), (0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95)]),
)
def test_quantiles_never_cross(scale, seed, levels):
    head = continuous("quantile", levels=levels)
    hidden = some_hidden(16, seed=seed) * scale
    knots = head.knots(hidden)
    assert torch.isfinite(knots).all() and (knots.diff(dim=-1) >= 0).all()
    asked = torch.linspace(0.0005, 0.9995, 501, dtype=torch.float64)
    drawn = head.double().quantiles(hidden.double(), asked)
    rounding = 1e-12 * (1 + drawn.abs().amax())
    assert torch.isfinite(drawn).all() and (drawn.diff(dim=-1) >= -rounding).all()


def test_quantile_loss_is_the_mean_of_twice_the_pinball():
    head, hidden = wide(continuous("quantile", levels=[0.1, 0.5, 0.8])), some_hidden(4)
    target = torch.randn(4, 3)
    expected = torch.zeros(4)
    for i, level in enumerate((0.1, 0.5, 0.8)):
        error = target - head.knots(hidden)[..., i]
        expected += 2 * torch.where(error > 0, level * error, (level - 1) * error).mean(-1) / 3
    torch.testing.assert_close(head.loss(hidden, target), expected)


def test_quantile_function_interpolates_and_has_exponential_tails():
    head, hidden = wide(continuous("quantile", levels=[0.1, 0.5, 0.8])).double(), some_hidden(4).double()
    knots = head.knots(hidden)
    torch.testing.assert_close(head.quantiles(hidden, [0.1, 0.5, 0.8]), knots)
    middle = head.quantiles(hidden, [0.3])[..., 0]
    torch.testing.assert_close(middle, (knots[..., 0] + knots[..., 1]) / 2)
    left = (knots[..., 1] - knots[..., 0]) / 0.4 * 0.1
    right = (knots[..., 2] - knots[..., 1]) / 0.3 * 0.2
    outside = head.quantiles(hidden, torch.tensor([0.01, 0.98], dtype=torch.float64))
    torch.testing.assert_close(outside[..., 0], knots[..., 0] - left * math.log(10))
    torch.testing.assert_close(outside[..., 1], knots[..., 2] + right * math.log(10))


def test_quantile_mean_is_the_integral_and_the_mean_of_samples():
    head, hidden = wide(continuous("quantile", levels=[0.1, 0.5, 0.8])).double(), some_hidden(2).double()
    asked = (torch.arange(1_000_000, dtype=torch.float64) + 0.5) / 1_000_000
    integral = head.quantiles(hidden, asked).mean(-1)
    torch.testing.assert_close(head.mean(hidden), integral, rtol=0, atol=1e-4)
    count = 50_000
    drawn = head.sample(hidden.expand(count, 2, HIDDEN), noise(count))
    error = (drawn.mean(0) - head.mean(hidden)).abs() / (drawn.std(0) / math.sqrt(count))
    assert error.max() < 4.5


def test_quantile_samples_follow_the_quantile_function_and_share_their_level():
    head, hidden = wide(continuous("quantile")), some_hidden(1)
    count = 50_000
    drawn = head.sample(hidden.expand(count, HIDDEN), noise(count))
    for level in (0.01, 0.05, 0.3, 0.5, 0.77, 0.95, 0.99):
        below = (drawn <= head.quantiles(hidden, [level])[..., 0]).double().mean(0)
        assert ((below - level).abs() < 4.5 * math.sqrt(level * (1 - level) / count)).all()
    ranks = drawn.argsort(0).argsort(0)
    assert (ranks[:, 0] - ranks[:, 1]).abs().max() <= 2  # float32 ties aside, equal
    median = head.quantiles(hidden, [0.5])[..., 0]
    torch.testing.assert_close(head.sample(hidden, temperature=0), median)
    cold = head.sample(hidden.expand(count, HIDDEN), noise(count), temperature=0.5)
    torch.testing.assert_close(cold, median + (drawn - median) / 2, rtol=1e-4, atol=1e-4)


# --- mixture ----------------------------------------------------------------------------------------------------------


def reference(head: MixtureHead, hidden: Tensor) -> torch.distributions.MixtureSameFamily:
    """torch's own mixture of the element's D values, independent inside a component."""
    mixture = head.mixture(hidden)
    component: torch.distributions.Distribution
    if head.family is StudentT:
        component = torch.distributions.StudentT(mixture.shape, mixture.loc, mixture.scale)
    else:
        component = torch.distributions.Normal(mixture.loc, mixture.scale)
    weights = torch.distributions.Categorical(logits=mixture.log_weights)
    return torch.distributions.MixtureSameFamily(weights, torch.distributions.Independent(component, 1))


FAMILIES = [(family, count) for family in ("student_t", "gaussian") for count in (1, 3)]


@pytest.mark.parametrize(("family", "components"), FAMILIES)
def test_mixture_log_prob_is_exact(family, components):
    head = wide(continuous("mixture", family=family, components=components)).double()
    hidden, values = some_hidden(2, 5).double(), torch.randn(2, 5, 3).double() * 3
    exact = reference(head, hidden).log_prob(values)
    torch.testing.assert_close(head.log_prob(hidden, values), exact)
    torch.testing.assert_close(head.loss(hidden, values), -exact / 3)
    torch.testing.assert_close(
        head.float().log_prob(hidden.float(), values.float()).double(), exact, rtol=1e-4, atol=1e-4
    )


def test_mixture_marginalises_missing_values():
    head = wide(continuous("mixture", dim=2)).double()
    hidden, values = some_hidden(1).double(), torch.tensor([[0.7, torch.nan]], dtype=torch.float64)
    observed = torch.tensor([[True, False]])
    grid = torch.linspace(-4000, 4000, 800_001, dtype=torch.float64)
    pairs = torch.stack([torch.full_like(grid, 0.7), grid], -1)
    joint = head.log_prob(hidden.expand(len(grid), HIDDEN), pairs).exp()
    marginal = torch.trapezoid(joint, grid).log()
    torch.testing.assert_close(head.log_prob(hidden, values, observed)[0], marginal, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(head.loss(hidden, values, observed)[0], -marginal, rtol=1e-5, atol=1e-5)


def test_mixture_starts_with_unit_scales():
    head = continuous("mixture", components=4)
    nn.init.zeros_(head.proj.weight), nn.init.zeros_(head.proj.bias)
    mixture = head.mixture(some_hidden(1))
    torch.testing.assert_close(mixture.scale, torch.full((1, 4, 3), 1.001))
    torch.testing.assert_close(mixture.shape, torch.full((1, 4, 3), 5.0))
    torch.testing.assert_close(mixture.log_weights.exp(), torch.full((1, 4), 0.25))
    assert mixture.loc.abs().max() == 0.5 and head.mean(some_hidden(1)).abs().max() < 1e-6


def test_student_t_cdf_and_density_against_scipy():
    z = torch.cat([-torch.logspace(-3, 3, 200), torch.zeros(1), torch.logspace(-3, 3, 200)]).double()[:, None]
    freedom = torch.tensor([2.0, 2.01, 2.5, 3, 5, 9, 20, 31.9, 32.1, 100, 1e3, 1e5]).double()[None]
    cdf = StudentT.cdf(z, freedom)
    torch.testing.assert_close(cdf, torch.tensor(stats.t.cdf(z, freedom)), rtol=0, atol=1e-8)
    density = StudentT.log_density(z, freedom)
    torch.testing.assert_close(density, torch.tensor(stats.t.logpdf(z, freedom)), rtol=1e-8, atol=1e-8)
    inner = z.abs()[:, 0] < 10
    single = StudentT.log_density(z[inner].float(), freedom.float())
    torch.testing.assert_close(single.double(), density[inner], rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize("family", ["student_t", "gaussian"])
def test_single_component_quantiles_against_scipy(family):
    head = wide(continuous("mixture", family=family, components=1)).double()
    hidden = some_hidden(20).double()
    levels = [1e-4, 0.01, 0.1, 0.5, 0.9, 0.999]
    _, loc, scale, shape = (part.detach() for part in head.mixture(hidden))
    columns = [part.squeeze(-2)[..., None] for part in (loc, scale, shape)]
    law = stats.norm(columns[0], columns[1])
    if family == "student_t":
        law = stats.t(columns[2], columns[0], columns[1])
    torch.testing.assert_close(head.quantiles(hidden, levels), torch.tensor(law.ppf(levels)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("family", "components"), [("student_t", 5), ("gaussian", 2)])
@pytest.mark.parametrize("spread", [0.1, 1.0, 30.0])
def test_mixture_quantiles_invert_the_cdf(family, components, spread):
    head = wide(continuous("mixture", family=family, components=components), spread).double()
    hidden = some_hidden(20).double()
    levels = torch.tensor([1e-5, 0.01, 0.1, 0.35, 0.5, 0.9, 0.999], dtype=torch.float64)
    quantiles = head.quantiles(hidden, levels)
    assert (quantiles.diff(dim=-1) >= 0).all()
    torch.testing.assert_close(head.cdf(hidden, quantiles), levels.expand_as(quantiles), rtol=0, atol=1e-7)


@pytest.mark.parametrize(("family", "components"), FAMILIES)
def test_mixture_samples_follow_the_cdf(family, components):
    head, hidden = wide(continuous("mixture", family=family, components=components), 0.7), some_hidden(1)
    count = 20_000
    drawn = head.sample(hidden.expand(count, HIDDEN), noise(count))
    ranks = head.cdf(hidden, drawn.T[None])[0].detach()
    for column in ranks:
        assert stats.kstest(column.numpy(), "uniform").pvalue > P_VALUE
    error = (drawn.mean(0) - head.mean(hidden)[0]).abs() / (drawn.std(0) / math.sqrt(count))
    assert error.max() < 4.5
    for level in (0.05, 0.5, 0.95):
        below = (drawn <= head.quantiles(hidden, [level])[0, :, 0]).double().mean(0)
        assert ((below - level).abs() < 4.5 * math.sqrt(level * (1 - level) / count)).all()


def test_mixture_components_are_shared_by_the_patch():
    head, hidden = continuous("mixture", dim=2, components=2, family="gaussian"), some_hidden(1)
    nn.init.zeros_(head.proj.weight), nn.init.zeros_(head.proj.bias)
    head.proj.bias.data[2:6] = torch.tensor([-10.0, 10.0, 10.0, -10.0])  # component 0 at (-10, 10), 1 at (10, -10)
    drawn = head.sample(hidden.expand(2000, HIDDEN), noise(2000))
    assert (drawn[:, 0].sign() == -drawn[:, 1].sign()).all()
    assert 800 < (drawn[:, 0] > 0).sum() < 1200
    torch.testing.assert_close(head.sample(hidden, temperature=0), head.mean(hidden))


def test_mixture_temperature_sharpens_weights_and_scales():
    head, hidden = continuous("mixture", dim=1, components=2, family="gaussian"), some_hidden(1)
    nn.init.zeros_(head.proj.weight), nn.init.zeros_(head.proj.bias)
    head.proj.bias.data[:4] = torch.tensor([1.0, 0.0, -100.0, 100.0])
    count = 20_000
    drawn = head.sample(hidden.expand(count, HIDDEN), noise(count), temperature=0.5)
    left = drawn < 0
    share = 1 / (1 + math.exp(-1 / 0.5))
    assert abs(left.double().mean() - share) < 4.5 * math.sqrt(share * (1 - share) / count)
    assert abs(drawn[left].std() - 0.5005) < 4.5 * 0.5 / math.sqrt(2 * left.sum())


# --- calibration on synthetic data ------------------------------------------------------------------------------------


class Trunk(nn.Module):
    def __init__(self, head) -> None:
        super().__init__()
        self.body, self.head = nn.Sequential(nn.Linear(1, 32), nn.Tanh()), head


def fit(trunk: Trunk, draw, steps: int = 400) -> None:
    optimizer = torch.optim.Adam(trunk.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        x, y = draw(1024, generator)
        loss = trunk.head.loss(trunk.body(x), y).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def heteroscedastic(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, generator=generator) * 2 - 1
    spread = 0.2 + 0.8 * (x + 1) / 2
    return x, torch.sin(2 * x) + spread * torch.randn(count, 2, generator=generator)


def bimodal(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    x = torch.rand(count, 1, generator=generator) * 2 - 1
    side = (torch.rand(count, 1, generator=generator) < 0.5).float() * 2 - 1
    return x, x + side + 0.2 * torch.randn(count, 2, generator=generator)


# A binomial count of 80 % coverage strays by 4 standard deviations at most; 0.025 is left for the fit.
@pytest.mark.parametrize("draw", [heteroscedastic, bimodal])
@pytest.mark.parametrize("kind", ["quantile", "mixture"])
def test_fitted_intervals_are_calibrated(kind, draw):
    trunk = Trunk(continuous(kind, dim=2, hidden_size=32))
    fit(trunk, draw)
    x, y = draw(8000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        hidden = trunk.body(x)
        low, high = trunk.head.quantiles(hidden, [0.1, 0.9]).unbind(-1)
        drawn = trunk.head.sample(hidden, noise(8000))
    for part in (x[:, 0] < 0, x[:, 0] >= 0):
        bound = 4 * math.sqrt(0.8 * 0.2 / int(part.sum())) + 0.025
        for values in (y, drawn):
            inside = ((values >= low) & (values <= high))[part].double().mean(0)
            assert ((inside - 0.8).abs() < bound).all()


def test_fitted_mixture_finds_both_modes():
    trunk = Trunk(continuous("mixture", dim=2, hidden_size=32, components=2))
    fit(trunk, bimodal)
    x, y = bimodal(4000, torch.Generator().manual_seed(1))
    with torch.no_grad():
        drawn = trunk.head.sample(trunk.body(x), noise(4000)) - x
        nats = trunk.head.loss(trunk.body(x), y).mean()
    assert (drawn.abs() < 0.3).double().mean() < 0.02
    assert (drawn[:, 0].sign() == drawn[:, 1].sign()).double().mean() > 0.98
    best = 0.5 * math.log(2 * math.pi * math.e * 0.2**2) + math.log(2) / 2  # exact entropy per value of y given x
    assert best - 0.03 < nats < best + 0.05
