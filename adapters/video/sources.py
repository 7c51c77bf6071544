"""Readers: folders, manifests, parquet files, Hugging Face data sets and lists of videos -> a `VideoSource`."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ..clip_sources import ClipSource, Span, read_clips
from ..sources import Medium
from .clips import open_clip
from .reader import TOLERANCE, VideoReader, open_video
from .sampling import VideoClip, available

# What PyAV reads; decord reads the first six only, so it is PyAV that opens the others.
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".gif")
VIDEO_NAMES = ("video", "clip")
_VIDEOS = Medium("video", "videos", SUFFIXES, VIDEO_NAMES, feature="Video", extra="video")


@dataclass(frozen=True, eq=False)
class VideoSource(ClipSource):
    """A set of videos that are read one by one; `items` are anything that `open_clip` takes: paths, `VideoClip`s,
    arrays. Those with spans are paths."""

    def load(self, index: int) -> VideoClip:
        """All frames of clip `index`, in its own size and at its own rate; its `name` is its name here.

        Raises:
            ValueError: it cannot be read, or does not reach as far as its span; the message names it.
        """
        name = self.names[index]
        if self.spans is None:
            return replace(open_clip(self.items[index], name), name=name)
        with open_video(self.items[index]) as reader:
            start, count = frames_within(reader, self.spans[index], name)
            frames = reader.frames_at([start + place / reader.fps for place in range(count)])
            return VideoClip(torch.from_numpy(frames), reader.fps, name)


def frames_within(reader: VideoReader, span: Span | None, name: str, rate: float | None = None) -> tuple[float, int]:
    """Where a part of a file begins, in seconds, and how many frames, 1 / rate seconds apart, it has.

    Args:
        span: (start, end) in seconds; end None, and span None: until the end. A frame at `end` is no part of it.
        name: of the clip, for messages.
        rate: frames a second; None: the file's own.

    Raises:
        ValueError: a span that is not within the file; an end may be a frame too late, as rounded as that.
    """
    start, end = (0.0, None) if span is None else span
    rate, last = rate or reader.fps, reader.duration - 1 / reader.fps
    there = available(reader, rate, start)
    if not there:
        raise ValueError(f"{name}: start is {start:g} s; the file's last frame is at {max(last, 0.0):.3f} s")
    if end is None:
        return start, there
    if end > reader.duration + 1 / reader.fps:
        raise ValueError(f"{name}: end is {end:g} s; the file has {reader.duration:.3f} s")
    return start, min(there, max(math.ceil((end - start - TOLERANCE) * rate), 1))


def read_videos(
    source: Any, columns: Sequence[str] = (), video: str | None = None, pattern: str | None = None
) -> VideoSource:
    r"""Finds videos and what is known of them; the clips themselves are read by `load`.

    Sources:

    - a folder of videos, or of one folder per class, which is the column "class". Names that begin with a dot are left
      out, and so are files whose name does not end in one of SUFFIXES (`passed_over`);
    - a .jsonl manifest: an object a line, with `path` (relative to the manifest), optionally `start` and `end` (in
      seconds: the part of the file that is meant), and any other keys as columns;
    - a .parquet file whose video column holds paths (relative to it), or structs {bytes, path} with paths;
    - a `datasets.Dataset` of paths, or a folder that its `save_to_disk` wrote;
    - a list of anything that `open_clip` takes.

    Args:
        columns: which columns to read.
        video: a table's column of videos. None: the one named in VIDEO_NAMES.
        pattern: a regular expression that matches the whole name of a file (without folder and suffix); its named
            groups are columns. r"v_(?P<action>\w+)_g(?P<group>\d+)_c\d+" reads v_Archery_g01_c03.avi. Files that it
            does not match are left out (`passed_over`).

    Returns:
        At least one clip.

    Raises:
        ValueError: anything that cannot be read so, bytes of files in a table; the message names the file, row or
            column.
        ImportError: a table, and no pyarrow or datasets.
    """
    found = read_clips(source, _VIDEOS, VideoSource, columns, video, pattern)
    if isinstance(found.items, list | tuple):
        return found
    return replace(found, items=[_path(cell, name) for cell, name in zip(found.items, found.names, strict=True)])


def _path(cell: Any, name: str) -> str | os.PathLike[str]:
    """The path in a cell of a table."""
    if isinstance(cell, dict):  # of a Dataset
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if not isinstance(cell, (str, os.PathLike)):
        found = "the bytes of a file" if isinstance(cell, bytes) else f"a {type(cell).__name__}"
        raise ValueError(f"{name} holds {found}; a table of videos must hold their paths")
    return cell
