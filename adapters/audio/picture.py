"""Log-mel spectrograms as pictures, with axes in seconds and Hz."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.functional import interpolate, pad

from ...schema import parse
from ..image.pictures import pillow
from .mels import MelElements, filled, mel_scale
from .spectrogram import slaney

if TYPE_CHECKING:
    from PIL import Image

WIDTH, HEIGHT = 640, 240  # of a plot in pixels
NARROW, LOW = 320, 160  # where there are several
LEFT, BOTTOM, TOP, RIGHT = 58, 34, 12, 14  # margins in pixels
RANGE = 80  # dB from the loudest mel down to black
QUIET = -100  # dB; what is quieter is as dark as silence
TEXT, BACKGROUND, FONT_SIZE = (40, 40, 40), (255, 255, 255), 12
FREQUENCIES = (100, 250, 500, 1000, 2000, 4000, 8000, 16000, 32000)
APART = 18  # pixels between two labels of the frequency axis, at least
# Dark violet over red and orange to pale yellow, by equal steps of brightness.
COLOURS = (
    np.array((0x000004, 0x1C1044, 0x4F127B, 0x812581, 0xB5367A, 0xE55064, 0xFB8761, 0xFEC287, 0xFCFDBF), np.uint32)[
        :, None
    ]
    >> np.array((16, 8, 0), np.uint32)
    & 0xFF
)  # [colours, RGB]


def picture(waves: Sequence[Tensor], sample_rate: int) -> Image.Image:
    """The spectrograms of waves [C, S], the mean over the channels, in a grid as square as possible; decibels from the
    loudest mel of all, so that a quiet clip is dark."""
    size = (WIDTH, HEIGHT) if len(waves) == 1 else (NARROW, LOW)
    levels = [_levels(wave, sample_rate) for wave in waves]
    loudest = max(QUIET, *(float(level.max()) for level in levels))
    plots = [_plot(level - loudest, size) for level in levels]
    tiles = [_tile(plot, wave.shape[1] / sample_rate, sample_rate) for plot, wave in zip(plots, waves, strict=True)]
    across = math.ceil(math.sqrt(len(tiles)))
    wide, high = tiles[0].size
    whole = pillow().Image.new("RGB", (across * wide, math.ceil(len(tiles) / across) * high), BACKGROUND)
    for place, tile in enumerate(tiles):
        whole.paste(tile, (place % across * wide, place // across * high))
    return whole


def _tile(plot: np.ndarray, seconds: float, sample_rate: int) -> Image.Image:
    """One plot with its axes."""
    from PIL import ImageDraw, ImageFont

    high, wide = plot.shape[:2]
    Image = pillow().Image
    tile = Image.new("RGB", (LEFT + wide + RIGHT, TOP + high + BOTTOM), BACKGROUND)
    tile.paste(Image.fromarray(plot), (LEFT, TOP))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT_SIZE)
    draw.rectangle((LEFT - 1, TOP - 1, LEFT + wide, TOP + high), outline=TEXT)
    last = TOP + high + APART
    for frequency in (0, *FREQUENCIES):
        y = TOP + high - round(high * slaney(frequency) / slaney(sample_rate / 2))
        if last - y < APART or y < TOP:
            continue
        last = y
        draw.line((LEFT - 5, y, LEFT - 1, y), fill=TEXT)
        label = f"{frequency:g} Hz" if frequency < 1000 else f"{frequency / 1000:g} kHz"
        draw.text((LEFT - 8, y), label, fill=TEXT, font=font, anchor="rm")
    step = _nice(seconds / (wide / 80))
    for tick in range(int(seconds / step + 1e-6) + 1):
        x = LEFT + round(wide * tick * step / seconds)
        draw.line((x, TOP + high, x, TOP + high + 4), fill=TEXT)
        anchor = "rt" if x > LEFT + wide - 12 else "mt"
        draw.text((x, TOP + high + 7), f"{tick * step:g} s", fill=TEXT, font=font, anchor=anchor)
    return tile


def _levels(wave: Tensor, sample_rate: int) -> Tensor:
    """[1, F, M] in dB."""
    elements: Any = filled(
        parse(MelElements, {"kind": "mel", "log": "decimal", "floor": 1e-10}, "picture"), sample_rate
    )
    mono = wave.mean(0, keepdim=True)
    mono = pad(mono, (0, -mono.shape[1] % elements.hop))
    return 20 * mel_scale(elements, sample_rate).log_mel(mono)


def _plot(level: Tensor, size: tuple[int, int]) -> np.ndarray:
    """[1, F, M] in dB, 0 the lightest -> uint8 [height, width, 3], low frequencies at the bottom."""
    wide, high = size
    light = (1 + level / RANGE).clamp(0, 1).transpose(1, 2)
    light = interpolate(light[None], (high, wide), mode="bilinear", antialias=True)[0, 0].flip(0)
    place = light.numpy() * (len(COLOURS) - 1)
    steps = np.arange(len(COLOURS))
    return np.stack([np.interp(place, steps, COLOURS[:, i]) for i in range(3)], -1).round().astype(np.uint8)


def _nice(least: float) -> float:
    """The smallest of 1, 2, 5, 10 ... (and parts of ten of them) that is not below `least`."""
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= least * (1 - 1e-9))
