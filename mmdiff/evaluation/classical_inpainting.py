"""Inpainting without a model, from the rest of the picture alone: the baselines.

Each takes pictures (n, 3, H, W) in [-1, 1] and maps of known pixels (n, H, W) bool, and keeps known pixels.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from mmdiff.evaluation.skip import Skip
from mmdiff.images import to_uint8

RADIUS = 3  # pixels around each missing one that count
REMEDY = "pip install opencv-python-headless"

InpaintingMethod = Callable[[Tensor, Tensor], Tensor]


def mean_fill(images: Tensor, known: Tensor) -> Tensor:
    """Every hole filled with the mean of that picture's known pixels, channel by channel.

    A picture without known pixels is filled with medium grey.
    """
    weights = known[:, None].to(images.dtype)
    count = weights.sum((2, 3), keepdim=True).clamp(min=1)
    mean = (images * weights).sum((2, 3), keepdim=True) / count
    return torch.where(known[:, None], images, mean)


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


CLASSICAL_METHODS: dict[str, InpaintingMethod] = {
    "mean": mean_fill,
    "telea": partial(_with_opencv, "INPAINT_TELEA"),  # fast marching inwards from the border (Telea 2004)
    "navier_stokes": partial(_with_opencv, "INPAINT_NS"),  # lines of equal light (Bertalmio et al. 2001)
}
