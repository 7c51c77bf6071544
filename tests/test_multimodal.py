"""Several modalities in one sequence: training, generation of each given the others, and what a loss counts."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import (
    BACKBONES,
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
    series,
)
from unimodal_ar import Segment, UnimodalARConfig, UnimodalARForGeneration

IMAGE = (1, 2, 3)
SERIES = (4, 1, 1)


def modalities(**more: Any) -> dict[str, dict[str, Any]]:
    kinds = {
        "label": codes(3, (1, 1, 1)),
        "series": series(2, SERIES, block=2),
        "image": codes(4, IMAGE, block="row"),
    }
    return {name: kind | more.get(name, {}) for name, kind in kinds.items()}


def examples(count: int = 16) -> dict[str, Segment]:
    """A class that decides the level of a series and the colour of an image."""
    kind = torch.arange(count) % 3
    wave = kind[:, None, None] + torch.linspace(0, 1, 4)[None, :, None] * torch.tensor([1.0, -1.0])
    image = (kind[:, None] + torch.arange(6)) % 4
    return {
        "label": Segment("label", kind[:, None], (1, 1, 1)),
        "series": Segment("series", wave, SERIES),
        "image": Segment("image", image, IMAGE),
    }


def sequence(names: tuple[str, ...], count: int = 16, context: int = 0) -> list[Segment]:
    """The segments of these names; the first `context` of them are not targets."""
    data = examples(count)
    return [data[name].replace(target=number >= context) for number, name in enumerate(names)]


TRIPLES = list(itertools.permutations(["label", "series", "image"], 3))


# --- training and generation ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["native", "llama"])
def test_one_model_learns_sequences_of_two_and_three_and_generates_each_from_the_others(backbone: str) -> None:
    model = build(modalities(), backbone, spread=0.05).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    orders = [("label", "series"), ("image", "label"), ("series", "label", "image"), ("label", "image", "series")]

    @torch.no_grad()
    def all_losses() -> list[float]:
        return [float(model(sequence(names)).loss) for names in orders]

    before = all_losses()
    for step in range(100):
        optimizer.zero_grad()
        for names in orders:
            model(sequence(names, context=step % 2)).loss.backward()
        optimizer.step()
    assert all(late < 0.6 * early for early, late in zip(before, all_losses(), strict=True))
    right, wrong = examples(3), {name: segment.select(torch.tensor([1, 2, 0])) for name, segment in examples(3).items()}
    for names in orders:  # the class is in every segment, so that each tells of the others
        last = names[-1]
        losses = [
            model([*(data[name] for name in names[:-1]), right[last]]).element_losses[last] for data in (right, wrong)
        ]
        assert losses[0].mean() < 0.5 * losses[1].mean(), names
        drawn = model.generate([right[name] for name in names[:-1]], last)
        assert drawn.values.shape == right[last].values.shape and drawn.observed is None


@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
@pytest.mark.parametrize("context", [0, 1])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_cached_decoding_of_the_last_equals_one_full_pass(backbone: str, context: int, names: tuple[str, ...]) -> None:
    """The context is committed with the same positions that training gave it, closing ones included."""
    model = build(modalities(), backbone)
    before = sequence(names, 2, context)[:2]
    with hidden_states(model) as states:
        drawn = model.generate(before, names[2], temperature=0.0)
    full = full_hidden(model, [*before, drawn])
    torch.testing.assert_close(torch.cat(states, 1), full, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("names", TRIPLES, ids="-".join)
def test_no_segment_sees_a_later_one_and_each_sees_all_of_the_earlier_ones(names: tuple[str, ...]) -> None:
    """By changing the last element of one segment, which only a closing position shows."""
    model = build(modalities())
    segments = sequence(names, 2)
    before = model(segments).element_losses
    for place, changed in enumerate(segments):
        values = changed.values.clone()
        values[:, -1] = values[:, -1] + 1 if values.is_floating_point() else (values[:, -1] + 1) % 3
        other = [*segments]
        other[place] = changed.replace(values=values)
        after = model(other).element_losses
        for number, name in enumerate(names):
            change = (after[name] - before[name]).abs()
            if number < place:
                assert change.max() == 0
            elif number > place:
                assert change.min() > 1e-5
            else:
                assert (change[:, :-1] == 0).all() and (change[:, -1] > 1e-5).all()


# --- the joint of several segments ------------------------------------------------------------------------------------

A, B, C = all_sequences(3, 1), all_sequences(2, 2), all_sequences(3, 3)


def chain(backbone: str, block: Any = 1, start: str = "learned") -> Any:
    kinds = {"a": codes(3, (1, 1, 1)), "b": codes(2, (2, 1, 1), 2), "c": codes(3, (3, 1, 1), block, start=start)}
    return build(kinds, backbone)


def triple(a: Tensor, b: Tensor, c: Tensor) -> list[Segment]:
    return [Segment("a", a, (1, 1, 1)), Segment("b", b, (2, 1, 1)), Segment("c", c, (3, 1, 1))]


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_joint_of_three_segments_is_normalised(backbone: str, block: int) -> None:
    model = chain(backbone, block)
    rows = torch.cartesian_prod(torch.arange(3), torch.arange(4), torch.arange(27))
    out = model(triple(A[rows[:, 0]], B[rows[:, 1]], C[rows[:, 2]])).element_losses
    by_segment = torch.stack([out[name].double().sum(1) for name in ("a", "b", "c")], 1)
    assert abs((-by_segment.sum(1)).exp().sum() - 1) < 1e-5
    last = (-by_segment[:, 2]).exp().view(12, 27)
    torch.testing.assert_close(last.sum(1), torch.ones(12).double(), atol=1e-5, rtol=0)
    assert (last[0] - last[1]).abs().max() > 1e-3  # b's second element, in b's only block, changes c


@pytest.mark.parametrize("a_is_target", [True, False])
@pytest.mark.parametrize("block", [1, 2])
def test_generation_after_targets_draws_from_the_conditional(block: int, a_is_target: bool) -> None:
    model = chain("native", block)
    given = [
        segment.replace(target=a_is_target or segment.modality == "b") for segment in triple(A[1:2], B[2:3], C[:1])[:2]
    ]
    many = [segment.repeat_interleave(27) for segment in given]
    probability = (
        (-model([*many, Segment("c", C, (3, 1, 1))]).element_losses["c"].double().sum(1)).exp().detach().numpy()
    )
    drawn = model.generate(given, "c", num_samples=5000, generator=torch.Generator().manual_seed(0))
    assert chi_square(frequencies(drawn.values, 3), probability) > P_VALUE
    other = [given[0], given[1].replace(values=B[3:4])]  # another last element
    drawn = model.generate(other, "c", num_samples=5000, generator=torch.Generator().manual_seed(0))
    assert chi_square(frequencies(drawn.values, 3), probability) < P_VALUE


# --- what a loss is ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["label", "series", "image"])
@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_batch_of_one_modality_has_the_loss_of_a_model_of_it_alone(backbone: str, name: str) -> None:
    # Coordinates have channels, or an embedding, where any grid needs them: the same axes in both models.
    kinds = modalities()
    for kind in kinds.values():
        kind["grid"] = (2, 2, 2) if kind["grid"] != (1, 1, 1) else kind["grid"]
    kinds["label"]["grid"] = (2, 2, 2)
    several = build(kinds, backbone)
    alone = UnimodalARForGeneration(
        UnimodalARConfig(backbone=copy.deepcopy(several.config.backbone), modalities={name: kinds[name]})
    ).eval()
    weights = {key: value for key, value in several.state_dict().items() if key in alone.state_dict()}
    alone.load_state_dict(weights)
    assert len(alone.state_dict()) == len(weights) < len(several.state_dict())
    segment = examples(5)[name]
    one, other = several([segment]), alone([segment])
    assert torch.equal(one.loss, other.loss) and set(one.losses) == {name}
    assert torch.equal(one.element_losses[name], other.element_losses[name])


def test_the_loss_is_the_weighted_sum_over_what_is_predicted() -> None:
    weights = {"label": 0.5, "series": 3.0, "image": 0.0}
    model = build(modalities(**{name: {"loss_weight": weight} for name, weight in weights.items()}))
    segments = sequence(("label", "series", "image"), 4)
    out = model(segments)
    total = sum(weights[name] * losses.sum() for name, losses in out.element_losses.items())
    torch.testing.assert_close(out.loss, total / (4 * (1 + 4 + 6)))
    for name, losses in out.element_losses.items():
        torch.testing.assert_close(out.losses[name], losses.mean())
        assert not out.losses[name].requires_grad
    torch.testing.assert_close(model(segments, num_items_in_batch=10).loss, total / 10)
    plain = build(modalities())(segments)
    for name in weights:
        torch.testing.assert_close(plain.element_losses[name], out.element_losses[name])


@pytest.mark.parametrize("start", ["learned", "none"])
@pytest.mark.parametrize("block", [1, 2, 3])
def test_count_items_is_what_forward_divides_by(start: str, block: int) -> None:
    kinds = {"x": series(3, (6, 1, 1), block, start=start), "label": label(), "y": codes(grid=(2, 1, 1))}
    model = build(kinds)
    observed = torch.rand(4, 6, 3) > 0.5
    observed[1, :4] = False
    observed[2] = False
    observed[3] = True
    x = Segment("x", torch.randn(4, 6, 3), (6, 1, 1), observed=observed)
    y = Segment("y", torch.randint(0, 3, (4, 2)), (2, 1, 1), observed=torch.rand(4, 2) > 0.5)
    for segments in ([labels(0, 1, 2, 3), x, y], [x], [x.replace(observed=None), y], [y.replace(target=False), x]):
        out, count = model(segments), model.count_items(segments)
        torch.testing.assert_close(model(segments, num_items_in_batch=count).loss, out.loss)
        by_hand = torch.zeros(())
        for segment in segments:
            if segment.target:
                predicted = out.element_losses[segment.modality] != 0
                by_hand = by_hand + (segment.observed_fraction * predicted).sum()
        torch.testing.assert_close(count, by_hand)
        # Two halves, each divided by the whole's count, add up to the whole.
        rows = torch.tensor([0, 1]), torch.tensor([2, 3])
        halves = [model([s.select(row) for s in segments], num_items_in_batch=count).loss for row in rows]
        torch.testing.assert_close(halves[0] + halves[1], out.loss, atol=1e-5, rtol=1e-5)
    every = model.count_items([x.replace(observed=None)])
    assert every == 4 * (6 if start == "learned" else 6 - block)


def test_a_batch_without_anything_to_predict_has_loss_0() -> None:
    model = build({"x": series()}).train()
    nothing = Segment("x", torch.full((1, 6, 3), torch.nan), (6, 1, 1), observed=torch.zeros(1, 6, dtype=torch.bool))
    out = model([nothing])
    out.loss.backward()
    assert out.loss == 0 and out.losses["x"] == 0
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("block", ["row", {"cell": [1, 3, 1]}])
def test_element_losses_are_in_raster_order(block: Any) -> None:
    grid = (1, 3, 4)
    model = build({"x": codes(4, grid, block, "random")})
    layout = model.layout("x", grid)
    assert layout.index.tolist() != list(range(12))
    values = torch.randint(0, 4, (2, 12))
    losses = model([Segment("x", values, grid)]).element_losses["x"]
    hidden = full_hidden(model, [Segment("x", values, grid)])
    expected = model.heads["x"].loss(hidden, layout.gather(values))
    torch.testing.assert_close(layout.gather(losses), expected)


def test_a_modality_that_occurs_twice_has_its_losses_side_by_side() -> None:
    model = build({"x": series(2, SERIES), "label": label()})
    first, second = (Segment("x", torch.randn(2, n, 2), (n, 1, 1)) for n in (4, 6))
    second = second.replace(observed=torch.rand(2, 6) > 0.3)
    out = model([first, labels(0, 1), second])
    assert out.element_losses["x"].shape == (2, 10)
    torch.testing.assert_close(out.element_losses["x"][:, :4], model([first]).element_losses["x"])
    context = model([first.replace(target=False), labels(0, 1), second])
    assert context.element_losses["x"].shape == (2, 6)
    count = 8 + second.observed.sum()  # type: ignore[union-attr]
    torch.testing.assert_close(out.loss, out.element_losses["x"].sum() / count)
    torch.testing.assert_close(out.losses["x"], out.loss)
    swapped = model([first.replace(values=first.values + 1), labels(0, 1), second]).element_losses["x"]
    assert (swapped - out.element_losses["x"])[:, 4:].abs().max() > 1e-4  # the second sees the first


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ([labels(1)], r"no segment has target=True; forward needs at least one"),
        ([labels(1).replace(target=True)], r"segment 'label' has target=True; the modality has no head"),
        ([Segment("sound", torch.zeros(1, 4, 2), SERIES)], r"modality is 'sound'; this model knows \['label', 'x'\]"),
        (
            [Segment("x", torch.zeros(1, 4, 3), SERIES)],
            r"values of 'x' are torch.float32 of shape \[1, 4, 3\]; .* \[B, N, 2\]",
        ),
        ([Segment("x", torch.zeros(1, 4).long(), SERIES)], r"values of 'x' are torch.int64 .* wants floating point"),
        (
            [Segment("x", torch.zeros(1, 4, 2), SERIES, covariates=torch.zeros(1, 4, 5))],
            r"covariates of 'x' have 5 features; this model wants 0",
        ),
    ],
)
def test_segments_that_do_not_fit_are_refused(segments: list[Segment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({"x": series(2, SERIES), "label": label()})(segments)


def test_several_codes_must_come_as_such() -> None:
    model = build({"x": codes(element={"kind": "discrete", "vocab_size": 3, "codes": 2})})
    with pytest.raises(ValueError, match=r"this model wants torch.long of shape \[B, N, 2\]"):
        model([Segment("x", torch.zeros(1, 4).long(), SERIES)])
    with pytest.raises(ValueError, match=r"this model wants torch.long of shape \[B, N, 2\]"):
        model([Segment("x", torch.zeros(1, 4, 3).long(), SERIES)])


def test_unknown_arguments_of_forward_are_refused() -> None:
    model = build({"x": series(2, SERIES)})
    with pytest.raises(ValueError, match=r"forward got the unknown arguments \['labels'\]"):
        model([Segment("x", torch.zeros(1, 4, 2), SERIES)], labels=None)


def test_a_model_needs_a_modality() -> None:
    with pytest.raises(ValueError, match="modalities is empty; a model needs at least one"):
        UnimodalARForGeneration(UnimodalARConfig())


def test_covariates_of_a_context_are_read() -> None:
    prompt = {**series(), "covariates": 2}
    model = build({"prompt": prompt, "grid": codes()})
    values, covariates = torch.randn(3, *_shape(prompt)), torch.randn(3, _shape(prompt)[0], 2)
    target = Segment("grid", torch.randint(0, 2, (3, _count(codes()))), tuple(codes()["grid"]))

    def loss(covariates: torch.Tensor) -> torch.Tensor:
        context = Segment("prompt", values, tuple(prompt["grid"]), target=False, covariates=covariates)
        return model([context, target]).element_losses["grid"]

    assert (loss(covariates) - loss(covariates + 1)).abs().max() > 1e-4


def _count(modality: dict) -> int:
    t, h, w = modality["grid"]
    return t * h * w


def _shape(modality: dict) -> tuple[int, int]:
    return _count(modality), modality["element"]["dim"]


def test_values_that_cannot_be_are_refused() -> None:
    model = build({"grid": codes(), "x": series()})
    grid, x = torch.zeros(2, _count(codes()), dtype=torch.long), torch.zeros(2, *_shape(series()))
    grid[1, 1], x[1, 0, 0] = 99, float("nan")
    with pytest.raises(ValueError, match=r"values of 'grid' hold the code 99; codes must lie in 0\.\."):
        model([Segment("grid", grid, tuple(codes()["grid"]))])
    with pytest.raises(ValueError, match=r"values of 'x' are not finite in examples \[1\] of the batch"):
        model([Segment("x", x, tuple(series()["grid"]))])
    observed = x.isfinite()
    assert model([Segment("x", x, tuple(series()["grid"]), observed=observed)]).loss.isfinite()
