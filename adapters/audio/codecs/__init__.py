"""Frozen audio tokenizers: waves <-> the codes of a codec of transformers, and these codes as elements."""

from __future__ import annotations

from .base import AudioTokenizer, CodeDecoder
from .codec import CodecCodec, CodecElements, codec_codec
from .loading import CODECS, load_codec

__all__ = ["CODECS", "AudioTokenizer", "CodeDecoder", "CodecCodec", "CodecElements", "codec_codec", "load_codec"]
