"""A sequence under construction: the backbone's cache, and where new positions go."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..sequence import Cursor, Part
from .configuration import Steps


class CachedDecoding:
    """Appends positions to a cached sequence.

    A guided sequence has a counterpart without its context, which runs beside it in the same batch (classifier-free
    guidance, arXiv 2207.12598).

    Attributes:
        guided: whether there is a counterpart.
        scale: how far samples are guided away from the counterpart; it may change from block to block.
        progress: 0 where drawing begins and 1 where it ends, see `Steps`.
        starts: what the first block reads, where that is the context's embedding, by sequence and counterpart.
        conditioning: [B, 1, C] of the backbone's adaptive norms (the counterpart's below), or None.
    """

    def __init__(
        self,
        backbone: Any,
        guided: bool = False,
        starts: tuple[Tensor | None, ...] = (None,),
        conditioning: Tensor | None = None,
    ) -> None:
        self.backbone = backbone
        self.guided, self.scale, self.progress = guided, 1.0, 0.0
        self.starts, self.conditioning = starts, conditioning
        self.cache = backbone.new_cache()
        self.cursor = Cursor()
        self.rows = torch.arange(0)  # of the batch that is cached
        self.held: tuple[list[Part], ...] = ([],)

    def hold(self, *parts: list[Part]) -> None:
        """Takes positions whose hidden states nobody asks for: they go with the next ones, which saves a pass.
        (Together their pattern is neither causal nor full, so attention has to take masks.)"""
        self.held = parts
        if not self.backbone.takes_masks:
            self._flush()

    def append(self, *parts: list[Part]) -> tuple[Tensor, ...]:
        """Runs the backbone on new positions and commits them; returns hidden states [B, n, H], and the counterpart's.

        A second list holds the same positions as the counterpart sees them; without one they are alike.
        """
        return self._run(parts, commit=True)

    def peek(self, *parts: list[Part]) -> tuple[Tensor, ...]:
        """The same without committing them: afterwards it is as if they had never been. What is held goes with them,
        and is committed."""
        return self._run(parts, commit=False)

    def _run(self, parts: tuple[list[Part], ...], commit: bool) -> tuple[Tensor, ...]:
        asked = sum(part.embeds.shape[1] for part in parts[0])
        held = self._stacked(self.held)
        new = held + self._stacked(parts)
        self.held = ([],)
        cursor = self.cursor if commit else copy.copy(self.cursor)  # whose tensors are replaced, never written to
        inputs = cursor.place(new)
        if not commit:
            self.cache.keep = sum(part.embeds.shape[1] for part in held)
            if held:
                self.cursor.place(held)
        hidden = self.backbone(inputs, self.cache, self.conditioning)[:, -asked:]
        if not commit:
            self.cache.keep = None
        self.rows = torch.arange(len(hidden), device=hidden.device)
        return hidden.chunk(2) if self.guided else (hidden,)

    def _stacked(self, parts: tuple[list[Part], ...]) -> list[Part]:
        """As one batch with the counterpart's, where there is one."""
        return [_stack(*pair) for pair in zip(parts[0], parts[-1], strict=True)] if self.guided else parts[0]

    def sample(self, head: Any, hidden: tuple[Tensor, ...], head_steps: Steps | None = None, **sampling: Any) -> Tensor:
        """Values drawn by `head`."""
        if head_steps is not None:
            sampling["head_steps"] = head_steps.at(self.progress)
        if self.guided:
            return head.sample_guided(*hidden, self.scale, **sampling)
        return head.sample(*hidden, **sampling)

    def guide(self, states: tuple[Tensor, ...]) -> Tensor:
        """Guided states, for what is a linear map of them."""
        if not self.guided:
            return states[0]
        hidden, free = states
        return free + self.scale * (hidden - free)

    def repeat_interleave(self, repeats: int) -> None:
        """Every example `repeats` times. (Guided halves stay apart: each half is repeated in itself.)"""
        if repeats == 1:
            return
        self._flush()  # once for all that are alike
        if self.cursor.length:
            # Not `batch_repeat_interleave`, which the layers of bodies with a state lack.
            self.cache.reorder_cache(self.rows.repeat_interleave(repeats))
        self.cursor.repeat_interleave(repeats)
        self.starts = tuple(None if start is None else start.repeat_interleave(repeats, 0) for start in self.starts)
        if self.conditioning is not None:
            self.conditioning = self.conditioning.repeat_interleave(repeats, 0)

    def _flush(self) -> None:
        held, self.held = self.held, ([],)
        if held[0]:
            self.append(*held)


def _stack(first: Part, second: Part) -> Part:
    both: dict[str, Any] = {"embeds": torch.cat([first.embeds, second.embeds])}
    for name in ("valid", "lead", "skip", "conditioning"):
        value = getattr(first, name)
        both[name] = None if value is None else torch.cat([value, getattr(second, name)])
    if len(first.coords) > 1:
        both["coords"] = torch.cat([first.coords, second.coords])
    return replace(first, **both)
