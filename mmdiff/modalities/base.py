"""What a modality is: data in, a place in the shared space Z, a head back out, a likelihood, a preview."""

from __future__ import annotations

import io
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
        stride, head_stride: of a dense modality, pixels a side that a position of its encoding, unfolded from
            the patches, and of its head's output stand for.
        classes: names of the classes of a categorical modality, else empty.
    """

    kind: ClassVar[str]
    dense: ClassVar[bool]
    drawable: ClassVar[bool] = False  # whether a prediction is a whole distribution, to `draw` from
    takes_text: ClassVar[bool] = False  # whether an embedder turns texts and photos into its values

    name: str
    shape: tuple[int, ...]
    z_channels: int
    head_channels: int
    classes: tuple[str, ...] = ()
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

    # -- between data and the shared space ------------------------------------------------------

    def encode(self, x: Tensor) -> Tensor:
        """E_i: data (B, *shape) -> its channels of Z (B, z_channels, h, w), unit RMS or bounded by 1."""
        raise NotImplementedError

    def predict(self, raw: Tensor) -> Tensor:
        """Head output -> data-space prediction (probabilities for categorical modalities)."""
        raise NotImplementedError

    def expected_encoding(self, raw: Tensor) -> Tensor:
        """Head output -> estimate of E[E_i(x_i) | z_t] (B, z_channels, h, w)."""
        raise NotImplementedError

    def as_prediction(self, x: Tensor) -> Tensor:
        """A known value in the form in which `predict` returns a prediction (one-hot for classes)."""
        raise NotImplementedError

    def draw(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        """A value (B, *shape) from the distribution that each prediction is, by numbers (B,) in [0, 1).

        Only of what is `drawable`: a dense prediction says how each pixel is distributed, not all together.
        """
        raise NotImplementedError

    # -- between files and data ------------------------------------------------------------------

    def store(self, cell: Any, size: int) -> np.ndarray | None:
        """A cell of a data set -> its compact form in memory, None if this example lacks it.

        Dense modalities are stored as (..., size, size), which may be larger than the image for crops.
        """
        raise NotImplementedError

    def from_stored(self, stored: Tensor) -> Tensor:
        """A batch in compact form -> data-space values (B, *shape)."""
        raise NotImplementedError

    # -- likelihood ------------------------------------------------------------------------------

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        """Training loss of each example, averaged over its dimensions: (B,)."""
        raise NotImplementedError

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p(x_i | z_t) of each example in nats, summed over its dimensions: (B,)."""
        raise NotImplementedError

    # -- training -----------------------------------------------------------------------------------

    def load_pretrained(self, folder: Path) -> None:
        """Take what was trained before and stays as it is from ``folder``, that of all checkpoints.

        Raises ValueError if it is not there.
        """

    # -- people ------------------------------------------------------------------------------------

    def attach(self, embedder: Any) -> None:
        """Hand over the CLIP-style embedder of the checkpoint; only embeddings use it."""

    def parse(self, value: Any) -> Tensor:
        """What a user gave -> one data-space value of `shape`. Raises ValueError with the remedy."""
        raise NotImplementedError

    def present(self, predictions: np.ndarray) -> Any:
        """A batch of final predictions as `Output` returns them: (B, ...) numbers, if not overridden."""
        return predictions

    def export(self, value: Any) -> tuple[dict[str, Image.Image], Any]:
        """One presented value as files: pictures by suffix of their name, and a JSON value or None."""
        raise NotImplementedError

    def preview(self, prediction: np.ndarray) -> Image.Image | None:
        """One prediction as a picture, or None where numbers say more."""
        return None


def spread(code: Tensor, grid: int) -> Tensor:
    """The same code on every token: (B, C) -> (B, C, grid, grid).

    One linear map reads all tokens, so only a code that is the same everywhere can be read at all.
    """
    return code[:, :, None, None].expand(-1, -1, grid, grid)


def class_codes(num_classes: int) -> Tensor:
    """Equidistant codes of classes, entries +-1 and so unit RMS and exact in half precision: (K, C).

    Rows of Sylvester's Hadamard matrix without its constant column are the corners of a simplex.
    """
    size = 2
    while size < num_classes:
        size *= 2
    hadamard = torch.ones(1, 1)
    while hadamard.shape[0] < size:
        hadamard = torch.cat([torch.cat([hadamard, hadamard], 1), torch.cat([hadamard, -hadamard], 1)], 0)
    return hadamard[:num_classes, 1:].clone()


def palette(num_classes: int) -> np.ndarray:
    """Well separated colours for class maps, (K, 3) uint8; the first is dark, for background or void."""
    hues = (np.arange(num_classes) * 0.61803398875 + 0.55) % 1.0
    swatches = [Image.new("HSV", (1, 1), (int(h * 255), 150, 225)).convert("RGB") for h in hues]
    table = np.array([swatch.getpixel((0, 0)) for swatch in swatches], dtype=np.uint8)
    table[0] = (38, 42, 51)
    return table


def decode_cell(cell: Any) -> Image.Image:
    """An image cell of a Parquet file ({"bytes": ..., "path": ...}) or a PIL image -> PIL image."""
    if isinstance(cell, dict):
        cell = io.BytesIO(cell["bytes"]) if cell.get("bytes") else cell["path"]
    return open_image(cell, "picture")


def open_image(value: Any, what: str) -> Image.Image:
    """PIL image, array or path -> loaded PIL image, with a clear error for anything else."""
    if value is None:
        raise ValueError(f"no {what} was given; give a picture, an array or the path of a file.")
    if isinstance(value, np.ndarray):
        return _from_array(value, what)
    shown = repr(value) if isinstance(value, (str, Path)) else "what was given"
    try:
        image = value if isinstance(value, Image.Image) else Image.open(value)
        image.load()
    except FileNotFoundError:
        raise ValueError(f"no file at {shown}; give the path of an existing {what}.") from None
    except Exception:
        raise ValueError(f"{shown} could not be read as a {what}; give a PNG, JPEG or WebP file.") from None
    if 0 in image.size:
        raise ValueError(f"the {what} has no pixels ({image.width} x {image.height}); give another one.")
    return image


def _from_array(array: np.ndarray, what: str) -> Image.Image:
    channels = array.shape[2:] in ((), (3,), (4,))
    if array.ndim < 2 or not channels or array.size == 0 or array.dtype != np.uint8:
        raise ValueError(
            f"the {what} is an array of shape {array.shape} and type {array.dtype}; "
            "give (H, W, 3), (H, W, 4) or (H, W) of type uint8."
        )
    return Image.fromarray(array)
