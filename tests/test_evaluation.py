from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
import pytest

from unimodal_ar.evaluation import (
    Panel,
    coverage,
    crps,
    evaluate,
    format_table,
    mae,
    mase,
    mse,
    plot_forecast,
    plot_panels,
    repeat_last,
    rolling_windows,
    seasonal_naive,
    seasonal_naive_error,
    weighted_quantile_loss,
    with_residual_quantiles,
)

NAN = np.nan
DECILES = np.arange(1, 10) / 10


# --- metrics, by hand


def test_point_metrics_by_hand_leave_missing_targets_out():
    target, forecast = [[1.0, NAN, 3.0]], [[2.0, 100.0, 0.0]]
    assert mse(target, forecast) == 5.0  # (1 + 9) / 2
    assert mae(target, forecast) == 2.0  # (1 + 3) / 2


def test_forecast_of_a_missing_target_may_be_missing_itself():
    assert mae([1.0, NAN], [2.0, NAN]) == 1.0


def test_seasonal_naive_error_by_hand():
    history = [[1.0, 2.0, 4.0, 8.0], [0.0, NAN, 5.0, 7.0], [3.0, 3.0, 3.0, 3.0], [NAN, 1.0, NAN, 1.0]]
    np.testing.assert_array_equal(seasonal_naive_error(history, 2), [4.5, 5.0, 0.0, 0.0])
    np.testing.assert_array_equal(seasonal_naive_error(history, 1), [7 / 3, 2.0, 0.0, NAN])


def test_mase_by_hand_scales_every_series_by_its_own_history():
    target, forecast = [[1.0, 2.0], [10.0, 20.0]], [[2.0, 2.0], [20.0, 20.0]]
    history = [[0.0, 1.0, 2.0], [0.0, 10.0, 20.0]]
    assert mase(target, forecast, history) == 0.5  # (1/1 + 0 + 10/10 + 0) / 4
    assert mase(target, forecast, seasonal_error=[2.0, 5.0]) == 0.625  # (1/2 + 0 + 10/5 + 0) / 4
    assert mase(target, forecast, history, season=2) == 0.25


def test_mase_of_the_seasonal_naive_method_on_its_own_history_is_one():
    history = np.random.default_rng(0).normal(size=200)
    past, future = rolling_windows(history, 7, 1)
    assert mase(future, seasonal_naive(past, 1, 7), seasonal_error=seasonal_naive_error(history, 7)) == pytest.approx(1)


def test_mase_leaves_out_a_constant_history_and_says_so():
    with pytest.warns(UserWarning, match="MASE leaves out 1 of 2 series"):
        assert mase([[1.0], [5.0]], [[2.0], [9.0]], seasonal_error=[2.0, 0.0]) == 0.5


def test_weighted_quantile_loss_by_hand():
    # Pinball at 0.1: 0.9 * 1, 0.1 * 2; at 0.9: 0.1 * 1, 0.9 * 1. Twice that over sum|target| = 6, averaged over two.
    target, quantiles = [-2.0, NAN, 4.0], [[-1.0, 0.0, 2.0], [-1.0, 0.0, 3.0]]
    expected = (2 * (0.9 + 0.2) / 6 + 2 * (0.1 + 0.9) / 6) / 2
    assert weighted_quantile_loss(target, quantiles, [0.1, 0.9]) == pytest.approx(expected)


def test_weighted_quantile_loss_of_the_median_is_the_normalised_deviation():
    rng = np.random.default_rng(1)
    target, median = rng.normal(size=(2, 4, 6))
    assert weighted_quantile_loss(target, median[:, None], [0.5]) == pytest.approx(
        np.abs(target - median).sum() / np.abs(target).sum()
    )


def test_coverage_by_hand_includes_the_bounds():
    assert coverage([1.0, 2.0, 3.0, 4.0, NAN], [1.0] * 5, [3.0] * 5) == 0.75
    assert coverage([0.0, 2.0], [1.0, 1.0], [3.0, 3.0]) == 0.5


def test_crps_tends_to_the_closed_form_of_the_normal():
    normal, y = NormalDist(), 0.7
    levels = np.arange(1, 2000) / 2000
    quantiles = np.array([[normal.inv_cdf(level)] for level in levels])
    exact = y * (2 * normal.cdf(y) - 1) + 2 * normal.pdf(y) - np.pi**-0.5  # Gneiting and Raftery 2007, eq. 21
    assert crps([y], quantiles, levels) == pytest.approx(exact, abs=2e-3)


# --- evaluate


def test_evaluate_takes_the_mean_for_mse_and_the_median_for_the_rest():
    target, mean = np.array([[2.0, 4.0]]), np.array([[3.0, 5.0]])
    quantiles = np.array([[[1.0, 1.0], [2.0, 3.0], [3.0, 3.5]]])
    metrics = evaluate(target, mean, quantiles, [0.1, 0.5, 0.9], seasonal_error=2.0)
    assert list(metrics) == ["MSE", "MAE", "MASE", "WQL", "coverage_80"]
    assert metrics["MSE"] == 1.0
    assert metrics["MAE"] == 0.5
    assert metrics["MASE"] == 0.25
    assert metrics["WQL"] == weighted_quantile_loss(target, quantiles, [0.1, 0.5, 0.9])
    assert metrics["coverage_80"] == 0.5


def test_evaluate_without_quantiles_or_scale_has_only_what_it_can_compute():
    assert evaluate([2.0, 4.0], [3.0, 6.0]) == {"MSE": 2.5, "MAE": 1.5}
    assert list(evaluate([2.0], [3.0], [[2.0], [3.0]], [0.25, 0.5])) == ["MSE", "MAE", "WQL"]


def test_evaluate_finds_levels_that_come_from_arithmetic():
    levels = np.cumsum([0.1] * 9)
    assert 0.9 not in levels
    metrics = evaluate([[2.0, 4.0]], [[2.0, 4.0]], np.linspace(0, 5, 9)[None, :, None].repeat(2, axis=2), levels)
    assert metrics["coverage_80"] == 1.0


@pytest.mark.parametrize("missing", [False, True], ids=["complete", "missing"])
def test_metrics_agree_with_gluonts(missing):
    ev = pytest.importorskip("gluonts.ev")
    from gluonts.ev.metrics import Coverage, MeanWeightedSumQuantileLoss
    from gluonts.ev.ts_stats import seasonal_error

    rng = np.random.default_rng(2)
    history, target, mean = rng.normal(size=(5, 60)), rng.normal(size=(5, 12)), rng.normal(size=(5, 12))
    quantiles = np.sort(rng.normal(size=(5, 9, 12)), axis=1)
    if missing:
        target[rng.random(target.shape) < 0.2] = NAN
    scale = seasonal_error(history, seasonality=7, time_axis=-1)
    levels = DECILES.round(1).tolist()
    data = {"label": np.ma.masked_invalid(target), "mean": mean, "seasonal_error": scale}
    data |= {str(level): quantiles[:, i] for i, level in enumerate(levels)}

    def reference(metric):
        return float(metric(axis=None).update(data).get())

    ours = evaluate(target, mean, quantiles, levels, seasonal_naive_error(history, 7))
    assert ours["MSE"] == pytest.approx(reference(ev.metrics.mse))
    assert ours["MAE"] == pytest.approx(reference(ev.metrics.mae))
    assert ours["MASE"] == pytest.approx(reference(ev.metrics.mase))
    assert ours["WQL"] == pytest.approx(reference(MeanWeightedSumQuantileLoss(quantile_levels=levels)))
    assert ours["coverage_80"] == pytest.approx(reference(Coverage(q=0.9)) - reference(Coverage(q=0.1)))


ONES = np.ones((2, 3))
THREE = np.ones((2, 3, 3))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mse(ONES, np.ones((3, 3))), r"forecast has shape \(3, 3\); it must be the target's shape \(2, 3\)"),
        (lambda: mae(ONES, np.full((2, 3), NAN)), "forecast has 6 values that are NaN or infinite"),
        (lambda: mae(ONES * NAN, ONES), "no observed value"),
        (lambda: mae(ONES * np.inf, ONES), "target has infinite values"),
        (lambda: mase(ONES, ONES), "exactly one of history and seasonal_error"),
        (lambda: mase(ONES, ONES, ONES, seasonal_error=1.0), "exactly one of history and seasonal_error"),
        (
            lambda: mase(ONES, ONES, ONES, season=3),
            "season is 3; it must be at least 1 and below the history's length 3",
        ),
        (lambda: mase(ONES, ONES, seasonal_error=[1.0] * 3), r"shape \(3,\); it must be one number, or one per series"),
        (
            lambda: mase(ONES, ONES, seasonal_error=[NAN, -1.0]),
            "reaches from -1.0 to -1.0; it must be finite and not neg",
        ),
        (lambda: mase(ONES, ONES, seasonal_error=0.0), "0 or missing for every series"),
        (lambda: seasonal_naive_error(ONES, 0), "season is 0"),
        (lambda: weighted_quantile_loss(ONES, THREE, [0.1, 0.9]), r"shape \(2, 3, 3\).*\[..., Q, H\] = \(2, 2, 3\)"),
        (lambda: weighted_quantile_loss(ONES, THREE, [0.1, 0.9, 0.5]), r"levels are \[0.1, 0.9, 0.5\]"),
        (lambda: weighted_quantile_loss(ONES, THREE, [0.0, 0.5, 0.9]), r"increases strictly inside \(0, 1\)"),
        (lambda: weighted_quantile_loss(0 * ONES, THREE, [0.1, 0.5, 0.9]), "divides by sum"),
        (lambda: crps(ONES, THREE, [0.1, 0.5, 0.7]), "evenly spaced"),
        (lambda: coverage(ONES, ONES, ONES[:1]), r"upper has shape \(1, 3\)"),
        (lambda: evaluate(ONES, ONES, THREE), "quantiles and levels must be given together"),
        (lambda: evaluate(ONES, ONES, THREE, [0.1, 0.4, 0.9]), r"levels are \[0.1, 0.4, 0.9\].*add 0.5"),
    ],
)
def test_metrics_refuse_bad_input_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# --- rolling windows


def test_rolling_windows_by_hand():
    past, future = rolling_windows(np.arange(10), 3, 2, start=4, stride=2)
    np.testing.assert_array_equal(past, [[1, 2, 3], [3, 4, 5], [5, 6, 7]])
    np.testing.assert_array_equal(future, [[4, 5], [6, 7], [8, 9]])


def test_rolling_windows_start_after_the_lookback_and_are_views():
    series = np.arange(24.0).reshape(2, 12)
    past, future = rolling_windows(series, 4, 3)
    assert past.shape == (2, 6, 4)
    assert future.shape == (2, 6, 3)
    np.testing.assert_array_equal(future[1, -1], [21, 22, 23])
    assert np.shares_memory(past, series) and np.shares_memory(future, series)
    assert not past.flags.writeable


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(lookback=0, horizon=1), "lookback is 0"),
        (dict(lookback=1, horizon=-1), "horizon is -1"),
        (dict(lookback=1, horizon=1, stride=0), "stride is 0"),
        (dict(lookback=4, horizon=1, start=3), "start is 3; it must be at least the lookback 4"),
        (dict(lookback=4, horizon=7), r"length 10; one window needs start \+ horizon = 11"),
    ],
)
def test_rolling_windows_refuse_bad_sizes(arguments, message):
    with pytest.raises(ValueError, match=message):
        rolling_windows(np.arange(10), **arguments)


# --- baselines


def test_repeat_last_takes_the_last_observed_value():
    past = [[1.0, 2.0, 3.0], [1.0, 2.0, NAN], [NAN, NAN, NAN]]
    np.testing.assert_array_equal(repeat_last(past, 2), [[3, 3], [2, 2], [NAN, NAN]])


def test_seasonal_naive_is_exact_on_a_periodic_series_for_every_lookback_and_horizon():
    series = np.tile([1.0, 5.0, 2.0, 7.0], 10)
    for lookback in range(4, 12):
        np.testing.assert_array_equal(seasonal_naive(series[:lookback], 9, 4), series[lookback : lookback + 9])


def test_seasonal_naive_looks_another_season_back_where_a_value_is_missing():
    past = [[1.0, 2.0, 3.0, 4.0, NAN, 6.0, NAN, 8.0, NAN], [NAN, 2.0, 3.0, NAN, 5.0, 6.0, NAN, 8.0, 9.0]]
    expected = [[4.0, 8.0, 6.0, 4.0, 8.0], [NAN, 8.0, 9.0, NAN, 8.0]]
    np.testing.assert_array_equal(seasonal_naive(past, 5, 3), expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], 3, 3), "season is 3; it must be at least 1 and at most the length of the past 2"),
        (([1.0, 2.0], 3, 0), "season is 0"),
        (([1.0, 2.0], 0, 1), "horizon is 0"),
        (([], 1, 1), "the length of the past 0"),
    ],
)
def test_seasonal_naive_refuses_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        seasonal_naive(*arguments)


def test_residual_quantiles_by_hand():
    # Errors of repeat-last: one step ahead 1, 2, ..., 9; two steps ahead 3, 5, ..., 17, and a missing one.
    history = np.append(np.cumsum(np.arange(10.0)), NAN)
    forecast = with_residual_quantiles(repeat_last, history, [0.2, 0.5, 0.8], horizon=2, lookback=1)
    point, quantiles = forecast([[100.0]])
    np.testing.assert_array_equal(point, [[100, 100]])
    np.testing.assert_allclose(quantiles, [[[102.0, 104.6], [105.0, 110.0], [108.0, 115.4]]])


def test_residual_quantiles_of_a_random_walk_cover_what_they_claim_at_every_lead_time():
    walk = np.cumsum(np.random.default_rng(3).normal(size=24_000))
    train, test = walk[:12_000], walk[12_000:]
    forecast = with_residual_quantiles(repeat_last, train, DECILES, horizon=8, lookback=2)
    past, future = rolling_windows(test, 2, 8)
    point, quantiles = forecast(past)
    shares = (future[:, None] <= quantiles).mean(axis=0)  # [Q, H]
    np.testing.assert_allclose(shares, np.broadcast_to(DECILES[:, None], (9, 8)), atol=0.03)
    assert evaluate(future, point, quantiles, DECILES)["coverage_80"] == pytest.approx(0.8, abs=0.03)
    width = quantiles[0, -1] - quantiles[0, 0]
    assert width[7] / width[0] == pytest.approx(8**0.5, rel=0.15)


def test_residual_quantiles_are_honest_with_few_errors():
    # Independent errors, 9 of them per fit: levels by n / (n + 1) cover 80 %, the plain sample quantiles only 64 %.
    series = np.random.default_rng(4).normal(size=(3000, 20))
    covered = []
    for row in series:
        zero = with_residual_quantiles(lambda past, horizon: 0.0 * past[..., :horizon], row[:10], [0.1, 0.9], 1, 1)
        _, quantiles = zero(row[10:, None])
        covered.append(coverage(row[10:, None], quantiles[:, 0], quantiles[:, 1]))
    assert np.mean(covered) == pytest.approx(0.8, abs=0.015)


def test_residual_quantiles_pass_over_gaps_in_the_history():
    rng = np.random.default_rng(5)
    history = np.tile([0.0, 10.0], 200) + rng.normal(size=400)
    history[100:110] = NAN
    forecast = with_residual_quantiles(partial(seasonal_naive, season=2), history, [0.1, 0.5, 0.9], 3, lookback=4)
    _, quantiles = forecast(history[:4])
    assert np.isfinite(quantiles).all()
    np.testing.assert_allclose(quantiles[2] - quantiles[0], 2 * 1.2816 * 2**0.5, rtol=0.2)


def test_residual_quantiles_refuse_too_few_errors():
    with pytest.raises(ValueError, match="history leaves 8 errors at some lead time; the outermost level needs 9"):
        with_residual_quantiles(repeat_last, np.arange(10.0), [0.1, 0.9], horizon=2, lookback=1)
    with_residual_quantiles(repeat_last, np.arange(11.0), [0.1, 0.9], horizon=2, lookback=1)
    with pytest.raises(ValueError, match=r"history has shape \(1, 20\)"):
        with_residual_quantiles(repeat_last, np.ones((1, 20)), [0.1, 0.9], horizon=2, lookback=1)


# --- the table


def test_format_table_is_aligned_and_valid_markdown():
    table = format_table({"ours": {"MSE": 1234.5678, "WQL": 0.0412345}, "a|b": {"MSE": 2.0, "MASE": NAN}})
    assert table.splitlines() == [
        "| method |  MSE |     WQL | MASE |",
        "|--------|-----:|--------:|-----:|",
        "| ours   | 1235 | 0.04123 |    - |",
        r"| a\|b   |    2 |       - |  nan |",
    ]


def test_format_table_refuses_no_rows():
    with pytest.raises(ValueError, match="rows is empty"):
        format_table({})


# --- pictures


def panel(**changes: Any) -> Panel:
    rng = np.random.default_rng(6)
    point = np.sin(np.arange(60, 84) / 5)
    spread = np.array([NormalDist().inv_cdf(level) for level in DECILES])[:, None] * np.linspace(0.1, 0.6, 24)
    arguments: dict[str, Any] = dict(
        history=np.sin(np.arange(60) / 5),
        forecast=point,
        quantiles=point + spread,
        levels=DECILES,
        actual=point + rng.normal(size=24) / 5,
        timestamps=np.datetime64("2024-02-28T00") + np.arange(84) * np.timedelta64(1, "h"),
        title="a series",
        samples=point + rng.normal(size=(5, 24)) / 5,
    )
    return Panel(**(arguments | changes))


def test_a_picture_has_the_size_the_fan_and_the_lines(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    full = panel()
    fields = {name: getattr(full, name) for name in Panel.__dataclass_fields__}
    plot_forecast(tmp_path / "full.png", **fields)
    pixels = image.imread(tmp_path / "full.png")[..., :3]
    assert pixels.shape == (600, 1500, 3)

    def amount(color: str) -> int:
        rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        return int((np.abs(pixels - rgb) < 0.01).all(axis=-1).sum())

    from unimodal_ar.evaluation.plots import ACTUAL, FANS, FORECAST, HISTORY

    # Deciles hold no 90 % and no 50 % interval: the nearest, 80 and 60 %, are drawn.
    assert full.intervals() == [0.8, 0.6]
    assert amount(FANS[0]) > 3000
    assert amount(FANS[1]) > 3000
    assert amount(FANS[2]) < 100
    assert all(amount(color) > 300 for color in (ACTUAL, FORECAST, HISTORY))


@pytest.mark.parametrize(
    ("levels", "widths"),
    [
        ([0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95], [0.9, 0.8, 0.5]),
        ([0.1, 0.5, 0.9], [0.8]),
        ([0.01, 0.1, 0.3, 0.7, 0.9, 0.95], [0.8, 0.4]),
    ],
)
def test_intervals_are_the_ones_nearest_to_90_80_and_50(levels, widths):
    assert panel(quantiles=np.zeros((len(levels), 24)), levels=levels).intervals() == widths


def test_small_multiples_of_any_kind_are_drawn(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    pandas = pytest.importorskip("pandas")
    local = pandas.date_range("2024-03-30", periods=84, freq="h", tz="Europe/Berlin")
    bare = panel(quantiles=None, levels=None, actual=None, timestamps=None, title=None, samples=None)
    gaps = panel(history=np.where(np.arange(60) % 7 == 0, NAN, 1.0), actual=np.full(24, NAN))
    plot_panels(tmp_path / "two.png", [panel(timestamps=local), bare], title="two")
    plot_panels(tmp_path / "five.png", [panel(timestamps=list(local)), bare, gaps, panel(), panel()])
    two, five = image.imread(tmp_path / "two.png"), image.imread(tmp_path / "five.png")
    assert two.shape == (900, 1500, 4)
    assert five.shape == (1290, 1500, 4)
    # Five panels in two columns: the sixth place is white, the fifth is not.
    assert (five[900:1150, 800:, :3] == 1).all()
    assert not (five[900:1150, :700, :3] == 1).all()


def test_dates_are_in_the_time_zone_of_the_series():
    pytest.importorskip("matplotlib")
    pandas = pytest.importorskip("pandas")
    from unimodal_ar.evaluation.plots import _figure

    shown = []
    for zone in (None, "Asia/Tokyo"):
        times = pandas.date_range("2024-06-01", periods=84, freq="h", tz=zone)
        figure = _figure([panel(timestamps=times)], None)
        figure.canvas.draw()
        shown.append([label.get_text() for label in figure.axes[0].get_xticklabels()])
    assert shown[0] == shown[1]
    assert shown[0][0] == "01 Jun"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(quantiles=np.zeros((3, 24))), r"quantiles has shape \(3, 24\); history and forecast ask for \(9, 24\)"),
        (dict(quantiles=None), "quantiles and levels must be given together"),
        (dict(quantiles=np.zeros((2, 24)), levels=[0.1, 0.5]), r"levels are \[0.1, 0.5\]; no two enclose"),
        (dict(actual=[1.0]), r"actual has shape \(1,\); history and forecast ask for \(24,\)"),
        (dict(timestamps=np.arange(83)), r"timestamps has shape \(83,\); history and forecast ask for \(84,\)"),
        (dict(samples=np.zeros(24)), "samples has shape"),
        (dict(history=np.zeros((2, 30))), r"history has shape \(2, 30\)"),
        (dict(history=[], timestamps=None), "history has 0 steps and forecast 24"),
    ],
)
def test_panels_refuse_bad_shapes(changes, message):
    with pytest.raises(ValueError, match=message):
        panel(**changes)


def test_nothing_is_written_for_a_bad_path_or_no_panels(tmp_path):
    pytest.importorskip("matplotlib")
    with pytest.raises(ValueError, match=r"has the suffix '.xyz'; it must be one of .*'png'"):
        plot_panels(tmp_path / "a.xyz", [panel()])
    with pytest.raises(ValueError, match="panels is empty"):
        plot_panels(tmp_path / "a.png", [])
    assert not list(tmp_path.iterdir())


# --- the GluonTS predictor


def predict_gluonts(entries: list[dict[str, Any]]) -> list[Any]:
    pytest.importorskip("gluonts")
    from unimodal_ar import UnimodalARConfig, UnimodalARDecoderConfig, UnimodalARForGeneration
    from unimodal_ar.adapters import TimeSeriesAdapter
    from unimodal_ar.evaluation.gluonts import GluonTSPredictor
    from unimodal_ar.forecasting import Forecaster

    adapter = TimeSeriesAdapter(2, lookback=4)
    modality = {"element": adapter.element, "grid": (3, 1, 1), "head": {"kind": "regression"}}
    backbone = UnimodalARDecoderConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=backbone, modalities={"series": modality}))
    return list(GluonTSPredictor(Forecaster(model, adapter), 3).predict(entries))


def test_the_gluonts_predictor_takes_none_and_one_entry():
    pandas = pytest.importorskip("pandas")
    assert predict_gluonts([]) == []
    (found,) = predict_gluonts([{"start": pandas.Period("2024-01-01", "D"), "target": np.arange(4.0), "item_id": "a"}])
    assert (found.samples.shape, str(found.start_date), found.item_id) == ((1, 3), "2024-01-05", "a")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"target": np.zeros((2, 4))},
            r"target of 'm' has shape \(2, 4\); the predictor takes univariate series, \[L\]",
        ),
        ({"start": "2024-01-01", "freq": "D"}, "start of 'm' is '2024-01-01'; it must be a pd.Period"),
    ],
)
def test_the_gluonts_predictor_refuses_what_it_cannot_predict(change, message):
    pandas = pytest.importorskip("pandas")
    good = {"start": pandas.Period("2024-01-01", "D"), "target": np.zeros(4), "item_id": "m"}
    with pytest.raises(ValueError, match=message):
        predict_gluonts([{**good, "item_id": "first"}, {**good, **change}])


# --- pictures without matplotlib


def test_without_matplotlib_a_picture_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"pip install unimodal-ar\[demo\]"):
        plot_panels(Path("never.png"), [panel()])


def test_importing_the_evaluation_does_not_import_matplotlib():
    code = "import sys, unimodal_ar.evaluation; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
