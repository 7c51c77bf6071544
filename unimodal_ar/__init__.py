"""unimodal_ar: one autoregressive backbone for images, video, audio and time series, behind modality adapters."""

from transformers import AutoConfig, AutoModel

from .backbone import UnimodalARDecoder
from .configuration import UnimodalARConfig, UnimodalARDecoderConfig
from .generation import UnimodalARGenerationConfig
from .layout import ORDERS, Layout, register_order
from .modeling import UnimodalARForGeneration, UnimodalAROutput
from .noise import SampleNoise
from .segment import Segment, collate

__version__ = "0.1.0"

# Without `exist_ok`: should transformers ever ship a type of these names, that must be an error.
AutoConfig.register(UnimodalARDecoderConfig.model_type, UnimodalARDecoderConfig)
AutoConfig.register(UnimodalARConfig.model_type, UnimodalARConfig)
AutoModel.register(UnimodalARDecoderConfig, UnimodalARDecoder)
AutoModel.register(UnimodalARConfig, UnimodalARForGeneration)

__all__ = [
    "ORDERS",
    "Layout",
    "SampleNoise",
    "Segment",
    "UnimodalARConfig",
    "UnimodalARDecoder",
    "UnimodalARDecoderConfig",
    "UnimodalARForGeneration",
    "UnimodalARGenerationConfig",
    "UnimodalAROutput",
    "__version__",
    "collate",
    "register_order",
]
