"""Merged codes (Token-Shuffle): one table and one projection for all of them, and still a distribution of each."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers import P_VALUE, WIDTH, all_sequences, build, chi_square, codes, frequencies, label, labels, perturb
from unimodal_ar import Segment, UnimodalARConfig
from unimodal_ar.heads import CategoricalHead, build_head
from unimodal_ar.merging import CodeMerge, CodeSplit
from unimodal_ar.noise import SampleNoise
from unimodal_ar.schema import ContinuousElement, DiscreteElement, parse

HIDDEN, V, K = 8, 3, 2
EVERY = all_sequences(V, K)
DRAWS = 20_000


def merged(vocab_size: int = V, count: int = K, hidden_size: int = HIDDEN, **options: Any) -> CategoricalHead:
    torch.manual_seed(0)
    element = DiscreteElement(kind="discrete", vocab_size=vocab_size, codes=count, merge=True)
    head = build_head(hidden_size, element, {"kind": "categorical", **options})
    assert isinstance(head, CategoricalHead)
    perturb(head, 0.25)
    return head


def parallel() -> CategoricalHead:
    head = build_head(HIDDEN, DiscreteElement(kind="discrete", vocab_size=V, codes=K), {"kind": "categorical"})
    assert isinstance(head, CategoricalHead)
    perturb(head, 0.5)
    return head


def some_hidden(*shape: int, seed: int = 2) -> Tensor:
    return torch.randn(*shape, HIDDEN, generator=torch.Generator().manual_seed(seed))


def noise(count: int, seed: int = 0) -> SampleNoise:
    return SampleNoise(seed, torch.arange(count))


def model_of(backbone: str = "native", spread: float = 0.1, head: str = "categorical", **more: Any) -> Any:
    element = {"kind": "discrete", "vocab_size": V, "codes": K, "merge": True}
    kinds = {"x": codes(V, (2, 1, 1), element=element, head={"kind": head}), "label": label(null_probability=0.1)}
    return build(kinds, backbone, spread=spread, **more)


# --- the element ------------------------------------------------------------------------------------------------------


def test_one_code_cannot_be_merged() -> None:
    element = {"kind": "discrete", "vocab_size": 4, "merge": True}
    message = "element.merge is True: codes is 1; only several codes per element can be merged"
    with pytest.raises(ValueError, match=message):
        parse(DiscreteElement, element, "element")
    with pytest.raises(ValueError, match=f"modalities.x.{message}"):
        UnimodalARConfig(modalities={"x": {"element": element, "grid": [1, 2, 2]}})
    assert not parse(DiscreteElement, {**element, "merge": False}, "element").merge


# --- in and out -------------------------------------------------------------------------------------------------------


def residual(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    y = F.layer_norm(x, x.shape[-1:], weights[f"{name}.norm.weight"], weights[f"{name}.norm.bias"])
    y = F.gelu(F.linear(y, weights[f"{name}.up.weight"], weights[f"{name}.up.bias"]))
    return x + F.linear(y, weights[f"{name}.down.weight"], weights[f"{name}.down.bias"])


def test_merging_is_written_out() -> None:
    """Where K divides the width: H -> H / K each, side by side, two residual MLPs."""
    merge = CodeMerge(HIDDEN, 4)
    perturb(merge, 0.5)
    w, x = merge.state_dict(), some_hidden(3, 4)
    narrow = [F.linear(x[:, k], w["compress.weight"], w["compress.bias"]) for k in range(4)]
    assert narrow[0].shape == (3, HIDDEN // 4)
    expected = residual(residual(torch.cat(narrow, -1), w, "fuse.0"), w, "fuse.1")
    torch.testing.assert_close(merge(x), expected)
    assert (merge(x) - merge(x.flip(-2))).abs().max() > 0.1  # which code is where is not lost


def test_splitting_is_written_out() -> None:
    split = CodeSplit(HIDDEN, 4)
    perturb(split, 0.5)
    w, x = split.state_dict(), some_hidden(3)
    shares = residual(x, w, "prepare").chunk(4, -1)
    wide = [residual(F.linear(share, w["expand.weight"], w["expand.bias"]), w, "refine") for share in shares]
    expected = [F.layer_norm(y, (HIDDEN,), w["norm.weight"], w["norm.bias"]) for y in wide]
    torch.testing.assert_close(split(x), torch.stack(expected, -2))


@pytest.mark.parametrize(("count", "share"), [(3, 3), (5, 2), (9, 1)])
def test_the_width_need_not_be_a_multiple_of_the_codes(count: int, share: int) -> None:
    """Every code still gets through: the merged vector depends on each, and so does each part on the merged one."""
    merge, split = CodeMerge(HIDDEN, count), CodeSplit(HIDDEN, count)
    for part in (merge, split):
        perturb(part, 0.5)
    assert merge.compress.out_features == split.expand.in_features == share
    x = some_hidden(count).requires_grad_()
    fused = merge(x)
    assert fused.shape == (HIDDEN,)
    (gradient,) = torch.autograd.grad(fused.square().sum(), x)
    assert (gradient.abs().amax(-1) > 1e-4).all()
    parts = split(fused.detach())
    assert parts.shape == (count, HIDDEN)
    assert torch.cdist(parts, parts).add(10 * torch.eye(count)).min() > 1e-3  # no two are alike


def test_no_weight_grows_with_codes_times_vocabulary() -> None:
    def growth(head: str) -> int:
        """Parameters per entry of the vocabulary."""
        counts = []
        for size in (10, 11):
            element = {"kind": "discrete", "vocab_size": size, "codes": 4, "merge": True}
            model = build({"x": codes(size, (2, 1, 1), element=element, head={"kind": head})})
            counts.append(sum(parameter.numel() for parameter in model.parameters()))
        return (counts[1] - counts[0]) // WIDTH

    assert growth("categorical") == 2  # a row of the table and one of the projection
    assert growth("depth_ar") == 3  # and one of the depth transformer's table


def test_unobserved_codes_are_not_read() -> None:
    embedding = model_of().embeddings["x"]
    observed = torch.tensor([[True, False]])
    first, second = (torch.tensor([[[1, 2], pair]]) for pair in ([0, 0], [-100, 99]))
    torch.testing.assert_close(embedding.embed(first, observed), embedding.embed(second, observed))


def test_the_embedding_knows_which_code_is_where() -> None:
    embed = model_of(spread=0.3).embeddings["x"].embed
    pairs = embed(EVERY[None], torch.ones(1, len(EVERY), dtype=torch.bool))[0]
    assert (torch.cdist(pairs, pairs) + torch.eye(len(EVERY))).min() > 0.1


# --- the head ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_log_prob_is_exact_and_normalised(bias: bool) -> None:
    head, hidden = merged(bias=bias).double(), some_hidden(2, 5).double()
    assert head.logits(hidden).shape == (2, 5, K, V)
    values = torch.randint(V, (2, 5, K), generator=torch.Generator().manual_seed(0))
    reference = torch.distributions.Categorical(logits=head.logits(hidden)).log_prob(values).sum(-1)
    torch.testing.assert_close(head.loss(hidden, values), -reference)
    every = head.log_prob(hidden[0, 0].expand(len(EVERY), -1), EVERY).exp()
    assert abs(every.sum() - 1) < 1e-12
    observed = torch.tensor([True, False]).expand(2, 5, K)  # codes are independent: a mask of single codes is legal
    partial = torch.distributions.Categorical(logits=head.logits(hidden)).log_prob(values)[..., 0]
    torch.testing.assert_close(head.log_prob(hidden, values, observed), partial)


def test_codes_at_different_places_learn_different_things() -> None:
    """The projection is shared, so the split must tell the places apart: code k is (s + k^2) mod 5 for state s."""
    torch.manual_seed(0)
    head = build_head(16, DiscreteElement(kind="discrete", vocab_size=5, codes=4, merge=True), {"kind": "categorical"})
    state = torch.arange(40) % 5
    hidden = torch.randn(5, 16)[state]
    target = (state[:, None] + torch.arange(4) ** 2) % 5
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        head.loss(hidden, target).mean().backward()
        optimizer.step()
    assert head.loss(hidden, target).max() < 0.1


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_are_drawn_from_the_logits(temperature: float) -> None:
    head, hidden = merged(), some_hidden(1)
    claimed = (head.logits(hidden)[0].double() / temperature).softmax(-1).detach()
    drawn = head.sample(hidden.expand(DRAWS, -1), noise(DRAWS), temperature)
    assert drawn.shape == (DRAWS, K)
    joint = (claimed[0, :, None] * claimed[1]).flatten()
    assert chi_square(frequencies(drawn, V), joint.numpy()) > P_VALUE


@pytest.mark.parametrize("kind", [merged, parallel])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 3.0])
def test_guidance_combines_the_logits(kind: Any, scale: float) -> None:
    head, hidden, free = kind(), some_hidden(1), some_hidden(1, seed=3)
    conditional, unconditional = (head.logits(x)[0].double().detach() for x in (hidden, free))
    guided = unconditional + scale * (conditional - unconditional)
    claimed = guided.softmax(-1)
    if kind is merged and scale == 3:  # guiding hidden states would draw from something else
        wrong = head.logits(free + scale * (hidden - free))[0].softmax(-1)
        assert (claimed - wrong).abs().max() > 0.02
    drawn = head.sample_guided(hidden.expand(DRAWS, -1), free.expand(DRAWS, -1), scale, generator=noise(DRAWS))
    joint = (claimed[0, :, None] * claimed[1]).flatten()
    assert chi_square(frequencies(drawn, V), joint.numpy()) > P_VALUE
    assert torch.equal(head.sample_guided(hidden, free, scale, temperature=0)[0], guided.argmax(-1))
    cut = head.sample_guided(hidden.expand(99, -1), free.expand(99, -1), scale, generator=noise(99), top_k=1)
    assert torch.equal(cut, guided.argmax(-1).expand(99, -1))


def test_guidance_of_a_linear_head_combines_its_means() -> None:
    head: Any = build_head(HIDDEN, ContinuousElement(kind="continuous", dim=3), {"kind": "regression"})
    perturb(head, 0.3)
    hidden, free = some_hidden(4), some_hidden(4, seed=3)
    expected = head.mean(free) + 2.5 * (head.mean(hidden) - head.mean(free))
    torch.testing.assert_close(head.sample_guided(hidden, free, 2.5, temperature=0), expected)


def test_guidance_does_not_depend_on_the_batch() -> None:
    head, hidden, free = merged(), some_hidden(7, 4), some_hidden(7, 4, seed=3)
    together = head.sample_guided(hidden, free, 2.0, generator=noise(7, seed=5))
    for i in range(7):
        one = slice(i, i + 1)
        alone = head.sample_guided(hidden[one], free[one], 2.0, generator=SampleNoise(5, torch.tensor([i])))
        assert torch.equal(alone[0], together[i])


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_hidden_gives_float32_losses(autocast: bool) -> None:
    head, hidden = merged(), some_hidden(4, 5).bfloat16()
    target = torch.randint(V, (4, 5, K), generator=torch.Generator().manual_seed(0))
    exact = head.double().loss(hidden.double(), target)
    assert exact.dtype == torch.float64
    head.float()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        loss = head.loss(hidden, target)
    assert loss.dtype == torch.float32
    tolerance = 0.1 if autocast else 1e-4
    torch.testing.assert_close(loss.double(), exact, rtol=tolerance, atol=tolerance)
    low = head.bfloat16().loss(hidden, target)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low.double(), exact, rtol=0.1, atol=0.1)


# --- in a model -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", ["native", "llama"])
def test_generate_draws_the_joint_that_forward_states(backbone: str) -> None:
    model = model_of(backbone)
    every = all_sequences(V, 2 * K)
    losses = model([labels(2).repeat_interleave(len(every)), Segment("x", every.view(-1, 2, K), (2, 1, 1))])
    probability = (-losses.element_losses["x"].double().sum(1)).exp().detach().numpy()
    assert abs(probability.sum() - 1) < 1e-5
    drawn = model.generate([labels(2)], "x", num_samples=6000, generator=torch.Generator().manual_seed(0)).values
    assert chi_square(frequencies(drawn.flatten(1), V), probability) > P_VALUE


@pytest.mark.parametrize("head", ["categorical", "depth_ar"])
def test_trains_under_autocast_and_in_half_precision(head: str) -> None:
    batch = [labels(2), Segment("x", torch.tensor([[[0, 2], [1, 1]]]), (2, 1, 1))]
    model = model_of(head=head)
    exact = model(batch).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.train()(batch).loss
    loss.backward()
    torch.testing.assert_close(loss.float(), exact, rtol=0.1, atol=0.1)
    fused = [name for name, _ in model.named_parameters() if ".merge." in name or ".split." in name]
    assert len(fused) >= 14 and all(model.get_parameter(name).grad is not None for name in fused)
    torch.testing.assert_close(model.bfloat16()(batch).loss.float(), exact, rtol=0.1, atol=0.1)


def test_saved_and_loaded_it_is_the_same(tmp_path: Any) -> None:
    model = model_of()
    batch = [labels(2), Segment("x", torch.tensor([[[0, 2], [1, 1]]]), (2, 1, 1))]
    model.save_pretrained(tmp_path)
    loaded, info = type(model).from_pretrained(tmp_path, output_loading_info=True)  # built on the meta device
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert loaded.config.modalities["x"]["element"]["merge"] is True
    assert torch.equal(loaded.eval()(batch).element_losses["x"], model(batch).element_losses["x"])


def test_it_starts_as_transformers_initialises() -> None:
    model = model_of(spread=0.0, hidden_size=128)
    for part in (model.embeddings["x"].merge, model.heads["x"]):
        for name, module in part.named_modules():
            if isinstance(module, nn.Linear):
                assert 0.015 < module.weight.std() < 0.025, name
                assert module.bias is None or (module.bias == 0).all(), name
        owners = {name for name, module in part.named_modules() for _ in module.named_parameters(recurse=False)}
        assert owners == {name for name, m in part.named_modules() if isinstance(m, (nn.Linear, nn.LayerNorm))}
