"""The image tokenizers of transformers that can decode. All were trained on images in [-1, 1], and give such."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .base import ImageTokenizer


class JanusTokenizer(ImageTokenizer):
    """`JanusVQVAE` (Wu et al. 2024; the tokenizer of LlamaGen, Sun et al. 2024), for images of any legal size.

    The original picks the codebook entry nearest in angle. transformers' encode, whose codes these are, picks the
    nearest in distance, which is the same where all entries have length 1; its decode gives them length 1.
    """

    library = "transformers"
    levels = "channel_multiplier"
    discrete = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.vocab_size = self.config.num_embeddings

    def _encode(self, x: Tensor) -> Tensor:
        codes = self.model.encode(x, return_dict=True).image_tokens
        return codes.view(len(x), *(side // self.factor for side in x.shape[2:]))

    def _decode(self, values: Tensor) -> Tensor:
        # The model's own decode does this, for square grids of config.num_patches only.
        entries = normalize(self.model.quantize.embedding(values), dim=-1).movedim(-1, 1)
        return self.model.decoder(self.model.post_quant_conv(entries))


class Emu3Tokenizer(ImageTokenizer):
    """`Emu3VQVAE` (Wang et al. 2024): a tokenizer of videos, by which an image is a clip of equal frames."""

    library = "transformers"
    levels = "channel_multiplier"
    discrete = True

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.vocab_size = self.config.codebook_size

    def _encode(self, x: Tensor) -> Tensor:
        sizes = torch.tensor([x.shape[2:]] * len(x))  # it cuts off each image's padding; there is none
        return torch.stack(self.model.encode(x, sizes, return_dict=True).image_tokens)

    def _decode(self, values: Tensor) -> Tensor:
        return self.model.decode(values)
