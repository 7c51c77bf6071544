"""Reading audio: folders, manifests, parquet files, data sets, lists, and whatever is wrong with them."""

from __future__ import annotations

import io
import json
import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from unimodal_ar.adapters.audio.sources import AudioSource, read_audios

soundfile = pytest.importorskip("soundfile")
RATE = 8000
PATTERN = r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<take>\d+)"


def samples(seed: int = 0, length: int = 400) -> np.ndarray:
    """int16 [S]."""
    return np.random.default_rng(seed).integers(-(2**15), 2**15, length, dtype=np.int16)


def wav(seed: int = 0, length: int = 400) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples(seed, length), RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def write(path: Path, seed: int = 0, length: int = 400) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(wav(seed, length))
    return path


def same(source: AudioSource, seeds: list[int]) -> None:
    """The clips of a source are those of the seeds."""
    assert len(source) == len(source.names) == len(seeds)
    for index, seed in enumerate(seeds):
        clip = source.load(index)
        assert clip.name == source.names[index] and clip.rate == RATE
        assert torch.equal(clip.wave * 2**15, torch.from_numpy(samples(seed)).float()[None])


def column(source: AudioSource, name: str) -> list[Any]:
    found = source.columns[name]
    return [value if found.names is None else found.names[value] for value in found.values]


# ---- folders


def test_a_flat_folder_is_sorted(tmp_path: Path) -> None:
    for name, seed in (("b.WAV", 1), ("a.wav", 0), ("c.wav", 2), (".hidden.wav", 3), ("notes.txt", 4)):
        write(tmp_path / name, seed)
    source = read_audios(tmp_path)
    assert source.names == [str(tmp_path / name) for name in ("a.wav", "b.WAV", "c.wav")]
    assert dict(source.columns) == {} and source.passed_over == ["notes.txt"]
    same(source, [0, 1, 2])


def test_a_folder_per_class_is_a_column(tmp_path: Path) -> None:
    for name, seed in (("zebra/1.wav", 5), ("ant/2.wav", 1), ("ant/1.wav", 0)):
        write(tmp_path / name, seed)
    source = read_audios(str(tmp_path), columns=["class"])
    assert column(source, "class") == ["ant", "ant", "zebra"]
    assert source.columns["class"].labels() == ([0, 0, 1], ["ant", "zebra"])
    same(source, [0, 1, 5])


def test_names_of_files_hold_columns(tmp_path: Path) -> None:
    """As those of FSDD's recordings do."""
    for seed, name in enumerate(("0_theo_12", "7_george_3", "7_theo_0", "readme", "17_theo_0", "7_theo_0b")):
        write(tmp_path / f"{name}.wav", seed)
    source = read_audios(tmp_path, ["digit", "speaker"], pattern=PATTERN)
    assert column(source, "digit") == ["0", "7", "7"] and column(source, "take") == ["12", "3", "0"]
    assert source.columns["speaker"].labels() == ([1, 0, 1], ["george", "theo"])
    others = ("17_theo_0", "7_theo_0b", "readme")  # the pattern is of the whole name
    assert source.passed_over == [str(tmp_path / f"{name}.wav") for name in others]
    same(source, [0, 1, 2])


def test_a_pattern_goes_with_classes(tmp_path: Path) -> None:
    for name, seed in (("ant/1_x.wav", 0), ("ant/other.wav", 1), ("bee/2_y.wav", 2)):
        write(tmp_path / name, seed)
    source = read_audios(tmp_path, pattern=r"(?P<number>\d)_\w")
    assert (column(source, "class"), column(source, "number")) == (["ant", "bee"], ["1", "2"])
    same(source, [0, 2])
    with pytest.raises(ValueError, match=r"has a group 'class', and .* has such a column, too"):
        read_audios(tmp_path, pattern=r"(?P<class>\w+)")


def test_what_is_wrong_with_folders_and_patterns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/none is not there")):
        read_audios(tmp_path / "none")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no audio files; their names end in one of .wav")):
        read_audios(tmp_path)
    file = write(tmp_path / "clip.wav")
    with pytest.raises(ValueError, match=r"clip\.wav is neither a folder nor a \.jsonl or \.parquet file"):
        read_audios(file)
    with pytest.raises(ValueError, match=r"pattern '\(\?P<digit>\\\\d\)' matches none of the 1 names of .*clip\.wav"):
        read_audios(tmp_path, pattern=r"(?P<digit>\d)")
    with pytest.raises(ValueError, match=r"has no column 'speaker', which columns names; did you mean 'speakers'"):
        read_audios(tmp_path, ["speaker"], pattern=r"(?P<speakers>\w+)")
    with pytest.raises(ValueError, match="has no column 'class', which columns names; its columns are \\[\\]"):
        read_audios(tmp_path, ["class"])
    with pytest.raises(ValueError, match="audio is 'x'; it names a column, and the source is not a table"):
        read_audios(tmp_path, audio="x")
    with pytest.raises(ValueError, match="it must have named groups"):
        read_audios(tmp_path, pattern=r"(\d)")
    with pytest.raises(ValueError, match="no regular expression: missing \\)"):
        read_audios(tmp_path, pattern=r"(?P<x>")


# ---- lists


def test_lists_hold_whatever_is_a_clip(tmp_path: Path) -> None:
    path = write(tmp_path / "0_theo_1.wav")
    source = read_audios([path, wav(1), (samples(2), RATE)])
    assert source.names == [str(path), "clip 1 of the list", "clip 2 of the list"]
    same(source, [0, 1, 2])
    source = read_audios([path, wav(1)], pattern=PATTERN)
    assert column(source, "speaker") == ["theo"] and source.passed_over == ["clip 1 of the list"]
    with pytest.raises(ValueError, match="the list of audio files is empty"):
        read_audios([])
    with pytest.raises(ValueError, match="the source is of type int; legal are folders"):
        read_audios(3)


# ---- manifests


def manifest(folder: Path, *rows: Any) -> Path:
    path = folder / "clips.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_manifest_cuts_parts_out_of_files(tmp_path: Path) -> None:
    write(tmp_path / "deep" / "a.wav", 0)  # 50 ms
    rows = [
        {"path": "deep/a.wav", "word": "one", "split": "train"},
        {"path": "deep/a.wav", "start": 0.01, "end": 0.03, "word": "two"},
        {"path": "deep/a.wav", "start": 0.04, "word": "one", "split": "test"},
        {"path": "deep/a.wav", "end": 0.055, "word": "one"},  # as rounded as this
    ]
    source = read_audios(manifest(tmp_path, rows[0], "", *rows[1:]), ["word", "split"])
    assert column(source, "word") == ["one", "two", "one", "one"]
    assert column(source, "split") == ["train", None, "test", None]
    whole = samples()
    for index, part in enumerate((whole, whole[80:240], whole[320:], whole)):
        clip = source.load(index)
        assert torch.equal(clip.wave[0] * 2**15, torch.from_numpy(part).float())
    file = tmp_path / "deep" / "a.wav"
    assert [name.removeprefix(str(file)) for name in source.names] == [
        "",
        " from 0.01 to 0.03 s",
        " from 0.04 s",
        " from 0 to 0.055 s",
    ]
    assert source.load(1).name == f"{file} from 0.01 to 0.03 s"


def test_what_manifests_may_hold(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    row = json.dumps({"path": "a.wav", "text": "one\u2028two\x85"}, ensure_ascii=False)
    path = tmp_path / "clips.jsonl"
    path.write_bytes(f"\ufeff{row}\r\n{row}\n".encode())  # a mark of byte order, Windows' ends of lines
    assert column(read_audios(path, ["text"]), "text") == ["one\u2028two\x85"] * 2
    path.write_bytes(row.replace("one", "\xe9").encode("latin-1", "ignore"))
    with pytest.raises(ValueError, match=r"clips\.jsonl is not UTF-8: byte 27 is 0xe9$"):
        read_audios(path)


@pytest.mark.parametrize("labels", [["1", 2], [1, "2"], ["1", None]])
def test_labels_are_numbers_or_names(labels: list[Any], tmp_path: Path) -> None:
    rows = [{"path": "a.wav", "digit": label} for label in labels]
    source = read_audios(manifest(tmp_path, *rows), ["digit"])
    with pytest.raises(ValueError, match=rf"is {labels[1]!r} in row 1; labels must be whole numbers or names, in all"):
        source.columns["digit"].labels()


def test_a_link_to_nowhere_is_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    (tmp_path / "b.wav").symlink_to(tmp_path / "gone.wav")
    source = read_audios(tmp_path)
    assert len(source) == 2
    with pytest.raises(ValueError, match=r"b\.wav is not there"):
        source.load(1)


def test_a_pattern_leaves_each_part_its_place(tmp_path: Path) -> None:
    write(tmp_path / "a_1.wav")
    rows = [{"path": "other.wav", "word": "no"}, {"path": "a_1.wav", "start": 0.04, "word": "yes"}]
    source = read_audios(manifest(tmp_path, *rows), ["word", "take"], pattern=r"\w_(?P<take>\d)")
    assert (column(source, "word"), column(source, "take")) == (["yes"], ["1"])
    assert source.load(0).wave.shape == (1, 80)


def test_spans_beyond_the_file(tmp_path: Path) -> None:
    write(tmp_path / "a.wav")
    source = read_audios(manifest(tmp_path, {"path": "a.wav", "end": 0.07}, {"path": "a.wav", "start": 0.06}))
    with pytest.raises(ValueError, match=r"a\.wav from 0 to 0\.07 s: end is 0\.07 s; the clip has 0\.050 s"):
        source.load(0)
    with pytest.raises(ValueError, match=r"a\.wav from 0\.06 s: start is 0\.06 s; the clip has 0\.050 s"):
        source.load(1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{path: x}", r"line 2 of .*clips\.jsonl is not valid JSON"),
        ({"file": "a.wav"}, r"line 2 of .* it must be an object with the 'path' of an audio file"),
        ([1], r"line 2 of .* it must be an object"),
        ({"path": "a.wav", "start": -1}, r"start is -1 in line 2 of .* a number of seconds, 0 or more"),
        ({"path": "a.wav", "end": "3"}, r"end is '3' in line 2 of"),
        ({"path": "a.wav", "end": float("nan")}, r"end is nan in line 2 of"),
        ({"path": "a.wav", "start": 2, "end": 2}, r"end is 2 in line 2 of .*; it must lie after start, 2"),
    ],
)
def test_wrong_lines(line: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        read_audios(manifest(tmp_path, {"path": "a.wav"}, line))


def test_an_empty_manifest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"clips\.jsonl has no rows"):
        read_audios(manifest(tmp_path, ""))


# ---- tables


def table(path: Path, **columns: Any) -> Path:
    pd.DataFrame(columns).to_parquet(path)
    return path


def test_a_parquet_file_of_files(tmp_path: Path) -> None:
    cells = [{"bytes": wav(seed), "path": f"{seed}.wav"} for seed in (4, 2)]
    path = table(tmp_path / "t.parquet", audio=cells, digit=[3, 1], speaker=["theo", "george"])
    source = read_audios(path, ["digit", "speaker", "digit"])
    assert source.names == [f"row 0 of {path} (4.wav)", f"row 1 of {path} (2.wav)"]
    assert source.columns["digit"].labels() == ([3, 1], None)
    assert source.columns["speaker"].labels() == ([1, 0], ["george", "theo"])
    same(source, [4, 2])
    same(pickle.loads(pickle.dumps(source)), [4, 2])  # what a worker that is spawned gets
    assert dict(read_audios(path).columns) == {}


def test_other_cells_and_names(tmp_path: Path) -> None:
    write(tmp_path / "a.wav", 3)
    same(read_audios(table(tmp_path / "paths.parquet", audio=["a.wav"])), [3])
    path = table(tmp_path / "bytes.parquet", sound=[wav(5)], digit=[1.5])
    same(read_audios(path, audio="sound"), [5])
    with pytest.raises(ValueError, match=r"bytes\.parquet has no column audio or wav or speech; its columns are"):
        read_audios(path)
    with pytest.raises(ValueError, match=r"has no column 'speaker', which columns names"):
        read_audios(path, ["speaker"], audio="sound")
    with pytest.raises(ValueError, match=r"column 'digit' of .* is 1\.5 in row 0; labels must be whole numbers or"):
        read_audios(path, ["digit"], audio="sound").columns["digit"].labels()
    with pytest.raises(ValueError, match=r"column 'digit' of .* audio files are a struct of bytes and path"):
        read_audios(path, audio="digit")
    with pytest.raises(ValueError, match=r"it reads names of files, and .*bytes\.parquet is a table"):
        read_audios(path, audio="sound", pattern=PATTERN)


def test_data_sets_of_hugging_face(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    write(tmp_path / "2.wav", 2)
    cells = [{"bytes": wav(1), "path": None}, {"bytes": None, "path": str(tmp_path / "2.wav")}]
    made = datasets.Dataset.from_dict({"audio": cells, "word": [1, 0]})
    # (Dataset.from_dict with the feature Audio would want torchcodec.)
    made = made.cast_column("audio", datasets.Audio())
    made = made.cast_column("word", datasets.ClassLabel(names=["yes", "no"]))
    source = read_audios(made, ["word"])
    assert source.columns["word"].labels() == ([1, 0], ["yes", "no"])
    same(source, [1, 2])
    made.save_to_disk(tmp_path / "saved")
    source = read_audios(tmp_path / "saved", ["word"])
    assert source.names == [f"row {row} of {tmp_path}/saved" for row in (0, 1)]
    same(source, [1, 2])


def test_broken_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(wav()[:100])
    (tmp_path / "b.wav").write_bytes(b"")
    source = read_audios(tmp_path)
    for index in (0, 1):
        with pytest.raises(ValueError, match=re.escape(source.names[index])):
            source.load(index)
