"""Single pictures: opening them, bringing them to a size and a number of channels, writing them as PNG."""

from __future__ import annotations

import io
import math
import os
import struct
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.functional import pad

from ..files import check_path, whole_file

if TYPE_CHECKING:
    from PIL import Image

# Modes of 8 bits or less, all of which become grey or RGB without loss.
MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA")
# What Pillow's decoders raise on files that are broken in one way or another.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, struct.error, zlib.error)
# Smallest width or height, in pixels, that an image has in a grid of several.
VISIBLE = 64
SEPARATOR, SEPARATOR_VALUE = 2, 128


def pillow() -> Any:
    """The package PIL with Image and ImageOps.

    Raises:
        ImportError: Pillow is missing.
    """
    try:
        import PIL.Image
        import PIL.ImageOps
    except ImportError:
        raise ImportError("reading and writing images needs Pillow: pip install unimodal-ar[image]") from None
    return PIL


def open_picture(raw: Any, name: str) -> Image.Image:
    """One picture, loaded and turned upright by its EXIF orientation, in its own mode; `filename` is set to `name`.

    Args:
        raw: a path, a file's bytes, {"bytes": ..., "path": ...} as in Hugging Face data sets, a uint8 array or tensor
            [H, W] or [H, W, C], or a PIL image.
        name: how messages call it.

    Raises:
        ValueError: it is not there, empty, truncated, not an image, larger than Pillow's limit against decompression
            bombs, of more than 8 bits a channel, or of several frames.
    """
    Image = pillow().Image
    if isinstance(raw, Mapping):
        raw = raw["path"] if raw.get("bytes") is None else raw["bytes"]
    if isinstance(raw, (str, os.PathLike)):
        raw = _read(Path(raw), name)
    if isinstance(raw, (np.ndarray, Tensor)):
        picture = Image.fromarray(_picture_array(raw, name))
    elif isinstance(raw, (bytes, Image.Image)):
        picture = _decode(raw, name)
    else:
        raise ValueError(f"{name} is a {type(raw).__name__}; an image is a path, a PIL image or a uint8 array")
    picture.filename = name
    return picture


def to_pixels(picture: Image.Image, size: tuple[int, int], channels: int, name: str) -> np.ndarray:
    """uint8 [H, W, channels]. A picture of another size is resized (bicubic, antialiased) so that it just covers
    `size`, and what is over is cut off equally on both sides; one of that size stays as it is, bit for bit.

    Raises:
        ValueError: the picture's mode or channels cannot become `channels` without loss.
    """
    PIL = pillow()
    picture = _to_channels(picture, channels, name)
    height, width = size
    if picture.size != (width, height):
        picture = PIL.ImageOps.fit(picture, (width, height), method=PIL.Image.Resampling.BICUBIC)
    return np.array(picture).reshape(height, width, channels)


def to_picture(pixels: Tensor) -> Image.Image:
    """uint8 [H, W, C] -> a PIL image of mode L (1 channel) or RGB."""
    array = pixels.cpu().numpy()
    return pillow().Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)


def nearest_sizes(size: Sequence[int], step: int) -> str:
    """What a message says of a size whose sides must be multiples of `step`: the nearest legal one, each side for
    itself; two where a side lies in the middle."""
    lower = [max((2 * side + step - 1) // (2 * step), 1) * step for side in size]
    upper = [max((2 * side + step) // (2 * step), 1) * step for side in size]
    return f"the nearest legal size is {lower}" + ("" if lower == upper else f" or {upper}")


def montage(pixels: Tensor) -> Tensor:
    """uint8 [B, H, W, C] -> one picture [height, width, C]: B images row by row in a grid as square as possible, with
    grey lines between them, each enlarged by a whole factor if it is smaller than VISIBLE pixels. One image alone is
    left as it is."""
    if len(pixels) == 1:
        return pixels[0]
    factor = math.ceil(VISIBLE / max(pixels.shape[1:3]))
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    across = math.ceil(math.sqrt(len(pixels)))
    down = math.ceil(len(pixels) / across)
    cells = pad(pixels, (0, 0, 0, SEPARATOR, 0, SEPARATOR), value=SEPARATOR_VALUE)
    cells = pad(cells, (0, 0) * 3 + (0, down * across - len(cells)), value=SEPARATOR_VALUE)
    whole = cells.unflatten(0, (down, across)).transpose(1, 2).flatten(2, 3).flatten(0, 1)
    return whole[:-SEPARATOR, :-SEPARATOR]


def write_png(picture: Image.Image, path: str | os.PathLike[str]) -> None:
    """Writes whole or not at all.

    Raises:
        ValueError: the name does not end in .png, its folder is missing.
    """
    with whole_file(check_path(path, "a PNG file", (".png",))) as temporary:
        picture.save(temporary, format="PNG")


def check_array(array: np.ndarray | Tensor, name: str, *shapes: str) -> np.ndarray:
    """A uint8 array on the host.

    Args:
        shapes: the legal ones, such as "[H, W, C]"; C is the number of channels.

    Raises:
        ValueError: another dtype or shape, or nothing in it.
    """
    if str(array.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"{name} has dtype {array.dtype}; pixels must be uint8, 0..255")
    found = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    fits = (
        found.ndim == len(shape.split(",")) and (shape[-2] != "C" or found.shape[-1] in (1, 3, 4)) for shape in shapes
    )
    if found.size == 0 or not any(fits):
        legal = " or ".join(shapes)
        raise ValueError(
            f"{name} has shape {tuple(found.shape)}; it must be {legal} with C = 1, 3 or 4 (channels last)"
        )
    return found


def _picture_array(raw: np.ndarray | Tensor, name: str) -> np.ndarray:
    array = check_array(raw, name, "[H, W]", "[H, W, C]")
    return array[..., 0] if array.ndim == 3 and array.shape[-1] == 1 else array


def _read(path: Path, name: str) -> bytes:
    if path.is_dir():
        raise ValueError(f"{name} is a folder; read_images reads the images of a folder")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{name} is not there") from None
    except OSError as error:
        raise ValueError(f"{name} cannot be read: {error.strerror}") from None


def _decode(raw: Any, name: str) -> Image.Image:
    """A file's bytes, or a PIL image that may not be loaded yet."""
    PIL = pillow()
    Image = PIL.Image
    if raw == b"":
        raise ValueError(f"{name} is empty (0 bytes); it must hold an image")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            picture = Image.open(io.BytesIO(raw)) if isinstance(raw, bytes) else raw
            _check_kind(picture, name)
            picture.load()
            return PIL.ImageOps.exif_transpose(picture)
    except PIL.UnidentifiedImageError:
        raise ValueError(f"{name} is not an image of a format that Pillow reads") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        limit = Image.MAX_IMAGE_PIXELS
        raise ValueError(
            f"{name} has more than {limit} pixels, Pillow's limit against decompression bombs; raise "
            "PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        ) from None
    except _LossyError as error:
        raise ValueError(str(error)) from None
    except BROKEN as error:
        raise ValueError(f"{name} is broken or truncated: {error}") from None


class _LossyError(ValueError):
    """A picture that Pillow reads, but not without loss."""


def _check_kind(picture: Image.Image, name: str) -> None:
    frames = getattr(picture, "n_frames", 1)
    # The further frames of MPO, a camera's JPEG, are previews and depth maps.
    if frames > 1 and picture.format != "MPO":
        raise _LossyError(f"{name} has {frames} frames; an image has one")
    # Pillow would cut 16-bit colours to 8 in silence; only how the file is packed tells.
    if any(";16" in str(tile[3]) for tile in getattr(picture, "tile", ())):
        raise _LossyError(f"{name} has 16 bits per channel; an image must have 8")


def _to_channels(picture: Image.Image, channels: int, name: str) -> Image.Image:
    mode = picture.mode
    if mode not in MODES:
        raise ValueError(f"{name} has mode {mode}; it must be an 8-bit grey or RGB image")
    is_grey = mode in ("1", "L", "LA")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")  # what is grey stays grey, and becomes L again without loss
        least = int(np.array(picture.getchannel("A")).min())
        if least < 255:
            raise ValueError(f"{name} has an alpha channel that is used (down to {least}); paint it on a background")
    if channels == 1 and not is_grey:
        raise ValueError(f"{name} has 3 channels ({mode}); this adapter's channels is 1")
    return picture.convert("L" if channels == 1 else "RGB")
