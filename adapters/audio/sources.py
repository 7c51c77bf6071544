"""Readers: folders, manifests, parquet files, Hugging Face data sets and lists of audio files -> an `AudioSource`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..clip_sources import ClipSource, read_clips
from ..sources import Medium
from .clips import AudioClip, open_clip, open_span

SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aif", ".aiff", ".au")
AUDIO_NAMES = ("audio", "wav", "speech")
_AUDIOS = Medium("audio", "audio files", SUFFIXES, AUDIO_NAMES, feature="Audio", extra="audio")


@dataclass(frozen=True, eq=False)
class AudioSource(ClipSource):
    """A set of clips of audio that are read one by one; `items` are anything that `open_clip` takes."""

    def load(self, index: int) -> AudioClip:
        """Clip `index`; its `name` is its name here.

        Raises:
            ValueError: it cannot be read, or does not reach as far as its span; the message names it.
        """
        if self.spans is None:
            return open_clip(self.items[index], self.names[index])
        return open_span(self.items[index], *self.spans[index], self.names[index])


def read_audios(
    source: Any, columns: Sequence[str] = (), audio: str | None = None, pattern: str | None = None
) -> AudioSource:
    r"""Finds audio files and what is known of them; the clips themselves are read by `load`.

    Sources:

    - a folder of audio files, or of one folder per class, which is the column "class". Names that begin with a dot
      are left out, and so are files whose name does not end like an audio file's (`passed_over`);
    - a .jsonl manifest: an object a line, with `path` (relative to the manifest), optionally `start` and `end` (in
      seconds: the part of the file that is meant), and any other keys as columns;
    - a .parquet file whose audio column holds structs {bytes, path} (as Hugging Face writes them), files' bytes or
      paths;
    - a `datasets.Dataset`, or a folder that its `save_to_disk` wrote;
    - a list of anything that `open_clip` takes.

    Args:
        columns: which columns to read.
        audio: a table's column of audio. None: the one named in AUDIO_NAMES.
        pattern: a regular expression that matches the whole name of a file (without folder and suffix); its named
            groups are columns. r"(?P<digit>\d)_(?P<speaker>\w+)_(?P<take>\d+)" reads 7_jackson_32.wav. Files that it
            does not match are left out (`passed_over`).

    Returns:
        At least one clip.

    Raises:
        ValueError: anything that cannot be read so; the message names the file or column.
        ImportError: a table, and no pyarrow or datasets.
    """
    return read_clips(source, _AUDIOS, AudioSource, columns, audio, pattern)
