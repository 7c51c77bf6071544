"""One modality of a model: the answers to the five questions as checked options."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

import torch
from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationInfo,
    field_validator,
    model_validator,
)
from torch import nn

from .heads import HEADS, Head
from .layout import ORDERS, Layout
from .objectives import OBJECTIVES, Objective
from .schema import DiscreteElement, Element, MLPOptions, Strict, parse

Block = PositiveInt | Literal["row", "frame", "whole"] | list[PositiveInt] | dict[str, list[PositiveInt]] | None


class LayoutOptions(Strict):
    """Order and blocks of a modality's elements (see `Layout.from_grid`). `seed` fixes the permutation that a random
    order uses outside training."""

    order: str = "raster"
    block: Block = None
    seed: int = 0

    @field_validator("order")
    @classmethod
    def _known(cls, order: str) -> str:
        if order not in ORDERS:
            raise ValueError(f"known orders are {sorted(ORDERS)}")
        return order

    @field_validator("block", mode="before")
    @classmethod
    def _cell(cls, block: Any) -> Any:
        if isinstance(block, bool):
            raise ValueError("a block is a number, a list of sizes, a name or a cell, not a truth value")
        if isinstance(block, dict) and set(block) != {"cell"}:
            raise ValueError("as a mapping a block must be {'cell': [t, h, w]}")
        # JSON has no tuples: written as one, a cell would come back as a list of sizes.
        return {"cell": list(block)} if isinstance(block, tuple) else block


class ModalityOptions(Strict):
    """One modality of a model. A modality without a head is only ever context.

    Args:
        element: `{kind: discrete, vocab_size, codes, merge}` or `{kind: continuous, dim}`.
        grid: the usual (T, H, W), the largest that is trained; other grids work where the layout allows.
        layout: order and blocks. Default: raster order with its own blocks, of one; for a context, one block.
        objective: `{kind: next_block}`, or `{kind: block_diffusion, noise: mask}` with the objective's own keys.
        head: `{kind: ...}` with the head's own keys.
        loss_weight: factor on this modality's element losses.
        start: what predicts the first block: "learned" (a start vector), "context" (the embedding of the context
            segment before it, of one element, which then takes no position of its own) or "none" (the first block must
            be given). Under block diffusion nothing has to, so that "learned" and "none" only say whether it is drawn.
        absolute_positions: whether a learned table over `grid` is added to every element's embedding.
        target_positions: how a position is told which element it predicts: "fourier" (features of its coordinates) or
            "learned" (a table over `grid`), each added to its input; or "starts" (where a source does not tell: of the
            elements of a block that would read the same source only the first does, and what reads nothing gets,
            besides the start, a learned vector for its place in the block: the "middle bos" of NBP, arXiv 2502.07737).
            None: "fourier" where the layout needs it.
        embedding: hidden layers before the linear map that embeds a continuous element; None: none.
        covariates: number of covariate features per element.
        covariates_mixing: how they join the embedding e: "linear" (e + a linear map of them), or "scaled", for features
            c of the hidden size: e / |e| + s c / |c| with a learnt number s (AutoTimes, arXiv 2402.02370).
        covariates_of: whose covariates a position gets that reads one element and predicts another: those of the
            "target" that it predicts, or those of the "source" that it reads, as AutoTimes; a start reads none.
        null_probability: how often, in training, this modality is replaced by its null vector when it is context;
            above 0 it can be guided (classifier-free guidance, arXiv 2207.12598).
        conditioning: whether its embedding, as context, also goes to the native decoder's adaptive norms.
        context_noise: which part of what is read may be noise, in training: a share drawn anew for each example from
            [0, context_noise] of every vector, and as often a wrong code (under mask noise what is not masked, too). A
            model that has seen such pasts goes on calmly from its own samples (CAM, arXiv 2411.18447; xAR, arXiv
            2502.20388). 0: none.
        clean_steps: so many first steps of the T axis are spared by context_noise, as is a first frame that stays in
            sight, an anchor (ART-V, arXiv 2311.18834).
    """

    element: Element
    grid: tuple[PositiveInt, PositiveInt, PositiveInt]
    layout: LayoutOptions = LayoutOptions()
    objective: dict[str, Any] | None = None
    head: dict[str, Any] | None = None
    loss_weight: NonNegativeFloat = 1.0
    start: Literal["learned", "context", "none"] = "learned"
    absolute_positions: bool = False
    target_positions: Literal["fourier", "learned", "starts"] | None = None
    embedding: MLPOptions | None = None
    covariates: NonNegativeInt = 0
    covariates_mixing: Literal["linear", "scaled"] = "linear"
    covariates_of: Literal["target", "source"] = "target"
    null_probability: float = Field(0.0, ge=0, lt=1)
    conditioning: bool = False
    context_noise: float = Field(0.0, ge=0, lt=1)
    clean_steps: NonNegativeInt = 0

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, data: Any) -> Any:
        if not isinstance(data, dict):
            return data
        data = dict(data)
        if data.get("head") is None:
            if data.get("objective") is not None:
                raise ValueError("has an objective but no head; a modality that is generated needs both")
            for key, idle in (("start", "learned"), ("target_positions", None), ("covariates_of", "target")):
                if data.get(key, idle) != idle:
                    raise ValueError(f"has {key} {data[key]!r} but no head; only what is generated has a use for it")
            layout = data.get("layout") or {}
            if isinstance(layout, dict) and "block" not in layout:
                data["layout"] = {**layout, "block": "whole"}
        elif data.get("objective") is None:
            data["objective"] = {"kind": "next_block"}
        return {key: value for key, value in data.items() if not (key == "layout" and value is None)}

    @field_validator("clean_steps")
    @classmethod
    def _spared(cls, clean_steps: int, info: ValidationInfo) -> int:
        grid, noise = info.data.get("grid"), info.data.get("context_noise")  # None: wrong themselves
        if clean_steps and noise == 0:
            raise ValueError("with context_noise 0 nothing that is read is noisy, so that no steps can be spared")
        if clean_steps and grid and clean_steps >= grid[0]:
            raise ValueError(f"it must be fewer than the grid's steps, {grid[0]}")
        return clean_steps

    @field_validator("embedding")
    @classmethod
    def _of_vectors(cls, embedding: MLPOptions | None, info: ValidationInfo) -> MLPOptions | None:
        if embedding is not None and isinstance(info.data.get("element"), DiscreteElement):
            raise ValueError(
                "the element is discrete, and embedded by a table; only continuous ones take hidden layers"
            )
        return embedding

    @field_validator("covariates_mixing", "covariates_of")
    @classmethod
    def _of_covariates(cls, choice: str, info: ValidationInfo) -> str:
        if choice in ("scaled", "source") and info.data.get("covariates") == 0:
            raise ValueError("there are no covariates, whose number is 0")
        return choice

    @cached_property
    def built_objective(self) -> Objective | None:
        """The objective that the options describe."""
        if self.objective is None:
            return None
        options = check_part(self.objective, OBJECTIVES, "objective")
        return OBJECTIVES[self.objective["kind"]](options, HEADS[(self.head or {})["kind"]])

    @property
    def has_shared_sources(self) -> bool:
        """Whether what is read does not tell which element is predicted (so that its position must be given)."""
        if self.built_objective is None or not self.built_objective.reads_sources:
            return False
        order = ORDERS[self.layout.order]
        return order.random or Layout.from_grid(self.grid, self.layout.order, self.layout.block).shares_source

    @property
    def is_bound_to_grid(self) -> bool:
        """Whether a learned table ends where `grid` does."""
        return self.absolute_positions or self.target_positions in ("learned", "starts")


def parse_modality(name: str, data: Any) -> ModalityOptions:
    """The checked options of modality `name`; raises ValueError naming each wrong key."""
    if not isinstance(name, str) or not name or "." in name or name in dir(nn.ModuleDict()):
        raise ValueError(
            f"modality name is {name!r}; it must be a non-empty string without dots, and no attribute of a ModuleDict"
        )
    options = parse(ModalityOptions, data, f"modalities.{name}")
    for key, registry in (("head", HEADS), ("objective", OBJECTIVES)):
        part = getattr(options, key)
        if part is not None:
            checked = check_part(part, registry, f"modalities.{name}.{key}")
            complete = {"kind": part["kind"], **checked.model_dump(mode="json")}
            options = options.model_copy(update={key: complete})
    if options.conditioning and options.head is not None:
        raise ValueError(f"modalities.{name}.conditioning is true; only a context, which has no head, conditions norms")
    if options.head is not None and options.built_objective is not None:
        _check_head(HEADS[options.head["kind"]], options, f"modalities.{name}")
        problem = options.built_objective.problem(
            options.element, options.head, options.start, options.target_positions
        )
        if problem:
            raise ValueError(f"modalities.{name}.{problem}")
        if options.covariates_of == "source" and not options.built_objective.reads_sources:
            raise ValueError(
                f"modalities.{name}.covariates_of is 'source' under {(options.objective or {})['kind']}, where each "
                "position holds what it predicts; it must be 'target'"
            )
    if ORDERS[options.layout.order].random and options.start == "none":
        raise ValueError(
            f"modalities.{name}.start is 'none' with the random order {options.layout.order!r}; the first block, which "
            "must be given, has to be the same always"
        )
    if ORDERS[options.layout.order].random and options.target_positions == "starts":
        raise ValueError(
            f"modalities.{name}.target_positions is 'starts' with the random order {options.layout.order!r}, where no "
            "source tells which element is predicted; it must be 'fourier' or 'learned'"
        )
    with torch.random.fork_rng(devices=[]):  # a random order must not use up the caller's random numbers
        try:
            Layout.from_grid(options.grid, options.layout.order, options.layout.block)
        except ValueError as error:
            raise ValueError(f"modalities.{name}.layout: {error}") from None
    return options


def _check_head(head: type[Head], options: ModalityOptions, where: str) -> None:
    kind, element = (options.head or {})["kind"], options.element
    if head.element_kind != element.kind:
        raise ValueError(
            f"{where}.head.kind is {kind!r}, a head for {head.element_kind} elements; the element is {element.kind}"
        )
    if isinstance(element, DiscreteElement) and element.codes < head.least_codes:
        raise ValueError(
            f"{where}.head.kind is {kind!r}, a head for elements of at least {head.least_codes} codes; this one has "
            f"{element.codes}"
        )


def check_part(part: dict[str, Any], registry: dict[str, Any], where: str) -> Strict:
    """The options of a `{kind: ..., **options}` dictionary, checked by the class that `kind` names."""
    kind = part.get("kind")
    if not isinstance(kind, str) or kind not in registry:
        raise ValueError(f"{where}.kind is {kind!r}; known kinds are {sorted(registry)}")
    return parse(registry[kind].Options, {key: value for key, value in part.items() if key != "kind"}, where)
