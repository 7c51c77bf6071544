"""Commands and Python code in the documents, as far as they can be checked without being run."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

from unimodal_ar.cli import _parser
from unimodal_ar.training.documents import load_recipe, read_recipe, shipped_recipes

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def _commands(text: str) -> list[list[str]]:
    """The words after `unimodal-ar`, of each command in a block."""
    lines = [line for kind, code in BLOCK.findall(text) if not kind for line in code.replace("\\\n", " ").splitlines()]
    commands = [line for line in lines if line.startswith("unimodal-ar ")]
    return [shlex.split(line.partition(" > ")[0], comments=True)[1:] for line in commands]


COMMANDS = [pytest.param(words, id=" ".join(words)) for path in DOCUMENTS for words in _commands(path.read_text())]


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 30


@pytest.mark.parametrize("words", COMMANDS)
def test_commands_have_options_and_recipes_that_exist(words: list[str]) -> None:
    arguments = _parser().parse_args(words)
    recipe = getattr(arguments, "recipe", None)
    if recipe in shipped_recipes() and words[0] != "recipes":
        load_recipe(recipe, arguments.overrides)
    elif words[0] == "recipes" and recipe:
        assert read_recipe(recipe)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_python_code_can_be_read(path: Path) -> None:
    for kind, code in BLOCK.findall(path.read_text()):
        if kind == "python":
            ast.parse(code)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if target.startswith("http"):
            continue
        file, _, heading = target.partition("#")
        found = (path.parent / file) if file else path
        assert found.exists(), target
        headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE) if heading else []
        slugs = [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in headings]
        assert not heading or heading in slugs, target
