"""The data kind "audio": clips of audio with or without labels, read once, cut into windows, split by a seed."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, field_validator, model_validator
from torch import Tensor

from ..adapters import Adapter, LabelAdapter
from ..adapters.audio.adapter import AudioAdapter
from ..adapters.audio.sources import AudioSource, compile_pattern, read_audios
from ..configuration import UnimodalARConfig
from ..fitting import check_adapter
from ..schema import Strict
from .audio_evaluation import AudioEvaluation, AudioEvaluator
from .audio_set import AudioDataset, AudioSet
from .images import Count, Fraction
from .source_set import split

FITTED = 2048  # windows that a scale is fitted to


class AudioOptions(Strict):
    """Clips of audio. Windows of the adapter's length are cut from them, the last filled up with silence; each window
    is an example, and those of one clip are all training, all validation or all test examples.

    Args:
        modality: which adapter encodes them.
        labels: which adapters encode labels, and which column holds each: {digit: digit, speaker: speaker}. Empty: an
            unconditional model. Their order is that of the sequence.
        path: a folder of audio files; one of one folder per class (column `class`); a .jsonl manifest, a .parquet file
            or a folder that `datasets.Dataset.save_to_disk` wrote (see `read_audios`).
        audio_column: of a parquet file or a Dataset; None: found by name.
        pattern: a regular expression for the files' names, whose named groups are columns.
        split: the column that says of which part a clip is. None: parts are drawn.
        test_split, validation_split: what this column says of test and validation clips; all others are for training.
        validation, test: parts that are drawn, as a number of clips or as a fraction of all; labels, all taken
            together, are as frequent in each part as in the whole. With `split`, the test part is what that says, and
            so is the validation part if there is one; else it is drawn.
        test_path: a test part of its own, as `path`; nothing is then cut from `path`.
        overlap: seconds that neighbouring windows of a clip longer than the adapter's share.
        in_memory: keep all clips decoded, 2 or 4 bytes a sample. False: decode a clip whenever a window of it is used,
            in the loading workers (training.dataloader_num_workers). What a frozen codec makes of them is always kept.
        seed: of the parts; the recipe's own seed leaves them as they are, so that models of different seeds can be
            compared.
    """

    modality: str = "audio"
    labels: dict[str, str] = {}
    path: str
    audio_column: str | None = None
    pattern: str | None = None
    split: str | None = None
    test_split: list[str] = Field(default=["test"], min_length=1)
    validation_split: list[str] = Field(default=["validation"], min_length=1)
    validation: Count | Fraction = Field(default=0.1, gt=0)
    test: Count | Fraction | None = None
    test_path: str | None = None
    overlap: NonNegativeFloat = 0.0
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
    def _separate_parts(self) -> AudioOptions:
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


class AudioData:
    """Windows of clips for training, validation and testing.

    Files that cannot be read are counted and listed on stderr, with the reason, and left out.

    Raises:
        ValueError: an adapter is of another kind; when the data are read: no clip can be read, a column that is not
            there, a label that its adapter does not know, parts that leave nothing to train on.
    """

    Options: ClassVar[type[AudioOptions]] = AudioOptions
    Evaluation: ClassVar[type[AudioEvaluation]] = AudioEvaluation
    unit: ClassVar[str] = "clips"

    def __init__(self, options: AudioOptions, adapters: dict[str, Adapter]) -> None:
        adapter = adapters.get(options.modality)
        if not isinstance(adapter, AudioAdapter):
            raise ValueError(f"data.modality is {options.modality!r}; it must name an audio adapter")
        self.labels: dict[str, tuple[LabelAdapter, str]] = {}
        for name, column in options.labels.items():
            label = adapters.get(name)
            if not isinstance(label, LabelAdapter):
                raise ValueError(f"data.labels has the key {name!r}; each key must name a label adapter")
            self.labels[name] = (label, column)
        if options.overlap >= adapter.seconds:
            raise ValueError(
                f"data.overlap is {options.overlap} s; windows have {adapter.seconds} s, so it is too long"
            )
        self.options, self.adapter = options, adapter
        unread = sorted(adapters.keys() - self.modalities)
        if unread:
            raise ValueError(
                f"adapters.{unread[0]} is used by nothing; the clips have the modalities {self.modalities}"
            )
        self._parts: dict[str, AudioDataset] | None = None

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

    def train(self) -> AudioDataset:
        return self._part("train")

    def validation(self) -> AudioDataset:
        return self._part("validation")

    def test(self) -> AudioDataset:
        """May be empty."""
        return self._part("test")

    def evaluator(self, evaluation: AudioEvaluation, config: UnimodalARConfig, seed: int) -> AudioEvaluator:
        labels = [adapter for adapter, _ in self.labels.values()]
        return AudioEvaluator(self.adapter, labels, self.test(), evaluation, config, seed)

    def _part(self, name: str) -> AudioDataset:
        if self._parts is None:
            self._parts = self._read()
        return self._parts[name]

    def _read(self) -> dict[str, AudioDataset]:
        o = self.options
        audios = self._audio_set(self._source(o.path, o.columns), o.path)
        test, validation, train = self._split(audios)
        if not len(train) or not len(validation):
            raise ValueError(
                f"{audios.name} has {len(audios.places)} clips, of which {len(train)} are left to train on after "
                f"{len(test)} of test and {len(validation)} of validation; training and validation need some, so "
                "set data.validation, data.test or data.split, or cut long clips into several"
            )
        parts = {"train": train, "validation": validation, "test": test}
        found = {name: AudioDataset(audios, _windows(audios, clips)) for name, clips in parts.items()}
        if self.adapter.needs_fit:
            self.adapter.fit(found["train"].waves(FITTED))
        if o.test_path is not None:
            others = self._source(o.test_path, list(o.labels.values()))
            classes = {name: labels.classes for name, labels in audios.labels.items()}
            tests = self._audio_set(others, o.test_path, classes)
            found["test"] = AudioDataset(tests, torch.arange(len(tests)))
        return found

    def _split(self, audios: AudioSet) -> list[Tensor]:
        """The clips of the test, validation and training parts."""
        o = self.options
        if o.split is None:
            return split(audios.strata, [o.test_share, o.validation], o.seed)
        said = audios.column(o.split)
        test, validation = (
            torch.tensor([one in names for one in said]) for names in (o.test_split, o.validation_split)
        )
        if not test.any():
            raise ValueError(
                f"data.test_split is {o.test_split}; column {o.split!r} of {audios.name} has {sorted(set(said))[:20]}"
            )
        rest = (~test & ~validation).nonzero()[:, 0]
        if validation.any():
            return [test.nonzero()[:, 0], validation.nonzero()[:, 0], rest]
        drawn, train = split(audios.strata[rest], [o.validation], o.seed)
        return [test.nonzero()[:, 0], rest[drawn], rest[train]]

    def _source(self, path: str, columns: list[str]) -> AudioSource:
        return read_audios(path, columns, self.options.audio_column, self.options.pattern)

    def _audio_set(self, source: AudioSource, name: str, classes: dict[str, list[str]] | None = None) -> AudioSet:
        o = self.options
        return AudioSet(source, name, self.adapter, self.labels, o.overlap, o.in_memory, classes)


def _windows(audios: AudioSet, clips: Tensor) -> Tensor:
    """The rows of all windows of the clips."""
    return torch.isin(audios.clips, clips).nonzero()[:, 0]
