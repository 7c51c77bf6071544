"""transformers' Trainer, told how to count the items of a batch of segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, cast

import torch
from torch.utils.data import IterableDataset
from transformers import ProgressCallback, TrainerCallback

from .. import lora
from ..modeling import UnimodalARForGeneration
from ..noise import seeded
from ..segment import Segment, collate
from . import compiling, guard, sharding
from .ema import EMA
from .resumable import ResumableTrainer


def collate_segments(examples: Sequence[Sequence[Segment]]) -> dict[str, Any]:
    """Examples (sequences of segments) -> the model's batch."""
    return {"segments": collate(examples)}


class Progress(ProgressCallback):
    """The Trainer's progress bar, with one readable line per log and no second bar for evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shown = ("loss", "eval_loss", "eval_loss_without_ema", "learning_rate", "grad_norm")
        values = {k: float(v) for k, v in (logs or {}).items() if k in shown or k.startswith("loss_")}
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None and values:
            line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            bar.write(f"epoch {state.epoch:.2f}  step {state.global_step}  {line}")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Average(TrainerCallback):
    """Lets the average take in every step that was taken."""

    def __init__(self, ema: EMA, accelerator: Any) -> None:
        self.ema, self.accelerator = ema, accelerator

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        if not self.accelerator.optimizer_step_was_skipped:  # as float16's scaler does after an overflow
            self.ema.update()


class UnimodalARTrainer(ResumableTrainer):
    """The Trainer for models of segments.

    The loss of an optimiser step is its summed element losses divided by its number of predicted elements, however it
    is cut into micro-batches and processes. `loss_<modality>` is logged beside `loss`: the mean over all elements since
    the last log.

    A step whose loss or gradient is not finite is not taken: training ends in a ValueError that says where and in which
    examples that began. (Gradients are not looked at under float16, whose scaler tries out which overflow.)

    Args:
        ema: the average of the weights that is judged, and left in the model when training ends; `ema.raw()` has those
            of the last, or best, step instead. The best model is that of the best average. None: no average.
        kwargs: as transformers'.

    Raises:
        ValueError: arguments that do not go with segments; an average with DeepSpeed; in several processes a body that
            skips layers.
    """

    def __init__(self, ema: EMA | None = None, **kwargs: Any) -> None:
        super().__init__(**{"data_collator": collate_segments, **kwargs})
        if self.args.remove_unused_columns:
            raise ValueError("remove_unused_columns is True; segments are not columns, so it must be False")
        sharding.check_layers(self.args.world_size, self.accelerator.unwrap_model(self.model).config)
        self._evaluated: list[torch.Tensor] = []  # summed loss and number of elements of each batch
        self._micro_batches: list[guard.MicroBatch] = []  # of the optimiser step under way
        self.ema = ema
        if ema is not None:
            if self.is_deepspeed_enabled:
                raise ValueError(
                    "ema is not to be had under DeepSpeed, which keeps the weights to itself; train with DDP or FSDP2, "
                    "or leave ema out"
                )
            self.add_callback(_Average(ema, self.accelerator))
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._micro_batches = []
        if not batches:
            return batches, None
        batches[-1] = batches[-1] | {"segments": self._without_repeated(batches[-1]["segments"])}
        model: UnimodalARForGeneration = self.accelerator.unwrap_model(self.model)
        count = torch.stack([model.count_items(batch["segments"]).to(device) for batch in batches]).sum()
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

    def _without_repeated(self, segments: list[Segment]) -> list[Segment]:
        """Of a batch that was just taken, what was not taken before: where the examples run out, accelerate fills the
        last batches of all processes with some of the first, which would count twice."""
        state, size = self.accelerator.gradient_state, segments[0].batch_size
        if self.accelerator.num_processes == 1 or not state.end_of_dataloader or state.active_dataloader._drop_last:
            return segments
        if isinstance(state.active_dataloader.dataset, IterableDataset):  # nobody knows how long it is
            return segments
        # (accelerate's own `remainder` is unknown in an epoch that is gone on with.)
        remainder = len(state.active_dataloader.dataset) % (size * self.accelerator.num_processes)
        if not remainder:
            return segments
        new = remainder - self.accelerator.process_index * size
        if new > 0:
            return segments if new >= size else [segment.select(torch.arange(new)) for segment in segments]
        # The others wait for this process's gradients, which are those of an example of which nothing is known.
        segments = [segment.select(torch.arange(1)) for segment in segments]
        unknown = [torch.zeros_like(segment.element_observed) for segment in segments]
        return [x.replace(observed=nothing) if x.target else x for x, nothing in zip(segments, unknown, strict=True)]

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        if model.training:
            count = self.accelerator.unwrap_model(model).count_items
            for name, mean in outputs["losses"].items():
                items = count([segment for segment in inputs["segments"] if segment.modality == name])
                nothing = torch.zeros_like(mean)
                self._sums[name] = self._sums.get(name, nothing) + mean * items
                self._counts[name] = self._counts.get(name, nothing) + items
        return (loss, outputs) if return_outputs else loss

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> torch.Tensor:
        self._micro_batches.append(guard.MicroBatch(inputs, num_items_in_batch, self.args.device))
        self._micro_batches[-1].loss = loss = super().training_step(model, inputs, num_items_in_batch)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        guard.check(self, self._micro_batches, None if self.accelerator.scaler is not None else norm)
        return norm

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[None, None, None]:
        """Adds the batch's loss; samples and likelihoods are evaluated elsewhere. (The base class looks for labels.)"""
        processes, number = self.accelerator.num_processes, len(self._evaluated)
        torch.manual_seed(number * processes + self.accelerator.process_index)  # the batch's noise, whoever has it
        inputs = self._prepare_inputs(inputs | {"segments": self._without_repeated(inputs["segments"])})
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        items = self.accelerator.unwrap_model(model).count_items(inputs["segments"])
        self._evaluated.append(torch.stack([loss.float() * items, items.float()]))
        return None, None, None  # the loss is told by `evaluation_loop`

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """With the averaged weights, where there are any; the loss with the others is told beside."""
        if self.ema is None or not self.ema.started:
            return self._exact_loop(*args, **kwargs)
        with self.ema.raw():
            raw = self._exact_loop(*args, **kwargs)
        with self.ema.averaged():
            output = self._exact_loop(*args, **kwargs)
        key = f"{kwargs.get('metric_key_prefix', 'eval')}_loss"
        if key in raw.metrics:
            output.metrics[f"{key}_without_ema"] = raw.metrics[key]
        return output

    def _exact_loop(self, *args: Any, **kwargs: Any) -> Any:
        """The base class's, with the exact loss: its mean of batch means depends on how the batches are cut.

        Noise is the same in every evaluation, so that losses of different epochs can be compared, and training draws
        what it would have drawn without."""
        self._evaluated = []
        with seeded(0, self.args.device):
            output = super().evaluation_loop(*args, **kwargs)
        if self._evaluated:
            loss, items = self.accelerator.gather(torch.stack(self._evaluated).sum(0)[None]).sum(0)
            metrics: Any = output.metrics
            metrics[f"{kwargs.get('metric_key_prefix', 'eval')}_loss"] = (loss / items).item()
        return output

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """6 x parameters x elements. (The base class counts the elements of a single input tensor.)"""
        elements = sum(segment.batch_size * segment.num_elements for segment in inputs["segments"])
        return 6 * elements * self.accelerator.unwrap_model(self.model).num_parameters(exclude_embeddings=True)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        if not self._load_layers(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        if not self._load_layers(self.state.best_model_checkpoint):
            super()._load_best_model()
        if self.ema is not None:
            self.ema.load(str(self.state.best_model_checkpoint))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The model as it is. A checkpoint holds the average beside: training goes on from both."""
        super().save_model(output_dir, _internal_call)
        if self.ema is not None and _internal_call:
            self.ema.save(str(output_dir), write=self.args.should_save)

    def _load_layers(self, folder: Any) -> bool:
        """Whether it loads what a model with layers of PEFT wrote to a checkpoint: not a model.safetensors, where
        the base class would look. FSDP and DeepSpeed have formats of their own."""
        model = self.accelerator.unwrap_model(self.model)
        if getattr(model, "peft_layers", None) is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        lora.load(model, folder)
        return True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs:
            for name, mean in self._means().items():
                logs[f"loss_{name}"] = mean
        super().log(logs, *args, **kwargs)

    def _means(self) -> dict[str, float]:
        """By modality, the mean loss of its elements in all processes since this was last asked."""
        names = list(self.accelerator.unwrap_model(self.model).heads)
        nothing = torch.zeros((), device=self.args.device)
        parts = [[part.get(name, nothing).float() for name in names] for part in (self._sums, self._counts)]
        self._sums, self._counts = {}, {}
        totals, counts = self.accelerator.reduce(torch.stack([torch.stack(part) for part in parts]), "sum").tolist()
        return {name: total / n for name, total, n in zip(names, totals, counts, strict=True) if n}

    def gathered_state(self) -> dict[str, torch.Tensor] | None:
        """The weights, whole in the main process, where FSDP or DeepSpeed has them in pieces; None: every process has
        all of them in its model. All processes must ask."""
        if not (self.is_fsdp_enabled or self.is_deepspeed_enabled):
            return None
        return cast("dict[str, torch.Tensor]", self.accelerator.get_state_dict(self.model_wrapped))

    def create_accelerator_and_postprocess(self) -> None:
        accelerate: Any = self.args.accelerator_config
        if accelerate.dispatch_batches is None:  # batches of a stream are dispatched by default, but no segments can be
            accelerate.dispatch_batches = False
        fsdp = sharding.wanted(self.args)
        with sharding.also_on_cpu() if fsdp else nullcontext():
            super().create_accelerator_and_postprocess()
        sharding.check(self.accelerator.state, fsdp)
        self._compiling = compiling.taken_over(self.args, self.accelerator.state)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        with compiling.compiled_layers(self.accelerator.unwrap_model(self.model), self._compiling):
            return super().train(*args, **kwargs)

    def _prepare_for_training(self, max_steps: int, train_dataloader: Any, resume_from_checkpoint: Any) -> Any:
        model = self.accelerator.unwrap_model(self.model)
        with sharding.as_one_group(model) if self.is_fsdp_enabled else nullcontext():
            prepared = super()._prepare_for_training(max_steps, train_dataloader, resume_from_checkpoint)
        if self.ema is not None:
            self.ema.start(self.accelerator.unwrap_model(self.model))
            if resume_from_checkpoint is not None:
                self.ema.load(resume_from_checkpoint)
        return prepared

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        output = super()._finalize_training(*args, **kwargs)
        if self.ema is not None:
            self.ema.apply()
        return output
