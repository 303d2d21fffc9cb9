"""What a checkpoint shows of itself: runs that were recorded, and example pictures.

Both are in the folder `showcase` of the checkpoint, where `docs/showcase.py` puts them. A scene is a run of
which the browser shows every modality under the noise of each step, see `Scene`; the page replays those that
were recorded and, in present mode, goes on with new ones.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.pictures import data_uri
from app.run.defaults import ANCHOR, from_nothing, guidable, usual_scale
from app.run.history import Frame, Record, picture_of
from app.run.service import Service
from mmdiff.images import square
from mmdiff.modalities import Modality
from mmdiff.request import Request

FOLDER = "showcase"
STEPS = 50
MOMENTS = 14  # of a run that a scene has, the first and the last among them
Scene = dict[str, Any]
"""JSON: {"pinned": name or "", "seed", "steps", "noise": [share at each moment, 1 ... 0], "tiles": [{"name",
"form", "size", "strip": pictures of all moments side by side} or {"name", "form", "texts": [one a moment]}]}.
A pinned modality has one moment."""

_webp = partial(data_uri, form="WEBP", method=6)


@dataclass(frozen=True)
class Example:
    """A picture to try, and its file. `generated`: whether this model made it; otherwise it is a photo."""

    title: str
    picture: Image.Image
    generated: bool
    path: Path | None = None


def folder_of(service: Service) -> Path | None:
    """Where the showcase of a checkpoint is; None if it has none."""
    folder = service.folder and service.folder / FOLDER
    return folder if folder and folder.is_dir() else None


def recorded(service: Service) -> list[Path]:
    """The files of the scenes, in order."""
    folder = folder_of(service)
    return sorted(folder.glob("scene_*.json")) if folder else []


def best_seed(service: Service) -> int:
    """That of the first scene, which is the best of several; 0 if there is none."""
    scenes = recorded(service)
    return json.loads(scenes[0].read_text(encoding="utf-8"))["seed"] if scenes else 0


def examples(service: Service) -> list[Example]:
    """The pictures of the showcase, at the size of the model; none if it has none."""
    folder = folder_of(service)
    if folder is None or not (folder / "examples.json").is_file():
        return []
    size = service.modalities[ANCHOR].image_size
    found = []
    for entry in json.loads((folder / "examples.json").read_text(encoding="utf-8")):
        path = folder / entry["file"]
        picture = square(Image.open(path).convert("RGB"), size)
        found.append(Example(entry["title"], picture, entry["generated"], path))
    return found


def play(
    service: Service, pins: Sequence[str], seed: int, tries: int = 1, owner: str = ""
) -> Iterator[Scene]:
    """One scene after the other.

    Args:
        pins: of each scene the modality that is kept from the scene before it, "" for nothing.
        seed: of the first scene; each has its own. tries: seeds of which the best is taken, see `_agreement`.
        owner: the visitor who asks for them.
    """
    last, specs = None, service.modalities
    for number, pin in enumerate(pins):
        given = {pin: _value(last, specs[pin])} if pin and last else {}
        wanted = tuple(name for name in specs if name not in given)
        scales = dict.fromkeys(guidable(given, wanted), usual_scale(specs))
        guided = {"guidance_scale": scales} if given else from_nothing(specs)
        how = {"steps": STEPS, "seed": seed + number * tries}
        record = service.run(Request(given, wanted, num_samples=tries, **how, **guided), owner)
        best = max(range(tries), key=lambda k: _agreement(service, record, k)) if tries > 1 else 0
        last = _only(record.last, best)
        yield _scene(service, record, best)


def _only(frame: Frame, sample: int) -> Frame:
    """One of the samples of a frame."""
    x, classes = ({n: v[sample : sample + 1] for n, v in d.items()} for d in (frame.x, frame.classes))
    return Frame(frame.index, frame.t, x, classes)


def _value(frame: Frame, spec: Modality) -> Any:
    """What a result says of a modality, to be given."""
    if spec.form == "class_map":
        return frame.classes[spec.name][0].astype(np.int64)
    if spec.form == "class":
        return spec.classes[int(frame.x[spec.name][0].argmax())]
    return picture_of(frame, spec, 0) if spec.form == "picture" else frame.x[spec.name][0]


def _agreement(service: Service, record: Record, sample: int) -> float:
    """How well the model reads in the photo of a result what it has made beside it: 0 to 1 a modality."""
    frame, specs = _only(record.last, sample), service.modalities
    others = [spec for spec in specs.values() if spec.name != ANCHOR]
    photo = picture_of(frame, specs[ANCHOR], 0)
    read = service.run(Request({ANCHOR: photo}, tuple(spec.name for spec in others), steps=1)).last
    return sum(_likeness(frame, read, spec) for spec in others)


def _likeness(made: Frame, read: Frame, spec: Modality) -> float:
    one, other = made.x[spec.name][0], read.x[spec.name][0]
    if spec.form == "class_map":
        return float((made.classes[spec.name] == read.classes[spec.name]).mean())
    return float(other[one.argmax()] if spec.form == "class" else one.ravel() @ other.ravel())


def _scene(service: Service, record: Record, sample: int) -> Scene:
    moments = np.unique(np.linspace(0, record.request.steps - 1, MOMENTS).round().astype(int))
    frames = [record.frames[k] for k in moments]
    abar = np.asarray(service.pipe.schedule.abar.tolist())
    noise = [_noise(abar[frame.t]) for frame in frames[:-1]] + [0.0]
    given, said = record.request.given, Captions(record)
    tiles = [
        _tile(spec, frames[-1:] if name in given else frames, sample, said)
        for name, spec in service.modalities.items()
    ]
    facts = {
        "pinned": next(iter(given), ""),
        "seed": record.request.seed + sample,
        "steps": len(record.frames),
    }
    return {**facts, "noise": [round(share, 3) for share in noise], "tiles": tiles}


def _noise(abar: float) -> float:
    """How much of what is seen is noise, where z_t is sqrt(abar) z_0 + sqrt(1 - abar) noise."""
    signal, noise = math.sqrt(abar), math.sqrt(1 - abar)
    return noise / (signal + noise)


class Captions:
    """The words for embeddings of a run."""

    def __init__(self, record: Record) -> None:
        self._record = record

    def of(self, spec: Modality, vector: np.ndarray) -> str:
        """The nearest caption, "" where there are no words."""
        said = self._record.said(spec, vector[None])
        return said[0].captions[0][0].removeprefix("a photo of ") if said else ""


def _tile(spec: Modality, frames: Sequence[Frame], sample: int, captions: Captions) -> Mapping[str, Any]:
    tile: dict[str, Any] = {"name": spec.name, "form": spec.form}
    if spec.form == "class":
        best = [int(frame.x[spec.name][sample].argmax()) for frame in frames]
        return tile | {"texts": [spec.classes[k] for k in best]}
    if spec.form not in ("picture", "class_map"):
        return tile | {"texts": [captions.of(spec, frame.x[spec.name][sample]) for frame in frames]}
    pictures = [picture_of(frame, spec, sample).convert("RGB") for frame in frames]
    strip = Image.fromarray(np.concatenate([np.asarray(p) for p in pictures], axis=1))
    looks = {"lossless": True} if spec.form == "class_map" else {"quality": 82}
    return tile | {"size": pictures[0].width, "strip": _webp(strip, **looks)}
