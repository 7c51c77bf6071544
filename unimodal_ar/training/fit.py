"""Training of a resolved recipe: from the beginning, or on from a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments, set_seed
from transformers.utils import logging

from ..configuration import UnimodalARConfig
from ..convert import adapted
from ..modeling import UnimodalARForGeneration
from ..saving import load_model
from .body import refer_to_start
from .checkpoints import check_recipe, clean
from .ema import EMA
from .interruption import Interruption
from .peft import insert
from .recipe import Resolved
from .schedule import Schedule
from .trainer import UnimodalARTrainer


def _initial(resolved: Resolved) -> UnimodalARForGeneration:
    """The model before training."""
    folder = resolved.recipe.init_from
    if folder is None:
        return resolved.new_model()
    source = load_model(folder, "cpu")
    try:
        model = adapted(source, resolved.config)
    except ValueError as error:
        raise ValueError(f"init_from is {folder!r}: {error}") from None
    if resolved.config.freeze_backbone:  # its body is that of the model before, and will be
        refer_to_start(model, folder, source, resolved.body, layers=resolved.peft is not None)
    return model


def fit(resolved: Resolved, checkpoints: Path, checkpoint: Path | None = None, **changes: Any) -> UnimodalARTrainer:
    """Trains from the beginning, or on from `checkpoint`. A SIGTERM ends it by a checkpoint, see `Interruption`.

    Raises:
        ValueError: the checkpoint is of another recipe or body; training diverges.
    """
    recipe = resolved.recipe
    arguments = resolved.training_arguments(checkpoints, **changes)
    if checkpoint is not None:
        _tell(check_recipe(checkpoint, resolved.document), checkpoint, arguments)
    set_seed(recipe.seed)
    logging.disable_progress_bar()  # of reading and writing files; that of training stays
    # A checkpoint holds all weights, but for those of a frozen body, which are where they came from.
    whole = checkpoint is not None and not resolved.config.freeze_backbone
    model = UnimodalARForGeneration(resolved.config) if whole else _initial(resolved)
    if checkpoint is not None and (checkpoint / "config.json").is_file():  # FSDP's shards come without
        _check_body(model, UnimodalARConfig.from_pretrained(checkpoint).backbone_source, checkpoint)
    if model.config.backbone_source is not None:  # before anything is put into the body
        for adapter in resolved.adapters.values():
            adapter.share_body(model.backbone.model, model.config.backbone_source)
    data_train, data_validation = resolved.data.train(), resolved.data.validation()
    if resolved.peft:  # not before: the data may have asked for what the body itself says
        insert(model, resolved.peft, new=recipe.init_from is None)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if arguments.process_index == 0:
        print(
            f"{trainable:,} trainable parameters, {len(data_train):,} training and "
            f"{len(data_validation):,} validation {resolved.data.unit}"
        )
    try:
        trainer = UnimodalARTrainer(
            model=model,
            args=arguments,
            train_dataset=data_train,
            eval_dataset=data_validation,
            data_collator=data_train.collate,
            callbacks=_callbacks(resolved, model),
            ema=None if recipe.ema is None else EMA(recipe.ema.decay),
        )
    except RuntimeError as error:  # a logger of training.report_to that is not installed
        raise ValueError(f"training cannot start: {error}") from None
    if arguments.process_index == 0:  # or a later resumption would take them for this training's
        clean(checkpoints, checkpoint)
    trainer.recipe = resolved.document
    with Interruption() as trainer.interruption:
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"training diverged: {name} is not finite; lower training.learning_rate")
    return trainer


def _tell(differences: list[str], checkpoint: Path, arguments: TrainingArguments) -> None:
    if differences and arguments.process_index == 0:
        print(f"Going on from {checkpoint} with another recipe: {'; '.join(differences)}.")


def _check_body(model: UnimodalARForGeneration, then: dict[str, Any] | None, checkpoint: Path) -> None:
    """Raises ValueError where a checkpoint that holds no body, but says what it was, `then`, is not of the body of
    `model`."""
    now = model.config.backbone_source
    if now is not None and then is not None and now["fingerprint"] != then["fingerprint"]:
        raise ValueError(
            f"{str(checkpoint)!r} was trained with a frozen body of the fingerprint {then['fingerprint'][:12]}; the "
            f"one in {now['name_or_path']!r} has {now['fingerprint'][:12]}, and must be the same"
        )


def _callbacks(resolved: Resolved, model: UnimodalARForGeneration) -> list[TrainerCallback]:
    schedule, patience = resolved.recipe.schedule, resolved.recipe.early_stopping
    callbacks: list[TrainerCallback] = [Schedule(schedule, model)] if schedule else []
    if patience:
        last_change = max((points[-1][0] for points in schedule.values()), default=0.0)
        callbacks.append(_EarlyStopping(patience, last_change=last_change))
    return callbacks


class _EarlyStopping(EarlyStoppingCallback):
    """Counts evaluations from the schedule's last change on. Before it a lower validation loss is not yet what training
    is after. (That loss is of the model as it will be used, in every phase: the best checkpoint may be of any.)

    Args:
        early_stopping_patience, early_stopping_threshold: as transformers'.
        last_change: fraction of the training's steps.
    """

    def __init__(
        self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0, last_change: float = 0.0
    ) -> None:
        super().__init__(early_stopping_patience, early_stopping_threshold)
        self.last_change = last_change

    def on_evaluate(self, args: Any, state: Any, control: Any, *more: Any, **named: Any) -> None:
        if state.global_step >= self.last_change * state.max_steps:
            super().on_evaluate(args, state, control, *more, **named)

    def state(self) -> dict[str, Any]:
        state: dict[str, Any] = super().state()
        return state | {"args": {**state["args"], "last_change": self.last_change}}
