"""Where a run is watched: a line on how it goes, every head's prediction, Run and Stop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from app import views
from app.errors import explain
from app.inputs import QUIET
from app.service import Job, Preview, Service, Waiting
from app.settings import Settings
from app.theme import html

MAX_RUNS = 40  # that may be in line at the same time; the service says no before that

# On a narrow page the stage is below the controls.
REVEAL = """() => { const stage = document.getElementById('stage');
  if (stage && window.innerWidth < 900) stage.scrollIntoView({block: 'start'}); }"""

Updates = dict[Any, Any]


class Stage:
    """Made in two places of the current `gr.Blocks` context, `buttons()` and `view()`; `connect` wires it."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def buttons(self) -> None:
        with gr.Row(elem_classes="run-row"):
            self.run = gr.Button("Run", variant="primary", scale=3, min_width=140, elem_id="run")
            self.halt = gr.Button(
                "Stop", variant="stop", scale=1, min_width=90, interactive=False, elem_id="stop"
            )

    def view(self) -> None:
        """Shows the example from the warm-up until something has been run."""
        job, result = self._service.example
        text = "An example, made while the app was starting. Choose what to give and press <b>Run</b>."
        with gr.Column(elem_id="stage"):
            self.status = html(views.status(text), elem_id="status")
            self.samples = html(views.samples(self._scene(job), result.x_hat), elem_id="samples-view")

    def connect(
        self,
        triggers: list[Callable],
        make_job: Callable[..., Job],
        inputs: list[gr.components.Component],
        settings: Settings,
    ) -> None:
        """Runs `make_job(*inputs)` on any of the triggers; `make_job` raises ValueError for bad input."""

        def run(request: gr.Request, *values: Any) -> Iterator[Updates]:
            try:
                job = make_job(*values)
                yield self._busy(views.status("Starting …", 0.0, "busy")) | {settings.seed: job.seed}
                yield from self._watch(job, request.session_hash)
            except Exception as error:  # whatever it is, the page says so and the server goes on
                problem = explain(error)
                yield self._ended(views.status(problem.message, kind="problem"))
                raise problem from None
            yield {settings.estimate: settings.estimate_of(job)}

        outputs = [self.status, self.samples, self.run, self.halt, settings.seed, settings.estimate]
        for trigger in triggers:
            trigger(run, inputs, outputs, concurrency_limit=MAX_RUNS, concurrency_id="runs", **QUIET)
            trigger(None, js=REVEAL, **QUIET)
        self.halt.click(self._stop, None, [self.status, self.halt], queue=False, **QUIET)

    def _watch(self, job: Job, session: str) -> Iterator[Updates]:
        scene, event = self._scene(job), None
        for event in self._service.stream(job, session):
            if isinstance(event, Waiting):
                yield self._busy(views.status(_waiting(event), kind="busy"))
            elif not event.last:
                yield self._busy(_progress(event)) | {self.samples: views.samples(scene, event.x_hat)}
        if isinstance(event, Preview):
            yield self._ended(_result(job, event)) | {self.samples: views.samples(scene, event.x_hat)}
        else:
            yield self._ended(views.status("Stopped before it began."))

    def _stop(self, request: gr.Request) -> Updates:
        if self._service.stop(request.session_hash):
            return {self.status: views.status("Stopping after this step …", kind="busy")}
        return {self.halt: gr.update(interactive=False)}

    def _busy(self, status: str) -> Updates:
        return {
            self.status: status,
            self.run: gr.update(interactive=False, value="Running …"),
            self.halt: gr.update(interactive=True),
        }

    def _ended(self, status: str) -> Updates:
        return {
            self.status: status,
            self.run: gr.update(interactive=True, value="Run"),
            self.halt: gr.update(interactive=False),
        }

    def _scene(self, job: Job) -> views.Scene:
        shown = {
            n: spec for n, spec in self._service.pipe.modalities.items() if n in (*job.given, *job.wanted)
        }
        roles = {
            n: "generated" if n not in job.given else "filled in" if n in job.wanted else "given"
            for n in shown
        }
        return views.Scene(shown, roles, self._service.describe, f"mmdiff_{self._service.name}_{job.seed}")


def _waiting(event: Waiting) -> str:
    return "Someone else’s run is going on. " + (
        "Yours is next." if event.ahead == 1 else f"{event.ahead} are before you; yours starts by itself."
    )


def _progress(event: Preview) -> str:
    text = f"Step <b>{event.index}</b> of {event.total} · {views.duration(event.seconds_left)} left"
    return views.status(text, event.index / event.total, "busy")


def _result(job: Job, event: Preview) -> str:
    if event.stopped:
        text = f"<b>Stopped</b> at step {event.index} of {event.total}. Below is what was predicted by then"
    else:
        text = f"<b>Done</b> in {views.duration(event.seconds)} · {event.total} steps"
    return views.status(f"{text} · seed {job.seed} · {job.sampler}", event.index / event.total)
