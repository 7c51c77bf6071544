"""Continuous elements: a point forecast. Shapes: hidden [..., H], D values per element; values [..., D]."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from pydantic import Field, ValidationInfo, field_validator
from torch import Tensor, nn

from ..noise import Generator
from ..schema import ContinuousElement, DiscreteElement
from .base import ContinuousHead, ContinuousOptions, mean_observed, reject_truncation


class RegressionOptions(ContinuousOptions):
    """loss: squared error, absolute error, or Huber's (quadratic up to an error of `delta`, linear beyond).
    delta: in the units of the values; for huber only. bias: whether the linear map has one."""

    loss: Literal["mse", "mae", "huber"] = "mse"
    delta: float = Field(1.0, gt=0, allow_inf_nan=False)
    bias: bool = True

    @field_validator("delta")
    @classmethod
    def _only_huber(cls, delta: float, info: ValidationInfo) -> float:
        loss = info.data.get("loss", "huber")
        if loss != "huber" and delta != 1.0:
            raise ValueError(f"only loss 'huber' has a delta, and loss is {loss!r}")
        return delta


class RegressionHead(ContinuousHead):
    """One value for each of the D: the conditional mean (mse), median (mae) or a compromise of both (huber: Huber,
    "Robust estimation of a location parameter", 1964)."""

    Options = RegressionOptions
    is_point = True

    def __init__(
        self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: RegressionOptions
    ) -> None:
        super().__init__(hidden_size, element, options)
        self.error, self.delta = options.loss, options.delta
        self.proj = nn.Linear(self.width, self.dim, bias=options.bias)

    def mean(self, hidden: Tensor) -> Tensor:
        """[..., D] the point forecast."""
        return self.project(hidden)

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] mean over an element's observed values of e^2 (mse), |e| (mae), or, for huber, e^2 / 2 where
        |e| < delta and delta * (|e| - delta / 2) elsewhere."""
        target, mask = self.fill_missing(hidden, target, observed)
        mean = self.mean(hidden)
        if self.error == "huber":
            errors = F.huber_loss(mean, target.to(mean.dtype), reduction="none", delta=self.delta)
        else:
            errors = (mean - target).square() if self.error == "mse" else (mean - target).abs()
        return mean_observed(errors, mask)

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """[..., D] the point forecast itself: it has no spread, so `generator` is not drawn from.

        Raises:
            ValueError: temperature is neither 0 nor 1, or top_k or top_p is given.
        """
        if temperature not in (0, 1):
            raise ValueError(f"temperature is {temperature}; RegressionHead has no spread to scale, so 0 or 1 only")
        reject_truncation(self, top_k, top_p)
        return self.mean(hidden)
