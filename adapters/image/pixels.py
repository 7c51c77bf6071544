"""Pixel codecs: pixels of a fixed size <-> the values of elements, and the options that choose among them.

Shapes: B images, H x W pixels, C channels (1 or 3), h x w elements, N = h * w, K codes and D values of an element.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ...schema import Strict
from ..tokenizers import ImageTokenizer
from .palette import nearest
from .pictures import nearest_sizes

# Images that a tokenizer is given at a time: its activations, unlike pixels and codes, do not fit for many.
TOKENIZED = 32

Byte = Annotated[int, Field(ge=0, le=255)]


class LevelElements(Strict):
    """A code for each channel of each pixel: its grey level.

    Args:
        levels: the number of levels; code = round(x / 255 * (levels - 1)), x in 0..255.
    """

    kind: Literal["levels"]
    levels: int = Field(256, ge=2, le=256)


class PaletteElements(Strict):
    """A code for each pixel: the nearest of some colours.

    Args:
        colours: how many.
        palette: [colours][channels] ints 0..255; None: to be learned by `ImageAdapter.fit`.
    """

    kind: Literal["palette"]
    colours: int = Field(256, ge=2)
    palette: list[list[Byte]] | None = None


class PatchElements(Strict):
    """A vector for each patch of pixels: its values x / 127.5 - 1, row by row, channels innermost.

    Args:
        patch: pixels along each side of a patch.
    """

    kind: Literal["patches"]
    patch: PositiveInt


class TokenizerElements(Strict):
    """The codes or latents of a frozen tokenizer, which is stored with the adapter.

    Args:
        path: what `load_tokenizer` takes: a folder, relative to that of the adapter or to the working directory, or an
            id on the Hub. None: the tokenizer is given to the adapter as an object.
        patch: latents along each side that become one vector; 1 for codes.
    """

    kind: Literal["tokenizer"]
    path: str | None = None
    patch: PositiveInt = 1


Elements = LevelElements | PaletteElements | PatchElements | TokenizerElements


class Codec(ABC):
    """Pixels <-> values, for one size and number of channels.

    Args:
        size: (H, W).
        channels: C.
        steps: what an element is across, by what the user calls it: {"patch": 4}; pixels along each side are the
            product.

    Raises:
        ValueError: a size that is no multiple of it; the nearest legal one is named.
    """

    element: dict[str, Any]  # the `element` of the model's configuration

    def __init__(self, size: tuple[int, int], channels: int, steps: Mapping[str, int]) -> None:
        self.step = 1
        for step in steps.values():
            self.step *= step
        if any(side % self.step for side in size):
            why = " and ".join(f"{name} {step}" for name, step in steps.items() if step > 1)
            raise ValueError(
                f"size is {list(size)}; with {why} both sides must be multiples of {self.step}, "
                f"and {nearest_sizes(size, self.step)}"
            )
        self.channels = channels
        self.grid = (1, size[0] // self.step, size[1] // self.step)

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> values, long [B, N] or [B, N, K], or float32 [B, N, D]."""

    @abstractmethod
    def decode(self, values: Tensor) -> Tensor:
        """The values -> uint8 [B, H, W, C]; rounds and clamps.

        Raises:
            ValueError: a code that does not exist, a value that is not finite.
        """


class CodeCodec(Codec):
    """Codes; `group` x `group` neighbouring places become one element.

    The K codes of an element are ordered row by row of its places, those of one place innermost.
    """

    def __init__(
        self, size: tuple[int, int], channels: int, group: int, vocab_size: int, codes: int = 1, factor: int = 1
    ) -> None:
        super().__init__(size, channels, {"the tokenizer's factor": factor, "group": group})
        self.group = group
        self.element = {"kind": "discrete", "vocab_size": vocab_size, "codes": group * group * codes}

    @abstractmethod
    def to_codes(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> long [B, places down, places across, codes]."""

    @abstractmethod
    def to_pixels(self, codes: Tensor) -> Tensor:
        """The inverse of `to_codes`."""

    def encode(self, pixels: Tensor) -> Tensor:
        values = _fold(self.to_codes(pixels), self.group)
        return values[..., 0] if self.element["codes"] == 1 else values

    def decode(self, values: Tensor) -> Tensor:
        size = self.element["vocab_size"]
        wrong = (values < 0) | (values >= size)
        if wrong.any():
            raise ValueError(f"a code is {int(values[wrong][0])}; it must be one of 0..{size - 1}")
        values = values[..., None] if self.element["codes"] == 1 else values
        return self.to_pixels(_unfold(values, self.grid, self.group))


class VectorCodec(Codec):
    """Vectors of `patch` x `patch` places with `depth` values each: row by row, the values of one place innermost."""

    def __init__(self, size: tuple[int, int], channels: int, patch: int, depth: int, factor: int = 1) -> None:
        super().__init__(size, channels, {"the tokenizer's factor": factor, "patch": patch})
        self.patch = patch
        self.element = {"kind": "continuous", "dim": patch * patch * depth}

    @abstractmethod
    def to_vectors(self, pixels: Tensor) -> Tensor:
        """uint8 [B, H, W, C] -> float32 [B, places down, places across, depth]."""

    @abstractmethod
    def to_pixels(self, vectors: Tensor) -> Tensor:
        """The inverse of `to_vectors`."""

    def encode(self, pixels: Tensor) -> Tensor:
        return _fold(self.to_vectors(pixels), self.patch)

    def decode(self, values: Tensor) -> Tensor:
        if not values.isfinite().all():
            raise ValueError("values to decode hold NaN or infinity; pixels need finite ones")
        return self.to_pixels(_unfold(values.float(), self.grid, self.patch))


class LevelCodec(CodeCodec):
    def __init__(self, size: tuple[int, int], channels: int, group: int, elements: LevelElements) -> None:
        super().__init__(size, channels, group, elements.levels, codes=channels)
        self.top = elements.levels - 1

    def to_codes(self, pixels: Tensor) -> Tensor:
        # In whole numbers, so that no rounding of floats decides between two levels.
        return (pixels.long() * (2 * self.top) + 255) // 510

    def to_pixels(self, codes: Tensor) -> Tensor:
        return ((codes * 510 + self.top) // (2 * self.top)).byte()


class PaletteCodec(CodeCodec):
    def __init__(self, size: tuple[int, int], channels: int, group: int, elements: PaletteElements) -> None:
        super().__init__(size, channels, group, elements.colours)
        self.palette = _palette(elements, channels)

    def to_codes(self, pixels: Tensor) -> Tensor:
        palette = self._fitted().to(pixels.device)
        return nearest(pixels.reshape(-1, self.channels), palette)[0].reshape(*pixels.shape[:3], 1)

    def to_pixels(self, codes: Tensor) -> Tensor:
        return self._fitted().to(codes.device)[codes[..., 0]]

    def _fitted(self) -> Tensor:
        if self.palette is None:
            raise ValueError("the adapter has no palette yet; call fit(pixels) first, or give elements.palette")
        return self.palette


class PatchCodec(VectorCodec):
    def __init__(self, size: tuple[int, int], channels: int, group: int, elements: PatchElements) -> None:
        no_group(group, "elements of kind 'patches'")
        super().__init__(size, channels, elements.patch, depth=channels)

    def to_vectors(self, pixels: Tensor) -> Tensor:
        return _normalise(pixels)

    def to_pixels(self, vectors: Tensor) -> Tensor:
        return _denormalise(vectors)


class TokenCodec(CodeCodec):
    """Codes of a tokenizer."""

    def __init__(self, size: tuple[int, int], channels: int, group: int, tokenizer: ImageTokenizer) -> None:
        super().__init__(size, channels, group, tokenizer.vocab_size, factor=tokenizer.factor)
        self.tokenizer = tokenizer

    def to_codes(self, pixels: Tensor) -> Tensor:
        return _tokenize(self.tokenizer, pixels)[..., None]

    def to_pixels(self, codes: Tensor) -> Tensor:
        return _detokenize(self.tokenizer, codes[..., 0])


class LatentCodec(VectorCodec):
    """Latents of a tokenizer."""

    def __init__(self, size: tuple[int, int], channels: int, patch: int, tokenizer: ImageTokenizer) -> None:
        super().__init__(size, channels, patch, depth=tokenizer.dim, factor=tokenizer.factor)
        self.tokenizer = tokenizer

    def to_vectors(self, pixels: Tensor) -> Tensor:
        return _tokenize(self.tokenizer, pixels).float()

    def to_pixels(self, vectors: Tensor) -> Tensor:
        return _detokenize(self.tokenizer, vectors)


def tokenizer_codec(
    size: tuple[int, int], channels: int, group: int, elements: TokenizerElements, tokenizer: ImageTokenizer
) -> Codec:
    """The codec around a tokenizer.

    Raises:
        ValueError: another number of channels than the tokenizer's, `group` for latents, `patch` for codes.
    """
    if tokenizer.channels != channels:
        raise ValueError(f"channels is {channels}; the tokenizer's images have {tokenizer.channels}")
    if not tokenizer.discrete:
        no_group(group, "a tokenizer of latents")
        return LatentCodec(size, channels, elements.patch, tokenizer)
    if elements.patch != 1:
        raise ValueError(f"elements.patch is {elements.patch} with a tokenizer of codes; only group joins codes")
    return TokenCodec(size, channels, group, tokenizer)


# Kind of elements -> codec of (size, channels, group, options), for kinds that need nothing else.
PIXEL_CODECS: dict[str, Callable[[tuple[int, int], int, int, Any], Codec]] = {
    "levels": LevelCodec,
    "palette": PaletteCodec,
    "patches": PatchCodec,
}


def no_group(group: int, what: str) -> None:
    """Raises ValueError unless `group` is 1: `what` has no codes."""
    if group != 1:
        raise ValueError(f"group is {group} with {what}; only codes are grouped, vectors by elements.patch")


def _palette(elements: PaletteElements, channels: int) -> Tensor | None:
    if elements.palette is None:
        return None
    found = (len(elements.palette), *sorted({len(colour) for colour in elements.palette}))
    if found != (elements.colours, channels):
        raise ValueError(
            f"elements.palette has {found[0]} colours of {' or '.join(map(str, found[1:]))} channels; "
            f"it must have {elements.colours} colours of {channels}"
        )
    return torch.tensor(elements.palette, dtype=torch.uint8)


def _fold(places: Tensor, side: int) -> Tensor:
    """[B, h * side, w * side, c] -> [B, N, side * side * c]."""
    cells = places.unflatten(1, (-1, side)).unflatten(3, (-1, side))  # [B, h, side, w, side, c]
    return cells.transpose(2, 3).flatten(3).flatten(1, 2)


def _unfold(values: Tensor, grid: tuple[int, int, int], side: int) -> Tensor:
    """The inverse of `_fold`."""
    cells = values.unflatten(1, grid[1:]).unflatten(3, (side, side, -1))  # [B, h, w, side, side, c]
    return cells.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _normalise(pixels: Tensor) -> Tensor:
    """0..255 -> -1..1."""
    return pixels.float() / 127.5 - 1


def _denormalise(x: Tensor) -> Tensor:
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).byte()


def _tokenize(tokenizer: ImageTokenizer, pixels: Tensor) -> Tensor:
    return torch.cat([tokenizer.encode(_normalise(part).permute(0, 3, 1, 2)) for part in pixels.split(TOKENIZED)])


def _detokenize(tokenizer: ImageTokenizer, values: Tensor) -> Tensor:
    return torch.cat([_denormalise(tokenizer.decode(part)).permute(0, 2, 3, 1) for part in values.split(TOKENIZED)])
