"""Recipes whose model is uploaded when it is finished."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from tests import hub_server
from tests.hub_server import HubServer
from tests.test_card import SMALL
from tests.test_hub import _image_model
from tests.test_peft import _source
from unimodal_ar import pipelines, ranks
from unimodal_ar.cli import main
from unimodal_ar.hub import push
from unimodal_ar.recipes import train as recipes
from unimodal_ar.recipes.train import train
from unimodal_ar.stamp import is_unedited
from unimodal_ar.training import publishing
from unimodal_ar.training.documents import load_recipe

hub = hub_server.hub  # a fixture


def _document(output: Path, **more: Any) -> dict[str, Any]:
    return load_recipe("next_patch/temperature", [*SMALL, f"output_dir={output}"]) | more


def test_a_finished_model_is_uploaded_with_recipe_and_card(hub: HubServer, tmp_path: Path) -> None:
    options = {"repo_id": "me/weather", "private": True, "message": "First"}
    train(_document(tmp_path / "run", hub=options))
    files, repository = hub.files("me/weather"), hub.repositories["me/weather"]
    assert repository.private and repository.messages[-1] == "First"
    assert files.keys() >= {"config.json", "model.safetensors", "recipe.yaml", "evaluation.json", "samples.png"}
    assert b'pipelines.load("me/weather")' in files["README.md"] and b"me/weather" in files["recipe.yaml"]
    assert b'pipelines.load("me/weather")' not in (tmp_path / "run" / "README.md").read_bytes()
    assert pipelines.load("me/weather").predict([[1.0, 2.0] * 200], 24).mean.shape == (1, 24)


def test_what_the_hub_refuses_is_said_before_training(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"hub.repo_id .*'owner/name'"):
        train(_document(tmp_path / "run", hub={"repo_id": "weather"}))
    hub.put("you/weather", {"README.md": b"Yours."})
    with pytest.raises(ValueError, match=r"hub.repo_id is 'you/weather'; with this token .* one of \['me'\]"):
        train(_document(tmp_path / "run", hub={"repo_id": "you/weather"}))
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(ValueError, match="the Hub answered 401 about 'me/weather'"):
        train(_document(tmp_path / "run", hub={"repo_id": "me/weather"}))
    assert not (tmp_path / "run").exists() or not any((tmp_path / "run").iterdir())


def test_a_body_that_nobody_else_finds_is_said_before_training(hub: HubServer, tmp_path: Path) -> None:
    train(_document(tmp_path / "base"))
    layers = {"init_from": str(tmp_path / "base"), "peft": {"method": "lora", "r": 2}}
    with pytest.raises(ValueError, match=r"hub.base is missing, and the frozen body is in '.*base', a folder"):
        train(_document(tmp_path / "layers", hub={"repo_id": "me/layers"}, **layers))
    assert not hub.requests
    assert main(["push", str(tmp_path / "base"), "me/base"]) == 0
    train(_document(tmp_path / "layers", hub={"repo_id": "me/layers", "base": "me/base"}, **layers))
    assert b"base_model: me/base" in hub.files("me/layers")["README.md"]
    assert hub.files("me/layers").keys() >= {"adapter_model.safetensors", "adapter_config.json"}
    assert "merged" not in (tmp_path / "layers" / "README.md").read_text().replace("--out merged", "")
    assert main(["merge", str(tmp_path / "layers"), "--out", str(tmp_path / "merged")]) == 0
    text = (tmp_path / "merged" / "README.md").read_text()
    for said in (
        "| Layers of PEFT | lora, merged into the backbone |",
        "Its layers of PEFT were then merged: `unimodal-ar merge`.",
        "Not stated: it was measured with its layers apart, and not again since they were merged",
    ):
        assert said in text


def test_a_failed_upload_leaves_the_model_and_says_how(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> str:
        raise ValueError("the Hub could not be asked about 'me/weather'")

    monkeypatch.setattr(publishing, "push", fail)
    output = tmp_path / "run"
    with pytest.raises(ValueError, match=rf"was not uploaded, for the Hub .*`unimodal-ar push {output} me/weather`"):
        train(_document(output, hub={"repo_id": "me/weather"}))
    monkeypatch.undo()
    assert (output / "README.md").is_file() and pipelines.load(output)


def _killed(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def _not_again(*_: Any, **__: Any) -> None:
    raise AssertionError("it was trained again")


def test_a_missing_upload_is_made_up_for(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whether it failed, or the training was killed before it; or nobody asked for one then."""
    auto = ["training.resume_from_checkpoint=auto", f"output_dir={tmp_path / 'run'}"]
    document = load_recipe("next_patch/temperature", [*SMALL, *auto]) | {"hub": {"repo_id": "me/weather"}}
    with monkeypatch.context() as patch:
        patch.setattr(publishing, "push", _killed)
        with pytest.raises(KeyboardInterrupt):
            train(document)
    monkeypatch.setattr(recipes, "fit", _not_again)
    assert main(["card", str(tmp_path / "run"), "--description", "Said since."]) == 0
    assert train(document) == tmp_path / "run"
    assert b"Said since." in hub.files("me/weather")["README.md"]
    commits = [*hub.repositories["me/weather"].commits]
    assert train(document) and [*hub.repositories["me/weather"].commits] == commits
    assert f"is on the Hub: {hub.endpoint}/me/weather/commit/{commits[-1]}" in capsys.readouterr().out
    assert train(document | {"hub": {"repo_id": "me/elsewhere"}})
    assert hub.files("me/elsewhere").keys() == hub.files("me/weather").keys()


def test_models_of_times_without_cards_are_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    auto = ["training.resume_from_checkpoint=auto", f"output_dir={tmp_path / 'run'}"]
    document = load_recipe("next_patch/temperature", [*SMALL, *auto])
    train(document)
    (tmp_path / "run" / "README.md").unlink()
    recipe = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    del recipe["card"], recipe["hub"]
    (tmp_path / "run" / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    monkeypatch.setattr(recipes, "fit", _not_again)
    train(document)
    assert is_unedited((tmp_path / "run" / "README.md").read_bytes())
    with pytest.raises(ValueError, match="already holds a model"):  # whose card would say something else
        train(document | {"card": {"license": "mit"}})


def test_one_process_talks_to_the_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what it is told ends the others."""
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    monkeypatch.setattr(ranks, "gather", lambda mine: [(None, ValueError("the Hub refuses")), mine])
    with pytest.raises(ValueError, match="the Hub refuses"):
        train(_document(tmp_path / "run", hub={"repo_id": "me/weather"}))
    assert not hub.requests and not (tmp_path / "run").exists()


def test_nothing_of_this_machine_is_uploaded(hub: HubServer, tmp_path: Path) -> None:
    """A path would name its user, say."""
    body, home = _source(tmp_path / "body", "llama"), tmp_path / "my home"
    home.mkdir()
    dates = pd.date_range("2020-01-01", periods=2200, freq="h")
    pd.DataFrame({"date": dates, "/y": np.sin(np.arange(2200))}).to_csv(home / "series.csv", index=False)
    data = {"path": str(home / "series.csv"), "dataset": None, "target": ["/y"]}
    document = load_recipe("next_patch/temperature", [*SMALL[3:], f"output_dir={home / 'run'}"])
    document["data"] |= data
    document["model"]["backbone"] = {"pretrained": str(body), "freeze": False}
    document["card"] = {"description": "Of /any/series."}
    train(document)
    text = (home / "run" / "README.md").read_text()
    files: dict[str, bytes] = {}
    for card in (text, text.replace("## Versions", '## Mine\n\nNot `pipelines.load("you/it")`.\n\n## Versions')):
        (home / "run" / "README.md").write_text(card)
        push(home / "run", "me/series")
        files = hub.files("me/series")
        assert not [name for name, content in files.items() if str(tmp_path).encode() in content]
        assert b'pipelines.load("me/series")' in files["README.md"] and b"--model me/series -" in files["README.md"]
        assert b"\n\nOf /any/series.\n\n" in files["README.md"]
    assert b'pipelines.load("you/it")' in files["README.md"] and not is_unedited(files["README.md"])
    pipelines.load(home / "run").push_to_hub("me/again")
    assert hub.files("me/again")["README.md"] == files["README.md"].replace(b"me/series", b"me/again")
    recipe = yaml.safe_load(files["recipe.yaml"])
    assert recipe["output_dir"] == "run" and recipe["data"]["path"] == "series.csv"
    assert recipe["data"]["target"] == ["/y"] and recipe["card"]["description"] == "Of /any/series."
    assert files["recipe.yaml"].startswith(b"# Trained with unimodal_ar ")


def test_a_card_that_was_edited_on_the_hub_stays(hub: HubServer, tmp_path: Path) -> None:
    folder = _image_model(tmp_path / "model")
    (folder / "README.md").unlink()
    push(folder, "me/grey")
    first = hub.files("me/grey")["README.md"]
    assert is_unedited(first)
    push(folder, "me/grey")  # by nobody
    assert hub.files("me/grey")["README.md"] == first
    edited = first.replace(b"# grey", b"# The grey one")
    hub.put("me/grey", hub.files("me/grey") | {"README.md": edited}, message="edit")
    with pytest.warns(UserWarning, match="the README.md of 'me/grey' was edited there and stays as it is"):
        push(folder, "me/grey")
    assert hub.files("me/grey")["README.md"] == edited
    (folder / "README.md").write_text("Mine.")  # is meant
    push(folder, "me/grey")
    assert hub.files("me/grey")["README.md"] == b"Mine."
