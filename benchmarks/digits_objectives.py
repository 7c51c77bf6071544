"""Ways to draw 8x8 digits, side by side: equal backbone, data and number of training steps, one table.

    python benchmarks/digits_objectives.py

Each row is the recipe next_token/digits with a few keys changed. A small classifier, trained here on the real training
images, tells how often a sample is of the class that was asked for; the Frechet distance compares the samples with the
real test and validation images in the classifier's features, by class-conditional sampling without guidance.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from common import machine, print_table, print_target, seconds_in_turns  # type: ignore[import-not-found]
from torch import Tensor, nn

from unimodal_ar.evaluation.frechet import frechet_distance
from unimodal_ar.pipelines import Generator
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.recipe import Resolved

BODY = "model.backbone"
IMAGE = "model.modalities.image"
LAYOUT = f"{IMAGE}.layout"
PATCHES = "{kind: patches, patch: 2}"

# Row of the table -> what it changes in the recipe.
METHODS: dict[str, list[str]] = {
    "next-token": [],
    "next-token, random to raster (RAR)": [
        f"{IMAGE}.target_positions=fourier",
        "schedule={image.random_order: [[0, 1], [0.5, 1], [0.75, 0]]}",
    ],
    "next-token, random order": [f"{LAYOUT}={{order: random}}"],
    "next-patch 2x2 to 1x1 (NPP)": ["schedule={image.group: [[0, 2], [0.5, 1]]}"],
    "next-patch, 2x2 pixels, mixture": [f"adapters.image.elements={PATCHES}", f"{IMAGE}.head={{kind: mixture}}"],
    "merged 2x2 codes, depth AR": ["adapters.image.group=2", f"{IMAGE}.head={{kind: depth_ar}}"],
    "next-block, rows": [f"{LAYOUT}={{block: row}}"],
    "next-block, 2x2 cells": [f"{LAYOUT}={{block: {{cell: [1, 2, 2]}}}}"],
    "neighbor (diagonals)": [f"{LAYOUT}={{order: neighbor}}"],
    "strided (2x2 regions)": [f"{LAYOUT}={{order: strided}}"],
}


class Classifier(nn.Module):
    """A small convolutional network of 8x8 grey images; `features` is its last hidden layer."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, stride=2),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(16 * width, width),
            nn.ReLU(),
        )
        self.out = nn.Linear(width, 10)

    def features(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 8, 8, 1] -> [n, width]."""
        return self.body(pixels.permute(0, 3, 1, 2).float() / 255)

    def accuracy(self, pixels: Tensor, labels: Tensor) -> float:
        with torch.no_grad():
            return float((self.out(self.features(pixels)).argmax(-1) == labels).float().mean())


def fit_classifier(pixels: Tensor, labels: Tensor, epochs: int = 30) -> Classifier:
    torch.manual_seed(0)
    model = Classifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01)
    for _ in range(epochs):
        for rows in torch.randperm(len(pixels)).split(64):
            loss = nn.functional.cross_entropy(model.out(model.features(pixels[rows])), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model.eval()


def real_images(overrides: list[str]) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """(pixels, labels) of the training part, and of validation and test part together."""
    data = Resolved(load_recipe("next_token/digits", overrides)).data
    parts = [data.train(), data.validation(), data.test()]
    pairs = [(part.pixels, part.labels) for part in parts]
    held_out = torch.cat([pairs[1][0], pairs[2][0]]), torch.cat([pairs[1][1], pairs[2][1]])
    return pairs[0], held_out


def fit(name: str, args: argparse.Namespace, folder: Path) -> tuple[Generator, str]:
    """A trained model of one row, and the seconds that its training took."""
    if not (folder / "config.json").exists():
        size = [f"{BODY}.hidden_size={args.width}", f"{BODY}.num_hidden_layers={args.layers}"]
        common = [*size, f"training.num_train_epochs={args.epochs}", "early_stopping=0", "evaluation.samples=0"]
        common.append("evaluation.guidance_scale=1")
        document = load_recipe("next_token/digits", [*common, *METHODS[name], f"output_dir={json.dumps(str(folder))}"])
        start = time.perf_counter()
        train(document)
        (folder / "seconds").write_text(f"{time.perf_counter() - start:.0f}")
    return Generator.from_pretrained(folder, device="cpu"), (folder / "seconds").read_text()


def measure(generator: Generator, args: argparse.Namespace, classifier: Classifier, real: Tensor) -> dict[str, Any]:
    """How good the samples are: n images, the classes in equal shares."""
    labels = torch.arange(args.samples) % 10
    samples = generator.generate(n=args.samples, label=labels.tolist(), seed=args.seed)
    pixels = samples.adapter.decode_pixels(samples.segment)  # type: ignore[attr-defined]
    with torch.no_grad():
        features = [classifier.features(images).numpy() for images in (real, pixels)]
    return {"accuracy": classifier.accuracy(pixels, labels), "frechet": frechet_distance(*features)}


def likelihood(folder: Path) -> str:
    found = json.loads((folder / "evaluation.json").read_text())
    if "bits_per_dimension" in found:
        return f"{found['bits_per_dimension']:.3f}"
    return f"({found['nats_per_dimension']:.2f} nats)"


def steps(generator: Generator) -> int:
    """Passes through the backbone per image."""
    model = generator.model
    return model.layout("image", model.options["image"].grid).num_blocks


def images_per_second(generators: dict[str, Generator], batch: int, repeats: int) -> dict[str, float]:
    runs = {
        name: partial(generator.generate, n=batch, label=3, batch_size=batch) for name, generator in generators.items()
    }
    for run in runs.values():
        run()
    taken = seconds_in_turns(runs, repeats, torch.device("cpu"))
    return {name: batch / median(seconds) for name, seconds in taken.items()}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    (train_pixels, train_labels), (real, real_labels) = real_images([])
    classifier = fit_classifier(train_pixels, train_labels)
    generators, rows, cells = {}, [], {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in args.methods:
            folder = Path(args.keep or scratch) / name.replace(" ", "_").replace(",", "")
            generators[name], seconds = fit(name, args, folder)
            found = measure(generators[name], args, classifier, real)
            quality = [likelihood(folder), f"{found['accuracy']:.3f}", f"{found['frechet']:.2f}"]
            cells[name] = [*quality, f"{steps(generators[name])}", seconds]
    single, many = (images_per_second(generators, batch, args.repeats) for batch in (1, args.batch))
    for name, (*quality, seconds) in cells.items():
        ratio = f"{single[name] / single[args.methods[0]]:.2f}x"
        rows.append([name, *quality, f"{single[name]:.1f}", ratio, f"{many[name]:.0f}", seconds])
    features = [classifier.features(part).detach().numpy() for part in (real, train_pixels)]
    reference = [f"{classifier.accuracy(real, real_labels):.3f}", f"{frechet_distance(*features):.2f}"]
    rows.append(["(real images, of training)", "-", *reference, *["-"] * 5])
    print(f"\n{machine(torch.device('cpu'), torch.float32)}\n")
    print(
        f"{args.samples} samples per row, classes in equal shares, no guidance, temperature 1, seed {args.seed}; "
        f"features: {features[0].shape[1]} of a classifier trained here; real: {len(real)} held-out images; "
        f"{args.layers} layers of width {args.width}, {args.epochs} epochs; speed: one image at a time, "
        f"and batches of {args.batch}; median of {args.repeats}.\n"
    )
    batches = f"/s in {args.batch}s"
    print_table(
        ["method", "bits/dim", "accuracy", "Frechet", "steps", "images/s", "vs first", batches, "training s"], rows
    )
    if {"next-token", "next-block, rows"} <= set(single):
        gain = single["next-block, rows"] / single["next-token"]
        print_target("rows as blocks against next-token, images/s one at a time", gain, 5, at_least=True)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="ROW")
    parser.add_argument("--epochs", type=int, default=30, help="of training, for all rows")
    parser.add_argument("--width", type=int, default=96, help="of the backbone")
    parser.add_argument("--layers", type=int, default=3, help="of the backbone")
    parser.add_argument("--samples", type=int, default=1000, help="images per row for accuracy and Frechet distance")
    parser.add_argument("--batch", type=int, default=100, help="images per batch when speed is measured")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="DIR", help="keep the trained models there; those that are there are used")
    return parser.parse_args()


if __name__ == "__main__":
    main()
