"""Whether training in bfloat16 follows training in float32: the loss curves of recipes, step by step.

    python benchmarks/precision.py
    python benchmarks/precision.py --device cuda --steps 500

Each recipe is trained from the same weights on the same data in both (`bf16: true` is autocast: weights, their updates
and losses stay in float32), without dropout. The training losses' curves are smoothed by a mean over a tenth of the
steps. A third training in float32, with another seed, says how far apart curves are that nobody would call different.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from common import machine, print_table, print_target  # type: ignore[import-not-found]  # the scripts' own folder

from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.fit import fit
from unimodal_ar.training.recipe import Resolved

RECIPES = ["next_token/digits", "next_patch/temperature"]
BAND = 0.02  # of the loss's fall


def curve(recipe: str, args: argparse.Namespace, seed: int, bf16: bool) -> tuple[torch.Tensor, float]:
    """Training losses of all steps, and the validation loss at the end."""
    with tempfile.TemporaryDirectory() as folder:
        settings: dict[str, Any] = {
            "seed": seed,
            "output_dir": folder,
            "training.max_steps": args.steps,
            "training.logging_strategy": "steps",
            "training.logging_steps": 1,
            "training.eval_strategy": "no",
            "training.lr_scheduler_type": "constant_with_warmup",
            "training.bf16": bf16,
            "training.use_cpu": args.device.type == "cpu",
            "training.disable_tqdm": True,
        }
        written = [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        document = load_recipe(recipe, [*written, *args.set])
        document.pop("early_stopping", None)  # all trainings take as many steps
        if "dropout" in document["model"]["backbone"]:  # it draws otherwise in another dtype, as with another seed
            document["model"]["backbone"]["dropout"] = 0.0
        trainer = fit(Resolved(document), Path(folder))
        last = trainer.evaluate()["eval_loss"]
    losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
    return torch.tensor(losses), last


def smoothed(losses: torch.Tensor) -> torch.Tensor:
    return losses.unfold(0, max(1, len(losses) // 10), 1).mean(-1)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance of two smoothed curves, as a fraction of the fall of the first."""
    one, other = smoothed(one), smoothed(other)
    return float((one - other).abs().max() / (one.max() - one.min()))


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    rows, found = [], {}
    for recipe in args.recipes:
        (exact, end), (rounded, end_bf16), (other, end_other) = (
            curve(recipe, args, seed, bf16) for seed, bf16 in ((0, False), (0, True), (1, False))
        )
        found[recipe] = distance(exact, rounded)
        rows.append(
            [
                recipe,
                f"{exact[0]:.4f}",
                *(f"{smoothed(x)[-1]:.4f}" for x in (exact, rounded, other)),
                *(f"{x:.4f}" for x in (end, end_bf16, end_other)),
                f"{100 * found[recipe]:.2f}",
                f"{100 * distance(exact, other):.2f}",
            ]
        )
    print(f"\n{machine(args.device, torch.bfloat16)}\n")
    print(
        f"{args.steps} steps. Training loss at the first step and, smoothed, at the last; validation loss at the end; "
        "the largest distance of a smoothed curve to that of float32, in percent of its fall.\n"
    )
    header = ["recipe", "first", "fp32", "bf16", "other seed", "val. fp32", "bf16", "other seed", "bf16 %", "seed %"]
    print_table(header, rows)
    print()
    for recipe, value in found.items():
        print_target(f"distance of the curve of {recipe} in bfloat16", value, BAND, at_least=False)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--recipes", nargs="+", default=RECIPES, help=f"(default: {' '.join(RECIPES)})")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="changes to each recipe")
    parser.add_argument("--steps", type=int, default=200, help="of each training (default: 200)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    args = parser.parse_args()
    if args.steps < 1:
        parser.error(f"--steps is {args.steps}; it must be at least 1")
    return args


if __name__ == "__main__":
    main()
