"""The small network of heads that draw an element by restoring it from noise.

Shapes: hidden [..., H], values [..., D], W width of the network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LevelEmbedding(nn.Module):
    """Fourier features of numbers in [0, 1] (a time, a noise level, a step size) and an MLP: [...] -> [..., size].

    Args:
        size: of what it returns.
        frequencies: wavelengths run from 2 pi / 1000 to about 2 pi * 10.
    """

    def __init__(self, size: int, frequencies: int = 64) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.up, self.down = nn.Linear(2 * frequencies, size), nn.Linear(size, size)

    def forward(self, level: Tensor) -> Tensor:
        steps = torch.arange(self.frequencies, device=level.device, dtype=torch.float32)
        angle = 1000 * level.float()[..., None] * 10000.0 ** (-steps / self.frequencies)
        features = torch.cat([angle.sin(), angle.cos()], -1).to(self.up.weight.dtype)
        return self.down(F.silu(self.up(features)))


class ModulatedLayer(nn.Module):
    """x + gate * mlp(norm(x) * (1 + scale) + shift), all three from the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up, self.down = nn.Linear(width, width), nn.Linear(width, width)
        self.modulation = nn.Linear(width, 3 * width)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(F.silu(condition)).chunk(3, -1)
        return x + gate * self.down(F.silu(self.up(self.norm(x) * (1 + scale) + shift)))


class Denoiser(nn.Module):
    """A residual MLP over one element's values, whose norms follow the hidden state and the noise levels (MAR, arXiv
    2406.11838, section 4.2).

    Args:
        hidden_size: H.
        dim: D.
        width: W.
        layers: number of residual layers.
        levels: how many numbers besides the hidden state it is told (a time; a time and a step size).
        outputs: values returned per element; None: D.
    """

    def __init__(
        self, hidden_size: int, dim: int, width: int, layers: int, levels: int = 1, outputs: int | None = None
    ) -> None:
        super().__init__()
        self.input, self.condition = nn.Linear(dim, width), nn.Linear(hidden_size, width)
        self.levels = nn.ModuleList([LevelEmbedding(width) for _ in range(levels)])
        self.layers = nn.ModuleList([ModulatedLayer(width) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, dim if outputs is None else outputs)

    def forward(self, x: Tensor, hidden: Tensor, *levels: Tensor) -> Tensor:
        """x [..., D], hidden [..., H], each level [...] -> [..., outputs], in float32 or wider."""
        dtype = self.input.weight.dtype
        condition = self.condition(hidden.to(dtype))
        for embed, level in zip(self.levels, levels, strict=True):
            condition = condition + embed(level)
        x = self.input(x.to(dtype))
        for layer in self.layers:
            x = layer(x, condition)
        shift, scale = self.modulation(F.silu(condition)).chunk(2, -1)
        out = self.output(self.norm(x) * (1 + scale) + shift)
        return out.to(torch.promote_types(out.dtype, torch.float32))
