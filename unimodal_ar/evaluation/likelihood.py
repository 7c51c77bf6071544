"""Likelihoods of whole examples: bits per dimension of codes, nats per dimension of densities."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ranks
from ..modeling import UnimodalARForGeneration
from ..noise import seeded
from ..schema import DiscreteElement
from ..segment import Segment

Batches = Iterable[Mapping[str, Sequence[Segment]]]

DRAWS = 16
_APART = 1_000_003  # between the seeds of batches (torch looks at 32 bits of them)


@dataclass(frozen=True)
class Likelihood:
    """-log p of whole examples, averaged over them.

    Attributes:
        nats: per dimension.
        exact: it is the negative log-likelihood itself. Else `nats` estimates, without bias, an upper bound on it: the
            negative evidence lower bound of block diffusion with mask noise (BD3-LM, arXiv 2503.09573, equation 8).
        error: standard error of `nats` by the random masks (not by the choice of examples); 0 where it is exact.
    """

    nats: float
    exact: bool
    error: float

    @property
    def bits(self) -> float:
        return self.nats / math.log(2)

    @property
    def bits_error(self) -> float:
        return self.error / math.log(2)


def negative_log_likelihood(
    model: UnimodalARForGeneration, batches: Batches, dimensions: int, draws: int = DRAWS, seed: int = 0
) -> Likelihood:
    """The likelihood of the examples of `batches`: exact under next-block, a bound under block diffusion with masks.

    Args:
        batches: of `{"segments": [...]}`, as training's datasets collate them. Every segment with `target=True` counts.
        dimensions: raw values per example, an image's H * W * C.
        draws: random masks of every example from which a bound is estimated; at least 2.
        seed: of these masks.

    Raises:
        ValueError: a head or an objective without a likelihood, a modality without a start vector (whose first block
            has none), values that are not observed, no examples, dimensions < 1, draws < 2.
    """
    if dimensions < 1:
        raise ValueError(f"dimensions is {dimensions}; it must be at least 1, the raw values per example")
    if draws < 2:
        raise ValueError(f"draws is {draws}; it must be at least 2, random masks of every example")
    modes = [(module, module.training) for module in model.modules()]  # a part may be frozen on its own
    model.eval()

    def judged(numbered: tuple[int, Mapping[str, Sequence[Segment]]]) -> tuple[Tensor, int, bool]:
        """[draws] nats of a batch, summed; how many examples it has; whether the nats are exact."""
        number, batch = numbered
        segments = [segment.to(model.device) for segment in batch["segments"]]
        kinds = [_kind(model, segment) for segment in segments if segment.target]
        exact = all(kind == "exact" for kind in kinds)
        torch.manual_seed(seed + _APART * number)  # a stream of its own for each batch, whichever rank has it
        nats = torch.stack([_nats(model, segments) for _ in range(1 if exact else draws)])
        return nats.cpu().expand(draws).contiguous(), segments[0].batch_size, exact

    try:
        with torch.no_grad(), seeded(seed, model.device):
            found = ranks.share(judged, enumerate(batches))
    finally:
        for module, training in modes:
            module.training = training
    examples, exact = sum(count for _, count, _ in found), all(certain for _, _, certain in found)
    if not examples:
        raise ValueError("batches is empty; a likelihood needs at least one example")
    totals = torch.stack([nats for nats, _, _ in found]).sum(0) / (examples * dimensions)
    error = 0.0 if exact else float(totals.std() / math.sqrt(draws))
    return Likelihood(float(totals.mean()), exact, error)


def bits_per_dimension(
    model: UnimodalARForGeneration, batches: Batches, dimensions: int, draws: int = DRAWS, seed: int = 0
) -> float:
    """-log2 p(codes) per dimension, averaged over the examples of `batches`.

    For codes that hold all of the raw data (an image's 256 levels) this is the negative log-likelihood of the data, and
    comparable between models. For codes that lose something (a palette, a tokenizer) it is the rate of the codes:
    comparable between models of the same codes only. Under a random order it is that of the fixed order in which the
    model draws. Exact under next-block; under block diffusion an estimate of an upper bound (which of them, and how far
    off the estimate may be, tells `negative_log_likelihood`).

    Args:
        model, batches, dimensions, draws, seed: as in `negative_log_likelihood`.

    Raises:
        ValueError: an element that is not discrete (its density is no probability of the data, see
            `nats_per_dimension`), and as `negative_log_likelihood`.
    """
    return negative_log_likelihood(model, _of_codes(model, batches), dimensions, draws, seed).bits


def nats_per_dimension(
    model: UnimodalARForGeneration, batches: Batches, dimensions: int, draws: int = DRAWS, seed: int = 0
) -> float:
    """-log p(values) per dimension, averaged over the examples of `batches`; arguments as in `negative_log_likelihood`.

    As exact as bits per dimension. Of a continuous element this is a negative log-density in the units of its values,
    and so may be below 0. (Pixels in [-1, 1] are 127.5 times smaller than in 0..255: ln(127.5) more would be the
    density of those.) Pixels are whole numbers, so a density may rise without bound on them: compare it with densities
    of the same values only, never with bits per dimension of codes.

    Raises:
        ValueError: as `negative_log_likelihood`.
    """
    return negative_log_likelihood(model, batches, dimensions, draws, seed).nats


def _of_codes(model: UnimodalARForGeneration, batches: Batches) -> Batches:
    for batch in batches:
        for segment in batch["segments"]:
            if segment.target and not isinstance(model.options[segment.modality].element, DiscreteElement):
                raise ValueError(
                    f"modality {segment.modality!r} is continuous, and its density is no probability of the raw data; "
                    "bits per dimension are for codes, take nats_per_dimension"
                )
        yield batch


def _kind(model: UnimodalARForGeneration, segment: Segment) -> str:
    """What the losses of a target segment are: its likelihood, "exact" or a "bound"; raises ValueError where they are
    neither."""
    name = segment.modality
    head, objective = model.heads[name], model.objectives[name]
    if not hasattr(head, "log_prob"):
        raise ValueError(f"the head of modality {name!r} is a {type(head).__name__}, which has no likelihood")
    if objective.likelihood is None:
        raise ValueError(
            f"the objective of modality {name!r} is {model.options[name].objective}, which gives no likelihood; "
            "next_block and block_diffusion with mask noise do"
        )
    if model.options[name].start == "none":
        raise ValueError(f"modality {name!r} has no start vector; its first block has no likelihood")
    if segment.observed is not None and not bool(segment.observed.all()):
        raise ValueError(f"segment {name!r} holds values that are not observed; a likelihood is of whole examples")
    return objective.likelihood


def _nats(model: UnimodalARForGeneration, segments: Sequence[Segment]) -> Tensor:
    """Scalar, float64: the negative log-likelihood of all target segments, summed."""
    losses: dict[str, Tensor] = model(segments=segments).element_losses
    # A head's loss is a sum over an element's codes, but a mean over the values of a vector.
    elements = {name: model.options[name].element for name in losses}
    values = {name: 1 if isinstance(element, DiscreteElement) else element.dim for name, element in elements.items()}
    return torch.stack([loss.double().sum() * values[name] for name, loss in losses.items()]).sum()
