"""What two processes do together, for tests/test_distributed.py: `python -m tests.two_processes FOLDER SCENARIO ...`.

They are forked once everything is imported, before any of torch's threads. What a scenario returns is written to
FOLDER/SCENARIO-RANK.pt; with "fsdp_" before its name it runs under FSDP, as accelerate's launcher would ask for it."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from unimodal_ar import UnimodalARForGeneration, ranks
from unimodal_ar.evaluation.likelihood import negative_log_likelihood
from unimodal_ar.training import UnimodalARTrainer
from unimodal_ar.training.trainer import collate_segments

from .test_transformers_traps import NESTED, UNEQUAL, _model, _nested, _trainer

Found = dict[str, Any]


class Counted(list):
    """Examples that know which of them were asked for."""

    def __init__(self, examples: list[Any]) -> None:
        super().__init__(examples)
        self.taken: list[int] = []

    def __getitem__(self, index: Any) -> Any:
        self.taken.append(index)
        return super().__getitem__(index)


def alternate(examples: Any, number: int) -> dict[str, Any]:
    """Batch `number`: label and series, or grid alone."""
    kept = ("label", "series") if number % 2 == 0 else ("grid",)
    return collate_segments([[segment for segment in example if segment.modality in kept] for example in examples])


def curve(trainer: UnimodalARTrainer) -> list[dict[str, float]]:
    """Losses and gradient norms, log by log."""
    kept = [{k: v for k, v in log.items() if "loss" in k or k == "grad_norm"} for log in trainer.state.log_history]
    return [log for log in kept if "train_loss" not in log]


def trained(trainer: UnimodalARTrainer) -> Found:
    """The log and the weights of a training."""
    trainer.train()
    model: UnimodalARForGeneration = trainer.accelerator.unwrap_model(trainer.model)
    weights = {name: x.full_tensor() if isinstance(x, DTensor) else x for name, x in model.state_dict().items()}
    return {"logs": curve(trainer), "weights": {name: x.detach().clone() for name, x in weights.items()}}


def unequal(folder: Path) -> Found:
    """Examples of unequal numbers of items, in two processes x two micro-batches."""
    examples = [_nested(i, n) for i, n in enumerate(UNEQUAL)]
    cut: Any = dict(per_device_train_batch_size=2, gradient_accumulation_steps=2, max_steps=3)
    return trained(_trainer(_model(**NESTED), folder, examples, **cut))


def modalities(folder: Path, body: str = "native") -> Found:
    """Each process has other modalities than the other one."""
    examples = [_nested(i) for i in range(8)]
    cut: Any = dict(per_device_train_batch_size=4, max_steps=3, ddp_find_unused_parameters=False)
    trainer = _trainer(_model(body, **NESTED), folder, examples, **cut)
    trainer.data_collator = lambda items: alternate(items, ranks.rank())
    found = trained(trainer)
    model = trainer.accelerator.unwrap_model(trainer.model)
    found["groups"] = [name for name, module in model.named_modules() if isinstance(module, FSDPModule)]
    found["pieces"] = all(isinstance(x, DTensor) for x in model.parameters())
    return found


def hosted(folder: Path) -> Found:
    return modalities(folder, "llama")


def uneven(folder: Path) -> Found:
    """Eleven examples, which fill three batches of 2 x 2 but for one; five are evaluated."""
    examples = Counted([_nested(i) for i in range(11)])
    cut: Any = dict(per_device_train_batch_size=2, num_train_epochs=2, max_steps=-1)
    evaluated: Any = dict(per_device_eval_batch_size=2, eval_strategy="epoch")
    trainer = _trainer(_model(**NESTED), folder, examples, [_nested(20 + i, i) for i in range(5)], **cut, **evaluated)
    return trained(trainer) | {"taken": examples.taken}


def shared(folder: Path) -> Found:
    """A likelihood and a list, together and alone."""
    model = _model(grid=NESTED["grid"]).eval()
    batches = [collate_segments([[_nested(i)[2]]]) for i in range(5)]
    found: Found = {}
    with ranks.together():
        found["likelihood"] = negative_log_likelihood(model, batches, 4)
        found["shared"] = ranks.share(lambda item: (item, ranks.rank()), range(5))
    found["alone"] = negative_log_likelihood(model, batches, 4)
    return found


FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP"}
SCENARIOS = {function.__name__: function for function in (unequal, modalities, hosted, uneven, shared)}


def _run(rank: int, port: int, folder: Path, names: list[str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    for name in names:
        for key, value in FSDP.items():
            os.environ.pop(key, None)
            if name.startswith("fsdp_"):
                os.environ[key] = value
        torch.save(SCENARIOS[name.removeprefix("fsdp_")](folder / name), folder / f"{name}-{rank}.pt")


def main(folder: Path, names: list[str]) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_run, args=(rank, port, folder, names)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in both))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
