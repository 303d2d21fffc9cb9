"""How a visitor watches runs: how often they see a step, and whether they see the noisy states.

Noisy states are decoded and sent only where the box is ticked. A run that was made without them is then made
again from its own request: the same seed gives the same pictures, and nobody else pays for it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import gradio as gr

from app.run.history import Track

LABEL = "Show the noise that each step starts from"


class Watch(NamedTuple):
    """The number of steps after which the page shows the next one, and whether noisy states are shown."""

    every: int
    noisy: bool


class NoiseSwitch:
    """The box of a tab, made in the current context; static/player_noise.js presses `again` where needed."""

    def __init__(self, task: str) -> None:
        looks = {"container": False, "elem_id": f"{task}-noise", "elem_classes": "noise-switch"}
        self.box = gr.Checkbox(False, label=LABEL, **looks)
        self.again = gr.Button("Make it again", elem_id=f"{task}-noise-again", elem_classes="unseen")


def anew(tracks: Sequence[Track]) -> list[Track]:
    """The same runs, to be made once more; the player goes on showing what it has of them."""
    records = [replace(track.record, frames=[], between=[], seconds=0.0) for track in tracks]
    return [replace(t, record=r, running=True, since=0) for t, r in zip(tracks, records, strict=True)]
