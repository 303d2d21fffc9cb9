"""The convolutions of the denoiser: the stem ahead of the tokens, the refiner behind them, and the reader.

The reader looks at the known pixels of the photo. Encodings in Z say what a photo is made of, not what it
shows, and those of a photo with holes say little of what lies beside them. The reader depends on the given
photo alone, neither on z_t nor on t, so that sampling computes its features once for all steps. Those at
a quarter of the photo's size are kept, too, for modalities whose edges are finer than cells (the skips of a
U-Net, Ronneberger et al. 2015).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

DETAIL = 4  # pixels a side of a position of the reader's finer features


class ConvBlock(nn.Module):
    """x + two 3x3 convolutions, each of what is normalised in groups: (B, width, h, w) -> the same shape."""

    GROUPS = 8

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(self.GROUPS, width), nn.GroupNorm(self.GROUPS, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        return x + self.conv2(F.silu(self.norm2(hidden)))


class Stem(nn.Module):
    """Convolutions over cells smaller than the patches. They add to the tokens, nothing at the start.

    A transformer alone needs far more pictures to learn to see than convolutions do (Xiao et al. 2021).
    """

    def __init__(self, width: int, fold: int, cell_channels: int, stem_width: int, depth: int) -> None:
        super().__init__()
        self.enter = nn.Conv2d(cell_channels, stem_width, 3, padding=1)
        self.modulate = nn.Linear(width, 2 * stem_width)
        self.blocks = nn.ModuleList(ConvBlock(stem_width) for _ in range(depth))
        self.leave = nn.Conv2d(stem_width, width, fold, stride=fold)

    def forward(self, cells: Tensor, condition: Tensor) -> Tensor:
        """cells (B, C, h * fold, w * fold), condition (B, width) -> tokens (B, h * w, width)."""
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        x = self.enter(cells) * (1 + scale) + shift
        for block in self.blocks:
            x = block(x)
        return self.leave(F.silu(x)).flatten(2).transpose(1, 2)


class Refiner(nn.Module):
    """Convolutions over cells smaller than the patches, which join the patches and restore fine detail.

    They see the patch features, and z_t, what is given and the known map cell by cell.
    """

    def __init__(self, width: int, fold: int, cell_channels: int, refiner_width: int) -> None:
        super().__init__()
        self.fold = fold
        self.expand = nn.Linear(width, refiner_width * self.fold**2)
        self.enter = nn.Conv2d(refiner_width + cell_channels, refiner_width, 3, padding=1)
        self.middle = nn.Conv2d(refiner_width, refiner_width, 3, padding=1)
        self.leave = nn.Conv2d(refiner_width, refiner_width, 3, padding=1)
        self.modulate = nn.Linear(width, 2 * refiner_width)

    def forward(self, tokens: Tensor, cells: Tensor, condition: Tensor, read: Tensor | None) -> Tensor:
        """Features of the cells (B, r, h * fold, w * fold).

        tokens (B, h, w, width), cells (B, C, h * fold, w * fold), condition (B, width); read, of a reader,
        (B, r, h * fold, w * fold).
        """
        features = self.expand(tokens).permute(0, 3, 1, 2)
        features = F.pixel_shuffle(features, self.fold)  # (B, r, h * fold, w * fold)
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        if read is not None:
            features = features + read
        entered = self.enter(torch.cat([features, cells], dim=1))
        hidden = F.silu(entered * (1 + scale) + shift)
        return features + self.leave(F.silu(hidden + self.middle(hidden)))


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
