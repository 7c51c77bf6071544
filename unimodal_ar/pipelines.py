"""Samples from a folder that training or a converter wrote: `generate("model", label=3, n=16).save("grid.png")`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .adapters import Adapter, ImageAdapter, LabelAdapter, TimeSeriesAdapter, load_adapters
from .adapters.image import UNKNOWN
from .adapters.pictures import open_picture, to_picture, to_pixels
from .fitting import check_adapter
from .modeling import UnimodalARForGeneration
from .noise import SampleNoise
from .saving import load_model
from .schema import positive_int
from .segment import Segment, collate


@dataclass(frozen=True, eq=False)
class Samples:
    """What was drawn.

    Attributes:
        raw: n decoded samples, as the adapter gives them (PIL images).
        segment: their elements, a batch of n on the CPU.
        adapter: of the modality that was drawn.
    """

    raw: Any
    segment: Segment
    adapter: Adapter

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the samples into one file (a PNG of images; several are tiled in a grid, row by row)."""
        self.adapter.save(self.raw, path)


class Generator:
    """A model and the adapters of its modalities: raw context in, raw samples out.

    Args:
        model: as it was trained.
        adapters: in the order of the segments in a sequence, which is that of processor_config.json. Modalities that
            the model does not generate come before those that it does, whatever their place here.

    Raises:
        ValueError: an adapter's modality or element is not the model's, two adapters are of one modality, one of a
            modality that the model is conditioned on is missing, or the model forecasts time series.
    """

    def __init__(self, model: UnimodalARForGeneration, adapters: Mapping[str, Adapter] | Iterable[Adapter]) -> None:
        found = list(adapters.values()) if isinstance(adapters, Mapping) else list(adapters)
        names = [adapter.modality for adapter in found]
        for name, adapter in zip(names, found, strict=True):
            if names.count(name) > 1:
                raise ValueError(f"{names.count(name)} adapters are of modality {name!r}; each modality has one")
            if name not in model.options:
                raise ValueError(f"the adapter's modality is {name!r}; the model knows {sorted(model.options)}")
            if isinstance(adapter, TimeSeriesAdapter):
                raise ValueError(
                    f"modality {name!r} is of time series, which need a past and a horizon; forecast them with "
                    "unimodal_ar.Forecaster"
                )
            check_adapter(adapter, model.options[name])
        lacking = [name for name in model.options if name not in model.heads and name not in names]
        if lacking:
            raise ValueError(
                f"there is no adapter for {lacking}, which this model is conditioned on; save one beside the model "
                "with its save_pretrained"
            )
        # What is stored is in the order in which it was saved, which need not be that of the sequence.
        found.sort(key=lambda adapter: adapter.modality in model.heads)
        self.model, self.adapters = model, {adapter.modality: adapter for adapter in found}

    @classmethod
    def from_pretrained(
        cls,
        path: str | os.PathLike[str],
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Generator:
        """Loads model and adapters from a folder.

        Args:
            path: the folder.
            device: None: a GPU if there is one.
            dtype: None: float32 on the CPU (bfloat16 is slow on many), the checkpoint's own on a GPU.

        Raises:
            ValueError: no adapters in the folder, or weights that do not fit its config.json.
        """
        adapters = load_adapters(path)  # first: it is quick, and says what is wrong with a folder that is no model's
        return cls(load_model(path, device, dtype), adapters)

    def generate(
        self,
        n: int = 16,
        target: str | None = None,
        *,
        guidance_scale: float | None = None,
        guidance_schedule: dict[str, Any] | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        steps: int | Sequence[int] | None = None,
        head_steps: int | Sequence[int] | None = None,
        sampler: dict[str, Any] | None = None,
        seed: int = 0,
        given: Any = None,
        mask: Any = None,
        batch_size: int = 64,
        **context: Any,
    ) -> Samples:
        """Draws n samples.

        Args:
            n: how many.
            target: the modality to draw; may be left out where the model generates only one.
            guidance_scale, guidance_schedule, temperature, top_k, top_p, steps, head_steps, sampler: as in the model's
                `generate`; None: as its generation_config says (the sampling that the recipe's evaluation showed).
            seed: sample i depends on (seed, i) and its own context alone, not on n or batch_size (up to the rounding
                of matrix products, which may differ between batch sizes).
            given: an image to complete (inpainting, outpainting), anything its adapter's `encode` takes; or a list of
                them, see `context`. What is kept passes through the adapter, too, and so is as exact as its elements.
                It is encoded with mid-grey where `mask` draws anew, so nothing that is kept depends on what was there;
                but codes or latents of a tokenizer, which sees around each, depend on the grey near the mask's edge.
            mask: goes with `given`: which pixels to draw anew, a bool array or tensor [H, W] (True: draw), or an image
                or its path (white: draw, black: keep, the convention of diffusers; without transparency). It is as
                large as the model's images, or as the given image, with which it is then resized and cropped. An
                element is drawn whole where any of its pixels is to be drawn. Under block diffusion anything can be
                kept, and under a random order; under next-block with another order, whole leading blocks.
            batch_size: samples at a time.
            context: by modality, one raw value for all samples, or a list of m, of which each is used for n / m
                samples, side by side: `label=[0, 1, 2], n=6` draws 0, 0, 1, 1, 2, 2. Every modality that came before
                the target in training is needed; a label of a single class is filled in.

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        n, batch_size = positive_int("n", n), positive_int("batch_size", batch_size)
        target = self._target(target)
        adapter, parts = self.adapters[target], []
        with self._tokenizers_moved():
            segments = [_spread(segment, n) for segment in self._context(target, context)]
            known = None if given is None and mask is None else _spread(self._given(target, given, mask), n)
            for start in range(0, n, batch_size):
                samples = torch.arange(start, min(start + batch_size, n))
                drawn = self.model.generate(
                    [segment.select(samples) for segment in segments],
                    target,
                    grid=getattr(adapter, "grid", None),
                    given=None if known is None else known.select(samples),
                    num_samples=1 if segments or known is not None else len(samples),
                    steps=steps,
                    head_steps=head_steps,
                    sampler=sampler,
                    temperature=temperature,
                    top_k=top_k,
                    top_p=top_p,
                    guidance_scale=guidance_scale,
                    guidance_schedule=guidance_schedule,
                    generator=SampleNoise(seed, samples.to(self.model.device)),
                )
                parts.append([drawn.to("cpu")])
            (segment,) = collate(parts)
            return Samples(adapter.decode(segment), segment, adapter)

    __call__ = generate

    def contexts(self, target: str | None = None) -> list[str]:
        """The modalities that come before `target` in a sequence."""
        names = list(self.adapters)
        return names[: names.index(self._target(target))]

    def _target(self, target: str | None) -> str:
        legal = [name for name in self.adapters if name in self.model.heads]
        if not legal:  # a converted model, say, whose tokenizer is another checkpoint
            raise ValueError(
                f"there is no adapter for {sorted(self.model.heads)}, what this model generates; save one, an "
                "ImageAdapter say, beside the model with its save_pretrained"
            )
        if target is None and len(legal) == 1:
            return legal[0]
        if target is not None and target in legal:
            return target
        raise ValueError(f"target is {target!r}; it must be one of {legal}, what this model generates")

    def _context(self, target: str, given: dict[str, Any]) -> list[Segment]:
        """The context's segments, in order, each with a batch of its own."""
        needed = self.contexts(target)
        for name in given:
            if name not in needed:
                near = get_close_matches(name, [*needed, *_PARAMETERS], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name!r} is no context of {target!r}, which has the contexts {needed}{hint}")
        missing = [name for name in needed if name not in given and not _is_single_label(self.adapters[name])]
        if missing:
            raise ValueError(f"context {missing} of {target!r} is missing; this model was trained with {needed}")
        encoded = [self.adapters[name].encode(given.get(name)) for name in needed]
        return [segment.replace(target=segment.modality in self.model.heads) for segment in encoded]

    def _given(self, target: str, given: Any, mask: Any) -> Segment:
        """The segment to complete: `observed` marks the elements that are kept."""
        if given is None or mask is None:
            one, other = ("given", "mask") if mask is None else ("mask", "given")
            raise ValueError(f"{one} comes without {other}; completing takes both, an image and what to draw of it")
        adapter = self.adapters[target]
        if not isinstance(adapter, ImageAdapter):
            raise ValueError(f"given and mask are for images; {target!r} is of the kind {adapter.kind!r}")
        drawn = _read_mask(mask, given, adapter.size)
        if not bool(drawn.any()):
            raise ValueError("mask keeps every pixel; some must be marked (True, white) to be drawn")
        # A tokenizer's codes tell of pixels around their cell, of which those that are drawn anew must not be told.
        segment = adapter.encode_pixels(adapter.pixels(given).masked_fill(drawn[..., None], UNKNOWN))
        keep = ~_drawn_elements(drawn, segment.grid)
        return segment.replace(observed=keep.expand(segment.batch_size, -1))

    @contextmanager
    def _tokenizers_moved(self) -> Iterator[None]:
        """Has tokenizers on the model's device for as long as it lasts; afterwards they are where their owner, a data
        set say, had them."""
        adapters = self.adapters.values()
        found = [adapter.tokenizer for adapter in adapters if isinstance(adapter, ImageAdapter) and adapter.tokenizer]
        homes = [tokenizer.device for tokenizer in found]
        try:
            for tokenizer in found:
                tokenizer.to(self.model.device)
            yield
        finally:
            for tokenizer, home in zip(found, homes, strict=True):
                tokenizer.to(home)


_PARAMETERS = set(inspect.signature(Generator.generate).parameters) - {"self", "context"}


def load(path: str | os.PathLike[str], device: torch.device | str | None = None) -> Generator:
    """The model and the adapters in a folder; see `Generator.from_pretrained`, and `Forecaster` for time series."""
    return Generator.from_pretrained(path, device)


def generate(
    path: str | os.PathLike[str] | Generator | tuple[UnimodalARForGeneration, Any],
    n: int = 16,
    *,
    device: torch.device | str | None = None,
    **arguments: Any,
) -> Samples:
    """`load(path, device).generate(n, **arguments)`.

    Args:
        path: a folder; or what is loaded already: a `Generator`, or a model and its adapters.
        device: of a folder's model; what is loaded stays where it is.

    Raises:
        ValueError: as `Generator.generate`.
    """
    if isinstance(path, (str, os.PathLike)):
        return load(path, device).generate(n, **arguments)
    if device is not None:
        raise ValueError(f"device is {device!r}, which is for a folder; a model that is loaded stays where it is")
    generator = path if isinstance(path, Generator) else Generator(*path)
    return generator.generate(n, **arguments)


def _read_mask(mask: Any, given: Any, size: tuple[int, int]) -> Tensor:
    """[H, W] bool in the size of the model's images; `given` as far as `Generator.generate` says."""
    if isinstance(mask, (np.ndarray, Tensor)):
        if str(mask.dtype).removeprefix("torch.") != "bool" or mask.ndim != 2:
            raise ValueError(
                f"mask is {mask.dtype} of shape {tuple(mask.shape)}; an array must be bool [H, W], True where pixels "
                "are drawn anew"
            )
        mask = torch.as_tensor(mask).to(torch.uint8) * 255
    name = f"mask {os.fspath(mask)}" if isinstance(mask, (str, os.PathLike)) else "mask"
    picture = open_picture(mask, name)
    shape = (picture.height, picture.width)
    if shape != size and any(other != shape for other in _sizes(given)):
        raise ValueError(
            f"{name} has {shape[0]} x {shape[1]} pixels (rows x columns); it must be as large as the given image, or "
            f"as this model's images, {size[0]} x {size[1]}"
        )
    colours = torch.from_numpy(to_pixels(picture, size, 3, name))  # which refuses an alpha channel that is used
    return torch.from_numpy(np.array(to_picture(colours).convert("L"))) >= 128


def _sizes(images: Any) -> list[tuple[int, int]]:
    """(H, W) of each of what `ImageAdapter.pixels` takes."""
    if isinstance(images, (np.ndarray, Tensor)) and images.ndim == 4:
        return [(images.shape[1], images.shape[2])]
    pictures = [open_picture(raw, "given") for raw in (images if isinstance(images, (list, tuple)) else [images])]
    return [(picture.height, picture.width) for picture in pictures]


def _drawn_elements(pixels: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """[1, N] bool: elements of which any pixel [H, W] is to be drawn."""
    _, rows, columns = grid
    height, width = pixels.shape
    tiles = pixels.view(rows, height // rows, columns, width // columns)
    return tiles.any(3).any(1).flatten()[None]


def _is_single_label(adapter: Adapter) -> bool:
    return isinstance(adapter, LabelAdapter) and len(adapter.names) == 1


def _spread(segment: Segment, n: int) -> Segment:
    """A batch of n: each example n / m times, side by side."""
    if n % segment.batch_size:
        raise ValueError(
            f"{segment.modality} has {segment.batch_size} values and n is {n}; n must be a multiple of their number"
        )
    return segment.repeat_interleave(n // segment.batch_size)
