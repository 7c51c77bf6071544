"""AutoTimes in our model: against vectors of its own code (shared/vectors/AutoTimes.safetensors), and against the whole
method written out below."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, cast

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM, LlamaModel, OPTConfig, OPTModel

from tests.helpers import Vectors, backbone_inputs, hidden_states, perturb, read_vectors
from unimodal_ar import UnimodalARForGeneration, cli
from unimodal_ar.convert.autotimes import convert_autotimes, load_autotimes
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.saving import load_model

# Of a tensor's maximum. Reached: 1e-6 or better; the vectors' own sensitivity to rounding is 5e-6.
TOLERANCE = 1e-5
TOKEN, LOOKBACK, WIDTH = 4, 20, 32
SMALL: dict[str, Any] = dict(vocab_size=16, bos_token_id=0, eos_token_id=1, pad_token_id=1)
SIZE: dict[str, Any] = dict(hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=4)
BODIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Model(GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, n_positions=32, **SMALL)),
    "llama": lambda: LlamaModel(LlamaConfig(**SMALL, **SIZE, intermediate_size=48, num_key_value_heads=2)),
    "opt": lambda: OPTModel(
        OPTConfig(**SMALL, **SIZE, word_embed_proj_dim=WIDTH, ffn_dim=48, max_position_embeddings=32)
    ),
}


class Method(NamedTuple):
    """AutoTimes, written out (arXiv 2402.02370, section 3, and its code): no part of ours takes part."""

    body: nn.Module
    encoder: nn.Module
    decoder: nn.Module
    scale: float | None  # of the timestamps, where there are any

    def forecast(self, x: Tensor, marks: Tensor | None) -> Tensor:
        """x [B, n * TOKEN] -> the same one segment later, [B, n * TOKEN]; marks [B, n, H]."""
        mean = x.mean(1, keepdim=True)
        deviation = (((x - mean) ** 2).mean(1, keepdim=True) + 1e-5) ** 0.5
        segments = ((x - mean) / deviation).reshape(len(x), -1, self.token)
        embedded = self.encoder(segments)
        if self.scale is not None and marks is not None:
            embedded = embedded / (embedded**2).sum(-1, keepdim=True) ** 0.5
            embedded = embedded + self.scale * marks / (marks**2).sum(-1, keepdim=True) ** 0.5
        hidden = self.body(inputs_embeds=embedded, use_cache=False).last_hidden_state
        return self.decoder(hidden).reshape(len(x), -1) * deviation + mean

    @property
    def token(self) -> int:
        return next(self.encoder.parameters()).shape[1]

    def roll_out(self, x: Tensor, marks: Tensor | None, steps: int) -> Tensor:
        """[B, steps * TOKEN]; marks [B, at least n + steps - 1, H]."""
        n, drawn = x.shape[1] // self.token, []
        for step in range(steps):
            now = None if marks is None else marks[:, step : step + n]
            drawn.append(self.forecast(x, now)[:, -self.token :])
            x = torch.cat([x[:, self.token :], drawn[-1]], 1)
        return torch.cat(drawn, 1)

    def weights(self, body: str | None = None) -> dict[str, Tensor]:
        """By their names in the original; of the language model, which is called `body` there, only if it is."""
        parts = {"encoder": self.encoder, "decoder": self.decoder} | ({body: self.body} if body else {})
        named = {f"{part}.{k}": v for part, module in parts.items() for k, v in module.state_dict().items()}
        return named if self.scale is None else {**named, "add_scale": torch.tensor(self.scale)}


def mlp(size: int, out: int, layers: int, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    """A linear map, or, by the names of the original's `MLP`, one behind so many hidden layers of 24."""
    if layers == 0:
        return nn.Linear(size, out)
    sizes = [size, *[24] * layers]
    hidden = [(nn.Linear(a, b), activation(), nn.Dropout(0.1)) for a, b in pairwise(sizes)]
    module = nn.Module()
    module.layers = nn.Sequential(*[part for each in hidden for part in each], nn.Linear(24, out))
    module.forward = module.layers.forward  # type: ignore[method-assign]
    return module.eval()


def method(body: str, layers: int, mixed: bool, activation: type[nn.Module] = nn.Tanh) -> Method:
    torch.manual_seed(3)
    made = BODIES[body]().eval()
    perturb(made, 0.1)
    encoder, decoder = mlp(TOKEN, WIDTH, layers, activation), mlp(WIDTH, TOKEN, layers, activation)
    return Method(made, encoder, decoder, 0.7 if mixed else None)


@torch.no_grad()
def roll_out(converted: tuple[Any, list[Any]], x: Tensor, marks: Tensor, steps: int) -> Tensor:
    """Our forecast of `x` [B, L], segment by segment over the cache, each scaled anew."""
    model, (adapter,) = converted
    patch, length, drawn = adapter.options.patch, x.shape[1], []
    for step in range(steps):
        given = adapter.encode(x.double(), horizon=patch)
        n = given.grid[0]
        if model.options["series"].covariates:
            unknown = torch.zeros_like(marks[:, :1])  # of what is drawn, which nothing reads
            given = given.replace(covariates=torch.cat([marks[:, step : step + n - 1], unknown], 1))
        drawn.append(adapter.decode(model.generate([], "series", given=given))[:, length:].float())
        x = torch.cat([x[:, patch:], drawn[-1]], 1)
    return torch.cat(drawn, 1)


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


def some_series(batch: int = 3, steps: int = 3) -> tuple[Tensor, Tensor]:
    """[B, LOOKBACK] in units far from the standard, and the marks of what is read in `steps` segments."""
    return 5 + 3 * torch.randn(batch, LOOKBACK), 4 * torch.randn(batch, LOOKBACK // TOKEN + steps - 1, WIDTH)


# --- against the original's vectors -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Vectors:
    return read_vectors(shared_dir, "AutoTimes")


@pytest.fixture(scope="module")
def original(vectors: Vectors) -> tuple[UnimodalARForGeneration, list[Any]]:
    return convert_autotimes(vectors.weights(), backbone={"model_type": "gpt2", **vectors.args["gpt2"]}, seq_len=48)


def rows(x: Tensor) -> Tensor:
    """[batch, time, variates] -> [batch * variates, time]: every variate is a series of its own."""
    return x.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def test_the_original_s_inputs_hidden_states_and_forecast(
    vectors: Vectors, original: tuple[UnimodalARForGeneration, list[Any]]
) -> None:
    model, (adapter,) = original
    past, marks = rows(vectors.tensors["in.x"]), vectors.tensors["in.x_mark"]
    segment = adapter.encode(past, horizon=8)
    segment = segment.replace(covariates=torch.cat([marks, torch.zeros_like(marks[:, :1])], 1), observed=None)
    with backbone_inputs(model) as inputs, hidden_states(model) as states:
        model([segment])
    assert_near(inputs[0].embeds, vectors.tensors["out.gpt2_in"])
    assert_near(states[0], vectors.tensors["out.gpt2_out"])
    head: Any = model.heads["series"]
    predicted = adapter.decode(segment.replace(values=head.mean(states[0]), grid=(6, 1, 1), covariates=None))
    assert_near(predicted, rows(vectors.tensors["out.forecast"]))


@torch.no_grad()
def test_the_method_written_out_is_the_original_and_ours_rolls_out_alike(
    vectors: Vectors, original: tuple[UnimodalARForGeneration, list[Any]]
) -> None:
    encoder, decoder, body = nn.Linear(8, 32), nn.Linear(32, 8), GPT2Model(GPT2Config(**vectors.args["gpt2"])).eval()
    for name, module in (("encoder", encoder), ("decoder", decoder), ("gpt2", body)):
        own = {k.removeprefix(f"{name}."): v for k, v in vectors.weights().items() if k.startswith(f"{name}.")}
        module.load_state_dict(own)
    written = Method(body, encoder, decoder, float(vectors.weights()["add_scale"]))
    past, marks = rows(vectors.tensors["in.x"]), vectors.tensors["in.x_mark"]
    assert_near(written.forecast(past, marks), rows(vectors.tensors["out.forecast"]))
    marks = torch.cat([marks, torch.randn(6, 3, 32)], 1)
    assert_near(roll_out(original, past, marks, 1), rows(vectors.tensors["out.forecast"])[:, -8:])
    assert_near(roll_out(original, past, marks, 4), written.roll_out(past, marks, 4))


# --- against the method written out -----------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Method], str]:
    """Saves a method's language model, and says where."""

    def save(written: Method) -> str:
        written.body.save_pretrained(tmp_path / "llm")  # type: ignore[operator]
        return str(tmp_path / "llm")

    return save


@pytest.mark.parametrize("mixed", [False, True], ids=["plain", "timestamps"])
@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("body", BODIES)
@torch.no_grad()
def test_the_trained_part_on_a_saved_language_model(
    body: str, layers: int, mixed: bool, saved: Callable[[Method], str], tmp_path: Path
) -> None:
    written = method(body, layers, mixed)
    torch.save(written.weights(), tmp_path / "checkpoint.pth")
    converted = load_autotimes(tmp_path / "checkpoint.pth", backbone=saved(written), seq_len=LOOKBACK)
    past, marks = some_series()
    expected = written.roll_out(past, marks, 3)
    assert expected[:, :TOKEN].sub(expected[:, -TOKEN:]).abs().min() > 1e-3
    assert_near(roll_out(converted, past, marks, 3), expected)
    missing = past.masked_fill(torch.rand(past.shape) < 0.2, torch.nan)
    model, (adapter,) = converted
    segment, embedding = adapter.encode(missing), cast(Any, model.embeddings["series"])
    assert torch.equal(embedding.embed(segment.values, segment.observed), written.encoder(segment.values))


@torch.no_grad()
def test_forecaster_rolls_out_and_saves(saved: Callable[[Method], str], tmp_path: Path) -> None:
    written = method("llama", 1, mixed=False)
    model, (adapter,) = convert_autotimes(written.weights(), backbone=saved(written), seq_len=LOOKBACK)
    past, _ = some_series()
    expected = written.roll_out(past, None, 3)[:, :10]
    forecaster = Forecaster(model, cast(Any, adapter))
    mean = forecaster.predict(past.numpy(), 10).mean
    assert_near(torch.from_numpy(mean), expected)
    forecaster.save_pretrained(tmp_path / "model")
    again = Forecaster.from_pretrained(tmp_path / "model", device="cpu").predict(past.numpy(), 10).mean
    assert torch.equal(torch.from_numpy(again), torch.from_numpy(mean))


@torch.no_grad()
def test_forecaster_of_a_body_that_moved_and_without_one(saved: Callable[[Method], str], tmp_path: Path) -> None:
    written = method("llama", 0, mixed=False)
    model, (adapter,) = convert_autotimes(written.weights(), backbone=saved(written), seq_len=LOOKBACK)
    past, _ = some_series()
    forecaster = Forecaster(model, cast(Any, adapter))
    mean = forecaster.predict(past.numpy(), 10).mean
    forecaster.save_pretrained(tmp_path / "model")
    forecaster.save_pretrained(tmp_path / "alone", include_backbone=True)
    (tmp_path / "llm").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="from which the frozen body cannot be loaded"):
        Forecaster.from_pretrained(tmp_path / "model", device="cpu")
    again = Forecaster.from_pretrained(tmp_path / "model", device="cpu", backbone=tmp_path / "moved")
    alone = Forecaster.from_pretrained(tmp_path / "alone", device="cpu")
    for loaded in (again, alone):
        assert (loaded.predict(past.numpy(), 10).mean == mean).all()


@torch.no_grad()
def test_timestamps_survive_saving(saved: Callable[[Method], str], tmp_path: Path) -> None:
    written = method("gpt2", 3, mixed=True)
    model, adapters = convert_autotimes(written.weights(), backbone=saved(written), seq_len=LOOKBACK)
    model.save_pretrained(tmp_path / "model")
    past, marks = some_series()
    again = load_model(tmp_path / "model", "cpu")
    assert torch.equal(roll_out((again, adapters), past, marks, 2), roll_out((model, adapters), past, marks, 2))


@torch.no_grad()
def test_whole_checkpoints_and_what_stands_in_them_besides(saved: Callable[[Method], str]) -> None:
    written = method("llama", 0, mixed=True)
    past, marks = some_series()
    expected = written.roll_out(past, marks, 1)
    config = written.body.config.to_dict()  # type: ignore[union-attr, operator]
    outer = LlamaForCausalLM(written.body.config)  # type: ignore[arg-type]
    outer.model.load_state_dict(written.body.state_dict())
    tables = {f"llama.model.layers.{i}.self_attn.rotary_emb.inv_freq": torch.zeros(4) for i in range(2)}
    held = {f"llama.{name}": tensor for name, tensor in outer.state_dict().items()} | tables
    assert "llama.lm_head.weight" in held
    whole = written.weights() | held
    parallel = {f"module.{name}": tensor for name, tensor in (written.weights() | tables).items()}
    for weights, backbone in ((whole, config), (whole, saved(written)), (parallel, saved(written))):
        assert_near(roll_out(convert_autotimes(weights, backbone=backbone, seq_len=LOOKBACK), past, marks, 1), expected)
    # With the whole model in the file, the weights in the folder do not count; they are frozen, too.
    perturb(written.body, 0.3, seed=1)
    converted = convert_autotimes(whole, backbone=saved(written), seq_len=LOOKBACK)
    assert_near(roll_out(converted, past, marks, 1), expected)
    model: Any = converted[0]
    assert not any(x.requires_grad for x in model.backbone.parameters()) and model.config.backbone_source is None


@pytest.mark.parametrize(("name", "activation"), [("relu", nn.ReLU), ("gelu", nn.GELU)])
@torch.no_grad()
def test_activations(name: str, activation: type[nn.Module], saved: Callable[[Method], str]) -> None:
    written = method("gpt2", 1, False, activation)
    given = {"backbone": saved(written), "seq_len": LOOKBACK, "mlp_activation": name, "dropout": 0.25}
    converted = convert_autotimes(written.weights(), **given)
    past, marks = some_series()
    assert_near(roll_out(converted, past, marks, 1), written.roll_out(past, None, 1))
    options = converted[0].options["series"]
    assert options.embedding is not None and options.embedding.dropout == 0.25
    assert options.head is not None and options.head["trunk"]["dropout"] == 0.25


def test_the_command_converts(saved: Callable[[Method], str], tmp_path: Path) -> None:
    written = method("gpt2", 1, mixed=False)
    torch.save(written.weights(), tmp_path / "checkpoint.pth")
    command = ["convert", "autotimes", str(tmp_path / "checkpoint.pth"), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--set", f"backbone={saved(written)}", "--set", f"seq_len={LOOKBACK}"]) == 0
    past, _ = some_series()
    mean = Forecaster.from_pretrained(tmp_path / "out", device="cpu").predict(past.numpy(), TOKEN).mean
    with torch.no_grad():
        assert_near(torch.from_numpy(mean), written.roll_out(past, None, 1))


# --- what does not fit ------------------------------------------------------------------------------------------------


GPT2: dict[str, Any] = {"model_type": "gpt2", "n_embd": WIDTH, "n_layer": 2, "n_head": 4, "n_positions": 32, **SMALL}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "autotimes.backbone: field required"),
        ({"backbone": GPT2, "seq_length": 20}, "autotimes has an unknown key 'seq_length'; did you mean 'seq_len'"),
        ({"backbone": GPT2, "seq_len": 22}, "autotimes.seq_len is 22; it must be a multiple of the segment, 4"),
        ({"backbone": GPT2 | {"n_embd": 64}, "seq_len": 20}, "has hidden_size 64; the weights are for a .* of 32"),
        ({"backbone": GPT2 | {"n_layer": 3}, "seq_len": 20}, r"Missing key\(s\) .*backbone.model.h.2.ln_1.weight"),
        ({"backbone": GPT2, "seq_len": 20, "mlp_activation": "silu"}, "autotimes.mlp_activation is 'silu'"),
    ],
)
def test_settings_that_do_not_fit_are_errors(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        convert_autotimes(method("gpt2", 0, True).weights("gpt2"), **settings)


def test_weights_that_do_not_fit_are_errors() -> None:
    written = method("gpt2", 1, True)
    with pytest.raises(ValueError, match="backbone is a configuration, and the file holds no weights of a language"):
        convert_autotimes(written.weights(), backbone=GPT2, seq_len=20)
    weights = written.weights("gpt2")
    weights["encoder.extra"] = weights.pop("decoder.layers.0.bias")
    with pytest.raises(ValueError, match=r"unknown are \['encoder.extra'\]; missing are \['decoder.layers.0.bias'\]"):
        convert_autotimes(weights, backbone=GPT2, seq_len=20)
    with pytest.raises(ValueError, match=r"weight 'encoder\.weight' is missing"):
        convert_autotimes({}, backbone="nowhere", seq_len=20)


def test_a_model_with_timestamps_is_no_forecaster_without_them(saved: Callable[[Method], str]) -> None:
    written = method("gpt2", 0, mixed=True)
    model, (adapter,) = convert_autotimes(written.weights(), backbone=saved(written), seq_len=LOOKBACK)
    with pytest.raises(ValueError, match="with 0 covariate features; the model wants 4 and 32"):
        Forecaster(model, cast(Any, adapter))
