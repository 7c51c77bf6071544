"""Layers of PEFT (LoRA, say) in a frozen body: put in, written as a folder that PEFT reads too, and merged.

Such a folder holds `adapter_config.json` and `adapter_model.safetensors`, as PEFT writes them, beside the model's own
`config.json`. The weights are those of the layers and all that is beside the body, embeddings and heads say; the body
is where `config.backbone_source` says. There is no model.safetensors: what is trained has one place, so that no two
files can disagree, and any tool of PEFT's can read it.

Which body layers were trained over is checked by `from_pretrained` of the model and of `AutoPeftModel`. It cannot be by
`PeftModel.from_pretrained(base, folder)`: of a base PEFT asks no more than that shapes fit, so load that base by
`WithoutLayers.from_pretrained(folder)`, which does check.
"""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.hub import cached_file
from transformers.utils.peft_utils import find_adapter_config_file

NAME = "default"  # what PEFT calls layers that have no other name
PREFIX = "base_model.model."  # of PEFT's wrapper, before every name of a weight
BODY = "backbone.model."
SHARED = "base_model.vera_"  # VeRA's projections, which all layers share, in PEFT's files
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
QUANTIZED = ["IA3", "LORA", "OFT", "VERA"]  # types of layers that know packed weights
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
"""Arguments of `from_pretrained` that say where on the Hub, or in a folder, files are."""


class WithoutLayers:
    """What `AutoPeftModel` makes the base of: `base = WithoutLayers.from_pretrained(folder)`."""

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str], **kwargs: Any) -> Any:
        """The model of a folder that was saved with layers, without them."""
        return AutoModel.from_pretrained(folder, peft=False, **kwargs)


def linear_maps(model: Any) -> dict[str, nn.Module]:
    """The linear maps of the backbone's body by their names in the model: those of attention and MLP. Token tables are
    none; nor are maps of `new_modules`, such as those of adaptive norms."""
    new = tuple(f"{name}." for name in model.new_modules())
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, (nn.Linear, Conv1D)) and not f"{name}.".startswith(new)
    }


def insert(model: Any, config: Any) -> None:
    """Puts layers into the frozen body of `model`. They are trained, and what is beside the body stays as it is:
    trained, too, or not. Their dtype is that of what is beside the body.

    Args:
        config: a `peft.PeftConfig` whose target_modules are of the body.

    Raises:
        ValueError: the body is to be trained, or has layers, or PEFT has none of this kind for one of its maps (after
            which the model is of no use).
    """
    from peft import VeraConfig, VeraModel, inject_adapter_in_model

    if not model.config.freeze_backbone:
        raise ValueError("freeze_backbone is False; layers of PEFT go into a frozen body, so it must be True")
    if model.peft_layers is not None:
        raise ValueError("the model has layers of PEFT already; merge them (`unimodal-ar merge`) before others come")
    if is_quantized(model.backbone.model) and config.peft_type not in QUANTIZED:
        raise ValueError(
            f"PEFT cannot put layers of {type(config).__name__} into quantised weights, which are packed; it can with "
            f"{QUANTIZED}"
        )
    trained = {name: x.requires_grad for name, x in model.named_parameters() if not name.startswith(BODY)}
    config = copy.deepcopy(config)  # which PEFT completes
    packed = {name for name in ("is_loaded_in_4bit", "is_loaded_in_8bit") if getattr(model.backbone.model, name, False)}
    for name in packed:  # by which PEFT chooses layers for the maps of bitsandbytes
        setattr(model, name, True)
    try:  # which freezes all that is not its own
        if isinstance(config, VeraConfig):  # PEFT's function takes nothing that layers share; each has a reference here
            config.save_projection = False  # else every layer's state would hold them; `write` takes care of them
            VeraModel(model, config, NAME)
        else:
            inject_adapter_in_model(config, model, NAME)
    except (AttributeError, TypeError, ValueError) as error:  # of kinds (DoRA in 8 bits) and sizes of maps
        reason = " ".join(str(error).split())
        raise ValueError(f"PEFT cannot put layers of {type(config).__name__} into this backbone: {reason}") from None
    for name in packed:
        delattr(model, name)
    for parameter in model.parameters():
        if parameter.requires_grad:  # PEFT makes them of the body's dtype
            parameter.data = parameter.data.to(model.dtype)
    for projections in _projections(model).values():
        projections[NAME] = projections[NAME].to(model.dtype)
    for name, required in trained.items():
        model.get_parameter(name).requires_grad_(required)
    model.peft_layers = config
    model.train(model.training)


def is_quantized(body: Any) -> bool:
    return getattr(body, "hf_quantizer", None) is not None


def is_merged(model: Any) -> bool:
    """Whether PEFT has added layers to the weights of the body, in place."""
    return any(getattr(module, "merged", False) for module in model.backbone.model.modules())


def remove(folder: Path) -> None:
    """Removes what `write` wrote to `folder`, which a plain model takes the place of."""
    if (folder / CONFIG).is_file() and _config(folder, {}) is not None:
        for name in (CONFIG, WEIGHTS):
            (folder / name).unlink(missing_ok=True)


def body_state(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights of the body itself, by the names that they have in it, out of the `state` of the whole model."""
    names = {name: name.removeprefix(BODY) for name in state if name.startswith(BODY)}
    if model.peft_layers is not None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = {name for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)}
        own = tuple(f"{layer}." for layer in layers)
        names = {
            name: bare.replace(".base_layer.", ".")
            for name, bare in names.items()
            if not name.startswith(own) or name.partition(".base_layer.")[0] in layers
        }
    return {bare: state[name] for name, bare in names.items()}


def write(model: Any, folder: Path, home: str | os.PathLike[str] | None, state: Mapping[str, Tensor] | None) -> None:
    """Writes PEFT's two files of a model with layers to `folder`.

    Args:
        home: where the folder will be in the end, for PEFT's tools to find the base by; None: where it is.
        state: the whole model's, if at hand.
    """
    state = dict(state or model.state_dict())
    kept = _layers_of(model, state) | {name: x for name, x in state.items() if not name.startswith(BODY)}
    shared = {name: x[NAME] for name, x in _projections(model).items()}
    kept = {PREFIX + name: x for name, x in kept.items()} | shared
    whole = {name: x.detach().cpu().contiguous() for name, x in kept.items()}
    save_file(whole, folder / WEIGHTS, metadata={"format": "pt"})
    config = copy.deepcopy(model.peft_layers)
    if shared:
        config.save_projection = True
    config.inference_mode, config.target_modules = True, sorted(config.target_modules)
    config.modules_to_save = [name for name in model.new_modules() if not name.startswith(BODY)]
    config.base_model_name_or_path = str(Path(home or folder).absolute())
    config.auto_mapping = {"base_model_class": WithoutLayers.__name__, "parent_library": __name__}
    config.save_pretrained(folder)


def find(name: Any, given: Mapping[str, Any]) -> tuple[Any, dict[str, Tensor]] | None:
    """The `peft.PeftConfig` and the weights of a folder, or of an id on the Hub, that `write` filled; None: it is
    another. `given`: arguments of `from_pretrained`."""
    hub: Any = {key: given[key] for key in HUB if given.get(key) is not None}
    config = _config(name, hub)
    if config is None:
        return None
    weights = load_file(cast(str, cached_file(str(name), WEIGHTS, **hub)))  # PEFT's own would read a pickle, too
    config.inference_mode, config.modules_to_save = False, None  # they are no copies here, but the modules themselves
    return config, {key.removeprefix(PREFIX): x for key, x in weights.items()}


def _config(name: Any, hub: Mapping[str, Any]) -> Any:
    """The `peft.PeftConfig` of what `write` wrote, else None: PEFT's own folders say nothing of the body."""
    if name is None or find_adapter_config_file(name, **hub) is None:
        return None
    from peft import PeftConfig

    config: Any = PeftConfig.from_pretrained(str(name), **hub)
    return config if (config.auto_mapping or {}).get("parent_library") == __name__ else None


def beside_body(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in weights.items() if not name.startswith((BODY, SHARED))}


def fill(model: Any, weights: Mapping[str, Tensor]) -> None:
    """Gives the layers of `model` their `weights` (others are passed over).

    Raises:
        ValueError: they are of other layers.
        RuntimeError: of other shapes.
    """
    from peft import set_peft_model_state_dict

    layers = {name: x for name, x in weights.items() if name.startswith(BODY)}
    shared, projections = {name: x for name, x in weights.items() if name.startswith(SHARED)}, _projections(model)
    wanted = _layers_of(model, model.state_dict()).keys() | projections.keys()
    odd = sorted((layers.keys() | shared.keys()) ^ wanted)
    if odd:
        raise ValueError(
            f"{WEIGHTS} does not fit {CONFIG} and the backbone: {len(odd)} weights are in one of them only, the first "
            f"{odd[0]!r}"
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Specified to not load vera_A and vera_B")  # for here they come
        set_peft_model_state_dict(model, layers, NAME)
    for name, projection in projections.items():
        projection[NAME].copy_(shared[name])


def load(model: Any, folder: str | os.PathLike[str]) -> None:
    """Gives a model with layers, in place, the weights that such a model wrote to `folder`.

    Raises:
        ValueError: there are none, or they do not fit.
    """
    found = find(folder, {}) if (Path(folder) / CONFIG).is_file() else None
    if found is None:
        raise ValueError(f"{str(folder)!r} holds no {CONFIG}; it must be a checkpoint with layers of PEFT")
    theirs, ours = _computing(found[0]), _computing(model.peft_layers)
    for key in sorted(theirs.keys() | ours.keys()):
        if theirs.get(key) != ours.get(key):
            raise ValueError(
                f"{key} of the layers in {str(folder)!r} is {theirs.get(key)!r}; of the model's it is {ours.get(key)!r}"
            )
    fill(model, found[1])
    missing, unexpected = model.load_state_dict(beside_body(found[1]), strict=False)
    odd = [name for name in missing if not name.startswith(BODY)] + unexpected
    if odd:
        raise ValueError(f"{WEIGHTS} in {str(folder)!r} does not fit the model: {odd[0]!r} is in one of them only")


@torch.no_grad()
def merge(model: Any) -> None:
    """Adds the layers of `model` to its body, in place: a plain model of the same outputs remains, whose body is its
    own. (So it is saved with `include_backbone=True` alone.)

    Raises:
        ValueError: it has none, its body is quantised, or what is merged is not finite or computes something else.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    if model.peft_layers is None:
        raise ValueError("the model has no layers of PEFT; there is nothing to merge")
    if is_quantized(model.backbone.model):
        raise ValueError("the backbone is quantised; layers of PEFT can only be merged into weights that are not")
    model.eval()
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, BaseTunerLayer):
            continue
        module: Any = layer
        x = _probe(module)
        expected = module(x)
        module.merge(safe_merge=True)
        plain = module.get_base_layer()
        error = (plain(x) - expected).abs().max() / expected.abs().max().clamp(min=1e-12)
        if not error <= torch.finfo(expected.dtype).eps ** 0.5:  # nor is NaN
            raise ValueError(f"{name} computes something else when it is merged: relative error {error:.1e}")
        model.set_submodule(name, plain)
    model.peft_layers = None
    del model.peft_config  # PEFT's own note
    model.backbone.freeze_unused()


def _probe(layer: Any) -> Tensor:
    """[16, features in]: values to see whether merging changes a map."""
    generator, weight = torch.Generator().manual_seed(0), layer.get_base_layer().weight
    return torch.randn(16, layer.in_features, generator=generator).to(weight.device, weight.dtype)


def _computing(config: Any) -> dict[str, Any]:
    """What of a `peft.PeftConfig` the outputs of a model depend on."""
    notes = (
        *("auto_mapping", "base_model_name_or_path", "inference_mode", "modules_to_save", "peft_version", "revision"),
        "save_projection",
    )
    options = {key: sorted(x) if isinstance(x, (set, list)) else x for key, x in config.to_dict().items()}
    return {key: x for key, x in options.items() if key not in notes and "dropout" not in key}


def _projections(model: Any) -> dict[str, Any]:
    """What holds VeRA's two, which are no part of a model's state, by the names that PEFT gives them; of other layers
    none."""
    from peft.tuners.vera.layer import VeraLayer

    layer: Any = next((module for module in model.modules() if isinstance(module, VeraLayer)), None)
    return {} if layer is None else {f"{SHARED}A": layer.vera_A, f"{SHARED}B": layer.vera_B}


def _layers_of(model: Any, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    from peft import get_peft_model_state_dict

    # "auto" would ask the Hub for the base model.
    return cast(
        "dict[str, Tensor]",
        get_peft_model_state_dict(model, state_dict=dict(state), adapter_name=NAME, save_embedding_layers=False),
    )
