"""How well a text probe tells captions that say it from those that do not."""

import numpy as np

LEAST_AUC = 0.75  # chance is 0.5; below this a probe is left out


def separates(similarities: np.ndarray, says: np.ndarray, counts: np.ndarray) -> bool:
    """Whether a probe is near to those captions that say it: a `weighted_auc` of at least `LEAST_AUC`.

    One that no caption says cannot be judged, and passes: people add their own to a vocabulary.
    """
    return not says.any() or weighted_auc(similarities, says, counts) >= LEAST_AUC


def weighted_auc(similarities: np.ndarray, says: np.ndarray, counts: np.ndarray) -> float:
    """Chance that a caption that says the probe is nearer to it than one that does not; ties count half.

    Args:
        similarities: of the probe to each caption, (C,). says: whether the caption says it, (C,) bool.
        counts: how often the caption occurs, (C,).

    Returns:
        From 0 to 1. It is 0.5 where all captions say it, or none: then there is nothing to tell apart.
    """
    if says.all() or not says.any():
        return 0.5
    with_it, without = similarities[says][:, None], similarities[~says][None]
    nearer = (with_it > without) + 0.5 * (with_it == without)
    return float(np.average(np.average(nearer, axis=1, weights=counts[~says]), weights=counts[says]))
