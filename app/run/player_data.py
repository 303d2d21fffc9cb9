"""The result player: every step of one or two runs, drawn and scrubbed in the browser without a round trip.

The server sends frames as they come, as JSON; the scripts keep them and draw everything from them:

    {"tracks": [{"id", "title", "running", "stopped", "total", "fork", "samples", "file",
                 "heads": [{"name", "kind", "role", ...}],
                 "frames": [{"i", "t", "exact", "x": {name: [one for each sample]}, "u": {name: {...}}}]}]}

What a sample of a head is depends on its kind; see `HEADS` and `SAMPLES`.
"""

from __future__ import annotations

import base64
import io
import json
import weakref
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from app.controls.adapters import colour_mask
from app.export import settings_file as recipe
from app.run.history import Frame, Record, areas, uncertainty
from app.run.job import Job
from app.wording import WORDS, png

STATIC = Path(__file__).parents[1] / "static"
SCRIPTS = ("player_panels.js", "player_steps.js", "player.js")  # in this order one script
SCRIPT = "\n".join((STATIC / name).read_text() for name in SCRIPTS)
TEMPLATE = """
<div class="player" data-state="empty" data-step="0" data-total="0" data-sample="0">
  <p class="nothing">The result appears here, step by step.</p>
  <div class="bar">
    <button class="play" aria-label="Play"><svg viewBox="0 0 16 16" aria-hidden="true">
      <path class="start" d="M4.5 2.5v11l9-5.5z"/><path class="pause" d="M4 3h3v10H4zM9 3h3v10H9z"/></svg>
    </button>
    <input class="scrubber" type="range" min="1" max="1" step="1" aria-label="Step">
    <output class="where"></output>
  </div>
  <div class="lanes"></div>
</div>
"""
LEVELS = 16  # of certainty that a mask's overlay has
LABEL_SCALE = 10_000  # probabilities and areas are sent as whole numbers
MAX_STAMPS = 2**20  # bytes of settings, in all pictures of a step together; they hold what was given
HOLE, HOLE_SHARE = np.array([217, 123, 41]), 0.6  # tint of what is to be filled in
COLD, ZERO, WARM = np.array([[47, 107, 154], [236, 234, 230], [196, 98, 45]])  # of an embedding's numbers


@dataclass(frozen=True)
class Track:
    """One run on the stage.

    Attributes:
        id: unique for each run. title: shown when there are two tracks.
        record: the run. describe: embeddings (B, D) -> a `mmdiff.clip.vocabulary.Description` of each, or [].
        running: whether frames are still to come. since: only frames with a larger index are sent.
        fork_step: up to this step the track equals the first one.
    """

    id: str
    title: str
    record: Record
    describe: Callable[[np.ndarray], Sequence[Any]]
    running: bool = False
    since: int = 0
    fork_step: int | None = None


class Player:
    """The component, made in the current `gr.Blocks` context, and what is sent to it.

    The browser may skip a message when several come at once, so live messages should repeat the last few
    frames, and the one that ends a run (`running=False`) should have all of them (`since=0`). The last frame
    of a run is sent without loss, the others' pictures nearly so. Tracks that a message leaves out go away.

    `elem_id` is the task's name and “-player”. The last pictures carry it with the settings.
    """

    def __init__(self, elem_id: str) -> None:
        words = [[name, title, count] for name, (title, count) in WORDS.items()]
        self.component = gr.HTML(
            "",
            html_template=TEMPLATE,
            # not a prop, which a component that is not on the screen yet loses by an update
            js_on_load=f"const WORDS = {_json(words)};\n{SCRIPT}",
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
            "stopped": record.stopped,
            "total": record.job.steps,
            "fork": track.fork_step,
            "samples": record.num_samples,
            "file": f"mmdiff_{record.checkpoint}_{record.job.seed}",
        }
        heads = self._once(record.job, tuple(record.modalities), lambda: _json(_heads(record)))
        frames = ",".join(self._frame(track, f) for f in record.frames if f.index > track.since)
        return f'{_json(facts)[:-1]},"heads":{heads},"frames":[{frames}]}}'

    def _frame(self, track: Track, frame: Frame) -> str:
        record = track.record
        ended = not track.running or frame.index == record.job.steps
        exact = frame is record.last and ended
        what = exact, *record.modalities
        return self._once(frame, what, lambda: _json(_frame(self._scene(track, frame, exact))))

    def _scene(self, track: Track, frame: Frame, exact: bool) -> _Scene:
        stamp = _stamp(track.record, self._task) if exact else None
        return _Scene(track.record, frame, exact, stamp, track.describe)

    def _once(self, owner: Any, what: Hashable, make: Callable[[], str]) -> str:
        """The text that `make` gives, kept for as long as `owner` lives."""
        key = id(owner), what
        if key not in self._kept:
            self._kept[key] = make()
            weakref.finalize(owner, self._kept.pop, key, None).atexit = False
        return self._kept[key]


def _json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# -- what does not change in a run -----------------------------------------------------------------------


def _heads(record: Record) -> list[dict[str, Any]]:
    return [
        {"name": name, "kind": spec.kind, "role": record.role(name), **HEADS[spec.kind](spec, record.job)}
        for name, spec in record.modalities.items()
    ]


def _image_head(spec: Any, job: Job) -> dict[str, Any]:
    """Of a picture with a hole: what it was before, the hole tinted."""
    now = job.conditions[-1]
    if now.known_pixels is None or spec.name not in now.given:
        return {}
    photo = np.asarray(now.given[spec.name], dtype=np.float32)
    tinted = (1 - HOLE_SHARE) * photo + HOLE_SHARE * HOLE
    before = np.where(now.known_pixels[..., None], photo, tinted)
    return {"before": png(Image.fromarray(np.rint(before).astype(np.uint8)))}


def _mask_head(spec: Any, job: Job) -> dict[str, Any]:
    return {"classes": list(spec.classes), "colours": [f"#{bytes(rgb).hex()}" for rgb in spec.palette]}


HEADS: dict[str, Callable[[Any, Job], dict[str, Any]]] = {
    "image": _image_head,
    "mask": _mask_head,
    "label": lambda spec, job: {"classes": list(spec.classes)},
    "embedding": lambda spec, job: {},
}

# -- frames ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Scene:
    """What the samples of a head are drawn from. `exact`: without loss. `stamp`: for pictures to carry."""

    record: Record
    frame: Frame
    exact: bool
    stamp: PngInfo | None
    describe: Callable[[np.ndarray], Sequence[Any]]


def _frame(scene: _Scene) -> dict[str, Any]:
    record, frame = scene.record, scene.frame
    x = {name: SAMPLES[spec.kind](scene, spec) for name, spec in record.modalities.items()}
    sent = {"i": frame.index, "t": frame.t, "exact": scene.exact, "x": x}
    if record.num_samples > 1:
        visual = {n: s.kind for n, s in record.modalities.items() if s.kind in ("image", "mask")}
        sent["u"] = {name: _heat(uncertainty(frame, name, kind)) for name, kind in visual.items()}
    return sent


def _stamp(record: Record, task: str) -> PngInfo | None:
    """The settings, for the last pictures to carry as those in the zip do; None if they are too large."""
    pictures = sum(spec.kind in ("image", "mask") for spec in record.modalities.values())
    try:
        stamp = recipe.stamp(record.job, record.checkpoint, task)
    except ValueError:  # of a photo that settings cannot hold, which must not keep the result from sight
        return None
    size = sum(len(data) for _, data, *_ in stamp.chunks)
    return stamp if size * pictures * record.num_samples <= MAX_STAMPS else None


def _images(scene: _Scene, spec: Any) -> list[str]:
    """Data URIs, PNG or, where a little loss does not matter, WebP."""
    pictures = map(Image.fromarray, scene.frame.x[spec.name])
    return [png(picture, scene.stamp) if scene.exact else _webp(picture) for picture in pictures]


def _webp(picture: Image.Image) -> str:
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=90, method=0)
    return "data:image/webp;base64," + base64.b64encode(data.getvalue()).decode()


def _masks(scene: _Scene, spec: Any) -> list[dict[str, Any]]:
    """o: overlay. m: the exact class numbers as a palette picture. a: areas of the classes."""
    frame = scene.frame
    over = any(other.kind == "image" for other in scene.record.modalities.values())
    shares = np.rint(LABEL_SCALE * areas(frame, spec.name)).astype(int).tolist()
    return [
        {
            "o": _overlay(classes, probabilities.max(0), spec.palette, over),
            "m": png(colour_mask(classes, spec.palette), scene.stamp),
            "a": share,
        }
        for classes, probabilities, share in zip(
            frame.classes[spec.name], frame.x[spec.name], shares, strict=True
        )
    ]


def _overlay(classes: np.ndarray, certainty: np.ndarray, palette: np.ndarray, over: bool) -> str:
    """Classes (H, W) uint8 and certainty (H, W) uint8 -> picture with a transparent palette, a data URI.

    The fainter the less certain, in a few levels, which keeps it small. Over a picture the first class
    (background or void) is left clear.
    """
    levels = min(LEVELS, 256 // len(palette))
    level = np.rint(certainty / 255 * (levels - 1)).astype(np.uint8)
    alpha = np.rint(np.linspace(255 if levels == 1 else 0, 255, levels)).astype(np.uint8)
    alphas = np.tile(alpha, (len(palette), 1))
    if over:
        alphas[0] = 0
    image = colour_mask(classes * np.uint8(levels) + level, palette.repeat(levels, 0))
    image.info["transparency"] = alphas.tobytes()
    return png(image)


def _labels(scene: _Scene, spec: Any) -> list[list[int]]:
    return np.rint(LABEL_SCALE * scene.frame.x[spec.name]).astype(int).tolist()


def _embeddings(scene: _Scene, spec: Any) -> list[dict[str, Any]]:
    """The nearest texts with their cosines, or the numbers as a strip of colours."""
    vectors = scene.frame.x[spec.name]
    if descriptions := scene.describe(vectors):
        return [_words(description) for description in descriptions]
    return [{"strip": _strip(vector), "size": len(vector)} for vector in vectors]


def _words(description: Any) -> dict[str, list[list[Any]]]:
    return {
        name: [[text, round(float(cosine), 4)] for text, cosine in getattr(description, name)[:count]]
        for name, (_, count) in WORDS.items()
    }


def _strip(vector: np.ndarray) -> str:
    share = (vector / (np.abs(vector).max() + 1e-9))[:, None]
    colours = ZERO + np.abs(share) * (np.where(share < 0, COLD, WARM) - ZERO)
    return png(Image.fromarray(np.rint(colours).astype(np.uint8)[None]))


def _heat(values: np.ndarray) -> dict[str, Any]:
    """(H, W) in [0, 1] -> grey picture, 0 ... 255 (the page colours it), the largest value and the mean."""
    grey = np.rint(255 * values.clip(0, 1)).astype(np.uint8)
    return {
        "map": _webp(Image.fromarray(grey)),
        "max": round(float(values.max()), 4),
        "mean": round(float(values.mean()), 4),
    }


SAMPLES: dict[str, Callable[[_Scene, Any], list[Any]]] = {
    "image": _images,
    "mask": _masks,
    "label": _labels,
    "embedding": _embeddings,
}
