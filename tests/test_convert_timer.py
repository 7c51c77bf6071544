"""The original Timer decoder in our model, against vectors of its own code (shared/vectors/Timer.safetensors)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.helpers import Vectors, read_vectors
from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.adapters import TimeSeriesAdapter
from unimodal_ar.convert.timer import convert_timer, load_timer
from unimodal_ar.convert.weights import read_weights
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.sequence import Cursor, Inputs

# Of a tensor's maximum. Reached: 1e-6 or better; the vectors' own sensitivity to rounding is 6e-6.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def vectors(shared_dir: Path) -> Vectors:
    return read_vectors(shared_dir, "Timer", seq_len=48)


@pytest.fixture(scope="module")
def converted(vectors: Vectors) -> tuple[UnimodalARForGeneration, TimeSeriesAdapter]:
    return convert_timer(vectors.weights(), vectors.args)


def released(vectors: Vectors) -> dict[str, Tensor]:
    """The weights by the names of a released checkpoint, its table of positions among them."""
    prefix = "backbone."
    weights = {f"model.{k.removeprefix(prefix)}": v for k, v in vectors.weights().items() if k.startswith(prefix)}
    return weights | {"model.patch_embedding.position_embedding.pe": torch.zeros(1, 5000, 32)}


def assert_near(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours.float(), theirs, rtol=0, atol=TOLERANCE * float(theirs.abs().max()))


def rows(x: Tensor) -> Tensor:
    """[batch, time, variates] -> [batch * variates, time]: to Timer every variate is a series of its own."""
    return x.transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def teacher_forced(
    converted: tuple[UnimodalARForGeneration, TimeSeriesAdapter], past: Tensor
) -> tuple[Inputs, Tensor, Tensor]:
    """The backbone's inputs, its hidden states, and what the head predicts at each patch of `past` [B, L], in the
    series' units [B, L]."""
    model, adapter = converted
    segment = adapter.encode(past, horizon=adapter.options.patch)
    name = adapter.modality
    layout = model.layout(name, segment.grid)
    plan = model.objectives[name].training_plan(model.embeddings[name], segment, layout, last=True)
    inputs = Cursor().place(plan.parts)
    hidden = model.backbone(inputs)
    predicted = cast(Any, model.heads[name]).mean(hidden)
    steps = predicted.shape[1]
    return inputs, hidden, adapter.decode(segment.replace(values=predicted, observed=None, grid=(steps, 1, 1)))


def test_forecast_hidden_states_and_embeddings(
    vectors: Vectors, converted: tuple[UnimodalARForGeneration, TimeSeriesAdapter]
) -> None:
    inputs, hidden, forecast = teacher_forced(converted, rows(vectors.tensors["in.x"]))
    embedded, rotary = cast(Any, converted[0].backbone).model.position(inputs.embeds, inputs.coords)
    assert rotary is None
    assert_near(embedded, vectors.tensors["out.embed"])
    assert_near(hidden, vectors.tensors["out.hidden"])
    assert_near(forecast, rows(vectors.tensors["out.forecast"]))


def test_imputation_is_the_forecast_written_one_patch_earlier(
    vectors: Vectors, converted: tuple[UnimodalARForGeneration, TimeSeriesAdapter]
) -> None:
    seen = vectors.tensors["in.mask"] == 1
    assert not seen.all()
    past = vectors.tensors["in.x_imp"].masked_fill(~seen, torch.nan)
    assert_near(teacher_forced(converted, rows(past))[2], rows(vectors.tensors["out.imputation"]))


def test_rollout_before_and_after_saving(
    vectors: Vectors, converted: tuple[UnimodalARForGeneration, TimeSeriesAdapter], tmp_path: Path
) -> None:
    past, expected = rows(vectors.tensors["in.x"]), rows(vectors.tensors["out.rollout"])
    forecaster = Forecaster(*converted)
    mean = torch.from_numpy(forecaster.predict(past.numpy(), expected.shape[1]).mean)
    assert_near(mean, expected)
    forecaster.save_pretrained(tmp_path)
    again = Forecaster.from_pretrained(tmp_path, device="cpu").predict(past.numpy(), expected.shape[1]).mean
    assert torch.equal(torch.from_numpy(again), mean)


@pytest.mark.parametrize("kind", ["safetensors", "ckpt", "pth"])
def test_files_of_released_names_give_the_same_model(
    vectors: Vectors, converted: tuple[UnimodalARForGeneration, TimeSeriesAdapter], tmp_path: Path, kind: str
) -> None:
    path = tmp_path / f"timer.{kind}"
    if kind == "safetensors":
        save_file(released(vectors), path)
    elif kind == "ckpt":
        torch.save({"state_dict": released(vectors)}, path)
    else:
        torch.save({name.removeprefix("model."): value for name, value in released(vectors).items()}, path)
    model, (adapter,) = load_timer(path, **vectors.args)
    assert adapter.config() == converted[1].config()
    ours, theirs = model.state_dict(), converted[0].state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_unknown_and_missing_names_are_all_told(vectors: Vectors) -> None:
    weights = released(vectors)
    weights["model.decoder.extra"] = weights.pop("model.proj.bias")
    with pytest.raises(ValueError, match=r"unknown are \['decoder.extra'\]; missing are \['proj.bias'\]"):
        convert_timer(weights, vectors.args)
    with pytest.raises(ValueError, match=r"missing are \['decoder.attn_layers.2.attention.key_projection.bias'"):
        convert_timer(vectors.weights(), {**vectors.args, "e_layers": 3})


def test_weights_that_do_not_fit_are_errors(vectors: Vectors) -> None:
    with pytest.raises(ValueError, match=r"size mismatch for embeddings\.series\.value\.weight"):
        convert_timer(vectors.weights(), {**vectors.args, "patch_len": 4})
    weights = released(vectors)
    weights["model.decoder.attn_layers.1.conv2.weight"] = torch.zeros(32, 64, 3)
    with pytest.raises(ValueError, match=r"layers\.1\.mlp\.down_proj\.weight has shape \[32, 64, 3\]"):
        convert_timer(weights, vectors.args)
    weights = vectors.weights()
    weights["proj.bias"] = weights["proj.bias"] + 1
    with pytest.raises(ValueError, match=r"'proj\.bias' differs from its other copy"):
        convert_timer(weights, vectors.args)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"activation": "relu"}, "args.activation is 'relu'"),
        ({"seq_len": 50}, "args.seq_len is 50; it must be a positive multiple of patch_len 8"),
        ({"seq_len": 0}, "args.seq_len is 0"),
    ],
)
def test_arguments_without_equivalent_are_errors(change: dict[str, Any], message: str) -> None:
    args = {"patch_len": 8, "d_model": 32, "d_ff": 64, "e_layers": 2, "n_heads": 4, "seq_len": 48}
    with pytest.raises(ValueError, match=message):
        convert_timer({}, args | change)


def test_missing_arguments_are_named() -> None:
    with pytest.raises(ValueError, match=r"args lack \['n_heads', 'seq_len'\]"):
        convert_timer({}, {"patch_len": 8, "d_model": 32, "d_ff": 64, "e_layers": 2})


def test_files_that_hold_no_weights_are_errors(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"weights file '.*none.ckpt' does not exist"):
        load_timer(tmp_path / "none.ckpt")
    torch.save({"state_dict": {"a": Path()}}, tmp_path / "code.ckpt")
    with pytest.raises(ValueError, match="is not a torch file of tensors alone"):
        load_timer(tmp_path / "code.ckpt")
    torch.save([torch.zeros(1)], tmp_path / "list.ckpt")
    with pytest.raises(ValueError, match="holds no state dict"):
        load_timer(tmp_path / "list.ckpt")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.safetensors", b""),
        ("b.safetensors", b"x" * 50),
        ("c.pt", b""),
        ("d.pt", b"weights\n"),
        ("e.pth", b"PK\3\4ab"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"^weights file '.*{name}' (cannot be read|is not a torch file)"):
        read_weights(tmp_path / name)
