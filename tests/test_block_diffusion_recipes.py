"""Recipes of block diffusion: what an evaluation shows is what the model draws, and what a schedule may change."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor
from transformers import TrainingArguments

from unimodal_ar import Segment, UnimodalARConfig
from unimodal_ar.adapters import LabelAdapter, Series, TimeSeriesAdapter
from unimodal_ar.evaluation import negative_log_likelihood
from unimodal_ar.evaluation.rolling import rolling_evaluation
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.objectives.levels import UniformLevels
from unimodal_ar.pipelines import Generator, generate
from unimodal_ar.recipes.train import train
from unimodal_ar.saving import load_model
from unimodal_ar.training import UnimodalARTrainer
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.levels import candidate_ranges, search_levels
from unimodal_ar.training.recipe import Resolved
from unimodal_ar.training.schedule import Schedule, check_schedule

from .helpers import build, codes, diffusion, label, series

BACKBONE = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TRAINING = {
    "max_steps": 4,
    "learning_rate": 0.1,
    "per_device_train_batch_size": 4,
    "use_cpu": True,
    "disable_tqdm": True,
}
MASK = {"kind": "block_diffusion", "noise": "mask"}
GAUSSIAN = {"kind": "block_diffusion", "noise": "gaussian"}


def pictures(root: Path) -> str:
    """Eight 4 x 4 pictures of each of three classes."""
    rng = np.random.default_rng(0)
    for name in ("ant", "bee", "cat"):
        (root / name).mkdir(parents=True)
        for number in range(8):
            Image.fromarray(rng.integers(0, 256, (4, 4)).astype(np.uint8)).save(root / name / f"{number}.png")
    return str(root)


def images(tmp_path: Path, image: dict[str, Any], elements: dict[str, Any], **evaluation: Any) -> dict[str, Any]:
    return {
        "output_dir": str(tmp_path / "run"),
        "model": {"backbone": BACKBONE, "modalities": {"image": image, "label": {"null_probability": 0.1}}},
        "adapters": {
            "image": {"kind": "image", "size": 4, "channels": 1, "elements": elements},
            "label": {"kind": "label", "classes": 3},
        },
        "data": {"kind": "images", "path": pictures(tmp_path / "images"), "validation": 6, "test": 3},
        "training": dict(TRAINING),
        "evaluation": {"samples": 6, **evaluation},
    }


def codes_recipe(tmp_path: Path, **evaluation: Any) -> dict[str, Any]:
    image = {"layout": {"block": 4}, "objective": MASK, "head": {"kind": "categorical"}}
    return images(tmp_path, image, {"kind": "levels", "levels": 4}, **evaluation)


def vectors_recipe(tmp_path: Path, **evaluation: Any) -> dict[str, Any]:
    image = {"layout": {"block": 2}, "objective": GAUSSIAN, "head": {"kind": "regression"}}
    return images(tmp_path, image, {"kind": "patches", "patch": 2}, **evaluation)


def series_recipe(tmp_path: Path, **evaluation: Any) -> dict[str, Any]:
    times = pd.date_range("2024-01-01", periods=80, freq="h")
    wave = np.sin(np.arange(80) * 2 * np.pi / 8) + 0.3 * np.random.default_rng(0).normal(size=80)
    pd.DataFrame({"time": times, "y": wave}).to_csv(tmp_path / "series.csv", index=False)
    modality = {"layout": {"block": 2}, "objective": GAUSSIAN, "head": {"kind": "regression"}}
    path = str(tmp_path / "series.csv")
    return {
        "output_dir": str(tmp_path / "run"),
        "model": {"backbone": BACKBONE, "modalities": {"series": modality}},
        "adapters": {"series": {"kind": "timeseries", "patch": 2, "lookback": 8}},
        "data": {"kind": "series", "path": path, "target": ["y"], "horizon": 4, "validation": 16, "test": 12},
        "training": dict(TRAINING),
        "evaluation": {"horizons": [4], "stride": 4, "season": 8, "num_samples": 6, **evaluation},
    }


# --- evaluation -------------------------------------------------------------------------------------------------------


def test_what_the_evaluation_showed_is_what_the_model_draws(tmp_path: Path, capsys: Any) -> None:
    asked = {"steps": [3, 2], "sampler": {"kind": "confidence"}, "guidance_scale": 4.0, "temperature": 0.9}
    folder = train(codes_recipe(tmp_path, **asked))
    assert folder is not None
    out = capsys.readouterr().out
    assert "The model draws with steps (3, 2), sampler {'kind': 'confidence'}, temperature 0.9, guidance_scale" in out
    saved = json.loads((folder / "generation_config.json").read_text())
    assert {name: saved[name] for name in asked} == asked
    shown = (folder / "samples.png").read_bytes()
    classes: dict[str, Any] = {"n": 6, "label": [0, 1, 2]}
    generate(folder, **classes).save(tmp_path / "again.png")
    assert (tmp_path / "again.png").read_bytes() == shown
    others: list[dict[str, Any]] = [{"steps": 1}, {"sampler": {"kind": "first_hitting"}}, {"guidance_scale": 1.0}]
    for other in others:
        generate(folder, **classes, **other).save(tmp_path / "other.png")
        assert (tmp_path / "other.png").read_bytes() != shown
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["evaluation"]["steps"] == [3, 2]


def test_a_bound_is_called_one(tmp_path: Path, capsys: Any) -> None:
    folder = train(codes_recipe(tmp_path, likelihood_draws=5))
    assert folder is not None
    found = json.loads((folder / "evaluation.json").read_text())
    assert sorted(found) == ["bits_per_dimension_bound", "bits_per_dimension_bound_error", "test_images"]
    out = capsys.readouterr().out
    value, error = found["bits_per_dimension_bound"], found["bits_per_dimension_bound_error"]
    told = f"at most {value:.4f} bits per dimension (a bound, estimated with a standard error of {error:.4f})"
    assert f"Test part, 3 images: {told}\n" in out and 0 < error < value
    assert "The model draws" not in out  # nothing but defaults
    test = Resolved(load_recipe(folder / "recipe.yaml")).data.test()
    batches = [test.collate([test[i] for i in range(3)])]
    again = negative_log_likelihood(load_model(folder, "cpu"), batches, dimensions=16, draws=5)
    assert (again.bits, again.bits_error) == pytest.approx((value, error), rel=1e-5)


def test_gaussian_noise_has_no_likelihood(tmp_path: Path, capsys: Any) -> None:
    folder = train(vectors_recipe(tmp_path, steps=2, sampler={"kind": "heun"}))
    assert folder is not None
    assert json.loads((folder / "evaluation.json").read_text()) == {"test_images": 3}
    assert "this model has no likelihood" in capsys.readouterr().out


def test_forecasts_of_gaussian_block_diffusion_have_a_spread(tmp_path: Path) -> None:
    """Its head is a regression, which under next-block gives points."""
    folder = train(series_recipe(tmp_path, steps=2))
    assert folder is not None
    rows = json.loads((folder / "evaluation.json").read_text())["4"]
    assert all("WQL" in row for row in rows.values())
    forecaster = Forecaster.from_pretrained(folder)
    assert not forecaster.is_point
    table = pd.read_csv(tmp_path / "series.csv")
    found = forecaster.predict(table, 6, num_samples=8)
    assert found.samples.shape == (1, 8, 6) and (found.samples.std(1) > 0).all()
    assert found.quantiles is not None and (np.diff(found.quantiles, axis=1) >= 0).all()
    again, other = (forecaster.predict(table, 6, num_samples=8, steps=steps).samples for steps in (2, [5, 3]))
    assert np.array_equal(again, found.samples) and not np.array_equal(other, found.samples)
    assert not np.array_equal(forecaster.predict(table, 6, num_samples=8, sampler={"kind": "heun"}).samples, again)
    assert forecaster.predict(table, 6, temperature=0).samples.shape == (1, 1, 6)


def test_rolling_forecasts_take_steps() -> None:
    adapter = TimeSeriesAdapter(patch=2, lookback=8)
    model = build({"series": series(2, (6, 1, 1), block=2, **diffusion("gaussian"))}, spread=0.1)
    forecaster = Forecaster(model, adapter)
    items = [Series(np.sin(np.arange(60.0)), "a")]

    def rows(**sampling: Any) -> dict[str, float]:
        return rolling_evaluation(forecaster, items, [40], [48], 4, 4, 8, 4, **sampling)["unimodal_ar"]

    assert rows(steps=20) == rows() != rows(steps=3)
    with pytest.raises(ValueError, match="predict has an unknown key 'step'; did you mean"):
        rows(step=3)


@pytest.mark.parametrize(
    ("recipe", "evaluation", "expected"),
    [
        (codes_recipe, {"steps": 0}, "evaluation.steps is 0: "),
        (codes_recipe, {"steps": [4, 2, 1]}, "evaluation.steps is [4, 2, 1]: "),
        (codes_recipe, {"head_steps": 3}, "evaluation.head_steps is 3; CategoricalHead draws in one step and takes no"),
        (codes_recipe, {"sampler": {"kind": "heun"}}, "evaluation.sampler is {'kind': 'heun'}; for mask noise it must"),
        (codes_recipe, {"sampler": {"kind": "threshold", "p": 1}}, "evaluation.sampler has an unknown key 'p'"),
        (codes_recipe, {"likelihood_draws": 1}, "evaluation.likelihood_draws is 1: "),
        (
            vectors_recipe,
            {"sampler": {"kind": "threshold"}},
            "evaluation.sampler is {'kind': 'threshold'}; for Gaussian noise it must",
        ),
        (vectors_recipe, {"head_steps": 3}, "evaluation.head_steps is 3; RegressionHead draws in one step"),
        (series_recipe, {"head_steps": [3, 2]}, "evaluation.head_steps is (3, 2); RegressionHead draws in one step"),
        (
            series_recipe,
            {"sampler": {"kind": "confidence"}},
            "evaluation.sampler is {'kind': 'confidence'}; for Gaussian noise it must",
        ),
    ],
)
def test_sampling_that_cannot_be_is_told_before_training(
    recipe: Any, evaluation: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Resolved(recipe(tmp_path, **evaluation)).evaluator()
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


def test_next_block_has_no_steps_to_evaluate_with(tmp_path: Path) -> None:
    document = codes_recipe(tmp_path, steps=4)
    document["model"]["modalities"]["image"] = {"head": {"kind": "categorical"}}
    with pytest.raises(ValueError, match=r"evaluation\.steps is 4; next-block prediction draws a block in one pass"):
        Resolved(document).evaluator()


def test_any_part_of_an_image_is_kept(tmp_path: Path) -> None:
    """Under next-block in raster order it would have to be whole leading blocks."""
    resolved = Resolved(codes_recipe(tmp_path))
    modalities = {"image": codes(4, (1, 4, 4), 4, **diffusion("mask")), "label": label(3)}
    generator = Generator(build(modalities), [LabelAdapter(3), resolved.adapters["image"]])
    picture = np.random.default_rng(0).integers(0, 256, (4, 4)).astype(np.uint8)
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 1] = mask[1:3, 2] = mask[3, 0] = True
    kept = resolved.adapters["image"].encode(picture[None, ..., None]).values
    drawn = generator.generate(8, given=picture[..., None], mask=mask, label=0, steps=1).segment.values
    free = torch.from_numpy(mask).flatten()
    assert (drawn[:, ~free] == kept[:, ~free]).all() and (drawn[:, free].float().std(0) > 0).any()


# --- noise levels by variance -----------------------------------------------------------------------------------------

GRID = (6, 1, 1)
VALUES = torch.randint(3, (3, 6), generator=torch.Generator().manual_seed(0))


def masked_model(block: Any = 3, spread: float = 0.3, **more: Any) -> Any:
    return build({"x": codes(3, GRID, block, **{**diffusion("mask"), **more})}, spread=spread)


def batch(values: Tensor = VALUES) -> dict[str, Any]:
    return {"segments": [Segment("x", values, GRID)]}


def observed_variance(model: Any, low: float, high: float, draws: int = 2500) -> float:
    """Of an example's loss, averaged over examples, with the levels in force, by brute force: an example and its
    neighbours are one batch, repeated, so that the levels of the batch, which are spread evenly, are nearly free."""
    model.objectives["x"].noise.levels = UniformLevels(low=low, high=high)
    model.embeddings["x"].training = True
    with torch.no_grad():
        losses = model(**batch(VALUES.repeat(draws, 1))).element_losses["x"].double().sum(1)
    model.embeddings["x"].training = False
    return float(losses.view(draws, len(VALUES)).var(0).mean())


@pytest.mark.parametrize("block", [2, 6, 4])
def test_variances_are_those_of_clipped_training(block: Any) -> None:
    model = masked_model(block, spread=2.0)  # so that losses depend on who else is hidden
    ranges = [(0.0, 1.0), (0.35, 0.85), (0.5, 1.0)]
    many = VALUES.repeat(100, 1)
    found = search_levels(model, [batch(many[:80]), batch(many[80:])], ranges)
    assert [(low, high) for low, high, _ in found] == ranges
    for low, high, variance in found:
        assert variance == pytest.approx(observed_variance(model, low, high), rel=0.08, abs=1e-6)


def test_a_search_leaves_no_trace() -> None:
    model = masked_model(context_noise=0.1)
    model.train()
    model.heads.eval()
    levels, before = model.objectives["x"].noise.levels, torch.get_rng_state()
    first = search_levels(model, [batch()])
    assert model.objectives["x"].noise.levels is levels and torch.equal(torch.get_rng_state(), before)
    assert model.training and model.embeddings["x"].training and not model.heads.training
    assert first == search_levels(model, [batch()]) != search_levels(model, [batch()], seed=1)
    assert [entry[:2] for entry in first] == candidate_ranges(3)


def test_ranges_are_all_that_are_wide_enough() -> None:
    assert candidate_ranges(8, 1) == [(0.0, 1.0)]
    assert candidate_ranges(8, 0.85) == [(0.0, 1.0), (0.0, 0.9), (0.1, 1.0)]
    assert len(candidate_ranges(8)) == 21


@pytest.mark.parametrize("size", [2, 3, 4, 10])
def test_no_range_leaves_one_number_of_masks(size: int) -> None:
    """It would have the least variance, and nothing to teach of how elements of a block go together."""
    tenths = [low / 10 for low in range(11)]
    counts = {
        (low, high): {math.ceil((low + (high - low) * (step + 0.5) / 1000) * size) for step in range(1000)}
        for low in tenths
        for high in tenths
        if high - low > 0.29
    }
    expected = {ends for ends, numbers in counts.items() if len(numbers) > 1}
    assert set(candidate_ranges(size, 0.3)) == expected and (size < 4) == (len(expected) < len(counts))


@pytest.mark.parametrize(
    ("options", "arguments", "message"),
    [
        ({}, {"candidates": [(0.5, 0.5)]}, r"candidates hold \(0\.5, 0\.5\); a range is \(low, high\) with"),
        ({}, {"candidates": [], "draws": 3}, r"candidates are \[\] and draws is 3; there must be a range"),
        ({}, {"modality": "y"}, r"modality is 'y'; it must be one of \['x'\]"),
        ({"block": 1}, {"modality": "x"}, r"modality is 'x', which has nothing to choose; every block of the layout"),
        ({"objective": None}, {}, r"modality is None; it must be one of \[\]"),
    ],
)
def test_what_cannot_be_searched_is_told(options: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_levels(masked_model(**options), [batch()], **arguments)
    with pytest.raises(ValueError, match="batches is empty"):
        search_levels(masked_model(), [])


class Watched(UnimodalARTrainer):
    """Notes the levels of every step."""

    seen: list[tuple[float, float]]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        if model.training:
            levels = model.objectives["x"].noise.levels
            self.seen.append((levels.low, levels.high))
        return super().compute_loss(model, inputs, *args, **kwargs)


def run(folder: Path, schedule: Any, resume: str | None = None, **arguments: Any) -> Watched:
    torch.manual_seed(0)
    model = masked_model()
    examples = [[Segment("x", row[None], GRID)] for row in VALUES.repeat(4, 1)]
    given: dict[str, Any] = dict(max_steps=6, per_device_train_batch_size=4, eval_strategy="steps", eval_steps=2)
    given |= dict(save_strategy="steps", save_steps=2, report_to="none", disable_tqdm=True, use_cpu=True)
    trainer = Watched(
        model=model,
        args=TrainingArguments(str(folder), remove_unused_columns=False, **given | arguments),
        train_dataset=examples,
        eval_dataset=examples,
        callbacks=[Schedule(schedule, model)],
    )
    trainer.seen = []
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def test_training_takes_the_range_of_least_variance(tmp_path: Path, capsys: Any) -> None:
    """From each evaluation to the next; a width of 1 leaves all levels."""
    trainer = run(tmp_path, {"x.levels": [(0, 1), (0.5, 0.5)]})
    history: list[dict[str, Any]] = trainer.state.log_history
    logged = [entry for entry in history if "x_levels" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6] and logged[0]["x_levels"] == [0.0, 1.0]
    assert trainer.seen[:4] == [(0.0, 1.0)] * 4
    chosen = tuple(logged[1]["x_levels"])
    assert set(trainer.seen[4:]) == {chosen} and chosen != (0.0, 1.0)
    search = search_levels(cast(Any, trainer.model), [batch(VALUES.repeat(4, 1)[::2])])
    assert logged[2]["x_loss_variance"] == pytest.approx(min(variance for *_, variance in search))
    assert f"step 4  noise levels of x from {chosen[0]} to {chosen[1]}\n" in capsys.readouterr().out


def test_a_resumed_training_goes_on_with_its_levels(tmp_path: Path) -> None:
    whole = run(tmp_path, {"x.levels": [(0, 0.5)]})
    assert whole.seen[2] != (0.0, 1.0)
    resumed = run(tmp_path / "other", {"x.levels": [(0, 0.5)]}, resume=str(tmp_path / "checkpoint-2"))
    assert resumed.seen == whole.seen[2:]
    first, second = (cast(Any, trainer.model).parameters() for trainer in (whole, resumed))
    for one, other in zip(first, second, strict=True):
        torch.testing.assert_close(one, other)


def test_levels_need_evaluations(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"schedule\.x\.levels are chosen at evaluations; training\.eval_strategy must"
    ):
        run(tmp_path, {"x.levels": [(0, 0.5)]}, eval_strategy="no")


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        (
            {"x.group": [(0, 3), (0.5, 1)]},
            "schedule.x.group is for next_block with a start; the modality has {'kind': ",
        ),
        ({"x.random_order": [(0, 1.0)]}, "schedule.x.random_order is for next_block with a start; the modality has {'"),
        ({"x.levels": [(0, 0.0)]}, "schedule.x.levels takes the values [0.0]; they are widths of ranges of noise leve"),
        ({"x.levels": [(0, 1.5)]}, "schedule.x.levels takes the values [1.5]; they are widths of ranges of noise leve"),
        ({"x.levels": [(0.5, 0.5)]}, "schedule.x.levels has points at [0.5]; they must begin at 0 and increase up to"),
        ({"one.levels": [(0, 0.5)]}, "schedule.one.levels has nothing to choose; every block of the layout is a singl"),
        ({"next.levels": [(0, 0.5)]}, "schedule.next.levels is for block_diffusion with mask noise; the objective is "),
        ({"real.levels": [(0, 0.5)]}, "schedule.real.levels is for block_diffusion with mask noise; the objective is "),
        ({"cosine.levels": [(0, 0.5)]}, "schedule.cosine.levels chooses ranges of uniform levels; objective.levels is"),
    ],
)
def test_schedules_that_do_not_fit_are_refused(schedule: Any, problem: str) -> None:
    modalities = {
        "x": codes(3, GRID, 3, **diffusion("mask")),
        "one": codes(3, GRID, 1, **diffusion("mask")),
        "next": codes(3, GRID, 3),
        "real": series(2, GRID, 3, **diffusion("gaussian")),
        "cosine": codes(3, GRID, 3, **diffusion("mask", levels={"kind": "cosine"})),
    }
    config = UnimodalARConfig(backbone=BACKBONE, modalities=modalities)
    (found,) = check_schedule(schedule, config)
    assert found.startswith(problem)


def test_a_schedule_of_levels_is_part_of_a_recipe(tmp_path: Path) -> None:
    document = codes_recipe(tmp_path) | {"schedule": {"image.levels": [[0, 0.5]]}, "evaluation": None}
    folder = train(document)
    assert folder is not None
    assert yaml.safe_load((folder / "recipe.yaml").read_text())["schedule"] == {"image.levels": [[0.0, 0.5]]}
    (state,) = (folder / "checkpoints").glob("*/trainer_state.json")
    assert any("image_levels" in entry for entry in json.loads(state.read_text())["log_history"])
