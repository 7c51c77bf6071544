"""A trained model judged again, on its own data and on others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests.test_block_diffusion_recipes import codes_recipe
from tests.test_text_states import save_language_model
from tests.test_timestamps import _document as timestamps_document
from unimodal_ar import Forecaster
from unimodal_ar.adapters import read_series
from unimodal_ar.cli import main
from unimodal_ar.evaluation.rolling import rolling_evaluation
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.evaluate import evaluate
from unimodal_ar.training.recipe import Resolved
from unimodal_ar.training.series import city_temperatures

SPLIT = {"validation": 16, "test": 24}


def _csv(folder: Path, name: str, period: float, length: int = 160, **more: np.ndarray) -> str:
    t = np.arange(length)
    rng = np.random.default_rng(int(period))
    wave = 3 * np.sin(2 * np.pi * t / period) + 0.3 * rng.standard_normal(length) + period
    path = folder / f"{name}.csv"
    time = pd.date_range("2020", periods=length, freq="h")
    pd.DataFrame({"time": time, "y": wave, **more}).to_csv(path, index=False)
    return str(path)


def _document(folder: Path, **evaluation: Any) -> dict[str, Any]:
    backbone = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    head = {"kind": "mixture", "components": 2}
    return {
        "seed": 3,
        "output_dir": str(folder / "run"),
        "model": {"backbone": backbone, "modalities": {"series": {"head": head}}},
        "adapters": {"series": {"kind": "timeseries", "patch": 4, "lookback": 12}},
        "data": {"kind": "series", "path": _csv(folder, "own", 11), "target": ["y"], "horizon": 8, **SPLIT},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
        "evaluation": {"horizons": [4, 12], "stride": 4, "season": 11, "num_samples": 5, **evaluation},
    }


def _files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def _by_hand(folder: Path, path: str, stop: int = 160, **changes: Any) -> Any:
    """The tables of horizon 4, from the series themselves."""
    series = read_series(path, target=["y"])
    places: dict[str, Any] = {"horizon": 4, "stride": 4, "season": 11, "num_samples": 5, "seed": 3, **changes}
    return rolling_evaluation(
        Forecaster.from_pretrained(folder, device="cpu"), series, [stop - 40], [stop - 24], **places
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(_document(tmp_path_factory.mktemp("trained"))) or Path()


def test_without_changes_it_finds_what_training_found(trained: Path, capsys: Any) -> None:
    before = _files(trained)
    main_status = main(["evaluate", str(trained), "--device", "cpu"])
    assert main_status == 0
    assert "Test part, rolling forecasts 12 steps ahead, an origin every 4 steps" in capsys.readouterr().out
    assert evaluate(trained, device="cpu") == json.loads((trained / "evaluation.json").read_text())
    assert _files(trained) == before


def test_on_other_data(trained: Path, tmp_path: Path) -> None:
    other, out, before = _csv(tmp_path, "other", 7), tmp_path / "found.json", _files(trained)
    asked = ["--set", f"data.path={other}", "--set", "evaluation.horizons=[4]", "--out", str(out), "--device", "cpu"]
    assert main(["evaluate", str(trained), *asked]) == 0
    found, expected = json.loads(out.read_text()), _by_hand(trained, other)
    assert found == {"4": expected}
    own = json.loads((trained / "evaluation.json").read_text())["4"]
    for method in own:  # baselines, too, are of the data that are judged
        assert found["4"][method]["MSE"] != own[method]["MSE"]
    assert _files(trained) == before and {file.name for file in tmp_path.iterdir()} == {
        *("found.json", "found-samples.png", "other.csv")
    }


def test_on_data_too_short_to_train_on(trained: Path, tmp_path: Path) -> None:
    """The training part is then for the baselines only; without any there are none."""
    document = _document(tmp_path, horizons=[4])
    document["data"] |= {"horizon": 30, "path": _csv(tmp_path, "short", 7, 76)}
    resolved = Resolved(document)
    evaluator: Any = resolved.evaluator()
    assert list(evaluator.own.baselines) == [4]
    with pytest.raises(ValueError, match=r"'y' leaves 36 steps to train on after 16 .* and 24 .* one window needs 42"):
        resolved.data.train()
    with pytest.raises(ValueError, match=r"series 'y' has 40 steps, which 16 of validation and 24 of test leave no"):
        evaluate(trained, ["data.stop=40"], "cpu")


def test_evaluation_and_seed_can_change(trained: Path) -> None:
    found = evaluate(trained, ["evaluation.horizons=[4]", "seed=4", "evaluation.stride=5", "data.stop=150"], "cpu")
    path = yaml.safe_load((trained / "recipe.yaml").read_text())["data"]["path"]
    cut = pd.read_csv(path)[:150]
    shorter = Path(path).with_name("shorter.csv")
    cut.to_csv(shorter, index=False)
    assert found == {"4": _by_hand(trained, str(shorter), 150, seed=4, stride=5)}


def test_a_dataset_takes_the_place_of_a_path(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("vega_datasets")
    city_temperatures().to_csv(tmp_path / "city.csv", index=False)
    reading = ["data.target=null", "data.on_irregular=resample", "data.stop=400"]
    changes = [*reading, "evaluation.horizons=[4]", "evaluation.stride=20"]
    found = evaluate(trained, [*changes, "data.dataset=city_temperatures"], "cpu")
    expected = evaluate(trained, [*changes, f"data.path={tmp_path}/city.csv"], "cpu")
    assert found["4"]["repeat last"]["MSE"] == pytest.approx(expected["4"]["repeat last"]["MSE"])
    assert found["4"]["unimodal_ar"]["MSE"] == pytest.approx(expected["4"]["unimodal_ar"]["MSE"], rel=1e-4)
    own = json.loads((trained / "evaluation.json").read_text())["4"]
    assert found["4"]["repeat last"]["MSE"] != own["repeat last"]["MSE"]


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        (
            "training.max_steps=9",
            "override is 'training.max_steps=9', which changes nothing in how this model is judged",
        ),
        ("model.backbone.hidden_size=16", "it must be of the recipe's data, evaluation or seed, but for data.hori"),
        ("adapters.series.patch=2", "override is 'adapters.series.patch=2', which changes nothing"),
        ("data.stride=2", "but for data.horizon, data.min_lookback, data.stride, data.validation_stride"),
        ("evaluation.horizon=[4]", "evaluation has an unknown key 'horizon'; did you mean 'horizons'?"),
        ("evaluation.horizons=[25]", "evaluation of horizon 25: series 'y' has a test part of 24 steps"),
        ("data.target=[x]", "'x'"),
        ("data.known=[z]", "data.known names 1 columns; adapters.series.known_covariates is 0"),
        ("data.examples={strategy: earlier}", "error: data.examples of 20 steps, the lookback of 12 and one block"),
        ("data.kind=pictures", "data.kind is 'pictures'; known kinds are ['audio', 'images', 'series', 'video']"),
        ("seed=-1", "recipe.yaml.seed is -1"),
    ],
)
def test_what_cannot_be_judged(trained: Path, override: str, expected: str, capsys: Any) -> None:
    assert main(["evaluate", str(trained), "--set", override]) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1


def test_places_that_are_refused(trained: Path, tmp_path: Path, capsys: Any) -> None:
    def told(*arguments: str) -> str:
        assert main(["evaluate", *arguments]) == 2
        return str(capsys.readouterr().err)

    assert "holds no config.json; it must be a model's folder that training wrote" in told(str(tmp_path))
    (tmp_path / "killed" / "checkpoints").mkdir(parents=True)
    assert "holds checkpoints and no config.json: its training is not finished" in told(str(tmp_path / "killed"))
    (tmp_path / "config.json").write_text("{}")
    assert "holds no recipe.yaml; it must be a model's folder that training wrote" in told(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("{evaluation: null, data: {kind: series}}")
    assert "has no section evaluation; say what is wanted by --set evaluation.KEY=VALUE" in told(str(tmp_path))
    assert "it must end in .json" in told(str(trained), "--out", str(tmp_path / "found.txt"))
    assert "must be there" in told(str(trained), "--out", str(tmp_path / "nowhere" / "found.json"))
    assert "in the folder of the model, which stays as it is" in told(str(trained), "--out", f"{trained}/found.json")


def test_a_recipe_without_an_evaluation_can_be_given_one(trained: Path, tmp_path: Path) -> None:
    for file in trained.iterdir():
        if file.is_file():
            (tmp_path / file.name).write_bytes(file.read_bytes())
    document = yaml.safe_load((trained / "recipe.yaml").read_text())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({**document, "evaluation": None}))
    changes = [f"evaluation.{key}={value}" for key, value in document["evaluation"].items() if key != "sampler"]
    changes = [change.replace("=None", "=null") for change in changes]
    assert evaluate(tmp_path, changes, "cpu") == json.loads((trained / "evaluation.json").read_text())


def test_pictures_go_beside_what_is_found(tmp_path: Path, capsys: Any) -> None:
    folder = train(codes_recipe(tmp_path, steps=2)) or Path()
    assert "The model draws with steps 2" in capsys.readouterr().out
    before, out = _files(folder), tmp_path / "found" / "again.json"
    out.parent.mkdir()
    assert main(["evaluate", str(folder), "--out", str(out), "--device", "cpu"]) == 0
    assert _files(folder) == before and "The model draws with" not in capsys.readouterr().out
    assert _files(out.parent) == {"again.json": before["evaluation.json"], "again-samples.png": before["samples.png"]}
    assert evaluate(folder, device="cpu") == json.loads(out.read_text())
    asked = ["--set", "evaluation.steps=1", "--out", str(out), "--device", "cpu"]
    assert main(["evaluate", str(folder), *asked]) == 0
    assert _files(out.parent)["again-samples.png"] != before["samples.png"] and _files(folder) == before


# --- transfer ---------------------------------------------------------------------------------------------------------


def test_transfer_is_judged_after_training_and_again(tmp_path: Path, capsys: Any) -> None:
    """Its tables are those that `evaluate` finds on the same data; what an entry leaves out is as in data."""
    other, longer = _csv(tmp_path, "other", 7), _csv(tmp_path, "longer", 19, 200)
    entries = [{"path": other}, {"name": "cut", "path": longer, "stop": 180, "standardise": True}]
    folder = train(_document(tmp_path, horizons=[4], transfer=entries)) or Path()
    assert "Test part of 'cut', which was not trained on, rolling forecasts 4 steps" in capsys.readouterr().out
    tables = json.loads((folder / "evaluation.json").read_text())
    assert list(tables) == ["4", "transfer"] and list(tables["transfer"]) == ["other", "cut"]
    assert tables["transfer"]["other"] == {"4": _by_hand(folder, other)}
    alone = ["evaluation.transfer=[]"]
    changes = [f"data.path={longer}", "data.stop=180", "data.standardise=true"]
    assert evaluate(folder, [*alone, *changes], "cpu") == tables["transfer"]["cut"]
    assert evaluate(folder, device="cpu") == tables  # the recipe that was written says the same
    assert load_recipe(folder / "recipe.yaml")["evaluation"]["transfer"] == entries
    without = train({**_document(tmp_path, horizons=[4]), "output_dir": str(tmp_path / "without")}) or Path()
    assert json.loads((without / "evaluation.json").read_text()) == {"4": tables["4"]}


def test_transfer_to_other_columns_of_the_same_file(tmp_path: Path) -> None:
    document = _document(tmp_path, horizons=[4], transfer=[{"name": "x", "target": ["x"]}])
    path = _csv(tmp_path, "own", 11, x=np.cos(np.arange(160) / 3))
    resolved = Resolved(document)
    evaluator: Any = resolved.evaluator()
    np.testing.assert_allclose(evaluator.transfer["x"].data.series[0].values, pd.read_csv(path)["x"])
    assert evaluator.own.data.series[0].item_id == "y"


def test_transfer_to_a_dataset(tmp_path: Path) -> None:
    pytest.importorskip("vega_datasets")
    entry = {"dataset": "city_temperatures", "target": None, "on_irregular": "resample", "stop": 400}
    evaluator: Any = Resolved(_document(tmp_path, horizons=[4], transfer=[entry])).evaluator()
    series = evaluator.transfer["city_temperatures"].data.series
    assert [len(item.values) for item in series] == [400, 400] and evaluator.own.data.options.dataset is None


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        ([{"pth": "x.csv"}], "evaluation.transfer.0 has an unknown key 'pth'; did you mean 'path'?"),
        ([{"path": "x.csv", "dataset": "city_temperatures"}], "give at most one of path and dataset"),
        ([{"stop": 3}], "it needs a name, a path or a dataset, which its tables are named after"),
        ([{"path": "a/x.csv"}, {"path": "b/x.csv"}], "transfer has several entries named 'x'; give each a name"),
    ],
)
def test_transfers_that_cannot_be_read(entries: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Resolved(_document(tmp_path, transfer=entries))
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"path": "nowhere.csv"}, "evaluation.transfer 'x': "),
        ({"test": 3}, "evaluation.transfer 'x': evaluation of horizon 4: series 'y' has a test part of 3 steps"),
        (
            {"known": ["y"]},
            "evaluation.transfer 'x': data.known names 1 columns; adapters.series.known_covariates is 0",
        ),
        ({"dataset": "moon"}, "evaluation.transfer 'x': data: dataset is 'moon'; known datasets are"),
    ],
)
def test_what_transfers_lack_is_found_before_training(changes: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        train(_document(tmp_path, transfer=[{"name": "x", **changes}]))
    assert str(caught.value).startswith(expected)
    assert not (tmp_path / "run").exists()


def test_times_that_a_transfer_lacks_are_missed_before_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_language_model(tmp_path / "llm")
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "cache"))
    document = timestamps_document(tmp_path)
    path = tmp_path / "timeless.csv"
    pd.DataFrame({"y": np.arange(400.0) % 7}).to_csv(path, index=False)
    entry = {"path": str(path), "time": None, "item": None, "target": None}
    document["evaluation"] = {"horizons": [4], "stride": 4, "season": 5, "transfer": [entry]}
    with pytest.raises(ValueError, match=r"^evaluation.transfer 'timeless': series .* has no times"):
        Resolved(document).evaluator()
