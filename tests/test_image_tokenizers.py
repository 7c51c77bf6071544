"""Frozen image tokenizers: each against its library's own calls, storage, what is refused and how it is said."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.testing import assert_close

from unimodal_ar.adapters.tokenizers import TOKENIZERS, ImageTokenizer, load_tokenizer, reconstruction_psnr

diffusers = pytest.importorskip("diffusers")

Build = Callable[..., Any]


def vq_model(**config: Any) -> Any:
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    sizes = dict(block_out_channels=(8, 16), norm_num_groups=4, latent_channels=4, vq_embed_dim=3, num_vq_embeddings=24)
    return spread(diffusers.VQModel(**{**blocks, **sizes, **config}))


def kl(**config: Any) -> Any:
    blocks = dict(down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3)
    sizes = dict(block_out_channels=(8, 8, 16), norm_num_groups=4, latent_channels=4)
    return diffusers.AutoencoderKL(**{**blocks, **sizes, **config})


def tiny(**config: Any) -> Any:
    sizes = dict(
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        num_encoder_blocks=(1, 1, 1),
        num_decoder_blocks=(1, 1, 1),
    )
    return diffusers.AutoencoderTiny(**{**sizes, **config})


def janus(**config: Any) -> Any:
    from transformers import JanusVQVAE
    from transformers.models.janus.configuration_janus import JanusVQVAEConfig

    sizes = dict(embed_dim=4, num_embeddings=24, latent_channels=8, base_channels=32, channel_multiplier=[1, 1])
    model = JanusVQVAE(JanusVQVAEConfig(**{**sizes, "num_res_blocks": 1, "num_patches": 4, **config}))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            layer.reset_parameters()  # its own are so small that all places look alike
    return spread(model)


def emu3(**config: Any) -> Any:
    from transformers import Emu3VQVAE, Emu3VQVAEConfig

    sizes = dict(embed_dim=4, codebook_size=24, latent_channels=4, base_channels=32, channel_multiplier=[1, 1, 1])
    more = dict(num_res_blocks=1, hidden_size=32, attn_resolutions=[2], temporal_downsample_factor=2)
    return spread(Emu3VQVAE(Emu3VQVAEConfig(**{**sizes, **more, **config})))


def spread(model: Any) -> Any:
    """Untrained codebooks lie in one corner: codes that lie among the latents make every code likely."""
    nn.init.normal_(model.quantize.embedding.weight, std=0.3)
    return model


# Class -> how a small one is built, its factor, and its number of codes or values of a latent.
CASES: dict[str, tuple[Build, int, int]] = {
    "VQModel": (vq_model, 2, 24),
    "AutoencoderKL": (kl, 4, 4),
    "AutoencoderTiny": (tiny, 4, 4),
    "JanusVQVAE": (janus, 2, 24),
    "Emu3VQVAE": (emu3, 4, 24),
}

every = pytest.mark.parametrize("name", CASES)


def images(batch: int = 3, height: int = 8, width: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(batch, channels, height, width) * 2 - 1


def test_every_tokenizer_is_tested() -> None:
    assert set(CASES) == set(TOKENIZERS)


@every
def test_it_says_what_it_is_and_is_frozen(name: str) -> None:
    build, factor, size = CASES[name]
    tokenizer = load_tokenizer(build().train())
    x = images().requires_grad_()
    values = tokenizer.encode(x)

    assert (tokenizer.channels, tokenizer.factor) == (3, factor)
    assert (tokenizer.vocab_size if tokenizer.discrete else tokenizer.dim) == size
    grid = (3, 8 // factor, 16 // factor)
    assert values.shape == (grid if tokenizer.discrete else (*grid, size))
    assert values.dtype == (torch.long if tokenizer.discrete else torch.float32)
    if tokenizer.discrete:
        assert len(values.unique()) > 3
    decoded = tokenizer.decode(values if tokenizer.discrete else values.clone().requires_grad_())
    assert decoded.shape == x.shape and decoded.dtype == torch.float32
    assert not (values.requires_grad or decoded.requires_grad or tokenizer.model.training)
    assert not any(weight.requires_grad for weight in tokenizer.model.parameters())


@every
def test_the_module_that_is_given_stays_as_it_is(name: str) -> None:
    module = CASES[name][0]().bfloat16().train()
    tokenizer = load_tokenizer(module)
    assert module.training and all(weight.requires_grad for weight in module.parameters())
    assert {weight.dtype for weight in module.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in tokenizer.model.parameters()} == {torch.float32}
    before = tokenizer.encode(x := images())
    nn.init.zeros_(next(module.parameters()))
    assert torch.equal(tokenizer.encode(x), before)


@every
def test_neither_the_batch_nor_autocast_changes_values(name: str) -> None:
    tokenizer = load_tokenizer(CASES[name][0]())
    x = images()
    values = tokenizer.encode(x)
    alone = torch.cat([tokenizer.encode(one[None]) for one in x])
    assert_close(alone, values, rtol=1e-5, atol=1e-5)  # codes are integers: equal
    decoded = torch.cat([tokenizer.decode(one[None]) for one in values])
    assert_close(decoded, tokenizer.decode(values), rtol=1e-5, atol=1e-5)
    plain = tokenizer.decode(values)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tokenizer.encode(x), values)
        assert torch.equal(tokenizer.decode(values), plain)


@every
def test_it_moves_as_a_whole(name: str) -> None:
    build, factor, _ = CASES[name]
    tokenizer = load_tokenizer(build())
    assert tokenizer.to("meta") is tokenizer and tokenizer.device.type == "meta"
    values = tokenizer._encode(images().to("meta"))  # fails where anything stayed behind; so does the next
    assert values.shape[:3] == (3, 8 // factor, 16 // factor)
    assert tokenizer._decode(values).shape == (3, 3, 8, 16)


# What its spatial norm wants: multiples of 32, and codes as long as latents.
SPATIAL = dict(norm_type="spatial", block_out_channels=(32, 32), latent_channels=32, vq_embed_dim=32)


@torch.no_grad()
@pytest.mark.parametrize("config", [{}, SPATIAL], ids=["group", "spatial"])
@pytest.mark.parametrize("lookup", [False, True])
def test_vq_model_equals_its_own_calls(lookup: bool, config: dict[str, Any]) -> None:
    module = vq_model(lookup_from_codebook=lookup, scaling_factor=0.5, **config).eval()
    tokenizer = load_tokenizer(module)
    x = images()
    latents = module.encode(x).latents
    codes = tokenizer.encode(x)
    nearest = (latents.movedim(1, -1)[..., None, :] - module.quantize.embedding.weight).square().sum(-1).argmin(-1)
    assert torch.equal(codes, nearest)
    assert torch.equal(codes.flatten(), module.quantize(latents)[2][2])
    own = module.decode(latents).sample  # quantises them itself
    assert_close(tokenizer.decode(codes), own.clamp(-1, 1), rtol=1e-4, atol=1e-5)
    assert_close(module(x).sample.clamp(-1, 1), tokenizer.decode(codes), rtol=1e-4, atol=1e-5)


NORMALISED = [
    (dict(), 0.0, 0.18215),
    (dict(shift_factor=0.3, scaling_factor=2.0), 0.3, 2.0),
    (
        dict(latents_mean=[1.0, 2.0, 3.0, 4.0], latents_std=[0.5, 1.0, 2.0, 4.0], scaling_factor=0.5),
        torch.tensor([1.0, 2.0, 3.0, 4.0]),
        torch.tensor([1.0, 0.5, 0.25, 0.125]),
    ),
]


@torch.no_grad()
@pytest.mark.parametrize(("config", "shift", "scale"), NORMALISED)
def test_autoencoder_kl_equals_its_own_calls(config: dict[str, Any], shift: Any, scale: Any) -> None:
    module = kl(**config).eval()
    tokenizer = load_tokenizer(module)
    x = images()
    mode = module.encode(x).latent_dist.mean
    latents = tokenizer.encode(x)
    assert_close(latents, (mode.permute(0, 2, 3, 1) - shift) * scale)
    assert torch.equal(latents, tokenizer.encode(x))  # the mode, not a sample
    assert_close(tokenizer.decode(latents), module.decode(mode).sample.clamp(-1, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_autoencoder_tiny_equals_its_own_calls() -> None:
    module = tiny(scaling_factor=0.5, shift_factor=0.25).eval()
    tokenizer = load_tokenizer(module)
    x = images()
    own = module.encode(x).latents
    assert_close(tokenizer.encode(x), (own.permute(0, 2, 3, 1) - 0.25) * 0.5)
    assert_close(tokenizer.decode(tokenizer.encode(x)), module.decode(own).sample.clamp(-1, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_janus_equals_its_own_calls_and_takes_other_sizes() -> None:
    module = janus().eval()
    tokenizer = load_tokenizer(module)
    x = images(height=8, width=8)  # the 4 x 4 codes of num_patches, which its own decode insists on
    codes = tokenizer.encode(x)
    assert torch.equal(codes.flatten(), module.encode(x, return_dict=True).image_tokens)
    assert_close(tokenizer.decode(codes), module.decode(codes.flatten(1)).clamp(-1, 1))

    module.quantize.quant_state_dims = [2, 4]
    wide = tokenizer.encode(images(height=4, width=8))
    assert_close(tokenizer.decode(wide), module.decode(wide.flatten(1)).clamp(-1, 1))


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 2, 4])
def test_emu3_equals_its_own_calls(frames: int) -> None:
    module = emu3(temporal_downsample_factor=frames).eval()
    tokenizer = load_tokenizer(module)
    x = images()
    codes = tokenizer.encode(x)
    own = module.encode(x, torch.tensor([[8, 16]] * 3), return_dict=True).image_tokens
    assert torch.equal(codes, torch.stack(own))
    assert_close(tokenizer.decode(codes), module.decode(codes).clamp(-1, 1))


@every
def test_saved_and_loaded_it_gives_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = load_tokenizer(CASES[name][0]())
    tokenizer.save_pretrained(tmp_path / "model" / "image")
    files = sorted(path.suffix for path in (tmp_path / "model" / "image").iterdir())
    assert files == [".json", ".safetensors"]
    (tmp_path / "model").rename(tmp_path / "moved")

    monkeypatch.chdir(tmp_path)
    x = images()
    values = tokenizer.encode(x)
    pixels = tokenizer.decode(values)
    for source, folder in ((tmp_path / "moved/image", None), ("moved/image", None), ("image", tmp_path / "moved")):
        loaded = load_tokenizer(source, folder)
        assert type(loaded) is TOKENIZERS[name] and not loaded.model.training
        assert torch.equal(loaded.encode(x), values)
        assert torch.equal(loaded.decode(values), pixels)


def test_the_folder_comes_before_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer(vq_model()).save_pretrained(tmp_path / "image")
    load_tokenizer(tiny()).save_pretrained(tmp_path / "beside" / "image")
    monkeypatch.chdir(tmp_path)
    assert load_tokenizer("image", tmp_path / "beside").discrete is False
    assert load_tokenizer("image", tmp_path / "elsewhere").discrete is True


@pytest.mark.parametrize("inside", ["", "vqvae/"])
def test_an_id_on_the_hub(inside: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    repository = tmp_path / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    tokenizer = load_tokenizer(vq_model())
    tokenizer.save_pretrained(repository / "snapshots" / ("0" * 40) / inside)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))  # what a download leaves; tests are offline
    loaded = load_tokenizer(f"owner/name/{inside}".rstrip("/"))
    assert torch.equal(loaded.encode(x := images()), tokenizer.encode(x))


def test_only_what_is_needed_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(repository: str, allow_patterns: list[str], **_: Any) -> str:
        asked[repository] = allow_patterns
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    load_tokenizer(vq_model()).save_pretrained(tmp_path / "a" / "b")
    load_tokenizer("owner/name/a/b")
    files = ["config.json", "diffusion_pytorch_model.safetensors", "model.safetensors"]
    assert asked == {"owner/name": [f"a/b/{file}" for file in files]}


def test_config_without_the_class_name(tmp_path: Path) -> None:
    load_tokenizer(janus()).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert type(load_tokenizer(tmp_path)) is TOKENIZERS["JanusVQVAE"]


def refused(match: str, call: Callable[[], Any]) -> None:
    """`call` raises ValueError with one line that matches."""
    with pytest.raises(ValueError, match=match) as caught:
        call()
    assert "\n" not in str(caught.value)


@every
def test_odd_sizes_are_refused(name: str) -> None:
    build, factor, _ = CASES[name]
    legal = {2: r"\[8, 8\] or \[10, 8\]", 4: r"\[8, 8\]"}[factor]
    match = rf"images have size \[9, 8\]; .* factor {factor}, and the nearest legal size is {legal}$"
    refused(match, lambda: load_tokenizer(build()).encode(torch.zeros(2, 3, 9, 8)))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((2, 3, 30, 33), r"size \[30, 33\]; .* the nearest legal size is \[28, 32\] or \[32, 32\]$"),
        ((2, 3, 8, 2), r"size \[8, 2\]; .* nearest legal size is \[8, 4\]$"),
        ((2, 3, 0, 8), r"size \[0, 8\]; .* nearest legal size is \[4, 8\]$"),
        ((2, 1, 8, 8), r"images have 1 channels; this tokenizer's have 3"),
        ((3, 8, 8), r"images are torch.float32 \[3, 8, 8\]; they must be float \[images, channels, H, W\]"),
    ],
)
def test_bad_images_are_refused(shape: tuple[int, ...], match: str) -> None:
    refused(match, lambda: load_tokenizer(kl()).encode(torch.zeros(shape)))


def test_whole_numbers_are_no_images() -> None:
    x = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    refused(r"images are torch.uint8 \[1, 3, 8, 8\]; they must be float", lambda: load_tokenizer(tiny()).encode(x))


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (torch.tensor([[[0, 24]]]), r"a code is 24; it must be one of 0\.\.23"),
        (torch.tensor([[[-1, 0]]]), r"a code is -1; it must be one of 0\.\.23"),
        (torch.zeros(1, 2, 2), r"codes are torch.float32 \[1, 2, 2\]; they must be integers \[images, h, w\]"),
        (torch.zeros(1, 4).long(), r"codes are torch.int64 \[1, 4\]; they must be integers \[images, h, w\]"),
        (torch.zeros(1, 2, 2).bool(), r"codes are torch.bool \[1, 2, 2\]"),
    ],
)
@pytest.mark.parametrize("name", ["VQModel", "JanusVQVAE", "Emu3VQVAE"])
def test_bad_codes_are_refused(name: str, values: Tensor, match: str) -> None:
    refused(match, lambda: load_tokenizer(CASES[name][0]()).decode(values))


@pytest.mark.parametrize("values", [torch.zeros(1, 2, 2, 3), torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, 4).long()])
def test_bad_latents_are_refused(values: Tensor) -> None:
    match = re.escape(f"latents are {values.dtype} {list(values.shape)}; they must be float [images, h, w, 4]")
    refused(match, lambda: load_tokenizer(kl()).decode(values))


def test_models_that_are_no_tokenizers_are_refused() -> None:
    refused("reads 1 channels and writes 3; a tokenizer must write what it", lambda: load_tokenizer(kl(in_channels=1)))
    uneven = tiny(decoder_block_out_channels=(8, 8), num_decoder_blocks=(1, 1))
    refused("shrinks images by 4 and enlarges latents by 2", lambda: load_tokenizer(uneven))
    linear = nn.Linear(1, 1)
    refused(r"given as tokenizer is of class 'Linear'; known classes are \['Auto", lambda: load_tokenizer(linear))
    other = type("VQModel", (nn.Module,), {"__module__": "taming.models"})()
    refused(r"is taming\.models\.VQModel; it must be that of diffusers", lambda: load_tokenizer(other))
    refused(r"tokenizer is 3; it must be a folder, an id", lambda: load_tokenizer(3))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("config", "match"),
    [
        (None, "has no config.json; a tokenizer's folder is one that its save_pretrained wrote"),
        ("{", r"config\.json is not readable JSON"),
        ("[1]", r"config\.json holds \[1\]; it must be a JSON object"),
        ("{}", r"config\.json is of class None; known classes are \['AutoencoderKL'"),
        ('{"_class_name": "UNet2DModel"}', r"is of class 'UNet2DModel'; known classes are \['AutoencoderKL'"),
        ('{"model_type": "gpt2"}', r"is of class 'gpt2'; known classes are"),
        (
            '{"architectures": ["ChameleonVQVAE"]}',
            r"'ChameleonVQVAE', which has no decoder .* decode are \['Auto",
        ),
        ('{"model_type": "glm_image_vqmodel"}', r"'GlmImageVQVAE', which has no decoder"),
    ],
)
def test_folders_that_hold_no_tokenizer(config: str | None, match: str, tmp_path: Path) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    refused(f"^{re.escape(str(tmp_path))}.*{match}", lambda: load_tokenizer(tmp_path))


@pytest.mark.parametrize("source", ["nothing", "./no/thing", "/no/thing"])
def test_no_such_folder(source: str) -> None:
    match = rf"tokenizer '{source}' is no folder \(looked for .* and {source.removeprefix('./')}\) and no id on the Hub"
    refused(match, lambda: load_tokenizer(source, "saved"))


def test_no_such_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    refused(
        "tokenizer 'no/thing': 'no/thing' is no folder here, and not in the cache", lambda: load_tokenizer("no/thing")
    )


def damage(file: Path, how: str) -> str:
    """Spoils weights; returns the name of one that was touched."""
    weights = load_file(file)
    name = "decoder.conv_in.bias"
    if how == "gone":
        file.unlink()
        torch.save(weights, file.with_name("diffusion_pytorch_model.bin"))
        torch.save(weights, file.with_name("pytorch_model.bin"))
    elif how == "no file":
        file.write_bytes(b"not safetensors")
    else:
        weights[name] = torch.zeros(3)
        if how == "missing":
            del weights[name]
        save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("name", ["VQModel", "JanusVQVAE"])
@pytest.mark.parametrize("how", ["gone", "no file", "missing", "shape"])
def test_weights_that_do_not_fit_are_refused(name: str, how: str, tmp_path: Path) -> None:
    load_tokenizer(CASES[name][0]()).save_pretrained(tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    weight = damage(file, how)
    match = {
        "gone": f"{tmp_path} has no {file.name}; weights in other formats are not read",
        "no file": f"{name} in {tmp_path} cannot be loaded: .",
        "missing": rf"weights in {tmp_path} do not fit its config\.json: missing_keys \['{weight}'\]",
        "shape": rf"weights in {tmp_path} do not fit its config\.json: mismatched_keys \[.*{weight}.*\[3\]",
    }[how]
    refused(match, lambda: load_tokenizer(tmp_path))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("VQModel", "out_channels", "three"),
        ("VQModel", "norm_num_groups", 3),
        ("VQModel", "num_vq_embeddings", -1),
        ("JanusVQVAE", "out_channels", "three"),
    ],
)
def test_a_config_that_makes_no_model_is_refused(name: str, key: str, value: object, tmp_path: Path) -> None:
    load_tokenizer(CASES[name][0]()).save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    refused(f"^{name} in {tmp_path} cannot be loaded: .", lambda: load_tokenizer(tmp_path))


def test_missing_diffusers_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_tokenizer(vq_model()).save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"loading a VQModel needs diffusers: pip install unimodal-ar\[image\]"):
        load_tokenizer(tmp_path)


class Shifted(ImageTokenizer):
    """Gives each image back with the error, in grey levels, that its first pixel asks for."""

    discrete = False

    def __init__(self) -> None:
        self.channels, self.factor, self.dim = 3, 1, 3
        self.model = nn.Linear(1, 1)

    def _encode(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1)

    def _decode(self, values: Tensor) -> Tensor:
        error = values[:, :1, :1, :1] + 1  # in units of 127.5 grey levels, as is the value
        return (values + error).movedim(-1, 1)


def test_psnr_is_that_of_the_pooled_squared_error() -> None:
    pixels = torch.full((20, 4, 4, 3), 100, dtype=torch.uint8)  # more than are decoded at a time
    pixels[:, 0, 0, 0] = 0
    assert reconstruction_psnr(Shifted(), pixels) == math.inf
    pixels[18:, 0, 0, 0] = 4
    expected = 10 * math.log10(255**2 / (16 * 2 / 20))
    assert reconstruction_psnr(Shifted(), pixels) == pytest.approx(expected, rel=1e-12)
    pixels[:] = 255  # the decoded values leave the range and are clamped
    assert reconstruction_psnr(Shifted(), pixels) == math.inf


def test_psnr_of_an_untrained_tokenizer_is_poor() -> None:
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    assert reconstruction_psnr(load_tokenizer(vq_model()), pixels) < 12


@pytest.mark.parametrize(
    "pixels", [torch.zeros(0, 8, 8, 3).byte(), torch.zeros(2, 8, 8, 3), torch.zeros(8, 8, 3).byte()]
)
def test_psnr_refuses_what_are_no_pixels(pixels: Tensor) -> None:
    refused("they must be uint8", lambda: reconstruction_psnr(Shifted(), pixels))
