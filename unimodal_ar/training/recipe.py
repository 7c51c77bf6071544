"""Recipes: one YAML file = model + adapters + data + training arguments + evaluation, checked before anything runs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import fields
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
import yaml
from pydantic import Field, NonNegativeInt, PositiveInt
from transformers import TrainingArguments

from ..adapters import ADAPTERS, Adapter, AutoAdapter
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..schema import Strict, parse, unknown_key
from .data import DATA, DataOptions

PACKAGE = "unimodal_ar.recipes"


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number. (YAML 1.1 wants a dot, 1.0e-3, and hands out a string otherwise.)"""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


class ModelSection(Strict):
    """`UnimodalARConfig` as YAML; `element`, `covariates` and `grid` of a modality come from its adapter and data where
    they are left out."""

    backbone: dict[str, Any] | str = Field(default_factory=lambda: {"model_type": UnimodalARDecoderConfig.model_type})
    modalities: dict[str, dict[str, Any]]


class EvaluationSection(Strict):
    """Rolling forecasts over the held-out end of every series.

    Args:
        horizons: in steps; each gets its own table.
        stride: steps between forecast origins.
        season: in steps, of the seasonal naive baseline and of MASE.
        num_samples: sample paths per forecast.
    """

    horizons: list[PositiveInt] = Field(min_length=1)
    stride: PositiveInt
    season: PositiveInt
    num_samples: PositiveInt = 100


class Recipe(Strict):
    """A recipe as written down.

    Args:
        seed: of weights, data order and sampling.
        output_dir: where the model, its adapters, the resolved recipe and the evaluation go.
        model, adapters, data: see their schemas.
        training: `transformers.TrainingArguments` by name.
        early_stopping: stop after so many evaluations without a better validation loss; 0: never.
        evaluation: None: none.
    """

    seed: NonNegativeInt = 0
    output_dir: str
    model: ModelSection
    adapters: dict[str, dict[str, Any]]
    data: dict[str, Any]
    training: dict[str, Any]
    early_stopping: NonNegativeInt = 0
    evaluation: EvaluationSection | None = None


class Resolved:
    """A recipe whose parts are built and known to fit each other.

    Attributes:
        recipe: the schema; `document` is the same as plain data, ready to be saved.
        adapters: by modality.
        data: the source of examples.
        config: of the model.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        problems: list[str] = []
        recipe = _collect(problems, lambda: parse(Recipe, document, "recipe"))
        # Sections are looked at one by one even where the whole is wrong, so that all of it is told.
        sections = {name: _section(document, name) for name in ("adapters", "data", "training")}
        adapters = _collect(problems, lambda: _adapters(sections["adapters"]))
        options = _collect(problems, lambda: _data_options(sections["data"]))
        _collect(problems, lambda: _check_training(sections["training"]))
        ready = recipe and adapters and options
        data = _collect(problems, lambda: DATA[recipe.data["kind"]](options, adapters)) if ready else None
        config = _collect(problems, lambda: _config(recipe, adapters, data)) if data else None
        if problems:
            raise ValueError("; ".join(problems))
        self.recipe: Recipe = recipe
        self.adapters: dict[str, Adapter] = adapters
        self.data: Any = data
        self.config: UnimodalARConfig = cast(UnimodalARConfig, config)
        self.document = document

    def training_arguments(self, output_dir: Path, **changes: Any) -> TrainingArguments:
        """The recipe's arguments over the house's defaults."""
        defaults = {
            "seed": self.recipe.seed,
            "report_to": "none",
            "eval_strategy": "epoch",
            "logging_strategy": "epoch",
            "save_total_limit": 2,
            "metric_for_best_model": "eval_loss",
            "greater_is_better": False,
            "load_best_model_at_end": True,
            "lr_scheduler_type": "cosine",
            "weight_decay": 0.1,
            "max_grad_norm": 1.0,
            "dataloader_pin_memory": torch.cuda.is_available(),
        }
        arguments = {**defaults, **self.recipe.training, **changes}
        arguments.setdefault("save_strategy", arguments["eval_strategy"])
        if arguments["eval_strategy"] == "steps" and "eval_steps" in arguments:
            arguments.setdefault("save_steps", arguments["eval_steps"])
        return TrainingArguments(output_dir=str(output_dir), remove_unused_columns=False, **arguments)


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe as plain data.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe ("next_patch/temperature").
        overrides: "a.b=value" strings, the value as YAML.

    Raises:
        ValueError: no such recipe, a file that is not a YAML mapping, an override that names no place.
    """
    text = read_recipe(name)
    try:
        document = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {str(name)!r} is not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(document, dict):
        raise ValueError(f"recipe {str(name)!r} holds a {type(document).__name__}; it must be a mapping")
    for override in overrides:
        _override(document, override)
    return document


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    root = resources.files(PACKAGE)
    folders = [folder for folder in root.iterdir() if folder.is_dir()]
    return sorted(
        f"{folder.name}/{file.name.removesuffix('.yaml')}"
        for folder in folders
        for file in folder.iterdir()
        if file.name.endswith(".yaml")
    )


def read_recipe(name: str | os.PathLike[str]) -> str:
    """The text of a recipe, by path or shipped name."""
    name, path = str(name), Path(name)
    if path.is_file():
        return path.read_text(encoding="utf-8")
    shipped = shipped_recipes()
    if name in shipped:
        return resources.files(PACKAGE).joinpath(*f"{name}.yaml".split("/")).read_text(encoding="utf-8")
    raise ValueError(f"recipe is {name!r}; it must be a YAML file or one of the shipped {shipped}")


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise ValueError(f"override is {override!r}; it must be written a.b=value")
    place = document
    for part in path[:-1]:
        place = place.setdefault(part, {})
        if not isinstance(place, dict):
            raise ValueError(f"override is {override!r}; {part!r} holds a value, not a section")
    try:
        place[path[-1]] = yaml.load(value, _Loader)
    except yaml.YAMLError:
        raise ValueError(f"override is {override!r}; {value!r} is not YAML") from None


def _collect(problems: list[str], build: Any) -> Any:
    """`build()`, or None with its error noted: all errors of a recipe are told at once."""
    try:
        return build()
    except ValueError as error:
        problems.append(str(error))
        return None


def _section(document: Any, name: str) -> dict[str, Any] | None:
    """A section as far as it can be looked at; what it should be is the schema's to say."""
    section = document.get(name) if isinstance(document, dict) else None
    return section if isinstance(section, dict) else None


def _adapters(section: dict[str, Any] | None) -> dict[str, Adapter] | None:
    if section is None:
        return None
    if not section:
        raise ValueError(f"adapters is empty; it must map modalities to one of the kinds {sorted(ADAPTERS)}")
    adapters: dict[str, Adapter] = {}
    problems: list[str] = []
    for name, config in section.items():
        config = {"modality": name, **config} if isinstance(config, dict) else config
        try:
            adapters[name] = AutoAdapter.from_config(config, where=f"adapters.{name}")
        except ValueError as error:
            problems.append(str(error))
            continue
        if adapters[name].modality != name:
            problems.append(f"adapters.{name}.modality is {adapters[name].modality!r}; it must be its key, {name!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return adapters


def _data_options(section: dict[str, Any] | None) -> DataOptions | None:
    if section is None:
        return None
    kind = section.get("kind")
    if kind not in list(DATA):
        raise ValueError(f"data.kind is {kind!r}; known kinds are {sorted(DATA)}")
    return parse(DATA[kind].Options, {key: value for key, value in section.items() if key != "kind"}, "data")


def _config(recipe: Recipe, adapters: dict[str, Adapter], data: Any) -> UnimodalARConfig:
    modalities = {}
    for name, written in recipe.model.modalities.items():
        from_adapter = {"element": adapters[name].element} if name in adapters else {}
        modalities[name] = {**from_adapter, **data.modality_defaults(name), **written}
    for name in adapters:
        if name not in modalities:
            raise ValueError(f"adapters.{name} has no model.modalities.{name}; every adapter needs its modality")
    config = UnimodalARConfig(backbone=recipe.model.backbone, modalities=modalities)
    data.check_model(config)
    return config


def _check_training(section: dict[str, Any] | None) -> None:
    section = section or {}
    known = {field.name: field.default for field in fields(TrainingArguments) if field.init}
    legal = known.keys() - {"output_dir", "remove_unused_columns"}
    problems = [unknown_key(key, legal, "training") for key in section if key not in legal]
    for key in legal & section.keys():  # TrainingArguments checks no types
        if _is_number(known[key]) and not _is_number(section[key]):
            problems.append(f"training.{key} is {section[key]!r}; it must be a number")
    if "seed" in section:
        problems.append("training.seed is set; the recipe's own key seed governs everything")
    if problems:
        raise ValueError("; ".join(problems))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
