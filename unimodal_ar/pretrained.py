"""Pretrained bodies: taken in, frozen, and left out of checkpoints that say where they are instead."""

from __future__ import annotations

import copy
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from . import lora
from .body_source import Source, body_of, copied, dtype_of, find_body, source_of, to_dtype, to_float16, unpacked
from .configuration import UnimodalARConfig, UnimodalARDecoderConfig
from .fingerprint import fingerprint, read_body
from .lora import BODY, is_quantized
from .places import check_body_of, local
from .schema import parse
from .sharing import PushMixin, check_saving


class PretrainedBodyMixin(PushMixin):
    """What a model does with a pretrained body: `from_backbone`, and checkpoints that only hold what was trained."""

    _attached: str | None = None  # the fingerprint of a body that is not as it is stored: in float16, or quantised
    peft_layers: Any = None
    """The `peft.PeftConfig` of the layers (LoRA's, say) that `lora.insert` put into the body; None: there are none."""

    @property
    def dtype(self) -> torch.dtype:
        """Of what is beside the body, which may be frozen in another one."""
        model: Any = self
        return next(x.dtype for x in model.embeddings.parameters() if x.is_floating_point())

    @classmethod
    def from_backbone(
        cls,
        backbone: str | os.PathLike[str] | PreTrainedModel,
        modalities: dict[str, dict[str, Any]],
        freeze: bool = False,
        soft_prompt: int = 0,
        **kwargs: Any,
    ) -> Any:
        """A model around a pretrained decoder body; embeddings and heads are new, and of the body's dtype.

        Args:
            backbone: the id on the Hub or the folder of a transformers model ("package:NAME": of an installed package);
                or such a model, whose body is copied (that of a `...ForCausalLM` without its head).
            modalities: as in `UnimodalARConfig`.
            freeze: leave the body as it is: none of its parameters is trained, it stays in evaluation mode, and nothing
                is kept for the backward pass that only a gradient of its weights would need. Of a frozen body that has
                a name, `save_pretrained` writes the name and not the weights.
            soft_prompt: learned vectors in front of every sequence, as in `UnimodalARConfig`.
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
        body: Any = body_of(backbone) if place is None else read_body(place, **kwargs)
        if is_quantized(body) and not freeze:
            raise ValueError("freeze is False; quantised weights cannot be trained, so it must be True for this body")
        config = copy.deepcopy(body.config)
        source = None
        if place is not None and freeze:
            source = source_of(place, body, kwargs)
            if source["quantization_config"] is not None:  # else transformers would take the stored weights for packed
                del config.quantization_config
        if place is not None:
            config._name_or_path = place  # of a package the name, not where it happens to be
            to_float16(body, kwargs.get("dtype"))
        made = UnimodalARConfig(
            backbone=config,
            modalities=modalities,
            freeze_backbone=freeze,
            backbone_source=source,
            soft_prompt=soft_prompt,
        )
        model: Any = cls(made, detached=True)  # type: ignore[call-arg]
        for parameter in model.parameters():  # not `.to`, here and below: tables in float32 stay
            parameter.data = parameter.data.to(body.dtype)
        native = isinstance(config, UnimodalARDecoderConfig)  # which a model completes by what it needs
        model.attach_body(copied(body, made.backbone) if native or place is None else body, source)
        return model

    @classmethod
    def from_pretrained(
        cls,
        name: Any,
        *args: Any,
        backbone: str | os.PathLike[str] | PreTrainedModel | Any = None,
        peft: bool = True,
        **kwargs: Any,
    ) -> Any:
        """As transformers', which makes every parameter trainable, those of a frozen body too. Without `dtype` (or with
        "auto") each part is loaded in the dtype that it was saved in.

        Args:
            backbone: where to find the body of a model that was saved without it, if it is no longer where it was: a
                folder, an id on the Hub, or a transformers model. A mapping: changes to the backbone's configuration.
            peft: False: leave out the layers of PEFT that the model was saved with (to have PEFT put them in itself).

        Raises:
            ValueError: the body is not there, or its weights are not those that the model was trained with.
        """
        place = backbone if isinstance(backbone, (str, os.PathLike, PreTrainedModel)) else None
        if backbone is not None and place is None:
            kwargs["backbone"] = backbone
        # The first of `args` goes to the constructor's `detached`; by name it would reach the generation config, too.
        name = local(name, kwargs)
        layers = lora.find(name, kwargs)
        if layers is None:
            loaded = super().from_pretrained(name, None, *args, **kwargs)  # type: ignore[misc]
        else:
            loaded = cls._beside_body(name, layers[1], *args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple with output_loading_info
        source, dtype = model.config.backbone_source, model.dtype
        asked = kwargs.get("dtype") or kwargs.get("torch_dtype")
        # Quantised from another dtype, a body would be another one.
        quantized = source is not None and source.get("quantization_config") is not None
        if model.config.backbone_dtype is not None and (quantized or asked in (None, "auto")):
            dtype = getattr(torch, model.config.backbone_dtype)
        if source is not None:
            if place is None:
                check_body_of(name, source)
            body = find_body(parse(Source, source, "backbone_source"), place, model.config.backbone, dtype)
            model.attach_body(body if is_quantized(body) else body.to(model.device), source)
        elif place is not None:
            raise ValueError(f"backbone is given; the model in {str(name)!r} was saved with its own")
        elif dtype != model.dtype:
            to_dtype(model.backbone.model, dtype)
        model.backbone.freeze_unused()
        if layers is not None and peft:
            lora.insert(model, layers[0])
            lora.fill(model, layers[1])
        return loaded

    @classmethod
    def _beside_body(cls, name: Any, weights: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        """A model that was saved with layers of PEFT, whose `weights` these are, without layers and body."""
        kwargs.pop("adapter_kwargs", None)  # by which the Auto classes would have transformers load the layers
        hub = {key: kwargs.pop(key) for key in lora.HUB if key in kwargs}
        read: Any = cls.config_class  # type: ignore[attr-defined]
        if not isinstance(kwargs.get("config"), PreTrainedConfig):
            place = kwargs.pop("config", None) or name
            asked: dict[str, Any] = {key: kwargs.pop(key) for key in ("dtype", "torch_dtype") if key in kwargs}
            config, kwargs = read.from_pretrained(place, return_unused_kwargs=True, **hub, **kwargs)
            kwargs |= {"config": config} | asked  # "auto" is no dtype that a configuration has
        state = lora.beside_body(weights)
        loaded = super().from_pretrained(None, None, *args, state_dict=state, **kwargs)  # type: ignore[misc]
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        model.adjust_generation_fn(None, False, None, name, **hub)
        model.name_or_path = model.config.name_or_path = str(name)
        return loaded

    def save_pretrained(
        self,
        save_directory: Any,
        *args: Any,
        include_backbone: bool = False,
        home: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """As transformers'; of a frozen body that came from a folder or the Hub only the name goes with it. A model
        with layers of PEFT is saved as a folder that PEFT reads, too (see `lora`).

        Args:
            include_backbone: write the body's weights, too, so that the model stands alone.
            home: where the folder will be in the end, which PEFT's tools are told; None: where it is.

        Raises:
            ValueError: the body is no longer that of its source, or it is quantised and would have to be written; or
                there are layers of PEFT, and the body has no source or is to be written; or the folder is the body's.
        """
        model: Any = self
        check_saving(kwargs)
        source, dtype = model.config.backbone_source, dtype_of(model.backbone.model)
        same = dtype in (None, model.dtype) and not is_quantized(model.backbone.model)
        model.config.backbone_dtype = None if same else str(dtype).removeprefix("torch.")
        if source is not None and not include_backbone:
            _check_apart(source["name_or_path"], save_directory, home)
        if model.peft_layers is not None:
            return model._save_layers(Path(save_directory), include_backbone, home, *args, **kwargs)
        if kwargs.get("is_main_process", True):
            lora.remove(Path(save_directory))
        if (source is None or include_backbone) and is_quantized(model.backbone.model):
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

    def _save_layers(
        self,
        folder: Path,
        include_backbone: bool,
        home: str | os.PathLike[str] | None,
        is_main_process: bool = True,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        model: Any = self
        if include_backbone or model.config.backbone_source is None:
            raise ValueError(
                f"include_backbone is {include_backbone}, and the backbone has layers of PEFT over a body "
                f"{'from elsewhere' if model.config.backbone_source else 'that has no folder or name'}; merge them "
                "first (`unimodal-ar merge`, lora.merge) and save with include_backbone=True"
            )
        if not is_main_process:
            return
        model.check_body(state_dict)
        folder.mkdir(parents=True, exist_ok=True)
        model.config.architectures, model.config.dtype = [type(model).__name__], model.dtype
        model.config.save_pretrained(folder)
        model.generation_config.save_pretrained(folder)
        lora.write(model, folder, home, state_dict)

    def add_adapter(self, adapter_config: Any, adapter_name: str | None = None) -> None:
        """Always raises ValueError: transformers' would freeze embeddings and heads, too, and say nothing."""
        raise ValueError(
            f"add_adapter got a {type(adapter_config).__name__}; put layers in by lora.insert(model, config), which "
            "trains embeddings and heads with them, or by peft.get_peft_model with "
            "modules_to_save=model.new_modules() in the config"
        )

    def load_adapter(self, peft_model_id: Any = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers', for layers that PEFT saved; raises ValueError for a model's folder with layers, of which
        it would load the layers only, and over any body."""
        if peft_model_id is not None and lora.find(peft_model_id, kwargs.get("adapter_kwargs") or {}) is not None:
            raise ValueError(
                f"peft_model_id is {str(peft_model_id)!r}, a model with layers of PEFT, embeddings and heads; load it "
                "whole by from_pretrained"
            )
        return super().load_adapter(peft_model_id, *args, **kwargs)  # type: ignore[misc]

    def attach_body(self, body: PreTrainedModel, source: dict[str, Any] | None) -> None:
        """Puts the backbone's body in, which `source` says where to find again."""
        model: Any = self
        model.backbone.attach(body)
        if source is not None and is_quantized(body):
            model._attached = fingerprint(unpacked(dict(body.named_parameters())))
        elif source is not None and body.dtype == torch.float16:
            model._attached = fingerprint(body.state_dict())
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
        source = model.config.backbone_source
        quantized = is_quantized(model.backbone.model)
        body = lora.body_state(model, dict(model.named_parameters()) if quantized else state or model.state_dict())
        found = fingerprint(unpacked(body) if quantized else body)
        if lora.is_merged(model) or found not in (source["fingerprint"], model._attached):
            raise ValueError(
                f"the backbone's weights are no longer those of {source['name_or_path']!r} (they were trained, merged "
                "with LoRA's, or cast), so that a checkpoint without them would not be this model; save it "
                "with include_backbone=True"
            )

    def _set_gradient_checkpointing(self, enable: bool = True, *args: Any, **kwargs: Any) -> None:
        """Where all ways of transformers to switch it on or off meet. It checkpoints in training mode alone, so that a
        frozen body, which is in evaluation mode, needs more than that."""
        super()._set_gradient_checkpointing(enable, *args, **kwargs)  # type: ignore[misc]
        model: Any = self
        if model.config.freeze_backbone:
            model.backbone.checkpoint_layers(enable)


def _check_apart(body: str, *folders: Any) -> None:
    """Raises ValueError where a model that refers to `body` would be written over it."""
    for folder in folders:
        if folder is not None and Path(folder).resolve() == Path(body).resolve():
            raise ValueError(
                f"save_directory is {str(folder)!r}, where the frozen body is that the model refers to; it must be "
                "another folder, or include_backbone=True"
            )
