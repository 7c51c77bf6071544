"""What two processes do together, for the fixture `both`: `python -m tests.two_processes FOLDER`.

They are forked once everything is imported, before any of torch's threads. What a scenario returns is written to
FOLDER/SCENARIO-RANK.pt; with "fsdp_" before its name it runs under FSDP, as accelerate's launcher asks for it."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from accelerate.commands import launch  # type: ignore[import-untyped]
from accelerate.utils.launch import prepare_multi_gpu_env  # type: ignore[import-untyped]
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.data import IterableDataset

from unimodal_ar import UnimodalARForGeneration, ranks
from unimodal_ar.cli import main as cli
from unimodal_ar.evaluation.likelihood import negative_log_likelihood
from unimodal_ar.recipes.train import train
from unimodal_ar.training import UnimodalARTrainer
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.trainer import collate_segments

from .ema_in_shards import averaged, faulty
from .test_cli_sample import save
from .test_training import _csv
from .test_transformers_traps import NESTED, UNEQUAL, _model, _nested, _trainer

Found = dict[str, Any]
CONFIGURATIONS = Path(__file__).parents[1] / "recipes" / "accelerate"
TOY = [
    *("model.backbone.hidden_size=16", "model.backbone.num_hidden_layers=2", "model.backbone.num_attention_heads=2"),
    *("model.backbone.dropout=0", "training.logging_strategy=steps", "training.logging_steps=1"),
    *("training.disable_tqdm=true", "training.use_cpu=true", "training.warmup_steps=0"),
]
TEMPERATURE = [
    *TOY,
    *("training.max_steps=4", "training.eval_strategy=steps", "training.eval_steps=2", "data.validation_stride=20"),
    *("data.min_lookback=336", "data.stop=2200", "evaluation.stride=168", "evaluation.num_samples=5"),
]
FEW: dict[str, Any] = dict(num_train_epochs=3, max_steps=-1, eval_strategy="epoch")


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


def few(folder: Path) -> Found:
    """One example is trained with, and one is evaluated: one of the processes has none of its own."""
    cut: Any = FEW | dict(per_device_train_batch_size=2, per_device_eval_batch_size=2)
    return trained(_trainer(_model(**NESTED), folder, [_nested(0)], [_nested(20)], **cut))


class Stream(IterableDataset):
    """Seven examples, of which nobody knows how many they are."""

    def __iter__(self) -> Any:
        return iter([_nested(i) for i in range(7)])


def stream(folder: Path) -> Found:
    examples: Any = Stream()
    cut: Any = dict(per_device_train_batch_size=2, max_steps=3, accelerator_config={"dispatch_batches": False})
    return trained(_trainer(_model(**NESTED), folder, examples, examples, eval_strategy="steps", eval_steps=3, **cut))


def recipe(folder: Path) -> Found:
    """A whole recipe."""
    train(load_recipe("next_patch/temperature", [*TEMPERATURE, PART, f"output_dir={folder / 'model'}"]))
    return {}


def shared(folder: Path) -> Found:
    """A likelihood and a list, together and alone."""
    model = _model(grid=NESTED["grid"]).eval()
    batches = [collate_segments([[_nested(i)[2]]]) for i in range(5)]
    found: Found = {}
    with ranks.together():
        found["likelihood"] = negative_log_likelihood(model, batches, 4)
        found["shared"] = ranks.share(lambda item: (item, ranks.rank()), range(5))
    found["first"] = ranks.first(ranks.rank)
    try:
        ranks.first(lambda: int("refused"))
    except ValueError as error:
        found["refused"] = str(error)
    found["alone"] = negative_log_likelihood(model, batches, 4)
    return found


def commands(folder: Path) -> Found:
    """Started by accelerate as a training is: both ranks are given the same words."""
    folder.mkdir(exist_ok=True)
    if ranks.rank() == 0:
        save(str(folder / "images"))
        _csv(folder)
    ranks.gather(None)
    return {"told": told_by_commands(folder.parent / "fsdp_recipe" / "model", folder)}


def told_by_commands(forecaster: Path, folder: Path) -> list[str]:
    """What commands that share their work out print; they read images and series.csv in `folder`, and write there."""
    told = []
    for words in (
        f"evaluate {forecaster} --out {folder}/found.json",
        f"forecast {folder}/series.csv --target y --model {forecaster} --horizon 30 --out {folder}/forecast.csv",
        f"sample --model {folder}/images --n 5 --batch-size 2 --context label=1 --out {folder}/samples.png",
    ):
        with redirect_stdout(StringIO()) as printed:
            assert cli(words.split()) == 0
        told.append(printed.getvalue().replace(str(folder), "FOLDER"))
    return told


PART = "training.per_device_train_batch_size=4"  # of two processes, each
TOGETHER = (unequal, modalities, uneven, few, stream, shared, faulty)
SHARDED = (unequal, modalities, hosted, uneven, recipe, averaged, faulty)
SCENARIOS = {x.__name__: x for x in TOGETHER} | {f"fsdp_{x.__name__}": x for x in SHARDED}
SCENARIOS |= {"commands": commands}  # of the model that one of the others trains


def _fsdp() -> dict[str, str]:
    """What accelerate's launcher tells its processes of fsdp2.yaml."""
    flags = ["--config_file", str(CONFIGURATIONS / "fsdp2.yaml"), "--main_process_port", "0", "script"]
    arguments, *_ = launch._validate_launch_command(launch.launch_command_parser().parse_args(flags))
    told = prepare_multi_gpu_env(arguments)
    return {key: value for key, value in told.items() if key.startswith(("FSDP_", "ACCELERATE_USE_FSDP"))}


def _run(rank: int, port: int, folder: Path, fsdp: dict[str, str]) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    for name, scenario in SCENARIOS.items():
        for key, value in fsdp.items():
            os.environ.pop(key, None)
            if name.startswith("fsdp_"):
                os.environ[key] = value
        torch.save(scenario(folder / name), folder / f"{name}-{rank}.pt")


def main(folder: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    fsdp = _fsdp()
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_run, args=(rank, port, folder, fsdp)) for rank in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    sys.exit(max(abs(process.exitcode or 0) for process in both))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
