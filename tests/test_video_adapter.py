"""The video adapter: there and back in every kind of element, clips from whatever holds them, files, messages."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimodal_ar.adapters import AutoAdapter, ImageAdapter, VideoAdapter, VideoClip, open_video
from unimodal_ar.adapters.tokenizers import ImageTokenizer
from unimodal_ar.adapters.video import sample_clip, window_starts
from unimodal_ar.adapters.video.writing import VideoWriter, film_strip, save_video
from unimodal_ar.segment import Segment

PIL = pytest.importorskip("PIL.Image")


def random_frames(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def patches(*patch: int) -> dict[str, Any]:
    return {"kind": "patches", "patch": list(patch)}


def moving(frames: int = 12, size: tuple[int, int] = (32, 48)) -> Tensor:
    """A smooth picture that moves: what compression keeps."""
    row, column = torch.meshgrid(*(torch.arange(side) for side in size), indexing="ij")
    planes = [torch.stack([row * 6 % 256, column * 4 + 5 * t, (row + column + 9 * t) * 2], -1) for t in range(frames)]
    return torch.stack(planes).clamp(0, 255).byte()


# ---- elements


@given(st.sampled_from([1, 2, 3]), st.sampled_from([1, 2, 4]), st.sampled_from([1, 3]), st.integers(0, 9))
def test_tubelets_are_exact(time: int, side: int, channels: int, seed: int) -> None:
    adapter = VideoAdapter((4, 8), 6, channels=channels, elements=patches(time, side, side))
    frames = random_frames(2, 6, 4, 8, channels, seed=seed)
    segment = adapter.encode_frames(frames)
    assert adapter.element == {"kind": "continuous", "dim": time * side * side * channels}
    assert segment.grid == adapter.grid == (6 // time, 4 // side, 8 // side)
    assert segment.values.dtype == torch.float32
    assert float(segment.values.abs().max()) <= 1
    assert torch.equal(adapter.decode_frames(segment), frames)


def test_tubelets_are_ordered_and_scaled_as_told() -> None:
    frames = torch.arange(2 * 4 * 4 * 3, dtype=torch.uint8).reshape(1, 2, 4, 4, 3)
    values = VideoAdapter(4, 2, elements=patches(2, 2, 2)).encode_frames(frames).values
    # The last element: rows and columns 2 and 3 of both frames.
    expected = frames[0, :, 2:, 2:].flatten().float() / 127.5 - 1
    torch.testing.assert_close(values[0, 3], expected)


def test_elements_of_one_frame_are_those_of_the_image_adapter() -> None:
    frames = random_frames(2, 3, 8, 8, 3)
    for elements, image in (
        (patches(1, 4, 4), {"kind": "patches", "patch": 4}),
        ({"kind": "levels", "levels": 16}, {"kind": "levels", "levels": 16}),
    ):
        segment = VideoAdapter(8, 3, elements=elements).encode_frames(frames)
        expected = ImageAdapter(8, elements=image).encode_pixels(frames[:, 1]).values
        assert torch.equal(segment.values.unflatten(1, (3, -1))[:, 1], expected)


@pytest.mark.parametrize(("levels", "channels"), [(2, 1), (16, 3), (256, 3)])
def test_levels_round_to_half_a_step(levels: int, channels: int) -> None:
    adapter = VideoAdapter(4, 3, channels=channels, elements={"kind": "levels", "levels": levels})
    frames = random_frames(2, 3, 4, 4, channels)
    segment = adapter.encode_frames(frames)
    assert (adapter.grid, adapter.step) == ((3, 4, 4), 1)
    assert adapter.element == {"kind": "discrete", "vocab_size": levels, "codes": channels}
    assert segment.values.shape == (2, 48) + ((channels,) if channels > 1 else ())
    error = (adapter.decode_frames(segment).double() - frames.double()).abs().max()
    assert error <= 255 / (levels - 1) / 2 + 0.5


class Halves(ImageTokenizer):
    """Codes: 0..3 for the quarter of the scale that the mean of 2 x 2 pixels is in. Latents: that mean."""

    channels, factor, vocab_size, dim = 3, 2, 4, 1

    def __init__(self, discrete: bool) -> None:
        self.discrete = discrete  # type: ignore[misc]
        self.model = torch.nn.Linear(1, 1)

    def _encode(self, x: Tensor) -> Tensor:
        mean = torch.nn.functional.avg_pool2d(x.mean(1), 2)
        return ((mean + 1) * 1.999).long() if self.discrete else mean[..., None]

    def _decode(self, values: Tensor) -> Tensor:
        mean = (values.float() + 0.5) / 2 - 1 if self.discrete else values[..., 0]
        return mean.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, None].expand(-1, 3, -1, -1)


def test_tokenizers_see_each_frame() -> None:
    levels = torch.tensor([0, 80, 160, 250, 80], dtype=torch.uint8)
    frames = levels[None, :, None, None, None].expand(2, 5, 4, 8, 3)
    adapter = VideoAdapter((4, 8), 5, tokenizer=Halves(discrete=True))
    segment = adapter.encode_frames(frames)
    assert adapter.element == {"kind": "discrete", "vocab_size": 4, "codes": 1}
    assert segment.grid == (5, 2, 4)
    assert segment.values.unflatten(1, (5, 8))[1, :, 3].tolist() == [0, 1, 2, 3, 1]
    assert adapter.decode_frames(segment)[0, :, 1, 1, 0].tolist() == [32, 96, 159, 223, 96]

    latents = VideoAdapter((4, 8), 5, elements={"kind": "tokenizer", "patch": 2}, tokenizer=Halves(discrete=False))
    segment = latents.encode_frames(frames)
    assert (latents.grid, latents.element) == ((5, 1, 2), {"kind": "continuous", "dim": 4})
    assert torch.equal(latents.decode_frames(segment), frames)


def test_a_tokenizer_is_stored_with_the_adapter(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.VQModel(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        norm_num_groups=4,
        num_vq_embeddings=16,
    )
    adapter = VideoAdapter(8, 3, 5.0, tokenizer=model)
    frames = random_frames(2, 3, 8, 8, 3)
    segment = adapter.encode_frames(frames)
    adapter.save_pretrained(tmp_path)
    assert (tmp_path / "video_tokenizer/config.json").is_file()
    again = AutoAdapter.from_pretrained(tmp_path)
    assert isinstance(again, VideoAdapter)
    assert (again.sources, again.folders) == ({"elements.path": "video_tokenizer"}, ["video_tokenizer"])
    assert torch.equal(again.encode_frames(frames).values, segment.values)
    assert torch.equal(again.decode_frames(segment), adapter.decode_frames(segment))


def test_an_adapter_is_read_in_a_fresh_process(tmp_path: Path) -> None:
    adapter = VideoAdapter([8, 16], 4, 12.5, 1, patches(2, 4, 4), modality="film")
    adapter.save_pretrained(tmp_path)
    code = (
        "import sys, json; from unimodal_ar.adapters import AutoAdapter;"
        "a = AutoAdapter.from_pretrained(sys.argv[1]); print(json.dumps([a.config(), a.grid, a.fps, a.dimensions]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [adapter.config(), [2, 2, 4], 12.5, 4 * 8 * 16]


# ---- clips from whatever holds them


def test_frames_of_the_right_size_stay_bit_for_bit() -> None:
    adapter = VideoAdapter((6, 8), 3, elements=patches(1, 2, 2))
    frames = random_frames(3, 6, 8, 3)
    for raw in (frames, frames.numpy(), [frames], frames[None], VideoClip(frames, 25.0)):
        assert torch.equal(adapter.pixels(raw)[0], frames)
    longer = torch.cat([frames, frames])
    assert torch.equal(adapter.pixels([longer, frames]), torch.stack([frames, frames]))
    assert torch.equal(adapter.decode(adapter.encode(frames))[0].frames, frames)


def test_other_sizes_are_resized_and_cropped_as_images_are() -> None:
    frames = moving(2, (20, 37))
    found = VideoAdapter(8, 2, elements=patches(1, 4, 4)).pixels(frames)
    expected = ImageAdapter(8).pixels(frames)
    assert torch.equal(found[0], expected)


def test_colours_become_grey_and_grey_becomes_colours() -> None:
    frames = random_frames(2, 4, 4, 3)
    grey = VideoAdapter(4, 2, channels=1, elements=patches(1, 2, 2)).pixels(frames)
    expected = np.stack([np.array(PIL.fromarray(frame.numpy()).convert("L")) for frame in frames])
    assert torch.equal(grey[0, ..., 0], torch.from_numpy(expected))
    plain = random_frames(2, 4, 4)
    assert torch.equal(
        VideoAdapter(4, 2, elements=patches(1, 2, 2)).pixels(plain)[0], plain[..., None].expand(-1, -1, -1, 3)
    )
    same = plain[..., None].expand(-1, -1, -1, 3)
    assert torch.equal(VideoAdapter(4, 2, channels=1, elements=patches(1, 2, 2)).pixels(same)[0, ..., 0], plain)


def test_clips_are_brought_to_the_rate() -> None:
    frames = random_frames(20, 4, 4, 3)
    adapter = VideoAdapter(4, 4, 10.0, elements=patches(1, 2, 2))
    assert torch.equal(adapter.pixels(frames)[0], frames[:4])  # an array has the adapter's rate
    assert torch.equal(adapter.pixels(VideoClip(frames, 25.0))[0], frames[[0, 2, 5, 7]])
    assert torch.equal(adapter.pixels(VideoClip(frames, 5.0))[0], frames[[0, 0, 1, 1]])
    assert torch.equal(adapter.pixels(VideoClip(frames, 10.0), start=0.3)[0], frames[3:7])
    with pytest.raises(ValueError, match=r"clip 0 is too short: from 0 s on it has 3 frames, and must have 4"):
        adapter.pixels(VideoClip(frames[:6], 20.0))


def test_every_so_many_frames_are_taken(tmp_path: Path) -> None:
    pytest.importorskip("av")
    frames = random_frames(20, 4, 4, 3)
    adapter = VideoAdapter(4, 4, elements=patches(1, 2, 2), stride=3)
    assert (adapter.stride, adapter.rate(24.0), adapter.rate(None)) == (3, 8.0, None)
    assert torch.equal(adapter.pixels(VideoClip(frames, 24.0))[0], frames[:12:3])
    assert torch.equal(adapter.pixels(VideoClip(frames, 24.0), start=0.25)[0], frames[6:18:3])
    assert torch.equal(adapter.frames_of(VideoClip(frames, 24.0)), frames[::3])
    # What tells no rate has the adapter's: what is decoded is saved as it is.
    assert torch.equal(adapter.pixels(frames)[0], frames[:4])
    assert torch.equal(adapter.frames_of(VideoClip(frames)), frames)
    assert len(adapter.complete(VideoClip(frames[:4], 24.0)).values[0]) == 16
    with pytest.raises(ValueError, match=r"clip 0 is too short: from 0 s on it has 3 frames, and must have 4"):
        adapter.pixels(VideoClip(frames[:9], 24.0))
    fixed = VideoAdapter(4, 4, 12.0, elements=patches(1, 2, 2))
    assert fixed.rate(24.0) == fixed.rate(None) == 12.0

    path = tmp_path / "clip.mp4"
    save_video([moving(12)], path, 25.0)
    wide = VideoAdapter((32, 48), 4, elements=patches(1, 8, 8), stride=3)
    every = VideoAdapter((32, 48), 4, elements=patches(1, 8, 8)).frames_of(path)
    assert len(every) == 12
    assert torch.equal(wide.frames_of(path), every[::3])
    assert torch.equal(wide.pixels(path)[0], every[::3])
    with open_video(path) as video:
        assert torch.equal(sample_clip(video, 3, start=0.08, stride=3).frames, every[2:11:3])
        assert sample_clip(video, 2, stride=3).fps == pytest.approx(25 / 3)
        assert window_starts(video, 2, stride=3) == pytest.approx([0, 6 / 25])
        with pytest.raises(ValueError, match=r"clip.mp4: stride is 2 and fps 5.0; stride must be at least 1, and 1 wh"):
            sample_clip(video, 2, 5.0, stride=2)
    assert wide.picture([path]).size == VideoAdapter((32, 48), 2).picture([path]).size  # all frames can be looked at
    wide.save_pretrained(tmp_path)
    again = AutoAdapter.from_pretrained(tmp_path)
    assert isinstance(again, VideoAdapter) and again.stride == 3


def test_all_frames_of_a_clip() -> None:
    adapter = VideoAdapter((4, 8), 2, 10.0, elements=patches(2, 2, 2))
    frames = random_frames(9, 4, 8, 3)
    assert torch.equal(adapter.frames_of(VideoClip(frames, 20.0)), frames[::2])
    assert torch.equal(adapter.frames_of(frames), frames)
    assert [adapter.whole(count) for count in (0, 1, 2, 9)] == [0, 0, 2, 8]
    assert not adapter.joins_frames
    assert adapter.frames_of(random_frames(3, 8, 20, 1)).shape == (3, 4, 8, 3)
    with pytest.raises(ValueError, match=r"^the third has frames that are torch.uint8 \[2, 4, 8, 4\]"):
        adapter.frames_of(random_frames(2, 4, 8, 4), "the third")


def test_files_are_read(tmp_path: Path) -> None:
    pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    save_video([moving(12)], path, 25.0)
    with open_video(path) as video:
        frames = torch.from_numpy(video.frames_at([place / 25 for place in range(12)]))
    adapter = VideoAdapter((32, 48), 4, elements=patches(2, 8, 8))
    assert torch.equal(adapter.pixels(path)[0], frames[:4])
    assert torch.equal(adapter.pixels([str(path), frames], start=0.0), frames[:4].expand(2, -1, -1, -1, -1))
    assert torch.equal(adapter.pixels(path, start=0.2)[0], frames[5:9])
    for start in (0.03, 0.15, 0.24, 0.2396):  # what holds the frames does not matter
        read = adapter.pixels(path, start)
        assert torch.equal(adapter.pixels(VideoClip(frames, 25.0), start), read)
        assert torch.equal(VideoAdapter((32, 48), 4, 25.0, elements=patches(2, 8, 8)).pixels(frames, start), read)
    slow = VideoAdapter((32, 48), 4, 10.0, elements=patches(2, 8, 8))
    assert torch.equal(slow.pixels(path)[0], frames[[0, 2, 5, 7]])
    with pytest.raises(ValueError, match=r"clip.mp4 is too short: it has 0.48 s, and 20 frames at 25 a second need"):
        VideoAdapter((32, 48), 20, elements=patches(2, 8, 8)).encode(path)


# ---- lengths, completion, streams


def test_lengths_in_seconds() -> None:
    adapter = VideoAdapter(4, 8, 12.5, elements=patches(2, 2, 2))
    assert adapter.grid_for() == (4, 2, 2)
    assert adapter.grid_for(0.16) == (1, 2, 2)
    assert adapter.grid_for(0.17) == (2, 2, 2)
    assert adapter.grid_for(8) == (50, 2, 2)
    for wrong in (0, -1, float("nan"), float("inf"), True, "1"):
        with pytest.raises(ValueError, match=r"seconds is .*; it must be a positive number"):
            adapter.grid_for(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"seconds is 1.0, and this adapter's fps is None"):
        VideoAdapter(4, 8, elements=patches(2, 2, 2)).grid_for(1.0)


def test_beginnings_are_completed() -> None:
    adapter = VideoAdapter(4, 8, 10.0, elements=patches(2, 2, 2))
    frames = random_frames(2, 5, 4, 4, 3)
    segment = adapter.complete(list(frames))
    assert segment.grid == (4, 2, 2)
    assert segment.element_observed.tolist() == [[True] * 8 + [False] * 8] * 2  # two whole steps of five frames
    shown = adapter.decode_frames(segment)
    assert torch.equal(shown[:, :4], frames[:, :4])
    assert (shown[:, 4:] == 128).all()
    # Nothing behind what is kept shows in it.
    other = frames.clone()
    other[:, 4] = 0
    assert torch.equal(adapter.complete(list(other)).values, segment.values)
    assert adapter.complete(frames[0], seconds=2.0).grid == (10, 2, 2)


def test_what_cannot_be_completed() -> None:
    adapter = VideoAdapter(4, 8, elements=patches(2, 2, 2))
    frames = random_frames(8, 4, 4, 3)
    more = frames.repeat(2, 1, 1, 1)
    for wrong, found in ((frames, "8 frames or more"), (more, "8 frames or more"), (frames[:1], "1 frames")):
        with pytest.raises(ValueError, match=rf"^given has {found}; it must have at least 2 and fewer than .*, 8$"):
            adapter.complete(wrong)
    with pytest.raises(ValueError, match=r"given has clips of \[2, 4\] frames"):
        adapter.complete([frames[:2], frames[:5]])
    for given_, mask in ((frames[:2], [(0, 1)]), (None, [(0, 1)])):
        with pytest.raises(ValueError, match="'video' takes no mask; give the clips' beginnings"):
            adapter.complete(given_, mask)  # type: ignore[arg-type]


def test_streams_yield_what_is_new() -> None:
    adapter = VideoAdapter(4, 8, 10.0, elements=patches(2, 2, 2))
    whole = adapter.encode_frames(random_frames(2, 8, 4, 4, 3))

    def grown(*counts: int) -> list[Segment]:
        known = [(torch.arange(16) < count).expand(2, -1) for count in counts]
        return [
            Segment("video", whole.values.masked_fill(~k[..., None], float("nan")), whole.grid, observed=k)
            for k in known
        ]

    parts = list(adapter.stream(grown(1, 4, 6, 9, 15, 16)))
    assert [[len(clip.frames) for clip in part] for part in parts] == [[2, 2], [2, 2], [4 - 2, 2], [2, 2]]
    for row, frames in enumerate(adapter.decode_frames(whole)):
        assert torch.equal(torch.cat([part[row].frames for part in parts]), frames)
    assert [len(part[0].frames) for part in adapter.stream(grown(8, 16))] == [4, 4]
    (hole,) = grown(16)
    known = hole.element_observed.clone()
    known[1, 2] = False  # of the first step
    assert list(adapter.stream([hole.replace(observed=known)])) == []
    frames = adapter.decode_frames(grown(6)[0])  # what is not known may be anything
    assert torch.equal(frames[:, :2], adapter.decode_frames(whole)[:, :2])
    assert (frames[:, 4:] == 128).all() and (frames[:, 2:4, 2:] == 128).all()


# ---- files and pictures


def psnr(first: Tensor, second: Tensor) -> float:
    return float(10 * torch.log10(255**2 / (first.double() - second.double()).square().mean()))


def test_mp4_files_hold_the_frames_at_their_times(tmp_path: Path) -> None:
    pytest.importorskip("av")
    adapter = VideoAdapter((32, 48), 12, 30000 / 1001, elements=patches(1, 8, 8))
    frames = moving(12)
    adapter.save(adapter.decode(adapter.encode(frames)), tmp_path / "clip.mp4")
    with open_video(tmp_path / "clip.mp4") as video:
        assert (video.size, video.num_frames, video.fps) == ((32, 48), 12, pytest.approx(30000 / 1001))
        found = torch.from_numpy(video.frames_at([place * 1001 / 30000 for place in range(12)]))
    assert psnr(found, frames) > 33
    assert min(psnr(found, frames.roll(shift, 0)) for shift in (0,)) > psnr(found, frames.roll(1, 0)) + 5


def test_odd_sizes_and_grey_are_written(tmp_path: Path) -> None:
    pytest.importorskip("av")
    frames = moving(4, (31, 47))[..., :1]
    save_video([frames], tmp_path / "clip.mp4", None)
    with open_video(tmp_path / "clip.mp4") as video:
        assert (video.size, video.fps) == ((32, 48), 25)
        found = torch.from_numpy(video.frames_at([0.12])[0])
    assert psnr(found[:31, :47], frames[3].expand(-1, -1, 3)) > 33
    assert psnr(found[31:, :47], frames[3, 30:].expand(-1, -1, 3)) > 30


def test_gif_files_hold_the_frames_at_their_times(tmp_path: Path) -> None:
    adapter = VideoAdapter(16, 9, 30.0, 1, patches(1, 8, 8))
    frames = random_frames(9, 16, 16, 1)
    adapter.save([VideoClip(frames, 30.0)], tmp_path / "clip.gif")
    with PIL.open(tmp_path / "clip.gif") as picture:
        durations = []
        for place in range(9):
            picture.seek(place)
            durations.append(picture.info["duration"])
            assert np.array_equal(np.array(picture.convert("L")), frames[place, ..., 0])
        assert picture.n_frames == 9
    assert durations == [30, 40, 30, 30, 40, 30, 30, 40, 30]  # 300 ms in all


def test_several_clips_stand_side_by_side(tmp_path: Path) -> None:
    adapter = VideoAdapter(64, 4, 5.0, 1, patches(1, 8, 8))
    dark, light = torch.full((4, 64, 64, 1), 10, dtype=torch.uint8), torch.full((2, 64, 64, 1), 240, dtype=torch.uint8)
    light[1] = 180
    adapter.save([dark, light], tmp_path / "clips.gif")
    with PIL.open(tmp_path / "clips.gif") as picture:
        assert picture.size == (64 + 2 + 64, 64)
        seen = []
        for place in range(picture.n_frames):
            picture.seek(place)
            grey = np.array(picture.convert("L"))
            seen.append((grey[5, 5], grey[5, 100], picture.info["duration"]))
    # Pillow joins equal frames: the shorter clip holds its last one.
    assert seen == [(10, 240, 200), (10, 180, 600)]


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif"])
def test_files_are_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip("av")
    (tmp_path / name).write_text("old")

    def fail(*args: Any, **more: Any) -> None:
        raise OSError("full")

    monkeypatch.setattr(VideoWriter, "write", fail)
    monkeypatch.setattr(PIL.Image, "save", fail)
    with pytest.raises(OSError, match="full"):
        save_video([moving(2)], tmp_path / name, None)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "old"


def test_files_that_cannot_be_written(tmp_path: Path) -> None:
    adapter = VideoAdapter(8, 2)
    frames = random_frames(2, 8, 8, 3)
    with pytest.raises(ValueError, match=r"clip.avi is to be a video file; its name must end in .mp4 or .gif"):
        adapter.save(frames, tmp_path / "clip.avi")
    with pytest.raises(ValueError, match=r"clip.mp4 cannot be written; there is no folder"):
        adapter.save(frames, tmp_path / "none/clip.mp4")
    with pytest.raises(ValueError, match=r"clip.gif is to be a video file; its name must end in .mp4$"):
        next(adapter.save_stream(iter([]), tmp_path / "clip.gif"))


def test_streamed_files_can_be_played_at_any_moment(tmp_path: Path) -> None:
    pytest.importorskip("av")
    adapter = VideoAdapter((32, 48), 12, 25.0, elements=patches(1, 8, 8))
    frames, path = moving(12), tmp_path / "clip.mp4"
    parts = [[VideoClip(part, 25.0)] for part in frames.split([3, 4, 5])]
    told, counts = [], []
    for one in adapter.save_stream(iter(parts), path):
        told.append(one)
        with open_video(path, "pyav") as video:
            there = round(video.duration * 25)
            counts.append(there)
            found = torch.from_numpy(video.frames_at([place / 25 for place in range(there)]))
            assert psnr(found, frames[:there]) > 33
    assert told == ["3 frames", "7 frames", "12 frames"]
    assert counts == [2, 6, 11]  # the latest frame is still to come
    assert len(adapter._plain(path)[0]) == 12


def test_the_picture_is_a_film_strip() -> None:
    clips = [torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 64, 64, 1) for count in (15, 3)]
    strip = np.array(film_strip(clips))
    assert strip.shape == (2 * 66 - 2, 8 * 66 - 2)
    assert strip[10, 10::66].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]
    assert strip[80, 10::66].tolist() == [0, 0, 1, 1, 1, 1, 2, 2]
    assert (strip[:, 64] == 128).all()
    adapter = VideoAdapter(16, 3)
    assert adapter.picture(random_frames(3, 16, 16, 3)).size == (3 * 66 - 2, 64)


# ---- messages


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(frames=5, elements=patches(2, 4, 4)), "frames is 5; with elements of 2 frames it must be 4 or 6"),
        (dict(frames=1, elements=patches(2, 4, 4)), "frames is 1; with elements of 2 frames it must be 2"),
        (dict(elements=patches(1, 3, 3)), r"size is \[8, 8\]; with patch 3 .* the nearest legal size is \[9, 9\]"),
        (dict(elements=patches(1, 2, 4)), r"elements.patch is \[1, 2, 4\]; it must be \[t, p, p\]"),
        (dict(elements={"kind": "patches", "patch": 4}), r"VideoAdapter.*elements.*patch"),
        (dict(elements={"kind": "tokenizer"}), "elements.path is None and no tokenizer is given"),
        (dict(elements={"kind": "levels"}, tokenizer=Halves(True)), "elements.kind is 'levels' and a tokenizer is"),
        (dict(tokenizer=Halves(True), elements={"kind": "tokenizer", "patch": 2}), "patch is 2 with a tokenizer of c"),
        (dict(tokenizer=Halves(True), channels=1), "channels is 1; the tokenizer's images have 3"),
        (dict(fps=0), "fps"),
        (dict(stride=0), "stride"),
        (dict(fps=5, stride=2), "stride is 2 and fps 5.0; frames are skipped where fps is None only"),
        (dict(channels=2), "channels"),
        (dict(elements={"kind": "palette"}), "palette"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoAdapter(**({"size": 8, "frames": 4} | arguments))


def test_clips_that_do_not_fit() -> None:
    adapter = VideoAdapter(8, 2)
    wrong: list[tuple[Any, str]] = [
        ([], "the list of clips is empty"),
        (random_frames(2, 8, 8, 4), "clip 0 has frames that are torch.uint8 [2, 8, 8, 4]"),
        ([random_frames(2, 8, 8, 3), random_frames(8, 8)], "clip 1 has frames that are torch.uint8 [8, 8]"),
        (np.zeros((2, 8, 8, 3)), "clip 0 has dtype float64; frames must be uint8"),
        (7, "clip 0 is a int; a clip is a path, a VideoClip or a uint8 array"),
        (random_frames(1, 8, 8, 3), "clip 0 is too short: from 0 s on it has 1 frames, and must have 2"),
        ("none.mp4", "none.mp4 is not there"),
    ]
    for raw, message in wrong:
        with pytest.raises(ValueError, match=re.escape(message)):
            adapter.encode(raw)
    with pytest.raises(ValueError, match=r"clip 0 has no fps, so start, 1.0 s, is not known; it must be 0"):
        adapter.encode(random_frames(9, 8, 8, 3), start=1.0)
    for raw in (random_frames(9, 8, 8, 3), VideoClip(random_frames(9, 8, 8, 3), 10.0), "none.mp4"):
        for start in (-0.1, float("nan"), float("inf")):
            with pytest.raises(ValueError, match=rf"^start is {start} s; it must be a number >= 0$"):
                VideoAdapter(8, 2, 20.0).pixels(raw, start)
    fast = VideoClip(random_frames(9, 8, 8, 3), 5000.0)  # a frame takes less than what times may be off
    assert torch.equal(adapter.pixels(fast, 3 / 5000)[0], fast.frames[3:5])
    with pytest.raises(ValueError, match=r"the clip: fps is -1; it must be a positive number"):
        VideoClip(random_frames(1, 8, 8, 3), -1)


def test_segments_and_frames_that_do_not_fit() -> None:
    adapter = VideoAdapter(8, 2, elements=patches(1, 4, 4))
    segment = adapter.encode(random_frames(2, 8, 8, 3))
    with pytest.raises(ValueError, match=r"segment has the grid \(2, 4, 1\); this adapter's are \(steps, 2, 2\)"):
        adapter.decode(segment.replace(grid=(2, 4, 1)))
    with pytest.raises(ValueError, match=r"segment's values are torch.float32 .* this adapter's element is"):
        adapter.decode(segment.replace(values=segment.values[..., :5]))
    with pytest.raises(ValueError, match="values to decode hold NaN or infinity"):
        adapter.decode(segment.replace(values=segment.values * float("nan")))
    with pytest.raises(ValueError, match=r"frames has dtype torch.uint8 and shape \(1, 2, 8, 8, 1\); it must be"):
        adapter.encode_frames(random_frames(1, 2, 8, 8, 1))
    levels = VideoAdapter(2, 1, channels=1, elements={"kind": "levels", "levels": 4})
    with pytest.raises(ValueError, match=r"a code is 4; it must be one of 0..3"):
        levels.decode(Segment("video", torch.full((1, 4), 4), (1, 2, 2)))
