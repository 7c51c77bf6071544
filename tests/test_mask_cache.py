"""Masks are made once for sequences whose blocks are alike, and only for these."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from unimodal_ar import Segment, masks
from unimodal_ar.layout import cached_layout
from unimodal_ar.masks import AttentionPattern
from unimodal_ar.sequence import Inputs

from .helpers import backbone_inputs, build, codes, diffusion, full_hidden, label, labels, series

GRID = (2, 4, 4)
WAYS: dict[str, dict[str, Any]] = {
    "next": {},
    "streams": diffusion("mask"),
    "gaussian": diffusion("gaussian"),
}
LAYOUTS: list[tuple[str, Any]] = [
    ("raster", 1),
    ("raster", 5),
    ("raster", [1, 7, 16, 3, 5]),  # blocks that shrink leave elements unread
    ("raster", "row"),
    ("raster", {"cell": [1, 2, 2]}),
    ("raster", "whole"),
    ("random", 3),
    ("random", [9, 1, 12, 10]),
    ("neighbor", None),
    ("strided", None),
    ("first_frame", None),
    ("coarse_first", None),
]


def model_and_segments(
    order: str, block: Any, way: str, backbone: str = "native", start: str = "learned", then: bool = False
) -> tuple[Any, list[Segment]]:
    """A label and a target; `then`: and a second target after it."""
    modality = series(2, GRID, block, order, start=start, **WAYS[way])
    more = {"y": codes(4, (3, 1, 1), 2)} if then else {}
    generator = torch.Generator().manual_seed(0)
    segments = [labels(1, 2), Segment("x", torch.randn(2, 32, 2, generator=generator), GRID)]
    follows = [Segment("y", torch.tensor([[0, 1, 2], [3, 0, 1]]), (3, 1, 1))] if then else []
    model = build({"label": label(), "x": modality} | more, backbone)
    return model, segments + follows


def written_out(key: Any) -> tuple[Tensor, Tensor]:
    """The numbers of blocks, and which positions are noisy, that a key speaks of."""
    block = [first + number for first, sizes, _ in key for number, size in enumerate(sizes) for _ in range(size)]
    noisy = [noisy for _, sizes, noisy in key for _ in range(sum(sizes))]
    return torch.tensor(block), torch.tensor(noisy)


def check_keys(found: list[Inputs]) -> None:
    for inputs in found:
        block, noisy = written_out(inputs.pattern.key)
        assert torch.equal(block, inputs.pattern.block)
        assert torch.equal(noisy, torch.zeros_like(noisy) if inputs.pattern.noisy is None else inputs.pattern.noisy)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("order", "block"), LAYOUTS, ids=str)
def test_the_key_tells_all_that_a_mask_is_made_of(order: str, block: Any, way: str) -> None:
    for start, then in (("learned", False), ("none", True)):
        if start == "none" and (block == "whole" or order == "random"):  # which do not go together
            continue
        model, segments = model_and_segments(order, block, way, start=start, then=then)
        with backbone_inputs(model) as found:
            model.train()(segments)
            model.eval()(segments)
        check_keys(found)
        assert len(found) == 2


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("order", "block"), [("raster", 5), ("raster", [1, 7, 16, 3, 5]), ("random", 3)], ids=str)
def test_and_so_it_does_while_samples_are_drawn(order: str, block: Any, way: str) -> None:
    model, segments = model_and_segments(order, block, way)
    with backbone_inputs(model) as found:
        model.generate([segments[0]], "x", GRID, generator=torch.Generator().manual_seed(0))
    check_keys(found)
    assert len(found) > 2


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The kinds of masks that are made."""
    kinds: list[str] = []
    masks._kept.clear()

    def count(kind: str, own: Any) -> Any:
        def counted(self: Any, *arguments: Any) -> Any:
            kinds.append(kind)
            return own(self, *arguments)

        return counted

    for kind in ("dense", "tiles", "flex"):
        monkeypatch.setattr(AttentionPattern, kind, count(kind, getattr(AttentionPattern, kind)))
    yield kinds
    masks._kept.clear()


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("backbone", ["native", "llama"])
@pytest.mark.parametrize(("order", "block", "way"), [("raster", 5, "streams"), ("random", 3, "next")])
def test_training_makes_a_mask_once(
    order: str, block: Any, way: str, backbone: str, implementation: str, made: list[str], monkeypatch: Any
) -> None:
    """Of a random order, too, which is another one in every step: its blocks are of the same sizes."""
    monkeypatch.setattr(masks, "TILE", 8)
    model, segments = model_and_segments(order, block, way, backbone)
    model.set_attn_implementation(implementation)
    optimiser, losses = SGD(model.train().parameters(), 1e-3), []
    torch.manual_seed(0)
    for _ in range(4):
        optimiser.zero_grad()
        losses.append(model(segments).loss)
        losses[-1].backward()
        optimiser.step()
    tiled = implementation == "sdpa" and backbone == "native"
    assert made == ["tiles" if tiled else "dense"]
    assert len({loss.item() for loss in losses}) == 4


def test_masks_of_other_sequences_are_others(made: list[str]) -> None:
    model, segments = model_and_segments("raster", 5, "streams")
    first = full_hidden(model, segments)
    # As many blocks and positions, of other sizes; and the same in one stream.
    other, _ = model_and_segments("raster", [4, 5, 5, 5, 5, 5, 3], "streams")
    full_hidden(other, segments)
    shorter = [segments[0], Segment("x", segments[1].values[:, :16], (1, 4, 4))]
    full_hidden(model, shorter)
    assert len(made) == 3
    torch.manual_seed(0)
    again = full_hidden(model, segments)
    masks._kept.clear()
    torch.manual_seed(0)
    assert torch.equal(full_hidden(model, segments), again) and again.shape == first.shape
    assert len(made) == 4


@pytest.mark.parametrize("tile", [8, 128])
def test_padding_is_that_of_the_batch(tile: int, made: list[str], monkeypatch: Any) -> None:
    """What is missing differs from batch to batch: of it nothing is remembered."""
    monkeypatch.setattr(masks, "TILE", tile)
    model, (context, target) = model_and_segments("raster", 4, "next")
    batches = [target.replace(observed=(torch.arange(32) >= n).expand(2, 32)) for n in (4, 12)]
    states = [full_hidden(model, [context, batch]) for batch in batches]
    masks._kept.clear()
    for batch, hidden in zip(reversed(batches), reversed(states), strict=True):
        assert torch.equal(full_hidden(model, [context, batch]), hidden)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("order", "block"), [("raster", [1, 7, 16, 3, 5]), ("first_frame", None)], ids=str)
def test_what_was_made_without_gradients_serves_training(
    order: str, block: Any, way: str, made: list[str], monkeypatch: Any
) -> None:
    """Layouts, too."""
    monkeypatch.setattr(masks, "TILE", 8)
    monkeypatch.setattr(masks, "KEPT", 99)
    cached_layout.cache_clear()
    model, segments = model_and_segments(order, block, way, then=True)
    with torch.inference_mode():
        model.eval()(segments)
        model.generate(segments[:1], "x", GRID)
    makes = len(made)
    model(segments).loss.backward()
    assert len(made) == makes > 0
    model.train()(segments).loss.backward()


def pairs(length: int, kind: str = "dense", *arguments: Any) -> Any:
    """A mask of blocks of two."""
    block = torch.arange(length) // 2
    return AttentionPattern(block, length, key=((0, (2,) * (length // 2), False),)).made(kind, *arguments)


def test_few_masks_are_kept(made: list[str]) -> None:
    """Those that were wanted last."""
    for length in range(4, 60, 2):
        pairs(length)
        pairs(4)
    assert len(made) == 28 and len(masks._kept) == masks.KEPT
    pairs(58), pairs(60)
    assert len(made) == 29


@pytest.mark.parametrize(("kind", "arguments"), [("dense", ()), ("tiles", (40,))])
def test_and_these_do_not_fill_the_memory(kind: str, arguments: Any, made: list[str], monkeypatch: Any) -> None:
    monkeypatch.setattr(masks, "KEPT_BYTES", 2 * 40 * 40)
    for length in (40, 38, 36):  # the third is one too many
        pairs(length, kind, *arguments)
    assert len(masks._kept) == 2
    for _ in range(2):  # of a large one nothing but itself
        assert masks._bytes(pairs(80, kind, *arguments)) > masks.KEPT_BYTES
    assert len(masks._kept) == 1 and len(made) == 4


def test_threads_may_share_masks(made: list[str], monkeypatch: Any) -> None:
    """Whatever another one does in the middle of it, here as soon as one looks at what there is."""
    monkeypatch.setattr(masks, "KEPT", 3)
    own, others = masks._bytes, iter(range(20, 40, 2))

    def interrupted(mask: Any) -> int:
        for other in others:
            pairs(other)
            break
        return own(mask)

    monkeypatch.setattr(masks, "_bytes", interrupted)
    for length in (4, 6, 8, 10, 12, 4, 6):
        assert pairs(length).shape == (1, 1, length, length)
    assert next(others, None) is None and len(masks._kept) <= 3
    assert pairs(6) is pairs(6)


def test_tensors_of_tracing_are_not_kept(made: list[str]) -> None:
    from torch._subclasses import FakeTensorMode

    pattern = AttentionPattern(torch.arange(6) // 2, 6, key="six")
    with FakeTensorMode(allow_non_fake_inputs=True):
        traced = AttentionPattern(torch.arange(6) // 2, 6, key="six").made("dense")
    kept = pattern.made("dense")
    assert type(traced) is not Tensor and torch.equal(kept, pattern.dense())


@pytest.mark.parametrize(("way", "block"), [*((way, 5) for way in WAYS), ("next", 1), ("gaussian", "whole")])
@pytest.mark.parametrize("backbone", ["native", "llama"])
def test_positions_that_fill_up_a_length_change_nothing(backbone: str, way: str, block: Any, monkeypatch: Any) -> None:
    """As FlexAttention has them, here for any kernel."""
    model, segments = model_and_segments("raster", block, way, backbone)
    if block == "whole":
        segments = segments[1:]  # then all attend to all
    observed = (torch.arange(32) >= torch.tensor([[0], [7]])).expand(2, 32)
    for given in (segments, [*segments[:-1], segments[-1].replace(observed=observed)]):
        torch.manual_seed(0)
        plain = full_hidden(model, given)
        with monkeypatch.context() as patch, backbone_inputs(model) as found:
            patch.setattr(type(model.backbone), "_filled", lambda self, inputs, cache: inputs.filled(50))
            torch.manual_seed(0)
            filled = full_hidden(model, given)
        assert filled.shape == plain.shape
        torch.testing.assert_close(filled, plain, atol=1e-5, rtol=1e-5)
        padded = found[0].filled(50)
        assert padded.embeds.shape[1] % 50 == 0 and padded.pattern.key != found[0].pattern.key
