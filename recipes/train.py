"""Trains a recipe: `unimodal-ar train RECIPE`, or `accelerate launch -m unimodal_ar.recipes.train RECIPE`."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast

import torch
import transformers
import yaml

from .. import ranks
from .._version import __version__
from ..card import check_card
from ..modeling import UnimodalARForGeneration
from ..saving import check_output, clear_partial, load_model, write_whole
from ..training.checkpoints import find_checkpoint, holding, later_checkpoints
from ..training.data import Evaluator
from ..training.documents import load_recipe, recipes_writing
from ..training.ema import replaced
from ..training.fit import fit
from ..training.launch import join_others
from ..training.publishing import check_hub, finish
from ..training.recipe import Resolved
from ..training.sampling import SamplingOptions, publish
from ..training.trainer import UnimodalARTrainer


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

    With training.resume_from_checkpoint "auto" the same call may be made again and again, whatever ended it before: it
    goes on from the last whole checkpoint, if there is one, and does not train where the recipe's model is finished;
    what an upload lacks, it makes up for.

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
    join_others()
    resolved = Resolved(document)
    output = Path(resolved.recipe.output_dir)
    _check_source(resolved, output)
    resume = resolved.recipe.training.get("resume_from_checkpoint")
    own = False
    if resume and not dry_run:
        cut_off = ranks.gather(ranks.rank() == 0 and clear_partial(output))[0]
        own = resume == "auto" and not overwrite and _is_of(resolved, output)
        if own and not cut_off and (resolved.evaluation is None or (output / "evaluation.json").is_file()):
            if ranks.rank() == 0:
                print(f"{output} holds the finished model of this recipe.")
            return _share(resolved, output)
    if not dry_run:
        _check_output(resolved, output, overwrite or own)  # one whose evaluation was interrupted is written again
    evaluator = resolved.evaluator()
    checkpoints = output / "checkpoints"
    checkpoint = find_checkpoint(resume, checkpoints)
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            fit(resolved, Path(scratch) / "checkpoints", max_steps=2)
        if ranks.rank() == 0:
            print("Dry run: recipe, data and two training steps are fine.")
        return None
    if not overwrite:
        _check_checkpoints(checkpoints, checkpoint, resume)
    if resolved.recipe.hub is not None:
        hub, body = resolved.recipe.hub, _body_elsewhere(resolved)
        ranks.first(lambda: check_hub(hub, body))
    trainer = fit(resolved, checkpoints, checkpoint)
    _publish(resolved, trainer, evaluator, output)
    if trainer.is_world_process_zero():
        print(f"Wrote {output}")
    return _share(resolved, output)


_VERSIONS = f"unimodal_ar {__version__}, torch {torch.__version__}, transformers {transformers.__version__}"


def _body_elsewhere(resolved: Resolved) -> str | None:
    """Where the frozen body is that the model will refer to instead of holding it; None: it has all in itself."""
    if not resolved.config.freeze_backbone:
        return None
    return resolved.recipe.init_from if resolved.body is None else resolved.body.pretrained


def _share(resolved: Resolved, output: Path) -> Path:
    """Sees to the card and the upload of the finished model in `output`, which only the main process does: the others
    are done, and must not wait, as an upload may take longer than they would be waited for."""
    if ranks.rank() == 0 and (where := finish(output, resolved.recipe.hub)):
        print(f"{output} is on the Hub: {where}")
    return output


def _is_of(resolved: Resolved, output: Path) -> bool:
    """Whether the model in `output` is there and of this recipe, whose section `hub` is not about the model."""
    if not (output / "config.json").is_file() or not (output / "recipe.yaml").is_file():
        return False
    try:
        written = yaml.safe_load((output / "recipe.yaml").read_text(encoding="utf-8"))
    except yaml.YAMLError:
        return False
    if not isinstance(written, dict):
        return False
    own = yaml.safe_load(yaml.safe_dump(resolved.document))
    return bool({"card": None} | written | {"hub": None} == own | {"hub": None})  # once, recipes had neither


def _check_checkpoints(folder: Path, checkpoint: Path | None, resume: Any) -> None:
    """Raises ValueError where a training that begins, or goes on from `checkpoint`, would remove those of another."""
    # A single one may be what a training that is to begin again was killed at.
    if checkpoint is None and len(holding(folder)) > (resume == "auto"):
        raise ValueError(
            f"{str(folder)!r} holds checkpoints of an earlier training"
            + (
                ", none of which can be gone on from; move them away, or pass --overwrite"
                if resume
                else "; go on from the last one by training.resume_from_checkpoint=true, or pass --overwrite"
            )
        )
    if checkpoint is not None and (later := later_checkpoints(folder, checkpoint)):
        raise ValueError(
            f"training.resume_from_checkpoint is {str(checkpoint)!r}, and {str(folder)!r} holds {later[0].name}, of "
            "more steps; go on from the last one by true, or pass --overwrite to remove those that come after"
        )


def _check_output(resolved: Resolved, output: Path, overwrite: bool) -> None:
    """See `saving.check_output`; what adapters carry, tokenizers say, is copied to the model's folder."""
    adapters = resolved.adapters.values()
    read = {f"adapters.{a.modality}.{key}": path for a in adapters for key, path in a.sources.items()}
    check_output(output, "output_dir", overwrite, read, [name for a in adapters for name in a.folders])
    check_card(output, "output_dir")


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


def _publish(resolved: Resolved, trainer: UnimodalARTrainer, evaluator: Evaluator | None, output: Path) -> None:
    """Writes model, adapters and recipe in place of what an earlier training wrote, and then what the evaluation
    finds, to which all processes contribute. The main one writes and prints."""
    model: UnimodalARForGeneration = trainer.accelerator.unwrap_model(trainer.model)
    main, state = trainer.is_world_process_zero(), trainer.gathered_state()
    raw = None if trainer.ema is None else trainer.ema.raw_weights()

    def write_model(folder: Path) -> None:
        model.eval().save_pretrained(folder, home=output, state_dict=state)
        for adapter in resolved.adapters.values():
            adapter.save_pretrained(folder)
        recipe = yaml.safe_dump(resolved.document, sort_keys=False)
        (folder / "recipe.yaml").write_text(f"# Trained with {_VERSIONS}.\n{recipe}", encoding="utf-8")

    def write_evaluation(folder: Path) -> None:
        tables = cast(Evaluator, evaluator).run(model, folder)
        if raw is not None:
            print("\nThe same without the average of the weights (ema):")
            with replaced(model, raw):
                tables["without_ema"] = cast(Evaluator, evaluator).run(model, None)
        publish(cast(SamplingOptions, resolved.evaluation), model, folder)
        (folder / "evaluation.json").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")

    if main:
        output.mkdir(parents=True, exist_ok=True)
        write_whole(output, write_model, replace=True)
    if evaluator is None:
        return
    ranks.gather(None)  # the model is there
    if state is not None:  # in pieces, which only a training knows how to put together
        model = load_model(output, trainer.args.device)
    with ranks.together():
        if main:
            write_whole(output, write_evaluation)
            return
        with tempfile.TemporaryDirectory() as scratch, redirect_stdout(StringIO()):
            write_evaluation(Path(scratch))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m unimodal_ar.recipes.train", description=__doc__)
    add_arguments(parser)
    try:
        run(parser.parse_args())
    except (ValueError, ImportError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
