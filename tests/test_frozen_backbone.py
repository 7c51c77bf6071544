"""Pretrained bodies that stay as they are: no gradient, no optimiser state, no dropout, no activation kept in vain."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module  # type: ignore[import-untyped]
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaModel,
    TrainingArguments,
)

from tests.helpers import diffusion, perturb, series
from unimodal_ar import Segment, UnimodalARConfig, UnimodalARDecoder, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.training import UnimodalARTrainer

WIDTH, LAYERS, INNER, STEPS, BATCH = 32, 2, 80, 6, 3
SIZES: dict[str, Any] = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, vocab_size=11)
IDS: dict[str, Any] = dict(bos_token_id=0, eos_token_id=0, pad_token_id=0)
GROUPED = SIZES | IDS | dict(intermediate_size=INNER, num_key_value_heads=2)
MOE = dict(moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2)
BODIES: dict[str, dict[str, Any]] = {
    "llama": GROUPED,
    "mistral": GROUPED,
    "qwen2": GROUPED,
    "qwen3": GROUPED | dict(head_dim=8),
    "gemma": GROUPED | dict(head_dim=8),
    "qwen3_moe": GROUPED | dict(head_dim=8) | MOE,
    "gpt2": IDS | dict(n_embd=WIDTH, n_layer=LAYERS, n_head=4, n_positions=32, vocab_size=11),
    "opt": SIZES | IDS | dict(ffn_dim=48, word_embed_proj_dim=WIDTH, max_position_embeddings=32),
}
FUTURE = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")
X = {"x": series(dim=4, grid=(STEPS, 1, 1))}


def _language_model(kind: str, seed: int = 0, **changes: Any) -> Any:
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**(BODIES[kind] | changes)))
    perturb(model, 0.05, seed)
    return model.eval()


def _frozen(kind: str = "llama", modalities: dict[str, Any] = X, freeze: bool = True, **changes: Any) -> Any:
    return UnimodalARForGeneration.from_backbone(_language_model(kind, **changes), modalities, freeze=freeze)


def _batch(seed: int = 1, batch: int = BATCH) -> list[Segment]:
    values = torch.randn(batch, STEPS, 4, generator=torch.Generator().manual_seed(seed))
    return [Segment("x", values, (STEPS, 1, 1))]


def _body(model: Any) -> Any:
    return model.backbone.model


# --- which bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", BODIES)
def test_any_decoder_body_can_be_frozen_and_trained_around(kind: str, tmp_path: Path) -> None:
    """By name, and as the object with its head: the same body, which a step leaves alone, while what stands before it
    gets a gradient through it."""
    language_model = _language_model(kind)
    language_model.save_pretrained(tmp_path)
    weights = {name: x.clone() for name, x in language_model.base_model.state_dict().items()}
    for source in (str(tmp_path), tmp_path, language_model):
        model = UnimodalARForGeneration.from_backbone(source, X, freeze=True).train()
        optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.1)
        before = model.embeddings["x"].value.weight.detach().clone()
        model(_batch()).loss.backward()
        optimizer.step()
        assert not any(x.requires_grad or x.grad is not None for x in _body(model).parameters())
        assert (model.embeddings["x"].value.weight - before).abs().min() > 0
        found = _body(model).state_dict()
        assert found.keys() == weights.keys() and all(torch.equal(found[name], x) for name, x in weights.items())


def test_an_object_is_copied_and_left_alone() -> None:
    body = _language_model("llama").train()
    model = UnimodalARForGeneration.from_backbone(body, X, freeze=True)
    assert all(x.requires_grad for x in body.parameters()) and body.training and body.model.layers[0].training
    assert not {x.data_ptr() for x in body.parameters()} & {x.data_ptr() for x in model.parameters()}


def test_a_body_that_is_not_frozen_is_trained() -> None:
    model = _frozen(freeze=False).train()
    assert model.config.freeze_backbone is False and _body(model).training
    assert {name for name, x in _body(model).named_parameters() if not x.requires_grad} == {"embed_tokens.weight"}


def test_the_native_decoder_can_be_frozen_too() -> None:
    torch.manual_seed(0)
    shape: Any = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4, dropout=0.5)
    body = UnimodalARDecoder(UnimodalARDecoderConfig(**shape, position_axes=[1.0, 0.0, 0.0]))
    model = UnimodalARForGeneration.from_backbone(body, X, freeze=True).train()
    assert not any(x.requires_grad for x in _body(model).parameters())
    assert torch.equal(model(_batch()).loss, model(_batch()).loss)  # no dropout
    assert all(torch.equal(x, _body(model).state_dict()[name]) for name, x in body.state_dict().items())


def test_what_tells_a_frozen_body_noise_and_places_is_trained() -> None:
    modalities = {"x": series(dim=4, grid=(1, 2, 3), block="whole", **diffusion("gaussian"))}
    model = _frozen(modalities=modalities)
    trained = {name for name, x in model.named_parameters() if x.requires_grad and name.startswith("backbone.")}
    assert trained == {"backbone.coordinates.proj.weight", "backbone.level.weight"}


def test_options_for_loading_an_object_are_refused() -> None:
    with pytest.raises(ValueError, match=r"got \['dtype'\], which say how to load a name or folder; .*LlamaModel"):
        UnimodalARForGeneration.from_backbone(LlamaModel(LlamaConfig(**GROUPED)), X, dtype=torch.bfloat16)


# --- frozen means frozen ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["gpt2", "opt", "llama"])
def test_training_mode_brings_no_dropout_into_a_frozen_body(kind: str) -> None:
    """GPT-2 and OPT drop out a tenth by default, in modules and in functions that ask for `training`."""
    changes: Any = {"attention_dropout": 0.5} if kind == "llama" else {}
    model = _frozen(kind, **changes)
    expected = model.eval()(_batch()).loss
    for module in (model, model.backbone):
        module.train()
        assert not any(part.training for part in _body(model).modules())
        assert torch.equal(model(_batch()).loss, expected)
    assert model.training and model.embeddings["x"].training
    free = _frozen(kind, freeze=False, **changes).train()
    assert not torch.equal(free(_batch()).loss, expected), "this body has no dropout: the test shows nothing"
    copied = copy.deepcopy(model).train()
    assert not any(part.training for part in _body(copied).modules())


def test_the_optimiser_holds_nothing_of_a_frozen_body(tmp_path: Path) -> None:
    model = _frozen("gpt2")
    before = {name: x.clone() for name, x in _body(model).state_dict().items()}
    arguments = TrainingArguments(
        str(tmp_path), max_steps=2, report_to=[], use_cpu=True, remove_unused_columns=False, save_strategy="no"
    )
    examples: Any = [[Segment("x", x[None], (STEPS, 1, 1))] for x in _batch(batch=16)[0].values]
    trainer = UnimodalARTrainer(model=model, args=arguments, train_dataset=examples)
    trainer.train()
    optimizer: Any = trainer.optimizer
    names = {id(x): name for name, x in model.named_parameters()}
    held = {names[id(x)] for group in optimizer.param_groups for x in group["params"]}
    assert held == {name for name in names.values() if not name.startswith("backbone.")}
    assert {names[id(x)] for x in optimizer.state} <= held and optimizer.state
    assert all(torch.equal(x, before[name]) for name, x in _body(model).state_dict().items())


# --- what autograd keeps ----------------------------------------------------------------------------------------------


def _kept(model: Any) -> tuple[dict[int, int], set[int], float]:
    """Bytes by storage of what a pass keeps for the backward pass, parameters left out; the storages of what enters the
    MLP's last map, and the gradient of the embedding."""
    own = {x.untyped_storage().data_ptr() for x in model.parameters()}
    kept: dict[int, int] = {}
    alive: list[Tensor] = []  # or memory would be used again, and an address stand for two tensors
    inner: set[int] = set()

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        alive.append(x)
        return x

    def enters(module: nn.Module, args: Any) -> None:
        alive.append(args[0])
        inner.add(args[0].untyped_storage().data_ptr())

    hooks = [layer.mlp.down_proj.register_forward_pre_hook(enters) for layer in _body(model).layers]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        loss = model(_batch()).loss
    loss.backward()
    for hook in hooks:
        hook.remove()
    return kept, inner, model.embeddings["x"].value.weight.grad.clone()


def test_nothing_is_kept_that_only_a_gradient_of_the_bodys_weights_needs() -> None:
    """What enters the map out of an MLP is a product that nothing but this map's weight has use for; the same holds for
    what its norms scale. Per layer that is one tensor of the inner width and two of the model's."""
    frozen, inner, gradient = _kept(_frozen().train())
    assert len(inner) == LAYERS and not inner & frozen.keys()
    free, inner, expected = _kept(_frozen(freeze=False).train())
    assert len(inner) == LAYERS and inner <= free.keys()
    saved = BATCH * STEPS * LAYERS * (INNER + 2 * WIDTH) * 4
    assert sum(free.values()) - sum(frozen.values()) >= saved
    torch.testing.assert_close(gradient, expected)


# --- gradient checkpointing -------------------------------------------------------------------------------------------


@contextmanager
def _passes(model: Any) -> Iterator[list[int]]:
    """Numbers of the body's layers, in the order in which they run."""
    found: list[int] = []
    layers = getattr(_body(model), "layers", None) or getattr(_body(model), "h", None) or _body(model).decoder.layers
    parts = [next(layer.children()) for layer in layers]
    hooks = [part.register_forward_pre_hook(lambda *_, n=n: found.append(n)) for n, part in enumerate(parts)]
    yield found
    for hook in hooks:
        hook.remove()


def _gradients(model: Any) -> dict[str, Tensor]:
    model.zero_grad()
    model(segments=_batch()).loss.backward()
    return {name: x.grad.clone() for name, x in model.named_parameters() if x.grad is not None}


@FUTURE
@pytest.mark.parametrize("kind", BODIES)
def test_a_frozen_body_is_checkpointed_although_it_is_in_evaluation_mode(kind: str) -> None:
    """Transformers checkpoints in training mode only. Every layer runs a second time, from the last to the first, to
    the same gradients; the dropout that most layers of GPT-2 and OPT would have then stays off."""
    model = _frozen(kind).train()
    expected = _gradients(model)
    model.gradient_checkpointing_enable()
    with _passes(model) as passes:
        torch.testing.assert_close(_gradients(model), expected)
    assert passes == [*range(LAYERS), *reversed(range(LAYERS))] and expected
    assert model.is_gradient_checkpointing and not any(part.training for part in _body(model).modules())
    model.gradient_checkpointing_disable()
    with _passes(model) as passes:
        torch.testing.assert_close(_gradients(model), expected)
    assert passes == [*range(LAYERS)] and not model.is_gradient_checkpointing


@FUTURE
def test_a_checkpointed_body_keeps_little_more_than_what_enters_its_layers() -> None:
    model = _frozen().train()
    before, _, expected = _kept(model)
    model.zero_grad()
    model.gradient_checkpointing_enable()
    kept, _, gradient = _kept(model)
    torch.testing.assert_close(gradient, expected)
    entering = BATCH * STEPS * LAYERS * WIDTH * 4
    assert sum(kept.values()) < 3 * entering < 6 * entering < sum(before.values())


@FUTURE
def test_a_native_body_and_a_copy_are_checkpointed_too() -> None:
    """A copy's layers are its own: what becomes of the original's weights does not reach it."""
    shape: Any = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, dropout=0.5)
    body = UnimodalARDecoder(UnimodalARDecoderConfig(**shape, position_axes=[1.0, 0.0, 0.0]))
    model = UnimodalARForGeneration.from_backbone(body, X, freeze=True).train()
    model.gradient_checkpointing_enable()
    expected, copied = _gradients(model), copy.deepcopy(model)
    perturb(_body(model), 1.0)
    with _passes(copied) as passes:
        torch.testing.assert_close(_gradients(copied), expected)
    assert len(passes) == 2 * LAYERS


@FUTURE
def test_checkpointing_keeps_the_hooks_of_layers_that_are_spread_over_devices() -> None:
    """Accelerate's, which move what a layer reads to where the layer is."""
    model = _frozen().train()
    expected, seen = _gradients(model), []

    class Noting(ModelHook):
        def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            seen.append(module)
            return args, kwargs

    layers = list(_body(model).layers)
    for layer in layers:
        add_hook_to_module(layer, Noting())
    model.gradient_checkpointing_enable()
    model.gradient_checkpointing_enable()
    torch.testing.assert_close(_gradients(model), expected)
    assert seen == [*layers, *reversed(layers)]
    model.gradient_checkpointing_disable()
    torch.testing.assert_close(_gradients(model), expected)
    assert seen == [*layers, *reversed(layers), *layers]


@FUTURE
def test_checkpointing_leaves_generation_alone() -> None:
    """Where nothing is trained no layer is checkpointed, and none writes to the cache twice."""
    model = _frozen().eval()
    given = _batch()[0].replace(observed=(torch.arange(STEPS) < 3).expand(BATCH, -1))
    expected = model.generate([], "x", given=given).values
    model.gradient_checkpointing_enable()
    called: list[Any] = []

    def note(run: Any, *args: Any) -> Any:
        called.append(run)
        return run(*args)

    for layer in _body(model).layers:
        layer._gradient_checkpointing_func = note
    assert torch.equal(model.generate([], "x", given=given).values, expected) and not called
    model.train()(_batch())
    assert len(called) == LAYERS


@FUTURE
def test_lora_in_a_checkpointed_body_draws_its_dropout_once() -> None:
    model = _frozen("llama")
    lora = LoraConfig(
        r=2, lora_dropout=0.5, target_modules=["q_proj", "down_proj"], modules_to_save=model.new_modules()
    )
    adapted: Any = get_peft_model(model, lora).train()
    perturb(adapted.base_model, 0.05)
    results = []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(_gradients(adapted))
        model.gradient_checkpointing_enable()
    torch.testing.assert_close(*results)
    assert any("lora_A" in name for name in results[0])
    torch.manual_seed(6)
    assert any(not torch.allclose(x, results[0][name]) for name, x in _gradients(adapted).items())


@FUTURE
def test_a_trainer_checkpoints_a_frozen_body(tmp_path: Path) -> None:
    trained = []
    for on in (False, True):
        model = _frozen("gpt2")
        arguments = TrainingArguments(
            str(tmp_path),
            max_steps=2,
            report_to=[],
            use_cpu=True,
            remove_unused_columns=False,
            save_strategy="no",
            gradient_checkpointing=on,
        )
        examples: Any = [[Segment("x", x[None], (STEPS, 1, 1))] for x in _batch(batch=16)[0].values]
        with _passes(model) as passes:
            UnimodalARTrainer(model=model, args=arguments, train_dataset=examples).train()
        assert len(passes) == 2 * LAYERS * (1 + on)
        trained.append(model.heads["x"].proj.weight.detach())
    torch.testing.assert_close(*trained)


@FUTURE
def test_a_body_without_such_layers_says_so() -> None:
    model = _frozen()
    _body(model).layers = nn.ModuleList()
    with pytest.raises(ValueError, match="gradient_checkpointing is on; it must be off for a frozen LlamaModel, which"):
        model.gradient_checkpointing_enable()
    model.gradient_checkpointing_disable()


# --- LoRA -------------------------------------------------------------------------------------------------------------


def test_lora_adapts_a_frozen_body_and_keeps_its_own_dropout() -> None:
    model = _frozen("gpt2")
    expected = model.eval()(_batch()).loss
    lora = LoraConfig(
        r=2, lora_dropout=0.9, target_modules=["c_attn"], modules_to_save=model.new_modules(), fan_in_fan_out=True
    )
    own = set(_body(model).modules())
    adapted: Any = get_peft_model(model, lora).train()
    trained = {name for name, x in adapted.named_parameters() if x.requires_grad and ".backbone." in name}
    assert len(trained) == 2 * LAYERS and all(".lora_" in name for name in trained)
    for name, x in adapted.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(x)
    assert own < set(_body(model).modules())
    assert all(module.training == (module not in own) for module in _body(model).modules())
    losses = [adapted(segments=_batch()).loss for _ in range(2)]
    assert not torch.equal(*losses)  # the dropout of LoRA's
    losses[0].backward()
    assert all(adapted.get_parameter(name).grad.abs().max() > 0 for name in trained)
    with torch.no_grad(), adapted.disable_adapter():
        torch.testing.assert_close(model.eval()(_batch()).loss, expected)


# --- quantised loading ------------------------------------------------------------------------------------------------


def test_quantised_loading_without_its_package_says_what_is_missing(tmp_path: Path) -> None:
    if importlib.util.find_spec("bitsandbytes"):
        pytest.skip("bitsandbytes is installed")
    _language_model("llama").save_pretrained(tmp_path)
    with pytest.raises(ImportError, match="bitsandbytes"):
        UnimodalARForGeneration.from_backbone(
            tmp_path, X, freeze=True, quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        )


def test_a_config_says_whether_the_body_is_frozen() -> None:
    for freeze in (True, False):
        config = UnimodalARConfig(backbone=LlamaConfig(**GROUPED), modalities=X, freeze_backbone=freeze)
        model: Any = UnimodalARForGeneration(config)
        assert any(x.requires_grad for x in _body(model).parameters()) != freeze
        assert any(part.training for part in _body(model).modules()) != freeze and model.training
        assert _body(_frozen(freeze=freeze)).training != freeze
    with pytest.raises(ValueError, match="freeze_backbone is False; with a backbone_source it must be True"):
        UnimodalARConfig(modalities=X, backbone_source={"name_or_path": "x", "fingerprint": "y"})
