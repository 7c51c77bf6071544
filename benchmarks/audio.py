"""Audio side by side: what elements lose, how fast clips are read, how fast and how well they are drawn.

    python benchmarks/audio.py elements --data fsdd.parquet
    python benchmarks/audio.py loader --data fsdd.parquet
    python benchmarks/audio.py speed
    python benchmarks/audio.py quality --data fsdd.parquet --keep runs

--data: spoken digits (FSDD), a parquet file with the columns audio, digit, speaker and split.

elements: round trips of test clips through each kind of element. loader: hours of audio a second, against plain
soundfile. speed: the shipped recipes' models with random weights, which take as long as trained ones; seconds of audio
drawn in a second, decoding to waves included. quality: the recipes trained; a small classifier of digits, trained here
on real clips, tells how often a sample says the digit that was asked for, and how far samples are from real clips in
its features (Frechet distance).
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import soundfile
import torch
from common import (  # type: ignore[import-not-found]  # the scripts' own folder
    machine,
    median_ratio,
    print_table,
    print_target,
    seconds_in_turns,
)
from torch import Tensor, nn

from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.adapters import AudioAdapter, LabelAdapter
from unimodal_ar.evaluation.audio import log_mel_distance, si_sdr
from unimodal_ar.evaluation.frechet import frechet_distance
from unimodal_ar.pipelines import Generator
from unimodal_ar.recipes.train import train
from unimodal_ar.training.documents import load_recipe
from unimodal_ar.training.recipe import Resolved

RATE = 8000
MEL = {"kind": "mel", "n_fft": 256, "hop": 64, "n_mels": 24, "patch": 4}
ELEMENTS: dict[str, dict[str, Any]] = {
    "mu-law, 256 levels": {"kind": "mulaw", "group": 10},
    "mu-law, 64 levels": {"kind": "mulaw", "group": 10, "levels": 64},
    "waveform patches": {"kind": "waveform", "patch": 80},
    "mel, 24 bands, hop 8 ms": MEL,
    "mel, 40 bands, hop 8 ms": {**MEL, "n_mels": 40},
    "mel, 40 bands, hop 8 ms, floor 1e-3": {**MEL, "n_mels": 40, "floor": 1e-3},
    "mel, 40 bands, hop 16 ms": {**MEL, "n_mels": 40, "hop": 128},
    "mel, 80 bands, hop 8 ms, n_fft 512": {**MEL, "n_fft": 512, "n_mels": 80},
}

# Row -> recipe, what is changed in it, how it is drawn.
SCALED = ["adapters.audio.elements.mean=-4", "adapters.audio.elements.std=2"]  # in place of fitting: times are the same
MODELS: dict[str, tuple[str, list[str], dict[str, Any]]] = {
    "mu-law: next-token": ("next_token/speech_mulaw", [], {}),
    "waveform: next-patch": (
        "next_patch/speech_mel",
        ["adapters.audio.elements={kind: waveform, patch: 64, std: 0.1}"],
        {"head_steps": 16},
    ),
    "mel: next-patch": ("next_patch/speech_mel", SCALED, {"head_steps": 16}),
    "mel: next-block of 4": (
        "next_patch/speech_mel",
        [*SCALED, "model.modalities.audio.layout.block=4"],
        {"head_steps": 16},
    ),
    "mel: masked, 16 passes": ("block_diffusion/speech_mel_mask", SCALED, {"steps": 16}),
    "mel: Gaussian blocks of 8, 20 passes": (
        "block_diffusion/speech_mel_mask",
        [
            *SCALED,
            "model.modalities.audio.layout.block=8",
            "model.modalities.audio.objective={kind: block_diffusion, noise: gaussian}",
            "model.modalities.audio.head={kind: regression}",
            "evaluation=null",
        ],
        {"steps": 20},
    ),
    "codec: delayed blocks": ("next_block/speech_codes", [], {}),
    "codec: one code after the other": (
        "next_block/speech_codes",
        ["model.modalities.audio.layout={order: raster, block: 1}"],
        {},
    ),
}
FASTER_THAN_REAL_TIME = ("mel: next-patch", "mel: masked, 16 passes")


# ---- data


def clips_of(path: str) -> list[dict[str, Any]]:
    """Rows of the parquet file: audio (bytes), digit, speaker, split."""
    return pq.read_table(path, columns=["audio", "digit", "speaker", "split"]).to_pylist()


def waves_of(rows: list[dict[str, Any]], adapter: AudioAdapter) -> Tensor:
    """[n, samples] the first window of each clip."""
    waves = [adapter.chunks(wave)[0] for wave in adapter.waves([row["audio"]["bytes"] for row in rows])]
    return torch.stack(waves)[:, 0]


# ---- elements


def measure_elements(args: argparse.Namespace) -> None:
    rows = clips_of(args.data)
    training, test = ([row for row in rows if row["split"] == part][:300] for part in ("train", "test"))
    table = []
    for name, elements in ELEMENTS.items():
        adapter = AudioAdapter(RATE, 1.024, elements=elements)
        real = waves_of(test, adapter)[:, None]
        if adapter.needs_fit:
            adapter.fit(waves_of(training, adapter)[:, None])
        start = time.perf_counter()
        segment = adapter.encode_waves(real)
        encoding = time.perf_counter() - start
        start = time.perf_counter()
        back = adapter.decode_waves(segment)
        decoding = time.perf_counter() - start
        seconds = real.numel() / RATE
        exact = float(si_sdr(real, back).median())
        table.append(
            [
                name,
                f"{segment.num_elements / adapter.seconds:.0f}",
                f"{exact:.1f}" if elements["kind"] != "mel" else "-",
                f"{float(log_mel_distance(real, back, RATE).median()):.2f}",
                f"{seconds / encoding:.0f}x",
                f"{seconds / decoding:.0f}x",
            ]
        )
    print(f"\n{len(test)} test clips; medians; encoding and decoding in times real time.\n")
    print_table(["elements", "elements/s", "SI-SDR dB", "log-mel dB", "encoding", "decoding"], table)


# ---- loader


def measure_loader(args: argparse.Namespace) -> None:
    rows = clips_of(args.data)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "clips"
        folder.mkdir()
        for number, row in enumerate(rows):
            (folder / f"{row['digit']}_{row['speaker']}_{number}.wav").write_bytes(row["audio"]["bytes"])
        files = sorted(folder.iterdir())
        hours = sum(soundfile.info(file).duration for file in files) / 3600
        resolved = Resolved(
            load_recipe("next_token/speech_mulaw", [f"data.path={json.dumps(str(folder))}", "data.split=null"])
        )
        audio = resolved.adapters["audio"]
        assert isinstance(audio, AudioAdapter)
        dataset = resolved.data.train()
        share = sum(dataset.audios.wave(row).shape[1] for row in dataset.rows) / RATE / 3600
        batches = [dataset.rows[start : start + 16] for start in range(0, len(dataset), 16)]
        faster = AudioAdapter(16000, 0.64, elements={"kind": "mulaw", "group": 10})
        runs: dict[str, Callable[[], object]] = {
            "soundfile.read": lambda: [soundfile.read(file, dtype="float32") for file in files],
            "adapter.waves, 8 kHz": lambda: [audio.waves(file) for file in files],
            "adapter.waves, to 16 kHz": lambda: [faster.waves(file) for file in files],
            "a training epoch, from memory": lambda: [dataset.collate(batch) for batch in batches],
        }
        for run in runs.values():
            run()
        seconds = seconds_in_turns(runs, args.repeats, torch.device("cpu"))
    table = []
    for name, taken in seconds.items():
        read = share if "epoch" in name else hours
        ratio = median_ratio(taken, seconds["soundfile.read"]) * hours / read
        table.append([name, f"{read / median(taken):.2f}", f"{ratio:.2f}x"])
    print(f"\n{len(files)} files of {3600 * hours / len(files):.2f} s on average.\n")
    print_table(["what", "hours of audio a second", "time an hour takes"], table)


# ---- speed


@contextmanager
def codec_of_full_size() -> Iterator[str]:
    """A folder with Mimi as it is published, but for its weights."""
    from transformers import MimiConfig, MimiModel

    with tempfile.TemporaryDirectory() as folder:
        MimiModel(MimiConfig()).save_pretrained(folder)
        yield folder


def build(recipe: str, changes: list[str], codec: str) -> Generator:
    """The recipe's model with random weights, and its adapters."""
    overrides = ["data.path=.", *changes]
    if recipe == "next_block/speech_codes":
        overrides.append(f"adapters.audio.elements.path={json.dumps(codec)}")
    resolved = Resolved(load_recipe(recipe, overrides))
    torch.manual_seed(0)
    return Generator(UnimodalARForGeneration(resolved.config).eval(), resolved.adapters)


def measure_speed(args: argparse.Namespace) -> None:
    table, factors = [], {}
    with codec_of_full_size() as codec:
        for name, (recipe, changes, arguments) in MODELS.items():
            generator = build(recipe, changes, codec)
            adapter = generator.adapters["audio"]
            assert isinstance(adapter, AudioAdapter)
            cells, share = [], 0.0
            for n in (args.batch, 1):
                drawn = generator.generate(n, digit=3, speaker=0, **arguments)  # the first time is slower
                taken = {"draw": [], "decode": []}  # type: dict[str, list[float]]
                for _ in range(args.repeats):
                    start = time.perf_counter()
                    drawn = generator.generate(n, digit=3, speaker=0, **arguments)
                    taken["draw"].append(time.perf_counter() - start)
                    start = time.perf_counter()
                    adapter.decode(drawn.segment)
                    taken["decode"].append(time.perf_counter() - start)
                cells.append(n * adapter.seconds / median(taken["draw"]))
                share = median(taken["decode"]) / median(taken["draw"])
            factors[name] = cells[1]
            parameters = sum(parameter.numel() for parameter in generator.model.parameters())
            layout = generator.model.layout("audio", adapter.grid)
            table.append(
                [
                    name,
                    f"{parameters / 1e6:.1f}",
                    f"{len(layout) / adapter.seconds:.0f}",
                    f"{layout.num_blocks / adapter.seconds:.0f}",
                    f"{cells[1]:.2f}x",
                    f"{100 * share:.0f} %",
                    f"{cells[0]:.2f}x",
                ]
            )
    print("\nSeconds of audio drawn in a second, waves included; decoding: its share of the time, one clip.\n")
    header = ["elements: objective", "M parameters", "elements/s", "blocks/s", "one clip", "decoding"]
    print_table([*header, f"{args.batch} clips"], table)
    print()
    for name in FASTER_THAN_REAL_TIME:
        print_target(f"{name}, times real time", factors[name], 1, at_least=True)


# ---- quality


class Classifier(nn.Module):
    """Spoken digits from log-mel spectrograms; `features` is the last hidden layer."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in ((1, width), (width, 2 * width), (2 * width, 2 * width)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(), nn.MaxPool2d(2)]
        self.body = nn.Sequential(*layers, nn.Dropout(0.2))
        self.last = nn.Linear(2 * width, 10)

    @staticmethod
    def spectra(waves: Tensor) -> Tensor:
        """[n, samples] at 8 kHz -> [n, 1, 40, frames]."""
        import torchaudio

        mel = torchaudio.transforms.MelSpectrogram(RATE, n_fft=256, hop_length=160, n_mels=40, f_max=RATE / 2)
        return ((mel(waves) + 1e-5).log() + 5)[:, None] / 4

    def features(self, waves: Tensor) -> Tensor:
        """[n, d]."""
        return self.body(self.spectra(waves)).mean((-1, -2))

    def forward(self, waves: Tensor) -> Tensor:
        return self.last(self.features(waves))


def fit_classifier(waves: Tensor, digits: Tensor, epochs: int = 16) -> Classifier:
    """Clips are shifted in time and scaled while it learns: samples begin where they like."""
    torch.manual_seed(0)
    classifier = Classifier()
    optimizer = torch.optim.AdamW(classifier.parameters(), lr=2e-3, weight_decay=1e-2)
    steps = epochs * (len(waves) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in range(steps):
        rows = torch.randint(len(waves), (64,))
        shifted = waves[rows].roll(int(torch.randint(0, RATE // 10, ())), 1) * (0.5 + torch.rand(64, 1))
        loss = nn.functional.cross_entropy(classifier(shifted), digits[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return classifier.eval()


def judged(classifier: Classifier, waves: Tensor, digits: Tensor, real: np.ndarray | None) -> tuple[float, float]:
    """(accuracy, Frechet distance from real features)."""
    with torch.no_grad():
        features = classifier.features(waves)
        accuracy = float((classifier.last(features).argmax(1) == digits).float().mean())
    return accuracy, float("nan") if real is None else frechet_distance(real, features.numpy())


def at_8_khz(waves: list[Any], samples: int) -> Tensor:
    """Clips -> [n, samples], cut or filled up with silence."""
    found = AudioAdapter(RATE, samples / RATE).waves(waves)
    return torch.stack([nn.functional.pad(wave[0, :samples], (0, max(0, samples - wave.shape[1]))) for wave in found])


def measure_quality(args: argparse.Namespace, scratch: Path) -> None:
    rows = clips_of(args.data)
    plain = AudioAdapter(RATE, 1.024, elements=MEL)
    parts = {part: [row for row in rows if row["split"] == part] for part in ("train", "test")}
    waves = {part: waves_of(found, plain) for part, found in parts.items()}
    digits = {part: torch.tensor([row["digit"] for row in found]) for part, found in parts.items()}
    classifier = fit_classifier(waves["train"], digits["train"])
    with torch.no_grad():
        real = classifier.features(waves["train"]).numpy()
    table = [["real test clips", "-", *_cells(judged(classifier, waves["test"], digits["test"], real)), "-"]]
    plain.fit(waves["train"][:300, None])
    back = plain.decode_waves(plain.encode_waves(waves["test"][:, None]))[:, 0]
    table.append(["the same through mels", "-", *_cells(judged(classifier, back, digits["test"], real)), "-"])
    for recipe in args.recipes:
        folder = Path(args.keep or scratch) / recipe.replace("/", "_")
        if not (folder / "config.json").exists():
            start = time.perf_counter()
            overrides = [f"data.path={json.dumps(args.data)}", "data.pattern=null", "data.split=split", *args.overrides]
            train(load_recipe(recipe, [*overrides, f"output_dir={json.dumps(str(folder))}"]))
            (folder / "seconds").write_text(f"{time.perf_counter() - start:.0f}")
        generator = Generator.from_pretrained(folder, device="cpu")
        speaker = generator.adapters["speaker"]
        assert isinstance(speaker, LabelAdapter)
        speakers = len(speaker.names)
        asked = torch.arange(args.samples) % 10
        start = time.perf_counter()
        drawn = generator.generate(
            args.samples,
            digit=asked.tolist(),
            speaker=[i // 10 % speakers for i in range(args.samples)],
            guidance_scale=args.guidance_scale,
            seed=args.seed,
        )
        seconds = time.perf_counter() - start
        found = at_8_khz(drawn.raw, waves["train"].shape[1])
        factor = f"{args.samples * drawn.raw[0].seconds / seconds:.1f}x"
        table.append(
            [recipe, (folder / "seconds").read_text(), *_cells(judged(classifier, found, asked, real)), factor]
        )
    print(f"\n{args.samples} samples per row: digits and speakers in equal shares.\n")
    print_table(["recipe", "training s", "accuracy", "Frechet", "times real time"], table)


def _cells(measured: tuple[float, float]) -> list[str]:
    return [f"{measured[0]:.3f}", f"{measured[1]:.2f}"]


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    print(f"\n{machine(torch.device('cpu'), torch.float32)}")
    with tempfile.TemporaryDirectory() as scratch:
        {
            "elements": measure_elements,
            "loader": measure_loader,
            "speed": measure_speed,
            "quality": lambda args: measure_quality(args, Path(scratch)),
        }[args.what](args)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["elements", "loader", "speed", "quality"])
    parser.add_argument("--data", metavar="PARQUET", help="FSDD, for all but speed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8, help="clips at once, for speed")
    parser.add_argument("--samples", type=int, default=300, help="per row, for quality")
    parser.add_argument("--guidance-scale", type=float, help="for quality (default: the recipe's)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", metavar="DIR", help="keep the trained models there; those that are there are used")
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=["next_token/speech_mulaw", "next_patch/speech_mel", "block_diffusion/speech_mel_mask"],
        help="for quality",
    )
    parser.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="A.B=VALUE", help="for quality; repeatable"
    )
    args = parser.parse_args()
    if args.what != "speed" and args.data is None:
        parser.error(f"{args.what} needs --data")
    return args


if __name__ == "__main__":
    main()
