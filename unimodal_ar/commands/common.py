"""What commands share: checks of what the command line says, before anything is read or computed."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def check_output(option: str, path: Path) -> None:
    """Raises ValueError where no file can be written to `path`."""
    if not path.parent.is_dir():
        raise ValueError(f"{option} is {str(path)!r}; its folder {str(path.parent)!r} must be there")
    if path.is_dir():
        raise ValueError(f"{option} is {str(path)!r}, which is a folder; it must be a file")


def check_model(model: str) -> None:
    """Raises ValueError where the folder `model` holds none."""
    if not (Path(model) / "config.json").is_file():
        raise ValueError(f"--model is {model!r}, which holds no config.json; it must be a trained model's folder")


def usable_device(name: str | None) -> Any:
    """A device that works, or None to have one chosen."""
    import torch

    if name is None:
        return None
    try:
        torch.zeros(1, device=name).cpu()  # a back end may be known to torch and yet be missing from build or machine
    except (RuntimeError, AssertionError, ImportError) as error:
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        more = (
            [] if accelerator is None else [f"{accelerator.type}:{i}" for i in range(torch.accelerator.device_count())]
        )
        raise ValueError(f"--device is {name!r}; it must be one of {['cpu', *more]} on this machine") from error
    return torch.device(name)


def load_quietly(kind: Any, model: str, device: Any) -> Any:
    """`kind.from_pretrained` without a progress bar: it is done in a second."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    return kind.from_pretrained(model, device=device)
