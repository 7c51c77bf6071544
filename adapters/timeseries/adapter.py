"""Time series as patches: an element is a run of consecutive steps, scaled per series by its lookback.

Shapes: B series, L steps of lookback, H steps of horizon, N patches, P steps of a patch, F known and Q past-only
covariates. NaN means missing on the way in and on the way out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor
from torch.nn.functional import pad

from ...schema import parse
from ...segment import Segment
from ..base import Adapter, AdapterOptions, register_adapter
from ..text_states import TextStates
from .arrays import Array, as_batch, as_double, check_known, place, to_float
from .scaling import location_scale
from .series import Series
from .timestamps import Timestamps, span_texts, time_of_step

if TYPE_CHECKING:
    from .timestamps import Origin


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
    - with past-only covariates, 1 if that patch lies in the lookback and has any value, else 0 (and so are they);
    - with timestamps, a language model's state of a sentence about the times of its steps, as it is.

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
        timestamps: the language model and the sentence, see `Timestamps`; None: elements have no timestamps.

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
        timestamps: Timestamps | None = None

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
        timestamps: Timestamps | Mapping[str, Any] | None = None,
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
            "timestamps": timestamps,
        }
        self.options = parse(self.Options, given, type(self).__name__)
        told = self.options.timestamps
        self.text_states = None if told is None else TextStates(told.language_model)

    @property
    def element(self) -> dict[str, Any]:
        return {"kind": "continuous", "dim": self.options.patch}

    @property
    def covariate_features(self) -> int:
        """Number of covariate features of an element: P * F, plus P * Q + 1 with past-only covariates, plus the
        language model's width with timestamps."""
        width = 0 if self.text_states is None else self.text_states.width
        return self._plain_features + width

    @property
    def _plain_features(self) -> int:
        """Of them, those that are not timestamps."""
        known, past = self.options.known_covariates, self.options.past_covariates
        return self.options.patch * known + (self.options.patch * past + 1 if past else 0)

    def config(self) -> dict[str, Any]:
        """As `Adapter.config`, with what has become known of the language model."""
        config = super().config()
        if self.text_states is not None:
            config["timestamps"]["language_model"] = self.text_states.language_model.model_dump(mode="json")
        return config

    def save_files(self, folder: Path) -> dict[str, Any]:
        config = super().save_files(folder)
        if self.text_states is not None:
            model = config["timestamps"]["language_model"]
            place = Path(model["pretrained"])
            model["pretrained"] = str(place.absolute()) if place.exists() else model["pretrained"]
        return config

    def share_body(self, body: Any, source: Mapping[str, Any]) -> None:
        if self.text_states is not None:
            self.text_states.share(body, source)

    def origins(self, places: Iterable[tuple[Series, int]]) -> list[Origin] | None:
        """What `encode` wants to know of times, for series whose step `step` is the first of the horizon; None where
        the adapter has no timestamps.

        Raises:
            ValueError: a series without times; the message names it.
        """
        if self.options.timestamps is None:
            return None
        found: list[Origin] = []
        for series, step in places:
            if series.start is None or series.freq is None:
                lacks = "no times" if series.start is None else "a single time, which tells no frequency"
                raise ValueError(
                    f"series {series.item_id!r} has {lacks}; the timestamps of {self.modality!r} are made of them (a "
                    "table's column of times, and freq where it cannot be told)"
                )
            found.append((time_of_step(series.start, series.freq, step), series.freq))
        return found

    def prepare(self, places: Iterable[tuple[Series, int]], length: int, horizon: int) -> None:
        """Computes ahead, in one go, what `encode` will want of timestamps, for a lookback of `length` steps and a
        horizon; nothing where there are none.

        Args:
            places: series and the step that is the first of the horizon, as for `origins`.

        Raises:
            ValueError: as `origins`, or `TextStates.prepare` fails.
        """
        if self.text_states is None:
            return
        # Channels share their times. (Equal times in two zones are two sentences.)
        once = {(one.start, getattr(one.start, "tz", None), one.freq, step): (one, step) for one, step in places}
        origins = self.origins(once.values()) or []
        self.text_states.prepare(text for texts in self._texts(origins, length, horizon) for text in texts)

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
        origins: Sequence[Origin] | None = None,
    ) -> SeriesSegment:
        """Cuts, pads, scales and patches a batch of series.

        The lookback is padded on the left and the horizon on the right to whole patches; padding is not observed.

        Args:
            past: [B, L], L >= 1, the lookback in original units, NaN where missing (unequal series: `stack_series`).
            future: [B, H], the values that follow, NaN where missing: to train on, or to have their likelihood told.
            horizon: H, to leave the values that follow open; at most one of `future` and `horizon`.
            known_covariates: [B, L + H, F]. NaN is allowed only in padding, before a series' first observed value.
            past_covariates: [B, L, Q], NaN where missing.
            origins: B pairs of the time of the first step after the past and a pandas offset alias, see `origins`; for
                an adapter with timestamps.

        Returns:
            values float32 [B, N, P] (0 where not observed), observed bool [B, N, P], covariates float32
            [B, N, covariate_features] or None, loc and scale float64 [B]; N = past_patches(L) + future_patches(H).

        Raises:
            ValueError: a wrong shape or dtype, an infinite value, `horizon` < 1, missing or superfluous covariates or
                origins, or `TextStates.states` fails.
        """
        lookback = as_batch(past, "past", "[B, L] with L >= 1")
        ahead = self._ahead(len(lookback), future, horizon)
        steps = lookback.shape[1], ahead.shape[1]
        reach = f"{steps[0]} of the past and {steps[1]} of the horizon"
        known = self._covariates(known_covariates, "known_covariates", len(lookback), sum(steps), reach)
        past_only = self._covariates(past_covariates, "past_covariates", len(lookback), steps[0], "those of the past")
        check_known(known, lookback)

        kept = slice(-min(steps[0], self.options.lookback or steps[0]), None)
        lookback, past_only = lookback[:, kept], past_only[:, kept]
        known = known[:, steps[0] - lookback.shape[1] :]
        loc, scale = location_scale(lookback, self.options.scaling, self.options.eps)
        series = (torch.cat([lookback, ahead.to(lookback)], 1) - loc[:, None]) / scale[:, None]
        features = [
            self._known_features(known, lookback.shape[1], steps[1]),
            *self._past_features(past_only, self.future_patches(steps[1])),
        ]
        told = [to_float(torch.cat(features, -1), "covariates")] if self._plain_features else []
        told += self._timestamps(origins, len(lookback), lookback.shape[1], steps[1])
        values = self._patches(series[..., None], lookback.shape[1], steps[1])
        observed = ~values.isnan()
        return SeriesSegment(
            modality=self.modality,
            values=to_float(values, "past and future"),
            grid=(values.shape[1], 1, 1),
            observed=observed,
            covariates=torch.cat(told, -1) if told else None,
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
            ahead = as_batch(future, "future", "[B, H] with H >= 1")
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
        covariates = as_double(given, name)
        if covariates.dim() != 3 or len(covariates) != batch or covariates.shape[2] != count:
            legal = f"[{batch}, {length}, {count}] (series, steps, features)"
            raise ValueError(f"{name} has shape {tuple(covariates.shape)}; it must be {legal}")
        if covariates.shape[1] != length:
            raise ValueError(f"{name} has {covariates.shape[1]} steps; it must have {length} ({what})")
        if covariates.isinf().any():
            raise ValueError(f"{name} is infinite in {place(covariates.isinf())}; it must be finite")
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

    def _timestamps(self, origins: Sequence[Origin] | None, batch: int, past: int, future: int) -> list[Tensor]:
        """[B, N, width], where there are any."""
        if (origins is None) != (self.text_states is None) or (origins is not None and len(origins) != batch):
            given = "None" if origins is None else f"{len(origins)} pairs"
            legal = "None without timestamps" if self.text_states is None else f"{batch} pairs of time and frequency"
            raise ValueError(f"origins is {given}; for this adapter it must be {legal}")
        if origins is None or self.text_states is None:
            return []
        # Sample paths of one series share their times. (Equal times in two zones are two sentences.)
        keys = [(time, time.tz, freq) for time, freq in origins]
        once = dict(zip(keys, origins, strict=True))
        texts = self._texts(list(once.values()), past, future)
        states = self.text_states.states([text for row in texts for text in row]).unflatten(0, (len(once), -1))
        number = {key: row for row, key in enumerate(once)}
        return [states[[number[key] for key in keys]]]

    def _texts(self, origins: Sequence[Origin], past: int, future: int) -> list[list[str]]:
        assert self.options.timestamps is not None
        patches = self.past_patches(past), self.future_patches(future)
        return span_texts(origins, self.options.timestamps, self.options.patch, *patches)

    def _patches(self, x: Tensor, past: int, future: int) -> Tensor:
        """[B, past + future, features] -> [B, N, P * features], padded with NaN before and behind."""
        x = pad(x, (0, 0, -past % self.options.patch, -future % self.options.patch), value=torch.nan)
        return x.unflatten(1, (-1, self.options.patch)).flatten(2)


def _standardise(covariates: Tensor, past: int) -> Tensor:
    """Covariates [B, steps, features] by the statistics of their first `past` steps."""
    loc, scale = location_scale(covariates[:, :past].transpose(1, 2), "standard")
    return (covariates - loc[:, None]) / scale[:, None]
