"""Training on videos: which windows are cut, kept and skipped, how often files are opened, what is drawn at random."""

from __future__ import annotations

import json
import os
import re
import shutil
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from unimodal_ar.adapters import LabelAdapter, VideoAdapter, open_video
from unimodal_ar.adapters.video import VideoReader
from unimodal_ar.recipes.train import train
from unimodal_ar.training import video_set
from unimodal_ar.training.data import DATA
from unimodal_ar.training.recipe import Resolved
from unimodal_ar.training.video import VideoData, VideoOptions
from unimodal_ar.training.video_set import VideoDataset, Window

av = pytest.importorskip("av")

RATE, SIZE, FRAMES = 25, 16, 4
CLASSES = ("ant", "bee")
LENGTHS = (4, 5, 9, 11, 12)


def _frames(clip: int, length: int) -> np.ndarray:
    """uint8 [T, H, W, 3] whose left half tells clip (red) and frame (green), and that is not its own mirror image."""
    frames = np.zeros((length, SIZE, SIZE, 3), np.uint8)
    frames[:, :, : SIZE // 2, 0], frames[:, :, : SIZE // 2, 1] = clip + 1, np.arange(length)[:, None, None]
    return frames


def _write(path: Path, clip: int, length: int, rate: int = RATE) -> Path:
    """Without loss."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=Fraction(rate))
        stream.height = stream.width = SIZE
        stream.pix_fmt, stream.options = "rgb24", {"qp": "0", "g": "4"}
        for frame in _frames(clip, length):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clip k of LENGTHS, twice in a row, in the folder of its class, k modulo 2."""
    root = tmp_path_factory.mktemp("clips")
    for clip in range(2 * len(LENGTHS)):
        _write(root / CLASSES[clip % 2] / f"{clip:02}.mp4", clip, LENGTHS[clip // 2])
    return root


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(written, tmp_path / "clips"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are opened, each time."""
    names: list[str] = []

    def counting(path: Any) -> Any:
        names.append(Path(path).name)
        return open_video(path)

    monkeypatch.setattr(video_set, "open_video", counting)
    return names


def _adapter(**options: Any) -> VideoAdapter:
    return VideoAdapter(**{"size": SIZE, "frames": FRAMES, **options})


def _data(root: Path, adapter: VideoAdapter | None = None, labels: bool = False, **options: Any) -> VideoData:
    given = {"path": str(root), "validation": 2, "test": 2, "labels": {"kind": "class"} if labels else {}, **options}
    adapters = {"kind": LabelAdapter(2, "kind")} if labels else {}
    return VideoData(VideoOptions(**given), {**adapters, "video": adapter or _adapter()})


def _told(frames: Tensor) -> tuple[int, list[int]]:
    """(clip, frames) that a window [T, H, W, C] itself tells."""
    red, green = (frames[:, 0, 0, channel] for channel in (0, 1))
    assert len(red.unique()) == 1
    assert torch.equal(frames, torch.from_numpy(_frames(int(red[0]) - 1, 40))[green.long()])
    return int(red[0]) - 1, green.tolist()


def _all(data: VideoData) -> dict[int, list[list[int]]]:
    """The frames of the fixed windows of each clip."""
    found: dict[int, list[list[int]]] = {}
    for part in (data.train(), data.validation(), data.test()):
        mine = [_told(window) for window in part.frames()]
        assert not found.keys() & {clip for clip, _ in mine}  # a clip is of one part
        for clip, places in mine:
            found.setdefault(clip, []).append(places)
    return found


def _cut(length: int, anchor: int, overlap: int) -> list[list[int]]:
    rest = FRAMES - anchor
    starts = range(anchor, length - rest + 1, rest - overlap)
    return [[*range(anchor), *range(start, start + rest)] for start in starts]


# ---- windows


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(("anchor", "overlap"), [(0, 0), (0, 1), (0, 3), (1, 0), (2, 1)])
def test_windows_are_all_whole_ones(anchor: int, overlap: int, in_memory: bool, written: Path) -> None:
    data = _data(written, anchor=anchor, overlap=overlap, in_memory=in_memory)
    assert _all(data) == {clip: _cut(LENGTHS[clip // 2], anchor, overlap) for clip in range(10)}


@pytest.mark.parametrize("in_memory", [True, False])
def test_batches_hold_labels_and_elements(in_memory: bool, written: Path) -> None:
    data = _data(written, labels=True, in_memory=in_memory)
    assert data.modalities == ["kind", "video"] and data.modality_defaults("video") == {"grid": [4, 2, 2]}
    test = data.test()
    batch = test.collate([test[i] for i in range(len(test))])["segments"]
    frames = torch.stack(list(test.frames()))
    assert torch.equal(batch[1].values, data.adapter.encode_frames(frames).values) and batch[1].grid == (4, 2, 2)
    assert batch[0].values[:, 0].tolist() == [_told(window)[0] % 2 for window in frames] and not batch[0].target
    assert torch.equal(test.labels["kind"], batch[0].values[:, 0])
    for part in (data.validation(), test):  # a clip of each class
        assert sorted({_told(window)[0] % 2 for window in part.frames()}) == [0, 1]


def test_rates_sizes_and_spans_are_the_adapters(tmp_path: Path) -> None:
    _write(tmp_path / "a.mp4", 0, 40)
    rows = ['{"path": "a.mp4", "start": 0.08, "end": 0.72}', '{"path": "a.mp4"}', '{"path": "a.mp4", "start": 1.2}']
    (tmp_path / "clips.jsonl").write_text("\n".join(rows))
    for adapter, hop in ((_adapter(fps=12.5), 2), (_adapter(stride=3), 3)):
        for in_memory in (True, False):
            options: dict[str, Any] = {"validation": 1, "test": 0, "in_memory": in_memory}
            data = _data(tmp_path / "clips.jsonl", adapter, **options)
            clips = data.train().clip_set
            taken = [list(range(*part, hop)) for part in ((2, 18), (0, 40), (30, 40))]
            expected = [cut[i : i + 4] for cut in taken for i in range(0, len(cut) - 3, 4)]
            assert [_told(clips.frames(clips.window(row)))[1] for row in range(len(clips))] == expected
    small = _data(tmp_path / "clips.jsonl", _adapter(size=8, channels=1), validation=1, test=0)
    clips = small.train().clip_set
    whole = small.adapter.frames_of(tmp_path / "a.mp4")
    assert torch.equal(clips.frames(Window(clips.clips.tolist().index(1), 3)), whole[3:7])


def test_random_windows_begin_anywhere_and_fixed_ones_do_not_move(written: Path) -> None:
    data = _data(written, anchor=1, overlap=2)
    torch.manual_seed(0)
    train, clips = data.train(), data.train().clip_set
    shown = {_told(window)[0] for window in train.frames()}
    assert train.random_starts and len(train) == sum(len(_cut(LENGTHS[clip // 2], 1, 2)) for clip in shown)
    index = max(range(len(train)), key=lambda i: clips._lengths[int(clips.clips[train.rows[i]])])
    drawn = [_told(clips.frames(train[index])) for _ in range(300)]
    (clip,) = {clip for clip, _ in drawn}
    length = LENGTHS[clip // 2]
    assert {tuple(places) for _, places in drawn} == {(0, s, s + 1, s + 2) for s in range(1, length - 2)}
    counts = np.bincount([places[1] for _, places in drawn])[1:]
    assert counts.min() > 300 / len(counts) / 2  # each as likely
    torch.manual_seed(0)
    data = _data(written, anchor=1, overlap=2)
    again = [data.train()[i] for i in range(5)]
    torch.manual_seed(0)
    assert again == [train[i] for i in range(5)] != [train[i] for i in range(5)]
    for part in (data.validation(), data.test(), _data(written, random_starts=False).train()):
        assert [part[i] for i in range(len(part))] == [part.clip_set.window(row) for row in part.rows]


def test_half_of_the_training_windows_are_mirrored(written: Path) -> None:
    data = _data(written, flip=True)
    train = data.train()
    windows = [train[0] for _ in range(200)]
    assert 70 < sum(window.mirrored for window in windows) < 130
    row = windows[0].row
    plain, mirrored = (train.clip_set.frames(Window(row, 0, mirrored)) for mirrored in (False, True))
    assert torch.equal(mirrored, plain.flip(2)) and not torch.equal(mirrored, plain)
    values = train.collate([Window(row, 0, True)])["segments"][0].values
    assert torch.equal(values, data.adapter.encode_frames(plain.flip(2)[None]).values)
    assert not any(part[i].mirrored for part in (data.validation(), data.test()) for i in range(len(part)))


# ---- what is opened and kept


def test_in_memory_each_file_is_opened_once(written: Path, opened: list[str]) -> None:
    data = _data(written)
    train = data.train()
    names = [f"{clip:02}.mp4" for clip in range(10)]
    assert sorted(opened) == names
    kept = train.clip_set._kept
    assert all(clip.dtype == np.uint8 for clip in kept) and sum(map(len, kept)) == 2 * sum(LENGTHS)
    for _ in range(3):
        train.collate([train[i] for i in range(len(train))])
        list(data.test().frames())
    assert sorted(opened) == names


def test_not_in_memory_only_the_last_window_is_decoded_beforehand(
    tmp_path: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for clip in range(3):
        _write(tmp_path / f"{clip}.mp4", clip, 40)
    asked: list[list[float]] = []
    frames_at = VideoReader.frames_at

    def spy(self: VideoReader, times: Any) -> np.ndarray:
        asked.append([round(time * RATE) for time in times])
        return frames_at(self, times)

    monkeypatch.setattr(VideoReader, "frames_at", spy)
    data = _data(tmp_path, validation=1, test=0, in_memory=False, anchor=1)
    train = data.train()
    assert asked == [[0, 37, 38, 39]] * 3 and sorted(opened) == ["0.mp4", "1.mp4", "2.mp4"]
    assert train.clip_set._kept == []
    opened.clear()
    train.collate([Window(train.rows[0], 5), Window(train.rows[-1], 9)])
    assert asked[3:] == [[0, 5, 6, 7], [0, 9, 10, 11]] and len(opened) == 2


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_load_what_is_not_in_memory(context: str, folder: Path) -> None:
    dataset = _data(folder, in_memory=False, random_starts=False).train()
    loader: Any = DataLoader(
        dataset, batch_size=3, num_workers=1, collate_fn=dataset.collate, multiprocessing_context=context, timeout=60
    )
    values = torch.cat([batch["segments"][0].values for batch in loader])
    assert torch.equal(values, data_values(dataset))


def data_values(dataset: VideoDataset) -> Tensor:
    return dataset.collate([dataset[i] for i in range(len(dataset))])["segments"][0].values


def test_a_file_that_breaks_later_is_named(folder: Path) -> None:
    dataset = _data(folder, in_memory=False).train()
    name = Path(dataset.clip_set.source.names[dataset.clip_set.places[int(dataset.clip_set.clips[dataset.rows[0]])]])
    name.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name.name} is empty"):
        dataset.collate([dataset[0]])


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files")
def test_workers_that_are_not_forked_need_no_file_for_each_clip(written: Path) -> None:
    dataset = _data(written).train()
    before = len(os.listdir("/proc/self/fd"))
    sent = ForkingPickler.dumps(dataset)  # as a DataLoader does it; of each tensor it shares an open file
    assert len(sent) and len(os.listdir("/proc/self/fd")) - before < len(dataset.clip_set.places)


def test_more_video_than_memory(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
    expected = f"{written}: to keep its 10 clips takes 0.0 GB of memory, of which 0.0 GB are free; set data.in_memory"
    with pytest.raises(ValueError, match=re.escape(expected)):
        _data(written).train()
    _data(written, in_memory=False).train()
    adapter = _adapter(channels=3, elements={"kind": "levels", "levels": 4})
    adapter.tokenizer = object()  # type: ignore[assignment]
    with pytest.raises(ValueError, match="what a tokenizer makes of videos is always kept, so use fewer or a larger"):
        _data(written, adapter, in_memory=False).train()


# ---- what cannot be read


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_files_are_counted_listed_and_left_out(
    in_memory: bool, shared_dir: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(shared_dir / "data" / "video" / "corrupt_truncated.mp4", folder / "ant" / "broken.mp4")
    (folder / "ant" / "empty.mp4").write_bytes(b"")
    (folder / "bee" / "text.mp4").write_text("This is no video.\n" * 100)
    _write(folder / "bee" / "short.mp4", 30, FRAMES - 1)
    with av.open(str(folder / "bee" / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    (folder / "ant" / "notes.txt").write_text("x")
    data = _data(folder, labels=True, in_memory=in_memory)
    assert sorted(_all(data)) == list(range(10))
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{folder}: 1 other file was passed over: ant/notes.txt"
    assert told[1] == f"{folder}: 5 of 15 clips cannot be read and are left out:" and len(told) == 7
    reasons = [
        ("ant/broken", "truncated"),
        ("ant/empty", r"is empty \(0 bytes\)"),
        ("bee/short", "has 3 frames at the"),
    ]
    reasons += [
        ("bee/sound", "holds no video stream|no video that can be decoded"),
        ("bee/text", "no video that can be"),
    ]
    for line, (name, reason) in zip(told[2:], reasons, strict=True):
        assert f"{name}.mp4" in line and re.search(reason, line)
    for part in (data.train(), data.validation(), data.test()):
        assert part.labels["kind"].tolist() == [_told(window)[0] % 2 for window in part.frames()]


def test_nothing_can_be_read(tmp_path: Path) -> None:
    _write(tmp_path / "a.mp4", 0, FRAMES - 1)
    expected = (
        r"none of the 1 clips can be read; .*a\.mp4 is too short: it has 3 frames at the adapter's rate, and must"
    )
    with pytest.raises(ValueError, match=expected):
        _data(tmp_path).train()


# ---- tokenizers


class _Counted(VideoAdapter):
    """Pixels' codes in place of what a tokenizer has; counts the frames that it was asked for."""

    asked = 0
    joins = False

    @property
    def joins_frames(self) -> bool:
        return self.joins

    def encode_frames(self, frames: Tensor) -> Any:
        self.asked += frames.shape[0] * frames.shape[1]
        assert not self.joins or frames.shape[1] == self.frames
        return super().encode_frames(frames)


def _tokenised(joins: bool = False) -> _Counted:
    adapter = _Counted(SIZE, FRAMES, elements={"kind": "levels", "levels": 256})
    adapter.joins, adapter.tokenizer = joins, object()  # type: ignore[assignment]
    return adapter


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize("joins", [True, False])
def test_what_a_tokenizer_makes_is_kept(
    joins: bool, flip: bool, in_memory: bool, written: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("CHUNK", "AT_ONCE"):  # longer clips are read, and encoded, in parts
        monkeypatch.setattr(video_set, name, 5)
    adapter = _tokenised(joins)
    data = _data(written, adapter, flip=flip, in_memory=in_memory, overlap=1)
    train = data.train()
    windows = 2 * sum(len(_cut(length, 0, 1)) for length in LENGTHS)
    frames = FRAMES * windows if joins else 2 * sum(LENGTHS)
    assert adapter.asked == frames * (1 + flip) and len(opened) == 10
    assert all(kept.dtype == np.uint8 for kept in train.clip_set._kept)
    assert train.random_starts != joins
    items = [train[i] for i in range(len(train))]
    if not joins:
        items += [window._replace(mirrored=flip) for window in items]
    batch = train.collate(items)["segments"][0]
    assert adapter.asked == frames * (1 + flip) and len(opened) == 10 and batch.grid == adapter.grid
    for window, values in zip(items, batch.values, strict=True):
        frame = train.clip_set.frames(window)
        assert torch.equal(VideoAdapter.encode_frames(adapter, frame[None]).values[0], values)
    assert len(opened) > 10  # frames themselves are not kept


def test_only_training_clips_are_kept_mirrored(written: Path, tmp_path: Path) -> None:
    _write(tmp_path / "a.mp4", 0, 7)
    adapter = _tokenised()
    data = _data(written, adapter, flip=True, test=None, test_path=str(tmp_path))
    assert len(data.test()) == 1 and adapter.asked == 2 * 2 * sum(LENGTHS) + 7


def test_anchored_windows_of_joined_frames_are_steps_of_the_whole_clip(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    wan = diffusers.AutoencoderKLWan(
        base_dim=8, dim_mult=[1, 1, 1, 1], num_res_blocks=1, z_dim=2, latents_mean=[0.0] * 2, latents_std=[1.0] * 2
    )
    adapter = VideoAdapter(SIZE, 9, tokenizer=wan)  # 1 + 4 + 4 frames
    lengths = (9, 12, 13, 24)  # of which 9, 9, 13 and 21 are whole steps
    for clip, length in enumerate(lengths):
        _write(tmp_path / f"{clip}.mp4", clip, length)
    clips = _data(tmp_path, adapter, anchor=1, overlap=4, validation=1, test=0).train().clip_set
    steps = {0: [[1, 2]], 1: [[1, 2]], 2: [[1, 2], [2, 3]], 3: [[1, 2], [2, 3], [3, 4], [4, 5]]}
    found = clips.segment([clips.window(row) for row in range(len(clips))])
    expected = []
    for clip, windows in steps.items():
        whole = adapter.encode_frames(
            torch.from_numpy(_frames(clip, lengths[clip]))[None, : adapter.whole(lengths[clip])]
        )
        rows = whole.values[0].unflatten(0, (whole.grid[0], -1))
        expected += [rows[[0, *window]].flatten(0, 1) for window in windows]
    torch.testing.assert_close(found.values, torch.stack(expected))
    frames = [_told(clips.frames(clips.window(row))) for row in range(len(clips))]
    assert frames[3] == (2, [0, *range(5, 13)]) and found.grid == (3, 2, 2)
    cases: list[tuple[dict[str, Any], str]] = [
        ({"anchor": 2}, "one of 0, 1, 5"),
        ({"anchor": 1, "overlap": 2}, "one of 0, 4"),
    ]
    for options, legal in cases:
        with pytest.raises(ValueError, match=rf"is 2 frames; with .* it must be {legal}$"):
            _data(tmp_path, adapter, **options)


# ---- data sets that have a name


def test_moving_digits() -> None:
    pytest.importorskip("sklearn")
    dataset = {"kind": "moving_digits", "clips": 40, "length": 9}
    given: dict[str, Any] = {"dataset": dataset, "split": "split", "labels": {"digit": "digit"}}
    adapter = VideoAdapter(SIZE, 4, channels=1)
    adapters = {"digit": LabelAdapter(10, "digit"), "video": adapter}
    data = VideoData(VideoOptions(**given), adapters)
    parts = [data.train(), data.validation(), data.test()]
    clips = parts[0].clip_set
    for part, name in zip(parts, ("train", "validation", "test"), strict=True):  # two windows of a clip
        assert {clips.column("split")[clip] for clip in clips.clips[part.rows]} == {name} and len(part) % 2 == 0
    assert sum(map(len, parts)) == 80
    for row in parts[2].rows[:4]:
        item = clips.source.items[clips.places[int(clips.clips[row])]]
        assert torch.equal(clips.frames(clips.window(row)), item.frames[4 * clips._windows[row] :][:4])
    assert data.options.model_dump(mode="json")["dataset"]["clips"] == 40
    assert VideoOptions(**data.options.model_dump()) == data.options
    with pytest.raises(ValueError, match=r"dataset 'moving_digits' has no column 'class'"):
        VideoData(VideoOptions(**{**given, "labels": {"digit": "class"}}), adapters).train()


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path": None}, "give exactly one of path and dataset"),
        ({"dataset": {"kind": "moving_digits"}}, "give exactly one of path and dataset"),
        ({"path": None, "dataset": {"kind": "digits"}}, r"must be a mapping with a kind, one of \['moving_digits', "),
        ({"path": None, "dataset": "moving_digits"}, "must be a mapping with a kind"),
        ({"path": None, "dataset": {"kind": "moving_digits", "clip": 3}}, "unknown key 'clip'; did you mean 'clips'"),
        (
            {"path": None, "dataset": {"kind": "moving_digits"}, "pattern": "(?P<a>x)"},
            "pattern is .* it reads what a path holds, and none is given",
        ),
        ({"overlap": 0.5}, "valid integer"),
        ({"anchor": -1}, "greater than or equal to 0"),
    ],
)
def test_options_that_are_illegal(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoOptions(**{"path": "x", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "kind"}, "data.modality is 'kind'; it must name a video adapter"),
        ({"anchor": 4}, "data.anchor is 4 frames; with this adapter it must be one of 0, 2"),
        ({"anchor": 1}, "data.anchor is 1 frames; with this adapter it must be one of 0, 2"),
        ({"overlap": 4}, "data.overlap is 4 frames; windows have 4, without the anchor, so it is too long"),
        ({"overlap": 2, "anchor": 2}, "data.overlap is 2 frames; windows have 2, without the anchor"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str) -> None:
    adapter = _adapter(elements={"kind": "patches", "patch": [2, 8, 8]})
    adapters = {"video": adapter, "kind": LabelAdapter(2, "kind")}
    with pytest.raises(ValueError, match=re.escape(message)):
        VideoData(VideoOptions(**{"path": "x", "labels": {"kind": "class"}, **options}), adapters)


def test_windows_of_joined_frames_stay_where_they_are(written: Path) -> None:
    message = r"data\.random_starts is True, and the adapter's tokenizer joins frames, so .* is kept; it must be false$"
    with pytest.raises(ValueError, match=message):
        _data(written, _tokenised(joins=True), random_starts=True)
    _data(written, _tokenised(), random_starts=True).train()


# ---- the whole way


BACKBONE = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_recipe_is_trained_and_judged(
    in_memory: bool, written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchmetrics")
    video = {"head": {"kind": "regression"}, "layout": {"block": "frame"}, "objective": {"kind": "next_block"}}
    document: dict[str, Any] = {
        "output_dir": str(tmp_path / "run"),
        "model": {"backbone": BACKBONE, "modalities": {"kind": {}, "video": video}},
        "adapters": {
            "kind": {"kind": "label", "classes": list(CLASSES)},
            "video": {
                "kind": "video",
                "size": SIZE,
                "frames": FRAMES,
                "elements": {"kind": "patches", "patch": [1, 8, 8]},
            },
        },
        "data": {
            "kind": "video",
            "path": str(written),
            "labels": {"kind": "class"},
            "validation": 2,
            "test": 2,
            "anchor": 1,
            "flip": True,
            "in_memory": in_memory,
        },
        "training": {
            "max_steps": 2,
            "per_device_train_batch_size": 4,
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_num_workers": 0 if in_memory else 2,
        },
        "evaluation": {"samples": 2, "predictions": 2},
    }
    folder = train(document)
    assert folder is not None
    assert re.search(r"\d+ training and \d+ validation clips", capsys.readouterr().out)
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["predictions"]["clips"] == 2
    resolved = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert resolved["data"]["anchor"] == 1 and resolved["data"]["dataset"] is None
    Resolved(resolved)


def test_the_kind_has_its_name() -> None:
    assert DATA["video"] is VideoData and VideoData.unit == "clips"
