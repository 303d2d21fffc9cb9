"""The tab of a task: examples, controls on the left, the player on the right."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from app.controls.compare import Compare
from app.controls.examples import Example, examples, source
from app.controls.form import Form
from app.controls.inputs import QUIET
from app.run.defaults import ANCHOR
from app.run.service import Service
from app.run.showcase import best_seed
from app.tabs.live import Live
from app.tabs.run_panel import RunPanel, Updates
from app.tabs.watch import Watch
from app.task import Task
from app.theme import html


def build_tab(task: Task, services: Sequence[Service]) -> RunPanel:
    """Adds the tab to the current `gr.Tabs`; `services` are all models, this page's first."""
    service, panel = services[0], RunPanel(task, services)
    with gr.Tab(task.title, id=task.name, elem_id=f"{task.name}-tab"):
        html(f'<p class="intro">{task.intro}</p>')
        with gr.Row(elem_classes="workbench"):
            with gr.Column(elem_classes="controls"):
                photo_row = gr.Row(elem_classes="photos")
                example_row = gr.Row(elem_classes="examples")
                live = Live(panel)
                form = Form(service, task)
                with gr.Column(elem_classes="card"):
                    compare = Compare(task, [s.name for s in services])
                panel.buttons()
            with gr.Column(elem_classes="run-column"):
                panel.view()
        panel.connect(form, compare)
        live.connect(form)
        form.sampling.leads.warns_of(compare.sampler, compare.note)
        _first_run(panel, form)
        offered = examples(task, service)
        for row, words, some in (
            (photo_row, source(service), [example for example in offered if example.picture]),
            (example_row, "Try", [example for example in offered if not example.picture]),
        ):
            row.visible = bool(some)
            with row:
                html(f'<span class="hint">{words}</span>')
                for example in some:
                    filled = _button(example, form)
                    panel.after(filled.success, form.components, panel.run_form)
    return panel


def _first_run(panel: RunPanel, form: Form) -> None:
    """A button that “Your turn” presses, see constellation.js: the form's run with a seed that does well."""
    button = gr.Button("Begin", elem_id=f"{panel.task.name}-begin", elem_classes="unseen")
    seed, keep = map(form.components.index, (form.sampling.seed, form.sampling.keep))

    def run(visitor: gr.Request, watch: Watch, *values: Any) -> Iterator[Updates]:
        sent = list(values)
        if not sent[keep]:
            sent[seed], sent[keep] = best_seed(panel.service), True
        yield from panel.run_form(visitor, watch, *sent)

    panel.after(button.click, form.components, run)


def _button(example: Example, form: Form) -> Any:
    """A button that fills in the form; returns the event after which to run."""
    button = gr.Button(example.title, size="sm", scale=0, min_width=60, icon=example.picture)

    def show(*values: Any) -> list[Any]:
        request = example.request()
        if values and (photo := form.photo(*values)) is not None:
            request = replace(request, given={**request.given, ANCHOR: photo})
        return form.show(request, settings=False)

    return button.click(show, form.components if example.of_any_photo else None, form.outputs, **QUIET)
