"""The time series adapter: there and back, scaling, covariates, storage, messages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unimodal_ar.adapters import (
    ADAPTERS,
    Adapter,
    AutoAdapter,
    SeriesSegment,
    TimeSeriesAdapter,
    load_adapters,
    register_adapter,
    stack_series,
)
from unimodal_ar.segment import Segment, collate

NAN = float("nan")
SCALINGS = ("standard", "robust", "mean_abs", "none")

numbers = st.one_of(st.just(NAN), st.just(0.0), st.floats(-1e6, 1e6).map(lambda x: round(x, 3)))


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Lookbacks [B, L] and futures [B, H], H >= 0."""
    batch, past, future = draw(st.integers(1, 3)), draw(st.integers(1, 17)), draw(st.integers(0, 9))
    rows = draw(
        st.lists(st.lists(numbers, min_size=past + future, max_size=past + future), min_size=batch, max_size=batch)
    )
    series = torch.tensor(rows, dtype=torch.float64)
    return series[:, :past], series[:, past:]


def encode(adapter: TimeSeriesAdapter, past: Tensor, future: Tensor) -> SeriesSegment:
    return adapter.encode(past, future if future.shape[1] else None)


@settings(max_examples=80, deadline=None)
@given(batches(), st.integers(1, 6), st.one_of(st.none(), st.integers(1, 12)), st.sampled_from(SCALINGS))
def test_decode_inverts_encode(data: tuple[Tensor, Tensor], patch: int, lookback: int | None, scaling: str) -> None:
    past, future = data
    adapter = TimeSeriesAdapter(patch, lookback=lookback, scaling=scaling)
    segment = encode(adapter, past, future)
    kept = past[:, -lookback:] if lookback else past

    decoded = adapter.decode(segment)
    split = adapter.past_patches(past.shape[1]) * patch
    assert decoded.dtype == torch.float64
    assert decoded.shape == (len(past), split + adapter.future_patches(future.shape[1]) * patch)
    pad_left, end = split - kept.shape[1], split + future.shape[1]
    assert decoded[:, :pad_left].isnan().all()
    assert decoded[:, end:].isnan().all()
    expected = torch.cat([kept, future], 1)
    error = (decoded[:, pad_left:end] - expected).abs()
    # What float32 keeps of the scaled value, back in original units.
    allowed = 2.0**-23 * (expected - segment.loc[:, None]).abs() + 1e-12 * expected.abs()
    assert torch.equal(expected.isnan(), error.isnan())
    assert (error <= allowed)[~expected.isnan()].all()


@settings(max_examples=40, deadline=None)
@given(batches(), st.sampled_from(SCALINGS), st.integers(0, 99))
def test_the_future_never_reaches_loc_scale_or_past_values(
    data: tuple[Tensor, Tensor], scaling: str, seed: int
) -> None:
    past, future = data
    adapter = TimeSeriesAdapter(4, scaling=scaling)
    segment = encode(adapter, past, future)
    noise = torch.randn(future.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 1e3
    other = encode(adapter, past, noise)
    known = adapter.past_patches(past.shape[1])
    assert torch.equal(segment.loc, other.loc)
    assert torch.equal(segment.scale, other.scale)
    assert torch.equal(segment.values[:, :known], other.values[:, :known])


@pytest.mark.parametrize("scaling", SCALINGS)
def test_scaling_agrees_with_numpy_on_what_is_observed(scaling: str) -> None:
    rng = np.random.default_rng(0)
    past = rng.lognormal(2.0, 1.0, (5, 61))
    past[rng.random(past.shape) < 0.3] = NAN
    rules: dict[str, Any] = {
        "standard": (np.nanmean(past, 1), np.nanstd(past, 1)),
        "robust": (
            np.nanmedian(past, 1),
            (np.nanquantile(past, 0.75, axis=1) - np.nanquantile(past, 0.25, axis=1)) / 1.3489795003921634,
        ),
        "mean_abs": (np.zeros(5), np.nanmean(np.abs(past), 1)),
        "none": (np.zeros(5), np.ones(5)),
    }
    loc, scale = rules[scaling]
    segment = TimeSeriesAdapter(8, scaling=scaling).encode(past)
    np.testing.assert_allclose(segment.loc, loc, rtol=1e-12)
    np.testing.assert_allclose(segment.scale, scale, rtol=1e-12)
    np.testing.assert_allclose(
        segment.values.flatten(1)[:, -61:].double(), np.nan_to_num((past - loc[:, None]) / scale[:, None]), rtol=1e-6
    )


def test_scaling_sees_only_the_lookback_that_is_kept() -> None:
    past = torch.cat([torch.full((1, 50), 1e4), torch.arange(10.0)[None]], 1)
    segment = TimeSeriesAdapter(5, lookback=10).encode(past)
    assert segment.loc.item() == pytest.approx(4.5)
    assert segment.num_elements == 2


@pytest.mark.parametrize("scaling", ["standard", "robust"])
@pytest.mark.parametrize("level", [0.1, -1e-7, 3e9, 0.0])
def test_a_constant_lookback_has_scale_one(scaling: str, level: float) -> None:
    segment = TimeSeriesAdapter(7, scaling=scaling).encode(torch.full((1, 1001), level, dtype=torch.float64))
    assert segment.loc.item() == pytest.approx(level, rel=1e-12)
    assert segment.scale.item() == 1.0


def test_rounding_noise_is_constant_and_small_variation_is_not() -> None:
    adapter = TimeSeriesAdapter(1)
    noise = torch.tensor([[0.3, 0.1 + 0.2, 0.3, 0.1 * 3]], dtype=torch.float64)
    assert noise.std() > 0
    assert adapter.encode(noise).scale.item() == 1.0
    wave = 1e6 + 1e-3 * torch.arange(4, dtype=torch.float64)[None]
    assert adapter.encode(wave).scale.item() == pytest.approx(1e-3 * 1.25**0.5, rel=1e-5)


def test_zero_spread_rules_of_robust_and_mean_abs() -> None:
    mostly_zero = torch.tensor([[0.0, 0, 0, 0, 0, 0, 0, 50]])
    assert TimeSeriesAdapter(4, scaling="robust").encode(mostly_zero).scale.item() == 1.0
    segment = TimeSeriesAdapter(4, scaling="mean_abs").encode(torch.tensor([[3.0, 3, 3, 3], [0, 0, 0, 0]]))
    assert segment.scale.tolist() == [3.0, 1.0]


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_lookback_without_values_has_loc_zero_and_scale_one(scaling: str) -> None:
    segment = TimeSeriesAdapter(4, scaling=scaling).encode(torch.full((1, 6), NAN), torch.tensor([[7.0, 8.0]]))
    assert (segment.loc.item(), segment.scale.item()) == (0.0, 1.0)
    assert segment.values.flatten().tolist() == [0.0] * 8 + [7.0, 8.0, 0.0, 0.0]
    assert segment.element_observed.tolist() == [[False, False, True]]


def test_eps_is_added_to_the_variance() -> None:
    past = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    segment = TimeSeriesAdapter(2, eps=3.0).encode(past)
    assert segment.scale.tolist() == pytest.approx([2.0, 3.0**0.5])


def test_unequal_series_are_padded_on_the_left() -> None:
    stacked = stack_series([np.array([1.0, 2.0, 3.0]), [5], torch.tensor([6.0, NAN])])
    assert stacked.nan_to_num(nan=-1).tolist() == [[1, 2, 3], [-1, -1, 5], [-1, 6, -1]]
    adapter = TimeSeriesAdapter(2)
    together = adapter.encode(stacked)
    alone = adapter.encode([[5.0]])
    assert together.observed is not None
    assert together.observed.tolist()[1] == [[False, False], [False, True]]
    assert torch.equal(together.values[1, -1:], alone.values[0])
    assert stack_series([np.ones((1, 2)), np.zeros((2, 2))]).shape == (2, 2, 2)


@pytest.mark.parametrize("dtype", [np.float32, np.int16, np.bool_, ">f8"])
def test_every_real_dtype_reads_the_same(dtype: Any) -> None:
    past = np.array([[0, 1, 1, 0, 1]])
    segment = TimeSeriesAdapter(2).encode(past.astype(dtype))
    assert torch.equal(segment.values, TimeSeriesAdapter(2).encode(torch.tensor(past)).values)
    assert segment.values.dtype == torch.float32


def test_horizon_leaves_the_future_open() -> None:
    adapter = TimeSeriesAdapter(4)
    segment = adapter.encode(torch.arange(10.0)[None], horizon=5)
    assert segment.grid == (5, 1, 1)
    assert adapter.past_patches(10) == 3
    assert segment.element_observed.tolist() == [[True, True, True, False, False]]
    assert adapter.element == {"kind": "continuous", "dim": 4}
    assert segment.values.isfinite().all()


def test_loc_and_scale_follow_the_batch() -> None:
    adapter = TimeSeriesAdapter(2)
    segment = adapter.encode(torch.tensor([[1.0, 2.0], [10.0, 30.0]]))
    repeated = segment.repeat_interleave(3)
    assert adapter.decode(repeated)[:, 1].tolist() == pytest.approx([2.0] * 3 + [30.0] * 3)
    drawn = segment.replace(values=segment.values + 1, observed=None)
    assert adapter.decode(drawn).tolist() == [pytest.approx([1.5, 2.5]), pytest.approx([20.0, 40.0])]
    assert adapter.decode(segment.select(slice(1, 2))).tolist() == [pytest.approx([10.0, 30.0])]
    (joined,) = collate([[segment], [segment.select(slice(0, 1))]])
    assert torch.equal(adapter.decode(joined)[2], adapter.decode(segment)[0])
    coarse = segment.replace(observed=torch.tensor([[True], [False]]))
    assert adapter.decode(coarse).isnan().tolist() == [[False] * 2, [True] * 2]


# ---- covariates


def test_known_covariates_sit_on_their_own_steps_and_are_standardised_by_the_lookback() -> None:
    adapter = TimeSeriesAdapter(2, known_covariates=2, scaling="none")
    known = torch.stack([torch.arange(6.0) * 10, torch.tensor([4.0, 4, 4, 5, 4, 6])], -1)[None]
    segment = adapter.encode(torch.zeros(1, 3), horizon=3, known_covariates=known)
    assert adapter.covariate_features == 4
    mean, std = 10.0, (200 / 3) ** 0.5
    ramp = [0.0] + [(10.0 * step - mean) / std for step in range(6)] + [0.0]  # padding on either side
    flag = [0.0, 0, 0, 0, 1, 0, 2, 0]  # constant in the lookback: 4 is its loc, 1 its scale
    assert segment.covariates is not None
    assert segment.covariates.dtype == torch.float32
    steps = segment.covariates.view(8, 2)
    assert steps[:, 0].tolist() == pytest.approx(ramp)
    assert steps[:, 1].tolist() == pytest.approx(flag)


def test_lookback_cuts_covariates_with_the_series() -> None:
    adapter = TimeSeriesAdapter(2, lookback=4, known_covariates=1, past_covariates=1)
    rng = np.random.default_rng(0)
    past, known, own = rng.normal(size=(1, 9)), rng.normal(size=(1, 12, 1)), rng.normal(size=(1, 9, 1))
    long = adapter.encode(past, horizon=3, known_covariates=known, past_covariates=own)
    short = adapter.encode(past[:, 5:], horizon=3, known_covariates=known[:, 5:], past_covariates=own[:, 5:])
    assert long.covariates is not None
    assert short.covariates is not None
    assert torch.equal(long.covariates, short.covariates)


@pytest.mark.parametrize("lag", [1, 2, 3, 9])
def test_past_covariates_come_from_lag_patches_earlier(lag: int) -> None:
    patch, past_patches, future_patches = 2, 4, 3
    adapter = TimeSeriesAdapter(patch, past_covariates=2, past_lag=lag)
    own = torch.randn(1, 8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    segment = adapter.encode(torch.arange(8.0)[None], torch.zeros(1, 6), past_covariates=own)
    assert segment.covariates is not None
    assert segment.covariates.shape[-1] == adapter.covariate_features == 5
    scaled = ((own - own.mean(1)) / own.std(1, correction=0)).float().view(past_patches, 4)
    for element in range(past_patches + future_patches):
        origin = element - lag
        features, flag = segment.covariates[0, element, :4], segment.covariates[0, element, 4].item()
        is_there = 0 <= origin < past_patches
        assert flag == float(is_there)
        torch.testing.assert_close(features, scaled[origin] if is_there else torch.zeros(4))


def test_missing_past_covariates_are_zero_and_known_ones_come_first() -> None:
    adapter = TimeSeriesAdapter(2, known_covariates=1, past_covariates=1)
    own = torch.tensor([NAN, NAN, 1.0, NAN, 3.0, NAN]).view(1, 6, 1)
    known = torch.zeros(1, 8, 1)
    segment = adapter.encode(torch.arange(6.0)[None], horizon=2, known_covariates=known, past_covariates=own)
    assert segment.covariates is not None
    assert segment.covariates[0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 0, 0, 0], [0, 0, -1, 0, 1], [0, 0, 1, 0, 1]]


def test_known_covariates_may_be_missing_only_before_a_series_begins() -> None:
    adapter = TimeSeriesAdapter(1, known_covariates=1)
    past = stack_series([[1.0, 2.0, 3.0], [5.0]])
    known = stack_series([np.arange(4.0)[:, None], np.arange(2.0)[:, None]])
    assert known[1, :2].isnan().all()
    segment = adapter.encode(past, horizon=1, known_covariates=known)
    assert segment.covariates is not None
    assert segment.covariates[1].flatten().tolist() == [0.0, 0.0, 0.0, 1.0]
    for step in (2, 3):  # the series' only value, and its future
        broken = known.clone()
        broken[1, step, 0] = NAN
        with pytest.raises(ValueError, match=f"has NaN in row 1 of the batch, step {step}, feature 0; every"):
            adapter.encode(past, horizon=1, known_covariates=broken)


def test_without_covariates_there_are_none() -> None:
    adapter = TimeSeriesAdapter(2)
    assert adapter.covariate_features == 0
    assert adapter.encode([[1.0, 2.0]]).covariates is None


# ---- messages


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patch": 0}, r"TimeSeriesAdapter\.patch is 0: input should be greater than 0"),
        ({"patch": 2, "lookback": 0}, r"TimeSeriesAdapter\.lookback is 0"),
        ({"patch": 2, "scaling": "minmax"}, r"TimeSeriesAdapter\.scaling is 'minmax'.*'standard', 'robust'"),
        ({"patch": 2, "eps": -1.0}, r"TimeSeriesAdapter\.eps is -1.0"),
        ({"patch": 2, "eps": 1.0, "scaling": "robust"}, "eps is 1.0 with scaling 'robust'; only 'standard'"),
        ({"patch": 2, "past_lag": 0}, r"TimeSeriesAdapter\.past_lag is 0"),
        ({"patch": 2, "modality": ""}, r"TimeSeriesAdapter\.modality is ''"),
    ],
)
def test_illegal_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSeriesAdapter(**options)


PAST = torch.arange(6.0).view(2, 3)


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"past": torch.arange(3.0)}, r"past has shape \(3,\); it must be \[B, L\] with L >= 1 \(lists: stack"),
        ({}, {"past": torch.zeros(2, 0)}, r"past has shape \(2, 0\)"),
        ({}, {"past": [[1.0, 2.0], [3.0]]}, "past has rows of unequal length; stack_series pads them"),
        ({}, {"past": np.array([["a", "b"]])}, "past has dtype <U1; it must be real numbers"),
        ({}, {"past": torch.zeros(1, 2, dtype=torch.complex64)}, "past has dtype torch.complex64"),
        ({}, {"past": [[1.0, 2.0], [3.0, np.inf]]}, "past is infinite in row 1 of the batch; mark missing values"),
        ({}, {"past": [[1e200, -1e200]]}, "values of row 0 of the batch overflow float64 when squared"),
        ({"scaling": "none"}, {"past": [[1.0, 1e39]]}, "past and future of row 0 of the batch overflow float32"),
        ({}, {"past": PAST, "future": [[1.0, -np.inf]] * 2}, "future is infinite in row 0 of the batch"),
        ({}, {"past": PAST, "future": [[1.0]]}, "future has 1 series; it must have 2 like past"),
        ({}, {"past": PAST, "future": torch.zeros(2, 0)}, r"future has shape \(2, 0\); it must be \[B, H\]"),
        ({}, {"past": PAST, "future": PAST, "horizon": 3}, "horizon is 3 and future is given too"),
        ({}, {"past": PAST, "horizon": 0}, "horizon is 0; it must be a positive integer"),
        ({}, {"past": PAST, "horizon": -2}, "horizon is -2;"),
        ({}, {"past": PAST, "horizon": 1.5}, "horizon is 1.5;"),
        ({}, {"past": PAST, "horizon": True}, "horizon is True;"),
        ({"known_covariates": 1}, {"past": PAST}, "known_covariates is missing; the adapter was made with known_cov"),
        (
            {},
            {"past": PAST, "known_covariates": torch.zeros(2, 3, 1)},
            r"known_covariates has shape \(2, 3, 1\); it must be \[2, 3, 0\]",
        ),
        (
            {"known_covariates": 1},
            {"past": PAST, "horizon": 4, "known_covariates": torch.zeros(2, 5, 1)},
            r"known_covariates has 5 steps; it must have 7 \(3 of the past and 4 of the horizon\)",
        ),
        (
            {"known_covariates": 2},
            {"past": PAST, "known_covariates": torch.zeros(2, 3, 1)},
            r"known_covariates has shape \(2, 3, 1\); it must be \[2, 3, 2\] \(series, steps, features\)",
        ),
        (
            {"known_covariates": 2},
            {"past": PAST, "known_covariates": [[[0.0, 0.0]] * 3, [[0.0, 0.0], [0.0, np.inf], [0.0, 0.0]]]},
            "known_covariates is infinite in row 1 of the batch, step 1, feature 1; it must be finite",
        ),
        (
            {"known_covariates": 2},
            {"past": PAST, "known_covariates": torch.tensor([0.0, NAN]).expand(2, 3, 2)},
            "known_covariates has NaN in row 0 of the batch, step 0, feature 1",
        ),
        (
            {"past_covariates": 1},
            {"past": PAST, "horizon": 1, "past_covariates": torch.zeros(2, 4, 1)},
            r"past_covariates has 4 steps; it must have 3 \(those of the past\)",
        ),
        ({"past_covariates": 1}, {"past": PAST}, "past_covariates is missing"),
    ],
)
def test_bad_input_is_told(options: dict[str, Any], given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TimeSeriesAdapter(2, **options).encode(**given)


def test_decode_tells_what_it_cannot_decode() -> None:
    adapter = TimeSeriesAdapter(2)
    segment = adapter.encode(PAST)
    plain = Segment("series", segment.values, segment.grid)
    with pytest.raises(ValueError, match="segment is a Segment; it must be a SeriesSegment"):
        adapter.decode(plain)
    with pytest.raises(ValueError, match="segment's patches have 2 steps, not 3"):
        TimeSeriesAdapter(3).decode(segment)
    with pytest.raises(ValueError, match=r"scale of 'series' has shape \(1,\); it must be \(2,\)"):
        segment.replace(scale=segment.scale[:1])


@pytest.mark.parametrize(
    ("series", "message"),
    [
        ([], "stack_series got no series"),
        ([[1.0], [[1.0]]], r"series 1 has shape \(1, 1\)"),
        ([1.0], r"series 0 has shape \(\)"),
        ([[1.0], ["x"]], "series 1 has dtype <U1"),
    ],
)
def test_stack_series_tells_which_series_is_wrong(series: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stack_series(series)


# ---- storage


def test_save_and_load_through_auto_adapter(tmp_path: Path) -> None:
    adapter = TimeSeriesAdapter(4, lookback=12, scaling="robust", known_covariates=1, past_covariates=2, past_lag=3)
    adapter.save_pretrained(tmp_path / "model")
    loaded = AutoAdapter.from_pretrained(tmp_path / "model")
    assert type(loaded) is TimeSeriesAdapter
    assert loaded.config() == adapter.config()
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {
        "past": rng.normal(size=(2, 20)),
        "horizon": 5,
        "known_covariates": rng.normal(size=(2, 25, 1)),
        "past_covariates": rng.normal(size=(2, 20, 2)),
    }
    first, second = adapter.encode(**given), loaded.encode(**given)
    assert torch.equal(first.values, second.values)
    assert torch.equal(first.scale, second.scale)
    assert first.covariates is not None
    assert second.covariates is not None
    assert torch.equal(first.covariates, second.covariates)
    assert [path.name for path in (tmp_path / "model").iterdir()] == ["processor_config.json"]


def test_saving_merges_with_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text('{"processor_class": "Other"}')
    TimeSeriesAdapter(4, modality="load").save_pretrained(tmp_path)
    TimeSeriesAdapter(8, modality="price").save_pretrained(tmp_path)
    TimeSeriesAdapter(2, modality="load").save_pretrained(tmp_path)
    assert {name: one.element["dim"] for name, one in load_adapters(tmp_path).items()} == {"load": 2, "price": 8}
    assert json.loads((tmp_path / "processor_config.json").read_text())["processor_class"] == "Other"
    assert TimeSeriesAdapter.from_pretrained(tmp_path, "price").options.patch == 8
    with pytest.raises(ValueError, match=r"holds 2 adapters of type Adapter, \['load', 'price'\]; say which"):
        AutoAdapter.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"modality is 'loud'; the adapters .* are \['load', 'price'\]"):
        AutoAdapter.from_pretrained(tmp_path, "loud")


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TimeSeriesAdapter(4).save_pretrained(tmp_path)

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="disk full"):
        TimeSeriesAdapter(8).save_pretrained(tmp_path)
    assert TimeSeriesAdapter.from_pretrained(tmp_path).options.patch == 4
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "has no processor_config.json; adapters are stored there by save_pretrained"),
        ("{", "processor_config.json is not valid JSON"),
        ("[]", "must be a JSON object whose 'adapters' is an object"),
        ('{"adapters": [1]}', "must be a JSON object whose 'adapters' is an object"),
        ('{"size": 3}', "holds no adapters"),
        ('{"adapters": {"s": 3}}', r"adapters\.s is 3; it must be a mapping with a 'kind'"),
        (
            '{"adapters": {"s": {"kind": "timeserie"}}}',
            r"adapters\.s\.kind is 'timeserie'; known kinds are .*'timeseries'",
        ),
        ('{"adapters": {"s": {"kind": ["timeseries"]}}}', r"adapters\.s\.kind is \['timeseries'\]; known kinds are"),
        (
            '{"adapters": {"s": {"kind": "timeseries", "patches": 4, "scaling": "x"}}}',
            r"patch.*field required.*unknown key 'patches'; did you mean 'patch'",
        ),
        (
            '{"adapters": {"s": {"kind": "timeseries", "patch": 4, "modality": "t"}}}',
            r"adapters\.s\.modality is 't'; it must be the name it is stored under",
        ),
    ],
)
def test_a_broken_file_is_told(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        AutoAdapter.from_pretrained(tmp_path)


def test_saving_beside_a_broken_file_does_not_overwrite_it(tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        TimeSeriesAdapter(4).save_pretrained(tmp_path)
    assert (tmp_path / "processor_config.json").read_text() == "{"


def test_from_config_builds_from_a_mapping() -> None:
    adapter = AutoAdapter.from_config({"kind": "timeseries", "patch": 4, "modality": "load"})
    assert isinstance(adapter, TimeSeriesAdapter)
    assert adapter.modality == adapter.encode([[1.0]]).modality == "load"
    assert AutoAdapter.from_config({"kind": adapter.kind, **adapter.config()}).config() == adapter.config()
    with pytest.raises(ValueError, match=r"data\.adapter has an unknown key 'lookbak'; did you mean 'lookback'\?"):
        AutoAdapter.from_config({"kind": "timeseries", "patch": 4, "lookbak": 3}, "data.adapter")


def test_a_taken_name_cannot_be_registered() -> None:
    with pytest.raises(ValueError, match="adapter 'timeseries' is already registered"):
        register_adapter("timeseries")(TimeSeriesAdapter)
    assert ADAPTERS["timeseries"] is TimeSeriesAdapter
    assert TimeSeriesAdapter.kind == "timeseries"


def test_from_pretrained_of_a_class_finds_only_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(TimeSeriesAdapter):
        pass

    class Toy(Adapter):
        def __init__(self, modality: str) -> None:
            self.options = self.Options(modality=modality)

        @property
        def element(self) -> dict[str, Any]:
            return {"kind": "discrete", "vocab_size": 2}

        def encode(self, *raw: Any, **more: Any) -> Segment:
            return Segment(self.modality, torch.tensor(raw)[:, None], (1, 1, 1))

        def decode(self, segment: Segment) -> list[int]:
            return segment.values.flatten().tolist()

    monkeypatch.setitem(ADAPTERS, "toy", Toy)
    monkeypatch.setattr(Toy, "kind", "toy", raising=False)
    Toy("label").save_pretrained(tmp_path)
    TimeSeriesAdapter(4).save_pretrained(tmp_path)
    assert TimeSeriesAdapter.from_pretrained(tmp_path).modality == "series"
    assert Toy.from_pretrained(tmp_path).decode(Toy("label").encode(1, 0)) == [1, 0]
    with pytest.raises(ValueError, match=r"holds no Other; its adapters are of the kinds {'label': 'toy', 'series'"):
        Other.from_pretrained(tmp_path)
