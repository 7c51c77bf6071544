"""Pretrained bodies in recipes: `model.backbone: {pretrained: ..., freeze: true}`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import model_validator
from transformers import AutoConfig, BitsAndBytesConfig, PreTrainedConfig
from transformers.utils.import_utils import is_bitsandbytes_available

from ..body_source import own_source
from ..configuration import UnimodalARConfig, UnimodalARDecoderConfig
from ..fingerprint import fingerprint, read_body
from ..modeling import UnimodalARForGeneration
from ..places import folder_of
from ..schema import Strict


class Quantization(Strict):
    """How bitsandbytes keeps the linear maps of a frozen body (QLoRA, arXiv 2305.14314). Its 4 and 8 bits work on CUDA
    devices, and, slowly, on CPUs (from 0.46 on).

    Args:
        bits: 4 or 8 of each weight.
        kind: of 4 bits: "nf4", for weights that are normally distributed, or "fp4".
        double: of 4 bits: keep their scales in 8 bits, too.
        compute: the dtype that 4 bits are unpacked to for matrix products.
    """

    bits: Literal[4, 8] = 4
    kind: Literal["nf4", "fp4"] = "nf4"
    double: bool = True
    compute: Literal["float32", "bfloat16", "float16"] = "bfloat16"

    def config(self) -> BitsAndBytesConfig:
        """What transformers is told.

        Raises:
            ImportError: bitsandbytes is not there.
            ValueError: it has nothing for the devices that are.
        """
        from transformers.integrations.bitsandbytes import validate_bnb_backend_availability

        if not is_bitsandbytes_available():
            raise ImportError(
                "model.backbone.quantization needs bitsandbytes: pip install -U bitsandbytes (or leave it out; with "
                "model.backbone.dtype bfloat16 the body takes half the memory of float32)"
            )
        try:
            validate_bnb_backend_availability(raise_exception=True)
        except RuntimeError as error:
            raise ValueError(
                f"model.backbone.quantization cannot be had here: {' '.join(str(error).split())}"
            ) from None
        if self.bits == 8:
            return BitsAndBytesConfig(load_in_8bit=True)
        return BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.kind,
            bnb_4bit_use_double_quant=self.double,
            bnb_4bit_compute_dtype=self.compute,
        )


Kernel = Literal["eager", "sdpa", "flex_attention", "flash_attention_2", "flash_attention_3", "flash_attention_4"]


class PretrainedBody(Strict):
    """A pretrained backbone as a recipe writes it.

    Args:
        pretrained: folder or id on the Hub of a transformers model, or "package:NAME" for the folder of an installed
            package; of a `...ForCausalLM` its body is used.
        revision: on the Hub; None: the newest.
        gguf_file: the file in it, where it holds GGUF.
        freeze: leave the body as it is; else it is trained with the rest.
        dtype: of a frozen body's weights: "float32", "bfloat16", "float16", or "auto", as they are stored. What is
            trained is in float32.
        attn_implementation: the attention's kernel: "eager", "sdpa", "flex_attention", or one of FlashAttention's where
            that is installed; None: transformers' choice.
        quantization: how a frozen body's linear maps are quantised when they are loaded; None: they are not.
        ablation: what stands in its place, to see what the pretraining is worth (arXiv 2406.16964): "random_init": the
            same body with new weights; "one_attention_layer": one layer of attention of its width and number of heads,
            without an MLP, which is trained; "none": nothing, embeddings go to the heads. None: the body itself.
    """

    pretrained: str
    revision: str | None = None
    gguf_file: str | None = None
    freeze: bool = True
    dtype: Literal["float32", "bfloat16", "float16", "auto"] = "float32"
    attn_implementation: Kernel | None = None
    quantization: Quantization | None = None
    ablation: Literal["random_init", "one_attention_layer", "none"] | None = None

    @model_validator(mode="after")
    def _as_it_is(self) -> PretrainedBody:
        for key, plain in (("dtype", "float32"), ("quantization", None)):
            if getattr(self, key) != plain and (not self.freeze or self.ablation is not None):
                other = "freeze is false" if not self.freeze else f"ablation is {self.ablation!r}"
                raise ValueError(f"{key} is for a frozen pretrained body; {other}, so it must be left out")
        if self.attn_implementation is not None and self.ablation == "none":
            raise ValueError(
                "attn_implementation is set and ablation is 'none'; there is no attention, so leave it out"
            )
        if self.quantization is not None and self.gguf_file is not None:
            raise ValueError(
                "quantization is of weights that are not quantised; gguf_file names some that are, so leave one out"
            )
        return self

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
        if self.attn_implementation is not None:
            config._attn_implementation = self.attn_implementation
        if self.ablation in (None, "random_init"):
            return config
        body = config.get_text_config()
        shape: dict[str, Any] = {"hidden_size": body.hidden_size, "num_attention_heads": body.num_attention_heads}
        if self.ablation == "one_attention_layer":
            shape["attn_implementation"] = self.attn_implementation
            return UnimodalARDecoderConfig(num_hidden_layers=1, mlp="none", **shape)
        return UnimodalARDecoderConfig(num_hidden_layers=0, norm="none", qk_norm=None, position="none", **shape)

    def fingerprint(self) -> str:
        """Of the pretrained weights, which are read for it (also where an ablation stands in their place)."""
        return fingerprint(read_body(self.pretrained, **self._place).state_dict())

    def model(self, config: UnimodalARConfig) -> UnimodalARForGeneration:
        """The model of `config`, whose backbone is this one, before training: what is trained is in float32.

        Raises:
            ImportError, ValueError: it cannot be quantised here, see `Quantization`.
        """
        if self.ablation is not None:
            return UnimodalARForGeneration(config)
        loading: dict[str, Any] = {"dtype": self.dtype, **self._place}
        if self.attn_implementation is not None:
            loading["attn_implementation"] = self.attn_implementation
        if self.quantization is not None:
            loading["quantization_config"] = self.quantization.config()
        model = UnimodalARForGeneration.from_backbone(
            self.pretrained, config.modalities, self.freeze, config.soft_prompt, **loading
        )
        for parameter in model.parameters():
            if parameter.requires_grad:  # whose updates would be lost in 8 bits of mantissa
                parameter.data = parameter.data.float()
        return model


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
