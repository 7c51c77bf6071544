"""Masks of images: which pixels, and so which elements, are drawn anew."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...segment import Grid
from .pictures import open_picture, to_picture, to_pixels


def read_mask(mask: Any, given: Any, size: tuple[int, int]) -> Tensor:
    """[H, W] bool, True where pixels are drawn anew, in the size of the model's images.

    Args:
        mask: a bool array or tensor [H, W] (True: draw), or an image or its path (white: draw, black: keep, the
            convention of diffusers; without transparency); as large as `size`, or as what is given, with which it is
            then resized and cropped.
        given: what `ImageAdapter.pixels` takes.
        size: (H, W) of the model's images.

    Raises:
        ValueError: no such mask, or one that keeps every pixel.
    """
    if isinstance(mask, (np.ndarray, Tensor)):
        if str(mask.dtype).removeprefix("torch.") != "bool" or mask.ndim != 2:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; an array must be bool [H, W], True where pixels "
                "are drawn anew"
            )
        mask = torch.as_tensor(mask).to(torch.uint8) * 255
    name = f"mask {os.fspath(mask)}" if isinstance(mask, (str, os.PathLike)) else "mask"
    picture = open_picture(mask, name)
    shape = (picture.height, picture.width)
    if shape != size and any(other != shape for other in _sizes(given)):
        raise ValueError(
            f"{name} has {shape[0]} x {shape[1]} pixels (rows x columns); it must be as large as the given image, or "
            f"as this model's images, {size[0]} x {size[1]}"
        )
    colours = torch.from_numpy(to_pixels(picture, size, 3, name))  # which refuses an alpha channel that is used
    drawn = torch.from_numpy(np.array(to_picture(colours).convert("L"))) >= 128
    if not bool(drawn.any()):
        raise ValueError("mask keeps every pixel; some must be marked (True, white) to be drawn")
    return drawn


def drawn_elements(pixels: Tensor, grid: Grid) -> Tensor:
    """[1, N] bool: elements of which any pixel [H, W] is to be drawn."""
    _, rows, columns = grid
    height, width = pixels.shape
    tiles = pixels.view(rows, height // rows, columns, width // columns)
    return tiles.any(3).any(1).flatten()[None]


def _sizes(images: Any) -> list[tuple[int, int]]:
    """(H, W) of each of what `ImageAdapter.pixels` takes."""
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return [(images.shape[1], images.shape[2])]
    pictures = [open_picture(raw, "given") for raw in (images if isinstance(images, (list, tuple)) else [images])]
    return [(picture.height, picture.width) for picture in pictures]
