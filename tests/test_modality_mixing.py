"""How values become inputs and hidden states become distributions: hidden layers, and covariates that join in."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import (
    BACKBONES,
    WIDTH,
    build,
    codes,
    diffusion,
    full_hidden,
    hidden_states,
    labels,
    predicting,
    series,
)
from tests.test_next_block import BLOCKS, GRID, ORDERS, each_layout, patches
from unimodal_ar import Segment, UnimodalARConfig, UnimodalARForGeneration
from unimodal_ar.convert import convert_to_block_diffusion
from unimodal_ar.heads import HEADS, build_head
from unimodal_ar.heads.mlp import ACTIVATIONS, HiddenLayers
from unimodal_ar.saving import load_model
from unimodal_ar.schema import ContinuousElement, MLPOptions

MLP: dict[str, Any] = {"layers": 2, "width": 7, "activation": "tanh"}
SCALED: dict[str, Any] = {"covariates": WIDTH, "covariates_mixing": "scaled"}
CONTINUOUS = [kind for kind, head in HEADS.items() if head.element_kind == "continuous"]
# Without a start there must be a first block that can be given, and a second one.
STARTED = [("learned", order, block) for order in ORDERS for block in BLOCKS]
STARTED += [("none", "raster", block) for block in BLOCKS if block != "whole"]
mixings = pytest.mark.parametrize("mixing", ["linear", "scaled"])
whose = pytest.mark.parametrize("of", ["target", "source"])


def unit(x: Tensor) -> Tensor:
    return x / (x**2).sum(-1, keepdim=True).sqrt()


# --- hidden layers ----------------------------------------------------------------------------------------------------


def test_hidden_layers_are_written_out() -> None:
    functions: dict[str, Any] = {"tanh": torch.tanh, "relu": F.relu, "gelu": F.gelu, "silu": F.silu}
    assert ACTIVATIONS.keys() == functions.keys()
    for activation, function in functions.items():
        made = HiddenLayers(3, MLPOptions.model_validate({"layers": 2, "width": 5, "activation": activation}))
        x = torch.randn(4, 3)
        first, second = (cast(nn.Linear, made[i]) for i in (0, 3))
        expected = function(function(x @ first.weight.T + first.bias) @ second.weight.T + second.bias)
        torch.testing.assert_close(made(x), expected)
        assert made.width == 5


def test_dropout_acts_in_training() -> None:
    made = HiddenLayers(3, MLPOptions(layers=1, width=1000, dropout=0.3))
    assert 0.2 < float((made(torch.ones(1, 3)) == 0).float().mean()) < 0.4
    assert not bool((made.eval()(torch.ones(1, 3)) == 0).any())


def test_vectors_enter_through_hidden_layers() -> None:
    model = build({"x": series(embedding=MLP)})
    embedding, values = model.embeddings["x"], patches(2, (6, 1, 1))
    observed = torch.rand(2, 6, 3) > 0.3
    filled = torch.where(observed, values, 0)
    for i in (0, 3):
        filled = torch.tanh(filled @ embedding.layers[i].weight.T + embedding.layers[i].bias)
    expected = (
        filled @ embedding.value.weight.T + embedding.value.bias + (~observed).float() @ embedding.missing.weight.T
    )
    torch.testing.assert_close(embedding.embed(values.masked_fill(~observed, torch.nan), observed), expected)
    assert model.config.modalities["x"]["embedding"] == MLP | {"dropout": 0.0}


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_a_head_behind_a_trunk_is_the_head_on_what_the_trunk_gives(kind: str) -> None:
    element, few = (
        ContinuousElement(kind="continuous", dim=3),
        {} if kind in ("regression", "quantile", "mixture") else {"width": 6},
    )
    head: Any = build_head(8, element, {"kind": kind, "trunk": MLP, **few})
    bare: Any = build_head(7, element, {"kind": kind, **few})
    for module in (head, bare):  # fresh ones of some kinds give zeros
        torch.manual_seed(1)
        for parameter in module.parameters():
            nn.init.normal_(parameter, std=0.5)
    bare.load_state_dict({k: v for k, v in head.state_dict().items() if not k.startswith("trunk.")})
    hidden, other, target = torch.randn(5, 8), torch.randn(5, 8), torch.randn(5, 3)
    shown, free = head.trunk(hidden), head.trunk(other)
    asked: list[tuple[str, list[Any], list[Any]]] = [
        ("loss", [hidden, target], [shown, target]),
        ("sample", [hidden], [shown]),
        ("sample_guided", [hidden, other, 2.5], [shown, free, 2.5]),
    ]
    more: dict[str, list[Any]] = {"mean": [], "log_prob": [target], "quantiles": [[0.1, 0.5]]}
    asked += [(name, [hidden, *rest], [shown, *rest]) for name, rest in more.items() if hasattr(head, name)]
    for name, given, expected in asked:
        torch.manual_seed(2)
        ours = getattr(head, name)(*given)
        torch.manual_seed(2)
        torch.testing.assert_close(ours, getattr(bare, name)(*expected))
        if name != "quantiles":
            assert ours.detach().std() > 1e-3
    head.loss(hidden, target).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in head.trunk.parameters())
    assert len(head.trunk) == 6, "guiding leaves the head as it was"


@pytest.mark.parametrize("trunk", [None, MLP], ids=["bare", "trunk"])
def test_gaussian_noise_guides_velocities_behind_a_trunk(trunk: Any) -> None:
    head = {"kind": "regression", "trunk": trunk}
    label = {"element": {"kind": "discrete", "vocab_size": 5}, "grid": (1, 1, 1), "null_probability": 0.2}
    model = build({"x": series(block="whole", head=head, **diffusion("gaussian")), "label": label})
    with hidden_states(model) as states:
        drawn = model.generate([labels(0, 3)], "x", steps=1, guidance_scale=2.5, generator=torch.Generator())
    given, free = model.heads["x"].mean(states[0][:, -6:]).chunk(2)
    start = model.generate([labels(0, 3)], "x", steps=1, guidance_scale=1.0, generator=torch.Generator())
    torch.testing.assert_close(start.values - drawn.values, 1.5 * (given - free), atol=1e-5, rtol=1e-5)
    assert (given - free).abs().max() > 1e-2


@pytest.mark.parametrize("kind", CONTINUOUS)
def test_trunks_work_in_half_precision_and_are_saved(kind: str, tmp_path: Any) -> None:
    model = build({"x": series(embedding=MLP, head={"kind": kind, "trunk": MLP})})
    segment = Segment("x", patches(2, (6, 1, 1)), (6, 1, 1))
    model.save_pretrained(tmp_path)
    loaded = load_model(tmp_path, "cpu")
    torch.manual_seed(1)
    loss = model([segment]).loss
    torch.manual_seed(1)
    assert torch.equal(loss, loaded([segment]).loss)
    with torch.autocast("cpu", torch.bfloat16):
        assert model([segment]).loss.isfinite()
    model.to(torch.bfloat16)([segment]).loss.backward()
    assert model.heads["x"].trunk[0].weight.grad.isfinite().all()
    assert model.generate([], "x").values.isfinite().all()


# --- covariates -------------------------------------------------------------------------------------------------------


def described(embedding: Any, layout: Any, covariates: Tensor, of: str) -> tuple[Tensor, Tensor]:
    """The covariates of each position in generation order, and which positions have none."""
    index = layout.source if of == "source" else layout.index
    return covariates[:, index.clamp(min=0)], index < 0


@mixings
@whose
@pytest.mark.parametrize("element", ["continuous", "discrete"])
@each_layout
def test_covariates_join_what_is_read(order: str, block: Any, element: str, of: str, mixing: str) -> None:
    kind = series if element == "continuous" else codes
    features = WIDTH if mixing == "scaled" else 2
    given: dict[str, Any] = {"covariates": features, "covariates_mixing": mixing, "covariates_of": of}
    model = build({"x": kind(grid=GRID, block=block, order=order, **given)}).double()
    layout, embedding = model.layout("x", GRID), model.embeddings["x"]
    values = patches(2).double() if element == "continuous" else torch.randint(0, 3, (2, 12))
    covariates, observed = torch.randn(2, 12, features).double(), torch.rand(2, 12) > 0.3
    embeds, known = embedding.inputs(values, layout, observed, covariates)
    alone, _ = embedding.read(values, layout, observed, layout.source)
    joining, none = described(embedding, layout, covariates, of)
    assert bool(none.any()) == (of == "source")
    if mixing == "linear":
        expected = alone + torch.where(none[:, None], 0, F.linear(joining, *embedding.covariates.parameters()))
    else:
        expected = unit(alone) + torch.where(none[:, None], 0, embedding.covariates.scale * unit(joining))
    if embedding.target_position is not None:
        lead = layout.coords[None].expand(2, -1, -1).clone()
        first = (observed.view(2, *GRID).flatten(2).any(2).float()).argmax(1)
        lead[..., 0] -= first[:, None]
        expected = expected + embedding.target_position(lead)
    tolerance: dict[str, Any] = {"atol": 1e-13, "rtol": 1e-13}
    torch.testing.assert_close(embeds, expected, **tolerance)
    for b in range(layout.num_blocks):
        so_far = values.clone()
        so_far[:, layout.index[layout.block >= b]] = torch.nan if element == "continuous" else 2
        now, known_now = embedding.next_inputs(so_far, layout, b, observed, covariates)
        places = layout.block_range(b)
        assert torch.equal(known_now, known[:, places])
        torch.testing.assert_close(now, embeds[:, places], **tolerance)
    own, _ = embedding.context(values, layout, observed, covariates)
    alone, _ = embedding.read(values, layout, observed, layout.index)
    joining = covariates[:, layout.index]
    if mixing == "linear":
        expected = alone + F.linear(joining, *embedding.covariates.parameters())
    else:
        expected = unit(alone) + embedding.covariates.scale * unit(joining)
    torch.testing.assert_close(own, expected, **tolerance)


@whose
@pytest.mark.parametrize(("start", "order", "block"), STARTED, ids=str)
@pytest.mark.parametrize("backbone", BACKBONES[:2])
def test_cached_decoding_equals_one_full_pass(backbone: str, order: str, block: Any, start: str, of: str) -> None:
    model = build({"x": series(grid=GRID, block=block, order=order, start=start, covariates_of=of, **SCALED)}, backbone)
    layout = model.layout("x", GRID)
    observed = (torch.arange(12) < 0)[None].expand(2, -1).clone()
    if start == "none":
        observed[:, layout.index[layout.block == 0]] = True
    given = Segment("x", patches(2), GRID, observed=observed, covariates=torch.randn(2, 12, WIDTH))
    with hidden_states(model) as states:
        drawn = model.generate([], "x", given=given)
    torch.testing.assert_close(torch.cat(states, 1), full_hidden(model, [drawn]), atol=1e-5, rtol=1e-5)
    elements = model([drawn]).element_losses["x"][:, layout.index]
    assert elements.max() < 1e-8  # the regression head draws its mean
    moved = model([drawn.replace(covariates=torch.randn(2, 12, WIDTH))]).element_losses["x"]
    assert (moved.max() > 1e-3) == (of == "target" or layout.num_blocks > 1)  # a single block reads nothing


@whose
@each_layout
def test_whose_covariates_a_prediction_follows(order: str, block: Any, of: str) -> None:
    """By gradient: row b of the batch holds the derivative of block b's hidden states by every covariate."""
    model = build({"x": series(grid=GRID, block=block, order=order, covariates_of=of, **SCALED)})
    layout = model.layout("x", GRID)
    rows = layout.num_blocks
    covariates = torch.randn(1, 12, WIDTH).expand(rows, -1, -1).clone().requires_grad_()
    values = patches(1).expand(rows, -1, -1)
    hidden = full_hidden(model, [Segment("x", values, GRID, covariates=covariates)])[:, predicting(layout)]
    own = layout.block[None, :] == torch.arange(rows)[:, None]
    (gradient,) = torch.autograd.grad((hidden * torch.randn_like(hidden) * own[..., None]).sum(), covariates)
    influence = gradient.abs().amax(-1)
    for b in range(rows):
        reached = layout.index[layout.block < b + (of == "target")].tolist()
        assert set(influence[b].nonzero().flatten().tolist()) == set(reached)


@mixings
@whose
def test_starts_of_their_own_read_nobody_s_covariates(of: str, mixing: str) -> None:
    features = WIDTH if mixing == "scaled" else 2
    given: dict[str, Any] = {"covariates": features, "covariates_mixing": mixing, "covariates_of": of}
    model = build({"x": series(grid=GRID, block=[1, 4, 2, 5], target_positions="starts", **given)})
    layout, embedding = model.layout("x", GRID), model.embeddings["x"]
    values, covariates = patches(2), torch.randn(2, 12, features)
    nothing = layout.own_source < 0
    assert nothing.sum() > 1
    before, _ = embedding.inputs(values, layout, None, covariates)
    after, _ = embedding.inputs(values, layout, None, torch.randn(2, 12, features))
    assert bool(((before - after).abs().amax(-1) > 1e-4)[:, ~nothing].all())
    assert bool(((before - after).abs().amax(-1) == 0)[:, nothing].all()) == (of == "source")


@whose
def test_a_context_that_starts_a_target_is_scaled_like_any_other_input(of: str) -> None:
    label = {"element": {"kind": "discrete", "vocab_size": 5}, "grid": (1, 1, 1)}
    model = build({"x": series(start="context", covariates_of=of, **SCALED), "label": label})
    start = torch.randn(2, 1, WIDTH)
    embedding, covariates = model.embeddings["x"], torch.randn(2, 6, WIDTH)
    embeds, _ = embedding.inputs(
        patches(2, (6, 1, 1)), model.layout("x", (6, 1, 1)), None, covariates, slice(0, 1), start
    )
    expected = unit(start) + (embedding.covariates.scale * unit(covariates[:, :1]) if of == "target" else 0)
    torch.testing.assert_close(embeds, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("noise", ["mask", "gaussian"])
def test_noisy_copies_are_mixed_alike(noise: str) -> None:
    model = build({"x": series(**SCALED, **diffusion(noise))})
    embedding, layout = model.embeddings["x"], model.layout("x", (6, 1, 1))
    values, covariates = patches(2, (6, 1, 1)), torch.randn(2, 6, WIDTH)
    alone = embedding.embed(values, torch.ones(2, 6, dtype=torch.bool))
    expected = unit(alone) + embedding.covariates.scale * unit(covariates)
    torch.testing.assert_close(embedding.noisy(values, layout, None, covariates), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_vector_of_zeros_stays_one(dtype: torch.dtype) -> None:
    """Padding has no embedding, and a timestamp may have none: 0 / 0 would poison what attends to them."""
    mixing = build({"x": series(**SCALED)}).embeddings["x"].covariates.to(dtype)
    embeds, covariates = torch.zeros(1, 2, WIDTH, dtype=dtype), torch.zeros(1, 2, WIDTH, dtype=dtype)
    embeds[0, 0, 0] = covariates[0, 1, 1] = 3
    embeds.requires_grad_()
    mixed = mixing.mix(embeds, covariates, torch.ones(2, 1, dtype=torch.bool))
    assert mixed.dtype == dtype
    expected = torch.zeros(2, WIDTH)
    expected[0, 0], expected[1, 1] = 1, mixing.scale.item()
    torch.testing.assert_close(mixed[0].float(), expected, atol=1e-3, rtol=1e-3)
    mixed.float().sum().backward()
    assert embeds.grad is not None and embeds.grad.isfinite().all()


def test_padding_in_front_changes_nothing() -> None:
    model = build({"x": series(start="none", covariates_of="source", **SCALED)}, "llama")
    values, covariates = patches(2, (6, 1, 1)), torch.randn(2, 6, WIDTH)
    observed = torch.arange(6)[None].expand(2, -1) >= 2
    padded = Segment("x", values.masked_fill(~observed[..., None], torch.nan), (6, 1, 1), observed=observed)
    loss = model([padded.replace(covariates=covariates)]).element_losses["x"]
    short = Segment("x", values[:, 2:], (4, 1, 1), covariates=covariates[:, 2:])
    torch.testing.assert_close(loss[:, 2:], model([short]).element_losses["x"], atol=1e-5, rtol=1e-5)
    assert loss[:, 3:].min() > 1e-3


def test_the_scale_starts_at_one_and_learns() -> None:
    config = UnimodalARConfig(modalities={"x": series(covariates=256, covariates_mixing="scaled")})
    model: Any = UnimodalARForGeneration(config)
    scale = model.embeddings["x"].covariates.scale
    assert scale.tolist() == [1.0]
    covariates = torch.randn(2, 6, 256)
    model([Segment("x", patches(2, (6, 1, 1)), (6, 1, 1), covariates=covariates)]).loss.backward()
    assert scale.grad.abs() > 0


def test_what_turns_to_block_diffusion_keeps_layers_and_mixing() -> None:
    given: dict[str, Any] = {"start": "none", "embedding": MLP, "covariates_of": "source", **SCALED}
    model = build({"x": series(**given)})
    turned = convert_to_block_diffusion(model, 2, noise="mask")
    options = turned.options["x"]
    assert (options.covariates_mixing, options.covariates_of) == ("scaled", "target")
    for name in ("layers.0.weight", "covariates.scale"):
        assert torch.equal(*(m.embeddings["x"].get_parameter(name) for m in (model, turned)))


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modality", "message"),
    [
        (codes(embedding=MLP), r"modalities\.x\.embedding: the element is discrete, and embedded by a table"),
        (series(embedding={"layers": 0, "width": 3}), r"modalities\.x\.embedding\.layers is 0"),
        (series(embedding={"layers": 1}), r"modalities\.x\.embedding\.width: field required"),
        (series(embedding=MLP | {"activation": "swish"}), r"modalities\.x\.embedding\.activation is 'swish'"),
        (series(embedding=MLP | {"dropout": 1.0}), r"modalities\.x\.embedding\.dropout is 1\.0"),
        (series(head={"kind": "flow", "trunk": {"with": 3}}), "unknown key 'with'; did you mean 'width'"),
        (codes(head={"kind": "categorical", "trunk": MLP}), "head has an unknown key 'trunk'"),
        (series(covariates_mixing="scaled"), r"covariates_mixing is 'scaled': there are no covariates"),
        (series(covariates_of="source"), r"covariates_of is 'source': there are no covariates"),
        (series(covariates=3, covariates_mixing="scaled"), "covariates is 3; with .* the backbone's hidden_size, 32"),
        (
            series(covariates=3, covariates_of="source", **diffusion("mask")),
            r"modalities\.x\.covariates_of is 'source' under block_diffusion, where each position holds what it",
        ),
        (
            {"element": {"kind": "discrete", "vocab_size": 5}, "grid": (1, 1, 1), "covariates": 1}
            | {"covariates_of": "source"},
            "has covariates_of 'source' but no head",
        ),
    ],
)
def test_options_that_mean_nothing_are_errors(modality: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build({"x": modality})
