"""The named endpoint `/generate` for `gradio_client`: plain values in, files and plain values out."""

from __future__ import annotations

from typing import Any

import gradio as gr
import numpy as np
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from app import adapters
from app.errors import plain_errors
from app.service import Job, Preview, Service
from app.settings import new_seed
from app.stage import MAX_RUNS


def build(service: Service) -> None:
    """Adds the endpoint to the current `gr.Blocks`; its controls only describe it and are not shown."""
    names = list(service.pipe.modalities)
    with gr.Group(visible=False):
        inputs = [
            gr.File(label="image: photo file"),
            gr.File(label="hole: picture, white where the photo is to be filled in"),
            gr.File(label="mask: picture of class numbers or palette colours"),
            gr.Textbox(None, label="label: class name"),
            gr.Textbox(None, label="text: for the embedding"),
            gr.File(label="embedding_image: photo for the embedding"),
            gr.CheckboxGroup(
                names, value=None, label="wanted: modalities to generate; all that are not given if left out"
            ),
            gr.Number(30, precision=0, label="steps"),
            gr.Number(None, precision=0, label="seed: random if left out"),
            gr.Number(1, precision=0, label="num_samples"),
            gr.Number(1.0, label="guidance_scale"),
            gr.Textbox("ddim", label="sampler"),
        ]
        outputs = [
            gr.File(label="pictures", file_count="multiple"),
            gr.File(label="masks (class numbers)", file_count="multiple"),
            gr.JSON(label="result"),
        ]
        pictures = outputs[0]

    def generate(
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
        guidance_scale: float = 1.0,
        sampler: str = "ddim",
    ) -> tuple[list[str] | None, list[str] | None, dict[str, Any]]:
        """Samples what is wanted from what is given: pictures, masks, and the rest of the result."""
        with plain_errors():
            given, known = _given(service, image, hole, mask, label, text, embedding_image)
            wanted = tuple(wanted or (name for name in names if name not in given))
            if known is not None and "image" not in wanted:
                wanted = (*wanted, "image")
            seed = new_seed() if seed is None else seed
            job = Job(given, wanted, known, steps, seed, num_samples, guidance_scale, sampler)
            *_, result = service.stream(job)
            return _files(service, job, result, pictures.GRADIO_CACHE) + (_details(service, job, result),)

    gr.Button(visible=False).click(
        generate, inputs, outputs, api_name="generate", concurrency_limit=MAX_RUNS, concurrency_id="runs"
    )


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
    specs = service.pipe.modalities
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
        given["image"] = adapters.read_photo(given["image"], size)[0]
        known = adapters.known_pixels(adapters.hole_from_file(hole, size)) if hole else None
    if "mask" in given:
        spec = specs["mask"]
        given["mask"] = adapters.mask_from_file(given["mask"], spec.shape[-1], spec.classes, spec.palette)
    if embedding_image:
        given["embedding"] = adapters.open_picture(embedding_image, "embedding")
    return given, known


def _files(
    service: Service, job: Job, result: Preview, cache: str
) -> tuple[list[str] | None, list[str] | None]:
    """The wanted pictures and masks as PNG files, one per sample."""
    files: dict[str, list[str] | None] = {"image": None, "mask": None}
    for name in files:
        if name in job.wanted:
            spec, x = service.pipe.modalities[name], result.x_hat[name]
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
        classes = service.pipe.modalities["label"].classes
        details["label"] = [
            {classes[k]: round(float(p[k]), 5) for k in np.argsort(-p)[:5]} for p in result.x_hat["label"]
        ]
    if "embedding" in job.wanted:
        vectors = result.x_hat["embedding"]
        details["embedding"] = vectors.tolist()
        if nearest := service.describe(vectors):
            details["nearest"] = [description.as_dict() for description in nearest]
    return details
