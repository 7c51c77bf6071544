"""What an audio adapter is made of: the tokenizer or vocoder that its elements ask for, and the codec around them."""

from __future__ import annotations

import os

from torch import nn

from .codecs import AudioTokenizer, CodecElements, codec_codec
from .mels import MelCodec, MelElements
from .vocoders import Vocoder, VocoderRenderer, check_vocoder, load_vocoder
from .wave_codec import WaveCodec
from .waveforms import WAVE_CODECS, Elements


def find_vocoder(
    elements: Elements, given: Vocoder | nn.Module | None, folder: str | os.PathLike[str] | None
) -> Vocoder | None:
    """The vocoder that the elements ask for, if they do."""
    if not isinstance(elements, MelElements):
        if given is not None:
            raise ValueError(f"elements.kind is {elements.kind!r} and a vocoder is given; it must be 'mel'")
        return None
    if given is not None and elements.vocoder is not None:
        raise ValueError(f"elements.vocoder is {elements.vocoder!r} and a vocoder is given, too; give one of them")
    assert elements.n_mels is not None
    source = elements.vocoder if given is None else given
    return None if source is None else load_vocoder(source, folder, elements.n_mels)


def make_codec(
    elements: Elements, sample_rate: int, channels: int, tokenizer: AudioTokenizer | None, vocoder: Vocoder | None
) -> WaveCodec:
    """The codec of elements that are filled.

    Raises:
        ValueError: the elements, the sample rate and the channels do not fit together, or not to what is given.
    """
    if isinstance(elements, CodecElements):
        assert tokenizer is not None
        return codec_codec(elements, sample_rate, channels, tokenizer)
    if vocoder is None:
        return WAVE_CODECS[elements.kind](sample_rate, channels, elements)
    assert isinstance(elements, MelElements)
    codec = MelCodec(sample_rate, channels, elements, lambda: VocoderRenderer(vocoder))
    check_vocoder(vocoder, codec)
    return codec
