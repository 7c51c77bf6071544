"""How an evaluation draws, which is then how the trained model draws where it is not told otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from pydantic import PositiveInt

from ..configuration import UnimodalARConfig
from ..generation import UnimodalARGenerationConfig
from ..heads import build_head
from ..modeling import UnimodalARForGeneration
from ..schema import Strict

Steps = PositiveInt | tuple[PositiveInt, PositiveInt] | None


class SamplingOptions(Strict):
    """Keys of an evaluation that are options of `UnimodalARGenerationConfig`, which explains them.

    Args:
        steps: denoising passes per block, for block diffusion; [first, last]: changing linearly.
        head_steps: evaluations of a head that draws in several; [first, last] likewise.
        sampler: `{kind: ...}`, how block diffusion goes from pass to pass.
    """

    steps: Steps = None
    head_steps: Steps = None
    sampler: dict[str, Any] | None = None

    @property
    def generation(self) -> dict[str, Any]:
        """What is written down, by the generation config's names."""
        names = [name for name in UnimodalARGenerationConfig._defaults if name in type(self).model_fields]
        return {name: getattr(self, name) for name in names if name != "num_samples"}


def check_sampling(evaluation: SamplingOptions, config: UnimodalARConfig, modality: str) -> None:
    """Raises ValueError where an option does not go with the modality's objective or head."""
    options = config.modality(modality)
    with torch.device("meta"):  # it is asked what it can do, not run
        head = build_head(config.hidden_size, options.element, options.head or {})
    try:
        UnimodalARGenerationConfig().updated(**evaluation.generation).sampling(options.built_objective, head)
    except ValueError as error:
        raise ValueError(f"evaluation.{error}") from None


def adopt(evaluation: SamplingOptions, model: UnimodalARForGeneration) -> None:
    """Makes the evaluation's options the model's own."""
    model.generation_config = cast(UnimodalARGenerationConfig, model.generation_config).updated(**evaluation.generation)


def publish(evaluation: SamplingOptions, model: UnimodalARForGeneration, folder: Path) -> None:
    """Writes what the model adopted to `folder`/generation_config.json, and says so: whoever draws from the model gets
    what the evaluation showed."""
    defaults = UnimodalARGenerationConfig._defaults
    cast(UnimodalARGenerationConfig, model.generation_config).save_pretrained(folder)
    changed = [
        f"{name} {value}" for name, value in evaluation.generation.items() if value not in (None, defaults[name])
    ]
    if changed:
        print(f"\nThe model draws with {', '.join(changed)} unless told otherwise (generation_config.json).")
