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
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import av
import decord  # type: ignore[import-untyped]
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
from unimodal_ar.pipelines import Generator
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.recipe import Resolved

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
    for recipe in args.recipes:
        folder = Path(args.keep or scratch) / recipe.replace("/", "_")
        if not (folder / "config.json").exists():
            start = time.perf_counter()
            train(load_recipe(recipe, [f"output_dir={json.dumps(str(folder))}", *args.overrides]))
            print(f"{recipe}: {time.perf_counter() - start:.0f} s of training and judging")
        found = json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))
        generator = Generator.from_pretrained(folder, CPU)
        adapter: Any = generator.adapters["video"]
        with clocked(generator.model) as clock:
            generator.generate(1)
        taken = seconds_in_turns({"": lambda drawn=generator: drawn.generate(1)}, args.repeats, CPU)[""]  # type: ignore[misc]
        predictions = found["predictions"]
        table.append(
            [
                recipe,
                f"{clock['passes']:.0f}",
                f"{adapter.frames / median(taken):.1f}",
                f"{found['bits_per_dimension']:.3f}" if "bits_per_dimension" in found else "-",
                f"{predictions['psnr']:.2f}",
                f"{predictions['psnr_by_frame'][0]:.2f}",
                f"{predictions['ssim']:.3f}",
                f"{predictions['last_frame_psnr']:.2f}",
            ]
        )
    print("\nOne clip at a time; PSNR in dB of what follows the given frames of unseen moving digits.\n")
    header = ["recipe", "passes", "frames/s", "bits/dim", "PSNR", "first frame", "SSIM", "repeating the last"]
    print_table(header, table)


# ---- loader


def measure_loader(args: argparse.Namespace) -> None:
    """Each run reads as many windows from the same files; the packages alone read the file's own frames from its
    beginning, neither resized nor at another rate."""
    adapter = {"kind": "video", "size": args.size, "frames": args.frames, "fps": None, "channels": 3}
    document = load_recipe(
        "block_diffusion/video_frames",
        [
            "data.dataset=null",
            "data.split=null",
            "data.anchor=0",
            "data.in_memory=false",
            "data.validation=1",
            "data.test=1",
            f"data.path={json.dumps(args.data)}",
            f"adapters.video={json.dumps(adapter | {'elements': {'kind': 'patches', 'patch': [1, 8, 8]}})}",
        ],
    )
    dataset = Resolved(document).data.train()
    clips = dataset.clip_set
    files = [str(clips.source.items[place]) for place in clips.places]
    windows = [dataset[i] for i in range(len(dataset))]

    places = [(files[int(clips.clips[window.row])], window.start) for window in windows]
    per_file = Counter(file for file, _ in places)

    def beginnings(read: Callable[[str, int], None]) -> None:
        for file, n in per_file.items():
            read(file, n * args.frames)

    def middles(read: Callable[[str, int, int], None]) -> None:
        for file, start in places:
            read(file, start, args.frames)

    runs: dict[str, Callable[[], object]] = {
        "decord alone, from the beginning": lambda: beginnings(bare_decord),
        "PyAV alone, from the beginning": lambda: beginnings(bare_pyav),
        "decord alone, random windows": lambda: middles(decord_window),
        "PyAV alone, random windows": lambda: middles(pyav_window),
        "training, random windows": lambda: [clips.frames(window) for window in windows],
    }
    for run in runs.values():
        run()
    seconds = seconds_in_turns(runs, args.repeats, CPU)
    frames = len(windows) * args.frames
    reference = seconds["PyAV alone, random windows"]
    table = [
        [name, f"{frames / median(taken):.0f}", f"{median_ratio(taken, reference):.2f}x"]
        for name, taken in seconds.items()
    ]
    print(f"\n{len(windows)} windows of {args.frames} frames out of {len(per_file)} files, resized in training only.\n")
    print_table(["what", "frames/s", "time, against PyAV's random windows"], table)


def bare_decord(file: str, count: int) -> None:
    reader = decord.VideoReader(file, num_threads=1)
    for _ in range(count):
        reader.next().asnumpy()


def bare_pyav(file: str, count: int) -> None:
    with av.open(file) as container:
        for _, frame in zip(range(count), container.decode(video=0), strict=False):
            frame.to_ndarray(format="rgb24")


def decord_window(file: str, start: int, count: int) -> None:
    """By decord's own random access, whose frames are not always the right ones."""
    decord.VideoReader(file, num_threads=1).get_batch(list(range(start, start + count))).asnumpy()


def pyav_window(file: str, start: int, count: int) -> None:
    """From the key frame before on."""
    with av.open(file) as container:
        stream: Any = container.streams.video[0]
        zero, first = stream.start_time or 0, start / float(stream.average_rate)
        container.seek(zero + int(first / stream.time_base), stream=stream)
        found = 0
        for frame in container.decode(stream):
            if frame.pts is not None and float((frame.pts - zero) * stream.time_base) >= first - 0.001:
                frame.to_ndarray(format="rgb24")
                found += 1
            if found == count:
                return


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(f"\n{machine(CPU, torch.float32)}")
    with tempfile.TemporaryDirectory() as scratch:
        {
            "speed": measure_speed,
            "quality": lambda args: measure_quality(args, Path(scratch)),
            "loader": measure_loader,
        }[args.what](args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("what", choices=["speed", "quality", "loader"])
    option("--threads", type=int, default=2)
    option("--repeats", type=int, default=3)
    option("--grid", type=int, nargs=3, default=[5, 16, 16], metavar=("T", "H", "W"), help="codes of a clip, for speed")
    option("--vocab-size", type=int, default=1024, help="for speed")
    option("--hidden-size", type=int, default=512, help="a multiple of 64, for speed")
    option("--layers", type=int, default=8, help="for speed")
    option("--batch", type=int, nargs="+", default=[1, 8], help="clips at once, for speed")
    option("--recipes", nargs="+", default=list(RECIPES), help="for quality")
    option("--set", action="append", default=[], dest="overrides", metavar="A.B=VALUE", help="for quality; repeatable")
    option("--keep", metavar="DIR", help="keep the trained models there; those that are there are used")
    option("--data", metavar="DIR", help="a folder of video files, for loader")
    option("--size", type=int, default=64, help="pixels of a side, for loader")
    option("--frames", type=int, default=16, help="of a window, for loader")
    args = parser.parse_args()
    args.grid = tuple(args.grid)
    if args.what == "loader" and args.data is None:
        parser.error("loader needs --data")
    return args


if __name__ == "__main__":
    main()
