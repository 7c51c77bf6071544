"""transformers' Trainer, made to go on from a checkpoint as if it had never been interrupted."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils.data import IterableDataset
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, set_seed
from transformers.trainer_utils import rotate_checkpoints

from .. import ranks
from .checkpoints import contents, find_checkpoint, seal
from .draws import Drawn, Draws, SteadyWorker, as_it_is, derived, started_steadily
from .interruption import Interruption


class ResumableTrainer(Trainer):
    """A Trainer whose resumed trainings are equal, bit for bit on the CPU, to those that never stopped: weights,
    metrics and log.

    Whatever a data set draws for an example follows from (seed, epoch, place in the epoch), see `draws`. A checkpoint
    counts only if it is whole, see `checkpoints`; the one before is removed after that. Every process has a random
    stream of its own, the first one that of a training of one process.

    Attributes:
        recipe: what is noted in every checkpoint; None: nothing.
        interruption: what a SIGTERM does; None: it ends the process at once.
    """

    recipe: dict[str, Any] | None = None
    interruption: Interruption | None = None

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.device.type == "cpu":  # of several processes "cpu:0", to which torch reads no optimiser
            self.args._setup_devices = torch.device("cpu")
        self._draws: Draws | None = None
        self._sums: dict[str, torch.Tensor] = {}
        self._counts: dict[str, torch.Tensor] = {}
        self._resumed = False
        self._epoch_over = False
        self._save_owed = False
        self.add_callback(_Course(self))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As transformers'.

        Args:
            resume_from_checkpoint: a checkpoint's folder; True for the last whole one in `args.output_dir`; "auto" for
                the same, or for the beginning where there is none.

        Raises:
            ValueError: there is no such checkpoint, it is not whole, or the processes see different ones.
        """
        checkpoint = find_checkpoint(resume_from_checkpoint, Path(str(self.args.output_dir)))
        seen = ranks.gather(None if checkpoint is None else checkpoint.name)
        if len(set(seen)) > 1:
            raise ValueError(
                f"training.resume_from_checkpoint leads the processes to {seen}; they must see the same folder "
                f"{self.args.output_dir!r}"
            )
        output = super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
        last = Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}")
        saved = ranks.gather(contents(last) is not None)[0]  # as the first process sees it
        self._end_if_told(last if saved else None)
        return output

    # Data

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        strategy = self.args.train_sampling_strategy
        if not hasattr(train_dataset, "__len__") or strategy not in ("random", "sequential"):
            return super()._get_train_sampler(train_dataset)
        return Draws(len(train_dataset), self._data_seed, strategy == "random")

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _drawing(self, sampler_fn: Callable[[Any], Any] | None, training: bool, drawn: Drawn) -> Draws:
        sampler = None if sampler_fn is None else sampler_fn(drawn.examples)
        if isinstance(sampler, Draws):
            draws = sampler
        elif sampler is None or hasattr(sampler, "__len__"):  # a user's own, where a class derived from this makes it
            draws = Draws(len(drawn), self._data_seed, shuffle=False, order=sampler)
        else:
            raise ValueError(f"the sampler of the examples is a {type(sampler).__name__}; it must have a length")
        if training:
            self._draws = draws
        return draws

    def _get_dataloader(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
        """What is drawn for an evaluation is the same in each."""
        drawn, training = None, bool(kwargs.get("is_training"))
        if not isinstance(dataset, IterableDataset):
            dataset = drawn = Drawn(dataset, numbered=training)
            kwargs["sampler_fn"] = partial(self._drawing, kwargs.get("sampler_fn"), training)
        loader: Any = super()._get_dataloader(dataset, *args, **kwargs)
        base = getattr(loader, "base_dataloader", loader)
        if drawn is not None:
            drawn.collate, base.collate_fn = base.collate_fn, as_it_is
        if base.num_workers:
            base.worker_init_fn = SteadyWorker(base.worker_init_fn)
            base._get_iterator = partial(started_steadily, base._get_iterator)
        if base.persistent_workers:
            # Those of a training that goes on begin at another time, and would draw their seed from the model's stream.
            base.generator = torch.Generator().manual_seed(self.args.seed)
        return loader

    # Going on

    def _init_training_state(
        self, max_steps: int, steps_per_epoch: int, epochs: int, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial)
        self._resumed = resume_from_checkpoint is not None
        if resume_from_checkpoint is None:
            return place
        self._tell_differences(resume_from_checkpoint)
        if self.state.best_global_step:  # the folder may have been moved, or be seen from another one
            for parent in (self._get_output_dir(trial), os.path.dirname(resume_from_checkpoint)):
                best = os.path.join(parent, f"checkpoint-{self.state.best_global_step}")
                if os.path.isdir(best):
                    self.state.best_model_checkpoint = best
                    break
        over = self._patience_is_lost() or self.state.global_step >= max_steps
        return (epochs, 0) if over else place

    def _tell_differences(self, checkpoint: str) -> None:
        """Prints what keeps the training from being that of the checkpoint."""
        record = contents(checkpoint)
        assert record is not None, "train has looked"
        now = self._record()
        told = []
        if record["processes"] != now["processes"]:
            told.append(
                f"was saved by {record['processes']} processes and {now['processes']} go on, so that the model's noise "
                "is drawn anew"
            )
        if record["batch"] != now["batch"]:
            told.append(
                f"had taken steps of {record['batch']} examples, which are now {now['batch']}, so that the epoch goes "
                "on at another place"
            )
        if isinstance(self.train_dataset, IterableDataset):
            told.append(
                "is of a stream (IterableDataset), which is read from its beginning again, so that what it draws is "
                "drawn anew and earlier passes over it are not counted"
            )
        if told and self.is_world_process_zero():
            print(f"Not exact: {checkpoint} {', and '.join(told)}.")

    def _record(self) -> dict[str, Any]:
        args = self.args
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return {"processes": args.world_size, "batch": batch, "recipe": self.recipe}

    def _patience_is_lost(self) -> bool:
        """Restores what early stopping has counted, and says whether it had stopped the training."""
        lost, states = False, cast("dict[str, Any]", self.state.stateful_callbacks)
        for callback in self.callback_handler.callbacks:
            saved = states.get(type(callback).__name__)
            if isinstance(callback, EarlyStoppingCallback) and isinstance(saved, dict):
                counted = saved["attributes"]["early_stopping_patience_counter"]
                callback.early_stopping_patience_counter = counted
                lost |= counted >= callback.early_stopping_patience
        return lost

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """What the checkpoint holds of this process: its random streams, and what it has not logged yet."""
        if checkpoint is None:
            return
        record = contents(checkpoint)
        if record is not None and record["processes"] != self.args.world_size:
            set_seed(derived(self.args.seed, self.args.process_index, self.state.global_step) % 2**32)
            return
        super()._load_rng_state(checkpoint)
        unlogged = torch.load(self._unlogged(checkpoint), map_location=self.args.device.type, weights_only=True)
        self._tr_loss, self._globalstep_last_logged = unlogged["loss"], unlogged["step"]
        self._sums, self._counts = unlogged["sums"], unlogged["counts"]
        # The mean loss at the end is of this call's steps.
        self._total_loss_scalar -= self.accelerator.gather(self._tr_loss[None]).mean().item()

    # Saving

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        state = {"loss": self._tr_loss, "step": self._globalstep_last_logged}
        torch.save({**state, "sums": self._sums, "counts": self._counts}, self._unlogged(output_dir))

    def _unlogged(self, folder: str) -> str:
        return os.path.join(folder, f"unlogged_{self.args.process_index}.pth")

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        try:
            super()._maybe_log_save_evaluate(*args, **kwargs)
        except _OwedError:  # loggers are not to be told of a checkpoint that is not there
            self.control.should_save = False

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """The base class's, whole before the one before is removed. After an epoch's last step it waits for the end of
        the epoch, at which there may be an evaluation and a line of the log: who goes on is behind them."""
        last_of_epoch = float(self.state.epoch or 0).is_integer() or self.control.should_training_stop
        self._save_owed = last_of_epoch and not self._epoch_over
        if self._save_owed:
            raise _OwedError
        args, folder = self.args, Path(self._get_output_dir(trial), f"checkpoint-{self.state.global_step}")
        if args.should_save:
            shutil.rmtree(folder, ignore_errors=True)  # what was left of a save that was killed
            folder.mkdir(parents=True)  # with sharded states the base class makes it after all have looked for the best
        self.accelerator.wait_for_everyone()
        limit, args.save_total_limit = args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if args.should_save:
            if not args.save_only_model:  # from which nobody can go on
                seal(folder, self._record())
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(folder.parent), limit, best, use_mtime=True)
        self.accelerator.wait_for_everyone()
        self._end_if_told(folder)

    def _end_if_told(self, checkpoint: Path | None) -> None:
        """After a SIGTERM ends the training; without a checkpoint to go on from, publishing is what saves it."""
        if self.interruption is not None and self.interruption.agree() and checkpoint is not None:
            self.interruption.end(checkpoint, whole=contents(checkpoint) is not None)


class _OwedError(Exception):
    """A checkpoint will be saved at the end of the epoch instead."""


class _Course(TrainerCallback):
    """What has to be done at its time for a `ResumableTrainer`. Stands behind the user's callbacks."""

    def __init__(self, trainer: ResumableTrainer) -> None:
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.trainer._resumed:
            args.eval_on_start = False  # it was done
        elif args.process_index:
            set_seed(derived(args.seed, args.process_index) % 2**32)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._epoch_over = False
        if self.trainer._draws is not None:
            self.trainer._draws.epoch = int(state.epoch or 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        interruption = self.trainer.interruption
        if interruption is not None and interruption.agree():
            control.should_save = True

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._epoch_over = True
        interruption = self.trainer.interruption
        control.should_save |= self.trainer._save_owed or (interruption is not None and interruption.agreed)
