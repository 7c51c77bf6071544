"""transformers' Trainer, told how to count the items of a batch of segments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from transformers import ProgressCallback, Trainer

from .. import lora
from ..modeling import UnimodalARForGeneration
from ..noise import seeded
from ..segment import Segment, collate


def collate_segments(examples: Sequence[Sequence[Segment]]) -> dict[str, Any]:
    """Examples (sequences of segments) -> the model's batch."""
    return {"segments": collate(examples)}


class Progress(ProgressCallback):
    """The Trainer's progress bar, with one readable line per log and no second bar for evaluation."""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        shown = ("loss", "eval_loss", "learning_rate", "grad_norm")
        values = {k: float(v) for k, v in (logs or {}).items() if k in shown or k.startswith("loss_")}
        bar: Any = self.training_bar
        if state.is_world_process_zero and bar is not None and values:
            line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
            bar.write(f"epoch {state.epoch:.2f}  step {state.global_step}  {line}")

    def on_prediction_step(self, *args: Any, **kwargs: Any) -> None:
        pass


class UnimodalARTrainer(Trainer):
    """The Trainer for models of segments.

    The loss of an optimiser step is its summed element losses divided by its number of predicted elements, however it
    is cut into micro-batches and processes. `loss_<modality>` is logged beside `loss`: the mean over all elements since
    the last log.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{"data_collator": collate_segments, **kwargs})
        if self.args.remove_unused_columns:
            raise ValueError("remove_unused_columns is True; segments are not columns, so it must be False")
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._evaluated: list[torch.Tensor] = []  # summed loss and number of elements of each batch
        if not self.args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.add_callback(Progress)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device) -> tuple[list, Any]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batches:
            return batches, None
        model: UnimodalARForGeneration = self.accelerator.unwrap_model(self.model)
        count = torch.stack([model.count_items(batch["segments"]).to(device) for batch in batches]).sum()
        if self.args.average_tokens_across_devices and self.args.world_size > 1:
            count = self.accelerator.gather(count).sum()
        return batches, count

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

    def prediction_step(
        self, model: Any, inputs: dict[str, Any], prediction_loss_only: bool, ignore_keys: list[str] | None = None
    ) -> tuple[torch.Tensor, None, None]:
        """The batch's loss; samples and likelihoods are evaluated elsewhere. (The base class looks for labels.)"""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach()
        items = self.accelerator.unwrap_model(model).count_items(inputs["segments"])
        self._evaluated.append(torch.stack([loss.float() * items, items.float()]))
        return loss, None, None

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
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

    def _load_layers(self, folder: Any) -> bool:
        """Whether it loads what a model with layers of PEFT wrote to a checkpoint: not a model.safetensors, where
        the base class would look. FSDP and DeepSpeed have formats of their own."""
        model = self.accelerator.unwrap_model(self.model)
        if getattr(model, "peft_layers", None) is None or self.is_fsdp_enabled or self.is_deepspeed_enabled:
            return False
        lora.load(model, folder)
        return True

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._sums:
            means = {name: (total / self._counts[name].clamp(min=1e-12)).item() for name, total in self._sums.items()}
            logs |= {f"loss_{name}": round(mean, 4) for name, mean in means.items()}
            self._sums, self._counts = {}, {}
        super().log(logs, *args, **kwargs)
