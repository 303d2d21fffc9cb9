"""What the page offers to give a modality: one class per kind, with its controls and how to read them.

A new kind of modality is one class and one line in `INPUTS`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import gradio as gr
import numpy as np
from PIL import Image

from app import adapters
from app.errors import plain_errors
from app.painter import Painter
from app.theme import html

QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # for events nobody needs to see
GIVEN, GENERATE, IGNORE = "Given", "Generate", "Ignore"  # what may become of a modality
HOLE_COLOUR = (242, 84, 45, 215)


@dataclass(frozen=True)
class Given:
    """A modality's value for `mmdiff.Pipeline`, and the known pixels (H, W) bool of a photo with holes."""

    value: Any
    known_pixels: np.ndarray | None = None


class Input:
    """Controls for one modality, made inside the current `gr.Blocks` context.

    Attributes:
        components: what `read` takes, in this order.
        watched: what `missing` takes: those that are to be told of whenever they change.
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

    def generates(self, *watched: Any) -> bool:
        """Whether the modality is partly generated although it is given."""
        return False

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
            colours = [(0, 0, 0, 0), HOLE_COLOUR]
            self.hole = Painter(self.size, ["Erase", "Hole"], colours, elem_id=f"{spec.name}-painter")
            with gr.Row(elem_classes="beside"):
                html('<p class="hint">What you paint is made anew, the rest comes back unchanged.</p>')
                again = gr.Button("Other photo", size="sm", scale=0, min_width=110)
        self.components = self.watched = [self.photo, self.hole.component]
        self.shown = [self.photo, self.file, self.painting, self.hole.component]
        self.file.upload(self._accept, self.file, self.shown, **QUIET)
        again.click(self._start_over, None, self.shown, **QUIET)

    def show(self, photo: Image.Image, hole: np.ndarray | None = None) -> tuple[Any, ...]:
        """A photo, with or without a hole (H, W) bool, as if uploaded and painted."""
        return (
            photo,
            gr.update(value=None, visible=False),
            gr.update(visible=True),
            self.hole.update(hole, photo),
        )

    def missing(self, photo: Image.Image | None, hole: str | None) -> str:
        return super().missing(photo)

    def generates(self, photo: Image.Image | None, hole: str | None) -> bool:
        return bool(hole)

    def read(self, photo: Image.Image | None, hole: str | None) -> Given:
        if photo is None:
            raise self.nothing("Upload a photo, or set it to Generate or Ignore.")
        cells = self.hole.cells(hole)
        return Given(photo, adapters.known_pixels(cells > 0) if cells.any() else None)

    def _accept(self, path: str) -> tuple[Any, ...]:
        with plain_errors():
            photo, larger = adapters.read_photo(path, self.size)
        return (*self.show(photo)[:-1], self.hole.update(None, larger))

    def _start_over(self) -> tuple[Any, ...]:
        return None, gr.update(visible=True), gr.update(visible=False), self.hole.update(None)


class MaskInput(Input):
    """A class map to paint with the classes' colours, or to upload."""

    asks_for = "paint or upload a mask"

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.size = spec.shape[-1]
        colours = [(*colour, 255) for colour in spec.palette]
        self.mask = Painter(self.size, spec.classes, colours, elem_id=f"{spec.name}-painter")
        with gr.Row(elem_classes="beside"):
            html('<p class="hint">A mask file has class numbers or these colours.</p>')
            upload = gr.UploadButton(
                "Upload mask",
                file_types=["image"],
                size="sm",
                scale=0,
                min_width=110,
                elem_id=f"{spec.name}-file",
            )
        self.components = self.watched = self.shown = [self.mask.component]
        upload.upload(self._accept, upload, self.mask.component, **QUIET)

    def show(self, mask: np.ndarray) -> tuple[Any, ...]:
        """A class map (H, W), as if uploaded."""
        return (self.mask.update(mask),)

    def read(self, cells: str | None) -> Given:
        mask = self.mask.cells(cells)
        if not mask.any():
            raise self.nothing(
                f"Paint more than {self.spec.classes[0]}, upload a mask, or set it to Generate or Ignore."
            )
        return Given(mask)

    def _accept(self, path: str) -> gr.HTML:
        with plain_errors():
            mask = adapters.mask_from_file(path, self.size, self.spec.classes, self.spec.palette)
            return self.mask.update(mask)


class LabelInput(Input):
    """A class to choose from all."""

    asks_for = "choose a label"

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.choice = gr.Dropdown(
            list(spec.classes),
            value=None,
            container=False,
            label=spec.name.capitalize(),
            elem_id=f"{spec.name}-choice",
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
            container=False,
            placeholder="a dark red apple",
            max_length=300,
            elem_id=f"{spec.name}-text",
            label="Text",
        )
        self.file = gr.File(label="or a photo", file_types=["image"], height=140, elem_id=f"{spec.name}-file")
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
