"""One step of the backbone over a static cache as a program of `torch.export`, which runs with torch alone.

Shapes: B batch, n new positions, S places of the cache, H width, G key-value heads, D head size, C conditioning size.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..backbone import DecodingCache, HostedBackbone
from ..masks import AttentionPattern
from ..modeling import UnimodalARForGeneration
from ..schema import positive_int
from ..sequence import Inputs
from .folder import fill, new_folder

PROGRAM, SHAPES = "step.pt2", "step.json"
KERNELS = ("eager", "sdpa")
"""Attention functions that `torch.export` can follow and that take any mask."""


@torch.no_grad()
def export_step(
    model: UnimodalARForGeneration,
    out: str | os.PathLike[str],
    cache_length: int,
    batch_size: int = 1,
    positions: int = 1,
) -> dict[str, Any]:
    """Writes the step `(embeds, coords, place, keys, values) -> (hidden, keys, values)` to step.pt2 in the folder
    `out`, and its shapes to step.json:

    - embeds [B, n, H]: what the model's embedding makes of what the new positions read; they are one block: each sees
      all n of them and what is cached (so for a next-token model n is 1);
    - coords [B, n, 3] long: (t, h, w) where each of them is, as the objective places it;
    - place [] long: how many positions are cached; the new ones are numbered from it, and place + n must be <= S;
    - conditioning [B, 1, C]: for backbones with adaptive norms only, in front of the keys;
    - keys, values: the cache, per layer [B, G, S, D]; zeros at first. The step returns them with the new positions
      written into them, and leaves its inputs as they are;
    - hidden [B, n, H]: what the model's head reads.

    `torch.export.load("step.pt2").module()` runs it; the numbers B, n and S are fixed. No position may be padding.

    Args:
        out: a new or an empty folder.
        cache_length: S.
        batch_size: B.
        positions: n.

    Returns:
        What step.json holds.

    Raises:
        ValueError: the backbone keeps a state instead of a cache, its attention function cannot be exported, or its
            learned positions end before S.
    """
    batch, length = positive_int("batch_size", batch_size), positive_int("cache_length", cache_length)
    positions = positive_int("positions", positions)
    if positions > length:
        raise ValueError(f"positions is {positions}; it must be at most the cache_length, {length}")
    folder = new_folder(out)
    _check(model)
    training = model.training
    step = _Step(model.eval().backbone, length).eval()
    examples = _examples(model, batch, positions, length)
    program = program_of(step, tuple(examples.values()), model)
    model.train(training)
    hidden = {"hidden": examples["embeds"], "keys": examples["keys"], "values": examples["values"]}
    shapes = {
        "program": PROGRAM,
        "torch": torch.__version__,
        "device": str(model.device),
        **{"batch_size": batch, "positions": positions, "cache_length": length},
        "inputs": [_described(name, example) for name, example in examples.items()],
        "outputs": [_described(name, example) for name, example in hidden.items()],
    }
    return fill(folder, lambda partial: torch.export.save(program, partial / PROGRAM), SHAPES, shapes)


def program_of(module: nn.Module, examples: tuple[Any, ...], model: UnimodalARForGeneration) -> Any:
    """`module`, a part of `model`, as torch.export traces it. Left out is what would be saved with it: the examples (a
    whole cache, pickled), and for each operation the lines of code that it came from, with their place on this machine.
    """
    with _without_token_table(model):
        program: Any = torch.export.export(module, examples)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if hasattr(part, "graph") else ():
            node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


@contextmanager
def _without_token_table(model: UnimodalARForGeneration) -> Iterator[None]:
    """Takes the token table out of a hosted body: values enter as embeddings, so a program has no use for it."""
    if not isinstance(model.backbone, HostedBackbone):
        yield
        return
    body = model.backbone.model
    table = body.get_input_embeddings()
    body.set_input_embeddings(nn.Identity())
    try:
        yield
    finally:
        body.set_input_embeddings(table)


@dataclass(frozen=True, kw_only=True)
class FixedPattern(AttentionPattern):
    """A mask [1 or B, 1, q, k] that is there already, True = may attend."""

    mask: Tensor

    def dense(self) -> Tensor:
        return self.mask

    def resolve(self, implementation: str) -> tuple[Any, bool]:
        return self.mask, False


def fixed_pattern(mask: Tensor) -> FixedPattern:
    """The pattern of `mask`. All keys count as valid one by one: backbones then ask for the mask, whatever else a
    pattern may say (they would put a causal mask, or none, in the place of some)."""
    batch, queries, keys = len(mask), mask.shape[-2], mask.shape[-1]
    valid = torch.ones(batch, keys, dtype=torch.bool, device=mask.device)
    return FixedPattern(torch.zeros(keys, dtype=torch.long, device=mask.device), queries, valid=valid, mask=mask)


class _Cache:
    """What a body asks of a cache: every new key goes to its own place of a tensor that does not grow."""

    is_compileable = True

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], places: Tensor) -> None:
        self.keys, self.values, self.places = list(keys), list(values), places

    def update(self, keys: Tensor, values: Tensor, layer_idx: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        for cached, new in ((self.keys, keys), (self.values, values)):
            cached[layer_idx] = cached[layer_idx].index_copy(2, self.places, new)
        return self.keys[layer_idx], self.values[layer_idx]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 0  # bodies count positions from it, unless they are told, as here


class _Step(nn.Module):
    """See `export_step`."""

    def __init__(self, backbone: Any, length: int) -> None:
        super().__init__()
        self.backbone, self.length = backbone, length

    def forward(self, embeds: Tensor, coords: Tensor, place: Tensor, *cached: Any) -> tuple[Any, ...]:
        *conditioning, keys, values = cached
        n = embeds.shape[1]
        places = place + torch.arange(n, device=embeds.device)
        seen = torch.arange(self.length, device=embeds.device) < place + n
        pattern = fixed_pattern(seen.expand(1, 1, n, -1))
        cache = _Cache(keys, values, places)
        inputs = Inputs(embeds, coords, places[None], pattern, self.length)
        hidden = self.backbone(inputs, cache, conditioning[0] if conditioning else None)
        return hidden, cache.keys, cache.values


def _check(model: UnimodalARForGeneration) -> None:
    backbone = model.backbone
    if backbone.obstacle is not None:
        raise ValueError(f"{backbone.obstacle}; only a backbone with attention in every layer has a static cache")
    check_kernel(model)


def check_kernel(model: UnimodalARForGeneration) -> None:
    """Raises ValueError where the backbone's attention function cannot be exported."""
    kernel = cast(Any, model.backbone.model).config._attn_implementation or "eager"
    if kernel not in KERNELS:
        raise ValueError(f"attn_implementation is {kernel!r}; for export it must be one of {list(KERNELS)}")


def _examples(model: UnimodalARForGeneration, batch: int, positions: int, length: int) -> dict[str, Any]:
    """Inputs of the step, by name."""
    width, device = model.config.hidden_size, model.device
    dtype = next(model.embeddings.parameters()).dtype
    embeds = torch.zeros(batch, positions, width, dtype=dtype, device=device)
    coords = torch.zeros(batch, positions, 3, dtype=torch.long, device=device)
    examples: dict[str, Any] = {"embeds": embeds, "coords": coords, "place": torch.tensor(0, device=device)}
    size = getattr(model.config.backbone, "conditioning_size", None)
    if size is not None:
        examples["conditioning"] = torch.zeros(batch, 1, size, dtype=dtype, device=device)
    # How large keys are each body knows for itself: they are read off a cache that it has filled.
    cache = DecodingCache()
    pattern = AttentionPattern(torch.zeros(1, dtype=torch.long, device=device), 1, sequential=True, single=True)
    single = Inputs(embeds[:, :1], coords[:, :1], coords[:, :1, 0], pattern, 1)
    model.backbone(single, cache, examples.get("conditioning"))
    for name in ("keys", "values"):
        found = [getattr(layer, name) for layer in cache.layers]
        examples[name] = [x.new_zeros(batch, x.shape[1], length, x.shape[3]) for x in found]
    return examples


def _described(name: str, example: Any) -> dict[str, Any]:
    layers = {"layers": len(example)} if isinstance(example, list) else {}
    shapes = [list(x.shape) for x in example] if layers else list(example.shape)
    if layers and all(shape == shapes[0] for shape in shapes):
        shapes = shapes[0]
    first = example[0] if layers else example
    return {"name": name, "dtype": str(first.dtype).removeprefix("torch."), **layers, "shape": shapes}
