"""The result player: every step of one or two runs, drawn and scrubbed in the browser without a round trip.

The server sends frames as they come, as JSON; the scripts keep them and draw everything from them:

    {"tracks": [{"id", "title", "running", "stopped", "total", "fork", "samples", "file", "story", "settled",
                 "heads": [{"name", "form", "role", ...}],
                 "frames": [{"i", "t", "exact", "x": {name: [one for each sample]}, "s": {name: [percent]},
                             "l": {name: percent}, "n": {name: [picture]}, "u": {name: {...}}}]}]}

What a sample of a head is depends on the form of its modality; see `_head` and `_samples`. "s" is how settled
a head seems meanwhile, "l" how much of its modality the network sees, as a share of signal and noise
together. "n" is the noisy state itself, in runs that are "noisy": only these have it decoded and sent. Of a
run that is over "story" has a sentence for each sample, and "settled" the step at which each head was
settled, {name: [one for each sample]}.
"""

import json
import math
import weakref
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.export import settings_file
from app.pictures import colour_mask, data_uri, quick_png
from app.run.defaults import ANCHOR
from app.run.history import Frame, Record, Track, areas, noisy_picture_of, picture_of, uncertainty
from app.run.story import SETTLED, how_settled, settled_at, settling, story
from app.wording import ROLES, WORDS, gloss
from mmdiff.modalities import Modality

STATIC = Path(__file__).parents[1] / "static"
# in this order one script
PARTS = ("views", "levels", "noise", "panels", "steps", "scene")
SCRIPTS = (*(f"player_{part}.js" for part in PARTS), "player.js")
SCRIPT = "\n".join((STATIC / name).read_text() for name in SCRIPTS)
TEMPLATE = (STATIC / "player.html").read_text()
LEVELS = 16  # of certainty that a mask's overlay has
NOISE = 30  # quality of noisy pictures
LABEL_SCALE = 10_000  # probabilities and areas are sent as whole numbers
MAX_STAMPS = 2**20  # bytes of settings, in all pictures of a step together; they include given pictures
HOLE, HOLE_SHARE = np.array([217, 123, 41]), 0.6  # tint of the pixels to fill in
COLD, ZERO, WARM = np.array([[47, 107, 154], [236, 234, 230], [196, 98, 45]])  # of an embedding's numbers


class Player:
    """The component, made in the current `gr.Blocks` context, and the messages to it.

    The browser may skip a message when several come at once, so live messages should repeat the last few
    frames, and the one that ends a run (`running=False`) should have all of them (`since=0`). The last frame
    of a run is sent without loss, the others' pictures nearly so. Tracks that a message leaves out go away.

    `elem_id` is the task's name and “-player”. The settings in the last pictures name the task.
    """

    def __init__(self, elem_id: str) -> None:
        words = [[name, title, count] for name, (title, count) in WORDS.items()]
        told = f"const WORDS = {_json(words)}, ROLES = {_json(ROLES)}, SETTLED = {100 * SETTLED:g};"
        self.component = gr.HTML(
            "",
            html_template=TEMPLATE,
            # not a prop, which a component that is not on the screen yet loses by an update
            js_on_load=f"{told}\n{SCRIPT}",
            apply_default_css=False,
            elem_id=elem_id,
        )
        self._task = elem_id.removesuffix("-player")
        self._kept: dict[Hashable, str] = {}

    def value(self, tracks: Sequence[Track]) -> str:
        """The component's value that shows these tracks, JSON."""
        return f'{{"tracks":[{",".join(map(self._track, tracks))}]}}'

    def _track(self, track: Track) -> str:
        record = track.record
        facts = {
            "id": track.id,
            "title": track.title,
            "running": track.running,
            "stopped": not track.running and not record.finished,
            "total": record.request.steps,
            "fork": track.fork_step,
            "samples": record.request.num_samples,
            "noisy": record.noisy,
            "file": f"mmdiff_{record.checkpoint}_{record.request.seed}",
            **_told(track),
        }
        heads = self._once(
            record.request,
            tuple(record.modalities),
            lambda: _json([_head(record, m) for m in record.modalities.values()]),
        )
        due = [f for f in record.frames if f.index > track.since and f.index not in track.sent]
        frames = ",".join(self._frame(track, frame) for frame in due)
        return f'{_json(facts)[:-1]},"heads":{heads},"frames":[{frames}]}}'

    def _frame(self, track: Track, frame: Frame) -> str:
        record = track.record
        exact = frame is record.last and (record.finished or not track.running)

        def make() -> str:
            stamp = _stamp(record, self._task) if exact else None
            return _json(_frame(record, frame, exact, stamp))

        return self._once(frame, (exact, *record.modalities), make)

    def _once(self, owner: Any, what: Hashable, make: Callable[[], str]) -> str:
        """The text that `make` gives, kept for as long as `owner` lives."""
        key = id(owner), what
        if key not in self._kept:
            self._kept[key] = make()
            weakref.finalize(owner, self._kept.pop, key, None).atexit = False
        return self._kept[key]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


def _told(track: Track) -> dict[str, Any]:
    """Of each sample how it went; nothing as long as steps are missing."""
    record, samples = track.record, range(track.record.request.num_samples)
    stories = [] if track.running or record.between else [story(record, k) for k in samples]
    if not any(stories):
        return {"story": stories, "settled": {}}
    steps = {spec.name: [settled_at(record, spec, k) for k in samples] for spec in settling(record)}
    return {"story": stories, "settled": steps}


def _head(record: Record, spec: Modality) -> dict[str, Any]:
    head: dict[str, Any] = {"name": spec.name, "form": spec.form, "role": record.role(spec.name)}
    head["gloss"] = gloss(spec)
    if spec.classes:
        head["classes"] = list(spec.classes)
    if spec.name in record.taught and head["role"] != "given":
        head["taught"] = record.taught[spec.name]
    if spec.form == "class_map":
        head["colours"] = [f"#{bytes(rgb).hex()}" for rgb in spec.palette]
    now = record.request.conditions[-1]
    if spec.takes_text and isinstance(now.given.get(spec.name), str):
        head["text"] = now.given[spec.name]
    if spec.name == ANCHOR and now.known_pixels is not None and spec.name in now.given:
        photo = np.asarray(now.given[spec.name], dtype=np.float32)
        tinted = (1 - HOLE_SHARE) * photo + HOLE_SHARE * HOLE
        head["before"] = quick_png(_picture(np.where(now.known_pixels[..., None], photo, tinted)))
    return head


def _frame(record: Record, frame: Frame, exact: bool, stamp: PngInfo | None) -> dict[str, Any]:
    """`exact`: pictures without loss. `stamp`: the settings, for pictures to carry."""
    draw = partial(quick_png, pnginfo=stamp) if exact else _webp
    x = {name: _samples(record, frame, spec, draw, stamp) for name, spec in record.modalities.items()}
    created = [spec for name, spec in record.modalities.items() if record.role(name) != "given"]
    settled = {spec.name: np.rint(100 * how_settled(record, frame, spec)).tolist() for spec in created}
    sent = {
        "i": frame.index,
        "t": frame.t,
        "exact": exact,
        "x": x,
        "s": settled,
        "l": _decided(record, frame),
    }
    if frame.noisy:
        sent["n"] = {spec.name: _noise(frame, spec) for spec in record.dense if spec.name in frame.noisy}
    if record.request.num_samples > 1:
        sent["u"] = {spec.name: _heat(uncertainty(frame, spec)) for spec in record.dense}
    return sent


def _decided(record: Record, frame: Frame) -> dict[str, int]:
    """Percent of signal in what the network saw of each modality, sigmoids of levels; 100 at the end."""
    levels = {n: level for n, level in frame.levels.items() if n in record.modalities}
    if frame.index == record.request.steps:
        return dict.fromkeys(levels, 100)
    return {name: round(100 / (1 + math.exp(-level))) for name, level in levels.items()}


def _noise(frame: Frame, spec: Modality) -> list[str]:
    """The noisy state of each sample, small: nobody sees what is lost in noise."""
    draw = quick_png if spec.form == "class_map" else partial(data_uri, form="WEBP", quality=NOISE, method=0)
    return [draw(noisy_picture_of(frame, spec, k)) for k in range(len(frame.noisy[spec.name]))]


def _stamp(record: Record, task: str) -> PngInfo | None:
    """The settings, which the last pictures contain as those in the zip do; None if they are too large."""
    try:
        stamp = settings_file.stamp(record.request, record.checkpoint, task)
    except ValueError:  # a photo is too large for settings; the result is shown all the same
        return None
    size = sum(len(data) for _, data, *_ in stamp.chunks)
    return stamp if size * len(record.dense) * record.request.num_samples <= MAX_STAMPS else None


def _samples(
    record: Record, frame: Frame, spec: Modality, draw: Callable[[Image.Image], str], stamp: PngInfo | None
) -> list[Any]:
    """What the scripts draw a modality's panel from, for each sample."""
    x = frame.x[spec.name]
    if spec.form == "picture":
        return [draw(picture_of(frame, spec, k)) for k in range(len(x))]
    if spec.form == "class_map":
        return _masks(frame, spec, bool(record.of_form("picture")), stamp)
    if spec.form == "class":
        return np.rint(LABEL_SCALE * x).astype(int).tolist()
    return [_words(description) for description in record.said(spec, x)] or [_strip(v.ravel()) for v in x]


def _picture(values: np.ndarray) -> Image.Image:
    return Image.fromarray(np.rint(values).astype(np.uint8))


_webp = partial(data_uri, form="WEBP", quality=90, method=0)  # nearly without loss


def _masks(frame: Frame, spec: Modality, over: bool, stamp: PngInfo | None) -> list[dict[str, Any]]:
    """o: overlay. m: class numbers as a palette picture. c: certainty, grey. a: areas of the classes."""
    shares = np.rint(LABEL_SCALE * areas(frame, spec)).astype(int).tolist()
    certainty = frame.x[spec.name].max(1)
    return [
        {
            "o": _overlay(frame.classes[spec.name][k], certainty[k], spec.palette, over),
            "m": quick_png(picture_of(frame, spec, k), pnginfo=stamp),
            "c": _webp(Image.fromarray(certainty[k])),
            "a": share,
        }
        for k, share in enumerate(shares)
    ]


def _overlay(classes: np.ndarray, certainty: np.ndarray, palette: np.ndarray, over: bool) -> str:
    """Classes (H, W) uint8 and certainty (H, W) uint8 -> picture with a transparent palette, a data URI.

    The fainter the less certain, in a few levels, which keeps it small. Over a picture the first class
    (background or void) is half as opaque, so that the others stand out.
    """
    levels = min(LEVELS, 256 // len(palette))
    level = np.rint(certainty / 255 * (levels - 1)).astype(np.uint8)
    alpha = np.rint(np.linspace(255 if levels == 1 else 0, 255, levels)).astype(np.uint8)
    alphas = np.tile(alpha, (len(palette), 1))
    if over:
        alphas[0] //= 2
    image = colour_mask(classes * np.uint8(levels) + level, palette.repeat(levels, 0))
    image.info["transparency"] = alphas.tobytes()
    return quick_png(image)


def _words(description: Any) -> dict[str, list[list[Any]]]:
    """The nearest texts with their cosines."""
    return {
        name: [[text, round(float(cosine), 4)] for text, cosine in getattr(description, name)[:count]]
        for name, (_, count) in WORDS.items()
    }


def _strip(vector: np.ndarray) -> dict[str, Any]:
    """The numbers (D,) as a strip of colours."""
    share = (vector / (np.abs(vector).max() + 1e-9))[:, None]
    colours = ZERO + np.abs(share) * (np.where(share < 0, COLD, WARM) - ZERO)
    return {"strip": quick_png(_picture(colours[None])), "size": len(vector)}


def _heat(values: np.ndarray) -> dict[str, Any]:
    """(H, W) in [0, 1] -> grey picture, 0 ... 255 (the page colours it), the largest value and the mean."""
    numbers = {"max": round(float(values.max()), 4), "mean": round(float(values.mean()), 4)}
    return {"map": _webp(_picture(255 * values.clip(0, 1)))} | numbers
