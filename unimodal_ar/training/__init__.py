"""Training: one loop for every recipe."""

from .trainer import UnimodalARTrainer, collate_segments

__all__ = ["UnimodalARTrainer", "collate_segments"]
