"""`unimodal-ar card`: the README.md of a model's folder, by which people know what it is."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

TEXTS = {
    "license": ("NAME", "of the weights, by its name on the Hub: apache-2.0, cc-by-sa-4.0, other ..."),
    "license-name": ("TEXT", "its name, with --license other"),
    "license-link": ("URL", "its text, with --license other"),
    "data": ("TEXT", "what the model was trained on, where it is from and under which licence"),
    "description": ("TEXT", "what the model is for"),
}


def add(commands: Any) -> None:
    command = commands.add_parser(
        "card",
        help="write the model card of a model's folder",
        description="Write README.md into a model's folder, from its configuration, recipe, evaluation and samples. "
        "Training and conversion have written one already; this one can say more. What is not given here is taken from "
        "the recipe's section `card`, or from the existing card.",
    )
    command.add_argument("folder", metavar="FOLDER", help="a folder that training or conversion wrote")
    for name, (metavar, text) in TEXTS.items():
        command.add_argument(f"--{name}", metavar=metavar, help=text)
    command.add_argument("--datasets", nargs="+", metavar="ID", help="training data on the Hub: owner/name")
    command.add_argument("--tags", nargs="+", metavar="TAG", help="in addition to those that follow from the model")
    command.add_argument("--overwrite", action="store_true", help="replace a card that was edited by hand")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..card import check_card, options_of, write_card
    from ..places import no_model

    folder = Path(arguments.folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"FOLDER is {arguments.folder!r}, which {no_model(folder)}")
    if not arguments.overwrite:
        check_card(folder, "FOLDER")
    names = [*(name.replace("-", "_") for name in TEXTS), "datasets", "tags"]
    given = {name: value for name in names if (value := getattr(arguments, name)) is not None}
    write_card(folder, arguments.folder, options_of(folder, **given))
    print(f"Wrote {folder / 'README.md'}")
