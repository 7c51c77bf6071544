"""What a head is: the distribution of one element given the backbone's hidden state."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..noise import Generator
from ..schema import ContinuousElement, DiscreteElement, MLPOptions, Strict
from .mlp import HiddenLayers


class Head(nn.Module):
    """The conditional distribution of one element.

    Shapes: hidden [..., H]; values [...] long (one code), [..., K] long (K codes) or [..., D] floating; observed is
    bool of the shape of the elements ([...]) or of their values ([..., D]).

    Unless a head overrides `sample_guided`, everything before its first non-linearity is one linear map `proj` of
    `hidden` to the distribution's parameters: affine combinations pass through unchanged, so that classifier-free
    guidance may act on `hidden`.

    Args:
        hidden_size: H.
        element: what is described.
        options: the head's own configuration, an instance of `Options`.

    Raises:
        ValueError: the element is not of the head's `element_kind`, or has fewer than `least_codes`.
    """

    Options: ClassVar[type[Strict]] = Strict  # the keys of the head's configuration besides `kind`
    is_point: ClassVar[bool] = False  # it gives a single value without spread
    element_kind: ClassVar[str]  # the kind of element it describes: "discrete" or "continuous"
    least_codes: ClassVar[int] = 1  # of a discrete element
    iterates: ClassVar[bool] = False  # it draws in several steps, and `sample` takes `head_steps`, their number

    proj: nn.Linear

    def __init__(self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: Any) -> None:
        super().__init__()
        if element.kind != self.element_kind:
            raise ValueError(
                f"element.kind is {element.kind!r}; {type(self).__name__} describes {self.element_kind} elements only"
            )
        if isinstance(element, DiscreteElement) and element.codes < self.least_codes:
            raise ValueError(
                f"element.codes is {element.codes}; {type(self).__name__} needs at least {self.least_codes} codes"
            )

    def project(self, hidden: Tensor) -> Tensor:
        """[..., parameters] the linear map `proj` of hidden [..., H], in float32 or wider."""
        raw = self.proj(hidden.to(self.proj.weight.dtype))
        return raw.to(torch.promote_types(raw.dtype, torch.float32))

    def loss(self, hidden: Tensor, target: Tensor, observed: Tensor | None = None) -> Tensor:
        """[...] loss of each element: a sum over its codes, a mean over its observed values, 0 where none is."""
        raise NotImplementedError

    def sample(
        self,
        hidden: Tensor,
        generator: Generator = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
    ) -> Tensor:
        """Values drawn from the distribution; temperature 0 is its mode (codes) or centre (vectors). A head without
        codes raises ValueError where `top_k` or `top_p` is given."""
        raise NotImplementedError

    def sample_guided(self, hidden: Tensor, unconditional: Tensor, guidance_scale: float, **sampling: Any) -> Tensor:
        """Values drawn under classifier-free guidance (arXiv 2207.12598): the distribution's parameters (logits, means)
        are unconditional + guidance_scale * (conditional - unconditional).

        Args:
            hidden: [..., H] with the context.
            unconditional: [..., H] of the same elements without it.
            guidance_scale: 1 is no guidance, 0 leaves the context out.
            sampling: what `sample` takes.
        """
        return self.sample(unconditional + guidance_scale * (hidden - unconditional), **sampling)


class ContinuousOptions(Strict):
    """trunk: hidden layers between the hidden state and the head's own maps; None: none."""

    trunk: MLPOptions | None = None


class ContinuousHead(Head):
    """What heads of continuous elements share: D values per element, each of which may be missing, and a trunk.

    Attributes:
        width: W of what the head's own maps read, H without a trunk.
    """

    element_kind = "continuous"

    def __init__(self, hidden_size: int, element: DiscreteElement | ContinuousElement, options: Any) -> None:
        super().__init__(hidden_size, element, options)
        assert isinstance(element, ContinuousElement)
        self.dim = element.dim
        self.trunk = HiddenLayers(hidden_size, options.trunk)
        self.width = self.trunk.width

    def features(self, hidden: Tensor) -> Tensor:
        """[..., W] what the head's own maps read: hidden [..., H] behind the trunk."""
        with torch.autocast(hidden.device.type, enabled=False):  # as all that follows, see `project`
            return self.trunk(hidden.to(next(self.trunk.parameters()).dtype)) if len(self.trunk) else hidden

    def project(self, hidden: Tensor) -> Tensor:
        # Under autocast a location of 3.0 would be rounded to a multiple of 1/64: visible in a forecast.
        with torch.autocast(hidden.device.type, enabled=False):
            return super().project(self.features(hidden))

    def sample_guided(self, hidden: Tensor, unconditional: Tensor, guidance_scale: float, **sampling: Any) -> Tensor:
        # A trunk is not linear. What follows it is, so that what it gives is guided, and read by the head without it.
        states = self.features(hidden), self.features(unconditional)
        rest = copy.copy(self)
        rest._modules = {**self._modules, "trunk": HiddenLayers(self.width, None)}
        return super(ContinuousHead, rest).sample_guided(*states, guidance_scale, **sampling)

    def fill_missing(self, hidden: Tensor, values: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """`values` with 0 where they are missing (there they may be NaN, which arithmetic would pass on to the
        gradient even of a masked loss), and the mask [..., D] of what is observed.

        Raises:
            ValueError: the shape of `values` or `observed` does not fit `hidden`.
        """
        elements = tuple(hidden.shape[:-1])
        shape = (*elements, self.dim)
        if tuple(values.shape) != shape:
            raise ValueError(f"values have shape {tuple(values.shape)}; hidden and the element's dim ask for {shape}")
        mask = broadcast_observed(observed, values, elements)
        return torch.where(mask, values, 0.0), mask


def broadcast_observed(observed: Tensor | None, values: Tensor, elements: tuple[int, ...]) -> Tensor:
    """The bool mask of the shape of `values` [*elements, n] from `observed`: None, [*elements] or [*elements, n].

    Raises:
        ValueError: `observed` has another shape.
    """
    if observed is None:
        return torch.ones_like(values, dtype=torch.bool)
    if tuple(observed.shape) == elements:
        return observed[..., None].expand_as(values)
    if observed.shape != values.shape:
        raise ValueError(f"observed has shape {tuple(observed.shape)}; it must be {elements} or {tuple(values.shape)}")
    return observed


def mean_observed(per_value: Tensor, mask: Tensor) -> Tensor:
    """[..., D] -> [...]: the mean over what is observed; 0 where nothing is."""
    return torch.where(mask, per_value, 0.0).sum(-1) / mask.sum(-1).clamp(min=1)


def check_temperature(temperature: float) -> None:
    if not (math.isfinite(temperature) and temperature >= 0):
        raise ValueError(f"temperature is {temperature}; it must be a finite number >= 0")


def reject_truncation(head: Head, top_k: int | None, top_p: float | None) -> None:
    """Raises ValueError where a head without codes is asked to keep the most probable ones."""
    for name, value in (("top_k", top_k), ("top_p", top_p)):
        if value is not None:
            raise ValueError(f"{name} is {value}; {type(head).__name__} draws real vectors and takes no {name}")


def check_levels(levels: Sequence[float] | Tensor, device: torch.device) -> Tensor:
    """[L] float64 quantile levels on `device`.

    Raises:
        ValueError: there is none, or one lies outside (0, 1).
    """
    checked = torch.as_tensor(levels, dtype=torch.float64, device=device)
    if checked.dim() != 1 or len(checked) == 0 or not bool(((checked > 0) & (checked < 1)).all()):
        shown = levels.tolist() if isinstance(levels, Tensor) else levels
        raise ValueError(f"levels are {shown}; they must be a non-empty list of numbers strictly between 0 and 1")
    return checked


def inverse_softplus(y: float) -> float:
    """x with log(1 + exp(x)) == y > 0."""
    return y + math.log(-math.expm1(-y))
