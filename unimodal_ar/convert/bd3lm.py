"""BD3-LM (Arriola et al. 2025, arXiv 2503.09573; github.com/kuleshov-group/bd3lms): text by block diffusion with masks.

BD3-LM is a decoder with LayerNorm, tanh-GELU and rotary positions. Its adaptive norms are told the noise level, which
in all published models is 0 always (`time_conditioning` is false), so that shift, scale and gate are constants: here
they are part of the norms and of the maps that the gates scale. The mask's row of the table is the modality's start
vector, and the mask is no code.

Verified, with seeded random weights of the original code at toy size: attention mask, logits, likelihoods, loss, and
the semi-autoregressive sampler in a deterministic mode. Not verified: the released weights, whose files were not at
hand. The first token of a text (bos) was never masked in training: it has to be given.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, field_validator
from torch import Tensor

from ..adapters import Adapter
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse
from .weights import count_layers, load, read_weights, rename, shape_of

MODALITY = "text"
BERT_ROWS = 30522  # of a vocabulary whose mask is not the last id

_LAYER = {
    "norm1": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_out": "self_attn.o_proj",
    "norm2": "post_attention_layernorm",
    "mlp.0": "mlp.up_proj",
    "mlp.2": "mlp.down_proj",
}
_LAST = "output_layer.adaLN_modulation"
_CLIPPING = ("sampling_eps_min", "sampling_eps_max")  # the range of noise levels in training


class BD3LMSettings(Strict):
    """What the weights do not tell. A config.json beside released weights does; what is given goes before it.

    Args:
        block_size: tokens per block.
        model_length: tokens of a text.
        dropout: in training.
        time_conditioning, causal: only false can be converted.
    """

    block_size: PositiveInt
    model_length: PositiveInt = 1024
    dropout: float = Field(0.1, ge=0, lt=1)
    time_conditioning: bool = False
    causal: bool = False

    @field_validator("time_conditioning", "causal")
    @classmethod
    def _false(cls, value: bool) -> bool:
        if value:
            raise ValueError("it must be false: norms that follow the time, and next-token models, are not converted")
        return value


def load_bd3lm(path: str | os.PathLike[str], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """`convert_bd3lm` of a .safetensors or torch file, with the settings of the config.json beside it if there is one
    (as in the folders on the Hub)."""
    beside = Path(path).with_name("config.json")
    told = _read_settings(beside) if beside.is_file() else {}
    return convert_bd3lm(read_weights(path), **(told | settings))


def convert_bd3lm(state_dict: Mapping[str, Tensor], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """BD3-LM as a native model, which generates the modality "text": codes 0..V-1 of its tokenizer without the mask,
    on the grid (model_length, 1, 1).

    Args:
        state_dict: of the original `DIT`, of the model on the Hub or of a training checkpoint (prefix `backbone.`).
        settings: see `BD3LMSettings`.

    Returns:
        model in evaluation mode, float32 on the CPU, and no adapter: its tokenizer is a file of its own.

    Raises:
        ValueError: settings or weights are not those of a BD3-LM that can be converted; the message names what differs.
    """
    options = parse(BD3LMSettings, settings, "bd3lm")
    weights = {name.removeprefix("backbone."): tensor for name, tensor in state_dict.items()}
    if "blocks.0.attn_qkv.weight" in weights and f"{_LAST}.weight" not in weights:
        raise ValueError(
            f"weight {f'{_LAST}.weight'!r} is missing; the file is of a next-token model (ar), which has no adaptive "
            "norms and is not converted"
        )
    config = _config(options, weights)
    model = UnimodalARForGeneration(config)
    layers = config.backbone.num_hidden_layers
    try:
        folded = _folded(weights, layers)
    except RuntimeError as error:
        raise ValueError(f"weights do not fit each other: {error}") from None
    load(model, rename(folded, _names(layers)))
    return model.eval(), []


def _read_settings(path: Path) -> dict[str, Any]:
    """What `BD3LMSettings` knows of a configuration of the Hub."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        config = None
    if not isinstance(config, dict) or config.get("model_type") != "bd3lm":
        raise ValueError(f"{str(path)!r}, beside the weights, is no configuration of a BD3-LM (model_type 'bd3lm')")
    return {name: config[name] for name in BD3LMSettings.model_fields if name in config}


def _config(options: BD3LMSettings, weights: Mapping[str, Tensor]) -> UnimodalARConfig:
    rows, width = shape_of(weights, "vocab_embed.embedding")
    # The rotary table, computed anew here, tells a head's size.
    head_dim = 2 * shape_of(weights, "rotary_emb.inv_freq")[0]
    if rows == BERT_ROWS:
        raise ValueError(
            f"vocab_embed.embedding has {rows} rows, as BERT's tokenizer has ids, whose mask is 103; only models whose "
            "mask is the last id are converted"
        )
    decoder = UnimodalARDecoderConfig(
        hidden_size=width,
        num_hidden_layers=count_layers(weights, "blocks"),
        num_attention_heads=width // head_dim,
        intermediate_size=shape_of(weights, "blocks.0.mlp.0.weight")[0],
        norm="layernorm",
        norm_eps=1e-5,
        qk_norm=None,
        mlp="gelu_tanh",
        mlp_bias=True,
        position_axes=[1.0, 0.0, 0.0],
        dropout=options.dropout,
    )
    text = {
        "element": {"kind": "discrete", "vocab_size": rows - 1},
        "grid": [options.model_length, 1, 1],
        "layout": {"order": "raster", "block": options.block_size},
        "objective": {"kind": "block_diffusion", "noise": "mask", "levels": _levels(weights)},
        "head": {"kind": "categorical", "bias": True},
    }
    return UnimodalARConfig(backbone=decoder, modalities={MODALITY: text})


def _levels(weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """The clipped schedule that the checkpoint was trained with, where it says so."""
    if not all(name in weights for name in _CLIPPING):
        return None
    low, high = (round(float(weights[name]), 6) for name in _CLIPPING)  # from float32: 0.45, not 0.449999988
    return {"kind": "uniform", "low": low, "high": high} if low < high else None  # else blocks of one: all is masked


def _folded(state_dict: Mapping[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights with the constants of the adaptive norms in them."""
    weights = {name: tensor for name, tensor in state_dict.items() if name not in (*_CLIPPING, "rotary_emb.inv_freq")}
    conditioning = _conditioning(weights)
    for name in (f"blocks.{i}" for i in range(layers)):
        constants = _linear(weights, f"{name}.adaLN_modulation", conditioning).chunk(6)
        _fold_norm(weights, f"{name}.norm1", *constants[:2])
        _scale_rows(weights, f"{name}.attn_out.weight", constants[2])
        _fold_norm(weights, f"{name}.norm2", *constants[3:5])
        for part in ("weight", "bias"):
            _scale_rows(weights, f"{name}.mlp.2.{part}", constants[5])
        rows = _taken(weights, f"{name}.attn_qkv.weight").chunk(3)
        weights |= {f"{name}.attn_{letter}.weight": x for letter, x in zip("qkv", rows, strict=True)}
    _fold_norm(weights, "output_layer.norm_final", *_linear(weights, _LAST, conditioning).chunk(2))
    table = _taken(weights, "vocab_embed.embedding")
    weights["tokens"], weights["mask"] = table[:-1], table[-1]
    for name in ("output_layer.linear.weight", "output_layer.linear.bias"):
        weights[name] = _taken(weights, name)[:-1]
    return weights


def _taken(weights: dict[str, Tensor], name: str) -> Tensor:
    shape_of(weights, name)  # which raises where it is missing
    return weights.pop(name)


def _linear(weights: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    """In float64."""
    return F.linear(x, *(_taken(weights, f"{name}.{part}").double() for part in ("weight", "bias")))


def _conditioning(weights: dict[str, Tensor]) -> Tensor:
    """[C], what the adaptive norms are given at noise level 0, whose features are cosines, then sines."""
    half = shape_of(weights, "sigma_map.mlp.0.weight")[1] // 2
    features = weights["sigma_map.mlp.0.weight"].new_ones(2 * half, dtype=torch.float64)
    features[half:] = 0
    hidden = F.silu(_linear(weights, "sigma_map.mlp.0", features))
    return F.silu(_linear(weights, "sigma_map.mlp.2", hidden))


def _fold_norm(weights: dict[str, Tensor], name: str, shift: Tensor, scale: Tensor) -> None:
    """(1 + scale) x + shift, of a norm that has a weight and no bias."""
    _scale_rows(weights, f"{name}.weight", 1 + scale)
    weights[f"{name}.bias"] = shift.float()


def _scale_rows(weights: dict[str, Tensor], name: str, factor: Tensor) -> None:
    weight = _taken(weights, name).double()
    weights[name] = (factor.view(-1, *[1] * (weight.dim() - 1)) * weight).float()


def _names(layers: int) -> dict[str, str]:
    """Name in `_folded` -> ours."""
    modules = {"output_layer.norm_final": "backbone.model.norm", "output_layer.linear": f"heads.{MODALITY}.proj"}
    for i in range(layers):
        modules |= {f"blocks.{i}.{old}": f"backbone.model.layers.{i}.{new}" for old, new in _LAYER.items()}
    names = {f"{old}.{part}": f"{new}.{part}" for old, new in modules.items() for part in ("weight", "bias")}
    names = {old: new for old, new in names.items() if not (".attn_" in old and old.endswith("bias"))}
    return names | {"tokens": f"embeddings.{MODALITY}.table.weight", "mask": f"embeddings.{MODALITY}.start"}
