"""Log-mel spectrograms as elements, and how waves are made of them bit by bit.

Shapes: B clips, C channels, S samples, R = B * C waves, F frames of M mels.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor
from torch.nn.functional import pad

from ...schema import Strict
from .spectrogram import Frames, MelScale, griffin_lim, slaney
from .wave_codec import Decoder, WaveCodec, check_finite

# Frames of which phases are found at once, besides those that have to wait for what comes after them.
CHUNK = 32


class MelElements(Strict):
    """A vector for each patch of a log-mel spectrogram: (log-mel - mean) / std, of magnitudes (not their squares) with
    Slaney's scale and areas, as HiFi-GAN's; frame by frame, in it mel by mel, channels innermost.

    What is not given is filled in when the adapter is made.

    Args:
        n_fft: samples of a frame; None: the power of 2 nearest to 40 ms.
        win: samples of the Hann window in a frame's middle; None: n_fft.
        hop: samples from one frame to the next, at most win // 2 and at least n_fft / 32; None: n_fft // 4.
        n_mels: M; None: 80, or fewer, down to 8, where these would be narrower than the distance of two frequencies.
        f_min, f_max: Hz, the ends of the lowest and the highest mel; f_max None: sample_rate / 2.
        log: of base e or 10.
        floor: magnitudes below it are raised to it before the logarithm.
        patch: frames that become one element, or [frames, mels]; a patch of fewer mels than M gives M / mels elements
            side by side, along W.
        mean, std: in the logarithm's units; None: to be learned by `fit`.
        iterations: of Griffin-Lim, which finds phases where there is no vocoder.
        vocoder: the folder of a module of transformers that makes waves of log-mels, relative to that of the adapter or
            to the working directory (see `load_vocoder`).
    """

    kind: Literal["mel"]
    n_fft: int | None = Field(None, ge=16)
    win: int | None = Field(None, ge=8)
    hop: PositiveInt | None = None
    n_mels: PositiveInt | None = None
    f_min: float = Field(0.0, ge=0)
    f_max: float | None = Field(None, gt=0)
    log: Literal["natural", "decimal"] = "natural"
    floor: float = Field(1e-5, gt=0)
    patch: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    mean: float | None = Field(None, allow_inf_nan=False)
    std: float | None = Field(None, gt=0, allow_inf_nan=False)
    iterations: PositiveInt = 32
    vocoder: str | None = None


def filled(elements: MelElements, sample_rate: int) -> MelElements:
    """With everything given but what is learned.

    Raises:
        ValueError: sizes or frequencies that do not fit together.
    """
    n_fft = elements.n_fft or 2 ** max(4, round(math.log2(0.04 * sample_rate)))
    win = elements.win or n_fft
    hop = elements.hop or n_fft // 4
    f_max = elements.f_max or sample_rate / 2
    if win > n_fft:
        raise ValueError(f"elements.win is {win}; it must be at most n_fft, {n_fft}")
    if not n_fft / 32 <= hop <= win // 2:
        raise ValueError(
            f"elements.hop is {hop}; with n_fft {n_fft} and win {win} it must be {-(-n_fft // 32)} to {win // 2}"
        )
    if not elements.f_min < f_max <= sample_rate / 2:
        raise ValueError(
            f"elements.f_min and f_max are {elements.f_min:g} and {f_max:g} Hz; they must rise, up to half the sample "
            f"rate, {sample_rate / 2:g}"
        )
    n_mels = elements.n_mels or _most_mels(elements.f_min, f_max, sample_rate / n_fft)
    if isinstance(elements.patch, tuple) and n_mels % elements.patch[1]:
        raise ValueError(
            f"elements.patch is {list(elements.patch)}; {n_mels} mels are no multiple of {elements.patch[1]}"
        )
    return elements.model_copy(update={"n_fft": n_fft, "win": win, "hop": hop, "n_mels": n_mels, "f_max": f_max})


def mel_scale(elements: MelElements, sample_rate: int) -> MelScale:
    """Of elements that are filled.

    Raises:
        ValueError: a mel so narrow that no frequency falls into it.
    """
    frames = Frames(**elements.model_dump(include={"n_fft", "win", "hop"}))
    given = elements.model_dump(include={"n_mels", "f_min", "f_max", "log", "floor"})
    return MelScale(sample_rate, frames, **given)


class Renderer(ABC):
    """Makes waves of the frames of one spectrogram, in order.

    Attributes:
        chunk: frames that are rendered at once.
        look: frames after them that have to be known.
    """

    chunk: int
    look: int

    @abstractmethod
    def render(self, log_mel: Tensor, count: int, is_last: bool) -> Tensor:
        """The samples of the next `count` frames.

        Args:
            log_mel: [R, count + look, M]; [R, count, M] where these are the last ones.

        Returns:
            float32 [R, s], where s may differ from count * hop as long as they are equal in the end.
        """


class GriffinLim(Renderer):
    """By Griffin-Lim: chunk by chunk, with the phases of a chunk fitted to those that went before, which stay; so there
    are no seams. As many frames as overlap are looked ahead, and done again with the next chunk."""

    def __init__(self, mel: MelScale, iterations: int) -> None:
        self.mel, self.frames, self.iterations = mel, mel.frames, iterations
        self.chunk, self.look = max(CHUNK, self.frames.overlap), self.frames.overlap
        self._held: Tensor | None = None

    def render(self, log_mel: Tensor, count: int, is_last: bool) -> Tensor:
        frames, held = self.frames, self._held
        magnitudes = self.mel.magnitudes(log_mel)
        spectra = griffin_lim(frames, magnitudes, self.iterations, held, silent=(held is None, is_last))[:, :count]
        start = frames.before
        if held is not None:
            start = held.shape[1] * frames.hop
            spectra = torch.cat([held, spectra], 1)
        self._held = spectra[:, -frames.overlap :]
        # The frame after these has a part in what lies behind its first sample.
        end = spectra.shape[1] * frames.hop + (frames.before if is_last else 0)
        wave = frames.overlap_add(spectra) / frames.envelope(spectra.shape[1], spectra.device)
        return wave[:, start:end]


class MelCodec(WaveCodec):
    """Patches of log-mel spectrograms.

    Args:
        elements: filled.
        renderer: for one spectrogram; None: Griffin-Lim.

    Raises:
        ValueError: a mel so narrow that no frequency falls into it.
    """

    has_phases = False

    def __init__(
        self,
        sample_rate: int,
        channels: int,
        elements: MelElements,
        renderer: Callable[[], Renderer] | None = None,
    ) -> None:
        super().__init__(sample_rate, channels)
        self.mel = mel_scale(elements, sample_rate)
        frames, n_mels = self.mel.frames, self.mel.n_mels
        self.patch = elements.patch if isinstance(elements.patch, tuple) else (elements.patch, n_mels)
        self.mean, self.std = elements.mean, elements.std
        self.needs_fit = self.mean is None or self.std is None
        self.step, self.before, self.after = self.patch[0] * frames.hop, frames.before, frames.after
        self._width = n_mels // self.patch[1]
        self.element = {"kind": "continuous", "dim": self.patch[0] * self.patch[1] * channels}
        self.renderer = renderer or (lambda: GriffinLim(self.mel, elements.iterations))

    @property
    def width(self) -> int:
        return self._width

    def fitted(self, waves: Iterable[Tensor]) -> dict[str, float]:
        count, total, squares = 0, 0.0, 0.0
        for wave in waves:
            log_mel = self.mel.log_mel(pad(wave, (0, -wave.shape[-1] % self.mel.frames.hop))).double()
            count += log_mel.numel()
            total += float(log_mel.sum())
            squares += float(log_mel.square().sum())
        mean = total / max(count, 1)
        std = math.sqrt(max(squares / max(count, 1) - mean**2, 0.0))
        if not std > 1e-6:
            raise ValueError("the waves to fit are empty or all silent; a standard deviation needs sound")
        return {"mean": mean, "std": std}

    def encode(self, waves: Tensor) -> Tensor:
        mean, std = self._scale()
        patches = self.mel.log_mel(waves).unflatten(3, (-1, self.patch[1])).unflatten(2, (-1, self.patch[0]))
        values = patches.permute(0, 2, 4, 3, 5, 1)  # [B, C, t, frames, w, mels] -> [B, t, w, frames, mels, C]
        return ((values - mean) / std).flatten(3).flatten(1, 2)

    def log_mel(self, values: Tensor) -> Tensor:
        """Values of whole rows -> log-mels [R, F, M]; the inverse of what `encode` does with them."""
        mean, std = self._scale()
        rows = (values.float() * std + mean).unflatten(1, (-1, self.width))
        patches = rows.unflatten(3, (*self.patch, self.channels))  # [B, t, w, frames, mels, C]
        return patches.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3).flatten(0, 1)

    def decoder(self) -> Decoder:
        self._scale()
        return FrameDecoder(self, self.renderer())

    def _scale(self) -> tuple[float, float]:
        if self.mean is None or self.std is None:
            raise ValueError("elements.mean and std are not known yet; call fit(waves) first, or give them")
        return self.mean, self.std


class FrameDecoder(Decoder):
    """Hands frames to a renderer, in chunks that only depend on how many frames there are."""

    def __init__(self, codec: MelCodec, renderer: Renderer) -> None:
        self.codec, self.renderer = codec, renderer
        self._waiting: Tensor | None = None

    def push(self, values: Tensor) -> Tensor:
        check_finite(values)
        frames = self.codec.log_mel(values)
        self._waiting = frames if self._waiting is None else torch.cat([self._waiting, frames], 1)
        chunk, done = self.renderer.chunk, [frames.new_zeros(len(frames), 0)]
        while self._waiting.shape[1] >= chunk + self.renderer.look:
            done.append(self.renderer.render(self._waiting[:, : chunk + self.renderer.look], chunk, is_last=False))
            self._waiting = self._waiting[:, chunk:]
        return self._waves(torch.cat(done, 1))

    def finish(self) -> Tensor:
        assert self._waiting is not None
        count = self._waiting.shape[1]
        if count == 0:
            return self._waves(self._waiting.new_zeros(len(self._waiting), 0))
        return self._waves(self.renderer.render(self._waiting, count, is_last=True))

    def _waves(self, flat: Tensor) -> Tensor:
        return flat.unflatten(0, (-1, self.codec.channels))


def _most_mels(f_min: float, f_max: float, distance: float) -> int:
    """80, or the multiple of 16 that fits, where mels of the lowest frequencies may not be narrower than `distance`."""
    room = (slaney(f_max) - slaney(f_min)) * (200 / 3) / distance - 1
    return max(8, min(80, int(room) // 16 * 16))
