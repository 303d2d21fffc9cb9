"""Inpainting masks for the masked-image task, and figures of inpainted pictures.

A mask is a map of known pixels (B, H, W) bool, False where the hole is. Map k depends on the seed and on k
alone, never on the device or on how many maps are drawn.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial, wraps

import numpy as np
import torch
from torch import Tensor

from mmdiff.evaluation import metrics
from mmdiff.evaluation.metrics import mean
from mmdiff.evaluation.perceptual import ssim
from mmdiff.evaluation.skip import or_reason

BLOCKS_A_SIDE = 8
CONFIDENCE, RESAMPLES = 0.95, 2000  # of the bootstrap


def _maps(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """From (size, random generator, options) -> one map: (count, size, seed, options) -> maps (B, H, W)."""

    @wraps(draw)
    def maps(count: int, size: int, seed: int = 0, **options: float) -> Tensor:
        if count < 1 or size < BLOCKS_A_SIDE:
            asked = f"asked for {count} maps of {size} x {size} pixels"
            raise ValueError(f"{asked}; ask for at least 1 of {BLOCKS_A_SIDE} pixels.")
        if not 0 < (fraction := options.get("fraction", 0.5)) < 1:
            raise ValueError(
                f"fraction is {fraction}; it is the hidden share of the picture, between 0 and 1."
            )
        return torch.stack([draw(size, np.random.default_rng([seed, k]), **options) for k in range(count)])

    return maps


@_maps
def random_blocks(size: int, rng: np.random.Generator, fraction: float = 0.5) -> Tensor:
    """Hide ``fraction`` of an 8 x 8 grid of blocks.

    Exactly round(64 * fraction) blocks are hidden, which is exactly ``fraction`` of the pixels where that
    is a multiple of 1/64 and 8 divides the size.
    """
    order = torch.from_numpy(rng.permutation(BLOCKS_A_SIDE**2))
    blocks = (order >= round(BLOCKS_A_SIDE**2 * fraction)).view(BLOCKS_A_SIDE, BLOCKS_A_SIDE)
    cell = torch.arange(size) * BLOCKS_A_SIDE // size  # block of each row and column
    return blocks[cell][:, cell]


@_maps
def box(size: int, rng: np.random.Generator, fraction: float = 0.25) -> Tensor:
    """Hide one square at a random place, of side round(size * sqrt(fraction))."""
    side = round(size * fraction**0.5)
    known = torch.ones(size, size, dtype=torch.bool)
    top, left = rng.integers(0, size - side + 1, 2)
    known[top : top + side, left : left + side] = False
    return known


@_maps
def half(size: int, rng: np.random.Generator) -> Tensor:
    """Hide the left, right, upper or lower half, drawn at random."""
    known = torch.ones(size, size, dtype=torch.bool)
    known[:, : size // 2] = False
    return torch.rot90(known, int(rng.integers(4)))


@_maps
def alternate_lines(size: int, rng: np.random.Generator) -> Tensor:
    """Hide every second row or column, starting with the first or the second, drawn at random."""
    known = torch.ones(size, size, dtype=torch.bool)
    start, transpose = rng.integers(0, 2, 2)
    known[start::2] = False
    return known.T if transpose else known


@_maps
def every_other(size: int, rng: np.random.Generator, step: int = 2) -> Tensor:
    """Show one pixel in each square of ``step`` x ``step``, at the same place in all: super-resolution."""
    known = torch.zeros(size, size, dtype=torch.bool)
    top, left = rng.integers(0, step, 2)
    known[top::step, left::step] = True
    return known


HOLES: dict[str, Callable[[int, int, int], Tensor]] = {
    "blocks": random_blocks,
    **{f"blocks{p}": partial(random_blocks, fraction=p / 100) for p in (10, 25, 75, 90)},
    "box": box,
    "half": half,
    "lines": alternate_lines,
    "super2": every_other,
    "super4": partial(every_other, step=4),
}


@dataclass(frozen=True)
class Inpainted:
    """figures: JSON-ready means. lpips: of each picture, (n,), None where it cannot be measured."""

    figures: dict
    lpips: Tensor | None


def inpainting_figures(
    filled: Tensor, real: Tensor, known: Tensor, lpips: Callable[[Tensor, Tensor], Tensor]
) -> Inpainted:
    """PSNR inside the holes (dB), SSIM and LPIPS of pictures (n, 3, H, W) in [-1, 1].

    Args:
        known: (n, H, W) bool. lpips: distance of pictures from others, (n,); may raise `Skip`.
    """
    squares, values = metrics.hole_error(filled, real, known)
    figures = {
        "psnr": mean(metrics.psnr(squares / values)),
        "psnr_pooled": metrics.psnr(squares.sum() / values.sum()).item(),
        "ssim": or_reason(lambda: mean(ssim(filled, real))),
    }
    distances = or_reason(lambda: lpips(filled, real))
    if isinstance(distances, dict):
        return Inpainted(figures | {"lpips": distances}, None)
    return Inpainted(figures | {"lpips": mean(distances)}, distances)


def compared(ours: Inpainted, other: Inpainted) -> dict:
    """The other method's figures, with "lpips_difference": ours less its own; below 0 ours is nearer."""
    if ours.lpips is None or other.lpips is None:
        return other.figures
    return other.figures | {"lpips_difference": interval(ours.lpips - other.lpips)}


def interval(differences: Tensor) -> dict[str, float]:
    """Mean of paired differences (n,) and its 95 % interval by the bootstrap over pairs (percentiles).

    The interval is the mean alone where there are fewer than two pairs or all differences are equal.
    """
    from scipy.stats import bootstrap  # late: half a second of every start, for measuring alone

    values = differences.double().numpy()
    middle = float(values.mean())
    if len(values) < 2 or np.ptp(values) == 0:
        return {"mean": middle, "low": middle, "high": middle}
    options = {"n_resamples": RESAMPLES, "confidence_level": CONFIDENCE, "method": "percentile"}
    found = bootstrap((values,), np.mean, rng=np.random.default_rng(0), **options).confidence_interval
    return {"mean": middle, "low": float(found.low), "high": float(found.high)}
