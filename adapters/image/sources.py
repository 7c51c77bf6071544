"""Readers: folders, lists, parquet files, Hugging Face data sets and arrays -> an `ImageSource`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .. import sources
from ..sources import Medium, find_column
from .pictures import check_array, open_picture

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels")
_IMAGES = Medium("image", "images", SUFFIXES, IMAGE_NAMES, feature="Image", extra="image")


@dataclass(frozen=True, eq=False)
class ImageSource:
    """A set of images that are read one by one.

    Args:
        names: the file of each, or its place, for messages.
        items: what each is read from (as `open_picture` takes it).
        labels: the class of each, from 0 on; None: unknown.
        classes: the classes' names; None: they have none.
        passed_over: files beside the images that are not read: their names do not end like an image's.
    """

    names: list[str]
    items: Sequence[Any]
    labels: list[int] | None = None
    classes: list[str] | None = None
    passed_over: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Image.Image:
        """Image `index`, loaded and upright; its `filename` is its name here.

        Raises:
            ValueError: it cannot be read; the message names it.
        """
        return open_picture(self.items[index], self.names[index])


def read_images(source: Any, image: str | None = None, label: str | None = None) -> ImageSource:
    """Finds images and their labels; the images themselves are read by `load`.

    Sources:

    - a folder of images, or of one folder per class: the classes are the folders in alphabetical order. Names that
      begin with a dot are left out, and so are files whose name does not end like an image's (`passed_over`);
    - a .parquet file whose image column holds structs {bytes, path} (as Hugging Face writes them), files' bytes or
      paths;
    - a `datasets.Dataset`, or a folder that its `save_to_disk` wrote;
    - a uint8 array or tensor [B, H, W] or [B, H, W, C];
    - a list of paths, PIL images or arrays.

    Labels of tables are whole numbers, or names that become numbers in alphabetical order; where the table says what
    its numbers are called, those are the classes.

    Args:
        image: a table's column of images. None: the one named in IMAGE_NAMES.
        label: a table's column of labels. None: the one named in LABEL_NAMES, if any.

    Returns:
        At least one image.

    Raises:
        ValueError: anything that cannot be read so; the message names the file or column.
        ImportError: a table, and no pyarrow or datasets.
    """
    table = sources.read_table(source, _IMAGES, partial(_columns, image=image, label=label))
    if table is not None:
        labels, classes = next((column.labels() for column in table.columns.values()), (None, None))
        return ImageSource(table.names, table.items, labels, classes)
    if image is not None or label is not None:
        raise ValueError(f"image is {image!r} and label {label!r}; they name columns, and the source is not a table")
    if not isinstance(source, (str, os.PathLike)):
        return _from_items(source)
    found = sources.read_folder(Path(source), _IMAGES, "a .parquet file")
    names = [str(file) for file in found.files]
    return ImageSource(names, found.files, found.labels, found.classes, found.passed_over)


def _from_items(source: Any) -> ImageSource:
    if isinstance(source, (np.ndarray, Tensor)):
        array = check_array(source, "the array", "[B, H, W]", "[B, H, W, C]")
        return ImageSource([f"image {place} of the array" for place in range(len(array))], list(array))
    if not isinstance(source, (list, tuple)):
        legal = "folders, .parquet files, lists, arrays and datasets.Dataset"
        raise ValueError(f"the source is of type {type(source).__name__}; legal are {legal}")
    if not source:
        raise ValueError("the list of images is empty; it must hold at least one")
    return ImageSource([_name(item, place) for place, item in enumerate(source)], source)


def _name(item: Any, place: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item)
    return getattr(item, "filename", "") or f"image {place} of the list"


def _columns(names: list[str], where: str, image: str | None, label: str | None) -> tuple[str, list[str]]:
    """The columns of images and, if any, of labels."""
    sources.check_column(names, image, "image", where)
    sources.check_column(names, label, "label", where)
    found = find_column(names, _IMAGES, image, where)
    label = label or sources.only_column(names, LABEL_NAMES, "label", where)
    return found, [] if label is None else [label]
