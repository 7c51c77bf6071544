"""Reading videos: folders, manifests, parquet files, data sets, lists, and whatever is wrong with them."""

from __future__ import annotations

import json
import pickle
import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from unimodal_ar.adapters import VideoClip, VideoSource, read_videos
from unimodal_ar.adapters.video.clips import open_clip
from unimodal_ar.adapters.video.sources import SUFFIXES

av = pytest.importorskip("av")
RATE = 25
SIZE = (16, 24)


def frames(seed: int = 0, length: int = 10, size: tuple[int, int] = SIZE) -> Tensor:
    """uint8 [T, H, W, 3]."""
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (length, *size, 3), dtype=np.uint8))


def write(path: Path, seed: int = 0, length: int = 10, codec: str = "libx264rgb", pix_fmt: str = "rgb24") -> Path:
    """Without loss, unless `codec` loses something."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(RATE))
        stream.height, stream.width = SIZE
        stream.pix_fmt, stream.options = pix_fmt, {"qp": "0"} if codec == "libx264rgb" else {}
        for one in frames(seed, length):
            picture = av.VideoFrame.from_ndarray(one.numpy(), format="rgb24")
            container.mux(stream.encode(picture.reformat(format=pix_fmt)))
        container.mux(stream.encode())
    return path


def same(source: VideoSource, seeds: list[int]) -> None:
    """The clips of a source are those of the seeds."""
    assert len(source) == len(source.names) == len(seeds)
    for index, seed in enumerate(seeds):
        clip = source.load(index)
        assert (clip.name, clip.fps) == (source.names[index], RATE)
        assert torch.equal(clip.frames, frames(seed))
        assert torch.equal(open_clip(source.items[index], "").frames, clip.frames)


def column(source: VideoSource, name: str) -> list[Any]:
    found = source.columns[name]
    return [value if found.names is None else found.names[value] for value in found.values]


# ---- folders, lists


def test_folders_classes_and_patterns(tmp_path: Path) -> None:
    for seed, name in enumerate(("run/v_1.mp4", "run/v_2.MOV", "walk/v_1.mkv")):
        write(tmp_path / name, seed)
    (tmp_path / "run" / "notes.txt").write_text("x")
    source = read_videos(tmp_path, ["class"])
    assert column(source, "class") == ["run", "run", "walk"] and source.passed_over == ["run/notes.txt"]
    same(source, [0, 1, 2])
    source = read_videos(str(tmp_path), pattern=r"v_(?P<take>1)")
    assert (column(source, "class"), column(source, "take")) == (["run", "walk"], ["1", "1"])
    assert source.passed_over == ["run/notes.txt", str(tmp_path / "run" / "v_2.MOV")]
    same(source, [0, 2])


CODECS = {".avi": ("mpeg4", "yuv420p"), ".webm": ("libvpx-vp9", "yuv420p"), ".mpg": ("mpeg2video", "yuv420p")}
CODECS |= {".mpeg": ("mpeg1video", "yuv420p"), ".gif": ("gif", "rgb8")}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_whatever_is_found_is_read(suffix: str, tmp_path: Path) -> None:
    write(tmp_path / f"a{suffix}", 0, 10, *CODECS.get(suffix, ("libx264rgb", "rgb24")))
    clip = read_videos(tmp_path).load(0)
    # MPEG tells times relative to a clock that began before, and the length by the last packet.
    assert 10 <= len(clip.frames) <= 11 and clip.frames.shape[1:] == (*SIZE, 3)


def test_lists_hold_whatever_is_a_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4")
    source = read_videos([path, VideoClip(frames(1), RATE, "mine"), frames(2).numpy()])
    assert source.names == [str(path), "mine", "clip 2 of the list"]
    same(VideoSource(source.names[:2], source.items[:2]), [0, 1])
    clip = source.load(2)
    assert torch.equal(clip.frames, frames(2)) and clip.fps is None and clip.name == source.names[2]
    with pytest.raises(ValueError, match="the list of videos is empty"):
        read_videos([])
    with pytest.raises(ValueError, match=r"clip 0 of the list is a int; a clip is a path"):
        read_videos([3]).load(0)


def test_what_is_wrong_with_sources(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=re.escape(f"{tmp_path} holds no videos; their names end in one of .mp4, .m4v")
    ):
        read_videos(tmp_path)
    write(tmp_path / "a.mp4")
    with pytest.raises(ValueError, match="video is 'x'; it names a column, and the source is not a table"):
        read_videos(tmp_path, video="x")
    with pytest.raises(ValueError, match="has no column 'action', which columns names"):
        read_videos(tmp_path, ["action"])


# ---- manifests


def manifest(folder: Path, *rows: Any) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_manifest_cuts_parts_out_of_files(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "a.mp4")  # 0.4 s
    spans = [
        {},
        {"start": 0.08, "end": 0.24},
        {"start": 0.2},
        {"end": 0.43},
        {"start": 0.1, "end": 0.14},
        {"end": 0.01},
    ]
    rows = [{"path": "deep/a.mp4", "action": "run", **span} for span in spans]
    source = read_videos(manifest(tmp_path, *rows), ["action"])
    assert column(source, "action") == ["run"] * 6
    assert source.names[1] == f"{tmp_path}/deep/a.mp4 from 0.08 to 0.24 s"
    # The fifth begins while frame 2 is shown, and ends while frame 3 is.
    for index, part in enumerate((slice(0, 10), slice(2, 6), slice(5, 10), slice(0, 10), slice(2, 3), slice(0, 1))):
        clip = source.load(index)
        assert torch.equal(clip.frames, frames()[part]) and (clip.name, clip.fps) == (source.names[index], RATE)


def test_spans_beyond_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.mp4")
    source = read_videos(manifest(tmp_path, {"path": "a.mp4", "end": 0.45}, {"path": "a.mp4", "start": 0.41}))
    with pytest.raises(ValueError, match=r"a\.mp4 from 0 to 0\.45 s: end is 0\.45 s; the file has 0\.400 s"):
        source.load(0)
    with pytest.raises(
        ValueError, match=r"a\.mp4 from 0\.41 s: start is 0\.41 s; the file's last frame is at 0\.360 s"
    ):
        source.load(1)
    with pytest.raises(ValueError, match=r"line 1 of .* it must be an object with the 'path' of a video file"):
        read_videos(manifest(tmp_path, {"file": "a.mp4"}))


# ---- tables


def table(path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_tables_hold_paths(tmp_path: Path) -> None:
    for seed in (1, 2):
        write(tmp_path / f"{seed}.mp4", seed)
    path = table(tmp_path / "t.parquet", video=["2.mp4", "1.mp4"], action=["run", "walk"])
    source = read_videos(path, ["action"])
    assert column(source, "action") == ["run", "walk"] and source.names == [f"row {row} of {path}" for row in (0, 1)]
    same(source, [2, 1])
    same(pickle.loads(pickle.dumps(source)), [2, 1])  # what a worker that is spawned gets
    cells = [{"bytes": None, "path": "1.mp4"}]
    same(read_videos(table(tmp_path / "structs.parquet", film=cells), video="film"), [1])


@pytest.mark.parametrize(
    ("cell", "found"), [(b"x", "the bytes of a file"), ({"bytes": b"x", "path": "a.mp4"}, "the bytes of a file")]
)
def test_tables_hold_no_files(cell: Any, found: str, tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", video=[cell])
    with pytest.raises(ValueError, match=rf"row 0 of .*t\.parquet.* holds {found}; a table of videos must hold their"):
        read_videos(path)


def test_data_sets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "1.mp4", 1)
    made = datasets.Dataset.from_dict({"video": [str(tmp_path / "1.mp4")], "action": [0]})
    same(read_videos(made, ["action"]), [1])
    made = made.cast_column("video", datasets.Video(decode=False))
    same(read_videos(made), [1])
    made = datasets.Dataset.from_dict({"video": [{"path": str(tmp_path / "1.mp4")}]})
    same(read_videos(made), [1])
    made = datasets.Dataset.from_dict({"video": [None]})
    with pytest.raises(ValueError, match="row 0 of the data set holds a NoneType; a table of videos must hold their"):
        read_videos(made)
