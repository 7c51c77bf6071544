"""`unimodal-ar convert`: a published checkpoint into a folder that everything here reads, or the model of a folder to
another objective."""

from __future__ import annotations

import argparse
import json
import warnings
from functools import partial
from pathlib import Path
from typing import Any

from ..convert import CONVERTERS, convert_to_block_diffusion

TO = {"block-diffusion": convert_to_block_diffusion}
OF_TO = ("block", "noise", "modality")  # options that go with --to alone


def add(commands: Any) -> None:
    command = commands.add_parser(
        "convert",
        help="convert a published checkpoint, or a trained model to block diffusion",
        usage="unimodal-ar convert NAME CKPT --out DIR [--set KEY=VALUE ...] [--overwrite]\n"
        "       unimodal-ar convert --to block-diffusion MODEL --block BLOCK --out DIR\n"
        "                           [--noise NOISE] [--modality NAME] [--overwrite]",
        description="Convert a checkpoint of a published codebase into a model folder; or, with --to, a next-block "
        "model or a pretrained language model into a block-diffusion model that needs brief training.",
    )
    option = command.add_argument
    option(
        "name",
        metavar="NAME",
        help=f"the codebase: {', '.join(sorted(CONVERTERS))}; with --to, MODEL: a model's folder",
    )
    option("checkpoint", nargs="?", metavar="CKPT", help="the weights: .safetensors, or a torch file of tensors only")
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
    option = command.add_argument_group("converting a model to another objective").add_argument
    option("--to", choices=sorted(TO), help="the objective")
    option("--block", metavar="BLOCK", help="elements per block: 4, row, frame, whole, or YAML: '{cell: [1, 2, 2]}'")
    option("--noise", choices=("mask", "gaussian"), help="default: mask")
    option("--modality", metavar="NAME", help="the one to change; default: the only one that is generated")
    command.set_defaults(run=partial(run, command))


def run(command: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    from transformers.utils import logging

    from ..card import check_card, write_card
    from ..saving import check_output, write_whole

    _check(command, arguments)
    logging.disable_progress_bar()
    out = Path(arguments.out)
    check_card(out, "--out")
    if arguments.to:
        model, adapters = _to_objective(arguments, out)
    else:
        checkpoint = Path(arguments.checkpoint)
        if not checkpoint.exists():
            raise ValueError(f"checkpoint is {arguments.checkpoint!r}; there is no such file")
        check_output(out, "--out", arguments.overwrite, read={"checkpoint": arguments.checkpoint})
        model, adapters = CONVERTERS[arguments.name](checkpoint, **_settings(arguments.settings))

    def write(folder: Path) -> None:
        model.save_pretrained(folder)
        for adapter in adapters:
            adapter.save_pretrained(folder)
        write_card(folder, arguments.out)

    out.mkdir(parents=True, exist_ok=True)
    write_whole(out, write, replace=True)
    print(f"Wrote {out}")
    attached = {adapter.modality for adapter in adapters}
    for name in sorted(model.heads.keys() - attached) if not arguments.to else ():
        print(
            f"It draws codes of {name!r} on the grid {list(model.options[name].grid)} (another size: --set, see the "
            "converter); to decode them, save an adapter with their tokenizer there."
        )


def _check(command: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends with the usage where the words of the two forms are mixed."""
    given = [f"--{name}" for name in OF_TO if getattr(arguments, name) is not None]
    if arguments.to is None:
        if given:
            command.error(f"{given[0]} goes with --to block-diffusion")
        if arguments.name not in CONVERTERS:
            names = ", ".join(map(repr, sorted(CONVERTERS)))
            command.error(f"argument NAME: invalid choice: {arguments.name!r} (choose from {names})")
        if arguments.checkpoint is None:
            command.error("the following arguments are required: CKPT")
        return
    if arguments.checkpoint is not None:
        command.error(
            f"--to takes one folder, MODEL, not {arguments.name!r} and {arguments.checkpoint!r}; convert a published "
            "checkpoint first, and then the folder that comes of it"
        )
    if arguments.settings:
        command.error("--set is for published checkpoints; it does not go with --to")
    if arguments.block is None:
        command.error("the following arguments are required with --to: --block")


def _to_objective(arguments: argparse.Namespace, out: Path) -> tuple[Any, list[Any]]:
    """The converted model of a folder, and the adapters beside it."""
    from ..adapters.base import CONFIG_NAME, load_adapters
    from ..places import no_model
    from ..saving import check_output

    folder = Path(arguments.name)
    if not (folder / "config.json").is_file():
        raise ValueError(f"MODEL is {arguments.name!r}, which {no_model(folder)}")
    if out.resolve() == folder.resolve():
        raise ValueError(f"--out is {arguments.out!r}, the folder of the model itself; choose another")
    adapters = list(load_adapters(folder).values()) if (folder / CONFIG_NAME).exists() else []
    carried = [name for adapter in adapters for name in adapter.folders]
    check_output(out, "--out", arguments.overwrite, folders=carried)
    with warnings.catch_warnings(record=True) as left_out:
        warnings.simplefilter("always", UserWarning)
        model = TO[arguments.to](
            _source(folder),
            _yaml("--block", arguments.block),
            noise=arguments.noise or "mask",
            modality=arguments.modality,
        )
    for warning in left_out:
        print(f"Note: {warning.message}.")
    return model, adapters


def _source(folder: Path) -> Any:
    """The model of a folder: ours, or a language model of transformers."""
    from transformers import AutoModelForCausalLM

    from ..configuration import UnimodalARConfig
    from ..saving import load_model

    try:
        if (
            json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
            == UnimodalARConfig.model_type
        ):
            return load_model(folder, "cpu")
        return AutoModelForCausalLM.from_pretrained(folder)
    except (ValueError, LookupError, TypeError) as error:
        reason = " ".join(str(error).partition("\n")[0].split())[:200].strip(" .:")
        raise ValueError(
            f"MODEL is {str(folder)!r}, which does not load ({reason}); it must be a model of unimodal_ar, or a "
            "language model that transformers reads"
        ) from error


def _settings(given: list[str]) -> dict[str, Any]:
    """Key -> value of every --set; whether they are the converter's, it says itself."""
    settings: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or key == "path":  # that one is the checkpoint
            raise ValueError(f"--set is {text!r}; it must be written KEY=VALUE with a KEY of the converter's")
        settings[key] = _yaml("--set", value, text)
    return settings


def _yaml(option: str, value: str, text: str | None = None) -> Any:
    """The value of an option, or the part `value` of its `text`."""
    import yaml

    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        told = "it" if text is None else repr(value)
        raise ValueError(f"{option} is {text or value!r}; {told} is not YAML") from None
