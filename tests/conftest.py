"""Ground for all tests: one thread, no network, the same random numbers for every test, poisoned memory."""

from __future__ import annotations

import os

# Before the first import of torch, huggingface_hub or matplotlib: each reads its variable once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# No deadline: the first example pays for imports, and other processes share the cores. Derandomised: a failure in
# one run is a failure in every run.
settings.register_profile("house", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _same_ground() -> None:
    """Seeds every generator, and makes torch fill what `torch.empty` returns: NaN, or the largest integer.

    torch fills uninitialised memory only under deterministic algorithms; `warn_only`, because an operation that has
    no deterministic form is no failure. Set before each test, since the code under test may set it, too.
    """
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of reference vectors and data beside the repository, or where UNIMODAL_AR_SHARED says.

    Tests that use it are skipped where there is none; a variable that names no folder is an error.
    """
    repository = Path(__file__).resolve().parents[1]
    named = os.environ.get("UNIMODAL_AR_SHARED")
    if named is not None:
        if not Path(named).is_dir():
            raise ValueError(f"UNIMODAL_AR_SHARED is {named!r}, which is not a folder")
        return Path(named)
    for folder in (repository / "shared", repository.parent / "shared"):
        if folder.is_dir():
            return folder
    pytest.skip("no folder `shared` in or beside the repository, and UNIMODAL_AR_SHARED is not set")
