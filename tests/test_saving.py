"""Saving and loading: what comes back in a fresh process is what was saved, whatever the backbone (traps 9.3)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from unimodal_ar import Segment, UnimodalARConfig, UnimodalARDecoder, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.adapters import AutoAdapter, TimeSeriesAdapter

SIZES = {"hidden_size": 32, "num_hidden_layers": 2}
ATTENTION = {**SIZES, "num_attention_heads": 2, "intermediate_size": 32}
BODIES: dict[str, dict[str, Any]] = {
    "native": {"model_type": "unimodal_ar_decoder", **ATTENTION},
    "native-layernorm": {
        **{
            "model_type": "unimodal_ar_decoder",
            **ATTENTION,
            "norm": "layernorm",
            "mlp": "gelu",
            "attention_bias": True,
        },
        **{"mlp_bias": True, "position": "sinusoidal", "qk_norm": "layernorm", "norm_position": "post"},
    },
    "llama": {"model_type": "llama", **ATTENTION, "num_key_value_heads": 1, "vocab_size": 11},
    "qwen3": {"model_type": "qwen3", **ATTENTION, "num_key_value_heads": 1, "head_dim": 16, "vocab_size": 11},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32, "vocab_size": 11},
    "mamba": {"model_type": "mamba", **SIZES, "state_size": 4, "vocab_size": 11},
}
BF16 = ("native", "llama")  # saved once more in half precision
SAVED = [*BODIES, *(f"{body}-bf16" for body in BF16), "decoder"]
LEVELS = [0.1, 0.5, 0.9]


def _modalities() -> dict[str, Any]:
    """One of each: a guided context, a series with covariates, and a small picture in a random order."""
    return {
        "label": {
            "element": {"kind": "discrete", "vocab_size": 3},
            **{"grid": [1, 1, 1], "null_probability": 0.2, "layout": {"block": 1}},
        },
        "series": {
            "element": {"kind": "continuous", "dim": 4},
            **{"grid": [5, 1, 1], "head": {"kind": "quantile", "levels": LEVELS}, "covariates": 2},
        },
        "image": {
            "element": {"kind": "discrete", "vocab_size": 7, "codes": 2},
            **{"grid": [1, 2, 3], "layout": {"order": "random"}, "head": {"kind": "categorical"}},
        },
    }


def _build(body: str) -> UnimodalARForGeneration:
    """A model in which every parameter differs from what initialisation could make of it."""
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=BODIES[body], modalities=_modalities()))
    return _disturbed(model).eval()


def _disturbed(model: Any) -> Any:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def _batch() -> list[Segment]:
    generator = torch.Generator().manual_seed(1)
    return [
        Segment("label", torch.tensor([[0], [2]]), (1, 1, 1), target=False),
        Segment(
            "series",
            torch.randn(2, 5, 4, generator=generator),
            (5, 1, 1),
            covariates=torch.randn(2, 5, 2, generator=generator),
        ),
        Segment("image", torch.randint(7, (2, 6, 2), generator=generator), (1, 2, 3)),
    ]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and all buffers, the non-persistent ones too."""
    return {name: x.detach().clone() for name, x in [*model.named_parameters(), *model.named_buffers()]}


def _buffers(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_buffers()}


def _losses(model: Any) -> dict[str, Tensor]:
    if isinstance(model, UnimodalARDecoder):
        inputs = torch.linspace(-1, 1, 2 * 5 * 32).view(2, 5, 32)
        return {"hidden": model(inputs, conditioning=torch.ones(2, 6)).last_hidden_state.detach()}
    return {name: loss.detach() for name, loss in model(_batch()).element_losses.items()}


def _decoder() -> UnimodalARDecoder:
    config = UnimodalARDecoderConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, conditioning_size=6)
    return _disturbed(UnimodalARDecoder(config)).eval()


# What the fresh process does: load everything by the Auto class, with poisoned memory, and report.
CHILD = """
import json, sys, torch
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
from pathlib import Path
import unimodal_ar
from transformers import AutoModel
from tests.test_saving import _losses, _tensors

root, report = Path(sys.argv[1]), {}
for folder in sorted(path for path in root.iterdir() if path.is_dir()):
    model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
    expected = torch.load(root / f"{folder.name}.pt")
    found = _tensors(model)
    strays = [f"{name}.{key}" for name, module in model.named_modules() for key, value in vars(module).items()
              if isinstance(value, torch.Tensor) and value.is_meta]
    report[folder.name] = {
        "class": type(model).__name__,
        "info": {key: sorted(map(str, value)) for key, value in info.items() if value},
        "meta": strays + [name for name, x in found.items() if x.is_meta],
        "names": sorted(found.keys() ^ expected["tensors"].keys()),
        "unequal": [name for name, x in expected["tensors"].items() if not torch.equal(x, found[name])],
        "dtypes": sorted({str(x.dtype) for x in model.parameters()}),
        "training": model.training,
        "losses": [name for name, x in _losses(model).items() if not torch.equal(x, expected["losses"][name])],
    }
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All models saved here, and what one fresh process finds when it loads them."""
    root = tmp_path_factory.mktemp("saved")
    torch.manual_seed(3)
    for name in SAVED:
        model: Any = _decoder() if name == "decoder" else _build(name.removesuffix("-bf16"))
        buffers = {key: x for key, x in _tensors(model).items() if key in _buffers(model)}
        if name.endswith("-bf16"):
            model = model.to(torch.bfloat16)
        model.save_pretrained(root / name)
        for key, x in buffers.items():  # `.to` cast them; a loaded model computes them anew, in float32
            owner, _, attribute = key.rpartition(".")
            setattr(model.get_submodule(owner), attribute, x)
        torch.save({"tensors": _tensors(model), "losses": _losses(model)}, root / f"{name}.pt")
    repository = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": repository}
    command = [sys.executable, "-c", CHILD, str(root)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repository)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SAVED)
def test_every_parameter_and_buffer_survives_a_fresh_process(report: dict[str, Any], name: str) -> None:
    """Trap 9.3.1: non-persistent buffers (the hosted bodies' rotary tables) come back as uninitialised memory."""
    assert report[name]["names"] == []
    assert report[name]["unequal"] == []
    assert report[name]["meta"] == []


@pytest.mark.parametrize("name", SAVED)
def test_nothing_is_missing_or_unexpected(report: dict[str, Any], name: str) -> None:
    """Trap 9.3.4: a model that never called post_init, or a renamed module, shows in the loading report."""
    assert report[name]["info"] == {}
    assert report[name]["class"] == ("UnimodalARDecoder" if name == "decoder" else "UnimodalARForGeneration")
    assert report[name]["training"] is False


@pytest.mark.parametrize("name", SAVED)
def test_a_fresh_process_computes_the_same(report: dict[str, Any], name: str) -> None:
    """Trap 9.3: equal tensors are not enough where state lies in plain attributes."""
    assert report[name]["losses"] == []


@pytest.mark.parametrize("name", SAVED)
def test_dtype_is_the_files(report: dict[str, Any], name: str) -> None:
    """Trap 9.3.6: the dtype of a loaded model is the checkpoint's."""
    assert report[name]["dtypes"] == ["torch.bfloat16" if name.endswith("-bf16") else "torch.float32"]


def test_the_hosted_rotary_tables_are_checked_at_all(report: dict[str, Any]) -> None:
    """The tests above would pass in silence if these bodies had no buffers."""
    for body in ("llama", "qwen3"):
        assert any("inv_freq" in name for name in _buffers(_build(body)))


def test_dtype_can_be_chosen(tmp_path: Path) -> None:
    """Trap 9.3.6: the argument is `dtype`."""
    _build("llama").save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {x.dtype for x in loaded.parameters()} == {torch.bfloat16}
    assert loaded(_batch_as(loaded.dtype)).loss.isfinite()


def _batch_as(dtype: torch.dtype) -> list[Segment]:
    return [
        segment.replace(values=segment.values.to(dtype) if segment.values.is_floating_point() else segment.values)
        for segment in _batch()
    ]


def _without(folder: Path, *names: str) -> dict[str, Tensor]:
    """Deletes parameters from a checkpoint; returns what is left."""
    file = folder / "model.safetensors"
    weights = load_file(file)
    for name in names:
        del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    return weights


def _is_normal(x: Tensor, std: float) -> bool:
    """Whether x may be a draw from N(0, std); far too wide for chance to fail it, narrow enough for garbage to."""
    x = x.float()
    return bool(x.isfinite().all()) and 0.4 * std < x.std().item() < 2.2 * std and abs(x.mean().item()) < std


def _std(model: Any) -> float:
    return model.config.initializer_range


# Deleted parameter -> what it must become. Each has loaded siblings in its own module.
DELETED: dict[str, Any] = {
    "embeddings.label.start": _is_normal,
    "embeddings.label.null": _is_normal,
    "embeddings.series.value.weight": _is_normal,
    "embeddings.series.value.bias": lambda x, std: bool((x == 0).all()),
    "embeddings.series.covariates.weight": _is_normal,
    "embeddings.image.table.weight": _is_normal,
    "heads.series.proj.weight": lambda x, std: bool(x.isfinite().all()),
    "heads.image.proj.weight": lambda x, std: bool(x.isfinite().all()),
}


@pytest.mark.parametrize("name", DELETED)
@pytest.mark.parametrize("body", ["native", "llama"])
def test_a_missing_parameter_is_initialised_and_its_siblings_stay(body: str, name: str, tmp_path: Path) -> None:
    """Traps 9.3.2 and 9.3.7: unguarded initialisation of a module with one missing parameter overwrites its loaded
    siblings; a bare parameter that no rule reaches stays uninitialised."""
    model = _build(body)
    model.save_pretrained(tmp_path)
    kept = _without(tmp_path, name)
    loaded, info = UnimodalARForGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert info["missing_keys"] == {name}
    state = loaded.state_dict()
    assert [key for key, x in kept.items() if not torch.equal(x, state[key])] == []
    assert DELETED[name](state[name], _std(loaded)), state[name]
    assert not torch.equal(state[name], model.state_dict()[name])


def test_a_missing_decoder_weight_leaves_its_layer_alone(tmp_path: Path) -> None:
    """Trap 9.3.2, in the native decoder: norms, projections and adaptive norms."""
    model = _decoder()
    model.save_pretrained(tmp_path)
    gone = ["layers.0.self_attn.q_proj.weight", "layers.0.self_attn.q_norm.weight", "layers.1.modulation.proj.weight"]
    gone += ["layers.1.input_layernorm.weight", "modulation.proj.bias"]
    kept = _without(tmp_path, *gone)
    loaded = UnimodalARDecoder.from_pretrained(tmp_path)
    state = loaded.state_dict()
    assert [key for key, x in kept.items() if not torch.equal(x, state[key])] == []
    assert _is_normal(state[gone[0]], 0.02)
    assert (state[gone[1]] == 1).all() and (state[gone[3]] == 1).all()
    assert (state[gone[2]] == 0).all() and (state[gone[4]] == 0).all()


@pytest.mark.parametrize("body", ["llama", "gpt2", "mamba"])
def test_missing_coordinates_start_from_zero(body: str, tmp_path: Path) -> None:
    """Trap 9.3: the zero initialisation must hold after loading, not only in the constructor."""
    _build(body).save_pretrained(tmp_path)
    _without(tmp_path, "backbone.coordinates.proj.weight")
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    assert (loaded.backbone.coordinates.proj.weight == 0).all()


def test_an_unexpected_key_is_reported(tmp_path: Path) -> None:
    """Trap 9.3: the loading report is what tells of a renamed module."""
    _build("native").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file(load_file(file) | {"heads.audio.proj.weight": torch.zeros(1)}, file, metadata={"format": "pt"})
    _, info = UnimodalARForGeneration.from_pretrained(tmp_path, output_loading_info=True)
    assert info["unexpected_keys"] == {"heads.audio.proj.weight"} and not info["missing_keys"]


@pytest.mark.parametrize("body", BODIES)
def test_a_new_model_is_wholly_initialised(body: str) -> None:
    """Trap 9.3.7: bare parameters (start, null) get no default initialisation: memory is poisoned here."""
    model: Any = UnimodalARForGeneration(UnimodalARConfig(backbone=BODIES[body], modalities=_modalities()))
    assert [name for name, x in _tensors(model).items() if not x.isfinite().all()] == []
    for name in ("embeddings.label.start", "embeddings.label.null", "embeddings.image.start"):
        assert _is_normal(model.get_parameter(name), _std(model)), name
    position = model.embeddings["image"].target_position
    assert _is_normal(position.proj.weight, _std(model))  # unlike a hosted body's coordinates, not from zero
    if hasattr(model.backbone, "coordinates"):
        assert (model.backbone.coordinates.proj.weight == 0).all()


def test_bare_parameters_follow_initializer_range() -> None:
    """Trap 9.3.7: own branches of _init_weights must use the configured range."""
    body = {**BODIES["native"], "initializer_range": 0.5}
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=body, modalities=_modalities()))
    assert _is_normal(model.get_parameter("embeddings.label.null"), 0.5)


def test_adaptive_norms_start_as_the_identity() -> None:
    """Trap 9.3.7: transformers' rule for linear layers would make them random."""
    config = UnimodalARDecoderConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, conditioning_size=6)
    model = UnimodalARDecoder(config).eval()
    modulations = [x for name, x in model.named_parameters() if "modulation" in name]
    assert len(modulations) == 6 and all((x == 0).all() for x in modulations)
    x = torch.randn(1, 4, 32)
    torch.testing.assert_close(model(x, conditioning=torch.randn(1, 6)).last_hidden_state, model.norm(x))


@pytest.mark.parametrize("body", ["llama", "qwen3", "gpt2", "mamba"])
def test_from_backbone_takes_over_the_pretrained_body(body: str, tmp_path: Path) -> None:
    """Trap 9.3.1: the body's weights and rotary tables must be the pretrained ones, by object and by path."""
    torch.manual_seed(5)
    options = {key: value for key, value in BODIES[body].items() if key != "model_type"}
    pretrained: PreTrainedModel = _disturbed(AutoModel.from_config(CONFIG_MAPPING[body](**options)))
    pretrained.save_pretrained(tmp_path)
    for source in (pretrained, str(tmp_path)):
        model = UnimodalARForGeneration.from_backbone(source, _modalities())
        body_now = _tensors(model.backbone.model)
        assert [name for name, x in _tensors(pretrained).items() if not torch.equal(x, body_now[name])] == []


def test_from_backbone_keeps_the_bodys_dtype(tmp_path: Path) -> None:
    """Trap 9.3.6: a body in bf16 gives a model in bf16, whose rotary tables are those of a body loaded in bf16."""
    options = {key: value for key, value in BODIES["llama"].items() if key != "model_type"}
    AutoModel.from_config(CONFIG_MAPPING["llama"](**options)).to(torch.bfloat16).save_pretrained(tmp_path)
    model = UnimodalARForGeneration.from_backbone(str(tmp_path), _modalities())
    assert {x.dtype for x in model.parameters()} == {torch.bfloat16}
    assert model(_batch_as(torch.bfloat16)).loss.isfinite()
    alone = dict(AutoModel.from_pretrained(tmp_path).named_buffers())["rotary_emb.inv_freq"]
    hosted = dict(model.backbone.model.named_buffers())["rotary_emb.inv_freq"]
    assert hosted.dtype == alone.dtype and torch.equal(hosted, alone)


def test_sharded_checkpoints(tmp_path: Path) -> None:
    """Trap 9.3: shards are loaded one by one; every module must find its parameters in whichever file they lie."""
    model = _build("native")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    loaded = _tensors(UnimodalARForGeneration.from_pretrained(tmp_path))
    assert all(torch.equal(x, loaded[name]) for name, x in _tensors(model).items())


def test_a_loaded_model_trains_and_saves_again(tmp_path: Path) -> None:
    """Trap 9.3: what was built on the meta device must be ordinary afterwards, for gradients and for a second save."""
    _build("llama").save_pretrained(tmp_path / "one")
    model = UnimodalARForGeneration.from_pretrained(tmp_path / "one").train()
    model(_batch()).loss.backward()
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    without = {name for name in trained if model.get_parameter(name).grad is None}
    # The image's start is used, the label's is not: it is only context. A frozen token table is the body's own.
    assert without <= {"embeddings.label.start", "embeddings.label.null"}
    model.save_pretrained(tmp_path / "two")
    again = _tensors(UnimodalARForGeneration.from_pretrained(tmp_path / "two"))
    assert all(torch.equal(x, again[name]) for name, x in _tensors(model).items())


def test_a_random_order_is_the_same_after_loading(tmp_path: Path) -> None:
    """The permutation outside training follows from the saved seed, not from a saved tensor or the global generator."""
    model = _build("native")
    model.save_pretrained(tmp_path)
    torch.manual_seed(99)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    assert torch.equal(loaded.layout("image", (1, 2, 3)).index, model.layout("image", (1, 2, 3)).index)


def test_model_and_adapter_share_a_folder(tmp_path: Path) -> None:
    """Neither overwrites the other's files, in either order."""
    model, adapter = _build("native"), TimeSeriesAdapter(patch=4, lookback=16)
    for first, second in ((model, adapter), (adapter, model)):
        first.save_pretrained(tmp_path)
        second.save_pretrained(tmp_path)
        assert AutoAdapter.from_pretrained(tmp_path).config() == adapter.config()
        assert math.isclose(
            UnimodalARForGeneration.from_pretrained(tmp_path)(_batch()).loss.item(), model(_batch()).loss.item()
        )
