"""The list of mask classes, masks/classes.txt or masks/classes.json."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import ImageColor

from mmdiff.modalities.mask import VOID

MOST = 255  # class numbers are kept in a byte

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """Names in the order of their numbers, and their colours where listed."""

    names: tuple[str, ...]
    colours: tuple[Colour | None, ...]


def read_classes(path: Path) -> ClassList:
    """Read the list of classes.

    Raises:
        ValueError: it cannot be read, is empty, or names a class or colour twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
        pairs = _from_json(json.loads(text)) if path.suffix == ".json" else _from_lines(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{error}; write one class a line, such as 'sky' or 'sky 70 130 180'") from None
    names = tuple(VOID if name.casefold() == VOID else name for name, _ in pairs)
    colours = tuple(colour for _, colour in pairs)
    listed = [colour for colour in colours if colour]
    if not names or len(names) > MOST:
        raise ValueError(f"it names {len(names)} classes; name 1 to {MOST}")
    if len(set(names)) < len(names) or len(set(listed)) < len(listed):
        raise ValueError("it names a class or a colour twice; make them differ")
    return ClassList(names, colours)


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
