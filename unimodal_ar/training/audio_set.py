"""Clips of audio that were read once, the windows cut from them, and what is kept of these in memory.

Shapes: n windows, B of a batch, C channels, S samples of a window, N elements.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..adapters import LabelAdapter
from ..adapters.audio.adapter import AudioAdapter
from ..adapters.audio.sources import AudioSource
from ..segment import Segment
from .source_set import CHUNK, LabelColumn, Labels, check_memory, chunks, smallest, tell

PCM = 32768  # full scale of 16 bits


class AudioSet:
    """The clips of one source that can be read, cut into windows of the adapter's length.

    Args:
        source: all of them.
        name: of the source, for messages.
        adapter: of the audio.
        labels: the adapter of each label, and the column of the source that holds it.
        overlap: seconds that neighbouring windows of a clip share.
        in_memory: keep the waves; without it, only what a codec makes of them.
        trained: by modality, the classes of the training clips' set, where this is another one.

    Attributes:
        places: of the clips, in the source.
        clips: [n] long, the clip (a number into `places`) that each window is of.
        strata: long, for each clip: which labels it has, all taken together; all 0 where it has none.
        labels: by modality, codes and classes of the clips.
    """

    def __init__(
        self,
        source: AudioSource,
        name: str,
        adapter: AudioAdapter,
        labels: Mapping[str, tuple[LabelAdapter, str]],
        overlap: float = 0.0,
        in_memory: bool = True,
        trained: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.source, self.name, self.adapter, self.overlap = source, name, adapter, overlap
        self.in_memory, self._encoded = in_memory, adapter.tokenizer is not None
        self.places: list[int] = []
        # By clip: [C, samples], or values [windows, N, ...]. (Of a tensor each, workers that are not forked would take
        # an open file.)
        self._kept: list[np.ndarray] = []
        self._bytes = 0
        counts = self._read_all()
        self.clips = torch.arange(len(self.places)).repeat_interleave(torch.tensor(counts))
        self._windows = torch.cat([torch.arange(count) for count in counts]).tolist()  # their numbers in their clips
        columns = {modality: self._column(column) for modality, (_, column) in labels.items()}
        self.strata = self._strata(columns)
        self.labels: dict[str, Labels] = {
            modality: columns[modality].coded(own, None if trained is None else trained[modality])
            for modality, (own, _) in labels.items()
        }

    def __len__(self) -> int:
        """How many windows there are."""
        return len(self.clips)

    def wave(self, row: int) -> Tensor:
        """float32 [C, S]: a window as it was read, also where a codec's values are kept."""
        clip = int(self.clips[row])
        if self._kept and not self._encoded:
            wave = torch.from_numpy(self._kept[clip])
        else:
            (wave,) = self.adapter.waves(self.source.load(self.places[clip]))
        start = self._windows[row] * (self.adapter.samples - round(self.overlap * self.adapter.sample_rate))
        part = wave[:, start : start + self.adapter.samples]
        (window,) = self.adapter.chunks(part if part.is_floating_point() else part.float() / PCM)
        return window

    def segment(self, rows: Sequence[int]) -> Segment:
        """The windows `rows` as elements."""
        if not self._encoded:
            return self.adapter.encode_waves(torch.stack([self.wave(row) for row in rows]))
        kept = [self._kept[int(self.clips[row])][self._windows[row]] for row in rows]
        values = torch.from_numpy(np.stack(kept))
        return Segment(
            self.adapter.modality, values if values.is_floating_point() else values.long(), self.adapter.grid
        )

    def column(self, name: str) -> list[str]:
        """A column of the source, for the clips that could be read, as text."""
        column = self.source.columns[name]
        values = [column.values[place] for place in self.places]
        return [str(value if column.names is None else column.names[value]) for value in values]

    def _read_all(self) -> list[int]:
        """Reads every clip once: whoever cannot be read is told now, not in the middle of an epoch. Returns how many
        windows each has."""
        counts: list[int] = []
        problems: list[str] = []
        for chunk in chunks(len(self.source), f"Reading {self.name}", "clips"):
            for place in chunk:
                try:
                    (wave,) = self.adapter.waves(self.source.load(place))
                except ValueError as error:
                    problems.append(str(error))  # which names the clip
                    continue
                windows = self.adapter.chunks(wave, self.overlap)
                self.places.append(place)
                counts.append(len(windows))
                if self._encoded:
                    self._keep(self._values(windows))
                elif self.in_memory:
                    self._keep(_compact(wave))
        tell(self.name, problems, self.source, "clips")
        return counts

    def _keep(self, made: Tensor) -> None:
        self._bytes += made.nbytes
        self._kept.append(made.numpy())
        # What all of them take is known from those there are, not from the first alone, which may be the longest.
        if len(self._kept) % min(CHUNK, -(-len(self.source) // 10)) == 0:
            expected = self._bytes * len(self.source) // len(self._kept) - self._bytes
            remedy = (
                "what a codec makes of audio is always kept, so use fewer or a larger machine"
                if self._encoded
                else "set data.in_memory to false"
            )
            check_memory(expected, f"{self.name}: to keep its {len(self.source)} clips", remedy)

    def _values(self, windows: Tensor) -> Tensor:
        """Values of the windows [n, N, ...], a few at a time, codes in the smallest type that holds them."""
        values = torch.cat([self.adapter.encode_waves(some).values for some in windows.split(CHUNK)])
        return values if values.is_floating_point() else smallest(values, self.adapter.element["vocab_size"])

    def _column(self, name: str) -> LabelColumn:
        column = self.source.columns[name]
        values, classes = column.labels()
        names = [self.source.names[place] for place in self.places]
        return LabelColumn([values[place] for place in self.places], classes, names, f"{self.name}, {name}", "clips")

    def _strata(self, columns: Mapping[str, LabelColumn]) -> Tensor:
        if not columns:
            return torch.zeros(len(self.places), dtype=torch.long)
        return torch.stack([column.strata() for column in columns.values()], 1).unique(dim=0, return_inverse=True)[1]


def _compact(wave: Tensor) -> Tensor:
    """The wave as 16 bits a sample, where that loses nothing."""
    scaled = wave * PCM
    whole = bool((scaled == scaled.round()).all()) and float(scaled.min()) >= -PCM and float(scaled.max()) < PCM
    return scaled.to(torch.int16) if whole else wave.clone()  # a part of the file's tensor would hold all of it


class AudioDataset(Dataset):
    """Some windows of an AudioSet; a batch is encoded at once, when it is collated."""

    def __init__(self, audios: AudioSet, rows: Tensor) -> None:
        self.audios, self.rows = audios, rows.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> int:
        """The window's row in the set."""
        return self.rows[index]

    def waves(self, count: int | None = None) -> Iterator[Tensor]:
        """float32 [C, S] of each window, or of so many, evenly spread over them."""
        count = len(self) if count is None else min(count, len(self))
        return (self.audios.wave(self.rows[i * len(self) // count]) for i in range(count))

    @property
    def labels(self) -> dict[str, Tensor]:
        """[n] long codes, by modality."""
        return {name: labels.codes[self.audios.clips[self.rows]] for name, labels in self.audios.labels.items()}

    def collate(self, items: Sequence[int]) -> dict[str, Any]:
        """The model's batch."""
        clips = self.audios.clips[list(items)]
        context = partial(Segment, grid=(1, 1, 1), target=False)
        labels = [context(name, labels.codes[clips][:, None]) for name, labels in self.audios.labels.items()]
        return {"segments": [*labels, self.audios.segment(items)]}
