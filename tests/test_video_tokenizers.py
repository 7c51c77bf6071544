"""Frozen video tokenizers: each against its library's own calls, which clips are legal, the adapter around them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from unimodal_ar.adapters import AutoAdapter, VideoAdapter, pretrained
from unimodal_ar.adapters.tokenizers import (
    VIDEO_TOKENIZERS,
    ImageTokenizer,
    Timing,
    VideoTokenizer,
    load_tokenizer,
    load_video_tokenizer,
)
from unimodal_ar.pipelines import Generator
from unimodal_ar.segment import Segment

from .helpers import build, series

diffusers = pytest.importorskip("diffusers")

STATISTICS = dict(latents_mean=[0.1, -0.2, 0.3, 0.4], latents_std=[0.5, 1.0, 2.0, 4.0])


def cogvideox(**config: Any) -> Any:
    blocks = dict(down_block_types=("CogVideoXDownBlock3D",) * 3, up_block_types=("CogVideoXUpBlock3D",) * 3)
    sizes = dict(block_out_channels=(8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=4)
    return diffusers.AutoencoderKLCogVideoX(**{**blocks, **sizes, **config})


def cosmos(**config: Any) -> Any:
    mean = torch.arange(4 * 6).float() / 10  # of 6 steps
    sizes = dict(encoder_block_out_channels=(8,) * 4, decode_block_out_channels=(8,) * 4, num_layers=1, patch_size=2)
    more = dict(latent_channels=4, attention_resolutions=(8,), resolution=32, spatial_compression_ratio=4)
    more |= dict(temporal_compression_ratio=4, latents_mean=mean.tolist(), latents_std=(mean + 1).tolist())
    return diffusers.AutoencoderKLCosmos(**{**sizes, **more, **config})


def hunyuan(**config: Any) -> Any:
    blocks = dict(
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8,) * 4,
    )
    return diffusers.AutoencoderKLHunyuanVideo(
        **{**blocks, "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 4, **config}
    )


def ltx(**config: Any) -> Any:
    sizes: dict[str, Any] = dict(
        latent_channels=8, block_out_channels=(8,) * 3, decoder_block_out_channels=(8,) * 3, patch_size=1
    )
    scaling: dict[str, Any] = dict(
        spatio_temporal_scaling=(True, True, False), decoder_spatio_temporal_scaling=(True, True, False)
    )
    blocks: dict[str, Any] = dict(down_block_types=("LTXVideoDownBlock3D",) * 3, downsample_type=("conv",) * 3)
    more: dict[str, Any] = dict(
        layers_per_block=(1,) * 4, decoder_layers_per_block=(1,) * 4, decoder_inject_noise=(False,) * 4
    )
    more |= dict(upsample_residual=(False,) * 3, upsample_factor=(1,) * 3)
    model = diffusers.AutoencoderKLLTXVideo(**{**sizes, **scaling, **blocks, **more, "scaling_factor": 0.5, **config})
    model.latents_mean.copy_(torch.arange(8) / 10)
    model.latents_std.copy_(torch.arange(8) / 4 + 0.5)
    return model


def noisy_ltx() -> Any:
    model = ltx(timestep_conditioning=True, decoder_inject_noise=(True,) * 4)
    for name, weight in model.named_parameters():
        if "per_channel_scale" in name:
            nn.init.ones_(weight)
    return model


def mochi(**config: Any) -> Any:
    sizes = dict(encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4, latent_channels=4)
    return diffusers.AutoencoderKLMochi(
        **{**sizes, "layers_per_block": (1,) * 5, **STATISTICS, "scaling_factor": 2.0, **config}
    )


def temporal_decoder(**config: Any) -> Any:
    sizes = dict(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2, latent_channels=4)
    return diffusers.AutoencoderKLTemporalDecoder(**{**sizes, **config})


def vidtok(**config: Any) -> Any:
    sizes = dict(ch=32, ch_mult=[1, 1, 1], num_res_blocks=1, z_channels=2, codebook_size=64, regularizer="fsq")
    model = diffusers.AutoencoderVidTok(**{**sizes, "double_z": False, **config})
    if model.config.is_causal:  # untrained weights tell few codes
        model.encoder.conv_out.conv.weight.data.mul_(8)
    return model


def vidtok_latents(**config: Any) -> Any:
    return vidtok(**{"regularizer": "kl", "double_z": True, "z_channels": 4, **config})


def wan(**config: Any) -> Any:
    sizes = dict(base_dim=8, z_dim=4, dim_mult=[1, 1, 1], num_res_blocks=1, temperal_downsample=[True, True])
    return diffusers.AutoencoderKLWan(**{**sizes, **STATISTICS, **config})


# How a small one is built, its factor, frames of a step, steps that come together, whether it is causal, dim or codes.
CASES: dict[str, tuple[Callable[..., Any], int, int, int, bool, int]] = {
    "cogvideox": (cogvideox, 4, 4, 2, True, 4),
    "cosmos": (cosmos, 4, 4, 1, True, 4),
    "hunyuan": (hunyuan, 8, 4, 1, True, 4),
    "ltx": (ltx, 4, 4, 1, True, 8),
    "mochi": (mochi, 8, 6, 1, True, 4),
    "temporal_decoder": (temporal_decoder, 2, 1, 1, False, 4),
    "vidtok": (vidtok, 4, 4, 1, True, 64),
    "vidtok_latents": (vidtok_latents, 4, 4, 1, True, 4),
    "wan": (wan, 4, 4, 1, True, 4),
}


def load(module: nn.Module) -> VideoTokenizer:
    tokenizer = load_video_tokenizer(module)
    assert isinstance(tokenizer, VideoTokenizer)
    return tokenizer


every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def clips(batch: int = 2, frames: int = 9, height: int = 16, width: int = 24) -> Tensor:
    return torch.rand(batch, 3, frames, height, width) * 2 - 1


def legal(name: str, least: int = 2) -> int:
    """A legal number of frames, of at least so many steps."""
    _, _, time, chunk, causal, _ = CASES[name]
    return 1 + time * chunk * -(-least // chunk) if causal else least


def test_every_tokenizer_is_tested() -> None:
    assert {type(build()).__name__ for build, *_ in CASES.values()} == set(VIDEO_TOKENIZERS)


@every
def test_it_says_what_it_is_and_is_frozen(name: str) -> None:
    build, factor, time, chunk, causal, size = CASES[name]
    module = build().bfloat16().train()
    tokenizer = load(module)
    assert (tokenizer.channels, tokenizer.factor, tokenizer.time, tokenizer.causal) == (3, factor, time, causal)
    assert tokenizer.timing.chunk == chunk
    assert (tokenizer.vocab_size if tokenizer.discrete else tokenizer.dim) == size
    assert module.training and all(weight.requires_grad for weight in module.parameters())  # a copy was taken
    assert {weight.dtype for weight in tokenizer.model.parameters()} == {torch.float32}
    assert not tokenizer.model.training and not any(weight.requires_grad for weight in tokenizer.model.parameters())


@every
def test_legal_clips_go_there_and_back_and_others_are_refused(name: str) -> None:
    build, factor, time, chunk, causal, size = CASES[name]
    tokenizer = load(build())
    hop, lead = time * chunk, int(causal)
    for frames in range(1, 2 * hop * 4 + 3):
        x = clips(1, frames)
        if (frames - lead) % hop:
            with pytest.raises(ValueError, match=rf"frames is {frames}; with elements of {time} frames.* it must be"):
                tokenizer.encode(x)
            continue
        values = tokenizer.encode(x)
        steps = lead + (frames - lead) // time
        assert values.shape == (1, steps, 16 // factor, 24 // factor) + (() if tokenizer.discrete else (size,))
        assert values.dtype == (torch.long if tokenizer.discrete else torch.float32)
        decoded = tokenizer.decode(values)
        assert (decoded.shape, decoded.dtype) == (x.shape, torch.float32)
        assert decoded.isfinite().all() and decoded.abs().max() <= 1
        assert (tokenizer.timing.frames(steps), tokenizer.timing.steps(frames)) == (frames, steps)
        if frames > 2 * hop and name == "cosmos":
            break  # its statistics are of 6 steps


@every
def test_neither_the_batch_nor_autocast_changes_values(name: str) -> None:
    tokenizer = load(CASES[name][0]())
    x = clips(2, legal(name))
    values = tokenizer.encode(x)
    decoded = tokenizer.decode(values)
    assert torch.equal(torch.cat([tokenizer.encode(one[None]) for one in x]), values)
    assert torch.equal(torch.cat([tokenizer.decode(one[None]) for one in values]), decoded)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(x), values)
        assert torch.equal(tokenizer.decode(values), decoded)
    assert not torch.equal(values[0], values[1])


@every
def test_it_moves_as_a_whole(name: str) -> None:
    tokenizer = load(CASES[name][0]())
    assert tokenizer.to("meta") is tokenizer and tokenizer.device.type == "meta"
    x = clips(1, legal(name)).to("meta")
    values = tokenizer._encode(x)  # fails where anything stayed behind; so does the next
    assert values.device.type == "meta"
    assert tokenizer._decode(values).shape == x.shape


# Name -> what the class's pipelines subtract from latents, and what they then multiply by.
NORMALISED: dict[str, tuple[Any, Any]] = {
    "cogvideox": (0.0, 1.15258426),
    "cosmos": (
        torch.arange(24).view(1, 4, 6, 1, 1)[:, :, :3] / 10,
        1 / (torch.arange(24).view(1, 4, 6, 1, 1)[:, :, :3] / 10 + 1),
    ),
    "hunyuan": (0.0, 0.476986),
    "ltx": (torch.arange(8).view(8, 1, 1, 1) / 10, 0.5 / (torch.arange(8).view(8, 1, 1, 1) / 4 + 0.5)),
    "mochi": (
        torch.tensor(STATISTICS["latents_mean"]).view(4, 1, 1, 1),
        2 / torch.tensor(STATISTICS["latents_std"]).view(4, 1, 1, 1),
    ),
    "vidtok_latents": (0.0, 1.0),
    "wan": (
        torch.tensor(STATISTICS["latents_mean"]).view(4, 1, 1, 1),
        1 / torch.tensor(STATISTICS["latents_std"]).view(4, 1, 1, 1),
    ),
}


@torch.no_grad()
@pytest.mark.parametrize("name", NORMALISED)
def test_latents_are_those_of_the_pipelines(name: str) -> None:
    module = CASES[name][0]().eval()
    tokenizer = load(module)
    x = clips(1, 1 + CASES[name][2] * 2)
    # VidTok is given whole steps, the first frame of which is repeated.
    padded = torch.cat([x[:, :, :1]] * 3 + [x], 2) if name == "vidtok_latents" else x
    mode = module.encode(padded).latent_dist.mode()
    shift, scale = NORMALISED[name]
    latents = tokenizer.encode(x)
    assert_close(latents, ((mode - shift) * scale).movedim(1, -1))
    decoded = module.decode(mode)
    decoded = decoded if isinstance(decoded, Tensor) else decoded.sample
    assert_close(tokenizer.decode(latents), decoded.clamp(-1, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_temporal_decoder_equals_its_own_calls() -> None:
    module = temporal_decoder().eval()
    for parameter in module.parameters():  # what mixes frames is untrained, and mixes little
        parameter.add_(torch.randn_like(parameter) * 0.05)
    tokenizer = load(module)
    x = clips(2, 3)
    mode = module.encode(x.movedim(2, 1).flatten(0, 1)).latent_dist.mode()
    latents = tokenizer.encode(x)
    assert_close(latents.flatten(0, 1), mode.movedim(1, -1) * 0.18215, rtol=1e-4, atol=1e-5)
    decoded = module.decode(mode, num_frames=3).sample.unflatten(0, (2, 3)).movedim(2, 1)
    assert_close(tokenizer.decode(latents), decoded.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    alone = tokenizer.decode(latents[:, 1:2])
    assert (alone - tokenizer.decode(latents)[:, :, 1:2]).abs().max() > 1e-3  # it joins frames


@torch.no_grad()
def test_vidtok_codes_are_those_of_its_quantizer() -> None:
    module = vidtok().eval()
    tokenizer = load(module)
    x = clips(1, 9)
    codes = tokenizer.encode(x)
    quantized, indices = module.encode(torch.cat([x[:, :, :1]] * 3 + [x], 2))
    assert torch.equal(codes, indices.long()) and len(codes.unique()) > 5
    assert_close(tokenizer.decode(codes), module.decode(quantized).clamp(-1, 1), rtol=1e-4, atol=1e-5)


def test_noise_of_a_decoder_is_always_the_same() -> None:
    tokenizer = load(noisy_ltx())
    latents = tokenizer.encode(clips(1, 5))
    before = torch.get_rng_state()
    first = tokenizer.decode(latents)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    assert torch.equal(tokenizer.decode(latents), first)
    torch.manual_seed(5)
    other = tokenizer.model.decode(tokenizer._latents(latents), torch.zeros(1)).sample
    assert not torch.equal(other.clamp(-1, 1), first)


def test_wan_with_other_ratios() -> None:
    for downsample, patch, time, factor in (([False, True], None, 2, 4), ([True, True], 2, 4, 8)):
        sizes = {} if patch is None else dict(patch_size=2, in_channels=12, out_channels=12)
        tokenizer = load(wan(temperal_downsample=downsample, **sizes))
        assert (tokenizer.time, tokenizer.factor, tokenizer.timing.chunk) == (time, factor, 4 // time)
        x = clips(1, 9)
        assert tokenizer.decode(tokenizer.encode(x)).shape == x.shape
    with pytest.raises(ValueError, match="AutoencoderKLWan joins 8 frames; it takes 4 at a time"):
        load(wan(dim_mult=[1, 1, 1, 1], temperal_downsample=[True] * 3))


def test_what_does_not_fit_a_tokenizer() -> None:
    tokenizer, codes = load(wan()), load(vidtok())
    wrong: list[tuple[Callable[[Any], Any], Tensor, str]] = [
        (tokenizer.encode, torch.zeros(1, 3, 16, 16), r"clips are torch.float32 \[1, 3, 16, 16\]; they must be float"),
        (tokenizer.encode, torch.zeros(1, 1, 5, 16, 16), "clips have 1 channels; this tokenizer's have 3"),
        (tokenizer.encode, torch.zeros(1, 3, 5, 16, 18), r"clips have size \[16, 18\]; both sides must be multiples"),
        (tokenizer.encode, torch.zeros(1, 3, 6, 16, 16), "frames is 6; with elements of 4 frames after the first it"),
        (tokenizer.decode, torch.zeros(1, 2, 4, 4, 3), r"latents are torch.float32 .* float \[clips, t, h, w, 4\]"),
        (codes.decode, torch.zeros(1, 2, 4, 4), "codes are torch.float32 .* must be integers"),
        (codes.decode, torch.full((1, 2, 4, 4), 64), "a code is 64; it must be one of 0..63"),
        (load(cosmos()).encode, clips(1, 25), "25 frames; this tokenizer's latents_mean is for at mos"),
        (load(cogvideox()).encode, clips(1, 13), "4 frames, 2 together, after the first it .* 9 or 17"),
        (load(cogvideox()).decode, torch.zeros(1, 4, 4, 6, 4), "of 4 steps is 13; .* 9 or 17"),
    ]
    for call, x, message in wrong:
        with pytest.raises(ValueError, match=message):
            call(x)
    with pytest.raises(ValueError, match="AutoencoderVidTok has is_causal False; it must be True"):
        load(vidtok(is_causal=False))


def test_a_library_may_be_too_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(vidtok()).save_pretrained(tmp_path)
    monkeypatch.setattr(pretrained, "_library", lambda library, name: SimpleNamespace(__version__="0.35.0"))
    with pytest.raises(ImportError, match=r"^diffusers 0.35.0 has no AutoencoderVidTok; a newer one is needed$"):
        load_video_tokenizer(tmp_path)


def test_other_classes_are_refused(tmp_path: Path) -> None:
    module = diffusers.AutoencoderKLAllegro(
        block_out_channels=(8,) * 4, layers_per_block=1, norm_num_groups=4, sample_size=32
    )
    message = r"of class 'AutoencoderKLAllegro'; known classes are \['AutoencoderKL', 'AutoencoderKLCogVideoX', .*'VQM"
    with pytest.raises(ValueError, match=message):
        load_video_tokenizer(module)
    module.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        VideoAdapter(8, 5, elements={"kind": "tokenizer", "path": str(tmp_path)})
    with pytest.raises(ValueError, match="of class 'AutoencoderKLWan'; known classes"):
        load_tokenizer(wan())  # images have no frames to be joined


def test_timing_by_hand() -> None:
    for timing, whole, steps in (
        (Timing(3), [0, 0, 0, 3, 3, 3, 6], [1, 1, 1, 2, 2, 2]),
        (Timing(3, 1), [0, 1, 1, 1, 4, 4, 4, 7], [1, 2, 2, 2, 3, 3, 3]),
        (Timing(2, 1, 2), [0, 1, 1, 1, 1, 5, 5, 5, 5, 9], [1, 3, 3, 3, 3, 5]),
    ):
        assert [timing.whole(frames) for frames in range(len(whole))] == whole
        assert [timing.steps(frames) for frames in range(1, len(steps) + 1)] == steps
        assert [sum(timing.counts(n)) for n in (1, 2, 5)] == [timing.frames(n) for n in (1, 2, 5)]
        assert timing.least == next(number for number in whole if number)


# ---- the adapter around them


def random_frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@every
def test_the_adapter_encodes_with_it(name: str) -> None:
    build, factor, time, _, causal, size = CASES[name]
    tokenizer = load(build())
    frames = legal(name)
    adapter = VideoAdapter((16, 24), frames, 8.0, tokenizer=tokenizer)
    pixels = random_frames(2, frames, 16, 24, 3)
    segment = adapter.encode_frames(pixels)
    values = tokenizer.encode((pixels.float() / 127.5 - 1).movedim(-1, 1))
    steps = values.shape[1]
    assert adapter.grid == segment.grid == (steps, 16 // factor, 24 // factor) == values.shape[1:4]
    assert torch.equal(segment.values, values.flatten(1, 3))
    assert adapter.joins_frames and adapter.step == time
    if tokenizer.discrete:
        assert adapter.element == {"kind": "discrete", "vocab_size": size, "codes": 1}
    else:
        assert adapter.element == {"kind": "continuous", "dim": size}
    expected = ((tokenizer.decode(values) + 1) * 127.5).round().byte().movedim(1, -1)
    assert torch.equal(adapter.decode_frames(segment), expected)
    assert adapter.grid_for((frames - 0.5) / 8)[0] == steps
    assert adapter.grid_for(0.01)[0] == 1 and adapter.grid_for((frames + 1) / 8)[0] > steps
    assert [adapter.whole(frames + more) for more in (0, -1)] == [frames, tokenizer.timing.whole(frames - 1)]
    if causal:
        with pytest.raises(
            ValueError, match="window by window with sink 0: its tokenizer's first step is a single fra"
        ):
            adapter.check_windows(0)
    else:
        adapter.check_windows(0)
    adapter.check_windows(1)


@every
def test_it_is_stored_with_the_adapter_and_read_in_a_fresh_process(name: str, tmp_path: Path) -> None:
    frames = legal(name)
    adapter = VideoAdapter((16, 24), frames, tokenizer=CASES[name][0]())
    pixels = random_frames(1, frames, 16, 24, 3)
    segment = adapter.encode_frames(pixels)
    adapter.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model/video_tokenizer/config.json").is_file()
    if name not in ("wan", "vidtok"):  # starting Python takes seconds
        again: Any = AutoAdapter.from_pretrained(tmp_path / "model")
        assert torch.equal(again.encode_frames(pixels).values, segment.values)
        assert torch.equal(again.decode_frames(segment), adapter.decode_frames(segment))
        return
    torch.save((pixels, segment.values), tmp_path / "there.pt")
    code = (
        "import sys, torch; from unimodal_ar.adapters import AutoAdapter;"
        "a = AutoAdapter.from_pretrained(sys.argv[1] + '/model'); x, v = torch.load(sys.argv[1] + '/there.pt');"
        "s = a.encode_frames(x); assert torch.equal(s.values, v); torch.save(a.decode_frames(s), sys.argv[1] + '/b.pt')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert torch.equal(torch.load(tmp_path / "b.pt"), adapter.decode_frames(segment))


def test_latents_side_by_side_are_one_vector() -> None:
    tokenizer = load(wan())
    adapter = VideoAdapter((16, 24), 5, elements={"kind": "tokenizer", "patch": 2}, tokenizer=tokenizer)
    pixels = random_frames(2, 5, 16, 24, 3)
    segment = adapter.encode_frames(pixels)
    assert (adapter.grid, adapter.element) == ((2, 2, 3), {"kind": "continuous", "dim": 16})
    values = tokenizer.encode((pixels.float() / 127.5 - 1).movedim(-1, 1))
    assert torch.equal(segment.values[1, 6 + 4], values[1, 1, 2:4, 2:4].flatten())  # second step, row 1, column 1
    single = VideoAdapter((16, 24), 5, tokenizer=tokenizer)
    assert torch.equal(adapter.decode_frames(segment), single.decode_frames(single.encode_frames(pixels)))


def test_beginnings_are_kept_in_whole_steps() -> None:
    adapter = VideoAdapter((16, 24), 13, 10.0, tokenizer=wan())
    frames = random_frames(2, 7, 16, 24, 3)
    segment = adapter.complete(list(frames))
    assert segment.grid == (4, 4, 6)
    assert segment.element_observed.view(2, 4, 24).all(-1).tolist() == [[True, True, False, False]] * 2
    assert torch.equal(segment.values[:, :48], adapter.encode_frames(frames[:, :5]).values)
    # Wan is causal: the steps of a beginning are those of the whole clip.
    whole = adapter.encode_frames(torch.cat([frames, random_frames(2, 6, 16, 24, 3)], 1))
    assert_close(whole.values[:, :48], segment.values[:, :48])
    assert adapter.complete(frames[0, :1], seconds=0.9).grid == (3, 4, 6)
    shown = adapter.decode_frames(segment)
    assert shown.shape[1] == 13 and (shown[:, 5:] == 128).all() and not (shown[:, :5] == 128).all()
    cog = VideoAdapter((16, 24), 17, 10.0, tokenizer=cogvideox())
    assert [cog.steps_for(0.5), cog.grid_for(0.5)[0]] == [2, 3]  # they come in twos as a whole clip only
    assert cog.complete(random_frames(13, 16, 24, 3)).element_observed.view(5, -1).all(1).sum() == 3
    with pytest.raises(ValueError, match="given has 13 frames or more; it must have at least 1 and fewer than"):
        adapter.complete(random_frames(13, 16, 24, 3))


def test_streams_come_at_once() -> None:
    adapter = VideoAdapter((16, 24), 9, tokenizer=wan())
    whole = adapter.encode_frames(random_frames(2, 9, 16, 24, 3))

    def grown() -> Any:
        for count in (24, 48, 71, 72):
            yield Segment("video", whole.values, whole.grid, observed=(torch.arange(72) < count).expand(2, -1))

    (part,) = list(adapter.stream(grown()))
    assert torch.equal(torch.stack([clip.frames for clip in part]), adapter.decode_frames(whole))


def test_longer_clips_are_drawn_with_a_sink_and_go_on_from_frames() -> None:
    adapter = VideoAdapter(8, 9, 10.0, tokenizer=wan())
    source = Generator(build({"video": series(4, adapter.grid, "frame")}, spread=0.1), [adapter])
    with pytest.raises(ValueError, match="'video' cannot be drawn window by window with sink 0: its tokenizer's first"):
        source.generate(1, seconds=2.1)
    samples = source.generate(2, seconds=2.1, sink=0.1)
    assert samples.segment.grid == (6, 2, 2)
    assert [clip.frames.shape for clip in samples.raw] == [(21, 8, 8, 3)] * 2
    (part,) = source.stream(2, seconds=2.1, sink=0.1)
    assert all(torch.equal(one.frames, other.frames) for one, other in zip(part, samples.raw, strict=True))
    # Four frames that are not the first are a step.
    assert [adapter.steps_for(seconds) for seconds in (0.1, 0.2, 0.5, 0.6)] == [1, 2, 2, 3]
    assert [adapter.steps_for(seconds, first=False) for seconds in (0.1, 0.4, 0.5)] == [1, 1, 2]
    shared = source.generate(1, seconds=2.1, sink=0.1, overlap=0.4).segment
    expected = source.model.generate([], "video", grid=(6, 2, 2), window=3, sink=1, overlap=1)
    assert_close(shared.values, expected.values)
    given = random_frames(6, 8, 8, 3)
    continued = source.generate(1, given=given)
    assert_close(continued.segment.values[:, :8], adapter.encode_frames(given[None, :5]).values)
    assert continued.raw[0].frames.shape == (9, 8, 8, 3)


def test_segments_of_no_whole_steps() -> None:
    adapter = VideoAdapter((16, 24), 9, tokenizer=cogvideox())
    segment = adapter.encode_frames(random_frames(1, 9, 16, 24, 3))
    two = Segment("video", segment.values[:, :48], (2, 4, 6))
    with pytest.raises(ValueError, match=r"the number of frames of 2 steps is 5; .* it must be 1 or 9"):
        adapter.decode(two)
    adapter.decode(Segment("video", segment.values[:, :24], (1, 4, 6)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(frames=8), "frames is 8; with elements of 4 frames after the first it must be 5 or 9"),
        (dict(size=(16, 18)), r"size is \[16, 18\]; with the tokenizer's factor 4 both sides must be multiples of 4"),
        (dict(channels=1), "channels is 1; the tokenizer's clips have 3"),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoAdapter(**({"size": 16, "frames": 9, "tokenizer": wan()} | arguments))


def test_codes_are_not_patched() -> None:
    with pytest.raises(ValueError, match=r"elements.patch is 2 with a tokenizer of codes; only group joins codes"):
        VideoAdapter(16, 9, elements={"kind": "tokenizer", "patch": 2}, tokenizer=vidtok())


def test_image_tokenizers_do_not_join_frames() -> None:
    module = diffusers.AutoencoderKL(block_out_channels=(32,), latent_channels=4)
    adapter = VideoAdapter(8, 4, tokenizer=module)
    assert isinstance(adapter.tokenizer, ImageTokenizer) and not adapter.joins_frames
    assert (adapter.grid, adapter.whole(3)) == ((4, 8, 8), 3)
    adapter.check_windows(0)
