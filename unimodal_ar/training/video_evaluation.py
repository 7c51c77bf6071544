"""How a model of videos is judged: bits per dimension, samples, and how far its predictions of test clips are off.

Shapes: n clips, T frames of H x W pixels and C channels, the first g of them given.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.nn.functional import pad

from ..adapters import LabelAdapter, VideoAdapter
from ..adapters.image.pictures import SEPARATOR, VISIBLE, to_picture, write_png
from ..configuration import UnimodalARConfig
from ..evaluation.video import WINDOW, metrics, psnr, ssim
from ..generation.mixin import leading_blocks
from ..layout import ORDERS, Layout
from ..modality import ModalityOptions
from ..modeling import UnimodalARForGeneration
from ..pipelines import Generator
from .sample_evaluation import SampleEvaluator, SampleOptions
from .source_set import tells

if TYPE_CHECKING:
    from PIL import Image

    from .video_set import VideoDataset

EXACT = 100.0  # dB of PSNR that an exact frame is given, which has infinitely many (and JSON has no infinity)
FEWEST = 2  # frames that show a motion, beside the anchor
PICTURE = "predictions.png"
PAIRS, COLUMNS = 8, 16  # of predictions.png, at most
GIVEN, PREDICTED = (255, 160, 0), (64, 64, 64)  # orange and dark grey: what frames are framed with


class VideoEvaluation(SampleOptions):
    """What is computed of a trained model, beside what `SampleOptions` says of every model.

    Dimensions are frames times pixels times channels.

    Args:
        predictions: test clips, evenly spread over the test part, that the model continues, with their labels; 0: none.
            Of the frames that follow the given ones are told, as means over frames and clips: PSNR in dB (100 for an
            exact frame) and, where no side has less than 11 pixels, SSIM; PSNR frame by frame; and the PSNR of
            repeating the last given frame, the least that a model is to beat. Real frames are those that were read, so
            what the elements lose counts as lost. Where the future is uncertain one sample is one of many futures, and
            far from the real one. predictions.png shows some.
        given: frames of each clip that the model is given: whole steps of the adapter and, under next-block, whole
            leading blocks. None: the fewest that are at least 2 after the data's anchor, or else as many as can be.
        samples: how many clips are drawn for samples.mp4 and samples.png.
        batch_size: clips at a time, of all.
    """

    predictions: NonNegativeInt = 16
    given: PositiveInt | None = None
    samples: NonNegativeInt = 16
    batch_size: PositiveInt = 16


class VideoEvaluator(SampleEvaluator):
    """Bits per dimension on the test part, samples.mp4 and samples.png, predictions and predictions.png.

    Raises:
        ValueError: as `SampleEvaluator`, no test clips to continue, or a beginning that the model cannot be given.
        ImportError: predictions, and no torchmetrics.
    """

    many: ClassVar[str] = "clips"
    file: ClassVar[str] = "samples.mp4"
    evaluation: VideoEvaluation

    def __init__(
        self,
        adapter: VideoAdapter,
        labels: Sequence[LabelAdapter],
        test: VideoDataset,
        evaluation: VideoEvaluation,
        config: UnimodalARConfig,
        seed: int,
    ) -> None:
        super().__init__(adapter, labels, test, evaluation, config, seed)
        if not evaluation.predictions:
            if evaluation.given is not None:
                raise ValueError(
                    f"evaluation.given is {evaluation.given}, and evaluation.predictions 0; leave given out"
                )
            return
        metrics()
        if not len(test):
            raise ValueError(
                f"evaluation.predictions is {evaluation.predictions}, but there are no test clips; set it to 0, or "
                "data.test"
            )
        legal = beginnings(adapter, config.modality(adapter.modality))
        self.given = _given(evaluation.given, legal, test.anchor + FEWEST)

    def run(self, model: UnimodalARForGeneration, folder: Path | None) -> dict[str, Any]:
        """Writes samples.mp4, samples.png and predictions.png (`folder` None: nothing, and no samples are drawn), and
        returns {"bits_per_dimension": x, "test_clips": n, "predictions": {"psnr", "ssim", "last_frame_psnr",
        "psnr_by_frame": [T - g], "given": g, "clips": n}}, as far as asked for."""
        found = super().run(model, folder)
        if self.evaluation.predictions:
            real, predicted = self._predict(model)
            found["predictions"] = self._judged(real, predicted)
            if folder is not None:
                write_png(pairs(real[:PAIRS], predicted[:PAIRS], self.given), folder / PICTURE)
        return found

    def _predict(self, model: UnimodalARForGeneration) -> tuple[Tensor, Tensor]:
        """uint8 [n, T, H, W, C]: test clips, and what the model makes of their first g frames."""
        places = self.test.spread(self.evaluation.predictions)
        real = torch.stack(list(self.test.frames(len(places))))
        labels = {name: codes[places].tolist() for name, codes in self.test.labels.items()}
        drawn = Generator(model, [*self.labels, self.adapter]).generate(
            len(places),
            self.adapter.modality,
            given=list(real[:, : self.given]),
            seed=self.seed,
            batch_size=self.evaluation.batch_size,
            **labels,
        )
        return real, torch.stack([clip.frames for clip in drawn.raw])

    def _judged(self, real: Tensor, predicted: Tensor) -> dict[str, Any]:
        future, last = real[:, self.given :], real[:, self.given - 1 : self.given]
        decibels = psnr(future, predicted[:, self.given :]).clamp(max=EXACT)
        repeated = psnr(future, last.expand_as(future)).clamp(max=EXACT)
        found: dict[str, Any] = {"psnr": float(decibels.mean()), "last_frame_psnr": float(repeated.mean())}
        if min(self.adapter.size) >= WINDOW:
            found["ssim"] = float(ssim(future, predicted[:, self.given :]).mean())
        found["psnr_by_frame"] = [float(mean) for mean in decibels.mean(0)]
        found |= {"given": self.given, "clips": len(real)}
        if tells():
            _tell(found)
        return found


def beginnings(adapter: VideoAdapter, options: ModalityOptions) -> list[int]:
    """How many first frames of a clip, fewer than all, a model of these options can be given and keeps as they are."""
    steps = [number for number in range(1, adapter.frames) if adapter.whole(number) == number]
    objective, layout = options.built_objective, options.layout
    assert objective is not None  # check_model has seen to that
    if objective.knows_anything or (ORDERS[layout.order].random and not isinstance(layout.block, list)):
        return steps
    block: Any = tuple(layout.block["cell"]) if isinstance(layout.block, dict) else layout.block
    made = Layout.from_grid(adapter.grid, layout.order, block, torch.Generator().manual_seed(layout.seed))
    count, each = len(made.index), len(made.index) // adapter.grid[0]
    found = []
    for frames in steps:
        known = each * (adapter.grid[0] - (adapter.frames - frames) // adapter.step)
        observed = made.gather(torch.arange(count)[None] < known)
        if sum(made.block_sizes[: leading_blocks(observed, made)]) == known:
            found.append(frames)
    return found


def pairs(real: Tensor, predicted: Tensor, given: int) -> Image.Image:
    """Clips uint8 [n, T, H, W, C] in pairs of rows, real above predicted; in each row at most COLUMNS frames, evenly
    spaced. Those that were given have an orange frame, predicted ones a dark grey one; small ones are enlarged by a
    whole factor."""
    frames = torch.linspace(0, real.shape[1] - 1, min(COLUMNS, real.shape[1])).round().long()
    factor = -(-VISIBLE // max(real.shape[2:4]))
    shown = torch.stack([real, predicted], 1)[:, :, frames].expand(*[-1] * 5, 3)
    shown = shown.repeat_interleave(factor, 3).repeat_interleave(factor, 4)
    edge = [0, 0, *[SEPARATOR] * 4]
    inside = pad(torch.ones(shown.shape[3:5], dtype=torch.bool), edge[2:])[..., None]
    colours = torch.tensor([GIVEN if frame < given else PREDICTED for frame in frames], dtype=torch.uint8)
    cells = torch.where(inside, pad(shown, edge), colours[:, None, None])  # [n, 2, columns, h, w, 3]
    # A gap between one pair and the next.
    cells = pad(cells.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2), (0, 0, 0, 0, 0, 2 * SEPARATOR))
    return to_picture(cells.flatten(0, 1)[: -2 * SEPARATOR])


def _given(asked: int | None, legal: list[int], wanted: int) -> int:
    if not legal:
        raise ValueError(
            "evaluation.predictions must be 0 with this model: no first frames of a clip are whole steps and whole "
            "leading blocks, which it could be given"
        )
    if asked is None:
        return next((frames for frames in legal if frames >= wanted), legal[-1])
    if asked not in legal:
        listed = ", ".join(map(str, legal[:8])) + ", ..." * (len(legal) > 8)
        raise ValueError(f"evaluation.given is {asked} frames; this adapter and model can be given {listed}")
    return asked


def _tell(found: dict[str, Any]) -> None:
    by_frame = found["psnr_by_frame"]
    similar = f", SSIM {found['ssim']:.4f}" if "ssim" in found else ""
    print(
        f"\n{len(by_frame)} frames of {found['clips']} test clips predicted from {found['given']}: PSNR "
        f"{found['psnr']:.2f} dB{similar} (repeating the last given frame: {found['last_frame_psnr']:.2f} dB)"
    )
    print(f"PSNR frame by frame: {' '.join(f'{value:.1f}' for value in by_frame)} dB")
