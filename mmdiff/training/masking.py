"""What every training example shows: which modalities are given, and which pixels of the photo are known."""

from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor

from mmdiff.config import TaskConfig
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN


@dataclass(frozen=True)
class Draw:
    """A batch with everything random about one training step, but the times.

    Attributes:
        x: name -> (B, *shape) values. present: (B, N) bool, which modalities each example has.
        flags: (B, N) long of `UNKNOWN`, `KNOWN`, `ABSENT`. known: (B, 1, H, W) float, 1 at known pixels.
        noise: (B, *Z), standard normal.
    """

    x: dict[str, Tensor]
    present: Tensor
    flags: Tensor
    known: Tensor
    noise: Tensor

    @property
    def supervised(self) -> Tensor:
        """(B, N) bool, which predictions have a loss: of unknown modalities that the example has."""
        return (self.flags == UNKNOWN) & self.present

    def take(self, rows: slice) -> Self:
        return type(self)(**{field.name: _taken(getattr(self, field.name), rows) for field in fields(self)})

    def split(self, parts: int) -> list[Self]:
        """In ``parts`` of the same size."""
        size = len(self.flags) // parts
        return [self.take(slice(k * size, (k + 1) * size)) for k in range(parts)]


def _taken(value: Any, rows: slice) -> Any:
    return {n: v[rows] for n, v in value.items()} if isinstance(value, dict) else value[rows]


def chance(probability: float, batch: int, generator: torch.Generator) -> Tensor:
    return torch.rand(batch, generator=generator, device=generator.device) < probability


def per_pixel(rows: Tensor) -> Tensor:
    return rows[:, None, None, None]


def draw_only_reading(flags: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Examples (B,) of `TaskConfig.only_reading`; in their ``flags`` only the image becomes known."""
    if not share:
        return torch.zeros(len(flags), dtype=torch.bool, device=flags.device)
    reading = chance(share, len(flags), generator)
    flags[:, 0] = torch.where(reading, KNOWN, flags[:, 0])
    flags[:, 1:] = torch.where(reading[:, None] & (flags[:, 1:] == KNOWN), UNKNOWN, flags[:, 1:])
    return reading


def draw_flags(present: Tensor, config: TaskConfig, generator: torch.Generator, holes: Tensor) -> Tensor:
    """Flags of a training batch, such that every subset of the modalities occurs as given.

    Args:
        present: (B, N) bool, which modalities each example has; the first is the anchor.
        holes: (B,) bool, examples whose image has holes if it is given, and therefore counts as unknown.

    Returns:
        (B, N) long of `UNKNOWN`, `KNOWN`, `ABSENT`. The anchor is never absent. A modality that an example
        lacks is never known, and unknown only with `TaskConfig.ask_for_lacking`.
    """
    shape, device = present.shape, present.device
    draws = torch.rand(3, *shape, generator=generator, device=device)
    joint = draws[0, :, :1] < config.joint
    given = (draws[1] < config.given) & ~joint
    given[:, 0] &= ~holes
    absent = (draws[2] < config.absent) & ~given
    absent[:, 0] = False
    flags = torch.full(shape, UNKNOWN, device=device)
    flags[given] = KNOWN
    flags[absent | ~present] = ABSENT
    if config.ask_for_lacking:
        lacking = ~present & (torch.rand(shape, generator=generator, device=device) >= config.absent)
        flags[lacking] = UNKNOWN
    return flags


def draw_known_pixels(batch: int, size: int, generator: torch.Generator) -> Tensor:
    """Random inpainting masks (B, 1, H, W) float, 1 where a pixel is known.

    One half are blocks on a grid of 4, 8, 16 or 32 cells a side, a random share of them known. The other half
    are one random box, mostly hidden (a hole), sometimes the only known part (outpainting).
    """
    device = generator.device
    cells = torch.tensor([4, 8, 16, 32], device=device)
    draws = torch.rand(batch, 8, generator=generator, device=device)
    noise = torch.rand(batch, 32, 32, generator=generator, device=device)
    side = cells[(draws[:, 0] * 4).long().clamp(max=3)]  # (B,), cells along a side
    axis = torch.arange(size, device=device)
    index = (axis[None] * side[:, None]) // size  # (B, size), cell of each pixel
    rows = noise.gather(1, index[:, :, None].expand(-1, -1, 32))
    values = rows.gather(2, index[:, None, :].expand(-1, size, -1))  # (B, size, size)
    blocks = values > 0.05 + 0.9 * draws[:, 1, None, None]

    extent = (0.2 + 0.6 * draws[:, 2:4]) * size
    start = draws[:, 4:6] * (size - extent)
    inside = (axis >= start[..., None]) & (axis < (start + extent)[..., None])  # (B, 2, size)
    box = inside[:, 0, :, None] & inside[:, 1, None, :]
    box = box ^ (draws[:, 6] < 0.7)[:, None, None]
    known = torch.where((draws[:, 7] < 0.5)[:, None, None], blocks, box)
    return known[:, None].float()
