"""Reading files of weights: whatever is broken in them, one sentence says so and names the file."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from unimodal_ar.convert import read_weights

WEIGHTS = {"first": torch.arange(3.0), "second": torch.zeros(2, 2, dtype=torch.bfloat16)}


def originals(folder: Path) -> list[Path]:
    """The same weights in each format."""
    files = [folder / name for name in ("zip.pt", "pickle.pth", "plain.safetensors")]
    torch.save({"model": WEIGHTS}, files[0])
    torch.save(WEIGHTS, files[1], _use_new_zipfile_serialization=False)
    save_file(WEIGHTS, files[2])
    return files


def corrupted(content: bytes, rng: random.Random) -> bytes:
    """Cut off, or with a few other bytes."""
    if rng.random() < 0.2:
        return content[: rng.randrange(len(content))]
    changed = bytearray(content)
    for _ in range(rng.choice([1, 3, 8])):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize("number", range(3))
def test_every_format_is_read(tmp_path: Path, number: int) -> None:
    found = read_weights(originals(tmp_path)[number])
    assert found.keys() == WEIGHTS.keys() and all(torch.equal(found[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_broken_files_are_one_sentence_that_names_them(tmp_path: Path) -> None:
    """Some corruptions change a number only, and cannot be noticed."""
    rng, told = random.Random(0), Counter[Path]()
    for file in originals(tmp_path):
        content = file.read_bytes()
        for _ in range(150):
            file.write_bytes(corrupted(content, rng))
            try:
                read_weights(file)
            except ValueError as error:
                message = str(error)
            else:
                continue
            assert message.startswith(f"weights file {str(file)!r} ") and "\n" not in message
            told[file] += 1
    assert len(told) == 3 and min(told.values()) > 50


@pytest.mark.parametrize("content", [b"\x80\x02}]K\x01s.", b"\x80\x02K\x01K\x02K\x03s.", b"\x80\x02K\x01}b."])
def test_pickles_that_make_no_sense(tmp_path: Path, content: bytes) -> None:
    """A list as a key, an item of a number, a number's state."""
    (tmp_path / "odd.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"^weights file '.*odd\.pt' (cannot be read|is not a torch file) "):
        read_weights(tmp_path / "odd.pt")


def test_tensors_without_names_are_no_weights(tmp_path: Path) -> None:
    torch.save({0: torch.zeros(1)}, tmp_path / "numbered.pt")
    with pytest.raises(ValueError, match=r"numbered\.pt' holds no state dict; it must be a dict of tensors by name"):
        read_weights(tmp_path / "numbered.pt")
