"""The reader: convolutions over the pixels of the photo that are given, from which the denoiser sees what is
on it and what surrounds a hole.

Encodings in Z say what a photo is made of, not what it shows, and those of a photo with holes say little of
what lies beside them. The reader depends on what is given alone, neither on z_t nor on t, so that sampling
asks it once and every step uses its answer. What it has seen at a quarter of the photo's size is kept, too,
for modalities whose edges are finer than cells (the skips of a U-Net, Ronneberger et al. 2015).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.network.convolutions import ConvBlock

DETAIL = 4  # pixels a side of what the finer features are of


class Reader(nn.Module):
    """Known pixels (B, 4, H, W) -> features of the cells (B, channels, H / cell, W / cell), for `parts`.

    The four channels are RGB in [-1, 1], zero where nothing is given, and the known map of 0 and 1. Where no
    pixel of a photo is known its features are zero. Every halving of the size doubles the channels; the
    residual blocks stand at a quarter of the photo's size and below, where most of what they cost is spent on
    channels.

    Attributes:
        fold: finer features along a side of a cell; 1: cells are so small that there are none.
        detail: channels of the finer features, 0 if there are none.

    Args:
        cell: pixels a side of a cell, a power of two.
        width: channels of the features, a multiple of 8 * cell / 2.
        depth: residual blocks at each size.
    """

    def __init__(self, cell: int, width: int, depth: int) -> None:
        super().__init__()
        halvings = cell.bit_length() - 1
        if 2**halvings != cell or width % (ConvBlock.GROUPS * cell // 2):
            raise ValueError(
                f"a reader of cells of {cell} pixels cannot be {width} wide; the strides of the modalities "
                f"must be powers of two and refiner_width a multiple of {ConvBlock.GROUPS * cell // 2}."
            )
        widths = [width >> (halvings - 1 - k) for k in range(halvings)]
        self.width, self.fold = width, max(cell // DETAIL, 1)
        self.detail = widths[1] if self.fold > 1 else 0
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(zip([4, *widths], widths, strict=False)):
            layers.append(nn.Conv2d(inputs, outputs, 3, 2, padding=1))
            if k or halvings == 1:
                layers += [ConvBlock(outputs) for _ in range(depth)]
            else:
                layers.append(nn.SiLU())
        self.layers = nn.Sequential(*layers, nn.GroupNorm(ConvBlock.GROUPS, width), nn.SiLU())
        self.fine = 2 + depth + 1  # layers until the blocks at a quarter of the size are done

    def forward(self, pixels: Tensor) -> Tensor:
        fine = self.layers[: self.fine](pixels)
        features = self.layers[self.fine :](fine)
        if self.detail:
            features = torch.cat([features, F.pixel_unshuffle(fine, self.fold)], dim=1)
        return features * (pixels[:, 3:].amax((2, 3), keepdim=True) > 0)

    def parts(self, read: Tensor) -> tuple[Tensor, Tensor | None]:
        """What it returned -> (B, width, h, w) of the cells, and (B, detail, h * fold, w * fold) or None."""
        if not self.detail:
            return read, None
        return read[:, : self.width], F.pixel_shuffle(read[:, self.width :], self.fold)


class Readings(nn.Module):
    """Where the reader's features, refiner_width many, enter the denoiser; they add nothing at first."""

    def __init__(self, refiner_width: int, width: int, fold: int) -> None:
        super().__init__()
        self.tokens = nn.Conv2d(refiner_width, width, fold, stride=fold, bias=False)
        self.cells = nn.Conv2d(refiner_width, refiner_width, 1, bias=False)
        self.pooled = nn.Linear(refiner_width, width, bias=False)
        for layer in (self.tokens, self.cells, self.pooled):
            nn.init.zeros_(layer.weight)

    def of_tokens(self, read: Tensor) -> Tensor:
        """(B, C, h * fold, w * fold) -> (B, h * w, width)."""
        return self.tokens(read).flatten(2).transpose(1, 2)

    def of_all(self, read: Tensor) -> Tensor:
        """(B, C, h * fold, w * fold) -> (B, width)."""
        return self.pooled(read.mean((2, 3)))
