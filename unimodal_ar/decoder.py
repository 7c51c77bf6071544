"""The native decoder: a transformer over continuous inputs whose parts are picked by configuration.

Shapes: B batch, L positions, H width, A heads, D head size, C conditioning size.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .configuration import UnimodalARDecoderConfig
from .embeddings import Embedding, ScaledCovariates, SoftPrompt, ZeroLinear
from .masks import AttentionPattern, additive
from .positions import POSITIONS, rotate


class _RMSNormFunction(torch.autograd.Function):
    """y = x r w with r = (mean(x^2) + eps)^(-1/2). Only x and w are kept for the backward pass, which finds r again."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, eps: float) -> Tensor:
        return (x * _inverse_rms(x, eps)).to(x.dtype) * weight

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        x, weight, ctx.eps = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight = ctx.saved_tensors
        r = _inverse_rms(x, ctx.eps)
        normed, scaled = x * r, grad * weight
        grad_weight = (grad * normed).flatten(0, -2).sum(0)
        grad_x = r * (scaled - normed * (scaled * normed).mean(-1, keepdim=True))
        return grad_x.to(x.dtype), grad_weight.to(weight.dtype), None


def _inverse_rms(x: Tensor, eps: float) -> Tensor:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)


class RMSNorm(nn.RMSNorm):
    """Root mean square norm (arXiv 1910.07467). On CUDA and under torch.compile torch has a fused kernel; elsewhere it
    composes one out of operations that each keep a tensor of the input's size for the backward pass, and two more norms
    per layer (QK-norm) then cost more memory than a Llama body takes. This keeps the input alone."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.to(x.dtype)  # they differ under autocast, where the fused kernel would be given up
        if x.is_cuda or torch.compiler.is_compiling() or x.dim() < 2 or not torch.is_grad_enabled():
            return F.rms_norm(x, self.normalized_shape, weight, self.eps)
        return _RMSNormFunction.apply(x, weight, self.eps)


NORMS: dict[str, type[nn.Module]] = {"rmsnorm": RMSNorm, "layernorm": nn.LayerNorm, "none": nn.Identity}


class SwiGLU(nn.Module):
    """down(silu(gate(x)) * up(x)) (arXiv 2002.05202)."""

    def __init__(self, hidden_size: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.up_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class GELU(nn.Module):
    """down(gelu(up(x))), exact."""

    approximate = "none"

    def __init__(self, hidden_size: int, inner: int, bias: bool) -> None:
        super().__init__()
        self.up_proj = nn.Linear(hidden_size, inner, bias=bias)
        self.down_proj = nn.Linear(inner, hidden_size, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.gelu(self.up_proj(x), approximate=self.approximate))


class TanhGELU(GELU):
    """The same with the tanh approximation."""

    approximate = "tanh"


MLPS: dict[str, type[nn.Module]] = {"swiglu": SwiGLU, "gelu": GELU, "gelu_tanh": TanhGELU}


class DecoderAttention(nn.Module):
    """Multi-head attention through transformers' attention interface (eager, sdpa, flex_attention, ...)."""

    is_causal = True

    def __init__(self, config: UnimodalARDecoderConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = cast(int, config.head_dim)
        heads, groups = config.num_attention_heads, cast(int, config.num_key_value_heads)
        self.num_key_value_groups = heads // groups
        self.scaling = self.head_dim**-0.5
        bias = config.attention_bias
        self.q_proj = nn.Linear(config.hidden_size, heads * self.head_dim, bias=bias)
        self.k_proj = nn.Linear(config.hidden_size, groups * self.head_dim, bias=bias)
        self.v_proj = nn.Linear(config.hidden_size, groups * self.head_dim, bias=bias)
        self.o_proj = nn.Linear(heads * self.head_dim, config.hidden_size, bias=bias)
        norm = NORMS[config.qk_norm] if config.qk_norm else None
        self.q_norm = norm(self.head_dim, eps=config.norm_eps) if norm else nn.Identity()
        self.k_norm = norm(self.head_dim, eps=config.norm_eps) if norm else nn.Identity()

    def forward(
        self, x: Tensor, mask: Any, is_causal: bool, rotary: tuple[Tensor, Tensor] | None, cache: Any
    ) -> Tensor:
        shape = (*x.shape[:2], -1, self.head_dim)
        q = self.q_norm(self.q_proj(x).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(x).view(shape)).transpose(1, 2)
        v = self.v_proj(x).view(shape).transpose(1, 2)
        if rotary is not None:
            q, k = rotate(q, *rotary), rotate(k, *rotary)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(_kernel(self.config, mask, cache), eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        options = {"dropout": dropout, "scaling": self.scaling, "is_causal": is_causal}
        if isinstance(mask, list):
            parts = [
                attend(self, q[:, :, t.queries], k[:, :, t.keys], v[:, :, t.keys], t.mask, **options) for t in mask
            ]
            out = torch.cat([part for part, _ in parts], 1)
        else:
            out, _ = attend(self, q, k, v, mask, **options)
        return self.o_proj(out.reshape(*x.shape[:2], -1))


def _kernel(config: UnimodalARDecoderConfig, mask: Any, cache: Any) -> str:
    """The attention function to use. FlexAttention is compiled for a length, and what is cached grows: without a
    BlockMask sdpa does the same there."""
    implementation = config._attn_implementation or "eager"
    own = mask is None or isinstance(mask, (Tensor, list))
    return "sdpa" if implementation == "flex_attention" and cache is not None and own else implementation


def eager_attention(
    module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scaling: float, dropout: float = 0.0, **_: Any
) -> tuple[Tensor, Tensor]:
    """Attention written out. q [B, A, L, D], k and v [B, groups, S, D], mask bool [B or 1, 1, L, S] or None (full);
    returns [B, L, A, D] and the weights."""
    k = k.repeat_interleave(module.num_key_value_groups, 1)
    v = v.repeat_interleave(module.num_key_value_groups, 1)
    scores = q @ k.transpose(2, 3) * scaling
    if mask is not None:
        scores = scores + additive(mask, scores.dtype)
    weights = F.dropout(scores.float().softmax(-1).to(q.dtype), dropout)
    return (weights @ v).transpose(1, 2), weights


class Modulation(nn.Module):
    """The adaptive part of a layer: shift, scale and gate for each of `count` norms, from a conditioning vector. It
    starts at zero, so that every layer starts as the identity (adaLN-Zero, arXiv 2212.09748)."""

    def __init__(self, conditioning_size: int, hidden_size: int, count: int) -> None:
        super().__init__()
        self.proj = ZeroLinear(conditioning_size, count * hidden_size)
        self.count = count

    def forward(self, conditioning: Tensor) -> tuple[Tensor, ...]:
        return self.proj(F.silu(conditioning)).chunk(self.count, -1)


class UnimodalARDecoderLayer(GradientCheckpointingLayer):
    """Attention and MLP with residuals; norms before or after, adaptive where there is conditioning."""

    def __init__(self, config: UnimodalARDecoderConfig, layer_idx: int) -> None:
        super().__init__()
        norm = NORMS[config.norm]
        self.pre = config.norm_position == "pre"
        self.self_attn = DecoderAttention(config, layer_idx)
        self.has_mlp = config.mlp != "none"
        if self.has_mlp:
            self.mlp = MLPS[config.mlp](config.hidden_size, cast(int, config.intermediate_size), config.mlp_bias)
        self.input_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        if self.has_mlp:
            self.post_attention_layernorm = norm(config.hidden_size, eps=config.norm_eps)
        self.dropout = config.dropout
        size = config.conditioning_size
        self.modulation = Modulation(size, config.hidden_size, 6) if size else None

    def forward(
        self,
        x: Tensor,
        mask: Any,
        is_causal: bool,
        rotary: tuple[Tensor, Tensor] | None,
        past_key_values: Any = None,
        conditioning: Tensor | None = None,
    ) -> Tensor:
        changes: tuple[Tensor, ...] = () if self.modulation is None else self.modulation(conditioning)
        norm = self.input_layernorm
        attended = self.self_attn(self._enter(x, norm, changes[:2]), mask, is_causal, rotary, past_key_values)
        x = self._leave(x, attended, norm, changes[2:3])
        if not self.has_mlp:
            return x
        norm = self.post_attention_layernorm
        return self._leave(x, self.mlp(self._enter(x, norm, changes[3:5])), norm, changes[5:])

    def _enter(self, x: Tensor, norm: nn.Module, changes: tuple[Tensor, ...]) -> Tensor:
        x = norm(x) if self.pre else x
        return x * (1 + changes[1]) + changes[0] if changes else x

    def _leave(self, x: Tensor, update: Tensor, norm: nn.Module, gate: tuple[Tensor, ...]) -> Tensor:
        if self.dropout:
            update = F.dropout(update, self.dropout, self.training)
        x = x + (update * gate[0] if gate else update)
        return x if self.pre else norm(x)


class UnimodalARPreTrainedModel(PreTrainedModel):
    """What the package's models share with transformers' machinery."""

    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    supports_gradient_checkpointing = True
    _no_split_modules = ["UnimodalARDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoModel") -> None:
        """Does nothing, as that of the configuration."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, ZeroLinear):
            for parameter in module.parameters():
                init.zeros_(parameter)
        if isinstance(module, (Embedding, ScaledCovariates, SoftPrompt)):
            module.init_weights(self.config.initializer_range)


class UnimodalARDecoder(UnimodalARPreTrainedModel):
    """The native decoder: continuous inputs in, hidden states out."""

    config_class = UnimodalARDecoderConfig
    config: UnimodalARDecoderConfig
    base_model_prefix = "backbone"
    main_input_name = "inputs_embeds"

    def __init__(self, config: UnimodalARDecoderConfig) -> None:
        super().__init__(config)
        self.position = POSITIONS[config.position](config)
        self.layers = nn.ModuleList([UnimodalARDecoderLayer(config, i) for i in range(config.num_hidden_layers)])
        self.norm = NORMS[config.norm](config.hidden_size, eps=config.norm_eps)
        size = config.conditioning_size
        self.modulation = Modulation(size, config.hidden_size, 2) if size else None
        places = config.conditioning_positions
        if places and not size:
            raise ValueError(f"conditioning_positions is {places}; it needs a conditioning_size, which is {size}")
        self.conditioning_table = nn.Embedding(places, cast(int, size)) if places else None
        self.post_init()

    def forward(
        self,
        inputs_embeds: Tensor,
        attention_mask: Any = None,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        coords: Tensor | None = None,
        conditioning: Tensor | None = None,
    ) -> BaseModelOutputWithPast:
        """Runs the decoder on L new positions.

        Args:
            inputs_embeds: [B, L, H].
            attention_mask: an AttentionPattern; or what the attention kernel itself takes ([B or 1, 1, L, S] bool, True
                = may attend, over S cached and new keys; a BlockMask for flex_attention); None: causal.
            position_ids: [B or 1, L] long, running numbers; None: they count on from the cache.
            past_key_values: a transformers Cache that is read and extended, or None.
            coords: [B or 1, L, 3], (t, h, w) of each position; None: t is the running number, h = w = 0.
            conditioning: [B, C], or [B, L or 1, C] where it differs by position; needed iff `conditioning_size` is set.

        Raises:
            ValueError: conditioning is missing, or given to a decoder without adaptive norms; more places in the
                sequence than `conditioning_positions`.
        """
        if (conditioning is None) != (self.modulation is None):
            raise ValueError(
                f"conditioning is {'missing' if conditioning is None else 'given'}; the decoder's conditioning_size is "
                f"{self.config.conditioning_size}"
            )
        length, device = inputs_embeds.shape[1], inputs_embeds.device
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(past, past + length, device=device)[None]
        if attention_mask is None:
            attention_mask = AttentionPattern(torch.arange(past + length, device=device), length, sequential=True)
        if conditioning is not None:
            places = attention_mask.places if isinstance(attention_mask, AttentionPattern) else None
            conditioning = self._conditioning(conditioning, position_ids, past + length if places is None else places)
        is_causal = False
        if isinstance(attention_mask, AttentionPattern):
            attention_mask, is_causal = attention_mask.resolve(_kernel(self.config, None, past_key_values))
        if coords is None or self.position.counts:
            coords = F.pad(position_ids[..., None], (0, 2))
        x, rotary = self.position(inputs_embeds, coords)
        for layer in self.layers:
            x = layer(x, attention_mask, is_causal, rotary, past_key_values=past_key_values, conditioning=conditioning)
        x = self.norm(x)
        if self.modulation is not None:
            shift, scale = self.modulation(conditioning)
            x = x * (1 + scale) + shift
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)

    def _conditioning(self, conditioning: Tensor, position_ids: Tensor, length: int) -> Tensor:
        """[B, L or 1, C], with what the positions add."""
        conditioning = conditioning[:, None] if conditioning.dim() == 2 else conditioning
        if self.conditioning_table is None:
            return conditioning
        if length > self.conditioning_table.num_embeddings:
            raise ValueError(
                f"the sequence has {length} positions; backbone.conditioning_positions is "
                f"{self.conditioning_table.num_embeddings}"
            )
        return conditioning + self.conditioning_table(position_ids).to(conditioning.dtype)
