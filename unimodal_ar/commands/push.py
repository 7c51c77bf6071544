"""`unimodal-ar push`: a model's folder, to the Hub."""

from __future__ import annotations

import argparse
from typing import Any


def add(commands: Any) -> None:
    command = commands.add_parser(
        "push",
        help="upload a model to the Hugging Face Hub",
        description="Upload the model in a folder to the Hugging Face Hub in one commit: weights, configuration, "
        "adapters, recipe, evaluation and card, and no other file of the folder. Log in with `hf auth login`, or set "
        "HF_TOKEN.",
    )
    command.add_argument("folder", metavar="FOLDER", help="a folder that training or conversion wrote")
    command.add_argument("repo_id", metavar="REPO_ID", help="owner/name; created if missing")
    command.add_argument("--private", action="store_true", default=None, help="make a new repository private")
    command.add_argument("--revision", metavar="BRANCH", help="created if missing (default main)")
    command.add_argument("--message", metavar="TEXT", help="commit message")
    command.add_argument(
        "--base",
        metavar="ID",
        help="the frozen body's id on the Hub, for a model that was saved without it (PEFT layers, say) and knows it "
        "only as a local folder",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..hub import push
    from .common import naming_options

    with naming_options():
        where = push(
            arguments.folder,
            arguments.repo_id,
            private=arguments.private,
            revision=arguments.revision,
            commit_message=arguments.message,
            base=arguments.base,
        )
    print(f"Pushed {arguments.folder} to {where}")
