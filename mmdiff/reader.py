"""The reader: convolutions over the pixels of the photo that are given, from which the denoiser sees what is
on it and what surrounds a hole.

Encodings in Z say what a photo is made of, not what it shows, and those of a photo with holes say little of
what lies beside them. The reader depends on what is given alone, neither on z_t nor on t, so that sampling
asks it once and every step uses its answer.
"""

from __future__ import annotations

from torch import Tensor, nn

from mmdiff.convolutions import ConvBlock


class Reader(nn.Module):
    """Known pixels (B, 4, H, W) -> features of the cells (B, width, H / cell, W / cell).

    The four channels are RGB in [-1, 1], zero where nothing is given, and the known map of 0 and 1. Where no
    pixel of a photo is known its features are zero. Every halving of the size doubles the channels; the
    residual blocks stand at a quarter of the photo's size and below, where most of what they cost is spent on
    channels.

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
        layers: list[nn.Module] = []
        for k, (inputs, outputs) in enumerate(zip([4, *widths], widths, strict=False)):
            layers.append(nn.Conv2d(inputs, outputs, 3, 2, padding=1))
            if k or halvings == 1:
                layers += [ConvBlock(outputs) for _ in range(depth)]
            else:
                layers.append(nn.SiLU())
        self.layers = nn.Sequential(*layers, nn.GroupNorm(ConvBlock.GROUPS, width), nn.SiLU())

    def forward(self, pixels: Tensor) -> Tensor:
        features = self.layers(pixels)
        return features * (pixels[:, 3:].amax((2, 3), keepdim=True) > 0)


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
