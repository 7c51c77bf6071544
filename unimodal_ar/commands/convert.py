"""`unimodal-ar convert`: a published checkpoint into a folder that everything here reads."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..convert import CONVERTERS


def add(commands: Any) -> None:
    command = commands.add_parser(
        "convert",
        help="convert a published checkpoint",
        description="Convert a checkpoint of a published codebase into a model folder.",
    )
    option = command.add_argument
    option("name", choices=sorted(CONVERTERS), metavar="NAME", help=f"whose: {', '.join(sorted(CONVERTERS))}")
    option("checkpoint", metavar="CKPT", help="the weights: .safetensors, or a torch file of tensors alone")
    option("--out", required=True, metavar="DIR", help="where to write the model")
    option(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="settings",
        help="what the weights alone do not say, such as n_head=12; the value is YAML; repeatable",
    )
    option("--overwrite", action="store_true", help="replace a model that is already in DIR")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..saving import check_output, write_whole

    logging.disable_progress_bar()
    out, checkpoint = Path(arguments.out), Path(arguments.checkpoint)
    if not checkpoint.exists():
        raise ValueError(f"checkpoint is {arguments.checkpoint!r}; there is no such file")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out is {arguments.out!r}, which is a file; it must be a folder")
    check_output(out, "--out", arguments.overwrite, read={"checkpoint": arguments.checkpoint})
    model, adapters = CONVERTERS[arguments.name](checkpoint, **_settings(arguments.settings))

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        for adapter in adapters:
            adapter.save_pretrained(folder)

    out.mkdir(parents=True, exist_ok=True)
    write_whole(out, write, replace=True)
    print(f"Wrote {out}")
    attached = {adapter.modality for adapter in adapters}
    for name in sorted(model.heads.keys() - attached):
        print(
            f"It draws codes of {name!r} on the grid {list(model.options[name].grid)} (another size: --set, see the "
            "converter); to decode them, save an adapter with their tokenizer there."
        )


def _settings(given: list[str]) -> dict[str, Any]:
    """Key -> value of every --set; whether they are the converter's, it says itself."""
    import yaml

    settings: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or key == "path":  # that one is the checkpoint
            raise ValueError(f"--set is {text!r}; it must be written KEY=VALUE with a KEY of the converter's")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise ValueError(f"--set is {text!r}; {value!r} is not YAML") from None
    return settings
