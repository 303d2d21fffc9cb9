"""Augmentation: what a good generated picture may differ in from photos. Place, size, sharpness, colour."""

import torch
from torch import Tensor
from torch.nn import functional as F


def _uniform(generator: torch.Generator, low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, generator=generator)


def draw_moves(batch: int, generator: torch.Generator, reach: float = 1.0) -> Tensor:
    """Random flip, rotation up to 9 degrees, size times 0.9 to 1.1 and shift up to 5 % of the picture.

    ``reach`` multiplies all but the flip. Returns (B, 2, 3), from output to input coordinates, as
    `torch.nn.functional.affine_grid` takes them.
    """
    angle = reach * _uniform(generator, -0.16, 0.16, batch)
    scale = 1 + reach * _uniform(generator, -0.1, 0.1, batch)
    mirror = 1 - 2 * torch.randint(0, 2, (batch,), generator=generator)
    shift = reach * _uniform(generator, -0.1, 0.1, batch, 2)  # the grid's coordinates span [-1, 1]
    return torch.stack(
        [
            torch.stack([mirror * scale * angle.cos(), -scale * angle.sin(), shift[:, 0]], 1),
            torch.stack([mirror * scale * angle.sin(), scale * angle.cos(), shift[:, 1]], 1),
        ],
        1,
    )


def moved(images: Tensor, moves: Tensor, mode: str = "bilinear") -> Tensor:
    """(B, C, H, W) after the moves (B, 2, 3); outside, the border is repeated."""
    grid = F.affine_grid(moves.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode=mode, padding_mode="border", align_corners=False)


def blur(images: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each picture (B, C, H, W) by its own standard deviation (B,) in pixels; 0 is none."""
    batch, channels, height, width = images.shape
    offsets = torch.arange(-4, 5, device=images.device)
    kernel = torch.exp(-(offsets**2) / (2 * sigma.to(images.device)[:, None].clamp(min=1e-3) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)  # (B * C, 9)
    flat = F.pad(images, (4, 4, 4, 4), mode="replicate").reshape(1, batch * channels, height + 8, width + 8)
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=batch * channels)
    return F.conv2d(flat, kernel[:, None, :, None], groups=batch * channels).view_as(images)


def roughened(images: Tensor, generator: torch.Generator, colour: float = 1.0) -> Tensor:
    """Blur of half the pictures, slight changes of light and colour (times ``colour``), grain."""
    batch, device = len(images), images.device
    blurred = torch.rand(batch, generator=generator) < 0.5
    images = blur(images, blurred * _uniform(generator, 0.3, 1.4, batch))
    gain = 1 + colour * _uniform(generator, -0.08, 0.08, batch, 1, 1, 1)
    tint = 1 + colour * _uniform(generator, -0.03, 0.03, batch, 3, 1, 1)
    lift = colour * _uniform(generator, -0.06, 0.06, batch, 1, 1, 1)
    grain = _uniform(generator, 0, 0.03, batch, 1, 1, 1) * torch.randn(images.shape, generator=generator)
    return (images * (gain * tint).to(device) + lift.to(device) + grain.to(device)).clamp(-1, 1)
