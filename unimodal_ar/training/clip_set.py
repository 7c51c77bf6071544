"""What sets of audio and of video have in common: clips that were read once, the windows cut from them, their labels.

Shapes: n windows, B of a batch, N elements.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..adapters import LabelAdapter
from ..adapters.clip_sources import ClipSource
from ..segment import Segment
from .source_set import CHUNK, LabelColumn, Labels, check_memory, chunks, smallest, tell


class ClipSet(ABC):
    """The clips of one source that can be read, cut into windows of the adapter's length.

    Args:
        source: all of them.
        name: of the source, for messages.
        adapter: of the medium.
        labels: the adapter of each label, and the column of the source that holds it.
        in_memory: keep what was read; without it, only what a frozen tokenizer makes of it.
        trained: by modality, the classes of the training clips' set, where this is another one.

    Attributes:
        places: of the clips, in the source.
        clips: [n] long, the clip (a number into `places`) that each window is of.
        strata: long, for each clip: which labels it has, all taken together; all 0 where it has none.
        labels: by modality, codes and classes of the clips.
    """

    made: ClassVar[str]  # what is kept even if not in memory, in words

    def __init__(
        self,
        source: ClipSource,
        name: str,
        adapter: Any,
        labels: Mapping[str, tuple[LabelAdapter, str]],
        in_memory: bool = True,
        trained: Mapping[str, list[str]] | None = None,
    ) -> None:
        self.source, self.name, self.adapter = source, name, adapter
        self.in_memory, self._encoded = in_memory, adapter.tokenizer is not None
        self.places: list[int] = []
        # By clip, see `_made`. (Of a tensor each, workers that are not forked would take an open file.)
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

    @abstractmethod
    def segment(self, items: Sequence[Any]) -> Segment:
        """Items of a `ClipDataset` as elements."""

    @abstractmethod
    def _load(self, place: int) -> Any:
        """A clip of the source, as far as it is needed; a ValueError where it cannot be read, which names it."""

    @abstractmethod
    def _made(self, loaded: Any) -> tuple[int, Tensor | None]:
        """How many windows a clip has, and what is kept of it; None: nothing."""

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
                    loaded = self._load(place)
                except ValueError as error:
                    problems.append(str(error))
                    continue
                count, made = self._made(loaded)
                self.places.append(place)
                counts.append(count)
                if made is not None:
                    self._keep(made)
        tell(self.name, problems, self.source, "clips")
        return counts

    def _keep(self, made: Tensor) -> None:
        self._bytes += made.nbytes
        self._kept.append(made.numpy())
        # What all of them take is known from those there are, not from the first alone, which may be the longest.
        if len(self._kept) % min(CHUNK, -(-len(self.source) // 10)) == 0:
            expected = self._bytes * len(self.source) // len(self._kept) - self._bytes
            remedy = (
                f"what {self.made} is always kept, so use fewer or a larger machine"
                if self._encoded
                else "set data.in_memory to false"
            )
            check_memory(expected, f"{self.name}: to keep its {len(self.source)} clips", remedy)

    def _compact(self, values: Tensor) -> Tensor:
        """Values, codes in the smallest type that holds them."""
        return values if values.is_floating_point() else smallest(values, self.adapter.element["vocab_size"])

    def _stacked(self, kept: Sequence[np.ndarray]) -> Segment:
        """Kept values [N, ...] of windows as a segment."""
        values = torch.from_numpy(np.stack(kept))
        values = values if values.is_floating_point() else values.long()
        return Segment(self.adapter.modality, values, self.adapter.grid)

    def _column(self, name: str) -> LabelColumn:
        column = self.source.columns[name]
        values, classes = column.labels()
        names = [self.source.names[place] for place in self.places]
        return LabelColumn([values[place] for place in self.places], classes, names, f"{self.name}, {name}", "clips")

    def _strata(self, columns: Mapping[str, LabelColumn]) -> Tensor:
        if not columns:
            return torch.zeros(len(self.places), dtype=torch.long)
        return torch.stack([column.strata() for column in columns.values()], 1).unique(dim=0, return_inverse=True)[1]


class ClipDataset(Dataset):
    """Some windows of a ClipSet; a batch is encoded at once, when it is collated.

    Attributes:
        rows: of the windows, in the set.
    """

    def __init__(self, clip_set: ClipSet, rows: Tensor) -> None:
        self.clip_set, self.rows = clip_set, rows.tolist()

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        """The window's row in the set, or what begins with it."""
        return self.rows[index]

    def spread(self, count: int | None = None) -> list[int]:
        """Numbers of all windows, or of so many, evenly spread over them."""
        count = len(self) if count is None else min(count, len(self))
        return [i * len(self) // count for i in range(count)]

    @property
    def labels(self) -> dict[str, Tensor]:
        """[n] long codes, by modality."""
        return self._labels(self.rows)

    def collate(self, items: Sequence[Any]) -> dict[str, Any]:
        """The model's batch."""
        context = partial(Segment, grid=(1, 1, 1), target=False)
        codes = self._labels([item if isinstance(item, int) else item[0] for item in items])
        labels = [context(name, values[:, None]) for name, values in codes.items()]
        return {"segments": [*labels, self.clip_set.segment(items)]}

    def _labels(self, rows: list[int]) -> dict[str, Tensor]:
        clips = self.clip_set.clips[rows]
        return {name: labels.codes[clips] for name, labels in self.clip_set.labels.items()}
