"""Frames of clips <-> the values of elements, and the options that choose among the ways.

Shapes: B clips, T frames of H x W pixels and C channels; t frames of an element, T / t steps, h x w elements of a step.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import PositiveInt
from torch import Tensor

from ...schema import Strict
from ...segment import Grid, Segment
from ..base import check_element
from ..image.pixels import (
    PIXEL_CODECS,
    Codec,
    LevelElements,
    PatchElements,
    TokenizerElements,
    tokenizer_codec,
)
from ..tokenizers import ImageTokenizer


class TubeletElements(Strict):
    """A vector for each tubelet, a patch of pixels over some frames (ViViT, Arnab et al. 2021): the values
    x / 127.5 - 1, frame by frame, row by row, channels innermost.

    Args:
        patch: [t, p, p]: frames, and pixels along each side.
    """

    kind: Literal["patches"]
    patch: tuple[PositiveInt, PositiveInt, PositiveInt]


Elements = LevelElements | TubeletElements | TokenizerElements


class VideoCodec:
    """Frames <-> values: each frame by an image's codec, and `time` frames side by side are one vector.

    Attributes:
        time: t.
        element: the `element` of the model's configuration.
    """

    def __init__(self, codec: Codec, time: int = 1) -> None:
        assert time == 1 or "dim" in codec.element
        self.codec, self.time = codec, time
        self.element = dict(codec.element)
        if time > 1:
            self.element["dim"] *= time

    @property
    def step(self) -> int:
        """Pixels along each side of an element."""
        return self.codec.step

    def grid(self, frames: int) -> Grid:
        """(T / t, h, w).

        Raises:
            ValueError: a number of frames that is no multiple of t; the nearest legal ones are named.
        """
        if frames < 1 or frames % self.time:
            lower = frames // self.time * self.time
            nearest = " or ".join(str(legal) for legal in (lower, lower + self.time) if legal > 0)
            raise ValueError(f"frames is {frames}; with elements of {self.time} frames it must be {nearest}")
        return (frames // self.time, *self.codec.grid[1:])

    def encode(self, frames: Tensor) -> Tensor:
        """uint8 [B, T, H, W, C] -> long [B, N] or [B, N, K], or float32 [B, N, D]."""
        values = self.codec.encode(frames.flatten(0, 1)).unflatten(0, frames.shape[:2])  # [B, T, h * w, ...]
        if self.time == 1:
            return values.flatten(1, 2)
        values = values.unflatten(1, (-1, self.time)).transpose(2, 3)  # [B, T / t, h * w, t, D]
        return values.flatten(3).flatten(1, 2)

    def decode(self, values: Tensor, steps: int) -> Tensor:
        """The inverse of `encode`: uint8 [B, T, H, W, C].

        Raises:
            ValueError: a code that does not exist, a value that is not finite.
        """
        values = values.unflatten(1, (steps, -1))
        if self.time > 1:
            values = values.unflatten(3, (self.time, -1)).transpose(2, 3).flatten(1, 2)
        return self.codec.decode(values.flatten(0, 1)).unflatten(0, (len(values), -1))

    def check(self, segment: Segment) -> None:
        """Raises ValueError where a segment is not of these elements."""
        height, width = self.codec.grid[1:]
        if segment.grid[1:] != (height, width):
            raise ValueError(f"segment has the grid {segment.grid}; this adapter's are (steps, {height}, {width})")
        check_element(segment, self.element)

    def steps(self, seconds: float, fps: float) -> int:
        """Steps of so long a clip, rounded up, but for a rounding error."""
        return max(1, math.ceil(seconds * fps / self.time - 1e-6))


def make_codec(
    elements: Elements, size: tuple[int, int], channels: int, tokenizer: ImageTokenizer | None
) -> VideoCodec:
    """Raises ValueError where the elements do not fit to the size, the channels or the tokenizer."""
    if isinstance(elements, TokenizerElements):
        assert tokenizer is not None
        if tokenizer.discrete and elements.patch != 1:
            raise ValueError(f"elements.patch is {elements.patch} with a tokenizer of codes; it must be 1")
        return VideoCodec(tokenizer_codec(size, channels, 1, elements, tokenizer))
    if isinstance(elements, LevelElements):
        return VideoCodec(PIXEL_CODECS["levels"](size, channels, 1, elements))
    time, high, wide = elements.patch
    if high != wide:
        raise ValueError(f"elements.patch is {list(elements.patch)}; it must be [t, p, p], its last two numbers equal")
    return VideoCodec(PIXEL_CODECS["patches"](size, channels, 1, PatchElements(kind="patches", patch=high)), time)
