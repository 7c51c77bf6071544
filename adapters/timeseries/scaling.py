"""Location and scale of series, from what is observed of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# A spread below this fraction of the level is what rounding leaves of a constant series in float64.
ROUNDING = 64 * torch.finfo(torch.float64).eps
# The interquartile range of a normal distribution in standard deviations.
NORMAL_IQR = 1.3489795003921634


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and population variance of what is not NaN along the last dimension; NaN where nothing is."""
    mean = x.nanmean(-1)
    return mean, (x - mean[..., None]).square().nanmean(-1)


def _standard(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    mean, variance = _moments(x)
    return mean, (variance + eps).sqrt()


def _robust(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    lower, median, upper = _quantiles(x, (0.25, 0.5, 0.75))
    return median, (upper - lower) / NORMAL_IQR


def _mean_abs(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(x[..., 0]), x.abs().nanmean(-1)


def _none(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return torch.zeros_like(x[..., 0]), torch.ones_like(x[..., 0])


def _quantiles(x: Tensor, levels: Sequence[float]) -> list[Tensor]:
    """As torch.nanquantile with linear interpolation along the last dimension, but for inputs of any size."""
    missing = x.isnan()
    # To the end. NaN would go there, too, but not in an exported graph: ONNX says nothing of where it sorts NaN.
    ordered = x.masked_fill(missing, torch.inf).sort(-1).values
    last = ((~missing).sum(-1, keepdim=True) - 1).clamp(min=0).double()
    found = []
    for level in levels:
        place = last * level
        below = ordered.gather(-1, place.floor().long())
        above = ordered.gather(-1, place.ceil().long())
        found.append(torch.lerp(below, above, place - place.floor()).squeeze(-1))
    return found


# [..., L] float64 with NaN for missing, eps -> loc [...], scale [...]
SCALINGS: dict[str, Callable[[Tensor, float], tuple[Tensor, Tensor]]] = {
    "standard": _standard,
    "robust": _robust,
    "mean_abs": _mean_abs,
    "none": _none,
}


def location_scale(x: Tensor, scaling: str, eps: float = 0.0) -> tuple[Tensor, Tensor]:
    """loc and scale of `x` [..., L] (float64, NaN is missing) by the rules of `TimeSeriesAdapter`: [...] each."""
    loc, scale = SCALINGS[scaling](x, eps)
    loc = loc.nan_to_num(nan=0.0)  # nothing observed
    if scale.isinf().any():
        raise ValueError(
            f"values of row {first_row(scale.isinf())} of the batch overflow float64 when squared; rescale the data"
        )
    is_constant = ~(scale > ROUNDING * loc.abs())  # also true of NaN
    return loc, scale.masked_fill(is_constant, 1.0)


def first_row(mask: Tensor) -> int:
    """The first row [B, ...] that is True anywhere."""
    return int(mask.nonzero()[0, 0])
