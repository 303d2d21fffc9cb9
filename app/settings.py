"""How to sample: steps with a time estimate, seed, sampler, number of samples, guidance by modality."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from typing import Any

import gradio as gr

from app.inputs import QUIET
from app.job import ANCHOR, FOLLOWED, MAX_GUIDANCE, MAX_SAMPLES, MAX_SEED, MAX_STEPS, SAMPLERS, Job, settled
from app.service import Service
from app.tasks import GENERATE, GIVEN
from app.theme import html
from app.views import duration

STEPS = 30
FILLING_SAMPLER = "ancestral"  # its noise mends what early steps got wrong: fillings are nearer to the truth
GUIDANCE = (
    '<p class="title">Guidance</p><p class="hint">How strongly each counts where it is given. 1 is off; '
    "any other number runs every sample through the network once more a step.</p>"
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
        self._guidable = [name for name in choices if name != ANCHOR]
        self._choices = list(choices)
        # A photo that is to be filled in, or one without a label in the model, has nothing to follow.
        self._settled = None if task == "fill_in" else settled(service.modalities)
        self.steps = gr.Slider(1, MAX_STEPS, value=STEPS, step=1, label="Steps", elem_id=f"{task}-steps")
        roles, ones = [choice.value for choice in choices.values()], [1] * len(self._guidable)
        estimate = self._estimated(STEPS, 1, FOLLOWED, *ones, *roles)
        self.estimate = html(estimate, elem_id=f"{task}-estimate", elem_classes="estimate")
        with gr.Row(elem_classes="seed"):
            self.seed = gr.Number(
                value=0,
                precision=0,
                minimum=0,
                maximum=MAX_SEED,
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
                value=FILLING_SAMPLER if task == "fill_in" else Job().sampler,
                label="Sampler",
                filterable=False,
                elem_id=f"{task}-sampler",
            )
            self.samples = gr.Slider(
                1, MAX_SAMPLES, value=1, step=1, label="Samples", elem_id=f"{task}-samples"
            )
            self.every = gr.Slider(
                1, 10, value=5, step=1, label="Show every … steps", elem_id=f"{task}-every"
            )
            with gr.Column(elem_classes="guidance", visible=bool(self._guidable)):
                html(GUIDANCE)
                self.guidance = [self._guidance_slider(task, name) for name in self._guidable]
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
            queue=False,
            trigger_mode="always_last",
            **QUIET,
        )

    def _guidance_slider(self, task: str, name: str) -> gr.Slider:
        return gr.Slider(
            0, MAX_GUIDANCE, value=1, step=0.5, label=name.capitalize(), elem_id=f"{task}-{name}-guidance"
        )

    def _estimated(self, steps: int | None, samples: int | None, followed: float, *values: Any) -> str:
        """`values`: the scale of each guidable modality, then what each of all is to be."""
        scales, roles = values[: len(self._guidable)], values[len(self._guidable) :]
        given = {name: None for name, role in zip(self._choices, roles, strict=True) if role == GIVEN}
        wanted = [name for name, role in zip(self._choices, roles, strict=True) if role == GENERATE]
        guidance = self._scales(given, wanted, followed, scales)
        # a box that somebody has just emptied says None
        return self.estimate_of(
            Job(given, steps=steps or 1, num_samples=samples or 1, guidance_scale=guidance)
        )

    def estimate_of(self, job: Job) -> str:
        """HTML that says how long a run would take here."""
        seconds = self._service.timing.estimate(job.steps, job.batch)
        return (
            f'<p class="hint">about <b>{duration(seconds)}</b> on this {self._service.device.split()[0]}</p>'
        )

    def _scales(
        self, given: Collection[str], wanted: Collection[str], followed: float, scales: Collection[float]
    ) -> dict[str, float]:
        """The scale of each modality that is given, or of what is followed where nothing is."""
        if self._follows(given, wanted):
            return {self._settled: followed} if followed != 1 else {}
        return {name: s for name, s in zip(self._guidable, scales, strict=True) if name in given}

    def _follows(self, given: Collection[str], wanted: Collection[str]) -> bool:
        """Whether a photo is made from nothing, and what it can follow is not to be ignored."""
        ignored = self._settled in self._choices and self._settled not in wanted
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

    def show(self, job: Job) -> list[Any]:
        """What `components` are to be so that they say what `job` says; the seed is kept."""
        scales = job.scales
        return [
            job.steps,
            job.seed,
            True,
            job.sampler,
            job.num_samples,
            scales.get(self._settled, 1) if self._follows(job.given, job.wanted) else gr.skip(),
            *(scales.get(n, 1) if n in job.given else 1 for n in self._guidable),
        ]


def new_seed() -> int:
    return random.randint(0, MAX_SEED)
