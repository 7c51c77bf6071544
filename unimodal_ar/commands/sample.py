"""`unimodal-ar sample`: samples of a model, in one file."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import (
    add_model,
    add_steps,
    all_processes,
    check_output,
    load_quietly,
    model_of,
    naming_options,
    step_options,
)

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..pipelines import Generator

SAMPLES, BATCH = 16, 64
# Options in seconds, and which numbers are legal.
LENGTHS = {"seconds": "> 0", "window": "> 0", "overlap": ">= 0", "sink": ">= 0"}


def add(commands: Any) -> None:
    command = commands.add_parser(
        "sample",
        help="draw images, video or audio",
        description="Draw samples from a model and write them into one file: images into a PNG, tiled row by row; "
        "videos into an .mp4 or .gif, tiled likewise, plus a picture with a film strip of each; audio into a .wav or "
        ".flac, one after the other, plus a picture of the spectra.",
    )
    option = command.add_argument
    add_model(option, "training or conversion")
    option("--out", required=True, metavar="FILE", help="where to write: .png; .mp4 or .gif; .wav or .flac")
    option("--n", type=int, metavar="N", help=f"number of samples (default {SAMPLES}; 1 with --stream)")
    option("--seconds", type=float, metavar="S", help="length of video or audio (default: that of training)")
    option(
        "--window",
        type=float,
        metavar="S",
        help="seconds the model sees at once when a clip is longer (default: the length of training)",
    )
    option("--overlap", type=float, metavar="S", help="seconds of a window carried into the next (default: half of it)")
    option(
        "--sink", type=float, metavar="S", help="seconds of the beginning that also stay in every window (default 0)"
    )
    option("--stream", action="store_true", help="write the sample as it is drawn, block by block (.png, .mp4, .wav)")
    option(
        "--context",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="a context modality and its value, such as label=3; several values share the N samples equally; "
        "repeatable",
    )
    option("--target", metavar="NAME", help="the modality to draw, if the model generates several")
    option("--guidance-scale", type=float, metavar="S", help="classifier-free guidance; 1: none")
    option("--temperature", type=float, metavar="T", help="0: the most probable; 1: the model's distribution")
    option("--top-k", type=int, metavar="K", help="only the K most probable codes")
    option("--top-p", type=float, metavar="P", help="only the most probable codes, up to a total probability of P")
    add_steps(option)
    option("--seed", type=int, default=0, help="sample i depends only on the seed and i (default 0)")
    option("--batch-size", type=int, metavar="B", help=f"samples at a time (default {BATCH})")
    option("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    completing = command.add_argument_group("completing")
    completing.add_argument(
        "--given",
        metavar="FILE",
        help="an image, together with --mask; or a video or audio clip to continue",
    )
    completing.add_argument(
        "--mask",
        metavar="IMG",
        help="white where to draw an image anew, black where to keep it; in its size or that of the model's images",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from .. import ranks
    from ..pipelines import Generator

    out, steps = Path(arguments.out), step_options(arguments)
    _check_request(arguments, out)
    with all_processes(arguments.device) as device:
        generator = load_quietly(Generator, model_of(arguments.model, arguments.revision), device)
        adapter = generator.adapter(arguments.target)
        if not adapter.suffixes:
            raise ValueError(f"target is {adapter.modality!r}; its samples have no file of their own")
        _check_suffix(out, adapter.suffixes)
        names = ("target", "guidance_scale", "temperature", "top_k", "top_p", "seed", "given", "mask", *LENGTHS)
        options = {name: getattr(arguments, name) for name in names} | steps | _contexts(arguments, generator)
        count = 1 if arguments.stream else arguments.n or SAMPLES
        with naming_options():
            if arguments.stream and ranks.rank() == 0:
                _write_stream(generator, adapter, out, options)
            size = arguments.batch_size or BATCH
            samples = None if arguments.stream else generator.generate(count, batch_size=size, **options)
    if ranks.rank():
        return
    if samples is not None:
        samples.save(out)
    picture = adapter.picture([out]) if samples is None else samples.picture()
    told = f"Wrote {count} sample{'s' * (count > 1)} to {out}"
    if picture is not None:
        from ..adapters.image.pictures import write_png

        write_png(picture, out.with_suffix(".png"))
        told += f", and a picture to {out.with_suffix('.png')}"
    print(told)


def _write_stream(generator: Generator, adapter: Adapter, out: Path, options: dict[str, Any]) -> None:
    """Writes one sample as it comes, with a line that says how far it is."""
    shown = False
    try:
        for told in adapter.save_stream(generator.stream(1, **options), out):
            if told:
                print(f"\r{told}", end="", file=sys.stderr, flush=True)
                shown = True
    finally:
        if shown:
            print(file=sys.stderr)


def _check_request(arguments: argparse.Namespace, out: Path) -> None:
    """Raises ValueError where something is wrong that can be told before anything is read or computed."""
    from ..adapters import ADAPTERS
    from ..generation import UnimodalARGenerationConfig
    from ..heads.categorical import check_truncation

    _check_numbers(arguments)
    names = ("guidance_scale", "temperature")
    UnimodalARGenerationConfig().updated(**{name: getattr(arguments, name) for name in names})
    check_truncation(arguments.top_k, arguments.top_p)
    _check_suffix(out, {suffix for adapter in ADAPTERS.values() for suffix in adapter.suffixes})
    check_output("--out", out)
    if out.with_suffix(".png").is_dir():
        raise ValueError(f"--out is {arguments.out!r}; the picture beside it cannot be written, its name is a folder's")
    if arguments.mask is not None and arguments.given is None:
        raise ValueError("--mask comes without --given; completing an image takes both")
    for name in ("given", "mask"):
        path = getattr(arguments, name)
        if path is None:
            continue
        if not Path(path).is_file():
            raise ValueError(f"--{name} is {path!r}; there is no such file")
        if any(written.exists() and written.samefile(path) for written in (out, out.with_suffix(".png"))):
            raise ValueError(f"--out is {arguments.out!r}, which --{name} reads; it must be another file")


def _check_numbers(arguments: argparse.Namespace) -> None:
    if arguments.stream and arguments.n not in (None, 1):
        raise ValueError(f"--n is {arguments.n} with --stream, which draws 1 sample")
    if arguments.stream and arguments.batch_size is not None:
        raise ValueError(f"--batch-size is {arguments.batch_size} with --stream, which draws 1 sample")
    for name in ("n", "batch_size"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")
    for name, legal in LENGTHS.items():
        value = getattr(arguments, name)
        if value is not None and not (0 < value < math.inf or (value == 0 and legal == ">= 0")):
            raise ValueError(f"--{name} is {value}; it must be a number {legal}")


def _check_suffix(out: Path, suffixes: Iterable[str]) -> None:
    *others, last = sorted(suffixes)
    if out.suffix.lower() not in (*others, last):
        legal = f"{', '.join(others)} or {last}" if others else last
        raise ValueError(f"--out is {str(out)!r}; it must end in {legal}")


def _contexts(arguments: argparse.Namespace, generator: Generator) -> dict[str, Any]:
    """Modality -> its values, of every --context."""
    known, contexts = generator.contexts(arguments.target), {}
    for text in arguments.context:
        name, equals, values = text.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--context is {text!r}; it must be NAME=VALUE with a NAME of {known}")
        if name in contexts:
            raise ValueError(f"--context names {name!r} twice; give its values in one, with commas between them")
        contexts[name] = generator.adapters[name].parse(values)
    return contexts
