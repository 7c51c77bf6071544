"""Schedules: what changes of a modality while a model is trained, and is gone when it has been."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from tqdm import tqdm  # type: ignore[import-untyped]  # types-tqdm is not worth a dependency
from transformers import TrainerCallback

from ..configuration import UnimodalARConfig
from ..curriculum import group_cell
from ..layout import Layout
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..schema import DiscreteElement
from .draws import Draws
from .levels import candidate_ranges, clip_levels, largest_block, levels_problem, search_levels

Points = Sequence[tuple[float, float]]


def held(points: Points, fraction: float) -> float:
    """The value of the last point at or before `fraction`."""
    return [value for at, value in points if at <= fraction][-1]


def stepwise(points: Points, fraction: float) -> int:
    """The same, a whole number."""
    return int(held(points, fraction))


def linear(points: Points, fraction: float) -> float:
    """Between two points along the line that joins them; after the last one its value."""
    for (a, first), (b, second) in pairwise(points):
        if fraction < b:
            return first + (second - first) * (fraction - a) / (b - a)
    return points[-1][1]


VALUES: dict[str, Any] = {"group": stepwise, "random_order": linear}
"""By field of `Curriculum`."""


class Schedule(TrainerCallback):
    """Sets the model's curricula before every step, and its noise levels at every evaluation.

    Args:
        schedule: "modality.group", "modality.random_order" or "modality.levels" -> points (fraction of all steps,
            value), beginning at 0. Groups change stepwise, the share of batches in random order linearly. The value of
            levels, which holds up to the next point, is a width in [0.1, 1]: at every evaluation the noise of block
            diffusion is clipped to the range, at least so wide, in which the loss varies least (`levels.search_levels`,
            on up to an evaluation's batch of validation examples). The ranges go to the log.
        model: whose curricula are set.

    Raises:
        ValueError: the schedule does not fit the model, see `check_schedule`; when training starts, levels without
            evaluations.
    """

    def __init__(self, schedule: Mapping[str, Points], model: UnimodalARForGeneration) -> None:
        problems = check_schedule(schedule, model.config)
        if problems:
            raise ValueError("; ".join(problems))
        self.schedule, self.model = schedule, model

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for modality, field, points in self._entries(*VALUES):
            value = VALUES[field](points, state.global_step / state.max_steps)
            setattr(self.model.curricula[modality], field, value)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Goes on with the levels of a training that is resumed: they are in its log."""
        for modality, field, _ in self._entries("levels"):
            if args.eval_strategy == "no":
                raise ValueError(
                    f"schedule.{modality}.{field} are chosen at evaluations; training.eval_strategy must not be 'no'"
                )
            chosen = [entry[f"{modality}_levels"] for entry in state.log_history if f"{modality}_levels" in entry]
            if chosen:
                clip_levels(self.model, modality, *chosen[-1])

    def on_evaluate(self, args: Any, state: Any, control: Any, eval_dataloader: Any = None, **kwargs: Any) -> None:
        for modality, _, points in self._entries("levels"):
            width = held(points, state.global_step / max(state.max_steps, 1))
            batch = _some(eval_dataloader, args.eval_batch_size)
            ranges = candidate_ranges(largest_block(self.model, modality), width)
            found = search_levels(self.model, [batch], ranges, modality)
            low, high, variance = min(found, key=lambda entry: entry[2])
            clip_levels(self.model, modality, low, high)
            entry = {f"{modality}_levels": [low, high], f"{modality}_loss_variance": variance}
            state.log_history.append({**entry, "step": state.global_step, "epoch": state.epoch})
            if state.is_world_process_zero:
                tqdm.write(f"step {state.global_step}  noise levels of {modality} from {low} to {high}")

    def _entries(self, *fields: str) -> list[tuple[str, str, Points]]:
        """(modality, field, points) of the keys of these fields."""
        entries = [(*key.rpartition("."), points) for key, points in self.schedule.items()]
        return [(modality, field, points) for modality, _, field, points in entries if field in fields]


def check_schedule(schedule: Mapping[str, Points], config: UnimodalARConfig) -> list[str]:
    """One sentence for everything in which a schedule does not fit a model."""
    problems = []
    for key, points in schedule.items():
        modality, _, field = key.rpartition(".")
        generated = [name for name in config.modalities if config.modality(name).head is not None]
        if field not in CHECKS or modality not in generated:
            legal = [f"{name}.{field}" for name in generated for field in CHECKS]
            problems.append(f"schedule has an unknown key {key!r}; legal keys are {legal}")
            continue
        fractions = [at for at, _ in points]
        if not points or fractions[0] != 0 or not all(a < b <= 1 for a, b in pairwise(fractions)):
            problems.append(f"schedule.{key} has points at {fractions}; they must begin at 0 and increase up to 1")
            continue
        wrong = CHECKS[field](points, config.modality(modality))
        problems += [f"schedule.{key} {wrong}"] if wrong else []
    return problems


def _check_group(points: Points, options: ModalityOptions) -> str | None:
    if wrong := _check_sources(options):
        return wrong
    if points[-1][0] == 1:
        return "ends at 1, after the last step; the last phase must begin before"
    values = [value for _, value in points]
    if not isinstance(options.element, DiscreteElement) or options.element.codes > 1:
        return "groups codes; the modality's elements must be single codes"
    if not all(math.isfinite(value) and value == int(value) >= 1 for value in values) or values[-1] != 1:
        return f"takes the values {values}; they must be integers >= 1, and the last one 1"
    for value in values:
        cell = group_cell(options.grid, int(value))
        if any(extent % part for extent, part in zip(options.grid, cell, strict=True)):
            return f"takes the value {value:g}, which does not divide the grid {list(options.grid)}"
        coarse = [extent // part for extent, part in zip(options.grid, cell, strict=True)]
        try:
            Layout.from_grid(coarse, options.layout.order, options.layout.block, torch.Generator())
        except ValueError as error:
            return f"takes the value {value:g}, with which the layout does not go: {error}"
    return None


def _check_random_order(points: Points, options: ModalityOptions) -> str | None:
    if wrong := _check_sources(options):
        return wrong
    values = [value for _, value in points]
    if any(not 0 <= value <= 1 for value in values):
        return f"takes the values {values}; they must lie in [0, 1]"
    if options.layout.order != "raster":
        return f"is annealed to raster order; the modality's layout.order is {options.layout.order!r}"
    if Layout.from_grid(options.grid, "raster", options.layout.block).num_blocks == 1:
        return "has nothing to order; the modality's layout is a single block"
    positions = options.target_positions
    if positions == "starts" or (positions is None and not options.has_shared_sources):
        return f"needs the modality's target_positions, 'fourier' or 'learned'; they are {positions!r}"
    return None


def _check_sources(options: ModalityOptions) -> str | None:
    """For what changes how elements are predicted from others, or from a start."""
    objective = options.built_objective
    if objective is None or not objective.reads_sources or options.start == "none":
        return f"is for next_block with a start; the modality has {options.objective} and start {options.start!r}"
    return None


def _check_levels(points: Points, options: ModalityOptions) -> str | None:
    values = [value for _, value in points]
    if any(not 0.1 <= value <= 1 for value in values):
        return f"takes the values {values}; they are widths of ranges of noise levels and must lie in [0.1, 1]"
    return levels_problem(options)


CHECKS: dict[str, Callable[[Points, ModalityOptions], str | None]] = {
    "group": _check_group,
    "random_order": _check_random_order,
    "levels": _check_levels,
}
"""By field: what of its points does not fit a modality, as the end of a sentence."""


def _some(dataloader: Any, count: int) -> Any:
    """A batch of up to `count` examples from all over the data. (To leave an iteration of the loader itself unfinished
    would confuse accelerate about where training's is.)"""
    data = dataloader.dataset
    step = -(-len(data) // count)
    return data.__getitems__(list(Draws(len(data), seed=0, shuffle=False))[::step])
