"""Attention patterns against a loop over all pairs, transformers' own masks, and between attention kernels."""

from __future__ import annotations

from dataclasses import replace
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

from tests.helpers import backbone_inputs, build, diffusion, full_hidden, label, labels, series
from unimodal_ar import Layout, Segment, masks
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
                mask[b, 0, row, j] = i == j or (readable and seen(pattern, i, j))
    return mask


def seen(pattern: AttentionPattern, i: int, j: int) -> bool:
    """DESIGN 5: clean i sees clean j iff b(j) <= b(i); noisy i sees clean j iff b(j) < b(i), and noisy j iff
    b(j) == b(i); clean never sees noisy."""
    noisy = [False] * len(pattern.block) if pattern.noisy is None else pattern.noisy.tolist()
    mine, other = int(pattern.block[i]), int(pattern.block[j])
    if noisy[j]:
        return noisy[i] and other == mine
    return other < mine if noisy[i] else other <= mine


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


@st.composite
def two_streams(draw: st.DrawFn) -> AttentionPattern:
    """Clean blocks, noisy and clean copies of the next ones (the last may have a noisy copy only), and what follows."""
    sizes = draw(st.lists(st.integers(1, 3), min_size=1, max_size=5))
    blocks = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
    first = draw(st.integers(0, len(sizes) - 1))
    before, copies = blocks[blocks < first], blocks[blocks >= first]
    follows = draw(st.booleans())
    clean = copies if follows else copies[copies < len(sizes) - 1]
    after = torch.arange(len(sizes), len(sizes) + 2) if follows else copies[:0]
    block = torch.cat([before, copies, clean, after])
    noisy = torch.zeros(len(block), dtype=torch.bool)
    noisy[len(before) : len(before) + len(copies)] = True
    valid = None
    if draw(st.booleans()):
        rows = st.lists(st.booleans(), min_size=len(block), max_size=len(block))
        valid = torch.tensor(draw(st.lists(rows, min_size=1, max_size=3)))
    return AttentionPattern(block, draw(st.integers(1, len(block))), valid, noisy=noisy)


@given(st.one_of(patterns(), two_streams()))
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


@given(st.one_of(patterns(), two_streams()), st.integers(1, 5))
def test_tiles_hold_all_that_is_seen_and_no_key_in_vain(pattern: AttentionPattern, size: int) -> None:
    """Padding does not count: tiles follow the blocks alone, so that the host need not wait for what is padding."""
    mask, covered = naive(pattern), 0
    blocks = naive(replace(pattern, valid=None))
    for tile in pattern.tiles(size):
        assert tile.queries == slice(covered, min(covered + size, pattern.queries))
        own = mask[:, :, tile.queries]
        keys = torch.arange(len(pattern.block))[tile.keys]
        assert torch.equal(tile.mask, own[..., keys]) and tile.mask.is_contiguous()
        assert set(keys.tolist()) == set(blocks[0, 0, tile.queries].any(0).nonzero().flatten().tolist())
        covered = tile.queries.stop
    assert covered == pattern.queries


@given(st.one_of(patterns(), two_streams()))
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


@given(st.one_of(patterns(), two_streams()))
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
@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_flex_attention_gives_the_same_numbers(padded: bool, streams: int) -> None:
    valid = torch.rand(2, 160) > 0.3 if padded else None
    noisy = torch.arange(160) < 80 if streams == 2 else None
    pattern = AttentionPattern(torch.arange(160) % (160 // streams) // 7, 90, valid, noisy=noisy)
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


# --- two streams, of whole models -------------------------------------------------------------------------------------

STREAMS: list[tuple[str, str, str]] = [  # the objectives of two targets, and the first one's start
    ("block_diffusion", "next_block", "learned"),
    ("next_block", "block_diffusion", "learned"),
    ("block_diffusion", "block_diffusion", "none"),
]


def two_targets(objectives: tuple[str, str, str], backbone: str, block: Any, noise: str) -> tuple[Any, list[Segment]]:
    """A label, x on (2, 1, 3) with gaps and padding, a note, and y of five elements in blocks of 2."""
    ways = [diffusion(noise) if name == "block_diffusion" else {} for name in objectives[:2]]
    modalities = {
        "label": label(),
        "x": series(grid=(2, 1, 3), block=block, start=objectives[2]) | ways[0],
        "note": series(grid=(2, 1, 1), block="whole", head=None),
        "y": series(grid=(5, 1, 1), block=2) | ways[1],
    }
    observed = torch.ones(2, 6, dtype=torch.bool)
    observed[0, :2] = observed[0, 4] = observed[1, 5] = False
    segments = [
        labels(1, 4),
        Segment("x", torch.randn(2, 6, 3), (2, 1, 3), observed=observed),
        Segment("note", torch.randn(2, 2, 3), (2, 1, 1), target=False),
        Segment("y", torch.randn(2, 5, 3), (5, 1, 1)),
    ]
    return build(modalities, backbone), segments


def written_out(objectives: tuple[str, str, str], layouts: list[Layout]) -> list[tuple[int, int, bool, int]]:
    """Every position as (segment, block, whether it is a noisy copy, the element of x that it holds or -1)."""
    found = [(0, 0, False, -1)]
    for number, (objective, layout) in enumerate(zip(objectives[:2], layouts, strict=True)):
        segment, last, blocks = 2 * number + 1, number == 1, layout.block.tolist()
        final = layout.num_blocks - 1
        if objective == "block_diffusion":
            first = 1 if number == 0 and objectives[2] == "none" else 0
            places = [(segment, b, False, place) for place, b in enumerate(blocks) if b < first]
            places += [(segment, b, True, place) for place, b in enumerate(blocks) if b >= first]
            places += [
                (segment, b, False, place) for place, b in enumerate(blocks) if b >= first and (b < final or not last)
            ]
        else:  # its positions read one block earlier, and another shows the rest
            places = []
            for b in range(layout.num_blocks):
                extra = layout.block_sizes[b - 1] - layout.block_sizes[b] if b else 0
                places += [(segment, b, False, -1)] * (max(extra, 0) + layout.block_sizes[b])
            places += [] if last else [(segment, final + 1, False, -1)] * layout.block_sizes[final]
        found += places
        found += [] if last else [(2, 0, False, -1)] * 2
    return found


def sees(i: tuple[int, int, bool, int], j: tuple[int, int, bool, int]) -> bool:
    if j[0] != i[0]:
        return j[0] < i[0] and not j[2]
    if j[2]:
        return i[2] and i[1] == j[1]
    return j[1] < i[1] if i[2] else j[1] <= i[1]


@pytest.mark.parametrize(
    ("objectives", "block"),
    [(way, block) for way in STREAMS for block in (1, 2, 4, "row", "whole") if (way[2], block) != ("none", "whole")],
    ids=str,
)
def test_the_mask_of_a_whole_sequence_is_the_rule(objectives: tuple[str, str, str], block: Any) -> None:
    """Against a double loop over positions that are listed here, from the design."""
    model, segments = two_targets(objectives, "native", block, "mask")
    layouts = [model.layout(name, segment.grid) for name, segment in (("x", segments[1]), ("y", segments[3]))]
    positions = written_out(objectives, layouts)
    with backbone_inputs(model) as inputs:
        model([segments[0], segments[1].replace(observed=None), *segments[2:]])
        model(segments)
    bare, gaps = (found.pattern for found in inputs)
    rule = torch.tensor([[sees(i, j) for j in positions] for i in positions])
    assert torch.equal(bare.dense()[0, 0], rule) and bare.valid is None
    if objectives[0] == "block_diffusion":  # what is missing is seen by nobody but itself
        observed = segments[1].element_observed[:, layouts[0].index]
        for row in range(2):
            valid = torch.tensor(
                [place < 0 or position != 1 or bool(observed[row, place]) for position, _, _, place in positions]
            )
            assert torch.equal(gaps.dense()[row, 0], (rule & valid[None]) | torch.eye(len(rule), dtype=torch.bool))


@pytest.mark.parametrize("noise", ["mask", "gaussian"])
@pytest.mark.parametrize("objectives", STREAMS, ids="-".join)
@pytest.mark.parametrize("backbone", ["native", "llama", "gpt2", "qwen3"])
def test_two_streams_agree_between_kernels(
    backbone: str, objectives: tuple[str, str, str], noise: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written out, in one call, and in tiles of five."""
    model, segments = two_targets(objectives, backbone, 2, noise)
    for sequence in (segments, [segments[0], segments[1].replace(observed=None), *segments[2:]]):
        hidden = []
        for implementation, tile in (("eager", 128), ("sdpa", 128), ("sdpa", 5)):
            monkeypatch.setattr(masks, "TILE", tile)
            model.set_attn_implementation(implementation)
            torch.manual_seed(1)
            hidden.append(full_hidden(model, sequence))
        assert hidden[0].shape[1] >= 20
        torch.testing.assert_close(hidden[1], hidden[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(hidden[2], hidden[0], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("noise", [None, "mask", "gaussian"])
@pytest.mark.parametrize("backbone", ["native", "llama"])
def test_models_agree_with_flex_attention(backbone: str, noise: str | None) -> None:
    torch._dynamo.reset()  # for a second length torch 2.14 would compile a kernel of any length, and fail on CPU
    grid = (4, 1, 2)
    way = diffusion(noise) if noise else {}
    model = build({"x": series(grid=grid, block=2) | way, "label": label()}, backbone)
    segments = example(grid)
    hidden = []
    with torch.no_grad():  # on CPU it has no backward
        for implementation in ("flex_attention", "sdpa"):
            torch.manual_seed(1)
            model.set_attn_implementation(implementation)
            hidden.append(full_hidden(model, segments))
    torch.testing.assert_close(*hidden, atol=1e-5, rtol=1e-5)
