"""`generate` and `stream`: one loop over blocks for every objective.

Shapes: B examples, S samples of each, N elements of the target's grid.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layout import ORDERS, Layout, whole_cells
from ..noise import Generator, SampleNoise
from ..schema import DiscreteElement
from ..segment import Grid, Segment, check_grid
from ..sequence import Part
from .configuration import UnimodalARGenerationConfig
from .decoding import CachedDecoding
from .rolling import Rolling, rolling


@dataclass
class _Job:
    """The target under construction and what it takes to draw the rest of it."""

    segment: Segment
    layout: Layout
    known: int
    given: Tensor | None  # [B, N] or [B, N, D] bool in raster order: what is known, where that may be anything
    decoding: CachedDecoding
    scales: list[float]  # of guidance, by block
    sampling: dict[str, Any]


@dataclass
class _Side:
    """What comes before the target, for the sequence or for its counterpart without context: positions, what the first
    block reads, and what adaptive norms are given."""

    parts: list[Part]
    start: Tensor | None
    conditioning: Tensor | None


class UnimodalARGenerationMixin:
    """Sampling for models of segments. (The name ends in GenerationMixin so that transformers gives the model its
    generation_config; token-id `generate` is not inherited.)"""

    generation_config: Any

    def generate(
        self: Any,
        context: Sequence[Segment],
        target: str,
        grid: Sequence[int] | None = None,
        given: Segment | None = None,
        num_samples: int | None = None,
        steps: int | Sequence[int] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        guidance_scale: float | None = None,
        generator: Generator = None,
        known_blocks: int | None = None,
        guidance_schedule: dict[str, Any] | None = None,
        head_steps: int | Sequence[int] | None = None,
        sampler: dict[str, Any] | None = None,
        window: int | None = None,
        overlap: int | None = None,
        sink: int = 0,
    ) -> Segment:
        """Draws a segment of modality `target`.

        Args:
            context: segments that come before it in the sequence, with the `target` flags they had in training; []
                for none.
            target: the modality to generate.
            grid: (T, H, W) of the segment; None: that of `given`, else the modality's own.
            given: a segment of the target modality on the full grid; `observed` marks what is known. Its covariates
                cover every element. Under next-block the known part must be whole leading blocks, or, in a random
                order, whole cells or elements anywhere, the same in every example: they come first then. Under block
                diffusion it may be any subset; a block is drawn given all that is known of it and all before it.
            num_samples: S, samples per example.
            steps, head_steps, sampler: of block diffusion and of heads that draw in several steps, see
                `UnimodalARGenerationConfig`.
            temperature: 0 for the mode or mean, 1 for the model's own distribution.
            top_k, top_p: truncation, for categorical heads.
            guidance_scale: classifier-free guidance against the context's null vectors; 1: none.
            guidance_schedule: how the scale changes from block to block, see `UnimodalARGenerationConfig`.
            generator: source of randomness; None: torch's global one. Sample i depends on it and i alone, not on the
                batch. A `SampleNoise` names the samples' streams itself.
            known_blocks: how many leading blocks of `given` are past: what is unobserved there is missing and stays so.
                None: everything unobserved is drawn.
            window: for targets longer than trained, how many steps of the grid's T axis the model sees at once. A
                longer target is drawn window by window, each given what is carried over of the one before, which the
                layout must allow to be known (under next-block as whole leading blocks). None: there is one window.
            overlap: how many steps are carried over; None: window // 2.
            sink: how many first steps of the target stay in front of every window besides.

        Arguments left at None take the values of `self.generation_config`.

        Returns:
            a segment of batch B * S, sample s of example b at b * S + s; `observed` is None unless values that were
            missing in the past stay missing.

        Raises:
            ValueError: an argument does not fit the model; the message names it.
        """
        arguments = locals()
        with torch.no_grad(), _Evaluating(self):
            if (windows := rolling(self, arguments)) is not None:
                while not windows.complete:
                    windows.draw()
                return windows.so_far()
            job = self._start(arguments)
            for block in range(job.known, job.layout.num_blocks):
                self._draw(job, block)
        return self._finished(job)

    @torch.no_grad()
    def stream(self: Any, *args: Any, **kwargs: Any) -> Iterator[Segment]:
        """Takes what `generate` takes and yields after every block: the segment so far, `observed` False for what is
        still to come. The last one is what `generate` returns. What is wrong is raised at once."""
        bound = inspect.signature(self.generate).bind(*args, **kwargs)
        bound.apply_defaults()
        with _Evaluating(self):
            windows = rolling(self, bound.arguments)
            return self._blocks(self._start(bound.arguments)) if windows is None else self._roll(windows)

    @torch.no_grad()  # as a decorator it does not leak into the caller's code between two blocks
    def _blocks(self: Any, job: _Job) -> Iterator[Segment]:
        for block in range(job.known, job.layout.num_blocks):
            with _Evaluating(self):
                self._draw(job, block)
            if block + 1 < job.layout.num_blocks:
                drawn = job.layout.scatter((job.layout.block <= block)[None])
                given = False if job.given is None else job.given if job.given.dim() == 2 else job.given.all(-1)
                observed = job.segment.element_observed & (drawn | given)
                yield job.segment.replace(values=job.segment.values.clone(), observed=observed)
        yield self._finished(job)

    @torch.no_grad()
    def _roll(self: Any, windows: Rolling) -> Iterator[Segment]:
        while not windows.complete:
            with _Evaluating(self):
                windows.draw()
            if not windows.complete:
                yield windows.so_far()
        yield windows.so_far()

    def adjust_generation_fn(
        self: Any,
        generation_config: UnimodalARGenerationConfig | None,
        from_auto_class: bool,
        from_pipeline: str | None,
        pretrained_model_name_or_path: str | None,
        trust_remote_code: bool = False,
        **download: Any,
    ) -> None:
        """Takes the sampling options saved beside the weights. (`from_pretrained` calls this, by this name; without it
        the options would be saved and never read.)"""
        if generation_config is not None:
            self.generation_config = generation_config
        elif pretrained_model_name_or_path is not None:
            with suppress(OSError):  # none were saved: the defaults hold
                path = pretrained_model_name_or_path
                self.generation_config = UnimodalARGenerationConfig.from_pretrained(path, **download)

    def _start(self: Any, arguments: dict[str, Any]) -> _Job:
        """Checks the arguments and commits everything that is known to the cache."""
        context = self._checked(arguments["context"])
        options = self._sampling_options(arguments)
        segment, layout, known, given = self._target(arguments, context)
        guided = options.guidance_scale != 1
        sides = [self._context(context, segment.modality, null) for null in ((False, True) if guided else (False,))]
        conditioning = None if sides[0].conditioning is None else torch.cat([side.conditioning for side in sides])
        starts = (None,) if sides[0].start is None else tuple(side.start for side in sides)
        decoding = CachedDecoding(self.backbone, guided, starts, conditioning)
        name = segment.modality
        objective, embedding, head = self.objectives[name], self.embeddings[name], self.heads[name]
        sampling = options.sampling(objective, head)
        opening = self.backbone.opening(segment.batch_size)
        parts = [side.parts + objective.known_parts(embedding, segment, layout, known, side.start) for side in sides]
        decoding.hold(*(opening + side for side in parts))
        decoding.repeat_interleave(options.num_samples)
        segment = segment.repeat_interleave(options.num_samples)
        generator = SampleNoise.from_generator(
            arguments["generator"], torch.arange(segment.batch_size, device=self.device)
        )
        # A stream of its own for every call: objectives may number the streams of its blocks.
        sampling["generator"] = generator.child() if objective.knows_anything else generator
        given = None if given is None else given.repeat_interleave(options.num_samples, 0)
        return _Job(segment, layout, known, given, decoding, options.guidance_scales(layout.num_blocks), sampling)

    def _checked(self: Any, context: Any) -> list[Segment]:
        """The context's segments, on the model's device."""
        if not isinstance(context, (list, tuple)) or not all(isinstance(segment, Segment) for segment in context):
            raise ValueError(f"context is {context!r}; it must be a list of Segment, [] for none")
        context = [segment.to(self.device) for segment in context]
        for segment in context:
            self.check_segment(segment)
        return context

    def _draw(self: Any, job: _Job, block: int) -> None:
        """Draws one block into the segment."""
        name = job.segment.modality
        objective, embedding, head = self.objectives[name], self.embeddings[name], self.heads[name]
        places = job.layout.block_range(block)
        index = job.layout.index[places]
        last = job.layout.num_blocks - 1
        job.decoding.scale, job.decoding.progress = job.scales[block], (block - job.known) / max(last - job.known, 1)
        given = None if job.given is None else job.given[:, index]
        drawn = objective.draw(
            job.decoding,
            embedding,
            head,
            job.segment,
            job.layout,
            block,
            known=given,
            alone=job.known == last,
            **job.sampling,
        )
        job.segment.values[:, index] = drawn.to(job.segment.values.dtype)

    def _finished(self: Any, job: _Job) -> Segment:
        observed = job.segment.observed
        return job.segment.replace(observed=None if observed is None or bool(observed.all()) else observed)

    def _sampling_options(self: Any, arguments: dict[str, Any]) -> UnimodalARGenerationConfig:
        if arguments["target"] not in self.heads:
            raise ValueError(f"target is {arguments['target']!r}; this model can generate {sorted(self.heads)}")
        changes = {name: arguments[name] for name in UnimodalARGenerationConfig._defaults}
        target = arguments["target"]
        saved = self.generation_config.fitting(self.objectives[target], self.heads[target])
        options = saved.updated(**changes)
        if options.guidance_scale != 1:
            contexts = [self.options[s.modality] for s in arguments["context"] if not s.target]
            if not any(options.null_probability > 0 for options in contexts):
                raise ValueError(
                    f"guidance_scale is {options.guidance_scale}; guidance needs a context segment whose modality was "
                    "trained with null_probability > 0"
                )
        return options

    def _begun(self: Any, arguments: dict[str, Any], context: list[Segment]) -> Segment:
        """The segment to fill, with what is given of it."""
        name, given, options = arguments["target"], arguments["given"], self.options[arguments["target"]]
        grid = arguments["grid"]
        if given is not None and not isinstance(given, Segment):
            raise ValueError(f"given is a {type(given).__name__}; it must be a Segment")
        if grid is None:
            grid = options.grid if given is None or given.modality != name else given.grid
        grid = check_grid(grid)
        batch = context[0].batch_size if context else 1 if given is None else given.batch_size
        if given is None:
            segment = Segment(name, _empty(options.element, batch, grid, self.device), grid)
        else:
            segment = given.to(self.device)
            if segment.modality != name or segment.grid != grid:
                raise ValueError(
                    f"given is a segment of {segment.modality!r} on grid {segment.grid}; "
                    f"it must be of {name!r} on {grid}"
                )
        for other in [*context, segment]:
            if other.batch_size != batch:
                raise ValueError(
                    f"segment {other.modality!r} has a batch of {other.batch_size}; the context has one of {batch}"
                )
        return segment.replace(target=True)

    def _target(
        self: Any, arguments: dict[str, Any], context: list[Segment]
    ) -> tuple[Segment, Layout, int, Tensor | None]:
        """The segment to fill, its layout, the number of known leading blocks, and what is known where that may be
        anything."""
        name, given, options = arguments["target"], arguments["given"], self.options[arguments["target"]]
        segment = self._begun(arguments, context)
        self.check_segment(segment)
        anything = self.objectives[name].knows_anything
        first = None if given is None or arguments["known_blocks"] is not None else self._first(segment, anything)
        layout = self.layout(name, segment.grid, first)
        known = 0
        if given is not None:
            known = _known_blocks(segment, layout, arguments["known_blocks"], options.layout.order, anything)
        if given is None and arguments["known_blocks"]:
            raise ValueError(f"known_blocks is {arguments['known_blocks']} without a given segment")
        if options.start == "none" and known == 0:
            raise ValueError(f"modality {name!r} has no start vector; its first block must be given")
        observed = segment.observed
        if observed is not None:  # what will be drawn counts as observed from now on
            future = layout.scatter((layout.block >= known)[None])
            observed = observed | (future if observed.dim() == 2 else future[..., None])
            observed = None if bool(observed.all()) else observed  # or every block would look again
        held = None if given is None or not anything else segment.element_observed
        if held is not None and segment.observed is not None:
            held = segment.observed
        return segment.replace(values=segment.values.clone(), observed=observed), layout, known, held

    def _context(self: Any, context: list[Segment], target: str, null: bool) -> _Side:
        """What comes of checked segments; `null`: with null vectors for what the target is conditioned on."""
        side = _Side([], None, None)
        for number, segment in enumerate(context):
            following = context[number + 1] if number + 1 < len(context) else None
            if segment.target:
                layout = self.layout(segment.modality, segment.grid)
                self.check_start(segment.modality, side.start)
                objective, embedding = self.objectives[segment.modality], self.embeddings[segment.modality]
                side.parts += objective.known_parts(embedding, segment, layout, layout.num_blocks, side.start)
                side.start = None
                continue
            part = self.context_part(segment, null)
            side.conditioning = self.add_conditioning(side.conditioning, segment, part, context[:number])
            name = target if following is None else following.modality if following.target else None
            side.start = self.start_of(name, part)
            side.parts += [] if side.start is not None else [part]
        self.check_start(target, side.start)
        return side

    def _first(self: Any, segment: Segment, anything: bool) -> Tensor | None:
        """[N] bool: what comes first in generation, where the order is free to put what is known there."""
        observed, options = segment.element_observed, self.options[segment.modality].layout
        if not ORDERS[options.order].random or not bool(observed.any()):
            return None
        if not bool((observed == observed[0]).all()):
            raise ValueError("given knows other elements in some examples of the batch; it must know the same in all")
        # What is left of a cell is heeded when its block is drawn.
        return whole_cells(segment.whole_observed[0], segment.grid, options.block) if anything else observed[0]


class _Evaluating:
    """Evaluation mode for the length of a `with` block."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.modes = [(module, module.training) for module in model.modules()]  # a part may be frozen on its own

    def __enter__(self) -> None:
        self.model.train(False)

    def __exit__(self, *_: Any) -> None:
        for module, training in self.modes:
            module.training = training


def _empty(element: Any, batch: int, grid: Grid, device: torch.device) -> Tensor:
    n = grid[0] * grid[1] * grid[2]
    if isinstance(element, DiscreteElement):
        shape = (batch, n) if element.codes == 1 else (batch, n, element.codes)
        return torch.zeros(shape, dtype=torch.long, device=device)
    return torch.zeros(batch, n, element.dim, device=device)  # float32, in which heads of all dtypes draw


def leading_blocks(observed: Tensor, layout: Layout) -> int:
    """How many leading blocks are known as a whole, of observed [B, N] in generation order."""
    whole = torch.ones(layout.num_blocks, dtype=torch.bool, device=observed.device)
    whole[layout.block[~observed.all(0)]] = False
    return int(whole.long().cumprod(0).sum())


def _known_blocks(segment: Segment, layout: Layout, known_blocks: int | None, order: str, anything: bool) -> int:
    """How many leading blocks are known; raises ValueError where the known part is not whole leading blocks, unless it
    may be `anything`."""
    if known_blocks is not None:
        if not 0 <= known_blocks <= layout.num_blocks:
            raise ValueError(f"known_blocks is {known_blocks}; the layout has {layout.num_blocks} blocks")
        return known_blocks
    observed = layout.gather(segment.whole_observed if anything else segment.element_observed)
    known = leading_blocks(observed, layout)
    later = observed[:, layout.block_range(known, layout.num_blocks)]
    if bool(later.any()) and not anything:
        raise ValueError(
            f"given knows elements of block {known} or later, but not all of the blocks before; under next-block with "
            f"order {order!r} the known part must be whole leading blocks (random orders without a list of block sizes "
            "take any elements; known_blocks counts gaps as missing)"
        )
    return known
