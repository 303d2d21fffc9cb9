"""Text on pictures, in the font that comes with Pillow."""

import unicodedata
from functools import cache

from PIL import ImageDraw, ImageFont


def write(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    anchor: str = "la",
    width: float | None = None,
) -> float:
    """Text, cut to a width if one is given; returns how wide it is."""
    text = fitted(latin(text), size, width) if width else latin(text)
    draw.text(xy, text, colour, _font(size), anchor)
    return width_of(text, size)


def fitted(text: str, size: int, width: float) -> str:
    """The text, cut off with “…” where it does not fit."""
    if width_of(text, size) <= width:
        return text
    text = text[:200]  # more never fits
    while text and width_of(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def wrapped(text: str, size: int, width: float) -> list[str]:
    """Lines of at most a width; a word that is longer still is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if width_of(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(fitted(word, size, width))
    return list(filter(None, lines))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def width_of(text: str, size: int) -> float:
    return _font(size).getlength(text)


def latin(text: str) -> str:
    """The text without accents and with “?” for other scripts, which Pillow's font lacks."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c == " " or _in_font(c) else "?" for c in plain)


@cache
def _in_font(letter: str) -> bool:
    unknown = _font(16).getmask("\uffff")
    mask = _font(16).getmask(letter)
    return (mask.size, bytes(mask)) != (unknown.size, bytes(unknown))
