"""What writing a model may replace in a folder, and what it must leave or refuse to touch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from unimodal_ar.saving import check_output, write_whole

OURS = ("generation_config.json", "model.safetensors", "processor_config.json", "recipe.yaml", "samples.png")


def _model(folder: Path, adapters: Any = None) -> Path:
    """Files that pass for a model whose adapters are these."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", *OURS):
        (folder / name).write_text("old")
    if adapters is not None:
        (folder / "processor_config.json").write_text(json.dumps({"adapters": adapters}))
    return folder


def _tokenizer(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def _entry(path: Any) -> dict[str, Any]:
    return {"kind": "image", "elements": {"kind": "tokenizer", "path": path}}


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", [*OURS, "evaluation.json", "model-00001-of-00002.safetensors", "image_tokenizer"])
def test_a_file_where_no_model_is_is_the_users(overwrite: bool, name: str, tmp_path: Path) -> None:
    """A recipe written by hand, say, of a training that is to write beside it; --overwrite is for models."""
    (tmp_path / name).mkdir() if name == "image_tokenizer" else (tmp_path / name).write_text("mine")
    with pytest.raises(ValueError, match=r".") as caught:
        check_output(tmp_path, "--out", overwrite, folders=["image_tokenizer"])
    assert str(caught.value) == (
        f"--out '{tmp_path}' holds {name}, which is no part of a model there but would be replaced; move it away or "
        "choose another folder"
    )


def test_other_files_are_in_nobodys_way(tmp_path: Path) -> None:
    for name in ("notes.txt", "recipe.yml", "my_tokenizer", "image_tokenizer"):
        (tmp_path / name).mkdir()
    check_output(tmp_path, "--out", False)
    check_output(tmp_path / "new", "--out", False, folders=["image_tokenizer"])
    write_whole(tmp_path, lambda folder: (folder / "config.json").touch(), replace=True)
    assert _names(tmp_path) == {"notes.txt", "recipe.yml", "my_tokenizer", "image_tokenizer", "config.json"}


def test_weights_are_for_who_may_read_the_rest(tmp_path: Path) -> None:
    def write(folder: Path) -> None:
        (folder / "config.json").touch()
        (folder / "part").mkdir()
        for place in (folder, folder / "part"):
            save_file({"x": torch.zeros(1)}, place / "model.safetensors")
            (place / "model.safetensors").chmod(0o600)

    write_whole(tmp_path, write)
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) == 3 and {file.stat().st_mode for file in files} == {(tmp_path / "config.json").stat().st_mode}


def test_without_a_model_there_nothing_is_removed(tmp_path: Path) -> None:
    (_model(tmp_path) / "config.json").unlink()
    write_whole(tmp_path, lambda folder: (folder / "config.json").touch(), replace=True)
    assert _names(tmp_path) == {"config.json", *OURS}


def test_of_a_model_everything_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    """Tokenizers only where the model's own adapters say that they carry them."""
    model = _model(tmp_path / "model", {"a": _entry("a_tokenizer"), "b": {"kind": "label"}, "c": _entry("me/x")})
    for name in ("a_tokenizer", "b_tokenizer", "c_tokenizer", "my_tokenizer", "checkpoints"):
        _tokenizer(model / name)
    with pytest.raises(
        ValueError, match=r"^output_dir '.*' already holds a model; choose another or pass --overwrite$"
    ):
        check_output(model, "output_dir", False)
    check_output(model, "output_dir", True, folders=["a_tokenizer"])
    write_whole(model, lambda folder: (folder / "config.json").write_text("new"), replace=True)
    assert _names(model) == {"config.json", "b_tokenizer", "c_tokenizer", "my_tokenizer", "checkpoints"}
    assert (model / "config.json").read_text() == "new"


def test_a_folder_that_the_old_model_does_not_know_is_not_replaced(tmp_path: Path) -> None:
    model = _model(tmp_path, {"image": {"kind": "image", "elements": {"kind": "levels"}}})
    _tokenizer(model / "image_tokenizer")
    with pytest.raises(ValueError, match="holds image_tokenizer, which is no part of a model there"):
        check_output(model, "output_dir", True, folders=["image_tokenizer"])


@pytest.mark.parametrize("path", ["../precious_tokenizer", "/precious_tokenizer", "..", ""])
def test_what_is_outside_is_never_removed(path: str, tmp_path: Path) -> None:
    """Whatever names a file from elsewhere holds."""
    precious = _tokenizer(tmp_path / "precious_tokenizer")
    model = _model(tmp_path / "model", {"../precious": _entry(path), "image": _entry(path)})
    write_whole(model, lambda folder: (folder / "config.json").touch(), replace=True)
    assert precious.is_dir() and _names(model) == {"config.json"}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"adapters": 3}', '{"adapters": {"a": 3}}', '{"adapters": null}'])
def test_a_broken_list_of_adapters_names_no_folders(content: str, tmp_path: Path) -> None:
    (_model(tmp_path) / "processor_config.json").write_text(content)
    _tokenizer(tmp_path / "a_tokenizer")
    write_whole(tmp_path, lambda folder: (folder / "config.json").touch(), replace=True)
    assert _names(tmp_path) == {"config.json", "a_tokenizer"}


@pytest.mark.parametrize("inside", ["model/image_tokenizer", "model/image_tokenizer/vq", "link/image_tokenizer"])
@pytest.mark.parametrize("is_model", [False, True])
def test_what_a_model_is_made_from_is_not_replaced(
    inside: str, is_model: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _tokenizer(tmp_path / "model" / "image_tokenizer" / "vq")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    if is_model:
        _model(tmp_path / "model", {"image": _entry("image_tokenizer")})
    with pytest.raises(ValueError, match=r".") as caught:
        check_output(Path("model"), "output_dir", True, {"elements.path": inside}, ["image_tokenizer"])
    assert str(caught.value) == (
        f"elements.path is '{inside}', which the model in output_dir 'model' would replace; choose another place"
    )
    (tmp_path / "else").mkdir()
    (tmp_path / "model").rename(tmp_path / "else" / "model")
    check_output(
        Path("model"), "output_dir", True, {"elements.path": "else/model/image_tokenizer"}, ["image_tokenizer"]
    )
