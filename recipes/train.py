"""Trains a recipe: `unimodal-ar train RECIPE`, or `accelerate launch -m unimodal_ar.recipes.train RECIPE`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import yaml
from transformers import EarlyStoppingCallback, set_seed
from transformers.utils import logging

from .._version import __version__
from ..evaluation import format_table
from ..evaluation.rolling import RollingEvaluation, Rows
from ..forecasting import Forecaster
from ..heads import HEADS
from ..modeling import UnimodalARForGeneration
from ..training import UnimodalARTrainer
from ..training.arguments import find_checkpoint, last_checkpoint
from ..training.data import Split
from ..training.recipe import EvaluationSection, Resolved, load_recipe

# What a training writes, by pattern; config.json first, because a folder with one is complete.
OURS = (
    *("config.json", "generation_config.json", "model*.safetensors*", "processor_config.json"),
    *("recipe.yaml", "evaluation.json"),
)


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
        ValueError: the recipe does not hold together (every error is named), the data are too short for it, or the
            folder already holds a model.
    """
    resolved = Resolved(document)
    evaluation = _Evaluation(resolved)
    output = Path(resolved.recipe.output_dir)
    checkpoints = output / "checkpoints"
    checkpoint = find_checkpoint(resolved.recipe.training.get("resume_from_checkpoint"), checkpoints)
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            _fit(resolved, Path(scratch) / "checkpoints", max_steps=2)
        print("Dry run: recipe, data and two training steps are fine.")
        return None
    if (output / "config.json").exists() and not overwrite:
        raise ValueError(f"output_dir {str(output)!r} already holds a model; choose another or pass --overwrite")
    if checkpoint is None and last_checkpoint(checkpoints) and not overwrite:
        raise ValueError(
            f"{str(checkpoints)!r} holds checkpoints of an earlier training; go on from the last one by "
            "training.resume_from_checkpoint=true, or pass --overwrite"
        )
    trainer = _fit(resolved, checkpoints, checkpoint)
    if trainer.is_world_process_zero():
        _publish(resolved, trainer.accelerator.unwrap_model(trainer.model), evaluation, output)
        print(f"Wrote {output}")
    return output


def _fit(resolved: Resolved, checkpoints: Path, checkpoint: Path | None = None, **changes: Any) -> UnimodalARTrainer:
    """Trains from scratch, or on from `checkpoint`."""
    recipe = resolved.recipe
    arguments = resolved.training_arguments(checkpoints, **changes)
    set_seed(recipe.seed)
    logging.disable_progress_bar()  # of reading and writing files; that of training stays
    model = UnimodalARForGeneration(resolved.config)
    data_train, data_validation = resolved.data.train(), resolved.data.validation()
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    print(
        f"{trainable:,} trainable parameters, {len(data_train):,} training and "
        f"{len(data_validation):,} validation windows"
    )
    try:
        trainer = UnimodalARTrainer(
            model=model,
            args=arguments,
            train_dataset=data_train,
            eval_dataset=data_validation,
            data_collator=data_train.collate,
            callbacks=[EarlyStoppingCallback(recipe.early_stopping)] if recipe.early_stopping else None,
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


def _publish(resolved: Resolved, model: UnimodalARForGeneration, evaluation: _Evaluation, output: Path) -> None:
    """Writes model, adapters and recipe in place of what an earlier training wrote, and then what the evaluation
    finds."""
    output.mkdir(parents=True, exist_ok=True)

    def write_model(folder: Path) -> None:
        model.eval().save_pretrained(folder)
        for adapter in resolved.adapters.values():
            adapter.save_pretrained(folder)
        recipe = yaml.safe_dump(resolved.document, sort_keys=False)
        (folder / "recipe.yaml").write_text(f"# Trained with unimodal_ar {__version__}.\n{recipe}", encoding="utf-8")

    _write_whole(output, write_model, replaced=OURS)
    tables = evaluation.tables(model)
    if tables:
        text = json.dumps(tables, indent=2) + "\n"
        _write_whole(output, lambda folder: (folder / "evaluation.json").write_text(text, encoding="utf-8"))


def _write_whole(output: Path, write: Callable[[Path], Any], replaced: Sequence[str] = ()) -> None:
    """Lets `write` fill a folder beside the files' place, removes the files of the patterns `replaced` and moves the
    new ones there one by one, config.json last: a folder with a config.json is complete and of one training."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=output))
    try:
        write(partial)
        for pattern in replaced:
            for file in output.glob(pattern):
                file.unlink()
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


class _Evaluation:
    """Rolling forecasts on the test part. The baselines' part is done when this is made, before any training: it is
    cheap, and finds whatever the data lack.

    Raises:
        ValueError: a test part shorter than a horizon, a training part too short for the baselines, windows without
            an observed value; the message names the series.
    """

    def __init__(self, resolved: Resolved) -> None:
        self.resolved, self.section = resolved, resolved.recipe.evaluation
        self.rolling: dict[int, RollingEvaluation] = {}
        self.baselines: dict[int, Rows] = {}
        splits = [resolved.data.split(series) for series in resolved.data.series]
        for horizon in self.section.horizons if self.section else ():
            try:
                self._add(horizon, splits)
            except ValueError as error:
                raise ValueError(f"evaluation of horizon {horizon}: {error}") from None

    def _add(self, horizon: int, splits: list[Split]) -> None:
        section, data = cast(EvaluationSection, self.section), self.resolved.data
        for series, split in zip(data.series, splits, strict=True):
            if split.stop - split.test < horizon:
                raise ValueError(f"series {series.item_id!r} has a test part of {split.stop - split.test} steps")
        head = self.resolved.config.modality(data.adapter.modality).head or {}
        self.rolling[horizon] = RollingEvaluation(
            data.series,
            [split.validation for split in splits],
            [split.test for split in splits],
            horizon,
            section.stride,
            section.season,
            data.lookback,
        )
        self.baselines[horizon] = self.rolling[horizon].baselines(HEADS[head["kind"]].is_point)

    def tables(self, model: UnimodalARForGeneration) -> dict[str, Rows]:
        """A table per horizon, printed and returned."""
        if self.section is None:
            return {}
        tables = {}
        for horizon, rolling in self.rolling.items():
            forecaster = Forecaster(model, self.resolved.data.adapter)
            row = rolling.model(forecaster, self.section.num_samples, self.resolved.recipe.seed)
            rows = {"unimodal_ar": row, **self.baselines[horizon]}
            print(
                f"\nTest part, rolling forecasts {horizon} steps ahead, an origin every {self.section.stride} steps:\n"
            )
            print(format_table(rows))
            tables[str(horizon)] = rows
        return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m unimodal_ar.recipes.train", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
