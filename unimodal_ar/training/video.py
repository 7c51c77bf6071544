"""The data kind "video": videos with or without labels, read once, cut into windows, split by a seed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import NonNegativeInt, SerializeAsAny, field_validator, model_validator
from torch import Tensor

from ..adapters import Adapter, VideoAdapter, VideoSource, read_videos
from ..adapters.clip_sources import ClipSource
from ..adapters.sources import check_column
from ..configuration import UnimodalARConfig
from ..schema import Strict, one_source, parse
from .clips import ClipData, ClipOptions
from .video_datasets import DATASETS
from .video_evaluation import VideoEvaluation, VideoEvaluator
from .video_set import VideoDataset, VideoSet

LISTED = 8  # legal numbers that a message names


class VideoOptions(ClipOptions):
    """Videos, see `ClipOptions`. What is left at the end of a clip, shorter than a window, is in no fixed window; a
    clip shorter than a window is left out, and told. In memory they take H * W * C bytes a frame.

    Args:
        video_column: of a parquet file or a Dataset; None: found by name.
        path, dataset: where they come from, exactly one of both. dataset: {kind: a name in `video_datasets.DATASETS`,
            and its options}.
        overlap: frames that neighbouring windows of a clip share.
        random_starts: in training a window begins at a random frame of its clip, drawn anew each time it is used, by
            the recipe's seed, the epoch and the place in it. Each clip counts as many examples as it has fixed windows;
            validation and test windows are fixed. None: true, but where a tokenizer joins frames, whose values are kept
            of fixed windows.
        anchor: so many first frames of every window are the first of its clip, and the others begin at or after them:
            what a model sees that draws long videos window by window with a sink (the anchored first frame of ART-V,
            arXiv 2311.18834). Whole steps of the adapter, fewer than a window.
        flip: mirror half of the training windows, left to right, drawn like the starts.
    """

    modality: str = "video"
    video_column: str | None = None
    dataset: SerializeAsAny[Strict] | None = None
    overlap: NonNegativeInt = 0
    random_starts: bool | None = None
    anchor: NonNegativeInt = 0
    flip: bool = False

    @field_validator("dataset", mode="before")
    @classmethod
    def _named(cls, dataset: Any) -> Any:
        if dataset is None or isinstance(dataset, Strict):
            return dataset
        kind = dataset.get("kind") if isinstance(dataset, Mapping) else None
        if kind not in list(DATASETS):
            raise ValueError(f"it must be a mapping with a kind, one of {sorted(DATASETS)}")
        return parse(DATASETS[kind].Options, dataset, "dataset")

    @model_validator(mode="after")
    def _one_source(self) -> VideoOptions:
        one_source(self.path, self.dataset)
        for name in ("pattern", "video_column"):
            if self.path is None and self.test_path is None and getattr(self, name) is not None:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it reads what a path holds, and none is given")
        return self


class VideoData(ClipData[VideoDataset]):
    """Windows of videos for training, validation and testing, see `ClipData`."""

    Options: ClassVar[type[VideoOptions]] = VideoOptions
    Evaluation: ClassVar[type[VideoEvaluation]] = VideoEvaluation
    encoder: ClassVar[type[Adapter]] = VideoAdapter
    medium: ClassVar[str] = "a video"
    of_training: ClassVar[frozenset[str]] = frozenset({"flip", "random_starts"})
    options: VideoOptions
    adapter: VideoAdapter

    def evaluator(self, evaluation: VideoEvaluation, config: UnimodalARConfig, seed: int) -> VideoEvaluator:
        labels = [adapter for adapter, _ in self.labels.values()]
        return VideoEvaluator(self.adapter, labels, self.test(), evaluation, config, seed)

    @property
    def random_starts(self) -> bool:
        """Whether training windows begin at random frames."""
        chosen = self.options.random_starts
        return not self.adapter.joins_frames if chosen is None else chosen

    def _check_windows(self) -> None:
        o, adapter = self.options, self.adapter
        if adapter.joins_frames and o.random_starts:
            raise ValueError(
                "data.random_starts is True, and the adapter's tokenizer joins frames, so what it makes of fixed "
                "windows is kept; it must be false"
            )
        whole = [number for number in range(adapter.frames) if adapter.whole(number) == number]
        if o.anchor not in whole:
            raise ValueError(f"data.anchor is {o.anchor} frames; with this adapter it must be {_listed(whole)}")
        moving = adapter.frames - o.anchor
        if o.overlap >= moving:
            raise ValueError(
                f"data.overlap is {o.overlap} frames; windows have {moving}, without the anchor, so it is too long"
            )
        # A second window is then to begin at a whole step.
        ends = {number: adapter.frames + moving - number for number in range(moving)}
        steps = [number for number, end in ends.items() if adapter.whole(end) == end]
        if adapter.joins_frames and o.anchor and o.overlap not in steps:
            raise ValueError(
                f"data.overlap is {o.overlap} frames; with an anchor and a tokenizer that joins frames it must be "
                f"{_listed(steps)}"
            )

    def _source(self, path: str, columns: list[str]) -> VideoSource:
        return read_videos(path, columns, self.options.video_column, self.options.pattern)

    def _all(self) -> tuple[ClipSource, str]:
        dataset: Any = self.options.dataset
        if dataset is None:
            return super()._all()
        found = DATASETS[dataset.kind].build(dataset, self.adapter)
        for name in self.options.columns:
            check_column(list(found.columns), name, "data", f"dataset {dataset.kind!r}")
        return found, dataset.kind

    def _clip_set(self, source: ClipSource, name: str, classes: dict[str, list[str]] | None = None) -> VideoSet:
        o = self.options
        flip = o.flip and classes is None  # a test part of its own is not mirrored
        return VideoSet(source, name, self.adapter, self.labels, o.overlap, o.anchor, flip, o.in_memory, classes)

    def _dataset(self, clips: VideoSet, rows: Tensor, part: str) -> VideoDataset:
        training = part == "train"
        return VideoDataset(clips, rows, training and self.random_starts, training and self.options.flip)


def _listed(numbers: Sequence[int]) -> str:
    """Legal numbers in words, the first few."""
    told = ", ".join(map(str, numbers[:LISTED]))
    return f"one of {told}{', ...' * (len(numbers) > LISTED)}" if len(numbers) > 1 else told
