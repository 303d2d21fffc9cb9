"""Records without a pipeline, in which every step and every sample looks different."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from fakes import LABELS, Spec, _unit

from app.run.history import Record
from app.run.job import Job
from mmdiff.clip.vocabulary import Description
from mmdiff.samplers import timesteps

PALETTE = np.array([[38, 42, 51], [88, 178, 148], [222, 132, 60]], dtype=np.uint8)
MASK_CLASSES = ("background", "fruit", "leaf")
ALL = ("image", "mask", "label", "embedding")


def specs(
    size: int, labels: Sequence[str] = LABELS, classes: Sequence[str] = MASK_CLASSES
) -> dict[str, Spec]:
    return {
        "image": Spec("image", "image", (3, size, size)),
        "mask": Spec("mask", "mask", (size, size), tuple(classes), PALETTE),
        "label": Spec("label", "label", (), tuple(labels)),
        "embedding": Spec("embedding", "embedding", (16,)),
    }


def make_record(done: int | None = None, size: int = 32, names: Sequence[str] = ALL, **job: Any) -> Record:
    """The first `done` steps (all, if left out) of a job; `labels` and `classes` are those of `specs`."""
    given = {key: job.pop(key) for key in ("labels", "classes") if key in job}
    modalities = {name: spec for name, spec in specs(size, **given).items() if name in names}
    asked = Job(**{"wanted": tuple(names), "steps": 10, **job})
    record, times = Record(asked, "orchard", modalities), timesteps(1000, asked.steps)
    for index in range(1, (done or asked.steps) + 1):
        extend(record, times[index - 1])
    record.stopped = done is not None and done < asked.steps
    return record


def extend(record: Record, t: int) -> None:
    """One step more."""
    index, samples = len(record.frames) + 1, range(record.num_samples)
    makers = {"image": _image, "mask": _mask, "label": _label, "embedding": _embedding}
    share = index / record.job.steps
    x_hat = {n: np.stack([makers[n](s, share, k) for k in samples]) for n, s in record.modalities.items()}
    now = record.job.conditions[-1]
    if "image" in now.given:
        keep = True if now.known_pixels is None else now.known_pixels[..., None]
        x_hat["image"] = np.where(keep, np.asarray(now.given["image"]), x_hat["image"])
    record.add(index, t, x_hat)


def describe(vectors: np.ndarray) -> list[Description]:
    """Words that follow the numbers."""
    return [
        Description(
            (("a photo of a red apple", float(v[0])), ("a photo of a plum", float(v[1]))),
            (("Apple Red", float(v[2])),),
            (("red", float(v[3])), ("<b>round</b>", float(v[4]))),
        )
        for v in vectors
    ]


def _image(spec: Spec, share: float, sample: int) -> np.ndarray:
    rows, columns = np.mgrid[: spec.shape[1], : spec.shape[2]] / spec.shape[1]
    channels = [255 * share + 0 * rows, 200 * rows, 60 * sample + 60 * columns]
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def _mask(spec: Spec, share: float, sample: int) -> np.ndarray:
    """Fruit in the middle, the larger the later, a leaf in the corner; surer and surer."""
    size = spec.shape[0]
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    classes = (rows**2 + (columns - 0.05 * sample) ** 2 < (0.2 + 0.25 * share) ** 2).astype(int)
    classes[: size // 8, : size // 8] = len(spec.classes) - 1
    sure = 0.4 + 0.6 * share
    hot = np.eye(len(spec.classes), dtype=np.float32)[classes].transpose(2, 0, 1)
    return sure * hot + (1 - sure) / len(spec.classes)


def _label(spec: Spec, share: float, sample: int) -> np.ndarray:
    """From the first class to one further on."""
    count = len(spec.classes)
    late = (2 + sample) % count
    return np.eye(count, dtype=np.float32)[[0, late]].T @ np.array([1 - share, share], dtype=np.float32)


def _embedding(spec: Spec, share: float, sample: int) -> np.ndarray:
    vector = (1 - share) * _unit(11, spec.shape[0]) + share * _unit(12 + sample, spec.shape[0])
    return (vector / np.linalg.norm(vector)).astype(np.float32)
