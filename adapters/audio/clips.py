"""Single audio clips: opening them, bringing them to a rate, channels and loudness, writing them.

Rules, the same everywhere: a wave is float32 [C, S] and 1 is full scale. What a file holds as integers is divided by
their full scale (PCM16: by 32768), what it holds as floats is taken as it is, beyond 1 too. Nothing is clipped until
PCM is written: samples beyond 1 are clipped then, counted, and the count is told as a warning.
"""

from __future__ import annotations

import io
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from ..files import check_path, whole_file
from .writing import FILE, SUFFIXES, soundfile, tell_clipped, to_pcm, write_wav

RATES = (1_000, 768_000)  # legal samples a second: slower is no sound, faster no microphone
# What libsndfile's log says of a file that is shorter than its header tells. Programs that write into a pipe put the
# largest number they have in the header; that tells nothing.
SHORTER = re.compile(r"^\s*(?:data|SSND|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
UNTOLD = 0x7FFF0000
# The frames of a file that does not tell how many it has (libsndfile's SF_COUNT_MAX).
UNCOUNTED = 2**63 - 1
# The largest term of a ratio of two rates: the filters of a resampling have size term x term.
LARGEST_TERM = 4096


# Seconds by which the end of a span may lie behind the file's, whose length somebody rounded.
SLACK = 0.01


@dataclass(frozen=True)
class AudioClip:
    """A clip.

    Args:
        wave: float32 [C, S], C >= 1 channels of S >= 1 samples, all finite; 1 is full scale.
        rate: samples a second, 1000 to 768000.
        name: how messages call it.

    Raises:
        ValueError: anything else.
    """

    wave: Tensor
    rate: int
    name: str = ""

    def __post_init__(self) -> None:
        name, wave = self.name or "the clip", self.wave
        if not isinstance(wave, Tensor) or wave.dtype != torch.float32 or wave.dim() != 2:
            found = f"{wave.dtype} {list(wave.shape)}" if isinstance(wave, Tensor) else f"a {type(wave).__name__}"
            raise ValueError(f"{name} has a wave that is {found}; it must be a float32 tensor [channels, samples]")
        if 0 in wave.shape:
            raise ValueError(f"{name} holds no samples; a clip has at least one")
        object.__setattr__(self, "rate", _rate(self.rate, name))
        bad = int((~wave.isfinite()).sum())
        if bad:
            raise ValueError(f"{name} holds {bad} samples that are NaN or infinite; all must be finite")

    @property
    def seconds(self) -> float:
        return self.wave.shape[1] / self.rate

    @property
    def channels(self) -> int:
        return self.wave.shape[0]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes PCM16, whole or not at all, as .wav or .flac; a sample beyond 1 is clipped, with a warning.

        Raises:
            ValueError: another suffix, a folder that is missing, a rate or channels that FLAC does not have.
            ImportError: soundfile is missing and the name ends in .flac.
        """
        path = check_path(path, FILE, SUFFIXES)
        if path.suffix.lower() == ".wav":
            with whole_file(path) as temporary:
                write_wav(temporary, self.wave, self.rate, str(path))
            return
        pcm, clipped = to_pcm(self.wave)
        package = soundfile()
        try:
            with whole_file(path) as temporary:
                package.write(temporary, pcm, self.rate, subtype="PCM_16", format="FLAC")
        except package.LibsndfileError as error:
            raise ValueError(
                f"{path} cannot be written as FLAC with {self.channels} channels at {self.rate} Hz: {_reason(error)}"
            ) from None
        tell_clipped(clipped, pcm.size, str(path))


def open_clip(source: Any, name: str | None = None) -> AudioClip:
    """One clip, at its own rate and with its own channels.

    Args:
        source: a path, a file's bytes, a binary file object, {"bytes": ..., "path": ...} as in Hugging Face data sets
            (wav, flac, ogg, mp3 and whatever else libsndfile reads); an AudioClip; or a pair of an array or tensor,
            [S] or [C, S], and its rate. Integer arrays are PCM, like those of files; uint8 has its zero at 128.
        name: how messages call it; a file's path if not given.

    Raises:
        ValueError: it is not there, no audio, broken, truncated or empty, it has NaN or infinite samples, or a rate
            outside 1000 to 768000; the message names it.
        ImportError: soundfile is missing and a file is to be read.
    """
    if isinstance(source, AudioClip):
        return source if name is None else replace(source, name=name)
    if isinstance(source, Mapping) and {"bytes", "path"} & set(source):
        name = name or source.get("path")
        source = source["path"] if source.get("bytes") is None else source["bytes"]
    if isinstance(source, (str, os.PathLike)):
        return _read(source, name or os.fspath(source))
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), name or "the file given")
    if hasattr(source, "read"):
        return _decode(source, name or str(getattr(source, "name", "the file given")))
    if isinstance(source, (tuple, list)) and len(source) == 2 and isinstance(source[0], (np.ndarray, Tensor)):
        name = name or "the array given"
        return AudioClip(_from_array(source[0], name), _rate(source[1], name), name)
    raise ValueError(
        f"{name or 'the clip'} is a {type(source).__name__}; audio is a path, a file's bytes, an AudioClip or a pair "
        "(array, rate)"
    )


def open_clips(clips: Any) -> list[AudioClip]:
    """One clip, or the clips of a list, each as `open_clip` takes it; one without a name is called by its place."""
    is_pair = isinstance(clips, tuple) and len(clips) == 2 and isinstance(clips[0], (np.ndarray, Tensor))
    if is_pair or not isinstance(clips, (list, tuple)):
        clips = [clips]
    if not clips:
        raise ValueError("the list of clips is empty; it must hold at least one")
    return [open_clip(raw, _name(raw) or f"clip {place}") for place, raw in enumerate(clips)]


def resample(wave: Tensor, old: int, new: int) -> Tensor:
    """float32 [..., S] from `old` to `new` samples a second: [..., ceil(S * new / old)], by torchaudio's windowed sinc
    (Hann, 6 zero crossings, roll-off 0.99). A ratio of terms above 4096, of 44101 Hz to 8000 Hz say, is taken as the
    nearest one of smaller terms, which changes pitch and length by less than 1 part in 8000."""
    if old == new:
        return wave
    ratio = Fraction(min(old, new), max(old, new)).limit_denominator(LARGEST_TERM)
    small, large = ratio.numerator, ratio.denominator
    with torch.autocast(wave.device.type, enabled=False):
        return torchaudio().functional.resample(wave, *((large, small) if old > new else (small, large)))


def resampling_reach(old: int, new: int) -> int:
    """How far, in samples of the new rate, what is at a place can be heard around it after `resample`."""
    return 0 if old == new else math.ceil(6 / 0.99 * max(new / old, 1)) + 1


def to_channels(wave: Tensor, channels: int, name: str = "the clip") -> Tensor:
    """[C, S] -> [channels, S]: mono is the mean of stereo, stereo twice the same of mono.

    Raises:
        ValueError: any other change; the message names the clip.
    """
    found = len(wave)
    if found == channels:
        return wave
    if (found, channels) == (2, 1):
        return wave.mean(0, keepdim=True)
    if (found, channels) == (1, 2):
        return wave.expand(2, -1)
    raise ValueError(f"{name} has {found} channels, which cannot be mixed to {channels}; only mono and stereo can")


def to_loudness(wave: Tensor, loudness: float, share: float = 1.0) -> Tensor:
    """Scales [C, S] to `loudness`, the level of its root mean square in dB below full scale (dBFS, where a sine of
    amplitude 1 has -3), or less, to a peak of 1, where its peak would pass that. Silence stays as it is.

    Args:
        share: the part of the samples that counts; the others are silence.
    """
    peak = float(wave.abs().max())
    rms = float(wave.square().mean().sqrt()) / max(share, 1 / wave.shape[1]) ** 0.5
    return wave if rms == 0 else wave * min(10 ** (loudness / 20) / rms, 1 / peak)


def torchaudio() -> Any:
    """The package torchaudio with its functional, or ImportError with what to install."""
    try:
        import torchaudio.functional
    except ImportError:
        raise ImportError("audio needs torchaudio: pip install unimodal-ar[audio]") from None
    return torchaudio


def _name(raw: Any) -> str | None:
    if isinstance(raw, (str, os.PathLike)):
        return os.fspath(raw)
    name = raw.get("path") if isinstance(raw, Mapping) else getattr(raw, "name", None)
    return None if name is None else str(name)


def open_span(path: str | os.PathLike[str], start: float, end: float | None, name: str) -> AudioClip:
    """What lies between two times, in seconds, of a file, of which no more is decoded; end None: its end.

    Raises:
        ValueError: as `open_clip`, or a span that is not within the file.
    """
    return _read(path, name, (start, end))


def _read(path: str | os.PathLike[str], name: str, span: tuple[float, float | None] = (0.0, None)) -> AudioClip:
    if os.path.isdir(path):
        raise ValueError(f"{name} is a folder; read_audios reads the clips of a folder")
    try:
        with open(path, "rb") as file:
            return _decode(file, name, span)
    except FileNotFoundError:
        raise ValueError(f"{name} is not there") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror or error}") from None


def _decode(file: BinaryIO, name: str, span: tuple[float, float | None] = (0.0, None)) -> AudioClip:
    package = soundfile()
    if file.seek(0, io.SEEK_END) == 0:
        raise ValueError(f"{name} is empty (0 bytes); it must hold audio")
    file.seek(0)
    try:
        with package.SoundFile(file) as sound:
            _check_header(sound, name)
            first, told = _within(span, sound.frames, sound.samplerate, name)
            if first:
                sound.seek(first)
            samples = sound.read(told, dtype="float32", always_2d=True)
            rate, kind = sound.samplerate, sound.format
    except (package.LibsndfileError, TypeError) as error:  # TypeError: named .raw, where the rate is to be told
        raise ValueError(
            f"{name} is no audio that libsndfile reads, or broken or truncated: {_reason(error)}"
        ) from None
    except MemoryError as error:
        raise ValueError(f"{name} tells of more samples than fit into memory: {error}") from None
    if len(samples) < told or (kind == "OGG" and not _has_last_page(file)):
        raise ValueError(f"{name} is truncated: it holds {len(samples)} samples and then breaks off")
    return AudioClip(torch.from_numpy(np.ascontiguousarray(samples.T)), rate, name)


def _within(span: tuple[float, float | None], frames: int, rate: int, name: str) -> tuple[int, int]:
    """The first sample of a span, and how many there are."""
    start, end = span
    first, last = round(start * rate), frames if end is None else min(round(end * rate), frames)
    if first >= max(last, 1):  # a file of no samples is told of elsewhere
        raise ValueError(f"{name}: start is {start:g} s; the clip has {frames / rate:.3f} s")
    if end is not None and end > frames / rate + SLACK:
        raise ValueError(f"{name}: end is {end:g} s; the clip has {frames / rate:.3f} s")
    return first, last - first


def _reason(error: Exception) -> str:
    return str(getattr(error, "error_string", error)).strip().rstrip(".")


def _check_header(sound: Any, name: str) -> None:
    _rate(sound.samplerate, name)  # before anything is decoded
    if sound.frames == UNCOUNTED:
        raise ValueError(
            f"{name} does not tell how many samples it holds, as FLAC that was written into a pipe; write it to a file"
        )
    for told, found in SHORTER.findall(sound.extra_info):
        if int(found) < int(told) < UNTOLD:
            raise ValueError(f"{name} is truncated: it tells of {told} bytes of audio and has {found}")


def _has_last_page(file: BinaryIO) -> bool:
    """Whether the last page of an Ogg file is whole and marked as such (RFC 3533, section 6)."""
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 2 * 65307))  # a page has at most 65307 bytes
    tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    if len(page) < 27 or not page[5] & 4:
        return False
    return len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])


def _rate(rate: Any, name: str) -> int:
    try:
        whole = int(rate)
    except (TypeError, ValueError, OverflowError):
        whole = 0
    if whole != rate or not RATES[0] <= whole <= RATES[1]:
        raise ValueError(f"{name} has {rate} samples a second; audio has a whole number from {RATES[0]} to {RATES[1]}")
    return whole


def _from_array(array: np.ndarray | Tensor, name: str) -> Tensor:
    if isinstance(array, Tensor):
        # numpy knows no bfloat16.
        array = (array.float() if array.dtype == torch.bfloat16 else array).detach().cpu().numpy()
    found = array
    if found.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {tuple(found.shape)}; audio is [samples] or [channels, samples]")
    found = np.atleast_2d(found)
    if found.dtype == np.uint8:
        found = (found.astype(np.float32) - 128) / 128
    elif found.dtype in (np.int16, np.int32):
        found = found.astype(np.float64) / (np.iinfo(found.dtype).max + 1)
    elif not np.issubdtype(found.dtype, np.floating):
        raise ValueError(f"{name} has dtype {found.dtype}; samples are floats, int16, int32 or uint8")
    return torch.from_numpy(found.astype(np.float32))
