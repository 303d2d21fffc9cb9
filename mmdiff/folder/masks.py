"""Masks coded by numbers or colours, turned into class numbers; void is 0."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from mmdiff.folder.classes import VOID, ClassList
from mmdiff.folder.pictures import open_picture
from mmdiff.images import upright

IGNORED = 255  # written by most tools where nothing is annotated
MOST_UNNAMED = 64  # different values of masks without a list of classes; more are blended edges
ASPECT_TOLERANCE = 0.02


@dataclass(frozen=True)
class MaskFacts:
    """Facts about one mask.

    Attributes:
        size: (width, height).
        numbers: values that occur, None if the mask is coloured.
        colours: colours that occur, as 0xRRGGBB; None if there are more than 256.
    """

    size: tuple[int, int]
    numbers: frozenset[int] | None
    colours: frozenset[int] | None

    @property
    def grey(self) -> bool:
        """Whether all colours are grey, so that values may be numbers or grey levels."""
        return self.colours is not None and all(c == (c & 255) * 0x010101 for c in self.colours)

    def fits(self, photo: tuple[int, int]) -> bool:
        """Whether a photo of this (width, height) has the same shape, perhaps at another scale."""
        across, down = self.size[0] * photo[1], self.size[1] * photo[0]
        return abs(across - down) <= ASPECT_TOLERANCE * max(across, down)


def inspect_mask(path: Path) -> MaskFacts:
    """Decode a mask and list its values. Raises ValueError or OSError if it cannot be read."""
    image = _open_mask(path)
    numbers = _numbers(image)
    counted = image.convert("RGB").getcolors(256)
    return MaskFacts(
        image.size,
        None if numbers is None else frozenset(np.unique(numbers).tolist()),
        None if counted is None else frozenset(r << 16 | g << 8 | b for _, (r, g, b) in counted),
    )


@dataclass(frozen=True)
class MaskCoding:
    """The meaning of mask values, the same for all masks of a folder.

    Attributes:
        classes: names in the order of the numbers written; "void" comes first if there is such a class.
        numbers: value in a file -> number written.
        colours: 0xRRGGBB in a file -> number written.
        grey_is_number: a grey mask is read by its values even if its grey levels are listed colours.
    """

    classes: tuple[str, ...]
    numbers: dict[int, int]
    colours: dict[int, int]
    grey_is_number: bool = True

    @property
    def real_classes(self) -> tuple[str, ...]:
        return tuple(name for name in self.classes if name != VOID)

    def by_colour(self, facts: MaskFacts) -> bool:
        """Whether this mask is read by its colours."""
        if facts.colours is None or not facts.colours <= self.colours.keys():
            return False
        return not (facts.grey and self.grey_is_number)

    def reads(self, facts: MaskFacts) -> bool:
        """Whether every pixel of this mask has a class."""
        return self.by_colour(facts) or (facts.numbers is not None and facts.numbers <= self.numbers.keys())

    def seen(self, facts: MaskFacts) -> set[int]:
        """Numbers that are written for this mask."""
        if self.by_colour(facts):
            return {self.colours[colour] for colour in facts.colours}
        return {self.numbers[value] for value in facts.numbers}

    def shrink(self, path: Path, facts: MaskFacts, size: tuple[int, int]) -> bytes:
        """A mask as it is stored: class numbers as PNG of (width, height) ``size``, never blended."""
        image = _open_mask(path)
        if self.by_colour(facts):
            rgb = np.asarray(image.convert("RGB")).astype(np.int64)
            values, table = rgb[..., 0] << 16 | rgb[..., 1] << 8 | rgb[..., 2], self.colours
        else:
            values, table = _numbers(image), self.numbers
        known = np.array(sorted(table))
        written = np.array([table[value] for value in known.tolist()], np.uint8)
        indices = Image.fromarray(written[np.searchsorted(known, values)])
        buffer = io.BytesIO()
        indices.resize(size, Image.Resampling.NEAREST).save(buffer, "PNG")
        return buffer.getvalue()


def decide_coding(masks: Iterable[MaskFacts], listed: ClassList | None) -> MaskCoding:
    """The coding of all masks of a folder, by the list of classes if there is one."""
    masks = list(masks)
    return _from_values(masks) if listed is None else _from_list(masks, listed)


def black_and_white(masks: Iterable[MaskFacts]) -> bool:
    """Whether 255 is a class and not void, because only it and 0 occur."""
    values = set().union(*(m.numbers for m in masks if m.numbers is not None))
    return IGNORED in values <= {0, IGNORED}


def _from_values(masks: list[MaskFacts]) -> MaskCoding:
    """Every value that occurs is a class; masks with too many values are ignored."""
    plain = [m for m in masks if m.numbers is not None and len(m.numbers) <= MOST_UNNAMED]
    if black_and_white(plain):
        return MaskCoding(("background", "foreground"), {0: 0, IGNORED: 1}, {})
    values = set().union(*(m.numbers for m in plain))
    real = sorted(values - {IGNORED})
    if len(real) > MOST_UNNAMED:
        return MaskCoding((), {}, {})
    names = [f"class {value}" for value in real]
    first = int(IGNORED in values)
    numbers = {value: i for i, value in enumerate(real, first)} | ({IGNORED: 0} if first else {})
    return MaskCoding((VOID, *names) if first else tuple(names), numbers, {})


def _from_list(masks: list[MaskFacts], listed: ClassList) -> MaskCoding:
    real = [name for name in listed.names if name != VOID]
    by_number = {i: name for i, name in enumerate(listed.names)}
    by_colour = {
        r << 16 | g << 8 | b: name
        for name, (r, g, b) in ((n, c) for n, c in zip(listed.names, listed.colours, strict=True) if c)
    }
    grey_is_number = any(
        m.grey and m.numbers <= by_number.keys() | {IGNORED} and not m.colours <= by_colour.keys()
        for m in masks
    )
    by_value = [
        m
        for m in masks
        if m.numbers is not None
        and ((m.grey and grey_is_number) or m.colours is None or not m.colours <= by_colour.keys())
    ]
    white_is_class = len(real) == len(listed.names) == 2 and black_and_white(by_value)
    ignored = any(IGNORED in m.numbers for m in by_value) and not white_is_class
    has_void = VOID in listed.names or ignored
    classes = (VOID, *real) if has_void else tuple(real)
    numbers = {value: classes.index(name) for value, name in by_number.items()}
    if white_is_class:
        numbers[IGNORED] = 1
    elif has_void:
        numbers.setdefault(IGNORED, 0)
    colours = {colour: classes.index(name) for colour, name in by_colour.items()}
    return MaskCoding(classes, numbers, colours, grey_is_number)


def _open_mask(path: Path) -> Image.Image:
    image = open_picture(path.read_bytes())
    if image.format in ("JPEG", "MPO"):
        raise ValueError("saved as JPEG, which blurs class numbers")
    if image.mode in ("RGBA", "LA", "PA") and image.getchannel("A").getextrema() != (255, 255):
        raise ValueError("has transparent pixels")
    return upright(image)


def _numbers(image: Image.Image) -> np.ndarray | None:
    """Values of a mask of one channel, or whose three are equal: (H, W) int64, else None."""
    if image.mode in ("1", "L", "P") or image.mode.startswith("I"):
        return np.asarray(image).astype(np.int64)
    rgb = np.asarray(image.convert("RGB"))
    grey = (rgb[..., :1] == rgb).all()
    return rgb[..., 0].astype(np.int64) if grey else None
