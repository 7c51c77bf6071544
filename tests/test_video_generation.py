"""Videos that are drawn: clips that go on, frame by frame and in other blocks, longer than trained, and on the command
line."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unimodal_ar import Segment
from unimodal_ar.adapters import VideoAdapter, VideoClip, open_video
from unimodal_ar.cli import main
from unimodal_ar.noise import SampleNoise
from unimodal_ar.pipelines import Generator

from .helpers import backbone_inputs, build, codes, diffusion, hidden_states, series

FPS, FRAMES, LEVELS = 10.0, 4, 4
GRID = (FRAMES, 2, 2)
STEP = 4  # elements of a frame

# Name -> modality of codes on GRID, and how many frames a block takes.
METHODS: dict[str, tuple[dict[str, Any], int]] = {
    "token": (codes(LEVELS, GRID), 1),
    "row": (codes(LEVELS, GRID, "row"), 1),
    "frame": (codes(LEVELS, GRID, "frame"), 1),
    "first frame": (codes(LEVELS, GRID, None, "first_frame"), 1),
    "first frame by rows": (codes(LEVELS, GRID, "row", "first_frame"), 1),
    "columns of two frames": (codes(LEVELS, GRID, {"cell": [2, 2, 1]}), 2),
    "masked frames": (codes(LEVELS, GRID, "frame", **diffusion("mask")), 1),
    "masked cells": (codes(LEVELS, GRID, {"cell": [2, 1, 2]}, **diffusion("mask")), 1),
}
each_method = pytest.mark.parametrize("name", METHODS)


def of_codes(name: str, **options: Any) -> Generator:
    """A model of grey clips of 0.4 s, 2 x 2 pixels of 4 levels."""
    elements = {"kind": "levels", "levels": LEVELS}
    adapter = VideoAdapter(2, FRAMES, FPS, channels=1, elements=elements, **options)
    assert adapter.grid == GRID
    return Generator(build({"video": METHODS[name][0]}, spread=0.5), [adapter])


def of_patches(block: Any, **more: Any) -> Generator:
    """A model of grey clips of 0.4 s, 2 x 2 patches of 4 pixels."""
    elements = {"kind": "patches", "patch": [1, 2, 2]}
    adapter = VideoAdapter(4, FRAMES, FPS, channels=1, elements=elements)
    assert adapter.grid == GRID
    return Generator(build({"video": series(4, GRID, block, **more)}, spread=0.1), [adapter])


def clip(frames: int, seed: int = 0, size: int = 2) -> VideoClip:
    drawn = torch.randint(0, LEVELS, (frames, size, size, 1), generator=torch.Generator().manual_seed(seed))
    return VideoClip((drawn * 85).byte(), FPS)


def frames_of(samples: Any) -> Tensor:
    return torch.stack([each.frames for each in samples.raw])


# --- clips that go on -------------------------------------------------------------------------------------------------


@each_method
@pytest.mark.parametrize("known", [1, 2, 3])
def test_a_clip_goes_on_from_its_first_frames(name: str, known: int) -> None:
    source, given = of_codes(name), clip(known)
    kept = known // METHODS[name][1] * METHODS[name][1]
    if not kept:
        with pytest.raises(ValueError, match=r"^given is too short: this model draws 4 elements of 'video' first"):
            source.generate(2, given=given)
        return
    drawn = frames_of(source.generate(16, given=given))
    assert drawn.shape == (16, FRAMES, 2, 2, 1)
    assert torch.equal(drawn[:, :kept], given.frames[:kept].expand(16, -1, -1, -1, -1))
    assert all(len(drawn[:, frame].unique(dim=0)) > 1 for frame in range(kept, FRAMES))
    # What goes on is what the model draws, given these elements, and depends on them.
    known_part = source.adapter().complete(VideoClip(given.frames[:kept], FPS))
    expected = source.model.generate(
        [], "video", given=known_part.repeat_interleave(16), generator=SampleNoise(0, torch.arange(16))
    )
    assert torch.equal(torch.stack([each.frames for each in source.adapter().decode(expected)]), drawn)
    other = frames_of(source.generate(16, given=clip(known, seed=1)))
    assert not torch.equal(other[:, kept:], drawn[:, kept:])


@pytest.mark.parametrize("known", [1, 2])
@pytest.mark.parametrize(
    ("order", "block", "passes"),
    [("raster", "frame", 1), ("first_frame", None, 1), ("raster", {"cell": [1, 1, 2]}, 2), ("raster", 1, 4)],
)
def test_going_on_takes_one_pass_a_block_and_is_exact(known: int, order: str, block: Any, passes: int) -> None:
    """A regression draws its mean: what the full pass over the whole clip predicts."""
    source = of_patches(block)
    source.model = build({"video": series(4, GRID, block, order)}, spread=0.1)
    with hidden_states(source.model) as states:
        drawn = source.generate(1, given=clip(known, size=4)).segment
    assert len(states) == passes * (FRAMES - known)
    losses = source.model([drawn]).element_losses["video"][0]
    assert losses[known * STEP :].max() < 1e-8 < losses[: known * STEP].max()


def test_cells_over_frames_are_drawn_one_by_one_and_exactly() -> None:
    cell = {"cell": [2, 1, 2]}
    source = of_patches(cell)
    with hidden_states(source.model) as states:
        drawn = source.generate(1).segment
    assert [state.shape[1] for state in states] == [4] * 4
    assert source.model([drawn]).element_losses["video"].max() < 1e-8
    layout = source.model.layout("video", GRID)
    assert layout.coords[layout.block == 1].tolist() == [[0, 1, 0], [0, 1, 1], [1, 1, 0], [1, 1, 1]]
    with hidden_states(source.model) as states:
        again = source.generate(1, given=source.adapter().decode(drawn)[0].frames[:2]).segment
    assert len(states) == 2
    torch.testing.assert_close(again.values[:, : 2 * STEP], drawn.values[:, : 2 * STEP], atol=1 / 127, rtol=0)


# --- frames in random sets (NOVA, arXiv 2412.14169) -------------------------------------------------------------------


@pytest.mark.parametrize("known", [0, 2])
def test_frames_come_one_after_another_each_in_random_sets(known: int) -> None:
    """A diffusion head on masked frames: in every pass a few elements of the frame that is drawn are added, other ones
    in every sample, and nothing else is hidden or changed."""
    grid, steps = (FRAMES, 4, 4), 3
    modality = series(4, grid, "frame", head={"kind": "diffusion", "steps": 2}, **diffusion("mask"))
    adapter = VideoAdapter(8, FRAMES, FPS, channels=1, elements={"kind": "patches", "patch": [1, 2, 2]})
    source = Generator(build({"video": modality}, spread=0.1), [adapter])
    embedding: Any = source.model.embeddings["video"]
    passes: list[tuple[int, Tensor]] = []
    noisy = embedding.noisy

    def watched(values: Tensor, layout: Any, observed: Any, covariates: Any, places: slice, masked: Tensor) -> Tensor:
        passes.append((int(layout.block[places][0]), masked))
        return noisy(values, layout, observed, covariates, places, masked)

    embedding.noisy = watched
    given = VideoClip(torch.randint(0, 256, (known, 8, 8, 1), dtype=torch.uint8), FPS) if known else None
    drawn = source.generate(6, given=given, steps=steps, seed=1)
    assert [frame for frame, _ in passes] == [frame for frame in range(known, FRAMES) for _ in range(steps)]
    for number in range(0, len(passes), steps):
        hidden = [masked for _, masked in passes[number : number + steps]]
        assert hidden[0].all() and hidden[0].shape == (6, 16)
        for before, after in pairwise(hidden):
            assert not (after & ~before).any() and (after.sum(1) < before.sum(1)).all()
        assert hidden[-1].any(1).all()
        assert len(hidden[1].unique(dim=0)) == 6
    assert len({tuple(masked[0].tolist()) for _, masked in passes[1::steps]}) == FRAMES - known
    assert drawn.segment.values.isfinite().all()
    assert len(drawn.segment.values.unique(dim=0)) == 6
    if given is not None:
        assert torch.equal(frames_of(drawn)[:, :known], given.frames.expand(6, -1, -1, -1, -1))


def test_a_frame_drawn_in_sets_reads_the_frames_before_it() -> None:
    source = of_codes("masked frames")
    one, other = (frames_of(source.generate(64, given=clip(2, seed), temperature=1.0)) for seed in (0, 3))
    assert not torch.equal(one[:, 2:], other[:, 2:])
    same_last = torch.cat([clip(1, 5).frames, clip(2, 0).frames[1:]])
    third = frames_of(source.generate(64, given=VideoClip(same_last, FPS)))
    assert not torch.equal(one[:, 2:], third[:, 2:])  # the first of them, too


# --- longer than trained ----------------------------------------------------------------------------------------------


@each_method
def test_long_clips_keep_their_first_frame_in_sight(name: str) -> None:
    source, span = of_codes(name), METHODS[name][1]
    if span > 1 or name == "masked cells":  # carried over are whole blocks, of two frames
        sink, overlap = (0, 2)
    else:
        sink, overlap = (1, 1)
    drawn = source.generate(3, seconds=1.1, sink=sink / FPS, overlap=overlap / FPS, seed=2)
    assert frames_of(drawn).shape == (3, 11, 2, 2, 1)
    expected = source.model.generate(
        [],
        "video",
        grid=(11, 2, 2),
        num_samples=3,
        window=FRAMES,
        overlap=overlap,
        sink=sink,
        generator=SampleNoise(2, torch.arange(3)),
    )
    assert torch.equal(drawn.segment.values, expected.values)
    if sink:
        begun = source.adapter().complete(VideoClip(frames_of(drawn)[0, :6], FPS), seconds=0.9)
        assert begun.grid == (9, 2, 2)
        changed = begun.values.clone()
        changed[:, :STEP] = (changed[:, :STEP] + 1) % LEVELS
        arguments: dict[str, Any] = dict(window=FRAMES, overlap=1, sink=1, num_samples=64)
        both = [
            source.model.generate(
                [],
                "video",
                given=begun.replace(values=values),
                generator=SampleNoise(0, torch.arange(64)),
                **arguments,
            ).values[:, 6 * STEP :]
            for values in (begun.values, changed)
        ]
        assert not torch.equal(*both)  # the first frame is seen by what comes long after it


@pytest.mark.parametrize("name", ["token", "first frame", "masked frames"])
def test_three_hundred_frames_take_the_memory_of_one_window(name: str) -> None:
    """That of the positions that attention sees, which the cache holds; the first frame is among them always."""
    source, longest = of_codes(name), {}
    for frames in (20, 300):
        with backbone_inputs(source.model) as inputs:
            parts = list(source.stream(seconds=frames / FPS, sink=1 / FPS, overlap=1 / FPS, given=clip(1), steps=None))
        assert sum(len(part.frames) for (part,) in parts) == frames
        longest[frames] = max(len(each.pattern.block) for each in inputs)
        assert all(each.length <= FRAMES * STEP for each in inputs)
    assert longest[20] == longest[300] <= 2 * FRAMES * STEP


def test_where_the_first_step_is_a_single_frame_it_stays_in_every_window() -> None:
    """A causal tokenizer that joins frames: 1 + 4 k of them."""
    pytest.importorskip("diffusers")
    from .test_video_tokenizers import load, wan

    torch.manual_seed(0)
    adapter = VideoAdapter(16, 9, FPS, tokenizer=load(wan()))
    assert adapter.grid == (3, 4, 4)
    modality = series(adapter.element["dim"], adapter.grid, None, "first_frame")
    source = Generator(build({"video": modality}, spread=0.1), [adapter])
    with pytest.raises(
        ValueError, match=r"^'video' cannot be drawn window by window with sink 0: its tokenizer's first"
    ):
        source.generate(1, seconds=3.0)
    drawn = source.generate(1, seconds=3.0, sink=0.1)
    assert drawn.segment.grid == (9, 4, 4) and drawn.raw[0].frames.shape == (33, 16, 16, 3)
    (whole,) = source.stream(1, seconds=3.0, sink=0.1)  # no frame is there before all are
    assert torch.equal(whole[0].frames, drawn.raw[0].frames)
    expected = source.model.generate([], "video", grid=(9, 4, 4), window=3, sink=1)
    torch.testing.assert_close(expected.values, drawn.segment.values)


def test_a_stream_shows_frame_after_frame() -> None:
    source = of_codes("first frame")
    arguments: dict[str, Any] = dict(seconds=0.9, sink=0.1, overlap=0.2, seed=3)
    parts = [part.frames for (part,) in source.stream(**arguments)]
    assert [len(part) for part in parts] == [1] * 9
    assert torch.equal(torch.cat(parts), source.generate(1, **arguments).raw[0].frames)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toy model of 16 x 16 pixels, which an .mp4 file can hold."""
    pytest.importorskip("av")
    pytest.importorskip("PIL")
    monkeypatch.chdir(tmp_path)
    grid = (FRAMES, 2, 2)
    elements = {"kind": "patches", "patch": [1, 8, 8]}
    adapter = VideoAdapter(16, FRAMES, FPS, channels=1, elements=elements)
    modality = series(64, grid, None, "first_frame", head={"kind": "mixture"})
    for part in (build({"video": modality}, spread=0.1), adapter):
        part.save_pretrained("model")
    return tmp_path


def sample(*words: str) -> int:
    return main(["sample", "--model", "model", *words])


def shown(path: str) -> np.ndarray:
    with open_video(path, "pyav") as reader:
        assert reader.fps == pytest.approx(FPS)
        count = round(reader.duration * reader.fps)
        return reader.frames_at([place / FPS for place in range(count)])[..., 0].astype(int)


def test_videos_on_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = Generator.from_pretrained("model", "cpu")
    words = ["--seconds", "0.9", "--sink", "0.1", "--overlap", "0.2", "--seed", "3"]
    assert sample("--out", "shot.mp4", "--n", "1", *words) == 0
    assert capsys.readouterr().out == "Wrote 1 sample to shot.mp4, and a picture to shot.png\n"
    expected = source.generate(1, seconds=0.9, sink=0.1, overlap=0.2, seed=3).raw[0].frames[..., 0].int().numpy()
    assert expected.shape == (9, 16, 16) and expected.std() > 10
    assert np.abs(shown("shot.mp4") - expected).mean() < 8  # but for compression
    assert sample("--out", "stream.mp4", "--stream", *words) == 0
    assert capsys.readouterr().err.endswith("\r9 frames\n")
    assert np.abs(shown("stream.mp4") - expected).mean() < 8 < np.abs(expected - expected[::-1]).mean()
    assert sample("--out", "more.mp4", "--n", "1", "--given", "shot.mp4", "--seconds", "1.2") == 0
    assert len(shown("more.mp4")) == 12
    half = shown("more.mp4")[:9]
    assert np.abs(half - expected).mean() < 16 < np.abs(half - expected[::-1]).mean()
    assert sample("--out", "two.gif", "--n", "2") == 0
    from PIL import Image

    with Image.open("two.gif") as gif, Image.open("two.png") as strip:
        assert getattr(gif, "n_frames", None) == FRAMES and gif.info["duration"] == 100
        assert max(gif.size) > 2 * 16 and strip.size[0] > 1.8 * strip.size[1]  # four frames wide, two clips high


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--out", "a.wav"], "--out is 'a.wav'; it must end in .gif or .mp4"),
        (["--out", "a.mp4", "--seconds", "1", "--sink", "0.2"], "--window is 4 steps, overlap 2 and sink 2; a window"),
        (
            ["--out", "a.mp4", "--seconds", "1", "--window", "0.1"],
            "--window is 0.1, a single step; it must be at least",
        ),
        (["--out", "a.mp4", "--given", "text.mp4"], "text.mp4 is no video that can be decoded, or broken or truncated"),
        (["--out", "a.gif", "--stream"], "a.gif is to be a video file; its name must end in .mp4"),
    ],
)
def test_wrong_videos_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    Path("text.mp4").write_text("no video")
    assert sample(*words) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {sentence}")
    assert sorted(file.name for file in folder.iterdir()) == ["model", "text.mp4"]


def test_a_segment_of_another_size_is_told() -> None:
    source = of_codes("frame")
    with pytest.raises(ValueError, match=r"^segment has the grid \(4, 1, 4\); this adapter's are \(steps, 2, 2\)$"):
        source.adapter().decode(Segment("video", torch.zeros(1, 16, dtype=torch.long), (4, 1, 4)))
