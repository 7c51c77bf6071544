"""Frozen tokenizers: images or clips <-> codes or latents of a trained autoencoder of diffusers or transformers."""

from __future__ import annotations

from .base import ImageTokenizer
from .loading import TOKENIZERS, load_tokenizer, load_video_tokenizer
from .preflight import reconstruction_psnr
from .timing import Timing
from .video import VIDEO_TOKENIZERS, VideoTokenizer

__all__ = [
    "TOKENIZERS",
    "VIDEO_TOKENIZERS",
    "ImageTokenizer",
    "Timing",
    "VideoTokenizer",
    "load_tokenizer",
    "load_video_tokenizer",
    "reconstruction_psnr",
]
