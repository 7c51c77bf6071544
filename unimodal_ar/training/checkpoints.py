"""Checkpoints: which are whole, which one a training goes on from, and whether it is of the same recipe.

A checkpoint is transformers' folder and `checkpoint.json` in it, which is written when all else is on disk: the other
files with their sizes, the number of processes and the recipe. A folder without it, or in which a file is missing or
cut off, is what a killed process left of writing or removing it, and nothing goes on from there.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

SEAL = "checkpoint.json"
STATE = "trainer_state.json"

# What mounted buckets and network drives say that have no such thing.
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)

# What recipes may differ in without a word: it has no influence on the weights.
_FREE = (
    *("output_dir", "evaluation", "card", "hub"),
    *("training.logging_", "training.save_", "training.report_to", "training.run_name"),
    *("training.disable_tqdm", "training.dataloader_num_workers", "training.dataloader_prefetch_factor"),
    "training.dataloader_pin_memory",
)
# What a user may have changed on purpose, or moved: it is told.
_TOLD = (
    *("training.", "early_stopping", "schedule", "init_from", "data.path", "data.test_path"),
    *("model.backbone.pretrained", "model.backbone.attn_implementation"),
)


def seal(folder: Path, record: Mapping[str, Any]) -> None:
    """Declares a checkpoint whole, once all that is in it is on disk.

    Args:
        record: what is told of it: `processes`, the examples of a step as `batch`, `recipe`.
    """
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    for path in [*files, *{path.parent for path in files}]:
        _to_disk(path)
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    partial = folder / f".{SEAL}"
    partial.write_text(json.dumps({**record, "files": sizes}), encoding="utf-8")
    _to_disk(partial)
    os.replace(partial, folder / SEAL)
    for path in (folder, folder.parent):
        _to_disk(path)


def contents(folder: str | os.PathLike[str]) -> dict[str, Any] | None:
    """What `seal` wrote: its record and the files. None: the checkpoint is not whole."""
    folder = Path(folder)
    try:
        written: dict[str, Any] = json.loads((folder / SEAL).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in written["files"].items())
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return written if whole else None


def find_checkpoint(resume: bool | str | os.PathLike[str] | None, folder: Path) -> Path | None:
    """The checkpoint that `training.resume_from_checkpoint` names.

    Args:
        resume: a path; true for the last whole one in `folder`; "auto" for the same, or None where there is none.

    Raises:
        ValueError: there is none, or it is not whole.
    """
    if not resume:
        return None
    if not isinstance(resume, bool) and resume != "auto":
        if contents(resume) is None:
            raise ValueError(
                f"training.resume_from_checkpoint is {str(resume)!r}, which is no whole checkpoint (its {SEAL} is "
                "missing, as after save_only_model, or names files that are); it must be a checkpoint's folder, true "
                "for the last one, or auto for the last one or else the beginning"
            )
        return Path(resume)
    last = last_checkpoint(folder)
    if last is None and resume != "auto":
        raise ValueError(f"training.resume_from_checkpoint is true, but {str(folder)!r} holds no whole checkpoint")
    return last


def last_checkpoint(folder: Path) -> Path | None:
    """The whole checkpoint of the most steps."""
    found = [path for path in _all(folder) if contents(path) is not None]
    return max(found, key=_number, default=None)


def holding(folder: Path) -> list[Path]:
    """Those in `folder`, even if nothing can go on from them."""
    return [path for path in _all(folder) if (path / STATE).is_file()]


def later_checkpoints(folder: Path, checkpoint: Path) -> list[Path]:
    """Whole ones in `folder` of more steps than `checkpoint`."""
    taken = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]
    return [path for path in _all(folder) if _number(path) > taken and contents(path) is not None]


def clean(folder: Path, checkpoint: Path | None) -> None:
    """Removes what is not whole and what comes after `checkpoint`; everything, if a training begins anew."""
    if checkpoint is None:
        shutil.rmtree(folder, ignore_errors=True)
        return
    later = later_checkpoints(folder, checkpoint)
    for path in _all(folder):
        if path in later or contents(path) is None:
            shutil.rmtree(path)


def check_recipe(checkpoint: Path, recipe: dict[str, Any]) -> list[str]:
    """Compares the recipe of a checkpoint with the one that is to go on from it.

    Returns:
        what is worth telling: "key is X, was Y".

    Raises:
        ValueError: they do not train the same model on the same data.
    """
    then = (contents(checkpoint) or {}).get("recipe")
    if then is None:
        return [f"{str(checkpoint)!r} does not say of which recipe it is"]
    now = dict(_flat(json.loads(json.dumps(recipe))))
    before = dict(_flat(then))
    changed = [key for key in sorted(now | before) if now.get(key) != before.get(key) and not key.startswith(_FREE)]
    told = {key: f"{key} is {now.get(key)!r}, was {before.get(key)!r}" for key in changed}
    grave = [key for key in changed if not key.startswith(_TOLD)]
    if grave:
        more = f" and {len(grave) - 5} more" if len(grave) > 5 else ""
        raise ValueError(
            f"{str(checkpoint)!r} is of another recipe: {'; '.join(told[key] for key in grave[:5])}{more}; go on with "
            "the recipe of then, train into another output_dir, or begin anew by resume_from_checkpoint=false and "
            "--overwrite"
        )
    return list(told.values())


def _all(folder: Path) -> list[Path]:
    found = [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return [path for path in found if path.is_dir()]


def _number(path: Path) -> int:
    return int(path.name.rpartition("-")[2])


def _flat(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if not isinstance(value, dict) or not value:
        yield key, value
        return
    for name, inner in value.items():
        yield from _flat(inner, f"{key}.{name}" if key else name)


def _to_disk(path: Path) -> None:
    windows = os.name == "nt"  # where folders cannot be opened, and files only be synced by who may write
    if path.is_dir() and windows:
        return
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(handle)
