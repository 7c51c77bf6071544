"""The original BD3-LM in our model, against vectors of its own code (shared/vectors/BD3-LM.safetensors)."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import Vectors, read_vectors
from unimodal_ar import Segment, UnimodalARForGeneration
from unimodal_ar.convert import CONVERTERS
from unimodal_ar.convert.bd3lm import convert_bd3lm, load_bd3lm
from unimodal_ar.objectives.base import TrainingPlan
from unimodal_ar.objectives.noise import Noisy
from unimodal_ar.sequence import Cursor, Part

# Of a tensor's maximum. Reached: 2e-6; the vectors' own sensitivity to rounding is 1.1e-5.
TOLERANCE = 1e-5
SETTINGS: dict[str, Any] = {"block_size": 4, "model_length": 16}
GRID = (16, 1, 1)
MASK = 50

# Layers and width of the configurations in the original repository (tiny, small: the published ones, medium).
PUBLISHED = {"tiny": (8, 256, 8), "small": (12, 768, 12), "medium": (24, 1024, 16)}


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Vectors:
    return read_vectors(shared_dir, "BD3-LM")


@pytest.fixture(scope="module")
def model(vectors: Vectors) -> Any:
    return convert_bd3lm(vectors.weights(), **SETTINGS)[0]


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


def plan(model: Any, vectors: Vectors, length: int = 16, last: bool = False) -> tuple[Segment, TrainingPlan]:
    """The positions of the vectors' clean and noisy tokens."""
    clean, noisy, time = (vectors.tensors[f"in.{name}"][:, :length] for name in ("x0", "xt", "t"))
    segment = Segment("text", clean, (length, 1, 1))
    masked = noisy == MASK
    noise = Noisy(clean, masked=masked, weights=masked / time)
    layout = model.layout("text", segment.grid)
    return segment, model.objectives["text"].plan(model.embeddings["text"], segment, layout, last, noise)


@torch.no_grad()
def logits(model: Any, parts: list[Part], places: Any) -> Tensor:
    hidden = model.backbone(Cursor().place(parts))[:, places]
    return model.heads["text"].logits(hidden).squeeze(-2)


def synthetic(layers: int, width: int, heads: int, rows: int = 50258, conditioning: int = 128) -> dict[str, Tensor]:
    """A state dict of the original code's names and shapes that takes no memory."""
    shapes: dict[str, tuple[int, ...]] = {
        "vocab_embed.embedding": (rows, width),
        "rotary_emb.inv_freq": (width // heads // 2,),
        "sigma_map.mlp.0.weight": (conditioning, 256),
        "sigma_map.mlp.0.bias": (conditioning,),
        "sigma_map.mlp.2.weight": (conditioning, conditioning),
        "sigma_map.mlp.2.bias": (conditioning,),
        "output_layer.norm_final.weight": (width,),
        "output_layer.linear.weight": (rows, width),
        "output_layer.linear.bias": (rows,),
        "output_layer.adaLN_modulation.weight": (2 * width, conditioning),
        "output_layer.adaLN_modulation.bias": (2 * width,),
    }
    for i in range(layers):
        of_layer: dict[str, tuple[int, ...]] = {
            "norm1.weight": (width,),
            "norm2.weight": (width,),
            "attn_qkv.weight": (3 * width, width),
            "attn_out.weight": (width, width),
            "mlp.0.weight": (4 * width, width),
            "mlp.0.bias": (4 * width,),
            "mlp.2.weight": (width, 4 * width),
            "mlp.2.bias": (width,),
            "adaLN_modulation.weight": (6 * width, conditioning),
            "adaLN_modulation.bias": (6 * width,),
        }
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in of_layer.items()}
    return {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}


def toy_weights() -> dict[str, Tensor]:
    return {name: torch.randn(tensor.shape) for name, tensor in synthetic(1, 8, 2, rows=6, conditioning=4).items()}


# --- against the original ---------------------------------------------------------------------------------------------


def test_the_attention_mask(vectors: Vectors, model: Any) -> None:
    pattern = Cursor().place(plan(model, vectors)[1].parts).pattern
    assert torch.equal(pattern.dense()[0, 0], vectors.tensors["out.mask"].bool())


@pytest.mark.parametrize("last", [False, True])
def test_logits_and_log_probabilities(vectors: Vectors, model: Any, last: bool) -> None:
    """Also where the clean copy of the last block, which nobody reads, is left out."""
    _, planned = plan(model, vectors, last=last)
    assert sum(part.embeds.shape[1] for part in planned.parts) == (28 if last else 32)
    ours = logits(model, planned.parts, planned.places)
    assert_near(ours, vectors.tensors["out.logits"][..., :MASK])
    masked = vectors.tensors["in.xt"] == MASK
    assert masked.any() and not masked.all()
    assert_near(ours.log_softmax(-1)[masked], vectors.tensors["out.log_p"][..., :MASK][masked])
    other = vectors.tensors["out.logits_sigma"][..., :MASK]  # with a noise level, which is not converted
    assert (ours - other).abs().max() > 0.1


def test_loss_of_each_token(vectors: Vectors, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    segment, planned = plan(model, vectors)
    monkeypatch.setattr(model.objectives["text"], "training_plan", lambda *_: planned)
    with torch.no_grad():
        ours = model([segment]).element_losses["text"]
    assert_near(ours, vectors.tensors["out.loss_per_token"])
    assert (ours > 0).any() and (ours[:, 0] == 0).all()  # bos is never masked


def test_logits_in_the_middle_of_sampling(vectors: Vectors, model: Any) -> None:
    """One copy of three blocks, with masks in them, under the block-causal mask."""
    _, planned = plan(model, vectors, length=12, last=True)
    copies = replace(planned.parts[0], noisy=False)
    assert_near(logits(model, [copies], slice(None)), vectors.tensors["out.sample_mode_logits"][..., :MASK])


def test_the_semi_autoregressive_sample(vectors: Vectors, model: Any) -> None:
    """The most probable code of the leftmost mask, block after block, from a given bos."""
    theirs = vectors.tensors["out.semi_ar"]
    known = torch.zeros_like(theirs, dtype=torch.bool)
    known[:, 0] = True
    given = Segment("text", torch.where(known, theirs, 0), GRID, observed=known)
    sampler = {"kind": "first_hitting", "order": "forward"}
    drawn = model.generate([], "text", given=given, temperature=0.0, sampler=sampler)
    assert int(theirs[0, 0]) == vectors.args["bos_token_id"] and torch.equal(drawn.values, theirs)
    free = model.generate([], "text", temperature=0.0, sampler=sampler)
    assert not torch.equal(free.values, theirs)


def test_other_gates_and_shifts_are_another_model(vectors: Vectors, model: Any) -> None:
    """Each constant of the adaptive norms is in the weights."""
    _, planned = plan(model, vectors)
    ours = logits(model, planned.parts, planned.places)
    for layer in ("blocks.1", "output_layer"):
        name = f"{layer}.adaLN_modulation.bias"
        for number in range(6 if layer == "blocks.1" else 2):
            weights = vectors.weights()
            bias = weights[name].clone()
            bias[32 * number : 32 * (number + 1)] += 0.5
            other = convert_bd3lm(weights | {name: bias}, **SETTINGS)[0]
            _, planned = plan(other, vectors)
            changed = (logits(other, planned.parts, planned.places) - ours).abs().max()
            assert changed > 1e-2, f"{name} {number}: {changed}"


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["hub", "lightning"])
def test_files_give_the_same_model(vectors: Vectors, model: Any, tmp_path: Path, kind: str) -> None:
    weights = {f"backbone.{name}": tensor for name, tensor in vectors.weights().items()}
    assert CONVERTERS["bd3lm"] is load_bd3lm
    if kind == "hub":
        save_file(weights, tmp_path / "model.safetensors")
        told = {"model_type": "bd3lm", "block_size": 2, "model_length": 16, "n_heads": 4, "cond_dim": 16}
        (tmp_path / "config.json").write_text(json.dumps(told | {"dropout": 0.2, "time_conditioning": False}))
        loaded, adapters = load_bd3lm(tmp_path / "model.safetensors", block_size=4)
    else:
        torch.save({"state_dict": weights, "epoch": 3}, tmp_path / "last.ckpt")
        loaded, adapters = load_bd3lm(tmp_path / "last.ckpt", **SETTINGS)
    assert adapters == [] and loaded.config.backbone.dropout == (0.2 if kind == "hub" else 0.1)
    assert loaded.options["text"].layout.block == 4 and loaded.options["text"].grid == GRID
    ours, theirs = loaded.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


_READ = """
import sys, torch
from unimodal_ar import Segment, UnimodalARForGeneration
model = UnimodalARForGeneration.from_pretrained(sys.argv[1])
known = torch.arange(16)[None] == 0
given = Segment("text", known.long(), (16, 1, 1), observed=known)
drawn = model.generate([], "text", given=given, temperature=0.0, sampler={"kind": "first_hitting", "order": "forward"})
print(drawn.values[0].tolist())
"""


def test_a_fresh_process_draws_the_same(vectors: Vectors, model: UnimodalARForGeneration, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path)
    run = subprocess.run(
        [sys.executable, "-c", _READ, str(tmp_path)], capture_output=True, text=True, check=False, timeout=120
    )
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == vectors.tensors["out.semi_ar"][0].tolist()


def test_the_clipped_schedule_is_kept(vectors: Vectors) -> None:
    """Released files say between which noise levels they were trained; blocks of one always at 1, which is no range."""
    clipped = {"sampling_eps_min": torch.tensor(0.45), "sampling_eps_max": torch.tensor(0.95)}
    objective = convert_bd3lm(vectors.weights() | clipped, **SETTINGS)[0].options["text"].objective
    assert objective == {
        "kind": "block_diffusion",
        "noise": "mask",
        "levels": {"kind": "uniform", "low": 0.45, "high": 0.95},
    }
    ones = dict.fromkeys(clipped, torch.tensor(1.0))
    assert convert_bd3lm(vectors.weights() | ones, **SETTINGS)[0].options["text"].objective["levels"] is None  # type: ignore[index]


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_sizes_fit(size: str) -> None:
    layers, width, heads = PUBLISHED[size]
    with torch.device("meta"):
        converted, _ = convert_bd3lm(synthetic(layers, width, heads), block_size=16)
    assert converted.options["text"].grid == (1024, 1, 1)
    assert converted.options["text"].element.vocab_size == 50257  # type: ignore[union-attr]  # GPT-2's
    assert converted.config.backbone.num_attention_heads == heads


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "settings", "sentence"),
    [
        ({"blocks.0.extra": (1,)}, {}, "weight names do not fit the configuration: unknown are ['blocks.0.extra']"),
        ({"blocks.0.mlp.0.bias": None}, {}, "weight names do not fit the configuration: missing are ['blocks.0.mlp."),
        ({"blocks.0.mlp.2.bias": None}, {}, "weight 'blocks.0.mlp.2.bias' is missing; the file is of other code"),
        ({"blocks.0.attn_qkv.weight": None}, {}, "weight 'blocks.0.attn_qkv.weight' is missing"),
        ({"sigma_map.mlp.2.bias": None}, {}, "weight 'sigma_map.mlp.2.bias' is missing"),
        ({"rotary_emb.inv_freq": None}, {}, "weight 'rotary_emb.inv_freq' is missing"),
        ({"vocab_embed.embedding": None}, {}, "weight 'vocab_embed.embedding' is missing"),
        (
            {"output_layer.adaLN_modulation.weight": None},
            {},
            "weight 'output_layer.adaLN_modulation.weight' is missing; the file is of a next-token model (ar), which "
            "has no adaptive norms and is not converted",
        ),
        ({"blocks.0.norm1.weight": (7,)}, {}, "weights do not fit each other: "),
        ({"output_layer.linear.bias": (5,)}, {}, "weights do not fit the configuration: "),
        (
            {"vocab_embed.embedding": (30522, 8)},
            {},
            "vocab_embed.embedding has 30522 rows, as BERT's tokenizer has ids, whose mask is 103; only models whose",
        ),
        ({}, {"block_size": None}, "bd3lm.block_size"),
        ({}, {"block_size": 0}, "bd3lm.block_size is 0"),
        ({}, {"blocks": 4}, "bd3lm has an unknown key 'blocks'"),
        ({}, {"time_conditioning": True}, "bd3lm.time_conditioning is True: it must be false: norms that follow the "),
        ({}, {"causal": True}, "bd3lm.causal is True: it must be false"),
    ],
)
def test_what_does_not_fit_is_named(change: dict[str, Any], settings: dict[str, Any], sentence: str) -> None:
    weights = toy_weights()
    for name, shape in change.items():
        if shape is None:
            del weights[name]
        else:
            weights[name] = torch.zeros(shape)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        convert_bd3lm(weights, **(SETTINGS | settings))


def test_the_block_size_must_be_known() -> None:
    with pytest.raises(ValueError, match=r"bd3lm\.block_size: field required"):
        convert_bd3lm(toy_weights())


@pytest.mark.parametrize("text", ["{", "[]", '{"model_type": "gpt2", "block_size": 4}'])
def test_a_configuration_of_something_else_is_told(tmp_path: Path, text: str) -> None:
    save_file(toy_weights(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json', beside the weights, is no configuration of a BD3-LM"):
        load_bd3lm(tmp_path / "model.safetensors", block_size=4)
