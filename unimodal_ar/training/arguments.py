"""Training arguments: transformers' own, by name, over the house's defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch
from transformers import TrainingArguments

from ..schema import unknown_key

# Not those of transformers: a validation loss at every epoch, the best model kept, decay towards the end.
DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "eval_strategy": "epoch",
    "logging_strategy": "epoch",
    "save_total_limit": 2,
    "lr_scheduler_type": "cosine",
    "weight_decay": 0.1,
    "max_grad_norm": 1.0,
}

# Segments are no columns, the validation loss is the only metric that there is, and the guard lets no loss that is not
# finite pass (see `guard.check`: the filter would make the host wait for the device twice in every micro-batch).
_FIXED: dict[str, Any] = {
    "remove_unused_columns": False,
    "metric_for_best_model": "eval_loss",
    "greater_is_better": False,
    "logging_nan_inf_filter": False,
}

# Arguments that nothing here would heed: of label columns, of predictions gathered in evaluation, of token ids, of the
# Hub, and those that only transformers' example scripts read.
_WITHOUT_EFFECT = {
    *("label_names", "label_smoothing_factor", "length_column_name", "include_num_input_tokens_seen"),
    *("prediction_loss_only", "batch_eval_metrics", "include_for_metrics", "eval_do_concat_batches"),
    *("eval_use_gather_object", "eval_accumulation_steps"),
    *("use_cache", "neftune_noise_alpha", "use_liger_kernel", "liger_kernel_config"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    "hub_revision",
    *("do_train", "do_eval", "do_predict", "local_rank"),
    *_FIXED,
}

# Trainer takes less for nothing to do, and would publish a model that was not trained.
_AT_LEAST_ONE = {"per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"}


def merged(section: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe's section over the defaults, as plain data."""
    written = {key: _unswitched(key, value) for key, value in section.items() if key != "resume_from_checkpoint"}
    arguments = {**DEFAULTS, **written}
    arguments.setdefault("save_strategy", arguments["eval_strategy"])
    arguments.setdefault("load_best_model_at_end", arguments["eval_strategy"] != "no")
    if arguments["eval_strategy"] == "steps" and "eval_steps" in arguments:
        arguments.setdefault("save_steps", arguments["eval_steps"])
    return arguments


def build(section: Mapping[str, Any], seed: int, output_dir: Path, **changes: Any) -> TrainingArguments:
    """What the Trainer takes. `changes` go over the section."""
    # Every parameter gets a gradient in every step (see `UnimodalARForGeneration.forward`), so DDP need not look.
    ours = {"dataloader_pin_memory": torch.cuda.is_available(), "ddp_find_unused_parameters": False}
    arguments = {**ours, **merged(section), **changes}
    return TrainingArguments(output_dir=str(output_dir), seed=seed, **_FIXED, **arguments)


def check(section: Mapping[str, Any]) -> list[str]:
    """One sentence for everything that is wrong with a recipe's section."""
    types = get_type_hints(TrainingArguments)
    own = {"seed", "output_dir"}
    legal = {field.name for field in fields(TrainingArguments) if field.init} - own - _WITHOUT_EFFECT
    problems = []
    for key, value in section.items():
        if key in own:
            problems.append(f"training.{key} is set; the recipe's own key {key} governs everything")
        elif key in _WITHOUT_EFFECT:
            problems.append(f"training.{key} is set; it has no effect here, so leave it out")
        elif key == "enable_jit_checkpoint":
            problems.append(f"training.{key} is set; a SIGTERM always saves a checkpoint here, so leave it out")
        elif key == "train_sampling_strategy" and value not in ("random", "sequential"):
            problems.append(f"training.{key} is {value!r}; it must be random or sequential")
        elif key not in legal:
            problems.append(unknown_key(str(key), legal, "training"))
        elif wanted := _wanted(key, types[key], value):
            problems.append(f"training.{key} is {value!r}; it must be {wanted}")
    if section.get("save_only_model") and section.get("resume_from_checkpoint"):
        problems.append("training.resume_from_checkpoint is set; with save_only_model nothing can be resumed")
    if problems:
        return problems
    try:
        build(section, 0, Path("unused"))  # makes no folder
    except (ValueError, TypeError) as error:
        return [f"training: {' '.join(str(error).split())}"]
    return []


def _unswitched(key: str, value: Any) -> Any:
    """YAML 1.1 reads a bare `no` as false."""
    return "no" if key.endswith("_strategy") and value is False else value


def _wanted(key: str, annotation: Any, value: Any) -> str | None:
    """What a number or a switch should have been, None where `value` is one; TrainingArguments checks no types."""
    if key == "resume_from_checkpoint":
        legal = value is None or isinstance(value, (bool, str))
        wanted = "true (the last checkpoint), the path of a checkpoint, or auto (the last one, or else the beginning)"
        return None if legal else wanted
    members = set(get_args(annotation)) or {annotation}
    if not members <= {int, float, bool, type(None)}:
        return None
    names = {bool: "true or false", float: "a number", int: "an integer"}
    if key == "num_train_epochs" and isinstance(value, (int, float)) and value <= 0:
        return "more than 0"
    if key in _AT_LEAST_ONE and isinstance(value, int) and value < 1:
        return "at least 1"
    if type(value) in members or (type(value) is int and float in members):
        return None
    return " or ".join(name for kind, name in names.items() if kind in members)
