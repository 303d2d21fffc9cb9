"""How to sample: steps with a time estimate, seed, what is decided first, sampler, samples, guidance."""

import random
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import gradio as gr

from app.controls.inputs import QUIET
from app.controls.leads import LeadControls
from app.run.defaults import (
    ANCHOR,
    LIMITS,
    MAX_SEED,
    follow_scale,
    followed,
    from_nothing,
    guidable,
    usual_scale,
)
from app.run.service import Service
from app.task import GENERATE, GIVEN, Task
from app.theme import html
from app.wording import duration, escaped
from mmdiff.request import SAMPLERS, Request, have_levels, is_number


class Start(NamedTuple):
    """What the controls show at first; `guidance` is that of a photo around its hole."""

    steps: int
    sampler: str
    every: int
    guidance: float


PLAIN = Start(30, Request().sampler, 5, 1)
# Inpainting comes nearer to the truth with noise, which corrects errors of early steps, and with guidance,
# which makes half as many steps take as long.
FILLING = Start(15, "ancestral", 3, 1.5)
GUIDANCE = (
    '<p class="title">Guidance</p><p class="hint">How closely the result follows what you provide; for a '
    "photo, what surrounds its hole. 1 is off. Any other number makes a run take about twice as long.</p>"
)
FOLLOWING = (
    '<p class="hint">Where you provide nothing, {when} and everything else follows it this closely, which '
    "makes photos clearer. 1 is off.</p>"
)


class SamplingControls:
    """Controls made inside the current `gr.Blocks` context.

    `components` are what `read` takes and `show` gives, in this order; `choices` are the radio buttons of the
    modalities, by name. `every` is the number of steps after which the page shows the next one, `leads` are
    the controls of what is decided first.
    """

    def __init__(self, service: Service, task: Task, choices: Mapping[str, gr.Radio]) -> None:
        self._service, self._task = service, task
        self._names = list(choices)
        # Inpainting follows the pixels around the hole, and a model without labels has nothing to follow.
        self._first = None if task.inpaints else followed(service.modalities)
        self._start = FILLING if task.inpaints else PLAIN
        usual = usual_scale(service.modalities)
        self._usual = {name: self._start.guidance if name == ANCHOR else usual for name in choices}
        self.steps = self._slider("steps", "Steps", 1, LIMITS.steps, self._start.steps)
        self.estimate = html("", elem_id=f"{task.name}-estimate", elem_classes="estimate")
        self._seed_row()
        self.leads = LeadControls(service.modalities, task.name)
        with gr.Accordion("Sampler, samples, guidance", open=False, elem_id=f"{task.name}-more"):
            self._more()
        how = [self.steps, self.seed, self.keep, self.sampler, self.samples]
        self.components = [*how, self.followed, *self.guidance, *self.leads.components]
        self.leads.warns_of(self.sampler)
        costs = [self.steps, self.samples, self.followed, *self.guidance, *choices.values()]
        self._first_costs = [cost.value for cost in costs]
        gr.on(
            [cost.change for cost in costs],
            self._estimated,
            costs,
            self.estimate,
            preprocess=False,  # which raises for numbers that Gradio corrects when the visitor leaves the box
            queue=False,
            trigger_mode="always_last",
            **QUIET,
        )

    def _seed_row(self) -> None:
        name = self._task.name
        with gr.Row(elem_classes="seed"):
            # no limits: Gradio's own message would name neither field nor mending
            self.seed = gr.Number(0, precision=0, label="Seed", min_width=120, elem_id=f"{name}-seed")
            looks = {"container": False, "min_width": 70, "scale": 0}
            self.keep = gr.Checkbox(False, label="Lock seed", elem_id=f"{name}-keep-seed", **looks)
            draw = gr.Button("New seed", size="sm", min_width=90, scale=0, elem_id=f"{name}-new-seed")
        self.seed.input(None, None, self.keep, js="() => true", **QUIET)  # who types a seed wants it
        draw.click(new_seed, None, self.seed, **QUIET)

    def _more(self) -> None:
        """Everything that few visitors change."""
        samplers = [(title, name) for name, title in SAMPLERS.items()]
        looks = {"label": "Sampler", "filterable": False, "elem_id": f"{self._task.name}-sampler"}
        self.sampler = gr.Dropdown(samplers, value=self._start.sampler, **looks)
        self.samples = self._slider("samples", "Samples", 1, LIMITS.num_samples, 1)
        self.every = self._slider("every", "Update preview every N steps", 1, 10, self._start.every)
        most = LIMITS.guidance_scale
        with gr.Column(elem_classes="guidance"):
            html(GUIDANCE)
            self.guidance = [
                self._slider(f"{name}-guidance", name.capitalize(), 0, most, scale, 0.5)
                for name, scale in self._usual.items()
            ]
        with gr.Column(elem_classes="following", visible=self._first is not None):
            scale = follow_scale(self._service.modalities)
            self.followed = self._slider("followed", f"Follow the {self._first}", 0, most, scale, 0.5)
            led = "is decided first" if have_levels(self._service.modalities) else "is chosen early"
            html(FOLLOWING.format(when=f"the {escaped(self._first)} {led}"))

    def _slider(
        self, name: str, label: str, low: int, high: float, value: float, step: float = 1
    ) -> gr.Slider:
        return gr.Slider(low, high, value=value, step=step, label=label, elem_id=f"{self._task.name}-{name}")

    def first_estimate(self) -> str:
        """What `estimate` shows of the values that the controls have at first."""
        return self._estimated(*self._first_costs)

    def _estimated(self, steps: int | None, samples: int | None, followed: float, *values: Any) -> str:
        """`values`: the scale of each modality, then its role; a given photo counts as one with a hole."""
        scales, roles = values[: len(self._names)], values[len(self._names) :]
        given = {name: None for name, role in zip(self._names, roles, strict=True) if role == GIVEN}
        wanted = [name for name, role in zip(self._names, roles, strict=True) if role == GENERATE]
        wanted += given.keys() & {ANCHOR}
        guidance = self._guided(given, wanted, followed, scales)
        steps, samples = _within(steps, LIMITS.steps), _within(samples, LIMITS.num_samples)
        return self.estimate_of(Request(given, wanted, steps=steps, num_samples=samples, **guidance))

    def estimate_of(self, request: Request) -> str:
        """HTML that says how long a run would take here."""
        seconds, device = self._service.timing.estimate(request), self._service.device.split()[0]
        time = "" if seconds is None else f"about <b>{duration(seconds)}</b> on this {device}"
        return f'<p class="hint">{time}</p>'

    def _guided(
        self, given: Collection[str], wanted: Collection[str], followed: float, scales: Collection[float]
    ) -> dict[str, Any]:
        """The fields of a request for its guidance: by given modalities or, without any, by the first one."""
        if self._follows(given, wanted):
            return from_nothing(self._service.modalities, followed)
        counted = guidable(given, wanted)
        by_name = zip(self._names, scales, strict=True)
        return {"guidance_scale": {name: scale for name, scale in by_name if name in counted}}

    def _follows(self, given: Collection[str], wanted: Collection[str]) -> bool:
        """Whether a photo is made from nothing and can follow a modality that is not ignored."""
        ignored = self._first in self._names and self._first not in wanted
        return self._first is not None and not given and ANCHOR in wanted and not ignored

    def read(self, given: Collection[str], wanted: Collection[str], *values: Any) -> dict[str, Any]:
        """The fields of a `Request` that are set here, from the values of `components`.

        The seed is drawn unless it is kept. Raises ValueError, in words for the page.
        """
        steps, seed, keep, sampler, samples, followed, *others = values
        scales, leads = others[: len(self._names)], others[len(self._names) :]
        if keep and seed is None:
            raise ValueError("There is no seed to lock. Write one, or untick “Lock seed”.")
        if steps is None or samples is None:
            raise ValueError("The number of steps or of samples is empty. Write one.")
        return {
            "steps": int(steps),
            "seed": int(seed) if keep else new_seed(),
            "sampler": sampler,
            "num_samples": int(samples),
            "leads": self.leads.read(*leads),
            **self._guided(given, wanted, followed, scales),
        }

    def show(self, request: Request, missing: Collection[str] = ()) -> list[Any]:
        """The values of `components` that say what the request says; the seed is kept.

        Args:
            missing: names of modalities that are given, too, but whose values are still to be added.
        """
        scales, given = request.scales(), (*request.given, *missing)
        follows = have_levels(self._service.modalities) or self._first in request.sample_first
        scale = scales.get(self._first, 1) if follows else 1
        how = [request.steps, request.seed, True, request.sampler, request.num_samples]
        return [
            *how,
            scale if self._follows(given, request.wanted) else gr.skip(),
            *(scales.get(n, 1) if n in given else self._usual[n] for n in self._names),
            *self.leads.show(request.leads),
        ]


def _within(typed: Any, most: int) -> int:
    """The whole number from 1 to ``most`` that Gradio will make of it; an emptied box sends None."""
    number = typed if is_number(typed) and abs(typed) <= most else most if is_number(typed) else 1
    return max(int(number), 1)


def new_seed() -> int:
    """A seed drawn at random."""
    return random.randint(0, MAX_SEED)
