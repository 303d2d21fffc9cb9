"""Between what people upload or paint and what the model takes: pictures, holes and class maps.

Everything is cut to the central square and resized to the model's size here, photo, hole and mask alike, so
that they stay aligned to the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mmdiff.modalities.image import square

NEAREST = Image.Resampling.NEAREST
SHOWN_SIZE = 448  # pixels a side of a photo to paint on
FAR = 60  # RGB distance beyond which a colour is none of the palette's


def open_picture(path: str | Path, what: str) -> Image.Image:
    """An uploaded file -> PIL image. Raises ValueError, naming the file only, if it is not a readable one."""
    try:
        image = Image.open(path)
        image.load()
        return image
    except Image.DecompressionBombError:
        raise ValueError(
            f"“{Path(path).name}” has too many pixels for the {what}; scale it down first."
        ) from None
    except Exception:
        raise ValueError(
            f"“{Path(path).name}” cannot be read as a picture for the {what}; use a PNG, JPEG or WebP file."
        ) from None


def read_photo(path: str | Path, size: int) -> tuple[Image.Image, Image.Image]:
    """An uploaded photo -> (size x size RGB for the model, the same cut larger, to paint on)."""
    photo = open_picture(path, "photo")
    return square(photo, size), square(photo, SHOWN_SIZE)


def hole_from_file(path: str | Path, size: int) -> np.ndarray:
    """A picture that is white (or bright) where the photo is to be filled in -> (size, size) bool."""
    grey = open_picture(path, "hole").convert("L")
    return np.asarray(ImageOps.fit(grey, (size, size), NEAREST)) > 127


def known_pixels(hole: np.ndarray) -> np.ndarray:
    """A hole (H, W) bool -> the map of known pixels. Raises ValueError if either is empty."""
    if not hole.any():
        raise ValueError(
            "The hole is empty: no pixel is marked for filling in. Paint one, or leave the hole out."
        )
    if hole.all():
        raise ValueError(
            "The hole covers the whole photo, so nothing of it would be left to go by. Erase part of it, or "
            "let the photo be generated."
        )
    return ~hole


def mask_from_file(path: str | Path, size: int, classes: Sequence[str], palette: np.ndarray) -> np.ndarray:
    """An uploaded mask, class numbers or palette colours -> (size, size) int64 of class indices."""
    image = open_picture(path, "mask")
    if image.mode not in ("P", "L", "1", "I", "I;16") or (
        image.mode == "P" and not _is_index_map(image, classes)
    ):
        image = image.convert("RGB")
    image = ImageOps.fit(image, (size, size), NEAREST)
    values = np.asarray(image)
    if values.ndim == 3 and (values == values[..., :1]).all() and values.max() < len(classes):
        values = values[..., 0]  # class numbers that passed through a colour format
    if values.ndim == 3:
        return _classes_of_colours(values, classes, palette)
    if len(classes) == 2 and set(np.unique(values)) <= {0, 255}:
        values = values > 0  # black and white
    if values.max() >= len(classes):
        raise ValueError(
            f"The mask contains the number {int(values.max())}, but the classes are {_numbered(classes)}. "
            "Use these numbers, or the colours of the palette."
        )
    return values.astype(np.int64)


def colour_mask(mask: np.ndarray, palette: np.ndarray) -> Image.Image:
    """Class map (H, W) -> palette picture whose pixel values are the class numbers."""
    image = Image.fromarray(mask.astype(np.uint8))  # mode L
    image.putpalette(np.ascontiguousarray(palette, dtype=np.uint8).tobytes())
    return image


def _is_index_map(image: Image.Image, classes: Sequence[str]) -> bool:
    return int(np.asarray(image).max()) < len(classes)


def _classes_of_colours(values: np.ndarray, classes: Sequence[str], palette: np.ndarray) -> np.ndarray:
    nearest, distance = _nearest(values.reshape(-1, 3), palette)
    if (distance > FAR).mean() > 0.02:
        colours = ", ".join(
            f"{name} = #{bytes(rgb).hex()}" for name, rgb in zip(classes, palette, strict=True)
        )
        raise ValueError(
            f"The mask has colours that stand for no class. Use the palette ({colours}) or a "
            f"picture of class numbers ({_numbered(classes)})."
        )
    return nearest.reshape(values.shape[:2])


def _nearest(colours: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(P, 3) colours -> index of the nearest palette colour (P,) int64 and its distance (P,)."""
    distance = np.linalg.norm(colours[:, None].astype(np.float32) - palette[None].astype(np.float32), axis=2)
    return distance.argmin(1), distance.min(1)


def _numbered(classes: Sequence[str]) -> str:
    return ", ".join(f"{index} = {name}" for index, name in enumerate(classes))
