"""One-click examples of a task: the pictures of the checkpoint's showcase, its classes, its words.

Where a checkpoint has no showcase, the picture that was made when the app started takes their place.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from app.run.defaults import ANCHOR
from app.run.history import picture_of
from app.run.service import Service, middle_known
from app.run.showcase import examples as pictures
from app.task import Task
from mmdiff.modalities import Modality
from mmdiff.request import Request


class Example(NamedTuple):
    """A button: its title, what it runs, and the file of the picture that it shows, None for none.

    The request is asked for when the button is pressed, as pictures may come from the warm-up. Where it may
    be about any photo, one that is in the form stays there.
    """

    title: str
    request: Callable[[], Request]
    picture: Path | None = None
    of_any_photo: bool = False


def examples(task: Task, service: Service) -> list[Example]:
    """The examples that this model can do, at least three; those with pictures first."""
    specs = task.modalities(service.modalities)
    if task.inpaints:
        return list(_holes(specs, service))
    found = [*_photos(specs, service), Example("Surprise me", lambda: Request(wanted=tuple(specs)))]
    found += _given(specs, service)
    return found if task.forms else [*found, *_presets(specs, service)[:1]]


def opening_request(task: Task, service: Service) -> Request | None:
    """The request that the form of a task shows at first; None for a task that can start from nothing."""
    return examples(task, service)[0].request() if task.inpaints else None


def source(service: Service) -> str:
    """What the pictures of the examples are, in words for the page."""
    found = pictures(service)
    return "Try a picture the model made" if found and found[0].generated else "Try a photo"


def _photos(specs: Mapping[str, Modality], service: Service) -> Iterator[Example]:
    """A photo given, all others read from it."""
    others = tuple(name for name in specs if name != ANCHOR)
    for found in pictures(service) if others else []:
        yield Example(found.title, partial(Request, {ANCHOR: found.picture}, others), found.path)


def _given(specs: Mapping[str, Modality], service: Service) -> Iterator[Example]:
    """One modality given, all others generated."""

    def example(title: str, name: str, value: Callable[[], Any]) -> Example:
        return Example(title, lambda: Request({name: value()}, tuple(n for n in specs if n != name)))

    def mask(name: str) -> np.ndarray:
        return service.example.last.classes[name][0].astype(np.int64)

    has_photos = bool(pictures(service))
    for name, spec in specs.items():
        if spec.form == "class":
            count = len(spec.classes)
            for chosen in spec.classes[count // 4 :: max(1, count // 2)][:2]:
                yield example(chosen, name, partial(str, chosen))
        elif spec.takes_text and service.example_text:
            yield example(f"“{service.example_text}”", name, lambda: service.example_text)
        elif name == ANCHOR and len(specs) > 1 and not has_photos:
            yield example("Read a photo", name, lambda: picture_of(service.example.last, specs[ANCHOR], 0))
        elif spec.form == "class_map":
            yield example("From a mask", name, partial(mask, name))


def _holes(specs: Mapping[str, Modality], service: Service) -> Iterator[Example]:
    """Every picture with a hole in its middle, then the first one with other holes."""
    wanted, size = tuple(specs), specs[ANCHOR].image_size
    for found in pictures(service):
        request = partial(Request, {ANCHOR: found.picture}, wanted, middle_known(size))
        yield Example(found.title, request, found.path)
    yield from _presets(specs, service)


def _presets(specs: Mapping[str, Modality], service: Service) -> list[Example]:
    """The photo with several holes, everything else generated."""
    shown, size = pictures(service), specs[ANCHOR].image_size
    known_pixels = {
        "Fill the middle": middle_known(size),
        "Fill a half": np.arange(size)[None].repeat(size, 0) < size // 2,
        "Fill random blocks": _blocks(size),
    }

    def request(known: np.ndarray) -> Request:
        photo = shown[0].picture if shown else picture_of(service.example.last, specs[ANCHOR], 0)
        return Request({ANCHOR: photo}, tuple(specs), known)

    return [
        Example(title, partial(request, known), of_any_photo=True) for title, known in known_pixels.items()
    ]


def _blocks(size: int) -> np.ndarray:
    """Known pixels (size, size) bool: a random half of 8 x 8 blocks."""
    known = np.random.default_rng(1).permutation(64).reshape(8, 8) < 32
    cell = np.arange(size) * 8 // size
    return known[cell][:, cell]
