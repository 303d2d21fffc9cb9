"""Does the model copy? Samples beside their nearest training photos, compared with unseen photos."""

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdiff.evaluation.evaluation import Evaluation, Outcome
from mmdiff.evaluation.metrics import mean
from mmdiff.evaluation.skip import Skip

SAMPLES = 32
SIDE = 32  # pixels that pictures are compared at
DRAWS = 8  # of as many training photos as there are unseen ones


def copies(ev: Evaluation) -> Outcome:
    """Root mean square difference of samples from their nearest training photo, mirrored ones included.

    The same distance is measured for photos that were not trained on: a model that copies comes much nearer
    to its training photos than these do. Blurred pictures are nearer to all photos, so the samples' distance
    to the nearest of equally many unseen and training photos is measured, too: a model that copies is nearer
    to the latter. Intensities are in [0, 1], at 32 x 32 pixels.
    """
    if ev.train_photos is None:
        raise Skip("no training photos: give --train the Parquet file that the model was trained on")
    count = min(SAMPLES, ev.settings.samples)
    out = ev.sample("copies", ["image"], count)["image"]
    unseen, gallery = _small(ev.read(ev.rows_with("image"))["image"]), _small(ev.train_photos)
    distances, nearest = _nearest(_small(out), gallery)
    of_unseen, _ = _nearest(unseen[:count], gallery)
    to_unseen, to_trained = _to_equally_many(_small(out), unseen, gallery, ev.settings.seed)
    photos = ev.train_photos[nearest].float() / 127.5 - 1
    if photos.shape[-1] != ev.size:
        photos = F.interpolate(photos, (ev.size, ev.size), mode="bilinear", antialias=True)
    return Outcome(
        {
            "n": count,
            "train_photos": len(ev.train_photos),
            "distance": mean(distances),
            "distance_smallest": distances.min().item(),
            "distance_of_unseen_photos": mean(of_unseen),
            "distance_of_unseen_photos_smallest": of_unseen.min().item(),
            "distance_to_unseen_photos": to_unseen,
            "distance_to_as_many_training_photos": to_trained,
        },
        [ev.picture(out), ev.picture(photos)],
        [f"sample, nearest training photo ({d:.3f})" for d in distances.tolist()],
    )


def _to_equally_many(samples: Tensor, unseen: Tensor, trained: Tensor, seed: int) -> tuple[float, float]:
    """Mean distance to the nearest unseen photo, and to the nearest of as many training photos."""
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randperm(len(trained), generator=generator)[: len(unseen)] for _ in range(DRAWS)]
    to_drawn = torch.stack([_nearest(samples, trained[rows])[0] for rows in draws])
    return mean(_nearest(samples, unseen)[0]), mean(to_drawn)


def _small(images: Tensor) -> Tensor:
    """(n, 3, H, W), uint8 or in [-1, 1] -> (n, 3 * SIDE * SIDE) in [0, 1]."""
    parts = []
    for chunk in images.split(1024):
        unit = chunk.float() / 255 if chunk.dtype == torch.uint8 else (chunk.float() + 1) / 2
        parts.append(F.interpolate(unit, (SIDE, SIDE), mode="bilinear", antialias=True).flatten(1))
    return torch.cat(parts)


def _nearest(queries: Tensor, gallery: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to the nearest of the gallery or of its mirror images, and its row: (n,), (n,)."""
    mirrored = gallery.view(-1, 3, SIDE, SIDE).flip(3).flatten(1)
    both = torch.stack([torch.cdist(queries, g) for g in (gallery, mirrored)]).amin(0)
    values, rows = both.min(1)
    return values / queries.shape[1] ** 0.5, rows
