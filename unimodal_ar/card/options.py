"""What a card says that nobody but its author knows: the recipe's section `card`, and options of `unimodal-ar card`."""

from __future__ import annotations

import re

from pydantic import field_validator, model_validator

from ..schema import Strict

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_DATASET = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_PAGE = "https://huggingface.co/docs/hub/repositories-licenses"


class CardOptions(Strict):
    """What of a model's card is not known from its folder. What is left out is "not stated" there.

    Args:
        license: of the weights, by its name on the Hub: "apache-2.0", "cc-by-sa-4.0", "other", ... (all of them:
            https://huggingface.co/docs/hub/repositories-licenses; that it is one is the Hub's to say).
        license_name, license_link: of "other": what it is called, and where it can be read.
        data: what the model was trained on, where it comes from and under which licence, in words.
        datasets: ids on the Hub of what it was trained on.
        tags: besides those that follow from the model.
        description: what the model is for, in words.
    """

    license: str | None = None
    license_name: str | None = None
    license_link: str | None = None
    data: str | None = None
    datasets: list[str] = []
    tags: list[str] = []
    description: str | None = None

    @field_validator("license")
    @classmethod
    def _is_name(cls, license: str | None) -> str | None:
        if license is not None and not _LICENSE.fullmatch(license):
            raise ValueError(f"it must be one of the Hub's names of licences, such as 'apache-2.0' (see {_PAGE})")
        return license

    @field_validator("datasets")
    @classmethod
    def _are_ids(cls, datasets: list[str]) -> list[str]:
        odd = [name for name in datasets if not _DATASET.fullmatch(name)]
        if odd:
            raise ValueError(f"{odd[0]!r} is no id on the Hub, 'owner/name'; other data are described by `data`")
        return datasets

    @model_validator(mode="after")
    def _names_others(self) -> CardOptions:
        if (self.license == "other") != (self.license_name is not None):
            raise ValueError("license 'other' needs its license_name, and only that one has it")
        if self.license_link is not None and self.license != "other":
            raise ValueError("license_link is for the license 'other'; the Hub knows where all others can be read")
        return self
