"""The learning rate of a training that ends at a number of images or at a time, whichever comes first."""

import math


def warm_cosine(progress: float, peak: float, warmup: float) -> float:
    """Linear warm-up, then half a cosine to 0 (Loshchilov & Hutter 2017).

    Args:
        progress: share of the training that is done, 0 to 1.
        warmup: share of the training in which the rate rises, above 0.
    """
    if progress < warmup:
        return peak * (progress + 1e-3) / warmup  # the first step is to move, too
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))
