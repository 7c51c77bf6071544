"""The data kind "audio": clips of audio with or without labels, read once, cut into windows, split by a seed."""

from __future__ import annotations

from typing import ClassVar

from pydantic import NonNegativeFloat
from torch import Tensor

from ..adapters import Adapter
from ..adapters.audio.adapter import AudioAdapter
from ..adapters.audio.sources import AudioSource, read_audios
from ..adapters.clip_sources import ClipSource
from ..configuration import UnimodalARConfig
from .audio_evaluation import AudioEvaluation, AudioEvaluator
from .audio_set import AudioDataset, AudioSet
from .clips import ClipData, ClipOptions

FITTED = 2048  # windows that a scale is fitted to


class AudioOptions(ClipOptions):
    """Clips of audio, see `ClipOptions`. The last window of a clip is filled up with silence. In memory they take 2 or
    4 bytes a sample.

    Args:
        audio_column: of a parquet file or a Dataset; None: found by name.
        overlap: seconds that neighbouring windows of a clip longer than the adapter's share.
    """

    modality: str = "audio"
    path: str
    audio_column: str | None = None
    overlap: NonNegativeFloat = 0.0


class AudioData(ClipData[AudioDataset]):
    """Windows of clips of audio for training, validation and testing, see `ClipData`."""

    Options: ClassVar[type[AudioOptions]] = AudioOptions
    Evaluation: ClassVar[type[AudioEvaluation]] = AudioEvaluation
    encoder: ClassVar[type[Adapter]] = AudioAdapter
    medium: ClassVar[str] = "an audio"
    options: AudioOptions
    adapter: AudioAdapter

    def evaluator(self, evaluation: AudioEvaluation, config: UnimodalARConfig, seed: int) -> AudioEvaluator:
        labels = [adapter for adapter, _ in self.labels.values()]
        return AudioEvaluator(self.adapter, labels, self.test(), evaluation, config, seed)

    def _check_windows(self) -> None:
        overlap, seconds = self.options.overlap, self.adapter.seconds
        if overlap >= seconds:
            raise ValueError(f"data.overlap is {overlap} s; windows have {seconds} s, so it is too long")

    def _source(self, path: str, columns: list[str]) -> AudioSource:
        return read_audios(path, columns, self.options.audio_column, self.options.pattern)

    def _clip_set(self, source: ClipSource, name: str, classes: dict[str, list[str]] | None = None) -> AudioSet:
        return AudioSet(source, name, self.adapter, self.labels, self.options.overlap, self.options.in_memory, classes)

    def _dataset(self, clips: AudioSet, rows: Tensor, part: str) -> AudioDataset:
        return AudioDataset(clips, rows)

    def _fit(self, train: AudioDataset) -> None:
        if self.adapter.needs_fit:
            self.adapter.fit(train.waves(FITTED))
