"""What an objective is: what the model is asked to do with the next block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from ..heads.base import Head
from ..layout import Layout
from ..schema import Strict
from ..segment import Segment
from ..sequence import Part


@dataclass(frozen=True)
class TrainingPlan:
    """Positions for one target segment, and which of them predict.

    Attributes:
        parts: positions in the order of the sequence.
        places: which positions of the parts predict, in generation order of the elements.
        elements: which n elements they predict, as places of the generation order.
        predicted: [B, n] bool: the element is observed, and something is known to predict it from.
    """

    parts: list[Part]
    places: slice | Tensor
    elements: slice
    predicted: Tensor


class Decoding(Protocol):
    """What the generation loop offers an objective.

    Attributes:
        starts: what the first block reads (`start` below), for the sequence, and where it is guided also for its
            counterpart without context.
    """

    starts: tuple[Tensor | None, ...]

    def append(self, *parts: list[Part]) -> tuple[Tensor, ...]:
        """Runs the backbone on new positions and commits them to the cache.

        Args:
            parts: the positions; where the counterpart without context sees others, those, too.

        Returns:
            hidden states [B, n, H]; where the sequence is guided those of its counterpart, too.
        """

    def sample(self, head: Head, hidden: tuple[Tensor, ...], **sampling: Any) -> Tensor:
        """Values drawn by `head` from (guided) hidden states."""


class Objective:
    """Builds inputs, attention pattern and targets for training, and drives one block at sampling time. It asks the
    embedding for inputs and the head for samples, and knows nothing of modalities."""

    Options: ClassVar[type[Strict]] = Strict  # the keys of the objective's configuration besides `kind`

    def __init__(self, options: Strict) -> None:
        self.options = options

    def training_plan(
        self, embedding: Any, segment: Segment, layout: Layout, last: bool, start: Tensor | None = None
    ) -> TrainingPlan:
        """The positions of a target segment.

        Args:
            last: no segment follows that would have to see all of it.
            start: [B, 1, H], what the first block reads where that is the context's embedding.
        """
        raise NotImplementedError

    def known_parts(
        self, embedding: Any, segment: Segment, layout: Layout, blocks: int, start: Tensor | None = None
    ) -> list[Part]:
        """The positions that commit the first `blocks` blocks, as far as drawing the next one does not do it."""
        raise NotImplementedError

    def draw(
        self,
        decoding: Decoding,
        embedding: Any,
        head: Head,
        segment: Segment,
        layout: Layout,
        block: int,
        **sampling: Any,
    ) -> Tensor:
        """Draws the values [B, n, ...] of one block, in generation order, given the segment's earlier ones."""
        raise NotImplementedError
