"""Several processes: they train what one would, wait for nobody's gradients, and share out the evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]  # of accelerate
import pytest
import torch
import yaml
from accelerate.commands.config import load_config_from_file  # type: ignore[import-untyped]
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin  # type: ignore[import-untyped]
from safetensors.torch import load_file

from unimodal_ar import UnimodalARConfig, UnimodalARForGeneration, ranks
from unimodal_ar.cli import main as cli
from unimodal_ar.recipes.train import main, train
from unimodal_ar.training import UnimodalARTrainer, arguments, launch, sharding
from unimodal_ar.training.documents import load_recipe, shipped_recipes

from .test_training import _csv, _document, _write
from .test_transformers_traps import ATTENTION, LABEL, NESTED, SERIES, UNEQUAL, _model, _nested, _trainer
from .two_processes import CONFIGURATIONS, FEW, PART, TEMPERATURE, TOY, alternate, curve, told_by_commands

ROOT = Path(__file__).parents[1]
# 21 images in steps of 8: in the last step of an epoch one of two processes has a single image, the other none.
DIGITS = [
    *TOY,
    *("training.num_train_epochs=2", "training.per_device_eval_batch_size=4", "data.validation=10", "data.test=1766"),
    *("model.modalities.label.null_probability=0", "evaluation.guidance_scale=1"),
    *("evaluation.samples=60", "evaluation.batch_size=50"),
]
ONE = ["training.per_device_train_batch_size=8"]
TWO = ["training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2"]


def _environment(**more: str) -> dict[str, str]:
    theirs = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE", "FSDP"))}
    return theirs | {"PYTHONPATH": str(ROOT)} | more


def _launch(flags: list[str], recipe: str, output: Path, overrides: list[str], **environment: str) -> str:
    """What a training of two processes, started by accelerate's command, prints."""
    command = [sys.executable, "-m", "accelerate.commands.launch", *flags, "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "unimodal_ar.recipes.train", recipe, "--output", str(output)]
    command += [word for override in overrides for word in ("--set", override)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=_environment(**environment))
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def _logs(folder: Path) -> list[dict[str, Any]]:
    """Losses and gradient norms, step by step."""
    states = [json.loads(path.read_text()) for path in folder.glob("checkpoints/checkpoint-*/trainer_state.json")]
    history: list[dict[str, Any]] = max((state["log_history"] for state in states), key=len)
    return [{k: v for k, v in log.items() if "loss" in k or k in ("step", "grad_norm")} for log in history]


def _assert_same(one: Path, other: Path) -> None:
    """Loss curves, weights and tables of the evaluation agree."""
    expected, found = _logs(one), _logs(other)
    assert len(expected) > 4 and sum("eval_loss" in log for log in expected) == 2
    for log, twin in zip(expected, found, strict=True):
        assert twin == pytest.approx(log, rel=1e-6 if "eval_loss" in log else 1e-5)
    weights, twins = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert weights.keys() == twins.keys()
    for name, weight in weights.items():
        torch.testing.assert_close(twins[name], weight, rtol=1e-5, atol=1e-5)
    tables, others = (json.loads((folder / "evaluation.json").read_text()) for folder in (one, other))
    _assert_close(tables, others)


def _assert_close(one: Any, other: Any) -> None:
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key, value in one.items():
            _assert_close(value, other[key])
    else:
        assert other == pytest.approx(one, rel=1e-6)


def test_two_processes_train_as_one(tmp_path: Path) -> None:
    """The command as users type it, with accumulation and an epoch that does not fill its last batches: accelerate
    fills them with examples that would count twice."""
    recipe = "next_token/digits"
    train(load_recipe(recipe, [*DIGITS, *ONE, f"output_dir={tmp_path / 'one'}"]))
    told = _launch(["--cpu", "--mixed_precision", "no"], recipe, tmp_path / "two", [*DIGITS, *TWO])
    _assert_same(tmp_path / "one", tmp_path / "two")
    assert (tmp_path / "one" / "samples.png").read_bytes() == (tmp_path / "two" / "samples.png").read_bytes()
    for line in ("trainable parameters, 21 training", "bits per dimension", "Wrote "):
        assert told.count(line) == 1, told
    assert (tmp_path / "two" / "checkpoints" / "checkpoint-6" / "rng_state_1.pth").is_file()  # there were two


def test_fsdp_trains_what_one_process_does(both: dict[str, Any], tmp_path: Path) -> None:
    """And its model is whole: it loads anywhere."""
    train(load_recipe("next_patch/temperature", [*TEMPERATURE, *ONE, f"output_dir={tmp_path / 'one'}"]))
    two = both["folder"][0]["path"] / "fsdp_recipe" / "model"
    _assert_same(tmp_path / "one", two)
    checkpoint = two / "checkpoints" / "checkpoint-4"
    assert (checkpoint / "pytorch_model_fsdp.bin").is_file() and (checkpoint / "rng_state_1.pth").is_file()
    UnimodalARForGeneration.from_pretrained(two)
    command = ["forecast", _csv(tmp_path), "--target", "y", "--model", str(two), "--horizon", "3"]
    cli([*command, "--out", str(tmp_path / "forecast.csv")])
    assert len((tmp_path / "forecast.csv").read_text().splitlines()) == 4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["FULL_STATE_DICT", "SHARDED_STATE_DICT"])
def test_fsdp_resumes(kind: str, tmp_path: Path) -> None:
    changes = [PART]
    flags = ["--config_file", str(CONFIGURATIONS / "fsdp2.yaml"), "--fsdp_state_dict_type", kind]
    given: Any = dict(ACCELERATE_USE_CPU="true")
    _launch(flags, "next_patch/temperature", tmp_path / "whole", [*TEMPERATURE, *changes], **given)
    changes.append(f"training.resume_from_checkpoint={tmp_path / 'whole' / 'checkpoints' / 'checkpoint-2'}")
    _launch(flags, "next_patch/temperature", tmp_path / "resumed", [*TEMPERATURE, *changes], **given)
    _assert_same(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.slow
@pytest.mark.parametrize("changes", [["peft={method: lora, r: 2}"], []])
def test_frozen_bodies_under_fsdp(changes: list[str], tmp_path: Path) -> None:
    """With layers of LoRA and without: what is written is what one process writes."""
    from transformers import LlamaConfig, LlamaModel

    size: dict[str, Any] = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16)
    LlamaModel(LlamaConfig(**size, vocab_size=8)).save_pretrained(tmp_path / "llm")
    body = f"model.backbone={{pretrained: {tmp_path / 'llm'}{'' if changes else ', freeze: true'}}}"
    overrides = [*[override for override in TEMPERATURE if "backbone" not in override], body, *changes]
    document = load_recipe("next_patch/temperature", [*overrides, *ONE, f"output_dir={tmp_path / 'one'}"])
    train(document)
    flags = ["--config_file", str(CONFIGURATIONS / "fsdp2.yaml")]
    overrides.append(PART)
    _launch(flags, "next_patch/temperature", tmp_path / "two", overrides, ACCELERATE_USE_CPU="true")
    file = "adapter_model.safetensors" if changes else "model.safetensors"
    weights, twins = load_file(tmp_path / "one" / file), load_file(tmp_path / "two" / file)
    assert weights.keys() == twins.keys() and (bool(changes) or not any("layers" in name for name in weights))
    for name, weight in weights.items():
        torch.testing.assert_close(twins[name], weight, rtol=1e-5, atol=1e-5)
    _assert_close(*(json.loads((tmp_path / run / "evaluation.json").read_text()) for run in ("one", "two")))


# In one program, without a launcher


def _assert_equals(found: list[dict[str, Any]], trainer: UnimodalARTrainer) -> None:
    """Both processes have logs and weights of the training of `trainer`, which is in one."""
    trainer.train()
    weights: Any = trainer.model.state_dict()  # type: ignore[union-attr]
    logs = curve(trainer)
    assert len(logs) >= 3
    for each in found:
        for log, twin in zip(logs, each["logs"], strict=True):
            assert twin == pytest.approx(log, rel=1e-5)
        for name, weight in weights.items():
            torch.testing.assert_close(each["weights"][name], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["", "fsdp_"])
def test_unequal_examples_in_two_processes(kind: str, both: dict[str, Any], tmp_path: Path) -> None:
    """8 x 1 == 2 processes x 2 micro-batches x 2, where numbers of observed values are as unequal as can be."""
    examples = [_nested(i, n) for i, n in enumerate(UNEQUAL)]
    _assert_equals(both[f"{kind}unequal"], _trainer(_model(**NESTED), tmp_path, examples, max_steps=3))


@pytest.mark.parametrize("name", ["modalities", "fsdp_modalities", "fsdp_hosted"])
def test_processes_may_have_different_modalities(name: str, both: dict[str, Any], tmp_path: Path) -> None:
    """No process waits for a gradient that the other one lacks; the result is that of one process, batch by batch."""
    found, kind, body = both[name], name.startswith("fsdp_"), "llama" if "hosted" in name else "native"
    batches: list[int] = []

    def one_by_one(items: Any) -> dict[str, Any]:
        batches.append(len(batches))
        return alternate(items, batches[-1])

    cut: Any = dict(per_device_train_batch_size=4, gradient_accumulation_steps=2, max_steps=3)
    trainer = _trainer(_model(body, **NESTED), tmp_path, [_nested(i) for i in range(8)], **cut)
    trainer.data_collator = one_by_one
    _assert_equals(found, trainer)
    model: Any = trainer.model
    layers = [f"backbone.model.layers.{i}" for i in range(len(model.backbone.model.layers))]
    assert [name for name in found[0]["groups"] if "layers" in name] == (layers if kind else [])
    assert found[0]["pieces"] is kind


@pytest.mark.parametrize("kind", ["", "fsdp_"])
def test_examples_that_fill_no_batch_count_once(kind: str, both: dict[str, Any], tmp_path: Path) -> None:
    """In training and in evaluation: in each a process has but repeated ones in its last batch, or some."""
    cut: Any = dict(per_device_train_batch_size=4, num_train_epochs=2, max_steps=-1, eval_strategy="epoch")
    evaluation = [_nested(20 + i, i) for i in range(5)]
    trainer = _trainer(_model(**NESTED), tmp_path, [_nested(i) for i in range(11)], evaluation, **cut)
    _assert_equals(both[f"{kind}uneven"], trainer)
    assert sum("eval_loss" in log for log in curve(trainer)) == 2


def test_fewer_examples_than_processes(both: dict[str, Any], tmp_path: Path) -> None:
    cut: Any = FEW | dict(per_device_train_batch_size=4)
    trainer = _trainer(_model(**NESTED), tmp_path, [_nested(0)], [_nested(20)], **cut)
    _assert_equals(both["few"], trainer)
    assert sum("eval_loss" in log for log in curve(trainer)) == 3


def test_streams_in_two_processes(both: dict[str, Any]) -> None:
    """Whose end nobody knows beforehand."""
    first, second = both["stream"]
    assert len(first["logs"]) == 4 and first["logs"] == second["logs"]


def test_every_example_is_taken_by_one_process(both: dict[str, Any]) -> None:
    """Twelve are taken, of which one, a repeated one, fills the last batch."""
    first, second = (each["taken"] for each in both["uneven"])
    assert len(first) == len(second) == 12
    for epoch in (slice(0, 6), slice(6, 12)):
        assert set(first[epoch] + second[epoch]) == set(range(11))
    assert first[:6] != first[6:]  # shuffled anew


def test_work_is_shared_out_and_handed_back_in_order(both: dict[str, Any]) -> None:
    for each in both["shared"]:
        assert each["shared"] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
        assert each["likelihood"] == each["alone"]
        assert each["first"] == 0 and "'refused'" in each["refused"]
    assert both["shared"][0] == both["shared"][1]


def test_commands_share_their_work_out(both: dict[str, Any], tmp_path: Path) -> None:
    """Files and words are those of one process, once."""
    folder = both["folder"][0]["path"]
    for name in ("images", "series.csv"):
        (tmp_path / name).symlink_to(folder / "commands" / name)
    told = told_by_commands(folder / "fsdp_recipe" / "model", tmp_path)
    assert [each["told"] for each in both["commands"]] == [told, [""] * 3]
    for name in ("found.json", "forecast.csv", "samples.png"):
        assert (tmp_path / name).read_bytes() == (folder / "commands" / name).read_bytes()


def test_alone_nothing_is_shared() -> None:
    with ranks.together():
        assert ranks.share(lambda item: 2 * item, iter(range(3))) == [0, 2, 4]
    assert (ranks.count(), ranks.rank(), ranks.gather("mine")) == (1, 0, ["mine"])


# Gradients of what a batch lacks


@pytest.mark.parametrize("kept", [("label", "series"), ("grid",), ("label", "grid")])
def test_what_a_batch_lacks_gets_a_gradient_of_zero(kept: tuple[str, ...]) -> None:
    """Also where a weight is infinite: nothing is multiplied. The loss is as it was."""
    options = NESTED | {"label": LABEL | {"null_probability": 0.5}}
    model = _model(**options).train()
    lacking = {name for name in NESTED if name not in kept}
    for name, x in model.named_parameters():
        if name.split(".")[1] in lacking:
            x.data.fill_(torch.inf)
    segments = [segment for segment in _nested(0) if segment.modality in kept]
    loss = model(segments).loss
    loss.backward()
    assert loss.isfinite()
    for name, x in model.named_parameters():
        assert x.grad is not None, name
        assert x.grad.isfinite().all()
        if name.split(".")[1] in lacking and not name.startswith("backbone"):
            assert not x.grad.any(), name


def test_what_tells_a_hosted_body_of_noise_gets_a_gradient_without_any() -> None:
    noisy = SERIES | {"objective": {"kind": "block_diffusion", "noise": "gaussian"}}
    model = _model("llama", series=noisy, grid=NESTED["grid"]).train()
    model(_nested(0)[2:]).loss.backward()
    assert [name for name, x in model.named_parameters() if x.requires_grad and x.grad is None] == []
    assert not model.backbone.level.weight.grad.any()
    model.zero_grad()
    model.backbone.level.weight.data.fill_(0.1)
    model(_nested(0)[1:]).loss.backward()
    assert model.backbone.level.weight.grad.any()


def test_what_no_position_of_a_hosted_body_reads_is_not_trained() -> None:
    """It would never get a gradient."""
    body = {"model_type": "bert", "is_decoder": True, **ATTENTION}
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=body, modalities={"series": SERIES})).train()
    model(_nested(0)[1:2]).loss.backward()
    lacking = [name for name, x in model.named_parameters() if x.grad is None]
    assert all("word_embeddings" in name or "pooler" in name for name in lacking) and len(lacking) == 3
    assert not any(model.get_parameter(name).requires_grad for name in lacking)


def test_bodies_that_skip_layers_are_refused() -> None:
    """Each process would skip others, and wait for their gradients."""
    config = UnimodalARConfig(backbone={"model_type": "opt", "layerdrop": 0.1}, modalities={"series": SERIES})
    sharding.check_layers(1, config)
    with pytest.raises(ValueError, match=r"layerdrop of the opt backbone is 0\.1; in several processes it must be 0"):
        sharding.check_layers(2, config)
    sharding.check_layers(2, _model().config)


def test_frozen_parts_that_a_batch_lacks_stay_without_a_gradient() -> None:
    model = _model(**NESTED).train()
    model.heads["grid"].requires_grad_(False)
    model(_nested(0)[:2]).loss.backward()
    assert all(x.grad is None for x in model.heads["grid"].parameters())
    assert all(x.grad is not None for x in model.embeddings["grid"].parameters())


def test_nothing_is_added_where_nothing_is_lacking() -> None:
    model = _model(**NESTED).train()
    loss = model(_nested(0)).loss
    assert model._with_all(loss, _nested(0)) is loss
    assert model.eval()._with_all(loss, _nested(0)[:2]) is not loss  # that it could be seen


# What is asked for and cannot be had


class _State:
    """As much of accelerate's as is looked at."""

    def __init__(self, kind: DistributedType, version: int = 2) -> None:
        self.distributed_type, self.num_processes = kind, 1
        self.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=version)


def test_the_first_fsdp_is_refused() -> None:
    """It is what accelerate takes where nothing is said."""
    sharding.check(_State(DistributedType.FSDP, 2), True)
    with pytest.raises(ValueError, match=r"FSDP's version is 1; it must be 2, by fsdp_version: 2 .*fsdp2"):
        sharding.check(_State(DistributedType.FSDP, 1), True)


def test_fsdp_of_a_single_process_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """accelerate would train without and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")
    with pytest.raises(ValueError, match="FSDP is asked for, and this process was started alone; start it by"):
        train(_document(tmp_path))


def test_deepspeed_on_the_cpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would train with DDP and say nothing."""
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    sharding.check(_State(DistributedType.DEEPSPEED), False)
    with pytest.raises(ValueError, match="DeepSpeed is asked for, and training is on the CPU"):
        sharding.check(_State(DistributedType.MULTI_CPU), False)


def test_processes_that_would_each_train_alone_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """All would write to one folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="WORLD_SIZE is 2, and this process trains alone"):
        sharding.check(_State(DistributedType.NO), False)


def test_quantised_bodies_under_fsdp_are_refused() -> None:
    model = _model()
    model.backbone.model.hf_quantizer = object()
    with (
        pytest.raises(ValueError, match="FSDP is asked for, and the backbone is quantised"),
        sharding.as_one_group(model),
    ):
        pass


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """As a process finds itself that accelerate's --cpu started for several; and the commands that it becomes."""
    for key, value in (("USE_CPU", "true"), ("MIXED_PRECISION", "no")):
        monkeypatch.setenv(f"ACCELERATE_{key}", value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.delenv("RANK", raising=False)
    found: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, command: found.append(command))
    monkeypatch.setattr(launch, "_follow_launcher", lambda: found.append(["follows"]))
    return found


def _parent(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(psutil.Process, "cmdline", lambda self: list(words))


@pytest.mark.parametrize("parent", [["bash", "launch.py"], ["launch"], None])
def test_a_launcher_that_cannot_be_read_is_told(
    parent: list[str] | None, started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is another parent followed to its end."""

    def read(self: Any) -> list[str]:
        if parent is None:
            raise psutil.NoSuchProcess(0)
        return parent

    monkeypatch.setattr(psutil.Process, "cmdline", read)
    monkeypatch.setattr(sys, "argv", ["train", str(_write(tmp_path, _document(tmp_path)))])
    with pytest.raises(SystemExit, match="accelerate was asked for several processes on the CPU and started one"):
        main()
    assert started == []


DDP, FSDP = (str(CONFIGURATIONS / name) for name in ("ddp.yaml", "fsdp2.yaml"))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("accelerate launch --cpu --num_processes 2 -m x", f"--config_file {DDP} --num_processes 2 -m x"),
        (
            "-m accelerate.commands.launch --num_processes=2 --cpu x --cpu",
            f"--config_file {DDP} --num_processes=2 x --cpu",
        ),
        (f"/bin/accelerate-launch --cpu --config_file {FSDP} x", f"--config_file {FSDP} x"),
        (f"/bin/accelerate-launch --cpu --config_file {DDP} x", f"--multi_gpu --config_file {DDP} x"),
        ("/bin/accelerate launch --cpu x", None),
        ("/bin/accelerate launch --num_processes 1 x", None),
    ],
)
def test_all_processes_are_started_where_accelerate_starts_one(
    given: str, expected: str | None, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With what the user gave, but no defaults that the user's --cpu had passed over."""
    _parent(monkeypatch, *given.split())
    launch.join_others()
    assert started.pop(0) == ["follows"]
    commands = [[sys.executable, "-m", "accelerate.commands.launch", *expected.split()]] if expected else []
    assert started == commands


def test_the_users_own_configuration_counts_where_it_did(
    started: list[list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from accelerate.commands.config import config_args  # type: ignore[import-untyped]

    file = tmp_path / "default_config.yaml"
    file.write_text("{distributed_type: MULTI_CPU, use_cpu: true, num_processes: 2}")
    monkeypatch.setattr(config_args, "default_config_file", str(file))
    _parent(monkeypatch, "accelerate", "launch", "x")
    launch.join_others()
    assert started[1][3:] == ["--multi_gpu", "x"]
    _parent(monkeypatch, "accelerate", "launch", "--cpu", "x")
    launch.join_others()
    assert started[2:] == [["follows"]]
    _parent(monkeypatch, "accelerate", "launch", "--config_file", str(CONFIGURATIONS / "deepspeed_zero2.yaml"), "x")
    with pytest.raises(ValueError, match="DeepSpeed is asked for, and training is on the CPU"):
        launch.join_others()


@pytest.mark.parametrize("name", ["RANK", "ACCELERATE_USE_CPU", "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"])
def test_processes_that_are_as_wanted_start_no_others(
    name: str, started: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of several; a GPU's; one that is meant to be alone; one of no launcher."""
    _parent(monkeypatch, "accelerate", "launch", "--cpu", "--num_processes", "2", "x")
    if name == "RANK":
        monkeypatch.setenv("RANK", "0")
    else:
        monkeypatch.delenv(name)
    launch.join_others()
    assert started == [["follows"]] * (name in ("ACCELERATE_USE_CPU", "MASTER_ADDR"))


def test_several_processes_without_gpus_train_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under torchrun accelerate would let each train alone."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "false")
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    launch.join_others()
    assert os.environ["ACCELERATE_USE_CPU"] == "true"


# Configurations


@pytest.mark.parametrize("path", sorted(CONFIGURATIONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_are_accelerates(path: Path) -> None:
    config = load_config_from_file(str(path))  # raises ValueError for unknown keys
    kinds = {"ddp": "MULTI_GPU", "fsdp2": "FSDP", "deepspeed_zero2": "DEEPSPEED", "deepspeed_zero3": "DEEPSPEED"}
    assert config.distributed_type == kinds[path.stem]
    text = path.read_text()
    assert f"accelerate launch --config_file {path.name} -m unimodal_ar.recipes.train" in text
    assert yaml.safe_load(text)["mixed_precision"] == "no"


def test_configurations_are_no_recipes() -> None:
    assert {path.stem for path in CONFIGURATIONS.glob("*.yaml")} == {
        "ddp",
        "fsdp2",
        "deepspeed_zero2",
        "deepspeed_zero3",
    }
    assert not any("accelerate" in name for name in shipped_recipes())
    with pytest.raises(ValueError, match="recipe is 'accelerate/ddp', which is for `accelerate launch"):
        load_recipe("accelerate/ddp")


def test_ddp_looks_for_no_unused_parameters(tmp_path: Path) -> None:
    assert arguments.build({}, 0, tmp_path).ddp_find_unused_parameters is False
    assert arguments.build({"ddp_find_unused_parameters": True}, 0, tmp_path).ddp_find_unused_parameters is True
