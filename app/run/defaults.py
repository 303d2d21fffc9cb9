"""The page's limits for requests, and its defaults where nothing is given."""

from collections.abc import Collection, Mapping
from typing import Any

from mmdiff.modalities import Modality
from mmdiff.request import Limits

ANCHOR = "image"  # name of the modality that can have holes
MAX_SEED = 2**31 - 1  # of seeds that are drawn; the limit is larger by the samples that count up from it
LIMITS = Limits(steps=100, num_samples=8, guidance_scale=10.0, seed=MAX_SEED + 8)
MAX_SIDE = 1024  # pixels of a photo for the embedding, which settings files hold
FOLLOWED = 2.0  # guidance by the label that a photo from nothing follows


def first_sampled(modalities: Mapping[str, Modality]) -> str | None:
    """Name of the modality that is sampled first where nothing is given.

    None if the model has none, or has leads, by which it decides what is first.
    """
    drawable = (name for name, spec in modalities.items() if spec.drawable and spec.lead is None)
    return next(drawable, None)


def from_nothing(modalities: Mapping[str, Modality], scale: float = FOLLOWED) -> dict[str, Any]:
    """Fields of a `Request` with nothing given: one modality is sampled first, and all else follows it."""
    name = first_sampled(modalities)
    if name is None or scale == 1:
        return {"guidance_scale": {}}
    return {"guidance_scale": {name: scale}, "sample_first": (name,)}


def guidable(given: Collection[str], wanted: Collection[str]) -> list[str]:
    """Names of the given modalities that can be guided; a photo only if it has holes, so is wanted, too."""
    return [name for name in given if name != ANCHOR or name in wanted]
