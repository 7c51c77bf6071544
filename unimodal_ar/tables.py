"""Tables as text."""

from __future__ import annotations

import math


def format_table(rows: dict[str, dict[str, float]]) -> str:
    """A plain-text table that is also Markdown: one row per method, one column per metric in order of appearance.

    Args:
        rows: {method: {metric: value}}. A metric that a method lacks is shown as "-". A column has as many decimals as
            give its largest value four significant digits.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows is empty; a table needs at least one method")
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    columns = [["method", *rows]]
    columns += [[name, *_format_column([row.get(name) for row in rows.values()])] for name in names]
    cells = [[cell.replace("|", r"\|") for cell in column] for column in columns]
    widths = [max(map(len, column)) for column in cells]
    lines = [
        "| " + " | ".join(f"{cell:{'>' if i else '<'}{widths[i]}}" for i, cell in enumerate(row)) + " |"
        for row in zip(*cells, strict=True)
    ]
    rule = "|" + "|".join(("-" * (width + 1) + ":") if i else "-" * (width + 2) for i, width in enumerate(widths)) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def _format_column(values: list[float | None]) -> list[str]:
    largest = max((abs(value) for value in values if value is not None and math.isfinite(value)), default=0.0)
    decimals = min(max(3 - math.floor(math.log10(largest)), 0), 8) if largest > 0 else 0
    return ["-" if value is None else f"{value:.{decimals}f}" for value in values]
