"""The image adapter: there and back in every kind of element, pixels from whatever holds them, storage, messages."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from unimodal_ar.adapters import ImageAdapter, TimeSeriesAdapter, read_images
from unimodal_ar.adapters.image import palette as palette_module
from unimodal_ar.adapters.image.palette import fit_palette, nearest
from unimodal_ar.adapters.tokenizers import ImageTokenizer
from unimodal_ar.segment import Segment

PIL = pytest.importorskip("PIL.Image")


def random_pixels(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


# ---- levels


@given(st.integers(2, 256), st.sampled_from([1, 3]), st.sampled_from([1, 2, 3]), st.integers(0, 99))
def test_levels_round_to_half_a_step(levels: int, channels: int, group: int, seed: int) -> None:
    pixels = random_pixels(2, 6, 12, channels, seed=seed)
    adapter = ImageAdapter((6, 12), channels, {"kind": "levels", "levels": levels}, group)
    segment = adapter.encode_pixels(pixels)
    codes = group * group * channels
    assert adapter.element == {"kind": "discrete", "vocab_size": levels, "codes": codes}
    assert segment.grid == adapter.grid == (1, 6 // group, 12 // group)
    assert segment.values.shape == (2, 72 // group**2) + ((codes,) if codes > 1 else ())
    assert int(segment.values.min()) >= 0
    assert int(segment.values.max()) < levels

    decoded = adapter.decode_pixels(segment)
    assert decoded.dtype == torch.uint8
    error = (decoded.double() - pixels.double()).abs().max().item()
    assert error <= 255 / (levels - 1) / 2 + 0.5
    assert levels < 256 or error == 0
    # What is on the grid of levels stays.
    assert torch.equal(adapter.decode_pixels(adapter.encode_pixels(decoded)), decoded)


def test_levels_agree_with_the_formula() -> None:
    pixels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16, 1)
    for levels in (2, 16, 17, 200, 255, 256):
        adapter = ImageAdapter(16, 1, {"kind": "levels", "levels": levels})
        expected = np.rint(np.arange(256) / 255 * (levels - 1))
        np.testing.assert_array_equal(adapter.encode_pixels(pixels).values[0], expected)


def test_codes_of_an_element_run_row_by_row_channels_innermost() -> None:
    pixels = torch.arange(4 * 4 * 3, dtype=torch.uint8).reshape(1, 4, 4, 3)
    values = ImageAdapter(4, elements={"kind": "levels"}, group=2).encode_pixels(pixels).values
    # The second element of the first row: pixels (0, 2), (0, 3), (1, 2), (1, 3).
    assert values[0, 1].tolist() == [6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]
    assert values[0, 2, :3].tolist() == [24, 25, 26]


# ---- patches


@pytest.mark.parametrize(("channels", "patch"), [(1, 1), (1, 4), (3, 1), (3, 2)])
def test_patches_are_exact(channels: int, patch: int) -> None:
    pixels = random_pixels(2, 8, 12, channels)
    adapter = ImageAdapter([8, 12], channels, {"kind": "patches", "patch": patch})
    segment = adapter.encode_pixels(pixels)
    assert adapter.element == {"kind": "continuous", "dim": patch * patch * channels}
    assert segment.values.shape == (2, 96 // patch**2, patch * patch * channels)
    assert segment.values.dtype == torch.float32
    assert float(segment.values.abs().max()) <= 1
    assert torch.equal(adapter.decode_pixels(segment), pixels)


def test_patches_are_ordered_and_scaled_as_told() -> None:
    pixels = torch.arange(2 * 4 * 3, dtype=torch.uint8).reshape(1, 2, 4, 3)
    values = ImageAdapter([2, 4], elements={"kind": "patches", "patch": 2}).encode_pixels(pixels).values
    expected = torch.tensor([6, 7, 8, 9, 10, 11, 18, 19, 20, 21, 22, 23]) / 127.5 - 1
    torch.testing.assert_close(values[0, 1], expected)


def test_decoding_rounds_and_clamps() -> None:
    adapter = ImageAdapter(2, 1, {"kind": "patches", "patch": 2})
    values = torch.tensor([[[-7.0, 7.0, 10.4 / 127.5 - 1, 10.6 / 127.5 - 1]]])
    for dtype in (torch.float32, torch.float64):
        assert adapter.decode_pixels(Segment("image", values.to(dtype), (1, 1, 1))).flatten().tolist() == [
            0,
            255,
            10,
            11,
        ]


# ---- palettes


def test_as_many_colours_as_there_are_make_a_palette_exact() -> None:
    colours = random_pixels(40, 3).unique(dim=0)
    pixels = colours[torch.arange(2 * 8 * 8).remainder(len(colours))].reshape(2, 8, 8, 3)
    adapter = ImageAdapter(8, elements={"kind": "palette", "colours": len(colours)}, group=2)
    assert (adapter.needs_fit, adapter.element["vocab_size"], adapter.element["codes"]) == (True, len(colours), 4)
    with pytest.raises(ValueError, match=r"the adapter has no palette yet; call fit\(pixels\) first"):
        adapter.encode_pixels(pixels)
    adapter.fit(pixels)
    assert not adapter.needs_fit
    segment = adapter.encode_pixels(pixels)
    assert segment.values.shape == (2, 16, 4)
    assert torch.equal(adapter.decode_pixels(segment), pixels)


def test_fewer_colours_than_asked_for() -> None:
    pixels = torch.zeros(1, 4, 4, 1, dtype=torch.uint8)
    pixels[0, 0] = 200
    with pytest.raises(ValueError, match="colours is 3; the pixels have 2 distinct colours"):
        ImageAdapter(4, 1, {"kind": "palette", "colours": 3}).fit(pixels)


def test_codes_are_the_nearest_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    palette = random_pixels(16, 3, seed=1)
    adapter = ImageAdapter(12, elements={"kind": "palette", "colours": 16, "palette": palette.tolist()})
    pixels = random_pixels(3, 12, 12, 3)
    distance = (pixels.reshape(-1, 1, 3).long() - palette.long()).square().sum(-1)
    values = torch.empty(0)
    for chunk in (palette_module.CHUNK, 100, 1):  # a part of the pixels at a time changes nothing
        monkeypatch.setattr(palette_module, "CHUNK", chunk)
        values = adapter.encode_pixels(pixels).values
        found = distance.gather(1, values.reshape(-1, 1))[:, 0]
        assert torch.equal(found, distance.min(1).values)
    assert torch.equal(adapter.decode_pixels(adapter.encode_pixels(pixels)), palette[values].reshape(pixels.shape))


def test_the_palette_finds_clusters_whatever_the_seed() -> None:
    centres = torch.tensor([[20, 20, 20], [220, 30, 30], [30, 220, 30], [30, 30, 220], [220, 220, 220]])
    spread = torch.randint(-9, 10, (5, 800, 3), generator=torch.Generator().manual_seed(0))
    pixels = (centres[:, None] + spread).byte()
    expected = pixels.double().mean(1).round().long().tolist()
    for seed in range(3):
        found = fit_palette(pixels, 5, seed).long().tolist()
        assert sorted(found) == sorted(expected)
    assert torch.equal(fit_palette(pixels, 32, 3), fit_palette(pixels, 32, 3))
    assert not torch.equal(fit_palette(pixels, 32, 3), fit_palette(pixels, 32, 4))


def test_a_colour_without_pixels_moves_to_the_worst_fitted() -> None:
    points, weights = torch.tensor([[0.0], [9.0], [200.0]]), torch.tensor([9.0, 1.0, 1.0]).double()
    moved = palette_module._lloyd(points, weights, torch.tensor([[1.0], [200.0], [255.0]]))
    # 255 is nearest to nothing; what is fitted worst is 9, by 8 * 8.
    assert moved.flatten().tolist() == [1, 200, 9]


def test_rare_colours_survive_the_draw(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more colours than k-means takes, pixels are drawn; if those have too few colours, all colours are taken."""
    pixels = torch.zeros(100_000, 1, dtype=torch.uint8)
    pixels[:200, 0] = torch.arange(200)
    monkeypatch.setattr(palette_module, "MAX_COLOURS", 50)
    assert sorted(fit_palette(pixels, 200).flatten().tolist()) == list(range(200))


def test_the_palette_of_photographs_is_as_good_as_that_of_scikit_learn(shared_dir: Path) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    path = shared_dir / "data/image/cifar10_train.parquet"
    if not path.is_file():
        pytest.skip("no CIFAR-10")
    source = read_images(path)
    pixels = ImageAdapter(32).pixels([source.load(index) for index in range(120)]).reshape(-1, 3)
    theirs = cluster.MiniBatchKMeans(64, n_init=1, random_state=0).fit(pixels.numpy().astype(np.float32))
    reference = torch.from_numpy(theirs.cluster_centers_).round().byte()
    assert nearest(pixels, fit_palette(pixels, 64))[1].mean() < 1.02 * nearest(pixels, reference)[1].mean()


@pytest.mark.parametrize(
    ("palette", "message"),
    [
        ([[0, 0, 0]] * 3, "elements.palette has 3 colours of 3 channels; it must have 2 colours of 3"),
        ([[0], [255]], "elements.palette has 2 colours of 1 channels"),
        ([[0, 0, 0], [255]], "elements.palette has 2 colours of 1 or 3 channels"),
        ([[0, 0, 0], [0, 0, 256]], " is 256: "),
    ],
)
def test_palettes_that_do_not_fit(palette: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageAdapter(4, elements={"kind": "palette", "colours": 2, "palette": palette})


def test_only_a_palette_is_fitted() -> None:
    assert not ImageAdapter(4).needs_fit
    with pytest.raises(ValueError, match=r"elements\.kind is 'levels'; only a 'palette' is fitted"):
        ImageAdapter(4).fit(random_pixels(1, 4, 4, 3))


# ---- tokenizers


class ToyTokenizer(ImageTokenizer):
    """Codes: the mean of each 2 x 2 cell of grey pixels, in 16 levels. Latents: that mean and its negative."""

    def __init__(self, discrete: bool) -> None:
        self.discrete = discrete  # type: ignore[misc]
        self.channels, self.factor, self.vocab_size, self.dim = 1, 2, 16, 2
        self.batches: list[int] = []

    def encode(self, x: Tensor) -> Tensor:
        self.batches.append(len(x))
        assert float(x.min()) >= -1 and float(x.max()) <= 1
        mean = torch.nn.functional.avg_pool2d(x, 2)[:, 0]
        return ((mean + 1) * 7.5).round().long() if self.discrete else torch.stack([mean, -mean], -1)

    def decode(self, values: Tensor) -> Tensor:
        mean = values / 7.5 - 1 if self.discrete else (values[..., 0] - values[..., 1]) / 2
        return mean[:, None].repeat_interleave(2, 2).repeat_interleave(2, 3)

    def _encode(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _decode(self, values: Tensor) -> Tensor:
        raise NotImplementedError


def blocks(batch: int = 2) -> Tensor:
    """uint8 [B, 8, 12, 1], constant on cells of 2 x 2, on 16 levels."""
    return (
        random_pixels(batch, 4, 6, 1)
        .div(17, rounding_mode="floor")
        .mul(17)
        .repeat_interleave(2, 1)
        .repeat_interleave(2, 2)
    )


def test_codes_of_a_tokenizer() -> None:
    tokenizer = ToyTokenizer(discrete=True)
    plain = ImageAdapter([8, 12], 1, tokenizer=tokenizer)
    segment = plain.encode_pixels(blocks())
    assert plain.element == {"kind": "discrete", "vocab_size": 16, "codes": 1}
    assert segment.grid == (1, 4, 6)
    assert torch.equal(segment.values, blocks()[:, ::2, ::2].flatten(1).long() // 17)
    grouped = ImageAdapter([8, 12], 1, {"kind": "tokenizer"}, group=2, tokenizer=tokenizer)
    assert grouped.element == {"kind": "discrete", "vocab_size": 16, "codes": 4}
    assert grouped.grid == (1, 2, 3)
    assert grouped.encode_pixels(blocks()).values[0, 1].tolist() == segment.values[0, [2, 3, 8, 9]].tolist()
    for adapter in (plain, grouped):
        assert torch.equal(adapter.decode_pixels(adapter.encode_pixels(blocks())), blocks())


def test_latents_of_a_tokenizer() -> None:
    adapter = ImageAdapter([8, 12], 1, {"kind": "tokenizer", "patch": 2}, tokenizer=ToyTokenizer(discrete=False))
    assert adapter.element == {"kind": "continuous", "dim": 8}
    segment = adapter.encode_pixels(blocks())
    assert (segment.grid, segment.values.shape) == ((1, 2, 3), (2, 6, 8))
    assert torch.equal(adapter.decode_pixels(segment), blocks())


def test_a_tokenizer_sees_few_images_at_a_time() -> None:
    tokenizer = ToyTokenizer(discrete=True)
    adapter = ImageAdapter([8, 12], 1, tokenizer=tokenizer)
    assert torch.equal(adapter.decode_pixels(adapter.encode_pixels(blocks(70))), blocks(70))
    assert tokenizer.batches == [32, 32, 6]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(size=[9, 12], channels=1),
            "size is [9, 12]; with the tokenizer's factor 2 both sides must be multiples of",
        ),
        (
            dict(size=[6, 8], channels=1, group=2),
            "factor 2 and group 2 both sides must be multiples of 4, and the nearest",
        ),
        (dict(size=8), "channels is 3; the tokenizer's images have 1"),
        (
            dict(size=8, channels=1, elements={"kind": "tokenizer", "patch": 2}),
            "elements.patch is 2 with a tokenizer of",
        ),
        (dict(size=8, channels=1, elements={"kind": "levels"}), "elements.kind is 'levels' and a tokenizer is given"),
        (dict(size=8, elements={"kind": "tokenizer", "path": "vq"}), "elements.path is 'vq' and a tokenizer is given"),
    ],
)
def test_tokenizers_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageAdapter(**arguments, tokenizer=ToyTokenizer(discrete=True))


def test_latents_are_not_grouped_and_a_tokenizer_is_needed() -> None:
    with pytest.raises(ValueError, match="group is 2 with a tokenizer of latents; only codes are grouped"):
        ImageAdapter(8, 1, group=2, tokenizer=ToyTokenizer(discrete=False))
    with pytest.raises(ValueError, match=r"elements\.path is None and no tokenizer is given"):
        ImageAdapter(8, 1, {"kind": "tokenizer"})
    with pytest.raises(ValueError, match="tokenizer 'nowhere' is no folder"):
        ImageAdapter(8, 1, {"kind": "tokenizer", "path": "nowhere"})


def test_a_tokenizer_travels_with_the_adapter(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    settings = dict(down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2)
    module = diffusers.VQModel(
        block_out_channels=(8, 8), norm_num_groups=2, num_vq_embeddings=16, latent_channels=3, **settings
    )
    module.save_pretrained(tmp_path / "original")
    pixels = random_pixels(2, 8, 8, 3)
    injected = ImageAdapter(8, tokenizer=module, modality="picture")
    named = ImageAdapter(8, elements={"kind": "tokenizer", "path": str(tmp_path / "original")}, modality="picture")
    expected = injected.encode_pixels(pixels)
    assert len(expected.values.unique()) > 1
    assert torch.equal(named.encode_pixels(pixels).values, expected.values)

    for place in ("model", "model"):  # the second time over the first
        named.save_pretrained(tmp_path / place)
    shutil.rmtree(tmp_path / "original")
    shutil.move(tmp_path / "model", tmp_path / "moved")
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == [
        "picture_tokenizer",
        "processor_config.json",
    ]
    loaded = ImageAdapter.from_pretrained(tmp_path / "moved")
    assert loaded.config()["elements"] == {"kind": "tokenizer", "path": "picture_tokenizer", "patch": 1}
    assert torch.equal(loaded.encode_pixels(pixels).values, expected.values)
    assert torch.equal(loaded.decode_pixels(expected), injected.decode_pixels(expected))
    loaded.save_pretrained(tmp_path / "moved")  # onto the very files that it was loaded from
    assert torch.equal(ImageAdapter.from_pretrained(tmp_path / "moved").encode_pixels(pixels).values, expected.values)
    shutil.rmtree(tmp_path / "moved" / "picture_tokenizer")
    with pytest.raises(
        ValueError, match=r"processor_config\.json: adapters\.picture: tokenizer 'picture_tokenizer' is no"
    ):
        ImageAdapter.from_pretrained(tmp_path / "moved")


# ---- pixels


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    PIL.fromarray(random_pixels(6, 5, 3).numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_an_image_of_the_right_size_passes_bit_for_bit(photo: Path) -> None:
    adapter, expected = ImageAdapter([6, 5]), random_pixels(6, 5, 3)
    array = expected.numpy()
    for images in (photo, str(photo), PIL.open(photo), array, expected, expected[None], [array], (photo,)):
        pixels = adapter.pixels(images)
        assert pixels.dtype == torch.uint8
        assert torch.equal(pixels, expected[None])
    assert torch.equal(adapter.pixels([photo, array]), torch.stack([expected, expected]))
    assert torch.equal(adapter.decode_pixels(adapter.encode(photo)), expected[None])
    (decoded,) = adapter.decode(adapter.encode(photo))
    np.testing.assert_array_equal(np.array(decoded), array)


def test_pixels_of_an_array_are_a_copy() -> None:
    array = np.zeros((1, 4, 4, 3), np.uint8)
    ImageAdapter(4).pixels(array).fill_(7)
    assert not array.any()


@pytest.mark.parametrize(("size", "box"), [((4, 4), (4, 0, 12, 8)), ((4, 16), (0, 2, 16, 6)), ((24, 16), None)])
def test_other_sizes_are_resized_to_cover_and_cut_in_the_middle(size: tuple[int, int], box: Any) -> None:
    picture = PIL.fromarray(random_pixels(8, 16, 3).numpy())
    box = box or (16 / 3, 0, 32 / 3, 8)
    expected = picture.resize(size[::-1], PIL.Resampling.BICUBIC, box=box)
    np.testing.assert_array_equal(ImageAdapter(list(size)).pixels(picture)[0], np.array(expected))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_promotions_lose_nothing(mode: str) -> None:
    grey = PIL.fromarray(random_pixels(6, 6).numpy())
    picture = (grey if mode in ("1", "L", "LA") else PIL.merge("RGB", [grey, grey.rotate(90), grey])).convert(mode)
    expected = np.array(picture.convert("RGB"))
    np.testing.assert_array_equal(ImageAdapter(6).pixels(picture)[0], expected)
    if mode in ("1", "L", "LA"):
        np.testing.assert_array_equal(ImageAdapter(6, 1).pixels(picture)[0, ..., 0], expected[..., 0])


def test_grey_arrays_are_promoted_too() -> None:
    grey = random_pixels(2, 4, 4, 1)
    assert torch.equal(ImageAdapter(4).pixels(grey), grey.expand(2, 4, 4, 3))
    assert torch.equal(ImageAdapter(4, 1).pixels(grey[0, ..., 0]), grey[:1])
    opaque = torch.cat([random_pixels(1, 4, 4, 3), torch.full((1, 4, 4, 1), 255, dtype=torch.uint8)], -1)
    assert torch.equal(ImageAdapter(4).pixels(opaque), opaque[..., :3])


def lossy(kind: str) -> Any:
    rgb = PIL.fromarray(random_pixels(4, 4, 3).numpy())
    if kind == "key":
        grey = rgb.convert("L")
        grey.info["transparency"] = grey.getpixel((0, 0))
        return grey
    if kind == "RGBA":
        rgb.putalpha(254)
    return rgb if kind == "RGBA" else rgb.convert("I;16" if kind == "I;16" else kind)


@pytest.mark.parametrize(
    ("kind", "channels", "message"),
    [
        ("RGB", 1, "has 3 channels (RGB); this adapter's channels is 1"),
        ("P", 1, "has 3 channels (P); this adapter's channels is 1"),
        ("RGBA", 3, "has an alpha channel that is used (down to 254); paint it on a background"),
        ("key", 1, "has an alpha channel that is used (down to 0)"),
        ("CMYK", 3, "has mode CMYK; it must be an 8-bit grey or RGB image"),
        ("I", 1, "has mode I; it must be"),
        ("F", 1, "has mode F; it must be"),
        ("YCbCr", 3, "has mode YCbCr; it must be"),
    ],
)
def test_what_would_lose_something_is_an_error(kind: str, channels: int, message: str) -> None:
    picture = lossy(kind)
    picture.filename = "photo.png"
    with pytest.raises(ValueError, match=f"^{re.escape(f'photo.png {message}')}"):
        ImageAdapter(4, channels).pixels([picture])


def test_errors_name_the_file_through_a_source(photo: Path) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{photo} has 3 channels (RGB); this adapter's channels is 1")):
        ImageAdapter(5, 1).pixels(read_images([photo]).load(0))
    with pytest.raises(ValueError, match=re.escape(f"{photo} has 3 channels (RGB)")):
        ImageAdapter(5, 1).pixels(photo)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ([], "the list of images is empty"),
        (np.zeros((4, 4, 3), np.float32), "the array has dtype float32; pixels must be uint8, 0..255"),
        ([torch.zeros(4, 4)], "image 0 has dtype torch.float32; pixels must be uint8"),
        (torch.zeros(4, 4, dtype=torch.bool), "the array has dtype torch.bool; pixels must be uint8"),
        (
            np.zeros((2, 3, 4, 8), np.uint8),
            r"the array has shape \(2, 3, 4, 8\); it must be .* C = 1, 3 or 4 .channels last.",
        ),
        (
            np.zeros((4, 4, 2), np.uint8),
            r"the array has shape \(4, 4, 2\); it must be \[H, W\] or \[H, W, C\] or \[B, H, W",
        ),
        (np.zeros((9, 4, 4), np.uint8)[:, :, :2], r"the array has shape \(9, 4, 2\)"),
        ([np.zeros((1, 4, 4, 3), np.uint8)], r"image 0 has shape \(1, 4, 4, 3\); it must be \[H, W\] or \[H, W, C\]"),
        (np.zeros((0, 4, 4, 3), np.uint8), r"the array has shape \(0, 4, 4, 3\)"),
        ("gone.png", "gone.png is not there"),
        ([3], "image 0 is a int; an image is a path, a PIL image or a uint8 array"),
        (os.curdir, r"\. is a folder; read_images reads the images of a folder"),
    ],
)
def test_images_that_are_none(images: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ImageAdapter(4).pixels(images)


@pytest.mark.parametrize("pixels", [torch.zeros(1, 4, 4, 3), random_pixels(1, 4, 5, 3), random_pixels(4, 4, 3)])
def test_pixels_that_are_none(pixels: Tensor) -> None:
    with pytest.raises(ValueError, match=r"it must be torch.uint8 \[B, 4, 4, 3\] with B >= 1"):
        ImageAdapter(4).encode_pixels(pixels)


# ---- decoding


def test_what_is_not_observed_is_grey() -> None:
    adapter = ImageAdapter(4, 1, {"kind": "patches", "patch": 2})
    pixels = random_pixels(1, 4, 4, 1)
    segment = adapter.encode_pixels(pixels)
    observed = torch.tensor([[True, False, True, True]])
    values = segment.values.masked_fill(~observed[..., None], torch.nan)
    expected = pixels.clone()
    expected[0, :2, 2:] = 128
    assert torch.equal(adapter.decode_pixels(segment.replace(values=values, observed=observed)), expected)
    # An element of which one value is missing is not known.
    partly = torch.ones(1, 4, 4, dtype=torch.bool)
    partly[0, 1, 2] = False
    assert torch.equal(adapter.decode_pixels(segment.replace(observed=partly)), expected)
    codes = ImageAdapter(4, 1, {"kind": "levels"})
    segment = codes.encode_pixels(pixels)
    hidden = segment.values == segment.values.max()
    wild = segment.replace(values=segment.values.masked_fill(hidden, 9999), observed=~hidden)
    assert torch.equal(codes.decode_pixels(wild).flatten(1), pixels.flatten(1).masked_fill(hidden, 128))


def test_segments_that_do_not_fit() -> None:
    codes, patches = ImageAdapter(4, 1), ImageAdapter(4, 1, {"kind": "patches", "patch": 2})
    segment = codes.encode_pixels(random_pixels(1, 4, 4, 1))
    with pytest.raises(ValueError, match=r"segment has the grid \(1, 4, 4\); this adapter's is \(1, 2, 2\)"):
        patches.decode_pixels(segment)
    with pytest.raises(ValueError, match=r"a code is 300; it must be one of 0\.\.255"):
        codes.decode_pixels(segment.replace(values=segment.values.fill_(300)))
    with pytest.raises(ValueError, match="values to decode hold NaN or infinity"):
        patches.decode_pixels(Segment("image", torch.full((1, 4, 4), torch.inf), (1, 2, 2)))
    for values in (torch.zeros(1, 16, 2), torch.zeros(1, 16, 1), torch.zeros(1, 16, 1, dtype=torch.long)):
        with pytest.raises(
            ValueError, match=r"segment's values are .*; this adapter's element is \{'kind': 'discrete'"
        ):
            codes.decode_pixels(Segment("image", values, (1, 4, 4)))


# ---- options and storage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            dict(size=30, elements={"kind": "patches", "patch": 4}),
            "size is [30, 30]; with patch 4 both sides must be mu",
        ),
        (dict(size=[30, 32], group=4), "multiples of 4, and the nearest legal size is [28, 32] or [32, 32]"),
        (dict(size=[7, 9], elements={"kind": "patches", "patch": 4}), "and the nearest legal size is [8, 8]"),
        (dict(size=[6, 10], elements={"kind": "patches", "patch": 4}), "nearest legal size is [4, 8] or [8, 12]"),
        (dict(size=2, group=4), "and the nearest legal size is [4, 4]"),
        (
            dict(size=8, group=2, elements={"kind": "patches", "patch": 2}),
            "group is 2 with elements of kind 'patches'; on",
        ),
        (dict(size=0), "size is 0: "),
        (dict(size=[4, 4, 4]), "size is [4, 4, 4]: "),
        (dict(size=4, channels=2), "channels is 2: "),
        (dict(size=4, elements={"kind": "level"}), "elements"),
        (
            dict(size=4, elements={"kind": "patches", "patch": 2, "pach": 3}),
            "elements has an unknown key 'pach'; did you mean 'patch'",
        ),
        (dict(size=4, elements={"kind": "levels", "levels": 257}), ".levels is 257: "),
        (dict(size=4, elements={"kind": "patches"}), "elements.patch: "),
        (dict(size=4, group=0), "group is 0: "),
    ],
)
def test_arguments_that_do_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ImageAdapter(**arguments)


def test_what_an_adapter_says_of_itself() -> None:
    adapter = ImageAdapter([8, 12], 1)
    assert (adapter.size, adapter.channels, adapter.dimensions, adapter.modality) == ((8, 12), 1, 96, "image")
    assert (ImageAdapter(8).size, ImageAdapter(8).dimensions) == ((8, 8), 192)


FRESH = """
import sys, torch
from unimodal_ar.adapters import load_adapters
adapters = load_adapters(sys.argv[1])
pixels = torch.load(sys.argv[2])
torch.save({name: adapter.encode_pixels(pixels).values for name, adapter in adapters.items()}, sys.argv[3])
"""


def test_a_fresh_process_encodes_the_same(tmp_path: Path) -> None:
    pixels = random_pixels(2, 8, 8, 3)
    adapters = [
        ImageAdapter(8, elements={"kind": "levels", "levels": 9}, group=2, modality="a"),
        ImageAdapter([8, 8], elements={"kind": "palette", "colours": 12}, modality="b"),
        ImageAdapter(8, elements={"kind": "patches", "patch": 4}, modality="c"),
    ]
    adapters[1].fit(pixels)
    for adapter in adapters:
        json.dumps(adapter.config())
        adapter.save_pretrained(tmp_path / "model")
    torch.save(pixels, tmp_path / "pixels")
    command = [sys.executable, "-c", FRESH, *(str(tmp_path / name) for name in ("model", "pixels", "values"))]
    subprocess.run(command, check=True, timeout=300)
    values = torch.load(tmp_path / "values")
    assert list(values) == ["a", "b", "c"]
    for adapter in adapters:
        assert torch.equal(values[adapter.modality], adapter.encode_pixels(pixels).values)


# ---- files


def test_one_image_is_written_as_it_is(tmp_path: Path) -> None:
    pixels = random_pixels(1, 8, 8, 3)
    adapter = ImageAdapter(8)
    adapter.save(adapter.decode(adapter.encode_pixels(pixels)), tmp_path / "one.png")
    np.testing.assert_array_equal(np.array(PIL.open(tmp_path / "one.png")), pixels[0])


def test_several_images_are_written_as_a_grid(tmp_path: Path) -> None:
    pixels = random_pixels(5, 8, 8, 1)
    ImageAdapter(8, 1).save(list(pixels), tmp_path / "grid.png")
    picture = PIL.open(tmp_path / "grid.png")
    assert (picture.mode, picture.size) == ("L", (3 * 64 + 2 * 2, 2 * 64 + 2))
    found = np.array(picture)
    for place in range(6):
        top, left = place // 3 * 66, place % 3 * 66
        cell = found[top : top + 64, left : left + 64]
        expected = np.kron(pixels[place, ..., 0], np.ones((8, 8))) if place < 5 else 128
        np.testing.assert_array_equal(cell, np.broadcast_to(expected, (64, 64)))
    assert (found[64:66] == 128).all() and (found[:, [64, 65, 130, 131]] == 128).all()


def test_large_images_are_not_enlarged(tmp_path: Path) -> None:
    ImageAdapter([64, 10]).save(random_pixels(2, 64, 10, 3), tmp_path / "grid.png")
    assert PIL.open(tmp_path / "grid.png").size == (22, 64)


def test_files_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapter, pixels = ImageAdapter(4), random_pixels(1, 4, 4, 3)
    with pytest.raises(ValueError, match=r"a\.jpg is to be a PNG file; its name must end in \.png"):
        adapter.save(pixels, tmp_path / "a.jpg")
    with pytest.raises(ValueError, match=r"none/a\.png cannot be written; there is no folder .*none"):
        adapter.save(pixels, tmp_path / "none" / "a.png")
    (tmp_path / "a.png").write_bytes(b"before")

    def fail(self: Any, path: Path, format: str) -> None:
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(PIL.Image, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        adapter.save(pixels, tmp_path / "a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"before"


def test_an_adapter_without_files_says_so() -> None:
    with pytest.raises(ValueError, match="TimeSeriesAdapter of 'series' writes no files"):
        TimeSeriesAdapter(4).save([1.0], "series.csv")


def test_a_missing_pillow_is_named(monkeypatch: pytest.MonkeyPatch, photo: Path) -> None:
    for name in ("PIL", "PIL.Image"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs Pillow: pip install unimodal-ar\[image\]"):
        ImageAdapter(4).pixels(photo)
