"""NBP (Ren et al. 2025, arXiv 2502.07737; github.com/RenShuhuai-Andy/NBP): video codes, block by block.

NBP is next-block prediction on a minGPT: learned positions, LayerNorm, GELU, biases. There are two kinds:

- hybrid (UCF-101; conditioned on a class or a text): the first block is predicted code by code, the following ones as a
  whole. The block before the second one has then a single element, which its first code reads; the others read vectors
  of their own ("middle bos"), which here are `target_positions: starts`.
- plain (Kinetics-600; with or without a condition): blocks from the first one on, which has to be given.

All ids share one table in the original, and the head predicts any of them. Here the conditions have a table of their
own, and the video's ids begin with its codes: 0..first_stage_vocab_size-1 are those of the tokenizer, and what follows
(starts and conditions in the original) is never a target in training; where one is drawn the original decodes code 0.

Verified, with seeded random weights of the original code at toy size: attention masks of both kinds, logits, loss and
greedy samples of the hybrid one. Plain ones, texts and guidance agree with the same network written out in the tests
(the original's guided sampler does not run); guidance_scale is 1 + cfg_ratio, without the original's growth of the
latter from step to step. Not verified: the released weights, whose files were not at hand.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..adapters import Adapter, LabelAdapter
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse
from .weights import count_layers, load, read_weights, rename, shape_of

HEADS = {1536: 16, 2048: 32, 3072: 32}
"""Width of a published size -> its attention heads (base, XL, 3B), which the weights do not tell."""

MODALITY = "video"

_LAYER = {
    "ln1": "input_layernorm",
    "attn.query": "self_attn.q_proj",
    "attn.key": "self_attn.k_proj",
    "attn.value": "self_attn.v_proj",
    "attn.proj": "self_attn.o_proj",
    "ln2": "post_attention_layernorm",
    "mlp.0": "mlp.up_proj",
    "mlp.2": "mlp.down_proj",
}
_PACKED = ("tok_emb.weight", "pos_emb", "uncond_embedding", "head.weight")
_PREFIX = "transformer."


class NBPSettings(Strict):
    """What the weights do not tell.

    Args:
        n_head: attention heads; None: those of the published size of the same width.
        grid: (T, H, W) of a clip's codes; the published models have 17 frames of 128 x 128 pixels as (5, 16, 16).
        token_number_per_step: codes per block; the 16 of the published models are a row.
        hybrid: whether the first block is predicted, too; None: it is where there is a condition.
        first_stage_vocab_size: codes of the video tokenizer.
        p_drop_cond: how often the condition was left out in training; above 0 the model can be guided.
        transformer_dropout: in training, on the outputs of attention and MLP.
    """

    n_head: PositiveInt | None = None
    grid: tuple[PositiveInt, PositiveInt, PositiveInt] = (5, 16, 16)
    token_number_per_step: PositiveInt = 16
    hybrid: bool | None = None
    first_stage_vocab_size: PositiveInt = 64000
    p_drop_cond: float = Field(0.0, ge=0, lt=1)
    transformer_dropout: float = Field(0.1, ge=0, lt=1)


class _Sequence(NamedTuple):
    """What stands where in the original's sequence, and which ids it has.

    Attributes:
        block, elements: codes in a block and in a clip.
        hybrid: of the settings, settled.
        length, conditions: tokens of a condition, and ids that one may have; 0 and 0 without one.
        first: the first condition's id; those of codes follow the conditions'.
    """

    block: int
    elements: int
    hybrid: bool
    length: int
    conditions: int
    first: int

    @property
    def places(self) -> Tensor:
        """[elements - block] where each element is read; those of the last block are not."""
        element = torch.arange(self.elements - self.block)
        if not self.hybrid:
            return self.length + element
        # After the begin of the video, and after the starts of the second block, of which its first code needs none.
        return self.length + 1 + element + (self.block - 1) * (element >= self.block)

    @property
    def starts(self) -> Tensor:
        """[block] where each start is read, of a hybrid: the video's, whose id is 0, then those of the second block,
        whose ids are 1, 2, ..."""
        rank = torch.arange(self.block)
        return self.length + rank + self.block * (rank > 0)


def load_nbp(path: str | os.PathLike[str], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """`convert_nbp` of a .safetensors or torch file (a released *_nbp16*.ckpt is one)."""
    return convert_nbp(read_weights(path), **settings)


def convert_nbp(state_dict: Mapping[str, Tensor], **settings: Any) -> tuple[UnimodalARForGeneration, list[Adapter]]:
    """NBP as a native model, with the adapter of its classes if there are any. It generates the modality "video", given
    a "label" (of one element), a "text" (ids of its tokenizer on the grid (1, 1, cond_token_num), padded as there) or
    nothing. (Its video tokenizer is another network: samples are codes.)

    Args:
        state_dict: of the original `GPT`, or of a training checkpoint around it (prefix `transformer.`).
        settings: see `NBPSettings`.

    Returns:
        model in evaluation mode, float32 on the CPU, and the adapter of the classes; none for a text, or nothing.

    Raises:
        ValueError: settings or weights are not NBP's; the message names what differs.
    """
    options = parse(NBPSettings, settings, "nbp")
    weights = _transformer(state_dict)
    sequence = _sequence(options, weights)
    config = _config(options, sequence, weights)
    model = UnimodalARForGeneration(config)
    load(model, rename(_unpacked(weights, sequence, config), _names(config)))
    classes = config.modalities.get("label")
    return model.eval(), [] if classes is None else [LabelAdapter(classes["element"]["vocab_size"])]


def _transformer(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the `GPT` in a training checkpoint, which also holds the video tokenizer; others as they are."""
    weights = {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}
    own = {name.removeprefix(_PREFIX): tensor for name, tensor in weights.items() if name.startswith(_PREFIX)}
    return own or weights


def _sequence(options: NBPSettings, weights: Mapping[str, Tensor]) -> _Sequence:
    rows, length = shape_of(weights, "tok_emb.weight")[0], shape_of(weights, "uncond_embedding")[0]
    block, codes, elements = options.token_number_per_step, options.first_stage_vocab_size, math.prod(options.grid)
    hybrid = length > 0 if options.hybrid is None else options.hybrid
    if hybrid and not length:
        raise ValueError("hybrid is true; the weights are of a model without a condition, which cannot be hybrid")
    if elements % block or elements < 2 * block:
        raise ValueError(
            f"token_number_per_step is {block}; the {elements} codes of the grid {options.grid} must be two or more "
            "such blocks"
        )
    # The begin of the video and the starts of its second block; or the former, which then is not used.
    special = block if hybrid else min(length, 1)
    conditions = rows - codes - special
    if conditions < min(length, 1) or (conditions and not length):
        raise ValueError(
            f"tok_emb.weight has {rows} rows; they must be {special} of starts, those of conditions "
            f"({'at least 1' if length else 'there are none'}) and first_stage_vocab_size {codes}"
        )
    if options.p_drop_cond and length != 1:
        raise ValueError(
            f"p_drop_cond is {options.p_drop_cond}; only models whose condition is a class (one token, not {length}) "
            "can be guided here"
        )
    return _Sequence(block, elements, hybrid, length, conditions, special if hybrid else 0)


def _config(options: NBPSettings, sequence: _Sequence, weights: Mapping[str, Tensor]) -> UnimodalARConfig:
    rows, width = shape_of(weights, "tok_emb.weight")
    heads, (_, height, breadth) = options.n_head or HEADS.get(width), options.grid
    if heads is None:
        raise ValueError(f"n_head is not known for the width {width}; give it (widths known are {sorted(HEADS)})")
    decoder = UnimodalARDecoderConfig(
        hidden_size=width,
        num_hidden_layers=count_layers(weights, "blocks"),
        num_attention_heads=heads,
        intermediate_size=shape_of(weights, "blocks.0.mlp.0.weight")[0],
        norm="layernorm",
        norm_eps=1e-5,
        qk_norm=None,
        mlp="gelu",
        attention_bias=True,
        mlp_bias=True,
        position="none",
        dropout=options.transformer_dropout,
    )
    block: Any = {breadth: "row", height * breadth: "frame"}.get(sequence.block, sequence.block)
    if sequence.hybrid:
        block = [1] * sequence.block + [sequence.block] * (sequence.elements // sequence.block - 1)
    video = {
        "element": {"kind": "discrete", "vocab_size": rows},
        "grid": list(options.grid),
        "layout": {"order": "raster", "block": block},
        "head": {"kind": "categorical"},
        "start": "learned" if sequence.hybrid else "none",
        "absolute_positions": True,
        "target_positions": "starts",
    }
    modalities: dict[str, Any] = {MODALITY: video}
    if sequence.length:
        condition = {
            "element": {"kind": "discrete", "vocab_size": sequence.conditions},
            "grid": [1, 1, sequence.length],
            "absolute_positions": True,
            "null_probability": options.p_drop_cond,
        }
        modalities = {"label" if sequence.length == 1 else "text": condition, **modalities}
    return UnimodalARConfig(backbone=decoder, modalities=modalities)


def _unpacked(state_dict: Mapping[str, Tensor], sequence: _Sequence, config: UnimodalARConfig) -> dict[str, Tensor]:
    """The weights, with what is stored in common apart."""
    weights = {name: tensor for name, tensor in state_dict.items() if name not in _PACKED}
    shape_of(state_dict, "head.weight")  # which raises where it is missing
    tokens, nothing = state_dict["tok_emb.weight"], state_dict["uncond_embedding"]
    needed = sequence.length + sequence.elements - (0 if sequence.hybrid else sequence.block)
    shape = shape_of(state_dict, "pos_emb")
    if len(shape) != 3 or shape[1] < needed:
        raise ValueError(f"pos_emb has the shape {list(shape)}; the grid needs {needed} positions, as [1, {needed}, C]")
    positions = state_dict["pos_emb"][0]
    shift = sequence.first + sequence.conditions
    weights["video"] = tokens.roll(-shift, 0)
    weights["head"] = state_dict["head.weight"].roll(-shift, 0)
    weights["places"] = positions.new_zeros(sequence.elements, positions.shape[1])
    weights["places"][: -sequence.block] = positions[sequence.places]
    weights["starts"] = positions.new_zeros(
        sequence.block, positions.shape[1]
    )  # in plain ones every place reads a code
    if sequence.hybrid:
        starts = tokens[: sequence.block] + positions[sequence.starts]
        weights["start"], weights["starts"] = starts[0], starts - starts[0]
    if sequence.length:
        weights["conditions"] = tokens[sequence.first : shift]
        weights["condition_places"] = positions[: sequence.length]
        weights["condition_start"] = torch.zeros_like(positions[0])  # of conditions that are missing: none are
    if any(options["null_probability"] for options in config.modalities.values()):
        weights["null"] = nothing[0] + positions[0]
    return weights


def _names(config: UnimodalARConfig) -> dict[str, str]:
    """Name in `_unpacked` -> ours."""
    modules = {"ln_f": "backbone.model.norm"}
    for i in range(config.backbone.num_hidden_layers):
        modules |= {f"blocks.{i}.{old}": f"backbone.model.layers.{i}.{new}" for old, new in _LAYER.items()}
    names = {f"{old}.{part}": f"{new}.{part}" for old, new in modules.items() for part in ("weight", "bias")}
    own = f"embeddings.{MODALITY}"
    names |= {
        "video": f"{own}.table.weight",
        "places": f"{own}.absolute_position.table.weight",
        "starts": f"{own}.target_position.weight",
        "head": f"heads.{MODALITY}.proj.weight",
    }
    if config.modality(MODALITY).start == "learned":
        names["start"] = f"{own}.start"
    for name in config.modalities.keys() - {MODALITY}:
        other = f"embeddings.{name}"
        names |= {
            "conditions": f"{other}.table.weight",
            "condition_places": f"{other}.absolute_position.table.weight",
            "condition_start": f"{other}.start",
        }
        if config.modality(name).null_probability:
            names["null"] = f"{other}.null"
    return names
