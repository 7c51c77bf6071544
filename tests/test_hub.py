"""Models go to the Hub and come back: huggingface_hub itself, against a Hub on this machine."""

from __future__ import annotations

import json
import shutil
import socket
import time
from pathlib import Path
from typing import Any

import huggingface_hub.hf_api
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoConfig, AutoModel

from tests import hub_server
from tests.helpers import build, perturb
from tests.hub_server import HubServer
from tests.test_pipelines import generator
from unimodal_ar import Forecaster, UnimodalARForGeneration, pipelines, saving
from unimodal_ar.adapters import AutoAdapter, ImageAdapter, LabelAdapter, load_adapters
from unimodal_ar.adapters.tokenizers import load_tokenizer
from unimodal_ar.cli import main
from unimodal_ar.hub import pull, push
from unimodal_ar.pipelines import Generator
from unimodal_ar.places import model_folder
from unimodal_ar.sharing import STUB

hub = hub_server.hub  # a fixture
OURS = {"config.json", "generation_config.json", "model.safetensors", "processor_config.json", STUB}


def _image_model(folder: Path, **saving: Any) -> Path:
    source = generator()
    source.model.save_pretrained(folder, **saving)
    for adapter in source.adapters.values():
        adapter.save_pretrained(folder)
    (folder / "recipe.yaml").write_text("data: {kind: images, path: photos}\n")
    (folder / "README.md").write_text("# Grey levels\n")
    return folder


def _names(hub: HubServer, repo_id: str, revision: str = "main") -> set[str]:
    return set(hub.files(repo_id, revision)) - {".gitattributes"}


def _codes(source: Any, **drawing: Any) -> Any:
    return source.generate(n=3, label=1, seed=4, **drawing).segment.values


def test_a_model_is_pushed_in_one_commit_without_what_else_lies_there(hub: HubServer, tmp_path: Path) -> None:
    folder = _image_model(tmp_path / "model")
    for name in ("checkpoint-3/model.safetensors", "secrets.env", "optimizer.pt", "evil.py", "notes/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"private")
    where = push(folder, "me/grey", commit_message="Grey levels, trained")
    repository = hub.repositories["me/grey"]
    assert _names(hub, "me/grey") == OURS | {"recipe.yaml", "README.md"}
    assert repository.messages == ["initial commit", "Grey levels, trained"] and not repository.private
    assert where == f"{hub.endpoint}/me/grey/commit/{repository.branches['main']}"
    assert hub.files("me/grey")["model.safetensors"] == (folder / "model.safetensors").read_bytes()
    assert not (folder / STUB).exists() and "auto_map" not in (folder / "config.json").read_text()


def test_what_was_pushed_is_loaded_by_its_id(hub: HubServer, tmp_path: Path) -> None:
    """In shards; the tests of revisions and of the command line have one file."""
    folder = _image_model(tmp_path / "model", max_shard_size="30KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    push(folder, "me/grey")
    shutil.rmtree(folder)
    expected = _codes(generator())
    loaded = pipelines.load("me/grey")
    assert isinstance(loaded, Generator) and torch.equal(_codes(loaded), expected)
    assert torch.equal(_codes(Generator.from_pretrained("me/grey")), expected)
    assert torch.equal(pipelines.generate("me/grey", 3, label=1, seed=4).segment.values, expected)
    model = generator().model
    for found in (UnimodalARForGeneration.from_pretrained("me/grey"), AutoModel.from_pretrained("me/grey")):
        assert all(torch.equal(x, found.state_dict()[name]) for name, x in model.state_dict().items())
    assert AutoConfig.from_pretrained("me/grey").modalities == model.config.modalities
    assert isinstance(LabelAdapter.from_pretrained("me/grey"), LabelAdapter)
    assert isinstance(AutoAdapter.from_pretrained("me/grey", "image"), ImageAdapter)


def test_whoever_wants_adapters_only_downloads_no_weights(hub: HubServer, tmp_path: Path) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    assert set(load_adapters("me/grey")) == {"label", "image"}
    assert not any("resolve" in asked and "safetensors" in asked for asked in hub.requests)
    match = "^'me/grey' is no folder here, and (in|not in) the cache of the Hub(,| without its weights;)"
    with pytest.raises(ValueError, match=match):  # huggingface_hub 1 tells no whole snapshot from one in part
        pipelines.load("me/grey", local_files_only=True)


def test_a_revision_is_a_branch_or_a_commit(hub: HubServer, tmp_path: Path) -> None:
    folder = _image_model(tmp_path / "model")
    push(folder, "me/grey")
    first = hub.repositories["me/grey"].branches["main"]
    model = generator()
    perturb(model.model.heads, 1.0)
    model.model.save_pretrained(folder)
    push(folder, "me/grey", revision="louder")
    old, new = _codes(generator()), _codes(model)
    assert not torch.equal(old, new)
    for revision, expected in ((None, old), ("main", old), (first, old), ("louder", new)):
        assert torch.equal(_codes(pipelines.load("me/grey", revision=revision)), expected)
        found = UnimodalARForGeneration.from_pretrained("me/grey", revision=revision)
        assert torch.equal(_codes(Generator(found, model.adapters)), expected)
    with pytest.raises(ValueError, match=r"^revision is 'nowhere', which 'me/grey' on the Hub does not have; name a"):
        pipelines.load("me/grey", revision="nowhere")
    with pytest.raises(ValueError, match=r"revision is 'main' and .*model' is a folder; only an id on the Hub has"):
        pipelines.load(folder, revision="main")


def test_what_a_model_left_behind_is_taken_out(hub: HubServer, tmp_path: Path) -> None:
    push(_image_model(tmp_path / "first", max_shard_size="30KB"), "me/grey")
    hub.put("me/grey", hub.files("me/grey") | {"image_tokenizer/config.json": b"{}", "paper.pdf": b"own"})
    assert "model.safetensors.index.json" in _names(hub, "me/grey")
    push(_image_model(tmp_path / "second"), "me/grey")
    assert _names(hub, "me/grey") == OURS | {"recipe.yaml", "README.md", "paper.pdf"}


def test_the_objects_bring_recipe_and_card_along(hub: HubServer, tmp_path: Path) -> None:
    Generator.from_pretrained(_image_model(tmp_path / "model")).push_to_hub("me/grey", private=True)
    assert hub.repositories["me/grey"].private
    assert _names(hub, "me/grey") == OURS | {"recipe.yaml", "README.md"}
    assert torch.equal(_codes(pipelines.load("me/grey")), _codes(generator()))


def test_the_models_own_push_leaves_the_rest_of_a_repository(hub: HubServer, tmp_path: Path) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    model = generator().model
    model.push_to_hub("me/grey", max_shard_size="30KB")
    names = _names(hub, "me/grey")
    assert names > {"model.safetensors.index.json", "recipe.yaml", "processor_config.json", STUB}
    assert "model.safetensors" not in names
    assert torch.equal(_codes(pipelines.load("me/grey")), _codes(generator()))
    with pytest.raises(ValueError, match="push_to_hub is True; save_pretrained only saves"):
        model.save_pretrained(tmp_path / "other", push_to_hub=True, repo_id="me/other")


def test_a_tokenizer_goes_along(hub: HubServer, tmp_path: Path) -> None:
    from tests.test_image_tokenizers import tiny

    adapter = ImageAdapter(16, tokenizer=tiny())
    modality = {"element": adapter.element, "grid": adapter.grid, "head": {"kind": "regression"}}
    model = build({"image": modality})
    Generator(model, [adapter]).save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "image_tokenizer" / "weights.bin").write_bytes(b"pickle")
    push(tmp_path / "model", "me/latents")
    assert {name for name in _names(hub, "me/latents") if "/" in name} == {
        "image_tokenizer/config.json",
        "image_tokenizer/diffusion_pytorch_model.safetensors",
    }
    loaded = pipelines.load("me/latents")
    expected = Generator(model, [adapter]).generate(n=1, seed=1).segment.values
    torch.testing.assert_close(loaded.generate(n=1, seed=1).segment.values, expected, rtol=1e-3, atol=1e-3)
    found = loaded.adapters["image"].modules[0].model.state_dict()
    assert all(torch.equal(x, found[name]) for name, x in adapter.modules[0].model.state_dict().items())
    pull("me/latents", tmp_path / "pulled")
    shutil.rmtree(tmp_path / "cache")
    found = pipelines.load(tmp_path / "pulled").generate(n=1, seed=1).segment.values
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_what_is_in_the_cache_is_loaded_without_the_hub(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    readings: list[dict[str, Any]] = [{"local_files_only": True}, {}]
    for reading in readings:
        if not reading:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ValueError, match=r"^'me/grey' is no folder here, and not in the cache of the Hub, nor to"):
            Forecaster.from_pretrained("me/grey", **reading)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    _codes(pipelines.load("me/grey"))
    asked = len(hub.requests)
    expected = _codes(generator())
    assert torch.equal(_codes(pipelines.load("me/grey", local_files_only=True)), expected)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(_codes(pipelines.load("me/grey")), expected)
    UnimodalARForGeneration.from_pretrained("me/grey")
    assert len(hub.requests) == asked
    with pytest.raises(ValueError, match="not in the cache of the Hub, nor to be downloaded"):
        pipelines.load("me/grey", cache_dir=tmp_path / "elsewhere")


def test_a_cache_of_ones_own_and_a_forced_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    folder = model_folder("me/grey", cache_dir=tmp_path / "elsewhere")
    assert folder.is_relative_to(tmp_path / "elsewhere") and not (tmp_path / "cache").exists()
    weights = "GET /me/grey/resolve/" + hub.repositories["me/grey"].branches["main"] + "/model.safetensors"
    assert hub.requests.count(weights) == 1
    for forced, count in ((False, 1), (True, 2)):
        model_folder("me/grey", cache_dir=tmp_path / "elsewhere", force_download=forced)
        assert hub.requests.count(weights) == count
    with pytest.raises(ValueError, match=r"^force_download is True and local_files_only, too"):
        model_folder("me/grey", cache_dir=tmp_path / "elsewhere", force_download=True, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"^the exchange with the Hub about 'me/grey' failed \(.*offline"):
        model_folder("me/grey", cache_dir=tmp_path / "elsewhere", force_download=True)


@pytest.mark.parametrize("silent", [True, False], ids=["silent", "closed"])
def test_a_hub_that_cannot_be_reached_is_waited_for_shortly(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, silent: bool
) -> None:
    """And what is in the cache is loaded; `runs/digits` may be a folder that is misspelt."""
    folder = _image_model(tmp_path / "model")
    push(folder, "me/grey")
    model_folder("me/grey")
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        if not silent:
            server.close()
        monkeypatch.setattr(constants, "ENDPOINT", endpoint)
        monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.2)
        begin = time.monotonic()
        assert torch.equal(_codes(pipelines.load("me/grey")), _codes(generator()))
        for name, revision in (("runs/digits", None), ("me/grey", "dev")):
            with pytest.raises(
                ValueError, match=rf"^'{name}' is no folder here, and not in the cache of the Hub.*, nor"
            ):
                UnimodalARForGeneration.from_pretrained(name, revision=revision)
        with pytest.raises(
            ValueError, match=r"^tokenizer 'runs/vq': 'runs/vq' is no folder here, and not in the cache"
        ):
            load_tokenizer("runs/vq")
        assert time.monotonic() - begin < 20
    if not silent:
        with pytest.raises(ValueError, match=r"^the exchange with the Hub about 'me/grey' failed \(.*refused"):
            push(folder, "me/grey")


def test_who_answers_in_place_of_the_hub_is_told_apart(hub: HubServer, tmp_path: Path) -> None:
    folder = _image_model(tmp_path / "model")
    push(folder, "me/grey")
    model_folder("me/grey")
    hub.portal = True
    assert torch.equal(_codes(pipelines.load("me/grey")), _codes(generator()))
    with pytest.raises(ValueError, match=r"^'runs/digits' is no folder here, and not in the cache of the Hub.*, nor"):
        pipelines.load("runs/digits")
    with pytest.raises(ValueError, match=r"^the exchange with the Hub about 'me/grey' failed"):
        push(folder, "me/grey")


def test_what_a_pull_that_was_killed_left_is_replaced(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    out = tmp_path / "pulled"

    def killed(source: Any, place: Any) -> None:
        if Path(place).name == "config.json":
            raise KeyboardInterrupt
        shutil.move(source, place)

    with monkeypatch.context() as dying:
        dying.setattr("unimodal_ar.saving.os.replace", killed)
        dying.setattr("unimodal_ar.saving.shutil.rmtree", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            pull("me/grey", out)
    assert list(out.glob(".partial-*")) and (out / "README.md").exists() and not (out / "config.json").exists()
    asked = len(hub.requests)
    with pytest.raises(ValueError, match="which is no part of a model there but would be replaced"):
        pull("me/grey", out)
    assert len(hub.requests) == asked, "what cannot be written is not downloaded"
    pull("me/grey", out, overwrite=True)
    assert not list(out.glob(".partial-*"))
    assert torch.equal(_codes(pipelines.load(out)), _codes(generator()))
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(saving, "_remove", lambda file: (file.unlink(), file.unlink()))  # as another pull does
        with pytest.raises(
            ValueError, match=r"^out is '.*/pulled', from which something took '.*' meanwhile; pull again"
        ):
            pull("me/grey", out, overwrite=True)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_who_may_see_what(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _image_model(tmp_path / "model")
    push(folder, "me/grey", private=True)
    for token, status in (("hf_of_you", 404), (False, 401)):
        with pytest.raises(ValueError, match=rf"^'me/grey' is no folder here, and no model on the Hub .*\({status}\);"):
            pipelines.load("me/grey", token=token)
    assert isinstance(pipelines.load("me/grey", token="hf_of_me"), Generator)
    with pytest.raises(
        ValueError, match=r"^'me/none' is no folder here, and no model .* \(404\); check the id, or log"
    ):
        model_folder("me/none")
    hub.repositories["me/grey"].private, hub.repositories["me/grey"].gated = False, True
    with pytest.raises(
        ValueError, match=r"^'me/grey' is no folder here, and gated on the Hub; accept its terms on its"
    ):
        model_folder("me/grey", token="hf_of_you", cache_dir=tmp_path / "empty")
    with pytest.raises(ValueError, match=r"^the Hub answered 403 about 'me/grey' \(the token is missing, wrong or may"):
        push(folder, "me/grey", token="hf_of_you")
    with pytest.raises(ValueError, match=r"^the Hub answered 401 about 'me/other' \(the token is missing, wrong or"):
        push(folder, "me/other", token="hf_wrong")
    with pytest.raises(ValueError, match="private is True, and 'me/grey' is public on the Hub; change that in its"):
        push(folder, "me/grey", private=True)


@pytest.mark.parametrize("name", ["nowhere", "./me/grey", "/no/such", "me/grey/more", "me/gr ey", "~/model"])
def test_what_is_neither_folder_nor_id_asks_nobody(hub: HubServer, name: str) -> None:
    with pytest.raises(ValueError, match=f"^'{name}' is no folder; it must be one, or an id on the Hub, 'owner/name'"):
        pipelines.load(name)
    assert not hub.requests


def test_no_repository_is_made_for_what_is_no_model(hub: HubServer, tmp_path: Path) -> None:
    def refused(match: str, folder: Path, repo_id: str = "me/grey") -> None:
        with pytest.raises(ValueError, match=match):
            push(folder, repo_id)

    folder = _image_model(tmp_path / "model")
    refused("repo_id is 'grey'; it must be 'owner/name'", folder, "grey")
    assert not hub.requests
    refused("holds no config.json; it must be a model's folder", tmp_path)
    config, weights = folder / "config.json", folder / "model.safetensors"
    whole, data = config.read_text(), weights.read_bytes()
    config.write_text(whole.replace('"num_hidden_layers": 2', '"num_hidden_layers": 3'))
    refused(
        r"weights in '.*/model' do not fit its config.json: 'backbone\..*' has the shape None and should have", folder
    )
    config.write_text(whole.replace('"num_hidden_layers": 2', '"num_hidden_layer": 2'))
    refused("did you mean 'num_hidden_layers'", folder)
    config.write_text(whole)
    weights.write_bytes(data[:-10])
    refused(r"^'.*/model/model.safetensors' is no whole safetensors file \(", folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(r"holds no model.safetensors, and weights .* not read \(pytorch_model.bin may run code", folder)
    weights.write_bytes(data)
    processor = folder / "processor_config.json"
    adapters = json.loads(processor.read_text())
    adapters["adapters"]["image"]["elements"]["levels"] = 4
    processor.write_text(json.dumps(adapters))
    refused("modalities.image.element.vocab_size is 3; its adapter makes elements whose vocab_size is 4", folder)
    assert not hub.requests


# --- the command line -------------------------------------------------------------------------------------------------


def _run(arguments: list[Any], capsys: pytest.CaptureFixture[str], code: int = 0) -> str:
    assert main([str(argument) for argument in arguments]) == code
    told = capsys.readouterr()
    return told.err if code else told.out


def test_the_command_line_pushes_pulls_and_takes_ids(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = _image_model(tmp_path / "model")
    told = _run(["push", folder, "me/grey", "--private", "--revision", "dev", "--message", "mine"], capsys)
    assert "/me/grey/commit/" in told and hub.repositories["me/grey"].messages[-1] == "mine"
    drawing = ["--n", 2, "--context", "label=1", "--out"]
    _run(["sample", "--model", "me/grey", "--revision", "dev", *drawing, tmp_path / "a.png"], capsys)
    _run(["sample", "--model", folder, *drawing, tmp_path / "b.png"], capsys)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    out = tmp_path / "pulled"
    _run(["pull", "me/grey", "--out", out, "--revision", "dev"], capsys)
    assert {path.name for path in out.iterdir()} == (OURS - {STUB}) | {"recipe.yaml", "README.md"}
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    assert not any(path.is_symlink() for path in out.iterdir())
    assert "--out" in _run(["pull", "me/grey", "--out", out, "--revision", "dev"], capsys, 2)
    _run(["pull", "me/grey", "--out", out, "--revision", "dev", "--overwrite"], capsys)
    refused = _run(["pull", "me/grey", "--out", tmp_path / "x", "--revision", "no"], capsys, 2)
    assert refused.startswith("error: --revision is 'no', which 'me/grey' on the Hub does not have")
    assert not (tmp_path / "x").exists()
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "README.md").write_text("mine")
    assert "holds README.md, which is no part of a model there" in _run(
        ["pull", "me/grey", "--out", tmp_path / "own", "--revision", "dev"], capsys, 2
    )
    refused = _run(["sample", "--model", folder, "--revision", "dev", *drawing, tmp_path / "c.png"], capsys, 2)
    assert "--revision is 'dev' and --model a folder" in refused
    assert "--model is 'none', which holds no config.json; it must be" in _run(
        ["sample", "--model", "none", *drawing, tmp_path / "c.png"], capsys, 2
    )


def test_an_evaluation_reads_no_file_that_somebody_elses_recipe_names(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    push(_image_model(tmp_path / "model"), "me/grey")
    refused = _run(["evaluate", "me/grey"], capsys, 2)
    assert "data.path is 'photos' in the recipe of 'me/grey', which is from the Hub; say what is" in refused
    assert "data.path" not in _run(["evaluate", "me/grey", "--set", f"data.path={tmp_path}"], capsys, 2)
    # Nor of the places besides: a test part of its own, and the tables to transfer to.
    recipes = {
        "data.test_path": "data: {kind: images, path: photos, test_path: /etc}\n",
        "evaluation.transfer": "data: {dataset: null}\nevaluation: {transfer: [{name: a}, {path: /etc/passwd}]}\n",
    }
    for key, recipe in recipes.items():
        hub.put("me/grey", hub.files("me/grey") | {"recipe.yaml": recipe.encode()}, message=key)
        refused = _run(["evaluate", "me/grey", "--set", "data.dataset=mnist"], capsys, 2)
        assert f"{key} is '/etc" in refused and f"say what is meant by --set {key}=..." in refused
        assert "from the Hub" not in _run(
            ["evaluate", "me/grey", "--set", "data={}", "--set", f"{key}=null"], capsys, 2
        )
