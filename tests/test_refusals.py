"""What the core refuses before it could go wrong: contexts, groups, schedules, layouts and grids that do not fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.helpers import build, codes, hidden_states, label, labels
from unimodal_ar import Layout, Segment
from unimodal_ar.training.schedule import check_schedule

GRID = (1, 2, 2)
X = Segment("x", torch.tensor([[0, 1, 2, 1]]), GRID)


def test_a_context_conditions_only_what_comes_after_it() -> None:
    model = build({"x": codes(3, GRID), "y": codes(3, GRID), "label": label(conditioning=True)})
    y = X.replace(modality="y")
    with pytest.raises(
        ValueError, match="context 'label' comes after a target; what conditions norms acts on the whole"
    ):
        model([labels(1), X, labels(2), y])
    with pytest.raises(ValueError, match="context 'label' comes after a target"):
        model.generate([labels(1), X, labels(2)], "y")


def test_items_of_groups_without_a_start() -> None:
    model = build({"x": codes(3, (1, 4, 4), start="none")}).train()
    model.curricula["x"].group = 2
    with pytest.raises(ValueError, match="group of 'x' is 2; codes are grouped only under next-block, with a start"):
        model([Segment("x", torch.randint(0, 3, (2, 16)), (1, 4, 4))])


@pytest.mark.parametrize(
    ("modality", "schedule"),
    [
        (codes(3, (1, 4, 4), start="none", target_positions="learned"), {"x.random_order": [(0, 1.0), (1, 0.0)]}),
        (codes(3, (6, 1, 1)), {"x.group": [(0, 4), (0.5, 1)]}),
        (codes(3, (1, 4, 4), block=[8, 8]), {"x.group": [(0, 2), (0.5, 1)]}),
        (codes(3, (1, 4, 4), block={"cell": [1, 4, 4]}), {"x.group": [(0, 2), (0.5, 1)]}),
        (codes(3, (1, 6, 6), block=None, order="strided"), {"x.group": [(0, 2), (0.5, 1)]}),
        (codes(3, (1, 4, 4)), {"x.group": [(0, 2), (1, 1)]}),  # the last point is never reached
        (codes(3, (1, 4, 4)), {"x.group": [(0, float("inf")), (0.5, 1)]}),
        (codes(3, (1, 4, 4)), {"x.group": [(0, 2), (float("nan"), 1)]}),
    ],
    ids=str,
)
def test_schedules_that_fail_while_training_are_refused_before(modality: Any, schedule: Any) -> None:
    assert len(check_schedule(schedule, build({"x": modality}).config)) == 1


@pytest.mark.parametrize(
    "layouts",
    [{"xx": Layout.from_grid(GRID)}, {"x": Layout.from_grid((1, 1, 3))}, {"x": Layout.from_grid((1, 2, 3))}],
    ids=["unknown modality", "smaller grid", "larger grid"],
)
def test_layouts_that_do_not_fit_are_refused(layouts: Any) -> None:
    with pytest.raises(ValueError, match="layouts"):
        build({"x": codes(3, GRID)})([X], layouts=layouts)


def test_what_is_known_comes_first_in_training_too() -> None:
    model = build({"x": codes(3, GRID, order="random")}).train()
    known = torch.tensor([False, False, False, True])
    assert all(model.layout("x", GRID, known).index[0] == 3 for _ in range(8))


def test_known_of_the_wrong_length_or_type() -> None:
    for known in (torch.ones(3, dtype=torch.bool), torch.tensor([1, 0, 0, 0])):
        with pytest.raises(ValueError, match="known"):
            Layout.from_grid(GRID, "random", known=known)


def test_the_error_of_a_random_order_with_a_list_of_sizes_does_not_advise_random() -> None:
    model = build({"x": codes(3, (4, 1, 1), order="random", block=[1, 3])})
    given = Segment("x", X.values, (4, 1, 1), observed=torch.tensor([[True, True, False, False]]))
    with pytest.raises(ValueError) as raised:  # noqa: PT011
        model.generate([], "x", given=given)
    assert "order 'random' takes any elements" not in str(raised.value)


def test_the_conditioning_size_is_settled_where_only_positions_are_named() -> None:
    modalities = {"x": codes(3, GRID), "label": label(conditioning=True)}
    assert build(modalities, conditioning_positions=5).config.backbone.conditioning_size == 32


def test_positions_are_told_apart_on_grids_other_than_the_configured_one() -> None:
    """(1, 2, 2) strided shares no source, (1, 4, 4) does, and no target position was built."""
    model = build({"x": codes(3, GRID, block=None, order="strided")})
    segment = Segment("x", torch.zeros(1, 16, dtype=torch.long), (1, 4, 4))
    with pytest.raises(ValueError, match=r"grid of 'x' is \(1, 4, 4\), where elements read the same source"):
        model([segment])


def test_a_context_goes_ahead_alone_where_attention_takes_no_masks() -> None:
    """Label and row together are neither causal nor full; one after the other each is full."""

    def causal_or_full(module: Any, q: Any, k: Any, v: Any, mask: Any, **more: Any) -> Any:
        assert mask is None
        return sdpa_attention_forward(module, q, k, v, None, **more)

    ALL_ATTENTION_FUNCTIONS.register("causal_or_full", causal_or_full)
    model = build({"x": codes(3, GRID, block="row"), "label": label()})
    expected = [model.generate([labels(1)], "x", num_samples=n, temperature=0.0).values for n in (1, 2)]
    model.backbone.model.config._attn_implementation = "causal_or_full"
    for n, values in zip((1, 2), expected, strict=True):
        assert torch.equal(model.generate([labels(1)], "x", num_samples=n, temperature=0.0).values, values)


def test_guidance_needs_a_context_that_has_a_null_vector() -> None:
    model = build({"x": codes(3, GRID), "y": codes(3, GRID, null_probability=0.1)})
    with pytest.raises(ValueError, match=r"guidance_scale is 2.0; guidance needs a context segment"):
        model.generate([X.replace(modality="y")], "x", guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"modality is 'z'; this model knows \['x', 'y'\]"):
        model.generate([X.replace(modality="z")], "x", guidance_scale=2.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(order="random"), "is annealed to raster order; the modality's layout.order is 'random'"),
        (dict(order="neighbor", block=None), "is annealed to raster order; the modality's layout.order is 'neighbor'"),
        (dict(block="whole"), "has nothing to order; the modality's layout is a single block"),
    ],
)
def test_random_order_is_annealed_to_raster_only(changes: Any, message: str) -> None:
    config = build({"x": codes(3, (1, 4, 4), target_positions="fourier", **changes)}).config
    assert check_schedule({"x.random_order": [(0, 1.0), (0.5, 0.0)]}, config) == [f"schedule.x.random_order {message}"]


def test_an_order_that_does_not_go_with_a_grid_is_named() -> None:
    with pytest.raises(ValueError, match=r"order 'strided' does not go with grid \(1, 4, 4\) in blocks of \(1, 1, 4\)"):
        Layout.from_grid((1, 4, 4), "strided", "row")


def test_what_is_known_is_read_by_the_first_block_that_is_drawn() -> None:
    known = torch.arange(16) < 5
    layout = Layout.from_grid((1, 4, 4), "random", 4, known=known)
    assert layout.block_sizes == [1, 4, 4, 4, 3] and len(layout.unread_range(0, 2)) == 0


def test_nothing_is_looked_up_for_every_block_where_all_is_known() -> None:
    model = build({"x": codes(3, GRID)})
    observed = torch.tensor([[True, True, False, False]])
    parts = list(model.stream([], "x", given=X.replace(observed=observed)))
    assert parts[-1].observed is None
    with hidden_states(model) as states:
        model.generate([], "x", given=X.replace(observed=observed))
    assert [state.shape[1] for state in states] == [3, 1]
