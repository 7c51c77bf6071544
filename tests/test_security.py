"""What SECURITY.md promises: one test for each promise, and each would fail if it were broken."""

from __future__ import annotations

import ast
import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModel
from transformers.integrations import hub_kernels

from tests import hub_server, test_hub
from tests.hub_server import HubServer
from tests.test_hub import _codes, _image_model
from tests.test_package import MODULES
from tests.test_peft import _adapted, _plain
from tests.test_pipelines import generator
from tests.test_trained_part import _model, _source
from unimodal_ar import UnimodalARForGeneration, lora, pipelines, places
from unimodal_ar.adapters import load_adapters
from unimodal_ar.adapters.text_states import LanguageModel, TextStates
from unimodal_ar.hub import pull, push
from unimodal_ar.intact import leaves
from unimodal_ar.places import model_folder
from unimodal_ar.prompts import trained_with
from unimodal_ar.saving import load_model
from unimodal_ar.training.documents import load_recipe

hub = hub_server.hub  # a fixture
ROOT = Path(__file__).resolve().parents[1]


class Trap:
    """A pickle of it makes a file when it is read."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def theirs(hub: HubServer, tmp_path: Path) -> dict[str, bytes]:
    """The files of a whole model in shards, which somebody else may change and store as "you/grey"."""
    return _files(_image_model(tmp_path / "theirs", max_shard_size="30KB"))


def _refused(hub: HubServer, files: dict[str, bytes], match: str, tmp_path: Path) -> None:
    """By every reader, and nothing is left of it where it was to be pulled to."""
    hub.put("you/grey", files)
    for read in (pipelines.load, UnimodalARForGeneration.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=match):
            read("you/grey")
    with pytest.raises(ValueError, match=match):
        pull("you/grey", tmp_path / "pulled")
    assert not (tmp_path / "pulled").exists()


# --- no pickle --------------------------------------------------------------------------------------------------------


def test_a_pickle_in_place_of_safetensors_is_refused_unread(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path
) -> None:
    marker = tmp_path / "opened"
    trap = pickle.dumps(Trap(marker))
    pickle.loads(trap)
    assert marker.exists(), "the trap does not work"
    marker.unlink()
    plain = {name: x for name, x in theirs.items() if not name.startswith("model")}
    _refused(hub, {**plain, "model.safetensors": trap}, r"model.safetensors' is no whole safetensors file \(", tmp_path)
    match = "holds no model.safetensors, and weights in other formats are not read"
    for name in ("pytorch_model.bin", "model.pt", "model.safetensors.pkl"):
        hub.requests.clear()
        _refused(hub, {**plain, name: trap}, match, tmp_path)
        assert not any(name in asked for asked in hub.requests), "it was downloaded"
    folder = _image_model(tmp_path / "here")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    (folder / "pytorch_model.bin").write_bytes(trap)
    with pytest.raises(ValueError, match=match + r" \(pytorch_model.bin may run code when it is read"):
        UnimodalARForGeneration.from_pretrained(folder)
    folder.rename(tmp_path / "inner")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        UnimodalARForGeneration.from_pretrained(tmp_path, subfolder="inner")
    with pytest.raises(ValueError, match="use_safetensors is False; it must be True"):
        UnimodalARForGeneration.from_pretrained(folder, use_safetensors=False)
    assert not marker.exists()


def test_no_pickle_of_layers_or_of_a_body_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, trap = tmp_path / "opened", pickle.dumps(Trap(tmp_path / "opened"))
    model = _adapted(_plain(_source(tmp_path / "body", "llama")))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / lora.WEIGHTS).unlink()
    (tmp_path / "model" / "adapter_model.bin").write_bytes(trap)
    with pytest.raises(ValueError, match=r"weights in other formats are not read \(adapter_model.bin may run code"):
        UnimodalARForGeneration.from_pretrained(tmp_path / "model")
    save_file({"x": torch.zeros(1)}, tmp_path / "model" / "model.safetensors")  # beside which PEFT would read it
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(OSError, match=r"adapter_model\.safetensors"):
        UnimodalARForGeneration.from_pretrained(tmp_path / "model")
    (tmp_path / "body" / "model.safetensors").unlink()
    (tmp_path / "body" / "pytorch_model.bin").write_bytes(trap)
    with pytest.raises(OSError, match=r"model.safetensors"):
        _model(tmp_path / "body")
    assert not marker.exists()


def test_no_source_reads_pickles_or_runs_text() -> None:
    """Of what can: torch.load, numpy.load, yaml.load, pickle, eval and exec."""
    found = []
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                safe = {
                    "torch.load": said.get("weights_only") == "True",
                    "np.load": said.get("allow_pickle", "False") == "False",
                    "yaml.load": [ast.unparse(argument) for argument in node.args[1:]] == ["_Loader"],
                    **dict.fromkeys(("pickle.load", "pickle.loads", "eval", "exec", "yaml.unsafe_load"), False),
                }
                if not safe.get(called, True) or said.get("trust_remote_code", "False") != "False":
                    found.append(f"{module}:{node.lineno} {ast.unparse(node)}")
    assert not found


# --- no code ----------------------------------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath({marker!r}).touch()\nfrom unimodal_ar import *\n"


def test_no_code_of_a_repository_is_run_or_downloaded(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marker = tmp_path / "run"
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked to trust the code"))
    code = EVIL.format(marker=str(marker)).encode()
    config = json.loads(theirs["config.json"])
    config["auto_map"] = {"AutoConfig": "evil.UnimodalARConfig", "AutoModel": "evil.UnimodalARForGeneration"}
    hub.put("you/grey", {**theirs, "evil.py": code, "config.json": json.dumps(config).encode()})
    expected = _codes(generator())
    assert torch.equal(_codes(pipelines.load("you/grey")), expected)
    for read in (UnimodalARForGeneration.from_pretrained, AutoModel.from_pretrained):
        assert read("you/grey").config.modalities
    AutoConfig.from_pretrained("you/grey")
    pull("you/grey", tmp_path / "pulled")
    assert not list((tmp_path / "pulled").glob("*.py")) and not any("evil.py" in asked for asked in hub.requests)
    body = _source(tmp_path / "body")
    settings = json.loads((body / "config.json").read_text()) | {"model_type": "evil", "auto_map": config["auto_map"]}
    (body / "config.json").write_text(json.dumps(settings))
    (body / "evil.py").write_bytes(code)
    with pytest.raises(ValueError, match="trust_remote_code"):
        _model(body)
    assert not marker.exists()


@pytest.mark.parametrize("part", ["", "backbone"])
@pytest.mark.parametrize("kernel", ["you/kernel:run", {"": "eager", "model": "you/kernel"}])
def test_no_code_that_a_configuration_names_is_run(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, kernel: Any
) -> None:
    """Kernels on the Hub, which transformers gets where a config.json asks for them."""
    monkeypatch.setattr(hub_kernels, "get_kernel", lambda *_, **__: pytest.fail("it was run"))
    config = json.loads(theirs["config.json"])
    (config[part] if part else config)["attn_implementation"] = kernel
    hub.put("you/grey", {**theirs, "config.json": json.dumps(config).encode()})
    match = r"^attn_implementation in .* is 'you/kernel.*', which is code on the Hub; it must be named when"
    for read in (pipelines.load, UnimodalARForGeneration.from_pretrained, AutoModel.from_pretrained):
        with pytest.raises(ValueError, match=match):
            read("you/grey")
    if not part:
        body = _source(tmp_path / "body")
        settings = json.loads((body / "config.json").read_text()) | {"attn_implementation": kernel}
        (body / "config.json").write_text(json.dumps(settings))
        with pytest.raises(ValueError, match=match):
            _model(body)
        with pytest.raises(ValueError, match=match):
            UnimodalARForGeneration.from_pretrained(tmp_path, subfolder="body")


def test_nobody_is_asked_to_trust_the_code_of_a_language_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked to trust the code"))
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config", "AutoTokenizer": ["evil.T", None]}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "run")))
    states = TextStates(LanguageModel(pretrained=str(tmp_path)))
    for read in (lambda: states.width, states._probe):
        with pytest.raises(ValueError, match=r"which cannot be loaded .* contains custom code which must be executed"):
            read()
    assert not (tmp_path / "run").exists()


def test_yaml_makes_plain_data_only(tmp_path: Path) -> None:
    marker, recipe = tmp_path / "run", tmp_path / "recipe.yaml"
    recipe.write_text(f"data: !!python/object/apply:os.mkdir ['{marker}']\n")
    yaml.unsafe_load(recipe.read_text())
    assert marker.exists(), "the trap does not work"
    marker.rmdir()
    with pytest.raises(ValueError, match="is not YAML: could not determine a constructor for the tag"):
        load_recipe(recipe)
    with pytest.raises(ValueError, match="is not YAML: could not determine a constructor for the tag"):
        trained_with(tmp_path, "series")
    with pytest.raises(ValueError, match="is not YAML: could not determine a constructor"):
        load_recipe("next_patch/temperature", [f"seed=!!python/object/apply:os.mkdir ['{marker}']"])
    assert not marker.exists()


# --- no paths that lead out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["../secret.safetensors", "/etc/secret.safetensors", "a/b.safetensors", "x.bin"])
def test_an_index_names_files_in_its_folder_only(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path, shard: str
) -> None:
    index = json.loads(theirs["model.safetensors.index.json"])
    index["weight_map"][sorted(index["weight_map"])[0]] = shard
    damaged = {**theirs, "model.safetensors.index.json": json.dumps(index).encode()}
    match = rf"names the shard '{shard}'; it must be a \.safetensors file in the same folder"
    _refused(hub, damaged, match, tmp_path)
    for name, content in damaged.items():
        (tmp_path / "theirs" / name).write_bytes(content)
    for read in (load_model, UnimodalARForGeneration.from_pretrained):
        with pytest.raises(ValueError, match=match):
            read(tmp_path / "theirs")


@pytest.mark.parametrize("place", ["/etc", "../elsewhere", "~/models", "a/../../b", "C:\\models", "\\\\host\\share"])
def test_adapters_from_the_hub_name_no_place_outside(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path, place: str
) -> None:
    config = json.loads(theirs["processor_config.json"])
    config["adapters"]["image"]["elements"] = {"kind": "tokenizer", "path": place}
    hub.put("you/grey", {**theirs, "processor_config.json": json.dumps(config).encode()})
    for read in (load_adapters, pipelines.load, lambda name: pull(name, tmp_path / "pulled")):
        with pytest.raises(ValueError, match=r"processor_config.json names the path '.*', outside of its folder; in"):
            read("you/grey")
    assert not (tmp_path / "pulled").exists()
    (tmp_path / "theirs" / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="outside of its folder"):
        push(tmp_path / "theirs", "me/grey")


def test_adapters_from_the_hub_find_nothing_in_the_working_directory(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads(theirs["processor_config.json"])
    config["adapters"]["image"]["elements"] = {"kind": "tokenizer", "path": "private"}
    hub.put("you/grey", {**theirs, "processor_config.json": json.dumps(config).encode()})
    (tmp_path / "private").mkdir()
    monkeypatch.chdir(tmp_path)
    for read in (load_adapters, pipelines.load, lambda name: pull(name, tmp_path / "pulled")):
        with pytest.raises(
            ValueError, match=r"processor_config\.json of 'you/grey' names 'private', which is not there"
        ):
            read("you/grey")


@pytest.mark.parametrize(
    ("path", "expected"),
    [("a", False), ("a/b", False), ("..a", False)]
    + [(path, True) for path in ("..", "a/..", "a\\..\\b", "/a", "", ".")],
)
def test_which_paths_lead_out(path: str, expected: bool) -> None:
    assert leaves(path) == expected


def test_files_that_a_hub_lists_elsewhere_are_not_written(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path
) -> None:
    hub.put("you/grey", {**theirs, "../../../config.json": b"{}", "/evil/config.json": b"{}", "../model.py": b""})
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    model_folder("you/grey")
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before
    out = pull("you/grey", tmp_path / "pulled")
    assert not any(path.is_symlink() for path in out.rglob("*"))


# --- nothing damaged, nothing unknown ---------------------------------------------------------------------------------


def _shard(files: dict[str, bytes]) -> str:
    return sorted(name for name in files if name.endswith(".safetensors"))[0]


def test_what_arrives_is_what_was_uploaded(hub: HubServer, theirs: dict[str, bytes], tmp_path: Path) -> None:
    """One bit of a weight: no header tells."""
    shard = _shard(theirs)
    content = bytearray(theirs[shard])
    content[-3] ^= 16
    hub.damaged[shard] = bytes(content)
    for _ in range(2):  # the second time it must not come from the cache
        _refused(hub, theirs, rf"^{shard} arrived damaged: its SHA-256 is \w+, and that of what was", tmp_path)
    hub.damaged.clear()
    assert torch.equal(_codes(pipelines.load("you/grey")), _codes(generator()))


def test_what_an_interrupted_download_left_is_checked(
    hub: HubServer, theirs: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = _shard(theirs)
    content = bytearray(theirs[shard])
    content[-3] ^= 16
    hub.damaged[shard] = bytes(content)
    hub.put("you/grey", theirs)
    with monkeypatch.context() as killed:
        killed.setattr(places, "_check_blob", lambda *_, **__: pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            model_folder("you/grey")
    with pytest.raises(ValueError, match=rf"^{shard} arrived damaged: its SHA-256 is"):
        model_folder("you/grey")
    hub.damaged.clear()
    folder = model_folder("you/grey")
    with monkeypatch.context() as known:
        known.setattr(hashlib, "sha256", lambda: pytest.fail("computed again"))
        assert model_folder("you/grey") == folder
    for file in (folder / shard, (folder / shard).resolve()):  # as `hf cache rm` does, and it comes damaged again
        file.unlink()
    hub.damaged[shard] = bytes(content)
    with pytest.raises(ValueError, match=rf"^{shard} arrived damaged: its SHA-256 is"):
        model_folder("you/grey")


def test_a_file_that_is_cut_off_is_refused(hub: HubServer, theirs: dict[str, bytes], tmp_path: Path) -> None:
    shard = _shard(theirs)
    hub.damaged[shard] = theirs[shard][:-100]
    _refused(hub, theirs, "^the exchange with the Hub about 'you/grey' failed .*Consistency check failed", tmp_path)
    hub.damaged.clear()
    cut = {**theirs, shard: theirs[shard][:-100]}  # so it was uploaded
    _refused(hub, cut, rf"{shard}' is no whole safetensors file \(.*\); download or copy it again", tmp_path)
    _refused(hub, {**theirs, shard: b"\xff" * 64}, rf"{shard}' is no whole safetensors file \(", tmp_path)
    long = (2**60).to_bytes(8, "little") + theirs[shard][8:]  # a header that no memory holds
    _refused(hub, {**theirs, shard: long}, rf"{shard}' is no whole safetensors file \(", tmp_path)


@pytest.mark.parametrize("content", [b"{", b"[" * 100_000, b"[]", b'{"weight_map": []}'])
def test_damaged_json_is_refused(hub: HubServer, theirs: dict[str, bytes], tmp_path: Path, content: bytes) -> None:
    index = {**theirs, "model.safetensors.index.json": content}
    _refused(hub, index, r"index.json (is no readable JSON: |holds a list; it must|has no weight_map)", tmp_path)
    hub.put("you/grey", {**theirs, "processor_config.json": content}, message="again")
    with pytest.raises(ValueError, match=r"processor_config.json (is no readable JSON: |holds|must be)"):
        pipelines.load("you/grey")


def test_a_shard_that_is_missing_is_named(hub: HubServer, theirs: dict[str, bytes], tmp_path: Path) -> None:
    shard = _shard(theirs)
    rest = {name: content for name, content in theirs.items() if name != shard}
    _refused(hub, rest, rf"lacks {shard}, 1 of the \d shards that model.safetensors.index.json names", tmp_path)


def test_unknown_keys_are_refused(hub: HubServer, theirs: dict[str, bytes], tmp_path: Path) -> None:
    def changed(name: str, change: Any) -> dict[str, bytes]:
        content = json.loads(theirs[name])
        change(content)
        return {**theirs, name: json.dumps(content).encode()}

    cases: list[tuple[str, Any, str]] = [
        ("config.json", lambda c: c.update(hiden_size=3), "hiden_size"),
        ("config.json", lambda c: c["backbone"].update(exec="rm"), "exec"),
        ("config.json", lambda c: c["modalities"]["image"].update(code="x"), "code"),
        ("generation_config.json", lambda c: c.update(temprature=1), "temprature"),
        ("processor_config.json", lambda c: c["adapters"]["image"].update(run="x"), "run"),
    ]
    for name, change, key in cases:
        hub.put("you/grey", changed(name, change))
        with pytest.raises(ValueError, match=key):
            pipelines.load("you/grey")


# --- tokens -----------------------------------------------------------------------------------------------------------


def test_a_token_is_in_no_file_and_no_message(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    folder = _image_model(tmp_path / "model")
    push(folder, "me/grey", token="hf_of_me", private=True)
    pull("me/grey", tmp_path / "pulled", token="hf_of_me")
    with pytest.raises(ValueError, match="no model on the Hub") as refused:
        pull("me/grey", tmp_path / "other", token="hf_of_you", cache_dir=tmp_path / "empty")
    assert "hf_of" not in str(refused.value) + caplog.text
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_of_" in path.read_bytes()]


def test_every_promise_names_a_test_that_exists() -> None:
    text = (ROOT / "SECURITY.md").read_text()
    named = {word.strip("`().,") for word in text.split() if word.strip("`(").startswith("test_")}
    names = {name for name in globals() if name.startswith("test_")}
    names.remove("test_hub")  # the module
    assert names - named <= {"test_every_promise_names_a_test_that_exists", "test_which_paths_lead_out"}
    assert named - names <= set(vars(test_hub)) and named
