"""Long masked sequences are attended to in tiles: the same numbers, fewer pairs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from unimodal_ar import Segment, masks
from unimodal_ar.masks import AttentionPattern

from .helpers import build, codes, full_hidden, label, labels

TWO_STREAMS = torch.arange(12).repeat(2) // 3


def pattern(padded: bool = False, **changes: Any) -> AttentionPattern:
    valid = (torch.arange(24) >= torch.tensor([[0], [5]])) if padded else None
    arguments: dict[str, Any] = dict(block=TWO_STREAMS, queries=24, valid=valid, noisy=torch.arange(24) < 12)
    return AttentionPattern(**arguments | changes)


def assembled(tiles: list[masks.Tile], queries: int, keys: int, batch: int) -> Tensor:
    mask = torch.zeros(batch, 1, queries, keys, dtype=torch.bool)
    for tile in tiles:
        places = torch.arange(keys)[tile.keys]
        mask[:, :, torch.arange(queries)[tile.queries][:, None], places] = tile.mask
    return mask


@pytest.mark.parametrize("size", [1, 5, 8, 100])
@pytest.mark.parametrize("padded", [False, True])
def test_tiles_hold_the_whole_mask(size: int, padded: bool) -> None:
    for found in (pattern(padded), pattern(padded, noisy=None, block=torch.arange(24) // 4, queries=13)):
        dense = found.dense()
        assert torch.equal(assembled(found.tiles(size), found.queries, 24, len(dense)), dense)


def test_tiles_are_made_without_the_whole_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a multiple of the pairs of a run of queries, the most that are looked at together."""
    found, sizes = pattern(True), []
    allowed = AttentionPattern._allowed

    def counted(self: AttentionPattern, query: Tensor, key: Tensor) -> Tensor:
        sizes.append(query.numel() * key.numel())
        return allowed(self, query, key)

    monkeypatch.setattr(AttentionPattern, "_allowed", counted)
    found.tiles(3)
    assert max(sizes) == 3 * 24


def test_tiles_leave_out_what_nobody_sees() -> None:
    pairs = sum(tile.mask[0, 0].numel() for tile in pattern().tiles(3))
    # Of a tile of one block, noisy b sees 3 b clean elements and itself, clean b sees 3 (b + 1).
    assert pairs == sum(3 * (3 * b + 3) + 3 * (3 * b + 3) for b in range(4))


@pytest.mark.parametrize("padded", [False, True])
def test_a_model_computes_the_same_in_tiles(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    model = build({"label": label(), "x": codes(5, (1, 6, 6), "row", objective={"kind": "block_diffusion"})})
    observed = torch.arange(36) >= torch.tensor([[0], [12]]) if padded else None
    segments = [labels(1, 2), Segment("x", torch.arange(72).view(2, 36) % 5, (1, 6, 6), observed=observed)]
    states = []
    for tile in (1000, 7):
        monkeypatch.setattr(masks, "TILE", tile)
        torch.manual_seed(0)
        states.append(full_hidden(model, segments))
    assert (states[0] - states[1]).abs().max() < 1e-5

    def refuse(*_: Any) -> None:
        raise RuntimeError("in tiles")

    monkeypatch.setattr(AttentionPattern, "tiles", refuse)
    masks._kept.clear()
    with pytest.raises(RuntimeError, match="in tiles"):
        model(segments)
