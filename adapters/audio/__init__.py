"""Audio: waves, spectrograms and the codes of codecs as elements."""

from __future__ import annotations

from .adapter import AudioAdapter
from .clips import AudioClip
from .sources import AudioSource, read_audios

__all__ = ["AudioAdapter", "AudioClip", "AudioSource", "read_audios"]
