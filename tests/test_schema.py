"""The messages of `parse`: every wrong key by its full name, its value, and what is legal."""

from __future__ import annotations

from typing import Annotated, Literal

import pytest
from pydantic import Field, PositiveInt, field_validator, model_validator

from unimodal_ar.schema import Element, Strict, parse, unknown_key


class Leaf(Strict):
    size: PositiveInt = 1
    mode: Literal["near", "far"] = "near"

    @field_validator("size")
    @classmethod
    def _even(cls, size: int) -> int:
        if size % 2 and size > 1:
            raise ValueError("Must be even")
        return size


class Twig(Strict):
    length: float


class Tree(Strict):
    name: str
    element: Element = Field(default={"kind": "continuous", "dim": 1}, validate_default=True)
    leaf: Leaf = Leaf()
    leaves: list[Leaf] = []
    by_name: dict[str, Leaf] = {}
    maybe: Leaf | None = None
    either: int | list[int] = 0

    @model_validator(mode="after")
    def _named(self) -> Tree:
        if self.name == "forbidden":
            raise ValueError("name and leaf do not go together")
        return self


def _message(**data: object) -> str:
    with pytest.raises(ValueError, match=r"^tree") as caught:
        parse(Tree, {"name": "oak", **data}, "tree")
    assert type(caught.value) is ValueError  # one sentence, not pydantic's many lines
    return str(caught.value)


def test_legal_data_give_the_schema() -> None:
    tree = parse(Tree, {"name": "oak", "leaves": [{"size": 2}], "by_name": {"a": {"mode": "far"}}}, "tree")
    assert tree == Tree(name="oak", leaves=[Leaf(size=2)], by_name={"a": Leaf(mode="far")})


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ({"nane": "x"}, "tree has an unknown key 'nane'; did you mean 'name'?"),
        ({"leaf": {"sizes": 2}}, "tree.leaf has an unknown key 'sizes'; did you mean 'size'?"),
        ({"leaves": [{}, {"sizes": 2}]}, "tree.leaves.1 has an unknown key 'sizes'; did you mean 'size'?"),
        ({"by_name": {"a": {"sizes": 2}}}, "tree.by_name.a has an unknown key 'sizes'; did you mean 'size'?"),
        ({"maybe": {"sizes": 2}}, "tree.maybe has an unknown key 'sizes'; did you mean 'size'?"),
        ({"leaf": {"zzz": 2}}, "tree.leaf has an unknown key 'zzz'; legal keys are ['mode', 'size']"),
    ],
)
def test_unknown_key_is_told_with_its_place_and_the_nearest(data: dict[str, object], expected: str) -> None:
    assert _message(**data) == expected


@pytest.mark.parametrize(
    ("data", "start"),
    [
        ({"name": 3}, "tree.name is 3: "),
        ({"leaf": {"size": 0}}, "tree.leaf.size is 0: "),
        ({"leaves": [{"size": 2}, {"size": -1}]}, "tree.leaves.1.size is -1: "),
        ({"by_name": {"a": {"mode": "middle"}}}, "tree.by_name.a.mode is 'middle': "),
        ({"leaf": 7}, "tree.leaf is 7: it must be a section with keys of ['size', 'mode']"),
        ({"maybe": 7}, "tree.maybe is 7: it must be a section with keys of ['size', 'mode']"),
        ({"either": "x"}, "tree.either is 'x': "),
        ({"either": [1, "x"]}, "tree.either is [1, 'x']: "),
    ],
)
def test_illegal_value_is_told_with_its_place(data: dict[str, object], start: str) -> None:
    assert _message(**data).startswith(start)


def test_members_of_a_union_complain_in_one_sentence() -> None:
    message = _message(either="x")
    assert message.count("tree.either") == 1
    assert "valid integer" in message and " or " in message and "valid list" in message


def test_own_validators_speak_without_pydantics_prefix() -> None:
    assert _message(leaf={"size": 3}) == "tree.leaf.size is 3: must be even"
    assert _message(name="forbidden").endswith(": name and leaf do not go together")


def test_missing_key_is_named_without_a_value() -> None:
    with pytest.raises(ValueError, match=r"^tree\.name: field required$"):
        parse(Tree, {}, "tree")


@pytest.mark.parametrize(
    ("element", "expected"),
    [
        ({"kind": "discrete", "vocab_sise": 3, "vocab_size": 3}, "tree.element has an unknown key 'vocab_sise'"),
        ({"kind": "discrete", "vocab_size": 0}, "tree.element.vocab_size is 0: "),
        ({"kind": "continuous"}, "tree.element.dim: field required"),
        # `dim` is a key of the union's other member: only this member's keys are legal.
        ({"kind": "discrete", "vocab_size": 2, "dims": 3}, "legal keys are ['codes', 'kind', 'merge', 'vocab_size']"),
    ],
)
def test_tag_of_a_union_is_no_part_of_the_place(element: dict[str, object], expected: str) -> None:
    message = _message(element=element)
    assert expected in message
    assert "element.discrete" not in message and "element.continuous" not in message


@pytest.mark.parametrize(
    ("element", "legal"),
    [
        ({"kind": "descrete", "vocab_size": 2}, "'discrete', 'continuous'"),
        ({"vocab_size": 2}, "'kind'"),
        (5, "dictionary"),
        ({"leaf": {"mode": "middle"}}, "'kind'"),
    ],
)
def test_wrong_tag_is_told_with_what_is_legal(element: object, legal: str) -> None:
    message = _message(element=element)
    assert message.startswith("tree.element is ")
    assert legal in message


def test_all_errors_are_told_at_once() -> None:
    message = _message(name=1, leef={}, leaf={"size": 0, "modes": 1}, leaves=[{"mode": 2}])
    for part in (
        "tree.name is 1",
        "'leef'; did you mean 'leaf'",
        "tree.leaf.size is 0",
        "'modes'",
        "tree.leaves.0.mode is 2",
    ):
        assert part in message
    assert message.count("; tree") == 4


def test_what_is_no_mapping_is_told_as_a_whole() -> None:
    with pytest.raises(ValueError, match=r"^tree is \[1\]: "):
        parse(Tree, [1], "tree")


def test_values_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Leaf().size = 2  # type: ignore[misc]


def test_unknown_key_prefers_the_nearest() -> None:
    assert unknown_key("sized", ["size", "side", "other"], "here") == (
        "here has an unknown key 'sized'; did you mean 'size'?"
    )


class Named(Strict):
    kind: Literal["level"]
    level: int


class Other(Strict):
    kind: Literal["other"]


class Tagged(Strict):
    part: Annotated[Named | Other, Field(discriminator="kind")]


def test_a_tag_may_be_called_like_a_field() -> None:
    with pytest.raises(ValueError, match=r"^x\.part\.level is 'a': "):
        parse(Tagged, {"part": {"kind": "level", "level": "a"}}, "x")
    with pytest.raises(ValueError, match=r"x\.part has an unknown key 'levels'; did you mean 'level'"):
        parse(Tagged, {"part": {"kind": "level", "level": 1, "levels": 2}}, "x")
