"""Forecasts from a model of patches: any lookback, any horizon, missing values, covariates.

Shapes: B series, S sample paths, Q quantile levels, L steps of lookback, H steps of horizon.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from .adapters import AutoAdapter, Series, TimeSeriesAdapter, last_steps, read_series, stack_series
from .heads import Head
from .layout import ORDERS, Layout
from .modality import ModalityOptions
from .modeling import UnimodalARForGeneration
from .noise import SampleNoise
from .saving import load_model
from .schema import ContinuousElement, positive_int, unknown_key

if TYPE_CHECKING:
    import pandas as pd

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


@dataclass(frozen=True, eq=False)
class Forecast:
    """Forecasts of B series.

    Attributes:
        mean: [B, H] float64, in the series' units.
        quantiles: [B, Q, H], increasing along Q; None for a head that gives a point only.
        levels: [Q], or None likewise.
        samples: [B, S, H] sample paths (S = 1 for a point).
        series: what was forecast.
    """

    mean: np.ndarray
    quantiles: np.ndarray | None
    levels: tuple[float, ...] | None
    samples: np.ndarray
    series: list[Series]

    @property
    def median(self) -> np.ndarray:
        """[B, H]: the 0.5 quantile of the sample paths; the point itself where there is only one."""
        return np.median(self.samples, 1)

    def to_frame(self) -> pd.DataFrame:
        """A long table: item_id, timestamp (or step, from 1, where the series has no times), mean, and a column per
        quantile level named after it ("0.1")."""
        import pandas as pd

        tables = []
        for number, series in enumerate(self.series):
            times, horizon = self.times(number), self.mean.shape[1]
            when = {"step": np.arange(1, horizon + 1)} if times is None else {"timestamp": times[-horizon:]}
            table: dict[str, Any] = {"item_id": series.item_id, **when, "mean": self.mean[number]}
            for level, values in zip(self.levels or (), self._quantiles(number), strict=True):
                table[f"{level:g}"] = values
            tables.append(pd.DataFrame(table))
        return pd.concat(tables, ignore_index=True)

    def times(self, number: int) -> Any:
        """Timestamps of series `number` and of its horizon after it (a DatetimeIndex), or None where it has none."""
        series = self.series[number]
        if series.start is None or series.freq is None:
            return None
        import pandas as pd

        return pd.date_range(series.start, periods=len(series.values) + self.mean.shape[1], freq=series.freq)

    def _quantiles(self, number: int) -> Sequence[np.ndarray]:
        return () if self.quantiles is None else self.quantiles[number]


def check_fit(adapter: TimeSeriesAdapter, options: ModalityOptions) -> int:
    """The layout's block size, in patches, of a modality that can forecast what the adapter makes.

    Raises:
        ValueError: element, covariates, layout or lookback do not fit each other.
    """
    patch, element = adapter.options.patch, options.element
    dim = element.dim if isinstance(element, ContinuousElement) else None
    if dim != patch or options.covariates != adapter.covariate_features:
        raise ValueError(
            f"the adapter makes patches of {patch} steps with {adapter.covariate_features} covariate features; the "
            f"model wants {dim} and {options.covariates}"
        )
    layout = Layout.from_grid(options.grid, options.layout.order, options.layout.block)
    sizes = layout.block_sizes
    in_order = torch.equal(layout.index, torch.arange(len(layout))) and not ORDERS[options.layout.order].random
    if not in_order or any(size != sizes[0] for size in sizes[1:-1]):
        raise ValueError(
            f"layout of {adapter.modality!r} is {options.layout.model_dump()}; forecasting needs raster order and "
            "blocks of one size"
        )
    if len(sizes) == 1:
        raise ValueError(
            f"layout of {adapter.modality!r} is {options.layout.model_dump()}, one block on the grid "
            f"{list(options.grid)}; a forecaster needs at least two, a past and a future"
        )
    block = sizes[0]
    lookback = adapter.options.lookback or patch * block
    if lookback % (patch * block):
        raise ValueError(f"lookback is {lookback} steps; it must be a multiple of patch x block = {patch * block}")
    if adapter.options.past_covariates and adapter.options.past_lag < block:
        raise ValueError(
            f"past_lag is {adapter.options.past_lag} patches; with blocks of {block} it must be at least that many, or "
            "a block would read what is not known when it is drawn"
        )
    return block


class Forecaster:
    """A model and the adapter of the series it knows.

    A forecast that fits into the trained length (the modality's `grid`) is drawn in one go over the KV cache. A longer
    one is drawn in chunks: every sample path is fed back, scaled anew by its own last `lookback` steps, so that the
    model only sees lengths it was trained on and intervals keep widening with the horizon.

    Args:
        model: its layout of the series must be raster order.
        adapter: as it was used in training.

    Raises:
        ValueError: the two do not fit.
    """

    def __init__(self, model: UnimodalARForGeneration, adapter: TimeSeriesAdapter) -> None:
        if adapter.modality not in model.heads:
            raise ValueError(
                f"the adapter's modality is {adapter.modality!r}; the model generates {sorted(model.heads)}"
            )
        options = model.options[adapter.modality]
        self.model, self.adapter = model.eval(), adapter
        self.block = check_fit(adapter, options)
        self.trained = options.grid[0]
        step = adapter.options.patch * self.block
        self.lookback = adapter.options.lookback or max(self.trained // self.block - 1, 1) * step

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        modality: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Forecaster:
        """Loads model and adapter from a folder that training wrote.

        Args:
            path: the folder.
            modality: which adapter, where the model has several.
            device: None: a GPU if there is one.
            dtype: None: float32 on the CPU (bfloat16 is slow on many), the checkpoint's own on a GPU.
        """
        adapter = AutoAdapter.from_pretrained(path, modality)
        if not isinstance(adapter, TimeSeriesAdapter):
            raise ValueError(
                f"adapter of {str(path)!r} is a {type(adapter).__name__}; forecasting needs a TimeSeriesAdapter"
            )
        return cls(load_model(path, device, dtype), adapter)

    def save_pretrained(self, path: str | os.PathLike[str]) -> None:
        """Writes model and adapter into one folder."""
        self.model.save_pretrained(path)
        self.adapter.save_pretrained(path)

    @property
    def is_point(self) -> bool:
        """Whether the model gives a single value and no spread."""
        name = self.adapter.modality
        return self.model.objectives[name].is_point(type(cast(Head, self.model.heads[name])))

    def predict(
        self,
        series: Any,
        horizon: int,
        quantile_levels: Sequence[float] | None = None,
        num_samples: int = 100,
        *,
        seed: int = 0,
        temperature: float = 1.0,
        steps: int | Sequence[int] | None = None,
        head_steps: int | Sequence[int] | None = None,
        sampler: dict[str, Any] | None = None,
        batch_size: int | None = None,
        **reading: Any,
    ) -> Forecast:
        """Forecasts the `horizon` steps after the end of every series.

        Args:
            series: an array [L] or [B, L], a list of unequal series, a DataFrame (long or wide), a .csv or .parquet
                path, a GluonTS dataset, or a list of `Series`. L >= 1; NaN marks missing values.
            horizon: H >= 1, any number of steps.
            quantile_levels: increasing, in (0, 1); None: 0.05 to 0.95.
            num_samples: S, sample paths per series, from which mean and quantiles are taken.
            seed: path s of a series depends on (seed, s) and the series alone, not on the others or on their order.
            temperature: 0 collapses the paths onto the centre.
            steps, head_steps, sampler: as in the model's `generate`, for block diffusion and for heads that draw in
                several steps; None: as its generation_config says.
            batch_size: series at a time; None: so many that there are about 1,000 paths.
            reading: for tables, the arguments of `read_series` (time, item, target, known, past, freq, on_irregular).

        Raises:
            ValueError: horizon < 1, a series of nothing but NaN, covariates that do not reach the horizon, quantiles
                of a model that gives points, steps of one that has none; the message names the series or the argument.
        """
        horizon, num_samples = positive_int("horizon", horizon), positive_int("num_samples", num_samples)
        levels = self._levels(quantile_levels)
        items = self._read(series, horizon, reading)
        paths_each = 1 if self.is_point or temperature == 0 else num_samples
        batch_size = max(1, 1024 // paths_each) if batch_size is None else positive_int("batch_size", batch_size)
        samples = np.full((len(items), paths_each, horizon), np.nan)
        sampling = {"temperature": temperature, "steps": steps, "head_steps": head_steps, "sampler": sampler}
        # Series of about equal length share a batch, so that little is computed on padding.
        order = sorted(range(len(items)), key=lambda i: len(items[i].values))
        for start in range(0, len(items), batch_size):
            rows = order[start : start + batch_size]
            noise = SampleNoise(seed, torch.arange(paths_each, device=self.model.device).repeat(len(rows)))
            batch = [items[row] for row in rows]
            samples[rows] = self._paths(batch, horizon, paths_each, sampling | {"generator": noise})
        quantiles = None if levels is None else np.quantile(samples, levels, axis=1).swapaxes(0, 1)
        return Forecast(samples.mean(1), quantiles, levels, samples, items)

    def _levels(self, levels: Sequence[float] | None) -> tuple[float, ...] | None:
        if self.is_point:
            if levels is not None:
                raise ValueError(
                    f"quantile_levels is {list(levels)}; this model's head is a regression, which gives points only"
                )
            return None
        checked = np.asarray(LEVELS if levels is None else levels)
        numbers = checked.ndim == 1 and checked.size > 0 and checked.dtype.kind in "fiu"
        if not numbers or (np.diff(checked) <= 0).any() or not 0 < checked[0] <= checked[-1] < 1:
            raise ValueError(
                f"quantile_levels is {levels!r}; they must be numbers that increase strictly inside (0, 1)"
            )
        return tuple(checked.tolist())

    def _read(self, source: Any, horizon: int, reading: dict[str, Any]) -> list[Series]:
        for name in reading:
            legal = set(inspect.signature(read_series).parameters) - {"source"}
            if name not in legal:
                own = set(inspect.signature(self.predict).parameters) - {"reading"}
                raise ValueError(unknown_key(name, legal | own, "predict"))
        ready = isinstance(source, list) and source and all(isinstance(item, Series) for item in source)
        items = source if ready else read_series(source, **reading)
        options = self.adapter.options
        for item in items:
            if np.isnan(item.values[-self.lookback :]).all():
                raise ValueError(
                    f"series {item.item_id!r} has no observed value in its last {self.lookback} steps, the model's "
                    "lookback; fill the gap or cut it off"
                )
            for name, given, count in (
                ("known", item.known, options.known_covariates),
                ("past", item.past, options.past_covariates),
            ):
                found = 0 if given is None else given.shape[1]
                if found != count:
                    raise ValueError(
                        f"series {item.item_id!r} has {found} {name} covariates; this model was trained with {count}"
                    )
            if item.known is not None and len(item.known) < len(item.values) + horizon:
                raise ValueError(
                    f"known covariates of series {item.item_id!r} reach {len(item.known) - len(item.values)} steps "
                    f"past its end; the horizon needs {horizon}"
                )
        return items

    def _paths(self, items: list[Series], horizon: int, num_samples: int, sampling: dict[str, Any]) -> np.ndarray:
        """[B, S, H] sample paths of one batch."""
        past = stack_series([item.values for item in items])
        known, past_only = self._covariates(items, past.shape[1], horizon)
        # As many steps per chunk as were trained beyond the lookback; the same for every series, however short, so
        # that a forecast does not depend on its batch.
        step = self.adapter.options.patch * self.block
        room = max(self.trained * self.adapter.options.patch - self.lookback, step) // step * step
        drawn: list[Tensor] = []
        for done in range(0, horizon, room):
            repeats = 1 if drawn else num_samples
            drawn.append(self._chunk(past, min(room, horizon - done), known, past_only, repeats, sampling))
            past = torch.cat([past.repeat_interleave(repeats, 0), drawn[-1]], 1)
            known = None if known is None else known.repeat_interleave(repeats, 0)
            if past_only is not None:  # what was drawn has none
                unknown = past_only.new_full((len(past), drawn[-1].shape[1], past_only.shape[2]), torch.nan)
                past_only = torch.cat([past_only.repeat_interleave(repeats, 0), unknown], 1)
        return torch.cat(drawn, 1).view(len(items), num_samples, horizon).numpy()

    def _chunk(
        self,
        past: Tensor,
        size: int,
        known: Tensor | None,
        past_only: Tensor | None,
        repeats: int,
        sampling: dict[str, Any],
    ) -> Tensor:
        """[B * repeats, size] float64: the next `size` steps in one generation."""
        patch = self.adapter.options.patch
        step = patch * self.block
        whole = -(-size // step) * step
        # Blocks are counted from the start of what the model sees, so the known part must be whole blocks.
        length = min(-(-past.shape[1] // step) * step, self.lookback)
        if known is not None:
            known = known[:, : past.shape[1] + whole]
            missing = past.shape[1] + whole - known.shape[1]  # past the horizon: drawn with the block, then cut off
            known = torch.cat([known, known[:, -1:].expand(-1, missing, -1)], 1)
        given = self.adapter.encode(
            last_steps(past, length),
            horizon=whole,
            known_covariates=None if known is None else last_steps(known, length + whole),
            past_covariates=None if past_only is None else last_steps(past_only, length),
        )
        drawn = self.model.generate(
            [],
            self.adapter.modality,
            given=given,
            num_samples=repeats,
            known_blocks=length // step,
            **sampling,
        )
        return self.adapter.decode(drawn.to("cpu"))[:, length : length + size]

    def _covariates(self, items: list[Series], length: int, horizon: int) -> tuple[Tensor | None, Tensor | None]:
        """[B, length + horizon, F] known and [B, length, Q] past-only covariates, or None."""
        known = past = None
        if self.adapter.options.known_covariates:
            known = stack_series([cast(np.ndarray, item.known)[: len(item.values) + horizon] for item in items])
        if self.adapter.options.past_covariates:
            past = stack_series([cast(np.ndarray, item.past) for item in items])
        return known, past
