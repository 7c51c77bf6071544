"""Cards as text and as files."""

from __future__ import annotations

import json
import os
import re
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCard

from .._version import __version__
from ..places import CARD, HUB_ID
from ..schema import parse
from ..stamp import USE, is_unedited, stamped
from . import sections
from .facts import Facts, read
from .limits import limits
from .metadata import data
from .options import CardOptions

_STATED = ("license", "license_name", "license_link", "datasets")  # in a card's front matter, and not derived

_SAID = re.compile(
    r"^<!-- Stated: ({.*}) -->$", re.MULTILINE
)  # not shown: what the author said, and no other line tells apart


def card(
    folder: str | os.PathLike[str],
    place: str | None = None,
    options: CardOptions | None = None,
    *,
    title: str | None = None,
) -> str:
    """The card of the model in `folder`, from the files there.

    Args:
        folder: that training or conversion wrote, or `save_pretrained`.
        place: where its lines of code load the model from: a folder, or an id on the Hub. None: the folder's name.
        options: what else it says. None: as the recipe's section `card`, and what an earlier card there says of
            licence and data sets.
        title: None: the last part of `place`.

    Raises:
        ValueError: no model, or files that cannot be read.
    """
    folder = Path(folder)
    facts = read(folder)
    place = place or Path(os.path.abspath(folder)).name
    title = title or (place.rpartition("/")[2] if HUB_ID.fullmatch(place) else Path(os.path.abspath(place)).name)
    options = options or options_of(folder, facts)
    template = resources.files(__package__).joinpath("template.md").read_text(encoding="utf-8")
    text = Template(template).substitute(_parts(facts, options, place, title))
    while "\n\n\n" in text:  # where a part is empty
        text = text.replace("\n\n\n", "\n\n")
    if said := options.model_dump(exclude_defaults=True, exclude=set(_STATED)):
        told = json.dumps(said).replace("-", r"\u002d")  # or "-->" would end the comment
        text += f"\n<!-- Stated: {told} -->"
    return stamped(f"---\n{data(facts, options, title).to_yaml()}\n---\n\n{text}")


def _parts(facts: Facts, options: CardOptions, place: str, title: str) -> dict[str, str]:
    return {
        "title": title,
        "summary": sections.summary(facts, options),
        "sample": sections.sample(facts),
        "model": sections.model(facts),
        "use_heading": USE,
        "use": sections.use(facts, place),
        "data": sections.data(facts, options),
        "training": sections.training(facts),
        "evaluation": sections.evaluation(facts),
        "limits": limits(facts),
        "versions": sections.versions(facts, __version__),
    }


def options_of(folder: Path, facts: Facts | None = None, **given: Any) -> CardOptions:
    """What the recipe in `folder` says for the card, over it what an earlier card there says, and over both `given`."""
    facts = facts or read(folder)
    recipe = facts.section("card")
    earlier = {}
    if (folder / CARD).is_file():
        text = (folder / CARD).read_text(encoding="utf-8")
        front = ModelCard(text, ignore_metadata_errors=True).data.to_dict()
        earlier = _said(text, folder) | {key: front[key] for key in _STATED if front.get(key)}
        if isinstance(earlier.get("datasets"), str):
            earlier["datasets"] = [earlier["datasets"]]
    stated = {**recipe, **earlier}
    if given.get("license") not in (None, stated.get("license")):  # what is said of another one is not of this
        stated = {key: value for key, value in stated.items() if key not in ("license_name", "license_link")}
    return parse(CardOptions, {**stated, **given}, "card")


def _said(text: str, folder: Path) -> dict[str, Any]:
    """What a card tells besides its front matter that was not derived."""
    found = _SAID.search(text)
    try:
        return json.loads(found[1]) if found else {}
    except ValueError:
        raise ValueError(
            f"{folder / CARD} has a line '<!-- Stated' that is no JSON; it must be as it was written"
        ) from None


def write_card(folder: Path, place: str | None = None, options: CardOptions | None = None) -> None:
    """Writes the card of the model in `folder` there (see `card`), in place of what is there."""
    (folder / CARD).write_text(card(folder, place, options), encoding="utf-8")


def standing_on(text: str, base: str) -> str:
    """An unedited card of layers around a frozen body, with the id on the Hub of that body."""
    found = ModelCard(text)
    front: Any = found.data
    front.base_model, front.base_model_relation = base, "adapter"
    return stamped(re.sub(r"(it is read from) `[^`]*`(, which must be there)?", rf"\1 `{base}`", str(found)))


def check_card(folder: Path, option: str = "FOLDER") -> None:
    """Raises ValueError where the folder holds a card that somebody wrote or edited, and which would be replaced."""
    path = folder / CARD
    if path.is_file() and not is_unedited(path.read_bytes()):
        raise ValueError(
            f"{option} {str(folder)!r} holds a {CARD} that was written or edited by hand and would be replaced; move "
            "it away, or replace it by `unimodal-ar card --overwrite`"
        )
