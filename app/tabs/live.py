"""Live mode: every change runs at once in few steps, and what comes to rest is refined by a whole run.

The browser sends one change at a time and then the latest (`always_last`); each ends within a step whatever
the tab still runs. static/opening/live.js sees when the visitor has let go.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import gradio as gr

from app.controls.form import Form
from app.controls.inputs import QUIET
from app.errors import explain
from app.run.history import Track
from app.run.service import Service, Waiting
from app.run.visitors import address_of
from app.tabs.run_panel import RunPanel, Updates
from app.tabs.watch import Watch
from app.wording import duration, status
from mmdiff.request import Request

FEW: dict[str, Any] = {"steps": 4, "sampler": "dpmpp_2m", "num_samples": 1}
FEW_WITH_LEADS = 6  # steps where the photo begins late; guided, they take as long as 8 without guidance
TOLD = "<b>Live</b> · {steps} steps in {time} · seed {seed} · a full run follows when you pause"
STROKE = "[values[0], mmdiffLive.stroke]"
MARK = "(on) => document.querySelector('#{name}-live').closest('.workbench').toggleAttribute('data-live', on)"


def _few(service: Service) -> dict[str, Any]:
    """How a request is run on every change."""
    leads = any(spec.lead for spec in service.modalities.values())
    return FEW | ({"steps": FEW_WITH_LEADS} if leads else {})


class Live:
    """The switch of a tab, made in the current context; `connect` wires it to the controls of its form."""

    def __init__(self, panel: RunPanel) -> None:
        self._panel, self._name = panel, panel.task.name
        look = {"container": False, "elem_classes": "live-switch", "elem_id": f"{self._name}-live"}
        self.switch = gr.Checkbox(False, label="Live: the picture follows every change", **look)
        self.last = gr.State(None)  # the form of the last result while the switch is on
        self._rest = gr.Button("Refine", elem_classes="unseen", elem_id=f"{self._name}-refine")

    def connect(self, form: Form) -> None:
        """Runs on every change that the visitor makes, and once they are over."""
        self._form, panel = form, self._panel
        parts = [self.switch, *form.components]
        files = [part for part in parts if isinstance(part, gr.File)]
        # Their `input` comes before the page knows the value.
        late = (gr.State, gr.Number, gr.Slider, gr.Textbox)
        events = [part.change for part in parts if isinstance(part, late)]
        events += [p.input for p in parts if hasattr(p, "input") and not isinstance(p, late)]
        events += [event for part in files for event in (part.upload, part.clear)]
        self._on(events, self._follow, parts, [self.last])
        for place, part in enumerate(form.components):
            if isinstance(part, gr.HTML):
                self._on([part.edit], self._stroke(place), [self.last, part], js=STROKE)
        self.switch.change(None, self.switch, js=MARK.format(name=self._name), **QUIET)
        panel.after(self._rest.click, form.components, self._refine, js=None)

    def _on(
        self,
        events: list[Any],
        follow: Callable[..., Updates],
        inputs: list[Any],
        outputs: Sequence[Any] = (),
        js: str = "values",
    ) -> None:
        """`js`: what is sent of `values`, an expression."""
        hold, settle = (f"mmdiffLive.{what}('{self._name}')" for what in ("hold", "settle"))
        looks = {"queue": False, "trigger_mode": "always_last", "js": f"(...values) => ({hold}, {js})"}
        looks["preprocess"] = False  # which says aloud what is wrong with a number that is still being typed
        shown = [self._panel.status, self._panel.player.component, *outputs]
        gr.on(events, follow, inputs, shown, **looks, **QUIET).success(None, js=f"() => {settle}", **QUIET)

    def _request(self, *form: Any) -> Request:
        """What the form says, with its seed as it is."""
        values = list(form)
        values[self._form.components.index(self._form.sampling.keep)] = True
        return self._form.read(*values)

    def _follow(self, visitor: gr.Request, on: bool, *sent: Any) -> Updates:
        """The result of a few steps and the form it is of; nothing but that if the switch is off."""
        if not on:
            return {self.last: None}
        try:
            form = [_value(*pair) for pair in zip(self._form.components, sent, strict=True)]
        except Exception as error:
            return {self._panel.status: status(explain(error).message)}
        return {self.last: form} | self._result(visitor, form)

    def _stroke(self, place: int) -> Callable[..., Updates]:
        """The event of a stroke in progress, with as little to send as can be; `place` in the form."""

        def follow(visitor: gr.Request, form: Sequence[Any] | None, cells: str | None) -> Updates:
            if form is None:
                return {self._panel.status: gr.skip()}
            return self._result(visitor, [*form[:place], cells, *form[place + 1 :]])

        return follow

    def _result(self, visitor: gr.Request, form: Sequence[Any]) -> Updates:
        """What to show of a few steps; nothing if a later run has ended them."""
        panel = self._panel
        try:
            service, key = panel.service, panel.key(visitor)
            record = service.record(replace(self._request(*form), **_few(service)))
            service.stop(key)
            for event in service.stream(record, key, address_of(visitor)):
                if isinstance(event, Waiting):
                    service.stop(key)  # for others: the next change is soon enough
        except Exception as error:  # mostly something that is still to be given
            return {panel.status: status(explain(error).message)}
        if not record.finished:
            return {panel.status: gr.skip()}
        facts = {"steps": record.request.steps, "time": duration(record.seconds), "seed": record.request.seed}
        track = Track(f"live-{self._name}", "", record)
        text = status(TOLD.format(**facts))
        return {panel.status: text, panel.player.component: panel.player.value([track])}

    def _refine(self, visitor: gr.Request, watch: Watch, *form: Any) -> Iterator[Updates]:
        """A whole run, shown once it is over: until then what is there looks better."""
        panel = self._panel
        run = panel.track(self._request(*form))
        for updates in panel.start(visitor, [run], watch):
            if not run.record.finished:
                hidden = {panel.player.component, panel.shown, *panel.downloads.outputs}
                hidden |= {panel.status} if panel.shown in updates else set()  # a change has stopped it
                updates = {part: value for part, value in updates.items() if part not in hidden}
            yield updates


def _value(part: gr.components.Component, sent: Any) -> Any:
    """What the page has sent of a component, as its events take it."""
    if sent is None or part.stateful:
        return sent
    model = getattr(part, "data_model", None)
    return part.preprocess(model.model_validate(sent) if model else sent)
