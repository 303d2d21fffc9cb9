"""Black and white pictures that say which part of a photo is known, or a hole in it."""

from pathlib import Path

import numpy as np
from PIL import Image

from mmdiff.images import WHOLE, Size, nearest_square, read, warn


def read_known_pixels(path: str | Path, size: int, photo: Size | None = None) -> np.ndarray:
    """A black and white picture -> (size, size) bool, True where it is white; cut like the photo.

    Raises ValueError if it cannot be read, has transparent parts, or cannot lie on a ``photo`` of this size.
    """
    picture = read(path, "known-pixels picture")
    warn(picture.notes)
    if picture.transparent:
        raise ValueError(
            "the known-pixels picture has transparent parts, which could be known or not; make white what is "
            "known and black what is not."
        )
    if photo and not lies_on(picture.size, photo):
        raise ValueError(
            f"the known-pixels picture is {picture.size[0]} x {picture.size[1]} pixels and the photo "
            f"{photo[0]} x {photo[1]}: their shapes differ, so one cannot lie on the other. Save it in the "
            "shape of the photo, or as a square for its central square."
        )
    levels, _ = whiteness(nearest_square(picture.image, size))
    return levels > 127


def lies_on(above: Size, photo: Size) -> bool:
    """Whether a picture of this size is square, for the central square, or shaped like the photo."""
    square = above[0] == above[1]
    across = abs(above[0] - above[1] * photo[0] / photo[1]) <= 1
    return square or across or abs(above[1] - above[0] * photo[1] / photo[0]) <= 1


def whiteness(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """How white each pixel is, (H, W) uint8, and a sentence if that had to be interpreted.

    Raises ValueError for floating-point pixels.
    """
    if image.mode == "F":
        raise ValueError(f"its pixels are floating-point numbers; {WHOLE}.")
    deep = image.mode.startswith("I")
    values = np.asarray(image if deep else image.convert("L")).astype(np.int64).clip(0, 65535)
    if values.max() == 1:
        return (255 * values).astype(np.uint8), ["Its pixels are 0 and 1; 1 counts as white."]
    white = next(2**bits - 1 for bits in (8, 10, 12, 14, 16) if values.max() < 2**bits)
    return (values * 255 // white).astype(np.uint8), []
