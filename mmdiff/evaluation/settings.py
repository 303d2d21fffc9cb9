"""How to sample and how much to measure; every field is also an option of `python -m mmdiff.evaluate`."""

from dataclasses import dataclass

from mmdiff.evaluation.holes import HOLES
from mmdiff.options import option
from mmdiff.request import SAMPLERS


@dataclass(frozen=True)
class EvaluationSettings:
    """Settings of an evaluation. Raises ValueError for values that cannot be used.

    Guidance applies where a picture is made from a label, a mask or a text.
    """

    steps: int = option(30, "sampling steps")
    reading_steps: int = option(1, "steps where a whole photo is given; 1 predicts p(x | photo) directly")
    filling_steps: int | None = option(
        None, "steps where a photo has holes (default: as many as --steps)", type=int
    )
    filling_guidance: float = option(
        1.0, "guidance scale of the known pixels where a photo has holes; 1 is off"
    )
    batch: int = option(64, "samples at a time")
    seed: int = option(0, "of the samples, and of the choice of examples")
    sampler: str = option("ddim", "default: ddim", choices=tuple(SAMPLERS))
    eta: float = option(0.0, "fresh noise in each step of ddim, 0 to 1")
    guidance: float = option(1.0, "guidance scale for pictures made from a label, mask or text; 1 is off")
    samples: int = option(490, "pictures to generate per task, at most; equally many of each class")
    limit: int | None = option(None, "use only this many examples, drawn with the seed", type=int)
    holes: tuple[str, ...] = option(
        ("blocks",), f"which kinds of holes, of {', '.join(HOLES)}", choices=tuple(HOLES), metavar="KIND"
    )
    classical: bool = option(True, "also inpaint by Telea's method and by Navier-Stokes")
    bound_draws: int = option(4, "random times per example in the estimate of the bound")

    def __post_init__(self) -> None:
        lowest = dict.fromkeys(
            ("steps", "reading_steps", "filling_steps", "batch", "samples", "limit", "bound_draws"), 1
        )
        for name, low in (lowest | {"seed": 0}).items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} is {value}; give at least {low}.")
        if self.sampler not in SAMPLERS:
            raise ValueError(f"unknown sampler {self.sampler!r}; known: {', '.join(SAMPLERS)}.")
        unknown = [h for h in self.holes if h not in HOLES]
        if unknown:
            raise ValueError(f"unknown holes {', '.join(unknown)}; known: {', '.join(HOLES)}.")
