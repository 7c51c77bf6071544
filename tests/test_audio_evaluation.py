"""Distances between waves, and between sets of clips, against independent implementations."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unimodal_ar.adapters.audio.clips import AudioClip
from unimodal_ar.evaluation.audio import frechet_audio_distance, log_mel_distance, si_sdr
from unimodal_ar.evaluation.frechet import frechet_distance

RATE = 8000


def tone(hertz: float = 440.0, seconds: float = 0.2, rate: int = RATE) -> Tensor:
    return torch.sin(2 * math.pi * hertz * torch.arange(round(seconds * rate)) / rate)


# ---- SI-SDR


def test_si_sdr_equals_torchmetrics() -> None:
    functional = pytest.importorskip("torchmetrics.functional.audio")
    reference = torch.randn(3, 2, 500) + 0.3
    estimate = reference * torch.tensor([0.5, -2.0, 1.0])[:, None, None] + 0.4 * torch.randn(3, 2, 500) - 0.7
    expected = functional.scale_invariant_signal_distortion_ratio(estimate.double(), reference.double(), zero_mean=True)
    torch.testing.assert_close(si_sdr(reference, estimate), expected, atol=1e-6, rtol=1e-6)


def test_si_sdr_of_known_noise() -> None:
    """Neither scale nor offset matter; noise a tenth as large as the signal, and orthogonal to it, is 20 dB below."""
    signal, noise = tone(500), tone(1000)
    assert float(si_sdr(signal, 0.3 * (signal + 0.1 * noise) + 2)) == pytest.approx(20, abs=1e-3)
    assert float(si_sdr(signal, 4 * signal)) > 120
    assert float(si_sdr(signal, torch.zeros_like(signal))) == -math.inf
    assert float(si_sdr(signal, noise)) < -60


# ---- log-mel distance


def test_log_mel_distance_equals_a_plain_one() -> None:
    """Frame by frame, band by band, with NumPy."""
    torchaudio = pytest.importorskip("torchaudio")
    waves = [0.1 * torch.randn(1000).double().cumsum(0) for _ in range(2)]
    banks = torchaudio.functional.melscale_fbanks(129, 0.0, RATE / 2, 32, RATE).double().numpy()
    window = np.zeros(256)
    window[28:228] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(200) / 200)
    spectra = []
    for wave in waves:
        padded = np.pad(wave.numpy(), 128)
        frames = np.stack([padded[start : start + 256] * window for start in range(0, 1001, 80)])
        spectra.append(np.abs(np.fft.rfft(frames)) ** 2 @ banks)
    floor = spectra[0].max() * 1e-8
    logs = [10 * np.log10(np.maximum(powers, floor)) for powers in spectra]
    expected = np.sqrt(np.mean((logs[0] - logs[1]) ** 2))
    assert float(log_mel_distance(waves[0], waves[1], RATE)) == pytest.approx(expected, rel=1e-6)
    batch = log_mel_distance(torch.stack(waves)[:, None], torch.stack(waves[::-1])[:, None], RATE)
    assert batch.shape == (2, 1) and float(batch[0, 0]) == pytest.approx(expected, rel=1e-6)


def test_log_mel_distance_in_decibels() -> None:
    noise = torch.randn(4000)
    assert float(log_mel_distance(noise, noise, RATE)) == 0
    assert float(log_mel_distance(noise, noise * 0.1, RATE)) == pytest.approx(20, abs=1e-4)
    assert float(log_mel_distance(noise, -noise, RATE)) == pytest.approx(0, abs=1e-4)  # a phase of 180 degrees
    # What is 80 dB below the loudest place is as good as nothing.
    silent, hiss = torch.cat([tone(), torch.zeros(1600)]), torch.cat([torch.zeros(1600), torch.randn(1600)])
    assert float(log_mel_distance(silent, silent + 1e-6 * hiss, RATE)) < 1e-3
    assert float(log_mel_distance(silent, silent + 1e-2 * hiss, RATE)) > 5


@pytest.mark.parametrize("rate", [1000, 8000, 9000, 16000, 20400, 22050, 24000, 44100, 48000])
def test_no_band_is_empty(rate: int) -> None:
    wave = torch.randn(rate // 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # torchaudio's of a band without a line
        assert float(log_mel_distance(wave, wave / 10, rate)) == pytest.approx(20, abs=1e-4)


def test_waves_that_cannot_be_compared() -> None:
    measures: list[Any] = [si_sdr, lambda one, other: log_mel_distance(one, other, RATE)]
    for measure in measures:
        with pytest.raises(ValueError, match=r"estimate has shape \(2, 5\) and reference \(2, 4\); both must be the"):
            measure(torch.ones(2, 4), torch.ones(2, 5))
        with pytest.raises(ValueError, match="reference has a wave without sound"):
            measure(torch.stack([tone(), 0 * tone()]), torch.stack([tone(), tone()]))


# ---- Frechet audio distance


class Frames(nn.Module):
    """Mean power and mean of every 100 samples; in training it does something else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, waves: Tensor) -> Tensor:
        frames = waves.unfold(1, 100, 100)
        found = torch.stack([frames.square().mean(-1), frames.mean(-1)], -1) * self.scale
        return torch.zeros_like(found) if self.training else found


def noises(count: int, spread: float, seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [spread * torch.randn(300 + 100 * (i % 3), generator=generator) for i in range(count)]


def test_frechet_audio_distance_is_of_all_frames() -> None:
    real, generated = noises(12, 1.0, 0), noises(9, 1.5, 1)
    module = Frames().train()
    found = frechet_audio_distance(real, generated, module, RATE)
    assert module.training and module.scale.grad is None
    module.eval()
    with torch.no_grad():
        frames = [torch.cat([module(wave[None])[0] for wave in waves]).numpy() for waves in (real, generated)]
    assert len(frames[0]) == 48 and found == pytest.approx(frechet_distance(*frames), rel=1e-6) and found > 0.5
    assert frechet_audio_distance(real, real, module, RATE) == pytest.approx(0, abs=1e-9)
    # A vector for each clip counts as one frame.
    whole = frechet_audio_distance(real, generated, lambda wave: module(wave).mean(1), RATE)
    with torch.no_grad():
        means = [np.stack([module(wave[None])[0].mean(0).numpy() for wave in waves]) for waves in (real, generated)]
    assert whole == pytest.approx(frechet_distance(*means), rel=1e-5)


def test_clips_are_brought_to_mono_and_rate() -> None:
    heard: list[Tensor] = []

    def embedder(wave: Tensor) -> Tensor:
        heard.append(wave)
        return torch.stack([wave.mean(1), wave.square().mean(1)], 1)

    waves = noises(2, 0.1, 0)
    stereo = [AudioClip(torch.stack([wave, 3 * wave]), RATE) for wave in waves]
    frechet_audio_distance([wave * 2 for wave in waves], stereo, embedder, RATE)
    for mono, mixed in zip(heard[:2], heard[2:], strict=True):
        torch.testing.assert_close(mono, mixed)
    heard.clear()
    frechet_audio_distance(waves, [AudioClip(tone(300)[None], RATE)] * 2, embedder, 2 * RATE)
    middle = slice(200, 2900)
    torch.testing.assert_close(heard[2][0, middle], tone(300, rate=2 * RATE)[middle], atol=1e-2, rtol=0)


def test_embedders_and_clips_that_do_not_fit() -> None:
    waves = noises(3, 1.0, 0)
    with pytest.raises(ValueError, match=r"embedder gave \[400\] for one wave; it must give \[1, d\] or"):
        frechet_audio_distance([waves[1]] * 2, waves, lambda wave: wave[0], RATE)
    with pytest.raises(ValueError, match=r"real\[1\] is torch.float32 of shape \(1, 300\); it must be an AudioClip or"):
        frechet_audio_distance([waves[0], waves[0][None]], waves, Frames(), RATE)
    with pytest.raises(ValueError, match=r"generated has shape \[1, 2\]"):
        frechet_audio_distance(waves, waves[:1], lambda wave: wave[:, :2], RATE)
