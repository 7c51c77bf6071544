"""What a frozen audio tokenizer is, whichever codec it is built around."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...pretrained import Frozen
from ..wave_codec import check_codes
from .streaming import Stream


class AudioTokenizer(Frozen, ABC):
    """Waves <-> the codes of a residual quantiser, K for each time step, both by a frozen model.

    The model is in evaluation mode, in float32 (half precision changes codes) and without gradients; surrounding
    autocast does not reach it. What comes out is on the device of what came in, whatever the tokenizer's own.

    Shapes: B clips, C channels, S samples, T = S / hop steps, K codes of a step, coarse to fine.

    Attributes:
        sampling_rate: samples a second.
        channels: C.
        hop: samples of a step.
        codebooks: the largest K; fewer are the first of these, and a coarser sound.
        vocab_size: number of codes in each codebook.
        model: the library's module.

    Args:
        model: a module of the library's class; it is changed in place.
    """

    library: ClassVar[str] = "transformers"  # the package that defines and loads the model
    sampling_rate: int
    channels: int
    hop: int
    codebooks: int
    vocab_size: int

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.config = model.config
        self._chain: list[Callable[[], Stream]] | None = None

    @torch.no_grad()
    def encode(self, waves: Tensor, codebooks: int | None = None) -> Tensor:
        """Codes, long [B, T, K], of waves, float [B, C, S] in [-1, 1] at `sampling_rate`.

        Args:
            codebooks: K; None: all.

        Raises:
            ValueError: no float [B, C, S], other channels, S no multiple of `hop`, no such number of codebooks.
        """
        self._check_waves(waves)
        books = self.check_codebooks(codebooks)
        with torch.autocast(self.device.type, enabled=False):
            codes = self._encode(waves.to(self.device, torch.float32), books)
        return codes.transpose(1, 2).to(waves.device)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Waves, float32 [B, C, T * hop], of codes [B, T, K], with any K from 1 to `codebooks`. Not clamped.

        Raises:
            ValueError: no integers of this shape, a code that does not exist.
        """
        self._check_codes(codes)
        with torch.autocast(self.device.type, enabled=False):
            waves = self._decode(codes.to(self.device, torch.long).transpose(1, 2))
        return _filled(waves, codes.shape[1] * self.hop).to(codes.device)

    def decoder(self) -> CodeDecoder:
        """For the codes of one clip, or one batch of clips, as they come."""
        if self._chain is None:
            self._chain = self._streams()  # measured once: what it takes is no matter of devices or weights
        return CodeDecoder(self, [make() for make in self._chain])

    def check_codebooks(self, codebooks: int | None) -> int:
        """How many codebooks are meant; ValueError if there are not as many."""
        if codebooks is None:
            return self.codebooks
        if not 1 <= codebooks <= self.codebooks:
            raise ValueError(f"codebooks is {codebooks}; this tokenizer has 1..{self.codebooks}")
        return codebooks

    @abstractmethod
    def _encode(self, waves: Tensor, codebooks: int) -> Tensor:
        """`encode` without checks: [B, K, T]."""

    @abstractmethod
    def _decode(self, codes: Tensor) -> Tensor:
        """`decode` of [B, K, T] without checks; may be some samples short at the end."""

    @abstractmethod
    def _latents(self, codes: Tensor) -> Tensor:
        """What the model's decoder reads, [B, channels, T], of codes [B, K, T]; step by step."""

    @abstractmethod
    def _streams(self) -> list[Callable[[], Stream]]:
        """The parts of the decoder, each made anew for a stream: latents go in, waves come out."""

    def _check_waves(self, waves: Tensor) -> None:
        shape = list(waves.shape)
        if waves.dim() != 3 or not waves.is_floating_point():
            raise ValueError(f"waves are {waves.dtype} {shape}; they must be float [clips, channels, samples]")
        if waves.shape[1] != self.channels:
            raise ValueError(f"waves have {waves.shape[1]} channels; this tokenizer's have {self.channels}")
        if not waves.shape[2] or waves.shape[2] % self.hop:
            raise ValueError(
                f"waves have {waves.shape[2]} samples; it must be a multiple >= 1 of the tokenizer's {self.hop}"
            )

    def _check_codes(self, codes: Tensor) -> None:
        shape = list(codes.shape)
        if len(shape) != 3 or codes.is_floating_point() or codes.dtype == torch.bool:
            raise ValueError(f"codes are {codes.dtype} {shape}; they must be integers [clips, steps, codebooks]")
        self.check_codebooks(shape[2])
        check_codes(codes, self.vocab_size)


class CodeDecoder:
    """Decodes the codes of a clip as they come. All that `push` and `finish` return, one after the other, is `decode`
    of the whole, however the steps were cut, but for the rounding of float32 (1e-5 of the loudest sample).

    What later codes can still change is held back. A push costs what decoding its steps costs, and again the few dozen
    steps at most whose sound reaches into them; time and memory do not grow with what was pushed before.
    """

    def __init__(self, tokenizer: AudioTokenizer, streams: list[Stream]) -> None:
        self.tokenizer = tokenizer
        self.streams = streams
        self.batch = 0
        self.steps = 0  # pushed
        self.samples = 0  # given
        self.home = torch.device("cpu")

    def push(self, codes: Tensor) -> Tensor:
        """Codes of the next steps, [B, t >= 0, K] -> the samples that are sure by now, float32 [B, C, s >= 0].

        Raises:
            ValueError: no integers of this shape, a code that does not exist.
        """
        self.tokenizer._check_codes(codes)
        self.batch, self.home = len(codes), codes.device
        self.steps += codes.shape[1]
        return self._run(codes if codes.shape[1] else None, last=False)

    def finish(self) -> Tensor:
        """The samples that are still missing, float32 [B, C, s]; nothing is pushed any more."""
        rest = self._run(None, last=True)
        return _filled(rest, rest.shape[-1] + self.steps * self.tokenizer.hop - self.samples)

    @torch.no_grad()
    def _run(self, codes: Tensor | None, last: bool) -> Tensor:
        device = self.tokenizer.device
        with torch.autocast(device.type, enabled=False):
            x = None
            if codes is not None:
                x = self.tokenizer._latents(codes.to(device, torch.long).transpose(1, 2))
            for stream in self.streams:
                x = stream.push(x, last)
        if x is None:
            return torch.zeros(self.batch, self.tokenizer.channels, 0, device=self.home)
        self.samples += x.shape[-1]
        return x.to(self.home)


def _filled(waves: Tensor, samples: int) -> Tensor:
    """Waves with silence at the end. Transposed convolutions of an odd stride (DAC at 24 kHz) give a few samples less
    than the steps stand for."""
    return torch.nn.functional.pad(waves, (0, samples - waves.shape[-1]))
