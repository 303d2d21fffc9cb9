"""The named endpoints for `gradio_client`: plain values in, files and plain values out."""

import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from typing import Any

import gradio as gr
import numpy as np
from gradio.context import Context, LocalContext
from gradio.processing_utils import save_pil_to_cache

from app.controls import adapters
from app.controls.settings import new_seed
from app.export import settings_file
from app.run.defaults import ANCHOR
from app.run.history import Record, picture_of
from app.run.service import Service
from app.run.visitors import MAX_RUNS, address_of
from mmdiff.modalities import Modality
from mmdiff.request import Request, is_whole

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
                label="guidance_scale: number, or object of numbers by modality; 1 if left out. The image "
                "counts where it has a hole, and what is not given where sample_first names it",
            ),
            gr.Textbox("ddim", label="sampler"),
            gr.Textbox(None, label="checkpoint: name; the first one if left out"),
            gr.JSON(None, label="sample_first: list of modalities, such as the label, that all else follows"),
            gr.JSON(None, label="leads: what is decided first, an object of numbers by modality"),
        ]
        settings = gr.Textbox(label="settings: the text of a settings file")
        outputs = [
            gr.File(label="pictures", file_count="multiple"),
            gr.File(label="masks (class numbers)", file_count="multiple"),
            gr.JSON(label="result"),
        ]
        facts = gr.JSON(label="checkpoints")
    endpoints = Endpoints(services, outputs[0].GRADIO_CACHE, Context.root_block)
    runs = {"concurrency_limit": MAX_RUNS, "concurrency_id": "runs"}
    for call, takes, gives, options in (
        (endpoints.generate, inputs, outputs, runs),
        (endpoints.run_settings, [settings], outputs, runs),
        (endpoints.describe, None, facts, {}),
    ):
        # Values are checked here, where the errors can say more than those of Gradio.
        gr.Button(visible=False).click(
            call, takes, gives, api_name=call.__name__, preprocess=False, **options
        )


class Endpoints:
    """The endpoints; `services` are all models, the first of which is the default, and `demo` serves them."""

    def __init__(self, services: Sequence[Service], cache: str, demo: gr.Blocks) -> None:
        self._services = {service.name: service for service in services}
        self._cache, self._demo = cache, demo

    def generate(
        self,
        visitor: gr.Request,
        image: Any = None,
        hole: Any = None,
        mask: Any = None,
        label: Any = None,
        text: Any = None,
        embedding_image: Any = None,
        wanted: Any = None,
        steps: Any = None,
        seed: Any = None,
        num_samples: Any = None,
        guidance_scale: Any = None,
        sampler: Any = None,
        checkpoint: Any = None,
        sample_first: Any = None,
        leads: Any = None,
    ) -> Result:
        """Samples the wanted modalities from the given ones: pictures, masks and the rest of the result."""
        with self._forgotten(visitor):
            service = self._service(checkpoint)
            files = {"image": image, "hole": hole, "mask": mask, "embedding_image": embedding_image}
            files = {name: _path(name, value) for name, value in files.items()}
            given, known = _given(service, label=_label(label), text=_text(text), **files)
            wanted, first = _names("wanted", wanted), _names("sample_first", sample_first)
            if known is not None and wanted and ANCHOR not in wanted:
                wanted = (*wanted, ANCHOR)
            plain = {"steps": steps, "num_samples": num_samples, "sampler": sampler, "leads": leads}
            plain |= {"guidance_scale": guidance_scale, "seed": new_seed() if seed is None else seed}
            plain = {name: _whole(value) for name, value in plain.items() if value is not None}
            return self._result(service, Request(given, wanted, known, sample_first=first, **plain), visitor)

    def run_settings(self, visitor: gr.Request, settings: Any) -> Result:
        """Runs the text of a settings file; the results are as of /generate."""
        with self._forgotten(visitor):
            name = None
            settings = settings if isinstance(settings, str) else json.dumps(settings)
            with suppress(ValueError, TypeError, LookupError, RecursionError):  # which `from_json` explains
                name = json.loads(settings)["checkpoint"]
            service = self._service(name if isinstance(name, str) else None)
            request = settings_file.from_json(settings, service.modalities).request
            return self._result(service, request, visitor)

    def describe(self, visitor: gr.Request) -> dict[str, Any]:
        """All models: their modalities with classes, sizes and colours."""
        with self._forgotten(visitor):
            every = {name: service.modalities for name, service in self._services.items()}
            return {name: {n: _facts(spec) for n, spec in specs.items()} for name, specs in every.items()}

    @contextmanager
    def _forgotten(self, visitor: gr.Request) -> Iterator[None]:
        """Nothing of a call is kept: Gradio would keep two megabytes of every session, and a call is one."""
        try:
            yield
        finally:
            for kept in (self._demo.state_holder.session_data, self._demo.state_holder.time_last_used):
                kept.pop(visitor.session_hash, None)

    def _service(self, checkpoint: Any) -> Service:
        name = checkpoint or next(iter(self._services))
        if not isinstance(name, str) or name not in self._services:
            raise ValueError(f"There is no checkpoint “{name}”; there is {', '.join(self._services)}.")
        return self._services[name]

    def _result(self, service: Service, request: Request, visitor: gr.Request) -> Result:
        record = service.record(request)
        event = self._demo._queue.event_ids_to_events.get(LocalContext.event_id.get(None))
        with closing(service.stream(record, owner=address_of(visitor))) as steps:
            for _ in steps:
                if event is not None and not event.alive:  # nobody is there any more to get the result
                    raise ValueError("The run was ended, as its client has gone.")
        return self._files(record, "picture"), self._files(record, "class_map"), _details(record)

    def _files(self, record: Record, form: str) -> list[str] | None:
        """The wanted modalities of a form as PNG files, one per sample; None if there are none."""
        specs = [spec for spec in record.of_form(form) if spec.name in record.request.wanted]
        return [
            save_pil_to_cache(picture_of(record.last, spec, k), self._cache, f"{spec.name}_{k + 1}", "png")
            for spec in specs
            for k in range(record.request.num_samples)
        ] or None


def _names(what: str, names: Any) -> tuple[str, ...]:
    """A list of names that a client sent."""
    if names is not None and not (isinstance(names, list) and all(isinstance(n, str) for n in names)):
        raise ValueError(f'{what} is a list of modalities, such as ["image", "mask"].')
    return tuple(names or ())


def _path(what: str, file: Any) -> str | None:
    """The path of an uploaded file, as Gradio has checked it."""
    if not file:
        return None
    if not isinstance(file, dict) or not isinstance(file.get("path"), str):
        raise ValueError(f"{what} is a file that was uploaded, as gradio_client’s handle_file does.")
    return file["path"]


def _text(text: Any) -> str | None:
    if text is not None and not isinstance(text, str):
        raise ValueError(f"text is {str(text)[:40]}; give a text in quotation marks.")
    return text


def _label(label: Any) -> str | int | None:
    """The name of a class, or its number."""
    if label is None or isinstance(label, str):
        return label
    if is_whole(_whole(label)):
        return _whole(label)
    raise ValueError(f"label is {str(label)[:40]}; give the name of a class, as /describe has them.")


def _whole(number: Any) -> Any:
    """A whole number in place of a float that is one, which JSON does not tell apart; the rest as it is."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _facts(spec: Modality) -> dict[str, Any]:
    facts: dict[str, Any] = {"kind": spec.kind, "shape": list(spec.shape)}
    if spec.classes:
        facts["classes"] = list(spec.classes)
    if spec.form == "class_map":
        facts["palette"] = [f"#{bytes(rgb).hex()}" for rgb in spec.palette]
    return facts


def _given(
    service: Service,
    image: str | None,
    hole: str | None,
    mask: str | None,
    label: str | int | None,
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
        size = specs["image"].image_size
        photo = adapters.read_photo(given["image"], size)
        given["image"] = photo.for_model
        known = adapters.known_pixels(adapters.read_hole(hole, size, photo.size).cells) if hole else None
    if "mask" in given:
        spec = specs["mask"]
        given["mask"] = adapters.read_mask(mask, spec.image_size, spec.classes, spec.palette).cells
    if embedding_image:
        given["embedding"] = adapters.read_reference(embedding_image)
    return given, known


def _details(record: Record) -> dict[str, Any]:
    """Seed, time and all wanted modalities that are no pictures, one entry per sample."""
    request = record.request
    details: dict[str, Any] = {
        "checkpoint": record.checkpoint,
        **{name: getattr(request, name) for name in ("seed", "steps", "sampler")},
        "seconds": round(record.seconds, 3),
    }
    for spec in record.of_form("class", "vector"):
        if spec.name in request.wanted:
            words = record.in_words(spec)
            details[spec.name] = words if spec.form == "class" else record.last.x[spec.name].tolist()
            if spec.form == "vector" and all(words):
                details["nearest"] = words
    return details
