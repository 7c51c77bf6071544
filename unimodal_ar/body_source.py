"""Where a frozen body's weights are, and how they are found there again."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.quantizers.auto import AutoQuantizationConfig

from .backbone import Backbone
from .fingerprint import FLOAT16, fingerprint, read_body
from .lora import is_quantized
from .places import commit_of
from .schema import Strict

# Of what `from_backbone` may pass on to transformers, what has to be passed again when a checkpoint is loaded.
_KEPT = ("revision", "subfolder", "gguf_file", "quantization_config")


class Source(Strict):
    """Where a frozen body's weights are.

    Args:
        name_or_path: a folder (its absolute path), an id on the Hub, or a package (see `places.folder_of`).
        revision: the commit on the Hub; None: a folder, or the newest.
        subfolder: inside it.
        gguf_file: the file in it, where it holds GGUF.
        quantization_config: how the weights are quantised when they are loaded; None: they are not.
        own: the place holds a model of this package, whose body it is; False: a model of transformers.
        fingerprint: of the weights, see `fingerprint`.
    """

    name_or_path: str
    revision: str | None = None
    subfolder: str | None = None
    gguf_file: str | None = None
    quantization_config: dict[str, Any] | None = None
    own: bool = False
    fingerprint: str


def to_dtype(body: Any, dtype: torch.dtype) -> None:
    for parameter in body.parameters():  # not `.to`: rotary tables stay in float32, as after from_pretrained
        parameter.data = parameter.data.to(dtype)


def to_float16(body: Any, dtype: Any) -> None:
    """What `read_body` leaves to do."""
    if dtype in FLOAT16 and not is_quantized(body):
        to_dtype(body, torch.float16)


def dtype_of(body: nn.Module) -> torch.dtype | None:
    return next((x.dtype for x in body.parameters() if x.is_floating_point()), None)


def unpacked(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of a quantised body's that could be trained. (Packed weights cannot, and are packed otherwise at times.)"""
    return {name: x for name, x in parameters.items() if x.is_floating_point() and not hasattr(x, "quant_state")}


def copied(body: Any, config: PreTrainedConfig) -> Any:
    """A body of its own for a model: of `config`, with the weights of `body`."""
    if is_quantized(body):
        return copy.deepcopy(body)
    own: Any = AutoModel.from_config(copy.deepcopy(config))
    try:
        own.load_state_dict(body.state_dict())
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"backbone is a {type(body).__name__}, whose weights do not fit: {reason[:200]}") from None
    to_dtype(own, body.dtype)
    return own.to(body.device).eval()


def body_of(model: Any) -> Any:
    """The body of a transformers model, or of one of this package."""
    base = model.base_model
    return base.model if isinstance(base, Backbone) else base


def own_source(folder: str | os.PathLike[str], body: nn.Module) -> dict[str, Any]:
    """What `backbone_source` says of a `body` that is that of the model of this package in `folder` (or of that id on
    the Hub, which it was just loaded from)."""
    commit = commit_of(os.fspath(folder), {})
    place = os.fspath(folder) if commit is not None else str(Path(folder).absolute())
    source = Source(name_or_path=place, revision=commit, own=True, fingerprint=fingerprint(body.state_dict()))
    return source.model_dump(mode="json")


def source_of(place: str, body: PreTrainedModel, kwargs: dict[str, Any]) -> dict[str, Any]:
    kept = {key: kwargs[key] for key in _KEPT if kwargs.get(key) is not None}
    if "quantization_config" in kept and not isinstance(kept["quantization_config"], dict):
        kept["quantization_config"] = kept["quantization_config"].to_dict()
    commit = commit_of(place, kwargs)  # of the Hub: names and branches move on
    kept |= {} if commit is None else {"revision": commit}
    place = str(Path(place).absolute()) if Path(place).exists() else place
    return Source(name_or_path=place, fingerprint=fingerprint(body.state_dict()), **kept).model_dump(mode="json")


def find_body(source: Source, place: Any, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    """The body of `source`, or of another place.

    Raises:
        ValueError: there is none, or one of other weights.
    """
    where = source.name_or_path if place is None else place
    if isinstance(where, PreTrainedModel):
        body, called = copied(body_of(where), config), f"a {type(where).__name__}"
    else:
        where = os.fspath(where)
        body, called = _load(source, where, place is None, config, dtype), repr(where)
    found = fingerprint(body.state_dict())
    if found != source.fingerprint:
        raise ValueError(
            f"backbone is {called}, whose weights have the fingerprint {found[:12]}; this model was trained on "
            f"{source.name_or_path!r} of the fingerprint {source.fingerprint[:12]} and works with no other body"
        )
    if isinstance(where, PreTrainedModel) and not is_quantized(body):  # not before: it has its fingerprint as it was
        to_dtype(body, dtype)
    to_float16(body, dtype)
    return body


def _load(source: Source, where: str, original: bool, config: PreTrainedConfig, dtype: torch.dtype) -> Any:
    kwargs: dict[str, Any] = {key: value for key in _KEPT if (value := getattr(source, key)) is not None}
    if not original:
        kwargs.pop("revision", None)  # of the other place
    if source.quantization_config is not None:
        kwargs["quantization_config"] = AutoQuantizationConfig.from_dict(source.quantization_config)
    try:
        if source.own:  # read by a configuration of its own
            return copied(body_of(read_body(where, dtype, **kwargs)), config)
        return read_body(where, dtype, config=copy.deepcopy(config), **kwargs)
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:  # not there, of other shapes, cut off
        reason = str(error).strip().partition("\n")[0].strip(" .")
        if "loading state_dict" in reason:  # torch goes on for a screen
            reason = "its weights have other names or shapes"
        if Path(where).is_absolute() and not Path(where).exists():  # which transformers takes for a name on the Hub
            reason = "there is no such folder"
        raise ValueError(
            f"backbone is {where!r}, from which the frozen body cannot be loaded ({reason}); pass as backbone the "
            "folder, id or object of the body that this model was trained on, or correct backbone_source.name_or_path "
            "in its config.json"
        ) from error
