"""The model: embeddings and heads of several modalities around one backbone.

Shapes: B batch, N elements of a segment, H width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from .backbone import build_backbone
from .configuration import UnimodalARConfig
from .curriculum import Curriculum, grouped
from .decoder import UnimodalARPreTrainedModel
from .embeddings import build_embedding
from .generation import UnimodalARGenerationConfig, UnimodalARGenerationMixin
from .heads import build_head
from .layout import ORDERS, Layout, cached_layout
from .modality import ModalityOptions
from .objectives import Objective
from .objectives.base import TrainingPlan
from .objectives.parts import context_part, seen_before
from .pretrained import PretrainedBodyMixin
from .schema import ContinuousElement, DiscreteElement
from .segment import Grid, Segment
from .sequence import Cursor, Part


@dataclass
class UnimodalAROutput(ModelOutput):
    """What `forward` returns.

    Attributes:
        loss: scalar, the weighted element losses summed and divided by the number of predicted elements (or by
            `num_items_in_batch`); elements count by the fraction of their values that is observed.
        losses: by modality, the mean of its element losses, unweighted.
        element_losses: by modality, [B, N] in raster order, 0 where nothing is predicted; nats for heads with a
            likelihood (with mask noise they estimate an upper bound by random masks: in training with the objective's
            own levels, in evaluation mode with all). Several target segments of one modality follow each other along N.
    """

    loss: Tensor | None = None
    losses: dict[str, Tensor] | None = None
    element_losses: dict[str, Tensor] | None = None


@dataclass(frozen=True)
class _Job:
    """A target segment in a forward pass: its positions begin at `offset`. `members` [N, G]: the raster indices of the
    codes in each of the plan's elements where codes are grouped."""

    segment: Segment
    layout: Layout
    plan: TrainingPlan
    offset: int
    members: Tensor | None


class UnimodalARForGeneration(  # type: ignore[misc]  # from_pretrained has fewer names than transformers gives its own
    PretrainedBodyMixin, UnimodalARPreTrainedModel, UnimodalARGenerationMixin
):
    """Sequences of segments: likelihoods in `forward`, samples from `generate` and `stream`.

    Args:
        config: what to build.
        detached: leave the backbone's body out, for another to be put in; None: where the configuration says that its
            weights are elsewhere.
    """

    config_class = UnimodalARConfig
    config: UnimodalARConfig
    base_model_prefix = "backbone"
    main_input_name = "segments"
    generation_config_class = UnimodalARGenerationConfig

    def __init__(self, config: UnimodalARConfig, detached: bool | None = False) -> None:
        super().__init__(config)
        detached = config.backbone_source is not None if detached is None else detached
        if not config.modalities:
            raise ValueError("modalities is empty; a model needs at least one")
        self.options: dict[str, ModalityOptions] = {name: config.modality(name) for name in config.modalities}
        width = config.hidden_size
        self.backbone = build_backbone(config, detached)
        self.embeddings = nn.ModuleDict({name: build_embedding(width, o) for name, o in self.options.items()})
        generated = {name: options for name, options in self.options.items() if options.head is not None}
        self.heads = nn.ModuleDict(
            {name: build_head(width, o.element, dict(o.head or {})) for name, o in generated.items()}
        )
        self.objectives: dict[str, Objective] = {}
        for name, options in generated.items():
            self.objectives[name] = cast(Objective, options.built_objective)
            if self.backbone.obstacle is not None and not self.objectives[name].reads_sources:
                raise ValueError(
                    f"{self.backbone.obstacle}; block diffusion of {name!r} needs one with attention in every layer"
                )
        self.curricula = {name: Curriculum() for name in generated}
        self.post_init()
        if detached:  # not before: transformers has read from the body what it needs to know
            self.backbone.detach()

    def new_modules(self) -> list[str]:
        """Names of the modules that a pretrained backbone does not bring along: embeddings, heads, and, where there
        are any, what tells the backbone noise levels, coordinates and conditioning. They start from chance or from
        zero, so that LoRA has to train them in full: `LoraConfig(..., modules_to_save=model.new_modules())`. (Without
        what carries the noise level, for example, a denoiser would never learn how much noise there is.)"""
        names = [f"{kind}.{name}" for kind in ("embeddings", "heads") for name in getattr(self, kind)]
        ends = ("level", "coordinates", "modulation", "conditioning_table", "soft_prompt")
        return names + [
            f"backbone.{name}" for name, _ in self.backbone.named_modules() if name.rpartition(".")[2] in ends
        ]

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the first modality: continuous models have no single token table."""
        return next(iter(self.embeddings.values()))

    def layout(self, modality: str, grid: Grid, known: Tensor | None = None) -> Layout:
        """The modality's layout of `grid`. A random order is drawn anew from torch's generator while training, and is
        the fixed one of `layout.seed` otherwise, so that likelihoods and samples belong to one joint distribution.
        `known` [N] bool, for random orders: what comes first (see `Layout.from_grid`)."""
        options = self.options[modality].layout
        block: Any = tuple(options.block["cell"]) if isinstance(options.block, dict) else options.block
        order = options.order
        chance = self.curricula[modality].random_order if self.training and modality in self.curricula else 0.0
        if chance and float(torch.rand(())) < chance:
            order = "random"
        if self.training and ORDERS[order].random:
            return Layout.from_grid(grid, order, block, known=known).to(self.device)
        if isinstance(block, list) or known is not None:
            generator = torch.Generator().manual_seed(options.seed)
            return Layout.from_grid(grid, order, block, generator, known).to(self.device)
        return cached_layout(grid, order, block, options.seed, self.device)

    def forward(
        self,
        segments: Sequence[Segment],
        num_items_in_batch: Tensor | int | None = None,
        layouts: Mapping[str, Layout] | None = None,
        **unknown: Any,
    ) -> UnimodalAROutput:
        """Losses of all target segments, in one pass.

        Args:
            segments: the sequence; every segment with `target=True` is predicted from what comes before it.
            num_items_in_batch: what to divide the summed loss by (all predicted elements of an accumulated batch, see
                `count_items`); None: those of this batch.
            layouts: by modality, what to use instead of the configuration's (likelihoods in another order).

        Raises:
            ValueError: a segment does not fit the configuration; the message names it.
        """
        if unknown:
            raise ValueError(
                f"forward got the unknown arguments {sorted(unknown)}; it takes segments, num_items_in_batch, layouts"
            )
        if isinstance(segments, (Segment, Tensor)) or not all(isinstance(segment, Segment) for segment in segments):
            raise ValueError(f"segments is a {type(segments).__name__}; it must be a list of Segment")
        if len({segment.batch_size for segment in segments}) > 1:
            sizes = {segment.modality: segment.batch_size for segment in segments}
            raise ValueError(f"segments have batches of {sizes}; all must be of one size")
        parts = self.backbone.opening(segments[0].batch_size) if segments else []
        jobs: list[_Job] = []
        start = conditioning = None
        for number, segment in enumerate(segments):
            self.check_segment(segment)
            following = segments[number + 1] if number + 1 < len(segments) else None
            if not segment.target:
                part = self.context_part(segment)
                conditioning = self.add_conditioning(conditioning, segment, part, segments[:number])
                start = self.start_of(following.modality if following and following.target else None, part)
                parts += [] if start is not None else [part]
                continue
            shown, members = self._grouped(segment)
            layout = self._chosen(layouts or {}, shown)
            offset = sum(part.embeds.shape[1] for part in parts)
            plan = self._plan(shown, layout, following is None, start)
            jobs.append(_Job(segment, layout, plan, offset, members))
            parts.extend(plan.parts)
            start = None
        if not jobs:
            raise ValueError("no segment has target=True; forward needs at least one to compute a loss")
        hidden = self.backbone(Cursor().place(parts), conditioning=conditioning)
        output = self._reduce([(job.segment, *self._losses(hidden, job)) for job in jobs], num_items_in_batch)
        if self.training:
            output.loss = self._with_all(cast(Tensor, output.loss), segments)
        return output

    def _with_all(self, loss: Tensor, segments: Sequence[Segment]) -> Tensor:
        """`loss`, on which every trained parameter around the body depends: those that these segments leave out get a
        gradient of zero, because the processes of a training wait for each other's gradients of all of them."""
        lacking: list[nn.Module] = []
        for name, embedding in self.embeddings.items():
            head = [self.heads[name]] if name in self.heads else []
            roles = {segment.target for segment in segments if segment.modality == name}
            if roles != {bool(head)} or (head and embedding.null is not None):
                lacking += [embedding, *head]
        level = getattr(self.backbone, "level", None)
        if level is not None and not any(s.target and self.objectives[s.modality].has_levels for s in segments):
            lacking.append(level)
        for parameter in (parameter for module in lacking for parameter in module.parameters()):
            if parameter.requires_grad:  # empty sums: weights times 0 would be NaN where one is infinite
                loss = loss + parameter.flatten()[:0].sum()
        return loss

    def _chosen(self, layouts: Mapping[str, Layout], segment: Segment) -> Layout:
        for name in layouts:
            if name not in self.heads:
                raise ValueError(f"layouts has the key {name!r}; this model generates {sorted(self.heads)}")
        layout = layouts.get(segment.modality)
        if layout is None:
            return self.layout(segment.modality, segment.grid)
        if layout.grid != segment.grid:
            raise ValueError(
                f"layouts[{segment.modality!r}] is of the grid {layout.grid}; the segment's is {segment.grid}"
            )
        return layout.to(self.device)

    def _plan(self, segment: Segment, layout: Layout, last: bool, start: Tensor | None) -> TrainingPlan:
        self.check_start(segment.modality, start)
        embedding, objective = self.embeddings[segment.modality], self.objectives[segment.modality]
        return objective.training_plan(embedding, segment, layout, last, start)

    def _grouped(self, segment: Segment) -> tuple[Segment, Tensor | None]:
        """A checked segment as it is shown in training, and the members of its groups where codes are grouped."""
        size = self.curricula[segment.modality].group if self.training else 1
        if size == 1:
            return segment, None
        if self.options[segment.modality].start == "none" or not self.objectives[segment.modality].reads_sources:
            raise ValueError(
                f"group of {segment.modality!r} is {size}; codes are grouped only under next-block, with a start"
            )
        return grouped(segment, size)

    def count_items(self, segments: Sequence[Segment]) -> Tensor:
        """Scalar: how many elements of `segments` are predicted, each counted by its observed fraction."""
        total = torch.zeros((), device=segments[0].values.device)
        for segment in segments:
            if segment.target and self.options[segment.modality].start != "none":
                total = total + segment.observed_fraction.sum()
            elif segment.target:  # nothing is predicted before something was seen
                layout = self.layout(segment.modality, segment.grid).to(segment.values.device)
                seen = seen_before(layout.gather(segment.element_observed), layout)
                total = total + (layout.gather(segment.observed_fraction) * seen).sum()
        return total

    def check_segment(self, segment: Segment) -> None:
        """Raises ValueError naming what does not fit the configuration."""
        options = self.options.get(segment.modality) or self.config.modality(segment.modality)  # which raises
        if segment.target and options.head is None:
            raise ValueError(
                f"segment {segment.modality!r} has target=True; the modality has no head, so it can only be context"
            )
        element, shape = options.element, tuple(segment.values.shape)
        if isinstance(element, DiscreteElement):
            legal: tuple[int, ...] = (*shape[:2], element.codes) if element.codes > 1 else shape[:2]
            kind = f"torch.long of shape [B, N{f', {element.codes}' if element.codes > 1 else ''}]"
            fits = segment.values.dtype == torch.long and shape == legal
        else:
            kind = f"floating point of shape [B, N, {element.dim}]"
            fits = segment.values.is_floating_point() and shape == (*shape[:2], element.dim)
        if not fits:
            raise ValueError(
                f"values of {segment.modality!r} are {segment.values.dtype} of shape {list(shape)}; "
                f"this model wants {kind}"
            )
        if segment.values.device.type == "cpu":  # elsewhere looking would make the host wait for the device
            _check_values(segment, element)
        features = 0 if segment.covariates is None else segment.covariates.shape[-1]
        if features != options.covariates:
            raise ValueError(
                f"covariates of {segment.modality!r} have {features} features; this model wants {options.covariates}"
            )
        self._check_grid(segment)

    def _check_grid(self, segment: Segment) -> None:
        """Raises ValueError where a grid other than the configured one cannot be had."""
        name, options = segment.modality, self.options[segment.modality]
        if segment.grid == options.grid:
            return
        embedding: Any = self.embeddings[name]
        reads_sources = options.head is not None and self.objectives[name].reads_sources
        if reads_sources and embedding.target_position is None and self.layout(name, segment.grid).shares_source:
            raise ValueError(
                f"grid of {name!r} is {segment.grid}, where elements read the same source, unlike on "
                f"{options.grid}; to tell them apart the modality needs target_positions"
            )
        if options.is_bound_to_grid and any(a > b for a, b in zip(segment.grid, options.grid, strict=True)):
            raise ValueError(
                f"grid of {segment.modality!r} is {segment.grid}; its learned positions end at {options.grid}"
            )

    def context_part(self, segment: Segment, null: bool = False) -> Part:
        """A checked context segment's positions. It is replaced by the null vector where `null` asks for it, and in
        training with `null_probability`."""
        embedding: Any = self.embeddings[segment.modality]
        part = context_part(embedding, segment, self.layout(segment.modality, segment.grid))
        if embedding.null is None or not (null or self.training):
            return part
        replaced = torch.tensor(True, device=self.device)
        if not null:
            drawn = torch.rand(segment.batch_size, 1, 1, device=part.embeds.device)
            replaced = drawn < self.options[segment.modality].null_probability
        return replace(part, embeds=torch.where(replaced, embedding.null.to(part.embeds.dtype), part.embeds))

    def add_conditioning(
        self, conditioning: Tensor | None, segment: Segment, part: Part, before: Sequence[Segment]
    ) -> Tensor | None:
        """What the adaptive norms of all positions are given [B, 1, H], with what a context segment adds to it."""
        if not self.options[segment.modality].conditioning:
            return conditioning
        if any(earlier.target for earlier in before):
            raise ValueError(
                f"context {segment.modality!r} comes after a target; what conditions norms acts on the whole sequence, "
                "so it must come before all targets"
            )
        pooled = part.embeds.mean(1, keepdim=True)
        return pooled if conditioning is None else conditioning + pooled

    def start_of(self, following: str | None, part: Part) -> Tensor | None:
        """[B, 1, H], the context's embedding where the target `following` it starts from it, else None."""
        if following not in self.options or self.options[following].start != "context":
            return None
        if part.embeds.shape[1] != 1:
            raise ValueError(
                f"the context before {following!r} has {part.embeds.shape[1]} elements; with start 'context' it must "
                "have 1"
            )
        return part.embeds

    def check_start(self, target: str, start: Tensor | None) -> None:
        """Raises ValueError where a target that starts from its context has none right before it."""
        if self.options[target].start == "context" and start is None:
            raise ValueError(f"start of {target!r} is 'context'; a context segment must come right before it")

    def _losses(self, hidden: Tensor, job: _Job) -> tuple[Tensor, Tensor]:
        """Element losses and weights, [B, N] each, in raster order."""
        segment, plan = job.segment, job.plan
        hidden, predicted = hidden[:, job.offset :][:, plan.places], plan.predicted
        index = job.layout.index[plan.elements]
        if job.members is not None:
            size = job.members.shape[1]
            hidden, predicted = hidden.repeat_interleave(size, 1), predicted.repeat_interleave(size, 1)
            index = job.members[index].flatten()
        observed = predicted if segment.observed is None else segment.observed[:, index]
        head = cast(Any, self.heads[segment.modality])
        target = segment.values[:, index] if plan.targets is None else plan.targets
        loss = head.loss(hidden, target, observed)
        loss = loss if plan.weights is None else loss * plan.weights
        weight = segment.observed_fraction[:, index] * predicted
        loss = torch.where(predicted, loss, 0)
        full = loss.new_zeros(segment.values.shape[:2])
        return full.index_copy(1, index, loss), full.index_copy(1, index, weight.to(loss.dtype))

    def _reduce(
        self, parts: list[tuple[Segment, Tensor, Tensor]], num_items_in_batch: Tensor | int | None
    ) -> UnimodalAROutput:
        element_losses: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {}
        for segment, loss, weight in parts:
            name = segment.modality
            element_losses[name] = torch.cat([element_losses[name], loss], 1) if name in element_losses else loss
            weights[name] = torch.cat([weights[name], weight], 1) if name in weights else weight
        sums = {name: (loss * weights[name]).sum() for name, loss in element_losses.items()}
        counts = {name: weight.sum() for name, weight in weights.items()}
        total = sum(counts.values()) if num_items_in_batch is None else num_items_in_batch
        total = torch.as_tensor(total, device=self.device).clamp(min=torch.finfo(torch.float32).tiny)
        loss = sum(self.options[name].loss_weight * value for name, value in sums.items()) / total
        means = {name: (value / counts[name].clamp(min=1e-12)).detach() for name, value in sums.items()}
        return UnimodalAROutput(loss=cast(Tensor, loss), losses=means, element_losses=element_losses)


def _check_values(segment: Segment, element: DiscreteElement | ContinuousElement) -> None:
    """Raises ValueError where an observed code is not in the vocabulary, or a number that is read is not finite."""
    observed = segment.element_observed if segment.observed is None else segment.observed
    observed = observed if observed.dim() == segment.values.dim() else observed[..., None]
    if isinstance(element, DiscreteElement):
        wrong = ((segment.values < 0) | (segment.values >= element.vocab_size)) & observed
        if bool(wrong.any()):
            raise ValueError(
                f"values of {segment.modality!r} hold the code {int(segment.values[wrong][0])}; "
                f"codes must lie in 0..{element.vocab_size - 1}"
            )
        return
    for name, values, read in (("values", segment.values, observed), ("covariates", segment.covariates, None)):
        wrong = torch.zeros(()) if values is None else ~values.isfinite()
        wrong = wrong if read is None else wrong & read
        if bool(wrong.any()):
            rows = wrong.flatten(1).any(1).nonzero().flatten().tolist()
            raise ValueError(
                f"{name} of {segment.modality!r} are not finite in examples {rows[:5]} of the batch; "
                "missing values are marked in observed"
            )
