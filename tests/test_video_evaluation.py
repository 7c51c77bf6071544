"""PSNR, SSIM and the Frechet video distance by hand; what is told of predictions is what the model draws."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unimodal_ar.adapters import LabelAdapter, VideoAdapter
from unimodal_ar.adapters.tokenizers import Timing
from unimodal_ar.evaluation.frechet import extract_features, frechet_distance, image_metrics
from unimodal_ar.evaluation.video import frechet_video_distance, psnr, ssim
from unimodal_ar.pipelines import Generator
from unimodal_ar.training.video_evaluation import GIVEN, VideoEvaluation, VideoEvaluator, beginnings, pairs

from .helpers import build, diffusion, label

pytest.importorskip("torchmetrics")


def _clips(*shape: int, seed: int = 0) -> Tensor:
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


# ---- PSNR and SSIM


def test_psnr_is_that_of_every_frame() -> None:
    real, predicted = _clips(2, 3, 5, 4, 3), _clips(2, 3, 5, 4, 3, seed=1)
    predicted[1, 2] = real[1, 2]
    found = psnr(real, predicted)
    assert found.shape == (2, 3) and found[1, 2] == math.inf
    for clip, frame in ((0, 0), (0, 2), (1, 1)):
        error = np.mean((real[clip, frame].numpy() - predicted[clip, frame].numpy().astype(float)) ** 2)
        assert float(found[clip, frame]) == pytest.approx(10 * math.log10(255**2 / error), abs=1e-4)
    off = torch.full_like(real, 100)
    assert float(psnr(off, off + 51)[0, 0]) == pytest.approx(20 * math.log10(5), abs=1e-4)


def test_ssim_is_that_of_every_frame() -> None:
    """Against a plain loop over all pixels of mirrored frames."""
    real, noise = _clips(2, 2, 13, 12, 1), _clips(2, 2, 13, 12, 1, seed=1)
    predicted = (0.7 * real + 0.3 * noise).byte()
    predicted[0, 1] = real[0, 1]
    bell = np.exp(-(((np.arange(11) - 5) / 1.5) ** 2) / 2)
    bell = np.outer(bell, bell) / bell.sum() ** 2
    for clip, frame in ((0, 0), (1, 0), (1, 1)):
        frames = (clips[clip, frame, ..., 0].numpy().astype(float) for clips in (real, predicted))
        x, y = (np.pad(image, 5, mode="reflect") for image in frames)
        scores = []
        for row in range(13):
            for column in range(12):
                a, b = (image[row : row + 11, column : column + 11] for image in (x, y))
                m, n = (bell * a).sum(), (bell * b).sum()
                v, w, c = (bell * a * a).sum() - m * m, (bell * b * b).sum() - n * n, (bell * a * b).sum() - m * n
                one, two = (0.01 * 255) ** 2, (0.03 * 255) ** 2
                scores.append((2 * m * n + one) * (2 * c + two) / ((m * m + n * n + one) * (v + w + two)))
        assert float(ssim(real, predicted)[clip, frame]) == pytest.approx(np.mean(scores), abs=1e-6)
    assert float(ssim(real, predicted)[0, 1]) == pytest.approx(1, abs=1e-9)


def test_many_frames_are_compared_as_few_are() -> None:
    real, predicted = _clips(2, 40, 11, 11, 1), _clips(2, 40, 11, 11, 1, seed=1)
    torch.testing.assert_close(ssim(real, predicted)[1, 39:], ssim(real[1:, 39:], predicted[1:, 39:])[0])


def test_clips_that_cannot_be_compared() -> None:
    real = _clips(1, 2, 10, 12, 1)
    with pytest.raises(ValueError, match="frames have 10 x 12 pixels; for SSIM, whose window is 11 across, no side"):
        ssim(real, real)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match=r"predicted has shape \[1, 1, 10, 12, 1\] and real \[1, 2, 10, 12, 1\]"):
            measure(real, real[:, :1])
        with pytest.raises(ValueError, match=r"real is torch.float32 of shape .*; it must be a uint8 tensor \[B, T, H"):
            measure(real.float(), real)


def test_without_torchmetrics_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match=r"torchmetrics: pip install unimodal-ar\[video\]"):
        psnr(_clips(1, 1, 4, 4, 1), _clips(1, 1, 4, 4, 1))


# ---- Frechet video distance


class Motion(nn.Module):
    """Mean of each colour, and how much it changes from frame to frame: 6 features."""

    def forward(self, clips: Tensor) -> Tensor:
        assert clips.dtype == torch.uint8 and clips.shape[1] == 3 and not self.training
        values = clips.double().mean((3, 4))
        return torch.cat([values.mean(2), values.diff(dim=2).abs().mean(2)], 1)


def test_the_distance_of_videos_is_that_of_their_features() -> None:
    real, generated, module = _clips(9, 4, 3, 5, 3), _clips(8, 4, 3, 5, 3, seed=1) // 2, Motion()
    found = frechet_video_distance(real, generated, module, batch_size=4)
    means = [clips.double().numpy().mean((2, 3)) for clips in (real, generated)]  # [n, T, C]
    features = [np.concatenate([x.mean(1), np.abs(np.diff(x, axis=1)).mean(1)], 1) for x in means]
    assert found["fvd"] == pytest.approx(frechet_distance(*features), rel=1e-9) and found["fvd"] > 1
    protocol = dict(real=9, generated=8, frames=4, size=[3, 5], features="Motion", dimension=6, note="")
    assert {key: found[key] for key in protocol} == protocol and len(found) == 8
    assert module.training
    # The order of the frames matters to what looks at motion.
    assert (
        frechet_video_distance(real, real.sort(1).values, module)["fvd"]
        > 1
        > 1e-6
        > (frechet_video_distance(real, real, module)["fvd"])
    )
    few = frechet_video_distance(real[:5], generated, module, name="motion")
    assert (
        few["features"] == "motion" and few["note"] == "fewer clips than the 6 features: the covariances are singular"
    )


def test_grey_clips_are_repeated() -> None:
    grey = _clips(3, 4, 3, 5, 1)
    assert torch.equal(extract_features(Motion(), grey), extract_features(Motion(), grey.expand(-1, -1, -1, -1, 3)))


def test_wrong_clips_and_features_are_told() -> None:
    good = _clips(3, 4, 3, 5, 3)
    with pytest.raises(ValueError, match=r"real is torch.uint8 of shape \[4, 3, 5, 3\]; .* tensor \[n, T, H, W, C\]$"):
        frechet_video_distance(good[0], good, Motion())
    with pytest.raises(ValueError, match=r"generated has shape \[1, 4, 3, 5, 3\]; .* with n >= 2 and C 1 or 3"):
        frechet_video_distance(good, good[:1], Motion())
    with pytest.raises(ValueError, match=r"generated has clips of \[T, H, W\] = \[3, 3, 5\] and real of \[4, 3, 5\]"):
        frechet_video_distance(good, good[:, :3], Motion())
    with pytest.raises(ValueError, match=r"features gave \[3, 3, 4, 3, 5\] for 3 clips; it must give \[3, d\]"):
        frechet_video_distance(good, good, nn.Identity())
    with pytest.raises(ValueError, match=r"real is torch.uint8 of shape \[3, 4, 3, 5, 3\]; .* tensor \[n, H, W, C\]$"):
        image_metrics(good, good, Motion())


# ---- predictions

SIZE, FRAMES = 12, 6


def _adapter(size: int = SIZE, frames: int = FRAMES, patch: Any = (1, 6, 6)) -> VideoAdapter:
    return VideoAdapter(size, frames, channels=1, elements={"kind": "patches", "patch": list(patch)})


class _Test:
    """In place of a test part: clips with labels."""

    def __init__(self, clips: Tensor, anchor: int) -> None:
        self.anchor = anchor
        self.clips, self.labels = clips, {"label": torch.arange(len(clips)) % 5}

    def __len__(self) -> int:
        return len(self.clips)

    def spread(self, count: int | None = None) -> list[int]:
        count = len(self) if count is None else min(count, len(self))
        return [i * len(self) // count for i in range(count)]

    def frames(self, count: int | None = None) -> Any:
        return (self.clips[place] for place in self.spread(count))


def _model(adapter: VideoAdapter, block: Any = "frame", **video: Any) -> Any:
    options = {"element": adapter.element, "grid": adapter.grid, "layout": {"block": block}}
    return build({"label": label(5), "video": {**options, "head": {"kind": "regression"}, **video}})


def _evaluator(adapter: VideoAdapter, model: Any, count: int = 8, anchor: int = 0, **evaluation: Any) -> VideoEvaluator:
    test: Any = _Test(_clips(count, adapter.frames, *adapter.size, 1), anchor)
    options = VideoEvaluation(**{"bits_per_dimension": False, "samples": 0, "predictions": 4, **evaluation})
    return VideoEvaluator(adapter, [LabelAdapter(5)], test, options, model.config, 3)


def test_predictions_are_what_the_model_draws_after_the_given_frames(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = _adapter()
    model = _model(adapter)
    evaluator = _evaluator(adapter, model)
    found = evaluator.run(model, tmp_path)["predictions"]
    real = evaluator.test.clips[::2]
    drawn = Generator(model, [LabelAdapter(5), adapter]).generate(4, given=list(real[:, :2]), label=[0, 2, 4, 1])
    predicted = torch.stack([clip.frames for clip in drawn.raw])
    assert torch.equal(predicted[:, :2], real[:, :2])
    assert list(found) == ["psnr", "last_frame_psnr", "ssim", "psnr_by_frame", "given", "clips"]
    assert (found["given"], found["clips"]) == (2, 4)
    ratios = psnr(real[:, 2:], predicted[:, 2:])
    assert found["psnr"] == pytest.approx(float(ratios.mean()))
    assert found["psnr_by_frame"] == pytest.approx(ratios.mean(0).tolist())
    assert found["ssim"] == pytest.approx(float(ssim(real[:, 2:], predicted[:, 2:]).mean()))
    repeated = [float(psnr(real[:, frame : frame + 1], real[:, 1:2]).mean()) for frame in range(2, 6)]
    assert found["last_frame_psnr"] == pytest.approx(np.mean(repeated))
    assert json.loads(json.dumps(found)) == found
    out = capsys.readouterr().out.split("\n")
    told = (found["psnr"], found["ssim"], found["last_frame_psnr"])
    assert (
        out[1]
        == "4 frames of 4 test clips predicted from 2: PSNR {:.2f} dB, SSIM {:.4f} (repeating the last "
        "given frame: {:.2f} dB)".format(*told)
    )
    assert out[2].startswith(f"PSNR frame by frame: {found['psnr_by_frame'][0]:.1f} ") and len(out) == 4
    assert (tmp_path / "predictions.png").is_file()
    # The labels are context: with others the model draws another future.
    others = Generator(model, [LabelAdapter(5), adapter]).generate(4, given=list(real[:, :2]), label=[1, 3, 0, 2])
    assert not torch.equal(torch.stack([clip.frames for clip in others.raw]), predicted)


def test_exact_frames_count_as_100_decibels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A video at rest, and predictions that repeat it."""
    adapter = _adapter(size=8, patch=(1, 4, 4))
    model = _model(adapter)
    evaluator = _evaluator(adapter, model)
    real = torch.stack(list(evaluator.test.frames(4)))[:, :1].expand(-1, FRAMES, -1, -1, -1)
    monkeypatch.setattr(evaluator, "_predict", lambda model: (real, real))
    found = evaluator.run(model, tmp_path)["predictions"]
    assert found["psnr"] == found["last_frame_psnr"] == 100 and found["psnr_by_frame"] == [100.0] * 4
    assert "ssim" not in found  # whose window is larger than these frames


@pytest.mark.parametrize(
    ("patch", "layout", "more", "legal"),
    [
        ((1, 6, 6), {"block": 1}, {}, [1, 2, 3, 4, 5]),
        ((2, 6, 6), {"block": "frame"}, {}, [2, 4]),
        ((1, 6, 6), {"block": (2, 1, 1)}, {}, [2, 4]),
        ((1, 6, 6), {"block": 6}, {}, [3]),
        ((1, 6, 6), {"block": "whole"}, {}, []),
        ((1, 6, 6), {"block": "whole"}, diffusion("gaussian"), [1, 2, 3, 4, 5]),
        ((1, 6, 6), {"order": "random", "block": 1}, {}, [1, 2, 3, 4, 5]),
    ],
)
def test_what_a_model_can_be_given(patch: Any, layout: Any, more: Any, legal: list[int]) -> None:
    """And that it keeps exactly that."""
    adapter = _adapter(patch=patch)
    model = _model(adapter, layout=layout, **more)
    assert beginnings(adapter, model.config.modality("video")) == legal
    if not legal:
        with pytest.raises(ValueError, match=r"evaluation.predictions must be 0 with this model: no first frames"):
            _evaluator(adapter, model)
        _evaluator(adapter, model, predictions=0)
        return
    assert _evaluator(adapter, model).given == next(number for number in legal if number >= 2)
    for given in legal:
        evaluator = _evaluator(adapter, model, given=given, steps=2 if more else None)
        real, predicted = evaluator._predict(model.eval())
        assert torch.equal(real[:, :given], predicted[:, :given])
        assert not torch.equal(real[:, given : given + 1], predicted[:, given : given + 1])


@pytest.mark.parametrize(("block", "legal"), [(4, [1, 3]), (8, []), (12, [3])])
def test_what_a_model_can_be_given_of_steps_that_come_together(block: int, legal: list[int]) -> None:
    adapter = _adapter(frames=5)
    adapter._codec.timing = Timing(lead=1, chunk=2)  # 1, 3 or 5 frames, of 4 elements each
    assert beginnings(adapter, _model(adapter, block).config.modality("video")) == legal


def test_two_frames_are_given_beside_the_anchor() -> None:
    adapter = _adapter()
    assert _evaluator(adapter, _model(adapter), anchor=1).given == 3


def test_one_frame_is_given_where_no_more_leaves_something() -> None:
    adapter = _adapter(frames=2)
    assert _evaluator(adapter, _model(adapter)).given == 1


def test_wrong_options_are_told_before_training() -> None:
    adapter = _adapter()
    model = _model(adapter, (2, 1, 1))
    with pytest.raises(ValueError, match=r"evaluation.given is 3 frames; this adapter and model can be given 2, 4$"):
        _evaluator(adapter, model, given=3)
    with pytest.raises(ValueError, match=r"evaluation.predictions is 4, but there are no test clips; set it to 0, or"):
        _evaluator(adapter, model, count=0)
    with pytest.raises(ValueError, match=r"evaluation.given is 2, and evaluation.predictions 0; leave given out"):
        _evaluator(adapter, model, given=2, predictions=0)


def test_the_picture_shows_pairs_and_frames_what_was_given() -> None:
    real, predicted = _clips(2, 20, 40, 30, 1), _clips(2, 20, 40, 30, 1, seed=1)
    predicted[:, :3] = real[:, :3]
    picture = np.array(pairs(real, predicted, 3))
    high, wide = 2 * 40 + 4, 2 * 30 + 4  # enlarged twice, with a frame of 2
    assert picture.shape == (4 * high + 4, 16 * wide, 3)
    tops = [0, high, 2 * high + 4, 3 * high + 4]
    shown = np.linspace(0, 19, 16).round().astype(int)
    for top, clip in zip(tops, (real[0], predicted[0], real[1], predicted[1]), strict=True):
        for column, frame in enumerate(shown):
            cell = picture[top : top + high, column * wide : (column + 1) * wide]
            assert ((cell[0, 0] == GIVEN).all()) == (frame < 3) == ((cell[-1, -1] == GIVEN).all())
            inside = cell[2:-2:2, 2:-2:2]
            assert (inside == clip[frame].numpy()).all() and (cell[3:-2:2, 3:-2:2] == inside).all()


def test_a_missing_package_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    adapter = _adapter()
    model = _model(adapter)
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(ImportError, match="need torchmetrics"):
        _evaluator(adapter, model)
    assert isinstance(_evaluator(adapter, model, predictions=0), VideoEvaluator)
