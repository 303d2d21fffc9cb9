"""Segmentation masks: a class per pixel, categorical likelihood, void pixels left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmdiff.images import decode_cell, nearest_square, open_image
from mmdiff.modalities.base import Modality, class_codes, palette

VOID = "void"
MOST_CLASSES = 256


class MaskModality(Modality):
    """Class maps (H, W); Z holds the code of each pixel's class, zero where the class is void.

    A class named "void" means "not annotated": it has no loss and is never predicted. With a ``stride`` above
    1 the codes are averaged over cells of that many pixels a side, as coarse as an autoencoder's latents.
    """

    kind = "mask"
    dense = True

    def __init__(
        self, name: str, image_size: int, patch_size: int, classes: Sequence[str], stride: int = 1
    ) -> None:
        super().__init__(name, image_size, patch_size)
        if stride < 1 or patch_size % stride:
            raise ValueError(f"{name}: stride is {stride}; give a divisor of patch_size, {patch_size}.")
        self.stride = stride
        if len(classes) < 2:
            raise ValueError(f"{name}: a mask needs at least two classes, but got {list(classes)}.")
        if len(classes) > MOST_CLASSES:
            raise ValueError(f"{name}: {len(classes)} classes do not fit into a byte; {MOST_CLASSES} do.")
        self.classes = tuple(classes)
        self.shape = (image_size, image_size)
        real = [i for i, c in enumerate(classes) if c != VOID]
        codes = torch.zeros(len(classes), class_codes(len(real)).shape[1])
        codes[real] = class_codes(len(real))
        self.register_buffer("codes", codes)
        self.register_buffer("is_void", torch.tensor([c == VOID for c in classes]), persistent=False)
        self.z_channels = codes.shape[1] * (patch_size // stride) ** 2
        self.head_channels = len(classes)
        self.palette = palette(len(classes))

    def _folded(self, coded: Tensor) -> Tensor:
        if self.stride > 1:
            coded = F.avg_pool2d(coded, self.stride)
        return F.pixel_unshuffle(coded, self.patch_size // self.stride)

    def encode(self, x: Tensor) -> Tensor:
        return self._folded(self.codes[x].permute(0, 3, 1, 2))

    def _logits(self, raw: Tensor) -> Tensor:
        return raw.float().masked_fill(self.is_void[:, None, None], -1e4)

    def predict(self, raw: Tensor) -> Tensor:
        return self._logits(raw).softmax(1)

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return self._folded(torch.einsum("bkhw,kc->bchw", self.predict(raw), self.codes))

    def as_prediction(self, x: Tensor) -> Tensor:
        return F.one_hot(x, len(self.classes)).permute(0, 3, 1, 2).float()

    def store(self, cell: Any, size: int) -> np.ndarray | None:
        if cell is None:
            return None
        indices = self._class_map(decode_cell(cell))
        return np.asarray(nearest_square(Image.fromarray(indices.astype(np.uint8)), size))

    def from_stored(self, stored: Tensor) -> Tensor:
        return stored.long()

    def _cross_entropy(self, raw: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        counted = ~self.is_void[x]  # (B, H, W)
        nats = F.cross_entropy(self._logits(raw), x, reduction="none")
        return torch.where(counted, nats, 0).sum((1, 2)), counted.sum((1, 2))

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        nats, counted = self._cross_entropy(raw, x)
        return nats / counted.clamp(min=1)

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return self._cross_entropy(raw, x)[0]

    def parse(self, value: Any) -> Tensor:
        indices = self._class_map(value)
        if self.is_void[torch.from_numpy(indices)].all():
            raise ValueError(f"{self.name}: the mask is {VOID} everywhere and says nothing; leave it out.")
        size = (self.image_size, self.image_size)
        if indices.shape[0] != indices.shape[1]:
            raise ValueError(
                f"{self.name}: the mask is {indices.shape[1]} x {indices.shape[0]} pixels; give a square "
                f"one, best {size[0]} x {size[1]}, cut like the photo."
            )
        resized = Image.fromarray(indices.astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.asarray(resized).astype(np.int64))

    def _class_map(self, value: Any) -> np.ndarray:
        """Class numbers (H, W) int64. Raises ValueError if ``value`` is none, or of other classes."""
        if isinstance(value, Tensor):
            value = value.cpu().numpy()
        if not isinstance(value, np.ndarray):
            image = open_image(value, "mask")
            if image.mode not in ("L", "P", "1", "I", "I;16"):
                raise ValueError(
                    f"{self.name}: the mask has colour mode {image.mode}; give class numbers in one channel "
                    "(mode L or P), not colours."
                )
            value = np.asarray(image)
        elif value.size == 0 or value.dtype.kind not in "iub":
            raise ValueError(
                f"{self.name}: expected whole numbers, but got an array of shape {value.shape} and "
                f"type {value.dtype}."
            )
        last = len(self.classes) - 1
        if value.ndim != 2:
            raise ValueError(
                f"{self.name}: expected a map of class numbers (H, W), but got shape {value.shape}; "
                f"give a single-channel picture or array whose values are 0 to {last}."
            )
        indices = value.astype(np.int64)
        low, high = int(indices.min()), int(indices.max())
        if low < 0 or high > last:
            names = ", ".join(f"{i} = {c}" for i, c in enumerate(self.classes))
            raise ValueError(
                f"{self.name}: found class number {high if high > last else low}, but the classes are "
                f"{names}; renumber the mask."
            )
        return indices

    def present(self, predictions: np.ndarray) -> np.ndarray:
        return predictions.argmax(1).astype(np.int64)

    def export(self, value: np.ndarray) -> tuple[dict[str, Image.Image], Any]:
        numbers, colours = Image.fromarray(value.astype(np.uint8)), Image.fromarray(self.palette[value])
        return {"": numbers, "_colour": colours}, None

    def preview(self, prediction: np.ndarray) -> Image.Image:
        return Image.fromarray(self.palette[prediction.argmax(0)])
