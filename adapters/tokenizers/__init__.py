"""Frozen image tokenizers: pixels <-> the codes or latents of a trained autoencoder of diffusers or transformers."""

from __future__ import annotations

from .base import ImageTokenizer
from .loading import TOKENIZERS, load_tokenizer
from .preflight import reconstruction_psnr

__all__ = ["TOKENIZERS", "ImageTokenizer", "load_tokenizer", "reconstruction_psnr"]
