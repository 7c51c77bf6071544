"""Model folders: written whole or not at all, and read with errors that say what is wrong."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from .modeling import UnimodalARForGeneration

# What training and conversion write, by pattern.
MODEL_FILES = (
    *("config.json", "generation_config.json", "model*.safetensors*", "processor_config.json"),
    *("*_tokenizer", "recipe.yaml", "evaluation.json", "samples.png"),
)


def load_model(
    path: str | os.PathLike[str], device: torch.device | str | None = None, dtype: torch.dtype | None = None
) -> UnimodalARForGeneration:
    """The model of a folder, in evaluation mode.

    Args:
        path: the folder.
        device: None: a GPU if there is one.
        dtype: None: float32 on the CPU (bfloat16 is slow on many), the checkpoint's own on a GPU.

    Raises:
        ValueError: the weights are damaged, or do not fit config.json.
    """
    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if dtype is None and where.type == "cpu":
        dtype = torch.float32
    try:
        loaded: Any = UnimodalARForGeneration.from_pretrained(path, dtype=dtype or "auto", output_loading_info=True)
    except (RuntimeError, SafetensorError) as error:  # shapes that differ, a file that is cut off
        reason = str(error).partition("\n")[0].strip(" .")
        raise ValueError(
            f"weights in {str(path)!r} do not load ({reason}); model.safetensors and config.json must be whole and of "
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


def write_whole(output: Path, write: Callable[[Path], Any], replaced: Sequence[str] = ()) -> None:
    """Lets `write` fill a folder beside the files' place, removes the files of the patterns `replaced` and moves the
    new ones there one by one, config.json last: a folder with a config.json is complete and of one training."""
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=output))
    try:
        write(partial)
        for pattern in replaced:
            for file in output.glob(pattern):
                _remove(file)
        for file in sorted(partial.iterdir(), key=lambda file: file.name == "config.json"):
            if (output / file.name).is_dir():  # which cannot be replaced
                _remove(output / file.name)
            os.replace(file, output / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
