"""The data kind "series": windows over series for training, rolling forecasts over their ends as evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from pydantic import Field, PositiveInt, model_validator
from torch.utils.data import Dataset

from ..adapters import Adapter, Series, TimeSeriesAdapter, last_steps, read_series, stack_series
from ..adapters.timeseries.series import OnIrregular
from ..configuration import UnimodalARConfig
from ..forecasting import check_fit
from ..prompts import Examples, Place, Prompt, check_room, in_front, searched
from ..schema import Strict, one_source
from .series_evaluation import RollingForecasts, SeriesEvaluation


class SeriesOptions(Strict):
    """Series, each cut into train | validation | test along time.

    Args:
        modality: which adapter encodes them.
        path: a .csv or .parquet file; dataset: a named one from `DATASETS`. Exactly one of them.
        time, item, target, known, past, freq, on_irregular: see `read_series`.
        horizon: steps that a training window extends past its lookback (the adapter's).
        stride: steps between training windows.
        validation_stride: steps between validation windows. None: a patch.
        min_lookback: windows begin anywhere between the lookback and this many steps before the horizon, so that the
            model also learns short pasts. None: always the full lookback.
        stop: use only the first so many steps.
        validation, test: length of the held-out parts, in steps or as a fraction of the series.
        examples: in-context examples in front of every lookback, in training, validation and evaluation; the sequence
            is that much longer, and the loss is of their elements, too. Forecasts with the model's folder are prompted
            likewise: this section of the recipe.yaml there says how. Training leaves out windows for which there is no
            "similar" example; "earlier" ones may be missing. None: none.
        standardise: subtract the mean and divide by the standard deviation of each series' training part; errors are
            then in those units.
    """

    modality: str = "series"
    path: str | None = None
    dataset: str | None = None
    time: str | None = None
    item: str | None = None
    target: list[str] | None = None
    known: list[str] = []
    past: list[str] = []
    freq: str | None = None
    on_irregular: OnIrregular = "error"
    horizon: PositiveInt
    stride: PositiveInt = 1
    validation_stride: PositiveInt | None = None
    min_lookback: PositiveInt | None = None
    stop: PositiveInt | None = None
    validation: PositiveInt | float = Field(0.1, gt=0)
    test: int | float = Field(0.2, ge=0)
    examples: Examples | None = None
    standardise: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> SeriesOptions:
        one_source(self.path, self.dataset)
        if self.dataset is not None and self.dataset not in DATASETS:
            raise ValueError(f"dataset is {self.dataset!r}; known datasets are {sorted(DATASETS)}")
        return self


def city_temperatures() -> Any:
    """A year of hourly temperatures (degrees Fahrenheit, 2010) of Seattle and San Francisco, from vega_datasets."""
    try:
        import vega_datasets
    except ImportError:
        raise ImportError("dataset 'city_temperatures' needs vega_datasets: pip install unimodal-ar[demo]") from None
    seattle = vega_datasets.data.seattle_temps().set_index("date")["temp"]
    san_francisco = vega_datasets.data.sf_temps().set_index("date")["temp"]
    return seattle.to_frame("Seattle").join(san_francisco.rename("San Francisco"), how="outer").reset_index()


DATASETS: dict[str, Any] = {"city_temperatures": city_temperatures}


@dataclass(frozen=True)
class Split:
    """Where the parts of a series begin: training is [0, validation), validation [validation, test), test
    [test, stop)."""

    validation: int
    test: int
    stop: int


class SeriesData:
    """Windows over series, and the series themselves for evaluation.

    Attributes:
        trained_examples: what the model was trained with, where its evaluation is told otherwise.

    Raises:
        ValueError: the file cannot be read, a series is too short for its parts, or the adapter is of another kind.
    """

    Options: ClassVar[type[SeriesOptions]] = SeriesOptions
    Evaluation: ClassVar[type[SeriesEvaluation]] = SeriesEvaluation
    unit: ClassVar[str] = "windows"
    of_training: ClassVar[frozenset[str]] = frozenset({"horizon", "stride", "validation_stride", "min_lookback"})

    def __init__(self, options: SeriesOptions, adapters: dict[str, Adapter]) -> None:
        adapter = adapters.get(options.modality)
        if not isinstance(adapter, TimeSeriesAdapter):
            raise ValueError(f"data.modality is {options.modality!r}; it must name a timeseries adapter")
        if adapter.options.lookback is None:
            raise ValueError(f"adapters.{options.modality}.lookback is missing; training windows need it, in steps")
        self.options, self.adapter = options, adapter
        self.lookback = adapter.options.lookback
        if (options.min_lookback or 1) > self.lookback:
            raise ValueError(
                f"data.min_lookback is {options.min_lookback}; it must be at most the lookback {self.lookback}"
            )
        for name in ("known", "past"):
            named, count = getattr(options, name), getattr(adapter.options, f"{name}_covariates")
            if len(named) != count:
                raise ValueError(
                    f"data.{name} names {len(named)} columns; adapters.{options.modality}.{name}_covariates is {count}"
                )
        self.prompt = self._prompt()
        self.trained_examples = self.options.examples
        self._series: list[Series] | None = None
        self._examples: dict[tuple[int, int], list[Place]] = {}

    def _prompt(self) -> Prompt | None:
        """The examples of every window; their length is written out in the options."""
        examples, patch = self.options.examples, self.adapter.options.patch
        if examples is None:
            return None
        if examples.length is None:
            length = patch * self._window_patches
            examples = examples.model_copy(update={"length": length})
            self.options = self.options.model_copy(update={"examples": examples})
        try:
            return searched(examples, self.lookback, patch, patch)
        except ValueError as error:
            raise ValueError(f"data.{error}") from None

    @property
    def _window_patches(self) -> int:
        return self.adapter.past_patches(self.lookback) + self.adapter.future_patches(self.options.horizon)

    @property
    def modalities(self) -> list[str]:
        return [self.options.modality]

    def modality_defaults(self, name: str) -> dict[str, Any]:
        """What the data settle of a modality's configuration."""
        if name != self.options.modality:
            return {}
        shown = 0 if self.prompt is None else self.prompt.steps // self.adapter.options.patch
        return {"grid": [shown + self._window_patches, 1, 1], "covariates": self.adapter.covariate_features}

    def check_model(self, config: UnimodalARConfig) -> None:
        """Raises ValueError where the model could not forecast the windows it would be trained on."""
        name = self.options.modality
        if config.modality(name).head is None:
            raise ValueError(f"modalities.{name} has no head; the data are its series, so it needs one to be trained")
        patch = self.adapter.options.patch
        step = patch * check_fit(self.adapter, config.modality(name))
        if self.options.examples is not None:
            try:
                searched(self.options.examples, self.lookback, step, patch)
            except ValueError as error:
                raise ValueError(f"data.{error}") from None
        check_room(self.prompt, self.lookback, step, config.modality(name).grid[0] * patch, "data.examples")

    def evaluator(self, evaluation: SeriesEvaluation, config: UnimodalARConfig, seed: int) -> RollingForecasts:
        return RollingForecasts(self, evaluation, config, seed)

    @property
    def series(self) -> list[Series]:
        """All series, cut to `stop` and standardised where asked for."""
        if self._series is None:
            o = self.options
            source = o.path if o.dataset is None else DATASETS[o.dataset]()
            columns = {"time": o.time, "item": o.item, "target": o.target, "known": o.known, "past": o.past}
            read = read_series(source, **columns, freq=o.freq, on_irregular=o.on_irregular)  # type: ignore[arg-type]
            self._series = [self._prepared(series) for series in read]
        return self._series

    def split(self, series: Series) -> Split:
        """The parts of one series."""
        stop = min(len(series.values), self.options.stop or len(series.values))
        lengths = [x if isinstance(x, int) else round(x * stop) for x in (self.options.validation, self.options.test)]
        if sum(lengths) >= stop:
            raise ValueError(
                f"series {series.item_id!r} has {stop} steps, which {lengths[0]} of validation and {lengths[1]} of "
                "test leave no training part of; shorten them"
            )
        return Split(stop - sum(lengths), stop - lengths[1], stop)

    def _check_lengths(self) -> None:
        """Raises ValueError for a training part without a single window."""
        needed = self._first_origin(self.options.min_lookback or self.lookback) + self.options.horizon
        for series in self.series:
            split = self.split(series)
            if split.validation < needed:
                raise ValueError(
                    f"series {series.item_id!r} leaves {split.validation} steps to train on after "
                    f"{split.test - split.validation} of validation and {split.stop - split.test} of test; one window "
                    f"needs {needed}"
                )

    def _first_origin(self, shortest: int) -> int:
        """The first step of the first horizon of a series, whose lookback has `shortest` steps at least."""
        examples = self.options.examples
        if examples is None or examples.strategy == "earlier":
            return shortest
        return self.lookback + cast(int, examples.length)  # one that is similar has room before the lookback

    def examples_of(self, number: int, origin: int) -> list[Place]:
        """The places of a window's examples, looked for once: epochs go over the same windows."""
        assert self.prompt is not None, "the caller has looked"
        if (number, origin) not in self._examples:
            self._examples[number, origin] = self.prompt.find(self.series[number], origin)
        return self._examples[number, origin]

    def train(self) -> WindowDataset:
        """Windows in the training part. What the adapter computes of timestamps is computed here, for all windows."""
        self._check_lengths()
        dataset = self._windows(lambda split: (0, split.validation), self.options.stride, self.options.min_lookback)
        if self.adapter.options.timestamps is not None:
            self._prepare_timestamps([*dataset.windows, *self.validation().windows])
        return dataset

    def _prepare_timestamps(self, windows: list[tuple[int, int]]) -> None:
        places = [(self.series[number], origin) for number, origin in windows]
        self.adapter.prepare(places, self.lookback, self.options.horizon)
        if self.prompt is not None:
            self.prompt.prepare(self.adapter, [self.examples_of(number, origin) for number, origin in windows])

    def validation(self) -> WindowDataset:
        """Windows whose horizon lies in the validation part."""
        stride = self.options.validation_stride or self.adapter.options.patch
        dataset = self._windows(lambda split: (split.validation - self.lookback, split.test), stride, None)
        if not dataset.windows:
            raise ValueError(f"no window of {self.options.horizon} steps fits the validation part; lengthen it")
        splits = [(series.values, self.split(series)) for series in self.series]
        if all(np.isnan(values[split.validation : split.test]).all() for values, split in splits):
            raise ValueError("no series has an observed value in its validation part; choose another split")
        return dataset

    def _windows(self, part: Any, stride: int, min_lookback: int | None) -> WindowDataset:
        windows = []
        shortest = min_lookback or self.lookback
        for number, series in enumerate(self.series):
            start, stop = part(self.split(series))
            first = max(max(start, 0) + (shortest if start >= 0 else self.lookback), self._first_origin(shortest))
            windows += [(number, origin) for origin in range(first, stop - self.options.horizon + 1, stride)]
        return WindowDataset(self, windows, min_lookback)

    def _prepared(self, series: Series) -> Series:
        split = self.split(series)
        values = series.values[: split.stop]
        known = None if series.known is None else series.known[: split.stop]
        past = None if series.past is None else series.past[: split.stop]
        _check(Series(values, series.item_id, known=known, past=past), split)
        if self.options.standardise:
            train = values[: split.validation]
            values = (values - np.nanmean(train)) / (np.nanstd(train) or 1.0)
        return Series(values, series.item_id, series.start, series.freq, known, past)


def _check(series: Series, split: Split) -> None:
    """Raises ValueError, before anything is trained, for what nobody could learn or the adapter could not encode."""
    observed = np.flatnonzero(~np.isnan(series.values))
    if not len(observed) or observed[0] >= split.validation:
        raise ValueError(
            f"series {series.item_id!r} has no observed value in its training part, steps 0 to {split.validation - 1}"
        )
    unknown = np.zeros(0) if series.known is None else np.flatnonzero(np.isnan(series.known[observed[0] :]).any(1))
    if len(unknown):
        raise ValueError(
            f"series {series.item_id!r} has no known covariates at step {observed[0] + unknown[0]}; every step from "
            "the first observed value on must be known"
        )


class WindowDataset(Dataset):
    """Windows of (lookback, horizon) around forecast origins; a batch is encoded at once, when it is collated."""

    def __init__(self, data: SeriesData, windows: list[tuple[int, int]], min_lookback: int | None) -> None:
        self.data, self.windows, self.min_lookback = data, windows, min_lookback

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[int, int, int]:
        """(series, start, origin): the lookback is [start, origin), the horizon begins at the origin."""
        number, origin = self.windows[index]
        length = self.data.lookback
        if self.min_lookback is not None:
            length = int(torch.randint(self.min_lookback, self.data.lookback + 1, ()))
        return number, max(origin - length, 0), origin

    def collate(self, windows: Sequence[tuple[int, int, int]]) -> dict[str, Any]:
        """The model's batch."""
        series, horizon = self.data.series, self.data.options.horizon
        adapter, lookback = self.data.adapter, self.data.lookback

        def cut(array: Any, start: int, stop: int) -> np.ndarray:
            return array[start:stop]

        past = last_steps(
            stack_series([cut(series[n].values, start, origin) for n, start, origin in windows]), lookback
        )
        future = np.stack([cut(series[n].values, origin, origin + horizon) for n, _, origin in windows])
        known = past_only = None
        if adapter.options.known_covariates:
            reach = [cut(series[n].known, start, origin + horizon) for n, start, origin in windows]
            known = last_steps(stack_series(reach), lookback + horizon)
        if adapter.options.past_covariates:
            own = [cut(series[n].past, start, origin) for n, start, origin in windows]
            past_only = last_steps(stack_series(own), lookback)
        origins = adapter.origins((series[n], origin) for n, _, origin in windows)
        segment = adapter.encode(past, future, known_covariates=known, past_covariates=past_only, origins=origins)
        if self.data.prompt is not None:
            shown = self.data.prompt.encode(adapter, [self.data.examples_of(n, origin) for n, _, origin in windows])
            segment = in_front(shown, segment)
        return {"segments": [segment]}
