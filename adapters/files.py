"""Files that adapters write, whole or not at all."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


def check_path(path: str | os.PathLike[str], what: str, suffixes: Sequence[str]) -> Path:
    """`path`, if such a file can be written there.

    Args:
        what: it is to be ("an audio file").
        suffixes: with which its name must end, in lower case with the point.

    Raises:
        ValueError: another suffix, a folder that is missing.
    """
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} is to be {what}; its name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise ValueError(f"{path} cannot be written; there is no folder {path.parent}")
    return path


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A file beside `path` to be written, which takes its place when the `with` block ends without an error."""
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
