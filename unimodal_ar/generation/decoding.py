"""A sequence under construction: the backbone's cache, and where new positions go."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..sequence import Cursor, Part


class CachedDecoding:
    """Appends positions to a cached sequence.

    With `guidance_scale` other than 1 two sequences run side by side, the second without its context. Heads are linear
    up to their first non-linearity, so that guiding hidden states guides logits or means:
    uncond + scale * (cond - uncond) (arXiv 2207.12598).
    """

    def __init__(self, backbone: Any, guidance_scale: float = 1.0) -> None:
        self.backbone = backbone
        self.guidance_scale = guidance_scale
        self.cache = backbone.new_cache()
        self.cursor = Cursor()
        self.rows = torch.arange(0)  # of the batch that is cached

    def append(self, parts: list[Part], unconditional: list[Part] | None = None) -> Tensor:
        """Runs the backbone on new positions and commits them; returns (guided) hidden states [B, n, H].

        `unconditional` are the same positions as the sequence without context sees them (None: alike).
        """
        if self.guidance_scale != 1:
            parts = [_stack(a, b) for a, b in zip(parts, unconditional or parts, strict=True)]
        hidden = self.backbone(self.cursor.place(parts), past_key_values=self.cache)
        self.rows = torch.arange(len(hidden), device=hidden.device)
        if self.guidance_scale == 1:
            return hidden
        conditional, free = hidden.chunk(2)
        return free + self.guidance_scale * (conditional - free)

    def repeat_interleave(self, repeats: int) -> None:
        """Every example `repeats` times. (Guided halves stay apart: each half is repeated in itself.)"""
        if repeats > 1:
            if self.cursor.length:
                # Not `batch_repeat_interleave`, which the layers of bodies with a state lack.
                self.cache.reorder_cache(self.rows.repeat_interleave(repeats))
            self.cursor.repeat_interleave(repeats)


def _stack(first: Part, second: Part) -> Part:
    both: dict[str, Any] = {"embeds": torch.cat([first.embeds, second.embeds])}
    for name in ("valid", "lead"):
        value = getattr(first, name)
        both[name] = None if value is None else torch.cat([value, getattr(second, name)])
    if len(first.coords) > 1:
        both["coords"] = torch.cat([first.coords, second.coords])
    return replace(first, **both)
