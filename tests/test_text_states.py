"""States of texts: what they are, when they are computed, and where they are kept."""

from __future__ import annotations

import copy
import multiprocessing
import pickle
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModel,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    Lfm2Config,
    Lfm2ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.helpers import perturb
from unimodal_ar.adapters import LanguageModel, TextStates, text_states
from unimodal_ar.fingerprint import fingerprint

WIDTH = 32
WORDS = ["[UNK]", *"0123456789-: ", "This", "is", "Time", "Series", "from", "to", "Monday"]
TEXTS = ["This is Time Series", "from 2024-01-01 to 2024-01-02", "Monday", "from 2024-01-03 to 2024-01-04", "Time"]
SMALL: dict[str, Any] = {"vocab_size": len(WORDS), "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
SIZE: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "intermediate_size": 48}
SIZE |= {"num_attention_heads": 4, "num_key_value_heads": 2}
MODELS: dict[str, Callable[[int], Any]] = {
    "gpt2": lambda n: GPT2LMHeadModel(GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=n, **SMALL)),
    "opt": lambda n: OPTForCausalLM(
        OPTConfig(**SMALL, hidden_size=WIDTH, ffn_dim=48, num_attention_heads=4, num_hidden_layers=2)
    ),
    "gemma": lambda n: Gemma2ForCausalLM(
        Gemma2Config(**SMALL, **SIZE, head_dim=8, sliding_window=4, max_position_embeddings=n)
    ),
    "lfm2": lambda n: Lfm2ForCausalLM(Lfm2Config(**SMALL, **SIZE, full_attn_idxs=[1], block_auto_adjust_ff_dim=False)),
    "mamba": lambda n: MambaForCausalLM(MambaConfig(**SMALL, hidden_size=WIDTH, num_hidden_layers=2, state_size=4)),
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(**SMALL, **SIZE, max_position_embeddings=n)),
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where states go."""
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "text_states"


def save_tokenizer(folder: Path, words: list[str]) -> None:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\d|[a-zA-Z]+|[^\w]"), "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(folder)


def save_language_model(folder: Path, kind: str = "llama", seed: int = 0, positions: int = 96) -> Path:
    """A tiny language model that knows digits and the words of the sentence, and its tokenizer."""
    torch.manual_seed(seed)
    model = MODELS[kind](positions).eval()
    perturb(model, 0.1, seed=seed)
    model.save_pretrained(folder)
    save_tokenizer(folder, WORDS)
    return folder


@torch.no_grad()
def straight(folder: Path, texts: list[str]) -> Tensor:
    """[texts, WIDTH], one after the other."""
    body, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    return torch.stack([body(input_ids=one).last_hidden_state[0, -1] for one in ids])


def states_of(folder: Path, **options: Any) -> TextStates:
    return TextStates(LanguageModel(pretrained=str(folder), **options))


def source_of(folder: Path) -> dict[str, Any]:
    """As a model's `backbone_source`."""
    known = fingerprint(AutoModel.from_pretrained(folder).state_dict())
    return {"name_or_path": str(folder), "revision": None, "gguf_file": None, "fingerprint": known}


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("a model is loaded")

    monkeypatch.setattr(text_states, "read_body", refuse)


# --- what they are ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("tokens", [8, 4096])
def test_states_are_those_of_each_text_alone(
    kind: str, tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the order asked for, of texts that come twice, too."""
    monkeypatch.setattr(text_states, "TOKENS", tokens)
    folder = save_language_model(tmp_path / "llm", kind)
    asked = [*TEXTS, TEXTS[1], TEXTS[0]]
    found = states_of(folder).states(asked)
    assert found.dtype == torch.float32 and found.shape == (7, WIDTH)
    torch.testing.assert_close(found, straight(folder, asked), rtol=0, atol=2e-6)
    assert (found[0] - found[1]).abs().max() > 0.1
    assert states_of(folder).states([]).shape == (0, WIDTH)


def test_each_text_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = states_of(save_language_model(tmp_path / "llm"))
    computed: list[list[str]] = []
    compute = TextStates._compute

    def noting(self: TextStates, texts: Any, store: Any) -> None:
        computed.append(texts)
        compute(self, texts, store)

    monkeypatch.setattr(TextStates, "_compute", noting)
    states.prepare(TEXTS[:3])
    assert states._loaded is None
    first = states.states(TEXTS)
    assert torch.equal(states.states(TEXTS[::-1]), first.flip(0))
    assert computed == [TEXTS[:3], TEXTS[3:]]


def test_states_on_disk_need_no_model(tmp_path: Path, cache: Path) -> None:
    folder = save_language_model(tmp_path / "llm")
    states = states_of(folder)
    expected = states.states(TEXTS)
    known = states.language_model
    assert known.width == WIDTH and known.fingerprint == source_of(folder)["fingerprint"]
    assert known.tokenizer is not None
    assert [path.name for path in cache.iterdir()] == [f"{known.fingerprint}-{known.tokenizer[:16]}.sqlite"]
    folder.rename(tmp_path / "gone")
    assert torch.equal(TextStates(known).states(TEXTS[::-1]), expected.flip(0))
    for missing in ("from 2024-01-05 to 2024-01-06", "Series"):
        with pytest.raises(ValueError, match=r"language_model.pretrained is '.*llm', which cannot be loaded \("):
            TextStates(known).states([TEXTS[0], missing])
    moved = known.model_copy(update={"pretrained": str(tmp_path / "gone")})
    assert TextStates(moved).states(["Series"]).shape == (1, WIDTH)


def test_equal_weights_with_another_tokenizer_have_states_of_their_own(tmp_path: Path) -> None:
    first, second = save_language_model(tmp_path / "first"), save_language_model(tmp_path / "second")
    save_tokenizer(second, ["[UNK]", *WORDS[:0:-1]])
    states = [states_of(folder) for folder in (first, second)]
    found = [each.states(TEXTS) for each in states]
    assert states[0].language_model.fingerprint == states[1].language_model.fingerprint
    for folder, values in zip((first, second), found, strict=True):
        torch.testing.assert_close(values, straight(folder, TEXTS), rtol=0, atol=1e-5)
    swapped = states[0].language_model.model_copy(update={"pretrained": str(second)})
    with pytest.raises(ValueError, match=r"whose tokenizer has the fingerprint [0-9a-f]{12}; the states that are"):
        TextStates(swapped).states(["Series"])


def test_what_texts_begin_with_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two texts of 25 tokens that differ from the twelfth on, 11 + 2 * 14 are read; such texts stand together."""
    monkeypatch.setattr(text_states, "TOKENS", 50)
    folder = save_language_model(tmp_path / "llm")
    body, read = AutoModel.from_pretrained(folder), []
    body.register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"].numel()), with_kwargs=True)
    states = states_of(folder)
    states.share(body, source_of(folder))
    states.prepare([f"from {day} to 2024-01-01" for day in ("2024-01-03", "2021-01-03", "2024-01-01", "2021-01-09")])
    assert read == [11, 2 * 14] * 2


def test_models_do_not_share_states(tmp_path: Path) -> None:
    one, other = (save_language_model(tmp_path / name, seed=seed) for seed, name in enumerate(("one", "other")))
    assert not torch.equal(states_of(one).states(TEXTS), states_of(other).states(TEXTS))
    torch.testing.assert_close(states_of(other).states(TEXTS), straight(other, TEXTS), rtol=0, atol=2e-6)


def test_a_killed_run_keeps_what_it_had_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_states, "TOKENS", 1)
    states, write = states_of(save_language_model(tmp_path / "llm")), text_states._Store.write
    written: list[int] = []

    def killed(self: Any, rows: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(len(rows))
        write(self, rows)

    monkeypatch.setattr(text_states._Store, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        states.prepare(TEXTS)
    assert len(states._store().known(TEXTS)) == 2


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    states = states_of(save_language_model(tmp_path / "llm"))
    expected = states.states(TEXTS)
    monkeypatch.setattr(text_states, "MEMORY", 3 * WIDTH * 4)
    states = TextStates(states.language_model)
    for start in range(4):
        assert torch.equal(states.states(TEXTS[start : start + 2]), expected[start : start + 2])
        assert len(states._held) <= 3


# --- a body that is there already -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_loading")
@pytest.mark.parametrize("known", [False, True])
def test_a_body_in_memory_spares_loading(known: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same place, or of the fingerprint that is known, wherever it came from."""
    folder = save_language_model(tmp_path / "llm")
    body, source = AutoModel.from_pretrained(folder), source_of(folder)
    states = states_of(folder, fingerprint=source["fingerprint"] if known else None)
    monkeypatch.chdir(tmp_path)
    states.share(body, source | {"name_or_path": "elsewhere" if known else "llm"})
    torch.testing.assert_close(states.states(TEXTS), straight(folder, TEXTS), rtol=0, atol=2e-6)
    assert states.language_model.fingerprint == source["fingerprint"]


def _lora(body: Any) -> None:
    get_peft_model(body, LoraConfig(target_modules=["q_proj"], init_lora_weights=False))


def _trained(body: Any) -> None:
    body.layers[0].mlp.up_proj.weight.data += 0.5


def _configured(body: Any) -> None:
    body.config.rms_norm_eps = 0.5


def _quantised(body: Any) -> None:
    body.hf_quantizer = object()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "lora": _lora,
    "merged": _trained,
    "configured": _configured,
    "quantised": _quantised,
    "bfloat16": lambda body: body.to(torch.bfloat16),
    "dropout": lambda body: body.train(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_body_that_would_compute_something_else_is_not_used(change: str, tmp_path: Path) -> None:
    """The source is loaded instead, and it alone is asked."""
    folder = save_language_model(tmp_path / "llm")
    body, states = AutoModel.from_pretrained(folder), states_of(folder)
    asked: list[Any] = []
    body.register_forward_pre_hook(lambda *given: asked.append(given))
    states.share(body, source_of(folder))
    states.states(TEXTS[:1])
    assert len(asked) == 1, "without a change it is used"
    CHANGES[change](body)
    torch.testing.assert_close(states.states(TEXTS), straight(folder, TEXTS), rtol=0, atol=2e-6)
    assert len(asked) == 1


def test_a_body_from_elsewhere_is_not_used(tmp_path: Path) -> None:
    """Neither one of another place, while no fingerprint is known, nor one of another fingerprint."""
    folder, other = (save_language_model(tmp_path / name, seed=seed) for seed, name in enumerate(("llm", "other")))
    body, source, expected = AutoModel.from_pretrained(other), source_of(other), straight(folder, TEXTS)
    for changed in ({}, {"name_or_path": str(folder), "gguf_file": "x.gguf"}):
        states = states_of(folder)
        states.share(body, source | changed)
        torch.testing.assert_close(states.states(TEXTS[:2]), expected[:2], rtol=0, atol=2e-6)
    again = states_of(folder, fingerprint=source_of(folder)["fingerprint"])
    again.share(body, source)
    torch.testing.assert_close(again.states(TEXTS), expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize(("commit", "expected"), [("abc", True), ("abd", False), (None, False)])
def test_a_body_from_the_hub_is_of_the_same_commit(
    commit: str | None, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Names and branches move on: what they mean now is compared."""
    asked: list[Any] = []
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda place, **options: asked.append((place, options)))
    monkeypatch.setattr("unimodal_ar.adapters.text_states.commit_of", lambda place, options: commit)
    states = TextStates(LanguageModel(pretrained="some/llm", revision="main"))
    source = {"name_or_path": "some/llm", "revision": "abc", "gguf_file": None}
    assert states._is_from_here(source) == expected
    assert not states._is_from_here(source | {"name_or_path": "other/llm"})
    assert not states._is_from_here(source | {"subfolder": "x"}) and not states._is_from_here(source | {"own": True})
    assert asked == [("some/llm", {"revision": "main", "trust_remote_code": False})]


@pytest.mark.parametrize("placed", [False, True])
def test_a_body_goes_to_the_gpu_for_the_time_unless_it_is_spread(
    placed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over several devices, by a device_map: moved, it would lie on one of them in the end."""
    body, moved = AutoModel.from_pretrained(save_language_model(tmp_path / "llm")), []
    body.hf_device_map = {"layers.0": "cpu", "layers.1": "cpu"} if placed else None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(type(body), "to", lambda _, device: moved.append(device.type))
    with text_states._where_it_is_fast(body) as device:
        assert device.type == ("cpu" if placed else "cuda")
    assert moved == ([] if placed else ["cuda", "cpu"])


def test_a_loaded_model_is_identified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds for a large one."""
    read: list[Any] = []

    def noting(state: Any) -> str:
        read.append(state)
        return fingerprint(state)

    monkeypatch.setattr(text_states, "fingerprint", noting)
    states = states_of(save_language_model(tmp_path / "llm"))
    for text in TEXTS:
        states.states([text])
    assert len(read) == 1


def test_copies_come_without_models(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path / "llm")
    states = states_of(folder)
    states.share(AutoModel.from_pretrained(folder), source_of(folder))
    expected = states.states(TEXTS)
    for copied in (copy.deepcopy(states), pickle.loads(pickle.dumps(states))):
        assert copied._shared is None and torch.equal(copied.states(TEXTS), expected)
    assert len(pickle.dumps(states)) < 20_000


# --- what goes wrong --------------------------------------------------------------------------------------------------


def test_other_weights_are_refused(tmp_path: Path) -> None:
    """Those of a folder whose model was exchanged."""
    folder = save_language_model(tmp_path / "llm")
    states = states_of(folder)
    states.states(TEXTS[:1])
    known = states.language_model
    save_language_model(folder, seed=1)
    found = source_of(folder)["fingerprint"]
    assert known.fingerprint is not None
    message = f"fingerprint {found[:12]}; the states that are wanted are those of .* {known.fingerprint[:12]}, and no"
    with pytest.raises(ValueError, match=message):
        TextStates(known).states(TEXTS)


def test_models_that_cannot_be_had_are_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"language_model.pretrained is 'no/where', which cannot be loaded \("):
        states_of(Path("no/where")).states(TEXTS)
    cut = save_language_model(tmp_path / "cut") / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"language_model.pretrained is '.*cut', which cannot be loaded \(.*file not"):
        states_of(cut.parent).states(TEXTS)
    short = save_language_model(tmp_path / "short", "gpt2", positions=16)
    with pytest.raises(ValueError, match=r"text 'from 2024-01-01 to 2024-01-02' has 25 tokens; .* takes 1 to 16"):
        states_of(short).states(TEXTS)
    with pytest.raises(ValueError, match=r"language_model.width is 7; .* has states of 32"):
        states_of(short, width=7).states(TEXTS[:1])


def test_damage_to_the_cache_is_told(tmp_path: Path, cache: Path) -> None:
    states = states_of(save_language_model(tmp_path / "llm"))
    expected = states.states(TEXTS)
    (path,) = cache.iterdir()
    with sqlite3.connect(path) as file:
        file.execute("UPDATE states SET state = x'000000' WHERE text = ?", (TEXTS[1],))
    again = TextStates(states.language_model)
    message = r"sqlite' is damaged \({}.*\); delete the file, and its states are computed again"
    with pytest.raises(ValueError, match=message.format("the state of 'from .*' has 3 bytes, not 128")):
        again.states(TEXTS)
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(ValueError, match=message.format("file is not a database")):
        again.states(TEXTS)
    path.unlink()
    assert torch.equal(again.states(TEXTS), expected)


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = save_language_model(tmp_path / "llm")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNIMODAL_AR_CACHE", str(tmp_path / "file"))
    with pytest.raises(ValueError, match=r"cannot be used \(.*\); set UNIMODAL_AR_CACHE to a folder that can be"):
        states_of(folder).states(TEXTS)


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert text_states._cache() == tmp_path / "cache"
    monkeypatch.delenv("UNIMODAL_AR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert text_states._cache() == tmp_path / "xdg" / "unimodal_ar"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert text_states._cache() == tmp_path / ".cache" / "unimodal_ar"


def _write(path: Path, number: int) -> None:
    store = text_states._Store(path, 2)
    for i in range(40):
        store.write({f"{number}/{i}": np.full(2, i, np.float32), f"all/{i}": np.full(2, i, np.float32)})


def test_several_processes_may_write_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=_write, args=(tmp_path / "some" / "x.sqlite", n)) for n in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    expected = {f"{group}/{i}": [i, i] for group in (*range(4), "all") for i in range(40)}
    found = text_states._Store(tmp_path / "some" / "x.sqlite", 2).read(list(expected))
    assert {name: state.tolist() for name, state in found.items()} == expected
