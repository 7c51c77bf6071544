"""The original NBP in our model, against vectors of its own code (shared/vectors/NBP.safetensors), and, for the kinds
that these do not cover, against the same network written out here."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import Vectors, backbone_inputs, full_hidden, hidden_states, read_vectors
from unimodal_ar import Segment, UnimodalARForGeneration
from unimodal_ar.adapters import Adapter
from unimodal_ar.convert import CONVERTERS
from unimodal_ar.convert.nbp import convert_nbp, load_nbp

# Of a tensor's maximum. Reached: 4e-7; the vectors' own sensitivity to rounding is 6e-6.
TOLERANCE = 1e-5
GRID = (4, 2, 2)
SETTINGS: dict[str, Any] = {"n_head": 4, "grid": GRID, "token_number_per_step": 4, "first_stage_vocab_size": 64}
SHIFT = 14  # of the codes' ids: 4 starts and 10 classes come before
IDS = 78

# Layers, width and heads of the sizes that the original's scripts train.
SIZES = {"base": (24, 1536, 16), "xl": (24, 2048, 32), "3b": (32, 3072, 32)}

Converted = tuple[Any, list[Adapter]]


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Vectors:
    return read_vectors(shared_dir, "NBP")


@pytest.fixture(scope="module")
def converted(vectors: Vectors) -> Converted:
    return convert_nbp(vectors.weights(), **SETTINGS)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


@torch.no_grad()
def logits(model: Any, segments: list[Segment], shift: int) -> Tensor:
    """[B, positions, ids] in the order of the original's ids."""
    return model.heads["video"].logits(full_hidden(model, segments)).squeeze(-2).roll(shift, -1)


def synthetic(
    layers: int, width: int, rows: int, condition: int = 1, places: int = 5120, prefix: str = ""
) -> dict[str, Tensor]:
    """A state dict of the original code's names and shapes that takes no memory."""
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (rows, width),
        "pos_emb": (1, places, width),
        "uncond_embedding": (condition, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
        "head.weight": (rows, width),
    }
    for i in range(layers):
        modules = {
            **dict.fromkeys(("ln1", "ln2"), (width,)),
            **{f"attn.{name}": (width, width) for name in ("key", "query", "value", "proj")},
            "mlp.0": (4 * width, width),
            "mlp.2": (width, 4 * width),
        }
        for name, shape in modules.items():
            shapes |= {f"blocks.{i}.{name}.weight": shape, f"blocks.{i}.{name}.bias": shape[:1]}
    return {prefix + name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def random_weights(rows: int, condition: int, places: int = 64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows + condition)
    shapes = synthetic(2, 16, rows, condition, places)
    return {name: 0.4 * torch.randn(tensor.shape, generator=generator) for name, tensor in shapes.items()}


# --- the original, written out ----------------------------------------------------------------------------------------


class Original:
    """What the original computes, all positions anew for every step.

    Args:
        block: T; hybrid: the first block is predicted code by code; shift: of the codes' ids.
        condition: [B, P, C], its tokens without positions.
    """

    def __init__(self, weights: dict[str, Tensor], block: int, hybrid: bool, condition: Tensor, heads: int = 4) -> None:
        self.weights, self.block, self.hybrid, self.heads = weights, block, hybrid, heads
        self.condition = condition

    def visible(self, length: int) -> Tensor:
        """[length, length] bool."""
        prefix = self.condition.shape[1]
        mask = torch.ones(length, length).tril() if self.hybrid else torch.zeros(length, length)
        mask[:, :prefix] = 1
        for start in range(prefix + self.block * self.hybrid, length, self.block):
            mask[start : start + self.block, prefix : start + self.block] = 1
        return mask.bool()

    def logits(self, ids: Tensor) -> Tensor:
        """Of [B, n] ids that follow the condition, [B, P + n, rows]."""
        w = self.weights
        x = torch.cat([self.condition, w["tok_emb.weight"][ids]], 1)
        x = x + w["pos_emb"][:, : x.shape[1]]
        mask = self.visible(x.shape[1])
        for i in range(sum(name.endswith("ln1.weight") for name in w)):
            y = self._norm(x, f"blocks.{i}.ln1")
            q, k, v = (
                self._linear(y, f"blocks.{i}.attn.{name}").unflatten(-1, (self.heads, -1)).transpose(1, 2)
                for name in ("query", "key", "value")
            )
            scores = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).masked_fill(~mask, -torch.inf)
            x = x + self._linear((scores.softmax(-1) @ v).transpose(1, 2).flatten(2), f"blocks.{i}.attn.proj")
            y = F.gelu(self._linear(self._norm(x, f"blocks.{i}.ln2"), f"blocks.{i}.mlp.0"))
            x = x + self._linear(y, f"blocks.{i}.mlp.2")
        return F.linear(self._norm(x, "ln_f"), w["head.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def read(self, ids: Tensor) -> tuple[Tensor, int]:
        """What the ids so far are read as, and how many come next."""
        n, rows, block = ids.shape[1], len(ids), self.block
        if not self.hybrid:
            return ids, block
        begin = torch.zeros(rows, 1, dtype=torch.long)
        if n < block:
            return torch.cat([begin, ids], 1), 1
        middle = torch.arange(1, block).expand(rows, -1)
        return torch.cat([begin, ids[:, :block], middle, ids[:, block:]], 1), block

    def next(self, ids: Tensor) -> Tensor:
        """[B, n, rows]: the logits of the next block."""
        read, count = self.read(ids)
        return self.logits(read)[:, -count:]


def greedy(ids: Tensor, length: int, step: Callable[[Tensor], Tensor]) -> Tensor:
    while ids.shape[1] < length:
        ids = torch.cat([ids, step(ids).argmax(-1)], 1)
    return ids


def hybrid_original(vectors: Vectors, condition: Tensor | None = None) -> Original:
    weights = vectors.weights()
    classes = weights["tok_emb.weight"][vectors.tensors["in.classes"] + 4][:, None]
    return Original(weights, 4, True, classes if condition is None else condition)


def test_what_is_written_out_here_is_the_original(vectors: Vectors) -> None:
    original = hybrid_original(vectors)
    ids = vectors.tensors["out.input_ids"]
    assert torch.equal(original.visible(17), vectors.tensors["out.attn_mask"][0, 0].bool())
    assert_near(original.logits(ids[:, 1:]), vectors.tensors["out.gpt_logits"])
    tokens = vectors.tensors["in.tokens"] + SHIFT
    assert torch.equal(original.read(tokens[:, :12])[0], ids[:, 1:])
    nothing = torch.empty(2, 0, dtype=torch.long)
    assert torch.equal(greedy(nothing, 16, original.next), vectors.tensors["out.greedy"])


# --- hybrid, against the original -------------------------------------------------------------------------------------


def segments_of(vectors: Vectors, converted: Converted) -> list[Segment]:
    (label,) = converted[1]
    clip = Segment("video", vectors.tensors["in.tokens"], GRID)
    return [label.encode(vectors.tensors["in.classes"]), clip]


def test_attention_mask(vectors: Vectors, converted: Converted) -> None:
    with backbone_inputs(converted[0]) as inputs:
        converted[0](segments_of(vectors, converted))
    mask = inputs[0].pattern.dense()
    assert torch.equal(mask, vectors.tensors["out.attn_mask"].bool())


def test_logits_and_loss(vectors: Vectors, converted: Converted) -> None:
    model, segments = converted[0], segments_of(vectors, converted)
    assert model.config.backbone.dropout == 0.1 and converted[1][0].element["vocab_size"] == 10
    ours = logits(model, segments, SHIFT)
    assert_near(ours, vectors.tensors["out.gpt_logits"])
    assert_near(ours[:, 1:], vectors.tensors["out.logits"])
    assert torch.equal(segments[1].values + SHIFT, vectors.tensors["out.targets"])
    assert_near(model(segments).loss.reshape(1), vectors.tensors["out.loss"])


def test_greedy_samples(vectors: Vectors, converted: Converted) -> None:
    """4 passes for the first block, the class going with the first of them, and one for each of the others."""
    model, (label, _) = converted[0], segments_of(vectors, converted)
    with hidden_states(model) as states:
        drawn = model.generate([label], "video", temperature=0.0)
    assert torch.equal((drawn.values + SHIFT) % IDS, vectors.tensors["out.greedy"])
    assert [state.shape[1] for state in states] == [2, 1, 1, 1, 4, 4, 4]


def test_a_clip_goes_on_from_what_is_given_of_it(vectors: Vectors, converted: Converted) -> None:
    model, (label, clip) = converted[0], segments_of(vectors, converted)
    known = 8
    given = clip.replace(observed=(torch.arange(16) < known).expand(2, -1))
    with hidden_states(model) as states:
        drawn = model.generate([label], "video", given=given, temperature=0.0).values
    assert len(states) == 2
    expected = greedy(clip.values[:, :known] + SHIFT, 16, hybrid_original(vectors).next)
    assert torch.equal((drawn + SHIFT) % IDS, expected)


def test_guidance(vectors: Vectors) -> None:
    """(1 + ratio) of the logits given the class, less ratio of those without, as in the original."""
    model, (label,) = convert_nbp(vectors.weights(), **SETTINGS, p_drop_cond=0.1)
    assert model.options["label"].null_probability == 0.1
    free = hybrid_original(vectors, vectors.weights()["uncond_embedding"].expand(2, 1, -1))
    bound = hybrid_original(vectors)
    nothing = torch.empty(2, 0, dtype=torch.long)
    expected = greedy(nothing, 16, lambda ids: 2.5 * bound.next(ids) - 1.5 * free.next(ids))
    classes = label.encode(vectors.tensors["in.classes"])
    drawn = model.generate([classes], "video", temperature=0.0, guidance_scale=2.5)
    assert torch.equal((drawn.values + SHIFT) % IDS, expected)
    assert not torch.equal(expected, vectors.tensors["out.greedy"])


def test_texts_are_a_context_of_several_tokens() -> None:
    """As the released hybrid models are conditioned. All tokens of the text see each other."""
    rows, text, block = 4 + 11 + 20, 3, 4
    weights = random_weights(rows, text)
    model, adapters = convert_nbp(weights, **SETTINGS | {"first_stage_vocab_size": 20})
    assert not adapters and model.config.modalities["text"]["element"]["vocab_size"] == 11
    ids = torch.tensor([[3, 0, 7], [10, 10, 1]])
    original = Original(weights, block, True, weights["tok_emb.weight"][ids + block])
    drawn = model.generate([Segment("text", ids, (1, 1, text), target=False)], "video", temperature=0.0)
    expected = greedy(torch.empty(2, 0, dtype=torch.long), 16, original.next)
    assert torch.equal((drawn.values + block + 11) % rows, expected)


# --- plain: rows and frames -------------------------------------------------------------------------------------------


def test_the_mask_of_the_plain_kind(vectors: Vectors) -> None:
    """The vectors' one is for a class and 15 codes: the last block is not read."""
    model, (label,) = convert_nbp(vectors.weights(), **SETTINGS | {"hybrid": False, "grid": (5, 2, 2)})
    clip = Segment("video", torch.zeros(1, 20, dtype=torch.long), (5, 2, 2))
    with backbone_inputs(model) as inputs:
        model([label.encode(0), clip])
    mask, theirs = inputs[0].pattern.dense(), vectors.tensors["out.mask_plain"].bool()
    # The codes of a class's model follow 13 classes; its last id is not used.
    assert mask.shape[-1] == 17 and label.element["vocab_size"] == 13
    assert torch.equal(mask[..., :13, :13], theirs[..., :13, :13])
    assert torch.equal(mask[..., 13:, :], torch.ones(1, 1, 4, 17, dtype=torch.bool))


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("block", "grid"), [("frame", (4, 2, 2)), ("row", (2, 2, 4)), ("row", (1, 4, 4))])
def test_frames_and_rows_are_drawn_in_a_pass_each(
    vectors: Vectors, block: str, grid: tuple[int, int, int], conditional: bool
) -> None:
    weights = vectors.weights()
    if not conditional:
        weights["uncond_embedding"] = torch.empty(0, 32)
    codes, shift = (64, 13) if conditional else (IDS, 0)
    changes = {"hybrid": False, "grid": grid, "first_stage_vocab_size": codes}
    model, adapters = convert_nbp(weights, **SETTINGS | changes)
    assert model.options["video"].layout.block == block
    classes = vectors.tensors["in.classes"] if conditional else torch.empty(2, 0, dtype=torch.long)
    original = Original(weights, 4, False, weights["tok_emb.weight"][classes.view(2, -1)])
    context = [adapters[0].encode(classes)] if conditional else []
    tokens = vectors.tensors["in.tokens"]
    given = Segment("video", tokens, grid, observed=(torch.arange(16) < 4).expand(2, -1))
    with hidden_states(model) as states:
        drawn = model.generate(context, "video", given=given, temperature=0.0).values
    assert [state.shape[1] for state in states] == [4 + conditional, 4, 4]
    assert torch.equal((drawn + shift) % IDS, greedy(tokens[:, :4] + shift, 16, original.next))
    ours = logits(model, [*context, Segment("video", tokens, grid)], shift)
    assert_near(ours, original.logits(tokens[:, :12] + shift))


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "prefix"), [("safetensors", ""), ("ckpt", ""), ("ckpt", "module.")])
def test_files_give_the_same_model(
    vectors: Vectors, converted: Converted, tmp_path: Path, kind: str, prefix: str
) -> None:
    """A training checkpoint holds the video tokenizer, too; DeepSpeed's names have another prefix."""
    path = tmp_path / f"nbp_toy.{kind}"
    if kind == "ckpt":
        own = {f"{prefix}transformer.{name}": tensor for name, tensor in vectors.weights().items()}
        torch.save({"epoch": 3, "state_dict": own | {f"{prefix}first_stage_model.weight": torch.zeros(3)}}, path)
    else:
        save_file(vectors.weights(), path)
    assert CONVERTERS["nbp"] is load_nbp
    model, adapters = load_nbp(path, **SETTINGS)
    assert [adapter.config() for adapter in adapters] == [adapter.config() for adapter in converted[1]]
    ours, theirs = model.state_dict(), converted[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_saved_model_draws_the_same(vectors: Vectors, converted: Converted, tmp_path: Path) -> None:
    converted[0].save_pretrained(tmp_path)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    label = segments_of(vectors, converted)[0]
    drawn = [
        model.generate([label], "video", generator=torch.Generator().manual_seed(2)).values
        for model in (converted[0], loaded)
    ]
    assert torch.equal(*drawn)


def test_every_kept_weight_comes_from_the_original(vectors: Vectors, converted: Converted) -> None:
    """A shared memory would let training one change the other; a meta tensor would be an empty promise."""
    original = {tensor.data_ptr() for tensor in vectors.tensors.values()}
    for name, tensor in converted[0].state_dict().items():
        assert tensor.device.type == "cpu" and tensor.isfinite().all(), name
        assert tensor.data_ptr() not in original, name


# --- published sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_published_models_of_ucf_fit(size: str) -> None:
    """Names and shapes of a whole checkpoint, without its numbers: hybrid, 8 tokens of LLaMA's 32000 as condition."""
    layers, width, heads = SIZES[size]
    weights = synthetic(layers, width, 64000 + 32000 + 16, condition=8, prefix="transformer.")
    with torch.device("meta"):
        model, adapters = convert_nbp(weights | {"first_stage_model.to_out.weight": torch.empty(3)})
    decoder, video, text = model.config.backbone, cast(Any, model.options["video"]), cast(Any, model.options["text"])
    assert (decoder.num_hidden_layers, decoder.hidden_size, decoder.num_attention_heads) == (layers, width, heads)
    assert video.grid == (5, 16, 16) and video.element.vocab_size == 96016 and not adapters
    assert text.grid == (1, 1, 8) and text.element.vocab_size == 32000
    # The steps per clip that the paper's table of models gives.
    assert video.layout.block == [1] * 16 + [16] * 79 and len(video.layout.block) == 95


@pytest.mark.parametrize("size", SIZES)
def test_published_models_of_kinetics_fit(size: str) -> None:
    """Plain, without a condition: rows, of which 48 follow the two frames of codes that are given."""
    layers, width, heads = SIZES[size]
    with torch.device("meta"):
        model, adapters = convert_nbp(synthetic(layers, width, 64000, condition=0, prefix="transformer."))
    video, decoder = cast(Any, model.options["video"]), model.config.backbone
    assert list(model.options) == ["video"] and not adapters and video.start == "none"
    assert (decoder.num_hidden_layers, decoder.hidden_size, decoder.num_attention_heads) == (layers, width, heads)
    assert video.element.vocab_size == 64000 and video.layout.block == "row"


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        ({"blocks.0.extra.weight": (1,)}, {}, "unknown are ['blocks.0.extra.weight']"),
        ({"vtokens_pos_emb": (1, 2, 4, 4, 16)}, {}, "unknown are ['vtokens_pos_emb']"),
        ({"blocks.0.ln1.bias": None}, {}, "missing are ['blocks.0.ln1.bias']"),
        ({"head.weight": None}, {}, "weight 'head.weight' is missing; the file is of other code, or only a part of it"),
        ({"pos_emb": None}, {}, "weight 'pos_emb' is missing"),
        ({"tok_emb.weight": None}, {}, "weight 'tok_emb.weight' is missing"),
        ({"uncond_embedding": None}, {}, "weight 'uncond_embedding' is missing"),
        ({"pos_emb": (1, 16, 16)}, {}, "pos_emb has the shape [1, 16, 16]; the grid needs 17 positions, as [1, 17, C]"),
        ({"pos_emb": (64, 16)}, {}, "pos_emb has the shape [64, 16]; the grid needs 17 positions"),
        ({"pos_emb": (1, 12, 16)}, {"hybrid": False}, "pos_emb has the shape [1, 12, 16]; the grid needs 13 positions"),
        ({"head.weight": (30, 16)}, {}, "weights do not fit the configuration: "),
        ({"uncond_embedding": (0, 16)}, {"hybrid": True}, "hybrid is true; the weights are of a model without a cond"),
        (
            {"uncond_embedding": (0, 16)},
            {},
            "tok_emb.weight has 31 rows; they must be 0 of starts, those of conditions",
        ),
        (
            {},
            {"first_stage_vocab_size": 27},
            "31 rows; they must be 4 of starts, those of conditions (at least 1) and f",
        ),
        (
            {},
            {"token_number_per_step": 5},
            "token_number_per_step is 5; the 16 codes of the grid (4, 2, 2) must be two",
        ),
        ({}, {"token_number_per_step": 16}, "token_number_per_step is 16; the 16 codes of the grid (4, 2, 2) must be"),
        (
            {"uncond_embedding": (3, 16)},
            {"p_drop_cond": 0.1},
            "p_drop_cond is 0.1; only models whose condition is a cl",
        ),
        ({}, {"n_head": None}, "n_head is not known for the width 16; give it (widths known are [1536, 2048, 3072])"),
        ({}, {"n_head": 5}, "hidden_size is 16; it must be a multiple of num_attention_heads 5"),
        ({}, {"heads": 4}, "nbp has an unknown key 'heads'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], settings: dict[str, Any], sentence: str) -> None:
    weights = random_weights(31, 1)
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        convert_nbp(weights, **SETTINGS | {"first_stage_vocab_size": 20} | settings)


@pytest.mark.parametrize(("hybrid", "places"), [(True, 17), (False, 13)])
def test_positions_that_nobody_reads_need_not_be_there(hybrid: bool, places: int) -> None:
    settings = SETTINGS | {"first_stage_vocab_size": 20, "hybrid": hybrid}
    long = random_weights(31, 1)
    short = {**long, "pos_emb": long["pos_emb"][:, :places]}
    models = [convert_nbp(weights, **settings)[0].state_dict() for weights in (long, short)]
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
