"""Prompt tuning: learned vectors in front of every sequence, in training, likelihoods, generation and files."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModel

from tests.helpers import diffusion, label, labels, perturb, series
from tests.test_frozen_backbone import STEPS, WIDTH, X, _batch, _body, _language_model
from tests.test_peft import BODIES, _base_document, _forecast, _losses, _options, _source
from tests.test_trained_part import _document
from unimodal_ar import Segment, UnimodalARConfig, UnimodalARForGeneration
from unimodal_ar.cli import main
from unimodal_ar.convert import convert_to_block_diffusion
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.recipes.train import train
from unimodal_ar.saving import load_model
from unimodal_ar.training.peft import insert

LENGTH = 3
GRID = (STEPS, 1, 1)


def _model(source: Any, modalities: dict[str, Any] = X, length: int = LENGTH) -> Any:
    """Whose prompt matters."""
    torch.manual_seed(7)
    model = UnimodalARForGeneration.from_backbone(source, modalities, freeze=True, soft_prompt=length).eval()
    perturb(model.embeddings, 0.1, seed=1)
    perturb(model.heads, 0.1, seed=2)
    if length:
        torch.nn.init.normal_(model.backbone.soft_prompt.weight)
    return model


# --- what it computes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_the_body_reads_the_prompt_before_the_sequence(kind: str) -> None:
    """As the body itself would: vectors one after the other, then the elements."""
    body = _language_model(kind)
    model = _model(body)
    given: list[Tensor] = []
    hook = _body(model).register_forward_pre_hook(
        lambda module, _, named: given.append(named["inputs_embeds"]), with_kwargs=True
    )
    expected = _losses(model)
    hook.remove()
    assert given[0].shape == (3, LENGTH + STEPS, WIDTH)
    assert torch.equal(given[0][1, :LENGTH], model.backbone.soft_prompt.weight)
    with torch.no_grad():
        hidden = body.base_model(inputs_embeds=given[0]).last_hidden_state[:, LENGTH:]
        loss = model.heads["x"].loss(hidden, _batch()[0].values, torch.ones(3, STEPS, dtype=torch.bool))
    torch.testing.assert_close(expected, loss, rtol=1e-5, atol=1e-5)
    assert (expected - _losses(_model(body, length=0))).abs().max() > 0.1


@pytest.mark.parametrize(("block", "body"), [*product([1, 2], BODIES), (1, "mamba"), (1, "lfm2")])
def test_generation_with_the_cache_agrees_with_one_pass(block: int, body: str, tmp_path: Path) -> None:
    """What is drawn at temperature 0 is the mean in one pass over the result, padding in front of it or not; and the
    batch changes nothing."""
    if body in BODIES:
        source: Any = _source(tmp_path / "body", body)
    else:
        state = {"state_size": 4} if body == "mamba" else {"layer_types": ["conv", "full_attention"]}
        shape: dict[str, Any] = {"hidden_size": WIDTH, "num_hidden_layers": 2, "vocab_size": 11} | state
        source = AutoModel.from_config(
            CONFIG_MAPPING[body](**shape | {"num_attention_heads": 4, "num_key_value_heads": 2})
        )
        perturb(source, 0.1)
    model = _model(source, {"x": series(dim=4, grid=GRID, block=block)})
    steps, known = torch.arange(STEPS), 2 // block
    observed = (steps < 2) & (steps >= torch.tensor([[0], [1], [0]]))  # the second begins with padding
    given = Segment("x", _batch()[0].values, GRID, observed=observed)
    drawn = model.generate([], "x", given=given, known_blocks=known, temperature=0, num_samples=2)
    with torch.no_grad():
        assert model([drawn]).element_losses["x"][:, 2:].max() < 1e-8  # squared errors of the mean
    alone = given.replace(values=given.values[1:2], observed=observed[1:2])
    found = model.generate([], "x", given=alone, known_blocks=known, temperature=0)
    torch.testing.assert_close(found.values, drawn.values[2:3], rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        model.backbone.soft_prompt.weight.neg_()
    other = model.generate([], "x", given=alone, known_blocks=known, temperature=0)
    assert (other.values - found.values).abs().max() > 1e-3


def test_block_diffusion_with_guidance_reads_it() -> None:
    """Two streams in training, denoising passes over a cache in generation, in the guided counterpart, too."""
    parts = {
        "label": label(null_probability=0.5),
        "x": series(dim=4, grid=GRID, block=2, **diffusion("gaussian")),
    }
    model = _model(_language_model("llama"), parts).train()
    model([labels(0, 1, 2), *_batch()]).loss.backward()
    assert model.backbone.soft_prompt.weight.grad.abs().min() > 0
    model.eval()
    drawn = [
        model.generate(
            [labels(3)], "x", steps=2, guidance_scale=scale, generator=torch.Generator().manual_seed(0)
        ).values
        for scale in (1.0, 2.0, 2.0)
    ]
    assert torch.equal(drawn[1], drawn[2]) and not torch.allclose(drawn[0], drawn[1])
    whole = model.generate([labels(3, 4)], "x", steps=2, guidance_scale=2.0, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(whole.values[:1], drawn[1], rtol=1e-5, atol=1e-5)


def test_positions_of_a_body_are_counted_without_it() -> None:
    body = _language_model("gpt2", n_positions=8)
    model = _model(body, length=2)
    assert model.backbone.longest == 6 and _losses(model).isfinite().all()
    with pytest.raises(ValueError, match=r"the sequence has 6 positions; a gpt2 backbone of .* has 5"):
        _losses(_model(body, length=3))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"soft_prompt": -1}, "soft_prompt is -1; it must be a number of positions >= 0"),
        ({"soft_prompt": True}, "soft_prompt is True; it must be a number of positions >= 0"),
        (
            {"soft_prompt": 2, "backbone": {"model_type": "unimodal_ar_decoder", "conditioning_positions": 9}},
            r"soft_prompt is 2; it must be 0 where norms follow the place .*conditioning_positions is 9",
        ),
    ],
)
def test_prompts_that_cannot_be(changes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        UnimodalARConfig(modalities=X, **changes)


# --- training and files -----------------------------------------------------------------------------------------------


def _prompt_document(folder: Path, **peft: Any) -> dict[str, Any]:
    document = _document(folder) | {"peft": {"method": "prompt", "length": LENGTH, **peft}}
    return document | {"training": document["training"] | {"learning_rate": 0.05}}


def test_a_recipe_trains_the_prompt_of_a_language_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its folder holds the prompt with what is beside the body, forecasts in a fresh process, and has nothing to
    merge."""
    run = train(_prompt_document(tmp_path))
    assert run is not None and "3 vectors in front of every sequence; " in capsys.readouterr().out
    weights = load_file(run / "model.safetensors")
    assert weights["backbone.soft_prompt.weight"].shape == (LENGTH, WIDTH)
    assert not any(name.startswith("backbone.model.") for name in weights) and not list(run.glob("adapter_*"))
    start = load_file(run / "checkpoints" / "checkpoint-2" / "model.safetensors")
    assert not torch.equal(start["backbone.soft_prompt.weight"], weights["backbone.soft_prompt.weight"])
    out = tmp_path / "out.csv"
    words = ["forecast", str(tmp_path / "series.csv"), "--model", str(run), "--horizon", "6", "--out", str(out)]
    subprocess.run([sys.executable, "-m", "unimodal_ar", *words], check=True, capture_output=True)
    expected = Forecaster.from_pretrained(run).predict(str(tmp_path / "series.csv"), 6).mean[0]
    np.testing.assert_allclose(np.genfromtxt(out, delimiter=",", names=True)["mean"], expected, rtol=1e-5)
    assert main(["merge", str(run), "--out", str(tmp_path / "merged")]) == 2
    assert "holds no adapter_config.json; there is nothing to merge" in capsys.readouterr().err
    other = _source(tmp_path / "other", "gpt2", seed=1)
    with pytest.raises(ValueError, match="works with no other body"):
        UnimodalARForGeneration.from_pretrained(run, backbone=other)


def test_the_prompt_alone_is_trained_for_a_model_of_ours(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = train(_base_document(tmp_path))
    document = _base_document(tmp_path) | {"init_from": str(base), "output_dir": str(tmp_path / "run")}
    document["peft"] = {"method": "prompt", "length": LENGTH, "modules_to_save": []}
    run = train(document)
    assert base is not None and run is not None
    assert "embeddings.series, heads.series stay as they are" in capsys.readouterr().out
    before, after = load_file(base / "model.safetensors"), load_file(run / "model.safetensors")
    assert after.keys() == {name for name in before if not name.startswith("backbone.")} | {
        "backbone.soft_prompt.weight"
    }
    assert all(torch.equal(x, after[name]) for name, x in before.items() if name in after)
    assert not np.allclose(_forecast(run), _forecast(base))
    # It goes on from there, and is kept by what else is made of the model.
    further = train(document | {"init_from": str(run), "output_dir": str(tmp_path / "further")})
    assert further is not None
    assert not torch.equal(
        load_file(further / "model.safetensors")["backbone.soft_prompt.weight"], after["backbone.soft_prompt.weight"]
    )
    with pytest.raises(ValueError, match=r"unknown are \['backbone.soft_prompt.weight'\]"):
        train(document | {"init_from": str(run), "peft": None, "output_dir": str(tmp_path / "none")})
    converted: Any = convert_to_block_diffusion(load_model(run), 2)
    assert torch.equal(converted.backbone.soft_prompt.weight, after["backbone.soft_prompt.weight"])


def test_new_weights_are_trained_with_it(tmp_path: Path) -> None:
    model = UnimodalARForGeneration.from_backbone(_language_model("llama"), X, freeze=True, soft_prompt=LENGTH)
    assert model.backbone.soft_prompt.weight.std() > 0 and "backbone.soft_prompt" in model.new_modules()
    insert(model, _options("prompt"), new=True)
    trained = {name for name, x in model.named_parameters() if x.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("backbone.model.")}
    with pytest.raises(ValueError, match=r"leaves out \['embeddings.x', 'heads.x'\], whose weights are new"):
        insert(model, _options("prompt", modules_to_save=[]), new=True)
