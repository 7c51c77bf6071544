"""Schedules: what changes of a modality while a model is trained, and is gone when it has been."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from transformers import TrainerCallback

from ..configuration import UnimodalARConfig
from ..curriculum import group_cell
from ..layout import Layout
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..schema import DiscreteElement

Points = Sequence[tuple[float, float]]


def stepwise(points: Points, fraction: float) -> int:
    """The value of the last point at or before `fraction`."""
    return int([value for at, value in points if at <= fraction][-1])


def linear(points: Points, fraction: float) -> float:
    """Between two points along the line that joins them; after the last one its value."""
    for (a, first), (b, second) in pairwise(points):
        if fraction < b:
            return first + (second - first) * (fraction - a) / (b - a)
    return points[-1][1]


VALUES: dict[str, Any] = {"group": stepwise, "random_order": linear}
"""By field of `Curriculum`."""


class Schedule(TrainerCallback):
    """Sets the model's curricula before every step.

    Args:
        schedule: "modality.group" or "modality.random_order" -> points (fraction of all steps, value), beginning at 0.
            Groups change stepwise, the share of batches in random order linearly.
        model: whose curricula are set.

    Raises:
        ValueError: the schedule does not fit the model, see `check_schedule`.
    """

    def __init__(self, schedule: Mapping[str, Points], model: UnimodalARForGeneration) -> None:
        problems = check_schedule(schedule, model.config)
        if problems:
            raise ValueError("; ".join(problems))
        self.schedule, self.model = schedule, model

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for key, points in self.schedule.items():
            modality, _, field = key.rpartition(".")
            setattr(self.model.curricula[modality], field, VALUES[field](points, state.global_step / state.max_steps))


def check_schedule(schedule: Mapping[str, Points], config: UnimodalARConfig) -> list[str]:
    """One sentence for everything in which a schedule does not fit a model."""
    problems = []
    for key, points in schedule.items():
        modality, _, field = key.rpartition(".")
        generated = [name for name in config.modalities if config.modality(name).head is not None]
        if field not in VALUES or modality not in generated:
            legal = [f"{name}.{field}" for name in generated for field in VALUES]
            problems.append(f"schedule has an unknown key {key!r}; legal keys are {legal}")
            continue
        fractions = [at for at, _ in points]
        if not points or fractions[0] != 0 or not all(a < b <= 1 for a, b in pairwise(fractions)):
            problems.append(f"schedule.{key} has points at {fractions}; they must begin at 0 and increase up to 1")
            continue
        if config.modality(modality).start == "none":
            problems.append(f"schedule.{key} is for modalities with a start; {modality!r} has start 'none'")
            continue
        if field == "group" and fractions[-1] == 1:
            problems.append(f"schedule.{key} ends at 1, after the last step; the last phase must begin before")
            continue
        check = _check_group if field == "group" else _check_random_order
        wrong = check([value for _, value in points], config.modality(modality))
        problems += [f"schedule.{key} {wrong}"] if wrong else []
    return problems


def _check_group(values: list[float], options: ModalityOptions) -> str | None:
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


def _check_random_order(values: list[float], options: ModalityOptions) -> str | None:
    if any(not 0 <= value <= 1 for value in values):
        return f"takes the values {values}; they must lie in [0, 1]"
    if options.layout.order != "raster":
        return f"is annealed to raster order; the modality's layout.order is {options.layout.order!r}"
    if Layout.from_grid(options.grid, "raster", options.layout.block).num_blocks == 1:
        return "has nothing to order; the modality's layout is a single block"
    if options.target_positions is None and not options.has_shared_sources:
        return "needs the modality's target_positions, 'fourier' or 'learned'; they are None"
    return None
