"""The tokenizers of diffusers. All take and give images in [-1, 1] (AutoencoderTiny's range inside is its own)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import ImageTokenizer


class VQModelTokenizer(ImageTokenizer):
    """`VQModel` (VQGAN, Esser et al. 2021): the codes are the indices that its quantizer picks.

    Its `scaling_factor` belongs to diffusion over the latents before they are quantised, and has no part in codes.
    """

    library = "diffusers"
    levels = "block_out_channels"
    discrete = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.vocab_size = self.config.num_vq_embeddings

    def _encode(self, x: Tensor) -> Tensor:
        latents = self.model.encode(x).latents
        _, _, (_, _, codes) = self.model.quantize(latents)
        return codes.view(len(x), *latents.shape[2:])

    def _decode(self, values: Tensor) -> Tensor:
        shape = (*values.shape, self.model.quantize.vq_embed_dim)
        if self.config.lookup_from_codebook:  # such a model's own decode looks codes up
            return self.model.decode(values, force_not_quantize=True, shape=shape).sample
        latents = self.model.quantize.get_codebook_entry(values, shape)
        return self.model.decode(latents, force_not_quantize=True).sample


class AutoencoderKLTokenizer(ImageTokenizer):
    """`AutoencoderKL` (Rombach et al. 2022): the latents are the mode of the posterior, normalised as its pipelines do:
    (z - shift_factor) * scaling_factor, or (z - latents_mean) / latents_std * scaling_factor where it has these."""

    library = "diffusers"
    levels = "block_out_channels"
    discrete = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.dim = self.config.latent_channels
        shift = self.config.latents_mean or [self.config.shift_factor or 0.0]
        self._shift = torch.tensor(shift, dtype=torch.float32)
        self._scale = self.config.scaling_factor / torch.tensor(self.config.latents_std or [1.0], dtype=torch.float32)

    def _encode(self, x: Tensor) -> Tensor:
        latents = self.model.encode(x).latent_dist.mode().movedim(1, -1)
        return (latents - self._shift.to(x.device)) * self._scale.to(x.device)

    def _decode(self, values: Tensor) -> Tensor:
        latents = values / self._scale.to(values.device) + self._shift.to(values.device)
        return self.model.decode(latents.movedim(-1, 1)).sample


class AutoencoderTinyTokenizer(ImageTokenizer):
    """`AutoencoderTiny` (TAESD): latents on the normalised scale of the AutoencoderKL it imitates."""

    library = "diffusers"
    levels = "encoder_block_out_channels"
    discrete = False

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.dim = self.config.latent_channels
        grows = self.config.upsampling_scaling_factor ** (len(self.config.decoder_block_out_channels) - 1)
        if grows != self.factor:
            raise ValueError(
                f"AutoencoderTiny shrinks images by {self.factor} and enlarges latents by {grows}; "
                "a tokenizer must do both by the same"
            )

    def _encode(self, x: Tensor) -> Tensor:
        latents = self.model.encode(x).latents.movedim(1, -1)
        return (latents - self.config.shift_factor) * self.config.scaling_factor

    def _decode(self, values: Tensor) -> Tensor:
        latents = values / self.config.scaling_factor + self.config.shift_factor
        return self.model.decode(latents.movedim(-1, 1)).sample
