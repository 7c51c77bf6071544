"""Toy models and the few ways the tests of the core look into them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from scipy import stats
from torch import Tensor

from unimodal_ar import Layout, Segment, UnimodalARConfig, UnimodalARForGeneration
from unimodal_ar.objectives.noise import Noisy
from unimodal_ar.sequence import Inputs

P_VALUE = 1e-4  # a goodness-of-fit test with a fixed seed fails below it
WIDTH = 32


class Vectors(NamedTuple):
    """What an original implementation computed: tensors by "weights.NAME", "in.NAME", "out.NAME", and its arguments."""

    tensors: dict[str, Tensor]
    args: dict[str, Any]

    def weights(self) -> dict[str, Tensor]:
        return {k.removeprefix("weights."): v for k, v in self.tensors.items() if k.startswith("weights.")}


def read_vectors(shared: Path, name: str, **args: Any) -> Vectors:
    """The vectors of a system; `args` go over its own arguments."""
    path = shared / "vectors" / f"{name}.safetensors"
    with safe_open(path, "pt") as file:
        stored = json.loads(file.metadata()["args"])
    return Vectors(load_file(path), stored | args)


def toy_backbones() -> dict[str, dict[str, Any]]:
    """Tiny configurations of the bodies that every invariant is checked on."""
    small = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
    grouped = small | dict(num_key_value_heads=2)
    return {
        "native": dict(model_type="unimodal_ar_decoder", **grouped),
        "llama": dict(model_type="llama", vocab_size=8, **grouped),
        # GPT-2's default ids of special tokens lie outside a vocabulary of 8.
        "gpt2": dict(
            model_type="gpt2", n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=8, bos_token_id=0, eos_token_id=0
        ),
        "qwen3": dict(model_type="qwen3", vocab_size=8, head_dim=8, **grouped),
    }


BACKBONES = list(toy_backbones())


def perturb(module: torch.nn.Module, spread: float, seed: int = 0) -> None:
    """Moves every parameter, so that none is zero or symmetric and no test passes for that reason."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(spread * torch.randn(parameter.shape, generator=generator))


def build(
    modalities: dict[str, dict[str, Any]], backbone: Any = "native", spread: float = 0.3, seed: int = 0, **native: Any
) -> Any:
    """A toy model in evaluation mode. `backbone`: a name of `toy_backbones`, or a configuration; `native`: changes to
    the native one."""
    torch.manual_seed(seed)
    config: Any = {**toy_backbones()[backbone], **native} if isinstance(backbone, str) else backbone
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=config, modalities=modalities)).eval()
    perturb(model, spread, seed)
    return model


def series(
    dim: int = 3, grid: Sequence[int] = (6, 1, 1), block: Any = 1, order: str = "raster", **more: Any
) -> dict[str, Any]:
    return {
        "element": {"kind": "continuous", "dim": dim},
        "grid": tuple(grid),
        "layout": {"order": order, "block": block},
        "head": {"kind": "regression"},
    } | more


def codes(
    vocab_size: int = 3, grid: Sequence[int] = (4, 1, 1), block: Any = 1, order: str = "raster", **more: Any
) -> dict[str, Any]:
    return {
        "element": {"kind": "discrete", "vocab_size": vocab_size},
        "grid": tuple(grid),
        "layout": {"order": order, "block": block},
        "head": {"kind": "categorical"},
    } | more


def diffusion(noise: str, **options: Any) -> dict[str, Any]:
    """What makes a modality's objective block diffusion."""
    return {"objective": {"kind": "block_diffusion", "noise": noise, **options}}


def label(vocab_size: int = 5, **more: Any) -> dict[str, Any]:
    """A modality that is only ever context."""
    return {"element": {"kind": "discrete", "vocab_size": vocab_size}, "grid": (1, 1, 1)} | more


def labels(*values: int) -> Segment:
    return Segment("label", torch.tensor(values)[:, None], (1, 1, 1), target=False)


@contextmanager
def hidden_states(model: Any) -> Iterator[list[Tensor]]:
    """Collects what the backbone returns, call by call: [B, positions, H]."""
    states: list[Tensor] = []
    hook = model.backbone.register_forward_hook(lambda module, args, output: states.append(output))
    try:
        yield states
    finally:
        hook.remove()


@contextmanager
def backbone_inputs(model: Any) -> Iterator[list[Inputs]]:
    """Collects what the backbone is called with, call by call."""
    inputs: list[Inputs] = []
    hook = model.backbone.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    try:
        yield inputs
    finally:
        hook.remove()


def made_noise(noise: str, values: Tensor, layout: Layout, seed: int = 0) -> Noisy:
    """Noise on vectors [B, N, D] that has nothing to do with them: some are masked, or every block has a time."""
    generator = torch.Generator().manual_seed(seed)
    rows, n, _ = values.shape
    drawn = torch.randn(values.shape, generator=generator)
    if noise == "mask":
        masked = torch.rand(rows, n, generator=generator) < 0.5
        return Noisy(drawn, masked=masked, weights=masked.float())
    level = torch.rand(rows, layout.num_blocks, generator=generator)[:, layout.block]
    return Noisy(drawn, level=level, targets=torch.randn(values.shape, generator=generator))


def lengthened(noisy: Noisy, extra: int) -> Noisy:
    """Noise with `extra` places in front of which nothing is known."""
    longer = {
        name: torch.cat([torch.zeros(len(x), extra, *x.shape[2:], dtype=x.dtype), x], 1)
        for name, x in vars(noisy).items()
        if x is not None
    }
    return replace(noisy, **longer)


@contextmanager
def noise_as(model: Any, noisy: Noisy, name: str = "x") -> Iterator[None]:
    """In place of the noise that a forward pass would draw."""
    noise = model.objectives[name].noise
    noise.add = lambda segment, layout, training: noisy
    try:
        yield
    finally:
        del noise.add


def predicting(layout: Layout, first: int = 0) -> list[int]:
    """Which positions of a next-block segment predict, in generation order: before those of a block stand positions
    that show what none of them reads of the block before. `first`: the first block that is predicted."""
    places: list[int] = []
    offset = 0
    for block in range(first, layout.num_blocks):
        read = set(layout.source[layout.block == block].tolist())
        offset += len(set(layout.index[layout.block == block - 1].tolist()) - read)
        size = layout.block_sizes[block]
        places += range(offset, offset + size)
        offset += size
    return places


def full_hidden(model: Any, segments: Sequence[Segment]) -> Tensor:
    """The hidden states of one forward pass over all positions."""
    with hidden_states(model) as states:
        model(segments)
    (hidden,) = states
    return hidden


def all_sequences(vocab_size: int, length: int) -> Tensor:
    """[V^N, N]: every sequence of codes."""
    return torch.tensor(list(itertools.product(range(vocab_size), repeat=length)))


def frequencies(drawn: Tensor, vocab_size: int) -> np.ndarray:
    """How often each of `all_sequences` occurs among [S, N]."""
    place = vocab_size ** torch.arange(drawn.shape[1] - 1, -1, -1)
    return torch.bincount((drawn * place).sum(1), minlength=vocab_size ** drawn.shape[1]).numpy()


def chi_square(observed: np.ndarray, probability: np.ndarray) -> float:
    """P-value of the counts under the probabilities; cells with an expected count below 5 are pooled."""
    assert abs(probability.sum() - 1) < 1e-4
    probability = probability / probability.sum()
    expected = probability * observed.sum()
    if observed[probability == 0].any():
        return 0.0
    small = expected < 5
    pooled = [(observed[~small], expected[~small]), ([observed[small].sum()], [expected[small].sum()])]
    counts, expectation = (np.concatenate(column) for column in zip(*pooled, strict=True))
    if expectation[-1] < 5 and len(expectation) > 1:  # the pool itself may still be small
        counts = np.append(counts[:-2], counts[-2] + counts[-1])
        expectation = np.append(expectation[:-2], expectation[-2] + expectation[-1])
    assert len(counts) > 1, "the joint is too concentrated to be tested"
    return float(stats.chisquare(counts, expectation).pvalue)
