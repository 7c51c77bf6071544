"""The codes of a frozen audio tokenizer as elements, under a codebook pattern."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor

from ....schema import Strict
from ....segment import Grid
from ..codebooks import PATTERNS
from ..wave_codec import Decoder, WaveCodec
from .base import AudioTokenizer

# Clips that a tokenizer is given at a time: its activations, unlike waves and codes, do not fit for many.
TOKENIZED = 16


class CodecElements(Strict):
    """The codes of a frozen audio tokenizer, which is stored with the adapter.

    Args:
        path: what `load_codec` takes: a folder, relative to that of the adapter or to the working directory, or an id
            on the Hub. None: the tokenizer is given to the adapter as an object.
        codebooks: how many of its codebooks, the coarsest; None: all.
        pattern: "parallel": an element is the codes of a step, values [B, T, K] on the grid (T, 1, 1). "delay": code k
            of step t is in element t + k, values [B, T + K - 1, K]. "grid": an element is a code, values [B, T * K] on
            the grid (T, 1, K). See `codebooks` for when to take which.
    """

    kind: Literal["codec"]
    path: str | None = None
    codebooks: PositiveInt | None = None
    pattern: Literal["parallel", "delay", "grid"] = "parallel"


class CodecCodec(WaveCodec):
    """Waves <-> codes of a tokenizer, equal to the tokenizer's own.

    `decode` is the tokenizer's own decode. What `decoder` gives is the same but for the rounding of float32 (1e-5 of
    the loudest sample); see `CodeDecoder` for what it costs.
    """

    def __init__(self, elements: CodecElements, sample_rate: int, channels: int, tokenizer: AudioTokenizer) -> None:
        super().__init__(sample_rate, channels)
        self.tokenizer = tokenizer
        self.pattern = PATTERNS[elements.pattern]
        self.codebooks = tokenizer.check_codebooks(elements.codebooks)
        self.step = tokenizer.hop
        self.element = {
            "kind": "discrete",
            "vocab_size": tokenizer.vocab_size,
            "codes": self.pattern.codes(self.codebooks),
        }

    @property
    def width(self) -> int:
        return self.pattern.width(self.codebooks)

    def grid(self, steps: int) -> Grid:
        return self.pattern.grid(steps, self.codebooks)

    def encode(self, waves: Tensor) -> Tensor:
        codes = [self.tokenizer.encode(part, self.codebooks) for part in waves.split(TOKENIZED)]
        return self.pattern.build(torch.cat(codes))

    def decode(self, values: Tensor, grid: Grid) -> Tensor:
        self.steps(grid)
        codes = self.pattern.revert(values, self.codebooks)
        return torch.cat([self.tokenizer.decode(part) for part in codes.split(TOKENIZED)])

    def decoder(self) -> Decoder:
        return _RowDecoder(self)


class _RowDecoder(Decoder):
    """Rows of a pattern as they come. A step is decoded when its last code has come, `lag` rows later."""

    def __init__(self, codec: CodecCodec) -> None:
        self.codec = codec
        self.codes = codec.tokenizer.decoder()
        self.rows: Tensor | None = None  # [B, rows, K], those of steps that are not complete

    def push(self, values: Tensor) -> Tensor:
        books = self.codec.codebooks
        rows = values.reshape(len(values), values[0].numel() // books, books)
        self.rows = rows if self.rows is None else torch.cat([self.rows, rows], 1)
        complete = self.codec.pattern.revert(self.rows, books)
        self.rows = self.rows[:, complete.shape[1] :]
        return self.codes.push(complete)

    def finish(self) -> Tensor:
        return self.codes.finish()


def codec_codec(elements: CodecElements, sample_rate: int, channels: int, tokenizer: AudioTokenizer) -> CodecCodec:
    """The codec around a tokenizer.

    Raises:
        ValueError: another sample rate or number of channels than the tokenizer's, more codebooks than it has.
    """
    if tokenizer.sampling_rate != sample_rate:
        raise ValueError(f"sample_rate is {sample_rate}; the tokenizer's is {tokenizer.sampling_rate}")
    if tokenizer.channels != channels:
        raise ValueError(f"channels is {channels}; the tokenizer's are {tokenizer.channels}")
    return CodecCodec(elements, sample_rate, channels, tokenizer)
