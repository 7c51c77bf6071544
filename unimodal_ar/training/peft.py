"""Layers of PEFT in recipes: `peft: {method: lora, r: 8, alpha: 16}`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from transformers.pytorch_utils import Conv1D

from .. import lora
from ..modeling import UnimodalARForGeneration
from ..schema import Strict, parse
from .source_set import tells

PROMPT = "backbone.soft_prompt"


class Method(Strict):
    """What all methods have. Of each the `method` is its name in recipes.

    Args:
        modules_to_save: what beside the body is trained in full (names of `new_modules`: embeddings, heads); the rest
            stays as it is. None: all of it. Without init_from their weights are new, and all must be trained.
    """

    method: ClassVar[str]
    modules_to_save: list[str] | None = None

    @property
    def of_model(self) -> dict[str, Any]:
        """What the method has the model's configuration say."""
        return {"freeze_backbone": True}

    def put_into(self, model: UnimodalARForGeneration) -> str:
        """Puts into a model's frozen body what is trained in its place; returns what that is, in words."""
        raise NotImplementedError


class PromptTuning(Method):
    """Learned vectors in front of every sequence (arXiv 2104.08691): the body reads them as it does what a sequence
    begins with, and stays as it is. They are a part of the model (`UnimodalARConfig.soft_prompt`) and saved with what
    is beside its body, for there is nothing to merge them into; PEFT's tools do not know them.

    Args:
        length: how many, positions that every sequence is longer by.
    """

    method = "prompt"
    length: PositiveInt = 16

    @property
    def of_model(self) -> dict[str, Any]:
        return {**super().of_model, "soft_prompt": self.length}

    def put_into(self, model: UnimodalARForGeneration) -> str:
        return f"{self.length} vectors in front of every sequence"


class Layers(Method):
    """Layers of PEFT in linear maps of the body.

    Args:
        target: which linear maps of the backbone's body get layers: "backbone", all of them (attention and MLP; not
            experts that are kept as one tensor), or those whose names end in one of these ("q_proj", "mlp.c_proj",
            "layers.0.self_attn.v_proj").
    """

    target: Literal["backbone"] | Annotated[list[str], Field(min_length=1)] = "backbone"

    def config(self, targets: list[str], transposed: bool) -> Any:
        """The `peft.PeftConfig` of layers in `targets`; `transposed`: these are GPT-2's maps, [in, out]."""
        raise NotImplementedError

    def put_into(self, model: UnimodalARForGeneration) -> str:
        maps = lora.linear_maps(model)
        wanted = list(maps) if self.target == "backbone" else _chosen("target", self.target, list(maps))
        self.check({name: maps[name] for name in wanted})
        lora.insert(model, self.config(wanted, all(isinstance(maps[name], Conv1D) for name in wanted)))
        return f"Layers of {type(self).__name__} in {len(wanted)} maps of the backbone"

    def check(self, maps: dict[str, Any]) -> None:
        """Raises ValueError where a map is not of a size that the method takes."""


class LoRA(Layers):
    """W x + (alpha / r) B A x with A [r, in] and B [out, r] (arXiv 2106.09685).

    Args:
        r: rank.
        alpha: scale, as a multiple of 1/r.
        dropout: the probability that a value of x is left out, in training.
    """

    method = "lora"
    r: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    dropout: float = Field(0.0, ge=0, lt=1)

    def config(self, targets: list[str], transposed: bool) -> Any:
        return self._lora(targets, transposed)

    def _lora(self, targets: list[str], transposed: bool, **more: Any) -> Any:
        from peft import LoraConfig

        shape: dict[str, Any] = {"r": self.r, "lora_alpha": self.alpha, "lora_dropout": self.dropout}
        return LoraConfig(target_modules=targets, fan_in_fan_out=transposed, **shape, **more)


class DoRA(LoRA):
    """LoRA on the directions of W's rows, whose lengths are trained beside it (arXiv 2402.09353)."""

    method = "dora"

    def config(self, targets: list[str], transposed: bool) -> Any:
        return self._lora(targets, transposed, use_dora=True)


class IA3(Layers):
    """A factor for every output of a map, or for every input (arXiv 2205.05638).

    Args:
        feedforward: of which maps the inputs are scaled: names as in `target`. (The paper: the MLP's second.)
    """

    method = "ia3"
    feedforward: list[str] = []

    def config(self, targets: list[str], transposed: bool) -> Any:
        from peft import IA3Config

        scaled = _chosen("feedforward", self.feedforward, targets)
        return IA3Config(target_modules=targets, feedforward_modules=scaled, fan_in_fan_out=transposed)


class VeRA(Layers):
    """W x + b * B (d * A x) with random A [r, in] and B [out, r], the same for all maps, and trained vectors d [r] and
    b [out] of each (arXiv 2310.11454). A and B are saved with them: what a generator draws may change with torch.

    Args:
        r: rank; much larger than LoRA's, for a vector is all that a map trains.
        d: what all values of the vectors d begin with. (b begins with 0.)
        dropout: the probability that a value of x is left out, in training.
        key: seed of A and B.
    """

    method = "vera"
    r: PositiveInt = 256
    d: float = 0.1
    dropout: float = Field(0.0, ge=0, lt=1)
    key: NonNegativeInt = 0

    def config(self, targets: list[str], transposed: bool) -> Any:
        from peft import VeraConfig

        shape: dict[str, Any] = {"r": self.r, "d_initial": self.d, "vera_dropout": self.dropout}
        shape |= {"projection_prng_key": self.key, "save_projection": True}
        return VeraConfig(target_modules=targets, fan_in_fan_out=transposed, **shape)


class LoHa(Layers):
    """W + (alpha / r) (B1 A1) * (B2 A2), the product of elements: a rank of up to r^2 (arXiv 2108.06098).

    Args:
        r: rank of each factor.
        alpha: scale, as a multiple of 1/r.
    """

    method = "loha"
    r: PositiveInt = 8
    alpha: PositiveFloat = 8.0

    def config(self, targets: list[str], transposed: bool) -> Any:
        from peft import LoHaConfig

        return LoHaConfig(target_modules=targets, r=self.r, alpha=cast(int, self.alpha))


class LoKr(Layers):
    """W plus (alpha / r) times a Kronecker product, whose larger factor has rank r (arXiv 2309.14859).

    Args:
        r: rank; from half of that factor's longer side on, the factor is whole.
        alpha: scale, as a multiple of 1/r.
    """

    method = "lokr"
    r: PositiveInt = 8
    alpha: PositiveFloat = 8.0

    def config(self, targets: list[str], transposed: bool) -> Any:
        from peft import LoKrConfig

        return LoKrConfig(target_modules=targets, r=self.r, alpha=cast(int, self.alpha))


class OFT(Layers):
    """W times an orthogonal matrix with blocks of one size on its diagonal (arXiv 2306.07280).

    Args:
        block_size: of the blocks; must divide the inputs of every map.
    """

    method = "oft"
    block_size: PositiveInt = 32

    def check(self, maps: dict[str, Any]) -> None:
        for name, module in maps.items():
            features = module.weight.shape[0] if isinstance(module, Conv1D) else module.in_features
            if features % self.block_size:  # PEFT would take another size
                raise ValueError(
                    f"peft.block_size is {self.block_size}; it must divide the {features} inputs of {name}"
                )

    def config(self, targets: list[str], transposed: bool) -> Any:
        from peft import OFTConfig

        return OFTConfig(target_modules=targets, oft_block_size=self.block_size, use_cayley_neumann=False)


class HRA(Layers):
    """W times a product of r Householder reflections (arXiv 2405.17484).

    Args:
        r: how many; even, so that they begin as the identity.
    """

    method = "hra"
    r: PositiveInt = Field(8, multiple_of=2)

    def config(self, targets: list[str], transposed: bool) -> Any:
        from peft import HRAConfig

        return HRAConfig(target_modules=targets, r=self.r)


METHODS: dict[str, type[Method]] = {
    kind.method: kind for kind in (LoRA, DoRA, IA3, VeRA, LoHa, LoKr, OFT, HRA, PromptTuning)
}


def parse_peft(recipe: Any) -> Method | None:
    """The options of the section `peft` of a `recipe.Recipe`, or None.

    Raises:
        ValueError: a key is wrong, or there is no trained backbone that stays as it is.
    """
    section, backbone = recipe.peft, recipe.model.backbone
    if section is None:
        return None
    pretrained = isinstance(backbone, dict) and "pretrained" in backbone
    if not pretrained and recipe.init_from is None:
        raise ValueError("peft is set, and the backbone's weights are random; it needs init_from, or a pretrained one")
    for key in ("dtype", "quantization"):
        if pretrained and recipe.init_from is not None and backbone.get(key) not in (None, "float32"):
            raise ValueError(
                f"model.backbone.{key} is {backbone[key]!r}; with init_from the body is that of its model, in float32, "
                "so leave the key out"
            )
    if pretrained and (backbone.get("ablation") is not None or backbone.get("freeze") is False):
        key = "freeze" if backbone.get("ablation") is None else "ablation"
        raise ValueError(
            f"model.backbone.{key} is {backbone[key]!r}; with peft the pretrained backbone itself stays frozen, so "
            "leave the key out"
        )
    method = section.get("method")
    if method not in list(METHODS):
        raise ValueError(f"peft.method is {method!r}; known methods are {sorted(METHODS)}")
    return parse(METHODS[method], {key: value for key, value in section.items() if key != "method"}, "peft")


def insert(model: UnimodalARForGeneration, options: Method, new: bool = False) -> None:
    """Puts what `options` trains into a model's frozen body, and freezes what is not to be trained beside it.

    Args:
        model: of a configuration that says what `options.of_model` does.
        new: what is beside the body has new weights.

    Raises:
        ValueError: a name of a map or of a module is none, or new weights would stay as they are.
    """
    beside = [name for name in model.new_modules() if not name.startswith((lora.BODY, PROMPT))]
    trained = beside if options.modules_to_save is None else options.modules_to_save
    for name in trained:
        if name not in beside:
            raise ValueError(f"peft.modules_to_save has {name!r}; beside its backbone this model has {beside}")
    left = [name for name in beside if name not in trained]
    if new and left:
        raise ValueError(
            f"peft.modules_to_save leaves out {left}, whose weights are new (random) without init_from; they must be "
            "trained, so list them or leave the key out"
        )
    for name in beside:
        model.get_submodule(name).requires_grad_(name in trained)
    told = options.put_into(model)
    if not tells():
        return
    counts = [sum(x.numel() for x in model.parameters() if x.requires_grad or every) for every in (False, True)]
    stay = f"; {', '.join(left)} stay as they are" if left else ""
    print(f"{told}; {counts[0]:,} of {counts[1]:,} parameters are trained ({counts[0] / counts[1]:.2%}){stay}")


def _chosen(key: str, ends: list[str], names: list[str]) -> list[str]:
    """Those of `names` that end in one of `ends`, whole parts at a time."""
    for end in ends:
        if not any(f".{name}".endswith(f".{end}") for name in names):
            there = sorted({".".join(name.split(".")[-2:]) for name in names})
            raise ValueError(f"peft.{key} has {end!r}, with which no linear map's name ends; there are {there}")
    return [name for name in names if any(f".{name}".endswith(f".{end}") for end in ends)]
