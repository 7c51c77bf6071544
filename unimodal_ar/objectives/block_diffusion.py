"""Block diffusion: a block is restored from noise, given the clean blocks before it.

BD3-LM (arXiv 2503.09573) and SDAR (arXiv 2510.06303) with mask noise, ACDiT (arXiv 2412.07720) and xAR (arXiv
2502.20388) with Gaussian noise. A single block is MaskGIT (arXiv 2202.04200), MAR (arXiv 2406.11838) or plain
diffusion.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor

from ..heads.base import Head
from ..layout import Layout
from ..schema import Element, Strict
from ..segment import Segment
from ..sequence import Part
from .base import Decoding, Objective, TrainingPlan
from .gaussian_noise import GaussianNoise
from .levels import parse_levels
from .mask_noise import MaskNoise
from .noise import Noise, Noisy
from .parts import check_predicted, closed, first_block, leading, own_values, seen_before

NOISES: dict[str, type[Noise]] = {"mask": MaskNoise, "gaussian": GaussianNoise}


class BlockDiffusionOptions(Strict):
    """noise: "mask" (elements are hidden) or "gaussian" (x_t = (1 - t) x + t e, for continuous elements).
    levels: how noisy blocks are in training, `{kind: uniform | cosine | truncated_normal | logit_normal}` with the
    distribution's own keys; None: uniform for masks, logit-normal for Gaussian noise."""

    noise: Literal["mask", "gaussian"] = "mask"
    levels: dict[str, Any] | None = None

    @field_validator("levels")
    @classmethod
    def _complete(cls, levels: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if levels is None else parse_levels(levels).model_dump()


class BlockDiffusion(Objective):
    """Every block has a noise level of its own.

    In training there are two copies of the sequence: clean ones of all blocks that another one reads, and noisy ones,
    which see the clean copies of earlier blocks and themselves. Where nobody reads the only block there is one copy.
    """

    Options = BlockDiffusionOptions
    reads_sources = False
    knows_anything = True

    def __init__(self, options: BlockDiffusionOptions, head: type[Head] | None = None) -> None:
        super().__init__(options, head)
        has_likelihood = head is None or hasattr(head, "log_prob")
        levels = parse_levels(options.levels) if options.levels else None
        self.noise = NOISES[options.noise](levels, has_likelihood)
        self.has_levels = self.noise.has_levels
        self.likelihood = "bound" if self.noise.masks else None

    def holds_nothing(self, start: str) -> bool:
        return self.noise.masks

    def is_point(self, head: type[Head]) -> bool:
        return self.noise.masks and head.is_point

    def problem(self, element: Element, head: dict[str, Any], start: str, target_positions: str | None) -> str | None:
        if start == "context":
            return "start is 'context'; under block diffusion no position reads another element, nor the context's"
        if target_positions is not None:
            return (
                f"target_positions is {target_positions!r}; under block diffusion every position is at the place of "
                "its own element (absolute_positions adds a table)"
            )
        return self.noise.problem(element, head)

    def training_plan(
        self, embedding: Any, segment: Segment, layout: Layout, last: bool, start: Tensor | None = None
    ) -> TrainingPlan:
        return self.plan(embedding, segment, layout, last, self.noise.add(segment, layout, embedding.training))

    def plan(self, embedding: Any, segment: Segment, layout: Layout, last: bool, noisy: Noisy) -> TrainingPlan:
        """The positions of a segment to which noise was added."""
        check_predicted(embedding, segment, layout)
        first, blocks = first_block(embedding), layout.num_blocks
        elements = layout.block_range(first, blocks)
        noisy = noisy.at(elements)
        copies = self._copies(embedding, segment, layout, first, blocks, noisy)
        before = [own_values(embedding, segment, layout, 0, first)] if first else []
        read = blocks - 1 if last else blocks  # up to which block somebody reads clean copies
        if read > first:
            parts = [*before, replace(copies, noisy=True), own_values(embedding, segment, layout, first, read)]
        else:
            parts = [*before, copies]
        offset = sum(part.embeds.shape[1] for part in before)
        parts[0] = leading(parts[0], segment, layout)
        predicted = layout.gather(segment.element_observed)
        if embedding.start_kind == "none":
            predicted = predicted & seen_before(predicted, layout)
        return TrainingPlan(
            parts=closed(parts, layout),
            places=slice(offset, offset + copies.embeds.shape[1]),
            elements=elements,
            predicted=predicted[:, elements],
            targets=noisy.targets,
            weights=noisy.weights,
        )

    def known_parts(
        self, embedding: Any, segment: Segment, layout: Layout, blocks: int, start: Tensor | None = None
    ) -> list[Part]:
        if not blocks:
            return []
        part = leading(own_values(embedding, segment, layout, 0, blocks), segment, layout)
        return closed([part], layout) if blocks == layout.num_blocks else [part]

    def sampling(self, head: Head, steps: Any, sampler: dict[str, Any] | None) -> dict[str, Any]:
        return {"steps": steps, "sampler": self.noise.sampler(head, sampler)}

    def draw(
        self,
        decoding: Decoding,
        embedding: Any,
        head: Head,
        segment: Segment,
        layout: Layout,
        block: int,
        known: Tensor | None = None,
        alone: bool = False,
        generator: Any = None,
        **sampling: Any,
    ) -> Tensor:
        index = layout.index[layout.block_range(block)]
        values = segment.values[:, index]

        def restore(noisy: Noisy) -> tuple[Tensor, ...]:
            return decoding.peek([self._copies(embedding, segment, layout, block, block + 1, noisy)])

        if known is None or not bool(known.all()):
            known = torch.zeros(values.shape[:2], dtype=torch.bool, device=index.device) if known is None else known
            # Streams of the block's own: which blocks are drawn, and in how many passes, may depend on other samples.
            # Counted from the end, because before the beginning there may be padding.
            own = generator.numbered(layout.num_blocks - block)
            values = self.noise.draw(restore, decoding, head, values, known, alone, generator=own, **sampling)
        if block + 1 < layout.num_blocks:
            drawn = segment.replace(values=segment.values.index_copy(1, index, values.to(segment.values.dtype)))
            decoding.hold([own_values(embedding, drawn, layout, block, block + 1)])
        return values

    def _copies(self, embedding: Any, segment: Segment, layout: Layout, first: int, last: int, noisy: Noisy) -> Part:
        """Noisy copies of blocks first..last-1."""
        places = layout.block_range(first, last)
        embeds = embedding.noisy(noisy.values, layout, segment.observed, segment.covariates, places, noisy.masked)
        valid = None if segment.observed is None else layout.gather(segment.element_observed)[:, places]
        return Part(
            embeds=embeds,
            coords=layout.coords[None, places],
            block=layout.block[places],
            sizes=layout.sizes(first, last),
            sequential=layout.is_sequential,
            single=last - first == 1,
            valid=None if valid is None or bool(valid.all()) else valid,
            conditioning=None if noisy.level is None else embedding.level(noisy.level).to(embeds.dtype),
        )
