"""In-context examples: whole windows of series in front of a lookback, as AutoTimes prompts (Liu et al. 2024, arXiv
2402.02370, section 3.4).

An example is encoded as a lookback of its own, scaled by its own steps, and its elements stand in front of the
window's on one longer grid. Training and forecasts find their examples with the same functions. What is after the
beginning of a lookback is never looked at, but the lookback itself, which similar windows are compared with.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import yaml
from pydantic import PositiveInt
from torch import Tensor

from .adapters import Series, SeriesSegment, TimeSeriesAdapter
from .adapters.timeseries.arrays import as_double
from .adapters.timeseries.scaling import location_scale
from .schema import Strict, parse
from .segment import Segment

Place = tuple[Series, int]
"""A series and the step, from 0, before which an example in it ends. Steps that the series does not have are missing.
"""

COMPARED = 128  # candidates at a time: what a processor's cache holds


class Examples(Strict):
    """How a window's examples are chosen.

    Args:
        strategy: "earlier", the steps of the same series that end where the lookback begins; "similar", the windows
            that begin most like the lookback. These are of the same series and end where the lookback begins, or a
            whole number of patches earlier; they may overlap. The distance is Euclidean, per step that both have
            observed, between the candidate's first steps, as many as the lookback has, and the lookback, each
            standardised (of examples shorter than the lookback, all steps and its last ones). A window that lacks more
            than half of the lookback's observed steps is like none.
        count: how many. "earlier" ones follow one another in time, "similar" ones come nearest last, next to the
            lookback. Where a series has no more, the first ones are missing.
        length: of an example, in steps; whole blocks. None: in training the lookback and the horizon, in whole patches;
            else as in training; of a model that was trained without, the lookback and one block.
    """

    strategy: Literal["earlier", "similar"]
    count: PositiveInt = 1
    length: PositiveInt | None = None


@dataclass(frozen=True)
class Prompt:
    """The examples of every window.

    Attributes:
        lengths: of each, in steps, the one next to the lookback last.
        find: from a series and the first step of the horizon to the places of its examples. Raises ValueError for one
            without a window to compare.
    """

    lengths: tuple[int, ...]
    find: Callable[[Series, int], list[Place]]

    @property
    def steps(self) -> int:
        return sum(self.lengths)

    def encode(self, adapter: TimeSeriesAdapter, rows: Sequence[Sequence[Place]]) -> SeriesSegment:
        """The examples of B windows as one segment, in front of which nothing stands; loc and scale are of the last.

        Raises:
            ValueError: as the adapter's `encode`.
        """
        # An example may be longer than a lookback, which the adapter would cut.
        adapter = _without_cut(adapter)
        parts = [_encode(adapter, [row[k] for row in rows], length) for k, length in enumerate(self.lengths)]
        return reduce(in_front, parts)

    def prepare(self, adapter: TimeSeriesAdapter, rows: Sequence[Sequence[Place]]) -> None:
        """Has the adapter compute in one go what it will want of the examples' timestamps, if it has them."""
        adapter = _without_cut(adapter)
        for length in set(self.lengths):
            places = (place for row in rows for place, own in zip(row, self.lengths, strict=True) if own == length)
            adapter.prepare(places, length, 0)


def in_front(prompt: Segment, window: SeriesSegment) -> SeriesSegment:
    """One segment on a longer grid: the elements of `prompt` [B, M, ...], then those of `window` [B, N, ...]. loc and
    scale are the window's: the adapter decodes its part, not the prompt's."""

    def joined(name: str) -> Tensor | None:
        first, second = getattr(prompt, name), getattr(window, name)
        return None if second is None else torch.cat([first.to(second), second], 1)

    names = ("values", "observed", "covariates")
    grid = (prompt.num_elements + window.num_elements, 1, 1)
    return window.replace(grid=grid, **{name: joined(name) for name in names})  # type: ignore[return-value]


def searched(examples: Examples, lookback: int, step: int, patch: int, pool: Sequence[Series] | None = None) -> Prompt:
    """Examples that are found in every series itself, or in `pool`.

    Args:
        examples: see there.
        lookback: in steps.
        step: of a block, in steps; the length that is left open is the lookback and one of them.
        patch: in steps.
        pool: series in which similar windows are looked for, over all of their length; None: the series itself.

    Raises:
        ValueError: a length that is not whole blocks, a pool for another strategy or of series that are too short.
            What `find` raises: a series without a single window to compare.
    """
    length = examples.length or lookback + step
    if length % step:
        raise ValueError(f"examples.length is {length} steps; it must be a multiple of patch x block = {step}")
    if pool is not None and examples.strategy != "similar":
        raise ValueError(f"pool is given for examples {examples.strategy!r}; only 'similar' ones are looked for in one")
    if pool is not None and all(len(series.values) < length for series in pool):
        raise ValueError(f"pool holds no series of at least {length} steps, the length of an example")
    count = examples.count
    find = partial(_earlier, lookback=lookback, length=length, count=count)
    if examples.strategy == "similar":
        find = partial(_similar, lookback=lookback, length=length, count=count, patch=patch, pool=pool)
    return Prompt((length,) * count, find)


def as_series(examples: Any) -> list[Series]:
    """1-D arrays [L] or `Series`, as `Series`.

    Raises:
        ValueError: no list, an empty one, or one that holds what is no series; the message names it.
    """
    if not isinstance(examples, (list, tuple, np.ndarray, Tensor)):
        raise ValueError(
            f"examples is a {type(examples).__name__}; it must be 'earlier', 'similar', an Examples, None or a list of "
            "arrays [L] or Series"
        )
    names = [f"examples[{number}]" for number in range(len(examples))]
    if not names:
        raise ValueError("examples is an empty list; it must hold one at least, or be None")
    return [
        example if isinstance(example, Series) else Series(as_double(example, name).numpy(), name)
        for name, example in zip(names, examples, strict=True)
    ]


def fixed(examples: Sequence[Series], step: int) -> Prompt:
    """The same examples for every series, each cut to its last whole blocks, the one next to the lookback last.

    Args:
        step: of a block, in steps.

    Raises:
        ValueError: one that is shorter than a block; the message names it.
    """
    places = [(series, len(series.values)) for series in examples]
    for number, (_, stop) in enumerate(places):
        if stop < step:
            raise ValueError(f"examples[{number}] has {stop} steps; it must have a block of {step} at least")
    return Prompt(tuple(stop // step * step for _, stop in places), partial(_the_same, places))


def check_room(prompt: Prompt | None, lookback: int, step: int, trained: int, name: str = "examples") -> None:
    """Raises ValueError unless examples, lookback and one block, in steps, fit into what a model was trained on."""
    if prompt is not None and prompt.steps + lookback + step > trained:
        raise ValueError(
            f"{name} of {prompt.steps} steps, the lookback of {lookback} and one block are "
            f"{prompt.steps + lookback + step} steps; this model's grid ends at {trained}: give fewer or shorter ones, "
            "or train with data.examples, which makes room for them"
        )


def trained_with(folder: str | os.PathLike[str], modality: str) -> Examples | None:
    """`data.examples` of the recipe.yaml in a model's folder, where training keeps it; None where there is none.

    Raises:
        ValueError: the file cannot be read, or says something else there.
    """
    path = Path(folder) / "recipe.yaml"
    if not path.is_file():  # a converted checkpoint was not trained here
        return None
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    data = document.get("data") if isinstance(document, dict) else None
    if not isinstance(data, dict) or data.get("modality", "series") != modality or data.get("examples") is None:
        return None
    return parse(Examples, data["examples"], f"{path}: data.examples")


def _the_same(places: list[Place], series: Series, origin: int) -> list[Place]:
    return places


def _earlier(series: Series, origin: int, *, lookback: int, length: int, count: int) -> list[Place]:
    return [(series, origin - lookback - k * length) for k in reversed(range(count))]


def _similar(
    series: Series,
    origin: int,
    *,
    lookback: int,
    length: int,
    count: int,
    patch: int,
    pool: Sequence[Series] | None,
) -> list[Place]:
    """The nearest last; in front of them, what a series lacks."""
    start = origin - lookback
    compared = min(lookback, length)
    query = torch.from_numpy(_cut(series.values, origin, compared))
    found: list[tuple[float, Place]] = []
    is_long = False
    for other, end in [(series, start)] if pool is None else [(one, len(one.values)) for one in pool]:
        for distances, stops in _distances(query, other.values[: max(end, 0)], length, patch):
            nearest = np.argsort(distances, kind="stable")[:count]
            found += [(float(distances[k]), (other, int(stops[k]))) for k in nearest if np.isfinite(distances[k])]
            is_long = True
    if not is_long:
        raise ValueError(
            f"series {series.item_id!r} has no window of {length} steps before its lookback of {lookback}, so no "
            "similar one; it needs a longer past, shorter examples, examples that are 'earlier' or given, or a pool"
        )
    places = [place for _, place in sorted(found, key=lambda each: each[0])[:count]]
    missing: list[Place] = [(series, 0)] * (count - len(places))
    return [*missing, *reversed(places)]


def _distances(query: Tensor, values: np.ndarray, length: int, patch: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Distances [K] of the windows of `values` from `query` [n], and the steps [K] before which they end, latest first,
    part by part. Windows that share less than half of the query's observed steps are infinitely far away."""
    query = _standardised(query[None])
    wanted = ~query.isnan()
    ends = np.arange(len(values), length - 1, -patch)
    for stops in (ends[k : k + COMPARED] for k in range(0, len(ends), COMPARED)):
        # Copied by the index: each is standardised by itself.
        windows = np.lib.stride_tricks.sliding_window_view(values, query.shape[1])[stops - length]
        difference = _standardised(torch.from_numpy(windows.astype(np.float64))) - query
        shared = (~difference.isnan()).sum(1)
        squared = difference.nan_to_num(nan=0.0).square().sum(1) / shared.clamp(min=1)
        far = (shared == 0) | (2 * shared < wanted.sum())
        yield squared.sqrt().masked_fill(far, torch.inf).numpy(), stops


def _standardised(x: Tensor) -> Tensor:
    loc, scale = location_scale(x, "standard")
    return (x - loc[:, None]) / scale[:, None]


def _encode(adapter: TimeSeriesAdapter, places: Sequence[Place], length: int) -> SeriesSegment:
    """One example of each of B windows: [B, length / patch, ...]."""

    def stacked(name: str, wanted: bool = True) -> np.ndarray | None:
        return np.stack([_cut(getattr(series, name), stop, length) for series, stop in places]) if wanted else None

    return adapter.encode(
        np.stack([_cut(series.values, stop, length) for series, stop in places]),
        known_covariates=stacked("known", bool(adapter.options.known_covariates)),
        past_covariates=stacked("past", bool(adapter.options.past_covariates)),
        origins=adapter.origins(places),
    )


def _cut(array: np.ndarray, stop: int, length: int) -> np.ndarray:
    """The `length` steps of [steps, ...] that end before `stop`, which may lie before the first; NaN where there is
    none."""
    part = array[max(stop - length, 0) : max(stop, 0)]
    missing = np.full((length - len(part), *array.shape[1:]), np.nan)
    return np.concatenate([missing, part], dtype=np.float64)


def _without_cut(adapter: TimeSeriesAdapter) -> TimeSeriesAdapter:
    """The adapter, with its language model if it has one, for lookbacks of any length."""
    adapter = copy.copy(adapter)
    adapter.options = adapter.options.model_copy(update={"lookback": None})
    return adapter
