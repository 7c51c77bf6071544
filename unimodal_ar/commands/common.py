"""What commands share: checks of what the command line says, before anything is read or computed."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any


def check_output(option: str, path: Path) -> None:
    """Raises ValueError where no file can be written to `path`."""
    if not path.parent.is_dir():
        raise ValueError(f"{option} is {str(path)!r}; its folder {str(path.parent)!r} must be there")
    if path.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, which is a folder; it must be a file")


def add_model(option: Callable[..., Any], what: str) -> None:
    """The options --model and --revision, which `model_of` reads."""
    option("--model", required=True, metavar="DIR|ID", help=f"a folder that {what} wrote, or an id on the Hub")
    add_revision(option)


def add_revision(option: Callable[..., Any]) -> None:
    option("--revision", metavar="NAME", help="branch, tag or commit of an id on the Hub (default main)")


def model_of(model: str, revision: str | None, option: str = "--model") -> str:
    """The folder of a model that `option` names: a folder, or an id on the Hub, which is downloaded.

    Raises:
        ValueError: it holds no model, or there is no such id.
    """
    from ..places import HUB_ID, model_folder, no_model

    if not Path(model).exists() and HUB_ID.fullmatch(model):
        with naming_options():
            return str(model_folder(model, revision))
    if not (Path(model) / "config.json").is_file():
        more = " that training wrote, or an id on the Hub, 'owner/name'"
        raise ValueError(f"{option} is {model!r}, which {no_model(model, more)}")
    if revision is not None:
        raise ValueError(f"--revision is {revision!r} and {option} a folder; only an id on the Hub has revisions")
    return model


def usable_device(name: str | None) -> Any:
    """A device that works, or None to have one chosen."""
    import torch

    if name is None:
        return None
    try:
        torch.zeros(1, device=name).cpu()  # a back end may be known to torch and yet be missing from build or machine
    except (RuntimeError, AssertionError, ImportError) as error:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        more = (
            [] if accelerator is None else [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
        )
        raise ValueError(f"--device is {name!r}; it must be one of {['cpu', *more]} on this machine") from error
    return torch.device(name)


@contextmanager
def all_processes(device: str | None) -> Iterator[Any]:
    """Inside, all processes that `accelerate launch` or torchrun started, if there are several, work `together`; the
    first one (`ranks.rank() == 0`) is to write files, and what the others print is not shown.

    Yields:
        The device of this process: `device`, a GPU of its own, or None to have one chosen.
    """
    from accelerate import PartialState  # type: ignore[import-untyped]

    from .. import ranks
    from ..training.launch import join_others

    own = PartialState().device if join_others() else None
    chosen = usable_device(device)
    with ranks.together(), redirect_stdout(StringIO()) if ranks.rank() else nullcontext():
        yield chosen or own


def load_quietly(kind: Any, model: str, device: Any) -> Any:
    """`kind.from_pretrained` without a progress bar: it is done in a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return kind.from_pretrained(model, device=device)


def add_steps(option: Callable[..., Any]) -> None:
    """The options of models that draw in several passes; `step_options` reads them."""
    counts = "N|FIRST,LAST"
    option("--steps", metavar=counts, help="denoising passes per block; FIRST,LAST: from first to last block")
    option("--head-steps", metavar=counts, help="evaluations per element of a flow, shortcut or diffusion head")
    option(
        "--sampler",
        metavar="KIND[,KEY=VALUE...]",
        help="sampler of block diffusion, such as threshold,probability=0.95 or heun",
    )


def step_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """`steps`, `head_steps` and `sampler` as `generate` takes them; raises ValueError where one cannot be read."""
    counts = {name: _count(arguments, name) for name in ("steps", "head_steps")}
    return {**counts, "sampler": None if arguments.sampler is None else _sampler(arguments.sampler)}


# Arguments of the library that are options of the command line, too.
NAMED = {"steps", "head_steps", "sampler", "roll_out", "given", "mask", "seconds", "window", "overlap", "sink"}
NAMED |= {"revision", "base"}


@contextmanager
def naming_options() -> Iterator[None]:
    """Lets errors about arguments that are options, too, name the option."""
    try:
        yield
    except ValueError as error:
        name, rest = re.match(r"(\w*)(.*)", str(error), re.DOTALL).groups()  # type: ignore[union-attr]
        if name not in NAMED:
            raise
        raise ValueError(f"--{name.replace('_', '-')}{rest}") from error


def _count(arguments: argparse.Namespace, name: str) -> int | list[int] | None:
    text = getattr(arguments, name)
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) > 2 or not all(part.isascii() and part.isdecimal() and int(part) for part in parts):
        raise ValueError(
            f"--{name.replace('_', '-')} is {text}; it must be an integer >= 1, or FIRST,LAST, two of them with a "
            "comma between"
        )
    counts = [int(part) for part in parts]
    return counts if len(counts) > 1 else counts[0]


def _sampler(text: str) -> dict[str, Any]:
    kind, *settings = text.split(",")
    sampler: dict[str, Any] = {"kind": kind}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or key in sampler:
            raise ValueError(f"--sampler is {text!r}; it must be KIND[,KEY=VALUE...] with each KEY once")
        sampler[key] = value  # the sampler's schema makes a number of it
    return sampler
