"""Whole models on the Hub: a folder with weights, adapters, recipe and card becomes a repository, and comes back.

hub.push("runs/digits", "me/digits")
pipelines.load("me/digits").generate(n=4)
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import torch
import yaml

from . import lora
from .adapters import Adapter
from .adapters.base import CONFIG_NAME, PARTS, load_adapters, part_folder
from .card import card, recipe_in, standing_on
from .configuration import UnimodalARConfig
from .fitting import check_adapter
from .generation import UnimodalARGenerationConfig
from .intact import LAYERS, check_weights, named_places, read_json
from .modeling import UnimodalARForGeneration
from .places import (
    CARD,
    DESCRIBING,
    HUB_ID,
    PACKAGE,
    RECIPE,
    is_here,
    is_models,
    model_folder,
    no_model,
    part_names,
    telling_of_hub,
)
from .saving import check_output, clear_partial, write_whole
from .sharing import as_json, based_on, check_id, check_portable, commit, contents, shortened, there
from .stamp import elsewhere, is_unedited, named

__all__ = ["Shareable", "model_folder", "pull", "push"]

# Of the folder that something was loaded from, what belongs to it and is not the object's own to write.
_DESCRIBING = (*DESCRIBING, CARD)


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    token: str | bool | None = None,
    base: str | None = None,
) -> str:
    """Uploads the model in a folder, in one commit: configuration, weights, adapters with what they carry, recipe,
    evaluation and card. Nothing else that lies there goes along, and what a model left in the repository that this one
    does not have is taken out.

    Args:
        folder: that training or conversion wrote, or `save_pretrained`.
        repo_id: "owner/name"; the repository is made if it is missing.
        private: of a new repository; None: as the owner's settings say.
        revision: the branch, which is made if it is missing; None: "main".
        commit_message: None: "Upload model".
        token: None: the one that `hf auth login` stored, or $HF_TOKEN.
        base: of a model that was saved without its frozen body, such as layers of PEFT: the id on the Hub of that body
            (of the model that it is part of), whose newest commit is noted; its weights are checked. None: where the
            model says.

    Returns:
        The commit's address.

    Raises:
        ValueError: the folder holds no whole model that would load elsewhere, `base` is another body, or the Hub
            refuses.
    """
    check_id(repo_id)  # before the Hub is asked
    folder = Path(folder)
    moved = {} if base is None else {"backbone_source": _source_on_hub(folder, base, token)}
    files = _checked(folder, moved)
    where = {"private": private, "revision": revision, "message": commit_message, "token": token}
    uploaded = contents(folder, files, repo_id, revision, moved)
    if RECIPE in files:
        uploaded[RECIPE] = _recipe(folder / RECIPE)
    uploaded[CARD] = own = _card(folder, repo_id, base)
    if is_unedited(own):
        card_there = there(repo_id, CARD, revision, token)
        if card_there is not None and not is_unedited(card_there):
            warnings.warn(f"the {CARD} of {repo_id!r} was edited there and stays as it is", stacklevel=2)
            uploaded[CARD] = card_there
    return commit(repo_id, uploaded, _is_replaced, **where)  # type: ignore[arg-type]


def pull(
    repo_id: str,
    out: str | os.PathLike[str],
    *,
    revision: str | None = None,
    overwrite: bool = False,
    option: str = "out",
    **hub: Any,
) -> Path:
    """Brings a model from the Hub into a folder of its own: whole, or not at all.

    Args:
        repo_id: "owner/name".
        out: the folder; made if it is missing.
        revision: a branch, a tag or a commit; None: "main".
        overwrite: replace a model that is there, or what a pull that was killed left of one.
        option: what messages call `out`.
        hub: the other arguments of `model_folder`.

    Raises:
        ValueError: there is no such model, it is damaged, or the folder holds something that would be lost.
    """
    out = Path(out)
    if Path(repo_id).is_dir():
        raise ValueError(f"repo_id is {repo_id!r}, a folder; it must be an id on the Hub, 'owner/name'")
    whole = (out / "config.json").exists()
    left = overwrite and clear_partial(out) and not whole
    check_output(out, option, overwrite)  # before anything is downloaded
    folder = model_folder(repo_id, revision, **hub)
    files = _files(folder)
    beside = [name for name in part_names(folder) if (folder / name).exists()]
    check_output(out, option, overwrite, folders=[] if left else beside)

    def write(partial: Path) -> None:
        for file in files:
            (partial / file).parent.mkdir(exist_ok=True)
            shutil.copyfile(folder / file, partial / file)  # a file of its own, where the cache has a link
        config = read_json(folder / "config.json")
        config.pop("auto_map", None)  # the stub it names is for those without this package
        (partial / "config.json").write_bytes(as_json(config))
        if (folder / lora.CONFIG).is_file():
            (partial / lora.CONFIG).write_bytes(based_on(folder, str(out.absolute())))

    out.mkdir(parents=True, exist_ok=True)
    try:
        write_whole(out, write, replace=True)
    except FileNotFoundError as error:
        raise ValueError(
            f"{option} is {str(out)!r}, from which something took {error.filename!r} meanwhile; pull again when no "
            "other process writes there"
        ) from error
    return out


Loaded = TypeVar("Loaded", bound="Shareable")


class Shareable:
    """What a forecaster and a generator have in common: a model with its adapters that can be saved and uploaded.

    Attributes:
        folder: that it was loaded from; None: it was not.
    """

    model: UnimodalARForGeneration
    folder: Path | None = None

    def __repr__(self) -> str:
        kinds = {adapter.modality: adapter.kind for adapter in self._carried()}
        return f"{type(self).__name__}(adapters={kinds}, folder={None if self.folder is None else str(self.folder)!r})"

    def _of(self: Loaded, folder: Path) -> Loaded:
        self.folder = folder
        return self

    def _carried(self) -> Iterable[Adapter]:
        """The adapters, in the order of a sequence."""
        raise NotImplementedError

    def save_pretrained(self, path: str | os.PathLike[str], include_backbone: bool = False) -> None:
        """Writes model and adapters into one folder. What the model was prompted with is the recipe's to say.

        Args:
            include_backbone: with the weights of a frozen body, too, so that the folder stands alone.
        """
        self.model.save_pretrained(path, include_backbone=include_backbone)
        for adapter in self._carried():
            adapter.save_pretrained(path)

    def push_to_hub(self, repo_id: str, *, include_backbone: bool = False, **where: Any) -> str:
        """Uploads model and adapters, in one commit; with them recipe, evaluation, samples and card of the folder that
        they were loaded from, if there is one.

        Args:
            repo_id: "owner/name".
            include_backbone: with the weights of a frozen body, so that the model stands alone.
            where: `private`, `revision`, `commit_message`, `token` and `base`, as `push` takes them.

        Returns:
            The commit's address.

        Raises:
            ValueError: as `push`.
        """
        if not include_backbone and where.get("base") is None:
            check_portable(self.model.config, "this model")
        with tempfile.TemporaryDirectory() as scratch:
            self.save_pretrained(scratch, include_backbone=include_backbone)
            for name in _DESCRIBING:
                if self.folder is not None and (self.folder / name).is_file():
                    shutil.copyfile(self.folder / name, Path(scratch, name))
            told = Path(scratch, CARD)
            if self.folder is not None and told.is_file() and not is_unedited(told.read_bytes()):
                told.write_bytes(elsewhere(told.read_bytes(), self.folder, repo_id))
            return push(scratch, repo_id, **where)


def _files(folder: Path) -> list[str]:
    """All that belongs to the model in `folder`."""
    parts = part_names(folder)
    places = [folder, *(folder / part for part in parts if (folder / part).is_dir())]
    here = [file for place in places for file in place.iterdir()]
    names = [file.relative_to(folder).as_posix() for file in here if file.is_file()]
    return sorted(name for name in names if is_models(name, parts))


def _is_replaced(file: str) -> bool:
    """Whether a file in a repository is one that `push` of another model would have put there."""
    part = file.partition("/")[0]
    return is_models(file, [part] if part.endswith(tuple(part_folder("", name) for name in PARTS)) else [])


def _recipe(file: Path) -> bytes:
    """Without absolute paths, but for what its author says in `card`."""
    text = file.read_text(encoding="utf-8")
    recipe = recipe_in(text, file)
    told = {key: value if key == "card" else shortened(value) for key, value in recipe.items()}
    if told == recipe:
        return text.encode()
    comment = "".join(takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    return (comment + yaml.safe_dump(told, sort_keys=False)).encode()


def _card(folder: Path, repo_id: str, base: str | None) -> bytes:
    """That of the folder, or a new one where there is none, with the id of the repository in the lines that load the
    model; if nobody edited it, with that of the body, too."""
    written = (folder / CARD).read_bytes() if (folder / CARD).is_file() else card(folder, repo_id).encode()
    if not is_unedited(written):
        return elsewhere(written, folder, repo_id)
    text = named(written, repo_id)
    return (text if base is None else standing_on(text, base)).encode()


def _source_on_hub(folder: Path, base: str, token: str | bool | None) -> dict[str, Any]:
    """The `backbone_source` of the model in `folder` whose body is that of `base` on the Hub; raises ValueError where
    it is not."""
    source = read_json(folder / "config.json").get("backbone_source")
    if source is None:
        raise ValueError(f"base is {base!r}, and the model in {str(folder)!r} refers to no frozen body; leave base out")
    if is_here(base) or not HUB_ID.fullmatch(base):
        raise ValueError(f"base is {base!r}; it must be an id on the Hub, 'owner/name'")
    from huggingface_hub import HfApi

    with telling_of_hub(base):
        newest = HfApi(token=token).repo_info(base).sha
    try:
        UnimodalARForGeneration.from_pretrained(folder, backbone=base)  # which compares the weights
    except ValueError as error:
        raise ValueError(f"base is {base!r}, which is not the model's own: {error}") from error
    return {**source, "name_or_path": base, "revision": newest}


def _checked(folder: Path, moved: Mapping[str, Any]) -> list[str]:
    """The files of a model's folder, of which nothing but these was looked at to see that they make a model. `moved`:
    what is to be different in its config.json.

    Raises:
        ValueError: they do not, or not one that loads on another machine.
    """
    if not (folder / "config.json").is_file():
        raise ValueError(f"{str(folder)!r} {no_model(folder)}")
    check_weights(folder)
    files = _files(folder)
    with tempfile.TemporaryDirectory() as scratch:
        alone = Path(scratch)
        for file in files:
            (alone / file).parent.mkdir(exist_ok=True)
            try:
                (alone / file).symlink_to((folder / file).absolute())
            except OSError:  # Windows, where not everybody may make links
                shutil.copyfile(folder / file, alone / file)
        if moved:
            (alone / "config.json").unlink()
            (alone / "config.json").write_bytes(as_json(read_json(folder / "config.json") | dict(moved)))
        try:
            _check(alone)
        except ValueError as error:
            raise ValueError(str(error).replace(str(alone), str(folder))) from error
    return files


def _check(folder: Path) -> None:
    config = UnimodalARConfig.from_pretrained(folder)
    check_portable(config, str(folder))
    if (folder / "generation_config.json").is_file():
        UnimodalARGenerationConfig.from_pretrained(folder)
    _check_names(config, folder)
    if not (folder / CONFIG_NAME).is_file():
        return
    for key, place in named_places(read_json(folder / CONFIG_NAME)):
        if not place.startswith(PACKAGE) and "/" in place and Path(place).is_dir():
            raise ValueError(
                f"{key} of {folder / CONFIG_NAME} is {place!r}, a folder of this machine, where nobody else finds it; "
                "it must be a folder beside the file, an id on the Hub or a package"
            )
    for name, adapter in load_adapters(folder).items():
        check_adapter(adapter, config.modality(name))


def _check_names(config: UnimodalARConfig, folder: Path) -> None:
    """Raises ValueError where the weights in `folder` are not those of a model of `config`; headers are read only."""
    with torch.device("meta"):
        model = UnimodalARForGeneration(config, None)
    wanted = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    found = check_weights(folder)
    if (folder / LAYERS).is_file():
        bare = {name.removeprefix(lora.PREFIX): shape for name, shape in found.items()}
        found = {name: shape for name, shape in bare.items() if not name.startswith((lora.BODY, lora.SHARED))}
    shared = set(model.all_tied_weights_keys)
    odd = sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))
    odd = [name for name in odd if name in found or name not in shared]
    if odd:
        raise ValueError(
            f"weights in {str(folder)!r} do not fit its config.json: {odd[0]!r} has the shape {found.get(odd[0])} and "
            f"should have {wanted.get(odd[0])} (None: it is not there); both must be of one training"
        )
