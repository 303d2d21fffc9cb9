"""Photos: identity on pixels, folded into patches; a Gaussian likelihood."""

import math
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmdiff.images import cell_source, open_photo, square, to_tensor, to_uint8
from mmdiff.modalities.anchor import AnchorModality
from mmdiff.modalities.base import checked_positive


class ImageModality(AnchorModality):
    """RGB photos in [-1, 1]; Z holds the pixels of a patch as channels (pixel unshuffle).

    ``sigma`` is the standard deviation of the Gaussian p(x | z_t), for pixels in [-1, 1].
    """

    kind = "image"
    photographic = True

    def __init__(self, name: str, image_size: int, patch_size: int, sigma: float = 0.1) -> None:
        super().__init__(name, image_size, patch_size)
        self.shape = (3, image_size, image_size)
        self.z_channels = 3 * patch_size**2
        self.head_channels = 3
        self.fold = patch_size
        self.sigma = checked_positive(name, "sigma", sigma)

    def encode(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, self.patch_size)

    def predict(self, raw: Tensor) -> Tensor:
        return raw.clamp(-1, 1)

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return self.encode(self.predict(raw))

    def store(self, cell: Any, size: int) -> np.ndarray | None:
        if cell is None:
            return None
        return np.moveaxis(np.asarray(square(open_photo(cell_source(cell), "picture"), size)), -1, 0)

    def from_stored(self, stored: Tensor) -> Tensor:
        return stored.float() / 127.5 - 1

    def made_up(self, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
        return Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8))

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        return (raw - x).square().mean((1, 2, 3))

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        squares = (raw - x).square() / (2 * self.sigma**2)
        return (squares + math.log(self.sigma) + 0.5 * math.log(2 * math.pi)).sum((1, 2, 3))

    def parse(self, value: Any) -> Tensor:
        return to_tensor(square(open_photo(value), self.image_size))

    def present(self, predictions: np.ndarray) -> list[Image.Image]:
        """(B, H, W, 3) uint8, as `to_uint8` makes it -> pictures."""
        return [Image.fromarray(pixels) for pixels in predictions]

    def export(self, value: Image.Image) -> tuple[dict[str, Image.Image], Any]:
        return {"": value}, None

    def preview(self, prediction: np.ndarray) -> Image.Image:
        return Image.fromarray(to_uint8(prediction))
