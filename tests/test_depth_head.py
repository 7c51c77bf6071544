"""The depth head: a normalised joint of an element's codes, and samples from exactly that joint."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import P_VALUE, all_sequences, build, chi_square, codes, frequencies, label, labels, perturb
from unimodal_ar import Segment
from unimodal_ar.heads import DepthHead, build_head
from unimodal_ar.noise import SampleNoise
from unimodal_ar.schema import DiscreteElement

HIDDEN, V, K = 8, 3, 3
EVERY = all_sequences(V, K)
DRAWS = 20_000


def depth(vocab_size: int = V, count: int = K, merge: bool = False, spread: float = 0.6, **options: Any) -> DepthHead:
    torch.manual_seed(0)
    element = DiscreteElement(kind="discrete", vocab_size=vocab_size, codes=count, merge=merge)
    head = build_head(HIDDEN, element, {"kind": "depth_ar", "heads": 2, **options})
    assert isinstance(head, DepthHead)
    perturb(head, spread)
    return head


def some_hidden(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed))


def noise(count: int, seed: int = 0) -> SampleNoise:
    return SampleNoise(seed, torch.arange(count))


def joint(head: DepthHead, hidden: Tensor) -> Tensor:
    """[V^K] float64 probabilities of all codes given hidden [H]."""
    return head.log_prob(hidden.expand(len(EVERY), -1), EVERY).double().exp().detach()


def conditionals(probability: Tensor) -> list[Tensor]:
    """log p(c_k | c_<k) as [V] * (k + 1) tables, k = 0..K-1, of a joint [V^K]."""
    full = probability.view([V] * K)
    marginals = [full.sum(tuple(range(k + 1, K))) if k + 1 < K else full for k in range(K)]
    return [(p / p.sum(-1, keepdim=True)).log() for p in marginals]


def product(tables: list[Tensor]) -> Tensor:
    """[V^K] the joint of conditional log-probabilities, each normalised first."""
    normal = [table.log_softmax(-1).view(*table.shape, *[1] * (K - table.dim())) for table in tables]
    return sum(normal, torch.zeros([V] * K, dtype=torch.float64)).exp().flatten()


def greedy(tables: list[Tensor]) -> list[int]:
    drawn: list[int] = []
    for table in tables:
        drawn.append(int(table[tuple(drawn)].argmax()))
    return drawn


# --- the joint --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("options", [{}, {"layers": 1, "width": 12, "heads": 3}])
def test_the_joint_sums_to_one(merge: bool, options: dict[str, Any]) -> None:
    head = depth(merge=merge, **options).double()
    for hidden in some_hidden(3).double():
        assert abs(joint(head, hidden).sum() - 1) < 1e-12
    assert (joint(head, some_hidden().double()) - joint(head, some_hidden(seed=3).double())).abs().max() > 0.01


@pytest.mark.parametrize("merge", [False, True])
def test_a_code_follows_all_codes_before_it(merge: bool) -> None:
    """Each conditional distribution changes with each earlier code (and, the joint being normalised, with no later)."""
    tables = conditionals(joint(depth(merge=merge), some_hidden()))
    for k, table in enumerate(tables):
        for axis in range(k):
            assert (table - table.roll(1, axis)).abs().max() > 0.01, (k, axis)


def test_loss_is_the_negative_log_probability_in_any_shape() -> None:
    head, hidden = depth(), some_hidden(2, 5)
    values = torch.randint(V, (2, 5, K), generator=torch.Generator().manual_seed(0))
    loss = head.loss(hidden, values)
    assert loss.shape == (2, 5)
    for b in range(2):
        for n in range(5):
            torch.testing.assert_close(loss[b, n], -head.log_prob(hidden[b, n], values[b, n]))


def test_codes_have_tables_of_their_own_unless_merged() -> None:
    def sizes(head: DepthHead) -> tuple[int, int]:
        return len(head.table.weight), sum(len(weight) for weight in head.projections.parameters())

    assert sizes(depth(7, 4)) == (3 * 7, 4 * 7)  # the last code is read by none
    assert sizes(depth(7, 4, merge=True)) == (7, 7)


@pytest.mark.parametrize("kind", ["depth_ar", "categorical"])
def test_what_it_learns_is_correlated(kind: str) -> None:
    """(0, 1) and (1, 0) at equal odds: ln 2 nats for the pair, but 2 ln 2 for codes that are drawn in parallel."""
    torch.manual_seed(0)
    head = build_head(HIDDEN, DiscreteElement(kind="discrete", vocab_size=2, codes=2), {"kind": kind})
    hidden, first = torch.ones(64, HIDDEN), torch.arange(64) % 2
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    pairs = torch.stack([first, 1 - first], -1)
    for _ in range(100):
        optimizer.zero_grad()
        head.loss(hidden, pairs).mean().backward()
        optimizer.step()
    expected = math.log(2) if kind == "depth_ar" else 2 * math.log(2)
    assert abs(head.loss(hidden, pairs).mean().item() - expected) < 0.02


# --- what is not observed ---------------------------------------------------------------------------------------------


def test_unobserved_elements_neither_count_nor_poison() -> None:
    head, hidden = depth(), some_hidden(2, 3).requires_grad_()
    values = torch.randint(V, (2, 3, K), generator=torch.Generator().manual_seed(0))
    observed = torch.tensor([[True, False, True], [True, True, False]])
    loss = head.loss(hidden, torch.where(observed[..., None], values, -100), observed)
    torch.testing.assert_close(loss, torch.where(observed, head.loss(hidden, values), 0))
    loss.sum().backward()
    assert hidden.grad is not None and torch.equal((hidden.grad != 0).any(-1), observed)
    with pytest.raises((RuntimeError, IndexError)):  # an observed code of -100 is an error, not "no loss"
        head.loss(hidden, torch.full_like(values, -100))


def test_a_mask_of_single_codes_is_refused() -> None:
    head, hidden, values = depth(), some_hidden(2, 3), torch.zeros(2, 3, K).long()
    message = r"observed has shape \(2, 3, 3\); it must be \(2, 3\), because DepthHead .* observed as a whole or not at"
    with pytest.raises(ValueError, match=message):
        head.loss(hidden, values, torch.ones(2, 3, K, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"values have shape \(2, 3\); .* ask for \(2, 3, 3\)"):
        head.loss(hidden, values[..., 0])


# --- sampling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_samples_are_drawn_from_the_joint(merge: bool, temperature: float) -> None:
    head, hidden = depth(merge=merge), some_hidden()
    probability = joint(head, hidden)
    claimed = product([table / temperature for table in conditionals(probability)])
    if temperature == 1:
        torch.testing.assert_close(claimed, probability, rtol=1e-4, atol=1e-6)
    for generator in (torch.Generator().manual_seed(0), noise(DRAWS)):
        drawn = head.sample(hidden.expand(DRAWS, 1, -1), generator, temperature)
        assert drawn.shape == (DRAWS, 1, K) and drawn.dtype == torch.long
        assert chi_square(frequencies(drawn[:, 0], V), claimed.numpy()) > P_VALUE


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.6}, {"top_k": 2, "top_p": 0.8}])
def test_truncation_acts_on_every_code(options: dict[str, Any]) -> None:
    head, hidden = depth(), some_hidden()
    kept = []
    for table in conditionals(joint(head, hidden)):
        ordered, order = table.sort(-1, descending=True)
        ordered[..., options.get("top_k", V) :] = -torch.inf
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        ordered[before >= options.get("top_p", 1.0)] = -torch.inf
        kept.append(torch.zeros_like(table).scatter(-1, order, ordered))
    claimed = product(kept)
    assert (claimed == 0).any()
    drawn = head.sample(hidden.expand(DRAWS, -1), noise(DRAWS), **options)
    assert chi_square(frequencies(drawn, V), claimed.numpy()) > P_VALUE


def test_temperature_0_takes_the_most_probable_code_every_time() -> None:
    head, hidden = depth(), some_hidden(30)
    expected = [greedy(conditionals(joint(head, one))) for one in hidden]
    assert len({tuple(drawn) for drawn in expected}) > 3
    assert head.sample(hidden, temperature=0).tolist() == expected


@pytest.mark.parametrize("merge", [False, True])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_combines_the_logits_of_every_code(merge: bool, scale: float) -> None:
    head, hidden, free = depth(merge=merge), some_hidden(), some_hidden(seed=3)
    with_it, without = conditionals(joint(head, hidden)), conditionals(joint(head, free))
    guided = [u + scale * (c - u) for c, u in zip(with_it, without, strict=True)]
    claimed = product(guided)
    if scale == 3:  # what guiding hidden states, as for linear heads, would draw is something else
        assert (claimed - joint(head, free + scale * (hidden - free))).abs().max() > 0.02
    sizes = (DRAWS, 1, -1)
    drawn = head.sample_guided(hidden.expand(sizes), free.expand(sizes), scale, generator=noise(DRAWS))
    assert drawn.shape == (DRAWS, 1, K)
    assert chi_square(frequencies(drawn[:, 0], V), claimed.numpy()) > P_VALUE
    assert head.sample_guided(hidden[None], free[None], scale, temperature=0).tolist() == [greedy(guided)]


def test_a_sample_does_not_depend_on_the_batch() -> None:
    head, hidden, free = depth(), some_hidden(7, 4), some_hidden(7, 4, seed=3)
    together = head.sample(hidden, noise(7, seed=5))
    guided = head.sample_guided(hidden, free, 2.0, generator=noise(7, seed=5))
    for i in range(7):
        one = slice(i, i + 1)
        assert torch.equal(head.sample(hidden[one], SampleNoise(5, torch.tensor([i])))[0], together[i])
        alone = head.sample_guided(hidden[one], free[one], 2.0, generator=SampleNoise(5, torch.tensor([i])))
        assert torch.equal(alone[0], guided[i])
    assert not torch.equal(head.sample(hidden, noise(7, seed=6)), together)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature is -0.1; it must be a finite number >= 0"),
        ({"top_k": 0}, "top_k is 0; it must be an integer >= 1"),
        ({"top_p": 1.1}, r"top_p is 1.1; it must lie in \(0, 1\]"),
    ],
)
def test_sampling_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depth().sample(some_hidden(1), **options)
    with pytest.raises(ValueError, match=message):
        depth().sample_guided(some_hidden(1), some_hidden(1), 2.0, **options)


# --- construction, precision, and life in a model ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 3}, "head.heads is 3; it must divide the depth transformer's width 8"),
        ({"width": 10, "heads": 4}, "head.heads is 4; it must divide the depth transformer's width 10"),
        ({"layers": 0}, "head.layers is 0"),
        ({"depth": 2}, "head has an unknown key 'depth'"),
    ],
)
def test_config_errors(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depth(**options)


def test_a_single_code_is_refused() -> None:
    message = "element.codes is 1; DepthHead needs at least 2 codes"
    with pytest.raises(ValueError, match=message):
        build_head(HIDDEN, DiscreteElement(kind="discrete", vocab_size=3), {"kind": "depth_ar"})


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_hidden_gives_float32_losses(autocast: bool) -> None:
    head, hidden = depth(spread=0.3), some_hidden(4, 5).bfloat16()
    target = torch.randint(V, (4, 5, K), generator=torch.Generator().manual_seed(0))
    exact = head.double().loss(hidden.double(), target)
    assert exact.dtype == torch.float64
    head.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = head.loss(hidden, target)
        loss.sum().backward()
        drawn = head.sample_guided(hidden, hidden, 2.0, generator=torch.Generator().manual_seed(0))
    assert loss.dtype == torch.float32 and drawn.shape == (4, 5, K)
    assert all(parameter.grad is not None for parameter in head.parameters())
    tolerance = 0.1 if autocast else 1e-4
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=tolerance)
    low = head.bfloat16().loss(hidden, target)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), exact, rtol=0.1, atol=0.1)


def model_of_pairs(**more: Any) -> Any:
    element = {"kind": "discrete", "vocab_size": V, "codes": 2, **more}
    kind = codes(V, (2, 1, 1), element=element, head={"kind": "depth_ar", "layers": 1})
    return build({"x": kind, "label": label(null_probability=0.1)}, spread=0.1)


@pytest.mark.parametrize("more", [{}, {"merge": True}])
def test_generate_draws_the_joint_that_forward_states(more: dict[str, Any]) -> None:
    model = model_of_pairs(**more)
    every = all_sequences(V, 4)
    losses = model([labels(2).repeat_interleave(len(every)), Segment("x", every.view(-1, 2, 2), (2, 1, 1))])
    probability = (-losses.element_losses["x"].double().sum(1)).exp().detach().numpy()
    assert abs(probability.sum() - 1) < 1e-5
    drawn = model.generate([labels(2)], "x", num_samples=6000, generator=torch.Generator().manual_seed(0)).values
    assert drawn.shape == (6000, 2, 2)
    assert chi_square(frequencies(drawn.flatten(1), V), probability) > P_VALUE


def test_saved_and_loaded_it_is_the_same(tmp_path: Any) -> None:
    model = model_of_pairs()
    batch = [labels(2), Segment("x", torch.tensor([[[0, 2], [1, 1]]]), (2, 1, 1))]
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)  # built on the meta device
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.modalities["x"]["head"] == {"kind": "depth_ar", "layers": 1, "width": None, "heads": 4}
    assert torch.equal(loaded.eval()(batch).element_losses["x"], model(batch).element_losses["x"])


def test_it_starts_as_transformers_initialises() -> None:
    """Every parameter is one that transformers' rules reach: a fresh model holds none of torch's own defaults."""
    head = build({"x": model_of_pairs().config.modalities["x"]}, spread=0.0, hidden_size=128).heads["x"]
    for name, module in head.named_modules():
        if isinstance(module, (nn.Linear, nn.Embedding)):
            assert 0.015 < module.weight.std() < 0.025, name
            bias = getattr(module, "bias", None)
            assert bias is None or not bias.any(), name
    owners = {name for name, module in head.named_modules() for _ in module.named_parameters(recurse=False)}
    known = (nn.Linear, nn.Embedding, nn.LayerNorm)
    assert owners == {name for name, module in head.named_modules() if isinstance(module, known)}
