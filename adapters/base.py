"""What an adapter is: raw data of one modality <-> segments, and how adapters are stored beside a model."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pydantic import Field

from ..places import PROCESSOR, model_folder
from ..schema import Strict, parse
from ..segment import Grid, Segment
from .files import whole_file

if TYPE_CHECKING:
    from PIL import Image

CONFIG_NAME = PROCESSOR
# What adapters carry in folders of their own (see `part_folder`), each an attribute of the adapter -> the key of its
# elements' options that holds the path.
PARTS = {"tokenizer": "path", "vocoder": "vocoder"}

AdapterType = TypeVar("AdapterType", bound="Adapter")


class AdapterOptions(Strict):
    """What every adapter's constructor takes: the name of the modality that its segments carry."""

    modality: str = Field(min_length=1)


class Adapter(ABC):
    """Raw data of one modality <-> `Segment`. Host work only: nothing here is trained.

    A subclass is registered with `register_adapter(kind)`, declares the arguments of its constructor as the schema
    `Options`, and sets `options` to the checked values.

    Attributes:
        suffixes: of the files that `save` writes, in lower case with the point; () where it writes none.
    """

    Options: ClassVar[type[AdapterOptions]] = AdapterOptions
    kind: ClassVar[str]  # its name in ADAPTERS, set by register_adapter
    suffixes: ClassVar[tuple[str, ...]] = ()
    options: AdapterOptions

    @property
    def modality(self) -> str:
        """The name under which the model's configuration knows the values."""
        return self.options.modality

    @property
    @abstractmethod
    def element(self) -> dict[str, Any]:
        """The `element` entry of the model's configuration that fits this adapter."""

    @abstractmethod
    def encode(self, *raw: Any, **more: Any) -> Segment:
        """Raw data -> a segment; each adapter says which raw data."""

    @abstractmethod
    def decode(self, segment: Segment) -> Any:
        """A segment -> raw data; the inverse of `encode` up to what the adapter says is lost."""

    def save(self, raw: Any, path: str | os.PathLike[str]) -> None:
        """Writes raw data, as `decode` returns them, to one file of the kind in which people expect them.

        Raises:
            ValueError: this adapter's raw data have no file of their own.
        """
        raise ValueError(f"{type(self).__name__} of {self.modality!r} writes no files; decode returns its raw data")

    def picture(self, raw: Any) -> Image.Image | None:
        """Raw data, as `decode` returns them, to be looked at; None: what `save` writes is a picture already, or there
        is none."""
        return None

    def parse(self, text: str) -> Any:
        """What `encode` takes, from a word of a command line: the text itself, a path say."""
        return text

    @property
    def optional(self) -> bool:
        """Whether `encode(None)` tells the only thing there is to tell, so that a context may be left out."""
        return False

    def grid_for(self, seconds: float | None = None) -> Grid | None:
        """The grid of what is to be drawn; None: the modality's own in the model.

        Args:
            seconds: how long it is; None: as long as the adapter's raw data are.

        Raises:
            ValueError: raw data of this kind have no length in seconds.
        """
        if seconds is not None:
            raise ValueError(
                f"{self.modality!r} is of the kind {self.kind!r}, which has no length in seconds; leave seconds, "
                "window, overlap and sink out"
            )
        return getattr(self, "grid", None)

    def steps_for(self, seconds: float, first: bool = True) -> int:
        """How many steps of the T axis hold so long a part of what is drawn, rounded up.

        Args:
            first: whether it is the beginning; else no step of it is the first.

        Raises:
            ValueError: as `grid_for`.
        """
        grid = self.grid_for(seconds)
        assert grid is not None, "what has a length in seconds has a grid"
        return grid[0]

    def check_windows(self, sink: int) -> None:  # noqa: B027  # not abstract: nothing speaks against it for most
        """Raises ValueError where what is longer than the model's raw data cannot be drawn window by window, every
        window beginning with the first `sink` steps of the whole."""

    def complete(self, given: Any, mask: Any = None, seconds: float | None = None) -> Segment:
        """A segment to be completed: `observed` marks what is kept of `given`.

        Args:
            given: raw data; None: a mask was given without.
            mask: which of it to draw anew, in the form that the adapter says.
            seconds: how long the whole is, as for `grid_for`.

        Raises:
            ValueError: this adapter completes nothing, or an argument does not fit.
        """
        raise ValueError(
            f"{'mask' if given is None else 'given'} is for what can be completed, images, video or audio say; "
            f"{self.modality!r} is of the kind {self.kind!r}"
        )

    def stream(self, segments: Iterable[Segment]) -> Iterator[Any]:
        """Raw data of a segment that is being drawn, which `segments` show as they grow (see the model's `stream`):
        everything so far, each time, unless the adapter says that it yields what is new."""
        for segment in segments:
            yield self.decode(segment)

    def save_stream(self, parts: Iterable[Any], path: str | os.PathLike[str]) -> Iterator[str]:
        """Writes what `stream` yields to one file, as it comes; the file is whole at any moment. Yields after each part
        how far it is, in words ("1.5 s of 10.0 s"), or "".

        Raises:
            ValueError: as `save`.
        """
        for raw in parts:
            self.save(raw, path)
            yield ""

    @property
    def _parts(self) -> dict[str, Any]:
        """Those of PARTS that the adapter carries."""
        found = {part: getattr(self, part, None) for part in PARTS}
        return {part: module for part, module in found.items() if module is not None}

    @property
    def modules(self) -> list[Any]:
        """The frozen modules that the adapter carries, each with `to(device)` and `device`."""
        return list(self._parts.values())

    @property
    def sources(self) -> dict[str, str]:
        """What was read to make the adapter: key of its configuration ("elements.path") -> path."""
        elements = getattr(self.options, "elements", None)
        paths = {f"elements.{key}": getattr(elements, key, None) for key in PARTS.values()}
        return {key: path for key, path in paths.items() if path is not None}

    @property
    def folders(self) -> list[str]:
        """The names of the folders that `save_files` writes."""
        return [part_folder(self.modality, part) for part in self._parts]

    def share_body(self, body: Any, source: Mapping[str, Any]) -> None:  # noqa: B027  # not abstract: most need none
        """Shows a pretrained body of the model that the adapter goes with, which may spare it a copy of its own.

        Args:
            body: frozen, as transformers has it.
            source: where it came from: name_or_path, revision, subfolder, gguf_file, quantization_config, fingerprint.
        """

    def config(self) -> dict[str, Any]:
        """The constructor's arguments as JSON-able values."""
        return self.options.model_dump(mode="json")

    @classmethod
    def from_options(cls: type[AdapterType], options: AdapterOptions, folder: Path | None) -> AdapterType:
        """An adapter from checked options; one that carries files looks for relative paths in `folder` first (None: in
        the working directory)."""
        return cls(**options.model_dump())

    def save_files(self, folder: Path) -> dict[str, Any]:
        """Writes what the adapter carries, if anything, into `folder`, each into a sub-folder of its own; one that is
        there is replaced when the new one is complete. Returns `config()` with the paths of what was written, relative
        to `folder`, so that it can be moved."""
        config = self.config()
        for part, module in self._parts.items():
            name = part_folder(self.modality, part)
            save_part(folder, name, module)
            config["elements"][PARTS[part]] = name
        return config

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Adds this adapter to `processor_config.json` in `directory` (made if missing), and its own files beside it;
        an adapter of the same modality is replaced in its place, everything else in the file stays. The order of the
        calls is that of the contexts in a sequence. The file is never seen half written.

        Raises:
            ValueError: the file exists and is not a JSON object.
        """
        path = Path(directory) / CONFIG_NAME
        path.parent.mkdir(parents=True, exist_ok=True)
        content = _read(path) if path.exists() else {}
        entry = {"kind": self.kind, **self.save_files(path.parent)}
        content["adapters"] = {**content.get("adapters", {}), self.modality: entry}
        _write(path, content)

    @classmethod
    def from_pretrained(
        cls: type[AdapterType], directory: str | os.PathLike[str], modality: str | None = None, **hub: Any
    ) -> AdapterType:
        """The only adapter of this class in `directory`, or the one of `modality`; see `load_adapters`.

        Raises:
            ValueError: no such file or adapter, several adapters and no `modality`, an unknown kind or key.
        """
        adapters = load_adapters(directory, **hub)
        found = {name: adapter for name, adapter in adapters.items() if isinstance(adapter, cls)}
        if modality is None and len(found) == 1:
            return next(iter(found.values()))
        if not found:
            kinds = {name: adapter.kind for name, adapter in adapters.items()}
            raise ValueError(f"{directory} holds no {cls.__name__}; its adapters are of the kinds {kinds}")
        if modality is None:
            raise ValueError(
                f"{directory} holds {len(found)} adapters of type {cls.__name__}, {sorted(found)}; "
                "say which with modality="
            )
        if modality not in found:
            raise ValueError(
                f"modality is {modality!r}; the adapters of type {cls.__name__} in {directory} are {sorted(found)}"
            )
        return found[modality]


def check_element(segment: Segment, element: Mapping[str, Any]) -> None:
    """Raises ValueError where the segment's values are not of an adapter's `element`."""
    values = segment.values
    last = (element["dim"],) if "dim" in element else (element["codes"],) if element["codes"] > 1 else ()
    if tuple(values.shape[2:]) != last or values.is_floating_point() != ("dim" in element):
        raise ValueError(
            f"segment's values are {values.dtype} of shape {tuple(values.shape)}; "
            f"this adapter's element is {dict(element)}"
        )


def part_folder(modality: str, part: str) -> str:
    """What the folder is called, beside the adapter of a modality, in which one of its `PARTS` is saved."""
    assert part in PARTS
    return f"{modality}_{part}"


def save_part(folder: Path, name: str, part: Any) -> None:
    """Has `part.save_pretrained` write the sub-folder `name`; one that is there is replaced when the new one is
    complete."""
    temporary = folder / f".{name}.{uuid.uuid4().hex}"
    try:
        part.save_pretrained(temporary)
        shutil.rmtree(folder / name, ignore_errors=True)
        os.replace(temporary, folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


ADAPTERS: dict[str, type[Adapter]] = {}


def register_adapter(kind: str) -> Callable[[type[AdapterType]], type[AdapterType]]:
    """Class decorator that adds an adapter to `ADAPTERS`; a name that is taken raises ValueError."""

    def register(adapter: type[AdapterType]) -> type[AdapterType]:
        if kind in ADAPTERS:
            raise ValueError(f"adapter {kind!r} is already registered; taken names are {sorted(ADAPTERS)}")
        adapter.kind = kind
        ADAPTERS[kind] = adapter
        return adapter

    return register


class AutoAdapter:
    """Builds the adapter that a file or a mapping speaks of."""

    @staticmethod
    def from_pretrained(directory: str | os.PathLike[str], modality: str | None = None, **hub: Any) -> Adapter:
        """The only adapter stored in `directory`, or the one of `modality`; see `load_adapters`.

        Raises:
            ValueError: as `Adapter.from_pretrained`.
        """
        return Adapter.from_pretrained(directory, modality, **hub)

    @staticmethod
    def from_config(config: Mapping[str, Any], where: str = "adapter", folder: Path | None = None) -> Adapter:
        """An adapter from `{"kind": name in ADAPTERS, **constructor arguments}`.

        Args:
            where: how messages name the mapping.
            folder: where relative paths of files that the adapter carries are looked for first.

        Raises:
            ValueError: not a mapping, an unknown kind, an unknown key or an illegal value; all are told at once.
        """
        if not isinstance(config, Mapping):
            raise ValueError(f"{where} is {config!r}; it must be a mapping with a 'kind'")
        kind = config.get("kind")
        if kind not in list(ADAPTERS):  # a list, so that a kind of any type can be looked for
            raise ValueError(f"{where}.kind is {kind!r}; known kinds are {sorted(ADAPTERS)}")
        given = {key: value for key, value in config.items() if key != "kind"}
        options = parse(ADAPTERS[kind].Options, given, where)
        try:
            return ADAPTERS[kind].from_options(options, folder)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None


def load_adapters(directory: str | os.PathLike[str], **hub: Any) -> dict[str, Adapter]:
    """Every adapter stored in `directory`, by modality.

    Args:
        directory: a folder; or an id on the Hub, of which all but the model's weights is downloaded.
        hub: `revision`, `cache_dir`, `token`, `local_files_only` and `force_download`, see `places.model_folder`.

    Raises:
        ValueError: no `processor_config.json`, or one that holds no adapters, an unknown kind or an unknown key.
    """
    path = model_folder(directory, weights=False, **hub) / CONFIG_NAME
    if not path.exists():
        raise ValueError(f"{directory} has no {CONFIG_NAME}; adapters are stored there by save_pretrained")
    entries = _read(path).get("adapters")
    if not entries:
        raise ValueError(f"{path} holds no adapters; save_pretrained of an adapter adds one")
    return {modality: _build(path, modality, entry) for modality, entry in entries.items()}


def _build(path: Path, modality: str, entry: Any) -> Adapter:
    where = f"{path}: adapters.{modality}"
    if isinstance(entry, Mapping):
        entry = {"modality": modality, **entry}
    adapter = AutoAdapter.from_config(entry, where, path.parent)
    if adapter.modality != modality:
        raise ValueError(f"{where}.modality is {adapter.modality!r}; it must be the name it is stored under")
    return adapter


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(content, dict) or not isinstance(content.get("adapters", {}), dict):
        raise ValueError(f"{path} must be a JSON object whose 'adapters' is an object with one entry per modality")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    """Writes beside the file and renames: a reader sees the old content or the new."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
