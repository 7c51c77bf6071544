"""What a frozen image tokenizer is, whichever library its model comes from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..image.pictures import nearest_sizes
from ..pretrained import Frozen


class ImageTokenizer(Frozen, ABC):
    """Images in [-1, 1] <-> codes or latents on a grid that is `factor` times coarser, both by a frozen model.

    The model is in evaluation mode, in float32 (half precision changes codes) and without gradients; surrounding
    autocast does not reach it. Values come back on the device of the input, whatever the tokenizer's own.

    Shapes: B images, C channels, H x W pixels, h = H / factor, w = W / factor, c values of a latent.

    Attributes:
        discrete: whether `encode` gives codes.
        channels: C.
        factor: pixels for each code or latent, along each side.
        vocab_size: number of codes; only where `discrete`.
        dim: c; only where not `discrete`.
        model: the library's module.

    Args:
        model: a module of the library's class; it is changed in place.

    Raises:
        ValueError: the model's images have other channels on the way out than on the way in.
    """

    library: ClassVar[str]  # the package that defines and loads the model
    levels: ClassVar[str]  # the entry of its config with an item for each resolution: each but the first halves sides
    discrete: ClassVar[bool]
    vocab_size: int
    dim: int

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.config = model.config
        self.channels: int = self.config.in_channels
        self.factor = 2 ** (len(getattr(self.config, self.levels)) - 1)
        if self.config.out_channels != self.channels:
            raise ValueError(
                f"{type(model).__name__} reads {self.channels} channels and writes {self.config.out_channels}; "
                "a tokenizer must write what it reads"
            )

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes, long [B, h, w], or latents, float32 [B, h, w, c], of images, float [B, C, H, W] in [-1, 1].

        Raises:
            ValueError: no float [B, C, H, W], another number of channels, a side that is no multiple of `factor`.
        """
        self._check_images(x)
        with torch.autocast(self.device.type, enabled=False):
            return self._encode(x.to(self.device, torch.float32)).to(x.device)

    @torch.no_grad()
    def decode(self, values: Tensor) -> Tensor:
        """Images, float32 [B, C, H, W], clamped to [-1, 1], of codes or latents as `encode` gives them.

        Raises:
            ValueError: another shape or dtype than those of `encode`, a code that does not exist.
        """
        self._check_values(values)
        dtype = torch.long if self.discrete else torch.float32
        with torch.autocast(self.device.type, enabled=False):
            return self._decode(values.to(self.device, dtype)).clamp(-1, 1).to(values.device)

    @abstractmethod
    def _encode(self, x: Tensor) -> Tensor:
        """`encode` without checks."""

    @abstractmethod
    def _decode(self, values: Tensor) -> Tensor:
        """`decode` without checks; may leave [-1, 1]."""

    def _check_images(self, x: Tensor) -> None:
        if x.dim() != 4 or not x.is_floating_point():
            raise ValueError(f"images are {x.dtype} {list(x.shape)}; they must be float [images, channels, H, W]")
        if x.shape[1] != self.channels:
            raise ValueError(f"images have {x.shape[1]} channels; this tokenizer's have {self.channels}")
        size, factor = list(x.shape[2:]), self.factor
        if any(side == 0 or side % factor for side in size):
            raise ValueError(
                f"images have size {size}; both sides must be multiples of the tokenizer's factor {factor}, "
                f"and {nearest_sizes(size, factor)}"
            )

    def _check_values(self, values: Tensor) -> None:
        shape = list(values.shape)
        if not self.discrete:
            if len(shape) != 4 or shape[-1] != self.dim or not values.is_floating_point():
                raise ValueError(f"latents are {values.dtype} {shape}; they must be float [images, h, w, {self.dim}]")
            return
        if len(shape) != 3 or values.is_floating_point() or values.dtype == torch.bool:
            raise ValueError(f"codes are {values.dtype} {shape}; they must be integers [images, h, w]")
        wrong = (values < 0) | (values >= self.vocab_size)
        if wrong.any():
            raise ValueError(f"a code is {int(values[wrong][0])}; it must be one of 0..{self.vocab_size - 1}")
