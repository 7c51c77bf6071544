"""Clips of which only a part is known: those to be completed, and those that are being drawn.

Shapes: B clips, C channels, S samples, N elements.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from ...segment import Grid, Segment
from ..base import check_element
from .wave_codec import WaveCodec


def continued(codec: WaveCodec, prompts: Sequence[Tensor], grid: Grid, reach: int = 0) -> tuple[Tensor, Tensor]:
    """Clips that begin with prompts [C, S]: every leading step that tells of nothing behind its prompt's end is kept.

    Args:
        reach: how many samples at a prompt's end tell of what is behind it, though it is not known.

    Returns:
        values as of `codec.encode`, 0 where nothing is kept; bool [B, N], True where it is.

    Raises:
        ValueError: no step to keep or none to draw, or not the same number for all.
    """
    step, rate = codec.step, codec.sample_rate
    length, behind = codec.steps(grid) * step, codec.after + reach
    found = sorted({max(prompt.shape[1] - behind, 0) // step for prompt in prompts})
    if len(found) > 1:
        raise ValueError(f"given has clips of {found} steps of {step / rate:g} s; all must have the same number")
    steps = found[0]
    if not 0 < steps * step < length:
        raise ValueError(
            f"given has {prompts[0].shape[1] / rate:g} s; it must have at least {(step + behind) / rate:g} s and "
            f"less than the whole, {length / rate:g} s, which seconds can make longer"
        )
    told = -(-(steps * step + codec.after) // step) * step  # samples of which the kept steps tell, in whole steps
    waves = torch.stack([pad(prompt[:, :told], (0, told - min(prompt.shape[1], told))) for prompt in prompts])
    # In every pattern of codes the first rows are complete when the first steps are.
    kept = steps * codec.width
    start = codec.encode(waves)[:, :kept]
    values = start.new_zeros(len(start), math.prod(grid), *start.shape[2:])
    values[:, :kept] = start
    return values, (torch.arange(values.shape[1]) < kept).expand(len(values), -1)


def kept_samples(mask: Iterable[tuple[float, float]], samples: int, rate: int, reach: int) -> Tensor:
    """bool [samples], False between (start, end) in seconds, and for `reach` samples around.

    Raises:
        ValueError: a mask that is no list of such pairs.
    """
    kept = torch.ones(samples, dtype=torch.bool)
    for start, end in _checked(mask, samples / rate):
        # Less a rounding error: 4.64 s of 24000 Hz are 111360 samples.
        first, last = math.floor(start * rate + 1e-6), math.ceil(end * rate - 1e-6)
        kept[max(first - reach, 0) : last + reach] = False
    return kept


def redrawn(codec: WaveCodec, waves: Tensor, grid: Grid, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Clips [B, C, S] to be drawn anew where `kept`, bool [S], is False, in which they hold silence. Steps that tell of
    any of these samples are drawn.

    Returns:
        values as of `codec.encode`; bool [B, N], True where they are kept.
    """
    told = codec.before + codec.step + codec.after
    drawn = pad(~kept, (codec.before, codec.after)).unfold(0, told, codec.step).any(-1)
    # A row of a pattern holds codes of its step and of as many before as the grid has rows more than steps.
    lag = grid[0] - len(drawn)
    rows = torch.stack([pad(drawn, (shift, lag - shift)) for shift in range(lag + 1)]).any(0)
    observed = ~rows.repeat_interleave(codec.width)
    return codec.encode(waves), observed.expand(len(waves), -1)


def heard(codec: WaveCodec, segment: Segment) -> Tensor:
    """The segment's values, those of silence where they are not observed.

    Raises:
        ValueError: an impossible grid, values of another element.
    """
    check_segment(codec, segment)
    values, known = segment.values, segment.whole_observed
    if known.all():
        return values
    samples = codec.steps(segment.grid) * codec.step
    silence = codec.encode(torch.zeros(1, codec.channels, samples, device=values.device)).to(values.dtype)
    return torch.where(known if values.dim() == 2 else known[..., None], values, silence)


def streamed(codec: WaveCodec, segments: Iterable[Segment]) -> Iterator[Tensor]:
    """Of a segment that grows, the waves [B, C, s > 0] that are new, as soon as the rows from the beginning on are
    observed for all of the batch. At the end what is not observed is silence.

    Raises:
        ValueError: as `heard`.
    """
    decoder, segment, done = None, None, 0
    for segment in segments:
        check_segment(codec, segment)
        decoder = decoder or codec.decoder()
        places = segment.known_steps * codec.width
        if places > done:
            waves = decoder.push(segment.values[:, done:places])
            done = places
            if waves.shape[-1]:
                yield waves
    if decoder is None or segment is None:
        return
    rest = [decoder.push(heard(codec, segment)[:, done:])] if done < segment.num_elements else []
    last = torch.cat([*rest, decoder.finish()], -1)
    if last.shape[-1]:
        yield last


def check_segment(codec: WaveCodec, segment: Segment) -> None:
    """Raises ValueError where a segment is not of the codec's elements."""
    codec.steps(segment.grid)
    check_element(segment, codec.element)


def _checked(mask: Iterable[tuple[float, float]], seconds: float) -> list[tuple[float, float]]:
    try:
        pairs = [(float(start), float(end)) for start, end in mask]
    except (TypeError, ValueError):
        pairs = []
    if not pairs or not all(0 <= start < end <= seconds for start, end in pairs):
        raise ValueError(f"mask is {mask!r}; it must be a list of (start, end) in seconds, from 0 to {seconds:g}")
    return pairs
