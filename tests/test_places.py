"""Pretrained models in folders, on the Hub, and inside installed packages."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaModel

from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.places import folder_of

SERIES: dict[str, Any] = {
    "series": {"element": {"kind": "continuous", "dim": 4}, "grid": (3, 1, 1), "head": {"kind": "regression"}}
}


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The place of an installed package that cannot be imported, but holds a language model."""
    folder = tmp_path / "site" / "some_llm"
    size: dict[str, Any] = dict(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=8
    )
    LlamaModel(LlamaConfig(**size)).save_pretrained(folder)
    (folder / "__init__.py").write_text("import what_this_package_needs_and_is_not_there\n")
    monkeypatch.syspath_prepend(str(folder.parent))
    return "package:some_llm"


def test_folders_and_ids_are_left_alone(tmp_path: Path) -> None:
    assert folder_of("owner/name") == "owner/name" and folder_of(tmp_path) == str(tmp_path)


def test_a_package_s_folder_is_found_without_importing_it(package: str, tmp_path: Path) -> None:
    assert Path(folder_of(package)) == tmp_path / "site" / "some_llm"
    assert "some_llm" not in sys.modules


@pytest.mark.parametrize(
    "name", ["no_such_package", "no such package", "", "a.b", "../x", "some-llm", "sys", "this", "__main__"]
)
def test_what_is_no_package_is_an_error(name: str) -> None:
    """Nor are modules without a folder of their own: that of `sys` would be the working directory."""
    with pytest.raises(ValueError, match=r"'package:.*' is no installed package; name .* install it .* or give"):
        folder_of(f"package:{name}")


def test_a_checkpoint_names_the_package_and_not_its_folder(package: str, tmp_path: Path) -> None:
    """So that it loads on another machine, where packages lie elsewhere."""
    model = UnimodalARForGeneration.from_backbone(package, SERIES, freeze=True)
    assert model.config.backbone_source["name_or_path"] == package
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()
    again = UnimodalARForGeneration.from_pretrained(tmp_path / "model")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
