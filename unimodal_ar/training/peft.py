"""Layers of PEFT in recipes: `peft: {method: lora, r: 8, alpha: 16}`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveFloat, PositiveInt
from transformers.pytorch_utils import Conv1D

from .. import lora
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse


class Layers(Strict):
    """What all methods have. Of each the `method` is its name in recipes.

    Args:
        target: which linear maps of the backbone's body get layers: "backbone", all of them (attention and MLP; not
            experts that are kept as one tensor), or those whose names end in one of these ("q_proj", "mlp.c_proj",
            "layers.0.self_attn.v_proj").
        modules_to_save: what beside the body is trained in full (names of `new_modules`: embeddings, heads); the rest
            stays as it is. None: all of it.
    """

    method: ClassVar[str]
    target: Literal["backbone"] | Annotated[list[str], Field(min_length=1)] = "backbone"
    modules_to_save: list[str] | None = None

    def config(self, targets: list[str], transposed: bool) -> Any:
        """The `peft.PeftConfig` of layers in `targets`; `transposed`: these are GPT-2's maps, [in, out]."""
        raise NotImplementedError


class LoRA(Layers):
    """W x + (alpha / r) B A x with A [r, in] and B [out, r] (arXiv 2106.09685).

    Args:
        r: rank.
        alpha: scale, as a multiple of 1/r.
        dropout: the probability that a value of x is left out, in training.
    """

    method = "lora"
    r: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: float = Field(0.0, ge=0, lt=1)

    def config(self, targets: list[str], transposed: bool) -> Any:
        return self._lora(targets, transposed)

    def _lora(self, targets: list[str], transposed: bool, **more: Any) -> Any:
        from peft import LoraConfig

        shape: dict[str, Any] = {"r": self.r, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return LoraConfig(target_modules=targets, fan_in_fan_out=transposed, **shape, **more)


class DoRA(LoRA):
    """LoRA on the directions of W's rows, whose lengths are trained beside it (arXiv 2402.09353)."""

    method = "dora"

    def config(self, targets: list[str], transposed: bool) -> Any:
        return self._lora(targets, transposed, use_dora=True)


class IA3(Layers):
    """A factor for every output of a map, or for every input (arXiv 2205.05638).

    Args:
        feedforward: of which maps the inputs are scaled: names as in `target`. (The paper: the MLP's second.)
    """

    method = "ia3"
    feedforward: list[str] = []

    def config(self, targets: list[str], transposed: bool) -> Any:
        from peft import IA3Config

        scaled = _chosen("feedforward", self.feedforward, targets)
        return IA3Config(target_modules=targets, feedforward_modules=scaled, fan_in_fan_out=transposed)


METHODS: dict[str, type[Layers]] = {kind.method: kind for kind in (LoRA, DoRA, IA3)}


def parse_peft(recipe: Any) -> Layers | None:
    """The options of the section `peft` of a `recipe.Recipe`, or None.

    Raises:
        ValueError: a key is wrong, or there is no trained backbone that stays as it is.
    """
    section, backbone = recipe.peft, recipe.model.backbone
    if section is None:
        return None
    pretrained = isinstance(backbone, dict) and "pretrained" in backbone
    if not pretrained and recipe.init_from is None:
        raise ValueError("peft is set, and the backbone's weights are random; it needs init_from, or a pretrained one")
    if pretrained and (backbone.get("ablation") is not None or backbone.get("freeze") is False):
        key = "freeze" if backbone.get("ablation") is None else "ablation"
        raise ValueError(
            f"model.backbone.{key} is {backbone[key]!r}; with peft the pretrained backbone itself stays frozen, so "
            "leave the key out"
        )
    method = section.get("method")
    if method not in list(METHODS):
        raise ValueError(f"peft.method is {method!r}; known methods are {sorted(METHODS)}")
    return parse(METHODS[method], {key: value for key, value in section.items() if key != "method"}, "peft")


def insert(model: UnimodalARForGeneration, options: Layers) -> None:
    """Puts the layers of `options` into a model's frozen body, and freezes what is not to be trained beside it.

    Raises:
        ValueError: a name of a map or of a module is none.
    """
    maps = lora.linear_maps(model)
    wanted = list(maps) if options.target == "backbone" else _chosen("target", options.target, list(maps))
    beside = [name for name in model.new_modules() if not name.startswith(lora.BODY)]
    trained = beside if options.modules_to_save is None else options.modules_to_save
    for name in trained:
        if name not in beside:
            raise ValueError(f"peft.modules_to_save has {name!r}; beside its backbone this model has {beside}")
    for name in beside:
        model.get_submodule(name).requires_grad_(name in trained)
    config = options.config(wanted, all(isinstance(maps[name], Conv1D) for name in wanted))
    lora.insert(model, config)
    counts = [sum(x.numel() for x in model.parameters() if x.requires_grad or every) for every in (False, True)]
    print(
        f"Layers of {type(options).__name__} in {len(wanted)} maps of the backbone; {counts[0]:,} of {counts[1]:,} "
        f"parameters are trained ({counts[0] / counts[1]:.2%})"
    )


def _chosen(key: str, ends: list[str], names: list[str]) -> list[str]:
    """Those of `names` that end in one of `ends`, whole parts at a time."""
    for end in ends:
        if not any(f".{name}".endswith(f".{end}") for name in names):
            there = sorted({".".join(name.split(".")[-2:]) for name in names})
            raise ValueError(f"peft.{key} has {end!r}, with which no linear map's name ends; there are {there}")
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in ends)]
