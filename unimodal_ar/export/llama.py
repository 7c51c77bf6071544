"""A next-token model of discrete elements as a plain causal language model of transformers, which stock `generate` and
servers of language models run without this package.

Every code, start vector, null vector and vector of a soft prompt becomes a token of one vocabulary. `tokens.json`
beside the model says which token is what.

Shapes: V codes of the target, T tokens, H width.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaConfig, PreTrainedConfig, Qwen3Config

from .. import lora
from ..configuration import UnimodalARDecoderConfig
from ..layout import Layout
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..objectives.next_block import NextBlock
from ..schema import DiscreteElement
from .folder import fill, new_folder

TOKENS = "tokens.json"
BODIES = ("llama", "mistral", "qwen2", "qwen3")
"""Bodies whose language models have no more than a token table, the body, and a projection without a bias."""

STILL = 1e30
"""Positions are divided by it where there is no rotation: the cosine of any angle is then 1, its sine below 1e-25.
(For stock transformers only: servers that tabulate angles of so many positions cannot.)"""


@torch.no_grad()
def export_llama(
    model: UnimodalARForGeneration, out: str | os.PathLike[str], target: str | None = None
) -> dict[str, Any]:
    """Writes `model` to the folder `out` as a `LlamaForCausalLM` (or the class of its hosted body; `Qwen3ForCausalLM`
    for a native decoder with QK-norm), with a generation_config.json and a tokens.json. A language model counts its
    tokens: a native decoder must be trained with position "rope_1d" for that, unless it has no start and a 1-D grid.

    A prompt is, in this order: the tokens of the soft prompt; those of the context, as in training; the start of the
    target, where it has one. What follows are the target's codes, whose tokens are the codes themselves, in raster
    order; their logits are those of our head. All other tokens have the mean of the codes' rows as their row of the
    projection, so that none of them can be the most probable, and they are suppressed by generation_config.json. (A
    server that does not read `suppress_tokens` must be told to allow tokens 0..V-1 only, unless it decodes greedily.)

    tokens.json: `target`; `ranges`, modality -> [first, last + 1] token of its codes; `start`, modality -> token of its
    start vector; `null`, modality -> token that stands for each element of a context that is left out; `soft_prompt`,
    its tokens; `grid` of the target; `new_tokens`, how many complete it.

    Args:
        out: a new or an empty folder.
        target: which modality is generated; None: the only one that is.

    Returns:
        What tokens.json holds.

    Raises:
        ValueError: the model is none that a plain language model can be; the message says why.
    """
    folder, target = new_folder(out), _target(model, target)
    _check(model)
    body = model.backbone.model
    config = _config(model)
    _check_guidance(model)  # last: it alone can be changed in a trained model
    table = _Table(config.hidden_size)
    tokens = _fill(table, model, target)
    head = cast(Any, model.heads[target]).proj.weight
    rows = torch.cat([head, head.mean(0, keepdim=True).expand(len(table) - len(head), -1)])
    dtype = rows.dtype
    for weight in (*body.parameters(), table.weight()):
        dtype = torch.promote_types(dtype, weight.dtype)
    config.vocab_size, config.tie_word_embeddings, config.dtype = len(table), False, dtype
    config.bos_token_id, config.eos_token_id, config.pad_token_id = tokens["start"].get(target), None, None
    with torch.device("meta"):
        language_model: Any = AutoModelForCausalLM.from_config(config)
    own = {f"model.{name}": x for name, x in body.state_dict().items() if name != "embed_tokens.weight"}
    state = own | {"model.embed_tokens.weight": table.weight(), "lm_head.weight": rows}
    state = {name: x.detach().to("cpu", dtype).contiguous() for name, x in state.items()}
    language_model.load_state_dict(state, assign=True)
    language_model.generation_config = _generation(model, target, tokens, len(table))
    return fill(folder, language_model.save_pretrained, TOKENS, tokens)


@dataclass
class _Table:
    """The token table in the making."""

    width: int
    rows: list[Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def add(self, rows: Tensor) -> list[int]:
        """Takes `rows` [n, H] (or [H]); returns [first, last + 1] of their tokens."""
        first = len(self)
        self.rows.append(rows.reshape(-1, self.width).cpu())
        return [first, len(self)]

    def weight(self) -> Tensor:
        """[T, H]."""
        return torch.cat(self.rows)


def _fill(table: _Table, model: UnimodalARForGeneration, target: str) -> dict[str, Any]:
    """Puts all that can stand in a sequence into the table, the target's codes first; returns what is where."""
    embeddings: Mapping[str, Any] = cast(Any, model.embeddings)
    names = [target, *(name for name in embeddings if name != target)]
    ranges = {name: table.add(embeddings[name].table.weight) for name in names}
    single: dict[str, dict[str, int]] = {"start": {}, "null": {}}
    for kind, found in single.items():
        for name, embedding in embeddings.items():
            vector = getattr(embedding, kind)
            # A context has a start vector, too, for what is missing of it; it begins with its own first element.
            if vector is not None and (kind == "null" or name in model.heads):
                found[name] = table.add(vector)[0]
    prompt = model.backbone.soft_prompt
    opening = [0, 0] if prompt is None else table.add(prompt.weight)
    options = model.options[target]
    return {
        "target": target,
        "ranges": ranges,
        **single,
        "soft_prompt": list(range(*opening)),
        "grid": list(options.grid),
        "new_tokens": prod(options.grid) - (options.start == "none"),
    }


def _generation(model: UnimodalARForGeneration, target: str, tokens: dict[str, Any], size: int) -> GenerationConfig:
    options: Any = model.generation_config
    draws = options.temperature > 0
    drawing: dict[str, Any] = {"do_sample": draws}
    if draws:  # stock `generate` warns of them where nothing is drawn
        drawing |= {"temperature": float(options.temperature), "top_k": options.top_k or 0}
        drawing |= {"top_p": 1.0 if options.top_p is None else float(options.top_p)}
    if draws and options.num_samples > 1:
        drawing["num_return_sequences"] = options.num_samples
    others = list(range(tokens["ranges"][target][1], size))
    return GenerationConfig(
        bos_token_id=tokens["start"].get(target),
        eos_token_id=None,
        pad_token_id=None,
        max_new_tokens=tokens["new_tokens"],
        suppress_tokens=others or None,
        **drawing,
    )


def _target(model: UnimodalARForGeneration, target: str | None) -> str:
    known = sorted(model.heads)
    if target is None and len(known) > 1:
        raise ValueError(f"target is None and the model generates {known}; name one of them")
    target = known[0] if target is None else target
    if target not in known:
        raise ValueError(f"target is {target!r}; this model can generate {known}")
    return target


def _check(model: UnimodalARForGeneration) -> None:
    """Raises ValueError where what is around the body is no token table, no projection, or no plain next-token order.
    All modalities are held against that, because each may stand in a sequence."""
    for name, options in model.options.items():
        _check_tokens(name, options)
        _check_order(name, options)
        if name in model.heads:
            _check_head(name, options, model)
    if model.peft_layers is not None:
        raise ValueError(
            "the model has layers of PEFT (LoRA, say), which a plain language model has no place for; merge them first "
            "(unimodal-ar merge)"
        )
    if lora.is_quantized(model.backbone.model):
        raise ValueError("the backbone is quantised; only weights that are not can be exported to a language model")


def _check_guidance(model: UnimodalARForGeneration) -> None:
    scale = cast(Any, model.generation_config).guidance_scale
    if scale != 1:
        raise ValueError(
            f"guidance_scale of the model's generation_config is {scale}; a plain language model "
            "draws without, so it must be 1 there (stock generate guides by its own guidance_scale and "
            "negative_prompt_ids, the prompt with null tokens for the context)"
        )


def _check_tokens(name: str, options: ModalityOptions) -> None:
    element = options.element
    if not isinstance(element, DiscreteElement):
        raise ValueError(
            f"modalities.{name}.element.kind is {element.kind!r}; tokens of a language model are codes, so it must be "
            "'discrete'"
        )
    if element.codes > 1:
        how = "merged codes" if element.merge else "codes of several codebooks"
        raise ValueError(
            f"modalities.{name}.element.codes is {element.codes}, {how} that enter and leave as one element; a "
            "language model has one token at a time, so it must be 1"
        )
    for key, value, legal in (
        ("covariates", options.covariates, 0),
        ("absolute_positions", options.absolute_positions, False),
        ("target_positions", options.target_positions, None),
        ("conditioning", options.conditioning, False),
    ):
        if value != legal:
            raise ValueError(
                f"modalities.{name}.{key} is {value!r}; a token enters a language model by its row of one table and "
                f"nothing else, so it must be {legal!r}"
            )


def _check_order(name: str, options: ModalityOptions) -> None:
    where, order, elements = f"modalities.{name}.layout", options.layout.order, prod(options.grid)
    if order != "raster":
        raise ValueError(
            f"{where}.order is {order!r}; a language model reads and writes elements as they stand, so it must be "
            "'raster'"
        )
    block: Any = options.layout.block
    block = tuple(block["cell"]) if isinstance(block, dict) else block
    if elements > 1 and max(Layout.from_grid(options.grid, order, block).block_sizes) > 1:
        raise ValueError(
            f"{where}.block is {options.layout.block!r}; a language model is causal from token to token, so it must be "
            "1"
        )


def _check_head(name: str, options: ModalityOptions, model: UnimodalARForGeneration) -> None:
    head, objective = options.head or {}, model.objectives[name]
    if not isinstance(objective, NextBlock):
        kind = (options.objective or {})["kind"]
        raise ValueError(
            f"modalities.{name}.objective.kind is {kind!r}; a language model predicts the next token, so it must be "
            "'next_block'"
        )
    plain = {"kind": "categorical", "bias": False}
    if head != plain:
        raise ValueError(
            f"modalities.{name}.head is {head}; the logits of a language model are one projection without a bias, so "
            f"it must be {plain}"
        )


def _config(model: UnimodalARForGeneration) -> PreTrainedConfig:
    """The body's configuration as one of transformers' own."""
    own = model.config.backbone
    if isinstance(own, UnimodalARDecoderConfig):
        return _native(model, own)
    if own.model_type not in BODIES:
        raise ValueError(
            f"backbone.model_type is {own.model_type!r}; a plain language model is made of {list(BODIES)} or of a "
            "native decoder of their architecture"
        )
    coordinates: Any = model.backbone.coordinates
    if coordinates is not None and bool(coordinates.proj.weight.any()):
        grids = {name: list(options.grid) for name, options in model.options.items()}
        raise ValueError(
            f"modalities have the grids {grids}, so that learned coordinates are added to the inputs of a hosted "
            "backbone; a language model only counts its tokens, so every grid must be [T, 1, 1], or the coordinates 0"
        )
    config = copy.deepcopy(own)
    if config.rope_parameters["rope_type"] == "default":  # others compute with the number
        config.max_position_embeddings = max(config.max_position_embeddings, _longest(model))
    return config


def _longest(model: UnimodalARForGeneration) -> int:
    """Positions of a sequence of every modality once, each with a start."""
    return sum(prod(options.grid) + 1 for options in model.options.values()) + model.config.soft_prompt


def _native(model: UnimodalARForGeneration, own: UnimodalARDecoderConfig) -> PreTrainedConfig:
    reason = "a language model of transformers with this architecture has none"
    legal: dict[str, tuple[Any, ...]] = {
        "norm": ("rmsnorm",),
        "norm_position": ("pre",),
        "mlp": ("swiglu",),
        "qk_norm": (None, "rmsnorm"),
        "position": ("rope_1d", "rope", "none"),
        "conditioning_size": (None,),
        "mlp_bias": (False,) if own.qk_norm else (False, True),  # Qwen3 has no such biases
    }
    for key, values in legal.items():
        if getattr(own, key) not in values:
            raise ValueError(f"backbone.{key} is {getattr(own, key)!r}; {reason}, so it must be one of {list(values)}")
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": own.rope_theta}
    if own.position == "none":
        rope |= {"rope_type": "linear", "factor": STILL}
    elif own.position == "rope":
        _check_rotary(model, own)
    shared: dict[str, Any] = dict(
        hidden_size=own.hidden_size,
        intermediate_size=own.intermediate_size,
        num_hidden_layers=own.num_hidden_layers,
        num_attention_heads=own.num_attention_heads,
        num_key_value_heads=own.num_key_value_heads,
        head_dim=own.head_dim,
        rms_norm_eps=own.norm_eps,
        attention_bias=own.attention_bias,
        attention_dropout=own.attention_dropout,
        initializer_range=own.initializer_range,
        rope_parameters=rope,
        max_position_embeddings=_longest(model),
    )
    return Qwen3Config(**shared) if own.qk_norm else LlamaConfig(**shared, mlp_bias=own.mlp_bias)


def _check_rotary(model: UnimodalARForGeneration, own: UnimodalARDecoderConfig) -> None:
    """Raises ValueError where axial positions are not 0, 1, 2, ... along t."""
    counted = "a language model counts every token, so the model must be trained with backbone.position 'rope_1d'"
    for name, options in model.options.items():
        if max(options.grid[1:]) > 1:
            raise ValueError(
                f"modalities.{name}.grid is {list(options.grid)}, over whose axes backbone.position 'rope' shares out "
                f"rotary positions; {counted}"
            )
        if name in model.heads and options.start != "none":
            raise ValueError(
                f"modalities.{name}.start is {options.start!r}, which backbone.position 'rope' puts at the place of "
                f"the first code or at none; {counted} (or start 'none')"
            )
    if any((own.position_axes or [])[1:]):
        raise ValueError(
            f"backbone.position_axes is {own.position_axes}; a language model turns all channels along one axis, so it "
            "must be [1, 0, 0]"
        )
