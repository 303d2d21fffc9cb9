"""Tasks: which modalities are given and which are wanted; and the mixture of tasks seen in training."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmdiff.config import TaskConfig
from mmdiff.network.conditioning import ABSENT, KNOWN, UNKNOWN


def draw_flags(
    present: Tensor,
    config: TaskConfig,
    generator: torch.Generator,
    anchor_holes: Tensor,
    names: Sequence[str] = (),
) -> Tensor:
    """Flags of a training batch, so that every subset of the modalities is seen as given.

    Args:
        present: (B, N) bool, which modalities each example has; the first is the anchor.
        anchor_holes: (B,) bool, examples whose image, if given, has holes and so stays unknown.
        names: of the N modalities, which `TaskConfig.always` and `TaskConfig.never` name.

    Returns:
        (B, N) long of `UNKNOWN`, `KNOWN`, `ABSENT`. The anchor is never absent, what an example lacks never
        known, and unknown only with `TaskConfig.ask_for_lacking`.
    """
    shape, device = present.shape, present.device
    draws = torch.rand(3, *shape, generator=generator, device=device)
    joint = draws[0, :, :1] < config.joint
    given = (draws[1] < config.given) & ~joint
    for i, name in enumerate(names):
        if name in (*config.always, *config.never):
            given[:, i] = name in config.always
    given[:, 0] &= ~anchor_holes
    absent = (draws[2] < config.absent) & ~given
    absent[:, 0] = False
    flags = torch.full(shape, UNKNOWN, device=device)
    flags[given] = KNOWN
    flags[absent | ~present] = ABSENT
    if config.ask_for_lacking:
        lacking = ~present & (torch.rand(shape, generator=generator, device=device) >= config.absent)
        flags[lacking] = UNKNOWN
    return flags


def draw_known_pixels(batch: int, size: int, generator: torch.Generator, device: torch.device) -> Tensor:
    """Random maps of known pixels: blocks on a grid of random cell size, in random share (B, 1, H, W) float.

    Half of the maps are one random box instead, known outside (a hole) or inside (an outpainting).
    """
    cells = torch.tensor([4, 8, 16, 32], device=device)
    draws = torch.rand(batch, 8, generator=generator, device=device)
    noise = torch.rand(batch, 32, 32, generator=generator, device=device)
    side = cells[(draws[:, 0] * 4).long().clamp(max=3)]  # cells along a side
    axis = torch.arange(size, device=device)
    index = (axis[None] * side[:, None]) // size  # (B, size), cell of each pixel
    rows = noise.gather(1, index[:, :, None].expand(-1, -1, 32))
    values = rows.gather(2, index[:, None, :].expand(-1, size, -1))  # (B, size, size)
    blocks = values > 0.05 + 0.9 * draws[:, 1, None, None]

    extent = (0.2 + 0.6 * draws[:, 2:4]) * size
    start = draws[:, 4:6] * (size - extent)
    inside = (axis >= start[..., None]) & (axis < (start + extent)[..., None])  # (B, 2, size)
    box = inside[:, 0, :, None] & inside[:, 1, None, :]
    box = box ^ (draws[:, 6] < 0.7)[:, None, None]  # mostly a hole, sometimes all but the box
    known = torch.where((draws[:, 7] < 0.5)[:, None, None], blocks, box)
    return known[:, None].float()


def draw_known_patches(
    batch: int, size: int, patch: int, generator: torch.Generator, device: torch.device
) -> Tensor:
    """A quarter of the patches, drawn at random, as masked autoencoders see a photo: (B, 1, H, W) float.

    Source: He et al. 2022, who hide 75 %.
    """
    side = size // patch
    order = torch.rand(batch, side**2, generator=generator, device=device).argsort(1).argsort(1)
    shown = (order < round(side**2 / 4)).view(batch, 1, side, side).float()
    return shown.repeat_interleave(patch, 2).repeat_interleave(patch, 3)
