"""What the pixels of a mask stand for: one decision for every way in.

Colours decide: those of the class palette, then black and white, then those of PASCAL VOC. Numbers count
where colours say nothing, because the order of a palette is any editor's choice. What is assumed is noted,
and what could be meant in two ways is refused.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from mmdiff.images import Picture, is_transparent, nearest_square

VOID = "void"  # name of the class that means "not annotated"
IGNORED = 255  # number of the same in most data sets
CLOSE = 8  # RGB distance of colours that are equal but for rounding
FAR = 60  # RGB distance beyond which a colour is not meant
FEW = 0.02  # share of pixels that may be far from every colour
SOFT = 0.2  # share of pixels that may lie between black and white, at soft edges
LISTED = 32  # classes whose palette is recognised where their number is not known
OPAQUE = 128  # alpha from here on
BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]])
CLEAR = -(2**31)  # value of see-through pixels


class ClassMap(NamedTuple):
    """Class numbers (H, W) int64, and sentences on what was assumed."""

    cells: np.ndarray
    notes: tuple[str, ...] = ()


class Values(NamedTuple):
    """The different values of a mask: n numbers, in order, with their share of the pixels.

    Attributes:
        numbers: (n,) levels, indices of a palette, or 0xRRGGBB; `CLEAR` where see-through.
        colours: (n, 3), or None if the numbers are of more than 8 bits. shares: (n,).
        where: (H, W) the place of each pixel's value. indexed: whether the numbers are indices of a palette.
        lossy: whether the file may have changed values a little, as JPEG does.
    """

    numbers: np.ndarray
    colours: np.ndarray | None
    shares: np.ndarray
    where: np.ndarray
    indexed: bool = False
    lossy: bool = False

    @property
    def levels(self) -> np.ndarray | None:
        """The numbers, or grey levels (n,); None if a colour is not grey."""
        if self.colours is None:
            return self.numbers
        return self.colours[:, 0] if (np.ptp(self.colours, axis=1) == 0).all() else None

    def opaque(self) -> "Values":
        """Without see-through pixels, whose values stay in `where`."""
        seen = self.numbers != CLEAR
        shares = self.shares[seen] / max(self.shares[seen].sum(), 1e-12)
        colours = None if self.colours is None else self.colours[seen]
        return self._replace(numbers=self.numbers[seen], colours=colours, shares=shares)


def read_class_map(
    mask: Picture | np.ndarray, classes: Sequence[str], palette: np.ndarray, size: int | None = None
) -> ClassMap:
    """A picture of class numbers or colours, or an array of numbers (H, W) -> the classes of its pixels.

    Args:
        palette: colours of the classes, (K, 3) uint8.
        size: cut the central square and resize it to size x size by the nearest pixel first.

    Raises ValueError, saying how to mend it, if it stands for no class map or could be meant in two ways.
    """
    if isinstance(mask, np.ndarray):
        mask = Picture(Image.fromarray(mask.clip(CLEAR + 1, 2**31 - 1).astype(np.int32)), mask.shape[::-1])
    values = values_of(mask.image if size is None else nearest_square(mask.image, size))
    notes = []
    seen = values.opaque()._replace(lossy=mask.form in ("JPEG", "MPO"))
    if not len(seen.numbers):
        raise ValueError("the mask is transparent everywhere; give each pixel a class.")
    chosen, note = _decide(seen, classes, palette)
    if note is None and seen.lossy and len(chosen) > 1:
        raise ValueError(
            "the mask holds class numbers but was saved as JPEG, which blurs them; save it as PNG, or in the "
            "colours of the classes."
        )
    if len(seen.numbers) < len(values.numbers):  # transparent ones come first
        chosen = np.concatenate([[0], chosen])
        notes.append(f"Transparent parts became {classes[0]}.")
    return ClassMap(chosen[values.where].astype(np.int64), (*notes, *([note] if note else [])))


def values_of(image: Image.Image) -> Values:
    """The different values of a picture. Raises ValueError for floating-point pixels."""
    if image.mode == "F":
        raise ValueError("the mask's pixels are floating-point numbers; give class numbers, which are whole.")
    if image.mode.startswith("I"):
        return _of_numbers(np.asarray(image).astype(np.int64))
    see_through = is_transparent(image)
    if image.mode in ("1", "L") and not see_through:
        return _of_numbers(np.asarray(image).astype(np.int64))
    rgba = np.asarray(image.convert("RGBA")).astype(np.int32)
    packed = rgba[..., 0] << 16 | rgba[..., 1] << 8 | rgba[..., 2]
    indexed = image.mode == "P" and not see_through
    keys = np.where(rgba[..., 3] >= OPAQUE, packed, CLEAR) if see_through else packed
    keys = np.asarray(image).astype(np.int32) if indexed else keys
    numbers, first, where, counts = np.unique(keys, True, True, True)
    colours = rgba.reshape(-1, 4)[first, :3]
    return Values(numbers, colours, counts / keys.size, where.reshape(keys.shape), indexed)


def _of_numbers(keys: np.ndarray) -> Values:
    numbers, where, counts = np.unique(keys, return_inverse=True, return_counts=True)
    levels = 0 <= numbers[0] and numbers[-1] <= 255
    colours = numbers[:, None].repeat(3, 1) if levels else None
    return Values(numbers, colours, counts / keys.size, where.reshape(keys.shape))


def voc_palette() -> np.ndarray:
    """Colours of class numbers in PASCAL VOC, (256, 3): bits of the number, the lowest to the highest."""
    numbers, colours = np.arange(256), np.zeros((256, 3), np.int64)
    for bit in range(24):
        colours[:, bit % 3] |= (numbers >> bit & 1) << (7 - bit // 3)
    return colours


VOC = voc_palette()


def _decide(values: Values, classes: Sequence[str], palette: np.ndarray) -> tuple[np.ndarray, str | None]:
    """The class (n,) of each value, and a note unless they are plain numbers or the palette's colours."""
    colours, levels = values.colours, values.levels
    if colours is not None and (levels is None or (levels > len(classes)).any()):
        nearest, distance = _nearest(colours, palette)
        if (distance <= CLOSE).all():
            return nearest, ""
    if levels is not None and (found := _numbered(levels, classes)):
        return found
    if len(classes) == 2 and VOID not in classes and (found := _black_and_white(values, classes)):
        return found
    if colours is not None and levels is None:
        nearest, distance = _nearest(colours, VOC)
        if (distance <= 2).all() and (found := _numbered(nearest, classes)):
            return found[0], "Its colours are those of PASCAL VOC; each counts as its class number there."
        nearest, distance = _nearest(colours, palette)
        if values.shares[distance > FAR].sum() <= FEW:
            inexact = percent(values.shares[distance > 0].sum()).capitalize()
            return nearest, (
                f"{inexact} of its pixels have no colour of the palette; they became the class whose colour "
                "is nearest."
            )
    if values.indexed and not _partly_known(values, classes, palette):
        found = _numbered(values.numbers, classes)
        if found:
            return found[0], "Its palette’s colours stand for no class, so its numbers are taken."
    raise _refused(values, classes, palette)


def _nearest(colours: np.ndarray, palette: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The place of the nearest colour (n,) and its distance (n,); in parts, for little memory."""
    parts = np.array_split(colours.astype(np.float32), 1 + len(colours) // 4096)
    distances = [np.linalg.norm(part[:, None] - palette.astype(np.float32), axis=2) for part in parts]
    return np.concatenate([d.argmin(1) for d in distances]), np.concatenate([d.min(1) for d in distances])


def _numbered(numbers: np.ndarray, classes: Sequence[str]) -> tuple[np.ndarray, str | None] | None:
    """Class numbers as they are, `IGNORED` as void if there is such a class; None if they are no numbers."""
    if ((numbers >= 0) & (numbers < len(classes))).all():
        return numbers, None
    ignored = numbers == IGNORED
    if VOID not in classes or not ((numbers >= 0) & ((numbers < len(classes)) | ignored)).all():
        return None
    chosen = np.where(ignored, list(classes).index(VOID), numbers)
    if set(chosen) == {list(classes).index(VOID)} and len(numbers) > 1:
        return None  # black and white, of which both would be void
    return chosen, f"{IGNORED} is read as {VOID}."


def _black_and_white(values: Values, classes: Sequence[str]) -> tuple[np.ndarray, str] | None:
    """Black as the first class and white as the second; None if it is not black and white."""
    if values.colours is None:
        if not set(values.numbers) <= {0, 65535}:
            return None
        levels = values.numbers // 257
    else:
        grey = np.ptp(values.colours, axis=1) <= 40
        if values.shares[~grey].sum() > FEW:
            return None
        levels = values.colours.mean(1)
    said = f"Black is read as {classes[0]}, white as {classes[1]}."
    coloured = values.lossy or values.levels is None  # so no numbers
    white = levels > 127
    plain = white.any() and (_few_levels(levels) or (coloured and not white.all()))
    if plain and ((levels <= CLOSE / 2) | (levels >= 255 - CLOSE / 2)).all():
        return levels > 127, said
    return (levels > 127, f"{said} Greys in between count as the nearer one.") if is_soft(values) else None


def _few_levels(levels: np.ndarray) -> bool:
    """Whether there is one black and one white, so that 1 beside 0 and 255 is not taken for black."""
    return (levels < 128).sum() <= 1 and (levels > 127).sum() <= 1


def is_soft(values: Values) -> bool:
    """Whether it is black and white with soft edges or noise: several greys, few of them in the middle."""
    if values.colours is None:
        return False
    levels, shares = values.colours.mean(1), values.shares
    middle, white, black = (levels >= 64) & (levels < 192), levels >= 224, levels < 32
    several = ((levels > 1) & (levels < 255)).sum() >= 3 or not ((levels >= 32) & (levels < 224)).any()
    bright = ((levels > 160) & (levels < 255)).any()  # as numbers of classes hardly are
    none_stands_out = (shares[middle] <= 0.1).all()
    return bool(
        several and bright and none_stands_out and shares[middle].sum() <= SOFT
        and shares[white].sum() >= 0.01 and shares[black].sum() >= 0.01
    )  # fmt: skip


def _partly_known(values: Values, classes: Sequence[str], palette: np.ndarray) -> bool:
    """Whether most pixels have a known colour, so that the others would be no plain numbers either."""
    known = _nearest(values.colours, palette)[1] <= 3 * CLOSE
    if len(classes) == 2:
        known |= _nearest(values.colours, BLACK_AND_WHITE)[1] <= 3 * CLOSE
    return values.shares[known].sum() >= 0.5


def _refused(values: Values, classes: Sequence[str], palette: np.ndarray) -> ValueError:
    numbered = ", ".join(f"{index} = {name}" for index, name in enumerate(classes))
    if values.levels is None:
        names = zip(classes, palette, strict=True)
        colours = ", ".join(f"{name} = #{bytes(rgb).hex()}" for name, rgb in names)
        return ValueError(
            f"the mask has colours that stand for no class; use the palette ({colours}) or a picture of "
            f"class numbers ({numbered})."
        )
    wrong = [int(v) for v in values.levels if not 0 <= v < len(classes)]
    why = ""
    if wrong == [IGNORED]:
        why = f"; beside {classes[0]} it could be white or {VOID}"
        if VOID not in classes:
            why = f"; it often means not annotated, but there is no class {VOID!r}"
    return ValueError(
        f"found class number {wrong[0] if min(wrong) < 0 else max(wrong)}, but the classes are "
        f"{numbered}{why}; renumber the mask, or use the colours of the palette."
    )


def own_numbers(image: Image.Image, palette: np.ndarray) -> tuple[np.ndarray | None, str]:
    """The numbers (H, W) of a mask whose classes are not known, and how they were found.

    None for colours that say nothing. "soft": grey levels near black and white, now 0 and 255. "colours": by
    known colours, those of ``palette`` or of PASCAL VOC. "indices": of a palette, whose order may be any.
    "numbers": as they are.
    """
    values = values_of(image)
    found, how = _own(values, palette)
    return None if found is None else found[values.where].astype(np.int64), how


def _own(values: Values, palette: np.ndarray) -> tuple[np.ndarray | None, str]:
    levels = values.levels
    if levels is not None:
        return (np.where(levels > 127, 255, 0), "soft") if is_soft(values) else (levels, "numbers")
    for known in (palette, VOC):
        nearest, distance = _nearest(values.colours, known)
        if (distance <= 2).all():
            return nearest, "colours"
    nearest, distance = _nearest(values.colours, BLACK_AND_WHITE)
    if (distance <= CLOSE).all() and nearest.tolist() in ([0, 1], [1, 0]):
        return 255 * nearest, "colours"
    return (values.numbers, "indices") if values.indexed else (None, "colours")


def percent(share: float) -> str:
    """A share above 0 in words: never "0%", and "100%" only for all of it."""
    if share < 0.01:
        return "under 1%"
    return "over 99%" if 0.99 < share < 1 else f"{share:.0%}"
