"""How far are generated images, or clips, from real ones? Frechet and kernel distances of their features.

Nothing is downloaded: the feature extractor is the caller's, a module or a file of weights. Both distances mean nothing
without their protocol (which features, how many images, which seed), so that travels with them.
"""

from __future__ import annotations

import math
import os
import warnings
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from ..convert import read_weights

INCEPTION_FEATURES = 2048
IMAGES, CLIPS = "[n, H, W, C]", "[n, T, H, W, C]"


def frechet_distance(real: ArrayLike, generated: ArrayLike) -> float:
    """The squared Frechet distance between Gaussians of the features' means and covariances (FID of Inception
    features: Heusel et al., arXiv 1706.08500, eq. 6): |m - n|^2 + tr(C) + tr(D) - 2 tr((C D)^(1/2)).

    It shrinks as the number of images grows (by a bias of about 1/n), so only values at equal n compare.

    No covariance is formed. With C = X'X and D = Y'Y of the centred features X and Y, the non-zero eigenvalues of C D
    are the squared singular values of X Y', so tr((C D)^(1/2)) is their sum: exact to rounding for singular
    covariances, too.

    Args:
        real, generated: [n, d] features, n >= 2 each; computed in float64.

    Raises:
        ValueError: another shape, different d, n < 2, or a feature that is not finite.
    """
    first, second = (_features(name, given) for name, given in (("real", real), ("generated", generated)))
    if first.shape[1] != second.shape[1]:
        raise ValueError(f"generated has {second.shape[1]} features and real has {first.shape[1]}; they must be equal")
    means, spreads, roots = [], [], []
    for features in (first, second):
        centred = (features - features.mean(0)) / math.sqrt(len(features) - 1)
        means.append(features.mean(0))
        spreads.append(centred.square().sum())
        roots.append(torch.linalg.qr(centred, mode="r").R)  # R'R = X'X, and R has at most d rows
    cross = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    distance = (means[0] - means[1]).square().sum() + spreads[0] + spreads[1] - 2 * cross
    return max(float(distance), 0.0)  # of equal features rounding may leave a little less than 0


def _features(name: str, given: ArrayLike) -> Tensor:
    features = torch.from_numpy(np.array(given, dtype=np.float64))
    if features.dim() != 2 or len(features) < 2:
        raise ValueError(f"{name} has shape {list(features.shape)}; it must be [n, d] with n >= 2")
    if not bool(features.isfinite().all()):
        raise ValueError(f"{name} holds features that are not finite; the extractor or its input is wrong")
    return features


def image_metrics(
    real: Tensor,
    generated: Tensor,
    features: nn.Module | str | os.PathLike[str],
    *,
    name: str | None = None,
    batch_size: int = 64,
    seed: int = 0,
    subsets: int = 100,
    subset_size: int | None = None,
    device: torch.device | str | None = None,
) -> dict[str, Any]:
    """FID and KID (Binkowski et al., arXiv 1801.01401) by torchmetrics, in float64, with their protocol.

    Args:
        real, generated: uint8 [n, H, W, C] with C 1 (repeated to 3) or 3, as `ImageAdapter.pixels` and
            `decode_pixels` give them.
        features: a module that maps uint8 [B, 3, H, W] to [B, d]; or the file of torch-fidelity's Inception weights
            (pt_inception-2015-12-05 or weights-inception-2015-12-05), whose 2048 pooled features are the standard
            ones. Images are resized to 299 x 299 as TensorFlow 1 did, which published numbers are based on.
        name: of the features, for the protocol; None: the module's class or the file's name.
        batch_size: images at a time.
        seed: of KID's subsets.
        subsets, subset_size: KID's mean is over so many random subsets of so many images; None: 1000, or half
            of the images where that is less.
        device: where the features are computed, to which the module is moved meanwhile; None: where the module is.

    Returns:
        fid, kid, kid_std, and the protocol: real and generated (images), features (their name), dimension (d), seed,
        subsets, subset_size, note ("" or what speaks against the numbers). `format_metrics` makes a line of it.

    Raises:
        ValueError: images of another shape or dtype, fewer than 2, a subset_size outside 2..n, no such file or one of
            other weights, an extractor that returns no [B, d].
        ImportError: torchmetrics, or for a file torch-fidelity, is not installed.
    """
    fid_class, kid_class = _metrics()
    smallest = min(len(check_images("real", real, IMAGES)), len(check_images("generated", generated, IMAGES)))
    subset_size = min(1000, max(2, smallest // 2)) if subset_size is None else subset_size
    if not 2 <= subset_size <= smallest:
        raise ValueError(f"subset_size is {subset_size}; it must lie in 2..{smallest}, the number of images")
    extractor = features if isinstance(features, nn.Module) else inception(features)
    if name is None:
        name = type(features).__name__ if isinstance(features, nn.Module) else Path(features).name
    found = [extract_features(extractor, images, batch_size, device) for images in (real, generated)]
    dimension = found[0].shape[1]
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save", UserWarning)
        torch.manual_seed(seed)  # KID draws its subsets from torch's global generator
        fid = fid_class(feature=_Ready(dimension))
        kid = kid_class(feature=_Ready(dimension), subsets=subsets, subset_size=subset_size)
        for metric in (fid, kid):
            for values, is_real in zip(found, (True, False), strict=True):
                metric.update(values, real=is_real)
        mean, spread = kid.compute()
    return {
        "fid": float(fid.compute()),
        "kid": float(mean),
        "kid_std": float(spread),
        "real": len(real),
        "generated": len(generated),
        "features": name,
        "dimension": dimension,
        "seed": seed,
        "subsets": subsets,
        "subset_size": subset_size,
        "note": few(smallest, dimension, "images"),
    }


def few(count: int, dimension: int, many: str) -> str:
    """What speaks against a distance of so few images or clips, or ""."""
    return "" if count >= dimension else f"fewer {many} than the {dimension} features: the covariances are singular"


def format_metrics(metrics: dict[str, Any]) -> str:
    """One line: the numbers of `image_metrics` and their protocol."""
    line = (
        "FID {fid:.4g}, KID {kid:.4g} +- {kid_std:.2g} ({real} real and {generated} generated images, features "
        "{features} of dimension {dimension}, {subsets} subsets of {subset_size}, seed {seed})"
    ).format(**metrics)
    return f"{line}; {metrics['note']}" if metrics["note"] else line


@torch.no_grad()
def extract_features(
    extractor: nn.Module, images: Tensor, batch_size: int = 64, device: torch.device | str | None = None
) -> Tensor:
    """[n, d] float64 on the CPU: the features of uint8 images [n, H, W, C] or clips [n, T, H, W, C], C 1 or 3. The
    extractor gets [B, 3, H, W] or [B, 3, T, H, W]; it is moved to `device` if one is given, and left where and in the
    mode in which it came.

    Raises:
        ValueError: images of another shape or dtype, or an extractor that returns no [B, d].
    """
    check_images("images", images, IMAGES, CLIPS)
    state = next(chain(extractor.parameters(), extractor.buffers()), torch.zeros(0))
    home, where = state.device, state.device if device is None else torch.device(device)
    modes = [(module, module.training) for module in extractor.modules()]
    extractor.eval()
    try:
        extractor.to(where)
        parts = [_extract(extractor, batch, where) for batch in images.split(batch_size)]
    finally:
        for module, training in modes:
            module.training = training
        extractor.to(home)
    return torch.cat(parts)


def _extract(extractor: nn.Module, images: Tensor, where: torch.device) -> Tensor:
    coloured = images.expand(*images.shape[:-1], 3).movedim(-1, 1)
    values = extractor(coloured.contiguous().to(where))
    if not isinstance(values, Tensor) or values.dim() != 2 or len(values) != len(images):
        found = list(values.shape) if isinstance(values, Tensor) else f"a {type(values).__name__}"
        many = "images" if images.dim() == 4 else "clips"
        raise ValueError(f"features gave {found} for {len(images)} {many}; it must give [{len(images)}, d]")
    return values.double().cpu()


def inception(path: str | os.PathLike[str]) -> nn.Module:
    """The Inception network of the standard FID, uint8 [B, 3, H, W] -> [B, 2048], from its file of weights.

    Raises:
        ValueError: there is no such file, or it holds other weights.
        ImportError: torchmetrics or torch-fidelity is not installed.
    """
    read_weights(path)  # the library unpickles whatever is there, so first: does it exist, and are there only tensors?
    _metrics()
    try:
        import torch_fidelity  # noqa: F401  # the base class of the next one, which is another where it is missing
        from torchmetrics.image.fid import NoTrainInceptionV3
    except ImportError:
        raise ImportError("Inception features need torch-fidelity: pip install unimodal-ar[image]") from None
    try:
        return NoTrainInceptionV3(
            "inception-v3-compat", [str(INCEPTION_FEATURES)], feature_extractor_weights_path=str(path), antialias=False
        )
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].strip(" :")
        raise ValueError(f"features {str(path)!r} are not the Inception weights of torch-fidelity ({reason})") from None


def _metrics() -> tuple[Any, Any]:
    try:
        from torchmetrics.image.fid import FrechetInceptionDistance
        from torchmetrics.image.kid import KernelInceptionDistance
    except ImportError:
        raise ImportError("FID and KID need torchmetrics: pip install unimodal-ar[image]") from None
    return FrechetInceptionDistance, KernelInceptionDistance


class _Ready(nn.Identity):
    """Passes features on that are extracted already; torchmetrics asks for their number."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features


def check_images(name: str, images: Tensor, *shapes: str) -> Tensor:
    """Raises ValueError unless the images are a uint8 tensor of one of the `shapes`, n >= 2 of them, C 1 or 3."""
    legal = " or ".join(shapes)
    dims = [len(shape.split(",")) for shape in shapes]
    if not isinstance(images, Tensor) or images.dtype != torch.uint8 or images.dim() not in dims:
        told = f"{images.dtype} of shape {list(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"{name} is {told}; it must be a uint8 tensor {legal}")
    if len(images) < 2 or images.shape[-1] not in (1, 3):
        raise ValueError(f"{name} has shape {list(images.shape)}; it must be {legal} with n >= 2 and C 1 or 3")
    return images
