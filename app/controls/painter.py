"""A paint area on the model's own pixels: the model is given exactly the cells that are seen.

Its value is text, one character for each pixel, row by row: "0" is unpainted, "1" the first colour, and so on
through the character codes. None stands for nothing painted.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app.pictures import quick_png

STATIC = Path(__file__).parents[1] / "static"
SCRIPT, TEMPLATE = (STATIC / "painter.js").read_text(), (STATIC / "painter.html").read_text()
ZERO = ord("0")


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
            html_template=TEMPLATE.replace("KIND", "hole" if hole else "classes"),
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
    text = value if isinstance(value, str) else ""  # a page of another program may send anything
    cells = np.frombuffer(text.encode("latin-1", "replace"), dtype=np.uint8).astype(np.int64) - ZERO
    if cells.size != size**2 or cells.min() < 0 or cells.max() >= colours:
        raise ValueError("The painting is damaged. Clear it and paint again.")
    return cells.reshape(size, size)


def _uri(picture: Image.Image | None) -> str:
    return "" if picture is None else quick_png(picture)
