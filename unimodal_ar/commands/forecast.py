"""`unimodal-ar forecast`: the series of a table, forecast into another."""

from __future__ import annotations

import argparse
import os
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
    from ..adapters import Series
    from ..forecasting import Forecast

ROLES = ("time", "item", "target", "known", "past", "freq", "on_irregular")
"""What the command line and a recipe's data section say about a table: arguments of `read_series`."""


def add(commands: Any) -> None:
    command = commands.add_parser(
        "forecast",
        help="forecast the series of a table",
        description="Forecast every series of a CSV or Parquet file, long or wide.",
    )
    option = command.add_argument
    option("table", metavar="CSV", help=".csv, .csv.gz or .parquet")
    add_model(option, "training")
    option("--horizon", required=True, type=int, metavar="H", help="steps to forecast")
    option("--out", required=True, metavar="FILE", help="where to write the forecasts: .parquet or .csv")
    option("--plot", metavar="PNG", help="also draw the first series and their forecasts (.png, .svg, .pdf)")
    option("--quantiles", type=_floats, metavar="Q,Q,...", help="quantile levels (default 0.05 to 0.95)")
    option("--num-samples", type=int, default=100, metavar="S", help="sample paths per series (default 100)")
    add_steps(option)
    option(
        "--roll-out",
        choices=("window", "cache"),
        default="window",
        help="beyond the trained length: rescale and slide the window (default), or draw the whole horizon in one go, "
        "which is faster",
    )
    option(
        "--examples",
        choices=("none", "earlier", "similar"),
        help="in-context examples before every lookback: the steps just before it, or earlier windows that begin like "
        "it (default: as in training)",
    )
    option("--seed", type=int, default=0, help="of the sample paths (default 0)")
    option("--device", help="cpu, cuda, ... (default: a GPU if there is one)")
    columns = command.add_argument_group(
        "columns",
        "Defaults are those of training (the data section of DIR/recipe.yaml); what it does not say is inferred from "
        "names and types. Give the names if this table's differ from the training table's; an empty name ('') ignores "
        "the recipe's. Known covariates need rows for the horizon, with an empty target.",
    )
    columns.add_argument("--time", metavar="COLUMN", help="the timestamps")
    columns.add_argument("--item", metavar="COLUMN", help="the names of the series, in a long table")
    columns.add_argument("--target", type=_names, metavar="COLUMN,...", help="what to forecast")
    columns.add_argument("--known", type=_names, metavar="COLUMN,...", help="covariates known ahead")
    columns.add_argument("--past", type=_names, metavar="COLUMN,...", help="covariates known only for the past")
    columns.add_argument("--freq", help="pandas frequency alias, if it cannot be inferred")
    columns.add_argument("--on-irregular", choices=("error", "resample"), help="what to do about irregular timestamps")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from .. import ranks
    from ..forecasting import Forecaster

    out, plot = Path(arguments.out), Path(arguments.plot) if arguments.plot else None
    _check_request(arguments, out, plot)
    steps = step_options(arguments)
    with all_processes(arguments.device) as device:
        arguments.model = model_of(arguments.model, arguments.revision)
        series = _read(arguments)
        forecaster = load_quietly(Forecaster, arguments.model, device)
        levels, count = arguments.quantiles, arguments.num_samples
        with naming_options():
            examples = {None: "trained", "none": None}.get(arguments.examples, arguments.examples)
            drawing = {"seed": arguments.seed, "roll_out": arguments.roll_out, "examples": examples, **steps}
            forecast = forecaster.predict(series, arguments.horizon, levels, count, **drawing)
    if ranks.rank():
        return
    _write(forecast, out, plot)
    print(f"Wrote {len(series)} forecast{'s' * (len(series) > 1)} of {arguments.horizon} steps to {out}")
    if plot:
        print(f"Wrote {plot}")


def _check_request(arguments: argparse.Namespace, out: Path, plot: Path | None) -> None:
    """Raises ValueError where something is wrong that can be told before anything is read or computed."""
    from ..evaluation.forecast import check_levels
    from ..evaluation.plots import intervals_of, picture_format

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
        if path:
            check_output(option, path)


def _read(arguments: argparse.Namespace) -> list[Series]:
    """The table's series; what the command line leaves open is as in training."""
    from ..adapters import read_series

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
    from ..schema import parse
    from ..training.documents import load_recipe
    from ..training.series import SeriesOptions

    if not path.is_file():  # a converted checkpoint was not trained here
        return {}
    section = load_recipe(path).get("data")
    if not isinstance(section, dict) or section.get("kind") != "series":
        kind = section.get("kind") if isinstance(section, dict) else section
        raise ValueError(f"{path}: data.kind is {kind!r}; only models of 'series' forecast, others draw by 'sample'")
    # This table takes the place of the one that was trained on, which need not be known here.
    here = {**section, "dataset": None, "path": table}
    options = parse(SeriesOptions, {key: value for key, value in here.items() if key != "kind"}, f"{path}: data")
    return {role: getattr(options, role) for role in ROLES}


def _write(forecast: Forecast, out: Path, plot: Path | None) -> None:
    """Both files appear whole, or neither does."""
    from ..evaluation.plots import forecast_panels, plot_panels

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
