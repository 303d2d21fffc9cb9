"""Uploaded and painted pictures, holes and class maps, as the model takes them.

Photo, hole and mask alike are turned upright, cut to the central square and resized to the model's size here,
so that they stay aligned to the pixel. Notes, whole sentences for the page, say what was done to a file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from app.run.defaults import MAX_SIDE
from mmdiff.class_maps import ClassMap, percent, read_class_map
from mmdiff.images import Picture, Size, Unreadable, is_transparent, nearest_square, read, square
from mmdiff.known_pixels import lies_on, whiteness

SHOWN_SIZE = 448  # pixels a side of a photo to paint on
CLOSE = 8  # levels by which equal colours may differ after lossy saving
WHITE = 128  # grey levels from here on are white
NEARLY_ALL = 0.85  # share of the photo from which a hole may be inverted by mistake


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
    """An uploaded hole, (size, size) bool, and notes on what was done to the file."""

    cells: np.ndarray
    notes: tuple[str, ...]


def open_picture(path: str | Path, what: str, photo: bool = False) -> Picture:
    """An uploaded file, see `mmdiff.images.read`. Raises ValueError, naming the file without its folder."""
    name = Path(path).name
    try:
        with Path(path).open("rb") as file:
            return read(file, what, photo)
    except (Unreadable, OSError):
        remedy = "use a PNG, JPEG or WebP file."
        raise ValueError(f"“{name}” cannot be read as a picture for the {what}; {remedy}") from None
    except ValueError as error:
        raise ValueError(f"“{name}”: {error}") from None


def read_reference(path: str | Path) -> Image.Image:
    """An uploaded photo for the embedding: upright RGB, no larger than settings can hold.

    Raises ValueError if the file cannot be read.
    """
    photo = open_picture(path, "embedding", photo=True).image
    photo.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)  # more than any embedder looks at
    return photo


def read_photo(path: str | Path, size: int) -> Photo:
    """An uploaded photo of any size and shape. Raises ValueError if the file cannot be read."""
    photo = open_picture(path, "photo", photo=True)
    notes, short = [], min(photo.size)
    if photo.size[0] != photo.size[1]:
        scaled = "" if short == size else f", scaled to {_by(size)}"
        notes.append(f"The photo is {_by(photo.size)} pixels; its central {_by(short)} are used{scaled}.")
    if short < size:
        notes.append(f"It is smaller than the model’s {_by(size)} pixels, so it looks soft.")
    notes += photo.notes
    return Photo(square(photo.image, size), square(photo.image, SHOWN_SIZE), photo.size, tuple(notes))


def read_hole(path: str | Path, size: int, photo_size: Size) -> Cells:
    """An uploaded hole for a photo that was uploaded with this size, checked and explained.

    Raises ValueError, saying how to mend it, if the file cannot be read, cannot lie on the photo, or has
    nothing to fill in or nothing to keep.
    """
    picture = open_picture(path, "hole")
    placed = _place_on_photo(picture.size, size, photo_size)
    levels, read_as = _whiteness(nearest_square(picture.image, size))
    hole = levels >= WHITE
    _check_white(hole)
    notes = [f"The hole covers {percent(hole.mean())} of the photo."]
    if hole.mean() > NEARLY_ALL:
        notes.append(
            "That is nearly everything: white is what is repainted. If it is the other way round, press "
            "“Invert”."
        )
    notes += [*placed, *picture.notes, *read_as]
    between = ((levels > 0) & (levels < 255)).mean()
    if between:
        notes.append(
            f"{percent(between).capitalize()} of its pixels are neither black nor white; from the middle "
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
            "let the image be created."
        )
    return ~hole


def read_mask(path: str | Path, size: int, classes: Sequence[str], palette: np.ndarray) -> ClassMap:
    """An uploaded mask, class numbers or colours, checked and explained; see `mmdiff.class_maps`.

    Raises ValueError, saying how to mend it, if the file cannot be read or stands for no class map.
    """
    picture = open_picture(path, "mask")
    notes = (*_cut_and_scaled("mask", picture.size, size), *picture.notes)
    try:
        mask = read_class_map(picture, classes, palette, size)
    except ValueError as error:
        raise ValueError(f"“{Path(path).name}”: {error}") from None
    return ClassMap(mask.cells, notes + mask.notes)


def _place_on_photo(hole: Size, size: int, photo: Size) -> list[str]:
    """Notes on the hole's place on the photo. Raises ValueError if their shapes differ."""
    if hole[0] == hole[1] and photo[0] != photo[1]:
        return ["It lies on the photo’s central square.", *_cut_and_scaled("hole", hole, size)]
    if not lies_on(hole, photo):
        other = "another square size" if photo[0] == photo[1] else "a square for its central square"
        raise ValueError(
            f"The hole is {_by(hole)} pixels and the photo {_by(photo)}: their shapes differ, so one cannot "
            f"lie on the other. Save the hole with {_by(photo)} pixels, or as {other}."
        )
    return _cut_and_scaled("hole", hole, size)


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
    if not is_transparent(image):
        return whiteness(image)
    rgba = np.asarray(image.convert("RGBA"))
    alpha = rgba[..., 3]
    opaque = alpha >= WHITE
    if not opaque.any():
        raise ValueError("The hole’s picture is transparent everywhere. Paint what is to be filled in.")
    colours = rgba[opaque][:, :3].astype(int)
    if _is_black_and_white(colours):
        levels = np.asarray(_on_black(image).convert("L"))
        return levels, ["Its transparent parts count as black: they are kept."]
    if np.ptp(colours, axis=0).max() <= CLOSE and opaque.mean() <= 0.5:
        return alpha, ["Its painted parts are what is filled in, its transparent parts are kept."]
    return 255 - alpha, ["Its transparent parts are what is filled in."]


def _is_black_and_white(colours: np.ndarray) -> bool:
    """Whether colours (P, 3) are all black or white, and some are white."""
    black, white = (colours <= CLOSE).all(1), (colours >= 255 - CLOSE).all(1)
    return bool((black | white).all() and white.any())


def _on_black(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba).convert("RGB")


def _cut_and_scaled(what: str, from_size: Size, size: int) -> list[str]:
    """Notes on how the central square of a hole or mask was brought to the model's size."""
    short = min(from_size)
    cut = f"The {what} is {_by(from_size)} pixels; its central {_by(short)} are used"
    scaled = f"from {_by(short)} to {_by(size)} pixels, unblended (nearest pixel)"
    if from_size[0] != from_size[1]:
        return [f"{cut}." if short == size else f"{cut}, scaled to {_by(size)} (nearest pixel)."]
    return [] if short == size else [f"The {what} was scaled {scaled}."]


def _by(size: Size | int) -> str:
    width, height = (size, size) if isinstance(size, int) else size
    return f"{width} × {height}"
