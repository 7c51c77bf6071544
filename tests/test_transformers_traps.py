"""Silent failures of transformers v5 and peft: registration, Trainer, LoRA adapters, generation config (traps 9.2, 9.5
to 9.7). Those of saving and loading are in test_saving.py, those of configurations in test_configuration.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModel, LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import AutoConfig, AutoModel, LlamaConfig, TrainingArguments

from unimodal_ar import (
    Segment,
    UnimodalARConfig,
    UnimodalARDecoder,
    UnimodalARDecoderConfig,
    UnimodalARForGeneration,
    UnimodalARGenerationConfig,
)
from unimodal_ar.training import UnimodalARTrainer, collate_segments

ROOT = Path(__file__).resolve().parents[1]
ATTENTION: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
BODIES: dict[str, dict[str, Any]] = {
    "native": {"model_type": "unimodal_ar_decoder", **ATTENTION},
    "llama": {"model_type": "llama", **ATTENTION, "vocab_size": 7},
}
SERIES: dict[str, Any] = {
    "element": {"kind": "continuous", "dim": 3},
    **{"grid": [4, 1, 1], "head": {"kind": "regression"}},
}
GRID: dict[str, Any] = {
    "element": {"kind": "discrete", "vocab_size": 5},
    **{"grid": [1, 2, 2], "layout": {"block": "row"}, "head": {"kind": "categorical"}, "loss_weight": 0.5},
}
LABEL: dict[str, Any] = {"element": {"kind": "discrete", "vocab_size": 3}, "grid": [1, 1, 1]}


def _model(body: str = "native", /, **modalities: Any) -> UnimodalARForGeneration:
    torch.manual_seed(0)
    config = UnimodalARConfig(backbone=BODIES[body], modalities=modalities or {"series": SERIES})
    return UnimodalARForGeneration(config)


def _series(number: int, missing: int = 0) -> Segment:
    """One example whose first `missing` of 12 values are not observed (and poisoned)."""
    generator = torch.Generator().manual_seed(number)
    observed = torch.arange(12).view(1, 4, 3) >= missing
    values = torch.randn(1, 4, 3, generator=generator)
    return Segment("series", values.masked_fill(~observed, torch.nan), (4, 1, 1), observed=observed)


def _nested(number: int, missing: int = 0) -> list[Segment]:
    """Label, series and grid: what no table of columns holds."""
    generator = torch.Generator().manual_seed(100 + number)
    label = Segment("label", torch.tensor([[number % 3]]), (1, 1, 1), target=False)
    grid = Segment("grid", torch.randint(5, (1, 4), generator=generator), (1, 2, 2))
    return [label, _series(number, missing), grid]


NESTED: dict[str, Any] = {"label": LABEL, "series": SERIES, "grid": GRID}
# Observed values of the eight examples are as unequal as can be: an average of averages would show.
UNEQUAL = [0, 11, 3, 10, 7, 0, 9, 1]


def _trainer(
    model: Any, folder: Path, examples: list[Any], evaluation: list[Any] | None = None, **changes: Any
) -> UnimodalARTrainer:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 8,
        "max_steps": 1,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "max_grad_norm": 1e9,  # reported, but never clipped
        "seed": 1,
        **changes,
    }
    return UnimodalARTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=examples,
        eval_dataset=evaluation,
    )


def _logged(trainer: UnimodalARTrainer, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# 9.2 registration


def test_auto_classes_know_the_types_after_import_alone(tmp_path: Path) -> None:
    """Trap 9.2: registration happens on import, so that no flag and no prompt is needed."""
    _model().save_pretrained(tmp_path / "model")
    UnimodalARDecoder(UnimodalARDecoderConfig(**ATTENTION)).save_pretrained(tmp_path / "decoder")
    code = (
        "import sys, unimodal_ar; from transformers import AutoConfig, AutoModel;"
        "print(*[type(a.from_pretrained(f)).__name__ for f in sys.argv[1:] for a in (AutoConfig, AutoModel)])"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model"), str(tmp_path / "decoder")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        *("UnimodalARConfig", "UnimodalARForGeneration", "UnimodalARDecoderConfig", "UnimodalARDecoder")
    ]


@pytest.mark.parametrize("config", [UnimodalARConfig, UnimodalARDecoderConfig])
def test_types_are_registered_under_their_own_names(config: Any) -> None:
    """Trap 9.2: the registered name must be the class's model_type, which must be no native one."""
    from transformers.models.auto import configuration_auto

    native: Any = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    assert config.model_type not in native
    assert config.model_type.startswith("unimodal_ar")
    assert type(AutoConfig.for_model(config.model_type)) is config


def test_registering_a_native_type_is_an_error() -> None:
    """Trap 9.2: with exist_ok=True a native type would be shadowed silently; the package never passes it."""

    class Shadow(LlamaConfig):
        model_type = "llama"

    with pytest.raises(ValueError, match="'llama' is already used"):
        AutoConfig.register("llama", Shadow)
    assert "exist_ok" not in (ROOT / "unimodal_ar/__init__.py").read_text().replace("`exist_ok`", "")


def test_a_collision_stops_the_import() -> None:
    """Trap 9.2: should transformers ship a type of our name, importing the package must say so."""
    code = (
        "from transformers import LlamaConfig;"
        "from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES;"
        "CONFIG_MAPPING_NAMES['unimodal_ar'] = 'LlamaConfig'; CONFIG_MAPPING._mapping['unimodal_ar'] = 'LlamaConfig';"
        "import unimodal_ar"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode != 0
    assert "'unimodal_ar' is already used" in done.stderr


# 9.5 Trainer


@pytest.mark.parametrize("nested", [False, True])
def test_accumulation_changes_neither_loss_nor_gradient(nested: bool, tmp_path: Path) -> None:
    """Trap 9.5: a forward with **kwargs that ignores num_items_in_batch gives eightfold losses and gradients; an
    average of micro-batch averages is wrong where their numbers of observed values differ."""
    examples = [_nested(i, n) if nested else [_series(i, n)] for i, n in enumerate(UNEQUAL)]
    results = []
    for batch, accumulation in ((8, 1), (1, 8), (2, 4)):
        model = _model(**(NESTED if nested else {}))
        trainer = _trainer(
            model, tmp_path, examples, per_device_train_batch_size=batch, gradient_accumulation_steps=accumulation
        )
        trainer.train()
        weights = torch.cat([x.detach().flatten() for x in model.parameters()])
        results.append((_logged(trainer, "loss")[0], _logged(trainer, "grad_norm")[0], weights))
    for loss, norm, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], rel=1e-5)
        assert norm == pytest.approx(results[0][1], rel=1e-4)
        torch.testing.assert_close(weights, results[0][2], rtol=1e-3, atol=1e-4)
    # The reference: one forward pass over all of them, and its gradient.
    model = _model(**(NESTED if nested else {})).train()
    loss = model(**collate_segments(examples)).loss
    loss.backward()
    norm = torch.stack([x.grad.norm() for x in model.parameters() if x.grad is not None]).norm()
    assert results[0][0] == pytest.approx(loss.item(), rel=1e-5)
    assert results[0][1] == pytest.approx(norm.item(), rel=1e-4)


def test_unequal_examples_would_show_an_average_of_averages() -> None:
    """That the test above can fail."""
    model = _model().eval()
    examples = [[_series(i, n)] for i, n in enumerate(UNEQUAL)]
    whole = model(**collate_segments(examples)).loss.item()
    single = [model(example).loss.item() for example in examples]
    assert abs(sum(single) / 8 - whole) > 0.02 * whole


def test_a_short_last_accumulation_is_scaled_by_its_own_items(tmp_path: Path) -> None:
    """Trap 9.5: the last step of an epoch may hold fewer micro-batches than asked for."""
    examples = [[_series(i, n)] for i, n in enumerate(UNEQUAL[:6])]
    changes: dict[str, Any] = {"max_steps": -1, "num_train_epochs": 1, "learning_rate": 0.0}
    options: dict[str, Any] = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4, **changes}
    trainer = _trainer(_model(), tmp_path, examples, **options)
    trainer.train()
    order = list(trainer.get_train_dataloader())  # the sampler starts from the seed again
    last = [batch["segments"][0] for batch in order]
    assert len(_logged(trainer, "loss")) == 2
    total = [_model().train()([segment]).element_losses["series"] for segment in last[4:]]
    weight = [segment.observed_fraction for segment in last[4:]]
    expected = sum((x * w).sum().item() for x, w in zip(total, weight, strict=True)) / sum(
        w.sum().item() for w in weight
    )
    assert _logged(trainer, "loss")[1] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("batch", [1, 2, 8])
def test_eval_loss_appears_and_does_not_depend_on_the_batch_size(batch: int, tmp_path: Path) -> None:
    """Trap 9.5: without recognised labels there is no eval loss at all; a mean over batches depends on how they are
    cut (three examples leave a short last batch)."""
    examples = [_nested(i, n) for i, n in enumerate(UNEQUAL[:3])]
    model = _model(**NESTED)
    trainer = _trainer(model, tmp_path, examples, examples, per_device_eval_batch_size=batch)
    expected = model.eval()(**collate_segments(examples)).loss.item()
    assert trainer.evaluate()["eval_loss"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("batch", "accumulation"), [(8, 1), (1, 8)])
def test_loss_by_modality_is_logged(batch: int, accumulation: int, tmp_path: Path) -> None:
    """Trap 9.5: a log entry per modality, next to the sum that the Trainer knows, however the batch is cut."""
    examples = [_nested(i, n) for i, n in enumerate(UNEQUAL)]
    model = _model(**NESTED)
    cut: dict[str, Any] = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
    trainer = _trainer(model, tmp_path, examples, max_steps=2, learning_rate=0.0, **cut)
    trainer.train()
    expected = _model(**NESTED).train()(**collate_segments(examples)).losses
    for name in ("series", "grid"):
        assert _logged(trainer, f"loss_{name}") == pytest.approx([expected[name].item()] * 2, rel=1e-3)
    assert not _logged(trainer, "loss_label")


def test_gradient_checkpointing_changes_nothing(tmp_path: Path) -> None:
    """Trap 9.5: checkpointed layers must give the same losses, gradients and weights, for every body."""
    examples = [[_series(i, n)] for i, n in enumerate(UNEQUAL)]
    for body in BODIES:
        results = []
        for checkpointing in (False, True):
            model = _model(body)
            trainer = _trainer(model, tmp_path, examples, max_steps=3, gradient_checkpointing=checkpointing)
            trainer.train()
            assert model.is_gradient_checkpointing is checkpointing
            results.append((_logged(trainer, "loss"), torch.cat([x.detach().flatten() for x in model.parameters()])))
        assert results[0][0] == results[1][0], body
        torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("body", BODIES)
def test_gradient_checkpointing_recomputes_layers(body: str) -> None:
    """That the test above can fail: the layers do run a second time in the backward pass."""
    model = _model(body).train()
    model.gradient_checkpointing_enable()
    runs: list[None] = []
    layer: Any = model.backbone.model.layers[1]
    layer.self_attn.register_forward_pre_hook(lambda *_: runs.append(None))
    model([_series(0)]).loss.backward()
    assert len(runs) == 2


def test_the_best_checkpoint_by_validation_is_loaded(tmp_path: Path) -> None:
    """Trap 9.5: load_best_model_at_end needs an eval loss, a metric and the right direction; else the last stays."""
    one = torch.ones(1, 4, 3)
    examples = [[_series(0).replace(values=one)]] * 8
    far = [[_series(0).replace(values=-one)]] * 8  # training makes these worse
    model = _model()
    options: dict[str, Any] = {
        "max_steps": 6,
        "eval_strategy": "steps",
        "eval_steps": 2,
        "save_strategy": "steps",
        "save_steps": 2,
    }
    best: dict[str, Any] = {
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": False,
    }
    trainer = _trainer(model, tmp_path, examples, far, learning_rate=3e-2, **options, **best)
    trainer.train()
    losses = _logged(trainer, "eval_loss")
    assert len(losses) == 3 and min(losses) < losses[-1], "the last is the best: this test shows nothing"
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert Path(str(trainer.state.best_model_checkpoint)).name == f"checkpoint-{2 + 2 * losses.index(min(losses))}"


def test_a_training_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    """Trap 9.5: weights, optimiser and data order are all in the checkpoint: resumed equals uninterrupted."""
    examples = [[_series(i, n)] for i, n in enumerate(UNEQUAL)]
    options: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "save_strategy": "steps",
        "save_steps": 2,
        "max_steps": 6,
    }
    whole = _model()
    _trainer(whole, tmp_path, examples, **options).train()
    resumed = _model()
    _trainer(resumed, tmp_path, examples, **options).train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    for left, right in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(left, right)


def test_columns_cannot_be_removed(tmp_path: Path) -> None:
    """Trap 9.5: the default would drop what a batch is made of."""
    with pytest.raises(ValueError, match="remove_unused_columns is True; segments are not columns"):
        _trainer(_model(), tmp_path, [[_series(0)]], remove_unused_columns=True)


@pytest.mark.parametrize("name", ["labels", "attention_mask", "input_ids"])
def test_forward_takes_no_arguments_that_it_ignores(name: str) -> None:
    """Trap 9.5: a forward with **kwargs swallows whatever a batch holds."""
    with pytest.raises(ValueError, match=rf"unknown arguments \['{name}'\]"):
        _model()([_series(0)], **{name: torch.zeros(1)})


def test_the_output_is_a_mapping_with_the_loss_first() -> None:
    """Trap 9.5: the Trainer takes outputs["loss"], or the first entry."""
    output = _model()([_series(0)])
    assert next(iter(output.keys())) == "loss"
    assert output["loss"] is output[0] is output.loss


# 9.6 PEFT

PROJECTIONS = r"backbone\..*\.(q_proj|k_proj|v_proj|o_proj|up_proj|down_proj|gate_proj)"


def _lora(**changes: Any) -> LoraConfig:
    return LoraConfig(r=2, lora_alpha=8, target_modules=PROJECTIONS, **changes)


def _trained(model: Any) -> Any:
    """Three steps on everything that is trainable."""
    model.train()
    optimizer = torch.optim.SGD([x for x in model.parameters() if x.requires_grad], lr=0.3)
    for _ in range(3):
        optimizer.zero_grad()
        model(segments=[_series(0)]).loss.backward()
        optimizer.step()
    return model.eval()


def _loss(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(segments=[_series(1)]).element_losses["series"]


@pytest.mark.parametrize("body", BODIES)
def test_only_lora_trains(body: str) -> None:
    """Trap 9.6: all-linear would also hit embeddings and heads; the targets named here are the backbone's alone."""
    base = _model(body)
    before = {name: x.detach().clone() for name, x in base.named_parameters()}
    model: Any = get_peft_model(base, _lora())
    trainable = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trainable and all(".lora_" in name and ".backbone." in name for name in trainable)
    assert len(trainable) == 2 * 2 * 7  # two matrices for each of seven maps in two layers
    _trained(model)
    after = {name.replace(".base_layer", ""): x for name, x in model.base_model.model.named_parameters()}
    assert all(torch.equal(x, after[name]) for name, x in before.items())


@pytest.mark.parametrize("body", BODIES)
def test_lora_adapters_survive_and_merge(body: str, tmp_path: Path) -> None:
    """Trap 9.6: what PeftModel loads must compute what was trained; merged weights must, too."""
    base = _model(body)
    base.save_pretrained(tmp_path / "base")
    plain = _loss(base.eval())
    model = _trained(get_peft_model(base, _lora()))
    tuned = _loss(model)
    assert not torch.allclose(plain, tuned, atol=1e-3), "the adapter did not learn: this test shows nothing"
    model.save_pretrained(tmp_path / "adapter")
    again = UnimodalARForGeneration.from_pretrained(tmp_path / "base")
    loaded = PeftModel.from_pretrained(again, tmp_path / "adapter").eval()
    assert torch.equal(_loss(loaded), tuned)
    merged = loaded.merge_and_unload()
    assert isinstance(merged, UnimodalARForGeneration)
    torch.testing.assert_close(_loss(merged), tuned, rtol=1e-4, atol=1e-5)
    merged.save_pretrained(tmp_path / "merged")
    assert torch.equal(_loss(AutoModel.from_pretrained(tmp_path / "merged")), _loss(merged))


def test_auto_classes_load_lora_adapters(tmp_path: Path) -> None:
    """Trap 9.6: AutoPeftModel refuses classes outside its list of libraries unless this package is allowed."""
    base = _model()
    base.save_pretrained(tmp_path / "base")
    base = UnimodalARForGeneration.from_pretrained(tmp_path / "base")
    model = _trained(get_peft_model(base, _lora()))
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter", import_allowlist=["unimodal_ar"]).eval()
    assert torch.equal(_loss(loaded), _loss(model))
    assert torch.equal(_loss(AutoModel.from_pretrained(tmp_path / "adapter").eval()), _loss(model))


@pytest.mark.parametrize("body", BODIES)
def test_new_embeddings_and_heads_survive_beside_lora(body: str, tmp_path: Path) -> None:
    """Trap 9.6: freshly added embeddings and heads are frozen and lost unless modules_to_save names them."""
    base = _model(body)
    base.save_pretrained(tmp_path / "base")
    fresh = {name: x.detach().clone() for name, x in base.named_parameters()}
    model = _trained(get_peft_model(base, _lora(modules_to_save=["embeddings.series", "heads.series"])))
    state = model.base_model.model.state_dict()
    copies = [name for name in state if "modules_to_save" in name]
    assert any(name.startswith("heads") for name in copies) and any(name.startswith("embeddings") for name in copies)
    weight = "heads.series.modules_to_save.default.proj.weight"
    assert not torch.equal(state[weight], fresh["heads.series.proj.weight"])
    value = "embeddings.series.modules_to_save.default.value.weight"
    assert not torch.equal(state[value], fresh["embeddings.series.value.weight"])
    model.save_pretrained(tmp_path / "adapter")
    loaded = PeftModel.from_pretrained(UnimodalARForGeneration.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    assert torch.equal(_loss(loaded.eval()), _loss(model))
    merged = loaded.merge_and_unload()
    torch.testing.assert_close(merged.get_parameter("heads.series.proj.weight"), state[weight])
    torch.testing.assert_close(_loss(merged), _loss(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_lora_trains_under_the_trainer(checkpointing: bool, tmp_path: Path) -> None:
    """Traps 9.5 and 9.6: wrapped by peft, the model still gets num_items_in_batch, and checkpointing still works with
    inputs that are no token ids (get_input_embeddings must exist)."""
    examples = [[_series(i, n)] for i, n in enumerate(UNEQUAL)]
    results = []
    for batch, accumulation in ((8, 1), (1, 8)):
        model = get_peft_model(_model("llama"), _lora(init_lora_weights="gaussian"))
        options: dict[str, Any] = {"per_device_train_batch_size": batch, "gradient_accumulation_steps": accumulation}
        trainer = _trainer(model, tmp_path, examples, gradient_checkpointing=checkpointing, **options)
        trainer.train()
        results.append((_logged(trainer, "loss")[0], _logged(trainer, "grad_norm")[0]))
    assert results[0][1] > 0
    assert results[1] == pytest.approx(results[0], rel=1e-4)


def test_input_embeddings_are_those_of_the_first_modality() -> None:
    """Trap 9.6: the default of get_input_embeddings raises NotImplementedError for continuous inputs."""
    model = _model(**NESTED)
    assert model.get_input_embeddings() is model.embeddings["label"]
    assert isinstance(model.get_input_embeddings(), nn.Module)


# 9.7 generation


def test_can_generate() -> None:
    """Trap 9.7: transformers asks the base classes' names; without, there is no generation config."""
    assert UnimodalARForGeneration.can_generate()
    assert not UnimodalARDecoder.can_generate()
    assert type(_model().generation_config) is UnimodalARGenerationConfig


def test_generate_is_ours() -> None:
    """Trap 9.7: token-id `generate` needs input_ids; nothing of it may be inherited."""
    from transformers import GenerationMixin

    assert not issubclass(UnimodalARForGeneration, GenerationMixin)
    drawn = _model().generate([], "series", generator=torch.Generator().manual_seed(0))
    assert drawn.values.shape == (1, 4, 3) and drawn.values.isfinite().all()


def test_generation_config_survives(tmp_path: Path) -> None:
    """Trap 9.7: generation_config.json is written beside the model and read back, as our class, with every value."""
    model = _model(label=LABEL | {"null_probability": 0.5}, grid=GRID)
    values = {"num_samples": 3, "temperature": 0.25, "top_k": 2, "top_p": 0.5, "guidance_scale": 1.5, "steps": 4}
    model.generation_config = UnimodalARGenerationConfig(**values)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "generation_config.json").is_file()
    for loaded in (
        AutoModel.from_pretrained(tmp_path).generation_config,
        UnimodalARGenerationConfig.from_pretrained(tmp_path),
    ):
        assert type(loaded) is UnimodalARGenerationConfig
        assert {name: getattr(loaded, name) for name in values} == values
    assert json.loads((tmp_path / "config.json").read_text()).keys().isdisjoint(values)


def test_a_loaded_generation_config_is_used(tmp_path: Path) -> None:
    """Trap 9.7: options left at None take the saved values."""
    model = _model(grid=GRID).eval()
    model.generation_config = UnimodalARGenerationConfig(num_samples=3, temperature=0.0)
    model.save_pretrained(tmp_path)
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path)
    drawn = loaded.generate([], "grid")
    assert drawn.values.shape == (3, 4)
    assert (drawn.values == drawn.values[:1]).all()  # temperature 0: all the mode
    assert loaded.generate([], "grid", num_samples=1).values.shape == (1, 4)


def test_a_model_without_the_file_has_the_defaults(tmp_path: Path) -> None:
    """Trap 9.7: from_model_config would look for token-id options in a configuration that has none."""
    _model().save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    loaded = UnimodalARForGeneration.from_pretrained(tmp_path).generation_config
    assert type(loaded) is UnimodalARGenerationConfig
    assert (loaded.num_samples, loaded.temperature, loaded.guidance_scale, loaded.steps) == (1, 1.0, 1.0, None)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"temprature": 1}, "generation config has an unknown key 'temprature'; did you mean 'temperature'?"),
        ({"max_length": 5}, "generation config has an unknown key 'max_length'"),
        ({"num_samples": 0}, "num_samples is 0; it must be an integer >= 1"),
        ({"steps": 0}, "steps is 0; it must be an integer >= 1, a pair"),
        ({"temperature": -1}, "temperature is -1; it must be a number >= 0"),
        ({"guidance_scale": -2}, "guidance_scale is -2; it must be a number >= 0"),
    ],
)
def test_generation_config_rejects(values: dict[str, Any], expected: str) -> None:
    """Traps 9.4 and 9.7: transformers' own class keeps unknown names as attributes."""
    with pytest.raises(ValueError, match=r".") as caught:
        UnimodalARGenerationConfig(**values)
    assert expected in str(caught.value)
