"""Positions: how the native decoder is told where a position is.

Shapes: B batch, L positions, H width, A heads, D head size.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from .configuration import UnimodalARDecoderConfig


class NoPosition(nn.Module):
    """Leaves the inputs as they are. A position module maps (inputs [B, L, H], coords [B or 1, L, 3]) to the inputs and
    the rotation of queries and keys, (cos, sin) [B or 1, 1, L, D] or None. One that `counts` is given (n, 0, 0) with
    running numbers n instead of coordinates."""

    counts = False
    axes = [1.0, 1.0, 1.0]

    def __init__(self, config: UnimodalARDecoderConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, embeds: Tensor, coords: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        return embeds, None

    def angles(self, coords: Tensor, pairs: int) -> Tensor:
        """[B or 1, L, pairs]: coordinate times frequency, the pairs shared out among the axes. The tables are computed
        here rather than kept in buffers: non-persistent buffers do not survive `from_pretrained`."""
        per_axis = []
        for axis, count in enumerate(_share(pairs, self.config.position_axes or self.axes)):
            steps = torch.arange(count, device=coords.device, dtype=torch.float32)
            frequency = 1.0 / (self.config.rope_theta ** (steps / max(count, 1)))
            per_axis.append(coords[..., axis, None].float() * frequency)
        return torch.cat(per_axis, -1)


class AxialRotary(NoPosition):
    """Rotary embedding (arXiv 2104.09864) whose pairs of channels are shared out among t, h and w. With all of them on
    t it is Llama's. A position without a place (h is -1) gets queries and keys of zero, so that all attend to it alike
    (LlamaGen, arXiv 2406.06525)."""

    def forward(self, embeds: Tensor, coords: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        angles = self.angles(coords, cast(int, self.config.head_dim) // 2)[:, None]
        angles = torch.cat([angles, angles], -1)
        placed = (coords[:, None, :, 1:2] >= 0).to(embeds.dtype)
        return embeds, (angles.cos().to(embeds.dtype) * placed, angles.sin().to(embeds.dtype) * placed)


class Rotary(AxialRotary):
    """Llama's on any grid: the running number of the position turns all channels, a start's, too."""

    counts = True
    axes = [1.0, 0.0, 0.0]


class Sinusoidal(NoPosition):
    """Adds sin (even channels) and cos (odd channels) of the coordinates to the inputs (arXiv 1706.03762)."""

    def forward(self, embeds: Tensor, coords: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        angles = self.angles(coords, embeds.shape[-1] // 2)
        table = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)
        return embeds + table.to(embeds.dtype), None


POSITIONS: dict[str, type[NoPosition]] = {
    "rope": AxialRotary,
    "rope_1d": Rotary,
    "sinusoidal": Sinusoidal,
    "none": NoPosition,
}


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys [B, A, L, D], turned by (cos, sin) of a position module."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat([-second, first], -1) * sin


def _share(total: int, shares: list[float]) -> list[int]:
    """`total` split into whole parts in proportion to `shares` (largest remainders first)."""
    exact = [total * share / sum(shares) for share in shares]
    parts = [int(value) for value in exact]
    order = sorted(range(len(shares)), key=lambda i: parts[i] - exact[i])
    for i in order[: total - sum(parts)]:
        parts[i] += 1
    return parts
