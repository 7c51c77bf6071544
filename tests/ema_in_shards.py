"""What two processes do together, for tests/test_ema.py; see two_processes.py, which runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_guard import BAD, LAYER, _after, _examples, _rows_of
from tests.test_guard import _trainer as _guarded
from unimodal_ar.training import EMA

from .helpers import build, series
from .test_ema import DATA, STEPS, _model, _trainer


def averaged(folder: Path) -> dict[str, Any]:
    """A training with an average, and the same again from the middle."""
    found: dict[str, Any] = {}
    for name, resume in (("whole", None), ("resumed", str(folder / "checkpoint-4"))):
        model, ema = _model(), EMA(0.9)
        trainer = _trainer(model, folder, ema, DATA, per_device_train_batch_size=2, **STEPS)
        trainer.train(resume_from_checkpoint=resume)
        with ema.averaged():
            state = trainer.gathered_state()
        found[name] = {"logs": trainer.state.log_history, "raw": ema.raw_weights(), "state": state}
        found[name]["sharded"] = [hasattr(x, "to_local") for x in model.parameters()]
    return found


def faulty(folder: Path) -> dict[str, Any]:
    """A training in which something is wrong with one example."""
    model = build({"x": series()}, spread=0.1)
    rows = _rows_of(model, BAD)
    _after(model, LAYER, lambda x: x.masked_fill(rows(), torch.nan))
    with pytest.raises(ValueError, match=r"^training diverged") as caught:
        _guarded(model, folder, _examples(), per_device_train_batch_size=3).train()
    return {"message": str(caught.value)}
