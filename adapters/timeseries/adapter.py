"""Time series as patches: an element is a run of consecutive steps, scaled per series by its lookback.

Shapes: B series, L steps of lookback, H steps of horizon, N patches, P steps of a patch, F known and Q past-only
covariates. NaN means missing on the way in and on the way out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import ArrayLike
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import pad

from ...schema import parse
from ...segment import Segment
from ..base import Adapter, AdapterOptions, register_adapter
from .scaling import first_row, location_scale

Array = ArrayLike | Tensor


@dataclass(frozen=True)
class SeriesSegment(Segment):
    """A segment of scaled series that knows its way back: original = values * scale + loc.

    Args:
        loc: [B] float64, in original units.
        scale: [B] float64, positive, in original units.

    Raises:
        ValueError: as `Segment`, or loc or scale is not [B].
    """

    loc: Tensor = field(kw_only=True)
    scale: Tensor = field(kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, tensor in (("loc", self.loc), ("scale", self.scale)):
            if tuple(tensor.shape) != (self.batch_size,):
                raise ValueError(
                    f"{name} of {self.modality!r} has shape {tuple(tensor.shape)}; it must be ({self.batch_size},)"
                )


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
    tensors = [_as_double(one, f"series {position}") for position, one in enumerate(series)]
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


@register_adapter("timeseries")
class TimeSeriesAdapter(Adapter):
    """Series <-> patches of `patch` consecutive steps on the grid (N, 1, 1).

    Scaling is per series, from the observed values of its lookback only (after it is cut to `lookback`), in float64:

    - "standard": loc is the mean, scale sqrt(population variance + eps) (RevIN, Kim et al. 2022, without affine map);
    - "robust": loc is the median, scale the interquartile range / 1.349 (the standard deviation of normal data);
    - "mean_abs": loc 0, scale the mean of |x| (DeepAR, Salinas et al. 2020);
    - "none": loc 0, scale 1.

    A scale that is zero, or zero up to rounding relative to |loc| (a constant lookback), becomes 1. A lookback with
    nothing observed has loc 0 and scale 1. Infinite values are an error.

    Covariates are always standardised per series and feature (mean, population standard deviation and the same rule
    for constants) from the same lookback, whatever `scaling` is. The features of an element are, in this order:

    - the known covariates of its own steps, step by step (P * F; 0 in padding);
    - the past-only covariates of the patch `past_lag` patches earlier (P * Q; 0 where missing);
    - with past-only covariates, 1 if that patch lies in the lookback and has any value, else 0 (and so are they).

    Args:
        patch: steps of an element.
        lookback: longest lookback in steps; earlier ones are cut off. None: all is kept.
        scaling: a name in `SCALINGS`.
        eps: added to the variance under "standard", in squared original units.
        known_covariates: F, number of covariates known for the past and the future.
        past_covariates: Q, number of covariates known for the past only.
        past_lag: in patches. Under next-block prediction it must be the layout's block size, so that no element reads
            what is not known yet when its block is drawn. Without past-only covariates it has nothing to act on.
        modality: name under which the model's configuration knows the series.

    Raises:
        ValueError: an illegal argument.
    """

    class Options(AdapterOptions):
        patch: PositiveInt
        lookback: PositiveInt | None = None
        scaling: Literal["standard", "robust", "mean_abs", "none"] = "standard"
        eps: float = Field(0.0, ge=0, allow_inf_nan=False)
        known_covariates: NonNegativeInt = 0
        past_covariates: NonNegativeInt = 0
        past_lag: PositiveInt = 1
        modality: str = Field("series", min_length=1)

        @model_validator(mode="after")
        def _check_eps(self) -> TimeSeriesAdapter.Options:
            if self.eps and self.scaling != "standard":
                raise ValueError(f"eps is {self.eps} with scaling {self.scaling!r}; only 'standard' scaling uses it")
            return self

    options: Options

    def __init__(
        self,
        patch: int,
        lookback: int | None = None,
        scaling: str = "standard",
        eps: float = 0.0,
        known_covariates: int = 0,
        past_covariates: int = 0,
        past_lag: int = 1,
        modality: str = "series",
    ) -> None:
        given = {
            "patch": patch,
            "lookback": lookback,
            "scaling": scaling,
            "eps": eps,
            "known_covariates": known_covariates,
            "past_covariates": past_covariates,
            "past_lag": past_lag,
            "modality": modality,
        }
        self.options = parse(self.Options, given, type(self).__name__)

    @property
    def element(self) -> dict[str, Any]:
        return {"kind": "continuous", "dim": self.options.patch}

    @property
    def covariate_features(self) -> int:
        """Number of covariate features of an element: P * F, plus P * Q + 1 with past-only covariates."""
        known, past = self.options.known_covariates, self.options.past_covariates
        return self.options.patch * known + (self.options.patch * past + 1 if past else 0)

    def past_patches(self, length: int) -> int:
        """Number of patches that a lookback of `length` steps becomes: the leading, known ones of a segment."""
        kept = length if self.options.lookback is None else min(length, self.options.lookback)
        return self.future_patches(kept)

    def future_patches(self, horizon: int) -> int:
        """Number of patches that a horizon of `horizon` steps becomes."""
        return -(-horizon // self.options.patch)

    def encode(
        self,
        past: Array,
        future: Array | None = None,
        *,
        horizon: int | None = None,
        known_covariates: Array | None = None,
        past_covariates: Array | None = None,
    ) -> SeriesSegment:
        """Cuts, pads, scales and patches a batch of series.

        The lookback is padded on the left and the horizon on the right to whole patches; padding is not observed.

        Args:
            past: [B, L], L >= 1, the lookback in original units, NaN where missing (unequal series: `stack_series`).
            future: [B, H], the values that follow, NaN where missing: to train on, or to have their likelihood told.
            horizon: H, to leave the values that follow open; at most one of `future` and `horizon`.
            known_covariates: [B, L + H, F]. NaN is allowed only in padding, before a series' first observed value.
            past_covariates: [B, L, Q], NaN where missing.

        Returns:
            values float32 [B, N, P] (0 where not observed), observed bool [B, N, P], covariates float32
            [B, N, covariate_features] or None, loc and scale float64 [B]; N = past_patches(L) + future_patches(H).

        Raises:
            ValueError: a wrong shape or dtype, an infinite value, `horizon` < 1, missing or superfluous covariates.
        """
        lookback = _batch(past, "past", "[B, L] with L >= 1")
        ahead = self._ahead(len(lookback), future, horizon)
        steps = lookback.shape[1], ahead.shape[1]
        reach = f"{steps[0]} of the past and {steps[1]} of the horizon"
        known = self._covariates(known_covariates, "known_covariates", len(lookback), sum(steps), reach)
        past_only = self._covariates(past_covariates, "past_covariates", len(lookback), steps[0], "those of the past")
        _check_known(known, lookback)

        kept = slice(-min(steps[0], self.options.lookback or steps[0]), None)
        lookback, past_only = lookback[:, kept], past_only[:, kept]
        known = known[:, steps[0] - lookback.shape[1] :]
        loc, scale = location_scale(lookback, self.options.scaling, self.options.eps)
        series = (torch.cat([lookback, ahead.to(lookback)], 1) - loc[:, None]) / scale[:, None]
        features = [
            self._known_features(known, lookback.shape[1], steps[1]),
            *self._past_features(past_only, self.future_patches(steps[1])),
        ]
        values = self._patches(series[..., None], lookback.shape[1], steps[1])
        observed = ~values.isnan()
        return SeriesSegment(
            modality=self.modality,
            values=_to_float(values, "past and future"),
            grid=(values.shape[1], 1, 1),
            observed=observed,
            covariates=_to_float(torch.cat(features, -1), "covariates") if self.covariate_features else None,
            loc=loc,
            scale=scale,
        )

    def decode(self, segment: Segment) -> Tensor:
        """Scaled patches -> series in original units.

        Returns:
            float64 [B, N * P], NaN where not observed (padding and missing values among it). The steps of the horizon
            are those from past_patches(L) * P on.

        Raises:
            ValueError: a segment that does not carry loc and scale, or has patches of another size.
        """
        if not isinstance(segment, SeriesSegment):
            raise ValueError(
                f"segment is a {type(segment).__name__}; it must be a SeriesSegment, which carries loc and scale"
            )
        if segment.values.shape[-1] != self.options.patch:
            raise ValueError(f"segment's patches have {segment.values.shape[-1]} steps, not {self.options.patch}")
        series = segment.values.double() * segment.scale[:, None, None] + segment.loc[:, None, None]
        if segment.observed is not None:
            observed = segment.observed if segment.observed.dim() == 3 else segment.observed[..., None]
            series = series.masked_fill(~observed, torch.nan)
        return series.flatten(1)

    def _ahead(self, batch: int, future: Array | None, horizon: int | None) -> Tensor:
        """[B, H] the future as given, NaN where it is to be generated, H = 0 where there is none."""
        if future is not None and horizon is not None:
            raise ValueError(f"horizon is {horizon} and future is given too; give at most one of them")
        if future is not None:
            ahead = _batch(future, "future", "[B, H] with H >= 1")
            if len(ahead) != batch:
                raise ValueError(f"future has {len(ahead)} series; it must have {batch} like past")
            return ahead
        if horizon is not None and (isinstance(horizon, bool) or not isinstance(horizon, int) or horizon < 1):
            raise ValueError(f"horizon is {horizon!r}; it must be a positive integer, in steps")
        return torch.full((batch, horizon or 0), torch.nan, dtype=torch.float64)

    def _covariates(self, given: Array | None, name: str, batch: int, length: int, what: str) -> Tensor:
        """[B, length, features] float64; no features where the adapter has none."""
        count = getattr(self.options, name)
        if given is None and count:
            raise ValueError(f"{name} is missing; the adapter was made with {name}={count}")
        if given is None:
            return torch.empty(batch, length, 0, dtype=torch.float64)
        covariates = _as_double(given, name)
        if covariates.dim() != 3 or len(covariates) != batch or covariates.shape[2] != count:
            legal = f"[{batch}, {length}, {count}] (series, steps, features)"
            raise ValueError(f"{name} has shape {tuple(covariates.shape)}; it must be {legal}")
        if covariates.shape[1] != length:
            raise ValueError(f"{name} has {covariates.shape[1]} steps; it must have {length} ({what})")
        if covariates.isinf().any():
            raise ValueError(f"{name} is infinite in {_place(covariates.isinf())}; it must be finite")
        return covariates

    def _known_features(self, known: Tensor, past: int, future: int) -> Tensor:
        """[B, N, P * F]: an element's own steps."""
        return self._patches(_standardise(known, past), past, future).nan_to_num(nan=0.0)

    def _past_features(self, covariates: Tensor, future_patches: int) -> list[Tensor]:
        """[B, N, P * Q] and [B, N, 1]: the patch `past_lag` earlier and whether it is there."""
        if not self.options.past_covariates:
            return []
        length = covariates.shape[1]
        own = self._patches(_standardise(covariates, length), length, 0)
        own = pad(own, (0, 0, 0, future_patches), value=torch.nan)
        # More lag than there are patches leaves nothing to read; pad and cut would need a negative length.
        lag = min(self.options.past_lag, own.shape[1])
        earlier = pad(own, (0, 0, lag, 0), value=torch.nan)[:, : own.shape[1]]
        available = (~earlier.isnan()).any(-1, keepdim=True)
        return [earlier.nan_to_num(nan=0.0), available.to(earlier.dtype)]

    def _patches(self, x: Tensor, past: int, future: int) -> Tensor:
        """[B, past + future, features] -> [B, N, P * features], padded with NaN before and behind."""
        x = pad(x, (0, 0, -past % self.options.patch, -future % self.options.patch), value=torch.nan)
        return x.unflatten(1, (-1, self.options.patch)).flatten(2)


def _standardise(covariates: Tensor, past: int) -> Tensor:
    """Covariates [B, steps, features] by the statistics of their first `past` steps."""
    loc, scale = location_scale(covariates[:, :past].transpose(1, 2), "standard")
    return (covariates - loc[:, None]) / scale[:, None]


def _check_known(known: Tensor, lookback: Tensor) -> None:
    """NaN is legal only before a series begins, where it is what `stack_series` has padded with."""
    begun = (~lookback.isnan()).cumsum(1) > 0
    ahead = torch.ones(len(known), known.shape[1] - begun.shape[1], dtype=torch.bool, device=begun.device)
    missing = known.isnan() & torch.cat([begun, ahead], 1)[..., None]
    if missing.any():
        raise ValueError(f"known_covariates has NaN in {_place(missing)}; every step must be known")


def _place(mask: Tensor) -> str:
    """The first True of [B, steps, features] in words."""
    row, step, feature = mask.nonzero()[0].tolist()
    return f"row {row} of the batch, step {step}, feature {feature}"


def _batch(x: Array, name: str, legal: str) -> Tensor:
    """[B, steps] float64 without infinite values."""
    tensor = _as_double(x, name)
    if tensor.dim() != 2 or tensor.shape[1] == 0:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; it must be {legal} (lists: stack_series)")
    if tensor.isinf().any():
        raise ValueError(
            f"{name} is infinite in row {first_row(tensor.isinf())} of the batch; mark missing values with NaN"
        )
    return tensor


def _as_double(x: Array, name: str) -> Tensor:
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


def _to_float(x: Tensor, name: str) -> Tensor:
    """float32 with 0 for NaN."""
    x = x.float().nan_to_num(nan=0.0, posinf=torch.inf, neginf=-torch.inf)
    if x.isinf().any():
        raise ValueError(
            f"{name} of row {first_row(x.isinf())} of the batch overflow float32 after scaling; rescale the data"
        )
    return x
