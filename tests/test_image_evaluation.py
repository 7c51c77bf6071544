"""Likelihoods against sums over every image there is, Frechet and kernel distances against other implementations."""

from __future__ import annotations

import math
import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor, nn

from unimodal_ar import Segment
from unimodal_ar.evaluation import bits_per_dimension, format_metrics, frechet_distance, image_metrics
from unimodal_ar.evaluation.frechet import extract_features, inception
from unimodal_ar.evaluation.likelihood import nats_per_dimension

from .helpers import all_sequences, build, codes, frequencies, label, labels, series

GRID = (1, 2, 2)
IMAGES = all_sequences(2, 4)


def picture(values: Tensor) -> Segment:
    return Segment("image", values, GRID)


def model(**image: Any) -> Any:
    return build({"label": label(3), "image": codes(2, GRID, **image)}, spread=0.6)


def batch(values: Tensor, number: int) -> dict[str, Any]:
    return {"segments": [labels(*[number] * len(values)), picture(values)]}


@pytest.mark.parametrize("layout", [dict(block=1), dict(block="row"), dict(order="random", block=1)])
def test_bits_are_those_of_the_distribution_that_is_drawn_from(layout: dict[str, Any]) -> None:
    """All 2^4 images: their probabilities sum to 1, and each occurs among samples as often as its bits say."""
    net = model(**layout)
    bits = np.array([bits_per_dimension(net, [batch(image[None], 1)], 4) for image in IMAGES])
    probability = 2.0 ** (-4 * bits)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert probability.max() > 2 * probability.min(), "too even a distribution to tell anything"
    torch.manual_seed(0)
    drawn = net.generate([labels(1)], "image", num_samples=4000).values
    np.testing.assert_allclose(frequencies(drawn, 2) / 4000, probability, atol=0.02)


def test_bits_of_codes_that_depend_on_each_other_inside_an_element() -> None:
    """Two elements of two binary codes each, drawn by a depth head."""
    element = {"kind": "discrete", "vocab_size": 2, "codes": 2}
    net = build({"image": codes(2, (1, 1, 2), element=element, head={"kind": "depth_ar"})}, spread=0.6)
    pairs = [Segment("image", image.view(1, 2, 2), (1, 1, 2)) for image in IMAGES]
    bits = np.array([bits_per_dimension(net, [{"segments": [pair]}], 4) for pair in pairs])
    probability = 2.0 ** (-4 * bits)
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    torch.manual_seed(0)
    drawn = net.generate([], "image", num_samples=4000).values.flatten(1)
    np.testing.assert_allclose(frequencies(drawn, 2) / 4000, probability, atol=0.02)
    assert probability.max() > 2 * probability.min(), "too even a distribution to tell anything"


def test_bits_equal_a_sum_of_conditionals_by_hand() -> None:
    """p(x_i | x_<i) from the marginals of the enumerated joint; averaged over unequal batches."""
    net = model(block=1)
    nats = torch.cat([net([labels(2), picture(image[None])]).element_losses["image"].detach() for image in IMAGES])
    joint = (-nats.double().sum(1)).exp()
    for image, losses in zip(IMAGES, nats, strict=True):
        for i in range(4):
            before, here = ((IMAGES[:, :k] == image[:k]).all(1) for k in (i, i + 1))
            assert -losses[i].item() == pytest.approx(math.log(joint[here].sum() / joint[before].sum()), abs=1e-4)
    mean = float((-joint.log2() / 4).mean())
    net.train()
    assert bits_per_dimension(net, [batch(IMAGES[:5], 2), batch(IMAGES[5:], 2)], 4) == pytest.approx(mean, rel=1e-5)
    assert net.training and net.backbone.training


def test_dimensions_are_of_the_raw_data_not_elements() -> None:
    net = build({"image": codes(3, GRID, element={"kind": "discrete", "vocab_size": 3, "codes": 2})})
    values = torch.randint(3, (5, 4, 2))
    loss = net([picture(values)]).element_losses["image"].double().sum().item()
    assert bits_per_dimension(net, [{"segments": [picture(values)]}], 8) == pytest.approx(loss / math.log(2) / 40)


def test_a_density_is_that_of_all_values_of_an_element() -> None:
    """The mixture's loss is a mean over an element's values; its likelihood is not."""
    net = build({"image": series(3, GRID, head={"kind": "mixture", "components": 2})})
    values = torch.randn(2, 4, 3)
    found = nats_per_dimension(net, [{"segments": [picture(values)]}], 12)
    assert found == pytest.approx(net([picture(values)]).loss.item(), rel=1e-5)
    with pytest.raises(ValueError, match=r"modality 'image' is continuous, .* take nats_per_dimension"):
        bits_per_dimension(net, [{"segments": [picture(values)]}], 12)


def test_what_has_no_likelihood_is_told() -> None:
    point = build({"image": series(3, GRID)})
    with pytest.raises(ValueError, match="the head of modality 'image' is a RegressionHead, which has no likelihood"):
        nats_per_dimension(point, [{"segments": [picture(torch.zeros(1, 4, 3))]}], 12)
    headless = model(block=1, start="none")
    with pytest.raises(ValueError, match="modality 'image' has no start vector; its first block has no likelihood"):
        bits_per_dimension(headless, [batch(IMAGES, 0)], 4)
    net = model(block=1)
    with pytest.raises(ValueError, match="dimensions is 0; it must be at least 1"):
        bits_per_dimension(net, [batch(IMAGES, 0)], 0)
    with pytest.raises(ValueError, match="batches is empty"):
        bits_per_dimension(net, [], 4)
    partly = picture(IMAGES).replace(observed=IMAGES == 0)
    with pytest.raises(ValueError, match="segment 'image' holds values that are not observed"):
        bits_per_dimension(net, [{"segments": [labels(*[0] * 16), partly]}], 4)


def features(n: int, d: int, seed: int, mixed: bool = True) -> np.ndarray:
    rng = np.random.default_rng(seed)
    drawn = rng.normal(size=(n, d)) @ (rng.normal(size=(d, d)) if mixed else np.eye(d))
    return drawn + rng.normal(size=d)


def by_definition(real: np.ndarray, generated: np.ndarray) -> float:
    first, second = np.cov(real, rowvar=False), np.cov(generated, rowvar=False)
    root = scipy.linalg.sqrtm(first @ second)
    return float(np.square(real.mean(0) - generated.mean(0)).sum() + np.trace(first + second - 2 * root.real))


@pytest.mark.parametrize(("n", "m", "d"), [(200, 150, 8), (40, 60, 1), (30, 500, 20)])
def test_frechet_distance_equals_its_definition(n: int, m: int, d: int) -> None:
    real, generated = features(n, d, 0), features(m, d, 1)
    if d > 1:
        assert frechet_distance(real, generated) == pytest.approx(by_definition(real, generated), rel=1e-9)
    else:  # of two normal numbers: (m - n)^2 + (s - t)^2
        gap = (real.mean() - generated.mean()) ** 2 + (real.std(ddof=1) - generated.std(ddof=1)) ** 2
        assert frechet_distance(real, generated) == pytest.approx(gap, rel=1e-9)
    assert frechet_distance(generated, real) == pytest.approx(frechet_distance(real, generated), rel=1e-9)


def test_frechet_distance_with_fewer_images_than_features() -> None:
    """Singular covariances, where a matrix root loses half of the digits; here every number is known."""
    real = features(10, 30, 2)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(real, real + 3) == pytest.approx(9 * 30, rel=1e-12)
    stretched = real.mean(0) + 2 * (real - real.mean(0))  # sqrt(C 4C) = 2C, so what is left is tr C
    assert frechet_distance(real, stretched) == pytest.approx(np.var(real, 0, ddof=1).sum(), rel=1e-9)
    apart = np.eye(4)[:, :2] @ np.eye(2, 30), np.eye(4)[:, :2] @ np.eye(2, 30, 2)  # no common direction
    expected = np.square(apart[0].mean(0) - apart[1].mean(0)).sum() + sum(np.var(x, 0, ddof=1).sum() for x in apart)
    assert frechet_distance(*apart) == pytest.approx(expected, rel=1e-12)


def test_frechet_distance_refuses_what_it_cannot_use() -> None:
    good = features(5, 3, 0)
    with pytest.raises(ValueError, match=r"generated has shape \[1, 3\]; it must be \[n, d\] with n >= 2"):
        frechet_distance(good, good[:1])
    with pytest.raises(ValueError, match="generated has 2 features and real has 3"):
        frechet_distance(good, good[:, :2])
    with pytest.raises(ValueError, match="real holds features that are not finite"):
        frechet_distance(np.where(good > 0, np.nan, good), good)


class Means(nn.Module):
    """Four quadrant means of each colour: 12 features."""

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(1 / 255))

    def forward(self, images: Tensor) -> Tensor:
        assert images.dtype == torch.uint8 and images.shape[1] == 3
        return self.drop(nn.functional.adaptive_avg_pool2d(images.float() * self.scale, 2)).flatten(1)


def pixels(n: int, seed: int, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 200 + 20 * seed, (n, 6, 4, channels), generator=generator, dtype=torch.uint8)


def kernel_distance(x: np.ndarray, y: np.ndarray) -> float:
    """The unbiased squared MMD with the kernel (x'y / d + 1)^3, written out in loops."""

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return (float(a @ b) / len(a) + 1) ** 3

    within = sum(
        kernel(side[i], side[j]) for side in (x, y) for i in range(len(x)) for j in range(len(x)) if i != j
    ) / (len(x) * (len(x) - 1))
    return within - 2 * sum(kernel(a, b) for a in x for b in y) / len(x) ** 2


def test_image_metrics_are_right_and_carry_their_protocol() -> None:
    real, generated, module = pixels(20, 0), pixels(20, 2), Means()
    before = torch.get_rng_state()
    found = image_metrics(real, generated, module, batch_size=7, seed=3, subsets=2, subset_size=20)
    assert module.training and module.drop.training
    assert torch.equal(before, torch.get_rng_state()), "the caller's random numbers were used up"
    x, y = (extract_features(module, images).numpy() for images in (real, generated))
    quadrant = real[4, :3, :2, 1].double().mean() / 255
    assert x[4, 4] == pytest.approx(float(quadrant), rel=1e-5)
    assert found["fid"] == pytest.approx(frechet_distance(x, y), rel=1e-6)
    assert found["kid"] == pytest.approx(kernel_distance(x, y), rel=1e-6)  # the subsets are all images
    protocol = dict(real=20, generated=20, features="Means", dimension=12, seed=3, subsets=2, subset_size=20, note="")
    assert {key: found[key] for key in protocol} == protocol
    line = format_metrics(found)
    assert line.startswith(f"FID {found['fid']:.4g}, KID ") and "\n" not in line
    assert "20 real and 20 generated images, features Means of dimension 12, 2 subsets of 20, seed 3)" in line


def test_subsets_are_half_of_the_images_unless_asked_otherwise() -> None:
    """Subsets of all images are all alike: their deviation would say nothing."""
    found = image_metrics(pixels(20, 0), pixels(20, 2), Means(), subsets=5)
    assert found["subset_size"] == 10 and found["kid_std"] > 1e-6


def test_subsets_follow_the_seed() -> None:
    real, generated = pixels(20, 0), pixels(20, 2)
    first, again, other = (
        image_metrics(real, generated, Means(), seed=seed, subsets=3, subset_size=6)["kid"] for seed in (1, 1, 2)
    )
    assert first == again != other


def test_few_images_are_noted() -> None:
    found = image_metrics(pixels(9, 0), pixels(11, 1), Means(), name="quadrants")
    assert format_metrics(found).endswith("seed 0); fewer images than the 12 features: the covariances are singular")
    assert "features quadrants of" in format_metrics(found)


class Placed(Means):
    """Remembers where it was sent."""

    def __init__(self, fails: bool) -> None:
        super().__init__()
        self.fails, self.places = fails, [torch.device("cpu")]

    def to(self, *args: Any, **kwargs: Any) -> Any:
        self.places.append(args[0])
        return self

    def forward(self, images: Tensor) -> Tensor:
        assert self.places[-1] == torch.device("cpu:0")
        return images if self.fails else super().forward(images)


@pytest.mark.parametrize("fails", [False, True])
def test_the_extractor_is_left_where_it_was(fails: bool) -> None:
    module = Placed(fails)
    with pytest.raises(ValueError, match="features gave") if fails else nullcontext():
        extract_features(module, pixels(4, 0), device="cpu:0")
    assert module.places == [torch.device(place) for place in ("cpu", "cpu:0", "cpu")]
    assert module.training


def test_grey_images_are_repeated() -> None:
    grey = pixels(4, 0, channels=1)
    assert torch.equal(extract_features(Means(), grey), extract_features(Means(), grey.expand(-1, -1, -1, 3)))


def test_wrong_images_and_extractors_are_told(tmp_path: Path) -> None:
    good = pixels(4, 0)
    with pytest.raises(ValueError, match=r"generated has shape \[1, 6, 4, 3\]; .* with n >= 2 and C 1 or 3"):
        image_metrics(good, good[:1], Means())
    with pytest.raises(ValueError, match=r"real is torch.float32 of shape \[4, 6, 4, 3\]; it must be a uint8 tensor"):
        image_metrics(good.float(), good, Means())
    with pytest.raises(ValueError, match=r"subset_size is 5; it must lie in 2\.\.4, the number of images"):
        image_metrics(good, good, Means(), subset_size=5)
    with pytest.raises(ValueError, match=r"features gave \[4, 3, 6, 4\] for 4 images; it must give \[4, d\]"):
        image_metrics(good, good, nn.Identity())
    with pytest.raises(ValueError, match=r"weights file '.*none\.pth' does not exist"):
        image_metrics(good, good, tmp_path / "none.pth")
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth' are not the Inception weights of torch-fidelity"):
        image_metrics(good, good, tmp_path / "other.pth")


class Harmful:
    """Unpickled, it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def test_weights_run_no_code(tmp_path: Path) -> None:
    torch.save({"weight": Harmful(tmp_path / "written")}, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match=r"bad\.pth' is not a torch file of tensors alone"):
        inception(tmp_path / "bad.pth")
    assert not (tmp_path / "written").exists()


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3)}, tmp_path / "weights.pth")
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity", None)
        with pytest.raises(ImportError, match=r"torch-fidelity: pip install unimodal-ar\[image\]"):
            inception(tmp_path / "weights.pth")
    monkeypatch.setitem(sys.modules, "torchmetrics.image.fid", None)
    with pytest.raises(ImportError, match=r"torchmetrics: pip install unimodal-ar\[image\]"):
        image_metrics(pixels(4, 0), pixels(4, 1), Means())


def test_inception_is_the_standard_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights in the file's format: the same features as torch-fidelity's own extractor, and no download."""
    module = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    original = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:  # its constructor can only load
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(original, "load_state_dict", lambda *_, **__: None)
        reference = original("inception-v3-compat", ["2048"])
    path = tmp_path / "inception.pth"
    torch.save(reference.state_dict(), path)

    def download(*_: Any, **__: Any) -> None:
        raise AssertionError("downloads")

    monkeypatch.setattr(module, "load_state_dict_from_url", download)
    images = pixels(2, 0)
    found = extract_features(inception(path), images)
    assert found.shape == (2, 2048)
    (expected,) = reference(images.permute(0, 3, 1, 2))
    assert expected.abs().max() > 0
    torch.testing.assert_close(found, expected.double(), rtol=1e-4, atol=0)  # random weights: features of about 1e-8
