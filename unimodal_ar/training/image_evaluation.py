"""How a model of images is judged after training: bits per dimension of the test part, and a picture of samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from ..adapters import ImageAdapter, LabelAdapter
from ..configuration import UnimodalARConfig
from ..evaluation.likelihood import DRAWS, negative_log_likelihood
from ..heads import HEADS
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..pipelines import Generator
from .sampling import SamplingOptions, adopt, check_sampling

PICTURE = "samples.png"


class ImageEvaluation(SamplingOptions):
    """What is computed of a trained model.

    Args:
        bits_per_dimension: the test part's negative log2 likelihood per pixel and channel. For vectors, whose density
            is no probability, it is nats_per_dimension in its place; nothing where there is no likelihood. Exact under
            next-block. Under block diffusion with mask noise it is an upper bound, and called so
            (bits_per_dimension_bound), estimated from random masks, with the standard error that these leave.
        likelihood_draws: masks of every image for that estimate.
        samples: how many images are drawn for samples.png, the classes in order, equally many of each; 0: none.
        guidance_scale, temperature, top_k, top_p, steps, head_steps, sampler: of these samples, see the model's
            `generate`. They become the model's defaults.
        batch_size: images at a time, of both.
    """

    bits_per_dimension: bool = True
    likelihood_draws: int = Field(DRAWS, ge=2)
    samples: NonNegativeInt = 100
    guidance_scale: NonNegativeFloat = 1.0
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    batch_size: PositiveInt = 100


class SamplesAndLikelihood:
    """Bits per dimension on the test part, and samples.png.

    Args:
        adapter, label: of the images, and of their labels (None: they have none).
        test: the test part, an `ImageDataset`.

    Raises:
        ValueError: no test images where they are needed, guidance of a model that is not trained for it, truncation
            where there are no codes to truncate, steps or a sampler that objective or head do not have.
    """

    def __init__(
        self,
        adapter: ImageAdapter,
        label: LabelAdapter | None,
        test: Any,
        evaluation: ImageEvaluation,
        config: UnimodalARConfig,
        seed: int,
    ) -> None:
        self.adapter, self.label, self.test, self.evaluation, self.seed = adapter, label, test, evaluation, seed
        self.has_likelihood = _has_likelihood(config.modality(adapter.modality))
        if evaluation.bits_per_dimension and not len(test):
            raise ValueError("evaluation.bits_per_dimension is true, but data.test leaves no test images; set one")
        guided = label is not None and config.modality(label.modality).null_probability > 0
        if evaluation.guidance_scale != 1 and not guided:
            raise ValueError(
                f"evaluation.guidance_scale is {evaluation.guidance_scale}; guidance needs a label that was "
                "trained with null_probability > 0"
            )
        for name in ("top_k", "top_p"):
            if getattr(evaluation, name) is not None and adapter.element["kind"] != "discrete":
                raise ValueError(f"evaluation.{name} is {getattr(evaluation, name)}; it truncates codes, not vectors")
        check_sampling(evaluation, config, adapter.modality)

    def run(self, model: UnimodalARForGeneration, folder: Path) -> dict[str, Any]:
        """Writes samples.png and generation_config.json, and returns {"bits_per_dimension": x, "test_images": n}, as
        far as asked for."""
        found: dict[str, Any] = {}
        if self.evaluation.bits_per_dimension:
            found = self._likelihood(model)
            print(f"\nTest part, {len(self.test)} images: {_told(found)}")
            found["test_images"] = len(self.test)
        adopt(self.evaluation, model, folder)
        if self.evaluation.samples:
            self._draw(model, folder / PICTURE)
        return found

    def _likelihood(self, model: UnimodalARForGeneration) -> dict[str, float]:
        if not self.has_likelihood:
            return {}
        found = negative_log_likelihood(
            model, self._batches(), self.adapter.dimensions, self.evaluation.likelihood_draws
        )
        codes = self.adapter.element["kind"] == "discrete"
        name, value, error = ("bits", found.bits, found.bits_error) if codes else ("nats", found.nats, found.error)
        name = f"{name}_per_dimension"
        return {name: value} if found.exact else {f"{name}_bound": value, f"{name}_bound_error": error}

    def _batches(self) -> Iterator[dict[str, Any]]:
        size = self.evaluation.batch_size
        for start in range(0, len(self.test), size):
            yield self.test.collate([self.test[i] for i in range(start, min(start + size, len(self.test)))])

    def _draw(self, model: UnimodalARForGeneration, path: Path) -> None:
        e = self.evaluation
        arguments: dict[str, Any] = {}
        if self.label is not None:
            classes = self.label.element["vocab_size"]
            arguments[self.label.modality] = [i * classes // e.samples for i in range(e.samples)]
        generator = Generator(model, [adapter for adapter in (self.label, self.adapter) if adapter is not None])
        samples = generator.generate(
            e.samples, self.adapter.modality, seed=self.seed, batch_size=e.batch_size, **arguments
        )
        samples.save(path)


def _has_likelihood(options: ModalityOptions) -> bool:
    """Whether the model gives the likelihood of a whole image (see `evaluation.likelihood`)."""
    head, objective = dict(options.head or {}), options.built_objective
    given = objective is not None and objective.likelihood is not None and options.start != "none"
    return given and hasattr(HEADS[head["kind"]], "log_prob")


def _told(found: dict[str, float]) -> str:
    """What `SamplesAndLikelihood._likelihood` found, in words."""
    if not found:
        return "this model has no likelihood"
    (name, value), *error = found.items()
    known = "".join(f" (a bound, estimated with a standard error of {spread:.4f})" for _, spread in error)
    return f"{'at most ' if error else ''}{value:.4f} {name.removesuffix('_bound').replace('_', ' ')}{known}"
