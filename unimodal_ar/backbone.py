"""Backbones: the native decoder, and any transformers decoder body, behind one call.

Shapes: B batch, n new positions, H width.
"""

from __future__ import annotations

import inspect
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModel, DynamicCache
from transformers.modeling_layers import GradientCheckpointingLayer

from .configuration import UnimodalARConfig, UnimodalARDecoderConfig
from .decoder import UnimodalARDecoder
from .embeddings import CoordinateEmbedding, SoftPrompt, ZeroLinear
from .masks import TAKE_MASKS, TILE, additive
from .sequence import Inputs, Part

ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
"""Kinds of layers, by transformers' names, that take any mask. Others have a state, or narrow the mask themselves."""


class DecodingCache(DynamicCache):
    """A cache that can be read without being written.

    Attributes:
        keep: how many of the positions that come next are stored; the others attend to them and to each other, and are
            gone afterwards (a denoising pass). None: all are stored.
    """

    keep: int | None = None

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        keys, values = super().update(key_states, value_states, layer_idx, *args, **kwargs)
        if self.keep is not None:
            layer: Any = self.layers[layer_idx]
            stored = keys.shape[-2] - key_states.shape[-2] + self.keep
            layer.keys, layer.values = keys[..., :stored, :], values[..., :stored, :]
        return keys, values


class Backbone(nn.Module):
    """What the native decoder and a hosted body share: a body, `model`, that may be frozen, or come from elsewhere.

    Attributes:
        model: the body; nothing between `detach` and `attach`.
        frozen: whether the body stays as it is: no parameter of its own is trained, and it is in evaluation mode (no
            dropout) whatever mode the rest is in.
    """

    model: nn.Module

    def __init__(self, config: UnimodalARConfig, detached: bool) -> None:
        super().__init__()
        self.frozen = config.freeze_backbone
        self._quiet: list[nn.Module] = []  # the frozen body's own modules; a list, so that they have one place
        # A body that gives way to another one costs neither memory nor the drawing of its weights.
        with torch.device("meta") if detached else nullcontext():
            self.model = self._build(config)
        length = config.soft_prompt
        self.soft_prompt = SoftPrompt(length, config.hidden_size) if length else None

    def _build(self, config: UnimodalARConfig) -> nn.Module:
        raise NotImplementedError

    def detach(self) -> None:
        """Takes the body out."""
        self.model = nn.Identity()

    def attach(self, body: nn.Module) -> None:
        """Puts a body of the configuration's kind in, and freezes of it what is not to be trained."""
        self.model = body
        self.freeze_unused()

    def freeze_unused(self) -> None:
        """Freezes what is not to be trained: a frozen body, else what of it no input reaches."""
        if self.frozen:
            self.model.requires_grad_(False)
            self._quiet = list(self.model.modules())
        self.train(self.training)

    def _entering(self, values: Tensor) -> Tensor:
        """In the dtype of the body, which may be frozen in another one than what is trained around it is in. (Under
        autocast every operation sees to that itself.)"""
        if not self.frozen or torch.is_autocast_enabled(values.device.type):
            return values
        return values.to(next((x.dtype for x in self.model.parameters() if x.is_floating_point()), values.dtype))

    def _filled(self, inputs: Inputs, cache: Any) -> Inputs:
        """FlexAttention is compiled for a length: lengths are rounded up, so that they are few."""
        implementation = cast(Any, self.model).config._attn_implementation
        return inputs.filled(TILE) if implementation == "flex_attention" and cache is None else inputs

    def _leaving(self, hidden: Tensor, inputs: Inputs) -> Tensor:
        hidden = hidden[:, : inputs.embeds.shape[1]]
        return hidden if torch.is_autocast_enabled(hidden.device.type) else hidden.to(inputs.embeds.dtype)

    def train(self, mode: bool = True) -> Backbone:
        super().train(mode)
        # Not `model.eval()`: LoRA layers that were put into the body later have a dropout of their own.
        for module in self._quiet:
            module.training = False
        return self

    def opening(self, batch: int) -> list[Part]:
        """What every sequence begins with: the soft prompt, where there is one."""
        if self.soft_prompt is None:
            return []
        embeds = self.soft_prompt(batch)
        places = torch.arange(embeds.shape[1], device=embeds.device)
        coords = F.pad(places[None, :, None], (0, 2))
        end = (len(places), len(places))
        sizes = 0, (1,) * len(places)
        return [Part(embeds, coords, places, sizes, sequential=True, single=len(places) == 1, closes=end)]

    @property
    def longest(self) -> int | None:
        """Positions of the longest sequence, beside those of a soft prompt; None where they do not end, as they are not
        learned."""
        return None

    def checkpoint_layers(self, enable: bool) -> None:
        """Lets a frozen body's layers do in evaluation mode what transformers has told them to do in training mode.

        Raises:
            ValueError: it is to be enabled, and the body has no layers of the kind that can.
        """
        layers = [module for module in self.model.modules() if isinstance(module, GradientCheckpointingLayer)]
        if enable and not layers:
            raise ValueError(
                f"gradient_checkpointing is on; it must be off for a frozen {type(self.model).__name__}, which has no "
                "GradientCheckpointingLayer"
            )
        for layer in layers:
            own = layer.__dict__.pop("forward", None)  # ours, or that of accelerate, which may move layers about
            own = own.args[1] if getattr(own, "func", None) is _checkpointed else own
            forward = partial(_checkpointed, layer, own) if layer.gradient_checkpointing else own
            if forward is not None:
                layer.forward = forward  # type: ignore[method-assign]


class NativeBackbone(Backbone):
    """The native decoder behind the common call."""

    obstacle = None  # to taking masks: no more than a kernel that can be exchanged

    def __init__(self, config: UnimodalARConfig, detached: bool = False) -> None:
        super().__init__(config, detached)
        self.has_levels = config.has_levels
        self.freeze_unused()

    def _build(self, config: UnimodalARConfig) -> nn.Module:
        return UnimodalARDecoder(config.backbone)

    @property
    def takes_masks(self) -> bool:
        """Whether attention takes any pattern, not only causal and full ones."""
        return cast(UnimodalARDecoder, self.model).config._attn_implementation in TAKE_MASKS

    def new_cache(self) -> Any:
        return DecodingCache()

    def forward(self, inputs: Inputs, past_key_values: Any = None, conditioning: Tensor | None = None) -> Tensor:
        """Last hidden states [B, n, H] of new positions. `conditioning` [B, 1, H] is that of the whole sequence, to
        which the positions add their own."""
        given, inputs = inputs, self._filled(inputs, past_key_values)
        if inputs.conditioning is not None:
            conditioning = inputs.conditioning if conditioning is None else conditioning + inputs.conditioning
        elif conditioning is None and self.has_levels:  # a sequence without noise
            conditioning = torch.zeros_like(inputs.embeds[:1, :1])
        hidden = self.model(
            self._entering(inputs.embeds),
            attention_mask=inputs.pattern,
            position_ids=inputs.position_ids,
            coords=inputs.coords,
            past_key_values=past_key_values,
            conditioning=None if conditioning is None else self._entering(conditioning),
        ).last_hidden_state
        return self._leaving(hidden, given)


class HostedBackbone(Backbone):
    """Any transformers decoder body, used as it is: positions are numbered in sequence, and where these numbers do not
    tell the place in the grid the coordinates are added to the inputs (from zero, so that a pretrained body starts
    undisturbed). Noise levels are added to the inputs, too."""

    model: Any

    def __init__(self, config: UnimodalARConfig, detached: bool = False) -> None:
        super().__init__(config, detached)
        if config.needs_coordinates:
            self.coordinates: CoordinateEmbedding | None = CoordinateEmbedding(config.hidden_size, zero_init=True)
        else:
            self.coordinates = None
        # From zero, so that a pretrained body starts undisturbed; without a bias, so that clean positions, which have
        # no level, stay as they are whether or not noisy ones come with them.
        width = config.hidden_size
        self.level = ZeroLinear(width, width, bias=False) if config.has_levels else None
        self.freeze_unused()
        self._arguments = set(inspect.signature(self.model.forward).parameters)  # the mapping itself cannot be copied
        self.obstacle = self._obstacle()
        self.takes_masks = self.obstacle is None

    def _build(self, config: UnimodalARConfig) -> nn.Module:
        return AutoModel.from_config(config.backbone)

    def _obstacle(self) -> str | None:
        """Why the body takes no masks, as the start of a sentence; None: it takes them."""
        config = self.model.config
        kinds = set(getattr(config.get_text_config(), "layer_types", None) or ())
        others = kinds - ATTENTION_LAYERS
        if self.model._is_stateful or "attention_mask" not in self._arguments:
            where = f" in layers {sorted(others)}" if others and others != kinds else ""
            return f"a {config.model_type} backbone keeps a state instead of attending{where}"
        if others:
            return f"a {config.model_type} backbone has layers {sorted(others)}, which take no masks"
        return None

    def freeze_unused(self) -> None:
        """Freezes a frozen body, else its token table, as values enter as embeddings, and what BERT's kind makes of the
        first position."""
        super().freeze_unused()
        if not isinstance(self.model, nn.Identity):
            for module in (self.model.get_input_embeddings(), getattr(self.model, "pooler", None)):
                if module is not None:
                    module.requires_grad_(False)

    def new_cache(self) -> Any:
        # With its configuration a cache of sliding layers would drop keys that our masks still count.
        return DecodingCache() if self.takes_masks else DynamicCache(config=self.model.config)

    def forward(self, inputs: Inputs, past_key_values: Any = None, conditioning: Tensor | None = None) -> Tensor:
        """Last hidden states [B, n, H] of new positions.

        Raises:
            ValueError: the body cannot do what is asked (a mask where it has a state instead of attention, a window
                shorter than the sequence, conditioning).
        """
        if conditioning is not None:
            raise ValueError("conditioning is given; a hosted backbone has no adaptive norms, the native decoder has")
        self._check_length(inputs.length)
        given, inputs = inputs, self._filled(inputs, past_key_values)
        embeds = inputs.embeds
        if self.coordinates is not None:
            embeds = embeds + self.coordinates(inputs.coords).to(embeds.dtype)
        if inputs.conditioning is not None and self.level is not None:
            embeds = embeds + self.level(F.silu(inputs.conditioning)).to(embeds.dtype)
        order, positions = self._order(inputs), inputs.position_ids
        if order is not None:
            embeds = embeds.take_along_dim(order[..., None], 1)
            positions = positions.expand(order.shape).take_along_dim(order, 1)
        arguments: dict[str, Any] = {"inputs_embeds": self._entering(embeds), "attention_mask": self._mask(inputs)}
        if "position_ids" in self._arguments:
            arguments["position_ids"] = positions
        cache_name = "past_key_values" if "past_key_values" in self._arguments else "cache_params"
        # A cache passed with use_cache=False would be written all the same, so there is none unless it is wanted.
        arguments |= {cache_name: past_key_values, "use_cache": past_key_values is not None}
        hidden = self.model(**arguments).last_hidden_state
        if order is not None:
            hidden = hidden.take_along_dim(order.argsort(1)[..., None], 1)
        return self._leaving(hidden, given)

    @property
    def longest(self) -> int | None:
        """A table of learned positions ends somewhere; rotary positions go on."""
        config = self.model.config
        learned = getattr(config, "rope_parameters", None) is None
        places = getattr(config, "max_position_embeddings", None) if learned else None
        return None if places is None else places - self._prompted

    @property
    def _prompted(self) -> int:
        return 0 if self.soft_prompt is None else len(self.soft_prompt.weight)

    def _check_length(self, length: int) -> None:
        length -= self._prompted
        if self.longest is not None and length > self.longest:
            raise ValueError(
                f"the sequence has {length} positions; a {self.model.config.model_type} backbone of this configuration "
                f"has {self.longest}"
            )

    def _mask(self, inputs: Inputs) -> Any:
        pattern, config = inputs.pattern, self.model.config
        if not self.takes_masks:
            return self._padding(inputs)
        # Without a mask, these bodies attend causally, after what is cached too.
        if pattern.valid is None and (pattern.sequential or pattern.queries == 1):
            return None
        window = getattr(config, "sliding_window", None)
        if window is not None and inputs.length > window and _has_sliding_layers(config):
            raise ValueError(
                f"the sequence has {inputs.length} positions; a {config.model_type} backbone with sliding_window "
                f"{window} takes at most that many, unless the objective is next-block (not block diffusion) with "
                "blocks of single elements and nothing is padding"
            )
        implementation = config._attn_implementation or "eager"
        if implementation == "flex_attention":
            return pattern.made("flex")
        if implementation not in TAKE_MASKS:
            raise ValueError(
                f"attn_implementation is {implementation!r}, with which hosted backbones attend causally only; blocks, "
                "padding and several cached positions need 'sdpa', 'eager' or 'flex_attention'"
            )
        mask = pattern.made("dense")
        return additive(mask, inputs.embeds.dtype) if implementation == "eager" else mask

    def _padding(self, inputs: Inputs) -> Tensor | None:
        pattern = inputs.pattern
        if not pattern.sequential and pattern.queries > 1:
            raise ValueError(
                f"{self.obstacle}, so it takes block 1 only (context modalities too: layout {{block: 1}}); use a "
                "backbone with attention for larger blocks"
            )
        if pattern.valid is None:
            return None
        # Where some layers attend, to what is cached too, the body itself cuts out what the others need.
        attends = "past_key_values" in self._arguments
        return (pattern.valid if attends else pattern.valid[:, -pattern.queries :]).long().sort(1).values

    def _order(self, inputs: Inputs) -> Tensor | None:
        """[B, n], how a body that keeps a state reads new positions; None: as they come. Padding comes first, before
        what stands in front of it, too: only a state that is still empty does not change by it."""
        pattern = inputs.pattern
        if self.takes_masks or pattern.valid is None:
            return None
        return pattern.valid[:, -pattern.queries :].long().argsort(dim=1, stable=True)


def build_backbone(config: UnimodalARConfig, detached: bool = False) -> NativeBackbone | HostedBackbone:
    """The backbone of a configuration, with new weights; `detached`: its body's are on the meta device."""
    kind = NativeBackbone if isinstance(config.backbone, UnimodalARDecoderConfig) else HostedBackbone
    return kind(config, detached)


def _checkpointed(layer: Any, own: Any, *args: Any, **kwargs: Any) -> Any:
    """The layer's forward pass: `own` if it has one of its own (not its class's, which a copy would not follow)."""
    run = partial(type(layer).forward, layer, **kwargs) if own is None else partial(own, **kwargs)
    # Without gradients nothing is kept, and all that checkpointing does is to look after the states of generators.
    return layer._gradient_checkpointing_func(run, *args) if torch.is_grad_enabled() else run(*args)


def _has_sliding_layers(config: Any) -> bool:
    kinds = getattr(config, "layer_types", None)
    return kinds is None or "sliding_attention" in kinds
