"""How this process takes its place among those of a distributed training, before they have found each other."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from importlib.resources import files
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # of accelerate
import torch
import yaml

NO_DEEPSPEED = (
    "DeepSpeed is asked for, and training is on the CPU, where accelerate does without; use FSDP2 there "
    "(see `unimodal-ar recipes accelerate/fsdp2`)"
)
_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPIs


def join_others() -> bool:
    """To be called before any training argument or state of accelerate's is made.

    Several processes on a machine without GPUs work on the CPU, which accelerate has to be told: it would let each
    work alone. And `accelerate launch --cpu --num_processes 2` starts one process, unless MPI is there; then this
    becomes the launcher of both.

    Returns:
        Whether there are several.

    Raises:
        ValueError: several processes were asked for, this is the only one, and it cannot be told what to start.
    """
    if any(int(os.environ.get(name, 1)) > 1 for name in _SIZES):
        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
        return True
    if "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:  # accelerate's launcher of one
        options = _launcher_options()
        if options is not None:
            _follow_launcher()
        if os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true" and "MASTER_ADDR" in os.environ:
            _start_all(options)
    return False


def _launcher_options() -> list[str] | None:
    """What accelerate's launcher was given, if it is the parent of this process."""
    try:
        words: list[str] = psutil.Process(os.getppid()).cmdline()
    except psutil.Error:  # it has ended, or may not be looked at
        return None
    for number, word in enumerate(words):
        command = word == "launch" and number > 0 and "accelerate" in Path(words[number - 1]).name
        if command or word.endswith(
            ("accelerate-launch", "accelerate.commands.launch", "accelerate/commands/launch.py")
        ):
            return words[number + 1 :]
    return None


def _follow_launcher() -> None:
    """Has Linux send this process a SIGTERM when accelerate's launcher of a single process ends: it does not hand on
    the one that it was sent itself. (A process keeps that when it becomes another program.)"""
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _start_all(options: list[str] | None) -> None:
    """Puts a launcher of all processes in the place of this one, if there are to be several."""
    if options is None:
        raise ValueError(
            "accelerate was asked for several processes on the CPU and started one; start them by `accelerate launch "
            "--config_file ddp.yaml` with use_cpu: true (see `unimodal-ar recipes accelerate/ddp`)"
        )
    from accelerate.commands.config.config_args import default_config_file  # type: ignore[import-untyped]
    from accelerate.commands.launch import launch_command_parser  # type: ignore[import-untyped]

    asked = launch_command_parser().parse_known_args(options)[0]
    file = asked.config_file
    if file is None and not asked.cpu and Path(default_config_file).is_file():
        file = default_config_file
    given = {} if file is None else yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
    if (asked.num_processes or given.get("num_processes") or 1) < 2:  # accelerate has counted the GPUs
        return
    kind = given.get("distributed_type")
    if kind == "DEEPSPEED":
        raise ValueError(NO_DEEPSPEED)
    if file is None:  # or accelerate would now read the user's own, which it passes over for --cpu
        new = ["--config_file", str(files("unimodal_ar.recipes") / "accelerate" / "ddp.yaml")]
    else:
        new = [] if kind == "FSDP" else ["--multi_gpu"]  # that is: several processes, of any kind
    own = len(options) - len(asked.training_script_args)
    words = [word for word in options[:own] if word != "--cpu"] + options[own:]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *new, *words])
