"""Cards (README.md) that nobody edited: a last line, which is not shown, tells them by the hash of what is above it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

USE = "## How to use it"
_MARK = re.compile(r"<!-- Written by unimodal_ar; edited by nobody: ([0-9a-f]{64}) -->\s*\Z")


def stamped(text: str) -> str:
    """`text`, a card that was just written, with its last line, which a former one makes room for."""
    body = _MARK.sub("", text).rstrip() + "\n\n"
    return f"{body}<!-- Written by unimodal_ar; edited by nobody: {_hash(body)} -->\n"


def is_unedited(card: str | bytes) -> bool:
    """Whether it is as it was written: it may be replaced without a loss."""
    text = _text(card)
    mark = _MARK.search(text)
    return mark is not None and mark[1] == _hash(text[: mark.start()])


def named(card: str | bytes, place: str) -> str:
    """An unedited card whose lines of code load the model from `place`, a folder or an id on the Hub."""
    text = _text(card)
    mark = _MARK.search(text)
    assert mark is not None
    before, heading, after = text[: mark.start()].partition(f"\n{USE}\n")
    code, rest = re.split(r"(?=\n## )", after, maxsplit=1) if "\n## " in after else (after, "")
    return stamped(before + heading + _replaced(code, place, lambda _: True) + rest)


def elsewhere(card: bytes, folder: Path, place: str) -> bytes:
    """A card that somebody edited, and of which only lines of code change that load the model from `folder`."""
    here = folder.resolve()
    text = card.decode("utf-8", "surrogateescape")
    return _replaced(text, place, lambda old: Path(old).resolve() == here).encode("utf-8", "surrogateescape")


def _replaced(code: str, place: str, chosen: Callable[[str], bool]) -> str:
    def swapped(found: re.Match[str]) -> str:
        return f"{found[1]}{place}{found[3]}" if chosen(found[2].strip("'")) else found[0]

    code = re.sub(r"""((?:load|from_pretrained)\(")([^"\n]*)(")""", swapped, code)
    return re.sub(r"((?:--model|unimodal-ar merge) )('[^'\n]*'|\S+)()", swapped, code)


def _text(card: str | bytes) -> str:
    text = card.decode("utf-8", "replace") if isinstance(card, bytes) else card
    return text.replace("\r\n", "\n")


def _hash(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()
