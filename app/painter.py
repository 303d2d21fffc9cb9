"""A paint area on the model's own pixels: what is seen is exactly what the model is given.

Its value is text, one character for each pixel, row by row: "0" is unpainted, "1" the first colour, and so on
through the character codes. None stands for nothing painted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app.views import png

SCRIPT = Path(__file__).with_name("painter.js").read_text()
TEMPLATE = """
<div class="painter">
  <div class="sheet">
    <img alt="" hidden><canvas aria-label="Paint area"></canvas><span class="ring"></span>
  </div>
  <div class="tools">
    <div class="colours" role="group" aria-label="Brush"></div>
    <label>Size <input type="range" min="1" step="1" aria-label="Brush size"></label>
    <button class="undo">Undo</button><button class="clear">Clear</button>
  </div>
</div>
"""
ZERO = ord("0")


class Painter:
    """A paint area of size x size cells, made inside the current `gr.Blocks` context.

    The first of the names and RGBA colours is that of unpainted cells.
    """

    def __init__(
        self, size: int, names: Sequence[str], colours: Sequence[Sequence[int]], **options: Any
    ) -> None:
        self.size = size
        self._props = {"size": size, "names": list(names), "colours": [list(map(int, c)) for c in colours]}
        self.component = gr.HTML(
            None,
            html_template=TEMPLATE,
            js_on_load=SCRIPT,
            apply_default_css=False,
            background="",
            **self._props,
            **options,
        )

    def update(self, cells: np.ndarray | None, background: Image.Image | None = None) -> gr.HTML:
        """The update that shows these cells (H, W), or none, over this picture, or none."""
        picture = "" if background is None else png(background)
        return gr.HTML(to_text(cells), background=picture, **self._props)  # an update replaces all props

    def cells(self, value: str | None) -> np.ndarray:
        """The value of `component` -> (size, size) int64 of colours. Raises ValueError if it is damaged."""
        return from_text(value, self.size, len(self._props["colours"]))


def to_text(cells: np.ndarray | None) -> str | None:
    """Cells (H, W) of small whole numbers -> the painter's value."""
    if cells is None or not cells.any():
        return None
    return (np.asarray(cells, dtype=np.uint8) + ZERO).tobytes().decode("latin-1")


def from_text(value: str | None, size: int, colours: int) -> np.ndarray:
    """The painter's value -> cells (size, size) int64 below `colours`. Raises ValueError if it is no such."""
    if not value:
        return np.zeros((size, size), dtype=np.int64)
    cells = np.frombuffer(value.encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64) - ZERO
    if cells.size != size**2 or cells.min() < 0 or cells.max() >= colours:
        raise ValueError("The painting is damaged. Clear it and paint again.")
    return cells.reshape(size, size)
