"""Per-sample noise: uniform, independent along every direction, and a function of (seed, sample) alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from tests.helpers import P_VALUE
from unimodal_ar.noise import SampleNoise, uniform


def noise(samples: int, seed: int = 0) -> SampleNoise:
    return SampleNoise(seed, torch.arange(samples))


def assert_uniform(values: torch.Tensor) -> None:
    assert stats.kstest(values.flatten().numpy(), "uniform").pvalue > P_VALUE


def assert_independent(first: torch.Tensor, second: torch.Tensor) -> None:
    """Neither linearly related nor in their joint leading bits."""
    a, b = first.flatten().numpy(), second.flatten().numpy()
    assert stats.pearsonr(a, b).pvalue > P_VALUE
    joint = np.bincount((a * 16).astype(int) * 16 + (b * 16).astype(int), minlength=256)
    assert stats.chisquare(joint).pvalue > P_VALUE
    low = np.bincount((a * 2**40 % 16).astype(int) * 16 + (b * 2**40 % 16).astype(int), minlength=256)
    assert stats.chisquare(low).pvalue > P_VALUE


@pytest.mark.parametrize("seed", [0, 1, -1, 2**63, -(2**70) - 5, 10**30])
def test_is_uniform(seed: int) -> None:
    assert_uniform(noise(4, seed).uniform((4, 5000)))  # along a stream
    assert_uniform(noise(20000, seed).uniform((20000, 1)))  # across samples


def test_lies_inside_the_open_interval() -> None:
    values = noise(100).uniform((100, 1000))
    assert values.dtype == torch.float64 and 0 < values.min() and values.max() < 1
    assert (-values.log()).log().isfinite().all()


def test_extreme_words_stay_inside_the_open_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    words = torch.tensor([[0, -1]])
    monkeypatch.setattr("unimodal_ar.noise._mix", lambda x: words if x.dim() == 2 else x)
    low, high = SampleNoise(0, torch.zeros(1)).uniform((1, 2))[0]
    assert 0 < low < 1e-15 and 1 - 1e-15 < high < 1


def test_neighbours_are_independent() -> None:
    values = noise(200).uniform((200, 200))
    assert_independent(values[:, :-1], values[:, 1:])  # along a stream
    assert_independent(values[:-1], values[1:])  # between samples
    assert_independent(values[:-1, :-1], values[1:, 1:])


def test_calls_and_seeds_are_independent() -> None:
    one = noise(200)
    first, second = one.uniform((200, 200)), one.uniform((200, 200))
    assert_independent(first, second)
    assert_independent(first[:, 1:], second[:, :-1])
    assert_independent(first, noise(200, 1).uniform((200, 200)))
    assert_independent(first[1:], noise(200, 1).uniform((200, 200))[:-1])


def test_no_value_comes_twice() -> None:
    one = noise(100)
    drawn = torch.cat([*(one.uniform((100, 50)) for _ in range(4)), noise(100, 1).uniform((100, 50))], 1)
    assert len(drawn.unique()) == drawn.numel()


def test_depends_on_seed_and_sample_alone() -> None:
    whole = noise(6, 7)
    first, second = whole.uniform((6, 3, 2)), whole.uniform((6, 5))
    for rows in ([0], [5], [1, 3], [4, 2, 0]):
        part = SampleNoise(7, torch.tensor(rows))
        assert torch.equal(part.uniform((len(rows), 3, 2)), first[rows])
        assert torch.equal(part.uniform((len(rows), 5)), second[rows])
    assert not torch.equal(noise(6, 8).uniform((6, 3, 2)), first)


def test_negative_and_huge_seeds_are_seeds_of_their_own() -> None:
    seeds = [0, 1, -1, 2**31, 2**63, 2**63 - 1, 12345678901234567890]
    drawn = torch.cat([noise(1, seed).uniform((1, 4)) for seed in seeds])
    assert len(drawn.unique()) == drawn.numel()
    assert torch.equal(noise(2, 2**64 + 3).uniform((2, 2)), noise(2, 3).uniform((2, 2)))  # modulo 2^64


def test_from_generator_takes_one_number_whatever_the_batch() -> None:
    one, many = (torch.Generator().manual_seed(3) for _ in range(2))
    small = SampleNoise.from_generator(one, torch.arange(1))
    large = SampleNoise.from_generator(many, torch.arange(1000))
    assert torch.equal(small.uniform((1, 4)), large.uniform((1000, 4))[:1])
    assert torch.equal(torch.rand(1, generator=one), torch.rand(1, generator=many))
    torch.manual_seed(3)
    assert torch.equal(SampleNoise.from_generator(None, torch.arange(1)).uniform((1, 1)), first_of(3))


def first_of(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SampleNoise.from_generator(generator, torch.arange(1)).uniform((1, 1))


def test_the_batch_must_be_the_number_of_samples() -> None:
    with pytest.raises(ValueError, match=r"shape is \(3, 2\); its first size must be the number of samples 4"):
        noise(4).uniform((3, 2))


def test_uniform_takes_every_source_of_randomness() -> None:
    device = torch.device("cpu")
    assert torch.equal(uniform((4, 2), noise(4), device), noise(4).uniform((4, 2)))
    drawn = [uniform((4, 2), torch.Generator().manual_seed(1), device) for _ in range(2)]
    assert torch.equal(*drawn) and drawn[0].dtype == torch.float64
    torch.manual_seed(1)
    assert torch.equal(uniform((4, 2), None, device), drawn[0])
    zero = torch.Generator().manual_seed(0)
    assert uniform((100000,), zero, device).min() > 0
