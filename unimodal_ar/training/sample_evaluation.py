"""How a model of things that can be looked at or heard is judged: bits per dimension of the test part, and samples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt

from ..adapters import LabelAdapter
from ..configuration import UnimodalARConfig
from ..evaluation.likelihood import DRAWS, negative_log_likelihood
from ..heads import HEADS
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..pipelines import Generator
from .sampling import SamplingOptions, adopt, check_sampling


class SampleOptions(SamplingOptions):
    """What is computed of a trained model.

    Args:
        bits_per_dimension: the test part's negative log2 likelihood per dimension (a pixel's or a sample's channel).
            For vectors, whose density is no probability, it is nats_per_dimension in its place; nothing where there is
            no likelihood. Exact under next-block. Under block diffusion with mask noise it is an upper bound, and
            called so (bits_per_dimension_bound), estimated from random masks, with the standard error that these leave.
        likelihood_draws: masks of every example for that estimate.
        samples: how many are drawn; 0: none. The classes of the first label in order, equally many of each; the
            classes of other labels take turns.
        guidance_scale, temperature, top_k, top_p, steps, head_steps, sampler: of these samples, see the model's
            `generate`. They become the model's defaults.
        batch_size: examples at a time, of both.
    """

    bits_per_dimension: bool = True
    likelihood_draws: int = Field(DRAWS, ge=2)
    samples: NonNegativeInt = 100
    guidance_scale: NonNegativeFloat = 1.0
    temperature: NonNegativeFloat = 1.0
    top_k: PositiveInt | None = None
    top_p: float | None = Field(None, gt=0, le=1)
    batch_size: PositiveInt = 100


class SampleEvaluator:
    """Bits per dimension on the test part, and a file of samples; a subclass says of what.

    Args:
        adapter, labels: of what is drawn, and of its labels in the order of the sequence.
        test: the test part.

    Raises:
        ValueError: no test examples where they are needed, guidance of a model that is not trained for it, truncation
            where there are no codes to truncate, steps or a sampler that objective or head do not have.
    """

    many: ClassVar[str]  # what the examples are called
    file: ClassVar[str]  # where `run` writes samples; a picture of them is beside it, where the file is none

    def __init__(
        self,
        adapter: Any,
        labels: Sequence[LabelAdapter],
        test: Any,
        evaluation: SampleOptions,
        config: UnimodalARConfig,
        seed: int,
    ) -> None:
        self.adapter, self.labels, self.test = adapter, list(labels), test
        self.evaluation, self.seed = evaluation, seed
        self.has_likelihood = _has_likelihood(config.modality(adapter.modality))
        if evaluation.bits_per_dimension and not len(test):
            raise ValueError(
                f"evaluation.bits_per_dimension is true, but data.test leaves no test {self.many}; set one"
            )
        guided = any(config.modality(label.modality).null_probability > 0 for label in self.labels)
        if evaluation.guidance_scale != 1 and not guided:
            raise ValueError(
                f"evaluation.guidance_scale is {evaluation.guidance_scale}; guidance needs a label that was "
                "trained with null_probability > 0"
            )
        for name in ("top_k", "top_p"):
            if getattr(evaluation, name) is not None and adapter.element["kind"] != "discrete":
                raise ValueError(f"evaluation.{name} is {getattr(evaluation, name)}; it truncates codes, not vectors")
        check_sampling(evaluation, config, adapter.modality)

    def run(self, model: UnimodalARForGeneration, folder: Path | None) -> dict[str, Any]:
        """Writes samples to `folder` (None: draws none), and returns {"bits_per_dimension": x, "test_images": n}, as
        far as asked for."""
        found: dict[str, Any] = {}
        if self.evaluation.bits_per_dimension:
            found = self._likelihood(model)
            print(f"\nTest part, {len(self.test)} {self.many}: {_told(found)}")
            found[f"test_{self.many}"] = len(self.test)
        adopt(self.evaluation, model)
        if self.evaluation.samples and folder is not None:
            self._draw(model, folder / self.file)
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
        generator = Generator(model, [*self.labels, self.adapter])
        samples = generator.generate(
            e.samples, self.adapter.modality, seed=self.seed, batch_size=e.batch_size, **self._classes()
        )
        samples.save(path)
        picture = samples.picture()
        if picture is not None:
            picture.save(path.with_suffix(".png"))

    def _classes(self) -> dict[str, Any]:
        """By label's modality, the class of each sample."""
        n, turn = self.evaluation.samples, 1
        classes: dict[str, Any] = {}
        for place, label in enumerate(self.labels):
            count = len(label.names)
            if place == 0:
                classes[label.modality] = [i * count // n for i in range(n)]
            else:
                classes[label.modality] = [i // turn % count for i in range(n)]
                turn *= count
        return classes


def _has_likelihood(options: ModalityOptions) -> bool:
    """Whether the model gives the likelihood of a whole example (see `evaluation.likelihood`)."""
    head, objective = dict(options.head or {}), options.built_objective
    given = objective is not None and objective.likelihood is not None and options.start != "none"
    return given and hasattr(HEADS[head["kind"]], "log_prob")


def _told(found: dict[str, float]) -> str:
    """What `SampleEvaluator._likelihood` found, in words."""
    if not found:
        return "this model has no likelihood"
    (name, value), *error = found.items()
    known = "".join(f" (a bound, estimated with a standard error of {spread:.4f})" for _, spread in error)
    return f"{'at most ' if error else ''}{value:.4f} {name.removesuffix('_bound').replace('_', ' ')}{known}"
