"""Samples from a folder: contexts, seeds and batches, completing an image, and what each mistake is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unimodal_ar import SampleNoise, Segment
from unimodal_ar.adapters import ImageAdapter, LabelAdapter, TimeSeriesAdapter
from unimodal_ar.adapters.tokenizers import ImageTokenizer
from unimodal_ar.pipelines import Generator, generate, load
from unimodal_ar.saving import check_output, load_model, write_whole

from .helpers import build, codes, label, series

Image = pytest.importorskip("PIL.Image")

SIZE = 4
WHOLE = np.ones((SIZE, SIZE), dtype=bool)
BOTTOM = np.arange(SIZE)[:, None].repeat(SIZE, 1) >= SIZE // 2


def image_adapter(**more: Any) -> ImageAdapter:
    return ImageAdapter(SIZE, channels=1, elements={"kind": "levels", "levels": 3}, **more)


def generator(
    adapter: ImageAdapter | None = None,
    classes: int | list[str] = 3,
    context: dict[str, Any] | None = None,
    **image: Any,
) -> Generator:
    """A toy model of 3 grey levels, its classes and its adapters."""
    adapter = adapter or image_adapter()
    names = LabelAdapter(classes)
    modality = codes(3, adapter.grid, **image) | {"element": adapter.element}
    known = label(names.element["vocab_size"], **(context or {}))
    return Generator(build({"label": known, "image": modality}, spread=0.1), [names, adapter])


def pictures_of(levels: Tensor) -> np.ndarray:
    """uint8 [4, 4] of the codes [16]."""
    return np.array([0, 128, 255], dtype=np.uint8)[levels.reshape(SIZE, SIZE).numpy()]


def pictures(n: int = 1, seed: int = 0) -> Tensor:
    """uint8 [n, 4, 4, 1] that the 3 levels hold exactly."""
    levels = torch.randint(3, (n, SIZE, SIZE, 1), generator=torch.Generator().manual_seed(seed))
    return torch.tensor([0, 128, 255], dtype=torch.uint8)[levels]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    source = generator()
    source.model.save_pretrained(tmp_path / "model")
    for adapter in source.adapters.values():
        adapter.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_a_folder_gives_pictures(folder: Path, tmp_path: Path) -> None:
    samples = generate(folder, label=2, n=5, seed=7)
    assert [image.size for image in samples.raw] == [(SIZE, SIZE)] * 5
    noise = SampleNoise(7, torch.arange(5))
    context = Segment("label", torch.full((5, 1), 2), (1, 1, 1), target=False)
    expected = generator().model.generate([context], "image", generator=noise)
    assert torch.equal(samples.segment.values, expected.values)
    assert np.array_equal(np.array(samples.raw[3]), pictures_of(expected.values[3]))
    samples.save(tmp_path / "grid.png")
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 2 * SIZE and grid.height > SIZE
    reloaded = load(folder)
    assert torch.equal(reloaded(label=2, n=5, seed=7).segment.values, samples.segment.values)
    assert not reloaded.model.training
    pair = (reloaded.model, reloaded.adapters)
    for loaded in (reloaded, pair):
        assert torch.equal(generate(loaded, 5, label=2, seed=7).segment.values, samples.segment.values)
    with pytest.raises(ValueError, match="device is 'cpu', which is for a folder; a model that is loaded stays where"):
        generate(reloaded, label=2, device="cpu")


def test_a_sample_depends_on_its_number_and_context_alone() -> None:
    source = generator()
    together = source.generate(6, label=[0, 1, 2]).segment.values
    for size in (1, 4, 6):
        assert torch.equal(source.generate(6, label=[0, 1, 2], batch_size=size).segment.values, together)
    # of m values each is used n / m times, side by side
    for number in range(6):
        alone = source.generate(number + 1, label=number // 2).segment.values
        assert torch.equal(alone[number], together[number])
    assert not torch.equal(together[0], together[1]), "samples share their noise"
    assert not torch.equal(source.generate(6, label=[0, 1, 2], seed=1).segment.values, together)


def test_without_any_context() -> None:
    adapter = image_adapter()
    source = Generator(build({"image": codes(3, adapter.grid)}), {"image": adapter})
    together = source.generate(5).segment.values
    assert together.shape == (5, 16)
    assert torch.equal(source.generate(5, batch_size=2).segment.values, together)


def test_saved_defaults_do_not_multiply_samples() -> None:
    source = generator()
    options: Any = source.model.generation_config
    options.num_samples = 3
    assert len(source.generate(4, label=0).raw) == 4


def test_sampling_options_arrive() -> None:
    source = generator(context={"null_probability": 0.5})
    context = [Segment("label", torch.ones(4, 1, dtype=torch.long), (1, 1, 1), target=False)]
    options: list[dict[str, Any]] = [dict(guidance_scale=4.0), dict(temperature=0.0), dict(top_k=1), dict(top_p=0.3)]
    options.append(dict(guidance_scale=4.0, guidance_schedule={"kind": "interval", "start": 0.5}))
    plain = source.generate(4, label=1).segment.values
    for option in options:
        noise = SampleNoise(0, torch.arange(4))
        expected = source.model.generate(context, "image", generator=noise, **option).values
        assert torch.equal(source.generate(4, label=1, **option).segment.values, expected)
        assert not torch.equal(expected, plain), option
    with pytest.raises(ValueError, match="steps is 3"):
        source.generate(4, label=1, steps=3)


def test_labels_by_name_and_a_single_class() -> None:
    named = generator(classes=["cat", "dog", "elk"])
    assert torch.equal(named.generate(2, label="dog").segment.values, named.generate(2, label=1).segment.values)
    single = generator(classes=1)
    assert torch.equal(single.generate(2).segment.values, single.generate(2, label=0).segment.values)


def test_wrong_contexts_are_told() -> None:
    source = generator()
    with pytest.raises(ValueError, match=r"context \['label'\] of 'image' is missing; .* trained with \['label'\]"):
        source.generate(2)
    with pytest.raises(
        ValueError, match=r"'lable' is no context of 'image', which has .* \['label'\]; did you mean 'label'"
    ):
        source.generate(2, lable=2)
    with pytest.raises(ValueError, match=r"'guidance' is no context of 'image', .*; did you mean 'guidance_scale'\?"):
        source.generate(2, label=2, guidance=2)
    with pytest.raises(ValueError, match=r"'prompt' is no context of 'image', which has the contexts \['label'\]$"):
        source.generate(2, label=2, prompt="x")
    with pytest.raises(ValueError, match=r"label is 3; this adapter knows the classes 0\.\.2"):
        source.generate(2, label=3)
    with pytest.raises(ValueError, match="label has 3 values and n is 4; n must be a multiple of their number"):
        source.generate(4, label=[0, 1, 2])
    with pytest.raises(ValueError, match="n is 0; it must be an integer >= 1"):
        source.generate(0, label=1)
    with pytest.raises(ValueError, match=r"batch_size is 1\.5; it must be an integer >= 1"):
        source.generate(2, label=1, batch_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"target is 'label'; it must be one of \['image'\], what this"):
        source.generate(2, "label")


def test_what_follows_the_target_is_no_context() -> None:
    """Of a model that draws both, the first image sees nothing, and the second sees the first."""
    first, second = image_adapter(), image_adapter(modality="second")
    net = build({"image": codes(3, first.grid), "second": codes(3, first.grid)})
    source = Generator(net, [first, second])
    assert len(source.generate(2, "image").raw) == 2
    with pytest.raises(ValueError, match=r"target is None; it must be one of \['image', 'second'\]"):
        source.generate(2)
    with pytest.raises(ValueError, match=r"'second' is no context of 'image', which has the contexts \[\]"):
        source.generate(2, "image", second=pictures())
    seen = pictures(2)
    encoded = first.encode(seen)
    expected = net.generate([encoded], "second", generator=SampleNoise(0, torch.arange(2)))
    assert torch.equal(source.generate(2, "second", image=seen).segment.values, expected.values)


def test_an_image_may_be_a_context() -> None:
    hint, adapter = image_adapter(modality="hint"), image_adapter()
    net = build({"hint": label(3, grid=hint.grid), "image": codes(3, adapter.grid)}, spread=0.1)
    seen = pictures(2)
    context = hint.encode(seen).replace(target=False)
    expected = net.generate([context], "image", generator=SampleNoise(0, torch.arange(2))).values
    assert torch.equal(Generator(net, [hint, adapter]).generate(2, hint=seen).segment.values, expected)


def test_contexts_come_first_however_they_were_saved(tmp_path: Path) -> None:
    source = generator()
    for part in (source.model, source.adapters["image"], source.adapters["label"]):
        part.save_pretrained(tmp_path)
    saved = load(tmp_path)
    assert saved.contexts() == ["label"] and list(saved.adapters) == ["label", "image"]
    assert torch.equal(saved.generate(2, label=1).segment.values, source.generate(2, label=1).segment.values)
    first, second, other = LabelAdapter(3), LabelAdapter(3, modality="other"), image_adapter()
    net = build({"label": label(3), "image": codes(3, other.grid), "other": label(3)})
    assert Generator(net, [second, other, first]).contexts() == ["other", "label"]  # as given, else


def test_the_adapters_size_is_drawn_or_refused_before_anything_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    larger = ImageAdapter(6, channels=1, elements={"kind": "levels", "levels": 3})
    plain = Generator(build({"image": codes(3, (1, 4, 4))}), [larger])
    assert plain.generate(2).raw[1].size == (6, 6)
    fixed = Generator(build({"image": codes(3, (1, 4, 4), [4, 12])}), [larger])
    monkeypatch.setattr(type(fixed.model), "_draw", None)
    with pytest.raises(ValueError, match=r"block is the list of sizes \[4, 12\]; .* add up to the grid's 36 elements"):
        fixed.generate(2)


def test_a_forecasting_model_is_sent_elsewhere() -> None:
    adapter = TimeSeriesAdapter(patch=3)
    with pytest.raises(ValueError, match=r"modality 'series' is of time series, .* with unimodal_ar\.Forecaster"):
        Generator(build({"series": series(3)}), [adapter])


def test_adapters_must_fit_the_model() -> None:
    grey, labels = image_adapter(), LabelAdapter(3)
    with pytest.raises(ValueError, match=r"there is no adapter for \['image'\], what this model generates; save one"):
        Generator(generator().model, [labels]).generate(1, label=0)
    finer = ImageAdapter(SIZE, channels=1, elements={"kind": "levels", "levels": 4})
    with pytest.raises(
        ValueError, match=r"modalities\.image\.element\.vocab_size is 3; its adapter .* whose vocab_size is 4"
    ):
        Generator(generator().model, [labels, finer])
    with pytest.raises(ValueError, match=r"the adapter's modality is 'image'; the model knows \['series'\]"):
        Generator(build({"series": series(3)}), [grey])


def test_what_adapters_carry_is_replaced_with_the_model(tmp_path: Path) -> None:
    """Tokenizers and vocoders, in the folders that their own adapter names; what is called alike is somebody's own."""
    carried = {"elements": {"kind": "mel", "vocoder": "audio_vocoder", "path": "other_tokenizer"}}
    (tmp_path / "processor_config.json").write_text(json.dumps({"adapters": {"audio": carried, "other": {}}}))
    for name in ("config.json", "samples.wav", "notes.wav"):
        (tmp_path / name).touch()
    for name in ("audio_vocoder", "other_tokenizer", "audio_tokenizer", "other_vocoder"):
        (tmp_path / name).mkdir()
    check_output(tmp_path, "--out", True, folders=["audio_vocoder"])
    for name in ("audio_tokenizer", "other_vocoder"):
        with pytest.raises(ValueError, match=f"holds {name}, which is no part of a model there"):
            check_output(tmp_path, "--out", True, folders=[name])
    write_whole(tmp_path, lambda folder: (folder / "config.json").touch(), replace=True)
    kept = {"config.json", "notes.wav", "other_tokenizer", "audio_tokenizer", "other_vocoder"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_each_modality_has_one_adapter() -> None:
    grey, labels = image_adapter(), LabelAdapter(3)
    net = generator().model
    with pytest.raises(ValueError, match=r"there is no adapter for \['label'\], which this model is conditioned on; "):
        Generator(net, [grey])
    with pytest.raises(ValueError, match="2 adapters are of modality 'label'; each modality has one"):
        Generator(net, [labels, grey, LabelAdapter(3)])


def test_damaged_or_foreign_weights_are_told(folder: Path) -> None:
    config, weights = folder / "config.json", folder / "model.safetensors"
    whole = config.read_text(), weights.read_bytes()
    config.write_text(whole[0].replace('"vocab_size": 3', '"vocab_size": 4'))
    with pytest.raises(ValueError, match=r"weights in '.*model' do not load \("):
        load_model(folder)
    config.write_text(whole[0].replace('"num_hidden_layers": 2', '"num_hidden_layers": 1'))
    with pytest.raises(ValueError, match=r"weights in '.*model' do not fit its config\.json: unexpected_keys \["):
        load_model(folder)
    config.write_text(whole[0])
    weights.write_bytes(whole[1][:-100])
    with pytest.raises(ValueError, match=r"weights in '.*model' do not load \("):
        load_model(folder)
    with pytest.raises(ValueError, match=r"holds no config\.json; it must be a model's folder"):
        load(folder.parent)
    (folder.parent / "checkpoints").mkdir()
    with pytest.raises(ValueError, match=r"holds checkpoints and no config\.json: its training is not finished"):
        load(folder.parent)


def test_the_rest_of_an_image_is_drawn() -> None:
    """Under raster order whole leading rows can be kept."""
    source, picture = generator(), pictures()
    samples = source.generate(6, label=1, given=picture[0], mask=BOTTOM, batch_size=4)
    pixels = torch.stack([torch.from_numpy(np.array(image)) for image in samples.raw])
    assert torch.equal(pixels[:, :2], picture[0, :2, :, 0].expand(6, -1, -1))
    assert len(pixels[:, 2:].flatten(1).unique(dim=0)) == 6
    several = source.generate(6, label=1, given=pictures(3), mask=BOTTOM).segment
    kept = source.adapters["image"].encode(pictures(3)).values[:, :8].repeat_interleave(2, 0)
    assert torch.equal(several.values[:, :8], kept)
    all_new = source.generate(6, label=1, given=picture, mask=WHOLE).segment.values
    assert torch.equal(all_new, source.generate(6, label=1).segment.values)
    with pytest.raises(ValueError, match="raster"):
        source.generate(6, label=1, given=picture, mask=~BOTTOM)


def test_any_part_is_kept_under_a_random_order() -> None:
    source, picture = generator(order="random", block=1), pictures()
    hole = ~WHOLE
    hole[1:3, 1:3] = True
    for mask in (~BOTTOM, BOTTOM, hole):
        drawn = source.generate(8, label=0, given=picture, mask=mask).segment.values.view(8, SIZE, SIZE)
        known = source.adapters["image"].encode(picture).values.view(SIZE, SIZE)
        assert torch.equal(drawn[:, ~mask], known[~mask].expand(8, -1))
        assert not torch.equal(drawn[:, mask], known[mask].expand(8, -1))


class Surroundings(ImageTokenizer):
    """A code for 2 x 2 pixels: the level of the mean of 6 x 6 around them. Its device is imaginary."""

    discrete, channels, factor, vocab_size = True, 1, 2, 3

    def __init__(self) -> None:
        self.place, self.seen = torch.device("cuda"), list[torch.device]()

    @property
    def device(self) -> torch.device:
        return self.place

    def to(self, device: Any) -> Any:
        self.place = torch.device(device)
        return self

    def _encode(self, x: Tensor) -> Tensor:
        self.seen.append(self.place)
        means = torch.nn.functional.avg_pool2d(x, 6, 2, padding=2, count_include_pad=False)
        return (means[:, 0] * 5 + 1).round().clamp(0, 2).long()

    def _decode(self, values: Tensor) -> Tensor:
        self.seen.append(self.place)
        return (values[:, None] - 1.0).repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_what_is_kept_knows_nothing_of_what_was_there() -> None:
    """Though a tokenizer's codes depend on pixels around their own."""
    adapter = ImageAdapter(8, channels=1, tokenizer=Surroundings().to("cpu"))
    source = generator(adapter)
    mask = np.arange(8)[:, None].repeat(8, 1) >= 4
    picture = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (8, 8, 1), dtype=np.uint8))
    other, grey = picture.clone(), picture.clone()
    other[4:], grey[4:] = 255 - picture[4:], 128
    first, second, filled = (adapter.encode(image).values[:, :8] for image in (picture, other, grey))
    assert not torch.equal(first, second) and not torch.equal(first, filled)
    for image in (picture, other):
        drawn = source.generate(3, label=1, given=image, mask=mask).segment.values
        assert torch.equal(drawn[:, :8], filled.expand(3, -1))


def test_tokenizers_work_on_the_models_device_and_return() -> None:
    tokenizer = Surroundings()
    adapter = ImageAdapter(8, channels=1, tokenizer=tokenizer)
    source, picture = generator(adapter), torch.zeros(8, 8, dtype=torch.uint8)
    mask = np.ones((8, 8), dtype=bool)
    source.generate(2, label=1, given=picture, mask=mask)
    assert tokenizer.seen == [torch.device("cpu")] * 2 and tokenizer.place == torch.device("cuda")
    with pytest.raises(ValueError, match="label is 7"):
        source.generate(2, label=7)
    assert tokenizer.place == torch.device("cuda")


def test_an_element_is_drawn_whole() -> None:
    """2 x 2 pixels per element: one marked pixel has all four drawn anew."""
    adapter = image_adapter(group=2)
    source, picture = generator(adapter, order="random", block=1), pictures()
    mask = ~WHOLE
    mask[3, 0] = True
    pixels = adapter.decode_pixels(source.generate(32, label=0, given=picture, mask=mask).segment)
    changed = (pixels != picture).any(0)[..., 0]
    expected = ~torch.from_numpy(WHOLE)
    expected[2:, :2] = True
    assert torch.equal(changed, expected)


def test_masks_may_be_arrays_or_pictures_of_either_size(tmp_path: Path) -> None:
    source, picture = generator(), pictures()
    photo = Image.fromarray(np.kron(picture[0, ..., 0].numpy(), np.ones((4, 8), dtype=np.uint8)))  # 16 rows, 32 columns
    wide = np.zeros((16, 32), dtype=np.uint8)
    wide[8:] = 255
    wide[:8, :8] = 255  # is cut off with the photo's sides
    Image.fromarray(wide).save(tmp_path / "mask.png")
    masks: list[Any] = [BOTTOM, torch.from_numpy(BOTTOM), Image.fromarray(BOTTOM), Image.fromarray(wide)]
    masks += [tmp_path / "mask.png", str(tmp_path / "mask.png"), wide == 255, Image.fromarray(wide).convert("RGB")]
    first, *others = (source.generate(2, label=1, given=photo, mask=mask).segment.values for mask in masks)
    assert all(torch.equal(first, other) for other in others)


def test_what_completing_needs_is_told(tmp_path: Path) -> None:
    source, picture = generator(), pictures()

    def complete(given: Any, mask: Any) -> None:
        source.generate(2, label=1, given=given, mask=mask)

    with pytest.raises(ValueError, match="given comes without mask; completing takes both"):
        complete(picture, None)
    with pytest.raises(ValueError, match="mask comes without given; completing takes both"):
        complete(None, BOTTOM)
    with pytest.raises(ValueError, match="mask keeps every pixel; some must be marked"):
        complete(picture, ~WHOLE)
    for wrong, told in ((BOTTOM.astype(np.uint8), r"uint8 of shape \(4, 4\)"), (BOTTOM[None], r"bool of shape \(1, 4")):
        with pytest.raises(ValueError, match=f"mask is {told}.*; an array must be bool"):
            complete(picture, wrong)
    with pytest.raises(ValueError, match=r"mask has 5 x 4 pixels \(rows x columns\); .* images, 4 x 4"):
        complete(picture, np.ones((5, 4), dtype=bool))
    see_through = Image.fromarray(np.full((SIZE, SIZE, 4), 255, dtype=np.uint8))
    assert len(source.generate(2, label=1, given=picture, mask=see_through).raw) == 2  # opaque so far
    see_through.putpixel((0, 0), (255, 255, 255, 7))
    with pytest.raises(ValueError, match=r"mask has an alpha channel that is used \(down to 7\); paint it on a back"):
        complete(picture, see_through)
    (tmp_path / "empty.png").touch()
    with pytest.raises(ValueError, match=r"mask .*empty\.png is empty"):
        complete(picture, tmp_path / "empty.png")
    with pytest.raises(ValueError, match=r"empty\.png is empty"):
        complete(tmp_path / "empty.png", BOTTOM)
    with pytest.raises(ValueError, match="image has 3 values and n is 2"):
        complete(pictures(3), BOTTOM)
