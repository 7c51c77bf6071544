"""Trains a recipe: `unimodal-ar train RECIPE`, or `accelerate launch -m unimodal_ar.recipes.train RECIPE`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, cast

import yaml

from .._version import __version__
from ..modeling import UnimodalARForGeneration
from ..saving import check_output, write_whole
from ..training.arguments import find_checkpoint, last_checkpoint
from ..training.data import Evaluator
from ..training.documents import load_recipe, recipes_writing
from ..training.fit import fit
from ..training.recipe import Resolved
from ..training.sampling import SamplingOptions, publish


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
            fit(resolved, Path(scratch) / "checkpoints", max_steps=2)
        print("Dry run: recipe, data and two training steps are fine.")
        return None
    if checkpoint is None and last_checkpoint(checkpoints) and not overwrite:
        raise ValueError(
            f"{str(checkpoints)!r} holds checkpoints of an earlier training; go on from the last one by "
            "training.resume_from_checkpoint=true, or pass --overwrite"
        )
    trainer = fit(resolved, checkpoints, checkpoint)
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
