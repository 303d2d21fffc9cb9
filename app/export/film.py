"""The timeline of a run as a film: one designed frame per step, as GIF or MP4.

A frame has a column per run (with its fork, or another run to compare) and in it a card per sample: the
picture, the mask over it, the likeliest labels and the nearest text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageColor, ImageDraw

from app.export.lettering import latin, width_of, wrapped, write
from app.run.history import Frame, Record, areas, picture_of
from app.wording import ROLES
from mmdiff.modalities import Modality

Tracks = Sequence[tuple[str, Record]]  # runs with their titles

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
FILM_MS, LAST_MS = 5000, 2000  # length of the film, about; how long the last frame is held
BAYER = np.array([[0, 8, 2, 10], [12, 4, 14, 6], [3, 11, 1, 9], [15, 7, 13, 5]]) * 0.6 - 4
STEP_MS = (60, 250)  # shortest and longest time for a step


def write_gif(file: str | Path | BinaryIO, tracks: Tracks) -> None:
    """The film as an endless GIF, see `frames`. One palette and dots in fixed places: nothing flickers."""
    pictures = frames(tracks)
    palette = _palette(pictures)
    nearest = _nearest_colours(palette)
    indexed = [_indexed(picture, palette, nearest) for picture in pictures]
    times = [_step_ms(len(pictures))] * (len(pictures) - 1) + [LAST_MS]
    # Unoptimised, Pillow stores the changed part of a frame as it is: ten times as fast and no larger.
    options = {"duration": times, "loop": 0, "optimize": False, "disposal": 1}
    indexed[0].save(file, "GIF", save_all=True, append_images=indexed[1:], **options)


def write_mp4(path: str | Path, tracks: Tracks) -> None:
    """The film as H.264, see `frames`; the last frame is repeated for as long as it is held."""
    import av  # late, as the server starts without it
    from av.video.reformatter import ColorRange, Colorspace

    pictures = frames(tracks)
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
        context.color_primaries = context.color_trc = 1  # BT.709 as well; players guess if it is missing
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            frame = frame.reformat(format="yuv420p", dst_colorspace=Colorspace.ITU709)
            frame.pts, frame.time_base = index, 1 / rate
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames(tracks: Tracks) -> list[Image.Image]:
    """One RGB picture per step, all of the same even width and height.

    Args:
        tracks: a run, or several side by side; at every step each shows its latest. Of each the first four
            samples are shown, below each other, or two by two where there is one track.

    Raises ValueError if there is nothing to show.
    """
    if not tracks or not all(record.frames for _, record in tracks):
        raise ValueError("There is no step to show yet. Run it first.")
    cards, size = _arranged(tracks)
    return [_frame(cards, size, k) for k in sorted({frame.index for _, r in tracks for frame in r.frames})]


def overlaid(
    record: Record, frame: Frame, spec: Modality, sample: int, side: int | None = None
) -> Image.Image:
    """A sample's class map as a transparent layer over the sample's picture, if there is one: RGB.

    The fainter, the less certain; over a picture the first class (background or void) is left clear. The
    result has `side` pixels a side, the model's size if None.
    """
    classes, opacity = frame.classes[spec.name][sample], frame.x[spec.name][sample].max(0)
    size = (side or spec.image_size,) * 2
    below = record.of_form("picture")[:1]
    if below:
        opacity = np.where(classes == 0, 0, opacity)
    layer = Image.fromarray(np.dstack([spec.palette[classes], opacity.astype(np.uint8)]))
    layer = layer.resize(size, Image.Resampling.NEAREST)
    if not below:
        return Image.alpha_composite(Image.new("RGBA", size, CARD), layer).convert("RGB")
    layer.putalpha(layer.getchannel("A").point(lambda alpha: round(MASK_OPACITY * alpha)))
    photo = picture_of(frame, below[0], sample).resize(size, Image.Resampling.LANCZOS)
    return Image.alpha_composite(photo.convert("RGBA"), layer).convert("RGB")


@dataclass(frozen=True)
class _Card:
    """A sample of a track.

    Attributes:
        title: of the track, above its first card, or "". x, y, tile, height: pixels.
        numbered: whether its sample's number is shown.
    """

    title: str
    record: Record
    sample: int
    x: int
    y: int
    tile: int
    height: int
    numbered: bool

    @property
    def wordy(self) -> list[Modality]:
        return self.record.of_form("class", "vector")

    @property
    def width(self) -> int:
        parts = [self.tile] * len(self.record.dense) + [WORDS] * bool(self.wordy)
        return 2 * PAD + sum(parts) + GAP * (len(parts) - 1)

    @property
    def inner_top(self) -> int:
        """Where its panels begin, below its number if there is one."""
        return self.y + PAD + SAMPLE * self.numbered

    def left(self, panel: int) -> int:
        """Left edge of a panel."""
        return self.x + PAD + panel * (self.tile + GAP)

    def at(self, index: int) -> Frame:
        """The latest frame up to a step."""
        return ([f for f in self.record.frames if f.index <= index] or self.record.frames[:1])[-1]


def _arranged(tracks: Tracks) -> tuple[list[_Card], tuple[int, int]]:
    """All cards in their places, and the size of a frame."""
    samples = min(MAX_SAMPLES, *(record.request.num_samples for _, record in tracks))
    target = LARGE if len(tracks) == samples == 1 else SMALL
    side = max((spec.image_size for _, record in tracks for spec in record.dense), default=target)
    tile = side * round(target / side) if side <= target else target  # small pictures have whole pixels
    legend = any(record.of_form("class_map") for _, record in tracks)
    numbered = samples > 1
    height = 2 * PAD + SAMPLE * numbered + CAPTION + tile + LEGEND * legend
    top = HEAD + TITLE * any(title for title, _ in tracks)
    columns = 2 if len(tracks) == 1 and samples > 2 else 1
    cards, x = [], MARGIN
    for title, record in tracks:
        for sample in range(samples):
            row, column = divmod(sample, columns)
            left = cards[-1].x + cards[-1].width + GAP if column else x
            y = top + row * (height + GAP)
            name = "" if sample else title
            cards.append(_Card(name, record, sample, left, y, tile, height, numbered))
        x = max(card.x + card.width for card in cards) + GAP
    width, bottom = max(x - GAP + MARGIN, NARROW), cards[-1].y + height + MARGIN
    return cards, (width + width % 2, bottom + bottom % 2)


def _frame(cards: Sequence[_Card], size: tuple[int, int], index: int) -> Image.Image:
    picture, right = Image.new("RGB", size, PAPER), size[0] - MARGIN
    draw = ImageDraw.Draw(picture)
    names = " / ".join(dict.fromkeys(card.record.checkpoint for card in cards))
    seeds = list(dict.fromkeys(str(card.record.request.seed) for card in cards))
    left = MARGIN + write(draw, (MARGIN, 24), names, 20, INK, width=right - MARGIN - 260) + 12
    write(draw, (left, 29), f"{'seed' if len(seeds) == 1 else 'seeds'} {' / '.join(seeds)}", 14, QUIET)
    total = max(card.record.request.steps for card in cards)
    write(draw, (right, 29), f"Step {index} of {total}", 14, QUIET, anchor="ra")
    draw.rounded_rectangle((MARGIN, 56, right, 60), 2, EDGE)
    draw.rounded_rectangle((MARGIN, 56, MARGIN + (right - MARGIN) * index / total, 60), 2, ACCENT)
    for card in cards:
        _draw(card, card.at(index), picture, draw)
    return picture


def _draw(card: _Card, frame: Frame, picture: Image.Image, draw: ImageDraw.ImageDraw) -> None:
    if card.title:
        write(draw, (card.x + 2, card.y - TITLE + 4), card.title, 15, INK, width=card.width)
    box = (card.x, card.y, card.x + card.width - 1, card.y + card.height - 1)
    draw.rounded_rectangle(box, 12, CARD, EDGE)
    if card.numbered:
        number = f"Sample {card.sample + 1} · seed {card.record.request.seed + card.sample}"
        write(draw, (card.left(0), card.y + PAD - 2), number, 13, QUIET)
    for panel, spec in enumerate(card.record.dense):
        x, y, side = card.left(panel), card.inner_top + CAPTION, card.tile
        _caption(draw, card, spec, x, card.inner_top, side)
        if spec.form == "class_map":
            _legend(draw, card, spec, x)
            shown = overlaid(card.record, frame, spec, card.sample, side)
        else:
            shown = picture_of(frame, spec, card.sample).resize((side, side), Image.Resampling.LANCZOS)
        picture.paste(shown, (x, y), _corners(side))
        draw.rounded_rectangle((x, y, x + side - 1, y + side - 1), 6, outline=EDGE)
    x, y = card.left(len(card.record.dense)), card.inner_top
    for spec in card.wordy:
        _caption(draw, card, spec, x, y, WORDS)
        value = frame.x[spec.name][card.sample]
        if spec.form == "class":
            many = len(card.wordy) == 1 or card.tile > SMALL
            y = _bars(draw, x, y + CAPTION, spec, value, 5 if many else 3)
        else:
            y = _nearest(picture, draw, x, y + CAPTION, value, card.record.said(spec, value[None]))


def _caption(draw: ImageDraw.ImageDraw, card: _Card, spec: Modality, x: int, y: int, width: int) -> None:
    """The name of a modality and its role."""
    role = ROLES[card.record.role(spec.name)]
    write(draw, (x, y), spec.name.capitalize(), 14, INK)
    write(draw, (x + width, y + 1), role, 12, GIVEN if role == ROLES["given"] else ACCENT, anchor="ra")


def _legend(draw: ImageDraw.ImageDraw, card: _Card, spec: Modality, x: int) -> None:
    """The largest classes of the last step's mask, as many as fit."""
    y, right = card.inner_top + CAPTION + card.tile + 9, x + card.tile
    order = np.argsort(-areas(card.record.last, spec)[card.sample], kind="stable")[:MAX_LEGEND]
    for k in sorted(order.tolist()):
        name = latin(spec.classes[k])
        if x + 17 + width_of(name, 12) > right:
            return
        draw.rounded_rectangle((x, y + 1, x + 10, y + 11), 3, tuple(spec.palette[k].tolist()))
        write(draw, (x + 16, y), name, 12, QUIET)
        x += 30 + round(width_of(name, 12))


def _bars(draw: ImageDraw.ImageDraw, x: int, y: int, spec: Modality, shares: np.ndarray, count: int) -> int:
    """The likeliest classes; returns the y below them and below the room for `count`."""
    below = y + BAR * min(count, len(shares)) + 10
    for place, k in enumerate(np.argsort(-shares, kind="stable")[:count]):
        share = float(shares[k])
        if place and share < FAINT:
            break
        write(draw, (x, y), spec.classes[k], 13, INK, width=WORDS - 44)
        write(draw, (x + WORDS, y), f"{share:.0%}", 13, QUIET, anchor="ra")
        draw.rounded_rectangle((x, y + 19, x + WORDS, y + 23), 2, SOFT)
        if share > 0.01:
            draw.rounded_rectangle((x, y + 19, x + max(4, WORDS * share), y + 23), 2, ACCENT)
        y += BAR
    return below


def _nearest(
    picture: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, vector: np.ndarray, words: Sequence[Any]
) -> int:
    """The nearest text or, without words, the numbers as a strip; returns the y below it."""
    if not words or not words[0].captions:
        strip = np.clip(128 + 128 * vector / (np.abs(vector).max() + 1e-9), 0, 255).astype(np.uint8).ravel()
        picture.paste(Image.fromarray(strip[None]).resize((WORDS, 24), Image.Resampling.NEAREST), (x, y + 2))
        return y + 40
    text, cosine = words[0].captions[0]
    for line in wrapped(f"“{latin(text)}”", 14, WORDS)[:MAX_LINES]:
        write(draw, (x, y), line, 14, INK)
        y += LINE
    write(draw, (x, y + 3), f"nearest caption, similarity {cosine:.2f}", 12, QUIET)
    return y + LINE + 13


@cache
def _corners(side: int) -> Image.Image:
    """Opaque but for round corners."""
    mask = Image.new("L", (4 * side, 4 * side))
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * side - 1, 4 * side - 1), 24, 255)
    return mask.resize((side, side), Image.Resampling.BOX)


def _palette(pictures: Sequence[Image.Image]) -> Image.Image:
    """256 colours for the whole film: those of its design exactly, the rest for its pictures."""
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


def _nearest_colours(palette: Image.Image) -> np.ndarray:
    """Number of the nearest colour of the palette to each cell of 4 x 4 x 4 colours: (64, 64, 64) uint8."""
    from scipy.spatial import cKDTree  # late, too

    colours = np.array(palette.getpalette()).reshape(-1, 3)
    centres = 4 * np.indices((64, 64, 64)).reshape(3, -1).T + 1.5
    return cKDTree(colours).query(centres)[1].astype(np.uint8).reshape(64, 64, 64)


def _indexed(picture: Image.Image, palette: Image.Image, nearest: np.ndarray) -> Image.Image:
    """The picture in the palette's colours, ordered dithering between them against bands in soft shadows.

    What has a colour of the palette exactly, as the design has, stays free of dots.
    """
    pixels, (height, width) = np.asarray(picture), picture.size[::-1]
    pattern = np.tile(BAYER, (height // 4 + 1, width // 4 + 1))[:height, :width, None]
    red, green, blue = np.moveaxis(np.clip(pixels + pattern, 0, 255).astype(np.uint8) // 4, -1, 0)
    indexed = picture.quantize(palette=palette, dither=Image.Dither.NONE)
    exact = (np.asarray(indexed.convert("RGB")) == pixels).all(-1)
    indexed.paste(Image.fromarray(nearest[red, green, blue]), mask=Image.fromarray(~exact))
    return indexed


def _step_ms(count: int) -> int:
    """Milliseconds for each of `count` steps, in the hundredths of a second that GIF knows."""
    return min(max(FILM_MS // count, STEP_MS[0]), STEP_MS[1]) // 10 * 10
