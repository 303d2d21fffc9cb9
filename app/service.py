"""One model behind the page: loaded and warmed up once, one run at a time, previews as they come.

Knows nothing of the page. `Service.stream` is the only way to the model, so what runs there can change (one
run at a time now) without the tabs noticing.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mmdiff.vocabulary import Description

SAMPLERS = {
    "ddim": "DDIM, the steady default",
    "dpmpp_2m": "DPM-Solver++ (2M), good with few steps",
    "ancestral": "Ancestral, random all the way",
}
MAX_STEPS, MAX_SAMPLES, MAX_GUIDANCE, MAX_WAITING = 100, 8, 10.0, 12
MAX_SEED = 2**31 - 1
PREVIEWS = 12  # at least this many previews in a run that has as many steps
ANCHOR = "image"  # its pixels are kept as they are given, so there is nothing to guide
WARM_UP_STEPS, WARM_UP_SECONDS = 20, 3.0


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

    @property
    def batch(self) -> int:
        """Samples in one step of the network; every scale other than 1 runs each of them once more."""
        scales = self.guidance_scale
        guided = [name for name in self.given if name != ANCHOR]
        if isinstance(scales, Mapping):
            return self.num_samples * (1 + sum(scales.get(name, 1) != 1 for name in guided))
        return self.num_samples * (2 if guided and scales != 1 else 1)

    def check(self, modalities: Mapping[str, Any]) -> None:
        """Raises ValueError, in words for the page, if this cannot be run."""
        names = ", ".join(modalities)
        for name in (*self.given, *self.wanted):
            if name not in modalities:
                raise ValueError(f"This model does not know “{name}”; it knows {names}.")
        filled_in = {"image"} if self.known_pixels is not None else set()
        if filled_in and "image" not in self.given:
            raise ValueError(
                "There is a hole but no photo to fill in. Give the photo too, or leave the hole out."
            )
        if not self.wanted:
            raise ValueError(f"There is nothing to generate. Ask for at least one of {names}.")
        for name in set(self.given) & set(self.wanted) - filled_in:
            raise ValueError(f"“{name}” is given and asked for at once. Choose one of the two.")
        _in_range("steps", self.steps, 1, MAX_STEPS)
        _in_range("number of samples", self.num_samples, 1, MAX_SAMPLES)
        _in_range("seed", self.seed, 0, MAX_SEED)
        self._check_guidance()
        if self.sampler not in SAMPLERS:
            raise ValueError(f"There is no sampler “{self.sampler}”; there are {', '.join(SAMPLERS)}.")

    def _check_guidance(self) -> None:
        scales = self.guidance_scale
        by_name = scales if isinstance(scales, Mapping) else {"": scales}
        for name, scale in by_name.items():
            if name and (name == ANCHOR or name not in self.given):
                why = "is kept as it is given" if name == ANCHOR else "is not given"
                raise ValueError(f"There is a guidance scale for “{name}”, which {why}. Leave it out.")
            number = isinstance(scale, int | float) and not isinstance(scale, bool)
            if not number or not 0 <= scale <= MAX_GUIDANCE:
                which = f"guidance scale of “{name}”" if name else "guidance scale"
                raise ValueError(f"The {which} is {scale}; use 0 to {MAX_GUIDANCE:g} (1 = off).")


def _in_range(what: str, value: int, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ValueError(f"The {what} is {value}; use a whole number from {low} to {high}.")


@dataclass(frozen=True)
class Waiting:
    """Somebody else's run comes first; `ahead` of them."""

    ahead: int


@dataclass(frozen=True)
class Preview:
    """What every head predicts at a step (arrays of the whole batch, see `mmdiff.Pipeline.stream`)."""

    index: int
    total: int
    x_hat: Mapping[str, np.ndarray]
    seconds: float
    seconds_left: float
    stopped: bool = False

    @property
    def last(self) -> bool:
        return self.stopped or self.index == self.total


class Timing:
    """Seconds per step here, by the size of the batch; learnt from the warm-up and from every run."""

    def __init__(self) -> None:
        self._recent: dict[int, deque[float]] = {}

    def learn(self, batch: int, seconds_per_step: float) -> None:
        self._recent.setdefault(batch, deque(maxlen=3)).append(seconds_per_step)

    def estimate(self, steps: int, batch: int) -> float:
        """Seconds for a run; a batch never seen is priced in proportion to the nearest one that was."""
        nearest = min(self._recent, key=lambda seen: abs(seen - batch))
        per_step = min(self._recent[nearest])  # what else goes on in the machine only ever slows a run
        return steps * per_step * batch / nearest


class Turns:
    """First come, first served: the front of the line may use the model."""

    def __init__(self) -> None:
        self._line: deque[object] = deque()
        self._moved = threading.Condition()

    def join(self) -> object:
        with self._moved:
            if len(self._line) > MAX_WAITING:
                raise ValueError(f"{MAX_WAITING} runs are waiting already. Please try again in a minute.")
            ticket = object()
            self._line.append(ticket)
            return ticket

    def ahead(self, ticket: object, patience: float) -> int:
        """How many stand before this ticket, after at most `patience` seconds of waiting for a move."""
        with self._moved:
            if self._line[0] is not ticket:
                self._moved.wait(patience)
            return self._line.index(ticket)

    def leave(self, ticket: object) -> None:
        with self._moved:
            self._line.remove(ticket)
            self._moved.notify_all()


class Service:
    """A warmed-up pipeline for many visitors.

    Attributes:
        pipe: the pipeline.
        name: of the checkpoint, for the page.
        size_mb: of its weights on disk, None if unknown.
        example: the job of the warm-up and its last preview, something to look at before the first run.
    """

    def __init__(self, pipe: Any, name: str, size_mb: float | None = None) -> None:
        self.pipe, self.name, self.size_mb = pipe, name, size_mb
        self.timing = Timing()
        self._turns = Turns()
        self._stops: dict[str, threading.Event] = {}
        with ThreadPoolExecutor(1) as worker:  # like real runs not in the main thread, which differs in speed
            self.example = worker.submit(self._warm_up).result()

    @classmethod
    def from_checkpoint(cls, folder: str | Path, device: str = "auto") -> Service:
        """Loads the checkpoint in `folder`. Raises ValueError or OSError if that is not possible."""
        from mmdiff.pipeline import Pipeline

        weights = Path(folder) / "model.safetensors"
        size = weights.stat().st_size / 1e6 if weights.is_file() else None
        return cls(Pipeline.from_pretrained(str(folder), device=device), Path(folder).resolve().name, size)

    def _warm_up(self) -> tuple[Job, Preview]:
        """Joint samples of everything; the first touches all code and memory, the second is timed."""
        wanted = tuple(self.pipe.modalities)
        started = time.perf_counter()
        for _ in self.stream(Job(wanted=wanted, steps=2)):
            pass
        affordable = 2 * WARM_UP_SECONDS / (time.perf_counter() - started)
        self.timing = Timing()
        job = Job(wanted=wanted, steps=int(min(WARM_UP_STEPS, max(4, affordable))))
        *_, last = self.stream(job)
        return job, last

    @property
    def device(self) -> str:
        """Where the model runs, in words for the page."""
        device = self.pipe.device
        if device.type == "cuda":
            import torch

            return f"GPU ({torch.cuda.get_device_name(device)})"
        return "CPU" if device.type == "cpu" else f"GPU ({device.type})"

    def stream(self, job: Job, session: str = "") -> Iterator[Waiting | Preview]:
        """Runs `job` when its turn comes; the last `Preview` is the result, or what there was when stopped.

        `session` is the name by which `stop` finds this run; a new run ends an older one of the same name.
        Closing the generator ends the run, too. Raises ValueError for a job that cannot be run.
        """
        job.check(self.pipe.modalities)
        if session:
            self.stop(session)
        ticket = self._turns.join()
        stop = self._stops[session] = threading.Event()
        try:
            while (ahead := self._turns.ahead(ticket, patience=0.5)) and not stop.is_set():
                yield Waiting(ahead)
            if not stop.is_set():
                yield from self._previews(job, stop)
        finally:
            self._turns.leave(ticket)
            if self._stops.get(session) is stop:
                del self._stops[session]

    def _previews(self, job: Job, stop: threading.Event) -> Iterator[Preview]:
        every = max(1, job.steps // PREVIEWS)
        started = time.perf_counter()
        with closing(self.pipe.stream(**vars(job))) as steps:
            for step in steps:
                seconds = time.perf_counter() - started
                stopped = stop.is_set() and step.index < step.total
                left = seconds / step.index * (step.total - step.index)
                preview = Preview(step.index, step.total, step.x_hat, seconds, left, stopped)
                if step.index == step.total:
                    self.timing.learn(job.batch, seconds / step.total)
                if preview.last or step.index % every == 0 or step.index == 1:
                    yield preview
                if stopped:
                    return

    def stop(self, session: str) -> bool:
        """Ends the run of this session within a step, keeping what there is. False if none is going on."""
        stop = self._stops.get(session)
        if stop is not None:
            stop.set()
        return stop is not None

    def describe(self, vectors: np.ndarray) -> list[Description]:
        """Embeddings (B, D) in words; none if the model has no words for them."""
        return self.pipe.describe(vectors) if self.pipe.can_describe else []

    @property
    def example_text(self) -> str:
        """The commonest thing that training captions say, to try; "" if the model has no words."""
        captions = self.pipe.words.vocabulary.captions if self.pipe.can_describe else [""]
        return next(iter(captions)).removeprefix("a photo of ")
