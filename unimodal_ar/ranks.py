"""What the processes (ranks) of one program, as `accelerate launch` or `torchrun` start them, do together.

With a single process nothing here does anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import torch.distributed as dist

Item = TypeVar("Item")
Result = TypeVar("Result")

_depth = 0  # of `together`


def count() -> int:
    """How many processes there are: 1 before they have found each other."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if count() > 1 else 0


@contextmanager
def together() -> Iterator[None]:
    """Inside, likelihoods, samples and forecasts (`negative_log_likelihood`, `Generator.generate`,
    `Forecaster.predict`) are computed by all ranks, each a part of the batches, and handed to all of them, equal to
    those of a single process bit for bit. Every rank must come here, ask for the same and have the same model. Batches
    are what is shared out: more ranks than batches are idle."""
    global _depth
    _depth += 1
    try:
        yield
    finally:
        _depth -= 1


def share(work: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """[work(item) for item in items]. Inside `together` rank r does those at r, r + ranks, ..., and every rank gets all
    results, in order; they are pickled on the way, so tensors in them belong on the CPU."""
    ranks = count() if _depth else 1
    mine = [work(item) for number, item in enumerate(items) if ranks == 1 or number % ranks == rank()]
    if ranks == 1:
        return mine
    parts = gather(mine)
    return [parts[number % ranks][number // ranks] for number in range(sum(map(len, parts)))]


def first(work: Callable[[], Result]) -> Result:
    """work(), which only the first rank does and every rank gets; a ValueError there is raised by every rank. It must
    be done soon: the others wait."""
    found: tuple[Any, ValueError | None] = (None, None)
    if rank() == 0:
        try:
            found = (work(), None)
        except ValueError as error:
            found = (None, error)
    result, refused = gather(found)[0]
    if refused is not None:
        raise refused
    return cast(Result, result)


def gather(value: Any) -> list[Any]:
    """What every rank calls this with, by rank."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found
