"""One-click examples of a task, from the model's own classes and words and from pictures it made itself."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from app.run.defaults import ANCHOR
from app.run.history import picture_of
from app.run.service import Service, middle_known
from app.task import Task
from mmdiff.modalities import Modality
from mmdiff.request import Request

Example = tuple[str, Request]  # title of a button, and what it runs


def examples(task: Task, service: Service) -> list[Example]:
    """The examples that this model can do, at least three."""
    specs = task.modalities(service.modalities)
    if task.inpaints:
        return list(_holes(specs, service))
    found = [("Surprise me", Request(wanted=tuple(specs))), *_given(specs, service)]
    return found if task.forms else [*found, *list(_holes(specs, service))[:1]]


def opening_request(task: Task, service: Service) -> Request | None:
    """The request that the form of a task shows at first; None for a task that can start from nothing."""
    return examples(task, service)[0][1] if task.inpaints else None


def _given(specs: Mapping[str, Modality], service: Service) -> Iterator[Example]:
    """One modality given, all others generated."""

    def example(title: str, name: str, value: Any) -> Example:
        return title, Request({name: value}, tuple(n for n in specs if n != name))

    made = service.example.last
    for name, spec in specs.items():
        if spec.form == "class":
            count = len(spec.classes)
            for chosen in spec.classes[count // 4 :: max(1, count // 2)][:2]:
                yield example(chosen, name, chosen)
        elif spec.takes_text and service.example_text:
            yield example(f"“{service.example_text}”", name, service.example_text)
        elif name == ANCHOR and len(specs) > 1:
            yield example("Read a photo", name, picture_of(made, spec, 0))
        elif spec.form == "class_map" and made.classes[name][0].any():
            yield example("From a mask", name, made.classes[name][0].astype(np.int64))


def _holes(specs: Mapping[str, Modality], service: Service) -> Iterator[Example]:
    """A photo of the model's own with several holes, everything else generated."""
    photo, size = picture_of(service.example.last, specs[ANCHOR], 0), specs[ANCHOR].image_size
    known_pixels = {
        "Fill the middle": middle_known(size),
        "Fill a half": np.arange(size)[None].repeat(size, 0) < size // 2,
        "Fill random blocks": _blocks(size),
    }
    for title, known in known_pixels.items():
        yield title, Request({ANCHOR: photo}, tuple(specs), known)


def _blocks(size: int) -> np.ndarray:
    """Known pixels (size, size) bool: a random half of 8 x 8 blocks."""
    known = np.random.default_rng(1).permutation(64).reshape(8, 8) < 32
    cell = np.arange(size) * 8 // size
    return known[cell][:, cell]
