"""The audio codecs of transformers that decode: each gives what its own `encode` and `decode` give."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ...pretrained import FrozenType
from .base import AudioTokenizer
from .streaming import ConvStream, LSTMStream, Stream, TransformerStream, measure_field


class EncodecTokenizer(AudioTokenizer):
    """`EncodecModel` (Défossez et al. 2022, arXiv 2210.13438) without normalisation and chunks: encodec_24khz, the
    codecs of MusicGen and AudioGen. Its bandwidths are numbers of codebooks: `codebooks` counts those of the highest.

    Raises:
        ValueError: a model that normalises or cuts what it encodes (encodec_48khz): the loudness of every second is
            stored beside the codes there, and seconds overlap, so that codes alone do not say how it sounds.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        config = self.config
        for key, value in (("normalize", config.normalize), ("chunk_length_s", config.chunk_length_s)):
            if value:
                raise ValueError(
                    f"EncodecModel has {key} {value}; only models without it, like encodec_24khz, sound as their codes "
                    "alone say"
                )
        self.sampling_rate = config.sampling_rate
        self.channels = config.audio_channels
        self.hop = math.prod(config.upsampling_ratios)
        self.codebooks = config.num_quantizers
        self.vocab_size = config.codebook_size

    def _encode(self, waves: Tensor, codebooks: int) -> Tensor:
        # A quantiser's codes do not depend on those after it: fewer codebooks are the first of more.
        highest = self.config.target_bandwidths[-1]
        return self.model.encode(waves, bandwidth=highest, return_dict=True).audio_codes[0][:, :codebooks]

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes[None], [None], return_dict=True).audio_values

    def _latents(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes.transpose(0, 1))

    def _streams(self) -> list[Callable[[], Stream]]:
        first, memory, *rest = self.model.decoder.layers
        size = self.config.num_filters * 2 ** len(self.config.upsampling_ratios)
        return [
            _conv(first, self.config.hidden_size),
            partial(LSTMStream, memory.lstm),
            _conv(nn.Sequential(*rest), size, self.hop),
        ]


class DacTokenizer(AudioTokenizer):
    """`DacModel` (Kumar et al. 2023, arXiv 2306.06546): mono, convolutions only, which look ahead.

    The 24 kHz model's own decode gives 8 samples less than its steps stand for; they are filled up with silence.
    """

    channels = 1

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.sampling_rate = self.config.sampling_rate
        self.hop = self.config.hop_length
        self.codebooks = self.config.n_codebooks
        self.vocab_size = self.config.codebook_size

    def _encode(self, waves: Tensor, codebooks: int) -> Tensor:
        return self.model.encode(waves, n_quantizers=codebooks, return_dict=True).audio_codes

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(audio_codes=codes, return_dict=True).audio_values[:, None]

    def _latents(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.from_codes(codes)[0]

    def _streams(self) -> list[Callable[[], Stream]]:
        return [_conv(self.model.decoder, self.config.hidden_size, self.hop)]


class MimiTokenizer(AudioTokenizer):
    """`MimiModel` (Défossez et al. 2024, arXiv 2410.00037): causal, with a transformer on both sides; 12.5 steps a
    second at 24 kHz. The first codebook is semantic, the others acoustic.

    Raises:
        ValueError: a model of one half only.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        for half in ("encoder", "decoder"):
            if getattr(model, half) is None:
                raise ValueError(f"MimiModel has no {half}; a tokenizer needs the encoder and the decoder")
        self._forget_tables()
        config = self.config
        self.sampling_rate = config.sampling_rate
        self.channels = config.audio_channels
        self.hop = round(config.sampling_rate / config.frame_rate)
        self.codebooks = config.num_quantizers
        self.vocab_size = config.codebook_size

    def to(self: FrozenType, device: str | torch.device) -> FrozenType:
        super().to(device)
        self._forget_tables()  # type: ignore[attr-defined]  # mypy knows the bound of the type only
        return self

    def _forget_tables(self) -> None:
        """The codebooks keep a copy of their table, which follows no change of dtype or device."""
        for module in self.model.modules():
            if hasattr(module, "_embed"):
                module._embed = None

    def _encode(self, waves: Tensor, codebooks: int) -> Tensor:
        least = max(codebooks, self.config.num_semantic_quantizers)
        return self.model.encode(waves, num_quantizers=least, return_dict=True).audio_codes[:, :codebooks]

    def _decode(self, codes: Tensor) -> Tensor:
        return self.model.decode(codes, return_dict=True).audio_values

    def _latents(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes)

    def _streams(self) -> list[Callable[[], Stream]]:
        # Since transformers 5.2x the decoder's parts have a model of their own.
        half = self.model.decoder
        whole = hasattr(half, "decoder_seanet")
        upsample, transformer, seanet = (
            (half.upsample, half.decoder_transformer, half.decoder_seanet)
            if whole
            else (self.model.upsample, self.model.decoder_transformer, half)
        )
        size = self.config.hidden_size
        frames = math.prod(self.config.upsampling_ratios)
        return [
            _conv(upsample, size, self.hop // frames),
            partial(TransformerStream, transformer),
            _conv(seanet, size, frames),
        ]


def _conv(module: nn.Module, channels: int, hop: int = 1) -> Callable[[], Stream]:
    """Convolutions, with their field measured now."""
    return partial(ConvStream, module, measure_field(module, channels, hop))
