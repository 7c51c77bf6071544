"""Model folders: written whole or not at all, and read with errors that say what is wrong."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .adapters.base import CONFIG_NAME, PARTS, part_folder
from .modeling import UnimodalARForGeneration
from .places import CARD, TEXTS, WEIGHT_FILES, model_folder

# What training and conversion write, by pattern; beside them stand the folders of what adapters carry.
MODEL_FILES = (*TEXTS, CARD, *WEIGHT_FILES)
_PARTIAL = ".partial-"  # begins the names of folders that are being filled


def load_model(
    path: str | os.PathLike[str],
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
    backbone: Any = None,
    **hub: Any,
) -> UnimodalARForGeneration:
    """The model of a folder, in evaluation mode.

    Args:
        path: the folder, or an id on the Hub.
        device: None: a GPU if there is one.
        dtype: None: float32 on the CPU (bfloat16 is slow on many), the checkpoint's own on a GPU.
        backbone: where the frozen body is now, if it was moved, see the model's `from_pretrained`.
        hub: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download`, see `places.model_folder`.

    Raises:
        ValueError: the weights are damaged, or do not fit config.json; there is no such folder or id.
    """
    path = model_folder(path, **hub)
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None and where.type == "cpu":
        dtype = torch.float32
    try:
        reading: dict[str, Any] = {"dtype": dtype or "auto", "output_loading_info": True, "backbone": backbone}
        loaded: Any = UnimodalARForGeneration.from_pretrained(path, **reading)
    except (RuntimeError, SafetensorError) as error:  # shapes that differ, a file that is cut off
        reason = str(error).partition("\n")[0].strip(" .")
        raise ValueError(
            f"weights in {str(path)!r} do not load ({reason}); its .safetensors and config.json must be whole and of "
            "one training"
        ) from error
    model, report = loaded
    for problem in ("missing_keys", "unexpected_keys"):
        if report[problem]:
            raise ValueError(
                f"weights in {str(path)!r} do not fit its config.json: {problem} "
                f"{sorted(map(str, report[problem]))[:3]}"
            )
    return model.to(where).eval()


def check_output(
    output: Path, option: str, overwrite: bool, read: Mapping[str, str] | None = None, folders: Sequence[str] = ()
) -> None:
    """Whether a model can be written to `output` without loss; to be asked before it is made.

    A folder with a config.json is a model's, and what is called like a model's file there belongs to it. Without one,
    such files are somebody's own (a recipe written by hand, say), and `overwrite` is not meant for them.

    Args:
        output: the folder; need not exist.
        option: what messages call it.
        overwrite: replace a model that is there.
        read: what the model is made from, by what messages call it; must not be among what is replaced.
        folders: names of those that the model comes with.

    Raises:
        ValueError: it is a file, or the folder holds a model, or something else that would be lost.
    """
    if output.exists() and not output.is_dir():
        raise ValueError(f"{option} is {str(output)!r}, which is a file; it must be a folder")
    place, is_model = f"{option} {str(output)!r}", (output / "config.json").exists()
    if is_model and not overwrite:
        raise ValueError(f"{place} already holds a model; choose another or pass --overwrite")
    known = _model_files(output)
    taken = [output / name for name in folders if (output / name).exists() and output / name not in known]
    for name, source in (read or {}).items():
        if any(Path(source).resolve().is_relative_to(file.resolve()) for file in [*known, *taken]):
            raise ValueError(f"{name} is {source!r}, which the model in {place} would replace; choose another place")
    lost = taken if is_model else [*known, *taken]
    if lost:
        raise ValueError(
            f"{place} holds {', '.join(file.name for file in lost)}, which is no part of a model there but would be "
            "replaced; move it away or choose another folder"
        )


def write_whole(output: Path, write: Callable[[Path], Any], replace: bool = False) -> None:
    """Lets `write` fill a folder beside the files' place, removes the model that is there (`replace`) and moves the new
    files there one by one, config.json last: a folder with a config.json is complete and of one training."""
    partial = Path(tempfile.mkdtemp(prefix=_PARTIAL, dir=output))
    try:
        write(partial)
        for weights in partial.rglob("*.safetensors"):  # which safetensors 0.8 lets their owner alone read
            readable = weights.with_suffix(".readable")
            readable.touch()
            weights.chmod(readable.stat().st_mode)
            readable.unlink()
        if replace and (output / "config.json").exists():
            for file in _model_files(output):
                _remove(file)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            if (output / file.name).is_dir():  # which cannot be replaced
                _remove(output / file.name)
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def clear_partial(output: Path) -> bool:
    """Removes what a `write_whole` that was killed left: its folder and, where there is no config.json, what had been
    moved out of it. Returns whether there was anything."""
    partial = sorted(output.glob(f"{_PARTIAL}*"))
    if partial and not (output / "config.json").exists():
        for file in _model_files(output):
            _remove(file)
    for folder in partial:  # last: as long as they are there, the above is known to be the model's
        shutil.rmtree(folder)
    return bool(partial)


def _model_files(output: Path) -> list[Path]:
    """What in `output` is called like a model's, or named as such: the adapters' folders first, because
    processor_config.json names them."""
    return [*_parts(output), *(file for pattern in MODEL_FILES for file in sorted(output.glob(pattern)))]


def _parts(output: Path) -> list[Path]:
    """The folders of tokenizers and vocoders that were saved with the adapters in `output`."""
    try:
        adapters = json.loads((output / CONFIG_NAME).read_text(encoding="utf-8"))["adapters"]
        named = {name: list(entry.get("elements", {}).values()) for name, entry in adapters.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):  # it names none
        return []
    # What else is named there (an id on the Hub, a folder elsewhere) was not written with the model.
    own = [(part_folder(modality, part), values) for modality, values in named.items() for part in PARTS]
    folders = [output / name for name, values in own if name in values]
    return [folder for folder in folders if folder.parent == output and folder.is_dir()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
