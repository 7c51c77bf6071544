"""Samples with a length in seconds: windows, prompts and streams of the pipeline, and on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from unimodal_ar import Segment
from unimodal_ar.adapters import ADAPTERS, Adapter, AdapterOptions, AudioAdapter, AudioClip, ImageAdapter, LabelAdapter
from unimodal_ar.adapters.audio.clips import open_clip
from unimodal_ar.cli import main
from unimodal_ar.noise import SampleNoise
from unimodal_ar.pipelines import Generator

from .helpers import build, codes, diffusion, label
from .test_audio_adapter import make

Image = pytest.importorskip("PIL.Image")

V, PER_SECOND, STEPS = 5, 4, 8


class Tune(Adapter):
    """A fake of a medium with a length: lists of notes, four a second; clips of the model have two seconds."""

    suffixes: ClassVar[tuple[str, ...]] = (".tune", ".notes")
    element: ClassVar[dict[str, Any]] = {"kind": "discrete", "vocab_size": V}  # type: ignore[assignment]
    grid = (STEPS, 1, 1)
    looked_at: ClassVar[list[Any]] = []

    def __init__(self, modality: str = "tune") -> None:
        self.options = AdapterOptions(modality=modality)

    def grid_for(self, seconds: float | None = None) -> Any:
        if seconds is not None and seconds > 100:
            raise ValueError(f"seconds is {seconds}; nobody listens so long")
        return self.grid if seconds is None else (round(seconds * PER_SECOND), 1, 1)

    def encode(self, raw: Any, **_: Any) -> Segment:  # type: ignore[override]
        return Segment(self.modality, torch.tensor(raw), (len(raw[0]), 1, 1))

    def decode(self, segment: Segment) -> list[list[int]]:
        return [list(row) for row in segment.values.tolist()]

    def complete(self, given: Any, mask: Any = None, seconds: float | None = None) -> Segment:
        grid = self.grid_for(seconds)
        if isinstance(given, str):
            given = [[int(note) for note in Path(given).read_text().split()]]
        values = torch.zeros(len(given), grid[0], dtype=torch.long)
        values[:, : len(given[0])] = torch.tensor(given)
        observed = (torch.arange(grid[0]) < len(given[0])).expand(len(given), -1)
        return Segment(self.modality, values, grid, observed=observed)

    def stream(self, segments: Iterable[Segment]) -> Iterator[list[list[int]]]:
        done = 0
        for segment in segments:
            known = int(segment.element_observed[0].sum())
            yield segment.values[:, done:known].tolist()
            done = known

    def save(self, raw: Any, path: Any) -> None:
        Path(path).write_text("".join(" ".join(map(str, notes)) + "\n" for notes in raw))

    def save_stream(self, parts: Iterable[Any], path: Any) -> Iterator[str]:
        written: list[int] = []
        for (new,) in parts:
            written += new
            self.save([written], path)
            yield f"{len(written)} notes"

    def picture(self, raw: Any) -> Any:
        self.looked_at.append(raw)
        return Image.new("L", (3, 2), 7)


def tunes(block: int = 1, **context: Any) -> Generator:
    modality = codes(V, (STEPS, 1, 1), block)
    return Generator(build({"label": label(3, **context), "tune": modality}, spread=0.2), [LabelAdapter(3), Tune()])


def rolled(
    source: Generator, n: int, steps: int, window: int | None, given: Segment | None = None, **more: Any
) -> Tensor:
    context = [Segment("label", torch.ones(n, 1, dtype=torch.long), (1, 1, 1), target=False)]
    noise = SampleNoise(0, torch.arange(n))
    return source.model.generate(
        context, "tune", grid=(steps, 1, 1), given=given, window=window, generator=noise, **more
    ).values


# --- the pipeline -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "steps", "window"),
    [
        (dict(), 8, None),
        (dict(seconds=1.5), 6, None),
        (dict(seconds=5), 20, 8),  # as the model was trained
        (dict(seconds=5, window=1), 20, 4),
        (dict(seconds=5, window=5), 20, None),
        (dict(window=1.5), 8, 6),
    ],
)
def test_lengths_are_in_seconds(arguments: dict[str, Any], steps: int, window: int | None) -> None:
    source = tunes()
    samples = source.generate(3, label=1, **arguments)
    assert samples.segment.grid == (steps, 1, 1)
    assert torch.equal(samples.segment.values, rolled(source, 3, steps, window))
    whole = rolled(source, 3, steps, None)
    assert torch.equal(samples.segment.values, whole) == (window is None)
    assert samples.raw == samples.segment.values.tolist()
    split = source.generate(3, label=1, batch_size=2, **arguments).segment.values
    assert torch.equal(split, samples.segment.values)


@pytest.mark.parametrize(
    ("arguments", "overlap", "sink"),
    [
        (dict(overlap=0.25), 1, 0),
        (dict(overlap=0), 0, 0),
        (dict(sink=0.5), 4, 2),
        (dict(sink=0, overlap=1.5), 6, 0),
        (dict(sink=0.25, overlap=0.5), 2, 1),
    ],
)
def test_what_windows_share_is_in_seconds(arguments: dict[str, Any], overlap: int, sink: int) -> None:
    source = tunes()
    drawn = source.generate(3, label=1, seconds=5, **arguments).segment.values
    assert torch.equal(drawn, rolled(source, 3, 20, 8, overlap=overlap, sink=sink))
    assert not torch.equal(drawn, rolled(source, 3, 20, 8))
    *_, last = source.stream(1, label=1, seconds=5, **arguments)
    assert last[0] == drawn[0, -len(last[0]) :].tolist()
    short = source.generate(3, label=1, **arguments).segment.values  # one window holds it all
    assert torch.equal(short, rolled(source, 3, 8, None))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (dict(overlap=101), "overlap cannot be 101: seconds is 101; nobody listens so long"),
        (dict(sink=101), "sink cannot be 101: seconds is 101; nobody listens so long"),
        (dict(overlap=1, sink=1), "window is 8 steps, overlap 4 and sink 4; a window must be longer than overlap and"),
    ],
)
def test_windows_that_share_too_much_are_told(arguments: dict[str, Any], sentence: str) -> None:
    for draw in (tunes().generate, tunes().stream):
        with pytest.raises(ValueError, match=f"^{sentence}"):
            draw(1, label=1, seconds=5, **arguments)


def test_an_adapter_may_ask_for_a_sink(monkeypatch: pytest.MonkeyPatch) -> None:
    def check_windows(self: Any, sink: int) -> None:
        if sink < 2:
            raise ValueError(f"sink is {sink} steps; these tunes are lost without their first two")

    monkeypatch.setattr(Tune, "check_windows", check_windows)
    for arguments in (dict(seconds=5), dict(seconds=5, sink=0.25)):
        with pytest.raises(ValueError, match=r"^sink is [01] steps; these tunes are lost"):
            tunes().generate(1, label=1, **arguments)
    assert len(tunes().generate(1, label=1, seconds=5, sink=0.5).raw[0]) == 20
    assert len(tunes().generate(1, label=1, seconds=2).raw[0]) == 8  # a single window


def test_a_prompt_goes_on() -> None:
    source, prompt = tunes(), [[1, 2, 3], [3, 2, 1]]
    given = Tune().complete(prompt, seconds=5)
    samples = source.generate(2, label=1, given=prompt, seconds=5)
    assert samples.segment.values[:, :3].tolist() == prompt
    assert torch.equal(samples.segment.values, rolled(source, 2, 20, 8, given))
    four = source.generate(4, label=1, given=prompt).segment.values
    assert four[:, :3].tolist() == [prompt[0]] * 2 + [prompt[1]] * 2


@pytest.mark.parametrize("block", [1, 2])
def test_a_stream_is_what_generate_draws(block: int) -> None:
    source = tunes(block)
    cases: list[dict[str, Any]] = [
        {},
        dict(seconds=5),
        dict(seconds=5, window=1, given=[[1, 2]]),
        dict(seed=3, top_k=2),
    ]
    for arguments in cases:
        expected = source.generate(1, label=1, **arguments).raw
        parts = list(source.stream(label=1, **arguments))
        assert [[note for part in parts for note in part[0]]] == expected
        known = len(arguments.get("given", [[]])[0])
        assert [len(part[0]) for part in parts] == [known + block] + [block] * (len(parts) - 1)
    several = list(source.stream(3, "tune", label=[0, 1, 2]))
    expected = source.generate(3, label=[0, 1, 2]).raw
    assert [[note for part in several for note in part[row]] for row in range(3)] == expected


def test_a_stream_of_images_shows_all_so_far() -> None:
    adapter = ImageAdapter(4, channels=1, elements={"kind": "levels", "levels": 3})
    source = Generator(build({"image": codes(3, adapter.grid, "row")}), [adapter])
    shown = [np.array(image) for (image,) in source.stream()]
    assert len(shown) == 4 and np.array_equal(shown[-1], np.array(source.generate(1).raw[0]))
    for row, picture in enumerate(shown):
        assert np.array_equal(picture[: row + 1], shown[-1][: row + 1]) and (picture[row + 1 :] == 128).all()


class Frozen:
    """A module on an imaginary device."""

    def __init__(self) -> None:
        self.device = torch.device("cuda")

    def to(self, device: Any) -> None:
        self.device = torch.device(device)


def test_modules_are_on_the_models_device_while_a_stream_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    frozen, source = Frozen(), tunes()
    monkeypatch.setattr(Tune, "modules", [frozen])
    for _ in source.stream(label=1):
        assert frozen.device == torch.device("cpu")
    assert frozen.device == torch.device("cuda")
    parts: Any = source.stream(label=1)
    next(parts)
    parts.close()
    assert frozen.device == torch.device("cuda")


def test_a_stream_says_at_once_what_is_wrong() -> None:
    source = tunes()
    with pytest.raises(ValueError, match="seconds is 101"):
        source.stream(label=1, seconds=101)
    with pytest.raises(ValueError, match="guidance_scale is 2"):
        source.stream(label=1, guidance_scale=2)
    with pytest.raises(ValueError, match="overlap is 3 without a window"):
        source.model.stream([], "tune", overlap=3)


def test_a_window_carries_something_over() -> None:
    told = "^window is 0.25, a single step; it must be at least two, of which one is carried over$"
    with pytest.raises(ValueError, match=told):
        tunes().generate(1, label=1, seconds=5, window=0.25)


def test_delayed_rows_have_one_window() -> None:
    """The rows of a delay (pattern "delay") are at each window's end those of a clip's end."""
    adapter = make("codec delay", 0.01)
    kind = {"element": adapter.element, "grid": adapter.grid, "layout": {"order": "raster", "block": 1}}
    source = Generator(build({"audio": kind | {"head": {"kind": "categorical"}}}), [adapter])
    assert source.generate(1, seconds=0.01).segment.grid == adapter.grid == (12, 1, 1)
    assert source.generate(1, seconds=0.015, window=0.015).segment.grid == (17, 1, 1)
    told = (
        "'audio' cannot be drawn window by window: a step of it takes 3 rows (a delay), so that the model ends each "
        "window as if it were the clip's end; make seconds or window such that a single window holds all"
    )
    for draw in (source.generate, source.stream):
        for sink in (None, 0.002):
            with pytest.raises(ValueError, match=f"^{re.escape(told)}$"):
                draw(1, seconds=0.015, sink=sink)


def test_what_has_no_length_is_told() -> None:
    adapter = ImageAdapter(4, channels=1, elements={"kind": "levels", "levels": 3})
    source = Generator(build({"image": codes(3, adapter.grid)}), [adapter])
    told = "'image' is of the kind 'image', which has no length in seconds; leave seconds, window, overlap and sink out"
    pixels, mask = torch.zeros(4, 4, dtype=torch.uint8), np.ones((4, 4), dtype=bool)
    for arguments in (dict(seconds=2.0), dict(seconds=2.0, given=pixels, mask=mask)):
        with pytest.raises(ValueError, match=f"^{told}$"):
            source.generate(1, **arguments)
    with pytest.raises(ValueError, match=f"^window cannot be 2.0: {told}$"):
        source.generate(1, window=2.0)
    with pytest.raises(ValueError, match=f"^overlap cannot be 2.0: {told}$"):
        source.generate(1, overlap=2.0)
    with pytest.raises(ValueError, match=f"^sink cannot be 2.0: {told}$"):
        source.generate(1, sink=2.0)
    with pytest.raises(ValueError, match=r"^seconds is 101; nobody listens so long$"):
        tunes().generate(1, label=1, seconds=101)
    with pytest.raises(ValueError, match=r"^batch_size is 3; stream draws its samples together$"):
        next(source.stream(batch_size=3))
    first, second = LabelAdapter(3, modality="first"), LabelAdapter(3)
    net = build({"label": label(3), "first": codes(3, (1, 1, 1))})
    with pytest.raises(
        ValueError,
        match=r"^given is for what can be completed, images, video or audio say; 'first' is of the kind 'label'$",
    ):
        Generator(net, [second, first]).generate(1, label=1, given=0)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model folder whose adapter is the fake."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(ADAPTERS, "tune", Tune)
    monkeypatch.setattr(Tune, "kind", "tune", raising=False)
    source = tunes()
    for part in (source.model, *source.adapters.values()):
        part.save_pretrained("model")
    return tmp_path


def sample(*words: str) -> int:
    return main(["sample", "--model", "model", "--context", "label=1", *words])


def notes(path: str) -> list[list[int]]:
    return [[int(note) for note in line.split()] for line in Path(path).read_text().splitlines()]


def test_lengths_windows_and_prompts_are_options(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tunes()
    assert sample("--out", "a.tune", "--n", "2", "--seconds", "5", "--window", "1") == 0
    assert notes("a.tune") == source.generate(2, label=1, seconds=5, window=1).raw
    shared = ["--overlap", "0", "--sink", "0.5"]
    assert sample("--out", "c.tune", "--n", "2", "--seconds", "5", *shared) == 0
    assert notes("c.tune") == source.generate(2, label=1, seconds=5, overlap=0, sink=0.5).raw != notes("a.tune")
    capsys.readouterr()
    assert sample("--out", "a.tune", "--n", "2", "--seconds", "5", "--window", "1") == 0
    assert capsys.readouterr().out == "Wrote 2 samples to a.tune, and a picture to a.png\n"
    assert np.array(Image.open("a.png")).tolist() == [[7] * 3] * 2
    Path("prompt.tune").write_text("3 3 1")
    assert sample("--out", "b.notes", "--given", "prompt.tune") == 0
    assert notes("b.notes") == source.generate(16, label=1, given=[[3, 3, 1]]).raw


def test_a_stream_is_written_as_it_comes(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sample("--out", "a.tune", "--stream", "--seconds", "3") == 0
    assert notes("a.tune") == tunes().generate(1, label=1, seconds=3).raw
    told = capsys.readouterr()
    assert told.out == "Wrote 1 sample to a.tune, and a picture to a.png\n"
    assert told.err == "".join(f"\r{count} notes" for count in range(1, 13)) + "\n"
    assert Tune.looked_at[-1] == [Path("a.tune")]
    draw, blocks = type(tunes().model)._draw, iter(range(5))

    def stop(*arguments: Any) -> None:
        if next(blocks, None) is None:
            raise KeyboardInterrupt
        draw(*arguments)

    monkeypatch.setattr(type(tunes().model), "_draw", stop)
    assert sample("--out", "b.tune", "--stream", "--seconds", "3") == 130
    assert notes("b.tune") == [notes("a.tune")[0][:5]]
    assert capsys.readouterr().err.endswith("\r5 notes\ninterrupted\n")


def test_a_stream_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    adapter = ImageAdapter(4, channels=1, elements={"kind": "levels", "levels": 3})
    model = build({"image": codes(3, adapter.grid)})
    for part in (model, adapter):
        part.save_pretrained("model")
    assert main(["sample", "--model", "model", "--out", "a.png", "--stream"]) == 0
    drawn = Generator(model, [adapter]).generate(1).raw[0]
    assert np.array_equal(np.array(Image.open("a.png")), np.array(drawn))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "model"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--seconds", "0"], "--seconds is 0.0; it must be a number > 0"),
        (["--window", "nan"], "--window is nan; it must be a number > 0"),
        (["--window", "inf"], "--window is inf; it must be a number > 0"),
        (["--overlap", "-1"], "--overlap is -1.0; it must be a number >= 0"),
        (["--sink", "nan"], "--sink is nan; it must be a number >= 0"),
        (["--sink", "101"], "--sink cannot be 101.0: seconds is 101.0; nobody listens so long"),
        (["--seconds", "5", "--sink", "1"], "--window is 8 steps, overlap 4 and sink 4; a window must be longer than"),
        (["--stream", "--n", "2"], "--n is 2 with --stream, which draws 1 sample"),
        (["--stream", "--batch-size", "2"], "--batch-size is 2 with --stream, which draws 1 sample"),
        (["--out", "a.png"], "--out is 'a.png'; it must end in .notes or .tune"),
        (["--out", "a.txt"], "--out is 'a.txt'; it must end in "),
        (["--out", "taken.tune"], "--out is 'taken.tune'; the picture beside it cannot be written, its name is a fold"),
        (
            ["--out", "same.tune", "--given", "same.png"],
            "--out is 'same.tune', which --given reads; it must be another",
        ),
        (["--seconds", "101"], "--seconds is 101.0; nobody listens so long"),
        (["--window", "101"], "--window cannot be 101.0: seconds is 101.0; nobody listens so long"),
    ],
)
def test_bad_lengths_and_names_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    Path("taken.png").mkdir()
    Path("same.png").touch()
    assert sample("--out", "a.tune", *words) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {sentence}") and error.count("\n") == 1
    assert sorted(file.name for file in folder.iterdir()) == ["model", "same.png", "taken.png"]


def test_samples_of_what_has_no_files_are_not_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Tune, "suffixes", ())
    assert sample("--out", "a.wav") == 2
    assert capsys.readouterr().err == "error: target is 'tune'; its samples have no file of their own\n"


# --- audio ------------------------------------------------------------------------------------------------------------

RATE = 2000


def audio(elements: dict[str, Any] | None = None, **modality: Any) -> Generator:
    """A toy model of 0.1 s."""
    elements = elements or {"kind": "mulaw", "levels": 8, "group": 10}
    adapter = AudioAdapter(RATE, 0.1, elements=elements)
    if adapter.needs_fit:
        adapter.fit([torch.rand(1, RATE, generator=torch.Generator().manual_seed(0)) - 0.5])
    element = {"element": adapter.element, "grid": adapter.grid, "layout": {"order": "raster", "block": 1}}
    kind = {"head": {"kind": "categorical" if adapter.element["kind"] == "discrete" else "mixture"}}
    model = build({"label": label(3), "audio": element | kind | modality}, spread=0.1)
    return Generator(model, [LabelAdapter(3), adapter])


MEL = {"kind": "mel", "n_fft": 128, "win": 128, "hop": 32, "n_mels": 12, "patch": 1, "f_max": 900, "iterations": 4}
KINDS: list[dict[str, Any]] = [
    {"kind": "mulaw", "levels": 8, "group": 10},
    {"kind": "waveform", "patch": 20},
    MEL,
]


@pytest.mark.parametrize("elements", KINDS, ids=lambda elements: elements["kind"])
def test_streamed_audio_is_that_of_one_shot_sample_for_sample(elements: dict[str, Any]) -> None:
    source = audio(elements)
    cases: list[dict[str, Any]] = [{}, dict(seconds=1.5), dict(seconds=0.3, window=0.06)]
    for arguments in cases:
        (clip,) = source.generate(1, label=1, **arguments).raw
        parts = [part.wave for (part,) in source.stream(label=1, **arguments)]
        assert torch.equal(torch.cat(parts, 1), clip.wave)
        assert clip.seconds >= arguments.get("seconds", 0.1)
        assert len(parts) > 1 or clip.seconds < 1  # Griffin-Lim waits for some frames


def test_a_prompt_is_kept_as_far_as_it_fills_blocks() -> None:
    """Under next-block: what of it lies in a block that is not known as a whole is drawn anew."""
    adapter = AudioAdapter(8000, 12 / 8000, elements={"kind": "mulaw", "levels": 16})
    model = build({"audio": codes(16, adapter.grid, block=4)})
    source, wave = Generator(model, [adapter]), torch.linspace(-0.9, 0.9, 12)
    six, four = (source.generate(3, given=(wave[:n], 8000), seed=1).segment.values for n in (6, 4))
    assert torch.equal(six, four)
    assert torch.equal(six[:, :4], adapter.encode((wave, 8000)).values[:, :4].expand(3, -1))
    assert not torch.equal(six[0], six[1])
    message = "given is too short: this model draws 4 elements of 'audio' first, together, and given knows 3"
    with pytest.raises(ValueError, match=f"^{message}$"):
        source.generate(3, given=(wave[:3], 8000))
    free = Generator(build({"audio": codes(16, adapter.grid, block=4, **diffusion("mask"))}), [adapter])
    kept = free.generate(3, given=(wave[:6], 8000)).segment.values[:, :6]
    assert torch.equal(kept, adapter.encode((wave, 8000)).values[:, :6].expand(3, -1))


def test_audio_goes_on_from_a_prompt_longer_than_the_models_clips() -> None:
    source = audio()
    noise = torch.rand(1, 510, generator=torch.Generator().manual_seed(1)) - 0.5
    (clip,) = source.generate(1, label=1, given=AudioClip(noise, RATE), seconds=0.5).raw
    adapter: Any = source.adapters["audio"]
    kept = adapter.decode_waves(adapter.encode_waves(noise[None]))[0]
    assert clip.wave.shape == (1, 1000) and torch.equal(clip.wave[:, :510], kept)
    parts = [part.wave for (part,) in source.stream(label=1, given=AudioClip(noise, RATE), seconds=0.5)]
    assert torch.equal(torch.cat(parts, 1), clip.wave)


def test_audio_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("soundfile")
    monkeypatch.chdir(tmp_path)
    source = audio()
    for part in (source.model, *source.adapters.values()):
        part.save_pretrained("model")
    words = ["--seconds", "0.45", "--seed", "3"]
    assert sample("--out", "shot.wav", "--n", "1", *words) == 0
    assert sample("--out", "stream.wav", "--stream", *words) == 0
    assert Path("shot.wav").read_bytes() == Path("stream.wav").read_bytes()
    assert capsys.readouterr().err.endswith("\r0.45 s\n")
    (clip,) = source.generate(1, label=1, seconds=0.45, seed=3).raw
    found = open_clip("stream.wav")
    assert found.rate == RATE and (found.wave - clip.wave).abs().max() <= 2**-15
    with Image.open("shot.png") as shot, Image.open("stream.png") as streamed:
        difference = np.abs(np.array(shot).astype(int) - np.array(streamed))  # the latter's is of PCM16
        assert difference.mean() < 1 and np.array(shot).std() > 10
    assert sample("--out", "more.flac", "--given", "shot.wav", "--seconds", "0.6", "--n", "2") == 0
    assert open_clip("more.flac").seconds == pytest.approx(2 * 0.6 + 0.5)
    assert sample("--out", "more.png") == 2 and sample("--out", "a.flac", "--stream") == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-2] == "error: --out is 'more.png'; it must end in .flac or .wav"
    assert ".wav" in told[-1] and not Path("a.flac").exists()
    before = Path("shot.wav").read_bytes()
    for wrong in (["--seconds", "1", "--window", "0.001"], ["--given", "stream.wav"], ["--guidance-scale", "2"]):
        assert sample("--out", "shot.wav", "--stream", *wrong) == 2
        assert Path("shot.wav").read_bytes() == before  # nothing is lost where nothing is drawn
