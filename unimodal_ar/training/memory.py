"""What a computation takes: memory at its highest, what is kept for its backward pass, floating point operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


class PeakMemory:
    """Within, memory is watched; afterwards `bytes` says how much tensors took at their highest, above what was there
    before.

    On CUDA torch's allocator knows. On the CPU the storages of what operations return are added up, as long as they
    live: without what a kernel needs for itself, and what torch.compile has compiled runs as it was written. (The
    profiler knows both, but nothing keeps it from writing to stderr. The process takes more: on Linux malloc keeps
    pieces between tensors that live on.)
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.bytes = device, 0

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._storages = _Storages()
            self._storages.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._storages.__exit__(kind, error, trace)
            self.bytes = self._storages.highest


class _Storages(TorchDispatchMode):
    """Adds up the storages that operations make; what an operation is given and none has made was there before.

    Weak references keep addresses, by which storages are known, from being used again.
    """

    def __init__(self) -> None:
        super().__init__()
        self.highest, self._sum = 0, 0
        self._before: dict[int, StorageWeakRef] = {}
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for storage in _storages((args, kwargs)):
            if storage._cdata not in self._made:
                self._before.setdefault(storage._cdata, StorageWeakRef(storage))
        result = func(*args, **(kwargs or {}))
        for storage in _storages(result):
            if storage._cdata not in self._before:
                _, known = self._made.get(storage._cdata, (None, 0))
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self._sum += storage.nbytes() - known
        if self._sum > self.highest:  # if none is gone
            self._made = {key: made for key, made in self._made.items() if not made[0].expired()}
            self._sum = sum(size for _, size in self._made.values())
            self.highest = max(self.highest, self._sum)
        return result


def _storages(values: Any) -> Iterator[Any]:
    return (x.untyped_storage() for x in tree_iter(values) if isinstance(x, Tensor) and x.device.type != "meta")


def peak_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that `step` takes at its highest, above what is there before it (see `PeakMemory`)."""
    with PeakMemory(device) as memory:
        step()
    return memory.bytes


def kept_memory(forward: Callable[[], object], without: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps for the backward pass of what `forward` returns.

    Storages that several operations keep count once, those of `without` (parameters) not at all. Of layers that are
    checkpointed their inputs count, which are all that is kept.
    """
    others = {x.untyped_storage()._cdata for x in without}
    kept: dict[int, tuple[StorageWeakRef, int]] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in others:  # a weak reference: what an operation kept may be gone when all is done
            kept[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return x.detach()  # what knows how it was made would keep itself alive

    with saved_tensors_hooks(pack, lambda x: x), _FlexAttention():
        result = forward()
    total = sum(size for reference, size in kept.values() if not reference.expired())
    del result  # not before: what is kept goes with it
    return total


def count_flops(run: Callable[[], object]) -> int:
    """Floating point operations of the matrix products, convolutions and attention in `run`, a multiplication and an
    addition counted as two. (Attention counts all pairs of queries and keys that its kernel is given, masked or not;
    FlexAttention is given those of the tiles that it does not skip.)
    """
    with FlopCounterMode(display=False, custom_mapping=_attention_flops()) as counter, _FlexAttention() as flex:
        run()
    return counter.get_total_flops() + flex.flops


class _FlexAttention:
    """Within, FlexAttention computes nothing, but keeps for its backward pass what it would keep, and counts what it
    would compute. (Operations are counted in a mode in which it cannot run, and on the CPU it has no backward pass.)"""

    def __init__(self) -> None:
        self.flops = 0

    def __enter__(self) -> _FlexAttention:
        ALL_ATTENTION_FUNCTIONS["flex_attention"] = self._attend  # an override of what all have by `register`
        return self

    def __exit__(self, *_: object) -> None:
        del ALL_ATTENTION_FUNCTIONS["flex_attention"]

    def _attend(self, module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **_: Any) -> tuple[Tensor, None]:
        """As transformers has it: q [B, A, L, D] and k, v [B, groups, S, D] to [B, L, A, D]."""
        heads = q.shape[1]
        if heads & (heads - 1):  # of no power of two its kernel shares no keys
            k, v = (x.repeat_interleave(heads // x.shape[1], 1) for x in (k, v))
        pairs = len(q) * heads * _pairs(q, k, mask)
        return _Kept.apply(q, k, v, pairs, self).transpose(1, 2), None  # type: ignore[no-untyped-call]


class _Kept(torch.autograd.Function):
    """FlexAttention without its arithmetic."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, pairs: float, counter: _FlexAttention) -> Tensor:
        out, sums = q.new_zeros(*q.shape[:3], v.shape[3]), q.new_zeros(q.shape[:3], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums)
        ctx.pairs, ctx.counter = pairs, counter
        counter.flops += round(2 * pairs * (q.shape[3] + v.shape[3]))
        return out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Any, ...]:
        q, k, v, *_ = ctx.saved_tensors
        ctx.counter.flops += round(2 * ctx.pairs * (3 * q.shape[3] + 2 * v.shape[3]))
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v), None, None


def _pairs(q: Tensor, k: Tensor, mask: Any) -> float:
    """Of query and key, for which a head computes a score: those of the tiles that the mask lets through."""
    if not hasattr(mask, "kv_num_blocks"):
        return q.shape[2] * k.shape[2]
    full = 0 if mask.full_kv_num_blocks is None else int(mask.full_kv_num_blocks.sum())
    tiles, masks = int(mask.kv_num_blocks.sum()) + full, mask.kv_num_blocks[..., 0].numel()
    return tiles / masks * mask.BLOCK_SIZE[0] * mask.BLOCK_SIZE[1]


def _attention_flops() -> dict[Any, Any]:
    """torch's counter knows no kernel of the CPU, and none that shares keys among queries' heads."""
    known: dict[Any, Any] = {}
    for kernel in ("flash_attention_for_cpu", "flash_attention", "efficient_attention", "cudnn_attention"):
        for ending, count in (("", _forward_flops), ("_backward", _backward_flops)):
            operation = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{ending}", None)
            known |= {} if operation is None else {operation: count}
    return known


def _forward_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of shapes [B, A, L, D]: scores, and what they weigh."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (query[3] + value[3])


def _backward_flops(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Of the scores, once more, and of the gradients of scores, queries, keys and values."""
    return 2 * query[0] * query[1] * query[2] * key[2] * (3 * query[3] + 2 * value[3])
