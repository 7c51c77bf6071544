"""Single clips: from whatever holds them to frames of one size, rate and number of channels."""

from __future__ import annotations

import math
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..image.pictures import to_picture, to_pixels
from .reader import TOLERANCE, open_video
from .sampling import VideoClip, available, clip_rate, sample_clip

# Weights of red, green and blue in grey, in 65536ths (ITU-R BT.601), which add up to 1: grey stays as it is.
GREY = torch.tensor([19595, 38470, 7471], dtype=torch.int32)


def open_clip(
    raw: Any,
    name: str,
    fps: float | None = None,
    frames: int | None = None,
    start: float = 0.0,
    least: int = 1,
    stride: int = 1,
) -> VideoClip:
    """One clip, in its own size.

    Args:
        raw: a video file's path, a VideoClip, or a uint8 array or tensor [T, H, W] or [T, H, W, C], C = 1 or 3.
        name: how messages call what has no name.
        fps: frames a second of the clip. None: the file's or the VideoClip's own. Arrays have this rate already.
        frames: how many to take, from `start` on; None: all.
        start: seconds.
        least: fewer frames than `frames` are an error below this many.
        stride: with fps None, every stride-th frame is taken of what tells a rate of its own.

    Raises:
        ValueError: anything else, a negative start, a clip that is too short, a file that cannot be read; the message
            names it.
        ImportError: a path, and no package that reads videos.
    """
    if not 0 <= start < math.inf:
        raise ValueError(f"start is {start} s; it must be a number >= 0")
    if isinstance(raw, (str, os.PathLike)):
        with open_video(raw) as reader:
            there = available(reader, clip_rate(reader.fps, fps, stride, reader.name), start)
            count = max(least, there if frames is None else min(there, frames))
            return sample_clip(reader, count, fps, start, stride=stride)
    clip = raw if isinstance(raw, VideoClip) else _from_array(raw, name, fps)
    rate = fps if clip.fps is None else clip_rate(clip.fps, fps, stride, clip.name or name)
    if rate is None and start:
        raise ValueError(f"{clip.name or name} has no fps, so start, {start} s, is not known; it must be 0")
    if rate is None:
        shown = torch.arange(len(clip.frames))
    else:  # as `VideoReader.frames_at`
        own = clip.fps or rate
        times = start + torch.arange(int(len(clip.frames) * rate / own) + 2, dtype=torch.float64) / rate
        shown = ((times + min(TOLERANCE, 0.5 / own)) * own).long()
        shown = shown[shown < len(clip.frames)]
    if len(shown) < least:
        raise ValueError(
            f"{clip.name or name} is too short: from {start:g} s on it has {len(shown)} frames, and must have {least}"
        )
    return VideoClip(clip.frames[shown[:frames]], rate, clip.name or name)


def to_frames(clip: VideoClip, size: tuple[int, int], channels: int) -> Tensor:
    """uint8 [T, H, W, channels]. Frames of another size are resized (bicubic, antialiased) so that they just cover
    `size`, and what is over is cut off equally on both sides; those of that size stay as they are, bit for bit. Colours
    become grey by BT.601, grey is three equal channels."""
    frames = clip.frames.cpu()
    if frames.shape[-1] > channels:
        frames = ((frames.int() * GREY).sum(-1, keepdim=True) + 0x8000 >> 16).byte()
    if tuple(frames.shape[1:3]) != size:
        fitted = [to_pixels(to_picture(frame), size, frames.shape[-1], clip.name) for frame in frames]
        frames = torch.from_numpy(np.stack(fitted))
    return frames.expand(-1, -1, -1, channels).contiguous()


def _from_array(raw: Any, name: str, fps: float | None) -> VideoClip:
    if not isinstance(raw, (np.ndarray, Tensor)):
        raise ValueError(f"{name} is a {type(raw).__name__}; a clip is a path, a VideoClip or a uint8 array")
    if str(raw.dtype).removeprefix("torch.") != "uint8":
        raise ValueError(f"{name} has dtype {raw.dtype}; frames must be uint8, 0..255")
    frames = torch.from_numpy(np.ascontiguousarray(raw)) if isinstance(raw, np.ndarray) else raw.detach()
    return VideoClip(frames[..., None] if frames.dim() == 3 else frames, fps, name)
