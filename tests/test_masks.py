"""Attention patterns against a loop over all pairs, transformers' own masks, and between attention kernels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention.flex_attention import create_mask, flex_attention
from transformers import DynamicCache, LlamaConfig
from transformers.masking_utils import create_causal_mask

from tests.helpers import build, full_hidden, label, labels, series
from unimodal_ar import Layout, Segment
from unimodal_ar.masks import AttentionPattern, additive


def naive(pattern: AttentionPattern) -> Tensor:
    """[B, 1, q, k]: the rule, pair by pair."""
    keys = len(pattern.block)
    batch = 1 if pattern.valid is None else len(pattern.valid)
    mask = torch.zeros(batch, 1, pattern.queries, keys, dtype=torch.bool)
    for b in range(batch):
        for row in range(pattern.queries):
            i = keys - pattern.queries + row
            for j in range(keys):
                readable = pattern.valid is None or bool(pattern.valid[b, j])
                mask[b, 0, row, j] = i == j or (readable and bool(pattern.block[j] <= pattern.block[i]))
    return mask


@st.composite
def patterns(draw: st.DrawFn) -> AttentionPattern:
    sizes = draw(st.lists(st.integers(1, 4), min_size=1, max_size=6))
    block = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    first = draw(st.integers(0, len(sizes) - 1))  # earlier blocks are cached
    queries = sum(sizes[first:])
    valid = None
    if draw(st.booleans()):
        rows = st.lists(st.booleans(), min_size=len(block), max_size=len(block))
        valid = torch.tensor(draw(st.lists(rows, min_size=1, max_size=3)))
    sequential = all(size == 1 for size in sizes[first:])
    return AttentionPattern(block, queries, valid, sequential, single=first == len(sizes) - 1)


@given(patterns())
def test_dense_equals_the_loop(pattern: AttentionPattern) -> None:
    assert torch.equal(pattern.dense(), naive(pattern))


@given(patterns())
def test_shortcuts_mean_what_they_say(pattern: AttentionPattern) -> None:
    mask = naive(pattern)
    if pattern.is_full:
        assert mask.all()
    if pattern.is_causal:
        assert torch.equal(mask[0, 0], torch.ones_like(mask[0, 0]).tril())
    assert pattern.is_full == (pattern.valid is None and bool(mask.all()))


@given(patterns())
def test_flex_follows_the_same_rule(pattern: AttentionPattern) -> None:
    block_mask = pattern.flex()
    mask = naive(pattern)
    dense = create_mask(block_mask.mask_mod, len(mask), 1, pattern.queries, len(pattern.block), device="cpu")
    assert torch.equal(dense, mask)


@pytest.mark.parametrize("padded", [False, True])
def test_flex_skips_exactly_the_empty_tiles(padded: bool) -> None:
    block = torch.arange(400) // 100
    valid = None
    if padded:
        valid = torch.ones(2, 400, dtype=torch.bool)
        valid[1, :150] = False
    pattern = AttentionPattern(block, 300, valid)
    mask = F.pad(pattern.dense(), (0, 112, 0, 84))  # to whole tiles of 128 x 128
    tiles = mask.view(len(mask), 1, 3, 128, 4, 128).permute(0, 1, 2, 4, 3, 5).flatten(4).any(-1)
    assert not tiles.all(), "no tile is empty, so that nothing is tested"
    assert torch.equal(pattern.flex().to_dense().bool(), tiles)


@given(patterns())
def test_kernels_give_the_same_numbers(pattern: AttentionPattern) -> None:
    generator = torch.Generator().manual_seed(0)
    batch, keys = len(pattern.dense()), len(pattern.block)
    q = torch.randn(batch, 2, pattern.queries, 16, generator=generator)
    k, v = (torch.randn(batch, 2, keys, 16, generator=generator) for _ in range(2))
    scores = (q @ k.transpose(2, 3)) * 0.25
    expected = scores.masked_fill(~naive(pattern), -torch.inf).softmax(-1) @ v
    added = (scores + additive(pattern.dense(), scores.dtype)).softmax(-1) @ v
    torch.testing.assert_close(added, expected, atol=1e-5, rtol=0)
    mask, is_causal = pattern.resolve("sdpa")
    sdpa = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    torch.testing.assert_close(sdpa, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("padded", [False, True])
def test_flex_attention_gives_the_same_numbers(padded: bool) -> None:
    valid = torch.rand(2, 160) > 0.3 if padded else None
    pattern = AttentionPattern(torch.arange(160) // 7, 90, valid)
    q, k, v = torch.randn(2, 2, 90, 16), torch.randn(2, 2, 160, 16), torch.randn(2, 2, 160, 16)
    out: Any = flex_attention(q, k, v, block_mask=pattern.flex())
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=naive(pattern))
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("cached", [0, 4])
@pytest.mark.parametrize("block", [1, 2, 3, "whole"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_equals_the_mask_that_transformers_makes(implementation: str, block: Any, cached: int) -> None:
    """transformers makes causal-or-same-block masks; in generation order that is the block-causal rule."""
    layout = Layout.from_grid((1, 2, 5), block=block)
    cached = layout.block_range(layout.num_blocks - 1).start if cached and layout.num_blocks > 1 else 0
    queries = len(layout) - cached
    config = LlamaConfig(hidden_size=8, num_attention_heads=1, num_hidden_layers=1, vocab_size=3)
    config._attn_implementation = implementation
    cache = DynamicCache(config=config)
    if cached:
        cache.update(torch.zeros(1, 1, cached, 8), torch.zeros(1, 1, cached, 8), 0)
    theirs: Any = create_causal_mask(
        config=config,
        inputs_embeds=torch.zeros(1, queries, 8),
        attention_mask=None,
        past_key_values=cache,
        block_sequence_ids=layout.block[None],
        allow_is_causal_skip=False,
    )
    ours = AttentionPattern(layout.block, queries).dense()
    assert theirs is not None
    assert torch.equal(theirs, additive(ours, torch.float32) if implementation == "eager" else ours)


def test_resolve_gives_every_kernel_the_cheapest_form() -> None:
    blocks = torch.arange(4)
    causal = AttentionPattern(blocks, 4, sequential=True)
    assert causal.resolve("sdpa") == (None, True) and causal.resolve("flash_attention_2") == (None, True)
    assert causal.resolve("eager")[0].shape == (1, 1, 4, 4)
    one = AttentionPattern(blocks, 1, sequential=True)
    assert one.resolve("eager") == one.resolve("flash_attention_2") == (None, False)
    padded = AttentionPattern(blocks, 4, torch.ones(1, 4, dtype=torch.bool), sequential=True)
    assert padded.resolve("sdpa")[0].dtype == torch.bool


@pytest.mark.parametrize("queries", [2, 4])
def test_a_kernel_without_masks_says_so(queries: int) -> None:
    pattern = AttentionPattern(torch.arange(4) // 2, queries)
    with pytest.raises(ValueError, match="attn_implementation is 'flash_attention_2', which knows causal and full"):
        pattern.resolve("flash_attention_2")


def example(grid: tuple[int, int, int]) -> list[Segment]:
    values = torch.randn(2, grid[0] * grid[1] * grid[2], 3)
    observed = torch.ones(values.shape[:2], dtype=torch.bool)
    observed[1, :2] = False
    observed[0, 5] = False
    return [labels(1, 4), Segment("x", values, grid, observed=observed)]


@pytest.mark.parametrize("block", [1, 2, "frame"])
@pytest.mark.parametrize("backbone", ["native", "llama", "gpt2", "qwen3"])
def test_models_agree_between_eager_and_sdpa(backbone: str, block: Any) -> None:
    grid = (4, 1, 2)
    model = build({"x": series(grid=grid, block=block), "label": label()}, backbone)
    padded = example(grid)
    for segments in (padded, [padded[0], padded[1].replace(observed=None)]):
        hidden = []
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            assert model.backbone.model.config._attn_implementation == implementation
            hidden.append(full_hidden(model, segments))
        torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["native", "llama"])
def test_models_agree_with_flex_attention(backbone: str) -> None:
    grid = (4, 1, 2)
    model = build({"x": series(grid=grid, block=2), "label": label()}, backbone)
    segments = example(grid)
    hidden = []
    with torch.no_grad():  # on CPU it has no backward
        for implementation in ("flex_attention", "sdpa"):
            model.set_attn_implementation(implementation)
            hidden.append(full_hidden(model, segments))
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-5)
