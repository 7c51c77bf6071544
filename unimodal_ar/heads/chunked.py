"""The log-probability of codes without the logits of all elements at once.

Logits and their gradients are by far the largest tensors of a training step where the vocabulary is large. Here they
are there for a run of elements at a time, and made once more in the backward pass. (Not by `torch.utils.checkpoint`,
which makes a gradient of the whole table for every run.)

Shapes: n elements, H width, K codes per element, V vocabulary size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

LIMIT = 2**24
"""Logits that are there at once: 64 MiB in float32, or a quarter of the table where that is more."""


def is_bare(module: nn.Module) -> bool:
    """Whether it is no more than a weight and a bias, which may be read without calling it. (Around others PEFT has put
    layers; hooks fetch the weight from where ZeRO 3 or accelerate keep it, make it anew, or change what comes out.)"""
    hooked = module._forward_pre_hooks or module._forward_hooks or "forward" in vars(module)
    return type(module) is nn.Linear and not hooked


def log_prob(hidden: Tensor, weight: Tensor, bias: Tensor | None, codes: Tensor) -> Tensor:
    """[n, K] log-probability in nats, in float32 or wider, of `codes` under softmax(hidden @ weight.T + bias).

    Args:
        hidden: [n, H].
        weight: [K * V, H], the rows of each code's logits after those of the code before.
        bias: [K * V] or None.
        codes: [n, K] long, each in 0..V-1.
    """
    kind = hidden.device.type
    computed = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype
    with torch.autocast(kind, enabled=False):
        return _LogProb.apply(hidden.to(computed), weight, bias, codes)


class _LogProb(torch.autograd.Function):
    """Its products are in the dtype of `hidden`; gradients of weight and bias are summed up in float32 or wider."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, codes: Tensor) -> Tensor:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        totals, picked = (torch.empty(codes.shape, dtype=wide, device=hidden.device) for _ in range(2))
        table, shift = _as(hidden, weight, bias)
        for run in _runs(hidden, weight):
            logits = _logits(hidden[run], table, shift, codes.shape[1])
            totals[run] = logits.logsumexp(-1)
            picked[run] = logits.gather(-1, codes[run, :, None]).squeeze(-1)
        ctx.save_for_backward(hidden, weight, bias, codes, totals)
        return picked - totals

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        # `once_differentiable` would say nothing where `gradient` is a constant, and a penalty on gradients be wrong.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            raise RuntimeError(
                f"create_graph is True; the log-probability of more than {LIMIT} logits (heads.chunked.LIMIT) cannot "
                "be differentiated twice"
            )
        hidden, weight, bias, codes, totals = ctx.saved_tensors
        of_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        of_weight = _zeros(weight) if ctx.needs_input_grad[1] else None
        of_bias = _zeros(bias) if ctx.needs_input_grad[2] else None
        table, shift = _as(hidden, weight, bias)
        for run in _runs(hidden, weight):
            own = gradient[run, :, None]
            # d log p(c) / d logits = 1[c] - softmax
            change = _logits(hidden[run], table, shift, codes.shape[1]).sub_(totals[run, :, None]).exp_().mul_(-own)
            change = change.scatter_add_(-1, codes[run, :, None], own).flatten(1)
            if of_bias is not None:
                of_bias += change.sum(0)
            change = change.to(hidden.dtype)
            if of_hidden is not None:
                torch.mm(change, table, out=of_hidden[run])
            if of_weight is not None:
                _add_product(of_weight, change.T, hidden[run])
        # (Sums in bfloat16 would lose with every run what a single product does not.)
        of_weight, of_bias = (None if x is None else x.to(weight.dtype) for x in (of_weight, of_bias))
        return of_hidden, of_weight, of_bias, None


def _zeros(like: Tensor) -> Tensor:
    return torch.zeros_like(like, dtype=torch.promote_types(like.dtype, torch.float32))


def _runs(hidden: Tensor, weight: Tensor) -> list[slice]:
    rows, width = hidden.shape
    # Logits of width / 4 rows are a quarter of the table. With fewer rows the products would wait for the table, and
    # for its gradient, to be read and written.
    size = max(1, LIMIT // len(weight), width // 4)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def _as(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    return weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype)


def _logits(hidden: Tensor, table: Tensor, shift: Tensor | None, codes: int) -> Tensor:
    """[rows, K, V]."""
    raw = torch.nn.functional.linear(hidden, table, shift).unflatten(-1, (codes, -1))
    return raw.to(torch.promote_types(raw.dtype, torch.float32))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    if total.dtype == right.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right
