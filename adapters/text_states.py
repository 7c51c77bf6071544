"""A frozen language model's last states of texts: each is computed once and kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import string
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from pydantic import Field, PositiveInt
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm  # type: ignore[import-untyped]  # types-tqdm is not worth a dependency
from transformers import AutoConfig, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from ..fingerprint import fingerprint, read_body
from ..places import commit_of, folder_of
from ..schema import Strict

TOKENS = 4096
"""Of a batch: in float32 and for a model of 7 * 10^9 parameters, keys and values then take about 4 GB, and a layer's
intermediate values 0.5 GB."""
MEMORY = 2**30
"""Bytes of states that are also held in memory, where a batch of training finds them quickly."""
_KEYS_AND_VALUES = (DynamicLayer, DynamicSlidingWindowLayer)
# Of a configuration, what says nothing of the states: for one place it depends on how a model was loaded and saved.
_IDLE = {"_name_or_path", "architectures", "dtype", "quantization_config", "transformers_version", "use_cache"}
PROBE = f"This is Time Series from 2016-07-01 00:00:00 to 2016-07-04 23:59:59 {string.printable}"
"""A text by whose tokens tokenizers are told apart: those of equal weights may differ in spaces, digits, or a start."""
_ROWS = 500  # of a question to SQLite, whose older versions take no more than 999


class LanguageModel(Strict):
    """A decoder with its tokenizer, as transformers loads them.

    Args:
        pretrained: a folder, an id on the Hub or "package:NAME" (see `places.folder_of`); of a `...ForCausalLM` the
            body is used.
        revision: on the Hub; None: the newest.
        gguf_file: the file in it, where it holds GGUF.
        fingerprint: of the weights; None: not known yet. An adapter writes it down, and then finds states that are on
            disk without the model, and refuses other weights.
        tokenizer: the fingerprint of its tokenizer, a SHA-256 of the tokens of `PROBE`; kept and compared likewise.
        width: of the states; None: as the model's configuration says.
    """

    pretrained: str = Field(min_length=1)
    revision: str | None = None
    gguf_file: str | None = None
    fingerprint: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    tokenizer: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    width: PositiveInt | None = None

    @property
    def place(self) -> tuple[str, dict[str, str]]:
        """What transformers is told of where it is."""
        keys = ("revision", "gguf_file")
        return folder_of(self.pretrained), {key: value for key in keys if (value := getattr(self, key)) is not None}


class TextStates:
    """Texts -> the last hidden state (behind the final norm) of their last token, as AutoTimes computes those of its
    timestamps (Liu et al. 2024, arXiv 2402.02370, section 3.2), in float32.

    States are kept in `<cache>/text_states/<fingerprint>-<tokenizer>.sqlite`, where <cache> is $UNIMODAL_AR_CACHE, or
    else unimodal_ar in $XDG_CACHE_HOME or ~/.cache. Several processes may use it at once; a run that is killed keeps
    what it had computed. The model is loaded only when a state is missing there.

    Attributes:
        language_model: with what has become known of it.
    """

    def __init__(self, language_model: LanguageModel) -> None:
        self.language_model = language_model
        self._held: dict[str, np.ndarray] = {}
        self._loaded: tuple[Any, str] | None = None
        self._shared: tuple[Any, Mapping[str, Any]] | None = None
        self._tokenizer: Any = None
        self._read_config: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy, in another process say, reads from disk; if it needs a model it loads its own.
        return self.__dict__ | {"_loaded": None, "_shared": None, "_held": {}}

    @property
    def width(self) -> int:
        """Of a state.

        Raises:
            ValueError: there is no such model.
        """
        if self.language_model.width is None:
            self._learn(width=int(self._config().get_text_config().hidden_size))
        assert self.language_model.width is not None
        return self.language_model.width

    def share(self, body: Any, source: Mapping[str, Any]) -> None:
        """A body in memory that may be the language model's, to spare loading it again. It is used if it has the
        fingerprint, or, where none is known yet, comes from the same place; and if it would give the same states: in
        float32 and in evaluation mode, of the same configuration, neither quantised nor changed since (trained, or with
        LoRA layers).

        Args:
            body: a transformers decoder body.
            source: where it is from, as a model's `backbone_source`: name_or_path, revision, gguf_file, fingerprint.
        """
        self._shared = body, source

    def states(self, texts: Sequence[str]) -> Tensor:
        """float32 [len(texts), width] on the CPU.

        Raises:
            ValueError: the language model cannot be loaded or has another fingerprint or tokenizer, a text is longer
                than its positions, the cache cannot be written or is damaged.
        """
        wanted = dict.fromkeys(texts)
        missing = [text for text in wanted if text not in self._held]
        if missing and (len(self._held) + len(missing)) * self.width * 4 > MEMORY:
            self._held, missing = {}, list(wanted)
        if missing:
            store = self._store()
            found = store.read(missing)
            if len(found) < len(missing):
                self._compute([text for text in missing if text not in found], store)
                found = store.read(missing)
            self._held |= found
        rows = [self._held[text] for text in texts]
        return torch.from_numpy(np.stack(rows)) if rows else torch.empty(0, self.width)

    def prepare(self, texts: Iterable[str]) -> None:
        """Computes the states that are not on disk yet, and lets go of a model that was loaded for it."""
        store = self._store()
        wanted = list(dict.fromkeys(texts))
        known = store.known(wanted)
        if len(known) < len(wanted):
            self._compute([text for text in wanted if text not in known], store)
        self._loaded = None

    def _store(self) -> _Store:
        if self.language_model.fingerprint is None:
            self._learn(fingerprint=self._identify())
        if self.language_model.tokenizer is None:
            self._learn(tokenizer=self._probe())
        name = f"{self.language_model.fingerprint}-{str(self.language_model.tokenizer)[:16]}.sqlite"
        return _Store(_cache() / "text_states" / name, self.width)

    def _probe(self) -> str:
        return hashlib.sha256(json.dumps(self._tokens([PROBE], None)).encode()).hexdigest()

    def _config(self) -> Any:
        if self._read_config is None:
            place, options = self.language_model.place
            with _telling(self.language_model):
                self._read_config = AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
        return self._read_config

    def _learn(self, **known: Any) -> None:
        self.language_model = self.language_model.model_copy(update=known)

    def _identify(self) -> str:
        """The fingerprint of the weights."""
        if self._shared is not None and self._is_from_here(self._shared[1]):
            return str(self._shared[1]["fingerprint"])
        return self._load()[1]

    def _is_from_here(self, source: Mapping[str, Any]) -> bool:
        if any(source.get(key) for key in ("own", "subfolder", "quantization_config")):
            return False
        place, options = self.language_model.place
        there = folder_of(source["name_or_path"])
        if source.get("gguf_file") != options.get("gguf_file"):
            return False
        if Path(place).exists():
            return Path(there).exists() and Path(place).samefile(there)
        if place != there:
            return False
        with _telling(self.language_model):  # on the Hub, where names and branches move on
            AutoConfig.from_pretrained(place, trust_remote_code=False, **options)
        commit = commit_of(place, options)
        return commit is not None and source.get("revision") == commit

    def _body(self) -> Any:
        """The language model's body, of the known fingerprint."""
        known = self.language_model.fingerprint
        if self._shared is not None and self._loaded is None:
            body, source = self._shared
            alike = source["fingerprint"] == known and _is_plain(body) and _says(body.config) == _says(self._config())
            if alike and fingerprint(body.state_dict()) == known:
                return body
        body, found = self._load()
        if found != known:
            raise ValueError(
                f"language_model is {self.language_model.pretrained!r}, whose weights have the fingerprint "
                f"{found[:12]}; the states that are wanted are those of the fingerprint {str(known)[:12]}, and no "
                "other model has them"
            )
        return body

    def _load(self) -> tuple[Any, str]:
        """The body in the place that the language model names, and its fingerprint."""
        if self._loaded is None:
            place, options = self.language_model.place
            with _telling(self.language_model):
                body = read_body(place, torch.float32, **options)
            self._loaded = body.eval().requires_grad_(False), fingerprint(body.state_dict())
        return self._loaded

    def _tokens(self, texts: Sequence[str], longest: int | None) -> list[list[int]]:
        if self._tokenizer is None:
            from transformers import AutoTokenizer  # a tenth of what it takes to import this package, which is for few

            place, options = self.language_model.place
            with _telling(self.language_model):
                self._tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **options)
        tokens: list[list[int]] = self._tokenizer(list(texts))["input_ids"]
        for text, ids in zip(texts, tokens, strict=True):
            if not 1 <= len(ids) <= (longest or len(ids)):
                raise ValueError(
                    f"the text {text!r} has {len(ids)} tokens; language_model {self.language_model.pretrained!r} takes "
                    f"{'at least 1' if longest is None else f'1 to {longest}'}"
                )
        return tokens

    @torch.no_grad()
    def _compute(self, texts: Sequence[str], store: _Store) -> None:
        """Writes the states of texts, batch by batch: none is padded, so that each is what it would be alone. Texts
        that begin alike stand together, since what a batch begins with is read once."""
        if (found := self._probe()) != self.language_model.tokenizer:
            raise ValueError(
                f"language_model is {self.language_model.pretrained!r}, whose tokenizer has the fingerprint "
                f"{found[:12]}; the states that are wanted are those of {str(self.language_model.tokenizer)[:12]}"
            )
        body = self._body()
        tokens = self._tokens(texts, getattr(body.config.get_text_config(), "max_position_embeddings", None))
        order = sorted(range(len(texts)), key=lambda i: (len(tokens[i]), tokens[i]))
        unit = {"unit": "text", "desc": "Text states", "delay": 2, "leave": False}
        with _where_it_is_fast(body) as device, tqdm(total=len(texts), **unit) as bar:
            for length, alike in groupby(order, key=lambda i: len(tokens[i])):
                same, size = list(alike), max(1, TOKENS // length)
                for rows in (same[start : start + size] for start in range(0, len(same), size)):
                    ids = torch.tensor([tokens[i] for i in rows], device=device)
                    states = _last_states(body, ids).float().cpu().numpy()
                    if states.shape[1] != self.width:
                        raise ValueError(
                            f"language_model.width is {self.width}; {self.language_model.pretrained!r} has states of "
                            f"{states.shape[1]}"
                        )
                    store.write({texts[i]: state for i, state in zip(rows, states, strict=True)})
                    bar.update(len(rows))


class _Store:
    """Text -> state, in a file that appears when it is first used."""

    def __init__(self, path: Path, width: int) -> None:
        self.path, self.width = path, width

    def read(self, texts: Sequence[str]) -> dict[str, np.ndarray]:
        """Those of the texts that are there, each [width] float32."""
        found = dict(self._select("text, state", texts))
        for text, state in found.items():
            if len(state) != 4 * self.width:
                raise self._damaged(f"the state of {text!r} has {len(state)} bytes, not {4 * self.width}")
        return {text: np.frombuffer(state, "<f4") for text, state in found.items()}

    def known(self, texts: Sequence[str]) -> set[str]:
        return {text for (text,) in self._select("text", texts)}

    def write(self, states: Mapping[str, np.ndarray]) -> None:
        rows = [(text, state.astype("<f4").tobytes()) for text, state in states.items()]
        with self._open() as file, file:  # the second commits
            file.executemany("INSERT OR IGNORE INTO states VALUES (?, ?)", rows)

    def _select(self, columns: str, texts: Sequence[str]) -> list[Any]:
        rows: list[Any] = []
        with self._open() as file:
            for start in range(0, len(texts), _ROWS):
                some = texts[start : start + _ROWS]
                marks = ", ".join("?" * len(some))
                rows += file.execute(f"SELECT {columns} FROM states WHERE text IN ({marks})", some).fetchall()
        return rows

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        """A connection for one use: one that lives on could not go into another process."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self.path, timeout=60)) as file:
                file.execute("CREATE TABLE IF NOT EXISTS states (text TEXT PRIMARY KEY, state BLOB NOT NULL)")
                yield file
        except (OSError, sqlite3.OperationalError) as error:  # no permission, no space, locked by another process
            raise ValueError(
                f"the cache of text states {str(self.path)!r} cannot be used ({error}); set UNIMODAL_AR_CACHE to a "
                "folder that can be written"
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, reason: str) -> ValueError:
        return ValueError(
            f"the cache of text states {str(self.path)!r} is damaged ({reason}); delete the file, and its states are "
            "computed again"
        )


def _cache() -> Path:
    named = os.environ.get("UNIMODAL_AR_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unimodal_ar"


def _last_states(body: Any, ids: Tensor) -> Tensor:
    """[n, width] of the last of token ids [n, length]. Dates begin alike: to read that once spares a third of ETTh1's
    timestamps."""
    alike = int((ids == ids[0]).all(0).long().cumprod(0).sum())
    first = min(alike, ids.shape[1] - 1)
    if len(ids) > 1 and first:
        cache = getattr(body(input_ids=ids[:1, :first], use_cache=True), "past_key_values", None)
        # A state, as Mamba and convolutions have it, cannot be handed to several.
        if isinstance(cache, DynamicCache) and all(type(layer) in _KEYS_AND_VALUES for layer in cache.layers):
            cache.batch_repeat_interleave(len(ids))
            rest = body(input_ids=ids[:, first:], past_key_values=cache, use_cache=True)
            return cast(Tensor, rest.last_hidden_state[:, -1])
    return cast(Tensor, body(input_ids=ids, use_cache=False).last_hidden_state[:, -1])


def _is_plain(body: Any) -> bool:
    """Whether it computes in float32 what its weights say."""
    modules: Collection[Any] = list(body.modules())
    changed = any(module.training or type(module).__module__.startswith("peft.") for module in modules)
    narrow = any(value.is_floating_point() and value.dtype != torch.float32 for value in body.parameters())
    return not changed and not narrow and getattr(body, "hf_quantizer", None) is None


def _says(config: Any) -> dict[str, Any]:
    """What of a configuration may change states."""
    told: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {key: value for key, value in told.items() if key not in _IDLE}


@contextmanager
def _where_it_is_fast(body: Any) -> Iterator[torch.device]:
    """The device to compute on: a GPU if there is one, to which the body goes for the time, unless accelerate has
    placed its layers."""
    before = body.device
    placed = before.type != "cpu" or getattr(body, "hf_device_map", None) is not None
    device = before if placed or not torch.cuda.is_available() else torch.device("cuda")
    try:
        with torch.autocast(device.type, enabled=False):
            if device != before:
                body.to(device)
            yield device
    finally:
        if device != before:
            body.to(before)


@contextmanager
def _telling(language_model: LanguageModel) -> Iterator[None]:
    """Lets errors of loading say what could not be loaded."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0].strip(" .")
        raise ValueError(
            f"language_model.pretrained is {language_model.pretrained!r}, which cannot be loaded ({reason}); it must "
            "be the folder or the id on the Hub of a model of transformers with its tokenizer"
        ) from error
