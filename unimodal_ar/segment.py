"""A segment: the values of one modality on a grid, which is all that travels between adapters and models.

Shapes: B batch, N = T*H*W elements in raster order, D dimension of a continuous element, K codes per element,
F covariate features.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

Grid = tuple[int, int, int]


def check_grid(grid: Sequence[int]) -> Grid:
    """Returns `grid` as a (T, H, W) tuple of positive ints, or raises ValueError naming it."""
    try:
        sizes = tuple(operator.index(size) for size in grid)
    except TypeError:
        sizes = ()
    if len(sizes) != 3 or min(sizes) < 1:
        raise ValueError(f"grid is {grid!r}; it must be three positive integers (T, H, W)")
    return sizes[0], sizes[1], sizes[2]


def _brief(value: Any) -> str:
    return f"<{value.dtype} {list(value.shape)}>" if isinstance(value, Tensor) else repr(value)


@dataclass(frozen=True)
class Segment:
    """Values of one modality on a (T, H, W) grid, for a batch of examples that share this structure.

    Args:
        modality: name under which the model's configuration knows these values.
        values: [B, N] long (one code per element), [B, N, K] long (K codes) or [B, N, D] floating (a vector per
            element), in raster order. Where `observed` is False a value is never read and may be NaN.
        grid: (T, H, W) with T * H * W == N.
        observed: [B, N] or [B, N, D] bool; False marks what is missing or padding. None: everything is observed.
        target: True for values to be learnt (or already generated), False for context that is only conditioned on.
        covariates: [B, N, F] floating, known for every element, the future too.

    Raises:
        ValueError: a shape or dtype is not one of the above; the message names the argument.
    """

    modality: str
    values: Tensor
    grid: Grid
    observed: Tensor | None = None
    target: bool = True
    covariates: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "grid", check_grid(self.grid))
        self._check_values()
        self._check_observed()
        self._check_covariates()

    def __repr__(self) -> str:
        """With the shapes of its tensors, not what they hold."""
        told = [f"{field.name}={_brief(getattr(self, field.name))}" for field in fields(self)]
        return f"Segment({', '.join(told)})"

    def _check_values(self) -> None:
        values = self.values
        if not isinstance(values, Tensor):
            raise ValueError(f"values of {self.modality!r} is a {type(values).__name__}; it must be a torch.Tensor")
        if values.dtype != torch.long and not values.is_floating_point():
            raise ValueError(
                f"values of {self.modality!r} has dtype {values.dtype}; "
                "discrete values must be torch.long, continuous ones floating point"
            )
        n = self.num_elements
        legal = "[B, N, D] (codes are torch.long)" if values.is_floating_point() else "[B, N] or [B, N, codes]"
        dims = (3,) if values.is_floating_point() else (2, 3)
        if values.dim() not in dims or values.shape[1] != n or values.shape[0] == 0:
            raise ValueError(
                f"values of {self.modality!r} has shape {tuple(values.shape)}; "
                f"with grid {self.grid} it must be {legal} with N = {n}, B >= 1"
            )

    def _check_observed(self) -> None:
        if self.observed is None:
            return
        if self.observed.dtype != torch.bool:
            raise ValueError(f"observed of {self.modality!r} has dtype {self.observed.dtype}; it must be torch.bool")
        legal = {tuple(self.values.shape[:2])}
        if self.values.is_floating_point():
            legal.add(tuple(self.values.shape))
        if tuple(self.observed.shape) not in legal:
            raise ValueError(
                f"observed of {self.modality!r} has shape {tuple(self.observed.shape)}; "
                f"it must be {' or '.join(map(str, sorted(legal)))}"
            )

    def _check_covariates(self) -> None:
        if self.covariates is None:
            return
        if not self.covariates.is_floating_point():
            raise ValueError(
                f"covariates of {self.modality!r} has dtype {self.covariates.dtype}; it must be floating point"
            )
        if self.covariates.dim() != 3 or self.covariates.shape[:2] != self.values.shape[:2]:
            raise ValueError(
                f"covariates of {self.modality!r} has shape {tuple(self.covariates.shape)}; "
                f"it must be [B, N, features] with B, N = {tuple(self.values.shape[:2])}"
            )

    @property
    def num_elements(self) -> int:
        t, h, w = self.grid
        return t * h * w

    @property
    def batch_size(self) -> int:
        return self.values.shape[0]

    @property
    def element_observed(self) -> Tensor:
        """[B, N] bool: True where any value of the element is observed."""
        if self.observed is None:
            return torch.ones(self.values.shape[:2], dtype=torch.bool, device=self.values.device)
        return self.observed if self.observed.dim() == 2 else self.observed.any(-1)

    @property
    def whole_observed(self) -> Tensor:
        """[B, N] bool: True where every value of the element is observed."""
        observed = self.observed
        return self.element_observed if observed is None or observed.dim() == 2 else observed.all(-1)

    @property
    def known_steps(self) -> int:
        """How many steps of the T axis, from the first one on, have every element observed in all of the batch."""
        steps = self.element_observed.unflatten(1, (self.grid[0], -1)).all(-1).all(0)
        return int(steps.cumprod(0).sum())

    @property
    def observed_fraction(self) -> Tensor:
        """[B, N] float: the fraction of each element's values that is observed."""
        if self.observed is None or self.observed.dim() == 2:
            return self.element_observed.float()
        return self.observed.float().mean(-1)

    def replace(self, **changes: Any) -> Segment:
        return replace(self, **changes)

    def _map(self, function: Any) -> Segment:
        """`function` on every tensor, those that an adapter's subclass carries along (a scale, say) too."""
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        changes: dict[str, Any] = {name: function(x) for name, x in tensors.items() if isinstance(x, Tensor)}
        return replace(self, **changes)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Segment:
        """Moves every tensor; dtypes stay. (accelerate calls this to place a batch.)"""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Segment:
        """Copies every tensor to page-locked memory (the DataLoader calls this)."""
        return self._map(lambda x: x.pin_memory())

    def select(self, rows: Tensor | slice) -> Segment:
        """The examples `rows` of the batch."""
        return self._map(lambda x: x[rows])

    def repeat_interleave(self, repeats: int) -> Segment:
        """Each example `repeats` times, copies side by side: [B, ...] -> [B * repeats, ...]."""
        return self if repeats == 1 else self._map(lambda x: x.repeat_interleave(repeats, 0))


def collate(examples: Sequence[Sequence[Segment]]) -> list[Segment]:
    """Stacks sequences of the same structure along the batch axis.

    Raises:
        ValueError: two examples differ in modalities, grids, target flags or in which fields they carry.
    """
    if not examples:
        raise ValueError("collate got no examples; it must get at least one")
    batch = []
    for example in examples:
        if [_structure(segment) for segment in example] != [_structure(segment) for segment in examples[0]]:
            raise ValueError(
                f"examples of one batch must share their structure; found {[_structure(s) for s in examples[0]]} "
                f"and {[_structure(s) for s in example]}"
            )
    for position, first in enumerate(examples[0]):
        column = [example[position] for example in examples]
        names = [field.name for field in fields(first) if isinstance(getattr(first, field.name), Tensor)]
        stacked: dict[str, Any] = {name: torch.cat([getattr(s, name) for s in column]) for name in names}
        batch.append(replace(first, **stacked))
    return batch


def _structure(segment: Segment) -> tuple[Any, ...]:
    return segment.modality, segment.grid, segment.target, segment.observed is None, segment.covariates is None
