"""Who attends to whom: block-causal attention with positions that nobody may read, for every attention kernel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

TAKE_MASKS = ("eager", "flex_attention", "sdpa")
"""Attention functions that take any mask; others know causal and full attention only."""


@dataclass(frozen=True)
class AttentionPattern:
    """Query i sees key j iff block(j) <= block(i) and j is valid, and every query sees itself.

    Queries are the last q of the k keys; earlier keys are cached.

    Attributes:
        block: [k] long, non-decreasing number of each key's block.
        queries: q, how many of the keys are queries too.
        valid: [B, k] bool, False for keys that hold nothing (padding); None: all are valid.
        sequential: every query is a block of its own.
        single: all queries are one block.
    """

    block: Tensor
    queries: int
    valid: Tensor | None = None
    sequential: bool = False
    single: bool = False

    @property
    def is_full(self) -> bool:
        """Every query sees every key."""
        return self.valid is None and (self.single or (self.sequential and self.queries == 1))

    @property
    def is_causal(self) -> bool:
        """The plain triangular mask, nothing cached."""
        return self.valid is None and self.sequential and self.queries == len(self.block)

    def dense(self) -> Tensor:
        """[B or 1, 1, q, k] bool, True = may attend."""
        start = len(self.block) - self.queries
        mask = (self.block[None, :] <= self.block[start:, None])[None, None]
        if self.valid is not None:
            own = torch.arange(len(self.block), device=self.block.device)
            mask = (mask & self.valid[:, None, None, :]) | (own[start:, None] == own[None, :])
        return mask

    def flex(self) -> Any:
        """The same as a FlexAttention BlockMask, which skips the empty tiles."""
        from torch.nn.attention.flex_attention import create_block_mask

        block, valid, start = self.block, self.valid, len(self.block) - self.queries

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            allowed = block[k] <= block[q + start]
            return allowed if valid is None else (allowed & valid[b, k]) | (q + start == k)

        batch = None if valid is None else len(valid)
        return create_block_mask(visible, batch, None, self.queries, len(block), device=str(block.device))

    def resolve(self, implementation: str) -> tuple[Any, bool]:
        """What the attention function of that name is to be given: (mask, is_causal).

        Raises:
            ValueError: the pattern is neither causal nor full and the kernel takes no other.
        """
        if self.is_full:
            return None, False
        if implementation == "eager":
            return self.dense(), False
        if implementation == "flex_attention":
            return self.flex(), False
        if self.is_causal:
            return None, True
        if implementation == "sdpa":
            return self.dense(), False
        raise ValueError(
            f"attn_implementation is {implementation!r}, which knows causal and full attention only; "
            "blocks, padding and several cached positions need 'sdpa', 'eager' or 'flex_attention'"
        )


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to attention scores: 0 where True, the dtype's lowest where False."""
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
