"""The controls of a task: what is given and what is wanted, read as a `Job` and filled in from one."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import gradio as gr
from PIL import Image

from app.controls.inputs import INPUTS, QUIET, Given, Input
from app.controls.settings import Settings
from app.run.job import ANCHOR, Job
from app.run.service import Service
from app.tabs.tasks import GENERATE, GIVEN, IGNORE, Task
from app.theme import html
from app.wording import listed
from mmdiff.images import square


@dataclass(frozen=True)
class Row:
    """One modality: its choice and, when given, its controls."""

    spec: Any
    choice: gr.Radio
    input: Input


class Form:
    """Made inside the current `gr.Blocks` context.

    Attributes:
        components: what `read` takes, in this order. outputs: what the updates from `show` go to.
        settings: how to sample.
    """

    def __init__(self, service: Service, task: Task) -> None:
        self._task = task
        self._size = service.modalities[ANCHOR].shape[-1]
        with gr.Column(elem_classes="card"):
            self._rows = [self._row(spec) for spec in task.modalities(service.modalities).values()]
            choices = [row.choice.value for row in self._rows]
            plan = html(self._plan(choices), elem_id=f"{task.name}-plan")
        with gr.Column(elem_classes="card"):
            self.settings = Settings(service, task.name, {row.spec.name: row.choice for row in self._rows})
        self._keep_in_step(plan)
        inputs = [row.input.components for row in self._rows]
        self.components = [
            *(row.choice for row in self._rows),
            *chain.from_iterable(inputs),
            *self.settings.components,
        ]
        self.outputs = [
            *chain.from_iterable([row.choice, *row.input.shown] for row in self._rows),
            *self.settings.components,
        ]

    def _row(self, spec: Any) -> Row:
        task, fixed = self._task, spec.kind in self._task.fixed
        classes = ["modality", "fixed"] if fixed else "modality"
        with gr.Column(elem_classes=classes, elem_id=f"{task.name}-{spec.name}-row"):
            choice = gr.Radio(
                list(task.choices),
                value=GIVEN if fixed else GENERATE,
                label=spec.name.capitalize(),
                elem_id=f"{task.name}-{spec.name}-role",
            )
            with gr.Column(elem_classes="given"):
                control = INPUTS[spec.kind](spec, task.name)
        return Row(spec, choice, control)

    def read(self, *values: Any) -> Job:
        """The job that the controls describe. Raises ValueError, in words for the page."""
        remaining = list(values)
        choices = [remaining.pop(0) for _ in self._rows]
        given, wanted, known_pixels = {}, [], None
        for row, choice in zip(self._rows, choices, strict=True):
            own = [remaining.pop(0) for _ in row.input.components]
            filled_in = False
            if choice == GIVEN:
                value = row.input.read(*own)
                given[row.spec.name] = self._sized(value.value)
                filled_in = value.known_pixels is not None
                known_pixels = value.known_pixels if filled_in else known_pixels
            if choice == GENERATE or filled_in:
                wanted.append(row.spec.name)
        if not wanted:
            raise ValueError(
                "There is nothing to generate. Set a row to Generate, or paint a hole in the photo."
            )
        how = self.settings.read(given, wanted, *remaining)
        return Job(given=given, wanted=tuple(wanted), known_pixels=known_pixels, **how)

    def _sized(self, value: Any) -> Any:
        """A photo as the model will see it, whatever it is given for: small enough for a settings file."""
        return square(value, self._size) if isinstance(value, Image.Image) else value

    def show(self, job: Job, settings: bool = True, missing: Collection[str] = ()) -> list[Any]:
        """Updates after which `read` gives `job` (without its changes).

        Args:
            settings: whether to show how to sample, too.
            missing: names of what is given, too, but has still to be added.
        """
        updates: list[Any] = []
        for row in self._rows:
            name = row.spec.name
            known = job.known_pixels if row.spec.kind == "image" else None
            if name in job.given:
                updates += [GIVEN, *row.input.restore(Given(job.given[name], known))]
            elif name in missing:
                updates += [GIVEN, *row.input.awaiting(known)]
            else:
                other = IGNORE if IGNORE in self._task.choices else GENERATE
                choice = GENERATE if name in job.wanted else other
                if row.spec.kind in self._task.fixed:
                    choice = GIVEN
                updates += [choice, *(gr.skip() for _ in row.input.shown)]
        how = self.settings.show(job, missing) if settings else [gr.skip() for _ in self.settings.components]
        return updates + how

    def _keep_in_step(self, plan: gr.HTML) -> None:
        """Says what a run would do when something changes; style.css hides what is not given."""
        watched = [row.choice for row in self._rows]
        watched += chain.from_iterable(row.input.watched for row in self._rows)
        events = [component.change for component in watched]
        events += [component.input for component in watched if isinstance(component, gr.HTML)]  # strokes
        count = len(self._rows)
        gr.on(
            events,
            lambda *values: self._plan(values[:count], values[count:]),
            watched,
            plan,
            trigger_mode="always_last",
            **QUIET,
        )

    def _plan(self, choices: Sequence[str], watched: Sequence[Any] = ()) -> str:
        """What a run would do, or what is in its way, as HTML."""
        values, given, wanted, missing = list(watched), [], [], []
        for row, choice in zip(self._rows, choices, strict=True):
            name = row.spec.name
            own = [values.pop(0) if values else None for _ in row.input.watched]
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
