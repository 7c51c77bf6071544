"""Where raw data lie: folders of files, parquet files and Hugging Face data sets, whatever is in them."""

from __future__ import annotations

import importlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np

# From the names of a table's columns, and the table's own: the column of the raw data, and others that are wanted.
Choose = Callable[[list[str], str], tuple[str, list[str]]]


@dataclass(frozen=True)
class Medium:
    """A kind of raw data.

    Attributes:
        one, many: what it is called ("image", "images").
        suffixes: of its files' names, in lower case with the point.
        columns: what a table's column of them may be called.
        feature: the class by which `datasets` decodes them; they are asked for undecoded, so that the adapters' reader
            decodes them, and says which one is broken.
        extra: the extra of this package that reads tables of them.
    """

    one: str
    many: str
    suffixes: tuple[str, ...]
    columns: tuple[str, ...]
    feature: str
    extra: str


@dataclass(frozen=True)
class Column:
    """What a table says of each of its rows.

    Attributes:
        values: of the rows.
        names: what the values, which are numbers then, are called; None: they have no names.
        where: the column and the table, for messages.
    """

    values: list[Any]
    names: list[str] | None
    where: str

    def labels(self) -> tuple[list[int], list[str] | None]:
        """The column as numbers, and what they are called: names become numbers in alphabetical order.

        Raises:
            ValueError: neither names nor whole numbers; the message names the row.
        """
        if all(isinstance(value, str) for value in self.values):
            names = sorted(set(self.values))
            codes = {name: code for code, name in enumerate(names)}
            return [codes[value] for value in self.values], names
        named = isinstance(self.values[0], str)
        for row, value in enumerate(self.values):
            if isinstance(value, bool) or not isinstance(value, str if named else int):
                raise ValueError(
                    f"{self.where} is {value!r} in row {row}; labels must be whole numbers or names, in all rows alike"
                )
        return self.values, self.names


@dataclass(frozen=True, eq=False)
class Table:
    """Raw data of a table.

    Attributes:
        names: of each row, for messages.
        items: what each is read from.
        columns: the other columns that were wanted.
    """

    names: list[str]
    items: Sequence[Any]
    columns: dict[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Listing:
    """The files of a folder.

    Attributes:
        files: sorted; class by class, where there are classes.
        labels: the class of each, from 0 on; None: there are no classes.
        classes: their names, in alphabetical order.
        passed_over: files whose names do not end like the medium's, relative to the folder.
    """

    files: list[Path]
    labels: list[int] | None
    classes: list[str] | None
    passed_over: list[str]


# ---- folders


def read_folder(folder: Path, medium: Medium, others_legal: str) -> Listing:
    """A folder of files, or of one folder per class. Names that begin with a dot are left out.

    Args:
        others_legal: what else a path may be, for the message ("a .parquet file").

    Raises:
        ValueError: no folder, or one that holds none of the medium's files, or both files and folders of files, or
            folders within those of classes.
    """
    many = medium.many
    if not folder.is_dir():
        raise ValueError(f"{folder} is {f'neither a folder nor {others_legal}' if folder.exists() else 'not there'}")
    files, others, folders = _listed(folder, medium)
    if files and any(_holds(sub, medium) for sub in folders):
        raise ValueError(
            f"{folder} holds {many} and folders of {many}; it must hold either, a folder of {many} being a class"
        )
    if files:
        return Listing(files, None, None, _inside(folder, others))
    if not folders:
        raise ValueError(f"{folder} holds no {many}; their names end in one of {', '.join(medium.suffixes)}")
    labels: list[int] = []
    for label, sub in enumerate(folders):
        found, more, below = _listed(sub, medium)
        nested = next((deep for deep in below if _holds(deep, medium)), None)
        if nested is not None:
            raise ValueError(f"{nested} holds {many}; each folder in {folder} is a class and holds its {many} itself")
        if not found:
            raise ValueError(f"{sub} holds no {many}; each folder in {folder} is a class and must hold some")
        files += found
        others += more
        labels += [label] * len(found)
    return Listing(files, labels, [sub.name for sub in folders], _inside(folder, others))


def _listed(folder: Path, medium: Medium) -> tuple[list[Path], list[Path], list[Path]]:
    """The medium's files, the other files and the folders in a folder, each sorted."""
    with os.scandir(folder) as entries:  # which knows folders from files without asking for each
        visible = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    folders = [Path(entry) for entry in visible if entry.is_dir()]
    # A link to nowhere is a file that cannot be read.
    files = [Path(entry) for entry in visible if entry.is_file() or (entry.is_symlink() and not entry.is_dir())]
    found = [path for path in files if path.suffix.lower() in medium.suffixes]
    return found, [path for path in files if path.suffix.lower() not in medium.suffixes], folders


def _holds(folder: Path, medium: Medium) -> bool:
    """At any depth."""
    found, _, folders = _listed(folder, medium)
    return bool(found) or any(_holds(sub, medium) for sub in folders)


def _inside(folder: Path, files: list[Path]) -> list[str]:
    return [str(file.relative_to(folder)) for file in files]


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


def read_table(source: Any, medium: Medium, choose: Choose) -> Table | None:
    """What a table holds; None: the source is none.

    Tables are a .parquet file whose column of raw data holds structs {bytes, path} (as Hugging Face writes them),
    files' bytes or paths; a folder that `datasets.Dataset.save_to_disk` wrote; and a `datasets.Dataset`.

    Raises:
        ValueError: it cannot be read, has no rows, or `choose` says so.
        ImportError: there is no pyarrow or datasets.
    """
    path = Path(source) if isinstance(source, (str, os.PathLike)) else None
    if path is not None and path.is_file() and path.suffix == ".parquet":
        return _read_parquet(path, medium, choose)
    if path is not None and _is_saved_dataset(path):
        return _read_dataset(_load_dataset(path), str(path), medium, choose)
    return _read_dataset(source, "the data set", medium, choose) if _is_dataset(source) else None


def _read_parquet(path: Path, medium: Medium, choose: Choose) -> Table:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise ImportError(f"reading parquet files needs pyarrow: pip install unimodal-ar[{medium.extra}]") from None
    try:
        schema = parquet.read_schema(path)
        chosen, others = choose(schema.names, str(path))
        table = parquet.read_table(path, columns=list(dict.fromkeys([chosen, *others])))
    except (ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a parquet file: {error}") from None
    _check_rows(len(table), str(path))
    column = table.column(chosen)
    files = _files(column, f"column {chosen!r} of {path}", medium)
    columns = {
        name: Column(table.column(name).to_pylist(), _class_names(schema.metadata, name), f"column {name!r} of {path}")
        for name in others
    }
    return Table(_row_names(files, str(path)), _Cells(column, path.parent), columns)


def _files(column: Any, where: str, medium: Medium) -> list[str | None]:
    """The names of the files in a column, as far as it says them."""
    from pyarrow import compute, types

    kind = column.type
    members = [member.name for member in kind] if types.is_struct(kind) else []
    if "bytes" in members and "path" in members:
        return compute.struct_field(column, "path").to_pylist()
    if not (
        types.is_binary(kind) or types.is_large_binary(kind) or types.is_string(kind) or types.is_large_string(kind)
    ):
        raise ValueError(
            f"{where} has type {kind}; {medium.many} are a struct of bytes and path, the bytes of a file, or its path"
        )
    return [None] * len(column)


def _read_dataset(dataset: Any, where: str, medium: Medium, choose: Choose) -> Table:
    chosen, others = choose(dataset.column_names, where)
    _check_rows(len(dataset), where)
    table = dataset.with_format(None).select_columns(others)[:] if others else {}
    columns = {
        name: Column(table[name], getattr(dataset.features[name], "names", None), f"column {name!r} of {where}")
        for name in others
    }
    feature = dataset.features[chosen]
    kind = type(feature).__name__
    dataset = dataset.with_format(None).select_columns([chosen])
    if kind in ("Array2D", "Array3D"):
        dataset = dataset.with_format("numpy", dtype=np.dtype(feature.dtype))  # without it all integers become int64
    if kind == medium.feature:
        dataset = dataset.cast_column(chosen, type(feature)(decode=False))
    return Table(_row_names([None] * len(dataset), where), _Rows(dataset, chosen), columns)


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


def find_column(names: list[str], medium: Medium, given: str | None, where: str) -> str:
    """The column of the raw data: the one that is `given`, or the only one that is called like it.

    Raises:
        ValueError: there is none, or several.
    """
    found = check_column(names, given, medium.one, where) or only_column(names, medium.columns, medium.one, where)
    if found is None:
        raise ValueError(
            f"{where} has no column {' or '.join(medium.columns)}; its columns are {names}, name one as {medium.one}"
        )
    return found


def check_column(names: list[str], given: str | None, role: str, where: str) -> str | None:
    """`given`, which `role` names, if there is such a column."""
    if given is not None and given not in names:
        near = get_close_matches(given, names, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"its columns are {names}"
        raise ValueError(f"{where} has no column {given!r}, which {role} names; {hint}")
    return given


def only_column(names: list[str], candidates: Sequence[str], role: str, where: str) -> str | None:
    """The one column that is called like a candidate; None: there is none."""
    found = [name for name in names if name in candidates]
    if len(found) > 1:
        raise ValueError(f"{where} has several columns that may be the {role}, {found}; say which with {role}=")
    return found[0] if found else None


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
