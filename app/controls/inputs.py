"""The controls by which a modality is given: one class per form, and how to read them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import gradio as gr
import numpy as np
from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from app.controls import adapters
from app.controls.chips import chips, slots, unknown_note
from app.controls.crop import MIDDLE, cut, ends, is_like
from app.controls.painter import Painter, to_text
from app.errors import plain_errors
from app.run.defaults import ANCHOR
from app.task import GIVEN
from app.theme import html
from app.wording import escaped
from mmdiff.clip.vocabulary import Vocabulary
from mmdiff.images import to_rgb
from mmdiff.modalities import Modality

# For events that show no progress. If they had targets to show it on, every message of any event would have
# the page go through all of those.
QUIET: dict[str, Any] = {"show_progress": "hidden", "show_progress_on": [], "api_visibility": "private"}
Upload = tuple[str | None, adapters.Size]  # path of a photo's file, if it is known, and its size
PHOTO_FIRST = "Upload the photo first, then what belongs to it."
HOLE_COLOUR = (242, 84, 45, 255)


class Input:
    """Controls for one modality of a task, made inside the current `gr.Blocks` context.

    Attributes:
        prefix: with which the ids of the controls start, "task-modality".
        components: what `read`, `known_pixels`, `missing` and `has_hole` take, in this order.
        shown: what the updates from `show` go to.

    `vocabulary` is of the model's captions, if it has them.
    """

    asks_for: ClassVar[str] = ""  # completes "First …"

    components: list[gr.components.Component]
    shown: list[gr.blocks.Block]

    def __init__(self, spec: Modality, task: str, vocabulary: Vocabulary | None = None) -> None:
        self.spec, self.vocabulary = spec, vocabulary
        self.prefix = f"{task}-{spec.name}"
        self.components = self.shown = []

    def lies_on(self, photo: ImageInput, choice: gr.Radio) -> None:
        """Shows the photo that is given, if it is, below what is painted."""

    def missing(self, *values: Any) -> str:
        """What the visitor still has to do, "" for nothing."""
        return "" if any(value not in (None, "") for value in values) else self.asks_for

    def has_hole(self, *values: Any) -> bool:
        """Whether the modality is partly generated although it is given."""
        return False

    def read(self, *values: Any) -> Any:
        """The value for a request. Raises ValueError, in words for the page, if there is nothing to give."""
        raise NotImplementedError

    def known_pixels(self, *values: Any) -> np.ndarray | None:
        """The part of a photo to keep, (H, W) bool, from the same values; None without a hole."""
        return None

    def show(self, value: Any, known_pixels: np.ndarray | None = None) -> tuple[Any, ...]:
        """The updates of `shown` after which `read` and `known_pixels` return this.

        ``value`` is None where the visitor is still to give it.
        """
        raise NotImplementedError

    def nothing(self, remedy: str) -> ValueError:
        """The error of a modality that is set to GIVEN while its controls are empty."""
        return ValueError(f"Nothing is provided for “{self.spec.name}” yet. {remedy}")


class ImageInput(Input):
    """A photo to upload, drop, paste or take, then to paint or upload holes into."""

    asks_for = "upload a photo"

    def __init__(self, spec: Modality, task: str, vocabulary: Vocabulary | None = None) -> None:
        super().__init__(spec, task, vocabulary)
        self.size = spec.image_size
        self.photo = gr.State(None)  # at the model's size: known pixels come back exactly so
        self.upload = gr.State(None)  # path of the file and its (width, height), which a hole's must match
        looks = {"height": 150, "elem_id": f"{self.prefix}-file"}
        self.file = gr.File(label="Photo: choose, drop or paste", file_types=["image"], **looks)
        html('<button type="button" class="camera">Use the camera</button>')
        self.about_photo = _note(f"{self.prefix}-note")
        with gr.Column(visible=False, elem_classes="painting") as self.painting:
            self._paint_area()
        self.components = [self.photo, self.hole.component]
        painted = [self.hole.component, self.about_hole]
        told = [self.about_photo, self.crop, self.painting]
        self.shown = [self.photo, self.upload, self.file, *told, *painted]
        self.file.upload(self._accept, self.file, self.shown, **QUIET)
        self._again.click(self._start_over, self._keep, self.shown, **QUIET)
        moved = [self.photo, self.about_photo, self.hole.component]
        self.crop.input(self._cut, [self.crop, self.upload], moved, trigger_mode="always_last", **QUIET)
        self._upload.upload(self._accept_hole, [self._upload, self.upload, self.crop], painted, **QUIET)
        _forget(self.about_hole, self.hole)

    def _paint_area(self) -> None:
        names, colours = ["Erase", "Hole"], [(0, 0, 0, 0), HOLE_COLOUR]
        looks = {"visible": False, "elem_id": f"{self.prefix}-crop"}
        self.crop = gr.Slider(0, 100, value=MIDDLE, step=1, label="Part of the photo", **looks)
        self.hole = Painter(self.size, names, colours, hole=True, elem_id=f"{self.prefix}-painter")
        html('<p class="hint">What you paint over is repainted; the rest stays pixel-identical.</p>')
        self.about_hole = _note(f"{self.prefix}-hole-note")
        with gr.Row(elem_classes="beneath"):
            self._upload = _upload("Upload hole", f"{self.prefix}-hole-file")
            small = {"scale": 0, "min_width": 104}
            self._again = gr.Button("Other photo", size="sm", elem_id=f"{self.prefix}-other", **small)
            small = {"scale": 0, "min_width": 96, "container": False}
            self._keep = gr.Checkbox(True, label="Keep hole", elem_id=f"{self.prefix}-keep-hole", **small)

    def show(self, photo: Image.Image | None, known_pixels: np.ndarray | None = None) -> tuple[Any, ...]:
        """A photo of the model's size, with or without a hole, as if uploaded and painted."""
        hole = self.hole.update(None if known_pixels is None else ~known_pixels, photo)
        return self._updates(photo, photo and (None, photo.size), "", hole, "")

    def missing(self, photo: Image.Image | None, hole: str | None) -> str:
        return super().missing(photo)

    def has_hole(self, photo: Image.Image | None, hole: str | None) -> bool:
        return bool(hole)

    def read(self, photo: Image.Image | None, hole: str | None) -> Image.Image:
        if photo is None:
            raise self.nothing("Upload a photo, again if one is shown: the server no longer has it.")
        return photo

    def known_pixels(self, photo: Image.Image | None, hole: str | None) -> np.ndarray | None:
        cells = self.hole.cells(hole)
        return adapters.known_pixels(cells > 0) if cells.any() else None

    def _updates(
        self, photo: Image.Image | None, upload: Upload | None, note: str, hole: Any, hole_note: Any
    ) -> tuple[Any, ...]:
        # Not taken off the page, so that another photo can be dropped or pasted in its place.
        file = gr.update(value=None, visible=True if photo is None else "hidden")
        path, size = upload or (None, (0, 0))
        label = "Part of the photo that is used, {} to {}".format(*ends(size))
        crop = gr.update(value=MIDDLE, label=label, visible=bool(path) and size[0] != size[1])
        painting = gr.update(visible=photo is not None)
        return photo, upload, file, note, crop, painting, hole, hole_note

    def _accept(self, path: str) -> tuple[Any, ...]:
        """A new photo; the painted hole stays."""
        photo, note = _accepted(adapters.read_photo, path, self.size)
        if photo is None:
            return self._updates(None, None, note, gr.skip(), gr.skip())
        hole = self.hole.over(photo.larger)
        return self._updates(photo.for_model, (path, photo.size), note, hole, gr.skip())

    def _cut(self, percent: float, upload: Upload | None) -> tuple[Any, str, Any]:
        """Another part of the same photo; the painted hole stays where it is."""
        if not upload or not upload[0]:
            return gr.skip(), PHOTO_FIRST, gr.skip()
        part = cut(upload[0], percent, self.file.GRADIO_CACHE)
        photo, note = _accepted(adapters.read_photo, part, self.size)
        return photo.for_model, note, self.hole.over(photo.larger)

    def _start_over(self, keep: bool) -> tuple[Any, ...]:
        hole = (gr.skip(), gr.skip()) if keep else (self.hole.update(None), "")
        return self._updates(None, None, "", *hole)

    def _accept_hole(self, path: str, upload: Upload | None, percent: float) -> tuple[Any, str]:
        if not upload:
            return gr.skip(), PHOTO_FIRST
        hole, note = _accepted(self._read_hole, path, upload[1], percent)
        return to_text(hole.cells) if hole else gr.skip(), note

    def _read_hole(self, path: str, photo_size: adapters.Size, percent: float) -> adapters.Cells:
        """An uploaded hole; one for the whole of a photo that is not square is cut as the photo is."""
        adapters.open_picture(path, "hole")  # raises for what is no picture
        if percent == MIDDLE or not is_like(path, photo_size):
            return adapters.read_hole(path, self.size, photo_size)
        short = min(photo_size)
        return adapters.read_hole(cut(path, percent, self.file.GRADIO_CACHE), self.size, (short, short))


class MaskInput(Input):
    """A class map to paint with the classes' colours, or to upload."""

    asks_for = "paint or upload a mask"

    def __init__(self, spec: Modality, task: str, vocabulary: Vocabulary | None = None) -> None:
        super().__init__(spec, task, vocabulary)
        colours = [(*colour, 255) for colour in spec.palette]
        self.mask = Painter(spec.image_size, spec.classes, colours, elem_id=f"{self.prefix}-painter")
        self.about = _note(f"{self.prefix}-note")
        with gr.Row(elem_classes="beneath"):
            upload = _upload("Upload mask", f"{self.prefix}-file")
            html('<p class="hint">Class numbers or these colours</p>')
        self.components = [self.mask.component]
        self.shown = [self.mask.component, self.about]
        upload.upload(self._accept, upload, self.shown, **QUIET)
        _forget(self.about, self.mask)

    def show(self, mask: np.ndarray | None, known_pixels: None = None) -> tuple[Any, ...]:
        """A class map (H, W), as if uploaded."""
        return to_text(mask), ""

    def lies_on(self, photo: ImageInput, choice: gr.Radio) -> None:
        gr.on(
            [photo.photo.change, choice.change],
            lambda given, role: self.mask.over(given if role == GIVEN else None),
            [photo.photo, choice],
            self.mask.component,
            **QUIET,
        )

    def read(self, cells: str | None) -> np.ndarray:
        mask = self.mask.cells(cells)
        if not mask.any():
            raise self.nothing(
                f"Paint more than {self.spec.classes[0]}, upload a mask, or let it be created."
            )
        return mask

    def _accept(self, path: str) -> tuple[Any, str]:
        spec = self.spec
        mask, note = _accepted(adapters.read_mask, path, spec.image_size, spec.classes, spec.palette)
        return to_text(mask.cells) if mask else gr.skip(), note


class LabelInput(Input):
    """A class to choose from all."""

    asks_for = "choose a label"

    def __init__(self, spec: Modality, task: str, vocabulary: Vocabulary | None = None) -> None:
        super().__init__(spec, task, vocabulary)
        looks = {"container": False, "label": spec.name.capitalize(), "elem_id": f"{self.prefix}-choice"}
        self.choice = gr.Dropdown(list(spec.classes), value=None, **looks)
        html(f'<p class="hint">Type to search the {len(spec.classes)} labels.</p>')
        self.components = self.shown = [self.choice]

    def show(self, label: str | None, known_pixels: None = None) -> tuple[Any, ...]:
        """The name of a class."""
        return (gr.update(value=label),)

    def read(self, label: str | None) -> str:
        if not label:
            raise self.nothing("Choose one from the list, or let it be created.")
        return label


class EmbeddingInput(Input):
    """A text, or a photo, whose embedding is given."""

    asks_for = "write a text or upload a photo to take the embedding from"

    def __init__(self, spec: Modality, task: str, vocabulary: Vocabulary | None = None) -> None:
        super().__init__(spec, task, vocabulary)
        self.text = gr.Textbox(
            label="Text",
            placeholder="a dark red apple",
            max_length=300,
            container=False,
            elem_id=f"{self.prefix}-text",
            elem_classes="runs-on-enter",
        )
        if vocabulary:
            about = _note(f"{self.prefix}-text-note")
            self.text.change(partial(unknown_note, vocabulary=vocabulary), self.text, about, **QUIET)
            html(chips(slots(vocabulary)), elem_id=f"{self.prefix}-chips")
        looks = {"height": 140, "elem_id": f"{self.prefix}-file"}
        self.file = gr.File(label="or a photo", file_types=["image"], **looks)
        self.components = self.shown = [self.text, self.file]

    def show(self, value: str | Image.Image | None, known_pixels: None = None) -> tuple[Any, ...]:
        """A text, or a photo, which is kept where uploaded files are."""
        if not isinstance(value, Image.Image):
            return gr.update(value=value or ""), gr.update(value=None)
        path = save_pil_to_cache(to_rgb(value), self.file.GRADIO_CACHE, "photo", "png")
        return gr.update(value=""), gr.update(value=path)

    def read(self, text: str | None, path: str | None) -> str | Image.Image:
        if text and text.strip() and path:
            raise ValueError("The embedding has a text and a photo. Leave one of them and clear the other.")
        if path:
            return adapters.read_reference(path)
        if not text or not text.strip():
            raise self.nothing("Write a text or upload a photo, or let it be created.")
        return text.strip()


def input_class(spec: Modality) -> type[Input]:
    """The controls for a modality; `Input` itself, which has none, where the page has no way to give it."""
    if spec.name == ANCHOR:
        return ImageInput
    if spec.takes_text:
        return EmbeddingInput
    return {"class_map": MaskInput, "class": LabelInput}.get(spec.form, Input)


def _upload(title: str, elem_id: str) -> gr.UploadButton:
    looks = {"size": "sm", "scale": 0, "min_width": 104, "elem_id": elem_id}
    return gr.UploadButton(title, file_types=["image"], **looks)


def _note(elem_id: str) -> gr.HTML:
    """A place for notes on a file and for errors in it; hidden while it is empty."""
    return html("", elem_id=elem_id, elem_classes="note")


def _forget(note: gr.HTML, painter: Painter) -> None:
    """Clears a note when the visitor paints."""
    painter.component.input(None, None, note, js="() => ''", **QUIET)


@plain_errors()
def _accepted(read: Callable[..., Any], *upload: Any) -> tuple[Any, str]:
    """What `read` makes of an upload, None if it refuses it, and a note on what was done or is wrong."""
    try:
        if any(value is None for value in upload):
            raise ValueError(
                "The photo or the file is missing. Upload the photo first, then choose the file."
            )
        result = read(*upload)
    except ValueError as error:
        return None, f'<p class="hint problem" role="alert">{escaped(error)}</p>'
    text = " ".join(map(escaped, result.notes))
    return result, text and f'<p class="hint" role="status">{text}</p>'
