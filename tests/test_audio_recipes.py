"""The shipped recipes of speech, at toy size: trained, judged and drawn from, on files and on a table like FSDD's."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import DacConfig, DacModel

from unimodal_ar.cli import main
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe, shipped_recipes
from unimodal_ar.training.recipe import Resolved

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")

RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
RECIPES = [name for name in shipped_recipes() if name.partition("/")[2].startswith("speech_")]
# Of each: what makes it small, beside the backbone.
TOYS: dict[str, dict[str, Any]] = {
    "next_token/speech_mulaw": {
        "adapters.audio.elements.group": 5,
        "model.modalities.audio.head": {"kind": "depth_ar", "layers": 1, "width": 8, "heads": 2},
    },
    "next_patch/speech_mel": {
        "adapters.audio.elements.iterations": 2,
        "model.modalities.audio.head": {"kind": "flow", "layers": 1, "width": 8},
        "evaluation.head_steps": 2,
    },
    "block_diffusion/speech_mel_mask": {
        "adapters.audio.elements.iterations": 2,
        "model.modalities.audio.head": {"kind": "flow", "layers": 1, "width": 8},
        "evaluation.head_steps": 2,
        "evaluation.steps": 2,
    },
    "next_block/speech_codes": {"adapters.audio.elements.codebooks": 2, "adapters.audio.sample_rate": RATE},
}


def _wave(seed: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).normal(size=500 + seed % 7)


def _recordings(root: Path) -> Path:
    """Files that are called digit_speaker_take, as FSDD's: of takes 0, 5, 6 and 7 the first is for testing."""
    root.mkdir()
    names = [f"{digit}_{speaker}_{take}" for take in (0, 5, 6, 7) for speaker in SPEAKERS[:2] for digit in range(3)]
    for seed, name in enumerate(names):
        soundfile.write(root / f"{name}.wav", _wave(seed), RATE, subtype="PCM_16")
    return root


def _table(recordings: Path, path: Path) -> Path:
    """The same clips with their labels in columns, as FSDD's parquet file has them."""
    rows = []
    for file in sorted(recordings.iterdir()):
        digit, speaker, take = file.stem.split("_")
        audio = {"bytes": file.read_bytes(), "path": file.name}
        rows.append(
            {"audio": audio, "digit": int(digit), "speaker": speaker, "split": ["test", "train"][int(take) > 4]}
        )
    pd.DataFrame(rows).to_parquet(path)
    return path


def _codec(folder: Path) -> Path:
    """A DAC with random weights: steps of 8 samples, codes of three codebooks."""
    torch.manual_seed(0)
    sizes: Any = {"encoder_hidden_size": 4, "decoder_hidden_size": 16, "hidden_size": 16, "n_codebooks": 3}
    codes: dict[str, Any] = {
        "codebook_size": 16,
        "codebook_dim": 4,
        "downsampling_ratios": [2, 4],
        "sampling_rate": RATE,
    }
    DacModel(DacConfig(**sizes, **codes)).save_pretrained(folder)
    return folder


def _toy(name: str, tmp_path: Path) -> dict[str, Any]:
    """A shipped recipe with little of everything: clips of a few elements, and two training steps."""
    document = load_recipe(name)
    document["model"]["backbone"].update(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    document["output_dir"] = str(tmp_path / "run")
    elements = document["adapters"]["audio"]["elements"]
    document["adapters"]["audio"]["seconds"] = 512 / RATE
    if elements["kind"] == "codec":
        elements["path"] = str(_codec(tmp_path / "codec"))
    for place, value in TOYS[name].items():
        *path, key = place.split(".")
        section = document
        for part in path:
            section = section[part]
        section[key] = value
    document["data"] |= {"path": str(_recordings(tmp_path / "recordings")), "validation": 4}
    document["training"] = {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True}
    document["early_stopping"] = 0
    document["evaluation"] |= {"samples": 4, "reconstruction": 2}
    return document


def test_every_speech_recipe_is_tried() -> None:
    assert sorted(TOYS) == RECIPES and len(RECIPES) == 4


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_are_trained_and_drawn_from(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = train(_toy(name, tmp_path))
    assert folder is not None
    assert "14 training and 4 validation clips" in capsys.readouterr().out
    found = json.loads((folder / "evaluation.json").read_text())
    assert found["reconstruction"]["clips"] == 2 and ("bits_per_dimension" in found) == ("mel" not in name)
    sound = soundfile.info(folder / "samples.wav")
    # Four clips of 64 ms, rounded up to whole elements, and three pauses of half a second.
    assert 4 * 512 + 3 * RATE // 2 <= sound.frames < 4 * 1024 + 3 * RATE // 2 and sound.samplerate == RATE
    assert (folder / "samples.png").stat().st_size > 1000
    out = tmp_path / "three.wav"
    contexts = ["--context", "digit=3", "--context", "speaker=theo"]
    assert main(["sample", "--model", str(folder), *contexts, "--n", "1", "--out", str(out)]) == 0
    assert soundfile.info(out).frames == (sound.frames - 3 * RATE // 2) // 4 and out.with_suffix(".png").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_read_a_table_by_overrides_alone(name: str, tmp_path: Path) -> None:
    """Of the comment in each recipe; parts and labels are those of the files."""
    document = _toy(name, tmp_path)
    text = (Path(__file__).parents[1] / "recipes" / f"{name}.yaml").read_text()
    overrides = re.search(r"columns instead: (--set .*)", text)
    assert overrides is not None
    given = [word for word in overrides[1].split() if word != "--set"]
    changed = load_recipe(name, given)["data"]
    assert changed["path"] == "fsdd.parquet" and changed["pattern"] is None
    table = {**document, "data": {**changed, "validation": 4}}
    table["data"]["path"] = str(_table(tmp_path / "recordings", tmp_path / "fsdd.parquet"))
    found = []
    for one in (document, table):
        data = Resolved(one).data
        part = data.test()
        waves = torch.stack(list(part.waves()))
        order = waves[:, 0, 0].argsort()
        found.append((waves[order], [part.labels[name][order] for name in ("digit", "speaker")], len(data.train())))
    for files, rows in zip(found[0][1], found[1][1], strict=True):
        assert torch.equal(files, rows)
    assert torch.equal(found[0][0], found[1][0]) and len(found[0][0]) == 6 and found[0][2] == found[1][2] == 14


@pytest.mark.parametrize("name", RECIPES)
def test_comments_name_what_there_is(name: str) -> None:
    text = (Path(__file__).parents[1] / "recipes" / f"{name}.yaml").read_text()
    assert f"unimodal-ar train {name}\n" in text and "free-spoken-digit-dataset" in text
    folder = re.search(r"sample --model (\S+)", text)
    assert folder is not None and folder[1] == load_recipe(name)["output_dir"]
    assert max(map(len, text.splitlines())) <= 120
