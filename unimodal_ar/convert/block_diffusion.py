"""From next-block prediction to block diffusion: a trained model, or a pretrained language model, goes on as one that
restores blocks from noise (SDAR, arXiv 2510.06303). What it knows of its data stays; that a position now holds a mask
where it held the value before, and predicts its own element in place of the next one, takes a brief adaptation.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..configuration import UnimodalARConfig
from ..modeling import UnimodalARForGeneration
from ..schema import positive_int

LENGTH = 1024  # tokens of a language model's texts, where nothing else is said

# Of a backbone's configuration, what does not change what it computes, or what the weights themselves tell.
_FREE = {
    *("architectures", "conditioning_size", "dtype", "initializer_range", "transformers_version", "use_cache"),
    *("_name_or_path", "pad_token_id", "bos_token_id", "eos_token_id"),
}


def convert_to_block_diffusion(
    model: PreTrainedModel,
    block: Any,
    noise: str = "mask",
    modality: str | None = None,
    levels: dict[str, Any] | None = None,
    length: int | None = None,
) -> UnimodalARForGeneration:
    """A model of the same weights whose objective is block diffusion, to be trained on briefly.

    The start vector, which stands for "nothing is known here", becomes the mask. Where there is none, it is the mean
    of what codes look like, and for vectors what a missing one looks like. What has no counterpart is left out with a
    warning. Under Gaussian noise the head begins anew, for it predicts velocities in place of values, and adaptive
    norms begin without effect.

    Args:
        model: a `UnimodalARForGeneration` trained under next-block, native or hosted; or a transformers
            `...ForCausalLM`, whose tokens become the modality "text" on the grid (length, 1, 1). It is left as it is.
        block: the new blocks, anything that `layout.block` takes: 4, "row", [1, 3, 4], {"cell": [1, 2, 2]}, ...
        noise: "mask" or "gaussian".
        modality: whose objective changes, or what a language model's tokens are called; None: the only one that is
            generated, "text".
        levels: noise levels in training, as in the objective's configuration.
        length: tokens of a language model's texts; None: 1024, or as many as its positions allow.

    Returns:
        model in evaluation mode, of the source's dtype and on its device.

    Raises:
        ValueError: the model, or one of its parts, cannot go on under this objective; the message says which and why.
    """
    objective = {"kind": "block_diffusion", "noise": noise, "levels": levels}
    if not isinstance(model, UnimodalARForGeneration):
        return _from_language_model(model, {"block": block}, objective, modality or "text", length)
    if length is not None:
        raise ValueError(f"length is {length}, which is for language models; this model's grids stay as they are")
    name = _modality(model, modality)
    options = model.config.modalities[name]
    changes = {
        "layout": {**options["layout"], "block": block},
        "objective": objective,
        "start": "learned" if options["start"] == "context" else options["start"],
        "target_positions": None,
        "covariates_of": "target",
    }
    modalities = {**model.config.modalities, name: {**options, **changes}}
    kept = {"backbone": model.config.backbone, "soft_prompt": model.config.soft_prompt}
    return adapted(model, UnimodalARConfig(modalities=modalities, **kept))


def adapted(source: UnimodalARForGeneration, config: UnimodalARConfig) -> UnimodalARForGeneration:
    """A model of `config` with the weights of `source`, in evaluation mode. Modalities may go from next-block to block
    diffusion, as `convert_to_block_diffusion` says; all else has to fit.

    Raises:
        ValueError: it does not; the message names the keys or the weights that differ.
    """
    if source.peft_layers is not None:
        raise ValueError("the model has layers of PEFT in its backbone; merge them first (`unimodal-ar merge`)")
    _check_backbone(source.config.backbone, config.backbone)
    target: Any = UnimodalARForGeneration(config)
    weights, fresh = dict(source.state_dict()), target.state_dict()
    left_out: list[str] = []
    for name in target.heads:
        turns = name in source.heads and source.objectives[name].reads_sources
        if turns and not target.objectives[name].reads_sources:
            left_out += _turn(weights, fresh, source, target, name)
    for name in fresh.keys() - weights.keys():
        if name.startswith(("backbone.coordinates.", "backbone.level.")) or ".modulation." in name:
            weights[name] = _without_effect(name, fresh[name])
        if name.startswith("backbone.soft_prompt."):
            weights[name] = fresh[name]
    _check_weights(weights, fresh)
    target.load_state_dict(weights)
    for parameter in target.parameters():  # not `.to`: rotary tables stay in float32, as after from_pretrained
        parameter.data = parameter.data.to(source.dtype)
    target.generation_config = copy.deepcopy(source.generation_config)
    if left_out:
        warnings.warn("; ".join(left_out), UserWarning, stacklevel=3)
    return target.to(source.device).eval()


def _modality(model: UnimodalARForGeneration, name: str | None) -> str:
    """The modality to convert."""
    if name is None and len(model.heads) > 1:
        raise ValueError(f"modality is None; this model generates {sorted(model.heads)}, of which one must be named")
    name = next(iter(model.heads)) if name is None else name
    if name not in model.heads:
        raise ValueError(f"modality is {name!r}; this model generates {sorted(model.heads)}")
    if not model.objectives[name].reads_sources:
        raise ValueError(
            f"the objective of {name!r} is {model.options[name].objective}, which restores blocks already; only "
            "next-block models are converted"
        )
    return name


def _turn(
    weights: dict[str, Tensor],
    fresh: dict[str, Tensor],
    source: UnimodalARForGeneration,
    target: UnimodalARForGeneration,
    name: str,
) -> list[str]:
    """Makes the weights of a modality those of an objective that restores blocks; returns what is left out."""
    _can_restore(target, name)
    left_out = []
    old: Any = source.embeddings[name]
    new: Any = target.embeddings[name]
    start, head = f"embeddings.{name}.start", f"heads.{name}."
    if old.target_position is not None:
        left_out.append(f"target positions of {name!r} are left out: every position is at its own element's place now")
        for key in [key for key in weights if key.startswith(f"embeddings.{name}.target_position.")]:
            del weights[key]
    if source.options[name].start == "context":
        left_out.append(f"{name!r} starts from its context no more, which takes positions of its own now")
    if new.start is None:
        weights.pop(start, None)
    elif start not in weights:
        weights[start] = _nothing(old)
    if target.objectives[name].has_levels:
        left_out.append(f"the head of {name!r} is left out: it predicted values, and a new one will predict velocities")
        weights |= {key: value for key, value in fresh.items() if key.startswith((head, f"embeddings.{name}.level."))}
    return left_out


def _can_restore(model: UnimodalARForGeneration, name: str) -> None:
    """Raises ValueError where the backbone cannot serve block diffusion of a modality."""
    config = model.config.backbone
    if getattr(config, "conditioning_positions", None):
        raise ValueError(
            f"backbone.conditioning_positions is {config.conditioning_positions}, norms that follow the place in the "
            f"sequence; under block diffusion elements of {name!r} have other places there"
        )


@torch.no_grad()
def _nothing(embedding: Any) -> Tensor:
    """[H], what stands for "nothing is known here" where no start vector was trained."""
    weight = next(embedding.parameters())
    if not embedding.codes:
        missing = torch.zeros(1, 1, 1, dtype=torch.bool, device=weight.device)
        return embedding.embed(weight.new_zeros(1, 1, embedding.dim), missing)[0, 0]
    codes = torch.arange(embedding.vocab_size, device=weight.device)[None, :, None].expand(-1, -1, embedding.codes)
    return embedding.embed(codes, torch.ones_like(codes[..., 0], dtype=torch.bool))[0].mean(0)


def _without_effect(name: str, initial: Tensor) -> Tensor:
    """Initial weights of what joins a trained backbone and must not change it at first: all zero, but for the gates of
    a layer's adaptive norms."""
    weight = torch.zeros_like(initial)
    if ".layers." in name and name.endswith(".bias"):
        weight.view(6, -1)[[2, 5]] = 1  # shift, scale, gate of attention; shift, scale, gate of the MLP
    return weight


def _check_backbone(old: Any, new: Any) -> None:
    """Raises ValueError where two configurations compute different things from weights that may be of one shape."""
    ours, theirs = new.to_dict(), old.to_dict()
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (key != "model_type", key)):
        free = key in _FREE or "drop" in key or "attn_implementation" in key
        if not free and ours.get(key) != theirs.get(key):
            raise ValueError(
                f"backbone.{key} is {ours.get(key)!r}; the weights are of a model where it is {theirs.get(key)!r}"
            )


def _check_weights(found: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    shapes = [
        f"{name} ({list(found[name].shape)} for {list(wanted[name].shape)})"
        for name in sorted(found.keys() & wanted.keys())
        if found[name].shape != wanted[name].shape
    ]
    problems = {
        "missing": sorted(wanted.keys() - found.keys()),
        "unknown": sorted(found.keys() - wanted.keys()),
        "of another shape": shapes,
    }
    if any(problems.values()):
        told = "; ".join(f"{what} are {names[:3]}" for what, names in problems.items() if names)
        raise ValueError(f"weights do not fit the configuration: {told}")


# --- language models --------------------------------------------------------------------------------------------------


@torch.no_grad()
def _from_language_model(
    model: Any, layout: dict[str, Any], objective: dict[str, Any], name: str, length: int | None
) -> UnimodalARForGeneration:
    head = model.get_output_embeddings() if isinstance(model, PreTrainedModel) else None
    if head is None or model.base_model is model:
        raise ValueError(
            f"model is a {type(model).__name__}; it must be a UnimodalARForGeneration or a transformers ...ForCausalLM"
        )
    longest = getattr(model.base_model.config, "max_position_embeddings", None) or LENGTH
    text = {
        "element": {"kind": "discrete", "vocab_size": head.weight.shape[0]},
        "grid": [min(LENGTH, longest) if length is None else positive_int("length", length), 1, 1],
        "layout": layout,
        "objective": objective,
        "head": {"kind": "categorical", "bias": head.bias is not None},
    }
    scale, table = _scale(model), _table(model)
    converted: Any = UnimodalARForGeneration.from_backbone(model.base_model, {name: text})
    _can_restore(converted, name)
    embedding, proj = converted.embeddings[name], converted.heads[name].proj
    embedding.table.weight.copy_(table)
    embedding.start.copy_(table.mean(0))
    proj.weight.copy_(scale * head.weight)
    if head.bias is not None:
        proj.bias.copy_(scale * head.bias)
    return converted.to(model.device).eval()


def _table(model: Any) -> Tensor:
    """[V, H], what each token looks like to the body. Asked of the embedding, for some multiply what they hold."""
    rows = model.get_output_embeddings().weight.shape[0]
    embedding = model.get_input_embeddings()
    if embedding.weight.shape[0] != rows:
        raise ValueError(
            f"{type(model).__name__} reads {embedding.weight.shape[0]} tokens and predicts {rows}; it must be the same "
            "ones"
        )
    return embedding(torch.arange(rows, device=model.device))


def _scale(model: Any) -> float:
    """By what the logits are more than the output embeddings make them.

    Raises:
        ValueError: the body reads more than the embeddings of its tokens, or the logits are no linear map of its hidden
            states.
    """
    tokens = torch.arange(8, device=model.device)[None] % model.get_output_embeddings().weight.shape[0]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    hidden = model.base_model(input_ids=tokens).last_hidden_state
    again = model.base_model(inputs_embeds=model.get_input_embeddings()(tokens)).last_hidden_state
    logits = model(input_ids=tokens).logits.float()
    for module, training in modes:
        module.training = training
    linear = model.get_output_embeddings()(hidden).float()
    scale = float((linear * logits).sum() / linear.square().sum())
    scale = 1.0 if abs(scale - 1) < 1e-3 else scale  # rounding, mostly
    for what, ours, theirs in (
        ("reads more than the embeddings of its tokens", again.float(), hidden.float()),
        ("makes logits that are no linear map of its hidden states", scale * linear, logits),
    ):
        tolerance = max(1e-4, 5 * torch.finfo(model.dtype).eps) * float(theirs.abs().max())
        if float((ours - theirs).abs().max()) > tolerance:
            raise ValueError(f"{type(model).__name__} {what}, so that it cannot be converted")
    return scale
