"""A forecaster as a GluonTS predictor, so that GluonTS's own `evaluate_model` and leaderboards can judge it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from ..adapters import read_series
from ..forecasting import Forecaster

try:
    from gluonts.dataset import Dataset
    from gluonts.dataset.util import forecast_start
    from gluonts.model.forecast import Forecast, SampleForecast
    from gluonts.model.predictor import Predictor
except ImportError:
    raise ImportError("the GluonTS predictor needs gluonts: pip install unimodal-ar[timeseries]") from None


class GluonTSPredictor(Predictor):
    """Predicts every entry of a GluonTS dataset of univariate series.

    Args:
        forecaster: the model; its covariates come from `feat_dynamic_real` (known) and `past_feat_dynamic_real`.
        prediction_length: H, in steps.
        num_samples: sample paths per series.
        seed: of the sample paths.
    """

    def __init__(self, forecaster: Forecaster, prediction_length: int, num_samples: int = 100, seed: int = 0) -> None:
        super().__init__(prediction_length=prediction_length)
        self.forecaster, self.num_samples, self.seed = forecaster, num_samples, seed

    def predict(self, dataset: Dataset, **kwargs: Any) -> Iterator[Forecast]:
        """Yields a SampleForecast (samples [S, H]) per entry, in order; GluonTS's extra arguments have no meaning here.

        Raises:
            ValueError: as `Forecaster.predict`; an entry that is not univariate or starts at no pd.Period.
        """
        entries = list(dataset)
        if not entries:
            return
        for number, entry in enumerate(entries):
            _check(entry, entry.get("item_id", number))
        forecast = self.forecaster.predict(
            read_series(entries), self.prediction_length, num_samples=self.num_samples, seed=self.seed
        )
        for entry, samples in zip(entries, forecast.samples, strict=True):
            start: pd.Period = forecast_start(entry)
            yield SampleForecast(
                samples=samples, start_date=start, item_id=entry.get("item_id"), info=entry.get("info")
            )


def _check(entry: Mapping[str, Any], name: Any) -> None:
    shape = np.shape(entry.get("target", ()))
    if len(shape) != 1:
        raise ValueError(f"target of {name!r} has shape {shape}; the predictor takes univariate series, [L]")
    if not isinstance(entry.get("start"), pd.Period):
        raise ValueError(f"start of {name!r} is {entry.get('start')!r}; it must be a pd.Period, as GluonTS makes it")
