"""Vocoders: frozen modules of transformers that make waves of log-mel spectrograms.

Shapes: R spectrograms of F frames of M mels, S samples.
"""

from __future__ import annotations

import copy
import inspect
import os
from typing import Any

import torch
from torch import Tensor, nn

from ..pretrained import Frozen, class_name, load_module, locate
from .mels import CHUNK, MelCodec, Renderer

# Frames of the spectrogram by which a receptive field is measured: the first number, twice, four times ... the last.
PROBE, LONGEST = 64, 2048
# After how many frames the noise of a vocoder that takes noise is the same again.
NOISE = 4096


class Vocoder(Frozen):
    """A convolutional vocoder: in evaluation mode, in float32 and without gradients, whatever autocast is around it.

    Attributes:
        model: the module.
        n_mels: M.
        hop: samples of a frame.
        before, after: how many frames before and after a sample's own it depends on.

    Args:
        model: maps log-mels, float32 [R, F, M], to [R, F * hop], or to an output with such `waveforms`. One that takes
            `noise_sequence` (UnivNet) gets noise from a fixed seed. It is changed in place.
        n_mels: M.

    Raises:
        ValueError: it does not take such log-mels, or gives no whole number of samples a frame, or each of its samples
            depends on all frames.
    """

    def __init__(self, model: Any, n_mels: int) -> None:
        super().__init__(model)
        self.name, self.n_mels = type(model).__name__, n_mels
        self._noise = None
        if "noise_sequence" in inspect.signature(model.forward).parameters:
            size = (NOISE, model.config.model_in_channels)
            self._noise = torch.randn(size, generator=torch.Generator().manual_seed(0))
        self.hop, self.before, self.after = self._measure(n_mels)

    @torch.no_grad()
    def __call__(self, log_mel: Tensor, first: int = 0) -> Tensor:
        """float32 [R, F, M] -> [R, F * hop], on the same device.

        Args:
            first: which frame of its spectrogram the first one is.
        """
        noise = {}
        if self._noise is not None:
            places = torch.arange(first, first + log_mel.shape[1]) % NOISE
            noise["noise_sequence"] = self._noise[places].expand(len(log_mel), -1, -1).to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            found = self.model(log_mel.to(self.device, torch.float32), **noise)
        return getattr(found, "waveforms", found).to(log_mel.device)

    def _measure(self, n_mels: int) -> tuple[int, int, int]:
        """The hop and the frames that a sample depends on: those of which a NaN reaches it."""
        frames = PROBE
        while frames <= LONGEST:
            middle = frames // 2
            log_mel = torch.zeros(1, frames, n_mels, device=self.device)
            log_mel[:, middle] = torch.nan
            try:
                wave = self(log_mel)
            except (RuntimeError, ValueError) as error:
                raise ValueError(
                    f"vocoder {self.name} does not take log-mels of {n_mels} mels: {str(error).partition(chr(10))[0]}"
                ) from None
            hop, rest = divmod(wave.shape[-1], frames)
            if rest or wave.shape != (1, frames * hop):
                raise ValueError(
                    f"vocoder {self.name} makes {list(wave.shape)} of {frames} frames; it must be a whole number of "
                    "samples for each"
                )
            reached = wave[0].isnan().nonzero()[:, 0] // hop
            first, last = int(reached.min()), int(reached.max())
            if first > 0 and last < frames - 1:
                return hop, last - middle, middle - first
            frames *= 2
        raise ValueError(
            f"vocoder {self.name} has samples that depend on more than {LONGEST // 2} frames; only convolutional "
            "vocoders can be streamed"
        )


class VocoderRenderer(Renderer):
    """By a vocoder: chunk by chunk, each with the frames around it that its samples depend on."""

    def __init__(self, vocoder: Vocoder) -> None:
        self.vocoder = vocoder
        self.chunk, self.look = max(CHUNK, vocoder.before), vocoder.after
        self._past: Tensor | None = None
        self._done = 0

    def render(self, log_mel: Tensor, count: int, is_last: bool) -> Tensor:
        past = log_mel[:, :0] if self._past is None else self._past
        known = past.shape[1]
        wave = self.vocoder(torch.cat([past, log_mel], 1), self._done - known)
        hop, before = self.vocoder.hop, self.vocoder.before
        self._past = torch.cat([past, log_mel[:, :count]], 1)[:, known + count - min(before, known + count) :]
        self._done += count
        return wave[:, known * hop : (known + count) * hop]


def load_vocoder(
    source: Vocoder | nn.Module | str | os.PathLike[str], folder: str | os.PathLike[str] | None, n_mels: int
) -> Vocoder:
    """The vocoder of a folder, of the Hub or around a module.

    Args:
        source: a folder that `save_pretrained` of a class of transformers wrote, read from safetensors only; an id on
            the Hub; or such a module (SpeechT5HifiGan, FastSpeech2ConformerHifiGan, UnivNetModel ...), which is copied.
        folder: where a relative path is looked for first; then comes the working directory, then the Hub.
        n_mels: what it is given.

    Raises:
        ValueError: nothing there, a class that is not in transformers, no safetensors, weights that do not fit, a
            module that `Vocoder` does not take.
    """
    if isinstance(source, Vocoder):
        return source
    if isinstance(source, nn.Module):
        return Vocoder(copy.deepcopy(source), n_mels)
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"vocoder is {source!r}; it must be a folder, an id on the Hub or a module")
    import transformers

    path = locate(os.fspath(source), folder, "vocoder")
    name = class_name(path, {}, "vocoder")
    kind = getattr(transformers, name, None) if isinstance(name, str) else None
    if not (isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)):
        raise ValueError(f"{path / 'config.json'} is of class {name!r}; a vocoder's is a model of transformers")
    return Vocoder(load_module(str(name), "transformers", path), n_mels)


def check_vocoder(vocoder: Vocoder, codec: MelCodec) -> None:
    """Raises ValueError if a vocoder was made for other frames than the codec's."""
    if vocoder.n_mels != codec.mel.n_mels:
        raise ValueError(f"elements.n_mels is {codec.mel.n_mels}; vocoder {vocoder.name} was made for {vocoder.n_mels}")
    told = getattr(vocoder.model.config, "sampling_rate", codec.sample_rate)
    if told != codec.sample_rate:
        raise ValueError(f"sample_rate is {codec.sample_rate}; vocoder {vocoder.name} makes waves of {told} Hz")
    if vocoder.hop != codec.mel.frames.hop:
        raise ValueError(
            f"elements.hop is {codec.mel.frames.hop}; vocoder {vocoder.name} makes {vocoder.hop} samples of a frame"
        )
