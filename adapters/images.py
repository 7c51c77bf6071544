"""Readers: folders, lists, parquet files, Hugging Face data sets and arrays -> an `ImageSource`."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from .pictures import check_array, open_picture

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm")
IMAGE_NAMES = ("image", "img")
LABEL_NAMES = ("label", "labels")


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
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    if path is not None and path.is_file() and path.suffix == ".parquet":
        return _from_parquet(path, image, label)
    if path is not None and _is_saved_dataset(path):
        return _from_dataset(_load_dataset(path), str(path), image, label)
    if _is_dataset(source):
        return _from_dataset(source, "the data set", image, label)
    if image is not None or label is not None:
        raise ValueError(f"image is {image!r} and label {label!r}; they name columns, and the source is not a table")
    return _from_items(source) if path is None else _from_folder(path)


# ---- folders, lists and arrays


def _from_folder(folder: Path) -> ImageSource:
    if not folder.is_dir():
        raise ValueError(f"{folder} is {'neither a folder nor a .parquet file' if folder.exists() else 'not there'}")
    files, others, folders = _listed(folder)
    if files and any(_holds_images(sub) for sub in folders):
        raise ValueError(
            f"{folder} holds images and folders of images; it must hold either, a folder of images being a class"
        )
    if files:
        return ImageSource([str(file) for file in files], files, passed_over=_inside(folder, others))
    if not folders:
        raise ValueError(f"{folder} holds no images; their names end in one of {', '.join(SUFFIXES)}")
    labels: list[int] = []
    for label, sub in enumerate(folders):
        found, more, below = _listed(sub)
        nested = next((deep for deep in below if _holds_images(deep)), None)
        if nested is not None:
            raise ValueError(f"{nested} holds images; each folder in {folder} is a class and holds its images itself")
        if not found:
            raise ValueError(f"{sub} holds no images; each folder in {folder} is a class and must hold some")
        files += found
        others += more
        labels += [label] * len(found)
    names, classes = [str(file) for file in files], [sub.name for sub in folders]
    return ImageSource(names, files, labels, classes, _inside(folder, others))


def _listed(folder: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The images, the other files and the folders in a folder, each sorted."""
    with os.scandir(folder) as entries:  # which knows folders from files without asking for each
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders = [Path(entry) for entry in visible if entry.is_dir()]
    files = [Path(entry) for entry in visible if entry.is_file()]
    images = [path for path in files if path.suffix.lower() in SUFFIXES]
    return images, [path for path in files if path.suffix.lower() not in SUFFIXES], folders


def _holds_images(folder: Path) -> bool:
    """At any depth."""
    images, _, folders = _listed(folder)
    return bool(images) or any(_holds_images(sub) for sub in folders)


def _inside(folder: Path, files: list[Path]) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


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


# ---- tables


class _Cells(Sequence[Any]):
    """A column of a parquet file; paths in it are relative to the file's folder."""

    def __init__(self, column: Any, folder: Path) -> None:
        self.column, self.folder = column, folder

    def __len__(self) -> int:
        return len(self.column)

    def __getitem__(self, index: Any) -> Any:
        cell = self.column[index].as_py()
        if isinstance(cell, dict):
            cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
        return self.folder / cell if isinstance(cell, str) else cell


class _Rows(Sequence[Any]):
    """A column of a `datasets.Dataset`, read row by row."""

    def __init__(self, dataset: Any, column: str) -> None:
        self.dataset, self.column = dataset, column

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        return self.dataset[index][self.column]


def _from_parquet(path: Path, image: str | None, label: str | None) -> ImageSource:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError("reading parquet files needs pyarrow: pip install unimodal-ar[image]") from None
    try:
        schema = parquet.read_schema(path)
        image, label = _columns(schema.names, str(path), image, label)
        table = parquet.read_table(path, columns=[image] if label is None else [image, label])
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {error}") from None
    _check_rows(len(table), str(path))
    column = table.column(image)
    files = _files(column, f"column {image!r} of {path}")
    labels, classes = None, None
    if label is not None:
        labels, classes = _labels(
            table.column(label).to_pylist(), _class_names(schema.metadata, label), label, str(path)
        )
    return ImageSource(_row_names(files, str(path)), _Cells(column, path.parent), labels, classes)


def _files(column: Any, where: str) -> list[str | None]:
    """The names of the files in a column of images, as far as it says them."""
    from pyarrow import compute, types

    kind = column.type
    members = [field.name for field in kind] if types.is_struct(kind) else []
    if "bytes" in members and "path" in members:
        return compute.struct_field(column, "path").to_pylist()
    if not (
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_string(kind) or types.is_large_string(kind)
    ):
        raise ValueError(
            f"{where} has type {kind}; images are a struct of bytes and path, the bytes of a file, or its path"
        )
    return [None] * len(column)


def _from_dataset(dataset: Any, where: str, image: str | None, label: str | None) -> ImageSource:
    image, label = _columns(dataset.column_names, where, image, label)
    _check_rows(len(dataset), where)
    labels, classes = None, None
    if label is not None:
        column = dataset.with_format(None).select_columns([label])[:][label]
        labels, classes = _labels(column, getattr(dataset.features[label], "names", None), label, where)
    feature = dataset.features[image]
    kind = type(feature).__name__
    dataset = dataset.with_format(None).select_columns([image])
    if kind in ("Array2D", "Array3D"):
        dataset = dataset.with_format("numpy", dtype=np.dtype(feature.dtype))  # without it all integers become int64
    if kind == "Image":
        # `open_picture` decodes the files, and says which one is broken.
        dataset = dataset.cast_column(image, type(feature)(decode=False))
    return ImageSource(_row_names([None] * len(dataset), where), _Rows(dataset, image), labels, classes)


def _is_dataset(source: Any) -> bool:
    # By the class's home and name, so that other sources are read without importing datasets.
    return any(base.__module__.startswith("datasets.") and base.__name__ == "Dataset" for base in type(source).__mro__)


def _is_saved_dataset(folder: Path) -> bool:
    """Whether `Dataset.save_to_disk` wrote the folder; that of several splits is an error."""
    splits = folder / "dataset_dict.json"
    if splits.is_file():
        names = json.loads(splits.read_text(encoding="utf-8")).get("splits")
        raise ValueError(f"{folder} holds the splits {names}; name the folder of one of them")
    return (folder / "state.json").is_file() and (folder / "dataset_info.json").is_file()


def _load_dataset(folder: Path) -> Any:
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise ImportError("reading data sets of Hugging Face needs datasets: pip install datasets") from None
    return datasets.load_from_disk(str(folder))


def _columns(names: list[str], where: str, image: str | None, label: str | None) -> tuple[str, str | None]:
    """The columns of images and of labels."""
    for role, name in (("image", image), ("label", label)):
        if name is not None and name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"its columns are {names}"
            raise ValueError(f"{where} has no column {name!r}, which {role} names; {hint}")
    found = image or _only([name for name in names if name in IMAGE_NAMES], "image", where)
    if found is None:
        raise ValueError(
            f"{where} has no column {' or '.join(IMAGE_NAMES)}; its columns are {names}, name one as image"
        )
    return found, label or _only([name for name in names if name in LABEL_NAMES], "label", where)


def _only(names: list[str], role: str, where: str) -> str | None:
    if len(names) > 1:
        raise ValueError(f"{where} has several columns that may be the {role}, {names}; say which with {role}=")
    return names[0] if names else None


def _check_rows(count: int, where: str) -> None:
    if count == 0:
        raise ValueError(f"{where} has no rows; it must have at least one")


def _row_names(files: Sequence[str | None], where: str) -> list[str]:
    return [f"row {row} of {where}" + (f" ({file})" if file else "") for row, file in enumerate(files)]


def _class_names(metadata: dict[bytes, bytes] | None, label: str) -> list[str] | None:
    """What Hugging Face datasets writes into a parquet file about a column of classes."""
    content = (metadata or {}).get(b"huggingface")
    if content is None:
        return None
    return json.loads(content).get("info", {}).get("features", {}).get(label, {}).get("names")


def _labels(column: list[Any], classes: list[str] | None, label: str, where: str) -> tuple[list[int], list[str] | None]:
    """The column as numbers, and what they are called."""
    if all(isinstance(cell, str) for cell in column):
        names = sorted(set(column))
        codes = {name: code for code, name in enumerate(names)}
        return [codes[name] for name in column], names
    for row, cell in enumerate(column):
        if isinstance(cell, bool) or not isinstance(cell, int):
            raise ValueError(
                f"column {label!r} of {where} is {cell!r} in row {row}; labels must be whole numbers or names"
            )
    return column, classes
