"""Single clips: opening, mixing, resampling, writing, and whatever is wrong with files."""

from __future__ import annotations

import io
import math
import re
import struct
import sys
import wave as riff
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unimodal_ar.adapters import AudioClip
from unimodal_ar.adapters.audio.clips import (
    open_clip,
    open_clips,
    resample,
    resampling_reach,
    to_channels,
    to_loudness,
)
from unimodal_ar.adapters.audio.writing import WaveWriter, write_wav

soundfile = pytest.importorskip("soundfile")
RATE = 8000
# Lossy formats give back what they were given to this root mean square.
LOSS = {"WAV": 2e-5, "FLAC": 2e-5, "AIFF": 2e-5, "OGG": 0.02, "MP3": 0.02}


def sound(seconds: float = 1.0, channels: int = 1, rate: int = RATE) -> torch.Tensor:
    """[C, S]: a tone that differs from channel to channel."""
    time = torch.arange(round(seconds * rate)) / rate
    return torch.stack([0.5 * torch.sin(2 * math.pi * (300 + 200 * c) * time) for c in range(channels)]).float()


def encoded(wave: torch.Tensor, rate: int = RATE, **options: Any) -> bytes:
    """A file's bytes."""
    buffer = io.BytesIO()
    soundfile.write(buffer, wave.T.numpy(), rate, **{"format": "WAV", **options})
    return buffer.getvalue()


# ---- opening


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("kind", list(LOSS))
def test_files_of_every_kind_are_read(tmp_path: Path, kind: str, channels: int) -> None:
    wave = sound(channels=channels)
    path = tmp_path / f"clip.{kind.lower()}"
    path.write_bytes(encoded(wave, format=kind))
    clip = open_clip(path)
    assert (clip.rate, clip.name, clip.wave.shape, clip.seconds) == (RATE, str(path), wave.shape, 1.0)
    assert float((clip.wave - wave).square().mean().sqrt()) < LOSS[kind]


def test_a_file_comes_as_path_bytes_file_object_or_row_of_a_table(tmp_path: Path) -> None:
    data = encoded(sound())
    path = tmp_path / "clip.wav"
    path.write_bytes(data)
    wanted = open_clip(str(path)).wave
    with path.open("rb") as file:
        sources = [data, io.BytesIO(data), file, {"bytes": data, "path": "x.wav"}, {"bytes": None, "path": str(path)}]
        clips = [open_clip(source) for source in sources]
    for clip in clips:
        assert torch.equal(clip.wave, wanted)
    assert [clip.name for clip in clips] == ["the file given", "the file given", str(path), "x.wav", str(path)]
    assert open_clip(data, "row 7").name == "row 7"


@pytest.mark.parametrize(
    ("subtype", "error"),
    [("PCM_U8", 1 / 128), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 2**-24), ("FLOAT", 0.0)],
)
def test_integers_are_divided_by_their_full_scale(subtype: str, error: float) -> None:
    wave = sound()
    assert float((open_clip(encoded(wave, subtype=subtype)).wave - wave).abs().max()) <= error


def test_floats_beyond_one_are_kept() -> None:
    assert float(open_clip(encoded(sound() * 4, subtype="FLOAT")).wave.max()) == pytest.approx(2, abs=1e-3)


@pytest.mark.parametrize(
    ("array", "wanted"),
    [
        (np.array([0, 16384, -32768], np.int16), [0, 0.5, -1]),
        (np.array([0, 2**30, -(2**31)], np.int32), [0, 0.5, -1]),
        (np.array([128, 192, 0], np.uint8), [0, 0.5, -1]),
        (np.array([0, 0.5, -1.5]), [0, 0.5, -1.5]),
        (torch.tensor([[0, 0.5, -1]], dtype=torch.float16), [0, 0.5, -1]),
    ],
)
def test_arrays_come_with_their_rate(array: Any, wanted: list[float]) -> None:
    clip = open_clip((array, np.int64(RATE)))
    assert (clip.wave.dtype, clip.wave.tolist(), clip.rate) == (torch.float32, [wanted], RATE)


def test_half_precision_is_read() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        assert open_clip((torch.tensor([0.5, -0.25], dtype=dtype), RATE)).wave.tolist() == [[0.5, -0.25]]


def test_ten_minutes_are_read(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    minute = sound(60)
    with WaveWriter(path, RATE, 1) as writer:
        for _ in range(10):
            writer.write(minute)
    assert open_clip(path).seconds == 600


# ---- what is wrong with files


def patched(data: bytes, place: int, value: int) -> bytes:
    return data[:place] + struct.pack("<I", value) + data[place + 4 :]


NAN = torch.tensor([[0.0, math.nan, math.inf, 0.5]])
BROKEN = {
    "empty.wav": (b"", "is empty (0 bytes)"),
    "words.wav": (b"these are words, no sound" * 9, "is no audio that libsndfile reads"),
    "no_samples.wav": (encoded(sound(0)), "holds no samples"),
    "slow.wav": (encoded(sound(), 3), "has 3 samples a second; audio has a whole number from 1000 to 768000"),
    "fast.wav": (patched(encoded(sound()), 24, 10**9), "has 1000000000 samples a second"),
    "nan.wav": (encoded(NAN, subtype="FLOAT"), "holds 2 samples that are NaN or infinite"),
    **{
        f"{kind}_{part}.x": (
            encoded(sound(3), format=kind)[: round(len(encoded(sound(3), format=kind)) * part)],
            "truncated",
        )
        for kind in LOSS
        for part in (0.98, 0.5, 0.1)
    },
}


@pytest.mark.parametrize("name", list(BROKEN))
def test_a_bad_file_is_named_with_what_is_wrong(tmp_path: Path, name: str) -> None:
    data, message = BROKEN[name]
    path = tmp_path / name
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"^{re.escape(str(path))} .*{re.escape(message)}") as caught:
        open_clip(path)
    assert "\n" not in str(caught.value) and str(caught.value).count(". ") == 0


def test_a_length_that_was_never_filled_in_is_no_truncation() -> None:
    """As of a WAV that was written into a pipe."""
    data = encoded(sound())
    piped = patched(patched(data, 4, 0xFFFFFFFF), data.index(b"data") + 4, 0xFFFFFFFF)
    assert torch.equal(open_clip(piped).wave, open_clip(data).wave)


def test_a_flac_of_unknown_or_absurd_length_is_refused() -> None:
    """Its header tells the number of samples in 36 bits; 0, as of a FLAC that was written into a pipe: not known."""
    data = encoded(sound(), format="FLAC")
    for low, high, message in (
        (0x00, b"\0" * 4, r"^a\.flac does not tell how many samples it holds, as FLAC .* a pipe; write it to a file$"),
        (0x0F, b"\xff" * 4, r"^a\.flac (tells of more samples than fit into memory|is truncated|is no audio)"),
    ):
        changed = data[:21] + bytes([data[21] & 0xF0 | low]) + high + data[26:]
        with pytest.raises(ValueError, match=message):
            open_clip(changed, "a.flac")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere.wav", "^nowhere.wav is not there$"),
        (".", r"^\. is a folder; read_audios reads"),
        (7, "^the clip is a int; audio is a path"),
        ((np.zeros(3), 22050.5), "^the array given has 22050.5 samples a second"),
        ((np.zeros(3), "fast"), "^the array given has fast samples a second"),
        ((np.zeros((1, 1, 3)), RATE), r"^the array given has shape \(1, 1, 3\)"),
        ((np.zeros(3, np.int64), RATE), "^the array given has dtype int64"),
        ((np.zeros((1, 0)), RATE), "^the array given holds no samples"),
    ],
)
def test_what_is_no_clip_is_refused(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        open_clip(source)


@pytest.mark.parametrize(
    ("wave", "message"),
    [
        (
            torch.zeros(5),
            r"^x has a wave that is torch.float32 \[5\]; it must be a float32 tensor \[channels, samples\]",
        ),
        (torch.zeros(1, 5).double(), "^x has a wave that is torch.float64"),
        (np.zeros((1, 5), np.float32), "^x has a wave that is a ndarray"),
    ],
)
def test_a_clip_is_a_float32_tensor(wave: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioClip(wave, RATE, "x")


def test_a_clip_has_a_whole_number_as_its_rate() -> None:
    assert isinstance(AudioClip(torch.zeros(1, 5), 8000.0).rate, int)  # type: ignore[arg-type]
    for rate in (8000.5, "8000", math.nan):
        with pytest.raises(ValueError, match=f"^x has {rate} samples a second; audio has a whole number"):
            AudioClip(torch.zeros(1, 5), rate, "x")  # type: ignore[arg-type]


def test_what_has_no_name_is_called_by_its_place(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(b"12345678")
    whole = (sound(), RATE)
    for bad, name in (
        ({"bytes": b"x", "path": None}, "clip 1"),
        (b"x", "clip 1"),
        ({"bytes": b"x", "path": "a.wav"}, "a.wav"),
        (tmp_path / "x.raw", str(tmp_path / "x.raw")),
    ):
        with pytest.raises(ValueError, match=f"^{re.escape(name)} is no audio that libsndfile reads"):
            open_clips([whole, bad])


@pytest.mark.parametrize("package", ["soundfile", "torchaudio.functional"])
def test_a_missing_package_is_told_with_what_to_install(monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=r"pip install unimodal-ar\[audio\]"):
        resample(open_clip(encoded(sound())).wave, RATE, 2 * RATE)


# ---- rates, channels, loudness


@pytest.mark.parametrize(("old", "new"), [(8000, 16000), (44100, 8000), (48000, 44100), (44101, 8000), (11127, 48000)])
def test_resampling_keeps_a_tone(old: int, new: int) -> None:
    found = resample(sound(rate=old), old, new)
    wanted = sound(rate=new)
    assert abs(found.shape[1] - new) <= new / 8000 + 1
    middle = slice(new // 4, new // 2)
    assert float((found[:, middle] - wanted[:, middle]).abs().max()) < (0.01 if math.gcd(old, new) > 1 else 0.2)


@pytest.mark.parametrize(("old", "new"), [(8000, 16000), (44100, 8000), (16000, 44100), (24000, 16000)])
def test_how_far_resampling_reaches(old: int, new: int) -> None:
    """What is at a place changes samples up to there, and some of those but for the last few."""
    wave = torch.randn(1, old)
    other = wave.clone()
    other[:, old // 2 :] += 1
    reach = resampling_reach(old, new)
    changed = (resample(wave, old, new) != resample(other, old, new))[0].nonzero()[:, 0]
    assert new // 2 - reach <= int(changed[0]) <= new // 2 - reach + 2 + new / old
    assert resampling_reach(new, new) == 0


def test_autocast_does_not_reach_what_is_resampled() -> None:
    wave = sound()
    with torch.autocast("cpu", torch.bfloat16):
        found = resample(wave, RATE, 2 * RATE)
    assert torch.equal(found, resample(wave, RATE, 2 * RATE))


def test_a_rate_that_fits_is_left_alone() -> None:
    wave = sound()
    assert resample(wave, RATE, RATE) is wave


def test_mono_is_the_mean_of_stereo_and_stereo_is_mono_twice() -> None:
    wave = sound(channels=2)
    assert torch.equal(to_channels(wave, 1), wave.mean(0, keepdim=True))
    assert torch.equal(to_channels(wave[:1], 2), wave[[0, 0]])
    with pytest.raises(
        ValueError, match=r"^a\.wav has 8 channels, which cannot be mixed to 1; only mono and stereo can$"
    ):
        to_channels(sound(channels=8), 1, "a.wav")


def test_loudness_is_set_unless_the_peak_would_pass_one() -> None:
    wave = sound()
    assert float(to_loudness(wave, -20).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-4)
    assert float(to_loudness(wave, 0).abs().max()) == pytest.approx(1, abs=1e-6)
    assert torch.equal(to_loudness(torch.zeros(1, 9), -20), torch.zeros(1, 9))
    part = torch.cat([wave, torch.zeros_like(wave)], 1)  # half of which counts
    torch.testing.assert_close(to_loudness(part, -20, 0.5)[:, : wave.shape[1]], to_loudness(wave, -20))
    assert torch.equal(to_loudness(torch.zeros(1, 9), -20, 0.0), torch.zeros(1, 9))


# ---- writing


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".WAV"])
def test_what_is_written_is_read_again(tmp_path: Path, suffix: str) -> None:
    wave = (sound(channels=2) * 32768).round() / 32768
    path = tmp_path / f"clip{suffix}"
    AudioClip(wave, RATE).save(path)
    clip = open_clip(path)
    assert clip.rate == RATE and torch.equal(clip.wave, wave)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_samples_beyond_one_are_clipped_and_told(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"loud{suffix}"
    with pytest.warns(UserWarning, match=rf"^{re.escape(path.name)}: 2 of 4 samples \(50.00%\) were beyond full scale"):
        AudioClip(torch.tensor([[0.5, 1.5, -1.5, 1.0]]), RATE).save(path)
    assert open_clip(path).wave.tolist() == [[0.5, 32767 / 32768, -1.0, 32767 / 32768]]


def test_a_file_that_is_there_stays_when_writing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(b"old")
    monkeypatch.setattr(WaveWriter, "write", lambda self, wave: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        AudioClip(sound(), RATE).save(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("clip.wav", b"old")]


@pytest.mark.parametrize(
    ("name", "message"),
    [("clip.mp3", r"must end in \.wav or \.flac$"), ("none/clip.wav", "there is no folder .*none$")],
)
def test_where_nothing_can_be_written_is_told(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioClip(sound(), RATE).save(tmp_path / name)


def test_what_flac_cannot_hold_is_told(tmp_path: Path) -> None:
    for channels, rate in ((1, 768000), (9, RATE)):
        with pytest.raises(
            ValueError, match=rf"x\.flac cannot be written as FLAC with {channels} channels at {rate} Hz: "
        ):
            AudioClip(sound(channels=channels), rate).save(tmp_path / "x.flac")
    assert not list(tmp_path.iterdir())


def test_a_file_is_whole_after_every_chunk(tmp_path: Path) -> None:
    path = tmp_path / "grows.wav"
    parts = sound(channels=2).split([10, 0, 3000, 4990], 1)
    with WaveWriter(path, RATE, 2) as writer:
        for place in range(len(parts) + 1):
            length = sum(part.shape[1] for part in parts[:place])
            with riff.open(str(path)) as file:  # the header and what it tells of
                assert file.getnframes() == length and len(file.readframes(length)) == 4 * length
            if place < len(parts):
                writer.write(parts[place])
    whole = tmp_path / "whole.wav"
    write_wav(whole, torch.cat(parts, 1), RATE)
    assert path.read_bytes() == whole.read_bytes()
