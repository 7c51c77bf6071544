"""What may change of a modality in the course of training, and is gone when it has been trained."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .layout import cells
from .segment import Grid, Segment


@dataclass
class Curriculum:
    """What a schedule changes of a modality in training; in evaluation mode the model pays it no heed.

    Attributes:
        group: k x k neighbouring codes are one element, whose embedding is their mean and whose codes are drawn from
            one distribution (Next Patch Prediction, arXiv 2412.15321). 1: none are grouped.
        random_order: how often a batch is put in random order (annealed to 0 by RAR, arXiv 2411.00776).
    """

    group: int = 1
    random_order: float = 0.0


def group_cell(grid: Grid, size: int) -> Grid:
    """What `Curriculum.group` makes one element: size x size neighbours, or a run of them where all lie along t."""
    _, h, w = grid
    return (1, size if h > 1 else 1, size if w > 1 else 1) if max(h, w) > 1 else (size, 1, 1)


def grouped(segment: Segment, size: int) -> tuple[Segment, Tensor]:
    """A segment of codes [B, N] whose elements are groups [B, N / G, G] on the coarse grid, and the groups' members
    [N / G, G] as raster indices.

    Raises:
        ValueError: groups that do not divide the grid, or missing elements.
    """
    cell = group_cell(segment.grid, size)
    if any(extent % part for extent, part in zip(segment.grid, cell, strict=True)):
        raise ValueError(f"group of {segment.modality!r} is {size}, which does not divide its grid {segment.grid}")
    if segment.observed is not None and not bool(segment.observed.all()):
        raise ValueError(f"group of {segment.modality!r} is {size}; codes are grouped only where all are observed")
    grid = tuple(extent // part for extent, part in zip(segment.grid, cell, strict=True))
    members = cells(segment.grid, cell).to(segment.values.device)
    covariates = None if segment.covariates is None else segment.covariates[:, members].mean(2)
    values = segment.values[:, members]
    return segment.replace(values=values, grid=grid, observed=None, covariates=covariates), members
