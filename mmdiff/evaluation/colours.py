"""Do pictures have the colour that their text names? By a rule that uses neither model nor embedder.

A colour's name is a hue word, perhaps with "dark" or "pale" before it. The bounds were chosen by the captions
of the orchard set's training photos; `mmdiff.evaluate` reports how often the rule agrees with the captions of
its photos.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmdiff.colour_words import HUES, SHADES, WORDS
from mmdiff.evaluation import metrics
from mmdiff.evaluation.evaluation import Evaluation
from mmdiff.evaluation.skip import Skip

GREY_BELOW = 0.1  # saturation
BLACK_BELOW, WHITE_ABOVE = 0.2, 0.85  # brightness; white only where grey
BROWN_BELOW = 0.5  # brightness of what would else be orange
DARK_BELOW = 0.45  # brightness
PALE_BELOW, PALE_FROM = 0.4, 0.65  # saturation, if at least this bright


def median_colour(images: Tensor, inside: Tensor) -> Tensor:
    """Median of each channel over the pixels ``inside`` (B, H, W) bool: (B, 3) in [0, 1], NaN where none."""
    levels = ((images + 1) / 2).masked_fill(~inside[:, None], torch.nan)
    return levels.flatten(2).nanmedian(2).values


def hsv(colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Hue in degrees [0, 360), saturation and value in [0, 1], (B, ...) each, of (B, 3, ...) in [0, 1]."""
    red, green, blue = colours.unbind(1)
    value, darkest = colours.amax(1), colours.amin(1)
    chroma = (value - darkest).clamp(min=1e-12)
    hue = torch.where(
        value == red,
        (green - blue) / chroma % 6,
        torch.where(value == green, (blue - red) / chroma + 2, (red - green) / chroma + 4),
    )
    return 60 * hue, (value - darkest) / value.clamp(min=1e-12), value


def colour_names(colours: Tensor) -> list[str]:
    """A name such as "red" or "dark yellow-green" for each colour (B, 3) in [0, 1]; "" for NaN."""
    return [_name(*numbers) for numbers in zip(*(part.tolist() for part in hsv(colours)), strict=True)]


def _name(hue: float, saturation: float, value: float) -> str:
    if value != value:
        return ""
    if value < BLACK_BELOW:
        return "black"
    if saturation < GREY_BELOW:
        return "white" if value > WHITE_ABOVE else "grey"
    hue = (hue + 60) % 360 - 60
    word = next(word for bound, word in HUES if hue <= bound)
    if word == "orange" and value < BROWN_BELOW:
        word = "brown"
    if value < DARK_BELOW:
        return f"dark {word}"
    return f"pale {word}" if saturation < PALE_BELOW and value >= PALE_FROM else word


def hue_word(name: str) -> str:
    """The name without its shade: "dark red" -> "red"."""
    shade, _, rest = name.partition(" ")
    return rest if shade in SHADES else name


def is_colour(name: str) -> bool:
    """Whether the text is a name that `colour_names` can give."""
    return hue_word(name) in WORDS


class Said(NamedTuple):
    """The object of a text: its colour, such as "dark red", and its kind, such as "apple"."""

    colour: str
    kind: str


def parse(caption: str) -> Said | None:
    """Read "a photo of a COLOUR SHAPE KIND", where COLOUR is one or two words; None for any other text."""
    article, *words = caption.removeprefix("a photo of ").split() or [""]
    colour = " ".join(words[:-2])
    return Said(colour, words[-1]) if article in ("a", "an") and is_colour(colour) else None


def seen_colours(images: Tensor) -> list[str]:
    """The name of the median colour of each picture's object, on a white background."""
    return colour_names(median_colour(images, metrics.white_background_mask(images)))


def colour_agreement(seen: Sequence[str], asked: Sequence[Said]) -> dict[str, float]:
    """Share of pictures in the colour of their text: by hue word, and with "dark" or "pale" as well."""
    pairs = [(colour, said.colour) for colour, said in zip(seen, asked, strict=True)]
    return {
        "n": len(pairs),
        "colour": sum(hue_word(a) == hue_word(b) for a, b in pairs) / len(pairs),
        "colour_and_shade": sum(a == b for a, b in pairs) / len(pairs),
    }


def caption_colours(ev: Evaluation, images: Tensor, captions: Sequence[str]) -> dict[str, float]:
    """`colour_agreement` of pictures with those of their captions that name a colour."""
    ev.require_rule()
    asked = [parse(caption) for caption in captions]
    chosen = [k for k, said in enumerate(asked) if said]
    if not chosen:
        raise Skip("no caption names a colour")
    return colour_agreement(seen_colours(images[chosen]), [asked[k] for k in chosen])
