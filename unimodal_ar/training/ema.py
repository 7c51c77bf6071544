"""An exponential moving average of the weights while they are trained."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from pydantic import Field
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..schema import Strict

WEIGHTS = "ema.safetensors"


class EMAOptions(Strict):
    """A recipe's section `ema`.

    Args:
        decay: what is kept of the average at a step, at most; see `EMA`.
    """

    decay: float = Field(0.999, gt=0, lt=1)


class EMA:
    """The exponential moving average of all trained parameters, for `UnimodalARTrainer(..., ema=EMA())`.

    After step t (from 0 on) average = d x average + (1 - d) x parameter, with d = min(decay, (1 + t) / (10 + t)): the
    weights of the beginning, which are of chance, are soon forgotten (as TensorFlow's ExponentialMovingAverage with
    num_updates). It is kept in float32, or finer where the parameters are, on their device; of parameters in shards
    (FSDP2) each process averages its own. Whatever is frozen is not averaged.

    Args:
        decay: in (0, 1). The average reaches back some 1 / (1 - decay) steps, which should be a small part of all.

    Raises:
        ValueError: another decay.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if isinstance(decay, bool) or not isinstance(decay, (int, float)) or not 0 < decay < 1:
            raise ValueError(f"decay of EMA is {decay!r}; it must lie between 0 and 1")
        self.decay, self.updates = decay, 0
        self._model: Any = None
        self._parameters: dict[str, nn.Parameter] = {}
        self._averages: list[Tensor] = []
        self._raw: list[Tensor] | None = None  # the parameters' own values while these are the averages

    @property
    def started(self) -> bool:
        return self._model is not None

    def start(self, model: nn.Module) -> None:
        """Begins anew, with the weights of `model` as they are."""
        self._model, self._raw, self.updates = model, None, 0
        trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
        self._parameters = {name.replace("_orig_mod.", ""): x for name, x in trained.items()}  # of torch.compile
        self._averages = [x.to(torch.promote_types(x.dtype, torch.float32), copy=True) for x in self._local()]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights of the step that was just done."""
        assert self._raw is None, "the model has the averages as its weights"
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        weights = [x.to(average.dtype) for x, average in zip(self._local(), self._averages, strict=True)]
        torch._foreach_lerp_(self._averages, weights, 1 - decay)
        self.updates += 1

    def apply(self) -> None:
        """Makes the averages the model's weights; `raw` gives its own back."""
        if self.started and self._raw is None:
            self._raw = [x.clone() for x in self._local()]
            self._set(self._averages)

    def restore(self) -> None:
        """Undoes `apply`, to the last bit."""
        if self._raw is not None:
            self._set(self._raw)
            self._raw = None

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Within, the model's weights are the averages."""
        applied = self._raw is not None
        self.apply()
        try:
            yield
        finally:
            if not applied:
                self.restore()

    @contextmanager
    def raw(self) -> Iterator[None]:
        """Within, the model's weights are its own, those of the last step."""
        applied = self._raw is not None
        self.restore()
        try:
            yield
        finally:
            if applied:
                self.apply()

    def raw_weights(self) -> dict[str, Tensor]:
        """The whole of the trained parameters of the last step, by name, on the CPU. Every process has to ask."""
        return self._whole(self._local() if self._raw is None else self._raw)

    def save(self, folder: str | os.PathLike[str], write: bool = True) -> None:
        """Writes the averages, whole, to `folder`/ema.safetensors, where the process is the one to `write`; every one
        has to call."""
        averages = self._whole(self._averages)
        if write:
            os.makedirs(folder, exist_ok=True)
            save_file(averages, Path(folder) / WEIGHTS, metadata={"updates": str(self.updates)})

    def load(self, folder: str | os.PathLike[str]) -> None:
        """Goes on from what `save` wrote, to the last bit.

        Raises:
            ValueError: nothing is there, or the average of other parameters.
        """
        path = Path(folder) / WEIGHTS
        if not path.is_file():
            raise ValueError(
                f"{str(folder)!r} holds no {WEIGHTS}, so that the average cannot go on from there; take a checkpoint "
                "of a training with ema, or leave ema out"
            )
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
            self.updates = int(file.metadata()["updates"])
        shapes = {name: x.shape for name, x in found.items()}
        wanted = {name: x.shape for name, x in self._parameters.items()}
        odd = sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name))
        if odd:
            raise ValueError(
                f"{str(path)!r} is the average of other parameters than are trained now: {len(odd)} differ, the first "
                f"{odd[0]!r}"
            )
        for average, (name, parameter) in zip(self._averages, self._parameters.items(), strict=True):
            average.copy_(_shard(found[name].to(average.device), parameter))

    def _local(self) -> list[Tensor]:
        """The parameters, or this process's part of each."""
        return [cast(Any, x).to_local().detach() if _is_sharded(x) else x.detach() for x in self._parameters.values()]

    def _whole(self, parts: list[Tensor]) -> dict[str, Tensor]:
        return {
            name: _gathered(part, parameter).to("cpu", copy=True).contiguous()
            for part, (name, parameter) in zip(parts, self._parameters.items(), strict=True)
        }

    def _set(self, values: list[Tensor]) -> None:
        for module in self._model.modules():  # FSDP2 would go on with what it gathered before
            if hasattr(module, "reshard"):
                module.reshard()
        with torch.no_grad():
            torch._foreach_copy_(self._local(), values)


@contextmanager
def replaced(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Within, the parameters of `model` of these names are `weights`."""
    kept = {name: model.get_parameter(name).detach().clone() for name in weights}
    try:
        _fill(model, weights)
        yield
    finally:
        _fill(model, kept)


@torch.no_grad()
def _fill(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    for name, value in weights.items():
        model.get_parameter(name).copy_(value)


def _is_sharded(parameter: Tensor) -> bool:
    return hasattr(parameter, "to_local")


def _gathered(part: Tensor, parameter: Any) -> Tensor:
    if not _is_sharded(parameter):
        return part
    from torch.distributed.tensor import DTensor

    form: Any = {"shape": parameter.shape, "stride": parameter.stride()}
    return DTensor.from_local(part, parameter.device_mesh, parameter.placements, run_check=False, **form).full_tensor()


def _shard(whole: Tensor, parameter: Any) -> Tensor:
    if not _is_sharded(parameter):
        return whole
    from torch.distributed.tensor import distribute_tensor

    # No process has to be told: each has read the file.
    form: Any = {"src_data_rank": None}
    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, **form).to_local()
