"""Writing sound: PCM16, whole or not at all, or bit by bit."""

from __future__ import annotations

import os
import warnings
import wave as riff
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..files import check_path

FILE, SUFFIXES = "an audio file", (".wav", ".flac")


class WaveWriter:
    """Writes a .wav file (PCM16) bit by bit; after every `write` the file is valid and holds all there is so far. Used
    in a `with` block. Samples beyond 1 are clipped, and counted in a warning at the end.

    Args:
        path: where to write; a file that is there is replaced at once.
        name: how messages call the file; its path if not given.

    Raises:
        ValueError: another suffix than .wav, a folder that is missing.
    """

    def __init__(self, path: str | os.PathLike[str], rate: int, channels: int, name: str | None = None) -> None:
        self.path = check_path(path, FILE, (".wav",))
        self.name = name or str(path)
        self.clipped = self.samples = 0
        self._file = self.path.open("w+b")
        self._writer = riff.open(self._file, "wb")  # noqa: SIM115  # closed by `close`
        self._writer.setnchannels(channels)
        self._writer.setsampwidth(2)
        self._writer.setframerate(rate)
        self.write(torch.zeros(channels, 0))

    def write(self, wave: Tensor) -> None:
        """Appends float [C, s], s >= 0."""
        pcm, clipped = to_pcm(wave)
        self._writer.writeframes(pcm.tobytes())  # sets the lengths in the header, too
        self._file.flush()
        self.clipped += clipped
        self.samples += pcm.size

    def close(self) -> None:
        self._writer.close()
        self._file.close()
        tell_clipped(self.clipped, self.samples, self.name)

    def __enter__(self) -> WaveWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def write_wav(path: str | os.PathLike[str], wave: Tensor, rate: int, name: str | None = None) -> None:
    """Writes float [C, S] as PCM16; see `WaveWriter`."""
    with WaveWriter(path, rate, len(wave), name) as writer:
        writer.write(wave)


def to_pcm(wave: Tensor) -> tuple[np.ndarray, int]:
    """float [C, S] -> int16 [S, C], round(32768 x) clipped to its range, and how many samples were beyond 1."""
    clipped = int((wave.abs() > 1).sum())
    pcm = (wave.detach().cpu().float().T * 32768).round().clamp(-32768, 32767)
    return pcm.contiguous().to(torch.int16).numpy().astype("<i2", copy=False), clipped


def tell_clipped(clipped: int, total: int, name: str) -> None:
    if clipped:
        warnings.warn(
            f"{Path(name).name}: {clipped} of {total} samples ({clipped / total:.2%}) were beyond full scale and are "
            "clipped",
            stacklevel=3,
        )


def soundfile() -> Any:
    """The package soundfile, or ImportError with what to install."""
    try:
        import soundfile
    except ImportError:
        raise ImportError("audio files need soundfile: pip install unimodal-ar[audio]") from None
    return soundfile
