"""Judges a trained model again, as its recipe says or on other data."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import NonNegativeInt

from ..adapters.base import load_adapters
from ..configuration import UnimodalARConfig
from ..prompts import trained_with
from ..saving import load_model
from ..schema import Strict, parse
from .data import DATA, Evaluator, SeriesData
from .documents import load_recipe

_SOURCES = ("path", "dataset")  # of which a data section names one


class _Judged(Strict):
    """What of a recipe an evaluation reads."""

    seed: NonNegativeInt = 0
    data: dict[str, Any]
    evaluation: dict[str, Any]


def evaluate(
    folder: str | os.PathLike[str],
    overrides: Sequence[str] = (),
    device: torch.device | str | None = None,
    files: Path | None = None,
) -> dict[str, Any]:
    """What the evaluation of a recipe finds of the model that it trained; nothing is written to the model's folder.

    Args:
        folder: of the model, with the recipe.yaml that training wrote.
        overrides: "data.a=value", "evaluation.a=value" or "seed=value" strings over that recipe, as `load_recipe` takes
            them. A new data.path takes the place of data.dataset, and the other way round; all else that is not
            overridden is as in training, the parts' lengths, say.
        device: None: a GPU if there is one.
        files: an existing folder for samples and pictures, where the data's kind makes some. None: none are made.

    Returns:
        As evaluation.json, which training writes.

    Raises:
        ValueError: no model, no recipe or one without an evaluation, an override without effect on an evaluation, data
            that do not fit the model or the evaluation.
    """
    folder = Path(folder)
    for name in ("config.json", "recipe.yaml"):
        if not (folder / name).is_file():
            raise ValueError(f"{str(folder)!r} holds no {name}; it must be a model's folder that training wrote")
    evaluator = _evaluator(folder, _read(folder / "recipe.yaml", overrides))
    return evaluator.run(load_model(folder, device), files)


def _read(recipe: Path, overrides: Sequence[str]) -> _Judged:
    document = load_recipe(recipe, [*_set_aside(overrides), *overrides])
    if document.get("evaluation") is None:
        raise ValueError(f"{recipe} has no section evaluation; say what is wanted by --set evaluation.KEY=VALUE")
    judged = parse(_Judged, {key: document[key] for key in _Judged.model_fields if key in document}, str(recipe))
    kind = judged.data.get("kind")
    if kind not in list(DATA):
        raise ValueError(f"data.kind is {kind!r}; known kinds are {sorted(DATA)}")
    for override in overrides:
        _check_effect(override, kind)
    return judged


def _set_aside(overrides: Sequence[str]) -> list[str]:
    """Overrides that take out the source which another one replaces."""
    keys = {override.partition("=")[0] for override in overrides}
    named = [name for name in _SOURCES if f"data.{name}" in keys]
    return [f"data.{other}=null" for other in _SOURCES if named and other not in named]


def _check_effect(override: str, kind: str) -> None:
    key = override.partition("=")[0]
    without = {f"data.{name}" for name in DATA[kind].of_training}
    if key.split(".")[0] not in _Judged.model_fields or key in without:
        but = f", but for {', '.join(sorted(without))}" if without else ""
        raise ValueError(
            f"override is {override!r}, which changes nothing in how this model is judged; it must be of the recipe's "
            f"data, evaluation or seed{but}"
        )


def _evaluator(folder: Path, judged: _Judged) -> Evaluator:
    """Errors of both sections are told at once; what the data lack is found before the weights are loaded."""
    kind = DATA[judged.data["kind"]]
    section = {key: value for key, value in judged.data.items() if key != "kind"}
    parsed, problems = [], []
    for schema, given, where in ((kind.Options, section, "data"), (kind.Evaluation, judged.evaluation, "evaluation")):
        try:
            parsed.append(parse(schema, given, where))
        except ValueError as error:
            problems.append(str(error))
    if problems:
        raise ValueError("; ".join(problems))
    options, evaluation = parsed
    config = UnimodalARConfig.from_pretrained(folder)
    data = kind(options, load_adapters(folder))
    if isinstance(data, SeriesData):  # without examples, forecasts reach no further in one go than with them
        data.trained_examples = trained_with(folder, options.modality)
    data.check_model(config)
    evaluator: Evaluator = data.evaluator(evaluation, config, judged.seed)
    return evaluator
