"""Rolling forecasts over the held-out end of series, beside the baselines that every forecaster must beat.

Shapes: W windows (forecast origins), L steps of lookback, H steps of horizon, Q quantile levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from ..adapters import Series, time_of_step
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
    **sampling: Any,
) -> Rows:
    """Metrics of the model, of repeat-last and of seasonal-naive on the same windows; see `RollingEvaluation`.
    `sampling` is what `Forecaster.predict` takes besides (temperature, steps, head_steps, sampler, examples).

    Returns:
        method -> metric -> value, see `evaluate`; pooled over series and windows.
    """
    rolling = RollingEvaluation(series, train_stop, test_start, horizon, stride, season, forecaster.lookback)
    model = rolling.model(forecaster, num_samples, seed, **sampling)
    return {"unimodal_ar": model, **rolling.baselines(forecaster.is_point)}


class RollingEvaluation:
    """Forecasts from every origin from `test_start` on, `stride` steps apart, whose horizon fits.

    MASE is scaled by the seasonal naive error of the training part. What is wrong with the data is found when this is
    made and by `baselines`, both of which are cheap; so both belong before a training.

    Args:
        series: their whole length.
        train_stop, test_start: per series, in steps; what comes before `train_stop` was trained on.
        horizon, stride, season: in steps.
        lookback: steps that the model sees; the baselines see a season at least.

    Raises:
        ValueError: no window fits, a season that is not shorter than the training part, a window before which nothing
            was observed; the message names the series.
    """

    def __init__(
        self,
        series: Sequence[Series],
        train_stop: Sequence[int],
        test_start: Sequence[int],
        horizon: int,
        stride: int,
        season: int,
        lookback: int,
    ) -> None:
        self.horizon, self.stride, self.season = horizon, stride, season
        self.items = list(zip(series, train_stop, test_start, strict=True))
        self.pasts: list[np.ndarray] = []
        targets, scales = [], []
        for item, train, test in self.items:
            with _naming(item):
                seen = min(max(lookback, season), test)
                past, future = rolling_windows(item.values, seen, horizon, start=test, stride=stride)
                scale = float(seasonal_naive_error(item.values[:train], season))
                empty = np.flatnonzero(np.isnan(past[:, -lookback:]).all(1))
                if len(empty):
                    raise ValueError(f"nothing is observed in the {lookback} steps before {test + empty[0] * stride}")
            self.pasts.append(past)
            targets.append(future)
            scales.append(np.full(len(future), scale))
        self.target, self.scale = np.concatenate(targets), np.concatenate(scales)

    def baselines(self, point_only: bool) -> Rows:
        """Metrics of repeat-last and of seasonal-naive.

        Args:
            point_only: no quantiles. Else they are those of the baseline's own errors on the training part, centred on
                the point.

        Raises:
            ValueError: a training part too short for the quantiles, a target without a forecast; the message names the
                series or the method.
        """
        methods: dict[str, Callable[..., np.ndarray]] = {
            "repeat last": repeat_last,
            f"seasonal naive ({self.season})": partial(seasonal_naive, season=self.season),
        }
        rows = {}
        for name, method in methods.items():
            forecasts = []
            for (item, train, _), past in zip(self.items, self.pasts, strict=True):
                with _naming(item):
                    forecasts.append(_baseline(method, item.values[:train], past, self.horizon, point_only))
            try:
                rows[name] = self._evaluate(forecasts)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
        return rows

    def model(self, forecaster: Forecaster, num_samples: int = 100, seed: int = 0, **sampling: Any) -> dict[str, float]:
        """Metrics of the model, which must see `lookback` steps; `sampling` as in `rolling_evaluation`."""
        return self._evaluate(
            [
                _model(forecaster, item, test, len(past), self.horizon, self.stride, num_samples, seed=seed, **sampling)
                for (item, _, test), past in zip(self.items, self.pasts, strict=True)
            ]
        )

    def _evaluate(self, forecasts: list[tuple[np.ndarray, np.ndarray | None]]) -> dict[str, float]:
        points = np.concatenate([point for point, _ in forecasts])
        found = [quantiles for _, quantiles in forecasts if quantiles is not None]
        quantiles, levels = (np.concatenate(found), LEVELS) if found else (None, None)
        return evaluate(self.target, points, quantiles, levels, self.scale)


@contextmanager
def _naming(item: Series) -> Iterator[None]:
    """Lets errors say which series they are about."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"series {item.item_id!r}: {error}") from None


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
    return time_of_step(item.start, item.freq, step)


def _model(
    forecaster: Forecaster,
    item: Series,
    test: int,
    count: int,
    horizon: int,
    stride: int,
    num_samples: int,
    **sampling: Any,
) -> tuple[np.ndarray, np.ndarray | None]:
    origins = [test + i * stride for i in range(count)]
    adapter, step = forecaster.adapter, forecaster.adapter.options.patch * forecaster.block
    if adapter.options.timestamps is None:  # times would only cost time here
        item = Series(item.values, item.item_id, known=item.known, past=item.past)
    else:  # in one go: for every chunk of every batch a language model would be looked at anew
        ends = [(item, origin) for origin in origins]
        adapter.prepare(ends, forecaster.lookback, -(-horizon // step) * step)
    # Examples are of the past, however long ago.
    examples = sampling.get("examples", "trained")
    prompted = (forecaster.examples if isinstance(examples, str) and examples == "trained" else examples) is not None
    windows = [window(item, o, horizon, o if prompted else forecaster.lookback) for o in origins]
    levels = None if forecaster.is_point else LEVELS
    forecast = forecaster.predict(windows, horizon, levels, num_samples, **sampling)
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
