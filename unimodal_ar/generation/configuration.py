"""Default sampling options, saved beside a model as generation_config.json."""

from __future__ import annotations

import math
from typing import Any

from transformers import GenerationConfig

from ..schema import unknown_key


class UnimodalARGenerationConfig(GenerationConfig):
    """What `generate` uses where an argument is left at None.

    Args:
        num_samples: samples per example.
        steps: denoising passes per block, for objectives that have them; None: the objective's default.
        temperature: 0 for the mode or mean, 1 for the distribution itself.
        top_k, top_p: truncation of categorical heads; None: none.
        guidance_scale: classifier-free guidance; 1 is none.

    Raises:
        ValueError: an unknown name.
    """

    num_samples: int
    steps: int | None
    temperature: float
    top_k: int | None
    top_p: float | None
    guidance_scale: float

    _defaults = {
        "num_samples": 1,
        "steps": None,
        "temperature": 1.0,
        "top_k": None,
        "top_p": None,
        "guidance_scale": 1.0,
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
        if self.steps is not None and (not isinstance(self.steps, int) or self.steps < 1):
            raise ValueError(f"steps is {self.steps!r}; it must be an integer >= 1 or None")
        for name in ("temperature", "guidance_scale"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value!r}; it must be a number >= 0")

    def updated(self, **changes: Any) -> UnimodalARGenerationConfig:
        """A copy in which every change that is not None holds."""
        values = {name: getattr(self, name) for name in self._defaults}
        return type(self)(**(values | {name: value for name, value in changes.items() if value is not None}))
