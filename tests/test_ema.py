"""The average of the weights: what it is, what is judged and published, and that a training goes on with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback, TrainingArguments

from tests.helpers import build, codes, diffusion, series
from tests.test_trained_part import _document as _pretrained_document
from tests.test_training import _document, _problems
from unimodal_ar import Segment, UnimodalARForGeneration
from unimodal_ar.recipes.train import train
from unimodal_ar.saving import load_model
from unimodal_ar.training import EMA, UnimodalARTrainer, collate_segments
from unimodal_ar.training.ema import WEIGHTS, replaced
from unimodal_ar.training.recipe import Resolved


def _examples(count: int = 16) -> list[list[Segment]]:
    generator = torch.Generator().manual_seed(0)
    return [[Segment("x", torch.randn(1, 6, 3, generator=generator), (6, 1, 1))] for _ in range(count)]


class _Recorder(TrainerCallback):
    """The trained weights before training and after every step."""

    def __init__(self, model: Any) -> None:
        self.model, self.seen = model, [_weights(model)]

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.seen.append(_weights(self.model))


def _weights(model: Any) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in model.named_parameters() if x.requires_grad}


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(x, b[name]) for name, x in a.items())


def _average(seen: list[dict[str, Tensor]], decay: float) -> dict[str, Tensor]:
    """By the formula, in float64."""
    average = {name: x.double() for name, x in seen[0].items()}
    for t, weights in enumerate(seen[1:]):
        d = min(decay, (1 + t) / (10 + t))
        average = {name: d * x + (1 - d) * weights[name].double() for name, x in average.items()}
    return average


def _trainer(model: Any, folder: Path, ema: EMA | None, data: Any = None, **changes: Any) -> UnimodalARTrainer:
    arguments: dict[str, Any] = {
        "per_device_train_batch_size": 4,
        "max_steps": 12,
        "learning_rate": 1e-2,
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "seed": 1,
        **changes,
    }
    data = _examples() if data is None else data
    return UnimodalARTrainer(
        model=model,
        args=TrainingArguments(output_dir=str(folder), **arguments),
        train_dataset=data,
        eval_dataset=data[:4],
        ema=ema,
    )


def _model() -> Any:
    return build({"x": series()}, spread=0.1)


DATA = _examples()
STEPS: dict[str, Any] = {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
STEPS |= {"save_steps": 2}


def _logged(trainer: Any, key: str) -> list[float]:
    return [entry[key] for entry in trainer.state.log_history if key in entry]


# What it is


@pytest.mark.parametrize(("decay", "accumulation"), [(0.999, 1), (0.3, 2)])
def test_the_average_is_that_of_the_steps(decay: float, accumulation: int, tmp_path: Path) -> None:
    """By the formula, once for every step of the optimiser; what is frozen has none; and it is left in the model."""
    model = _model()
    frozen = "backbone.model.layers.0.mlp.up_proj.weight"
    model.get_parameter(frozen).requires_grad_(False)
    ema, recorder = EMA(decay), _Recorder(model)
    trainer = _trainer(model, tmp_path, ema, gradient_accumulation_steps=accumulation)
    trainer.add_callback(recorder)
    trainer.train()
    assert len(recorder.seen) == 13 and ema.updates == 12 and frozen not in recorder.seen[0]
    expected = _average(recorder.seen, decay)
    for name, x in _weights(model).items():
        torch.testing.assert_close(x.double(), expected[name], rtol=0, atol=1e-6)
    assert not _equal(_weights(model), recorder.seen[-1])
    with ema.raw():
        assert _equal(_weights(model), recorder.seen[-1])
    assert _equal(ema.raw_weights(), recorder.seen[-1])
    torch.testing.assert_close(_weights(model)[next(iter(expected))].double(), next(iter(expected.values())))


def test_it_leaves_the_training_alone(tmp_path: Path) -> None:
    """With evaluations in between, the last step's weights are those of a training without, bit for bit."""
    results = []
    for ema in (None, EMA(0.9)):
        model = build({"x": series()}, spread=0.1, dropout=0.2)
        recorder = _Recorder(model)
        trainer = _trainer(model, tmp_path, ema, eval_strategy="steps", eval_steps=3)
        trainer.add_callback(recorder)
        trainer.train()
        results.append(recorder.seen[-1])
    assert _equal(*results)


def test_low_precision_is_averaged_in_float32() -> None:
    """Steps far below bfloat16's own are not lost, and the weights come back as they were."""
    layer = nn.Linear(2, 2).to(torch.bfloat16)
    ema = EMA(0.5)
    ema.start(layer)
    before = _weights(layer)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    for _ in range(20):
        ema.update()
    with torch.no_grad():
        layer.weight.fill_(1 + 2**-7)
    ema.update()
    assert ema._averages[0].dtype == torch.float32
    torch.testing.assert_close(ema._averages[0], torch.full((2, 2), 1 + 2**-8), rtol=0, atol=1e-4)
    with ema.averaged():
        assert layer.weight.dtype == torch.bfloat16
    assert torch.equal(layer.weight, torch.full((2, 2), 1 + 2**-7, dtype=torch.bfloat16))
    assert torch.equal(layer.bias, before["bias"])


def test_tied_weights_are_averaged_once() -> None:
    module = nn.ModuleList([nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)])
    module[1].weight = module[0].weight  # type: ignore[union-attr]
    ema = EMA(0.5)
    ema.start(module)
    with torch.no_grad():
        module[0].weight.fill_(1.0)  # type: ignore[union-attr,operator]
    for _ in range(30):
        ema.update()
    ema.apply()
    ema.apply()  # which it is already
    assert len(ema._averages) == 1 and module[1].weight is module[0].weight
    assert (module[1].weight - 1).abs().max() < 1e-6  # type: ignore[operator,union-attr]


@pytest.mark.parametrize("decay", [0, 1, 1.5, True, "a lot", float("nan")])
def test_decays_that_are_none(decay: Any) -> None:
    with pytest.raises(ValueError, match=r"decay of EMA is .*; it must lie between 0 and 1"):
        EMA(decay)


def test_deepspeed_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = UnimodalARTrainer.create_accelerator_and_postprocess

    def create(self: Any) -> None:
        original(self)
        self.is_deepspeed_enabled = True

    monkeypatch.setattr(UnimodalARTrainer, "create_accelerator_and_postprocess", create)
    with pytest.raises(ValueError, match="ema is not to be had under DeepSpeed"):
        _trainer(_model(), tmp_path, EMA())


# What is judged


def test_both_losses_are_told(tmp_path: Path) -> None:
    """At every evaluation, each that of a model of these weights; the average's is the one that counts."""
    model, ema = _model(), EMA(0.9)
    losses: list[tuple[float, float]] = []

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            losses.append((_loss(), 0.0))
            with ema.averaged():
                losses[-1] = (losses[-1][0], _loss())

    def _loss() -> float:
        model.eval()
        with torch.no_grad():
            return float(model(**collate_segments(_examples()[:4])).loss)

    trainer = _trainer(model, tmp_path, ema, eval_strategy="steps", eval_steps=1, logging_steps=1)
    trainer.add_callback(Look())
    trainer.train()
    assert _logged(trainer, "eval_loss") == pytest.approx([x for _, x in losses], rel=1e-6)
    assert _logged(trainer, "eval_loss_without_ema") == pytest.approx([x for x, _ in losses], rel=1e-6)
    assert min(abs(a - b) for a, b in losses) > 1e-4
    again = trainer.evaluate()  # after the end
    assert (again["eval_loss_without_ema"], again["eval_loss"]) == pytest.approx(losses[-1], rel=1e-6)


def test_both_losses_are_of_the_same_noise(tmp_path: Path) -> None:
    """Weights that are their own average have one loss, though masks are drawn."""
    model = build({"x": codes(grid=(8, 1, 1), block=8, **diffusion("mask"))}, spread=0.1)
    data = [[Segment("x", torch.randint(3, (1, 8)), (8, 1, 1))] for _ in range(16)]
    cut: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 4, "learning_rate": 0.0}
    trainer = _trainer(model, tmp_path, EMA(), data, **cut)
    trainer.train()
    found = _logged(trainer, "eval_loss")
    assert len(found) == 3 and found == _logged(trainer, "eval_loss_without_ema")


def test_before_training_there_is_none(tmp_path: Path) -> None:
    assert "eval_loss_without_ema" not in _trainer(_model(), tmp_path, EMA()).evaluate()


# Checkpoints


def test_a_training_goes_on_with_its_average(tmp_path: Path) -> None:
    """Bit for bit, from a checkpoint that holds the weights of the step and, beside, the average."""
    saving: dict[str, Any] = {"save_strategy": "steps", "save_steps": 7}
    model, ema = _model(), EMA(0.9)
    recorder = _Recorder(model)
    trainer = _trainer(model, tmp_path, ema, **saving)
    trainer.add_callback(recorder)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-7"
    assert _equal(load_file(checkpoint / "model.safetensors"), recorder.seen[7])
    average = _average(recorder.seen[:8], 0.9)
    for name, x in load_file(checkpoint / WEIGHTS).items():
        torch.testing.assert_close(x.double(), average[name], rtol=0, atol=1e-6)

    again, resumed = build({"x": series()}, spread=0.1, seed=1), EMA(0.9)
    _trainer(again, tmp_path, resumed, **saving).train(resume_from_checkpoint=str(checkpoint))
    assert _equal(_weights(again), _weights(model)) and resumed.updates == 12
    assert _equal(resumed.raw_weights(), ema.raw_weights())


def test_the_best_average_is_loaded(tmp_path: Path) -> None:
    """With the weights of its step; which step is best, averages decide."""
    best: dict[str, Any] = {"load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}
    model, ema = _model(), EMA(0.9)
    rate: dict[str, Any] = {"learning_rate": 0.1, "greater_is_better": False}
    trainer = _trainer(model, tmp_path, ema, _examples(8), **STEPS | best | rate | {"max_steps": 12})
    trainer.eval_dataset = _examples(40)[30:]
    trainer.train()
    losses, raw = _logged(trainer, "eval_loss"), _logged(trainer, "eval_loss_without_ema")
    step = 2 * (losses.index(min(losses)) + 1)
    assert step < 12 and step != 2 * (raw.index(min(raw)) + 1)
    folder = tmp_path / f"checkpoint-{step}"
    assert trainer.state.best_model_checkpoint == str(folder)
    assert _equal(_weights(model), load_file(folder / WEIGHTS))
    assert _equal(ema.raw_weights(), load_file(folder / "model.safetensors"))
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(losses), rel=1e-6)
    assert _equal(_weights(model), load_file(folder / WEIGHTS))


def test_checkpoints_without_an_average_or_with_another(tmp_path: Path) -> None:
    _trainer(_model(), tmp_path, None, max_steps=2, save_strategy="steps", save_steps=2).train()
    checkpoint = tmp_path / "checkpoint-2"
    with pytest.raises(ValueError, match=r"checkpoint-2' holds no ema.safetensors, so that the average cannot go on"):
        _trainer(_model(), tmp_path, EMA()).train(resume_from_checkpoint=str(checkpoint))
    average = load_file(checkpoint / "model.safetensors")
    name = sorted(average)[0]
    for odd in (average | {name: torch.zeros(1)}, {key: x for key, x in average.items() if key != name}):
        save_file(odd, checkpoint / WEIGHTS, metadata={"updates": "2"})
        with pytest.raises(ValueError, match=rf"is the average of other parameters .* 1 differ, the first '{name}'"):
            _trainer(_model(), tmp_path, EMA()).train(resume_from_checkpoint=str(checkpoint))


# Recipes


def _recipe(document: dict[str, Any]) -> dict[str, Any]:
    document["training"] |= {"max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 3e-2}
    evaluation = {"horizons": [4], "stride": 4, "season": 2, "num_samples": 5}
    return document | {"ema": {"decay": 0.9}, "evaluation": evaluation}


def test_a_recipe_publishes_the_average(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is judged, too; the tables of the other weights stand beside, under without_ema. No file of these is left."""
    folder = train(_recipe(_document(tmp_path)))
    assert folder is not None
    state = json.loads(max(folder.glob("checkpoints/*/trainer_state.json")).read_text())
    best = Path(state["best_model_checkpoint"])
    assert _equal(load_file(folder / "model.safetensors"), load_file(best / WEIGHTS))
    tables = json.loads((folder / "evaluation.json").read_text())
    raw = tables.pop("without_ema")
    assert tables.keys() == raw.keys() == {"4"} and tables["4"].keys() == raw["4"].keys()
    assert tables["4"]["unimodal_ar"] != raw["4"]["unimodal_ar"]
    assert "without the average of the weights" in capsys.readouterr().out
    assert not (folder / WEIGHTS).exists()
    found = _recipe(_document(tmp_path)) | {"init_from": str(folder), "output_dir": str(tmp_path / "next")}
    evaluator = Resolved(found).evaluator()
    assert evaluator is not None
    assert json.loads(json.dumps(evaluator.run(load_model(folder, "cpu"), None))) == tables
    plain = UnimodalARForGeneration.from_pretrained(best)
    assert json.loads(json.dumps(evaluator.run(plain.eval(), None))) == raw


def test_layers_of_peft_are_averaged(tmp_path: Path) -> None:
    """They and what is beside the body, which is frozen; and a training with them goes on."""
    document = _recipe(_pretrained_document(tmp_path)) | {"peft": {"method": "lora", "r": 2}}
    document["training"] |= {"save_total_limit": 3}
    folder = train(document)
    assert folder is not None
    average = load_file(next(folder.glob("checkpoints/checkpoint-6")) / WEIGHTS)
    assert average and all("lora" in name or not name.startswith("backbone.model.") for name in average)
    assert any("lora" in name for name in average) and any(name.startswith("heads.") for name in average)
    shutil.copytree(folder / "checkpoints", tmp_path / "kept")
    document["training"] |= {"resume_from_checkpoint": str(tmp_path / "kept" / "checkpoint-4")}
    again = train(document | {"output_dir": str(tmp_path / "again")})
    assert again is not None
    assert _equal(load_file(again / "checkpoints" / "checkpoint-6" / WEIGHTS), average)
    assert _equal(load_file(again / "adapter_model.safetensors"), load_file(folder / "adapter_model.safetensors"))


def test_options_of_a_recipe_that_are_none(tmp_path: Path) -> None:
    assert "recipe.ema.decay is 1.0" in _problems(_document(tmp_path, ema={"decay": 1.0}))
    assert "recipe.ema has an unknown key 'decays'" in _problems(_document(tmp_path, ema={"decays": 0.9}))
    assert Resolved(_document(tmp_path, ema={})).document["ema"] == {"decay": 0.999}


def test_replaced_weights_come_back() -> None:
    model = _model()
    before, other = _weights(model), {name: x + 1 for name, x in _weights(model).items()}
    with replaced(model, other):
        assert _equal(_weights(model), other)
    assert _equal(_weights(model), before)


# Several processes


def test_averages_in_two_processes(both: dict[str, Any], tmp_path: Path) -> None:
    """Under FSDP2 each averages its own parts; put together they are those of one process, in evaluations and in
    checkpoints, from which they go on. A fault in one process's examples ends both, and that one says where it is."""
    model, ema = _model(), EMA(0.9)
    one = _trainer(model, tmp_path / "one", ema, DATA, **STEPS)
    one.train()
    for rank in range(2):
        found = both["fsdp_averaged"][rank]
        whole, resumed = found["whole"], found["resumed"]
        assert all(whole["sharded"]) and _equal(whole["raw"], resumed["raw"])
        for name, x in ema.raw_weights().items():
            torch.testing.assert_close(whole["raw"][name], x, rtol=0, atol=1e-5)
        for key in ("eval_loss", "eval_loss_without_ema"):
            losses = [log[key] for log in whole["logs"] if key in log]
            assert losses == pytest.approx(_logged(one, key), rel=1e-5) and len(losses) == 3
    found, resumed = (both["fsdp_averaged"][0][x] for x in ("whole", "resumed"))
    assert _equal(found["state"], resumed["state"])
    for name, x in _weights(model).items():
        torch.testing.assert_close(found["state"][name], x, rtol=0, atol=1e-5)

    messages = [found["message"] for found in both["faulty"]]
    named = [m for m in messages if "with the examples 5 of the training data, in process " in m]
    other = [m for m in messages if "no micro-batch of this process shows it by itself" in m]
    assert len(named) == len(other) == 1
    messages = [found["message"] for found in both["fsdp_faulty"]]
    assert all("; where it comes from is not searched under FSDP and DeepSpeed" in m for m in messages)
