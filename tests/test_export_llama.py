"""Next-token models as plain language models: the same logits and greedy codes without this package, or a reason."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from torch import Tensor
from transformers import AutoModelForCausalLM

from tests.helpers import build, codes, diffusion, full_hidden, label, labels, series, toy_backbones
from tests.test_frozen_backbone import _language_model
from unimodal_ar import Segment, UnimodalARConfig, UnimodalARForGeneration, lora
from unimodal_ar.cli import main
from unimodal_ar.export import export_llama
from unimodal_ar.saving import load_model

V, ROWS = 7, 3
X = codes(V, (6, 1, 1))
GIVEN = X | {"start": "none"}
TEXT = {"element": {"kind": "discrete", "vocab_size": 4}, "grid": (3, 1, 1), "layout": {"block": 1}}
PLAIN = {"qk_norm": None}
NO_POSITION = PLAIN | {"position": "none"}
COUNTED = {"position": "rope_1d", "rope_theta": 300.0}
LABELLED = {"label": label(null_probability=0.1), "x": codes(V, (1, 2, 3))}
WINDOW = toy_backbones()["llama"] | {"model_type": "mistral", "sliding_window": 3}


@dataclass
class Case:
    """A model, what its language model is called, and the options of the body."""

    kind: str
    backbone: Any
    modalities: dict[str, Any]
    native: dict[str, Any]
    target: str | None = None
    soft_prompt: int = 0

    def build(self) -> Any:
        if not self.soft_prompt:
            return build(self.modalities, self.backbone, **self.native)
        config = UnimodalARConfig(
            backbone=toy_backbones()[self.backbone], modalities=self.modalities, soft_prompt=self.soft_prompt
        )
        torch.manual_seed(0)
        model = UnimodalARForGeneration(config).eval()
        torch.nn.init.normal_(model.backbone.soft_prompt.weight)
        return model


CASES = {
    "unconditional": Case("LlamaForCausalLM", "llama", {"x": X}, {}),
    "class": Case("LlamaForCausalLM", "llama", {"label": label(null_probability=0.1), "x": X}, {}),
    "class as start": Case("Qwen3ForCausalLM", "qwen3", {"x": X | {"start": "context"}, "label": label()}, {}),
    "window": Case("MistralForCausalLM", WINDOW, {"label": label(), "x": X}, {}),
    "text, soft prompt": Case("LlamaForCausalLM", "llama", {"text": TEXT, "x": X}, {}, soft_prompt=2),
    "two targets": Case("LlamaForCausalLM", "llama", {"a": codes(4), "x": X}, {}, "x"),
    "native": Case("Qwen3ForCausalLM", "native", {"label": label(), "x": GIVEN}, {}),
    "native, biases": Case(
        "LlamaForCausalLM", "native", {"x": GIVEN}, PLAIN | {"attention_bias": True, "mlp_bias": True, "head_dim": 12}
    ),
    "native, counted": Case("LlamaForCausalLM", "native", LABELLED, PLAIN | COUNTED),
    "native, counted, class as start": Case(
        "Qwen3ForCausalLM", "native", {"x": X | {"start": "context"}, "label": label()}, COUNTED
    ),
    "native, counted, two targets": Case("Qwen3ForCausalLM", "native", {"a": codes(4), "x": X}, COUNTED, "x"),
    "native, an image": Case("LlamaForCausalLM", "native", {"label": label(), "x": codes(V, (1, 2, 3))}, NO_POSITION),
}


def _values(seed: int, size: int, *shape: int) -> Tensor:
    return torch.randint(size, shape, generator=torch.Generator().manual_seed(seed))


def _context(model: Any) -> list[Segment]:
    found = []
    for name, options in model.options.items():
        if name == "label":
            found.append(labels(*_values(1, 5, ROWS).tolist()))
        elif name != "x":
            values = _values(2, options.element.vocab_size, ROWS, options.grid[0])
            found.append(Segment(name, values, options.grid, target=name in model.heads))
    return found


def _prompt(model: Any, tokens: dict[str, Any]) -> Tensor:
    """[ROWS, T] by what tokens.json says."""
    columns = [torch.tensor(tokens["soft_prompt"], dtype=torch.long).expand(ROWS, -1)]
    for segment in _context(model):
        if segment.target:
            columns.append(torch.full((ROWS, 1), tokens["start"][segment.modality]))
        columns.append(segment.values + tokens["ranges"][segment.modality][0])
    if "x" in tokens["start"]:
        columns.append(torch.full((ROWS, 1), tokens["start"]["x"]))
    if model.options["x"].start == "none":
        columns.append(_values(3, V, ROWS, 6)[:, :1])
    return torch.cat(columns, 1)


def _greedy(model: Any) -> Tensor:
    """[ROWS, 6] our own."""
    observed = torch.zeros(ROWS, 6, dtype=torch.bool)
    observed[:, 0] = model.options["x"].start == "none"
    given = Segment("x", _values(3, V, ROWS, 6), model.options["x"].grid, observed=observed)
    return model.generate(_context(model), "x", given=given, temperature=0).values


def _logits(model: Any) -> Tensor:
    """[ROWS, predicted, V] of the codes `_values(3)`, our own."""
    target = Segment("x", _values(3, V, ROWS, 6), model.options["x"].grid)
    with torch.no_grad():
        hidden = full_hidden(model, [*_context(model), target])
        return model.heads["x"].logits(hidden[:, -(6 - (model.options["x"].start == "none")) :]).squeeze(-2)


CHILD = """
import sys, torch
from transformers import AutoModelForCausalLM
torch.set_num_threads(1)
prompts, done = torch.load(sys.argv[1]), {}
for folder, (prompt, sequence) in prompts.items():
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        logits = model(sequence).logits
    greedy = model.generate(prompt, do_sample=False)
    free = model.generate(prompt, do_sample=False, suppress_tokens=None)
    torch.manual_seed(0)
    drawn = model.generate(prompt, temperature=5.0, num_return_sequences=20)
    done[folder] = type(model).__name__, logits, greedy, free, drawn
assert not [name for name in sys.modules if name.startswith("unimodal_ar")]
torch.save(done, sys.argv[2])
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a fresh process without this package computes, by case."""
    home, prompts, told = tmp_path_factory.mktemp("llama"), {}, {}
    for name, case in CASES.items():
        model, folder = case.build(), home / name
        told[name] = tokens = export_llama(model, folder, case.target)
        assert json.loads((folder / "tokens.json").read_text()) == tokens
        prompt, given = _prompt(model, tokens), model.options["x"].start == "none"
        prompts[str(folder)] = prompt, torch.cat([prompt, _values(3, V, ROWS, 6)[:, int(given) : -1]], 1)
    torch.save(prompts, home / "prompts.pt")
    command = [sys.executable, "-c", CHILD, str(home / "prompts.pt"), str(home / "done.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    found = torch.load(home / "done.pt")
    return {name: (told[name], prompts[str(home / name)][0], *found[str(home / name)]) for name in CASES}


@pytest.mark.parametrize("name", CASES)
def test_logits_and_greedy_codes_are_ours_in_a_process_without_this_package(
    name: str, exported: dict[str, Any]
) -> None:
    model = CASES[name].build()
    _, prompt, kind, logits, greedy, free, _ = exported[name]
    expected = _logits(model)
    assert kind == CASES[name].kind
    torch.testing.assert_close(logits[:, -expected.shape[1] :, :V], expected, rtol=0, atol=1e-5)
    codes = _greedy(model)
    assert greedy.shape[1] == prompt.shape[1] + expected.shape[1]
    assert torch.equal(greedy[:, -expected.shape[1] :], codes[:, -expected.shape[1] :])
    assert torch.equal(free, greedy)  # no other token can be the most probable, even where none is suppressed
    assert len(codes.unique()) > 1


@pytest.mark.parametrize("name", CASES)
def test_tokens_are_apart_and_only_codes_are_drawn(name: str, exported: dict[str, Any]) -> None:
    tokens, prompt, _, logits, _, _, drawn = exported[name]
    singles = [*tokens["start"].values(), *tokens["null"].values(), *tokens["soft_prompt"]]
    taken = [token for first, end in tokens["ranges"].values() for token in range(first, end)] + singles
    assert sorted(taken) == list(range(logits.shape[-1])) and tokens["ranges"]["x"] == [0, V]
    options = CASES[name].build().options.items()
    assert set(tokens["start"]) == {key for key, own in options if own.head and own.start == "learned"}
    new = drawn[:, prompt.shape[1] :]
    assert new.shape == (20 * ROWS, tokens["new_tokens"]) and int(new.max()) < V and len(new.unique()) == V


def test_a_null_token_leaves_the_context_out(tmp_path: Path) -> None:
    model = CASES["class"].build()
    tokens = export_llama(model, tmp_path)
    language_model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    nothing = torch.tensor([[tokens["null"]["label"], tokens["start"]["x"]]])
    given = torch.tensor([[tokens["ranges"]["label"][0] + 2, tokens["start"]["x"]]])
    found = language_model.generate(given, do_sample=False, guidance_scale=3.0, negative_prompt_ids=nothing)
    expected = model.generate([labels(2)], "x", temperature=0, guidance_scale=3.0).values
    assert torch.equal(found[:, 2:], expected)
    assert not torch.equal(expected, model.generate([labels(2)], "x", temperature=0).values)


SCALINGS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 4.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 2},
    "llama3": {
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 2,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_longer_than_the_body_was_made_for(kind: str, tmp_path: Path) -> None:
    """Scaled positions may depend on how long that was, which then stays; else servers are told what they need."""
    rope = {"rope_type": kind, "rope_theta": 10.0, **SCALINGS[kind]}
    body = toy_backbones()["llama"] | {"rope_parameters": rope, "max_position_embeddings": 4}
    model = build({"label": label(), "x": X}, body)
    tokens = export_llama(model, tmp_path)
    language_model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert language_model.config.max_position_embeddings == (9 if kind == "default" else 4)
    prompt, expected = _prompt(model, tokens), _logits(model)
    found = language_model(torch.cat([prompt, _values(3, V, ROWS, 6)[:, :-1]], 1)).logits
    torch.testing.assert_close(found[:, -6:, :V], expected, rtol=0, atol=1e-5)
    assert torch.equal(language_model.generate(prompt, do_sample=False)[:, -6:], _greedy(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_of_two_bytes_stay_what_they_are(dtype: torch.dtype, tmp_path: Path) -> None:
    model = CASES["native, counted"].build()
    exact = _logits(model)
    tokens = export_llama(model.to(dtype), tmp_path)
    language_model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert {x.dtype for x in language_model.parameters()} == {dtype}
    prompt = torch.cat([_prompt(model, tokens), _values(3, V, ROWS, 6)[:, :-1]], 1)
    found, expected = language_model(prompt).logits[:, -6:, :V].float(), _logits(model).float()
    error = (expected - exact).abs().max()  # of rounding, which the two do in different places
    assert 0 < (found - expected).abs().max() < 3 * error < 0.5
    # The same weights, widened, are the same function exactly.
    torch.testing.assert_close(
        language_model.float()(prompt).logits[:, -6:, :V], _logits(model.float()), rtol=0, atol=1e-5
    )


def test_sampling_options_go_along(tmp_path: Path) -> None:
    model = CASES["unconditional"].build()
    model.generation_config = model.generation_config.updated(temperature=0.7, top_k=3, top_p=0.9)
    export_llama(model, tmp_path / "a")
    language_model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "a")
    config, options = language_model.config, language_model.generation_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (V, None, None)
    assert (options.do_sample, options.temperature, options.top_k, options.top_p) == (True, 0.7, 3, 0.9)
    assert options.max_new_tokens == 6 and options.eos_token_id is None and options.bos_token_id == V
    model.generation_config = model.generation_config.updated(temperature=0.0)
    export_llama(model, tmp_path / "b")
    assert not AutoModelForCausalLM.from_pretrained(tmp_path / "b").generation_config.do_sample


def test_coordinates_of_zero_are_no_obstacle(tmp_path: Path) -> None:
    model = build({"x": codes(V, (1, 2, 3))}, "llama")
    with pytest.raises(ValueError, match=r"the grids \{'x': \[1, 2, 3\]\}, so that learned coordinates are added"):
        export_llama(model, tmp_path)
    torch.nn.init.zeros_(model.backbone.coordinates.proj.weight)
    export_llama(model, tmp_path)
    language_model: Any = AutoModelForCausalLM.from_pretrained(tmp_path)
    found = language_model.generate(torch.tensor([[V]]), do_sample=False)
    assert torch.equal(found[:, 1:], model.generate([], "x", temperature=0).values)


MANY = {"kind": "discrete", "vocab_size": 4, "codes": 2}
REFUSED: dict[str, tuple[dict[str, Any], str, dict[str, Any], str]] = {
    "continuous": ({"x": series()}, "llama", {}, "modalities.x.element.kind is 'continuous'"),
    "codebooks": ({"x": X | {"element": MANY}}, "llama", {}, "codes is 2, codes of several codebooks"),
    "merged": ({"x": X | {"element": MANY | {"merge": True}}}, "llama", {}, "codes is 2, merged codes"),
    "covariates": ({"x": X | {"covariates": 2}}, "llama", {}, "modalities.x.covariates is 2"),
    "table": ({"x": X | {"absolute_positions": True}}, "llama", {}, "absolute_positions is True"),
    "targets": ({"x": X | {"target_positions": "fourier"}}, "llama", {}, "target_positions is 'fourier'"),
    "order": ({"x": codes(V, order="random")}, "gpt2", {}, "modalities.x.layout.order is 'random'"),
    "block": ({"x": codes(V, block=2)}, "native", {}, "modalities.x.layout.block is 2; .* must be 1"),
    "context": ({"x": X, "t": TEXT | {"layout": {}}}, "llama", {}, "modalities.t.layout.block is 'whole'"),
    "diffusion": ({"x": X | diffusion("mask")}, "llama", {}, "objective.kind is 'block_diffusion'"),
    "bias": (
        {"x": X | {"head": {"kind": "categorical", "bias": True}}},
        "llama",
        {},
        "head is .*'bias': True.*; .* must be",
    ),
    "body": ({"x": X}, "gpt2", {}, r"backbone.model_type is 'gpt2'; .* \['llama', 'mistral', 'qwen2', 'qwen3'\]"),
    "norm": ({"x": X}, "native", {"norm": "layernorm"}, r"backbone.norm is 'layernorm'; .* \['rmsnorm'\]"),
    "mlp": ({"x": X}, "native", {"mlp": "gelu"}, "backbone.mlp is 'gelu'"),
    "qk_norm": ({"x": X}, "native", {"qk_norm": "layernorm"}, "backbone.qk_norm is 'layernorm'"),
    "post": ({"x": X}, "native", {"norm_position": "post"}, "backbone.norm_position is 'post'"),
    "mlp_bias": ({"x": GIVEN}, "native", {"mlp_bias": True}, r"backbone.mlp_bias is True; .* \[False\]"),
    "position": ({"x": X}, "native", {"position": "sinusoidal"}, "backbone.position is 'sinusoidal'"),
    "conditioning": ({"x": X, "label": label(conditioning=True)}, "native", {}, "modalities.label.conditioning is"),
    "start": ({"x": X}, "native", {}, "modalities.x.start is 'learned', which .* be trained with .* 'rope_1d'"),
    "grid": ({"x": codes(V, (1, 2, 3), start="none")}, "native", {}, r"x.grid is \[1, 2, 3\], .* with .* 'rope_1d'"),
    "axes": ({"x": GIVEN}, "native", {"position_axes": [1.0, 1.0, 0.0]}, r"position_axes is \[1.0, 1.0, 0.0\]"),
    "targets, two": ({"x": X, "y": X}, "llama", {}, r"target is None and the model generates \['x', 'y'\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_language_model_can_be_is_refused(name: str, tmp_path: Path) -> None:
    modalities, backbone, native, sentence = REFUSED[name]
    with pytest.raises(ValueError, match=sentence):
        export_llama(build(modalities, backbone, **native), tmp_path)
    assert not list(tmp_path.iterdir())


def test_guidance_layers_and_targets_are_refused(tmp_path: Path) -> None:
    model = CASES["class"].build()
    with pytest.raises(ValueError, match=r"target is 'label'; this model can generate \['x'\]"):
        export_llama(model, tmp_path, "label")
    model.generation_config = model.generation_config.updated(guidance_scale=2.0)
    with pytest.raises(ValueError, match=r"guidance_scale of the model's generation_config is 2.0; .* must be 1"):
        export_llama(model, tmp_path)
    model = UnimodalARForGeneration.from_backbone(_language_model("llama"), {"x": X}, freeze=True)
    lora.insert(model, LoraConfig(r=2, target_modules=["q_proj"]))
    with pytest.raises(ValueError, match=r"layers of PEFT .* merge them first"):
        export_llama(model, tmp_path)
    (tmp_path / "mine.txt").touch()
    with pytest.raises(ValueError, match=r"out is .*, which holds 'mine.txt'; it must be a new or an empty folder"):
        export_llama(CASES["unconditional"].build(), tmp_path)


def test_guidance_which_can_be_changed_is_told_last(tmp_path: Path) -> None:
    modalities, backbone, native, sentence = REFUSED["axes"]
    model = build(modalities, backbone, **native)
    model.generation_config = model.generation_config.updated(guidance_scale=2.0)
    with pytest.raises(ValueError, match=sentence):
        export_llama(model, tmp_path)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    CASES["unconditional"].build().save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--to", "llama", "--out", str(tmp_path / "out")]
    assert main([*words, "--batch-size", "2"]) == 2
    assert "--batch-size is given with --to llama; it is for --to torch or onnx" in capsys.readouterr().err
    assert main([*words, "--target", "y"]) == 2
    assert "error: --target is 'y'; this model can generate ['x']" in capsys.readouterr().err
    assert main([*words, "--target", "x", "--dtype", "bfloat16"]) == 0
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").dtype == torch.bfloat16
    assert main(words) == 2
    assert "error: --out is" in capsys.readouterr().err


def test_from_a_shipped_recipe_to_a_language_model_by_two_commands(tmp_path: Path) -> None:
    """As the recipe's header says, prompt and all."""
    small = ["model.backbone.hidden_size=16", "model.backbone.num_hidden_layers=1", "training.max_steps=2"]
    small += ["training.use_cpu=true", "evaluation.samples=0"]
    words = [word for setting in small for word in ("--set", setting)]
    assert main(["train", "next_token/digits_llama", "--output", str(tmp_path / "run"), *words]) == 0
    assert main(["export", str(tmp_path / "run"), "--to", "llama", "--out", str(tmp_path / "out")]) == 0
    language_model: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(language_model).__name__ == "LlamaForCausalLM"
    found = language_model.generate(torch.tensor([[17 + 3, 27]]), do_sample=False)
    model = load_model(tmp_path / "run", "cpu")
    assert torch.equal(found[:, 2:], model.generate([labels(3)], "image", temperature=0).values.flatten(1))
