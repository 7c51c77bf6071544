"""How far is one wave from another, and generated audio from real audio?

Shapes: S samples; any dimensions in front of it, clips and channels say.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import chain

import torch
from torch import Tensor, nn

from ..adapters.audio.clips import AudioClip, resample, to_channels, torchaudio
from .frechet import frechet_distance

WINDOW, HOP = 0.025, 0.010  # seconds
MELS = 64
RANGE = 80.0  # dB below the reference's loudest place at which differences are no longer heard, nor counted


def si_sdr(reference: Tensor, estimate: Tensor) -> Tensor:
    """Scale-invariant signal-to-distortion ratio in dB (Le Roux et al. 2019, arXiv 1811.02508, eq. 5), of waves whose
    means are taken off first: 10 log10(|a s|^2 / |a s - e|^2) with a = <e, s> / |s|^2. More is better; infinite where
    the estimate is the reference times a number. It compares samples, so a wave with the right spectrum and other
    phases, as Griffin-Lim's or a vocoder's, is far below 0 dB.

    Args:
        reference, estimate: [..., S], computed in float64.

    Returns:
        float64 [...]; minus infinity for an estimate without sound.

    Raises:
        ValueError: other shapes, or a reference without sound, for which no ratio is defined.
    """
    reference, estimate = _checked(reference, estimate)
    reference, estimate = (wave - wave.mean(-1, keepdim=True) for wave in (reference, estimate))
    power = reference.square().sum(-1, keepdim=True)
    if not bool((power > 0).all()):
        raise ValueError("reference has a wave without sound (all its samples are equal); it must have some")
    target = (estimate * reference).sum(-1, keepdim=True) / power * reference
    signal, noise = target.square().sum(-1), (target - estimate).square().sum(-1)
    return torch.where(signal > 0, 10 * torch.log10(signal / noise), -math.inf)


def log_mel_distance(reference: Tensor, estimate: Tensor, rate: int) -> Tensor:
    """Log-mel distance in dB: the root of the mean square difference of two log-mel spectrograms, over all their frames
    and bands. Less is better, phases do not matter.

    The spectrograms are 10 log10 of power in 64 mel bands (HTK's scale, 0 Hz to rate / 2; fewer where so many would
    leave bands empty) of Hann windows of 25 ms every 10 ms; what lies 80 dB or more below the reference's largest
    value is set to that in both.

    Args:
        reference, estimate: [..., S] with S >= 1, computed in float64.
        rate: samples a second.

    Returns:
        float64 [...].

    Raises:
        ValueError: other shapes, or a reference without sound.
        ImportError: torchaudio is missing.
    """
    reference, estimate = _checked(reference, estimate)
    spectra = [_mel_powers(wave, rate) for wave in (reference, estimate)]
    peak = spectra[0].amax((-1, -2), keepdim=True)
    if not bool((peak > 0).all()):
        raise ValueError("reference has a wave without sound (all its samples are 0); it must have some")
    floor = peak * 10 ** (-RANGE / 10)
    first, second = (10 * torch.log10(torch.maximum(powers, floor)) for powers in spectra)
    return (first - second).square().mean((-1, -2)).sqrt()


@torch.no_grad()
def frechet_audio_distance(
    real: Iterable[AudioClip | Tensor],
    generated: Iterable[AudioClip | Tensor],
    embedder: Callable[[Tensor], Tensor],
    rate: int,
) -> float:
    """Frechet audio distance (Kilgour et al. 2019, arXiv 1812.08466): the squared Frechet distance (see
    `frechet_distance`) between embeddings of real and of generated audio, of all frames of all clips taken together.

    Like FID it means nothing without its protocol (embedder, number and length of the clips), and shrinks as the number
    of frames grows. Nothing is downloaded: the embedder is the caller's.

    Args:
        real, generated: clips, which are brought to mono and `rate`; or float waves [S], which are at `rate` already.
        embedder: maps float32 [1, S] to [1, d], or [1, frames, d]. A module is put into evaluation mode meanwhile, and
            gets waves on the device of its weights.
        rate: samples a second that it takes.

    Raises:
        ValueError: an embedder that returns something else, fewer than two embeddings of either kind, another wave.
    """
    modes = [(part, part.training) for part in embedder.modules()] if isinstance(embedder, nn.Module) else []
    try:
        if isinstance(embedder, nn.Module):
            embedder.eval()
        found = [
            torch.cat([_embed(embedder, _mono(clip, rate, f"{name}[{place}]")) for place, clip in enumerate(clips)])
            for name, clips in (("real", real), ("generated", generated))
        ]
    finally:
        for part, training in modes:
            part.training = training
    return frechet_distance(found[0].numpy(), found[1].numpy())


def _checked(reference: Tensor, estimate: Tensor) -> tuple[Tensor, Tensor]:
    if reference.shape != estimate.shape or reference.dim() < 1 or reference.shape[-1] < 1:
        raise ValueError(
            f"estimate has shape {tuple(estimate.shape)} and reference {tuple(reference.shape)}; both must be the same "
            "[..., samples]"
        )
    return reference.double(), estimate.double()


def _mel_powers(waves: Tensor, rate: int) -> Tensor:
    """[..., S] -> [..., mels, frames]."""
    window, hop = max(2, round(WINDOW * rate)), max(1, round(HOP * rate))
    fft = 1 << (window - 1).bit_length()
    # A band of the lowest ones is narrower than a line of the spectrum where there are more than about fft / 8.
    mels = min(MELS, max(1, fft // 8))
    banks = torchaudio().functional.melscale_fbanks(fft // 2 + 1, 0.0, rate / 2, mels, rate).to(waves)
    padded = nn.functional.pad(waves.flatten(0, -2) if waves.dim() > 1 else waves[None], (fft // 2, fft // 2))
    shape = torch.hann_window(window, dtype=waves.dtype, device=waves.device)
    lines = torch.stft(padded, fft, hop, window, shape, center=False, return_complex=True)
    powers = banks.T @ lines.abs().square()
    return powers.unflatten(0, waves.shape[:-1]) if waves.dim() > 1 else powers[0]


def _mono(clip: AudioClip | Tensor, rate: int, name: str) -> Tensor:
    """[S] at `rate`."""
    if isinstance(clip, AudioClip):
        return resample(to_channels(clip.wave, 1, clip.name or name), clip.rate, rate)[0]
    if not isinstance(clip, Tensor) or clip.dim() != 1 or not clip.is_floating_point():
        told = f"{clip.dtype} of shape {tuple(clip.shape)}" if isinstance(clip, Tensor) else type(clip).__name__
        raise ValueError(f"{name} is {told}; it must be an AudioClip or a float wave [samples]")
    return clip.float()


def _embed(embedder: Callable[[Tensor], Tensor], wave: Tensor) -> Tensor:
    """[frames, d] float64 on the CPU."""
    if isinstance(embedder, nn.Module):
        weights = next(chain(embedder.parameters(), embedder.buffers()), wave)
        wave = wave.to(weights.device)
    values = embedder(wave[None])
    if not isinstance(values, Tensor) or values.dim() not in (2, 3) or len(values) != 1:
        found = list(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
        raise ValueError(f"embedder gave {found} for one wave; it must give [1, d] or [1, frames, d]")
    return values.flatten(0, -2).double().cpu()
