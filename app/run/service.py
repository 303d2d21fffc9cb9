"""One model behind the page: warmed up once, runs of many visitors at a time, every step of them.

Knows nothing of the page. `Service.stream` is the only way to the model. The runs of all visitors share the
step engine of `mmdiff.Pipeline`.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from app.run.defaults import ANCHOR, LIMITS, from_nothing
from app.run.history import Frame, Later, Record, picture_of
from app.run.taught import read_taught
from app.run.zero_gpu import ON_ZERO_GPU, gpu
from mmdiff.checkpoint import weights_files
from mmdiff.modalities import Modality
from mmdiff.pipeline import Pipeline
from mmdiff.request import Request
from mmdiff.serving.denoising import Step

if TYPE_CHECKING:
    from mmdiff.clip.vocabulary import Description

MAX_WAITING, MAX_WAITING_OF_ONE = 12, 8  # runs in the queue, in all and of the same visitor
PATIENCE = 0.25  # seconds between looks at whether a waiting run was stopped
PREVIEW_SECONDS = 0.08  # between pictures of a run that goes on; more than an eye can use cost time
EXAMPLE_STEPS = 20  # fewer look unfinished, and it is the first result that a visitor sees


@dataclass(frozen=True)
class Waiting:
    """The model is busy with others; `place` in line, 1 is next. 0: it is still being loaded."""

    place: int


class Timing:
    """Seconds per step here, the middle one of the last three runs; the warm-up is the first.

    Inpainting has times of its own: every preview of it is blended into what surrounds the hole.
    """

    def __init__(self) -> None:
        self._recent: dict[tuple[bool, int], deque[float]] = {}

    def learn(self, request: Request, seconds_per_step: float) -> None:
        """Keeps what a run took."""
        kind = request.inpaints(), request.rows()
        self._recent.setdefault(kind, deque(maxlen=3)).append(seconds_per_step)

    def estimate(self, request: Request) -> float | None:
        """Seconds for a run; a batch never seen is priced in proportion to the nearest one that was.

        None before the warm-up.
        """
        if not self._recent:
            return None
        inpaints, rows = request.inpaints(), request.rows()
        seen = list(self._recent)  # other threads learn meanwhile
        nearest = min(seen, key=lambda kind: (kind[0] != inpaints, abs(kind[1] - rows)))
        return request.steps * median(self._recent[nearest]) * rows / nearest[1]


class Stops:
    """The runs of each visitor, and which of them are to end."""

    def __init__(self) -> None:
        self._runs: dict[threading.Event, str] = {}

    @contextmanager
    def watched(self, session: str) -> Iterator[threading.Event]:
        """An event that `stop(session)` sets."""
        event = threading.Event()
        self._runs[event] = session
        try:
            yield event
        finally:
            del self._runs[event]

    def stop(self, session: str) -> bool:
        """Has all runs of this session end within a step. False if there are none."""
        events = [event for event, owner in self._runs.copy().items() if owner == session]
        for event in events:
            event.set()
        return bool(events)


class Service:
    """A pipeline for many visitors, whose runs wait until it is warmed up.

    Attributes:
        pipe: the pipeline. folder: of the checkpoint, None if it came from elsewhere.
        name: of the checkpoint, for the page. size_mb: of its weights on disk, None if unknown.
        stops: ends runs; may be shared by several services.
        taught: which of its modalities were taught by a part of the data only, see `read_taught`.

    Args:
        warm: whether to warm up before anything else; otherwise `warm_up` is to be called.
    """

    def __init__(
        self,
        pipe: Any,
        name: str,
        size_mb: float | None = None,
        folder: Path | None = None,
        stops: Stops | None = None,
        warm: bool = True,
    ) -> None:
        self.pipe, self.name, self.size_mb, self.folder = pipe, name, size_mb, folder
        self.stops = stops or Stops()
        self.taught = read_taught(folder)
        self.timing = Timing()
        self._made: Future[tuple[Record, Record]] = Future()  # by the warm-up
        # Wrapped here, because what a GPU process is called with must be picklable, which `self` is not.
        self._sampled = gpu(lambda request, *_: 10 + self.timing.estimate(request))(self._sample)
        if warm:
            with ThreadPoolExecutor(1) as worker:  # like real runs; the main thread differs in speed
                worker.submit(self.warm_up).result()
            self._made.result()

    @classmethod
    def from_checkpoint(
        cls,
        folder: str | Path,
        device: str = "auto",
        stops: Stops | None = None,
        warm: bool = True,
        precision: str = "auto",
    ) -> Service:
        """Loads the checkpoint in `folder`. Raises ValueError or OSError if that is not possible."""
        folder = Path(folder).resolve()
        size = sum(file.stat().st_size for file in weights_files(folder) if file.is_file()) / 1e6 or None
        at_startup = "cpu" if ON_ZERO_GPU else device  # ZeroGPU lends its GPU to visitors only
        pipe = _loaded(folder, at_startup, precision)
        service = cls(pipe, folder.name, size, folder, stops, warm or ON_ZERO_GPU)
        if ON_ZERO_GPU:
            service.pipe = _loaded(folder, "cuda", precision)
        return service

    @property
    def ready(self) -> bool:
        """Whether the warm-up is over."""
        return self._made.done()

    @property
    def error(self) -> BaseException | None:
        """What broke the warm-up, and meets all visitors; None if nothing did. Waits for the warm-up."""
        return self._made.exception()

    @property
    def example(self) -> Record:
        """The record of a run with nothing given, to look at before the first; waits for the warm-up."""
        return self._made.result()[0]

    @property
    def filled(self) -> Record:
        """The record of filling a hole in the example's picture; waits for the warm-up."""
        return self._made.result()[1]

    def warm_up(self) -> None:
        """Loads what is loaded late and makes the first runs, which are slower; errors meet the visitors."""
        if self.ready:
            return
        try:
            self._made.set_result(self._first_runs())
        except Exception as error:
            self._made.set_exception(error)

    def _first_runs(self) -> tuple[Record, Record]:
        """`example` and `filled`; before that something short that touches all code and memory."""
        wanted = tuple(self.modalities)
        self.pipe.compile()
        self._first_run(Request(wanted=wanted, steps=2))
        self.timing = Timing()
        how = {"steps": EXAMPLE_STEPS, "sampler": "dpmpp_2m"}
        example = self._first_run(Request(wanted=wanted, **from_nothing(self.modalities), **how))
        photo = picture_of(example.last, self.modalities[ANCHOR], 0)
        filled = self._first_run(Request({ANCHOR: photo}, wanted, middle_known(photo.width), **how))
        for name, spec in self.modalities.items():
            example.said(spec, example.last.x[name])  # loads the embedder, and embeds all words once
        return example, filled

    def _first_run(self, request: Request) -> Record:
        """Not by `stream`, which waits for the warm-up; ZeroGPU lends its GPU to visitors only."""
        record = self.record(request)
        for event in self._sample(record.request):
            if not isinstance(event, Waiting):
                record.add(event() if callable(event) else event)
        self.timing.learn(record.request, record.seconds / record.last.index)
        return record

    @property
    def modalities(self) -> Mapping[str, Modality]:
        """name -> spec, the image first."""
        return self.pipe.modalities

    @property
    def device(self) -> str:
        """Where the model runs, in words for the page."""
        device = self.pipe.device
        if device.type == "cuda":
            return f"GPU ({torch.cuda.get_device_name(device)})"
        return "CPU" if device.type == "cpu" else f"GPU ({device.type})"

    def record(self, request: Request) -> Record:
        """An empty record of a run. Raises ValueError for a request that cannot be run."""
        request = request.checked(self.modalities, self.pipe.schedule.num_steps, LIMITS)
        modalities = {n: spec for n, spec in self.modalities.items() if n in request.shown}
        return Record(request, self.name, modalities, self.describe, self.taught)

    def run(self, request: Request, owner: str = "") -> Record:
        """The record of a whole run for a visitor, see `stream`. Raises ValueError if it cannot be run."""
        record = self.record(request)
        for _ in self.stream(record, owner=owner):
            pass
        record.complete()
        return record

    def stream(self, record: Record, session: str = "", owner: str = "") -> Iterator[Waiting | Frame]:
        """Runs what the record asks for, and adds each step to it before it yields the frame.

        Where a network decodes pictures, it has most work to do, so not all steps of a quick run are decoded
        at once: the record completes those between when somebody asks for them.

        `session` is the name by which `stop` finds this run, `owner` the visitor whose other runs it gives
        way with to those of others. Closing the generator ends the run, too.

        Raises:
            ValueError: for values that the model does not take, and if too many are waiting already.
        """
        engine = self.pipe.engine
        engine.max_queue, engine.max_queue_of_one = MAX_WAITING, MAX_WAITING_OF_ONE
        engine.check_queue(owner)
        with self.stops.watched(session) as stop:
            while not self.ready:
                yield Waiting(0)
                if stop.is_set():
                    return
                wait_for([self._made], PATIENCE)
            self._made.result()
            yield from self._events(record, stop, owner)

    def _events(self, record: Record, stop: threading.Event, owner: str) -> Iterator[Waiting | Frame]:
        with closing(self._sampled(record.request, owner, record.noisy)) as events:
            for event in events:
                stopped = stop.is_set()
                if callable(event):
                    if not stopped:
                        record.between.append(event)
                        continue
                    event = event()  # the last step that there will be
                if not isinstance(event, Waiting):
                    event = record.add(event)
                    if record.finished:
                        self.timing.learn(record.request, record.seconds / event.index)
                elif stopped:
                    return
                yield event
                if stopped:
                    return

    @property
    def postpones(self) -> bool:
        """Whether steps that come too soon to be seen are decoded later, where that takes a network."""
        return self.modalities[ANCHOR].frozen_encoder and not ON_ZERO_GPU

    def _sample(
        self, request: Request, owner: str = "", noisy: bool = False
    ) -> Iterator[Waiting | Step | Later]:
        """Everything that happens in a run, in the process that has the accelerator.

        The states z_t are decoded only for those who look at them.
        """
        seen_at = -math.inf
        with closing(self.pipe.start(request, LIMITS)) as steps:
            steps.owner = owner
            while place := steps.wait(PATIENCE):
                yield Waiting(place)
            for step in steps:
                soon = time.monotonic() - seen_at < PREVIEW_SECONDS and step.index < step.total
                if soon and self.postpones:
                    yield partial(self._looked_at, step, noisy)
                else:
                    yield self._looked_at(step, noisy)
                    seen_at = time.monotonic()

    def _looked_at(self, step: Step, noisy: bool) -> Step:
        """The step with its pictures computed; nothing else goes to the other process."""

        def values() -> tuple[dict[str, Any], dict[str, Any]]:
            return dict(step.x_hat), dict(step.noisy) if noisy else {}

        network = noisy or self.modalities[ANCHOR].frozen_encoder
        # in one call, as each waits for a step of all runs
        x_hat, seen = self.pipe.engine.call(values) if network else values()
        return replace(step, x_hat=x_hat, noisy=seen, z=None, output=None)

    def stop(self, session: str) -> bool:
        """Ends the runs of this session within a step, keeping what there is. False if there are none."""
        return self.stops.stop(session)

    def describe(self, vectors: np.ndarray) -> list[Description]:
        """Embeddings (B, D) in words; none if the model has no words for them."""
        return self.pipe.describe(vectors) if self.pipe.can_describe else []

    @property
    def example_text(self) -> str:
        """The commonest thing that training captions say, to try; "" if the model has no words."""
        captions = self.pipe.words.vocabulary.captions if self.pipe.can_describe else [""]
        return next(iter(captions)).removeprefix("a photo of ")


def _loaded(folder: Path, device: str, precision: str) -> Pipeline:
    """The pipeline, loaded in a thread that ends, so that its OpenMP threads do not stand in the way."""
    with ThreadPoolExecutor(1) as worker:
        return worker.submit(Pipeline.from_pretrained, folder, device, True, precision).result()


def middle_known(size: int) -> np.ndarray:
    """Known pixels (size, size) bool: all but a box in the middle."""
    known = np.ones((size, size), dtype=bool)
    known[size // 4 : size // 2 + size // 8, size // 3 : size - size // 4] = False
    return known
