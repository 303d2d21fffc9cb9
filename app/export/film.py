"""The timeline of a run as a film: one designed frame per step, as GIF or MP4.

A frame has a column per track (a run, its fork, what it is compared with) and in it a card per sample: the
picture, the mask over it, the likeliest labels and the nearest text.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from PIL import Image, ImageColor, ImageDraw, ImageFont

from app.run.history import Frame, Record, areas
from app.wording import overlay

Tracks = Record | Sequence[tuple[str, Record]]
Describe = Callable[[np.ndarray], Sequence[Any]]
Describes = Describe | Sequence[Describe]  # the same for all tracks, or one for each

PAPER, CARD, EDGE, SOFT = "#fafaf9", "#ffffff", "#e7e5e4", "#efedeb"
INK, QUIET, ACCENT, GIVEN = "#1c1917", "#78716c", "#3a6955", "#a8642a"
DESIGN = (PAPER, CARD, EDGE, SOFT, INK, QUIET, ACCENT, GIVEN, "#56534f", "#8e8c8b", "#c6c5c5", "#bbb8b5")
MARGIN, GAP, PAD = 26, 16, 16
HEAD, TITLE, SAMPLE = 78, 32, 24  # heights: of the head, of a track's title, of a sample's number
CAPTION, LEGEND = 26, 26  # heights above and below a picture
WORDS = 236  # width of the column of labels and texts
FAINT = 0.005  # probability below which a label is left out
LARGE, SMALL = 256, 192  # a picture's side, about: of a single one, of one among many
NARROW = 440  # the least width of a frame
LINE, BAR = 19, 33  # heights of a line of text and of a bar with its name
MAX_SAMPLES, MAX_LEGEND, MAX_LINES = 4, 4, 4
MASK_OPACITY = 0.62
FILM_MS, LAST_MS = 5000, 2000  # about how long it takes; how long the last frame is held
STEP_MS = (60, 250)  # how long a step may be shown


# -- films -------------------------------------------------------------------------------------------------


def write_gif(
    path: str | Path, tracks: Tracks, describe: Describes, samples: Sequence[int] | None = None
) -> None:
    """The film as an endless GIF, see `frames`. One palette and no dithering, so that nothing flickers."""
    pictures = frames(tracks, describe, samples)
    palette = _palette(pictures)
    indexed = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    times = [_step_ms(len(pictures))] * (len(pictures) - 1) + [LAST_MS]
    # Unoptimised, Pillow stores what changed of a frame as it is, which is ten times as fast and no larger.
    options = {"duration": times, "loop": 0, "optimize": False, "disposal": 1}
    indexed[0].save(path, "GIF", save_all=True, append_images=indexed[1:], **options)


def write_mp4(
    path: str | Path, tracks: Tracks, describe: Describes, samples: Sequence[int] | None = None
) -> None:
    """The film as H.264, see `frames`; the last frame is repeated for as long as it is held."""
    pictures = frames(tracks, describe, samples)
    step = _step_ms(len(pictures))
    pictures += pictures[-1:] * (LAST_MS // step - 1)
    rate = Fraction(1000, step)
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        options = {"crf": "15", "preset": "veryfast", "tune": "stillimage", "bf": "0"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "yuv420p"
        context = stream.codec_context
        context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
        context.color_primaries = context.color_trc = 1  # BT.709 as well; players guess what is not said
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames(tracks: Tracks, describe: Describes, samples: Sequence[int] | None = None) -> list[Image.Image]:
    """One RGB picture per step, all of the same even width and height.

    Args:
        tracks: a run, or several with their titles, side by side; at every step each shows its latest.
        describe: embeddings (B, D) -> a `mmdiff.clip.vocabulary.Description` of each, or nothing; of several
            tracks one for each, as the embeddings of one model mean nothing to another.
        samples: which samples to show, counted from 0, all if None; the first four of them, below each
            other, or two by two where there is one track.

    Raises ValueError if there is nothing to show.
    """
    tracks = [("", tracks)] if isinstance(tracks, Record) else list(tracks)
    if not tracks or not all(record.frames for _, record in tracks):
        raise ValueError("There is no step to show yet. Run it first.")
    fewest = min(record.num_samples for _, record in tracks)
    samples = tuple(range(fewest) if samples is None else samples)[:MAX_SAMPLES]
    if not samples or not all(0 <= k < fewest for k in samples):
        raise ValueError(f"There are {fewest} samples to show; choose among them.")
    describes = [describe] * len(tracks) if callable(describe) else describe
    cards, size = _arranged(tracks, samples, describes)
    still = _still([record for _, record in tracks], cards, size)
    shown = sorted({frame.index for _, record in tracks for frame in record.frames})
    total = max(record.job.steps for _, record in tracks)
    return [_frame(still, cards, index, total) for index in shown]


def overlaid(record: Record, frame: Frame, name: str, sample: int, side: int | None = None) -> Image.Image:
    """The mask `name` of a sample, see-through over the sample's picture if there is one: RGB.

    It has `side` pixels a side, the model's size if None.
    """
    probabilities = frame.x[name][sample].astype(np.float32) / 255
    size = (side, side) if side else probabilities.shape[:0:-1]
    pictures = [n for n, spec in record.modalities.items() if spec.kind == "image"]
    layer = overlay(probabilities, record.modalities[name].palette, bool(pictures))
    layer = layer.resize(size, Image.Resampling.NEAREST)
    if not pictures:
        return Image.alpha_composite(Image.new("RGBA", size, CARD), layer).convert("RGB")
    layer.putalpha(layer.getchannel("A").point(lambda alpha: round(MASK_OPACITY * alpha)))
    below = Image.fromarray(frame.x[pictures[0]][sample]).resize(size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(below.convert("RGBA"), layer).convert("RGB")


# -- where things are --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Card:
    """A sample of a track.

    Attributes:
        title: of the track, above its first card, or "". said: name of an embedding -> what it is in words,
            by step and sample. x, y, tile, height: pixels. numbered: whether its sample's number is shown.
    """

    title: str
    record: Record
    said: dict[str, list[Sequence[Any]]]
    sample: int
    x: int
    y: int
    tile: int
    height: int
    numbered: bool

    @property
    def visuals(self) -> list[Any]:
        return [spec for spec in self.record.modalities.values() if spec.kind in ("image", "mask")]

    @property
    def wordy(self) -> list[Any]:
        return [spec for spec in self.record.modalities.values() if spec.kind in ("label", "embedding")]

    @property
    def width(self) -> int:
        parts = [self.tile] * len(self.visuals) + [WORDS] * bool(self.wordy)
        return 2 * PAD + sum(parts) + GAP * (len(parts) - 1)

    @property
    def inner_top(self) -> int:
        """Where its panels begin, below its number if there is one."""
        return self.y + PAD + SAMPLE * self.numbered

    def left(self, panel: int) -> int:
        """Left edge of a panel."""
        return self.x + PAD + panel * (self.tile + GAP)

    def at(self, index: int) -> tuple[int, Frame]:
        """The latest frame up to a step, and its place in the record."""
        places = [i for i, frame in enumerate(self.record.frames) if frame.index <= index] or [0]
        return places[-1], self.record.frames[places[-1]]


def _arranged(
    tracks: Sequence[tuple[str, Record]], samples: tuple[int, ...], describes: Sequence[Describe]
) -> tuple[list[_Card], tuple[int, int]]:
    """All cards in their places, and the size of a frame."""
    target = LARGE if len(tracks) == len(samples) == 1 else SMALL
    sides = [s.shape[-1] for _, r in tracks for s in r.modalities.values() if s.kind in ("image", "mask")]
    tile = _side(max(sides, default=target), target)
    legend = any(spec.kind == "mask" for _, record in tracks for spec in record.modalities.values())
    numbered = len(samples) > 1
    height = 2 * PAD + SAMPLE * numbered + CAPTION + tile + LEGEND * legend
    top = HEAD + TITLE * any(title for title, _ in tracks)
    columns = 2 if len(tracks) == 1 and len(samples) > 2 else 1
    cards, x = [], MARGIN
    for (title, record), describe in zip(tracks, describes, strict=True):
        said = _said(record, describe)
        for place, sample in enumerate(samples):
            row, column = divmod(place, columns)
            left = cards[-1].x + cards[-1].width + GAP if column else x
            y = top + row * (height + GAP)
            name = "" if place else title
            cards.append(_Card(name, record, said, sample, left, y, tile, height, numbered))
        x = max(card.x + card.width for card in cards) + GAP
    width, bottom = max(x - GAP + MARGIN, NARROW), cards[-1].y + height + MARGIN
    return cards, (width + width % 2, bottom + bottom % 2)


def _side(side: int, target: int) -> int:
    """A whole multiple of a small picture's side, near the target; the target itself for a large one."""
    return side * round(target / side) if side <= target else target


def _said(record: Record, describe: Describe) -> dict[str, list[Sequence[Any]]]:
    """What the embeddings are in words, of all steps at once, for speed."""
    said = {}
    for spec in record.modalities.values():
        if spec.kind == "embedding":
            words = list(describe(np.concatenate([frame.x[spec.name] for frame in record.frames])))
            count = record.num_samples
            said[spec.name] = [words[i : i + count] for i in range(0, len(words), count)]
    return said


# -- what does not change from step to step ----------------------------------------------------------------


def _still(records: Sequence[Record], cards: Sequence[_Card], size: tuple[int, int]) -> Image.Image:
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    names = list(dict.fromkeys(record.checkpoint for record in records))
    seeds = list(dict.fromkeys(str(record.job.seed) for record in records))
    _text(draw, (MARGIN, 24), " / ".join(names), 20, INK, width=size[0] - 2 * MARGIN - 260)
    left = MARGIN + _width(_fitted(_latin(" / ".join(names)), 20, size[0] - 2 * MARGIN - 260), 20) + 12
    _text(draw, (left, 29), f"{'seed' if len(seeds) == 1 else 'seeds'} {' / '.join(seeds)}", 14, QUIET)
    for card in cards:
        _still_card(draw, card)
    return picture


def _still_card(draw: ImageDraw.ImageDraw, card: _Card) -> None:
    if card.title:
        _text(draw, (card.x + 2, card.y - TITLE + 4), card.title, 15, INK, width=card.width)
    box = (card.x, card.y, card.x + card.width - 1, card.y + card.height - 1)
    draw.rounded_rectangle(box, 12, CARD, EDGE)
    if card.numbered:
        number = f"Sample {card.sample + 1} · seed {card.record.job.seed + card.sample}"
        _text(draw, (card.left(0), card.y + PAD - 2), number, 13, QUIET)
    for panel, spec in enumerate(card.visuals):
        _caption(draw, card, spec, card.left(panel), card.inner_top, card.tile)
        if spec.kind == "mask":
            _legend(draw, card, spec, card.left(panel))


def _caption(draw: ImageDraw.ImageDraw, card: _Card, spec: Any, x: int, y: int, width: int) -> None:
    """The name of a modality and what became of it."""
    role = card.record.role(spec.name)
    _text(draw, (x, y), spec.name.capitalize(), 14, INK)
    _text(draw, (x + width, y + 1), role, 12, GIVEN if role == "given" else ACCENT, anchor="ra")


def _legend(draw: ImageDraw.ImageDraw, card: _Card, spec: Any, x: int) -> None:
    """The classes that cover most of the last step's mask, as many as fit."""
    y, right = card.inner_top + CAPTION + card.tile + 9, x + card.tile
    order = np.argsort(-areas(card.record.last, spec.name)[card.sample], kind="stable")[:MAX_LEGEND]
    for k in sorted(order.tolist()):
        name = _latin(spec.classes[k])
        if x + 17 + _width(name, 12) > right:
            return
        draw.rounded_rectangle((x, y + 1, x + 10, y + 11), 3, tuple(spec.palette[k].tolist()))
        _text(draw, (x + 16, y), name, 12, QUIET)
        x += 30 + round(_width(name, 12))


# -- what does ---------------------------------------------------------------------------------------------


def _frame(still: Image.Image, cards: Sequence[_Card], index: int, total: int) -> Image.Image:
    picture = still.copy()
    draw = ImageDraw.Draw(picture)
    right = picture.width - MARGIN
    _text(draw, (right, 29), f"Step {index} of {total}", 14, QUIET, anchor="ra")
    draw.rounded_rectangle((MARGIN, 56, right, 60), 2, EDGE)
    draw.rounded_rectangle((MARGIN, 56, MARGIN + (right - MARGIN) * index / total, 60), 2, ACCENT)
    for card in cards:
        _step(picture, draw, card, index)
    return picture


def _step(picture: Image.Image, draw: ImageDraw.ImageDraw, card: _Card, index: int) -> None:
    """A card's predictions at a step."""
    place, frame = card.at(index)
    for panel, spec in enumerate(card.visuals):
        left, top, last = card.left(panel), card.inner_top + CAPTION, card.tile - 1
        picture.paste(_tile(card, frame, spec), (left, top), _corners(card.tile))
        draw.rounded_rectangle((left, top, left + last, top + last), 6, outline=EDGE)
    x, y = card.left(len(card.visuals)), card.inner_top
    for spec in card.wordy:
        _caption(draw, card, spec, x, y, WORDS)
        if spec.kind == "label":
            many = len(card.wordy) == 1 or card.tile > SMALL
            y = _bars(draw, x, y + CAPTION, spec, frame.x[spec.name][card.sample], 5 if many else 3)
        else:
            said = card.said[spec.name]
            words = said[place][card.sample] if said else None
            y = _nearest(picture, draw, x, y + CAPTION, frame.x[spec.name][card.sample], words)


def _tile(card: _Card, frame: Frame, spec: Any) -> Image.Image:
    if spec.kind == "mask":
        return overlaid(card.record, frame, spec.name, card.sample, card.tile)
    picture = Image.fromarray(frame.x[spec.name][card.sample])
    return picture.resize((card.tile, card.tile), Image.Resampling.LANCZOS)


def _bars(draw: ImageDraw.ImageDraw, x: int, y: int, spec: Any, shares: np.ndarray, count: int) -> int:
    """The likeliest classes, and room for as many as there may be; returns where the next thing goes."""
    below = y + BAR * min(count, len(shares)) + 10
    for place, k in enumerate(np.argsort(-shares, kind="stable")[:count]):
        share = float(shares[k])
        if place and share < FAINT:
            break
        _text(draw, (x, y), spec.classes[k], 13, INK, width=WORDS - 44)
        _text(draw, (x + WORDS, y), f"{share:.0%}", 13, QUIET, anchor="ra")
        draw.rounded_rectangle((x, y + 19, x + WORDS, y + 23), 2, SOFT)
        if share > 0.01:
            draw.rounded_rectangle((x, y + 19, x + max(4, WORDS * share), y + 23), 2, ACCENT)
        y += BAR
    return below


def _nearest(
    picture: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, vector: np.ndarray, words: Any
) -> int:
    """The nearest text, or the numbers as a strip without words; returns where the next thing goes."""
    if words is None or not words.captions:
        strip = np.clip(128 + 128 * vector / (np.abs(vector).max() + 1e-9), 0, 255).astype(np.uint8)
        picture.paste(Image.fromarray(strip[None]).resize((WORDS, 24), Image.Resampling.NEAREST), (x, y + 2))
        return y + 40
    text, cosine = words.captions[0]
    for line in _wrapped(f"“{_latin(text)}”", 14, WORDS)[:MAX_LINES]:
        _text(draw, (x, y), line, 14, INK)
        y += LINE
    _text(draw, (x, y + 3), f"nearest text, cosine {cosine:.2f}", 12, QUIET)
    return y + LINE + 13


# -- text and colours --------------------------------------------------------------------------------------


def _text(
    draw: ImageDraw.ImageDraw,
    xy: tuple[float, float],
    text: str,
    size: int,
    colour: str,
    anchor: str = "la",
    width: float | None = None,
) -> None:
    """Text, cut to a width if one is given."""
    text = _latin(text)
    draw.text(xy, _fitted(text, size, width) if width else text, colour, _font(size), anchor)


def _fitted(text: str, size: int, width: float) -> str:
    """The text, or as much of it as fits and “…”."""
    if _width(text, size) <= width:
        return text
    text = text[:200]  # more never fits
    while text and _width(text + "…", size) > width:
        text = text[:-1]
    return text.rstrip() + "…"


def _wrapped(text: str, size: int, width: float) -> list[str]:
    """Lines of at most a width; a word that is longer still is cut."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if _width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(_fitted(word, size, width))
    return list(filter(None, lines))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size=size)


def _width(text: str, size: int) -> float:
    return _font(size).getlength(text)


def _latin(text: str) -> str:
    """The text in letters that Pillow's font has: it lacks accents and other scripts."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return "".join(c if c == " " or _in_font(c) else "?" for c in plain)


@cache
def _in_font(letter: str) -> bool:
    unknown = _font(16).getmask("\uffff")
    mask = _font(16).getmask(letter)
    return (mask.size, bytes(mask)) != (unknown.size, bytes(unknown))


@cache
def _corners(side: int) -> Image.Image:
    """Opaque but for round corners."""
    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 24, 255)
    return mask.resize((side, side), Image.Resampling.BOX)


def _palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """256 colours for the whole film: those of its design exactly, the rest for what it shows."""
    design = [ImageColor.getrgb(colour) for colour in DESIGN]
    chosen = [pictures[round(i * (len(pictures) - 1) / 5)] for i in range(6)]
    pixels = np.concatenate([np.asarray(picture)[HEAD::4, ::4].reshape(-1, 3) for picture in chosen])
    paper = (pixels[:, None] == np.array(design[:2])).all(2).any(1)  # most of every frame
    shown = Image.fromarray(pixels[~paper][None])
    count = 256 - len(design)
    colours = shown.quantize(count, Image.Quantize.MEDIANCUT, kmeans=1).getpalette()[: 3 * count]
    palette = Image.new("P", (1, 1))
    palette.putpalette([*colours, *(value for colour in design for value in colour)])
    return palette


def _step_ms(count: int) -> int:
    """How long each of so many steps is shown, in the hundredths of a second that GIF knows."""
    return min(max(FILM_MS // count, STEP_MS[0]), STEP_MS[1]) // 10 * 10
