"""Every shipped recipe at toy size: what it makes is saved, and is the same in a fresh process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.test_training import _TOYS, _toy_backbone, _toy_codec
from unimodal_ar.adapters import load_adapters
from unimodal_ar.body_source import own_source
from unimodal_ar.training.documents import load_recipe, shipped_recipes
from unimodal_ar.training.peft import insert
from unimodal_ar.training.recipe import Resolved

CHILD = """
import sys, torch
from pathlib import Path
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True, warn_only=True)
from tests.test_recipe_parity import judged
from unimodal_ar.saving import load_model
found = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    batch = torch.load(folder / "batch.pt", weights_only=False)  # of the test's own
    found[folder.name] = judged(load_model(folder / "model", "cpu"), batch, folder / "model")
torch.save(found, sys.argv[2])
"""


def judged(model: Any, batch: Any, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The losses of a batch, and what the adapters in `folder` say of themselves."""
    torch.manual_seed(0)
    with torch.no_grad():
        losses = model(**batch).element_losses
    return losses, {name: adapter.config() for name, adapter in load_adapters(folder).items()}


def _saved(name: str, folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `judged` says before anything is loaded, of the recipe's model, which is in `folder` afterwards."""
    data = folder / "data"
    data.mkdir(parents=True)
    document = load_recipe(name)
    _toy_backbone(document["model"]["backbone"], data)
    _toy_codec(document, data)
    _TOYS[document["data"]["kind"]](document, data)
    resolved = Resolved(document)
    model = resolved.new_model().eval().float()
    if resolved.peft is not None:  # over the model that init_from names
        model.save_pretrained(folder / "base")
        model.refer_to(own_source(folder / "base", model.backbone.model))
        insert(model, resolved.peft)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # what no initialisation would give
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder / "model")
    for adapter in resolved.adapters.values():
        adapter.save_pretrained(folder / "model")
    dataset = resolved.data.train()
    batch = dataset.collate([dataset[0], dataset[len(dataset) - 1]])
    torch.save(batch, folder / "batch.pt")
    return judged(model, batch, folder / "model")


@pytest.fixture(scope="module")
def trips(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    """By recipe: here, and in another process."""
    root, out = tmp_path_factory.mktemp("recipes"), tmp_path_factory.mktemp("found") / "found.pt"
    here = {name: _saved(name, root / name.replace("/", "-")) for name in shipped_recipes()}
    repository = str(Path(__file__).resolve().parents[1])
    environment = os.environ | {"PYTHONPATH": repository, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", CHILD, str(root), str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=repository)
    assert done.returncode == 0, done.stderr
    return here, torch.load(out, weights_only=True)


@pytest.mark.parametrize("name", shipped_recipes())
def test_a_recipes_model_is_the_same_in_a_fresh_process(name: str, trips: Any) -> None:
    (losses, adapters), (found, theirs) = trips[0][name], trips[1][name.replace("/", "-")]
    assert theirs == adapters
    assert losses.keys() == found.keys() and all(x.isfinite().all() and x.abs().max() > 0 for x in losses.values())
    for modality, expected in losses.items():
        torch.testing.assert_close(found[modality], expected, rtol=1e-5, atol=1e-5)
