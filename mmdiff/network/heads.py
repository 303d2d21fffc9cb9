"""Heads D_i: features of the denoiser -> what a modality's `predict` reads its prediction from."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class DenseHead(nn.Module):
    """Features of cells (B, r, h, w) -> (B, channels, h * fold, w * fold)."""

    def __init__(self, features: int, channels: int, fold: int) -> None:
        super().__init__()
        self.fold = fold
        self.conv = nn.Conv2d(features, fold**2 * channels, 3, padding=1)
        nn.init.normal_(self.conv.weight, std=1e-3)
        nn.init.zeros_(self.conv.bias)

    def forward(self, cells: Tensor) -> Tensor:
        return F.pixel_shuffle(self.conv(cells), self.fold)


class GlobalHead(nn.Module):
    """A modality's own token (B, width) -> (B, channels)."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, channels))
        nn.init.normal_(self.mlp[2].weight, std=1e-3)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, token: Tensor) -> Tensor:
        return self.mlp(token)


class DetailHead(nn.Module):
    """Features of cells (B, r, h, w) and of what was read finer -> what to add to a `DenseHead`'s output.

    A linear map of a cell's features draws edges as coarse as cells; this one has another look at the photo.
    It adds nothing at first.

    Args:
        features: r. detail: channels of the finer features.
        cell_fold: finer features along a side of a cell. fold: outputs along a side of a finer feature.
    """

    def __init__(self, features: int, detail: int, channels: int, cell_fold: int, fold: int) -> None:
        super().__init__()
        self.detail, self.cell_fold, self.fold = detail, cell_fold, fold
        self.expand = nn.Conv2d(features, cell_fold**2 * detail, 1)
        self.mix = nn.Conv2d(2 * detail, detail, 3, padding=1)
        self.leave = nn.Conv2d(detail, fold**2 * channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, cells: Tensor, detail: Tensor | None) -> Tensor:
        """cells (B, r, h, w), detail (B, detail, h * cell_fold, w * cell_fold); None: nothing was read."""
        coarse = F.pixel_shuffle(self.expand(cells), self.cell_fold)
        detail = torch.zeros_like(coarse) if detail is None else detail
        hidden = F.silu(self.mix(torch.cat([coarse, detail], dim=1)))
        return F.pixel_shuffle(self.leave(hidden), self.fold)
