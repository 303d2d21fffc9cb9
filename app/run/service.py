"""One model behind the page: loaded and warmed up once, runs of many visitors at a time, every step of them.

Knows nothing of the page. `Service.stream` is the only way to the model. The runs of all visitors share the
step engine of `mmdiff.Pipeline`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from app.run.history import Record
from app.run.job import ANCHOR, FOLLOWED, Job, settled
from app.run.zero_gpu import ON_ZERO_GPU, gpu
from app.tabs.tasks import KINDS
from mmdiff.pipeline import Pipeline

if TYPE_CHECKING:
    from mmdiff.clip.vocabulary import Description

MAX_WAITING = 12
PATIENCE = 0.25  # seconds between looks at whether a waiting run was stopped
WARM_UP_STEPS, WARM_UP_SECONDS = 8, 2.0


@dataclass(frozen=True)
class Waiting:
    """All places are taken; `place` in line, 1 is next."""

    place: int


@dataclass(frozen=True)
class Preview:
    """What every head predicts at a step (arrays of the whole batch, see `mmdiff.Pipeline.stream`)."""

    index: int
    total: int
    t: int
    x_hat: Mapping[str, np.ndarray]
    seconds: float
    seconds_left: float
    stopped: bool = False

    @property
    def last(self) -> bool:
        return self.stopped or self.index == self.total


class Timing:
    """Seconds per step here, the middle one of the last three runs; the warm-up is the first.

    Holes have times of their own: every preview of a filling is blended into what surrounds it.
    """

    def __init__(self) -> None:
        self._recent: dict[tuple[bool, int], deque[float]] = {}

    def learn(self, job: Job, seconds_per_step: float) -> None:
        self._recent.setdefault((job.fills, job.batch), deque(maxlen=3)).append(seconds_per_step)

    def estimate(self, job: Job) -> float:
        """Seconds for a run; a batch never seen is priced in proportion to the nearest one that was."""
        nearest = min(self._recent, key=lambda seen: (seen[0] != job.fills, abs(seen[1] - job.batch)))
        return job.steps * median(self._recent[nearest]) * job.batch / nearest[1]


class Stops:
    """Which runs of which visitor have been asked to end."""

    def __init__(self) -> None:
        self._events: dict[str, set[threading.Event]] = {}
        self._lock = threading.Lock()

    @contextmanager
    def watched(self, session: str) -> Iterator[threading.Event]:
        """An event that `stop(session)` sets."""
        event = threading.Event()
        with self._lock:
            self._events.setdefault(session, set()).add(event)
        try:
            yield event
        finally:
            with self._lock:
                self._events[session].discard(event)
                if not self._events[session]:
                    del self._events[session]

    def stop(self, session: str) -> bool:
        """Asks all runs of this session to end within a step. False if none is going on."""
        with self._lock:
            events = self._events.get(session, set())
            for event in events:
                event.set()
            return bool(events)


class Service:
    """A warmed-up pipeline for many visitors.

    Attributes:
        pipe: the pipeline. folder: of the checkpoint, None if it came from elsewhere.
        name: of the checkpoint, for the page. size_mb: of its weights on disk, None if unknown.
        stops: who has been asked to end; may be shared by several services.
        example: the record of a warm-up with nothing given, something to look at before the first run.
        filled: the record of filling a hole in the example's picture.
    """

    def __init__(
        self,
        pipe: Any,
        name: str,
        size_mb: float | None = None,
        folder: Path | None = None,
        stops: Stops | None = None,
    ) -> None:
        self.pipe, self.name, self.size_mb, self.folder = pipe, name, size_mb, folder
        self.stops = stops or Stops()
        self.timing = Timing()
        self._sampled = self._sample  # nobody is there yet for whom a GPU could be lent
        with ThreadPoolExecutor(1) as worker:  # like real runs not in the main thread, which differs in speed
            self.example, self.filled = worker.submit(self._warm_up).result()
        # Wrapped here, because what a GPU process is called with must be picklable, which `self` is not.
        self._sampled = gpu(lambda job: 10 + self.timing.estimate(job))(self._sample)

    @classmethod
    def from_checkpoint(cls, folder: str | Path, device: str = "auto", stops: Stops | None = None) -> Service:
        """Loads the checkpoint in `folder`. Raises ValueError or OSError if that is not possible."""
        folder = Path(folder).resolve()
        weights = folder / "model.safetensors"
        size = weights.stat().st_size / 1e6 if weights.is_file() else None
        at_startup = "cpu" if ON_ZERO_GPU else device  # ZeroGPU lends its GPU to visitors only
        service = cls(_loaded(folder, at_startup), folder.name, size, folder, stops)
        if ON_ZERO_GPU:
            service.pipe = _loaded(folder, "cuda")
        return service

    def _warm_up(self) -> tuple[Record, Record]:
        """`example` and `filled`; before that something short that touches all code and memory."""
        wanted = tuple(self.modalities)
        started = time.perf_counter()
        for _ in self.stream(Job(wanted=wanted, steps=2)):
            pass
        affordable = 2 * WARM_UP_SECONDS / (time.perf_counter() - started)
        self.timing = Timing()
        steps = int(min(WARM_UP_STEPS, max(4, affordable)))
        name = settled(self.modalities)
        scales = {name: FOLLOWED} if name else {}
        example = self.run(Job(wanted=wanted, steps=steps, guidance_scale=scales, sampler="dpmpp_2m"))
        picture = Image.fromarray(example.last.x[ANCHOR][0])
        known = middle_known(picture.width)
        return example, self.run(Job({ANCHOR: picture}, wanted, known, steps, sampler="dpmpp_2m"))

    @property
    def modalities(self) -> dict[str, Any]:
        """name -> spec of what the page can show; other kinds take no part, as if the model had none."""
        return {name: spec for name, spec in self.pipe.modalities.items() if spec.kind in KINDS}

    @property
    def left_out(self) -> tuple[str, ...]:
        """Names of the model's modalities that the page cannot show."""
        return tuple(name for name in self.pipe.modalities if name not in self.modalities)

    @property
    def device(self) -> str:
        """Where the model runs, in words for the page."""
        device = self.pipe.device
        if device.type == "cuda":
            import torch

            return f"GPU ({torch.cuda.get_device_name(device)})"
        return "CPU" if device.type == "cpu" else f"GPU ({device.type})"

    def record(self, job: Job) -> Record:
        """An empty record for the run of `job`."""
        modalities = {n: spec for n, spec in self.modalities.items() if n in job.shown}
        return Record(job, self.name, modalities)

    def run(self, job: Job) -> Record:
        """Runs `job` to its end. Raises ValueError for a job that cannot be run."""
        record = self.record(job)
        for event in self.stream(job):
            if isinstance(event, Preview):
                record.add(event.index, event.t, event.x_hat)
                record.seconds = event.seconds
        return record

    def stream(self, job: Job, session: str = "") -> Iterator[Waiting | Preview]:
        """Runs `job`; the last `Preview` is the result, or what there was when it was stopped.

        `session` is the name by which `stop` finds this run. Closing the generator ends the run, too.

        Raises:
            ValueError: for a job that cannot be run, and if too many are waiting already.
        """
        job.check(self.modalities)
        if self.pipe.engine.waiting >= MAX_WAITING:
            raise ValueError(f"{MAX_WAITING} runs are waiting already. Please try again in a minute.")
        with self.stops.watched(session) as stop, closing(self._sampled(job)) as events:
            for event in events:
                stopped = stop.is_set()
                if isinstance(event, Preview):
                    if event.last:
                        self.timing.learn(job, event.seconds / event.total)
                    yield replace(event, stopped=stopped and not event.last)
                elif not stopped:
                    yield event
                if stopped:
                    return

    def _sample(self, job: Job) -> Iterator[Waiting | Preview]:
        """Everything that happens in a run, in the process that has the accelerator."""
        started = time.perf_counter()
        with closing(self.pipe.stream(**vars(job))) as steps:
            while place := steps.wait(PATIENCE):
                yield Waiting(place)
                started = time.perf_counter()
            for step in steps:
                seconds = time.perf_counter() - started
                left = seconds / step.index * (step.total - step.index)
                yield Preview(step.index, step.total, step.t, step.x_hat, seconds, left)

    def stop(self, session: str) -> bool:
        """Ends the runs of this session within a step, keeping what there is. False if none is going on."""
        return self.stops.stop(session)

    def describe(self, vectors: np.ndarray) -> list[Description]:
        """Embeddings (B, D) in words; none if the model has no words for them."""
        return self.pipe.describe(vectors) if self.pipe.can_describe else []

    @property
    def example_text(self) -> str:
        """The commonest thing that training captions say, to try; "" if the model has no words."""
        captions = self.pipe.words.vocabulary.captions if self.pipe.can_describe else [""]
        return next(iter(captions)).removeprefix("a photo of ")


def _loaded(folder: Path, device: str) -> Pipeline:
    """The pipeline, loaded in a thread that ends, so that its OpenMP threads do not stand in the way."""
    with ThreadPoolExecutor(1) as worker:
        return worker.submit(Pipeline.from_pretrained, folder, device, background=True).result()


def middle_known(size: int) -> np.ndarray:
    """Known pixels (size, size) bool: all but a box in the middle."""
    known = np.ones((size, size), dtype=bool)
    known[size // 4 : size // 2 + size // 8, size // 3 : size - size // 4] = False
    return known
