"""Configurations: what is rejected and how it is told, and that JSON gives back what was saved."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig

from unimodal_ar import UnimodalARConfig, UnimodalARDecoder, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.modality import LayoutOptions

NATIVE = {"model_type": "unimodal_ar_decoder", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
SERIES: dict[str, Any] = {
    "element": {"kind": "continuous", "dim": 4},
    "grid": [6, 1, 1],
    "head": {"kind": "quantile", "levels": [0.1, 0.5, 0.9]},
    "covariates": 3,
    "loss_weight": 0.5,
}
IMAGE: dict[str, Any] = {
    "element": {"kind": "discrete", "vocab_size": 5, "codes": 2},
    "grid": [1, 4, 4],
    "layout": {"block": (1, 2, 2)},
    "head": {"kind": "categorical"},
    "start": "none",
}
LABEL: dict[str, Any] = {"element": {"kind": "discrete", "vocab_size": 3}, "grid": [1, 1, 1], "null_probability": 0.1}


def _config(**changes: Any) -> UnimodalARConfig:
    return UnimodalARConfig(**{"backbone": NATIVE, "modalities": {"series": SERIES}, **changes})


def _message(**changes: Any) -> str:
    with pytest.raises(ValueError, match=r".") as caught:
        _config(**changes)
    return str(caught.value)


def _modality(**changes: Any) -> str:
    return _message(modalities={"series": {**SERIES, **changes}})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"modalites": {}}, "UnimodalARConfig has an unknown key 'modalites'; did you mean 'modalities'?"),
        (
            {"hiden_size": 3},
            "UnimodalARConfig has an unknown key 'hiden_size'; legal keys are "
            "['backbone', 'backbone_dtype', 'backbone_source', 'freeze_backbone', 'modalities', 'soft_prompt']",
        ),
        (
            {"backbone": {**NATIVE, "hiden_size": 3}},
            "UnimodalARDecoderConfig has an unknown key 'hiden_size'; did you mean 'hidden_size'?",
        ),
        (
            {"backbone": {"model_type": "llama", "hiden_size": 3}},
            "backbone (llama) has an unknown key 'hiden_size'; did you mean 'hidden_size'?",
        ),
        (
            {"backbone": {"model_type": "gpt2", "n_layers": 3}},
            "backbone (gpt2) has an unknown key 'n_layers'; did you mean 'n_layer'?",
        ),
        (
            {"modalities": {"series": {**SERIES, "grids": 1}}},
            "modalities.series has an unknown key 'grids'; did you mean 'grid'?",
        ),
        (
            {"modalities": {"series": {**SERIES, "layout": {"blok": 1}}}},
            "modalities.series.layout has an unknown key 'blok'; did you mean 'block'?",
        ),
        (
            {"modalities": {"series": {**SERIES, "element": {"kind": "continuous", "dims": 2, "dim": 2}}}},
            "modalities.series.element has an unknown key 'dims'; did you mean 'dim'?",
        ),
        (
            {"modalities": {"series": {**SERIES, "head": {"kind": "quantile", "level": [0.5]}}}},
            "modalities.series.head has an unknown key 'level'; did you mean 'levels'?",
        ),
        (
            {"modalities": {"series": {**SERIES, "objective": {"kind": "next_block", "noise": "mask"}}}},
            "modalities.series.objective has an unknown key 'noise'",
        ),
    ],
)
def test_unknown_key_is_rejected_at_every_level(changes: dict[str, Any], expected: str) -> None:
    """Trap 9.4: misspelt keywords are accepted silently."""
    assert expected in _message(**changes)


@pytest.mark.parametrize("name", ["temperature", "top_k", "top_p", "max_length", "num_beams", "do_sample"])
def test_generation_names_are_rejected(name: str) -> None:
    """Trap 9.4: generation names given to a configuration are dropped silently."""
    assert f"UnimodalARConfig has an unknown key {name!r}" in _message(**{name: 1})
    with pytest.raises(ValueError, match=f"UnimodalARDecoderConfig has an unknown key {name!r}"):
        UnimodalARDecoderConfig(**{name: 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("load", [UnimodalARConfig.from_pretrained, AutoConfig.from_pretrained])
def test_from_pretrained_rejects_unknown_names(load: Any, tmp_path: Path) -> None:
    """Trap 9.4: from_pretrained(dir, hiden_size=3) is accepted silently, also through the Auto class."""
    _config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="unknown key 'modalites'; did you mean 'modalities'"):
        load(tmp_path, modalites={})
    with pytest.raises(ValueError, match="unknown key 'temperature'"):
        load(tmp_path, temperature=0.5)


def test_model_from_pretrained_rejects_unknown_names(tmp_path: Path) -> None:
    """Trap 9.4: what the configuration leaves over goes to the model's constructor, which must not take it."""
    UnimodalARForGeneration(_config()).save_pretrained(tmp_path)
    with pytest.raises(TypeError, match="hiden_size"):
        UnimodalARForGeneration.from_pretrained(tmp_path, hiden_size=3)


def test_unknown_key_in_a_saved_file_is_rejected(tmp_path: Path) -> None:
    """Trap 9.4: a file edited by hand is checked as keyword arguments are."""
    _config().save_pretrained(tmp_path)
    file = tmp_path / "config.json"
    content = json.loads(file.read_text())
    content["backbone"]["hiden_size"] = 3
    file.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="'hiden_size'; did you mean 'hidden_size'"):
        UnimodalARConfig.from_pretrained(tmp_path)


def test_changes_in_from_pretrained_are_checked_like_the_rest(tmp_path: Path) -> None:
    """Trap 9.4: transformers sets such changes after every check."""
    _config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"modalities\.series has an unknown key 'girds'"):
        UnimodalARConfig.from_pretrained(tmp_path, modalities={"series": {**SERIES, "girds": 1}})
    with pytest.raises(ValueError, match="hidden_size is -1"):
        UnimodalARConfig.from_pretrained(tmp_path, backbone={"hidden_size": -1})
    changed = UnimodalARConfig.from_pretrained(tmp_path, backbone={"dropout": 0.25})
    assert (changed.backbone.dropout, changed.backbone.hidden_size) == (0.25, 16)


def test_a_saved_hosted_body_may_hold_keys_that_its_class_does_not_declare(tmp_path: Path) -> None:
    """Old checkpoints carry such keys (Llama's pretraining_tp): saving one around which a model was built must load."""
    body = LlamaConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, pretraining_tp=2
    )
    _config(backbone=body).save_pretrained(tmp_path)
    assert UnimodalARConfig.from_pretrained(tmp_path).backbone.pretraining_tp == 2


@pytest.mark.parametrize(
    "backbone",
    [
        None,
        NATIVE,
        {
            **NATIVE,
            "position_axes": [1, 2, 2],
            "norm": "layernorm",
            "qk_norm": None,
            "mlp": "gelu",
            "norm_position": "post",
        },
        {**NATIVE, "position": "sinusoidal", "num_key_value_heads": 1, "head_dim": 6},
        UnimodalARDecoderConfig(hidden_size=16, num_attention_heads=2),
        GPT2Config(n_embd=16, n_head=2, n_layer=1),
        {
            "model_type": "llama",
            "hidden_size": 16,
            "num_attention_heads": 2,
            "num_hidden_layers": 1,
            "rope_theta": 500.0,
        },
        {"model_type": "gpt2", "n_embd": 16, "num_hidden_layers": 1, "n_head": 2},
        {"model_type": "mamba", "hidden_size": 16, "num_hidden_layers": 1},
    ],
)
def test_json_gives_back_an_equal_configuration(backbone: Any, tmp_path: Path) -> None:
    """Trap 9.4: free dicts of modalities, tuples and nested configurations must survive JSON."""
    config = _config(backbone=backbone, modalities={"series": SERIES, "image": IMAGE, "label": LABEL})
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is UnimodalARConfig and type(loaded.backbone) is type(config.backbone)
    left, right = loaded.to_dict(), config.to_dict()
    for side in (left, right):  # saving fills these in
        side.pop("transformers_version")
        side.pop("_name_or_path", None)
        side["backbone"].pop("transformers_version", None)
    assert left == right
    for name in ("series", "image", "label"):
        assert loaded.modality(name) == config.modality(name)
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "config.json").read_text()


def test_a_configuration_does_not_change_what_it_is_given() -> None:
    """The caller's dictionaries may be used for a second model."""
    before = json.dumps([NATIVE, SERIES, IMAGE])
    _config(modalities={"series": SERIES, "image": IMAGE})
    assert json.dumps([NATIVE, SERIES, IMAGE]) == before


def test_every_own_field_is_saved(tmp_path: Path) -> None:
    """A checkpoint must not change its meaning when a default does."""
    UnimodalARDecoderConfig().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(UnimodalARDecoderConfig._own_fields()) <= set(saved)
    _config().save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert set(UnimodalARDecoderConfig._own_fields()) <= set(saved["backbone"])
    assert set(saved["modalities"]["series"]) >= {
        "element",
        "grid",
        "layout",
        "objective",
        "head",
        "loss_weight",
        "start",
    }


@pytest.mark.parametrize("block", [1, 3, "row", "frame", "whole", [4, 4, 8], (1, 2, 2), {"cell": [1, 2, 2]}, None])
def test_blocks_survive_json(block: Any) -> None:
    """Trap 9.4: JSON has no tuples, and a cell must not come back as a list of sizes."""
    options = LayoutOptions(block=block)
    assert LayoutOptions.model_validate_json(options.model_dump_json()) == options
    assert options.block == ({"cell": list(block)} if isinstance(block, tuple) else block)


def test_mutable_defaults_are_not_shared() -> None:
    """Trap 9.4: a mutable default would be one object for all configurations."""
    first, second = UnimodalARConfig(), UnimodalARConfig()
    first.modalities["x"] = LABEL
    first.backbone.hidden_size = 1
    assert second.modalities == {} and second.backbone.hidden_size == UnimodalARDecoderConfig().hidden_size


@pytest.mark.parametrize(
    ("name", "value", "legal"),
    [
        ("hidden_size", "a", "a positive integer"),
        ("hidden_size", 0, "a positive integer"),
        ("num_hidden_layers", True, "an integer >= 0"),
        ("num_hidden_layers", False, "an integer >= 0"),
        ("num_hidden_layers", -1, "an integer >= 0"),
        ("num_attention_heads", 2.0, "a positive integer"),
        ("num_key_value_heads", 0, "a positive integer or None"),
        ("head_dim", "8", "a positive integer or None"),
        ("intermediate_size", -1, "a positive integer or None"),
        ("conditioning_size", 1.5, "a positive integer or None"),
        ("norm", "batchnorm", "one of ['rmsnorm', 'layernorm', 'none']"),
        ("norm_position", "mid", "one of ['pre', 'post']"),
        ("qk_norm", "l2", "one of ['rmsnorm', 'layernorm', None]"),
        ("mlp", "relu", "one of ['swiglu', 'gelu', 'gelu_tanh', 'none']"),
        ("position", "alibi", "one of ['rope', 'rope_1d', 'sinusoidal', 'none']"),
        ("attention_bias", "no", "true or false"),
        ("mlp_bias", 1, "true or false"),
        ("dropout", 1.0, "a number in [0, 1)"),
        ("attention_dropout", "x", "a number in [0, 1)"),
        ("norm_eps", None, "a number >= 0"),
        ("initializer_range", float("nan"), "a number >= 0"),
        ("rope_theta", 0, "a number >= 1"),
        ("position_axes", "abc", "three shares (t, h, w) >= 0, not all 0"),
        ("position_axes", [1, 1], "three shares (t, h, w) >= 0, not all 0"),
        ("position_axes", [0, 0, 0], "three shares (t, h, w) >= 0, not all 0"),
        ("position_axes", [1, -1, 1], "three shares (t, h, w) >= 0, not all 0"),
    ],
)
def test_decoder_values_of_wrong_type_or_range(name: str, value: Any, legal: str) -> None:
    """Trap 9.4: transformers checks no types: hidden_size="a" is accepted and saved."""
    with pytest.raises(ValueError, match=r".") as caught:
        UnimodalARDecoderConfig(**{name: value})
    assert str(caught.value) == f"{name} is {value!r}; it must be {legal}"


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        (
            dict(hidden_size=30, num_attention_heads=4),
            "hidden_size is 30; it must be a multiple of num_attention_heads 4",
        ),
        (
            dict(num_attention_heads=4, num_key_value_heads=3),
            "num_key_value_heads is 3; it must divide num_attention_heads 4",
        ),
        (dict(hidden_size=12, num_attention_heads=4), "head_dim is odd"),
        (dict(head_dim=7), "head_dim is odd"),
    ],
)
def test_decoder_sizes_that_do_not_fit(sizes: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        UnimodalARDecoderConfig(**sizes)


def test_decoder_sizes_that_are_derived() -> None:
    config = UnimodalARDecoderConfig(hidden_size=96, num_attention_heads=6)
    assert (config.num_key_value_heads, config.head_dim, config.intermediate_size) == (6, 16, 256)
    assert UnimodalARDecoderConfig(hidden_size=40, mlp="gelu").intermediate_size == 160
    assert UnimodalARDecoderConfig(hidden_size=40).intermediate_size == 128  # 106.7 up to a multiple of 32


@pytest.mark.parametrize(
    ("grids", "axes"),
    [
        ([[6, 1, 1]], [1, 0, 0]),
        ([[1, 4, 4]], [1, 1, 1]),  # segments follow each other along t
        ([[1, 4, 4], [1, 1, 1]], [1, 1, 1]),
        ([[2, 4, 1]], [1, 1, 0]),
        ([[1, 1, 1]], [1, 0, 0]),
    ],
)
def test_position_axes_follow_the_grids(grids: list[list[int]], axes: list[float]) -> None:
    part = {"element": {"kind": "continuous", "dim": 2}, "head": {"kind": "regression"}}
    modalities = {f"m{i}": {**part, "grid": grid} for i, grid in enumerate(grids)}
    assert _config(modalities=modalities).backbone.position_axes == axes
    written = _config(backbone={**NATIVE, "position_axes": [1, 2, 3]}, modalities=modalities)
    assert written.backbone.position_axes == [1, 2, 3]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"element": {"kind": "continuous", "dim": 0}}, "modalities.series.element.dim is 0: "),
        ({"element": {"kind": "codes", "dim": 2}}, "modalities.series.element is {'kind': 'codes', 'dim': 2}: "),
        ({"grid": [6, 1]}, "modalities.series.grid"),
        ({"grid": [6, 1, 0]}, "modalities.series.grid.2 is 0: "),
        ({"grid": None}, "modalities.series.grid is None: "),
        (
            {"layout": {"order": "spiral"}},
            "modalities.series.layout.order is 'spiral': known orders are ['coarse_first', 'columns', 'first_frame', ",
        ),
        ({"layout": {"block": 0}}, "modalities.series.layout.block is 0: "),
        ({"layout": {"block": "rows"}}, "modalities.series.layout.block is 'rows': "),
        ({"layout": {"block": [2, 2]}}, "modalities.series.layout: "),
        ({"layout": {"block": (4, 1, 1)}}, "modalities.series.layout: cell (4, 1, 1) does not divide grid (6, 1, 1)"),
        ({"layout": {"block": {"cel": [1, 1, 1]}}}, "modalities.series.layout.block is {'cel': [1, 1, 1]}"),
        ({"loss_weight": -1}, "modalities.series.loss_weight is -1: "),
        ({"start": "zero"}, "modalities.series.start is 'zero': "),
        ({"covariates": -1}, "modalities.series.covariates is -1: "),
        ({"null_probability": 1.0}, "modalities.series.null_probability is 1.0: "),
        ({"head": {"kind": "softmax"}}, "modalities.series.head.kind is 'softmax'; known kinds are ['categorical'"),
        ({"head": {}}, "modalities.series.head.kind is None; known kinds are ["),
        ({"objective": {"kind": "next"}}, "modalities.series.objective.kind is 'next'; known kinds are ["),
        (
            {"head": {"kind": "categorical"}},
            "modalities.series.head.kind is 'categorical', a head for discrete elements; the element is continuous",
        ),
        (
            {"head": None, "objective": {"kind": "next_block"}},
            "has an objective but no head; a modality that is generated needs both",
        ),
    ],
)
def test_modality_values_that_are_illegal(changes: dict[str, Any], expected: str) -> None:
    message = _modality(**changes)
    assert expected in message
    assert "\n" not in message


def test_all_wrong_keys_of_a_modality_are_told_at_once() -> None:
    message = _modality(grids=1, start="x", layout={"blok": 2})
    assert all(part in message for part in ("'grids'", "series.start is 'x'", "'blok'"))


@pytest.mark.parametrize("name", ["", "a.b", "values", "type", "training"])
def test_modality_names(name: str) -> None:
    assert _message(modalities={name: SERIES}) == (
        f"modality name is {name!r}; it must be a non-empty string without dots, and no attribute of a ModuleDict"
    )


def test_what_cannot_be_looked_up_is_an_error_too() -> None:
    assert "head.kind is []; known kinds are" in _message(modalities={"x": {**SERIES, "head": {"kind": []}}})
    assert "modalities is a list; it must map names to options" in _message(modalities=[1])
    assert "must be {'cell': [t, h, w]}" in _message(
        modalities={"x": {**SERIES, "layout": {"order": "random", "block": {"cel": [1, 1, 1]}}}}
    )
    assert "not a truth value" in _message(modalities={"x": {**SERIES, "layout": {"block": True}}})


def test_a_first_block_that_is_given_cannot_be_random() -> None:
    message = _message(modalities={"x": {**SERIES, "start": "none", "layout": {"order": "random"}}})
    assert message.startswith("modalities.x.start is 'none' with the random order 'random'")


@pytest.mark.parametrize(
    ("backbone", "expected"),
    [
        (3, "backbone is a int; it must be a configuration, a dict, a name or path"),
        ({"model_type": "lama"}, "backbone.model_type is 'lama'; it must be 'unimodal_ar_decoder' or a transformers"),
        ({"model_type": ["llama"]}, "backbone.model_type is ['llama']; it must be 'unimodal_ar_decoder' or a"),
        ({"hidden_size": 8}, "backbone.model_type is None; it must be 'unimodal_ar_decoder' or a transformers"),
    ],
)
def test_backbones_that_are_none(backbone: Any, expected: str) -> None:
    assert expected in _message(backbone=backbone)


def test_backbone_by_path(tmp_path: Path) -> None:
    body = LlamaConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    body.save_pretrained(tmp_path)
    assert _config(backbone=str(tmp_path)).backbone.to_dict()["hidden_size"] == 16


def test_unknown_modality_lists_the_known() -> None:
    with pytest.raises(ValueError, match=r"modality is 'sereis'; this model knows \['series'\]"):
        _config().modality("sereis")


def test_a_context_is_one_block_unless_it_says_otherwise() -> None:
    config = _config(modalities={"label": LABEL, "text": {**LABEL, "layout": {"block": 1}}, "series": SERIES})
    assert config.modality("label").layout.block == "whole"
    assert config.modality("text").layout.block == 1
    assert config.modality("series").layout.block is None  # the order's own
    assert config.modality("series").objective == {"kind": "next_block"}
    assert config.modality("label").objective is None


def test_initializer_range_is_the_bodys() -> None:
    """Bare parameters are drawn with it, whichever body the model has."""
    assert _config(backbone={**NATIVE, "initializer_range": 0.3}).initializer_range == 0.3
    assert _config(backbone=GPT2Config(n_embd=16, n_head=2, initializer_range=0.4)).initializer_range == 0.4


def test_a_model_without_modalities_says_so() -> None:
    with pytest.raises(ValueError, match="modalities is empty; a model needs at least one"):
        UnimodalARForGeneration(UnimodalARConfig(backbone=NATIVE))


PICTURE: dict[str, Any] = {
    "element": {"kind": "discrete", "vocab_size": 4},
    "grid": (1, 2, 2),
    "head": {"kind": "categorical"},
}


@pytest.mark.parametrize(
    ("modalities", "message"),
    [
        ({"label": {**LABEL, "start": "context"}}, "has start 'context' but no head; only what is generated"),
        ({"label": {**LABEL, "target_positions": "learned"}}, "has target_positions 'learned' but no head"),
        ({"image": {**PICTURE, "conditioning": True}}, "modalities.image.conditioning is true; only a context"),
        (
            {"image": {**PICTURE, "head": {"kind": "depth_ar"}}},
            "modalities.image.head.kind is 'depth_ar', a head for elements of at least 2 codes; this one has 1",
        ),
    ],
)
def test_options_that_do_not_fit_each_other(modalities: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _config(modalities=modalities)


def test_conditioning_settles_its_size() -> None:
    modalities = {"label": {**LABEL, "conditioning": True}, "image": PICTURE}
    config = _config(modalities=modalities)
    assert config.backbone.conditioning_size == config.hidden_size
    assert type(config).from_dict(config.to_dict()).backbone.conditioning_size == config.hidden_size
    body = {**NATIVE, "conditioning_size": 3}
    with pytest.raises(ValueError, match=r"backbone.conditioning_size is 3; it must be the hidden_size"):
        _config(modalities=modalities, backbone=body)
    with pytest.raises(ValueError, match=r"backbone.conditioning_size is 3; .* with a modality whose conditioning is"):
        _config(modalities={"image": PICTURE}, backbone=body)
    with pytest.raises(ValueError, match=r"modalities.label.conditioning is true; only the native decoder"):
        _config(modalities=modalities, backbone=GPT2Config(n_embd=16, n_head=2))
    with pytest.raises(ValueError, match=r"conditioning_positions is 5; it needs a conditioning_size, which is None"):
        UnimodalARDecoder(UnimodalARDecoderConfig(conditioning_positions=5))
