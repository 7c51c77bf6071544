"""What a forecaster returns.

Shapes: B series, S sample paths, Q quantile levels, H steps of horizon.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .adapters import Series

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True, eq=False)
class Forecast:
    """Forecasts of B series.

    Attributes:
        mean: [B, H] float64, in the series' units.
        quantiles: [B, Q, H], increasing along Q; None for a head that gives a point only.
        levels: [Q], or None likewise.
        samples: [B, S, H] sample paths (S = 1 for a point).
        series: what was forecast.
    """

    mean: np.ndarray
    quantiles: np.ndarray | None
    levels: tuple[float, ...] | None
    samples: np.ndarray
    series: list[Series]

    def __repr__(self) -> str:
        """Sizes alone: a million numbers say less."""
        (count, paths, horizon), levels = self.samples.shape, list(self.levels or ())
        return f"Forecast(series={count}, horizon={horizon}, levels={levels}, samples={paths})"

    @property
    def median(self) -> np.ndarray:
        """[B, H]: the 0.5 quantile of the sample paths; the point itself where there is only one."""
        return np.median(self.samples, 1)

    def to_frame(self) -> pd.DataFrame:
        """A long table: item_id, timestamp (or step, from 1, where the series has no times), mean, and a column per
        quantile level named after it ("0.1")."""
        import pandas as pd

        tables = []
        for number, series in enumerate(self.series):
            times, horizon = self.times(number), self.mean.shape[1]
            when = {"step": np.arange(1, horizon + 1)} if times is None else {"timestamp": times[-horizon:]}
            table: dict[str, Any] = {"item_id": series.item_id, **when, "mean": self.mean[number]}
            for level, values in zip(self.levels or (), self._quantiles(number), strict=True):
                table[f"{level:g}"] = values
            tables.append(pd.DataFrame(table))
        return pd.concat(tables, ignore_index=True)

    def times(self, number: int) -> Any:
        """Timestamps of series `number` and of its horizon after it (a DatetimeIndex), or None where it has none."""
        series = self.series[number]
        if series.start is None or series.freq is None:
            return None
        import pandas as pd

        return pd.date_range(series.start, periods=len(series.values) + self.mean.shape[1], freq=series.freq)

    def _quantiles(self, number: int) -> Sequence[np.ndarray]:
        return () if self.quantiles is None else self.quantiles[number]
