"""`unimodal-ar export`: a model in another program's format."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

# Format -> its options, by what the functions of `unimodal_ar.export` call them.
FORMATS: dict[str, tuple[str, ...]] = {
    "llama": ("target", "dtype"),
    "torch": ("cache_length", "batch_size", "positions", "dtype"),
    "onnx": ("batch_size", "lookback", "quantile_levels"),
}
DTYPES = ("float32", "bfloat16", "float16")


def add(commands: Any) -> None:
    command = commands.add_parser(
        "export",
        help="write a model in another program's format",
        description="Write a model in another program's format. llama: a next-token model of codes as a plain language "
        "model, for stock transformers and servers of language models. torch: one step of the backbone over a static "
        "cache, by torch.export. onnx: the next block of a forecaster. Each comes with a JSON file that says how to "
        "use it. If a model cannot be exported, the error says why.",
    )
    option = command.add_argument
    option("model", metavar="FOLDER|ID", help="a folder that training wrote, or an id on the Hub")
    option("--revision", metavar="NAME", help="branch, tag or commit of an id on the Hub (default main)")
    option("--to", required=True, choices=list(FORMATS), help="the format")
    option("--out", required=True, metavar="DIR", help="a new or an empty folder")
    option("--target", metavar="NAME", help="llama: the modality to generate (default: the only one)")
    option("--dtype", choices=DTYPES, help="llama, torch: dtype of the weights (default float32)")
    option("--cache-length", type=int, metavar="S", help="torch: positions in the cache (required)")
    option("--positions", type=int, metavar="N", help="torch: new positions per step, one block (default 1)")
    option("--batch-size", type=int, metavar="B", help="torch, onnx: batch size of the program (default 1)")
    option("--lookback", type=int, metavar="STEPS", help="onnx: length of the past (default: the forecaster's)")
    option(
        "--quantiles",
        dest="quantile_levels",
        type=numbers,
        metavar="Q,Q,...",
        help="onnx: quantile levels (default: those the head was trained on)",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..export.folder import new_folder
    from .common import model_of, naming_options

    given = _given(arguments)
    with _naming():
        new_folder(arguments.out)
    with naming_options():
        folder = model_of(arguments.model, arguments.revision, "FOLDER")
    export = _exporter(arguments.to, folder, given.pop("dtype", "float32"))
    with _naming():
        export(arguments.out, **given)
    print(f"Wrote {arguments.out}")


@contextmanager
def _naming() -> Iterator[None]:
    """Lets errors about arguments that are options, too, name the option."""
    names = {"out", *(name for names in FORMATS.values() for name in names)}
    try:
        yield
    except ValueError as error:
        name, space, rest = str(error).partition(" ")
        if name not in names:
            raise
        raise ValueError(f"{_option(name)}{space}{rest}") from error


def _given(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of the format that are given; raises ValueError where one is of another format."""
    chosen = FORMATS[arguments.to]
    for name in {name for names in FORMATS.values() for name in names} - set(chosen):
        if getattr(arguments, name) is not None:
            takers = [to for to, names in FORMATS.items() if name in names]
            raise ValueError(f"{_option(name)} is given with --to {arguments.to}; it is for --to {' or '.join(takers)}")
    if arguments.to == "torch" and arguments.cache_length is None:
        raise ValueError(
            "--cache-length is missing; with --to torch the places of the cache are fixed, so say how many"
        )
    return {name: getattr(arguments, name) for name in chosen if getattr(arguments, name) is not None}


def numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _option(name: str) -> str:
    return "--quantiles" if name == "quantile_levels" else f"--{name.replace('_', '-')}"


def _exporter(to: str, folder: str, dtype: str) -> Callable[..., Any]:
    """What takes the folder to write to and the format's options."""
    from functools import partial

    import torch
    from transformers.utils import logging

    from .. import export, pipelines
    from ..forecasting import Forecaster
    from ..saving import load_model

    logging.disable_progress_bar()
    if to == "onnx":
        forecaster = pipelines.load(folder, "cpu")
        if not isinstance(forecaster, Forecaster):
            drawn = sorted(forecaster.model.heads)
            raise ValueError(f"the model draws {drawn}, with no adapter of time series; --to onnx is for forecasters")
        return partial(export.export_forecaster, forecaster)
    model = load_model(folder, "cpu", getattr(torch, dtype))
    return partial(export.export_llama if to == "llama" else export.export_step, model)
