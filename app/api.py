"""The named endpoints for `gradio_client`: plain values in, files and plain values out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from app.controls import adapters
from app.controls.settings import new_seed
from app.errors import plain_errors
from app.export import settings_file as recipe
from app.run.job import Job
from app.run.service import Preview, Service
from app.tabs.run_panel import MAX_RUNS

Result = tuple[list[str] | None, list[str] | None, dict[str, Any]]  # pictures, masks, everything else


def build(services: Sequence[Service]) -> None:
    """Adds the endpoints to the current `gr.Blocks`; their controls only describe them and are not shown."""
    with gr.Group(visible=False):
        inputs = [
            gr.File(label="image: photo file"),
            gr.File(label="hole: picture, white where the photo is to be filled in"),
            gr.File(label="mask: picture of class numbers or palette colours"),
            gr.Textbox(None, label="label: class name"),
            gr.Textbox(None, label="text: for the embedding"),
            gr.File(label="embedding_image: photo for the embedding"),
            gr.JSON(None, label="wanted: list of modalities to generate; all that are not given if left out"),
            gr.Number(30, precision=0, label="steps"),
            gr.Number(None, precision=0, label="seed: random if left out"),
            gr.Number(1, precision=0, label="num_samples"),
            gr.JSON(
                None,
                label="guidance_scale: number, or object of numbers by modality; 1 if left out. A label that "
                "is named but not given is settled early, and all else follows it; the image counts where it "
                "has a hole",
            ),
            gr.Textbox("ddim", label="sampler"),
            gr.Textbox(None, label="checkpoint: name; the first one if left out"),
        ]
        settings = gr.Textbox(label="settings: the text of a settings file")
        outputs = [
            gr.File(label="pictures", file_count="multiple"),
            gr.File(label="masks (class numbers)", file_count="multiple"),
            gr.JSON(label="result"),
        ]
        facts = gr.JSON(label="checkpoints")
    endpoints = Endpoints(services, outputs[0].GRADIO_CACHE)
    runs = {"concurrency_limit": MAX_RUNS, "concurrency_id": "runs"}
    for call, takes, gives, options in (
        (endpoints.generate, inputs, outputs, runs),
        (endpoints.run_settings, [settings], outputs, runs),
        (endpoints.describe, None, facts, {}),
    ):
        gr.Button(visible=False).click(call, takes, gives, api_name=call.__name__, **options)


class Endpoints:
    """What the API can be asked for; `services` are all models, the first is meant where none is named."""

    def __init__(self, services: Sequence[Service], cache: str) -> None:
        self._services = {service.name: service for service in services}
        self._cache = cache

    def generate(
        self,
        image: str | None = None,
        hole: str | None = None,
        mask: str | None = None,
        label: str | None = None,
        text: str | None = None,
        embedding_image: str | None = None,
        wanted: list[str] | None = None,
        steps: int = 30,
        seed: int | None = None,
        num_samples: int = 1,
        guidance_scale: float | dict[str, float] | None = None,
        sampler: str = "ddim",
        checkpoint: str | None = None,
    ) -> Result:
        """Samples what is wanted from what is given: pictures, masks, and the rest of the result."""
        with plain_errors():
            service = self._service(checkpoint)
            given, known = _given(service, image, hole, mask, label, text, embedding_image)
            wanted = tuple(_names(wanted) or (name for name in service.modalities if name not in given))
            if known is not None and "image" not in wanted:
                wanted = (*wanted, "image")
            seed = new_seed() if seed is None else seed
            scale = 1.0 if guidance_scale is None else guidance_scale
            job = Job(given, wanted, known, steps, seed, num_samples, scale, sampler)
            return self._result(service, job)

    def run_settings(self, settings: str) -> Result:
        """Samples exactly what the text of a settings file says; the results are those of /generate."""
        with plain_errors():
            service = self._service(_checkpoint_of(settings))
            job, _, _ = recipe.from_json(settings, service.modalities)
            return self._result(service, job)

    def describe(self) -> dict[str, Any]:
        """The models that there are: their modalities with classes, sizes and colours."""
        return {name: _facts(service) for name, service in self._services.items()}

    def _service(self, checkpoint: str | None) -> Service:
        name = checkpoint or next(iter(self._services))
        if name not in self._services:
            raise ValueError(f"There is no checkpoint “{name}”; there is {', '.join(self._services)}.")
        return self._services[name]

    def _result(self, service: Service, job: Job) -> Result:
        *_, result = service.stream(job)
        return *_files(service, job, result, self._cache), _details(service, job, result)


def _checkpoint_of(settings: str) -> str | None:
    """The model that settings name, if they can be read at all; `recipe.from_json` says what is wrong."""
    try:
        name = json.loads(settings)["checkpoint"]
    except (ValueError, TypeError, LookupError):
        return None
    return name if isinstance(name, str) else None


def _names(wanted: Any) -> list[str] | None:
    if wanted is not None and not (isinstance(wanted, list) and all(isinstance(n, str) for n in wanted)):
        raise ValueError('wanted is a list of modalities, such as ["image", "mask"].')
    return wanted


def _facts(service: Service) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for name, spec in service.modalities.items():
        facts[name] = {"kind": spec.kind, "shape": list(spec.shape)}
        if spec.kind in ("mask", "label"):
            facts[name]["classes"] = list(spec.classes)
        if spec.kind == "mask":
            facts[name]["palette"] = [f"#{bytes(rgb).hex()}" for rgb in spec.palette]
    return facts


def _given(
    service: Service,
    image: str | None,
    hole: str | None,
    mask: str | None,
    label: str | None,
    text: str | None,
    embedding_image: str | None,
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The arguments `given` and `known_pixels` of the pipeline."""
    specs = service.modalities
    if text and embedding_image:
        raise ValueError("text and embedding_image both set the embedding. Give one of them.")
    passed = {"image": image, "mask": mask, "label": label, "embedding": text or embedding_image}
    given = {name: value for name, value in passed.items() if value not in (None, "")}
    for name in given:
        if name not in specs:
            raise ValueError(f"This model has no {name}; it has {', '.join(specs)}.")
    known = None
    if hole and "image" not in given:
        raise ValueError(
            "There is a hole but no photo to fill in. Give the photo too, or leave the hole out."
        )
    if "image" in given:
        size = specs["image"].shape[-1]
        photo = adapters.read_photo(given["image"], size)
        given["image"] = photo.for_model
        known = adapters.known_pixels(adapters.read_hole(hole, size, photo.size).cells) if hole else None
    if "mask" in given:
        spec = specs["mask"]
        given["mask"] = adapters.mask_from_file(given["mask"], spec.shape[-1], spec.classes, spec.palette)
    if embedding_image:
        given["embedding"] = adapters.read_reference(embedding_image)
    return given, known


def _files(
    service: Service, job: Job, result: Preview, cache: str
) -> tuple[list[str] | None, list[str] | None]:
    """The wanted pictures and masks as PNG files, one per sample."""
    files: dict[str, list[str] | None] = {"image": None, "mask": None}
    for name in files:
        if name in job.wanted:
            spec, x = service.modalities[name], result.x_hat[name]
            images = [
                Image.fromarray(sample)
                if name == "image"
                else adapters.colour_mask(sample.argmax(0), spec.palette)
                for sample in x
            ]
            files[name] = [
                save_pil_to_cache(p, cache, f"{name}_{k + 1}", "png") for k, p in enumerate(images)
            ]
    return files["image"], files["mask"]


def _details(service: Service, job: Job, result: Preview) -> dict[str, Any]:
    """Seed, time and everything else that is wanted, one entry per sample."""
    details: dict[str, Any] = {
        "checkpoint": service.name,
        "seed": job.seed,
        "steps": result.total,
        "sampler": job.sampler,
        "seconds": round(result.seconds, 3),
    }
    if "label" in job.wanted:
        classes = service.modalities["label"].classes
        details["label"] = [
            {classes[k]: round(float(p[k]), 5) for k in np.argsort(-p)[:5]} for p in result.x_hat["label"]
        ]
    if "embedding" in job.wanted:
        vectors = result.x_hat["embedding"]
        details["embedding"] = vectors.tolist()
        if nearest := service.describe(vectors):
            details["nearest"] = [description.as_dict() for description in nearest]
    return details
