"""Frames by decord 0.6, which is unmaintained; what is known to go wrong in it is avoided or refused here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .reader import VideoReader, broken, check_rate, last_shown, package

# Files of other kinds are refused: of an MPEG transport stream, for one, decord gives wrong frames without a word.
SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi")


class DecordReader(VideoReader):
    """See `VideoReader`.

    It decodes from the beginning of the file up to the last frame that is wanted. Where a file has open groups of
    pictures (x265's default), frames that decord seeks to are off by some, and nothing tells which files those are. It
    uses one thread: with more, decord is known to hang in forked workers.

    Raises:
        ValueError: the file is of a kind that is not in SUFFIXES, is no video, broken, truncated, without timestamps,
            or turned by 90 degrees, of which decord mixes up the pixels.
        ImportError: decord is missing.
    """

    backend = "decord"

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._package = decord = package("decord")
        decord.logging.set_level(decord.logging.QUIET)
        if path.suffix.lower() not in SUFFIXES:
            raise ValueError(
                f"{path} is not read by decord, only files that end in {', '.join(SUFFIXES)} are; the backend must be "
                "'pyav'"
            )
        with self._failing():
            self._reader: Any = decord.VideoReader(self.name, ctx=decord.cpu(0), num_threads=1)
            spans = self._reader.get_frame_timestamp(range(len(self._reader))).astype(np.float64)
            shape = self._reader.next().shape
        self._next = 1  # place of the frame that comes next
        if spans[0, 0] < 0 or not (np.diff(spans[:, 0]) >= 0).all():
            raise ValueError(f"{path} has frames whose times decord does not know; the backend must be 'pyav'")
        if shape[2:] != (3,):
            raise ValueError(f"{path} is turned by its metadata, which decord cannot; the backend must be 'pyav'")
        self._starts = spans[:, 0] - spans[0, 0]
        self.duration = float(spans[-1, 1] - spans[0, 0])
        self.fps = check_rate(self._reader.get_avg_fps(), self.name)
        self.size = (shape[0], shape[1])
        self.num_frames = len(spans)

    def _shown(self, times: np.ndarray) -> np.ndarray:
        if self._reader is None:
            raise ValueError(f"{self.name} is closed; open it again to read frames")
        frames: list[np.ndarray] = []
        last = -1
        with self._failing():
            for place in last_shown(self._starts, times).tolist():
                frames.append(frames[-1] if place == last else self._decoded(place))
                last = place
        return np.stack(frames)

    def _decoded(self, place: int) -> np.ndarray:
        if place < self._next:
            self._reader.seek(0)
            self._next = 0
        for _ in range(place - self._next):  # its skip_frames seeks, too
            self._reader.next()
        self._next = place + 1
        return self._reader.next().asnumpy()

    def close(self) -> None:
        self._reader = None

    @contextmanager
    def _failing(self) -> Iterator[None]:
        """What decord raises tells of its source code, not of the file. DECORDError is no RuntimeError; a file without
        frames is an AssertionError."""
        try:
            yield
        except (self._package.DECORDError, RuntimeError, AssertionError, StopIteration):
            raise broken(self.name) from None
