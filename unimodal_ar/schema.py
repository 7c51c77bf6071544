"""Strict schemas for everything a user writes down: unknown keys are errors, and all errors are told at once."""

from __future__ import annotations

import operator
import types
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, ValidationInfo, field_validator


class Strict(BaseModel):
    """A schema that rejects unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class DiscreteElement(Strict):
    """One code, or `codes` codes side by side, each out of `vocab_size`.

    Args:
        merge: the codes are of one codebook, at neighbouring places, and share one table and one projection
            (Token-Shuffle, see `merging`). Without it each has its own of both, as the codes of several codebooks at
            one place need.
    """

    kind: Literal["discrete"]
    vocab_size: PositiveInt
    codes: PositiveInt = 1
    merge: bool = False

    @field_validator("merge")
    @classmethod
    def _several(cls, merge: bool, info: ValidationInfo) -> bool:
        if merge and info.data.get("codes") == 1:
            raise ValueError("codes is 1; only several codes per element can be merged")
        return merge


class ContinuousElement(Strict):
    """A real vector of size `dim` (a patch)."""

    kind: Literal["continuous"]
    dim: PositiveInt


class MLPOptions(Strict):
    """Hidden layers, each a linear map with a bias, an activation, and dropout in training.

    Args:
        layers: how many.
        width: of each.
        activation: "gelu" is the exact one.
        dropout: the probability that a hidden value is left out.
    """

    layers: PositiveInt = 1
    width: PositiveInt
    activation: Literal["tanh", "relu", "gelu", "silu"] = "gelu"
    dropout: float = Field(0.0, ge=0, lt=1)


Element = Annotated[DiscreteElement | ContinuousElement, Field(discriminator="kind")]

Model = TypeVar("Model", bound=BaseModel)


def parse(schema: type[Model], data: Any, where: str) -> Model:
    """`schema` filled from `data`.

    Raises:
        ValueError: names every offending key below `where`, its value and what is legal.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        problems: dict[str, list[str]] = {}  # by place: the members of a union each have their own complaint
        for problem in error.errors():
            place, complaint = _explain(schema, problem, where)
            problems.setdefault(place, []).append(complaint)
        raise ValueError("; ".join(place + " or ".join(told) for place, told in problems.items())) from None


def unknown_key(key: str, legal: Iterable[str], where: str) -> str:
    """The sentence for a key that does not exist, with the nearest one that does."""
    names = sorted(legal)
    near = get_close_matches(key, names, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"legal keys are {names}"
    return f"{where} has an unknown key {key!r}; {hint}"


def one_source(path: Any, dataset: Any) -> None:
    """Raises ValueError unless exactly one of both says where data come from."""
    if (path is None) == (dataset is None):
        raise ValueError(
            f"path is {path!r} and dataset is {dataset!r}; give exactly one of path and dataset, and null for the other"
        )


def positive_int(name: str, value: Any) -> int:
    """`value` as an int >= 1 (NumPy's too), or ValueError naming it."""
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < 1 or isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; it must be an integer >= 1")
    return count


def _explain(schema: type[BaseModel], problem: Any, where: str) -> tuple[str, str]:
    """The place with its value, and what is wrong there."""
    path = [str(part) for part in problem["loc"]]
    if problem["type"] == "extra_forbidden":
        owner, named = _walk(schema, path[:-1])
        legal = owner.model_fields if owner else ()
        return unknown_key(path[-1], legal, ".".join([where, *named])), ""
    owner, named = _walk(schema, path)
    # Of a whole section, the sentence names the key: all the others would only hide it.
    whole = problem["type"] == "value_error" and owner is not None and isinstance(problem["input"], dict)
    value = "" if whole or problem["type"] == "missing" else f" is {problem['input']!r}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "model_type" and owner is not None:  # pydantic names the class
        message = f"it must be a section with keys of {list(owner.model_fields)}"
    return f"{'.'.join([where, *named])}{value}: ", f"{message[0].lower()}{message[1:]}"


def _walk(annotation: Any, path: list[str]) -> tuple[Any, list[str]]:
    """Follows an error's location. Returns the schema it ends in (None: not a schema) and the keys a user would name:
    a location also holds the tags of unions, which are not keys."""
    named: list[str] = []
    for part in path:
        models = _models(annotation)
        fields = [model.model_fields[part] for model in models if part in model.model_fields]
        tagged = [model for model in models if _tag(model) == part]
        if tagged and len(models) > 1:  # looked at first: a tag may be called like a field
            annotation = tagged[0]
        elif fields:
            annotation = fields[0].annotation
            named.append(part)
        elif not models and _is_union(annotation):  # the part says which member complains
            annotation = None
        elif not models or get_origin(annotation) in (list, dict):
            named.append(part)
            annotation = (get_args(annotation) or (None,))[-1]
    models = _models(annotation)
    return (models[0] if models else None), named


def _models(annotation: Any) -> list[Any]:
    """The schemas an annotation may stand for."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        return [model for member in get_args(annotation) for model in _models(member)]
    return []


def _is_union(annotation: Any) -> bool:
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else ()
    return sum(member is not type(None) for member in members) > 1


def _tag(model: Any) -> str | None:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind is not None and get_origin(kind.annotation) is Literal else None
