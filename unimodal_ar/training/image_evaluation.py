"""How a model of images is judged after training: bits per dimension of the test part, and a picture of samples."""

from __future__ import annotations

from typing import Any, ClassVar

from ..adapters import ImageAdapter, LabelAdapter
from ..configuration import UnimodalARConfig
from .sample_evaluation import SampleEvaluator, SampleOptions

PICTURE = "samples.png"


class ImageEvaluation(SampleOptions):
    """What is computed of a trained model: see `SampleOptions`. The samples are in samples.png."""


class SamplesAndLikelihood(SampleEvaluator):
    """Bits per dimension on the test part, and samples.png.

    Args:
        adapter, label: of the images, and of their labels (None: they have none).
        test: the test part, an `ImageDataset`.

    Raises:
        ValueError: as `SampleEvaluator`.
    """

    many: ClassVar[str] = "images"
    file: ClassVar[str] = PICTURE

    def __init__(
        self,
        adapter: ImageAdapter,
        label: LabelAdapter | None,
        test: Any,
        evaluation: ImageEvaluation,
        config: UnimodalARConfig,
        seed: int,
    ) -> None:
        super().__init__(adapter, [] if label is None else [label], test, evaluation, config, seed)
