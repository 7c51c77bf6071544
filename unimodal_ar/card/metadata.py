"""The front matter of a card, as the Hub reads it (https://github.com/huggingface/hub-docs/blob/main/modelcard.md)."""

from __future__ import annotations

import math
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from .facts import Facts, short
from .options import CardOptions

# By the adapter's kind: how the Hub calls the task (huggingface.js, packages/tasks/src/pipelines.ts), if it knows it.
TASKS = {"timeseries": "time-series-forecasting", "image": "unconditional-image-generation"}
_TAGS = {"timeseries": "time-series", "image": "image", "audio": "audio", "video": "video"}
_OBJECTIVES = {"next_block": "autoregressive", "block_diffusion": "block-diffusion"}

# What evaluation.json holds of a model's samples: (what it is called, unit), and whether it is the model's own merit.
METRICS = {
    "bits_per_dimension": ("Bits per dimension", "", True),
    "bits_per_dimension_bound": ("Bits per dimension, at most (an estimated bound)", "", True),
    "bits_per_dimension_bound_error": ("Standard error of that bound", "", False),
    "nats_per_dimension": ("Nats per dimension (of a density: may be below 0)", "", True),
    "nats_per_dimension_bound": ("Nats per dimension, at most (an estimated bound)", "", True),
    "nats_per_dimension_bound_error": ("Standard error of that bound", "", False),
    "test_images": ("Test images", "", False),
    "test_clips": ("Test clips", "", False),
    "predictions.psnr": ("PSNR of frames that the model goes on with", " dB", True),
    "predictions.last_frame_psnr": ("PSNR of repeating the last given frame (baseline)", " dB", False),
    "predictions.ssim": ("SSIM of frames that the model goes on with", "", True),
    "predictions.psnr_by_frame": ("PSNR, frame by frame", " dB", False),
    "predictions.given": ("Frames that were given", "", False),
    "predictions.clips": ("Clips gone on with", "", False),
    "reconstruction.log_mel_distance": ("Log-mel distance that the elements alone lose", " dB", False),
    "reconstruction.si_sdr": ("SI-SDR of what the elements alone keep", " dB", False),
    "reconstruction.clips": ("Clips of these two", "", False),
}
# By the recipe's data.kind and data.dataset: what they are, as those say from whom they come.
_UCI = "the UCI Machine Learning Repository's Optical Recognition of Handwritten Digits, CC BY 4.0"
_NOAA = "hourly temperatures of Seattle and San Francisco, public-domain data of NOAA"
KNOWN = {
    ("images", "digits"): f"all or part of scikit-learn's digits (the test part of {_UCI})",
    ("series", "city_temperatures"): f"all or part of seattle-temps and sf-temps of vega_datasets ({_NOAA})",
    ("video", "moving_digits"): f"moving digits, made of scikit-learn's (the test part of {_UCI})",
}
OURS = "unimodal_ar"  # the model's row in a table of forecasts


def data(facts: Facts, options: CardOptions, title: str) -> ModelCardData:
    """The front matter."""
    base, results = facts.base, _results(facts, options)
    more: dict[str, Any] = {} if base is None else {"base_model_relation": base[1]}
    return ModelCardData(
        license=options.license,
        license_name=options.license_name,
        license_link=options.license_link,
        library_name="unimodal_ar",
        pipeline_tag=_task(facts),
        tags=[*_tags(facts), *options.tags],
        datasets=options.datasets or None,
        base_model=None if base is None else base[0],
        model_name=title if results else None,
        eval_results=results or None,
        **more,
    )


def data_name(facts: Facts) -> str:
    """What the data of the recipe are called; "": it does not say."""
    return _dataset(facts) or short(str(facts.section("data").get("path") or ""))


def known_data(facts: Facts) -> str | None:
    """What they are, where they are from and under which licence; None: only the author can know."""
    return KNOWN.get((str(facts.section("data").get("kind")), _dataset(facts)))


def _dataset(facts: Facts) -> str:
    dataset = facts.section("data").get("dataset") or ""
    return str(dataset["kind"] if isinstance(dataset, dict) else dataset)


def _task(facts: Facts) -> str | None:
    """None: the Hub has no name for it, such as for images of a class."""
    task = TASKS.get(facts.kinds[0]) if len(set(facts.kinds)) == 1 else None
    return None if facts.context and task == TASKS["image"] else task


def forecasts(evaluation: dict[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """The tables of forecasts, by horizon."""
    return {key: rows for key, rows in evaluation.items() if key.isdecimal() and isinstance(rows, dict)}


def flat(evaluation: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """What is no table of forecasts, by "section.key"."""
    found: dict[str, Any] = {}
    for key, value in evaluation.items():
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _tags(facts: Facts) -> list[str]:
    tags = [_TAGS.get(kind, kind) for kind in facts.kinds]
    for options in facts.drawn.values():
        kind = (options.objective or {})["kind"]
        tags += [_OBJECTIVES.get(kind, kind), f"{(options.head or {})['kind'].replace('_', '-')}-head"]
    if facts.layers:
        tags += ["peft", str(facts.layers.get("peft_type", "")).lower()]
    return [tag for tag in tags if tag]


def _results(facts: Facts, options: CardOptions) -> list[EvalResult]:
    task = {"task_type": _task(facts) or "other"}
    name = options.datasets[0] if len(options.datasets) == 1 else data_name(facts) or "unknown"
    own: dict[str, Any] = {**task, "dataset_name": name, "dataset_type": _slug(name), "dataset_split": "test"}
    found = _forecast_results(facts.evaluation, own)
    for title, tables in (facts.evaluation.get("transfer") or {}).items():
        found += _forecast_results(tables, {**own, "dataset_name": title, "dataset_type": _slug(title)})
    if forecasts(facts.evaluation):
        return found
    for key, value in flat(facts.evaluation).items():
        label, _, merit = METRICS.get(key, (key, "", False))
        if merit and _is_number(value):
            kind = key.rpartition(".")[2]
            found.append(EvalResult(metric_type=kind, metric_name=label, metric_value=value, **own))
    return found


def _forecast_results(tables: dict[str, Any], of: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            metric_type=metric.lower(),
            metric_name=f"{metric}, {horizon} steps ahead",
            metric_value=value,
            metric_args={"horizon": int(horizon)},
            **of,
        )
        for horizon, rows in forecasts(tables).items()
        for metric, value in rows.get(OURS, {}).items()
        if _is_number(value)
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)  # the Hub takes no NaN


def _slug(name: str) -> str:
    """As the Hub wants the id of a data set."""
    return name if re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name, re.ASCII) else re.sub(r"[^\w.-]+", "-", name).strip("-")
