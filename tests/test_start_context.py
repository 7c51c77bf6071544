"""Targets that start from their context's embedding, conditioned norms, and learned positions."""

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
    hidden_states,
    label,
    labels,
    predicting,
    series,
)
from unimodal_ar import Segment, UnimodalARForGeneration

V, N, GRID = 3, 4, (1, 2, 2)
EVERY = all_sequences(V, N)

every_backbone = pytest.mark.parametrize("backbone", BACKBONES)


def toy(backbone: str = "native", null: float = 0.0, more: Any = None, native: Any = None, **changes: Any) -> Any:
    """`more`: changes to the label; `native`: to the native decoder; `changes`: to the target."""
    modalities = {
        "label": label(null_probability=null, **(more or {})),
        "x": codes(V, GRID, **({"start": "context"} | changes)),
    }
    return build(modalities, backbone, **(native or {}))


def conditioned(null: float = 0.0, positions: int | None = None, **changes: Any) -> Any:
    native = {"conditioning_size": 32, "conditioning_positions": positions} if positions else None
    return toy(null=null, more={"conditioning": True}, native=native, **changes)


MODELS: dict[str, Any] = {
    "start": toy,
    "start, block of 2": lambda **more: toy(block=2, **more),
    "start, neighbor": lambda **more: toy(block=None, order="neighbor", **more),
    "start, learned positions": lambda **more: toy(absolute_positions=True, target_positions="learned", **more),
    "conditioning": lambda **more: conditioned(start="learned", **more),
    "conditioning and start": conditioned,
    "conditioning by position": lambda **more: conditioned(positions=N, **more),
}
every_model = pytest.mark.parametrize("kind", MODELS)


def joint(model: Any, *context: Segment) -> np.ndarray:
    """[V^N] probabilities of all sequences, from the element losses."""
    many = [segment.repeat_interleave(len(EVERY)) for segment in context]
    losses = model([*many, Segment("x", EVERY, GRID)]).element_losses["x"]
    return (-losses.double().sum(1)).exp().detach().numpy()


def logits(model: Any, value: int) -> Tensor:
    """[V^N, N, V] of every element of every sequence, in generation order."""
    hidden = full_hidden(model, [labels(*[value] * len(EVERY)), Segment("x", EVERY, GRID)])
    layout = model.layout("x", GRID)
    target = hidden[:, hidden.shape[1] - len(layout) - len(layout.unread) :][:, predicting(layout)]
    return model.heads["x"].logits(target).squeeze(-2).detach().double()


def joint_of(model: Any, conditionals: Tensor) -> np.ndarray:
    layout = model.layout("x", GRID)
    return conditionals.gather(-1, layout.gather(EVERY)[..., None]).squeeze(-1).prod(1).numpy()


def draw(model: Any, value: int, **sampling: Any) -> np.ndarray:
    generator = torch.Generator().manual_seed(1)
    drawn = model.generate([labels(value)], "x", num_samples=5000, generator=generator, **sampling)
    return frequencies(drawn.values, V)


def without_context(model: Any) -> Any:
    """The same model where every label looks like the null vector."""
    free = copy.deepcopy(model)
    with torch.no_grad():
        embedding = free.embeddings["label"]
        embedding.table.weight.copy_(embedding.null.expand_as(embedding.table.weight))
    return free


# --- the distribution -------------------------------------------------------------------------------------------------


@every_model
def test_samples_follow_the_normalised_joint(kind: str) -> None:
    model = MODELS[kind]()
    probability = joint(model, labels(2))
    assert abs(probability.sum() - 1) < 1e-5
    counts = draw(model, 2)
    assert chi_square(counts, probability) > P_VALUE
    assert min(chi_square(counts, joint(model, labels(other))) for other in (0, 1, 3, 4)) < P_VALUE  # the label matters


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_samples_of_hosted_bodies_follow_the_joint(backbone: str) -> None:
    model = toy(backbone)
    probability = joint(model, labels(2))
    assert abs(probability.sum() - 1) < 1e-5
    assert chi_square(draw(model, 2), probability) > P_VALUE


@every_model
@pytest.mark.parametrize("scale", [0.0, 2.0])
def test_guidance_combines_the_logits(kind: str, scale: float) -> None:
    model = MODELS[kind](null=0.1)
    given, free = logits(model, 2), logits(without_context(model), 2)
    guided = joint_of(model, (free + scale * (given - free)).softmax(-1))
    np.testing.assert_allclose(joint_of(model, given.softmax(-1)), joint(model, labels(2)), atol=1e-5)
    assert np.abs(guided - joint(model, labels(2))).max() > 0.01
    assert chi_square(draw(model, 2, guidance_scale=scale), guided) > P_VALUE


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_guidance_of_hosted_bodies_that_start_from_the_context(backbone: str) -> None:
    model = toy(backbone, null=0.1)
    given, free = logits(model, 2), logits(without_context(model), 2)
    guided = joint_of(model, (free + 2 * (given - free)).softmax(-1))
    assert chi_square(draw(model, 2, guidance_scale=2.0), guided) > P_VALUE


@pytest.mark.parametrize("kind", ["start", "conditioning and start"])
def test_the_null_vector_replaces_the_context_in_training(kind: str) -> None:
    model = MODELS[kind](null=0.4).train()
    segments = [labels(*[2] * 1000), Segment("x", EVERY[5].expand(1000, -1), GRID)]
    losses = model(segments).element_losses["x"].sum(1)
    free = without_context(model).eval()(segments).element_losses["x"].sum(1)
    kept = model.eval()(segments).element_losses["x"].sum(1)
    assert (free - kept).abs().min() > 1e-2
    is_null, is_kept = (losses - free).abs() < 1e-4, (losses - kept).abs() < 1e-4
    assert (is_null ^ is_kept).all()
    assert abs(is_null.float().mean() - 0.4) < 5 * (0.24 / 1000) ** 0.5


# --- positions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("order", "block"), [("raster", 1), ("raster", 2), ("neighbor", None), ("random", 1)])
@every_backbone
def test_the_context_takes_no_position_and_the_cache_changes_nothing(backbone: str, order: str, block: Any) -> None:
    modalities = {"label": label(), "x": series(grid=(1, 2, 3), order=order, block=block, start="context")}
    model = build(modalities, backbone)
    context, layout = labels(0, 3), model.layout("x", (1, 2, 3))
    with hidden_states(model) as states:
        drawn = model.generate([context], "x", num_samples=2)
    assert sum(state.shape[1] for state in states) == len(layout) + len(layout.unread)
    assert states[0].shape[1] == layout.block_sizes[0]
    full = full_hidden(model, [context.repeat_interleave(2), drawn])
    torch.testing.assert_close(torch.cat(states, 1), full, atol=1e-5, rtol=1e-5)
    assert (drawn.values[:2] - drawn.values[2:]).abs().max() > 1e-2


@pytest.mark.parametrize("conditioning", [False, True])
def test_a_block_sees_the_context_and_the_blocks_before_it(conditioning: bool) -> None:
    modalities = {
        "label": label(element={"kind": "continuous", "dim": 2}, conditioning=conditioning),
        "x": series(grid=(1, 2, 3), block=2, start="context"),
    }
    model = build(modalities)
    layout = model.layout("x", (1, 2, 3))
    values = torch.randn(1, 6, 3).expand(3, -1, -1).clone().requires_grad_()
    context = torch.randn(1, 1, 2).expand(3, -1, -1).clone().requires_grad_()
    hidden = full_hidden(model, [Segment("label", context, (1, 1, 1), target=False), Segment("x", values, (1, 2, 3))])
    own = layout.block[None, :] == torch.arange(3)[:, None]
    mixed = (hidden * torch.randn_like(hidden) * own[..., None]).sum()
    from_values, from_context = torch.autograd.grad(mixed, [values, context])
    for b in range(3):
        assert set(from_values[b].abs().amax(-1).nonzero().flatten().tolist()) == set(range(2 * b))
    assert (from_context.abs().amax((1, 2)) > 1e-5).all()


def test_rotary_gives_the_context_neither_query_nor_key() -> None:
    """So that its attention score is 0 for every position, whatever its value says (LlamaGen)."""
    model = toy()
    position = model.backbone.model.position
    _, (cos, sin) = position(torch.zeros(1, 2, 32), torch.tensor([[[0, -1, -1], [0, 0, 0]]]))
    assert (cos[:, :, 0] == 0).all() and (sin[:, :, 0] == 0).all() and (cos[:, :, 1] == 1).all()
    seen: list[Tensor] = []
    hook = model.backbone.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["coords"]), with_kwargs=True
    )
    model([labels(1), Segment("x", EVERY[:1], GRID)])
    hook.remove()
    assert seen[0].tolist() == [[[-1, -1, -1], [0, 0, 0], [0, 0, 1], [0, 1, 0]]]


def test_learned_positions_are_added_to_the_element_and_to_what_predicts() -> None:
    model = toy(absolute_positions=True, target_positions="learned").double()
    embedding, layout = model.embeddings["x"], model.layout("x", GRID)
    own, target, table = (
        module.weight
        for module in (embedding.absolute_position.table, embedding.target_position.table, embedding.table)
    )
    assert own.shape == target.shape == (N, 32)
    values, start = EVERY[17:19], torch.randn(2, 1, 32).double()
    read, _ = embedding.inputs(values, layout, start=start)
    element = table[values] + own
    expected = torch.cat([start, element[:, :-1]], 1) + target
    torch.testing.assert_close(read, expected)
    torch.testing.assert_close(embedding.context(values, layout)[0], element)


def test_learned_positions_follow_a_random_order_and_smaller_grids() -> None:
    positions: dict[str, Any] = dict(absolute_positions=True, target_positions="learned")
    model = build({"x": series(grid=(2, 3, 4), order="random", **positions)}).double()
    embedding, grid = model.embeddings["x"], (1, 2, 3)
    layout = model.layout("x", grid)
    values = torch.randn(1, 6, 3).double()
    read, _ = embedding.inputs(values, layout)
    row = torch.tensor([0, 1, 2, 4, 5, 6])  # in the table, of each element of the smaller grid
    source = layout.source[1:]
    element = embedding.value(values)[0, source] + embedding.absolute_position.table.weight[row[source]]
    expected = torch.cat([embedding.start[None], element]) + embedding.target_position.table.weight[row[layout.index]]
    torch.testing.assert_close(read[0], expected)


def test_left_padding_does_not_shift_learned_positions() -> None:
    positions: dict[str, Any] = dict(absolute_positions=True, target_positions="learned")
    model = build({"x": series(grid=(6, 1, 1), **positions)})
    values = torch.randn(1, 4, 3)
    alone = model([Segment("x", values, (4, 1, 1))]).element_losses["x"]
    long = torch.cat([torch.full((1, 2, 3), torch.nan), values], 1)
    padded = model([Segment("x", long, (6, 1, 1), observed=torch.arange(6)[None] > 1)]).element_losses["x"]
    torch.testing.assert_close(padded[:, 2:], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("change", [{"absolute_positions": True}, {"target_positions": "learned"}])
def test_learned_positions_end_with_the_grid(change: dict[str, Any]) -> None:
    model = build({"x": series(grid=(1, 3, 4), **change)})
    sentence = r"grid of 'x' is \(1, 4, 3\); its learned positions end at \(1, 3, 4\)"
    with pytest.raises(ValueError, match=sentence):
        model([Segment("x", torch.randn(1, 12, 3), (1, 4, 3))])
    with pytest.raises(ValueError, match=sentence):
        model.generate([], "x", grid=(1, 4, 3))


@pytest.mark.parametrize("wanted", [None, "fourier", "learned"])
def test_target_positions_are_what_is_asked_for(wanted: str | None) -> None:
    kind = None if wanted is None else "CoordinateEmbedding" if wanted == "fourier" else "PositionTable"
    embedding = build({"x": series(target_positions=wanted)}).embeddings["x"]
    assert (type(embedding.target_position).__name__ if embedding.target_position else None) == kind
    needed = build({"x": series(order="random", target_positions=wanted)}).embeddings["x"]
    assert type(needed.target_position).__name__ == (kind or "CoordinateEmbedding")


# --- adaptive norms ---------------------------------------------------------------------------------------------------


def test_conditioning_is_the_sum_of_pooled_contexts() -> None:
    modalities = {
        "label": label(conditioning=True),
        "text": codes(grid=(3, 1, 1), head=None) | {"conditioning": True, "layout": None},
        "other": label(),
        "x": codes(V, GRID, start="learned"),
    }
    del modalities["text"]["head"]
    model = build(modalities)
    seen: list[Tensor] = []
    hook = model.backbone.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["conditioning"]), with_kwargs=True
    )
    text = Segment("text", torch.tensor([[0, 2, 2], [1, 0, 1]]), (3, 1, 1), target=False)
    other = Segment("other", torch.tensor([[0], [1]]), (1, 1, 1), target=False)
    model([labels(1, 3), text, other, Segment("x", EVERY[:2], GRID)])
    hook.remove()
    tables = {name: embedding.table.weight for name, embedding in model.embeddings.items()}
    expected = tables["label"][[1, 3]] + tables["text"][text.values].mean(1)
    torch.testing.assert_close(seen[0], expected[:, None])


def test_places_of_the_sequence_condition_norms_too() -> None:
    """Against a decoder without the table that is given its rows."""
    model = conditioned(positions=6)
    decoder = model.backbone.model
    plain = copy.deepcopy(decoder)
    plain.conditioning_table = None
    embeds, vector = torch.randn(2, 5, 32), torch.randn(2, 32)
    by_hand = vector[:, None] + decoder.conditioning_table.weight[:5]
    expected = plain(embeds, conditioning=by_hand).last_hidden_state
    torch.testing.assert_close(decoder(embeds, conditioning=vector).last_hidden_state, expected)
    assert (plain(embeds, conditioning=vector).last_hidden_state - expected).abs().max() > 1e-2


def test_more_positions_than_the_table_has_are_refused() -> None:
    model = conditioned(positions=N - 1)
    sentence = f"the sequence has {N} positions; backbone.conditioning_positions is {N - 1}"
    with pytest.raises(ValueError, match=sentence):
        model([labels(1), Segment("x", EVERY[:1], GRID)])
    with pytest.raises(ValueError, match=sentence):
        model.generate([labels(1)], "x")
    assert conditioned(positions=N).generate([labels(1)], "x").values.shape == (1, N)


def test_norms_without_a_context_to_condition_them_are_refused() -> None:
    model = conditioned(start="learned")
    with pytest.raises(ValueError, match="conditioning is missing; the decoder's conditioning_size is 32"):
        model([Segment("x", EVERY[:1], GRID)])


@pytest.mark.parametrize(
    ("more", "native", "sentence"),
    [
        ({}, {"conditioning_positions": 4}, "conditioning_positions is 4; it needs a conditioning_size, which is None"),
        ({"conditioning": True}, {"conditioning_size": 8}, "backbone.conditioning_size is 8; it must be the hidden_s"),
        ({}, {"conditioning_size": 32}, "backbone.conditioning_size is 32; it must be the hidden_size 32, with a mod"),
        ({"conditioning": True}, {"conditioning_size": 32, "conditioning_positions": 0}, "conditioning_positions is 0"),
    ],
)
def test_wrong_conditioning_is_refused(more: dict[str, Any], native: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        toy(more=more, native=native)


@pytest.mark.parametrize("backbone", BACKBONES[1:])
def test_hosted_bodies_have_no_adaptive_norms(backbone: str) -> None:
    with pytest.raises(ValueError, match=r"modalities\.label\.conditioning is true; only the native decoder has"):
        toy(backbone, more={"conditioning": True})


# --- errors and files -------------------------------------------------------------------------------------------------


def test_a_target_that_starts_from_its_context_needs_one_right_before_it() -> None:
    model = build({"label": label(), "y": codes(V, (2, 1, 1)), "x": codes(V, GRID, start="context")})
    x = Segment("x", EVERY[:1], GRID)
    y = Segment("y", EVERY[:1, :2], (2, 1, 1))
    sentence = "start of 'x' is 'context'; a context segment must come right before it"
    for before in ([], [y], [labels(1), y], [labels(1), x]):
        with pytest.raises(ValueError, match=sentence):
            model([*before, x])
        with pytest.raises(ValueError, match=sentence):
            model.generate(before, "x")
    sequence = [y, labels(1), x, labels(2), x]
    assert model(sequence).element_losses["x"].shape == (1, 2 * N)
    torch.testing.assert_close(
        model.generate(sequence[:-1], "x", temperature=0.0, generator=None).values,
        model.generate(sequence[:-1], "x", top_k=1).values,
    )


def test_the_context_it_starts_from_is_one_element() -> None:
    model = build({"pair": codes(V, (2, 1, 1)), "x": codes(V, GRID, start="context")})
    pair = Segment("pair", EVERY[:1, :2], (2, 1, 1), target=False)
    sentence = "the context before 'x' has 2 elements; with start 'context' it must have 1"
    with pytest.raises(ValueError, match=sentence):
        model([pair, Segment("x", EVERY[:1], GRID)])
    with pytest.raises(ValueError, match=sentence):
        model.generate([pair], "x")


@pytest.mark.parametrize(
    ("modality", "change", "sentence"),
    [
        ("label", {"start": "context"}, "has start 'context' but no head; only what is generated has a use for it"),
        ("label", {"target_positions": "learned"}, "has target_positions 'learned' but no head"),
        ("x", {"conditioning": True}, r"modalities.x.conditioning is true; only a context, which has no head"),
        ("x", {"start": "label"}, r"modalities.x.start is 'label'"),
        ("x", {"target_positions": "rope"}, r"modalities.x.target_positions is 'rope'"),
    ],
)
def test_options_without_a_use_are_refused(modality: str, change: dict[str, Any], sentence: str) -> None:
    modalities = {"label": label(), "x": codes(V, GRID)}
    modalities[modality] |= change
    with pytest.raises(ValueError, match=sentence):
        build(modalities)


def test_everything_survives_a_file(tmp_path: Any) -> None:
    model = conditioned(null=0.1, positions=N, absolute_positions=True, target_positions="learned")
    model.save_pretrained(tmp_path)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    assert loaded.config.modalities == model.config.modalities
    assert loaded.config.backbone.conditioning_positions == N
    segments = [labels(*[3] * 5), Segment("x", EVERY[20:25], GRID)]
    assert torch.equal(loaded(segments).element_losses["x"], model(segments).element_losses["x"])
