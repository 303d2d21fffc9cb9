"""How to sample and how much to measure; every field is also an option of `python -m mmdiff.evaluate`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mmdiff.evaluation.holes import HOLES
from mmdiff.request import SAMPLERS


def _option(default: Any, text: str, **details: Any) -> Any:
    """A field with its help text; details: further arguments of `add_argument`."""
    return field(default=default, metadata={"help": text, **details})


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation. Raises ValueError for values that cannot be used.

    Guidance applies where a picture is made from a label, a mask or a text.
    """

    steps: int = _option(30, "sampling steps")
    reading_steps: int = _option(1, "steps where a whole photo is given; 1 predicts p(x | photo) directly")
    filling_steps: int | None = _option(
        None, "steps where a photo has holes (default: as many as --steps)", type=int
    )
    filling_guidance: float = _option(
        1.0, "guidance scale of the known pixels where a photo has holes; 1 is off"
    )
    batch: int = _option(64, "samples at a time")
    seed: int = _option(0, "of the samples, and of the choice of examples")
    sampler: str = _option("ddim", "default: ddim", choices=tuple(SAMPLERS))
    eta: float = _option(0.0, "fresh noise in each step of ddim, 0 to 1")
    guidance: float = _option(1.0, "guidance scale for pictures made from a label, mask or text; 1 is off")
    samples: int = _option(490, "pictures to generate per task, at most; equally many of each class")
    prompts: int = _option(200, "texts of the task prompts, half of them rare combinations")
    limit: int | None = _option(None, "use only this many examples, drawn with the seed", type=int)
    holes: tuple[str, ...] = _option(
        ("blocks",), f"which kinds of holes, of {', '.join(HOLES)}", choices=tuple(HOLES), metavar="KIND"
    )
    classical: bool = _option(True, "also inpaint by Telea's method and by Navier-Stokes")
    bound_draws: int = _option(4, "random times per example in the estimate of the bound")

    def __post_init__(self) -> None:
        lowest = {"steps": 1, "reading_steps": 1, "batch": 1, "samples": 1, "prompts": 2, "bound_draws": 1}
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is {getattr(self, name)}; give at least {low}.")
        if self.filling_steps is not None and self.filling_steps < 1:
            raise ValueError(f"filling_steps is {self.filling_steps}; give at least 1, or leave it out.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}; give at least 1, or leave it out to use all examples.")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; give a whole number from 0 on.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}.")
        unknown = [h for h in self.holes if h not in HOLES]
        if unknown:
            raise ValueError(f"unknown holes {', '.join(unknown)}; known: {', '.join(HOLES)}.")
