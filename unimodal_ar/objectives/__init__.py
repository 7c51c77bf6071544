"""Objectives: what the model is asked to do with the next block."""

from .base import Objective
from .next_block import NextBlock

OBJECTIVES: dict[str, type[Objective]] = {"next_block": NextBlock}

__all__ = ["OBJECTIVES", "NextBlock", "Objective"]
