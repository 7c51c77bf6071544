"""Audio codecs: waves <-> the values of elements, and the options that choose among them.

Shapes: B clips, C channels, S samples, T steps, K codes and D values of an element.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor

from ...schema import Strict
from .clips import torchaudio
from .codecs import CodecElements
from .mels import MelCodec, MelElements
from .wave_codec import Decoder, WaveCodec, check_codes, check_finite


class MuLawElements(Strict):
    """A code for each sample: its level on the mu-law scale, mu = levels - 1 (ITU-T G.711 has 256 levels).

    Of a sample x in [-1, 1] comes back y with |x - y| <= log(1 + mu) / mu^2 * (1 + mu)^(1 / mu) * (1 + mu * |x|), with
    256 levels 9e-5 near silence and 0.022 near full scale; samples beyond 1 come back as 1.

    Args:
        levels: how many.
        group: consecutive samples that are one element of group * channels codes, channels innermost.
    """

    kind: Literal["mulaw"]
    levels: int = Field(256, ge=2, le=65536)
    group: PositiveInt = 1


class WaveElements(Strict):
    """A vector for each patch of samples: x / std, sample by sample, channels innermost.

    Args:
        patch: samples of a patch.
        std: None: to be learned by `fit`.
    """

    kind: Literal["waveform"]
    patch: PositiveInt = 80
    std: float | None = Field(None, gt=0, allow_inf_nan=False)


Elements = MuLawElements | WaveElements | MelElements | CodecElements


class MuLawCodec(WaveCodec):
    def __init__(self, sample_rate: int, channels: int, elements: MuLawElements) -> None:
        super().__init__(sample_rate, channels)
        self.step, self.levels = elements.group, elements.levels
        self.codes = elements.group * channels
        self.element = {"kind": "discrete", "vocab_size": elements.levels, "codes": self.codes}
        torchaudio()

    def encode(self, waves: Tensor) -> Tensor:
        codes = torchaudio().functional.mu_law_encoding(waves.clamp(-1, 1), self.levels)
        values = _patches(codes, self.step)
        return values[..., 0] if self.codes == 1 else values

    def decoder(self) -> Decoder:
        return _Direct(self._waves)

    def _waves(self, values: Tensor) -> Tensor:
        check_codes(values, self.levels)
        # By a table: a code's level is then the same wherever it stands, to the last bit.
        table = torchaudio().functional.mu_law_decoding(torch.arange(self.levels), self.levels).clamp(-1, 1)
        codes = values[..., None] if self.codes == 1 else values
        return _unpatched(table.to(values.device)[codes], self.channels)


class PatchCodec(WaveCodec):
    def __init__(self, sample_rate: int, channels: int, elements: WaveElements) -> None:
        super().__init__(sample_rate, channels)
        self.step, self.std = elements.patch, elements.std
        self.needs_fit = self.std is None
        self.element = {"kind": "continuous", "dim": elements.patch * channels}

    def fitted(self, waves: Iterable[Tensor]) -> dict[str, float]:
        count, squares = 0, 0.0
        for wave in waves:
            count += wave.numel()
            squares += float(wave.double().square().sum())
        if squares == 0:
            raise ValueError("the waves to fit are empty or all silent; a standard deviation needs sound")
        return {"std": math.sqrt(squares / count)}

    def encode(self, waves: Tensor) -> Tensor:
        return _patches(waves, self.step) / self._scale()

    def decoder(self) -> Decoder:
        self._scale()
        return _Direct(self._waves)

    def _waves(self, values: Tensor) -> Tensor:
        check_finite(values)
        return _unpatched(values.float() * self._scale(), self.channels)

    def _scale(self) -> float:
        if self.std is None:
            raise ValueError("elements.std is not known yet; call fit(waves) first, or give it")
        return self.std


class _Direct(Decoder):
    """Of values each of which has samples of its own."""

    def __init__(self, waves: Callable[[Tensor], Tensor]) -> None:
        self._waves = waves
        self._empty = torch.zeros(0)

    def push(self, values: Tensor) -> Tensor:
        waves = self._waves(values)
        self._empty = waves[..., :0]
        return waves

    def finish(self) -> Tensor:
        return self._empty


# Kind of elements -> codec of (sample rate, channels, options), for kinds that need nothing else.
WAVE_CODECS: dict[str, Callable[[int, int, Any], WaveCodec]] = {
    "mulaw": MuLawCodec,
    "waveform": PatchCodec,
    "mel": MelCodec,
}


def _patches(samples: Tensor, step: int) -> Tensor:
    """[B, C, T * step] -> [B, T, step * C]."""
    return samples.unflatten(2, (-1, step)).permute(0, 2, 3, 1).flatten(2)


def _unpatched(patches: Tensor, channels: int) -> Tensor:
    """The inverse of `_patches`."""
    return patches.unflatten(2, (-1, channels)).permute(0, 3, 1, 2).flatten(2)
