"""Everything of a run in one zip: its settings, its results, what was given and the whole timeline."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from PIL import Image

from app.controls.adapters import colour_mask
from app.export import film
from app.export import settings_file as recipe
from app.export.film import Describe
from app.run.history import Frame, Record, areas

TOP = 5  # labels in the results
DATE = (1980, 1, 1, 0, 0, 0)  # of every entry, so that the same run gives the same file


def write_zip(record: Record, describe: Describe, path: str | Path, task: str) -> None:
    """Writes the zip.

    settings.json restores the run (see `recipe.read`) and result.json says in words and numbers what came
    out. sample_1/ and so on have the last step's pictures, class maps (palette PNG of class numbers),
    overlays and embeddings (float32 .npy); inputs/ has what was given, steps/ every step, timeline.gif the
    film.

    Args:
        describe: embeddings (B, D) -> a `mmdiff.clip.vocabulary.Description` of each, or nothing.

    Raises ValueError if the run has no step yet, or cannot be kept (see `recipe.to_dict`).
    """
    if not record.frames:
        raise ValueError("There is no step to save yet. Run it first.")
    settings = recipe.to_json(record.job, record.checkpoint, task)
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, recipe.ZIP_ENTRY, settings.encode())
        result = json.dumps(summary(record, describe, task), indent=1, ensure_ascii=False) + "\n"
        _add(archive, "result.json", result.encode())
        for name, data in (*_samples(record, task), *_inputs(record), *_steps(record)):
            _add(archive, name, data)
        with TemporaryDirectory() as folder:
            gif = Path(folder) / "timeline.gif"
            film.write_gif(gif, record, describe)
            _add(archive, gif.name, gif.read_bytes())


def summary(record: Record, describe: Describe, task: str) -> dict[str, Any]:
    """What came out, as JSON values: of each sample its seed, likeliest labels, areas and nearest texts."""
    job, frame = record.job, record.last
    samples: list[dict[str, Any]] = [
        {"sample": k + 1, "seed": job.seed + k} for k in range(record.num_samples)
    ]
    for name, spec in record.modalities.items():
        for sample, value in zip(samples, _in_words(spec, frame, describe), strict=True):
            if value:
                sample[name] = value
    return {
        "checkpoint": record.checkpoint,
        "task": task,
        "sampler": job.sampler,
        "steps": job.steps,
        "last_step": frame.index,
        "stopped": record.stopped,
        "seconds": round(record.seconds, 3),
        "roles": {name: record.role(name) for name in record.modalities},
        "samples": samples,
    }


def _in_words(spec: Any, frame: Frame, describe: Describe) -> list[Any]:
    """What there is to say about a modality, of each sample; nothing of pictures."""
    x = frame.x[spec.name]
    if spec.kind == "label":
        return [
            {spec.classes[k]: round(float(p[k]), 5) for k in np.argsort(-p, kind="stable")[:TOP]} for p in x
        ]
    if spec.kind == "mask":
        rows = areas(frame, spec.name)
        return [
            {name: round(float(share), 5) for name, share in zip(spec.classes, row, strict=True)}
            for row in rows
        ]
    if spec.kind == "embedding" and (said := describe(x)):
        return [description.as_dict() for description in said]
    return [None] * len(x)


def _samples(record: Record, task: str) -> Iterator[tuple[str, bytes]]:
    """The last step, a folder per sample; its pictures carry the settings."""
    stamp = recipe.stamp(record.job, record.checkpoint, task)
    for k in range(record.num_samples):
        folder = f"sample_{k + 1}"
        for name, spec in record.modalities.items():
            if spec.kind == "embedding":
                data = io.BytesIO()
                np.save(data, record.last.x[name][k])
                yield f"{folder}/{name}.npy", data.getvalue()
            elif spec.kind in ("image", "mask"):
                yield f"{folder}/{name}.png", _png(_picture(record, record.last, name, k), pnginfo=stamp)
            if spec.kind == "mask":
                yield f"{folder}/{name}_overlay.png", _png(film.overlaid(record, record.last, name, k))


def _inputs(record: Record) -> Iterator[tuple[str, bytes]]:
    """The pictures, masks, texts and holes that were given; a fork's in a folder of its own."""
    for number, condition in enumerate(record.job.conditions):
        folder = f"inputs/fork_{number}" if number else "inputs"
        for name, value in condition.given.items():
            if isinstance(value, str):
                yield f"{folder}/{name}.txt", f"{value}\n".encode()
            elif isinstance(value, Image.Image):
                yield f"{folder}/{name}.png", recipe.png_bytes(value)
            else:
                yield f"{folder}/{name}.png", _png(colour_mask(value, record.modalities[name].palette))
        if condition.known_pixels is not None:  # white where it was filled in, as the endpoint takes it
            yield f"{folder}/hole.png", recipe.png_bytes(~condition.known_pixels)


def _steps(record: Record) -> Iterator[tuple[str, bytes]]:
    """Every step's pictures and masks."""
    names = [name for name, spec in record.modalities.items() if spec.kind in ("image", "mask")]
    for k in range(record.num_samples):
        for frame in record.frames:
            for name in names:
                picture = _picture(record, frame, name, k)
                yield f"steps/sample_{k + 1}/{name}_{frame.index:03}.png", _png(picture)


def _picture(record: Record, frame: Frame, name: str, sample: int) -> Image.Image:
    spec = record.modalities[name]
    if spec.kind == "mask":
        return colour_mask(frame.classes[name][sample], spec.palette)
    return Image.fromarray(frame.x[name][sample])


def _png(picture: Image.Image, **options: Any) -> bytes:
    data = io.BytesIO()
    picture.save(data, "PNG", **options)
    return data.getvalue()


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """An entry that is the same for the same data; what is packed already is not packed again."""
    packed = name.endswith((".png", ".gif"))
    info = zipfile.ZipInfo(name, DATE)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data, zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED)
