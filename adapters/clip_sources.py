"""What sources of audio and of video have in common: folders, manifests, tables, lists of clips -> a `ClipSource`."""

from __future__ import annotations

import json
import math
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from . import sources
from .sources import Column, Medium

CLASS = "class"  # the column of a folder per class
_PLACES = ("path", "start", "end")  # keys of a manifest that are no columns

Span = tuple[float, float | None]
Source = TypeVar("Source", bound="ClipSource")


@dataclass(frozen=True, eq=False)
class ClipSource(ABC):
    """A set of clips that are read one by one.

    Args:
        names: the file of each, or its place, for messages.
        items: what each is read from: anything that the medium's `open_clip` takes.
        columns: what is known of the clips, by name.
        spans: the part of each that is meant, (start, end) in seconds, end None: until its end. None: all of each.
        passed_over: files beside these that are not read: their names do not end like the medium's files', or the
            pattern does not match them.
    """

    names: list[str]
    items: Sequence[Any]
    columns: Mapping[str, Column] = field(default_factory=dict)
    spans: list[Span] | None = None
    passed_over: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    @abstractmethod
    def load(self, index: int) -> Any:
        """Clip `index`; its `name` is its name here.

        Raises:
            ValueError: it cannot be read, or does not reach as far as its span; the message names it.
        """


def read_clips(
    source: Any, medium: Medium, kind: type[Source], columns: Sequence[str], column: str | None, pattern: str | None
) -> Source:
    """Finds files of clips and what is known of them; the clips themselves are read by `load`.

    Args:
        source: a folder, a .jsonl manifest, a table or a list, see `read_audios`.
        medium: what is looked for.
        kind: the class of what is returned.
        columns: which columns to read.
        column: a table's column of clips. None: the one named in the medium's columns.
        pattern: a regular expression that matches the whole name of a file (without folder and suffix); its named
            groups are columns.

    Returns:
        At least one clip.

    Raises:
        ValueError: anything that cannot be read so; the message names the file or column.
        ImportError: a table, and no pyarrow or datasets.
    """
    table = sources.read_table(source, medium, partial(_columns, medium=medium, column=column, wanted=columns))
    if table is not None:
        if pattern is not None:
            raise ValueError(f"pattern is {pattern!r}; it reads names of files, and {source} is a table, with columns")
        return kind(table.names, table.items, table.columns)
    if column is not None:
        raise ValueError(f"{medium.one} is {column!r}; it names a column, and the source is not a table")
    found, where = _from_files(source, medium, kind)
    if pattern is not None:
        found = _matched(found, compile_pattern(pattern), where)
    for name in columns:
        sources.check_column(list(found.columns), name, "columns", where)
    return found


def compile_pattern(pattern: str) -> re.Pattern[str]:
    """Raises ValueError where it is no regular expression, or has no named groups."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"pattern is {pattern!r}, no regular expression: {error}") from None
    if not compiled.groupindex:
        raise ValueError(f"pattern is {pattern!r}; it must have named groups, (?P<speaker>\\w+) say")
    return compiled


def _from_files(source: Any, medium: Medium, kind: type[Source]) -> tuple[Source, str]:
    """A source that is no table, and its name."""
    if not isinstance(source, (str, os.PathLike)):
        return _from_items(source, medium, kind), "the list"
    path = Path(source)
    if path.is_file() and path.suffix == ".jsonl":
        return _from_manifest(path, medium, kind), str(path)
    found = sources.read_folder(path, medium, "a .jsonl or .parquet file")
    columns = {}
    if found.labels is not None:
        columns[CLASS] = Column(found.labels, found.classes, f"column {CLASS!r} of {path}")
    names = [str(file) for file in found.files]
    return kind(names, found.files, columns, passed_over=found.passed_over), str(path)


def _from_items(source: Any, medium: Medium, kind: type[Source]) -> Source:
    if not isinstance(source, (list, tuple)):
        legal = "folders, .jsonl and .parquet files, lists and datasets.Dataset"
        raise ValueError(f"the source is of type {type(source).__name__}; legal are {legal}")
    if not source:
        raise ValueError(f"the list of {medium.many} is empty; it must hold at least one")
    return kind([_name(item, place) for place, item in enumerate(source)], source)


def _name(item: Any, place: int) -> str:
    if isinstance(item, (str, os.PathLike)):
        return os.fspath(item)
    return getattr(item, "name", "") or f"clip {place} of the list"


def _columns(
    names: list[str], where: str, medium: Medium, column: str | None, wanted: Sequence[str]
) -> tuple[str, list[str]]:
    found = sources.find_column(names, medium, column, where)
    for name in wanted:
        sources.check_column(names, name, "columns", where)
    return found, list(dict.fromkeys(wanted))


# ---- names of files


def _matched(source: Source, pattern: re.Pattern[str], where: str) -> Source:
    """The files that the pattern matches, with its groups as columns."""
    double = sorted(pattern.groupindex.keys() & source.columns.keys())
    if double:
        raise ValueError(f"pattern {pattern.pattern!r} has a group {double[0]!r}, and {where} has such a column, too")
    matches = [pattern.fullmatch(Path(item).stem) if _is_path(item) else None for item in source.items]
    kept = [place for place, match in enumerate(matches) if match]
    if not kept:
        raise ValueError(
            f"pattern {pattern.pattern!r} matches none of the {len(source)} names of {where}, {source.names[0]!r} say"
        )
    groups = [match.groupdict() for match in matches if match]
    named = {
        name: Column([group[name] for group in groups], None, f"group {name!r} of the pattern")
        for name in pattern.groupindex
    }
    known = {name: replace(column, values=_at(column.values, kept)) for name, column in source.columns.items()}
    others = [name for name, match in zip(source.names, matches, strict=True) if not match]
    return replace(
        source,
        names=_at(source.names, kept),
        items=_at(source.items, kept),
        columns=known | named,
        spans=None if source.spans is None else _at(source.spans, kept),
        passed_over=[*source.passed_over, *others],
    )


def _at(values: Sequence[Any], places: list[int]) -> list[Any]:
    return [values[place] for place in places]


def _is_path(item: Any) -> bool:
    return isinstance(item, (str, os.PathLike))


# ---- manifests


def _from_manifest(path: Path, medium: Medium, kind: type[Source]) -> Source:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8: byte {error.start} is {error.object[error.start]:#04x}") from None
    # Not splitlines, for which a line separator within a transcript ends a line, too.
    rows = [_row(path, number, line, medium) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not rows:
        raise ValueError(f"{path} has no rows; it must have at least one")
    keys = dict.fromkeys(key for row in rows for key in row if key not in _PLACES)
    columns = {key: Column([row.get(key) for row in rows], None, f"key {key!r} of {path}") for key in keys}
    files = [path.parent / row["path"] for row in rows]
    spans = [(row.get("start") or 0.0, row.get("end")) for row in rows]
    names = [str(file) + _told(*span) for file, span in zip(files, spans, strict=True)]
    return kind(names, files, columns, spans)


def _row(path: Path, number: int, line: str, medium: Medium) -> dict[str, Any]:
    """One line of a manifest."""
    where = f"line {number} of {path}"
    try:
        row = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is not valid JSON: {error}") from None
    if not isinstance(row, dict) or not isinstance(row.get("path"), str):
        article = "an" if medium.one[0] in "aeiou" else "a"
        raise ValueError(
            f"{where} is {line.strip()[:80]!r}; it must be an object with the 'path' of {article} {medium.one} file"
        )
    for key in ("start", "end"):
        value = row.get(key)
        number_given = isinstance(value, (int, float)) and not isinstance(value, bool)
        if value is not None and not (number_given and 0 <= value < math.inf):
            raise ValueError(f"{key} is {value!r} in {where}; it must be a number of seconds, 0 or more")
    if row.get("end") is not None and row["end"] <= (row.get("start") or 0):
        raise ValueError(f"end is {row['end']} in {where}; it must lie after start, {row.get('start') or 0}")
    return row


def _told(start: float, end: float | None) -> str:
    if end is None:
        return f" from {start:g} s" if start else ""
    return f" from {start:g} to {end:g} s"
