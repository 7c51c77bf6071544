"""Merged elements: K codes of one codebook, at K neighbouring places, that enter and leave the backbone as one element.

Token-Shuffle (arXiv 2504.17789): a code needs far fewer channels than the backbone has, so K codes share them. They are
compressed and laid side by side on the way in; on the way out each gets its share back and they are told apart before a
projection that all of them use: no weight that grows with the vocabulary grows with K.

Shapes: H width, K codes per element, c = ceil(H / K) channels for each code.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ResidualMLP(nn.Module):
    """x + down(gelu(up(norm(x)))).

    Args:
        width: channels of x.
        expansion: of the layer between `up` and `down`, as a multiple of the width.
    """

    def __init__(self, width: int, expansion: int = 2) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, expansion * width)
        self.down = nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(x))))


class CodeMerge(nn.Module):
    """K vectors -> one: each is compressed to c channels, they are put side by side, two residual MLPs fuse them."""

    def __init__(self, hidden_size: int, codes: int) -> None:
        super().__init__()
        share = -(-hidden_size // codes)
        self.compress = nn.Linear(hidden_size, share)
        self.join = _resize(codes * share, hidden_size)
        self.fuse = nn.Sequential(ResidualMLP(hidden_size), ResidualMLP(hidden_size))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K, H] -> [..., H]."""
        return self.fuse(self.join(self.compress(x).flatten(-2)))


class CodeSplit(nn.Module):
    """One vector -> K, the other way round: a residual MLP, c channels for each code, expanded to the width, and a
    residual MLP on each. It ends in a norm, as the backbone does that a projection to logits usually follows."""

    def __init__(self, hidden_size: int, codes: int) -> None:
        super().__init__()
        share = -(-hidden_size // codes)
        self.codes = codes
        self.prepare = ResidualMLP(hidden_size)
        self.part = _resize(hidden_size, codes * share)
        self.expand = nn.Linear(share, hidden_size)
        self.refine = ResidualMLP(hidden_size)
        self.norm = nn.LayerNorm(hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., H] -> [..., K, H]."""
        shares = self.part(self.prepare(x)).unflatten(-1, (self.codes, -1))
        return self.norm(self.refine(self.expand(shares)))


def _resize(channels: int, wanted: int) -> nn.Module:
    """Only where K does not divide H is there anything to learn."""
    return nn.Identity() if channels == wanted else nn.Linear(channels, wanted)
