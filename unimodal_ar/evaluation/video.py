"""How far are predicted frames from real ones, and generated clips from real clips?

Shapes: B clips, T frames of H x W pixels and C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .frechet import CLIPS, check_images, extract_features, few, frechet_distance

WINDOW = 11  # pixels across that SSIM looks at
AT_ONCE = 64  # frames


def psnr(real: Tensor, predicted: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of every frame, 10 log10(255^2 / mean squared error) over its pixels and
    channels, by torchmetrics. More is better; infinite where a frame is exact. A mean over frames is one of decibels,
    as papers have it, not that of the mean error.

    Args:
        real, predicted: uint8 [B, T, H, W, C], computed in float64.

    Returns:
        float64 [B, T].

    Raises:
        ValueError: another dtype or shape.
        ImportError: torchmetrics is missing.
    """
    ratio = metrics().peak_signal_noise_ratio
    first, second = _checked(real, predicted)
    return ratio(second, first, data_range=255.0, reduction="none", dim=(1, 2, 3)).view(real.shape[:2])


def ssim(real: Tensor, predicted: Tensor) -> Tensor:
    """Structural similarity of every frame (Wang et al. 2004), by torchmetrics: a Gaussian window of 11 x 11 pixels and
    standard deviation 1.5, constants 0.01 and 0.03 of 255, frames mirrored at their borders; mean over pixels and
    channels. 1 is equal, less is worse. What is black in both counts as equal, so that dark frames score high.

    Args:
        real, predicted: uint8 [B, T, H, W, C] with H, W >= 11, computed in float64.

    Returns:
        float64 [B, T].

    Raises:
        ValueError: another dtype or shape, or frames smaller than the window.
        ImportError: torchmetrics is missing.
    """
    similarity = metrics().structural_similarity_index_measure
    first, second = _checked(real, predicted)
    if min(first.shape[2:]) < WINDOW:
        size = " x ".join(map(str, first.shape[2:]))
        raise ValueError(f"frames have {size} pixels; for SSIM, whose window is {WINDOW} across, no side may be less")
    parts = zip(first.split(AT_ONCE), second.split(AT_ONCE), strict=True)
    found = [similarity(new, old, data_range=255.0, reduction="none").view(-1) for old, new in parts]
    return torch.cat(found).view(real.shape[:2])


def frechet_video_distance(
    real: Tensor,
    generated: Tensor,
    features: nn.Module,
    *,
    name: str | None = None,
    batch_size: int = 16,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """Frechet video distance (Unterthiner et al., arXiv 1812.01717): the squared Frechet distance (see
    `frechet_distance`) between features of real and of generated clips, in float64, with its protocol.

    It means nothing without that: published numbers are of one network (I3D trained on Kinetics-400, 400 logits, of
    clips resized to 224 x 224 and scaled to [-1, 1]) and one number and length of clips, and other copies of that
    network give other numbers. It shrinks as the number of clips grows. Where clips continue real frames, say whether
    these are among those compared. Nothing is downloaded: the network is the caller's, and so are its resizing, its
    scaling and the fewest frames that it takes.

    Args:
        real, generated: uint8 [n, T, H, W, C] of the same T, H and W, C 1 (repeated to 3) or 3.
        features: a module that maps uint8 [B, 3, T, H, W] to [B, d].
        name: of the features, for the protocol; None: the module's class.
        batch_size: clips at a time.
        device: where the features are computed, to which the module is moved meanwhile; None: where the module is.

    Returns:
        fvd, and the protocol: real and generated (clips), frames, size ([H, W]), features (their name), dimension (d),
        note ("" or what speaks against the number).

    Raises:
        ValueError: clips of another shape or dtype or of different lengths or sizes, fewer than 2, a module that
            returns no [B, d].
    """
    for told, clips in (("real", real), ("generated", generated)):
        check_images(told, clips, CLIPS)
    if real.shape[1:4] != generated.shape[1:4]:
        raise ValueError(
            f"generated has clips of [T, H, W] = {list(generated.shape[1:4])} and real of {list(real.shape[1:4])}; "
            "they must be equal"
        )
    found = [extract_features(features, clips, batch_size, device) for clips in (real, generated)]
    dimension = found[0].shape[1]
    return {
        "fvd": frechet_distance(found[0].numpy(), found[1].numpy()),
        "real": len(real),
        "generated": len(generated),
        "frames": real.shape[1],
        "size": list(real.shape[2:4]),
        "features": type(features).__name__ if name is None else name,
        "dimension": dimension,
        "note": few(min(len(real), len(generated)), dimension, "clips"),
    }


def metrics() -> Any:
    """The module torchmetrics.functional.image.

    Raises:
        ImportError: torchmetrics is missing.
    """
    try:
        import torchmetrics.functional.image
    except ImportError:
        raise ImportError("PSNR and SSIM need torchmetrics: pip install unimodal-ar[video]") from None
    return torchmetrics.functional.image


def _checked(real: Tensor, predicted: Tensor) -> tuple[Tensor, Tensor]:
    """Both as frames float64 [B * T, C, H, W]."""
    for name, clips in (("real", real), ("predicted", predicted)):
        if clips.dtype != torch.uint8 or clips.dim() != 5 or 0 in clips.shape:
            raise ValueError(
                f"{name} is {clips.dtype} of shape {list(clips.shape)}; it must be a uint8 tensor [B, T, H, W, C]"
            )
    if real.shape != predicted.shape:
        raise ValueError(f"predicted has shape {list(predicted.shape)} and real {list(real.shape)}; they must be equal")
    first, second = (clips.flatten(0, 1).permute(0, 3, 1, 2).double() for clips in (real, predicted))
    return first, second
