"""What one run is asked to do, and whether it can be done."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmdiff.pipeline import Change

SAMPLERS = {
    "ddim": "DDIM, the steady default",
    "dpmpp_2m": "DPM-Solver++ (2M), good with few steps",
    "ancestral": "Ancestral, random all the way",
}
MAX_STEPS, MAX_SAMPLES, MAX_GUIDANCE = 100, 8, 10.0
MAX_SEED = 2**31 - 1
SETTLED = "label"  # kind that can be settled early, for all else to follow
FOLLOWED = 2.0  # how strongly, unless told otherwise
ANCHOR = "image"  # its pixels are kept as they are given; only what is in its holes can be guided


@dataclass(frozen=True)
class Job:
    """What one run is asked to do; the fields are the arguments of `mmdiff.Pipeline.stream`."""

    given: Mapping[str, Any] = field(default_factory=dict)
    wanted: tuple[str, ...] = ()
    known_pixels: np.ndarray | None = None
    steps: int = 30
    seed: int = 0
    num_samples: int = 1
    guidance_scale: float | Mapping[str, float] = 1.0
    sampler: str = "ddim"
    changes: tuple[Change, ...] = ()

    @property
    def conditions(self) -> tuple[Change, ...]:
        """What is given and wanted from the start, then what it is changed to later."""
        first = Change(0, self.given, self.wanted, self.known_pixels, self.guidance_scale)
        return (first, *self.changes)

    @property
    def scales(self) -> Mapping[str, float]:
        """Guidance from the start by name; one number counts for everything that is given but the photo."""
        scales = self.guidance_scale
        return scales if isinstance(scales, Mapping) else {n: scales for n in self.given if n != ANCHOR}

    @property
    def batch(self) -> int:
        """Samples in one step of the network; every scale other than 1 runs each of them once more."""
        return self.num_samples * max(_calls(condition) for condition in self.conditions)

    @property
    def fills(self) -> bool:
        """Whether holes of a photo are filled at any time."""
        return any(ANCHOR in condition.given and ANCHOR in condition.wanted for condition in self.conditions)

    @property
    def shown(self) -> frozenset[str]:
        """Names of the modalities that are given or wanted at any time."""
        return frozenset(name for c in self.conditions for name in (*c.given, *c.wanted))

    def check(self, modalities: Mapping[str, Any]) -> None:
        """Raises ValueError, in words for the page, if this cannot be run."""
        _in_range("number of steps", self.steps, 1, MAX_STEPS)
        _in_range("number of samples", self.num_samples, 1, MAX_SAMPLES)
        _in_range("seed", self.seed, 0, MAX_SEED)
        if self.sampler not in SAMPLERS:
            raise ValueError(f"There is no sampler “{self.sampler}”; there are {', '.join(SAMPLERS)}.")
        for condition in self.conditions:
            _check_condition(condition, modalities)
        for earlier, later in zip(self.conditions[:-1], self.changes, strict=True):
            _in_range("step to fork from", later.after, max(1, earlier.after + 1), self.steps - 1)


def _calls(condition: Change) -> int:
    scales = condition.guidance_scale
    if isinstance(scales, Mapping):
        return 1 + sum(scale != 1 for scale in scales.values())
    return 2 if scales != 1 and any(name != ANCHOR for name in condition.given) else 1


def _check_condition(condition: Change, modalities: Mapping[str, Any]) -> None:
    names = ", ".join(modalities)
    for name in (*condition.given, *condition.wanted):
        if name not in modalities:
            raise ValueError(f"This model does not know “{name}”; it knows {names}.")
    filled_in = {ANCHOR} if condition.known_pixels is not None else set()
    if filled_in and ANCHOR not in condition.given:
        raise ValueError(
            "There is a hole but no photo to fill in. Give the photo too, or leave the hole out."
        )
    if not condition.wanted:
        raise ValueError(f"There is nothing to generate. Ask for at least one of {names}.")
    for name in set(condition.given) & set(condition.wanted) - filled_in:
        raise ValueError(f"“{name}” is given and asked for at once. Choose one of the two.")
    _check_guidance(condition, modalities)


def guidable(given: Collection[str], wanted: Collection[str]) -> list[str]:
    """Names of what is given and can be guided: of a photo what surrounds its holes, which are wanted."""
    return [name for name in given if name != ANCHOR or name in wanted]


def settled(modalities: Mapping[str, Any]) -> str | None:
    """Name of the modality that a photo made from nothing can follow, if there is one."""
    return next((name for name, spec in modalities.items() if spec.kind == SETTLED), None)


def _check_guidance(condition: Change, modalities: Mapping[str, Any]) -> None:
    scales = condition.guidance_scale
    by_name = scales if isinstance(scales, Mapping) else {"": scales}
    possible = (*guidable(condition.given, condition.wanted), settled(modalities))
    for name, scale in by_name.items():
        if name and name not in possible:
            why = "has no hole" if name in condition.given else "is not given"
            raise ValueError(f"There is a guidance scale for “{name}”, which {why}. Leave it out.")
        number = isinstance(scale, int | float) and not isinstance(scale, bool)
        if not number or not 0 <= scale <= MAX_GUIDANCE:
            which = f"guidance scale of “{name}”" if name else "guidance scale"
            raise ValueError(f"The {which} is {scale}; use 0 to {MAX_GUIDANCE:g} (1 = off).")


def _in_range(what: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"The {what} is {value}; use a whole number from {low} to {high}.")
