"""What block diffusion costs: training with two streams, and drawing with and without the KV cache.

    python benchmarks/block_diffusion.py
    python benchmarks/block_diffusion.py --device cuda --dtype bfloat16 --attention flex_attention --width 1024

Training: a step of next-token prediction, and one of block diffusion of equal length, by the same native decoder; peak
memory of each in a process of its own. Drawing: the same elements in the same number of denoising passes, over the
cached blocks before, and over all of them anew in every pass, which is what one would write without a cache. How good
the samples are is measured by `block_diffusion_quality.py`.
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from statistics import median
from typing import Any

import torch
from common import (  # type: ignore[import-not-found]  # the scripts' own folder
    machine,
    median_ratio,
    print_table,
    print_target,
    seconds_in_turns,
)
from torch import Tensor
from train_step import _peak  # type: ignore[import-not-found]

from unimodal_ar import SampleNoise, Segment, UnimodalARConfig, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.generation import mixin
from unimodal_ar.generation.decoding import CachedDecoding
from unimodal_ar.sequence import Cursor, Part

TOKEN: dict[str, Any] = {"objective": {"kind": "next_block"}, "layout": {"block": 1}}


def diffusion(block: int | str) -> dict[str, Any]:
    return {"objective": {"kind": "block_diffusion"}, "layout": {"block": block}}


OBJECTIVES: dict[str, dict[str, Any]] = {
    "next-token": TOKEN,
    "block diffusion, 16": diffusion(16),
    "block diffusion, 64": diffusion(64),
    "one block (one stream)": diffusion("whole"),
}


class Uncached(CachedDecoding):
    """Keeps the positions and runs all of them in every pass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.committed: list[Part] = []

    def hold(self, *parts: list[Part]) -> None:
        self.committed += parts[0]

    def peek(self, *parts: list[Part]) -> tuple[Tensor, ...]:
        asked = sum(part.embeds.shape[1] for part in parts[0])
        return (self.backbone(Cursor().place(self.committed + parts[0]))[:, -asked:],)


def build(name: str, args: argparse.Namespace) -> UnimodalARForGeneration:
    torch.manual_seed(0)
    decoder = UnimodalARDecoderConfig(
        hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=args.width // 64
    )
    codes = {
        "element": {"kind": "discrete", "vocab_size": args.vocabulary},
        "grid": [args.elements, 1, 1],
        "head": {"kind": "categorical"},
        **OBJECTIVES[name],
    }
    model: Any = UnimodalARForGeneration(UnimodalARConfig(backbone=decoder, modalities={"codes": codes}))
    model.set_attn_implementation(args.attention)
    return model.to(device=args.device, dtype=args.dtype)


def batch(args: argparse.Namespace) -> list[Segment]:
    values = torch.randint(0, args.vocabulary, (args.batch, args.elements), device=args.device)
    return [Segment("codes", values, (args.elements, 1, 1))]


def step(model: UnimodalARForGeneration, segments: list[Segment]) -> None:
    model.zero_grad(set_to_none=True)
    loss = model.train()(segments).loss
    assert loss is not None
    loss.backward()


def peak_memory(name: str, args: argparse.Namespace) -> int:
    """Bytes that weights, gradients and activations take at their highest."""
    torch.set_num_threads(args.threads)
    segments = batch(args)
    before = _peak(args.device)
    model = build(name, args)
    for _ in range(2):
        step(model, segments)
    return _peak(args.device) - before


def measure_training(args: argparse.Namespace) -> None:
    memory = {}
    for name in OBJECTIVES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            memory[name] = process.submit(peak_memory, name, args).result()
    segments, models = batch(args), {name: build(name, args) for name in OBJECTIVES}
    runs = {name: partial(step, model, segments) for name, model in models.items()}
    for run in runs.values():
        run()
    seconds = seconds_in_turns(runs, args.repeats, args.device)
    base, least = seconds["next-token"], memory["next-token"]
    print(f"\nA training step, batch {args.batch} x {args.elements} elements:\n")
    rows = []
    for name, taken in seconds.items():
        ratio, share = median_ratio(taken, base), memory[name] / least
        cells = [f"{1e3 * median(taken):.0f}", f"{ratio:.2f}x", f"{memory[name] / 2**20:.0f}", f"{share:.2f}x"]
        rows.append([name, *cells])
    print_table(["objective", "ms/step", "time", "peak MiB", "memory"], rows)
    print()
    two = "block diffusion, 16"
    print_target("two streams over next-token, time", median_ratio(seconds[two], base), 2.2, at_least=False)
    print_target("two streams over next-token, memory", memory[two] / least, 2.2, at_least=False)


def draw(model: UnimodalARForGeneration, decoding: type[CachedDecoding], steps: int | None) -> Tensor:
    mixin.CachedDecoding = decoding  # type: ignore[misc, attr-defined]
    noise = SampleNoise(0, torch.arange(1, device=model.device))
    return model.eval().generate([], "codes", generator=noise, steps=steps).values


def measure_drawing(args: argparse.Namespace) -> None:
    models = {name: build(name, args) for name in ("next-token", "block diffusion, 16")}
    token, blocks = models.values()
    runs = {
        "next-token, cache": partial(draw, token, CachedDecoding, None),
        "16 passes per block of 16, cache": partial(draw, blocks, CachedDecoding, None),
        "4 passes per block of 16, cache": partial(draw, blocks, CachedDecoding, 4),
        "4 passes per block of 16, no cache": partial(draw, blocks, Uncached, 4),
    }
    drawn = {name: run() for name, run in runs.items()}
    seconds = seconds_in_turns(runs, args.draws, args.device)
    base = seconds["next-token, cache"]
    passes = [args.elements, args.elements, args.elements // 4, args.elements // 4]
    print(f"\nDrawing {args.elements} elements, one sample:\n")
    print_table(
        ["decoding", "passes", "seconds", "elements/s", "vs next-token"],
        [
            [name, str(n), f"{median(t):.2f}", f"{args.elements / median(t):.0f}", f"{median_ratio(base, t):.2f}x"]
            for (name, t), n in zip(seconds.items(), passes, strict=True)
        ],
    )
    print()
    with_cache, without = (f"4 passes per block of 16, {kind}" for kind in ("cache", "no cache"))
    print_target("cache over no cache", median_ratio(seconds[without], seconds[with_cache]), 5, at_least=True)
    equal = drawn[with_cache] == drawn[without]
    print(f"- elements that both ways draw alike from the same random numbers: {equal.float().mean():.1%}")


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(f"\n{machine(args.device, args.dtype)}; {args.attention}")
    print(f"Native decoder of {args.layers} layers, width {args.width}; {args.vocabulary} codes.")
    measure_training(args)
    measure_drawing(args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, default=1024, help="a multiple of 64 (default: 1024)")
    parser.add_argument("--width", type=int, default=256, help="a multiple of 64 (default: 256)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=4, help="of a training step (default: 4)")
    parser.add_argument("--repeats", type=int, default=9, help="timed training steps (default: 9)")
    parser.add_argument("--draws", type=int, default=3, help="timed samples (default: 3)")
    parser.add_argument("--attention", default="sdpa", choices=["sdpa", "flex_attention", "eager"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    args = parser.parse_args()
    for name in ("elements", "width"):
        if getattr(args, name) < 64 or getattr(args, name) % 64:
            parser.error(f"--{name} is {getattr(args, name)}; it must be a positive multiple of 64")
    return args


if __name__ == "__main__":
    main()
