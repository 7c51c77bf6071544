"""Next-block models and language models that go on as block diffusion."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from torch import Tensor

from tests.helpers import build, codes, label, labels, perturb, series, toy_backbones
from unimodal_ar import Segment, UnimodalARConfig, UnimodalARForGeneration, UnimodalARGenerationConfig
from unimodal_ar.adapters import LabelAdapter
from unimodal_ar.adapters.base import load_adapters
from unimodal_ar.cli import main
from unimodal_ar.convert import adapted, convert_to_block_diffusion
from unimodal_ar.objectives.parts import own_values
from unimodal_ar.recipes.train import train
from unimodal_ar.saving import load_model
from unimodal_ar.sequence import Cursor
from unimodal_ar.training.documents import load_recipe

BODIES = ["native", "llama", "gpt2"]


def quietly(model: Any, block: Any, **more: Any) -> Any:
    """Converts without a warning: nothing is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return convert_to_block_diffusion(model, block, **more)


@torch.no_grad()
def causal_states(model: Any, name: str, values: Tensor) -> Tensor:
    """Hidden states of a sequence of own values that is read causally, whatever the objective."""
    segment = Segment(name, values, (values.shape[1], 1, 1))
    layout = model.layout(name, segment.grid)
    part = own_values(model.embeddings[name], segment, layout, 0, layout.num_blocks)
    return model.backbone(Cursor().place([part]))


def trains(model: Any, segments: list[Segment]) -> None:
    model.train()
    loss = model(segments).loss
    loss.backward()
    assert bool(loss.isfinite()) and any(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    model.eval()


# --- models of ours ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("body", BODIES)
def test_every_weight_goes_on(body: str) -> None:
    source = build({"label": label(), "codes": codes(5, grid=(8, 1, 1))}, body)
    before = {name: value.clone() for name, value in source.state_dict().items()}
    source.generation_config = UnimodalARGenerationConfig(temperature=0.5)
    model = quietly(source, 4)
    options = model.options["codes"]
    assert (
        options.objective == {"kind": "block_diffusion", "noise": "mask", "levels": None} and options.start == "learned"
    )
    assert options.layout.block == 4 and model.layout("codes", (8, 1, 1)).num_blocks == 2
    assert model.config.modalities["label"] == source.config.modalities["label"]
    after = model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    assert not model.training and model.generation_config.temperature == 0.5
    segment = Segment("codes", torch.randint(5, (2, 8)), (8, 1, 1))
    trains(model, [labels(1, 2), segment])
    assert model.generate([labels(1)], "codes", steps=2).values.shape == (1, 8)
    assert all(torch.equal(value, before[name]) for name, value in source.state_dict().items())  # it is left as it was
    assert source.options["codes"].objective == {"kind": "next_block"}


def test_other_modalities_stay() -> None:
    source = build({"codes": codes(5), "series": series(3)})
    model = quietly(source, 2, modality="codes", levels={"kind": "uniform", "low": 0.3, "high": 0.8})
    assert model.options["codes"].objective["levels"] == {"kind": "uniform", "low": 0.3, "high": 0.8}
    assert model.config.modalities["series"] == source.config.modalities["series"]
    segments = [Segment("series", torch.randn(2, 6, 3), (6, 1, 1))]
    ours, theirs = (m(segments).element_losses["series"] for m in (model, source))
    torch.testing.assert_close(ours, theirs)


def test_a_start_becomes_the_mask_and_without_one_the_mean_does() -> None:
    source = build({"codes": codes(5, start="learned")})
    assert torch.equal(quietly(source, 2).embeddings["codes"].start, source.embeddings["codes"].start)
    source = build({"codes": codes(5, start="none")})
    model = quietly(source, 2)
    torch.testing.assert_close(model.embeddings["codes"].start, source.embeddings["codes"].table.weight.mean(0))
    assert model.options["codes"].start == "none"
    two = {"element": {"kind": "discrete", "vocab_size": 5, "codes": 2}, "start": "none"}
    source = build({"codes": codes(5) | two})
    first, second = source.embeddings["codes"].table.weight.split(5)
    torch.testing.assert_close(quietly(source, 2).embeddings["codes"].start, first.mean(0) + second.mean(0))


def test_the_mask_of_vectors_looks_like_a_missing_one() -> None:
    source = build({"series": series(3, start="none")})
    model = quietly(source, 2)
    segment = Segment("series", torch.randn(1, 6, 3), (6, 1, 1), observed=torch.zeros(1, 6, 3, dtype=torch.bool))
    missing = model.embeddings["series"].embed(segment.values, segment.observed)
    torch.testing.assert_close(model.embeddings["series"].start, missing[0, 0])
    trains(model, [Segment("series", torch.randn(2, 6, 3), (6, 1, 1))])


def test_a_context_that_was_the_start_gets_its_own_place() -> None:
    source = build({"label": label(), "codes": codes(5, start="context")})
    with pytest.warns(UserWarning, match=r"'codes' starts from its context no more"):
        model: Any = convert_to_block_diffusion(source, 2)
    assert model.options["codes"].start == "learned"
    torch.testing.assert_close(model.embeddings["codes"].start, source.embeddings["codes"].table.weight.mean(0))
    trains(model, [labels(1, 2), Segment("codes", torch.randint(5, (2, 4)), (4, 1, 1))])


@pytest.mark.parametrize(
    "options", [{"order": "random"}, {"block": "row", "grid": (1, 2, 4)}, {"target_positions": "learned"}]
)
def test_target_positions_have_no_counterpart(options: dict[str, Any]) -> None:
    source = build({"codes": codes(5, **options)})
    assert source.embeddings["codes"].target_position is not None
    with pytest.warns(UserWarning, match=r"target positions of 'codes' are left out"):
        model: Any = convert_to_block_diffusion(source, 2)
    assert model.embeddings["codes"].target_position is None and model.options["codes"].target_positions is None
    grid = source.options["codes"].grid
    trains(model, [Segment("codes", torch.randint(5, (2, grid[0] * grid[1] * grid[2])), grid)])


def test_blocks_of_every_kind() -> None:
    source = build({"codes": codes(5, grid=(2, 2, 4))})
    for block, count in (
        ("row", 4),
        ("frame", 2),
        ("whole", 1),
        ([4, 12], 2),
        ((1, 2, 2), 4),
        ({"cell": [1, 2, 2]}, 4),
    ):
        assert quietly(source, block).layout("codes", (2, 2, 4)).num_blocks == count


def test_the_dtype_stays() -> None:
    source = build({"codes": codes(5)}, "llama").to(torch.bfloat16)
    model = quietly(source, 2)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert torch.equal(model.heads["codes"].proj.weight, source.heads["codes"].proj.weight)


@pytest.mark.parametrize("body", BODIES)
def test_gaussian_noise_leaves_the_backbone_undisturbed(body: str) -> None:
    """Adaptive norms that join a trained decoder do nothing at first; the head, which predicted values, is new."""
    source = build({"series": series(3)}, body)
    with pytest.warns(UserWarning, match=r"the head of 'series' is left out: it predicted values"):
        model: Any = convert_to_block_diffusion(source, 1, noise="gaussian")
    assert model.embeddings["series"].start is None and model.embeddings["series"].level is not None
    values = torch.randn(2, 6, 3)
    ours, theirs = (causal_states(m, "series", values) for m in (model, source))
    torch.testing.assert_close(ours, theirs)
    assert not torch.equal(model.heads["series"].proj.weight, source.heads["series"].proj.weight)
    trains(model, [Segment("series", values, (6, 1, 1))])
    modulated = [p for name, p in model.named_parameters() if "modulation" in name or name.startswith("backbone.level")]
    assert modulated and all(p.grad is not None for p in modulated)


MAMBA = {"model_type": "mamba", "hidden_size": 32, "state_size": 4, "num_hidden_layers": 1, "vocab_size": 8}


@pytest.mark.parametrize(
    ("modalities", "body", "arguments", "sentence"),
    [
        ({"a": codes(), "b": codes()}, "native", {}, "modality is None; this model generates ['a', 'b'], of which one"),
        ({"a": codes()}, "native", {"modality": "b"}, "modality is 'b'; this model generates ['a']"),
        (
            {"a": codes(), "label": label()},
            "native",
            {"modality": "label"},
            "modality is 'label'; this model generates",
        ),
        (
            {"a": codes(objective={"kind": "block_diffusion"})},
            "native",
            {},
            "the objective of 'a' is {'kind': 'block_diffusion', 'noise': 'mask', 'levels': None}, which restores",
        ),
        ({"a": codes()}, "native", {"length": 8}, "length is 8, which is for language models"),
        (
            {"a": codes()},
            "native",
            {"noise": "gaussian"},
            "modalities.a.objective.noise is 'gaussian', which is for con",
        ),
        ({"a": codes()}, "native", {"noise": "grey"}, "modalities.a.objective.noise is 'grey'"),
        ({"a": codes()}, "native", {"block": "rows"}, "modalities.a.layout.block"),
        ({"a": codes()}, "native", {"levels": {"kind": "flat"}}, "modalities.a.objective.levels is {'kind': 'flat'}"),
        (
            {"a": series(head={"kind": "quantile"})},
            "native",
            {"noise": "gaussian"},
            "with Gaussian noise it predicts velocities, so it must be a regression with loss 'mse'",
        ),
        (
            {"a": codes()},
            MAMBA,
            {},
            "a mamba backbone keeps a state instead of attending; block diffusion of 'a' needs",
        ),
        (
            {"a": codes(), "label": label(conditioning=True)},
            toy_backbones()["native"] | {"conditioning_positions": 9},
            {},
            "backbone.conditioning_positions is 9, norms that follow the place in the sequence",
        ),
    ],
)
def test_what_cannot_go_on_is_told(modalities: Any, body: Any, arguments: dict[str, Any], sentence: str) -> None:
    source = build(modalities, body)
    with pytest.raises(ValueError, match=re.escape(sentence)):
        convert_to_block_diffusion(source, **({"block": 2} | arguments))


def test_weights_of_another_configuration_are_told() -> None:
    source = build({"codes": codes(5)})

    def fits(body: str = "native", **changes: Any) -> None:
        modalities = {"codes": codes(**{"vocab_size": 5} | changes.pop("codes", {})), **changes.pop("more", {})}
        adapted(source, UnimodalARConfig(backbone=toy_backbones()[body] | changes, modalities=modalities))

    fits()
    fits(dropout=0.3, attention_dropout=0.1)  # which act in training alone
    for changes, sentence in (
        ({"num_attention_heads": 2, "head_dim": 8}, "backbone.num_attention_heads is 2; the weights are of a model"),
        ({"norm_eps": 1e-3}, "backbone.norm_eps is 0.001; the weights are of a model where it is 1e-06"),
        (
            {"body": "llama"},
            "backbone.model_type is 'llama'; the weights are of a model where it is 'unimodal_ar_decod",
        ),
        ({"codes": {"vocab_size": 6}}, "of another shape are ['embeddings.codes.table.weight ([5, 32] for [6, 32])'"),
        ({"more": {"label": label()}}, "missing are ['embeddings.label.start', 'embeddings.label.table.weight']"),
        ({"codes": {"start": "none"}}, "unknown are ['embeddings.codes.start']"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            fits(**changes)


# --- language models --------------------------------------------------------------------------------------------------

SMALL = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8},
    **{"num_key_value_heads": 2, "vocab_size": 21, "max_position_embeddings": 64, "pad_token_id": 0},
    **{"bos_token_id": 0, "eos_token_id": 0},
}
LANGUAGE_MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {},
    "phi": {},  # its output embeddings have a bias
    "gemma": {},  # multiplies its input embeddings
    "granite": {"logits_scaling": 3.0, "embedding_multiplier": 5.0, "attention_multiplier": 0.3},
    "cohere": {"logit_scale": 0.25},
}


def language_model(kind: str, **changes: Any) -> Any:
    keys = {"gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4}}.get(kind, {})
    config = transformers.AutoConfig.for_model(
        kind, **(SMALL | {"tie_word_embeddings": kind != "phi"} | keys | changes)
    )
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    perturb(model, 0.2)
    return model


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_a_language_model_reads_and_predicts_what_it_did(kind: str) -> None:
    source = language_model(kind, **LANGUAGE_MODELS[kind])
    model = quietly(source, 1)
    tokens = torch.randint(21, (2, 9))
    with torch.no_grad():
        ours = model.heads["text"].logits(causal_states(model, "text", tokens)).squeeze(-2)
        theirs = source(input_ids=tokens).logits
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    table = model.embeddings["text"].table.weight
    torch.testing.assert_close(model.embeddings["text"].start, table.mean(0))
    assert model.heads["text"].proj.bias is None or kind == "phi"
    assert model.options["text"].grid == (64, 1, 1)  # as long as its positions reach
    model = quietly(source, 4)
    trains(model, [Segment("text", torch.randint(21, (2, 64)), (64, 1, 1))])
    assert model.generate([], "text", grid=(8, 1, 1)).values.shape == (1, 8)


def test_tied_embeddings_are_copied_apart() -> None:
    source = language_model("llama")
    assert source.lm_head.weight is source.model.embed_tokens.weight
    model = quietly(source, 4, modality="words", length=12)
    table, head = model.embeddings["words"].table.weight, model.heads["words"].proj.weight
    assert torch.equal(table, head) and table.data_ptr() != head.data_ptr()
    assert torch.equal(head, source.lm_head.weight) and model.options["words"].grid == (12, 1, 1)


def test_texts_are_of_a_usual_length() -> None:
    assert quietly(language_model("llama", max_position_embeddings=4096), 4).options["text"].grid == (1024, 1, 1)


def test_a_language_model_in_half_precision() -> None:
    model = quietly(language_model("llama").to(torch.bfloat16), 4)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def _reads_twice(body: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    tokens = kwargs.pop("input_ids", None)
    if tokens is not None:
        kwargs["inputs_embeds"] = body.embed_tokens(tokens) + body.embed_tokens(tokens.flip(1))
    return args, kwargs


def test_language_models_that_cannot_go_on_are_told() -> None:
    capped = language_model("gemma2", final_logit_softcapping=3.0)
    wide = language_model("llama", tie_word_embeddings=False)
    wide.model.embed_tokens = torch.nn.Embedding(30, 32)
    body = language_model("llama").model
    second = language_model("llama")  # reads its tokens in a second way, as models with embeddings for each layer do
    second.model.register_forward_pre_hook(_reads_twice, with_kwargs=True)
    cases: list[tuple[Any, dict[str, Any], str]] = [
        (capped, {}, "Gemma2ForCausalLM makes logits that are no linear map of its hidden states"),
        (second, {}, "LlamaForCausalLM reads more than the embeddings of its tokens, so that it cannot be converted"),
        (wide, {}, "LlamaForCausalLM reads 30 tokens and predicts 21; it must be the same ones"),
        (body, {}, "model is a LlamaModel; it must be a UnimodalARForGeneration or a transformers ...ForCausalLM"),
        (torch.nn.Linear(2, 2), {}, "model is a Linear; it must be"),
        (language_model("llama"), {"noise": "gaussian"}, "modalities.text.objective.noise is 'gaussian', which is for"),
        (language_model("llama"), {"length": 0}, "length is 0; it must be an integer >= 1"),
        (language_model("mamba", state_size=4), {}, "a mamba backbone keeps a state instead of attending"),
    ]
    for model, arguments, sentence in cases:
        with pytest.raises(ValueError, match=re.escape(sentence)):
            convert_to_block_diffusion(model, 2, **arguments)


# --- the command ------------------------------------------------------------------------------------------------------


def to_block_diffusion(*words: str) -> int:
    return main(["convert", "--to", "block-diffusion", *words])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model with an adapter in "old"."""
    monkeypatch.chdir(tmp_path)
    build({"label": label(3), "codes": codes(5, target_positions="learned")}).save_pretrained("old")
    LabelAdapter(["a", "b", "c"]).save_pretrained("old")
    return tmp_path


def test_a_folder_becomes_another(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert to_block_diffusion("old", "--block", "[1, 3]", "--out", "new") == 0
    told = capsys.readouterr().out.splitlines()
    assert told[-2].startswith("Note: target positions of 'codes' are left out") and told[-1] == "Wrote new"
    model = load_model("new", "cpu")
    assert model.options["codes"].layout.block == [1, 3]
    assert load_adapters("new")["label"].config() == load_adapters("old")["label"].config()
    assert to_block_diffusion("old", "--block", "4", "--out", "new") == 2
    assert "--out 'new' already holds a model; choose another or pass --overwrite" in capsys.readouterr().err
    assert to_block_diffusion("old", "--block", "4", "--out", "new", "--overwrite", "--modality", "codes") == 0
    assert load_model("new", "cpu").options["codes"].layout.block == 4


def test_a_folder_of_a_language_model_becomes_ours(tmp_path: Path) -> None:
    source = language_model("llama")
    source.save_pretrained(tmp_path / "old")
    assert to_block_diffusion(str(tmp_path / "old"), "--block", "4", "--out", str(tmp_path / "new")) == 0
    model: Any = load_model(tmp_path / "new", "cpu")
    assert torch.equal(model.heads["text"].proj.weight, source.lm_head.weight)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["none", "--block", "4"], "MODEL is 'none', which holds no config.json; it must be a model's folder"),
        (["old", "--block", "4", "--out", "old"], "--out is 'old', the folder of the model itself; choose another"),
        (["old", "--block", "{cell"], "--block is '{cell'; it is not YAML"),
        (["old", "--block", "rows"], "modalities.codes.layout.block"),
        (["old", "--block", "4", "--modality", "label"], "modality is 'label'; this model generates ['codes']"),
        (["old", "--block", "4", "--noise", "gaussian"], "modalities.codes.objective.noise is 'gaussian'"),
        (["broken", "--block", "4"], "MODEL is 'broken', which does not load (Expecting value"),
        (["other", "--block", "4"], "MODEL is 'other', which does not load ("),
    ],
)
def test_what_the_command_cannot_convert(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    for name, text in (("broken", "nothing"), ("other", '{"model_type": "clip"}')):
        Path(name).mkdir()
        Path(name, "config.json").write_text(text)
    assert to_block_diffusion(*([] if "--out" in words else ["--out", "new"]), *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1 and not Path("new").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--to", "block-diffusion", "old"], "the following arguments are required with --to: --block"),
        (
            ["--to", "block-diffusion", "llamagen", "x.pt", "--block", "4"],
            "--to takes one folder, MODEL, not 'llamagen'",
        ),
        (["--to", "block-diffusion", "old", "--block", "4", "--set", "a=1"], "--set is for published checkpoints"),
        (["--to", "next-block", "old"], "argument --to: invalid choice: 'next-block'"),
        (["llamagen", "x.pt", "--block", "4"], "--block goes with --to block-diffusion"),
        (["llamagen", "x.pt", "--noise", "mask"], "--noise goes with --to block-diffusion"),
        (["llamagen"], "the following arguments are required: CKPT"),
        (["old", "x.pt"], "argument NAME: invalid choice: 'old' (choose from 'autotimes', 'bd3lm'"),
    ],
)
def test_the_two_forms_of_the_command_do_not_mix(
    capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    with pytest.raises(SystemExit):
        main(["convert", "--out", "new", *words])
    assert sentence in capsys.readouterr().err


# --- training from it -------------------------------------------------------------------------------------------------

TINY = [
    *("model.backbone.hidden_size=8", "model.backbone.num_hidden_layers=1", "model.backbone.num_attention_heads=2"),
    *("training.max_steps=1", "training.warmup_steps=0", "training.eval_strategy=no", "training.save_strategy=no"),
    *("training.load_best_model_at_end=false", "early_stopping=0", "evaluation=null", "training.disable_tqdm=true"),
]


def recipe(name: str, *overrides: str) -> dict[str, Any]:
    return load_recipe(name, [*TINY, *overrides])


def test_the_recipe_starts_from_the_first_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step that changes nothing leaves the weights of the next-token model under the new objective."""
    monkeypatch.chdir(tmp_path)
    second = recipe("block_diffusion/from_next_token", "training.learning_rate=0")
    sentence = "init_from is 'runs/digits', where there is no model; `unimodal-ar train next_token/digits` makes it"
    for dry_run in (True, False):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            train(second, dry_run=dry_run)
    train(recipe("next_token/digits", "training.learning_rate=0.1"))
    written = train(second)
    assert written is not None
    ours, theirs = load_model(written, "cpu"), load_model("runs/digits", "cpu")
    assert ours.options["image"].objective["kind"] == "block_diffusion" and ours.options["image"].layout.block == 4  # type: ignore[index]
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    assert all(torch.equal(ours.state_dict()[name], value) for name, value in theirs.state_dict().items())
    assert yaml.safe_load((written / "recipe.yaml").read_text())["init_from"] == "runs/digits"


def test_what_a_recipe_cannot_start_from_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    build({"codes": codes(5)}).save_pretrained("old")
    for overrides, sentence in (
        (["init_from=mine"], "init_from is 'mine', where there is no model; it must be a folder that train or convert"),
        (["init_from=old", "output_dir=old"], "init_from is 'old', the output_dir, too; the new model needs a folder"),
        (["init_from=old"], "init_from is 'old': backbone.head_dim is 4; the weights are of a model where it is 8"),
    ):
        with pytest.raises(ValueError, match=re.escape(sentence)):
            train(recipe("block_diffusion/from_next_token", *overrides), dry_run=True)


def test_the_recipe_runs_from_random_weights_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert train(recipe("block_diffusion/from_next_token", "init_from=null"), dry_run=True) is None


def test_a_converted_model_is_read_again(tmp_path: Path) -> None:
    model = quietly(build({"codes": codes(5)}, "llama"), 2)
    model.save_pretrained(tmp_path)
    loaded: Any = UnimodalARForGeneration.from_pretrained(tmp_path)
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
