"""Configurations: the native decoder's, and that of a model of several modalities around one backbone."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterable
from dataclasses import field, fields
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig

from .layout import ORDERS, Layout
from .modality import ModalityOptions, parse_modality
from .schema import unknown_key

# Names that transformers itself passes to or saves with a configuration, besides the declared fields.
_TRANSFORMERS_KEYS = {
    *("model_type", "name_or_path", "auto_map", "attn_implementation", "experts_implementation", "torch_dtype"),
    *("output_attentions", "_attn_implementation_internal", "_experts_implementation_internal", "_commit_hash"),
    *("_output_attentions", "_name_or_path"),
}

# Names before v5 of what is now `rope_parameters`; transformers still understands them.
_ROPE_KEYS = {"rope_theta", "rope_scaling"}


class StrictConfig(PreTrainedConfig):
    """A PreTrainedConfig that rejects unknown names (transformers sets them silently) and saves every field, so that a
    checkpoint does not change its meaning when a default does.

    Raises:
        ValueError: an unknown name, with the nearest one that exists.
    """

    def __post_init__(self, **kwargs: Any) -> None:
        self._reject_unknown(kwargs)
        super().__post_init__(**kwargs)

    @classmethod
    def register_for_auto_class(cls, auto_class: Any = "AutoConfig") -> None:
        """Does nothing: else, once loaded with `trust_remote_code`, it would be saved with a copy of this file, which
        is of no use without the package (see `sharing.STUB_TEXT`)."""

    @classmethod
    def _own_fields(cls) -> set[str]:
        return {known.name for known in fields(cls)} - {known.name for known in fields(PreTrainedConfig)}  # type: ignore[arg-type]

    @classmethod
    def _reject_unknown(cls, keys: Iterable[str]) -> None:
        legal = {known.name for known in fields(cls)} | _TRANSFORMERS_KEYS  # type: ignore[arg-type]  # a dataclass at run time
        for key in keys:
            if key not in legal:
                raise ValueError(unknown_key(key, cls._own_fields(), cls.__name__))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        if not kwargs.get("return_unused_kwargs", False):  # else the caller deals with what is left
            cls._reject_unknown(kwargs.keys() - {"return_unused_kwargs", "_from_auto", "_from_pipeline"})
        # transformers would set these after all checks, and unchecked.
        own = {key: kwargs.pop(key) for key in cls._own_fields() & kwargs.keys()}
        return super().from_dict(config_dict | own, **kwargs)

    def to_diff_dict(self) -> dict[str, Any]:
        """What is saved: every field of ours, whether or not it has its default, and none of the base class's that
        mean nothing here."""
        own = self._own_fields() | {"model_type", "architectures", "dtype", "transformers_version"}
        saved = {key: value for key, value in self.to_dict().items() if key in own}
        if isinstance(getattr(self, "backbone", None), StrictConfig):
            body = saved["backbone"]
            saved["backbone"] = {key: body[key] for key in self.backbone.to_diff_dict() if key in body}
        return saved


class UnimodalARDecoderConfig(StrictConfig):
    """The native decoder. Each field that names a module ("norm", "mlp", "position") picks it from a table in
    `decoder.py` or `positions.py`, so that published decoders fit by configuration.

    Args:
        hidden_size: width.
        num_hidden_layers: depth; 0: none, only the last norm.
        num_attention_heads: query heads.
        num_key_value_heads: key and value heads (grouped-query attention); None: as many as query heads.
        head_dim: size of a head; None: hidden_size / num_attention_heads.
        intermediate_size: inner width of the MLP; None: 8/3 of the width for "swiglu" (rounded up to a multiple of 32),
            else 4 times the width.
        norm: "rmsnorm", "layernorm" or "none".
        norm_eps: added to the variance.
        norm_position: "pre" (x + f(norm(x))) or "post" (norm(x + f(x))).
        qk_norm: norm of queries and keys per head ("rmsnorm", "layernorm"), or None.
        mlp: "swiglu", "gelu" (exact), "gelu_tanh" or "none".
        attention_bias, mlp_bias: whether these linear layers have biases.
        position: "rope" (axial rotary over t, h, w), "rope_1d" (rotary over the running number of the position, as
            language models have it; a start has a number of its own), "sinusoidal" (of t, h, w, added to the inputs) or
            "none".
        position_axes: shares of the channels that go to t, h and w; None with "rope_1d", where there are no axes.
        rope_theta: base of the rotary frequencies.
        conditioning_size: size of the conditioning vector of adaptive norms (adaLN-Zero, arXiv 2212.09748); None: plain
            norms.
        conditioning_positions: a learned vector for each of so many positions is added to the conditioning, so that
            norms adapt to the place in the sequence, too (RAR, arXiv 2411.00776); None: none is.
        dropout: on the output of attention and MLP, in training.
        attention_dropout: on attention weights, in training.
        initializer_range: standard deviation of the initial weights.
    """

    model_type = "unimodal_ar_decoder"

    hidden_size: int = 256
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    intermediate_size: int | None = None
    norm: str = "rmsnorm"
    norm_eps: float = 1e-6
    norm_position: str = "pre"
    qk_norm: str | None = "rmsnorm"
    mlp: str = "swiglu"
    attention_bias: bool = False
    mlp_bias: bool = False
    position: str = "rope"
    position_axes: list[float] | None = None
    rope_theta: float = 10000.0
    conditioning_size: int | None = None
    conditioning_positions: int | None = None
    dropout: float = 0.0
    attention_dropout: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs: Any) -> None:
        self._check()
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.intermediate_size is None:
            gated = (8 * self.hidden_size // 3 + 31) // 32 * 32
            self.intermediate_size = gated if self.mlp == "swiglu" else 4 * self.hidden_size
        super().__post_init__(**kwargs)

    def _check(self) -> None:
        choices: dict[str, tuple[Any, ...]] = {
            "norm": ("rmsnorm", "layernorm", "none"),
            "norm_position": ("pre", "post"),
            "qk_norm": ("rmsnorm", "layernorm", None),
            "mlp": ("swiglu", "gelu", "gelu_tanh", "none"),
            "position": ("rope", "rope_1d", "sinusoidal", "none"),
        }
        for name, legal in choices.items():
            if getattr(self, name) not in legal:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {list(legal)}")
        if type(self.num_hidden_layers) is not int or self.num_hidden_layers < 0:
            raise ValueError(f"num_hidden_layers is {self.num_hidden_layers!r}; it must be an integer >= 0")
        self._check_numbers()
        heads, groups = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and self.hidden_size % heads:
            raise ValueError(f"hidden_size is {self.hidden_size}; it must be a multiple of num_attention_heads {heads}")
        if heads % groups:
            raise ValueError(f"num_key_value_heads is {groups}; it must divide num_attention_heads {heads}")
        if self.position in ("rope", "rope_1d") and (self.head_dim or self.hidden_size // heads) % 2:
            raise ValueError("head_dim is odd; rotary positions turn pairs of channels, so it must be even")
        axes = self.position_axes
        if axes is not None and not (
            isinstance(axes, (list, tuple)) and len(axes) == 3 and all(_is_number(x, 0) for x in axes) and sum(axes) > 0
        ):
            raise ValueError(f"position_axes is {axes!r}; it must be three shares (t, h, w) >= 0, not all 0")
        if axes is not None and self.position == "rope_1d":
            raise ValueError(f"position_axes is {axes!r}; with position 'rope_1d' there are no axes: it must be None")

    def _check_numbers(self) -> None:
        for name in ("hidden_size", "num_attention_heads"):
            if not _is_size(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a positive integer")
        for name in (
            *("num_key_value_heads", "head_dim", "intermediate_size"),
            *("conditioning_size", "conditioning_positions"),
        ):
            if getattr(self, name) is not None and not _is_size(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a positive integer or None")
        for name in ("attention_bias", "mlp_bias"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be true or false")
        for name in ("dropout", "attention_dropout"):
            if not _is_number(getattr(self, name), 0) or getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number in [0, 1)")
        for name in ("norm_eps", "initializer_range"):
            if not _is_number(getattr(self, name), 0):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be a number >= 0")
        if not _is_number(self.rope_theta, 1):
            raise ValueError(f"rope_theta is {self.rope_theta!r}; it must be a number >= 1")


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any, least: float) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < math.inf


class UnimodalARConfig(StrictConfig):
    """A model of one or several modalities around one backbone.

    Args:
        backbone: a configuration (object or dict with `model_type`) of the native decoder or of any transformers
            decoder, or the name or path of one on the Hub or on disk, of which only the configuration is read
            (weights: `UnimodalARForGeneration.from_backbone`). None: the native decoder's defaults.
        modalities: name -> options, see `ModalityOptions`.
        freeze_backbone: whether the backbone's body is left as it is in training.
        backbone_source: where the frozen body's weights are, so that checkpoints need not hold them: a mapping that
            `from_backbone` makes (see `pretrained.Source`). None: nowhere else.
        backbone_dtype: that of the frozen body's weights where it was another than the rest's when the model was saved
            (of what is trained in float32 around a body in bfloat16, say), or what was quantised from, for
            `from_pretrained`. None: the same.
        soft_prompt: learned vectors in front of every sequence, so many positions (prompt tuning, arXiv 2104.08691).

    Raises:
        ValueError: names every unknown or illegal key.
    """

    model_type = "unimodal_ar"

    backbone: Any = None
    modalities: dict[str, Any] = field(default_factory=dict)
    freeze_backbone: bool = False
    backbone_source: dict[str, Any] | None = None
    backbone_dtype: str | None = None
    soft_prompt: int = 0

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        # A saved body may hold keys that its class no longer declares; only what a user writes is held against it.
        saved, change = config_dict.get("backbone"), kwargs.get("backbone")
        if isinstance(saved, dict) and isinstance(change, dict):
            kwargs["backbone"] = saved | change  # a part of it, as transformers does for nested configurations
        elif isinstance(saved, dict):
            config_dict = config_dict | {"backbone": _build_backbone_config(saved)}
        quantized = (config_dict.get("backbone_source") or {}).get("quantization_config") is not None
        if (kwargs.get("dtype") or kwargs.get("torch_dtype")) and not quantized:  # it is asked for of the whole model
            config_dict = config_dict | {"backbone_dtype": None}
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs: Any) -> None:
        if not isinstance(self.modalities, dict):
            raise ValueError(f"modalities is a {type(self.modalities).__name__}; it must map names to options")
        if self.backbone_source is not None and not self.freeze_backbone:
            raise ValueError(
                f"freeze_backbone is {self.freeze_backbone!r}; with a backbone_source it must be True, for a body that "
                "is trained is no longer the source's"
            )
        options = {name: parse_modality(name, data) for name, data in self.modalities.items()}
        self.modalities = {name: option.model_dump(mode="json") for name, option in options.items()}
        self.backbone = _backbone_config(self.backbone)
        body = self.backbone
        if isinstance(body, UnimodalARDecoderConfig) and body.position_axes is None and body.position != "rope_1d":
            # An axis along which no grid extends would waste its channels. Along t there are always segments.
            body.position_axes = [1.0, *map(float, self.used_axes[1:])]
        for name, option in options.items():
            self._check_places(name, option)
        self._check_prompt()
        self._settle_conditioning([name for name, option in options.items() if option.conditioning])
        kernel = self.backbone._attn_implementation
        super().__post_init__(**kwargs)  # which hands its own, or none, down to the backbone
        if self._attn_implementation is None and kernel is not None:
            self._attn_implementation = kernel

    def _check_places(self, name: str, option: ModalityOptions) -> None:
        """Raises ValueError where nothing tells positions of a block apart before their values are known."""
        backbone, objective = self.backbone, option.built_objective
        position = backbone.position if isinstance(backbone, UnimodalARDecoderConfig) else None
        if position == "rope_1d" and ORDERS[option.layout.order].random and not option.absolute_positions:
            raise ValueError(
                f"backbone.position is 'rope_1d', whose running numbers do not tell places in the random order "
                f"{option.layout.order!r} of modality {name!r}; it needs 'rope', or absolute_positions"
            )
        if position != "none" or backbone.conditioning_positions or option.absolute_positions:
            return
        if objective is None or objective.reads_sources:
            return
        block: Any = option.layout.block
        if max(Layout.from_grid(option.grid, option.layout.order, block, torch.Generator()).block_sizes) > 1:
            raise ValueError(
                f"backbone.position is 'none'; under block diffusion with blocks of several elements modality {name!r} "
                "needs positions ('rope', 'rope_1d', 'sinusoidal', or its absolute_positions), for masked elements "
                "look alike"
            )

    def _check_prompt(self) -> None:
        if type(self.soft_prompt) is not int or self.soft_prompt < 0:
            raise ValueError(f"soft_prompt is {self.soft_prompt!r}; it must be a number of positions >= 0")
        places = getattr(self.backbone, "conditioning_positions", None)
        if self.soft_prompt and places:
            raise ValueError(
                f"soft_prompt is {self.soft_prompt}; it must be 0 where norms follow the place in the sequence "
                f"(backbone.conditioning_positions is {places})"
            )

    def _settle_conditioning(self, conditioning: list[str]) -> None:
        """The size of the conditioning vector is the width: it is the sum of embeddings."""
        native, width = isinstance(self.backbone, UnimodalARDecoderConfig), self.hidden_size
        if conditioning and not native:
            raise ValueError(
                f"modalities.{conditioning[0]}.conditioning is true; only the native decoder has adaptive norms"
            )
        needed = bool(conditioning) or (native and self.has_levels)
        if needed and self.backbone.conditioning_size is None:
            self.backbone.conditioning_size = width
        size = self.backbone.conditioning_size if native else None
        if size is not None and (size != width or not needed):
            raise ValueError(
                f"backbone.conditioning_size is {size}; it must be the hidden_size {width}, with a modality whose "
                "conditioning is true or whose objective has noise levels, or None"
            )

    @property
    def used_axes(self) -> list[bool]:
        """Whether any modality's grid extends along t, h and w."""
        grids = [options["grid"] for options in self.modalities.values()] or [[2, 2, 2]]
        return [max(grid[axis] for grid in grids) > 1 for axis in range(3)]

    @property
    def has_levels(self) -> bool:
        """Whether the objective of any modality tells positions how noisy they are."""
        objectives = [self.modality(name).built_objective for name in self.modalities]
        return any(objective is not None and objective.has_levels for objective in objectives)

    @property
    def needs_coordinates(self) -> bool:
        """Whether the running number of a position does not tell where its element is in the grid."""
        options = [self.modality(name) for name in self.modalities]
        own_places = [o for o in options if o.built_objective is not None and not o.built_objective.reads_sources]
        return any(self.used_axes[1:]) or any(o.layout.order != "raster" for o in own_places)

    @property
    def hidden_size(self) -> int:
        return self.backbone.get_text_config().hidden_size

    @property
    def initializer_range(self) -> float:
        return getattr(self.backbone.get_text_config(), "initializer_range", 0.02)

    def modality(self, name: str) -> ModalityOptions:
        """The options of modality `name`; raises ValueError listing the known names."""
        if name not in self.modalities:
            raise ValueError(f"modality is {name!r}; this model knows {sorted(self.modalities)}")
        return parse_modality(name, self.modalities[name])


UnimodalARConfig.sub_configs = {"backbone": AutoConfig}  # type: ignore[assignment, method-assign]  # a class property


def _backbone_config(backbone: Any) -> PreTrainedConfig:
    config = _any_config(backbone)
    if isinstance(config, UnimodalARConfig):
        raise ValueError(
            "backbone is a whole model of this package; it must be a body: the native decoder, or one of transformers "
            "(a recipe starts from such a model by init_from, and from_backbone takes its object)"
        )
    return config


def _any_config(backbone: Any) -> PreTrainedConfig:
    if backbone is None:
        return UnimodalARDecoderConfig()
    if isinstance(backbone, PreTrainedConfig):
        return copy.deepcopy(backbone)  # it is completed by this model's needs; the caller's may serve another model
    if isinstance(backbone, str):
        return AutoConfig.from_pretrained(backbone, trust_remote_code=False)
    if not isinstance(backbone, dict):
        raise ValueError(f"backbone is a {type(backbone).__name__}; it must be a configuration, a dict, a name or path")
    model_type = backbone.get("model_type")
    native = model_type == UnimodalARDecoderConfig.model_type
    if isinstance(model_type, str) and model_type in CONFIG_MAPPING and not native:
        kind = CONFIG_MAPPING[model_type]
        own = {*inspect.signature(kind).parameters, *kind.attribute_map} - {"kwargs"}
        for key in backbone:
            if key not in own | _TRANSFORMERS_KEYS | _ROPE_KEYS:
                raise ValueError(unknown_key(key, own, f"backbone ({model_type})"))
    return _build_backbone_config(backbone)


def _build_backbone_config(backbone: dict[str, Any]) -> PreTrainedConfig:
    data = dict(backbone)
    model_type: Any = data.pop("model_type", None)
    if model_type == UnimodalARDecoderConfig.model_type:
        return UnimodalARDecoderConfig(**data)
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ValueError(
            f"backbone.model_type is {model_type!r}; it must be {UnimodalARDecoderConfig.model_type!r} or a "
            "transformers model type such as 'llama', 'gpt2' or 'qwen3'"
        )
    return CONFIG_MAPPING[str(model_type)](**data)
