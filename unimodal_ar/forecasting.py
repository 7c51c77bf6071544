"""Forecasts from a model of patches: any lookback, any horizon, missing values, covariates.

Shapes: B series, S sample paths, Q quantile levels, L steps of lookback, H steps of horizon.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from . import ranks
from .adapters import Series, TimeSeriesAdapter, last_steps, read_series, stack_series
from .forecast import Forecast
from .heads import Head
from .hub import Shareable, model_folder
from .layout import ORDERS, Layout
from .modality import ModalityOptions
from .modeling import UnimodalARForGeneration
from .noise import SampleNoise
from .prompts import Examples, Prompt, as_series, check_room, fixed, in_front, searched, trained_with
from .saving import load_model
from .schema import ContinuousElement, parse, positive_int, unknown_key
from .segment import Segment

__all__ = ["LEVELS", "Forecast", "Forecaster", "check_fit"]

LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)


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


class Forecaster(Shareable):
    """A model and the adapter of the series it knows.

    A forecast that fits into the trained length (the modality's `grid`) is drawn in one go over the KV cache. A longer
    one is drawn in chunks: every sample path is fed back, scaled anew by its own last `lookback` steps, so that the
    model only sees lengths it was trained on and intervals keep widening with the horizon.

    Args:
        model: its layout of the series must be raster order.
        adapter: as it was used in training.
        examples: what every lookback was prompted with in training, if anything; then so are forecasts.

    Raises:
        ValueError: they do not fit each other.
    """

    def __init__(
        self, model: UnimodalARForGeneration, adapter: TimeSeriesAdapter, examples: Examples | None = None
    ) -> None:
        if adapter.modality not in model.heads:
            raise ValueError(
                f"the adapter's modality is {adapter.modality!r}; the model generates {sorted(model.heads)}"
            )
        options = model.options[adapter.modality]
        self.model, self.adapter = model.eval(), adapter
        if model.config.backbone_source is not None:
            adapter.share_body(model.backbone.model, model.config.backbone_source)
        self.block = check_fit(adapter, options)
        self.trained = options.grid[0]
        step = adapter.options.patch * self.block
        self.lookback = adapter.options.lookback or max(self.trained // self.block - 1, 1) * step
        self.examples = examples
        self._trained_prompt = self._prompt("trained")

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        modality: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        backbone: Any = None,
        **hub: Any,
    ) -> Forecaster:
        """Loads model and adapter from a folder that training wrote, and the examples' strategy from its recipe.yaml.

        Args:
            path: the folder, or an id on the Hub.
            modality: which adapter, where the model has several.
            device: None: a GPU if there is one.
            dtype: None: float32 on the CPU (bfloat16 is slow on many), the checkpoint's own on a GPU.
            backbone: where the frozen body is now, if it was moved: a folder, an id on the Hub, or the model itself.
            hub: of an id, see `places.model_folder`.
        """
        folder = model_folder(path, **hub)
        adapter = TimeSeriesAdapter.from_pretrained(folder, modality)
        model = load_model(folder, device, dtype, backbone)
        return cls(model, adapter, trained_with(folder, adapter.modality))._of(folder)

    def _carried(self) -> list[TimeSeriesAdapter]:
        return [self.adapter]

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
        roll_out: str = "window",
        examples: str | Examples | Sequence[Any] | None = "trained",
        pool: Any = None,
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
            roll_out: how to go on beyond the trained length: "window", as above, or "cache", which draws the whole
                horizon in one go, scaled by the lookback alone. That takes a fraction of the time, but the model sees
                lengths that it was not trained on, unless its grid reaches over the horizon.
            examples: in-context examples that stand in front of every lookback, throughout a roll-out. "trained": as
                in training; None: none; "earlier" or "similar": so, in count and length as in training; `Examples`
                say all of it; or 1-D arrays or `Series` for every series, the one next to the lookback last, each cut
                to its last whole blocks (`Series` bring covariates and times where the adapter has them).
            pool: in which "similar" examples are looked for, in place of each series' own past: whatever `series` may
                be. All of it is past, wherever its times lie.
            reading: for tables, the arguments of `read_series` (time, item, target, known, past, freq, on_irregular).

        Raises:
            ValueError: horizon < 1, a series of nothing but NaN, covariates that do not reach the horizon, quantiles
                of a model that gives points, steps of one that has none, roll_out "cache" beyond the end of learned
                positions, examples that the model's grid has no room for, or a series without one; the message names
                the series or the argument.
        """
        horizon, num_samples = positive_int("horizon", horizon), positive_int("num_samples", num_samples)
        levels = self._levels(quantile_levels)
        prompt = self._prompt(examples, None if pool is None else self._series(pool, reading))
        room = self._room(horizon, roll_out, prompt)
        items = self._read(series, horizon, reading)
        places = [] if prompt is None else [prompt.find(item, len(item.values)) for item in items]
        if prompt is not None:
            prompt.prepare(self.adapter, places)
        paths_each = 1 if self.is_point or temperature == 0 else num_samples
        batch_size = max(1, 1024 // paths_each) if batch_size is None else positive_int("batch_size", batch_size)
        samples = np.full((len(items), paths_each, horizon), np.nan)
        sampling = {"temperature": temperature, "steps": steps, "head_steps": head_steps, "sampler": sampler}
        # Series of about equal length share a batch, so that little is computed on padding.
        order = sorted(range(len(items)), key=lambda i: len(items[i].values))

        def draw(rows: list[int]) -> np.ndarray:
            noise = SampleNoise(seed, torch.arange(paths_each, device=self.model.device).repeat(len(rows)))
            batch = [items[row] for row in rows]
            shown = None if prompt is None else prompt.encode(self.adapter, [places[row] for row in rows])
            return self._paths(batch, horizon, room, shown, paths_each, sampling | {"generator": noise})

        batches = [order[start : start + batch_size] for start in range(0, len(items), batch_size)]
        for rows, paths in zip(batches, ranks.share(draw, batches), strict=True):
            samples[rows] = paths
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

    def _prompt(self, examples: Any, pool: list[Series] | None = None) -> Prompt | None:
        """What stands in front of every lookback, checked."""
        step, patch = self.adapter.options.patch * self.block, self.adapter.options.patch
        if isinstance(examples, str) and examples == "trained":
            examples = self.examples
        if isinstance(examples, str):
            as_trained = {} if self.examples is None else self.examples.model_dump()
            examples = parse(Examples, as_trained | {"strategy": examples}, "examples")
        if pool is not None and not isinstance(examples, Examples):
            raise ValueError("pool is given, but no examples that are looked for in one; they must be 'similar'")
        if examples is None:
            return None
        if isinstance(examples, Examples):
            prompt = searched(examples, self.lookback, step, patch, pool)
        else:
            shown = as_series(examples)
            self._check(shown)
            prompt = fixed(shown, step)
        check_room(prompt, self.lookback, step, self.trained * patch)
        return prompt

    def _series(self, source: Any, reading: dict[str, Any]) -> list[Series]:
        """Whatever holds series -> those that have what the adapter needs."""
        for name in reading:
            legal = set(inspect.signature(read_series).parameters) - {"source"}
            if name not in legal:
                own = set(inspect.signature(self.predict).parameters) - {"reading"}
                raise ValueError(unknown_key(name, legal | own, "predict"))
        ready = isinstance(source, list) and source and all(isinstance(item, Series) for item in source)
        items = source if ready else read_series(source, **reading)
        self._check(items)
        return items

    def _check(self, items: list[Series]) -> None:
        options = self.adapter.options
        self.adapter.origins((item, 0) for item in items)  # raises ValueError for one without times, if they are needed
        for item in items:
            for name, given, count in (
                ("known", item.known, options.known_covariates),
                ("past", item.past, options.past_covariates),
            ):
                found = 0 if given is None else given.shape[1]
                if found != count:
                    raise ValueError(
                        f"series {item.item_id!r} has {found} {name} covariates; this model was trained with {count}"
                    )

    def _read(self, source: Any, horizon: int, reading: dict[str, Any]) -> list[Series]:
        items = self._series(source, reading)
        for item in items:
            if np.isnan(item.values[-self.lookback :]).all():
                raise ValueError(
                    f"series {item.item_id!r} has no observed value in its last {self.lookback} steps, the model's "
                    "lookback; fill the gap or cut it off"
                )
            if item.known is not None and len(item.known) < len(item.values) + horizon:
                raise ValueError(
                    f"known covariates of series {item.item_id!r} reach {len(item.known) - len(item.values)} steps "
                    f"past its end; the horizon needs {horizon}"
                )
        return items

    def _room(self, horizon: int, roll_out: str, prompt: Prompt | None) -> int:
        """How many steps are drawn in one go; the same for every series, however short, so that a forecast does not
        depend on its batch."""
        patch, step = self.adapter.options.patch, self.adapter.options.patch * self.block
        shown, once = (0 if each is None else each.steps for each in (prompt, self._trained_prompt))
        if roll_out == "window":  # as many as were trained beyond the lookback
            return max(self.trained * patch - max(shown, once) - self.lookback, step) // step * step
        if roll_out != "cache":
            raise ValueError(f"roll_out is {roll_out!r}; it must be 'window' or 'cache'")
        room = -(-horizon // step) * step
        patches, name = (shown + self.lookback + room) // patch, self.adapter.modality
        options, longest = self.model.options[name], self.model.backbone.longest
        # Where the first block is not drawn, either, the last one takes no positions.
        if longest is not None and options.start == "none" and self.model.objectives[name].reads_sources:
            longest += self.block
        longest = self.trained if options.is_bound_to_grid else longest
        if longest is not None and patches > longest:
            raise ValueError(
                f"roll_out is 'cache' with a horizon of {horizon} steps, a sequence of {patches} patches; the learned "
                f"positions of this model end at {longest}, so it must be 'window'"
            )
        return room

    def _paths(
        self,
        items: list[Series],
        horizon: int,
        room: int,
        prompt: Segment | None,
        num_samples: int,
        sampling: dict[str, Any],
    ) -> np.ndarray:
        """[B, S, H] sample paths of one batch, `room` steps at a time."""
        past = stack_series([item.values[-self.lookback :] for item in items])
        known, past_only = self._covariates(items, horizon)
        drawn: list[Tensor] = []
        for done in range(0, horizon, room):
            repeats = 1 if drawn else num_samples
            each = len(past) // len(items)
            origins = self.adapter.origins((item, len(item.values) + done) for item in items for _ in range(each))
            size = min(room, horizon - done)
            shown = None if prompt is None else prompt.repeat_interleave(each)
            drawn.append(self._chunk(past, size, known, past_only, origins, shown, repeats, sampling))
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
        origins: list[Any] | None,
        prompt: Segment | None,
        repeats: int,
        sampling: dict[str, Any],
    ) -> Tensor:
        """[B * repeats, size] float64: the next `size` steps in one generation."""
        patch = self.adapter.options.patch
        step = patch * self.block
        whole = -(-size // step) * step
        # Blocks are counted from the start of what the model sees, so the known part must be whole blocks.
        length = self.lookback
        if prompt is None:  # else it would stand elsewhere than in training
            length = min(-(-past.shape[1] // step) * step, length)
        if known is not None:
            known = known[:, : past.shape[1] + whole]
            missing = past.shape[1] + whole - known.shape[1]  # past the horizon: drawn with the block, then cut off
            known = torch.cat([known, known[:, -1:].expand(-1, missing, -1)], 1)
        segment = self.adapter.encode(
            last_steps(past, length),
            horizon=whole,
            known_covariates=None if known is None else last_steps(known, length + whole),
            past_covariates=None if past_only is None else last_steps(past_only, length),
            origins=origins,
        )
        first = 0 if prompt is None else prompt.num_elements * patch
        drawn = self.model.generate(
            [],
            self.adapter.modality,
            given=segment if prompt is None else in_front(prompt, segment),
            num_samples=repeats,
            known_blocks=(first + length) // step,
            **sampling,
        )
        return self.adapter.decode(drawn.to("cpu"))[:, first + length : first + length + size]

    def _covariates(self, items: list[Series], horizon: int) -> tuple[Tensor | None, Tensor | None]:
        """[B, L + horizon, F] known and [B, L, Q] past-only covariates of the lookbacks, or None."""
        known = past = None
        if self.adapter.options.known_covariates:
            reach = [slice(max(len(item.values) - self.lookback, 0), len(item.values) + horizon) for item in items]
            known = stack_series([cast(np.ndarray, item.known)[own] for item, own in zip(items, reach, strict=True)])
        if self.adapter.options.past_covariates:
            past = stack_series([cast(np.ndarray, item.past)[-self.lookback :] for item in items])
        return known, past
