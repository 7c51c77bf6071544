"""Pictures of forecasts: a fan of prediction intervals behind the point forecast. matplotlib is imported when a
picture is asked for, and nothing of its global state is touched.

Shapes: L history steps, H horizon, Q quantile levels, S sample paths.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

from unimodal_ar.evaluation.forecast import check_levels, quantile_at

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from unimodal_ar.forecasting import Forecast

HISTORY, ACTUAL, FORECAST = "#555555", "#000000", "#1f5fa8"
FANS = ("#d6e4f2", "#b3cde6", "#86b0d8")
"""Opaque colours, outermost interval first: nested transparent ones would add up to something else."""
PREFERRED = (0.9, 0.8, 0.5)
DPI = 150


@dataclass(frozen=True)
class Panel:
    """One series in a picture.

    Args:
        history: [L] what came before, NaN where missing.
        forecast: [H] the point forecast to draw, median or mean.
        quantiles: [Q, H]; drawn are the intervals between two levels q and 1 - q nearest to 90, 80 and 50 %.
        levels: [Q] in (0, 1), increasing.
        actual: [H] what really happened, NaN where missing.
        timestamps: [L + H] of history and horizon (datetimes, datetime64 or a DatetimeIndex, with or without a time
            zone). None: steps, the last of the history being 0.
        title: a line above the panel, the place for a name and a unit.
        samples: [S, H] sample paths to draw as thin lines.

    Raises:
        ValueError: a shape does not fit, or no two levels enclose an interval.
    """

    history: ArrayLike
    forecast: ArrayLike
    quantiles: ArrayLike | None = None
    levels: ArrayLike | None = None
    actual: ArrayLike | None = None
    timestamps: Any = None
    title: str | None = None
    samples: ArrayLike | None = None

    def __post_init__(self) -> None:
        length, horizon = np.size(self.history), np.size(self.forecast)
        self._check("history", self.history, (length,))
        self._check("forecast", self.forecast, (horizon,))
        if length == 0 or horizon == 0:
            raise ValueError(f"history has {length} steps and forecast {horizon}; both need at least 1")
        if (self.quantiles is None) != (self.levels is None):
            raise ValueError("quantiles and levels must be given together")
        if self.levels is not None:
            self._check("quantiles", self.quantiles, (len(check_levels(self.levels)), horizon))
            self.intervals()
        self._check("actual", self.actual, (horizon,))
        self._check("timestamps", self.timestamps, (length + horizon,))
        self._check("samples", self.samples, (*np.asarray(self.samples).shape[:1], horizon))

    def intervals(self) -> list[float]:
        """Probabilities of the intervals to draw, outermost first: the available ones nearest to the preferred."""
        return [] if self.levels is None else intervals_of(self.levels)

    def _check(self, name: str, value: Any, shape: tuple[int, ...]) -> None:
        if value is not None and np.shape(value) != shape:
            raise ValueError(f"{name} has shape {np.shape(value)}; history and forecast ask for {shape}")


def intervals_of(levels: ArrayLike) -> list[float]:
    """Probabilities of the intervals that a picture of quantiles at `levels` shows, outermost first.

    Raises:
        ValueError: the levels do not increase inside (0, 1), or no two of them enclose an interval.
    """
    checked = check_levels(levels)
    available = [
        round(1 - 2 * q, 9) for q in checked if q < 0.5 and np.isclose(checked, 1 - q, rtol=0, atol=1e-9).any()
    ]
    if not available:
        raise ValueError(f"levels are {checked.tolist()}; no two enclose an interval, as 0.1 and 0.9 do")
    nearest = {min(available, key=lambda width: (round(abs(width - wish), 9), -width)) for wish in PREFERRED}
    return sorted(nearest, reverse=True)


def forecast_panels(forecast: Forecast, most: int = 6, history: int | None = None) -> list[Panel]:
    """A panel for each of the first `most` series of a forecast, with `history` steps before it (None: three horizons,
    but at least 48)."""
    horizon, panels = forecast.mean.shape[1], []
    for number, series in enumerate(forecast.series[:most]):
        shown = min(len(series.values), history or max(3 * horizon, 48))
        times = forecast.times(number)
        panels.append(
            Panel(
                series.values[-shown:],
                forecast.median[number],
                None if forecast.quantiles is None else forecast.quantiles[number],
                forecast.levels,
                timestamps=None if times is None else times[-shown - horizon :],
                title=series.item_id,
            )
        )
    return panels


def plot_forecast(
    path: str | Path,
    history: ArrayLike,
    forecast: ArrayLike,
    quantiles: ArrayLike | None = None,
    levels: ArrayLike | None = None,
    actual: ArrayLike | None = None,
    timestamps: Any = None,
    title: str | None = None,
    samples: ArrayLike | None = None,
) -> None:
    """Writes a picture (10 x 4 inches at 150 dpi) of one forecast to `path`; arguments as in `Panel`, path and errors
    as in `plot_panels`."""
    plot_panels(path, [Panel(history, forecast, quantiles, levels, actual, timestamps, title, samples)])


def plot_panels(path: str | Path, panels: Sequence[Panel], title: str | None = None) -> None:
    """Writes small multiples, one panel per series, to `path`: one column of up to three panels, two columns of more.

    Args:
        path: .png, .svg, .pdf or any other suffix that matplotlib writes. The file is written whole or not at all.
        panels: at least one.
        title: a line above everything.

    Raises:
        ValueError: no panels, or a suffix that matplotlib does not write.
        ImportError: matplotlib is not installed.
    """
    if not panels:
        raise ValueError("panels is empty; a picture needs at least one")
    kind = picture_format(path)
    whole = io.BytesIO()
    _figure(panels, title).savefig(whole, format=kind, dpi=DPI)
    Path(path).write_bytes(whole.getvalue())


def picture_format(path: str | Path) -> str:
    """The format that the suffix of `path` asks for, or the ValueError or ImportError of `plot_panels`."""
    suffix = Path(path).suffix
    legal = sorted(_matplotlib()[1].get_supported_filetypes())
    if suffix.removeprefix(".").lower() not in legal:
        raise ValueError(f"path {str(path)!r} has the suffix {suffix!r}; it must be one of {legal}")
    return suffix.removeprefix(".").lower()


def _matplotlib() -> tuple[type[Figure], type[FigureCanvasAgg]]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs matplotlib: pip install unimodal-ar[demo]") from error
    return Figure, FigureCanvasAgg


def _figure(panels: Sequence[Panel], title: str | None) -> Figure:
    new_figure, canvas = _matplotlib()
    columns = 1 if len(panels) <= 3 else 2
    rows = -(-len(panels) // columns)
    figure = new_figure(figsize=(10, 4 if rows == 1 else 0.8 + 2.6 * rows), layout="constrained")
    canvas(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, panel in zip(axes, panels, strict=False):
        _draw(axis, panel, dates=(3, 8) if columns == 1 else (2, 5))
    for axis in axes[len(panels) :]:
        axis.remove()
    if title is not None:
        figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    _add_legend(figure, list(axes[: len(panels)]))
    return figure


def _add_legend(figure: Figure, axes: list[Axes]) -> None:
    """One legend for all panels, lines before the intervals behind them."""
    entries: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            entries.setdefault(label, handle)
    labels = sorted(entries, key=lambda label: label.endswith("interval"))
    handles = [entries[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)


def _draw(axis: Axes, panel: Panel, dates: tuple[int, int]) -> None:
    """`dates`: the fewest and the most dates to write below it."""
    history = np.asarray(panel.history, dtype=np.float64)
    length, horizon = len(history), np.size(panel.forecast)
    steps = np.arange(1 - length, horizon + 1) if panel.timestamps is None else np.asarray(panel.timestamps)
    # Joined to the last observation: it is one curve, and the gap would look like missing data. This also shows the fan
    # of a single step.
    joins = bool(np.isfinite(history[-1]))
    future = steps[length - joins :]
    _line(axis, steps[:length], history, color=HISTORY, linewidth=1.1, label="history")
    _draw_fan(axis, panel, future, history[length - joins :])
    if panel.samples is not None:
        paths = np.asarray(panel.samples, dtype=np.float64)
        for i, path in enumerate(paths):
            path = np.concatenate([history[length - joins :], path])
            axis.plot(future, path, color=FORECAST, alpha=0.35, linewidth=0.6, label=None if i else "samples")
    forecast = np.concatenate([history[length - joins :], np.asarray(panel.forecast, dtype=np.float64)])
    _line(axis, future, forecast, color=FORECAST, linewidth=1.8, label="forecast")
    if panel.actual is not None:
        actual = np.concatenate([history[length - joins :], np.asarray(panel.actual, dtype=np.float64)])
        _line(axis, future, actual, color=ACTUAL, linewidth=0.9, label="actual")
    axis.axvline(steps[length - 1], color="#999999", linewidth=0.8, linestyle=(0, (2, 3)), zorder=0)
    _dress(axis, panel)
    if panel.timestamps is None:
        axis.set_xlabel("steps ahead", fontsize=9)
    else:
        _label_dates(axis, getattr(steps[0], "tzinfo", None), dates)


def _line(axis: Axes, x: np.ndarray, y: np.ndarray, color: str, **style: Any) -> None:
    """A line, with a dot for every value that has no neighbour to be joined to."""
    axis.plot(x, y, color=color, **style)
    seen = np.pad(np.isfinite(y), 1)
    lone = seen[1:-1] & ~seen[:-2] & ~seen[2:]
    axis.plot(x[lone], y[lone], color=color, linestyle="none", marker="o", markersize=3)


def _draw_fan(axis: Axes, panel: Panel, future: np.ndarray, last: np.ndarray) -> None:
    """`last`: the last observation, [1], if the fan is to begin there, else empty."""
    if panel.quantiles is None or panel.levels is None:
        return
    for width, color in zip(panel.intervals(), FANS, strict=False):
        lower, upper = (quantile_at(panel.quantiles, panel.levels, 0.5 + side * width / 2) for side in (-1, 1))
        assert lower is not None and upper is not None
        lower, upper = np.concatenate([last, lower]), np.concatenate([last, upper])
        axis.fill_between(future, lower, upper, color=color, linewidth=0, label=f"{100 * width:.3g} % interval")


def _dress(axis: Axes, panel: Panel) -> None:
    axis.grid(True, color="#e8e8e8", linewidth=0.6)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#999999")
    axis.tick_params(color="#999999", labelsize=9)
    axis.margins(x=0.01)
    if panel.title is not None:
        # Names are data: a dollar sign is no formula.
        axis.set_title(textwrap.shorten(panel.title, 60), loc="left", fontsize=11, parse_math=False)


def _label_dates(axis: Axes, zone: tzinfo | None, dates: tuple[int, int]) -> None:
    """Dates in the series' own time zone, between `dates` many."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(tz=zone, minticks=dates[0], maxticks=dates[1])
    formatter = ConciseDateFormatter(locator, tz=zone)
    # A bare day, matplotlib's choice, leaves open which month it belongs to.
    formatter.formats[2] = formatter.zero_formats[2] = formatter.zero_formats[3] = "%d %b"
    formatter.offset_formats[2] = "%Y"
    formatter.offset_formats[3] = formatter.offset_formats[4] = "%d %b %Y"
    axis.xaxis.set_major_locator(locator)
    axis.xaxis.set_major_formatter(formatter)
