"""Runs and what there is to see of them: a status line, the player, forks, comparisons and downloads."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import gradio as gr

from app.controls.compare import Compare
from app.controls.form import Form
from app.controls.inputs import QUIET
from app.errors import explain
from app.export.download import Downloads, check_kept
from app.run.history import Frame, Track
from app.run.player_data import Player
from app.run.service import Service, Waiting
from app.task import Task
from app.theme import html
from app.wording import duration, listed, status, steps_of
from mmdiff.request import Change, Request

MAX_RUNS = 40  # that may be in line at the same time; the service refuses more before that
REPEATED = 3  # frames that a message repeats, as the browser may skip messages

# On a narrow page the panel is below the controls.
REVEAL = """() => { const panel = document.getElementById('%s-run-panel');
  if (panel && window.innerWidth < 900) panel.scrollIntoView({block: 'start'}); }"""
# The server does not know where the scrubber is, and in which run, until a fork begins.
STEP_SHOWN = """(step, run, ...others) => {
  const player = document.querySelector('#%s-player .player');
  const first = player?.querySelector('[data-run]');
  return [Number(player?.dataset.step ?? 0), first?.dataset.run ?? '', ...others];
}"""

Updates = dict[Any, Any]
Events = Iterator[tuple[Track, Waiting | Frame]]
_ids = count(1)


class RunPanel:
    """The runs of a task, whose controls are `form`; `services` are all models, this page's first."""

    def __init__(self, task: Task, services: Sequence[Service]) -> None:
        self.task, self._service = task, services[0]
        self._services = {service.name: service for service in services}

    def buttons(self) -> None:
        """Run and Stop, made in the current context."""
        name = self.task.name
        with gr.Row(elem_classes="run-row"):
            self.run = gr.Button("Run", variant="primary", scale=3, min_width=140, elem_id=f"{name}-run")
            looks = {"variant": "stop", "scale": 1, "min_width": 90, "elem_id": f"{name}-stop"}
            self.halt = gr.Button("Stop", interactive=False, **looks)

    def view(self) -> None:
        """The player and what belongs to it; shows the example from the warm-up until the first run."""
        name = self.task.name
        self._opening = [self._example()]
        # Kept while the page is open: a time to live would count from the end of the run, however long the
        # visitor looks at it. Gradio itself forgets what belongs to closed pages.
        self.shown = gr.State(None)
        self.step = gr.Number(0, visible=False, precision=0)
        with gr.Column(elem_classes="run-panel", elem_id=f"{name}-run-panel"):
            text = "An example, made while the app was starting. Choose what to give and press <b>Run</b>."
            self.status = html(status(text), elem_id=f"{name}-status", elem_classes="status-line")
            self.player = Player(f"{name}-player")
            self.player.component.value = self.player.value(self._opening)
            with gr.Row(elem_classes="next"):
                self.fork = gr.Button("Fork from this step", size="sm", scale=0, elem_id=f"{name}-fork")
                html(
                    "<p class='hint'>Move the scrubber to a step, change what is given, and denoise "
                    "again from there. Both branches stay.</p>"
                )
            self.downloads = Downloads(self.task, self.shown, self._opening)

    def connect(self, form: Form, compare: Compare) -> None:
        """Wires all of it to the controls."""
        self.form, self._compare, sampling = form, compare, form.sampling
        buttons = [self.run, self.halt, self.fork, compare.button]
        self.outputs = [self.status, self.player.component, *buttons, sampling.seed, sampling.estimate]
        self.outputs += [self.shown, *self.downloads.outputs]
        every = sampling.every
        self._on(self.run.click, self.run_form, [every, *form.components])
        inputs = [self.step, self.downloads.run, self.shown, every, *form.components]
        self._on(self.fork.click, self._fork, inputs, js=STEP_SHOWN % self.task.name)
        self._on(compare.button.click, self._run_both, [every, *compare.components, *form.components])
        self.halt.click(self._stop, None, [self.status, self.halt], queue=False, **QUIET)

    def _on(self, trigger: Callable, start: Callable, inputs: list, **options: Any) -> None:
        self.after(trigger, inputs, start, **options)
        trigger(None, js=REVEAL % self.task.name, **QUIET)

    def after(self, trigger: Callable, inputs: list, start: Callable, **options: Any) -> None:
        """Runs `start(*inputs)`, one of the methods below, on the trigger of an event."""
        runs = {"concurrency_limit": MAX_RUNS, "concurrency_id": "runs"}
        trigger(self._guarded(start), inputs, self.outputs, **runs, **options, **QUIET)

    def _guarded(self, start: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        """`start`, with errors shown on the page; the server goes on."""

        def run(visitor: gr.Request, *values: Any) -> Iterator[Updates]:
            try:
                yield from start(visitor, *values)
            except Exception as error:
                problem = explain(error)
                yield self._going(status(problem.message, kind="problem"), False)
                raise problem from None

        return run

    def run_form(self, visitor: gr.Request, every: int, *form: Any) -> Iterator[Updates]:
        """Runs what the form says."""
        yield from self._start(visitor, [self._track(self._service, self.form.read(*form))], every)

    def _run_both(self, visitor: gr.Request, every: int, *values: Any) -> Iterator[Updates]:
        """Runs what the form says and, from the same seed, the same with what `Compare` says."""
        count = len(self._compare.components)
        request = self.form.read(*values[count:])
        other, checkpoint = self._compare.read(request, *values[:count])
        name = self._service.name
        titles = self._compare.titles(request, name, other, checkpoint)
        runs = []
        for key, asked, title in zip((name, checkpoint), (request, other), titles, strict=True):
            with _errors_of(key if checkpoint != name else ""):
                runs.append(self._track(self._services[key], asked, title))
        yield from self._start(visitor, runs, every)

    def _fork(
        self, visitor: gr.Request, step: int, run: str, shown: list[Track] | None, every: int, *form: Any
    ) -> Iterator[Updates]:
        """The run that is shown and, beside it, the same with the form's conditions from after `step` on.

        `run` is its id as the page has it, "" if the page does not say.
        """
        shown = shown or self._opening
        check_kept(run, shown)
        base = shown[0].record
        if not 1 <= step < base.request.steps:
            raise ValueError(
                f"After step {step} of {base.request.steps} nothing is left to denoise. Move the scrubber to "
                "an earlier step, then fork."
            )
        now = self.form.read(*form)
        earlier = tuple(change for change in base.request.changes if change.after < step)
        request = replace(base.request, changes=(*earlier, Change(step, now)))
        original = replace(shown[0], title="Before the fork", since=0)
        branch = self._track(self._services[base.checkpoint], request, f"Fork after step {step}", step)
        seen = {*base.modalities, *now.given, *now.wanted}  # an example may show less than it has
        branch.record.modalities = {n: spec for n, spec in branch.record.modalities.items() if n in seen}
        yield from self._start(visitor, [branch], every, [original])

    def replay(self, visitor: gr.Request, task: str, request: Request | None) -> Iterator[Updates]:
        """Runs exactly this request, as a settings file or a link says, if it is one of this task."""
        if task == self.task.name and request is not None:
            yield from self._start(visitor, [self._track(self._service, request)], 1)
        else:
            yield {self.status: gr.skip()}

    def _start(
        self, visitor: gr.Request, runs: list[Track], every: int, beside: Sequence[Track] = ()
    ) -> Iterator[Updates]:
        """Runs all of them at once, one step each in turn, with finished tracks beside them.

        Whatever ends it: player, `shown` and downloads are of the same runs afterwards.
        """
        key = f"{visitor.session_hash}/{self.task.name}"
        self._service.stop(key)
        yield self._going(status("Starting …", 0.0, "busy"))
        begun = False  # whether all of them have
        try:
            for updates in self._watched(self._in_turn(runs, key), runs, every, beside):
                yield updates if begun else updates | {self.form.sampling.seed: runs[0].record.request.seed}
                begun = True
        except Exception:
            if begun and (kept := self._kept(runs, beside, visitor)):
                yield kept
            raise
        kept = self._kept(runs, beside, visitor)
        text = _summary(_begun(runs)) if kept else status("Stopped before it began.")
        yield self._going(text, False) | kept

    @property
    def service(self) -> Service:
        """The model of this page."""
        return self._service

    def key(self, visitor: gr.Request) -> str:
        """By which `Service.stop` finds the runs of this tab."""
        return f"{visitor.session_hash}/{self.task.name}"

    def track(self, request: Request) -> Track:
        """A new run of this page's model."""
        return self._track(self._service, request)

    def start(self, visitor: gr.Request, run: Track, every: int) -> Iterator[Updates]:
        """Runs it, with a message for every so many steps, see `_start`."""
        yield from self._start(visitor, [run], every)

    def _in_turn(self, runs: list[Track], session: str) -> Events:
        """Each run with its next event, one of each in turn, until all are over.

        One event of each is there before the first is handed out, so that a run that cannot begin ends all
        of them in time.
        """
        several = len({run.record.checkpoint for run in runs}) > 1
        with ExitStack() as stack:
            streams = [self._services[run.record.checkpoint].stream(run.record, session) for run in runs]
            for stream in streams:
                stack.enter_context(closing(stream))
            going = list(zip(runs, streams, strict=True))
            while going:
                turns = []
                for run, stream in going:
                    with _errors_of(run.record.checkpoint if several else ""):
                        turns.append((run, stream, next(stream, None)))
                going = [(run, stream) for run, stream, event in turns if event is not None]
                yield from ((run, event) for run, _, event in turns if event is not None)

    def _watched(
        self, events: Events, runs: list[Track], every: int, beside: Sequence[Track]
    ) -> Iterator[Updates]:
        """What the page shows while the runs go on."""
        sent = False
        for run, event in events:
            if isinstance(event, Waiting):
                yield self._going(status(_waiting(event), kind="busy"))
                continue
            due = event.index == 1 or event.index % every == 0 or run.record.finished
            if due and not all(run.record.finished for run in runs):
                since = max(0, min(len(run.record.frames) for run in runs) - every - REPEATED)
                tracks = [*beside, *(replace(run, since=since) for run in runs)]
                if sent:  # tracks beside, too
                    tracks[: len(beside)] = [replace(t, since=t.record.request.steps) for t in beside]
                sent = True
                shown = {self.player.component: self.player.value(tracks)}
                yield self._going(_progress(_begun(runs))) | shown

    def _kept(self, runs: list[Track], beside: Sequence[Track], visitor: gr.Request) -> Updates:
        """Shows for good the steps that there are of these runs; nothing if none has begun."""
        begun = _begun(runs)
        if not begun:
            return {}
        tracks = [*beside, *(replace(run, running=False) for run in begun)]
        sampling = self.form.sampling
        return {
            self.player.component: self.player.value(tracks),
            self.shown: tracks,
            sampling.estimate: sampling.estimate_of(begun[0].record.request),
        } | self.downloads.update(tracks, visitor)

    def _track(self, service: Service, request: Request, title: str = "", fork: int | None = None) -> Track:
        return Track(f"run{next(_ids)}", title, service.record(request), running=True, fork_step=fork)

    def _example(self) -> Track:
        """The record of the warm-up, restricted to the modalities of the task.

        Its request is the whole one: with less wanted other pictures would come out.
        """
        record = self._service.filled if self.task.inpaints else self._service.example
        # The first and every fourth from the last on: they travel with the page.
        some = [f for f in record.frames if f.index == 1 or (record.last.index - f.index) % 4 == 0]
        modalities = self.task.modalities(self._service.modalities)
        return Track(f"run{next(_ids)}", "", replace(record, modalities=modalities, frames=some))

    def _stop(self, visitor: gr.Request) -> Updates:
        if self._service.stop(f"{visitor.session_hash}/{self.task.name}"):
            return {self.status: status("Stopping after this step …", kind="busy")}
        return {self.halt: gr.update(interactive=False)}

    def _going(self, text: str, going: bool = True) -> Updates:
        """The status line and the buttons while runs go on, or once they are over."""
        idle = gr.update(interactive=not going)
        return {
            self.status: text,
            self.run: gr.update(interactive=not going, value="Running …" if going else "Run"),
            self.halt: gr.update(interactive=going),
            self.fork: idle,
            self._compare.button: idle,
        }


@contextmanager
def _errors_of(checkpoint: str) -> Iterator[None]:
    """A ValueError inside says of which checkpoint it is, if one is named."""
    try:
        yield
    except ValueError as error:
        if not checkpoint:
            raise
        raise ValueError(f"Checkpoint “{checkpoint}”: {error}") from error


def _begun(runs: Sequence[Track]) -> list[Track]:
    return [run for run in runs if run.record.frames]


def _waiting(event: Waiting) -> str:
    before = f"{event.place - 1} are before you; yours starts by itself."
    return f"All places are taken. {before if event.place > 1 else 'Yours is the next run to start.'}"


def _progress(begun: Sequence[Track]) -> str:
    """How far the slowest run is."""
    slowest = max((run.record for run in begun), key=lambda record: record.seconds_left)
    text = f"Step <b>{slowest.last.index}</b> of {slowest.request.steps} · "
    return status(f"{text}{duration(slowest.seconds_left)} left", _share(begun), "busy")


def _summary(begun: Sequence[Track]) -> str:
    """How all of them ended."""
    record = max((run.record for run in begun), key=lambda record: record.seconds)
    request = begun[0].record.request
    if not all(run.record.finished for run in begun):
        at = f"at step {record.last.index} of {record.request.steps}"
        text = f"<b>Stopped</b> {at}. Below is what was predicted by then"
    else:
        counts = list(dict.fromkeys(str(run.record.request.steps) for run in begun))
        steps = steps_of(record.request.steps) if len(counts) == 1 else f"{listed(counts)} steps"
        text = f"<b>Done</b> in {duration(record.seconds)} · {steps}"
    return status(f"{text} · seed {request.seed} · {request.sampler}", _share(begun))


def _share(begun: Sequence[Track]) -> float:
    """The part of all steps of these runs that is done."""
    return sum(run.record.last.index for run in begun) / sum(run.record.request.steps for run in begun)
