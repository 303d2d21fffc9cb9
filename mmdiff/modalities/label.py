"""Class labels: one class per example, categorical likelihood."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmdiff.modalities.base import Modality, checked_classes, class_codes, class_index, spread

UNKNOWN_CLASS = -1  # in data sets: this example has no label


class LabelModality(Modality):
    """A class index; Z holds the code of the class, the same on every token."""

    kind = "label"
    dense = False
    drawable = True

    def __init__(self, name: str, image_size: int, patch_size: int, classes: Sequence[str]) -> None:
        super().__init__(name, image_size, patch_size)
        self.classes = checked_classes(name, classes)
        self.shape = ()
        self.register_buffer("codes", class_codes(len(classes)))
        self.z_channels = self.codes.shape[1]
        self.head_channels = len(classes)

    def encode(self, x: Tensor) -> Tensor:
        return spread(self.codes[x], self.grid)

    def predict(self, raw: Tensor) -> Tensor:
        return raw.float().softmax(1)

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return spread(self.predict(raw) @ self.codes, self.grid)

    def as_prediction(self, x: Tensor) -> Tensor:
        return F.one_hot(x, len(self.classes)).float()

    def draw(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        below = prediction.cumsum(1) <= uniform[:, None]
        return below.sum(1).clamp(max=len(self.classes) - 1)  # the sum of all may be rounded to below 1

    def store(self, cell: Any, size: int) -> np.ndarray | None:
        return None if cell is None or cell == UNKNOWN_CLASS else np.asarray(self.parse(cell), np.int32)

    def from_stored(self, stored: Tensor) -> Tensor:
        return stored.long()

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        return F.cross_entropy(raw.float(), x, reduction="none")

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return self.loss(raw, x)

    def parse(self, value: Any) -> Tensor:
        if isinstance(value, str):
            index = class_index(value, self.classes)
            if index is None:
                raise ValueError(
                    f"{self.name}: no class is called {value!r}; the classes are {', '.join(self.classes)}."
                )
            return torch.tensor(index)
        try:
            if getattr(value, "dtype", type(value)) in (bool, np.bool_, torch.bool):
                raise TypeError  # True is an index for Python, but no class number
            index = operator.index(value)
        except TypeError:
            raise ValueError(f"{self.name}: expected a class name or number, but got {value!r}.") from None
        if not 0 <= index < len(self.classes):
            raise ValueError(
                f"{self.name}: class {index} does not exist; the {len(self.classes)} classes are numbered "
                f"0 to {len(self.classes) - 1}."
            )
        return torch.tensor(index)

    def export(self, value: np.ndarray) -> tuple[dict[str, Image.Image], Any]:
        return {}, {self.classes[i]: float(value[i]) for i in np.argsort(-value)[:5]}
