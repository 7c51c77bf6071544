"""Waves -> log-mel spectrograms, and back by Griffin-Lim.

Shapes: R waves of S samples, F = S / hop frames, `bins` = n_fft // 2 + 1 frequencies, M mels.

Frame i shows the samples i * hop - before .. i * hop - before + n_fft - 1, where before = (n_fft - hop) // 2 and
there is silence on both sides of the wave: the middles of the frames are spread evenly over it, and F is exactly
S / hop. (This is how HiFi-GAN's frames lie, arXiv 2010.05646, but for its mirrored edges.)
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import fold, pad

from .clips import torchaudio

# Frames transformed at a time, which bounds the memory that a long wave takes.
FRAMES = 8192
# What is left of the windows at the outermost samples of a wave may be 0.
TINY = 1e-8
# Multiplicative updates of an inverse mel; more change the spectrum by less than is heard (measured in the tests).
UPDATES = 50


@dataclass(frozen=True)
class Frames:
    """How a wave is cut into frames.

    Args:
        n_fft: samples of a frame.
        win: samples of the (periodic) Hann window in its middle.
        hop: samples from one frame to the next.
    """

    n_fft: int
    win: int
    hop: int

    @property
    def before(self) -> int:
        """Samples of the first frame that lie before the wave."""
        return (self.n_fft - self.hop) // 2

    @property
    def after(self) -> int:
        """Samples of the last frame that lie behind the wave."""
        return self.n_fft - self.hop - self.before

    @property
    def overlap(self) -> int:
        """How many frames before a frame have samples in common with it."""
        return -(-self.n_fft // self.hop) - 1

    def window(self, device: torch.device) -> Tensor:
        """[n_fft]."""
        rest = self.n_fft - self.win
        return pad(torch.hann_window(self.win, device=device), (rest // 2, rest - rest // 2))

    def spectra(self, wave: Tensor) -> Tensor:
        """Samples as they lie under the frames, [R, (F - 1) * hop + n_fft], -> complex [R, F, bins]."""
        return torch.fft.rfft(wave.unfold(-1, self.n_fft, self.hop) * self.window(wave.device))

    def overlap_add(self, spectra: Tensor) -> Tensor:
        """Complex [R, F, bins] -> [R, (F - 1) * hop + n_fft], the sum of the frames, windowed once more."""
        return self._sum(torch.fft.irfft(spectra, self.n_fft) * self.window(spectra.device))

    def envelope(self, frames: int, device: torch.device) -> Tensor:
        """[(F - 1) * hop + n_fft]: what `overlap_add` has to be divided by, the sum of the squared windows."""
        return self._sum(self.window(device).square().expand(1, frames, -1))[0].clamp(min=TINY)

    def _sum(self, frames: Tensor) -> Tensor:
        length = (frames.shape[1] - 1) * self.hop + self.n_fft
        return fold(frames.transpose(1, 2), (1, length), (1, self.n_fft), stride=(1, self.hop))[:, 0, 0]


class MelScale:
    """Log-mel spectrograms: of the magnitudes (not their squares), with Slaney's scale and areas, as HiFi-GAN's.

    Args:
        sample_rate: samples a second.
        frames: how the wave is cut.
        n_mels: M.
        f_min, f_max: Hz, the ends of the lowest and the highest mel.
        log: of base e or 10.
        floor: magnitudes below it are raised to it.

    Raises:
        ValueError: a mel so narrow that no frequency falls into it.
        ImportError: torchaudio is missing.
    """

    def __init__(
        self,
        sample_rate: int,
        frames: Frames,
        n_mels: int,
        f_min: float,
        f_max: float,
        log: Literal["natural", "decimal"],
        floor: float,
    ) -> None:
        self.frames, self.n_mels, self.floor = frames, n_mels, floor
        self.base = 10.0 if log == "decimal" else torch.e
        bins = frames.n_fft // 2 + 1
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "At least one mel filterbank")  # an error, below
            self.filters: Tensor = torchaudio().functional.melscale_fbanks(
                bins, f_min, f_max, n_mels, sample_rate, norm="slaney", mel_scale="slaney"
            )  # [bins, M]
        empty = int((self.filters.amax(0) == 0).sum())
        if empty:
            raise ValueError(
                f"n_mels is {n_mels} with n_fft {frames.n_fft} at {sample_rate} Hz; {empty} mels are narrower than the "
                "distance of two frequencies, so it must be smaller, or n_fft larger"
            )
        self._inverse = torch.linalg.pinv(self.filters.double()).float()  # [M, bins]

    def log_mel(self, waves: Tensor) -> Tensor:
        """float32 [..., S], S a multiple of hop, -> [..., F, M]."""
        frames = self.frames
        flat = pad(waves.reshape(-1, waves.shape[-1]), (frames.before, frames.after))
        filters = self.filters.to(flat.device)
        count = waves.shape[-1] // frames.hop
        parts = []
        for start in range(0, count, FRAMES):
            end = (min(start + FRAMES, count) - 1) * frames.hop + frames.n_fft
            with torch.autocast(flat.device.type, enabled=False):
                parts.append(frames.spectra(flat[:, start * frames.hop : end]).abs() @ filters)
        return self._log(torch.cat(parts, 1)).unflatten(0, waves.shape[:-1])

    def magnitudes(self, log_mel: Tensor) -> Tensor:
        """[..., M] -> [..., bins] >= 0, whose mels are as near as can be in squares: the positive part of the
        least-squares solution, improved by multiplicative updates (Lee and Seung, NIPS 2000, equation 4)."""
        filters = self.filters.to(log_mel.device)
        mel = self.base**log_mel
        with torch.autocast(mel.device.type, enabled=False):
            found = (mel @ self._inverse.to(mel.device)).clamp(min=self.floor)
            wanted = mel @ filters.T
            for _ in range(UPDATES):
                found = found * wanted / ((found @ filters) @ filters.T).clamp(min=TINY)
        return found

    def _log(self, mel: Tensor) -> Tensor:
        mel = mel.clamp(min=self.floor)
        return mel.log10() if self.base == 10.0 else mel.log()


def griffin_lim(
    frames: Frames,
    magnitudes: Tensor,
    iterations: int,
    held: Tensor | None = None,
    silent: tuple[bool, bool] = (True, True),
    momentum: float = 0.99,
) -> Tensor:
    """Phases for magnitudes by the fast Griffin-Lim algorithm (Perraudin et al. 2013) from phases 0, as
    `torchaudio.functional.griffinlim(rand_init=False)` finds them.

    Args:
        frames: how the frames lie.
        magnitudes: [R, F, bins].
        iterations: how often phases are made consistent.
        held: complex [R, h, bins], the spectra of frames before these, which stay as they are and to which these are
            fitted.
        silent: whether there is silence before the first and after the last of the frames.
        momentum: 0 is the original algorithm (Griffin and Lim 1984).

    Returns:
        complex [R, F, bins] of these magnitudes.
    """
    known = 0 if held is None else held.shape[1]
    count = known + magnitudes.shape[1]
    envelope = frames.envelope(count, magnitudes.device)
    fixed = 0 if held is None else pad(frames.overlap_add(held), (0, magnitudes.shape[1] * frames.hop))
    rate = momentum / (1 + momentum)
    angles = torch.ones_like(magnitudes, dtype=torch.complex64)
    previous = torch.zeros_like(angles)
    for _ in range(iterations):
        wave = (pad(frames.overlap_add(magnitudes * angles), (known * frames.hop, 0)) + fixed) / envelope
        if silent[0]:
            wave[:, : frames.before] = 0
        if silent[1]:
            wave[:, wave.shape[1] - frames.after :] = 0
        rebuilt = frames.spectra(wave[:, known * frames.hop :])
        angles = rebuilt - rate * previous
        angles = angles / (angles.abs() + 1e-16)
        previous = rebuilt
    return magnitudes * angles


def slaney(frequency: float) -> float:
    """Hz -> mel, by Slaney's Auditory Toolbox: 200 / 3 Hz a mel up to 1000 Hz, logarithmic above."""
    if frequency < 1000:
        return frequency * 3 / 200
    return 15 + 27 * math.log(frequency / 1000) / math.log(6.4)
