"""How a model of series is judged: rolling forecasts over test parts, beside baselines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field, PositiveInt, SerializerFunctionWrapHandler, model_serializer, model_validator

from ..adapters.timeseries.series import OnIrregular
from ..configuration import UnimodalARConfig
from ..evaluation import format_table
from ..evaluation.plots import forecast_panels, picture_format, plot_panels
from ..evaluation.rolling import RollingEvaluation, Rows, window
from ..forecasting import LEVELS, Forecaster
from ..heads import HEADS
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse
from .sampling import SamplingOptions, adopt, check_sampling


class Transfer(Strict):
    """Other series that the model is judged on, none of which it was trained on.

    Args:
        name: of their tables. None: the file's without its ending, or the dataset's.
        path, dataset, time, item, target, known, past, freq, on_irregular, stop, validation, test, standardise: as in
            the recipe's section `data`, and what it says there where they are left out. Their training part is for
            the baselines and to standardise with.
    """

    name: str | None = None
    path: str | None = None
    dataset: str | None = None
    time: str | None = None
    item: str | None = None
    target: list[str] | None = None
    known: list[str] = []
    past: list[str] = []
    freq: str | None = None
    on_irregular: OnIrregular = "error"
    stop: PositiveInt | None = None
    validation: PositiveInt | float = Field(0.1, gt=0)
    test: int | float = Field(0.2, ge=0)
    standardise: bool = False

    @model_validator(mode="after")
    def _can_be_told_apart(self) -> Transfer:
        if self.path is not None and self.dataset is not None:
            raise ValueError("give at most one of path and dataset")
        if not self.title:
            raise ValueError("it needs a name, a path or a dataset, which its tables are named after")
        return self

    @model_serializer(mode="wrap")
    def _as_written(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What was left out stays so: written down it would no longer be as in `data`."""
        return {key: value for key, value in serialise(self).items() if key in self.model_fields_set}

    @property
    def title(self) -> str:
        return self.name or Path(self.path or "").stem or self.dataset or ""

    def data(self, trained: Any) -> Any:
        """The series, a `SeriesData` that encodes them as the one that was trained on does."""
        changes = {key: value for key, value in self.model_dump().items() if key != "name"}
        if self.path is not None or self.dataset is not None:
            changes |= {"path": self.path, "dataset": self.dataset}
        options = parse(type(trained.options), {**trained.options.model_dump(), **changes}, "data")
        data = type(trained)(options, {trained.adapter.modality: trained.adapter})
        data.trained_examples = trained.trained_examples
        return data


class SeriesEvaluation(SamplingOptions):
    """Rolling forecasts over the held-out end of every series.

    Args:
        horizons: in steps; each gets its own table.
        stride: steps between forecast origins.
        season: in steps, of the seasonal naive baseline and of MASE.
        num_samples: sample paths per forecast.
        transfer: other data whose test parts the model is judged on likewise; see `Transfer`.
        steps, head_steps, sampler: of these forecasts, see the model's `generate`. They become the model's defaults.
    """

    horizons: list[PositiveInt] = Field(min_length=1)
    stride: PositiveInt
    season: PositiveInt
    num_samples: PositiveInt = 100
    transfer: list[Transfer] = []

    @model_validator(mode="after")
    def _titles_differ(self) -> SeriesEvaluation:
        titles = [transfer.title for transfer in self.transfer]
        twice = sorted({title for title in titles if titles.count(title) > 1})
        if twice:
            raise ValueError(f"transfer has several entries named {twice[0]!r}; give each a name of its own")
        return self


class RollingForecasts:
    """Rolling forecasts on the test part, and on those of `evaluation.transfer`. The baselines' part is done when this
    is made, before any training: it is cheap, and finds whatever the data lack.

    Args:
        data: the `SeriesData` that the model is trained on.
        evaluation, config, seed: of the recipe and of the model.

    Raises:
        ValueError: a test part shorter than a horizon, a training part too short for the baselines, windows without
            an observed value (the message names the series); data that cannot be read as the model's; steps or a
            sampler that objective or head do not have.
    """

    def __init__(self, data: Any, evaluation: SeriesEvaluation, config: UnimodalARConfig, seed: int) -> None:
        self.evaluation = evaluation
        check_sampling(evaluation, config, data.adapter.modality)
        self.own = _TestPart(data, evaluation, config, seed)
        self.transfer: dict[str, _TestPart] = {}
        for transfer in evaluation.transfer:
            try:
                self.transfer[transfer.title] = _TestPart(transfer.data(data), evaluation, config, seed)
            except ValueError as error:
                raise ValueError(f"evaluation.transfer {transfer.title!r}: {error}") from None

    def run(self, model: UnimodalARForGeneration, folder: Path | None) -> dict[str, Any]:
        """A table per horizon, printed and returned; those of other data under "transfer" and their name. `folder` gets
        samples.png, forecasts of the first series."""
        adopt(self.evaluation, model)
        tables: dict[str, Any] = self.own.run(model, "Test part")
        if self.transfer:
            tables["transfer"] = {
                title: part.run(model, f"Test part of {title!r}, which was not trained on")
                for title, part in self.transfer.items()
            }
        if folder is not None:
            try:
                self.own.draw(model, folder / "samples.png")
            except ImportError as error:
                print(f"\nNo samples.png: {error}")
        return tables


class _TestPart:
    """The forecast origins of one data set, and what the baselines make of them."""

    def __init__(self, data: Any, evaluation: SeriesEvaluation, config: UnimodalARConfig, seed: int) -> None:
        self.data, self.evaluation, self.config, self.seed = data, evaluation, config, seed
        self.rolling: dict[int, RollingEvaluation] = {}
        self.baselines: dict[int, Rows] = {}
        data.adapter.origins((series, 0) for series in data.series)  # raises ValueError for one that lacks its times
        splits = [data.split(series) for series in data.series]
        for horizon in evaluation.horizons:
            try:
                self._add(horizon, splits)
            except ValueError as error:
                raise ValueError(f"evaluation of horizon {horizon}: {error}") from None

    def _add(self, horizon: int, splits: list[Any]) -> None:
        data = self.data
        for series, split in zip(data.series, splits, strict=True):
            if split.stop - split.test < horizon:
                raise ValueError(f"series {series.item_id!r} has a test part of {split.stop - split.test} steps")
        options = self.config.modality(data.adapter.modality)
        objective: Any = options.built_objective
        self.rolling[horizon] = RollingEvaluation(
            data.series,
            [split.validation for split in splits],
            [split.test for split in splits],
            horizon,
            self.evaluation.stride,
            self.evaluation.season,
            data.lookback,
        )
        self.baselines[horizon] = self.rolling[horizon].baselines(
            objective.is_point(HEADS[(options.head or {})["kind"]])
        )

    def run(self, model: UnimodalARForGeneration, name: str) -> dict[str, Rows]:
        """A table per horizon, printed under `name`."""
        tables = {}
        forecaster = Forecaster(model, self.data.adapter, self.data.trained_examples)
        examples = self.data.options.examples
        for horizon, rolling in self.rolling.items():
            row = rolling.model(forecaster, self.evaluation.num_samples, self.seed, examples=examples)
            rows = {"unimodal_ar": row, **self.baselines[horizon]}
            stride = self.evaluation.stride
            print(f"\n{name}, rolling forecasts {horizon} steps ahead, an origin every {stride} steps:\n")
            print(format_table(rows))
            tables[str(horizon)] = rows
        return tables

    def draw(self, model: UnimodalARForGeneration, picture: Path) -> None:
        """The first forecast of the longest horizon, of up to four series, beside what came; raises ImportError without
        matplotlib."""
        picture_format(picture)
        horizon, rolling = max(self.rolling.items())
        forecaster = Forecaster(model, self.data.adapter, self.data.trained_examples)
        shown = rolling.items[:4]
        windows = [window(item, test, horizon, test) for item, _, test in shown]
        levels = None if forecaster.is_point else LEVELS
        sampling: dict[str, Any] = {"seed": self.seed, "examples": self.data.options.examples}
        forecast = forecaster.predict(windows, horizon, levels, self.evaluation.num_samples, **sampling)
        panels = forecast_panels(forecast, len(shown))
        actual = [item.values[test : test + horizon] for item, _, test in shown]
        plot_panels(picture, [replace(panel, actual=x) for panel, x in zip(panels, actual, strict=True)])
