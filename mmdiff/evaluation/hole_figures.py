"""Figures of filled holes, and how sure it is that one filling is nearer to the truth than another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import bootstrap
from torch import Tensor

from mmdiff.evaluation import metrics
from mmdiff.evaluation.core import Evaluation, Skip, mean, or_reason
from mmdiff.evaluation.perceptual import ssim

CONFIDENCE, RESAMPLES = 0.95, 2000


@dataclass(frozen=True)
class Filled:
    """figures: JSON-ready means. lpips: of each picture, (n,), None where it cannot be measured."""

    figures: dict
    lpips: Tensor | None


def score(ev: Evaluation, filled: Tensor, real: Tensor, known: Tensor) -> Filled:
    """PSNR inside the holes (dB), SSIM and LPIPS of pictures (n, 3, H, W), ``known`` (n, H, W)."""
    squares, values = metrics.hole_error(filled, real, known)
    figures = {
        "psnr": mean(metrics.psnr(squares / values)),
        "psnr_pooled": metrics.psnr(squares.sum() / values.sum()).item(),
        "ssim": or_reason(lambda: mean(ssim(filled, real))),
    }
    try:
        lpips = ev.lpips(filled, real)
    except Skip as reason:
        return Filled(figures | {"lpips": {"skipped": str(reason)}}, None)
    return Filled(figures | {"lpips": mean(lpips)}, lpips)


def beside(ours: Filled, other: Filled) -> dict:
    """The other filling's figures, and "lpips_difference": ours less its own; below 0 ours is nearer."""
    if ours.lpips is None or other.lpips is None:
        return other.figures
    return other.figures | {"lpips_difference": interval(ours.lpips - other.lpips)}


def interval(differences: Tensor) -> dict[str, float]:
    """Mean of paired differences (n,) and its 95 % interval by the bootstrap over pairs (percentiles).

    The interval is the mean alone where there are fewer than two pairs or all differences are equal.
    """
    values = differences.double().numpy()
    middle = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"mean": middle, "low": middle, "high": middle}
    found = bootstrap(
        (values,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return {"mean": middle, "low": float(found.low), "high": float(found.high)}
