"""Trainings that are killed or told to stop, in forks of one process, which has imported everything.

    python -m tests.killing kills RECIPE SEED KILLS

Trains a recipe again and again, each time until it is killed (-9) at another moment, and last of all to its end. Prints
what each kill hit: "time" (any moment), "file" (right before a file or folder is made, renamed or removed in the
output's folder), "half" (a file of the checkpoint is cut off), "publish" (between files of the model), and what
checkpoints it left.

    python -m tests.killing ranks RECIPE STEP

Two processes train a recipe on the CPU, into OUTPUT-whole without a stop, and into OUTPUT with one: after STEP steps
the second one alone is sent a SIGTERM. Then both go on. Prints the statuses.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml

from unimodal_ar.recipes.train import train
from unimodal_ar.training.resumable import _Course


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _at_time(output: Path, chance: random.Random) -> None:
    threading.Timer(chance.uniform(0, 1.0), _kill).start()


def _at_file(output: Path, chance: random.Random) -> None:
    left = chance.randrange(1, 60)

    def hook(event: str, given: tuple[Any, ...]) -> None:
        nonlocal left
        writes = event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir") or (event == "open" and given[1] == "w")
        if writes and str(output) in str(given[0]):
            left -= 1
            if not left:
                _kill()

    sys.addaudithook(hook)


def _at_half(output: Path, chance: random.Random) -> None:
    left, save = chance.randrange(1, 12), torch.save

    def halved(value: Any, path: Any, *args: Any, **kwargs: Any) -> None:
        nonlocal left
        save(value, path, *args, **kwargs)
        left -= 1
        if not left:
            os.truncate(path, os.path.getsize(path) // 2)
            _kill()

    torch.save = halved  # type: ignore[assignment]


def _at_publishing(output: Path, chance: random.Random) -> None:
    left, replace = chance.randrange(1, 5), os.replace

    def counting(source: Any, target: Any) -> None:
        nonlocal left
        replace(source, target)
        left -= Path(target).parent == output
        if not left:
            _kill()

    os.replace = counting  # type: ignore[assignment]


WAYS: dict[str, Callable[[Path, random.Random], None]] = {
    "time": _at_time,
    "file": _at_file,
    "half": _at_half,
    "publish": _at_publishing,
}


def fork(work: Callable[[], Any]) -> int:
    """The process that does it."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        work()
        status = 0
    except SystemExit as exit:
        status = int(exit.code or 0)
    except Exception:  # noqa: BLE001  # which nobody else would tell
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(status)


def ended(child: int) -> int:
    """Its status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def kills(document: dict[str, Any], seed: int, count: int) -> None:
    chance, output, hit = random.Random(seed), Path(document["output_dir"]), 0
    while hit < count:
        # After the first kill of the last kind nothing is left to train.
        way = "publish" if hit >= count - 2 else ("file", "half", "time")[hit % 3]

        def killed(way: str = way) -> None:
            WAYS[way](output, chance)
            train(document)

        status = ended(fork(killed))
        chance.random()  # the child's draws are not this process's
        if status == -signal.SIGKILL:
            hit += 1
            print("killed", way, sorted(path.name for path in (output / "checkpoints").glob("*")))
        elif status:
            sys.exit(f"a training ended with the status {status}")
        else:  # it was faster
            shutil.rmtree(output)
    print("last", ended(fork(lambda: train(document))))


def _both(document: dict[str, Any], stop: int | None = None) -> list[int]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]

    def process(rank: int) -> Callable[[], None]:
        def work() -> None:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
            os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
            if rank and stop is not None:
                _stopped_after(stop)
            train(document)

        return work

    return [ended(child) for child in [fork(process(0)), fork(process(1))]]


def _stopped_after(steps: int) -> None:
    step_end = _Course.on_step_end

    def stopping(self: _Course, args: Any, state: Any, *more: Any, **named: Any) -> None:
        if state.global_step == steps:
            os.kill(os.getpid(), signal.SIGTERM)
        step_end(self, args, state, *more, **named)

    _Course.on_step_end = stopping  # type: ignore[method-assign]


def ranks(document: dict[str, Any], step: int) -> None:
    print("whole", _both(document | {"output_dir": f"{document['output_dir']}-whole"}))
    print("stopped", _both(document, step))
    print("resumed", _both(document))


def main() -> None:
    torch.set_num_threads(1)
    document = yaml.safe_load(Path(sys.argv[2]).read_text())
    work: dict[str, Callable[..., None]] = {"kills": kills, "ranks": ranks}
    work[sys.argv[1]](document, *map(int, sys.argv[3:]))


if __name__ == "__main__":
    main()
