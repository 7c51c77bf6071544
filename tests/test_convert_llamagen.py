"""The original LlamaGen in our model, against vectors of its own code (shared/vectors/LlamaGen.safetensors)."""

from __future__ import annotations

import argparse
import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import Vectors, full_hidden, hidden_states, read_vectors
from unimodal_ar import Segment, UnimodalARForGeneration
from unimodal_ar.adapters import LabelAdapter
from unimodal_ar.convert import CONVERTERS
from unimodal_ar.convert.llamagen import convert_llamagen, load_llamagen

# Of a tensor's maximum. Reached: 2e-6; the vectors' own sensitivity to rounding is 1.3e-5.
TOLERANCE = 2e-5
GRID = (1, 4, 4)
SETTINGS: dict[str, Any] = {"n_head": 4, "block_size": 16}
NULL = 10

# Layers, heads and width of the published class-conditional sizes.
PUBLISHED = {
    "B": (12, 12, 768),
    "L": (24, 16, 1024),
    "XL": (36, 20, 1280),
    "XXL": (48, 24, 1536),
    "1B": (22, 32, 2048),
    "3B": (24, 32, 3200),
    "7B": (32, 32, 4096),
}


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Vectors:
    return read_vectors(shared_dir, "LlamaGen")


@pytest.fixture(scope="module")
def converted(vectors: Vectors) -> tuple[Any, LabelAdapter]:
    model, adapters = convert_llamagen(vectors.weights(), **SETTINGS)
    (adapter,) = adapters
    assert isinstance(adapter, LabelAdapter)
    return model, adapter


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


def without_context(model: Any) -> Any:
    """The same model where every label looks like the null vector."""
    free = copy.deepcopy(model)
    with torch.no_grad():
        embedding = free.embeddings["label"]
        embedding.table.weight.copy_(embedding.null.expand_as(embedding.table.weight))
    return free


def classes(*values: int) -> Segment:
    return Segment("label", torch.tensor(values)[:, None], (1, 1, 1), target=False)


@torch.no_grad()
def logits(model: Any, *segments: Segment) -> Tensor:
    return model.heads["image"].logits(full_hidden(model, segments)).squeeze(-2)


def synthetic(layers: int, width: int, inner: int, codes: int = 16384, labels: int = 1000) -> dict[str, Tensor]:
    """A state dict of the original code's names and shapes that takes no memory."""
    shapes = {
        "cls_embedding.embedding_table.weight": (labels + 1, width),
        "tok_embeddings.weight": (codes, width),
        "norm.weight": (width,),
        "output.weight": (codes, width),
    }
    for i in range(layers):
        shapes |= {
            f"layers.{i}.attention.wqkv.weight": (3 * width, width),
            f"layers.{i}.attention.wo.weight": (width, width),
            f"layers.{i}.feed_forward.w1.weight": (inner, width),
            f"layers.{i}.feed_forward.w3.weight": (inner, width),
            f"layers.{i}.feed_forward.w2.weight": (width, inner),
            f"layers.{i}.attention_norm.weight": (width,),
            f"layers.{i}.ffn_norm.weight": (width,),
        }
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


# --- against the original ---------------------------------------------------------------------------------------------


def test_logits_and_loss(vectors: Vectors, converted: tuple[Any, LabelAdapter]) -> None:
    """Rows of the null class, which is no class of ours, go through a model whose labels all look like null."""
    model, adapter = converted
    ids, tokens, theirs = (vectors.tensors[name] for name in ("in.class_ids", "in.tokens", "out.logits"))
    null = ids == NULL
    assert null.any() and not null.all()
    image = Segment("image", tokens, GRID)
    label = adapter.encode(torch.where(null, 0, ids))
    ours = torch.where(null[:, None, None], logits(without_context(model), label, image), logits(model, label, image))
    assert_near(ours, theirs)
    nll = torch.where(
        null[:, None],
        without_context(model)([label, image]).element_losses["image"],
        model([label, image]).element_losses["image"],
    )
    assert_near(nll.mean().reshape(1), vectors.tensors["out.loss"])
    assert (logits(model, label, image)[null] - theirs[null]).abs().max() > 0.1  # the null class is another one


def test_the_rotary_table(vectors: Vectors, converted: tuple[Any, LabelAdapter]) -> None:
    table = vectors.tensors["out.freqs_cis"]
    rows = [[0, -1, -1], *([0, place // 4, place % 4] for place in range(16))]
    _, rotary = converted[0].backbone.model.position(torch.zeros(1, 17, 32), torch.tensor([rows]))
    assert rotary is not None
    for ours, theirs in zip(rotary, table.unbind(-1), strict=True):
        torch.testing.assert_close(ours[0, 0, :, :4], theirs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("name", "sampling"),
    [
        ("greedy_cfg1", {}),
        ("greedy_cfg2", {"guidance_scale": 2.0}),
        (
            "greedy_cfg2_interval4",
            {"guidance_scale": 2.0, "guidance_schedule": {"kind": "interval", "stop": 6 / 16}},
        ),
    ],
)
def test_greedy_samples(
    vectors: Vectors, converted: tuple[Any, LabelAdapter], name: str, sampling: dict[str, Any]
) -> None:
    model, adapter = converted
    expected = vectors.tensors[f"out.{name}"].long()
    drawn = model.generate([adapter.encode(vectors.tensors["in.gen_class_ids"])], "image", temperature=0.0, **sampling)
    assert torch.equal(drawn.values, expected)
    others = {other: vectors.tensors[f"out.{other}"] for other in ("greedy_cfg1", "greedy_cfg2")} | {
        "greedy_cfg2_interval4": vectors.tensors["out.greedy_cfg2_interval4"]
    }
    assert all(not torch.equal(drawn.values, o.long()) for other, o in others.items() if other != name)


def test_guided_probabilities_of_the_last_step(vectors: Vectors, converted: tuple[Any, LabelAdapter]) -> None:
    """As generation computes them, from the cache."""
    model, adapter = converted
    label = adapter.encode(vectors.tensors["in.gen_class_ids"])
    with hidden_states(model) as states:
        model.generate([label], "image", temperature=0.0, guidance_scale=2.0)
    with torch.no_grad():
        given, free = model.heads["image"].logits(states[-1][:, -1]).squeeze(-2).chunk(2)
    assert_near((free + 2 * (given - free)).softmax(-1), vectors.tensors["out.cfg2_last_probs"])


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "pt", "wrapped", "training"])
def test_files_give_the_same_model(
    vectors: Vectors, converted: tuple[Any, LabelAdapter], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("c2i_toy.safetensors" if kind == "safetensors" else "c2i_toy.pt")
    if kind == "safetensors":
        save_file(vectors.weights(), path)
    else:
        wrapped = {"pt": vectors.weights(), "wrapped": {"model": vectors.weights()}}
        torch.save(wrapped.get(kind, {"model": vectors.weights(), "steps": 3, "optimizer": {"state": {}}}), path)
    assert CONVERTERS["llamagen"] is load_llamagen
    model, (adapter,) = load_llamagen(path, **SETTINGS)
    assert adapter.config() == converted[1].config() and adapter.names == [str(i) for i in range(NULL)]  # type: ignore[attr-defined]
    ours, theirs = model.state_dict(), converted[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_samples_are_the_same_after_saving(
    vectors: Vectors, converted: tuple[Any, LabelAdapter], tmp_path: Path
) -> None:
    model, adapter = converted
    label = adapter.encode(vectors.tensors["in.gen_class_ids"])
    model.save_pretrained(tmp_path)
    adapter.save_pretrained(tmp_path)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    again = LabelAdapter.from_pretrained(tmp_path).encode([3, 4])
    assert again.values.flatten().tolist() == [3, 4]
    for sampling in ({"temperature": 0.0, "guidance_scale": 2.0}, {"num_samples": 3}):
        ours, theirs = (
            m.generate([label], "image", generator=torch.Generator().manual_seed(3), **sampling).values
            for m in (loaded, model)
        )
        assert torch.equal(ours, theirs)


# --- published sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [256, 576])
@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_fit(size: str, block_size: int) -> None:
    """Names and shapes of a whole checkpoint, without its numbers."""
    layers, heads, width = PUBLISHED[size]
    inner = -(-(8 * width // 3) // 256) * 256
    with torch.device("meta"):
        model, (adapter,) = convert_llamagen(synthetic(layers, width, inner), block_size=block_size)
    decoder, side = model.config.backbone, round(block_size**0.5)
    assert (decoder.num_hidden_layers, decoder.num_attention_heads, decoder.hidden_size) == (layers, heads, width)
    assert decoder.num_key_value_heads == heads and decoder.intermediate_size == inner
    assert model.options["image"].grid == (1, side, side) and model.options["image"].element.vocab_size == 16384  # type: ignore[union-attr]
    assert adapter.names == [str(i) for i in range(1000)]  # type: ignore[attr-defined]


def test_grouped_keys_and_values_are_taken_apart() -> None:
    """Rows are queries, keys, values; each head's rotary pairs become halves."""
    weights = synthetic(1, 8, 16, codes=5, labels=3)
    weights = {name: torch.randn(tensor.shape) for name, tensor in weights.items()}
    packed = torch.randn(8 + 4 + 4, 8)
    weights["layers.0.attention.wqkv.weight"] = packed
    model: Any = convert_llamagen(weights, n_head=2, n_kv_head=1, block_size=4)[0]
    attention = model.backbone.model.layers[0].self_attn
    halves = [0, 2, 1, 3]
    assert torch.equal(attention.q_proj.weight, packed[[*halves, *(4 + row for row in halves)]])
    assert torch.equal(attention.k_proj.weight, packed[[8 + row for row in halves]])
    assert torch.equal(attention.v_proj.weight, packed[12:])


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        (
            {"cls_embedding.cap_proj.fc1.weight": (4, 4)},
            {},
            "the weights are of a text-conditional LlamaGen (cls_embedding.cap_proj); it must be a c2i one",
        ),
        ({"layers.0.extra": (1,)}, {}, "weight names do not fit the configuration: unknown are ['layers.0.extra']"),
        ({"norm.weight": None}, {}, "weight names do not fit the configuration: missing are ['norm.weight']"),
        ({"tok_embeddings.weight": None}, {}, "weight 'tok_embeddings.weight' is missing; the file is of other code"),
        ({"cls_embedding.embedding_table.weight": None}, {}, "weight 'cls_embedding.embedding_table.weight' is miss"),
        ({"layers.0.feed_forward.w1.weight": None}, {}, "weight 'layers.0.feed_forward.w1.weight' is missing"),
        ({"norm.weight": (7,)}, {}, "weights do not fit the configuration: "),
        ({}, {"n_head": None}, "n_head is not known for the width 8; give it (widths known are [768, 1024, 1280, "),
        ({}, {"n_head": 3}, "hidden_size is 8; it must be a multiple of num_attention_heads 3"),
        ({}, {"n_kv_head": 1}, "weight 'layers.0.attention.wqkv.weight' has 24 rows; the heads ask for 16"),
        ({}, {"block_size": 6}, "block_size is 6; it must be a square number of codes"),
        ({}, {"block_size": 0}, "llamagen.block_size is 0"),
        ({}, {"heads": 2}, "llamagen has an unknown key 'heads'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], settings: dict[str, Any], sentence: str) -> None:
    weights = {name: torch.randn(tensor.shape) for name, tensor in synthetic(1, 8, 16, codes=5, labels=3).items()}
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        convert_llamagen(weights, **({"n_head": 2, "block_size": 4} | settings))


def test_a_class_is_one_of_the_labels(converted: tuple[Any, LabelAdapter]) -> None:
    model, adapter = converted
    with pytest.raises(ValueError, match=r"label is 10; this adapter knows the classes 0\.\.9"):
        adapter.encode(NULL)
    with pytest.raises(ValueError, match=r"values of 'label' hold the code 10; codes must lie in 0\.\.9"):
        model.generate([classes(NULL)], "image")


def test_llamagen_training_checkpoints_load(tmp_path: Path) -> None:
    """What the original training script writes: {"model", "optimizer", "steps", "args": argparse.Namespace}."""
    weights = {key: torch.randn(value.shape) for key, value in synthetic(1, 8, 16, 5, 3).items()}
    torch.save({"model": weights, "steps": 3, "args": argparse.Namespace(a=1)}, tmp_path / "c2i.pt")
    load_llamagen(tmp_path / "c2i.pt", n_head=2, block_size=4)


def test_without_a_null_class_every_row_is_a_class() -> None:
    weights = {key: torch.randn(value.shape) for key, value in synthetic(1, 8, 16, 5, 3).items()}
    rows = len(weights["cls_embedding.embedding_table.weight"])
    model, (adapter,) = convert_llamagen(weights, n_head=2, block_size=4, num_classes=rows)
    assert adapter.element["vocab_size"] == rows and model.config.modality("label").null_probability == 0
    with pytest.raises(ValueError, match=f"num_classes is {rows + 1}; .* has {rows} rows"):
        convert_llamagen(weights, n_head=2, block_size=4, num_classes=rows + 1)
