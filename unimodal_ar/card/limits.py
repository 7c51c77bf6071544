"""What a model is for, and where it ends: only what follows from its folder."""

from __future__ import annotations

from .facts import Facts, code
from .metadata import OURS, data_name, flat, forecasts


def limits(facts: Facts) -> str:
    """A list of sentences."""
    series = "timeseries" in facts.kinds
    things = "forecasting series" if series else "drawing examples"
    name = data_name(facts)
    lines = [f"For {things} like those that it was trained on{f' ({code(name)})' if name else ''}, and for research."]
    if facts.recipe:
        lines.append("It knows its training data and nothing else, with whatever is one-sided or wrong in them.")
    else:
        lines.append("What it was trained on is not stated here, so what it may be trusted with is not, either.")
    lines += _series(facts) if series else _samples(facts)
    if forecasts(facts.evaluation) or flat(facts.evaluation):
        lines.append(
            "The numbers above are of the test part of its own data, one training with one seed; on other data they "
            "are others."
        )
    else:
        lines.append("How good it is has not been measured, or is not stated.")
    return "\n".join(f"- {line}" for line in lines)


def _series(facts: Facts) -> list[str]:
    name = next(name for name in facts.drawn if facts.adapters.get(name, {}).get("kind") == "timeseries")
    adapter, section, head = facts.adapters[name], facts.section("data"), facts.drawn[name].head or {}
    found = []
    if adapter.get("lookback"):
        found.append(f"It sees the last {adapter['lookback']} steps of a series, and nothing before them.")
    if section.get("horizon"):
        found.append(
            f"It was trained {section['horizon']} steps ahead; longer forecasts go on from its own, and become less "
            "certain."
        )
    if head.get("kind") == "regression" and (facts.drawn[name].objective or {}).get("kind") == "next_block":
        found.append("It gives one value per step, and does not say how certain it is.")
    elif any("coverage" in metric for rows in forecasts(facts.evaluation).values() for metric in rows.get(OURS, {})):
        found.append(
            "Its intervals are as good as the coverage above says; outside of such data they may be too narrow."
        )
    return found


def _samples(facts: Facts) -> list[str]:
    found = ["It has no filter: nothing looks at what it draws."]
    sizes = {"image": "images of this size", "audio": "this sample rate", "video": "this size and rate"}
    found += [f"It was trained on {told} only." for kind, told in sizes.items() if kind in facts.kinds]
    if any(key.endswith("_bound") for key in flat(facts.evaluation)):
        found.append("Its likelihood is known as an estimated upper bound only.")
    return found
