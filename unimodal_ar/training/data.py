"""Where examples come from. A data kind knows one shape of raw data: it hands its adapters' segments to the trainer,
and says how a model of them is judged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from ..configuration import UnimodalARConfig
from ..modeling import UnimodalARForGeneration
from ..schema import Strict
from .audio import AudioData, AudioOptions
from .images import ImageData, ImageOptions
from .series import DATASETS, SeriesData, SeriesOptions
from .video import VideoData, VideoOptions

__all__ = [
    "DATA",
    "DATASETS",
    "AudioData",
    "AudioOptions",
    "Data",
    "Evaluator",
    "Examples",
    "ImageData",
    "ImageOptions",
]
__all__ += ["SeriesData", "SeriesOptions", "VideoData", "VideoOptions"]


class Examples(Protocol):
    """A torch Dataset whose items, a batch at a time, `collate` turns into the model's arguments."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...

    def collate(self, items: Sequence[Any]) -> dict[str, Any]: ...


class Evaluator(Protocol):
    """Judges a trained model. What can be wrong with data and options is found when it is made, before any training."""

    def run(self, model: UnimodalARForGeneration, folder: Path | None) -> dict[str, Any]:
        """Prints what it finds, returns it as JSON-able data, and writes files, if any, to `folder` (None: none, and
        what is for these alone is not drawn). The evaluation's sampling options become the model's."""


class Data(Protocol):
    """What a data kind is: a class, built from its checked options and all adapters, that reads nothing before `train`,
    `validation` or `evaluator` is called. All errors are ValueErrors."""

    Options: ClassVar[type[Strict]]
    Evaluation: ClassVar[type[Strict]]  # the schema of the recipe's section `evaluation`
    unit: ClassVar[str]  # what its examples are called
    of_training: ClassVar[frozenset[str]]  # options without effect on an evaluation
    options: Strict

    @property
    def modalities(self) -> list[str]:
        """Of the segments, in their order in the sequence: contexts first."""

    def modality_defaults(self, name: str) -> dict[str, Any]:
        """What the data settle of a modality's configuration."""

    def check_model(self, config: UnimodalARConfig) -> None:
        """Raises ValueError where a model of this configuration could not be trained on these data."""

    def train(self) -> Examples: ...

    def validation(self) -> Examples: ...

    def evaluator(self, evaluation: Any, config: UnimodalARConfig, seed: int) -> Evaluator: ...


DATA: dict[str, Any] = {"audio": AudioData, "images": ImageData, "series": SeriesData, "video": VideoData}
