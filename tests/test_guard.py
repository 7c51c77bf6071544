"""The guard: a step that is not finite is not taken, and what is said of it is where it began."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import TrainingArguments

from tests.helpers import build, codes, diffusion, series
from unimodal_ar import Segment
from unimodal_ar.training import EMA, UnimodalARTrainer

LAYER = "backbone.model.layers.1.mlp"
BAD = 5  # the index of the example that something is wrong with
END = "; no step was taken: look at these examples, lower training.learning_rate, or go on from a checkpoint"


def _examples(count: int = 12) -> list[list[Segment]]:
    """Each has its index as its very first value."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, 1, 6, 3, generator=generator)
    values[:, 0, 0, 0] = torch.arange(count)
    return [[Segment("x", x, (6, 1, 1))] for x in values]


def _trainer(model: Any, folder: Path, examples: Any = None, ema: EMA | None = None, **changes: Any) -> Any:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 6,
        "learning_rate": 1e-3,
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 1,
        **changes,
    }
    return UnimodalARTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=_examples() if examples is None else examples,
        ema=ema,
    )


def _model(**more: Any) -> Any:
    return build({"x": series()}, spread=0.1, **more)


def _message(trainer: Any) -> str:
    with pytest.raises(ValueError, match=r"^training diverged: in step") as caught:
        trainer.train()
    message = str(caught.value)
    del caught  # or workers live on, in a circle with this frame, and are waited for at some later time
    return message


def _rows_of(model: Any, index: int) -> Callable[[], Tensor]:
    """[B, 1, 1] bool: which rows of the batch that is run now are the example `index`."""
    batch: list[Tensor] = []

    def see(module: Any, args: Any, kwargs: Any) -> None:
        batch[:] = [(kwargs or {}).get("segments", args and args[0])[0].values]

    model.register_forward_pre_hook(see, with_kwargs=True)
    return lambda: batch[0][:, :1, :1] == index


def _after(model: Any, name: str, change: Callable[[Tensor], Tensor]) -> None:
    """Changes what a module returns, as a part of it."""
    module = model.get_submodule(name)
    forward = module.forward
    module.forward = lambda *args, **kwargs: change(forward(*args, **kwargs))


class _BadGradient(torch.autograd.Function):
    """The identity, whose gradient is infinite in some rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor) -> Tensor:
        ctx.save_for_backward(rows)
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grad: Any) -> Any:
        (rows,) = ctx.saved_tensors
        return grad[0].masked_fill(rows, torch.inf), None


@pytest.mark.parametrize(("batch", "accumulation", "workers"), [(4, 1, 0), (2, 3, 0), (4, 1, 1)])
def test_the_module_and_the_example_are_named(batch: int, accumulation: int, workers: int, tmp_path: Path) -> None:
    """In whichever micro-batch of the step it is, and whoever reads the data."""
    model = _model()
    rows = _rows_of(model, BAD)
    _after(model, LAYER, lambda x: x.masked_fill(rows(), torch.nan))
    cut: dict[str, Any] = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    message = _message(_trainer(model, tmp_path, dataloader_num_workers=workers, **cut))
    assert message.endswith(f"first in the output of '{LAYER}', with the examples {BAD} of the training data{END}")
    assert "the loss is nan" in message


def test_the_order_of_execution_counts(tmp_path: Path) -> None:
    """Of two modules it is the one that runs first, wherever the model keeps it."""
    model = _model()
    for name in ("backbone.model.layers.0.self_attn", LAYER):
        _after(model, name, lambda x: x + torch.inf if isinstance(x, Tensor) else (x[0] + torch.inf, *x[1:]))
    assert "first in the output of 'backbone.model.layers.0.self_attn', " in _message(_trainer(model, tmp_path))


def test_what_comes_about_between_modules(tmp_path: Path) -> None:
    """Then the module that is given it is named."""
    model = _model()
    rows, embedding = _rows_of(model, BAD), model.embeddings["x"]
    inputs = embedding.inputs

    def spoilt(*given: Any, **named: Any) -> Any:
        first, *others = inputs(*given, **named)
        return first.masked_fill(rows(), torch.nan), *others

    embedding.inputs = spoilt
    message = _message(_trainer(model, tmp_path))
    assert "; first in what is given to 'backbone" in message and f"with the examples {BAD} of the" in message


def test_values_that_overflow(tmp_path: Path) -> None:
    """Finite data for which the model is not made: the first map already gives what is not finite."""
    examples = _examples()
    examples[BAD][0] = Segment("x", torch.full((1, 6, 3), 3e38), (6, 1, 1))
    model = _model()
    with torch.no_grad():
        for weight in model.embeddings.parameters():
            weight.mul_(1000)
    message = _message(_trainer(model, tmp_path, examples))
    assert "first in the output of 'embeddings.x." in message and f"examples {BAD} of the" in message


def test_a_parameter_that_is_not_finite(tmp_path: Path) -> None:
    """Then no example is to blame."""
    model = _model()
    with torch.no_grad():
        model.get_parameter(f"{LAYER}.down_proj.weight")[0, 0] = torch.inf
    message = _message(_trainer(model, tmp_path))
    assert message.startswith("training diverged: in step 1 the loss is ")
    assert f"; first in the parameter '{LAYER}.down_proj.weight'{END}" in message


def test_a_loss_that_is_not_finite_by_itself(tmp_path: Path) -> None:
    model = _model()
    rows, head = _rows_of(model, BAD), model.heads["x"]
    loss = head.loss
    head.loss = lambda *given: loss(*given).masked_fill(rows()[:, :, 0], torch.inf)
    message = _message(_trainer(model, tmp_path))
    assert "the loss is inf; first in the loss of 'x', with the examples 5 of the training data" in message


@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_gradient_that_is_not_finite(checkpointing: bool, tmp_path: Path) -> None:
    """Of a finite loss. Nothing is changed by the step, and no average takes it in."""
    model, ema = _model(), EMA()
    rows = _rows_of(model, BAD)
    _after(model, LAYER, lambda x: _BadGradient.apply(x, rows()))  # type: ignore[no-untyped-call]
    cut: dict[str, Any] = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 6}
    trainer = _trainer(model, tmp_path, ema=ema, gradient_checkpointing=checkpointing, **cut)
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    message = _message(trainer)
    assert "in step 1 the norm of the gradients is " in message
    assert f"; first in the gradient of the output of '{LAYER}.down_proj', with the examples 5 of " in message
    assert all(torch.equal(x, before[name]) for name, x in model.named_parameters()) and ema.updates == 0


def test_the_same_random_numbers_are_drawn(tmp_path: Path) -> None:
    """A fault that only some draws bring about is found: dropout, and which elements are masked."""
    model = build({"x": codes(grid=(8, 1, 1), block=8, **diffusion("mask"))}, spread=0.1, dropout=0.2)
    generator = torch.Generator().manual_seed(0)
    examples = [[Segment("x", torch.randint(3, (1, 8), generator=generator), (8, 1, 1))] for _ in range(64)]
    drawn: list[float] = []

    def sometimes(x: Tensor) -> Tensor:
        drawn.append(float(torch.rand(())))
        return x * torch.nan if drawn[-1] < 0.1 else x

    _after(model, LAYER, sometimes)
    message = _message(_trainer(model, tmp_path, examples, max_steps=60))
    assert drawn[-1] == drawn[-2] and len(drawn) > 3 and f"first in the output of '{LAYER}', " in message


def test_a_sum_that_is_not_finite_has_no_place(tmp_path: Path) -> None:
    """Each micro-batch is finite here, and their sum is not."""
    model = _model()
    (name, parameter), *_ = model.named_parameters()
    parameter.register_hook(lambda grad: torch.full_like(grad, 3e38))
    message = _message(_trainer(model, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=6))
    assert "; no micro-batch of this process shows it by itself; no step was taken: " in message, name


def test_a_scaler_may_overflow(tmp_path: Path) -> None:
    """float16's gradients are not looked at; its losses are."""
    model = _model()
    rows = _rows_of(model, BAD)
    _after(model, LAYER, lambda x: _BadGradient.apply(x, rows()))  # type: ignore[no-untyped-call]
    trainer = _trainer(model, tmp_path, max_steps=1, per_device_train_batch_size=12)
    trainer.accelerator.scaler = torch.amp.GradScaler("cpu", enabled=False)
    trainer.train()
    assert trainer.state.global_step == 1
    with pytest.raises(ValueError, match="in step 1 the loss is nan"):
        trainer.train()


def test_a_stream_has_no_indices(tmp_path: Path) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Any:
            return iter(_examples())

    model = _model()
    rows = _rows_of(model, BAD)
    _after(model, LAYER, lambda x: x.masked_fill(rows(), torch.nan))
    assert f"first in the output of '{LAYER}'{END}" in _message(
        _trainer(model, tmp_path, Stream(), accelerator_config={"dispatch_batches": False})
    )


def test_many_examples_are_not_all_listed(tmp_path: Path) -> None:
    model = _model()
    _after(model, LAYER, lambda x: x * torch.nan)
    message = _message(_trainer(model, tmp_path, _examples(40), per_device_train_batch_size=40))
    assert " and 24 more of the training data" in message
