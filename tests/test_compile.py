"""torch_compile: the body's layers are compiled while they are trained, and nothing else changes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch._dynamo.utils import counters
from transformers import TrainerCallback, TrainingArguments

from tests.test_training import _document
from unimodal_ar import Segment, masks
from unimodal_ar.recipes.train import train
from unimodal_ar.training import UnimodalARTrainer, compiling

from .helpers import build, codes, diffusion, label, labels

EAGER = {"torch_compile": True, "torch_compile_backend": "eager"}  # graphs as they are, which nothing is made of
CASES: list[tuple[str, str, dict[str, Any]]] = [
    ("native", "streams", {"gradient_checkpointing": True}),
    ("llama", "streams", {}),
    ("frozen llama", "next_block", {"gradient_checkpointing": True}),
]


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(masks, "TILE", 8)
    torch._dynamo.reset()
    counters.clear()
    yield
    torch._dynamo.reset()
    counters.clear()


class _Graphs(TrainerCallback):
    """How many graphs there were at the end of each epoch."""

    def __init__(self) -> None:
        self.made: list[int] = []

    def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
        self.made.append(counters["stats"]["unique_graphs"])


def _model(body: str = "native", way: str = "next_block") -> Any:
    more = diffusion("mask") if way == "streams" else {}
    model = build({"label": label(), "x": codes(7, (2, 4, 4), 5, **more)}, body.removeprefix("frozen "), spread=0.1)
    if body.startswith("frozen"):
        model.backbone.frozen = True
        model.backbone.freeze_unused()
    return model


def _trainer(model: Any, folder: Path, **changes: Any) -> tuple[Any, _Graphs]:
    """11 examples in batches of 4: the last one of an epoch is shorter."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randint(7, (11, 1, 32), generator=generator)
    data: Any = [[labels(n % 3), Segment("x", x, (2, 4, 4))] for n, x in enumerate(values)]
    arguments: dict[str, Any] = {
        "num_train_epochs": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "logging_steps": 1,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "report_to": "none",
        "remove_unused_columns": False,
        "use_cpu": True,
        "disable_tqdm": True,
        **changes,
    }
    graphs, written = _Graphs(), TrainingArguments(output_dir=str(folder), **arguments)
    trainer = UnimodalARTrainer(
        model=model, args=written, train_dataset=data, eval_dataset=data[:5], callbacks=[graphs]
    )
    return trainer, graphs


def _losses(trainer: Any) -> list[float]:
    return [log[key] for log in trainer.state.log_history for key in ("loss", "eval_loss") if key in log]


def _check(body: str, way: str, folder: Path, changes: dict[str, Any], compile: dict[str, Any]) -> None:
    runs, graphs = [], _Graphs()
    for name, more in (("plain", {}), ("compiled", compile)):
        trainer, graphs = _trainer(_model(body, way), folder / name, **changes, **more)
        trainer.train()
        assert bool(graphs.made[0]) == bool(more)
        runs.append((_losses(trainer), trainer.model.state_dict()))
    (plain, weights), (losses, same) = runs
    assert len(plain) == 8 and losses == pytest.approx(plain, abs=1e-5)
    assert weights.keys() == same.keys()
    for key, value in weights.items():
        torch.testing.assert_close(same[key], value, atol=1e-5, rtol=1e-4)
    # For all layers one of the first batch, one of any batch size (the last is smaller), and one of evaluation, which
    # comes after the first epoch has ended.
    assert graphs.made == [2, 3] and not counters["graph_break"]


@pytest.mark.parametrize(("body", "way", "changes"), CASES, ids=str)
def test_losses_and_weights_are_those_without(body: str, way: str, changes: dict[str, Any], tmp_path: Path) -> None:
    _check(body, way, tmp_path, changes, EAGER)


@pytest.mark.slow
@pytest.mark.parametrize(("body", "way", "changes"), CASES, ids=str)
def test_and_so_they_are_when_code_is_made(body: str, way: str, changes: dict[str, Any], tmp_path: Path) -> None:
    _check(body, way, tmp_path, changes, {"torch_compile": True})


def test_a_checkpoint_knows_nothing_of_it(tmp_path: Path) -> None:
    """It has a plain model's names; one that was compiled goes on as one that was not, and the other way round."""
    for name, first, second in (("plain", {}, EAGER), ("compiled", EAGER, {})):
        whole = _trainer(_model(), tmp_path / name, **first)[0]
        whole.train()
        checkpoint = tmp_path / name / "checkpoint-3"
        assert load_file(checkpoint / "model.safetensors").keys() == _model().state_dict().keys()
        trainer = _trainer(_model(), tmp_path / name, **second)[0]
        trainer.train(resume_from_checkpoint=str(checkpoint))
        for key, value in whole.model.state_dict().items():
            torch.testing.assert_close(trainer.model.state_dict()[key], value, atol=1e-5, rtol=1e-4)


def test_after_training_nothing_is_compiled(tmp_path: Path) -> None:
    trainer, _ = _trainer(_model(), tmp_path, max_steps=2, save_strategy="no", eval_strategy="no", **EAGER)
    trainer.train()
    before = counters["stats"]["unique_graphs"]
    generated = trainer.model.generate([labels(1, 2)], "x", (2, 4, 4), generator=torch.Generator().manual_seed(0))
    trainer.evaluate()
    assert generated.values.shape == (2, 32) and before and counters["stats"]["unique_graphs"] == before
    assert copy.deepcopy(trainer.model).state_dict().keys() == _model().state_dict().keys()


def test_a_recipe_says_so_in_a_key(tmp_path: Path) -> None:
    plain = _document(tmp_path)
    document = _document(tmp_path, output_dir=str(tmp_path / "compiled"))
    document["training"] = document["training"] | EAGER
    for written in (plain, document):
        train(written)
    weights = [load_file(Path(x["output_dir"], "model.safetensors")) for x in (plain, document)]
    assert counters["stats"]["unique_graphs"] and weights[0].keys() == weights[1].keys()
    for key, value in weights[0].items():
        torch.testing.assert_close(weights[1][key], value, atol=1e-5, rtol=1e-4)


def test_accelerate_may_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `accelerate launch --dynamo_backend eager` does: accelerate would compile the model as a whole."""
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "EAGER")
    once = {"num_train_epochs": 1, "save_strategy": "no", "eval_strategy": "no"}
    trainer, graphs = _trainer(_model(), tmp_path, **once)
    trainer.train()
    assert graphs.made == [2] and not counters["graph_break"]
    again = UnimodalARTrainer(model=_model(), args=trainer.args, train_dataset=trainer.train_dataset)
    torch._dynamo.reset()
    again.train()
    assert counters["stats"]["unique_graphs"] == 4


def test_a_body_without_layers_is_refused() -> None:
    model = _model()
    model.backbone.model = nn.Identity()
    refused = pytest.raises(ValueError, match=r"^torch_compile is on; it must be off for a Identity, which has no Grad")
    with refused, compiling.compiled_layers(model, {"backend": "eager"}):
        pass
    with compiling.compiled_layers(model, None):
        pass
