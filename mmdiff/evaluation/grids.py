"""Grids of samples with captions."""

import math

import torch
from PIL import Image, ImageDraw

from mmdiff.evaluation.evaluation import Outcome

GRID_SAMPLES, GRID_COLUMNS, GRID_SCALE, CAPTION_HEIGHT = 64, 8, 2, 14


def draw_grid(outcome: Outcome) -> Image.Image:
    """Evenly spaced samples of an outcome at twice their size, panels side by side, captions below."""
    total = len(outcome.captions)
    chosen = torch.linspace(0, total - 1, min(GRID_SAMPLES, total)).round().long().tolist()
    strips = torch.cat([panel[chosen] for panel in outcome.panels], dim=2)  # (n, H, W * panels, 3)
    size = (GRID_SCALE * strips.shape[2], GRID_SCALE * strips.shape[1])
    cell = (size[0] + 4, size[1] + CAPTION_HEIGHT)
    grid = Image.new(
        "RGB", (GRID_COLUMNS * cell[0], math.ceil(len(chosen) / GRID_COLUMNS) * cell[1]), "white"
    )
    draw = ImageDraw.Draw(grid)
    for place, (k, strip) in enumerate(zip(chosen, strips, strict=True)):
        left, top = place % GRID_COLUMNS * cell[0], place // GRID_COLUMNS * cell[1]
        grid.paste(Image.fromarray(strip.numpy()).resize(size, Image.Resampling.NEAREST), (left, top))
        draw.text((left + 2, top + size[1] + 1), _shorten(draw, outcome.captions[k], size[0]), "black")
    return grid


def _shorten(draw: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The longest beginning of the text that fits into ``width`` pixels."""
    while draw.textlength(text) > width:
        text = text[:-1]
    return text
