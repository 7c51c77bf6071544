"""Timestamps of tables: their order, their frequency, and a regular grid where they have gaps; starts of GluonTS."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pandas as pd

# Resampling makes at most so many steps a row.
MAX_FILL = 100
# Frequencies that are looked for where times have gaps, as pandas offsets.
CALENDAR: tuple[tuple[str, dict[str, int]], ...] = (
    ("BDay", {}),
    ("MonthBegin", {}),
    ("MonthEnd", {}),
    ("QuarterBegin", {"startingMonth": 1}),
    ("QuarterEnd", {"startingMonth": 3}),
    ("YearBegin", {}),
    ("YearEnd", {}),
)


def pandas_module() -> Any:
    try:
        import pandas
    except ImportError:
        raise ImportError("reading tables needs pandas: pip install unimodal-ar[timeseries]") from None
    return pandas


def regular(
    part: Any, times: pd.DatetimeIndex | None, freq: str | None, on_irregular: str, where: str
) -> tuple[Any, pd.Timestamp | None, str | None]:
    """The rows of one item in order of time on a regular grid, its first time and its frequency."""
    if times is None:
        return part, None, freq
    order = np.argsort(times.asi8, kind="stable")
    part, times = part.iloc[order], times[order]
    if not times.is_unique:
        again = times[times.duplicated()].unique()
        raise ValueError(f"{where} has duplicate times: {_list(again)}; each may be there once per item")
    offset = _offset(times, freq)
    if offset is None:  # a single row
        return part, times[0], None
    steps, on_grid = _steps(times, offset)
    bad = ~on_grid | np.insert(np.diff(steps) != 1, 0, False)
    if not bad.any():
        return part, times[0], offset.freqstr
    if on_irregular == "error":
        raise ValueError(
            f"{where} has irregular times: {_list(times[bad])} do not follow the time before by one step of "
            f"{offset.freqstr!r}; mend them, give another freq, or pass on_irregular='resample'"
        )
    count = int(steps[-1]) + 1
    if count > MAX_FILL * len(times):  # a stray time would fill the memory
        raise ValueError(
            f"{where} cannot be resampled: its {len(times)} rows from {times[0]} to {times[-1]} would become {count} "
            f"steps of {offset.freqstr!r}, more than {MAX_FILL} a row; remove stray times or give a longer freq"
        )
    start = times[0] if on_grid[0] else _nearest(times[0], offset)
    return part.groupby(steps).mean().reindex(range(count)), start, offset.freqstr


def _nearest(time: pd.Timestamp, offset: Any) -> pd.Timestamp:
    before, after = offset.rollback(time), offset.rollforward(time)
    return before if time - before < after - time else after


def _list(times: pd.DatetimeIndex) -> str:
    more = f" and {len(times) - 3} more" if len(times) > 3 else ""
    return ", ".join(map(str, times[:3])) + more


def _offset(times: pd.DatetimeIndex, freq: str | None) -> Any:
    """The step as a pandas offset: given, inferred, or the most common one; None for a single time."""
    pd = pandas_module()
    if freq is not None:
        try:
            offset = pd.tseries.frequencies.to_offset(freq)
        except ValueError:
            offset = None
        if offset is None or offset.n < 1:
            raise ValueError(f"freq is {freq!r}; it must be a pandas offset alias such as 'h', 'D' or 'MS'")
        return offset
    inferred = pd.infer_freq(times) if len(times) > 2 else None
    if inferred is not None:
        return pd.tseries.frequencies.to_offset(inferred)
    if len(times) == 1:
        return None
    # Their step has no fixed length, so that the most common difference is not it.
    for name, options in CALENDAR:
        offset = getattr(pd.offsets, name)(**options)
        steps, on_grid = _steps(times, offset)
        if on_grid.all() and _most_common(np.diff(steps)) == 1:
            return offset
    return pd.tseries.frequencies.to_offset(pd.Timedelta(_most_common(np.diff(times.as_unit("ns").asi8)), "ns"))


def _most_common(numbers: np.ndarray) -> int:
    """The smallest of the most common."""
    found, counts = np.unique(numbers, return_counts=True)
    return int(found[counts.argmax()])


def _steps(times: pd.DatetimeIndex, offset: Any) -> tuple[np.ndarray, np.ndarray]:
    """[rows] the nearest step of the grid that begins at the first time, and whether the time is on it."""
    pd = pandas_module()
    if times.tz is not None:  # hours pass in UTC, days and longer on the local calendar
        is_short = isinstance(offset, pd.offsets.Tick) and pd.Timedelta(offset) < pd.Timedelta(days=1)
        times = times.tz_convert(None) if is_short else times.tz_localize(None)
    if isinstance(offset, pd.offsets.Tick):  # without the grid, which a stray time would make huge
        since, step = times.as_unit("ns").asi8 - times.as_unit("ns").asi8[0], pd.Timedelta(offset).value
        return (since + step // 2) // step, since % step == 0
    # An extra step on either side: the first and last time need not be on the grid.
    grid = pd.date_range(times[0] - offset, times[-1] + offset, freq=offset)
    steps = grid.get_indexer(times, method="nearest")
    return steps - steps[0], grid[steps] == times


def gluonts_start(entry: Mapping[str, Any], name: str, freq: str | None) -> tuple[pd.Timestamp | None, str | None]:
    """The time of a GluonTS entry's first value, None where it has none, and its offset alias."""
    start = entry.get("start")
    if start is None:
        return None, freq
    if not isinstance(start, pandas_module().Period):
        start = _period(start, name, freq or entry.get("freq"))
    elif freq is not None:
        raise ValueError(f"freq is {freq!r}, but start of {name!r} is {start!r}, which carries its own; leave freq out")
    return start.to_timestamp(), _period_freq(start.freqstr)


def _period(start: Any, name: str, freq: Any) -> pd.Period:
    """A start that is not a period yet, as one of `freq`."""
    pd = pandas_module()
    where = f"start of {name!r} is {start!r}"
    try:
        time = pd.Timestamp(start) if isinstance(start, (str, date, np.datetime64)) else pd.NaT
    except ValueError:
        time = pd.NaT
    if time is pd.NaT or time.tz is not None:
        raise ValueError(f"{where}; it must be a pd.Period, or a time without a time zone (str, datetime, datetime64)")
    if freq is None:
        raise ValueError(f"{where} and has no frequency; pass freq=, put 'freq' into the entry or make it a pd.Period")
    try:
        return pd.Period(time, freq=freq)
    except (ValueError, TypeError):
        raise ValueError(f"{where} with freq {freq!r}; freq must be a pandas period alias such as 'h' or 'M'") from None


@lru_cache(maxsize=64)
def _period_freq(freq: str) -> str:
    """The offset alias of the starts of periods: "M" of a period is "MS" of a timestamp, "W-SUN" is "W-MON"."""
    pd = pandas_module()
    # Ten, so that business days show their weekend.
    return pd.infer_freq(pd.period_range("2000-01-03", periods=10, freq=freq).to_timestamp()) or freq
