"""Models on the Hub whose body is elsewhere, and those who have not this package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, PeftModel
from torch import Tensor
from transformers import AutoModel

from tests import hub_server
from tests.hub_server import HubServer, fresh
from tests.test_hub import _image_model
from tests.test_peft import _adapted, _plain, _source
from tests.test_trained_part import _losses
from unimodal_ar import UnimodalARForGeneration, lora
from unimodal_ar.hub import pull, push
from unimodal_ar.saving import load_model
from unimodal_ar.sharing import STUB

hub = hub_server.hub  # a fixture


def _base(hub: HubServer, folder: Path) -> str:
    """A pretrained body on the Hub."""
    _source(folder, "llama")
    hub.put("labs/body", {file.name: file.read_bytes() for file in folder.iterdir()})
    return "labs/body"


def _without(hub: HubServer, tmp_path: Path) -> None:
    """As on another machine."""
    for folder in ("cache", "model", "body"):
        shutil.rmtree(tmp_path / folder, ignore_errors=True)


def test_a_frozen_body_of_the_hub_is_found_from_there(hub: HubServer, tmp_path: Path) -> None:
    model = _plain(_base(hub, tmp_path / "body"))  # type: ignore[arg-type]
    model.save_pretrained(tmp_path / "model")
    push(tmp_path / "model", "me/around")
    commit = hub.repositories["labs/body"].branches["main"]
    assert json.loads(hub.files("me/around")["config.json"])["backbone_source"]["revision"] == commit
    expected = _losses(model)
    _without(hub, tmp_path)
    for load in (UnimodalARForGeneration.from_pretrained, load_model, AutoModel.from_pretrained):
        torch.testing.assert_close(_losses(load("me/around").eval()), expected)
    _source(tmp_path / "other", "llama", seed=1)
    hub.put("labs/body", {file.name: file.read_bytes() for file in (tmp_path / "other").iterdir()})
    _without(hub, tmp_path)
    torch.testing.assert_close(_losses(load_model("me/around")), expected)


def test_a_body_in_a_folder_is_pushed_with_the_model_or_not_at_all(hub: HubServer, tmp_path: Path) -> None:
    model = _plain(_source(tmp_path / "body", "llama"))
    model.save_pretrained(tmp_path / "model")
    match = r"backbone_source.name_or_path of .* is '.*/body', a folder of this machine, where nobody else finds .*"
    for refused in (lambda: push(tmp_path / "model", "me/around"), lambda: model.push_to_hub("me/around")):
        with pytest.raises(ValueError, match=match + "include_backbone=True"):
            refused()
    assert not hub.requests
    model.push_to_hub("me/around", include_backbone=True)
    expected = _losses(model)
    _without(hub, tmp_path)
    torch.testing.assert_close(_losses(load_model("me/around")), expected)


def test_a_shared_model_reads_no_body_in_a_folder_of_this_machine(hub: HubServer, tmp_path: Path) -> None:
    model = _plain(_source(tmp_path / "body", "llama"))
    model.save_pretrained(tmp_path / "model")
    hub.put("you/around", {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()})
    with pytest.raises(ValueError, match=r"which is from the Hub, is '.*/body', a folder; pass as backbone where"):
        load_model("you/around")
    torch.testing.assert_close(_losses(load_model("you/around", backbone=tmp_path / "body")), _losses(model))


def _peft(place: Any, base: Any) -> dict[str, Tensor]:
    """Losses by all ways to load a model with layers."""
    return {
        "ours": _losses(UnimodalARForGeneration.from_pretrained(place).eval()),
        "load_model": _losses(load_model(place)),
        "AutoModel": _losses(AutoModel.from_pretrained(place).eval()),
        "PeftModel": _losses(PeftModel.from_pretrained(base, place).eval()),
        "AutoPeftModel": _losses(AutoPeftModel.from_pretrained(place, import_allowlist=["unimodal_ar"]).eval()),
    }


def test_layers_are_a_small_repository_of_their_own(hub: HubServer, tmp_path: Path) -> None:
    plain = _plain(_base(hub, tmp_path / "body"))  # type: ignore[arg-type]
    model = _adapted(plain)
    model.save_pretrained(tmp_path / "model")
    push(tmp_path / "model", "me/layers")
    expected = _losses(model)
    names = set(hub.files("me/layers")) - {".gitattributes"}
    assert names == {"config.json", "generation_config.json", lora.CONFIG, lora.WEIGHTS, STUB}
    settings = json.loads(hub.files("me/layers")[lora.CONFIG])
    assert settings["base_model_name_or_path"] == "me/layers"
    source = json.loads(hub.files("me/layers")["config.json"])["backbone_source"]
    assert (source["name_or_path"], len(source["fingerprint"])) == ("labs/body", 64)
    assert source["revision"] == hub.repositories["labs/body"].branches["main"]
    _without(hub, tmp_path)
    out = pull("me/layers", tmp_path / "pulled")
    for place in ("me/layers", str(out)):
        for way, found in _peft(place, lora.WithoutLayers.from_pretrained(place)).items():
            torch.testing.assert_close(found, expected, msg=f"{way} of {place}")
    assert json.loads((out / lora.CONFIG).read_text())["base_model_name_or_path"] == str(out)


def test_layers_on_a_branch_name_it_as_their_base(hub: HubServer, tmp_path: Path) -> None:
    model = _adapted(_plain(_base(hub, tmp_path / "body")))  # type: ignore[arg-type]
    model.push_to_hub("me/layers", revision="dev")
    loaded = AutoPeftModel.from_pretrained("me/layers", revision="dev", import_allowlist=["unimodal_ar"]).eval()
    torch.testing.assert_close(_losses(loaded), _losses(model))
    torch.testing.assert_close(
        _losses(UnimodalARForGeneration.from_pretrained("me/layers", revision="dev").eval()), _losses(model)
    )


# --- who has the package, and who has not -----------------------------------------------------------------------------

WITHOUT = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unimodal_ar":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Hidden())
from transformers import AutoConfig, AutoModel
for auto in (AutoConfig, AutoModel):
    try:
        auto.from_pretrained("me/grey", trust_remote_code=True)
    except ImportError as error:
        print(error)
"""
WITH = """
import sys, torch
from transformers import AutoModel
model = AutoModel.from_pretrained("me/grey", trust_remote_code=True)
assert type(model).__module__ == "unimodal_ar.modeling"
model.save_pretrained(sys.argv[1])
import unimodal_ar
again = AutoModel.from_pretrained(sys.argv[1])
assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
again = AutoModel.from_pretrained("me/grey")
assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
"""


def _child(code: str, hub: HubServer, tmp_path: Path, *arguments: str, **more: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    environment = fresh(hub, tmp_path / "home", OMP_NUM_THREADS="1", **more)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_those_without_the_package_are_told_how_to_get_it(hub: HubServer, tmp_path: Path) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    told = _child(WITHOUT, hub, tmp_path).splitlines()
    assert told == ["this model needs the package unimodal_ar: pip install unimodal-ar"] * 2


def test_with_the_package_the_flag_changes_nothing(hub: HubServer, tmp_path: Path) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    _child(WITH, hub, tmp_path, str(tmp_path / "saved"))
    assert {file.suffix for file in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()
