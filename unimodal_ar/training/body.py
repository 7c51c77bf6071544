"""Pretrained bodies in recipes: `model.backbone: {pretrained: ..., freeze: true}`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoConfig, PreTrainedConfig

from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..modeling import UnimodalARForGeneration
from ..schema import Strict


class PretrainedBody(Strict):
    """A pretrained backbone as a recipe writes it.

    Args:
        pretrained: folder or id on the Hub of a transformers model; of a `...ForCausalLM` its body is used.
        revision: on the Hub; None: the newest.
        gguf_file: the file in it, where it holds GGUF.
        freeze: leave the body as it is; else it is trained with the rest.
        ablation: what stands in its place, to see what the pretraining is worth (arXiv 2406.16964): "random_init": the
            same body with new weights; "one_attention_layer": one layer of attention of its width and number of heads,
            without an MLP, which is trained; "none": nothing, embeddings go to the heads. None: the body itself.
    """

    pretrained: str
    revision: str | None = None
    gguf_file: str | None = None
    freeze: bool = True
    ablation: Literal["random_init", "one_attention_layer", "none"] | None = None

    @property
    def _place(self) -> dict[str, Any]:
        """What transformers is told of where the weights are."""
        return {key: value for key in ("revision", "gguf_file") if (value := getattr(self, key)) is not None}

    @property
    def frozen(self) -> bool:
        return self.freeze and self.ablation in (None, "random_init")

    def config(self) -> PreTrainedConfig:
        """The configuration of the backbone; raises OSError where there is none."""
        config = AutoConfig.from_pretrained(self.pretrained, **self._place)
        if self.ablation in (None, "random_init"):
            return config
        body = config.get_text_config()
        shape: dict[str, Any] = {"hidden_size": body.hidden_size, "num_attention_heads": body.num_attention_heads}
        if self.ablation == "one_attention_layer":
            return UnimodalARDecoderConfig(num_hidden_layers=1, mlp="none", **shape)
        return UnimodalARDecoderConfig(num_hidden_layers=0, norm="none", qk_norm=None, position="none", **shape)

    def model(self, config: UnimodalARConfig) -> UnimodalARForGeneration:
        """The model of `config`, whose backbone is this one, before training: in float32, as all that is trained."""
        if self.ablation is not None:
            return UnimodalARForGeneration(config)
        return UnimodalARForGeneration.from_backbone(
            self.pretrained, config.modalities, self.freeze, dtype=torch.float32, **self._place
        )
