"""Pretrained bodies: taken in, frozen, and left out of checkpoints that say where they are instead."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig
from transformers.utils.quantization_config import GgufConfig

from .configuration import UnimodalARConfig, UnimodalARDecoderConfig
from .schema import Strict, parse

BODY = "backbone.model."
"""What the names of the body's weights begin with in a model's state."""

# Of what `from_backbone` may pass on to transformers, what has to be passed again when a checkpoint is loaded.
_KEPT = ("revision", "subfolder", "gguf_file", "quantization_config")


_FLOAT16 = (torch.float16, "float16")


class Source(Strict):
    """Where a frozen body's weights are.

    Args:
        name_or_path: a folder (its absolute path) or an id on the Hub.
        revision: the commit on the Hub; None: a folder, or the newest.
        subfolder: inside it.
        gguf_file: the file in it, where it holds GGUF.
        quantization_config: how the weights are quantised when they are loaded; None: they are not.
        fingerprint: of the weights, see `fingerprint`.
    """

    name_or_path: str
    revision: str | None = None
    subfolder: str | None = None
    gguf_file: str | None = None
    quantization_config: dict[str, Any] | None = None
    fingerprint: str


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names, shapes and values of weights; about a second for 10^9 bytes.

    Floating-point values count as rounded to bfloat16. So float32 and bfloat16 give one fingerprint, exactly, whichever
    of them weights are stored in and loaded in; to float16 only what is stored as such may be cast. (What the rounding
    hides is smaller than what loading in bfloat16 changes.) Whole numbers, such as packed weights, count as they are.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        value = state[name].detach()
        value = value.to(torch.bfloat16) if value.is_floating_point() else value
        digest.update(f"{name} {list(value.shape)} ".encode())
        digest.update(cast(Any, value.cpu().contiguous().flatten().view(torch.uint8).numpy()))
    return digest.hexdigest()


class PretrainedBodyMixin:
    """What a model does with a pretrained body: `from_backbone`, and checkpoints that only hold what was trained."""

    _float16: str | None = None  # the fingerprint of a body that was cast to float16

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedModel,
        modalities: dict[str, dict[str, Any]],
        freeze: bool = False,
        **kwargs: Any,
    ) -> Any:
        """A model around a pretrained decoder body; embeddings and heads are new, and of the body's dtype.

        Args:
            backbone: the id on the Hub or the folder of a transformers model; or such a model, whose body is copied
                (that of a `...ForCausalLM` without its head).
            modalities: as in `UnimodalARConfig`.
            freeze: leave the body as it is: none of its parameters is trained, it stays in evaluation mode, and nothing
                is kept for the backward pass that only a gradient of its weights would need. Of a frozen body that has
                a name, `save_pretrained` writes the name and not the weights.
            kwargs: passed to `AutoModel.from_pretrained` (`dtype`, `revision`, `gguf_file`, `quantization_config`, ...)
                for a name or folder.

        Raises:
            ValueError: options that have no effect on an object, or a quantised body that is to be trained.
            OSError: there is no such model.
        """
        place = None if isinstance(backbone, PreTrainedModel) else os.fspath(backbone)
        if kwargs and place is None:
            raise ValueError(
                f"from_backbone got {sorted(kwargs)}, which say how to load a name or folder; backbone is a "
                f"{type(backbone).__name__}, loaded already"
            )
        body: Any = cast(Any, backbone).base_model if place is None else _read(place, **kwargs)
        if _is_quantized(body) and not freeze:
            raise ValueError("freeze is False; quantised weights cannot be trained, so it must be True for this body")
        config = copy.deepcopy(body.config)
        source = None
        if place is not None and freeze:
            source = _source(place, body, kwargs)
            if source["quantization_config"] is not None:  # else transformers would take the stored weights for packed
                del config.quantization_config
        if place is not None:
            _cast(body, kwargs.get("dtype"))
        made = UnimodalARConfig(backbone=config, modalities=modalities, freeze_backbone=freeze, backbone_source=source)
        model: Any = cls(made, detached=True)  # type: ignore[call-arg]
        for parameter in model.parameters():  # not `.to`, here and below: tables in float32 stay
            parameter.data = parameter.data.to(body.dtype)
        native = isinstance(config, UnimodalARDecoderConfig)  # which a model completes by what it needs
        model.attach_body(_copy(body, made.backbone) if native or place is None else body, source)
        return model

    @classmethod
    def from_pretrained(
        cls, name: Any, *args: Any, backbone: str | os.PathLike[str] | PreTrainedModel | Any = None, **kwargs: Any
    ) -> Any:
        """As transformers', which makes every parameter trainable, those of a frozen body too.

        Args:
            backbone: where to find the body of a model that was saved without it, if it is no longer where it was: a
                folder, an id on the Hub, or a transformers model. A mapping: changes to the backbone's configuration.

        Raises:
            ValueError: the body is not there, or its weights are not those that the model was trained with.
        """
        place = backbone if isinstance(backbone, (str, os.PathLike, PreTrainedModel)) else None
        if backbone is not None and place is None:
            kwargs["backbone"] = backbone
        # The first of `args` goes to the constructor's `detached`; by name it would reach the generation config, too.
        loaded = super().from_pretrained(name, None, *args, **kwargs)  # type: ignore[misc]
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
        source = model.config.backbone_source
        if source is not None:
            body = _find(parse(Source, source, "backbone_source"), place, model.config.backbone, model.dtype)
            model.attach_body(body if _is_quantized(body) else body.to(model.device), source)
        elif place is not None:
            raise ValueError(f"backbone is given; the model in {str(name)!r} was saved with its own")
        model.backbone.freeze_unused()
        return loaded

    def save_pretrained(self, save_directory: Any, *args: Any, include_backbone: bool = False, **kwargs: Any) -> None:
        """As transformers'; of a frozen body that came from a folder or the Hub only the name goes with it.

        Args:
            include_backbone: write the body's weights, too, so that the model stands alone.

        Raises:
            ValueError: the body is no longer that of its source, or it is quantised and would have to be written.
        """
        model: Any = self
        source = model.config.backbone_source
        if (source is None or include_backbone) and _is_quantized(model.backbone.model):
            raise ValueError(
                f"include_backbone is {include_backbone}, and the backbone is quantised; only a frozen one that "
                "came from a folder or the Hub can be saved, without its weights (include_backbone=False)"
            )
        if source is None:
            return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        if not include_backbone and kwargs.get("is_main_process", True):
            model.check_body(kwargs.get("state_dict"))
        model.refer_to(None if include_backbone else source)
        try:
            return super().save_pretrained(save_directory, *args, **kwargs)  # type: ignore[misc]
        finally:
            model.refer_to(source)

    def attach_body(self, body: PreTrainedModel, source: dict[str, Any] | None) -> None:
        """Puts the backbone's body in, which `source` says where to find again."""
        model: Any = self
        model.backbone.attach(body)
        if source is not None and body.dtype == torch.float16:
            model._float16 = fingerprint(body.state_dict())
        model.refer_to(source)

    def refer_to(self, source: dict[str, Any] | None) -> None:
        """From now on, checkpoints hold `source` in place of the body's weights; None: the weights."""
        model: Any = self
        model.config.backbone_source = source
        names = model.backbone.model.state_dict() if source is not None else ()
        model._keys_to_ignore_on_save = {BODY + name for name in names}

    def check_body(self, state: Mapping[str, Tensor] | None = None) -> None:
        """Raises ValueError where the body is no longer that of its source. `state`: the whole model's, if at hand."""
        model: Any = self
        state = state or model.state_dict()
        body = {name.removeprefix(BODY): value for name, value in state.items() if name.startswith(BODY)}
        source = model.config.backbone_source
        if fingerprint(body) not in (source["fingerprint"], model._float16):
            raise ValueError(
                f"the backbone's weights are no longer those of {source['name_or_path']!r} (they were trained, merged "
                "with LoRA's, or cast), so that a checkpoint without them would not be this model; save it "
                "with include_backbone=True"
            )

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Where all ways of transformers to switch it on or off meet. It checkpoints in training mode alone.

        Raises:
            ValueError: the backbone is frozen, and so in evaluation mode.
        """
        model: Any = self
        if enable and model.config.freeze_backbone:
            raise ValueError(
                "gradient_checkpointing is on; it must be off for a frozen backbone, which is in evaluation mode, "
                "where transformers does not checkpoint"
            )
        super()._set_gradient_checkpointing(enable, *args, **kwargs)  # type: ignore[misc]


def _is_quantized(body: Any) -> bool:
    return getattr(body, "hf_quantizer", None) is not None


def _read(place: str, dtype: Any = "auto", **kwargs: Any) -> Any:
    """A body as transformers loads it; to be had in float16 it is read in float32, which has the fingerprint of what is
    stored, and goes through `_cast` once that is known."""
    plain = kwargs.get("quantization_config") is None
    if plain and kwargs.get("gguf_file") is not None:  # else the machine would decide whether weights are left packed
        kwargs["quantization_config"] = GgufConfig(dequantize=True)
    return AutoModel.from_pretrained(place, dtype=torch.float32 if plain and dtype in _FLOAT16 else dtype, **kwargs)


def _cast(body: Any, dtype: Any) -> None:
    if dtype in _FLOAT16 and not _is_quantized(body):
        for parameter in body.parameters():  # not `.to`: rotary tables stay in float32, as after from_pretrained
            parameter.data = parameter.data.to(torch.float16)


def _copy(body: Any, config: PreTrainedConfig, dtype: torch.dtype | None = None) -> Any:
    """A body of its own for a model: of `config`, with the weights of `body`; dtype None: and with its dtype."""
    if _is_quantized(body):
        return copy.deepcopy(body)
    copied: Any = AutoModel.from_config(copy.deepcopy(config))
    try:
        copied.load_state_dict(body.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backbone is a {type(body).__name__}, whose weights do not fit: {reason[:200]}") from None
    for parameter in copied.parameters():
        parameter.data = parameter.data.to(body.dtype if dtype is None else dtype)
    return copied.to(body.device).eval()


def _source(place: str, body: PreTrainedModel, kwargs: dict[str, Any]) -> dict[str, Any]:
    kept = {key: kwargs[key] for key in _KEPT if kwargs.get(key) is not None}
    if "quantization_config" in kept and not isinstance(kept["quantization_config"], dict):
        kept["quantization_config"] = kept["quantization_config"].to_dict()
    commit = getattr(body.config, "_commit_hash", None)  # of the Hub: names and branches move on
    kept |= {} if commit is None else {"revision": commit}
    place = str(Path(place).absolute()) if Path(place).exists() else place
    return Source(name_or_path=place, fingerprint=fingerprint(body.state_dict()), **kept).model_dump(mode="json")


def _find(source: Source, place: Any, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """The body of `source`, or of another place.

    Raises:
        ValueError: there is none, or one of other weights.
    """
    where = source.name_or_path if place is None else place
    if isinstance(where, PreTrainedModel):
        body, called = _copy(where.base_model, config, dtype), f"a {type(where).__name__}"
    else:
        where = os.fspath(where)
        body, called = _load(source, where, place is None, config, dtype), repr(where)
    found = fingerprint(body.state_dict())
    if found != source.fingerprint:
        raise ValueError(
            f"backbone is {called}, whose weights have the fingerprint {found[:12]}; this model was trained on "
            f"{source.name_or_path!r} of the fingerprint {source.fingerprint[:12]} and works with no other body"
        )
    _cast(body, dtype)
    return body


def _load(source: Source, where: str, original: bool, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    kwargs: dict[str, Any] = {key: value for key in _KEPT if (value := getattr(source, key)) is not None}
    if not original:
        kwargs.pop("revision", None)  # of the other place
    if source.quantization_config is not None:
        kwargs["quantization_config"] = AutoQuantizationConfig.from_dict(source.quantization_config)
    try:
        return _read(where, dtype, config=copy.deepcopy(config), **kwargs)
    except (OSError, RuntimeError, ValueError) as error:  # it is not there, or of other shapes
        reason = str(error).strip().partition("\n")[0].strip(" .")
        raise ValueError(
            f"backbone is {where!r}, from which the frozen body cannot be loaded ({reason}); pass as backbone the "
            "folder, id or object of the body that this model was trained on"
        ) from error
