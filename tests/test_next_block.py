"""The invariants of next-block prediction, for every body, order and kind of block (DESIGN 5)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.helpers import (
    BACKBONES,
    build,
    codes,
    full_hidden,
    hidden_states,
    label,
    labels,
    perturb,
    predicting,
    series,
)
from unimodal_ar import Segment, UnimodalARDecoderConfig, collate

GRID = (2, 2, 3)
BLOCKS: list[Any] = [1, 2, 5, "row", "frame", "whole", {"cell": [2, 1, 1]}, [1, 4, 2, 5]]
ORDERS = ["raster", "random"]

every_backbone = pytest.mark.parametrize("backbone", BACKBONES)
every_layout = [pytest.mark.parametrize("block", BLOCKS, ids=str), pytest.mark.parametrize("order", ORDERS)]


def each_layout(function: Any) -> Any:
    for mark in every_layout:
        function = mark(function)
    return function


def patches(batch: int, grid: tuple[int, int, int] = GRID, dim: int = 3) -> Tensor:
    return torch.randn(batch, grid[0] * grid[1] * grid[2], dim)


def losses(model: Any, *segments: Segment) -> Tensor:
    return model(segments).element_losses["x"]


# --- what is read -----------------------------------------------------------------------------------------------------


@each_layout
@every_backbone
def test_a_block_is_predicted_from_the_blocks_before_it_and_nothing_else(backbone: str, order: str, block: Any) -> None:
    """By gradient: row b of the batch holds the derivative of block b's hidden states by every element."""
    model = build({"x": series(grid=GRID, block=block, order=order)}, backbone)
    layout = model.layout("x", GRID)
    values = patches(1).expand(layout.num_blocks, -1, -1).clone().requires_grad_()
    hidden = full_hidden(model, [Segment("x", values, GRID)])[:, predicting(layout)]
    own = layout.block[None, :] == torch.arange(layout.num_blocks)[:, None]
    (gradient,) = torch.autograd.grad((hidden * torch.randn_like(hidden) * own[..., None]).sum(), values)
    influence = gradient.abs().amax(-1)
    for b in range(layout.num_blocks):
        assert set(influence[b].nonzero().flatten().tolist()) == set(layout.index[layout.block < b].tolist())
        assert b == 0 or influence[b].max() > 1e-3


@each_layout
@every_backbone
def test_cached_decoding_equals_one_full_pass(backbone: str, order: str, block: Any) -> None:
    model = build({"x": series(grid=GRID, block=block, order=order), "label": label()}, backbone)
    context = labels(0, 3)
    with hidden_states(model) as states:
        drawn = model.generate([context], "x")
    unread = [0, *(max(a - b, 0) for a, b in itertools.pairwise(model.layout("x", GRID).block_sizes))]
    sizes = [a + b for a, b in zip(model.layout("x", GRID).block_sizes, unread, strict=True)]
    assert [state.shape[1] for state in states] == [1 + sizes[0], *sizes[1:]]  # the label's goes with the first block's
    full = full_hidden(model, [context, drawn])
    torch.testing.assert_close(torch.cat(states, 1), full, atol=1e-5, rtol=1e-5)
    # The regression head draws its mean, so that the drawn values are what the full pass predicts.
    assert losses(model, context, drawn).max() < 1e-8 < losses(model, context, drawn.replace(values=patches(2))).max()


@pytest.mark.parametrize("element", ["continuous", "discrete"])
@each_layout
def test_next_inputs_are_the_inputs_of_the_block(order: str, block: Any, element: str) -> None:
    kind = (
        codes(grid=GRID, block=block, order=order)
        if element == "discrete"
        else series(grid=GRID, block=block, order=order)
    )
    model = build({"x": kind | {"covariates": 2}}).double()  # matrix products of other shapes round otherwise
    layout, embedding = model.layout("x", GRID), model.embeddings["x"]
    values = torch.randint(0, 3, (2, 12)) if element == "discrete" else patches(2).double()
    covariates, observed = torch.randn(2, 12, 2).double(), torch.rand(2, 12) > 0.3
    embeds, known = embedding.inputs(values, layout, observed, covariates)
    for b in range(layout.num_blocks):
        later = layout.index[layout.block >= b]
        so_far = values.clone()
        so_far[:, later] = 2 if element == "discrete" else torch.nan
        now, known_now = embedding.next_inputs(so_far, layout, b, observed, covariates)
        places = layout.block_range(b)
        assert torch.equal(known_now, known[:, places])
        torch.testing.assert_close(now, embeds[:, places], atol=1e-13, rtol=1e-13)


@pytest.mark.parametrize("block", [1, 2, 3])
def test_targets_that_share_a_source_are_told_apart(block: int) -> None:
    """Sizes that grow, and random orders: the source alone does not say which element is asked for."""
    for layout in ({"block": [1, 2, 3]}, {"order": "random", "block": block}):
        model = build({"x": series(grid=(6, 1, 1)) | {"layout": layout}})
        hidden = full_hidden(model, [Segment("x", torch.zeros(1, 6, 3), (6, 1, 1))])[0]
        distance = torch.cdist(hidden, hidden) + torch.eye(6)
        assert distance.min() > 1e-2


# --- the rest of the batch, padding and gaps --------------------------------------------------------------------------


@each_layout
@every_backbone
def test_the_rest_of_the_batch_is_irrelevant(backbone: str, order: str, block: Any) -> None:
    model = build({"x": series(grid=GRID, block=block, order=order), "label": label()}, backbone)
    values, observed = patches(3), torch.rand(3, 12, 3) > 0.4
    observed[0] = True
    together = losses(model, labels(0, 1, 2), Segment("x", values, GRID, observed=observed))
    for row in range(3):
        one = Segment("x", values, GRID, observed=observed).select(slice(row, row + 1))
        torch.testing.assert_close(losses(model, labels(row), one), together[row : row + 1], atol=1e-4, rtol=1e-5)
    bare = losses(model, labels(0), Segment("x", values[:1], GRID))
    torch.testing.assert_close(bare, together[:1], atol=1e-4, rtol=1e-5)


def padded(values: Tensor, observed: Tensor, slices: int, grid: tuple[int, int, int]) -> Segment:
    """The same example with unobserved NaN before it along t."""
    extra = slices * grid[1] * grid[2]
    nothing = torch.full((len(values), extra, values.shape[2]), torch.nan)
    missing = torch.zeros(len(values), extra, dtype=torch.bool)
    longer = (grid[0] + slices, grid[1], grid[2])
    return Segment("x", torch.cat([nothing, values], 1), longer, observed=torch.cat([missing, observed], 1))


@pytest.mark.parametrize("start", ["learned", "none"])
@pytest.mark.parametrize(
    ("grid", "block", "slices"),
    [((5, 1, 1), 1, 3), ((6, 1, 1), 2, 4), ((3, 2, 2), "frame", 2), ((3, 2, 2), 1, 1), ((3, 2, 2), "row", 1)],
)
@every_backbone
def test_left_padding_changes_nothing(
    backbone: str, grid: tuple[int, int, int], block: Any, slices: int, start: str
) -> None:
    """Alone, padded, and padded beside a longer example; with a segment before it and one after it."""
    modalities = {"x": series(grid=grid, block=block, start=start), "label": label(), "after": codes(grid=(2, 1, 1))}
    model = build(modalities, backbone)
    n, extra = grid[0] * grid[1] * grid[2], slices * grid[1] * grid[2]
    values, observed = patches(2, grid), torch.ones(2, n, dtype=torch.bool)
    observed[1, n - 2] = False
    after = Segment("after", torch.randint(0, 3, (2, 2)), (2, 1, 1))
    alone = model([labels(1, 2), Segment("x", values, grid, observed=observed), after]).element_losses
    long = padded(values, observed, slices, grid)
    wide = model([labels(1, 2), long, after]).element_losses
    torch.testing.assert_close(wide["x"][:, extra:], alone["x"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(wide["after"], alone["after"], atol=1e-4, rtol=1e-5)
    assert (wide["x"][:, :extra] == 0).all()

    other = Segment("x", patches(1, long.grid), long.grid, observed=torch.ones(1, n + extra, dtype=torch.bool))
    (mixed,) = collate([[other], [long]])
    after = after.replace(values=torch.cat([after.values[:1], after.values]))
    beside = model([labels(0, 1, 2), mixed, after]).element_losses
    torch.testing.assert_close(beside["x"][1:, extra:], alone["x"], atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(beside["after"][1:], alone["after"], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("start", ["learned", "none"])
@every_backbone
def test_padding_changes_no_generated_continuation(backbone: str, start: str) -> None:
    grid = (7, 1, 1)
    model = build({"x": series(start=start), "label": label()}, backbone)
    values, observed = patches(2, (4, 1, 1)), torch.tensor([[1, 1, 0, 1], [1, 0, 0, 1]]).bool()
    future = torch.zeros(2, 3, 3)

    def continuation(pad: int) -> Tensor:
        given = padded(values, observed, pad, (4, 1, 1))
        given = Segment(
            "x",
            torch.cat([given.values, future], 1),
            (grid[0] + pad, 1, 1),
            observed=torch.cat([given.element_observed, future[..., 0].bool()], 1),
        )
        drawn = model.generate([labels(1, 2)], "x", given=given, known_blocks=4 + pad)
        full = losses(
            model,
            labels(1, 2),
            drawn.replace(values=torch.where(drawn.element_observed[..., None], drawn.values, torch.nan)),
        )
        assert full[:, -3:].max() < 1e-8  # what is drawn after gaps is what a full pass predicts
        return drawn.values[:, -3:]

    torch.testing.assert_close(continuation(0), continuation(3), atol=1e-4, rtol=1e-5)


@each_layout
@every_backbone
def test_a_gap_changes_nothing_before_it_and_is_never_read(backbone: str, order: str, block: Any) -> None:
    model = build({"x": series(grid=GRID, block=block, order=order)}, backbone)
    layout = model.layout("x", GRID)
    place = 7
    gap = int(layout.index[place])
    values, observed = patches(2), torch.ones(2, 12, dtype=torch.bool)
    whole = full_hidden(model, [Segment("x", values, GRID, observed=observed)])
    observed[:, gap] = False
    poisoned = values.clone()
    poisoned[:, gap] = torch.nan
    missing = full_hidden(model, [Segment("x", poisoned, GRID, observed=observed)])
    again = full_hidden(model, [Segment("x", values, GRID, observed=observed)])
    assert torch.equal(missing, again)
    missing, whole = missing[:, predicting(layout)], whole[:, predicting(layout)]
    earlier = layout.block < layout.block[place]
    torch.testing.assert_close(missing[:, earlier], whole[:, earlier], atol=1e-5, rtol=1e-5)
    readers = (layout.source == gap).nonzero().flatten()
    if len(readers):
        assert (missing[:, readers] - whole[:, readers]).abs().amax(-1).min() > 1e-4
    out = model([Segment("x", poisoned, GRID, observed=observed)])
    assert out.loss.isfinite() and (out.element_losses["x"][:, gap] == 0).all()


def test_a_gap_of_single_values_is_marked_not_read() -> None:
    model = build({"x": series()})
    values, observed = patches(1, (6, 1, 1)), torch.ones(1, 6, 3, dtype=torch.bool)
    observed[0, 2, 1] = False
    zero, poisoned = values.clone(), values.clone()
    zero[0, 2, 1], poisoned[0, 2, 1] = 0, torch.nan
    marked = losses(model, Segment("x", poisoned, (6, 1, 1), observed=observed))
    assert marked.isfinite().all()
    unmarked = losses(model, Segment("x", zero, (6, 1, 1)))
    torch.testing.assert_close(marked[:, :2], unmarked[:, :2])
    assert (marked[:, 3:] - unmarked[:, 3:]).abs().min() > 1e-4  # a true 0 and a missing value are two things


def test_gradients_are_finite_where_values_are_missing() -> None:
    model = build({"x": series()}).train()
    values, observed = patches(2, (6, 1, 1)), torch.rand(2, 6, 3) > 0.5
    values[~observed] = torch.nan
    model([Segment("x", values, (6, 1, 1), observed=observed)]).loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert gradients and all(g.isfinite().all() for g in gradients)
    assert any(g.abs().max() > 0 for g in gradients)


# --- the plain causal language model ----------------------------------------------------------------------------------

VOCAB = 11


def language_model() -> Any:
    shape: dict[str, Any] = dict(
        hidden_size=32, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=VOCAB + 1, rms_norm_eps=1e-5, **shape)).eval()
    perturb(model, 0.2)
    return model


def with_its_weights(lm: Any, native: bool, start: str) -> Any:
    """The same weights around our objective; code VOCAB of the language model is its beginning of sequence."""
    backbone: Any = lm.config
    if native:
        names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
        backbone = UnimodalARDecoderConfig(
            qk_norm=None, norm_eps=1e-5, **{name: getattr(lm.config, name) for name in names}
        )
    model = build({"x": codes(VOCAB, (13, 1, 1), start=start)}, backbone)
    found = model.backbone.model.load_state_dict(lm.model.state_dict(), strict=False)
    assert not found.missing_keys and set(found.unexpected_keys) <= {"embed_tokens.weight"}
    with torch.no_grad():
        model.embeddings["x"].table.weight.copy_(lm.model.embed_tokens.weight[:VOCAB])
        model.heads["x"].proj.weight.copy_(lm.lm_head.weight[:VOCAB])
        if start == "learned":
            model.embeddings["x"].start.copy_(lm.model.embed_tokens.weight[VOCAB])
    return model


@pytest.mark.parametrize(("native", "start"), [(False, "learned"), (False, "none"), (True, "none")])
def test_blocks_of_one_are_a_causal_language_model(native: bool, start: str) -> None:
    lm = language_model()
    model = with_its_weights(lm, native, start)
    tokens = torch.randint(0, VOCAB, (3, 13))
    inputs = tokens if start == "none" else torch.cat([torch.full((3, 1), VOCAB), tokens], 1)
    expected = lm(inputs[:, :-1]).logits[..., :VOCAB]
    hidden = full_hidden(model, [Segment("x", tokens, (13, 1, 1))])
    torch.testing.assert_close(model.heads["x"].logits(hidden).squeeze(-2), expected, atol=1e-5, rtol=1e-5)
    targets = inputs[:, 1:]
    nll = -expected.log_softmax(-1).gather(-1, targets[..., None]).squeeze(-1)
    found = model([Segment("x", tokens, (13, 1, 1))])
    torch.testing.assert_close(found.element_losses["x"][:, -targets.shape[1] :], nll, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.loss, nll.mean(), atol=1e-5, rtol=1e-5)


def test_a_left_padded_batch_equals_the_language_model_with_its_mask() -> None:
    lm = language_model()
    model = with_its_weights(lm, native=False, start="none")
    tokens, observed = torch.randint(0, VOCAB, (3, 13)), torch.ones(3, 13, dtype=torch.bool)
    observed[1, :4] = observed[2, :7] = False
    mask = observed.long()
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    logits = lm(tokens, attention_mask=mask, position_ids=positions).logits[:, :-1, :VOCAB]
    nll = -logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)
    found = losses(model, Segment("x", tokens, (13, 1, 1), observed=observed))
    predicted = observed[:, :-1]  # the first observed token is not predicted
    torch.testing.assert_close(found[:, 1:][predicted], nll[predicted], atol=1e-5, rtol=1e-5)
    assert (found[:, 1:][~predicted] == 0).all() and (found[:, 0] == 0).all()


# --- start "none" -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [1, 2, [1, 3, 2]])
@every_backbone
def test_without_a_start_the_first_block_is_only_read(backbone: str, block: Any) -> None:
    model = build({"x": series(block=block, start="none")}, backbone)
    segment = Segment("x", patches(2, (6, 1, 1)), (6, 1, 1))
    first = model.layout("x", (6, 1, 1)).block_sizes[0]
    out = model([segment])
    shown = 1 if isinstance(block, list) else 0  # the third of three, which neither of the last two reads
    assert full_hidden(model, [segment]).shape[1] == 6 - first + shown
    assert (out.element_losses["x"][:, :first] == 0).all() and (out.element_losses["x"][:, first:] > 0).all()
    torch.testing.assert_close(out.loss, out.element_losses["x"][:, first:].mean())
    observed = (torch.arange(6) < first).expand(2, 6)
    drawn = model.generate([], "x", given=segment.replace(observed=observed))
    assert torch.equal(drawn.values[:, :first], segment.values[:, :first])
    assert losses(model, drawn).max() < 1e-8


def test_without_a_start_nothing_is_predicted_from_nothing() -> None:
    model = build({"x": series(start="none")})
    observed = torch.tensor([[False, False, True, False, True, True]])
    out = losses(model, Segment("x", patches(1, (6, 1, 1)), (6, 1, 1), observed=observed))
    assert (out[0] > 0).tolist() == [False, False, False, False, True, True]


def test_without_a_start_one_block_is_too_little() -> None:
    model = build({"x": series(start="none")})
    with pytest.raises(ValueError, match=r"grid of 'x' is \(1, 1, 1\), a single block; with start 'none' it needs two"):
        model([Segment("x", patches(1, (1, 1, 1)), (1, 1, 1))])
    with pytest.raises(ValueError, match="modality 'x' has no start vector; its first block must be given"):
        model.generate([], "x")


# --- training ---------------------------------------------------------------------------------------------------------


# transformers 5.17, which we support, knows only the old name.
@pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
@pytest.mark.parametrize("block", [1, "frame"])
@every_backbone
def test_gradient_checkpointing_changes_nothing(backbone: str, block: Any) -> None:
    model = build({"x": series(grid=GRID, block=block)}, backbone)
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # GPT-2 has some by default
            module.p = 0.0
    segment = Segment("x", patches(2), GRID)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        loss = model([segment]).loss
        loss.backward()
        results.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert model.is_gradient_checkpointing and len(results[0]) > 10
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, atol=1e-6, rtol=1e-5)


def test_random_orders_change_in_training_only() -> None:
    model = build({"x": series(grid=(3, 4, 4), order="random")})
    fixed = [model.layout("x", (3, 4, 4)).index for _ in range(2)]
    assert torch.equal(*fixed)
    model.train()
    drawn = [model.layout("x", (3, 4, 4)).index for _ in range(2)]
    assert not torch.equal(*drawn)
