"""Training: what windows hold, how recipes are read and checked, and that a seed fixes the result."""

from __future__ import annotations

import itertools
import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from transformers import DacConfig, DacModel, LlamaConfig, LlamaModel, TrainingArguments, set_seed

from unimodal_ar import Segment, UnimodalARConfig, UnimodalARForGeneration
from unimodal_ar.adapters import Series, TimeSeriesAdapter
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.recipes.train import main, train
from unimodal_ar.training import UnimodalARTrainer, arguments
from unimodal_ar.training.documents import load_recipe, shipped_recipes
from unimodal_ar.training.peft import insert
from unimodal_ar.training.recipe import Resolved
from unimodal_ar.training.series import SeriesData, SeriesOptions, WindowDataset

STEPS = 60


def _csv(folder: Path, **columns: Any) -> str:
    """A table whose target counts 0, 1, 2, ...: a value is its own place."""
    times = pd.date_range("2024-01-01", periods=STEPS, freq="h")
    path = folder / "series.csv"
    pd.DataFrame({"time": times, "y": np.arange(float(STEPS)), **columns}).to_csv(path, index=False)
    return str(path)


def _data(path: str, adapter: dict[str, Any] | None = None, **options: Any) -> SeriesData:
    adapters: Any = {"series": TimeSeriesAdapter(**{"patch": 4, "lookback": 12, "scaling": "none", **(adapter or {})})}
    checked = SeriesOptions(**{"path": path, "horizon": 8, "target": ["y"], "validation": 16, "test": 12, **options})
    return SeriesData(checked, adapters)


def _steps(segment: Segment) -> tuple[np.ndarray, np.ndarray]:
    """Values and mask as [B, steps]; the values are the numbers of the steps (see `_csv`)."""
    assert segment.observed is not None
    return segment.values.flatten(1).numpy(), segment.observed.flatten(1).numpy()


def _reach(dataset: WindowDataset) -> list[tuple[float, float, int]]:
    """First step, last step and number of observed steps of every window."""
    reach = []
    for index in range(len(dataset)):
        values, observed = _steps(dataset.collate([dataset[index]])["segments"][0])
        seen = values[observed]
        assert (np.diff(seen) == 1).all()
        reach.append((seen.min(), seen.max(), len(seen)))
    return reach


# Windows


def test_train_windows_end_before_validation(tmp_path: Path) -> None:
    """Training reads [0, 32): 13 windows of 12 + 8 steps, the last of which ends with the part."""
    reach = _reach(_data(_csv(tmp_path)).train())
    assert reach == [(first, first + 19, 20) for first in range(13)]
    assert max(last for _, last, _ in reach) == STEPS - 12 - 16 - 1


def test_validation_targets_lie_in_the_validation_part(tmp_path: Path) -> None:
    """Validation is [32, 48): lookbacks reach into training but targets do not. They are a patch of 4 apart."""
    assert _reach(_data(_csv(tmp_path)).validation()) == [(20, 39, 20), (24, 43, 20), (28, 47, 20)]
    assert _reach(_data(_csv(tmp_path), validation_stride=8).validation()) == [(20, 39, 20), (28, 47, 20)]


def test_parts_do_not_overlap(tmp_path: Path) -> None:
    """No step is a target of two parts, and none of the test part is ever seen."""
    data = _data(_csv(tmp_path), min_lookback=3)
    split = data.split(data.series[0])
    assert (split.validation, split.test, split.stop) == (32, 48, 60)
    horizon = data.options.horizon
    trained = {o + k for _, o in data.train().windows for k in range(horizon)}
    validated = {o + k for _, o in data.validation().windows for k in range(horizon)}
    assert max(trained) < split.validation <= min(validated) and max(validated) < split.test


@pytest.mark.parametrize(("stride", "expected"), [(1, 13), (5, 3), (12, 2), (13, 1)])
def test_stride(stride: int, expected: int, tmp_path: Path) -> None:
    origins = [origin for _, origin in _data(_csv(tmp_path), stride=stride).train().windows]
    assert origins == [12 + stride * i for i in range(expected)]


def test_min_lookback_shortens_some_windows(tmp_path: Path) -> None:
    """Short pasts are padded on the left, unobserved, so that every batch has the same shape."""
    dataset = _data(_csv(tmp_path), min_lookback=3).train()
    assert [origin for _, origin in dataset.windows] == list(range(3, 25))
    torch.manual_seed(0)
    windows = [dataset[len(dataset) - 1] for _ in range(300)]
    lengths = {origin - start for _, start, origin in windows}
    assert lengths == set(range(3, 13))
    first = [dataset[0] for _ in range(20)]
    assert {(start, origin) for _, start, origin in first} == {(0, 3)}  # no further back than the series begins
    segment = dataset.collate([dataset[0], windows[0]])["segments"][0]
    values, observed = _steps(segment)
    assert observed[0].tolist() == [False] * 9 + [True] * 11
    assert values[0][observed[0]].tolist() == list(range(11))
    assert segment.grid == (5, 1, 1)


def test_validation_always_sees_the_full_lookback(tmp_path: Path) -> None:
    data = _data(_csv(tmp_path), min_lookback=1)
    assert [data.validation()[i] for i in range(3)] == [(0, 20, 32), (0, 24, 36), (0, 28, 40)]
    assert data.validation()[0] == data.validation()[0]  # nothing is drawn


def test_fractions_are_of_the_whole_series(tmp_path: Path) -> None:
    data = _data(_csv(tmp_path), validation=0.2, test=0.25)
    split = data.split(data.series[0])
    assert (split.validation, split.test, split.stop) == (33, 45, 60)


def test_stop_cuts_before_everything_else(tmp_path: Path) -> None:
    data = _data(_csv(tmp_path), stop=50, validation=0.2, test=10)
    (series,) = data.series
    split = data.split(series)
    assert (len(series.values), split.validation, split.test, split.stop) == (50, 30, 40, 50)
    assert max(last for _, last, _ in _reach(data.train())) == 29


def test_standardisation_knows_only_the_training_part(tmp_path: Path) -> None:
    data = _data(_csv(tmp_path), standardise=True)
    train = np.arange(32.0)
    expected = (np.arange(60.0) - train.mean()) / train.std()
    np.testing.assert_allclose(data.series[0].values, expected, rtol=1e-12)


def test_standardising_a_constant_series_divides_by_one(tmp_path: Path) -> None:
    path = _csv(tmp_path)
    table = pd.read_csv(path).assign(y=5.0)
    table.to_csv(path, index=False)
    assert (_data(path, standardise=True).series[0].values == 0).all()


def test_covariates_are_aligned_with_the_values(tmp_path: Path) -> None:
    """A known covariate that equals 10 times the step, and a past-only one of 100 times the step before."""
    steps = np.arange(float(STEPS))
    path = _csv(tmp_path, tide=10 * steps, wind=100 * steps)
    adapter = {"known_covariates": 1, "past_covariates": 1}
    data = _data(path, adapter, known=["tide"], past=["wind"], min_lookback=5)
    for dataset in (data.train(), data.validation()):
        torch.manual_seed(0)
        window = dataset[len(dataset) - 1]
        _, start, origin = window
        segment = dataset.collate([window])["segments"][0]
        length = origin - start
        values, observed = _steps(segment)
        assert values[observed].tolist() == list(range(start, origin + 8))
        # The reference: the adapter itself, given the same steps by hand.
        past = torch.full((1, 12), torch.nan, dtype=torch.float64)
        past[0, 12 - length :] = torch.arange(start, origin)
        wind = torch.full((1, 12, 1), torch.nan, dtype=torch.float64)
        wind[0, 12 - length :, 0] = 100 * torch.arange(start, origin)
        tide = torch.full((1, 20, 1), torch.nan, dtype=torch.float64)
        tide[0, 12 - length :, 0] = 10 * torch.arange(start, origin + 8)
        future = torch.arange(origin, origin + 8).double()[None]
        expected = data.adapter.encode(past, future, known_covariates=tide, past_covariates=wind)
        assert segment.covariates is not None and expected.covariates is not None
        torch.testing.assert_close(segment.covariates, expected.covariates)
        # And, whatever the scaling, a covariate that rises with the steps rises with the values.
        known = segment.covariates[..., :4].flatten().numpy()[observed[0]]
        assert np.corrcoef(known, values[observed])[0, 1] == pytest.approx(1, abs=1e-6)


def test_several_series_have_windows_of_their_own(tmp_path: Path) -> None:
    table = pd.read_csv(_csv(tmp_path))
    table["z"] = table.y + 1000
    table.to_csv(tmp_path / "wide.csv", index=False)
    data = _data(str(tmp_path / "wide.csv"), target=["y", "z"], stride=4)
    dataset = data.train()
    assert [number for number, _ in dataset.windows] == [0] * 4 + [1] * 4
    values, observed = _steps(dataset.collate([dataset[0], dataset[4]])["segments"][0])
    assert observed.all() and (values[1] == values[0] + 1000).all()


def test_missing_values_stay_missing(tmp_path: Path) -> None:
    path = _csv(tmp_path)
    table = pd.read_csv(path)
    table.loc[[5, 14], "y"] = np.nan
    table.to_csv(path, index=False)
    dataset = _data(path).train()
    _, observed = _steps(dataset.collate([dataset[0]])["segments"][0])
    assert np.flatnonzero(~observed[0]).tolist() == [5, 14]


@pytest.mark.parametrize(
    ("options", "adapter", "expected"),
    [
        (
            {"test": 25},
            {},
            "series 'y' leaves 19 steps to train on after 16 of validation and 25 of test; one window needs 20",
        ),
        ({"horizon": 17, "test": 1}, {}, "no window of 17 steps fits the validation part; lengthen it"),
        ({"min_lookback": 13}, {}, "data.min_lookback is 13; it must be at most the lookback 12"),
        ({}, {"lookback": None}, "adapters.series.lookback is missing; training windows need it, in steps"),
        ({"modality": "sound"}, {}, "data.modality is 'sound'; it must name a timeseries adapter"),
    ],
)
def test_windows_that_cannot_be(
    options: dict[str, Any], adapter: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    def windows() -> None:
        data = _data(_csv(tmp_path), adapter, **options)
        data.train()
        data.validation()

    with pytest.raises(ValueError, match=r".") as caught:
        windows()
    assert str(caught.value) == expected


def test_modality_defaults_follow_adapter_and_data(tmp_path: Path) -> None:
    data = _data(_csv(tmp_path), {"lookback": 10, "known_covariates": 2}, horizon=6, known=["a", "b"])
    assert data.modality_defaults("series") == {"grid": [5, 1, 1], "covariates": 8}
    assert data.modality_defaults("label") == {}


def test_a_series_given_by_hand() -> None:
    """`_prepared` keeps the covariates' rows with the values'."""
    known, past = np.arange(80.0)[:, None], np.arange(60.0)[:, None]
    series = Series(np.arange(60.0), known=known, past=past)
    data = _data("unread.csv", stop=40, validation=8, test=8)
    cut = data._prepared(series)
    assert len(cut.values) == 40
    assert cut.known is not None and cut.past is not None
    assert np.array_equal(cut.known[:, 0], np.arange(40.0)) and np.array_equal(cut.past[:, 0], np.arange(40.0))


# Number of items


def _count_model(**changes: Any) -> UnimodalARForGeneration:
    modality = {"element": {"kind": "continuous", "dim": 2}, "grid": [4, 1, 1], "head": {"kind": "regression"}}
    backbone = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    label = {"element": {"kind": "discrete", "vocab_size": 2}, "grid": [1, 1, 1]}
    return UnimodalARForGeneration(
        UnimodalARConfig(backbone=backbone, modalities={"series": {**modality, **changes}, "label": label})
    )


def _masked(*missing: tuple[int, int, int]) -> Segment:
    observed = torch.ones(2, 4, 2, dtype=torch.bool)
    for place in missing:
        observed[place] = False
    return Segment("series", torch.randn(2, 4, 2), (4, 1, 1), observed=observed)


@pytest.mark.parametrize("start", ["learned", "none"])
@pytest.mark.parametrize("missing", [(), ((0, 0, 0), (0, 0, 1), (0, 1, 1)), ((1, 2, 0), (1, 3, 0), (1, 3, 1))])
def test_count_items_is_what_forward_divides_by(start: str, missing: tuple[tuple[int, int, int], ...]) -> None:
    """The divisor of an accumulated batch must be that of `forward`, or micro-batches would change the loss."""
    model = _count_model(start=start).eval()
    segments = [Segment("label", torch.zeros(2, 1, dtype=torch.long), (1, 1, 1), target=False), _masked(*missing)]
    count = model.count_items(segments)
    torch.testing.assert_close(model(segments, num_items_in_batch=count).loss, model(segments).loss)
    torch.testing.assert_close(model(segments, num_items_in_batch=2 * count).loss, model(segments).loss / 2)


def test_count_items_by_hand() -> None:
    """Elements count by their observed fraction; context counts nothing; without a start vector, nothing is predicted
    before something was seen."""
    label = Segment("label", torch.zeros(2, 1, dtype=torch.long), (1, 1, 1), target=False)
    missing = ((0, 0, 0), (0, 0, 1), (0, 1, 1))
    assert _count_model().count_items([label, _masked()]).item() == 8
    assert _count_model().count_items([label, _masked(*missing)]).item() == 6.5
    assert _count_model().count_items([_masked(), _masked(*missing)]).item() == 14.5
    assert _count_model(start="none").count_items([label, _masked()]).item() == 6
    assert _count_model(start="none").count_items([label, _masked(*missing)]).item() == 5


def test_nothing_observed_gives_no_loss_and_no_nan() -> None:
    """A batch of padding alone must not poison the weights."""
    model = _count_model().train()
    segment = _masked()
    nothing = segment.replace(values=torch.full((2, 4, 2), torch.nan), observed=torch.zeros(2, 4, 2, dtype=torch.bool))
    loss = model([nothing]).loss
    loss.backward()
    assert loss.item() == 0
    assert all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())


# Recipes


def _document(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    backbone = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    document = {
        "seed": 3,
        "output_dir": str(tmp_path / "run"),
        "model": {"backbone": backbone, "modalities": {"series": {"head": {"kind": "regression"}}}},
        "adapters": {"series": {"kind": "timeseries", "patch": 4, "lookback": 12}},
        "data": {"kind": "series", "path": _csv(tmp_path), "target": ["y"], "horizon": 8, "validation": 16, "test": 12},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
    }
    return {**document, **changes}


def _write(tmp_path: Path, document: Any) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def _problems(document: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        Resolved(document)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_recipe_is_put_together(tmp_path: Path) -> None:
    """Element, grid and covariates come from adapter and data; what is written has the last word."""
    resolved = Resolved(_document(tmp_path))
    options = resolved.config.modality("series")
    assert (options.element.kind, options.grid, options.covariates) == ("continuous", (5, 1, 1), 0)
    document = _document(tmp_path)
    document["model"]["modalities"]["series"]["grid"] = [9, 1, 1]
    assert Resolved(document).config.modality("series").grid == (9, 1, 1)


def test_recipe_by_path_equals_its_document(tmp_path: Path) -> None:
    document = _document(tmp_path)
    assert load_recipe(_write(tmp_path, document)) == document


def test_overrides(tmp_path: Path) -> None:
    """Values are YAML; sections that are missing are made."""
    overrides = [
        "seed=7",
        "training.learning_rate=1e-3",
        "data.known=[a, b]",
        "evaluation.horizons=[4]",
        "training.bf16=true",
    ]
    document = load_recipe(_write(tmp_path, _document(tmp_path)), [*overrides, "output_dir='x=y'", "data.test=null"])
    assert document["seed"] == 7
    assert document["training"]["learning_rate"] == 1e-3 and document["training"]["bf16"] is True
    assert document["training"]["max_steps"] == 4  # the rest of the section stays
    assert document["data"]["known"] == ["a", "b"] and document["data"]["test"] is None
    assert document["evaluation"] == {"horizons": [4]}
    assert document["output_dir"] == "x=y"


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E4", 1e4), ("-2e+1", -20.0), ("1.0e-3", 1e-3), ("e3", "e3"), ("1e", "1e"), ("10", 10)],
)
def test_exponents_without_a_dot_are_numbers(text: str, value: Any, tmp_path: Path) -> None:
    """YAML 1.1 hands out 1e-3 as a string, which TrainingArguments would take."""
    found = load_recipe(_write(tmp_path, {}), [f"training.x={text}"])["training"]["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "override is 'seed'; it must be written a.b=value"),
        ("=3", "override is '=3'; it must be written a.b=value"),
        ("a..b=3", "override is 'a..b=3'; it must be written a.b=value"),
        ("seed.x=3", "override is 'seed.x=3'; 'seed' holds a value, not a section"),
        ("peft={method:lora}", "override is 'peft={method:lora}'; 'method:lora' needs a space behind its colon"),
        ("a.b=[{path:a.csv}]", "override is 'a.b=[{path:a.csv}]'; 'path:a.csv' needs a space behind its colon"),
        (
            "data.known=[a",
            "override is 'data.known=[a'; '[a' is not YAML: expected ',' or ']', but got '<stream end>' in line 1",
        ),
        (
            "data={kind: a, kind: b}",
            "override is 'data={kind: a, kind: b}'; '{kind: a, kind: b}' is not YAML: key 'kind' of line 1 stands "
            "again in line 1",
        ),
    ],
)
def test_overrides_that_are_none(override: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        load_recipe(_write(tmp_path, {"seed": 1}), [override])
    assert str(caught.value) == expected


def test_a_misspelt_override_is_told_with_the_nearest_key(tmp_path: Path) -> None:
    document = load_recipe(_write(tmp_path, _document(tmp_path)), ["training.learning_rat=1e-3"])
    assert _problems(document) == "training has an unknown key 'learning_rat'; did you mean 'learning_rate'?"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1", "is not YAML: "),
        ("- 1\n- 2", "holds a list; it must be a mapping"),
        ("", "holds a NoneType; it must be a mapping"),
    ],
)
def test_files_that_are_no_recipe(text: str, expected: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=expected):
        load_recipe(path)


def test_an_unknown_recipe_lists_the_shipped_ones() -> None:
    with pytest.raises(ValueError, match=r"recipe is 'next_patch/temprature'; .*'next_patch/temperature'"):
        load_recipe("next_patch/temprature")


def test_unknown_keys_of_all_levels_are_told_at_once(tmp_path: Path) -> None:
    document = _document(tmp_path, evaluation={"horizon": [4], "horizons": [4], "stride": 1, "season": 1}, sed=1)
    document["adapters"]["series"]["lokback"] = 3
    document["data"]["horizont"] = 3
    document["training"]["learning_rat"] = 3
    document["training"]["max_step"] = 3
    document["model"]["modality"] = {}
    message = _problems(document)
    for expected in (
        "recipe has an unknown key 'sed'; did you mean 'seed'?",
        "recipe.model has an unknown key 'modality'; did you mean 'modalities'?",
        "evaluation has an unknown key 'horizon'; did you mean 'horizons'?",
        "adapters.series has an unknown key 'lokback'; did you mean 'lookback'?",
        "data has an unknown key 'horizont'; did you mean 'horizon'?",
        "training has an unknown key 'learning_rat'; did you mean 'learning_rate'?",
        "training has an unknown key 'max_step'; did you mean 'max_steps'?",
    ):
        assert expected in message


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (["model", "modalities", "series"], "modalities.series has an unknown key 'hed'; did you mean 'head'?"),
        (["model", "modalities", "series", "head"], "modalities.series.head has an unknown key 'hed'"),
        (["model", "backbone"], "UnimodalARDecoderConfig has an unknown key 'hed'; legal keys are ["),
    ],
)
def test_unknown_keys_of_the_model(level: list[str], expected: str, tmp_path: Path) -> None:
    document = _document(tmp_path)
    section: Any = document
    for name in level:
        section = section[name]
    section["hed"] = 1
    assert expected in _problems(document)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"adapters": {}},
            "adapters is empty; it must map modalities to one of the kinds ['audio', 'image', 'label', 'timeseries'",
        ),
        ({"adapters": {"series": {"kind": "timeserie"}}}, "adapters.series.kind is 'timeserie'; known kinds are ["),
        ({"adapters": {"series": 3}}, "adapters.series is 3: "),
        ({"adapters": None}, "recipe.adapters is None: "),
        (
            {"adapters": {"series": {"kind": "timeseries", "patch": 4, "modality": "x"}}},
            "adapters.series.modality is 'x'; it must be its key, 'series'",
        ),
        ({"data": {"kind": "tables"}}, "data.kind is 'tables'; known kinds are ['audio', 'images', 'series', 'video']"),
        ({"data": {"kind": "series", "horizon": 8}}, "give exactly one of path and dataset"),
        (
            {"data": {"kind": "series", "horizon": 8, "dataset": "towns"}},
            "dataset is 'towns'; known datasets are ['city_temperatures']",
        ),
        ({"data": {"kind": "series", "path": "x.csv", "horizon": 0}}, "data.horizon is 0: "),
        ({"training": {"seed": 1}}, "training.seed is set; the recipe's own key seed governs everything"),
        ({"training": {"learning_rate": "fast"}}, "training.learning_rate is 'fast'; it must be a number"),
        ({"training": {"learning_rate": None}}, "training.learning_rate is None; it must be a number"),
        ({"training": {"max_steps": 1.5}}, "training.max_steps is 1.5; it must be an integer"),
        ({"training": {"bf16": "yes please"}}, "training.bf16 is 'yes please'; it must be true or false"),
        (
            {"training": {"eval_strategy": "steps", "eval_steps": "abc"}},
            "training.eval_steps is 'abc'; it must be a number",
        ),
        (
            {"training": {"eval_strategy": "sometimes"}},
            "training: sometimes is not a valid IntervalStrategy, please select one of ['no', 'steps', 'epoch']",
        ),
        ({"training": {"save_strategy": "no"}}, "training: --load_best_model_at_end requires the save and eval"),
        (
            {"training": {"accelerator_config": {"x": 1}}},
            "training: AcceleratorConfig.__init__() got an unexpected keyword argument 'x'",
        ),
        (
            {"training": {"resume_from_checkpoint": 3}},
            "training.resume_from_checkpoint is 3; it must be true (the last checkpoint), the path of a checkpoint, or",
        ),
        ({"training": {"eval_strategy": False}, "early_stopping": 2}, "training.eval_strategy is 'no'"),
        (
            {"data": {"kind": "series", "path": "x.csv", "horizon": 8, "on_irregular": "ignore"}},
            "data.on_irregular is 'ignore': input should be 'error' or 'resample'",
        ),
        ({"model": {"modalities": {"series": {}}}}, "modalities.series has no head; the data are its series"),
        ({"training": {"output_dir": "x"}}, "training.output_dir is set; the recipe's own key output_dir governs"),
        ({"training": {"warmup_ratio": 0.1}}, "training has an unknown key 'warmup_ratio'"),
        ({"seed": -1}, "recipe.seed is -1: "),
        (
            {"model": {"modalities": {"other": {"head": {"kind": "regression"}}}}},
            "adapters.series has no model.modalities.series",
        ),
    ],
)
def test_recipes_that_do_not_hold_together(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    assert expected in _problems(_document(tmp_path, **changes))


def test_a_recipe_that_is_no_mapping() -> None:
    assert _problems([1]).startswith("recipe is [1]: ")


def test_arguments_of_the_house_give_way_to_the_recipe(tmp_path: Path) -> None:
    training = {"weight_decay": 0.5, "eval_strategy": "steps", "eval_steps": 2, "use_cpu": True}
    arguments = Resolved(_document(tmp_path, training=training)).training_arguments(tmp_path, max_steps=9)
    assert (arguments.weight_decay, arguments.max_grad_norm, arguments.seed, arguments.max_steps) == (0.5, 1.0, 3, 9)
    assert arguments.save_strategy == "steps" and arguments.save_steps == 2  # or the best could not be kept
    assert arguments.load_best_model_at_end and arguments.metric_for_best_model == "eval_loss"
    assert arguments.greater_is_better is False and arguments.remove_unused_columns is False


def test_a_bare_no_is_a_strategy(tmp_path: Path) -> None:
    """YAML 1.1 reads `no` as false, which TrainingArguments would not take."""
    document = load_recipe(_write(tmp_path, _document(tmp_path)), ["training.eval_strategy=no"])
    assert document["training"]["eval_strategy"] is False
    arguments = Resolved(document).training_arguments(tmp_path)
    assert arguments.eval_strategy == arguments.save_strategy == "no" and not arguments.load_best_model_at_end


@pytest.mark.parametrize(
    "key",
    [
        *("do_train", "do_eval", "do_predict", "push_to_hub", "hub_model_id", "label_names", "remove_unused_columns"),
        *("include_for_metrics", "prediction_loss_only", "metric_for_best_model", "neftune_noise_alpha"),
    ],
)
def test_arguments_without_effect_are_refused(key: str, tmp_path: Path) -> None:
    message = f"training.{key} is set; it has no effect here, so leave it out"
    assert _problems(_document(tmp_path, training={key: True})) == message


def test_the_keys_without_effect_exist() -> None:
    """Else they would be refused with the wrong sentence, or a new name of theirs accepted."""
    assert arguments._WITHOUT_EFFECT <= {field.name for field in fields(TrainingArguments)}


def test_typos_in_every_section_are_told_at_once(tmp_path: Path) -> None:
    """Each section is looked at whatever is wrong with the others."""
    document = _document(tmp_path, evaluation={"horizons": [4], "stride": 1, "season": 1, "strid": 1})
    document["adapters"]["series"]["pach"] = 4
    document["data"]["horizn"] = 8
    document["training"] |= {"learning_rat": 1, "max_steps": "many"}
    document["model"]["backbone"] = {"model_type": "llama", "hidden_size": "abc"}
    document["model"]["modalities"]["series"] |= {"hed": 1, "head": {"kind": "regression", "los": "mse"}}
    document["model"]["modalities"]["label"] = {"element": {"kind": "discrete", "vocab_size": 2}, "gird": [1, 1, 1]}
    message = _problems(document)
    for expected in (
        "evaluation has an unknown key 'strid'; did you mean 'stride'?",
        "adapters.series has an unknown key 'pach'; did you mean 'patch'?",
        "data has an unknown key 'horizn'; did you mean 'horizon'?",
        "training has an unknown key 'learning_rat'; did you mean 'learning_rate'?",
        "training.max_steps is 'many'; it must be an integer",
        "model.backbone.hidden_size is 'abc': expected int, got str",
        "modalities.series has an unknown key 'hed'; did you mean 'head'?",
        "modalities.series.head has an unknown key 'los'; did you mean 'loss'?",
        "modalities.label has an unknown key 'gird'; did you mean 'grid'?",
        "modalities.label.grid: field required",
    ):
        assert message.count(expected) == 1, expected
    # Nothing is said of what is only missing because the adapter could not be built.
    assert "modalities.series.element" not in message and "modalities.series.grid" not in message


@pytest.mark.parametrize("name", ["adapters", "data"])
def test_a_broken_section_leaves_no_false_complaints(name: str, tmp_path: Path) -> None:
    """What an adapter or the data settle is not missed, nor is a layout judged on a grid that is not known."""
    document = _document(tmp_path)
    document["model"]["modalities"]["series"]["layout"] = {"block": [2, 3]}
    (document["data"] if name == "data" else document["adapters"]["series"])["x"] = 1
    message = _problems(document)
    assert message.count(";") == 1 and "has an unknown key 'x'" in message


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"model_type": "llama", "hidden_size": "abc"}, "model.backbone.hidden_size is 'abc': expected int, got str"),
        (
            {"model_type": "llama", "hidden_size": 10, "num_attention_heads": 3},
            "model.backbone: The hidden size (10) is not a multiple of the number of attention heads (3).",
        ),
        ({"model_type": "lama"}, "model.backbone.model_type is 'lama'; it must be 'unimodal_ar_decoder' or a"),
        (
            {"model_type": "unimodal_ar_decoder", "hidden_size": "abc"},
            "model.backbone: hidden_size is 'abc'; it must be a positive integer",
        ),
    ],
)
def test_backbones_that_cannot_be(backbone: Any, expected: str, tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["model"]["backbone"] = backbone
    assert _problems(document).startswith(expected)


def test_a_backbone_that_is_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError("no such file,\nnor name")

    monkeypatch.setattr("unimodal_ar.configuration.AutoConfig.from_pretrained", fail)
    document = _document(tmp_path)
    document["model"]["backbone"] = "no/where"
    assert _problems(document) == "model.backbone is 'no/where', which cannot be loaded: no such file, nor name"


def test_a_key_given_twice_is_an_error(tmp_path: Path) -> None:
    """PyYAML lets the last one win."""
    path = tmp_path / "twice.yaml"
    path.write_text("seed: 1\ntraining:\n  max_steps: 1\n  bf16: true\n  max_steps: 2\n")
    with pytest.raises(ValueError, match=r"is not YAML: key 'max_steps' of line 3 stands again in line 5$"):
        load_recipe(path)
    path.write_text("a: &x {b: 1, c: 2}\nd: {<<: *x, b: 3}\ne: {b: 4}\n")  # a merged key may be overridden
    assert load_recipe(path) == {"a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}, "e": {"b": 4}}


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"seed: \xff")
    with pytest.raises(ValueError, match=r"recipe.yaml' is not UTF-8 text at byte 6; it must be a YAML file"):
        load_recipe(path)


# The resolved recipe

BODIES: dict[str, dict[str, Any]] = {
    "native": {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_attention_heads": 2},
    "llama": {"model_type": "llama", "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8},
    "gpt2": {"model_type": "gpt2", "n_embd": 8, "n_head": 2, "n_layer": 1},
}
HEADS_BY_NAME = {"regression": {}, "quantile": {}, "mixture": {"components": 2}}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("head", HEADS_BY_NAME)
def test_the_resolved_recipe_is_the_same_recipe(body: str, head: str, tmp_path: Path) -> None:
    """Written to YAML and read again it parses strictly, resolves to itself, and builds the same model."""
    evaluation = {"horizons": [4], "stride": 4, "season": 2}
    document = _document(tmp_path, evaluation=evaluation)
    document["model"]["backbone"] = BODIES[body]
    document["model"]["modalities"]["series"]["head"] = {"kind": head, **HEADS_BY_NAME[head]}
    first = Resolved(document)
    again = Resolved(load_recipe(_write(tmp_path, first.document)))
    assert again.document == first.document
    assert again.config.backbone.to_dict() == first.config.backbone.to_dict()
    assert again.evaluation == first.evaluation and again.data.options == first.data.options
    one, other = (x.training_arguments(tmp_path).to_dict() for x in (first, again))
    assert one == other


def test_the_resolved_recipe_leaves_nothing_to_defaults(tmp_path: Path) -> None:
    document = _document(tmp_path, evaluation={"horizons": [4], "stride": 4, "season": 2})
    document["training"]["resume_from_checkpoint"] = True
    resolved = Resolved(document).document
    modality = resolved["model"]["modalities"]["series"]
    assert modality["element"] == {"kind": "continuous", "dim": 4} and modality["grid"] == [5, 1, 1]
    assert modality["covariates"] == 0 and modality["objective"] == {"kind": "next_block"}
    assert modality["head"]["loss"] == "mse"
    assert resolved["model"]["backbone"].keys() >= {"norm", "dropout", "rope_theta", "intermediate_size"}
    assert resolved["adapters"]["series"]["scaling"] == "standard"
    assert resolved["data"]["stride"] == 1 and resolved["data"]["min_lookback"] is None
    assert resolved["evaluation"]["num_samples"] == 100 and resolved["early_stopping"] == 0
    training = resolved["training"]
    assert training.items() >= document["training"].items() - {("resume_from_checkpoint", True)}
    assert (training["weight_decay"], training["lr_scheduler_type"], training["max_grad_norm"]) == (0.1, "cosine", 1.0)
    assert training["eval_strategy"] == training["save_strategy"] == "epoch" and training["load_best_model_at_end"]
    assert "resume_from_checkpoint" not in training and "fsdp" not in training


def _toy_series(document: dict[str, Any], folder: Path) -> None:
    column = (document["data"].get("target") or ["y"])[0]
    table = pd.DataFrame({column: np.random.default_rng(0).normal(size=14400)})
    table.insert(0, "time", pd.date_range("2024-01-01", periods=14400, freq="h"))
    table.to_csv(folder / "toy.csv", index=False)
    document["data"] |= {"dataset": None, "path": str(folder / "toy.csv")}


def _toy_images(document: dict[str, Any], folder: Path) -> None:
    adapters, rng = document["adapters"], np.random.default_rng(0)
    classes = adapters["label"]["classes"]
    for name in classes if isinstance(classes, list) else range(classes):
        (folder / str(name)).mkdir()
        for number in range(2):
            pixels = rng.integers(0, 256, (adapters["image"]["size"],) * 2 + (3,), dtype=np.uint8)
            picture = Image.fromarray(pixels if adapters["image"]["channels"] == 3 else pixels[..., 0])
            picture.save(folder / str(name) / f"{number}.png")
    document["data"] |= {"dataset": None, "path": str(folder), "test_path": None, "test": None, "validation": 4}
    document["data"]["classes"] = None  # two images of each are too few for parts of one


def _toy_audio(document: dict[str, Any], folder: Path) -> None:
    """Files that are called digit_speaker_take, of clips of 64 ms."""
    soundfile, audio = pytest.importorskip("soundfile"), document["adapters"]["audio"]
    audio["seconds"] = 0.064
    (folder / "clips").mkdir()
    for digit, take in itertools.product((0, 1), (0, 5, 6, 7)):
        noise = np.random.default_rng(digit + 2 * take).normal(scale=0.1, size=500)
        soundfile.write(folder / "clips" / f"{digit}_theo_{take}.wav", noise, 8000)
    document["data"] |= {"path": str(folder / "clips"), "validation": 2}


def _toy_codec(document: dict[str, Any], folder: Path) -> None:
    """A small codec on this machine in place of one on the Hub."""
    elements = document["adapters"].get("audio", {}).get("elements", {})
    if elements.get("kind") == "codec":
        sizes: dict[str, Any] = {
            "encoder_hidden_size": 4,
            "decoder_hidden_size": 16,
            "hidden_size": 16,
            "n_codebooks": 8,
        }
        codes: Any = {"codebook_size": 16, "codebook_dim": 4, "downsampling_ratios": [8, 8]}
        rate = document["adapters"]["audio"]["sample_rate"]
        DacModel(DacConfig(**sizes, **codes, sampling_rate=rate)).save_pretrained(folder / "codec")
        elements["path"] = str(folder / "codec")


def _toy_video(document: dict[str, Any], folder: Path) -> None:
    document["data"]["dataset"]["clips"] = 40


_TOYS = {"series": _toy_series, "images": _toy_images, "audio": _toy_audio, "video": _toy_video}


def _toy_backbone(backbone: dict[str, Any], folder: Path) -> None:
    if "pretrained" in backbone:
        size: dict[str, Any] = dict(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=8
        )
        LlamaModel(LlamaConfig(**size)).save_pretrained(folder / "llm")
        backbone.update(pretrained=str(folder / "llm"), gguf_file=None, quantization=None)
    elif backbone["model_type"] == "unimodal_ar_decoder":
        backbone.update(hidden_size=8, num_hidden_layers=1, num_attention_heads=2)


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_hold_together(name: str, tmp_path: Path) -> None:
    """Every recipe in the tree is parsed, and its model built at toy size takes one training step."""
    document = load_recipe(name)
    assert f"unimodal-ar train {name}" in Path(__file__).parents[1].joinpath("recipes", f"{name}.yaml").read_text()
    _toy_backbone(document["model"]["backbone"], tmp_path)
    _toy_codec(document, tmp_path)
    Resolved(document)  # as it is, without its data
    _TOYS[document["data"]["kind"]](document, tmp_path)
    resolved = Resolved(document)
    model = resolved.new_model().train()
    if resolved.peft is not None:
        insert(model, resolved.peft)
    dataset = resolved.data.train()
    loss = model(**dataset.collate([dataset[0], dataset[len(dataset) - 1]])).loss
    loss.backward()
    assert loss.isfinite() and all(x.grad is None or x.grad.isfinite().all() for x in model.parameters())
    assert len(resolved.data.validation()) > 0 and resolved.evaluator() is not None


def test_there_are_shipped_recipes() -> None:
    """The test above would pass in silence if none were found."""
    folder = Path(__file__).parents[1] / "recipes"
    files = [path for path in folder.glob("*/*.yaml") if path.parent.name != "accelerate"]
    found = sorted(str(path.relative_to(folder).with_suffix("")) for path in files)
    assert shipped_recipes() == found and "next_patch/temperature" in found


# The whole way


def _weights(folder: Path) -> dict[str, torch.Tensor]:
    return UnimodalARForGeneration.from_pretrained(folder).state_dict()


def test_a_seed_fixes_the_result(tmp_path: Path) -> None:
    """Weights, data order and random lookbacks follow from the recipe's seed alone."""
    document = _document(tmp_path)
    document["data"]["min_lookback"] = 3
    document["model"]["backbone"]["dropout"] = 0.1
    results = []
    for number, seed in enumerate((3, 3, 4)):
        set_seed(100 + number)  # what went on before must not matter
        folder = tmp_path / str(number)
        assert train({**document, "seed": seed, "output_dir": str(folder)}) == folder
        results.append(_weights(folder))
    assert all(torch.equal(x, results[1][name]) for name, x in results[0].items())
    assert any(not torch.equal(x, results[2][name]) for name, x in results[0].items())


def test_training_writes_a_folder_that_can_be_used(tmp_path: Path) -> None:
    """Model, adapter, recipe and evaluation; the saved recipe trains the same model again."""
    evaluation = {"horizons": [4], "stride": 4, "season": 2, "num_samples": 5}
    folder = train(_document(tmp_path, evaluation=evaluation))
    assert folder is not None
    names = {path.name for path in folder.iterdir() if path.is_file()}
    assert names >= {"config.json", "model.safetensors", "processor_config.json", "recipe.yaml", "evaluation.json"}
    assert not list(folder.glob(".partial-*"))
    assert "4" in json.loads((folder / "evaluation.json").read_text())
    forecast = Forecaster.from_pretrained(folder).predict([np.arange(20.0)], 4)
    assert np.isfinite(forecast.mean).all() and forecast.mean.shape == (1, 4)
    again = train(load_recipe(folder / "recipe.yaml", [f"output_dir={tmp_path / 'again'}"]))
    assert again is not None
    first, second = _weights(folder), _weights(again)
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_a_model_is_not_replaced_unasked(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="already holds a model; choose another or pass --overwrite"):
        train(_document(tmp_path))
    assert (folder / "config.json").read_text() == "{}"
    train(_document(tmp_path), overwrite=True)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "unimodal_ar"


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    assert train(_document(tmp_path), dry_run=True) is None
    assert not (tmp_path / "run").exists()


def test_a_recipe_with_an_error_writes_nothing(tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["data"]["test"] = 30  # found only when the data are read
    with pytest.raises(ValueError, match="steps to train on"):
        train(document)
    assert not (tmp_path / "run").exists()


def _corrupt(tmp_path: Path, **rows: Any) -> dict[str, Any]:
    """A recipe with an evaluation, whose series has these values at these steps ("a_b" for steps a to b - 1)."""
    document = _document(tmp_path, evaluation={"horizons": [4], "stride": 4, "season": 2, "num_samples": 2})
    table = pd.read_csv(document["data"]["path"])
    for steps, value in rows.items():
        start, stop = map(int, steps.strip("_").split("_"))
        table.loc[start : stop - 1, "y"] = value
    table.to_csv(document["data"]["path"], index=False)
    return document


def _cannot_be_trained(document: dict[str, Any], expected: str) -> None:
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=r".") as caught:
            train(document, dry_run=dry_run)
        assert expected in str(caught.value)
        assert not Path(document["output_dir"]).exists()


@pytest.mark.parametrize(
    ("steps", "value", "expected"),
    [
        ("_0_60", np.nan, "series 'y' has no observed value in its training part, steps 0 to 31"),
        ("_0_32", np.nan, "series 'y' has no observed value in its training part, steps 0 to 31"),
        ("_36_48", np.nan, "evaluation of horizon 4: series 'y': nothing is observed in the 12 steps before 48"),
        ("_48_60", np.nan, "no observed value"),
        ("_40_41", np.inf, "series 'y' is infinite at step 40"),
        ("_0_60", 0, "is 0"),
    ],
)
def test_data_that_cannot_be_evaluated_are_told_before_training(
    steps: str, value: float, expected: str, tmp_path: Path
) -> None:
    _cannot_be_trained(_corrupt(tmp_path, **{steps: value}), expected)


def test_a_validation_part_without_values_cannot_choose_a_model(tmp_path: Path) -> None:
    document = {**_corrupt(tmp_path, _32_48=np.nan), "evaluation": None}
    _cannot_be_trained(document, "no series has an observed value in its validation part; choose another split")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"season": 32}, "series 'y': season is 32; it must be at least 1 and below the history's length 32"),
        ({"horizons": [4, 13]}, "evaluation of horizon 13: series 'y' has a test part of 12 steps"),
        ({"season": 16}, "series 'y': history leaves 13 errors at some lead time; the outermost level needs 19"),
    ],
)
def test_an_evaluation_that_cannot_be_is_told_before_training(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    document = _document(tmp_path, evaluation={"horizons": [4], "stride": 4, "season": 2, **changes})
    if "errors" in expected:  # of which only a head with quantiles asks for many
        document["model"]["modalities"]["series"]["head"] = {"kind": "quantile"}
    _cannot_be_trained(document, expected)


def test_known_covariates_must_be_known(tmp_path: Path) -> None:
    """The adapter would say so, in the middle of an epoch and without the series' name."""
    tide = np.arange(float(STEPS))
    tide[[0, 20]] = np.nan
    path = _csv(tmp_path, tide=tide)
    table = pd.read_csv(path)
    table.loc[0, "y"] = np.nan  # before the series begins, nothing need be known
    table.to_csv(path, index=False)
    with pytest.raises(ValueError, match="series 'y' has no known covariates at step 20; every step from"):
        _data(path, {"known_covariates": 1}, known=["tide"]).train()


# Going on, and over


def _steps_recipe(tmp_path: Path, **training: Any) -> dict[str, Any]:
    document = _document(tmp_path)
    document["training"] |= {
        "max_steps": 6,
        "learning_rate": 1e-2,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_total_limit": 3,
        **training,
    }
    document["training"]["load_best_model_at_end"] = False
    return document


def _interrupt(folder: Path) -> None:
    """Leaves what is there when a training of 6 steps is killed while it writes its last checkpoint."""
    for file in [path for path in folder.iterdir() if path.is_file()]:
        file.unlink()
    (folder / "checkpoints/checkpoint-6/trainer_state.json").unlink()


@pytest.mark.parametrize("named", [False, True])
def test_a_training_goes_on_from_its_checkpoint(named: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(_steps_recipe(tmp_path))
    assert folder is not None
    expected = _weights(folder)
    _interrupt(folder)
    given = str(folder / "checkpoints/checkpoint-4") if named else True
    begun: list[Any] = []
    original = UnimodalARTrainer.train

    def resume(self: UnimodalARTrainer, **given: Any) -> Any:
        begun.append(given)
        return original(self, **given)

    monkeypatch.setattr(UnimodalARTrainer, "train", resume)
    train(_steps_recipe(tmp_path, resume_from_checkpoint=given))
    assert begun == [{"resume_from_checkpoint": str(folder / "checkpoints/checkpoint-4")}]
    for name, weight in _weights(folder).items():
        torch.testing.assert_close(weight, expected[name])
    assert "resume_from_checkpoint" not in yaml.safe_load((folder / "recipe.yaml").read_text())["training"]


def test_checkpoints_that_are_not_there(tmp_path: Path) -> None:
    for given, expected in (
        (True, "training.resume_from_checkpoint is true, but "),
        ("nowhere", "training.resume_from_checkpoint is 'nowhere', which is no whole checkpoint"),
    ):
        _cannot_be_trained(_steps_recipe(tmp_path, resume_from_checkpoint=given), expected)


def test_checkpoints_of_an_earlier_training_are_not_mixed_in(tmp_path: Path) -> None:
    """A resumption would take the one of the most steps for its own."""
    folder = train(_steps_recipe(tmp_path))
    assert folder is not None
    _interrupt(folder)
    with pytest.raises(ValueError, match="holds checkpoints of an earlier training; go on from the last one by"):
        train(_steps_recipe(tmp_path, max_steps=2))
    train(_steps_recipe(tmp_path, max_steps=2), overwrite=True)
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-2"]


def test_overwriting_leaves_nothing_of_the_old_model(tmp_path: Path) -> None:
    evaluation = {"horizons": [4], "stride": 4, "season": 2, "num_samples": 2}
    folder = train(_document(tmp_path, evaluation=evaluation))
    assert folder is not None
    (folder / "model-00001-of-00002.safetensors").touch()
    (folder / "model.safetensors.index.json").touch()
    (folder / "notes.txt").touch()
    train(_document(tmp_path), overwrite=True)
    names = {path.name for path in folder.iterdir() if path.is_file()}
    written = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", "recipe.yaml"}
    written |= {"README.md"}
    assert names == written | {"notes.txt"}


def test_a_failure_while_overwriting_leaves_no_complete_looking_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = train(_document(tmp_path))
    assert folder is not None
    original, moved = os.replace, []

    def fail(source: Any, target: Any) -> None:
        if Path(target).parent == folder:
            moved.append(Path(target).name)
            if len(moved) == 2:
                raise OSError("disk full")
        original(source, target)

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        train(_document(tmp_path), overwrite=True)
    assert len(moved) == 2 and not (folder / "config.json").exists()


def test_a_training_that_fails_leaves_the_old_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = train(_document(tmp_path))
    assert folder is not None
    before = _weights(folder)

    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(UnimodalARTrainer, "train", fail)
    with pytest.raises(RuntimeError):
        train(_document(tmp_path, seed=9), overwrite=True)
    assert all(torch.equal(weight, before[name]) for name, weight in _weights(folder).items())


def test_the_launched_module_tells_errors_as_the_command_line_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only disk is an OSError."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").write_text("a file where the folder should be")
    recipe = _write(tmp_path, _document(tmp_path))
    monkeypatch.setattr("sys.argv", ["train", str(recipe)])
    with pytest.raises(SystemExit, match=r"^error: \[Errno"):
        main()
