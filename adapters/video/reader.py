"""What reads video files: frames by the time at which they are shown, whichever package decodes them."""

from __future__ import annotations

import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

# Seconds by which a time may lie before that of its frame. Matroska rounds times to milliseconds, decord to float32.
TOLERANCE = 0.0005
# Longest clip in seconds that decord is chosen for: it has to decode from the beginning, see `DecordReader`.
LONG = 20.0


class VideoReader(ABC):
    """An open video file. Time 0 is that of its first frame. To be closed, or used in a `with` block.

    Open, read and close it in the process that wants the frames: what decoders hold survives neither fork nor pickle.

    Attributes:
        backend: name in BACKENDS of what reads it.
        name: how messages call the file.
        duration: seconds from the beginning of the first frame to the end of the last one.
        fps: frames a second, on average.
        size: (H, W) of the frames, upright.
        num_frames: how many the file tells of, which may be some more than there are.
    """

    backend: ClassVar[str]
    name: str
    duration: float
    fps: float
    size: tuple[int, int]
    num_frames: int

    def frames_at(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """The frame that is shown at each time, the last one that begins not later (to TOLERANCE): uint8 [n, H, W, 3],
        RGB, turned upright as the file tells.

        Args:
            times: n >= 1 seconds in 0 <= time < duration, in any order; fastest in that of the file.

        Raises:
            ValueError: no such times, a file that is broken; the message names the file.
        """
        wanted = np.asarray(times, np.float64)
        # Written so that NaN fails.
        if wanted.ndim != 1 or not len(wanted) or not ((wanted >= 0) & (wanted < self.duration)).all():
            wrong = wanted[~((wanted >= 0) & (wanted < self.duration))] if wanted.ndim == 1 else wanted
            raise ValueError(
                f"{self.name}: times hold {wrong.tolist()}; they must be a list of at least one time in seconds, from "
                f"0 to less than the clip's duration, {self.duration:g}"
            )
        in_order, places = np.unique(wanted, return_inverse=True)
        return self._shown(in_order)[places]

    @abstractmethod
    def _shown(self, times: np.ndarray) -> np.ndarray:
        """`frames_at` for legal times that rise."""

    @abstractmethod
    def close(self) -> None:
        """Frees everything; nothing can be read any more. May be called again."""

    def __enter__(self) -> VideoReader:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


# Name -> module of this package and the class in it.
BACKENDS = {"decord": ("decord_backend", "DecordReader"), "pyav": ("pyav_backend", "PyAVReader")}


def open_video(path: str | os.PathLike[str], backend: str | None = None) -> VideoReader:
    """Opens a video file.

    Args:
        backend: "decord" or "pyav". None: decord, and PyAV where decord is not installed, fails on the file (now or
            when frames are read) or would be slow, since the file is longer than LONG.

    Raises:
        ValueError: no such backend; the file is not there, empty, no video, broken or truncated; the message names it.
        ImportError: the backend is missing, or without a name both are.
    """
    if backend is not None and backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it must be one of {', '.join(BACKENDS)}, or None for any")
    path = _checked(Path(path))
    if backend is not None:
        return _opener(backend)(path)
    if not _is_there("decord"):
        return _opener("pyav")(path)
    if not _is_there("av"):
        return _opener("decord")(path)
    return _EitherReader(path)


class _EitherReader(VideoReader):
    """decord's reader until it fails on the file; from then on PyAV's."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path)
        try:
            reader = _opener("decord")(path)
        except ValueError:
            reader = None
        if reader is not None and reader.duration > LONG:
            reader.close()
            reader = None
        self._use(_opener("pyav")(path) if reader is None else reader)

    def _use(self, reader: VideoReader) -> None:
        self._reader = reader
        self.backend = reader.backend  # type: ignore[misc]  # one object's own, since it may change
        self.duration, self.fps, self.size, self.num_frames = (
            reader.duration,
            reader.fps,
            reader.size,
            reader.num_frames,
        )

    def _shown(self, times: np.ndarray) -> np.ndarray:
        if self.backend == "decord":
            try:
                return self._reader._shown(times)
            except ValueError:
                self._reader.close()
                self._use(_opener("pyav")(self.path))
        return self._reader._shown(times)

    def close(self) -> None:
        self._reader.close()


def last_shown(starts: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Place in `starts`, seconds at which frames begin, rising from 0, of the one that is shown at each time."""
    return np.searchsorted(starts, times + TOLERANCE, side="right") - 1


def broken(name: str, reason: str = "") -> ValueError:
    """What is raised for a file that cannot be decoded."""
    return ValueError(f"{name} is no video that can be decoded, or broken or truncated{reason and f': {reason}'}")


def check_rate(rate: Any, name: str) -> float:
    """Frames a second as a float, or ValueError."""
    if rate is None or not 0 < float(rate) < math.inf:
        raise ValueError(f"{name} tells no frame rate; a video has one")
    return float(rate)


def package(name: str) -> Any:
    """A package that decodes, or ImportError with what to install."""
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError):  # the latter two: a shared library that is missing
        raise ImportError(
            f"the package {name}, which reads videos, is missing: pip install unimodal-ar[video]"
        ) from None


def _is_there(name: str) -> bool:
    try:
        package(name)
    except ImportError:
        return False
    return True


def _opener(backend: str) -> Callable[[Path], VideoReader]:
    module, name = BACKENDS[backend]
    return getattr(import_module(f"{__package__}.{module}"), name)


def _checked(path: Path) -> Path:
    """Raises ValueError for what no decoder has to be asked."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder; it must be a video file")
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise ValueError(f"{path} is empty (0 bytes); it must hold a video")
    except FileNotFoundError:
        raise ValueError(f"{path} is not there") from None
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror or error}") from None
    return path
