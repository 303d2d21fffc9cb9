"""What the page offers to give a modality: one class per kind, with its controls and how to read them.

A new kind of modality is one class and one line in `INPUTS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import gradio as gr
import numpy as np
from PIL import Image, ImageColor

from app import adapters, views
from app.errors import plain_errors
from app.theme import html

QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # for events nobody needs to see
HOLE, HOLE_OPACITY = "#f2542d", 0.8


@dataclass(frozen=True)
class Given:
    """A modality's value for `mmdiff.Pipeline`, and the known pixels (H, W) bool of a photo with holes."""

    value: Any
    known_pixels: np.ndarray | None = None


class Input:
    """Controls for one modality, made inside the current `gr.Blocks` context.

    Attributes:
        components: what `read` takes, in this order.
        watched: what `missing` takes: those that are cheap to send whenever they change.
        shown: what the updates from `show` go to.
    """

    asks_for: ClassVar[str]  # completes "First …"

    components: list[gr.components.Component]
    watched: list[gr.components.Component]
    shown: list[gr.blocks.Block]

    def __init__(self, spec: Any) -> None:
        self.spec = spec

    def missing(self, *watched: Any) -> str:
        """What is still needed, or nothing."""
        return "" if any(value not in (None, "") for value in watched) else self.asks_for

    def read(self, *values: Any) -> Given:
        """Raises ValueError, in words for the page, if there is nothing to give."""
        raise NotImplementedError

    def nothing(self, remedy: str) -> ValueError:
        """The error of a modality that is set to Given while its controls are empty."""
        return ValueError(f"“{self.spec.name}” is set to Given, but nothing is given. {remedy}")


class ImageInput(Input):
    """A photo to upload, then to paint holes into."""

    asks_for = "upload a photo"

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.size = spec.shape[-1]
        self.photo = gr.State(None)  # at the model's size: what the known pixels must come back as
        self.file = gr.File(label="Photo", file_types=["image"], height=150, elem_id=f"{spec.name}-file")
        with gr.Column(visible=False, elem_classes="painting") as self.painting:
            self.editor = _editor(spec, self.size, [(HOLE, HOLE_OPACITY)], "Paint a hole")
            with gr.Row(elem_classes="beside"):
                html('<p class="hint">Unpainted pixels come back unchanged. Paint nothing to give all of it.</p>')
                again = gr.Button("Other photo", size="sm", scale=0, min_width=110)
        self.components = [self.photo, self.editor]
        self.watched = [self.photo]
        self.shown = [self.photo, self.file, self.painting, self.editor]
        self.file.upload(self._accept, self.file, self.shown, **QUIET)
        self.editor.clear(self._without_hole, self.photo, self.editor, **QUIET)
        again.click(self._start_over, None, self.shown, **QUIET)

    def show(self, photo: Image.Image, hole: np.ndarray | None = None) -> tuple[Any, ...]:
        """A photo at the model's size, with or without a hole (H, W) bool, as if uploaded and painted."""
        layers = [] if hole is None else [adapters.hole_layer(hole, self._side, _rgba(HOLE, HOLE_OPACITY))]
        return self._updates(photo, photo.resize((self._side, self._side), Image.Resampling.BICUBIC), layers)

    def read(self, photo: Image.Image | None, editor: dict[str, Any] | None) -> Given:
        if photo is None:
            raise self.nothing("Upload a photo, or set it to Generate or Ignore.")
        hole = adapters.hole_from_layers(adapters.editor_layers(editor), self.size)
        return Given(photo, adapters.known_pixels(hole))

    @property
    def _side(self) -> int:
        return adapters.editor_size(self.size)

    def _accept(self, path: str) -> tuple[Any, ...]:
        with plain_errors():
            photo, canvas = adapters.read_photo(path, self.size)
        return self._updates(photo, canvas, [])

    def _updates(self, photo: Image.Image, canvas: Image.Image, layers: list[Image.Image]) -> tuple[Any, ...]:
        return photo, gr.update(value=None, visible=False), gr.update(visible=True), _canvas(canvas, layers)

    def _without_hole(self, photo: Image.Image | None) -> Any:
        return gr.skip() if photo is None else self.show(photo)[-1]

    def _start_over(self) -> tuple[Any, ...]:
        return None, gr.update(visible=True), gr.update(visible=False), None


class MaskInput(Input):
    """A class map to upload or to paint with the classes' colours."""

    asks_for = "upload or paint a mask"

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.size = spec.shape[-1]
        self.uploaded = gr.State(None)  # class map (H, W) under the strokes
        colours = [f"#{bytes(rgb).hex()}" for rgb in spec.palette]
        html(f'<div class="legend">{views.swatches(spec.classes, spec.palette)}</div>')
        empty = self._picture(np.zeros(spec.shape, dtype=np.int64))
        self.editor = _editor(spec, self.size, colours[1:] + colours[:1], "Paint the mask", empty)
        with gr.Row(elem_classes="beside"):
            html(f'<p class="hint">Unpainted is {spec.classes[0]}. Files: class numbers or these colours.</p>')
            upload = gr.UploadButton(
                "Upload mask", file_types=["image"], size="sm", scale=0, min_width=110, elem_id=f"{spec.name}-file"
            )
        self.components = [self.uploaded, self.editor]
        self.watched = []
        self.shown = [self.uploaded, self.editor]
        upload.upload(self._accept, upload, self.shown, **QUIET)
        self.editor.clear(lambda: (None, _canvas(empty)), None, self.shown, **QUIET)

    def show(self, mask: np.ndarray) -> tuple[Any, ...]:
        """A class map (H, W), as if uploaded."""
        return mask, _canvas(self._picture(mask))

    def missing(self) -> str:
        return ""  # strokes are not sent before a run, so only `read` can tell

    def read(self, uploaded: np.ndarray | None, editor: dict[str, Any] | None) -> Given:
        base = np.zeros(self.spec.shape, dtype=np.int64) if uploaded is None else uploaded
        mask = adapters.paint_mask(base, adapters.editor_layers(editor), self.spec.palette)
        if not mask.any():
            raise self.nothing("Paint a class other than the first, upload a mask, or set it to Generate or Ignore.")
        return Given(mask)

    def _picture(self, mask: np.ndarray) -> Image.Image:
        return adapters.colour_mask(mask, self.spec.palette, adapters.editor_size(self.size)).convert("RGB")

    def _accept(self, path: str) -> tuple[Any, ...]:
        with plain_errors():
            return self.show(adapters.mask_from_file(path, self.size, self.spec.classes, self.spec.palette))


class LabelInput(Input):
    """A class to choose from all."""

    asks_for = "choose a label"

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.choice = gr.Dropdown(
            list(spec.classes), value=None, container=False, label=spec.name.capitalize(), elem_id=f"{spec.name}-choice"
        )
        self.components = self.watched = self.shown = [self.choice]

    def show(self, label: str) -> tuple[Any, ...]:
        return (gr.update(value=label),)

    def read(self, label: str | None) -> Given:
        if not label:
            raise self.nothing("Choose a class from the list, or set it to Generate or Ignore.")
        return Given(label)


class EmbeddingInput(Input):
    """A text, or a photo, whose embedding is given."""

    asks_for = "write a text or upload a photo to take the embedding from"

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.text = gr.Textbox(
            container=False, placeholder="a dark red apple", max_length=300, elem_id=f"{spec.name}-text", label="Text"
        )
        self.file = gr.File(label="or a photo", file_types=["image"], height=110, elem_id=f"{spec.name}-file")
        self.components = self.watched = self.shown = [self.text, self.file]

    def show(self, text: str) -> tuple[Any, ...]:
        return gr.update(value=text), gr.update(value=None)

    def read(self, text: str | None, path: str | None) -> Given:
        if text and text.strip() and path:
            raise ValueError("The embedding has a text and a photo. Keep one of them and clear the other.")
        if path:
            return Given(adapters.open_picture(path, "embedding"))
        if not text or not text.strip():
            raise self.nothing("Write a text or upload a photo, or set it to Generate or Ignore.")
        return Given(text.strip())


INPUTS: dict[str, type[Input]] = {
    "image": ImageInput,
    "mask": MaskInput,
    "label": LabelInput,
    "embedding": EmbeddingInput,
}


def _editor(
    spec: Any, size: int, colours: Sequence[Any], label: str, background: Image.Image | None = None
) -> gr.ImageEditor:
    """A paint area and nothing else: pictures are uploaded elsewhere, so that they can be checked and cut first."""
    side = adapters.editor_size(size)
    return gr.ImageEditor(
        value=None if background is None else _canvas(background),
        type="pil",
        image_mode="RGBA",
        format="png",  # webp changes colours
        sources=(),
        transforms=(),
        layers=False,
        buttons=[],
        canvas_size=(side, side),
        height=400,
        brush=gr.Brush(default_size=side // 16, colors=list(colours), color_mode="fixed"),
        eraser=gr.Eraser(default_size=side // 16),
        label=label,
        show_label=True,
        elem_id=f"{spec.name}-editor",
    )


def _canvas(background: Image.Image, layers: Sequence[Image.Image] = ()) -> dict[str, Any]:
    return {"background": background, "layers": list(layers), "composite": None}


def _rgba(colour: str, opacity: float) -> tuple[int, int, int, int]:
    return (*ImageColor.getrgb(colour), round(255 * opacity))
