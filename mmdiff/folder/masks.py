"""Masks coded by numbers or colours, which masks/classes.txt may list, as class numbers; void is 0."""

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageColor

from mmdiff.class_maps import LISTED, VOID, own_numbers
from mmdiff.folder.pictures import open_picture
from mmdiff.images import Picture, encoded
from mmdiff.modalities.base import palette

MOST = 255  # classes, whose numbers are kept in a byte
IGNORED = 255  # written by most tools where nothing is annotated
MOST_UNNAMED = 64  # different values of masks without a list of classes; more are blended edges
FEW_UNNAMED = 8  # of them may have any values
ASPECT_TOLERANCE = 0.02

Colour = tuple[int, int, int]


def read_classes(path: Path) -> dict[str, Colour | None]:
    """Names of the classes in the order of their numbers, with their colours where listed.

    Raises ValueError if the list cannot be read, is empty, or names a class or colour twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _from_json(json.loads(text)) if path.suffix == ".json" else _from_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{error}; write one class a line, such as 'sky' or 'sky 70 130 180'") from None
    classes = {VOID if name.casefold() == VOID else name: colour for name, colour in pairs}
    colours = [colour for _, colour in pairs if colour]
    if not 1 <= len(pairs) <= MOST:
        raise ValueError(f"it names {len(pairs)} classes; name 1 to {MOST}")
    if len(classes) < len(pairs) or len(set(colours)) < len(colours):
        raise ValueError("it names a class or a colour twice; make them differ")
    return classes


def _from_lines(text: str) -> list[tuple[str, Colour | None]]:
    """Lines such as `sky`, `sky 70 130 180`, `sky #4682b4` or `sky,70,130,180`."""
    pairs = []
    for line in text.splitlines():
        fields = re.fullmatch(r"(.*?)(?:[\s,;:]+(\d+)[\s,;]+(\d+)[\s,;]+(\d+)|[\s,;:]+(#\w+))?", line.strip())
        name, *numbers, code = fields.groups()
        if name:
            pairs.append((name, _colour(code or (None if numbers[0] is None else numbers))))
    return pairs


def _from_json(content: Any) -> list[tuple[str, Colour | None]]:
    """["sky", …], {"sky": [70, 130, 180], …} or [{"name": "sky", "colour": "#4682b4"}, …]."""
    if isinstance(content, dict):
        content = [{"name": name, "colour": colour} for name, colour in content.items()]
    if not isinstance(content, list):
        raise ValueError("it is neither a list nor a table")
    pairs = []
    for item in content:
        entry = {"name": item} if isinstance(item, str) else item
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or not entry["name"].strip():
            raise ValueError(f"{item!r} names no class")
        pairs.append((entry["name"].strip(), _colour(entry.get("colour", entry.get("color")))))
    return pairs


def _colour(value: Any) -> Colour | None:
    if value is None:
        return None
    if isinstance(value, str):
        return ImageColor.getrgb(value)[:3]
    try:
        numbers = tuple(int(v) for v in value)
    except (TypeError, ValueError, OverflowError):
        numbers = ()
    if len(numbers) != 3 or not all(0 <= v <= 255 for v in numbers):
        raise ValueError(f"{value!r} is no colour of three numbers from 0 to 255")
    return numbers


@dataclass(frozen=True)
class MaskFacts:
    """Facts about one mask.

    Attributes:
        size: (width, height).
        numbers: values that occur, None if the mask is coloured.
        colours: colours that occur, None if there are more than 256.
        how: the numbers were found, see `mmdiff.class_maps.own_numbers`.
        entries: numbers with their colours, if they are the indices of a palette that says nothing else.
    """

    size: tuple[int, int]
    numbers: frozenset[int] | None
    colours: frozenset[Colour] | None
    how: str = "numbers"
    entries: frozenset[tuple[int, Colour]] = frozenset()

    @property
    def grey(self) -> bool:
        """Whether all colours are grey, so that values may be numbers or grey levels."""
        return self.colours is not None and all(r == g == b for r, g, b in self.colours)

    def fits(self, photo: tuple[int, int]) -> bool:
        """Whether a photo of this (width, height) has the same shape, perhaps at another scale."""
        across, down = self.size[0] * photo[1], self.size[1] * photo[0]
        return abs(across - down) <= ASPECT_TOLERANCE * max(across, down)


def inspect_mask(path: Path) -> MaskFacts:
    """Decode a mask and list its values. Raises ValueError or OSError if it cannot be read."""
    mask = _open_mask(path)
    image = mask.image
    numbers, how = own_numbers(image, palette(LISTED))
    counted = image.convert("RGB").getcolors(256)
    values = None if numbers is None else frozenset(np.unique(numbers).tolist())
    entries = []
    if how == "indices":
        table = np.array(image.getpalette("RGB")).reshape(-1, 3)
        entries = [(value, tuple(table[value].tolist())) for value in values]
    colours = None if counted is None else frozenset(colour for _, colour in counted)
    return MaskFacts(mask.size, values, colours, how, frozenset(entries))


def by_list(mask: MaskFacts, listed: Mapping[str, Colour | None] | None) -> MaskFacts:
    """The same facts; where colours are listed, no others say a number."""
    coloured = mask.how == "colours" and any((listed or {}).values())
    return replace(mask, numbers=None) if coloured else mask


def clashing_palettes(
    masks: Mapping[Path, MaskFacts], listed: Mapping[str, Colour | None] | None
) -> list[Path]:
    """The masks whose numbers are those of palettes, if these disagree among each other.

    Masks that show only colours that are ``listed`` are read by these.
    """
    known = {colour for colour in (listed or {}).values() if colour}
    by_index = {p: m for p, m in masks.items() if m.entries and not (m.colours or {None}) <= known}
    entries = set().union(*(mask.entries for mask in by_index.values()))
    numbers, colours = zip(*entries, strict=True) if entries else ((), ())
    return list(by_index) if len(set(numbers)) < len(entries) or len(set(colours)) < len(entries) else []


@dataclass(frozen=True)
class MaskCoding:
    """The meaning of mask values, the same for all masks of a folder.

    Attributes:
        classes: names in the order of the numbers written; "void" comes first if there is such a class.
        numbers, colours: value or colour in a file -> number written.
        grey_is_number: a grey mask is read by its values even if its grey levels are listed colours.
    """

    classes: tuple[str, ...]
    numbers: dict[int, int]
    colours: dict[Colour, int]
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

    def seen(self, facts: MaskFacts) -> set[str]:
        """Names of the classes that this mask shows."""
        if self.by_colour(facts):
            return {self.classes[self.colours[colour]] for colour in facts.colours}
        return {self.classes[self.numbers[value]] for value in facts.numbers}

    def shrink(self, path: Path, facts: MaskFacts, size: tuple[int, int]) -> bytes:
        """A mask as it is stored: class numbers as PNG of (width, height) ``size``, never blended."""
        image = _open_mask(path).image
        if self.by_colour(facts):
            packing = np.array([1 << 16, 1 << 8, 1])
            values = np.asarray(image.convert("RGB")) @ packing
            table = {int(packing @ colour): number for colour, number in self.colours.items()}
        else:
            values, table = own_numbers(image, palette(LISTED))[0], self.numbers
        known = np.array(sorted(table))
        written = np.array([table[value] for value in known.tolist()], np.uint8)
        indices = Image.fromarray(written[np.searchsorted(known, values)])
        return encoded(indices.resize(size, Image.Resampling.NEAREST))


def decide_coding(masks: Iterable[MaskFacts], listed: Mapping[str, Colour | None] | None) -> MaskCoding:
    """The coding of all masks of a folder, by the list of classes of `read_classes` if there is one."""
    return _from_values(masks) if listed is None else _from_list(list(masks), listed)


def black_and_white(masks: Iterable[MaskFacts]) -> bool:
    """Whether 255 is a class and not void, because only it and 0 occur."""
    values = set().union(*(m.numbers for m in masks if m.numbers is not None))
    return IGNORED in values <= {0, IGNORED}


def _from_values(masks: Iterable[MaskFacts]) -> MaskCoding:
    """Every value that occurs is a class; masks with too many values are ignored."""
    plain = [m for m in masks if m.numbers is not None and len(m.numbers) <= MOST_UNNAMED]
    if black_and_white(plain):
        return MaskCoding(("background", "foreground"), {0: 0, IGNORED: 1}, {})
    values = set().union(*(m.numbers for m in plain))
    real = sorted(values - {IGNORED})
    sparse = len(real) > FEW_UNNAMED and max(real) >= 2 * len(real)  # as grey levels are, not class numbers
    if len(real) > MOST_UNNAMED or sparse:
        return MaskCoding((), {}, {})
    void = (VOID,) if IGNORED in values else ()
    numbers = {value: i for i, value in enumerate(real, len(void))} | ({IGNORED: 0} if void else {})
    return MaskCoding((*void, *(f"class {value}" for value in real)), numbers, {})


def _from_list(masks: list[MaskFacts], listed: Mapping[str, Colour | None]) -> MaskCoding:
    real = tuple(name for name in listed if name != VOID)
    by_colour = {colour: name for name, colour in listed.items() if colour}
    grey_is_number = any(
        m.grey and m.numbers <= {*range(len(listed)), IGNORED} and not m.colours <= by_colour.keys()
        for m in masks
    )
    by_value = [
        m
        for m in masks
        if m.numbers is not None
        and ((m.grey and grey_is_number) or m.colours is None or not m.colours <= by_colour.keys())
    ]
    white_is_class = len(real) == len(listed) == 2 and black_and_white(by_value)
    ignored = any(IGNORED in m.numbers for m in by_value) and not white_is_class
    has_void = VOID in listed or ignored
    classes = (VOID, *real) if has_void else real
    numbers = {value: classes.index(name) for value, name in enumerate(listed)}
    if white_is_class:
        numbers[IGNORED] = 1
    elif has_void:
        numbers.setdefault(IGNORED, 0)
    colours = {colour: classes.index(name) for colour, name in by_colour.items()}
    return MaskCoding(classes, numbers, colours, grey_is_number)


def _open_mask(path: Path) -> Picture:
    mask = open_picture(path.read_bytes())
    if mask.form in ("JPEG", "MPO"):
        raise ValueError("saved as JPEG, which blurs class numbers")
    if mask.transparent:
        raise ValueError("has transparent pixels")
    return mask
