"""`unimodal-ar pull`: a model of the Hub, into a folder."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "pull",
        help="download a model from the Hugging Face Hub",
        description="Download a model from the Hugging Face Hub into a new folder: whole, or not at all. (sample, "
        "forecast, evaluate and export also take an id on the Hub in place of a folder.)",
    )
    command.add_argument("repo_id", metavar="REPO_ID", help="owner/name")
    command.add_argument("--out", required=True, metavar="DIR", help="where to write the model")
    command.add_argument("--revision", metavar="NAME", help="branch, tag or commit (default main)")
    command.add_argument(
        "--overwrite", action="store_true", help="replace a model in DIR, or the remains of a killed pull"
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..hub import pull
    from .common import naming_options

    with naming_options():
        out = pull(
            arguments.repo_id,
            arguments.out,
            revision=arguments.revision,
            overwrite=arguments.overwrite,
            option="--out",
        )
    print(f"Wrote {out}")
