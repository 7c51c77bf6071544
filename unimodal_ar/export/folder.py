"""Where exports go: a folder of their own, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..saving import write_whole


def new_folder(out: str | os.PathLike[str]) -> Path:
    """`out`, which may be written to; raises ValueError where it is a file, or holds anything."""
    path = Path(out)
    if path.exists() and not path.is_dir():
        raise ValueError(f"out is {str(out)!r}, which is a file; it must be a folder")
    held = next(path.iterdir(), None) if path.is_dir() else None
    if held is not None:
        raise ValueError(f"out is {str(out)!r}, which holds {held.name!r}; it must be a new or an empty folder")
    return path


def fill(out: Path, write: Callable[[Path], Any], name: str, description: dict[str, Any]) -> dict[str, Any]:
    """Lets `write` fill the folder, puts `description` into its file `name`, and returns it."""

    def everything(folder: Path) -> None:
        write(folder)
        (folder / name).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")

    out.mkdir(parents=True, exist_ok=True)
    write_whole(out, everything)
    return description
