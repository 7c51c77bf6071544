"""Models in other programs' formats: a language model of transformers, a program of torch, an ONNX graph."""

from __future__ import annotations

from .graph import export_forecaster
from .llama import export_llama
from .program import export_step

__all__ = ["export_forecaster", "export_llama", "export_step"]
