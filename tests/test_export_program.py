"""One step of the backbone by torch.export: what our own decoding computes, position by position, with torch alone."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers import backbone_inputs, build, codes, diffusion, hidden_states, label, labels
from tests.test_frozen_backbone import _language_model
from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.cli import main
from unimodal_ar.export import export_step

LENGTH, ROWS = 10, 2
IMAGE = codes(7, (2, 2, 2))
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], int]] = {
    "native": ("native", {"x": IMAGE}, {}, 1),
    "counted": ("native", {"x": IMAGE}, {"position": "rope_1d"}, 1),
    "adaptive": ("native", {"label": label(conditioning=True), "x": IMAGE}, {}, 1),
    "sinusoidal": ("native", {"x": codes(7, (8, 1, 1))}, {"position": "sinusoidal", "norm": "layernorm"}, 1),
    "rows": ("native", {"x": codes(7, (2, 2, 2), block="row")}, {}, 2),
    "hosted": ("llama", {"label": label(), "x": IMAGE}, {}, 1),
    "eager": ("qwen3", {"x": IMAGE}, {}, 1),
    "learned positions": ("gpt2", {"x": codes(7, (8, 1, 1), block=2)}, {}, 2),
}


def _run(model: Any, context: bool) -> tuple[Tensor, Tensor, Tensor]:
    """What our own decoding gave the backbone and got: embeds, coords and hidden states [ROWS, L, ...]."""
    with backbone_inputs(model) as inputs, hidden_states(model) as states:
        model.generate([labels(*range(ROWS))] if context else [], "x", num_samples=1 if context else ROWS)
    embeds = torch.cat([each.embeds for each in inputs], 1)
    coords = torch.cat([each.coords.expand(ROWS, -1, -1) for each in inputs], 1)
    return embeds, coords, torch.cat(states, 1)


CHILD = """
import json, sys, torch
torch.set_num_threads(1)
done = {}
for folder, (embeds, coords, conditioning) in torch.load(sys.argv[1]).items():
    program = torch.export.load(folder + "/step.pt2").module()
    shapes = {each["name"]: each for each in json.load(open(folder + "/step.json"))["inputs"]}
    n = shapes["embeds"]["shape"][1]
    cache = [[torch.zeros(shapes[name]["shape"])] * shapes[name]["layers"] for name in ("keys", "values")]
    hidden = []
    for place in range(0, embeds.shape[1], n):
        new = slice(place, place + n)
        states, *cache = program(embeds[:, new], coords[:, new], torch.tensor(place), *conditioning, *cache)
        hidden.append(states)
    done[folder] = torch.cat(hidden, 1)
assert not {"transformers", "unimodal_ar"} & set(sys.modules)
torch.save(done, sys.argv[2])
"""


@pytest.fixture(scope="module")
def steps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Tensor, Tensor]]:
    """Hidden states by case: our own, and those of a fresh process with torch alone."""
    home, inputs, expected = tmp_path_factory.mktemp("steps"), {}, {}
    for name, (backbone, modalities, native, positions) in MODELS.items():
        model = build(modalities, backbone, **native)
        if name == "eager":
            model.backbone.model.config._attn_implementation = "eager"
        shapes = export_step(model, home / name, LENGTH, ROWS, positions)
        assert json.loads((home / name / "step.json").read_text()) == shapes
        names = set(torch.export.load(str(home / name / "step.pt2")).state_dict)
        table = {"backbone.model.embed_tokens.weight", "backbone.model.wte.weight"}  # which no input reaches
        assert names == {key for key in model.state_dict() if key.startswith("backbone.")} - table
        with zipfile.ZipFile(home / name / "step.pt2") as archive:  # no examples, no places on this machine
            assert not sum(file.file_size for file in archive.infolist() if "sample_inputs" in file.filename)
            assert not any(b"program.py" in archive.read(file) for file in archive.infolist())
        embeds, coords, expected[name] = _run(model, "label" in modalities)
        conditioned = [model.embeddings["label"].table(torch.arange(ROWS))[:, None]] if name == "adaptive" else []
        inputs[str(home / name)] = embeds, coords, [each.detach() for each in conditioned]
    torch.save(inputs, home / "inputs.pt")
    command = [sys.executable, "-c", CHILD, str(home / "inputs.pt"), str(home / "hidden.pt")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=home)
    assert done.returncode == 0, done.stderr
    found = torch.load(home / "hidden.pt")
    return {name: (expected[name], found[str(home / name)]) for name in MODELS}


@pytest.mark.parametrize("name", MODELS)
def test_steps_are_those_of_our_own_decoding_with_torch_alone(
    name: str, steps: dict[str, tuple[Tensor, Tensor]]
) -> None:
    expected, found = steps[name]
    assert expected.shape[1] >= 8 and expected.std() > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_the_cache_that_goes_in_stays_as_it_is(tmp_path: Path) -> None:
    """So a denoising pass, which must leave no trace, is a step whose cache is dropped."""
    model = build({"x": codes(7, (6, 1, 1), block=2, **diffusion("mask"))}, "native")
    shapes = export_step(model.train(), tmp_path, 6, 1, 2)["inputs"]
    assert model.training
    program: Any = torch.export.load(str(tmp_path / "step.pt2")).module()
    cache = [[torch.zeros(each["shape"]) for _ in range(each["layers"])] for each in shapes[-2:]]
    embeds, coords = torch.randn(1, 2, 32), torch.zeros(1, 2, 3, dtype=torch.long)
    _, keys, _ = program(embeds, coords, torch.tensor(2), *cache)
    assert not any(x.any() for half in cache for x in half)
    written = keys[0].abs().sum((0, 1, 3)) > 0
    assert written.tolist() == [False, False, True, True, False, False]


REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "positions": ("native", {"positions": 11}, "positions is 11; it must be at most the cache_length, 10"),
    "batch": ("native", {"batch_size": 0}, "batch_size is 0; it must be an integer >= 1"),
    "learned": ("gpt2", {"cache_length": 33}, "the sequence has 33 positions; a gpt2 backbone .* has 32"),
    "window": (
        "mistral",
        {"cache_length": 33},
        "the sequence has 33 positions; a mistral backbone with sliding_window 8",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_has_no_such_step_is_refused(name: str, tmp_path: Path) -> None:
    backbone, changes, sentence = REFUSED[name]
    if backbone == "native":
        model = build({"x": codes()}, backbone)
    else:
        window = {"sliding_window": 8} if backbone == "mistral" else {}
        model = UnimodalARForGeneration.from_backbone(_language_model(backbone, **window), {"x": codes()})
    with pytest.raises(ValueError, match=sentence):
        export_step(model, tmp_path, **({"cache_length": LENGTH} | changes))
    assert not list(tmp_path.iterdir())


def test_states_and_other_kernels_are_refused(tmp_path: Path) -> None:
    mamba = dict(model_type="mamba", hidden_size=32, num_hidden_layers=1, vocab_size=8, state_size=4)
    with pytest.raises(ValueError, match="a mamba backbone keeps a state instead of attending; only a backbone with"):
        export_step(build({"x": codes()}, mamba), tmp_path, LENGTH)
    model = build({"x": codes()}, "native")
    model.backbone.model.config._attn_implementation = "flex_attention"
    with pytest.raises(ValueError, match=r"attn_implementation is 'flex_attention'; .* \['eager', 'sdpa'\]"):
        export_step(model, tmp_path, LENGTH)


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build({"x": codes()}, "native").save_pretrained(tmp_path / "model")
    words = ["export", str(tmp_path / "model"), "--to", "torch", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "error: --cache-length is missing; with --to torch" in capsys.readouterr().err
    assert main([*words, "--cache-length", "-1"]) == 2
    assert "error: --cache-length is -1; it must be an integer >= 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*words, "--cache-length", "6", "--batch-size", "3"]) == 0
    shapes = json.loads((tmp_path / "out" / "step.json").read_text())
    assert (shapes["batch_size"], shapes["cache_length"], shapes["positions"]) == (3, 6, 1)
