"""Segments: what is accepted, what is refused and in which words, and how batches are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from unimodal_ar import Segment, collate


@dataclass(frozen=True)
class Scaled(Segment):
    """As an adapter's segment: it carries a tensor and a word of its own."""

    scale: Tensor | None = None
    unit: str = ""


def scaled(batch: int = 2, unit: str = "kW") -> Scaled:
    return Scaled("x", torch.randn(batch, 4, 2), (4, 1, 1), scale=torch.rand(batch, 1), unit=unit)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(grid=(2, 0, 1)), r"grid is \(2, 0, 1\); it must be three positive integers"),
        (dict(values=[1.0]), r"values of 'x' is a list; it must be a torch.Tensor"),
        (
            dict(values=torch.zeros(2, 4, dtype=torch.int32)),
            r"values of 'x' has dtype torch.int32; discrete values must",
        ),
        (dict(values=torch.zeros(2, 4, dtype=torch.bool)), r"values of 'x' has dtype torch.bool"),
        (
            dict(values=torch.zeros(2, 4)),
            r"values of 'x' has shape \(2, 4\); with grid \(4, 1, 1\) it must be \[B, N, D\]",
        ),
        (dict(values=torch.zeros(2, 5, 1)), r"has shape \(2, 5, 1\); with grid \(4, 1, 1\) .* with N = 4"),
        (dict(values=torch.zeros(4, dtype=torch.long)), r"has shape \(4,\); .* must be \[B, N\] or \[B, N, codes\]"),
        (dict(observed=torch.ones(2, 4)), r"observed of 'x' has dtype torch.float32; it must be torch.bool"),
        (dict(observed=torch.ones(2, 4, 3, dtype=torch.bool)), r"observed of 'x' has shape \(2, 4, 3\); it must be"),
        (dict(observed=torch.ones(4, dtype=torch.bool)), r"observed of 'x' has shape \(4,\); it must be \(2, 4\) or"),
        (dict(covariates=torch.ones(2, 4, 1, dtype=torch.long)), r"covariates of 'x' has dtype torch.int64"),
        (dict(covariates=torch.ones(2, 3, 1)), r"covariates of 'x' has shape \(2, 3, 1\); .* \(2, 4\)"),
        (dict(covariates=torch.ones(2, 4)), r"covariates of 'x' has shape \(2, 4\); it must be \[B, N, features\]"),
    ],
)
def test_wrong_fields_are_refused(changes: dict[str, Any], message: str) -> None:
    legal: dict[str, Any] = dict(modality="x", values=torch.zeros(2, 4, 2), grid=(4, 1, 1))
    Segment(**legal)
    with pytest.raises(ValueError, match=message):
        Segment(**(legal | changes))


def test_codes_are_observed_whole() -> None:
    values = torch.zeros(2, 4, 3, dtype=torch.long)
    Segment("x", values, (4, 1, 1), observed=torch.ones(2, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"observed of 'x' has shape \(2, 4, 3\); it must be \(2, 4\)$"):
        Segment("x", values, (4, 1, 1), observed=torch.ones(2, 4, 3, dtype=torch.bool))


def test_observed_by_element_and_by_value() -> None:
    values = torch.zeros(1, 3, 4)
    everything = Segment("x", values, (1, 3, 1))
    assert everything.element_observed.all() and everything.observed_fraction.tolist() == [[1, 1, 1]]
    elements = everything.replace(observed=torch.tensor([[True, False, True]]))
    assert elements.element_observed.tolist() == [[True, False, True]]
    assert elements.observed_fraction.tolist() == [[1, 0, 1]]
    by_value = torch.zeros(1, 3, 4, dtype=torch.bool)
    by_value[0, 0, :3] = True
    by_value[0, 2] = True
    fine = everything.replace(observed=by_value)
    assert fine.element_observed.tolist() == [[True, False, True]]
    assert fine.observed_fraction.tolist() == [[0.75, 0, 1]]
    assert fine.num_elements == 3 and fine.batch_size == 1


def test_a_subclass_keeps_its_fields() -> None:
    segment = scaled()
    assert segment.scale is not None
    repeated = segment.repeat_interleave(3)
    assert isinstance(repeated, Scaled) and repeated.unit == "kW"
    assert repeated.scale is not None and torch.equal(repeated.scale, segment.scale.repeat_interleave(3, 0))
    assert torch.equal(repeated.values[3], segment.values[1])
    chosen = segment.select(torch.tensor([1]))
    assert isinstance(chosen, Scaled) and chosen.scale is not None and torch.equal(chosen.scale, segment.scale[1:])
    moved = segment.to("meta")
    assert isinstance(moved, Scaled) and moved.scale is not None and moved.scale.device.type == "meta"
    assert moved.values.device.type == "meta"
    replaced = segment.replace(target=False)
    assert isinstance(replaced, Scaled) and replaced.scale is segment.scale and not replaced.target


def test_replace_checks_again() -> None:
    with pytest.raises(ValueError, match="values of 'x' has shape"):
        scaled().replace(grid=(5, 1, 1))


def test_collate_stacks_sequences() -> None:
    examples: list[Any] = [
        [scaled(1), Segment("y", torch.randint(0, 3, (1, 2)), (1, 2, 1), target=False)] for _ in range(3)
    ]
    batch: list[Any] = collate(examples)
    x, y = batch
    assert isinstance(x, Scaled) and x.scale is not None and x.values.shape == (3, 4, 2) and x.scale.shape == (3, 1)
    for row, (first, second) in enumerate(examples):
        assert torch.equal(x.select(slice(row, row + 1)).values, first.values)
        assert torch.equal(x.scale[row : row + 1], first.scale)
        assert torch.equal(y.values[row : row + 1], second.values)
    assert not y.target and x.target and y.grid == (1, 2, 1)


@pytest.mark.parametrize(
    "other",
    [
        dict(modality="z"),
        dict(grid=(1, 4, 1)),
        dict(target=False),
        dict(observed=torch.ones(1, 4, dtype=torch.bool)),
        dict(covariates=torch.ones(1, 4, 1)),
    ],
)
def test_collate_refuses_other_structures(other: dict[str, Any]) -> None:
    segment = Segment("x", torch.zeros(1, 4, 2), (4, 1, 1))
    assert len(collate([[segment], [segment]])) == 1
    with pytest.raises(ValueError, match="examples of one batch must share their structure; found"):
        collate([[segment], [segment.replace(**other)]])


@pytest.mark.parametrize("longer", [0, 1])
def test_collate_refuses_other_lengths(longer: int) -> None:
    segment = Segment("x", torch.zeros(1, 4, 2), (4, 1, 1))
    examples = [[segment], [segment]]
    examples[longer] = [segment, segment]
    with pytest.raises(ValueError, match="must share their structure"):
        collate(examples)


def test_collate_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="collate got no examples; it must get at least one"):
        collate([])


def test_collate_compares_whole_structures() -> None:
    one = Segment("x", torch.zeros(1, 2, dtype=torch.long), (2, 1, 1))
    assert collate([[one], [one]])[0].batch_size == 2
    for examples in ([[], [one]], [[one], [one, one]], [[one], [one.replace(target=False)]]):
        with pytest.raises(ValueError, match="must share their structure"):
            collate(examples)


def test_a_segment_shows_shapes_not_values() -> None:
    segment = Segment("x", torch.zeros(1, 4, 2), (4, 1, 1), target=False)
    assert repr(segment) == (
        "Segment(modality='x', values=<torch.float32 [1, 4, 2]>, grid=(4, 1, 1), observed=None, target=False, "
        "covariates=None)"
    )
