"""Depth maps: a number for each pixel, kept in 16-bit PNGs, with a Gaussian likelihood."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.distributions import Normal
from torch.nn import functional as F

from mmdiff.images import decode_cell, nearest_square, open_image
from mmdiff.modalities import Modality, register


@register
class Depth(Modality):
    """Depth in [-1, 1], (1, H, W): the PNG's 0 is -1, its `far` and all beyond is 1."""

    kind, dense = "depth", True

    def __init__(self, name: str, image_size: int, patch_size: int, far: int = 65535, sigma: float = 0.1):
        super().__init__(name, image_size, patch_size)
        self.far, self.sigma = far, sigma  # `options` in the configuration
        self.shape, self.head_channels = (1, image_size, image_size), 1
        self.z_channels = patch_size**2  # the pixels of a patch are channels of Z

    def encode(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.patch_size)

    def predict(self, raw: Tensor) -> Tensor:
        return raw.clamp(-1, 1)

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return self.encode(self.predict(raw))

    def as_prediction(self, x: Tensor) -> Tensor:
        return x

    def store(self, cell: dict | None, size: int) -> np.ndarray | None:
        return None if cell is None else self._read(decode_cell(cell), size)

    def _read(self, picture: Image.Image, size: int) -> np.ndarray:
        if picture.mode not in ("I;16", "I", "L"):
            raise ValueError(f"{self.name}: a picture of mode {picture.mode}; give a PNG of one channel.")
        depth = Image.fromarray(np.asarray(picture, np.int32))  # cut like the photo, but never blended
        return np.array(nearest_square(depth, size))[None]

    def from_stored(self, stored: Tensor) -> Tensor:
        return stored.clamp(max=self.far) / self.far * 2 - 1

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        return (raw - x).square().mean((1, 2, 3))

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return -Normal(raw, self.sigma).log_prob(x).sum((1, 2, 3))

    def parse(self, value: Image.Image | str) -> Tensor:
        return self.from_stored(torch.from_numpy(self._read(open_image(value, "depth map"), self.image_size)))

    def present(self, predictions: np.ndarray) -> list[Image.Image]:
        return [Image.fromarray(p) for p in np.rint((predictions[:, 0] + 1) / 2 * self.far).astype(np.uint16)]

    def export(self, value: Image.Image) -> tuple[dict[str, Image.Image], None]:
        return {"": value}, None

    def preview(self, prediction: np.ndarray) -> Image.Image:
        return Image.fromarray(((prediction[0] + 1) * 127.5).astype(np.uint8))
