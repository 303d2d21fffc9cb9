"""Small pieces of the page: words for durations and lists, the status line, pictures as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

# groups of words that describe an embedding, and how many of each are shown
WORDS = {"captions": ("Nearest captions", 3), "labels": ("Nearest labels", 3), "probes": ("Text probes", 4)}


def overlay(probabilities: np.ndarray, palette: np.ndarray, over_picture: bool) -> Image.Image:
    """Class probabilities (K, H, W) -> RGBA picture, the fainter the less certain.

    Over a picture the first class (background or void) is left clear.
    """
    best = probabilities.argmax(0)
    opacity = np.clip(probabilities.max(0), 0, 1)
    if over_picture:
        opacity = np.where(best == 0, 0, opacity)
    return Image.fromarray(np.dstack([palette[best], (255 * opacity).astype(np.uint8)]))


def status(text: str, share: float | None = None, kind: str = "calm") -> str:
    """One line on how things stand; `share` (0..1) adds a progress bar; `kind` is calm, busy or problem."""
    role = "alert" if kind == "problem" else "status"
    bar = "" if share is None else f'<div class="progress"><i style="width:{100 * share:.1f}%"></i></div>'
    return f'<div class="status {kind}" role="{role}"><p>{text}</p>{bar}</div>'


def listed(words: Sequence[str]) -> str:
    """One, two and three."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def duration(seconds: float) -> str:
    """Seconds, as people say them."""
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def steps(count: int) -> str:
    """So many steps, in words."""
    return "1 step" if count == 1 else f"{count} steps"


def png(image: Image.Image, stamp: PngInfo | None = None) -> str:
    """A picture as a data URI, lossless, with what it is to carry."""
    data = io.BytesIO()
    image.save(data, "PNG", compress_level=1, pnginfo=stamp)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()
