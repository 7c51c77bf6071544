"""The original RAR in our model, against vectors of its own code (shared/vectors/RAR.safetensors)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import Vectors, full_hidden, read_vectors
from unimodal_ar import Layout, Segment, UnimodalARForGeneration
from unimodal_ar.adapters import Adapter, AutoAdapter
from unimodal_ar.convert import CONVERTERS
from unimodal_ar.convert.rar import convert_rar, load_rar

# Of a tensor's maximum. Reached: 1e-6; the vectors' own sensitivity to rounding is 6e-6.
TOLERANCE = 1e-5
GRID = (1, 4, 4)
HEADS = 4

# Layers and width of the published sizes; all have 16 heads and an MLP of 4 times the width.
PUBLISHED = {"B": (24, 768), "L": (24, 1024), "XL": (32, 1280), "XXL": (40, 1408)}

Converted = tuple[Any, list[Adapter]]


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Vectors:
    return read_vectors(shared_dir, "RAR")


@pytest.fixture(scope="module")
def converted(vectors: Vectors) -> Converted:
    return convert_rar(vectors.weights())


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


def context(adapters: list[Adapter], classes: Any) -> list[Segment]:
    bos, label = adapters
    return [bos.encode(None).repeat_interleave(len(classes)), label.encode(classes)]


def in_order(order: Tensor) -> Layout:
    """Blocks of one in a given order."""
    n = len(order)
    coords = torch.stack([torch.zeros(n, dtype=torch.long), order // 4, order % 4], 1)
    source = torch.cat([torch.tensor([-1]), order[:-1]])
    return Layout(GRID, order, torch.arange(n), source, coords)


@torch.no_grad()
def logits(model: Any, segments: list[Segment], layout: Layout | None = None) -> Tensor:
    """[B, 16, V] in generation order."""
    layouts = None if layout is None else {"image": layout}
    seen: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda module, args, output: seen.append(output))
    model(segments, layouts=layouts)
    hook.remove()
    return model.heads["image"].logits(seen[0][:, -16:]).squeeze(-2)


def synthetic(layers: int, width: int, codes: int = 256, vocabulary: int = 1024, labels: int = 1000) -> Any:
    """A state dict of the original code's names and shapes that takes no memory."""
    inner = 4 * width
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "embeddings.weight": (vocabulary + 1 + labels + 1, width),
        "pos_embed": (1, codes + 1024, width),
        "target_aware_pos_embed": (1, codes + 1024, width),
        "timesteps_embeddings": (1, codes + 100, width),
        "lm_head.weight": (vocabulary, width),
        "lm_head.bias": (vocabulary,),
        "adaln_before_head.adaLN_modulation.1.weight": (2 * width, width),
        "adaln_before_head.adaLN_modulation.1.bias": (2 * width,),
    }
    for i in range(layers):
        modules = {
            "norm1": (width,),
            "norm2": (width,),
            "attn.q_norm": (width // 16,),
            "attn.k_norm": (width // 16,),
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (inner, width),
            "mlp.fc2": (width, inner),
            "adaLN_modulation.1": (6 * width, width),
        }
        for name, shape in modules.items():
            shapes[f"blocks.{i}.{name}.weight"] = shape
            shapes[f"blocks.{i}.{name}.bias"] = shape[:1]
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


# --- against the original ---------------------------------------------------------------------------------------------


def test_logits_and_loss_in_raster_order(vectors: Vectors, converted: Converted) -> None:
    model, adapters = converted
    segments = [*context(adapters, vectors.tensors["in.classes"]), Segment("image", vectors.tensors["in.tokens"], GRID)]
    assert_near(logits(model, segments), vectors.tensors["out.logits_raster"][:, :16])
    assert_near(model(segments).loss.reshape(1), vectors.tensors["out.loss_raster"])


def test_logits_and_loss_in_the_orders_of_each_example(vectors: Vectors, converted: Converted) -> None:
    model, adapters = converted
    classes, tokens, orders = (vectors.tensors[f"in.{name}"] for name in ("classes", "tokens", "orders"))
    losses = []
    for row, order in enumerate(orders):
        layout = in_order(order)
        image = Segment("image", tokens[row : row + 1], GRID)
        segments = [*context(adapters, classes[row : row + 1]), image]
        assert torch.equal(layout.gather(image.values), vectors.tensors["out.labels_perm"][row : row + 1])
        assert_near(logits(model, segments, layout), vectors.tensors["out.logits_perm"][row : row + 1, :16])
        out = model(segments, layouts={"image": layout})
        losses.append(out.loss)
        in_raster = model(segments).element_losses["image"]
        assert (out.element_losses["image"] - in_raster).abs().max() > 0.1  # the order matters
    assert_near(torch.stack(losses).mean().reshape(1), vectors.tensors["out.loss_perm"])


def test_logits_without_a_class(vectors: Vectors, converted: Converted) -> None:
    """By the path that guidance takes."""
    model, adapters = converted
    classes, tokens = vectors.tensors["in.classes"], vectors.tensors["in.tokens"]
    seen: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda module, args, output: seen.append(output))
    given = Segment("image", tokens, GRID, observed=torch.arange(16).expand(2, -1) < 15)
    model.generate(context(adapters, classes), "image", given=given, guidance_scale=2.0, temperature=0.0)
    hook.remove()
    states = torch.cat(seen, 1)[2:, -16:]  # the second half of the batch is the one without context
    with torch.no_grad():
        ours = model.heads["image"].logits(states).squeeze(-2)
    assert_near(ours, vectors.tensors["out.logits_uncond"][:, :16])


@pytest.mark.parametrize(("name", "scale"), [("gen_noguide", None), ("gen_cfg4", 4.0)])
def test_greedy_samples(vectors: Vectors, converted: Converted, name: str, scale: float | None) -> None:
    model, adapters = converted
    drawn = model.generate(
        context(adapters, vectors.tensors["in.classes"]), "image", temperature=0.0, guidance_scale=scale
    )
    assert torch.equal(drawn.values, vectors.tensors[f"out.{name}"])


def test_the_guidance_schedule_is_saved(vectors: Vectors, converted: Converted, tmp_path: Path) -> None:
    model, adapters = converted
    model.save_pretrained(tmp_path)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    assert cast(Any, loaded.generation_config).guidance_schedule == {"kind": "cosine", "power": 2.75}
    options = cast(Any, loaded.generation_config).updated(guidance_scale=4.0)
    scales = torch.tensor(options.guidance_scales(16))
    torch.testing.assert_close(scales, vectors.tensors["out.cfg_schedule"], atol=1e-5, rtol=1e-6)
    classes = context(adapters, vectors.tensors["in.classes"])
    guided = loaded.generate(classes, "image", temperature=0.0, guidance_scale=4.0)
    assert torch.equal(guided.values, vectors.tensors["out.gen_cfg4"])
    sampled = [
        m.generate(classes, "image", num_samples=3, generator=torch.Generator().manual_seed(3)).values
        for m in (model, loaded)
    ]
    assert torch.equal(*sampled)
    other: Any = convert_rar(vectors.weights(), num_attention_heads=HEADS, guidance_power=1.5)[0]
    assert other.generation_config.guidance_schedule == {"kind": "cosine", "power": 1.5}


def test_positions_stand_in_the_order_of_the_segments(vectors: Vectors, converted: Converted) -> None:
    """The constant first position and the class of the original; the class is our start and takes none of its own."""
    model, adapters = converted
    assert [adapter.modality for adapter in adapters] == ["bos", "label"]
    segments = [*context(adapters, [1]), Segment("image", vectors.tensors["in.tokens"][:1], GRID)]
    assert full_hidden(model, segments).shape[1] == 17


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_files_give_the_same_model(vectors: Vectors, converted: Converted, tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"rar_toy.{kind}"
    (save_file if kind == "safetensors" else torch.save)(vectors.weights(), path)
    assert CONVERTERS["rar"] is load_rar
    model, adapters = load_rar(path, num_attention_heads=HEADS)
    assert [adapter.config() for adapter in adapters] == [adapter.config() for adapter in converted[1]]
    ours, theirs = model.state_dict(), converted[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_every_kept_weight_comes_from_the_original(vectors: Vectors, converted: Converted) -> None:
    """A shared memory would let training one change the other; a meta tensor would be an empty promise."""
    original = {tensor.data_ptr() for tensor in vectors.tensors.values()}
    for name, tensor in converted[0].state_dict().items():
        assert tensor.device.type == "cpu" and tensor.isfinite().all(), name
        assert tensor.data_ptr() not in original, name


# --- published sizes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_fit(size: str) -> None:
    """Names and shapes of a whole checkpoint, without its numbers."""
    layers, width = PUBLISHED[size]
    with torch.device("meta"):
        model, (bos, label) = convert_rar(synthetic(layers, width))
    decoder, image = model.config.backbone, model.config.modalities["image"]
    assert (decoder.num_hidden_layers, decoder.hidden_size, decoder.num_attention_heads) == (layers, width, 16)
    assert decoder.intermediate_size == 4 * width and decoder.conditioning_positions == 257
    assert tuple(image["grid"]) == (1, 16, 16) and image["element"]["vocab_size"] == 1024
    assert bos.element == {"kind": "discrete", "vocab_size": 1}
    assert label.element == {"kind": "discrete", "vocab_size": 1000}


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        ({"blocks.0.extra.weight": (1,)}, {}, "unknown are ['blocks.0.extra.weight']"),
        ({"blocks.0.norm1.bias": None}, {}, "missing are ['blocks.0.norm1.bias']"),
        ({"lm_head.weight": None}, {}, "weight 'lm_head.weight' is missing; the file is of other code, or only a part"),
        ({"pos_embed": None}, {}, "weight 'pos_embed' is missing"),
        ({"embeddings.weight": None}, {}, "weight 'embeddings.weight' is missing"),
        ({"pos_embed": (1, 1029, 32)}, {}, "pos_embed has 1029 rows; they must be 1024 and a square number of codes"),
        ({"pos_embed": (1, 1024, 32)}, {}, "pos_embed has 1024 rows; they must be 1024 and a square number of codes"),
        ({"pos_embed": (1, 900, 32)}, {}, "pos_embed has 900 rows; they must be 1024 and a square number of codes"),
        ({"lm_head.bias": (3,)}, {}, "weights do not fit the configuration: "),
        ({}, {"num_attention_heads": 5}, "hidden_size is 32; it must be a multiple of num_attention_heads 5"),
        ({}, {"num_attention_heads": 8}, "weights do not fit the configuration: "),
        ({}, {"guidance_power": 0}, "rar.guidance_power is 0"),
        ({}, {"heads": 16}, "rar has an unknown key 'heads'"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], settings: dict[str, Any], sentence: str) -> None:
    weights = {name: torch.randn(tensor.shape) for name, tensor in synthetic(1, 32, 4, 5, 3).items()}
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        convert_rar(weights, **settings)


def test_adapters_are_saved_beside_the_model(converted: Converted, tmp_path: Path) -> None:
    for adapter in converted[1]:
        folder = tmp_path / adapter.modality
        adapter.save_pretrained(folder)
        assert AutoAdapter.from_pretrained(folder).config() == adapter.config()


@pytest.mark.parametrize(
    "name", ["blocks.0.attn.qkv.weight", "target_aware_pos_embed", "timesteps_embeddings", "cls_token"]
)
def test_rar_names_what_is_missing(name: str) -> None:
    weights = {key: torch.randn(value.shape) for key, value in synthetic(1, 32, 4, 5, 3).items() if key != name}
    with pytest.raises(ValueError, match=name):
        convert_rar(weights)
