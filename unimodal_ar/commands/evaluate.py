"""`unimodal-ar evaluate`: a trained model judged again, on other data or otherwise."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .common import add_revision, all_processes, check_output, model_of


def add(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="evaluate a trained model again, for example on other data",
        description="Evaluate a trained model as its recipe.yaml does after training, on the same data or on others "
        "(--set data.path=other.csv). The model's folder is not changed.",
    )
    option = command.add_argument
    option("model", metavar="MODEL", help="a folder that training wrote, or an id on the Hub")
    add_revision(option)
    option(
        "--set",
        action="append",
        default=[],
        metavar="A.B=VALUE",
        dest="overrides",
        help="override a key of the recipe's data or evaluation, or its seed; repeatable",
    )
    option(
        "--out",
        metavar="FILE",
        help="where to write the results: .json. Only with this option are samples and pictures drawn, too; they go "
        "beside it, as FILE-samples.png, say",
    )
    option("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from .. import ranks
    from ..places import is_from_hub
    from ..training.evaluate import evaluate

    out = Path(arguments.out) if arguments.out else None
    if out is not None:
        _check_out(out, Path(arguments.model))
    with all_processes(arguments.device) as device:
        model = model_of(arguments.model, arguments.revision, "MODEL")
        if is_from_hub(model):
            _check_data(arguments, Path(model))
        logging.disable_progress_bar()
        if out is None:
            evaluate(model, arguments.overrides, device)
            return
        # Beside the place of the files, so that these can be moved: all appear whole, or none does.
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=out.parent) as scratch:
            tables = evaluate(model, arguments.overrides, device, Path(scratch))
            if ranks.rank() == 0:
                _move(Path(scratch), tables, out)


def _move(folder: Path, tables: dict[str, Any], out: Path) -> None:
    """Files of `folder`, and the tables, to their places."""
    drawn = sorted(folder.iterdir())
    (folder / "found").write_text(json.dumps(tables, indent=2) + "\n", encoding="utf-8")
    places = {file: out.with_name(f"{out.stem}-{file.name}") for file in drawn} | {folder / "found": out}
    for file, place in places.items():
        os.replace(file, place)
        print(f"Wrote {place}")


def _check_data(arguments: argparse.Namespace, model: Path) -> None:
    """Raises ValueError where the recipe of a model from the Hub, which somebody else wrote, says which file of this
    machine to read: for data, a test part of its own, or series to transfer to."""
    from ..training.documents import load_recipe

    if not (model / "recipe.yaml").is_file():
        return
    named = {override.partition("=")[0] for override in arguments.overrides}
    named |= {"data.path"} & {key.replace("dataset", "path") for key in named}  # whose place it takes
    recipe = load_recipe(model / "recipe.yaml")
    for key, path in _paths({name: recipe.get(name) for name in ("data", "evaluation")}):
        if not any(f"{key}.".startswith(f"{name}.") for name in named):
            raise ValueError(
                f"{key} is {path!r} in the recipe of {arguments.model!r}, which is from the Hub; say what is meant by "
                f"--set {key}=..."
            )


def _paths(content: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of all paths in a recipe, by the key that names one; in a list it is the list's."""
    if isinstance(content, list):
        yield from ((key, path) for entry in content for _, path in _paths(entry))
    elif isinstance(content, dict):
        for name, value in content.items():
            inner = f"{key}.{name}".lstrip(".")
            if value is not None and str(name).rpartition("_")[2] == "path":
                yield inner, value
            else:
                yield from _paths(value, inner)


def _check_out(out: Path, model: Path) -> None:
    """Raises ValueError where something is wrong with --out, before anything is read or computed."""
    if out.suffix != ".json":
        raise ValueError(f"--out is {str(out)!r}; it must end in .json")
    check_output("--out", out)
    if out.parent.resolve() == model.resolve():
        raise ValueError(f"--out is {str(out)!r}, in the folder of the model, which stays as it is; choose another")
