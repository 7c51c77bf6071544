"""Distribution through accelerate: what it is told of our models, and what it does not do by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType  # type: ignore[import-untyped]

from ..lora import is_quantized
from ..modeling import UnimodalARForGeneration
from .launch import NO_DEEPSPEED


def wanted(arguments: Any) -> bool:
    """Whether the launcher, or `arguments` of the training, ask for FSDP."""
    return _asked("ACCELERATE_USE_FSDP") or bool(arguments.fsdp)


def check(state: Any, fsdp: bool) -> None:
    """Raises ValueError where what was asked for cannot be had; `state` is accelerate's."""
    if _asked("ACCELERATE_USE_DEEPSPEED") and state.distributed_type != DistributedType.DEEPSPEED:
        raise ValueError(NO_DEEPSPEED)
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and state.num_processes == 1:
        raise ValueError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and this process trains alone; without GPUs several train "
            "together where TrainingArguments has use_cpu=True"
        )
    if not fsdp:
        return
    if state.distributed_type != DistributedType.FSDP:
        raise ValueError(
            "FSDP is asked for, and this process was started alone; start it by `accelerate launch --config_file "
            "fsdp2.yaml` with num_processes above 1 (see `unimodal-ar recipes accelerate/fsdp2`)"
        )
    if state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP's version is {state.fsdp_plugin.fsdp_version}; it must be 2, by fsdp_version: 2 in accelerate's "
            "configuration (see `unimodal-ar recipes accelerate/fsdp2`)"
        )


def check_layers(processes: int, config: Any) -> None:
    """Raises ValueError where each of several processes would skip layers of its own, and so wait forever for the
    others' gradients of those."""
    chance = getattr(config.backbone, "layerdrop", 0)
    if processes > 1 and chance and not config.freeze_backbone:
        raise ValueError(
            f"layerdrop of the {config.backbone.model_type} backbone is {chance}; in several processes it must be 0"
        )


def _asked(name: str) -> bool:
    return os.environ.get(name, "false").lower() == "true"


@contextmanager
def also_on_cpu() -> Iterator[None]:
    """While it lasts accelerate takes processes on the CPU for those of GPUs, to which alone it gives FSDP. (It would
    give them DDP and say nothing.)"""
    state: Any = PartialState()
    if state.distributed_type == DistributedType.MULTI_CPU:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    yield


@contextmanager
def as_one_group(model: UnimodalARForGeneration) -> Iterator[None]:
    """While it lasts, accelerate makes a group of every layer of the body, and of all else the root's.

    It looks for the layers' classes by the names in `_no_split_modules`, and would make a group of its own of the first
    embedding, too. But a group's weights are there in its `forward` alone; embeddings and heads have other methods.

    Raises:
        ValueError: the body is quantised.
    """
    if is_quantized(model.backbone.model):
        raise ValueError("FSDP is asked for, and the backbone is quantised; train it with DDP (ddp.yaml)")
    layers = model._no_split_modules
    model._no_split_modules = sorted(getattr(model.backbone.model, "_no_split_modules", None) or ())
    model.get_input_embeddings = lambda: None  # type: ignore[method-assign,assignment,return-value]
    try:
        yield
    finally:
        model._no_split_modules = layers
        del model.get_input_embeddings
