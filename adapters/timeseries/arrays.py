"""Arrays of series and covariates as tensors, with errors that say which is wrong where."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .scaling import first_row

Array = ArrayLike | Tensor


def stack_series(series: Sequence[Array]) -> Tensor:
    """Stacks unequal series, padded with NaN on the left so that their ends meet.

    Args:
        series: 1-D arrays [L_i], or covariates [L_i, F] with one F for all.

    Returns:
        float64 [B, max L] or [B, max L, F].

    Raises:
        ValueError: no series, or one that is not of a legal shape or dtype; the message names its position.
    """
    if len(series) == 0:
        raise ValueError("stack_series got no series; it must get at least one")
    tensors = [as_double(one, f"series {position}") for position, one in enumerate(series)]
    features = tensors[0].shape[1:]
    for position, tensor in enumerate(tensors):
        if tensor.dim() not in (1, 2) or tensor.shape[1:] != features:
            raise ValueError(
                f"series {position} has shape {tuple(tensor.shape)}; all must be [steps], or [steps, features] with "
                "equal features"
            )
    stacked = torch.full((len(tensors), max(map(len, tensors)), *features), torch.nan, dtype=torch.float64)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[row.shape[0] - len(tensor) :] = tensor
    return stacked


def last_steps(x: Tensor, length: int) -> Tensor:
    """The last `length` steps of [B, L, ...], filled up with NaN on the left where there are fewer."""
    missing = max(length - x.shape[1], 0)
    return torch.cat([x.new_full((x.shape[0], missing, *x.shape[2:]), torch.nan), x[:, -length:]], 1)


def check_known(known: Tensor, lookback: Tensor) -> None:
    """NaN is legal only before a series begins, where it is what `stack_series` has padded with."""
    begun = (~lookback.isnan()).cumsum(1) > 0
    ahead = torch.ones(len(known), known.shape[1] - begun.shape[1], dtype=torch.bool, device=begun.device)
    missing = known.isnan() & torch.cat([begun, ahead], 1)[..., None]
    if missing.any():
        raise ValueError(f"known_covariates has NaN in {place(missing)}; every step must be known")


def place(mask: Tensor) -> str:
    """The first True of [B, steps, features] in words."""
    row, step, feature = mask.nonzero()[0].tolist()
    return f"row {row} of the batch, step {step}, feature {feature}"


def as_batch(x: Array, name: str, legal: str) -> Tensor:
    """[B, steps] float64 without infinite values."""
    tensor = as_double(x, name)
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {legal} (lists: stack_series)")
    if tensor.isinf().any():
        raise ValueError(
            f"{name} is infinite in row {first_row(tensor.isinf())} of the batch; mark missing values with NaN"
        )
    return tensor


def as_double(x: Array, name: str) -> Tensor:
    """float64; whatever is not made of real numbers is an error that names its dtype."""
    if isinstance(x, Tensor):
        dtype, is_real = str(x.dtype), not x.is_complex()
    else:
        try:
            x = np.asarray(x)
        except ValueError:
            raise ValueError(f"{name} has rows of unequal length; stack_series pads them with NaN") from None
        dtype, is_real = str(x.dtype), x.dtype.kind in "biuf"
    if not is_real:
        raise ValueError(f"{name} has dtype {dtype}; it must be real numbers")
    # np.array copies: torch warns about the read-only arrays that pandas hands out.
    return x.double() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, dtype=np.float64))


def to_float(x: Tensor, name: str) -> Tensor:
    """float32 with 0 for NaN."""
    x = x.float().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    if x.isinf().any():
        raise ValueError(
            f"{name} of row {first_row(x.isinf())} of the batch overflow float32 after scaling; rescale the data"
        )
    return x
