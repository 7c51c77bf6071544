"""Adapters: raw data of a modality <-> segments. Importing this package registers those that come with the library."""

from __future__ import annotations

from .audio import AudioAdapter, AudioClip, AudioSource, read_audios
from .base import ADAPTERS, Adapter, AdapterOptions, AutoAdapter, load_adapters, register_adapter
from .image import ImageAdapter, ImageSource, read_images
from .label import LabelAdapter
from .text_states import LanguageModel, TextStates
from .timeseries import (
    Series,
    SeriesSegment,
    TimeSeriesAdapter,
    Timestamps,
    last_steps,
    read_series,
    stack_series,
    time_of_step,
)
from .video import VideoAdapter, VideoClip, VideoSource, open_video, read_videos

__all__ = [
    "ADAPTERS",
    "Adapter",
    "AdapterOptions",
    "AudioAdapter",
    "AudioClip",
    "AudioSource",
    "AutoAdapter",
    "ImageAdapter",
    "ImageSource",
    "LabelAdapter",
    "LanguageModel",
    "Series",
    "SeriesSegment",
    "TextStates",
    "TimeSeriesAdapter",
    "Timestamps",
    "VideoAdapter",
    "VideoClip",
    "VideoSource",
    "last_steps",
    "load_adapters",
    "open_video",
    "read_audios",
    "read_images",
    "read_series",
    "read_videos",
    "register_adapter",
    "stack_series",
    "time_of_step",
]
