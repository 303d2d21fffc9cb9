"""The same seed twice, side by side: with other steps, another sampler, other guidance or another model."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import gradio as gr

from app.run.defaults import LIMITS, guidable
from app.task import Task
from app.theme import html
from app.wording import steps_of
from mmdiff.request import SAMPLERS, Request

SAME = "same"
GUIDANCES = (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0)
HINT = (
    '<p class="hint">Runs your settings twice from the same seed: as they are above, and with what you '
    "change here.</p>"
)


class Compare:
    """Controls made inside the current `gr.Blocks` context; `read` takes a request, then `components`.

    `checkpoints` are the names of all models, this page's first.
    """

    def __init__(self, task: Task, checkpoints: Sequence[str]) -> None:
        name = task.name
        choose = partial(gr.Dropdown, filterable=False)
        with gr.Accordion("Side by side", open=False, elem_id=f"{name}-compare"):
            html(HINT)
            self.steps = gr.Slider(
                0,
                LIMITS.steps,
                value=10,
                step=1,
                label="Steps (0 is the same)",
                elem_id=f"{name}-other-steps",
            )
            self.guidance = choose(  # an empty number would be shown, and sent, as 0
                [("The same", SAME), *((f"{s:g} (off)" if s == 1 else f"{s:g}", s) for s in GUIDANCES)],
                value=SAME,
                label="Guidance of all that you provide",
                elem_id=f"{name}-other-guidance",
            )
            samplers = [("The same", SAME), *((title, key) for key, title in SAMPLERS.items())]
            self.sampler = choose(samplers, value=SAME, label="Sampler", elem_id=f"{name}-other-sampler")
            self.note = html("", elem_id=f"{name}-other-note")  # on the sampler
            self.checkpoint = choose(
                list(checkpoints),
                value=checkpoints[0],
                label="Checkpoint",
                visible=len(checkpoints) > 1,
                elem_id=f"{name}-other-checkpoint",
            )
            self.button = gr.Button("Run both", elem_id=f"{name}-run-both", elem_classes="run-both")
        self.components = [self.steps, self.guidance, self.sampler, self.checkpoint]

    def read(
        self, request: Request, steps: int | None, guidance: float | str, sampler: str, checkpoint: str
    ) -> tuple[Request, str]:
        """The other request and the name of its model."""
        other = replace(
            request,
            steps=int(steps or request.steps),
            guidance_scale=request.guidance_scale if guidance == SAME else _guided(request, float(guidance)),
            sampler=request.sampler if sampler == SAME else sampler,
        )
        return other, checkpoint

    def titles(
        self, request: Request, checkpoint: str, other: Request, other_checkpoint: str
    ) -> tuple[str, str]:
        """What differs, as a title for each of the two. Raises ValueError if nothing does."""
        facts = zip(_facts(request, checkpoint), _facts(other, other_checkpoint), strict=True)
        differing = [pair for pair in facts if pair[0] != pair[1]]
        if not differing:
            raise ValueError(
                "Both runs would be the same. Under “Side by side”, change the steps, the guidance, the "
                "sampler or the checkpoint."
            )
        one, two = (" · ".join(facts) for facts in zip(*differing, strict=True))
        return one, two


def _guided(request: Request, guidance: float) -> dict[str, float]:
    """The same scale for all given modalities; the scale of a modality sampled first stays."""
    first = {name: scale for name, scale in request.scales().items() if name in request.sample_first}
    return first | dict.fromkeys(guidable(request.given, request.wanted), guidance)


def _facts(request: Request, checkpoint: str) -> list[str]:
    on = ", ".join(f"{name} {scale:g}" for name, scale in request.scales().items() if scale != 1)
    return [checkpoint, steps_of(request.steps), f"guidance {on or 'off'}", request.sampler]
