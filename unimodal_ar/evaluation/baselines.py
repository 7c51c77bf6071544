"""The two forecasts every model must beat, and honest prediction intervals for them.

Shapes: L lookback, H horizon, Q quantile levels, T length of the training history; "..." any leading sizes.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from unimodal_ar.evaluation.forecast import check_levels, rolling_windows

Array = np.ndarray
PointMethod = Callable[[Array, int], Array]
"""(past [..., L], horizon) -> [..., H]; NaN where the method has no forecast."""


def repeat_last(past: ArrayLike, horizon: int) -> Array:
    """The last observed value, again and again (the optimal forecast of a random walk).

    Args:
        past: [..., L], NaN where missing.
        horizon: H, in steps.

    Returns:
        [..., H] float64; NaN for a series of which nothing was observed.

    Raises:
        ValueError: an empty past, or horizon < 1.
    """
    return seasonal_naive(past, horizon, season=1)


def seasonal_naive(past: ArrayLike, horizon: int, season: int) -> Array:
    """The value one season ago; where that is missing, the value one more season back, and so on.

    Args:
        past: [..., L] with L >= season, NaN where missing.
        horizon: H, in steps; beyond one season the last season repeats.
        season: steps per season.

    Returns:
        [..., H] float64; NaN where that step of the season was never observed.

    Raises:
        ValueError: horizon < 1, season < 1, or a past that is shorter than the season.
    """
    values = np.asarray(past, dtype=np.float64)
    length = values.shape[-1] if values.ndim else 0
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; it must be at least 1")
    if not 1 <= season <= length:
        raise ValueError(f"season is {season}; it must be at least 1 and at most the length of the past {length}")
    # Padded in front to whole seasons, the next value belongs to the first column.
    front = [(0, 0)] * (values.ndim - 1) + [(-length % season, 0)]
    seasons = np.pad(values, front, constant_values=np.nan).reshape(*values.shape[:-1], -1, season)
    newest_first = seasons[..., ::-1, :]
    rank = np.argmax(~np.isnan(newest_first), axis=-2, keepdims=True)
    last = np.take_along_axis(newest_first, rank, axis=-2)[..., 0, :]
    return last[..., np.arange(horizon) % season]


def with_residual_quantiles(
    method: PointMethod, history: ArrayLike, levels: ArrayLike, horizon: int, lookback: int, stride: int = 1
) -> Callable[[ArrayLike], tuple[Array, Array]]:
    """Gives a point method predictive quantiles: its point forecast plus the empirical quantiles, for every lead time
    on its own, of the errors it made over rolling origins of the training history.

    The k-th smallest of m errors stands for the level k / (m + 1) (Weibull's positions), with which a future error of
    the same distribution falls below the quantile with exactly that probability, however few errors there are. The
    0.5 quantile is thus the point forecast plus the median error, so it corrects a bias; to judge the uncorrected
    method by MAE, evaluate it without quantiles.

    Args:
        method: for example `repeat_last` or `functools.partial(seasonal_naive, season=24)`.
        history: [T] training history of the series, NaN where missing: pairs without an error are left out.
        levels: [Q] in (0, 1), increasing.
        horizon: H, in steps.
        lookback: how much of the past the method is given at every origin; the same as in the evaluation.
        stride: steps between the origins; 1 uses every step as an origin.

    Returns:
        A function from past [..., lookback] to (point [..., H], quantiles [..., Q, H]).

    Raises:
        ValueError: illegal levels or sizes (see `rolling_windows`), a history that is not [T], or too few errors for
            the outermost level: level q needs at least 1 / min(q, 1 - q) - 1 of them at every lead time.
    """
    checked, series = check_levels(levels), np.asarray(history, dtype=np.float64)
    if series.ndim != 1:
        raise ValueError(f"history has shape {series.shape}; residual quantiles are made for one series [T] at a time")
    past, future = rolling_windows(series, lookback, horizon, stride=stride)
    errors = future - method(past, horizon)
    count = int(np.min(np.sum(~np.isnan(errors), axis=0)))
    tail = min(float(checked[0]), 1 - float(checked[-1]))
    needed = math.ceil(1 / tail - 1e-6) - 1
    if count < needed:
        raise ValueError(f"history leaves {count} errors at some lead time; the outermost level needs {needed}")
    offsets = np.nanquantile(errors, checked, axis=0, method="weibull")

    def forecast(past: ArrayLike) -> tuple[Array, Array]:
        point = method(np.asarray(past, dtype=np.float64), horizon)
        return point, point[..., None, :] + offsets

    return forecast
