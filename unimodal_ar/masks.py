"""Who attends to whom: block-causal attention with positions that nobody may read, and with noisy copies of blocks, for
every attention kernel."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

TAKE_MASKS = ("eager", "flex_attention", "sdpa")
"""Attention functions that take any mask; others know causal and full attention only."""


TILE = 128
"""Queries per tile: fewer take more calls, more see keys in vain."""

KEPT, KEPT_BYTES = 16, 2**28
"""Masks that are remembered: so many, and of so many bytes, though always the last one."""

_LATER = 2**40  # above the number of any block


@dataclass(frozen=True)
class Tile:
    """Consecutive queries and the keys that any of them sees.

    Attributes:
        queries: which positions.
        keys: which positions; a slice where they follow each other.
        mask: [B or 1, 1, queries, keys] bool.
    """

    queries: slice
    keys: slice | Tensor
    mask: Tensor


@dataclass(frozen=True)
class AttentionPattern:
    """Query i sees key j iff block(j) <= block(i) and j is valid, and every query sees itself.

    A noisy copy of a block (block diffusion, arXiv 2503.09573) is seen by nobody but itself, and in place of the clean
    copy of its own block: noisy i sees clean j iff block(j) < block(i), and noisy j iff block(j) == block(i).

    Queries are the last q of the k keys; earlier keys are cached.

    Attributes:
        block: [k] long, number of each key's block.
        queries: q, how many of the keys are queries too.
        valid: [B, k] bool, False for keys that hold nothing (padding); None: all are valid.
        sequential: every query is a block of its own.
        single: all queries are one block.
        noisy: [k] bool, True for noisy copies; None: there is none.
        places: of the sequence, which noisy copies share with their blocks; None: as many as keys.
        key: what `block` and `noisy` say, without a look at the device: masks of equal ones are made once. None: they
            are made anew.
    """

    block: Tensor
    queries: int
    valid: Tensor | None = None
    sequential: bool = False
    single: bool = False
    noisy: Tensor | None = None
    places: int | None = None
    key: Hashable = None

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
        return self._mask(slice(0, self.queries), slice(0, len(self.block)))

    def _mask(self, queries: slice, keys: slice | Tensor) -> Tensor:
        """[B or 1, 1, queries, keys] bool."""
        own = torch.arange(len(self.block), device=self.block.device)
        query, key = own[len(own) - self.queries :][queries, None], own[keys][None, :]
        mask = self._allowed(query, key)[None, None]
        if self.valid is not None:
            mask = (mask & self.valid[:, None, None, keys]) | (query == key)
        return mask

    def tiles(self, size: int) -> list[Tile]:
        """The same in runs of `size` queries, without the keys whose blocks a run does not see. (Of the pairs of two
        streams that leaves less than a half, where a kernel with a dense mask computes all of them.)"""
        if self.valid is not None:
            bare = replace(self, valid=None).made("tiles", size)
            return [replace(tile, mask=self._mask(tile.queries, tile.keys)) for tile in bare]
        runs = [slice(start, min(start + size, self.queries)) for start in range(0, self.queries, size)]
        every, tiles = slice(0, len(self.block)), []
        # Twice, for the whole mask would take a multiple of the memory; and one wait for the device, not one per tile.
        visible = torch.stack([self._mask(queries, every)[:, 0].flatten(0, 1).any(0) for queries in runs]).cpu()
        for queries, row in zip(runs, visible, strict=True):
            seen = row.nonzero().flatten()
            first, last = int(seen[0]), int(seen[-1]) + 1
            keys = slice(first, last) if last - first == len(seen) else seen.to(self.block.device)
            tiles.append(Tile(queries, keys, self._mask(queries, keys)))
        return tiles

    def flex(self) -> Any:
        """The same as a FlexAttention BlockMask, which skips the empty tiles."""
        from torch.nn.attention.flex_attention import create_block_mask

        valid, start = self.valid, len(self.block) - self.queries

        def visible(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            allowed = self._allowed(q + start, k)
            return allowed if valid is None else (allowed & valid[b, k]) | (q + start == k)

        batch = None if valid is None else len(valid)
        kind = self.block.device.type
        # Compiled, it does not hold the whole mask on its way. (On the CPU compiling takes longer than it ever saves.)
        return create_block_mask(
            visible, batch, None, self.queries, len(self.block), device=str(self.block.device), _compile=kind == "cuda"
        )

    def made(self, kind: str, *arguments: Any) -> Any:
        """What the method `kind` returns: "dense", "tiles" or "flex". Of patterns alike it is made once."""
        # Tensors of tracing are none that another call could use.
        traced = type(self.block) is not Tensor or torch.compiler.is_compiling()
        if self.key is None or self.valid is not None or traced:
            return getattr(self, kind)(*arguments)
        device = self.block.device
        # What one stream is still making, another one would read too early.
        stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
        key = self.key, self.queries, device, stream, kind, arguments
        # Threads may do this at a time: every step is a single operation of the dictionary, or on a copy of it.
        mask = _kept.pop(key, None)
        if mask is None:
            with torch.inference_mode(False), torch.no_grad():  # or training could not use what sampling made
                mask = getattr(self, kind)(*arguments)
        _kept[key] = mask  # the last one
        _forget()
        return mask

    def padded(self, count: int) -> AttentionPattern:
        """With `count` more positions at the end, each a block of its own that no query so far sees."""
        own = torch.arange(_LATER, _LATER + count, device=self.block.device)
        noisy = None if self.noisy is None else F.pad(self.noisy, (0, count))
        valid = None if self.valid is None else F.pad(self.valid, (0, count))
        return replace(
            self,
            block=torch.cat([self.block, own]),
            queries=self.queries + count,
            valid=valid,
            single=False,
            noisy=noisy,
            key=None if self.key is None else (self.key, count),
        )

    def _allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the key's block may be seen from the query, both given as indices of keys."""
        if self.noisy is None:
            return self.block[key] <= self.block[query]
        earlier, same = self.block[key] < self.block[query], self.block[key] == self.block[query]
        return torch.where(self.noisy[key], same & self.noisy[query], earlier | (same & ~self.noisy[query]))

    def resolve(self, implementation: str) -> tuple[Any, bool]:
        """What the attention function of that name is to be given: (mask, is_causal); a list of tiles asks for a call
        for each.

        Raises:
            ValueError: the pattern is neither causal nor full and the kernel takes no other.
        """
        if self.is_full:
            return None, False
        if self.is_causal and implementation not in ("eager", "flex_attention"):
            return None, True
        self.check(implementation)
        if implementation == "flex_attention":
            return self.made("flex"), False
        tiled = implementation == "sdpa" and self.queries >= 2 * TILE
        return (self.made("tiles", TILE) if tiled else self.made("dense")), False

    def check(self, implementation: str) -> None:
        """Raises ValueError where the pattern is neither causal nor full and the kernel takes no other."""
        if implementation not in TAKE_MASKS and not (self.is_full or self.is_causal):
            raise ValueError(
                f"attn_implementation is {implementation!r}, which knows causal and full attention only; "
                "blocks, padding and several cached positions need 'sdpa', 'eager' or 'flex_attention'"
            )


_kept: dict[Hashable, Any] = {}  # masks by what they are made of, the one wanted last at the end


def _forget() -> None:
    """Drops the masks that were not wanted for longest, until `KEPT` of them and `KEPT_BYTES` are left, or one."""
    masks = list(_kept.items())
    size = sum(_bytes(mask) for _, mask in masks)
    for key, mask in masks[:-1]:
        if len(masks) <= KEPT and size <= KEPT_BYTES:
            return
        _kept.pop(key, None)
        masks, size = masks[1:], size - _bytes(mask)


def _bytes(mask: Any) -> int:
    """Of a dense mask or tiles. (A BlockMask has a few numbers for each of its tiles.)"""
    tensors = [mask] if isinstance(mask, Tensor) else [tile.mask for tile in mask] if isinstance(mask, list) else []
    return sum(x.nbytes for x in tensors)


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as numbers to add to attention scores: 0 where True, the dtype's lowest where False."""
    return torch.where(mask, 0.0, torch.finfo(dtype).min).to(dtype)
