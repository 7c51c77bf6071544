"""Images as elements: codes of pixels, patches of pixels, or the codes and latents of a frozen tokenizer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ...schema import parse
from ...segment import Segment
from ..base import Adapter, AdapterOptions, check_element, register_adapter
from ..pretrained import find_tokenizer
from ..tokenizers import ImageTokenizer, load_tokenizer
from .masks import drawn_elements, read_mask
from .palette import fit_palette
from .pictures import check_array, montage, open_picture, to_picture, to_pixels, write_png
from .pixels import PIXEL_CODECS, Codec, Elements, PaletteElements, TokenizerElements, tokenizer_codec

if TYPE_CHECKING:
    from PIL import Image

# What stands where an element of a segment is not observed.
UNKNOWN = 128


@register_adapter("image")
class ImageAdapter(Adapter):
    """Images of one size <-> elements on the grid (1, h, w).

    `elements` says what an element is; `kind` is one of

    - "levels": a code for each channel of each pixel, round(x / 255 * (levels - 1)). Values [B, N] with 1 channel,
      [B, N, 3] with 3. Exact with 256 levels, else to half a level.
    - "palette": a code for each pixel, the nearest of `colours` colours, which are given as `palette` or learned by
      `fit`. Values [B, N].
    - "patches": the vector x / 127.5 - 1 of `patch` x `patch` pixels, channels innermost. Values [B, N, D], exact.
    - "tokenizer": the codes or latents that the frozen tokenizer `path` (see `load_tokenizer`) has for each cell of
      pixels; `patch` x `patch` latents are one vector. It is saved in a folder of its own beside the adapter.

    Args:
        size: pixels of a side, or [H, W]; a multiple of what an element is across.
        channels: 1 (grey) or 3 (RGB).
        elements: as above; 256 levels if not given, the tokenizer's if that is given.
        group: group x group neighbouring codes are one element of group * group (* channels) codes, row by row.
        modality: name under which the model's configuration knows the images.
        tokenizer: the tokenizer itself, instead of `elements.path`: an ImageTokenizer, or a module that
            `load_tokenizer` takes.
        folder: where a relative `elements.path` is looked for first.

    Raises:
        ValueError: an illegal argument, or arguments that do not fit together.
        ImportError: a tokenizer's package is missing.
    """

    class Options(AdapterOptions):
        size: PositiveInt | tuple[PositiveInt, PositiveInt]
        channels: Literal[1, 3] = 3
        elements: Elements = Field(discriminator="kind")
        group: PositiveInt = 1
        modality: str = Field("image", min_length=1)

    options: Options
    suffixes: ClassVar[tuple[str, ...]] = (".png",)

    def __init__(
        self,
        size: int | tuple[int, int] | list[int],
        channels: int = 3,
        elements: Mapping[str, Any] | None = None,
        group: int = 1,
        modality: str = "image",
        *,
        tokenizer: ImageTokenizer | nn.Module | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if elements is None:
            elements = {"kind": "levels"} if tokenizer is None else {"kind": "tokenizer"}
        given = {"size": size, "channels": channels, "elements": elements, "group": group, "modality": modality}
        self.options = parse(self.Options, given, type(self).__name__)
        load = partial(load_tokenizer, folder=folder)
        self.tokenizer = find_tokenizer(self.options.elements, "tokenizer", tokenizer, ImageTokenizer, load)
        self._codec = self._make_codec()

    @classmethod
    def from_options(cls, options: Any, folder: Path | None) -> ImageAdapter:
        return cls(**options.model_dump(), folder=folder)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        size = self.options.size
        return (size, size) if isinstance(size, int) else size

    @property
    def channels(self) -> int:
        return self.options.channels

    @property
    def grid(self) -> tuple[int, int, int]:
        """(1, h, w): the elements of an image."""
        return self._codec.grid

    @property
    def element(self) -> dict[str, Any]:
        return dict(self._codec.element)

    @property
    def dimensions(self) -> int:
        """H * W * C: what bits per dimension are counted by."""
        return self.size[0] * self.size[1] * self.channels

    @property
    def needs_fit(self) -> bool:
        """Whether a palette is still to be learned."""
        elements = self.options.elements
        return isinstance(elements, PaletteElements) and elements.palette is None

    def fit(self, pixels: Tensor, seed: int = 0) -> None:
        """Learns the palette from uint8 [B, H, W, C] by k-means (`fit_palette`); one that is there is replaced.

        Raises:
            ValueError: the elements have no palette, wrong pixels, or fewer distinct colours than asked for.
        """
        elements = self.options.elements
        if not isinstance(elements, PaletteElements):
            raise ValueError(f"elements.kind is {elements.kind!r}; only a 'palette' is fitted")
        palette = fit_palette(self._checked(pixels), elements.colours, seed).tolist()
        elements = elements.model_copy(update={"palette": palette})
        self.options = self.options.model_copy(update={"elements": elements})
        self._codec = self._make_codec()

    def pixels(self, images: Any) -> Tensor:
        """Images -> uint8 [B, H, W, C].

        A picture of another size than `size` is resized (bicubic, antialiased) until it just covers it, and what is
        over is cut off equally on both sides; one of that size is passed on bit for bit. EXIF orientation is applied.
        Grey and indexed colours become RGB, an alpha channel that is opaque everywhere is dropped; whatever would lose
        something is an error.

        Args:
            images: a PIL image, a path, a uint8 array or tensor [H, W], [H, W, C] or [B, H, W, C], or a list of images.

        Raises:
            ValueError: an image that cannot be read or does not fit; the message names the file, or its place.
        """
        if isinstance(images, (np.ndarray, Tensor)):
            array = check_array(images, "the array", "[H, W]", "[H, W, C]", "[B, H, W, C]")
            if array.shape[1:] == (*self.size, self.channels):
                return torch.from_numpy(array.copy())
            images = list(array) if array.ndim == 4 else [array]
        if not isinstance(images, (list, tuple)):
            images = [images]
        if not images:
            raise ValueError("the list of images is empty; it must hold at least one")
        return torch.from_numpy(np.stack([self._picture(raw, place) for place, raw in enumerate(images)]))

    def encode(self, images: Any) -> Segment:
        """`encode_pixels(pixels(images))`."""
        return self.encode_pixels(self.pixels(images))

    def encode_pixels(self, pixels: Tensor) -> Segment:
        """uint8 [B, H, W, C] -> values long [B, N] or [B, N, K], or float32 [B, N, D]; N = h * w.

        Raises:
            ValueError: another dtype or shape, or a palette that is still to be fitted.
        """
        return Segment(self.modality, self._codec.encode(self._checked(pixels)), grid=self.grid)

    def decode_pixels(self, segment: Segment) -> Tensor:
        """The inverse of `encode_pixels`: uint8 [B, H, W, C], rounded and clamped. Elements that are not observed, as
        in the steps of `stream`, are mid-grey.

        Raises:
            ValueError: a segment of another grid or element, a code that does not exist, a value that is not finite.
        """
        self._check_segment(segment)
        values = segment.values
        if segment.observed is None:
            return self._codec.decode(values)
        known = segment.whole_observed
        values = values.masked_fill(~(known if values.dim() == 2 else known[..., None]), 0)
        step = self._codec.step
        mask = known.unflatten(1, self.grid[1:]).repeat_interleave(step, 1).repeat_interleave(step, 2)
        return self._codec.decode(values).masked_fill(~mask[..., None], UNKNOWN)

    def decode(self, segment: Segment) -> list[Image.Image]:
        """A segment -> one PIL image (mode L or RGB) for each example of the batch."""
        return [to_picture(pixels) for pixels in self.decode_pixels(segment)]

    def complete(self, given: Any, mask: Any = None, seconds: float | None = None) -> Segment:
        """Images to be completed (inpainting, outpainting).

        They are encoded with mid-grey where `mask` draws anew, so nothing that is kept depends on what was there; but
        codes or latents of a tokenizer, which sees around each, depend on the grey near the mask's edge.

        Args:
            given: images as `pixels` takes them.
            mask: as `masks.read_mask` takes it. An element is drawn whole where any of its pixels is to be drawn.
            seconds: None; images have no length.

        Raises:
            ValueError: one of `given` and `mask` is missing, a mask that fits neither size or keeps every pixel.
        """
        self.grid_for(seconds)  # which refuses seconds
        if given is None or mask is None:
            one, other = ("given", "mask") if mask is None else ("mask", "given")
            raise ValueError(f"{one} comes without {other}; completing takes both, an image and what to draw of it")
        drawn = read_mask(mask, given, self.size)
        # A tokenizer's codes tell of pixels around their cell, of which those that are drawn anew must not be told.
        segment = self.encode_pixels(self.pixels(given).masked_fill(drawn[..., None], UNKNOWN))
        keep = ~drawn_elements(drawn, segment.grid)
        return segment.replace(observed=keep.expand(segment.batch_size, -1))

    def save(self, raw: Any, path: str | os.PathLike[str]) -> None:
        """Writes one PNG, whole or not at all: a single image as it is; several in a grid as square as possible, row by
        row, with thin grey lines between them, small ones enlarged by a whole factor (nearest neighbour) to be seen.

        Args:
            raw: images as `pixels` takes them.

        Raises:
            ValueError: wrong images, a name that does not end in .png, a folder that is missing.
        """
        write_png(to_picture(montage(self.pixels(raw))), path)

    def _make_codec(self) -> Codec:
        elements = self.options.elements
        if isinstance(elements, TokenizerElements):
            assert self.tokenizer is not None
            return tokenizer_codec(self.size, self.channels, self.options.group, elements, self.tokenizer)
        return PIXEL_CODECS[elements.kind](self.size, self.channels, self.options.group, elements)

    def _picture(self, raw: Any, place: int) -> np.ndarray:
        if isinstance(raw, (str, os.PathLike)):
            name = os.fspath(raw)
        else:
            name = getattr(raw, "filename", "") or f"image {place}"
        return to_pixels(open_picture(raw, name), self.size, self.channels, name)

    def _checked(self, pixels: Tensor) -> Tensor:
        legal = (*self.size, self.channels)
        if pixels.dtype != torch.uint8 or pixels.dim() != 4 or tuple(pixels.shape[1:]) != legal or len(pixels) == 0:
            raise ValueError(
                f"pixels has dtype {pixels.dtype} and shape {tuple(pixels.shape)}; it must be torch.uint8 "
                f"[B, {', '.join(map(str, legal))}] with B >= 1"
            )
        return pixels

    def _check_segment(self, segment: Segment) -> None:
        if segment.grid != self.grid:
            raise ValueError(f"segment has the grid {segment.grid}; this adapter's is {self.grid}")
        check_element(segment, self.element)
