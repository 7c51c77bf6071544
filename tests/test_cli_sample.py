"""`unimodal-ar sample` and `unimodal-ar convert`, as a user meets them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import NonNegativeFloat

from unimodal_ar.adapters import ImageAdapter, LabelAdapter, load_adapters
from unimodal_ar.cli import main
from unimodal_ar.convert import CONVERTERS, read_weights
from unimodal_ar.pipelines import generate, load
from unimodal_ar.schema import Strict, parse

from .helpers import build, codes, label

Image = pytest.importorskip("PIL.Image")

NAMES = ["cat", "tench, Tinca", "7"]


def parts(classes: int | list[str] = 3) -> tuple[Any, list[Any]]:
    """A toy model of 4 x 4 pixels in 3 grey levels, and its adapters."""
    image, names = ImageAdapter(4, channels=1, elements={"kind": "levels", "levels": 3}), LabelAdapter(classes)
    modalities = {"label": label(3, null_probability=0.1), "image": codes(3, image.grid)}
    return build(modalities, spread=0.1), [names, image]


def save(folder: str, classes: int | list[str] = 3) -> None:
    model, adapters = parts(classes)
    for part in (model, *adapters):
        part.save_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save("model")
    return tmp_path


def sample(*words: str) -> int:
    return main(["sample", "--model", "model", "--out", "grid.png", *words])


def picture(path: str | Path = "grid.png") -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


def expected(**options: Any) -> np.ndarray:
    generate("model", **options).save("expected.png")
    found = picture("expected.png")
    Path("expected.png").unlink()
    return found


def test_a_grid_of_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert sample("--context", "label=2") == 0
    assert capsys.readouterr().out == "Wrote 16 samples to grid.png\n"
    assert sorted(file.name for file in folder.iterdir()) == ["grid.png", "model"]
    assert np.array_equal(picture(), expected(label=2))
    words = "--n 6 --context label=2,0,1 --guidance-scale 3 --temperature 0.5 --top-k 2 --top-p 0.9 --seed 4"
    assert sample(*words.split(), "--batch-size", "4", "--target", "image", "--device", "cpu") == 0
    options = dict(guidance_scale=3.0, temperature=0.5, top_k=2, top_p=0.9, seed=4)
    assert np.array_equal(picture(), expected(n=6, label=[2, 0, 1], **options))


def test_an_image_is_completed(folder: Path) -> None:
    pixels = np.array([[0, 128, 255, 0]] * 4, dtype=np.uint8)
    mask = np.zeros((4, 4), dtype=np.uint8)
    mask[2:] = 255
    Image.fromarray(pixels).save("given.png")
    Image.fromarray(mask).save("mask.png")
    assert sample("--n", "1", "--context", "label=0", "--given", "given.png", "--mask", "mask.png") == 0
    assert np.array_equal(picture()[:2], pixels[:2]) and not np.array_equal(picture(), pixels)


def test_labels_by_name_or_number(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A name may hold commas, and may be a number: names go first."""
    save("model", NAMES)
    for text, number in (("cat", 0), ("tench, Tinca", 1), ("7", 2), ("1", 1)):
        assert sample("--n", "2", "--context", f"label={text}") == 0
        assert np.array_equal(picture(), expected(n=2, label=number))
    assert sample("--n", "2", "--context", "label=cat,7") == 0
    assert np.array_equal(picture(), expected(n=2, label=[0, 2]))
    assert sample("--context", "label=cats") == 2
    assert "did you mean 'cat'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--n", "0"], "--n is 0; it must be at least 1"),
        (["--batch-size", "0"], "--batch-size is 0; it must be at least 1"),
        (["--temperature", "-1"], "temperature is -1.0; it must be a number >= 0"),
        (["--guidance-scale", "nan"], "guidance_scale is nan; it must be a number >= 0"),
        (["--top-k", "0"], "top_k is 0; it must be an integer >= 1"),
        (["--top-p", "1.5"], "top_p is 1.5; it must lie in (0, 1]"),
        (["--steps", "0"], "--steps is 0; it must be an integer >= 1, or FIRST,LAST"),
        (["--out", "x.jpg"], "--out is 'x.jpg'; it must end in .flac, .gif, .mp4, .png or .wav"),
        (["--out", "nodir/x.png"], "--out is 'nodir/x.png'; its folder 'nodir' must be there"),
        (["--out", "folder.png"], "--out is 'folder.png', which is a folder"),
        (["--mask", "a.png"], "--mask comes without --given; completing an image takes both"),
        (["--given", "b.png", "--mask", "a.png"], "--given is 'b.png'; there is no such file"),
        (["--given", "a.png", "--mask", "b.png"], "--mask is 'b.png'; there is no such file"),
        (["--given", "a.png", "--mask", "a.png", "--out", "a.png"], "--out is 'a.png', which --given reads"),
        ([], "--model is 'no', which holds no config.json"),
    ],
)
def test_a_bad_request_is_told_before_the_model_is_looked_at(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    sentence: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("folder.png").mkdir()
    Path("a.png").touch()
    assert main(["sample", "--model", "no", "--out", "grid.png", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "folder.png"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "context ['label'] of 'image' is missing"),
        (["--context", "label"], "--context is 'label'; it must be NAME=VALUE with a NAME of ['label']"),
        (["--context", "lab=1"], "--context is 'lab=1'; it must be NAME=VALUE with a NAME of ['label']"),
        (["--context", "label=1", "--context", "label=2"], "--context names 'label' twice"),
        (["--context", "label=3"], "label is 3; this adapter knows the classes 0..2"),
        (["--context", "label=-1"], "label is '-1'; this adapter knows the classes 0..2"),
        (["--context", "label=\u0662"], "label is '\u0662'; this adapter knows the classes 0..2"),  # an Arabic 2
        (["--context", "label=0,1,2"], "label has 3 values and n is 16"),
        (["--context", "label=1", "--target", "label"], "target is 'label'; it must be one of ['image']"),
        (["--context", "label=1", "--steps", "3"], "--steps is 3; next-block prediction draws a block in one pass"),
        (["--context", "label=1", "--given", "model/config.json"], "--given comes without mask; completing takes both"),
        (["--out", "grid.wav"], "--out is 'grid.wav'; it must end in .png"),
        (["--context", "label=1", "--seconds", "2"], "'image' is of the kind 'image', which has no length in seconds"),
        (["--device", "foo"], "--device is 'foo'; it must be one of ['cpu'"),
    ],
)
def test_what_does_not_fit_the_model_is_told(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert sample(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1
    assert [file.name for file in folder.iterdir()] == ["model"]


def test_a_broken_model_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("model/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    assert sample("--context", "label=1") == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(told) == 1 and "weights in 'model' do not load (" in told[0]


class Settings(Strict):
    scale: NonNegativeFloat = 1.0
    classes: int | list[str] = 3


def toy(path: Path, **settings: Any) -> tuple[Any, list[Any]]:
    """A converter; the file holds a single number."""
    options = parse(Settings, settings, "toy")
    model, adapters = parts(options.classes)
    with torch.no_grad():
        next(model.parameters()).fill_(options.scale * float(read_weights(path)["weight"]))
    return model, adapters


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(CONVERTERS, "toy", toy)
    torch.save({"weight": torch.tensor(2.0)}, "toy.pth")
    return tmp_path


def convert(*words: str) -> int:
    return main(["convert", "toy", "toy.pth", "--out", "new/model", *words])


def test_a_checkpoint_becomes_a_folder(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--set", "scale=1.5", "--set", "classes=[a, b, c]") == 0
    assert capsys.readouterr().out.splitlines()[-1] == "Wrote new/model"
    generator = load("new/model")
    assert bool((next(generator.model.parameters()) == 3.0).all())
    assert list(generator.adapters) == ["label", "image"]
    assert len(generator.generate(2, label="b").raw) == 2
    assert not [file.name for file in Path("new/model").iterdir() if file.name.startswith(".")]


def test_a_model_is_replaced_only_when_asked(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("--set", "scale=1") == 0
    before = {file.name: file.read_bytes() for file in Path("new/model").iterdir()}
    assert convert("--set", "scale=2") == 2
    assert "--out 'new/model' already holds a model; choose another or pass --overwrite" in capsys.readouterr().err
    assert {file.name: file.read_bytes() for file in Path("new/model").iterdir()} == before
    Path("new/model/recipe.yaml").write_text("of an earlier training")
    assert convert("--set", "scale=2", "--set", "classes=[a, b, c]", "--overwrite") == 0
    after = {file.name: file.read_bytes() for file in Path("new/model").iterdir()}
    assert after.keys() == before.keys() and after["model.safetensors"] != before["model.safetensors"]
    assert json.loads(after["processor_config.json"])["adapters"]["label"]["classes"] == ["a", "b", "c"]
    assert isinstance(load_adapters("new/model")["image"], ImageAdapter)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--set", "scale"], "--set is 'scale'; it must be written KEY=VALUE"),
        (["--set", "path=x"], "--set is 'path=x'; it must be written KEY=VALUE with a KEY of the converter's"),
        (["--set", "scal=1"], "toy has an unknown key 'scal'; did you mean 'scale'?"),
        (["--set", "scale=[1"], "--set is 'scale=[1'; '[1' is not YAML"),
        (["--set", "scale=-1"], "toy.scale is -1: "),
        (["--set", "scale=1", "--out", "toy.pth"], "--out is 'toy.pth', which is a file; it must be a folder"),
    ],
)
def test_what_cannot_be_converted_is_told(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert convert(*words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1
    assert [file.name for file in checkpoint.iterdir()] == ["toy.pth"]


def test_an_unknown_checkpoint_or_converter(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "toy", "none.pth", "--out", "new"]) == 2
    assert "checkpoint is 'none.pth'; there is no such file" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "nobody", "toy.pth", "--out", "new"])
    assert "invalid choice: 'nobody'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["convert", "--help"])
    assert "the codebase: " in capsys.readouterr().out


def test_a_conversion_spares_what_is_not_its_own(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("new/model").mkdir(parents=True)
    Path("new/model/recipe.yaml").write_text("mine")
    assert convert("--set", "scale=1", "--overwrite") == 2
    assert "--out 'new/model' holds recipe.yaml, which is no part of a model there" in capsys.readouterr().err
    assert [file.name for file in Path("new/model").iterdir()] == ["recipe.yaml"]
    Path("new/model/recipe.yaml").unlink()
    assert convert("--set", "scale=1") == 0
    Path("toy.pth").rename("new/model/model.safetensors")
    assert main(["convert", "toy", "new/model/model.safetensors", "--out", "new/model", "--overwrite"]) == 2
    assert "checkpoint is 'new/model/model.safetensors', which the model in --out" in capsys.readouterr().err


def test_nothing_is_left_of_a_conversion_that_fails(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(ImageAdapter, "save_pretrained", fail)
    assert convert("--set", "scale=1") == 2
    assert "error: disk full" in capsys.readouterr().err
    assert not list(Path("new/model").iterdir())
