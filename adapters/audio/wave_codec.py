"""What an audio codec is: waves <-> the values of elements, all at once or as the values come.

Shapes: B clips, C channels, S samples, `step` samples a step, N elements, K codes and D values of an element.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from ...segment import Grid


class Decoder(ABC):
    """Decodes the rows (places along T) of one grid as they come.

    All that `push` and `finish` return, one after the other, is `WaveCodec.decode` of the whole, sample for sample,
    however the rows were cut.
    """

    @abstractmethod
    def push(self, values: Tensor) -> Tensor:
        """Values of the next rows of the grid, [B, rows * W] or [B, rows * W, K or D] with rows >= 0 -> the samples
        that are sure by now, float32 [B, C, s], s >= 0."""

    @abstractmethod
    def finish(self) -> Tensor:
        """The samples that are still missing, float32 [B, C, s], s >= 0; nothing is pushed any more."""


class WaveCodec(ABC):
    """Waves, float32 [B, C, S] in [-1, 1] at `sample_rate` <-> values on a grid, whose T axis is time.

    Attributes:
        step: samples of a step, the least whose values are whole.
        element: the `element` of the model's configuration.
        needs_fit: whether a scale is still to be learned from data.
        has_phases: whether values tell of phases, so that waves and not only their spectra come back.
        before, after: how many samples before and after its own the values of a step tell of, as far as that is known.

    Args:
        sample_rate: samples a second.
        channels: C.
    """

    step: int
    element: dict[str, Any]
    needs_fit: bool = False
    before: int = 0
    after: int = 0
    has_phases: bool = True

    def __init__(self, sample_rate: int, channels: int) -> None:
        self.sample_rate = sample_rate
        self.channels = channels

    @property
    def width(self) -> int:
        """W: elements side by side in a row of the grid."""
        return 1

    def grid(self, steps: int) -> Grid:
        """The grid of so many steps (>= 1)."""
        return (steps, 1, self.width)

    def steps(self, grid: Grid) -> int:
        """How many steps a grid has: the inverse of `grid`.

        Raises:
            ValueError: no number of steps has this grid.
        """
        steps = grid[0] + 1 - self.grid(1)[0]  # a pattern may have rows beyond the steps, the same number for all
        if steps < 1 or self.grid(steps) != grid:
            raise ValueError(f"grid is {grid}; with these elements it must be like {self.grid(max(steps, 1))}")
        return steps

    def fitted(self, waves: Iterable[Tensor]) -> dict[str, float]:
        """The elements' options that are learned from data, from waves float32 [C, S] of any lengths; {}: none is."""
        return {}

    @abstractmethod
    def encode(self, waves: Tensor) -> Tensor:
        """Waves, S a multiple of `step`, -> values in raster order of grid(S // step): long [B, N] or [B, N, K], or
        float32 [B, N, D].

        Raises:
            ValueError: something is still to be fitted.
        """

    @abstractmethod
    def decoder(self) -> Decoder:
        """For the rows of one grid.

        Raises:
            ValueError: something is still to be fitted.
        """

    def decode(self, values: Tensor, grid: Grid) -> Tensor:
        """Values -> waves, float32 [B, C, steps * step].

        Raises:
            ValueError: an impossible grid, a code that does not exist, a value that is not finite.
        """
        self.steps(grid)
        decoder = self.decoder()
        return torch.cat([decoder.push(values), decoder.finish()], -1)


def check_codes(codes: Tensor, vocab_size: int) -> None:
    """Raises ValueError if a code is none of 0..vocab_size - 1."""
    wrong = (codes < 0) | (codes >= vocab_size)
    if wrong.any():
        raise ValueError(f"a code is {int(codes[wrong][0])}; it must be one of 0..{vocab_size - 1}")


def check_finite(values: Tensor) -> None:
    """Raises ValueError if a value is NaN or infinite."""
    if not values.isfinite().all():
        raise ValueError("values to decode hold NaN or infinity; waves need finite ones")
