"""Reading videos: both backends show the same frames at the same times, in workers, too, and say what is wrong."""

from __future__ import annotations

import gc
import re
import struct
import sys
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from unimodal_ar.adapters import VideoClip, open_video
from unimodal_ar.adapters.video import decord_backend, pyav_backend, reader, sample_clip, window_starts

av = pytest.importorskip("av")
psutil = pytest.importorskip("psutil")

CLIPS = [
    *("bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4"),
    *("earth.avi", "nasa_13013.mp4", "world.mp4"),
]
# What two versions of FFmpeg may differ by in one value, of 255; 0 with those of decord 0.6.0 and PyAV 18.1.
ROUNDING = 2
SIZE = (48, 64)


def backends() -> list[str]:
    pytest.importorskip("decord")
    return ["decord", "pyav"]


def frame(place: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """No two are alike, and none is like itself turned."""
    high, wide = size[0] // 2, size[1] // 2
    picture = np.zeros((*size, 3), np.uint8)
    picture[:high, :wide] = 200, 30, 30
    picture[high:, :wide] = 30, 30, 200
    picture[:high, wide:] = 4 * place % 256
    return picture


def write(path: Path, times: list[int], options: dict[str, str] | None = None, codec: str = "libx264") -> Path:
    """A clip whose frames begin at `times`, in 25ths of a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(25))
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.options = "yuv420p", options or {}
        for place, time in enumerate(times):
            picture = av.VideoFrame.from_ndarray(frame(place), format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 25)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def turned(source: Path, degrees: int) -> Path:
    """A copy whose header says that it is to be turned clockwise: the matrix of its `tkhd` box (ISO 14496-12)."""
    data = bytearray(source.read_bytes())
    start = data.find(b"tkhd") + 4 + 4 + 20 + 16  # behind version and flags, times and ids, and reserved bytes
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    data[start : start + 36] = struct.pack(">9i", cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    target = source.with_name(f"{degrees}.mp4")
    target.write_bytes(data)
    return target


def decoded(path: Path) -> Iterator[tuple[float, Any]]:
    """Every frame and its time by plain decoding, the reference."""
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        for found in container.decode(stream):
            yield float(found.pts * stream.time_base), found


def all_frames(path: Path) -> np.ndarray:
    return np.stack([found.to_ndarray(format="rgb24") for _, found in decoded(path)])


def assert_shown(found: np.ndarray, path: Path, times: np.ndarray) -> None:
    begins = np.array([time for time, _ in decoded(path)])
    shown = [int(np.flatnonzero(begins - begins[0] <= time + 5e-4)[-1]) for time in times]
    expected = {
        place: picture.to_ndarray(format="rgb24") for place, (_, picture) in enumerate(decoded(path)) if place in shown
    }
    assert found.shape == (len(times), *expected[shown[0]].shape)
    assert found.dtype == np.uint8
    for one, place in zip(found, shown, strict=True):
        assert np.abs(one.astype(int) - expected[place]).max() <= ROUNDING


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("name", CLIPS)
def test_frames_of_real_clips_at_random_times(shared_dir: Path, name: str, backend: str) -> None:
    assert backend in backends()
    path = shared_dir / "data/video" / name
    with open_video(path, backend) as video:
        assert video.backend == backend
        times = np.random.default_rng(0).uniform(0, video.duration, 12)
        assert_shown(video.frames_at(times), path, times)
        back = times[::-6]  # one by one, backwards
        assert_shown(np.concatenate([video.frames_at([time]) for time in back]), path, back)


@pytest.mark.parametrize("name", CLIPS)
def test_both_backends_tell_the_same(shared_dir: Path, name: str) -> None:
    first, second = (open_video(shared_dir / "data/video" / name, backend) for backend in backends())
    with first, second:
        assert first.duration == pytest.approx(second.duration, abs=1e-5)
        assert (first.fps, first.size) == (pytest.approx(second.fps), second.size)
        assert abs(first.num_frames - second.num_frames) <= 1


STEADY = list(range(40))
UNEVEN = [place + place**2 // 4 for place in STEADY]
OPEN_GROUPS = {"bf": "3", "x264-params": "open-gop=1:keyint=12:scenecut=0"}


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize(
    ("name", "times", "options"),
    [
        ("plain.mp4", STEADY, {"g": "12", "bf": "0"}),
        ("reordered.mp4", STEADY, {"g": "12", "bf": "3"}),
        ("open_groups.mp4", STEADY, OPEN_GROUPS),
        ("open_groups.mkv", STEADY, OPEN_GROUPS),
        ("uneven.mp4", UNEVEN, {"g": "12", "bf": "2"}),
        ("uneven.mkv", UNEVEN, {"g": "12"}),
    ],
)
def test_frames_of_hard_files_at_random_times(
    tmp_path: Path, name: str, times: list[int], options: dict[str, str], backend: str
) -> None:
    """Open groups and uneven times: where reading by place goes wrong."""
    assert backend in backends()
    path = write(tmp_path / name, times, options)
    with open_video(path, backend) as video:
        wanted = np.random.default_rng(0).uniform(0, min(video.duration, times[-1] / 25 + 0.03), 40)
        for part in wanted.reshape(-1, 4):
            assert_shown(video.frames_at(part), path, part)
        exact = np.array(times) / 25
        assert_shown(video.frames_at(exact), path, exact)


def test_pyav_reads_what_decord_does_not(tmp_path: Path) -> None:
    """A transport stream, whose first frame is not at 0, or where frames without what they refer to follow a seek; AVI
    that holds no times, only the order of frames."""
    backends()
    for name, codec in (("clip.ts", "libx264"), ("clip.avi", "libx264"), ("mpeg4.ts", "mpeg4")):
        path = write(tmp_path / name, STEADY, {"g": "12", "bf": "2"}, codec)
        with pytest.raises(ValueError, match=f"{name} .*decord.* the backend must be 'pyav'"):
            open_video(path, "decord")
        frames = all_frames(path)
        with open_video(path) as video:
            assert video.backend == "pyav"
            for place in np.random.default_rng(0).permutation(len(STEADY)):
                assert np.array_equal(video.frames_at([place / 25])[0], frames[place])


def test_a_frame_is_shown_until_the_next_begins(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mkv", [0, 1, 5, 6])  # Matroska rounds times to milliseconds
    frames = all_frames(path)
    for backend in backends():
        with open_video(path, backend) as video:
            found = video.frames_at([0.0, 0.0390, 0.04, 0.1990, 0.2, 0.04])
            assert np.array_equal(found, frames[[0, 0, 1, 1, 2, 1]])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_turned_upright(tmp_path: Path, degrees: int) -> None:
    source = write(tmp_path / "clip.mp4", STEADY[:8])
    expected = np.rot90(all_frames(source)[5], -degrees // 90)
    path = turned(source, degrees)
    for backend in (*backends(), None):
        if backend == "decord" and degrees % 180:
            with pytest.raises(ValueError, match=rf"{degrees}\.mp4 is turned by its metadata, which decord cannot"):
                open_video(path, backend)
            continue
        with open_video(path, backend) as video:
            assert video.size == expected.shape[:2]
            assert np.abs(video.frames_at([0.2])[0].astype(int) - expected).max() <= ROUNDING


# ---- which backend


def test_decord_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backends()
    path = write(tmp_path / "clip.mp4", STEADY[:8])
    with open_video(path) as video:
        assert video.backend == "decord"
    monkeypatch.setattr(reader, "LONG", 0.1)
    with open_video(path) as video:
        assert video.backend == "pyav"


def test_pyav_takes_over_where_decord_fails_while_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backends()
    path = write(tmp_path / "clip.mp4", STEADY[:8])

    def fail(self: Any, place: int) -> np.ndarray:
        raise RuntimeError("0x5581")

    monkeypatch.setattr(decord_backend.DecordReader, "_decoded", fail)
    with open_video(path) as video:
        assert np.array_equal(video.frames_at([0.1])[0], all_frames(path)[2])
        assert video.backend == "pyav"
    with open_video(path, "decord") as video, pytest.raises(ValueError, match=r"clip.mp4 is no video") as told:
        video.frames_at([0.1])
    assert "0x5581" not in str(told.value)


@pytest.mark.parametrize("missing", ["decord", "av"])
def test_one_backend_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    backends()
    path = write(tmp_path / "clip.mp4", STEADY[:8])
    monkeypatch.setitem(sys.modules, missing, None)  # which makes its import fail
    with open_video(path) as video:
        assert video.backend == {"decord": "pyav", "av": "decord"}[missing]
    with pytest.raises(ImportError, match=rf"the package {missing}, .* pip install unimodal-ar\[video\]"):
        open_video(path, {"decord": "decord", "av": "pyav"}[missing])


def test_no_such_backend() -> None:
    with pytest.raises(ValueError, match="backend is 'opencv'; it must be one of decord, pyav, or None"):
        open_video("clip.mp4", "opencv")


# ---- files that cannot be read


def broken_files(folder: Path) -> dict[str, str]:
    with av.open(str(folder / "audio.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        stream.layout = "mono"
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    (folder / "empty.mp4").touch()
    (folder / "text.mp4").write_text("This is not a video.\n" * 50)
    (folder / "folder.mp4").mkdir()
    whole = write(folder / "whole.mp4", STEADY, {"g": "5"}).read_bytes()
    (folder / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    return {
        "audio.mp4": "holds no video stream|is no video that can be decoded",
        "empty.mp4": r"is empty \(0 bytes\); it must hold a video",
        "text.mp4": "is no video that can be decoded, or broken or truncated",
        "cut.mp4": "is no video that can be decoded, or broken or truncated",
        "folder.mp4": "is a folder; it must be a video file",
        "none.mp4": "is not there",
    }


@pytest.mark.parametrize("backend", ["decord", "pyav", None])
def test_broken_files_are_named(tmp_path: Path, shared_dir: Path, backend: str | None) -> None:
    backends()
    found = {tmp_path / name: message for name, message in broken_files(tmp_path).items()}
    for name in ("corrupt_truncated.mp4", "corrupt_truncated_faststart.mp4"):
        found[shared_dir / "data/video" / name] = "is no video that can be decoded, or broken or truncated"
    for path, message in found.items():
        with pytest.raises(ValueError, match=f"^{re.escape(str(path))} ({message})") as told:
            open_video(path, backend)
        assert "\n" not in str(told.value)
        assert "0x" not in str(told.value)


def test_times_outside_the_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "clip.mp4", STEADY)
    for backend in backends():
        with open_video(path, backend) as video:
            wrongs: list[Any] = [[1.7], [-0.1], [float("nan")], [], [[0.0]]]
            for wrong in wrongs:
                with pytest.raises(ValueError, match=r"clip.mp4: times hold .*from 0 to less than .* duration, 1.6"):
                    video.frames_at(wrong)
            video.close()
            with pytest.raises(ValueError, match=r"clip.mp4 is closed"):
                video.frames_at([0])


# ---- memory and workers


@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_opening_again_and_again_does_not_leak(shared_dir: Path, backend: str) -> None:
    assert backend in backends()
    path = shared_dir / "data/video/carphone_distorted.mp4"
    process = psutil.Process()

    def cycle(times: int) -> int:
        for place in range(times):
            with open_video(path, backend) as video:
                video.frames_at([place % 5 / 10])
        gc.collect()
        return process.memory_info().rss

    before = cycle(30)
    assert cycle(300) - before < 20 * 2**20


class Frames(Dataset):  # type: ignore[type-arg]
    """One frame of a file at each place, opened, read and closed where it is asked for."""

    def __init__(self, path: Path, backend: str | None) -> None:
        self.path, self.backend = path, backend

    def __len__(self) -> int:
        return 12

    def __getitem__(self, place: int) -> torch.Tensor:
        with open_video(self.path, self.backend) as video:
            return torch.from_numpy(video.frames_at([place / 25]))


@pytest.mark.parametrize("backend", ["decord", "pyav"])
@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_read(tmp_path: Path, context: str, backend: str) -> None:
    assert backend in backends()
    if context not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"no {context} here")
    path = write(tmp_path / "clip.mp4", STEADY)
    frames = torch.from_numpy(all_frames(path))
    data = Frames(path, backend)
    assert torch.equal(data[0][0], frames[0])  # the parent has read, too, before it forks
    loader = DataLoader(data, batch_size=3, num_workers=2, multiprocessing_context=context, timeout=100)
    assert torch.equal(torch.cat(list(loader))[:, 0], frames[:12])


# ---- clips


@pytest.fixture
def video(tmp_path: Path) -> Any:
    pytest.importorskip("decord")
    with open_video(write(tmp_path / "clip.mp4", STEADY), "pyav") as opened:
        yield opened


def places(clip: VideoClip, video: Any) -> list[int]:
    """Which frame of the file each frame of the clip is."""
    frames = torch.from_numpy(video.frames_at([place / 25 for place in STEADY]))
    return [int((frames == one).flatten(1).all(1).nonzero()[0]) for one in clip.frames]


def test_clips_at_a_rate(video: Any) -> None:
    clip = sample_clip(video, 6, start=0.4)
    assert (clip.fps, clip.name, clip.seconds) == (25, video.name, pytest.approx(0.24))
    assert places(clip, video) == [10, 11, 12, 13, 14, 15]
    assert places(sample_clip(video, 4, 10, 0.2), video) == [5, 7, 10, 12]  # at 0.2, 0.3, 0.4 and 0.5 s
    assert places(sample_clip(video, 5, 50), video) == [0, 0, 1, 1, 2]
    assert places(sample_clip(video, 40), video) == STEADY


def test_random_starts_are_those_that_leave_room(video: Any) -> None:
    generator = torch.Generator().manual_seed(0)
    found = [places(sample_clip(video, 36, start=None, generator=generator), video) for _ in range(25)]
    assert {clip[0] for clip in found} == {0, 1, 2, 3, 4}
    assert all(clip == list(range(clip[0], clip[0] + 36)) for clip in found)
    again = places(sample_clip(video, 36, start=None, generator=generator.manual_seed(0)), video)
    assert again == found[0]


def test_windows(video: Any) -> None:
    assert window_starts(video, 10) == pytest.approx([0, 0.4, 0.8, 1.2])
    assert window_starts(video, 10, overlap=5) == pytest.approx([0.2 * place for place in range(7)])
    assert window_starts(video, 11) == pytest.approx([0, 0.44, 0.88])
    assert window_starts(video, 4, fps=5) == pytest.approx([0, 0.8])
    for start in window_starts(video, 4, fps=5):
        assert len(sample_clip(video, 4, 5, start).frames) == 4


def test_clips_that_are_not_there(video: Any) -> None:
    with pytest.raises(ValueError, match=r"clip.mp4 is too short: it has 1.6 s, and 41 frames at 25 a second need 1.6"):
        sample_clip(video, 41)
    with pytest.raises(ValueError, match="is too short"):
        window_starts(video, 41)
    with pytest.raises(ValueError, match=r"start is 1.5 s, and for 4 frames at 25 .* it must be from 0 to 1.44"):
        sample_clip(video, 4, start=1.5)
    with pytest.raises(ValueError, match="overlap is 4 frames; it must be at least 0 and fewer than the window, 4"):
        window_starts(video, 4, overlap=4)
    with pytest.raises(ValueError, match=r"clip.mp4: fps is 0; it must be a positive number"):
        sample_clip(video, 4, 0)
    with pytest.raises(ValueError, match="frames is 0; a clip has at least 1"):
        sample_clip(video, 0)


def test_seeking_goes_back_to_a_key_frame(video: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames far ahead are sought, not decoded up to."""
    monkeypatch.setattr(pyav_backend, "AHEAD", 0.1)
    sought: list[int] = []
    original = video._sought

    def seek(limit: int) -> Any:
        sought.append(limit)
        return original(limit)

    monkeypatch.setattr(video, "_sought", seek)
    found = VideoClip(torch.from_numpy(video.frames_at([0.0, 0.04, 1.0, 1.04])))
    assert len(sought) == 2
    assert places(found, video) == [0, 1, 25, 26]
