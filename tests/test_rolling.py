"""Rolling evaluation: the same windows for every method, and baselines at their best."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from tests.test_forecasting import make, waves
from unimodal_ar.adapters import Series
from unimodal_ar.evaluation import mae, mse, rolling_windows, seasonal_naive, seasonal_naive_error
from unimodal_ar.evaluation.rolling import RollingEvaluation, rolling_evaluation, window


def test_every_method_is_judged_on_the_same_windows_in_the_same_units() -> None:
    forecaster = make()
    series = [Series(wave, str(i)) for i, wave in enumerate(waves(300, 260))]
    rows = rolling_evaluation(forecaster, series, [200, 180], [240, 200], horizon=6, stride=4, season=19, num_samples=8)
    targets, naive, ours, scales = [], [], [], []
    for item, train, test in zip(series, [200, 180], [240, 200], strict=True):
        past, future = rolling_windows(item.values, 19, 6, start=test, stride=4)
        targets.append(future)
        naive.append(seasonal_naive(past, 6, 19))
        origins = range(test, len(item.values) - 6 + 1, 4)
        ours.append(forecaster.predict([window(item, o, 6, 16) for o in origins], 6, num_samples=8).mean)
        scales.append(np.full(len(future), float(seasonal_naive_error(item.values[:train], 19))))
    target, point = np.concatenate(targets), np.concatenate(naive)
    assert rows["seasonal naive (19)"]["MSE"] == pytest.approx(mse(target, point))
    assert rows["seasonal naive (19)"]["MAE"] == pytest.approx(mae(target, point))  # not moved by a bias correction
    expected = np.mean(np.abs(target - point).mean(1) / np.concatenate(scales))
    assert rows["seasonal naive (19)"]["MASE"] == pytest.approx(expected, rel=1e-6)
    assert rows["unimodal_ar"]["MSE"] == pytest.approx(mse(target, np.concatenate(ours)), rel=1e-4)
    assert {"WQL", "coverage_80"} <= rows["repeat last"].keys()


def test_baselines_of_a_point_forecaster_are_points_too() -> None:
    rows = rolling_evaluation(
        make({"kind": "regression"}), [Series(waves(120)[0])], [80], [90], horizon=4, stride=4, season=19
    )
    assert all(row.keys() == {"MSE", "MAE", "MASE"} for row in rows.values())


def test_baselines_need_no_model() -> None:
    """They are the same before a training as after it."""
    forecaster, series = make(), [Series(wave, str(i)) for i, wave in enumerate(waves(300, 260))]
    places: dict[str, Any] = {"horizon": 6, "stride": 4, "season": 19}
    rolling = RollingEvaluation(series, [200, 180], [240, 200], lookback=forecaster.lookback, **places)
    whole = rolling_evaluation(forecaster, series, [200, 180], [240, 200], num_samples=2, **places)
    assert list(whole) == ["unimodal_ar", "repeat last", "seasonal naive (19)"]
    assert rolling.baselines(point_only=False) == {name: whole[name] for name in list(whole)[1:]}
    points = rolling.baselines(point_only=True)
    assert all(row.keys() == {"MSE", "MAE", "MASE"} for row in points.values())


def _gap(start: int, stop: int) -> Series:
    values = waves(120)[0].copy()
    values[start:stop] = np.nan
    return Series(values, "gap")


@pytest.mark.parametrize(
    ("item", "changes", "expected"),
    [
        (_gap(0, 0), {"season": 80}, "series 'gap': season is 80; it must be at least 1 and below the history's"),
        (_gap(0, 0), {"horizon": 31}, "series 'gap': series has length 120; one window needs start + horizon = 121"),
        (_gap(86, 102), {}, "series 'gap': nothing is observed in the 16 steps before 102"),
        (_gap(0, 62), {}, "series 'gap': history leaves 14 errors at some lead time; the outermost level needs 19"),
        (_gap(90, 120), {"lookback": 28}, "repeat last: target has shape (7, 4) and no observed value"),
    ],
)
def test_what_the_data_lack_is_found_without_a_model(item: Series, changes: dict[str, Any], expected: str) -> None:
    places = {"horizon": 4, "stride": 4, "season": 2, "lookback": 16, **changes}
    with pytest.raises(ValueError, match=r".") as caught:
        RollingEvaluation([item], [80], [90], **places).baselines(False)
    assert str(caught.value).startswith(expected)


def test_a_window_knows_nothing_of_its_future_but_known_covariates() -> None:
    times = pd.Timestamp("2024-01-01")
    item = Series(np.arange(50.0), "x", times, "h", known=np.arange(50.0)[:, None], past=np.arange(50.0)[:, None])
    cut = window(item, 30, 5, 16)
    assert list(cut.values) == list(range(14, 30)) and cut.start == pd.Timestamp("2024-01-01 14:00")
    assert cut.known is not None and cut.past is not None
    assert list(cut.known[:, 0]) == list(range(14, 35)) and list(cut.past[:, 0]) == list(range(14, 30))
    assert list(window(item, 10, 5, 16).values) == list(range(10))
