"""One autoregressive backbone for images, video, audio and time series, behind modality adapters.

To use a trained model: `pipelines.load(folder_or_id)`, or `Forecaster.from_pretrained` for time series. To build one:
`UnimodalARConfig`, `UnimodalARForGeneration` and `Segment`. To share it: `hub`. Raw data to segments: `adapters`.
"""

from transformers import AutoConfig, AutoModel

from . import adapters, hub, pipelines
from ._version import __version__
from .configuration import UnimodalARConfig, UnimodalARDecoderConfig
from .decoder import UnimodalARDecoder
from .forecasting import Forecaster
from .generation import UnimodalARGenerationConfig
from .layout import ORDERS, Layout, register_order
from .modeling import UnimodalARForGeneration, UnimodalAROutput
from .noise import SampleNoise
from .segment import Segment, collate

# Without `exist_ok`: should transformers ever ship a type of these names, that must be an error.
AutoConfig.register(UnimodalARDecoderConfig.model_type, UnimodalARDecoderConfig)
AutoConfig.register(UnimodalARConfig.model_type, UnimodalARConfig)
AutoModel.register(UnimodalARDecoderConfig, UnimodalARDecoder)
AutoModel.register(UnimodalARConfig, UnimodalARForGeneration)
# Not AutoModelForTimeSeriesPrediction: what it gives has a `forward` that takes past values and returns predictions of
# a horizon (TimesFM's), and it knows one class for a configuration. Ours takes segments of any modality, and a model of
# images has the same configuration; `Forecaster` is what forecasts.

__all__ = [
    "ORDERS",
    "Forecaster",
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
    "adapters",
    "collate",
    "hub",
    "pipelines",
    "register_order",
]
