"""Frozen decoders over a stream: parts that take their input piece by piece and give what is sure by then.

A codec's decoder is a chain of convolutions and of at most one part that remembers, an LSTM or a causal transformer.
The latter keep their state. Convolutions are run again over the pieces that the next outputs see.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# Places of the longest input that a field is looked for in: eight times what the widest published decoder sees.
LONGEST = 256


class Stream(ABC):
    """A part of a decoder, over the input of one stream."""

    @abstractmethod
    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        """The next places of the input, [B, channels, n], or None: none. Returns the outputs that are sure by now,
        [B, channels, m], or None: none. `last`: nothing comes after these, so that all outputs are sure."""


@dataclass(frozen=True)
class Field:
    """Which outputs a place of the input can change.

    Place i, whose own outputs begin at i * hop, changes those from i * hop - ahead up to i * hop + reach, excluded.
    """

    hop: int
    ahead: int
    reach: int


@torch.no_grad()
def measure_field(module: nn.Module, channels: int, hop: int) -> Field | None:
    """The field of a stack of convolutions from [B, channels, n] to about n * hop outputs; None: a place changes
    outputs without bound (normalisation over time), or farther than can be looked for.

    Half of an input is NaN, and so is everything that depends on it, however weakly. Halves, since what one place
    changes has gaps (dilation), and may seem to end where a gap meets an edge. It runs in float64 on the CPU, where
    convolutions are summed as they are written: fast ones spread NaN to what does not depend on it.
    """
    module = copy.deepcopy(module).to("cpu", torch.float64)
    length = 32
    while length <= LONGEST:
        middle = length // 2
        x = torch.zeros(2, channels, length, dtype=torch.float64)
        x[0, :, middle:] = torch.nan
        x[1, :, : middle + 1] = torch.nan
        later, earlier = module(x).isnan().any(1)
        first, last = int(later.nonzero()[0]), int(earlier.nonzero()[-1])
        if 0 < first and last < len(later) - 1:
            return Field(hop, middle * hop - first, last + 1 - middle * hop)
        length *= 2
    return None


class ConvStream(Stream):
    """A stack of convolutions, whose padding counts at the stream's two ends only.

    Args:
        module: [B, channels, n] -> [B, channels, about n * hop].
        field: of the module; None: nothing is sure before the last place.
    """

    def __init__(self, module: nn.Module, field: Field | None) -> None:
        self.module = module
        self.field = field
        self.kept: Tensor | None = None  # places from `first` on
        self.first = 0
        self.given = 0  # outputs that have been returned

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is not None:
            self.kept = x if self.kept is None else torch.cat([self.kept, x], -1)
        if self.kept is None:
            return None
        hop = self.field.hop if self.field else 0  # without one, `first` stays 0
        places = self.first + self.kept.shape[-1]
        sure = self._sure(places)
        if (last and self.given == places * hop > 0) or (not last and self.given >= sure):
            return None
        outputs = self.module(self.kept)[..., self.given - self.first * hop :]
        if not last:
            outputs = outputs[..., : sure - self.given]
        self.given += outputs.shape[-1]
        self._forget()
        return outputs

    def _sure(self, places: int) -> int:
        """How many outputs no place beyond so many can change."""
        if self.field is None:
            return 0
        # Padding that mirrors the first places lets these change outputs they are not near to.
        if places * self.field.hop < self.field.ahead + self.field.reach:
            return 0
        return places * self.field.hop - self.field.ahead

    def _forget(self) -> None:
        """Drops the places that change no output which is still to be given."""
        if self.field is None or self.kept is None:
            return
        # Place i reaches up to i * hop + reach; what was dropped, and so padded, must not reach `given`.
        first = max((self.given - self.field.reach) // self.field.hop + 1, self.first)
        self.kept = self.kept[..., first - self.first :]
        self.first = first


class LSTMStream(Stream):
    """An LSTM with a shortcut over it, [B, channels, n] -> the same shape; its state goes from piece to piece."""

    def __init__(self, lstm: nn.LSTM) -> None:
        self.lstm = lstm
        self.state: tuple[Tensor, Tensor] | None = None

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is None:
            return None
        frames = x.permute(2, 0, 1)
        outputs, self.state = self.lstm(frames, self.state)
        return (outputs + frames).permute(1, 2, 0)


class TransformerStream(Stream):
    """A causal transformer of transformers, [B, channels, n] -> the same shape, over its key-value cache."""

    def __init__(self, transformer: nn.Module) -> None:
        self.transformer = transformer
        self.cache: Any = None

    def push(self, x: Tensor | None, last: bool) -> Tensor | None:
        if x is None:
            return None
        output = self.transformer(x.transpose(1, 2), past_key_values=self.cache, use_cache=True)
        self.cache = output.past_key_values
        return output.last_hidden_state.transpose(1, 2)
