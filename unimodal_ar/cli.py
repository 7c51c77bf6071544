"""The command line: `unimodal-ar train` and `unimodal-ar forecast`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._version import __version__

if TYPE_CHECKING:
    from .adapters import Series
    from .forecasting import Forecast, Forecaster

ROLES = ("time", "item", "target", "known", "past", "freq", "on_irregular")
"""What the command line and a recipe's data section say about a table: arguments of `read_series`."""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; user errors are one sentence on stderr and exit status 2."""
    arguments = _parser().parse_args(argv)
    try:
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
    _add_forecast(commands)
    return parser


def _add_train(commands: Any) -> None:
    from .recipes.train import add_arguments, run

    command = commands.add_parser("train", help="train a recipe", description="Train a recipe (a YAML file).")
    add_arguments(command)
    command.set_defaults(run=run)


def _add_recipes(commands: Any) -> None:
    command = commands.add_parser("recipes", help="list the shipped recipes, or print one")
    command.add_argument("recipe", nargs="?", help="print this one (redirect it to a file to make it yours)")
    command.set_defaults(run=_recipes)


def _recipes(arguments: argparse.Namespace) -> None:
    from .training.recipe import read_recipe, shipped_recipes

    print(read_recipe(arguments.recipe).rstrip() if arguments.recipe else "\n".join(shipped_recipes()))


def _add_forecast(commands: Any) -> None:
    command = commands.add_parser(
        "forecast",
        help="forecast the series of a table",
        description="Forecast every series of a CSV or Parquet file, long or wide.",
    )
    add = command.add_argument
    add("table", metavar="CSV", help=".csv, .csv.gz or .parquet")
    add("--model", required=True, metavar="DIR", help="a folder that training wrote")
    add("--horizon", required=True, type=int, metavar="H", help="steps to forecast")
    add("--out", required=True, metavar="FILE", help="where to write the forecasts: .parquet or .csv")
    add("--plot", metavar="PNG", help="also draw the first series and their forecasts (.png, .svg, .pdf)")
    add("--quantiles", type=_floats, metavar="Q,Q,...", help="quantile levels (default 0.05 to 0.95)")
    add("--num-samples", type=int, default=100, metavar="S", help="sample paths per series (default 100)")
    add("--seed", type=int, default=0)
    add("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    columns = command.add_argument_group(
        "columns",
        "What is not given here is as in training (the data section of DIR/recipe.yaml), and found from names and "
        "types where that is silent, too. For a table with other names than the training table's, give its own; an "
        "empty name ('') sets aside what the recipe says. Known covariates need rows for the horizon, with an empty "
        "target.",
    )
    columns.add_argument("--time", metavar="COLUMN", help="of timestamps")
    columns.add_argument("--item", metavar="COLUMN", help="of series names, in a long table")
    columns.add_argument("--target", type=_names, metavar="COLUMN,...", help="to forecast")
    columns.add_argument("--known", type=_names, metavar="COLUMN,...", help="covariates known ahead")
    columns.add_argument("--past", type=_names, metavar="COLUMN,...", help="covariates of the past")
    columns.add_argument("--freq", help="pandas frequency alias, where it cannot be inferred")
    columns.add_argument("--on-irregular", choices=("error", "resample"), help="what to do about irregular timestamps")
    command.set_defaults(run=_forecast)


def _forecast(arguments: argparse.Namespace) -> None:
    out, plot = Path(arguments.out), Path(arguments.plot) if arguments.plot else None
    _check_request(arguments, out, plot)
    device = _device(arguments.device)
    series = _read(arguments)
    forecaster = _load(arguments.model, device)
    forecast = forecaster.predict(
        series, arguments.horizon, arguments.quantiles, arguments.num_samples, seed=arguments.seed
    )
    _write(forecast, out, plot)
    print(f"Wrote {len(series)} forecasts of {arguments.horizon} steps to {out}")
    if plot:
        print(f"Wrote {plot}")


def _check_request(arguments: argparse.Namespace, out: Path, plot: Path | None) -> None:
    """Raises ValueError where something is wrong that can be told before anything is read or computed."""
    from .evaluation.forecast import check_levels
    from .evaluation.plots import intervals_of, picture_format

    for name in ("horizon", "num_samples"):
        if getattr(arguments, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} is {getattr(arguments, name)}; it must be at least 1")
    if arguments.quantiles is not None:
        check_levels(arguments.quantiles)
    if out.suffix not in (".parquet", ".csv"):
        raise ValueError(f"--out is {arguments.out!r}; it must end in .parquet or .csv")
    if out.exists() and Path(arguments.table).exists() and out.samefile(arguments.table):
        raise ValueError(f"--out is {arguments.out!r}, the table that is read; it must be another file")
    if plot:
        picture_format(plot)
        if arguments.quantiles is not None:
            intervals_of(arguments.quantiles)
    for option, path in (("--out", out), ("--plot", plot)):
        if path and not path.parent.is_dir():
            raise ValueError(f"{option} is {str(path)!r}; its folder {str(path.parent)!r} must be there")
        if path and path.is_dir():
            raise ValueError(f"{option} is {str(path)!r}, which is a folder; it must be a file")
    if not (Path(arguments.model) / "config.json").is_file():
        raise ValueError(
            f"--model is {arguments.model!r}, which holds no config.json; it must be a trained model's folder"
        )


def _device(name: str | None) -> Any:
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


def _read(arguments: argparse.Namespace) -> list[Series]:
    """The table's series; what the command line leaves open is as in training."""
    from .adapters import read_series

    trained = _trained_roles(Path(arguments.model) / "recipe.yaml", arguments.table)
    given = {role: getattr(arguments, role) for role in ROLES}
    inherited = {role: value for role, value in trained.items() if value and given[role] is None}
    named = {role: value for role, value in given.items() if value}
    try:
        return read_series(arguments.table, **{**inherited, **named})
    except ValueError as error:
        columns = [role for role in ROLES if role in inherited and role != "on_irregular"]
        if not columns:
            raise
        options = ", ".join(f"--{role}" for role in columns)
        raise ValueError(f"{error} ({options} not given: as in {arguments.model}/recipe.yaml)") from error


def _trained_roles(path: Path, table: str) -> dict[str, Any]:
    """The columns' roles of the recipe at `path`, none where there is no recipe."""
    from .schema import parse
    from .training.data import SeriesOptions
    from .training.recipe import load_recipe

    if not path.is_file():  # a converted checkpoint was not trained here
        return {}
    section = load_recipe(path).get("data")
    if not isinstance(section, dict) or section.get("kind") != "series":
        raise ValueError(f"{path}: data is {section!r}; it must be of the kind 'series'")
    # This table takes the place of the one that was trained on, which need not be known here.
    here = {**section, "dataset": None, "path": table}
    options = parse(SeriesOptions, {key: value for key, value in here.items() if key != "kind"}, f"{path}: data")
    return {role: getattr(options, role) for role in ROLES}


def _load(model: str, device: Any) -> Forecaster:
    from safetensors import SafetensorError
    from transformers.utils import logging

    from .forecasting import Forecaster

    logging.disable_progress_bar()  # of loading: it is done in a second
    try:
        return Forecaster.from_pretrained(model, device=device)
    except (RuntimeError, SafetensorError) as error:
        reason = str(error).partition("\n")[0].strip(" .")
        raise ValueError(
            f"--model is {model!r}, whose weights do not load ({reason}); model.safetensors and config.json must be "
            "whole and of one training"
        ) from error


def _write(forecast: Forecast, out: Path, plot: Path | None) -> None:
    """Both files appear whole, or neither does."""
    from .evaluation.plots import forecast_panels, plot_panels

    files = [path for path in (out, plot) if path]
    partial = {path: path.with_name(f".partial-{path.name}") for path in files}
    frame = forecast.to_frame()
    try:
        if out.suffix == ".parquet":
            frame.to_parquet(partial[out], index=False)
        else:
            frame.to_csv(partial[out], index=False)
        if plot:
            plot_panels(partial[plot], forecast_panels(forecast))
        for path in files:
            os.replace(partial[path], path)
    finally:
        for path in files:
            partial[path].unlink(missing_ok=True)


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None


if __name__ == "__main__":
    sys.exit(main())
