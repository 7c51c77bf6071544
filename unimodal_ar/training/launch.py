"""How this process takes its place among those of a distributed training, before they have found each other."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import psutil  # type: ignore[import-untyped]  # of accelerate
import torch
import yaml

_SIZES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")  # of torchrun and of MPIs


def join_others() -> None:
    """To be called before any training argument is made.

    Several processes on a machine without GPUs train on the CPU, which accelerate has to be told: it would let each
    train alone. And `accelerate launch --cpu --num_processes 2` starts one process, unless MPI is there; then this
    becomes the launcher of both.

    Raises:
        ValueError: several processes were asked for, this is the only one, and it cannot be told what to start.
    """
    _follow_launcher()
    on_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() == "true"
    if any(int(os.environ.get(name, 1)) > 1 for name in _SIZES):
        if not torch.accelerator.is_available():
            os.environ["ACCELERATE_USE_CPU"] = "true"
    elif on_cpu and "MASTER_ADDR" in os.environ and "RANK" not in os.environ:  # accelerate sets it for several alone
        _start_all()


def _follow_launcher() -> None:
    """Has Linux send this process a SIGTERM when accelerate's launcher of a single process ends: it does not hand on
    the one that it was sent itself. (A process keeps that when it becomes another program.)"""
    if sys.platform == "linux" and "ACCELERATE_MIXED_PRECISION" in os.environ and "RANK" not in os.environ:
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGTERM)


def _start_all() -> None:
    """Puts a launcher of all processes in the place of this one."""
    words = psutil.Process(os.getppid()).cmdline()
    names = [Path(word).name for word in words]
    begin = next((n for n, name in enumerate(names) if name in _LAUNCHERS), None)
    if begin is None:
        raise ValueError(
            "accelerate was asked for several processes on the CPU and started one; start them by `accelerate launch "
            "--config_file ddp.yaml` with use_cpu: true (see recipes/accelerate/ddp.yaml)"
        )
    options = [word for word in words[begin + 1 :] if word != "--cpu"]
    kind = [] if _distributed_type(options) == "FSDP" else ["--multi_gpu"]  # that is: several processes, of any kind
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "accelerate.commands.launch", *kind, *options])


_LAUNCHERS = ("launch", "accelerate-launch", "accelerate.commands.launch", "launch.py")


def _distributed_type(options: list[str]) -> str:
    """What accelerate's configuration file says."""
    from accelerate.commands.launch import launch_command_parser  # type: ignore[import-untyped]

    file = launch_command_parser().parse_known_args(options)[0].config_file
    return "NO" if file is None else str((yaml.safe_load(Path(file).read_text()) or {}).get("distributed_type", "NO"))
