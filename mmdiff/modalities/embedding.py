"""CLIP-style embeddings: unit vectors, a likelihood on the sphere."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from mmdiff.images import open_photo, square, to_numpy, to_tensor
from mmdiff.modalities.base import Modality, checked_positive, spread

PICTURE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".avif", ".heic")
MOST_NUMBERS = 4096  # of a vector, whose rotation is a square matrix


def vmf_log_normaliser(dim: int, kappa: float) -> float:
    """log C of the von Mises-Fisher density C exp(kappa mu.x) on the unit sphere of ``dim`` dimensions."""
    order = dim / 2 - 1
    # The power series of the Bessel function I_order, in logarithms: at order 500 I itself underflows.
    m = torch.arange(int(kappa) + 200, dtype=torch.float64)
    series = (2 * m + order) * math.log(kappa / 2) - torch.lgamma(m + 1) - torch.lgamma(m + order + 1)
    return order * math.log(kappa) - dim / 2 * math.log(2 * math.pi) - series.logsumexp(0).item()


class EmbeddingModality(Modality):
    """A unit vector of D dimensions; Z holds a fixed rotation of it, the same on every token.

    The head's output v estimates E[x | z_t], which is shorter than 1 while z_t is noisy. Its direction is
    the prediction; the likelihood is von Mises-Fisher with concentration ``kappa`` around it.
    """

    kind = "embedding"
    dense = False
    takes_text = True

    def __init__(self, name: str, image_size: int, patch_size: int, dim: int, kappa: float = 50.0) -> None:
        super().__init__(name, image_size, patch_size)
        if not isinstance(dim, int) or not 2 <= dim <= MOST_NUMBERS:
            raise ValueError(f"{name}: dim is {dim!r}; give a whole number from 2 to {MOST_NUMBERS}.")
        self.shape = (dim,)
        self.z_channels = self.head_channels = dim
        self.kappa = checked_positive(name, "kappa", kappa)
        self._embedder: list[Any] = [None]
        generator = torch.Generator().manual_seed(0)
        rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
        self.register_buffer("projection", (rotation * math.sqrt(dim)).float())  # unit RMS in Z

    def encode(self, x: Tensor) -> Tensor:
        return spread(x @ self.projection, self.grid)

    def predict(self, raw: Tensor) -> Tensor:
        return F.normalize(raw.float(), dim=1)

    def expected_encoding(self, raw: Tensor) -> Tensor:
        return self.encode(raw.float())

    def store(self, cell: Any, size: int) -> np.ndarray | None:
        if cell is None:
            return None
        vector = np.asarray(cell, np.float16)
        if vector.shape != self.shape:
            raise ValueError(f"expected {self.shape[0]} numbers, but got shape {vector.shape}.")
        return vector

    def from_stored(self, stored: Tensor) -> Tensor:
        return F.normalize(stored.float(), dim=-1)

    def loss(self, raw: Tensor, x: Tensor) -> Tensor:
        # The squared error, unlike the cosine alone, also teaches the length of E[x | z_t].
        return (raw.float() - x).square().sum(1)

    def nll(self, raw: Tensor, x: Tensor) -> Tensor:
        return -vmf_log_normaliser(self.shape[0], self.kappa) - self.kappa * (self.predict(raw) * x).sum(1)

    def attach(self, embedder: Any) -> None:
        if embedder is not None and embedder.dim != self.shape[0]:
            raise ValueError(
                f"{self.name}: the embedder makes {embedder.dim} numbers, but the model was trained on "
                f"{self.shape[0]}; use the embedder that the checkpoint came with."
            )
        self._embedder = [embedder]  # in a list, so that it does not become part of this module

    def _embed(self, value: Any) -> Tensor:
        if self._embedder[0] is None:
            raise ValueError(
                f"{self.name}: this checkpoint comes without an embedder, so it takes a vector of "
                f"{self.shape[0]} numbers only, not a text or a photo."
            )
        if isinstance(value, str):
            if not value.strip():
                raise ValueError(f"{self.name}: the text is empty; describe the picture in a few words.")
            if value.strip().lower().endswith(PICTURE_ENDINGS):
                raise ValueError(
                    f"{self.name}: {value!r} is taken for a text, but looks like the path of a picture; give "
                    "a pathlib.Path, or the picture itself."
                )
            return self._embedder[0].embed_texts([value])[0].cpu()
        photo = to_tensor(square(open_photo(value), self.image_size))
        return self._embedder[0].embed_images(photo[None])[0].cpu()

    def parse(self, value: Any) -> Tensor:
        if isinstance(value, Tensor):
            value = to_numpy(value)
        picture = isinstance(value, np.ndarray) and value.ndim > 1 and value.dtype == np.uint8
        if picture or isinstance(value, (str, Image.Image, Path, bytes)):
            return self._embed(value)
        try:
            vector = torch.as_tensor(np.array(value, dtype=np.float32)).flatten()
        except (TypeError, ValueError, RuntimeError):
            raise ValueError(
                f"{self.name}: expected a text, a photo or a vector, but got {type(value).__name__}."
            ) from None
        if vector.shape != self.shape or not 1e-6 < vector.norm() < math.inf:
            raise ValueError(
                f"{self.name}: expected {self.shape[0]} finite numbers, not all zero, but got shape "
                f"{tuple(np.shape(value))}; make one with embed_text or embed_image."
            )
        return F.normalize(vector, dim=0)

    def export(self, value: np.ndarray) -> tuple[dict[str, Image.Image], Any]:
        return {}, value.tolist()
