"""The command line, `unimodal-ar COMMAND`."""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from typing import Any, TextIO

from ._version import __version__
from .commands import card, convert, evaluate, export, forecast, merge, plan, pull, push, sample


def main(argv: list[str] | None = None) -> int:
    """Runs a command; user errors are one sentence on stderr and exit status 2."""
    arguments = _parser().parse_args(argv)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            arguments.run(arguments)
    except (ValueError, ImportError, OSError) as error:
        if os.environ.get("UNIMODAL_AR_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


def _warn(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """One line, without the place in the code, which is for developers."""
    print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="unimodal-ar",
        description="Autoregressive and block-diffusion models of images, video, audio and time series.",
        epilog="Set UNIMODAL_AR_TRACEBACK=1 to see where an error was raised.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_train(commands)
    _add_recipes(commands)
    for command in (plan, evaluate, forecast, sample, convert, merge, card, push, pull, export):
        command.add(commands)
    return parser


def _add_train(commands: Any) -> None:
    from .recipes.train import add_arguments, run

    command = commands.add_parser("train", help="train a recipe", description="Train a recipe (a YAML file).")
    add_arguments(command)
    command.set_defaults(run=run)


def _add_recipes(commands: Any) -> None:
    command = commands.add_parser(
        "recipes", help="list the shipped recipes and accelerate configurations, or print one"
    )
    command.add_argument("recipe", nargs="?", help="the one to print (redirect it to a file to edit your own copy)")
    command.set_defaults(run=_recipes)


def _recipes(arguments: argparse.Namespace) -> None:
    from .training.documents import read_recipe, shipped_configurations, shipped_recipes

    names = [*shipped_recipes(), *shipped_configurations()]
    print(read_recipe(arguments.recipe).rstrip() if arguments.recipe else "\n".join(names))
