"""A head with a small U-Net of its own, for modalities that consist of shapes.

Shapes are decided under much noise, and a network that mostly learns photos gives them little of itself: from
a few thousand masks a transformer over patches makes blobs where convolutions at several sizes make wings,
since what they learn in one place holds in all (Ronneberger et al. 2015).
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmdiff.network.heads import DenseHead

GROUPS = 8  # of channels that are normalised together
WIDTHS = (1, 2, 3)  # times the channels of the finest size; each is half as fine as the one before
CONDITION = 2  # times these channels: numbers of the condition in here


class ResBlock(nn.Module):
    """x + two 3x3 convolutions of what is normalised; the second norm is modulated by the condition.

    It starts as the identity, or as a 1x1 convolution where the number of channels changes.
    """

    def __init__(self, entering: int, channels: int, condition: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(GROUPS, entering), nn.GroupNorm(GROUPS, channels)
        self.conv1 = nn.Conv2d(entering, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.modulate = nn.Linear(condition, 2 * channels)
        self.across = nn.Conv2d(entering, channels, 1) if entering != channels else nn.Identity()
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, entering, h, w), condition (B, C) -> (B, channels, h, w)."""
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, dim=1)
        hidden = self.norm2(self.conv1(F.silu(self.norm1(x))))
        return self.across(x) + self.conv2(F.silu(torch.addcmul(shift, hidden, 1 + scale)))


class SmallUNet(nn.Module):
    """Three sizes of cells, each half as fine as the one before. What it returns is zero at first.

    Args:
        entering, leaving: channels. width: channels of the finest size. condition: numbers of the condition.
    """

    def __init__(self, entering: int, leaving: int, width: int, condition: int) -> None:
        super().__init__()
        fine, middle, coarse = (times * width for times in WIDTHS)
        self.condition = nn.Linear(condition, CONDITION * width)
        self.enter = nn.Conv2d(entering, fine, 1)

        def block(before: int, after: int) -> ResBlock:
            return ResBlock(before, after, CONDITION * width)

        self.down = nn.ModuleList([block(fine, fine), block(fine, middle), block(middle, coarse)])
        self.bottom = block(coarse, coarse)
        self.up = nn.ModuleList(
            [block(2 * coarse, coarse), block(coarse + middle, middle), block(middle + fine, fine)]
        )
        self.leave = nn.Conv2d(fine, leaving, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, entering, h, w), condition (B, C) -> (B, leaving, h, w); h and w are multiples of 4."""
        condition = F.silu(self.condition(condition))
        x = self.enter(x)
        skips = []
        for size, block in enumerate(self.down):
            x = block(F.avg_pool2d(x, 2) if size else x, condition)
            skips.append(x)
        x = self.bottom(x, condition)
        for size, block in enumerate(self.up):
            x = F.interpolate(x, scale_factor=2.0, mode="nearest") if size else x
            x = block(torch.cat([x, skips.pop()], dim=1), condition)
        return self.leave(F.silu(x))


class ShapeHead(DenseHead):
    """A `DenseHead` of features to which a `SmallUNet` adds what it makes of them and of the blocks of z.

    Args:
        features: r. cells: channels of the blocks, cell by cell. condition: numbers of the condition.
        width: channels of the U-Net at its finest size.
    """

    def __init__(
        self, features: int, channels: int, fold: int, *, cells: int, condition: int, width: int
    ) -> None:
        super().__init__(features, channels, fold)
        self.shapes = SmallUNet(features + cells, features, width, condition)

    def forward(self, features: Tensor, cells: Tensor, condition: Tensor) -> Tensor:
        """(B, r, h, w), (B, cells, h, w) and (B, condition) -> (B, channels, h * fold, w * fold)."""
        seen = torch.cat([features, cells.to(features.dtype)], dim=1)
        return super().forward(features + self.shapes(seen, condition))
