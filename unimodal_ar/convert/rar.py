"""RAR (Yu et al. 2024, arXiv 2411.00776; github.com/bytedance/1d-tokenizer): class-conditional codes whose training
order was annealed from random to raster.

RAR is next-token prediction on a decoder with affine LayerNorm and adaptive norms. Every code knows its own place and
that of the code it predicts, both from learned tables. A constant first position (`bos`) comes before the class, which
takes the place of a start vector; the class and the place in the sequence condition the norms.

Verified, with seeded random weights of the original code at toy size: logits in raster and in given orders, with the
null class, greedy samples with and without guidance. Not verified: the released weights, whose files were not at hand.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..adapters import Adapter, LabelAdapter
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..generation import UnimodalARGenerationConfig
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse
from .weights import count_layers, load, read_weights, rename, shape_of

_TABLES = ("pos_embed", "target_aware_pos_embed", "timesteps_embeddings", "embeddings.weight")
_LAST = "adaln_before_head.adaLN_modulation.1"

SPARE = 1024  # rows that the tables of positions hold beyond those of the image

_LAYER = {
    "norm1": "input_layernorm",
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.q_norm": "self_attn.q_norm",
    "attn.k_norm": "self_attn.k_norm",
    "attn.proj": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "mlp.fc1": "mlp.up_proj",
    "mlp.fc2": "mlp.down_proj",
    "adaLN_modulation.1": "modulation.proj",
}


class RARSettings(Strict):
    """What the weights do not tell.

    Args:
        num_attention_heads: None: as many as the norms of queries and keys, which are of a head's size, say.
        guidance_power: of the guidance schedule, saved among the generation options.
    """

    num_attention_heads: PositiveInt | None = None
    guidance_power: float = Field(2.75, gt=0)


def load_rar(path: str | os.PathLike[str], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """`convert_rar` of a .safetensors or torch file (a released rar_*.bin is one)."""
    return convert_rar(read_weights(path), **settings)


def convert_rar(state_dict: Mapping[str, Tensor], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """RAR as a native model, with the adapters of its constant first position and its classes. (Its image tokenizer is
    another network: samples are codes.)

    Args:
        state_dict: of the original `RAR`.
        settings: see `RARSettings`.

    Raises:
        ValueError: settings or weights are not RAR's; the message names what differs.
    """
    options = parse(RARSettings, settings, "rar")
    config = _config(options, state_dict)
    model = UnimodalARForGeneration(config)
    weights = rename(_unpacked(state_dict, config), _names(config.backbone.num_hidden_layers))
    load(model, weights)
    schedule = {"kind": "cosine", "power": options.guidance_power}
    model.generation_config = UnimodalARGenerationConfig(guidance_schedule=schedule)
    classes = config.modalities["label"]["element"]["vocab_size"]
    return model.eval(), [LabelAdapter(1, modality="bos"), LabelAdapter(classes)]


def _config(options: RARSettings, weights: Mapping[str, Tensor]) -> UnimodalARConfig:
    vocabulary, width = shape_of(weights, "lm_head.weight")
    codes = shape_of(weights, "pos_embed")[1] - SPARE
    side = math.isqrt(max(codes, 0))
    if side == 0 or side**2 != codes:
        raise ValueError(f"pos_embed has {codes + SPARE} rows; they must be {SPARE} and a square number of codes")
    decoder = UnimodalARDecoderConfig(
        hidden_size=width,
        num_hidden_layers=count_layers(weights, "blocks"),
        num_attention_heads=options.num_attention_heads or width // shape_of(weights, "blocks.0.attn.k_norm.weight")[0],
        intermediate_size=shape_of(weights, "blocks.0.mlp.fc1.weight")[0],
        norm="layernorm",
        norm_eps=1e-6,
        qk_norm="layernorm",
        mlp="gelu",
        attention_bias=True,
        mlp_bias=True,
        position="none",
        conditioning_size=width,
        conditioning_positions=codes + 1,
    )
    rows = shape_of(weights, "embeddings.weight")[0]
    classes = rows - vocabulary - 2
    if classes < 1:
        raise ValueError(
            f"embeddings.weight has {rows} rows; they must be the {vocabulary} codes of lm_head, a mask, the classes "
            "and the null class"
        )
    label = {"element": {"kind": "discrete", "vocab_size": classes}, "grid": [1, 1, 1]}
    image = {
        "element": {"kind": "discrete", "vocab_size": vocabulary},
        "grid": [1, side, side],
        "head": {"kind": "categorical", "bias": True},
        "start": "context",
        "absolute_positions": True,
        "target_positions": "learned",
    }
    modalities = {
        "bos": {"element": {"kind": "discrete", "vocab_size": 1}, "grid": [1, 1, 1]},
        "label": {**label, "null_probability": 0.1, "conditioning": True},
        "image": image,
    }
    return UnimodalARConfig(backbone=decoder, modalities=modalities)


def _unpacked(state_dict: Mapping[str, Tensor], config: UnimodalARConfig) -> dict[str, Tensor]:
    """The weights one by one. Ours has no position for the class: it is added to the class's embedding, and taken off
    what the norms are given."""
    layers = range(config.backbone.num_hidden_layers)
    packed = [f"blocks.{i}.attn.qkv.{part}" for i in layers for part in ("weight", "bias")]
    for name in (*packed, *_TABLES, "cls_token", f"{_LAST}.weight", f"{_LAST}.bias"):
        shape_of(state_dict, name)  # which raises where it is missing
    weights = {name: tensor.squeeze(0) if tensor.dim() == 3 else tensor for name, tensor in state_dict.items()}
    width, codes = config.hidden_size, config.backbone.conditioning_positions - 1
    vocabulary = config.modalities["image"]["element"]["vocab_size"]
    own, targets, steps, tokens = (weights.pop(name) for name in _TABLES)
    weights["own"], weights["targets"] = own[2 : 2 + codes], targets[2 : 2 + codes]
    weights["steps"] = steps[: codes + 1] - own[1]
    weights["tokens"] = tokens[:vocabulary]
    weights["classes"], weights["null"] = tokens[vocabulary + 1 : -1] + own[1], tokens[-1] + own[1]
    weights["cls_token"] = weights["cls_token"] + own[0]
    weights["bos_start"] = weights["label_start"] = torch.zeros(width)  # of contexts that are missing: none are
    weights["norm.weight"], weights["norm.bias"] = torch.ones(width), torch.zeros(width)
    for part in ("weight", "bias"):
        # Scale comes before shift there.
        weights[f"{_LAST}.{part}"] = weights[f"{_LAST}.{part}"].roll(width, 0)
        for i in layers:
            rows = weights.pop(f"blocks.{i}.attn.qkv.{part}").chunk(3)
            weights |= {f"blocks.{i}.attn.{letter}.{part}": x for letter, x in zip("qkv", rows, strict=True)}
    return weights


def _names(layers: int) -> dict[str, str]:
    """Name in `_unpacked` -> ours."""
    modules = {
        "norm": "backbone.model.norm",
        _LAST: "backbone.model.modulation.proj",
        "lm_head": "heads.image.proj",
    }
    for i in range(layers):
        modules |= {f"blocks.{i}.{old}": f"backbone.model.layers.{i}.{new}" for old, new in _LAYER.items()}
    names = {f"{old}.{part}": f"{new}.{part}" for old, new in modules.items() for part in ("weight", "bias")}
    return names | {
        "tokens": "embeddings.image.table.weight",
        "own": "embeddings.image.absolute_position.table.weight",
        "targets": "embeddings.image.target_position.table.weight",
        "steps": "backbone.model.conditioning_table.weight",
        "classes": "embeddings.label.table.weight",
        "null": "embeddings.label.null",
        "cls_token": "embeddings.bos.table.weight",
        "bos_start": "embeddings.bos.start",
        "label_start": "embeddings.label.start",
    }
