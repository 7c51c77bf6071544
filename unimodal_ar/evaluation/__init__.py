"""Evaluation of forecasts: metrics, rolling windows, baselines and pictures."""

from __future__ import annotations

from unimodal_ar.evaluation.baselines import repeat_last, seasonal_naive, with_residual_quantiles
from unimodal_ar.evaluation.forecast import (
    coverage,
    crps,
    evaluate,
    format_table,
    mae,
    mase,
    mse,
    rolling_windows,
    seasonal_naive_error,
    weighted_quantile_loss,
)
from unimodal_ar.evaluation.plots import Panel, plot_forecast, plot_panels

__all__ = [
    "Panel",
    "coverage",
    "crps",
    "evaluate",
    "format_table",
    "mae",
    "mase",
    "mse",
    "plot_forecast",
    "plot_panels",
    "repeat_last",
    "rolling_windows",
    "seasonal_naive",
    "seasonal_naive_error",
    "weighted_quantile_loss",
    "with_residual_quantiles",
]
