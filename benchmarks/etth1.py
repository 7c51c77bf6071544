"""Next-patch forecasting of ETTh1 beside a linear model trained alike, seasonal naive and repeat-last.

    python benchmarks/etth1.py ETTh1.csv [--epochs 2] [--stride 1]

Protocol: lookback 672, patch 96, 12 / 4 / 4 months, channels independent, standardised by the training part; errors are
averaged over the 7 channels and all test windows. One model for all horizons: forecasts longer than a patch are rolled
out, normalised anew for every patch. The linear models are one map 672 -> 96 with the same
normalisation, windows, batch size and roll-out, trained by Adam with mean squared error and with the recipe's loss.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import machine  # type: ignore[import-not-found]  # the scripts' own folder

from unimodal_ar.evaluation import format_table, mae, mse, repeat_last, rolling_windows, seasonal_naive
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.recipe import Resolved

HORIZONS = (96, 192, 336, 720)
LOOKBACK, PATCH, TEST = 672, 96, 11520
Method = Callable[[np.ndarray, int], np.ndarray]
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
LOSSES: dict[str, Loss] = {"mse": F.mse_loss, "mae": F.l1_loss, "huber": F.huber_loss}


def normalised(past: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    mean, deviation = past.mean(-1, keepdim=True), past.std(-1, keepdim=True, unbiased=False).clamp(min=1e-6)
    return (past - mean) / deviation, mean, deviation


def train_linear(
    resolved: Resolved, loss: Loss, epochs: int, batch: int = 256, learning_rate: float = 5e-4
) -> torch.nn.Linear:
    """One linear map on the training windows of the recipe, its loss in normalised units as the other model's is."""
    torch.manual_seed(0)
    pairs = [
        rolling_windows(series.values[: resolved.data.split(series).validation], LOOKBACK, PATCH)
        for series in resolved.data.series
    ]
    windows = [np.concatenate(pair, -1).astype(np.float32) for pair in pairs]
    data = torch.from_numpy(np.concatenate(windows))
    model = torch.nn.Linear(LOOKBACK, PATCH)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    for _ in range(epochs):
        for rows in torch.randperm(len(data)).split(batch):
            past, mean, deviation = normalised(data[rows, :LOOKBACK])
            optimizer.zero_grad()
            loss(model(past), (data[rows, LOOKBACK:] - mean) / deviation).backward()
            optimizer.step()
    return model


def rolled(model: torch.nn.Linear) -> Method:
    @torch.no_grad()
    def forecast(past: np.ndarray, horizon: int) -> np.ndarray:
        path = torch.from_numpy(np.ascontiguousarray(past)).float()
        while path.shape[1] < past.shape[1] + horizon:
            scaled, mean, deviation = normalised(path[:, -LOOKBACK:])
            path = torch.cat([path, model(scaled) * deviation + mean], 1)
        return path[:, past.shape[1] :][:, :horizon].numpy()

    return forecast


def test_errors(method: Method, resolved: Resolved, stride: int) -> dict[str, float]:
    """MSE and MAE per horizon over all channels and test windows. Each window is forecast once, as far as it reaches:
    shorter forecasts are what a roll-out begins with."""
    targets: dict[int, list[np.ndarray]] = {horizon: [] for horizon in HORIZONS}
    forecasts: dict[int, list[np.ndarray]] = {horizon: [] for horizon in HORIZONS}
    for series in resolved.data.series:
        done = 0
        for horizon in reversed(HORIZONS):
            past, future = rolling_windows(series.values, LOOKBACK, horizon, start=TEST, stride=stride)
            if len(past) == done:
                continue
            forecast = method(past[done:], horizon)
            for reached in HORIZONS[: HORIZONS.index(horizon) + 1]:
                targets[reached].append(future[done:, :reached])
                forecasts[reached].append(forecast[:, :reached])
            done = len(past)
    errors = {}
    for horizon in HORIZONS:
        pair = np.concatenate(targets[horizon]), np.concatenate(forecasts[horizon])
        errors[f"{horizon} MSE"], errors[f"{horizon} MAE"] = mse(*pair), mae(*pair)
    return errors


def ours(document: dict[str, Any], folder: Path) -> Method:
    forecaster = Forecaster.from_pretrained(train(document | {"output_dir": str(folder), "evaluation": None}) or folder)
    return lambda past, horizon: forecaster.predict(list(past), horizon, batch_size=1024).mean


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", help="ETTh1.csv")
    parser.add_argument("--epochs", type=int, help="of the next-patch model (default: the recipe's)")
    parser.add_argument("--linear-epochs", type=int, default=2)
    parser.add_argument("--stride", type=int, default=1, help="between test windows; the literature uses 1")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=VALUE")
    arguments = parser.parse_args()
    overrides = [f"data.path={arguments.csv}", *arguments.overrides]
    if arguments.epochs:
        overrides.append(f"training.num_train_epochs={arguments.epochs}")
    document = load_recipe("next_patch/etth1", overrides)
    resolved = Resolved(document)
    kind = document["model"]["modalities"]["series"]["head"]["loss"]
    rows, seconds = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        builders: dict[str, Callable[[], Method]] = {
            "next-patch (ours)": lambda: ours(document, Path(folder) / "model"),
            "linear, mse": lambda: rolled(train_linear(resolved, F.mse_loss, arguments.linear_epochs)),
            f"linear, {kind}": lambda: rolled(train_linear(resolved, LOSSES[kind], arguments.linear_epochs)),
            "seasonal naive, 24 h": lambda: lambda past, horizon: seasonal_naive(past, horizon, 24),
            "repeat last": lambda: repeat_last,
        }
        for name, build in builders.items():
            started = time.monotonic()
            method = build()
            seconds[name] = time.monotonic() - started
            rows[name] = {**test_errors(method, resolved, arguments.stride), "training s": round(seconds[name], 1)}
    print(f"\nETTh1, {machine(torch.device('cpu'), torch.float32)}; test windows at stride {arguments.stride}\n")
    print(format_table(rows))


if __name__ == "__main__":
    main()
