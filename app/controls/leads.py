"""What is decided first: presets of the leads and, for those who want it otherwise, one slider a modality.

The controls exist for models whose modalities have leads. What counts is where the sliders stand: choosing a
preset moves them, and moving one drops the choice.
"""

import json
from collections.abc import Mapping
from typing import Any

import gradio as gr

from app.controls.inputs import QUIET
from app.run.defaults import ANCHOR
from app.theme import html
from app.wording import escaped
from mmdiff.leads import MAX_LEAD
from mmdiff.modalities import Modality
from mmdiff.request import SAMPLERS

AHEAD = 0.5  # of the photo, where it is decided first, in units of its own run
STEP = 0.05
OWN, TOGETHER, IMAGE = "Meaning first", "All together", "Image first"
NOISY = "ancestral"  # of the samplers
POOR = "With the image first, “{sampler}” makes poor results. Choose another sampler."
ADVANCED = (
    '<p class="hint">How far each one is ahead of the others; 0.5 is half of the image’s own run. Only '
    "differences count. A slider that you move replaces the choice above.</p>"
)

Leads = Mapping[str, float]


class LeadControls:
    """Controls made inside the current `gr.Blocks` context; none if the model has no leads to choose.

    `components` are what `read` takes and `show` gives, in this order; `task` is the name of the tab.
    """

    def __init__(self, modalities: Mapping[str, Modality], task: str) -> None:
        self._task, self._names = task, list(modalities)
        self._own = {name: spec.lead for name, spec in modalities.items() if spec.lead is not None}
        self.presets = _presets(self._own)
        self.components: list[gr.components.Component] = []
        if self.presets:
            self._make()

    def _make(self) -> None:
        with gr.Column(elem_classes="leads"):
            looks = {"label": "What is decided first", "elem_id": f"{self._task}-first"}
            self._choice = gr.Radio(list(self.presets), value=next(iter(self.presets)), **looks)
            self._note = html("", elem_id=f"{self._task}-first-note")
            with gr.Accordion("Advanced", open=False, elem_id=f"{self._task}-leads", elem_classes="ahead"):
                html(ADVANCED)
                with gr.Column(elem_classes="guidance"):
                    sliders = [self._slider(name) for name in self._names]
        self.components = [self._choice, *sliders]
        places = json.dumps({title: self._values(leads) for title, leads in self.presets.items()})
        self._choice.input(None, self._choice, sliders, js=f"(title) => ({places})[title]", **QUIET)
        gr.on([slider.input for slider in sliders], None, None, self._choice, js="() => null", **QUIET)

    def _slider(self, name: str) -> gr.Slider:
        looks = {"label": name.capitalize(), "elem_id": f"{self._task}-{name}-lead"}
        return gr.Slider(0, MAX_LEAD, value=self._own[name], step=STEP, **looks)

    def warns_of(self, sampler: gr.Dropdown, note: gr.HTML | None = None) -> None:
        """Has the page say so where a sampler that is chosen does not go with what is decided first.

        It does in `note`, by default beside what is decided first.
        """
        if self.components:
            chosen = [sampler, *self.components]
            changes = [component.change for component in chosen]
            how = {"preprocess": False, "queue": False, "trigger_mode": "always_last"}
            gr.on(changes, self._warning, chosen, note or self._note, **how, **QUIET)

    def _warning(self, sampler: str, *values: Any) -> str:
        if sampler != NOISY or not _is_image_first(self.read(*values) or {}):
            return ""
        text = POOR.format(sampler=escaped(SAMPLERS[sampler].partition(",")[0]))
        return f'<p class="hint warning" role="status">{text}</p>'

    def read(self, *values: Any) -> Leads | None:
        """The leads of a request: None if they are those of the model, see `mmdiff.request.Request`."""
        if not self.components:
            return None
        title, *leads = values
        leads = [lead or 0 for lead in leads]  # an emptied box sends None
        if title in self.presets and leads == self._values(self.presets[title]):
            return self.presets[title]
        return dict(zip(self._names, leads, strict=True))

    def show(self, leads: Leads | None) -> list[Any]:
        """The values of `components` of which `read` makes these leads, complete or None, again."""
        if not self.components:
            return []
        titles = (title for title, preset in self.presets.items() if preset == leads)
        return [next(titles, None), *self._values(leads)]

    def _values(self, leads: Leads | None) -> list[float]:
        return [(self._own if leads is None else leads).get(name, 0) for name in self._names]


def _presets(own: Leads) -> dict[str, Leads | None]:
    """Title -> leads, the model's own, None, first; {} for a model that has none, or nothing to order."""
    if len(own) < 2:
        return {}
    level = dict.fromkeys(own, 0.0)
    others = {TOGETHER: level, IMAGE: level | {ANCHOR: AHEAD}}
    return ({OWN: None} | others) if any(own.values()) else (others | {TOGETHER: None})


def _is_image_first(leads: Leads) -> bool:
    """Whether the photo is ahead of another modality, and none is ahead of it."""
    return leads.get(ANCHOR, 0) == max(leads.values(), default=0) > min(leads.values(), default=0)
