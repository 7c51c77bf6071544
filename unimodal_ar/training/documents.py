"""Recipes as text: shipped ones and files, read as plain data with overrides."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

PACKAGE = "unimodal_ar.recipes"
CONFIGURATIONS = "accelerate"  # the folder beside the recipes of what `accelerate launch` is told


class _Loader(yaml.SafeLoader):
    """Reads 1e-3 as a number (YAML 1.1 wants a dot, 1.0e-3, and hands out a string otherwise), and refuses a key that
    stands twice in a mapping (PyYAML takes the last, though YAML forbids it)."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node = super().compose_mapping_node(anchor)
        lines: dict[Any, int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                problem = f"key {key.value!r} of line {lines[key.value]} stands again"
                raise yaml.composer.ComposerError(None, None, problem, key.start_mark)
            lines[key.value if isinstance(key, yaml.ScalarNode) else key] = key.start_mark.line + 1
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def load_recipe(name: str | os.PathLike[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """A recipe as plain data.

    Args:
        name: a path to a YAML file, or the name of a shipped recipe ("next_patch/temperature").
        overrides: "a.b=value" strings, the value as YAML; null takes an adapter or a modality out.

    Raises:
        ValueError: no such recipe, a file that is not a YAML mapping, an override that names no place.
    """
    if str(name) in shipped_configurations():
        raise ValueError(
            f"recipe is {str(name)!r}, which is for `accelerate launch --config_file`; it must be a recipe"
        )
    text = read_recipe(name)
    try:
        document = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"recipe {str(name)!r} is not YAML: {_reason(error)}") from None
    if not isinstance(document, dict):
        raise ValueError(f"recipe {str(name)!r} holds a {type(document).__name__}; it must be a mapping")
    for override in overrides:
        _override(document, override)
    return document


def recipes_writing(folder: str) -> list[str]:
    """Names of the shipped recipes whose model goes to `folder`."""
    return [name for name in shipped_recipes() if Path(load_recipe(name)["output_dir"]) == Path(folder)]


def shipped_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return [name for name in _shipped() if not name.startswith(f"{CONFIGURATIONS}/")]


def shipped_configurations() -> list[str]:
    """Names of the configurations of `accelerate launch` that come with the package."""
    return [name for name in _shipped() if name.startswith(f"{CONFIGURATIONS}/")]


def _shipped() -> list[str]:
    folders = [folder for folder in resources.files(PACKAGE).iterdir() if folder.is_dir()]
    files = [(folder.name, file.name) for folder in folders for file in folder.iterdir()]
    return sorted(f"{folder}/{file.removesuffix('.yaml')}" for folder, file in files if file.endswith(".yaml"))


def read_recipe(name: str | os.PathLike[str]) -> str:
    """The text of a recipe, or of a configuration, by path or shipped name."""
    name, path = str(name), Path(name)
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"recipe {name!r} is not UTF-8 text at byte {error.start}; it must be a YAML file"
            ) from None
    shipped = shipped_recipes()
    if name in (*shipped, *shipped_configurations()):
        return resources.files(PACKAGE).joinpath(*f"{name}.yaml".split("/")).read_text(encoding="utf-8")
    near = get_close_matches(name, shipped, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "`unimodal-ar recipes` lists those"
    raise ValueError(f"recipe is {name!r}; it must be a YAML file that exists, or the name of a shipped recipe; {hint}")


def _override(document: dict[str, Any], override: str) -> None:
    key, equals, value = override.partition("=")
    path = key.split(".")
    if not equals or not all(path):
        raise ValueError(f"override is {override!r}; it must be written a.b=value")
    place = document
    for part in path[:-1]:
        place[part] = {} if place.get(part) is None else place[part]  # a section may be null
        place = place[part]
        if not isinstance(place, dict):
            raise ValueError(f"override is {override!r}; {part!r} holds a value, not a section")
    try:
        place[path[-1]] = yaml.load(value, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(f"override is {override!r}; {value!r} is not YAML: {_reason(error)}") from None
    if (unspaced := _unspaced(place[path[-1]])) is not None:
        raise ValueError(f"override is {override!r}; {unspaced!r} needs a space behind its colon")
    if place[path[-1]] is None and path[:-1] in (["adapters"], ["model", "modalities"]):
        del place[path[-1]]


def _unspaced(value: Any) -> str | None:  # a "key:value" in it, which YAML takes for a key without a value
    inside = dict(enumerate(value)) if isinstance(value, list) else value if isinstance(value, dict) else {}
    found = [str(key) if inner is None and ":" in str(key) else _unspaced(inner) for key, inner in inside.items()]
    return next(filter(None, found), None)


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong and where, in a few words."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        return f"{error.problem} in line {error.problem_mark.line + 1}"
    return " ".join(str(error).split())
