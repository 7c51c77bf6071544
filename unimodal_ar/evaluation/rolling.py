"""Rolling forecasts over the held-out end of series, beside the baselines that every forecaster must beat.

Shapes: W windows (forecast origins), L steps of lookback, H steps of horizon, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..adapters import Series
from ..forecasting import LEVELS, Forecaster
from .baselines import repeat_last, seasonal_naive, with_residual_quantiles
from .forecast import evaluate, rolling_windows, seasonal_naive_error

Rows = dict[str, dict[str, float]]


def rolling_evaluation(
    forecaster: Forecaster,
    series: Sequence[Series],
    train_stop: Sequence[int],
    test_start: Sequence[int],
    horizon: int,
    stride: int,
    season: int,
    num_samples: int = 100,
    seed: int = 0,
) -> Rows:
    """Metrics of the model, of repeat-last and of seasonal-naive on the same windows.

    Every origin from `test_start` on, `stride` steps apart, whose horizon fits. The baselines' quantiles are those of
    their own errors on the training part, centred on the point; MASE is scaled by the seasonal naive error there.

    Args:
        series: their whole length.
        train_stop, test_start: per series, in steps; what comes before `train_stop` was trained on.

    Returns:
        method -> metric -> value, see `evaluate`; pooled over series and windows.
    """
    seen = max(forecaster.lookback, season)  # by the baselines
    names = {
        "unimodal_ar": None,
        "repeat last": repeat_last,
        f"seasonal naive ({season})": partial(seasonal_naive, season=season),
    }
    collected: dict[str, list[tuple[np.ndarray, np.ndarray | None]]] = {name: [] for name in names}
    targets, scales = [], []
    for item, train, test in zip(series, train_stop, test_start, strict=True):
        past, future = rolling_windows(item.values, min(seen, test), horizon, start=test, stride=stride)
        history = item.values[:train]
        targets.append(future)
        scales.append(np.full(len(future), float(seasonal_naive_error(history, season))))
        for name, method in names.items():
            forecast = (
                _model(forecaster, item, test, len(future), horizon, stride, num_samples, seed)
                if method is None
                else _baseline(method, history, past, horizon, forecaster.is_point)
            )
            collected[name].append(forecast)
    target, scale = np.concatenate(targets), np.concatenate(scales)
    rows = {}
    for name, forecasts in collected.items():
        points = np.concatenate([point for point, _ in forecasts])
        quantiles = None if forecaster.is_point else np.concatenate([q for _, q in forecasts if q is not None])
        rows[name] = evaluate(target, points, quantiles, None if quantiles is None else LEVELS, scale)
    return rows


def window(item: Series, origin: int, horizon: int, lookback: int) -> Series:
    """What is known of a series at `origin`: its last `lookback` values, and known covariates up to the horizon."""
    start = max(origin - lookback, 0)
    return Series(
        item.values[start:origin],
        item.item_id,
        _time(item, start),
        item.freq,
        None if item.known is None else item.known[start : origin + horizon],
        None if item.past is None else item.past[start:origin],
    )


def _time(item: Series, step: int) -> Any:
    if item.start is None or item.freq is None:
        return None
    import pandas as pd

    return pd.date_range(item.start, periods=step + 1, freq=item.freq)[-1]


def _model(
    forecaster: Forecaster, item: Series, test: int, count: int, horizon: int, stride: int, num_samples: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    bare = Series(item.values, item.item_id, known=item.known, past=item.past)  # times would only cost time here
    windows = [window(bare, test + i * stride, horizon, forecaster.lookback) for i in range(count)]
    forecast = forecaster.predict(windows, horizon, None if forecaster.is_point else LEVELS, num_samples, seed=seed)
    return forecast.mean, forecast.quantiles


def _baseline(
    method: Callable[..., np.ndarray], history: np.ndarray, past: np.ndarray, horizon: int, point_only: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    if point_only:
        return method(past, horizon), None
    point, quantiles = with_residual_quantiles(method, history, LEVELS, horizon, past.shape[-1])(past)
    # Centred on the point: the bias of the training part (spring and summer, say) need not be that of the test part.
    centre = quantiles[..., [LEVELS.index(0.5)], :]
    return point, quantiles - centre + point[..., None, :]
