"""Timestamps as texts: which sentence tells a language model the span of an element."""

from __future__ import annotations

import string
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, field_validator

from ...schema import Strict
from ..text_states import LanguageModel
from .times import pandas_module

if TYPE_CHECKING:
    import pandas as pd

    Origin = tuple[pd.Timestamp, str]
    """The time of the first step of the horizon, and a pandas offset alias."""


class Timestamps(Strict):
    """Sentences about the spans of elements, which a language model's states stand for (AutoTimes, Liu et al. 2024,
    arXiv 2402.02370, section 3.2).

    Args:
        language_model: see `LanguageModel`.
        text: with {start} and {end}, the times at which the first and the last step of the element begin.
        time_format: of these times, as of `strftime`.
    """

    language_model: LanguageModel
    text: str = "This is Time Series from {start} to {end}"
    time_format: str = Field("%Y-%m-%d %H:%M:%S", min_length=1)

    @field_validator("text")
    @classmethod
    def _check_text(cls, text: str) -> str:
        found = {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}
        if not found or not found <= {"start", "end"}:
            raise ValueError("it must name {start} or {end} or both, and nothing else in braces")
        return text


def time_of_step(start: pd.Timestamp, freq: str, step: int) -> pd.Timestamp:
    """The last of `pd.date_range(start, periods=step + 1, freq=freq)`, without the others."""
    offset = _offset(freq)
    begin = offset.rollforward(_on_clock(start, offset))
    return begin + step * offset if step else begin


def span_texts(origins: Sequence[Origin], options: Timestamps, patch: int, past: int, future: int) -> list[list[str]]:
    """A text for each of the `past` elements of `patch` steps that end where an origin begins, and of the `future` ones
    from there on: for B origins, B lists of past + future texts.

    Hours and shorter steps pass in UTC; days and longer steps go by the calendar of the origin's time zone.
    """
    pd = pandas_module()
    firsts = [patch * (k - past) for k in range(past + future)]
    texts = np.empty((len(origins), len(firsts)), object)
    alike: dict[Any, list[int]] = {}
    for row, (time, freq) in enumerate(origins):
        alike.setdefault((freq, time.tz), []).append(row)
    for (freq, _), rows in alike.items():
        offset = _offset(freq)
        times = _on_clock(pd.DatetimeIndex([origins[row][0] for row in rows]), offset)
        for column, first in enumerate(firsts):
            starts = _after(times, offset, first).strftime(options.time_format)
            ends = _after(times, offset, first + patch - 1).strftime(options.time_format)
            told = [options.text.format(start=start, end=end) for start, end in zip(starts, ends, strict=True)]
            texts[rows, column] = told
    return [list(row) for row in texts]


def _after(times: pd.DatetimeIndex, offset: Any, steps: int) -> pd.DatetimeIndex:
    return times + steps * offset if steps else times


def _on_clock(time: Any, offset: Any) -> Any:
    """One or more times without their zone, unless steps are shorter than days: in spring a day has 23 hours."""
    pd = pandas_module()
    is_short = isinstance(offset, pd.offsets.Tick) and pd.Timedelta(offset) < pd.Timedelta(days=1)
    return time if is_short or time.tz is None else time.tz_localize(None)


@lru_cache(maxsize=64)
def _offset(freq: str) -> Any:
    return pandas_module().tseries.frequencies.to_offset(freq)
