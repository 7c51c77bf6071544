"""Large vocabularies: the same log-probabilities and gradients without the logits of all elements at once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from unimodal_ar import Segment
from unimodal_ar.heads import build_head, chunked
from unimodal_ar.heads.base import Head
from unimodal_ar.schema import DiscreteElement

from .helpers import build, codes, label, labels

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
    count = getattr(built, "codes", 1)
    target = torch.arange(hidden[..., 0].numel() * count).view(*hidden.shape[:-1], count) * 7 % VOCABULARY
    loss = built.loss(hidden, target[..., 0] if count == 1 else target, observed)
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
    picked = torch.tensor([[0, 2], [1, 1], [2, 0], [0, 0], [2, 2]])
    arguments = [x.requires_grad_() for x in (hidden, weight, bias)]
    assert torch.autograd.gradcheck(lambda *x: chunked.log_prob(x[0], x[1], x[2], picked), arguments)


def test_what_is_frozen_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "LIMIT", 15)
    weight, hidden, picked = torch.randn(6, 4), torch.randn(5, 4), torch.zeros(5, 1, dtype=torch.long)
    for frozen in (0, 1):
        x = [hidden.clone().requires_grad_(frozen != 0), weight.clone().requires_grad_(frozen != 1)]
        chunked.log_prob(x[0], x[1], None, picked).sum().backward()
        assert x[frozen].grad is None and x[1 - frozen].grad is not None
    assert not chunked.log_prob(hidden, weight, None, picked).requires_grad


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


@pytest.mark.parametrize("name", ["bias", "codes", "merged", "depth"])
def test_weights_in_bfloat16_get_gradients_as_exact_as_those_of_the_whole(
    name: str, monkeypatch: pytest.MonkeyPatch, calls: list[Tensor]
) -> None:
    built = head(name).bfloat16()
    hidden = torch.randn(40, 50, HIDDEN, generator=torch.Generator().manual_seed(1)).bfloat16()
    exact = losses(copy.deepcopy(built).double(), hidden.double(), None)
    whole = losses(built, hidden, None)
    monkeypatch.setattr(chunked, "LIMIT", 80)
    parts = losses(built, hidden, None)
    assert parts[0].dtype == whole[0].dtype == torch.float32 and calls
    torch.testing.assert_close(parts[0], whole[0], rtol=1e-5, atol=1e-5)
    for mine, theirs, true in zip(parts[1], whole[1], exact[1], strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine - true).norm() <= 1.1 * (theirs - true).norm() + 1e-3 * true.norm()


def test_where_nothing_is_observed_nothing_is_lost(monkeypatch: pytest.MonkeyPatch, calls: list[Tensor]) -> None:
    monkeypatch.setattr(chunked, "LIMIT", 80)
    loss, gradients = losses(head("codes"), torch.randn(2, 5, HIDDEN), torch.zeros(2, 5, dtype=torch.bool))
    assert calls and not loss.any() and not any(gradient.any() for gradient in gradients)


def test_it_cannot_be_differentiated_twice_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunked, "LIMIT", 15)
    weight, hidden = torch.randn(6, 4, requires_grad=True), torch.randn(5, 4)
    loss = chunked.log_prob(hidden, weight, None, torch.zeros(5, 1, dtype=torch.long)).sum()
    with pytest.raises(RuntimeError, match=r"^create_graph is True; .* more than 15 logits .* differentiated twice$"):
        torch.autograd.grad(loss, weight, create_graph=True)


def _hook(module: nn.Linear) -> None:
    """As weight_norm, ZeRO 3 and others fetch or make a weight when a module is called."""
    module.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))


def _after(module: nn.Linear) -> None:
    module.register_forward_hook(lambda module, inputs, output: 2 * output)


def _replaced(module: nn.Linear) -> None:
    """As accelerate does it where weights are on several devices."""
    own = module.forward
    module.__dict__["forward"] = lambda x: 2 * own(x)


@pytest.mark.parametrize("change", [_hook, _after, _replaced])
@pytest.mark.parametrize("name", ["one code", "depth"])
def test_what_calls_to_a_projection_bring_about_is_kept(
    name: str, change: Any, monkeypatch: pytest.MonkeyPatch, calls: list[Tensor]
) -> None:
    built, hidden = head(name), torch.randn(4, HIDDEN)
    before = losses(built, hidden, None)[0]
    monkeypatch.setattr(chunked, "LIMIT", 1)
    assert torch.allclose(losses(built, hidden, None)[0], before, atol=1e-6) and calls
    calls.clear()
    change(next(x for key, x in built.named_modules() if key in ("proj", "projections.0")))
    assert not torch.allclose(losses(built, hidden, None)[0], before) and not calls


def test_of_heads_that_peft_trains_in_full_logits_come_in_runs(
    monkeypatch: pytest.MonkeyPatch, calls: list[Tensor]
) -> None:
    from peft import LoraConfig, get_peft_model

    model = build({"label": label(), "x": codes(7, (2, 4, 4), 5)}, "llama")
    segments = [labels(1, 2), Segment("x", torch.arange(64).view(2, 32) % 7, (2, 4, 4))]
    options = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=model.new_modules())
    adapted = get_peft_model(model, options).train()
    whole = adapted(segments).loss
    assert not calls
    monkeypatch.setattr(chunked, "LIMIT", 80)
    loss = adapted(segments).loss
    torch.testing.assert_close(loss, whole)
    loss.backward()
    (weight,) = (x for name, x in adapted.named_parameters() if name.endswith("x.modules_to_save.default.proj.weight"))
    assert calls and weight.grad is not None and weight.grad.any()


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
