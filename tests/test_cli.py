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
from unimodal_ar.training.documents import load_recipe, shipped_configurations, shipped_recipes

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


def test_a_diverged_model_is_not_published(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("training.learning_rate=1e30", "training.warmup_steps=0", "evaluation=null") == 2
    assert "training diverged: " in capsys.readouterr().err
    assert not (folder / "model" / "config.json").exists()


def test_a_logger_that_is_not_installed_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("training.report_to=wandb") == 2
    assert "training cannot start: WandbCallback requires wandb" in capsys.readouterr().err


def test_dry_run_writes_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [word for override in TOY for word in ("--set", override)]
    assert main(["train", "next_patch/temperature", "--output", "model", "--dry-run", *overrides]) == 0
    assert "Dry run" in capsys.readouterr().out
    assert [file.name for file in folder.iterdir()] == ["calls.csv"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            ["train", "nothing.yaml"],
            "recipe is 'nothing.yaml'; it must be a YAML file that exists, or the name of a shipped recipe; "
            "`unimodal-ar recipes` lists those\n",
        ),
        (["train", "next_patch/temperatur"], "a shipped recipe; did you mean 'next_patch/temperature'?\n"),
        (
            ["train", "next_patch/temperature", "--set", "data.path=calls.csv"],
            "error: data: path is 'calls.csv' and dataset is 'city_temperatures'; give exactly one of path and "
            "dataset, and null for the other\n",
        ),
        (
            ["train", "next_patch/temperature", "--set", "model.modalities.serie.head.kind=flow"],
            "model.modalities has 'serie', which has no element and no adapter; adapters are of ['series']",
        ),
        (["train", "next_patch/temperature", "--set", "training.learning_rat=1"], "did you mean 'learning_rate'?"),
        (["train", "next_patch/temperature", "--set", "sed=1"], "did you mean 'seed'?"),
        (
            ["train", "next_patch/temperature", "--set", "training.num_train_epochs=-1"],
            "training.num_train_epochs is -1; it must be more than 0",
        ),
        (
            ["train", "next_patch/temperature", "--set", "training.per_device_train_batch_size=0"],
            "training.per_device_train_batch_size is 0; it must be at least 1",
        ),
        (
            ["train", "next_patch/temperature", "--output", "calls.csv"],
            "output_dir is 'calls.csv', which is a file; it must be a folder",
        ),
        (
            ["train", "next_patch/temperature", "--set", "data.known=[a]"],
            "data.known names 1 columns; adapters.series.",
        ),
        (["train", "next_patch/temperature", "--set", "evaluation.horizons=[9999]"], "has a test part of 1008 steps"),
        (
            ["train", "next_patch/temperature", "--set", "adapters.series.lookback=300"],
            "multiple of patch x block = 24",
        ),
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
    assert train("evaluation=null", "data.on_irregular=error") == 0
    table().drop(index=[50, 51]).to_csv("gaps.csv", index=False)
    words = ["forecast", "gaps.csv", "--model", "model", "--horizon", "3", "--out", "out.csv"]
    assert main(words) == 2
    assert "2024-01-03 04:00" in capsys.readouterr().err and not Path("out.csv").exists()
    assert main([*words, "--on-irregular", "resample"]) == 0
    recipe = Path("model/recipe.yaml")
    recipe.write_text(recipe.read_text().replace("on_irregular: error", "on_irregular: resample"))
    assert main(words) == 0


KNOWN = ["data.target=[calls]", "data.known=[price]", "adapters.series.known_covariates=1", "evaluation=null"]


def with_price(future: int) -> pd.DataFrame:
    """`table()` with a price that is known for `future` more hours."""
    frame = table().set_index("time").reindex(pd.date_range("2024-01-01", periods=400 + future, freq="h", name="time"))
    return frame.assign(price=np.arange(400.0 + future) % 7).reset_index()


def forecast_of(file: str, *more: str) -> int:
    words = ["--model", "model", "--horizon", "5", "--num-samples", "2", "--out", "out.csv"]
    return main(["forecast", file, *words, *more])


def test_forecasting_takes_the_roles_of_columns_from_training(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_price(0).to_csv("calls.csv", index=False)
    assert train(*KNOWN) == 0
    with_price(5).to_csv("ahead.csv", index=False)
    assert forecast_of("ahead.csv") == 0
    frame = pd.read_csv("out.csv")
    assert set(frame["item_id"]) == {"calls"}
    assert frame["timestamp"][0] == "2024-01-17 16:00:00"
    expected = Forecaster.from_pretrained("model").predict("ahead.csv", 5, None, 2, target="calls", known="price")
    np.testing.assert_allclose(frame["mean"], expected.mean[0], rtol=1e-6)

    # Of another table with other names, the command line goes first and the recipe fills in the rest.
    with_price(5).rename(columns={"calls": "visits"}).to_csv("other.csv", index=False)
    capsys.readouterr()
    assert forecast_of("other.csv") == 2
    error = capsys.readouterr().err
    assert "other.csv has no column 'calls', which target names" in error
    assert "(--target, --known not given: as in model/recipe.yaml)" in error
    assert forecast_of("other.csv", "--target", "visits") == 0
    assert set(pd.read_csv("out.csv")["item_id"]) == {"visits"}
    assert forecast_of("other.csv", "--target", "visits", "--known", "") == 2
    assert "series 'visits' has 0 known covariates; this model was trained with 1" in capsys.readouterr().err


def test_a_recipe_that_names_no_columns_leaves_them_to_be_found(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("evaluation=null") == 0
    table().rename(columns={"calls": "visits", "time": "ds"}).to_csv("other.csv", index=False)
    assert forecast_of("other.csv") == 0
    assert set(pd.read_csv("out.csv")["item_id"]) == {"visits", "chats"}
    Path("model/recipe.yaml").unlink()  # as beside a converted checkpoint
    assert forecast_of("calls.csv") == 0
    Path("model/recipe.yaml").write_text("data: {kind: series, horizon: 8, target: 3}")
    assert forecast_of("calls.csv") == 2
    assert "error: model/recipe.yaml: data.target is 3: input should be a valid list" in capsys.readouterr().err
    Path("model/recipe.yaml").write_text("data: {kind: images, dataset: digits}")
    assert forecast_of("calls.csv") == 2
    assert "data.kind is 'images'; only models of 'series' forecast" in capsys.readouterr().err


def test_a_broken_model_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("evaluation=null") == 0
    capsys.readouterr()
    config, weights = Path("model/config.json"), Path("model/model.safetensors")
    document = json.loads(config.read_text())
    document["backbone"]["hidden_size"] = 32
    sentence = "weights in 'model' do not load"
    for file, content in ((config, json.dumps(document).encode()), (weights, weights.read_bytes()[:-100])):
        whole = file.read_bytes()
        file.write_bytes(content)
        assert forecast_of("calls.csv") == 2
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(told) == 1 and sentence in told[0] and "config.json must be whole" in told[0]
        file.write_bytes(whole)
    assert forecast_of("calls.csv") == 0


def test_an_unusable_device_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("evaluation=null") == 0
    for device in ("foo", "cuda:99", "meta", "hpu"):
        capsys.readouterr()
        assert forecast_of("calls.csv", "--device", device) == 2
        assert f"error: --device is {device!r}; it must be one of ['cpu'" in capsys.readouterr().err
    assert not Path("out.csv").exists()
    assert forecast_of("calls.csv", "--device", "cpu") == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--horizon", "0"], "--horizon is 0; it must be at least 1"),
        (["--num-samples", "0"], "--num-samples is 0; it must be at least 1"),
        (["--quantiles", "0.9,0.1"], "levels are [0.9, 0.1]; they must be a list that increases"),
        (["--quantiles", "0.5", "--plot", "x.png"], "levels are [0.5]; no two enclose an interval"),
        (["--plot", "x.foo"], "path 'x.foo' has the suffix '.foo'; it must be one of ["),
        (["--plot", "nodir/x.png"], "--plot is 'nodir/x.png'; its folder 'nodir' must be there"),
        (["--out", "nodir/x.csv"], "--out is 'nodir/x.csv'; its folder 'nodir' must be there"),
        (["--out", "folder.csv"], "--out is 'folder.csv', which is a folder"),
        (["--out", "calls.csv"], "--out is 'calls.csv', the table that is read"),
    ],
)
def test_a_bad_request_is_told_before_the_model_is_looked_at(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    Path("folder.csv").mkdir()
    assert forecast_of("calls.csv", *words) == 2  # there is no model
    assert capsys.readouterr().err.startswith(f"error: {sentence}")
    assert sorted(file.name for file in folder.iterdir()) == ["calls.csv", "folder.csv"]


def test_table_and_picture_appear_together_or_not_at_all(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert train("evaluation=null") == 0
    before = sorted(folder.iterdir())

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("unimodal_ar.evaluation.plots.plot_panels", fail)
    assert forecast_of("calls.csv", "--plot", "out.png") == 2
    assert "error: disk full" in capsys.readouterr().err
    assert sorted(folder.iterdir()) == before


def test_a_binary_recipe_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.yaml").write_bytes(b"seed: 0\n\xff\x00")
    for command in ("train", "recipes"):
        assert main([command, "recipe.yaml"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("error: recipe 'recipe.yaml' is not") and "UTF-8" in error and error.count("\n") == 1


def test_recipes_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    assert capsys.readouterr().out.split() == [*shipped_recipes(), *shipped_configurations()]
    assert main(["recipes", "accelerate/ddp"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["distributed_type"] == "MULTI_GPU"
    assert main(["recipes", "next_patch/temperature"]) == 0
    assert yaml.safe_load(capsys.readouterr().out) == load_recipe("next_patch/temperature")
