"""Time series: patches of scaled values as elements."""

from __future__ import annotations

from .adapter import SeriesSegment, TimeSeriesAdapter
from .arrays import last_steps, stack_series
from .series import Series, read_series
from .timestamps import Timestamps, time_of_step

__all__ = [
    "Series",
    "SeriesSegment",
    "TimeSeriesAdapter",
    "Timestamps",
    "last_steps",
    "read_series",
    "stack_series",
    "time_of_step",
]
