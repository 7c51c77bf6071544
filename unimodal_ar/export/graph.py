"""A forecaster's next block as an ONNX graph of fixed shapes: series in, forecast out, scaling included.

Shapes: B series, L steps of lookback, h steps of a block, N patches of both, P steps of a patch, M learnt quantile
levels, Q asked ones.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..adapters.timeseries.scaling import ROUNDING, SCALINGS
from ..forecasting import Forecaster
from ..heads.base import check_levels
from ..heads.quantile import QuantileHead
from ..heads.regression import RegressionHead
from ..layout import Layout
from ..objectives.next_block import NextBlock
from ..objectives.parts import first_block
from ..schema import positive_int
from ..sequence import Cursor, Part, leading_padding
from .folder import fill, new_folder
from .program import check_kernel, fixed_pattern, program_of

GRAPH, SHAPES = "forecaster.onnx", "forecaster.json"
PACKAGES = ("onnx", "onnxscript")
OPSET = 20
SINGLE_FILE = 1_500_000_000
"""Bytes of weights up to which they are in the graph's file, which can have 2 GB at most; else they lie beside it."""


@torch.no_grad()
def export_forecaster(
    forecaster: Forecaster,
    out: str | os.PathLike[str],
    batch_size: int = 1,
    lookback: int | None = None,
    quantile_levels: Sequence[float] | None = None,
) -> dict[str, Any]:
    """Writes `(values, observed) -> forecast` of the block after the lookback to forecaster.onnx in the folder `out`,
    and to forecaster.json its shapes, options, and how to go on from there:

    - values [B, L] float32, in the series' own units, anything where they are missing, NaN too;
    - observed [B, L] bool: False where they are missing. A shorter series stands at the end, unobserved before;
    - forecast: for a regression head `point` [B, h] float32, what `Forecaster.predict(series, h).mean` is; for a
      quantile head `quantiles` [B, h, Q], those that `predict` estimates from samples. A series of which nothing is
      observed gets a forecast nobody should use; `predict` refuses it.

    Args:
        out: a new or an empty folder.
        batch_size: B.
        lookback: L, a multiple of patch x block, at most the forecaster's; None: the forecaster's.
        quantile_levels: Q levels, increasing, in (0, 1); None: those that the head has learnt.

    Returns:
        What forecaster.json holds.

    Raises:
        ImportError: onnx or onnxscript is missing.
        ValueError: the forecaster needs more than the series (covariates, timestamps, examples), draws blocks in
            several steps, or has another head; an argument does not fit it.
    """
    _check_packages()
    folder, batch = new_folder(out), positive_int("batch_size", batch_size)
    _check(forecaster)
    length = _length(forecaster, lookback)
    levels = _levels(forecaster, quantile_levels)
    module = _NextForecast(forecaster, length, levels).eval()
    inputs = (torch.zeros(batch, length), torch.ones(batch, length, dtype=torch.bool))
    module(*inputs)  # after that the layout knows its sizes, which torch.export could not look up
    program = program_of(module, inputs, forecaster.model)
    described = _described(forecaster, batch, length, levels)

    def write(partial: Path) -> None:
        torch.onnx.export(
            program,
            (),
            str(partial / GRAPH),
            input_names=["values", "observed"],
            output_names=[described["outputs"][0]["name"]],
            opset_version=OPSET,
            external_data=sum(x.nbytes for x in module.state_dict().values()) > SINGLE_FILE,
            dynamo=True,
            verbose=False,
        )

    return fill(folder, write, SHAPES, described)


class _NextForecast(nn.Module):
    """See `export_forecaster`. It is `Forecaster._chunk` for one block, in one pass without a cache."""

    def __init__(self, forecaster: Forecaster, length: int, levels: Sequence[float] | None) -> None:
        super().__init__()
        name, self.scaling = forecaster.adapter.modality, forecaster.adapter.options
        self.model, self.block = forecaster.model, forecaster.block
        self.embedding: Any = forecaster.model.embeddings[name]
        self.head: Any = forecaster.model.heads[name]
        grid = (length // self.scaling.patch + self.block, 1, 1)
        self.layout = Layout.from_grid(grid, "raster", self.block)
        # Of every element's block: looked up here, as ONNX has no search.
        self.begins = torch.searchsorted(self.layout.block, self.layout.block)
        self.levels = None if levels is None else _between(cast(QuantileHead, self.head), levels)

    def forward(self, values: Tensor, observed: Tensor) -> Tensor:
        loc, scale = self._scales(values, observed)
        scaled = ((values.double() - loc[:, None]) / scale[:, None]).to(values.dtype)
        hidden = self._hidden(torch.where(observed, scaled, 0), observed)
        if self.levels is None:
            forecast = self.head.mean(hidden)
        else:
            forecast = self.head.knots(hidden) @ self.levels
        forecast = forecast.flatten(1, 2).double()
        wide = (slice(None), *[None] * (forecast.dim() - 1))
        return (forecast * scale[wide] + loc[wide]).to(values.dtype)

    def _scales(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor]:
        """`location_scale`, without its look at the result."""
        seen = torch.where(observed, values.double(), torch.nan)
        loc, scale = SCALINGS[self.scaling.scaling](seen, self.scaling.eps)
        loc = torch.where(loc.isnan(), 0.0, loc)
        return loc, torch.where(scale > ROUNDING * loc.abs(), scale, 1.0)

    def _hidden(self, values: Tensor, observed: Tensor) -> Tensor:
        """[B, block, H] hidden states that predict the last block, of which nothing is read."""
        layout, embedding = self.layout, self.embedding
        ahead = self.block * self.scaling.patch
        patches = nn.functional.pad(values, (0, ahead)).unflatten(1, (-1, self.scaling.patch))
        known = nn.functional.pad(observed, (0, ahead), value=True).unflatten(1, (-1, self.scaling.patch))
        places = layout.block_range(first_block(embedding), layout.num_blocks)
        embeds, read = embedding.inputs(patches, layout, known, None, places)
        elements = known.any(-1)
        valid = read | elements[:, places]
        if embedding.start_kind == "none":
            earlier = nn.functional.pad(elements.long().cumsum(1), (1, 0))[:, self.begins]
            valid = valid & (earlier > 0)[:, places]
        part = Part(
            embeds=embeds,
            coords=torch.where(read[..., None], layout.source_coords[places], layout.coords[places]),
            block=layout.block[places],
            sizes=layout.sizes(first_block(embedding), layout.num_blocks),
            sequential=False,
            single=False,
            valid=valid,
            lead=leading_padding(elements, layout),
        )
        inputs = Cursor().place([*self.model.backbone.opening(len(values)), part])
        inputs = replace(inputs, pattern=fixed_pattern(inputs.pattern.dense()))
        return self.model.backbone(inputs)[:, -self.block :]


def _between(head: QuantileHead, levels: Sequence[float]) -> Tensor:
    """[M, Q]: what the learnt quantiles are multiplied by to give those at `levels`. (Between and beyond them the
    quantile function is linear in them, so that it is known from those of which one is 1 and the others are 0.)"""
    single = torch.eye(len(head.levels), dtype=torch.float64)
    asked = torch.tensor(levels, dtype=torch.float64).expand(len(single), -1)
    return head._quantile_function(single, asked).float()


def _check_packages() -> None:
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(
            f"export to ONNX needs the packages {list(PACKAGES)}, of which {missing} is missing: "
            "pip install 'unimodal-ar[export]'"
        )


def _check(forecaster: Forecaster) -> None:
    name, options = forecaster.adapter.modality, forecaster.adapter.options
    modality, head = forecaster.model.options[name], forecaster.model.heads[name]
    for key in ("known_covariates", "past_covariates", "timestamps"):
        if getattr(options, key):
            raise ValueError(
                f"{key} of the adapter of {name!r} is {getattr(options, key)!r}; the graph reads the series alone, so "
                f"it must be {0 if key != 'timestamps' else None}"
            )
    if forecaster.examples is not None:
        raise ValueError(
            f"examples is {forecaster.examples!r}; the graph reads one lookback alone, so the forecaster must be one "
            "without examples in front"
        )
    if not isinstance(forecaster.model.objectives[name], NextBlock):
        kind = (modality.objective or {})["kind"]
        raise ValueError(
            f"modalities.{name}.objective.kind is {kind!r}, which draws a block in several passes; the graph is one "
            "pass, so it must be 'next_block'"
        )
    if not isinstance(head, (RegressionHead, QuantileHead)):
        raise ValueError(
            f"modalities.{name}.head.kind is {(modality.head or {})['kind']!r}; the graph draws no samples, so it must "
            "be 'regression' or 'quantile', which state their forecast"
        )
    if modality.start == "context":
        raise ValueError(f"modalities.{name}.start is 'context'; the graph has no context, so it must be another")
    if forecaster.model.backbone.obstacle is not None:
        raise ValueError(f"{forecaster.model.backbone.obstacle}; only a backbone with attention can be exported")
    check_kernel(forecaster.model)
    kinds = {(x.dtype, x.device.type) for x in forecaster.model.parameters()}
    if kinds != {(torch.float32, "cpu")}:
        found = sorted(f"{str(dtype).removeprefix('torch.')} on {device}" for dtype, device in kinds)
        raise ValueError(
            f"the model is in {' and '.join(found)}; for the graph it must be in float32 on cpu "
            "(Forecaster.from_pretrained(path, device='cpu'))"
        )


def _length(forecaster: Forecaster, lookback: int | None) -> int:
    step = forecaster.adapter.options.patch * forecaster.block
    length = forecaster.lookback if lookback is None else positive_int("lookback", lookback)
    if length % step or length > forecaster.lookback:
        raise ValueError(
            f"lookback is {length} steps; it must be a multiple of patch x block = {step}, at most the forecaster's "
            f"{forecaster.lookback}"
        )
    return length


def _levels(forecaster: Forecaster, asked: Sequence[float] | None) -> tuple[float, ...] | None:
    head = forecaster.model.heads[forecaster.adapter.modality]
    if isinstance(head, RegressionHead):
        if asked is not None:
            raise ValueError(
                f"quantile_levels is {list(asked)}; this model's head is a regression, which gives points only"
            )
        return None
    levels = cast(QuantileHead, head).levels if asked is None else tuple(asked)
    check_levels(levels, torch.device("cpu"))
    if any(low >= high for low, high in pairwise(levels)):
        raise ValueError(f"quantile_levels is {list(levels)}; they must increase strictly inside (0, 1)")
    return levels


def _described(forecaster: Forecaster, batch: int, length: int, levels: Sequence[float] | None) -> dict[str, Any]:
    options, block = forecaster.adapter.options, forecaster.adapter.options.patch * forecaster.block
    outputs: dict[str, Any] = {"name": "point", "dtype": "float32", "shape": [batch, block]}
    if levels is not None:
        outputs = {"name": "quantiles", "dtype": "float32", "shape": [batch, block, len(levels)]}
    return {
        "graph": GRAPH,
        "opset": OPSET,
        "inputs": [
            {"name": "values", "dtype": "float32", "shape": [batch, length]},
            {"name": "observed", "dtype": "bool", "shape": [batch, length]},
        ],
        "outputs": [outputs],
        **{"batch_size": batch, "lookback": length, "horizon": block},
        **{"patch": options.patch, "block": forecaster.block, "scaling": options.scaling, "eps": options.eps},
        "quantile_levels": None if levels is None else list(levels),
        "roll_out": _advice(forecaster, length, block, levels),
    }


def _advice(forecaster: Forecaster, length: int, block: int, levels: Sequence[float] | None) -> str:
    what = "the point forecast" if levels is None else "the median, or a value drawn between the quantiles,"
    first = (
        f"For a horizon beyond {block} steps append {what} to the series as observed, keep the last {length} steps and "
        "run the graph again; each run scales by its own lookback."
    )
    room = forecaster._room(block, "window", None)
    if levels is None and room == block and length == forecaster.lookback:
        return first + " Forecaster.predict goes on in the same way."
    return first + f" Forecaster.predict draws {room} steps from {forecaster.lookback} before it scales anew."
