"""LlamaGen (Sun et al. 2024, arXiv 2406.06525; github.com/FoundationVision/LlamaGen): class-conditional codes in raster
order.

LlamaGen is next-token prediction on a Llama-like decoder with rotary positions over rows and columns. The class takes
the place of a start vector, without a place in the grid.

Verified, with seeded random weights of the original code at toy size: logits, greedy samples with and without guidance
and with guidance in an interval. Not verified: the released weights, whose files were not at hand. Text-conditional
checkpoints are not converted.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from ..adapters import Adapter, LabelAdapter
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse
from .weights import count_layers, load, read_weights, rename, shape_of

HEADS = {768: 12, 1024: 16, 1280: 20, 1536: 24, 2048: 32, 3200: 32, 4096: 32}
"""Width of a published size -> its attention heads (B, L, XL, XXL, 1B, 3B, 7B), which the weights do not tell."""


_LAYER = {
    "attention_norm": "input_layernorm",
    "attention.wq": "self_attn.q_proj",
    "attention.wk": "self_attn.k_proj",
    "attention.wv": "self_attn.v_proj",
    "attention.wo": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
}


class LlamaGenSettings(Strict):
    """What the weights do not tell.

    Args:
        n_head: attention heads; None: those of the published size of the same width.
        n_kv_head: key and value heads; None: n_head.
        num_classes: None: one less than the table has rows, whose last one is then the null class.
        block_size: codes per image, a square number: 256 for 256-pixel images (16 x 16), 576 for 384-pixel ones.
        norm_eps, rope_base: as in the original arguments.
    """

    n_head: PositiveInt | None = None
    n_kv_head: PositiveInt | None = None
    num_classes: PositiveInt | None = None
    block_size: PositiveInt = 256
    norm_eps: float = 1e-5
    rope_base: float = 10000.0


def load_llamagen(path: str | os.PathLike[str], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """`convert_llamagen` of a .safetensors or torch file (a released c2i_*.pt is one)."""
    return convert_llamagen(read_weights(path), **settings)


def convert_llamagen(
    state_dict: Mapping[str, Tensor], **settings: Any
) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """A class-conditional LlamaGen as a native model, with the adapter of its classes. (Its image tokenizer is another
    network: samples are codes.)

    Args:
        state_dict: of the original `Transformer`.
        settings: see `LlamaGenSettings`.

    Raises:
        ValueError: settings or weights are not those of a class-conditional LlamaGen; the message names what differs.
    """
    options = parse(LlamaGenSettings, settings, "llamagen")
    if any(name.startswith("cls_embedding.cap_proj") for name in state_dict):
        raise ValueError(
            "the weights are of a text-conditional LlamaGen (cls_embedding.cap_proj); it must be a c2i one"
        )
    config = _config(options, state_dict)
    decoder, table = config.backbone, state_dict["cls_embedding.embedding_table.weight"]
    model = UnimodalARForGeneration(config)
    weights = rename(_unpacked(state_dict, decoder), _names(decoder.num_hidden_layers))
    for name in (name for name in weights if ".q_proj." in name or ".k_proj." in name):
        weights[name] = _pairs_to_halves(weights[name], decoder.head_dim)
    classes = config.modalities["label"]["element"]["vocab_size"]
    weights["embeddings.label.table.weight"] = table[:classes]
    if len(table) > classes:
        weights["embeddings.label.null"] = table[classes]
    weights["embeddings.label.start"] = torch.zeros_like(table[0])  # of labels that are missing: none are
    load(model, weights)
    return model.eval(), [LabelAdapter(classes)]


def _config(options: LlamaGenSettings, weights: Mapping[str, Tensor]) -> UnimodalARConfig:
    vocabulary, width = shape_of(weights, "tok_embeddings.weight")
    heads, side = options.n_head or HEADS.get(width), math.isqrt(options.block_size)
    if heads is None:
        raise ValueError(f"n_head is not known for the width {width}; give it (widths known are {sorted(HEADS)})")
    if side**2 != options.block_size:
        raise ValueError(f"block_size is {options.block_size}; it must be a square number of codes")
    decoder = UnimodalARDecoderConfig(
        hidden_size=width,
        num_hidden_layers=count_layers(weights, "layers"),
        num_attention_heads=heads,
        num_key_value_heads=options.n_kv_head,
        intermediate_size=shape_of(weights, "layers.0.feed_forward.w1.weight")[0],
        norm_eps=options.norm_eps,
        qk_norm=None,
        position_axes=[0.0, 1.0, 1.0],
        rope_theta=options.rope_base,
    )
    rows = shape_of(weights, "cls_embedding.embedding_table.weight")[0]
    classes = options.num_classes or rows - 1
    if classes not in (rows, rows - 1) or classes < 1:
        raise ValueError(
            f"num_classes is {classes}; cls_embedding.embedding_table.weight has {rows} rows, one for each class and "
            "perhaps one for the null class"
        )
    image = {
        "element": {"kind": "discrete", "vocab_size": vocabulary},
        "grid": [1, side, side],
        "head": {"kind": "categorical"},
        "start": "context",
    }
    label: dict[str, Any] = {"element": {"kind": "discrete", "vocab_size": classes}, "grid": [1, 1, 1]}
    label["null_probability"] = 0.1 if classes < rows else 0.0
    return UnimodalARConfig(backbone=decoder, modalities={"label": label, "image": image})


def _unpacked(state_dict: Mapping[str, Tensor], decoder: Any) -> dict[str, Tensor]:
    """The weights, with queries, keys and values apart, without the class table and what is computed."""
    sizes = [decoder.num_attention_heads * decoder.head_dim, *[decoder.num_key_value_heads * decoder.head_dim] * 2]
    weights = {}
    for i in range(decoder.num_hidden_layers):
        shape_of(state_dict, f"layers.{i}.attention.wqkv.weight")
    for name, tensor in state_dict.items():
        if name.endswith("attention.wqkv.weight"):
            if len(tensor) != sum(sizes):
                raise ValueError(f"weight {name!r} has {len(tensor)} rows; the heads ask for {sum(sizes)}")
            for part, rows in zip("qkv", tensor.split(sizes), strict=True):
                weights[name.replace("wqkv", f"w{part}")] = rows
        elif name not in ("cls_embedding.embedding_table.weight", "freqs_cis"):
            weights[name] = tensor
    return weights


def _pairs_to_halves(weight: Tensor, head_dim: int) -> Tensor:
    """Rows of each head from rotary pairs (0, 1), (2, 3), ... to ours, (0, d/2), (1, d/2 + 1), ..."""
    return weight.unflatten(0, (-1, head_dim // 2, 2)).transpose(1, 2).flatten(0, 2)


def _names(layers: int) -> dict[str, str]:
    """Original name -> ours."""
    names = {
        "tok_embeddings.weight": "embeddings.image.table.weight",
        "norm.weight": "backbone.model.norm.weight",
        "output.weight": "heads.image.proj.weight",
    }
    for i in range(layers):
        for old, new in _LAYER.items():
            names[f"layers.{i}.{old}.weight"] = f"backbone.model.layers.{i}.{new}.weight"
    return names
