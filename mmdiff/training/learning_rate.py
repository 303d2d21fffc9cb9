"""A learning rate by the share of a training that is done, for trainings that may end by the clock."""

import math


def warm_cosine(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0 (Loshchilov & Hutter 2017).

    Args:
        progress: share of the training that is done, 0 to 1.
        peak: largest rate.
        warmup: share of the training in which the rate rises, above 0.
    """
    if progress < warmup:
        return peak * (progress + 1e-3) / warmup  # not 0 in the first step
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
