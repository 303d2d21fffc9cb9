"""How to sample: steps with a time estimate, seed, sampler, number of samples, guidance."""

from __future__ import annotations

import random
from typing import Any

import gradio as gr

from app.inputs import QUIET
from app.service import MAX_GUIDANCE, MAX_SAMPLES, MAX_SEED, MAX_STEPS, SAMPLERS, Service
from app.theme import html
from app.views import duration


class Settings:
    """Controls made inside the current `gr.Blocks` context.

    `components` is what `read` takes, in this order.
    """

    def __init__(self, service: Service) -> None:
        self._service = service
        self.steps = gr.Slider(1, MAX_STEPS, value=30, step=1, label="Steps", elem_id="steps")
        self.estimate = html(self.estimated(30, 1, 1.0), elem_id="estimate")
        with gr.Row(elem_classes="seed"):
            self.seed = gr.Number(
                value=0, precision=0, minimum=0, maximum=MAX_SEED, label="Seed", min_width=120, elem_id="seed"
            )
            self.keep = gr.Checkbox(
                False, label="Keep", container=False, min_width=70, scale=0, elem_id="keep-seed"
            )
            draw = gr.Button("New seed", size="sm", min_width=90, scale=0, elem_id="new-seed")
        with gr.Accordion("Sampler, samples, guidance", open=False):
            self.sampler = gr.Dropdown(
                [(title, name) for name, title in SAMPLERS.items()],
                value="ddim",
                label="Sampler",
                filterable=False,
            )
            self.samples = gr.Slider(1, MAX_SAMPLES, value=1, step=1, label="Samples", elem_id="samples")
            self.guidance = gr.Slider(
                0,
                MAX_GUIDANCE,
                value=1,
                step=0.5,
                label="Guidance",
                info="1 = off; more obeys what is given more.",
            )
        self.components = [self.steps, self.seed, self.keep, self.sampler, self.samples, self.guidance]
        costs = [self.steps, self.samples, self.guidance]
        draw.click(new_seed, None, self.seed, **QUIET)
        # Without triggers: when the page loads and whenever one of these changes.
        gr.on(None, self.estimated, costs, self.estimate, queue=False, trigger_mode="always_last", **QUIET)

    def estimated(self, steps: int, samples: int, guidance: float) -> str:
        """HTML that says how long a run would take here."""
        seconds = self._service.timing.estimate(steps, samples * (1 if guidance == 1 else 2))
        return (
            f'<p class="hint">about <b>{duration(seconds)}</b> on this {self._service.device.split()[0]}</p>'
        )

    @staticmethod
    def read(
        steps: int, seed: float | None, keep: bool, sampler: str, samples: int, guidance: float
    ) -> dict[str, Any]:
        """The fields of a `Job` that are set here; the seed is drawn unless kept."""
        if keep and seed is None:
            raise ValueError("There is no seed to keep. Write one, or untick Keep.")
        return {
            "steps": int(steps),
            "seed": int(seed) if keep else new_seed(),
            "sampler": sampler,
            "num_samples": int(samples),
            "guidance_scale": guidance,
        }


def new_seed() -> int:
    return random.randint(0, MAX_SEED)
