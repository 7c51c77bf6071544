"""What sets of images and of clips have in common: how they are read, split and labelled.

Shapes: n examples.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import psutil  # type: ignore[import-untyped]  # of accelerate
import torch
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]  # types-tqdm is not worth a dependency

from ..adapters import LabelAdapter

TOLD = 10  # unreadable files, classes, ... that are listed
CHUNK = 64  # examples that are read, or encoded, at a time


@dataclass(frozen=True)
class Labels:
    """The labels of a set.

    Attributes:
        codes: [n] long, of the label adapter.
        classes: the names of the codes, in order. (Digits are the names of numbers.)
    """

    codes: Tensor
    classes: list[str]


@dataclass(frozen=True)
class LabelColumn:
    """The labels of a source, as numbers.

    Attributes:
        values: of each example that is used.
        classes: the numbers' names; None: they have none.
        names: of the examples, for messages.
        where: the set's name, for messages.
        many: what the examples are called ("images").
    """

    values: list[int]
    classes: list[str] | None
    names: list[str]
    where: str
    many: str

    def strata(self) -> Tensor:
        """[n] long: numbers of the labels, in which parts are to be alike."""
        numbers = {label: number for number, label in enumerate(sorted(set(self.values), key=str))}
        return torch.tensor([numbers[value] for value in self.values])

    def coded(self, adapter: LabelAdapter, trained: list[str] | None = None) -> Labels:
        """As codes of a label adapter.

        Args:
            trained: the training examples' classes, where this is another set: what is settled there is meant here.

        Raises:
            ValueError: a label that the adapter, or the training set, does not know, or names on one side and numbers
                on the other.
        """
        classes = self._settled(adapter) if trained is None else trained
        if classes is self.classes and tells():
            listed = ", ".join(f"{code} {name!r}" for code, name in enumerate(classes[:TOLD]))
            print(f"{self.where}: the classes are {listed}{', ...' * (len(classes) > TOLD)}")
        if self.classes is None and classes != adapter.names:
            raise ValueError(
                f"{self.where} has numbers for labels, and the training {self.many} have names; give "
                f"adapters.{adapter.modality}.classes the names in the order of the numbers"
            )
        codes: dict[int, int] = {}
        for value, name in zip(self.values, self.names, strict=True):
            if value not in codes:
                try:
                    codes[value] = self._code(adapter, value, classes)
                except ValueError as error:
                    raise ValueError(f"{name}: {error}") from None
        return Labels(torch.tensor([codes[value] for value in self.values]), classes)

    def _settled(self, adapter: LabelAdapter) -> list[str]:
        """The label adapter's classes, or else the source's."""
        own = self.classes
        return adapter.names if own is None or adapter.is_named or set(own) <= set(adapter.names) else own

    def _code(self, adapter: LabelAdapter, label: int, classes: list[str]) -> int:
        """What the label adapter makes of a label of the source."""
        own = self.classes
        if own is None or not 0 <= label < len(own):
            return int(adapter.encode([label]).values)
        name = own[label]
        if adapter.is_named:
            return int(adapter.encode([name]).values)
        if name not in classes:
            numbers = classes == adapter.names
            hint = f"; give adapters.{adapter.modality}.classes the names in the order of the numbers" * numbers
            raise ValueError(f"class {name!r} is not among the training {self.many}' classes {classes}{hint}")
        return int(adapter.encode([classes.index(name)]).values)


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


def chunks(n: int, title: str, many: str) -> Iterator[range]:
    """Ranges of at most CHUNK; a bar shows where it takes more than two seconds."""
    with tqdm(total=n, desc=title, unit=many, delay=2, leave=False) as bar:
        for start in range(0, n, CHUNK):
            yield range(start, min(start + CHUNK, n))
            bar.update(min(CHUNK, n - start))


def check_memory(needed: int, told: str, remedy: str) -> None:
    """Raises ValueError where so many bytes are not free; every process on this machine takes as many.

    Args:
        told: what takes them.
        remedy: what to do, for the message.
    """
    needed *= int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    free = psutil.virtual_memory().available
    if needed > free:
        raise ValueError(
            f"{told} takes {needed / 1e9:.1f} GB of memory, of which {free / 1e9:.1f} GB are free; {remedy}"
        )


def smallest(codes: Tensor, vocab_size: int) -> Tensor:
    """Codes in the smallest type that holds them."""
    return codes.to(torch.uint8 if vocab_size <= 1 << 8 else torch.int16 if vocab_size <= 1 << 15 else torch.int32)


def tells() -> bool:
    """Whether this process is the one that prints: all of a distributed training read everything."""
    return os.environ.get("RANK", "0") == "0"


def tell(name: str, problems: list[str], source: Any, many: str) -> None:
    """Lists what could not be read, and what was passed over; raises ValueError where nothing could be read.

    Args:
        name: of the source, an ImageSource or ClipSource.
        problems: one for each that could not be read.
        many: what they are called ("images").
    """
    count, others = len(source), source.passed_over
    if len(problems) == count:
        raise ValueError(f"{name}: none of the {count} {many} can be read; the first one: {problems[0]}")
    if not tells():
        return
    if others:
        listed = f"{', '.join(others[:TOLD])}{', ...' * (len(others) > TOLD)}"
        were = "other files were" if len(others) > 1 else "other file was"
        print(f"{name}: {len(others)} {were} passed over: {listed}", file=sys.stderr)
    if problems:
        more = [f"... and {len(problems) - TOLD} more"] if len(problems) > TOLD else []
        lines = [f"{name}: {len(problems)} of {count} {many} cannot be read and are left out:", *problems[:TOLD], *more]
        print("\n  ".join(lines), file=sys.stderr)
