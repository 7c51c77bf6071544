"""Models on the Hub whose body is elsewhere, and those who have not this package."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import AutoPeftModel, PeftModel
from safetensors.torch import load as read
from torch import Tensor
from transformers import AutoModel

from tests import hub_server
from tests.hub_server import HubServer, fresh
from tests.test_forecasting import make, waves
from tests.test_hub import _image_model
from tests.test_peft import _adapted, _plain, _source
from tests.test_trained_part import _losses
from unimodal_ar import UnimodalARForGeneration, lora, pipelines
from unimodal_ar.body_source import own_source
from unimodal_ar.cli import main
from unimodal_ar.hub import pull, push
from unimodal_ar.places import CARD
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


@pytest.mark.parametrize("own", [False, True])
def test_the_base_of_layers_is_named_when_they_are_pushed(hub: HubServer, tmp_path: Path, own: bool) -> None:
    """As a user does who has trained both here: first the base, then the layers over it."""
    source = tmp_path / "body"
    if own:
        _plain(_source(tmp_path / "transformers", "llama")).save_pretrained(source, include_backbone=True)
        push(source, "me/base")
        model = load_model(source)
        model.config.backbone_source = own_source(source, model.backbone.model)
        model.config.freeze_backbone = True
        model.backbone.freeze_unused()
    else:
        model = _plain(_source(source, "llama"))
        hub.put("me/base", {file.name: file.read_bytes() for file in source.iterdir()})
    _adapted(model, "lora")
    model.save_pretrained(tmp_path / "model")
    for wrong, legal in ((str(source), "must be an id on the Hub"), ("me/other", "on the Hub|be loaded")):
        with pytest.raises(ValueError, match=legal):
            push(tmp_path / "model", "me/layers", base=wrong)
    _source(tmp_path / "other", "llama", seed=1)
    hub.put("me/other", {file.name: file.read_bytes() for file in (tmp_path / "other").iterdir()})
    if not own:
        with pytest.raises(ValueError, match=r"^base is 'me/other', .* works with no other body"):
            push(tmp_path / "model", "me/layers", base="me/other")
    else:
        push(_image_model(tmp_path / "small"), "me/small")
        with pytest.raises(ValueError, match=r"^base is 'me/small', .*\(its weights have other names or shapes\)"):
            push(tmp_path / "model", "me/layers", base="me/small")
    assert "me/layers" not in hub.repositories
    assert main(["push", str(tmp_path / "model"), "me/layers", "--base", "me/base"]) == 0
    expected = _losses(model)
    written = json.loads(hub.files("me/layers")["config.json"])["backbone_source"]
    assert written["name_or_path"] == "me/base" and written["own"] == own
    assert written["revision"] == hub.repositories["me/base"].branches["main"]
    _without(hub, tmp_path)
    torch.testing.assert_close(_losses(load_model("me/layers")), expected)
    with pytest.raises(ValueError, match=r"base is 'me/base', and the model in .* refers to no frozen body"):
        push(_image_model(tmp_path / "alone"), "me/alone", base="me/base")


def test_a_shared_model_reads_no_body_in_a_folder_of_this_machine(hub: HubServer, tmp_path: Path) -> None:
    model = _plain(_source(tmp_path / "body", "llama"))
    model.save_pretrained(tmp_path / "model")
    hub.put("you/around", {file.name: file.read_bytes() for file in (tmp_path / "model").iterdir()})
    with pytest.raises(
        ValueError, match=r"which is from the Hub, is '.*/body', a place on this machine; pass as backbone"
    ):
        load_model("you/around")
    torch.testing.assert_close(_losses(load_model("you/around", backbone=tmp_path / "body")), _losses(model))
    config = json.loads(hub.files("you/around")["config.json"])
    config["backbone_source"] |= {"name_or_path": "package:peft", "subfolder": "../../models"}
    hub.put("you/around", hub.files("you/around") | {"config.json": json.dumps(config).encode()}, message="again")
    with pytest.raises(
        ValueError, match=r"^backbone_source.subfolder in .* is '../../models', a place on this machine"
    ):
        load_model("you/around")


def test_a_body_of_ones_own_kind_is_found_on_the_hub(hub: HubServer, tmp_path: Path) -> None:
    """That of a model of this package, which layers of PEFT were trained over (a recipe's init_from)."""
    push(_image_model(tmp_path / "model"), "me/grey")
    base = load_model("me/grey")
    source = own_source("me/grey", base.backbone.model)
    assert source["name_or_path"] == "me/grey"
    assert source["revision"] == hub.repositories["me/grey"].branches["main"]
    base.requires_grad_(False)
    base.config.freeze_backbone = True
    base.refer_to(source)
    base.push_to_hub("me/around")
    assert not any("backbone.model" in name for name in read(hub.files("me/around")["model.safetensors"]))
    _without(hub, tmp_path)
    found = load_model("me/around").state_dict()
    assert all(torch.equal(x, found[name]) for name, x in base.state_dict().items())


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
    assert names == {"config.json", "generation_config.json", lora.CONFIG, lora.WEIGHTS, STUB, CARD}
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

CHILD = """
import sys, numpy as np, torch
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "unimodal_ar":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
hidden = Hidden()
sys.meta_path.insert(0, hidden)
from transformers import AutoConfig, AutoModel
for auto in (AutoConfig, AutoModel):
    try:
        auto.from_pretrained("me/grey", trust_remote_code=True)
    except ImportError as error:
        print(error)
sys.meta_path.remove(hidden)

model = AutoModel.from_pretrained("me/grey", trust_remote_code=True)
assert type(model).__module__ == "unimodal_ar.modeling"
model.save_pretrained("saved")
from unimodal_ar import pipelines
for place in ("saved", "me/grey"):
    again = AutoModel.from_pretrained(place)
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())

found = pipelines.load("me/waves", revision="trained").predict([np.load("series.npy")], 9, num_samples=3)
np.save("found.npy", found.samples)
"""


def test_a_fresh_process_with_an_empty_cache(hub: HubServer, tmp_path: Path) -> None:
    """Without the package it is told how to get it; with it the flag changes nothing, and forecasts are the same."""
    push(_image_model(tmp_path / "model"), "me/grey")
    source = make()
    source.push_to_hub("me/waves", revision="trained")
    np.save(tmp_path / "series.npy", waves(20)[0])
    home = Path(__file__).resolve().parents[1]
    environment = fresh(hub, tmp_path / "home", PYTHONPATH=str(home), OMP_NUM_THREADS="1")
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["this model needs the package unimodal_ar: pip install unimodal-ar"] * 2
    assert {file.suffix for file in (tmp_path / "saved").iterdir()} == {".json", ".safetensors"}
    assert "auto_map" not in (tmp_path / "saved" / "config.json").read_text()
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), source.predict(waves(20), 9, num_samples=3).samples)
    with pytest.raises(ValueError, match="must be a model of this package"):  # nothing but what the Hub put there
        pipelines.load("me/waves")
