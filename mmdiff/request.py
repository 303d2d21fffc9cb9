"""What one run is asked to do: the one object that page, API, links, files, commands and library build.

A `Request` is checked once, by `Request.checked`, and reaches the network unchanged. It also knows what it
costs: `Request.rows` is the number of samples in one call of the network.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from mmdiff.leads import checked_leads

if TYPE_CHECKING:
    from mmdiff.modalities import Modality

MAX_SEED = 2**63 - 1
SAMPLERS = {
    "ddim": "DDIM, deterministic",
    "dpmpp_2m": "DPM-Solver++ (2M), good with few steps",
    "ancestral": "Ancestral, fresh noise at every step",
}
# a change takes them from its run
INHERITED = ("leads", "steps", "seed", "num_samples", "sampler", "eta")


@dataclass(frozen=True)
class Limits:
    """The largest values that are accepted; a server lowers them."""

    steps: int = 1000
    num_samples: int = 2**31
    guidance_scale: float = 100.0
    seed: int = MAX_SEED


NO_LIMITS = Limits()


@dataclass(frozen=True)
class Request:
    """What is given, what is wanted, and how to sample it.

    Attributes:
        given: name -> value, as `Modality.parse` takes it. Image: picture, array or path. Mask: class
            numbers. Label: class name or number. Embedding: text, picture or vector.
        wanted: names of the modalities to generate; empty means all that are not given.
        known_pixels: (H, W) bool, the part of the given image to keep; the rest is inpainted.
        guidance_scale: strength of guidance, 1 is off. A number counts for everything given but the image,
            and runs every sample through the network twice a step. A mapping from names to numbers counts for
            each modality by itself and costs once more for each number other than 1; names that are left out
            have 1. The image can be named where it has `known_pixels`: its holes then follow them.
        sample_first: names of modalities, wanted or not, that are sampled early, while the image is still
            noise; all others then follow the sample as if it had been given, with its guidance scale.
        steps: calls of the network for a sample, 1 to T. seed: of the first sample; the next ones count up.
        num_samples: samples that are generated at once. sampler: a key of `SAMPLERS`.
        eta: share of fresh noise in each step of "ddim", 0 to 1.
        leads: what is decided first: by how much each modality is ahead of one without a lead, in units of
            the image's own run, such as {"label": 0.5}; names that are left out have 0. None: the model's own
            leads.
        changes: other conditions from some step on, in order.
    """

    given: Mapping[str, Any] = field(default_factory=dict)
    wanted: Sequence[str] = ()
    known_pixels: np.ndarray | None = None
    guidance_scale: float | Mapping[str, float] = 1.0
    sample_first: Sequence[str] = ()
    steps: int = 30
    seed: int = 0
    num_samples: int = 1
    sampler: str = "ddim"
    eta: float = 0.0
    leads: Mapping[str, float] | None = None
    changes: Sequence[Change] = ()

    @property
    def conditions(self) -> tuple[Request, ...]:
        """What holds from the start, then what each change puts in its place."""
        return (self, *(change.request for change in self.changes))

    @property
    def shown(self) -> frozenset[str]:
        """Names of the modalities that are given or wanted at any time."""
        return frozenset(name for c in self.conditions for name in (*c.given, *c.wanted))

    def made(self, names: Collection[str], anchor: str = "image") -> frozenset[str]:
        """Which of the modalities ``names`` are generated at any time; the anchor is, unless it is given."""
        made: set[str] = set()
        for condition in self.conditions:
            given = set(condition.given) - ({anchor} if condition.known_pixels is not None else set())
            made |= {anchor, *(condition.wanted or names), *condition.sample_first} - given
        return frozenset(made)

    def scales(self, anchor: str = "image") -> Mapping[str, float]:
        """Guidance from the start, by name; one number counts for everything given but the anchor."""
        if isinstance(self.guidance_scale, Mapping):
            return self.guidance_scale
        return dict.fromkeys((name for name in self.given if name != anchor), self.guidance_scale)

    def rows(self, anchor: str = "image") -> int:
        """Samples in one call of the network, at most."""
        return self.num_samples * self.branches(anchor)

    def branches(self, anchor: str = "image") -> int:
        """Times that every sample is in one call of the network; every guidance scale adds one."""
        return max(condition._own_branches(anchor) for condition in self.conditions)

    def inpaints(self, anchor: str = "image") -> bool:
        """Whether holes of an image are filled at any time."""
        return any(anchor in condition.given and anchor in condition.wanted for condition in self.conditions)

    def _own_branches(self, anchor: str) -> int:
        if isinstance(self.guidance_scale, Mapping):
            return 1 + sum(scale != 1 for scale in self.guidance_scale.values())
        guided = any(name != anchor for name in (*self.given, *self.sample_first))
        return 2 if self.guidance_scale != 1 and guided else 1

    def checked(
        self,
        modalities: Mapping[str, Modality],
        num_steps: int,
        limits: Limits = NO_LIMITS,
    ) -> Request:
        """The same request with nothing left open: `wanted` named, changes complete, whole numbers of Python.

        Args:
            modalities: of the model, the anchor first. num_steps: T of its noise schedule.

        Raises:
            ValueError: it cannot be run, with what was given, what was expected and how to mend it. Values in
                `given` are checked when they are parsed.
        """
        self.check_sampling(num_steps, limits)
        if isinstance(self.changes, str) or not isinstance(self.changes, Iterable):
            raise ValueError(f"changes is {self.changes!r}; give a list of Change, or leave it out.")
        whole = {name: int(getattr(self, name)) for name in ("steps", "seed", "num_samples")}
        first = dataclasses.replace(self, **whole, leads=self._checked_leads(modalities))
        first = first._with_conditions_checked(modalities, limits)
        changes, earliest = [], 1
        for change in self.changes:
            changes.append(change.checked(first, earliest, modalities, limits))
            earliest = changes[-1].after + 1
        return dataclasses.replace(first, changes=tuple(changes))

    def _checked_leads(self, modalities: Mapping[str, Modality]) -> dict[str, float] | None:
        if self.leads is None:
            return None
        leads = checked_leads(self.leads, tuple(modalities))
        if not have_levels(modalities) and any(leads.values()):
            raise ValueError("this checkpoint decides its modalities together; leave leads out.")
        return leads

    def check_sampling(self, num_steps: int, limits: Limits = NO_LIMITS) -> None:
        """Raises ValueError if a number is out of range or there is no such sampler."""
        _check_whole("steps", self.steps, 1, min(num_steps, limits.steps))
        _check_whole("num_samples", self.num_samples, 1, limits.num_samples)
        _check_whole("seed", self.seed, 0, limits.seed - int(self.num_samples))
        if not isinstance(self.sampler, str) or self.sampler not in SAMPLERS:
            raise ValueError(f"no sampler is called {self.sampler!r}; choose among {', '.join(SAMPLERS)}.")
        if not is_number(self.eta) or not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta!r}; give a number from 0 (deterministic) to 1.")
        if self.eta and self.sampler != "ddim":
            raise ValueError(
                f"eta is an option of the sampler 'ddim', not of {self.sampler!r}; leave it at 0."
            )

    def _with_conditions_checked(self, modalities: Mapping[str, Modality], limits: Limits) -> Request:
        if not isinstance(self.given, Mapping):
            raise ValueError(
                f"given is {repr(self.given)[:100]}; give a dictionary, name of the modality -> value."
            )
        known = self.known_pixels
        known = known.detach().cpu().numpy() if hasattr(known, "detach") else known  # of a tensor
        names = {name: _names(name, getattr(self, name)) for name in ("wanted", "sample_first")}
        named = dataclasses.replace(self, known_pixels=known, **names)
        anchor = next(iter(modalities))
        holes = _checked_known_pixels(known, self.given, anchor, modalities[anchor].image_size)
        wanted = named._checked_wanted(modalities, anchor, holes)
        named.check_guidance(modalities, limits)
        return dataclasses.replace(named, wanted=wanted)

    def _checked_wanted(
        self, modalities: Mapping[str, Modality], anchor: str, holes: bool
    ) -> tuple[str, ...]:
        wanted = tuple(self.wanted)
        for name in (*self.given, *wanted):
            if name not in modalities:
                known = ", ".join(modalities)
                raise ValueError(f"no modality is called {name!r}; this checkpoint has {known}.")
        inpainted = {anchor} if holes else set()
        wanted = wanted or tuple(n for n in modalities if n not in self.given or n in inpainted)
        both = [name for name in wanted if name in self.given and name not in inpainted]
        if both:
            raise ValueError(f"{', '.join(both)}: given and wanted at once; leave it out of one of them.")
        if not wanted:
            raise ValueError("everything is given, so nothing is left to generate; leave something out.")
        return wanted

    def check_guidance(self, modalities: Mapping[str, Modality], limits: Limits = NO_LIMITS) -> None:
        """Raises ValueError if a scale is out of range, or a name cannot be guided or sampled first."""
        anchor = next(iter(modalities))
        has_levels = have_levels(modalities)
        if has_levels and self.sample_first:
            raise ValueError(
                f"sample_first is for checkpoints without leads; use leads={{{self.sample_first[0]!r}: 1.0}}."
            )
        drawable = [n for n, m in modalities.items() if m.drawable and n not in self.given and not has_levels]
        for name in self.sample_first:
            if name not in drawable:
                why = self._why_not(name, modalities, "is given", "cannot be drawn from its prediction")
                others = f", and name {', '.join(drawable)}" if drawable else ""
                raise ValueError(f"sample_first names {name!r}, which {why}; leave it out{others}.")
        if not isinstance(self.guidance_scale, Mapping):
            return _check_scale("guidance_scale", self.guidance_scale, limits.guidance_scale)
        guidable = [n for n in self.given if n != anchor or self.known_pixels is not None]
        guidable += (
            [n for n in modalities if n not in (anchor, *self.given)] if has_levels else self.sample_first
        )
        for name, scale in self.guidance_scale.items():
            _check_scale(f"guidance_scale of {name!r}", scale, limits.guidance_scale)
            if name not in guidable:
                why = self._why_not(name, modalities, "is kept as it is given", "is not given")
                others = ", ".join(guidable) or "other modalities, once they are given"
                first = ", or name it in sample_first" if name in drawable else ""
                raise ValueError(
                    f"guidance_scale names {name!r}, which {why}; leave it out, and guide {others}{first}."
                )

    def _why_not(self, name: str, modalities: Mapping[str, Modality], given: str, otherwise: str) -> str:
        if name not in modalities:
            return "is no modality of this checkpoint"
        return given if name in self.given else otherwise


@dataclass(frozen=True)
class Change:
    """Other conditions for the rest of a run, from after step `after` on (1 to steps - 1).

    Of `request` only given, wanted, known_pixels, guidance_scale and sample_first count; the rest stays as it
    is in the run. What was decided by then stays as far as the new conditions leave it free; what is left out
    from there on keeps its last prediction.
    """

    after: int
    request: Request

    def checked(
        self,
        run: Request,
        earliest: int,
        modalities: Mapping[str, Modality],
        limits: Limits,
    ) -> Change:
        """The same with nothing left open, see `Request.checked`."""
        if not is_whole(self.after) or not earliest <= self.after < run.steps:
            raise ValueError(
                f"a change comes after step {self.after!r} of {run.steps}; give whole numbers from 1 to "
                f"{run.steps - 1}, each larger than the one before, or take more steps."
            )
        own = {name: getattr(run, name) for name in INHERITED}
        request = dataclasses.replace(self.request, **own, changes=())
        return Change(int(self.after), request._with_conditions_checked(modalities, limits))


def have_levels(modalities: Mapping[str, Modality]) -> bool:
    """Whether a request may set leads, and guide what is generated."""
    return all(modality.lead is not None for modality in modalities.values())


def following(name: str, scale: float, modalities: Mapping[str, Modality]) -> dict[str, Any]:
    """Fields of a `Request` in which all else follows a modality that is generated, guided with ``scale``.

    Models without levels sample it first; others are guided by it while it is made.
    """
    first = {} if have_levels(modalities) else {"sample_first": (name,)}
    return {"guidance_scale": {name: scale}} | first


def _names(what: str, names: object) -> tuple[Any, ...]:
    """Names of modalities: of several or of one; None is none."""
    if names is None or isinstance(names, str):
        return (names,) if names else ()
    if not isinstance(names, Iterable):
        raise ValueError(f'{what} is {names!r}; give names of modalities, such as ("image", "mask").')
    return tuple(names)


def is_whole(number: object) -> bool:
    """Whether it is a whole number of Python or numpy; True and False are not."""
    return isinstance(number, (int, np.integer)) and not isinstance(number, bool)


def is_number(number: object) -> bool:
    """Whether it is a real number of Python or numpy; True and False are not."""
    return isinstance(number, (int, float, np.integer, np.floating)) and not isinstance(number, bool)


def _check_whole(what: str, value: object, low: int, high: int) -> None:
    if not is_whole(value) or not low <= value <= high:
        raise ValueError(f"{what} is {value!r}; give a whole number from {low} to {high}.")


def _check_scale(what: str, scale: object, most: float) -> None:
    if not is_number(scale) or not 0 <= scale <= most:
        raise ValueError(f"{what} is {scale!r}; give a number from 0 to {most:g}, 1 is off.")


def _checked_known_pixels(known: np.ndarray | None, given: Mapping[str, Any], anchor: str, size: int) -> bool:
    """Whether there are holes. Raises ValueError if `known` is no map of the given image's pixels."""
    if known is None:
        return False
    if anchor not in given:
        raise ValueError(
            "known_pixels says which part of an image to keep, but no image is given; give it, or leave "
            "known_pixels out."
        )
    shape, kind = getattr(known, "shape", None), getattr(known, "dtype", type(known).__name__)
    if shape != (size, size) or str(kind) != "bool":
        raise ValueError(
            f"known_pixels is {kind} of shape {shape}; give bool of shape ({size}, {size}), True where the "
            "pixel is to be kept."
        )
    return not bool(np.all(known))
