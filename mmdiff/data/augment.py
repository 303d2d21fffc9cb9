"""Batches of examples as tensors, augmented at random: crop, zoom, flip, light."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from mmdiff.data.examples import Examples, encoded_name
from mmdiff.modalities import Modality


def draw_batch(
    examples: Examples,
    modalities: Mapping[str, Modality],
    rows: Tensor,
    generator: torch.Generator | None,
    flip: bool,
    light: float = 0.0,
    zoom: float = 1.0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Examples ``rows`` (B,) as data-space values: x name -> (B, *shape), present (B, N) bool.

    With a generator the crop, its size, the flip, the light of photos and the choice among stored variants
    are random; without one the crop is central and the first variant is taken.

    Where views are stored, one of each example's is taken, and its encoding as ``x[encoded_name(name)]``.

    Args:
        flip: mirror half of the examples. light: largest share by which contrast and brightness change.
        zoom: smallest share of a stored picture's side that a crop shows; 1 is off.
    """
    size = next(iter(modalities.values())).image_size
    cut = _cutter(examples, size, rows, generator, flip, zoom)
    x, present = {}, []
    for name, modality in modalities.items():
        if name not in examples.stored:
            x[name], there = _blank(modality, rows)
            present.append(there)
            continue
        stored = examples.stored[name]
        batch = cut(stored, not modality.classes) if modality.dense else stored[rows]
        if not modality.dense and batch.ndim > 1 + len(modality.shape):
            batch = _choose(batch, generator)
        x[name] = modality.from_stored(batch)
        if modality.photographic and light and generator is not None and not examples.views:
            x[name] = _relit(x[name], light, generator)
        present.append(examples.present[name][rows])
    for name in modalities:
        if encoded_name(name) in examples.stored:
            x[encoded_name(name)] = cut(examples.stored[encoded_name(name)], False).float()
    return x, torch.stack(present, dim=1)


def _cutter(
    examples: Examples, size: int, rows: Tensor, generator: torch.Generator | None, flip: bool, zoom: float
) -> Callable[[Tensor, bool], Tensor]:
    """(stored pictures, whether their values may be blended) -> those of ``rows``, (B, ..., size, size)."""
    if examples.views:
        view = torch.zeros_like(rows)
        if generator is not None:
            view = torch.randint(examples.views, rows.shape, generator=generator, device=rows.device)
        return lambda stored, blend: stored[rows, view]
    if generator is not None and zoom < 1:
        boxes = _boxes(rows, size, size + examples.margin, zoom, generator, flip)
        return lambda stored, blend: _resampled(stored[rows], *boxes, blend)
    windows = _windows(rows, size, examples.margin, generator, flip)
    return lambda stored, blend: _crop(stored[rows], *windows)


def _blank(modality: Modality, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Values of examples that all lack a modality, and that none of them has it."""
    blank = torch.zeros(len(rows), *modality.shape, device=rows.device)
    return (blank.long() if modality.classes else blank), torch.zeros_like(rows, dtype=torch.bool)


def _relit(photos: Tensor, light: float, generator: torch.Generator) -> Tensor:
    """Photos (B, 3, H, W) in [-1, 1] with contrast and brightness changed by up to the share ``light``."""
    change = torch.rand(2, len(photos), 1, 1, 1, generator=generator, device=photos.device) * 2 - 1
    return (photos * (1 + light * change[0]) + light * change[1]).clamp(-1, 1)


def _choose(batch: Tensor, generator: torch.Generator | None) -> Tensor:
    """One of the stored variants of each example: (B, V, ...) -> (B, ...)."""
    if generator is None:
        return batch[:, 0]
    pick = torch.randint(batch.shape[1], (len(batch),), generator=generator, device=batch.device)
    return batch[torch.arange(len(batch), device=batch.device), pick]


def _windows(
    examples: Tensor, size: int, margin: int, generator: torch.Generator | None, flip: bool
) -> tuple[Tensor, Tensor]:
    """Row and column indices of each example's crop, (B, size) each; columns reversed where flipped."""
    count, device = len(examples), examples.device
    axis = torch.arange(size, device=device)
    if generator is None:
        centre = (axis + margin // 2).expand(count, -1)
        return centre, centre
    start = torch.randint(margin + 1, (2, count, 1), generator=generator, device=device)
    mirrored = torch.rand(count, 1, generator=generator, device=device) < (0.5 if flip else 0.0)
    columns = torch.where(mirrored, axis.flip(0), axis)
    return start[0] + axis, start[1] + columns


def _boxes(
    examples: Tensor, size: int, stored: int, zoom: float, generator: torch.Generator, flip: bool
) -> tuple[Tensor, Tensor]:
    """Rows and columns of each example's crop in a picture of ``stored`` pixels a side, (B, size) float each.

    The crop is a square whose side is a random share of the picture's, from ``zoom`` to 1; columns are
    reversed where flipped.
    """
    count, device = len(examples), examples.device
    draws = torch.rand(4, count, 1, generator=generator, device=device)
    side = stored * (zoom + (1 - zoom) * draws[0])
    start = (stored - side) * draws[1:3]
    steps = ((torch.arange(size, device=device) + 0.5) / size).expand(count, -1)
    across = torch.where(draws[3] < (0.5 if flip else 0.0), 1 - steps, steps)
    return start[0] + side * steps, start[1] + side * across


def _resampled(batch: Tensor, rows: Tensor, columns: Tensor, blend: bool) -> Tensor:
    """Pictures (B, ..., H, W) -> (B, ..., size, size) at the places of `_boxes`, bilinear or nearest."""
    count, size = rows.shape
    places = torch.stack(
        [columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)], -1
    )
    flat = batch.reshape(count, -1, *batch.shape[-2:]).float()
    mode = "bilinear" if blend else "nearest"
    grid = places * (2 / batch.shape[-1]) - 1
    drawn = F.grid_sample(flat, grid, mode, padding_mode="border", align_corners=False)
    drawn = drawn if batch.is_floating_point() else drawn.round()
    return drawn.reshape(count, *batch.shape[1:-2], size, size).to(batch.dtype)


def _crop(batch: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Pictures (B, ..., H, W) -> (B, ..., size, size) at the rows and columns of `_windows`."""
    index = torch.arange(len(batch), device=batch.device)[:, None, None]
    cut = batch[index, ..., rows[:, :, None], columns[:, None, :]]  # (B, size, size, ...)
    return cut.movedim((1, 2), (-2, -1)).contiguous()
