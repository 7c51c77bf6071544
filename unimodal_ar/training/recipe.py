"""Recipes: one YAML file = model + adapters + data + training arguments + evaluation, checked before anything runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from huggingface_hub.errors import StrictDataclassError
from pydantic import Field, NonNegativeInt
from transformers import TrainingArguments

from ..adapters import ADAPTERS, Adapter, AutoAdapter
from ..card import CardOptions
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..heads import HEADS
from ..modality import ModalityOptions, check_part, parse_modality
from ..modeling import UnimodalARForGeneration
from ..objectives import OBJECTIVES
from ..schema import Strict, parse
from . import arguments
from .body import PretrainedBody, with_language_model
from .data import DATA, Evaluator
from .ema import EMAOptions
from .peft import Method, parse_peft
from .publishing import HubOptions
from .schedule import check_schedule

# What transformers saves of a configuration that says where it came from, not what is built from it.
_NOT_OF_THE_BODY = {"architectures", "transformers_version", "_name_or_path"}

_PARTS: dict[str, dict[str, Any]] = {"head": HEADS, "objective": OBJECTIVES}  # of a modality, each of many kinds

_SECTIONS = ("model", "adapters", "data", "training", "evaluation")


class ModelSection(Strict):
    """`UnimodalARConfig` as YAML, the backbone as a `PretrainedBody`, too; `element`, `covariates` and `grid` of a
    modality come from its adapter and data where they are left out."""

    backbone: dict[str, Any] | str = Field(default_factory=lambda: {"model_type": UnimodalARDecoderConfig.model_type})
    modalities: dict[str, dict[str, Any]]


class Recipe(Strict):
    """A recipe as written down.

    Args:
        seed: of weights, data order and sampling.
        output_dir: where the model, its adapters, the resolved recipe and the evaluation go.
        init_from: folder of a trained model whose weights training starts from; None: random ones. Its modalities may
            go from next-block to block diffusion (see `convert.adapted`); else model and weights must fit.
        model, adapters, data: see their schemas.
        peft: what is trained in a frozen backbone in place of its weights, layers of LoRA, say: `method` and its
            options, see `peft.METHODS`. The backbone is that of `init_from`, or pretrained. None: none.
        training: `transformers.TrainingArguments` by name.
        ema: the average of the weights while they are trained, which is judged and published in their place: `decay`,
            see `ema.EMA`. None: none.
        schedule: what changes while the model trains, see `schedule.Schedule`.
        early_stopping: stop after so many evaluations without a better validation loss; 0: never. With a schedule,
            evaluations count from its last change on.
        evaluation: of the trained model, as the data's kind does it (see its `Evaluation`). None: none.
        card: what the model's card says that does not follow from the rest: licence, data, ... see `card.CardOptions`.
            None: nothing.
        hub: where the finished model is uploaded, see `publishing.HubOptions`. None: nowhere.
    """

    seed: NonNegativeInt = 0
    output_dir: str
    init_from: str | None = None
    model: ModelSection
    peft: dict[str, Any] | None = None
    adapters: dict[str, dict[str, Any]]
    data: dict[str, Any]
    training: dict[str, Any]
    ema: EMAOptions | None = None
    schedule: dict[str, list[tuple[float, float]]] = {}
    early_stopping: NonNegativeInt = 0
    evaluation: dict[str, Any] | None = None
    card: CardOptions | None = None
    hub: HubOptions | None = None


class Resolved:
    """A recipe whose parts are built and known to fit each other.

    Attributes:
        recipe: the schema.
        adapters: by modality, in the order of the segments.
        data: the source of examples.
        evaluation: the checked section, or None.
        config: of the model.
        body: the pretrained one of `model.backbone`, or None.
        peft: the checked section, or None.
    """

    def __init__(self, document: dict[str, Any]) -> None:
        problems: list[str] = []
        recipe = _collect(problems, parse, Recipe, document, "recipe")
        # Sections are looked at one by one even where the whole is wrong, so that all of it is told.
        sections = {name: _section(document, name) for name in _SECTIONS}
        adapters = _collect(problems, _adapters, sections["adapters"], sections["model"])
        options = _collect(problems, _data_options, sections["data"])
        evaluation = _collect(problems, _evaluation, sections)
        problems += arguments.check(sections["training"] or {})
        peft = _collect(problems, parse_peft, recipe) if recipe else None
        kind = DATA[document["data"]["kind"]] if adapters and options else None
        data = _collect(problems, kind, options, adapters) if kind else None
        _check_model(problems, sections, adapters, data)
        if recipe and recipe.early_stopping and arguments.merged(recipe.training)["eval_strategy"] == "no":
            problems.append(f"early_stopping is {recipe.early_stopping} evaluations; training.eval_strategy is 'no'")
        config = None if problems else _collect(problems, _config, recipe, adapters, data, peft)
        problems += check_schedule(recipe.schedule, config) if config else []
        if problems:
            raise ValueError("; ".join(problems))
        self.recipe: Recipe = recipe
        self.data: Any = cast(Any, data)
        self.adapters: dict[str, Adapter] = {name: adapters[name] for name in [*self.data.modalities, *adapters]}
        self.evaluation: Strict | None = evaluation
        self.config: UnimodalARConfig = cast(UnimodalARConfig, config)
        self._kernel: str | None = self.config._attn_implementation  # as written: making a model settles it
        self.body = _pretrained(self.recipe.model.backbone)
        self.peft: Method | None = peft

    @property
    def document(self) -> dict[str, Any]:
        """A recipe as plain data that trains the same model again, even where defaults have changed: everything that
        was derived or left to a default of ours is written out. (How the training was resumed is not part of it.)"""
        config = self.config.to_diff_dict()
        body = {key: value for key, value in config["backbone"].items() if key not in _NOT_OF_THE_BODY}
        if body.get("dtype") is None:
            body.pop("dtype", None)
        if self._kernel is not None:
            body["attn_implementation"] = self._kernel
        body = body if self.body is None else self.body.model_dump(mode="json")
        evaluation = None if self.evaluation is None else self.evaluation.model_dump(mode="json")
        return self.recipe.model_dump(mode="json") | {
            "model": {"backbone": body, "modalities": config["modalities"]},
            "peft": None if self.peft is None else {"method": self.peft.method, **self.peft.model_dump(mode="json")},
            "adapters": {name: {"kind": adapter.kind, **adapter.config()} for name, adapter in self.adapters.items()},
            "data": {"kind": self.recipe.data["kind"], **self.data.options.model_dump(mode="json")},
            "training": arguments.merged(self.recipe.training),
            "evaluation": evaluation,
        }

    def new_model(self) -> UnimodalARForGeneration:
        """The model before training: random weights, but for a pretrained body."""
        return UnimodalARForGeneration(self.config) if self.body is None else self.body.model(self.config)

    def evaluator(self) -> Evaluator | None:
        """What judges the trained model, where the recipe asks for it. Reads the data."""
        if self.evaluation is None:
            return None
        return self.data.evaluator(self.evaluation, self.config, self.recipe.seed)

    def training_arguments(self, output_dir: Path, **changes: Any) -> TrainingArguments:
        """The recipe's arguments over the house's defaults."""
        return arguments.build(self.recipe.training, self.recipe.seed, output_dir, **changes)


def _collect(problems: list[str], build: Callable[..., Any], *given: Any) -> Any:
    """`build(*given)`, or None with its error noted: all errors of a recipe are told at once."""
    try:
        return build(*given)
    except ValueError as error:
        problems.append(str(error))
        return None


def _section(document: Any, name: str) -> dict[str, Any] | None:
    """A section as far as it can be looked at; what it should be is the schema's to say."""
    section = document.get(name) if isinstance(document, dict) else None
    return section if isinstance(section, dict) else None


def _adapters(section: dict[str, Any] | None, model: dict[str, Any] | None) -> dict[str, Adapter] | None:
    if section is None:
        return None
    if not section:
        raise ValueError(f"adapters is empty; it must map modalities to one of the kinds {sorted(ADAPTERS)}")
    adapters: dict[str, Adapter] = {}
    problems: list[str] = []
    for name, config in section.items():
        config = {"modality": name, **config} if isinstance(config, dict) else config
        try:
            config = with_language_model(config, f"adapters.{name}", (model or {}).get("backbone"))
            adapters[name] = AutoAdapter.from_config(config, where=f"adapters.{name}")
        except ValueError as error:
            problems.append(str(error))
            continue
        if adapters[name].modality != name:
            problems.append(f"adapters.{name}.modality is {adapters[name].modality!r}; it must be its key, {name!r}")
    if problems:
        raise ValueError("; ".join(problems))
    return adapters


def _evaluation(sections: dict[str, dict[str, Any] | None]) -> Strict | None:
    """The section as the data's kind reads it; a kind that is unknown is told elsewhere."""
    section, kind = sections["evaluation"], (sections["data"] or {}).get("kind")
    if section is None or kind not in list(DATA):
        return None
    return parse(DATA[kind].Evaluation, section, "evaluation")


def _data_options(section: dict[str, Any] | None) -> Strict | None:
    if section is None:
        return None
    kind = section.get("kind")
    if kind not in list(DATA):
        raise ValueError(f"data.kind is {kind!r}; known kinds are {sorted(DATA)}")
    return parse(DATA[kind].Options, {key: value for key, value in section.items() if key != "kind"}, "data")


def _modality(name: str, written: dict[str, Any], adapters: dict[str, Adapter], data: Any) -> dict[str, Any]:
    """What is written of a modality over what its adapter and the data settle."""
    from_adapter = {"element": adapters[name].element} if name in adapters else {}
    return {**from_adapter, **data.modality_defaults(name), **written}


def _config(recipe: Recipe, adapters: dict[str, Adapter], data: Any, peft: Method | None) -> UnimodalARConfig:
    written = recipe.model.modalities
    modalities = {name: _modality(name, options, adapters, data) for name, options in written.items()}
    backbone = _backbone(recipe.model.backbone) | ({} if peft is None else peft.of_model)
    config = UnimodalARConfig(**backbone, modalities=modalities)
    data.check_model(config)
    return config


def _pretrained(backbone: dict[str, Any] | str) -> PretrainedBody | None:
    if not isinstance(backbone, dict) or "pretrained" not in backbone:
        return None
    return parse(PretrainedBody, backbone, "model.backbone")


def _backbone(backbone: dict[str, Any] | str) -> dict[str, Any]:
    """What `UnimodalARConfig` is told of the backbone."""
    body = _pretrained(backbone)
    return {"backbone": backbone} if body is None else {"backbone": body.config(), "freeze_backbone": body.frozen}


def _check_model(
    problems: list[str],
    sections: dict[str, dict[str, Any] | None],
    adapters: dict[str, Adapter] | None,
    data: Any,
) -> None:
    """Notes what is wrong with the model's section, as far as the other sections let it be told."""
    section, named = sections["model"] or {}, sections["adapters"] or {}
    if "backbone" in section:
        _collect(problems, _check_backbone, section["backbone"])
    modalities = section.get("modalities")
    if not isinstance(modalities, dict):  # the schema's to say
        return
    for name in named:
        if name not in modalities:
            problems.append(f"adapters.{name} has no model.modalities.{name}; every adapter needs its modality")
    for name, written in modalities.items():
        if not isinstance(written, dict):
            continue
        if "element" not in written and name not in named:
            problems.append(
                f"model.modalities has {name!r}, which has no element and no adapter; adapters are of {sorted(named)}"
            )
            continue
        # An adapter or data that cannot be built leave open what they would have settled.
        unsettled = {"element": {"kind": "continuous", "dim": 1}, "grid": [1, 1, 1]} if name in named else {}
        known = unsettled | written if data is None else _modality(name, written, adapters or {}, data)
        before = len(problems)
        _collect(problems, parse, ModalityOptions, known, f"modalities.{name}")
        for key, registry in _PARTS.items():
            if isinstance(part := written.get(key), dict):
                _collect(problems, check_part, part, registry, f"modalities.{name}.{key}")
        if data is not None and len(problems) == before:
            _collect(problems, parse_modality, name, known)


def _check_backbone(backbone: Any) -> None:
    """Raises ValueError, in one sentence, where no configuration can be made of it."""
    if not isinstance(backbone, (dict, str)):  # the schema's to say
        return
    try:
        UnimodalARConfig(**_backbone(backbone))
    except ValueError as error:
        message = str(error).removeprefix("model.")
        raise ValueError(f"model.{'' if message.startswith('backbone') else 'backbone: '}{message}") from None
    except OSError as error:
        name = f" is {backbone!r}" if isinstance(backbone, str) else f".pretrained is {backbone.get('pretrained')!r}"
        raise ValueError(f"model.backbone{name}, which cannot be loaded: {_one_line(error)}") from None
    except (StrictDataclassError, TypeError, ArithmeticError) as error:  # transformers' checks of its own bodies
        reason = _one_line(error.__cause__ or error)
        field = re.search(r"for field '(\w+)'", str(error))
        if field is None:
            raise ValueError(f"model.backbone: {reason}") from None
        value = backbone.get(field[1]) if isinstance(backbone, dict) else None
        reason = reason.split(f"Field '{field[1]}' ")[-1].split(" (value:")[0]
        raise ValueError(f"model.backbone.{field[1]} is {value!r}: {reason}") from None


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
