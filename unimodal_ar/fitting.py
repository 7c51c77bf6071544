"""Whether an adapter and a model speak of the same elements."""

from __future__ import annotations

from .adapters import Adapter
from .modality import ModalityOptions


def check_adapter(adapter: Adapter, options: ModalityOptions) -> None:
    """Raises ValueError where the elements that `adapter` makes are not those that the model's modality has.

    Args:
        options: of the modality `adapter.modality`, as in the model's configuration.
    """
    for key, made in adapter.element.items():
        wanted = getattr(options.element, key, None)
        if wanted != made:
            raise ValueError(
                f"modalities.{adapter.modality}.element.{key} is {wanted!r}; its adapter makes elements whose {key} "
                f"is {made!r}"
            )
