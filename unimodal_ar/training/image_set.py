"""Images that were read once, and what is kept of them in memory.

Shapes: n images, B of a batch, H x W pixels, C channels, N elements.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any

import psutil  # type: ignore[import-untyped]  # of accelerate
import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm  # type: ignore[import-untyped]  # types-tqdm is not worth a dependency

from ..adapters import ImageAdapter, ImageSource, LabelAdapter
from ..segment import Segment

TOLD = 10  # unreadable files, classes, ... that are listed
CHUNK = 64  # images that are read, or encoded, at a time


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
        self.strata = self._strata()
        self.classes = self._classes() if classes is None else classes
        self.labels = None if label_adapter is None else self._labels(label_adapter)

    def __len__(self) -> int:
        return len(self.places)

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
        for chunk in _chunks(len(self.source), f"Reading {self.name}"):
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
        _tell(self.name, problems, self.source)

    def _keep(self, made: Tensor, start: int, length: int) -> None:
        if self._kept is None:  # one block of memory: to gather the pieces at the end would take it twice
            self._check_memory(length * made[0].nbytes)
            self._kept = made.new_zeros(length, *made.shape[1:])
        self._kept[start : start + len(made)] = made

    def _check_memory(self, needed: int) -> None:
        """Raises ValueError where so many bytes are not free; every process on this machine takes as many."""
        needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        free = psutil.virtual_memory().available
        if needed > free:
            remedy = (
                "what a tokenizer makes of images is always kept, so use fewer or a larger machine"
                if self.adapter.tokenizer is not None
                else "set data.in_memory to false"
            )
            raise ValueError(
                f"{self.name}: to keep its {len(self.source)} images takes {needed / 1e9:.1f} GB of memory, of which "
                f"{free / 1e9:.1f} GB are free; {remedy}"
            )

    def _values(self, pixels: Tensor) -> Tensor:
        """[B, versions, N, ...], codes in the smallest type that holds them."""
        versions = [pixels, pixels.flip(2)] if self.flip and not self._turnable else [pixels]
        values = torch.stack([self.adapter.encode_pixels(version).values for version in versions], 1)
        if values.is_floating_point():
            return values
        size = self.adapter.element["vocab_size"]
        return values.to(torch.uint8 if size <= 1 << 8 else torch.int16 if size <= 1 << 15 else torch.int32)

    def _strata(self) -> Tensor:
        if self.source.labels is None:
            return torch.zeros(len(self), dtype=torch.long)
        labels = [self.source.labels[place] for place in self.places]
        numbers = {label: number for number, label in enumerate(sorted(set(labels), key=str))}
        return torch.tensor([numbers[label] for label in labels])

    def _classes(self) -> list[str] | None:
        adapter, own = self.label_adapter, self.source.classes
        if adapter is None:
            return None
        return adapter.names if own is None or adapter.is_named or set(own) <= set(adapter.names) else own

    def _labels(self, adapter: LabelAdapter) -> Tensor:
        if self.source.labels is None:
            raise ValueError(
                f"{self.name} has no labels (a folder per class, or data.label_column); for a model without "
                "labels set data.label to null"
            )
        if self.classes is self.source.classes and self.classes is not None:
            listed = ", ".join(f"{code} {name!r}" for code, name in enumerate(self.classes[:TOLD]))
            print(f"{self.name}: the classes are {listed}{', ...' * (len(self.classes) > TOLD)}")
        if self.source.classes is None and self.classes != adapter.names:
            raise ValueError(
                f"{self.name} has numbers for labels, and the training images have names; give "
                f"adapters.{adapter.modality}.classes the names in the order of the numbers"
            )
        codes: dict[Any, int] = {}
        for place in self.places:
            label = self.source.labels[place]
            if label not in codes:
                try:
                    codes[label] = self._code(adapter, label)
                except ValueError as error:
                    raise ValueError(f"{self.source.names[place]}: {error}") from None
        return torch.tensor([codes[self.source.labels[place]] for place in self.places])

    def _code(self, adapter: LabelAdapter, label: int) -> int:
        """What the label adapter makes of a label of the source."""
        own, classes = self.source.classes, self.classes
        assert classes is not None
        if own is None or not 0 <= label < len(own):
            return int(adapter.encode([label]).values)
        name = own[label]
        if adapter.is_named:
            return int(adapter.encode([name]).values)
        if name not in classes:
            numbers = classes == adapter.names
            hint = f"; give adapters.{adapter.modality}.classes the names in the order of the numbers" * numbers
            raise ValueError(f"class {name!r} is not among the training images' classes {classes}{hint}")
        return int(adapter.encode([classes.index(name)]).values)


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


def split(strata: Tensor, shares: Sequence[int | float], seed: int) -> list[Tensor]:
    """Cuts n examples into parts in which every class is as frequent as in the whole, to within one example.

    Args:
        strata: [n] long, the class of each.
        shares: of each part but the last, as a number of examples or a fraction of n.
        seed: of the choice.

    Returns:
        the examples' numbers, increasing, of each part; the last part has what is left.
    """
    n = len(strata)
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(n, generator=generator)
    order = shuffled[strata[shuffled].argsort(stable=True)]  # class by class, each in random order
    sizes = torch.bincount(strata)
    starts = (sizes.cumsum(0) - sizes)[strata[order]]
    # Every class is spread evenly over [0, 1), so that any interval of it holds its share of each.
    offsets = torch.rand(len(sizes), generator=generator)[strata[order]]
    places = (torch.arange(n) - starts + offsets) / sizes[strata[order]]
    order = order[places.argsort(stable=True)]
    counts = [share if isinstance(share, int) else round(share * n) for share in shares]
    ends = [*accumulate(counts, initial=0), n]
    return [order[start:end].sort().values for start, end in pairwise(min(end, n) for end in ends)]


def _chunks(n: int, title: str) -> Iterator[range]:
    """Ranges of at most CHUNK; a bar shows where it takes more than two seconds."""
    with tqdm(total=n, desc=title, unit="images", delay=2, leave=False) as bar:
        for start in range(0, n, CHUNK):
            yield range(start, min(start + CHUNK, n))
            bar.update(min(CHUNK, n - start))


def _tell(name: str, problems: list[str], source: ImageSource) -> None:
    """Lists what could not be read, and what was passed over; raises ValueError where nothing could be read."""
    count, others = len(source), source.passed_over
    if len(problems) == count:
        raise ValueError(f"{name}: none of the {count} images can be read; the first one: {problems[0]}")
    if os.environ.get("RANK", "0") != "0":  # every process of a distributed training reads everything
        return
    if others:
        listed = f"{', '.join(others[:TOLD])}{', ...' * (len(others) > TOLD)}"
        were = "other files were" if len(others) > 1 else "other file was"
        print(f"{name}: {len(others)} {were} passed over: {listed}", file=sys.stderr)
    if problems:
        more = [f"... and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
        lines = [f"{name}: {len(problems)} of {count} images cannot be read and are left out:", *problems[:TOLD], *more]
        print("\n  ".join(lines), file=sys.stderr)
