"""Training: one loop for every recipe."""

from .ema import EMA
from .trainer import UnimodalARTrainer, collate_segments

__all__ = ["EMA", "UnimodalARTrainer", "collate_segments"]
