"""Videos that were read once, the windows cut from them, and what is kept of these in memory.

Shapes: n windows, B of a batch, T frames of a window, H x W pixels, C channels, N elements.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..adapters import LabelAdapter, VideoAdapter, VideoClip, open_video
from ..adapters.clip_sources import ClipSource
from ..adapters.video.clips import open_clip, to_frames
from ..adapters.video.sources import frames_within
from ..segment import Segment
from .clip_set import ClipDataset, ClipSet
from .source_set import CHUNK

AT_ONCE = 16  # frames that are decoded before they are brought to the adapter's size: those of a file may be large
Frames = Callable[[Sequence[int]], Tensor]


class Window(NamedTuple):
    """A window of a clip.

    Attributes:
        row: of the window in the set.
        start: frame of the clip at which it begins, or what follows its anchor does.
        mirrored: whether left and right are exchanged.
    """

    row: int
    start: int
    mirrored: bool = False


class VideoSet(ClipSet):
    """The clips of one source that can be read, cut into windows of the adapter's length; what is left at the end of a
    clip is in no fixed window, and a clip shorter than a window is one that cannot be read.

    What is kept of a clip are all its frames at the adapter's rate and in its size, uint8 [frames, H, W, C]; or, with a
    tokenizer, values [versions, frames, ...], or where that joins frames [versions, windows, N, ...], versions being as
    it is and, if asked for, mirrored. What joins frames makes its values of each window alone, but with an anchor of
    the whole clip, out of whose steps windows are then put together.

    Not in memory: a file is opened, read and closed whenever a window of it is used. What was checked of it beforehand
    is that it can be opened and that its last window can be decoded: damage elsewhere ends the training with a sentence
    that names the file.

    Args:
        overlap: frames that neighbouring windows of a clip share.
        anchor: so many first frames of each window are the clip's first.
        flip: windows are asked for mirrored, too.
        source, name, adapter, labels, in_memory, trained: as for `ClipSet`.
    """

    made: ClassVar[str] = "a tokenizer makes of videos"

    def __init__(
        self,
        source: ClipSource,
        name: str,
        adapter: VideoAdapter,
        labels: Mapping[str, tuple[LabelAdapter, str]],
        overlap: int = 0,
        anchor: int = 0,
        flip: bool = False,
        in_memory: bool = True,
        trained: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.anchor, self.flip = anchor, flip
        self._moving = adapter.frames - anchor  # frames of a window that are not its anchor
        self._hop = self._moving - overlap
        self._lengths: list[int] = []  # of the clips, in frames
        super().__init__(source, name, adapter, labels, in_memory, trained)

    def window(self, row: int) -> Window:
        """The fixed window of a row."""
        return Window(row, self.anchor + self._windows[row] * self._hop)

    def random_window(self, row: int) -> Window:
        """A window of the same clip that begins at any frame, as likely each, from torch's global generator."""
        ends = self._lengths[int(self.clips[row])] - self._moving + 1
        return Window(row, int(torch.randint(self.anchor, ends, ())))

    def frames(self, window: Window) -> Tensor:
        """uint8 [T, H, W, C]: a window as it was read, also where a tokenizer's values are kept."""
        clip, places = int(self.clips[window.row]), self._frames(window.start)
        if self._kept and not self._encoded:
            frames = torch.from_numpy(self._kept[clip])[places]
        else:
            with _opened(self.source, self.places[clip], self.adapter) as (_, read):
                frames = read(places)
        return frames.flip(2) if window.mirrored else frames

    def segment(self, items: Sequence[Window]) -> Segment:
        """These windows as elements."""
        if not self._encoded:
            return self.adapter.encode_frames(torch.stack([self.frames(window) for window in items]))
        return self._stacked([self._values_of(window) for window in items])

    def _load(self, place: int) -> Tensor | int:
        """All frames of a clip; the number of them, where they are not kept."""
        with _opened(self.source, place, self.adapter) as (length, read):
            if length < self.adapter.frames:
                raise ValueError(
                    f"{self.source.names[place]} is too short: it has {length} frames at the adapter's rate, and must "
                    f"have {self.adapter.frames}"
                )
            if self.in_memory or self._encoded:
                parts = [range(length)[start : start + AT_ONCE] for start in range(0, length, AT_ONCE)]
                return torch.cat([read(part) for part in parts])
            read(self._frames(length - self._moving))
            return length

    def _made(self, loaded: Tensor | int) -> tuple[int, Tensor | None]:
        length = loaded if isinstance(loaded, int) else len(loaded)
        self._lengths.append(length)
        count = (length - self.adapter.frames) // self._hop + 1
        if isinstance(loaded, int) or not self._encoded:
            return count, None if isinstance(loaded, int) else loaded
        versions = [loaded, loaded.flip(2)] if self.flip else [loaded]
        return count, self._compact(torch.stack([self._values(frames, count) for frames in versions]))

    def _values(self, frames: Tensor, count: int) -> Tensor:
        """Of all frames of a clip, [frames, ...]; where the tokenizer joins them, of its windows, [windows, N, ...]."""
        if not self.adapter.joins_frames:
            parts = [self.adapter.encode_frames(some[None]).values for some in frames.split(CHUNK)]
            return torch.cat(parts, 1)[0].unflatten(0, (len(frames), -1))
        if self.anchor:
            return self._anchored(frames, count)
        windows = [frames[start : start + self._moving] for start in range(0, count * self._hop, self._hop)]
        return torch.cat([self.adapter.encode_frames(window[None]).values for window in windows])

    def _anchored(self, frames: Tensor, count: int) -> Tensor:
        """Windows [windows, N, ...] of steps of the whole clip: in it they follow each other, as they do in a long
        video that is drawn with a sink."""
        segment = self.adapter.encode_frames(frames[: self.adapter.whole(len(frames))][None])
        steps = segment.values[0].unflatten(0, (segment.grid[0], -1))
        moving, hop = (number // self.adapter.step for number in (self._moving, self._hop))
        anchor = self.adapter.grid[0] - moving
        starts = range(anchor, anchor + count * hop, hop)
        return torch.stack(
            [torch.cat([steps[:anchor], steps[start : start + moving]]).flatten(0, 1) for start in starts]
        )

    def _values_of(self, window: Window) -> np.ndarray:
        """Kept values [N, ...]."""
        kept = self._kept[int(self.clips[window.row])][int(window.mirrored)]
        if self.adapter.joins_frames:
            return kept[self._windows[window.row]]
        return np.concatenate(kept[self._frames(window.start)])

    def _frames(self, start: int) -> list[int]:
        """The frames of a window: its anchor, and those from `start` on."""
        return [*range(self.anchor), *range(start, start + self._moving)]


class VideoDataset(ClipDataset):
    """Some windows of a VideoSet; a batch is encoded at once, when it is collated.

    Args:
        random_starts: a window begins at a random frame of its clip each time it is used, as `VideoSet.random_window`.
        flip: half of the windows are mirrored, drawn likewise.
    """

    clip_set: VideoSet

    def __init__(self, clip_set: VideoSet, rows: Tensor, random_starts: bool = False, flip: bool = False) -> None:
        super().__init__(clip_set, rows)
        self.random_starts, self.flip = random_starts, flip

    @property
    def anchor(self) -> int:
        """So many first frames of each window are the clip's first."""
        return self.clip_set.anchor

    def __getitem__(self, index: int) -> Window:
        row = self.rows[index]
        window = self.clip_set.random_window(row) if self.random_starts else self.clip_set.window(row)
        return window._replace(mirrored=self.flip and bool(torch.rand(()) < 0.5))

    def frames(self, count: int | None = None) -> Iterator[Tensor]:
        """uint8 [T, H, W, C] of each fixed window, or of so many, evenly spread over them (see `spread`)."""
        return (self.clip_set.frames(self.clip_set.window(self.rows[i])) for i in self.spread(count))


@contextmanager
def _opened(source: ClipSource, place: int, adapter: VideoAdapter) -> Iterator[tuple[int, Frames]]:
    """How many frames a clip has at the adapter's rate, and what reads some of them, in the adapter's size; of a file
    no others are decoded than those that are asked for and what they depend on."""
    item, name = source.items[place], source.names[place]
    if not isinstance(item, (str, os.PathLike)):
        frames = adapter.frames_of(open_clip(item, name))
        yield len(frames), lambda places: frames[list(places)]
        return
    with open_video(item) as reader:
        rate = adapter.rate(reader.fps)
        assert rate is not None  # since the file has one
        start, length = frames_within(reader, None if source.spans is None else source.spans[place], name, rate)

        def read(places: Sequence[int]) -> Tensor:
            shown = reader.frames_at([start + number / rate for number in places])
            return to_frames(VideoClip(torch.from_numpy(shown), rate, name), adapter.size, adapter.channels)

        yield length, read
