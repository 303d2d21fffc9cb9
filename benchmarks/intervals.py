"""Confidence intervals over photos and seeds together."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from mmdiff.evaluation.holes import CONFIDENCE

RESAMPLES = 4000


def over_photos_and_seeds(values: ArrayLike) -> dict[str, float]:
    """Mean of values, a row of equally many photos for each seed, and its 95 % interval by the bootstrap.

    A resample draws seeds with replacement and then photos, the same for all seeds, with replacement: models
    and photos are both samples (a pigeonhole bootstrap, Owen 2007). It is wider than either alone.
    """
    table = np.asarray(values, float)
    seeds, photos = table.shape
    random = np.random.default_rng(0)
    # how often each seed and each photo is drawn, as shares
    of_seeds = random.multinomial(seeds, np.full(seeds, 1 / seeds), RESAMPLES) / seeds
    of_photos = random.multinomial(photos, np.full(photos, 1 / photos), RESAMPLES) / photos
    means = np.einsum("rs,sp,rp->r", of_seeds, table, of_photos, optimize=True)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return {"mean": round(float(table.mean()), 5), "low": round(float(low), 5), "high": round(float(high), 5)}
