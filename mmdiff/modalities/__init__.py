"""Registry of modality kinds. A new kind of modality is one subclass of `Modality` and one line here."""

from __future__ import annotations

from mmdiff.config import ModalityConfig
from mmdiff.modalities.base import Modality
from mmdiff.modalities.embedding import EmbeddingModality
from mmdiff.modalities.image import ImageModality
from mmdiff.modalities.label import LabelModality
from mmdiff.modalities.mask import MaskModality

KINDS: dict[str, type[Modality]] = {
    cls.kind: cls for cls in (ImageModality, MaskModality, LabelModality, EmbeddingModality)
}


def build_modality(config: ModalityConfig, image_size: int, patch_size: int) -> Modality:
    """The modality that a configuration names. Raises ValueError for an unknown kind or option."""
    if config.kind not in KINDS:
        raise ValueError(
            f"modality {config.name!r} has unknown kind {config.kind!r}; known: {', '.join(KINDS)}."
        )
    try:
        return KINDS[config.kind](config.name, image_size, patch_size, **config.options)
    except TypeError as error:
        raise ValueError(f"modality {config.name!r}: {error}.") from None


__all__ = ["KINDS", "Modality", "build_modality"]
