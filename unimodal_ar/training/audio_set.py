"""Clips of audio that were read once, the windows cut from them, and what is kept of these in memory.

Shapes: n windows, B of a batch, C channels, S samples of a window, N elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from torch import Tensor

from ..adapters import LabelAdapter
from ..adapters.audio.adapter import AudioAdapter
from ..adapters.clip_sources import ClipSource
from ..segment import Segment
from .clip_set import ClipDataset, ClipSet
from .source_set import CHUNK

PCM = 32768  # full scale of 16 bits


class AudioSet(ClipSet):
    """The clips of one source that can be read, cut into windows of the adapter's length. What is kept of a clip is its
    wave [C, samples], or values [windows, N, ...].

    Args:
        overlap: seconds that neighbouring windows of a clip share.
        source, name, adapter, labels, in_memory, trained: as for `ClipSet`.
    """

    made: ClassVar[str] = "a codec makes of audio"

    def __init__(
        self,
        source: ClipSource,
        name: str,
        adapter: AudioAdapter,
        labels: Mapping[str, tuple[LabelAdapter, str]],
        overlap: float = 0.0,
        in_memory: bool = True,
        trained: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.overlap = overlap
        super().__init__(source, name, adapter, labels, in_memory, trained)

    def wave(self, row: int) -> Tensor:
        """float32 [C, S]: a window as it was read, also where a codec's values are kept."""
        clip = int(self.clips[row])
        wave = torch.from_numpy(self._kept[clip]) if self._kept and not self._encoded else self._load(self.places[clip])
        start = self._windows[row] * (self.adapter.samples - round(self.overlap * self.adapter.sample_rate))
        part = wave[:, start : start + self.adapter.samples]
        (window,) = self.adapter.chunks(part if part.is_floating_point() else part.float() / PCM)
        return window

    def segment(self, items: Sequence[int]) -> Segment:
        """The windows of these rows as elements."""
        if not self._encoded:
            return self.adapter.encode_waves(torch.stack([self.wave(row) for row in items]))
        return self._stacked([self._kept[int(self.clips[row])][self._windows[row]] for row in items])

    def _load(self, place: int) -> Tensor:
        (wave,) = self.adapter.waves(self.source.load(place))
        return wave

    def _made(self, loaded: Tensor) -> tuple[int, Tensor | None]:
        windows = self.adapter.chunks(loaded, self.overlap)
        if self._encoded:
            return len(windows), self._values(windows)
        return len(windows), _pcm(loaded) if self.in_memory else None

    def _values(self, windows: Tensor) -> Tensor:
        """Values of the windows [n, N, ...], a few at a time."""
        return self._compact(torch.cat([self.adapter.encode_waves(some).values for some in windows.split(CHUNK)]))


def _pcm(wave: Tensor) -> Tensor:
    """The wave as 16 bits a sample, where that loses nothing."""
    scaled = wave * PCM
    whole = bool((scaled == scaled.round()).all()) and float(scaled.min()) >= -PCM and float(scaled.max()) < PCM
    return scaled.to(torch.int16) if whole else wave.clone()  # a part of the file's tensor would hold all of it


class AudioDataset(ClipDataset):
    """Some windows of an AudioSet; a batch is encoded at once, when it is collated."""

    clip_set: AudioSet

    @property
    def audios(self) -> AudioSet:
        return self.clip_set

    def waves(self, count: int | None = None) -> Iterator[Tensor]:
        """float32 [C, S] of each window, or of so many, evenly spread over them."""
        return (self.audios.wave(self.rows[i]) for i in self.spread(count))
