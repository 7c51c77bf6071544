"""Training on images: what is read, kept and skipped, how parts and labels come about, and what an evaluation finds."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.adapters import ImageAdapter, LabelAdapter, load_adapters, read_images
from unimodal_ar.cli import main
from unimodal_ar.pipelines import generate
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.fit import _EarlyStopping
from unimodal_ar.training.image_set import ImageDataset, ImageSet
from unimodal_ar.training.images import DATASETS, ImageData, ImageOptions
from unimodal_ar.training.recipe import Resolved
from unimodal_ar.training.source_set import split

CLASSES = ("ant", "bee", "cat")
EACH = 8


def _pixels(label: int, number: int) -> np.ndarray:
    """4 x 4 grey pixels that tell their class (the first) and number, and which way round they are."""
    pixels = np.arange(16, dtype=np.uint8).reshape(4, 4)
    pixels[0, 0], pixels[1, 0] = 100 + label, 200 + number
    return pixels


def _folder(root: Path, classes: tuple[str, ...] = CLASSES, each: int = EACH) -> Path:
    for label, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for number in range(each):
            Image.fromarray(_pixels(label, number)).save(root / name / f"{number:02}.png")
    return root


def _adapters(classes: Any = 3, label: bool = True, **image: Any) -> dict[str, Any]:
    adapters: dict[str, Any] = {"label": LabelAdapter(classes)} if label else {}
    return adapters | {"image": ImageAdapter(**{"size": 4, "channels": 1, **image})}


def _data(root: Path, adapters: dict[str, Any] | None = None, **options: Any) -> ImageData:
    given = {"path": str(root), "validation": 6, "test": 3, **options}
    return ImageData(ImageOptions(**given), adapters or _adapters())


def _all(dataset: ImageDataset) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Labels [n], pixels [n, 4, 4] and numbers (class, number) [n, 2] that these hold, of the whole part."""
    segments = dataset.collate([dataset[i] for i in range(len(dataset))])["segments"]
    pixels = dataset.images.adapter.decode_pixels(segments[-1])
    assert torch.equal(dataset.pixels, pixels) and dataset.labels is not None
    assert torch.equal(dataset.labels, segments[0].values[:, 0])
    pixels = pixels[..., 0]
    return segments[0].values[:, 0], pixels, torch.stack([pixels[:, 0, 0] - 100, pixels[:, 1, 0] - 200], 1)


# Parts


def test_parts_are_stratified_disjoint_and_whole() -> None:
    strata = torch.tensor([0] * 50 + [1] * 30 + [2] * 20)[torch.randperm(100)]
    test, validation, train_part = split(strata, [20, 0.1], seed=0)
    assert sorted(torch.cat([test, validation, train_part]).tolist()) == list(range(100))
    assert [torch.bincount(strata[part]).tolist() for part in (test, validation)] == [[10, 6, 4], [5, 3, 2]]
    again, other = split(strata, [20, 0.1], seed=0), split(strata, [20, 0.1], seed=1)
    assert torch.equal(test, again[0]) and not torch.equal(test, other[0])


@pytest.mark.parametrize("shares", [[7, 5], [0.33, 0.21], [0, 1], [50, 60]])
def test_parts_have_the_sizes_asked_for(shares: list[float]) -> None:
    strata = torch.arange(37) % 5
    first, second, rest = split(strata, shares, seed=3)
    wanted = [share if isinstance(share, int) else round(share * 37) for share in shares]
    sizes = [min(wanted[0], 37), min(wanted[1], 37 - min(wanted[0], 37))]
    assert [len(first), len(second), len(rest)] == [*sizes, 37 - sum(sizes)]
    counts = torch.bincount(strata[first], minlength=5) - torch.bincount(strata) * len(first) / 37
    assert counts.abs().max() <= 1


def test_every_class_is_in_every_part_and_no_image_in_two(tmp_path: Path) -> None:
    data = _data(_folder(tmp_path))
    seen = []
    for dataset, each in ((data.train(), 5), (data.validation(), 2), (data.test(), 1)):
        labels, _, told = _all(dataset)
        assert torch.equal(labels, told[:, 0].long())  # a label is that of its image
        assert torch.bincount(labels).tolist() == [each] * 3
        seen += [tuple(row) for row in told.tolist()]
    assert len(set(seen)) == len(seen) == 3 * EACH


def test_the_seed_of_the_split_is_the_datas_own(tmp_path: Path) -> None:
    _folder(tmp_path)
    one, same, other = (_data(tmp_path, seed=seed).test().rows for seed in (0, 0, 1))
    assert one == same != other


def test_a_test_part_of_its_own(tmp_path: Path) -> None:
    """Its classes are the training images', by name: that a folder is missing moves no number."""
    root, other = _folder(tmp_path / "train"), _folder(tmp_path / "test", each=2)
    for file in (other / "ant").iterdir():
        file.unlink()
    (other / "ant").rmdir()
    data = _data(root, test=None, test_path=str(other))
    assert len(data.train()) + len(data.validation()) == 3 * EACH
    labels, _, told = _all(data.test())
    assert labels.tolist() == told[:, 0].tolist() == [1, 1, 2, 2]
    (other / "bee").rename(other / "dog")
    with pytest.raises(ValueError, match=r"dog/00.png: class 'dog' is not among the training images' classes \['ant'"):
        _data(root, test=None, test_path=str(other)).test()


@pytest.mark.parametrize(
    ("names", "tested", "codes"),
    [
        (("1", "2", "3"), ("1", "2"), [0, 0, 1, 1]),  # all of the test's names are numbers of the adapter's
        (("0", "1", "2"), ("1", "2"), [1, 1, 2, 2]),
        (("ant", "bee", "cat"), ("0", "1"), None),
        (("0", "1", "2"), ("ant", "bee"), None),
    ],
)
def test_the_training_images_settle_what_a_label_is(
    names: tuple[str, ...], tested: tuple[str, ...], codes: list[int] | None, tmp_path: Path
) -> None:
    root, other = _folder(tmp_path / "train", names), _folder(tmp_path / "test", tested, each=2)
    data = _data(root, test=None, test_path=str(other))
    if codes is None:
        with pytest.raises(ValueError, match=rf"class '{tested[0]}' is not among the training images' classes \["):
            data.train()
    else:
        assert _all(data.train())[0].unique().tolist() == [0, 1, 2]
        assert _all(data.test())[0].tolist() == codes


def _table(path: Path, labels: list[Any]) -> Path:
    folder = _folder(path.parent / f"{path.stem} images", ("0",), len(labels))
    files = sorted(folder.glob("*/*.png"))
    rows = [{"image": {"bytes": file.read_bytes()}, "label": label} for file, label in zip(files, labels, strict=True)]
    pd.DataFrame([{**row, "image": {**row["image"], "path": None}} for row in rows]).to_parquet(path)
    return path


def test_names_on_one_side_and_numbers_on_the_other(tmp_path: Path) -> None:
    """Which number is which name, only a label adapter with names can say."""
    root = _folder(tmp_path / "train")
    numbers = _table(tmp_path / "numbers.parquet", [0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2])
    sides: dict[tuple[Path, Path], str] = {
        (root, numbers): "numbers.parquet has numbers for labels, and the training images have names; give",
        (numbers, root): "00.png: class 'ant' is not among the training images' classes ['0', '1', '2']; give",
    }
    for (path, test_path), expected in sides.items():
        options: dict[str, Any] = {"test": None, "test_path": str(test_path), "validation": 2}
        with pytest.raises(ValueError, match=r".") as caught:
            _data(path, **options).train()
        expected += " adapters.label.classes the names in the order of the numbers"
        assert expected in str(caught.value)
        data = _data(path, _adapters(["bee", "ant", "cat"]), **options)
        by_name, by_number = (data.test(), data.train()) if path == numbers else (data.train(), data.test())
        assert by_name.labels is not None and by_number.labels is not None
        labels, _, told = _all(by_name)
        assert labels.tolist() == [{0: 1, 1: 0, 2: 2}[number] for number in told[:, 0].tolist()]
        order = torch.tensor([0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 2])
        assert torch.equal(by_number.labels, order[by_number.rows])


# Reading


def _break(root: Path) -> None:
    (root / "ant" / "00.png").write_bytes(b"")
    whole = (root / "bee" / "03.png").read_bytes()
    (root / "bee" / "03.png").write_bytes(whole[: len(whole) // 2])
    (root / "cat" / "05.png").write_text("no image")
    Image.fromarray(np.zeros((4, 4, 3), np.uint8) + np.arange(3, dtype=np.uint8)).save(root / "cat" / "06.png")


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_files_are_counted_listed_and_left_out(
    in_memory: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _break(_folder(tmp_path))
    data = _data(tmp_path, in_memory=in_memory)
    parts = [data.train(), data.validation(), data.test()]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{tmp_path}: 4 of 24 images cannot be read and are left out:" and len(told) == 5
    for line, (name, reason) in zip(
        told[1:],
        [
            ("ant/00.png", "empty"),
            ("bee/03.png", "truncated"),
            ("cat/05.png", "not an image"),
            ("06.png", "3 channels"),
        ],
        strict=True,
    ):
        assert name in line and reason in line
    seen = torch.cat([_all(part)[2] for part in parts])
    assert torch.equal(torch.cat([_all(part)[0] for part in parts]), seen[:, 0].long())
    expected = {(label, number) for label in range(3) for number in range(EACH)} - {(0, 0), (1, 3), (2, 5), (2, 6)}
    assert {tuple(row) for row in seen.tolist()} == expected and len(seen) == 20


def test_of_many_unreadable_files_the_first_ten_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _folder(tmp_path)
    for file in [*sorted((tmp_path / "ant").iterdir()), *sorted((tmp_path / "bee").iterdir())][:12]:
        file.write_bytes(b"")
    _data(tmp_path, validation=2, test=1).train()
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 12 and told[0].endswith("12 of 24 images cannot be read and are left out:")
    assert told[-1] == "  ... and 2 more" and "bee/01.png" in told[-2]


def test_files_that_are_passed_over_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("notes.txt", "ant/x.jfif"):
        (_folder(tmp_path) if not (tmp_path / "ant").exists() else tmp_path).joinpath(name).touch()
    _data(tmp_path).train()
    assert capsys.readouterr().err == f"{tmp_path}: 2 other files were passed over: notes.txt, ant/x.jfif\n"
    (tmp_path / "notes.txt").unlink()
    _data(tmp_path).train()
    assert capsys.readouterr().err == f"{tmp_path}: 1 other file was passed over: ant/x.jfif\n"
    for number in range(10):
        (tmp_path / f"{number}.txt").touch()
    _data(tmp_path).train()
    assert capsys.readouterr().err.endswith(
        "11 other files were passed over: " + ", ".join(f"{number}.txt" for number in range(10)) + ", ...\n"
    )


@pytest.mark.parametrize(("elements", "each"), [("levels", 16), ("groups", 32), ("palette", 16), ("patches", 16)])
def test_more_images_than_memory(elements: str, each: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """24 images of 4 x 4 pixels; groups are kept mirrored, too."""
    root, free = _folder(tmp_path), [24 * each]
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free[0]))
    _data(root, _adapters(**ELEMENTS[elements]), flip=True).train()
    free[0] -= 1
    with pytest.raises(
        ValueError, match=r"keep its 24 images takes 0.0 GB of memory, of .*; set data.in_memory to fal"
    ):
        _data(root, _adapters(**ELEMENTS[elements]), flip=True).train()
    _data(root, _adapters(**ELEMENTS[elements]), flip=True, in_memory=False).train()
    free[0] += 1
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # each of two processes keeps its own
    with pytest.raises(ValueError, match=r"set data\.in_memory to false"):
        _data(root, _adapters(**ELEMENTS[elements]), flip=True).train()


def test_nothing_readable_is_an_error(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    for file in root.glob("*/*.png"):
        file.write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 24 images can be read; the first one: .*ant/00.png is empty"):
        _data(root).train()


def test_nothing_is_read_before_it_is_needed() -> None:
    data = _data(Path("nowhere"))
    assert data.modality_defaults("image") == {"grid": [1, 4, 4]} and data.modality_defaults("label")["grid"] == [
        1,
        1,
        1,
    ]
    with pytest.raises(ValueError, match="nowhere"):
        data.train()


def test_the_files_are_read_once(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    data = _data(root)
    expected = [_all(part)[1] for part in (data.train(), data.validation(), data.test())]
    for file in root.glob("*/*.png"):
        file.unlink()
    for part, pixels in zip((data.train(), data.validation(), data.test()), expected, strict=True):
        assert torch.equal(_all(part)[1], pixels)


def test_a_parquet_file(tmp_path: Path) -> None:
    root = _folder(tmp_path / "images")
    rows = [
        {"picture": {"bytes": file.read_bytes(), "path": file.name}, "kind": CLASSES.index(file.parent.name)}
        for file in sorted(root.glob("*/*.png"))
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "images.parquet")
    data = _data(tmp_path / "images.parquet", image_column="picture", label_column="kind")
    folder = _data(root)
    for one, other in zip(_all(data.train()), _all(folder.train()), strict=True):
        assert torch.equal(one, other)


def test_the_digits() -> None:
    """17 levels of grey come back as they are in scikit-learn's table."""
    pytest.importorskip("sklearn")
    source = DATASETS["digits"]()
    adapters = _adapters(10, size=8, elements={"kind": "levels", "levels": 17})
    data = ImageData(ImageOptions(dataset="digits"), adapters)
    sizes = [len(data.train()), len(data.validation()), len(data.test())]
    assert sizes == [1437, 180, 180] and len(source) == 1797
    from sklearn.datasets import load_digits

    table = load_digits()
    test = data.test()
    segments = test.collate([test[i] for i in range(180)])["segments"]
    assert torch.equal(segments[1].values, torch.tensor(table.images[test.rows]).long().flatten(1))
    assert torch.equal(segments[0].values[:, 0], torch.tensor(table.target[test.rows]))
    assert torch.bincount(segments[0].values[:, 0]).min() >= 17


# What is kept

ELEMENTS: dict[str, dict[str, Any]] = {
    "levels": {"elements": {"kind": "levels"}},
    "groups": {"elements": {"kind": "levels", "levels": 64}, "group": 2},
    "palette": {"elements": {"kind": "palette", "colours": 12}},
    "patches": {"elements": {"kind": "patches", "patch": 2}},
}


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("flip", [False, True])
def test_what_is_kept_equals_what_is_decoded_on_demand(name: str, flip: bool, tmp_path: Path) -> None:
    root = _folder(tmp_path)
    kept, fresh = (
        _data(root, _adapters(**ELEMENTS[name]), flip=flip, in_memory=in_memory).train() for in_memory in (True, False)
    )
    for items in ([(row, False) for row in kept.rows], [(row, flip) for row in kept.rows]):
        (_, one), (_, other) = kept.collate(items)["segments"], fresh.collate(items)["segments"]
        assert torch.equal(one.values, other.values) and one.grid == other.grid == kept.images.adapter.grid
        assert one.values.dtype == (torch.float32 if name == "patches" else torch.long)


@pytest.mark.parametrize(("levels", "dtype"), [(256, torch.uint8), (17, torch.uint8)])
def test_codes_are_kept_small(levels: int, dtype: torch.dtype, tmp_path: Path) -> None:
    images = _data(_folder(tmp_path), _adapters(elements={"kind": "levels", "levels": levels})).train().images
    assert images._kept is not None and images._kept.dtype == dtype and images._kept.shape == (24, 1, 16)


@pytest.mark.parametrize(("name", "versions"), [("levels", 1), ("colours", 1), ("palette", 1), ("groups", 2)])
@pytest.mark.parametrize("flip", [False, True])
def test_only_what_cannot_be_mirrored_is_kept_twice(name: str, versions: int, flip: bool, tmp_path: Path) -> None:
    root = _folder(tmp_path)
    if name == "colours":
        for file in root.glob("*/*.png"):
            Image.open(file).convert("RGB").save(file)
    adapters = _adapters(channels=3) if name == "colours" else _adapters(**ELEMENTS[name])
    images = _data(root, adapters, flip=flip).train().images
    assert images._kept is not None and images._kept.shape[1] == (versions if flip else 1)
    mirrored = [flip and row % 3 != 0 for row in range(24)]
    pixels = torch.cat([images.adapter.pixels(images.source.load(row)) for row in range(24)])
    expected = torch.stack([x.flip(1) if turn else x for x, turn in zip(pixels, mirrored, strict=True)])
    assert torch.equal(images.segment(range(24), mirrored).values, images.adapter.encode_pixels(expected).values)


@pytest.mark.parametrize("name", ["levels", "patches"])
def test_mirrored_images(name: str, tmp_path: Path) -> None:
    data = _data(_folder(tmp_path), _adapters(**ELEMENTS[name]), flip=True)
    dataset = data.train()
    rows = dataset.rows[:2]
    (_, segment) = dataset.collate([(rows[0], False), (rows[1], True)])["segments"]
    pixels = data.adapter.decode_pixels(segment)[..., 0]
    expected = torch.from_numpy(np.stack([_pixels(row // EACH, row % EACH) for row in rows]))
    assert torch.equal(pixels[0], expected[0]) and torch.equal(pixels[1], expected[1].flip(1))


def test_half_of_the_training_images_are_mirrored_and_a_seed_says_which(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    data = _data(root, flip=True)

    def drawn(dataset: ImageDataset) -> list[bool]:
        torch.manual_seed(5)
        return [dataset[0][1] for _ in range(400)]

    assert 150 < sum(drawn(data.train())) < 250 and drawn(data.train()) == drawn(data.train())
    assert not any(drawn(data.validation())) and not any(drawn(data.test()))
    assert not any(drawn(_data(root).train()))


class _Tokenizer:
    """One code for each 2 x 2 pixels, from the first of them; counts the images that it was given."""

    discrete, vocab_size, factor, channels = True, 1000, 2, 1

    def __init__(self) -> None:
        self.images = 0

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        self.images += len(x)
        return ((x[:, 0, ::2, ::2] + 1) * 127.5).round().long() + 500


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> _Tokenizer:
    made = _Tokenizer()
    monkeypatch.setattr("unimodal_ar.adapters.image.adapter.find_tokenizer", lambda *_: made)
    return made


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("flip", [False, True])
def test_a_tokenizer_sees_every_image_once(in_memory: bool, flip: bool, tokenizer: _Tokenizer, tmp_path: Path) -> None:
    adapters = _adapters(elements={"kind": "tokenizer", "path": "x"})
    dataset = _data(_folder(tmp_path), adapters, in_memory=in_memory, flip=flip).train()
    seen = 24 * (1 + flip)
    assert tokenizer.images == seen
    row = dataset.rows[3]
    (_, segment) = dataset.collate([(row, False), (row, flip)])["segments"]
    assert tokenizer.images == seen
    pixels = torch.from_numpy(_pixels(row // EACH, row % EACH)).long()
    turned = pixels.flip(1) if flip else pixels
    expected = torch.stack([picture[::2, ::2].flatten() + 500 for picture in (pixels, turned)])
    assert torch.equal(segment.values, expected)
    assert dataset.images._kept is not None and dataset.images._kept.dtype == torch.int16


class _Latents:
    """Three values for each 2 x 2 pixels: those of its first pixel, half of them, and their place across."""

    discrete, dim, factor, channels = False, 3, 2, 1

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        first = x[:, 0, ::2, ::2]
        return torch.stack([first, first / 2, torch.linspace(-1, 1, first.shape[-1]).expand(first.shape)], -1)


@pytest.mark.parametrize("flip", [False, True])
def test_latents_are_kept_as_they_are(flip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal_ar.adapters.image.adapter.find_tokenizer", lambda *_: _Latents())
    adapters = _adapters(elements={"kind": "tokenizer", "path": "x"})
    dataset = _data(_folder(tmp_path), adapters, flip=flip).train()
    (_, segment) = dataset.collate([(dataset.rows[3], False), (dataset.rows[4], flip)])["segments"]
    assert segment.values.dtype == torch.float32 and segment.values.shape == (2, 4, 3)
    pictures = [torch.from_numpy(_pixels(row // EACH, row % EACH)) for row in dataset.rows[3:5]]
    turned = torch.stack([pictures[0], pictures[1].flip(1) if flip else pictures[1]])
    expected = _Latents().encode(turned[:, None] / 127.5 - 1)
    torch.testing.assert_close(segment.values, expected.flatten(1, 2))
    assert expected[..., 0].frac().abs().max() > 0.1  # or whole numbers would do


def test_too_many_latents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal_ar.adapters.image.adapter.find_tokenizer", lambda *_: _Latents())
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=24 * 4 * 3 * 4 - 1))
    for in_memory in (True, False):
        with pytest.raises(ValueError, match="what a tokenizer makes of images is always kept, so use fewer"):
            _data(
                _folder(tmp_path / str(in_memory)),
                _adapters(elements={"kind": "tokenizer", "path": "x"}),
                in_memory=in_memory,
            ).train()


@pytest.mark.parametrize("in_memory", [True, False])
def test_a_palette_is_of_images_of_all_classes(
    in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only some are read for it, and a seed says which."""
    monkeypatch.setattr("unimodal_ar.training.images.FITTED", 9)
    seen: list[torch.Tensor] = []

    def fit(self: ImageAdapter, pixels: torch.Tensor, seed: int = 0) -> None:
        seen.append(pixels[:, 0, 0, 0] - 100)
        original(self, pixels, seed)

    original = ImageAdapter.fit
    monkeypatch.setattr(ImageAdapter, "fit", fit)
    root = _folder(tmp_path)
    for _ in range(2):
        _data(root, _adapters(**ELEMENTS["palette"]), in_memory=in_memory).train()
    assert torch.equal(seen[0], seen[1]) and len(seen[0]) == (15 if in_memory else 9)
    assert torch.bincount(seen[0], minlength=3).min() >= 1


def test_a_palette_is_learned_from_training_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def fit(self: ImageAdapter, pixels: torch.Tensor, seed: int = 0) -> None:
        given.extend([pixels, seed])
        original(self, pixels, seed)

    original = ImageAdapter.fit
    monkeypatch.setattr(ImageAdapter, "fit", fit)
    data = _data(_folder(tmp_path), _adapters(**ELEMENTS["palette"]), seed=7)
    assert not given and data.adapter.element["vocab_size"] == 12
    dataset = data.train()
    assert data.adapter.needs_fit is False and given[1] == 7
    expected = [_pixels(row // EACH, row % EACH) for row in dataset.rows]
    assert torch.equal(given[0][..., 0], torch.from_numpy(np.stack(expected)))


# Labels


def test_labels_by_name(tmp_path: Path) -> None:
    """A label adapter with names takes the folders' names, whatever their order."""
    root = _folder(tmp_path)
    labels, _, told = _all(_data(root, _adapters(["cat", "ant", "bee"])).train())
    assert labels.tolist() == [{0: 1, 1: 2, 2: 0}[number] for number in told[:, 0].tolist()]


def test_folders_that_are_numbers_are_those_numbers(tmp_path: Path) -> None:
    """In alphabetical order, 10 would come before 2."""
    root = _folder(tmp_path, ("0", "10", "2"))
    labels, _, told = _all(_data(root, _adapters(11)).train())
    assert labels.tolist() == [{0: 0, 1: 10, 2: 2}[number] for number in told[:, 0].tolist()]


def test_classes_that_become_numbers_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _data(_folder(tmp_path)).train()
    assert capsys.readouterr().out == f"{tmp_path}: the classes are 0 'ant', 1 'bee', 2 'cat'\n"


def test_without_labels(tmp_path: Path) -> None:
    root = _folder(tmp_path)
    dataset = _data(root, _adapters(label=False), label=None).train()
    segments = dataset.collate([dataset[0]])["segments"]
    assert [segment.modality for segment in segments] == ["image"] and dataset.labels is None
    assert [(row // EACH) for row in dataset.rows].count(0) == 5  # parts are stratified all the same


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (2, "cat/00.png: label is 2; this adapter knows the classes 0..1"),
        (["ant", "bee", "car"], "cat/00.png: label is 'cat'; this adapter knows the classes 0 'ant'"),
    ],
)
def test_labels_that_are_no_class(classes: Any, expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        _data(_folder(tmp_path), _adapters(classes)).train()
    assert expected in str(caught.value)


def test_an_unknown_label_is_not_the_last_class(tmp_path: Path) -> None:
    """Data sets mark it with -1."""
    source = read_images(_folder(tmp_path))
    assert source.labels is not None
    marked = replace(source, labels=[*source.labels[:-1], -1])
    with pytest.raises(ValueError, match=r"cat/07.png: label is -1; this adapter knows the classes 0 'ant'"):
        ImageSet(marked, "images", ImageAdapter(4, 1), LabelAdapter(list(CLASSES)))


def test_images_without_labels_for_a_model_with_labels(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"ant has no labels \(a folder per class, or data.label_column\); for a model"
    ):
        _data(_folder(tmp_path) / "ant").train()


# Recipes


def _document(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    root = tmp_path / "images"
    backbone = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    return {
        "output_dir": str(tmp_path / "run"),
        "model": {
            "backbone": backbone,
            "modalities": {"image": {"head": {"kind": "categorical"}}, "label": {"null_probability": 0.1}},
        },
        "adapters": {
            "image": {"kind": "image", "size": 4, "channels": 1, "elements": {"kind": "palette", "colours": 12}},
            "label": {"kind": "label", "classes": 3},
        },
        "data": {"kind": "images", "path": str(root if root.exists() else _folder(root)), "validation": 6, "test": 3},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
        "evaluation": {"samples": 6, "guidance_scale": 2.0, "batch_size": 2},
        **changes,
    }


def _changed(document: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """With "a.b" keys set."""
    for key, value in changes.items():
        place, *path = document, *key.split(".")
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    return document


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data.modality": "label"}, "data.modality is 'label'; it must name an image adapter"),
        (
            {"data.label": "image"},
            "data.label is 'image'; it must name a label adapter, or be null for a model without",
        ),
        ({"data.label": None}, "adapters.label is used by nothing; images have the modalities ['image']"),
        ({"data.dataset": "digits"}, "give exactly one of path and dataset"),
        ({"data.path": None, "data.dataset": "faces"}, "dataset is 'faces'; known datasets are ['digits']"),
        ({"data.test_path": "x"}, "give at most one of test and test_path"),
        ({"data.validation": 0}, "data.validation is 0: "),
        ({"data.validation": 0.0}, "data.validation is 0.0: "),
        ({"data.validation": 1.0}, "data.validation is 1.0: "),
        ({"data.test": 1.0}, "data.test is 1.0: "),
        ({"data.test": -1}, "data.test is -1: "),
        ({"data.flop": True}, "data has an unknown key 'flop'; did you mean 'flip'?"),
        ({"model.modalities.image": {}}, "modalities.image has no head; the data are its images"),
        ({"model.modalities.label.head": {"kind": "categorical"}}, "modalities.label has a head; labels are given"),
        (
            {"model.modalities.image.element": {"kind": "discrete", "vocab_size": 13}},
            "modalities.image.element.vocab_size is 13; its adapter makes elements whose vocab_size is 12",
        ),
        ({"evaluation.sample": 3}, "evaluation has an unknown key 'sample'; did you mean 'samples'?"),
        ({"evaluation": {"horizons": [3]}}, "evaluation has an unknown key 'horizons'"),
        ({"evaluation.top_p": 2}, "evaluation.top_p is 2: "),
        ({"evaluation": 3}, "recipe.evaluation is 3: "),
        ({"schedule": {"image.groop": [[0, 1]]}}, "schedule has an unknown key 'image.groop'"),
        ({"schedule": {"image.group": [[0, 3], [0.5, 1]]}}, "schedule.image.group takes the value 3, which does not"),
        ({"schedule": {"image.group": [0, 3]}}, "recipe.schedule"),
    ],
)
def test_recipes_that_do_not_hold_together(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Resolved(_changed(_document(tmp_path), changes))
    assert expected in str(caught.value) and "\n" not in str(caught.value)


def test_a_recipe_without_data_of_a_known_kind_says_nothing_of_its_evaluation(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^data.kind is 'sounds'; known kinds are \['audio', 'images', 'series', 'video'\]$"
    ):
        Resolved(_changed(_document(tmp_path), {"data.kind": "sounds"}))


PATCHES = {
    "adapters.image.elements": {"kind": "patches", "patch": 2},
    "model.modalities.image.head": {"kind": "mixture", "components": 2},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"data.test": 0}, "evaluation.bits_per_dimension is true, but data.test leaves no test images; set one"),
        (
            {"model.modalities.label": {}},
            "evaluation.guidance_scale is 2.0; guidance needs a label that was trained with null_probability > 0",
        ),
        ({**PATCHES, "evaluation.top_k": 3}, "evaluation.top_k is 3; it truncates codes, not vectors"),
        ({"data.test": 20}, "has 24 images, of which 0 are left to train on after 20 of test and 4 of validation"),
        ({"data.validation": 0.01}, "after 3 of test and 0 of validation; training and validation need some"),
    ],
)
def test_what_the_data_cannot_bear_is_told_before_training(
    changes: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        train(_changed(_document(tmp_path), changes))
    assert expected in str(caught.value) and not (tmp_path / "run").exists()


def test_training_writes_a_folder_that_can_be_used(tmp_path: Path) -> None:
    """Model, adapters (labels first, as in the sequence), recipe, evaluation and a picture of samples; the saved recipe
    trains the same model again, with the palette that was learned."""
    folder = train(_document(tmp_path))
    assert folder is not None and not list(folder.glob(".partial-*"))
    adapters = load_adapters(folder)
    assert list(adapters) == ["label", "image"]
    with Image.open(folder / "samples.png") as picture:
        assert picture.mode == "L" and picture.width > picture.height > 100  # 3 x 2 images, enlarged
    samples = generate(folder, n=3, label=[0, 1, 2], seed=1)
    assert len(samples.raw) == 3 and samples.raw[0].size == (4, 4)
    text = (folder / "recipe.yaml").read_text()
    saved = yaml.safe_load(text)
    assert len(saved["adapters"]["image"]["elements"]["palette"]) == 12
    assert saved["evaluation"] == {
        **{"bits_per_dimension": True, "samples": 6, "guidance_scale": 2.0, "batch_size": 2},
        **{"temperature": 1.0, "top_k": None, "top_p": None, "steps": None, "head_steps": None, "sampler": None},
        "likelihood_draws": 16,
    }
    again = train(load_recipe(folder / "recipe.yaml", [f"output_dir={tmp_path / 'again'}"]))
    assert again is not None
    first, second = (UnimodalARForGeneration.from_pretrained(path).state_dict() for path in (folder, again))
    assert all(torch.equal(weight, second[name]) for name, weight in first.items())
    assert (folder / "samples.png").read_bytes() == (again / "samples.png").read_bytes()


def test_bits_per_dimension_are_the_models_own_losses(tmp_path: Path) -> None:
    document = _document(tmp_path)
    folder = train(document)
    assert folder is not None
    found = json.loads((folder / "evaluation.json").read_text())
    model = UnimodalARForGeneration.from_pretrained(folder).eval()
    test = Resolved(document).data.test()
    with torch.no_grad():
        losses = model(**test.collate([(row, False) for row in test.rows])).element_losses["image"]
    expected = losses.double().sum().item() / math.log(2) / (3 * 16)
    assert found == {"bits_per_dimension": pytest.approx(expected, rel=1e-6), "test_images": 3}


@pytest.mark.parametrize(
    ("head", "keys"),
    [
        ({"kind": "mixture", "components": 2}, ["nats_per_dimension", "test_images"]),
        ({"kind": "regression"}, ["test_images"]),
    ],
)
def test_vectors_have_nats_or_nothing(head: dict[str, Any], keys: list[str], tmp_path: Path) -> None:
    changes = {**PATCHES, "model.modalities.image.head": head, "evaluation.guidance_scale": 1.0}
    folder = train(_changed(_document(tmp_path), changes))
    assert folder is not None and (folder / "samples.png").exists()
    assert list(json.loads((folder / "evaluation.json").read_text())) == keys


def test_samples_are_ordered_by_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def fake(self: Any, n: int, target: str, **arguments: Any) -> Any:
        given.append((n, target, arguments["label"], arguments["seed"]))
        return SimpleNamespace(save=lambda path: Path(path).touch(), picture=lambda: None)

    monkeypatch.setattr("unimodal_ar.training.sample_evaluation.Generator.generate", fake)
    for samples, labels in ((6, [0, 0, 1, 1, 2, 2]), (2, [0, 1]), (4, [0, 0, 1, 2])):
        document = _changed(_document(tmp_path), {"evaluation.samples": samples, "seed": samples})
        train(document, overwrite=True)
        assert given.pop() == (samples, "image", labels, samples)
    train(_changed(_document(tmp_path), {"evaluation.samples": 0}), overwrite=True)
    assert not given and not (tmp_path / "run" / "samples.png").exists()  # nor is an older one left


def test_a_tokenizers_folder_is_replaced_with_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = ["first"]

    def save_files(self: ImageAdapter, folder: Path) -> dict[str, Any]:
        for name in written:
            (folder / "image_tokenizer").mkdir(exist_ok=True)
            (folder / "image_tokenizer" / name).touch()
        elements = {"elements": {"kind": "tokenizer", "path": "image_tokenizer"}} if written else {}
        return self.config() | elements

    monkeypatch.setattr(ImageAdapter, "save_files", save_files)
    document = {**_document(tmp_path), "evaluation": None}
    folder = train(document)
    assert folder is not None
    (folder / "my_tokenizer").mkdir()
    written[:] = ["second"]
    train(document, overwrite=True)
    assert [path.name for path in (folder / "image_tokenizer").iterdir()] == ["second"]
    written.clear()
    train(document, overwrite=True)
    assert not (folder / "image_tokenizer").exists() and (folder / "my_tokenizer").exists()


def test_training_spares_what_is_the_users(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A recipe beside which the model is to be written, with or without --overwrite; told before anything is read."""
    recipe = tmp_path / "run" / "recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_text("# mine\n" + yaml.safe_dump(_document(tmp_path)))
    before = recipe.read_text()
    for words in ([], ["--overwrite"]):
        assert main(["train", str(recipe), "--set", "data.path=nowhere", *words]) == 2
        assert "/run' holds recipe.yaml, which is no part of a model there but would be" in capsys.readouterr().err
    assert recipe.read_text() == before and [path.name for path in recipe.parent.iterdir()] == ["recipe.yaml"]
    assert main(["train", str(recipe), "--dry-run"]) == 0
    assert main(["train", str(recipe), "--output", str(tmp_path / "other")]) == 0


def test_training_spares_the_tokenizer_that_it_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unimodal_ar.adapters.image.adapter.find_tokenizer", lambda *_: _Tokenizer())
    place = tmp_path / "run" / "image_tokenizer"
    place.mkdir(parents=True)
    document = _changed(_document(tmp_path), {"adapters.image.elements": {"kind": "tokenizer", "path": str(place)}})
    with pytest.raises(ValueError, match=r"^adapters.image.elements.path is '.*/run/image_tokenizer', which the model"):
        train(document)
    document["adapters"]["image"]["elements"]["path"] = "x"
    with pytest.raises(ValueError, match="run' holds image_tokenizer, which is no part of a model there"):
        train(document)
    assert [path.name for path in place.parent.iterdir()] == ["image_tokenizer"]


def test_a_dry_run_lists_unreadable_files_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = _document(tmp_path)
    _break(Path(document["data"]["path"]))
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    assert main(["train", str(tmp_path / "recipe.yaml"), "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "4 of 24 images cannot be read" in err and "ant/00.png is empty" in err
    assert "11 training and 6 validation images" in out and "two training steps are fine" in out
    assert not (tmp_path / "run").exists()


def test_workers_decode_on_demand(tmp_path: Path) -> None:
    """The same model whether images are kept, or decoded by two processes."""
    weights = []
    for number, (in_memory, workers) in enumerate(((True, 0), (False, 2))):
        changes = {
            **{"data.in_memory": in_memory, "training.dataloader_num_workers": workers, "evaluation": None},
            **{"output_dir": str(tmp_path / str(number)), "training.max_steps": 2},
        }
        folder = train(_changed(_document(tmp_path), changes))
        assert folder is not None
        weights.append(UnimodalARForGeneration.from_pretrained(folder).state_dict())
    assert all(torch.equal(weight, weights[1][name]) for name, weight in weights[0].items())


# Schedules


def test_a_schedule_reaches_the_model_and_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups: list[int] = []
    original = UnimodalARForGeneration.forward

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.training:
            groups.append(self.curricula["image"].group)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(UnimodalARForGeneration, "forward", forward)
    folder = train(_document(tmp_path, schedule={"image.group": [[0, 4], [0.25, 2], [0.5, 1]]}))
    assert folder is not None and groups == [4, 2, 1, 1]
    saved = yaml.safe_load((folder / "recipe.yaml").read_text())["schedule"]
    assert saved == {"image.group": [[0.0, 4.0], [0.25, 2.0], [0.5, 1.0]]}


def test_early_stopping_waits_for_the_schedules_last_change(tmp_path: Path) -> None:
    """With a patience of one and a learning rate of nothing, training stops at the second evaluation that counts."""
    steps = {}
    for name, schedule in (("none", {}), ("group", {"image.group": [[0, 2], [0.5, 1]]})):
        document = _document(tmp_path, schedule=schedule, early_stopping=1, output_dir=str(tmp_path / name))
        document["training"] |= {"max_steps": 20, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.0}
        folder = train({**document, "evaluation": None})
        assert folder is not None
        states = [json.loads(path.read_text()) for path in folder.glob("checkpoints/*/trainer_state.json")]
        steps[name] = max(state["global_step"] for state in states)
    assert steps == {"none": 4, "group": 10}


def test_early_stopping_is_restored_as_it_was() -> None:
    saved = _EarlyStopping(3, last_change=0.5).state()
    again = _EarlyStopping.from_state(saved)
    assert (again.early_stopping_patience, again.last_change) == (3, 0.5)


def test_an_override_of_null_takes_the_labels_out() -> None:
    """A class-conditional recipe becomes an unconditional one."""
    nothing = ["adapters.label=null", "model.modalities.label=null", "data.label=null", "evaluation.guidance_scale=1"]
    resolved = Resolved(load_recipe("next_token/digits", nothing))
    assert list(resolved.adapters) == list(resolved.config.modalities) == ["image"]
