"""What a kind of noise is: how it is added in training, and how it is taken away again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar

from torch import Tensor

from ..heads.base import Head
from ..layout import Layout
from ..noise import SampleNoise
from ..schema import Element
from ..segment import Segment
from .base import Decoding
from .levels import Levels


@dataclass(frozen=True)
class Noisy:
    """n elements with noise, in generation order.

    Attributes:
        values: [B, n, ...].
        masked: [B, n] bool, what is hidden altogether; None: nothing is.
        level: [B, n], what a position is told of its noise; None: nothing.
        targets: [B, n, ...], what the head is to predict in training; None: the elements' values.
        weights: [B, n], factors on the head's losses; None: 1.
    """

    values: Tensor
    masked: Tensor | None = None
    level: Tensor | None = None
    targets: Tensor | None = None
    weights: Tensor | None = None

    def at(self, places: slice) -> Noisy:
        """The elements at `places`."""
        parts: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: part[:, places] for name, part in parts.items() if part is not None})


Restore = Callable[[Noisy], tuple[Tensor, ...]]
"""A denoising pass: hidden states [B, n, H], and those of the counterpart without context where there is one."""


class Noise:
    """A kind of noise.

    Args:
        levels: their distribution in training; None: the kind's own.
        is_bound: the head has a likelihood, of which the loss in evaluation mode is to be a bound.

    Attributes:
        masks: it hides elements.
        has_levels: positions are told how noisy they are.
    """

    masks: ClassVar[bool] = False
    has_levels: ClassVar[bool] = False
    default_levels: ClassVar[Levels]

    def __init__(self, levels: Levels | None, is_bound: bool = True) -> None:
        self.levels = self.default_levels if levels is None else levels
        self.is_bound = is_bound

    def problem(self, element: Element, head: dict[str, Any]) -> str | None:
        """What of a modality's options does not go with this noise, as the end of a sentence; None: all does."""
        raise NotImplementedError

    def add(self, segment: Segment, layout: Layout, training: bool) -> Noisy:
        """All elements of a segment, each block with a level of its own, drawn from torch's global generator."""
        raise NotImplementedError

    def sampler(self, head: Head, written: dict[str, Any] | None) -> Any:
        """The sampler that `{kind: ..., **options}` describes, None the default one.

        Raises:
            ValueError: it is not one for this noise and this head.
        """
        raise NotImplementedError

    def draw(
        self,
        restore: Restore,
        decoding: Decoding,
        head: Head,
        values: Tensor,
        known: Tensor,
        alone: bool,
        generator: SampleNoise,
        steps: Any,
        sampler: Any,
        **sampling: Any,
    ) -> Tensor:
        """Draws a block.

        Args:
            restore: runs a denoising pass.
            values: [B, n, ...] in generation order, read where they are known.
            known: [B, n] bool, or [B, n, D] of vectors that are known in part.
            alone: no other block is drawn.
            steps: how many passes, a `Steps`; None: the default.
            sampler: from `sampler`.
            sampling: what the head's `sample` takes besides.

        Returns:
            [B, n, ...].
        """
        raise NotImplementedError
