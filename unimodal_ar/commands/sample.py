"""`unimodal-ar sample`: samples of a model, in one picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .common import add_steps, check_model, check_output, load_quietly, naming_options, step_options, usable_device

if TYPE_CHECKING:
    from ..adapters import Adapter
    from ..pipelines import Generator


def add(commands: Any) -> None:
    command = commands.add_parser(
        "sample",
        help="draw images",
        description="Draw images from a model and write them into one PNG, tiled row by row.",
    )
    option = command.add_argument
    option("--model", required=True, metavar="DIR", help="a folder that training or conversion wrote")
    option("--out", required=True, metavar="PNG", help="where to write the picture")
    option("--n", type=int, default=16, metavar="N", help="how many (default 16)")
    option(
        "--context",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help="a context by modality, such as label=3; of several values each is used for its share of the N samples; "
        "repeatable",
    )
    option("--target", metavar="NAME", help="the modality to draw, where the model generates several")
    option("--guidance-scale", type=float, metavar="S", help="classifier-free guidance; 1: none")
    option("--temperature", type=float, metavar="T", help="0: the most probable; 1: the model's distribution")
    option("--top-k", type=int, metavar="K", help="only the K most probable codes")
    option("--top-p", type=float, metavar="P", help="only the most probable codes that reach probability P")
    add_steps(option)
    option("--seed", type=int, default=0, help="sample i depends on it and i alone (default 0)")
    option("--batch-size", type=int, default=64, metavar="B", help="samples at a time (default 64)")
    option("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    completing = command.add_argument_group("completing an image")
    completing.add_argument("--given", metavar="IMG", help="the image; goes with --mask")
    completing.add_argument(
        "--mask",
        metavar="IMG",
        help="white where to draw anew, black where to keep; in the size of the image or of the model's images",
    )
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..pipelines import Generator

    out, steps = Path(arguments.out), step_options(arguments)
    _check_request(arguments, out)
    device = usable_device(arguments.device)
    generator = load_quietly(Generator, arguments.model, device)
    with naming_options():
        samples = generator.generate(
            arguments.n,
            arguments.target,
            guidance_scale=arguments.guidance_scale,
            temperature=arguments.temperature,
            top_k=arguments.top_k,
            top_p=arguments.top_p,
            seed=arguments.seed,
            given=arguments.given,
            mask=arguments.mask,
            batch_size=arguments.batch_size,
            **steps,
            **_contexts(arguments, generator),
        )
    samples.save(out)
    print(f"Wrote {arguments.n} samples to {out}")


def _check_request(arguments: argparse.Namespace, out: Path) -> None:
    """Raises ValueError where something is wrong that can be told before anything is read or computed."""
    from ..generation import UnimodalARGenerationConfig
    from ..heads.categorical import check_truncation

    for name in ("n", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    names = ("guidance_scale", "temperature")
    UnimodalARGenerationConfig().updated(**{name: getattr(arguments, name) for name in names})
    check_truncation(arguments.top_k, arguments.top_p)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out is {arguments.out!r}; it must end in .png")
    check_output("--out", out)
    if (arguments.given is None) != (arguments.mask is None):
        there, lacking = ("--given", "--mask") if arguments.mask is None else ("--mask", "--given")
        raise ValueError(f"{there} comes without {lacking}; completing an image takes both")
    for name in ("given", "mask"):
        path = getattr(arguments, name)
        if path is None:
            continue
        if not Path(path).is_file():
            raise ValueError(f"--{name} is {path!r}; there is no such file")
        if out.exists() and out.samefile(path):
            raise ValueError(f"--out is {arguments.out!r}, which --{name} reads; it must be another file")
    check_model(arguments.model)


def _contexts(arguments: argparse.Namespace, generator: Generator) -> dict[str, Any]:
    """Modality -> its values, of every --context."""
    known, contexts = generator.contexts(arguments.target), {}
    for text in arguments.context:
        name, equals, values = text.partition("=")
        if not equals or name not in known:
            raise ValueError(f"--context is {text!r}; it must be NAME=VALUE with a NAME of {known}")
        if name in contexts:
            raise ValueError(f"--context names {name!r} twice; give its values in one, with commas between them")
        contexts[name] = _values(generator.adapters[name], values)
    return contexts


def _values(adapter: Adapter, text: str) -> Any:
    """Labels, by name or number, with commas between them; of anything else the text itself, a path say."""
    from ..adapters import LabelAdapter

    if not isinstance(adapter, LabelAdapter) or text in adapter.names:  # a name may hold commas of its own
        return text
    return [int(part) if _is_number(part) and part not in adapter.names else part for part in text.split(",")]


def _is_number(text: str) -> bool:
    """Of ASCII digits: `int` would read those of other scripts, too."""
    return text.isascii() and text.isdecimal()
