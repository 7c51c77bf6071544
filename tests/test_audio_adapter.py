"""Audio as elements: round trips, streams, chunks, completions, files and whatever does not fit."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimodal_ar import Segment
from unimodal_ar.adapters import AudioAdapter, AudioClip, AutoAdapter, load_adapters

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")
RATE = 8000
MEL = {"kind": "mel", "n_fft": 128, "hop": 32, "n_mels": 16, "mean": -4.0, "std": 2.0, "iterations": 4}
# Every kind of elements, with and without groups and patches; B waves of C channels.
KINDS: dict[str, dict[str, Any]] = {
    "mulaw": dict(elements={"kind": "mulaw"}),
    "mulaw stereo": dict(elements={"kind": "mulaw", "levels": 64}, channels=2),
    "mulaw groups": dict(elements={"kind": "mulaw", "group": 4}, channels=2),
    "waveform": dict(elements={"kind": "waveform", "patch": 80, "std": 0.25}),
    "waveform stereo": dict(elements={"kind": "waveform", "patch": 50, "std": 0.25}, channels=2),
    "mel": dict(elements=MEL),
    "mel stereo": dict(elements={**MEL, "patch": 2}, channels=2),
    "mel patches": dict(elements={**MEL, "patch": [4, 8]}),
    "codec parallel": dict(elements={"kind": "codec"}),
    "codec delay": dict(elements={"kind": "codec", "pattern": "delay"}),
    "codec grid": dict(elements={"kind": "codec", "pattern": "grid", "codebooks": 2}),
}


def codec() -> Any:
    """A tiny EnCodec of 8 samples a step and 3 codebooks of 16 codes."""
    from transformers import EncodecConfig, EncodecModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(
        num_filters=4, hidden_size=8, upsampling_ratios=[4, 2], codebook_size=16, kernel_size=5
    )
    model: Any = EncodecModel(EncodecConfig(sampling_rate=RATE, target_bandwidths=[12.0], **sizes))
    for layer in model.quantizer.layers:
        torch.nn.init.normal_(layer.codebook.embed, std=0.3)
    return model


def make(kind: str, seconds: float = 0.2, **options: Any) -> AudioAdapter:
    given = {**KINDS[kind], **options}
    return AudioAdapter(RATE, seconds, tokenizer=codec() if "codec" in kind else None, **given)


def sound(samples: int, rows: int = 2, channels: int = 1) -> Tensor:
    """[rows, C, S]: tones of different heights."""
    time = torch.arange(samples) / RATE
    height = 250 * (1 + torch.arange(rows * channels)).view(rows, channels, 1)
    return (0.4 * torch.sin(2 * math.pi * height * time) + 0.02 * torch.randn(rows, channels, samples)).float()


@pytest.fixture(params=list(KINDS))
def adapter(request: pytest.FixtureRequest) -> AudioAdapter:
    return make(request.param)


# ---- round trips


def test_values_are_of_the_element_and_come_back_as_long(adapter: AudioAdapter) -> None:
    waves = sound(3 * adapter.samples, channels=adapter.channels)
    segment = adapter.encode_waves(waves)
    element = adapter.element
    if element["kind"] == "discrete":
        assert segment.values.dtype == torch.long and 0 <= int(segment.values.min())
        assert int(segment.values.max()) < element["vocab_size"]
        assert segment.values.shape[2:] == ((element["codes"],) if element["codes"] > 1 else ())
    else:
        assert segment.values.dtype == torch.float32 and segment.values.shape[2] == element["dim"]
    back = adapter.decode_waves(segment)
    assert back.shape == waves.shape and back.dtype == torch.float32
    assert adapter.grid_for(3 * adapter.seconds) == segment.grid
    assert segment.modality == "audio" and adapter.encode_waves(waves[:, :, : adapter.samples]).grid == adapter.grid


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=20), st.sampled_from([2, 16, 256, 1000]))
def test_mu_law_comes_back_within_its_quantisation(samples: list[float], levels: int) -> None:
    """The bound that `MuLawElements` states, half a level on the logarithmic scale."""
    adapter = AudioAdapter(RATE, len(samples) / RATE, elements={"kind": "mulaw", "levels": levels})
    wave = torch.tensor(samples)[None, None]
    mu = levels - 1
    bound = math.log1p(mu) / mu**2 * (1 + mu) ** (1 / mu) * (1 + mu * wave.abs())
    back = adapter.decode_waves(adapter.encode_waves(wave))
    assert bool(((back - wave).abs() <= bound + 1e-6).all())
    assert float(back.abs().max()) <= 1


def test_mu_law_clips_what_is_beyond_one() -> None:
    adapter = make("mulaw", 3 / RATE)
    assert adapter.encode_waves(torch.tensor([[[-7.0, 0.0, 7.0]]])).values.tolist() == [[0, 128, 255]]


@pytest.mark.parametrize("kind", ["waveform", "waveform stereo"])
def test_patches_of_samples_come_back_exactly(kind: str) -> None:
    adapter = make(kind)
    waves = sound(adapter.samples, channels=adapter.channels)
    torch.testing.assert_close(adapter.decode_waves(adapter.encode_waves(waves)), waves, atol=1e-6, rtol=0)


def test_samples_of_an_element_have_their_channels_innermost() -> None:
    waves = torch.tensor([[[0.1, 0.2, 0.3, 0.4], [-0.1, -0.2, -0.3, -0.4]]])
    adapter = AudioAdapter(RATE, 4 / RATE, 2, {"kind": "waveform", "patch": 2, "std": 1.0})
    wanted = torch.tensor([[[0.1, -0.1, 0.2, -0.2], [0.3, -0.3, 0.4, -0.4]]])
    assert torch.equal(adapter.encode_waves(waves).values, wanted)


def test_a_patch_of_mels_is_a_place_on_the_grid() -> None:
    """Patches only cut the spectrogram: frames along T, mels along W."""
    waves = sound(1600, channels=2)
    one, many = (AudioAdapter(RATE, 0.2, 2, {**MEL, "patch": patch}) for patch in (1, [2, 4]))
    whole = one.encode_waves(waves).values.view(2, 50, 16, 2)  # [B, frames, mels, C]
    values = many.encode_waves(waves).values.view(2, 25, 4, 2, 4, 2)  # [B, t, w, frames, mels, C]
    assert many.grid == (25, 1, 4)
    for t, w in ((0, 0), (3, 1), (24, 3)):
        assert torch.equal(values[:, t, w], whole[:, 2 * t : 2 * t + 2, 4 * w : 4 * w + 4])


def test_the_codecs_path_is_the_codecs_own() -> None:
    adapter = make("codec parallel")
    waves = sound(adapter.samples)
    model = codec().eval()
    codes = model.encode(waves, bandwidth=12.0).audio_codes[0]
    segment = adapter.encode_waves(waves)
    assert torch.equal(segment.values, codes.transpose(1, 2))
    theirs = model.decode(codes[None], [None])[0]
    torch.testing.assert_close(adapter.decode_waves(segment), theirs, atol=1e-6, rtol=0)


# ---- streams


def growing(segment: Segment, cuts: list[int]) -> Iterator[Segment]:
    """As a model's stream shows a segment; what is not observed yet is 0."""
    rows = torch.arange(segment.num_elements) // (segment.num_elements // segment.grid[0])
    for cut in cuts:
        known = (rows < cut).expand(segment.batch_size, -1)
        mask = known if segment.values.dim() == 2 else known[..., None]
        yield segment.replace(values=segment.values * mask, observed=known)
    yield segment


@pytest.mark.parametrize("cuts", [[], [1], [2, 3, 9, 9, 30], list(range(1, 24))])
def test_a_stream_is_what_is_decoded_at_once(adapter: AudioAdapter, cuts: list[int]) -> None:
    waves = sound(4 * adapter.samples, channels=adapter.channels)
    segment = adapter.encode_waves(waves)
    cuts = [min(cut * max(1, segment.grid[0] // 30), segment.grid[0]) for cut in cuts]
    whole = adapter.decode(segment)
    parts = list(adapter.stream(growing(segment, cuts)))
    for row, clip in enumerate(whole):
        found = torch.cat([part[row].wave for part in parts], 1)
        if adapter.tokenizer is None:
            assert torch.equal(found, clip.wave)
        else:  # rounding of other shapes
            torch.testing.assert_close(found, clip.wave, atol=1e-5 * float(clip.wave.abs().max()), rtol=0)


def test_a_stream_gives_what_is_sure_early() -> None:
    adapter = make("mel", seconds=2.0)
    segment = adapter.encode_waves(sound(adapter.samples))
    early = next(iter(adapter.stream(growing(segment, [40, 400]))))
    assert [clip.wave.shape[1] for clip in early] == [32 * 32 - 48] * 2


def test_what_is_not_observed_is_silence() -> None:
    adapter = make("waveform")
    segment = adapter.encode_waves(sound(adapter.samples))
    observed = torch.ones(2, 20, dtype=torch.bool)
    observed[1, 5:7] = False
    holes = segment.replace(values=segment.values.masked_fill(~observed[..., None], torch.nan), observed=observed)
    wanted = adapter.decode_waves(segment)
    wanted[1, :, 5 * 80 : 7 * 80] = 0
    assert torch.equal(adapter.decode_waves(holes), wanted)
    parts = [torch.stack([clip.wave for clip in part]) for part in adapter.stream([holes])]
    assert torch.equal(torch.cat(parts, 2), wanted)


# ---- raw clips


def test_clips_come_at_any_rate_and_with_any_channels(tmp_path: Path) -> None:
    stereo = np.stack([np.full(4800, 0.25), np.full(4800, 0.75)], 1)
    soundfile.write(tmp_path / "a.wav", stereo, 48000, subtype="FLOAT")
    mono, both = AudioAdapter(16000, 0.2), AudioAdapter(48000, 0.2, 2)
    clips = [tmp_path / "a.wav", AudioClip(torch.full((1, 800), 0.5), 8000), (np.full(1600, 0.5), 16000)]
    for wave in mono.waves(clips):
        assert wave.shape == (1, 1600)
        assert float((wave[:, 200:-200] - 0.5).abs().max()) < 2e-3
    assert [tuple(wave.shape) for wave in both.waves(clips)] == [(2, 4800)] * 3
    assert torch.equal(mono.waves(clips[2])[0], mono.waves(clips[2:])[0])


def test_what_is_wrong_with_a_clip_is_told_with_its_name(tmp_path: Path) -> None:
    adapter = make("mulaw")
    soundfile.write(tmp_path / "eight.wav", np.zeros((100, 8)), RATE)
    with pytest.raises(ValueError, match=f"^{re.escape(str(tmp_path))}.eight.wav has 8 channels"):
        adapter.waves([tmp_path / "eight.wav"])
    with pytest.raises(ValueError, match=r"^clip 1 has 3 channels, which cannot be mixed to 1"):
        adapter.waves([(np.zeros(9), RATE), (np.zeros((3, 9)), RATE)])
    with pytest.raises(ValueError, match=r"^clip 1 has 1 s; at most 0\.2 s fit, so cut it with chunks\(\)$"):
        adapter.encode([(np.zeros(9), RATE), (np.zeros(RATE), RATE)])
    with pytest.raises(ValueError, match=r"^the list of clips is empty"):
        adapter.waves([])


def test_short_clips_are_followed_by_silence() -> None:
    adapter = make("waveform")
    waves = adapter.decode_waves(adapter.encode([(np.full(90, 0.5), RATE), (np.full(1600, 0.5), RATE)]))
    assert waves.sum(2).tolist() == [[45.0], [800.0]] and float(waves[0, 0, 90:].abs().max()) == 0


def test_loudness_is_that_of_every_clip() -> None:
    adapter = make("waveform", loudness=-20)
    quiet, loud = adapter.waves([(0.01 * sound(800, 1)[0], RATE), (sound(800, 1)[0], RATE)])
    for wave in (quiet, loud):
        assert 20 * math.log10(float(wave.square().mean().sqrt())) == pytest.approx(-20, abs=1e-3)


@pytest.mark.parametrize(("samples", "overlap", "count"), [(1, 0, 1), (1600, 0, 1), (1601, 0, 2), (4800, 0, 3)])
def test_chunks_hold_everything_once(samples: int, overlap: float, count: int) -> None:
    adapter = make("mulaw")
    wave = sound(samples, 1, 1)[0]
    chunks = adapter.chunks(wave, overlap)
    assert chunks.shape == (count, 1, 1600) and chunks.is_contiguous()
    flat = chunks.transpose(0, 1).flatten(1)
    assert torch.equal(flat[:, :samples], wave) and not flat[:, samples:].any()


def test_chunks_overlap_by_what_is_stated() -> None:
    adapter = make("mulaw", channels=2)
    for samples in (1600, 1601, 2000, 2800, 2801, 9999):
        wave = torch.rand(2, samples) + 1  # nowhere 0
        chunks = adapter.chunks(wave, 0.05)
        for place in range(1, len(chunks)):
            assert torch.equal(chunks[place, :, :400], chunks[place - 1, :, -400:])
            assert chunks[place, :, 400:].any()  # something new
        whole = torch.cat([chunks[0], *(chunk[:, 400:] for chunk in chunks[1:])], 1)
        assert torch.equal(whole[:, :samples], wave)
    wave = torch.zeros(2, 9999)
    for overlap in (-0.1, 0.2):
        with pytest.raises(ValueError, match=rf"^overlap is {overlap} s; .* less than the window, 0\.2 s$"):
            adapter.chunks(wave, overlap)


# ---- fitting


@pytest.mark.parametrize("kind", ["waveform", "mel"])
def test_fitted_values_have_unit_variance(kind: str) -> None:
    free = {key: value for key, value in KINDS[kind]["elements"].items() if key not in ("mean", "std")}
    adapter = make(kind, elements=free)
    waves = sound(1600, 4)
    assert make(kind, elements=free).needs_fit
    with pytest.raises(ValueError, match=r"call fit\(waves\) first"):
        adapter.encode_waves(waves)
    with pytest.raises(ValueError, match=r"call fit\(waves\) first"):
        adapter.decode_waves(make(kind).encode_waves(waves))
    with pytest.raises(ValueError, match="empty or all silent"):
        adapter.fit(torch.zeros(1, 1, 1600))
    adapter.fit(waves)
    values = adapter.encode_waves(waves).values
    assert float(values.square().mean()) == pytest.approx(1, rel=1e-3)
    assert kind == "waveform" or float(values.mean()) == pytest.approx(0, abs=1e-3)
    before, needed = adapter.config(), adapter.needs_fit
    assert not needed
    adapter.fit([3 * wave[:, :-5] for wave in waves])  # of any length
    assert adapter.config() != before


def test_codes_are_not_fitted() -> None:
    with pytest.raises(ValueError, match=r"^elements.kind is 'mulaw'; only 'mel' and 'waveform' are fitted$"):
        make("mulaw").fit(sound(80))


# ---- completing


def test_a_prompt_is_what_a_clip_begins_with(adapter: AudioAdapter) -> None:
    step = adapter.step
    samples = adapter.samples // 2 // step * step
    whole = sound(adapter.samples, channels=adapter.channels)
    found = adapter.complete([(wave[:, : samples + step // 2], RATE) for wave in whole])
    assert found.grid == adapter.grid and found.observed is not None
    kept = found.observed[0]
    known = int(kept.sum())
    assert torch.equal(kept, torch.arange(len(kept)) < known) and bool((found.observed == kept).all())
    # Nothing that is kept depends on what comes after the prompt: the whole clip has the same values there.
    if adapter.tokenizer is None:
        assert torch.equal(found.values[:, :known], adapter.encode_waves(whole).values[:, :known])
    if adapter.config()["elements"]["kind"] != "mel":  # the last frames of a prompt tell of what comes after it
        assert known == samples // step * adapter.grid[2]


def test_a_prompts_last_frames_tell_of_what_comes_after() -> None:
    adapter = make("mel")  # frames of 128 samples every 32, 48 of them after the frame's own
    for samples, steps in ((80, 1), (111, 1), (112, 2), (1600 + 48, 0)):
        prompt = (sound(samples, 1)[0], RATE)
        if steps:
            assert int(adapter.complete(prompt).element_observed.sum()) == steps
        else:
            with pytest.raises(ValueError, match=r"^given has 0\.206 s; it must have at least 0\.01 s and less than"):
                adapter.complete(prompt)


def test_a_completion_has_the_length_asked_for() -> None:
    adapter = make("codec delay")
    prompt = sound(800, 1)[0]
    found = adapter.complete((prompt, RATE), seconds=10.0)
    assert found.grid == adapter.grid_for(10.0) == (10002, 1, 1)
    # Row r holds code k of step r - k: the first hundred rows are those of the hundred steps of the prompt.
    assert int(found.element_observed.sum()) == 100
    assert torch.equal(found.values[:, :100], adapter.encode_waves(prompt[None]).values[:, :100])


def test_a_mask_says_what_is_drawn_anew() -> None:
    wave = sound(1600, 1)[0]
    adapter = make("waveform")
    found = adapter.complete((wave, RATE), [(0.015, 0.03), (0.19, 0.2)])
    drawn = (~found.element_observed[0]).nonzero()[:, 0].tolist()
    assert drawn == [1, 2, 19]
    kept = found.element_observed[0]
    assert torch.equal(found.values[0, kept], adapter.encode_waves(wave[None]).values[0, kept])
    assert not found.values[0, 2].any()  # encoded as silence


@pytest.mark.parametrize("kind", ["mel", "codec delay", "codec grid"])
def test_what_is_kept_does_not_depend_on_what_a_mask_hides(kind: str) -> None:
    adapter = make(kind)
    one = sound(1600, 1)[0]
    other = one.clone()
    other[:, 640:720] = 0.9
    found = [adapter.complete((wave, RATE), [(0.08, 0.09)]) for wave in (one, other)]
    kept = found[0].element_observed
    assert torch.equal(found[0].values[kept], found[1].values[kept])
    rows = (~kept[0]).view(-1, adapter.grid[2]).any(1).nonzero()[:, 0].tolist()
    # A frame begins 48 samples before its own; the last code of a step is two rows after the first.
    assert (
        rows
        == {"mel": list(range(18, 24)), "codec delay": list(range(80, 92)), "codec grid": list(range(80, 90))}[kind]
    )
    if kind == "mel":
        assert torch.equal(found[0].values[kept], adapter.encode_waves(one[None]).values[kept])


def test_what_a_mask_hides_has_no_part_in_resampling_and_loudness() -> None:
    """Files of another rate, and a loudness that a loud part would change."""
    adapter = make("waveform", loudness=-20.0)
    one = 0.1 * torch.randn(1, 2 * 1600 - 20)  # and a little silence behind it
    other = one.clone()
    other[:, 1280:1600] *= 8
    found = [adapter.complete((wave, 2 * RATE), [(0.08, 0.1)]) for wave in (one, other)]
    kept = found[0].element_observed
    assert torch.equal(found[0].values[kept], found[1].values[kept])
    assert (~kept[0]).nonzero()[:, 0].tolist() == [7, 8, 9, 10]  # 80 and 160 ms, and what they are mixed with
    waves = adapter.decode_waves(found[0])
    told = torch.cat([waves[..., :560], waves[..., 880:1590]], -1)
    assert float(told.square().mean().sqrt()) == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("rate", [RATE, 2 * RATE, 11025, 44100])
def test_a_prompt_of_another_rate_is_kept_as_it_is_in_the_whole(rate: int) -> None:
    adapter = make("mulaw")
    wave = 0.1 * torch.randn(1, rate)
    whole, prompt = adapter.waves((wave, rate))[0], wave[:, : rate // 10]
    found = adapter.complete((prompt, rate))
    kept = int(found.element_observed.sum())
    assert 780 <= kept <= 800 and (kept == 800) == (rate == RATE)
    assert torch.equal(found.values[0, :kept], adapter.encode_waves(whole[None, :, :kept]).values[0])


def test_the_ends_of_a_mask_are_not_rounded_up() -> None:
    adapter = AudioAdapter(24000, 5.0, elements={"kind": "waveform", "patch": 320, "std": 1.0})
    silence = (np.zeros(5 * 24000), 24000)
    assert 4.64 * 24000 < 348 * 320  # by a rounding error
    drawn = (~adapter.complete(silence, [(4.64, 4.8)]).element_observed[0]).nonzero()[:, 0]
    assert drawn.tolist() == list(range(348, 360))


@pytest.mark.parametrize("kind", ["mel", "mulaw", "codec delay"])
def test_autocast_changes_nothing(kind: str) -> None:
    adapter = make(kind)
    clips = [(0.1 * torch.randn(1, 2 * 1600), 2 * RATE)]
    segment = adapter.encode(clips)
    wanted = adapter.decode_waves(segment)
    with torch.autocast("cpu", torch.bfloat16):
        found = adapter.encode(clips)
        decoded = adapter.decode_waves(segment)
    assert torch.equal(found.values, segment.values)
    assert decoded.dtype == torch.float32 and torch.equal(decoded, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(given=None, mask=[(0, 1)]), "mask comes without given"),
        (dict(samples=79), r"given has 0\.009875 s; it must have at least 0\.01 s and less than the whole, 0\.2 s"),
        (dict(samples=1600), r"given has 0\.2 s"),
        (dict(samples=800, seconds=-1.0), r"seconds is -1\.0; it must be a positive number"),
        (dict(samples=1600, mask=[]), r"mask is \[\]; it must be a list of \(start, end\) in seconds, from 0 to 0\.2"),
        (dict(samples=1600, mask=[(0.1, 0.1)]), r"mask is \[\(0\.1, 0\.1\)\]"),
        (dict(samples=1600, mask=[(0.1, 0.3)]), "mask is "),
        (dict(samples=1600, mask="half"), "mask is 'half'"),
        (dict(samples=1700, mask=[(0, 0.1)]), "clip 0 has 0.2125 s; at most 0.2 s fit"),
    ],
)
def test_what_cannot_be_completed_is_refused(arguments: dict[str, Any], message: str) -> None:
    if "samples" in arguments:
        arguments = {**arguments, "given": (np.zeros(arguments["samples"]), RATE)}
        del arguments["samples"]
    with pytest.raises(ValueError, match=f"^{message}"):
        make("waveform").complete(**arguments)


def test_prompts_have_one_length() -> None:
    prompts = [(np.zeros(80), RATE), (np.zeros(160), RATE)]
    with pytest.raises(
        ValueError, match=r"^given has clips of \[1, 2\] steps of 0\.01 s; all must have the same number$"
    ):
        make("waveform").complete(prompts)


# ---- files


def test_several_clips_are_written_with_silence_between(tmp_path: Path) -> None:
    adapter = make("mulaw")
    clips = adapter.decode(adapter.encode_waves(sound(1600, 3)))
    for suffix in AudioAdapter.suffixes:
        adapter.save(clips, tmp_path / f"x{suffix}")
        data, rate = soundfile.read(tmp_path / f"x{suffix}", dtype="float32")
        assert rate == RATE and len(data) == 3 * 1600 + 2 * 4000
        assert not data[1600:5600].any()
        np.testing.assert_allclose(data[5600:7200], clips[1].wave[0], atol=2e-5)
    with pytest.raises(ValueError, match=r"must end in \.wav or \.flac$"):
        adapter.save(clips, tmp_path / "x.mp3")


def test_a_stream_is_written_as_it_comes(tmp_path: Path) -> None:
    adapter = make("waveform")
    segment = adapter.encode_waves(sound(1600, 1))
    sizes = []
    for told in adapter.save_stream(adapter.stream(growing(segment, [5, 10])), tmp_path / "x.wav"):
        sizes.append((told, soundfile.info(tmp_path / "x.wav").frames))
    assert sizes == [("0.05 s", 400), ("0.10 s", 800), ("0.20 s", 1600)]
    adapter.save(adapter.decode(segment), tmp_path / "y.wav")
    assert (tmp_path / "x.wav").read_bytes() == (tmp_path / "y.wav").read_bytes()
    with pytest.raises(ValueError, match=r"must end in \.wav$"):
        next(adapter.save_stream([], tmp_path / "x.flac"))
    with pytest.raises(ValueError, match="is to hold a stream of 2 clips; it must be one"):
        list(adapter.save_stream([[AudioClip(torch.zeros(1, 9), RATE)] * 2], tmp_path / "z.wav"))


def test_a_picture_shows_time_and_frequency(tmp_path: Path) -> None:
    pytest.importorskip("PIL")
    time = torch.arange(2 * RATE) / RATE
    wave = torch.sin(2 * math.pi * 1000 * time) * (time > 1) * 0.5
    adapter = AudioAdapter(RATE, 2.0)
    adapter.save([(wave, RATE)], tmp_path / "x.wav")
    picture = adapter.picture([tmp_path / "x.wav"])
    assert picture.mode == "RGB"
    light = np.array(picture.convert("L")).astype(float)[13:251, 59:697]  # inside the frame
    rows = light[:, 400:600].mean(1)  # the second half
    place = 1 - rows.argmax() / len(rows)  # 1000 Hz are 15 of 35.2 mels
    assert place == pytest.approx(15 / 35.2, abs=0.02)
    assert rows.max() > 200 and light[:, 50:300].mean() < 10  # and silence is dark
    assert adapter.picture([(wave, RATE)] * 3).size == (2 * (58 + 320 + 14), 2 * (12 + 160 + 34))
    silent = adapter.picture((torch.zeros(1, 5), RATE))  # nothing in it
    assert silent.size == picture.size and np.array(silent.convert("L"))[20:240, 70:690].max() < 10


FRESH = """
import sys, torch
from unimodal_ar.adapters import load_adapters
adapters = load_adapters(sys.argv[1])
waves = torch.load(sys.argv[2])
segments = {name: adapter.encode_waves(waves[:, : adapter.channels]) for name, adapter in adapters.items()}
decoded = {name: adapters[name].decode_waves(segment) for name, segment in segments.items()}
torch.save({name: (segment.values, decoded[name]) for name, segment in segments.items()}, sys.argv[3])
"""


def test_a_fresh_process_encodes_and_decodes_the_same(tmp_path: Path) -> None:
    waves = sound(3200, channels=2)  # whole steps of all
    adapters = [make(kind, modality=kind.replace(" ", "_")) for kind in KINDS]
    for adapter in adapters:
        json.dumps(adapter.config())
        adapter.save_pretrained(tmp_path / "model")
    torch.save(waves, tmp_path / "waves")
    (tmp_path / "model").rename(tmp_path / "moved")
    command = [sys.executable, "-c", FRESH, *(str(tmp_path / name) for name in ("moved", "waves", "values"))]
    subprocess.run(command, check=True, timeout=300)
    found = torch.load(tmp_path / "values")
    assert list(found) == [adapter.modality for adapter in adapters]
    for adapter in adapters:
        segment = adapter.encode_waves(waves[:, : adapter.channels])
        values, decoded = found[adapter.modality]
        assert torch.equal(values, segment.values)
        torch.testing.assert_close(decoded, adapter.decode_waves(segment), atol=1e-6, rtol=0)
    assert load_adapters(tmp_path / "moved")["mel"].config() == adapters[5].config()


def test_a_tokenizer_is_named_by_its_folder(tmp_path: Path) -> None:
    codec().save_pretrained(tmp_path / "tokens")
    elements = {"kind": "codec", "path": str(tmp_path / "tokens")}
    adapter = AudioAdapter(RATE, 0.2, elements=elements)
    assert (adapter.sources, adapter.folders) == ({"elements.path": elements["path"]}, ["audio_tokenizer"])
    assert adapter.modules == [adapter.tokenizer] and make("mulaw").modules == []
    waves = sound(1600)
    assert torch.equal(adapter.encode_waves(waves).values, make("codec parallel").encode_waves(waves).values)


# ---- what does not fit


def test_seconds_are_rounded_up_to_whole_steps() -> None:
    adapter = make("waveform", seconds=0.101)
    assert (adapter.samples, adapter.seconds, adapter.grid, adapter.dimensions) == (880, 0.11, (11, 1, 1), 880)
    assert (make("waveform", seconds=0.1).samples, make("waveform", seconds=0.3).samples) == (800, 2400)
    assert make("waveform", seconds=1e-9).samples == 80 and make("mulaw stereo").dimensions == 3200
    assert (adapter.step, adapter.sample_rate, adapter.channels, adapter.kind) == (80, RATE, 1, "audio")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(sample_rate=3), "AudioAdapter.sample_rate is 3: "),
        (dict(seconds=0), "AudioAdapter.seconds is 0: "),
        (dict(channels=8), "AudioAdapter.channels is 8: "),
        (dict(loudness=3.0), r"AudioAdapter.loudness is 3\.0: "),
        (dict(elements={"kind": "midi"}), "AudioAdapter.elements"),
        (
            dict(elements={"kind": "mulaw", "level": 3}),
            "AudioAdapter.elements has an unknown key 'level'; did you mean",
        ),
        (dict(elements={"kind": "codec"}), "elements.path is None and no tokenizer is given"),
        (dict(elements={"kind": "mulaw"}, tokenizer=1), "elements.kind is 'mulaw' and a tokenizer is given"),
        (
            dict(elements={"kind": "codec", "path": "x"}, tokenizer=1),
            "elements.path is 'x' and a tokenizer is given, too",
        ),
    ],
)
def test_illegal_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        AudioAdapter(**{"sample_rate": RATE, "seconds": 1.0, **options})


def test_a_codec_has_its_own_rate_and_channels() -> None:
    for other in (dict(sample_rate=16000), dict(channels=2)):
        with pytest.raises(ValueError, match=r"the tokenizer's (is|are)"):
            AudioAdapter(**{"sample_rate": RATE, "seconds": 1.0, "tokenizer": codec(), **other})


@pytest.mark.parametrize(
    ("waves", "message"),
    [
        (torch.zeros(1, 1, 81), "waves has 81 samples; it must be a multiple of the elements' step, 80"),
        (
            torch.zeros(1, 2, 80),
            r"waves has dtype torch.float32 and shape \(1, 2, 80\); it must be torch.float32 \[B, 1",
        ),
        (torch.zeros(1, 1, 80).double(), "waves has dtype torch.float64"),
        (torch.zeros(1, 80), "waves has "),
        (torch.zeros(1, 1, 0), "waves has "),
    ],
)
def test_wrong_waves_are_refused(waves: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make("waveform").encode_waves(waves)


def test_wrong_segments_are_refused() -> None:
    adapter, codes = make("waveform"), make("mulaw")
    for values, grid, message in (
        (torch.zeros(1, 4, 80), (2, 1, 2), r"grid is \(2, 1, 2\); with these elements it must be like \(2, 1, 1\)"),
        (torch.zeros(1, 4, 79), (4, 1, 1), r"segment's values are torch.float32 of shape \(1, 4, 79\)"),
        (torch.zeros(1, 4).long(), (4, 1, 1), "segment's values are torch.int64"),
        (torch.full((1, 4, 80), torch.inf), (4, 1, 1), "values to decode hold NaN or infinity"),
    ):
        with pytest.raises(ValueError, match=f"^{message}"):
            adapter.decode(Segment("audio", values, grid))
    for code in (-1, 256):
        with pytest.raises(ValueError, match=rf"^a code is {code}; it must be one of 0\.\.255$"):
            codes.decode(Segment("audio", torch.full((1, 4), code), (4, 1, 1)))


def test_an_adapter_is_built_from_its_configuration() -> None:
    adapter = make("mel patches", loudness=-23)
    again = AutoAdapter.from_config({"kind": "audio", **adapter.config()})
    assert isinstance(again, AudioAdapter) and again.config() == adapter.config() and again.element == adapter.element
