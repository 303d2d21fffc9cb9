"""The page's limits for requests, and its defaults where nothing is given."""

from collections.abc import Collection, Mapping
from typing import Any

from mmdiff.config import ANCHOR
from mmdiff.modalities import Modality
from mmdiff.request import Limits, following, have_levels

MAX_SEED = 2**31 - 1  # of seeds that are drawn; the limit is larger by the samples that count up from it
LIMITS = Limits(steps=100, num_samples=8, guidance_scale=10.0, seed=MAX_SEED + 8)
MAX_SIDE = 1024  # pixels of a photo for the embedding, which settings files hold
FOLLOWED = 2.0  # guidance by the label that a photo from nothing follows
# Guidance by what is given, and by the label of a photo from nothing, of models with levels: without it their
# photos are washed out and often of another class than their label.
LED = 4.0


def usual_scale(modalities: Mapping[str, Modality]) -> float:
    """Guidance by a modality that is given, at first."""
    return LED if have_levels(modalities) else 1.0


def followed(modalities: Mapping[str, Modality]) -> str | None:
    """Name of the modality that a photo from nothing follows; None if the model has none."""
    return next((name for name, spec in modalities.items() if spec.drawable), None)


def follow_scale(modalities: Mapping[str, Modality]) -> float:
    """Guidance by a label whose photo is made, whether it is given or not, at first."""
    return LED if have_levels(modalities) else FOLLOWED


def from_nothing(modalities: Mapping[str, Modality], scale: float | None = None) -> dict[str, Any]:
    """Fields of a `Request` with nothing given: all else follows one modality, by `follow_scale` if None."""
    name = followed(modalities)
    scale = follow_scale(modalities) if scale is None else scale
    if name is None or scale == 1:
        return {"guidance_scale": {}}
    return following(name, scale, modalities)


def guidable(given: Collection[str], wanted: Collection[str]) -> list[str]:
    """Names of the given modalities that can be guided; a photo only if it has holes, so is wanted, too."""
    return [name for name in given if name != ANCHOR or name in wanted]
