"""The command line: `unimodal-ar train` and `unimodal-ar forecast`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from ._version import __version__


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
    columns = command.add_argument_group("columns (found by themselves where the table allows it)")
    columns.add_argument("--time", metavar="COLUMN", help="of timestamps")
    columns.add_argument("--item", metavar="COLUMN", help="of series names, in a long table")
    columns.add_argument("--target", type=_names, metavar="COLUMN,...", help="to forecast")
    columns.add_argument("--known", type=_names, default=[], metavar="COLUMN,...", help="covariates known ahead")
    columns.add_argument("--past", type=_names, default=[], metavar="COLUMN,...", help="covariates of the past")
    columns.add_argument("--freq", help="pandas frequency alias, where it cannot be inferred")
    columns.add_argument(
        "--on-irregular", choices=("error", "resample"), default="error", help="what to do about irregular timestamps"
    )
    command.set_defaults(run=_forecast)


def _forecast(arguments: argparse.Namespace) -> None:
    from .adapters import read_series
    from .forecasting import Forecaster

    out = Path(arguments.out)
    if out.suffix not in (".parquet", ".csv"):
        raise ValueError(f"--out is {arguments.out!r}; it must end in .parquet or .csv")
    if not (Path(arguments.model) / "config.json").is_file():
        raise ValueError(
            f"--model is {arguments.model!r}, which holds no config.json; it must be a trained model's folder"
        )
    names = ("time", "item", "target", "known", "past", "freq", "on_irregular")
    series = read_series(arguments.table, **{name: getattr(arguments, name) for name in names})
    forecaster = Forecaster.from_pretrained(arguments.model, device=arguments.device)
    forecast = forecaster.predict(
        series, arguments.horizon, arguments.quantiles, arguments.num_samples, seed=arguments.seed
    )
    partial = out.with_name(f".{out.name}.partial")
    try:
        if out.suffix == ".parquet":
            forecast.to_frame().to_parquet(partial, index=False)
        else:
            forecast.to_frame().to_csv(partial, index=False)
        os.replace(partial, out)
    finally:
        partial.unlink(missing_ok=True)
    print(f"Wrote {len(series)} forecasts of {arguments.horizon} steps to {out}")
    if arguments.plot:
        from .evaluation.plots import forecast_panels, plot_panels

        plot_panels(arguments.plot, forecast_panels(forecast))
        print(f"Wrote {arguments.plot}")


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a comma-separated list of numbers") from None


if __name__ == "__main__":
    sys.exit(main())
