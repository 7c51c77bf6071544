"""Trains a recipe: `unimodal-ar train RECIPE`, or `accelerate launch -m unimodal_ar.recipes.train RECIPE`."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import EarlyStoppingCallback, TrainerCallback, set_seed
from transformers.utils import logging

from .._version import __version__
from ..configuration import UnimodalARConfig
from ..convert import adapted
from ..modeling import UnimodalARForGeneration
from ..saving import check_output, load_model, write_whole
from ..training import UnimodalARTrainer
from ..training.arguments import find_checkpoint, last_checkpoint
from ..training.body import refer_to_start
from ..training.data import Evaluator
from ..training.peft import insert
from ..training.recipe import Resolved, load_recipe, recipes_writing
from ..training.sampling import SamplingOptions, publish
from ..training.schedule import Schedule


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", help="a YAML file, or the name of a shipped recipe such as next_patch/temperature")
    parser.add_argument("--output", metavar="DIR", help="where to write the model (default: the recipe's output_dir)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A.B=VALUE", dest="overrides", help="override a key; repeatable"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a model that is already in DIR")
    parser.add_argument("--dry-run", action="store_true", help="check recipe and data, run two steps, write nothing")


def run(arguments: argparse.Namespace) -> None:
    overrides = list(arguments.overrides)
    if arguments.output:
        overrides.append(f"output_dir={json.dumps(arguments.output)}")
    train(load_recipe(arguments.recipe, overrides), overwrite=arguments.overwrite, dry_run=arguments.dry_run)


def train(document: dict[str, Any], overwrite: bool = False, dry_run: bool = False) -> Path | None:
    """Trains the recipe `document` (see `load_recipe`) and writes model, adapters, recipe and evaluation.

    Args:
        overwrite: replace a model, and checkpoints, that are already there.
        dry_run: two steps in a temporary folder, nothing is kept.

    Returns:
        The folder, or None after a dry run.

    Raises:
        ValueError: the recipe does not hold together (every error is named), the data are too short for it, the
            folder already holds a model, or files of the user's that a model would replace, or the model to start
            from is missing or does not fit.
    """
    resolved = Resolved(document)
    output = Path(resolved.recipe.output_dir)
    _check_source(resolved, output)
    if not dry_run:
        _check_output(resolved, output, overwrite)
    evaluator = resolved.evaluator()
    checkpoints = output / "checkpoints"
    checkpoint = find_checkpoint(resolved.recipe.training.get("resume_from_checkpoint"), checkpoints)
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            _fit(resolved, Path(scratch) / "checkpoints", max_steps=2)
        print("Dry run: recipe, data and two training steps are fine.")
        return None
    if checkpoint is None and last_checkpoint(checkpoints) and not overwrite:
        raise ValueError(
            f"{str(checkpoints)!r} holds checkpoints of an earlier training; go on from the last one by "
            "training.resume_from_checkpoint=true, or pass --overwrite"
        )
    trainer = _fit(resolved, checkpoints, checkpoint)
    if trainer.is_world_process_zero():
        _publish(resolved, trainer.accelerator.unwrap_model(trainer.model), evaluator, output)
        print(f"Wrote {output}")
    return output


def _check_output(resolved: Resolved, output: Path, overwrite: bool) -> None:
    """See `saving.check_output`; what adapters carry, tokenizers say, is copied to the model's folder."""
    adapters = resolved.adapters.values()
    read = {f"adapters.{a.modality}.{key}": path for a in adapters for key, path in a.sources.items()}
    check_output(output, "output_dir", overwrite, read, [name for a in adapters for name in a.folders])


def _check_source(resolved: Resolved, output: Path) -> None:
    """Raises ValueError where there is no model to start from, or it would be overwritten."""
    folder, body = resolved.recipe.init_from, resolved.body
    if body is not None and Path(body.pretrained).resolve() == output.resolve():
        raise ValueError(
            f"model.backbone.pretrained is {body.pretrained!r}, the output_dir, too; the new model needs a folder of "
            "its own"
        )
    if folder is None:
        return
    if not (Path(folder) / "config.json").is_file():
        makers = " or ".join(f"`unimodal-ar train {name}`" for name in recipes_writing(folder))
        hint = f"{makers} makes it" if makers else "it must be a folder that train or convert wrote"
        raise ValueError(f"init_from is {folder!r}, where there is no model; {hint}")
    if Path(folder).resolve() == output.resolve():
        raise ValueError(f"init_from is {folder!r}, the output_dir, too; the new model needs a folder of its own")


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


def _fit(resolved: Resolved, checkpoints: Path, checkpoint: Path | None = None, **changes: Any) -> UnimodalARTrainer:
    """Trains from the beginning, or on from `checkpoint`."""
    recipe = resolved.recipe
    arguments = resolved.training_arguments(checkpoints, **changes)
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
        insert(model, resolved.peft)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
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
        )
    except RuntimeError as error:  # a logger of training.report_to that is not installed
        raise ValueError(f"training cannot start: {error}") from None
    if checkpoint is None and arguments.process_index == 0:
        shutil.rmtree(checkpoints, ignore_errors=True)  # or a later resumption would take them for this training's
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ValueError(f"training diverged: {name} is not finite; lower training.learning_rate")
    return trainer


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


def _publish(resolved: Resolved, model: UnimodalARForGeneration, evaluator: Evaluator | None, output: Path) -> None:
    """Writes model, adapters and recipe in place of what an earlier training wrote, and then what the evaluation
    finds."""
    output.mkdir(parents=True, exist_ok=True)

    def write_model(folder: Path) -> None:
        model.eval().save_pretrained(folder, home=output)
        for adapter in resolved.adapters.values():
            adapter.save_pretrained(folder)
        recipe = yaml.safe_dump(resolved.document, sort_keys=False)
        (folder / "recipe.yaml").write_text(f"# Trained with unimodal_ar {__version__}.\n{recipe}", encoding="utf-8")

    def write_evaluation(folder: Path) -> None:
        tables = cast(Evaluator, evaluator).run(model, folder)
        publish(cast(SamplingOptions, resolved.evaluation), model, folder)
        (folder / "evaluation.json").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")

    write_whole(output, write_model, replace=True)
    if evaluator:
        write_whole(output, write_evaluation)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m unimodal_ar.recipes.train", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
