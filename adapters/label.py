"""Class labels: a context of one element."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor

from ..schema import parse
from ..segment import Segment
from .base import Adapter, AdapterOptions, register_adapter

Label = int | str
# Names that a message lists; of more classes, the first ones.
LISTED = 10


@register_adapter("label")
class LabelAdapter(Adapter):
    """Labels <-> one code on the grid (1, 1, 1), context only (`target` is False).

    A label is a class's number from 0 on, or its name. Classes without names have their number in digits ("3") for a
    name, so that labels can come from a command line.

    Args:
        classes: how many classes there are, or their names in order.
        modality: name under which the model's configuration knows the labels.

    Raises:
        ValueError: an illegal argument.
    """

    class Options(AdapterOptions):
        classes: Annotated[int, Field(ge=1, strict=True)] | Annotated[list[str], Field(min_length=1)]
        modality: str = Field("label", min_length=1)

        @field_validator("classes")
        @classmethod
        def _check_classes(cls, classes: int | list[str]) -> int | list[str]:
            if isinstance(classes, list) and len(set(classes)) < len(classes):
                double = next(name for name in classes if classes.count(name) > 1)
                raise ValueError(f"the name {double!r} comes twice; names must be distinct")
            return classes

    options: Options
    grid = (1, 1, 1)

    def __init__(self, classes: int | Sequence[str], modality: str = "label") -> None:
        given = classes if isinstance(classes, (int, str)) else list(classes)
        self.options = parse(self.Options, {"classes": given, "modality": modality}, type(self).__name__)
        self.names = list(map(str, range(given))) if isinstance(given, int) else list(given)
        self._codes = {name: code for code, name in enumerate(self.names)}

    @property
    def is_named(self) -> bool:
        """Whether the classes have names of their own."""
        return not isinstance(self.options.classes, int)

    @property
    def element(self) -> dict[str, Any]:
        return {"kind": "discrete", "vocab_size": len(self.names)}

    @property
    def optional(self) -> bool:
        return len(self.names) == 1

    def parse(self, text: str) -> Any:
        """One label, or several with commas between them, by name or number."""
        if text in self.names:  # which may hold commas of its own
            return text
        return [int(part) if _is_number(part) and part not in self.names else part for part in text.split(",")]

    def encode(self, labels: Label | Sequence[Label] | np.ndarray | Tensor | None = None) -> Segment:
        """Labels -> values long [B, 1].

        Args:
            labels: one label or B of them. None: the only class there is.

        Raises:
            ValueError: a label that is no class, an empty list, None with several classes.
        """
        if labels is None and self.optional:
            labels = 0
        if labels is None:
            raise ValueError(f"{self.modality} is missing; {self._legal()}")
        if isinstance(labels, (np.ndarray, Tensor)):
            labels = labels.tolist()
        codes = [self._code(label) for label in (labels if isinstance(labels, (list, tuple, range)) else [labels])]
        if not codes:
            raise ValueError(f"the list of {self.modality}s is empty; it must hold at least one")
        values = torch.tensor(codes, dtype=torch.long)[:, None]
        return Segment(self.modality, values, grid=self.grid, target=False)

    def decode(self, segment: Segment) -> list[Label]:
        """The labels of the batch: names where the classes have names, else numbers.

        Raises:
            ValueError: a value that is no class.
        """
        codes = [self._code(code) for code in segment.values.flatten().tolist()]
        return [self.names[code] if self.is_named else code for code in codes]

    def _code(self, label: Any) -> int:
        if isinstance(label, str):
            if label in self._codes:
                return self._codes[label]
            near = get_close_matches(label, self.names, n=1) if self.is_named else []
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{self.modality} is {label!r}; {self._legal()}{hint}")
        try:
            code = operator.index(label)
        except TypeError:
            code = -1
        if isinstance(label, bool) or not 0 <= code < len(self.names):
            raise ValueError(f"{self.modality} is {label!r}; {self._legal()}")
        return code

    def _legal(self) -> str:
        count = len(self.names)
        if not self.is_named:
            return f"this adapter knows the classes 0..{count - 1}"
        listed = ", ".join(f"{code} {name!r}" for code, name in enumerate(self.names[:LISTED]))
        more = f" and {count - LISTED} more, up to {count - 1}" if count > LISTED else ""
        return f"this adapter knows the classes {listed}{more}"


def _is_number(text: str) -> bool:
    """Of ASCII digits: `int` would read those of other scripts, too."""
    return text.isascii() and text.isdecimal()
