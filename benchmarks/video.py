"""Video side by side: next-token against next-block, by rows and by frames, and how fast clips are read.

    python benchmarks/video.py speed
    python benchmarks/video.py quality --keep runs
    python benchmarks/video.py loader --data clips

speed: one model with random weights, which takes as long as a trained one, and one clip of codes; only the layout
differs. Passes of the backbone, and frames drawn in a second. quality: the recipes trained at an equal number of steps;
how close clips of unseen moving digits are continued, and the likelihood of what was seen. loader: a folder of video
files read as in training, without keeping them, against decord and PyAV alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from common import (  # type: ignore[import-not-found]  # the scripts' own folder
    machine,
    median_ratio,
    print_table,
    print_target,
    seconds_in_turns,
)

from unimodal_ar import UnimodalARConfig, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.noise import SampleNoise
from unimodal_ar.recipes.train import train
from unimodal_ar.training.recipe import load_recipe

CPU = torch.device("cpu")
LAYOUTS: dict[str, dict[str, Any]] = {
    "next-token": {"block": 1},
    "next-block: rows": {"block": "row"},
    "next-block: first frame by rows, then frames": {"order": "first_frame", "block": "row"},
    "next-block: frames": {"block": "frame"},
}
RECIPES = ("next_token/video_codes", "next_block/video_rows", "next_block/video_frames")
TARGET = 8.0  # times as fast as next-token, by rows of 16; NBP's paper says 11


# ---- speed


def build(args: argparse.Namespace, layout: dict[str, Any]) -> UnimodalARForGeneration:
    torch.manual_seed(0)
    config = UnimodalARConfig(
        backbone=UnimodalARDecoderConfig(
            hidden_size=args.hidden_size, num_hidden_layers=args.layers, num_attention_heads=args.hidden_size // 64
        ),
        modalities={
            "video": {
                "element": {"kind": "discrete", "vocab_size": args.vocab_size},
                "grid": args.grid,
                "layout": layout,
                "head": {"kind": "categorical"},
            }
        },
    )
    return UnimodalARForGeneration(config).eval()


@contextmanager
def clocked(model: UnimodalARForGeneration) -> Iterator[dict[str, float]]:
    """Counts passes of the backbone and the seconds they take, as long as it lasts."""
    found = {"passes": 0, "seconds": 0.0}
    forward = model.backbone.forward

    def timed(*given: Any, **named: Any) -> Any:
        start = time.perf_counter()
        try:
            return forward(*given, **named)
        finally:
            found["passes"] += 1
            found["seconds"] += time.perf_counter() - start

    with patch.object(model.backbone, "forward", timed):
        yield found


def measure_speed(args: argparse.Namespace) -> None:
    models = {name: build(args, layout) for name, layout in LAYOUTS.items()}
    for batch in args.batch:

        def draw(model: UnimodalARForGeneration, batch: int = batch) -> None:
            model.generate([], "video", num_samples=batch, generator=SampleNoise(0, torch.arange(batch)))

        runs: dict[str, Callable[[], object]] = {
            name: lambda model=model: draw(model)  # type: ignore[misc]
            for name, model in models.items()
        }
        table, shares = [], {}
        for name, model in models.items():
            with clocked(model) as found:
                start = time.perf_counter()
                draw(model)
                shares[name] = (found["passes"], found["seconds"] / (time.perf_counter() - start))
        seconds = seconds_in_turns(runs, args.repeats, CPU)
        for name, taken in seconds.items():
            passes, share = shares[name]
            table.append(
                [
                    name,
                    f"{passes:.0f}",
                    f"{median_ratio(taken, [1.0] * len(taken)) / passes * 1000:.1f}",
                    f"{100 * share:.0f} %",
                    f"{batch * args.grid[0] * median_ratio([1.0] * len(taken), taken):.2f}",
                    f"{median_ratio(seconds['next-token'], taken):.1f}x",
                ]
            )
        parameters = sum(parameter.numel() for parameter in models["next-token"].parameters()) / 1e6
        print(f"\n{batch} clips of {args.grid} codes of {args.vocab_size}, {parameters:.1f} M parameters.\n")
        print_table(["layout", "passes", "ms a pass", "of it backbone", "frames/s", "against next-token"], table)
        ratio = median_ratio(seconds["next-token"], seconds["next-block: rows"])
        print()
        print_target(f"rows of {args.grid[2]}, {batch} clips, times next-token", ratio, TARGET, at_least=True)


# ---- quality


def measure_quality(args: argparse.Namespace, scratch: Path) -> None:
    table = []
    for recipe in RECIPES:
        folder = Path(args.keep or scratch) / recipe.replace("/", "_")
        if not (folder / "metrics.json").exists():
            start = time.perf_counter()
            train(load_recipe(recipe, [f"output_dir={json.dumps(str(folder))}", *args.overrides]))
            print(f"{recipe}: {time.perf_counter() - start:.0f} s")
        found = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        table.append([recipe, json.dumps(found)])
    print_table(["recipe", "found"], table)
