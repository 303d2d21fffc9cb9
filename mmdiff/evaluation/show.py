"""Results as people see them: grids of samples, lines of figures."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from PIL import Image, ImageDraw

from mmdiff.evaluation.core import Outcome

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


def table(results: Mapping[str, dict]) -> str:
    """The figures as lines of text, one number a line."""
    lines = []
    for task, figures in results.items():
        lines += [(f"{task}.{name}", value) for name, value in _flatten(figures)]
    width = max((len(name) for name, _ in lines), default=0)
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def _flatten(figures: Mapping, prefix: str = "") -> list[tuple[str, str]]:
    lines = []
    for name, value in figures.items():
        if isinstance(value, Mapping) and not name.startswith("by_"):
            lines += _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, float):
            lines.append((prefix + name, f"{value:.4f}"))
        elif not isinstance(value, Mapping):
            lines.append((prefix + name, str(value)))
    return lines
