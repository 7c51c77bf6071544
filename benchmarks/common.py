"""What the benchmarks share: timing in turns, tables, and the name of the machine."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

import torch
import transformers


def seconds_in_turns(
    runs: Mapping[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each run, `repeats` times. Each must have run once before: the first time is slower.

    The runs take turns (A B, B A, A B, ...), so that a machine that gets slower or busier does so for all of them.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(repeats):
        for name in list(runs)[:: 1 if number % 2 == 0 else -1]:
            start = _now(device)
            runs[name]()
            seconds[name].append(_now(device) - start)
    return seconds


def median_ratio(numerator: Sequence[float], denominator: Sequence[float]) -> float:
    """The median of the ratios round by round: what the machine does to a whole round cancels out."""
    return median(a / b for a, b in zip(numerator, denominator, strict=True))


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A Markdown table; all columns but the first are numbers."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = [header, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])], *rows]
    for line in lines:
        cells = [
            line[0].ljust(widths[0]),
            *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)),
        ]
        print(f"| {' | '.join(cells)} |")


def print_target(what: str, value: float, target: float, at_least: bool) -> None:
    """One line: the measured ratio, what it should be, and whether it is."""
    met = value >= target if at_least else value <= target
    print(f"- {what}: {value:.2f} (target {'>=' if at_least else '<='} {target:g}: {'met' if met else 'MISSED'})")


def machine(device: torch.device, dtype: torch.dtype) -> str:
    """One line that says what the numbers were taken on."""
    if device.type == "cuda":
        processor = torch.cuda.get_device_name(device)
    else:
        processor = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, Python {platform.python_version()}"
    return f"{processor}; {platform.system()} {platform.machine()}; {versions}; {str(dtype).removeprefix('torch.')}"


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")  # `platform.processor` is empty on many Linux systems
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
