"""Exact likelihoods of whole examples: bits per dimension of codes, nats per dimension of densities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from ..modeling import UnimodalARForGeneration
from ..objectives import NextBlock
from ..schema import DiscreteElement
from ..segment import Segment

Batches = Iterable[Mapping[str, Sequence[Segment]]]


def bits_per_dimension(model: UnimodalARForGeneration, batches: Batches, dimensions: int) -> float:
    """-log2 p(codes) per dimension, averaged over the examples of `batches`.

    For codes that hold all of the raw data (an image's 256 levels) this is the exact negative log-likelihood of the
    data, and comparable between models. For codes that lose something (a palette, a tokenizer) it is the rate of the
    codes: comparable between models of the same codes only. Under a random order it is that of the fixed order in which
    the model draws.

    Args:
        batches: of `{"segments": [...]}`, as training's datasets collate them. Every segment with `target=True` counts.
        dimensions: raw values per example, an image's H * W * C.

    Raises:
        ValueError: an element that is not discrete (its density is no probability of the data, see
            `nats_per_dimension`), and as `nats_per_dimension`.
    """
    return _per_dimension(model, batches, dimensions, codes=True) / math.log(2)


def nats_per_dimension(model: UnimodalARForGeneration, batches: Batches, dimensions: int) -> float:
    """-log p(values) per dimension, averaged over the examples of `batches`; arguments as in `bits_per_dimension`.

    Of a continuous element this is a negative log-density in the units of its values, and so may be below 0. (Pixels
    in [-1, 1] are 127.5 times smaller than in 0..255: ln(127.5) more would be the density of those.) Pixels are whole
    numbers, so a density may rise without bound on them: compare it with densities of the same values only, never with
    bits per dimension of codes.

    Raises:
        ValueError: a head without a likelihood, an objective other than next-block or a modality without a start
            vector (neither gives the likelihood of a whole example), values that are not observed, no examples,
            dimensions < 1.
    """
    return _per_dimension(model, batches, dimensions, codes=False)


def _per_dimension(model: UnimodalARForGeneration, batches: Batches, dimensions: int, codes: bool) -> float:
    if dimensions < 1:
        raise ValueError(f"dimensions is {dimensions}; it must be at least 1, the raw values per example")
    total, examples = 0.0, 0
    modes = [(module, module.training) for module in model.modules()]  # a part may be frozen on its own
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                segments = [segment.to(model.device) for segment in batch["segments"]]
                for segment in segments:
                    if segment.target:
                        _check(model, segment, codes)
                total += float(_nats(model, segments))
                examples += segments[0].batch_size
    finally:
        for module, training in modes:
            module.training = training
    if not examples:
        raise ValueError("batches is empty; a likelihood needs at least one example")
    return total / (examples * dimensions)


def _check(model: UnimodalARForGeneration, segment: Segment, codes: bool) -> None:
    """Raises ValueError where the losses of a target segment are not its likelihood, or not one of codes."""
    name = segment.modality
    head, objective = model.heads[name], model.objectives[name]
    if codes and not isinstance(model.options[name].element, DiscreteElement):
        raise ValueError(
            f"modality {name!r} is continuous, and its density is no probability of the raw data; "
            "bits per dimension are for codes, take nats_per_dimension"
        )
    if not hasattr(head, "log_prob"):
        raise ValueError(f"the head of modality {name!r} is a {type(head).__name__}, which has no likelihood")
    if not isinstance(objective, NextBlock):
        raise ValueError(
            f"the objective of modality {name!r} is {type(objective).__name__}; likelihoods are exact under next_block"
        )
    if model.options[name].start == "none":
        raise ValueError(f"modality {name!r} has no start vector; its first block has no likelihood")
    if segment.observed is not None and not bool(segment.observed.all()):
        raise ValueError(f"segment {name!r} holds values that are not observed; a likelihood is of whole examples")


def _nats(model: UnimodalARForGeneration, segments: Sequence[Segment]) -> Tensor:
    """Scalar, float64: the negative log-likelihood of all target segments, summed."""
    losses: dict[str, Tensor] = model(segments=segments).element_losses
    # A head's loss is a sum over an element's codes, but a mean over the values of a vector.
    elements = {name: model.options[name].element for name in losses}
    values = {name: 1 if isinstance(element, DiscreteElement) else element.dim for name, element in elements.items()}
    return torch.stack([loss.double().sum() * values[name] for name, loss in losses.items()]).sum()
