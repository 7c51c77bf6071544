"""Forecasters as ONNX graphs: what `Forecaster.predict` says, in onnxruntime, from raw series with gaps."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import build, codes, diffusion, label, perturb, toy_backbones
from tests.test_forecasting import waves
from unimodal_ar import UnimodalARConfig, UnimodalARForGeneration
from unimodal_ar.adapters import LabelAdapter, TimeSeriesAdapter
from unimodal_ar.cli import main
from unimodal_ar.export import export_forecaster
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.heads import QuantileHead
from unimodal_ar.prompts import Examples

onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")

REGRESSION, QUANTILE = {"kind": "regression"}, {"kind": "quantile"}
LOOKBACK, PATCH = 16, 4


def _forecaster(
    head: dict[str, Any] = REGRESSION,
    backbone: str = "native",
    block: int = 1,
    patches: int = 6,
    soft_prompt: int = 0,
    modality: dict[str, Any] | None = None,
    **adapter: Any,
) -> Forecaster:
    torch.manual_seed(0)
    series = TimeSeriesAdapter(patch=PATCH, lookback=LOOKBACK, **adapter)
    options = {"element": series.element, "grid": (patches, 1, 1), "layout": {"block": block}, "head": head}
    options |= {"covariates": series.covariate_features} | (modality or {})
    config = UnimodalARConfig(
        backbone=toy_backbones()[backbone], modalities={"series": options}, soft_prompt=soft_prompt
    )
    model = UnimodalARForGeneration(config)
    perturb(model, 0.1)
    return Forecaster(model, series)


def _inputs(series: list[np.ndarray], lookback: int) -> dict[str, np.ndarray]:
    """As forecaster.json says: at the end, NaN or anything else where nothing is observed."""
    values, observed = np.full((len(series), lookback), 1e3, np.float32), np.zeros((len(series), lookback), bool)
    for row, one in enumerate(series):
        kept = one[-lookback:]
        observed[row, -len(kept) :] = ~np.isnan(kept)
        values[row, -len(kept) :] = kept
    return {"values": values, "observed": observed}


def _series() -> list[np.ndarray]:
    """Short, whole, long with gaps, unequal to whole patches, without its last patch, constant."""
    series = [*waves(5, 16, 40, 13, 30), np.full(20, 3.0)]
    series[4][-5:] = np.nan
    series[2][[-9, -8, -7, -3]] = np.nan
    return series


def _run(folder: Path, inputs: dict[str, np.ndarray]) -> np.ndarray:
    return onnxruntime.InferenceSession(folder / "forecaster.onnx").run(None, inputs)[0]


POINTS: dict[str, dict[str, Any]] = {
    "native": {"eps": 0.5},
    "blocks": {"block": 2, "scaling": "robust", "modality": {"absolute_positions": True}},
    "hosted": {"backbone": "llama", "scaling": "mean_abs", "modality": {"start": "none"}, "soft_prompt": 2},
    "learned positions": {"backbone": "gpt2", "scaling": "none", "head": REGRESSION | {"trunk": {"width": 16}}},
}


@pytest.mark.parametrize("name", POINTS)
def test_points_are_those_of_predict(name: str, tmp_path: Path) -> None:
    forecaster, series = _forecaster(**POINTS[name]), _series()
    shapes = export_forecaster(forecaster, tmp_path, batch_size=len(series))
    assert json.loads((tmp_path / "forecaster.json").read_text()) == shapes
    graph = onnx.load(tmp_path / "forecaster.onnx")
    onnx.checker.check_model(graph, full_check=True)
    assert [(each.domain, each.version) for each in graph.opset_import] == [("", shapes["opset"])]
    assert b"graph.py" not in graph.SerializeToString()  # no places on this machine
    horizon = PATCH * forecaster.block
    assert shapes["outputs"] == [{"name": "point", "dtype": "float32", "shape": [len(series), horizon]}]
    found, expected = _run(tmp_path, _inputs(series, LOOKBACK)), forecaster.predict(series, horizon).mean
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.1


def test_nothing_missing_is_sorted(tmp_path: Path) -> None:
    """Where NaN comes in an order, ONNX leaves to its runtimes; onnxruntime 1.23 puts it between the numbers."""
    forecaster, series = _forecaster(**POINTS["blocks"]), _series()
    export_forecaster(forecaster, tmp_path, batch_size=len(series))
    graph = onnx.load(tmp_path / "forecaster.onnx")
    (sorted_values,) = [node.input[0] for node in graph.graph.node if node.op_type == "TopK"]
    graph.graph.output.append(onnx.helper.make_empty_tensor_value_info(sorted_values))
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    (found,) = session.run([sorted_values], _inputs(series, LOOKBACK))
    assert np.isinf(found).any() and not np.isnan(found).any()


def test_quantiles_are_those_that_predict_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exactly those of the head, which `predict` would draw from: here it draws one quantile instead."""
    forecaster, series, levels = _forecaster(QUANTILE), _series(), [0.01, 0.1, 0.37, 0.5, 0.99]
    shapes = export_forecaster(forecaster, tmp_path, len(series), lookback=12, quantile_levels=levels)
    assert shapes["outputs"][0]["shape"] == [len(series), PATCH, 5] and shapes["quantile_levels"] == levels
    found = _run(tmp_path, _inputs(series, 12))
    cut = [one[-12:] for one in series]
    for number, level in enumerate(levels):
        monkeypatch.setattr(QuantileHead, "sample", lambda head, x, *_, q=level, **__: head.quantiles(x, [q])[..., 0])
        expected = forecaster.predict(cut, PATCH, num_samples=1).mean
        np.testing.assert_allclose(found[..., number], expected, rtol=0, atol=1e-4)
    assert (np.diff(found, axis=-1) > 0).all()


def test_rolling_out_as_the_description_says(tmp_path: Path) -> None:
    forecaster, (series,) = _forecaster(patches=5), waves(30)
    shapes = export_forecaster(forecaster, tmp_path)
    assert shapes["roll_out"].endswith("Forecaster.predict goes on in the same way.")
    path = series
    for _ in range(3):
        path = np.concatenate([path, _run(tmp_path, _inputs([path], LOOKBACK))[0]])
    np.testing.assert_allclose(path[30:], forecaster.predict([series], 12).mean[0], rtol=0, atol=1e-4)


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "known": ({"known_covariates": 1}, {}, "known_covariates of the adapter of 'series' is 1; .* must be 0"),
    "past": ({"past_covariates": 2}, {}, "past_covariates of the adapter of 'series' is 2; .* must be 0"),
    "head": ({"head": {"kind": "mixture"}}, {}, "head.kind is 'mixture'; the graph draws no samples"),
    "diffusion": ({"modality": diffusion("mask")}, {}, "objective.kind is 'block_diffusion', which draws a block in"),
    "lookback": ({}, {"lookback": 20}, "lookback is 20 steps; .* multiple of patch x block = 4, at most .* 16"),
    "steps": ({"block": 2}, {"lookback": 12}, "lookback is 12 steps; .* multiple of patch x block = 8"),
    "levels": ({}, {"quantile_levels": [0.5]}, r"quantile_levels is \[0.5\]; this model's head is a regression"),
    "order": ({"head": QUANTILE}, {"quantile_levels": [0.5, 0.2]}, "must increase strictly inside"),
    "range": ({"head": QUANTILE}, {"quantile_levels": [0.5, 1.0]}, "strictly between 0 and 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_such_graph_is_refused(name: str, tmp_path: Path) -> None:
    making, arguments, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        export_forecaster(_forecaster(**making), tmp_path, **arguments)
    assert not list(tmp_path.iterdir())


def test_examples_other_dtypes_and_missing_packages_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forecaster = _forecaster(patches=10)
    shown = Examples(strategy="earlier", count=1, length=8)
    with pytest.raises(ValueError, match=r"examples is Examples\(.*without examples in front"):
        export_forecaster(Forecaster(forecaster.model, forecaster.adapter, shown), tmp_path)
    forecaster.model.bfloat16()
    with pytest.raises(ValueError, match=r"the model is in bfloat16 on cpu; .* must be in float32 on cpu"):
        export_forecaster(forecaster, tmp_path)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(ImportError, match=r"of which \['onnxscript'\] is missing: pip install 'unimodal-ar\[export\]'"):
        export_forecaster(forecaster, tmp_path)


def test_a_model_that_is_no_forecaster_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build({"label": label(), "x": codes()})
    model.save_pretrained(tmp_path / "model")
    LabelAdapter(5).save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "out")]) == 2
    assert "the model draws ['x'], with no adapter of time series; --to onnx is for" in capsys.readouterr().err


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    forecaster = _forecaster(QUANTILE)
    forecaster.model.save_pretrained(tmp_path / "model")
    forecaster.adapter.save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--to", "onnx", "--out", str(tmp_path / "out")]
    assert main([*words, "--quantiles", "0.9,0.1"]) == 2
    assert "error: --quantiles is [0.9, 0.1]; they must increase" in capsys.readouterr().err
    assert main([*words, "--dtype", "float32"]) == 2
    assert "--dtype is given with --to onnx; it is for --to llama or torch" in capsys.readouterr().err
    assert main([*words, "--quantiles", "0.1,0.9", "--lookback", "8"]) == 0
    assert _run(tmp_path / "out", _inputs(waves(9), 8)).shape == (1, PATCH, 2)
