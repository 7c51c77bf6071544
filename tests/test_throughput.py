"""The benchmarks of speed and precision run, at toy size."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _table(script: str, *arguments: str) -> dict[str, list[str]]:
    """The rows of what a benchmark prints, by their first cell."""
    command = [sys.executable, str(BENCHMARKS / script), "--threads", "1", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    lines = [line.strip("| ").split("|") for line in done.stdout.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in lines[2:]}


def test_throughput() -> None:
    rows = _table("throughput.py", "--size", "toy", "--repeats", "1", "--dtype", "bfloat16", "--peak-tflops", "1e-3")
    operations = {name: float(cells[3]) for name, cells in rows.items()}
    assert list(rows) == ["transformers Llama", "next-token", "next-block, rows", "block diffusion, 16"]
    assert operations["next-token"] == operations["transformers Llama"] < operations["block diffusion, 16"]
    assert all(float(cell) > 0 for cells in rows.values() for cell in cells[:-1])


def test_precision() -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    tiny = [f"model.backbone.{name}={size}" for name, size in sizes.items()]
    rows = _table("precision.py", "--steps", "3", "--recipes", "next_token/digits", "--set", *tiny)
    first, exact, rounded, other = map(float, rows["next_token/digits"][:4])
    assert abs(exact - rounded) < 0.01 < first and other != exact  # nothing but rounding tells the first two apart
