"""Objectives: what the model is asked to do with the next block."""

from .base import Objective
from .block_diffusion import BlockDiffusion
from .next_block import NextBlock

OBJECTIVES: dict[str, type[Objective]] = {"next_block": NextBlock, "block_diffusion": BlockDiffusion}

__all__ = ["OBJECTIVES", "BlockDiffusion", "NextBlock", "Objective"]
