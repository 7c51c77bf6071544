"""Large vocabularies: the same log-probabilities and gradients without the logits of all elements at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unimodal_ar.heads import build_head, chunked
from unimodal_ar.heads.base import Head
from unimodal_ar.schema import DiscreteElement

HIDDEN, VOCABULARY = 8, 11
HEADS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "one code": ({}, {"kind": "categorical"}),
    "bias": ({}, {"kind": "categorical", "bias": True}),
    "codes": ({"codes": 3}, {"kind": "categorical", "bias": True}),
    "merged": ({"codes": 3, "merge": True}, {"kind": "categorical"}),
    "depth": ({"codes": 3}, {"kind": "depth_ar", "layers": 1, "heads": 2}),
    "depth, shared": ({"codes": 3, "merge": True}, {"kind": "depth_ar", "layers": 1, "heads": 2}),
}


def head(name: str) -> Head:
    element, options = HEADS[name]
    torch.manual_seed(0)
    built = build_head(HIDDEN, DiscreteElement(kind="discrete", vocab_size=VOCABULARY, **element), options)
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


def losses(built: Head, hidden: Tensor, observed: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """Losses and all gradients, of a sum that weighs elements differently."""
    hidden = hidden.clone().requires_grad_()
    codes = getattr(built, "codes", 1)
    target = torch.arange(hidden[..., 0].numel() * codes).view(*hidden.shape[:-1], codes) * 7 % VOCABULARY
    loss = built.loss(hidden, target[..., 0] if codes == 1 else target, observed)
    weights = torch.linspace(-1, 2, loss.numel()).view_as(loss)
    return loss.detach(), list(torch.autograd.grad((loss * weights).sum(), [hidden, *built.parameters()]))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The logits that were made in runs."""
    made: list[Tensor] = []
    logits = chunked._logits

    def counted(*arguments: Any) -> Tensor:
        made.append(logits(*arguments))
        return made[-1]

    monkeypatch.setattr(chunked, "_logits", counted)
    return made


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", HEADS)
def test_runs_give_the_losses_and_gradients_of_the_whole(
    name: str, masked: bool, monkeypatch: pytest.MonkeyPatch, calls: list[Tensor]
) -> None:
    built, hidden = head(name), torch.randn(2, 5, HIDDEN, generator=torch.Generator().manual_seed(1))
    observed = (torch.arange(10).view(2, 5) % 3 > 0) if masked else None
    whole = losses(built, hidden, observed)
    assert not calls
    for limit in (80, 1):  # runs of several rows; of a quarter of the width, however many logits these have
        monkeypatch.setattr(chunked, "LIMIT", limit)
        parts = losses(built, hidden, observed)
        torch.testing.assert_close(parts[0], whole[0], rtol=1e-6, atol=1e-6)
        for mine, theirs in zip(parts[1], whole[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
        assert calls and max(x.numel() for x in calls) <= max(limit, HIDDEN // 4 * calls[0][0].numel())
        calls.clear()


def test_gradients_are_those_of_finite_differences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "LIMIT", 15)
    weight, bias, hidden = (torch.randn(*shape, dtype=torch.double) for shape in ((6, 4), (6,), (5, 4)))
    codes = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0], [2, 2]])
    arguments = [x.requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda *x: chunked.log_prob(x[0], x[1], x[2], codes), arguments)


def test_what_is_frozen_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "LIMIT", 15)
    weight, hidden, codes = torch.randn(6, 4), torch.randn(5, 4), torch.zeros(5, 1, dtype=torch.long)
    for frozen in (0, 1):
        x = [hidden.clone().requires_grad_(frozen != 0), weight.clone().requires_grad_(frozen != 1)]
        chunked.log_prob(x[0], x[1], None, codes).sum().backward()
        assert x[frozen].grad is None and x[1 - frozen].grad is not None
    assert not chunked.log_prob(hidden, weight, None, codes).requires_grad


@pytest.mark.parametrize("name", ["codes", "merged"])
def test_under_autocast_it_is_as_exact_as_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    built, hidden = head(name), torch.randn(2, 50, HIDDEN, generator=torch.Generator().manual_seed(1))
    exact = losses(built, hidden, None)
    found = []
    for limit in (chunked.LIMIT, 80):
        monkeypatch.setattr(chunked, "LIMIT", limit)
        with torch.autocast("cpu", torch.bfloat16):
            found.append(losses(built, hidden, None))
    whole, parts = found
    assert parts[0].dtype == torch.float32
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
    for mine, theirs, true in zip(parts[1], whole[1], exact[1], strict=True):
        assert mine.dtype == theirs.dtype
        # Sums of many runs are kept in float32: no run more rounds them.
        assert (mine - true).norm() <= 1.1 * (theirs - true).norm() + 1e-5 * true.norm()


def test_layers_around_a_projection_are_kept(monkeypatch: pytest.MonkeyPatch, calls: list[Tensor]) -> None:
    """A LoRA layer in the place of the projection is no bare weight."""

    class Doubled(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.weight = base, base.weight

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.base(x)

    built, hidden = head("one code"), torch.randn(4, HIDDEN)
    before = losses(built, hidden, None)[0]
    built.proj = Doubled(built.proj)  # type: ignore[assignment]
    monkeypatch.setattr(chunked, "LIMIT", 1)
    assert not torch.allclose(losses(built, hidden, None)[0], before) and not calls
