"""The interface of a modality: encoding into the shared space Z, head, likelihood, files and previews."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn


class Modality(nn.Module):
    """Base class of every modality; `mmdiff.modalities.KINDS` registers the subclasses.

    Z has shape (channels, h, w), h = w = image_size / patch_size, and every modality owns
    ``z_channels`` of its channels. A *dense* modality has a value per pixel and its head reads the
    backbone's pixel features; any other is global: its head reads one token of its own.

    Attributes:
        shape: shape of one data-space value.
        z_channels: channels of Z that belong to this modality.
        head_channels: outputs of its head, per position if dense, else in total.
        stride, head_stride: of a dense modality, pixels a side of one position of its encoding (before it is
            folded into patches) and of its head's output.
        classes: names of the classes of a categorical modality, else empty.
        lead: by how much the model decides it earlier than a modality without a lead, in units of the
            anchor's run; None if the model has no leads.
    """

    kind: ClassVar[str]
    dense: ClassVar[bool]
    drawable: ClassVar[bool] = False  # whether a prediction is a whole distribution, to `draw` from
    takes_text: ClassVar[bool] = False  # whether an embedder turns texts and photos into its values
    frozen_encoder: ClassVar[bool] = False  # whether `encode` and `predict` run a network that is not trained
    photographic: ClassVar[bool] = False  # whether training may change its light (`data.light`)

    name: str
    shape: tuple[int, ...]
    z_channels: int
    head_channels: int
    classes: tuple[str, ...] = ()
    lead: float | None = None
    stride: int = 1
    head_stride: int = 1

    def __init__(self, name: str, image_size: int, patch_size: int) -> None:
        super().__init__()
        self.name = name
        self.image_size = image_size
        self.patch_size = patch_size
        self.grid = image_size // patch_size

    @property
    def form(self) -> str:
        """How a value is shown and saved: as a "picture", a "class_map", a "class" or a "vector"."""
        if self.dense:
            return "class_map" if self.classes else "picture"
        return "class" if self.classes else "vector"

    def encode(self, x: Tensor) -> Tensor:
        """E_i: data (B, *shape) -> its channels of Z (B, z_channels, h, w), unit RMS or bounded by 1."""
        raise NotImplementedError

    def predict(self, raw: Tensor) -> Tensor:
        """Head output -> data-space values (B, *shape); probabilities (B, K, *shape) for K classes."""
        raise NotImplementedError

    def expected_encoding(self, raw: Tensor) -> Tensor:
        """Head output -> estimate of E[E_i(x_i) | z_t] (B, z_channels, h, w)."""
        raise NotImplementedError

    def decode(self, z: Tensor) -> Tensor | None:
        """Channels of Z (B, z_channels, h, w) -> the data (B, *shape) that they show, undoing `encode`.

        They may be noisy: it is how the state of a dense modality is seen. None if there is no way back.
        """
        return None

    def as_prediction(self, x: Tensor) -> Tensor:
        """Known values (B, *shape) in the form of `predict`: one-hot for classes, else as they are."""
        return x

    def draw(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        """Values (B, *shape) drawn from predicted distributions by uniform numbers (B,) in [0, 1).

        For `drawable` modalities only: dense predictions are of single pixels, not of all jointly.
        """
        raise NotImplementedError

    def store(self, cell: Any, size: int) -> np.ndarray | None:
        """A cell of a data set -> its compact form in memory, None if the example lacks this modality.

        Dense modalities are stored as (..., size, size), which may be larger than the image for crops. Raises
        ValueError if the cell cannot be read.
        """
        raise NotImplementedError

    def from_stored(self, stored: Tensor) -> Tensor:
        """A batch in compact form -> data-space values (B, *shape)."""
        raise NotImplementedError

    def made_up(self, rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
        """A random picture that `store` reads, for dry runs of modalities of the form "picture".

        It has ``size`` (height, width), or the model's by default: there it is the `export` of a prediction.
        """
        side = self.image_size // self.head_stride
        noise = rng.standard_normal((1, self.head_channels, side, side), np.float32)
        value = self.present(self.predict(torch.from_numpy(noise)).numpy())[0]
        return next(iter(self.export(value)[0].values()))

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        """Training loss of each example, averaged over its dimensions: (B,)."""
        raise NotImplementedError

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p(x_i | z_t) of each example in nats, summed over its dimensions: (B,)."""
        raise NotImplementedError

    def load_pretrained(self, folder: Path) -> None:
        """Load frozen weights, such as an autoencoder's, from ``folder``, which holds all checkpoints.

        Raises ValueError if they are missing.
        """

    def in_bfloat16(self) -> Modality:
        """This modality, or where a network decodes its predictions a copy that decodes in bfloat16."""
        return self

    def attach(self, embedder: Any) -> None:
        """Set the checkpoint's CLIP-style embedder, which modalities that `takes_text` need."""

    def parse(self, value: Any) -> Tensor:
        """A user's input -> one data-space value of `shape`. Raises ValueError that says how to mend it."""
        raise NotImplementedError

    def present(self, predictions: np.ndarray) -> Any:
        """A batch of final predictions (B, ...) as `Output` returns them; by default as they are."""
        return predictions

    def export(self, value: Any) -> tuple[dict[str, Image.Image], Any]:
        """One presented value for files: pictures by suffix of the file name, and a JSON value or None."""
        raise NotImplementedError

    def preview(self, prediction: np.ndarray) -> Image.Image | None:
        """One prediction as a picture, or None if it is better shown in numbers."""
        return None


def spread(code: Tensor, grid: int) -> Tensor:
    """The same code on every token: (B, C) -> (B, C, grid, grid).

    All tokens are read by one linear map, which can read only a code that is the same everywhere.
    """
    return code[:, :, None, None].expand(-1, -1, grid, grid)


def checked_positive(name: str, option: str, value: float, most: float = 1e6) -> Any:
    """The same number. Raises ValueError unless it is above 0 and at most `most`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise ValueError(f"{name}: {option} is {value!r}; give a number above 0 and up to {most:g}.")
    return value


MOST_CLASSES = 4096  # their codes make a square matrix


def checked_classes(name: str, classes: Sequence[str]) -> tuple[str, ...]:
    """The names of two or more different classes. Raises ValueError for anything else."""
    listed = isinstance(classes, (list, tuple)) and all(isinstance(c, str) and c.strip() for c in classes)
    if not listed or len({_composed(c) for c in classes}) < max(2, len(classes)):
        raise ValueError(f"{name}: needs two or more different classes, but got {str(classes):.200}.")
    if len(classes) > MOST_CLASSES:
        raise ValueError(f"{name}: has {len(classes):,} classes; at most {MOST_CLASSES:,} are possible.")
    return tuple(classes)


def class_index(name: str, classes: Sequence[str]) -> int | None:
    """The number of the class called so; None if there is none.

    The exact name comes first, then the same one in another form of Unicode, with other spaces around it, in
    other case. Raises ValueError if several classes are called so then.
    """
    for form in (str, _composed, lambda n: _composed(n).strip(), lambda n: _composed(n.strip().casefold())):
        found = [index for index, one in enumerate(classes) if form(one) == form(name)]
        if len(found) > 1:
            names = ", ".join(repr(classes[index]) for index in found)
            raise ValueError(f"{name!r} could be any of the classes {names}; write it exactly so.")
        if found:
            return found[0]
    return None


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def class_codes(num_classes: int) -> Tensor:
    """Equidistant codes of classes, (K, C), with entries +-1: of unit RMS, and exact in half precision.

    They are rows of Sylvester's Hadamard matrix without its constant column, the corners of a simplex.
    """
    size = 1 << max(1, (num_classes - 1).bit_length())
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    return matrix[:num_classes, 1:].clone()


def palette(num_classes: int) -> np.ndarray:
    """Well separated colours for class maps, (K, 3) uint8; the first, of background or void, is dark."""
    hues = (np.arange(num_classes) * 0.61803398875 + 0.55) % 1.0
    swatches = [Image.new("HSV", (1, 1), (int(h * 255), 150, 225)).convert("RGB") for h in hues]
    table = np.array([swatch.getpixel((0, 0)) for swatch in swatches], dtype=np.uint8)
    table[0] = (38, 42, 51)
    return table
