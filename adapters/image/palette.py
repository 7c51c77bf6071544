"""A palette learned from pixels: k-means on the distinct colours, weighted by how often they occur.

Shapes: P pixels, D distinct colours, K colours of the palette, C channels (1 or 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

# Colours that k-means works on; of more, so many pixels are drawn at random.
MAX_COLOURS = 100_000
# Lloyd's iterations; on whole colours the error falls with each, so it ends, and the last ones change little.
MAX_ITERATIONS = 50
# Entries of a matrix of distances at a time: 4 MB of float32, which stay in the cache (twice as fast as 64 MB).
CHUNK = 2**20
# Pixels that are counted at a time.
COUNTED = 2**22


def nearest(points: Tensor, palette: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest colours of `palette` [K, C] to `points` [P, C], by squared Euclidean distance.

    Returns:
        place [P] long and squared distance [P] float32, both exact for values 0..255; memory does not grow with P * K.
    """
    colours = palette.float()
    squares = colours.square().sum(1)
    place, distance = [], []
    for part in points.split(max(CHUNK // len(palette), 1)):
        part = part.float()
        # Whole numbers below 2^24 all through: float32 holds them exactly.
        apart = torch.addmm(squares, part, colours.T, alpha=-2)
        least = apart.min(1)
        place.append(least.indices)
        distance.append(least.values + part.square().sum(1))
    return torch.cat(place), torch.cat(distance)


def fit_palette(pixels: Tensor, colours: int, seed: int = 0) -> Tensor:
    """The `colours` colours that fit `pixels` best by squared error: k-means++ (Arthur & Vassilvitskii 2007), then
    Lloyd's iterations. The centres are kept on whole values, where the rounded mean is the best one: the squared error
    falls with each iteration, and as many colours as there are distinct ones are found exactly.

    Args:
        pixels: uint8 [..., C]. Of more than MAX_COLOURS distinct colours, that many pixels are drawn at random.
        seed: for the draw and the start.

    Returns:
        uint8 [colours, C].

    Raises:
        ValueError: fewer distinct colours than asked for.
    """
    points, weights = _count(pixels)
    if len(points) < colours:
        raise ValueError(f"colours is {colours}; the pixels have {len(points)} distinct colours, and no more are legal")
    generator = torch.Generator().manual_seed(seed)
    if len(points) > MAX_COLOURS:
        drawn = torch.bincount(_draw(weights, MAX_COLOURS, generator), minlength=len(points))
        # Draws that nearly all fall on a few colours would leave too few of them.
        if drawn.count_nonzero() >= colours:
            points, weights = points[drawn > 0], drawn[drawn > 0].double()
    palette = _start(points, weights, colours, generator)
    for _ in range(MAX_ITERATIONS):
        moved = _lloyd(points, weights, palette)
        if torch.equal(moved, palette):
            break
        palette = moved
    return palette.byte()


def _count(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct colours [D, C] float32 and how often each occurs [D] float64."""
    channels = pixels.shape[-1]
    base = 256 ** torch.arange(channels)
    counts = torch.zeros(256**channels, dtype=torch.long)
    for part in pixels.reshape(-1, channels).cpu().split(COUNTED):
        counts += torch.bincount((part * base).sum(1), minlength=len(counts))
    found = counts.nonzero()[:, 0]
    return (found[:, None] // base % 256).float(), counts[found].double()


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """[count] places drawn with replacement, in proportion to the weights. (torch.multinomial ends at 2^24 places.)"""
    total = weights.cumsum(0)
    at = torch.rand(count, dtype=torch.float64, generator=generator) * total[-1]
    return torch.searchsorted(total, at, right=True).clamp(max=len(weights) - 1)


def _start(points: Tensor, weights: Tensor, colours: int, generator: torch.Generator) -> Tensor:
    """k-means++: each colour is drawn in proportion to its squared distance from those before."""
    chosen = [points[_draw(weights, 1, generator)]]
    apart = torch.full((len(points),), torch.inf)
    for _ in range(colours - 1):
        apart = torch.minimum(apart, (points - chosen[-1]).square().sum(1))
        # What is chosen has distance 0 and cannot come again; there are enough others.
        open_places = apart.nonzero()[:, 0]
        chosen.append(points[open_places[_draw((weights * apart)[open_places], 1, generator)]])
    return torch.cat(chosen)


def _lloyd(points: Tensor, weights: Tensor, palette: Tensor) -> Tensor:
    """Each colour moves to the mean of its pixels, rounded; one without pixels, or equal to another, to the pixels that
    are fitted worst."""
    place, distance = nearest(points, palette)
    total = torch.zeros(len(palette), dtype=torch.float64).index_add_(0, place, weights)
    sums = torch.zeros(palette.shape, dtype=torch.float64).index_add_(0, place, points.double() * weights[:, None])
    used = total > 0
    moved = torch.where(used[:, None], (sums / total.clamp(min=1)[:, None]).round().float(), palette)
    for empty in (~used).nonzero()[:, 0].tolist():
        worst = (weights * distance).argmax()
        moved[empty] = points[worst]
        distance[worst] = 0
    return moved
