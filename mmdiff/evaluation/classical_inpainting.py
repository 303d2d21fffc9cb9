"""Inpainting without a model, from the rest of the picture alone: the baselines.

Each takes pictures (n, 3, H, W) in [-1, 1] and maps of known pixels (n, H, W) bool, and keeps known pixels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from mmdiff.evaluation.skip import Skip
from mmdiff.images import to_uint8

RADIUS = 3  # pixels around each missing one that count
REMEDY = "pip install opencv-python-headless"


def mean_fill(images: Tensor, known: Tensor) -> Tensor:
    """Every hole filled with the mean of that picture's known pixels, channel by channel.

    A picture without known pixels is filled with medium grey.
    """
    weights = known[:, None].to(images.dtype)
    count = weights.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (images * weights).sum((2, 3), keepdim=True) / count
    return torch.where(known[:, None], images, mean)


def telea(images: Tensor, known: Tensor) -> Tensor:
    """Fast marching from the border of the hole inwards (Telea 2004), of OpenCV."""
    return _with_opencv("INPAINT_TELEA", images, known)


def navier_stokes(images: Tensor, known: Tensor) -> Tensor:
    """Lines of equal light continued into the hole (Bertalmio et al. 2001), of OpenCV."""
    return _with_opencv("INPAINT_NS", images, known)


def _with_opencv(method: str, images: Tensor, known: Tensor) -> Tensor:
    try:
        import cv2
    except ImportError:
        raise Skip(f"OpenCV is not installed: {REMEDY}") from None
    holes = (~known).numpy().astype(np.uint8)
    pairs = zip(to_uint8(images), holes, strict=True)
    filled = np.stack([cv2.inpaint(photo, hole, RADIUS, getattr(cv2, method)) for photo, hole in pairs])
    pictures = torch.from_numpy(filled).permute(0, 3, 1, 2).float() / 127.5 - 1
    return torch.where(known[:, None], images, pictures)


CLASSICAL_METHODS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean": mean_fill,
    "telea": telea,
    "navier_stokes": navier_stokes,
}
