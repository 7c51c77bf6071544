"""Exact resume: a training that was killed, or told to stop, ends as one that never was, bit for bit."""

from __future__ import annotations

import errno
import gc
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, WeightedRandomSampler
from transformers import TrainerCallback, TrainingArguments

from unimodal_ar.configuration import UnimodalARConfig
from unimodal_ar.modeling import UnimodalARForGeneration
from unimodal_ar.recipes.train import train
from unimodal_ar.segment import Segment
from unimodal_ar.training import fit as fit_module
from unimodal_ar.training.checkpoints import check_recipe, contents, find_checkpoint, last_checkpoint, seal
from unimodal_ar.training.draws import Draw, Drawn, Draws, SteadyWorker, as_it_is, started_steadily
from unimodal_ar.training.recipe import Resolved
from unimodal_ar.training.trainer import UnimodalARTrainer, collate_segments

REPOSITORY = Path(__file__).parents[1]


def _document(folder: Path, **training: Any) -> dict[str, Any]:
    """Four steps in an epoch, 3, 3, 3 + 3, 3 + 1 of 22 windows; random lookbacks, dropout, an average."""
    times = pd.date_range("2024-01-01", periods=60, freq="h")
    values = np.random.default_rng(0).normal(size=60).cumsum()
    pd.DataFrame({"time": times, "y": values}).to_csv(folder / "series.csv", index=False)
    body = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0.1}
    data = {"path": str(folder / "series.csv"), "target": ["y"], "horizon": 8, "validation": 16, "test": 12}
    steps = {"num_train_epochs": 3, "per_device_train_batch_size": 3, "gradient_accumulation_steps": 2}
    often = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "logging_strategy": "steps"}
    return {
        "seed": 3,
        "output_dir": str(folder / "run"),
        "model": {
            "backbone": {"model_type": "unimodal_ar_decoder", **body},
            "modalities": {"series": {"head": {"kind": "regression"}}},
        },
        "adapters": {"series": {"kind": "timeseries", "patch": 4, "lookback": 12}},
        "data": {"kind": "series", "min_lookback": 3, **data},
        "ema": {"decay": 0.9},
        "training": {
            **({"learning_rate": 0.01, "use_cpu": True, "disable_tqdm": True, "save_total_limit": 1} | steps | often),
            **{"logging_steps": 3, "resume_from_checkpoint": "auto", **training},
        },
    }


def _to(document: dict[str, Any], name: str) -> dict[str, Any]:
    return document | {"output_dir": str(Path(document["output_dir"]).with_name(name))}


def _weights(folder: Any) -> bytes:
    return (Path(folder) / "model.safetensors").read_bytes()


def _state(folder: Any) -> dict[str, Any]:
    """What the last checkpoint says of the training, but for places and times."""
    last = last_checkpoint(Path(folder) / "checkpoints")
    assert last is not None
    state: dict[str, Any] = json.loads((last / "trainer_state.json").read_text())
    del state["best_model_checkpoint"]
    for entry in state["log_history"]:
        for key in [key for key in entry if key.endswith(("_runtime", "_per_second"))]:
            del entry[key]
    return state


class _StopError(Exception):
    pass


@pytest.fixture
def stop(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """stop(document, step): the training ends in the middle of the step after so many, or right before publishing."""
    callbacks = fit_module._callbacks

    def run(document: dict[str, Any], step: int) -> None:
        class Stop(TrainerCallback):
            def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == step:
                    raise _StopError

            def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                raise _StopError

        with monkeypatch.context() as patch:
            patch.setattr(fit_module, "_callbacks", lambda *given: [*callbacks(*given), Stop()])
            with pytest.raises(_StopError):
                train(document)

    return run


def _check_goes_on(document: dict[str, Any], stop: Callable[..., None], *steps: int) -> dict[str, Any]:
    """Stopped after these steps, one after the other, it ends as if it had not been."""
    whole = train(_to(document, "whole"))
    assert whole is not None
    for step in steps:
        stop(document, step)
    folder = train(document)
    assert _weights(folder or "") == _weights(whole) and _state(folder) == _state(whole)
    return _state(whole)


@pytest.fixture
def quick_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch waits so long for every persistent worker that ends as garbage."""
    monkeypatch.setattr(torch.utils.data._utils, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


# Bit for bit


_BY_EPOCH = {"load_best_model_at_end": False, "eval_strategy": "epoch", "logging_strategy": "epoch"}


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize(
    ("training", "steps"),
    [
        ({}, (3, 4, 9)),
        ({"dataloader_num_workers": 2, "dataloader_persistent_workers": True}, (5,)),
        (_BY_EPOCH | {"save_strategy": "steps"}, (4,)),
        pytest.param(_BY_EPOCH | {"save_strategy": "epoch"}, (3, 4, 9), marks=pytest.mark.slow),
        pytest.param({"save_strategy": "best", "save_total_limit": 2}, (3, 4, 9), marks=pytest.mark.slow),
    ],
    ids=["plain", "persistent", "mixed", "epochs", "best"],
)
def test_a_training_goes_on_bit_for_bit(
    training: dict[str, Any], steps: tuple[int, ...], tmp_path: Path, stop: Any
) -> None:
    """In the middle of an epoch, at its border, behind it."""
    _check_goes_on(_document(tmp_path, **training), stop, *steps)


def test_workers_do_not_matter(tmp_path: Path, stop: Any) -> None:
    """Nor whether those who load are other processes."""
    whole = train(_to(_document(tmp_path), "whole"))
    document = _document(tmp_path, dataloader_num_workers=1)
    stop(document, 5)
    assert _weights(train(document) or "") == _weights(whole or "") and _state(tmp_path / "run") == _state(whole)


@pytest.mark.parametrize("max_steps", [6, 8])
def test_all_steps_were_taken(max_steps: int, tmp_path: Path, stop: Any) -> None:
    """What is killed before it could publish takes no further step, in the middle of an epoch or at its end."""
    state = _check_goes_on(_document(tmp_path, max_steps=max_steps), stop, max_steps + 1)
    assert state["global_step"] == max_steps


@pytest.mark.parametrize("strategy", ["epoch", pytest.param("steps", marks=pytest.mark.slow)])
def test_early_stopping_goes_on_counting(strategy: str, tmp_path: Path, stop: Any) -> None:
    """While it counts, and when it has counted to the end."""
    often = {
        "eval_strategy": strategy,
        "save_strategy": strategy,
        "logging_strategy": "epoch",
        "save_total_limit": None,
    }
    document = _document(tmp_path, learning_rate=3.0, num_train_epochs=40, **often) | {"early_stopping": 3}
    last = _state(train(_to(document, "probe")))["global_step"]
    assert last < 160
    _check_goes_on(document, stop, last - 1, 1000)


def test_a_schedule_goes_on(tmp_path: Path, stop: Any) -> None:
    document = _document(tmp_path)
    modality = document["model"]["modalities"]["series"]
    modality["target_positions"] = "learned"
    document["schedule"] = {"series.random_order": [[0.0, 1.0], [0.7, 0.0]]}
    _check_goes_on(document, stop, 5)


def test_noise_goes_on(tmp_path: Path, stop: Any) -> None:
    """Levels and noise of block diffusion."""
    document = _document(tmp_path)
    objective = {"kind": "block_diffusion", "noise": "gaussian"}
    layout = {"order": "raster", "block": 1}
    document["model"]["modalities"]["series"] = {
        "objective": objective,
        "head": {"kind": "regression"},
        "layout": layout,
    }
    _check_goes_on(document, stop, 5)


def test_flips_go_on(tmp_path: Path, stop: Any) -> None:
    document = _document(tmp_path, per_device_train_batch_size=8)
    document["adapters"] = {
        "image": {"kind": "image", "size": 8, "channels": 1, "elements": {"kind": "levels", "levels": 17}}
    }
    document["data"] = {
        "kind": "images",
        "dataset": "digits",
        "label": None,
        "validation": 4,
        "test": 1740,
        "flip": True,
    }
    document["model"]["modalities"] = {"image": {"head": {"kind": "categorical"}}}
    _check_goes_on(document, stop, 5)


# Draws


class _Random(Dataset):
    def __len__(self) -> int:
        return 11

    def __getitem__(self, index: int) -> tuple[int, float, float, float]:
        return index, float(torch.rand(())), float(np.random.rand()), random.random()  # noqa: NPY002


def test_draws_depend_on_seed_epoch_and_place_alone() -> None:
    def epoch(number: int, seed: int = 5, workers: int = 0, skipped: int = 0) -> list[Any]:
        draws = Draws(11, seed)
        draws.epoch = number
        torch.manual_seed(workers + skipped)
        loader: Any = DataLoader(
            Drawn(_Random()), 2, sampler=list(draws)[skipped:], num_workers=workers, collate_fn=as_it_is
        )
        return [item for batch in loader for item in batch]

    first = epoch(0)
    assert sorted(item[0] for item in first) == list(range(11))
    assert epoch(0, workers=2) == first
    assert epoch(0, skipped=3) == first[3:]
    assert len({x for number in (0, 1) for item in epoch(number) for x in item[1:]}) == 2 * 11 * 3
    assert epoch(0, seed=6) != first != epoch(1)


def test_every_epoch_draws_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And takes every example once, in an order of its own."""
    seen: list[Draw] = []
    original = Drawn._looked_up

    def look(self: Drawn, draw: Draw) -> Any:
        if self.numbered:  # not those of an evaluation
            seen.append(draw)
        return original(self, draw)

    monkeypatch.setattr(Drawn, "_looked_up", look)
    train(_to(_document(tmp_path), "whole"))
    epochs = [seen[start : start + 22] for start in range(0, 66, 22)]
    assert len(seen) == 66 == len({draw.seed for draw in seen})
    assert all(sorted(draw.example for draw in epoch) == list(range(22)) for epoch in epochs)
    assert len({tuple(draw.example for draw in epoch) for epoch in epochs}) == 3


def test_the_order_is_that_of_accelerate() -> None:
    """So that trainings of before can be repeated."""
    theirs = SeedableRandomSampler(range(11), data_seed=5)
    theirs.set_epoch(2)
    ours = Draws(11, 5)
    ours.epoch = 2
    assert [draw.example for draw in ours] == list(theirs)
    assert [draw.example for draw in Draws(11, 5, shuffle=False)] == list(range(11))


def test_draws_leave_the_generators_alone() -> None:
    def states() -> Any:
        numpy: Any = np.random.get_state()  # noqa: NPY002
        return torch.get_rng_state().tolist(), numpy[1].tolist(), random.getstate()

    before = states()
    Drawn(_Random()).__getitems__([Draw(3, 7)])
    assert states() == before


class _Noisy(Dataset):
    """Draws whenever an example is looked up."""

    weights = (1.0, 2.0, 1.0, 2.0, 1.0, 2.0, 1.0)

    def __len__(self) -> int:
        return 7

    def __getitem__(self, index: int) -> list[Segment]:
        generator = torch.Generator().manual_seed(index)
        values = torch.randn(1, 4, 3, generator=generator) + torch.rand(()) + random.random()
        return [Segment("series", values, (4, 1, 1))]


class _Stream(IterableDataset):
    def __iter__(self) -> Any:
        return (_Noisy()[index % 7] for index in range(40))


class _Weighted(UnimodalARTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return WeightedRandomSampler(cast(_Noisy, self.train_dataset).weights, 9)


class _Endless(UnimodalARTrainer):
    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        class Endless(Sampler):
            def __iter__(self) -> Any:
                return itertools.count()

        return Endless()


def _collate_noisily(examples: Any) -> Any:
    batch = collate_segments(examples)
    return {"segments": [x.replace(values=x.values + np.random.rand()) for x in batch["segments"]]}  # noqa: NPY002


def _trained(folder: Path, kind: type[UnimodalARTrainer] = UnimodalARTrainer, resume: Any = None, **given: Any) -> Any:
    """A trainer as one makes it in Python, after six steps, or what are left of them."""
    head = {"kind": "regression"}
    body = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    modality = {"element": {"kind": "continuous", "dim": 3}, "grid": [4, 1, 1], "head": head}
    config = UnimodalARConfig(backbone={**body, "dropout": 0.1}, modalities={"series": modality})
    options: dict[str, Any] = {"max_steps": 6, "logging_steps": 1, "save_steps": 2, "eval_steps": 2}
    options |= {"per_device_train_batch_size": 2, "eval_strategy": "steps", "report_to": "none", "use_cpu": True}
    workers = given.pop("workers", 0)
    options |= {"dataloader_num_workers": workers, "dataloader_persistent_workers": workers > 0}
    arguments = TrainingArguments(str(folder), remove_unused_columns=False, disable_tqdm=True, **options)
    data = {"train_dataset": _Noisy(), "eval_dataset": _Noisy(), **given}
    trainer = kind(model=UnimodalARForGeneration(config), args=arguments, **data)
    trainer.train(resume)
    return trainer


@pytest.mark.usefixtures("quick_workers")
@pytest.mark.parametrize(
    ("kind", "given"),
    [(_Weighted, {}), (UnimodalARTrainer, {"data_collator": _collate_noisily}), (UnimodalARTrainer, {"workers": 1})],
    ids=["sampler", "collator", "evaluation"],
)
def test_what_users_draw_goes_on(kind: Any, given: dict[str, Any], tmp_path: Path) -> None:
    """A sampler that asks for their data and draws from the generator of the model's noise; a collator; data of an
    evaluation, in workers that live on."""
    whole = _trained(tmp_path, kind, **given)
    random.seed(9)
    resumed = _trained(tmp_path, kind, str(tmp_path / "checkpoint-4"), **given)
    for left, right in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    losses = [[e["eval_loss"] for e in t.state.log_history if "eval_loss" in e] for t in (whole, resumed)]
    assert losses[0] == losses[1] and len(losses[0]) == 3


def test_a_sampler_without_an_end(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the sampler of the examples is a Endless; it must have a length"):
        _trained(tmp_path, _Endless)


def test_a_stream_is_not_exact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And says so; its segments need no switch of accelerate's."""
    _trained(tmp_path, train_dataset=_Stream())
    assert "Not exact" not in capsys.readouterr().out
    _trained(tmp_path, resume=str(tmp_path / "checkpoint-4"), train_dataset=_Stream())
    assert "checkpoint-4 is of a stream (IterableDataset), which is read from its beginning" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_of_a_server_obeys_the_training() -> None:
    """Whose process is not the worker's parent, but it is told to end by it."""
    loader: Any = DataLoader(
        _Random(), 2, num_workers=1, multiprocessing_context="forkserver", worker_init_fn=SteadyWorker(None)
    )
    iterator: Any = iter(loader)
    next(iterator)
    worker = iterator._workers[0]
    worker.terminate()
    worker.join(10)
    assert worker.exitcode == 0


def test_every_checkpoint_that_is_told_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loggers send them away."""
    told, original = [], fit_module._callbacks

    class Logger(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            told.append(state.global_step)
            assert contents(Path(args.output_dir, f"checkpoint-{state.global_step}")) is not None

    monkeypatch.setattr(fit_module, "_callbacks", lambda *given: [*original(*given), Logger()])
    train(_document(tmp_path, max_steps=6))
    assert told == [2, 4, 6]


# Killed


def test_killed_and_resumed(tmp_path: Path) -> None:
    """Among the kills are some in the middle of writing and removing checkpoints."""
    _check_kills(tmp_path, 4)


@pytest.mark.slow
def test_killed_twenty_times_and_resumed(tmp_path: Path) -> None:
    _check_kills(tmp_path, 20)


@pytest.mark.slow
def test_killed_twenty_times_as_users_start_it(tmp_path: Path) -> None:
    """Each at a random moment of the first seconds after a new checkpoint, or of the start."""
    document = _document(tmp_path, num_train_epochs=150, save_steps=6, eval_steps=6, load_best_model_at_end=False)
    whole, chance = train(_to(document, "whole")), random.Random(0)
    assert whole is not None
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    words = [sys.executable, "-m", "unimodal_ar", "train", str(tmp_path / "recipe.yaml")]
    reached = []
    for _ in range(20):
        before = last_checkpoint(tmp_path / "run" / "checkpoints")
        with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.DEVNULL, env=_environment()) as process:
            while last_checkpoint(tmp_path / "run" / "checkpoints") == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(chance.uniform(0, 0.3))
            process.kill()
        assert process.returncode == -signal.SIGKILL
        reached.append(last_checkpoint(tmp_path / "run" / "checkpoints"))
    assert len(set(reached)) == 20
    _run("unimodal_ar", "train", str(tmp_path / "recipe.yaml"))
    assert _weights(tmp_path / "run") == _weights(whole) and _state(tmp_path / "run") == _state(whole)


def _check_kills(folder: Path, count: int) -> None:
    document = _document(folder, num_train_epochs=6)
    whole = train(_to(document, "whole"))
    assert whole is not None
    (folder / "recipe.yaml").write_text(yaml.safe_dump(document))
    told = _run("tests.killing", "kills", str(folder / "recipe.yaml"), "0", str(count)).splitlines()
    assert sum(line.startswith("killed") for line in told) == count and told[-1] == "last 0"
    assert any("checkpoint-" in line for line in told) and not list((folder / "run").glob(".partial-*"))
    assert _weights(folder / "run") == _weights(whole) and _state(folder / "run") == _state(whole)


def _run(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=REPOSITORY, capture_output=True, text=True, timeout=300, env=_environment()
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1"}


# Told to stop


@pytest.mark.skipif(not hasattr(signal, "sigwaitinfo"), reason="signals are not waited for here")
def test_workers_are_steady_from_their_first_moment() -> None:
    """What they inherit: until their own set-up runs, torch's would end them at a SIGTERM."""
    masks = [started_steadily(lambda: signal.pthread_sigmask(signal.SIG_BLOCK, [])) for _ in range(2)]
    assert all(signal.SIGTERM in mask for mask in masks)
    assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_a_sigterm_ends_a_training_by_a_checkpoint(tmp_path: Path) -> None:
    """As users start it; nothing is published, and it goes on bit for bit."""
    document = _document(tmp_path, num_train_epochs=12, eval_steps=8, save_steps=8, dataloader_num_workers=1)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    words = [sys.executable, "-m", "unimodal_ar", "train", str(tmp_path / "recipe.yaml")]
    folder, checkpoints = tmp_path / "run", tmp_path / "run" / "checkpoints"
    with subprocess.Popen(
        words, cwd=REPOSITORY, stdout=-1, text=True, env=_environment(), start_new_session=True
    ) as process:
        while last_checkpoint(checkpoints) is None:
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)  # its workers, too
        told = process.communicate(timeout=60)[0]
    last = last_checkpoint(checkpoints)
    assert process.returncode == 143 and not (folder / "config.json").exists() and last is not None
    assert (
        told.splitlines()[-1] == f"SIGTERM: saved {last}; go on from it by --set training.resume_from_checkpoint=auto"
    )
    assert _state(folder)["global_step"] < 48
    short = {"dataloader_num_workers": 0}
    for name in ("run", "whole"):
        train(_to(document | {"training": document["training"] | short}, name))
    assert _weights(folder) == _weights(tmp_path / "whole") and _state(folder) == _state(tmp_path / "whole")


@pytest.mark.parametrize(("step", "strategy"), [(3, "steps"), (4, "epoch"), (6, "steps")])
def test_a_sigterm_at_every_kind_of_step(step: int, strategy: str, tmp_path: Path, monkeypatch: Any) -> None:
    """In the middle of an epoch; at the end of one, whose evaluation belongs to it; at the last step of all."""
    strategies = {f"{name}_strategy": strategy for name in ("eval", "save", "logging")}
    document = _document(tmp_path, max_steps=6, **strategies)
    whole = train(_to(document, "whole"))
    before, original = signal.getsignal(signal.SIGTERM), fit_module._callbacks

    class Signal(TrainerCallback):
        def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "_callbacks", lambda *given: [*original(*given), Signal()])
        with pytest.raises(SystemExit) as caught:
            train(document)
    assert caught.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert _state(tmp_path / "run")["global_step"] == step and not (tmp_path / "run" / "config.json").exists()
    train(document)
    assert _weights(tmp_path / "run") == _weights(whole or "") and _state(tmp_path / "run") == _state(whole)


@pytest.mark.parametrize("save", [True, False])
def test_a_sigterm_after_the_last_step(save: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends what was saved; what was not is published, since it would be lost."""
    document = _document(tmp_path, max_steps=2, load_best_model_at_end=False, save_strategy="steps" if save else "no")

    class Late(TrainerCallback):
        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fit_module, "_callbacks", lambda *given: [Late()])
    if not save:
        assert (Path(train(document) or "") / "config.json").is_file()
        return
    with pytest.raises(SystemExit, match="143"):
        train(document)
    assert not (tmp_path / "run" / "config.json").exists() and last_checkpoint(tmp_path / "run" / "checkpoints")


def test_a_sigterm_in_an_evaluation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends with the save that follows; what cannot be gone on from is not said to be."""
    document = _document(tmp_path, resume_from_checkpoint=None, save_only_model=True, load_best_model_at_end=False)

    class Signal(TrainerCallback):
        def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(fit_module, "_callbacks", lambda *given: [Signal()])
    with redirect_stdout(StringIO()) as said, pytest.raises(SystemExit, match="143"):
        train(document)
    assert said.getvalue().splitlines()[-1].endswith("checkpoint-2; only the model, as save_only_model says")


def test_two_processes_stop_and_go_on_together(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The second one is told to stop, in the middle of an epoch whose last batches are uneven. Each has noise of its
    own. A single process goes on from their checkpoint, and says what is not exact."""
    document = _document(tmp_path, gradient_accumulation_steps=1, save_total_limit=None, num_train_epochs=2)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(document))
    told = _run("tests.killing", "ranks", str(tmp_path / "recipe.yaml"), "5").splitlines()
    assert [line for line in told if line.endswith("]")] == ["whole [0, 0]", "stopped [143, 143]", "resumed [0, 0]"]
    assert sum(line.startswith("SIGTERM: saved") for line in told) == 1
    assert _weights(tmp_path / "run") == _weights(tmp_path / "run-whole")
    assert _state(tmp_path / "run") == _state(tmp_path / "run-whole")
    early = tmp_path / "run" / "checkpoints" / "checkpoint-2"  # until when both have drawn as much
    streams = [torch.load(early / f"rng_state_{rank}.pth", weights_only=False)["cpu"] for rank in (0, 1)]
    assert not torch.equal(*streams)
    checkpoint = tmp_path / "run" / "checkpoints" / "checkpoint-5"
    shutil.copytree(checkpoint, tmp_path / "one" / "checkpoints" / "checkpoint-5")
    train(_to(document, "one"))
    said = capsys.readouterr().out
    assert "checkpoint-5 was saved by 2 processes and 1 go on, so that the model's noise is drawn anew" in said
    assert "had taken steps of 6 examples, which are now 3, so that the epoch goes on at another place" in said


# Which checkpoint


def _checkpoint(folder: Path, step: int) -> Path:
    made = folder / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    (made / "rng_state_1.pth").write_bytes(b"1234")
    seal(made, {"processes": 2, "batch": 6, "recipe": None})
    return made


@pytest.mark.parametrize("damage", ["missing", "cut", "seal"])
def test_what_is_not_whole_is_not_gone_on_from(damage: str, tmp_path: Path) -> None:
    for step in (2, 10, 4):
        _checkpoint(tmp_path, step)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"  # and not 4, in the order of letters
    if damage == "missing":
        (tmp_path / "checkpoint-10" / "rng_state_1.pth").unlink()
    else:
        os.truncate(tmp_path / "checkpoint-10" / ("checkpoint.json" if damage == "seal" else "rng_state_1.pth"), 3)
    assert contents(tmp_path / "checkpoint-10") is None and last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"


def test_a_path_is_not_taken_for_true(tmp_path: Path) -> None:
    for step in (2, 4):
        _checkpoint(tmp_path, step)
    assert find_checkpoint(tmp_path / "checkpoint-2", tmp_path) == tmp_path / "checkpoint-2"


@pytest.mark.parametrize(("number", "fails"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_storage_that_cannot_sync(number: int, fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mounted buckets say so; what a disk says is an error."""

    def fsync(handle: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="no") if fails else nullcontext():
        _checkpoint(tmp_path, 2)
    assert (last_checkpoint(tmp_path) is None) == fails


def test_auto_removes_no_checkpoints_of_another_kind(tmp_path: Path) -> None:
    """But what a killed training left."""
    document = _document(tmp_path, max_steps=2)
    for step in (2, 4):
        (_checkpoint(tmp_path / "run" / "checkpoints", step) / "checkpoint.json").unlink()
    with pytest.raises(ValueError, match="none of which can be gone on from; move them away, or pass --overwrite"):
        train(document)
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "checkpoint-4")
    assert train(document) is not None


def test_a_save_that_fails_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for a single one."""
    document, saved = _document(tmp_path, num_train_epochs=3), torch.save

    def fail(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        if "checkpoint-4" in str(path) and "rng_state" in str(path):
            raise OSError("disk full")
        saved(value, path, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", fail)
        with pytest.raises(OSError, match="disk full"):
            train(document)
    assert last_checkpoint(tmp_path / "run" / "checkpoints") == tmp_path / "run" / "checkpoints" / "checkpoint-2"
    train(document)
    assert _weights(tmp_path / "run") == _weights(train(_to(document, "whole")) or "")


def test_another_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _document(tmp_path)
    folder = train(document)
    assert folder is not None
    for change, expected in (
        ({"seed": 4}, "is of another recipe: seed is 4, was 3; go on with the recipe of then, train into another"),
        ({"ema": None}, "ema"),
        ({"data": document["data"] | {"min_lookback": 4}}, "data.min_lookback is 4, was 3"),
    ):
        with pytest.raises(ValueError, match=r".") as caught:
            train(document | change, overwrite=True)
        assert expected in str(caught.value)
    capsys.readouterr()
    training = document["training"] | {"learning_rate": 0.02, "num_train_epochs": 4, "logging_steps": 1}
    train(document | {"training": training}, overwrite=True)
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("Going on from"))
    assert said.endswith(
        "with another recipe: training.learning_rate is 0.02, was 0.01; training.num_train_epochs is 4, was 3."
    )


def test_workers_that_live_on_are_told(tmp_path: Path) -> None:
    """They draw a seed once, others in each epoch, from the generator of the model's noise."""
    made = tmp_path / "checkpoint-2"
    made.mkdir()
    seal(made, {"recipe": {"training": {"dataloader_num_workers": 1}}})
    told = check_recipe(made, {"training": {"dataloader_num_workers": 2, "dataloader_persistent_workers": True}})
    assert told == ["training.dataloader_persistent_workers is True, was None"]


def test_auto_again_and_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is finished stays; an evaluation that was interrupted is made up for; another recipe's model is in
    the way."""
    evaluation = {"horizons": [4], "stride": 4, "season": 2, "num_samples": 2}
    document = _document(tmp_path, max_steps=2) | {"evaluation": evaluation}
    folder = train(document)
    assert folder is not None
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert train(document) == folder and "holds the finished model of this recipe" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times
    found = json.loads((folder / "evaluation.json").read_text())
    (folder / "evaluation.json").unlink()
    train(document)
    assert json.loads((folder / "evaluation.json").read_text()).keys() == found.keys()
    with pytest.raises(ValueError, match="already holds a model; choose another or pass --overwrite"):
        train(document | {"seed": 4})


def test_later_checkpoints_are_in_the_way(tmp_path: Path) -> None:
    document = _document(tmp_path, max_steps=6, save_total_limit=None)
    folder = train(document)
    assert folder is not None
    whole = _weights(folder)
    for file in [path for path in folder.iterdir() if path.is_file()]:
        file.unlink()
    document["training"]["resume_from_checkpoint"] = str(folder / "checkpoints" / "checkpoint-2")
    with pytest.raises(ValueError, match=r"holds checkpoint-[46], of more steps; go on from the last one by true, or"):
        train(document)
    train(document, overwrite=True)
    assert _weights(folder) == whole


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"enable_jit_checkpoint": True}, "training.enable_jit_checkpoint is set; a SIGTERM always saves a checkpoint"),
        ({"train_sampling_strategy": "group_by_length"}, "is 'group_by_length'; it must be random or sequential"),
        (
            {"save_only_model": True},
            "training.resume_from_checkpoint is set; with save_only_model nothing can be resumed",
        ),
    ],
)
def test_refused(training: dict[str, Any], expected: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=expected):
        Resolved(_document(tmp_path, **training))
