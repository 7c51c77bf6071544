"""Samples from a folder that training or a converter wrote: `generate("model", label=3, n=16).save("grid.png")`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ranks
from .adapters import Adapter, TimeSeriesAdapter, load_adapters
from .fitting import check_adapter
from .forecasting import Forecaster
from .generation.mixin import leading_blocks
from .hub import Shareable, model_folder
from .layout import ORDERS
from .modeling import UnimodalARForGeneration
from .noise import SampleNoise
from .places import HUB_ARGUMENTS
from .saving import load_model
from .schema import positive_int
from .segment import Grid, Segment, collate

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True, eq=False)
class Samples:
    """What was drawn.

    Attributes:
        raw: n decoded samples, as the adapter gives them (PIL images, clips).
        segment: their elements, a batch of n on the CPU.
        adapter: of the modality that was drawn.
    """

    raw: Any
    segment: Segment
    adapter: Adapter

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the samples into one file: a PNG of images, of which several are tiled in a grid, row by row; an .mp4
        or .gif of videos, tiled likewise; a .wav or .flac of audio, clip after clip."""
        self.adapter.save(self.raw, path)

    def picture(self) -> Image.Image | None:
        """The samples to be looked at, where `save` writes something else (spectrograms, film strips)."""
        return self.adapter.picture(self.raw)


class Generator(Shareable):
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
                    "unimodal_ar.Forecaster, or `unimodal-ar forecast`"
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
        **hub: Any,
    ) -> Generator:
        """Loads model and adapters from a folder.

        Args:
            path: the folder, or an id on the Hub.
            device: None: a GPU if there is one.
            dtype: None: float32 on the CPU (bfloat16 is slow on many), the checkpoint's own on a GPU.
            hub: of an id, see `places.model_folder`.

        Raises:
            ValueError: no adapters in the folder, or weights that do not fit its config.json.
        """
        folder = model_folder(path, **hub)
        adapters = load_adapters(folder)  # first: it is quick, and says what is wrong with a folder that is no model's
        return cls(load_model(folder, device, dtype), adapters)._of(folder)

    def _carried(self) -> list[Adapter]:
        return list(self.adapters.values())

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
        seconds: float | None = None,
        window: float | None = None,
        overlap: float | None = None,
        sink: float | None = None,
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
            given: what to complete, or a list of them, see `context`: an image (inpainting, outpainting), or a prompt
                that the sample goes on from, as the adapter's `complete` says. What is kept passes through the adapter,
                too, and so is as exact as its elements. Under next-block a prompt is kept as far as it fills blocks.
            mask: what of `given` to draw anew; of images, with which it must come, as `adapters.image.masks` says.
                Under block diffusion anything can be kept, and under a random order; under next-block with another
                order, whole leading blocks.
            seconds: of what has a length, how long the samples are; None: as long as the adapter's.
            window: in seconds; longer samples are drawn window by window, each given the end of the one before. None:
                as long as the adapter's, which is what the model was trained on.
            overlap: how many seconds are carried over, rounded up to whole steps; None: half a window.
            sink: how many first seconds of the whole, rounded up likewise, every window begins with besides (the first
                frame of a video, which is what the others are like); None: none.
            batch_size: samples at a time.
            context: by modality, one raw value for all samples, or a list of m, of which each is used for n / m
                samples, side by side: `label=[0, 1, 2], n=6` draws 0, 0, 1, 1, 2, 2. Every modality that came before
                the target in training is needed; a label of a single class is filled in.

        Raises:
            ValueError: an argument does not fit; the message names it.
        """
        arguments = locals()
        batch_size = positive_int("batch_size", batch_size)
        with self._modules_moved():
            request = self._request(arguments)
            numbers = torch.arange(request.n).split(batch_size)
            draw = self.model.generate
            parts = ranks.share(lambda samples: [draw(**request.arguments(samples)).to("cpu")], numbers)
            (segment,) = collate(parts)
            return Samples(request.adapter.decode(segment), segment, request.adapter)

    def stream(self, n: int = 1, target: str | None = None, **options: Any) -> Iterator[Any]:
        """Draws n samples, together, and yields after every block what the adapter's `stream` makes of them: images as
        far as they are drawn, or of clips what is new.

        Args:
            n, target, options: as of `generate`, but `batch_size`; the same seed draws the same samples.

        Raises:
            ValueError: as `generate`, at once.
        """
        if "batch_size" in options:
            raise ValueError(f"batch_size is {options['batch_size']!r}; stream draws its samples together")
        bound = inspect.signature(self.generate).bind(n, target, **options)
        bound.apply_defaults()
        with self._modules_moved():
            request = self._request(bound.arguments)
            drawn = self.model.stream(**request.arguments(torch.arange(request.n)))
        return self._streamed(request.adapter, drawn)

    def _streamed(self, adapter: Adapter, drawn: Iterator[Segment]) -> Iterator[Any]:
        with self._modules_moved():
            yield from adapter.stream(segment.to("cpu") for segment in drawn)

    __call__ = generate

    def adapter(self, target: str | None = None) -> Adapter:
        """The adapter of the modality `target`; None: of the only one that the model generates."""
        return self.adapters[self._target(target)]

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

    def _request(self, arguments: dict[str, Any]) -> _Request:
        """What `generate` was asked for, checked and encoded."""
        n, target = positive_int("n", arguments["n"]), self._target(arguments["target"])
        adapter, seconds = self.adapters[target], arguments["seconds"]
        given, mask = arguments["given"], arguments["mask"]
        segments = [_spread(segment, n) for segment in self._context(target, arguments["context"])]
        known = None
        if given is not None or mask is not None:
            known = adapter.complete(given, mask, seconds)
            known = _spread(known if mask is not None else self._begun(known), n)
        grid = adapter.grid_for(seconds) if known is None else known.grid
        sampling = {name: arguments[name] for name in _SAMPLING}
        sampling |= _windows(adapter, grid, *(arguments[name] for name in ("window", "overlap", "sink")))
        return _Request(n, target, adapter, grid, segments, known, sampling, arguments["seed"], self.model.device)

    def _begun(self, prompt: Segment) -> Segment:
        """What of a prompt makes up whole leading blocks, where no more can be given: of codes in MusicGen's delay the
        finer ones of the last steps are drawn anew, as the coarser ones of the steps after them are."""
        name = prompt.modality
        order = self.model.options[name].layout.order
        if self.model.objectives[name].knows_anything or ORDERS[order].random:
            return prompt
        layout = self.model.layout(name, prompt.grid).to("cpu")
        observed = layout.gather(prompt.element_observed)
        known = leading_blocks(observed, layout)
        if not known:
            raise ValueError(
                f"given is too short: this model draws {layout.block_sizes[0]} elements of {name!r} first, together, "
                f"and given knows {int(observed.sum(1).min())}"
            )
        return prompt.replace(observed=prompt.element_observed & layout.scatter((layout.block < known)[None]))

    def _context(self, target: str, given: dict[str, Any]) -> list[Segment]:
        """The context's segments, in order, each with a batch of its own."""
        needed = self.contexts(target)
        for name in given:
            if name not in needed:
                near = get_close_matches(name, [*needed, *_PARAMETERS], n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                raise ValueError(f"{name!r} is no context of {target!r}, which has the contexts {needed}{hint}")
        missing = [name for name in needed if name not in given and not self.adapters[name].optional]
        if missing:
            raise ValueError(f"context {missing} of {target!r} is missing; this model was trained with {needed}")
        encoded = [self.adapters[name].encode(given.get(name)) for name in needed]
        return [segment.replace(target=segment.modality in self.model.heads) for segment in encoded]

    @contextmanager
    def _modules_moved(self) -> Iterator[None]:
        """Has what adapters carry on the model's device for as long as it lasts; afterwards it is where its owner, a
        data set say, had it."""
        found = [module for adapter in self.adapters.values() for module in adapter.modules]
        homes = [module.device for module in found]
        try:
            for module in found:
                module.to(self.model.device)
            yield
        finally:
            for module, home in zip(found, homes, strict=True):
                module.to(home)


@dataclass(frozen=True, eq=False)
class _Request:
    """What is to be drawn: contexts and what is known have a batch of n."""

    n: int
    target: str
    adapter: Adapter
    grid: Grid | None
    context: list[Segment]
    known: Segment | None
    sampling: dict[str, Any]
    seed: int
    device: torch.device

    def arguments(self, samples: Tensor) -> dict[str, Any]:
        """Of the model's `generate`, for these samples."""
        known = None if self.known is None else self.known.select(samples)
        return {
            "context": [segment.select(samples) for segment in self.context],
            "target": self.target,
            "grid": self.grid,
            "given": known,
            "num_samples": 1 if self.context or known is not None else len(samples),
            "generator": SampleNoise(self.seed, samples.to(self.device)),
            **self.sampling,
        }


_SAMPLING = ("guidance_scale", "guidance_schedule", "temperature", "top_k", "top_p", "steps", "head_steps", "sampler")
_PARAMETERS = set(inspect.signature(Generator.generate).parameters) - {"self", "context"}


def load(path: str | os.PathLike[str], device: torch.device | str | None = None, **loading: Any) -> Any:
    """The model and its adapters: a `Forecaster` where one of them is of time series, else a `Generator`.

    Args:
        path: a folder, or an id on the Hub.
        device: None: a GPU if there is one.
        loading: other arguments of their `from_pretrained`, such as `revision`.
    """
    folder = model_folder(path, **{key: loading.pop(key) for key in HUB_ARGUMENTS if key in loading})
    series = [name for name, adapter in load_adapters(folder).items() if isinstance(adapter, TimeSeriesAdapter)]
    if not series:
        return Generator.from_pretrained(folder, device, **loading)
    only = {"modality": series[0]} if len(series) == 1 else {}
    return Forecaster.from_pretrained(folder, device=device, **only | loading)


def generate(
    path: str | os.PathLike[str] | Generator | tuple[UnimodalARForGeneration, Any],
    n: int = 16,
    *,
    device: torch.device | str | None = None,
    revision: str | None = None,
    **arguments: Any,
) -> Samples:
    """`Generator.from_pretrained(path, device).generate(n, **arguments)`.

    Args:
        path: a folder or an id on the Hub; or what is loaded already: a `Generator`, or a model and its adapters.
        device: of a folder's model; what is loaded stays where it is.
        revision: of an id.

    Raises:
        ValueError: as `Generator.generate`.
    """
    if isinstance(path, (str, os.PathLike)):
        return Generator.from_pretrained(path, device, revision=revision).generate(n, **arguments)
    for name, value in (("device", device), ("revision", revision)):
        if value is not None:
            raise ValueError(f"{name} is {value!r}, which is for a folder; a model that is loaded stays where it is")
    generator = path if isinstance(path, Generator) else Generator(*path)
    return generator.generate(n, **arguments)


def _windows(
    adapter: Adapter, grid: Grid | None, window: float | None, overlap: float | None, sink: float | None
) -> dict[str, int | None]:
    """`window`, `overlap` and `sink` in steps, of a target of `grid`; {} where a single window holds it. A window of
    None is what the adapter's raw data take."""
    try:
        whole = adapter.grid_for(window)
    except ValueError as error:
        raise ValueError(f"window cannot be {window}: {error}") from None
    carried = None if overlap is None else _steps(adapter, "overlap", overlap, first=False)
    first = _steps(adapter, "sink", sink or 0, first=True)
    if not grid or not whole or grid[0] <= whole[0]:
        return {}
    adapter.check_windows(first)
    if whole[0] < 2:
        raise ValueError(f"window is {window}, a single step; it must be at least two, of which one is carried over")
    return {"window": whole[0], "overlap": carried, "sink": first}


def _steps(adapter: Adapter, name: str, seconds: float, first: bool) -> int:
    try:
        return adapter.steps_for(seconds, first) if seconds else 0
    except ValueError as error:
        raise ValueError(f"{name} cannot be {seconds}: {error}") from None


def _spread(segment: Segment, n: int) -> Segment:
    """A batch of n: each example n / m times, side by side."""
    if n % segment.batch_size:
        raise ValueError(
            f"{segment.modality} has {segment.batch_size} values and n is {n}; n must be a multiple of their number"
        )
    return segment.repeat_interleave(n // segment.batch_size)
