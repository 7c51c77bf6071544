"""What a repository on the Hub is made of, and how it gets there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from ._version import __version__
from .intact import LAYERS, read_json
from .places import HUB_ID, is_here, telling_of_hub

STUB = "modeling_unimodal_ar.py"
AUTO_MAP = {
    "AutoConfig": "modeling_unimodal_ar.UnimodalARConfig",
    "AutoModel": "modeling_unimodal_ar.UnimodalARForGeneration",
}
# Whoever has the package never runs this: what it registers with transformers goes before the code of a repository.
STUB_TEXT = '''"""This model is of the package unimodal_ar, which holds its code; here is none, only the way there."""

try:
    from unimodal_ar import UnimodalARConfig, UnimodalARForGeneration
except ImportError as error:
    raise ImportError("this model needs the package unimodal_ar: pip install unimodal-ar") from error

__all__ = ["UnimodalARConfig", "UnimodalARForGeneration"]
'''
Content = Path | bytes


def check_saving(given: Mapping[str, Any]) -> None:
    """Raises ValueError where `save_pretrained` is asked to upload, too, which would pass over all checks."""
    if given.get("push_to_hub"):
        raise ValueError("push_to_hub is True; save_pretrained only saves, upload by the method push_to_hub(repo_id)")


def check_portable(config: Any, where: str) -> None:
    """Raises ValueError where others would not find the body that the model of `config` refers to."""
    source = config.backbone_source
    if source is not None and is_here(source["name_or_path"]):
        raise ValueError(
            f"backbone_source.name_or_path of {where} is {source['name_or_path']!r}, a folder of this machine, where "
            "nobody else finds the frozen body; push that to the Hub and name it to `hub.push` as base (`unimodal-ar "
            "push --base ID`), or push with include_backbone=True (with layers of PEFT: merge them first)"
        )


def contents(
    folder: Path, files: list[str], repo_id: str, revision: str | None, moved: Mapping[str, Any] | None = None
) -> dict[str, Content]:
    """What a repository holds of a model's `folder`, by path: `files`, of which two say where they are, and the stub
    for those who lack this package. `moved`: what is different in its config.json."""
    found: dict[str, Content] = {file: folder / file for file in files}
    config = shortened(read_json(folder / "config.json"))  # which names the folder of a body that was trained on
    found["config.json"] = as_json(config | {"auto_map": AUTO_MAP} | dict(moved or {}))
    if "adapter_config.json" in found:  # by which PEFT's tools find the base
        found["adapter_config.json"] = based_on(folder, repo_id, revision)
    return found | {STUB: STUB_TEXT.encode()}


def shortened(value: Any) -> Any:
    """The content of a JSON or YAML file, of whose absolute paths, which nobody else can use and not everybody should
    know, only the last part is left."""
    if isinstance(value, dict):
        return {key: shortened(inner) for key, inner in value.items()}
    if isinstance(value, list):  # texts there are names, of columns say
        return [inner if isinstance(inner, str) else shortened(inner) for inner in value]
    paths = (PurePosixPath(value), PureWindowsPath(value)) if isinstance(value, str) else ()
    return next((path.name for path in paths if path.is_absolute() or path.parts[:1] == ("~",)), value)


def based_on(folder: Path, base: str, revision: str | None = None) -> bytes:
    """The adapter_config.json of `folder`, for layers over the model in `base`."""
    return as_json(read_json(folder / "adapter_config.json") | {"base_model_name_or_path": base, "revision": revision})


def check_id(repo_id: str) -> None:
    """Raises ValueError unless it is "owner/name"."""
    if not HUB_ID.fullmatch(repo_id):
        raise ValueError(f"repo_id is {repo_id!r}; it must be 'owner/name'")


def make_repository(repo_id: str, private: bool | None = None, token: str | bool | None = None) -> str:
    """Makes a repository on the Hub if it is missing; returns its id.

    Raises:
        ValueError: the Hub refuses, or has the repository already, with another visibility.
    """
    from huggingface_hub import HfApi

    check_id(repo_id)
    api = HfApi(token=token, library_name="unimodal_ar", library_version=__version__)
    with telling_of_hub(repo_id):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        found = api.repo_info(repo_id).private
    if private is not None and found is not None and found is not private:
        raise ValueError(
            f"private is {private}, and {repo_id!r} is {'private' if found else 'public'} on the Hub; change that in "
            "its settings, or leave private out"
        )
    return repo_id


def check_owner(repo_id: str) -> None:
    """Raises ValueError where the repository is somebody else's: the Hub says so only when files come."""
    from huggingface_hub import HfApi

    with telling_of_hub(repo_id):
        me = HfApi(library_name="unimodal_ar", library_version=__version__).whoami()
    names = [me["name"], *(organisation["name"] for organisation in me.get("orgs") or [])]
    if repo_id.partition("/")[0].lower() not in [name.lower() for name in names]:
        raise ValueError(f"hub.repo_id is {repo_id!r}; with this token it must belong to one of {names}")


def there(repo_id: str, file: str, revision: str | None = None, token: str | bool | None = None) -> bytes | None:
    """A file of a repository as it is now; None: there is none."""
    from huggingface_hub import HfApi, errors

    missing = (errors.EntryNotFoundError, errors.RepositoryNotFoundError, errors.RevisionNotFoundError)
    with tempfile.TemporaryDirectory() as scratch, telling_of_hub(repo_id, revision):
        try:
            found = HfApi(token=token).hf_hub_download(repo_id, file, revision=revision, local_dir=scratch)
        except missing:
            return None
        return Path(found).read_bytes()


def commit(
    repo_id: str,
    files: Mapping[str, Content],
    replaces: Callable[[str], bool],
    *,
    private: bool | None = None,
    revision: str | None = None,
    message: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Uploads `files`, all or none of them, to a repository on the Hub, which is made if it is missing.

    Args:
        repo_id: "owner/name".
        files: by path in the repository.
        replaces: whether a file that is there belongs to what is replaced, and goes if no new one takes its place.
        private: of a new repository; None: as the owner's settings say.
        revision: a branch, which is made if it is missing; None: "main".
        message: of the commit.
        token: None: the stored one.

    Returns:
        The commit's address.

    Raises:
        ValueError: the Hub refuses, or has the repository already, with another visibility.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    repo_id = make_repository(repo_id, private, token)
    api = HfApi(token=token, library_name="unimodal_ar", library_version=__version__)
    with telling_of_hub(repo_id, revision):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        there = api.list_repo_files(repo_id, revision=revision)
        operations: list[Any] = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
        operations += [CommitOperationDelete(path) for path in there if path not in files and replaces(path)]
        done = api.create_commit(repo_id, operations, commit_message=message or "Upload model", revision=revision)
    return str(done.commit_url)


class PushMixin:
    """A model's own `push_to_hub`."""

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        commit_message: str | None = None,
        token: str | bool | None = None,
        include_backbone: bool = False,
        **saving: Any,
    ) -> str:
        """Uploads configuration and weights, in one commit; adapters, recipe and card in the repository stay as they
        are (`hub.push`, `Forecaster.push_to_hub` and `Generator.push_to_hub` bring them along).

        Args:
            repo_id, private, revision, commit_message, token: as `sharing.commit` takes them.
            include_backbone: with the weights of a frozen body, so that the model stands alone.
            saving: arguments of `save_pretrained`, such as `max_shard_size`.

        Returns:
            The commit's address.

        Raises:
            ValueError: the frozen body is in a folder of this machine and would not go along, or as `save_pretrained`
                or `sharing.commit`.
        """
        model: Any = self
        if not include_backbone:
            check_portable(model.config, "this model")
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            model.save_pretrained(folder, include_backbone=include_backbone, **saving)
            files = contents(folder, sorted(file.name for file in folder.iterdir()), repo_id, revision)
            where = {"private": private, "revision": revision, "message": commit_message, "token": token}
            return commit(repo_id, files, _is_weights, **where)  # type: ignore[arg-type]


def _is_weights(file: str) -> bool:
    """Which would be read beside, or instead of, new weights of other names."""
    return file in ("adapter_config.json", LAYERS) or (file.startswith("model") and ".safetensors" in file)


def as_json(content: Any) -> bytes:
    return (json.dumps(content, indent=2) + "\n").encode()
