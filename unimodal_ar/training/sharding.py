"""FSDP through accelerate: what it is told of our models, and what it does not do by itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState  # type: ignore[import-untyped]
from accelerate.utils import DistributedType  # type: ignore[import-untyped]

from ..lora import is_quantized
from ..modeling import UnimodalARForGeneration


def wanted(arguments: Any) -> bool:
    """Whether the launcher, or `arguments` of the training, ask for FSDP."""
    return _asked("ACCELERATE_USE_FSDP") or bool(arguments.fsdp)


def check(state: Any, fsdp: bool) -> None:
    """Raises ValueError where what was asked for cannot be had; `state` is accelerate's."""
    if _asked("ACCELERATE_USE_DEEPSPEED") and state.distributed_type != DistributedType.DEEPSPEED:
        raise ValueError(
            "DeepSpeed is asked for, and training is on the CPU, where accelerate does without; use FSDP2 there "
            "(recipes/accelerate/fsdp2.yaml)"
        )
    if not fsdp:
        return
    if state.distributed_type != DistributedType.FSDP:
        raise ValueError(
            "FSDP is asked for, and this process was started alone; start it by `accelerate launch --config_file "
            "fsdp2.yaml` with num_processes above 1 (see recipes/accelerate/fsdp2.yaml)"
        )
    if state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(
            f"FSDP's version is {state.fsdp_plugin.fsdp_version}; it must be 2, by fsdp_version: 2 in accelerate's "
            "configuration (see recipes/accelerate/fsdp2.yaml)"
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
