"""What a training does when it is told to stop: machines that are only lent send a SIGTERM before they are gone."""

from __future__ import annotations

import signal
import threading
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from tqdm import tqdm  # type: ignore[import-untyped]  # types-tqdm is not worth a dependency

from .. import ranks

STATUS = 128 + signal.SIGTERM  # as a shell tells of a process that a signal ended


class Interruption:
    """Lets a `UnimodalARTrainer` end by a checkpoint when the process is sent a SIGTERM: at the end of the optimiser
    step under way (and of the evaluation that belongs to it) it saves, says how to go on, and raises SystemExit(143).
    After the last step, too, if that was saved.

        with Interruption() as trainer.interruption:
            trainer.train()

    The handler of before is back afterwards. Of several processes it is enough that one was sent the signal. Elsewhere
    than in the main thread, where there are no handlers, nothing happens.
    """

    def __init__(self) -> None:
        self.requested = False
        self.agreed = False
        self._before: Any = None
        self._group: Any = None

    def __enter__(self) -> Interruption:
        if threading.current_thread() is threading.main_thread():
            before = signal.signal(signal.SIGTERM, self._note)
            self._before = signal.SIG_DFL if before is None else before  # None: it is none of Python's
        return self

    def __exit__(self, *error: Any) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def agree(self) -> bool:
        """Whether any process was told to stop. All have to ask, after the same step."""
        told = self.requested
        if ranks.count() > 1:
            if self._group is None:  # of the hosts, which need not wait for their devices
                self._group = dist.new_group(backend="gloo")
            flag = torch.tensor([told], dtype=torch.uint8)
            dist.all_reduce(flag, dist.ReduceOp.MAX, self._group)
            told = bool(flag)
        self.agreed = told
        return told

    def end(self, folder: Any, whole: bool = True) -> NoReturn:
        """To be called when the checkpoint `folder` is on disk; not `whole`: nothing can go on from it."""
        if ranks.rank() == 0:
            how = "go on from it by --set training.resume_from_checkpoint=auto"
            what = how if whole else "only the model, as save_only_model says"
            tqdm.write(f"SIGTERM: saved {folder}; {what}")  # below no half-drawn bar
        raise SystemExit(STATUS)

    def _note(self, *given: Any) -> None:
        self.requested = True
