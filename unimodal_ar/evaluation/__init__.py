"""Evaluation: of forecasts metrics, rolling windows, baselines and pictures; of images likelihoods and distances."""

from __future__ import annotations

from unimodal_ar.evaluation.baselines import repeat_last, seasonal_naive, with_residual_quantiles
from unimodal_ar.evaluation.forecast import (
    coverage,
    crps,
    evaluate,
    mae,
    mase,
    mse,
    rolling_windows,
    seasonal_naive_error,
    weighted_quantile_loss,
)
from unimodal_ar.evaluation.frechet import format_metrics, frechet_distance, image_metrics
from unimodal_ar.evaluation.likelihood import (
    Likelihood,
    bits_per_dimension,
    nats_per_dimension,
    negative_log_likelihood,
)
from unimodal_ar.evaluation.plots import Panel, plot_forecast, plot_panels

from ..tables import format_table

__all__ = [
    "Likelihood",
    "Panel",
    "bits_per_dimension",
    "coverage",
    "crps",
    "evaluate",
    "format_metrics",
    "format_table",
    "frechet_distance",
    "image_metrics",
    "mae",
    "mase",
    "mse",
    "nats_per_dimension",
    "negative_log_likelihood",
    "plot_forecast",
    "plot_panels",
    "repeat_last",
    "rolling_windows",
    "seasonal_naive",
    "seasonal_naive_error",
    "weighted_quantile_loss",
    "with_residual_quantiles",
]
