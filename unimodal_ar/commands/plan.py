"""`unimodal-ar plan`: what a recipe would take, before a machine is rented for it."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .common import check_output


def add(commands: Any) -> None:
    command = commands.add_parser(
        "plan",
        help="show what training a recipe would need",
        description="Show what training a recipe would need: parameters, memory, arithmetic and steps. Runs three "
        "training steps on random weights to measure time and memory, and writes nothing.",
    )
    option = command.add_argument
    option("recipe", help="a YAML file, or the name of a shipped recipe such as next_patch/temperature")
    option(
        "--set", action="append", default=[], metavar="A.B=VALUE", dest="overrides", help="override a key; repeatable"
    )
    option(
        "--no-step",
        action="store_true",
        help="measure no step, and build only one and two backbone layers instead of the whole model",
    )
    option("--device", metavar="cpu|cuda", help="where to measure (default: where training would run)")
    option("--processes", type=int, default=1, metavar="N", help="processes that train together (default: 1)")
    option("--json", metavar="FILE", help="also write all numbers to this file")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    from ..training.documents import load_recipe
    from ..training.plan import plan

    out = Path(arguments.json) if arguments.json else None
    if out is not None:
        check_output("--json", out)
    if arguments.processes < 1:
        raise ValueError(f"--processes is {arguments.processes}; it must be at least 1")
    document = load_recipe(arguments.recipe, arguments.overrides)
    found = plan(document, not arguments.no_step, arguments.device, arguments.processes)
    print("\n\n".join(told(found)))
    if out is not None:
        out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        print(f"\nWrote {out}")


def told(found: dict[str, Any]) -> list[str]:
    """The paragraphs of a plan, of what `training.plan.plan` returns."""
    notes = [f"Note: {note}." for note in found["notes"]]
    return [*notes, _parameters(found["parameters"]), _table([*_work(found), ("", ""), *_needs(found)])]


def _parameters(parts: dict[str, Any]) -> str:
    sizes = ["weights", "gradients", "optimiser", *(["ema"] if parts["all"]["ema"] else [])]
    rows = [["", "parameters", "trained", *sizes, ""]]
    for name, part in parts.items():
        cells = [_size(part[key]) for key in sizes]
        rows.append([name, f"{part['all']:,}", f"{part['trained']:,}", *cells, ", ".join(part["dtypes"])])
    return _table(rows, right=range(1, 3 + len(sizes)))


def _work(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Sequence, data and steps."""
    sequence, data = found["sequence"], found["data"]
    rows = []
    for target in sequence["targets"]:
        grid, blocks, largest = " x ".join(map(str, target["grid"])), target["blocks"], target["largest"]
        of = "of 1 element" if largest == 1 else f"of up to {largest} elements"
        rows.append(("target", f"{target['modality']}, {grid}: {blocks:,} block{'s' * (blocks > 1)} {of}"))
    if sequence["positions"] is not None:
        kinds = [f"{sequence[kind]:,} {kind}" for kind in ("prompt", "context", "clean", "noisy") if sequence[kind]]
        rows.append(("positions per example", f"{sequence['positions']:,} ({', '.join(kinds)})"))
    if data["training"] is not None:
        rows.append(("examples", f"{data['training']:,} training, {data['validation']:,} validation {data['unit']}"))
    b = data["batch"]
    processes = f"{b['processes']} process{'es' * (b['processes'] > 1)}"
    product = f"{b['per_device']:,} per process x {b['accumulation']} accumulation x {processes}"
    rows.append(("batch", f"{b['all']:,} = {product}"))
    counts = [f"{data['steps_per_epoch']:,} per epoch"] if data["steps_per_epoch"] is not None else []
    counts += [f"at most {data['steps']:,} in all"] if data["steps"] is not None else []
    return [*rows, ("steps", ", ".join(counts) or "not known")]


def _needs(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Arithmetic, memory and time."""
    kept, cache, step, data = found["activations"], found["cache"], found["step"], found["data"]
    rows = []
    if found["flops"] is not None:
        whole = f", {_flops(found['flops'] * data['steps'])} in all" if data["steps"] is not None else ""
        rows.append(("operations", f"{_flops(found['flops'])} per step, counted forward and backward{whole}"))
    if kept is not None:
        each = "" if kept["examples"] == 1 else f", {_size(kept['two'] - kept['one'])} each"
        rows.append(("activations", f"{_size(kept['bytes'])} kept of a micro-batch of {kept['examples']:,}{each}"))
    if found["estimate"] is not None:
        ema = ", ema" if found["parameters"]["all"]["ema"] else ""
        twice = " twice, as they are sent" if data["batch"]["processes"] > 1 else ""
        what = f"weights, gradients{twice}, optimiser{ema} and activations"
        rows.append(("memory, estimated", f"{_size(found['estimate'])} per process: {what}"))
    if step is not None:
        of = f"a step of {step['micro_batches']} x {step['examples']} examples on {step['device']}"
        rows.append(("memory, measured", f"{_size(step['bytes'])} at its highest, in {of}"))
        rows.append(("time, measured", f"{step['seconds']:.3g} s for that step{_whole_time(step, data)}"))
    if cache is not None:
        sample, count = f"{_size(cache['bytes'])} per sample of {cache['positions']:,} positions", cache["samples"]
        all_samples = f"; {_size(cache['bytes'] * count)} for {count:,}, as evaluated" if count else ""
        rows.append(("cache of generation", sample + all_samples))
    return rows


def _whole_time(step: dict[str, Any], data: dict[str, Any]) -> str:
    if data["steps"] is None:
        return ""
    seconds = step["seconds"] / step["micro_batches"] * data["batch"]["accumulation"] * data["steps"]
    units = ((86400, "days"), (3600, "hours"), (60, "minutes"), (1, "s"))
    length, unit = next((length, unit) for length, unit in units if seconds >= 2 * length or length == 1)
    return f"; at most {seconds / length:.3g} {unit} for all, without evaluation"


def _flops(count: int) -> str:
    value, units = float(count), ["", "k", "M", "G", "T", "P", "E", "Z"]
    while value >= 1000 and len(units) > 1:
        value, units = value / 1000, units[1:]
    return f"{value:.3g} {units[0]}FLOP"


def _size(size: int | None) -> str:
    """In powers of 1024."""
    if size is None:
        return "not known"
    value, units = float(size), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{size} B" if units[0] == "B" else f"{value:.4g} {units[0]}"


def _table(rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> str:
    """Columns side by side, some of them to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [x.rjust(w) if n in right else x.ljust(w) for n, (x, w) in enumerate(zip(row, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
