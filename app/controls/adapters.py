"""Uploaded and painted pictures, holes and class maps, as the model takes them.

Photo, hole and mask alike are turned upright, cut to the central square and resized to the model's size here,
so that they stay aligned to the pixel. Notes, whole sentences for the page, say what was done to a file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from app.run.defaults import MAX_SIDE
from mmdiff.images import nearest_square, square, to_rgb

SHOWN_SIZE = 448  # pixels a side of a photo to paint on
FAR = 60  # RGB distance beyond which a colour is not in the palette
CLOSE = 8  # levels by which equal colours may differ after lossy saving
WHITE = 128  # grey levels from here on are white
NEARLY_ALL = 0.85  # share of the photo from which a hole may be inverted by mistake

Size = tuple[int, int]  # width, height


class Photo(NamedTuple):
    """An uploaded photo.

    Attributes:
        for_model: size x size RGB. larger: the same cut with more pixels, to paint on.
        size: of the upright file. notes: what was done to it.
    """

    for_model: Image.Image
    larger: Image.Image
    size: Size
    notes: tuple[str, ...]


class Cells(NamedTuple):
    """An uploaded hole, cells (size, size) bool, or mask, int64; and notes on what was done to the file."""

    cells: np.ndarray
    notes: tuple[str, ...]


def open_picture(path: str | Path, what: str) -> Image.Image:
    """An uploaded file -> upright PIL image. Raises ValueError, naming the file only, if it is unreadable."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image)
    except Exception as error:
        wrong = f"cannot be read as a picture for the {what}; use a PNG, JPEG or WebP file."
        if isinstance(error, Image.DecompressionBombError):
            wrong = f"has too many pixels for the {what}; scale it down first."
        raise ValueError(f"“{Path(path).name}” {wrong}") from None


def read_reference(path: str | Path) -> Image.Image:
    """An uploaded photo for the embedding: upright RGB, no larger than settings can hold.

    Raises ValueError if the file cannot be read.
    """
    photo = to_rgb(open_picture(path, "embedding"))
    photo.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)  # more than any embedder looks at
    return photo


def read_photo(path: str | Path, size: int) -> Photo:
    """An uploaded photo of any size and shape. Raises ValueError if the file cannot be read."""
    photo = open_picture(path, "photo")
    notes, short = [], min(photo.size)
    if photo.width != photo.height:
        scaled = "" if short == size else f", scaled to {_by(size)}"
        notes.append(f"The photo is {_by(photo.size)} pixels; its central {_by(short)} are used{scaled}.")
    if short < size:
        notes.append(f"It is smaller than the model’s {_by(size)} pixels, so it looks soft.")
    if _is_transparent(photo):
        notes.append("Transparent parts became white.")
    return Photo(square(photo, size), square(photo, SHOWN_SIZE), photo.size, tuple(notes))


def read_hole(path: str | Path, size: int, photo_size: Size) -> Cells:
    """An uploaded hole for a photo that was uploaded with this size, checked and explained.

    Raises ValueError, saying how to mend it, if the file cannot be read, cannot lie on the photo, or has
    nothing to fill in or nothing to keep.
    """
    image = open_picture(path, "hole")
    placed = _place_on_photo(image.size, size, photo_size)
    levels, read_as = _whiteness(nearest_square(image, size))
    hole = levels >= WHITE
    _check_white(hole)
    notes = [f"The hole covers {_percent(hole.mean())} of the photo."]
    if hole.mean() > NEARLY_ALL:
        notes.append(
            "That is nearly everything: white is what is repainted. If it is the other way round, press "
            "“Invert”."
        )
    notes += [*placed, *read_as]
    between = ((levels > 0) & (levels < 255)).mean()
    if between:
        notes.append(
            f"{_percent(between).capitalize()} of its pixels are neither black nor white; from the middle "
            f"grey ({WHITE}) on they count as white."
        )
    return Cells(hole, tuple(notes))


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


def read_mask(path: str | Path, size: int, classes: Sequence[str], palette: np.ndarray) -> Cells:
    """An uploaded mask, class numbers or palette colours, checked and explained.

    Raises ValueError, saying how to mend it, if the file cannot be read or stands for no class map.
    """
    image = open_picture(path, "mask")
    notes = _cut_and_scaled("mask", image.size, size)
    image = nearest_square(image, size)
    if _is_transparent(image):
        image = _on_ground(image, palette[0])
        notes.append(f"Transparent parts became {classes[0]}.")
    numbers = image.mode in ("P", "L", "1", "I", "I;16")
    if not numbers or (image.mode == "P" and np.asarray(image).max() >= len(classes)):
        image = image.convert("RGB")
    values = np.asarray(image)
    if values.ndim == 3 and (values == values[..., :1]).all() and values.max() < len(classes):
        values = values[..., 0]  # class numbers that passed through a colour format
    if values.ndim == 3:
        cells, inexact = _classes_of_colours(values, classes, palette)
        if inexact:
            notes.append(
                f"{_percent(inexact).capitalize()} of its pixels have no colour of the palette; they became "
                "the class whose colour is nearest."
            )
        return Cells(cells, tuple(notes))
    if len(classes) == 2 and set(np.unique(values)) == {0, 255}:
        values = values > 0
        notes.append(f"Black is read as {classes[0]}, white as {classes[1]}.")
    if values.max() >= len(classes):
        raise ValueError(
            f"The mask contains the number {int(values.max())}, but the classes are {_numbered(classes)}. "
            "Use these numbers, or the colours of the palette."
        )
    return Cells(values.astype(np.int64), tuple(notes))


def _place_on_photo(hole: Size, size: int, photo: Size) -> list[str]:
    """Notes on the hole's place on the photo. Raises ValueError if their shapes differ."""
    if hole[0] == hole[1] and photo[0] != photo[1]:
        return ["It lies on the photo’s central square.", *_cut_and_scaled("hole", hole, size)]
    if not _same_shape(hole, photo):
        other = "another square size" if photo[0] == photo[1] else "a square for its central square"
        raise ValueError(
            f"The hole is {_by(hole)} pixels and the photo {_by(photo)}: their shapes differ, so one cannot "
            f"lie on the other. Save the hole with {_by(photo)} pixels, or as {other}."
        )
    return _cut_and_scaled("hole", hole, size)


def _same_shape(a: Size, b: Size) -> bool:
    """Whether one is the other scaled, to within a pixel of rounding."""
    return abs(a[0] - a[1] * b[0] / b[1]) <= 1 or abs(a[1] - a[0] * b[1] / b[0]) <= 1


def _check_white(hole: np.ndarray) -> None:
    if not hole.any():
        raise ValueError(
            "The hole is black everywhere, so nothing would be filled in. Make white what is to be repainted."
        )
    if hole.all():
        raise ValueError(
            "The hole is white everywhere, so nothing of the photo would be left to go by. Make black what "
            "is to be kept."
        )


def _whiteness(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """How white each pixel of a hole is, (H, W) uint8, and a note if the file had to be interpreted."""
    if not _is_transparent(image):
        return _grey(image)
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3]
    opaque = alpha >= WHITE
    if not opaque.any():
        raise ValueError("The hole’s picture is transparent everywhere. Paint what is to be filled in.")
    colours = rgba[opaque][:, :3].astype(int)
    if _is_black_and_white(colours):
        levels = np.asarray(_on_ground(image, np.zeros(3)).convert("L"))
        return levels, ["Its transparent parts count as black: they are kept."]
    if np.ptp(colours, axis=0).max() <= CLOSE and opaque.mean() <= 0.5:
        return alpha, ["Its painted parts are what is filled in, its transparent parts are kept."]
    return 255 - alpha, ["Its transparent parts are what is filled in."]


def _grey(image: Image.Image) -> tuple[np.ndarray, list[str]]:
    """Grey levels (H, W) uint8 of a picture without transparency."""
    if image.mode.startswith(("I", "F")):  # more than 8 bits
        values = np.asarray(image, dtype=np.float64)
        return np.clip(values / (257 if values.max() > 255 else 1), 0, 255).astype(np.uint8), []
    grey = np.asarray(image.convert("L"))
    if grey.max() == 1:
        return 255 * grey, ["Its pixels are 0 and 1; 1 counts as white."]
    return grey, []


def _is_black_and_white(colours: np.ndarray) -> bool:
    """Whether colours (P, 3) are all black or white, and some are white."""
    black, white = (colours <= CLOSE).all(1), (colours >= 255 - CLOSE).all(1)
    return bool((black | white).all() and white.any())


def _is_transparent(image: Image.Image) -> bool:
    return image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255


def _on_ground(image: Image.Image, colour: np.ndarray) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, tuple(map(int, colour))), rgba).convert("RGB")


def _cut_and_scaled(what: str, from_size: Size, size: int) -> list[str]:
    """Notes on how the central square of a hole or mask was brought to the model's size."""
    short = min(from_size)
    cut = f"The {what} is {_by(from_size)} pixels; its central {_by(short)} are used"
    scaled = f"from {_by(short)} to {_by(size)} pixels, unblended (nearest pixel)"
    if from_size[0] != from_size[1]:
        return [f"{cut}." if short == size else f"{cut}, scaled to {_by(size)} (nearest pixel)."]
    return [] if short == size else [f"The {what} was scaled {scaled}."]


def _classes_of_colours(
    values: np.ndarray, classes: Sequence[str], palette: np.ndarray
) -> tuple[np.ndarray, float]:
    """Colours (H, W, 3) -> class indices (H, W) int64 and the share of inexact colours."""
    distances = np.linalg.norm(values[:, :, None].astype(np.float32) - palette.astype(np.float32), axis=-1)
    distance = distances.min(-1)
    if (distance > FAR).mean() > 0.02:
        names = zip(classes, palette, strict=True)
        colours = ", ".join(f"{name} = #{bytes(rgb).hex()}" for name, rgb in names)
        raise ValueError(
            f"The mask has colours that stand for no class. Use the palette ({colours}) or a "
            f"picture of class numbers ({_numbered(classes)})."
        )
    return distances.argmin(-1), float((distance > 0).mean())


def _numbered(classes: Sequence[str]) -> str:
    return ", ".join(f"{index} = {name}" for index, name in enumerate(classes))


def _by(size: Size | int) -> str:
    width, height = (size, size) if isinstance(size, int) else size
    return f"{width} × {height}"


def _percent(share: float) -> str:
    """A share above 0 in words: never "0%", and "100%" only for all of it."""
    if share < 0.01:
        return "under 1%"
    return "over 99%" if 0.99 < share < 1 else f"{share:.0%}"
