"""AutoTimes (Liu et al. 2024, arXiv 2402.02370; github.com/thuml/AutoTimes): a language model as a forecaster.

A frozen language model reads segments of a series through a trained encoder, and a trained decoder reads the next
segment off its hidden states; each is a linear map or an MLP. Each variate is a series of its own, scaled by the mean
and deviation of its lookback. With timestamps (`mix_embeds`) a segment's embedding e is mixed with the language model's
last state c of a sentence about the segment's span, e / |e| + add_scale c / |c|: here c are the segment's covariates,
and those of the segment that is read count, as there.

Further than one segment the original rolls out: it appends the forecast, drops the first segment (and its timestamp)
and scales anew, which is what `Forecaster` does, too.

Verified, with seeded random weights of the original code at toy size (GPT-2 of width 32): inputs and outputs of the
language model, and the forecast. MLPs, Llama and roll-outs agree with the same network written out in the tests. Not
verified: weights trained with the original code, of which none are published.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..adapters import Adapter, TimeSeriesAdapter
from ..configuration import UnimodalARConfig
from ..fingerprint import fingerprint
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse
from .weights import count_layers, load, read_weights, rename, shape_of

MODALITY = "series"
EPS = 1e-5  # of the scaling's variance

# Where the original's classes keep the body of their language model.
_BODIES = ("gpt2.", "llama.model.", "opt.model.")
# What no body needs: the token head, and tables that older versions of transformers saved.
_NOT_OURS = re.compile(r"^(llama|opt)\.lm_head\.|\.rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")


class AutoTimesSettings(Strict):
    """What the weights do not tell.

    Args:
        backbone: the language model, by its name or path; where the file holds its weights, too, only its configuration
            is read, which may be given instead.
        seq_len: lookback in steps, a multiple of the segment (token_len).
        timestamps: let the adapter make the timestamps of a model that has some, with the language model that backbone
            names; else whoever forecasts brings their embeddings.
        mlp_activation, dropout: of the MLPs, where encoder and decoder are some.
    """

    backbone: str | dict[str, Any]
    seq_len: PositiveInt = 672
    timestamps: bool = False
    mlp_activation: Literal["tanh", "relu", "gelu"] = "tanh"
    dropout: float = Field(0.1, ge=0, lt=1)


def load_autotimes(path: str | os.PathLike[str], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """`convert_autotimes` of a .safetensors or torch file (a checkpoint.pth of the original is one)."""
    return convert_autotimes(read_weights(path), **settings)


def convert_autotimes(
    state_dict: Mapping[str, Tensor], **settings: Any
) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """AutoTimes' weights around the language model that they were trained with.

    Args:
        state_dict: of the original model, or, as it saves its checkpoints, of the trained part alone.
        settings: see `AutoTimesSettings`.

    Returns:
        model in evaluation mode, float32 on the CPU, around a frozen language model, of which a saved model holds the
        name alone (unless the file holds its weights), and the adapter of its series. With timestamps, each element has
        hidden_size covariates, its timestamp's embedding, which the adapter makes if the settings say so; those of the
        last segment, which nothing reads, may be 0. A missing value counts as 0 after scaling.

    Raises:
        ValueError: settings or weights are not AutoTimes'; the message names what differs.
    """
    options = parse(AutoTimesSettings, settings, "autotimes")
    weights = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}  # DDP's prefix
    weights = {name: tensor for name, tensor in weights.items() if not _NOT_OURS.search(name)}
    body = {name: _in_backbone(name) for name in weights if name.startswith(_BODIES)}
    if not body and isinstance(options.backbone, dict):
        raise ValueError(
            "autotimes.backbone is a configuration, and the file holds no weights of a language model; it must be the "
            "name or path of the one that these were trained with"
        )
    timestamps = _timestamps(options, weights)
    series = _series(options, weights)
    if body:
        config = UnimodalARConfig(backbone=options.backbone, modalities={MODALITY: series}, freeze_backbone=True)
        model = UnimodalARForGeneration(config)
    else:
        assert isinstance(options.backbone, str)
        model = UnimodalARForGeneration.from_backbone(
            options.backbone, {MODALITY: series}, freeze=True, dtype=torch.float32
        )
    names = _names(weights)
    ours = rename({name: tensor for name, tensor in weights.items() if name not in body}, names)
    ours |= {new: weights[old] for old, new in body.items()}
    if series["covariates"]:
        ours[names["add_scale"]] = weights["add_scale"].reshape(1)
    known = model.state_dict()
    # AutoTimes' encoder says nothing about missing values.
    missing = f"embeddings.{MODALITY}.missing.weight"
    ours[missing] = torch.zeros_like(known[missing])
    held = {} if body else {name: tensor for name, tensor in known.items() if name.startswith("backbone.")}
    load(model, held | ours)
    if timestamps is not None and not body:  # else these are of the file, and the named model's are not known yet
        timestamps["language_model"]["fingerprint"] = fingerprint(model.backbone.model.state_dict())
    patch = series["element"]["dim"]
    return model.eval(), [TimeSeriesAdapter(patch, options.seq_len, eps=EPS, modality=MODALITY, timestamps=timestamps)]


def _timestamps(options: AutoTimesSettings, weights: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """What the adapter is told of timestamps; the sentence of its own accord is the original's."""
    if not options.timestamps:
        return None
    if "add_scale" not in weights:
        raise ValueError("autotimes.timestamps is True; the weights are of a model without timestamps (no add_scale)")
    if isinstance(options.backbone, dict):
        raise ValueError(
            "autotimes.timestamps is True, and autotimes.backbone is a configuration; it must be the name or path of "
            "the language model that computes them"
        )
    return {"language_model": {"pretrained": options.backbone}}


def _series(options: AutoTimesSettings, weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options of the series' modality."""
    layers = _hidden_layers(weights)
    first = "encoder.layers.0" if layers else "encoder"
    inner, patch = shape_of(weights, f"{first}.weight")
    width = shape_of(weights, f"decoder{'.layers.0' if layers else ''}.weight")[1]
    if options.seq_len % patch:
        raise ValueError(f"autotimes.seq_len is {options.seq_len}; it must be a multiple of the segment, {patch}")
    size = UnimodalARConfig(backbone=options.backbone).hidden_size
    if size != width:
        raise ValueError(f"autotimes.backbone has hidden_size {size}; the weights are for a language model of {width}")
    mlp = {"layers": layers, "width": inner, "activation": options.mlp_activation, "dropout": options.dropout}
    mixing = {"covariates_mixing": "scaled", "covariates_of": "source"}
    return {
        "element": {"kind": "continuous", "dim": patch},
        # The lookback and one segment more: then Forecaster slides the window and scales anew after every segment.
        "grid": [options.seq_len // patch + 1, 1, 1],
        "layout": {"order": "raster", "block": 1},
        "head": {"kind": "regression", "trunk": mlp if layers else None},
        "start": "none",
        "embedding": mlp if layers else None,
        **({"covariates": width, **mixing} if "add_scale" in weights else {"covariates": 0}),
    }


def _hidden_layers(weights: Mapping[str, Tensor]) -> int:
    """How many hidden layers encoder and decoder have each: between the maps stand an activation and dropout."""
    return max(count_layers(weights, "encoder.layers") - 1, 0) // 3


def _names(weights: Mapping[str, Tensor]) -> dict[str, str]:
    """Original name -> ours, for the trained part."""
    layers = _hidden_layers(weights)
    modules: dict[str, str] = {}
    for part, hidden, last in (
        ("encoder", f"embeddings.{MODALITY}.layers", f"embeddings.{MODALITY}.value"),
        ("decoder", f"heads.{MODALITY}.trunk", f"heads.{MODALITY}.proj"),
    ):
        modules |= {f"{part}.layers.{3 * i}": f"{hidden}.{3 * i}" for i in range(layers)}
        modules[f"{part}.layers.{3 * layers}" if layers else part] = last
    names = {f"{old}.{part}": f"{new}.{part}" for old, new in modules.items() for part in ("weight", "bias")}
    scale = {"add_scale": f"embeddings.{MODALITY}.covariates.scale"}
    return names | (scale if "add_scale" in weights else {})


def _in_backbone(name: str) -> str:
    prefix = next(prefix for prefix in _BODIES if name.startswith(prefix))
    return f"backbone.model.{name.removeprefix(prefix)}"
