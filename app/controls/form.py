"""The controls of a task, which are read as a `Request` and filled in from one."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import gradio as gr
from PIL import Image

from app.controls.inputs import QUIET, Input, input_class
from app.controls.settings import SamplingControls
from app.run.defaults import ANCHOR
from app.run.service import Service
from app.task import GENERATE, GIVEN, IGNORE, Task
from app.theme import html
from app.wording import escaped, gloss, listed
from mmdiff.images import square
from mmdiff.modalities import Modality
from mmdiff.request import Request


@dataclass(frozen=True)
class Row:
    """One modality: its choice and, when given, its controls."""

    spec: Modality
    choice: gr.Radio
    input: Input


class Form:
    """Made inside the current `gr.Blocks` context.

    Attributes:
        components: what `read` takes, in this order. outputs: what the updates from `show` go to.
        sampling: how to sample. changes: events of the controls of what is given.
    """

    def __init__(self, service: Service, task: Task) -> None:
        self._task = task
        self._size = service.modalities[ANCHOR].image_size
        self._vocabulary = service.pipe.words.vocabulary if service.pipe.can_describe else None
        with gr.Column(elem_classes="card"):
            self._rows = [self._row(spec) for spec in task.modalities(service.modalities).values()]
            choices = [row.choice for row in self._rows]
            watched = [*choices, *chain.from_iterable(row.input.components for row in self._rows)]
            plan = html(self._plan(*(component.value for component in watched)), elem_id=f"{task.name}-plan")
        with gr.Column(elem_classes="card"):
            self.sampling = SamplingControls(service, task, {row.spec.name: row.choice for row in self._rows})
        self._keep_in_step(watched, plan)
        photo = next(row for row in self._rows if row.spec.name == ANCHOR)
        for row in self._rows:
            row.input.lies_on(photo.input, photo.choice)
        self.components = [*watched, *self.sampling.components]
        self.outputs = [
            *chain.from_iterable([row.choice, *row.input.shown] for row in self._rows),
            *self.sampling.components,
        ]

    def _row(self, spec: Modality) -> Row:
        task, fixed, make_input = self._task, self._is_fixed(spec), input_class(spec)
        classes = ["modality", "fixed"] if fixed else "modality"
        with gr.Column(elem_classes=classes, elem_id=f"{task.name}-{spec.name}-row"):
            choice = gr.Radio(
                [choice for choice in task.choices if choice != GIVEN or make_input is not Input],
                value=GIVEN if fixed else GENERATE,
                label=spec.name.capitalize(),
                info=gloss(spec) or None,
                elem_id=f"{task.name}-{spec.name}-role",
            )
            with gr.Column(elem_classes="given"):
                control = make_input(spec, task.name, self._vocabulary)
        return Row(spec, choice, control)

    def _is_fixed(self, spec: Modality) -> bool:
        return self._task.inpaints and spec.name == ANCHOR

    def read(self, *values: Any) -> Request:
        """The request that the controls describe. Raises ValueError, in words for the page."""
        given, wanted, known_pixels = {}, [], None
        rows, settings = self._split(values)
        for row, choice, own in rows:
            hole = None
            if choice == GIVEN:
                given[row.spec.name] = self._sized(row.input.read(*own))
                hole = row.input.known_pixels(*own)
                known_pixels = known_pixels if hole is None else hole
            if choice == GENERATE or hole is not None:
                wanted.append(row.spec.name)
        if not wanted:
            raise ValueError("There is nothing to create. Set a row to Create, or paint a hole in the photo.")
        return Request(given, tuple(wanted), known_pixels, **self.sampling.read(given, wanted, *settings))

    def photo(self, *values: Any) -> Image.Image | None:
        """The photo that is given, without its hole; None if there is none."""
        for row, choice, own in self._split(values)[0]:
            if row.spec.name == ANCHOR and choice == GIVEN and not row.input.missing(*own):
                return row.input.read(*own)
        return None

    def _split(self, values: Sequence[Any]) -> tuple[list[tuple[Row, str, list[Any]]], list[Any]]:
        """Every row with its choice and the values of its controls, and what follows them."""
        rest = list(values)
        choices = [rest.pop(0) for _ in self._rows]
        rows = zip(self._rows, choices, strict=True)
        return [(row, choice, [rest.pop(0) for _ in row.input.components]) for row, choice in rows], rest

    def _sized(self, value: Any) -> Any:
        """A photo at the model's size, which a settings file can hold; other values as they are."""
        return square(value, self._size) if isinstance(value, Image.Image) else value

    def show(self, request: Request, settings: bool = True, missing: Collection[str] = ()) -> list[Any]:
        """Updates after which `read` gives this request (without its changes).

        Args:
            settings: whether to show how to sample, too.
            missing: names of modalities that are given, too, but whose values are still to be added.
        """
        updates: list[Any] = []
        for row in self._rows:
            name = row.spec.name
            known = request.known_pixels if name == ANCHOR else None
            if row.input.components and name in (*request.given, *missing):
                updates += [GIVEN, *row.input.show(request.given.get(name), known)]
            else:
                other = IGNORE if IGNORE in self._task.choices else GENERATE
                choice = GENERATE if name in request.wanted else other
                choice = GIVEN if self._is_fixed(row.spec) else choice
                updates += [choice, *(gr.skip() for _ in row.input.shown)]
        if settings:
            return updates + self.sampling.show(request, missing)
        return updates + [gr.skip() for _ in self.sampling.components]

    def _keep_in_step(self, watched: Sequence[gr.components.Component], plan: gr.HTML) -> None:
        """Updates the plan when a control changes; style.css hides the controls of modalities not given."""
        events = [component.change for component in watched]
        events += [component.input for component in watched if isinstance(component, gr.HTML)]  # strokes
        gr.on(events, self._plan, watched, plan, trigger_mode="always_last", **QUIET)
        # The page runs listeners of one event in turn, so another event does not wait for the plan.
        self.changes = [getattr(component, "input", component.change) for component in watched]

    def _plan(self, *values: Any) -> str:
        """The plan of a run, or what it still lacks, as HTML."""
        given, wanted, missing = [], [], []
        for row, choice, own in self._split(values)[0]:
            name = row.spec.name
            if choice == GENERATE:
                wanted.append(name)
            elif choice == GIVEN and (need := row.input.missing(*own)):
                missing.append(need)
            elif choice == GIVEN and row.input.has_hole(*own):
                wanted.append(f"{name} (in the hole)")
                given.append(f"rest of the {name}")
            elif choice == GIVEN:
                given.append(name)
        if missing:
            return _note(f"First {escaped(listed(missing))}.", "todo")
        if not wanted and ANCHOR in given:
            return _note("Paint a hole to have it repainted, or set another row to Create.", "todo")
        if not wanted:
            return _note("Nothing to create yet. Set at least one row to Create.", "todo")
        source = f"from the {escaped(listed(given))}" if given else "from noise alone"
        return _note(f"Creates <b>{escaped(listed(wanted))}</b> {source}.", "ready")


def _note(text: str, kind: str) -> str:
    return f'<p class="plan {kind}" role="status">{text}</p>'
