"""Default sampling options, saved beside a model as generation_config.json."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator
from transformers import GenerationConfig

from ..heads.base import reject_truncation
from ..schema import Strict, parse, positive_int, unknown_key


class IntervalSchedule(Strict):
    """See `UnimodalARGenerationConfig`."""

    start: float = Field(0.0, ge=0, le=1)
    stop: float = Field(1.0, ge=0, le=1)

    @model_validator(mode="after")
    def _increasing(self) -> IntervalSchedule:
        if self.start > self.stop:
            raise ValueError(f"start is {self.start} and stop {self.stop}; stop must not be less")
        return self

    def strength(self, block: int, blocks: int) -> float:
        middle = (block + 0.5) / blocks  # so that rounding of the fractions decides nothing
        return float(self.start < middle < self.stop)


class CosineSchedule(Strict):
    """See `UnimodalARGenerationConfig`."""

    power: float = Field(gt=0, allow_inf_nan=False)

    def strength(self, block: int, blocks: int) -> float:
        return (1 - math.cos(math.pi * (block / blocks) ** self.power)) / 2


SCHEDULES: dict[str, type[IntervalSchedule] | type[CosineSchedule]] = {
    "interval": IntervalSchedule,
    "cosine": CosineSchedule,
}


def _schedule(written: Any) -> IntervalSchedule | CosineSchedule:
    """The schedule that is written down, checked."""
    kind = written.get("kind") if isinstance(written, dict) else None
    if kind not in list(SCHEDULES):
        raise ValueError(
            f"guidance_schedule is {written!r}; it must be None or a mapping whose 'kind' is one of {sorted(SCHEDULES)}"
        )
    return parse(SCHEDULES[kind], {key: value for key, value in written.items() if key != "kind"}, "guidance_schedule")


@dataclass(frozen=True)
class Steps:
    """A number of steps that falls (or rises) linearly, from the first block that is drawn to the last, or, where there
    is only one, from its first pass to its last (DiSA, arXiv 2505.20297)."""

    first: int
    last: int

    def __str__(self) -> str:
        return str(self.first if self.first == self.last else [self.first, self.last])

    def at(self, progress: float) -> int:
        """At this point between the first, 0, and the last, 1."""
        return round(self.first + (self.last - self.first) * progress)


def parse_steps(name: str, written: Any) -> Steps | None:
    """The steps written as a number or a pair [first, last]; raises ValueError naming what is neither."""
    if written is None:
        return None
    pair = written if isinstance(written, (list, tuple)) and len(written) == 2 else [written, written]
    try:
        return Steps(*(positive_int(name, number) for number in pair))
    except ValueError:
        raise ValueError(
            f"{name} is {written!r}; it must be an integer >= 1, a pair [first, last] of them, or None"
        ) from None


class UnimodalARGenerationConfig(GenerationConfig):
    """What `generate` uses where an argument is left at None.

    Args:
        num_samples: samples per example.
        steps: denoising passes per block, for block diffusion: a number, or [first, last] for numbers that change
            linearly from the first block that is drawn to the last (DiSA, arXiv 2505.20297; of a single block the
            first number holds). None: as many as a block has elements for mask noise, which draws from the model's own
            distribution; 20 for Gaussian noise.
        head_steps: evaluations of a head that draws in several, a number or [first, last] (in a single block: from its
            first pass to its last); None: the head's default.
        sampler: how block diffusion goes from pass to pass, `{kind: ...}` with the sampler's own keys. For mask noise
            first_hitting (the default), ancestral, confidence, threshold or entropy_bound (`objectives.unmasking`), for
            Gaussian noise euler (the default) or heun (`objectives.gaussian_noise`).
        temperature: 0 for the mode or mean, 1 for the distribution itself.
        top_k, top_p: truncation of categorical heads; None: none.
        guidance_scale: classifier-free guidance; 1 is none.
        guidance_schedule: how the scale changes over a target's blocks. None: it does not.
            `{kind: interval, start: a, stop: b}`: blocks between these fractions of all blocks are guided, the others
            are not (Kynkäänniemi et al., arXiv 2404.07724); a is 0 and b is 1 where they are left out.
            `{kind: cosine, power: p}`: block i of n is guided by 1 + (scale - 1) (1 - cos(pi (i / n)^p)) / 2 (RAR,
            arXiv 2411.00776).

    Raises:
        ValueError: an unknown name, a value out of range.
    """

    num_samples: int
    steps: int | Sequence[int] | None
    head_steps: int | Sequence[int] | None
    sampler: dict[str, Any] | None
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance_scale: float
    guidance_schedule: dict[str, Any] | None

    _defaults = {
        "num_samples": 1,
        "steps": None,
        "head_steps": None,
        "sampler": None,
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "guidance_scale": 1.0,
        "guidance_schedule": None,
    }

    def __init__(self, **kwargs: Any) -> None:
        # The parent's constructor would add token-id options that mean nothing here, so it is not called.
        for name, default in self._defaults.items():
            setattr(self, name, kwargs.pop(name, default))
        for name in ("_commit_hash", "_from_model_config", "transformers_version"):
            setattr(self, name, kwargs.pop(name, None))
        for name in kwargs:
            raise ValueError(unknown_key(name, self._defaults, "generation config"))
        self.validate()

    @classmethod
    def from_model_config(cls, model_config: Any, **_: Any) -> UnimodalARGenerationConfig:
        """The defaults: a model's configuration holds no sampling options."""
        return cls()

    def validate(self, strict: bool = False, user_set_attributes: set[str] | None = None) -> None:
        """Raises ValueError where a value is out of range."""
        if not isinstance(self.num_samples, int) or self.num_samples < 1:
            raise ValueError(f"num_samples is {self.num_samples!r}; it must be an integer >= 1")
        for name in ("steps", "head_steps"):
            parse_steps(name, getattr(self, name))
        if self.sampler is not None and not isinstance(self.sampler, dict):
            raise ValueError(f"sampler is {self.sampler!r}; it must be None or a mapping with a 'kind'")
        for name in ("temperature", "guidance_scale"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a number >= 0")

        if self.guidance_schedule is not None:
            _schedule(self.guidance_schedule)

    def guidance_scales(self, blocks: int) -> list[float]:
        """The scale by which each of a target's blocks is guided."""
        scale = float(self.guidance_scale)
        if self.guidance_schedule is None:
            return [scale] * blocks
        schedule = _schedule(self.guidance_schedule)
        return [1 + (scale - 1) * schedule.strength(block, blocks) for block in range(blocks)]

    def sampling(self, objective: Any, head: Any) -> dict[str, Any]:
        """The arguments of `objective.draw` that say how elements of `head` are drawn.

        Raises:
            ValueError: an option is not for this objective or this head.
        """
        if self.head_steps is not None and not head.iterates:
            raise ValueError(
                f"head_steps is {self.head_steps}; {type(head).__name__} draws in one step and takes no head_steps"
            )
        if head.element_kind == "continuous":
            reject_truncation(head, self.top_k, self.top_p)
        own = objective.sampling(head, parse_steps("steps", self.steps), self.sampler)
        optional = {"top_k": self.top_k, "top_p": self.top_p, "head_steps": parse_steps("head_steps", self.head_steps)}
        given = {name: value for name, value in optional.items() if value is not None}
        return {**own, "temperature": self.temperature, **given}

    def fitting(self, objective: Any, head: Any) -> UnimodalARGenerationConfig:
        """A copy without what is saved for another modality's objective or head."""
        kept = self
        for name in ("steps", "sampler", "head_steps"):
            try:
                type(self)(**{name: getattr(self, name)}).sampling(objective, head)
            except ValueError:
                kept = type(self)(**({key: getattr(kept, key) for key in self._defaults} | {name: None}))
        return kept

    def updated(self, **changes: Any) -> UnimodalARGenerationConfig:
        """A copy in which every change that is not None holds."""
        values = {name: getattr(self, name) for name in self._defaults}
        return type(self)(**(values | {name: value for name, value in changes.items() if value is not None}))
