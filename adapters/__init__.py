"""Adapters: raw data of a modality <-> segments. Importing this package registers those that come with the library."""

from __future__ import annotations

from .base import ADAPTERS, Adapter, AdapterOptions, AutoAdapter, load_adapters, register_adapter
from .image import ImageAdapter
from .images import ImageSource, read_images
from .label import LabelAdapter
from .series import Series, read_series
from .timeseries import SeriesSegment, TimeSeriesAdapter, last_steps, stack_series

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterOptions",
    "AutoAdapter",
    "ImageAdapter",
    "ImageSource",
    "LabelAdapter",
    "Series",
    "SeriesSegment",
    "TimeSeriesAdapter",
    "last_steps",
    "load_adapters",
    "read_images",
    "read_series",
    "register_adapter",
    "stack_series",
]
