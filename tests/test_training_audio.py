"""Training on audio: which windows are cut, kept and skipped, how parts and labels come about, what is found."""

from __future__ import annotations

import json
import os
import re
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor
from torch.utils.data import DataLoader

from unimodal_ar.adapters import LabelAdapter
from unimodal_ar.adapters.audio.adapter import AudioAdapter
from unimodal_ar.adapters.audio.clips import open_clip
from unimodal_ar.evaluation.audio import log_mel_distance, si_sdr
from unimodal_ar.recipes.train import train
from unimodal_ar.training.audio import AudioData, AudioOptions
from unimodal_ar.training.audio_set import AudioDataset
from unimodal_ar.training.recipe import Resolved

soundfile = pytest.importorskip("soundfile")
pytest.importorskip("torchaudio")

RATE = 8000
WINDOW = 16  # samples
CLASSES = ("ant", "bee", "cat")
EACH = 8
PATTERN = r"(?P<word>[a-z]+)_(?P<speaker>[a-z]+)_(?P<take>\d+)"


def _wave(label: int, number: int, length: int = WINDOW) -> np.ndarray:
    """int16 [S] that tells its class (the first) and number (the second), and what follows which."""
    wave = 1000 * (np.arange(length) - length // 2)
    wave[0], wave[1] = 100 + label, 200 + number
    return wave.astype(np.int16)


def _write(path: Path, wave: np.ndarray, subtype: str = "PCM_16") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, wave, RATE, subtype=subtype)
    return path


def _folder(root: Path, classes: tuple[str, ...] = CLASSES, each: int = EACH, length: int = WINDOW) -> Path:
    for label, name in enumerate(classes):
        for number in range(each):
            _write(root / name / f"{number:02}.wav", _wave(label, number, length))
    return root


def _named(root: Path, each: int = 4) -> Path:
    """Files that are called word_speaker_take."""
    for label, word in enumerate(CLASSES):
        for person, speaker in enumerate(("eve", "adam")):
            for take in range(each):
                _write(root / f"{word}_{speaker}_{take}.wav", _wave(label, 10 * person + take))
    return root


def _audio(**options: Any) -> AudioAdapter:
    return AudioAdapter(**{"sample_rate": RATE, "seconds": WINDOW / RATE, "elements": {"kind": "mulaw"}, **options})


def _adapters(classes: Any = 3, label: bool = True, **audio: Any) -> dict[str, Any]:
    return ({"word": LabelAdapter(classes, "word")} if label else {}) | {"audio": _audio(**audio)}


def _data(root: Path, adapters: dict[str, Any] | None = None, **options: Any) -> AudioData:
    given = {"path": str(root), "labels": {"word": "class"}, "validation": 6, "test": 3, **options}
    return AudioData(AudioOptions(**given), adapters or _adapters())


def _told(dataset: AudioDataset) -> list[tuple[int, int]]:
    """(class, number) that the waves themselves tell, window by window."""
    waves = torch.stack(list(dataset.waves())) * 2**15
    return [(int(wave[0, 0]) - 100, int(wave[0, 1]) - 200) for wave in waves]


# ---- parts and labels


def test_every_class_is_in_every_part_and_no_clip_in_two(tmp_path: Path) -> None:
    data = _data(_folder(tmp_path))
    seen = []
    for dataset, each in ((data.train(), 5), (data.validation(), 2), (data.test(), 1)):
        told = _told(dataset)
        assert dataset.labels["word"].tolist() == [label for label, _ in told]
        assert torch.bincount(dataset.labels["word"]).tolist() == [each] * 3
        seen += told
    assert len(set(seen)) == len(seen) == 3 * EACH
    assert data.test().rows == _data(tmp_path).test().rows != _data(tmp_path, seed=1).test().rows


def test_batches_hold_labels_in_their_order_and_elements(tmp_path: Path) -> None:
    adapters = {"speaker": LabelAdapter(["adam", "eve"], "speaker"), **_adapters()}
    labels = {"speaker": "speaker", "word": "word"}
    data = _data(_named(tmp_path), adapters, labels=labels, pattern=PATTERN, validation=6, test=6)
    assert data.modalities == ["speaker", "word", "audio"]
    train = data.train()
    segments = train.collate([train[i] for i in range(len(train))])["segments"]
    assert [segment.modality for segment in segments] == data.modalities
    assert [segment.target for segment in segments] == [False, False, True]
    told = _told(train)
    assert segments[0].values[:, 0].tolist() == [1 - number // 10 for _, number in told]  # adam is 0, and the second
    assert segments[1].values[:, 0].tolist() == [label for label, _ in told]
    assert torch.equal(segments[2].values, data.adapter.encode_waves(torch.stack(list(train.waves()))).values)
    # Labels are alike in all parts when taken together.
    for part in (data.validation(), data.test()):
        assert sorted(zip(*(part.labels[name].tolist() for name in labels), strict=True)) == [
            (speaker, word) for speaker in range(2) for word in range(3)
        ]


def test_a_column_says_what_the_parts_are(tmp_path: Path) -> None:
    root = _named(tmp_path)
    options: dict[str, Any] = {"labels": {}, "pattern": PATTERN, "test": None, "split": "take"}
    adapters = _adapters(label=False)
    data = _data(root, adapters, test_split=["0", "2"], validation=2, **options)
    assert {number % 10 for _, number in _told(data.test())} == {0, 2} and len(data.test()) == 12
    assert {number % 10 for part in (data.train(), data.validation()) for _, number in _told(part)} == {1, 3}
    assert (len(data.train()), len(data.validation())) == (10, 2)
    data = _data(root, adapters, test_split=["0"], validation_split=["3"], **options)
    assert [{number % 10 for _, number in _told(part)} for part in (data.train(), data.validation())] == [{1, 2}, {3}]
    with pytest.raises(ValueError, match=r"data\.test_split is \['test'\]; column 'take' of .* has \['0', '1'"):
        _data(root, adapters, **options).train()


def test_a_test_part_of_its_own(tmp_path: Path) -> None:
    root, other = _folder(tmp_path / "train"), _folder(tmp_path / "test", ("bee", "cat"), each=2)
    data = _data(root, test=None, test_path=str(other))
    assert len(data.train()) + len(data.validation()) == 3 * EACH
    assert data.test().labels["word"].tolist() == [1, 1, 2, 2]
    assert [label for label, _ in _told(data.test())] == [0, 0, 1, 1]
    (other / "bee").rename(other / "dog")
    with pytest.raises(ValueError, match=r"dog/00\.wav: class 'dog' is not among the training clips' classes \['a"):
        _data(root, test=None, test_path=str(other)).test()


# ---- windows


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("overlap", [0, 5, 15])
def test_windows_are_the_adapters_chunks(in_memory: bool, overlap: int, tmp_path: Path) -> None:
    for number, length in enumerate((3, 16, 17, 50, 60, 16)):
        _write(tmp_path / f"{number}.wav", np.random.default_rng(number).integers(-9999, 9999, length).astype(np.int16))
    options = {"labels": {}, "validation": 1, "test": 1, "overlap": overlap / RATE, "in_memory": in_memory}
    data = _data(tmp_path, _adapters(label=False), **options)
    parts = [data.train(), data.validation(), data.test()]
    audios, adapter = parts[0].audios, data.adapter
    clips = [audios.source.names[audios.places[int(clip)]] for clip in audios.clips]
    expected = [adapter.chunks(open_clip(path).wave, overlap / RATE) for path in sorted(set(clips))]
    assert len(audios) == sum(map(len, expected)) > 6
    assert torch.equal(torch.stack([audios.wave(row) for row in range(len(audios))]), torch.cat(expected))
    # Windows of one clip are in one part.
    owners = [{clips[row] for row in part.rows} for part in parts]
    assert [len(owner) for owner in owners] == [4, 1, 1] and len(set.union(*owners)) == 6
    assert sorted(row for part in parts for row in part.rows) == list(range(len(audios)))


def test_all_windows_of_a_clip_have_its_labels(tmp_path: Path) -> None:
    train = _data(_folder(tmp_path, length=40)).train()
    labels = train.collate(train.rows)["segments"][0].values[:, 0]
    clips = [train.audios.source.names[train.audios.places[int(clip)]] for clip in train.audios.clips[train.rows]]
    assert labels.tolist() == [CLASSES.index(Path(clip).parent.name) for clip in clips] and len(clips) == 45
    assert torch.equal(train.labels["word"], labels)


def test_waves_are_kept_in_as_few_bytes_as_lose_nothing(tmp_path: Path) -> None:
    wave = np.random.default_rng(0).uniform(-1, 1, 20)
    for name, subtype in (("8", "PCM_U8"), ("16", "PCM_16"), ("24", "PCM_24"), ("32", "FLOAT")):
        _write(tmp_path / f"{name}.wav", wave, subtype)
    _write(tmp_path / "edge.wav", np.array([-(2**15), 2**15 - 1], np.int16))
    _write(tmp_path / "full.wav", np.array([1.0, -1.0]), "FLOAT")  # 1 is no sample of 16 bits
    options: dict[str, Any] = {"labels": {}, "validation": 1, "test": 0}
    audios = _data(tmp_path, _adapters(label=False), **options).train().audios
    small, large = np.int16, np.float32  # in the order of the names: 16, 24, 32, 8, edge, full
    assert [kept.dtype for kept in audios._kept] == [small, large, large, small, small, large]
    for clip in range(6):
        row = audios.clips.tolist().index(clip)
        source = open_clip(audios.source.items[clip]).wave[:, :WINDOW]
        assert torch.equal(audios.wave(row)[:, : source.shape[1]], source)
    assert _data(tmp_path, _adapters(label=False), in_memory=False, **options).train().audios._kept == []


def test_more_audio_than_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path)
    free = [24 * 2 * WINDOW - 1 - 3 * 2 * WINDOW]  # bytes; a tenth of the clips is in memory already
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=free[0]))
    expected = f"{tmp_path}: to keep its 24 clips takes 0.0 GB of memory, of which 0.0 GB are free; set data.in_memory"
    with pytest.raises(ValueError, match=re.escape(expected)):
        _data(tmp_path).train()
    _data(tmp_path, in_memory=False).train()
    free[0] += 1
    _data(tmp_path).train()


def test_a_long_clip_in_front_does_not_stand_for_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write(_folder(tmp_path) / "ant" / "00.wav", _wave(0, 0, 100 * WINDOW))
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=40 * 24 * 2 * WINDOW))
    _data(tmp_path).train()


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts open files")
def test_workers_that_are_not_forked_need_no_file_for_each_clip(tmp_path: Path) -> None:
    dataset = _data(_folder(tmp_path)).train()
    before = len(os.listdir("/proc/self/fd"))
    sent = ForkingPickler.dumps(dataset)  # as a DataLoader does it; of each tensor it shares an open file
    assert len(sent) and len(os.listdir("/proc/self/fd")) - before < 10 < len(dataset.audios.places)


def test_workers_load_what_is_not_in_memory(tmp_path: Path) -> None:
    dataset = _data(_folder(tmp_path), in_memory=False).train()
    loader = DataLoader(dataset, batch_size=5, num_workers=2, collate_fn=dataset.collate)
    values = torch.cat([batch["segments"][1].values for batch in loader])
    assert torch.equal(values, dataset.collate(dataset.rows)["segments"][1].values)


# ---- reading


@pytest.mark.parametrize("in_memory", [True, False])
def test_unreadable_files_are_counted_listed_and_left_out(
    in_memory: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _folder(tmp_path)
    (tmp_path / "ant" / "00.wav").write_bytes(b"")
    whole = (tmp_path / "bee" / "03.wav").read_bytes()
    (tmp_path / "bee" / "03.wav").write_bytes(whole[: len(whole) - 9])
    _write(tmp_path / "cat" / "05.wav", np.full(9, np.nan), "FLOAT")
    _write(tmp_path / "cat" / "06.wav", np.zeros((9, 8)))
    (tmp_path / "cat" / "notes.txt").write_text("x")
    data = _data(tmp_path, in_memory=in_memory)
    parts = [data.train(), data.validation(), data.test()]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == f"{tmp_path}: 1 other file was passed over: cat/notes.txt"
    assert told[1] == f"{tmp_path}: 4 of 24 clips cannot be read and are left out:" and len(told) == 6
    reasons = [("ant/00", "empty"), ("bee/03", "truncated"), ("cat/05", "NaN"), ("cat/06", "8 channels")]
    for line, (name, reason) in zip(told[2:], reasons, strict=True):
        assert f"{name}.wav" in line and reason in line
    assert sum(map(len, parts)) == 20
    for part in parts:
        assert part.labels["word"].tolist() == [label for label, _ in _told(part)]


def test_nothing_can_be_read(tmp_path: Path) -> None:
    (tmp_path / "a.wav").write_bytes(b"")
    with pytest.raises(ValueError, match=r"none of the 1 clips can be read; the first one: .*a\.wav is empty"):
        _data(tmp_path, _adapters(label=False), labels={}).train()


def test_a_scale_is_fitted_to_training_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path)
    fitted: list[list[Tensor]] = []
    fit = AudioAdapter.fit

    def spy(self: AudioAdapter, waves: Any) -> None:
        fitted.append(list(waves))
        fit(self, fitted[-1])

    monkeypatch.setattr(AudioAdapter, "fit", spy)
    data = _data(tmp_path, _adapters(elements={"kind": "waveform", "patch": 4}))
    waves = torch.stack(list(data.train().waves()))
    assert torch.equal(torch.stack(fitted[0]), waves)
    values = data.train().collate(data.train().rows)["segments"][1].values
    assert float(values.square().mean()) == pytest.approx(1, abs=1e-4)
    monkeypatch.setattr("unimodal_ar.training.audio.FITTED", 5)
    data = _data(tmp_path, _adapters(elements={"kind": "waveform", "patch": 4}))
    rows = data.train().rows
    assert len(fitted[1]) == 5 and all(
        torch.equal(wave, data.train().audios.wave(rows[i * 15 // 5])) for i, wave in enumerate(fitted[1])
    )
    given = _data(tmp_path, _adapters(elements={"kind": "waveform", "patch": 4, "std": 0.1}))
    given.train()
    assert len(fitted) == 2


class _Codec:
    """In place of an adapter's frozen codec: says how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0


@pytest.mark.parametrize("in_memory", [True, False])
def test_what_a_codec_makes_is_kept(in_memory: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, encode = _Codec(), AudioAdapter.encode_waves

    def counted(self: AudioAdapter, waves: Tensor) -> Any:
        codec.asked += len(waves)
        return encode(self, waves)

    _folder(tmp_path, length=20)
    plain = _data(tmp_path).train()
    monkeypatch.setattr(AudioAdapter, "encode_waves", counted)
    adapters = _adapters()
    adapters["audio"].tokenizer = codec
    data = _data(tmp_path, adapters, in_memory=in_memory)
    dataset = data.train()
    assert codec.asked == 48 and dataset.audios._kept[0].dtype == np.uint8  # once each, of two windows a clip
    found, expected = (part.collate(part.rows)["segments"][1] for part in (dataset, plain))
    assert torch.equal(found.values, expected.values) and found.grid == expected.grid
    assert codec.asked == 48 + len(plain)  # those of `plain`, which keeps none
    assert torch.equal(torch.stack(list(dataset.waves())), torch.stack(list(plain.waves())))


# ---- mistakes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "word"}, "data.modality is 'word'; it must name an audio adapter"),
        ({"labels": {"audio": "class"}}, "data.labels has the key 'audio'; each key must name a label adapter"),
        ({"labels": {}}, "adapters.word is used by nothing; the clips have the modalities ['audio']"),
        ({"overlap": 0.002}, "data.overlap is 0.002 s; windows have 0.002 s, so it is too long"),
        ({"labels": {"word": "klass"}}, "has no column 'klass', which columns names; did you mean 'class'?"),
        ({"validation": 24, "test": 0}, "24 clips, of which 0 are left to train on after 0 of test and 24 of"),
        ({"path": "nowhere"}, "nowhere is not there"),
    ],
)
def test_options_that_do_not_fit(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    _folder(tmp_path)
    with pytest.raises(ValueError, match=re.escape(message)):
        _data(tmp_path, **options).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "split", "test": 3}, "split and test each say what the test part is; give at most one of them"),
        ({"test_path": "x", "split": "y"}, "split and test_path each say what the test part is"),
        (
            {"split": "part", "test_split": ["a", "b"], "validation_split": ["b"]},
            r"_split both have \['b'\]; a clip is of",
        ),
        ({"pattern": "x"}, "pattern is 'x'; it must have named groups"),
        ({"validation": 0}, "greater than 0"),
        ({"test_split": []}, "at least 1 item"),
        ({"column": "x"}, "Extra inputs"),
    ],
)
def test_options_that_are_illegal(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AudioOptions(**{"path": "x", **options})


# ---- the whole way


BACKBONE = {"model_type": "unimodal_ar_decoder", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}


def _recipe(tmp_path: Path, elements: dict[str, Any], head: dict[str, Any], **evaluation: Any) -> dict[str, Any]:
    """Of clips of 128 samples, a little noise each, with two labels."""
    root = tmp_path / "clips"
    for number in range(24):
        noise = 0.2 * np.random.default_rng(number).normal(size=100 + number)
        _write(root / f"{CLASSES[number % 3]}_{('eve', 'adam')[number % 2]}_{number}.wav", noise)
    label = {"null_probability": 0.1}
    audio = {"head": head, "objective": {"kind": "next_block"}}
    return {
        "output_dir": str(tmp_path / "run"),
        "model": {"backbone": BACKBONE, "modalities": {"word": label, "speaker": label, "audio": audio}},
        "adapters": {
            "word": {"kind": "label", "classes": list(CLASSES)},
            "speaker": {"kind": "label", "classes": ["adam", "eve"]},
            "audio": {"kind": "audio", "sample_rate": RATE, "seconds": 128 / RATE, "elements": elements},
        },
        "data": {
            "kind": "audio",
            "path": str(root),
            "pattern": PATTERN,
            "labels": {"word": "word", "speaker": "speaker"},
            "validation": 6,
            "test": 6,
        },
        "training": {"max_steps": 2, "per_device_train_batch_size": 4, "use_cpu": True, "disable_tqdm": True},
        "evaluation": {"samples": 6, "reconstruction": 4, **evaluation},
    }


def test_a_recipe_of_codes_is_trained_and_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document = _recipe(tmp_path, {"kind": "mulaw", "group": 8}, {"kind": "depth_ar", "heads": 2}, guidance_scale=2.0)
    folder = train(document)
    assert folder is not None
    out = capsys.readouterr().out
    assert "12 training and 6 validation clips" in out and "The model draws with guidance_scale 2.0" in out
    found = json.loads((folder / "evaluation.json").read_text())
    assert sorted(found) == ["bits_per_dimension", "reconstruction", "test_clips"] and found["test_clips"] == 6
    assert f"Test part, 6 clips: {found['bits_per_dimension']:.4f} bits per dimension" in out
    assert 0.5 < found["bits_per_dimension"] < 20  # per sample: 8 bits and more of an untrained model
    lost = found["reconstruction"]
    assert lost["clips"] == 4 and out.index("SI-SDR") < out.index("trainable parameters")
    assert f"log-mel distance {lost['log_mel_distance']:.2f} dB, SI-SDR {lost['si_sdr']:.1f} dB" in out
    assert 25 < lost["si_sdr"] < 50  # mu-law's
    sound = soundfile.info(folder / "samples.wav")
    assert (sound.samplerate, sound.frames) == (RATE, 6 * 128 + 5 * RATE // 2)
    assert (folder / "samples.png").stat().st_size > 1000
    written = yaml.safe_load((folder / "recipe.yaml").read_text())
    assert written["data"]["labels"] == {"word": "word", "speaker": "speaker"} and written["data"]["kind"] == "audio"
    Resolved(written)


def test_what_is_lost_is_measured_on_the_adapters_round_trip(tmp_path: Path) -> None:
    document = _recipe(tmp_path, {"kind": "mulaw"}, {"kind": "categorical"})
    resolved = Resolved(document)
    evaluator: Any = resolved.evaluator()
    test, adapter = resolved.data.test(), resolved.data.adapter
    waves = torch.stack([test.audios.wave(test.rows[i]) for i in (0, 1, 3, 4)])
    back = adapter.decode_waves(adapter.encode_waves(waves))
    assert evaluator.reconstruction == {
        "log_mel_distance": pytest.approx(float(log_mel_distance(waves, back, RATE).median())),
        "si_sdr": pytest.approx(float(si_sdr(waves, back).median())),
        "clips": 4,
    }


@pytest.mark.parametrize(("volume", "ratio"), [(0.2, 100), (1e-5, -100)])
def test_what_is_lost_is_a_number_even_where_nothing_or_all_is(volume: float, ratio: float, tmp_path: Path) -> None:
    """JSON has no infinity."""
    elements = {"kind": "waveform", "patch": 16, "std": 0.5} if ratio > 0 else {"kind": "mulaw"}
    head = {"kind": "mixture"} if ratio > 0 else {"kind": "categorical"}
    document = _recipe(tmp_path, elements, head)
    for number, path in enumerate((tmp_path / "clips").iterdir()):
        _write(path, volume * np.random.default_rng(number).uniform(0, 1, 100), "FLOAT")
    evaluator: Any = Resolved(document).evaluator()
    assert evaluator.reconstruction["si_sdr"] == ratio


def test_a_recipe_of_vectors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    elements = {"kind": "mel", "n_fft": 64, "hop": 16, "iterations": 2}
    document = _recipe(tmp_path, elements, {"kind": "flow", "layers": 1, "width": 8}, head_steps=2)
    document["data"]["test"] = 0.25
    folder = train(document)
    assert folder is not None
    found = json.loads((folder / "evaluation.json").read_text())
    assert sorted(found) == ["reconstruction", "test_clips"] and "si_sdr" not in found["reconstruction"]
    out = capsys.readouterr().out
    assert "this model has no likelihood" in out and "SI-SDR" not in out
    saved = json.loads((folder / "processor_config.json").read_text())["adapters"]["audio"]["elements"]
    assert saved["std"] > 0 and saved["mean"] is not None  # what was fitted
    assert soundfile.info(folder / "samples.wav").frames == 6 * 128 + 5 * RATE // 2


def test_samples_go_through_the_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    evaluator: Any = Resolved(_recipe(tmp_path, {"kind": "mulaw"}, {"kind": "categorical"}, samples=9)).evaluator()

    class Drawn:
        def save(self, path: Path) -> None:
            asked["path"] = path

        def picture(self) -> None:
            return None

    def fake(self: Any, n: int, target: str, **more: Any) -> Drawn:
        asked.update(more, n=n, target=target)
        return Drawn()

    monkeypatch.setattr("unimodal_ar.training.sample_evaluation.Generator.generate", fake)
    monkeypatch.setattr("unimodal_ar.training.sample_evaluation.Generator.__init__", lambda *_: None)
    evaluator._draw(None, tmp_path / "samples.wav")
    assert (asked["n"], asked["target"], asked["path"]) == (9, "audio", tmp_path / "samples.wav")
    assert asked["word"] == [0, 0, 0, 1, 1, 1, 2, 2, 2] and asked["speaker"] == [0, 1, 0, 1, 0, 1, 0, 1, 0]
    evaluator.labels.append(LabelAdapter(2, "room"))
    assert evaluator._classes()["room"] == [0, 0, 1, 1, 0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"evaluation": {"guidance_scale": 2.0}}, None),
        ({"evaluation": {"top_k": 3}}, None),
        ({"evaluation": {"steps": 2}}, r"evaluation\.steps is 2"),
        ({"data": {"test": 0}}, r"evaluation\.bits_per_dimension is true, but data\.test leaves no test clips"),
        ({"data": {"test": 0}, "evaluation": {"bits_per_dimension": False}}, r"evaluation\.reconstruction is 4, but"),
        ({"data": {"test": 0}, "evaluation": {"bits_per_dimension": False, "reconstruction": 0}}, None),
        (
            {"modalities": {"word": {}, "speaker": {}}, "evaluation": {"guidance_scale": 2.0}},
            "guidance need",
        ),
        (
            {"modalities": {"word": {"head": {"kind": "categorical"}}}},
            r"modalities\.word has a head; labels",
        ),
        ({"modalities": {"audio": {}}}, r"modalities\.audio has no head; the data are its clips"),
    ],
)
def test_recipes_that_do_not_hold_together(change: dict[str, Any], message: str | None, tmp_path: Path) -> None:
    document = _recipe(tmp_path, {"kind": "mulaw"}, {"kind": "categorical"})
    document["evaluation"] |= change.get("evaluation", {})
    document["data"] |= change.get("data", {})
    document["model"]["modalities"] |= change.get("modalities", {})
    if message is None:
        assert Resolved(document).evaluator() is not None
        return
    with pytest.raises(ValueError, match=message):
        Resolved(document).evaluator()


def test_silent_test_clips_have_no_ratio(tmp_path: Path) -> None:
    document = _recipe(tmp_path, {"kind": "mulaw"}, {"kind": "categorical"})
    for path in (tmp_path / "clips").iterdir():
        _write(path, np.zeros(100))
    with pytest.raises(ValueError, match=r"evaluation\.reconstruction is 4, but there are no test clips with sound"):
        Resolved(document).evaluator()
    assert os.listdir(tmp_path) == ["clips"]
