"""Ground for all tests: one thread, no network, the same random numbers for every test, poisoned memory."""

from __future__ import annotations

import os

# Before the first import of torch, huggingface_hub or matplotlib: each reads its variable once.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import random
import subprocess
import sys
from pathlib import Path
from typing import Any

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


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """By scenario of `two_processes`, what each process found; under "folder" where it wrote."""
    folder, root = tmp_path_factory.mktemp("both"), Path(__file__).resolve().parents[1]
    others = {key: value for key, value in os.environ.items() if not key.startswith(("ACCELERATE", "FSDP"))}
    command = [sys.executable, "-m", "tests.two_processes", str(folder)]
    environment = others | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr[-3000:]
    names = sorted(path.name.removesuffix("-0.pt") for path in folder.glob("*-0.pt"))
    ranks = {
        name: [torch.load(folder / f"{name}-{rank}.pt", weights_only=False) for rank in range(2)] for name in names
    }
    return ranks | {"folder": [{"path": folder}]}
