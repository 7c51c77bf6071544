"""How good block diffusion's samples are, by passes and seconds, beside next-token and next-patch of equal training.

    python benchmarks/block_diffusion_quality.py digits
    python benchmarks/block_diffusion_quality.py forecast --csv ETTh1.csv

digits: scikit-learn's digits, 8 x 8 pixels of 17 levels, one backbone and one number of training steps (recipe
`next_token/digits`, see `digits_objectives.py`, which also has the judge, a small classifier). Block diffusion is drawn
with several samplers; passes per block are the mean over images drawn one by one. Gaussian noise over rows of 2 x 2
patches is drawn with constant steps, and with steps that fall from the first block to the last (DiSA, arXiv
2505.20297).

forecast: ETTh1 in patches of 24 hours, heads under next-patch prediction and Gaussian noise over blocks of four
patches; CRPS over the test part, in units of the standardised series.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import digits_objectives as digits  # type: ignore[import-not-found]  # the scripts' own folder
import numpy as np
import torch
from common import machine, print_table, print_target  # type: ignore[import-not-found]
from etth1 import LOOKBACK, TEST  # type: ignore[import-not-found]

from unimodal_ar.evaluation import crps, mae, rolling_windows
from unimodal_ar.evaluation.frechet import frechet_distance
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.pipelines import Generator
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.recipe import Resolved

MASK = f"{digits.IMAGE}.objective={{kind: block_diffusion}}"
GAUSSIAN = [
    f"adapters.image.elements={digits.PATCHES}",
    f"{digits.IMAGE}.objective={{kind: block_diffusion, noise: gaussian}}",
    f"{digits.IMAGE}.head={{kind: regression}}",
    f"{digits.LAYOUT}={{block: row}}",
]
THRESHOLDS = {f"threshold {p}": {"sampler": {"kind": "threshold", "probability": p}} for p in (0.9, 0.7, 0.5)}
THRESHOLDS |= {
    f"threshold {p}, random order": {"sampler": {"kind": "threshold", "probability": p, "order": "random"}}
    for p in (0.5, 0.3, 0.2)
}
BOUNDS = {f"entropy bound {b}": {"sampler": {"kind": "entropy_bound", "bound": b}} for b in (0.1, 0.5, 1.0)}

# Model -> (what it changes in the recipe, name of a way to draw -> arguments).
DIGITS: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {
    "next-token": ([], {"": {}}),
    "next-block, rows": ([f"{digits.LAYOUT}={{block: row}}"], {"": {}}),
    "mask noise, rows": (
        [MASK, f"{digits.LAYOUT}={{block: row}}"],
        {"one per pass": {}, "4 passes": {"steps": 4}, "2 passes": {"steps": 2}, "1 pass": {"steps": 1}}
        | {"confidence, 4 passes": {"steps": 4, "sampler": {"kind": "confidence", "randomness": 1.0}}}
        | THRESHOLDS
        | BOUNDS,
    ),
    "mask noise, whole": (
        [MASK, f"{digits.LAYOUT}={{block: whole}}"],
        {"one per pass": {}, "16 passes": {"steps": 16}, "8 passes": {"steps": 8}} | THRESHOLDS | BOUNDS,
    ),
    "Gaussian noise, rows of patches": (
        GAUSSIAN,
        {str(steps): {"steps": steps} for steps in (50, 20, 10, 5)}
        | {f"{a} to {b}": {"steps": [a, b]} for a, b in ((50, 5), (20, 2), (10, 1))}
        | {"Heun, 20": {"steps": 20, "sampler": {"kind": "heun"}}}
        | {f"Heun, {a} to {b}": {"steps": [a, b], "sampler": {"kind": "heun"}} for a, b in ((20, 6), (16, 4), (12, 2))}
        | {"Heun, shift 0.5, 24 to 8": {"steps": [24, 8], "sampler": {"kind": "heun", "shift": 0.5}}},
    ),
}

# Row -> what it changes in the recipe next_patch/etth1.
PATCH = 24
LEVELS = [level / 20 for level in range(1, 20)]  # evenly spaced, as the CRPS needs them
FORECAST: dict[str, tuple[list[str], dict[str, dict[str, Any]]]] = {
    "quantile": (["model.modalities.series.head={kind: quantile}"], {"": {}}),
    "mixture": (["model.modalities.series.head={kind: mixture}"], {"": {}}),
    "flow": (
        ["model.modalities.series.head={kind: flow}"],
        {f"{s} head steps": {"head_steps": s} for s in (16, 8)} | {"16 to 4 head steps": {"head_steps": [16, 4]}},
    ),
    "energy": (["model.modalities.series.head={kind: energy}"], {"": {}}),
    "Gaussian noise, 4 patches": (
        [
            "model.modalities.series.head={kind: regression}",
            "model.modalities.series.objective={kind: block_diffusion, noise: gaussian}",
            "model.modalities.series.layout={block: 4}",
        ],
        {f"{s} passes": {"steps": s} for s in (20, 10, 5)},
    ),
}


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """Passes through the backbone, as a list of ones."""
    passes: list[int] = []
    hook = model.backbone.register_forward_hook(lambda *_: passes.append(1))
    try:
        yield passes
    finally:
        hook.remove()


def one_by_one(generator: Generator, arguments: dict[str, Any], images: int) -> tuple[float, float]:
    """(passes per block, images per second), of images drawn one at a time."""
    generator.generate(n=1, label=0, **arguments)
    layout = generator.model.layout("image", generator.model.options["image"].grid)
    with counted(generator.model) as passes:
        start = time.perf_counter()
        generator.generate(n=images, label=[i % 10 for i in range(images)], batch_size=1, **arguments)
        seconds = time.perf_counter() - start
    return len(passes) / (images * layout.num_blocks), images / seconds


def measure_digits(args: argparse.Namespace, scratch: Path) -> None:
    (pixels, labels), (real, _) = digits.real_images([])
    classifier, rows = digits.fit_classifier(pixels, labels), []
    found: dict[str, dict[str, dict[str, float]]] = {}
    for model, (changes, ways) in DIGITS.items():
        digits.METHODS[model] = changes
        folder = Path(args.keep or scratch) / model.replace(" ", "_").replace(",", "")
        generator, seconds = digits.fit(model, args, folder)
        evaluation = json.loads((folder / "evaluation.json").read_text())
        bits = [value for name, value in evaluation.items() if name.startswith("bits_per_dimension")][:1]
        for way, arguments in ways.items():
            measured = quality(generator, args, classifier, real, arguments)
            measured["passes"], measured["speed"] = one_by_one(generator, arguments, args.timed)
            found.setdefault(model, {})[way] = measured
            cells = [f"{measured['accuracy']:.3f}", f"{measured['frechet']:.1f}", f"{measured['passes']:.2f}"]
            told = f"{bits[0]:.3f}" if bits else "-"
            rows.append([f"{model}{': ' if way else ''}{way}", told, *cells, f"{measured['speed']:.1f}", seconds])
    print(
        f"\n{args.samples} samples per row, classes in equal shares, temperature 1, no guidance; {args.layers} layers "
        f"of width {args.width}, {args.epochs} epochs; speed: {args.timed} images, one at a time.\n"
    )
    print_table(["model: sampler", "bits/dim", "accuracy", "Frechet", "passes/block", "images/s", "training s"], rows)
    print()
    digits_targets(found)


def quality(
    generator: Generator, args: argparse.Namespace, classifier: Any, real: torch.Tensor, arguments: dict[str, Any]
) -> dict[str, float]:
    labels = torch.arange(args.samples) % 10
    samples = generator.generate(n=args.samples, label=labels.tolist(), seed=args.seed, batch_size=100, **arguments)
    drawn = samples.adapter.decode_pixels(samples.segment)  # type: ignore[attr-defined]
    with torch.no_grad():
        features = [classifier.features(images).numpy() for images in (real, drawn)]
    return {"accuracy": classifier.accuracy(drawn, labels), "frechet": frechet_distance(*features)}


def digits_targets(found: dict[str, dict[str, dict[str, float]]]) -> None:
    """The cheapest way that is as good as the reference (Frechet distance at most 5 % above it)."""
    for model, reference, target in (
        ("mask noise, rows", "one per pass", 2),
        ("mask noise, whole", "one per pass", 2),
        ("Gaussian noise, rows of patches", "50", 3),
    ):
        ways = found[model]
        annealed = "to" if reference == "50" else "threshold"
        able = [
            way
            for way, measured in ways.items()
            if annealed in way and measured["frechet"] <= 1.05 * ways[reference]["frechet"]
        ]
        if not able:
            print(f"- {model}: no {annealed!r} row is within 5 % of {reference!r}")
            continue
        best = min(able, key=lambda way: ways[way]["passes"])
        gain = ways[reference]["passes"] / ways[best]["passes"]
        print_target(f"{model}, passes of {reference!r} over {best!r}", gain, target, at_least=True)


def measure_forecasts(args: argparse.Namespace, scratch: Path) -> None:
    common = [f"data.path={args.csv}", f"adapters.series.patch={PATCH}", "evaluation=null", "early_stopping=0"]
    rows, count = [], 0
    for name, (changes, ways) in FORECAST.items():
        folder = Path(args.keep or scratch) / name.replace(" ", "_").replace(",", "")
        overrides = [
            *common,
            *changes,
            f"training.num_train_epochs={args.epochs}",
            f"output_dir={json.dumps(str(folder))}",
        ]
        document = load_recipe("next_patch/etth1", overrides)
        if not (folder / "config.json").exists():
            start = time.perf_counter()
            train(document)
            (folder / "seconds").write_text(f"{time.perf_counter() - start:.0f}")
        forecaster, series = Forecaster.from_pretrained(folder, device="cpu"), Resolved(document).data.series
        windows = [rolling_windows(s.values, LOOKBACK, args.horizon, start=TEST, stride=args.stride) for s in series]
        past, target = (np.concatenate(part) for part in zip(*windows, strict=True))
        for way, arguments in ways.items():
            start = time.perf_counter()
            forecast = forecaster.predict(list(past), args.horizon, LEVELS, args.samples, **arguments)
            seconds = time.perf_counter() - start
            assert forecast.quantiles is not None and forecast.levels is not None
            errors = [crps(target, forecast.quantiles, forecast.levels), mae(target, forecast.mean)]
            cells = [f"{error:.4f}" for error in errors] + [f"{len(past) / seconds:.0f}"]
            rows.append([f"{name}{': ' if way else ''}{way}", *cells, (folder / "seconds").read_text()])
            count = len(past)
    print(f"\n{count} windows of {args.horizon} hours, {args.samples} paths each; {args.epochs} epochs.\n")
    print_table(["head: sampler", "CRPS", "MAE of the mean", "forecasts/s", "training s"], rows)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(f"\n{machine(torch.device('cpu'), torch.float32)}")
    with tempfile.TemporaryDirectory() as scratch:
        (measure_digits if args.what == "digits" else measure_forecasts)(args, Path(scratch))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["digits", "forecast"])
    parser.add_argument("--csv", help="ETTh1.csv, for forecast")
    parser.add_argument("--epochs", type=int, help="of training (default: 30 for digits, 2 for forecast)")
    parser.add_argument("--width", type=int, default=96, help="of the digits' backbone")
    parser.add_argument("--layers", type=int, default=3, help="of the digits' backbone")
    parser.add_argument("--samples", type=int, help="images per row (default: 1,000), paths per forecast (100)")
    parser.add_argument("--timed", type=int, default=30, help="images drawn one at a time")
    parser.add_argument("--horizon", type=int, default=96, help="hours")
    parser.add_argument("--stride", type=int, default=24, help="between forecast origins")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="DIR", help="keep the trained models there; those that are there are used")
    args = parser.parse_args()
    if args.what == "forecast" and not args.csv:
        parser.error("forecast needs --csv ETTh1.csv")
    args.epochs = args.epochs or (30 if args.what == "digits" else 2)
    args.samples = args.samples or (1000 if args.what == "digits" else 100)
    return args


if __name__ == "__main__":
    main()
