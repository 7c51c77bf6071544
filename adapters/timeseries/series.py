"""Readers: arrays, tables, files and GluonTS datasets -> a list of `Series`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from .times import gluonts_start, pandas_module, regular

if TYPE_CHECKING:
    import pandas as pd

OnIrregular = Literal["error", "resample"]
Names = str | Iterable[str]

TIME_NAMES = ("date", "datetime", "time", "timestamp", "ds")
ITEM_NAMES = ("item_id", "unique_id", "id")
TARGET_NAMES = ("target", "y")
SUFFIXES = (".csv", ".csv.gz", ".parquet")


@dataclass(frozen=True, eq=False)
class Series:
    """One univariate series with its covariates. Nothing in it is infinite.

    Args:
        values: [L] float64, L >= 1, NaN where missing.
        item_id: its name.
        start: time of the first value, None where the source has no times.
        freq: pandas offset alias such that `pd.date_range(start, periods=L, freq=freq)` are the times of the values;
            None where it cannot be told (no times, or a single one).
        known: [L + H, F] float64, covariates that reach H >= 0 steps past the values.
        past: [L, Q] float64, covariates of the values' own steps.

    Raises:
        ValueError: a wrong shape, an infinite value; the message names the item, and the step from 0 on.
    """

    values: np.ndarray
    item_id: str = "0"
    start: pd.Timestamp | None = None
    freq: str | None = None
    known: np.ndarray | None = None
    past: np.ndarray | None = None

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or len(self.values) == 0:
            raise ValueError(f"series {self.item_id!r} has shape {self.values.shape}; it must be [L] with L >= 1")
        length = len(self.values)
        for name, array in (("known", self.known), ("past", self.past)):
            if array is None:
                continue
            fits = array.ndim == 2 and (len(array) == length or (name == "known" and len(array) > length))
            if not fits:
                more = "at least " if name == "known" else ""
                raise ValueError(
                    f"{name} covariates of series {self.item_id!r} have shape {array.shape}; "
                    f"they must be [steps, features] with {more}{length} steps"
                )
        parts = (("", self.values), (" of its known covariates", self.known), (" of its past covariates", self.past))
        for part, array in parts:
            if array is not None and np.isinf(array).any():
                step = np.argwhere(np.isinf(array))[0, 0]
                raise ValueError(
                    f"series {self.item_id!r} is infinite at step {step}{part}; mark missing values with NaN"
                )


def read_series(
    source: Any,
    *,
    time: str | None = None,
    item: str | None = None,
    target: Names | None = None,
    known: Names = (),
    past: Names = (),
    freq: str | None = None,
    on_irregular: OnIrregular = "error",
) -> list[Series]:
    """Reads series from whatever holds them.

    Sources:

    - a numpy array or torch tensor, [L] or [series, L], or a list of 1-D arrays of any lengths;
    - a GluonTS dataset: mappings with `target` ([L], or [C, L] which becomes C series), and optionally `start`
      (pd.Period; or str, datetime or datetime64, with the frequency in `freq` here or in the entry, as a pandas period
      alias such as "h" or "M"), `item_id`, `feat_dynamic_real` ([F, L + H], known) and `past_feat_dynamic_real`
      ([Q, L], past);
    - a pandas DataFrame or Series, or the path of a .csv, .csv.gz or .parquet file. Long: with an item column, each
      item is a series of the target column. Wide: without one, each target column is a series. Several target
      columns in a long table give series named "item/column".

    Rules for tables: rows are sorted by time. If `known` is given, the rows at the end of an item in which every
    target is missing are its future: `known` covers them, the values end before. Duplicate times are an error.

    Args:
        time: the column of times. None: a DatetimeIndex, else a column named in TIME_NAMES (in any case), else the only
            column of dates; a table may have none.
        item: the column of item names. None: the one named in ITEM_NAMES, if any.
        target: one or several columns. None: wide, every column that has no other role (all must be numeric); long, the
            one named in TARGET_NAMES, or the only numeric one left.
        known: columns of covariates known ahead. past: columns of covariates known for the past only.
        freq: a pandas offset alias for tables and arrays, a period alias for GluonTS entries. None: inferred, by
            `pd.infer_freq` or else from the most common difference.
        on_irregular: "error", or "resample": rows go to the nearest step of the regular grid that begins at the item's
            first time; rows that share a step are averaged, steps without a row are NaN (covariates too),
            of which there may be up to MAX_FILL for a row.

    Returns:
        At least one series.

    Raises:
        ValueError: anything that cannot be read so; the message names the file, column, item or times.
        ImportError: a table, and no pandas.
    """
    if on_irregular not in ("error", "resample"):
        raise ValueError(f"on_irregular is {on_irregular!r}; it must be 'error' or 'resample'")
    roles = _Roles(time, item, None if target is None else _names(target), _names(known), _names(past))
    if isinstance(source, (str, os.PathLike)):
        return _from_table(_read_file(Path(source)), str(source), roles, freq, on_irregular)
    if _is_pandas(source):
        return _from_table(source, "the table", roles, freq, on_irregular)
    if roles != _Roles(None, None, None, [], []):
        raise ValueError(f"time, item, target, known and past name columns of tables; the source is {_kind(source)}")
    if not isinstance(source, (np.ndarray, torch.Tensor)):
        if not isinstance(source, Iterable) or isinstance(source, Mapping):
            raise ValueError(f"the source is {_kind(source)}; legal are arrays, lists, tables, paths and datasets")
        source = list(source)
        if source and all(isinstance(entry, Mapping) for entry in source):
            return _from_gluonts(source, freq)
    return _from_arrays(source, freq)


@dataclass
class _Roles:
    """Which columns play which role; target None: not said."""

    time: str | None
    item: str | None
    target: list[str] | None
    known: list[str]
    past: list[str]

    def named(self) -> list[tuple[str, str]]:
        """(role, column) of every column that is named."""
        single = [(role, name) for role, name in (("time", self.time), ("item", self.item)) if name is not None]
        several = [("target", self.target or []), ("known", self.known), ("past", self.past)]
        return single + [(role, name) for role, names in several for name in names]


def _names(names: Names) -> list[str]:
    return [names] if isinstance(names, str) else list(names)


def _kind(source: Any) -> str:
    return f"of type {type(source).__name__}"


def _is_pandas(source: Any) -> bool:
    # By the class's home, so that arrays are read without importing pandas.
    return any(base.__module__.split(".")[0] == "pandas" for base in type(source).__mro__)


# ---- arrays and GluonTS datasets


def _from_arrays(source: Any, freq: str | None) -> list[Series]:
    if isinstance(source, (np.ndarray, torch.Tensor)):
        array = _to_double(source, "the array")
        if array.ndim not in (1, 2) or array.size == 0:
            raise ValueError(f"the array has shape {array.shape}; it must be [L] or [series, L] with values in it")
        rows = [array] if array.ndim == 1 else list(array)
    else:
        rows = [_to_double(row, f"series {number}") for number, row in enumerate(source)]
        if not rows:
            raise ValueError("the list has no series; it must have at least one")
        if all(row.ndim == 0 for row in rows):  # a plain list of numbers
            rows = [np.stack(rows)]
    return [Series(row, str(number), freq=freq) for number, row in enumerate(rows)]


def _to_double(array: Any, name: str) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        if array.is_complex():
            raise ValueError(f"{name} has dtype {array.dtype}; it must be real numbers")
        return array.detach().cpu().double().numpy()
    array = np.asarray(array)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"{name} has dtype {array.dtype}; it must be real numbers")
    return array.astype(np.float64)


def _from_gluonts(entries: list[Mapping[str, Any]], freq: str | None) -> list[Series]:
    found: list[Series] = []
    for number, entry in enumerate(entries):
        name = str(entry.get("item_id", number))
        if "target" not in entry:
            raise ValueError(f"entry {number} of the dataset has no 'target'; its keys are {sorted(entry)}")
        target = _to_double(entry["target"], f"target of {name!r}")
        if target.ndim not in (1, 2):
            raise ValueError(f"target of {name!r} has shape {target.shape}; it must be [L] or [C, L]")
        covariates = [_gluonts_features(entry, key, name) for key in ("feat_dynamic_real", "past_feat_dynamic_real")]
        start, own_freq = gluonts_start(entry, name, freq)
        channels = [(name, target)] if target.ndim == 1 else [(f"{name}/{c}", row) for c, row in enumerate(target)]
        found += [Series(row, channel, start, own_freq, *covariates) for channel, row in channels]
    return found


def _gluonts_features(entry: Mapping[str, Any], key: str, name: str) -> np.ndarray | None:
    """[F, steps] -> [steps, F]."""
    return None if entry.get(key) is None else _to_double(entry[key], f"{key} of {name!r}").T


# ---- tables


def _read_file(path: Path) -> Any:
    if not path.name.endswith(SUFFIXES):
        raise ValueError(f"{path} is not a file this reads; its name must end in one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"{path} is not there, or is not a file")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty; it must hold a table with at least one row")
    pd = pandas_module()
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from None
    # What `to_csv` makes of a default index is not a series.
    first = frame.columns[0] if len(frame.columns) else None
    if first == "Unnamed: 0" and frame[first].equals(pd.Series(range(len(frame)))):
        frame = frame.drop(columns=first)
    return frame


def _from_table(table: Any, label: str, roles: _Roles, freq: str | None, on_irregular: str) -> list[Series]:
    pd = pandas_module()
    frame = _as_frame(table, label)
    roles = _resolve(frame, label, roles)
    numbers = {name: _numeric(frame, name, label) for name in [*(roles.target or []), *roles.known, *roles.past]}
    times = _times(frame, label, roles.time)
    values = pd.DataFrame(numbers, index=range(len(frame)))
    if roles.item is None:
        groups: dict[Any, np.ndarray] = {None: np.arange(len(frame))}
    else:
        if frame[roles.item].isna().any():
            raise ValueError(f"column {roles.item!r} of {label} has missing values; every row must name its item")
        groups = values.groupby(frame[roles.item].to_numpy(), sort=False).indices
    found: list[Series] = []
    for name, rows in groups.items():
        where = label if name is None else f"item {str(name)!r} of {label}"
        own_times = None if times is None else times[rows]
        part, start, own_freq = regular(values.iloc[rows], own_times, freq, on_irregular, where)
        found += _channels(part, None if name is None else str(name), start, own_freq, roles, where)
    return found


def _as_frame(table: Any, label: str) -> Any:
    pd = pandas_module()
    if isinstance(table, pd.Series):
        table = table.to_frame("0" if table.name is None else table.name)
    if not isinstance(table, pd.DataFrame):
        raise ValueError(f"the source is {_kind(table)}; of pandas, only DataFrame and Series hold series")
    if isinstance(table.index, pd.MultiIndex):
        table = table.reset_index()
    if isinstance(table.columns, pd.MultiIndex):
        raise ValueError(f"{label} has columns of several levels; flatten them to one name each")
    frame = table.rename(columns=str)
    if frame.empty:
        raise ValueError(f"{label} is empty; it must have at least one row and one column")
    if not frame.columns.is_unique:
        raise ValueError(f"{label} has several columns named {frame.columns[frame.columns.duplicated()][0]!r}")
    return frame


def _resolve(frame: Any, label: str, roles: _Roles) -> _Roles:
    """The roles with what was not said found from names and dtypes."""
    taken: dict[str, str] = {}
    for role, name in roles.named():
        if name not in frame.columns:
            near = get_close_matches(name, frame.columns, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns are {list(frame.columns)}"
            raise ValueError(f"{label} has no column {name!r}, which {role} names; {hint}")
        if name in taken:
            raise ValueError(f"column {name!r} of {label} is named by both {taken[name]} and {role}")
        taken[name] = role
    free = [name for name in frame.columns if name not in taken]
    item = roles.item or _only([name for name in free if name.lower() in ITEM_NAMES], "item", label)
    free = [name for name in free if name != item]
    time = roles.time or _find_time(frame, label, free)
    free = [name for name in free if name != time]
    if not roles.target and time is None:
        _reject_counters(frame, label, free)
    target = roles.target or (free if item is None else _find_target(frame, label, free))
    if not target:
        raise ValueError(f"{label} has no column left for the target; its columns are {list(frame.columns)}")
    return _Roles(time, item, target, roles.known, roles.past)


def _reject_counters(frame: Any, label: str, free: list[str]) -> None:
    """A column of steps or years beside series is an index; as a series it would pass for a perfect forecast."""
    for name in free if len(free) > 1 and len(frame) > 2 else ():
        if frame[name].dtype.kind in "iu" and (np.diff(frame[name]) == 1).all():
            first, second = frame[name].iloc[:2]
            raise ValueError(
                f"column {name!r} of {label} counts {first}, {second}, ... and looks like an index; name the series as "
                "target, or drop the column"
            )


def _only(names: list[str], role: str, label: str) -> str | None:
    if len(names) > 1:
        raise ValueError(f"{label} has several columns that may be the {role}, {names}; say which with {role}=")
    return names[0] if names else None


def _find_time(frame: Any, label: str, free: list[str]) -> str | None:
    pd = pandas_module()
    if isinstance(frame.index, pd.PeriodIndex) or _is_dates(frame.index):
        return None
    named = [name for name in free if name.lower() in TIME_NAMES]
    return _only(named or [name for name in free if _is_dates(frame[name])], "time", label)


def _is_dates(column: Any) -> bool:
    pd = pandas_module()
    if pd.api.types.is_datetime64_any_dtype(column):
        return True
    if not (pd.api.types.is_object_dtype(column) or pd.api.types.is_string_dtype(column)):
        return False
    try:
        return bool(pd.to_datetime(column, format="ISO8601").notna().all())
    except (ValueError, TypeError):
        return False


def _find_target(frame: Any, label: str, free: list[str]) -> list[str]:
    pd = pandas_module()
    named = [name for name in free if name.lower() in TARGET_NAMES]
    numeric = [name for name in free if pd.api.types.is_numeric_dtype(frame[name])]
    found = _only(named or numeric, "target", label)
    return [] if found is None else [found]


def _numeric(frame: Any, name: str, label: str) -> np.ndarray:
    column = frame[name]
    if not pandas_module().api.types.is_numeric_dtype(column) or column.dtype.kind == "c":
        raise ValueError(
            f"column {name!r} of {label} has dtype {column.dtype}; it must be numeric (to leave it out name the others "
            "as target; if it tells the series apart name it as item)"
        )
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _times(frame: Any, label: str, time: str | None) -> pd.DatetimeIndex | None:
    """The rows' times; None where the table has none."""
    pd = pandas_module()
    index = frame.index if time is None else frame[time]
    if time is None and isinstance(index, pd.PeriodIndex):
        return index.to_timestamp()
    if time is None and not _is_dates(index):
        return None
    name = "the index" if time is None else f"column {time!r}"
    if pd.api.types.is_numeric_dtype(index):
        raise ValueError(f"{name} of {label} has dtype {index.dtype}; times must be dates, not numbers")
    try:
        times = pd.DatetimeIndex(pd.to_datetime(index))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{name} of {label} cannot be read as times: {error}") from None
    if times.hasnans:
        raise ValueError(f"{name} of {label} has no time in {int(times.isna().sum())} rows; every row must have one")
    return times


def _channels(part: Any, item: str | None, start: Any, freq: str | None, roles: _Roles, where: str) -> list[Series]:
    """The target columns of one item as series."""
    target = roles.target or []
    length = len(part)
    if roles.known:
        present = np.flatnonzero(part[target].notna().any(axis=1).to_numpy())
        if len(present) == 0:
            raise ValueError(f"{where} has no observed target, so that its known covariates have no past to end")
        length = int(present[-1]) + 1
    known = part[roles.known].to_numpy() if roles.known else None
    past = part[roles.past].to_numpy()[:length] if roles.past else None
    found = []
    for name in target:
        item_id = name if item is None else item if len(target) == 1 else f"{item}/{name}"
        found.append(Series(part[name].to_numpy()[:length].copy(), item_id, start, freq, known, past))
    return found
