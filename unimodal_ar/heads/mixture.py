"""Continuous elements: a mixture of K components, each a product of one density per value.

Shapes: hidden [..., H], K components, D values per element, L levels; values [..., D].
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from ..noise import Generator, uniform
from ..schema import ContinuousElement, DiscreteElement
from .base import (
    ContinuousHead,
    ContinuousOptions,
    check_levels,
    check_temperature,
    inverse_softplus,
    reject_truncation,
)
from .categorical import draw_category


def _log_gamma_ratio(x: Tensor) -> Tensor:
    """log(Gamma(x + 1/2) / Gamma(x)) for x > 0. The difference of two lgamma loses all digits for large x in
    float32; from 16 on, the asymptotic series (relative error 1e-11) takes over."""
    small, large = x.clamp(max=16.0), x.clamp(min=16.0)
    series = large.log() / 2 - 1 / (8 * large) + 1 / (192 * large**3) - 1 / (640 * large**5)
    return torch.where(x < 16, torch.lgamma(small + 0.5) - torch.lgamma(small), series)


class Gaussian:
    """The standard normal as a component; its `shape` parameter does not exist and is passed as 0."""

    has_shape: ClassVar[bool] = False

    @staticmethod
    def log_density(z: Tensor, shape: Tensor) -> Tensor:
        return -0.5 * (z.square() + math.log(2 * math.pi))

    @staticmethod
    def cdf(z: Tensor, shape: Tensor) -> Tensor:
        return torch.special.ndtr(z)

    @staticmethod
    def draw(shape: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """From two uniforms, by Box & Muller (1958)."""
        return (-2 * first.log()).sqrt() * (2 * math.pi * second).cos()

    @staticmethod
    def widest_quantile(levels: Tensor) -> Tensor:
        """The quantile of the member of the family with the heaviest tails."""
        return torch.special.ndtri(levels)


class StudentT:
    """The standard Student-t as a component; its `shape` is the degrees of freedom, above 2 (a finite variance)."""

    has_shape: ClassVar[bool] = True

    @staticmethod
    def log_density(z: Tensor, shape: Tensor) -> Tensor:
        normaliser = _log_gamma_ratio(shape / 2) - 0.5 * (math.pi * shape).log()
        return normaliser - (shape + 1) / 2 * (z.square() / shape).log1p()

    @staticmethod
    def cdf(z: Tensor, shape: Tensor) -> Tensor:
        """By quadrature, to 1e-8 for any degrees of freedom >= 2 (float64; torch has no incomplete beta function).

        With z = sqrt(n) sinh(y) the density is proportional to cosh(y)^-n, so the tail beyond |z| is
        C cosh(y)^-n * integral over u > 0 of (cosh u + tanh(y) sinh u)^-n. That integrand starts at 1, falls
        monotonically and is analytic: Gauss-Legendre up to where it has fallen to exp(-24) converges geometrically.
        """
        stretch = 1 + z.square() / shape
        tanh = z.abs() / (shape + z.square()).sqrt()
        falls_to = (24 / shape).exp()
        end = ((falls_to + (falls_to.square() - 1 / stretch).sqrt()) / (1 + tanh)).log()
        integral = torch.zeros_like(end)
        for node, weight in zip(*np.polynomial.legendre.leggauss(24), strict=True):
            growth = (end * ((1 + node) / 2)).exp()
            integral += weight / 2 * ((1 + tanh) / 2 * growth + (1 - tanh) / 2 / growth).pow(-shape)
        front = (_log_gamma_ratio(shape / 2) - shape / 2 * stretch.log()).exp() / math.sqrt(math.pi)
        tail = front * end * integral
        return torch.where(z < 0, tail, 1 - tail)

    @staticmethod
    def draw(shape: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """From two uniforms, exactly, by the polar method of Bailey (Mathematics of Computation 62, 1994)."""
        return (shape * torch.expm1(-2 / shape * first.log())).sqrt() * (2 * math.pi * second).cos()

    @staticmethod
    def widest_quantile(levels: Tensor) -> Tensor:
        """The quantile at 2 degrees of freedom, which has a closed form."""
        return (2 * levels - 1) / (2 * levels * (1 - levels)).sqrt()


FAMILIES: dict[str, type[Gaussian | StudentT]] = {"gaussian": Gaussian, "student_t": StudentT}


class MixtureOptions(ContinuousOptions):
    """family: of every component. components: K. min_scale: the smallest scale of a component, in the units of the
    values (which are standardised); it bounds the likelihood."""

    family: Literal["student_t", "gaussian"] = "student_t"
    components: PositiveInt = 3
    min_scale: float = Field(1e-3, gt=0, allow_inf_nan=False)


class Mixture(NamedTuple):
    """log_weights [..., K], normalised; loc, scale, shape [..., K, D]."""

    log_weights: Tensor
    loc: Tensor
    scale: Tensor
    shape: Tensor

    def double(self) -> Mixture:
        return Mixture(*(parameter.double() for parameter in self))


class MixtureHead(ContinuousHead):
    """p(x | hidden) = sum_k w_k prod_d p(x_d | k): weights and components belong to the element, so that a component
    is a scenario for the whole patch; a missing value is marginalised by leaving its factor out.

    Mixtures as heads: Moirai (Woo et al., arXiv 2402.02592) for forecasts, GIVT (Tschannen et al., arXiv 2312.02116)
    for image latents. With zero weights the components have scale about 1 (Student-t: 5 degrees of freedom) and
    locations in [-0.5, 0.5]: components that start out equal would get equal gradients.
    """

    Options = MixtureOptions

    def __init__(self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: MixtureOptions) -> None:
        super().__init__(hidden_size, element, options)
        self.family, self.components, self.min_scale = FAMILIES[options.family], options.components, options.min_scale
        self.parts = 3 if self.family.has_shape else 2
        self.proj = nn.Linear(self.width, self.components * (1 + self.parts * self.dim))

    def mixture(self, hidden: Tensor) -> Mixture:
        """The parameters for hidden [..., H], in float32 or wider."""
        weights, rest = self.project(hidden).tensor_split([self.components], -1)
        loc, scale, *shape = rest.unflatten(-1, (self.parts, self.components, self.dim)).unbind(-3)
        if self.components > 1:
            loc = loc + torch.linspace(-0.5, 0.5, self.components, dtype=loc.dtype, device=loc.device)[:, None]
        scale = F.softplus(scale + inverse_softplus(1.0)) + self.min_scale
        freedom = 2 + F.softplus(shape[0] + inverse_softplus(3.0)) if shape else torch.zeros_like(loc)
        return Mixture(weights.log_softmax(-1), loc, scale, freedom)

    def log_prob(self, hidden: Tensor, values: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] log-density in nats of an element's observed values, jointly; 0 where none is observed."""
        return self._log_prob(hidden, *self.fill_missing(hidden, values, observed))

    def _log_prob(self, hidden: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        log_weights, loc, scale, shape = self.mixture(hidden)
        z = (values[..., None, :] - loc) / scale
        each = self.family.log_density(z, shape) - scale.log()
        joint = torch.where(mask[..., None, :], each, 0.0).sum(-1)
        return torch.where(mask.any(-1), (log_weights + joint).logsumexp(-1), 0.0)

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] negative log-density in nats per observed value; 0 where none is observed."""
        target, mask = self.fill_missing(hidden, target, observed)
        return -self._log_prob(hidden, target, mask) / mask.sum(-1).clamp(min=1)

    def mean(self, hidden: Tensor) -> Tensor:
        """[..., D] the weighted mean of the components' locations."""
        log_weights, loc, _, _ = self.mixture(hidden)
        return (log_weights.exp()[..., None] * loc).sum(-2)

    def cdf(self, hidden: Tensor, values: Tensor) -> Tensor:
        """[..., D, L] float64: the probability that each value is at most `values` [..., D, L]."""
        return _mixture_cdf(self.family, _for_levels(self.mixture(hidden)), values.double())

    @torch.no_grad()
    def quantiles(self, hidden: Tensor, levels: Sequence[float] | Tensor) -> Tensor:
        """[..., D, L] quantiles of each value's marginal at `levels` in (0, 1); not differentiable.

        The mixture's cdf is inverted in float64 by bisection, with Newton's step wherever that stays in the bracket
        and at least halves the step. The bracket is exact: the quantiles of a mixture lie between those of its
        components, and these between the normal's (or 0) and those of the family's heaviest tails.

        Raises:
            ValueError: a level outside (0, 1).
        """
        parameters = self.mixture(hidden)
        asked = check_levels(levels, hidden.device)
        mixture = _for_levels(parameters)
        loc, widest = mixture.loc, self.family.widest_quantile(asked)
        ends = torch.stack([loc + mixture.scale * end for end in (widest, torch.special.ndtri(asked))])
        low, high = ends.amin(0).amin(-3), ends.amax(0).amax(-3)
        return _invert(self.family, mixture, asked, low, high).to(parameters.loc.dtype)

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """[..., D] drawn from the mixture: a component for the element, then every value from it.

        Args:
            hidden: [..., H]; with a `SampleNoise` dimension 0 counts the samples.
            temperature: T divides the logits of the weights and multiplies the scales; 0 is the mean of the mixture.

        Raises:
            ValueError: temperature < 0, or top_k or top_p is given.
        """
        check_temperature(temperature)
        reject_truncation(self, top_k, top_p)
        if temperature == 0:
            return self.mean(hidden)
        mixture = self.mixture(hidden)
        component = draw_category(mixture.log_weights.double() / temperature, generator)
        index = component[..., None, None].expand(*component.shape, 1, self.dim)
        loc, scale, shape = (part.double().gather(-2, index).squeeze(-2) for part in mixture[1:])
        first, second = (uniform(loc.shape, generator, hidden.device) for _ in range(2))
        return (loc + temperature * scale * self.family.draw(shape, first, second)).to(mixture.loc.dtype)


def _for_levels(mixture: Mixture) -> Mixture:
    """In float64, with a last axis for levels: log_weights [..., K, 1, 1], the others [..., K, D, 1]."""
    log_weights, *others = mixture.double()
    return Mixture(log_weights[..., None, None], *(part[..., None] for part in others))


def _mixture_cdf(family: type[Gaussian | StudentT], mixture: Mixture, x: Tensor) -> Tensor:
    z = (x[..., None, :, :] - mixture.loc) / mixture.scale
    return (mixture.log_weights.exp() * family.cdf(z, mixture.shape)).sum(-3)


def _mixture_density(family: type[Gaussian | StudentT], mixture: Mixture, x: Tensor) -> Tensor:
    z = (x[..., None, :, :] - mixture.loc) / mixture.scale
    return ((mixture.log_weights + family.log_density(z, mixture.shape)).exp() / mixture.scale).sum(-3)


def _invert(family: type[Gaussian | StudentT], mixture: Mixture, levels: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """x [..., D, L] in [low, high] where the mixture's cdf is `levels` [L]."""
    x = (low + high) / 2
    last_step = high - low
    tolerance = torch.maximum(1e-9 * mixture.scale.amin(-3), 1e-14 * torch.maximum(low.abs(), high.abs()))
    while bool((moving := last_step > tolerance).any()):
        miss = levels - _mixture_cdf(family, mixture, x)
        low, high = torch.where(miss > 0, x, low), torch.where(miss > 0, high, x)
        step = miss / _mixture_density(family, mixture, x)
        trusted = (x + step >= low) & (x + step <= high) & (2 * step.abs() <= last_step)
        step = torch.where(trusted, step, (low + high) / 2 - x)
        # One that has settled rests: at the level of rounding its next step need not shrink.
        x = torch.where(moving, x + step, x)
        last_step = torch.where(moving, step.abs(), last_step)
    return x
