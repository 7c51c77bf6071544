"""Trains a recipe: `unimodal-ar train RECIPE`, or `accelerate launch -m unimodal_ar.recipes.train RECIPE`."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from transformers import EarlyStoppingCallback, set_seed
from transformers.utils import logging

from .._version import __version__
from ..evaluation import format_table
from ..evaluation.rolling import Rows, rolling_evaluation
from ..forecasting import Forecaster
from ..modeling import UnimodalARForGeneration
from ..training import UnimodalARTrainer
from ..training.recipe import Resolved, load_recipe


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
        overwrite: replace a model that is already there.
        dry_run: two steps in a temporary folder, nothing is kept.

    Returns:
        The folder, or None after a dry run.

    Raises:
        ValueError: the recipe does not hold together (every error is named), or the folder already holds a model.
    """
    resolved = Resolved(document)
    _check_evaluation(resolved)
    output = Path(resolved.recipe.output_dir)
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            _fit(resolved, Path(scratch), max_steps=2)
        print("Dry run: recipe, data and two training steps are fine.")
        return None
    if (output / "config.json").exists() and not overwrite:
        raise ValueError(f"output_dir {str(output)!r} already holds a model; choose another or pass --overwrite")
    trainer = _fit(resolved, output / "checkpoints")
    if trainer.is_world_process_zero():
        _publish(resolved, trainer.accelerator.unwrap_model(trainer.model), output)
        print(f"Wrote {output}")
    return output


def _fit(resolved: Resolved, checkpoints: Path, **changes: Any) -> UnimodalARTrainer:
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
    trainer = UnimodalARTrainer(
        model=model,
        args=arguments,
        train_dataset=data_train,
        eval_dataset=data_validation,
        data_collator=data_train.collate,
        callbacks=[EarlyStoppingCallback(recipe.early_stopping)] if recipe.early_stopping else None,
    )
    trainer.train()
    return trainer


def _publish(resolved: Resolved, model: UnimodalARForGeneration, output: Path) -> None:
    """Writes model, adapters and recipe, and then what the evaluation finds."""
    output.mkdir(parents=True, exist_ok=True)

    def write_model(folder: Path) -> None:
        model.eval().save_pretrained(folder)
        for adapter in resolved.adapters.values():
            adapter.save_pretrained(folder)
        recipe = yaml.safe_dump(resolved.document, sort_keys=False)
        (folder / "recipe.yaml").write_text(f"# Trained with unimodal_ar {__version__}.\n{recipe}", encoding="utf-8")

    _write_whole(output, write_model)
    tables = _evaluate(resolved, model)
    if tables:
        text = json.dumps(tables, indent=2) + "\n"
        _write_whole(output, lambda folder: (folder / "evaluation.json").write_text(text, encoding="utf-8"))


def _write_whole(output: Path, write: Callable[[Path], Any]) -> None:
    """Lets `write` fill a folder beside the files' place and moves them there one by one, config.json last: a folder
    with a config.json is complete."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=output))
    try:
        write(partial)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _check_evaluation(resolved: Resolved) -> None:
    """Raises ValueError, before any training, where the test part is shorter than a horizon to be evaluated."""
    longest = max(resolved.recipe.evaluation.horizons) if resolved.recipe.evaluation else 0
    for series in resolved.data.series:
        split = resolved.data.split(series)
        if split.stop - split.test < longest:
            raise ValueError(
                f"series {series.item_id!r} has a test part of {split.stop - split.test} steps; "
                f"evaluation.horizons asks for {longest}"
            )


def _evaluate(resolved: Resolved, model: UnimodalARForGeneration) -> dict[str, Rows]:
    """Rolling forecasts on the test part, a table per horizon, printed and returned."""
    section, data = resolved.recipe.evaluation, resolved.data
    if section is None:
        return {}
    splits = [data.split(series) for series in data.series]
    tables = {}
    for horizon in section.horizons:
        rows = rolling_evaluation(
            Forecaster(model, data.adapter),
            data.series,
            [split.validation for split in splits],
            [split.test for split in splits],
            horizon,
            section.stride,
            section.season,
            section.num_samples,
            resolved.recipe.seed,
        )
        print(f"\nTest part, rolling forecasts {horizon} steps ahead, an origin every {section.stride} steps:\n")
        print(format_table(rows))
        tables[str(horizon)] = rows
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m unimodal_ar.recipes.train", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, ImportError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
