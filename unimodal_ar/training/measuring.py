"""Models measured as they are trained: what a micro-batch keeps and computes, and what a step takes.

Shapes: B examples of a micro-batch.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from ..configuration import UnimodalARConfig
from ..modeling import UnimodalARForGeneration
from ..segment import Segment, collate
from .ema import EMA
from .memory import PeakMemory, count_flops, kept_memory
from .trainer import UnimodalARTrainer


@dataclass(frozen=True)
class Measured:
    """What a micro-batch takes.

    Attributes:
        kept: bytes that autograd keeps for the backward pass.
        flops: of forward and backward pass.
        positions: of the backbone, of one example.
        noisy: as many of them hold noisy copies.
    """

    kept: int
    flops: int
    positions: int
    noisy: int

    def beyond(self, smaller: Measured, times: int) -> Measured:
        """What is `times` times as far from `smaller` as this is: both grow linearly from here to there."""
        kept, flops = (a + (b - a) * times for a, b in ((smaller.kept, self.kept), (smaller.flops, self.flops)))
        return Measured(kept, flops, self.positions, self.noisy)


class MadeUp(Dataset):
    """Examples of chance that fit a configuration: a segment of each of `modalities`, a target if it has a head."""

    def __init__(self, config: UnimodalARConfig, modalities: Sequence[str]) -> None:
        self.config, self.modalities = config, list(modalities)

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> list[Segment]:
        return [self._segment(name) for name in self.modalities]

    def collate(self, items: Sequence[Any]) -> dict[str, Any]:
        return {"segments": collate(items)}

    def _segment(self, name: str) -> Segment:
        options: Any = self.config.modality(name)
        t, h, w = options.grid
        n, element = t * h * w, options.element
        if element.kind == "discrete":
            values = torch.randint(element.vocab_size, (1, n, element.codes) if element.codes > 1 else (1, n))
        else:
            values = torch.randn(1, n, element.dim)
        covariates = torch.randn(1, n, options.covariates) if options.covariates else None
        return Segment(name, values, options.grid, target=options.head is not None, covariates=covariates)


class Repeated(Dataset):
    """The first `count` examples of `data`, over and over where it has fewer."""

    def __init__(self, data: Any, count: int) -> None:
        self.data, self.count, self.collate = data, count, data.collate

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.data[index % len(self.data)]


def measure(model: UnimodalARForGeneration, data: Any, size: int, arguments: TrainingArguments) -> Measured:
    """The first `size` examples of `data` as a micro-batch of a training with these arguments."""
    if arguments.gradient_checkpointing:
        _checkpoint(model, arguments.gradient_checkpointing_kwargs)
    model.to(arguments.device).train()  # type: ignore[arg-type]  # transformers' signature hides torch's
    examples = Repeated(data, size)
    segments = [x.to(arguments.device) for x in data.collate([examples[i] for i in range(size)])["segments"]]
    seen: list[Any] = []

    def forward() -> Tensor:
        with _autocast(arguments):
            return model(segments).loss

    handle = model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].pattern))
    kept = kept_memory(forward, chain(model.parameters(), model.buffers()))
    handle.remove()
    flops = count_flops(lambda: forward().backward())  # type: ignore[no-untyped-call]
    model.zero_grad()
    noisy = 0 if seen[0].noisy is None else int(seen[0].noisy.sum())
    return Measured(kept, flops, seen[0].queries, noisy)


def measure_shortened(
    config: UnimodalARConfig,
    build: Callable[[UnimodalARConfig], UnimodalARForGeneration],
    run: Callable[[UnimodalARForGeneration], Measured],
) -> Measured | None:
    """What `run` measures of a model of `config`, from two that have one of its layers and two; None where its layers
    are not of one size.

    Args:
        build: makes a model of a configuration.
    """
    layers = config.backbone.get_text_config().num_hidden_layers
    if layers <= 2:
        return run(build(_shortened(config, layers)))
    with torch.device("meta"):
        one, two, whole = (_size(build(_shortened(config, n))) for n in (1, 2, layers))
    if whole != one + (two - one) * (layers - 1):
        return None
    first, second = (run(build(_shortened(config, n))) for n in (1, 2))
    return second.beyond(first, layers - 1)


def _shortened(config: UnimodalARConfig, layers: int) -> UnimodalARConfig:
    """The same with the first `layers` of the backbone's layers only, and without its table of tokens."""
    body = copy.deepcopy(config.backbone)
    text = body.get_text_config()
    text.num_hidden_layers = layers
    if vars(text).get("layer_types"):  # a field; others make them of the number of layers
        text.layer_types = text.layer_types[:layers]
    if hasattr(text, "vocab_size"):
        text.vocab_size, text.pad_token_id = 1, None
    short = copy.deepcopy(config)
    short.backbone = body
    return short


def _size(model: UnimodalARForGeneration) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def timed_step(
    model: UnimodalARForGeneration,
    data: Any,
    size: int,
    micro_batches: int,
    arguments: TrainingArguments,
    ema: EMA | None,
) -> tuple[float, int, int]:
    """Seconds of an optimiser step of so many micro-batches of `size` examples, bytes that it takes at its highest
    above weights, optimiser's state and average, and bytes of that state. `arguments` are of a training of `STEPS`
    steps."""
    watch = _Watch(arguments.device)
    trainer = UnimodalARTrainer(
        model=model,
        args=arguments,
        train_dataset=Repeated(data, STEPS * micro_batches * size),
        data_collator=data.collate,
        callbacks=[watch],
        ema=ema,
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    states: Any = trainer.optimizer.state.values()  # type: ignore[union-attr]  # of a training it is there
    return watch.seconds, watch.memory.bytes, sum(map(state_bytes, states))


def state_bytes(state: dict[str, Any]) -> int:
    """Of what an optimiser keeps for a parameter."""
    return sum(value.nbytes for value in state.values() if isinstance(value, Tensor))


STEPS = 3  # the first makes the optimiser's state, the second is timed, the third is watched, which makes it slower


class _Watch(TrainerCallback):
    def __init__(self, device: torch.device) -> None:
        self.device, self.memory, self.seconds = device, PeakMemory(device), 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == STEPS - 1:
            self.memory.__enter__()
        self._begun = self._now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == STEPS - 1:
            self.seconds = self._now() - self._begun
        if state.global_step == STEPS:
            self.memory.__exit__(None, None, None)

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _checkpoint(model: Any, options: Any) -> None:
    """As the Trainer does it, by the newer of two names where transformers has it."""
    options = dict(options or {})
    apart = {key: options.pop(key) for key in ("every_n_layers", "offload") if key in options}
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    getattr(model, f"{name}_checkpointing_enable")(options or None, **apart)


def _autocast(arguments: TrainingArguments) -> AbstractContextManager[Any]:
    if not (arguments.bf16 or arguments.fp16):
        return nullcontext()
    return torch.autocast(arguments.device.type, torch.bfloat16 if arguments.bf16 else torch.float16)
