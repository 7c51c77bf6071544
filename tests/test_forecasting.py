"""The Forecaster: any lookback, horizon, gaps and covariates; invariance to the batch; long roll-outs; GluonTS."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from tests.helpers import toy_backbones
from unimodal_ar import UnimodalARConfig, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.adapters import Series, TimeSeriesAdapter
from unimodal_ar.forecasting import Forecaster

QUANTILE = {"kind": "quantile"}


def make(
    head: dict[str, Any] = QUANTILE, block: int = 1, patches: int = 6, backbone: Any = None, **adapter: Any
) -> Forecaster:
    torch.manual_seed(0)
    options = {"patch": 4, "lookback": 16, **adapter}
    series = TimeSeriesAdapter(**options)
    modality = {
        "element": series.element,
        "grid": (patches, 1, 1),
        "layout": {"block": block},
        "head": head,
        "covariates": series.covariate_features,
    }
    backbone = backbone or UnimodalARDecoderConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=backbone, modalities={"series": modality}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return Forecaster(model, series)


def test_forecasters_and_forecasts_show_sizes_not_values(tmp_path: Path) -> None:
    forecaster = make()
    assert repr(forecaster) == "Forecaster(adapters={'series': 'timeseries'}, folder=None)"
    forecaster.save_pretrained(tmp_path)
    assert repr(Forecaster.from_pretrained(tmp_path)).endswith(f"folder={str(tmp_path)!r})")
    forecast = forecaster.predict(waves(20, 30), 5, [0.1, 0.9], num_samples=3)
    assert repr(forecast) == "Forecast(series=2, horizon=5, levels=[0.1, 0.9], samples=3)"


def waves(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [10 + 3 * np.sin(np.arange(n) / 3) + rng.normal(size=n) for n in lengths]


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("head", [QUANTILE, {"kind": "mixture"}, {"kind": "regression"}], ids=lambda head: head["kind"])
def test_a_forecast_does_not_depend_on_its_batch(head: dict[str, Any], block: int) -> None:
    forecaster = make(head, block)
    series = waves(1, 5, 16, 40)
    series[3][-9:-2] = np.nan
    together = forecaster.predict(series, 21, num_samples=3).samples
    one_by_one = forecaster.predict(series, 21, num_samples=3, batch_size=1).samples
    first_two = forecaster.predict(series[:2], 21, num_samples=3).samples
    np.testing.assert_allclose(together, one_by_one, rtol=0, atol=1e-4)
    np.testing.assert_allclose(together[:2], first_two, rtol=0, atol=1e-4)


def test_a_forecast_does_not_depend_on_its_place() -> None:
    forecaster, series = make(), waves(9, 20, 30)
    there = forecaster.predict(series, 10, num_samples=3).samples
    ten: Any = np.int64(10)  # as good as an int
    back = forecaster.predict(series[::-1], ten, num_samples=3).samples
    np.testing.assert_allclose(there, back[::-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("horizon", [1, 3, 4, 7, 8, 30])
def test_every_horizon_and_its_prefix(horizon: int) -> None:
    """The horizon is no multiple of anything, and a longer forecast begins with the shorter one."""
    forecaster = make()
    short = forecaster.predict(waves(20), horizon, num_samples=4)
    long = forecaster.predict(waves(20), 32, num_samples=4)
    assert short.mean.shape == (1, horizon)
    np.testing.assert_allclose(short.samples, long.samples[..., :horizon], rtol=0, atol=1e-5)


def test_quantiles_increase_and_belong_to_the_samples() -> None:
    forecast = make().predict(waves(20, 30), 10, [0.1, 0.5, 0.9], num_samples=50)
    assert forecast.quantiles is not None and forecast.quantiles.shape == (2, 3, 10)
    assert (np.diff(forecast.quantiles, axis=1) >= 0).all()
    np.testing.assert_allclose(forecast.quantiles[:, 1], forecast.median)
    np.testing.assert_allclose(forecast.mean, forecast.samples.mean(1))


def test_rolling_out_equals_forecasting_from_the_extended_series() -> None:
    """Beyond the trained length a chunk is drawn from the last lookback of what was drawn before, scaled anew."""
    forecaster = make({"kind": "regression"}, patches=5)  # lookback 4 patches, so chunks of one
    (series,) = waves(40)
    whole = forecaster.predict([series], 12).mean[0]
    path = series
    for _ in range(3):
        path = np.concatenate([path, forecaster.predict([path], 4).mean[0]])
    np.testing.assert_allclose(whole, path[40:], rtol=0, atol=1e-5)


def test_intervals_keep_widening_with_the_horizon() -> None:
    """A random walk's spread grows with the square root of time; roll-out must feed paths, not medians, forward."""
    torch.manual_seed(0)
    forecaster = make({"kind": "quantile"}, patches=5)
    walks = torch.randn(64, 400).cumsum(1).double()
    optimizer = torch.optim.Adam(forecaster.model.parameters(), lr=3e-3)
    forecaster.model.train()
    for _ in range(150):
        start = int(torch.randint(0, 380, ()))
        window = walks[:, start : start + 20]
        loss = forecaster.model([forecaster.adapter.encode(window[:, :16], window[:, 16:])]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    forecaster.model.eval()
    forecast = forecaster.predict(walks[:16, :200].numpy(), 64, [0.1, 0.5, 0.9], num_samples=100)
    assert forecast.quantiles is not None
    width = (forecast.quantiles[:, 2] - forecast.quantiles[:, 0]).mean(0).reshape(-1, 4).mean(1)  # per patch
    assert width[4] > 1.5 * width[0] and width[15] > 1.2 * width[4]
    assert (width[1:] > 0.9 * width[:-1]).all()


def test_temperature_zero_is_one_path_at_the_centre() -> None:
    forecast = make().predict(waves(20), 10, num_samples=7, temperature=0)
    assert forecast.samples.shape == (1, 1, 10)


def test_seed_governs_the_samples() -> None:
    forecaster = make()
    first, again = (forecaster.predict(waves(20), 10, num_samples=3, seed=1).samples for _ in range(2))
    other = forecaster.predict(waves(20), 10, num_samples=3, seed=2).samples
    assert np.array_equal(first, again) and not np.allclose(first, other)


def test_known_covariates_reach_the_forecast_and_nothing_else_does() -> None:
    forecaster = make({"kind": "regression"}, known_covariates=1)
    values, known = waves(20)[0], np.sin(np.arange(30.0))[:, None]

    def forecast(known: np.ndarray) -> np.ndarray:
        return forecaster.predict([Series(values, known=known)], 10).mean[0]

    base, changed = forecast(known), known.copy()
    changed[26] += 5  # in the second patch of the horizon
    assert np.array_equal(forecast(np.concatenate([known, known])), base)  # what lies past the horizon is not read
    moved = np.abs(forecast(changed) - base)
    assert moved[:4].max() == 0 and moved[4:].max() > 1e-4


def test_past_covariates_are_read_and_their_future_is_not_needed() -> None:
    forecaster = make({"kind": "regression"}, past_covariates=1)
    values, past = waves(20)[0], np.cos(np.arange(20.0))[:, None]
    base = forecaster.predict([Series(values, past=past)], 24).mean
    assert np.abs(forecaster.predict([Series(values, past=past**3)], 24).mean - base).max() > 1e-4


@pytest.mark.parametrize("body", ["llama", "gpt2", "qwen3"])
def test_hosted_backbones_forecast_too(body: str) -> None:
    forecaster = make(backbone=toy_backbones()[body])
    together = forecaster.predict(waves(3, 20), 12, num_samples=2).samples
    alone = forecaster.predict(waves(3, 20), 12, num_samples=2, batch_size=1).samples
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)


def test_table_in_table_out() -> None:
    times = pd.date_range("2024-01-01", periods=30, freq="h")
    table = pd.DataFrame({"time": times, "a": waves(30)[0], "b": waves(30)[0] * 2})
    frame = make().predict(table, 5, [0.1, 0.9], num_samples=4).to_frame()
    assert list(frame.columns) == ["item_id", "timestamp", "mean", "0.1", "0.9"]
    assert list(frame["item_id"]) == ["a"] * 5 + ["b"] * 5
    assert frame["timestamp"][0] == pd.Timestamp("2024-01-02 06:00")
    assert list(make().predict(waves(9), 3, num_samples=2).to_frame().columns[:3]) == ["item_id", "step", "mean"]


def test_gluonts_evaluates_the_predictor() -> None:
    pytest.importorskip("gluonts")
    from gluonts.dataset.common import ListDataset
    from gluonts.dataset.split import split
    from gluonts.ev.metrics import MSE, MeanWeightedSumQuantileLoss
    from gluonts.model import evaluate_model

    from unimodal_ar.evaluation.gluonts import GluonTSPredictor

    entries = [{"start": "2024-01-01 00:00", "target": wave, "item_id": str(i)} for i, wave in enumerate(waves(60, 80))]
    _, template = split(ListDataset(entries, freq="h"), offset=-20)
    test_data = template.generate_instances(prediction_length=10, windows=2)
    forecaster = make()
    metrics = evaluate_model(
        GluonTSPredictor(forecaster, 10, num_samples=20),
        test_data=test_data,
        metrics=[MSE(), MeanWeightedSumQuantileLoss(quantile_levels=[0.1, 0.5, 0.9])],
    )
    errors = []
    for entry, label in test_data:
        mean = forecaster.predict([np.asarray(entry["target"])], 10, num_samples=20).mean[0]
        errors.append((label["target"] - mean) ** 2)
    assert np.isfinite(metrics.to_numpy()).all()
    assert 0.3 < metrics["MSE[mean]"].iloc[0] / np.mean(errors) < 3  # same forecasts up to the numbers of the samples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"horizon": 0}, r"horizon is 0; it must be an integer >= 1"),
        ({"horizon": 2.5}, r"horizon is 2.5; it must be an integer >= 1"),
        ({"batch_size": -1}, r"batch_size is -1; it must be an integer >= 1"),
        ({"seed": 1.5}, r"seed is 1.5; it must be an integer"),
        ({"num_sampels": 3}, r"predict has an unknown key 'num_sampels'"),
        ({"quantile_levels": 0.5}, r"quantile_levels is 0.5; they must be numbers that increase strictly"),
        ({"series": [np.array([1.0, np.inf])]}, r"series '0' is infinite at step 1"),
        ({"num_samples": 0}, r"num_samples is 0; it must be an integer >= 1"),
        (
            {"quantile_levels": [0.9, 0.1]},
            r"quantile_levels is \[0.9, 0.1\]; they must be numbers that increase strictly",
        ),
        ({"series": [np.full(9, np.nan)]}, r"series '0' has no observed value in its last 16 steps"),
        (
            {"series": [np.r_[np.ones(9), np.full(16, np.nan)]]},
            r"no observed value in its last 16 steps, the model's look",
        ),
        (
            {"series": [Series(np.ones(9), "x", known=np.ones((12, 1)))]},
            r"series 'x' has 1 known covariates; .* with 0",
        ),
    ],
)
def test_bad_input_is_one_sentence(change: dict[str, Any], message: str) -> None:
    arguments = {"series": waves(20), "horizon": 5, "num_samples": 2, **change}
    with pytest.raises(ValueError, match=message):
        make().predict(**arguments)


def test_covariates_must_reach_the_horizon() -> None:
    forecaster = make(known_covariates=1)
    with pytest.raises(ValueError, match=r"reach 2 steps past its end; the horizon needs 5"):
        forecaster.predict([Series(np.ones(9), "x", known=np.ones((11, 1)))], 5)


def test_a_point_head_has_no_quantiles() -> None:
    forecaster = make({"kind": "regression"})
    assert forecaster.predict(waves(9), 3).quantiles is None
    with pytest.raises(ValueError, match="regression, which gives points only"):
        forecaster.predict(waves(9), 3, [0.1, 0.9])


def test_the_parts_must_fit() -> None:
    model = make().model
    with pytest.raises(ValueError, match=r"patches of 8 steps .* the model wants 4"):
        Forecaster(model, TimeSeriesAdapter(8))
    with pytest.raises(ValueError, match="the model generates \\['series'\\]"):
        Forecaster(model, TimeSeriesAdapter(4, modality="load"))
    with pytest.raises(ValueError, match="lookback is 18 steps; it must be a multiple of patch x block = 4"):
        Forecaster(model, TimeSeriesAdapter(4, lookback=18))
    with pytest.raises(ValueError, match="past_lag is 1 patches; with blocks of 2 it must be at least that many"):
        make(block=2, past_covariates=1)
    assert make(block=2, past_covariates=1, past_lag=2).block == 2
    random = UnimodalARConfig(
        backbone=model.config.backbone,
        modalities={
            "series": {
                "element": {"kind": "continuous", "dim": 4},
                "grid": (6, 1, 1),
                "layout": {"order": "random"},
                "head": QUANTILE,
            }
        },
    )
    with pytest.raises(ValueError, match="forecasting needs raster order and blocks of one size"):
        Forecaster(UnimodalARForGeneration(random), TimeSeriesAdapter(4))


def test_weights_that_do_not_fit_their_configuration_are_refused(tmp_path: Path) -> None:
    """transformers fills up what is missing with random numbers and only prints it."""
    make().save_pretrained(tmp_path)
    assert Forecaster.from_pretrained(tmp_path).predict(waves(9), 3, num_samples=2).mean.shape == (1, 3)
    config = json.loads((tmp_path / "config.json").read_text())
    config["backbone"]["num_hidden_layers"] = 3
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"do not fit its config\.json: missing_keys"):
        Forecaster.from_pretrained(tmp_path)
