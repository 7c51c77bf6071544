"""Frames of clips <-> the values of elements, and the options that choose among the ways.

Shapes: B clips, T frames of H x W pixels and C channels; t frames of an element, T / t steps, h x w elements of a step.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ...schema import Strict
from ...segment import Grid, Segment
from ..base import check_element
from ..image.pixels import (
    PIXEL_CODECS,
    Codec,
    CodeCodec,
    LevelElements,
    PatchElements,
    TokenizerElements,
    VectorCodec,
    no_group,
    tokenizer_codec,
)
from ..tokenizers import ImageTokenizer, Timing, VideoTokenizer


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
        joins_frames: whether the values of a step tell, or depend on, frames of other steps: they are then decoded
            together only.
        timing: which numbers of frames are whole steps.
        element: the `element` of the model's configuration.
    """

    joins_frames: ClassVar[bool] = False

    def __init__(self, codec: Codec, time: int = 1) -> None:
        assert time == 1 or "dim" in codec.element
        self.codec, self.timing = codec, Timing(time)
        self.element = dict(codec.element)
        if time > 1:
            self.element["dim"] *= time

    @property
    def time(self) -> int:
        """t."""
        return self.timing.time

    @property
    def step(self) -> int:
        """Pixels along each side of an element."""
        return self.codec.step

    def grid(self, frames: int) -> Grid:
        """(steps, h, w).

        Raises:
            ValueError: a number of frames that are not whole steps; the nearest legal ones are named.
        """
        self.timing.check(frames)
        return (self.timing.steps(frames), *self.codec.grid[1:])

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
        self.timing.check(self.timing.frames(segment.grid[0]), f"the number of frames of {segment.grid[0]} steps")


class JoinedCodec(VideoCodec):
    """Clips <-> the codes or latents of a tokenizer that joins frames.

    Raises:
        ValueError: another number of channels than the tokenizer's, a size that its factor does not divide, `group`
            for latents.
    """

    joins_frames = True

    def __init__(self, size: tuple[int, int], channels: int, group: int, patch: int, tokenizer: VideoTokenizer) -> None:
        if tokenizer.channels != channels:
            raise ValueError(f"channels is {channels}; the tokenizer's clips have {tokenizer.channels}")
        if tokenizer.discrete:
            super().__init__(_CodePlaces(size, group, tokenizer))
        else:
            no_group(group, "a tokenizer of latents")
            super().__init__(_LatentPlaces(size, patch, tokenizer))
        self.tokenizer, self.timing = tokenizer, tokenizer.timing

    def encode(self, frames: Tensor) -> Tensor:
        clips = [self.tokenizer.encode((clip.float() / 127.5 - 1).movedim(-1, 1)) for clip in frames.split(1)]
        places = torch.cat(clips)  # [B, steps, down, across(, D)]
        return self.codec.encode(places.flatten(0, 1)).unflatten(0, (len(frames), -1)).flatten(1, 2)

    def decode(self, values: Tensor, steps: int) -> Tensor:
        places = self.codec.decode(values.unflatten(1, (steps, -1)).flatten(0, 1)).unflatten(0, (-1, steps))
        clips = [self.tokenizer.decode(one).movedim(1, -1) for one in places.split(1)]
        return torch.cat([((clip + 1) * 127.5).round().byte() for clip in clips])


class _LatentPlaces(VectorCodec):
    """Latents of a step [B, down, across, D] <-> vectors of `patch` x `patch` of them."""

    def __init__(self, size: tuple[int, int], patch: int, tokenizer: VideoTokenizer) -> None:
        super().__init__(size, tokenizer.channels, patch, tokenizer.dim, tokenizer.factor)

    def to_vectors(self, pixels: Tensor) -> Tensor:
        return pixels

    def to_pixels(self, vectors: Tensor) -> Tensor:
        return vectors


class _CodePlaces(CodeCodec):
    """Codes of a step [B, down, across] <-> elements of `group` x `group` of them."""

    def __init__(self, size: tuple[int, int], group: int, tokenizer: VideoTokenizer) -> None:
        super().__init__(size, tokenizer.channels, group, tokenizer.vocab_size, factor=tokenizer.factor)

    def to_codes(self, pixels: Tensor) -> Tensor:
        return pixels[..., None]

    def to_pixels(self, codes: Tensor) -> Tensor:
        return codes[..., 0]


def make_codec(
    elements: Elements,
    size: tuple[int, int],
    channels: int,
    group: int,
    tokenizer: ImageTokenizer | VideoTokenizer | None,
) -> VideoCodec:
    """Raises ValueError where the elements do not fit to the size, the channels, the group or the tokenizer."""
    if isinstance(elements, TokenizerElements):
        assert tokenizer is not None
        if isinstance(tokenizer, ImageTokenizer):
            return VideoCodec(tokenizer_codec(size, channels, group, elements, tokenizer))
        if tokenizer.discrete and elements.patch != 1:
            raise ValueError(f"elements.patch is {elements.patch} with a tokenizer of codes; only group joins codes")
        return JoinedCodec(size, channels, group, elements.patch, tokenizer)
    if isinstance(elements, LevelElements):
        return VideoCodec(PIXEL_CODECS["levels"](size, channels, group, elements))
    time, high, wide = elements.patch
    if high != wide:
        raise ValueError(f"elements.patch is {list(elements.patch)}; it must be [t, p, p], its last two numbers equal")
    return VideoCodec(PIXEL_CODECS["patches"](size, channels, group, PatchElements(kind="patches", patch=high)), time)
