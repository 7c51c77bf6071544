"""Timer (Liu et al. 2024, arXiv 2402.02368; github.com/thuml/Large-Time-Series-Model): a GPT-like decoder of patches.

Timer is next-patch regression on the native decoder with affine LayerNorm after each residual sum, GELU, biases and
sinusoidal positions. Each variate is a series of its own, scaled by the mean and deviation of its lookback.

Verified, with seeded random weights of the original code at toy size (patch 8, width 32, 2 layers): embeddings, hidden
states, forecast, imputation and roll-out. Not verified: the released 67M weights (patch 96, width 1024, 8 layers),
whose file was not at hand.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..adapters import Adapter, TimeSeriesAdapter
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..modeling import UnimodalARForGeneration
from .weights import load, read_weights, rename

MODALITY = "series"
EPS = 1e-5  # of the LayerNorms, and of the scaling's variance

_LAYER = {
    "attention.query_projection": "self_attn.q_proj",
    "attention.key_projection": "self_attn.k_proj",
    "attention.value_projection": "self_attn.v_proj",
    "attention.out_projection": "self_attn.o_proj",
    "conv1": "mlp.up_proj",
    "conv2": "mlp.down_proj",
    "norm1": "input_layernorm",
    "norm2": "post_attention_layernorm",
}
_POSITIONS = "patch_embedding.position_embedding.pe"  # a table; ours is computed


def load_timer(path: str | os.PathLike[str], **args: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """`convert_timer` of a .safetensors or torch file (the released .ckpt is one).

    Raises:
        ValueError: as `convert_timer` and `read_weights`.
    """
    model, adapter = convert_timer(read_weights(path), args)
    return model, [adapter]


def convert_timer(
    state_dict: Mapping[str, Tensor], args: Mapping[str, Any]
) -> tuple[UnimodalARForGeneration, TimeSeriesAdapter]:
    """Timer's weights in a native model; with the adapter it makes a `Forecaster` that does Timer's roll-out.

    Args:
        state_dict: of the original model, of its `backbone` alone, or of a released checkpoint (prefix `model.`).
        args: the original command line's arguments: patch_len, d_model, d_ff, e_layers, n_heads and seq_len (lookback
            in steps, a multiple of patch_len); activation and dropout where given. Others do not act on the network.
            In training, dropout is applied to attention weights and to what attention and MLP add but, unlike in the
            original, not to the inputs nor inside the MLP.

    Returns:
        model in evaluation mode, float32 on the CPU, and adapter. A missing value counts as 0 after scaling, as in
        Timer's imputation.

    Raises:
        ValueError: an argument is missing or has no equivalent; names or shapes of the weights do not fit `args`; two
            names of one weight hold different values.
    """
    config = timer_config(args)
    model = UnimodalARForGeneration(config)
    weights = rename(_canonical(state_dict), _names(config.backbone.num_hidden_layers))
    for name in (name for name in weights if ".mlp." in name and name.endswith("weight")):
        shape = list(weights[name].shape)
        if len(shape) != 3 or shape[2] != 1:
            raise ValueError(f"{name} has shape {shape}; the weight of a 1x1 convolution has [out, in, 1]")
        weights[name] = weights[name][..., 0]
    # Timer's embedding has no bias and says nothing about missing values.
    for name in ("value.bias", "missing.weight"):
        weights[f"embeddings.{MODALITY}.{name}"] = torch.zeros_like(model.state_dict()[f"embeddings.{MODALITY}.{name}"])
    load(model, weights)
    adapter = TimeSeriesAdapter(args["patch_len"], args["seq_len"], scaling="standard", eps=EPS, modality=MODALITY)
    return model.eval(), adapter


def timer_config(args: Mapping[str, Any]) -> UnimodalARConfig:
    """Our configuration for Timer's arguments; see `convert_timer`."""
    missing = [name for name in ("patch_len", "d_model", "d_ff", "e_layers", "n_heads", "seq_len") if name not in args]
    if missing:
        raise ValueError(f"args lack {missing}; they must be those that the weights were trained with")
    if args.get("activation", "gelu") != "gelu":
        raise ValueError(f"args.activation is {args['activation']!r}; only Timer's own 'gelu' can be converted")
    patch, lookback = args["patch_len"], args["seq_len"]
    if lookback < patch or lookback % patch:
        raise ValueError(f"args.seq_len is {lookback}; it must be a positive multiple of patch_len {patch}")
    decoder = UnimodalARDecoderConfig(
        hidden_size=args["d_model"],
        num_hidden_layers=args["e_layers"],
        num_attention_heads=args["n_heads"],
        intermediate_size=args["d_ff"],
        norm="layernorm",
        norm_eps=EPS,
        norm_position="post",
        qk_norm=None,
        mlp="gelu",
        attention_bias=True,
        mlp_bias=True,
        position="sinusoidal",
        position_axes=[1.0, 0.0, 0.0],
        dropout=args.get("dropout", 0.0),
        attention_dropout=args.get("dropout", 0.0),
    )
    series = {
        "element": {"kind": "continuous", "dim": patch},
        # The lookback and one patch more: then Forecaster slides the window and scales anew after every patch.
        "grid": [lookback // patch + 1, 1, 1],
        "layout": {"order": "raster", "block": 1},
        "head": {"kind": "regression", "bias": True},
        "start": "none",
    }
    return UnimodalARConfig(backbone=decoder, modalities={MODALITY: series})


def _canonical(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by their names in Timer's backbone. The full model lists each twice, which must be one value."""
    canonical: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        short = name.removeprefix("model.").removeprefix("backbone.").replace("enc_embedding.", "patch_embedding.", 1)
        if short == _POSITIONS:
            continue
        if short in canonical and not torch.equal(canonical[short], tensor):
            raise ValueError(f"weight {name!r} differs from its other copy; both are {short!r} of Timer's backbone")
        canonical[short] = tensor
    return canonical


def _names(layers: int) -> dict[str, str]:
    """Name in Timer's backbone -> name in our model."""
    modules = {"decoder.norm": "backbone.model.norm", "proj": f"heads.{MODALITY}.proj"}
    for i in range(layers):
        for old, new in _LAYER.items():
            modules[f"decoder.attn_layers.{i}.{old}"] = f"backbone.model.layers.{i}.{new}"
    names = {f"{old}.{part}": f"{new}.{part}" for old, new in modules.items() for part in ("weight", "bias")}
    return {"patch_embedding.value_embedding.weight": f"embeddings.{MODALITY}.value.weight", **names}
