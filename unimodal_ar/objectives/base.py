"""What an objective is: what the model is asked to do with the next block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol

from torch import Tensor

from ..heads.base import Head
from ..layout import Layout
from ..schema import Element, Strict
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
        targets: [B, n, ...], what the head is to predict there; None: the elements' values.
        weights: [B, n], factors on the head's losses; None: 1.
    """

    parts: list[Part]
    places: slice | Tensor
    elements: slice
    predicted: Tensor
    targets: Tensor | None = None
    weights: Tensor | None = None


class Decoding(Protocol):
    """What the generation loop offers an objective.

    Attributes:
        starts: what the first block reads (`start` below), for the sequence, and where it is guided also for its
            counterpart without context.
        progress: 0 where drawing begins and 1 where it ends: over the blocks, or over the passes of the only one.
    """

    starts: tuple[Tensor | None, ...]
    progress: float

    def append(self, *parts: list[Part]) -> tuple[Tensor, ...]:
        """Runs the backbone on new positions and commits them to the cache.

        Args:
            parts: the positions; where the counterpart without context sees others, those, too.

        Returns:
            hidden states [B, n, H]; where the sequence is guided those of its counterpart, too.
        """

    def peek(self, *parts: list[Part]) -> tuple[Tensor, ...]:
        """The same without committing them to the cache."""

    def hold(self, *parts: list[Part]) -> None:
        """Takes positions that are to be committed with the next ones."""

    def guide(self, states: tuple[Tensor, ...]) -> Tensor:
        """Guided states, for what is a linear map of them."""

    def sample(self, head: Head, hidden: tuple[Tensor, ...], **sampling: Any) -> Tensor:
        """Values drawn by `head` from (guided) hidden states."""


class Objective:
    """Builds inputs, attention pattern and targets for training, and drives one block at sampling time. It asks the
    embedding for inputs and the head for samples, and knows nothing of modalities.

    Attributes:
        reads_sources: a position reads the value of another element (so it may have to be told its own place).
        has_levels: positions are told how noisy they are.
        knows_anything: what is known of a target may be any subset of its elements.
        likelihood: what the losses of a head with a `log_prob` are, summed over a segment in evaluation mode: "exact",
            the negative log-likelihood; "bound", a random estimate, without bias, of an upper bound on it; None:
            neither.
    """

    Options: ClassVar[type[Strict]] = Strict  # the keys of the objective's configuration besides `kind`

    reads_sources: bool = True
    has_levels: bool = False
    knows_anything: bool = False
    likelihood: Literal["exact", "bound"] | None = None

    def __init__(self, options: Any, head: type[Head] | None = None) -> None:
        self.options = options

    def holds_nothing(self, start: str) -> bool:
        """Whether a place may hold nothing at all (a start, a mask), so that a learned vector must stand for that."""
        return start == "learned"

    def problem(self, element: Element, head: dict[str, Any], start: str, target_positions: str | None) -> str | None:
        """What of a modality's options does not go with this objective, as the end of a sentence; None: all does."""
        return None

    def is_point(self, head: type[Head]) -> bool:
        """Whether what is drawn has no spread."""
        return head.is_point

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

    def sampling(self, head: Head, steps: Any, sampler: dict[str, Any] | None) -> dict[str, Any]:
        """The arguments of `draw` that are this objective's own, checked.

        Args:
            steps: how many passes draw a block, a `Steps` or None.
            sampler: `{kind: ...}` with the sampler's own keys, or None.

        Raises:
            ValueError: one of them is not for this objective, or does not go with the head.
        """
        raise NotImplementedError

    def draw(
        self,
        decoding: Decoding,
        embedding: Any,
        head: Head,
        segment: Segment,
        layout: Layout,
        block: int,
        known: Tensor | None = None,
        alone: bool = False,
        **sampling: Any,
    ) -> Tensor:
        """Draws the values [B, n, ...] of one block, in generation order, given the segment's earlier ones.

        Args:
            known: [B, n] bool, elements of the block that are given, or [B, n, D], values; None: none is. For
                objectives that know anything.
            alone: no other block of the segment is drawn.
            sampling: what `sampling` returned, and what the head's `sample` takes.
        """
        raise NotImplementedError
