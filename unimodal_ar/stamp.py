"""Cards (README.md) that nobody edited: a last line, which is not shown, tells them by the hash of what is above it."""

from __future__ import annotations

import hashlib
import re

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
    code = re.sub(r'(load|from_pretrained)\("[^"]*"', lambda found: f'{found[1]}("{place}"', code)
    code = re.sub(r"(--model|unimodal-ar merge) \S+", lambda found: f"{found[1]} {place}", code)
    return stamped(before + heading + code + rest)


def _text(card: str | bytes) -> str:
    text = card.decode("utf-8", "replace") if isinstance(card, bytes) else card
    return text.replace("\r\n", "\n")


def _hash(body: str) -> str:
    return hashlib.sha256(body.strip().encode()).hexdigest()
