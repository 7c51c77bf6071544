"""From a folder, an id on the Hub or a module to the frozen model of a library, and to what is built around it."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from ..places import repository_files

# Library -> the only file that weights are read from: no pickle is ever opened.
WEIGHTS = {"diffusers": "diffusion_pytorch_model.safetensors", "transformers": "model.safetensors"}

HUB_ID = re.compile(r"\w[\w.-]*(/\w[\w.-]*)+")


FrozenType = TypeVar("FrozenType", bound="Frozen")


class Frozen:
    """A library's module in evaluation mode, in float32 and without gradients.

    Args:
        model: the module; it is changed in place.
    """

    def __init__(self, model: Any) -> None:
        self.model = model.float().eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def to(self: FrozenType, device: str | torch.device) -> FrozenType:
        """Moves the module; returns what is built around it."""
        self.model.to(device)
        return self

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Writes `config.json` and the weights (safetensors) as the module's library does. `folder` should hold nothing
        else that is called `config.json`."""
        self.model.save_pretrained(folder)


class Wrapper(Protocol):
    """What is built around a library's module."""

    library: ClassVar[str]  # the package that defines and loads the module

    def __init__(self, model: Any) -> None: ...


WrapperType = TypeVar("WrapperType", bound=Wrapper)


def load_pretrained(
    source: nn.Module | str | os.PathLike[str],
    folder: str | os.PathLike[str] | None,
    classes: Mapping[str, type[WrapperType]],
    model_types: Mapping[str, str],
    encode_only: Collection[str] = (),
) -> WrapperType:
    """The frozen tokenizer of a folder, of the Hub or around a module.

    Args:
        source: a folder that `save_pretrained` of a class in `classes` wrote; an id on the Hub, "owner/name" or, for a
            folder of a repository, "owner/name/folder"; or a module of such a class, which is copied.
        folder: where a relative path is looked for first; then comes the working directory, then the Hub.
        classes: the library's class -> what is built around it.
        model_types: what config.json calls a class of transformers where it does not name it -> the class.
        encode_only: classes that are refused because they have no decoder.

    Raises:
        ValueError: nothing there, a class that is not in `classes`, no safetensors, weights that do not fit; the
            message names the folder.
        ImportError: diffusers is needed and missing.
    """
    if isinstance(source, nn.Module):
        kind = type(source)
        name = _known(kind.__name__, "the module given as tokenizer", classes, encode_only)
        library = classes[name].library
        if kind.__module__.partition(".")[0] != library:
            raise ValueError(f"the module given as tokenizer is {kind.__module__}.{name}; it must be that of {library}")
        return classes[name](copy.deepcopy(source))
    if not isinstance(source, str | os.PathLike):
        raise ValueError(f"tokenizer is {source!r}; it must be a folder, an id on the Hub or a module")
    path = locate(os.fspath(source), folder)
    name = _known(class_name(path, model_types), str(path / "config.json"), classes, encode_only)
    return classes[name](load_module(name, classes[name].library, path))


def _known(name: object, where: str, classes: Mapping[str, Any], encode_only: Collection[str]) -> str:
    """`name` if it is in `classes`."""
    if name in encode_only:
        raise ValueError(
            f"{where} is of class {name!r}, which has no decoder in transformers; classes that encode and decode are "
            f"{sorted(classes)}"
        )
    if not isinstance(name, str) or name not in classes:
        raise ValueError(f"{where} is of class {name!r}; known classes are {sorted(classes)}")
    return name


def locate(source: str, folder: str | os.PathLike[str] | None, what: str = "tokenizer") -> Path:
    """The folder that `source` means, see `load_pretrained`; from the Hub it is downloaded.

    Args:
        what: how messages call it.
    """
    places = [Path(source)] if folder is None else [Path(folder, source), Path(source)]
    for place in places:
        if place.is_dir():
            return place
    if HUB_ID.fullmatch(source):
        return _download(source, what)
    raise ValueError(
        f"{what} {source!r} is no folder (looked for {' and '.join(map(str, places))}) and no id on the Hub; an id "
        "is 'owner/name' or 'owner/name/folder'"
    )


def _download(source: str, what: str) -> Path:
    """The local copy of what is needed of 'owner/name/folder'."""
    owner, name, *inside = source.split("/")
    wanted = ["/".join([*inside, file]) for file in ("config.json", *WEIGHTS.values())]
    try:
        return Path(repository_files(f"{owner}/{name}", wanted), *inside)
    except ValueError as error:
        raise ValueError(f"{what} {source!r}: {error}") from None


def class_name(path: Path, model_types: Mapping[str, str], what: str = "tokenizer") -> object:
    """The library's class that config.json in `path` names; the type it names where `model_types` has no class for
    it; None where it says neither."""
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} has no config.json; a {what}'s folder is one that its save_pretrained wrote")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file} is not readable JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds {config!r}; it must be a JSON object")
    named = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    return named or model_types.get(str(config.get("model_type")), config.get("model_type"))


def load_module(name: str, library: str, path: Path) -> nn.Module:
    """The module of the library's class `name` in `path`, with all of its weights, from safetensors only."""
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    if not (path / WEIGHTS[library]).is_file():
        raise ValueError(f"{path} has no {WEIGHTS[library]}; weights in other formats are not read")
    found = _library(library, name)
    kind: Any = getattr(found, name, None)
    if kind is None:
        raise ImportError(f"{library} {found.__version__} has no {name}; a newer one is needed")
    try:  # weights of a wrong shape are ignored here to be told below, by name
        model, report = kind.from_pretrained(
            path, use_safetensors=True, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except (OSError, RuntimeError, TypeError, ValueError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(f"{name} in {path} cannot be loaded: {_line(error)}") from None
    for problem in ("missing_keys", "mismatched_keys"):
        if report[problem]:
            raise ValueError(
                f"weights in {path} do not fit its config.json: {problem} {sorted(map(str, report[problem]))[:3]}"
            )
    return model


def _library(library: str, name: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError:
        raise ImportError(f"loading a {name} needs {library}: pip install unimodal-ar[image]") from None


def _line(error: Exception) -> str:
    """The first line of a library's message, or its kind where it has none."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


def find_tokenizer(
    elements: Any, kind: str, given: Any, family: Any, load: Callable[[Any], WrapperType]
) -> WrapperType | None:
    """The tokenizer that an adapter's elements ask for.

    Args:
        elements: the adapter's, of which those of `kind` have a `path`.
        given: to the adapter instead of the path, or None.
        family: the class of tokenizers one of which may be given as it is.
        load: makes one of a path or of a module.

    Raises:
        ValueError: other elements and one is given; a path as well, or neither.
    """
    if elements.kind != kind:
        if given is not None:
            raise ValueError(f"elements.kind is {elements.kind!r} and a tokenizer is given; it must be {kind!r}")
        return None
    if given is not None and elements.path is not None:
        raise ValueError(f"elements.path is {elements.path!r} and a tokenizer is given, too; give one of them")
    source = elements.path if given is None else given
    if source is None:
        raise ValueError("elements.path is None and no tokenizer is given; give one of them")
    return source if isinstance(source, family) else load(source)
