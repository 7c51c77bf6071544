"""Forward and backward pass of the native decoder against transformers' Llama body of equal size: time and peak memory.

    python benchmarks/train_step.py
    python benchmarks/train_step.py --device cuda --dtype bfloat16 --width 2048 --layers 16 --batch 8 --length 2048

Both take the same input vectors, attend causally with the same kernel (sdpa) and keep no cache. "LLaMA-like" is the
native decoder without QK-norm, which is Llama's architecture; its default has QK-norm, which Llama's has not.
"""

from __future__ import annotations

import argparse
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
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
from torch import Tensor
from transformers import LlamaConfig, LlamaModel

from unimodal_ar import UnimodalARDecoder, UnimodalARDecoderConfig

LLAMA, LIKE, DEFAULT = "transformers Llama", "native, LLaMA-like", "native, default"


def llama(**sizes: Any) -> torch.nn.Module:
    # Its token table is not used: the inputs are vectors. Without it the two bodies are equal in size.
    model = LlamaModel(
        LlamaConfig(**sizes, vocab_size=1, use_cache=False, pad_token_id=0, bos_token_id=0, eos_token_id=0)
    )
    model.set_input_embeddings(torch.nn.Identity())
    return model


def native(qk_norm: str | None, **sizes: Any) -> torch.nn.Module:
    return UnimodalARDecoder(UnimodalARDecoderConfig(**sizes, qk_norm=qk_norm, position_axes=[1.0, 0.0, 0.0]))


BODIES: dict[str, Callable[..., torch.nn.Module]] = {
    LLAMA: llama,
    LIKE: partial(native, None),
    DEFAULT: partial(native, "rmsnorm"),
}


def build(name: str, args: argparse.Namespace) -> torch.nn.Module:
    torch.manual_seed(0)
    model = BODIES[name](
        hidden_size=args.width,
        num_hidden_layers=args.layers,
        num_attention_heads=args.width // 64,
        num_key_value_heads=args.width // 64,
        intermediate_size=UnimodalARDecoderConfig(hidden_size=args.width, num_attention_heads=1).intermediate_size,
    )
    return model.to(device=args.device, dtype=args.dtype).train()


def inputs(args: argparse.Namespace) -> Tensor:
    return torch.randn(args.batch, args.length, args.width, device=args.device, dtype=args.dtype)


def step(model: torch.nn.Module, x: Tensor) -> None:
    model.zero_grad(set_to_none=True)
    model(inputs_embeds=x).last_hidden_state.float().square().mean().backward()


def peak_memory(name: str, args: argparse.Namespace) -> int | None:
    """Bytes that the weights, gradients and activations of a body take at their highest, in a process of its own; None
    where the system does not tell."""
    if args.device.type == "cpu" and not Path("/proc/self/status").exists():
        return None
    torch.set_num_threads(args.threads)
    x = inputs(args)
    (x[0] @ x[0].T).sum()  # libraries and thread pools set themselves up
    before = _peak(args.device)
    model = build(name, args)
    for _ in range(3):
        step(model, x)
    return _peak(args.device) - before


def _peak(device: torch.device) -> int:
    """Bytes, the highest so far. Not `ru_maxrss`: a child starts out with its parent's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
    assert found is not None
    return 1024 * int(found[1])


def measure_memory(args: argparse.Namespace) -> dict[str, int | None]:
    measured = {}
    for name in BODIES:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
            measured[name] = process.submit(peak_memory, name, args).result()
    return measured


def main() -> None:
    args = parse_args()
    memory = measure_memory(args)
    torch.set_num_threads(args.threads)
    models, x = {name: build(name, args) for name in BODIES}, inputs(args)
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    if sizes[LLAMA] != sizes[LIKE]:
        raise RuntimeError(f"the bodies differ in size: {sizes}")
    runs = {name: partial(step, model, x) for name, model in models.items()}
    for run in runs.values():
        run()
    seconds = seconds_in_turns(runs, args.repeats, args.device)

    print(f"\n{machine(args.device, args.dtype)}\n")
    print(
        f"Forward and backward pass of batch {args.batch} x {args.length} positions; {args.layers} layers, width "
        f"{args.width}, {sizes[LLAMA] / 1e6:.1f}M parameters; median of {args.repeats} steps in turns; peak memory of "
        "weights, gradients and activations, each body in a process of its own.\n"
    )
    rows = []
    for name, taken in seconds.items():
        positions = args.batch * args.length / median(taken)
        speed = f"{median_ratio(seconds[LLAMA], taken):.3f}x"
        rows.append([name, f"{1e3 * median(taken):.1f}", f"{positions:.0f}", speed, *_memory_cells(name, memory)])
    print_table(["body", "ms/step", "positions/s", "speed", "peak MiB", "memory"], rows)
    print()
    for name in (LIKE, DEFAULT):
        print_target(f"speed of {name} over Llama's", median_ratio(seconds[LLAMA], seconds[name]), 0.95, at_least=True)
        ours, theirs = memory[name], memory[LLAMA]
        if ours is not None and theirs is not None:
            print_target(f"peak memory of {name} over Llama's", ours / theirs, 1.1, at_least=False)


def _memory_cells(name: str, memory: dict[str, Any]) -> list[str]:
    if memory[name] is None:
        return ["not measured", ""]
    return [f"{memory[name] / 2**20:.0f}", f"{memory[name] / memory[LLAMA]:.3f}x"]


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--width", type=int, default=512, help="a multiple of 64 (default: 512)")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=512, help="positions (default: 512)")
    parser.add_argument("--repeats", type=int, default=10, help="timed steps of each body (default: 10)")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch on the CPU")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--dtype", type=lambda name: getattr(torch, name), default=torch.float32)
    args = parser.parse_args()
    if args.width < 64 or args.width % 64:
        parser.error(f"--width is {args.width}; it must be a positive multiple of 64")
    return args


if __name__ == "__main__":
    main()
