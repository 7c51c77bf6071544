"""Continuous elements: a vector that a network makes of noise in a single pass, learnt by the energy score.

Shapes: hidden [..., H], D values per element, R noise draws in the loss; values [..., D].
"""

from __future__ import annotations

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ..noise import Generator, uniform
from ..schema import ContinuousElement, DiscreteElement
from .base import ContinuousHead, ContinuousOptions, check_temperature, mean_observed, reject_truncation
from .denoiser import Denoiser


class EnergyOptions(ContinuousOptions):
    """width: of the network; None: the hidden size. layers: of the network. noise: how many random numbers it reads,
    best no fewer than the values of an element. alpha: power of the distance in the score; EAR's is 1, and 0.5 told
    well separated clusters apart sooner. draws: vectors drawn per element in the loss, which share the backbone's
    pass."""

    width: PositiveInt | None = None
    layers: PositiveInt = 3
    noise: PositiveInt = 64
    alpha: float = Field(1.0, gt=0, lt=2)
    draws: int = Field(4, ge=2)


class EnergyHead(ContinuousHead):
    """Energy score maximisation: the head of EAR (Shao et al., arXiv 2505.07812, section 3). y = network(hidden, noise)
    in one pass; the loss is E|y - x|^alpha - E|y - y'|^alpha / 2 with y and y' independent, which for alpha in (0, 2)
    is least if and only if y has the distribution of x (Gneiting & Raftery, "Strictly Proper Scoring Rules", 2007).

    |.| is the root mean square over an element's observed values: it is in the units of the values whatever D is, and
    with one value and alpha 1 the loss is the CRPS. A missing value is thereby marginalised.

    As in EAR, the network transforms the hidden state, and the noise, uniform in (-1/2, 1/2), shifts, scales and gates
    its layers; the other way round left up to twice the energy distance on 2-D data. The hidden state thus enters by
    one linear map, and classifier-free guidance acts on it, as EAR's does, in one pass with one noise: of two passes'
    outputs the combination widens, because equal noise need not mean like values.
    """

    Options = EnergyOptions

    def __init__(self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: EnergyOptions) -> None:
        super().__init__(hidden_size, element, options)
        self.noise, self.alpha, self.draws = options.noise, options.alpha, options.draws
        width = options.width or hidden_size
        self.network = Denoiser(self.noise, self.width, width, options.layers, levels=0, outputs=self.dim)

    def transform(self, hidden: Tensor, noise: Tensor) -> Tensor:
        """[..., D] what the network makes of hidden [..., H] and noise [..., noise], in float32 or wider."""
        # Under autocast a value of 3.0 would be rounded to a multiple of 1/64: visible in a forecast.
        with torch.autocast(hidden.device.type, enabled=False):
            return self.network(self.features(hidden), noise)

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] energy score (less is better) of R draws per element, without bias; 0 where nothing is observed. A
        single estimate may be negative, its expectation is not."""
        target, mask = self.fill_missing(hidden, target, observed)
        noise = torch.rand((self.draws, *target.shape[:-1], self.noise), device=target.device) - 0.5
        y = self.transform(hidden, noise)
        first, second = torch.combinations(torch.arange(self.draws, device=y.device)).unbind(1)
        spread = self._distance(y[first] - y[second], mask).mean(0)
        return self._distance(y - target, mask).mean(0) - spread / 2

    def _distance(self, difference: Tensor, mask: Tensor) -> Tensor:
        """[..., D] -> [...]: |difference|^alpha, with gradient 0 where it is 0."""
        square = mean_observed(difference.square(), mask)
        apart = square > 0
        return torch.where(apart, torch.where(apart, square, 1.0).pow(self.alpha / 2), 0.0)

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """[..., D] drawn in one pass.

        Args:
            hidden: [..., H]; with a `SampleNoise` dimension 0 counts the samples.
            temperature: scales the noise that the network reads; 0 is what it makes of noise 0, the centre of all.

        Raises:
            ValueError: temperature < 0, or top_k or top_p is given.
        """
        check_temperature(temperature)
        reject_truncation(self, top_k, top_p)
        noise = uniform((*hidden.shape[:-1], self.noise), generator, hidden.device) - 0.5
        return self.transform(hidden, temperature * noise)
