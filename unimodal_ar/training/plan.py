"""What a recipe would take: parameters, memory, arithmetic and steps, before anything is trained.

Parameters, and what the optimiser keeps for each, are counted exactly and take no memory. Activations and floating
point operations are measured on micro-batches of one example and of two, and go on linearly from there. With a step, a
few steps are trained as `train` would train them, on weights of chance: neither time nor memory depends on weights.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import psutil  # type: ignore[import-untyped]
import torch
from transformers import Trainer, TrainingArguments

from ..configuration import UnimodalARConfig
from ..layout import Layout
from ..lora import BODY, linear_maps
from ..modeling import UnimodalARForGeneration
from ..segment import Segment
from .body import Quantization
from .ema import EMA
from .measuring import STEPS, MadeUp, Measured, measure, measure_shortened, state_bytes, timed_step
from .peft import insert
from .recipe import Resolved
from .source_set import check_memory

LAYERS = "layers of PEFT"  # how what PEFT puts into the backbone is called among its parts
_SUMS = ("all", "trained", "weights", "gradients", "optimiser", "ema")


def plan(document: dict[str, Any], step: bool = True, device: str | None = None, processes: int = 1) -> dict[str, Any]:
    """What the recipe `document` (see `load_recipe`) takes, as JSON-able data. Sizes are in bytes; what is not known is
    None.

    Args:
        step: train a few steps to measure time and memory, which takes as much memory as training. False: what can be
            told without building the whole model; activations and operations are those of a model of one layer and of
            two, continued.
        device: "cpu" or "cuda"; None: where training would run.
        processes: how many train together, each with all weights (DDP). Memory is that of one of them.

    Returns:
        - notes: sentences on what is not known, and why;
        - parameters: by part, {all, trained, dtypes, weights, gradients, optimiser, ema}; "all" has their sums.
          `optimiser` is its state, `ema` the average of the section of that name;
        - sequence: {positions, prompt, context, clean, noisy, targets}: positions of one example by what they hold, and
          of each target {modality, grid, blocks, largest};
        - data: {unit, training, validation, batch, steps_per_epoch, steps};
        - flops: of an optimiser step of all processes (see `memory.count_flops`);
        - activations: {examples, bytes, one, two}: what autograd keeps for the backward pass of a micro-batch, and of
          one example and two;
        - cache: of generation, {positions, bytes, samples}: bytes per sample at full length, and how many samples the
          evaluation draws at once;
        - estimate: of a step of one process: weights, gradients, optimiser, ema and activations, and, where several
          train together, the copies of the gradients that they send each other;
        - step: measured, {device, examples, micro_batches, bytes, seconds}: the same at its highest, in an optimiser
          step of so many micro-batches; None without a step.

    Raises:
        ValueError: the recipe does not hold together (every error is named), the device, too few processes, or the
            model does not fit the memory.
    """
    if processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1")
    resolved = Resolved(document)
    notes: list[str] = []
    folder = resolved.recipe.init_from
    if folder is not None and not (Path(folder) / "config.json").is_file():
        notes.append(f"init_from is {folder!r}, where there is no model yet; this is of one that would fit")
    with tempfile.TemporaryDirectory() as scratch:
        arguments = _arguments(resolved, Path(scratch), device)
        training, validation = _examples(resolved, notes)
        counts = None if validation is None else (len(training), len(validation))
        with torch.device("meta"):
            outline = _build(resolved, resolved.config)
        parameters = _parameters(resolved, outline, arguments, notes)
        batch = _batch(arguments, counts, processes)
        fixed = _sum([parameters["all"][key] for key in _SUMS[2:]])
        if fixed is not None and processes > 1:
            fixed += parameters["all"]["gradients"]  # DDP's buckets
        one: Measured | None
        two: Measured | None
        trained: dict[str, Any] | None = None
        if step:
            one, two, trained = _trained(resolved, training, arguments, batch, parameters["all"], notes)
        else:
            one, two = _outlined(resolved, training, arguments, notes)
    whole = activations = None
    if one is not None and two is not None:
        whole = two.beyond(one, batch["per_device"] - 1)
        activations = {"examples": batch["per_device"], "bytes": whole.kept, "one": one.kept, "two": two.kept}
    estimate = _sum([fixed, None if whole is None else whole.kept])
    there = _there(arguments.device)
    if estimate is not None and estimate > there:
        notes.append(
            f"a step would take some {estimate / 2**30:.3g} GiB, which is more than the {there / 2**30:.3g} GiB of "
            f"{arguments.device}"
        )
    segments = training.collate([training[0]])["segments"]
    return {
        "notes": notes,
        "parameters": parameters,
        "sequence": _sequence(resolved.config, segments, whole),
        "data": {
            "unit": resolved.data.unit,
            "training": counts and counts[0],
            "validation": counts and counts[1],
            "batch": batch,
            **_steps(arguments, counts and counts[0], processes),
        },
        "flops": None if whole is None else whole.flops * batch["accumulation"] * processes,
        "activations": activations,
        "cache": _cache(resolved, outline, segments, notes),
        "estimate": estimate,
        "step": trained,
    }


def _arguments(resolved: Resolved, scratch: Path, device: str | None) -> TrainingArguments:
    """Of a training of a few steps that writes nothing, and is as the recipe's in all that takes time or memory."""
    quiet: dict[str, Any] = dict.fromkeys(("eval_strategy", "save_strategy", "logging_strategy"), "no")
    quiet |= {"load_best_model_at_end": False, "disable_tqdm": True, "report_to": "none"}
    if device not in (None, "cpu", "cuda"):
        raise ValueError(f"--device is {device!r}; it must be 'cpu' or 'cuda' (CUDA_VISIBLE_DEVICES says which)")
    arguments = resolved.training_arguments(scratch, **quiet, **({"use_cpu": True} if device == "cpu" else {}))
    if device == "cuda" and arguments.device.type != "cuda":
        raise ValueError(f"--device is 'cuda'; training would run on {arguments.device.type!r} here")
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process has one
    return arguments


def _examples(resolved: Resolved, notes: list[str]) -> tuple[Any, Any]:
    """Training and validation examples; made up ones and None where the data cannot be read."""
    try:
        resolved.evaluator()
        training, validation = resolved.data.train(), resolved.data.validation()
    except (ValueError, ImportError, OSError) as error:
        notes.append(f"training would not begin: {error}; examples are made up here, as large as the model's grids")
        return MadeUp(resolved.config, resolved.data.modalities), None
    return training, validation


def _build(resolved: Resolved, config: UnimodalARConfig, read: bool = False) -> UnimodalARForGeneration:
    """A model with the recipe's layers of PEFT, of weights of chance, or `read`, as quantised ones must be."""
    body, model = resolved.body, resolved.new_model() if read else UnimodalARForGeneration(config)
    if body is not None and body.ablation is None and not read:
        stored = getattr(config.backbone, "dtype", None) or torch.float32
        dtype = stored if body.dtype == "auto" else getattr(torch, body.dtype)
        for parameter in model.backbone.model.parameters():
            parameter.data = parameter.data.to(dtype)
    if resolved.peft is not None:
        with redirect_stdout(StringIO()):  # the plan tells how many there are
            insert(model, resolved.peft, new=resolved.recipe.init_from is None)
    return model


def _there(device: torch.device) -> int:
    """Bytes of memory that a device has."""
    return torch.cuda.mem_get_info(device)[1] if device.type == "cuda" else psutil.virtual_memory().total


def _parameters(
    resolved: Resolved, model: UnimodalARForGeneration, arguments: TrainingArguments, notes: list[str]
) -> dict[str, dict[str, Any]]:
    with torch.device("meta"):
        plain = UnimodalARForGeneration(resolved.config)
    own = {name for name, _ in plain.named_parameters()}
    quantization = None if resolved.body is None else resolved.body.quantization
    packed = {f"{name}.weight" for name in linear_maps(plain)} if quantization is not None else set()
    states = _optimiser_bytes(model, arguments, notes)
    parts: dict[str, dict[str, Any]] = {}
    for name, x in model.named_parameters():
        bare = name.replace(".base_layer.", ".")
        part = LAYERS if bare not in own else "backbone" if bare.startswith(BODY) else ".".join(bare.split(".")[:2])
        row = parts.setdefault(part, dict.fromkeys(_SUMS, 0) | {"dtypes": set()})
        weights, dtype = x.nbytes, str(x.dtype).removeprefix("torch.")
        if quantization is not None and bare in packed:
            weights, dtype = _packed(quantization, *x.shape), f"{quantization.bits} bits"
        row["dtypes"].add(dtype)
        trained = x.numel() * x.requires_grad
        average = torch.promote_types(x.dtype, torch.float32).itemsize if resolved.recipe.ema is not None else 0
        state = None if states is None else states.get(name, 0)
        added = (x.numel(), trained, weights, trained * x.itemsize, state, trained * average)
        for key, value in zip(_SUMS, added, strict=True):
            row[key] = _sum([row[key], value])
    parts["all"] = {key: _sum([row[key] for row in parts.values()]) for key in _SUMS}
    parts["all"]["dtypes"] = set().union(*(row["dtypes"] for name, row in parts.items() if name != "all"))
    return {name: row | {"dtypes": sorted(row["dtypes"])} for name, row in parts.items()}


def _packed(quantization: Quantization, rows: int, columns: int) -> int:
    """Bytes of a quantised weight and its scales: one for 64 weights of 4 bits, in 8 bits themselves or in 32, or one
    for a row of 8 bits."""
    if quantization.bits == 8:
        return rows * columns + 4 * rows
    blocks = math.ceil(rows * columns / 64)
    return math.ceil(rows * columns / 2) + (blocks + 4 * math.ceil(blocks / 256) if quantization.double else 4 * blocks)


def _optimiser_bytes(
    model: UnimodalARForGeneration, arguments: TrainingArguments, notes: list[str]
) -> dict[str, int] | None:
    """By parameter, what the optimiser keeps for it, found by a step of parameters without values."""
    trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
    for x in trained.values():
        x.grad = torch.zeros_like(x)
    try:
        kind, options = Trainer.get_optimizer_cls_and_kwargs(arguments, model)
        optimiser = kind([*trained.values()], **{key: value for key, value in options.items() if key != "fused"})
        optimiser.step()
    except (ImportError, NotImplementedError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())
        name = str(getattr(arguments.optim, "value", arguments.optim))
        notes.append(f"the state of training.optim {name!r} is not known ({reason})")
        return None
    return {name: state_bytes(optimiser.state[x]) for name, x in trained.items()}


def _batch(arguments: TrainingArguments, counts: tuple[int, int] | None, processes: int) -> dict[str, int]:
    size = arguments.per_device_train_batch_size
    size = size if counts is None else min(size, counts[0])
    accumulation = arguments.gradient_accumulation_steps
    return {
        "per_device": size,
        "accumulation": accumulation,
        "processes": processes,
        "all": size * accumulation * processes,
    }


def _steps(arguments: TrainingArguments, examples: int | None, processes: int) -> dict[str, int | None]:
    """As accelerate shares out batches and transformers counts steps."""
    if examples is None:
        return {"steps_per_epoch": None, "steps": arguments.max_steps if arguments.max_steps > 0 else None}
    whole: Any = math.floor if arguments.dataloader_drop_last else math.ceil
    batches = whole(whole(examples / arguments.per_device_train_batch_size) / processes)
    updates = max(math.ceil(batches / arguments.gradient_accumulation_steps), 1)
    every = math.ceil(arguments.num_train_epochs * updates)
    return {"steps_per_epoch": updates, "steps": arguments.max_steps if arguments.max_steps > 0 else every}


def _trained(
    resolved: Resolved,
    data: Any,
    arguments: TrainingArguments,
    batch: dict[str, int],
    sums: dict[str, Any],
    notes: list[str],
) -> tuple[Measured, Measured, dict[str, Any] | None]:
    """What one example and two take, and a step, if it can be done here."""
    size, on_cpu = batch["per_device"], arguments.device.type == "cpu"
    remedy = "--no-step tells what can be told without it"
    needed = sum(sums[key] or 0 for key in _SUMS[2:])
    if on_cpu:  # which kills what takes too much; a GPU says so itself, and its models are built outside of it
        check_memory(needed, "a step without its activations", remedy)
    else:
        check_memory(sums["weights"], "the model", remedy)
    count = min(batch["accumulation"], 2)  # with the second one gradients are there, as with all later ones
    short = copy.copy(arguments)
    short.max_steps, short.gradient_accumulation_steps = STEPS, count
    read = resolved.body is not None and resolved.body.quantization is not None
    model = _build(resolved, resolved.config, read)
    ema = None if resolved.recipe.ema is None else EMA(resolved.recipe.ema.decay)
    try:
        one, two = (measure(model, data, n, arguments) for n in (1, 2))
        if on_cpu and cast(Any, model.backbone.model).config._attn_implementation == "flex_attention":
            notes.append("no step is measured: on the CPU FlexAttention has no backward pass")
            return one, two, None
        if on_cpu:
            check_memory(needed - sums["weights"] + two.beyond(one, size - 1).kept, "a step of the model", remedy)
        seconds, above, state = timed_step(model, data, size, count, short, ema)
    except torch.OutOfMemoryError:
        raise ValueError(
            f"training.per_device_train_batch_size is {size}, with which a step does not fit the memory of "
            f"{arguments.device}; lower it, or see with --no-step what it takes"
        ) from None
    if arguments.torch_compile and on_cpu:
        notes.append("the memory measured is that of layers that are not compiled")
    taken = sums["weights"] + state + sums["ema"] + above
    found = {"examples": size, "micro_batches": count, "bytes": taken, "seconds": seconds}
    return one, two, {"device": str(arguments.device), **found}


def _outlined(
    resolved: Resolved, data: Any, arguments: TrainingArguments, notes: list[str]
) -> tuple[Measured | None, Measured | None]:
    """What one example and two take, from models of one layer and two."""
    build = partial(_build, resolved)
    checkpointing: Any = arguments.gradient_checkpointing_kwargs or {}
    if checkpointing.get("every_n_layers", 1) != 1:
        notes.append("activations are not known without a step: not every layer is checkpointed")
        return None, None
    try:
        one, two = (
            measure_shortened(resolved.config, build, partial(measure, data=data, size=n, arguments=arguments))
            for n in (1, 2)
        )
    except ValueError as error:  # layers of PEFT in layers that are left out, say
        one = two = None
        notes.append(f"activations are not known without a step: {error}")
    else:
        if one is None:
            notes.append("activations are not known without a step: the layers of the backbone are not of one size")
    return one, two


def _sequence(config: UnimodalARConfig, segments: Sequence[Segment], measured: Measured | None) -> dict[str, Any]:
    context = sum(x.num_elements for x in segments if not x.target)
    for first, second in pairwise(segments):
        reads = second.target and config.modality(second.modality).start == "context"
        context -= first.num_elements if reads and not first.target else 0  # it is the target's start
    positions, noisy = (None, None) if measured is None else (measured.positions, measured.noisy)
    prompt = config.soft_prompt
    clean = None if measured is None else measured.positions - measured.noisy - context - prompt
    targets = [_target(config, segment) for segment in segments if segment.target]
    return {
        "positions": positions,
        "prompt": prompt,
        "context": context,
        "clean": clean,
        "noisy": noisy,
        "targets": targets,
    }


def _target(config: UnimodalARConfig, segment: Segment) -> dict[str, Any]:
    options = config.modality(segment.modality).layout
    block: Any = tuple(options.block["cell"]) if isinstance(options.block, dict) else options.block
    layout = Layout.from_grid(segment.grid, options.order, block, torch.Generator().manual_seed(options.seed))
    sizes = layout.block_sizes
    return {"modality": segment.modality, "grid": list(segment.grid), "blocks": len(sizes), "largest": int(max(sizes))}


def _cache(
    resolved: Resolved, model: UnimodalARForGeneration, segments: Sequence[Segment], notes: list[str]
) -> dict[str, Any] | None:
    """Keys and values of all elements, by the configuration of the backbone."""
    backbone = model.backbone
    if backbone.obstacle is not None:
        notes.append(f"what generation keeps is not known: {backbone.obstacle}")
        return None
    body: Any = resolved.config.backbone.get_text_config()
    groups = getattr(body, "num_key_value_heads", None) or body.num_attention_heads
    size = getattr(body, "head_dim", None) or body.hidden_size // body.num_attention_heads
    positions = resolved.config.soft_prompt + sum(segment.num_elements for segment in segments)
    itemsize = next((x.itemsize for x in backbone.model.parameters()), 4)
    total = 2 * body.num_hidden_layers * groups * size * positions * itemsize
    return {"positions": positions, "bytes": total, "samples": _samples(resolved)}


def _samples(resolved: Resolved) -> int | None:
    """How many samples the evaluation draws at once, with their counterparts without context where it guides."""
    asked: Any = resolved.evaluation
    if asked is None:
        return None
    drawn = getattr(asked, "num_samples", None) or min(asked.samples, asked.batch_size)
    return int(drawn) * (2 if getattr(asked, "guidance_scale", 1.0) != 1 else 1)


def _sum(values: Sequence[int | None]) -> int | None:
    return None if any(value is None for value in values) else sum(cast("Sequence[int]", values))
