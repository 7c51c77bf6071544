"""What to say of a training step that is not finite: where it began, and with which examples.

Nothing is looked for before a step has failed. Then its micro-batch is run once more, with the random numbers of then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .draws import EXAMPLES

_TOLD = 16  # examples that are listed


class MicroBatch:
    """What was given to a pass forward and backward, and what torch would draw in it.

    Attributes:
        inputs: of the model.
        items: num_items_in_batch.
        examples: their indices in the training data, one for each row of the batch; None: unknown.
        loss: what came of it.
    """

    def __init__(self, inputs: dict[str, Any], items: Any, device: torch.device) -> None:
        self.examples: list[Any] | None = inputs.pop(EXAMPLES, None)
        self.inputs, self.items, self.device = inputs, items, device
        self.loss: Any = None
        self._cpu = torch.get_rng_state()
        self._device = None if device.type == "cpu" else torch.get_device_module(device).get_rng_state()

    @property
    def size(self) -> int:
        return self.inputs["segments"][0].batch_size

    def draw_again(self) -> None:
        """torch's generators as they were."""
        torch.set_rng_state(self._cpu)
        if self._device is not None:
            torch.get_device_module(self.device).set_rng_state(self._device)


@dataclass(frozen=True)
class Fault:
    """Where something that is not finite comes from, and the rows of the micro-batch in which it is."""

    where: str
    rows: list[int]  # none: it cannot be told which


def check(trainer: Any, batches: Sequence[MicroBatch], norm: Any) -> None:
    """Looks at the losses and the norm of the gradients of an optimiser step that is about to be taken: the device is
    waited for once.

    Args:
        trainer: a `UnimodalARTrainer`.
        batches: of the step.
        norm: of the gradients; None: not to be looked at.

    Raises:
        ValueError: one of them is not finite.
    """
    whole = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # FSDP2's is in shards
    values = [batch.loss for batch in batches] + ([] if norm is None else [whole])
    numbers = torch.stack([torch.as_tensor(x, device=trainer.args.device).float() for x in values])
    if bool(numbers.isfinite().all()):
        return
    *losses, last = numbers.tolist() if norm is not None else [*numbers.tolist(), 0.0]
    wrong = [n for n, loss in enumerate(losses) if not _finite(loss)]
    told = f"the loss is {losses[wrong[0]]}" if wrong else f"the norm of the gradients is {last}"
    start = f"training diverged: in step {trainer.state.global_step + 1} {told}"
    if trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled:
        searched, rows = "where it comes from is not searched under FSDP and DeepSpeed", None
        batch = batches[wrong[0]] if wrong else None
    else:
        batch, fault = _search(trainer, [batches[n] for n in wrong] or batches, backward=not wrong)
        rows = None if fault is None else fault.rows
        searched = "no micro-batch of this process shows it by itself" if fault is None else f"first in {fault.where}"
    raise ValueError(
        f"{start}; {searched}{_examples(batch, rows, trainer.args)}; no step was taken: look at these examples, lower "
        "training.learning_rate, or go on from a checkpoint"
    )


def _search(trainer: Any, batches: Sequence[MicroBatch], backward: bool) -> tuple[MicroBatch | None, Fault | None]:
    """The first of `batches` that has a fault, and it."""
    model = trainer.accelerator.unwrap_model(trainer.model)  # alone: other processes may have nothing to look for
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            return None, Fault(f"the parameter {name!r}", [])
    with torch.compiler.set_stance("force_eager"):
        for batch in batches:
            fault = _backward_fault(trainer, model, batch) if backward else _forward_fault(trainer, model, batch)
            if fault is not None:
                return batch, fault
    return None, None


def _forward_fault(trainer: Any, model: nn.Module, batch: MicroBatch) -> Fault | None:
    found: list[str] = []

    def look(name: str, inputs: Any, output: Any) -> None:
        if not found and any(not x.isfinite().all() for x in _tensors(output)):
            whole = all(x.isfinite().all() for x in _tensors(inputs))
            found.append(f"the output of {name!r}" if whole else f"what is given to {name!r}")

    with torch.no_grad(), _watched(model, look):
        loss, outputs = _again(trainer, model, batch)
    losses = outputs["element_losses"]
    if not found and loss.isfinite():
        return None
    rows = sorted({row for x in losses.values() for row in (~x.isfinite()).any(1).nonzero().flatten().tolist()})
    named = [name for name, x in losses.items() if not x.isfinite().all()]
    return Fault(found[0] if found else f"the loss of {(named or list(losses))[0]!r}", rows)


def _backward_fault(trainer: Any, model: nn.Module, batch: MicroBatch) -> Fault | None:
    found: list[str] = []
    rows: list[int] = []

    def look(name: str, of_rows: bool) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            wrong = ~gradient.isfinite()
            if wrong.any():
                found.append(f"the gradient of {name}")
                if of_rows and not rows:  # later ones have mixed them
                    rows.extend(wrong.flatten(1).any(1).nonzero().flatten().tolist())

        return hook

    def follow(name: str, inputs: Any, output: Any) -> None:
        for x in _tensors(output):
            if x.requires_grad:
                x.register_hook(look(f"the output of {name!r}", x.dim() > 1 and len(x) == batch.size))

    hooks = [
        parameter.register_hook(look(f"the parameter {name!r}", False))
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    ]
    with _watched(model, follow):
        _again(trainer, model, batch)[0].backward()
    for handle in hooks:
        handle.remove()
    return Fault(found[0], rows) if found else None


def _again(trainer: Any, model: nn.Module, batch: MicroBatch) -> tuple[Tensor, Any]:
    """Loss and outputs of the pass that was."""
    batch.draw_again()
    inputs = trainer._prepare_inputs(dict(batch.inputs))
    with trainer.compute_loss_context_manager():
        return trainer.compute_loss(model, inputs, True, batch.items)


@contextmanager
def _watched(model: nn.Module, look: Callable[[str, Any, Any], None]) -> Iterator[None]:
    """Shows `look` the name, inputs and output of every module that is run."""

    def hook(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs, output: look(name, (args, kwargs), output)

    hooks = [x.register_forward_hook(hook(name), with_kwargs=True) for name, x in model.named_modules() if name]
    try:
        yield
    finally:
        for handle in hooks:
            handle.remove()


def _tensors(given: Any) -> Iterator[Tensor]:
    """The floating-point tensors in arguments or outputs."""
    if isinstance(given, Tensor):
        if given.is_floating_point():
            yield given
    elif isinstance(given, Mapping):
        for value in given.values():
            yield from _tensors(value)
    elif isinstance(given, (list, tuple)):
        for value in given:
            yield from _tensors(value)
    elif is_dataclass(given):
        for field in fields(given):
            yield from _tensors(getattr(given, field.name))


def _examples(batch: MicroBatch | None, rows: Sequence[int] | None, arguments: Any) -> str:
    """The end of a sentence that names the examples of a batch, or some of them."""
    if batch is None or batch.examples is None:
        return ""
    chosen = [batch.examples[row] for row in rows or range(batch.size)]
    indices = [index[0] if isinstance(index, tuple) else index for index in chosen]
    listed = ", ".join(map(str, indices[:_TOLD])) + (f" and {len(indices) - _TOLD} more" if indices[_TOLD:] else "")
    of = f", in process {arguments.process_index} of {arguments.world_size}" if arguments.world_size > 1 else ""
    return f", with the examples {listed} of the training data{of}"


def _finite(number: float) -> bool:
    return abs(number) < float("inf")
