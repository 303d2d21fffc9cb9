"""One-click examples of a task, from the model's own classes and words and from pictures it made itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from app.run.history import Record
from app.run.job import ANCHOR, Job
from app.run.service import Service, middle_known
from app.tabs.tasks import Task


@dataclass(frozen=True)
class Example:
    """The name of a button and what it gives and wants."""

    title: str
    job: Job


def examples(task: Task, service: Service) -> list[Example]:
    """Those that this model can do, three at least."""
    specs, made = task.modalities(service.modalities), service.example
    if task.fixed:
        return list(_holes(specs, made))
    found = [Example("Surprise me", Job(wanted=tuple(specs))), *_given(specs, made, service)]
    if task.kinds:
        return found
    return [*found, *list(_holes(specs, made))[:1]]


def opening(task: Task, service: Service) -> Job | None:
    """What the form of a task that cannot start from nothing begins with; None for one that can."""
    return examples(task, service)[0].job if task.fixed else None


def _given(specs: Mapping[str, Any], made: Record, service: Service) -> Iterator[Example]:
    """One thing given, all others generated."""

    def example(title: str, name: str, value: Any) -> Example:
        return Example(title, Job({name: value}, tuple(n for n in specs if n != name)))

    for name, spec in specs.items():
        if spec.kind == "label":
            count = len(spec.classes)
            for chosen in spec.classes[count // 4 :: max(1, count // 2)][:2]:
                yield example(chosen, name, chosen)
        elif spec.kind == "embedding" and service.example_text:
            yield example(f"“{service.example_text}”", name, service.example_text)
        elif spec.kind == "image" and len(specs) > 1:
            yield example("Read a photo", name, picture(made))
        elif spec.kind == "mask" and made.last.classes[name][0].any():
            yield example("From a mask", name, made.last.classes[name][0].astype(np.int64))


def _holes(specs: Mapping[str, Any], made: Record) -> Iterator[Example]:
    """A photo of the model's own with several holes, everything else generated."""
    size = specs[ANCHOR].shape[-1]
    known_pixels = {
        "Fill the middle": middle_known(size),
        "Fill a half": np.arange(size)[None].repeat(size, 0) < size // 2,
        "Fill random blocks": _blocks(size),
    }
    for title, known in known_pixels.items():
        yield Example(title, Job({ANCHOR: picture(made)}, tuple(specs), known))


def picture(made: Record) -> Image.Image:
    """The photo that the model made while warming up."""
    return Image.fromarray(made.last.x[ANCHOR][0])


def _blocks(size: int) -> np.ndarray:
    """Known pixels (size, size) bool: a random half of 8 x 8 blocks."""
    known = np.random.default_rng(1).permutation(64).reshape(8, 8) < 32
    cell = np.arange(size) * 8 // size
    return known[cell][:, cell]
