"""Time series: patches of scaled values as elements."""

from __future__ import annotations

from .adapter import SeriesSegment, TimeSeriesAdapter, last_steps, stack_series
from .series import Series, read_series

__all__ = ["Series", "SeriesSegment", "TimeSeriesAdapter", "last_steps", "read_series", "stack_series"]
