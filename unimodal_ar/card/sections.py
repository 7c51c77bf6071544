"""The sections of a card, in Markdown, each from the facts of a model's folder."""

from __future__ import annotations

from shlex import quote
from typing import Any

from ..modality import ModalityOptions
from ..tables import format_table
from .facts import Facts, code, short
from .metadata import METRICS, data_name, flat, forecasts, known_data
from .options import CardOptions

_THINGS = {"timeseries": "time series", "image": "images", "audio": "audio", "video": "video"}
_METHODS = {"next_block": "autoregressive", "block_diffusion": "block-diffusion"}
_ELEMENTS = {
    **{"levels": "grey levels of pixels", "palette": "palette colours of pixels", "patches": "patches of pixels"},
    **{"tokenizer": "codes or latents of a frozen tokenizer", "mulaw": "mu-law codes of samples"},
    **{"waveform": "patches of samples", "mel": "frames of a log-mel spectrogram", "codec": "codes of a neural codec"},
}
_TRAINING = (  # worth telling, where the recipe says it
    *("num_train_epochs", "max_steps", "per_device_train_batch_size", "gradient_accumulation_steps", "learning_rate"),
    *("lr_scheduler_type", "warmup_steps", "weight_decay", "max_grad_norm", "optim", "bf16", "fp16"),
)
_UNITS = {
    "MSE": "MSE (of the mean forecast) in squared units of the data",
    "MAE": "MAE (of the median) in units of the data",
    "MASE": "MASE relative to the seasonal naive error of the training part",
    "WQL": "WQL the weighted quantile loss, a share of the series' size",
    "coverage_80": "coverage_80 the share of actual values in the 80 % interval, best at 0.8",
}


def summary(facts: Facts, options: CardOptions) -> str:
    """One sentence, and the author's own."""
    what = " and ".join(dict.fromkeys(_THINGS.get(kind, kind) for kind in facts.kinds)) or "sequences"
    kinds = dict.fromkeys((option.objective or {})["kind"] for option in facts.drawn.values())
    how = " and ".join(_METHODS.get(kind, kind) for kind in kinds)
    article = "An" if how[:1] in "aeiou" else "A"
    given = f", given {_listed([f'`{name}`' for name in facts.context])}" if facts.context else ""
    sentence = f"{article} {how} model of {what}{given}, made with the Python package `unimodal_ar`."
    return sentence if options.description is None else f"{sentence}\n\n{options.description}"


def sample(facts: Facts) -> str:
    """A picture, a sound, or nothing."""
    if not facts.samples:
        return ""
    series = "timeseries" in facts.kinds
    told = "Forecasts of the test part, and what came in truth" if series else "Samples that the model drew"
    found = [f"![{told}](samples.png)"] if "samples.png" in facts.samples else []
    if "samples.wav" in facts.samples:
        found.append("Listen: [samples.wav](samples.wav)" + (" (above, its spectrograms)" if found else ""))
    return "\n\n".join(found)


def model(facts: Facts) -> str:
    """A table of the answers to the five questions, and of the sizes."""
    rows: list[tuple[str, str]] = []
    for name, options in facts.drawn.items():
        rows += _modality(f" of `{name}`" if len(facts.drawn) > 1 else "", options, facts.adapters.get(name, {}))
    rows += [(f"Given `{name}`", _context(facts, name)) for name in facts.context]
    rows.append(("Backbone", _backbone(facts)))
    rows.append(("Parameters", _sizes(facts)))
    if facts.layers:
        size = f", rank {facts.layers['r']}" if "r" in facts.layers else ""
        rows.append(("Layers of PEFT", f"{facts.layers.get('peft_type')}{size}, in the frozen body"))
    if facts.merged:
        rows.append(("Layers of PEFT", f"{facts.recipe['peft'].get('method')}, merged into the backbone"))
    return _table([("", ""), *rows])


def use(facts: Facts, place: str) -> str:
    """Lines of code. `place`: a folder or an id on the Hub."""
    parts = ["```\npip install unimodal-ar\n```"]
    if not facts.adapters:
        load = "from unimodal_ar import UnimodalARForGeneration\n\nmodel = UnimodalARForGeneration.from_pretrained"
        parts.append("There are no adapters in the folder: the model takes and gives elements, not raw data.")
        parts.append(f'```python\n{load}("{place}")\n```')
    elif "timeseries" in facts.kinds:
        horizon = facts.section("data").get("horizon") or 24
        lines = f'forecaster = pipelines.load("{place}")\nforecast = forecaster.predict("my.csv", {horizon})'
        parts.append(f"```python\nfrom unimodal_ar import pipelines\n\n{lines}\nforecast.to_frame()\n```")
        command = f"unimodal-ar forecast my.csv --model {quote(place)} --horizon {horizon} --out forecast.parquet"
        parts.append(f"```\n{command}\n```")
        if any(facts.section("data").get(key) for key in ("time", "item", "target", "known", "past")):
            parts.append("Columns of `my.csv` are called as in recipe.yaml, or as options of the command say.")
    else:
        parts += _drawing(facts, place)
    parts += _with_layers(facts, place)
    if facts.source:
        place = facts.source["name_or_path"]
        told = f"`{short(place)}`, which must be there" if facts.base is None else f"`{facts.base[0]}`"
        parts.append(f"The frozen body is not in this folder: it is read from {told}, and known by its fingerprint.")
    return "\n\n".join(parts)


def data(facts: Facts, options: CardOptions) -> str:
    """What it was trained on, and licences."""
    section, lines = facts.section("data"), []
    name = data_name(facts)
    told = options.data or (None if options.datasets else known_data(facts))
    if told is not None:
        lines.append(f"- Data: {' '.join(told.split()).rstrip('.')}.")
    elif options.datasets:
        lines.append("- Data: " + _listed([f"[{d}](https://huggingface.co/datasets/{d})" for d in options.datasets]))
    else:
        lines.append(
            f"- Data: {f'{code(name)}; where it is from and under which licence is ' if name else ''}not stated."
        )
    if parts := _held_out(section):
        lines.append(f"- Held out, of {'each series' if 'horizon' in section else 'the data'}: {parts}.")
    if facts.recipe.get("init_from"):
        lines.append(
            f"- Training began with the model in {code(short(str(facts.recipe['init_from'])))}, and its data count."
        )
    if facts.base is not None:
        lines.append(
            f"- It stands on [{facts.base[0]}](https://huggingface.co/{facts.base[0]}), whose licence counts, too."
        )
    stated = options.license_name or options.license or "not stated"
    link = f" ({options.license_link})" if options.license_link else ""
    return "\n".join([*lines, f"- Licence of the weights: {stated}{link}."])


def training(facts: Facts) -> str:
    """The recipe's main values and the command."""
    if not facts.recipe:
        return "Not stated: the folder holds no recipe (the model was converted, or saved by hand)."
    written = facts.section("training")
    rows = [(f"`training.{key}`", written[key]) for key in _TRAINING if written.get(key) not in (None, False)]
    if (written.get("max_steps") or 0) > 0:  # which counts instead
        rows = [row for row in rows if "num_train_epochs" not in row[0]]
    if facts.section("ema"):
        rows.append(("`ema.decay`", facts.section("ema")["decay"]))
    rows = [("`seed`", facts.recipe.get("seed", 0)), *rows]
    table = _table([("key", "value"), *((key, f"{value}") for key, value in rows)])
    merged = "\n\nIts layers of PEFT were then merged: `unimodal-ar merge`." if facts.merged else ""
    return (
        "By [recipe.yaml](recipe.yaml), which holds every value that the training depends on (`data.path` may have to "
        f"be set to where the data are):\n\n```\nunimodal-ar train recipe.yaml --output mine\n```{merged}\n\n{table}"
    )


def evaluation(facts: Facts) -> str:
    """The numbers of evaluation.json."""
    if not facts.evaluation and facts.merged:
        return (
            "Not stated: it was measured with its layers apart, and not again since they were merged, which may change "
            "the last digits (`unimodal-ar evaluate` does it)."
        )
    if not facts.evaluation:
        return "Not stated: the folder holds no evaluation.json."
    tables = {key: value for key, value in facts.evaluation.items() if key not in ("transfer", "without_ema")}
    parts = _tables(facts, tables)
    for name, other in (facts.evaluation.get("transfer") or {}).items():
        parts += [f"### On {code(name)}, which it was not trained on", *_tables(facts, other)]
    if "without_ema" in facts.evaluation:
        parts += ["### The same without the average of the weights", *_tables(facts, facts.evaluation["without_ema"])]
    return "\n\n".join(parts)


def versions(facts: Facts, own: str) -> str:
    known = _listed([f"{name} {version}" for name, version in facts.versions.items()])
    return f"{f'Made with {known}.' if known else 'Not stated.'} This card was written by unimodal_ar {own}."


def _modality(of: str, options: ModalityOptions, adapter: dict[str, Any]) -> list[tuple[str, str]]:
    element, grid = options.element, " x ".join(map(str, options.grid))
    size = f"{element.vocab_size:,} values" if element.kind == "discrete" else f"a vector of {element.dim} numbers"
    codes = f", {element.codes} codes" if element.kind == "discrete" and element.codes > 1 else ""
    count = options.grid[0] * options.grid[1] * options.grid[2]
    rows = [(f"Raw data{of}", _raw(adapter))] if adapter else []
    return [
        *rows,
        (f"Element{of}", f"{_element(adapter)}{size}{codes}"),
        (f"Grid{of}", f"{grid} (time x height x width), {count:,} elements"),
        (f"What comes next{of}", _next(options)),
        (f"Objective{of}", _written(options.objective)),
        (f"Distribution of an element{of}", _written(options.head)),
    ]


def _next(options: ModalityOptions) -> str:
    block = options.layout.block
    blocks = {None: "the order's own blocks", 1: "one element", "whole": "all at once"}
    blocks |= {"row": "a row of elements", "frame": "a frame"}
    known = blocks.get(block) if isinstance(block, (int, str, type(None))) else None
    return f"{known or f'blocks of {block}'}, in `{options.layout.order}` order"


def _raw(adapter: dict[str, Any]) -> str:
    kind = adapter["kind"]
    channels = {1: "grey", 3: "RGB"}.get(adapter.get("channels", 3))
    if kind == "timeseries":
        seen = f", {adapter['lookback']} steps of lookback" if adapter.get("lookback") else ""
        names = ("known", "past")
        more = [f"{n} {name} covariates" for name in names if (n := adapter.get(f"{name}_covariates"))]
        return f"time series{seen}" + "".join(f", {text}" for text in more)
    if kind == "image":
        return f"images of {_size(adapter['size'])} pixels, {channels}"
    if kind == "video":
        rate = f" at {adapter['fps']:g} per second" if adapter.get("fps") else ""
        return f"clips of {adapter['frames']} frames{rate}, {_size(adapter['size'])} pixels, {channels}"
    if kind == "audio":
        ears = "stereo" if adapter.get("channels") == 2 else "mono"
        return f"clips of {adapter['seconds']:g} s at {adapter['sample_rate']:,} Hz, {ears}"
    return f"`{kind}`"


def _size(size: int | list[int]) -> str:
    height, width = (size, size) if isinstance(size, int) else size
    return f"{height} x {width}"


def _element(adapter: dict[str, Any]) -> str:
    if adapter.get("kind") == "timeseries":
        return f"{adapter['patch']} steps: "
    kind = (adapter.get("elements") or {}).get("kind")
    return f"{_ELEMENTS.get(kind, kind)}: " if kind else ""


def _context(facts: Facts, name: str) -> str:
    adapter, options = facts.adapters.get(name, {}), facts.config.modality(name)
    classes = adapter.get("classes")
    told = f"{classes} classes" if isinstance(classes, int) else ""
    if isinstance(classes, list):
        told = f"{len(classes)} classes: {', '.join(map(code, classes[:10]))}{', ...' * (len(classes) > 10)}"
    hidden = "; may be left out, and guided" if options.null_probability else ""
    return f"{told or 'a context'}{hidden}"


def _backbone(facts: Facts) -> str:
    body = facts.config.backbone.get_text_config()
    place = str(facts.source.get("name_or_path") or facts.body.get("pretrained") or "")
    name = short(place) if facts.base is None else facts.base[0]
    known = {"layers": getattr(body, "num_hidden_layers", None), "wide": getattr(body, "hidden_size", None)}
    sizes = ", ".join(f"{value} {key}" for key, value in known.items() if value is not None)
    of = f" of {code(name)}" if name else ""
    changed = f", ablation `{facts.body['ablation']}`" if facts.body.get("ablation") else ""
    return f"`{body.model_type}`{of}, {sizes}{changed}{', frozen' * facts.config.freeze_backbone}"


def _sizes(facts: Facts) -> str:
    if not facts.frozen:
        return f"{facts.parameters:,}"
    trained = facts.parameters - facts.frozen
    return f"{facts.parameters:,}: {facts.frozen:,} frozen, {trained:,} not; {facts.stored:,} are in this folder"


def _written(part: dict[str, Any] | None) -> str:
    """A part of the configuration as a reader sees it: its kind, and its options that are single values."""
    options = dict(part or {})
    kind = options.pop("kind")
    plain = [f"{key} {value}" for key, value in options.items() if isinstance(value, (str, int, float)) and value]
    return f"`{kind}`" + (f" ({', '.join(plain)})" if plain else "")


def _drawing(facts: Facts, place: str) -> list[str]:
    labels = {
        name: facts.adapters[name] for name in facts.context if facts.adapters.get(name, {}).get("kind") == "label"
    }
    chosen = {name: _first(adapter["classes"]) for name, adapter in labels.items()}
    words = "".join(f", {name}={value!r}" for name, value in chosen.items() if name.isidentifier())
    options = "".join(f" --context {quote(f'{name}={value}')}" for name, value in chosen.items())
    ending = {"audio": "wav", "video": "mp4"}.get(facts.kinds[0] if facts.kinds else "", "png")
    python = f'generator = pipelines.load("{place}")\ngenerator.generate(n=4{words}).save("samples.{ending}")'
    return [
        f"```python\nfrom unimodal_ar import pipelines\n\n{python}\n```",
        f"```\nunimodal-ar sample --model {quote(place)} --n 4{options} --out samples.{ending}\n```",
    ]


def _first(classes: int | list[str]) -> Any:
    return 0 if isinstance(classes, int) else classes[0]


def _with_layers(facts: Facts, place: str) -> list[str]:
    if not facts.layers:
        return []
    code = (
        "from peft import AutoPeftModel\n\nimport unimodal_ar\n\n"
        f'model = AutoPeftModel.from_pretrained("{place}", import_allowlist=["unimodal_ar"])'
    )
    return [
        f"With PEFT (the model alone, without adapters for raw data):\n\n```python\n{code}\n```",
        f"As a plain model, without layers:\n\n```\nunimodal-ar merge {quote(place)} --out merged\n```",
    ]


def _tables(facts: Facts, tables: dict[str, Any]) -> list[str]:
    found: list[str] = []
    section = facts.section("evaluation")
    for horizon, rows in forecasts(tables).items():
        every = f", an origin every {section['stride']} steps" if section.get("stride") else ""
        ours = {("this model" if name == "unimodal_ar" else name): row for name, row in rows.items()}
        found.append(f"Rolling forecasts of the test part, {horizon} steps ahead{every}:\n\n{format_table(ours)}")
    if found:
        names = dict.fromkeys(n for rows in forecasts(tables).values() for row in rows.values() for n in row)
        units = "; ".join(_UNITS[name] for name in names if name in _UNITS)
        if facts.section("data").get("standardise"):
            units = units.replace("units of the data", "standard deviations of each series' training part")
        return [*found, f"{units}."]
    plain = {key: value for key, value in flat(tables).items() if isinstance(value, (int, float, list))}
    values = [(METRICS.get(key, (f"`{key}`",))[0], _value(key, value)) for key, value in plain.items()]
    return [_table([("on the test part", "value"), *values])] if values else ["Nothing was measured."]


def _value(key: str, value: Any) -> str:
    unit = METRICS.get(key, ("", ""))[1]
    values = value if isinstance(value, list) else [value]
    told = [f"{x:,}" if isinstance(x, int) else f"{x:.4g}" for x in values if isinstance(x, (int, float))]
    return f"{', '.join(told)}{unit}"


def _held_out(section: dict[str, Any]) -> str:
    if section.get("split"):
        return f"what their column {code(section['split'])} says"
    unit = "steps" if "horizon" in section else "examples"
    parts = [f"{part} {_amount(section[part], unit)}" for part in ("validation", "test") if section.get(part)]
    return _listed([*parts, *(["a test part of its own"] if section.get("test_path") else [])])


def _amount(part: Any, unit: str) -> str:
    return f"{100 * part:g} %" if isinstance(part, float) and part < 1 else f"{part} {unit}"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1] if names else ""


def _table(rows: list[tuple[str, str]]) -> str:
    lines = ["| " + " | ".join(" ".join(cell.split()).replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|", *lines[1:]])
