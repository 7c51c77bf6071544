"""Audio as elements: codes of samples, patches of samples or of log-mel spectrograms, or codes of a frozen codec."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import pad

from ...schema import parse
from ...segment import Grid, Segment
from ..base import Adapter, AdapterOptions, register_adapter
from ..files import check_path
from ..pretrained import find_tokenizer
from .clips import (
    RATES,
    AudioClip,
    open_clips,
    resample,
    resampling_reach,
    to_channels,
    to_loudness,
)
from .codecs import AudioTokenizer, load_codec
from .continuing import continued, heard, kept_samples, redrawn, streamed
from .mels import MelElements, filled
from .parts import find_vocoder, make_codec
from .vocoders import Vocoder
from .wave_codec import WaveCodec
from .waveforms import Elements
from .writing import FILE, SUFFIXES, WaveWriter

if TYPE_CHECKING:
    from PIL import Image

# Seconds of silence between two clips in one file.
PAUSE = 0.5


@register_adapter("audio")
class AudioAdapter(Adapter):
    """Clips of one length <-> elements on the grid (steps, 1, W), whose T axis is time.

    A wave is float32 [C, S], 1 is full scale. Files are read at any rate and brought to the adapter's: mono is the mean
    of stereo, stereo is mono twice, and more channels are refused; `loudness` scales a clip, after that. Nothing is
    clipped before PCM is written; see `clips`.

    `elements` says what an element is; `kind` is one of

    - "mulaw": a code for each sample, see `MuLawElements` for what is lost. Values [B, N], or [B, N, K].
    - "waveform": the samples of a patch, [B, N, D], exact.
    - "mel": a patch of the log-mel spectrogram, [B, N, D], of which a vocoder or Griffin-Lim makes waves; see
      `MelElements`.
    - "codec": the codes of the frozen EnCodec, DAC or Mimi `path`, see `CodecElements`. It is saved in a folder of its
      own beside the adapter, and so is a vocoder.

    Attributes:
        tokenizer: the codec, or None.
        vocoder: or None.

    Args:
        sample_rate: samples a second.
        seconds: of the model's clips; rounded up to whole steps.
        channels: C, 1 or 2.
        elements: as above; mu-law codes if not given, the tokenizer's if that is given.
        loudness: dB below full scale (dBFS, of the root mean square) that every clip is scaled to, or less where its
            peak would pass 1; None: clips stay as loud as they are.
        modality: name under which the model's configuration knows the audio.
        tokenizer: the codec itself, instead of `elements.path`: an AudioTokenizer, or a module that `load_codec` takes.
        vocoder: likewise, instead of `elements.vocoder`: what `load_vocoder` takes.
        folder: where a relative path is looked for first.

    Raises:
        ValueError: an illegal argument, or arguments that do not fit together.
        ImportError: torchaudio is missing.
    """

    class Options(AdapterOptions):
        sample_rate: int = Field(ge=RATES[0], le=RATES[1])
        seconds: float = Field(gt=0, allow_inf_nan=False)
        channels: Literal[1, 2] = 1
        elements: Elements = Field(discriminator="kind")
        loudness: float | None = Field(None, le=0, allow_inf_nan=False)
        modality: str = Field("audio", min_length=1)

    options: Options
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def __init__(
        self,
        sample_rate: int,
        seconds: float,
        channels: int = 1,
        elements: Mapping[str, Any] | None = None,
        loudness: float | None = None,
        modality: str = "audio",
        *,
        tokenizer: AudioTokenizer | nn.Module | None = None,
        vocoder: Vocoder | nn.Module | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if elements is None:
            elements = {"kind": "mulaw"} if tokenizer is None else {"kind": "codec"}
        given = {"sample_rate": sample_rate, "seconds": seconds, "channels": channels, "elements": elements}
        given |= {"loudness": loudness, "modality": modality}
        self.options = parse(self.Options, given, type(self).__name__)
        found = self.options.elements
        if isinstance(found, MelElements):
            self.options = self.options.model_copy(update={"elements": filled(found, sample_rate)})
        load = partial(load_codec, folder=folder)
        self.tokenizer = find_tokenizer(found, "codec", tokenizer, AudioTokenizer, load)
        self.vocoder = find_vocoder(self.options.elements, vocoder, folder)
        self._codec = self._make_codec()

    @classmethod
    def from_options(cls, options: Any, folder: Path | None) -> AudioAdapter:
        return cls(**options.model_dump(), folder=folder)

    @property
    def sample_rate(self) -> int:
        return self.options.sample_rate

    @property
    def channels(self) -> int:
        return self.options.channels

    @property
    def step(self) -> int:
        """Samples of a step, the least that is encoded."""
        return self._codec.step

    @property
    def samples(self) -> int:
        """S of the model's clips, a multiple of `step`."""
        return self._steps(self.options.seconds) * self.step

    @property
    def seconds(self) -> float:
        """Of the model's clips."""
        return self.samples / self.sample_rate

    @property
    def grid(self) -> Grid:
        """Of the elements of one of the model's clips."""
        return self._codec.grid(self._steps(self.options.seconds))

    @property
    def element(self) -> dict[str, Any]:
        return dict(self._codec.element)

    @property
    def dimensions(self) -> int:
        """samples * channels: what bits per dimension are counted by."""
        return self.samples * self.channels

    @property
    def needs_fit(self) -> bool:
        """Whether a scale is still to be learned."""
        return self._codec.needs_fit

    @property
    def has_phases(self) -> bool:
        """Whether elements tell of phases, so that waves and not only their spectra come back."""
        return self._codec.has_phases

    def fit(self, waves: Iterable[Tensor]) -> None:
        """Learns the scale of the elements, their standard deviation and for mels their mean, from waves float32 [C, S]
        of any lengths (or [B, C, S]); one that is there is replaced.

        Raises:
            ValueError: elements without a scale, or silence only.
        """
        learned = self._codec.fitted(waves)
        if not learned:
            raise ValueError(f"elements.kind is {self.options.elements.kind!r}; only 'mel' and 'waveform' are fitted")
        elements = self.options.elements.model_copy(update=learned)
        self.options = self.options.model_copy(update={"elements": elements})
        self._codec = self._make_codec()

    def waves(self, clips: Any) -> list[Tensor]:
        """Clips -> waves float32 [C, S], S as it comes, at the adapter's rate, with its channels and its loudness.

        Args:
            clips: a clip as `open_clip` takes it (a path, a file's bytes, an AudioClip, a pair (array, rate) ...), or a
                list of clips.

        Raises:
            ValueError: a clip that cannot be read or mixed; the message names the file, or its place.
        """
        return [self._loud(wave) for wave in self._plain(open_clips(clips))]

    def chunks(self, wave: Tensor, overlap: float = 0.0) -> Tensor:
        """[C, S] of any length -> [n, C, samples]: windows of the model's length, one every `seconds - overlap`, the
        last one filled up with silence. None holds only what is in the one before.

        Args:
            overlap: seconds that a window has in common with the next.

        Raises:
            ValueError: an overlap that is negative or not shorter than a window.
        """
        hop = self.samples - round(overlap * self.sample_rate)
        if not 0 < hop <= self.samples:
            raise ValueError(
                f"overlap is {overlap} s; it must be at least 0 and less than the window, {self.seconds} s"
            )
        count = 1 + -(-max(wave.shape[1] - self.samples, 0) // hop)
        whole = pad(wave, (0, (count - 1) * hop + self.samples - wave.shape[1]))
        return whole.unfold(1, self.samples, hop).transpose(0, 1).contiguous()

    def encode(self, clips: Any) -> Segment:
        """Clips as `waves` takes them -> a segment of the adapter's length; shorter clips are followed by silence.

        Raises:
            ValueError: a longer clip, and whatever `waves` refuses.
        """
        return self.encode_waves(self._padded(self.waves(clips), self.samples))

    def encode_waves(self, waves: Tensor) -> Segment:
        """float32 [B, C, S], S a multiple of `step`, -> values long [B, N] or [B, N, K], or float32 [B, N, D].

        Raises:
            ValueError: another dtype or shape, or a scale that is still to be fitted.
        """
        shape = tuple(waves.shape)
        if waves.dtype != torch.float32 or waves.dim() != 3 or shape[1] != self.channels or 0 in shape:
            raise ValueError(
                f"waves has dtype {waves.dtype} and shape {shape}; it must be torch.float32 "
                f"[B, {self.channels}, samples] with B and samples >= 1"
            )
        if shape[2] % self.step:
            raise ValueError(f"waves has {shape[2]} samples; it must be a multiple of the elements' step, {self.step}")
        return Segment(self.modality, self._codec.encode(waves), grid=self._codec.grid(shape[2] // self.step))

    def decode_waves(self, segment: Segment) -> Tensor:
        """The inverse of `encode_waves`, for a segment of any length: float32 [B, C, steps * step]. Elements that are
        not observed are silence.

        Raises:
            ValueError: a segment of an impossible grid or another element, a code that does not exist, a value that is
                not finite.
        """
        return self._codec.decode(heard(self._codec, segment), segment.grid)

    def decode(self, segment: Segment) -> list[AudioClip]:
        """A segment -> a clip for each example of the batch."""
        return self._clips(self.decode_waves(segment))

    def grid_for(self, seconds: float | None = None) -> Grid:
        """The grid of clips of `seconds`, rounded up to whole steps; None: the adapter's.

        Raises:
            ValueError: no positive number.
        """
        return self._codec.grid(self._steps(self.options.seconds if seconds is None else seconds))

    def check_windows(self, sink: int) -> None:
        """Raises ValueError where a step takes several rows (a delay)."""
        rows = self._codec.grid(1)[0]
        if rows > 1:
            raise ValueError(
                f"{self.modality!r} cannot be drawn window by window: a step of it takes {rows} rows (a delay), so "
                "that the model ends each window as if it were the clip's end; make seconds or window such that a "
                "single window holds all"
            )

    def complete(
        self, given: Any, mask: Iterable[tuple[float, float]] | None = None, seconds: float | None = None
    ) -> Segment:
        """Clips to be continued, or to be drawn anew in places.

        Args:
            given: clips as `waves` takes them. Without a mask they are what the clips begin with, all of as many steps:
                every leading step that tells of nothing behind a prompt's end is kept, the rest is drawn.
            mask: list of (start, end) in seconds, of what is drawn anew; `given` is then the whole, followed by silence
                where it is shorter. Steps that tell of anything between are drawn, too, and so are the few samples that
                resampling mixes with it; it has no part in the loudness. (The codes of a codec that looks around, DAC
                say, tell near a mask or a prompt's end of the silence that stands there for what is not known.)
            seconds: of the whole; None: the adapter's.

        Raises:
            ValueError: a prompt of no whole step, or of all; clips that are too long, a mask that is no such list.
        """
        if given is None:
            raise ValueError("mask comes without given; drawing anew takes both, a clip and what to draw of it")
        clips, grid = open_clips(given), self.grid_for(seconds)
        reach = max(resampling_reach(clip.rate, self.sample_rate) for clip in clips)
        if mask is None:
            values, observed = continued(self._codec, self.waves(clips), grid, reach)
        else:
            samples = self._codec.steps(grid) * self.step
            kept = kept_samples(mask, samples, self.sample_rate, reach)
            waves = self._plain(clips)
            whole = self._padded(waves, samples).masked_fill(~kept, 0)
            shares = [float(kept[: wave.shape[1]].sum()) / samples for wave in waves]
            whole = torch.stack([self._loud(wave, share) for wave, share in zip(whole, shares, strict=True)])
            values, observed = redrawn(self._codec, whole, grid, kept)
        return Segment(self.modality, values, grid, observed=observed)

    def stream(self, segments: Iterable[Segment]) -> Iterator[list[AudioClip]]:
        """What is new of the clips, as soon as the steps from their beginning are there. All that is yielded, one after
        the other, is what `decode` makes of the last segment; for codecs, but for the rounding of float32."""
        for waves in streamed(self._codec, segments):
            yield self._clips(waves)

    def save(self, raw: Any, path: str | os.PathLike[str]) -> None:
        """Writes one .wav or .flac file (PCM16), whole or not at all: several clips follow each other, with half a
        second of silence between them. Samples beyond 1 are clipped, with a warning.

        Args:
            raw: clips as `waves` takes them.

        Raises:
            ValueError: wrong clips, another suffix, a folder that is missing.
        """
        check_path(path, FILE, SUFFIXES)
        pause = torch.zeros(self.channels, round(PAUSE * self.sample_rate))
        parts = [part for wave in self._plain(open_clips(raw)) for part in (pause, wave)][1:]
        AudioClip(torch.cat(parts, 1), self.sample_rate).save(path)

    def save_stream(self, parts: Iterable[list[AudioClip]], path: str | os.PathLike[str]) -> Iterator[str]:
        """Writes what `stream` yields for one clip to a .wav file, which is whole at any moment.

        Raises:
            ValueError: another suffix, a folder that is missing, several clips at once.
        """
        written = 0
        with WaveWriter(path, self.sample_rate, self.channels) as writer:
            for clips in parts:
                if len(clips) != 1:
                    raise ValueError(f"{path} is to hold a stream of {len(clips)} clips; it must be one")
                writer.write(clips[0].wave)
                written += clips[0].wave.shape[1]
                yield f"{written / self.sample_rate:.2f} s"

    def picture(self, raw: Any) -> Image.Image:
        """The log-mel spectrograms of clips as `waves` takes them, over seconds and Hz; several in a grid."""
        from .picture import picture

        return picture(self._plain(open_clips(raw)), self.sample_rate)

    def _steps(self, seconds: float) -> int:
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {seconds!r}; it must be a positive number")
        # Less a rounding error: 0.1 s of 8000 Hz are 800 samples.
        return max(1, math.ceil(seconds * self.sample_rate / self.step - 1e-6))

    def _plain(self, clips: list[AudioClip]) -> list[Tensor]:
        """`waves` at the loudness that they have."""
        rate, channels = self.sample_rate, self.channels
        return [resample(to_channels(clip.wave.cpu(), channels, clip.name), clip.rate, rate) for clip in clips]

    def _loud(self, wave: Tensor, share: float = 1.0) -> Tensor:
        loudness = self.options.loudness
        return wave if loudness is None else to_loudness(wave, loudness, share)

    def _padded(self, waves: list[Tensor], samples: int) -> Tensor:
        """[B, C, samples], with silence at the end."""
        longest = max(wave.shape[1] for wave in waves)
        if longest > samples:
            rate = self.sample_rate
            place = next(place for place, wave in enumerate(waves) if wave.shape[1] == longest)
            raise ValueError(
                f"clip {place} has {longest / rate:g} s; at most {samples / rate:g} s fit, so cut it with chunks()"
            )
        return torch.stack([pad(wave, (0, samples - wave.shape[1])) for wave in waves])

    def _clips(self, waves: Tensor) -> list[AudioClip]:
        return [AudioClip(wave, self.sample_rate) for wave in waves.cpu()]

    def _make_codec(self) -> WaveCodec:
        options = self.options
        return make_codec(options.elements, options.sample_rate, options.channels, self.tokenizer, self.vocoder)
