"""Clips to files, .mp4 and .gif, and to a film strip that shows them at a glance.

Shapes: B clips, T frames, H x W pixels, C channels (1 or 3).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..files import check_path, whole_file
from ..image.pictures import SEPARATOR, SEPARATOR_VALUE, VISIBLE, montage, pillow, to_picture
from .reader import package

if TYPE_CHECKING:
    from PIL import Image

FILE, SUFFIXES = "a video file", (".mp4", ".gif")
# Frames a second where nobody said how many.
FPS = 25.0
# H.264's constant rate factor: 17 or 18 is said to look like the original (0 is lossless, 51 worst).
QUALITY = "17"
COLUMNS = 8  # frames of a clip in a film strip, at most


def save_video(clips: Sequence[Tensor], path: str | os.PathLike[str], fps: float | None) -> None:
    """Writes clips uint8 [T, H, W, C] of one size to one .mp4 (see `VideoWriter`) or .gif file, whole or not at all:
    one as it is, several side by side as `montage` tiles images, each holding its last frame until the longest ends.

    A .gif has 256 colours a frame and times in hundredths of a second, which are rounded so that they do not drift.

    Args:
        fps: frames a second; None: FPS.

    Raises:
        ValueError: another suffix, a folder that is missing.
        ImportError: PyAV, or for .gif Pillow, is missing.
    """
    path = check_path(path, FILE, SUFFIXES)
    frames, rate = tiled(clips), FPS if fps is None else fps
    with whole_file(path) as temporary:
        if path.suffix.lower() == ".gif":
            _write_gif(frames, temporary, rate)
            return
        with VideoWriter(temporary, rate) as writer:
            writer.write(frames)


class VideoWriter:
    """Writes an .mp4 file of H.264 (libx264) bit by bit; used in a `with` block. Compression loses a little, colours
    have half the resolution (yuv420p), and odd sides grow by one line that repeats the last.

    Args:
        growing: the file can be played at any moment and holds every frame that was written but the last (a fragmented
            MP4), at the price of a larger one.

    Raises:
        ValueError: another suffix than .mp4, a folder that is missing.
        ImportError: PyAV is missing.
    """

    def __init__(self, path: str | os.PathLike[str], fps: float, growing: bool = False) -> None:
        self.path = check_path(path, FILE, (".mp4",))
        self._package = package("av")
        self._rate = Fraction(fps).limit_denominator(1001)  # 30000/1001, say
        self._growing = growing
        self._stream: Any = None
        options = {"movflags": "frag_every_frame+empty_moov+default_base_moof", "flush_packets": "1"}
        self._container: Any = self._package.open(
            os.fspath(self.path), "w", format="mp4", container_options=options if growing else {}
        )

    def write(self, frames: Tensor) -> None:
        """Appends uint8 [T, H, W, C], T >= 1, of the same size each time."""
        high, wide = frames.shape[1:3]
        frames = frames.cpu().expand(-1, -1, -1, 3)
        even = pad(frames.permute(0, 3, 1, 2).float(), (0, wide % 2, 0, high % 2), mode="replicate").byte()
        if self._stream is None:
            self._stream = self._started(*even.shape[2:])
        for frame in even.permute(0, 2, 3, 1).contiguous():
            picture = self._package.VideoFrame.from_ndarray(frame.numpy(), format="rgb24")
            self._container.mux(self._stream.encode(picture))

    def _started(self, high: int, wide: int) -> Any:
        stream = self._container.add_stream("libx264", rate=self._rate)
        stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
        # Nothing waits in the encoder then.
        stream.options = {"crf": QUALITY} | ({"tune": "zerolatency"} if self._growing else {})
        stream.codec_context.thread_count = 1  # as many as there are cores do not make small clips faster
        return stream

    def close(self) -> None:
        if self._stream is not None:
            self._container.mux(self._stream.encode())
        self._container.close()

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def tiled(clips: Sequence[Tensor]) -> Tensor:
    """[T, H, W, C] of each clip -> [longest T, height, width, C]."""
    longest = max(len(clip) for clip in clips)
    held = [torch.cat([clip, clip[-1:].expand(longest - len(clip), -1, -1, -1)]) for clip in clips]
    return torch.stack([montage(frames) for frames in torch.stack(held, 1)])


def film_strip(clips: Sequence[Tensor]) -> Image.Image:
    """A row for each clip [T, H, W, C] of one size; in it at most COLUMNS frames, evenly spaced from the first to the
    last, with thin grey lines between them, small ones enlarged by a whole factor (nearest neighbour) to be seen."""
    columns = min(COLUMNS, max(len(clip) for clip in clips))
    factor = -(-VISIBLE // max(clips[0].shape[1:3]))
    rows = []
    for clip in clips:
        frames = clip[torch.linspace(0, len(clip) - 1, columns).round().long()]
        frames = frames.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
        cells = pad(frames, (0, 0, 0, SEPARATOR, 0, SEPARATOR), value=SEPARATOR_VALUE)
        rows.append(torch.cat(list(cells), 1))
    return to_picture(torch.cat(rows)[:-SEPARATOR, :-SEPARATOR])


def _write_gif(frames: Tensor, path: Path, fps: float) -> None:
    pillow()
    first, *others = [to_picture(frame) for frame in frames]
    ends = [round(place * 100 / fps) for place in range(len(frames) + 1)]
    durations = [10 * (end - start) for start, end in pairwise(ends)]
    first.save(path, format="GIF", save_all=True, append_images=others, duration=durations, loop=0)
