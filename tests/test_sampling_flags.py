"""`--steps`, `--head-steps` and `--sampler` on the command line: what they say is what `generate` is told."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from unimodal_ar.adapters import ImageAdapter, LabelAdapter, TimeSeriesAdapter
from unimodal_ar.cli import main
from unimodal_ar.commands.common import add_steps, step_options
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.pipelines import generate

from .helpers import build, codes, diffusion, label, series

Image = pytest.importorskip("PIL.Image")


def parsed(*words: str) -> dict[str, Any]:
    parser = argparse.ArgumentParser()
    add_steps(parser.add_argument)
    return step_options(parser.parse_args(words))


def test_what_is_written_is_what_is_meant() -> None:
    assert parsed() == {"steps": None, "head_steps": None, "sampler": None}
    assert parsed("--steps", "4", "--head-steps", "8,2") == {"steps": 4, "head_steps": [8, 2], "sampler": None}
    assert parsed("--sampler", "heun")["sampler"] == {"kind": "heun"}
    found = parsed("--sampler", "first_hitting,curve=cosine,order=forward")["sampler"]
    assert found == {"kind": "first_hitting", "curve": "cosine", "order": "forward"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "4,"], "--steps is 4,; it must be an integer >= 1, or FIRST,LAST, two of them with a comma"),
        (["--steps", "4,2,1"], "--steps is 4,2,1; it must be an integer >= 1, or FIRST,LAST"),
        (["--steps", "1.5"], "--steps is 1.5; it must be an integer >= 1"),
        (["--head-steps", "0"], "--head-steps is 0; it must be an integer >= 1"),
        (
            ["--sampler", "threshold,probability"],
            "--sampler is 'threshold,probability'; it must be KIND[,KEY=VALUE...]",
        ),
        (["--sampler", "threshold,kind=heun"], "--sampler is 'threshold,kind=heun'; it must be KIND[,KEY=VALUE...] "),
    ],
)
def test_what_cannot_be_read_names_the_option(words: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parsed(*words)
    assert str(caught.value).startswith(message)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Models of 4 x 4 pixels, next to each other: with masks, with Gaussian noise, and with a head that takes steps."""
    monkeypatch.chdir(tmp_path)
    grey = ImageAdapter(4, channels=1, elements={"kind": "levels", "levels": 3})
    patches = ImageAdapter(4, channels=1, elements={"kind": "patches", "patch": 2})
    made = {
        "mask": (codes(3, grey.grid, 8, **diffusion("mask")), grey),
        "gaussian": (series(4, patches.grid, 2, **diffusion("gaussian")), patches),
        "flow": (series(4, patches.grid, head={"kind": "flow"}), patches),
    }
    for name, (options, adapter) in made.items():
        model = build({"label": label(3), "image": options}, spread=0.2)
        for part in (model, LabelAdapter(3), adapter):
            part.save_pretrained(name)
    return tmp_path


def sample(model: str, *words: str) -> int:
    return main(["sample", "--model", model, "--out", "grid.png", "--n", "3", "--context", "label=1", *words])


def picture(path: str = "grid.png") -> np.ndarray:
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize(
    ("model", "words", "options"),
    [
        ("mask", "--steps 2", {"steps": 2}),
        ("mask", "--steps 8,1", {"steps": [8, 1]}),
        ("mask", "--sampler threshold,probability=0.4", {"sampler": {"kind": "threshold", "probability": 0.4}}),
        ("gaussian", "--steps 3 --sampler heun", {"steps": 3, "sampler": {"kind": "heun"}}),
        ("gaussian", "--sampler euler,shift=3", {"sampler": {"kind": "euler", "shift": 3.0}}),
        ("flow", "--head-steps 3", {"head_steps": 3}),
        ("flow", "--head-steps 9,2", {"head_steps": [9, 2]}),
    ],
)
def test_the_options_reach_the_model(model: str, words: str, options: dict[str, Any], folder: Path) -> None:
    assert sample(model, *words.split()) == 0
    generate(model, 3, label=1, **options).save("expected.png")
    generate(model, 3, label=1).save("default.png")
    assert np.array_equal(picture(), picture("expected.png"))
    assert not np.array_equal(picture(), picture("default.png"))


@pytest.mark.parametrize(
    ("model", "words", "message"),
    [
        ("flow", "--steps 3", "--steps is 3; next-block prediction draws a block in one pass and takes no steps"),
        ("flow", "--sampler heun", "--sampler is {'kind': 'heun'}; next-block prediction draws a block in one pass"),
        ("mask", "--head-steps 3", "--head-steps is 3; CategoricalHead draws in one step and takes no head_steps"),
        ("mask", "--sampler heun", "--sampler is {'kind': 'heun'}; for mask noise it must be a mapping whose 'kind'"),
        ("mask", "--sampler threshold,probability=2", "--sampler.probability is '2': input should be less than or eq"),
        ("mask", "--sampler threshold,p=1", "--sampler has an unknown key 'p'"),
        ("gaussian", "--sampler threshold", "--sampler is {'kind': 'threshold'}; for Gaussian noise it must"),
        ("gaussian", "--top-k 2", "top_k is 2; RegressionHead draws real vectors"),
    ],
)
def test_what_does_not_fit_the_model_names_the_option(
    model: str, words: str, message: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample(model, *words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}") and error.count("\n") == 1
    assert not Path("grid.png").exists()


def test_forecasts_of_block_diffusion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = build({"series": series(2, (8, 1, 1), 2, **diffusion("gaussian"))}, spread=0.2)
    Forecaster(model, TimeSeriesAdapter(patch=2, lookback=8)).save_pretrained("model")
    table = pd.DataFrame({"step": np.arange(30), "y": np.sin(np.arange(30.0))})
    table[["y"]].to_csv("series.csv", index=False)
    words = ["forecast", "series.csv", "--model", "model", "--horizon", "5", "--out", "out.csv", "--num-samples", "4"]
    assert main([*words, "--steps", "6,2", "--sampler", "heun"]) == 0
    frame = pd.read_csv("out.csv")
    assert (frame["0.95"] > frame["0.05"]).all()
    forecaster = Forecaster.from_pretrained("model")
    expected = forecaster.predict("series.csv", 5, num_samples=4, steps=[6, 2], sampler={"kind": "heun"})
    np.testing.assert_allclose(frame["mean"], expected.mean[0])
    assert not np.allclose(forecaster.predict("series.csv", 5, num_samples=4).mean, expected.mean)
    assert main([*words, "--head-steps", "3"]) == 2
    assert capsys.readouterr().err.startswith("error: --head-steps is 3; RegressionHead draws in one step")
    assert main([*words, "--steps", "x"]) == 2
    assert capsys.readouterr().err.startswith("error: --steps is x; it must be an integer >= 1")
