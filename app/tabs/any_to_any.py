"""The tab in which every modality may be given, generated or ignored."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from app.inputs import GENERATE, GIVEN, IGNORE, INPUTS, QUIET, Input
from app.service import Job, Service
from app.settings import Settings
from app.stage import Stage
from app.theme import html
from app.views import listed

TITLE = "Any to any"


@dataclass(frozen=True)
class Row:
    """One modality: its choice and, when given, its controls."""

    spec: Any
    choice: gr.Radio
    input: Input


@dataclass(frozen=True)
class Example:
    """One click: what is given (name -> arguments of its `Input.show`), everything else is generated."""

    title: str
    given: Mapping[str, Sequence[Any]] = field(default_factory=dict)


def build(service: Service) -> None:
    """Adds the tab to the current `gr.Tabs`."""
    with gr.Tab(TITLE):
        stage = Stage(service)
        with gr.Row(elem_classes="workbench"):
            with gr.Column(elem_classes="controls"):
                example_row = gr.Row(elem_classes="examples")
                with gr.Column(elem_classes="card"):
                    rows = [_row(spec) for spec in service.pipe.modalities.values()]
                    plan = html(_plan(rows, [GENERATE] * len(rows)), elem_id="plan")
                with gr.Column(elem_classes="card"):
                    settings = Settings(service, {row.spec.name: row.choice for row in rows})
                stage.buttons()
            with gr.Column(elem_classes="stage-column"):
                stage.view()
        with example_row:
            html('<span class="hint">Try</span>')
            done = [_example_button(example, rows) for example in _examples(service)]
        _keep_in_step(rows, plan)
        choices = [row.choice for row in rows]
        inputs = [*choices, *chain.from_iterable(row.input.components for row in rows), *settings.components]
        triggers = [stage.run.click, *(event.success for event in done)]
        stage.connect(triggers, _job_maker(rows, settings), inputs, settings)


def _row(spec: Any) -> Row:
    with gr.Column(elem_classes="modality", elem_id=f"{spec.name}-row"):
        choice = gr.Radio(
            [GIVEN, GENERATE, IGNORE],
            value=GENERATE,
            label=spec.name.capitalize(),
            elem_id=f"{spec.name}-role",
        )
        with gr.Column(elem_classes="given"):
            control = INPUTS[spec.kind](spec)
    return Row(spec, choice, control)


def _keep_in_step(rows: Sequence[Row], plan: gr.HTML) -> None:
    """Says what a run would do whenever a choice or an input changes (style.css hides what is not given)."""
    watched = [row.choice for row in rows] + list(chain.from_iterable(row.input.watched for row in rows))
    events = [component.change for component in watched]
    events += [component.input for component in watched if isinstance(component, gr.HTML)]  # strokes
    gr.on(
        events,
        lambda *values: _plan(rows, values[: len(rows)], values[len(rows) :]),
        watched,
        plan,
        trigger_mode="always_last",
        **QUIET,
    )


def _plan(rows: Sequence[Row], choices: Sequence[str], watched: Sequence[Any] = ()) -> str:
    """What a run would do, or what is in its way, as HTML."""
    values, given, wanted, missing = list(watched), [], [], []
    for row, choice in zip(rows, choices, strict=True):
        name = row.spec.name
        own = [values.pop(0) for _ in row.input.watched] if values else []
        if choice == GENERATE:
            wanted.append(name)
        elif choice == GIVEN and (need := row.input.missing(*own)):
            missing.append(need)
        elif choice == GIVEN and row.input.generates(*own):
            wanted.append(f"{name} (in the hole)")
            given.append(f"rest of the {name}")
        elif choice == GIVEN:
            given.append(name)
    if missing:
        return _note(f"First {listed(missing)}.", "todo")
    if not wanted and "image" in given:
        return _note("Paint a hole to fill it in, or set another row to Generate.", "todo")
    if not wanted:
        return _note("Nothing to generate yet. Set at least one row to Generate.", "todo")
    source = f"from the {listed(given)}" if given else "from noise alone"
    return _note(f"Generates <b>{listed(wanted)}</b> {source}.", "ready")


def _note(text: str, kind: str) -> str:
    return f'<p class="plan {kind}" role="status">{text}</p>'


def _job_maker(rows: Sequence[Row], settings: Settings) -> Callable[..., Job]:
    """A function from the values of choices, inputs and settings to a `Job`."""

    def make_job(*values: Any) -> Job:
        remaining = list(values)
        choices = [remaining.pop(0) for _ in rows]
        given, wanted, known_pixels = {}, [], None
        for row, choice in zip(rows, choices, strict=True):
            own = [remaining.pop(0) for _ in row.input.components]
            if choice == GIVEN:
                value = row.input.read(*own)
                given[row.spec.name] = value.value
                known_pixels = value.known_pixels if value.known_pixels is not None else known_pixels
            if choice == GENERATE or (choice == GIVEN and value.known_pixels is not None):
                wanted.append(row.spec.name)
        if not wanted:
            raise ValueError(
                "There is nothing to generate. Set a row to Generate, or paint a hole in the photo."
            )
        how = settings.read(given, *remaining)
        return Job(given=given, wanted=tuple(wanted), known_pixels=known_pixels, **how)

    return make_job


def _examples(service: Service) -> list[Example]:
    """One-click examples from the model's own classes and from the picture it made while warming up."""
    specs = service.pipe.modalities
    examples = [Example("Surprise me")]
    for spec in specs.values():
        if spec.kind == "label":
            count = len(spec.classes)
            examples += [
                Example(name, {spec.name: (name,)})
                for name in spec.classes[count // 4 :: max(1, count // 2)][:2]
            ]
        if spec.kind == "embedding" and (text := service.example_text):
            examples += [Example(f"“{text}”", {spec.name: (text,)})]
        if spec.kind == "image":
            picture = Image.fromarray(service.example[1].x_hat[spec.name][0])
            examples += [Example("Fill a hole", {spec.name: (picture, _middle(spec.shape[-1]))})]
            if len(specs) > 1:
                examples += [Example("Read a photo", {spec.name: (picture,)})]
    return examples


def _middle(size: int) -> np.ndarray:
    hole = np.zeros((size, size), dtype=bool)
    hole[size // 4 : size // 2 + size // 8, size // 3 : size - size // 4] = True
    return hole


def _example_button(example: Example, rows: Sequence[Row]) -> gr.events.Dependency:
    """A button that fills in the form; returns the event after which to run."""

    def fill_in() -> list[Any]:
        updates: list[Any] = []
        for row in rows:
            given = row.spec.name in example.given
            updates.append(GIVEN if given else GENERATE)
            updates += (
                row.input.show(*example.given[row.spec.name])
                if given
                else [gr.skip() for _ in row.input.shown]
            )
        return updates

    outputs = list(chain.from_iterable([row.choice, *row.input.shown] for row in rows))
    return gr.Button(example.title, size="sm", scale=0, min_width=60).click(fill_in, None, outputs, **QUIET)
