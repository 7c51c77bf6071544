"""What the data kinds "audio" and "video" have in common: clips with or without labels, read once, cut into windows,
split by a seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import Field, NonNegativeInt, field_validator, model_validator
from torch import Tensor

from ..adapters import Adapter, LabelAdapter
from ..adapters.clip_sources import ClipSource, compile_pattern
from ..configuration import UnimodalARConfig
from ..fitting import check_adapter
from ..schema import Strict
from .clip_set import ClipDataset, ClipSet
from .images import Count, Fraction
from .source_set import split


class ClipOptions(Strict):
    """Clips, each as many examples as windows of the adapter's length are cut from it; those of one clip are all
    training, all validation or all test examples. Rows of a manifest are clips, even if they are parts of one file: to
    keep these together, give `split`.

    Args:
        modality: which adapter encodes them.
        labels: which adapters encode labels, and which column holds each: {digit: digit, speaker: speaker}. Empty: an
            unconditional model. Their order is that of the sequence.
        path: a folder of files; one of one folder per class (column `class`); a .jsonl manifest, a .parquet file or a
            folder that `datasets.Dataset.save_to_disk` wrote (see `read_audios` and `read_videos`).
        pattern: a regular expression for the files' names, whose named groups are columns.
        split: the column that says of which part a clip is. None: parts are drawn.
        test_split, validation_split: what this column says of test and validation clips; all others are for training.
        validation, test: parts that are drawn, as a number of clips or as a fraction of all; labels, all taken
            together, are as frequent in each part as in the whole. With `split`, the test part is what that says, and
            so is the validation part if there is one; else it is drawn.
        test_path: a test part of its own, as `path`; nothing is then cut from `path`.
        in_memory: keep all clips decoded. False: decode a clip whenever a window of it is used, in the loading workers
            (training.dataloader_num_workers). What a frozen tokenizer makes of them is always kept.
        seed: of the parts; the recipe's own seed leaves them as they are, so that models of different seeds can be
            compared.
    """

    modality: str
    labels: dict[str, str] = {}
    path: str | None = None
    pattern: str | None = None
    split: str | None = None
    test_split: list[str] = Field(default=["test"], min_length=1)
    validation_split: list[str] = Field(default=["validation"], min_length=1)
    validation: Count | Fraction = Field(default=0.1, gt=0)
    test: Count | Fraction | None = None
    test_path: str | None = None
    in_memory: bool = True
    seed: NonNegativeInt = 0

    @field_validator("labels", mode="before")
    @classmethod
    def _no_labels(cls, labels: Any) -> Any:
        return {} if labels is None else labels

    @field_validator("test_split", "validation_split", mode="before")
    @classmethod
    def _one_value(cls, values: Any) -> Any:
        return [values] if isinstance(values, str) else values

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            compile_pattern(pattern)
        return pattern

    @model_validator(mode="after")
    def _separate_parts(self) -> ClipOptions:
        given = [name for name in ("split", "test_path") if getattr(self, name) is not None]
        given += ["test"] if self.test else []
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} each say what the test part is; give at most one of them")
        both = sorted(set(self.test_split) & set(self.validation_split))
        if self.split is not None and both:
            raise ValueError(f"test_split and validation_split both have {both}; a clip is of one part")
        return self

    @property
    def columns(self) -> list[str]:
        """Those that are read."""
        return list(dict.fromkeys([*self.labels.values(), *([] if self.split is None else [self.split])]))

    @property
    def test_share(self) -> int | float:
        """What is cut from the clips for testing: a tenth, where nothing is said of a test part."""
        return self.test if self.test is not None else 0.0 if self.test_path is not None else 0.1


Examples = TypeVar("Examples", bound=ClipDataset)


class ClipData(ABC, Generic[Examples]):
    """Windows of clips for training, validation and testing.

    Files that cannot be read are counted and listed on stderr, with the reason, and left out.

    Raises:
        ValueError: an adapter is of another kind; when the data are read: no clip can be read, a column that is not
            there, a label that its adapter does not know, parts that leave nothing to train on.
    """

    unit: ClassVar[str] = "clips"
    of_training: ClassVar[frozenset[str]] = frozenset()
    encoder: ClassVar[type[Adapter]]  # that the clips need
    medium: ClassVar[str]  # what it is called, with its article
    options: ClipOptions
    adapter: Any

    def __init__(self, options: ClipOptions, adapters: dict[str, Adapter]) -> None:
        adapter = adapters.get(options.modality)
        if not isinstance(adapter, self.encoder):
            raise ValueError(f"data.modality is {options.modality!r}; it must name {self.medium} adapter")
        self.labels: dict[str, tuple[LabelAdapter, str]] = {}
        for name, column in options.labels.items():
            label = adapters.get(name)
            if not isinstance(label, LabelAdapter):
                raise ValueError(f"data.labels has the key {name!r}; each key must name a label adapter")
            self.labels[name] = (label, column)
        self.options, self.adapter = options, adapter
        self._check_windows()
        unread = sorted(adapters.keys() - self.modalities)
        if unread:
            raise ValueError(
                f"adapters.{unread[0]} is used by nothing; the clips have the modalities {self.modalities}"
            )
        self._parts: dict[str, Examples] | None = None

    @property
    def modalities(self) -> list[str]:
        return [*self.labels, self.options.modality]

    def modality_defaults(self, name: str) -> dict[str, Any]:
        """What the data settle of a modality's configuration."""
        grids = dict.fromkeys(self.labels, (1, 1, 1)) | {self.options.modality: self.adapter.grid}
        return {"grid": list(grids[name])} if name in grids else {}

    def check_model(self, config: UnimodalARConfig) -> None:
        """Raises ValueError where the model could not be trained on these clips."""
        name = self.options.modality
        if config.modality(name).head is None:
            raise ValueError(f"modalities.{name} has no head; the data are its clips, so it needs one to be trained")
        for label in self.labels:
            if config.modality(label).head is not None:
                raise ValueError(f"modalities.{label} has a head; labels are given, not drawn, so leave it out")
        for adapter in [*(adapter for adapter, _ in self.labels.values()), self.adapter]:
            check_adapter(adapter, config.modality(adapter.modality))

    def train(self) -> Examples:
        return self._part("train")

    def validation(self) -> Examples:
        return self._part("validation")

    def test(self) -> Examples:
        """May be empty."""
        return self._part("test")

    @abstractmethod
    def _check_windows(self) -> None:
        """Raises ValueError where the options do not fit to the adapter's windows."""

    @abstractmethod
    def _source(self, path: str, columns: list[str]) -> ClipSource:
        """The clips of a path."""

    def _all(self) -> tuple[ClipSource, str]:
        """The clips from which the parts are taken, and what they are called."""
        assert self.options.path is not None
        return self._source(self.options.path, self.options.columns), self.options.path

    @abstractmethod
    def _clip_set(self, source: ClipSource, name: str, classes: dict[str, list[str]] | None = None) -> Any:
        """The clips that can be read."""

    @abstractmethod
    def _dataset(self, clips: Any, rows: Tensor, part: str) -> Examples:
        """Windows of a part."""

    def _fit(self, train: Examples) -> None:  # most adapters have nothing to fit
        """Fits the adapter, if it wants to be, to the training part."""

    def _part(self, name: str) -> Examples:
        if self._parts is None:
            self._parts = self._read()
        return self._parts[name]

    def _read(self) -> dict[str, Examples]:
        o = self.options
        clips: ClipSet = self._clip_set(*self._all())
        test, validation, train = self._split(clips)
        if not len(train) or not len(validation):
            raise ValueError(
                f"{clips.name} has {len(clips.places)} clips, of which {len(train)} are left to train on after "
                f"{len(test)} of test and {len(validation)} of validation; training and validation need some, so "
                "set data.validation, data.test or data.split, or cut long clips into several"
            )
        parts = {"train": train, "validation": validation, "test": test}
        found = {name: self._dataset(clips, _windows(clips, numbers), name) for name, numbers in parts.items()}
        self._fit(found["train"])
        if o.test_path is not None:
            others = self._source(o.test_path, list(o.labels.values()))
            classes = {name: labels.classes for name, labels in clips.labels.items()}
            tests = self._clip_set(others, o.test_path, classes)
            found["test"] = self._dataset(tests, torch.arange(len(tests)), "test")
        return found

    def _split(self, clips: ClipSet) -> list[Tensor]:
        """The clips of the test, validation and training parts."""
        o = self.options
        if o.split is None:
            return split(clips.strata, [o.test_share, o.validation], o.seed)
        said = clips.column(o.split)
        test, validation = (
            torch.tensor([one in names for one in said]) for names in (o.test_split, o.validation_split)
        )
        if not test.any():
            raise ValueError(
                f"data.test_split is {o.test_split}; column {o.split!r} of {clips.name} has {sorted(set(said))[:20]}"
            )
        rest = (~test & ~validation).nonzero()[:, 0]
        if validation.any():
            return [test.nonzero()[:, 0], validation.nonzero()[:, 0], rest]
        drawn, train = split(clips.strata[rest], [o.validation], o.seed)
        return [test.nonzero()[:, 0], rest[drawn], rest[train]]


def _windows(clips: ClipSet, numbers: Tensor) -> Tensor:
    """The rows of all windows of some clips."""
    return torch.isin(clips.clips, numbers).nonzero()[:, 0]
