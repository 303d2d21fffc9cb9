"""Photos: identity on pixels, folded into patches; a Gaussian likelihood."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from mmdiff.images import to_rgb
from mmdiff.modalities.base import Modality, decode_cell, open_image
from mmdiff.smooth_fill import smooth_fill


class ImageModality(Modality):
    """RGB photos in [-1, 1]; Z holds the pixels of a patch as channels (pixel unshuffle).

    ``sigma`` is the standard deviation of the Gaussian p(x | z_t), in units of [-1, 1].
    """

    kind = "image"
    dense = True

    def __init__(self, name: str, image_size: int, patch_size: int, sigma: float = 0.1) -> None:
        super().__init__(name, image_size, patch_size)
        self.shape = (3, image_size, image_size)
        self.z_channels = 3 * patch_size**2
        self.head_channels = 3
        self.fold = patch_size  # positions of the head's output along a side of a patch
        self.sigma = sigma

    def encode(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.patch_size)

    def folded(self, raw: Tensor) -> Tensor:
        """Head output -> channels of Z (B, z_channels, h, w), as it is."""
        return F.pixel_unshuffle(raw, self.fold)

    def picture(self, z: Tensor) -> Tensor:
        """Channels of Z (B, z_channels, h, w) -> photos (B, 3, H, W)."""
        return self.predict(F.pixel_shuffle(z, self.fold))

    def coverage(self, known: Tensor) -> Tensor:
        """Known pixels (B, 1, H, W), 0 or 1 -> the share of each entry of Z that they are, (B, *Z)."""
        return self.folded(known.expand(-1, 3, -1, -1))

    def visible(self, known: Tensor) -> Tensor:
        """Known pixels (B, 1, H, W) -> entries of `encode_known` that the network sees, (B, *Z) bool."""
        return self.coverage(known) > 0

    def determined(self, known: Tensor) -> Tensor:
        """Known pixels (B, 1, H, W) -> entries of Z that follow from them alone, (B, *Z) bool."""
        return self.coverage(known) > 0

    def encode_known(self, x: Tensor, known: Tensor, whole: Tensor) -> Tensor:
        """Encoding of photos of which only ``known`` (B, 1, H, W) is seen; ``whole`` is that of all of x.

        Entries that are not `visible` do not matter.
        """
        return whole

    def completed(self, photos: Tensor, made: Tensor, known: Tensor) -> Tensor:
        """The photos where they are ``known`` (B, 1, H, W) bool, elsewhere without a seam what was ``made``.

        A prediction misses the true pixels around a hole by a little, and an edge shows where they are put
        back. What it misses there goes on smoothly into the hole, which is seamless cloning by the membrane
        (Perez et al. 2003; Farbman et al. 2009).
        """
        seamless = (made + smooth_fill(photos - made, known.float())).clamp(-1, 1)
        return torch.where(known, photos, seamless)

    def predict(self, raw: Tensor) -> Tensor:
        return raw.clamp(-1, 1)

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return self.encode(self.predict(raw))

    def as_prediction(self, x: Tensor) -> Tensor:
        return x

    def store(self, cell: Any, size: int) -> np.ndarray | None:
        return None if cell is None else np.moveaxis(np.asarray(square(decode_cell(cell), size)), -1, 0)

    def from_stored(self, stored: Tensor) -> Tensor:
        return stored.float() / 127.5 - 1

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        return (raw - x).square().mean((1, 2, 3))

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        squares = (raw - x).square() / (2 * self.sigma**2)
        return (squares + math.log(self.sigma) + 0.5 * math.log(2 * math.pi)).sum((1, 2, 3))

    def parse(self, value: Any) -> Tensor:
        return to_tensor(square(open_image(value, "photo"), self.image_size))

    def present(self, predictions: np.ndarray) -> list[Image.Image]:
        return [Image.fromarray(pixels) for pixels in predictions]

    def export(self, value: Image.Image) -> tuple[dict[str, Image.Image], Any]:
        return {"": value}, None

    def preview(self, prediction: np.ndarray) -> Image.Image:
        return Image.fromarray(to_uint8(prediction))


def square(image: Image.Image, size: int) -> Image.Image:
    """Upright RGB, cut to the central square and resized to size x size; ValueError as of `to_rgb`."""
    image = to_rgb(image)
    if image.size == (size, size):
        return image
    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def to_tensor(image: Image.Image) -> Tensor:
    """RGB picture -> (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float() / 127.5 - 1


def to_uint8(pixels: Tensor | np.ndarray) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1] -> (..., H, W, 3) uint8, rounded to the nearest level."""
    array = np.asarray(pixels.detach().cpu() if isinstance(pixels, Tensor) else pixels, dtype=np.float32)
    levels = np.clip(np.rint((array + 1) * 127.5), 0, 255).astype(np.uint8)
    return np.moveaxis(levels, -3, -1)
