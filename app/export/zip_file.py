"""Everything of a run in one zip: settings, results, inputs and the whole timeline."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from app.export import film, settings_file
from app.pictures import colour_mask, encoded
from app.run.history import Record, picture_of
from mmdiff.modalities import Modality

DATE = (1980, 1, 1, 0, 0, 0)  # of every entry, so that the same run gives the same file


def write_zip(record: Record, path: str | Path, task: str) -> None:
    """Writes the zip.

    settings.json restores the run (see `settings_file.read`) and result.json has the results in words and
    numbers. sample_1/ and so on have the last step's pictures, class maps (palette PNG of class numbers),
    overlays and vectors (float32 .npy); inputs/ has what was given, steps/ every step, timeline.gif the film.

    Raises ValueError if the run has no step yet, or has no place in settings (see `settings_file.to_dict`).
    """
    if not record.frames:
        raise ValueError("There is no step to save yet. Run it first.")
    settings = settings_file.to_json(record.request, record.checkpoint, task)
    with zipfile.ZipFile(path, "w") as archive:
        _add(archive, settings_file.ZIP_ENTRY, settings.encode())
        result = json.dumps(summary(record, task), indent=1, ensure_ascii=False) + "\n"
        _add(archive, "result.json", result.encode())
        for name, data in (*_samples(record, task), *_inputs(record), *_steps(record)):
            _add(archive, name, data)
        timeline = io.BytesIO()
        film.write_gif(timeline, [("", record)])
        _add(archive, "timeline.gif", timeline.getvalue())


def summary(record: Record, task: str) -> dict[str, Any]:
    """The results as JSON values: of each sample its seed, likeliest labels, areas and nearest texts."""
    request = record.request
    samples = [{"sample": k + 1, "seed": request.seed + k} for k in range(request.num_samples)]
    for name, spec in record.modalities.items():
        for sample, value in zip(samples, record.in_words(spec), strict=True):
            if value:
                sample[name] = value
    return {
        "checkpoint": record.checkpoint,
        "task": task,
        "sampler": request.sampler,
        "steps": request.steps,
        "last_step": record.last.index,
        "stopped": not record.finished,
        "seconds": round(record.seconds, 3),
        "roles": {name: record.role(name) for name in record.modalities},
        "samples": samples,
    }


def _samples(record: Record, task: str) -> Iterator[tuple[str, bytes]]:
    """The last step, a folder per sample; its pictures carry the settings."""
    stamp = settings_file.stamp(record.request, record.checkpoint, task)
    for k in range(record.request.num_samples):
        for spec in record.modalities.values():
            name = f"sample_{k + 1}/{spec.name}"
            if spec.form == "vector":
                yield f"{name}.npy", _npy(record.last.x[spec.name][k])
            elif spec.dense:
                for suffix, image in _exact(record, spec, k).items():
                    yield f"{name}{suffix}.png", encoded(image, pnginfo=stamp)
            if spec.form == "class_map":
                yield f"{name}_overlay.png", encoded(film.overlaid(record, record.last, spec, k))


def _exact(record: Record, spec: Modality, sample: int) -> dict[str, Image.Image]:
    """The last step of a sample without loss: pictures by suffix of their name."""
    prediction = record.last.x[spec.name]
    if spec.form == "class_map" or prediction.dtype == np.uint8:
        return {"": picture_of(record.last, spec, sample)}
    (value,) = spec.present(prediction[sample : sample + 1])
    return spec.export(value)[0]


def _npy(vector: np.ndarray) -> bytes:
    data = io.BytesIO()
    np.save(data, vector)
    return data.getvalue()


def _inputs(record: Record) -> Iterator[tuple[str, bytes]]:
    """The pictures, masks, texts and holes that were given; a fork's in a folder of its own."""
    for number, condition in enumerate(record.request.conditions):
        folder = f"inputs/fork_{number}" if number else "inputs"
        for name, value in condition.given.items():
            if isinstance(value, str):
                yield f"{folder}/{name}.txt", f"{value}\n".encode()
            elif isinstance(value, Image.Image):
                yield f"{folder}/{name}.png", settings_file.png_bytes(value)
            else:
                yield f"{folder}/{name}.png", encoded(colour_mask(value, record.modalities[name].palette))
        if condition.known_pixels is not None:  # white where it was filled in, as the endpoint takes it
            yield f"{folder}/hole.png", settings_file.png_bytes(~condition.known_pixels)


def _steps(record: Record) -> Iterator[tuple[str, bytes]]:
    """Every step's pictures and masks."""
    for k in range(record.request.num_samples):
        for frame in record.frames:
            for spec in record.dense:
                name = f"steps/sample_{k + 1}/{spec.name}_{frame.index:03}.png"
                yield name, encoded(picture_of(frame, spec, k))


def _add(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    """An entry that is the same for the same data; pictures, which are compressed already, are stored."""
    packed = name.endswith((".png", ".gif"))
    info = zipfile.ZipInfo(name, DATE)
    info.external_attr = 0o644 << 16
    archive.writestr(info, data, zipfile.ZIP_STORED if packed else zipfile.ZIP_DEFLATED)
