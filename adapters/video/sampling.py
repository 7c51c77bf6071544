"""Clips of n frames out of a video file: where they begin, and at which times their frames are."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from .reader import TOLERANCE, VideoReader


@dataclass(frozen=True)
class VideoClip:
    """A clip.

    Args:
        frames: uint8 [T, H, W, C], T >= 1 frames of C = 1 (grey) or 3 (RGB) channels.
        fps: frames a second; None: not known.
        name: how messages call it.

    Raises:
        ValueError: anything else.
    """

    frames: Tensor
    fps: float | None = None
    name: str = ""

    def __post_init__(self) -> None:
        name, frames = self.name or "the clip", self.frames
        is_legal = isinstance(frames, Tensor) and frames.dtype == torch.uint8 and frames.dim() == 4
        if not is_legal or 0 in frames.shape or frames.shape[-1] not in (1, 3):
            found = f"{frames.dtype} {list(frames.shape)}" if isinstance(frames, Tensor) else f"a {type(frames)}"
            raise ValueError(
                f"{name} has frames that are {found}; they must be a torch.uint8 tensor [T, H, W, C], C = 1 or 3"
            )
        if self.fps is not None:
            check_fps(self.fps, name)

    @property
    def seconds(self) -> float | None:
        return None if self.fps is None else len(self.frames) / self.fps


def sample_clip(
    reader: VideoReader,
    frames: int,
    fps: float | None = None,
    start: float | None = 0.0,
    generator: Generator | None = None,
    stride: int = 1,
) -> VideoClip:
    """`frames` frames, 1 / fps seconds apart: at each time the one that the file shows, so one may come twice where the
    file has fewer, and some are passed over where it has more.

    Args:
        frames: n >= 1.
        fps: frames a second of the clip; None: the file's own.
        start: seconds of the first frame. None: random, any frame of the file that leaves room, each as likely.
        generator: for random starts; None: torch's global one.
        stride: every stride-th frame of the file is taken; only with fps None.

    Raises:
        ValueError: a file that is too short or broken, an illegal argument.
    """
    rate = clip_rate(reader.fps, fps, stride, reader.name)
    last = _last_start(reader, frames, rate)
    if start is None:
        places = math.floor((last + TOLERANCE) * reader.fps) + 1
        start = int(torch.randint(places, (), generator=generator)) / reader.fps
    elif not 0 <= start <= last + TOLERANCE:
        raise ValueError(
            f"{reader.name} has {reader.duration:g} s; start is {start} s, and for {frames} frames at {rate:g} a "
            f"second it must be from 0 to {last:g}"
        )
    shown = reader.frames_at([start + place / rate for place in range(frames)])
    return VideoClip(torch.from_numpy(shown), rate, reader.name)


def window_starts(
    reader: VideoReader, frames: int, fps: float | None = None, overlap: int = 0, stride: int = 1
) -> list[float]:
    """Where the clips begin, in seconds, that cut a file into windows of `frames` frames: every window that is whole.

    Args:
        fps, stride: as for `sample_clip`.
        overlap: frames that a window has in common with the next, fewer than `frames`.

    Raises:
        ValueError: a file that is shorter than one window, an illegal argument.
    """
    if not 0 <= overlap < frames:
        raise ValueError(f"overlap is {overlap} frames; it must be at least 0 and fewer than the window, {frames}")
    rate = clip_rate(reader.fps, fps, stride, reader.name)
    last = _last_start(reader, frames, rate)
    hop = (frames - overlap) / rate
    return [place * hop for place in range(math.floor((last + TOLERANCE) / hop) + 1)]


def available(reader: VideoReader, fps: float | None = None, start: float = 0.0) -> int:
    """How many frames, 1 / fps seconds apart, a file has from `start` seconds on; None: at its own rate."""
    last = reader.duration - min(1 / reader.fps, reader.duration)
    return max(math.floor((last - start + TOLERANCE) * (fps or reader.fps)) + 1, 0)


def clip_rate(own: float, fps: float | None, stride: int, name: str) -> float:
    """Frames a second at which a clip of `own` is taken: `fps`, or every `stride`-th of its frames.

    Raises:
        ValueError: no positive number, or both.
    """
    if stride < 1 or (fps is not None and stride > 1):
        raise ValueError(
            f"{name}: stride is {stride} and fps {fps}; stride must be at least 1, and 1 where fps is given"
        )
    return own / stride if fps is None else check_fps(fps, name)


def check_fps(fps: float, name: str) -> float:
    """Raises ValueError unless `fps` is a positive number."""
    if not 0 < fps < math.inf:
        raise ValueError(f"{name}: fps is {fps}; it must be a positive number of frames a second, or None")
    return fps


def _last_start(reader: VideoReader, frames: int, rate: float) -> float:
    """The latest start of a clip, a little before which its last frame is the file's last."""
    if frames < 1:
        raise ValueError(f"frames is {frames}; a clip has at least 1")
    own = min(1 / reader.fps, reader.duration)  # how long the file's last frame is shown
    last = reader.duration - own - (frames - 1) / rate
    if last < -TOLERANCE:
        raise ValueError(
            f"{reader.name} is too short: it has {reader.duration:g} s, and {frames} frames at {rate:g} a second need "
            f"{(frames - 1) / rate + own:g} s"
        )
    return max(last, 0.0)
