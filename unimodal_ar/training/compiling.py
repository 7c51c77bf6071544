"""torch.compile in training: of the body's layers, which are alike and do nearly all of the work.

The rest of a step (checks, layouts, masks, noise) looks at values and decides: graphs would break there, and be made
anew. Generation, whose cache grows, is not compiled.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate.utils import DynamoBackend, TorchDynamoPlugin  # type: ignore[import-untyped]
from transformers import TrainingArguments
from transformers.modeling_layers import GradientCheckpointingLayer

from ..modeling import UnimodalARForGeneration


def taken_over(arguments: TrainingArguments, state: Any) -> dict[str, Any] | None:
    """What torch.compile is to be called with, by `torch_compile` of the training's arguments or by accelerate's
    configuration; None: not to be called. `state` is accelerate's, which then compiles nothing itself: it would take
    the model as a whole."""
    # Not the state's own plugin, which a Trainer before this one, of the same arguments, has switched off.
    plugin = TorchDynamoPlugin(backend=arguments.torch_compile_backend, mode=arguments.torch_compile_mode)
    state.dynamo_plugin.backend = DynamoBackend.NO
    if plugin.backend == DynamoBackend.NO:
        return None
    given: dict[str, Any] = plugin.to_kwargs()
    given.pop("use_regional_compilation", None)
    return given


@contextmanager
def compiled_layers(model: UnimodalARForGeneration, options: dict[str, Any] | None) -> Iterator[None]:
    """While it lasts the layers of the body are compiled, each in its place, so that names and classes stay.

    Args:
        options: of torch.compile; None: they are not compiled.

    Raises:
        ValueError: the body has no layers of the kind that is repeated.
    """
    body = model.backbone.model
    layers = [] if options is None else [x for x in body.modules() if isinstance(x, GradientCheckpointingLayer)]
    if options is not None and not layers:
        raise ValueError(
            f"torch_compile is on; it must be off for a {type(body).__name__}, which has no GradientCheckpointingLayer"
        )
    for layer in layers:
        layer.compile(**(options or {}))
    try:
        yield
    finally:
        for layer in layers:
            layer._compiled_call_impl = None
