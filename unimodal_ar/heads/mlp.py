"""Hidden layers before a linear map: an MLP where one layer is too little."""

from __future__ import annotations

from torch import nn

from ..schema import MLPOptions

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


class HiddenLayers(nn.Sequential):
    """[..., size] -> [..., W]: the hidden layers that `options` describe; without any it is the identity.

    Attributes:
        width: W, what the linear map behind them reads.
    """

    def __init__(self, size: int, options: MLPOptions | None) -> None:
        layers: list[nn.Module] = []
        if options is not None:
            for _ in range(options.layers):
                layers += [
                    nn.Linear(size, options.width),
                    ACTIVATIONS[options.activation](),
                    nn.Dropout(options.dropout),
                ]
                size = options.width
        super().__init__(*layers)
        self.width = size
