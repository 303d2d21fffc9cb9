"""Registry of modality kinds. A new kind is a `Modality` and a line here, or `register` from elsewhere."""

import os
from importlib import import_module

from torch.nn import ModuleDict

from mmdiff.config import ModalityConfig
from mmdiff.modalities.base import Modality
from mmdiff.modalities.embedding import EmbeddingModality
from mmdiff.modalities.image import ImageModality
from mmdiff.modalities.label import LabelModality
from mmdiff.modalities.latent_image import LatentImageModality
from mmdiff.modalities.mask import MaskModality

KINDS: dict[str, type[Modality]] = {
    cls.kind: cls for cls in (ImageModality, MaskModality, LabelModality, EmbeddingModality)
} | {LatentImageModality.KIND: LatentImageModality}
# Environment variable: modules, separated by commas, that register more kinds. The user of a command names
# them, never a checkpoint, so that loading a checkpoint runs no foreign code.
IMPORTS = "MMDIFF_IMPORT"


def register(cls: type[Modality]) -> type[Modality]:
    """Class decorator that adds a kind from outside the package. Raises ValueError if its name is taken."""
    other = KINDS.get(cls.kind, cls)
    # a class defined again, as in a notebook, replaces itself
    if (other.__module__, other.__qualname__) != (cls.__module__, cls.__qualname__):
        raise ValueError(
            f"the kind {cls.kind!r} is {other.__module__}.{other.__qualname__} already; choose another name."
        )
    KINDS[cls.kind] = cls
    return cls


def build_modality(config: ModalityConfig, image_size: int, patch_size: int) -> Modality:
    """The modality that a configuration names. Raises ValueError for an unknown kind or option."""
    if config.kind not in KINDS:
        _import_others()
    if config.kind not in KINDS:
        raise ValueError(
            f"modality {config.name!r} has unknown kind {config.kind!r}; known: {', '.join(KINDS)}. If it is "
            f"one of your own, import its module first, or name it in {IMPORTS}."
        )
    if hasattr(ModuleDict(), config.name):
        raise ValueError(f"modality {config.name!r} has a name that torch uses itself; choose another.")
    try:
        return KINDS[config.kind](config.name, image_size, patch_size, **config.options)
    except TypeError as error:
        raise ValueError(f"modality {config.name!r}: {error}.") from None


def _import_others() -> None:
    for name in filter(None, os.environ.get(IMPORTS, "").split(",")):
        try:
            import_module(name)
        except ImportError as error:
            raise ValueError(
                f"{IMPORTS} names {name!r}, which cannot be imported ({error}); run the command where its "
                "file lies, or add that folder to PYTHONPATH."
            ) from error


__all__ = ["KINDS", "Modality", "build_modality", "register"]
