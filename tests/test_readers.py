"""Readers: every kind of source, and one clear sentence for each that cannot be read."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.dataset.common import ListDataset
from gluonts.dataset.pandas import PandasDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from unimodal_ar.adapters import Series, read_series

NAN = float("nan")


def days(count: int, freq: str = "D", start: str = "2024-01-01") -> pd.DatetimeIndex:
    return pd.date_range(start, periods=count, freq=freq)


def times_of(series: Series) -> pd.DatetimeIndex:
    assert series.start is not None
    return pd.date_range(series.start, periods=len(series.values), freq=series.freq)


def long_table() -> pd.DataFrame:
    """Item b (4 rows) lies before and among the rows of item a (3 rows), in no order of time."""
    return pd.DataFrame(
        {
            "item_id": ["b", "a", "a", "b", "b", "a", "b"],
            "ds": ["2024-01-04", "2024-01-02", "2024-01-01", "2024-01-01", "2024-01-02", "2024-01-03", "2024-01-03"],
            "y": [13.0, 1.0, 0.0, 10.0, 11.0, 2.0, 12.0],
        }
    )


# ---- arrays


@pytest.mark.parametrize(
    ("source", "rows"),
    [
        (np.arange(3), [[0, 1, 2]]),
        (np.arange(4, dtype=np.float32).reshape(2, 2), [[0, 1], [2, 3]]),
        (torch.tensor([[1, 2]], dtype=torch.bfloat16), [[1, 2]]),
        ([[1, 2, 3], np.array([4.0])], [[1, 2, 3], [4]]),
        ((torch.tensor([1.0], requires_grad=True), [2]), [[1], [2]]),
        ([1, 2.5, NAN], [[1, 2.5, NAN]]),
        ((np.ones(n) for n in (1, 2)), [[1], [1, 1]]),
    ],
)
def test_arrays(source: Any, rows: list[list[float]]) -> None:
    found = read_series(source, freq="h")
    assert [series.item_id for series in found] == [str(number) for number in range(len(rows))]
    for series, row in zip(found, rows, strict=True):
        assert series.values.dtype == np.float64
        assert (series.start, series.freq, series.known, series.past) == (None, "h", None, None)
        np.testing.assert_array_equal(series.values, row)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (np.zeros((2, 2, 2)), {}, r"the array has shape \(2, 2, 2\); it must be \[L\] or \[series, L\]"),
        (np.zeros((0, 3)), {}, r"the array has shape \(0, 3\)"),
        (np.array(["a"]), {}, "the array has dtype <U1; it must be real numbers"),
        (torch.zeros(2, dtype=torch.complex64), {}, "the array has dtype torch.complex64"),
        ([], {}, "the list has no series"),
        ([[1.0], []], {}, r"series '1' has shape \(0,\); it must be \[L\] with L >= 1"),
        ([[1.0], [[1.0]]], {}, r"series '1' has shape \(1, 1\)"),
        ([[1.0], ["x"]], {}, "series 1 has dtype <U1"),
        (3, {}, "the source is of type int; legal are arrays"),
        ({"target": [1.0]}, {}, "the source is of type dict; legal are arrays"),
        (np.zeros(3), {"target": "y"}, "name columns of tables; the source is of type ndarray"),
        (np.zeros(3), {"on_irregular": "drop"}, "on_irregular is 'drop'; it must be 'error' or 'resample'"),
    ],
)
def test_bad_arrays(source: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_series(source, **options)


@pytest.mark.parametrize(
    ("known", "past", "message"),
    [
        (np.zeros((2, 1)), None, r"known covariates of series 'x' have shape \(2, 1\).*at least 3 steps"),
        (np.zeros(3), None, r"known covariates of series 'x' have shape \(3,\)"),
        (None, np.zeros((4, 1)), r"past covariates of series 'x' have shape \(4, 1\).*with 3 steps"),
    ],
)
def test_a_series_checks_its_covariates(known: Any, past: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Series(np.zeros(3), "x", known=known, past=past)


@pytest.mark.parametrize(
    ("column", "roles", "message"),
    [
        ("y", {}, "series 'b' is infinite at step 2; mark missing values with NaN"),
        ("x", {"known": "x"}, "series 'b' is infinite at step 2 of its known covariates;"),
        ("x", {"past": "x"}, "series 'b' is infinite at step 2 of its past covariates;"),
    ],
)
def test_infinite_values_are_told_with_item_and_step(column: str, roles: dict[str, Any], message: str) -> None:
    table = long_table().assign(x=1.0)
    table.loc[6, column] = -np.inf  # the third row of item b in order of time
    with pytest.raises(ValueError, match=message):
        read_series(table, target="y", **roles)


def test_a_column_of_nothing_but_nan_is_a_series_of_missing_values() -> None:
    first, second = read_series(pd.DataFrame({"a": [1.0, 2.0], "b": [NAN, NAN]}))
    assert (first.item_id, second.item_id) == ("a", "b")
    np.testing.assert_array_equal(second.values, [NAN, NAN])


# ---- GluonTS


def test_gluonts_list_dataset_with_covariates() -> None:
    dataset = ListDataset(
        [
            {
                "start": "2024-01-01 05:00",
                "target": [1.0, NAN, 3.0],
                "item_id": "a",
                "feat_dynamic_real": [[1, 2, 3, 4], [5, 6, 7, 8]],
                "past_feat_dynamic_real": [[7, 8, 9]],
            },
            {"start": "2024-02-01", "target": [4.0]},
        ],
        freq="h",
    )
    first, second = read_series(dataset)
    np.testing.assert_array_equal(first.values, [1, NAN, 3])
    assert (first.item_id, first.start, first.freq) == ("a", pd.Timestamp("2024-01-01 05:00"), "h")
    np.testing.assert_array_equal(first.known, [[1, 5], [2, 6], [3, 7], [4, 8]])
    np.testing.assert_array_equal(first.past, [[7], [8], [9]])
    assert (second.item_id, second.known, second.past) == ("1", None, None)


@pytest.mark.parametrize(
    ("period", "start", "freq"),
    [
        ("M", "2024-02-01", "MS"),
        ("Q-DEC", "2024-01-01", "QS-OCT"),
        ("W-SUN", "2024-01-29", "W-MON"),
        # pandas means to give up periods of business days; GluonTS still makes them.
        pytest.param("B", "2024-02-01", "B", marks=pytest.mark.filterwarnings("ignore::FutureWarning")),
        ("2h", "2024-02-01", "2h"),
    ],
)
def test_gluonts_periods_become_starts(period: str, start: str, freq: str) -> None:
    (series,) = read_series([{"start": pd.Period("2024-02-01", period), "target": np.zeros(5)}])
    assert (series.start, series.freq) == (pd.Timestamp(start), freq)
    expected = pd.period_range("2024-02-01", periods=5, freq=period).to_timestamp()
    assert list(times_of(series)) == list(expected)


@pytest.mark.parametrize(
    ("start", "freq", "expected"),
    [
        ("2024-02-15", "D", ("2024-02-15", "D")),
        ("2024-02-15", "M", ("2024-02-01", "MS")),
        (pd.Timestamp("2024-02-15 07:30"), "h", ("2024-02-15 07:00", "h")),
        (np.datetime64("2024-02-15"), "W", ("2024-02-12", "W-MON")),
    ],
)
def test_gluonts_starts_of_other_types_need_a_frequency(start: Any, freq: str, expected: tuple[str, str]) -> None:
    entry = {"start": start, "target": np.zeros(5)}
    for found in (read_series([entry], freq=freq), read_series([{**entry, "freq": freq}])):
        assert (found[0].start, found[0].freq) == (pd.Timestamp(expected[0]), expected[1])
    with pytest.raises(ValueError, match=r"start of '0' is .*2024-02-15.* and has no frequency; pass freq="):
        read_series([entry])


def test_gluonts_pandas_dataset_and_multivariate_target() -> None:
    frame = long_table().assign(ds=lambda table: pd.to_datetime(table.ds)).sort_values("ds")
    dataset = PandasDataset.from_long_dataframe(frame, item_id="item_id", timestamp="ds", target="y", freq="D")
    found = {series.item_id: series for series in read_series(dataset)}
    np.testing.assert_array_equal(found["a"].values, [0, 1, 2])
    np.testing.assert_array_equal(found["b"].values, [10, 11, 12, 13])
    assert found["a"].freq == "D"

    channels = read_series(
        [{"target": np.arange(6).reshape(2, 3), "feat_dynamic_real": np.ones((1, 5)), "item_id": "m"}]
    )
    assert [series.item_id for series in channels] == ["m/0", "m/1"]
    np.testing.assert_array_equal(channels[1].values, [3, 4, 5])
    for series in channels:
        assert series.known is not None
        assert series.known.shape == (5, 1)


@pytest.mark.parametrize(
    ("entry", "options", "message"),
    [
        ({"start": 3}, {}, r"entry 0 of the dataset has no 'target'; its keys are \['start'\]"),
        ({"target": np.zeros((1, 2, 3))}, {}, r"target of '0' has shape \(1, 2, 3\)"),
        ({"target": ["a"]}, {}, "target of '0' has dtype <U1"),
        (
            {"target": np.zeros(3), "feat_dynamic_real": np.zeros((1, 2))},
            {},
            r"known covariates of series '0' have shape \(2, 1\)",
        ),
        (
            {"target": np.zeros(3), "start": pd.Period("2024-01-01", "D")},
            {"freq": "h"},
            r"freq is 'h', but start of '0' is Period\('2024-01-01', 'D'\), which carries its own",
        ),
        ({"target": np.zeros(3), "start": 3}, {"freq": "h"}, "start of '0' is 3; it must be a pd.Period, or a time"),
        ({"target": np.zeros(3), "start": "soon"}, {"freq": "h"}, "start of '0' is 'soon'; it must be a pd.Period"),
        ({"target": np.zeros(3), "start": "2024-01-01T00Z"}, {"freq": "h"}, "a time without a time zone"),
        ({"target": np.zeros(3), "start": "2024-01-01"}, {"freq": "x"}, "with freq 'x'; freq must be a pandas period"),
        ({"target": np.zeros(3)}, {"known": "x"}, "name columns of tables; the source is of type list"),
    ],
)
def test_bad_gluonts_entries(entry: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_series([entry], **options)


# ---- tables


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
@pytest.mark.parametrize("as_path", [str, Path])
def test_files(tmp_path: Path, suffix: str, as_path: Any) -> None:
    frame = pd.DataFrame({"date": days(4, "h"), "load": [1, 2, 3, 4], "price": [0.5, NAN, 1.5, 2.0]})
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path)  # with the index, which is no series
    load, price = read_series(as_path(path))
    assert (load.item_id, price.item_id) == ("load", "price")
    np.testing.assert_array_equal(load.values, [1, 2, 3, 4])
    np.testing.assert_array_equal(price.values, [0.5, NAN, 1.5, 2])
    assert (price.start, price.freq) == (pd.Timestamp("2024-01-01"), "h")


def test_long_table_is_found_split_and_sorted() -> None:
    found = read_series(long_table())
    assert [series.item_id for series in found] == ["b", "a"]
    np.testing.assert_array_equal(found[0].values, [10, 11, 12, 13])
    np.testing.assert_array_equal(found[1].values, [0, 1, 2])
    assert [series.freq for series in found] == ["D", "D"]


def test_long_table_with_named_columns_and_several_targets() -> None:
    frame = long_table().rename(columns={"item_id": "shop", "ds": "when"}).assign(z=lambda table: -table.y)
    found = read_series(frame, item="shop", target=["y", "z"])
    assert [series.item_id for series in found] == ["b/y", "b/z", "a/y", "a/z"]
    np.testing.assert_array_equal(found[3].values, [0, -1, -2])
    assert found[3].start == pd.Timestamp("2024-01-01")


def test_long_table_takes_the_only_numeric_column() -> None:
    found = read_series(long_table().rename(columns={"y": "sales"}).assign(note="x"))
    np.testing.assert_array_equal(found[1].values, [0, 1, 2])


@pytest.mark.parametrize("kind", ["column", "strings", "index", "string index", "periods", "items"])
def test_times_are_found(kind: str) -> None:
    values = [1.0, 2.0, 3.0]
    table: Any = pd.DataFrame({"x": values})
    when = days(3, "MS")
    if kind == "column":
        table["when"] = when
    elif kind == "strings":
        table["when"] = when.strftime("%Y-%m-%d")
    elif kind == "index":
        table.index = when
    elif kind == "string index":
        table.index = when.strftime("%Y-%m-%d")
    elif kind == "periods":
        table.index = when.to_period("M")
    else:
        table = pd.DataFrame({"x": values}, index=pd.MultiIndex.from_product([["i"], when], names=["item_id", "t"]))
    (series,) = read_series(table)
    assert (series.start, series.freq) == (pd.Timestamp("2024-01-01"), "MS")
    np.testing.assert_array_equal(series.values, values)


def test_wide_table_without_times_and_a_pandas_series() -> None:
    frame = pd.DataFrame({0: [1, 2], "b": pd.array([None, 4], dtype="Int64")})
    first, second = read_series(frame, freq="h")
    assert (first.item_id, first.start, first.freq) == ("0", None, "h")
    np.testing.assert_array_equal(second.values, [NAN, 4])
    (series,) = read_series(pd.Series([1.0, 2.0, 3.0], index=days(3), name="x"))
    assert (series.item_id, series.freq) == ("x", "D")
    assert read_series(frame, target="b")[0].item_id == "b"


def test_known_covariates_reach_past_the_values() -> None:
    frame = pd.DataFrame(
        {
            "date": days(5),
            "a": [1.0, NAN, 3.0, NAN, NAN],
            "b": [1.0, 2.0, NAN, NAN, NAN],
            "promo": [True, False, True, False, True],
            "rain": [5.0, 6.0, 7.0, NAN, NAN],
        }
    )
    a, b = read_series(frame, known="promo", past=["rain"])
    np.testing.assert_array_equal(a.values, [1, NAN, 3])
    np.testing.assert_array_equal(b.values, [1, 2, NAN])  # its future begins where everyone's does
    for series in (a, b):
        np.testing.assert_array_equal(series.known, [[1], [0], [1], [0], [1]])
        np.testing.assert_array_equal(series.past, [[5], [6], [7]])
    (without,) = read_series(frame, target="a", past=["rain"])
    np.testing.assert_array_equal(without.values, [1, NAN, 3, NAN, NAN])


def test_reading_does_not_change_or_share_the_table() -> None:
    frame = long_table()
    before = frame.copy()
    for series in read_series(frame):
        series.values[:] = -1
    pd.testing.assert_frame_equal(frame, before)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"time": "dss"}, "the table has no column 'dss', which time names; did you mean 'ds'?"),
        (
            {},
            {"target": "turnover"},
            r"no column 'turnover', which target names; its columns are \['item_id', 'ds', 'y'\]",
        ),
        ({}, {"known": ["y"], "target": "y"}, "column 'y' of the table is named by both target and known"),
        ({"y": "x"}, {"target": "y"}, r"column 'y' of the table has dtype (object|str); it must be numeric"),
        ({"y": ["1,5"] * 7}, {}, r"column 'y' of the table has dtype (object|str)"),
        ({"z": 1.0, "w": 2.0}, {"target": ["z", "why"]}, "no column 'why', which target names"),
        ({"target": 1.0}, {}, r"several columns that may be the target, \['y', 'target'\]; say which with target="),
        ({"id": 1}, {}, r"several columns that may be the item, \['item_id', 'id'\]"),
        ({"time": "2024-01-01"}, {}, r"several columns that may be the time, \['ds', 'time'\]"),
        ({"ds": range(7)}, {}, "column 'ds' of the table has dtype int64; times must be dates, not numbers"),
        ({"ds": ["2024-01-01"] * 6 + ["soon"]}, {}, "column 'ds' of the table cannot be read as times: .*soon"),
        ({"ds": ["2024-01-01"] * 6 + [None]}, {}, "column 'ds' of the table has no time in 1 rows"),
        ({"item_id": ["a"] * 6 + [None]}, {}, "column 'item_id' of the table has missing values"),
        ({"c": "x"}, {"known": "c"}, r"column 'c' of the table has dtype (object|str)"),
        ({"y": NAN, "c": 1.0}, {"known": "c"}, "item 'b' of the table has no observed target"),
    ],
)
def test_bad_tables(change: dict[str, Any], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_series(long_table().assign(**change), **options)


def test_more_bad_tables() -> None:
    with pytest.raises(ValueError, match="the table is empty; it must have at least one row"):
        read_series(pd.DataFrame({"y": []}))
    with pytest.raises(ValueError, match="the table has several columns named 'y'"):
        read_series(pd.DataFrame([[1, 2]], columns=["y", "y"]))
    with pytest.raises(ValueError, match="the table has columns of several levels"):
        read_series(pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])))
    with pytest.raises(ValueError, match="the table has no column left for the target"):
        read_series(pd.DataFrame({"date": days(3)}))
    with pytest.raises(ValueError, match="of pandas, only DataFrame and Series hold series"):
        read_series(days(3))
    with pytest.raises(
        ValueError, match=r"column 'shop' of the table has dtype (object|str).*if it tells the series apart name"
    ):
        read_series(pd.DataFrame({"shop": ["a", "b"], "sales": [1, 2]}))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "x", r"a\.txt is not a file this reads; its name must end in one of \.csv, \.csv\.gz, \.parquet"),
        ("a.csv", None, r"a\.csv is not there"),
        ("a.csv", "", r"a\.csv is empty; it must hold a table"),
        ("a.csv", "\n\n", r"a\.csv cannot be read as a table: No columns"),
        ("a.csv", "date,y\n", r"a\.csv is empty; it must have at least one row"),
        ("a.csv", "a,b\n1,2\n1,2,3,4\n", r"a\.csv cannot be read as a table: .*line 3"),
        ("a.csv.gz", "not gzip", r"a\.csv\.gz cannot be read as a table: Not a gzipped file"),
        ("a.parquet", "not parquet", r"a\.parquet cannot be read as a table"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_series(tmp_path / name)


def test_tables_need_pandas_and_arrays_do_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("y\n1\n")
    real = builtins.__import__

    def without_pandas(name: str, *rest: Any) -> Any:
        if name.split(".")[0] == "pandas":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "pandas")
    monkeypatch.setattr(builtins, "__import__", without_pandas)
    with pytest.raises(ImportError, match=r"needs pandas: pip install unimodal-ar\[timeseries\]"):
        read_series(tmp_path / "a.csv")
    assert len(read_series(np.zeros((2, 3)))) == 2


# ---- regular and irregular times


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["15min", "h", "D", "B", "W-WED", "MS", "ME", "QS", "YE", "7D", "s"]),
    st.integers(3, 40),
    st.integers(0, 400),
    st.sampled_from([None, "UTC", "Europe/Berlin"]),
)
def test_regular_times_are_regular(freq: str, count: int, shift: int, zone: str | None) -> None:
    start = pd.Timestamp("2023-01-01") + pd.Timedelta(days=shift)
    times = pd.date_range(start, periods=count, freq=freq, tz=zone)
    frame = pd.DataFrame({"x": np.arange(count)}, index=times).sample(frac=1.0, random_state=shift)
    for given_freq in (None, freq):
        (series,) = read_series(frame, freq=given_freq)
        np.testing.assert_array_equal(series.values, np.arange(count))
        assert list(times_of(series)) == list(times)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["15min", "h", "D", "B", "MS", "ME", "QS", "YS"]),
    st.integers(12, 40),
    st.sets(st.integers(1, 10), min_size=1, max_size=2),
)
def test_gaps_are_told_or_filled_with_nan(freq: str, count: int, gaps: set[int]) -> None:
    times = days(count, freq)
    kept = [number for number in range(count) if number not in gaps]
    frame = pd.DataFrame({"date": times[kept], "x": np.array(kept, dtype=float)})
    with pytest.raises(ValueError, match="the table has irregular times"):
        read_series(frame)
    (series,) = read_series(frame, on_irregular="resample")
    expected = [NAN if number in gaps else number for number in range(count)]
    np.testing.assert_array_equal(series.values, expected)
    assert list(times_of(series)) == list(times)


def test_irregular_times_are_named() -> None:
    times = days(9, "h").delete([3, 5, 7])
    frame = pd.DataFrame({"id": "a", "date": times, "y": np.arange(6.0)})
    with pytest.raises(ValueError, match=r"item 'a' of the table has irregular times: 2024-01-01 04:00:00, .*'h'"):
        read_series(frame, freq="h")
    many = frame.assign(date=[*times[:2], *(times[2:] + pd.Timedelta(minutes=7))])
    with pytest.raises(
        ValueError, match=r"02:07:00, 2024-01-01 04:07:00, 2024-01-01 06:07:00 and 1 more do not follow"
    ):
        read_series(many, freq="h")


def test_resample_takes_the_nearest_step_and_averages() -> None:
    start = pd.Timestamp("2024-01-01 00:10")
    minutes = [0, 62, 118, 122, 301]
    frame = pd.DataFrame({"date": [start + pd.Timedelta(minutes=m) for m in minutes], "x": [0.0, 1, 2, 4, 5]})
    (series,) = read_series(frame, freq="h", on_irregular="resample")
    np.testing.assert_array_equal(series.values, [0, 1, 3, NAN, NAN, 5])
    assert (series.start, series.freq) == (start, "h")


def test_resample_on_a_calendar_begins_on_its_grid() -> None:
    frame = pd.DataFrame({"date": pd.to_datetime(["2024-01-03", "2024-02-01", "2024-04-29"]), "x": [1.0, 2.0, 3.0]})
    (series,) = read_series(frame, freq="MS", on_irregular="resample")
    np.testing.assert_array_equal(series.values, [1, 2, NAN, NAN, 3])
    assert list(times_of(series))[-1] == pd.Timestamp("2024-05-01")


def test_a_stray_time_does_not_fill_the_memory() -> None:
    stray = ["1970-01-01 00:00:00", *(f"2024-03-31 00:00:0{second}" for second in range(4))]
    frame = pd.DataFrame({"date": stray, "x": 1.0})
    with pytest.raises(
        ValueError, match=r"its 5 rows from 1970-01-01 .* would become \d{10} steps of 's', more than 100 a"
    ):
        read_series(frame, on_irregular="resample")


def test_resample_leaves_holes_in_covariates_and_keeps_the_future() -> None:
    frame = pd.DataFrame({"date": days(6).delete(1), "x": [0, 2, 3, NAN, NAN], "k": [0.0, 2, 3, 4, 5]})
    (series,) = read_series(frame, known="k", on_irregular="resample")
    np.testing.assert_array_equal(series.values, [0, NAN, 2, 3])
    np.testing.assert_array_equal(series.known, np.array([[0, NAN, 2, 3, 4, 5]]).T)


@pytest.mark.parametrize("on_irregular", ["error", "resample"])
def test_duplicate_times_are_named(on_irregular: Any) -> None:
    frame = long_table()
    frame.loc[0, "ds"] = "2024-01-02"
    with pytest.raises(ValueError, match="item 'b' of the table has duplicate times: 2024-01-02 00:00:00; each may be"):
        read_series(frame, on_irregular=on_irregular)


def test_one_row_has_no_frequency_unless_given() -> None:
    frame = pd.DataFrame({"date": ["2024-01-01"], "x": [1.0]})
    assert read_series(frame)[0].freq is None
    assert read_series(frame, freq="h")[0].freq == "h"
    for freq in ("fortnight", "0h", "-1D"):
        with pytest.raises(ValueError, match=f"freq is '{freq}'; it must be a pandas offset alias"):
            read_series(frame, freq=freq)


def test_two_rows_give_their_difference() -> None:
    frame = pd.DataFrame({"date": ["2024-01-01 00:00", "2024-01-01 06:00"], "x": [1.0, 2.0]})
    assert read_series(frame)[0].freq == "6h"


@pytest.mark.parametrize("name", ["step", "year"])
def test_a_counting_column_is_not_taken_for_a_series(name: str) -> None:
    frame = pd.DataFrame({name: np.arange(2000, 2010), "y": np.arange(10.0) ** 2})
    with pytest.raises(
        ValueError, match=f"column '{name}' of the table counts 2000, 2001, ... and looks like an index"
    ):
        read_series(frame)
    (series,) = read_series(frame, target="y")
    assert series.item_id == "y"
    (series,) = read_series(frame[[name]])  # alone it is what was meant
    assert series.item_id == name
