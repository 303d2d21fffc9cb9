"""The tab of a task: examples, controls on the left, the player on the right."""

from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from app.controls.compare import Compare
from app.controls.examples import examples
from app.controls.form import Form
from app.controls.inputs import QUIET
from app.run.service import Service
from app.tabs.run_panel import RunPanel
from app.task import Task
from app.theme import html
from mmdiff.request import Request


def build_tab(task: Task, services: Sequence[Service]) -> RunPanel:
    """Adds the tab to the current `gr.Tabs`; `services` are all models, this page's first."""
    service, panel = services[0], RunPanel(task, services)
    with gr.Tab(task.title, id=task.name, elem_id=f"{task.name}-tab"):
        html(f'<p class="intro">{task.intro}</p>')
        with gr.Row(elem_classes="workbench"):
            with gr.Column(elem_classes="controls"):
                example_row = gr.Row(elem_classes="examples")
                form = Form(service, task)
                with gr.Column(elem_classes="card"):
                    compare = Compare(task, [s.name for s in services])
                panel.buttons()
            with gr.Column(elem_classes="run-column"):
                panel.view()
        panel.connect(form, compare)
        with example_row:
            html('<span class="hint">Try</span>')
            for title, request in examples(task, service):
                filled = _example_button(title, request, form)
                panel.after(filled.success, [form.sampling.every, *form.components], panel.run_form)
    return panel


def _example_button(title: str, request: Callable[[], Request], form: Form) -> Any:
    """A button that fills in the form; returns the event after which to run."""
    button = gr.Button(title, size="sm", scale=0, min_width=60)
    return button.click(lambda: form.show(request(), settings=False), None, form.outputs, **QUIET)
