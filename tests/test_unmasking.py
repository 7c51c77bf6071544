"""Samplers of mask noise against straight-line references, and the distributions of noise levels."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.helpers import P_VALUE, build, codes, diffusion, full_hidden, label, labels, noise_as, series
from unimodal_ar import Segment
from unimodal_ar.noise import SampleNoise
from unimodal_ar.objectives.levels import LEVELS, parse_levels, stratified
from unimodal_ar.objectives.noise import Noisy
from unimodal_ar.objectives.unmasking import SAMPLERS, Pass, build_sampler

ROWS = 40


def noise(seed: int = 0, rows: int = ROWS) -> SampleNoise:
    return SampleNoise(seed, torch.arange(rows))


def some_masked(n: int, seed: int = 0) -> Tensor:
    """[ROWS, n] bool: none, one, ... of the elements, anywhere; all in the last row."""
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(ROWS, n, generator=generator) < torch.linspace(0, 1, ROWS)[:, None]
    masked[0], masked[-1] = False, True
    return masked


def history(sampler: Any, masked: Tensor, passes: int, asked: Tensor | None = None, seed: int = 0) -> list[Tensor]:
    """What is shown in each pass, [B, n] bool."""
    source, initially, shown = noise(seed, len(masked)), masked.sum(1), []
    for number in range(passes):
        now = sampler.shown(Pass(number, passes, masked, initially, source, asked))
        assert now.dtype == torch.bool and not (now & ~masked).any()
        shown.append(now)
        masked = masked & ~now
    assert not masked.any()  # after the last pass nothing is hidden
    return shown


def make(kind: str, **options: Any) -> Any:
    head = build({"x": codes()}).heads["x"]
    return build_sampler({"kind": kind, **options}, head)


# --- how many ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("passes", range(1, 8))
@pytest.mark.parametrize("order", ["random", "forward"])
def test_what_is_due_is_even(order: str, passes: int) -> None:
    """Of k hidden elements floor(k (P - p) / P) are hidden after p of P passes: never two of seven in one of seven."""
    masked = some_masked(7)
    shown = history(make("first_hitting", order=order), masked, passes)
    k = masked.sum(1)
    for number in range(passes):
        after = k - sum(now.sum(1) for now in shown[: number + 1])
        assert torch.equal(after, torch.tensor([int(x) * (passes - number - 1) // passes for x in k]))
    most = int(torch.stack([now.sum(1) for now in shown]).max())
    assert most == math.ceil(7 / passes)
    assert passes < 7 or most == 1


@pytest.mark.parametrize("passes", [1, 2, 4, 8])
def test_a_cosine_curve_starts_slowly(passes: int) -> None:
    """MaskGIT: after p of P passes floor(n cos(pi p / 2P)) are hidden."""
    masked = torch.ones(ROWS, 16, dtype=torch.bool)
    hidden = 16 - torch.stack(
        [now.sum(1) for now in history(make("first_hitting", curve="cosine"), masked, passes)]
    ).cumsum(0)
    expected = [math.floor(16 * math.cos(math.pi / 2 * (p + 1) / passes) + 1e-9) for p in range(passes)]
    assert hidden[:, 0].tolist() == expected and (hidden == hidden[:, :1]).all()


# --- which ------------------------------------------------------------------------------------------------------------


def test_first_hitting_takes_random_sets() -> None:
    """In every order equally often."""
    rows = 6000
    shown = history(make("first_hitting"), torch.ones(rows, 3, dtype=torch.bool), 3)
    order = torch.stack([now.long().argmax(1) for now in shown], 1)
    counts = torch.bincount((order * torch.tensor([9, 3, 1])).sum(1), minlength=27)
    counts = counts[counts > 0]
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > P_VALUE


def test_forward_takes_the_first() -> None:
    masked = some_masked(6)
    masked[-2] = torch.tensor([0, 1, 1, 0, 1, 1]).bool()
    shown = history(make("first_hitting", order="forward"), masked, 6)
    for row in range(ROWS):
        order = [int(place) for now in shown for place in now[row].nonzero().flatten()]
        assert order == masked[row].nonzero().flatten().tolist()


@pytest.mark.parametrize("passes", [1, 3, 5])
def test_ancestral_shows_each_element_at_its_own_time(passes: int) -> None:
    """From level 1 - p / P to 1 - (p + 1) / P an element is shown with probability 1 / (P - p): its pass is uniform,
    and independent of the others'."""
    rows = 4000
    shown = torch.stack(history(make("ancestral"), torch.ones(rows, 2, dtype=torch.bool), passes), 0)
    when = shown.long().argmax(0)
    pairs = torch.bincount(when[:, 0] * passes + when[:, 1], minlength=passes**2)
    assert len(pairs) == passes**2
    assert passes == 1 or stats.chisquare(pairs).pvalue > P_VALUE


@pytest.mark.parametrize("randomness", [0.0, 4.5])
@pytest.mark.parametrize("curve", ["linear", "cosine"])
def test_confidence_against_a_loop(curve: str, randomness: float) -> None:
    n, passes = 9, 4
    masked, asked = some_masked(n), -torch.rand(ROWS, n).double() * 3
    shown = history(make("confidence", curve=curve, randomness=randomness), masked, passes, asked)
    source, left = noise(), masked.clone()
    for number in range(passes):
        u = source.uniform((ROWS, n)).numpy()
        for row in range(ROWS):
            k = int(masked[row].sum())
            share = (passes - number - 1) / passes
            hidden = math.floor(k * (share if curve == "linear" else math.cos(math.pi / 2 * (1 - share))) + 1e-9)
            count = int(left[row].sum()) - hidden
            fade = 1 - (number + 1) / passes
            score = {i: float(asked[row, i]) - randomness * fade * math.log(-math.log(u[row, i])) for i in range(n)}
            candidates = [i for i in range(n) if left[row, i]]
            best = set(sorted(candidates, key=lambda i: -score[i])[:count])
            assert set(shown[number][row].nonzero().flatten().tolist()) == best
        left &= ~shown[number]
    plain = history(make("confidence", curve=curve, randomness=0.0), masked, passes, asked)
    same = all(torch.equal(one, two) for one, two in zip(shown, plain, strict=True))
    assert same == (randomness == 0)


@pytest.mark.parametrize("probability", [0.3, 0.6, 0.95])
def test_threshold_against_a_loop(probability: float) -> None:
    n, passes = 8, 8
    masked, asked = some_masked(n), torch.rand(ROWS, n).double().log()
    shown = history(make("threshold", probability=probability), masked, passes, asked)
    left = masked.clone()
    for number in range(passes):
        for row in range(ROWS):
            candidates = [i for i in range(n) if left[row, i]]
            hidden = int(masked[row].sum()) * (passes - number - 1) // passes
            count = max(len(candidates) - hidden, 1)
            expected = {i for i in candidates if asked[row, i].exp() >= probability - 1e-12}
            expected |= set(sorted(candidates, key=lambda i: -float(asked[row, i]))[:count])
            assert set(shown[number][row].nonzero().flatten().tolist()) == expected
        left &= ~shown[number]


@pytest.mark.parametrize("probability", [0.2, 0.6, 0.95])
def test_threshold_in_random_order_against_a_loop(probability: float) -> None:
    n, passes = 8, 8
    masked, asked = some_masked(n), torch.rand(ROWS, n).double().log()
    shown = history(make("threshold", probability=probability, order="random"), masked, passes, asked)
    source, left = noise(), masked.clone()
    for number in range(passes):
        u = source.uniform((ROWS, n))
        for row in range(ROWS):
            candidates = sorted((i for i in range(n) if left[row, i]), key=lambda i: -float(u[row, i]))
            count = max(len(candidates) - int(masked[row].sum()) * (passes - number - 1) // passes, 1)
            while count < len(candidates) and all(
                asked[row, i].exp() >= probability for i in candidates[1 : count + 1]
            ):
                count += 1
            assert set(shown[number][row].nonzero().flatten().tolist()) == set(candidates[:count])
        left &= ~shown[number]


def test_threshold_in_random_order_shows_any_element_first() -> None:
    """As often as any other, however sure it is; and at temperature 0 the surest, as without it."""
    sampler = make("threshold", probability=0.5, order="random")
    asked = torch.tensor([0.9, 0.4, 0.1]).log().expand(3000, 3)
    masked = torch.ones(3000, 3, dtype=torch.bool)
    alone = [now for now in history(sampler, masked, 3, asked)[0] if now.sum() == 1]
    counts = torch.stack(alone).sum(0)  # two of the six orders go on with the sure element
    assert stats.chisquare(counts, np.array([2, 1, 1]) / 4 * len(alone)).pvalue > P_VALUE
    cold = history(sampler.cold(), masked[:1], 3, asked[:1])
    assert [now[0].tolist() for now in cold] == torch.eye(3).bool().tolist()


@pytest.mark.parametrize("bound", [0.1, 0.5, 2.0])
def test_entropy_bound_against_a_loop(bound: float) -> None:
    """The largest set of least entropies whose sum, without the largest of them, is at most the bound."""
    n, passes = 8, 8
    masked, asked = some_masked(n), torch.rand(ROWS, n).double()
    shown = history(make("entropy_bound", bound=bound), masked, passes, asked)
    left, more = masked.clone(), 0
    for number in range(passes):
        for row in range(ROWS):
            candidates = sorted((i for i in range(n) if left[row, i]), key=lambda i: float(asked[row, i]))
            hidden = int(masked[row].sum()) * (passes - number - 1) // passes
            size = max(len(candidates) - hidden, 0)
            for count in range(1, len(candidates) + 1):
                entropies = [float(asked[row, i]) for i in candidates[:count]]
                if sum(entropies) - max(entropies) <= bound:
                    more += count > size
                    size = max(size, count)
            assert set(shown[number][row].nonzero().flatten().tolist()) == set(candidates[:size])
        left &= ~shown[number]
    assert more > 0


@pytest.mark.parametrize(
    ("kind", "slow", "fast"),
    [
        ("threshold", {"probability": 1.0}, {"probability": 1e-9}),
        ("entropy_bound", {"bound": 0.0}, {"bound": 1e9}),
    ],
)
def test_extremes_are_one_by_one_and_all_at_once(kind: str, slow: dict[str, Any], fast: dict[str, Any]) -> None:
    n = 6
    masked, asked = torch.ones(ROWS, n, dtype=torch.bool), torch.rand(ROWS, n).double().clamp(0.01, 0.99)
    asked = asked.log() if kind == "threshold" else asked
    assert all((now.sum(1) == 1).all() for now in history(make(kind, **slow), masked, n, asked))
    partly = some_masked(n)
    shown = history(make(kind, **fast), partly, n, asked)
    assert torch.equal(shown[0], partly)


# --- with a model -----------------------------------------------------------------------------------------------------

GRID, N = (1, 2, 4), 8

DETERMINISTIC: list[dict[str, Any]] = [
    {"kind": "first_hitting", "order": "forward"},
    {"kind": "first_hitting", "order": "forward", "curve": "cosine"},
    {"kind": "confidence", "randomness": 0.0},
    {"kind": "threshold", "probability": 0.7},
    {"kind": "entropy_bound", "bound": 0.6},
]


def next_shown(
    sampler: dict[str, Any], log_prob: Tensor, left: list[int], number: int, passes: int, n: int
) -> set[int]:
    """Of one block of one example: which of the hidden places `left` are shown, given log-probabilities [n, V]."""
    entropy = -(log_prob.exp() * log_prob).sum(-1)
    best = log_prob.max(-1).values
    share = (passes - number - 1) / passes
    cosine = sampler.get("curve", "cosine" if sampler["kind"] == "confidence" else "linear") == "cosine"
    hidden = math.floor(n * (math.cos(math.pi / 2 * (1 - share)) if cosine else share) + 1e-9)
    due = max(len(left) - hidden, 0)
    if sampler["kind"] == "first_hitting":
        return set(left[:due])
    if sampler["kind"] != "entropy_bound":
        due = max(due, 1) if sampler["kind"] == "threshold" else due
        ordered = sorted(left, key=lambda i: -float(best[i]))
        sure = [i for i in left if best[i] >= math.log(sampler.get("probability", 2))]
        return set(ordered[:due]) | set(sure)
    ordered = sorted(left, key=lambda i: float(entropy[i]))
    sizes = [k for k in range(1, len(left) + 1) if sum(float(entropy[i]) for i in ordered[: k - 1]) <= sampler["bound"]]
    return set(ordered[: max([due, *sizes])])


def without_context(model: Any) -> Any:
    free = copy.deepcopy(model)
    with torch.no_grad():
        embedding = free.embeddings["label"]
        embedding.table.weight.copy_(embedding.null.expand_as(embedding.table.weight))
    return free


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("sampler", DETERMINISTIC, ids=str)
def test_temperature_0_against_a_loop_without_a_cache(sampler: dict[str, Any], scale: float) -> None:
    """The whole loop, written out: full passes, one example and one block at a time."""
    model = build({"x": codes(4, GRID, 4) | diffusion("mask"), "label": label(null_probability=0.1)})
    free = without_context(model)
    steps = 3
    drawn = model.generate(
        [labels(0, 3)], "x", steps=steps, sampler=sampler, temperature=0.0, guidance_scale=scale, num_samples=2
    )
    assert torch.equal(drawn.values[0::2], drawn.values[1::2])
    for row, context in enumerate((labels(0), labels(3))):
        values, masked = torch.zeros(1, N, dtype=torch.long), torch.ones(1, N, dtype=torch.bool)
        for block in (range(4), range(4, 8)):
            for number in range(steps):
                hidden = []
                for body in (model, free):
                    with noise_as(body, Noisy(values, masked=masked)):
                        hidden.append(full_hidden(body, [context, Segment("x", values, GRID)])[:, 1 : 1 + N])
                guided = hidden[1] + scale * (hidden[0] - hidden[1])
                log_prob = model.heads["x"].logits(guided)[0, :, 0].log_softmax(-1)
                left = [i for i in block if masked[0, i]]
                if not left:
                    continue
                for i in next_shown(sampler, log_prob, left, number, steps, 4):
                    values[0, i], masked[0, i] = log_prob[i].argmax(), False
        assert torch.equal(drawn.values[2 * row], values[0])


def test_sure_blocks_take_few_passes() -> None:
    """A model that is sure of everything takes a pass per block; one that knows nothing takes one per element."""
    for spread, expected in ((30.0, 2), (0.0, 8)):
        model = build({"x": codes(4, GRID, 4, head={"kind": "categorical", "bias": True}) | diffusion("mask")})
        with torch.no_grad():
            model.heads["x"].proj.weight.zero_()
            model.heads["x"].proj.bias.copy_(spread * torch.arange(4))
        calls: list[int] = []
        hook = model.backbone.register_forward_hook(lambda *args, calls=calls: calls.append(1))
        model.generate([], "x", sampler={"kind": "threshold"}, num_samples=5)
        assert len(calls) == expected
        calls.clear()
        model.generate([], "x", sampler={"kind": "entropy_bound"}, num_samples=5)
        assert len(calls) == expected
        hook.remove()


@pytest.mark.parametrize("kind", SAMPLERS)
def test_every_sampler_with_elements_of_two_codes(kind: str) -> None:
    element = {"kind": "discrete", "vocab_size": 3, "codes": 2}
    model = build({"x": codes(grid=GRID, block=4, element=element) | diffusion("mask")})
    drawn = model.generate([], "x", steps=2, sampler={"kind": kind}, num_samples=50).values
    assert drawn.shape == (50, N, 2) and len(drawn.unique(dim=0)) > 10
    assert drawn.min() == 0 and drawn.max() == 2


# --- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["confidence", "threshold", "entropy_bound"])
def test_a_head_must_tell_what_is_asked(kind: str) -> None:
    model = build({"x": series() | diffusion("mask")})
    asks = {"confidence": "log_prob", "threshold": "max_log_prob", "entropy_bound": "entropy"}[kind]
    message = f"sampler.kind is '{kind}', which asks the head for its {asks}; RegressionHead has none, and "
    with pytest.raises(ValueError, match=re.escape(message + "goes with ['first_hitting', 'ancestral']")):
        model.generate([], "x", sampler={"kind": kind})
    mixture = build({"x": series(head={"kind": "mixture"}) | diffusion("mask")})
    if kind == "confidence":  # densities can be compared with each other
        assert mixture.generate([], "x", sampler={"kind": kind}).values.isfinite().all()
    else:
        with pytest.raises(ValueError, match=f"sampler.kind is '{kind}'.*MixtureHead has none"):
            mixture.generate([], "x", sampler={"kind": kind})


@pytest.mark.parametrize(
    ("sampler", "message"),
    [
        ({"kind": "best"}, "sampler is {'kind': 'best'}; for mask noise it must be a mapping whose 'kind' is one of"),
        ("confidence", "sampler is 'confidence'; it must be None or a mapping with a 'kind'"),
        ({"kind": "threshold", "probability": 0}, "sampler.probability"),
        ({"kind": "entropy_bound", "bound": -1}, "sampler.bound"),
        ({"kind": "confidence", "randomness": float("inf")}, "sampler.randomness"),
        ({"kind": "first_hitting", "order": "backward"}, "sampler.order"),
    ],
)
def test_samplers_that_do_not_exist(sampler: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        build({"x": codes() | diffusion("mask")}).generate([], "x", sampler=sampler)


# --- levels -----------------------------------------------------------------------------------------------------------

DISTRIBUTIONS: list[tuple[dict[str, Any], Any]] = [
    ({"kind": "uniform"}, stats.uniform(0, 1)),
    ({"kind": "uniform", "low": 0.3, "high": 0.8}, stats.uniform(0.3, 0.5)),
    ({"kind": "truncated_normal"}, stats.truncnorm((0.7 - 1) / 0.25, 0, 1, 0.25)),
    (
        {"kind": "truncated_normal", "mean": 0.4, "std": 0.5, "low": 0.1},
        stats.truncnorm((0.1 - 0.4) / 0.5, (1 - 0.4) / 0.5, 0.4, 0.5),
    ),
]


@pytest.mark.parametrize(("written", "distribution"), DISTRIBUTIONS, ids=[str(written) for written, _ in DISTRIBUTIONS])
def test_levels_follow_their_distributions(written: dict[str, Any], distribution: Any) -> None:
    u = torch.rand(4000, dtype=torch.float64)
    drawn = parse_levels(written).quantile(u).numpy()
    assert stats.kstest(drawn, distribution.cdf).pvalue > P_VALUE
    assert stats.kstest(drawn**1.2, distribution.cdf).pvalue < P_VALUE  # the test can fail
    np.testing.assert_allclose(drawn, distribution.ppf(u.numpy()), atol=1e-9)
    assert drawn.min() >= 0 and drawn.max() <= 1


def test_levels_of_a_transformed_variable() -> None:
    u = torch.rand(4000, dtype=torch.float64)
    logit = torch.logit(parse_levels({"kind": "logit_normal", "mean": -0.5, "std": 1.3}).quantile(u)).numpy()
    assert stats.kstest(logit, stats.norm(-0.5, 1.3).cdf).pvalue > P_VALUE
    assert stats.kstest(logit, stats.norm(0, 1).cdf).pvalue < P_VALUE
    angle = torch.arccos(parse_levels({"kind": "cosine"}).quantile(u)).numpy()
    assert stats.kstest(angle, stats.uniform(0, math.pi / 2).cdf).pvalue > P_VALUE


@pytest.mark.parametrize("kind", LEVELS)
def test_levels_stay_in_their_range_at_the_ends(kind: str) -> None:
    ends = torch.tensor([1e-300, 1e-12, 0.5, 1 - 1e-12], dtype=torch.float64)
    level = parse_levels({"kind": kind}).quantile(ends)
    assert level.isfinite().all() and (level >= 0).all() and (level <= 1).all()


@pytest.mark.parametrize("shape", [(1, 1), (8, 5), (33, 3)])
def test_stratified_numbers_cover_every_stratum(shape: tuple[int, int]) -> None:
    count = shape[0] * shape[1]
    u = stratified(shape, torch.device("cpu"))
    assert u.shape == shape and u.dtype == torch.float64
    assert (u.flatten() * count).floor().sort().values.tolist() == list(range(count))
    many = torch.stack([stratified((4, 2), torch.device("cpu"))[1, 1] for _ in range(2000)])
    assert stats.kstest(many.numpy(), "uniform").pvalue > P_VALUE  # each of them is uniform
