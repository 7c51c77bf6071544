"""Generation: how blocks are drawn."""

from .configuration import UnimodalARGenerationConfig
from .mixin import UnimodalARGenerationMixin

__all__ = ["UnimodalARGenerationConfig", "UnimodalARGenerationMixin"]
