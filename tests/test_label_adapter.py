"""The label adapter: there and back, storage, messages."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unimodal_ar.adapters import AutoAdapter, LabelAdapter
from unimodal_ar.segment import Segment

ANIMALS = ["dog", "cat", "bird"]


@pytest.mark.parametrize(
    ("labels", "codes"),
    [
        (3, [3]),
        ("3", [3]),
        ([0, 9, 3], [0, 9, 3]),
        ((1, "2"), [1, 2]),
        (range(4), [0, 1, 2, 3]),
        (np.array([7, 1]), [7, 1]),
        (np.int64(4), [4]),
        (torch.tensor([5, 5]), [5, 5]),
    ],
)
def test_numbered_classes(labels: Any, codes: list[int]) -> None:
    segment = LabelAdapter(10).encode(labels)
    assert segment.values.tolist() == [[code] for code in codes]
    assert segment.values.dtype == torch.long
    assert (segment.grid, segment.target, segment.modality) == ((1, 1, 1), False, "label")
    assert LabelAdapter(10).decode(segment) == codes


def test_named_classes_keep_their_order() -> None:
    adapter = LabelAdapter(ANIMALS)
    segment = adapter.encode(["bird", "dog", 1])
    assert segment.values.tolist() == [[2], [0], [1]]
    assert adapter.decode(segment) == ["bird", "dog", "cat"]
    assert adapter.element == {"kind": "discrete", "vocab_size": 3}


def test_a_name_in_digits_is_a_name_first() -> None:
    assert LabelAdapter(["1", "0"]).encode(["1", 1]).values.tolist() == [[0], [1]]


def test_the_only_class_need_not_be_told() -> None:
    assert LabelAdapter(1).encode().values.tolist() == [[0]]
    with pytest.raises(ValueError, match=re.escape("label is missing; this adapter knows the classes 0..1")):
        LabelAdapter(2).encode(None)


@pytest.mark.parametrize("label", [12, -1, 10, True, 3.0, "12", "-1", None, [3]])
def test_a_label_that_is_no_number_of_a_class(label: Any) -> None:
    sentence = f"label is {label!r}; this adapter knows the classes 0..9"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        LabelAdapter(10).encode([label])


def test_a_name_that_is_no_class() -> None:
    named = LabelAdapter(ANIMALS, modality="animal")
    sentence = "animal is 'brid'; this adapter knows the classes 0 'dog', 1 'cat', 2 'bird'; did you mean 'bird'?"
    with pytest.raises(ValueError, match=f"^{re.escape(sentence)}$"):
        named.encode("brid")
    with pytest.raises(ValueError, match=r"^animal is 3; .* 2 'bird'$"):
        named.encode(3)


def test_of_many_names_some_are_listed() -> None:
    with pytest.raises(ValueError, match=r"classes 0 'c0', .*, 9 'c9' and 990 more, up to 999; did you mean 'c77'\?"):
        LabelAdapter([f"c{number}" for number in range(1000)]).encode("c 77")


def test_decode_rejects_what_is_no_class() -> None:
    segment = Segment("label", torch.tensor([[4]]), grid=(1, 1, 1), target=False)
    with pytest.raises(ValueError, match=r"label is 4; this adapter knows the classes 0\.\.2"):
        LabelAdapter(3).decode(segment)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (0, "classes is 0: "),
        (True, "classes is True: "),
        (2.0, "classes"),
        ([], "classes is "),
        (["a", "b", "a"], "the name 'a' comes twice"),
        ([1, 2], "classes"),
    ],
)
def test_classes_that_are_none(classes: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoAdapter.from_config({"kind": "label", "classes": classes})


def test_an_empty_list() -> None:
    with pytest.raises(ValueError, match="the list of labels is empty"):
        LabelAdapter(3).encode([])


@pytest.mark.parametrize("classes", [10, ANIMALS])
def test_storage(tmp_path: Path, classes: Any) -> None:
    LabelAdapter(classes, modality="kind_of").save_pretrained(tmp_path)
    loaded = LabelAdapter.from_pretrained(tmp_path)
    assert loaded.options.classes == classes
    assert loaded.modality == "kind_of"
    json.dumps(loaded.config())


def test_labels_have_no_file() -> None:
    with pytest.raises(ValueError, match="LabelAdapter of 'label' writes no files"):
        LabelAdapter(3).save([1], "label.txt")
