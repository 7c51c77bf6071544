"""Training on some classes of images: which images are used, where they are, and what labels they have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_training_images import CLASSES, EACH, _adapters, _data, _folder
from unimodal_ar.adapters import ImageAdapter, LabelAdapter
from unimodal_ar.cli import main
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.evaluate import evaluate
from unimodal_ar.training.images import ImageData, ImageOptions

PARTS = ("train", "validation", "test")


def _rows(data: ImageData) -> dict[str, list[int]]:
    return {name: getattr(data, name)().rows for name in PARTS}


@pytest.mark.parametrize("classes", [["bee"], ["cat", "ant"], ["cat", "bee", "ant"]])
def test_images_stay_in_their_parts_with_their_labels(classes: list[str], tmp_path: Path) -> None:
    _folder(tmp_path)
    whole, some = _data(tmp_path), _data(tmp_path, classes=classes)
    labels = whole.train().images.labels
    assert labels is not None
    wanted = {CLASSES.index(name) for name in classes}
    rows = {name: [row for row in found if int(labels[row]) in wanted] for name, found in _rows(whole).items()}
    assert _rows(some) == rows and sum(map(len, rows.values())) == EACH * len(classes)
    for name in PARTS:
        part = getattr(some, name)()
        assert torch.equal(part.labels, labels[rows[name]]) and set(part.labels.tolist()) == wanted
        assert (part.pixels[:, 0, 0, 0] == 100 + part.labels).all()  # the pictures' own label
    batch = some.train().collate([some.train()[0], some.train()[1]])["segments"]
    assert batch[0].modality == "label" and set(batch[0].values.flatten().tolist()) <= wanted


def test_numbers_name_digits() -> None:
    """As YAML has them, or as text; a palette, too, is of the chosen images."""
    adapters: dict[str, Any] = {"label": LabelAdapter(10), "image": ImageAdapter(size=8, channels=1)}
    counts = []
    for digit in (9, "9"):
        data = ImageData(ImageOptions(dataset="digits", classes=[digit]), adapters)
        assert set(data.train().labels.tolist()) == {9}  # type: ignore[union-attr]
        counts.append({name: len(getattr(data, name)()) for name in PARTS})
    assert counts[0] == counts[1] and sum(counts[0].values()) == 180
    both = ImageData(ImageOptions(dataset="digits", classes=list(range(9))), adapters)
    assert sum(len(getattr(both, name)()) for name in PARTS) == 1797 - 180


def test_a_test_part_of_its_own_is_of_these_classes(tmp_path: Path) -> None:
    _folder(tmp_path / "train")
    _folder(tmp_path / "test", CLASSES[1:], each=3)
    data = _data(tmp_path / "train", test=None, test_path=str(tmp_path / "test"), classes=["cat"])
    labels = data.test().labels
    assert labels is not None and labels.tolist() == [2, 2, 2]


def test_classes_that_cannot_be(tmp_path: Path) -> None:
    _folder(tmp_path)
    with pytest.raises(ValueError, match=r"data.classes has 'dog'; the classes of .* are \['ant', 'bee', 'cat'\]"):
        _data(tmp_path, classes=["ant", "dog"]).train()
    with pytest.raises(ValueError, match="classes chooses by label, so label must name a label adapter"):
        _data(tmp_path, _adapters(label=False), label=None, classes=["ant"])
    with pytest.raises(ValueError, match=r"0 of validation, all of the classes \['ant'\]; training and validation"):
        _data(tmp_path, classes=["ant"], validation=1, seed=2).train()


def test_a_new_class_is_learned_by_layers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe at toy size: likelier images of the class, and a folder that draws them."""
    toy = [
        "model.backbone.hidden_size=16",
        "model.backbone.num_hidden_layers=1",
        "model.backbone.num_attention_heads=2",
    ]
    toy += ["training.max_steps=12", "training.learning_rate=0.01", "training.use_cpu=true", "early_stopping=0"]
    toy += ["training.eval_strategy=no", "training.save_strategy=no", "training.load_best_model_at_end=false"]
    toy += ["training.per_device_train_batch_size=8", "training.disable_tqdm=true", "evaluation.samples=10"]
    base = [*toy, "data.classes=[0,1]", f"output_dir={tmp_path / 'base'}", "evaluation.samples=0"]
    assert train(load_recipe("next_token/digits", base)) is not None
    before = evaluate(tmp_path / "base", ["data.classes=[9]"])
    places = [f"init_from={tmp_path / 'base'}", f"output_dir={tmp_path / 'run'}"]
    assert train(load_recipe("peft/lora_digits_new_class", [*toy, *places, "training.max_steps=30"])) is not None
    assert "Layers of LoRA in 7 maps of the backbone" in capsys.readouterr().out
    after = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert after["test_images"] == before["test_images"] == 18
    assert after["bits_per_dimension"] < before["bits_per_dimension"] - 0.02
    out = tmp_path / "nine.png"
    words = [
        "sample",
        "--model",
        str(tmp_path / "run"),
        "--context",
        "label=9",
        "--n",
        "1",
        "--out",
        str(out),
    ]
    assert main(words) == 0 and out.exists()
