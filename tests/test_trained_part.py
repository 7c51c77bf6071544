"""Checkpoints that hold only what was trained: what is in them, where the rest comes from, and what they refuse."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING, AUTO_QUANTIZER_MAPPING
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin

from tests.helpers import perturb
from tests.test_frozen_backbone import X, _batch, _body, _language_model
from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.cli import main
from unimodal_ar.fingerprint import fingerprint
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.recipes.train import train
from unimodal_ar.saving import load_model
from unimodal_ar.training.recipe import Resolved


def _source(folder: Path, kind: str = "llama", seed: int = 0, **saving: Any) -> Path:
    _language_model(kind, seed).save_pretrained(folder, **saving)
    return folder


def _model(source: Path, **kwargs: Any) -> Any:
    """A frozen body with parts around it that no initialisation would give."""
    torch.manual_seed(7)
    model = UnimodalARForGeneration.from_backbone(source, X, freeze=True, **kwargs).eval()
    perturb(model.embeddings, 0.1)
    perturb(model.heads, 0.1)
    return model


def _losses(model: Any) -> Tensor:
    batch = [segment.replace(values=segment.values.to(model.dtype)) for segment in _batch()]
    with torch.no_grad():
        return model(batch).element_losses["x"]


def _load(folder: Path, **kwargs: Any) -> Any:
    return UnimodalARForGeneration.from_pretrained(folder, **kwargs)


# --- what is written, and what comes back -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "gemma", "qwen3_moe"])
@pytest.mark.parametrize("shards", [{}, {"max_shard_size": "8KB"}])
def test_only_what_was_trained_is_written(kind: str, shards: dict[str, Any], tmp_path: Path) -> None:
    model = _model(_source(tmp_path / "body", kind, **shards))
    model.save_pretrained(tmp_path / "model")
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert weights.keys() == {name for name in model.state_dict() if not name.startswith("backbone.model.")}
    written = (tmp_path / "model" / "model.safetensors").stat().st_size
    assert written * 5 < sum(x.nbytes for x in _body(model).state_dict().values())
    loaded, report = _load(tmp_path / "model", output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(_losses(loaded), _losses(model)) and not loaded.training
    assert {n for n, x in loaded.named_parameters() if x.requires_grad} == weights.keys()
    assert not any(part.training for part in _body(loaded.train()).modules())


def test_what_was_trained_can_be_in_shards_too(tmp_path: Path) -> None:
    model = _model(_source(tmp_path / "body"))
    model.save_pretrained(tmp_path / "model", max_shard_size="0.6KB")
    assert len(list((tmp_path / "model").glob("*.safetensors"))) > 1
    assert torch.equal(_losses(_load(tmp_path / "model")), _losses(model))


CHILD = """
import sys, torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
import unimodal_ar
from transformers import AutoModel
from tests.test_trained_part import _losses, _load
folder = sys.argv[1]
torch.save([_losses(AutoModel.from_pretrained(folder)), _losses(_load(folder))], sys.argv[2])
"""


def test_a_fresh_process_elsewhere_computes_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The body was named by a path relative to where the first process was."""
    _source(tmp_path / "body", "gpt2")
    monkeypatch.chdir(tmp_path)
    model = _model(Path("body"))
    model.save_pretrained(tmp_path / "model")
    repository = str(Path(__file__).resolve().parents[1])
    command = [sys.executable, "-c", CHILD, str(tmp_path / "model"), str(tmp_path / "losses.pt")]
    environment = os.environ | {"PYTHONPATH": repository}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repository)
    assert done.returncode == 0, done.stderr
    for found in torch.load(tmp_path / "losses.pt"):
        assert torch.equal(found, _losses(model))


@pytest.mark.parametrize("again", [False, True])
def test_a_standalone_model_needs_no_source(again: bool, tmp_path: Path) -> None:
    """Directly, or from a checkpoint that was loaded; the model in memory still refers to its source."""
    model = _model(_source(tmp_path / "body"))
    if again:
        model.save_pretrained(tmp_path / "part")
        model = _load(tmp_path / "part")
    model.save_pretrained(tmp_path / "whole", include_backbone=True)
    assert model.config.backbone_source is not None
    shutil.rmtree(tmp_path / "body")
    loaded = _load(tmp_path / "whole")
    assert loaded.config.backbone_source is None and loaded.config.freeze_backbone
    assert torch.equal(_losses(loaded), _losses(model))
    assert not any(x.requires_grad for x in _body(loaded).parameters())
    with pytest.raises(ValueError, match=r"backbone is given; the model in .* was saved with its own"):
        _load(tmp_path / "whole", backbone=tmp_path / "body")
    model.save_pretrained(tmp_path / "part-again")
    assert "backbone.model.norm.weight" not in load_file(tmp_path / "part-again" / "model.safetensors")


def test_a_frozen_object_has_no_source_and_is_saved_whole(tmp_path: Path) -> None:
    model = UnimodalARForGeneration.from_backbone(_language_model("gpt2"), X, freeze=True).eval()
    model.save_pretrained(tmp_path)
    loaded = _load(tmp_path)
    assert torch.equal(_losses(loaded), _losses(model))
    assert not any(x.requires_grad for x in _body(loaded).parameters())


def test_what_was_changed_of_the_bodys_configuration_stays_changed(tmp_path: Path) -> None:
    """Weights do not tell of it, so that the source's own configuration would give another model in silence."""
    source = _source(tmp_path / "body")
    model = _model(source, rms_norm_eps=0.5)
    model.save_pretrained(tmp_path / "model")
    assert not torch.allclose(_losses(model), _losses(_model(source)))
    for place in (None, source, _language_model("llama")):
        assert torch.equal(_losses(_load(tmp_path / "model", backbone=place)), _losses(model))


def test_a_damaged_body_is_named_and_not_the_model_s_folder(tmp_path: Path) -> None:
    _model(_source(tmp_path / "body")).save_pretrained(tmp_path / "model")
    weights = tmp_path / "body" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"backbone is '.*/body', from which the frozen body cannot be loaded \("):
        _load(tmp_path / "model")


# --- where the body is ------------------------------------------------------------------------------------------------


def test_a_body_that_moved_is_named_or_given(tmp_path: Path) -> None:
    model = _model(_source(tmp_path / "body"))
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "body").rename(tmp_path / "moved")
    with pytest.raises(
        ValueError, match=r"backbone is '.*/body', from which the frozen body .* \(there is no such folder\); pass as"
    ):
        _load(tmp_path / "model")
    place: Any
    for place in (
        tmp_path / "moved",
        str(tmp_path / "moved"),
        _language_model("llama"),
        _language_model("llama").model,
    ):
        loaded = _load(tmp_path / "model", backbone=place)
        assert torch.equal(_losses(loaded), _losses(model))
        if isinstance(place, PreTrainedModel):
            assert not {x.data_ptr() for x in place.parameters()} & {x.data_ptr() for x in loaded.parameters()}


def test_another_body_is_refused(tmp_path: Path) -> None:
    """Of other weights, of another shape, of another architecture: by folder and as an object."""
    _model(_source(tmp_path / "body")).save_pretrained(tmp_path / "model")
    _source(tmp_path / "weights", seed=1)
    wide = _language_model("llama", intermediate_size=96)
    wide.save_pretrained(tmp_path / "shape")
    _source(tmp_path / "kind", "gpt2")
    for other in ("weights", "shape", "kind"):
        sentence = "works with no other body" if other == "weights" else "works with no other body|cannot be loaded"
        with pytest.raises(ValueError, match=sentence):
            _load(tmp_path / "model", backbone=tmp_path / other)
    with pytest.raises(ValueError, match="backbone is a LlamaForCausalLM, whose weights have the fingerprint"):
        _load(tmp_path / "model", backbone=_language_model("llama", seed=1))
    with pytest.raises(ValueError, match="backbone is a LlamaModel, whose weights do not fit"):
        _load(tmp_path / "model", backbone=wide)
    shutil.rmtree(tmp_path / "body")
    (tmp_path / "weights").rename(tmp_path / "body")  # the right place, but something else is there now
    with pytest.raises(ValueError, match="works with no other body"):
        load_model(tmp_path / "model")


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_a_fingerprint_tells_names_shapes_and_values_apart() -> None:
    weights = {"a": torch.randn(2, 3), "b": torch.randn(2, 3), "n": torch.arange(3)}
    known = fingerprint(weights)
    assert fingerprint(dict(reversed(weights.items()))) == known
    changed = [
        {**weights, "a": weights["a"].index_put((torch.tensor(1), torch.tensor(2)), weights["a"][1, 2] * 1.01)},
        {**weights, "a": weights["b"], "b": weights["a"]},
        {**weights, "a": weights["a"].view(3, 2)},
        {**weights, "n": torch.tensor([0, 1, 3])},
        {"a": weights["a"], "c": weights["b"], "n": weights["n"]},
        {"a": weights["a"], "b": weights["b"]},
    ]
    assert len({known, *map(fingerprint, changed)}) == 1 + len(changed)


def test_a_fingerprint_is_the_same_in_float32_and_bfloat16() -> None:
    wide = {"a": torch.randn(1000)}
    half = {"a": wide["a"].to(torch.bfloat16)}
    assert fingerprint(wide) == fingerprint(half) == fingerprint({"a": half["a"].float()})
    stored = {"a": wide["a"].half()}  # float16 that goes to a wider type and back
    assert fingerprint(stored) == fingerprint({"a": stored["a"].float()})


DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("made", DTYPES)
@pytest.mark.parametrize("loaded", DTYPES)
def test_a_model_can_be_made_and_loaded_in_any_dtype(made: Any, loaded: Any, tmp_path: Path) -> None:
    """Whatever the source holds; and saved again from there."""
    _language_model("llama").to(torch.float32).save_pretrained(tmp_path / "body")
    model = _model(tmp_path / "body", dtype=made)
    assert {x.dtype for x in model.parameters()} == {made}
    model.save_pretrained(tmp_path / "model")
    found = _load(tmp_path / "model", dtype=loaded)
    assert {x.dtype for x in found.parameters()} == {loaded}
    expected = AutoModel.from_pretrained(tmp_path / "body", dtype=loaded)
    tables = dict(_body(found).named_buffers())
    assert tables and all(torch.equal(x, tables[name]) for name, x in expected.named_buffers())
    assert all(torch.equal(x, _body(found).state_dict()[name]) for name, x in expected.state_dict().items())
    found.save_pretrained(tmp_path / "again")
    assert torch.equal(_losses(_load(tmp_path / "again")), _losses(found))


def test_a_body_that_was_changed_is_not_left_out(tmp_path: Path) -> None:
    """Its checkpoint would be another model in silence."""
    model = _model(_source(tmp_path / "body"))
    _body(model).norm.weight.data[0] += 0.5
    with pytest.raises(ValueError, match=r"weights are no longer those of .*save it with include_backbone=True"):
        model.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model", include_backbone=True)
    assert torch.equal(_losses(_load(tmp_path / "model")), _losses(model))


# --- GGUF, quantisation, LoRA -----------------------------------------------------------------------------------------


def _gguf(folder: Path, body: Any) -> Path:
    """A Llama as a GGUF file of float32 weights (the names and keys of its specification)."""
    gguf = pytest.importorskip("gguf")
    config = body.config
    folder.mkdir()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(config.vocab_size)
    parts = {
        **{"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v"},
        **{"self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up"},
        **{"mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"},
    }
    names = {"embed_tokens": "token_embd", "norm": "output_norm"}
    for i in range(config.num_hidden_layers):
        names |= {f"layers.{i}.{ours}": f"blk.{i}.{theirs}" for ours, theirs in parts.items()}
    for name, x in body.state_dict().items():
        writer.add_tensor(f"{names[name.removesuffix('.weight')]}.weight", x.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder


def test_a_body_from_a_gguf_file(tmp_path: Path) -> None:
    """What transformers reads from it is what the model has, now and from a checkpoint; another file is refused."""
    folder = _gguf(tmp_path / "body", _language_model("llama").model)
    model = _model(folder, gguf_file="tiny.gguf")
    expected = AutoModel.from_pretrained(folder, gguf_file="tiny.gguf").state_dict()
    assert all(torch.equal(x, _body(model).state_dict()[name]) for name, x in expected.items())
    model.save_pretrained(tmp_path / "model")
    assert model.config.backbone_source["gguf_file"] == "tiny.gguf"
    loaded = _load(tmp_path / "model")
    assert torch.equal(_losses(loaded), _losses(model))
    assert not any(x.requires_grad for x in _body(loaded).parameters())
    model.save_pretrained(tmp_path / "whole", include_backbone=True)
    shutil.rmtree(folder)
    assert torch.equal(_losses(_load(tmp_path / "whole")), _losses(model))
    _gguf(folder, _language_model("llama", seed=1).model)
    with pytest.raises(ValueError, match="works with no other body"):
        _load(tmp_path / "model")


def _lora(model: Any) -> Any:
    torch.manual_seed(0)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], modules_to_save=model.new_modules())
    adapted: Any = get_peft_model(model, config)
    for name, x in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(x)
    return adapted.eval()


def test_lora_over_a_checkpoint_without_the_body(tmp_path: Path) -> None:
    """The adapter in its own folder, over a model that holds no body; merged, it is no longer the source's body."""
    model = _model(_source(tmp_path / "body"))
    model.save_pretrained(tmp_path / "model")
    plain, adapted = _losses(model), _lora(model)
    expected = adapted(segments=_batch()).element_losses["x"].detach()
    assert (expected - plain).abs().max() > 1e-2
    adapted.save_pretrained(tmp_path / "lora")
    loaded: Any = PeftModel.from_pretrained(_load(tmp_path / "model"), str(tmp_path / "lora")).eval()
    torch.testing.assert_close(loaded(segments=_batch()).element_losses["x"], expected)
    merged = loaded.merge_and_unload()
    with pytest.raises(ValueError, match="no longer those of"):
        merged.save_pretrained(tmp_path / "merged")
    merged.save_pretrained(tmp_path / "merged", include_backbone=True)
    torch.testing.assert_close(_losses(_load(tmp_path / "merged")), expected, rtol=1e-4, atol=1e-5)


class _Rounding(HfQuantizer):
    """Stands for packages that quantise while loading: rounds the weights of linear maps to multiples of a step."""

    def is_serializable(self) -> bool:
        return False

    @property
    def is_trainable(self) -> bool:
        return False

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        step: Any = self.quantization_config
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.data = (module.weight.data / step.step).round() * step.step
        return model


class _RoundingConfig(QuantizationConfigMixin):
    def __init__(self, step: float = 0.1, **kwargs: Any) -> None:
        super().__init__(quant_method="rounding")  # type: ignore[arg-type]
        self.step = step


@pytest.fixture
def rounding(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setitem(AUTO_QUANTIZER_MAPPING, "rounding", _Rounding)
    monkeypatch.setitem(AUTO_QUANTIZATION_CONFIG_MAPPING, "rounding", _RoundingConfig)
    return _RoundingConfig


def test_a_quantised_body(rounding: Any, tmp_path: Path) -> None:
    """Its checkpoint says how it was quantised, and it is again when it is put back; it cannot be saved or trained."""
    source = _source(tmp_path / "body")
    model = _model(source, quantization_config=rounding(step=0.25))
    weight = _body(model).layers[0].mlp.up_proj.weight
    assert torch.equal(weight * 4, (weight * 4).round()) and weight.abs().max() > 0
    model.save_pretrained(tmp_path / "model")
    saved = json.loads((tmp_path / "model" / "config.json").read_text())
    assert saved["backbone_source"]["quantization_config"]["step"] == 0.25
    assert "quantization_config" not in saved["backbone"]
    loaded = _load(tmp_path / "model")
    assert torch.equal(_losses(loaded), _losses(model)) and not torch.equal(_losses(model), _losses(_model(source)))
    for quantised in (model, loaded):
        with pytest.raises(ValueError, match="include_backbone is True, and the backbone is quantised"):
            quantised.save_pretrained(tmp_path / "whole", include_backbone=True)
    with pytest.raises(ValueError, match="freeze is False; quantised weights cannot be trained"):
        UnimodalARForGeneration.from_backbone(source, X, quantization_config=rounding())


# --- recipes ----------------------------------------------------------------------------------------------------------


def _document(folder: Path, **backbone: Any) -> dict[str, Any]:
    """A recipe around the tiny GPT-2 in `folder`/body, whose configuration has room for its windows."""
    if not (folder / "body").exists():
        _source(folder / "body", "gpt2")
    times = pd.date_range("2024-01-01", periods=80, freq="h")
    pd.DataFrame({"time": times, "y": np.sin(np.arange(80.0))}).to_csv(folder / "series.csv", index=False)
    body = {"pretrained": str(folder / "body"), "freeze": True, **backbone}
    return {
        "seed": 3,
        "output_dir": str(folder / "run"),
        "model": {"backbone": body, "modalities": {"series": {"head": {"kind": "regression"}}}},
        "adapters": {"series": {"kind": "timeseries", "patch": 4, "lookback": 12}},
        "data": {"kind": "series", "path": str(folder / "series.csv"), "target": ["y"], "horizon": 8}
        | {"validation": 16, "test": 12},
        "training": {"max_steps": 4, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
        | {"eval_strategy": "steps", "eval_steps": 2, "learning_rate": 1e-2},
    }


def _weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_recipe_around_a_pretrained_body(tmp_path: Path) -> None:
    """Trained, its folder holds the trained part and forecasts like any other; its checkpoints do, too, and its own
    recipe trains it again."""
    document = _document(tmp_path)
    run = train(document)
    assert run is not None and not any(name.startswith("backbone.model.") for name in _weights(run))
    for checkpoint in (run / "checkpoints").glob("checkpoint-*"):
        assert _weights(checkpoint).keys() == _weights(run).keys()
    forecaster = Forecaster.from_pretrained(run)
    body, expected = _body(forecaster.model), _language_model("gpt2").transformer
    assert all(torch.equal(x, body.state_dict()[name]) for name, x in expected.state_dict().items())
    words = ["forecast", str(tmp_path / "series.csv"), "--model", str(run), "--horizon", "5"]
    assert main([*words, "--out", str(tmp_path / "out.csv")]) == 0
    forecast = pd.read_csv(tmp_path / "out.csv")["mean"]
    np.testing.assert_allclose(forecast, forecaster.predict(str(tmp_path / "series.csv"), 5).mean[0], rtol=1e-6)
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    assert written["model"]["backbone"]["pretrained"] == str(tmp_path / "body")
    again = train(written | {"output_dir": str(tmp_path / "again")})
    assert again is not None and all(torch.equal(x, _weights(again)[name]) for name, x in _weights(run).items())


def test_a_training_around_a_pretrained_body_goes_on(tmp_path: Path) -> None:
    """From a checkpoint, which holds no body, it ends where one go ends; from a model, with that model's body."""
    document = _document(tmp_path)
    document["training"] |= {"eval_strategy": "no", "save_strategy": "steps", "save_steps": 2, "save_total_limit": 2}
    whole = train(document)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    document["training"]["resume_from_checkpoint"] = True
    expected = _weights(whole) if whole else {}
    assert train(document, overwrite=True) == whole
    assert all(torch.equal(x, _weights(tmp_path / "run")[name]) for name, x in expected.items()) and expected
    del document["training"]["resume_from_checkpoint"]
    further = train(document | {"init_from": str(whole), "output_dir": str(tmp_path / "further")})
    assert further is not None and _weights(further).keys() == expected.keys()
    assert torch.isfinite(_losses_of_series(further)).all()


def _losses_of_series(folder: Path) -> Tensor:
    forecaster = Forecaster.from_pretrained(folder)
    return torch.as_tensor(forecaster.predict(np.sin(np.arange(40.0)), 6).mean)


def test_a_body_that_a_recipe_trains_is_saved(tmp_path: Path) -> None:
    run = train(_document(tmp_path, freeze=False))
    assert run is not None
    body = _language_model("gpt2").transformer.state_dict()
    trained = {name: _weights(run)[f"backbone.model.{name}"] for name in body}
    assert {name for name in body if torch.equal(trained[name], body[name])} == {"wte.weight"}


@pytest.mark.parametrize("peft", [None, {"method": "lora", "r": 2}])
def test_a_model_to_start_from_has_the_body_that_the_recipe_names(peft: dict[str, Any] | None, tmp_path: Path) -> None:
    """Its body is taken; with another one in the recipe, that would be passed over in silence."""
    run = train(_document(tmp_path))
    (tmp_path / "body").rename(tmp_path / "copy")
    _source(tmp_path / "body", "gpt2", seed=1)
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    config["backbone_source"]["name_or_path"] = str(tmp_path / "copy")  # as its message says for what was moved
    (tmp_path / "run" / "config.json").write_text(json.dumps(config))
    document = _document(tmp_path) | {"init_from": str(run), "output_dir": str(tmp_path / "next"), "peft": peft}
    with pytest.raises(ValueError, match=r"pretrained is '.*/body', whose weights are not those that the model"):
        train(document)
    document["model"]["backbone"]["pretrained"] = str(tmp_path / "copy")
    assert train(document) == tmp_path / "next"


def test_the_body_is_not_written_over(tmp_path: Path) -> None:
    """By what would then refer to itself."""
    document = _document(tmp_path)
    document["output_dir"] = document["model"]["backbone"]["pretrained"]
    with pytest.raises(ValueError, match=r"model.backbone.pretrained is '.*/body', the output_dir, too"):
        train(document, overwrite=True)
    model = _model(tmp_path / "body")
    before = (tmp_path / "body" / "config.json").read_bytes()
    for places in ((tmp_path / "body",), (tmp_path / "partial", tmp_path / "x" / ".." / "body")):
        with pytest.raises(ValueError, match=r"save_directory is '.*body', where the frozen body is that the model"):
            model.save_pretrained(places[0], home=places[-1])
    assert (tmp_path / "body" / "config.json").read_bytes() == before
    model.save_pretrained(tmp_path / "body", include_backbone=True)
    assert torch.equal(_losses(_load(tmp_path / "body")), _losses(model))


def test_a_whole_model_is_no_body(tmp_path: Path) -> None:
    """By its folder; as an object it lends its body."""
    model = _model(_source(tmp_path / "body"))
    model.save_pretrained(tmp_path / "model", include_backbone=True)
    with pytest.raises(ValueError, match="backbone is a whole model of this package; it must be a body"):
        UnimodalARForGeneration.from_backbone(tmp_path / "model", X)
    with pytest.raises(ValueError, match=r"model\.backbone is a whole model of this package"):
        Resolved(_document(tmp_path, pretrained=str(tmp_path / "model")))
    lent = UnimodalARForGeneration.from_backbone(_load(tmp_path / "model"), X, freeze=True)
    assert all(torch.equal(x, _body(model).state_dict()[name]) for name, x in _body(lent).state_dict().items())
    assert type(_body(lent)) is type(_body(model)) and torch.isfinite(_losses(lent)).all()


@pytest.mark.parametrize("freeze", [True, False])
def test_the_ablation_with_random_weights(freeze: bool, tmp_path: Path) -> None:
    """The same architecture, with weights that the seed gives and not the folder; saved whole, for it has no source."""
    resolved = Resolved(_document(tmp_path, ablation="random_init", freeze=freeze))
    model = resolved.new_model()
    assert resolved.document["model"]["backbone"]["ablation"] == "random_init"
    pretrained = Resolved(_document(tmp_path)).new_model()
    one, other = (_body(x).state_dict() for x in (model, pretrained))
    assert {name: x.shape for name, x in one.items()} == {name: x.shape for name, x in other.items()}
    assert not torch.equal(one["h.0.attn.c_attn.weight"], other["h.0.attn.c_attn.weight"])
    assert any(x.requires_grad for x in _body(model).parameters()) != freeze
    model.save_pretrained(tmp_path / "model")
    assert "backbone.model.wpe.weight" in _weights(tmp_path / "model")


def test_the_ablation_without_a_body(tmp_path: Path) -> None:
    """Embeddings go to the heads as they are; what is trained, saved and asked for forecasts is the rest."""
    run = train(_document(tmp_path, ablation="none"))
    assert run is not None and all(name.startswith(("embeddings.", "heads.")) for name in _weights(run))
    model = Forecaster.from_pretrained(run).model
    x = torch.randn(2, 5, 32)
    assert torch.equal(_body(model)(x).last_hidden_state, x)
    assert torch.isfinite(_losses_of_series(run)).all()


def test_the_ablation_with_one_attention_layer(tmp_path: Path) -> None:
    """Four maps of attention, trained, and norms; no MLP."""
    run = train(_document(tmp_path, ablation="one_attention_layer"))
    assert run is not None
    body = {name.removeprefix("backbone.model.") for name in _weights(run) if name.startswith("backbone.")}
    maps = {f"layers.0.self_attn.{x}_proj.weight" for x in "qkvo"}
    norms = {"norm.weight", "layers.0.input_layernorm.weight", *(f"layers.0.self_attn.{x}_norm.weight" for x in "qk")}
    assert body == maps | norms
    torch.manual_seed(3)
    new = Resolved(_document(tmp_path, ablation="one_attention_layer")).new_model()
    assert all(x.requires_grad for x in new.parameters())
    assert _body(new).config.num_attention_heads == 4
    assert torch.isfinite(_losses_of_series(run)).all()


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        ({"freze": True}, "model.backbone has an unknown key 'freze'; did you mean 'freeze'?"),
        ({"ablation": "nothing"}, "model.backbone.ablation is 'nothing': input should be"),
        ({"pretrained": "nowhere/at/all"}, "model.backbone.pretrained is 'nowhere/at/all', which cannot be loaded"),
        ({"gguf_file": "none.gguf"}, "which cannot be loaded"),
    ],
)
def test_recipes_whose_body_cannot_be_had(backbone: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Resolved(_document(tmp_path, **backbone))
    assert str(caught.value).count(expected) == 1, str(caught.value)
    assert "\n" not in str(caught.value)
