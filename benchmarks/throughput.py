"""Training at full strength: whole steps of a native model against transformers' Llama of equal size, and against the
operations that they cannot do without.

    python benchmarks/throughput.py --size toy
    python benchmarks/throughput.py --device cuda --dtype bfloat16 --attention sdpa flex_attention --compile

A step is forward, backward and the fused AdamW, of the same batch of the same codes. Llama is transformers' own
LlamaForCausalLM, trained on next tokens; ours are next-token, next-block (rows of 32 codes), and block diffusion of two
streams (blocks of 16), which has twice the positions. Weights are in float32; with another dtype the products are, by
autocast, as in training with `bf16: true`.

Operations are counted by formula: 6 for each weight of a product and position that it is applied to, 12 x width for
each pair of query and key that the mask lets through, in each layer. MFU is what they would take at the device's peak
over what the step takes. "per operation" compares a step with Llama's after its own operations are taken into account:
1 is as fast as Llama, less is slower.
"""

from __future__ import annotations

import argparse
import re
import time
from collections.abc import Callable
from contextlib import nullcontext
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
from transformers import LlamaConfig, LlamaForCausalLM

from unimodal_ar import Segment, UnimodalARConfig, UnimodalARDecoderConfig, UnimodalARForGeneration
from unimodal_ar.training.compiling import compiled_layers
from unimodal_ar.training.memory import peak_memory

LLAMA, ROW = "transformers Llama", 32
OBJECTIVES: dict[str, dict[str, Any]] = {
    "next-token": {"layout": {"block": 1}},
    "next-block, rows": {"layout": {"block": "row"}},
    "block diffusion, 16": {"layout": {"block": 16}, "objective": {"kind": "block_diffusion"}},
}
SIZES: dict[str, dict[str, int]] = {
    "toy": {"width": 64, "layers": 2, "vocabulary": 512, "length": 64, "batch": 2},
    "100m": {"width": 768, "layers": 12, "vocabulary": 16384, "length": 1024, "batch": 8},
}
PEAKS = {  # dense bfloat16 TFLOP/s by the vendor's data sheets
    "H200": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.5,
    "H100": 989.4,
    "A100": 312.0,
    "L40S": 362.1,
    "L4": 121.0,
    "A10G": 70.0,
    "4090": 165.2,
}


class Row:
    """A model, its step, and what the step must do.

    Attributes:
        positions: of the sequence, that the body runs.
        pairs: of query and key that attend, per example.
    """

    def __init__(self, args: argparse.Namespace, name: str, attention: str, compiled: bool) -> None:
        self.args, self.name, self.attention, self.compiled = args, name, attention, compiled
        torch.manual_seed(0)
        self.model = (llama(args, attention) if name == LLAMA else native(args, name, attention)).to(args.device)
        self.model.train()
        self.parameters = sum(p.numel() for p in self.model.parameters())
        self.optimiser = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)
        self.positions, self.pairs = args.length, args.length * (args.length + 1) // 2
        if name != LLAMA:
            self._look()
        self._compile()

    def _look(self) -> None:
        """Takes positions and pairs from what the body is given."""

        def look(module: nn.Module, inputs: Any) -> None:
            pattern = inputs[0].pattern
            self.positions, self.pairs = pattern.queries, int(pattern.dense().sum())

        hook = self.model.backbone.register_forward_pre_hook(look)
        with torch.no_grad():
            self.loss()
        hook.remove()

    def _compile(self) -> None:
        if not self.compiled:
            return
        if self.name == LLAMA:
            for layer in self.model.model.layers:
                layer.compile()
        else:
            self.context = compiled_layers(self.model, {})  # kept, or it would end
            self.context.__enter__()

    def loss(self) -> Tensor:
        args = self.args
        codes = torch.arange(args.batch * args.length, device=args.device).view(args.batch, -1) * 7919 % args.vocabulary
        mixed = args.dtype != torch.float32
        with torch.autocast(args.device.type, args.dtype) if mixed else nullcontext():
            if self.name == LLAMA:
                return self.model(input_ids=codes, labels=codes, use_cache=False).loss
            return self.model([Segment("x", codes, grid(args))]).loss

    def step(self) -> None:
        self.optimiser.zero_grad(set_to_none=True)
        self.loss().backward()
        self.optimiser.step()

    @property
    def operations(self) -> int:
        """Of forward and backward pass."""
        args = self.args
        body = self.model.model if self.name == LLAMA else self.model.backbone.model
        products = sum(x.weight.numel() for x in body.layers.modules() if isinstance(x, nn.Linear))
        layers = products * self.positions + 2 * args.layers * args.width * self.pairs
        return 6 * args.batch * (layers + args.width * args.vocabulary * args.length)


def sizes(args: argparse.Namespace) -> dict[str, Any]:
    heads = args.width // 64
    return {
        "hidden_size": args.width,
        "num_hidden_layers": args.layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "intermediate_size": UnimodalARDecoderConfig(hidden_size=args.width, num_attention_heads=1).intermediate_size,
    }


def llama(args: argparse.Namespace, attention: str) -> Any:
    tokens: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0, "tie_word_embeddings": False}
    config = LlamaConfig(**sizes(args), vocab_size=args.vocabulary, max_position_embeddings=args.length, **tokens)
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention)
    return model


def native(args: argparse.Namespace, name: str, attention: str) -> Any:
    """Without QK-norm and with all of RoPE on t, which is Llama's architecture."""
    backbone = {
        "model_type": "unimodal_ar_decoder",
        **sizes(args),
        "qk_norm": None,
        "position_axes": [1.0, 0.0, 0.0],
    }
    element = {"kind": "discrete", "vocab_size": args.vocabulary}
    modality = {"element": element, "grid": grid(args), "head": {"kind": "categorical"}, **OBJECTIVES[name]}
    model = UnimodalARForGeneration(UnimodalARConfig(backbone=backbone, modalities={"x": modality}))
    model.set_attn_implementation(attention)
    return model


def grid(args: argparse.Namespace) -> tuple[int, int, int]:
    """Steps, so that Llama's positions are ours; rows where there is a second dimension."""
    return args.length // ROW, 1, ROW


def peak_flops(args: argparse.Namespace) -> tuple[float, str]:
    """Operations per second that the device can do, and who says so."""
    if args.peak_tflops is not None:
        return 1e12 * args.peak_tflops, "as given"
    if args.device.type == "cuda":
        device = torch.cuda.get_device_name(args.device)
        for name, tflops in PEAKS.items():
            if re.search(rf"\b{name}\b", device) and args.dtype == torch.bfloat16:
                return 1e12 * tflops, "data sheet"
    return measured_flops(args), "the best product of matrices measured here"


def measured_flops(args: argparse.Namespace) -> float:
    n = 4096 if args.device.type == "cuda" else 1024
    a, b = (torch.randn(n, n, device=args.device, dtype=args.dtype) for _ in range(2))
    seconds = seconds_in_turns({"product": partial(torch.mm, a, b)}, 12, args.device)["product"]
    return 2 * n**3 / min(seconds)


def measure(args: argparse.Namespace, attention: str, compiled: bool) -> None:
    names = [LLAMA, *OBJECTIVES]
    print(f"\n{attention}{', layers compiled' if compiled else ''}\n")
    if attention == "flex_attention" and args.device.type == "cpu":
        print("not measured: on the CPU FlexAttention has no backward pass")
        return
    # Llama with flex makes masks anew in every step; its causal kernel is the one to compare with.
    rows = {name: Row(args, name, "sdpa" if name == LLAMA else attention, compiled) for name in names}
    runs: dict[str, Callable[[], object]] = {name: row.step for name, row in rows.items()}
    first = {}
    for name, run in runs.items():
        start = time.perf_counter()
        run()
        first[name] = time.perf_counter() - start
    # On the CPU what is compiled runs as it was written while its memory is watched.
    watched = {} if compiled and args.device.type == "cpu" else runs
    memory = {name: f"{peak_memory(run, args.device) / 2**20:.0f}" for name, run in watched.items()}
    seconds = seconds_in_turns(runs, args.repeats, args.device)
    peak, _ = peak_flops(args)
    cells = []
    for name, row in rows.items():
        taken, share = median(seconds[name]), row.operations / rows[LLAMA].operations
        speed = median_ratio(seconds[LLAMA], seconds[name])
        cells.append(
            [
                name,
                f"{row.parameters / 1e6:.1f}",
                f"{1e3 * taken:.1f}",
                f"{args.batch * args.length / taken:.0f}",
                f"{row.operations / 1e12:.4f}",
                f"{100 * row.operations / peak / taken:.1f}",
                memory.get(name, "-"),
                f"{speed:.3f}",
                f"{speed * share:.3f}",
                f"{first[name]:.1f}",
            ]
        )
    header = ["step", "M weights", "ms", "tokens/s", "TFLOP", "MFU %", "peak MiB", "speed", "per operation", "first s"]
    print_table(header, cells)
    print()
    for name in OBJECTIVES:
        share = rows[name].operations / rows[LLAMA].operations
        speed = median_ratio(seconds[LLAMA], seconds[name])
        print_target(f"speed of {name} per operation over Llama's", speed * share, 0.95, at_least=True)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    peak, source = peak_flops(args)
    print(f"\n{machine(args.device, args.dtype)}\n")
    print(
        f"Batch {args.batch} x {args.length} codes of {args.vocabulary}; {args.layers} layers, width {args.width}; "
        f"median of {args.repeats} steps in turns; peak memory of a step above weights and optimiser; peak of the "
        f"device {peak / 1e12:.3g} TFLOP/s ({source})."
    )
    for attention in args.attention:
        for compiled in (False, True) if args.compile else (False,):
            torch._dynamo.reset()
            measure(args, attention, compiled)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--size", choices=list(SIZES), default="100m", help="(default: 100m)")
    for name, text in (("width", "a multiple of 64"), ("length", f"codes, a multiple of {ROW}")):
        parser.add_argument(f"--{name}", type=int, help=f"{text} (default: that of the size)")
    for name in ("layers", "vocabulary", "batch"):
        parser.add_argument(f"--{name}", type=int, help="(default: that of the size)")
    parser.add_argument("--attention", nargs="+", choices=["sdpa", "flex_attention"], default=["sdpa"])
    parser.add_argument("--compile", action="store_true", help="also with compiled layers")
    parser.add_argument("--peak-tflops", type=float, help="of the device (default: by its name, else measured)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps (default: 10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    args = parser.parse_args()
    for name, value in SIZES[args.size].items():
        if getattr(args, name) is None:
            setattr(args, name, value)
    for name, unit in (("width", 64), ("length", ROW)):
        if getattr(args, name) < unit or getattr(args, name) % unit:
            parser.error(f"--{name} is {getattr(args, name)}; it must be a positive multiple of {unit}")
    return args


if __name__ == "__main__":
    main()
