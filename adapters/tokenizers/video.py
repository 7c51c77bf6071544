"""Frozen tokenizers of videos that join frames: those of diffusers, all of which take and give frames in [-1, 1].

Shapes: B clips, C channels, T frames of H x W pixels; t steps of h x w places, D values of a latent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..image.pictures import nearest_sizes
from ..pretrained import Frozen
from .timing import Timing


class VideoTokenizer(Frozen, ABC):
    """Clips in [-1, 1] <-> codes or latents on a grid that is coarser in space and in time, both by a frozen model.

    The model is in evaluation mode, in float32 and without gradients; surrounding autocast does not reach it. Clips
    pass through it one by one, which bounds memory and keeps the batch out of their values. Values come back on the
    device of the input.

    Latents are those that the class's pipelines model: the mode of the posterior, normalised by what the model has of
    `latents_mean`, `latents_std` and `scaling_factor`: (z - mean) / std * scaling_factor.

    Attributes:
        discrete: whether `encode` gives codes.
        channels: C.
        factor: pixels for each place, along each side.
        timing: which T are legal.
        vocab_size: number of codes; only where `discrete`.
        dim: D; only where not `discrete`.
        model: the library's module.

    Args:
        model: a module of the library's class; it is changed in place.
    """

    library: ClassVar[str] = "diffusers"
    discrete: bool = False
    vocab_size: int
    dim: int

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.config = model.config
        self.channels: int = self.config.out_channels  # some encoders read more: they add features of their own
        self.factor, self.timing = self._sizes()
        if not self.discrete:
            names = ("latent_channels", "z_channels", "z_dim")
            self.dim = next(self.config[name] for name in names if name in self.config)
            self._shift, self._scale = self._normalisation()

    @property
    def time(self) -> int:
        """Frames of a step."""
        return self.timing.time

    @property
    def causal(self) -> bool:
        """Whether the first step is one frame: T = 1 + time * k."""
        return self.timing.lead == 1

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Codes, long [B, t, h, w], or latents, float32 [B, t, h, w, D], of clips, float [B, C, T, H, W] in [-1, 1].

        Raises:
            ValueError: no float [B, C, T, H, W], another number of channels, a side that is no multiple of `factor`, a
                T that `timing` does not know.
        """
        self._check_clips(x)
        with torch.autocast(self.device.type, enabled=False):
            values = [self._encode(one) for one in x.to(self.device, torch.float32).split(1)]
        return torch.cat(values).to(x.device)

    @torch.no_grad()
    def decode(self, values: Tensor) -> Tensor:
        """Clips, float32 [B, C, T, H, W], clamped to [-1, 1], of codes or latents as `encode` gives them.

        Raises:
            ValueError: another shape or dtype than those of `encode`, a code that does not exist.
        """
        self._check_values(values)
        dtype = torch.long if self.discrete else torch.float32
        with torch.autocast(self.device.type, enabled=False):
            clips = [self._decode(one) for one in values.to(self.device, dtype).split(1)]
        return torch.cat(clips).clamp(-1, 1).to(values.device)

    @abstractmethod
    def _sizes(self) -> tuple[int, Timing]:
        """`factor` and `timing`."""

    def _encode(self, x: Tensor) -> Tensor:
        """`encode` of one clip, without checks."""
        return self._normalised(self.model.encode(x).latent_dist.mode())

    def _decode(self, values: Tensor) -> Tensor:
        """`decode` of one clip, without checks; may leave [-1, 1]."""
        return self.model.decode(self._latents(values)).sample

    def _normalised(self, latents: Tensor) -> Tensor:
        """[B, D, t, h, w] as the model has them -> [B, t, h, w, D]."""
        shift, scale = self._statistics(latents.shape[2], latents.device)
        return (latents.movedim(1, -1) - shift) * scale

    def _latents(self, values: Tensor) -> Tensor:
        """The inverse of `_normalised`."""
        shift, scale = self._statistics(values.shape[1], values.device)
        return (values / scale + shift).movedim(-1, 1)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        """What is subtracted from latents, and what they are then multiplied by: each [D] or [1]."""
        mean, std = (getattr(self.config, f"latents_{name}", None) for name in ("mean", "std"))
        scale = getattr(self.config, "scaling_factor", None) or 1.0
        return torch.tensor(mean or [0.0]), scale / torch.tensor(std or [1.0])

    def _statistics(self, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """`_normalisation` for so many steps: what [t, h, w, D] is broadcast with."""
        return self._shift.to(device), self._scale.to(device)

    def _check_clips(self, x: Tensor) -> None:
        if x.dim() != 5 or not x.is_floating_point():
            raise ValueError(f"clips are {x.dtype} {list(x.shape)}; they must be float [clips, channels, T, H, W]")
        if x.shape[1] != self.channels:
            raise ValueError(f"clips have {x.shape[1]} channels; this tokenizer's have {self.channels}")
        self.timing.check(x.shape[2], "clips' number of frames")
        size = list(x.shape[3:])
        if any(side == 0 or side % self.factor for side in size):
            raise ValueError(
                f"clips have size {size}; both sides must be multiples of the tokenizer's factor {self.factor}, "
                f"and {nearest_sizes(size, self.factor)}"
            )

    def _check_values(self, values: Tensor) -> None:
        shape = list(values.shape)
        if not self.discrete:
            if len(shape) != 5 or shape[-1] != self.dim or not values.is_floating_point():
                raise ValueError(f"latents are {values.dtype} {shape}; they must be float [clips, t, h, w, {self.dim}]")
        elif len(shape) != 4 or values.is_floating_point() or values.dtype == torch.bool:
            raise ValueError(f"codes are {values.dtype} {shape}; they must be integers [clips, t, h, w]")
        else:
            wrong = (values < 0) | (values >= self.vocab_size)
            if wrong.any():
                raise ValueError(f"a code is {int(values[wrong][0])}; it must be one of 0..{self.vocab_size - 1}")
        self.timing.check(self.timing.frames(shape[1]), f"the number of frames of {shape[1]} steps")


class CogVideoXTokenizer(VideoTokenizer):
    """`AutoencoderKLCogVideoX` (arXiv 2408.06072). Its decoder takes an even number of latents for a clip without a
    first frame of its own, so they come in twos."""

    def _sizes(self) -> tuple[int, Timing]:
        ratio = int(self.config.temporal_compression_ratio)
        return 2 ** (len(self.config.block_out_channels) - 1), Timing(ratio, 1, 2 if ratio > 1 else 1)


class CosmosTokenizer(VideoTokenizer):
    """`AutoencoderKLCosmos` (arXiv 2501.03575). Its mean and deviation differ between steps, and are known for a number
    of them. What the pipelines divide by besides, sigma_data, belongs to their noise schedule."""

    def _sizes(self) -> tuple[int, Timing]:
        return self.config.spatial_compression_ratio, Timing(self.config.temporal_compression_ratio, 1)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        if self.config.latents_mean is None:
            return torch.zeros(1), torch.ones(1)
        mean, std = (
            torch.tensor(found).view(self.dim, -1).T for found in (self.config.latents_mean, self.config.latents_std)
        )
        return mean, 1 / std

    def _statistics(self, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:
        shift, scale = super()._statistics(steps, device)
        if shift.dim() == 1:
            return shift, scale
        if steps > len(shift):
            raise ValueError(
                f"the clip has {self.timing.frames(steps)} frames; this tokenizer's latents_mean is for at most "
                f"{self.timing.frames(len(shift))}"
            )
        return shift[:steps, None, None], scale[:steps, None, None]


class HunyuanVideoTokenizer(VideoTokenizer):
    """`AutoencoderKLHunyuanVideo` (arXiv 2412.03603). Clips of more than 16 frames go through it in parts that overlap,
    as they do in its pipelines."""

    def _sizes(self) -> tuple[int, Timing]:
        return self.config.spatial_compression_ratio, Timing(self.config.temporal_compression_ratio, 1)


class LTXVideoTokenizer(VideoTokenizer):
    """`AutoencoderKLLTXVideo` (arXiv 2501.00103). Decoders that take a time of the last denoising step are given 0, as
    its pipeline does unless told otherwise; those that add noise always draw the same."""

    def _sizes(self) -> tuple[int, Timing]:
        return self.model.spatial_compression_ratio, Timing(self.model.temporal_compression_ratio, 1)

    def _normalisation(self) -> tuple[Tensor, Tensor]:
        return self.model.latents_mean.cpu(), (self.config.scaling_factor / self.model.latents_std).cpu()

    def _decode(self, values: Tensor) -> Tensor:
        time = values.new_zeros(len(values)) if self.config.timestep_conditioning else None
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return self.model.decode(self._latents(values), time).sample


class MochiTokenizer(VideoTokenizer):
    """`AutoencoderKLMochi` (Genmo's Mochi 1)."""

    def _sizes(self) -> tuple[int, Timing]:
        return self.model.spatial_compression_ratio, Timing(self.model.temporal_compression_ratio, 1)


class TemporalDecoderTokenizer(VideoTokenizer):
    """`AutoencoderKLTemporalDecoder` (Stable Video Diffusion, arXiv 2311.15127): frames are encoded each on its own and
    decoded together."""

    def _sizes(self) -> tuple[int, Timing]:
        return 2 ** (len(self.config.block_out_channels) - 1), Timing()

    def _encode(self, x: Tensor) -> Tensor:
        latents = self.model.encode(x[0].movedim(1, 0)).latent_dist.mode()
        return self._normalised(latents.movedim(0, 1)[None])

    def _decode(self, values: Tensor) -> Tensor:
        frames = self._latents(values)[0].movedim(1, 0)
        return self.model.decode(frames, num_frames=len(frames)).sample.movedim(0, 1)[None]


class VidTokTokenizer(VideoTokenizer):
    """`AutoencoderVidTok` (arXiv 2412.13061), of codes (regularizer "fsq") or latents ("kl"), causal ones only: the
    first frame is repeated in front of a clip until it fills a step.

    Raises:
        ValueError: a model that is not causal.
    """

    def __init__(self, model: Any) -> None:
        if not model.config.is_causal:
            raise ValueError("the AutoencoderVidTok has is_causal False; it must be True, so that any clip can be cut")
        self.discrete = model.config.regularizer == "fsq"
        super().__init__(model)
        if self.discrete:
            self.vocab_size = self.config.codebook_size

    def _sizes(self) -> tuple[int, Timing]:
        encoder = self.model.encoder
        return 2 ** len(encoder.spatial_ds), Timing(2 ** len(encoder.tempo_ds), 1)

    def _encode(self, x: Tensor) -> Tensor:
        x = torch.cat([x[:, :, :1].expand(-1, -1, self.time - 1, -1, -1), x], 2)
        if self.discrete:
            return self.model.encode(x)[1].long()
        return self._normalised(self.model.encode(x).latent_dist.mode())

    def _decode(self, values: Tensor) -> Tensor:
        if self.discrete:
            return self.model.decode(values, decode_from_indices=True)
        return self.model.decode(self._latents(values))


class WanTokenizer(VideoTokenizer):
    """`AutoencoderKLWan` (arXiv 2503.20314), which takes four frames at a time, after the first one.

    Raises:
        ValueError: a model that joins more than four.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self.channels //= (self.config.patch_size or 1) ** 2  # patches of pixels are channels to it

    def _sizes(self) -> tuple[int, Timing]:
        config = self.config
        time = 2 ** sum(config.temperal_downsample)
        if time > 4:
            raise ValueError(f"the AutoencoderKLWan joins {time} frames; it takes 4 at a time, and must join 1, 2 or 4")
        return 2 ** (len(config.dim_mult) - 1) * (config.patch_size or 1), Timing(time, 1, 4 // time)


# The library's class -> the tokenizer around it.
VIDEO_TOKENIZERS: dict[str, type[VideoTokenizer]] = {
    "AutoencoderKLCogVideoX": CogVideoXTokenizer,
    "AutoencoderKLCosmos": CosmosTokenizer,
    "AutoencoderKLHunyuanVideo": HunyuanVideoTokenizer,
    "AutoencoderKLLTXVideo": LTXVideoTokenizer,
    "AutoencoderKLMochi": MochiTokenizer,
    "AutoencoderKLTemporalDecoder": TemporalDecoderTokenizer,
    "AutoencoderKLWan": WanTokenizer,
    "AutoencoderVidTok": VidTokTokenizer,
}
