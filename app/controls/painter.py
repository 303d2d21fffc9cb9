"""A paint area on the model's own pixels: the model is given exactly the cells that are seen.

Its value is text, one character for each pixel, row by row: "0" is unpainted, "1" the first colour, and so on
through the character codes. None stands for nothing painted.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app.pictures import quick_png

SCRIPT = (Path(__file__).parents[1] / "static" / "painter.js").read_text()
ZERO = ord("0")

# Outlines of the icons, 16 x 16.
ICONS = {
    "brush": "M13.5 2.5 7 9M5.5 9.5c-2 0-1.5 2.7-3.5 3.5 3 1 5.5.2 5.5-1.7 0-1-.9-1.8-2-1.8Z",
    "rectangle": "M2.5 4h11v8h-11Z",
    "fill": "M7 2.5 12.5 8l-4.7 4.7a1 1 0 0 1-1.4 0L2.8 9.1a1 1 0 0 1 0-1.4ZM2.6 8.2h9.6M14 10.8v1.7",
    "undo": "M5.5 3 2.5 6l3 3M2.5 6H10a3.5 3.5 0 0 1 0 7H6",
    "redo": "m10.5 3 3 3-3 3M13.5 6H6a3.5 3.5 0 0 0 0 7h4",
    "clear": "M2.5 4.5h11M6 4.5V3h4v1.5M4 4.5l.6 8.5h6.8l.6-8.5M6.7 7v3.5M9.300 7v3.5",
}
TITLES = {
    "brush": "Brush",
    "rectangle": "Rectangle",
    "fill": "Fill an area",
    "undo": "Undo (Ctrl Z)",
    "redo": "Redo (Shift Ctrl Z)",
    "clear": "Clear",
}
PRESETS = {"box": "Box", "left": "Left half", "around": "All but centre", "invert": "Invert"}


class Painter:
    """A paint area of size x size cells, made inside the current `gr.Blocks` context.

    The first of the names and RGBA colours stands for unpainted cells. With `hole` the two colours stand for
    pixels to keep and to fill in, and there are ready-made holes; otherwise there is a tool to fill areas.
    """

    def __init__(
        self,
        size: int,
        names: Sequence[str],
        colours: Sequence[Sequence[int]],
        hole: bool = False,
        **options: Any,
    ) -> None:
        self.size = size
        self._colours = len(colours)
        fixed = {"size": size, "names": list(names), "colours": [list(map(int, c)) for c in colours]}
        self.component = gr.HTML(
            None,
            html_template=_template(hole),
            # not props, which a component that is not on the screen yet loses by an update
            js_on_load=f"const options = {json.dumps(fixed)};\n{SCRIPT}",
            apply_default_css=False,
            background="",
            **options,
        )

    def update(self, cells: np.ndarray | None, background: Image.Image | None = None) -> gr.HTML:
        """The update that shows these cells (H, W), or none, over this picture, or none."""
        return gr.HTML(to_text(cells), background=_uri(background))

    def over(self, background: Image.Image | None) -> gr.HTML:
        """The update that changes the picture below the painting, or removes it."""
        return gr.HTML(background=_uri(background))

    def cells(self, value: str | None) -> np.ndarray:
        """The value of `component` -> (size, size) int64 of colours. Raises ValueError if it is damaged."""
        return from_text(value, self.size, self._colours)


def to_text(cells: np.ndarray | None) -> str | None:
    """Cells (H, W) of small whole numbers -> the painter's value, on its own an update, too."""
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


def _uri(picture: Image.Image | None) -> str:
    return "" if picture is None else quick_png(picture)


def _template(hole: bool) -> str:
    tools = ("brush", "rectangle") if hole else ("brush", "rectangle", "fill")
    return f"""
<div class="painter {"hole" if hole else "classes"}">
  <div class="sheet">
    <img alt="" hidden><canvas tabindex="0" aria-label="Paint area"></canvas><span class="ring"></span>
  </div>
  <div class="tools">
    <div class="joined" role="group" aria-label="Tool">{_icons("tool", tools)}</div>
    <div class="colours" role="group" aria-label="Colour"></div>
    <div class="joined history" role="group" aria-label="Changes">
      {_icons("action", ("undo", "redo", "clear"))}
    </div>
  </div>
  <div class="sliders">
    {_slider("width", "Size", "Brush size, [ and ]", 1)}
    {_slider("opacity", "Opacity", "Opacity of what is painted", 20)}
  </div>
  {_presets() if hole else ""}
</div>
"""


def _icons(kind: str, names: Sequence[str]) -> str:
    """Buttons that only show an icon."""
    return "".join(
        f'<button type="button" data-{kind}="{name}" title="{TITLES[name]}" aria-label="{name.capitalize()}">'
        f'<svg viewBox="0 0 16 16" aria-hidden="true"><path d="{ICONS[name]}"/></svg></button>'
        for name in names
    )


def _slider(name: str, label: str, title: str, least: int) -> str:
    return (
        f'<label class="{name}" title="{title}"><span>{label}</span>'
        f'<input type="range" min="{least}" max="100" step="1" aria-label="{title}"><output></output></label>'
    )


def _presets() -> str:
    buttons = "".join(
        f'<button type="button" data-preset="{name}">{title}</button>' for name, title in PRESETS.items()
    )
    return f"""
<div class="presets" role="group" aria-label="Ready-made holes">{buttons}</div>
<div class="presets random">
  <button type="button" data-preset="blocks" title="Other blocks each time">Random blocks</button>
  <label class="share"><input type="range" min="10" max="90" step="5" value="50" aria-label="Share of blocks">
  <output></output></label>
</div>
"""
