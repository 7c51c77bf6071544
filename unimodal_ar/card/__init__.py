"""Model cards: the README.md of a model's folder, written from what the folder itself holds and nothing else."""

from __future__ import annotations

from .facts import recipe_in
from .options import CardOptions
from .writing import card, check_card, options_of, standing_on, write_card

__all__ = ["CardOptions", "card", "check_card", "options_of", "recipe_in", "standing_on", "write_card"]
