"""Images: pixels, patches, and the codes and latents of tokenizers as elements."""

from __future__ import annotations

from .adapter import ImageAdapter
from .sources import ImageSource, read_images

__all__ = ["ImageAdapter", "ImageSource", "read_images"]
