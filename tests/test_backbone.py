"""The native decoder against references with copied weights, and transformers' bodies of every kind as hosts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaModel

from tests.helpers import WIDTH, build, codes, full_hidden, hidden_states, label, labels, perturb, series, toy_backbones
from unimodal_ar import Segment, UnimodalARConfig, UnimodalARDecoder, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.decoder import Modulation, RMSNorm


def decoder(spread: float = 0.3, **changes: Any) -> Any:
    torch.manual_seed(0)
    shape = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4)
    model = UnimodalARDecoder(UnimodalARDecoderConfig(**(shape | changes))).eval()  # type: ignore[arg-type]
    perturb(model, spread)
    return model


def embeds(batch: int = 2, length: int = 7) -> Tensor:
    return torch.randn(batch, length, WIDTH)


def grid_coords(t: int, h: int, w: int) -> Tensor:
    return torch.cartesian_prod(torch.arange(t), torch.arange(h), torch.arange(w)).view(1, -1, 3)


# --- references -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("head_dim", [8, 12])
@pytest.mark.parametrize("position", [{"position_axes": [1.0, 0.0, 0.0]}, {"position": "rope_1d"}])
def test_is_llama_with_the_right_fields(groups: int, head_dim: int, position: dict[str, Any]) -> None:
    shape: dict[str, Any] = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=3, num_attention_heads=4)
    shape["head_dim"] = head_dim
    config = LlamaConfig(vocab_size=3, num_key_value_heads=groups, rms_norm_eps=1e-5, **shape)
    config.rope_parameters = {"rope_type": "default", "rope_theta": 500.0}
    llama = LlamaModel(config).eval()
    perturb(llama, 0.2)
    native = decoder(
        num_key_value_heads=groups,
        qk_norm=None,
        norm_eps=1e-5,
        rope_theta=500.0,
        **position,
        **shape,
    )
    found = native.load_state_dict(llama.state_dict(), strict=False)
    assert not found.missing_keys and found.unexpected_keys == ["embed_tokens.weight"]
    x = embeds(length=9)
    expected = llama(inputs_embeds=x).last_hidden_state
    torch.testing.assert_close(native(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    positions = torch.tensor([[3, 4, 5, 9, 10, 11, 20, 21, 22]])
    moved = llama(inputs_embeds=x, position_ids=positions).last_hidden_state
    torch.testing.assert_close(native(x, position_ids=positions).last_hidden_state, moved, atol=1e-5, rtol=1e-5)
    assert (moved - expected).abs().max() > 1e-3


def test_rope_1d_counts_positions_whatever_their_coordinates() -> None:
    model, x, coords = decoder(position="rope_1d"), embeds(length=8), grid_coords(2, 2, 2)
    expected = model(x).last_hidden_state
    torch.testing.assert_close(model(x, coords=coords).last_hidden_state, expected, rtol=0, atol=0)
    torch.testing.assert_close(model(x, coords=-torch.ones_like(coords)).last_hidden_state, expected, rtol=0, atol=0)
    moved = model(x, coords=coords, position_ids=2 * torch.arange(8)[None]).last_hidden_state
    assert (moved - expected).abs().max() > 1e-3


def torch_layer(norm_first: bool, activation: Any) -> nn.TransformerEncoderLayer:
    layer = nn.TransformerEncoderLayer(
        WIDTH, 4, 64, dropout=0.0, activation=activation, batch_first=True, norm_first=norm_first, layer_norm_eps=1e-5
    ).eval()
    perturb(layer, 0.2)
    return layer


def copy_torch_layer(source: Any, target: Any) -> None:
    weights = source.self_attn.in_proj_weight.chunk(3), source.self_attn.in_proj_bias.chunk(3)
    attention = target.self_attn
    pairs = [
        *(
            (proj.weight, w)
            for proj, w in zip((attention.q_proj, attention.k_proj, attention.v_proj), weights[0], strict=True)
        ),
        *(
            (proj.bias, b)
            for proj, b in zip((attention.q_proj, attention.k_proj, attention.v_proj), weights[1], strict=True)
        ),
    ]
    modules = [
        (attention.o_proj, source.self_attn.out_proj),
        (target.mlp.up_proj, source.linear1),
        (target.mlp.down_proj, source.linear2),
        (target.input_layernorm, source.norm1),
        (target.post_attention_layernorm, source.norm2),
    ]
    pairs += [(ours.weight, theirs.weight) for ours, theirs in modules]
    pairs += [(ours.bias, theirs.bias) for ours, theirs in modules]
    with torch.no_grad():
        for ours, theirs in pairs:
            ours.copy_(theirs)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize(("mlp", "activation"), [("gelu", nn.GELU()), ("gelu_tanh", nn.GELU("tanh"))])
def test_is_torchs_transformer_layer_with_the_right_fields(norm_first: bool, mlp: str, activation: Any) -> None:
    native = decoder(
        intermediate_size=64,
        norm="layernorm",
        norm_eps=1e-5,
        norm_position="pre" if norm_first else "post",
        qk_norm=None,
        mlp=mlp,
        attention_bias=True,
        mlp_bias=True,
        position="none",
    )
    reference = [torch_layer(norm_first, activation) for _ in range(2)]
    for theirs, ours in zip(reference, native.layers, strict=True):
        copy_torch_layer(theirs, ours)
    x = embeds()
    expected = x
    for theirs in reference:
        expected = theirs(expected, src_mask=nn.Transformer.generate_square_subsequent_mask(7))
    expected = native.norm(expected)
    torch.testing.assert_close(native(x).last_hidden_state, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("norm", ["rmsnorm", "layernorm"])
def test_qk_norm_makes_scores_blind_to_scale(norm: str) -> None:
    x = embeds()
    for qk_norm, blind in ((norm, True), (None, False)):
        model = decoder(qk_norm=qk_norm, norm_eps=1e-12)
        before = model(x).last_hidden_state
        with torch.no_grad():
            for layer in model.layers:
                layer.self_attn.q_proj.weight *= 3
                layer.self_attn.k_proj.weight *= 0.5
        change = (model(x).last_hidden_state - before).abs().max()
        assert change < 1e-4 if blind else change > 1e-2


@pytest.mark.parametrize("theta", [100.0, 10000.0])
def test_sinusoidal_positions_follow_the_formula(theta: float) -> None:
    model = decoder(position="sinusoidal", position_axes=[1.0, 0.0, 0.0], rope_theta=theta)
    x, coords = embeds(length=20), grid_coords(20, 1, 1)
    table = torch.zeros(20, WIDTH)
    for t in range(20):
        for i in range(WIDTH // 2):
            table[t, 2 * i] = math.sin(t / theta ** (2 * i / WIDTH))
            table[t, 2 * i + 1] = math.cos(t / theta ** (2 * i / WIDTH))
    out, rotary = model.position(x, coords)
    assert rotary is None
    torch.testing.assert_close(out - x, table.expand(2, -1, -1), atol=1e-5, rtol=0)
    plain = decoder(position="none", rope_theta=theta)
    plain.load_state_dict(model.state_dict())
    torch.testing.assert_close(model(x).last_hidden_state, plain(x + table).last_hidden_state, atol=1e-4, rtol=1e-4)


def test_rope_sees_differences_of_coordinates_only() -> None:
    model = decoder(position_axes=[1.0, 1.0, 1.0], head_dim=12)
    x, coords = embeds(length=12), grid_coords(2, 2, 3)
    here = model(x, coords=coords).last_hidden_state
    shifted = model(x, coords=coords + torch.tensor([5, 3, 11])).last_hidden_state
    torch.testing.assert_close(shifted, here, atol=1e-5, rtol=1e-4)
    for axis in range(3):  # and every axis matters
        stretched = coords.clone()
        stretched[..., axis] *= 2
        assert (model(x, coords=stretched).last_hidden_state - here).abs().max() > 1e-3


@pytest.mark.parametrize("axes", [[1.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 2.0, 1.0], [5.0, 1.0, 1.0]])
def test_rope_shares_its_channels_out_as_asked(axes: list[float]) -> None:
    model = decoder(position_axes=axes, head_dim=18)  # 9 pairs
    angles = model.position.angles(torch.eye(3, dtype=torch.long)[None], 9)[0]
    counts = [(angles[axis] != 0).sum().item() for axis in range(3)]
    assert sum(counts) == 9
    assert all(abs(count - 9 * share / sum(axes)) < 1 for count, share in zip(counts, axes, strict=True))


def test_each_axis_starts_from_the_full_frequency() -> None:
    angles = decoder(position_axes=[1.0, 1.0, 1.0], head_dim=12).position.angles(torch.ones(1, 1, 3), 6)[0, 0]
    torch.testing.assert_close(angles, torch.tensor([1, 0.01, 1, 0.01, 1, 0.01]))


@pytest.mark.parametrize("split", [1, 4, 6])
def test_the_decoder_counts_on_from_its_cache(split: int) -> None:
    from transformers import DynamicCache

    model, x = decoder(num_key_value_heads=2), embeds()
    cache = DynamicCache()
    first = model(x[:, :split], past_key_values=cache).last_hidden_state
    second = model(x[:, split:], past_key_values=cache).last_hidden_state
    full = model(x).last_hidden_state
    torch.testing.assert_close(torch.cat([first, second], 1), full, atol=1e-5, rtol=1e-5)


# --- adaptive norm ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_position", ["pre", "post"])
def test_adaptive_norms_start_as_the_identity(norm_position: str) -> None:
    model = decoder(spread=0.0, conditioning_size=5, norm_position=norm_position, norm="layernorm")
    x = embeds()
    assert sum(isinstance(module, Modulation) for module in model.modules()) == 3
    # Gates of zero: no layer adds anything, and norms of what is normed change nothing.
    torch.testing.assert_close(
        model(x, conditioning=torch.randn(2, 5)).last_hidden_state, model.norm(x), atol=1e-4, rtol=1e-4
    )


def test_adaptive_norms_follow_the_formula() -> None:
    model = decoder(conditioning_size=5, num_hidden_layers=1)
    layer, x, c = model.layers[0], embeds(), torch.randn(2, 5)
    sa, scale_a, gate_a, sm, scale_m, gate_m = layer.modulation.proj(nn.functional.silu(c))[:, None].chunk(6, -1)
    plain = decoder(num_hidden_layers=1)
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if "modulation" not in k})
    coords = nn.functional.pad(torch.arange(7)[None, :, None], (0, 2))
    _, rotary = model.position(x, coords)
    attended = layer.self_attn(layer.input_layernorm(x) * (1 + scale_a) + sa, None, True, rotary, None)
    y = x + gate_a * attended
    y = y + gate_m * layer.mlp(layer.post_attention_layernorm(y) * (1 + scale_m) + sm)
    shift, scale = model.modulation.proj(nn.functional.silu(c))[:, None].chunk(2, -1)
    expected = model.norm(y) * (1 + scale) + shift
    torch.testing.assert_close(model(x, conditioning=c).last_hidden_state, expected, atol=1e-5, rtol=1e-5)
    assert (plain(x).last_hidden_state - expected).abs().max() > 1e-2


def test_conditioning_acts_by_example_and_by_position() -> None:
    model, x, c = decoder(conditioning_size=5), embeds(), torch.randn(2, 5)
    out = model(x, conditioning=c).last_hidden_state
    changed = c.clone()
    changed[1] += 1
    other = model(x, conditioning=changed).last_hidden_state
    torch.testing.assert_close(other[0], out[0])
    assert (other[1] - out[1]).abs().amax(-1).min() > 1e-2
    by_position = c[:, None].repeat(1, 7, 1)
    torch.testing.assert_close(model(x, conditioning=by_position).last_hidden_state, out)
    by_position[:, 4] += 1
    late = model(x, conditioning=by_position).last_hidden_state
    torch.testing.assert_close(late[:, :4], out[:, :4])
    assert (late[:, 4:] - out[:, 4:]).abs().amax(-1).min() > 1e-4


def test_conditioning_and_its_size_go_together() -> None:
    with pytest.raises(ValueError, match="conditioning is missing; the decoder's conditioning_size is 5"):
        decoder(conditioning_size=5)(embeds())
    with pytest.raises(ValueError, match="conditioning is given; the decoder's conditioning_size is None"):
        decoder()(embeds(), conditioning=torch.zeros(2, 5))
    hosted = build({"x": series()}, "llama")
    with pytest.raises(ValueError, match="conditioning is given; a hosted backbone has no adaptive norms"):
        hosted.backbone(None, conditioning=torch.zeros(2, 5))


# --- configuration ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(norm="batchnorm"), r"norm is 'batchnorm'; it must be one of \['rmsnorm', 'layernorm', 'none'\]"),
        (dict(norm_position="both"), r"norm_position is 'both'"),
        (dict(mlp="relu"), r"mlp is 'relu'; it must be one of \['swiglu', 'gelu', 'gelu_tanh', 'none'\]"),
        (dict(position="alibi"), r"position is 'alibi'"),
        (dict(qk_norm="l2"), r"qk_norm is 'l2'"),
        (dict(hidden_size=0), r"hidden_size is 0; it must be a positive integer"),
        (dict(hidden_size=30), r"hidden_size is 30; it must be a multiple of num_attention_heads 4"),
        (dict(num_key_value_heads=3), r"num_key_value_heads is 3; it must divide num_attention_heads 4"),
        (dict(head_dim=7), r"head_dim is odd"),
        (dict(head_dim=7, position="rope_1d"), r"head_dim is odd"),
        (dict(position_axes=[1.0, 0.0, 0.0], position="rope_1d"), r"with position 'rope_1d' .* it must be None"),
        (dict(position_axes=[1.0, 1.0]), r"position_axes is \[1.0, 1.0\]; it must be three shares"),
        (dict(position_axes=[0.0, 0.0, 0.0]), r"position_axes is \[0.0, 0.0, 0.0\]; it must be three shares"),
        (dict(hiden_size=8), r"UnimodalARDecoderConfig has an unknown key 'hiden_size'; did you mean 'hidden_size'\?"),
    ],
)
def test_wrong_fields_of_the_decoder_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UnimodalARDecoderConfig(**changes)


def test_unknown_backbones_are_refused() -> None:
    with pytest.raises(ValueError, match=r"backbone\.model_type is 'lama'; it must be 'unimodal_ar_decoder' or a"):
        UnimodalARConfig(backbone={"model_type": "lama"}, modalities={"x": series()})
    with pytest.raises(ValueError, match="backbone is a int; it must be a configuration, a dict, a name or path"):
        UnimodalARConfig(backbone=3, modalities={"x": series()})


def test_position_channels_go_to_the_axes_that_are_used() -> None:
    """And to t always: segments follow each other along it."""
    axes = {(6, 1, 1): [1, 0, 0], (1, 4, 4): [1, 1, 1], (2, 2, 2): [1, 1, 1], (1, 1, 1): [1, 0, 0]}
    for grid, expected in axes.items():
        assert UnimodalARConfig(modalities={"x": series(grid=grid)}).backbone.position_axes == expected


def test_running_numbers_do_not_tell_places_in_random_orders() -> None:
    image, counted = codes(grid=(1, 2, 2), order="random"), {**toy_backbones()["native"], "position": "rope_1d"}
    with pytest.raises(ValueError, match=r"'rope_1d', whose .* the random order 'random' of modality 'x'; it needs"):
        UnimodalARConfig(backbone=counted, modalities={"x": image})
    config = UnimodalARConfig(backbone=counted, modalities={"x": image | {"absolute_positions": True}})
    assert config.backbone.position_axes is None


def test_a_decoder_configuration_serves_several_models() -> None:
    decoder = UnimodalARDecoderConfig(hidden_size=WIDTH, num_attention_heads=4)
    first = UnimodalARConfig(backbone=decoder, modalities={"x": series(grid=(6, 1, 1))})
    second = UnimodalARConfig(backbone=decoder, modalities={"x": series(grid=(1, 4, 4))})
    assert decoder.position_axes is None
    assert first.backbone.position_axes == [1, 0, 0] and second.backbone.position_axes == [1, 1, 1]


def test_the_order_of_two_context_images_matters() -> None:
    image = codes(grid=(1, 2, 2))
    model = build({"image": image})
    a, b, target = (Segment("image", torch.randint(0, 2, (4, 4)), (1, 2, 2)) for _ in range(3))
    context = [segment.replace(target=False) for segment in (a, b)]
    forth = model([*context, target]).element_losses["image"]
    back = model([*context[::-1], target]).element_losses["image"]
    assert (forth - back).abs().max() > 1e-4


def test_a_table_of_positions_that_ends_says_so() -> None:
    body = {**toy_backbones()["gpt2"], "n_positions": 5}
    model = build({"x": series(grid=(6, 1, 1))}, backbone=body)
    dim = series()["element"]["dim"]
    with pytest.raises(ValueError, match="the sequence has 6 positions; a gpt2 backbone of this configuration has 5"):
        model([Segment("x", torch.randn(1, 6, dim), (6, 1, 1))])


# --- hosted bodies ----------------------------------------------------------------------------------------------------

SMALL: dict[str, Any] = dict(
    hidden_size=WIDTH, num_hidden_layers=2, vocab_size=8, pad_token_id=0, bos_token_id=0, eos_token_id=0
)
HEADS: dict[str, Any] = dict(num_attention_heads=4, num_key_value_heads=2, intermediate_size=48)
OTHERS: dict[str, dict[str, Any]] = {
    "opt": SMALL | dict(model_type="opt", ffn_dim=48, num_attention_heads=4, word_embed_proj_dim=WIDTH, dropout=0.0),
    "gemma3": SMALL | HEADS | dict(model_type="gemma3_text", head_dim=8, sliding_window=32),
    "mixtral": SMALL | HEADS | dict(model_type="mixtral", num_local_experts=3, num_experts_per_tok=2),
    "qwen2_moe": SMALL
    | HEADS
    | dict(
        model_type="qwen2_moe",
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
    ),
    "gpt_neox": SMALL | dict(model_type="gpt_neox", num_attention_heads=4, intermediate_size=48),
}


@pytest.mark.parametrize("block", [1, 2])
@pytest.mark.parametrize("body", list(OTHERS))
def test_other_bodies_train_and_decode(body: str, block: int) -> None:
    """No leak, padding irrelevant, cached == full: the same as for those that every invariant is checked on."""
    model = build({"x": series(block=block), "label": label()}, OTHERS[body], spread=0.1)
    values = torch.randn(2, 6, 3, requires_grad=True)
    hidden = full_hidden(model, [labels(1, 2), Segment("x", values, (6, 1, 1))])[:, 1:]
    (gradient,) = torch.autograd.grad((hidden[:, 2:4] * torch.randn_like(hidden[:, 2:4])).sum(), values)
    influence = gradient.abs().amax((0, 2))
    first = 2 if block == 2 else 3
    assert (influence[:first] > 1e-6).all() and (influence[first:] == 0).all()
    with hidden_states(model) as states:
        drawn = model.generate([labels(1, 2)], "x")
    full = full_hidden(model, [labels(1, 2), drawn])
    torch.testing.assert_close(torch.cat(states, 1), full, atol=2e-5, rtol=1e-4)
    model([labels(1, 2), Segment("x", values.detach(), (6, 1, 1))]).loss.backward()
    assert all(p.grad is not None for p in model.backbone.parameters() if p.requires_grad and p.dim() > 1)


@pytest.mark.parametrize("body", list(OTHERS))
def test_padding_is_irrelevant_to_other_bodies(body: str) -> None:
    model = build({"x": series(block=2), "label": label()}, OTHERS[body], spread=0.1)
    values = torch.randn(1, 4, 3)
    alone = model([labels(1), Segment("x", values, (4, 1, 1))]).element_losses["x"]
    padding = torch.full((1, 4, 3), torch.nan)
    observed = torch.arange(8)[None] >= 4
    wide = model([labels(1), Segment("x", torch.cat([padding, values], 1), (8, 1, 1), observed=observed)])
    torch.testing.assert_close(wide.element_losses["x"][:, 4:], alone, atol=2e-5, rtol=1e-4)


def test_a_window_shorter_than_the_sequence_is_refused() -> None:
    model = build({"x": series(grid=(12, 1, 1), block=2)}, OTHERS["gemma3"] | {"sliding_window": 4})
    with pytest.raises(ValueError, match="the sequence has 12 positions; a gemma3_text backbone with sliding_window 4"):
        model([Segment("x", torch.randn(1, 12, 3), (12, 1, 1))])


def test_a_window_is_kept_for_single_elements() -> None:
    """Both decoders read at most the window's 4 positions in each of 2 layers, so that the cache must not lose them."""
    layers = {"sliding_window": 4, "layer_types": ["sliding_attention"] * 2}
    model = build({"x": series(grid=(12, 1, 1))}, OTHERS["gemma3"] | layers, spread=0.1)
    values = torch.randn(1, 12, 3, requires_grad=True)
    hidden = full_hidden(model, [Segment("x", values, (12, 1, 1))])
    (gradient,) = torch.autograd.grad((hidden[:, -1] * torch.randn(WIDTH)).sum(), values)
    influence = gradient.abs().amax((0, 2))
    assert (influence[:4] == 0).all() and (influence[4:11] > 0).all() and influence[11] == 0  # 2 * (4 - 1) back
    with hidden_states(model) as states:
        drawn = model.generate([], "x", (12, 1, 1))
    torch.testing.assert_close(torch.cat(states, 1), full_hidden(model, [drawn]), atol=2e-5, rtol=1e-4)


MAMBA: dict[str, Any] = SMALL | dict(model_type="mamba", state_size=4, expand=2, conv_kernel=3)


@pytest.mark.parametrize("context", [False, True])
def test_a_body_with_a_state_takes_blocks_of_one(context: bool) -> None:
    model = build({"x": series(), "label": label()}, MAMBA, spread=0.1)
    before = [labels(1, 2)] if context else []
    values = torch.randn(2, 6, 3, requires_grad=True)
    hidden = full_hidden(model, [*before, Segment("x", values, (6, 1, 1))])[:, len(before) :]
    (gradient,) = torch.autograd.grad((hidden[:, 3] * torch.randn(WIDTH)).sum(), values)
    influence = gradient.abs().amax((0, 2))
    assert (influence[:3] > 0).all() and (influence[3:] == 0).all()
    with hidden_states(model) as states:
        drawn = model.generate(before, "x", num_samples=2 if context else 1)
    full = full_hidden(model, [*(segment.repeat_interleave(2) for segment in before), drawn])
    cached = torch.cat([state.repeat_interleave(len(full) // len(state), 0) for state in states], 1)
    torch.testing.assert_close(cached, full, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("kind", ["mamba", "lfm2"])
def test_padding_is_irrelevant_to_a_body_with_a_state(kind: str, context: bool) -> None:
    """Behind something else, too, which the state must not forget over it."""
    lfm2 = SMALL | HEADS | dict(model_type="lfm2", layer_types=["conv", "full_attention"], block_multiple_of=8)
    model = build({"x": series(), "label": label()}, MAMBA if kind == "mamba" else lfm2, spread=0.1)
    before, values = [labels(1, 1)] if context else [], torch.randn(1, 4, 3)
    alone = model([*(each.replace(values=each.values[:1]) for each in before), Segment("x", values, (4, 1, 1))])
    observed = torch.arange(7) >= torch.tensor([[3], [0]])
    wide = torch.cat([torch.cat([torch.full((1, 3, 3), torch.nan), values], 1), torch.randn(1, 7, 3)])
    found = model([*before, Segment("x", wide, (7, 1, 1), observed=observed)]).element_losses["x"]
    torch.testing.assert_close(found[:1, 3:], alone.element_losses["x"], atol=1e-5, rtol=1e-4)


def test_a_body_with_a_state_refuses_larger_blocks() -> None:
    sentence = "a mamba backbone keeps a state instead of attending, so it takes block 1 only"
    model = build({"x": series(block=2)}, MAMBA)
    with pytest.raises(ValueError, match=sentence):
        model([Segment("x", torch.randn(1, 6, 3), (6, 1, 1))])
    with pytest.raises(ValueError, match=sentence):
        model.generate([], "x")
    context = {"element": {"kind": "discrete", "vocab_size": 5}, "grid": (3, 1, 1)}
    model = build({"x": series(), "text": context}, MAMBA)
    with pytest.raises(ValueError, match=sentence):
        model(
            [
                Segment("text", torch.zeros(1, 3).long(), (3, 1, 1), target=False),
                Segment("x", torch.randn(1, 6, 3), (6, 1, 1)),
            ]
        )


def test_a_hosted_body_starts_undisturbed() -> None:
    """Coordinate embeddings start at zero, and the body's own weights are taken over exactly."""
    torch.manual_seed(0)
    body = LlamaModel(
        LlamaConfig(vocab_size=8, **{k: SMALL[k] for k in ("hidden_size", "num_hidden_layers")}, **HEADS)
    ).eval()
    perturb(body, 0.2)
    model = UnimodalARForGeneration.from_backbone(body, {"x": codes(grid=(1, 2, 2))}).eval()
    for name, weight in body.state_dict().items():
        assert torch.equal(model.backbone.model.state_dict()[name], weight)
    assert model.backbone.coordinates is not None and model.backbone.coordinates(torch.ones(1, 4, 3)).abs().max() == 0
    values = torch.randint(0, 3, (2, 4))
    hidden = full_hidden(model, [Segment("x", values, (1, 2, 2))])
    embedding = model.embeddings["x"]
    inputs, _ = embedding.inputs(values, model.layout("x", (1, 2, 2)))
    torch.testing.assert_close(hidden, body(inputs_embeds=inputs).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_coordinates_reach_a_hosted_body() -> None:
    model = build({"x": series(grid=(1, 2, 6))}, "llama")
    values = torch.randn(1, 12, 3)
    one = full_hidden(model, [Segment("x", values, (1, 2, 6))])
    other = full_hidden(model, [Segment("x", values, (1, 3, 4))])
    assert (one - other)[:, 6:].abs().amax(-1).min() > 1e-3


def test_the_unused_token_table_of_a_body_is_frozen() -> None:
    model = build({"x": series()}, "llama")
    assert not model.backbone.model.get_input_embeddings().weight.requires_grad
    assert model.backbone.model.layers[0].mlp.up_proj.weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_rms_norm_and_its_gradients_are_those_of_torch(dtype: torch.dtype) -> None:
    """The written-out backward pass, which keeps less memory than autograd's."""
    norm = RMSNorm(16, eps=1e-6, dtype=dtype)
    norm.weight.data.normal_()
    x, upstream = (torch.randn(3, 5, 16, dtype=dtype) for _ in range(2))
    x.requires_grad_()
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 5e-2}[dtype]
    ours, theirs = norm(x), torch.nn.functional.rms_norm(x, (16,), norm.weight, 1e-6)
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
    gradients = [torch.autograd.grad(y, [x, norm.weight], upstream) for y in (ours, theirs)]
    for mine, other in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, other, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        torch.testing.assert_close(norm(x), ours, rtol=tolerance, atol=tolerance)
    if dtype == torch.float64:
        assert torch.autograd.gradgradcheck(lambda x: norm(x), x)


def test_rms_norm_keeps_the_dtype_of_its_input_under_autocast() -> None:
    norm, x = RMSNorm(16, eps=1e-6), torch.randn(2, 3, 16, dtype=torch.bfloat16)
    assert norm(x).dtype == torch.bfloat16
    with torch.no_grad():
        assert norm(x).dtype == torch.bfloat16
    norm(x).sum().backward()
    assert norm.weight.grad is not None and norm.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("kind", ["unimodal_ar_decoder", "llama"])
def test_the_attention_kernel_of_a_backbone_is_heeded(kind: str) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    backbone = {"model_type": kind, **sizes, "attn_implementation": "eager"}
    codes = {"element": {"kind": "discrete", "vocab_size": 4}, "grid": (4, 1, 1), "head": {"kind": "categorical"}}
    model: Any = UnimodalARForGeneration(UnimodalARConfig(backbone=backbone, modalities={"codes": codes}))
    assert model.backbone.model.config._attn_implementation == "eager"
