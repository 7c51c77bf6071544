"""Does a frozen tokenizer suit these images? It has to be known before a model is trained on its codes."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import ImageTokenizer

BATCH = 16  # images at a time: activations of more may not fit


def reconstruction_psnr(tokenizer: ImageTokenizer, pixels: Tensor) -> float:
    """How well images survive the tokenizer: 10 log10(255^2 / mean squared error), the mean over all pixels of all
    images, after rounding to uint8. No model of its codes can draw better images.

    Args:
        pixels: uint8 [B, H, W, C].

    Returns:
        Decibels; infinity where every pixel comes back exactly.

    Raises:
        ValueError: no images, another dtype or shape, a size that is not legal for the tokenizer.
    """
    if pixels.dim() != 4 or pixels.dtype != torch.uint8 or pixels.numel() == 0:
        raise ValueError(f"pixels are {pixels.dtype} {list(pixels.shape)}; they must be uint8 [images >= 1, H, W, C]")
    squares = 0
    for part in pixels.split(BATCH):
        decoded = tokenizer.decode(tokenizer.encode(part.movedim(-1, 1) / 127.5 - 1))
        back = ((decoded.movedim(1, -1) + 1) * 127.5).round()
        squares += int((back.long() - part.long()).square().sum())
    return 10 * math.log10(255**2 * pixels.numel() / squares) if squares else math.inf
