"""Adapters: raw data of a modality <-> segments. Importing this package registers those that come with the library."""

from __future__ import annotations

from .base import ADAPTERS, Adapter, AdapterOptions, AutoAdapter, load_adapters, register_adapter
from .series import Series, read_series
from .timeseries import SeriesSegment, TimeSeriesAdapter, last_steps, stack_series

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterOptions",
    "AutoAdapter",
    "Series",
    "SeriesSegment",
    "TimeSeriesAdapter",
    "last_steps",
    "load_adapters",
    "read_series",
    "register_adapter",
    "stack_series",
]
