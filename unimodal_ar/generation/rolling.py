"""Targets longer than a model was trained on, drawn window by window.

Each window is an ordinary call of `generate`: coordinates begin at 0, and what is carried over is given, so the model
only sees what it saw in training, whatever tells it places, and memory is that of one window. MusicGen goes beyond its
30 seconds like this (arXiv 2306.05284); first steps that stay in every window are StreamingLLM's attention sinks
(arXiv 2309.17453).

Shapes: B examples times samples, T steps, N elements.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from ..layout import ORDERS
from ..noise import SampleNoise
from ..schema import positive_int
from ..segment import Segment


def rolling(model: Any, arguments: dict[str, Any]) -> Rolling | None:
    """What draws the target of `generate`'s arguments, where it is longer than their window; else None."""
    window, overlap, sink = (arguments[name] for name in ("window", "overlap", "sink"))
    if window is None:
        for name, value in (("overlap", overlap), ("sink", sink or None)):
            if value is not None:
                raise ValueError(f"{name} is {value!r} without a window; it says what windows have in common")
        return None
    window = positive_int("window", window)
    overlap = window // 2 if overlap is None else overlap
    for name, value in (("overlap", overlap), ("sink", sink)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise ValueError(f"{name} is {value!r}; it must be an integer >= 0, in steps")
    if overlap + sink >= window:
        raise ValueError(
            f"window is {window} steps, overlap {overlap} and sink {sink}; a window must be longer than overlap and "
            "sink together, or nothing new would be drawn"
        )
    context = model._checked(arguments["context"])
    options = model._sampling_options(arguments)
    segment = model._begun(arguments, context)
    if segment.grid[0] <= window:
        return None
    if arguments["given"] is None:
        segment = segment.replace(observed=torch.zeros_like(segment.element_observed))
    if arguments["known_blocks"] is not None:
        raise ValueError(
            f"known_blocks is {arguments['known_blocks']} with a window of {window} steps for {segment.grid[0]}; what "
            "is missing stays missing only where a single window holds the target"
        )
    context = [each.repeat_interleave(options.num_samples) for each in context]
    return Rolling(model, {**arguments, "context": context}, segment.repeat_interleave(options.num_samples), overlap)


class Rolling:
    """A target under construction, window by window.

    A window holds the clip's first `sink` steps, the last `overlap` steps that are known, and new ones. Where less than
    a window is known from the start, the first one holds all of that. The last window is as long as the others, and
    drawn as far as the clip goes; beyond its end covariates stay what they are in its last step.

    Args:
        arguments: of `generate`, checked, with a context for each of B.
        segment: the whole target, of which what is observed is known.
        overlap: in steps.
    """

    def __init__(self, model: Any, arguments: dict[str, Any], segment: Segment, overlap: int) -> None:
        self.model, self.arguments, self.segment = model, arguments, segment
        self.window, self.overlap, self.sink = arguments["window"], overlap, arguments["sink"]
        self.new = self.window - self.overlap - self.sink
        self.per_step = segment.grid[1] * segment.grid[2]
        samples = torch.arange(segment.batch_size, device=segment.values.device)
        self.noise = SampleNoise.from_generator(arguments["generator"], samples)
        spare = self.new * self.per_step  # for what the last window draws beyond the end
        known = segment.element_observed if segment.observed is None else segment.observed
        self.known = _lengthened(known, known.new_zeros(1), spare)
        self.values = _lengthened(segment.values, segment.values.new_zeros(1), spare)
        covariates = segment.covariates
        if covariates is not None:
            covariates = torch.cat([covariates, covariates[:, -self.per_step :].repeat(1, self.new, 1)], 1)
        self.covariates = covariates
        self.starts = deque(self._starts())
        self.job: Any = None
        self._check()

    @property
    def complete(self) -> bool:
        return self.job is None and not self.starts

    def draw(self) -> None:
        """Draws the next block."""
        if self.job is None:
            self._open(self.starts.popleft())
        self.model._draw(self.job, self.block)
        layout = self.job.layout
        drawn = layout.index[layout.block_range(self.block)]
        self.values[:, self.places[drawn]] = self.job.segment.values[:, drawn]
        self.known[:, self.places[drawn]] = True
        self.block += 1
        if self.block > self.last:
            self.job = None

    def so_far(self) -> Segment:
        """The whole target; what is still to come is not observed."""
        n = self.segment.num_elements
        known = self.known[:, :n] if self.known.dim() == 2 else self.known[:, :n].all(-1)
        observed = None if self.complete else known.clone()
        return self.segment.replace(values=self.values[:, :n].clone(), observed=observed)

    def _starts(self) -> list[int]:
        """How many leading steps are known when each window is opened."""
        known = self.known[:, : self.segment.num_elements]
        known = known.all(0) if known.dim() == 2 else known.all(-1).all(0)
        steps = known.view(-1, self.per_step).all(1).tolist()
        starts, done = [], 0
        while done < len(steps):
            if steps[done]:
                done += 1
                continue
            starts.append(done)
            done = self.window if done < self.window else done + self.new
        return starts

    def _steps(self, start: int) -> Tensor:
        """[window] the steps that a window holds."""
        device = self.values.device
        if start < self.window:
            return torch.arange(self.window, device=device)
        new = torch.arange(start - self.overlap, start + self.new, device=device)
        return torch.cat([torch.arange(self.sink, device=device), new])

    def _local(self, start: int) -> tuple[dict[str, Any], Tensor]:
        """The arguments of `generate` for a window, and the places of its elements in the whole."""
        places = self._steps(start)[:, None] * self.per_step + torch.arange(self.per_step, device=self.values.device)
        places = places.flatten()
        given = self.segment.replace(
            values=self.values[:, places],
            grid=(self.window, *self.segment.grid[1:]),
            observed=self.known[:, places],
            covariates=None if self.covariates is None else self.covariates[:, places],
        )
        return {**self.arguments, "given": given, "grid": given.grid, "num_samples": 1}, places

    def _open(self, start: int) -> None:
        local, self.places = self._local(start)
        self.job = self.model._start({**local, "generator": self.noise.child()})
        self.block = self.job.known
        layout = self.job.layout
        inside = self.places[layout.index] < self.segment.num_elements
        self.last = int(layout.block[inside].max())

    def _check(self) -> None:
        """Raises ValueError where a window's known part is not what the model can be given, before anything is
        drawn."""
        if not self.starts:
            return
        ahead = bool(self.known[:, (self.starts[0] + 1) * self.per_step :].any())
        name = self.segment.modality
        order = self.model.options[name].layout.order
        if ahead and not self.model.objectives[name].knows_anything and not ORDERS[order].random:
            raise ValueError(
                f"given knows elements after step {self.starts[0]}, the first that it does not know as a whole; under "
                f"next-block with order {order!r} the known part must be whole leading blocks"
            )
        # Where nothing is known of what lies ahead, all windows but the first are alike.
        alike = sum(start < self.window for start in self.starts) + 1
        for start in list(self.starts) if ahead else list(self.starts)[:alike]:
            local, places = self._local(start)
            given = local["given"]
            carried = torch.arange(len(places), device=places.device) < (self.sink + self.overlap) * self.per_step
            if start >= self.window:  # by then it will have been drawn
                observed = given.observed | (carried if given.observed.dim() == 2 else carried[:, None])
                local["given"] = given.replace(observed=observed)
            try:
                self.model._target(local, local["context"])
            except ValueError as error:
                if start < self.window:
                    raise
                raise ValueError(
                    f"window is {self.window}, overlap {self.overlap} and sink {self.sink}, so that the first "
                    f"{self.overlap + self.sink} of a window's steps are carried over, but {error}"
                ) from None


def _lengthened(x: Tensor, filler: Tensor, n: int) -> Tensor:
    """[B, N, ...] with n more."""
    return torch.cat([x, filler.expand(len(x), n, *x.shape[2:])], 1)
