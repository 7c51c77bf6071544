"""The order of the training examples, and what is drawn when each is looked up.

Both follow from (seed, epoch, place in the epoch) alone: not from what was drawn before, how many workers load, how far
ahead, or which process has the example. A training that goes on in the middle of an epoch therefore draws what it
would have drawn.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch.utils.data import Dataset, Sampler

EXAMPLES = "examples"  # of a batch: the indices of its examples in the training data


class Draw(NamedTuple):
    """An example to be looked up.

    Attributes:
        example: its index.
        seed: of whatever is drawn meanwhile.
    """

    example: int
    seed: int


class Draws(Sampler[Draw]):
    """All examples of an epoch, for `Drawn`.

    Args:
        count: of the examples.
        seed: of the order and of the draws.
        shuffle: False: in their own order.
        order: a sampler that says which come, and when, instead; None: every one, once.

    Attributes:
        epoch: which one an iteration that begins is of. (accelerate hands epochs through samplers that it knows, and
            not when several processes begin in the middle of one: whoever trains sets it.)
    """

    def __init__(self, count: int, seed: int, shuffle: bool = True, order: Sampler[int] | None = None) -> None:
        self.count, self.seed, self.shuffle, self.order, self.epoch = count, seed, shuffle, order, 0

    def __len__(self) -> int:
        return self.count if self.order is None else len(cast(Sized, self.order))

    def __iter__(self) -> Iterator[Draw]:
        for place, index in enumerate(self._order()):
            yield Draw(index, derived(self.seed, self.epoch, place))

    def _order(self) -> Iterable[int]:
        if self.order is not None:
            if hasattr(self.order, "set_epoch"):
                self.order.set_epoch(self.epoch)
            with _kept():
                _seed(derived(self.seed, self.epoch))
                return list(self.order)
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        return torch.randperm(self.count, generator=generator).tolist() if self.shuffle else range(self.count)


class Drawn(Dataset):
    """Batches of examples whose draws, from the global generators of torch, numpy and Python, are those of their
    `Draw`; the generators are left as they were. So are those of the collation, which goes on from the last example's.

    Args:
        examples: the data set.
        collate: makes a batch of them; None: a list.
        numbered: the batch knows the indices of its examples, as `EXAMPLES`.
    """

    def __init__(
        self, examples: Any, collate: Callable[[list[Any]], Any] | None = None, numbered: bool = False
    ) -> None:
        self.examples, self.collate, self.numbered = examples, collate, numbered

    def __len__(self) -> int:
        return len(self.examples)

    def __getitems__(self, draws: Sequence[Draw]) -> Any:
        """A batch at once, since to keep the generators takes longer than to seed them."""
        with _kept():
            examples = [self._looked_up(draw) for draw in draws]
            batch: Any = examples if self.collate is None else self.collate(examples)
        return {**batch, EXAMPLES: [draw.example for draw in draws]} if self.numbered else batch

    def _looked_up(self, draw: Draw) -> Any:
        _seed(draw.seed)
        return self.examples[draw.example]


def as_it_is(batch: Any) -> Any:
    """The collation of what `Drawn` has collated."""
    return batch


def derived(*numbers: int) -> int:
    """A seed in [0, 2^63) that follows from these numbers."""
    digest = hashlib.blake2b(" ".join(map(str, numbers)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _seed(seed: int) -> None:
    torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed the GPUs as well
    np.random.seed(seed % 2**32)  # noqa: NPY002  # data sets of users may draw from it
    random.seed(seed)


@contextmanager
def _kept() -> Iterator[None]:
    states = torch.get_rng_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.set_rng_state(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        random.setstate(states[2])


@dataclass(frozen=True)
class SteadyWorker:
    """For a DataLoader's `worker_init_fn`: what `init` does, and a worker that a SIGTERM for all processes of a
    training does not end. It would take the training with it, which is to end by a checkpoint, and needs the batches of
    its last step. A SIGTERM of the training itself ends the worker."""

    init: Callable[[int], None] | None

    def __call__(self, worker: int) -> None:
        if self.init is not None:
            self.init(worker)
        if hasattr(signal, "sigwaitinfo"):  # not on macOS and Windows
            signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
            # (The parent of the system may be a server that forks.)
            training: Any = multiprocessing.parent_process()
            threading.Thread(target=_obey, args=(training.pid,), daemon=True).start()


def started_steadily(start: Callable[[], Any]) -> Any:
    """Lets `start` start workers that are steady from their first moment: they inherit what is blocked here."""
    if not hasattr(signal, "sigwaitinfo"):
        return start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    try:
        return start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _obey(parent: int) -> None:
    while signal.sigwaitinfo([signal.SIGTERM]).si_pid != parent:
        pass
    os._exit(0)
