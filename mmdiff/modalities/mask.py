"""Segmentation masks: a class per pixel, categorical likelihood, void pixels left out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmdiff.class_maps import VOID, read_class_map
from mmdiff.images import cell_source, read, to_numpy, warn
from mmdiff.modalities.base import Modality, checked_classes, class_codes, palette

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
        self.classes = checked_classes(name, classes)
        if len(classes) > MOST_CLASSES:
            raise ValueError(f"{name}: {len(classes)} classes do not fit into a byte; {MOST_CLASSES} do.")
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

    def decode(self, z: Tensor) -> Tensor:
        """The class of the nearest code of each pixel; they have one length, so it is the largest product."""
        coded = F.pixel_shuffle(z, self.patch_size // self.stride)
        classes = self._logits(torch.einsum("bchw,kc->bkhw", coded, self.codes)).argmax(1)
        return classes.repeat_interleave(self.stride, 1).repeat_interleave(self.stride, 2)

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
        return self._class_map(cell_source(cell), size).astype(np.uint8)

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
        indices = torch.from_numpy(self._class_map(value, self.image_size, square=True))
        if self.is_void[indices].all():
            raise ValueError(f"{self.name}: the mask is {VOID} everywhere and says nothing; leave it out.")
        return indices

    def _class_map(self, value: Any, size: int, square: bool = False) -> np.ndarray:
        """Class numbers (size, size) int64 of the central square, or of a mask that must be square.

        Raises ValueError if ``value`` is none, or of other classes.
        """
        if isinstance(value, Tensor):
            value = to_numpy(value)
        if isinstance(value, np.ndarray) and (value.ndim != 3 or value.dtype != np.uint8):
            mask, shape = self._checked_array(value), value.shape[::-1]
        else:
            mask = read(value, "mask")
            shape = mask.size
            warn(mask.notes)
        if square and shape[0] != shape[1]:
            raise ValueError(
                f"{self.name}: the mask is {shape[0]} x {shape[1]} pixels; give a square one, best {size} x "
                f"{size}, cut like the photo."
            )
        try:
            found = read_class_map(mask, self.classes, self.palette, size)
        except ValueError as error:
            raise ValueError(f"{self.name}: {error}") from None
        warn(found.notes)
        return found.cells

    def _checked_array(self, array: np.ndarray) -> np.ndarray:
        """The same class numbers. Raises ValueError if they cannot be any."""
        if array.size == 0 or array.dtype.kind not in "iub":
            raise ValueError(
                f"{self.name}: expected whole numbers, but got an array of shape {array.shape} and type "
                f"{array.dtype}."
            )
        if array.ndim != 2:
            raise ValueError(
                f"{self.name}: expected a map of class numbers (H, W), but got shape {array.shape}; give a "
                f"single-channel picture or array whose values are 0 to {len(self.classes) - 1}."
            )
        return array

    def present(self, predictions: np.ndarray) -> np.ndarray:
        return predictions.argmax(1).astype(np.int64)

    def export(self, value: np.ndarray) -> tuple[dict[str, Image.Image], Any]:
        numbers, colours = Image.fromarray(value.astype(np.uint8)), Image.fromarray(self.palette[value])
        return {"": numbers, "_colour": colours}, None

    def preview(self, prediction: np.ndarray) -> Image.Image:
        return Image.fromarray(self.palette[prediction.argmax(0)])
