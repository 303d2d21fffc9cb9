"""Metrics: pure functions on tensors, on any device.

Pictures are float (B, 3, H, W) in [-1, 1]; masks are long (B, H, W) of class indices; maps of known
pixels are bool (B, H, W).
"""

import math

import numpy as np
import torch
from scipy.ndimage import binary_fill_holes
from torch import Tensor
from torch.nn import functional as F

MIN_MSE = 1e-10  # of intensities in [0, 1]: caps PSNR at 100 dB, so that equal pictures stay finite
MIN_PROBABILITY = 1e-12  # of the true class, so that one sure mistake stays finite
WHITE_TOLERANCE = 40  # of 255


def mean(values: Tensor) -> float:
    """Mean of numbers or of truth values (n,)."""
    return values.double().mean().item()


def json_numbers(values: Tensor) -> list[float | None]:
    """The numbers (n,) with None for NaN, which JSON does not have."""
    return [None if math.isnan(v) else v for v in values.tolist()]


def confusion(predicted: Tensor, target: Tensor, num_classes: int, ignore: int | None = None) -> Tensor:
    """Pixels of each example by true class (rows) and predicted class (columns): (B, K, K) long.

    Pixels whose true class is ``ignore`` are left out.
    """
    batch = torch.arange(len(target), device=target.device)[:, None, None]
    cell = (batch * num_classes + target) * num_classes + predicted
    if ignore is not None:
        cell = cell[target != ignore]
    counts = torch.bincount(cell.flatten(), minlength=len(target) * num_classes**2)
    return counts.view(len(target), num_classes, num_classes)


def iou(matrix: Tensor) -> Tensor:
    """Intersection over union of each class from confusion counts: (..., K, K) -> (..., K) float64.

    NaN for a class that is in neither the truth nor the prediction.
    """
    matrix = matrix.double()
    both = matrix.diagonal(dim1=-2, dim2=-1)
    either = matrix.sum(-1) + matrix.sum(-2) - both
    return both / either  # 0 / 0 is NaN


def pixel_accuracy(matrix: Tensor) -> Tensor:
    """Share of the counted pixels that have their true class: (..., K, K) -> (...) float64."""
    matrix = matrix.double()
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1) / matrix.sum((-1, -2))


def object_iou(predicted: Tensor, target: Tensor) -> Tensor:
    """IoU of two bool maps (B, H, W) in each example: (B,) float64; 1 where both are empty."""
    both = (predicted & target).flatten(1).sum(1).double()
    either = (predicted | target).flatten(1).sum(1).double()
    return torch.where(either > 0, both / either, 1.0)


def white_background_mask(images: Tensor, tolerance: float = WHITE_TOLERANCE) -> Tensor:
    """The object on a white background: pixels that are not white, and those they enclose, (B, H, W) bool.

    A pixel is white if its darkest channel is within ``tolerance`` levels of 255; highlights inside the
    object are enclosed by it and belong to it. On the validation photos of the orchard set this agrees with
    the given masks at a mean IoU of 0.990 at 96 px and, for want of pixels along the edge, 0.985 at 64 px;
    any tolerance from 36 to 48 is as good to 0.001. `python -m mmdiff.evaluate` measures it again.
    """
    levels = (images + 1) * 127.5
    coloured = 255 - levels.amin(1) > tolerance
    filled = np.array([binary_fill_holes(one) for one in coloured.cpu().numpy()], bool)
    return torch.from_numpy(filled.reshape(coloured.shape)).to(images.device)


def top_k_hits(probabilities: Tensor, target: Tensor, k: int) -> Tensor:
    """Whether the true class is among the k most probable ones: (B, K), (B,) -> (B,) bool."""
    best = probabilities.topk(min(k, probabilities.shape[1]), dim=1).indices
    return (best == target[:, None]).any(1)


def nll(probabilities: Tensor, target: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each true class: (B, K), (B,) -> (B,) float64."""
    chosen = probabilities.double().gather(1, target[:, None])[:, 0]
    return -chosen.clamp(min=MIN_PROBABILITY).log()


def calibration_error(probabilities: Tensor, target: Tensor, bins: int = 15) -> float:
    """Expected calibration error (Naeini et al. 2015): (B, K), (B,).

    Mean over ``bins`` equal intervals of confidence, weighted by their examples, of the distance between mean
    confidence and accuracy.
    """
    confidence, best = probabilities.double().max(1)
    interval = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gaps = torch.zeros(bins, dtype=torch.float64, device=target.device)
    gaps.index_add_(0, interval, confidence - (best == target).double())
    return (gaps.abs().sum() / len(target)).item()


def gallery_ranks(queries: Tensor, gallery: Tensor, own: Tensor) -> Tensor:
    """Rank of each query's own item by cosine, 1 the nearest: (B, D), (M, D), (B,) indices -> (B,) float.

    Items as near as the own one count by half, so that constant predictions gain nothing.
    """
    similarity = F.normalize(queries, dim=1) @ F.normalize(gallery, dim=1).T  # (B, M)
    mine = similarity.gather(1, own[:, None])
    nearer = (similarity > mine).sum(1)
    tied = (similarity == mine).sum(1) - 1
    return 1 + nearer + tied / 2


def hole_error(predicted: Tensor, target: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Sum of squared errors inside the holes, intensities in [0, 1], and number of values: (B,) float64."""
    squares = ((predicted.double() - target.double()) / 2).square() * ~known[:, None]
    return squares.sum((1, 2, 3)), (~known).sum((1, 2)).double() * predicted.shape[1]


def psnr(mse: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB for a mean squared error of intensities in [0, 1]; 100 at most."""
    return -10 * mse.clamp(min=MIN_MSE).log10()
