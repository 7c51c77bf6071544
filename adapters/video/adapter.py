"""Videos as elements: codes of pixels, patches of pixels over frames, or what a frozen tokenizer has for them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from ...schema import parse
from ...segment import Grid, Segment
from ..base import Adapter, AdapterOptions, register_adapter
from ..pretrained import find_tokenizer
from ..tokenizers import ImageTokenizer, VideoTokenizer, load_video_tokenizer
from .clips import open_clip, to_frames
from .codecs import Elements, make_codec
from .sampling import VideoClip
from .writing import FPS, SUFFIXES, VideoWriter, film_strip, save_video, tiled

if TYPE_CHECKING:
    from PIL import Image

# What stands where an element of a segment is not observed.
UNKNOWN = 128


@register_adapter("video")
class VideoAdapter(Adapter):
    """Clips of one length and size <-> elements on the grid (steps, H / p, W / p), whose T axis is time; each step is t
    frames.

    `elements` says what an element is; `kind` is one of

    - "patches": the vector x / 127.5 - 1 of `patch` = [t, p, p], p x p pixels over t frames, frame by frame, row by
      row, channels innermost. Values [B, N, D], exact.
    - "levels": a code for each channel of each pixel (t = 1), as in `ImageAdapter`; for small clips. Values [B, N] with
      1 channel, [B, N, 3] with 3.
    - "tokenizer": the codes or latents that the frozen tokenizer `path` (see `load_video_tokenizer`) has; `patch` x
      `patch` latents are one vector. One of images has them for each frame (t = 1). One of videos joins frames, and is
      mostly causal: the first step is a single frame, each of the others t, so T is 1 + t * k; steps are then decoded
      together only. It is saved in a folder of its own beside the adapter.

    Attributes:
        tokenizer: or None.

    Args:
        size: pixels of a side, or [H, W]; a multiple of what an element is across.
        frames: T of the model's clips, whole steps: a multiple of t, or 1 + t * k.
        fps: frames a second; clips of another rate are brought to it: at each time the frame that is shown. None: the
            frames of a file are taken as `stride` says, whatever its rate.
        channels: 1 (grey) or 3 (RGB).
        elements: as above; patches [1, 8, 8] if not given, the tokenizer's if that is given.
        group: group x group neighbouring codes of a step are one element of group * group (* channels) codes, row by
            row.
        modality: name under which the model's configuration knows the videos.
        stride: with fps None, every stride-th frame is taken of a file, or of a VideoClip that has a rate.
        tokenizer: the tokenizer itself, instead of `elements.path`: an ImageTokenizer or VideoTokenizer, or a module
            that `load_video_tokenizer` takes.
        folder: where a relative `elements.path` is looked for first.

    Raises:
        ValueError: an illegal argument, or arguments that do not fit together.
        ImportError: a tokenizer's package is missing.
    """

    class Options(AdapterOptions):
        size: PositiveInt | tuple[PositiveInt, PositiveInt]
        frames: PositiveInt
        fps: float | None = Field(None, gt=0, allow_inf_nan=False)
        channels: Literal[1, 3] = 3
        elements: Elements = Field(discriminator="kind")
        group: PositiveInt = 1
        modality: str = Field("video", min_length=1)
        stride: PositiveInt = 1

        @model_validator(mode="after")
        def _one_rate(self) -> VideoAdapter.Options:
            if self.fps is not None and self.stride > 1:
                raise ValueError(
                    f"stride is {self.stride} and fps {self.fps}; frames are skipped where fps is None only"
                )
            return self

    options: Options
    suffixes: ClassVar[tuple[str, ...]] = SUFFIXES

    def __init__(
        self,
        size: int | tuple[int, int] | list[int],
        frames: int,
        fps: float | None = None,
        channels: int = 3,
        elements: Mapping[str, Any] | None = None,
        group: int = 1,
        modality: str = "video",
        stride: int = 1,
        *,
        tokenizer: ImageTokenizer | VideoTokenizer | nn.Module | None = None,
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        if elements is None:
            elements = {"kind": "patches", "patch": [1, 8, 8]} if tokenizer is None else {"kind": "tokenizer"}
        given: dict[str, Any] = {"size": size, "frames": frames, "fps": fps, "channels": channels, "stride": stride}
        given |= {"elements": elements, "group": group, "modality": modality}
        self.options = parse(self.Options, given, type(self).__name__)
        load = partial(load_video_tokenizer, folder=folder)
        families = (ImageTokenizer, VideoTokenizer)
        self.tokenizer = find_tokenizer(self.options.elements, "tokenizer", tokenizer, families, load)
        self._codec = make_codec(self.options.elements, self.size, self.channels, self.options.group, self.tokenizer)
        self._codec.grid(self.frames)  # which refuses what are no whole steps

    @classmethod
    def from_options(cls, options: Any, folder: Path | None) -> VideoAdapter:
        return cls(**options.model_dump(), folder=folder)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""
        size = self.options.size
        return (size, size) if isinstance(size, int) else size

    @property
    def frames(self) -> int:
        """T of the model's clips."""
        return self.options.frames

    @property
    def fps(self) -> float | None:
        return self.options.fps

    @property
    def stride(self) -> int:
        return self.options.stride

    @property
    def channels(self) -> int:
        return self.options.channels

    @property
    def step(self) -> int:
        """t, the frames of an element (but of the first, where a tokenizer is causal)."""
        return self._codec.time

    @property
    def joins_frames(self) -> bool:
        """Whether a tokenizer joins frames: a clip is then encoded and decoded as a whole only."""
        return self._codec.joins_frames

    @property
    def grid(self) -> Grid:
        """(steps, h, w): the elements of one of the model's clips."""
        return self._codec.grid(self.frames)

    @property
    def element(self) -> dict[str, Any]:
        return dict(self._codec.element)

    @property
    def dimensions(self) -> int:
        """T * H * W * C: what bits per dimension are counted by."""
        return self.frames * self.size[0] * self.size[1] * self.channels

    @property
    def needs_fit(self) -> bool:
        """False: no kind of elements is fitted to data."""
        return False

    def rate(self, own: float | None) -> float | None:
        """Frames a second at which a clip of `own` frames a second is taken; None: not known."""
        if self.fps is not None:
            return self.fps
        return None if own is None else own / self.stride

    def whole(self, frames: int) -> int:
        """The most frames, not more than `frames`, that are whole steps; 0 if none are."""
        return self._codec.timing.whole(frames)

    def frames_of(self, clip: Any, name: str = "the clip") -> Tensor:
        """uint8 [T, H, W, C]: all frames of one clip as `pixels` takes it, at the adapter's rate and size.

        Args:
            name: how messages call it, where it has no name.

        Raises:
            ValueError: a clip that cannot be read or does not fit; the message names the file.
        """
        return to_frames(open_clip(clip, name, self.fps, stride=self.stride), self.size, self.channels)

    def pixels(self, clips: Any, start: float = 0.0) -> Tensor:
        """Clips -> uint8 [B, T, H, W, C], the first T frames from `start` on, at the adapter's rate.

        Frames of another size are resized (bicubic, antialiased) until they just cover `size`, and what is over is cut
        off equally on both sides; those of that size are passed on bit for bit. With one channel colours become grey
        (BT.601), with three grey becomes RGB.

        Args:
            clips: a video file's path, a VideoClip, a uint8 array or tensor [T, H, W] or [T, H, W, C] (of the adapter's
                rate) or [B, T, H, W, C], or a list of clips.
            start: seconds.

        Raises:
            ValueError: a clip that cannot be read, does not fit or is too short; the message names the file, or its
                place.
        """
        found = [open_clip(*pair, self.fps, self.frames, start, self.frames, self.stride) for pair in _named(clips)]
        return torch.stack([to_frames(clip, self.size, self.channels) for clip in found])

    def encode(self, clips: Any, start: float = 0.0) -> Segment:
        """`encode_frames(pixels(clips, start))`."""
        return self.encode_frames(self.pixels(clips, start))

    def encode_frames(self, frames: Tensor) -> Segment:
        """uint8 [B, T, H, W, C], T any whole steps, -> values long [B, N] or [B, N, K], or float32 [B, N, D].

        Raises:
            ValueError: another dtype or shape.
        """
        shape, legal = tuple(frames.shape), (*self.size, self.channels)
        if frames.dtype != torch.uint8 or len(shape) != 5 or shape[2:] != legal or 0 in shape:
            raise ValueError(
                f"frames has dtype {frames.dtype} and shape {shape}; it must be torch.uint8 "
                f"[B, T, {', '.join(map(str, legal))}] with B and T >= 1"
            )
        grid = self._codec.grid(shape[1])
        return Segment(self.modality, self._codec.encode(frames), grid=grid)

    def decode_frames(self, segment: Segment) -> Tensor:
        """The inverse of `encode_frames`, for a segment of any length: uint8 [B, T, H, W, C], rounded and clamped.
        Elements that are not observed are mid-grey; where a tokenizer joins frames, it sees zeros in their place, which
        may show in frames beside them.

        Raises:
            ValueError: a segment of another grid or element, a code that does not exist, a value that is not finite.
        """
        self._codec.check(segment)
        values, steps = segment.values, segment.grid[0]
        if segment.observed is None:
            return self._codec.decode(values, steps)
        known = segment.whole_observed
        values = values.masked_fill(~(known if values.dim() == 2 else known[..., None]), 0)
        counts = torch.tensor(self._codec.timing.counts(steps), device=known.device)
        mask = known.unflatten(1, segment.grid).repeat_interleave(counts, 1)
        mask = mask.repeat_interleave(self._codec.step, 2).repeat_interleave(self._codec.step, 3)
        return self._codec.decode(values, steps).masked_fill(~mask[..., None], UNKNOWN)

    def decode(self, segment: Segment) -> list[VideoClip]:
        """A segment -> a clip, of the adapter's fps, for each example of the batch."""
        return [VideoClip(frames, self.fps) for frames in self.decode_frames(segment).cpu()]

    def grid_for(self, seconds: float | None = None) -> Grid:
        """The grid of clips of `seconds`, rounded up to whole steps; None: the adapter's.

        Raises:
            ValueError: no positive number, or the adapter's fps is None.
        """
        if seconds is None:
            return self.grid
        return (self._codec.timing.steps(self._frames_for(seconds)), *self.grid[1:])

    def steps_for(self, seconds: float, first: bool = True) -> int:
        """See `Adapter.steps_for`; where a tokenizer is causal, the first step is a single frame."""
        lead = self._codec.timing.lead if first else 0
        return lead + math.ceil((self._frames_for(seconds) - lead) / self.step)

    def _frames_for(self, seconds: float) -> int:
        if self.fps is None:
            raise ValueError(f"seconds is {seconds}, and this adapter's fps is None; leave seconds out, or set fps")
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 < seconds < math.inf:
            raise ValueError(f"seconds is {seconds!r}; it must be a positive number")
        return max(1, math.ceil(seconds * self.fps - 1e-6))  # less a rounding error

    def check_windows(self, sink: int) -> None:
        """Raises ValueError where the first step is unlike the others and does not begin every window."""
        if self._codec.timing.lead and self.step > 1 and not sink:
            raise ValueError(
                f"{self.modality!r} cannot be drawn window by window with sink {sink}: its tokenizer's first step is a "
                f"single frame and the others are {self.step}, so every window must begin with it; give a sink"
            )

    def complete(self, given: Any, mask: None = None, seconds: float | None = None) -> Segment:
        """Clips to be continued: their whole steps are kept, the rest is drawn.

        Args:
            given: the clips' beginnings as `pixels` takes them, but shorter; all of as many steps.
            mask: None; clips are completed at their end only.
            seconds: of the whole; None: the adapter's.

        Raises:
            ValueError: nothing to keep or nothing to draw, clips of different lengths, a mask.
        """
        if given is None or mask is not None:
            raise ValueError(f"{self.modality!r} takes no mask; give the clips' beginnings, which are all that is kept")
        grid = self.grid_for(seconds)
        timing = self._codec.timing
        whole = timing.frames(grid[0])
        found = [open_clip(*pair, self.fps, whole, stride=self.stride) for pair in _named(given)]
        lengths = sorted({timing.whole(len(clip.frames)) for clip in found})
        if len(lengths) > 1:
            raise ValueError(f"given has clips of {lengths} frames, in whole steps; all must have the same number")
        if not 0 < lengths[0] < whole:
            # Of a clip that is as long as the whole no more was read.
            count = f"{whole} frames or more" if lengths[0] else f"{min(len(clip.frames) for clip in found)} frames"
            raise ValueError(
                f"given has {count}; it must have at least {timing.least} and fewer than the whole, {whole}"
            )
        frames = [to_frames(clip, self.size, self.channels)[: lengths[0]] for clip in found]
        start = self.encode_frames(torch.stack(frames))
        values = start.values.new_zeros(len(frames), grid[0] * grid[1] * grid[2], *start.values.shape[2:])
        values[:, : start.num_elements] = start.values
        observed = (torch.arange(values.shape[1]) < start.num_elements).expand(len(values), -1)
        return Segment(self.modality, values, grid, observed=observed)

    def stream(self, segments: Iterable[Segment]) -> Iterator[list[VideoClip]]:
        """The new frames of the clips, as soon as the steps from their beginning are whole in all of the batch; where a
        tokenizer joins frames, all of them, once all steps are. All that is yielded, one after the other, is what
        `decode` makes of the last segment, if that is whole."""
        done = 0
        for segment in segments:
            self._codec.check(segment)
            rows, columns = segment.grid[1:]
            steps = segment.known_steps
            if steps > done and (steps == segment.grid[0] or not self.joins_frames):
                values = segment.values[:, done * rows * columns : steps * rows * columns]
                yield self.decode(Segment(self.modality, values, (steps - done, rows, columns)))
                done = steps

    def save(self, raw: Any, path: str | os.PathLike[str]) -> None:
        """Writes one .mp4 or .gif file, see `save_video`; several clips are tiled side by side.

        Args:
            raw: clips as `pixels` takes them, of any lengths.

        Raises:
            ValueError: wrong clips, another suffix, a folder that is missing.
        """
        save_video(self._plain(raw), path, self.fps)

    def save_stream(self, parts: Iterable[list[VideoClip]], path: str | os.PathLike[str]) -> Iterator[str]:
        """Writes what `stream` yields to an .mp4 file, which can be played at any moment but for its latest frame.

        Raises:
            ValueError: another suffix, a folder that is missing.
        """
        written = 0
        with VideoWriter(path, self.fps or FPS, growing=True) as writer:
            for clips in parts:
                frames = tiled(self._plain(clips))
                writer.write(frames)
                written += len(frames)
                yield f"{written} frames"

    def picture(self, raw: Any) -> Image.Image:
        """Clips as `pixels` takes them, of any lengths, as a film strip: a row for each, evenly spaced frames in it. No
        `stride` is made: what was drawn has been written frame by frame."""
        return film_strip([to_frames(open_clip(*pair, self.fps), self.size, self.channels) for pair in _named(raw)])

    def _plain(self, clips: Any) -> list[Tensor]:
        """All frames [T, H, W, C] of each clip."""
        return [self.frames_of(*pair) for pair in _named(clips)]


def _named(clips: Any) -> list[tuple[Any, str]]:
    """Clips, and how messages call those that have no name."""
    if getattr(clips, "ndim", 0) == 5:
        clips = list(clips)
    if not isinstance(clips, (list, tuple)):
        clips = [clips]
    if not clips:
        raise ValueError("the list of clips is empty; it must hold at least one")
    return [(raw, f"clip {place}") for place, raw in enumerate(clips)]
