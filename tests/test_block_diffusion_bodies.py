"""Block diffusion on bodies of every kind: which are refused and why, what LoRA has to train beside them, how positions
count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from unimodal_ar import Segment, UnimodalARConfig
from unimodal_ar.adapters import TimeSeriesAdapter
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.objectives.noise import Noisy

from .helpers import WIDTH, build, codes, diffusion, full_hidden, hidden_states, made_noise, noise_as, series

SMALL: dict[str, Any] = dict(
    vocab_size=8, hidden_size=WIDTH, num_hidden_layers=2, pad_token_id=0, bos_token_id=0, eos_token_id=0
)
HEADS: dict[str, Any] = dict(num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
LFM2 = SMALL | HEADS | dict(model_type="lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8)
MINIMAX = (
    SMALL
    | HEADS
    | dict(
        model_type="minimax",
        layer_types=["linear_attention", "full_attention"],
        head_dim=8,
        block_size=4,
        num_local_experts=2,
        num_experts_per_tok=1,
    )
)
LLAMA4 = (
    SMALL
    | HEADS
    | dict(
        model_type="llama4_text",
        layer_types=["chunked_attention", "full_attention"],
        head_dim=8,
        attention_chunk_size=4,
        intermediate_size_mlp=48,
        num_local_experts=2,
    )
)
QWEN3_NEXT = (
    SMALL
    | HEADS
    | dict(
        model_type="qwen3_next",
        layer_types=["linear_attention", "full_attention"],
        head_dim=8,
        num_experts=2,
        num_experts_per_tok=1,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    )
)
MAMBA = SMALL | dict(model_type="mamba", state_size=4, expand=2, conv_kernel=3)
BODIES = {"lfm2": LFM2, "minimax": MINIMAX, "llama4": LLAMA4, "qwen3_next": QWEN3_NEXT, "mamba": MAMBA}


def sequence(values: Tensor, **more: Any) -> Segment:
    return Segment("x", values, (values.shape[1], 1, 1), **more)


# --- bodies without masks ---------------------------------------------------------------------------------------------

REFUSALS = {
    "lfm2": r"a lfm2 backbone has layers \['conv'\], which take no masks",
    "minimax": r"a minimax backbone has layers \['linear_attention'\], which take no masks",
    "llama4": r"a llama4_text backbone has layers \['chunked_attention'\], which take no masks",
    "qwen3_next": r"a qwen3_next backbone keeps a state instead of attending in layers \['linear_attention'\]",
    "mamba": r"a mamba backbone keeps a state instead of attending",
}


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("block", [1, 3])
def test_a_body_without_masks_is_refused_when_it_is_built(body: str, block: int) -> None:
    """Blocks of one, too: denoising passes would write its state."""
    sentence = REFUSALS[body] + r".*; block diffusion of 'x' needs one with attention in every layer"
    with pytest.raises(ValueError, match=sentence):
        build({"x": codes(block=block, **diffusion("mask"))}, BODIES[body])


@pytest.mark.parametrize("body", BODIES)
def test_a_body_without_masks_takes_next_block_in_blocks_of_one_only(body: str) -> None:
    model = build({"x": codes(block=2)}, BODIES[body], spread=0.0)
    with pytest.raises(ValueError, match=REFUSALS[body] + r".*, so it takes block 1 only"):
        model([sequence(torch.zeros(1, 4).long())])


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.parametrize("padded", [False, True])
def test_a_body_without_masks_still_predicts_single_elements(body: str, padded: bool) -> None:
    """No leak, and cached decoding after padding equals one full pass."""
    model = build({"x": series()}, BODIES[body], spread=0.02)
    values = torch.randn(2, 6, 3, requires_grad=True)
    observed = (torch.arange(6) >= torch.tensor([[0], [2]])) if padded else None
    hidden = full_hidden(model, [sequence(values, observed=observed)])
    (gradient,) = torch.autograd.grad((hidden[:, 3] * torch.randn(WIDTH)).sum(), values)
    influence = gradient.abs().amax((0, 2))
    assert (influence[:3] > 0).all() and (influence[3:] == 0).all()
    known = torch.ones(2, 6).bool() if observed is None else observed
    if body == "minimax":  # generates with a cache of its own only
        return
    given = sequence(values.detach(), observed=known & (torch.arange(6) < 3))
    with hidden_states(model) as states:
        drawn = model.generate([], "x", given=given, known_blocks=3)
    full = full_hidden(model, [sequence(drawn.values, observed=observed)])
    cached = torch.cat(states, 1)
    assert len(states) == 4 and cached.shape == full.shape
    torch.testing.assert_close(cached[:, 3:], full[:, 3:], atol=1e-5, rtol=1e-4)


def test_a_short_window_names_block_diffusion() -> None:
    window = SMALL | HEADS | dict(model_type="gemma3_text", head_dim=8, sliding_window=3)
    model = build({"x": codes(block=1, **diffusion("mask"))}, window)
    with pytest.raises(ValueError, match=r"unless the objective is next-block \(not block diffusion\) with blocks of"):
        model([sequence(torch.zeros(1, 4).long())])


# --- kernels without masks --------------------------------------------------------------------------------------------


@pytest.fixture
def flash(monkeypatch: pytest.MonkeyPatch) -> str:
    """An attention kernel that knows causal and full attention only, as flash attention does."""

    def attend(module: Any, q: Tensor, k: Tensor, v: Tensor, mask: Any, **options: Any) -> tuple[Tensor, None]:
        if mask is not None:
            raise RuntimeError("a mask")
        k, v = (x.repeat_interleave(module.num_key_value_groups, 1) for x in (k, v))
        causal = options.get("is_causal", True) and q.shape[2] > 1
        out = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=options["scaling"])
        return out.transpose(1, 2), None

    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "flash_attention_2", attend)
    return "flash_attention_2"


def test_the_native_decoder_draws_blocks_with_a_kernel_without_masks(flash: str) -> None:
    """A block and what it sees is full attention, unless clean positions come along; two streams are not."""
    model = build({"x": codes(grid=(6, 1, 1), block=2, **diffusion("mask"))})
    drawn = []
    for kernel in ("sdpa", flash):
        model.backbone.model.config._attn_implementation = kernel
        drawn.append(model.generate([], "x", generator=torch.Generator().manual_seed(0), num_samples=8).values)
    assert torch.equal(*drawn)
    with pytest.raises(ValueError, match="attn_implementation is 'flash_attention_2', which knows causal and full"):
        model([sequence(torch.zeros(1, 6).long())])


@pytest.mark.parametrize("body", ["native", "llama"])
def test_a_single_block_with_a_kernel_without_masks(flash: str, body: str) -> None:
    """It is full attention, which the native decoder asks for and hosted bodies cannot."""
    model = build({"x": codes(grid=(6, 1, 1), block="whole", **diffusion("mask"))}, body)
    segment, states = sequence(torch.arange(6)[None] % 3), []
    noisy = made_noise("mask", torch.zeros(1, 6, 1), model.layout("x", (6, 1, 1)))
    noisy = Noisy(segment.values, masked=noisy.masked, weights=noisy.weights)
    for kernel in ("sdpa", flash):
        model.backbone.model.config._attn_implementation = kernel
        with noise_as(model, noisy):
            if body == "llama" and kernel == flash:
                with pytest.raises(
                    ValueError, match="'flash_attention_2', with which hosted backbones attend causally"
                ):
                    model([segment])
                return
            states.append(full_hidden(model, [segment]))
    torch.testing.assert_close(*states, atol=1e-5, rtol=1e-5)


# --- LoRA -------------------------------------------------------------------------------------------------------------


def tuned(body: str, modules: list[str] | None) -> Any:
    """Five LoRA steps of a denoiser whose backbone knows nothing of noise levels yet."""
    model = build({"x": series(grid=(1, 2, 3), block="row", **diffusion("gaussian"))}, body, spread=0.0)
    targets = r"backbone\..*\.(q_proj|v_proj|up_proj)"
    torch.manual_seed(1)
    adapted: Any = get_peft_model(model, LoraConfig(r=2, target_modules=targets, modules_to_save=modules)).train()
    optimizer = torch.optim.Adam([x for x in adapted.parameters() if x.requires_grad], lr=0.01)
    for _ in range(5):
        optimizer.zero_grad()
        adapted(segments=[Segment("x", torch.randn(4, 6, 3), (1, 2, 3))]).loss.backward()
        optimizer.step()
    return adapted.base_model.model.eval()


def effect_of_time(model: Any) -> float:
    """By how much hidden states change when noisy values stay and their level does not."""
    values = torch.randn(2, 6, 3)
    states = []
    for level in (0.1, 0.9):
        noisy = made_noise("gaussian", values, model.layout("x", (1, 2, 3)))
        noisy.level.fill_(level)  # type: ignore[union-attr]
        with noise_as(model, noisy), torch.no_grad():
            states.append(full_hidden(model, [Segment("x", values, (1, 2, 3))]))
    return float((states[0] - states[1]).abs().max())


@pytest.mark.parametrize("body", ["native", "llama"])
def test_lora_learns_noise_levels_with_the_new_modules(body: str) -> None:
    model = build({"x": series(grid=(1, 2, 3), block="row", **diffusion("gaussian"))}, body, spread=0.0)
    names = model.new_modules()
    assert effect_of_time(tuned(body, ["embeddings.x", "heads.x"])) == 0
    assert effect_of_time(tuned(body, names)) > 1e-4


def test_new_modules_are_all_that_a_backbone_does_not_bring() -> None:
    modalities = {"x": series(grid=(1, 2, 3), block="row", **diffusion("gaussian")), "y": codes(grid=(1, 2, 2))}
    own = ["embeddings.x", "embeddings.y", "heads.x", "heads.y"]
    hosted, native = build(modalities, "llama"), build(modalities, conditioning_positions=20)
    assert hosted.new_modules() == [*own, "backbone.coordinates", "backbone.level"]
    assert sorted(native.new_modules()) == sorted(
        [*own, "backbone.model.conditioning_table", "backbone.model.modulation"]
        + [f"backbone.model.layers.{i}.modulation" for i in range(2)]
    )
    for model in (hosted, native):
        left = [name for name, _ in model.named_parameters() if not name.startswith(tuple(model.new_modules()))]
        assert left and all(name.startswith("backbone.model.") for name in left)
    assert build({"y": codes()}, "llama").new_modules() == ["embeddings.y", "heads.y"]


# --- positions --------------------------------------------------------------------------------------------------------


def test_a_body_that_knows_no_positions_is_refused() -> None:
    sentence = r"backbone\.position is 'none'; under block diffusion with blocks of several elements modality 'x' needs"
    for noise in ("mask", "gaussian"):
        for block in (2, "whole", {"cell": [2, 1, 1]}, [1, 1, 2]):
            with pytest.raises(ValueError, match=sentence):
                build({"x": series(grid=(4, 1, 1), block=block, **diffusion(noise))}, position="none")


@pytest.mark.parametrize(
    ("options", "native"),
    [
        ({"block": 1}, {}),
        ({"block": 2, "absolute_positions": True}, {}),
        ({"block": 2}, {"conditioning_positions": 4}),
        ({"block": 2}, {"position": "sinusoidal"}),
    ],
)
def test_positions_that_are_told_apart_are_accepted(options: dict[str, Any], native: dict[str, Any]) -> None:
    model = build({"x": series(grid=(4, 1, 1), **options, **diffusion("gaussian"))}, **{"position": "none"} | native)
    values = torch.randn(1, 4, 3)
    noisy = made_noise("gaussian", torch.zeros(1, 4, 3), model.layout("x", (4, 1, 1)))
    noisy.values[:] = noisy.values[:, :1]  # the elements differ in their places alone
    with noise_as(model, noisy):
        hidden = full_hidden(model, [sequence(values)])[:, :2]
    assert (hidden[:, 0] - hidden[:, 1]).abs().max() > 1e-3


def test_next_block_needs_no_positions() -> None:
    native = {"model_type": "unimodal_ar_decoder", "position": "none"}
    assert UnimodalARConfig(backbone=native, modalities={"x": series(block=2)}).backbone.position == "none"


@pytest.mark.parametrize("noise", ["mask", "gaussian"])
def test_two_streams_count_their_places_once(noise: str) -> None:
    options = series(grid=(6, 1, 1), block=2, **diffusion("gaussian")), series(grid=(1, 1, 1), **diffusion(noise))
    model = build({"x": options[0], "y": options[1]}, conditioning_positions=6)
    assert model([sequence(torch.randn(1, 6, 3))]).loss.isfinite()
    assert model.generate([], "x").values.shape == (1, 6, 3)
    with pytest.raises(ValueError, match=r"the sequence has 7 positions; backbone\.conditioning_positions is 6"):
        model([sequence(torch.randn(1, 7, 3))])


# --- forecasting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", ["whole", 6, 9])
def test_a_forecaster_needs_a_past_and_a_future(block: Any) -> None:
    adapter = TimeSeriesAdapter(patch=3, modality="x")
    sentence = r"one block on the grid \[6, 1, 1\]; a forecaster needs at least two, a past and a future"
    for objective in ({}, diffusion("gaussian")):
        with pytest.raises(ValueError, match=sentence):
            Forecaster(build({"x": series(block=block, **objective)}), adapter)
        Forecaster(build({"x": series(block=3, **objective)}), adapter)
