"""Photos of any mode as upright RGB of 8 bits."""

from __future__ import annotations

import numpy as np
from PIL import Image

ORIENTATION = 0x0112  # tag of EXIF; its values, and what turns such a photo upright
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_rgb(image: Image.Image) -> Image.Image:
    """Upright RGB; transparency becomes white, 16 bits become 8.

    Raises ValueError for floating-point numbers, which may mean anything.
    """
    image = upright(image)
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers; give whole ones of 8 or 16 bits.")
    if image.mode.startswith("I"):  # Pillow would cut off at 255
        image = Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data say."""
    turn = turn_of(image)
    return image if turn is None else image.transpose(turn)


def turn_of(image: Image.Image) -> Image.Transpose | None:
    """What turns the picture upright; None for nothing."""
    try:
        return TURNS.get(image.getexif().get(ORIENTATION))
    except Exception:  # metadata can be damaged in many ways, and the pixels still be good
        return None
