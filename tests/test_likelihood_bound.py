"""The likelihood bound of block diffusion against a sum over every mask, and a validation loss that can be compared."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import TrainingArguments

from unimodal_ar import Segment
from unimodal_ar.evaluation import bits_per_dimension, negative_log_likelihood
from unimodal_ar.evaluation.likelihood import nats_per_dimension
from unimodal_ar.objectives.noise import Noisy
from unimodal_ar.training import UnimodalARTrainer

from .helpers import build, codes, diffusion, noise_as, series

GRID = (4, 1, 1)
VALUES = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 1], [1, 1, 1, 0], [0, 2, 1, 2], [2, 0, 0, 0]])
MASK = diffusion("mask")


def batch(values: Tensor = VALUES) -> dict[str, Any]:
    return {"segments": [Segment("x", values, GRID)]}


def every_mask(model: Any, values: Tensor) -> Tensor:
    """[B]: the bound itself, a mean over the number k of masks in each block and over all k of its elements, of the
    masked elements' losses times L / k. Blocks do not see each other's masks, so the others are masked whole."""
    layout = model.layout("x", GRID)
    total = torch.zeros(len(values), dtype=torch.float64)
    for block, size in enumerate(layout.block_sizes):
        places = range(layout.block_range(block).start, layout.block_range(block).stop)
        for k in range(1, size + 1):
            subsets = list(itertools.combinations(places, k))
            for subset in subsets:
                masked = layout.block[None].expand(len(values), -1) != block
                masked[:, list(subset)] = True
                weights = torch.zeros(values.shape)
                weights[:, list(subset)] = size / k
                with noise_as(model, Noisy(layout.gather(values), masked=masked, weights=weights)), torch.no_grad():
                    losses = model(**batch(values)).element_losses["x"]
                total += losses.double().sum(1) / len(subsets) / size
    return total


@pytest.mark.parametrize("block", [2, 4, [1, 3]])
def test_the_estimate_is_that_of_the_sum_over_all_masks(block: Any) -> None:
    model = build({"x": codes(block=block, **MASK)})
    exact = float(every_mask(model, VALUES).mean()) / 4
    found = negative_log_likelihood(model, [batch(VALUES[:3]), batch(VALUES[3:])], 4, draws=150)
    assert not found.exact and 0 < found.error < 0.1
    assert abs(found.nats - exact) < 4 * found.error
    assert found.bits == pytest.approx(found.nats / math.log(2)) and found.bits_error > found.error


def test_the_standard_error_is_the_spread_of_estimates() -> None:
    model = build({"x": codes(block=4, **MASK)})
    found = [negative_log_likelihood(model, [batch(), batch(VALUES[:2])], 4, draws=4, seed=seed) for seed in range(80)]
    spread = torch.tensor([likelihood.nats for likelihood in found]).std()
    mean = torch.tensor([likelihood.error for likelihood in found]).square().mean().sqrt()
    assert 0.8 < mean / spread < 1.25


def test_blocks_of_one_have_nothing_random() -> None:
    """They are next-token prediction, whose likelihood is the sum over every element's loss when it alone is hidden."""
    model = build({"x": codes(block=1, **MASK)})
    found = negative_log_likelihood(model, [batch()], 4)
    assert found.error < 1e-7 and found.nats == pytest.approx(float(every_mask(model, VALUES).mean()) / 4, rel=1e-6)
    assert not found.exact  # nobody looked at the blocks


def test_next_block_is_exact_and_costs_one_pass() -> None:
    model, calls = build({"x": codes()}), []
    model.register_forward_hook(lambda *_: calls.append(1))
    found = negative_log_likelihood(model, [batch()], 4, draws=7)
    assert found.exact and found.error == 0 and len(calls) == 1
    assert found.bits == bits_per_dimension(model, [batch()], 4)


def test_a_seed_fixes_the_masks_and_nothing_outside_notices() -> None:
    model = build({"x": codes(block=4, **MASK)})
    model.train()
    model.embeddings.eval()
    before = torch.get_rng_state()
    first, second, third = (bits_per_dimension(model, [batch()], 4, draws=3, seed=seed) for seed in (1, 1, 2))
    assert first == second != third
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training and model.heads.training and not model.embeddings["x"].training


def test_densities_count_all_values_of_an_element() -> None:
    """With blocks of one the bound is exact: the head's own log-densities, of every element hidden alone."""
    values = torch.randn(3, 4, 2)
    model = build({"x": series(2, GRID, head={"kind": "mixture", "components": 2}, **MASK)})
    with torch.no_grad():
        losses = model([Segment("x", values, GRID)]).element_losses["x"]  # means over an element's values
    found = nats_per_dimension(model, [{"segments": [Segment("x", values, GRID)]}], 8, draws=2)
    assert found == pytest.approx(float(losses.double().sum(1).mean()) * 2 / 8, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            series(2, GRID, **diffusion("gaussian")),
            "the head of modality 'x' is a RegressionHead, which has no likelih",
        ),
        (series(2, GRID, **MASK), "the head of modality 'x' is a RegressionHead, which has no likelihood"),
        (codes(block=2, start="none", **MASK), "modality 'x' has no start vector; its first block has no likelihood"),
    ],
)
def test_what_has_no_likelihood_is_told(options: dict[str, Any], message: str) -> None:
    model = build({"x": options})
    values = VALUES if options["element"]["kind"] == "discrete" else torch.zeros(1, 4, 2)
    with pytest.raises(ValueError, match=message):
        negative_log_likelihood(model, [{"segments": [Segment("x", values, GRID)]}], 4)


def test_an_objective_without_a_likelihood_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build({"x": codes(block=4, **MASK)})
    monkeypatch.setattr(model.objectives["x"], "likelihood", None)
    with pytest.raises(
        ValueError, match=r"the objective of modality 'x' is .* no likelihood; next_block and block_diff"
    ):
        negative_log_likelihood(model, [batch()], 4)
    assert build({"x": series(2, GRID, **diffusion("gaussian"))}).objectives["x"].likelihood is None


def test_too_few_draws_are_told() -> None:
    with pytest.raises(ValueError, match="draws is 1; it must be at least 2, random masks of every example"):
        negative_log_likelihood(build({"x": codes(block=4, **MASK)}), [batch()], 4, draws=1)


# --- the validation loss in training ----------------------------------------------------------------------------------

NOISY: dict[str, Any] = {
    "mask": codes(block=2, **MASK),
    "gaussian": series(2, GRID, block=2, **diffusion("gaussian")),
    "flow": series(2, GRID, head={"kind": "flow"}),
}


def trainer(kind: str, folder: Path, **arguments: Any) -> UnimodalARTrainer:
    generator = torch.Generator().manual_seed(0)
    codes_of = torch.randint(3, (12, 4), generator=generator)
    vectors = torch.randn(12, 4, 2, generator=generator)
    values = codes_of if kind == "mask" else vectors
    examples = [[Segment("x", row[None], GRID)] for row in values]
    given: dict[str, Any] = dict(max_steps=6, per_device_train_batch_size=4, per_device_eval_batch_size=5, **arguments)
    given |= dict(report_to="none", save_strategy="no", disable_tqdm=True, remove_unused_columns=False, use_cpu=True)
    return UnimodalARTrainer(
        model=build({"x": NOISY[kind]}, spread=0.1),
        args=TrainingArguments(str(folder), **given),
        train_dataset=examples,
        eval_dataset=examples,
    )


@pytest.mark.parametrize("kind", list(NOISY))
def test_two_evaluations_of_the_same_weights_agree(kind: str, tmp_path: Path) -> None:
    made = trainer(kind, tmp_path)
    torch.rand(5)
    first = made.evaluate()["eval_loss"]
    torch.rand(5)
    assert made.evaluate()["eval_loss"] == first


@pytest.mark.parametrize("kind", list(NOISY))
def test_training_does_not_notice_its_evaluations(kind: str, tmp_path: Path) -> None:
    def weights(**arguments: Any) -> Iterator[Tensor]:
        made = trainer(kind, tmp_path, **arguments)
        made.train()
        assert len([entry for entry in made.state.log_history if "eval_loss" in entry]) == (3 if arguments else 0)
        model: Any = made.model
        return model.parameters()

    for one, other in zip(weights(), weights(eval_strategy="steps", eval_steps=2), strict=True):
        assert torch.equal(one, other)
