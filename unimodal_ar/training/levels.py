"""Clipped noise levels, chosen by the variance of the loss (BD3-LM, arXiv 2503.09573, section 5)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor

from ..layout import Layout
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..noise import seeded
from ..objectives.levels import UniformLevels
from ..segment import Segment

Ranges = Sequence[tuple[float, float]]


def candidate_ranges(size: int, width: float = 0.5) -> list[tuple[float, float]]:
    """All ranges (low, high) in tenths that are at least `width` wide, the widest first.

    Where they would leave a block of `size` elements with one number of masks they are left out: with both of two
    always hidden, say, nothing varies, and what they tell of each other is never learned."""
    tenths = [(low, high) for low in range(10) for high in range(low + 1, 11) if high - low >= 10 * width - 1e-6]
    varied = [(low, high) for low, high in tenths if low * size // 10 + 1 < -(-high * size // 10)]
    return [(low / 10, high / 10) for low, high in sorted(varied, key=lambda ends: ends[0] - ends[1])]


def largest_block(model: UnimodalARForGeneration, modality: str) -> int:
    """Elements of the largest block on the modality's grid."""
    return max(model.layout(modality, model.options[modality].grid).block_sizes)


def search_levels(
    model: UnimodalARForGeneration,
    batches: Iterable[Mapping[str, Sequence[Segment]]],
    candidates: Ranges | None = None,
    modality: str | None = None,
    draws: int = 4,
    seed: int = 0,
) -> list[tuple[float, float, float]]:
    """How much the loss of an example varies with the noise, for each range to which noise levels could be clipped.

    The gradient varies with the loss, which is cheaper to look at (section 5.2 of the paper). Blocks have levels of
    their own and do not see each other's noise, so the variance of an example's loss is the sum of its blocks'. These
    are measured once, in strata between all ends of ranges, and then put together for each range.

    Args:
        model: half trained, at least: what matters are the losses that it has now.
        batches: of `{"segments": [...]}`.
        candidates: (low, high) with 0 <= low < high <= 1; None: `candidate_ranges` of the largest block.
        modality: whose; may be left out where the model has only one with such levels.
        draws: of noise, for every example in every stratum; at least 2.
        seed: of the noise.

    Returns:
        (low, high, variance) of each candidate, in the order given: Var of the example's summed element losses (nats
        squared, for heads with a likelihood), averaged over the examples.

    Raises:
        ValueError: a modality without masks or whose blocks are of one, a range that is none, no batches, draws < 2.
    """
    name = _modality(model, modality)
    ranges = candidate_ranges(largest_block(model, name)) if candidates is None else list(candidates)
    for low, high in ranges:
        if not 0 <= low < high <= 1:
            raise ValueError(f"candidates hold {(low, high)}; a range is (low, high) with 0 <= low < high <= 1")
    if not ranges or draws < 2:
        raise ValueError(f"candidates are {ranges} and draws is {draws}; there must be a range and at least 2 draws")
    ends = sorted({end for ends in ranges for end in ends})
    strata = list(pairwise(ends))
    sums, examples = torch.zeros(len(ranges), dtype=torch.float64), 0
    with _measuring(model, name) as noise, torch.no_grad(), seeded(seed, model.device):
        for batch in batches:
            segments = [segment.to(model.device) for segment in batch["segments"]]
            losses = []
            for low, high in strata:
                noise.levels = UniformLevels(low=low, high=high)
                losses.append(torch.stack([_block_losses(model, segments, name) for _ in range(draws)]))
            for number, (low, high) in enumerate(ranges):
                inside = [i for i, stratum in enumerate(strata) if low <= stratum[0] and stratum[1] <= high]
                sums[number] += _variance([losses[i] for i in inside], [strata[i] for i in inside])
            examples += segments[0].batch_size
    if not examples:
        raise ValueError("batches is empty; variances need at least one example")
    variances = (sums / examples).tolist()
    return [(low, high, variance) for (low, high), variance in zip(ranges, variances, strict=True)]


def levels_problem(options: ModalityOptions) -> str | None:
    """Why there are no ranges of levels to choose from for a modality, as the end of a sentence; None: there are."""
    objective: Any = options.built_objective
    if objective is None or objective.likelihood != "bound":
        return f"is for block_diffusion with mask noise; the objective is {options.objective}"
    if (objective.options.levels or {"kind": "uniform"})["kind"] != "uniform":
        return f"chooses ranges of uniform levels; objective.levels is {objective.options.levels}"
    layout = options.layout
    with torch.random.fork_rng(devices=[]):  # of a random order only the sizes are of interest
        if max(Layout.from_grid(options.grid, layout.order, layout.block).block_sizes) == 1:
            return "has nothing to choose; every block of the layout is a single element"
    return None


def clip_levels(model: UnimodalARForGeneration, modality: str, low: float, high: float) -> None:
    """Has training draw the noise levels of a modality from U(low, high); they are no part of the saved model."""
    cast(Any, model.objectives[modality]).noise.levels = UniformLevels(low=low, high=high)


def _modality(model: UnimodalARForGeneration, modality: str | None) -> str:
    problems = {name: levels_problem(model.options[name]) for name in model.heads}
    able = [name for name, problem in problems.items() if problem is None]
    if modality is None and len(able) == 1:
        return able[0]
    if modality in able:
        return modality
    why = f", which {problems[modality]}" if modality in problems else ""
    raise ValueError(f"modality is {modality!r}{why}; it must be one of {able}")


@contextmanager
def _measuring(model: UnimodalARForGeneration, name: str) -> Iterator[Any]:
    """The noise of a modality, drawn as in training, while everything else is in evaluation mode."""
    modes = [(module, module.training) for module in model.modules()]
    noise = cast(Any, model.objectives[name]).noise
    levels = noise.levels
    model.eval()
    model.embeddings[name].training = True  # which is what decides on levels (and context noise)
    try:
        yield noise
    finally:
        noise.levels = levels
        for module, training in modes:
            module.training = training


def _block_losses(model: UnimodalARForGeneration, segments: Sequence[Segment], name: str) -> Tensor:
    """[B, blocks] float64."""
    losses = model(segments=segments).element_losses[name].double()
    targets = [segment for segment in segments if segment.target and segment.modality == name]
    sums = []
    for segment, own in zip(targets, losses.split([s.num_elements for s in targets], 1), strict=True):
        layout = model.layout(name, segment.grid)
        blocks = own.new_zeros(len(own), layout.num_blocks)
        sums.append(blocks.index_add(1, layout.block, layout.gather(own)))
    return torch.cat(sums, 1)


def _variance(losses: list[Tensor], strata: Ranges) -> float:
    """Of losses [draws, B, blocks] in each stratum the variance over the strata's union, summed over B and blocks."""
    x = torch.stack(losses)
    widths = x.new_tensor([high - low for low, high in strata])
    share = widths / widths.sum()
    mean = torch.einsum("s,sdbk->bk", share, x) / x.shape[1]
    around = torch.einsum("s,sdbk->", share, (x - mean) ** 2) / x.shape[1]
    # The mean is itself of these draws: by its own variance their squares around it are too small.
    return float(around + torch.einsum("s,sbk->", share**2, x.var(1)) / x.shape[1])
