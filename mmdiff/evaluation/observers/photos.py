"""Annotated photos that observers are trained on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mmdiff.config import DataConfig
from mmdiff.data.parquet import read_parquet
from mmdiff.modalities import Modality
from mmdiff.modalities.image import ImageModality


@dataclass(frozen=True)
class Photos:
    """N photos with classes: images (N, 3, H, W) uint8, targets (N,) labels or (N, H, W) masks."""

    images: Tensor
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) float32 in [-1, 1] and targets (B, ...) long."""
        return self.images[rows].to(device).float() / 127.5 - 1, self.targets[rows].to(device).long()


def read_annotated(path: str | Path, target: Modality) -> Photos:
    """The photos of a Parquet file that have the target. Raises ValueError if there are none."""
    image = ImageModality("image", target.image_size, target.patch_size)
    examples = read_parquet(path, [image, target], DataConfig())
    rows = torch.empty(0)
    if {"image", target.name} <= set(examples.stored):
        rows = (examples.present["image"] & examples.present[target.name]).nonzero()[:, 0]
    if not len(rows):
        raise ValueError(
            f"{path} has no photo with a {target.name}; the columns image and {target.name} are needed."
        )
    return Photos(examples.stored["image"][rows], examples.stored[target.name][rows])
