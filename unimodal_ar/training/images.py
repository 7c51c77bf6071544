"""The data kind "images": images with or without class labels, read once, split by a seed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from pydantic import Field, NonNegativeInt, model_validator

from ..adapters import Adapter, ImageAdapter, ImageSource, LabelAdapter, read_images
from ..configuration import UnimodalARConfig
from ..fitting import check_adapter
from ..schema import Strict, one_source
from .image_evaluation import ImageEvaluation, SamplesAndLikelihood
from .image_set import ImageDataset, ImageSet
from .source_set import split

Count = Annotated[int, Field(ge=0, strict=True)]  # 1.0 is no count
Fraction = Annotated[float, Field(ge=0, lt=1)]
FITTED = 2048  # images that a palette is fitted to where they are not in memory


class ImageOptions(Strict):
    """Images, each a training, a validation or a test example.

    Args:
        modality: which adapter encodes them.
        label: which adapter encodes their labels; None: an unconditional model.
        path: a folder (of images, or of one folder per class), a .parquet file, or a folder that
            `datasets.Dataset.save_to_disk` wrote; dataset: a named one from `DATASETS`. Exactly one of them.
        image_column, label_column: of a parquet file or a Dataset; None: found by name and type.
        classes: use only the images of these classes, by the names that reading tells ("9", "cat"). Every image is
            read, and stays in the part that it is in with all classes: what one model was tested on, another with more
            classes does not train on. Labels keep their codes. None: all.
        validation, test: the held-out parts, as a number of images or as a fraction of all; labels are as frequent in
            each part as in the whole.
        test_path: a test part of its own, as `path`; nothing is then cut from `path`.
        flip: mirror half of the training images, left to right. Drawn anew each time an image is used, by the recipe's
            seed, the epoch and the place in it.
        in_memory: keep all images decoded, H * W * C bytes each. False: decode each whenever it is used, in the
            loading workers (training.dataloader_num_workers). What a frozen tokenizer makes of them is always kept.
        seed: of the split and of a palette; the recipe's own seed leaves both as they are, so that models of different
            seeds can be compared.
    """

    modality: str = "image"
    label: str | None = "label"
    path: str | None = None
    dataset: str | None = None
    image_column: str | None = None
    label_column: str | None = None
    classes: Annotated[list[str | Count], Field(min_length=1)] | None = None
    validation: Count | Fraction = Field(default=0.1, gt=0)
    test: Count | Fraction | None = None
    test_path: str | None = None
    flip: bool = False
    in_memory: bool = True
    seed: NonNegativeInt = 0

    @model_validator(mode="after")
    def _one_source(self) -> ImageOptions:
        one_source(self.path, self.dataset)
        if self.dataset is not None and self.dataset not in DATASETS:
            raise ValueError(f"dataset is {self.dataset!r}; known datasets are {sorted(DATASETS)}")
        if self.test_path is not None and self.test:
            raise ValueError("give at most one of test and test_path")
        if self.classes is not None and self.label is None:
            raise ValueError("classes chooses by label, so label must name a label adapter")
        return self

    @property
    def test_share(self) -> int | float:
        """What is cut from the images for testing: a tenth, where nothing is said of a test part."""
        return self.test if self.test is not None else 0.0 if self.test_path is not None else 0.1


def digits() -> ImageSource:
    """scikit-learn's 1797 handwritten digits (Alpaydin and Kaynak 1998): 8 x 8 pixels, 17 levels of grey, spread over
    0..255; labels 0..9."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ImportError("scikit-learn's digits need it: pip install unimodal-ar[demo]") from None
    table = load_digits()
    pixels = torch.from_numpy(table.images / 16 * 255).round().byte()
    return replace(read_images(pixels), labels=table.target.tolist())


DATASETS: dict[str, Callable[[], ImageSource]] = {"digits": digits}


class ImageData:
    """Images for training, validation and testing.

    Files that cannot be read are counted and listed on stderr, with the reason, and left out.

    Raises:
        ValueError: an adapter is of another kind; when the data are read: no image can be read, a label that the label
            adapter does not know, parts that leave nothing to train on.
    """

    Options: ClassVar[type[ImageOptions]] = ImageOptions
    Evaluation: ClassVar[type[ImageEvaluation]] = ImageEvaluation
    unit: ClassVar[str] = "images"
    of_training: ClassVar[frozenset[str]] = frozenset({"flip"})

    def __init__(self, options: ImageOptions, adapters: dict[str, Adapter]) -> None:
        adapter, label = adapters.get(options.modality), adapters.get(options.label or "")
        if not isinstance(adapter, ImageAdapter):
            raise ValueError(f"data.modality is {options.modality!r}; it must name an image adapter")
        if options.label is not None and not isinstance(label, LabelAdapter):
            raise ValueError(
                f"data.label is {options.label!r}; it must name a label adapter, or be null for a model without labels"
            )
        self.options, self.adapter = options, adapter
        self.label_adapter = label if isinstance(label, LabelAdapter) else None
        unread = sorted(adapters.keys() - self.modalities)
        if unread:
            raise ValueError(f"adapters.{unread[0]} is used by nothing; images have the modalities {self.modalities}")
        self._parts: dict[str, ImageDataset] | None = None

    @property
    def modalities(self) -> list[str]:
        return [name for name in (self.options.label, self.options.modality) if name is not None]

    def modality_defaults(self, name: str) -> dict[str, Any]:
        """What the data settle of a modality's configuration."""
        grids = {self.options.label: (1, 1, 1), self.options.modality: self.adapter.grid}
        return {"grid": list(grids[name])} if name in grids else {}

    def check_model(self, config: UnimodalARConfig) -> None:
        """Raises ValueError where the model could not be trained on these images."""
        name, label = self.options.modality, self.options.label
        if config.modality(name).head is None:
            raise ValueError(f"modalities.{name} has no head; the data are its images, so it needs one to be trained")
        if label is not None and config.modality(label).head is not None:
            raise ValueError(f"modalities.{label} has a head; labels are given, not drawn, so leave it out")
        for adapter in filter(None, (self.label_adapter, self.adapter)):
            check_adapter(adapter, config.modality(adapter.modality))

    def train(self) -> ImageDataset:
        return self._part("train")

    def validation(self) -> ImageDataset:
        return self._part("validation")

    def test(self) -> ImageDataset:
        """May be empty."""
        return self._part("test")

    def evaluator(self, evaluation: ImageEvaluation, config: UnimodalARConfig, seed: int) -> SamplesAndLikelihood:
        return SamplesAndLikelihood(self.adapter, self.label_adapter, self.test(), evaluation, config, seed)

    def _part(self, name: str) -> ImageDataset:
        if self._parts is None:
            self._parts = self._read()
        return self._parts[name]

    def _read(self) -> dict[str, ImageDataset]:
        o = self.options
        source = DATASETS[o.dataset]() if o.dataset is not None else read_images(o.path, o.image_column, o.label_column)
        images = self._image_set(source, str(o.dataset or o.path), o.flip)
        rows = split(images.strata, [o.test_share, o.validation], o.seed)
        test, validation, train = (images.chosen(part, o.classes) for part in rows)
        if not len(train) or not len(validation):
            raise ValueError(
                f"{images.name} has {len(images)} images, of which {len(train)} are left to train on after "
                f"{len(test)} of test and {len(validation)} of validation"
                f"{'' if o.classes is None else f', all of the classes {o.classes}'}; training and validation need some"
            )
        if self.adapter.needs_fit:
            # In the source's order they would be of the first classes only.
            some = torch.randperm(len(train), generator=torch.Generator().manual_seed(o.seed))[:FITTED].sort().values
            self.adapter.fit(images.pixels(train if o.in_memory else train[some]), seed=o.seed)
            images.encode()
        parts = {"train": (images, train), "validation": (images, validation), "test": (images, test)}
        if o.test_path is not None:
            others = read_images(o.test_path, o.image_column, o.label_column)
            tests = self._image_set(others, o.test_path, False, images.classes)
            parts["test"] = (tests, tests.chosen(torch.arange(len(tests)), o.classes))
        return {name: ImageDataset(*part, flip=o.flip and name == "train") for name, part in parts.items()}

    def _image_set(self, source: ImageSource, name: str, flip: bool, classes: list[str] | None = None) -> ImageSet:
        return ImageSet(source, name, self.adapter, self.label_adapter, self.options.in_memory, flip, classes)
