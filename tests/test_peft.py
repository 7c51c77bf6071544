"""LoRA and its like in a frozen body: what they train, what is written, who can read it, what is refused, merging."""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel

from tests import test_trained_part
from tests.helpers import build, diffusion, perturb, series
from tests.test_frozen_backbone import LAYERS, WIDTH, X, _batch, _body, _language_model
from tests.test_trained_part import _document
from unimodal_ar import UnimodalARConfig, UnimodalARDecoder, UnimodalARDecoderConfig, UnimodalARForGeneration, lora
from unimodal_ar.cli import main
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.recipes.train import train
from unimodal_ar.saving import load_model
from unimodal_ar.schema import parse
from unimodal_ar.training.body import PretrainedBody, Quantization
from unimodal_ar.training.peft import METHODS, Layers, insert, parse_peft
from unimodal_ar.training.recipe import ModelSection, Recipe, Resolved

BODIES = ["native", "llama", "gpt2", "qwen3"]
MAPS = {"native": 7, "llama": 7, "gpt2": 4, "qwen3": 7, "opt": 6}  # linear maps of attention and MLP in a layer
rounding = test_trained_part.rounding  # a fixture
OPTIONS: dict[str, dict[str, Any]] = {"vera": {"r": 16}, "oft": {"block_size": 16}, "hra": {"r": 4}}
LINEAR = ["loha", "lokr", "oft", "hra"]  # of these PEFT has none for GPT-2's maps, or they take long
LAYERED = [method for method, kind in METHODS.items() if issubclass(kind, Layers)]
CASES = [(body, method) for body in BODIES for method in LAYERED if method not in LINEAR]
CASES += [("qwen3", method) for method in LINEAR]


def _source(folder: Path, kind: str, seed: int = 0) -> Path:
    """A pretrained body."""
    if kind == "native":
        torch.manual_seed(seed)
        sizes: Any = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2)
        body = UnimodalARDecoder(UnimodalARDecoderConfig(**sizes))
        perturb(body, 0.2, seed)
        body.save_pretrained(folder)
    else:
        _language_model(kind, seed).save_pretrained(folder)
    return folder


def _plain(source: Path, **modalities: Any) -> Any:
    torch.manual_seed(7)
    model = UnimodalARForGeneration.from_backbone(source, X | modalities, freeze=True).eval()
    perturb(model.embeddings, 0.1)
    perturb(model.heads, 0.1)
    return model


def _options(method: str = "lora", **options: Any) -> Any:
    section: dict[str, Any] = {"output_dir": "", "data": {}, "adapters": {}, "training": {}, "init_from": "somewhere"}
    recipe = Recipe(**section, model=ModelSection(modalities={}), peft={"method": method, **options})
    return parse_peft(recipe)


def _adapted(model: Any, method: str = "lora", **options: Any) -> Any:
    """With layers that a few steps have trained."""
    insert(model, _options(method, **options))
    model.train()
    optimizer = torch.optim.Adam([x for x in model.parameters() if x.requires_grad], lr=0.03)
    for step in range(3):
        optimizer.zero_grad()
        model(_batch(step)).loss.backward()
        optimizer.step()
    return model.eval()


def _losses(model: Any) -> Tensor:
    with torch.no_grad():
        return model(segments=_batch()).element_losses["x"]


# --- train, save, load in a fresh process, merge, load ----------------------------------------------------------------

CHILD = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
import unimodal_ar
from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.cli import main
from unimodal_ar.saving import load_model
from peft import AutoPeftModel, PeftModel
from transformers import AutoModel
from tests.test_peft import _losses
root, found = Path(sys.argv[1]), {}
for folder in sorted(root.glob("*/model")):
    assert main(["merge", str(folder), "--out", str(folder.parent / "merged")]) == 0
    (folder.parent / "body").rename(folder.parent / "elsewhere")  # the merged model does not need it
    found[folder.parent.name] = {"merged": _losses(UnimodalARForGeneration.from_pretrained(folder.parent / "merged"))}
    (folder.parent / "elsewhere").rename(folder.parent / "body")
    base = UnimodalARForGeneration.from_pretrained(folder, peft=False)
    found[folder.parent.name] |= {
        "base": _losses(base),
        "PeftModel": _losses(PeftModel.from_pretrained(base, folder).eval()),
        "AutoPeftModel": _losses(AutoPeftModel.from_pretrained(folder, import_allowlist=["unimodal_ar"]).eval()),
        "from_pretrained": _losses(UnimodalARForGeneration.from_pretrained(folder)),
        "AutoModel": _losses(AutoModel.from_pretrained(folder)),
        "load_model": _losses(load_model(folder, "cpu")),
    }
torch.save(found, root / "found.pt")
"""


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor]]:
    """By case and by way of loading, the losses in a fresh process; "here" are those of this one."""
    root = tmp_path_factory.mktemp("trips")
    torch.use_deterministic_algorithms(True, warn_only=True)
    here = {}
    for kind, method in CASES:
        place = root / f"{kind}-{method}"
        model = _adapted(_plain(_source(place / "body", kind)), method, **OPTIONS.get(method, {}))
        model.save_pretrained(place / "model")
        here[place.name] = _losses(model)
    repository = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": repository}
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(root)], capture_output=True, text=True, env=environment, cwd=repository
    )
    assert done.returncode == 0, done.stderr
    found = torch.load(root / "found.pt")
    return {case: found[case] | {"here": here[case]} for case in here}


@pytest.mark.parametrize(("kind", "method"), CASES)
def test_every_way_of_loading_computes_the_same(kind: str, method: str, trips: dict[str, dict[str, Tensor]]) -> None:
    losses = trips[f"{kind}-{method}"]
    expected = losses.pop("here")
    assert not torch.allclose(losses.pop("base"), expected, rtol=1e-2, atol=1e-2), "the layers change nothing"
    torch.testing.assert_close(losses.pop("merged"), expected, rtol=1e-5, atol=1e-5)
    assert losses.keys() == {"PeftModel", "AutoPeftModel", "from_pretrained", "AutoModel", "load_model"}
    for way, found in losses.items():
        assert torch.equal(found, expected), way


def test_what_is_written_is_small_and_in_one_place(tmp_path: Path) -> None:
    model = _adapted(_plain(_source(tmp_path / "body", "llama")), r=2, dropout=0.5)
    model.save_pretrained(tmp_path / "model")
    files = {file.name for file in (tmp_path / "model").iterdir()}
    assert files == {"config.json", "generation_config.json", "adapter_config.json", "adapter_model.safetensors"}
    weights = load_file(tmp_path / "model" / "adapter_model.safetensors")
    names = {name.removeprefix("base_model.model.") for name in weights}
    beside = {name for name in names if not name.startswith("backbone.")}
    assert beside == {name for name in model.state_dict() if name.startswith(("embeddings.", "heads."))}
    assert len(names - beside) == 2 * LAYERS * 7 and all(".lora_" in name for name in names - beside)
    config = json.loads((tmp_path / "model" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == model.new_modules() and config["inference_mode"]
    # Loading gives what training goes on from.
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(_losses(loaded), _losses(model))
    trained = {name for name, x in loaded.named_parameters() if x.requires_grad}
    assert trained == {name for name, x in model.named_parameters() if x.requires_grad}
    loaded.save_pretrained(tmp_path / "again")
    again = load_file(tmp_path / "again" / "adapter_model.safetensors")
    assert again.keys() == weights.keys() and all(torch.equal(x, again[name]) for name, x in weights.items())


def test_generation_options_dtype_and_report_come_with_it(tmp_path: Path) -> None:
    model = _adapted(_plain(_source(tmp_path / "body", "gpt2")))
    model.generation_config.temperature = 0.25
    model.save_pretrained(tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["dtype"] == "float32"
    loaded, report = UnimodalARForGeneration.from_pretrained(
        tmp_path / "model", dtype=torch.bfloat16, output_loading_info=True
    )
    assert loaded.generation_config.temperature == 0.25
    assert {x.dtype for x in loaded.parameters()} == {torch.bfloat16} and not loaded.training
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))


# --- what is trained --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MAPS)
def test_maps_of_attention_and_mlp_are_found_by_name(kind: str, tmp_path: Path) -> None:
    """Not token tables, and nothing of a head that has linear maps of the same names."""
    head = {"head": {"kind": "diffusion", "width": 8, "layers": 1}}
    model = _plain(_source(tmp_path / "body", kind), other=X["x"] | head)
    maps = lora.linear_maps(model)
    assert len(maps) == LAYERS * MAPS[kind] and all(name.startswith("backbone.model.") for name in maps)
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    _adapted(model, r=2)
    state = {name.replace(".base_layer.", "."): x for name, x in model.named_parameters()}
    changed = {name for name, x in before.items() if not torch.equal(x, state[name])}
    assert changed and all(name.startswith(("embeddings.x", "heads.x")) for name in changed)
    added = {name for name in state if name not in before}
    assert len(added) == 2 * len(maps)
    needed = {name for name, x in state.items() if x.requires_grad}
    assert needed == added | {name for name in before if name.startswith(("embeddings.", "heads."))}


def test_adaptive_norms_get_no_layers() -> None:
    model = build({"x": series(**diffusion("gaussian"))}, "native")
    assert any("modulation" in name for name, _ in model.named_modules())
    assert len(lora.linear_maps(model)) == 2 * MAPS["native"]
    assert not any("modulation" in name for name in lora.linear_maps(model))


@pytest.mark.parametrize(
    ("options", "maps", "beside"),
    [
        ({"target": ["q_proj", "mlp.down_proj"]}, 2 * LAYERS, {"embeddings.x", "heads.x"}),
        ({"target": ["layers.1.self_attn.v_proj"], "modules_to_save": ["heads.x"]}, 1, {"heads.x"}),
        ({"modules_to_save": []}, 7 * LAYERS, set()),
    ],
)
def test_what_is_trained_can_be_chosen(
    options: dict[str, Any], maps: int, beside: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = _plain(_source(tmp_path / "body", "llama"))
    insert(model, _options(r=2, **options))
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in trained if ".lora_" not in name} == beside
    assert sum(".lora_" in name for name in trained) == 2 * maps
    counts = [sum(x.numel() for n, x in model.named_parameters() if n in trained or every) for every in (0, 1)]
    assert f"in {maps} maps of the backbone; {counts[0]:,} of {counts[1]:,} parameters" in capsys.readouterr().out
    model.save_pretrained(tmp_path / "model")
    assert torch.equal(_losses(UnimodalARForGeneration.from_pretrained(tmp_path / "model")), _losses(model))


def test_options_reach_the_layers(tmp_path: Path) -> None:
    """The output of one map, by the papers' formulas."""
    x = torch.randn(5, WIDTH)
    for method, options in (("lora", {"r": 3, "alpha": 6}), ("dora", {"r": 3, "alpha": 6}), ("ia3", {})):
        model = _adapted(_plain(_source(tmp_path / method, "llama")), method, **options)
        layer = _body(model).layers[0].mlp.up_proj
        weight = layer.base_layer.weight
        if method == "ia3":
            changed = weight * layer.ia3_l["default"]
        else:
            changed = weight + 2 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
            assert layer.lora_A["default"].weight.shape == (3, WIDTH)
        if method == "dora":
            lengths = layer.lora_magnitude_vector["default"].weight
            changed = changed * (lengths / changed.norm(dim=1))[:, None]
        expected = x @ changed.T
        torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)
        assert (expected - x @ weight.T).abs().max() > 1e-2
    scaled = _adapted(_plain(tmp_path / "ia3"), "ia3", feedforward=["down_proj"])
    assert _body(scaled).layers[0].mlp.down_proj.ia3_l["default"].shape[-1] == 80
    dropped = _adapted(_plain(tmp_path / "lora"), dropout=0.5).train()
    assert not torch.equal(_losses(dropped), _losses(dropped))


# --- recipes ----------------------------------------------------------------------------------------------------------


def _lora_document(folder: Path, **peft: Any) -> dict[str, Any]:
    document = _document(folder) | {"peft": {"method": "lora", "r": 2, **peft}}
    return document | {"training": document["training"] | {"learning_rate": 0.05}}


def _forecast(folder: Path) -> Any:
    return Forecaster.from_pretrained(folder).predict(np.sin(np.arange(40.0)), 6).mean


def test_a_recipe_with_lora_trains_forecasts_and_merges(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder, and its checkpoints, forecast as any other; its own recipe trains the same again."""
    run = train(_lora_document(tmp_path))
    assert run is not None and "Layers of LoRA in 8 maps of the backbone" in capsys.readouterr().out
    assert not list(run.rglob("model.safetensors"))
    config = json.loads((run / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(run)  # not where it was written before it was moved there
    body = _language_model("gpt2").transformer.state_dict()
    model = Forecaster.from_pretrained(run).model
    own = lora.body_state(model, model.state_dict())
    assert own.keys() == body.keys() and all(torch.equal(x, own[name]) for name, x in body.items())
    out, table = tmp_path / "forecast.csv", tmp_path / "series.csv"
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    means = []
    for folder in (run, tmp_path / "merged"):
        assert main(["forecast", str(table), "--model", str(folder), "--horizon", "6", "--out", str(out)]) == 0
        means.append(pd.read_csv(out)["mean"])
    np.testing.assert_allclose(means[0], means[1], rtol=1e-5, atol=1e-5)
    resolved = Resolved(_lora_document(tmp_path)).document
    assert resolved["peft"] == {"method": "lora", "target": "backbone", "modules_to_save": None, "r": 2} | {
        "alpha": 16.0,
        "dropout": 0.0,
    }
    again = train(resolved | {"output_dir": str(tmp_path / "again")})
    assert again is not None and np.array_equal(_forecast(again), _forecast(run))


def test_layers_are_trained_alike_with_gradient_checkpointing(tmp_path: Path) -> None:
    runs = []
    for enabled in (False, True):
        document = _lora_document(tmp_path, dropout=0.1) | {"output_dir": str(tmp_path / f"run-{enabled}")}
        document["training"] |= {"gradient_checkpointing": enabled}
        runs.append(load_file(Path(str(train(document))) / "adapter_model.safetensors"))
    assert all(torch.equal(x, runs[1][name]) for name, x in runs[0].items())


@pytest.mark.parametrize("method", ["lora", "dora", "ia3", "vera", "prompt"])
def test_a_training_with_layers_goes_on_from_a_checkpoint(method: str, tmp_path: Path) -> None:
    """Resumed equals uninterrupted, dropout included."""
    document = _lora_document(tmp_path)
    document["peft"] = {"method": method} | ({} if method in ("ia3", "prompt") else {"dropout": 0.2})
    weights = "model.safetensors" if method == "prompt" else "adapter_model.safetensors"
    document["training"] |= {"load_best_model_at_end": False}
    whole = train(document)
    assert whole is not None
    expected = load_file(whole / weights)
    shutil.copytree(whole / "checkpoints", tmp_path / "kept")
    document["training"] |= {"resume_from_checkpoint": str(tmp_path / "kept" / "checkpoint-2")}
    resumed = train(document | {"output_dir": str(tmp_path / "resumed")})
    assert resumed is not None
    found = load_file(resumed / weights)
    half = load_file(tmp_path / "kept" / "checkpoint-2" / weights)
    assert found.keys() == expected.keys() and all(torch.equal(x, expected[name]) for name, x in found.items())
    assert not any(torch.equal(x, half[name]) for name, x in found.items() if x.ndim > 1 and ".vera_" not in name)


def test_the_best_checkpoint_with_layers_is_loaded(tmp_path: Path) -> None:
    document = _lora_document(tmp_path)
    document["training"] |= {
        "max_steps": 6,
        "learning_rate": 0.1,
        "lr_scheduler_type": "constant",
        "max_grad_norm": 1e9,
    }
    run = train(document)
    assert run is not None
    state = json.loads((run / "checkpoints" / "checkpoint-6" / "trainer_state.json").read_text())
    best = state["best_model_checkpoint"]
    assert not best.endswith("-6"), "the last is the best: this test shows nothing"
    expected = load_file(Path(best) / "adapter_model.safetensors")
    found = load_file(run / "adapter_model.safetensors")
    assert all(torch.equal(x, expected[name]) for name, x in found.items())


def _base_document(folder: Path) -> dict[str, Any]:
    """A native model of ours, trained whole."""
    document = _document(folder) | {"output_dir": str(folder / "base")}
    document["model"] = document["model"] | {
        "backbone": {"model_type": "unimodal_ar_decoder", "hidden_size": 16, "num_hidden_layers": 2}
        | {"num_attention_heads": 2, "intermediate_size": 32}
    }
    return document


def test_lora_on_a_model_of_ours(tmp_path: Path) -> None:
    """Its backbone stays, as does what modules_to_save leaves out, and is found where it was; merged, it goes on."""
    document = _base_document(tmp_path)
    base = train(document)
    assert base is not None
    document |= {"init_from": str(base), "output_dir": str(tmp_path / "run")}
    document["peft"] = {"method": "dora", "r": 2, "modules_to_save": ["embeddings.series"]}
    document["training"] |= {"learning_rate": 0.05}
    run = train(document)
    assert run is not None and not (run / "model.safetensors").exists()
    start, weights = load_file(base / "model.safetensors"), load_file(run / "adapter_model.safetensors")
    beside = {name.removeprefix("base_model.model."): x for name, x in weights.items()}
    same = {name: torch.equal(x, start[name]) for name, x in beside.items() if name in start}
    assert same and all(same[name] == name.startswith("heads.") for name in same if "weight" in name)
    assert not np.allclose(_forecast(run), _forecast(base))
    # As PEFT's own: layers and modules over the model that training started from.
    ours, theirs = load_model(run), PeftModel.from_pretrained(load_model(base), str(run)).eval()
    segments = [Forecaster.from_pretrained(run).adapter.encode(np.sin(np.arange(24.0))[None], horizon=8)]
    torch.testing.assert_close(theirs(segments=segments).loss, ours(segments).loss, rtol=0, atol=0)
    with pytest.raises(ValueError, match=r"init_from is '.*run': the model has layers of PEFT .* merge them first"):
        train(document | {"init_from": str(run), "output_dir": str(tmp_path / "next")})
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 0
    further = train(document | {"init_from": str(tmp_path / "merged"), "output_dir": str(tmp_path / "next")})
    assert further is not None and np.isfinite(_forecast(further)).all()
    # Another base, in the old place or handed over.
    other = train(document | {"seed": 5, "output_dir": str(tmp_path / "other"), "init_from": None, "peft": None})
    assert other is not None
    with pytest.raises(ValueError, match=r"backbone is '.*other', whose weights have the fingerprint .* no other body"):
        UnimodalARForGeneration.from_pretrained(run, backbone=other)
    base.rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"backbone is '.*base', from which the frozen body cannot be loaded"):
        load_model(run)
    for place in (tmp_path / "moved", load_model(tmp_path / "moved")):
        found = UnimodalARForGeneration.from_pretrained(run, backbone=place)
        assert torch.equal(found(segments).loss, ours(segments).loss)


def test_a_frozen_body_gets_no_adaptive_norms(tmp_path: Path) -> None:
    """Their weights are new, and would neither be trained nor be where the body is."""
    document = _base_document(tmp_path)
    base = train(document)
    document |= {"init_from": str(base), "output_dir": str(tmp_path / "run"), "peft": {"method": "lora"}}
    noise: dict[str, Any] = {"objective": {"kind": "block_diffusion", "noise": "gaussian"}}
    document["model"]["modalities"] = {"series": noise | {"head": {"kind": "regression"}}}
    with pytest.raises(ValueError, match=r"init_from is '.*base', whose backbone gets new weights .*adaptive norms"):
        train(document)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"peft": {"r": 2}}, "peft.method is None; known methods are ['dora', 'hra', 'ia3',"),
        ({"peft": {"method": "prompt", "target": "backbone"}}, "peft has an unknown key 'target'"),
        ({"peft": {"method": "hra", "r": 3}}, "peft.r is 3: input should be a multiple of 2"),
        ({"quantization": {"bits": 3}}, "model.backbone.quantization.bits is 3: input should be 4 or 8"),
        (
            {"dtype": "bfloat16", "init_from": "x"},
            "model.backbone.dtype is 'bfloat16'; with init_from the body is that",
        ),
        ({"peft": {"method": "lora", "rank": 2}}, "peft has an unknown key 'rank'"),
        ({"peft": {"method": "lora", "r": 0}}, "peft.r is 0: input should be greater than 0"),
        ({"peft": {"method": "ia3", "r": 2}}, "peft has an unknown key 'r'"),
        ({"peft": {"method": "lora", "target": []}}, "peft.target is []: input should be 'backbone' or list"),
        ({"freeze": False}, "model.backbone.freeze is False; with peft the pretrained backbone itself stays frozen"),
        ({"ablation": "random_init"}, "model.backbone.ablation is 'random_init'; with peft"),
        ({"backbone": {"model_type": "llama", "vocab_size": 8}}, "peft is set, and the backbone's weights are random"),
    ],
)
def test_recipes_with_peft_that_cannot_be(changes: dict[str, Any], expected: str, tmp_path: Path) -> None:
    document = _lora_document(tmp_path)
    document["peft"] = changes.get("peft", document["peft"])
    keys = ("freeze", "ablation", "dtype", "quantization")
    body = {**document["model"]["backbone"], **{k: v for k, v in changes.items() if k in keys}}
    document["init_from"] = changes.get("init_from")
    document["model"] = document["model"] | {"backbone": changes.get("backbone", body)}
    with pytest.raises(ValueError, match=r".") as caught:
        Resolved(document)
    assert str(caught.value).startswith(expected) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"target": ["q_prj"]},
            r"peft.target has 'q_prj', with which no .* \['attn.c_attn', 'attn.c_proj', 'mlp.c_fc'",
        ),
        ({"target": ["wte"]}, "peft.target has 'wte', with which no linear map's name ends"),
        ({"target": ["proj"]}, "peft.target has 'proj', with which no linear map's name ends"),
        ({"modules_to_save": ["heads.y"]}, r"peft.modules_to_save has 'heads.y'; .* \['embeddings.x', 'heads.x'\]"),
    ],
)
def test_a_typo_in_a_name_is_an_error(options: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        insert(_plain(_source(tmp_path, "gpt2")), _options(**options))
    with pytest.raises(ValueError, match=r"peft.feedforward has 'c_attn'; |peft.feedforward has 'c_attn', with"):
        insert(_plain(tmp_path), _options("ia3", target=["c_fc"], feedforward=["c_attn"]))


def test_a_training_with_layers_does_not_go_on_over_another_body(tmp_path: Path) -> None:
    document = _lora_document(tmp_path)
    assert train(document) is not None
    shutil.rmtree(tmp_path / "body")
    _source(tmp_path / "body", "gpt2", seed=1)
    document["training"] |= {"resume_from_checkpoint": True}
    with pytest.raises(ValueError, match=r"checkpoint-4' was trained with a frozen body of the fingerprint"):
        train(document, overwrite=True)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_another_body_or_other_layers_are_refused(tmp_path: Path) -> None:
    model = _adapted(_plain(_source(tmp_path / "body", "llama")), target=["q_proj"])
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="works with no other body"):
        UnimodalARForGeneration.from_pretrained(tmp_path / "model", backbone=_source(tmp_path / "other", "llama", 1))
    config = tmp_path / "model" / "adapter_config.json"
    config.write_text(config.read_text().replace("q_proj", "v_proj"))
    with pytest.raises(
        ValueError, match=r"adapter_model.safetensors does not fit .* 8 weights are in one of them only"
    ):
        load_model(tmp_path / "model")
    weights = tmp_path / "model" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-10])
    with pytest.raises(ValueError, match=r"weights in '.*' do not load"):
        load_model(tmp_path / "model")


def test_a_body_that_was_changed_is_noticed(tmp_path: Path) -> None:
    """By hand, or by PEFT's merging in place."""
    for change in ("merged", "by hand"):
        model = _adapted(_plain(_source(tmp_path / change, "llama")))
        layer = _body(model).layers[0].mlp.up_proj
        if change == "merged":
            layer.merge()
        else:
            layer.base_layer.weight.data[0] += 0.5
        with pytest.raises(ValueError, match="the backbone's weights are no longer those of"):
            model.save_pretrained(tmp_path / "model")


def test_layers_are_saved_beside_a_named_body_alone(tmp_path: Path) -> None:
    named = _adapted(_plain(_source(tmp_path / "body", "llama")))
    with pytest.raises(
        ValueError, match=r"include_backbone is True, and the backbone has layers of PEFT .* merge them"
    ):
        named.save_pretrained(tmp_path / "model", include_backbone=True)
    nameless = UnimodalARForGeneration.from_backbone(_language_model("llama"), X, freeze=True)
    with pytest.raises(ValueError, match="over a body that has no folder or name; merge them"):
        _adapted(nameless).save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has layers of PEFT already"):
        insert(named, _options())
    with pytest.raises(ValueError, match="freeze_backbone is False"):
        insert(UnimodalARForGeneration.from_backbone(_language_model("llama"), X), _options())


def test_layers_in_a_quantised_body(rounding: Any, tmp_path: Path) -> None:
    """Trained, saved and loaded as over any other; they cannot be merged into it."""
    options: Any = {"quantization_config": rounding(step=0.25)}
    source = _source(tmp_path / "body", "llama")
    model = _adapted(UnimodalARForGeneration.from_backbone(source, X, freeze=True, **options))
    model.save_pretrained(tmp_path / "model")
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path / "model")
    assert torch.equal(_losses(loaded), _losses(model))
    weight = _body(loaded).layers[0].mlp.up_proj.base_layer.weight
    assert torch.equal(weight * 4, (weight * 4).round()) and weight.abs().max() > 0
    with pytest.raises(ValueError, match="the backbone is quantised; layers of PEFT can only be merged into"):
        lora.merge(loaded)
    assert torch.equal(_losses(loaded), _losses(model))
    with pytest.raises(ValueError, match="PEFT cannot put layers of HRAConfig into quantised weights"):
        insert(UnimodalARForGeneration.from_backbone(source, X, freeze=True, **options), _options("hra", r=4))
    with torch.no_grad():  # what is not packed can be trained, and would be lost
        _body(loaded).norm.weight.mul_(2)
    with pytest.raises(ValueError, match="the backbone's weights are no longer those of"):
        loaded.save_pretrained(tmp_path / "again")


def test_a_quantised_body_is_quantised_from_what_it_was(rounding: Any, tmp_path: Path) -> None:
    """Whatever dtype is asked for: from another one it would have other weights, and be refused."""
    source = _source(tmp_path / "body", "llama")
    options: Any = {"quantization_config": rounding(step=0.25), "dtype": torch.bfloat16}
    model = UnimodalARForGeneration.from_backbone(source, X, freeze=True, **options)
    for part in (model.embeddings, model.heads):
        part.float()
    model.save_pretrained(tmp_path / "model")
    kinds: tuple[Any, ...] = (AutoModel, UnimodalARForGeneration)
    for kind, dtype in product(kinds, (None, "auto", torch.float32)):
        loaded = kind.from_pretrained(tmp_path / "model", dtype=dtype)
        assert _body(loaded).dtype == torch.bfloat16 and loaded.dtype == torch.float32
        assert torch.equal(_losses(loaded), _losses(model))
    assert _body(load_model(tmp_path / "model", "cpu")).dtype == torch.bfloat16


def test_a_model_with_layers_is_not_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _adapted(_plain(_source(tmp_path / "body", "llama"))).save_pretrained(tmp_path / "model")
    request = ["convert", "--to", "block-diffusion", str(tmp_path / "model"), "--block", "2"]
    assert main([*request, "--out", str(tmp_path / "out")]) == 2
    assert "the model has layers of PEFT in its backbone; merge them first" in capsys.readouterr().err


def test_layers_do_not_take_weights_of_other_layers(tmp_path: Path) -> None:
    """Of another scale they would fit, and compute something else."""
    body = _source(tmp_path / "body", "llama")
    _adapted(_plain(body), alpha=16).save_pretrained(tmp_path / "model")
    for options, expected in (
        ({"alpha": 8}, "lora_alpha of the layers in .* is 16.0; of the model's it is 8.0"),
        ({"r": 4}, "r of the layers in .* is 8; of the model's it is 4"),
        ({"target": ["q_proj"]}, "target_modules of the layers in "),
    ):
        model = _plain(body)
        insert(model, _options(**options))
        with pytest.raises(ValueError, match=expected):
            lora.load(model, tmp_path / "model")
    insert(model := _plain(body), _options(alpha=16, dropout=0.5))  # which is of training alone
    lora.load(model, tmp_path / "model")
    assert torch.equal(_losses(model), _losses(load_model(tmp_path / "model")))
    insert(model := _plain(body), _options("dora"))
    with pytest.raises(ValueError, match=r"use_dora of the layers in .* is False; of the model's it is True"):
        lora.load(model, tmp_path / "model")


def test_ways_of_transformers_to_put_layers_in_are_refused(tmp_path: Path) -> None:
    """They would leave embeddings and heads out, and the model would not know of its layers."""
    body = _source(tmp_path / "body", "llama")
    _adapted(_plain(body)).save_pretrained(tmp_path / "model")
    model = _plain(body)
    with pytest.raises(ValueError, match=r"peft_model_id is '.*model', .*; load it whole by from_pretrained"):
        model.load_adapter(tmp_path / "model")
    with pytest.raises(ValueError, match=r"add_adapter got a LoraConfig; put layers in by lora.insert"):
        model.add_adapter(LoraConfig(target_modules=["q_proj"]))
    assert not any("lora" in name for name, _ in model.named_parameters())


def test_a_base_that_layers_are_not_of_is_noticed_by_the_auto_class(tmp_path: Path) -> None:
    body = _source(tmp_path / "body", "llama")
    _adapted(_plain(body)).save_pretrained(tmp_path / "model")
    shutil.rmtree(body)
    _source(tmp_path / "body", "llama", seed=1)
    with pytest.raises(ValueError, match="works with no other body"):
        AutoPeftModel.from_pretrained(tmp_path / "model", import_allowlist=["unimodal_ar"])
    with pytest.raises(ValueError, match="works with no other body"):
        lora.WithoutLayers.from_pretrained(tmp_path / "model")


def test_new_heads_are_not_frozen_in_silence(tmp_path: Path) -> None:
    model = _plain(_source(tmp_path / "body", "llama"))
    with pytest.raises(ValueError, match=r"modules_to_save leaves out \['heads.x'\], whose weights are new"):
        insert(model, _options(modules_to_save=["embeddings.x"]), new=True)
    document = _lora_document(tmp_path, modules_to_save=[])
    with pytest.raises(ValueError, match=r"leaves out \['embeddings.series', 'heads.series'\], whose weights are new"):
        train(document)


def test_layers_that_a_map_cannot_have(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"peft.block_size is 32; it must divide the 80 inputs of .*down_proj"):
        insert(_plain(_source(tmp_path / "llama", "llama")), _options("oft", block_size=32))
    with pytest.raises(ValueError, match=r"PEFT cannot put layers of LoHaConfig into this backbone: .*Conv1D"):
        insert(_plain(_source(tmp_path / "gpt2", "gpt2")), _options("loha"))


def test_what_layers_share_is_saved(tmp_path: Path) -> None:
    """VeRA's projections: once, and not drawn again when they are loaded."""
    model = _adapted(_plain(_source(tmp_path / "body", "llama")), "vera", r=16, key=3)
    assert not any("vera_A" in name for name in model.state_dict())
    layer = _body(model).layers[0].mlp.up_proj
    with torch.no_grad():
        layer.vera_A["default"].mul_(-1.5)  # as another version of torch might draw
    expected = _losses(model)
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "adapter_model.safetensors")
    assert {name: list(x.shape) for name, x in weights.items() if "lambda" not in name and "backbone" in name} == {}
    assert weights["base_model.vera_A"].shape == (16, 80) and weights["base_model.vera_B"].shape == (80, 16)
    loaded = load_model(tmp_path / "model", "cpu")
    assert torch.equal(_losses(loaded), expected)
    theirs = PeftModel.from_pretrained(lora.WithoutLayers.from_pretrained(tmp_path / "model"), tmp_path / "model")
    assert torch.equal(_losses(theirs.eval()), expected)
    x = torch.randn(5, WIDTH)
    a, b = layer.vera_A["default"][:, :WIDTH], layer.vera_B["default"]
    change = layer.vera_lambda_b["default"][:, None] * b @ (layer.vera_lambda_d["default"][:, None] * a)
    torch.testing.assert_close(layer(x), x @ (layer.base_layer.weight + change).T, rtol=1e-4, atol=1e-5)


# --- bodies in another dtype, or quantised ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "auto"])
def test_what_is_trained_around_a_body_of_low_precision_is_in_float32(dtype: str, tmp_path: Path) -> None:
    document = _lora_document(tmp_path)
    document["model"]["backbone"]["dtype"] = dtype
    if dtype == "auto":
        _language_model("gpt2").to(torch.bfloat16).save_pretrained(tmp_path / "body")
    resolved = Resolved(document)
    model = resolved.new_model()
    insert(model, resolved.peft)  # type: ignore[arg-type]
    stored = {"auto": torch.bfloat16}.get(dtype) or getattr(torch, dtype)
    found: dict[bool, set[torch.dtype]] = {True: set(), False: set()}
    for parameter in model.parameters():
        found[parameter.requires_grad].add(parameter.dtype)
    assert found == {True: {torch.float32}, False: {stored}}
    batch = resolved.data.train()
    segments = batch.collate([batch[0], batch[1]])["segments"]
    model.train()(segments).loss.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in model.parameters() if x.requires_grad)
    low, whole = model.eval()(segments).loss, copy.deepcopy(model).float()(segments).loss
    assert low.dtype == torch.float32 and low != whole
    torch.testing.assert_close(low, whole, rtol=0.02, atol=0)
    run = train(document)
    assert run is not None and np.isfinite(_forecast(run)).all()
    weights = load_file(run / "adapter_model.safetensors")
    assert {x.dtype for x in weights.values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("method", [None, "prompt", "lora", "dora", "vera", "oft"])
def test_every_part_is_loaded_in_the_dtype_that_it_was_trained_in(
    method: str | None, dtype: str, tmp_path: Path
) -> None:
    source = _source(tmp_path / "body", "qwen3")
    body = parse(PretrainedBody, {"pretrained": str(source), "dtype": dtype}, "backbone")
    shape: dict[str, Any] = {"soft_prompt": 3} if method == "prompt" else {}
    model = body.model(UnimodalARConfig(backbone=body.config(), modalities=X, freeze_backbone=True, **shape))
    perturb(model.heads, 0.1)
    if method is not None:
        _adapted(model, method, **OPTIONS.get(method, {}))
    assert model.dtype == torch.float32 and _body(model).dtype == getattr(torch, dtype)
    expected = _losses(model)
    model.save_pretrained(tmp_path / "model")
    ways: list[dict[str, Any]] = [{}, {"dtype": "auto"}, {"backbone": AutoModel.from_pretrained(source)}]
    if method in (None, "prompt"):
        model.save_pretrained(tmp_path / "whole", include_backbone=True)
        ways.append({"name": tmp_path / "whole"})
    for way in ways:
        loaded: Any = UnimodalARForGeneration.from_pretrained(**{"name": tmp_path / "model"} | way)
        assert torch.equal(_losses(loaded), expected), way
        assert {name: x.dtype for name, x in loaded.named_parameters()} == {
            name: x.dtype for name, x in model.named_parameters()
        }
    kinds: tuple[Any, ...] = (AutoModel, UnimodalARForGeneration)
    for kind, asked in product(kinds, (torch.float32, torch.bfloat16)):
        loaded = kind.from_pretrained(tmp_path / "model", dtype=asked)
        assert {x.dtype for x in loaded.parameters()} == {asked}
        torch.testing.assert_close(_losses(loaded).float(), expected, rtol=0.1, atol=0.1)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path / "model", dtype=torch.bfloat16)
    loaded.save_pretrained(tmp_path / "again")  # of one dtype now
    again = UnimodalARForGeneration.from_pretrained(tmp_path / "again")
    assert torch.equal(_losses(again), _losses(loaded)) and again.config.backbone_dtype is None


def test_a_body_of_low_precision_stays_as_it_is() -> None:
    for wrong in ({"freeze": False}, {"ablation": "random_init"}):
        with pytest.raises(ValueError, match=r"backbone: dtype is for a frozen pretrained body; (freeze|ablation)"):
            parse(PretrainedBody, {"pretrained": "x", "dtype": "bfloat16", **wrong}, "backbone")
    with pytest.raises(ValueError, match="quantization is of weights that are not quantised; gguf_file names some"):
        parse(PretrainedBody, {"pretrained": "x", "gguf_file": "y", "quantization": {}}, "backbone")


@pytest.mark.parametrize("ablation", [None, "random_init", "one_attention_layer"])
def test_a_pretrained_body_attends_by_the_kernel_of_the_recipe(ablation: str | None, tmp_path: Path) -> None:
    document = _lora_document(tmp_path)
    document.pop("peft")
    document["model"]["backbone"] |= {"attn_implementation": "eager", "ablation": ablation}
    resolved = Resolved(document)
    model = resolved.new_model()
    assert (
        cast(Any, model.backbone.model).config._attn_implementation == "eager" == resolved.config._attn_implementation
    )
    assert resolved.document["model"]["backbone"]["attn_implementation"] == "eager"
    for wrong, legal in (("none", "there is no attention"), (None, "'eager', 'sdpa'")):
        document["model"]["backbone"] |= {"attn_implementation": "eager" if wrong else "fast", "ablation": wrong}
        with pytest.raises(ValueError, match=legal):
            Resolved(document)


def test_without_bitsandbytes_it_is_said_before_anything_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    document = _lora_document(tmp_path)
    document["model"]["backbone"]["quantization"] = {"bits": 4}
    body = Resolved(document).body
    assert body is not None and body.quantization is not None
    monkeypatch.setattr("unimodal_ar.training.body.is_bitsandbytes_available", lambda: False)
    (tmp_path / "body" / "model.safetensors").unlink()
    with pytest.raises(ImportError, match=r"^model.backbone.quantization needs bitsandbytes: pip install -U"):
        train(document)
    monkeypatch.setattr("unimodal_ar.training.body.is_bitsandbytes_available", lambda: True)
    place = "transformers.integrations.bitsandbytes.validate_bnb_backend_availability"

    def refuse(raise_exception: bool) -> None:
        raise RuntimeError("None of the devices\nis supported")

    monkeypatch.setattr(place, refuse)
    with pytest.raises(ValueError, match=r"quantization cannot be had here: None of the devices is supported$"):
        train(document)
    monkeypatch.setattr(place, lambda raise_exception: None)
    config = Quantization(kind="fp4", double=False, compute="float16").config()
    assert (config.load_in_4bit, config.bnb_4bit_quant_type, config.bnb_4bit_use_double_quant) == (True, "fp4", False)
    assert config.bnb_4bit_compute_dtype == torch.float16 and Quantization(bits=8).config().load_in_8bit


@pytest.mark.parametrize("bits", [4, 8])
def test_layers_over_a_body_that_bitsandbytes_quantised(bits: int, tmp_path: Path) -> None:
    """Where it is installed: trained, saved and loaded."""
    pytest.importorskip("bitsandbytes")
    _language_model("llama", hidden_size=128, intermediate_size=256).save_pretrained(tmp_path / "body")
    options: Any = {"quantization": {"bits": bits, "compute": "float32"}}
    body = parse(PretrainedBody, {"pretrained": str(tmp_path / "body"), **options}, "backbone")
    model = body.model(UnimodalARConfig(backbone=body.config(), modalities=X, freeze_backbone=True))
    assert _body(model).layers[0].mlp.up_proj.weight.dtype in (torch.uint8, torch.int8)
    _adapted(model).save_pretrained(tmp_path / "model")
    assert torch.equal(_losses(UnimodalARForGeneration.from_pretrained(tmp_path / "model")), _losses(model))
    with pytest.raises(ValueError, match="the backbone is quantised; layers of PEFT can only be merged into"):
        lora.merge(model)
    _body(model).layers[0].mlp.up_proj.merge()
    with pytest.raises(ValueError, match="the backbone's weights are no longer those of"):
        model.save_pretrained(tmp_path / "model")


# --- merging ----------------------------------------------------------------------------------------------------------


def test_merging_leaves_a_plain_model(tmp_path: Path) -> None:
    model = _adapted(_plain(_source(tmp_path / "body", "gpt2")), "dora")
    expected, names = _losses(model), _plain(tmp_path / "body").state_dict().keys()
    lora.merge(model)
    torch.testing.assert_close(_losses(model), expected, rtol=1e-5, atol=1e-5)
    assert model.state_dict().keys() == names and not hasattr(model, "peft_config")
    assert not any(x.requires_grad for x in _body(model).parameters())
    with pytest.raises(ValueError, match=r"no longer those of .*save it with include_backbone=True"):
        model.save_pretrained(tmp_path / "model")
    with pytest.raises(ValueError, match="has no layers of PEFT; there is nothing to merge"):
        lora.merge(model)


def test_a_merged_model_takes_the_place_of_the_one_with_layers(tmp_path: Path) -> None:
    """Of which nothing may stay: it would be read in place of the plain model's own weights."""
    model = _adapted(_plain(_source(tmp_path / "body", "llama")))
    model.save_pretrained(tmp_path / "model")
    expected = _losses(model)
    lora.merge(model)
    model.save_pretrained(tmp_path / "model", include_backbone=True, is_main_process=False)
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()
    model.save_pretrained(tmp_path / "model", include_backbone=True)
    assert not list((tmp_path / "model").glob("adapter_*"))
    found = UnimodalARForGeneration.from_pretrained(tmp_path / "model")
    torch.testing.assert_close(_losses(found), expected, rtol=1e-5, atol=1e-5)


def test_layers_that_peft_saved_into_a_model_s_folder_stay(tmp_path: Path) -> None:
    """They are not ours to remove, and do not make a whole model one that has its body elsewhere."""
    model = _plain(_source(tmp_path / "body", "llama"))
    model.save_pretrained(tmp_path / "model", include_backbone=True)
    expected = _losses(model)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "model"))
    assert torch.equal(_losses(UnimodalARForGeneration.from_pretrained(tmp_path / "model")), expected)
    _plain(tmp_path / "body").save_pretrained(tmp_path / "model", include_backbone=True)
    assert (tmp_path / "model" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merging_that_changes_the_output_is_noticed(dtype: torch.dtype, tmp_path: Path) -> None:
    """A layer that PEFT would not merge as it computes."""
    model = _adapted(_plain(_source(tmp_path / "body", "llama"))).to(dtype)
    lora.merge(copy.deepcopy(model))
    layer = _body(model).layers[1].mlp.down_proj
    factor = 1.02 if dtype == torch.float32 else 3
    layer.get_delta_weight = lambda name: factor * type(layer).get_delta_weight(layer, name)
    with pytest.raises(ValueError, match=r"backbone.model.layers.1.mlp.down_proj computes something else .* error"):
        lora.merge(model)


def test_what_cannot_be_merged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _plain(_source(tmp_path / "body", "llama")).save_pretrained(tmp_path / "plain")
    _adapted(_plain(tmp_path / "body")).save_pretrained(tmp_path / "model")
    (tmp_path / "file").write_text("")
    told = {
        (str(tmp_path / "plain"), "out"): "holds no adapter_config.json; there is nothing to merge",
        (str(tmp_path / "none"), "out"): "holds no config.json; it must be a model's folder",
        (str(tmp_path / "model"), "model"): "the folder of the model itself; choose another",
        (str(tmp_path / "model"), "file"): "which is a file; it must be a folder",
        (str(tmp_path / "model"), "plain"): "already holds a model; choose another or pass --overwrite",
    }
    for (folder, out), expected in told.items():
        assert main(["merge", folder, "--out", str(tmp_path / out)]) == 2
        assert expected in capsys.readouterr().err
    assert main(["merge", str(tmp_path / "model"), "--out", str(tmp_path / "plain"), "--overwrite"]) == 0
    expected_losses = _losses(load_model(tmp_path / "model"))
    torch.testing.assert_close(_losses(load_model(tmp_path / "plain")), expected_losses, rtol=1e-5, atol=1e-5)
