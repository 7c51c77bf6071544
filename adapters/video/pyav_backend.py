"""Frames by PyAV, that is by the FFmpeg in its wheels: by timestamp, from the key frame before."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .reader import TOLERANCE, VideoReader, broken, check_rate, package

# Seconds: frames this far ahead are decoded up to, those further away are sought.
AHEAD = 2


class PyAVReader(VideoReader):
    """See `VideoReader`.

    Raises:
        ValueError: the file is no video, broken, truncated or without timestamps.
        ImportError: PyAV is missing.
    """

    backend = "pyav"
    # Of PyAV: the file, its stream, the frames from where it stands on, the last of them and the one after it. None:
    # closed, or nothing read yet.
    _container: Any = None
    _stream: Any = None
    _decoder: Any = None
    _here: Any = None
    _next: Any = None

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self._package = package("av")
        self._ticks: list[int] = []  # of all frames, where the file is to be read from the beginning
        try:
            with self._failing():
                first = self._open()
                self._origin = first.pts
                self._turns = round(first.rotation / 90)  # counterclockwise
                self.size = (first.width, first.height) if self._turns % 2 else (first.height, first.width)
                self.fps = check_rate(self._stream.average_rate or self._stream.guessed_rate, self.name)
                self.duration = float((self._end() - self._origin) * self._stream.time_base)
                self.num_frames = self._stream.frames or round(self.duration * self.fps)
        except BaseException:
            self.close()
            raise

    def _open(self) -> Any:
        """Opens the file, or opens it again; returns the first frame."""
        self.close()
        self._container = self._package.open(self.name, metadata_errors="ignore")
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            raise ValueError(f"{self.name} holds no video stream; it must hold one")
        self._stream.thread_type = "SLICE"  # threads for whole frames cost memory, and start late after every seek
        if not self._ticks and self._container.format.name == "avi" and self._stream.codec_context.has_b_frames:
            # AVI tells when frames are decoded, not when they are shown: only their order tells, once all are decoded.
            self._ticks = sorted(packet.pts for packet in self._container.demux(self._stream) if packet.pts is not None)
            return self._open()
        self._decoder = self._timed()
        first = self._decoded()
        if first is None:
            raise broken(self.name, "it has no frame with a time")
        return first

    def _timed(self) -> Iterator[Any]:
        """The frames from where the file stands on, those that have a time."""
        frames = self._container.decode(self._stream)
        if not self._ticks:
            yield from (frame for frame in frames if frame.pts is not None)
            return
        for frame, tick in zip(frames, self._ticks, strict=False):  # some packets hold no frame
            frame.pts = tick
            yield frame

    def _end(self) -> int:
        """Where the last packet ends, in ticks. What the file tells is checked by this: a part of it may be missing."""
        stream, container = self._stream, self._container
        told = stream.duration
        if told is None:  # Matroska tells that of the longest stream only
            told = math.ceil((container.duration or 0) / 1_000_000 / stream.time_base)
        container.seek(self._origin + told, stream=stream)
        packets = [packet for packet in container.demux(stream) if packet.pts is not None]
        self._here = None
        if not packets:
            raise broken(self.name, f"its end, at {float(told * stream.time_base):g} s, is not there")
        frame = round(1 / (self.fps * stream.time_base))
        found = max(packet.pts + (packet.duration or frame) for packet in packets)
        return max(found, self._origin + (stream.duration or 0))

    def _shown(self, times: np.ndarray) -> np.ndarray:
        if self._container is None:
            raise ValueError(f"{self.name} is closed; open it again to read frames")
        with self._failing():
            return np.stack([self._frame(time) for time in times.tolist()])

    def _frame(self, time: float) -> np.ndarray:
        """[H, W, 3] of one time."""
        tick = self._stream.time_base
        limit = self._origin + math.floor(Fraction(time + TOLERANCE) / tick)
        if self._here is None or self._is_apart(limit):
            self._here = self._sought(limit)
            self._next = self._decoded()
        while self._next is not None and self._next.pts <= limit:
            self._here, self._next = self._next, self._decoded()
        # After the last frame, which is shown for as long as it tells, only rounding errors are left.
        end = self._here.pts + (self._here.duration or 0) + 2 / (Fraction(self.fps) * tick)
        if self._next is None and limit > end:
            raise broken(self.name, f"its last frame is at {float((self._here.pts - self._origin) * tick):g} s")
        array = self._here.to_ndarray(format="rgb24")
        array = np.rot90(array, self._turns) if self._turns % 4 else array
        if array.shape[:2] != self.size:
            raise ValueError(f"{self.name} changes its size from {self.size} to {array.shape[:2]}; it must keep it")
        return array

    def _is_apart(self, limit: int) -> bool:
        """Whether to seek, not to decode on from where it stands."""
        here = self._here.pts
        return limit < here or (not self._ticks and limit > here + AHEAD / self._stream.time_base)

    def _sought(self, limit: int) -> Any:
        """A frame that is not after `limit`, in ticks, of those from which everything after it can be decoded."""
        if self._ticks:
            return self._open()
        back = 0
        while True:
            start = max(limit - back, self._origin)
            self._container.seek(start, stream=self._stream)
            self._decoder = self._timed()
            # Frames before the key frame refer to what was not decoded (open groups of pictures). And files may be
            # sought by the order of decoding: the key frame's own time is later than where it stands.
            first = next((frame for frame in self._decoder if frame.key_frame), None)
            if first is not None and first.pts <= limit:
                return first
            if start == self._origin:
                return self._open()  # whatever the seek went by, this is the beginning
            back = 2 * back + math.ceil(1 / self._stream.time_base)

    def _decoded(self) -> Any:
        """The next frame; None: there is none."""
        return next(self._decoder, None)

    def close(self) -> None:
        if self._container is not None:
            self._container.close()
        for name in ("_container", "_stream", "_decoder", "_here", "_next"):
            setattr(self, name, None)

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except self._package.FFmpegError as error:
            raise broken(self.name, str(error.strerror)) from None
