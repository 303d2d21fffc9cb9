"""How to sample: steps with a time estimate, seed, sampler, number of samples, guidance by modality."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import gradio as gr

from app.controls.inputs import QUIET
from app.run.job import (
    ANCHOR,
    FOLLOWED,
    MAX_GUIDANCE,
    MAX_SAMPLES,
    MAX_SEED,
    MAX_STEPS,
    SAMPLERS,
    Job,
    guidable,
    settled,
)
from app.run.service import Service
from app.tabs.tasks import GENERATE, GIVEN
from app.theme import html
from app.wording import duration


class Start(NamedTuple):
    """What controls stand at first; `guidance` is that of a photo around its hole."""

    steps: int
    sampler: str
    every: int
    guidance: float


PLAIN = Start(30, Job().sampler, 5, 1)
# Fillings are nearer to the truth with noise, which mends what early steps got wrong, and with guidance, with
# which half as many steps take as long.
FILLING = Start(15, "ancestral", 3, 1.5)
GUIDANCE = (
    '<p class="title">Guidance</p><p class="hint">How strongly each counts where it is given, and of a photo '
    "what surrounds its hole. 1 is off; any other number runs every sample through the network once more a "
    "step.</p>"
)
FOLLOWING = (
    '<p class="hint">Where nothing is given, the {name} is settled early and all else follows it so '
    "strongly, which makes photos clearer. 1 is off.</p>"
)


class Settings:
    """Controls made inside the current `gr.Blocks` context.

    `components` is what `read` takes and `show` gives, in this order; `choices` are by name what each
    modality is to be. `every` is for the page: after how many steps to show what there is.
    """

    def __init__(self, service: Service, task: str, choices: Mapping[str, gr.Radio]) -> None:
        self._service = service
        self._names = list(choices)
        # A photo that is to be filled in, or one without a label in the model, has nothing to follow.
        self._settled = None if task == "fill_in" else settled(service.modalities)
        start = FILLING if task == "fill_in" else PLAIN
        scales = {name: start.guidance if name == ANCHOR else 1 for name in choices}
        self.steps = gr.Slider(
            1, MAX_STEPS, value=start.steps, step=1, label="Steps", elem_id=f"{task}-steps"
        )
        roles = [choice.value for choice in choices.values()]
        estimate = self._estimated(start.steps, 1, FOLLOWED, *scales.values(), *roles)
        self.estimate = html(estimate, elem_id=f"{task}-estimate", elem_classes="estimate")
        with gr.Row(elem_classes="seed"):
            self.seed = gr.Number(
                value=0,
                precision=0,  # no limits: Gradio's own message would name neither field nor mending
                label="Seed",
                min_width=120,
                elem_id=f"{task}-seed",
            )
            self.keep = gr.Checkbox(
                False, label="Keep", container=False, min_width=70, scale=0, elem_id=f"{task}-keep-seed"
            )
            draw = gr.Button("New seed", size="sm", min_width=90, scale=0, elem_id=f"{task}-new-seed")
        with gr.Accordion("Sampler, samples, guidance", open=False, elem_id=f"{task}-more"):
            self.sampler = gr.Dropdown(
                [(title, name) for name, title in SAMPLERS.items()],
                value=start.sampler,
                label="Sampler",
                filterable=False,
                elem_id=f"{task}-sampler",
            )
            self.samples = gr.Slider(
                1, MAX_SAMPLES, value=1, step=1, label="Samples", elem_id=f"{task}-samples"
            )
            self.every = gr.Slider(
                1, 10, value=start.every, step=1, label="Show every … steps", elem_id=f"{task}-every"
            )
            with gr.Column(elem_classes="guidance"):
                html(GUIDANCE)
                self.guidance = [self._guidance_slider(task, name, s) for name, s in scales.items()]
            with gr.Column(elem_classes="following", visible=self._settled is not None):
                self.followed = gr.Slider(
                    0,
                    MAX_GUIDANCE,
                    value=FOLLOWED,
                    step=0.5,
                    label=f"Follow the {self._settled}",
                    elem_id=f"{task}-followed",
                )
                html(FOLLOWING.format(name=self._settled))
        how = [self.steps, self.seed, self.keep, self.sampler, self.samples]
        self.components = [*how, self.followed, *self.guidance]
        costs = [self.steps, self.samples, self.followed, *self.guidance, *choices.values()]
        draw.click(new_seed, None, self.seed, **QUIET)
        gr.on(
            [cost.change for cost in costs],
            self._estimated,
            costs,
            self.estimate,
            preprocess=False,  # which raises for what is typed before it is mended on leaving the box
            queue=False,
            trigger_mode="always_last",
            **QUIET,
        )

    def _guidance_slider(self, task: str, name: str, scale: float) -> gr.Slider:
        return gr.Slider(
            0, MAX_GUIDANCE, value=scale, step=0.5, label=name.capitalize(), elem_id=f"{task}-{name}-guidance"
        )

    def _estimated(self, steps: int | None, samples: int | None, followed: float, *values: Any) -> str:
        """`values`: the scale of each modality, then what each is to be; a photo that is given has a hole."""
        scales, roles = values[: len(self._names)], values[len(self._names) :]
        given = {name: None for name, role in zip(self._names, roles, strict=True) if role == GIVEN}
        wanted = [name for name, role in zip(self._names, roles, strict=True) if role == GENERATE]
        wanted += [ANCHOR] if ANCHOR in given else []
        guidance = self._scales(given, wanted, followed, scales)
        steps, samples = _within(steps, MAX_STEPS), _within(samples, MAX_SAMPLES)
        return self.estimate_of(
            Job(given, tuple(wanted), steps=steps, num_samples=samples, guidance_scale=guidance)
        )

    def estimate_of(self, job: Job) -> str:
        """HTML that says how long a run would take here."""
        seconds = self._service.timing.estimate(job)
        return (
            f'<p class="hint">about <b>{duration(seconds)}</b> on this {self._service.device.split()[0]}</p>'
        )

    def _scales(
        self, given: Collection[str], wanted: Collection[str], followed: float, scales: Collection[float]
    ) -> dict[str, float]:
        """The scale of each modality that is given, or of what is followed where nothing is."""
        if self._follows(given, wanted):
            return {self._settled: followed} if followed != 1 else {}
        counted = guidable(given, wanted)
        return {name: s for name, s in zip(self._names, scales, strict=True) if name in counted}

    def _follows(self, given: Collection[str], wanted: Collection[str]) -> bool:
        """Whether a photo is made from nothing, and what it can follow is not to be ignored."""
        ignored = self._settled in self._names and self._settled not in wanted
        return self._settled is not None and not given and ANCHOR in wanted and not ignored

    def read(
        self,
        given: Collection[str],
        wanted: Collection[str],
        steps: int | None,
        seed: float | None,
        keep: bool,
        sampler: str,
        samples: int | None,
        followed: float,
        *scales: float,
    ) -> dict[str, Any]:
        """The fields of a `Job` that are set here; the seed is drawn unless kept."""
        if keep and seed is None:
            raise ValueError("There is no seed to keep. Write one, or untick Keep.")
        if steps is None or samples is None:
            raise ValueError("The number of steps or of samples is empty. Write one.")
        return {
            "steps": int(steps),
            "seed": int(seed) if keep else new_seed(),
            "sampler": sampler,
            "num_samples": int(samples),
            "guidance_scale": self._scales(given, wanted, followed, scales),
        }

    def show(self, job: Job, missing: Collection[str] = ()) -> list[Any]:
        """What `components` are to be so that they say what `job` says; the seed is kept.

        Args:
            missing: names of what is given, too, but has still to be added.
        """
        scales, given = job.scales, (*job.given, *missing)
        return [
            job.steps,
            job.seed,
            True,
            job.sampler,
            job.num_samples,
            scales.get(self._settled, 1) if self._follows(given, job.wanted) else gr.skip(),
            *(scales.get(n, 1) if n in given else 1 for n in self._names),
        ]


def _within(typed: float | None, most: int) -> int:
    """The whole number from 1 to ``most`` that a box will say once it is left; an emptied one says None."""
    return min(max(int(typed or 1), 1), most)


def new_seed() -> int:
    return random.randint(0, MAX_SEED)
