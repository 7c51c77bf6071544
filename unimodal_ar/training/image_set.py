"""Images that were read once, and what is kept of them in memory.

Shapes: n images, B of a batch, H x W pixels, C channels, N elements.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..adapters import ImageAdapter, ImageSource, LabelAdapter
from ..segment import Segment
from .source_set import CHUNK, LabelColumn, check_memory, chunks, smallest, tell


class ImageSet:
    """The images of one source that can be read, and what is kept of them in memory.

    Args:
        source: all of them.
        name: of the source, for messages.
        adapter, label_adapter: of the images, and of their labels (None: these are not used).
        in_memory: keep what was decoded; without it, only what a tokenizer makes of it.
        flip: images are asked for mirrored, too.
        classes: of the training images' set, where this is another one: what is settled there is meant here.

    Attributes:
        classes: the names of the label codes, in order: those of the label adapter, or else the source's. (Digits are
            the names of numbers.)
        labels: [n] long, codes of the label adapter, or None.
        strata: [n] long, numbers of the labels that the source has, used or not; 0 where it has none.
    """

    def __init__(
        self,
        source: ImageSource,
        name: str,
        adapter: ImageAdapter,
        label_adapter: LabelAdapter | None,
        in_memory: bool = True,
        flip: bool = False,
        classes: list[str] | None = None,
    ) -> None:
        self.source, self.name, self.adapter, self.label_adapter = source, name, adapter, label_adapter
        self.in_memory, self.flip = in_memory, flip
        self.places: list[int] = []  # in the source
        self._kept: Tensor | None = None  # [n, H, W, C] uint8; once encoded [n, versions, N, ...], mirrored or not
        self._encoded = False
        # The code of a pixel is the same wherever it stands; that of several, or a tokenizer's, must be made anew.
        self._turnable = adapter.tokenizer is None and adapter.grid[1:] == adapter.size
        self._read_all()
        column = self._column()
        self.strata = torch.zeros(len(self), dtype=torch.long) if column is None else column.strata()
        self.classes: list[str] | None = None
        self.labels: Tensor | None = None
        if label_adapter is not None:
            if column is None:
                raise ValueError(
                    f"{name} has no labels (a folder per class, or data.label_column); for a model without "
                    "labels set data.label to null"
                )
            labels = column.coded(label_adapter, classes)
            self.labels, self.classes = labels.codes, labels.classes

    def __len__(self) -> int:
        return len(self.places)

    def chosen(self, rows: Tensor, classes: Sequence[str | int] | None) -> Tensor:
        """Those of `rows` that are of these `classes` (None: of any); raises ValueError where a class is none."""
        if classes is None:
            return rows
        assert self.classes is not None and self.labels is not None
        names = [str(name) for name in self.classes]
        for name in classes:
            if str(name) not in names:
                raise ValueError(f"data.classes has {name!r}; the classes of {self.name} are {names}")
        return rows[torch.isin(self.labels[rows], torch.tensor([names.index(str(name)) for name in classes]))]

    def pixels(self, rows: Sequence[int] | Tensor) -> Tensor:
        """[B, H, W, C] uint8, where no values are kept."""
        assert not self._encoded
        if self._kept is not None:
            return self._kept[torch.as_tensor(rows)]
        return torch.cat([self.adapter.pixels(self.source.load(self.places[int(row)])) for row in rows])

    def segment(self, rows: Sequence[int], mirrored: Sequence[bool]) -> Segment:
        """The images `rows`, left and right exchanged in those that are `mirrored`."""
        flips = torch.tensor(mirrored)
        if self._encoded:
            assert self._kept is not None
            values = self._kept[torch.tensor(rows), 0 if self._turnable else flips.long()]
            values = values if values.is_floating_point() else values.long()
            if self._turnable:
                turned = values.unflatten(1, self.adapter.grid[1:]).flip(2).flatten(1, 2)
                values = torch.where(flips.view(-1, *[1] * (values.dim() - 1)), turned, values)
            return Segment(self.adapter.modality, values, self.adapter.grid)
        pixels = self.pixels(rows)
        return self.adapter.encode_pixels(torch.where(flips[:, None, None, None], pixels.flip(2), pixels))

    def encode(self) -> None:
        """Keeps codes instead of pixels, once a palette is fitted."""
        if self._kept is not None and not self._encoded:
            pixels = self._kept
            self._kept = None
            for start in range(0, len(pixels), CHUNK):
                self._keep(self._values(pixels[start : start + CHUNK]), start, len(pixels))
            self._encoded = True

    def _read_all(self) -> None:
        """Reads every image once: whoever cannot be read is told now, not in the middle of an epoch."""
        tokenised = self.adapter.tokenizer is not None
        # Vectors of pixels would take four times their memory, and are quickly made.
        codes = self.in_memory and self.adapter.element["kind"] == "discrete" and not self.adapter.needs_fit
        self._encoded = tokenised or codes
        problems: list[str] = []
        for chunk in chunks(len(self.source), f"Reading {self.name}", "images"):
            pixels = []
            for place in chunk:
                try:
                    pixels.append(self.adapter.pixels(self.source.load(place)))
                except ValueError as error:
                    problems.append(str(error))  # which names the image
                else:
                    self.places.append(place)
            if pixels and (self.in_memory or tokenised):
                made = self._values(torch.cat(pixels)) if self._encoded else torch.cat(pixels)
                self._keep(made, len(self.places) - len(pixels), len(self.source))
        if self._kept is not None:
            self._kept = self._kept[: len(self.places)]
        tell(self.name, problems, self.source, "images")

    def _keep(self, made: Tensor, start: int, length: int) -> None:
        if self._kept is None:  # one block of memory: to gather the pieces at the end would take it twice
            self._check_memory(length * made[0].nbytes)
            self._kept = made.new_zeros(length, *made.shape[1:])
        self._kept[start : start + len(made)] = made

    def _check_memory(self, needed: int) -> None:
        """Raises ValueError where so many bytes are not free."""
        remedy = (
            "what a tokenizer makes of images is always kept, so use fewer or a larger machine"
            if self.adapter.tokenizer is not None
            else "set data.in_memory to false"
        )
        check_memory(needed, f"{self.name}: to keep its {len(self.source)} images", remedy)

    def _values(self, pixels: Tensor) -> Tensor:
        """[B, versions, N, ...], codes in the smallest type that holds them."""
        versions = [pixels, pixels.flip(2)] if self.flip and not self._turnable else [pixels]
        values = torch.stack([self.adapter.encode_pixels(version).values for version in versions], 1)
        if values.is_floating_point():
            return values
        return smallest(values, self.adapter.element["vocab_size"])

    def _column(self) -> LabelColumn | None:
        labels, names = self.source.labels, self.source.names
        if labels is None:
            return None
        values, named = [labels[place] for place in self.places], [names[place] for place in self.places]
        return LabelColumn(values, self.source.classes, named, self.name, "images")


class ImageDataset(Dataset):
    """Some rows of an ImageSet; a batch is encoded at once, when it is collated."""

    def __init__(self, images: ImageSet, rows: Tensor, flip: bool) -> None:
        self.images, self.rows, self.flip = images, rows.tolist(), flip

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[int, bool]:
        """The image's row in the set, and whether it is mirrored."""
        return self.rows[index], self.flip and bool(torch.rand(()) < 0.5)

    @property
    def pixels(self) -> Tensor:
        """[n, H, W, C] uint8, as far as the elements hold them (a palette's are its colours)."""
        return self.images.adapter.decode_pixels(self.images.segment(self.rows, [False] * len(self)))

    @property
    def labels(self) -> Tensor | None:
        """[n] long codes."""
        return None if self.images.labels is None else self.images.labels[self.rows]

    def collate(self, items: Sequence[tuple[int, bool]]) -> dict[str, Any]:
        """The model's batch."""
        rows = [row for row, _ in items]
        segments = [self.images.segment(rows, [mirrored for _, mirrored in items])]
        label = self.images.label_adapter
        if label is not None and self.images.labels is not None:
            codes = self.images.labels[rows][:, None]
            segments.insert(0, Segment(label.modality, codes, (1, 1, 1), target=False))
        return {"segments": segments}
