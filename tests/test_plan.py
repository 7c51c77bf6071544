"""What a plan says: against counts by hand, against trainings, and where it cannot know."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from accelerate.data_loader import BatchSamplerShard  # type: ignore[import-untyped]
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import BatchSampler, SequentialSampler
from transformers import (
    LlamaConfig,
    LlamaModel,
    MambaConfig,
    MambaModel,
    Qwen3MoeConfig,
    Qwen3MoeModel,
    TrainingArguments,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.test_training import _TOYS, _document, _toy_backbone, _toy_codec
from unimodal_ar.cli import main
from unimodal_ar.masks import AttentionPattern
from unimodal_ar.training.documents import load_recipe, shipped_recipes
from unimodal_ar.training.fit import fit
from unimodal_ar.training.memory import count_flops, kept_memory, peak_memory
from unimodal_ar.training.plan import LAYERS, _steps, plan
from unimodal_ar.training.recipe import Resolved

CPU = torch.device("cpu")
BAND = (0.75, 1.1)  # of the estimate, as a part of what is measured


def _deep(tmp_path: Path, layers: int = 3, **changes: Any) -> dict[str, Any]:
    """A toy whose activations weigh more than what every step has besides."""
    document = _document(tmp_path, **changes)
    document["model"]["backbone"] |= {"hidden_size": 32, "num_hidden_layers": layers}
    document["training"]["per_device_train_batch_size"] = 12
    return document


def _pretrained(tmp_path: Path, body: Any, **changes: Any) -> dict[str, Any]:
    body.save_pretrained(tmp_path / "body")
    document = _document(tmp_path, **changes)
    document["model"]["backbone"] = {"pretrained": str(tmp_path / "body")}
    return document


def _llama(layers: int = 3) -> LlamaModel:
    size: dict[str, Any] = dict(hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
    return LlamaModel(LlamaConfig(**size, num_hidden_layers=layers, vocab_size=16))


# --- memory and operations --------------------------------------------------------------------------------------------


def test_kept_memory_by_hand() -> None:
    """The input of a linear map, what is squared, the output of a ReLU; no parameter, and no storage twice."""
    linear, x = nn.Linear(8, 16, bias=False), torch.randn(4, 8)
    hidden = 4 * 16 * 4

    def forward() -> torch.Tensor:
        return (linear(x) ** 2).relu().sum()

    assert kept_memory(forward, linear.parameters()) == x.nbytes + 2 * hidden
    assert kept_memory(forward) == x.nbytes + 2 * hidden  # a weight is kept for the gradient of an input alone
    x.requires_grad_()
    assert kept_memory(forward) == x.nbytes + 2 * hidden + linear.weight.nbytes
    assert kept_memory(forward, linear.parameters()) == x.nbytes + 2 * hidden
    assert kept_memory(lambda: (x.exp() * x.exp()).detach()) == 0  # gone before the end
    twice = x.exp()
    assert kept_memory(lambda: twice * twice[:2].repeat(2, 1) + twice**2) == twice.nbytes + x.nbytes


def test_what_is_checkpointed_keeps_its_input() -> None:
    layers, x = nn.Sequential(*(nn.Linear(8, 8) for _ in range(5))), torch.randn(4, 8, requires_grad=True)
    assert kept_memory(lambda: layers(x).sum(), layers.parameters()) == 5 * x.nbytes
    assert kept_memory(lambda: checkpoint(layers, x, use_reentrant=False).sum(), layers.parameters()) == x.nbytes


def test_peak_memory_by_hand() -> None:
    def step() -> torch.Tensor:
        first = torch.zeros(1000) + 1  # 8000 bytes, of which 4000 stay
        second = torch.zeros(1500)
        del first
        return second + 1  # 12000

    assert 12000 <= peak_memory(step, CPU) < 12100
    held = torch.zeros(5000)
    assert peak_memory(lambda: held.sum(), CPU) < 100  # not what was there before
    assert peak_memory(lambda: None, CPU) == 0


@pytest.mark.parametrize("groups", [4, 2])
def test_operations_of_attention_by_hand(groups: int) -> None:
    """2 x pairs x channels for the scores and for what they weigh; five such products backwards."""
    q = torch.randn(2, 4, 6, 8, requires_grad=True)
    k, v = (torch.randn(2, groups, 5, 8, requires_grad=True) for _ in range(2))

    def attend() -> torch.Tensor:
        return nn.functional.scaled_dot_product_attention(q, k, v, enable_gqa=groups != 4)

    product = 2 * (2 * 4 * 6 * 5 * 8)
    assert count_flops(attend) == 2 * product
    assert count_flops(lambda: attend().sum().backward()) == 7 * product


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (4, 2), (6, 2)])
@pytest.mark.parametrize("padded", [False, True])
def test_operations_of_flex_attention_by_hand(padded: bool, heads: int, groups: int) -> None:
    """Of tiles of 128 x 128, of which 3 of 4 are seen; if the second example's last 128 keys hold nothing, the tile on
    the diagonal is, by each from itself."""
    q = torch.randn(2, heads, 256, 8, requires_grad=True)
    k, v = (torch.randn(2, groups, 256, 8, requires_grad=True) for _ in range(2))
    valid = (torch.arange(256) < torch.tensor([[256], [128]])) if padded else None
    mask, own = AttentionPattern(torch.arange(256) // 128, 256, valid).flex(), ALL_ATTENTION_FUNCTIONS["flex_attention"]

    def attend() -> torch.Tensor:
        out, _ = ALL_ATTENTION_FUNCTIONS["flex_attention"](nn.Identity(), q, k, v, mask, scaling=1.0)
        assert out.shape == (2, 256, heads, 8)
        return out

    product = 2 * (2 * heads * 3 * 128 * 128 * 8)
    assert count_flops(attend) == 2 * product
    assert count_flops(lambda: attend().sum().backward()) == 7 * product
    assert q.grad is not None and k.grad is not None and v.grad is not None
    shared = heads if heads == 6 else groups  # of no power of two none
    assert kept_memory(attend) == 2 * 256 * 8 * 4 * (2 * heads + 2 * shared) + 2 * 256 * heads * 4
    assert ALL_ATTENTION_FUNCTIONS["flex_attention"] is own


# --- a plan -----------------------------------------------------------------------------------------------------------


def test_a_plan_by_hand(tmp_path: Path) -> None:
    """A decoder of width 8 over patches of 4 steps, 13 windows of 20 steps."""
    found = plan(_document(tmp_path), step=False)
    body = 4 * 8 * 8 + 2 * 4 + 3 * 8 * 32 + 3 * 8  # attention, its norms, the MLP, norms
    parts = found["parameters"]
    assert parts["backbone"]["all"] == parts["backbone"]["trained"] == body
    assert parts["heads.series"]["all"] == 8 * 4 + 4
    model = Resolved(_document(tmp_path)).new_model()
    whole = sum(x.numel() for x in model.parameters())
    assert parts["all"]["all"] == sum(part["all"] for name, part in parts.items() if name != "all") == whole
    tensors = len(list(model.parameters()))
    expected = {"weights": 4 * whole, "gradients": 4 * whole, "optimiser": 8 * whole + 4 * tensors, "ema": 0}
    assert expected.items() <= parts["all"].items() and parts["all"]["dtypes"] == ["float32"]
    target = {"modality": "series", "grid": [5, 1, 1], "blocks": 5, "largest": 1}
    sequence = {"positions": 5, "prompt": 0, "context": 0, "clean": 5, "noisy": 0, "targets": [target]}
    assert found["sequence"] == sequence and found["notes"] == [] and found["step"] is None
    batch = {"per_device": 4, "accumulation": 1, "processes": 1, "all": 4}
    data = {"unit": "windows", "training": 13, "validation": 3, "batch": batch, "steps_per_epoch": 4, "steps": 4}
    assert found["data"] == data
    linear, attention = 4 * 8 * 8 + 3 * 8 * 32 + 8 * 4, 7 * 2 * (2 * 5 * 5 * 4)
    read = 2 * 4 * 8  # of values and of what of them is observed, which need no gradients
    assert found["flops"] == 4 * (6 * 5 * linear + attention + 4 * 5 * read)
    assert found["cache"] == {"positions": 5, "bytes": 2 * 5 * 8 * 4, "samples": None}
    kept = found["activations"]
    assert kept["bytes"] == kept["one"] + 3 * (kept["two"] - kept["one"]) and kept["examples"] == 4
    assert found["estimate"] == 4 * whole * 4 + 4 * tensors + kept["bytes"]


@pytest.mark.parametrize("kind", ["unimodal_ar_decoder", "llama"])
def test_flex_attention_where_no_step_is_to_be_had(kind: str, tmp_path: Path) -> None:
    """It takes whole tiles, and what a GPU would have to compute and keep can be told on a machine without one."""
    document = _deep(tmp_path)
    body: dict[str, Any] = {"model_type": kind, "hidden_size": 32, "num_hidden_layers": 3, "intermediate_size": 64}
    body |= {"num_attention_heads": 4, "num_key_value_heads": 4, "attn_implementation": "flex_attention"}
    document["model"]["backbone"] = body | ({"qk_norm": None} if kind == "unimodal_ar_decoder" else {"vocab_size": 16})
    document["model"]["modalities"]["series"]["layout"] = {"block": 2}
    document["data"]["horizon"] = document["adapters"]["series"]["lookback"] = 8
    document["training"]["use_cpu"] = True
    found, outlined = plan(document), plan(document, step=False)
    assert found["notes"] == ["no step is measured: on the CPU FlexAttention has no backward pass"]
    assert outlined == found | {"notes": []} and found["step"] is None and found["sequence"]["positions"] == 4
    document["model"]["backbone"]["attn_implementation"] = "sdpa"
    flex, sdpa = (6 * n * (4 * 32 * 32 + 3 * 32 * 64) + 7 * 2 * (4 * n * n * 8) for n in (128, 4))  # of a layer
    more = found["flops"] - plan(document, step=False)["flops"]
    assert more == pytest.approx(12 * 3 * (flex - sdpa), rel=1e-5)  # and rotations of some versions of Llama
    kept = 3 * (5 * 128 * 32 + 4 * 128) * 4  # inputs of linear maps, queries, keys, values and what is attended to
    assert found["activations"]["two"] - found["activations"]["one"] > kept


def test_processes_and_accumulation(tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["training"] |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 3, "max_steps": -1}
    alone, together = plan(document, step=False), plan(document, step=False, processes=2)
    assert together["data"]["batch"] == {"per_device": 2, "accumulation": 3, "processes": 2, "all": 12}
    assert together["flops"] == 2 * alone["flops"] and together["activations"] == alone["activations"]
    assert together["estimate"] - alone["estimate"] == alone["parameters"]["all"]["gradients"]  # what DDP sends
    assert alone["data"]["steps_per_epoch"] == 3 and alone["data"]["steps"] == 9  # 13 examples, 7 batches
    assert together["data"]["steps_per_epoch"] == 2  # 4 batches of each


@pytest.mark.parametrize(
    ("batch", "accumulation", "epochs", "drop_last"),
    [(3, 2, 1.5, True), (13, 4, 1, True), (2, 3, 0.4, False)],
)
def test_steps_are_those_of_the_training(
    batch: int, accumulation: int, epochs: float, drop_last: bool, tmp_path: Path
) -> None:
    document = _document(tmp_path)
    training = {"num_train_epochs": epochs, "dataloader_drop_last": drop_last, "eval_strategy": "no", "max_steps": -1}
    training |= {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    document["training"] |= training
    arguments: Any = Resolved(document).training_arguments(tmp_path)
    assert _steps(arguments, 13, 1)["steps"] == fit(Resolved(document), tmp_path / "checkpoints").state.max_steps
    batches = BatchSampler(SequentialSampler(range(13)), batch, drop_last)
    shard = BatchSamplerShard(batches, num_processes=2, process_index=0)
    assert _steps(arguments, 13, 2)["steps_per_epoch"] == max(math.ceil(len(shard) / accumulation), 1)


@pytest.mark.parametrize("optim", ["sgd", "adafactor"])
def test_the_state_of_optimisers_is_what_they_keep(optim: str, tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["training"] |= {"optim": optim, "eval_strategy": "no"}
    trainer = fit(Resolved(document), tmp_path / "checkpoints")
    states = trainer.optimizer.state.values()  # type: ignore[union-attr]
    kept = sum(x.nbytes for state in states for x in state.values() if isinstance(x, torch.Tensor))
    assert plan(document, step=False)["parameters"]["all"]["optimiser"] == kept
    assert (kept == 0) == (optim == "sgd")


def test_a_state_that_is_not_foreseen_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of optimisers of 8 bits, which take no step without values."""
    known = plan(_document(tmp_path))
    monkeypatch.setattr("unimodal_ar.training.plan._optimiser_bytes", lambda *_: None)
    found = plan(_document(tmp_path))
    assert found["estimate"] is None and found["step"]["bytes"] == known["step"]["bytes"]


def test_an_optimiser_that_is_not_there(tmp_path: Path) -> None:
    document = _document(tmp_path)
    document["training"]["optim"] = "galore_adamw"
    document["training"]["optim_target_modules"] = ["mlp"]
    found = plan(document, step=False)
    assert found["parameters"]["all"]["optimiser"] is None and found["estimate"] is None
    assert found["notes"][0].startswith("the state of training.optim 'galore_adamw' is not known (")


# --- with a step, and without -----------------------------------------------------------------------------------------


def _checked(document: dict[str, Any]) -> dict[str, Any]:
    """A plan with a step, whose estimate is near the truth, and whose counts one without a step has, too."""
    found, outlined = plan(document), plan(document, step=False)
    assert found["notes"] == outlined["notes"]
    differ = {key for key in found if found[key] != outlined[key]}
    assert differ == {"step"}
    step = found["step"]
    assert BAND[0] <= found["estimate"] / step["bytes"] <= BAND[1] and step["seconds"] > 0 and step["device"] == "cpu"
    return found


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated")
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_native_model(checkpointing: bool, tmp_path: Path) -> None:
    document = _deep(tmp_path, 5, ema={"decay": 0.9})
    document["training"] |= {"gradient_checkpointing": checkpointing, "gradient_accumulation_steps": 3}
    found = _checked(document)
    parts, step = found["parameters"]["all"], found["step"]
    assert parts["ema"] == 4 * parts["trained"] == parts["weights"]
    assert (step["examples"], step["micro_batches"]) == (12, 2)
    layer = 5 * 32 * 4  # inputs of one example
    if checkpointing:
        assert found["activations"]["two"] - found["activations"]["one"] < 5 * layer + 6 * layer
    else:
        assert found["activations"]["two"] - found["activations"]["one"] > 5 * 10 * layer


@pytest.mark.parametrize("peft", [None, {"method": "lora", "r": 2}])
def test_a_frozen_body_and_layers_of_peft(peft: dict[str, Any] | None, tmp_path: Path) -> None:
    found = _checked(_pretrained(tmp_path, _llama(), peft=peft, ema={"decay": 0.9}))
    body, parts = _llama(), found["parameters"]
    size = sum(x.numel() for x in body.parameters())
    frozen = {"all": size, "trained": 0, "weights": 4 * size, "gradients": 0, "optimiser": 0, "ema": 0}
    assert frozen.items() <= parts["backbone"].items()
    trained = parts["all"]["all"] - size
    assert parts["all"]["trained"] == trained and parts["all"]["ema"] == 4 * trained
    maps = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 48)  # q and o, k and v, MLP
    assert (parts[LAYERS]["all"] if peft else 0) == (3 * 2 * maps if peft else 0)
    assert (LAYERS in parts) == bool(peft)


def test_layers_of_peft_alone(tmp_path: Path) -> None:
    """What stands beside the body is frozen, too, in a model that was trained before."""
    peft = {"method": "lora", "r": 2, "modules_to_save": []}
    document = _pretrained(tmp_path, _llama(), peft=peft, init_from=str(tmp_path / "first"))
    parts = plan(document, step=False)["parameters"]
    assert {name for name, part in parts.items() if part["trained"]} == {LAYERS, "all"}
    assert parts["heads.series"]["all"] > 0 and parts["heads.series"]["gradients"] == 0


def test_a_body_in_bfloat16_with_a_soft_prompt(tmp_path: Path) -> None:
    document = _pretrained(tmp_path, _llama(), peft={"method": "prompt", "length": 3})
    document["model"]["backbone"]["dtype"] = "bfloat16"
    document["training"]["per_device_train_batch_size"] = 12
    found = _checked(document)
    size, parts = sum(x.numel() for x in _llama().parameters()), found["parameters"]
    assert parts["backbone"]["weights"] == 2 * size and parts["backbone"]["dtypes"] == ["bfloat16"]
    assert parts["backbone.soft_prompt"]["trained"] == 3 * 32 and parts["all"]["dtypes"] == ["bfloat16", "float32"]
    sequence = found["sequence"]
    assert (sequence["positions"], sequence["prompt"], sequence["clean"], found["cache"]["positions"]) == (8, 3, 5, 8)
    assert found["cache"]["bytes"] == 2 * 3 * 8 * 2 * 8 * 2


@pytest.mark.parametrize(
    ("options", "maps", "blocks"),
    [({"bits": 8}, 1.0, None), ({"bits": 4, "double": False}, 0.5, 4.0), ({"bits": 4}, 0.5, 1 + 4 / 256)],
)
def test_a_quantised_body(options: dict[str, Any], maps: float, blocks: float | None, tmp_path: Path) -> None:
    """Maps of 64 x 64 and 64 x 128: scales for 64 weights, or for a row of 8 bits."""
    size: dict[str, Any] = dict(hidden_size=64, intermediate_size=128, num_attention_heads=4, num_hidden_layers=4)
    body = LlamaModel(LlamaConfig(**size, vocab_size=16))
    document = _pretrained(tmp_path, body)
    document["model"]["backbone"] |= {"quantization": options, "dtype": "bfloat16"}
    part = plan(document, step=False)["parameters"]["backbone"]
    linear = 4 * (4 * 64 * 64 + 3 * 64 * 128)
    scales = 4 * 4 * (4 * 64 + 2 * 128 + 64) if blocks is None else linear / 64 * blocks
    beside = sum(x.numel() for x in body.parameters()) - linear
    assert part["weights"] == pytest.approx(linear * maps + scales + 2 * beside, abs=4 * 28)
    assert part["dtypes"] == [f"{options['bits']} bits", "bfloat16"]


def test_block_diffusion_has_two_streams(tmp_path: Path) -> None:
    document = _deep(tmp_path)
    document["data"]["horizon"], document["adapters"]["series"]["lookback"] = 12, 8
    document["model"]["modalities"]["series"] |= {
        "objective": {"kind": "block_diffusion", "noise": "gaussian"},
        "layout": {"block": 2},
        "head": {"kind": "regression"},
    }
    found = _checked(document)
    target = {"modality": "series", "grid": [5, 1, 1], "blocks": 3, "largest": 2}
    # Nobody reads the last block, of one element.
    expected = {"positions": 9, "prompt": 0, "context": 0, "clean": 4, "noisy": 5, "targets": [target]}
    assert found["sequence"] == expected and found["cache"]["positions"] == 5


def test_a_label_before_the_digits() -> None:
    document = load_recipe("block_diffusion/digits_mask", ["training.use_cpu=true"])
    found = plan(document, step=False)
    sequence = found["sequence"]
    assert [sequence[key] for key in ("positions", "context", "clean", "noisy")] == [121, 1, 56, 64]
    assert found["data"]["training"] == 1437 and found["cache"]["samples"] == 200  # 100, and without the label
    starting = ["model.modalities.image.objective=null", "model.modalities.image.start=context"]
    found = plan(
        load_recipe("block_diffusion/digits_mask", ["training.use_cpu=true", "evaluation=null", *starting]), False
    )
    assert [found["sequence"][key] for key in ("positions", "context", "clean", "noisy")] == [64, 0, 64, 0]


def test_without_a_step_nothing_large_is_built(tmp_path: Path) -> None:
    """0.3 G parameters take 1.1 GiB, those of two layers 0.1."""
    document = _document(tmp_path)
    document["model"]["backbone"] |= {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 8}
    found: list[dict[str, Any]] = []
    taken = peak_memory(lambda: found.append(plan(document, step=False)), CPU)
    assert found[0]["parameters"]["all"]["weights"] > 2**30 and taken < 0.25 * 2**30
    assert found[0]["activations"]["bytes"] > 4 * 24 * 10 * (5 * 1024 * 4)


def test_what_does_not_fit_is_told_before_it_is_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = plan(_document(tmp_path), step=False)
    assert known["step"] is None and known["notes"] == []
    fixed = sum(known["parameters"]["all"][key] for key in ("weights", "gradients", "optimiser"))
    for free, what in ((1000, "a step without its activations"), (fixed, "a step of the model")):
        memory = SimpleNamespace(available=free, total=known["estimate"] - 1)
        monkeypatch.setattr("psutil.virtual_memory", lambda memory=memory: memory)
        expected = rf"^{what} takes .* of memory, .* are free; --no-step tells what can be told without it$"
        with pytest.raises(ValueError, match=expected):
            plan(_document(tmp_path))
    (note,) = plan(_document(tmp_path), step=False)["notes"]
    assert re.fullmatch(r"a step would take some .* GiB, which is more than the .* GiB of cpu", note)


# --- what generation keeps --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False])
def test_the_cache_is_that_of_generation(native: bool, tmp_path: Path) -> None:
    document, groups = _deep(tmp_path), 2
    sizes = {"num_attention_heads": 4, "num_key_value_heads": groups, "hidden_size": 32, "num_hidden_layers": 3}
    kind = {"model_type": "unimodal_ar_decoder"} if native else {"model_type": "llama", "intermediate_size": 32}
    document["model"]["backbone"] = kind | sizes
    found = plan(document, step=False)
    model = Resolved(document).new_model().eval()
    cache = model.backbone.new_cache()
    model.backbone.new_cache = lambda: cache
    model.generate([], "series", num_samples=2)
    stored = sum(x.nbytes for layer in cache.layers for x in (layer.keys, layer.values))
    assert stored == 2 * found["cache"]["bytes"] == 2 * 3 * 2 * 5 * groups * 8 * 4


def test_a_body_with_a_state_has_no_cache(tmp_path: Path) -> None:
    body = MambaModel(MambaConfig(hidden_size=16, num_hidden_layers=3, vocab_size=8, state_size=4))
    found = plan(_pretrained(tmp_path, body), step=False)
    assert found["cache"] is None
    assert found["notes"] == ["what generation keeps is not known: a mamba backbone keeps a state instead of attending"]


# --- what it cannot know ----------------------------------------------------------------------------------------------


def test_data_that_are_not_here(tmp_path: Path) -> None:
    document = _deep(tmp_path)
    known = plan(document, step=False)
    document["data"]["path"] = str(tmp_path / "nowhere.csv")
    found = plan(document)
    (note,) = found["notes"]
    assert note.startswith("training would not begin: ") and "nowhere.csv" in note and "made up" in note
    assert all(found[key] == known[key] for key in ("parameters", "sequence", "flops", "cache"))
    # Series that are read say of every value that it is observed.
    assert found["activations"]["bytes"] == pytest.approx(known["activations"]["bytes"], rel=0.02)
    assert found["data"]["training"] is None and found["data"]["steps"] == 4 and found["step"]["bytes"] > 0
    del document["training"]["max_steps"]
    assert plan(document, step=False)["data"]["steps"] is None


def test_a_model_to_start_from_that_is_not_here(tmp_path: Path) -> None:
    document = _document(tmp_path, init_from=str(tmp_path / "first"))
    (note,) = plan(document, step=False)["notes"]
    assert (
        note == f"init_from is {str(tmp_path / 'first')!r}, where there is no model yet; this is of one that would fit"
    )


def test_layers_that_differ(tmp_path: Path) -> None:
    """PEFT in one layer alone cannot be continued."""
    peft = {"method": "lora", "target": ["layers.2.self_attn.q_proj"]}
    found = plan(_pretrained(tmp_path, _llama(), peft=peft), step=False)
    assert found["activations"] is found["flops"] is found["estimate"] is found["sequence"]["positions"] is None
    assert found["notes"][0].startswith("activations are not known without a step: peft.target has 'layers.2.")
    found = plan(_pretrained(tmp_path, _llama(), peft=peft))
    assert found["activations"] is not None and found["notes"] == []


def test_layers_of_other_sizes(tmp_path: Path) -> None:
    size: dict[str, Any] = dict(hidden_size=16, num_attention_heads=2, num_key_value_heads=2, head_dim=8, vocab_size=8)
    experts: dict[str, Any] = dict(num_experts=4, moe_intermediate_size=8, intermediate_size=64, mlp_only_layers=[2])
    body = Qwen3MoeModel(Qwen3MoeConfig(**size, **experts, num_hidden_layers=3))
    (note,) = plan(_pretrained(tmp_path, body), step=False)["notes"]
    assert note == "activations are not known without a step: the layers of the backbone are not of one size"


@pytest.mark.skipif(not hasattr(TrainingArguments, "activation_checkpointing"), reason="transformers knows it not yet")
def test_not_every_layer_checkpointed(tmp_path: Path) -> None:
    document = _deep(tmp_path)
    every = {"every_n_layers": 2, "use_reentrant": False}
    document["training"] |= {"activation_checkpointing": True, "activation_checkpointing_kwargs": every}
    (note,) = plan(document, step=False)["notes"]
    assert note == "activations are not known without a step: not every layer is checkpointed"
    kept = plan(document)["activations"]["bytes"]
    document["training"]["activation_checkpointing_kwargs"] = None
    assert kept > 1.5 * plan(document)["activations"]["bytes"]


def _kinds_of_recipes() -> list[str]:
    """A shipped recipe of each folder and kind of data."""
    names = reversed(shipped_recipes())
    return sorted({(name.split("/")[0], load_recipe(name)["data"]["kind"]): name for name in names}.values())


@pytest.mark.parametrize("name", _kinds_of_recipes())
def test_shipped_recipes_can_be_planned(name: str, tmp_path: Path) -> None:
    """At toy size, with toys for data."""
    document = load_recipe(name)
    _toy_backbone(document["model"]["backbone"], tmp_path)
    _toy_codec(document, tmp_path)
    _TOYS[document["data"]["kind"]](document, tmp_path)
    document["data"] |= {key: None for key in ("target", "classes") if key in document["data"]}  # toys have others
    document["training"] |= {"per_device_train_batch_size": 2, "use_cpu": True}
    found = plan(document, step=False)
    assert all("init_from" in note for note in found["notes"]), found["notes"]
    assert found["estimate"] > 0 and found["flops"] > 0 and found["data"]["steps"] > 0 and found["cache"]["bytes"] > 0
    sequence = found["sequence"]
    assert sequence["positions"] == sum(sequence[kind] for kind in ("context", "clean", "noisy"))


# --- the command ------------------------------------------------------------------------------------------------------


def _write(document: dict[str, Any], folder: Path) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_the_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe, file = _write(_document(tmp_path, ema={"decay": 0.9}), tmp_path), tmp_path / "plan.json"
    changes = ["--set", "training.gradient_accumulation_steps=2", "--processes", "2", "--json", str(file)]
    assert main(["plan", recipe, *changes, "--device", "cpu"]) == 0
    out, noise = capfd.readouterr()
    assert noise == ""
    found = json.loads(file.read_text())
    lines = {line.split("  ")[0]: " ".join(line.split()) for line in out.splitlines()}
    whole = found["parameters"]["all"]["all"]
    assert lines["all"].startswith(f"all {whole:,} {whole:,} ") and lines["all"].endswith(" float32")
    assert lines["target"] == "target series, 5 x 1 x 1: 5 blocks of 1 element"
    assert lines["positions per example"] == "positions per example 5 (5 clean)"
    assert lines["examples"] == "examples 13 training, 3 validation windows"
    assert lines["batch"] == "batch 16 = 4 per process x 2 accumulation x 2 processes"
    assert lines["steps"] == "steps 1 per epoch, at most 4 in all"
    assert lines["memory, measured"].endswith("at its highest, in a step of 2 x 4 examples on cpu")
    assert lines["time, measured"].startswith(
        f"time, measured {found['step']['seconds']:.3g} s for that step; at most "
    )
    assert lines["cache of generation"] == "cache of generation 320 B per sample of 5 positions"
    assert lines[f"Wrote {file}"] and not (tmp_path / "run").exists()


def test_the_command_without_a_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document(tmp_path)
    document["data"]["path"] = "nowhere.csv"
    assert main(["plan", _write(document, tmp_path), "--no-step"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Note: training would not begin: ") and "measured" not in out and "\nexamples" not in out


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            ["--set", "training.learning_rat=1"],
            "training has an unknown key 'learning_rat'; did you mean 'learning_rate'?",
        ),
        (["--set", "adapters.series.patch=0"], "adapters.series.patch is 0: "),
        (["--processes", "0"], "--processes is 0; it must be at least 1"),
        (["--device", "tpu"], "--device is 'tpu'; it must be 'cpu' or 'cuda' (CUDA_VISIBLE_DEVICES says which)"),
        (["--json", "no/where.json"], "--json is 'no/where.json'; its folder 'no' must be there"),
    ],
)
def test_what_the_command_refuses(
    options: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", _write(_document(tmp_path), tmp_path), *options]) == 2
    assert capsys.readouterr().err.startswith(f"error: {expected}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there(tmp_path: Path) -> None:
    document = _document(tmp_path)
    del document["training"]["use_cpu"]
    with pytest.raises(ValueError, match="--device is 'cuda'; training would run on 'cpu' here"):
        plan(document, device="cuda")
