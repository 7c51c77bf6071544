"""Randomness for sampling that does not depend on the batch: sample i gets its own stream, a function of (seed, i).

A torch.Generator draws one stream for a whole batch, so that a sample changes with its neighbours, and a list of
generators needs a Python loop. Here draw k of sample i is a hash of (seed, i, k): vectorised, equal on every device.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's >> on int64 copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): a bijection of 64-bit words; int64 products wrap."""
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


class SampleNoise:
    """One random stream per sample.

    Args:
        seed: any integer.
        samples: [B] long, the number of each sample; equal (seed, number) means equal draws, whatever else is in
            the batch.
    """

    def __init__(self, seed: int, samples: Tensor) -> None:
        try:
            seed = operator.index(seed)
        except TypeError:
            raise ValueError(f"seed is {seed!r}; it must be an integer") from None
        base = _mix(torch.tensor(_signed(seed % (1 << 64)), device=samples.device))
        self.state = _mix(base ^ _mix(samples.long() * _GOLDEN + 1))

    @classmethod
    def from_generator(cls, generator: Any, samples: Tensor) -> SampleNoise:
        """Takes a single number from `generator` (None: torch's global one) as the seed, whatever the batch size; a
        SampleNoise is what it is."""
        if isinstance(generator, cls):
            return generator
        if not isinstance(generator, torch.Generator | None):
            kind = type(generator).__name__
            raise ValueError(f"generator is a {kind}; it must be a torch.Generator, a SampleNoise or None")
        device = "cpu" if generator is None else generator.device
        seed = torch.randint(-(1 << 62), 1 << 62, (), generator=generator, device=device)
        return cls(int(seed), samples)

    def child(self) -> SampleNoise:
        """Streams of their own, which may be drawn from any number of times without a trace in these."""
        other = self._of(_mix(self.state ^ _MIX_1))
        self.state = _mix(self.state + _GOLDEN)
        return other

    def numbered(self, number: int) -> SampleNoise:
        """The streams of that number, which leave no trace in these and do not depend on what is drawn from others."""
        return self._of(_mix(self.state ^ _mix(torch.tensor(number * _GOLDEN % (1 << 62), device=self.state.device))))

    def at(self, rows: Tensor, places: Tensor) -> SampleNoise:
        """A stream for each of k elements, at `places` [k] of the samples `rows` [k]; as `numbered`."""
        return self._of(_mix(self.state[rows] ^ _mix(places * _GOLDEN + 1)))

    @staticmethod
    def _of(state: Tensor) -> SampleNoise:
        streams = object.__new__(SampleNoise)
        streams.state = state
        return streams

    def uniform(self, shape: Sequence[int]) -> Tensor:
        """[B, ...] float64 in the open interval (0, 1)."""
        if shape[0] != len(self.state):
            raise ValueError(f"shape is {tuple(shape)}; its first size must be the number of samples {len(self.state)}")
        count = int(torch.tensor(shape[1:]).prod())
        steps = torch.arange(1, count + 1, device=self.state.device) * _GOLDEN
        words = _mix(self.state[:, None] + steps)
        self.state = _mix(self.state + _signed((count + 1) * _GOLDEN % (1 << 64)))
        return ((_shift_right(words, 12).double() + 0.5) * 2.0**-52).view(*shape)


Generator = torch.Generator | SampleNoise | None


def uniform(shape: Sequence[int], generator: Generator, device: torch.device) -> Tensor:
    """Uniform float64 noise in (0, 1) from whichever source of randomness the caller was given."""
    if isinstance(generator, SampleNoise):
        return generator.uniform(shape)
    where = device if generator is None else generator.device
    noise = torch.rand(tuple(shape), generator=generator, dtype=torch.float64, device=where).to(device)
    return noise.clamp_(min=2.0**-54)


def normal(shape: Sequence[int], generator: Generator, device: torch.device) -> Tensor:
    """Standard normal float64 noise from whichever source of randomness the caller was given."""
    return torch.special.ndtri(uniform(shape, generator, device))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generators, of the CPU and of `device`, as `seed` makes them; afterwards they are as before."""
    accelerators = [] if device.type == "cpu" else [device]
    with torch.random.fork_rng(accelerators, device_type=device.type if accelerators else "cuda"):
        torch.manual_seed(seed)
        yield
