"""Records without a pipeline, in which every step and every sample looks different."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from fakes import LABELS, _unit, make_specs

from app.run.history import Frame, Record
from mmdiff.clip.vocabulary import Description
from mmdiff.modalities import Modality
from mmdiff.request import Request
from mmdiff.samplers import timesteps
from mmdiff.serving.denoising import Step

MASK_CLASSES = ("background", "fruit", "leaf")
ALL = ("image", "mask", "label", "embedding")


def specs(
    size: int, labels: Sequence[str] = LABELS, classes: Sequence[str] = MASK_CLASSES
) -> dict[str, Modality]:
    return make_specs(size, labels, classes)


PALETTE = specs(8)["mask"].palette


def make_record(done: int | None = None, size: int = 32, names: Sequence[str] = ALL, **fields: Any) -> Record:
    """The first `done` steps (all, if left out) of a request; `labels` and `classes` are those of `specs`."""
    given = {key: fields.pop(key) for key in ("labels", "classes") if key in fields}
    modalities = {name: spec for name, spec in specs(size, **given).items() if name in names}
    request = Request(**{"wanted": tuple(names), "steps": 10, **fields})
    record, times = Record(request, "orchard", modalities, describe), timesteps(1000, request.steps)
    for index in range(1, (request.steps if done is None else done) + 1):
        extend(record, times[index - 1])
    return record


def add(record: Record, t: int, **x_hat: np.ndarray) -> Frame:
    """Keeps one more step with these predictions."""
    index = len(record.frames) + 1
    return record.add(Step(index, record.request.steps, t, x_hat, torch.zeros(0), 0.1 * index))


def extend(record: Record, t: int) -> None:
    """One step more."""
    index, samples = len(record.frames) + 1, range(record.request.num_samples)
    makers = {"image": _image, "mask": _mask, "label": _label, "embedding": _embedding}
    share = index / record.request.steps
    x_hat = {n: np.stack([makers[n](s, share, k) for k in samples]) for n, s in record.modalities.items()}
    now = record.request.conditions[-1]
    if "image" in now.given:
        keep = True if now.known_pixels is None else now.known_pixels[..., None]
        x_hat["image"] = np.where(keep, np.asarray(now.given["image"]), x_hat["image"])
    add(record, t, **x_hat)


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


def _image(spec: Modality, share: float, sample: int) -> np.ndarray:
    rows, columns = np.mgrid[: spec.shape[1], : spec.shape[2]] / spec.shape[1]
    channels = [255 * share + 0 * rows, 200 * rows, 60 * sample + 60 * columns]
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def _mask(spec: Modality, share: float, sample: int) -> np.ndarray:
    """Fruit in the middle, the larger the later, a leaf in the corner; surer and surer."""
    size = spec.shape[0]
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    classes = (rows**2 + (columns - 0.05 * sample) ** 2 < (0.2 + 0.25 * share) ** 2).astype(int)
    classes[: size // 8, : size // 8] = len(spec.classes) - 1
    sure = 0.4 + 0.6 * share
    hot = np.eye(len(spec.classes), dtype=np.float32)[classes].transpose(2, 0, 1)
    return sure * hot + (1 - sure) / len(spec.classes)


def _label(spec: Modality, share: float, sample: int) -> np.ndarray:
    """From the first class to one further on."""
    count = len(spec.classes)
    late = (2 + sample) % count
    return np.eye(count, dtype=np.float32)[[0, late]].T @ np.array([1 - share, share], dtype=np.float32)


def _embedding(spec: Modality, share: float, sample: int) -> np.ndarray:
    vector = (1 - share) * _unit(11, spec.shape[0]) + share * _unit(12 + sample, spec.shape[0])
    return (vector / np.linalg.norm(vector)).astype(np.float32)
