"""A smooth guess at what is in the holes of photos, from the pixels around them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

SWEEPS = 32  # of relaxation; the pyramid's guess is near already


def smooth_fill(photos: Tensor, known: Tensor) -> Tensor:
    """Photos with every hole filled from its border, about as the Laplace equation has it.

    A pyramid guesses coarsely (pull-push, Gortler et al. 1996), then each hidden pixel is moved to the mean
    of its four neighbours, `SWEEPS` times. Known pixels stay, hidden ones have no influence, and a photo of
    which nothing is known becomes zero.

    Args:
        photos: (B, C, H, W). known: (B, 1, H, W) of 0 and 1.
    """
    known = known.to(photos.dtype)
    true = photos * known
    filled = torch.where(known > 0, true, _pull_push(true, known))
    for _ in range(SWEEPS):
        padded = F.pad(filled, (1, 1, 1, 1), mode="replicate")
        beside = padded[..., 1:-1, :-2] + padded[..., 1:-1, 2:]
        above = padded[..., :-2, 1:-1] + padded[..., 2:, 1:-1]
        filled = torch.where(known > 0, true, (beside + above) / 4)
    return filled


def _pull_push(values: Tensor, weights: Tensor) -> Tensor:
    """Means of what is known (values, with weights in [0, 1]) as near as it is to be had."""
    height, width = values.shape[-2:]
    if height == width == 1:
        return values / weights.clamp(min=1e-8)
    pooled = [F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False) for x in (values, weights)]
    coarse = F.interpolate(_pull_push(*pooled), (height, width), mode="bilinear", align_corners=False)
    return values + (1 - weights) * coarse
