"""In-context examples: which windows they are, what the model sees of them, and that training and forecasts see the
same."""

from __future__ import annotations

import pickle
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from torch import Tensor
from transformers import AutoModel

from tests.helpers import perturb, series
from tests.test_forecasting import QUANTILE, make, waves
from tests.test_roll_out import BODIES
from tests.test_text_states import WIDTH, save_language_model, straight
from tests.test_timestamps import sentences
from unimodal_ar import UnimodalARForGeneration, cli
from unimodal_ar.adapters import Series, TimeSeriesAdapter, text_states
from unimodal_ar.evaluation.rolling import rolling_evaluation
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.prompts import Examples, searched
from unimodal_ar.recipes.train import train
from unimodal_ar.training.evaluate import evaluate
from unimodal_ar.training.recipe import Resolved

PATCH, LOOKBACK, LENGTH = 4, 8, 12


def walk(steps: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=steps).cumsum()


def places(examples: Examples, one: Series, origin: int, **more: Any) -> list[tuple[str, int]]:
    prompt = searched(examples, LOOKBACK, PATCH, PATCH, **more)
    return [(found.item_id, stop) for found, stop in prompt.find(one, origin)]


# --- which ------------------------------------------------------------------------------------------------------------


def test_earlier_examples_end_where_the_lookback_begins() -> None:
    one = Series(walk(100), "a")
    assert places(Examples(strategy="earlier", count=3, length=8), one, 60) == [("a", 36), ("a", 44), ("a", 52)]
    assert places(Examples(strategy="earlier"), one, 60) == [("a", 52)]
    assert searched(Examples(strategy="earlier", count=2), LOOKBACK, PATCH, PATCH).lengths == (12, 12)


def nearest(lookback: np.ndarray, values: np.ndarray, start: int, length: int, count: int) -> list[int]:
    """One candidate after the other."""

    def standardised(x: np.ndarray) -> np.ndarray:
        deviation = np.nanstd(x)
        return (x - np.nanmean(x)) / (deviation if deviation > 1e-9 else 1.0)

    compared, distances = min(len(lookback), length), []
    query = standardised(lookback[-compared:])
    for stop in range(start, length - 1, -PATCH):
        window = values[stop - length : stop][:compared]
        both = ~np.isnan(window) & ~np.isnan(query)
        if both.sum() >= (~np.isnan(query)).sum() / 2:
            gap = (standardised(window) - query)[both]
            distances.append((np.sqrt((gap**2).mean()), -stop))  # of two as near, the later one
    return [-stop for _, stop in sorted(distances)[:count]][::-1]


@pytest.mark.parametrize("length", [4, 8, 12, 20])
@pytest.mark.parametrize("gaps", [False, True])
def test_similar_examples_are_the_nearest_ones(length: int, gaps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against candidates looked at one by one; all of them at once, and in small parts."""
    values = walk(150)
    if gaps:
        values[np.random.default_rng(1).random(150) < 0.3] = np.nan
    one, examples = Series(values, "a"), Examples(strategy="similar", count=3, length=length)
    for origin in (70, 101, 150):
        lookback = values[origin - LOOKBACK : origin]
        expected = nearest(lookback, values, origin - LOOKBACK, length, 3)
        assert places(examples, one, origin) == [("a", stop) for stop in expected]
        with monkeypatch.context() as patched:
            patched.setattr("unimodal_ar.prompts.COMPARED", 4)
            assert places(examples, one, origin) == [("a", stop) for stop in expected]


def test_what_cannot_be_compared_is_no_example() -> None:
    """A window without half of what the lookback has is left out, in a pool, too; one that is short is an error."""
    values = walk(60)
    values[:45] = np.nan
    values[24:27] = 0.0  # too little of any window
    for pool in (None, [Series(values[:40], "b")]):
        examples = Examples(strategy="similar", count=2)
        assert places(examples, Series(values, "a"), 60, pool=pool) == [("a", 0), ("a", 0)]
    values[41:48] = walk(7)
    assert places(Examples(strategy="similar", count=2), Series(values, "a"), 60) == [("a", 0), ("a", 52)]


def test_series_of_other_numbers_are_compared_as_doubles() -> None:
    steps = np.random.default_rng(0).integers(-9, 9, 80)
    found = places(Examples(strategy="similar", count=3), Series(steps.astype(float), "a"), 80)
    for dtype in (np.int64, np.float32, ">f8"):
        assert places(Examples(strategy="similar", count=3), Series(steps.astype(dtype), "a"), 80) == found


def test_similar_is_a_matter_of_shape() -> None:
    """A copy of the lookback, at another level and of another size, is nearest and stands next to the lookback; in a
    pool, series are looked at over all of their length."""
    values = walk(100)
    values[36:44] = 50 + 7 * values[60:68]
    one = Series(values, "a")
    assert places(Examples(strategy="similar", count=4), one, 68)[-1] == ("a", 48)
    assert ("a", 48) not in places(Examples(strategy="similar"), one, 69)
    pool = [Series(walk(40, 1), "b"), Series(walk(11, 2), "short"), Series(values[30:48], "c")]
    found = places(Examples(strategy="similar", count=20), one, 68, pool=pool)
    assert found[-1] == ("c", 18) and {stop for name, stop in found if name == "b"} == set(range(12, 41, 4))
    assert found[:10] == [("a", 0)] * 10  # what there is no candidate for


@pytest.mark.parametrize("strategy", ["earlier", "similar"])
def test_nothing_after_the_lookback_is_looked_at(strategy: Any) -> None:
    """Nor, for examples of the same series, anything of the lookback in the examples."""
    examples = Examples(strategy=strategy, count=2)
    one = Series(walk(120), "a")
    prompt = searched(examples, LOOKBACK, PATCH, PATCH)
    adapter = TimeSeriesAdapter(PATCH, LOOKBACK)
    for origin in range(40, 100, 7):
        later = one.values.copy()
        later[origin:] = walk(120 - origin, 9) * 100
        changed = Series(later, "a")
        found, again = prompt.find(one, origin), prompt.find(changed, origin)
        assert [stop for _, stop in found] == [stop for _, stop in again]
        assert all(stop <= origin - LOOKBACK for _, stop in found)
        assert torch.equal(prompt.encode(adapter, [found]).values, prompt.encode(adapter, [again]).values)


def test_the_first_examples_are_missing_where_a_series_is_short() -> None:
    adapter = TimeSeriesAdapter(PATCH, LOOKBACK)
    for strategy, observed in (("earlier", 6), ("similar", 8)):
        prompt = searched(Examples(strategy=cast(Any, strategy), count=3, length=8), LOOKBACK, PATCH, PATCH)
        one = Series(walk(22), "a")
        segment = prompt.encode(adapter, [prompt.find(one, 22)])
        assert segment.observed is not None and segment.values.shape == (1, 6, PATCH)
        told = segment.observed.flatten(1)[0]
        assert told[16:].all() and not told[: 16 - observed].any() and told[16 - observed : 16].all()


# --- what the model sees ----------------------------------------------------------------------------------------------


def test_an_example_is_scaled_by_itself() -> None:
    """Known and past covariates too; on one grid, the window's loc and scale."""
    adapter = TimeSeriesAdapter(PATCH, LOOKBACK, known_covariates=1, past_covariates=1)
    wave = walk(60)
    one = Series(wave, "a", known=np.arange(70.0)[:, None] ** 2, past=np.cos(wave)[:, None])
    one.values[30:33] = np.nan
    prompt = searched(Examples(strategy="earlier", count=2), LOOKBACK, PATCH, PATCH)
    segment = prompt.encode(adapter, [prompt.find(one, 56)])
    own = TimeSeriesAdapter(PATCH, known_covariates=1, past_covariates=1)
    assert one.known is not None and one.past is not None
    for k, start in enumerate((24, 36)):
        stop, here = start + LENGTH, slice(3 * k, 3 * k + 3)
        values = one.values[start:stop]
        expected = (values - np.nanmean(values)) / np.nanstd(values)
        np.testing.assert_allclose(
            segment.values[0, here].flatten(), np.nan_to_num(expected, nan=0.0), rtol=0, atol=1e-6
        )
        alone = own.encode(
            values[None], known_covariates=one.known[None, start:stop], past_covariates=one.past[None, start:stop]
        )
        assert segment.covariates is not None and alone.covariates is not None
        assert torch.equal(segment.covariates[:, here], alone.covariates)
        assert segment.observed is not None
        assert np.array_equal(segment.observed[0, here].flatten(), ~np.isnan(values))


def frozen(patches: int, kind: str = "llama") -> Forecaster:
    torch.manual_seed(0)
    modality = series(dim=PATCH, grid=(patches, 1, 1), start="none")
    body = AutoModel.from_config(BODIES[kind])
    model = UnimodalARForGeneration.from_backbone(body, {"series": modality}, freeze=True)
    perturb(model, 0.1)
    return Forecaster(model, TimeSeriesAdapter(PATCH, LOOKBACK, eps=1e-5))


class WrittenOut:
    """Examples, scaled each by itself, in front of the segments of the lookback; no part of ours but the weights."""

    def __init__(self, model: Any, examples: list[Tensor]) -> None:
        self.model, self.shown = model, torch.cat([self.scaled(x)[0] for x in examples], 1)

    def scaled(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, deviation = x.mean(1, keepdim=True), (x.var(1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return ((x - mean) / deviation).unflatten(1, (-1, PATCH)), mean, deviation

    @torch.no_grad()
    def next(self, segments: Tensor) -> Tensor:
        embedded = self.model.embeddings["series"].value(torch.cat([self.shown, segments], 1))
        hidden = self.model.backbone.model(inputs_embeds=embedded, use_cache=False)[0][:, -1]
        return self.model.heads["series"].proj(hidden)

    def window(self, x: Tensor, steps: int) -> Tensor:
        for _ in range(steps):
            segments, mean, deviation = self.scaled(x[:, -LOOKBACK:])
            x = torch.cat([x, self.next(segments) * deviation + mean], 1)
        return x[:, -steps * PATCH :]

    def cache(self, x: Tensor, steps: int) -> Tensor:
        segments, mean, deviation = self.scaled(x[:, -LOOKBACK:])
        for _ in range(steps):
            segments = torch.cat([segments, self.next(segments)[:, None]], 1)
        return segments[:, -steps:].flatten(1) * deviation + mean


@pytest.mark.parametrize("roll_out", ["window", "cache"])
def test_a_prompt_stands_in_front_of_every_lookback(roll_out: str) -> None:
    """Against the method written out: two examples of the same series, one given one; five segments of roll-out."""
    x = np.stack([walk(40, seed) for seed in range(3)])
    row = torch.from_numpy(x).float()
    earlier = [row[:, 8:20], row[:, 20:32]]
    for patches, shown, examples in (
        (9, earlier, Examples(strategy="earlier", count=2)),
        (5, [row[:1, 3:11].expand(3, -1)], [x[0, :11]]),  # cut to whole blocks
    ):
        forecaster = frozen(patches)
        written = getattr(WrittenOut(forecaster.model, shown), roll_out)(row, 5)[:, :18]
        found = forecaster.predict(x, 18, examples=cast(Any, examples), roll_out=roll_out).mean
        np.testing.assert_allclose(found, written, rtol=0, atol=1e-5 * float(written.abs().max()))
        assert not np.allclose(found, forecaster.predict(x, 18, roll_out=roll_out).mean, atol=1e-3)


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("examples", ["earlier", "similar", "pool"])
def test_a_prompted_forecast_does_not_depend_on_its_batch(examples: str, block: int) -> None:
    """Sample paths in several chunks, gaps and covariates; short series, too, where there may be no example."""
    lengths = (70, 45, 40) if examples == "similar" else (70, 9, 33)
    items = [
        Series(wave, str(n), known=np.sin(np.arange(len(wave) + 21.0))[:, None], past=wave[:, None] ** 2)
        for n, wave in enumerate(waves(*lengths))
    ]
    items[0].values[-30:-22] = np.nan
    forecaster = make(QUANTILE, block, 12, known_covariates=1, past_covariates=1, past_lag=block)
    more: dict[str, Any] = {"examples": examples}
    if examples == "pool":
        more = {"examples": "similar", "pool": [items[0]]}
    together = forecaster.predict(items, 21, num_samples=3, **more).samples
    alone = forecaster.predict(items, 21, num_samples=3, batch_size=1, **more).samples
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-4)
    assert not np.allclose(together[0], forecaster.predict(items[:1], 21, num_samples=3, examples=None).samples[0])


def test_learned_positions_count_the_prompt() -> None:
    """GPT-2's here are 12, of which the last segment takes none: an example of 3, 2 and 8 more."""
    forecaster = frozen(6, "gpt2")
    assert forecaster.predict(walk(40), 32, examples="earlier", roll_out="cache").mean.shape == (1, 32)
    with pytest.raises(ValueError, match=r"horizon of 33 steps, a sequence of 14 patches; .* end at 13"):
        forecaster.predict(walk(40), 33, examples="earlier", roll_out="cache")


def test_given_examples_are_those_that_are_found() -> None:
    """The steps before the lookback, handed over; with covariates as a `Series`."""
    forecaster = make(QUANTILE, 1, 10, known_covariates=1)
    one = Series(walk(60), "a", known=np.sin(np.arange(66.0))[:, None])
    found = forecaster.predict([one], 6, num_samples=2, examples="earlier").samples
    assert one.known is not None
    example = Series(one.values[23:44], "b", known=one.known[23:50])  # 20 steps of 21, and their covariates
    given = forecaster.predict([one], 6, num_samples=2, examples=[example]).samples
    assert np.array_equal(found, given)
    with pytest.raises(
        ValueError, match=r"series 'examples\[0\]' has 0 known covariates; this model was trained with 1"
    ):
        forecaster.predict([one], 6, examples=[one.values[23:44]])


def test_how_far_a_chunk_reaches_without_what_it_was_trained_with() -> None:
    """As far as with it: examples that are left out leave no room for longer forecasts in one go."""
    forecaster, x = frozen(6), np.stack([walk(40)])  # an example of 3, 2 and one more
    bare = forecaster.predict(x, 12, examples=None).mean
    prompted = Forecaster(forecaster.model, forecaster.adapter, Examples(strategy="earlier"))
    again = prompted.predict(x, 12, examples=None).mean
    assert np.array_equal(bare[:, :4], again[:, :4]) and not np.allclose(bare[:, 4:], again[:, 4:])
    onward = prompted.predict(np.concatenate([x, again[:, :4]], 1), 8, examples=None).mean
    np.testing.assert_allclose(again[:, 4:], onward, rtol=0, atol=1e-5)
    assert not np.array_equal(prompted.predict(x, 12).mean, again)
    longer = Forecaster(frozen(7).model, forecaster.adapter, Examples(strategy="earlier", length=16))
    similar = Examples(strategy="similar", length=16)
    assert np.array_equal(longer.predict(x, 4, examples="similar").mean, longer.predict(x, 4, examples=similar).mean)


@pytest.mark.parametrize(
    ("examples", "more", "message"),
    [
        ("latest", {}, r"examples.strategy is 'latest': input should be 'earlier' or 'similar'"),
        ([], {}, "examples is an empty list; it must hold one at least"),
        ({"count": 2}, {}, r"examples is a dict; it must be 'earlier', 'similar', an Examples, None or a list of arr"),
        (Series(walk(8)), {}, "examples is a Series; it must be 'earlier'"),
        ([np.zeros(3)], {}, r"examples\[0\] has 3 steps; it must have a block of 4 at least"),
        ([["a"]], {}, r"examples\[0\] has dtype <U1; it must be real numbers"),
        ([np.zeros((2, 8))], {}, r"series 'examples\[0\]' has shape \(2, 8\); it must be \[L\]"),
        (Examples(strategy="earlier", length=6), {}, "examples.length is 6 steps; it must be a multiple of .* = 4"),
        (
            Examples(strategy="earlier", count=2),
            {},
            "examples of 24 steps, the lookback of 8 and one block are 36 steps; this model's grid ends at 24: .* or "
            "train with data.examples",
        ),
        ("similar", {}, "series 'b' has no window of 12 steps before its lookback of 8, so no similar one"),
        ("earlier", {"pool": [np.zeros(30)]}, "pool is given for examples 'earlier'; only 'similar' ones"),
        (None, {"pool": [np.zeros(30)]}, "pool is given, but no examples that are looked for in one"),
        ("similar", {"pool": [np.zeros(11)]}, "pool holds no series of at least 12 steps"),
    ],
)
def test_what_cannot_be_a_prompt_is_one_sentence(examples: Any, more: dict[str, Any], message: str) -> None:
    items = [Series(walk(40), "a"), Series(walk(19), "b")]
    with pytest.raises(ValueError, match=message):
        frozen(6).predict(items, 4, examples=examples, **more)


# --- training ---------------------------------------------------------------------------------------------------------


def document(folder: Path, examples: dict[str, Any] | None, **data: Any) -> dict[str, Any]:
    """A tiny recipe on two channels of 120 hours."""
    table = pd.DataFrame({"date": pd.date_range("2024-01-01", periods=120, freq="h")})
    for channel in (0, 1):
        table[f"x{channel}"] = walk(120, channel)
    table.to_csv(folder / "data.csv", index=False)
    return {
        "output_dir": str(folder / "run"),
        "model": {
            "backbone": {
                "model_type": "unimodal_ar_decoder",
                "hidden_size": 32,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
            "modalities": {"series": {"head": {"kind": "regression"}}},
        },
        "adapters": {"series": {"kind": "timeseries", "patch": PATCH, "lookback": LOOKBACK}},
        "data": {"kind": "series", "path": str(folder / "data.csv"), "horizon": 4, "stride": 5, "examples": examples}
        | data,
        "training": {"max_steps": 3, "per_device_train_batch_size": 8, "report_to": "none", "use_cpu": True},
        "evaluation": {"horizons": [8], "stride": 5, "season": 4},
    }


@pytest.mark.parametrize("examples", [{"strategy": "earlier"}, {"strategy": "similar", "count": 2, "length": 8}])
def test_windows_of_training_are_those_of_a_forecast(examples: dict[str, Any], tmp_path: Path) -> None:
    """Every element in front of the horizon, and what it is scaled by; the grid makes room for it."""
    resolved = Resolved(document(tmp_path, examples))
    pickle.dumps(resolved.data.prompt)  # for the processes that read batches
    length, count = examples.get("length", 12), examples.get("count", 1)
    assert resolved.config.modality("series").grid[0] == count * length // PATCH + 3
    assert resolved.document["data"]["examples"] == {"count": count, "length": length, **examples}
    forecaster = Forecaster(resolved.new_model(), resolved.data.adapter, resolved.data.options.examples)
    seen: list[Any] = []
    model: Any = forecaster.model
    generate = model.generate

    def noting(*args: Any, given: Any, **kwargs: Any) -> Any:
        seen.append(given)
        return generate(*args, given=given, **kwargs)

    model.generate = noting
    for dataset in (resolved.data.train(), resolved.data.validation()):
        assert len(dataset) > 5
        batch = dataset.collate([dataset[i] for i in range(len(dataset))])["segments"][0]
        before = []
        for number, origin in dataset.windows:
            whole = resolved.data.series[number]
            before.append(replace(whole, values=whole.values[:origin]))
        seen.clear()
        forecaster.predict(before, 4, batch_size=1)
        windows = sorted(range(len(before)), key=lambda i: len(before[i].values))
        for row, segment in zip(windows, seen, strict=True):
            assert torch.equal(batch.values[row, :-1], segment.values[0, :-1])
            assert torch.equal(batch.observed[row, :-1], segment.observed[0, :-1])
            assert batch.loc[row] == segment.loc[0] and batch.scale[row] == segment.scale[0]
        output = forecaster.model([batch])
        assert (output.element_losses["series"][:, 1:] != 0)[batch.element_observed[:, 1:]].all()  # the prompt's, too


def test_what_training_keeps_out(tmp_path: Path) -> None:
    """Windows without an "earlier" example are kept, without a "similar" one left out, however short lookbacks are."""
    for min_lookback in (None, 4):
        first = {
            strategy: min(origin for _, origin in Resolved(document(tmp_path, examples, **more)).data.train().windows)
            for more in [{"min_lookback": min_lookback, "stride": 1}]
            for strategy, examples in [(None, None), *((s, {"strategy": s}) for s in ("earlier", "similar"))]
        }
        shortest = min_lookback or LOOKBACK
        assert first == {None: shortest, "earlier": shortest, "similar": LOOKBACK + LENGTH}


def test_a_model_s_folder_knows_what_it_was_prompted_with(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evaluation, the Forecaster and the command line; which may say otherwise."""
    made = document(tmp_path, {"strategy": "similar"}, standardise=False)
    run = train(made)
    assert run is not None
    forecaster = Forecaster.from_pretrained(run, device="cpu")
    assert forecaster.examples == Examples(strategy="similar", length=LENGTH)
    resolved = Resolved(made)
    splits = [resolved.data.split(one) for one in resolved.data.series]
    parts = [one.validation for one in splits], [one.test for one in splits]
    drawn = {
        examples: rolling_evaluation(forecaster, resolved.data.series, *parts, 8, 5, 4, examples=examples)
        for examples in ("trained", "similar", "earlier", None)
    }
    told = yaml.safe_load((run / "evaluation.json").read_text())["8"]["unimodal_ar"]
    assert told == pytest.approx(drawn["trained"]["unimodal_ar"], rel=1e-5)
    mse = {examples: rows["unimodal_ar"]["MSE"] for examples, rows in drawn.items()}
    assert mse["trained"] == mse["similar"] and len(set(mse.values())) == 3
    again = evaluate(run, ["data.examples=null", "evaluation.transfer=[{name: itself}]"], "cpu")
    assert again["8"]["unimodal_ar"] == pytest.approx(drawn[None]["unimodal_ar"], rel=1e-5)
    assert again["transfer"]["itself"]["8"] == again["8"]
    table = tmp_path / "data.csv"
    for words, examples in ((), "trained"), (("none",), None), (("earlier",), "earlier"), (("similar",), "similar"):
        out = tmp_path / "out.csv"
        more = ["--examples", *words] if words else []
        assert cli.main(["forecast", str(table), "--model", str(run), "--horizon", "8", "--out", str(out), *more]) == 0
        expected = forecaster.predict(table, 8, examples=examples).to_frame()["mean"]
        np.testing.assert_allclose(pd.read_csv(out)["mean"], expected, rtol=1e-4)


def test_an_evaluation_looks_for_similar_windows_in_the_whole_past(tmp_path: Path) -> None:
    examples = Examples(strategy="similar")
    bare, adapter = frozen(6).model, TimeSeriesAdapter(PATCH, LOOKBACK)
    forecaster = Forecaster(bare, adapter, examples)
    one = Series(walk(100), "a")
    row = rolling_evaluation(forecaster, [one], [60], [80], 4, 8, 4)["unimodal_ar"]
    assert (
        rolling_evaluation(Forecaster(bare, adapter), [one], [60], [80], 4, 8, 4, examples=examples)["unimodal_ar"]
        == row
    )
    points = [forecaster.predict([one.values[:origin]], 4).mean[0] for origin in (80, 88, 96)]
    errors = [points[k] - one.values[origin : origin + 4] for k, origin in enumerate((80, 88, 96))]
    assert row["MSE"] == pytest.approx(float((np.stack(errors) ** 2).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("examples", "changes", "message"),
    [
        ({"strategy": "late"}, {}, "data.examples.strategy is 'late'"),
        ({"strategy": "earlier", "length": 6}, {}, "data.examples.length is 6 steps; it must be a multiple of .* = 4"),
        (
            {"strategy": "earlier"},
            {"layout": {"block": 2}},
            "data.examples.length is 12 steps; it must be a multiple of patch x block = 8",
        ),
        ({"strategy": "earlier"}, {"grid": [5, 1, 1]}, "data.examples of 12 steps, the lookback of 8 .* ends at 20"),
    ],
)
def test_recipes_that_leave_no_room(
    examples: dict[str, Any], changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    made = document(tmp_path, examples, horizon=4)
    made["model"]["modalities"]["series"] |= changes
    with pytest.raises(ValueError, match=message):
        Resolved(made)


def test_series_too_short_for_a_similar_window(tmp_path: Path) -> None:
    made = document(tmp_path, {"strategy": "similar", "length": 80})
    with pytest.raises(ValueError, match=r"'x0' leaves 84 steps to train on .* one window needs 92"):
        Resolved(made).data.train()


@pytest.mark.parametrize("strategy", ["earlier", "similar"])
def test_examples_have_times(strategy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An example's elements are told of their own times; all sentences are computed before training."""
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "cache"))
    llm = save_language_model(tmp_path / "llm")
    made = document(tmp_path, {"strategy": strategy}, stride=7)
    made["adapters"]["series"]["timestamps"] = {"language_model": {"pretrained": str(llm)}}
    data = Resolved(made).data
    training, validation = data.train(), data.validation()
    loads: list[Any] = []
    monkeypatch.setattr(text_states, "read_body", lambda *args, **kwargs: loads.append(args))
    for dataset in (training, validation):
        batch = dataset.collate([dataset[i] for i in range(len(dataset))])["segments"][0]
        for row in (0, len(dataset) - 1):
            number, origin = dataset.windows[row]
            ((_, stop),) = data.examples_of(number, origin)
            firsts = [*range(stop - LENGTH, stop, PATCH), *range(origin - LOOKBACK, origin + 4, PATCH)]
            begin = pd.Timestamp("2024-01-01").to_pydatetime()
            texts = [sentences(begin + timedelta(hours=first), 4, 1, timedelta(hours=1))[0] for first in firsts]
            assert batch.covariates.shape[1:] == (6, WIDTH)
            torch.testing.assert_close(batch.covariates[row], straight(llm, texts), rtol=0, atol=2e-6)
    assert not loads


@pytest.mark.parametrize("strategy", ["earlier", "similar"])
def test_channels_of_two_time_zones_are_prepared_both(
    strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which begin at the same instant; of windows and of examples."""
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "cache"))
    told: Any = {"language_model": {"pretrained": str(save_language_model(tmp_path / "llm"))}}
    adapter = TimeSeriesAdapter(PATCH, LOOKBACK, timestamps=told)
    begin = pd.Timestamp("2024-01-01", tz="UTC")
    ones = [Series(walk(60), str(zone), begin.tz_convert(zone), "h") for zone in ("UTC", "Asia/Tokyo")]
    adapter.prepare([(one, 40) for one in ones], LOOKBACK, PATCH)
    prompt = searched(Examples(strategy=strategy), LOOKBACK, PATCH, PATCH)
    rows = [prompt.find(one, 40) for one in ones]
    prompt.prepare(adapter, rows)
    monkeypatch.setattr(text_states.TextStates, "_compute", lambda *_: pytest.fail("a sentence was not prepared"))
    covariates = prompt.encode(adapter, rows).covariates
    assert covariates is not None and not torch.allclose(covariates[0], covariates[1])
    lookbacks = np.stack([one.values[32:40] for one in ones])
    adapter.encode(lookbacks, horizon=PATCH, origins=adapter.origins((one, 40) for one in ones))
    with pytest.raises(ValueError, match="series 'a' has no times; the timestamps of 'series' are made of them"):
        adapter.prepare([(Series(walk(60), "a"), 40)], LOOKBACK, PATCH)


@pytest.mark.parametrize("given", [False, True])
def test_a_forecast_s_sentences_of_examples_are_computed_in_one_go(
    given: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over batches; each once, and what is told of examples is of their own times."""
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "cache"))
    told = {"language_model": {"pretrained": str(save_language_model(tmp_path / "llm"))}}
    forecaster = make({"kind": "regression"}, 1, 6, lookback=LOOKBACK, timestamps=told)
    items = [Series(walk(40, k), str(k), pd.Timestamp("2024-01-01") + pd.Timedelta(days=k), "h") for k in range(3)]
    computed: list[list[str]] = []
    compute = text_states.TextStates._compute

    def noting(self: Any, texts: Any, store: Any) -> None:
        computed.append(list(texts))
        compute(self, texts, store)

    monkeypatch.setattr(text_states.TextStates, "_compute", noting)
    example = replace(items[0], values=items[0].values[:13])
    forecaster.predict(items, 4, examples=[example] if given else "earlier", batch_size=1)
    first = pd.Timestamp("2024-01-01")
    begins = [first + pd.Timedelta(hours=1)] if given else [first + pd.Timedelta(days=k, hours=20) for k in range(3)]
    texts = [text for begin in begins for text in sentences(begin.to_pydatetime(), 4, 3, timedelta(hours=1))]
    assert sorted(computed[0]) == sorted(texts) and len(computed) == 4
    with pytest.raises(ValueError, match=r"series 'examples\[0\]' has no times; the timestamps of 'series' are made"):
        forecaster.predict(items, 4, examples=[example.values])
