"""Where runs are watched: a line on how it goes, the player, and what one can do next with what is shown."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import gradio as gr

from app import wording as views
from app.controls.compare import Compare
from app.controls.form import Form
from app.controls.inputs import QUIET
from app.errors import explain
from app.export.download import TakeHome, check_kept
from app.run.job import Job
from app.run.player_data import Player, Track
from app.run.service import Preview, Service, Waiting
from app.tabs.tasks import Task
from app.theme import html
from mmdiff.pipeline import Change

MAX_RUNS = 40  # that may be in line at the same time; the service says no before that
REPEATED = 3  # frames that a message repeats, as the browser may skip messages

# On a narrow page the stage is below the controls.
REVEAL = """() => { const stage = document.getElementById('%s-stage');
  if (stage && window.innerWidth < 900) stage.scrollIntoView({block: 'start'}); }"""
# The scrubber is the browser's own; the server is told where it stands, and in which run, when a fork begins.
ON_STAGE = """(step, run, ...others) => {
  const player = document.querySelector('#%s-player .player');
  const first = player?.querySelector('[data-run]');
  return [Number(player?.dataset.step ?? 0), first?.dataset.run ?? '', ...others];
}"""

Updates = dict[Any, Any]
_ids = count(1)


@dataclass
class Live:
    """A run that goes on: where, its track, and the last that was heard of it."""

    service: Service
    track: Track
    event: Waiting | Preview | None = None

    @property
    def record(self) -> Any:
        return self.track.record

    @property
    def over(self) -> bool:
        return isinstance(self.event, Preview) and self.event.last

    def narrow(self, names: Collection[str]) -> None:
        """Shows only these modalities; the job stays as it is."""
        modalities = self.record.modalities
        self.record.modalities = {name: spec for name, spec in modalities.items() if name in names}

    def hear(self, event: Waiting | Preview) -> None:
        """Keeps what a preview shows."""
        self.event = event
        if isinstance(event, Preview):
            self.record.add(event.index, event.t, event.x_hat)
            self.record.seconds, self.record.stopped = event.seconds, event.stopped


class Stage:
    """The stage of one task; `services` are all models there are, this page's first."""

    def __init__(self, task: Task, services: Sequence[Service]) -> None:
        self._task, self._service = task, services[0]
        self._services = {service.name: service for service in services}

    def buttons(self) -> None:
        """Run and Stop, made in the current context."""
        name = self._task.name
        with gr.Row(elem_classes="run-row"):
            self.run = gr.Button("Run", variant="primary", scale=3, min_width=140, elem_id=f"{name}-run")
            self.halt = gr.Button(
                "Stop", variant="stop", scale=1, min_width=90, interactive=False, elem_id=f"{name}-stop"
            )

    def view(self) -> None:
        """The player and what belongs to it; shows the example from the warm-up until something is run."""
        name = self._task.name
        self._opening = [self._example()]
        # Kept while the page is open: a time to live would count from the end of the run, however long the
        # visitor looks at it. Gradio itself forgets what belongs to closed pages.
        self.shown = gr.State(None)
        self.step = gr.Number(0, visible=False, precision=0)
        with gr.Column(elem_classes="stage", elem_id=f"{name}-stage"):
            text = "An example, made while the app was starting. Choose what to give and press <b>Run</b>."
            self.status = html(views.status(text), elem_id=f"{name}-status", elem_classes="status-line")
            self.player = Player(f"{name}-player")
            self.player.component.value = self.player.value(self._opening)
            with gr.Row(elem_classes="next"):
                self.fork = gr.Button("Fork from this step", size="sm", scale=0, elem_id=f"{name}-fork")
                html(
                    "<p class='hint'>Move the scrubber to a step, change what is given, and denoise "
                    "again from there. Both branches stay.</p>"
                )
            self.take_home = TakeHome(self._task, self.shown, self._opening)

    def connect(self, form: Form, compare: Compare) -> None:
        """Wires all of it to the controls."""
        self._form = form
        self.outputs = [
            self.status,
            self.player.component,
            self.run,
            self.halt,
            self.fork,
            compare.button,
            form.settings.seed,
            form.settings.keep,
            form.settings.estimate,
            self.shown,
            *self.take_home.outputs,
        ]
        every = form.settings.every
        self._on(self.run.click, self.run_form, [every, *form.components])
        inputs = [self.step, self.take_home.run, self.shown, every, *form.components]
        self._on(self.fork.click, self._fork, inputs, js=ON_STAGE % self._task.name)
        self._compare = compare
        self._on(compare.button.click, self._run_both, [every, *compare.components, *form.components])
        self.halt.click(self._stop, None, [self.status, self.halt], queue=False, **QUIET)

    def _on(self, trigger: Callable, start: Callable, inputs: list, **options: Any) -> None:
        self.after(trigger, inputs, start, **options)
        trigger(None, js=REVEAL % self._task.name, **QUIET)

    def after(self, trigger: Callable, inputs: list, start: Callable, **options: Any) -> None:
        """Has `start(*inputs)`, one of the methods below, run on the trigger of an event."""
        runs = {"concurrency_limit": MAX_RUNS, "concurrency_id": "runs"}
        trigger(self._guarded(start), inputs, self.outputs, **runs, **options, **QUIET)

    def _guarded(self, start: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        """`start`, with whatever goes wrong said on the page; the server goes on."""

        def run(request: gr.Request, *values: Any) -> Iterator[Updates]:
            try:
                yield from start(request, *values)
            except Exception as error:
                problem = explain(error)
                yield self._ended(views.status(problem.message, kind="problem"))
                raise problem from None

        return run

    # -- what can be started ---------------------------------------------------------------------------

    def run_form(self, request: gr.Request, every: int, *form: Any) -> Iterator[Updates]:
        """What the form says."""
        yield from self._start(request, [self._live(self._service, self._form.read(*form))], every)

    def _run_both(self, request: gr.Request, every: int, *values: Any) -> Iterator[Updates]:
        """The form's job, and the same with what `Compare` says, from the same seed."""
        own, form = self._compare.split(values)
        job = self._form.read(*form)
        other, checkpoint = self._compare.read(job, *own)
        service = self._services[checkpoint]
        title, other_title = self._compare.titles(job, self._service.name, other, checkpoint)
        runs = [self._live(self._service, job, title), self._live(service, other, other_title)]
        yield from self._start(request, runs, every)

    def _fork(
        self, request: gr.Request, step: int, run: str, shown: list[Track] | None, every: int, *form: Any
    ) -> Iterator[Updates]:
        """The run that is shown, with the form's conditions from after `step` on, beside it.

        `run` is its id as the page has it, "" if the page does not say.
        """
        shown = shown or self._opening
        check_kept(run, shown)
        base = shown[0].record
        if not 1 <= step < base.job.steps:
            raise ValueError(
                f"After step {step} of {base.job.steps} nothing is left to denoise. Move the scrubber to an "
                "earlier step, then fork."
            )
        now = self._form.read(*form)
        change = Change(step, now.given, now.wanted, now.known_pixels, now.guidance_scale)
        earlier = tuple(c for c in base.job.changes if c.after < step)
        job = replace(base.job, changes=(*earlier, change))
        original = replace(shown[0], title="Before the fork", since=0)
        branch = self._live(self._services[base.checkpoint], job, f"Fork after step {step}", step)
        branch.narrow((*base.modalities, *now.given, *now.wanted))
        yield from self._start(request, [branch], every, [original])

    def replay(self, request: gr.Request, job: Job) -> Iterator[Updates]:
        """Exactly this job, as a settings file or a link says."""
        yield from self._start(request, [self._live(self._service, job)], 1)

    # -- a run, or two ---------------------------------------------------------------------------------

    def _start(
        self, request: gr.Request, runs: list[Live], every: int, beside: Sequence[Track] = ()
    ) -> Iterator[Updates]:
        """Runs all of them at once, one step each in turn, with finished tracks beside them.

        Whatever ends it, the stage, `shown` and what can be taken home are of the same runs afterwards.
        """
        key = f"{request.session_hash}/{self._task.name}"
        self._service.stop(key)
        yield self._busy(views.status("Starting …", 0.0, "busy"))
        news = {self._form.settings.seed: runs[0].record.job.seed}  # once all of them have begun
        try:
            for updates in self._watched(_in_turn(runs, key), runs, every, beside):
                yield updates | news
                news = {}
        except Exception:
            if kept := self._kept(runs, beside, request):
                yield kept
            raise
        yield self._result(runs, beside, request)

    def _watched(
        self, heard: Iterator[Live], runs: list[Live], every: int, beside: Sequence[Track]
    ) -> Iterator[Updates]:
        """What the page shows while the runs go on."""
        sent = False
        for live in heard:
            if isinstance(live.event, Waiting):
                yield self._busy(views.status(_waiting(live.event), kind="busy"))
                continue
            steps = len(live.record.frames)
            due = steps == 1 or steps % every == 0 or live.over
            if due and not all(run.over for run in runs):
                since = max(0, min(len(run.record.frames) for run in runs) - every - REPEATED)
                tracks = [*beside, *(replace(run.track, since=since) for run in runs)]
                if sent:  # tracks beside, too
                    tracks[: len(beside)] = [replace(t, since=t.record.job.steps) for t in beside]
                sent = True
                yield self._busy(_progress(runs)) | {self.player.component: self.player.value(tracks)}

    def _result(self, runs: list[Live], beside: Sequence[Track], request: gr.Request) -> Updates:
        kept = self._kept(runs, beside, request)
        if not kept:
            return self._ended(views.status("Stopped before it began."))
        return self._ended(_summary(_begun(runs))) | kept

    def _kept(self, runs: list[Live], beside: Sequence[Track], request: gr.Request) -> Updates:
        """Puts on the stage, for good, what there is of these runs; nothing if none has begun."""
        begun = _begun(runs)
        if not begun:
            return {}
        for run in begun:
            run.record.stopped = run.record.stopped or not run.over
        tracks = [*beside, *(replace(run.track, running=False) for run in begun)]
        estimate = self._form.settings.estimate
        return {
            self.player.component: self.player.value(tracks),
            self.shown: tracks,
            estimate: self._form.settings.estimate_of(begun[0].record.job),
        } | self.take_home.update(tracks, request)

    def _live(self, service: Service, job: Job, title: str = "", fork_step: int | None = None) -> Live:
        record = service.record(job)
        return Live(
            service,
            Track(f"run{next(_ids)}", title, record, service.describe, running=True, fork_step=fork_step),
        )

    def _example(self) -> Track:
        """A record of the warm-up, of which is shown what has to do with the task.

        Its job is the whole one: less wanted would make other pictures.
        """
        record = self._service.filled if self._task.fixed else self._service.example
        # The first and every other from the last on: they travel with the page.
        some = [f for f in record.frames if f.index == 1 or (record.last.index - f.index) % 2 == 0]
        modalities = self._task.modalities(self._service.modalities)
        own = replace(record, modalities=modalities, frames=some)
        return Track(f"run{next(_ids)}", "", own, self._service.describe)

    def _stop(self, request: gr.Request) -> Updates:
        if self._service.stop(f"{request.session_hash}/{self._task.name}"):
            return {self.status: views.status("Stopping after this step …", kind="busy")}
        return {self.halt: gr.update(interactive=False)}

    def _busy(self, status: str) -> Updates:
        return {
            self.status: status,
            self.run: gr.update(interactive=False, value="Running …"),
            self.halt: gr.update(interactive=True),
            self.fork: gr.update(interactive=False),
            self._compare.button: gr.update(interactive=False),
        }

    def _ended(self, status: str) -> Updates:
        return {
            self.status: status,
            self.run: gr.update(interactive=True, value="Run"),
            self.halt: gr.update(interactive=False),
            self.fork: gr.update(interactive=True),
            self._compare.button: gr.update(interactive=True),
        }


def _in_turn(runs: list[Live], session: str) -> Iterator[Live]:
    """Every run whenever something is heard of it, one of each in turn, until all are over.

    All are heard before the first is handed out, so one that cannot begin is known of in time.
    """
    several = len({run.service.name for run in runs}) > 1
    with ExitStack() as stack:
        streams = [stack.enter_context(closing(run.service.stream(run.record.job, session))) for run in runs]
        going = list(zip(runs, streams, strict=True))
        while going:
            events = [_next(stream, run.service.name if several else "") for run, stream in going]
            heard = [(pair, event) for pair, event in zip(going, events, strict=True) if event is not None]
            for (run, _), event in heard:
                run.hear(event)
            yield from (run for (run, _), _ in heard)
            going = [pair for pair, _ in heard]


def _next(stream: Iterator[Waiting | Preview], checkpoint: str) -> Waiting | Preview | None:
    """What comes next, None at the end. A ValueError says of which checkpoint it is, if one is named."""
    try:
        return next(stream, None)
    except ValueError as error:
        raise ValueError(f"Checkpoint “{checkpoint}”: {error}" if checkpoint else str(error)) from error


def _begun(runs: Sequence[Live]) -> list[Live]:
    return [run for run in runs if run.record.frames]


def _waiting(event: Waiting) -> str:
    if event.place == 1:
        return "All places are taken. Yours is the next run to start."
    return f"All places are taken. {event.place - 1} are before you; yours starts by itself."


def _progress(runs: Sequence[Live]) -> str:
    heard = [run.event for run in runs if isinstance(run.event, Preview)]
    slowest = max(heard, key=lambda event: event.seconds_left)
    text = f"Step <b>{slowest.index}</b> of {slowest.total} · {views.duration(slowest.seconds_left)} left"
    share = sum(event.index for event in heard) / sum(run.record.job.steps for run in runs)
    return views.status(text, share, "busy")


def _summary(runs: Sequence[Live]) -> str:
    events = [run.event for run in runs if isinstance(run.event, Preview)]
    job, event = runs[0].record.job, max(events, key=lambda event: event.seconds)
    if any(e.stopped for e in events):
        text = f"<b>Stopped</b> at step {event.index} of {event.total}. Below is what was predicted by then"
    else:
        counts = list(dict.fromkeys(str(run.record.job.steps) for run in runs))
        steps = views.steps(event.total) if len(counts) == 1 else f"{views.listed(counts)} steps"
        text = f"<b>Done</b> in {views.duration(event.seconds)} · {steps}"
    share = sum(e.index for e in events) / sum(e.total for e in events)
    return views.status(f"{text} · seed {job.seed} · {job.sampler}", share)
