"""Frozen audio tokenizers: each against its library's own calls, streams against one piece, storage, refusals."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DacConfig, DacModel, EncodecConfig, EncodecModel, MimiConfig, MimiModel

from unimodal_ar.adapters.audio.codebooks import PATTERNS
from unimodal_ar.adapters.audio.codecs import CODECS, AudioTokenizer, CodecCodec, CodecElements, codec_codec, load_codec
from unimodal_ar.adapters.audio.codecs.streaming import ConvStream, Field, measure_field
from unimodal_ar.schema import parse

Build = Callable[..., Any]
RATE = 8000
SIZE = 16  # codes of a codebook


def encodec(**config: Any) -> Any:
    """Six codebooks, which it knows as bandwidths."""
    sizes = dict(num_filters=4, hidden_size=8, upsampling_ratios=[4, 2], codebook_size=SIZE, kernel_size=5)
    more = dict(sampling_rate=RATE, target_bandwidths=[8.0, 24.0])
    model: Any = EncodecModel(EncodecConfig(**{**sizes, **more, **config}))
    spread([layer.codebook.embed for layer in model.quantizer.layers], model.encoder, config.get("audio_channels", 1))
    return model


def dac(**config: Any) -> Any:
    sizes = dict(encoder_hidden_size=4, decoder_hidden_size=16, n_codebooks=4, codebook_size=SIZE, codebook_dim=4)
    model = DacModel(DacConfig(**{**sizes, "downsampling_ratios": [2, 4], "sampling_rate": RATE, **config}))
    for layer in model.modules():
        if isinstance(layer, nn.Conv1d):
            layer.reset_parameters()  # its own are so small that all places sound alike; with biases they do, too
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Embedding):
            nn.init.normal_(layer.weight)
    return model


def mimi(**config: Any) -> Any:
    """Its window is short, and its transformers count for more than at first."""
    sizes = dict(num_filters=4, hidden_size=16, upsampling_ratios=[4, 2], codebook_size=SIZE, codebook_dim=8)
    heads = dict(num_hidden_layers=2, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2)
    more = dict(vector_quantization_hidden_dimension=8, upsample_groups=16, num_quantizers=4, sampling_rate=RATE)
    window = dict(sliding_window=10, layer_scale_initial_scale=1.0)
    model: Any = MimiModel(MimiConfig(**{**sizes, **heads, **more, **window, **config}))
    for name, table in model.named_buffers():
        if name.endswith("embed_sum"):
            nn.init.normal_(table, std=0.5)
    return model


@torch.no_grad()
def spread(tables: list[Tensor], encoder: nn.Module, channels: int) -> None:
    """Fills codebooks with latents that random waves have, less and less of them, so that all codes occur."""
    places = encoder(torch.rand(1, channels, 50 * 8) * 2 - 1)[0].T
    centred = places - places.mean(0)
    for number, table in enumerate(tables):
        drawn = centred[torch.randperm(len(centred))[: len(table)]] / 2**number
        table.copy_(drawn + (places.mean(0) if number == 0 else 0))


# Name -> how a small one is built, its hop, channels and codebooks.
CASES: dict[str, tuple[Build, int, int, int]] = {
    "EncodecModel": (encodec, 8, 1, 6),
    "DacModel": (dac, 8, 1, 4),
    "MimiModel": (mimi, 16, 1, 4),
}

# Legal variants: what they change is how much a stream has to keep, and to hold back.
VARIANTS: dict[str, Build] = {
    "stereo": lambda: encodec(audio_channels=2),
    "not causal": lambda: encodec(use_causal_conv=False),
    "norm over time": lambda: encodec(use_causal_conv=False, norm_type="time_group_norm"),
    "one step ahead": lambda: encodec(trim_right_ratio=0.5),
    "odd stride": lambda: dac(downsampling_ratios=[2, 5]),
    "two semantic": lambda: mimi(num_semantic_quantizers=2),
}
BUILDS: dict[str, Build] = {name: case[0] for name, case in CASES.items()} | VARIANTS

every = pytest.mark.parametrize("name", CASES)
every_build = pytest.mark.parametrize("name", BUILDS)


def tokenizer_of(name: str) -> AudioTokenizer:
    torch.manual_seed(0)
    return load_codec(BUILDS[name]())


shared = functools.cache(tokenizer_of)  # for tests of many examples, none of which changes it


def waves(tokenizer: AudioTokenizer, steps: int = 12, batch: int = 2) -> Tensor:
    return torch.rand(batch, tokenizer.channels, steps * tokenizer.hop) * 2 - 1


def random_codes(tokenizer: AudioTokenizer, steps: int, batch: int = 2, codebooks: int | None = None) -> Tensor:
    return torch.randint(tokenizer.vocab_size, (batch, steps, codebooks or tokenizer.codebooks))


def refused(match: str, call: Callable[[], Any]) -> None:
    """`call` raises ValueError with one line that matches."""
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_every_codec_is_tested() -> None:
    assert set(CASES) == set(CODECS)


@every
def test_it_says_what_it_is_and_is_frozen(name: str) -> None:
    build, hop, channels, books = CASES[name]
    tokenizer = load_codec(build().train())
    x = waves(tokenizer).requires_grad_()
    codes = tokenizer.encode(x)
    found = (tokenizer.hop, tokenizer.channels, tokenizer.codebooks, tokenizer.vocab_size, tokenizer.sampling_rate)
    assert found == (hop, channels, books, SIZE, RATE)
    assert codes.shape == (2, 12, books) and codes.dtype == torch.long
    assert all(len(book.unique()) > 2 for book in codes.unbind(-1))  # else what is compared below says little
    decoded = tokenizer.decode(codes)
    assert decoded.shape == x.shape and decoded.dtype == torch.float32
    assert not (decoded.requires_grad or tokenizer.model.training)
    assert not any(weight.requires_grad for weight in tokenizer.model.parameters())


@every
def test_the_module_that_is_given_stays_as_it_is(name: str) -> None:
    module = CASES[name][0]().bfloat16().train()
    tokenizer = load_codec(module)
    assert module.training and all(weight.requires_grad for weight in module.parameters())
    assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in tokenizer.model.parameters()} == {torch.float32}
    before = tokenizer.encode(x := waves(tokenizer))
    nn.init.zeros_(next(module.parameters()))
    assert torch.equal(tokenizer.encode(x), before)


@every
def test_neither_the_batch_nor_autocast_changes_values(name: str) -> None:
    tokenizer = tokenizer_of(name)
    x = waves(tokenizer)
    codes = tokenizer.encode(x)
    decoded = tokenizer.decode(codes)
    assert torch.equal(torch.cat([tokenizer.encode(one[None]) for one in x]), codes)
    assert_close(torch.cat([tokenizer.decode(one[None]) for one in codes]), decoded, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(x), codes)
        assert torch.equal(tokenizer.decode(codes), decoded)
        decoder = tokenizer.decoder()
        assert_close(torch.cat([decoder.push(codes), decoder.finish()], -1), decoded, rtol=1e-5, atol=1e-5)


@every
def test_it_moves_as_a_whole(name: str) -> None:
    tokenizer = tokenizer_of(name)
    tokenizer.decode(tokenizer.encode(waves(tokenizer)))  # what is kept from this has to move, too
    assert tokenizer.to("meta") is tokenizer and tokenizer.device.type == "meta"
    tensors = [*tokenizer.model.parameters(), *tokenizer.model.buffers()]
    for module in tokenizer.model.modules():  # some keep tensors that `to` knows nothing of; numbers may stay
        tensors += [value for value in vars(module).values() if isinstance(value, Tensor) and value.dim()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@torch.no_grad()
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("books", [1, 2, 3, 6])
def test_encodec_equals_its_own_calls(books: int, channels: int) -> None:
    module = encodec(audio_channels=channels).eval()
    tokenizer = load_codec(module)
    x = waves(tokenizer)
    bandwidth = {2: 8.0, 6: 24.0}.get(books)  # the others are no bandwidth of the model
    codes = tokenizer.encode(x, books)
    if bandwidth is not None:
        assert torch.equal(codes, module.encode(x, bandwidth=bandwidth).audio_codes[0].transpose(1, 2))
    assert torch.equal(codes, tokenizer.encode(x)[..., :books])
    own = module.decode(codes.transpose(1, 2)[None], [None]).audio_values
    assert torch.equal(tokenizer.decode(codes), own)
    if books == 6:
        assert torch.equal(tokenizer.decode(codes), module(x, bandwidth=24.0).audio_values)


@torch.no_grad()
@pytest.mark.parametrize("books", [1, 3, 4])
@pytest.mark.parametrize("ratios", [[2, 4], [2, 5]])
def test_dac_equals_its_own_calls(ratios: list[int], books: int) -> None:
    module = dac(downsampling_ratios=ratios).eval()
    tokenizer = load_codec(module)
    x = waves(tokenizer)
    own = module.encode(x, n_quantizers=books)
    codes = tokenizer.encode(x, books)
    assert torch.equal(codes, own.audio_codes.transpose(1, 2))
    decoded = tokenizer.decode(codes)
    sound = module.decode(own.quantized_representation).audio_values
    short = {4: 0, 5: 2}[ratios[1]]  # an odd stride loses a sample, twice as many after the next
    assert sound.shape[-1] == decoded.shape[-1] - short
    assert_close(decoded[:, 0, : sound.shape[-1]], sound, rtol=1e-4, atol=1e-5)
    assert (decoded[:, 0, sound.shape[-1] :] == 0).all()


@torch.no_grad()
@pytest.mark.parametrize("books", [1, 2, 4])
@pytest.mark.parametrize("semantic", [1, 2])
def test_mimi_equals_its_own_calls(semantic: int, books: int) -> None:
    module = mimi(num_semantic_quantizers=semantic).eval()
    tokenizer = load_codec(module)
    x = waves(tokenizer, steps=30)
    codes = tokenizer.encode(x, books)
    if books >= semantic:
        own = module.encode(x, num_quantizers=books).audio_codes
        assert torch.equal(codes, own.transpose(1, 2))
    assert torch.equal(codes, tokenizer.encode(x)[..., :books])
    assert torch.equal(tokenizer.decode(codes), module.decode(codes.transpose(1, 2)).audio_values)


@every_build
@given(steps=st.integers(1, 9), data=st.data())
@examples(max_examples=6)
def test_steps_are_as_long_as_the_hop(name: str, steps: int, data: st.DataObject) -> None:
    tokenizer = shared(name)
    books = data.draw(st.integers(1, tokenizer.codebooks))
    x = waves(tokenizer, steps)
    codes = tokenizer.encode(x, books)
    assert codes.shape == (2, steps, books)
    assert tokenizer.decode(codes).shape == x.shape


# --- streams ----------------------------------------------------------------------------------------------------------


@every_build
@given(steps=st.integers(1, 80), data=st.data())
@examples(max_examples=12)
def test_a_stream_gives_what_one_piece_gives(name: str, steps: int, data: st.DataObject) -> None:
    tokenizer = shared(name)
    codes = random_codes(tokenizer, steps)
    whole = tokenizer.decode(codes)
    decoder = tokenizer.decoder()
    cuts = sorted(data.draw(st.lists(st.integers(0, steps), max_size=20)))
    pieces = [decoder.push(part) for part in codes.tensor_split(cuts, 1)]
    assert_close(torch.cat([*pieces, decoder.finish()], -1), whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


@every_build
def test_what_is_given_is_final_and_no_less_than_it_could_be(name: str) -> None:
    """By other continuations: no sample that was given depends on later codes, and the very next one does."""
    tokenizer = tokenizer_of(name)
    steps, known = 80, 50
    codes = random_codes(tokenizer, steps, batch=8)
    codes[:, :known] = codes[:1, :known]  # eight ways to go on
    given = tokenizer.decoder().push(codes[:1, :known]).shape[-1]
    tokenizer.model.double()  # what is far away counts for less than float32 tells apart
    ways = tokenizer.to("cpu").decode(codes)[:, 0]
    differs = (ways.amax(0) - ways.amin(0)) > 1e-14 * ways.abs().max()
    assert not differs[:given].any()
    if name == "norm over time":
        assert given == 0
    else:
        assert given > (known - 20) * tokenizer.hop
        assert differs[given : given + 2].any()


@every_build
def test_a_stream_forgets(name: str) -> None:
    """Time and memory of a push do not grow with what was pushed."""
    tokenizer = shared(name)
    decoder = tokenizer.decoder()
    kept = []
    for _ in range(30):
        decoder.push(random_codes(tokenizer, 5))
        places = [stream.kept for stream in decoder.streams if isinstance(stream, ConvStream)]
        kept.append(sum(part.shape[-1] for part in places if part is not None))
    assert (kept[-1] <= kept[14] + 1) == (name != "norm over time")


@every
def test_two_streams_do_not_meet(name: str) -> None:
    tokenizer = shared(name)
    codes = random_codes(tokenizer, 40, batch=2)
    first, second = tokenizer.decoder(), tokenizer.decoder()
    pieces: tuple[list[Tensor], list[Tensor]] = ([], [])
    for part in codes.split(7, 1):
        pieces[0].append(first.push(part[:1]))
        pieces[1].append(second.push(part[1:]))
    found = torch.cat([torch.cat([*pieces[0], first.finish()], -1), torch.cat([*pieces[1], second.finish()], -1)])
    assert_close(found, tokenizer.decode(codes), rtol=1e-5, atol=1e-5)


def test_the_field_of_known_convolutions() -> None:
    one = nn.Conv1d(2, 3, 5, padding=2)
    assert measure_field(one, 2, 1) == Field(hop=1, ahead=2, reach=3)
    two = nn.Sequential(nn.Conv1d(2, 4, 7, dilation=3, padding=9), nn.ConvTranspose1d(4, 1, 6, stride=3))
    # Nine places to both sides, then each reaches six outputs from its own on.
    assert measure_field(two, 2, 3) == Field(hop=3, ahead=27, reach=33)
    assert measure_field(nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.GroupNorm(1, 4)), 2, 1) is None


# --- storage ----------------------------------------------------------------------------------------------------------


@every
def test_saved_and_loaded_it_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of(name)
    tokenizer.save_pretrained(tmp_path / "model" / "audio")
    files = sorted(path.suffix for path in (tmp_path / "model" / "audio").iterdir())
    assert files == [".json", ".safetensors"]
    (tmp_path / "model").rename(tmp_path / "moved")

    monkeypatch.chdir(tmp_path)
    x = waves(tokenizer)
    codes = tokenizer.encode(x)
    for source, folder in ((tmp_path / "moved/audio", None), ("audio", tmp_path / "moved")):
        loaded = load_codec(source, folder)
        assert type(loaded) is CODECS[name] and not loaded.model.training
        assert torch.equal(loaded.encode(x), codes)
        assert torch.equal(loaded.decode(codes), tokenizer.decode(codes))


@every
def test_config_without_the_class_name(name: str, tmp_path: Path) -> None:
    tokenizer_of(name).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_codec(tmp_path)) is CODECS[name]


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    tokenizer_of("DacModel").save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    weights = load_file(file)
    del weights["decoder.conv1.bias"]
    save_file(weights, file, metadata={"format": "pt"})
    refused(rf"weights in {tmp_path} do not fit .*missing_keys \['decoder.conv1.bias'\]", lambda: load_codec(tmp_path))
    file.unlink()
    torch.save(weights, tmp_path / "pytorch_model.bin")
    refused(f"{tmp_path} has no model.safetensors; weights in other formats", lambda: load_codec(tmp_path))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (dict(normalize=True), "EncodecModel has normalize True; only models without it, like encodec_24khz"),
        (dict(chunk_length_s=1.0, overlap=0.01), "EncodecModel has chunk_length_s 1.0; only models without it"),
    ],
)
def test_an_encodec_whose_codes_say_too_little_is_refused(config: dict[str, Any], match: str) -> None:
    refused(match, lambda: load_codec(encodec(**config)))


def test_a_mimi_of_one_half_is_refused() -> None:
    module = mimi()
    module.encoder = None  # as a configuration can ask for
    refused("MimiModel has no encoder; a tokenizer needs", lambda: load_codec(module))


def test_other_classes_are_refused() -> None:
    refused(r"given as tokenizer is of class 'Linear'; known classes are \['Dac", lambda: load_codec(nn.Linear(1, 1)))
    refused(r"tokenizer is 3; it must be a folder, an id", lambda: load_codec(3))  # type: ignore[arg-type]
    refused(r"tokenizer './no/thing' is no folder", lambda: load_codec("./no/thing"))


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (torch.zeros(1, 16), r"waves are torch.float32 \[1, 16\]; they must be float \[clips, channels, samples\]"),
        (torch.zeros(1, 1, 16).short(), r"waves are torch.int16 \[1, 1, 16\]; they must be float"),
        (torch.zeros(1, 2, 16), r"waves have 2 channels; this tokenizer's have 1"),
        (torch.zeros(1, 1, 17), r"waves have 17 samples; it must be a multiple >= 1 of the tokenizer's 8"),
        (torch.zeros(1, 1, 0), r"waves have 0 samples; it must be a multiple >= 1"),
    ],
)
def test_bad_waves_are_refused(x: Tensor, match: str) -> None:
    refused(match, lambda: tokenizer_of("DacModel").encode(x))


@pytest.mark.parametrize("books", [0, 5])
def test_codebooks_that_are_not_there_are_refused(books: int) -> None:
    tokenizer = tokenizer_of("DacModel")
    match = f"codebooks is {books}; this tokenizer has 1..4"
    refused(match, lambda: tokenizer.encode(waves(tokenizer), books))
    refused(match, lambda: tokenizer.decode(torch.zeros(1, 3, books).long()))


@pytest.mark.parametrize(
    ("codes", "match"),
    [
        (torch.tensor([[[0, SIZE]]]), rf"a code is {SIZE}; it must be one of 0\.\.{SIZE - 1}"),
        (torch.tensor([[[-1]]]), rf"a code is -1; it must be one of 0\.\.{SIZE - 1}"),
        (
            torch.zeros(1, 2, 2),
            r"codes are torch.float32 \[1, 2, 2\]; they must be integers \[clips, steps, codebooks\]",
        ),
        (torch.zeros(1, 4).long(), r"codes are torch.int64 \[1, 4\]; they must be integers"),
        (torch.zeros(1, 2, 2).bool(), r"codes are torch.bool"),
    ],
)
@every
def test_bad_codes_are_refused(name: str, codes: Tensor, match: str) -> None:
    refused(match, lambda: shared(name).decode(codes))
    refused(match, lambda: shared(name).decoder().push(codes))


# --- as elements ------------------------------------------------------------------------------------------------------


def codec_of(tokenizer: AudioTokenizer, pattern: str, codebooks: int | None) -> CodecCodec:
    elements = parse(CodecElements, {"kind": "codec", "pattern": pattern, "codebooks": codebooks}, "elements")
    return codec_codec(elements, RATE, tokenizer.channels, tokenizer)


@pytest.mark.parametrize("codebooks", [None, 1, 3])
@pytest.mark.parametrize("pattern", PATTERNS)
@every
def test_elements_are_the_codes_under_the_pattern(name: str, pattern: str, codebooks: int | None) -> None:
    tokenizer = shared(name)
    codec = codec_of(tokenizer, pattern, codebooks)
    books = codebooks or tokenizer.codebooks
    x = waves(tokenizer, batch=19)  # more than are tokenized at a time
    values = codec.encode(x)
    grid = codec.grid(12)
    assert (codec.step, codec.steps(grid)) == (tokenizer.hop, 12)
    assert codec.element == {"kind": "discrete", "vocab_size": SIZE, "codes": PATTERNS[pattern].codes(books)}
    codes = tokenizer.encode(x, books)
    assert torch.equal(values, PATTERNS[pattern].build(codes))
    own = tokenizer.decode(codes)
    assert_close(codec.decode(values, grid), own, rtol=1e-5, atol=1e-5)
    refused("grid is", lambda: codec.decode(values, (grid[0], 2, grid[2])))


@pytest.mark.parametrize("pattern", PATTERNS)
@every
@given(steps=st.integers(1, 40), data=st.data())
@examples(max_examples=5)
def test_rows_that_come_piece_by_piece(name: str, pattern: str, steps: int, data: st.DataObject) -> None:
    tokenizer = shared(name)
    codec = codec_of(tokenizer, pattern, data.draw(st.sampled_from([1, 3])))
    grid = codec.grid(steps)
    values = PATTERNS[pattern].build(random_codes(tokenizer, steps, codebooks=codec.codebooks))
    whole = codec.decode(values, grid)
    assert whole.shape == (2, 1, steps * codec.step)
    decoder = codec.decoder()
    cuts = sorted(data.draw(st.lists(st.integers(0, grid[0]), max_size=10)))
    rows = values.unflatten(1, (grid[0], -1)).tensor_split(cuts, 1)
    pieces = [decoder.push(part.flatten(1, 2)) for part in rows]
    assert_close(torch.cat([*pieces, decoder.finish()], -1), whole, rtol=0, atol=1e-5 * float(whole.abs().max()))


def test_a_delay_decodes_whatever_stands_where_no_code_falls() -> None:
    codec = codec_of(tokenizer_of("EncodecModel"), "delay", 3)
    values = codec.encode(waves(codec.tokenizer))
    drawn = values.clone()
    drawn[:, 0, 1:] = drawn[:, -1, :2] = SIZE - 1
    assert not torch.equal(drawn, values)
    assert torch.equal(codec.decode(drawn, codec.grid(12)), codec.decode(values, codec.grid(12)))


def test_elements_that_do_not_fit_the_tokenizer_are_refused() -> None:
    tokenizer = tokenizer_of("DacModel")
    elements = CodecElements(kind="codec", codebooks=5)
    refused("codebooks is 5; this tokenizer has 1..4", lambda: codec_codec(elements, RATE, 1, tokenizer))
    elements = CodecElements(kind="codec")
    refused("sample_rate is 16000; the tokenizer's is 8000", lambda: codec_codec(elements, 16000, 1, tokenizer))
    refused("channels is 2; the tokenizer's are 1", lambda: codec_codec(elements, RATE, 2, tokenizer))
    match = re.escape("elements.pattern is 'flat': ")
    refused(match, lambda: parse(CodecElements, {"kind": "codec", "pattern": "flat"}, "elements"))
    codec = codec_of(tokenizer, "delay", 3)
    values = torch.full((1, 4, 3), SIZE)
    refused(f"a code is {SIZE}; it must be", lambda: codec.decode(values, (4, 1, 1)))
    refused(f"a code is {SIZE}; it must be", lambda: codec.decoder().push(values))
    refused(r"grid is \(2, 1, 1\); with these elements it must be like \(3, 1, 1\)", lambda: codec.steps((2, 1, 1)))
