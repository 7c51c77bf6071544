"""Elements per second of block-wise decoding: with and without the KV cache, and by block size.

    python benchmarks/decode.py
    python benchmarks/decode.py --device cuda --dtype bfloat16 --width 1024 --layers 24

Without the cache, the sequence so far is run anew for every block: what one would write without it. All rows draw the
same grid of discrete elements from native models of equal size in the same run, taking turns. The row without the cache
takes most of the time: about a minute a run on a CPU core. On a machine with other work, set OMP_NUM_THREADS to the
number of idle cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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

from unimodal_ar import SampleNoise, Segment, UnimodalARConfig, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.sequence import Cursor, Part

BLOCKS = (1, 4, 16, 64)


class UncachedDecoding:
    """Stands in for the library's cached sequence: keeps the positions and runs all of them every time."""

    def __init__(self, backbone: Any) -> None:
        self.backbone = backbone
        self.parts: list[Part] = []
        self.starts = (None,)

    def append(self, *parts: list[Part]) -> tuple[Tensor, ...]:
        self.parts += parts[0]
        hidden = self.backbone(Cursor().place(self.parts))
        return (hidden[:, -sum(part.embeds.shape[1] for part in parts[0]) :],)

    def sample(self, head: Any, hidden: tuple[Tensor, ...], **sampling: Any) -> Tensor:
        return head.sample(*hidden, **sampling)


def build(args: argparse.Namespace, block: int) -> UnimodalARForGeneration:
    torch.manual_seed(0)
    decoder = UnimodalARDecoderConfig(
        hidden_size=args.width, num_hidden_layers=args.layers, num_attention_heads=args.width // 64
    )
    codes = {
        "element": {"kind": "discrete", "vocab_size": args.vocabulary},
        "grid": [args.elements, 1, 1],
        "layout": {"block": block},
        "head": {"kind": "categorical"},
    }
    model: Any = UnimodalARForGeneration(UnimodalARConfig(backbone=decoder, modalities={"codes": codes}))
    return model.to(device=args.device, dtype=args.dtype).eval()


def noise(model: UnimodalARForGeneration, batch: int) -> SampleNoise:
    return SampleNoise(0, torch.arange(batch, device=model.device))


def cached(model: UnimodalARForGeneration, batch: int) -> Tensor:
    return model.generate([], "codes", num_samples=batch, generator=noise(model, batch)).values


@torch.no_grad()
def uncached(model: UnimodalARForGeneration, batch: int) -> Tensor:
    grid = model.options["codes"].grid
    layout, decoding, generator = model.layout("codes", grid), UncachedDecoding(model.backbone), noise(model, batch)
    segment = Segment("codes", torch.zeros(batch, len(layout), dtype=torch.long, device=model.device), grid)
    parts = model.embeddings["codes"], model.heads["codes"]
    for block in range(layout.num_blocks):
        drawn = model.objectives["codes"].draw(decoding, *parts, segment, layout, block, generator=generator)  # type: ignore[arg-type]
        segment.values[:, layout.index[layout.block_range(block)]] = drawn
    return segment.values


def main() -> None:
    args = parse_args()
    models = {block: build(args, block) for block in BLOCKS}
    runs: dict[str, Callable[[], Tensor]] = {"no cache, block 1": partial(uncached, models[1], args.batch)}
    runs |= {f"cache, block {block}": partial(cached, model, args.batch) for block, model in models.items()}
    passes = {name: args.elements // block for name, block in zip(runs, (1, *BLOCKS), strict=True)}
    drawn = {name: run() for name, run in runs.items()}
    seconds = seconds_in_turns(runs, args.repeats, args.device)

    size = sum(p.numel() for p in models[1].parameters()) / 1e6
    print(f"\n{machine(args.device, args.dtype)}\n")
    print(
        f"Drawing {args.elements} elements of {args.vocabulary} codes, batch {args.batch}; native decoder of "
        f"{args.layers} layers, width {args.width}, {size:.1f}M parameters; median of {args.repeats} runs.\n"
    )
    base = seconds["cache, block 1"]
    print_table(
        ["decoding", "passes", "seconds", "elements/s", "vs cache, block 1"],
        [
            [
                name,
                str(passes[name]),
                f"{median(taken):.3f}",
                f"{args.batch * args.elements / median(taken):.0f}",
                f"{median_ratio(base, taken):.3f}x",
            ]
            for name, taken in seconds.items()
        ],
    )
    print()
    print_target("cache over no cache, block 1", median_ratio(seconds["no cache, block 1"], base), 10, at_least=True)
    print_target(
        "block 16 over block 1, both with cache", median_ratio(base, seconds["cache, block 16"]), 8, at_least=True
    )
    # Rounding differs between the two, so that on some machine a draw on an edge may fall the other way.
    equal = drawn["cache, block 1"] == drawn["no cache, block 1"]
    print(f"- elements that both ways draw alike from the same random numbers: {equal.float().mean():.1%}")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--elements", type=int, default=1024, help="per sample, a multiple of 64 (default: 1024)")
    parser.add_argument("--width", type=int, default=256, help="a multiple of 64 (default: 256)")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--batch", type=int, default=1, help="samples drawn at once (default: 1)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each row (default: 3)")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    args = parser.parse_args()
    for name, unit in (("elements", max(BLOCKS)), ("width", 64)):
        if getattr(args, name) < unit or getattr(args, name) % unit:
            parser.error(f"--{name} is {getattr(args, name)}; it must be a positive multiple of {unit}")
    return args


if __name__ == "__main__":
    main()
