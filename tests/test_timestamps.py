"""Timestamps of series: which sentence belongs to which element, and that training and forecasts read the same."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from tests.helpers import perturb
from tests.test_convert_autotimes import LOOKBACK, TOKEN, Method, assert_near, mlp
from tests.test_text_states import SMALL, WIDTH, save_language_model, source_of, straight
from unimodal_ar import UnimodalARForGeneration, cli
from unimodal_ar.adapters import (
    AutoAdapter,
    Series,
    TextStates,
    TimeSeriesAdapter,
    Timestamps,
    text_states,
    time_of_step,
)
from unimodal_ar.adapters.timeseries.timestamps import span_texts
from unimodal_ar.convert.autotimes import convert_autotimes
from unimodal_ar.evaluation.rolling import rolling_evaluation
from unimodal_ar.fingerprint import read_body
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.recipes.train import train
from unimodal_ar.training.body import with_language_model
from unimodal_ar.training.recipe import Resolved

START = pd.Timestamp("2024-02-28 05:00:00")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def llm(tmp_path: Path) -> Path:
    return save_language_model(tmp_path / "llm")


def sentences(first: datetime, patch: int, count: int, step: timedelta) -> list[str]:
    """As in the original's preprocessing."""
    spans = [(first + k * patch * step, first + (k * patch + patch - 1) * step) for k in range(count)]
    form = "%Y-%m-%d %H:%M:%S"
    return [f"This is Time Series from {a.strftime(form)} to {b.strftime(form)}" for a, b in spans]


def options(**more: Any) -> Timestamps:
    return Timestamps.model_validate({"language_model": {"pretrained": "llm"}, **more})


# --- sentences --------------------------------------------------------------------------------------------------------


def test_the_sentence_of_the_paper() -> None:
    (texts,) = span_texts([(pd.Timestamp("2016-07-29"), "h")], options(), 96, 7, 1)
    assert texts[0] == "This is Time Series from 2016-07-01 00:00:00 to 2016-07-04 23:00:00"
    assert texts == sentences(datetime(2016, 7, 1), 96, 8, timedelta(hours=1))


@pytest.mark.parametrize("freq", ["h", "10min", "D", "7D", "MS", "ME", "2MS", "QS", "QE-NOV", "YS", "B", "W-MON", "s"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_elements_go_by_the_calendar(freq: str, zone: str | None) -> None:
    """A batch of two frequencies; every span against the times that pandas lists, over a change to summer time."""
    grid = pd.date_range("2024-03-28 00:00", periods=60, freq=freq, tz=zone)
    batch = [(grid[20], freq), (pd.Timestamp("2020-01-01"), "D"), (grid[24], freq)]
    found = span_texts(batch, options(text="{start}|{end}", time_format="%Y-%m-%d %H:%M"), 4, 3, 2)
    for row, origin in ((0, 20), (2, 24)):
        spans = [(grid[origin + 4 * k], grid[origin + 4 * k + 3]) for k in range(-3, 2)]
        assert found[row] == [f"{a:%Y-%m-%d %H:%M}|{b:%Y-%m-%d %H:%M}" for a, b in spans]
    assert found[1][2:4] == ["2019-12-28 00:00|2019-12-31 00:00", "2020-01-01 00:00|2020-01-04 00:00"]


@pytest.mark.parametrize("freq", ["h", "D", "MS", "2ME", "B", "W-WED"])
@pytest.mark.parametrize("zone", [None, "Europe/Berlin"])
def test_the_time_of_a_step(freq: str, zone: str | None) -> None:
    """From a start that is not on the grid, too."""
    start = pd.Timestamp("2024-03-16 00:00", tz=zone)
    for step in (0, 1, 40):
        expected = pd.date_range(start, periods=step + 1, freq=freq)[-1]
        assert time_of_step(start, freq, step).strftime("%c") == expected.strftime("%c")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"text": "no time"}, r"timestamps.text is 'no time': it must name \{start\} or \{end\} or both"),
        ({"text": "{start} {stop}"}, r"text is '\{start\} \{stop\}': it must name"),
        ({"texts": "x"}, "unknown key 'texts'; did you mean 'text'"),
        (
            {"language_model": {"pretrained": "x", "fingerprint": "abc"}},
            "timestamps.language_model.fingerprint is 'abc'",
        ),
    ],
)
def test_options_that_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSeriesAdapter(4, timestamps={"language_model": {"pretrained": "llm"}} | given)


# --- the adapter ------------------------------------------------------------------------------------------------------


def test_states_are_an_element_s_last_covariates(llm: Path) -> None:
    """Behind known and past ones, as they are; elements count back from the origin, and over the padding."""
    told = {"language_model": {"pretrained": str(llm)}}
    adapter = TimeSeriesAdapter(4, 8, known_covariates=1, past_covariates=1, timestamps=told)
    plain = TimeSeriesAdapter(4, 8, known_covariates=1, past_covariates=1)
    assert adapter.covariate_features == plain.covariate_features + WIDTH
    series = [Series(np.arange(20.0), start=START, freq="h"), Series(np.arange(20.0), start=START, freq="D")]
    past = torch.randn(2, 6)
    covariates: dict[str, Any] = {"known_covariates": torch.randn(2, 11, 1), "past_covariates": torch.randn(2, 6, 1)}
    segment = adapter.encode(past, horizon=5, origins=adapter.origins((one, 6) for one in series), **covariates)
    without = plain.encode(past, horizon=5, **covariates).covariates
    assert segment.covariates is not None and without is not None and segment.covariates.dtype == torch.float32
    assert torch.equal(segment.covariates[..., :-WIDTH], without)
    for row, step in enumerate((timedelta(hours=1), timedelta(days=1))):
        texts = sentences(START.to_pydatetime() - 2 * step, 4, 4, step)
        expected = straight(llm, texts)
        torch.testing.assert_close(segment.covariates[row, :, -WIDTH:], expected, rtol=0, atol=2e-6)


def test_sentences_of_equal_origins_are_made_once(llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As those of sample paths; one instant in two time zones has two sentences."""
    adapter = TimeSeriesAdapter(4, timestamps={"language_model": {"pretrained": str(llm)}})
    times = [pd.Timestamp(START, tz="UTC"), pd.Timestamp(START, tz="UTC").tz_convert("Asia/Tokyo")]
    assert times[0] == times[1]
    made: list[Any] = []

    def noting(origins: Any, *args: Any) -> Any:
        made.append(len(origins))
        return span_texts(origins, *args)

    monkeypatch.setattr("unimodal_ar.adapters.timeseries.adapter.span_texts", noting)
    origins = [(times[row], "h") for row in (0, 1, 0, 0, 1)]
    found = adapter.encode(torch.zeros(5, 8), horizon=4, origins=origins).covariates
    alone = [adapter.encode(torch.zeros(1, 8), horizon=4, origins=[origin]).covariates for origin in origins]
    assert found is not None and made == [2, 1, 1, 1, 1, 1]
    assert torch.equal(found, torch.cat(alone)) and not torch.equal(found[0], found[1])  # type: ignore[arg-type]


def test_origins_are_wanted_if_and_only_if_there_are_timestamps(llm: Path) -> None:
    adapter = TimeSeriesAdapter(4, timestamps={"language_model": {"pretrained": str(llm)}})
    past, origin = torch.zeros(2, 8), (START, "h")
    with pytest.raises(ValueError, match="origins is None; for this adapter it must be 2 pairs of time and frequency"):
        adapter.encode(past)
    with pytest.raises(ValueError, match="origins is 1 pairs; for this adapter it must be 2 pairs"):
        adapter.encode(past, origins=[origin])
    with pytest.raises(ValueError, match="origins is 2 pairs; for this adapter it must be None without timestamps"):
        TimeSeriesAdapter(4).encode(past, origins=[origin] * 2)
    assert TimeSeriesAdapter(4).origins([(Series(np.zeros(3)), 0)]) is None
    with pytest.raises(ValueError, match="series '0' has no times; the timestamps of 'series' are made of them"):
        adapter.origins([(Series(np.zeros(3)), 0)])
    with pytest.raises(ValueError, match="series '0' has a single time, which tells no frequency"):
        adapter.origins([(Series(np.zeros(1), start=START), 0)])


def test_a_saved_adapter_knows_its_language_model(llm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it is, by its absolute path, and which it was: states on disk are found without it."""
    monkeypatch.chdir(tmp_path)
    adapter = TimeSeriesAdapter(4, timestamps={"language_model": {"pretrained": "llm"}, "text": "from {start}"})
    expected = adapter.encode(torch.zeros(1, 8), origins=[(START, "h")])
    adapter.save_pretrained(tmp_path / "model")
    written = json.loads((tmp_path / "model" / "processor_config.json").read_text())["adapters"]["series"]["timestamps"]
    known = source_of(llm)["fingerprint"]
    place = {"pretrained": str(llm), "revision": None, "gguf_file": None}
    tokenizer = written["language_model"].pop("tokenizer")
    assert len(tokenizer) == 64 and written["language_model"] == place | {"fingerprint": known, "width": WIDTH}
    llm.rename(tmp_path / "gone")
    monkeypatch.chdir("/")
    again = AutoAdapter.from_pretrained(tmp_path / "model")
    assert isinstance(again, TimeSeriesAdapter) and again.covariate_features == WIDTH
    found = again.encode(torch.zeros(1, 8), origins=[(START, "h")])
    assert torch.equal(found.covariates, expected.covariates)  # type: ignore[arg-type]


# --- recipes ----------------------------------------------------------------------------------------------------------


def _table(folder: Path) -> Path:
    times = pd.date_range("2024-01-01", periods=80, freq="h")
    values = {"y": np.sin(np.arange(80.0)), "z": np.cos(np.arange(80.0) / 3)}
    pd.DataFrame({"time": times, **values}).to_csv(folder / "series.csv", index=False)
    return folder / "series.csv"


def _document(folder: Path, **backbone: Any) -> dict[str, Any]:
    """A recipe around the tiny language model in `folder`/llm."""
    series = {"head": {"kind": "regression"}, "start": "none"}
    mixing = {"covariates_mixing": "scaled", "covariates_of": "source"}
    return {
        "seed": 3,
        "output_dir": str(folder / "run"),
        "model": {
            "backbone": {"pretrained": str(folder / "llm"), "freeze": True, **backbone},
            "modalities": {"series": series | mixing},
        },
        "adapters": {"series": {"kind": "timeseries", "patch": 4, "lookback": 12, "timestamps": {}}},
        "data": {"kind": "series", "path": str(_table(folder)), "target": ["y", "z"], "horizon": 4}
        | {"validation": 16, "test": 12},
        "training": {"max_steps": 3, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
        | {"learning_rate": 1e-2},
        "evaluation": {"horizons": [6], "stride": 3, "season": 4},
    }


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Notes each time that a language model is loaded for its states."""
    noted: list[str] = []

    def noting(place: str, *args: Any, **kwargs: Any) -> Any:
        noted.append(place)
        return read_body(place, *args, **kwargs)

    monkeypatch.setattr(text_states, "read_body", noting)
    return noted


@pytest.mark.usefixtures("llm")
def test_a_recipe_with_timestamps(tmp_path: Path, loads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its language model is the backbone, which is not loaded a second time; the model's folder forecasts from a table,
    from the command line, too, and its own recipe trains it again."""
    run = train(_document(tmp_path))
    assert run is not None and loads == []
    names = load_file(run / "model.safetensors").keys()
    assert "embeddings.series.covariates.scale" in names and not any(name.startswith("backbone") for name in names)
    words = ["forecast", str(tmp_path / "series.csv"), "--model", str(run), "--horizon", "9"]
    assert cli.main([*words, "--out", str(tmp_path / "out.csv")]) == 0
    forecaster = Forecaster.from_pretrained(run)
    mean = forecaster.predict(str(tmp_path / "series.csv"), 9, target=["y", "z"]).mean
    np.testing.assert_allclose(pd.read_csv(tmp_path / "out.csv")["mean"].to_numpy().reshape(2, 9), mean, rtol=1e-6)
    assert loads == []
    moved = pd.read_csv(tmp_path / "series.csv", parse_dates=["time"])
    moved["time"] += pd.Timedelta(days=400)
    assert np.abs(forecaster.predict(moved, 9, target=["y", "z"]).mean - mean).max() > 1e-4
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    model = written["adapters"]["series"]["timestamps"]["language_model"]
    assert model["pretrained"] == str(tmp_path / "llm") and len(model["fingerprint"]) == 64
    again = train(written | {"output_dir": str(tmp_path / "again")})
    assert again is not None
    one, other = (load_file(folder / "model.safetensors") for folder in (run, again))
    assert all(torch.equal(one[name], other[name]) for name in names)
    assert (again / "evaluation.json").read_text() == (run / "evaluation.json").read_text()


@pytest.mark.usefixtures("llm")
def test_all_texts_are_computed_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each once, though two channels ask for it."""
    resolved = Resolved(_document(tmp_path))
    written: list[str] = []
    write = text_states._Store.write

    def noting(self: Any, rows: Any) -> None:
        written.extend(rows)
        write(self, rows)

    monkeypatch.setattr(text_states._Store, "write", noting)
    training, validation = resolved.data.train(), resolved.data.validation()
    assert len(written) == len(set(written)) > 40
    count = len(written)
    for dataset in (training, validation):
        batch = dataset.collate([dataset[i] for i in range(len(dataset))])["segments"][0]
        assert batch.covariates.shape == (len(dataset), 4, WIDTH)
    assert len(written) == count
    _, _, origin = training[5]
    first = pd.Timestamp("2024-01-01").to_pydatetime() + timedelta(hours=origin - 12)
    (segment,) = training.collate([training[5]])["segments"]
    expected = straight(tmp_path / "llm", sentences(first, 4, 4, timedelta(hours=1)))
    torch.testing.assert_close(segment.covariates[0], expected, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("llm")
@pytest.mark.parametrize("ablation", ["random_init", "none", "one_attention_layer"])
def test_ablations_read_what_the_pretrained_one_says(ablation: str, tmp_path: Path, loads: list[str]) -> None:
    document = _document(tmp_path, ablation=ablation)
    del document["evaluation"]
    run = train(document)
    assert run is not None and loads == [str(tmp_path / "llm")]
    adapter = AutoAdapter.from_pretrained(run)
    assert isinstance(adapter, TimeSeriesAdapter) and adapter.text_states is not None
    assert adapter.text_states.language_model.fingerprint == source_of(tmp_path / "llm")["fingerprint"]


@pytest.mark.usefixtures("llm")
def test_another_language_model_than_the_backbone(tmp_path: Path, loads: list[str]) -> None:
    other = save_language_model(tmp_path / "other", "gpt2", seed=4)
    document = _document(tmp_path)
    document["adapters"]["series"]["timestamps"]["language_model"] = {"pretrained": str(other)}
    (segment,) = (data := Resolved(document).data.train()).collate([data[0]])["segments"]
    first = pd.Timestamp("2024-01-01").to_pydatetime()
    expected = straight(other, sentences(first, 4, 4, timedelta(hours=1)))
    torch.testing.assert_close(segment.covariates[0], expected, rtol=0, atol=2e-6)
    assert loads == [str(other)]


def test_the_backbone_s_place_is_the_language_model_s() -> None:
    place = {"pretrained": "some/llm", "revision": "abc", "gguf_file": "x.gguf"}
    backbone = place | {"freeze": False, "ablation": "none"}
    for timestamps in ({"text": "{start}"}, {"text": "{start}", "language_model": None}):
        found = with_language_model({"patch": 4, "timestamps": timestamps}, "adapters.x", backbone)
        assert found == {"patch": 4, "timestamps": {"text": "{start}", "language_model": place}}
    for own in ({"patch": 4}, {"timestamps": None}, {"timestamps": {"language_model": {"pretrained": "y"}}}):
        assert with_language_model(own, "adapters.x", backbone) == own


@pytest.mark.usefixtures("llm")
def test_recipes_that_cannot_have_timestamps(tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["model"]["backbone"] = {"model_type": "llama", "hidden_size": WIDTH, **SMALL}
    with pytest.raises(
        ValueError, match=r"adapters.series.timestamps.language_model is missing, and model.backbone is"
    ):
        Resolved(document)
    document = _document(tmp_path)
    document["adapters"]["series"]["timestamps"]["language_model"] = {"pretrained": "no/where"}
    with pytest.raises(ValueError, match=r"language_model.pretrained is 'no/where', which cannot be loaded"):
        Resolved(document)
    document = _document(tmp_path)
    pd.read_csv(tmp_path / "series.csv").drop(columns="time").to_csv(tmp_path / "series.csv", index=False)
    with pytest.raises(ValueError, match=r"series '[yz]' has no times; the timestamps of 'series' are made of them"):
        train(document, dry_run=True)


# --- forecasts --------------------------------------------------------------------------------------------------------


def _method(folder: Path, layers: int) -> tuple[Method, Path]:
    torch.manual_seed(5)
    encoder, decoder = mlp(TOKEN, WIDTH, layers), mlp(WIDTH, TOKEN, layers)
    return Method(AutoModel.from_pretrained(folder).eval(), encoder, decoder, 0.7), folder


@torch.no_grad()
def marks(body: nn.Module, folder: Path, first: datetime, count: int) -> Tensor:
    """[count, WIDTH] of hourly segments of TOKEN steps from `first` on, written out from the paper's section 3.2."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in sentences(first, TOKEN, count, timedelta(hours=1)):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        found.append(body(inputs_embeds=body.get_input_embeddings()(ids)).last_hidden_state[0, -1])  # type: ignore[operator]
    return torch.stack(found)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@torch.no_grad()
def test_forecaster_is_the_original_with_timestamps(kind: str, tmp_path: Path, loads: list[str]) -> None:
    """Normalisation, mixing, roll-out and all, of series that begin at different times; saved and loaded, too."""
    written, folder = _method(save_language_model(tmp_path / "llm", kind), 1)
    model, (adapter,) = convert_autotimes(written.weights(), backbone=str(folder), seq_len=LOOKBACK, timestamps=True)
    assert isinstance(adapter, TimeSeriesAdapter) and isinstance(adapter.text_states, TextStates)
    assert adapter.text_states.language_model.fingerprint == source_of(folder)["fingerprint"]
    past, steps = 5 + 3 * torch.randn(2, LOOKBACK), 4
    starts = [START, START + pd.Timedelta(days=100, hours=3)]
    mixed = torch.stack([marks(written.body, folder, start.to_pydatetime(), 5 + steps) for start in starts])
    expected = written.roll_out(past, mixed, steps)[:, : 3 * TOKEN + 2]
    wrong = written.roll_out(past, mixed.flip(0), steps)[:, : 3 * TOKEN + 2]
    assert (wrong - expected).abs().max() > 100 * 1e-5 * expected.abs().max()
    earlier = np.concatenate([np.full((2, 3), 99.0), past.numpy()], 1)  # which the lookback leaves out
    items = [
        Series(row, start=start - pd.Timedelta(hours=3), freq="h") for row, start in zip(earlier, starts, strict=True)
    ]
    forecaster = Forecaster(model, adapter)
    assert_near(torch.from_numpy(forecaster.predict(items, 3 * TOKEN + 2).mean), expected)
    forecaster.save_pretrained(tmp_path / "model")
    again = Forecaster.from_pretrained(tmp_path / "model", device="cpu")
    assert_near(torch.from_numpy(again.predict(items, 3 * TOKEN + 2).mean), expected)
    assert loads == []  # the frozen body says it


@torch.no_grad()
def test_evaluation_tells_the_times_of_its_windows(llm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors of rolling forecasts are those of forecasts from tables that end where the windows do. All texts of a
    horizon of two chunks are computed at once."""
    written, folder = _method(llm, 0)
    model, (adapter,) = convert_autotimes(written.weights(), backbone=str(folder), seq_len=LOOKBACK, timestamps=True)
    forecaster = Forecaster(model, adapter)  # type: ignore[arg-type]
    times, values = pd.date_range(START, periods=60, freq="h"), np.sin(np.arange(60.0)) + np.arange(60.0) / 9
    computed: list[int] = []
    compute = TextStates._compute

    def noting(self: TextStates, texts: Any, store: Any) -> None:
        computed.append(len(texts))
        compute(self, texts, store)

    monkeypatch.setattr(TextStates, "_compute", noting)
    found = rolling_evaluation(forecaster, [Series(values, start=START, freq="h")], [40], [40], 6, 7, 4)
    assert len(computed) == 1 and computed[0] == 3 * (LOOKBACK // TOKEN + -(-6 // TOKEN))
    errors = []
    for origin in (40, 47, 54):
        table = pd.DataFrame({"time": times[:origin], "y": values[:origin]})
        errors.append(forecaster.predict(table, 6).mean[0] - values[origin : origin + 6])
    np.testing.assert_allclose(found["unimodal_ar"]["MSE"], np.mean(np.square(errors)), rtol=1e-6)


def test_sample_paths_keep_their_series_times(llm: Path) -> None:
    """Series that begin at different times, several paths of each, fed back twice: as each alone."""
    torch.manual_seed(1)
    mixing = {"covariates": WIDTH, "covariates_mixing": "scaled", "covariates_of": "source", "start": "none"}
    series = {"element": {"kind": "continuous", "dim": 4}, "grid": [4, 1, 1], "head": {"kind": "quantile"}, **mixing}
    model = UnimodalARForGeneration.from_backbone(llm, {"series": series}, freeze=True)
    perturb(model.heads, 0.3)
    forecaster = Forecaster(model, TimeSeriesAdapter(4, 12, timestamps={"language_model": {"pretrained": str(llm)}}))
    items = [Series(np.sin(np.arange(12.0)), start=START + pd.Timedelta(days=days), freq="h") for days in (0, 500)]
    together = forecaster.predict(items, 12, num_samples=3).samples
    alone = [forecaster.predict([item], 12, num_samples=3).samples[0] for item in items]
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-5)


def test_series_without_times_are_refused(llm: Path) -> None:
    written, folder = _method(llm, 0)
    model, (adapter,) = convert_autotimes(written.weights(), backbone=str(folder), seq_len=LOOKBACK, timestamps=True)
    forecaster, timed = Forecaster(model, adapter), Series(np.arange(30.0), start=START, freq="h")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="series '1' has no times; the timestamps of 'series' are made of them"):
        forecaster.predict([timed, Series(np.arange(30.0), "1")], 3)


def test_conversions_that_have_no_timestamps(llm: Path) -> None:
    written, folder = _method(llm, 0)
    config = written.body.config.to_dict()  # type: ignore[union-attr, operator]
    with pytest.raises(ValueError, match=r"timestamps is True, and autotimes.backbone is a configuration"):
        convert_autotimes(written.weights("llama.model"), backbone=config, seq_len=LOOKBACK, timestamps=True)
    plain = written._replace(scale=None)
    with pytest.raises(ValueError, match=r"the weights are of a model without timestamps \(no add_scale\)"):
        convert_autotimes(plain.weights(), backbone=str(folder), seq_len=LOOKBACK, timestamps=True)
