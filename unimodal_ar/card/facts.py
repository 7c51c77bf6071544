"""What a model's folder says of the model in it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml

from .. import lora
from ..configuration import UnimodalARConfig
from ..intact import header, read_json, weight_files
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..places import HUB_ID, PACKAGE, PROCESSOR, RECIPE, commit_of


@dataclass(frozen=True)
class Facts:
    """All that a card is written from.

    Attributes:
        folder: of the model.
        config: of the model.
        adapters: entries of processor_config.json, by modality; {}: there is none.
        recipe: as trained; {}: there is none.
        versions: package -> version, of which it is known; those of recipe.yaml and config.json.
        evaluation: of evaluation.json; {}: there is none.
        layers: adapter_config.json, of layers of PEFT; {}: there are none.
        samples: names of files to be seen or heard.
        parameters, frozen: how many in all, and of these in a frozen body.
        stored: how many are in the folder's files.
    """

    folder: Path
    config: UnimodalARConfig
    adapters: dict[str, dict[str, Any]]
    recipe: dict[str, Any]
    versions: dict[str, str]
    evaluation: dict[str, Any]
    layers: dict[str, Any]
    samples: list[str]
    parameters: int
    frozen: int
    stored: int

    @property
    def drawn(self) -> dict[str, ModalityOptions]:
        """The modalities that the model generates."""
        options = {name: self.config.modality(name) for name in self.config.modalities}
        return {name: option for name, option in options.items() if option.head is not None}

    @property
    def context(self) -> list[str]:
        return [name for name in self.config.modalities if name not in self.drawn]

    @property
    def kinds(self) -> list[str]:
        """Of the adapters of what is generated, as far as they are known."""
        return [str(self.adapters[name]["kind"]) for name in self.drawn if name in self.adapters]

    @property
    def merged(self) -> bool:
        """Whether layers of PEFT that were trained are now in the body's own weights."""
        return bool(self.section("peft")) and not (self.layers or self.config.soft_prompt)

    @property
    def source(self) -> dict[str, Any]:
        """Where the frozen body is; {}: nowhere else, or there is none."""
        return self.config.backbone_source or {}

    @property
    def body(self) -> dict[str, Any]:
        """`model.backbone` of the recipe."""
        body = self.section("model").get("backbone")
        return body if isinstance(body, dict) else {}

    @property
    def base(self) -> tuple[str, str] | None:
        """The id on the Hub of the model that this one stands on, and how: "adapter" or "finetune"."""
        if self.source:  # of a folder or a package there is no commit
            return (self.source["name_or_path"], "adapter") if self.source.get("revision") else None
        place, ablation = self.body.get("pretrained"), self.body.get("ablation")
        if ablation is not None or not isinstance(place, str) or not HUB_ID.fullmatch(place):
            return None
        # What only looks like an id, a folder that is not here, is in no cache.
        return (place, "finetune") if commit_of(place, self.body) else None

    def section(self, name: str) -> dict[str, Any]:
        """Of the recipe; {}: it has none."""
        section = self.recipe.get(name)
        return section if isinstance(section, dict) else {}


def short(place: str) -> str:
    """What may be told of a place on this machine: the last part of its path."""
    return place if place.startswith(PACKAGE) else Path(place).name


def code(text: Any) -> str:
    """`text`, whatever is in it, between backticks."""
    return f"`{' '.join(str(text).replace('`', chr(39)).split())}`"


def read(folder: Path) -> Facts:
    """The facts in `folder`.

    Raises:
        ValueError: it holds no model of this package, or a file that cannot be read.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} holds no config.json; it must be a model's folder")
    config = UnimodalARConfig.from_pretrained(folder)
    evaluation = _json(folder / "evaluation.json")
    samples = [name for name in ("samples.png", "samples.wav") if (folder / name).is_file()]
    recipe, versions = _recipe(folder / RECIPE)
    versions.setdefault("transformers", str(read_json(folder / "config.json").get("transformers_version") or ""))
    adapters = _json(folder / PROCESSOR).get("adapters") or {}
    layers = _json(folder / lora.CONFIG)
    known = {name: version for name, version in versions.items() if version}
    return Facts(folder, config, adapters, recipe, known, evaluation, layers, samples, *_sizes(config, folder))


def _sizes(config: UnimodalARConfig, folder: Path) -> tuple[int, int, int]:
    shapes = dict(shape for file in weight_files(folder) for shape in header(file))
    counts = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
    with torch.device("meta"):
        model = UnimodalARForGeneration(config)
    body = sum(x.numel() for x in model.backbone.model.parameters()) if config.freeze_backbone else 0
    inside = (lora.PREFIX + lora.BODY, lora.SHARED)
    layers = sum(count for name, count in counts.items() if name.startswith(inside))
    return sum(x.numel() for x in model.parameters()) + layers, body, sum(counts.values())


def _json(file: Path) -> dict[str, Any]:
    return read_json(file) if file.is_file() else {}


def recipe_in(text: str, file: Path) -> dict[str, Any]:
    """What `text`, the content of `file`, holds; raises ValueError where that is no recipe."""
    try:
        recipe = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"{file} is not YAML; it must be the recipe that training wrote") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{file} holds a {type(recipe).__name__}; it must be the recipe that training wrote")
    return recipe


def _recipe(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The recipe, and the versions that its first line tells."""
    if not file.is_file():
        return {}, {}
    text = file.read_text(encoding="utf-8")
    first = text.partition("\n")[0]
    told = first.removeprefix("# Trained with ") if first.startswith("# Trained with ") else ""
    return recipe_in(text, file), dict(re.findall(r"(\w+) (\d[\w.+-]*[\w+])", told))
