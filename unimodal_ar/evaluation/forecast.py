"""How good is a forecast? Point and quantile metrics, rolling evaluation windows, and a table to print them in.

Shapes: H horizon, Q quantile levels, T series length, n windows; "..." any leading sizes (series, windows), the same
for every argument. Everything is computed in float64 and pooled over all observed points, as GluonTS does with
`axis=None`. A NaN in the target is a missing value and is left out; a forecast must be finite wherever the target is
observed, because leaving its failures out would flatter it.
"""

from __future__ import annotations

import warnings

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import ArrayLike

Array = np.ndarray


def mse(target: ArrayLike, forecast: ArrayLike) -> float:
    """Mean squared error, in squared units of the target; the mean is the forecast that minimises it.

    Args:
        target: [..., H], NaN where missing.
        forecast: [..., H] point forecast.

    Raises:
        ValueError: the shapes differ, no target is observed, or a forecast of an observed target is not finite.
    """
    return float(np.nanmean(np.square(_errors(target, forecast))))


def mae(target: ArrayLike, forecast: ArrayLike) -> float:
    """Mean absolute error, in units of the target; the median is the forecast that minimises it. Arguments and errors
    as in `mse`."""
    return float(np.nanmean(np.abs(_errors(target, forecast))))


def seasonal_naive_error(history: ArrayLike, season: int) -> Array:
    """The scale of MASE: mean |y[t] - y[t - season]| of the training history, over the pairs with both observed.

    Equals `gluonts.ev.ts_stats.seasonal_error`, except that a history no longer than the season is an error here (there
    it is scaled with season 1).

    Args:
        history: [..., T] with T > season, NaN where missing.
        season: steps per season, >= 1; 1 is the error of repeat-last.

    Returns:
        [...] one scale per series, in units of the series: 0 for a constant one, NaN where no pair is observed.

    Raises:
        ValueError: season < 1 or not below T.
    """
    series = np.asarray(history, dtype=np.float64)
    length = series.shape[-1] if series.ndim else 0
    if not 1 <= season < length:
        raise ValueError(f"season is {season}; it must be at least 1 and below the history's length {length}")
    differences = np.abs(series[..., season:] - series[..., :-season])
    pairs = np.sum(~np.isnan(differences), axis=-1)
    return np.where(pairs > 0, np.nansum(differences, axis=-1) / np.maximum(pairs, 1), np.nan)


def mase(
    target: ArrayLike,
    forecast: ArrayLike,
    history: ArrayLike | None = None,
    season: int = 1,
    *,
    seasonal_error: ArrayLike | None = None,
) -> float:
    """Mean absolute scaled error (Hyndman and Koehler 2006): absolute errors in units of the seasonal-naive error of
    the training history, so that series of any unit can be pooled.

    Args:
        target: [..., H], NaN where missing.
        forecast: [..., H] point forecast.
        history: [..., T] training history of every series, from which the scale is computed ...
        season: ... with this many steps per season; or
        seasonal_error: scalar or [...], the scale itself, from `seasonal_naive_error`.

    A series whose scale is 0 or NaN has no MASE: it is left out, with a warning.

    Raises:
        ValueError: as in `mse`; not exactly one of `history` and `seasonal_error` is given; a scale is negative,
            infinite or of the wrong shape; no series has a scale.
    """
    if (history is None) == (seasonal_error is None):
        raise ValueError("mase needs exactly one of history and seasonal_error")
    errors = np.abs(_errors(target, forecast))
    scale = np.asarray(seasonal_naive_error(history, season) if history is not None else seasonal_error, np.float64)
    if scale.shape not in ((), errors.shape[:-1]):
        raise ValueError(
            f"seasonal_error has shape {scale.shape}; it must be one number, or one per series: {errors.shape[:-1]}"
        )
    if np.any(scale < 0) or np.any(np.isinf(scale)):
        raise ValueError(
            f"seasonal_error reaches from {np.nanmin(scale)} to {np.nanmax(scale)}; it must be finite and not negative"
        )
    scaled = errors / np.where(scale > 0, scale, np.nan)[..., None]
    if np.all(np.isnan(scaled)):
        raise ValueError("seasonal_error is 0 or missing for every series with a target; MASE is not defined")
    undefined = int(np.sum(~(scale > 0)))
    if undefined:
        warnings.warn(
            f"MASE leaves out {undefined} of {scale.size} series: their seasonal error is 0 or NaN", stacklevel=2
        )
    return float(np.nanmean(scaled))


def weighted_quantile_loss(target: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> float:
    """Weighted quantile loss (WQL), without unit: the mean over levels of 2 * sum(pinball) / sum(|target|).

    This is GluonTS's `MeanWeightedSumQuantileLoss`, which GIFT-Eval and Chronos report. It is not M5's WSPL, which
    scales every series by its own naive error and weights it by sales.

    Args:
        target: [..., H], NaN where missing.
        quantiles: [..., Q, H] forecasts of the quantiles.
        levels: [Q] in (0, 1), increasing.

    Raises:
        ValueError: as in `mse`, for `quantiles`; illegal levels; every observed target is 0.
    """
    total = float(np.nansum(np.abs(_as_target(target))))
    loss = _pinball(target, quantiles, levels)
    if total == 0:
        raise ValueError("target is 0 wherever it is observed; the weighted quantile loss divides by sum(|target|)")
    return float(2 * np.nansum(loss) / np.shape(levels)[0] / total)


def crps(target: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> float:
    """Continuous ranked probability score from quantiles, in units of the target: 2 * mean(pinball) over points and
    levels (Laio and Tamea 2007). It tends to the exact score as the levels fill (0, 1). Arguments as in
    `weighted_quantile_loss`.

    Raises:
        ValueError: as in `weighted_quantile_loss`; the levels are not evenly spaced, so that their mean is no integral.
    """
    steps = np.diff(check_levels(levels))
    if not np.allclose(steps, steps[:1]):
        raise ValueError(f"levels are {np.asarray(levels).tolist()}; the CRPS needs evenly spaced ones")
    return float(2 * np.nanmean(_pinball(target, quantiles, levels)))


def coverage(target: ArrayLike, lower: ArrayLike, upper: ArrayLike) -> float:
    """Share of the observed targets with lower <= target <= upper; for an honest 80 % interval it is close to 0.8.

    Args:
        target, lower, upper: [..., H]; NaN where the target is missing.

    Raises:
        ValueError: as in `mse`, for both bounds.
    """
    above = _errors(target, lower, "lower")
    below = _errors(target, upper, "upper")
    observed = ~np.isnan(above)
    return float(np.mean((above[observed] >= 0) & (below[observed] <= 0)))


def evaluate(
    target: ArrayLike,
    mean: ArrayLike,
    quantiles: ArrayLike | None = None,
    levels: ArrayLike | None = None,
    seasonal_error: ArrayLike | None = None,
) -> dict[str, float]:
    """All metrics of one method, pooled over all series and windows.

    Args:
        target: [..., H], NaN where missing.
        mean: [..., H] mean forecast.
        quantiles: [..., Q, H], for a method that has them; their levels must include 0.5.
        levels: [Q] in (0, 1), increasing.
        seasonal_error: scalar or [...], from `seasonal_naive_error` of the training history.

    Returns:
        MSE (of the mean) and MAE (of the median; of the mean where there are no quantiles); MASE (of the same, given
        `seasonal_error`); WQL (given quantiles); coverage_80 (given the levels 0.1 and 0.9). What cannot be computed
        from the arguments is not a key.

    Raises:
        ValueError: as in the single metrics; only one of `quantiles` and `levels` is given; 0.5 is not a level.
    """
    if (quantiles is None) != (levels is None):
        raise ValueError("quantiles and levels must be given together")
    median = mean
    if quantiles is not None and levels is not None:
        _pinball(target, quantiles, levels)  # shapes are checked before a level is looked up
        found = quantile_at(quantiles, levels, 0.5)
        if found is None:
            raise ValueError(f"levels are {np.asarray(levels).tolist()}; MAE is that of the median, so add 0.5")
        median = found
    metrics = {"MSE": mse(target, mean), "MAE": mae(target, median)}
    if seasonal_error is not None:
        metrics["MASE"] = mase(target, median, seasonal_error=seasonal_error)
    if quantiles is not None and levels is not None:
        metrics["WQL"] = weighted_quantile_loss(target, quantiles, levels)
        lower, upper = quantile_at(quantiles, levels, 0.1), quantile_at(quantiles, levels, 0.9)
        if lower is not None and upper is not None:
            metrics["coverage_80"] = coverage(target, lower, upper)
    return metrics


def check_levels(levels: ArrayLike) -> Array:
    """[Q] float64 levels, or ValueError where they do not increase strictly inside (0, 1)."""
    checked = np.asarray(levels, dtype=np.float64)
    inside = checked.ndim == 1 and checked.size > 0 and bool(np.all((checked > 0) & (checked < 1)))
    if not inside or np.any(np.diff(checked) <= 0):
        raise ValueError(f"levels are {checked.tolist()}; they must be a list that increases strictly inside (0, 1)")
    return checked


def quantile_at(quantiles: ArrayLike, levels: ArrayLike, level: float) -> Array | None:
    """[..., H] the forecasts [..., Q, H] at one of the levels [Q], or None where `level` is not among them."""
    # Levels come from arithmetic such as linspace, so that 0.9 may be 0.9000000000000001.
    (found,) = np.nonzero(np.isclose(check_levels(levels), level, rtol=0, atol=1e-9))
    return np.asarray(quantiles)[..., found[0], :] if found.size else None


def rolling_windows(
    series: ArrayLike, lookback: int, horizon: int, start: int | None = None, stride: int = 1
) -> tuple[Array, Array]:
    """Every (past, future) pair of a rolling evaluation.

    Args:
        series: [..., T].
        lookback: length of the past, in steps.
        horizon: length of the future, in steps.
        start: position in the series of the first future value, at least `lookback` (the default): with a test period
            that begins at `start`, the first past ends just before it.
        stride: steps between forecast origins.

    Returns:
        past [..., n, lookback] and future [..., n, horizon]: read-only views, without copying. Windows that would run
        over the end of the series are left out.

    Raises:
        ValueError: a size is below 1, `start` is below `lookback`, or not one window fits.
    """
    values = np.asarray(series)
    start = lookback if start is None else start
    for name, size in (("lookback", lookback), ("horizon", horizon), ("stride", stride)):
        if size < 1:
            raise ValueError(f"{name} is {size}; it must be at least 1")
    if start < lookback:
        raise ValueError(f"start is {start}; it must be at least the lookback {lookback}")
    length = values.shape[-1] if values.ndim else 0
    if start + horizon > length:
        raise ValueError(f"series has length {length}; one window needs start + horizon = {start + horizon} steps")
    windows = sliding_window_view(values, lookback + horizon, axis=-1)[..., start - lookback :: stride, :]
    return windows[..., :lookback], windows[..., lookback:]


def _as_target(target: ArrayLike) -> Array:
    checked = np.asarray(target, dtype=np.float64)
    if checked.ndim == 0 or np.all(np.isnan(checked)):
        raise ValueError(f"target has shape {checked.shape} and no observed value; nothing can be measured")
    if np.any(np.isinf(checked)):
        raise ValueError("target has infinite values; mark what is missing as NaN")
    return checked


def _errors(target: ArrayLike, forecast: ArrayLike, name: str = "forecast") -> Array:
    """[..., H] target - forecast, NaN where the target is missing."""
    actual, predicted = _as_target(target), np.asarray(forecast, dtype=np.float64)
    if predicted.shape != actual.shape:
        raise ValueError(f"{name} has shape {predicted.shape}; it must be the target's shape {actual.shape}")
    observed = ~np.isnan(actual)
    failed = int(np.sum(~np.isfinite(predicted[observed])))
    if failed:
        raise ValueError(f"{name} has {failed} values that are NaN or infinite where the target is observed")
    return np.where(observed, actual - np.where(observed, predicted, 0.0), np.nan)


def _pinball(target: ArrayLike, quantiles: ArrayLike, levels: ArrayLike) -> Array:
    """[..., Q, H] max(level * error, (level - 1) * error), NaN where the target is missing."""
    actual, checked, predicted = _as_target(target), check_levels(levels), np.asarray(quantiles)
    expected = (*actual.shape[:-1], len(checked), actual.shape[-1])
    if predicted.shape != expected:
        raise ValueError(f"quantiles have shape {predicted.shape}; target and levels ask for [..., Q, H] = {expected}")
    errors = _errors(np.broadcast_to(actual[..., None, :], expected), predicted, "quantiles")
    return np.maximum(checked[:, None] * errors, (checked[:, None] - 1) * errors)
