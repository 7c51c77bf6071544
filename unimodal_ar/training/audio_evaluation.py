"""How a model of audio is judged: what its elements lose, bits per dimension, and samples to hear and to see."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveInt

from ..adapters import LabelAdapter
from ..adapters.audio.adapter import AudioAdapter
from ..configuration import UnimodalARConfig
from ..evaluation.audio import log_mel_distance, si_sdr
from ..modeling import UnimodalARForGeneration
from .audio_set import AudioDataset
from .sample_evaluation import SampleEvaluator, SampleOptions
from .source_set import tells

EXACT = 100.0  # dB of SI-SDR that an exact wave is given, which has infinitely many (and JSON has no infinity)


class AudioEvaluation(SampleOptions):
    """What is computed of a trained model, beside what `SampleOptions` says of every model.

    Dimensions are samples times channels; silence that fills up a window counts, too.

    Args:
        reconstruction: test clips of which is told, before training, what the elements lose: the log-mel distance
            and, but for mels, which hold no phases, the SI-SDR of each to what the adapter decodes from its elements,
            in dB, as medians (see `evaluation.audio`); 100 dB stand for an exact wave, -100 for one without sound. What
            a model draws cannot be better than that. 0: none.
        samples: how many clips are drawn for samples.wav and samples.png.
        batch_size: clips at a time, of all.
    """

    reconstruction: NonNegativeInt = 32
    samples: NonNegativeInt = 20
    batch_size: PositiveInt = 50


class AudioEvaluator(SampleEvaluator):
    """Bits per dimension on the test part, samples.wav and samples.png; and, when it is made, what the elements lose.

    Raises:
        ValueError: as `SampleEvaluator`, or no test clips to reconstruct.
    """

    many: ClassVar[str] = "clips"
    file: ClassVar[str] = "samples.wav"
    evaluation: AudioEvaluation

    def __init__(
        self,
        adapter: AudioAdapter,
        labels: Sequence[LabelAdapter],
        test: AudioDataset,
        evaluation: AudioEvaluation,
        config: UnimodalARConfig,
        seed: int,
    ) -> None:
        super().__init__(adapter, labels, test, evaluation, config, seed)
        self.reconstruction = self._reconstruct() if evaluation.reconstruction else {}

    def run(self, model: UnimodalARForGeneration, folder: Path | None) -> dict[str, Any]:
        """Writes samples.wav and samples.png (`folder` None: draws none), and returns {"bits_per_dimension": x,
        "test_clips": n, "reconstruction": {"log_mel_distance", "si_sdr", "clips"}}, as far as asked for."""
        return super().run(model, folder) | ({"reconstruction": self.reconstruction} if self.reconstruction else {})

    def _reconstruct(self) -> dict[str, float]:
        """What test clips lose on the way into elements and back."""
        # Of silence no ratio is defined.
        found = self.test.waves(self.evaluation.reconstruction)
        heard = [wave for wave in found if bool((wave.amax(-1) > wave.amin(-1)).all())]
        if not heard:
            raise ValueError(
                f"evaluation.reconstruction is {self.evaluation.reconstruction}, but there are no test clips with "
                "sound; set it to 0, or data.test"
            )
        waves = torch.stack(heard)
        parts = waves.split(self.evaluation.batch_size)
        back = torch.cat([self.adapter.decode_waves(self.adapter.encode_waves(part)) for part in parts])
        lost = {"log_mel_distance": float(log_mel_distance(waves, back, self.adapter.sample_rate).median())}
        if self.adapter.has_phases:
            lost["si_sdr"] = float(si_sdr(waves, back).clamp(-EXACT, EXACT).median())
        if tells():
            ratio = f", SI-SDR {lost['si_sdr']:.1f} dB" if "si_sdr" in lost else ""
            print(
                f"What the elements lose, on {len(waves)} test clips: log-mel distance "
                f"{lost['log_mel_distance']:.2f} dB{ratio}"
            )
        return {**lost, "clips": len(waves)}
