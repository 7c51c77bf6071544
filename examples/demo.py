"""The demo behind `make demo`: trains the temperature recipe, forecasts the held-out weeks, and checks that the saved
model gives the same forecast in a new process. Exits with 1 if it does not beat both baselines.

    python examples/demo.py [--output runs/demo] [--set training.num_train_epochs=1]
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from unimodal_ar.adapters import read_series
from unimodal_ar.evaluation.plots import Panel, plot_panels
from unimodal_ar.evaluation.rolling import window
from unimodal_ar.forecasting import Forecast, Forecaster
from unimodal_ar.recipes.train import train
from unimodal_ar.training.data import DATASETS
from unimodal_ar.training.documents import load_recipe

HORIZON = 168  # hours: a week
RECIPE = "next_patch/temperature"


def last_week(model: Path) -> tuple[Forecast, list[np.ndarray]]:
    """The forecast of the year's last week, and what happened."""
    forecaster = Forecaster.from_pretrained(model)
    series = read_series(DATASETS["city_temperatures"](), on_irregular="resample")
    past = [window(item, len(item.values) - HORIZON, HORIZON, forecaster.lookback) for item in series]
    return forecaster.predict(past, HORIZON, seed=0), [item.values[-HORIZON:] for item in series]


def check_reload(model: Path, samples: np.ndarray) -> bool:
    """Whether a fresh process, which knows nothing but the folder, draws exactly these samples."""
    stored = model / "demo_samples.npy"
    subprocess.run([sys.executable, __file__, "--reload", str(model)], check=True)
    equal = bool(np.array_equal(np.load(stored, allow_pickle=False), samples))
    stored.unlink()
    return equal


def beats_baselines(evaluation: dict[str, dict[str, dict[str, float]]]) -> bool:
    """Whether the model's errors are below both baselines' at every horizon: MSE, MAE and weighted quantile loss."""
    return all(
        rows["unimodal_ar"][metric] < values[metric]
        for rows in evaluation.values()
        for name, values in rows.items()
        if name != "unimodal_ar"
        for metric in ("MSE", "MAE", "WQL")
    )


def draw(path: Path, forecast: Forecast, actual: list[np.ndarray]) -> None:
    shown = 2 * HORIZON
    panels = [
        Panel(
            item.values[-shown:],
            forecast.median[i],
            None if forecast.quantiles is None else forecast.quantiles[i],
            forecast.levels,
            actual=actual[i],
            timestamps=forecast.times(i)[-shown - HORIZON :],
            title=f"{item.item_id}, °F",
        )
        for i, item in enumerate(forecast.series)
    ]
    plot_panels(path, panels, title="Hourly temperature, the last week of the year forecast from the two before")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("runs/demo"))
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=VALUE")
    parser.add_argument("--reload", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.reload:
        np.save(arguments.reload / "demo_samples.npy", last_week(arguments.reload)[0].samples)
        return 0

    started = time.monotonic()
    document = load_recipe(RECIPE, [*arguments.overrides, f"output_dir={json.dumps(str(arguments.output))}"])
    train(document, overwrite=True)
    forecast, actual = last_week(arguments.output)
    draw(arguments.output / "forecast.png", forecast, actual)
    equal = check_reload(arguments.output, forecast.samples)
    won = beats_baselines(json.loads((arguments.output / "evaluation.json").read_text()))

    print(f"\nPicture: {arguments.output / 'forecast.png'}")
    print(f"Reloaded in a fresh process: the forecast is {'identical' if equal else 'DIFFERENT'}.")
    print(f"Both baselines beaten at every horizon: {'yes' if won else 'NO'}.")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << (20 if sys.platform != "darwin" else 30))
    print(f"{time.monotonic() - started:.0f} s, {peak:.1f} GB of memory at most.")
    return 0 if equal and won else 1


if __name__ == "__main__":
    sys.exit(main())
