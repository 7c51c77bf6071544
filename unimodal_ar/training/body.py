"""Pretrained bodies in recipes: `model.backbone: {pretrained: ..., freeze: true}`."""

from __future__ import annotations

from typing import Any, Literal

import torch
from transformers import AutoConfig, PreTrainedConfig

from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..fingerprint import fingerprint, read_body
from ..modeling import UnimodalARForGeneration
from ..places import folder_of
from ..pretrained import own_source
from ..schema import Strict


class PretrainedBody(Strict):
    """A pretrained backbone as a recipe writes it.

    Args:
        pretrained: folder or id on the Hub of a transformers model, or "package:NAME" for the folder of an installed
            package; of a `...ForCausalLM` its body is used.
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
        config = AutoConfig.from_pretrained(folder_of(self.pretrained), **self._place)
        if self.ablation in (None, "random_init"):
            return config
        body = config.get_text_config()
        shape: dict[str, Any] = {"hidden_size": body.hidden_size, "num_attention_heads": body.num_attention_heads}
        if self.ablation == "one_attention_layer":
            return UnimodalARDecoderConfig(num_hidden_layers=1, mlp="none", **shape)
        return UnimodalARDecoderConfig(num_hidden_layers=0, norm="none", qk_norm=None, position="none", **shape)

    def fingerprint(self) -> str:
        """Of the pretrained weights, which are read for it (also where an ablation stands in their place)."""
        return fingerprint(read_body(self.pretrained, **self._place).state_dict())

    def model(self, config: UnimodalARConfig) -> UnimodalARForGeneration:
        """The model of `config`, whose backbone is this one, before training: in float32, as all that is trained."""
        if self.ablation is not None:
            return UnimodalARForGeneration(config)
        return UnimodalARForGeneration.from_backbone(
            self.pretrained, config.modalities, self.freeze, dtype=torch.float32, **self._place
        )


def refer_to_start(
    model: UnimodalARForGeneration,
    folder: str,
    source: UnimodalARForGeneration,
    body: PretrainedBody | None,
    layers: bool,
) -> None:
    """Lets a `model` with a frozen body that starts from `source`, of `folder`, say where its body is.

    Args:
        body: the pretrained one that the recipe names, or None.
        layers: those of PEFT will be put into it; so it must be somewhere, and be it in `folder`.

    Raises:
        ValueError: its body is another than that place's, or than `body`.
    """
    place = source.config.backbone_source
    if place is not None and body is not None and body.ablation is None and body.fingerprint() != place["fingerprint"]:
        raise ValueError(
            f"model.backbone.pretrained is {body.pretrained!r}, whose weights are not those that the model in "
            f"init_from, {folder!r}, was trained with; it must be the same body ({place['name_or_path']!r})"
        )
    if place is None and layers:
        place = own_source(folder, source.backbone.model)
    if place is not None and fingerprint(model.backbone.model.state_dict()) != place["fingerprint"]:
        raise ValueError(
            f"init_from is {folder!r}, whose backbone gets new weights from model.modalities (adaptive norms); a "
            "frozen one must stay as it is"
        )
    model.refer_to(place)


def with_language_model(config: Any, where: str, backbone: Any) -> Any:
    """The language model of an adapter's timestamps is the backbone, where no other one is named. (An ablation, too,
    reads what the pretrained one says.)

    Args:
        config: the adapter's section; what is wrong with it is its schema's to say.
        where: how messages name it.
        backbone: the model's section of that name.

    Raises:
        ValueError: the backbone is no pretrained one.
    """
    timestamps = config.get("timestamps") if isinstance(config, dict) else None
    if not isinstance(timestamps, dict) or timestamps.get("language_model") is not None:
        return config
    if not isinstance(backbone, dict) or "pretrained" not in backbone:
        raise ValueError(
            f"{where}.timestamps.language_model is missing, and model.backbone is no pretrained one that could take "
            "its place; it must be {pretrained: the folder or the id on the Hub of a language model}"
        )
    place = {key: backbone[key] for key in ("pretrained", "revision", "gguf_file") if key in backbone}
    return config | {"timestamps": timestamps | {"language_model": place}}
