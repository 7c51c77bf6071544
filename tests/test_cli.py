"""The command line, as a user meets it: a recipe and a CSV of their own, from an empty folder."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from unimodal_ar.cli import main
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.training.recipe import load_recipe, shipped_recipes

TOY = [
    "data.dataset=null",
    "data.path=calls.csv",
    "data.horizon=8",
    "data.min_lookback=null",
    "data.test=48",
    "adapters.series.patch=4",
    "adapters.series.lookback=16",
    "model.backbone.hidden_size=16",
    "model.backbone.num_hidden_layers=1",
    "model.backbone.num_attention_heads=2",
    "training.max_steps=4",
    "training.eval_strategy=steps",
    "training.eval_steps=2",
    "training.disable_tqdm=true",
    "training.use_cpu=true",
    "evaluation.horizons=[8]",
    "evaluation.num_samples=4",
]


def table() -> pd.DataFrame:
    times = pd.date_range("2024-01-01", periods=400, freq="h")
    rng = np.random.default_rng(0)
    wave = np.sin(np.arange(400) * 2 * np.pi / 24)
    return pd.DataFrame({"time": times, "calls": 100 + 10 * wave + rng.normal(size=400), "chats": 5 + wave})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    table().to_csv("calls.csv", index=False)
    return tmp_path


def train(*more: str) -> int:
    overrides = [word for override in [*TOY, *more] for word in ("--set", override)]
    return main(["train", "next_patch/temperature", "--output", "model", *overrides])


def test_train_then_forecast(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train() == 0
    assert "seasonal naive (24)" in capsys.readouterr().out
    written = {file.name for file in (folder / "model").iterdir()}
    assert written >= {"config.json", "model.safetensors", "processor_config.json", "recipe.yaml", "evaluation.json"}
    assert not [name for name in written if name.startswith(".")]
    saved = yaml.safe_load((folder / "model" / "recipe.yaml").read_text())
    assert saved["data"]["path"] == "calls.csv" and saved["training"]["max_steps"] == 4
    assert set(json.loads((folder / "model" / "evaluation.json").read_text())["8"]) == {
        "unimodal_ar",
        "repeat last",
        "seasonal naive (24)",
    }

    words = ["forecast", "calls.csv", "--model", "model", "--horizon", "5", "--num-samples", "6"]
    assert main([*words, "--out", "out.parquet", "--plot", "out.png", "--quantiles", "0.1,0.5,0.9"]) == 0
    frame = pd.read_parquet("out.parquet")
    assert list(frame.columns) == ["item_id", "timestamp", "mean", "0.1", "0.5", "0.9"] and len(frame) == 10
    assert frame["timestamp"][0] == pd.Timestamp("2024-01-17 16:00")
    assert (folder / "out.png").stat().st_size > 5000
    expected = Forecaster.from_pretrained("model").predict(table(), 5, [0.1, 0.5, 0.9], 6)
    np.testing.assert_allclose(frame["mean"], expected.mean.flatten(), rtol=1e-6)
    assert main([*words, "--out", "out.csv"]) == 0
    assert len(pd.read_csv("out.csv")) == 10

    capsys.readouterr()
    assert train() == 2
    assert "already holds a model; choose another or pass --overwrite" in capsys.readouterr().err


def test_a_recipe_trains_reproducibly_from_its_saved_copy(folder: Path) -> None:
    assert train("evaluation=null") == 0
    assert main(["train", "model/recipe.yaml", "--output", "again"]) == 0
    first, second = ((folder / name / "model.safetensors").read_bytes() for name in ("model", "again"))
    assert first == second


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [word for override in TOY for word in ("--set", override)]
    assert main(["train", "next_patch/temperature", "--output", "model", "--dry-run", *overrides]) == 0
    assert "Dry run" in capsys.readouterr().out
    assert [file.name for file in folder.iterdir()] == ["calls.csv"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["train", "nothing.yaml"], "recipe is 'nothing.yaml'; it must be a YAML file or one of the shipped"),
        (["train", "next_patch/temperature", "--set", "training.learning_rat=1"], "did you mean 'learning_rate'?"),
        (["train", "next_patch/temperature", "--set", "sed=1"], "did you mean 'seed'?"),
        (["train", "next_patch/temperature", "--set", "data.known=[a]"], "data.known names 1 columns; adapters.series."),
        (["train", "next_patch/temperature", "--set", "evaluation.horizons=[9999]"], "has a test part of 1008 steps"),
        (["train", "next_patch/temperature", "--set", "adapters.series.lookback=300"], "multiple of patch x block = 24"),
        (["forecast", "calls.csv", "--model", "no", "--horizon", "3", "--out", "x.csv"], "holds no config.json"),
        (["forecast", "calls.csv", "--model", "no", "--horizon", "3", "--out", "x.txt"], "end in .parquet or .csv"),
    ],
)
def test_errors_are_one_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and sentence in error and error.count("\n") == 1
    assert [file.name for file in folder.iterdir()] == ["calls.csv"]


def test_an_irregular_table_names_the_times(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("evaluation=null") == 0
    table().drop(index=[50, 51]).to_csv("gaps.csv", index=False)
    words = ["forecast", "gaps.csv", "--model", "model", "--horizon", "3", "--out", "out.csv"]
    assert main(words) == 2
    assert "2024-01-03 04:00" in capsys.readouterr().err and not Path("out.csv").exists()
    assert main([*words, "--on-irregular", "resample"]) == 0


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.split() == shipped_recipes()
    assert main(["recipes", "next_patch/temperature"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == load_recipe("next_patch/temperature")
