"""Generation draws from exactly the joint that `forward` states, whatever the blocks, truncation, cache or batch."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
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
    label,
    labels,
    predicting,
    series,
)
from unimodal_ar import Segment, UnimodalARForGeneration, UnimodalARGenerationConfig
from unimodal_ar.noise import SampleNoise

V, N, GRID = 3, 4, (4, 1, 1)
EVERY = all_sequences(V, N)
LAYOUTS = [("raster", 1), ("raster", 2), ("raster", 3), ("random", 1), ("random", 2), ("raster", [1, 3])]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def toy(backbone: str = "native", order: str = "raster", block: Any = 1, null: float = 0.0, **more: Any) -> Any:
    return build({"x": codes(V, GRID, block, order, **more), "label": label(null_probability=null)}, backbone)


def joint(model: Any, *context: Segment) -> np.ndarray:
    """[V^N] probabilities of all sequences, from the element losses."""
    many = [segment.repeat_interleave(len(EVERY)) for segment in context]
    losses = model([*many, Segment("x", EVERY, GRID)]).element_losses["x"]
    return (-losses.double().sum(1)).exp().detach().numpy()


def logits(model: Any, *context: Segment) -> Tensor:
    """[V^N, N, V] of every element of every sequence, given the elements before it (blocks of one in raster order)."""
    many = [segment.repeat_interleave(len(EVERY)) for segment in context]
    hidden = full_hidden(model, [*many, Segment("x", EVERY, GRID)])[:, -N:]
    return model.heads["x"].logits(hidden).squeeze(-2).detach().double()


def joint_of(conditionals: Tensor) -> np.ndarray:
    """The joint of [V^N, N, V] conditional probabilities."""
    return conditionals.gather(-1, EVERY[..., None]).squeeze(-1).prod(1).numpy()


def draw(model: Any, *context: Segment, samples: int = 6000, **sampling: Any) -> np.ndarray:
    drawn = model.generate(list(context), "x", num_samples=samples, generator=seeded(1), **sampling)
    return frequencies(drawn.values, V)


# --- the distribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "block"), LAYOUTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_joint_is_normalised(backbone: str, order: str, block: Any) -> None:
    assert abs(joint(toy(backbone, order, block), labels(2)).sum() - 1) < 1e-5


@pytest.mark.parametrize(("order", "block"), LAYOUTS)
def test_samples_follow_the_joint(order: str, block: Any) -> None:
    model = toy(order=order, block=block)
    for context in ([labels(2)], []):
        probability = joint(model, *context)
        assert chi_square(draw(model, *context), probability) > P_VALUE
        assert chi_square(draw(model, *context), np.roll(probability, 1)) < P_VALUE  # the test can fail
    other = joint(model, labels(4))
    assert chi_square(draw(model, labels(2)), other) < P_VALUE  # and the label matters


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_samples_of_hosted_bodies_follow_the_joint(backbone: str) -> None:
    model = toy(backbone, block=2)
    assert chi_square(draw(model, labels(2)), joint(model, labels(2))) > P_VALUE


def keep_k(probability: Tensor, k: int) -> Tensor:
    least = probability.sort(-1, descending=True).values[..., k - 1 : k]
    kept = torch.where(probability >= least, probability, 0)
    return kept / kept.sum(-1, keepdim=True)


def keep_p(probability: Tensor, p: float) -> Tensor:
    kept = torch.zeros_like(probability)
    for row, out in zip(probability.view(-1, V), kept.view(-1, V), strict=True):
        total = 0.0
        for code in row.argsort(descending=True):
            if total >= p:
                break
            out[code] = row[code]
            total += float(row[code])
    return kept / kept.sum(-1, keepdim=True)


@pytest.mark.parametrize(
    ("sampling", "change"),
    [
        (dict(temperature=2.0), lambda x: (x / 2).softmax(-1)),
        (dict(temperature=0.6), lambda x: (x / 0.6).softmax(-1)),
        (dict(top_k=2), lambda x: keep_k(x.softmax(-1), 2)),
        (dict(top_p=0.8), lambda x: keep_p(x.softmax(-1), 0.8)),
        (dict(temperature=3.0, top_k=2, top_p=0.65), lambda x: keep_p(keep_k((x / 3).softmax(-1), 2), 0.65)),
    ],
    ids=["hot", "cold", "top_k", "top_p", "all"],
)
def test_truncation_and_temperature_change_every_conditional(sampling: dict[str, Any], change: Any) -> None:
    model = toy()
    plain, changed = joint(model, labels(2)), joint_of(change(logits(model, labels(2))))
    assert np.abs(plain - changed).max() > 0.01
    assert chi_square(draw(model, labels(2), **sampling), changed) > P_VALUE


@pytest.mark.parametrize("backbone", BACKBONES)
def test_temperature_0_is_the_greedy_chain(backbone: str) -> None:
    model = toy(backbone)
    best = logits(model, labels(2)).argmax(-1)
    sequence = torch.zeros(N, dtype=torch.long)
    for place in range(N):
        row = int((sequence * V ** torch.arange(N - 1, -1, -1)).sum())
        sequence[place] = best[row, place]
    drawn = model.generate([labels(2)], "x", temperature=0.0, num_samples=3)
    assert (drawn.values == sequence).all()


@pytest.mark.parametrize("top", [dict(top_k=1), dict(top_p=1e-9)])
def test_the_narrowest_truncation_is_greedy(top: dict[str, Any]) -> None:
    model = toy()
    greedy = model.generate([labels(2)], "x", temperature=0.0).values
    assert torch.equal(model.generate([labels(2)], "x", **top).values, greedy)


@pytest.mark.parametrize(("order", "block"), LAYOUTS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_cache_changes_nothing(backbone: str, order: str, block: Any) -> None:
    """Against a loop that runs the whole sequence for each block."""
    model = toy(backbone, order, block)
    layout, context = model.layout("x", GRID), labels(0, 3)
    values = torch.zeros(2, N, dtype=torch.long)
    for number in range(layout.num_blocks):
        hidden = full_hidden(model, [context, Segment("x", values, GRID)])[:, 1:][:, predicting(layout)]
        places = layout.block_range(number)
        values[:, layout.index[places]] = model.heads["x"].sample(hidden[:, places], temperature=0.0)
    assert torch.equal(model.generate([context], "x", temperature=0.0).values, values)


def test_several_codes_per_element() -> None:
    kind = codes(V, (2, 1, 1), element={"kind": "discrete", "vocab_size": V, "codes": 2})
    model = build({"x": kind})
    pairs = EVERY.view(-1, 2, 2)
    probability = (-model([Segment("x", pairs, (2, 1, 1))]).element_losses["x"].double().sum(1)).exp().detach().numpy()
    drawn = model.generate([], "x", num_samples=6000, generator=seeded()).values
    assert drawn.shape == (6000, 2, 2)
    assert chi_square(frequencies(drawn.flatten(1), V), probability) > P_VALUE


def test_each_code_of_an_element_has_a_table_of_its_own() -> None:
    kind = codes(V, (2, 1, 1), element={"kind": "discrete", "vocab_size": V, "codes": 2})
    embedding = build({"x": kind}).embeddings["x"]
    one, other = (
        embedding.embed(torch.tensor([[pair]]), torch.ones(1, 1, dtype=torch.bool)) for pair in ([0, 2], [2, 0])
    )
    assert (one - other).abs().max() > 1e-2


# --- guidance ---------------------------------------------------------------------------------------------------------


def without_context(model: Any) -> Any:
    """The same model where every label looks like the null vector."""
    free = copy.deepcopy(model)
    with torch.no_grad():
        embedding = free.embeddings["label"]
        embedding.table.weight.copy_(embedding.null.expand_as(embedding.table.weight))
    return free


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
def test_guidance_combines_the_logits(scale: float) -> None:
    model = toy(null=0.1)
    conditional, free = logits(model, labels(2)), logits(without_context(model), labels(2))
    guided = joint_of((free + scale * (conditional - free)).softmax(-1))
    assert np.abs(guided - joint(model, labels(2))).max() > 0.01
    assert chi_square(draw(model, labels(2), guidance_scale=scale), guided) > P_VALUE


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("block", [1, 2])
def test_guidance_combines_the_means(backbone: str, block: int) -> None:
    """Exactly, with a bias, several samples, a given part with gaps, and a context without a null vector."""
    modalities = {"x": series(block=block), "label": label(null_probability=0.2), "note": codes(grid=(2, 1, 1))}
    model = build(modalities, backbone)
    observed = torch.tensor([[1, 0, 1, 1, 0, 0], [1, 1, 1, 0, 0, 0]]).bool()
    given = Segment("x", torch.randn(2, 6, 3), (6, 1, 1), observed=observed)
    context = [Segment("note", torch.randint(0, 3, (2, 2)), (2, 1, 1)), labels(0, 3)]
    drawn = model.generate(context, "x", given=given, known_blocks=4 // block, num_samples=2, guidance_scale=3.0)
    many = [*(segment.repeat_interleave(2) for segment in context), drawn]
    conditional, free = (model.heads["x"].mean(full_hidden(m, many))[:, -6:] for m in (model, without_context(model)))
    expected = free + 3 * (conditional - free)
    torch.testing.assert_close(drawn.values[:, 4:], expected[:, 4:], atol=1e-4, rtol=1e-4)
    assert (expected - conditional)[:, 4:].abs().max() > 1e-2


def test_guidance_of_1_is_none() -> None:
    model = toy(null=0.1)
    drawn = [
        model.generate([labels(2)], "x", num_samples=50, generator=seeded(), **g).values
        for g in ({}, {"guidance_scale": 1.0})
    ]
    assert torch.equal(*drawn)


def test_guidance_needs_a_null_vector() -> None:
    model = toy(null=0.0)
    sentence = (
        "guidance_scale is 2.0; guidance needs a context segment whose modality was trained with null_probability > 0"
    )
    with pytest.raises(ValueError, match=sentence):
        model.generate([labels(2)], "x", guidance_scale=2.0)
    with pytest.raises(ValueError, match=sentence):
        toy(null=0.1).generate([], "x", guidance_scale=2.0)


def test_the_null_vector_replaces_the_context_in_training() -> None:
    model = toy(null=0.4).train()
    segments = [labels(*[2] * 2000), Segment("x", EVERY[5].expand(2000, -1), GRID)]
    losses = model(segments).element_losses["x"].sum(1)
    free = without_context(model).eval()(segments).element_losses["x"].sum(1)
    kept = model.eval()(segments).element_losses["x"].sum(1)
    assert (free - kept).abs().min() > 1e-2
    is_null, is_kept = (losses - free).abs() < 1e-4, (losses - kept).abs() < 1e-4
    assert (is_null ^ is_kept).all()
    assert abs(is_null.float().mean() - 0.4) < 5 * (0.24 / 2000) ** 0.5


# --- randomness -------------------------------------------------------------------------------------------------------


def test_a_sample_does_not_depend_on_the_batch() -> None:
    model = toy(block=2)
    many = model.generate([labels(0, 1, 2, 3, 4)], "x", generator=seeded(7)).values
    assert torch.equal(model.generate([labels(0)], "x", generator=seeded(7)).values, many[:1])
    assert torch.equal(model.generate([labels(0, 1)], "x", generator=seeded(7)).values, many[:2])
    few, more = (model.generate([labels(1)], "x", num_samples=s, generator=seeded(7)).values for s in (3, 40))
    assert torch.equal(few, more[:3])
    named = [
        model.generate([labels(row)], "x", generator=SampleNoise(7, torch.tensor([row]))).values for row in range(5)
    ]
    together = model.generate([labels(0, 1, 2, 3, 4)], "x", generator=SampleNoise(7, torch.arange(5))).values
    assert torch.equal(torch.cat(named), together)


def test_samples_of_one_example_differ_and_lie_together() -> None:
    model = toy()
    drawn = model.generate([labels(0, 4)], "x", num_samples=2000, generator=seeded()).values
    assert len(drawn[:2000].unique(dim=0)) > 20
    for rows, context in ((drawn[:2000], labels(0)), (drawn[2000:], labels(4))):
        assert chi_square(frequencies(rows, V), joint(model, context)) > P_VALUE
    assert chi_square(frequencies(drawn[:2000], V), joint(model, labels(4))) < P_VALUE


def test_the_generator_or_torchs_own_governs() -> None:
    model = toy()
    context, sampling = [labels(1)], dict(num_samples=30)
    one, same, other = (model.generate(context, "x", generator=seeded(s), **sampling).values for s in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)
    drawn = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        drawn.append(model.generate(context, "x", **sampling).values)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])
    assert not torch.equal(model.generate(context, "x", **sampling).values, drawn[2])  # the next call draws anew


# --- streaming --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "block"), LAYOUTS)
def test_stream_ends_in_what_generate_returns(order: str, block: Any) -> None:
    model = toy(order=order, block=block)
    layout = model.layout("x", GRID)
    final = model.generate([labels(0, 1)], "x", num_samples=2, generator=seeded())
    parts = list(model.stream([labels(0, 1)], "x", num_samples=2, generator=seeded()))
    assert len(parts) == layout.num_blocks
    for number, part in enumerate(parts):
        observed = layout.scatter((layout.block <= number)[None]).expand(4, -1)
        assert torch.equal(part.element_observed, observed)
        assert torch.equal(part.values[observed], final.values[observed])
    assert parts[-1].observed is None and torch.equal(parts[-1].values, final.values)


def test_stream_starts_from_what_is_given() -> None:
    model = build({"x": series()})
    observed = torch.tensor([[True, False, True, False, False, False]])
    given = Segment("x", torch.randn(1, 6, 3), (6, 1, 1), observed=observed)
    parts = list(model.stream([], "x", given=given, known_blocks=3))
    final = model.generate([], "x", given=given, known_blocks=3)
    assert [part.element_observed[0].long().tolist() for part in parts] == [
        [1, 0, 1, 1, 0, 0],
        [1, 0, 1, 1, 1, 0],
        [1, 0, 1, 1, 1, 1],
    ]
    assert torch.equal(parts[-1].values, final.values) and torch.equal(parts[-1].observed, final.observed)


def test_stream_takes_the_arguments_of_generate_and_no_others() -> None:
    model = toy()
    by_place = list(model.stream([labels(1)], "x", GRID, None, 2, None, 0.5, generator=seeded()))[-1]
    by_name = model.generate([labels(1)], "x", grid=GRID, num_samples=2, temperature=0.5, generator=seeded())
    assert torch.equal(by_place.values, by_name.values)
    for call in (model.stream, model.generate):
        with pytest.raises(TypeError, match="unexpected keyword argument 'temprature'"):
            list(call([labels(1)], "x", temprature=0.5))


def test_a_stream_leaves_its_caller_alone_between_two_blocks() -> None:
    model = toy().train()
    model.embeddings.eval()  # frozen by its owner
    for _ in model.stream([labels(1)], "x"):
        assert torch.is_grad_enabled() and model.training and model.backbone.training
        assert not model.embeddings.training
    model.generate([labels(1)], "x")
    assert model.training and model.backbone.training and not model.embeddings.training


@pytest.mark.parametrize("training", [True, False])
def test_generation_runs_in_evaluation_mode_and_restores(training: bool) -> None:
    model = build({"x": series()}, dropout=0.5).train(training)
    one, other = (model.generate([], "x").values for _ in range(2))
    assert torch.equal(one, other) and not one.requires_grad
    assert model.training is training and model.backbone.training is training
    with pytest.raises(ValueError, match="top_k"):
        model.generate([], "x", top_k=2)
    assert model.training is training


# --- given ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "block"), LAYOUTS)
def test_the_rest_is_drawn_from_the_conditional(order: str, block: Any) -> None:
    model = toy(order=order, block=block)
    layout = model.layout("x", GRID)
    known = layout.scatter((layout.block < 1)[None])
    values = torch.tensor([[2, 0, 1, 2]])
    given = Segment("x", values, GRID, observed=known)
    drawn = model.generate([labels(3)], "x", given=given, num_samples=4000, generator=seeded())
    assert drawn.observed is None and (drawn.values[:, known[0]] == values[known]).all()
    matches = (EVERY[:, known[0]] == values[known]).all(1).numpy()
    probability = np.where(matches, joint(model, labels(3)), 0)
    assert chi_square(frequencies(drawn.values, V), probability / probability.sum()) > P_VALUE


def test_everything_given_is_returned() -> None:
    given = Segment("x", EVERY[:7], GRID)
    assert torch.equal(toy().generate([], "x", given=given).values, given.values)


def test_what_is_given_is_not_written_to() -> None:
    observed = torch.tensor([[True, False, False, False]])
    given = Segment("x", torch.full((1, N), 2), GRID, observed=observed)
    drawn = toy().generate([labels(1)], "x", given=given, num_samples=30)
    assert (given.values == 2).all() and torch.equal(given.observed, observed) and not (drawn.values == 2).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("observed", [[1, 0, 1, 0], [0, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]])
def test_a_known_part_of_broken_blocks_is_refused(observed: list[int]) -> None:
    given = Segment("x", EVERY[:1], GRID, observed=torch.tensor([observed]).bool())
    with pytest.raises(
        ValueError, match=r"given knows elements of block \d or later, but not all of the blocks before"
    ):
        toy(block=2).generate([], "x", given=given)


def test_gaps_in_the_past_stay_missing() -> None:
    model = build({"x": series(block=2)})
    observed = torch.tensor([[1, 0, 0, 1, 0, 0], [0, 0, 1, 1, 1, 1]]).bool()
    values = torch.where(observed[..., None], torch.randn(2, 6, 3), torch.nan)
    drawn = model.generate([], "x", given=Segment("x", values, (6, 1, 1), observed=observed), known_blocks=2)
    assert drawn.observed is not None and drawn.observed.long().tolist() == [[1, 0, 0, 1, 1, 1], [0, 0, 1, 1, 1, 1]]
    assert torch.equal(drawn.values[:, :4][observed[:, :4]], values[:, :4][observed[:, :4]])
    assert drawn.values[:, 4:].isfinite().all() and not torch.equal(drawn.values[1, 4:], values[1, 4:])
    assert model([drawn]).element_losses["x"][:, 4:].max() < 1e-8


def test_covariates_of_the_future_count() -> None:
    model = build({"x": series(covariates=2)})
    covariates, observed = torch.randn(1, 6, 2), torch.arange(6)[None] < 3
    given = Segment("x", torch.randn(1, 6, 3), (6, 1, 1), observed=observed, covariates=covariates)
    drawn = model.generate([], "x", given=given)
    assert model([drawn]).element_losses["x"][:, 3:].max() < 1e-8
    covariates[:, 4] += 1
    other = model.generate([], "x", given=given.replace(covariates=covariates))
    torch.testing.assert_close(other.values[:, :4], drawn.values[:, :4])
    assert (other.values - drawn.values)[:, 4].abs().max() > 1e-3


# --- options and errors -----------------------------------------------------------------------------------------------


def test_the_models_own_options_hold_and_are_saved(tmp_path: Any) -> None:
    model = toy()
    model.generation_config = UnimodalARGenerationConfig(num_samples=3, temperature=0.0)
    greedy = model.generate([labels(2)], "x")
    assert greedy.batch_size == 3 and len(greedy.values.unique(dim=0)) == 1
    assert model.generate([labels(2)], "x", num_samples=1).batch_size == 1
    warm = model.generate([labels(2)], "x", num_samples=50, temperature=1.0)
    assert len(warm.values.unique(dim=0)) > 1
    model.save_pretrained(tmp_path)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    assert loaded.generation_config.num_samples == 3 and loaded.generation_config.temperature == 0.0
    assert torch.equal(loaded.generate([labels(2)], "x").values, greedy.values)


def test_can_generate() -> None:
    assert toy().can_generate() and isinstance(toy().generation_config, UnimodalARGenerationConfig)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(target="label"), r"target is 'label'; this model can generate \['x'\]"),
        (dict(target="y"), r"target is 'y'; this model can generate \['x'\]"),
        (dict(steps=4), r"steps is 4; next-block prediction draws a block in one pass and takes no steps"),
        (dict(steps=0), r"steps is 0; it must be an integer >= 1, a pair"),
        (dict(temperature=-1.0), r"temperature is -1.0; it must be a number >= 0"),
        (dict(num_samples=0), r"num_samples is 0; it must be an integer >= 1"),
        (dict(top_k=0), r"top_k is 0; it must be an integer >= 1"),
        (dict(top_p=0.0), r"top_p is 0.0; it must lie in \(0, 1\]"),
        (dict(top_p=1.5), r"top_p is 1.5; it must lie in \(0, 1\]"),
        (dict(guidance_scale=-1.0), r"guidance_scale is -1.0; it must be a number >= 0"),
        (dict(grid=(0, 1, 1)), r"grid is \(0, 1, 1\); it must be three positive integers"),
        (dict(known_blocks=1), r"known_blocks is 1 without a given segment"),
        (dict(given=Segment("x", EVERY[:1], GRID), known_blocks=5), r"known_blocks is 5; the layout has 4 blocks"),
        (dict(given=Segment("x", EVERY[:2], GRID)), r"segment 'x' has a batch of 2; the context has one of 1"),
        (dict(given=Segment("x", EVERY[:1], GRID), grid=(5, 1, 1)), r"given is a segment of 'x' on grid \(4, 1, 1\)"),
        (dict(given=labels(1)), r"given is a segment of 'label' on grid \(1, 1, 1\); it must be of 'x'"),
        (dict(context=[labels(1), labels(1, 2)]), r"segment 'label' has a batch of 2; the context has one of 1"),
    ],
    ids=str,
)
def test_wrong_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        toy().generate(**({"context": [labels(1)], "target": "x"} | arguments))


@pytest.mark.parametrize("truncation", [dict(top_k=3), dict(top_p=0.5)])
def test_vectors_are_not_truncated(truncation: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="RegressionHead draws real vectors and takes no top_"):
        build({"x": series()}).generate([], "x", **truncation)


def test_unknown_generation_options_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"generation config has an unknown key 'temprature'; did you mean 'temperature'\?"
    ):
        UnimodalARGenerationConfig(temprature=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"given": torch.zeros(1, 4)}, "given is a Tensor; it must be a Segment"),
        ({"context": None}, "context is None; it must be a list of Segment"),
        ({"generator": 5}, "generator is a int; it must be a torch.Generator"),
        ({"guidance_scale": "2"}, "guidance_scale is '2'; it must be a number >= 0"),
        ({"temperature": float("nan")}, "temperature is nan; it must be a number >= 0"),
    ],
)
def test_arguments_of_the_wrong_kind_are_named(arguments: dict[str, Any], message: str) -> None:
    model = build({"x": codes()})
    with pytest.raises(ValueError, match=message):
        model.generate(**{"context": [], "target": "x", **arguments})


def test_segments_of_the_wrong_kind_are_named() -> None:
    model = build({"x": codes(), "y": codes()})
    n, grid = model.layout("x", tuple(codes()["grid"])).index.numel(), tuple(codes()["grid"])
    one, two = (Segment(name, torch.zeros(b, n, dtype=torch.long), grid) for name, b in (("x", 2), ("y", 3)))
    with pytest.raises(ValueError, match=r"segments have batches of .*; all must be of one size"):
        model([one, two])
    for wrong in (one, one.values, [one.values]):
        with pytest.raises(ValueError, match="it must be a list of Segment"):
            model(wrong)
    with pytest.raises(ValueError, match="B >= 1"):
        Segment("x", torch.zeros(0, n, dtype=torch.long), grid)
