"""Videos: files by the time of their frames, and pixels, tubelets and tokenizers' codes and latents as elements."""

from __future__ import annotations

from .adapter import VideoAdapter
from .reader import VideoReader, open_video
from .sampling import VideoClip, sample_clip, window_starts
from .sources import VideoSource, read_videos

__all__ = [
    "VideoAdapter",
    "VideoClip",
    "VideoReader",
    "VideoSource",
    "open_video",
    "read_videos",
    "sample_clip",
    "window_starts",
]
