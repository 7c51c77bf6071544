"""What a schedule changes in training: groups of codes (NPP), random orders (RAR), and when."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import TrainingArguments

from tests.helpers import BACKBONES, build, codes, full_hidden, label, labels, series
from unimodal_ar import Segment
from unimodal_ar.training import UnimodalARTrainer
from unimodal_ar.training.schedule import Schedule, check_schedule, linear, stepwise

V, GRID = 5, (1, 4, 4)


def toy(backbone: str = "native", grid: Any = GRID, order: str = "raster", **more: Any) -> Any:
    return build({"label": label(), "x": codes(V, grid, more.pop("block", None), order, **more)}, backbone)


def image(batch: int = 3, grid: Any = GRID, **more: Any) -> Segment:
    n = grid[0] * grid[1] * grid[2]
    values = torch.randint(0, V, (batch, n), generator=torch.Generator().manual_seed(batch))
    return Segment("x", values, grid, **more)


def training(model: Any, group: int = 1, random_order: float = 0.0) -> Any:
    """A copy without dropout that is being trained."""
    model = copy.deepcopy(model).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # GPT-2 has some by default
            module.p = 0.0
    model.curricula["x"].group, model.curricula["x"].random_order = group, random_order
    return model


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same_gradients(model: Any, found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
    ours, theirs = gradients(model, found), gradients(model, expected)
    assert sum(bool(gradient.any()) for gradient in theirs.values()) > 10
    for name in ours.keys() | theirs.keys():  # what one of them does not use at all has no gradient there
        missing = torch.zeros_like(model.get_parameter(name))
        torch.testing.assert_close(ours.get(name, missing), theirs.get(name, missing), atol=1e-6, rtol=1e-5, msg=name)


def members(grid: tuple[int, int, int], group: int) -> list[list[int]]:
    """Raster indices of the codes of every k x k group, groups in raster order."""
    _, height, width = grid
    return [
        [(top + row) * width + left + column for row in range(group) for column in range(group)]
        for top in range(0, height, group)
        for left in range(0, width, group)
    ]


def next_patch_loss(model: Any, segment: Segment, group: int, context: Segment | None = None) -> Tensor:
    """Next Patch Prediction written out, for the native decoder: the mean embedding of each group, a causal sequence of
    groups, and the mean cross-entropy of all codes of the next group under one softmax."""
    width = segment.grid[2] // group
    groups = torch.tensor(members(segment.grid, group))
    codes_of = segment.values[:, groups]  # [B, groups, k * k]
    embedding = model.embeddings["x"]
    means = embedding.table(codes_of).mean(2)
    start = embedding.start.expand(len(means), 1, -1)
    sequence = torch.cat([start, means[:, :-1]], 1)
    read = [0, *range(len(groups) - 1)]  # the group whose place a position has; the start has its target's
    offset = 0 if context is None else 1
    coords = torch.tensor([[offset, place // width, place % width] for place in read])
    if context is not None:
        sequence = torch.cat([model.embeddings["label"].table(context.values), sequence], 1)
        coords = torch.cat([torch.zeros(1, 3, dtype=torch.long), coords])
    hidden = model.backbone.model(sequence, coords=coords[None]).last_hidden_state[:, offset:]
    logits = model.heads["x"].proj(hidden)[:, :, None].expand(-1, -1, codes_of.shape[2], -1)
    return cross_entropy(logits.flatten(0, 2), codes_of.flatten())


# --- groups of codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
def test_groups_of_one_are_next_token_prediction(backbone: str) -> None:
    """Bit for bit, loss and gradients."""
    model = training(toy(backbone), group=1)
    segments = [labels(0, 1, 2), image()]
    expected = gradients(model, model.eval()(segments).loss)
    loss = model.train()(segments).loss
    assert torch.equal(loss, model.eval()(segments).loss)
    found = gradients(model, loss)
    assert found.keys() == expected.keys() and len(found) > 10
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_groups_of_one_equal_the_formula() -> None:
    model = training(toy())
    same_gradients(model, model([labels(0, 1, 2), image()]).loss, next_patch_loss(model, image(), 1, labels(0, 1, 2)))


@pytest.mark.parametrize("context", [None, labels(0, 1, 2)], ids=["alone", "after a label"])
@pytest.mark.parametrize(("grid", "group"), [((1, 4, 4), 2), ((1, 4, 4), 4), ((1, 4, 6), 2), ((1, 6, 3), 3)])
def test_groups_are_next_patch_prediction(grid: Any, group: int, context: Segment | None) -> None:
    model, segment = training(toy(grid=grid), group), image(grid=grid)
    segments = [segment] if context is None else [context, segment]
    expected = next_patch_loss(model, segment, group, context)
    same_gradients(model, model(segments).loss, expected)
    assert (expected - model.eval()(segments).loss).abs() > 1e-3


def test_element_losses_lie_at_their_codes() -> None:
    model, segment = training(toy(), 2), image()
    losses = model([segment]).element_losses["x"]
    groups = torch.tensor(members(GRID, 2))
    hidden = full_hidden(model, [segment])
    log_p = model.heads["x"].proj(hidden).log_softmax(-1)  # [B, groups, V]
    for number, group in enumerate(groups.tolist()):
        for code in group:
            expected = -log_p[:, number].gather(-1, segment.values[:, code, None])[:, 0]
            torch.testing.assert_close(losses[:, code], expected)
    torch.testing.assert_close(model([segment]).losses["x"], losses.mean())


def test_a_group_is_predicted_from_the_groups_before_it() -> None:
    """By changing one code at a time."""
    model, segment = training(toy(), 2), image(1)
    groups, before = members(GRID, 2), full_hidden(model, [segment])
    for number, group in enumerate(groups):
        for code in group:
            values = segment.values.clone()
            values[0, code] = (values[0, code] + 1) % V
            moved = (full_hidden(model, [segment.replace(values=values)]) - before)[0].abs().amax(-1)
            assert (moved[: number + 1] == 0).all() and (moved[number + 1 :] > 1e-4).all()


@pytest.mark.parametrize(("grid", "cell"), [((8, 1, 1), (2, 1, 1)), ((2, 2, 4), (1, 2, 2)), ((2, 1, 6), (1, 1, 2))])
def test_groups_lie_in_frames_or_else_in_time(grid: Any, cell: tuple[int, int, int]) -> None:
    """Codes that are swapped within a group change nothing but the places of their losses."""
    model, segment = training(toy(grid=grid), 2), image(1, grid)
    t, row, column = (torch.arange(segment.num_elements) // size for size in (grid[1] * grid[2], grid[2], 1))
    coords = torch.stack([t, row % grid[1], column % grid[2]], 1) // torch.tensor(cell)
    alike = (coords[:, None] == coords[None]).all(-1)
    assert (alike.sum(1) == cell[0] * cell[1] * cell[2]).all()
    losses = model([segment]).element_losses["x"]
    for first in range(segment.num_elements):
        for second in range(first + 1, segment.num_elements):
            if segment.values[0, first] == segment.values[0, second]:
                continue
            swap = torch.arange(segment.num_elements)
            swap[[first, second]] = swap[[second, first]]
            swapped = model([segment.replace(values=segment.values[:, swap])]).element_losses["x"][:, swap]
            assert torch.allclose(swapped, losses, atol=1e-5) == bool(alike[first, second])


def test_groups_of_a_target_that_starts_from_its_context() -> None:
    model = training(toy(start="context"), 2)
    out = model([labels(0, 1, 2), image()])
    assert full_hidden(model, [labels(0, 1, 2), image()]).shape[1] == 4
    first = model.heads["x"].proj(full_hidden(model, [labels(0, 1, 2), image()])[:, 0]).log_softmax(-1)
    assert torch.allclose(out.element_losses["x"][:, [0, 1, 4, 5]], -first.gather(1, image().values[:, [0, 1, 4, 5]]))


@pytest.mark.parametrize("order", ["neighbor", "strided"])
def test_groups_have_the_order_of_their_own_grid(order: str) -> None:
    model = training(toy(grid=(1, 4, 8), order=order), 2)
    layout = model.layout("x", (1, 2, 4))
    hidden = full_hidden(model, [image(grid=(1, 4, 8))])
    assert hidden.shape[1] == len(layout) + len(layout.unread)


def test_covariates_of_a_group_are_their_mean() -> None:
    model = training(toy(covariates=2), 2)
    known = torch.randn(3, 16, 2)
    groups = torch.tensor(members(GRID, 2))
    means = known[:, groups].mean(2, keepdim=True).expand(-1, -1, 4, -1)
    same = torch.empty_like(known).index_copy(1, groups.flatten(), means.flatten(1, 2))
    losses = [model([image(covariates=covariates)]).loss for covariates in (known, same, known.flip(1))]
    torch.testing.assert_close(losses[0], losses[1])
    assert (losses[0] - losses[2]).abs() > 1e-3


def test_evaluation_and_generation_pay_no_heed() -> None:
    plain = toy(target_positions="fourier")
    model = training(plain, 2, random_order=1.0).eval()
    segments = [labels(0, 1, 2), image()]
    assert torch.equal(model(segments).element_losses["x"], plain(segments).element_losses["x"])
    drawn = [
        m.generate([labels(1)], "x", num_samples=4, generator=torch.Generator().manual_seed(0)).values
        for m in (plain, model, model.train())
    ]
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize("group", [1, 2, 4])
def test_the_loss_is_scaled_by_the_same_number_of_items(group: int) -> None:
    model = training(toy(), group)
    first, second = [labels(0, 1, 2), image(3)], [labels(4), image(1)]
    assert model.count_items(first) == 48
    torch.testing.assert_close(model(first, num_items_in_batch=48).loss, model(first).loss)
    total = model.count_items(first) + model.count_items(second)
    parts = sum(model(batch, num_items_in_batch=total).loss for batch in (first, second))
    both = [labels(0, 1, 2, 4), image(3).replace(values=torch.cat([image(3).values, image(1).values]))]
    torch.testing.assert_close(parts, model(both).loss)


def test_what_is_wholly_observed_may_say_so() -> None:
    model = training(toy(), 2)
    marked = image(observed=torch.ones(3, 16, dtype=torch.bool))
    assert torch.equal(model([marked]).loss, model([image()]).loss)


@pytest.mark.parametrize(
    ("group", "change", "sentence"),
    [
        (3, {}, "group of 'x' is 3, which does not divide its grid (1, 4, 4)"),
        (8, {}, "group of 'x' is 8, which does not divide its grid (1, 4, 4)"),
        (2, {"observed": torch.arange(16).expand(3, -1) > 0}, "group of 'x' is 2; codes are grouped only where all a"),
    ],
)
def test_what_cannot_be_grouped_is_refused(group: int, change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        training(toy(), group)([image(**change)])


# --- random orders ----------------------------------------------------------------------------------------------------


def test_without_a_share_no_random_numbers_are_drawn() -> None:
    model = training(toy())
    state = torch.get_rng_state()
    model([labels(0, 1, 2), image()])
    model.count_items([image()])
    assert torch.equal(torch.get_rng_state(), state)


def test_a_share_of_one_is_always_random_and_half_is_half() -> None:
    model = toy(target_positions="fourier")
    always, half = training(model, random_order=1.0), training(model, random_order=0.5)
    indices = [always.layout("x", GRID).index for _ in range(20)]
    assert len({tuple(index.tolist()) for index in indices}) == 20
    raster = [torch.equal(half.layout("x", GRID).index, torch.arange(16)) for _ in range(400)]
    assert 140 < sum(raster) < 260
    for other in (always.eval(), half.eval()):
        assert torch.equal(other.layout("x", GRID).index, torch.arange(16))


def test_the_share_is_of_one_modality() -> None:
    model = build({"x": codes(V, GRID), "y": codes(V, GRID), "label": label()}).train()
    model.curricula["x"].random_order = 1.0
    assert not torch.equal(model.layout("x", GRID).index, torch.arange(16))
    assert torch.equal(model.layout("y", GRID).index, torch.arange(16))
    assert len(model.layout("label", (1, 1, 1))) == 1 and set(model.curricula) == {"x", "y"}


def test_losses_in_a_drawn_order_are_those_of_that_order() -> None:
    model = training(toy(target_positions="learned"), random_order=1.0)
    segments = [labels(0, 1, 2), image()]
    torch.manual_seed(5)
    drawn = model(segments).element_losses["x"]
    torch.manual_seed(5)
    layout = model.layout("x", GRID)
    expected = model.eval()(segments, layouts={"x": layout}).element_losses["x"]
    torch.testing.assert_close(drawn, expected)
    assert (drawn - model(segments).element_losses["x"]).abs().max() > 1e-2


def test_groups_are_put_in_random_order_too() -> None:
    model = training(toy(target_positions="fourier"), group=2, random_order=1.0)
    orders = {tuple(model.layout("x", (1, 2, 2)).index.tolist()) for _ in range(60)}
    assert len(orders) > 10
    model([image()]).loss.backward()


# --- schedules --------------------------------------------------------------------------------------------------------


def test_groups_change_stepwise() -> None:
    points = [(0.0, 4), (0.25, 2), (0.75, 1)]
    fractions = [0.0, 0.1, 0.2499, 0.25, 0.5, 0.75, 0.9, 1.0]
    assert [stepwise(points, fraction) for fraction in fractions] == [4, 4, 4, 2, 2, 1, 1, 1]


def test_shares_change_linearly() -> None:
    points = [(0.0, 1.0), (0.5, 1.0), (0.75, 0.0)]
    found = [linear(points, fraction) for fraction in (0.0, 0.3, 0.5, 0.6, 0.625, 0.75, 0.9, 1.0)]
    assert found == pytest.approx([1, 1, 1, 0.6, 0.5, 0, 0, 0])
    assert linear([(0.0, 0.3)], 0.5) == 0.3
    assert linear([(0.0, 0.0), (1.0, 1.0)], 0.25) == 0.25


class Watched(UnimodalARTrainer):
    """Notes the curriculum of every forward pass."""

    seen: list[tuple[int, float, bool]]

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        curriculum = model.curricula["x"]
        self.seen.append((curriculum.group, curriculum.random_order, model.training))
        return super().compute_loss(model, inputs, *args, **kwargs)


def run(model: Any, folder: Path, schedule: Any, **arguments: Any) -> Watched:
    examples = [[labels(row % 5), image(1)] for row in range(16)]
    given: dict[str, Any] = dict(
        max_steps=8, per_device_train_batch_size=2, report_to="none", save_strategy="no", disable_tqdm=True
    )
    trainer = Watched(
        model=model,
        args=TrainingArguments(str(folder), remove_unused_columns=False, use_cpu=True, **given | arguments),
        train_dataset=examples,
        eval_dataset=examples[:2],
        callbacks=[Schedule(schedule, model)],
    )
    trainer.seen = []
    trainer.train()
    return trainer


SCHEDULE: dict[str, Any] = {
    "x.group": [(0, 4), (0.25, 2), (0.75, 1)],
    "x.random_order": [(0, 1.0), (0.25, 1.0), (0.75, 0.0)],
}
EXPECTED = [(4, 1.0), (4, 1.0), (2, 1.0), (2, 0.75), (2, 0.5), (2, 0.25), (1, 0.0), (1, 0.0)]


def test_the_trainer_sets_every_steps_values(tmp_path: Path) -> None:
    model = toy(target_positions="fourier")
    trainer = run(model, tmp_path, SCHEDULE, eval_strategy="steps", eval_steps=4)
    assert [(group, order) for group, order, training in trainer.seen if training] == EXPECTED
    assert sum(not training for *_, training in trainer.seen) >= 2
    assert model.curricula["x"].group == 1 and model.curricula["x"].random_order == 0.0


def test_micro_batches_of_a_step_have_its_values(tmp_path: Path) -> None:
    arguments: dict[str, Any] = dict(gradient_accumulation_steps=2)
    trainer = run(toy(target_positions="fourier"), tmp_path, SCHEDULE, **arguments)
    assert [(group, order) for group, order, _ in trainer.seen] == [value for value in EXPECTED for _ in range(2)]


def test_a_resumed_training_goes_on_where_it_was(tmp_path: Path) -> None:
    arguments: dict[str, Any] = dict(save_strategy="steps", save_steps=3)
    run(toy(target_positions="fourier"), tmp_path, SCHEDULE, **arguments)
    model = toy(target_positions="fourier")
    trainer = run(model, tmp_path / "other", SCHEDULE, max_steps=8)
    trainer.seen = []
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert [(group, order) for group, order, _ in trainer.seen] == EXPECTED[3:]


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        (
            {"x.groups": [(0, 1)]},
            "schedule has an unknown key 'x.groups'; legal keys are ['x.group', 'x.random_order', ",
        ),
        ({"group": [(0, 1)]}, "schedule has an unknown key 'group'; legal keys are "),
        ({"label.group": [(0, 1)]}, "schedule has an unknown key 'label.group'; legal keys are "),
        ({"x.group": []}, "schedule.x.group has points at []; they must begin at 0 and increase up to 1"),
        ({"x.group": [(0.1, 1)]}, "schedule.x.group has points at [0.1]; they must begin at 0 and increase up to 1"),
        ({"x.group": [(0, 2), (0.5, 2), (0.5, 1)]}, "schedule.x.group has points at [0, 0.5, 0.5]; they must begin"),
        ({"x.group": [(0, 2), (1.5, 1)]}, "schedule.x.group has points at [0, 1.5]; they must begin at 0 and"),
        ({"x.group": [(0, 2), (0.5, 2)]}, "schedule.x.group takes the values [2, 2]; they must be integers >= 1, and"),
        ({"x.group": [(0, 1.5), (0.5, 1)]}, "schedule.x.group takes the values [1.5, 1]; they must be integers >= 1"),
        ({"x.group": [(0, 0), (0.5, 1)]}, "schedule.x.group takes the values [0, 1]; they must be integers >= 1"),
        ({"x.group": [(0, 3), (0.5, 1)]}, "schedule.x.group takes the value 3, which does not divide the grid [1, 4,"),
        ({"patch.group": [(0, 2), (0.5, 1)]}, "schedule.patch.group groups codes; the modality's elements must be si"),
        ({"pair.group": [(0, 2), (0.5, 1)]}, "schedule.pair.group groups codes; the modality's elements must be sing"),
        ({"x.random_order": [(0, 1.5)]}, "schedule.x.random_order takes the values [1.5]; they must lie in [0, 1]"),
        ({"x.random_order": [(0, -0.5)]}, "schedule.x.random_order takes the values [-0.5]; they must lie in [0, 1]"),
        ({"x.random_order": [(0, 1.0), (1, 0.0)]}, "schedule.x.random_order needs the modality's target_positions, 'f"),
    ],
    ids=str,
)
def test_schedules_that_do_not_fit_are_refused(schedule: Any, problem: str) -> None:
    pair = codes(V, GRID, element={"kind": "discrete", "vocab_size": V, "codes": 2})
    model = build({"x": codes(V, GRID), "patch": series(grid=GRID), "pair": pair, "label": label()})
    (found,) = check_schedule(schedule, model.config)
    assert found.startswith(problem)
    with pytest.raises(ValueError, match=re.escape(problem)):
        Schedule(schedule, model)


def test_all_problems_are_told_and_what_fits_is_silent() -> None:
    config = toy().config
    wrong: dict[str, Any] = {"x.group": [(0, 3), (0.5, 1)], "y.group": [], "x.random_order": [(0, 2)]}
    assert len(check_schedule(wrong, config)) == 3
    assert check_schedule({}, config) == []
    starts = toy(target_positions="starts", block="row").config
    assert check_schedule({"x.random_order": [(0, 1.0), (1, 0.0)]}, starts)[0].endswith("they are 'starts'")
    for change in ({"target_positions": "fourier"}, {"target_positions": "learned"}, {"block": "row"}):
        assert check_schedule(SCHEDULE, toy(**change).config) == []
