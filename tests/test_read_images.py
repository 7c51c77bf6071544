"""Reading images: folders, parquet files, data sets, arrays, and whatever is wrong with them."""

from __future__ import annotations

import io
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unimodal_ar.adapters import ImageAdapter, read_images

PIL = pytest.importorskip("PIL.Image")


def picture(seed: int = 0, size: tuple[int, int] = (6, 5), channels: int = 3) -> np.ndarray:
    """uint8 [H, W, 3], or [H, W]."""
    shape = (*size, channels) if channels > 1 else size
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def png(seed: int = 0) -> bytes:
    buffer = io.BytesIO()
    PIL.fromarray(picture(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png(seed))
    return path


def same(source: Any, seeds: list[int]) -> None:
    """The images of a source are those of the seeds."""
    assert len(source) == len(source.names) == len(seeds)
    for index, seed in enumerate(seeds):
        loaded = source.load(index)
        assert loaded.filename == source.names[index]
        np.testing.assert_array_equal(np.array(loaded), picture(seed))


# ---- folders


def test_a_flat_folder_is_sorted_and_has_no_labels(tmp_path: Path) -> None:
    for name, seed in (("b.PNG", 1), ("a.png", 0), ("c.png", 2), (".hidden.png", 3), ("notes.txt", 4)):
        write(tmp_path / name, seed)
    (tmp_path / "empty folder").mkdir()
    source = read_images(tmp_path)
    assert source.names == [str(tmp_path / name) for name in ("a.png", "b.PNG", "c.png")]
    assert (source.labels, source.classes) == (None, None)
    same(source, [0, 1, 2])


def test_a_folder_per_class_in_alphabetical_order(tmp_path: Path) -> None:
    for name, seed in (("zebra/1.png", 5), ("ant/2.png", 1), ("ant/1.png", 0), (".cache/x.png", 9)):
        write(tmp_path / name, seed)
    source = read_images(str(tmp_path))
    assert source.classes == ["ant", "zebra"]
    assert source.labels == [0, 0, 1]
    same(source, [0, 1, 5])


def test_folders_that_hold_no_set(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/none is not there")):
        read_images(tmp_path / "none")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path} holds no images; their names end in one of .png,")):
        read_images(tmp_path)
    (tmp_path / "cat").mkdir()
    write(tmp_path / "dog" / "1.png")
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/cat holds no images; each folder in {tmp_path}")):
        read_images(tmp_path)
    write(tmp_path / "1.png")
    with pytest.raises(ValueError, match="holds images and folders of images"):
        read_images(tmp_path)
    with pytest.raises(ValueError, match=r"1\.png is neither a folder nor a \.parquet file"):
        read_images(tmp_path / "1.png")


def test_images_below_a_class_are_not_dropped(tmp_path: Path) -> None:
    """As they would be where a folder of splits is named, or a class has folders of its own."""
    write(tmp_path / "train" / "cat" / "1.png")
    write(tmp_path / "train" / "dog" / "1.png")
    (tmp_path / "train" / "cat" / "notes").mkdir()
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/train/cat holds images; each folder in {tmp_path} is")):
        read_images(tmp_path)
    assert read_images(tmp_path / "train").classes == ["cat", "dog"]
    write(tmp_path / "train" / "cat" / "notes" / "deep" / "2.png")
    with pytest.raises(ValueError, match=r"train/cat/notes holds images; each folder in .*/train is a class and holds"):
        read_images(tmp_path / "train")
    shutil.rmtree(tmp_path / "train" / "cat")
    write(tmp_path / "more" / "cat" / "1.png")
    write(tmp_path / "1.png")
    with pytest.raises(ValueError, match="holds images and folders of images"):
        read_images(tmp_path)


def test_what_is_passed_over_is_kept_in_mind(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/2.jfif", "dog/1.png", "dog/.hidden", "dog/x.avif", "notes.txt"):
        write(tmp_path / name)
    (tmp_path / "dog" / "empty").mkdir()
    source = read_images(tmp_path)
    assert source.passed_over == ["notes.txt", "cat/2.jfif", "dog/x.avif"] and len(source) == 2
    assert read_images(tmp_path / "cat").passed_over == ["2.jfif"]
    assert read_images([tmp_path / "cat" / "1.png"]).passed_over == []


def test_columns_are_those_of_tables(tmp_path: Path) -> None:
    write(tmp_path / "1.png")
    with pytest.raises(ValueError, match="image is None and label 'y'; they name columns, and the source is not a"):
        read_images(tmp_path, label="y")


# ---- lists and arrays


def test_a_list_of_paths_images_and_arrays(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", 1)
    source = read_images([path, str(path), PIL.fromarray(picture(2)), picture(3)])
    assert source.names == [str(path), str(path), "image 2 of the list", "image 3 of the list"]
    same(source, [1, 1, 2, 3])


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor])
@pytest.mark.parametrize("channels", [1, 3])
def test_an_array_is_a_batch(kind: Any, channels: int) -> None:
    array = np.stack([picture(seed, channels=channels) for seed in range(3)])
    for batch in (array, array[..., None]) if channels == 1 else (array,):
        source = read_images(kind(batch))
        assert len(source) == 3
        np.testing.assert_array_equal(np.array(source.load(2)), array[2])
        assert source.names[2] == "image 2 of the array"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([], "the list of images is empty"),
        (np.zeros((2, 4, 4)), "the array has dtype float64; pixels must be uint8, 0..255"),
        (np.zeros((2, 4, 4), bool), "the array has dtype bool; pixels must be uint8"),
        (np.zeros((4, 4), np.uint8), r"the array has shape \(4, 4\); it must be \[B, H, W\] or \[B, H, W, C\]"),
        (np.zeros((0, 4, 4), np.uint8), r"the array has shape \(0, 4, 4\)"),
        (
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
            r"the array has shape \(2, 3, 8, 8\); .*C = 1, 3 or 4 .channels last.",
        ),
        ({"a": 1}, "the source is of type dict; legal are folders"),
    ],
)
def test_sources_that_are_none(source: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_images(source)


# ---- broken files


def test_broken_files_are_named(tmp_path: Path) -> None:
    for name, content in (("a.png", b""), ("b.png", b"no image"), ("c.png", png()[:-60]), ("d.png", png())):
        (tmp_path / name).write_bytes(content)
    source = read_images(tmp_path)
    expected = {
        0: "a.png is empty (0 bytes); it must hold an image",
        1: "b.png is not an image of a format that Pillow reads",
        2: "c.png is broken or truncated: ",
    }
    for index, message in expected.items():
        with pytest.raises(ValueError, match=re.escape(f"{tmp_path}/{message}")) as caught:
            source.load(index)
        assert "\n" not in str(caught.value)
    assert source.load(3).size == (5, 6)
    (tmp_path / "d.png").unlink()
    with pytest.raises(ValueError, match=r"d\.png is not there"):
        source.load(3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, of broken tags
@pytest.mark.parametrize("fmt", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP", "PPM"])
def test_damaged_bytes_raise_nothing_but_value_errors(fmt: str) -> None:
    buffer = io.BytesIO()
    PIL.fromarray(picture(size=(20, 24))).save(buffer, fmt)
    rng = np.random.default_rng(0)
    told = []
    for _ in range(60):
        content = np.frombuffer(buffer.getvalue(), np.uint8).copy()
        content[rng.integers(0, min(len(content), 150), 4)] = rng.integers(0, 256, 4)
        content = content[: rng.integers(len(content) // 2, len(content))]
        try:
            ImageAdapter(8).pixels(read_images([content.tobytes()]).load(0))
        except ValueError as error:
            told.append(str(error))
    assert len(told) > 5
    assert all("image 0 of the list" in message for message in told)


def test_a_decompression_bomb_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write(tmp_path / "big.png")
    for limit in (20, 10):  # Pillow warns above its limit, and raises above twice the limit
        monkeypatch.setattr(PIL, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=rf"big\.png has more than {limit} pixels, Pillow's limit against decompr"):
            read_images([path]).load(0)


def test_more_than_one_frame_or_eight_bits(tmp_path: Path) -> None:
    frames = [PIL.fromarray(picture(seed)) for seed in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    PIL.fromarray(picture(channels=1).astype(np.uint16) * 257).save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes(_png16())
    source = read_images(tmp_path)
    for index, message in enumerate(["a.gif has 3 frames", "b.png has 16 bits", "c.png has 16 bits per channel"]):
        with pytest.raises(ValueError, match=re.escape(message)):
            source.load(index)


def _png16() -> bytes:
    """A PNG of 16-bit RGB, which Pillow can read but not write."""
    import struct
    import zlib

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    rows = b"".join(b"\0" + bytes(range(4 * 6)) for _ in range(4))
    head = struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_orientation_is_applied(tmp_path: Path) -> None:
    upright = PIL.fromarray(picture(size=(4, 6)))
    exif = PIL.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    upright.transpose(PIL.Transpose.ROTATE_90).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(np.array(read_images(tmp_path).load(0)), picture(size=(4, 6)))


# ---- parquet files

pa = pytest.importorskip("pyarrow")


def parquet(path: Path, columns: dict[str, Any]) -> Path:
    import pyarrow.parquet

    pyarrow.parquet.write_table(pa.table(columns), path)
    return path


def structs(count: int) -> list[dict[str, Any]]:
    return [{"bytes": png(seed), "path": f"{seed}.png"} for seed in range(count)]


def test_a_parquet_file_of_structs(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"image": structs(3), "label": [4, 0, 4]})
    source = read_images(path)
    assert source.names[1] == f"row 1 of {path} (1.png)"
    assert (source.labels, source.classes) == ([4, 0, 4], None)
    same(source, [0, 1, 2])
    same(pickle.loads(pickle.dumps(source)), [0, 1, 2])  # what a worker that is spawned gets


def test_a_parquet_file_of_bytes_or_paths(tmp_path: Path) -> None:
    same(read_images(parquet(tmp_path / "b.parquet", {"img": [png(0), png(1)]})), [0, 1])
    for seed in range(2):
        write(tmp_path / "files" / f"{seed}.png", seed)
    names = ["files/0.png", "files/1.png"]
    same(read_images(parquet(tmp_path / "p.parquet", {"image": names})), [0, 1])
    cells = [{"bytes": None, "path": name} for name in names]
    table = pa.array(cells, pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    same(read_images(parquet(tmp_path / "s.parquet", {"image": table})), [0, 1])


def test_names_become_labels_in_alphabetical_order(tmp_path: Path) -> None:
    path = parquet(tmp_path / "t.parquet", {"picture": structs(3), "kind": ["dog", "ant", "dog"]})
    source = read_images(path, image="picture", label="kind")
    assert (source.labels, source.classes) == ([1, 0, 1], ["ant", "dog"])


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"images": [b"x"]}, {}, r"has no column image or img; its columns are \['images'\], name one as image"),
        ({"image": [b"x"], "img": [b"x"]}, {}, r"several columns that may be the image, \['image', 'img'\]"),
        ({"image": [b"x"]}, {"label": "lable"}, r"has no column 'lable', which label names; its columns are"),
        ({"image": [b"x"], "label": [1]}, {"label": "lable"}, r"no column 'lable', .*; did you mean 'label'\?"),
        ({"image": [1]}, {}, "column 'image' of .* has type int64; images are"),
        ({"image": [b"x"], "label": [None]}, {}, "column 'label' of .* is None in row 0; labels must be whole numbers"),
        ({"image": [b"x", b"x"], "label": [1.0, 2.0]}, {}, "is 1.0 in row 0"),
        ({"image": [b"x"], "label": [True]}, {}, "is True in row 0"),
        ({"image": pa.array([], pa.binary())}, {}, "has no rows"),
    ],
)
def test_tables_that_do_not_fit(tmp_path: Path, columns: dict[str, Any], options: dict[str, str], message: str) -> None:
    path = parquet(tmp_path / "t.parquet", columns)
    with pytest.raises(ValueError, match=message) as caught:
        read_images(path, **options)
    assert str(path) in str(caught.value)


def test_broken_cells_and_broken_tables(tmp_path: Path) -> None:
    source = read_images(parquet(tmp_path / "t.parquet", {"image": [png(), b"", None]}))
    with pytest.raises(ValueError, match=r"row 1 of .*t\.parquet is empty"):
        source.load(1)
    with pytest.raises(ValueError, match=r"row 2 of .*t\.parquet is a NoneType; an image is"):
        source.load(2)
    (tmp_path / "u.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(ValueError, match=r"u\.parquet cannot be read as a parquet file: "):
        read_images(tmp_path / "u.parquet")


def test_cifar10_as_it_is_shared(shared_dir: Path) -> None:
    path = shared_dir / "data/image/cifar10_test.parquet"
    if not path.is_file():
        pytest.skip("no CIFAR-10")
    source = read_images(path)
    assert len(source) == 10_000
    assert source.labels is not None and source.labels[:12] == [*range(10), 0, 1]
    assert source.load(9_999).size == (32, 32)


# ---- datasets


@pytest.fixture(scope="module")
def datasets() -> Any:
    return pytest.importorskip("datasets")


@pytest.fixture(scope="module")
def dataset(datasets: Any) -> Any:
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee"])})
    return datasets.Dataset.from_dict({"image": structs(3), "label": [1, 0, 1]}, features=features)


def test_a_dataset_where_it_lies(dataset: Any, tmp_path: Path) -> None:
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "t.parquet"))
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    for source in (dataset, tmp_path / "moved", tmp_path / "t.parquet", dataset.with_format("torch")):
        found = read_images(source)
        assert (found.labels, found.classes) == ([1, 0, 1], ["ant", "bee"])
        same(found, [0, 1, 2])
    assert read_images(tmp_path / "moved").names[0] == f"row 0 of {tmp_path}/moved"


def test_a_dataset_of_arrays(datasets: Any) -> None:
    features = datasets.Features({"image": datasets.Array3D((6, 5, 3), "uint8")})
    found = datasets.Dataset.from_dict({"image": [picture(0).tolist(), picture(1).tolist()]}, features=features)
    same(read_images(found), [0, 1])


def test_the_format_of_a_dataset_does_not_matter(datasets: Any) -> None:
    plain = datasets.Dataset.from_dict({"image": [png(0), png(1)], "label": ["b", "a"]})
    for found in (plain, plain.with_format("numpy"), plain.with_transform(lambda rows: {"image": rows["image"][:1]})):
        source = read_images(found)
        assert (source.labels, source.classes) == ([1, 0], ["a", "b"])
        same(source, [0, 1])


def test_a_dataset_of_splits_is_no_set(dataset: Any, datasets: Any, tmp_path: Path) -> None:
    splits = datasets.DatasetDict({"train": dataset, "test": dataset})
    with pytest.raises(ValueError, match="the source is of type DatasetDict; legal are"):
        read_images(splits)
    splits.save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=r"holds the splits \['train', 'test'\]; name the folder of one of them"):
        read_images(tmp_path)
    assert len(read_images(tmp_path / "test")) == 3


def test_a_broken_image_of_a_dataset_is_named(datasets: Any) -> None:
    features = datasets.Features({"image": datasets.Image()})
    cells = [*structs(1), {"bytes": png()[:50], "path": None}]
    source = read_images(datasets.Dataset.from_dict({"image": cells}, features=features))
    with pytest.raises(ValueError, match="row 1 of the data set is broken or truncated"):
        source.load(1)
