"""Runs and what there is to see of them: a status line, the player, branches, comparisons and downloads."""

import json
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import count
from typing import Any

import gradio as gr

from app.controls.compare import Compare
from app.controls.form import Form
from app.controls.inputs import QUIET
from app.errors import explain
from app.export import settings_file
from app.export.download import Downloads, check_kept
from app.run.history import Frame, Track
from app.run.player_data import Player
from app.run.service import PREVIEW_SECONDS, Service, Waiting
from app.run.visitors import MAX_RUNS, address_of
from app.tabs.progress import progress, summary, waiting
from app.tabs.watch import NoiseSwitch, Watch, anew
from app.task import Task
from app.theme import html
from app.wording import status
from mmdiff.request import Change, Request, is_whole

# A message costs Gradio and the browser about as much as a step costs the model, so there are no more of them
# than an eye can use. Each repeats the frames of the last ones, as the browser may skip messages.
REPEATED = 2

# On a narrow page the panel is below the controls, and Run stays in sight where the panel is not. A listener
# of its own would wait until the run is over.
REVEAL = """(...values) => {
  const panel = document.getElementById('%s-run-panel');
  const top = panel?.getBoundingClientRect().top;
  const hidden = window.innerWidth <= 900 || top > 0.6 * window.innerHeight;
  if (panel && hidden) panel.scrollIntoView({block: 'start'});
  return values;
}"""
# The server does not know where the scrubber is, and in which run, until a branch begins.
STEP_SHOWN = """(every, noisy, step, run, ...others) => {
  (%s)();
  const player = document.querySelector('#%s-player .player');
  const first = player?.querySelector('[data-run]');
  return [every, noisy, Number(player?.dataset.step ?? 0), first?.dataset.run ?? '', ...others];
}"""
UNCHANGED = (
    "Nothing was changed, so both are equal. Change what you provide or create, then branch again: seed, "
    "steps and sampler stay those of the original."
)
# What a visitor has changed since may have mended it.
READY = json.dumps(status("Ready to run."))
NO_PROBLEM = f"(shown) => shown.includes('status problem') ? {READY} : shown"

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
        """The player and what belongs to it; shows the example of the warm-up until the first run."""
        name = self.task.name
        # Kept while the page is open: a time to live would count from the end of the run, however long the
        # visitor looks at it. Gradio itself forgets what belongs to closed pages.
        self.shown = gr.State(None)
        self.step = gr.Number(0, visible=False, precision=0)
        with gr.Column(elem_classes="run-panel", elem_id=f"{name}-run-panel"):
            text = status("The model is being loaded. An example follows …", kind="busy")
            self.status = html(text, elem_id=f"{name}-status", elem_classes="status-line")
            self.noise = NoiseSwitch(name)
            self.player = Player(f"{name}-player")
            with gr.Row(elem_classes="next"):
                self.fork = gr.Button("Branch from here", size="sm", scale=0, elem_id=f"{name}-fork")
                html(
                    "<p class='hint'>Move the slider to a step, change what you provide or create, and go "
                    "on from there beside the original.</p>"
                )
            looks = {"file_types": [".png"], "elem_id": f"{name}-beside", "elem_classes": "unseen"}
            self.beside = gr.UploadButton("Compare with a file", **looks)  # runs.js gives it an earlier run
            self.downloads = Downloads(self.task, self.shown, lambda: self._opening)

    @cached_property
    def _opening(self) -> list[Track]:
        return [self._example()]

    def open(self) -> list[Any]:
        """What goes to `opened` once the model is there: the example, and how long a run takes."""
        text = "An example that the model made. Choose what you provide and press <b>Run</b>."
        return [status(text), self.player.value(self._opening), self.form.sampling.first_estimate()]

    def connect(self, form: Form, compare: Compare) -> None:
        """Wires all of it to the controls."""
        self.form, self._compare, sampling = form, compare, form.sampling
        buttons = [self.run, self.halt]
        self.outputs = [self.status, self.player.component, *buttons, sampling.seed, sampling.estimate]
        self.outputs += [self.shown, *self.downloads.outputs]
        self.opened = [self.status, self.player.component, sampling.estimate]
        self.after(self.run.click, form.components, self.run_form)
        here, name = [self.step, self.downloads.run, self.shown], self.task.name
        js = STEP_SHOWN % (REVEAL % name, name)
        self.after(self.fork.click, [*here, *form.components], self._fork, js=js)
        self.after(self.noise.again.click, here, self._make_again, js=js)
        self.after(compare.button.click, [*compare.components, *form.components], self._run_both)
        self.after(self.beside.upload, [self.beside, self.shown], self._run_beside)
        self.halt.click(self._stop, None, [self.status, self.halt], queue=False, **QUIET)
        self.begins = [self.run.click, self.fork.click, compare.button.click]
        gr.on(form.changes, None, self.status, self.status, js=NO_PROBLEM, **QUIET)

    def after(self, trigger: Callable, inputs: list, start: Callable, js: str | None = REVEAL) -> None:
        """Runs `start(visitor, watch, *inputs)`, one of the methods below, on the trigger of an event.

        `js` comes before; it is given what a `Watch` has and then the inputs.
        """
        runs = {"concurrency_limit": MAX_RUNS, "concurrency_id": "runs"}
        js = js and js.replace("%s", self.task.name)
        inputs = [self.form.sampling.every, self.noise.box, *inputs]
        run = trigger(self._guarded(start), inputs, self.outputs, js=js, **runs, **QUIET)
        if self._service.postpones:  # an event of its own, as Run is not to wait for it
            run.then(self._complete, self.shown, self.player.component, **runs, **QUIET)

    def _guarded(self, start: Callable[..., Iterator[Updates]]) -> Callable[..., Iterator[Updates]]:
        """`start`, with errors shown on the page; the server goes on."""

        def run(visitor: gr.Request, every: int, noisy: bool, *values: Any) -> Iterator[Updates]:
            try:
                yield from start(visitor, Watch(every, noisy), *values)
            except Exception as error:
                yield self._going(status(explain(error).message, kind="problem"), False)

        return run

    def _complete(self, visitor: gr.Request, shown: list[Track] | None) -> Any:
        """The player with the steps that came too soon to be seen; nothing once another run has begun."""
        tracks = shown or []
        if not any(track.record.between for track in tracks):
            return gr.skip()
        seen = [frozenset(frame.index for frame in track.record.frames) for track in tracks]
        with self._service.stops.watched(self.key(visitor)) as stop:
            whole = [track.record.complete(stop) for track in tracks]
        if stop.is_set() or not all(whole):
            return gr.skip()
        return self.player.value([replace(t, sent=sent) for t, sent in zip(tracks, seen, strict=True)])

    def run_form(self, visitor: gr.Request, watch: Watch, *form: Any) -> Iterator[Updates]:
        """Runs what the form says."""
        yield from self.start(visitor, [self.track(self.form.read(*form))], watch)

    def _run_both(self, visitor: gr.Request, watch: Watch, *values: Any) -> Iterator[Updates]:
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
        yield from self.start(visitor, runs, watch)

    def _run_beside(
        self, visitor: gr.Request, watch: Watch, path: str, shown: list[Track] | None
    ) -> Iterator[Updates]:
        """The run in a picture's settings, beside the one that is shown."""
        saved = settings_file.read(path, self._service.modalities)
        if saved.checkpoint and saved.checkpoint not in self._services:
            raise ValueError(f"The run is of the checkpoint “{saved.checkpoint}”, which is not here.")
        original = replace((shown or self._opening)[0], title="Now", since=0, fork_step=None)
        service = self._services[saved.checkpoint or self._service.name]
        yield from self.start(visitor, [self._track(service, saved.request, "Earlier")], watch, [original])

    def _make_again(
        self, visitor: gr.Request, watch: Watch, step: int, run: str, shown: list[Track] | None
    ) -> Iterator[Updates]:
        """The runs that are shown once more, with their noisy states; `run` is as of `_fork`."""
        shown = shown or self._opening
        check_kept(run, shown)
        yield from self.start(visitor, anew(shown), watch)

    def _fork(
        self,
        visitor: gr.Request,
        watch: Watch,
        step: int,
        run: str,
        shown: list[Track] | None,
        *form: Any,
    ) -> Iterator[Updates]:
        """The run that is shown and, beside it, the same with the form's conditions from after `step` on.

        `run` is its id as the page has it, "" if the page does not say.
        """
        shown = shown or self._opening
        check_kept(run, shown)
        base = shown[0].record
        if not is_whole(step) or not 1 <= step < base.request.steps:
            raise ValueError(
                f"After step {step} of {base.request.steps} nothing is left to change. Move the slider to an "
                "earlier step, then branch."
            )
        now = self.form.read(*form)
        earlier = tuple(change for change in base.request.changes if change.after < step)
        request = replace(base.request, changes=(*earlier, Change(step, now)))
        original = replace(shown[0], title="Original", since=0)
        branch = self._track(self._services[base.checkpoint], request, f"Branch after step {step}", step)
        seen = {*base.modalities, *now.given, *now.wanted}  # an example may show less than it has
        branch.record.modalities = {n: spec for n, spec in branch.record.modalities.items() if n in seen}
        *_, before, after = branch.record.request.conditions
        note = UNCHANGED if settings_file.are_alike(before, after) else ""
        yield from self.start(visitor, [branch], watch, [original], note)

    def replay(
        self, visitor: gr.Request, watch: Watch, task: str, request: Request | None
    ) -> Iterator[Updates]:
        """Runs exactly this request, as a settings file or a link says, if it is one of this task."""
        if task == self.task.name and request is not None:
            yield from self.start(visitor, [self.track(request)], watch._replace(every=1))
        else:
            yield {self.status: gr.skip()}

    def start(
        self,
        visitor: gr.Request,
        runs: list[Track],
        watch: Watch,
        beside: Sequence[Track] = (),
        note: str = "",
    ) -> Iterator[Updates]:
        """Runs all of them at once, one step each in turn, with finished tracks beside them.

        `note` is said of them in the end.

        Whatever ends it: player, `shown` and downloads are of the same runs afterwards.
        """
        key, owner = self.key(visitor), address_of(visitor)
        self._service.stop(key)
        for run in runs:
            run.record.noisy = watch.noisy
        yield self._going(status("Starting …", 0.0, "busy"))
        begun = False  # whether all of them have
        try:
            for updates in self._watched(self._in_turn(runs, key, owner), runs, watch.every, beside):
                yield updates if begun else updates | {self.form.sampling.seed: runs[0].record.request.seed}
                begun = True
        except Exception:
            if begun and (kept := self._kept(runs, beside, visitor)):
                yield kept
            raise
        kept = self._kept(runs, beside, visitor)
        text = summary(_begun(runs), note) if kept else status("Stopped before it began.")
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

    def _in_turn(self, runs: list[Track], session: str, owner: str) -> Events:
        """Each run with its next event, one of each in turn, until all are over.

        One event of each is there before the first is handed out, so that a run that cannot begin ends all
        of them in time.
        """
        several = len({run.record.checkpoint for run in runs}) > 1
        with ExitStack() as stack:
            streams = [
                self._services[run.record.checkpoint].stream(run.record, session, owner) for run in runs
            ]
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
        # of each run, the last steps of the last messages
        told = {run.id: deque([0] * (REPEATED + 1), REPEATED + 1) for run in runs}
        last = -math.inf
        for run, event in events:
            if isinstance(event, Waiting):
                yield self._going(status(waiting(event), kind="busy"))
                continue
            shown = told[run.id][-1]
            due = not shown or event.index // every > shown // every or run.record.finished
            due = due and time.monotonic() - last >= PREVIEW_SECONDS
            if due and not all(run.record.finished for run in runs):
                tracks = [*beside, *(replace(run, since=told[run.id][0]) for run in runs)]
                if last > 0:  # tracks beside were sent, too
                    tracks[: len(beside)] = [replace(t, since=t.record.request.steps) for t in beside]
                yield {
                    self.status: progress(_begun(runs)),
                    self.player.component: self.player.value(tracks),
                }
                last = time.monotonic()
                for run in runs:
                    told[run.id].append(run.record.last.index if run.record.frames else 0)

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
        return Track("example", "", replace(record, modalities=modalities, frames=some))

    def _stop(self, visitor: gr.Request) -> Updates:
        if self._service.stop(self.key(visitor)):
            return {self.status: status("Stopping after this step …", kind="busy")}
        return {self.halt: gr.update(interactive=False)}

    def _going(self, text: str, going: bool = True) -> Updates:
        """The status line and the buttons while runs go on, or once they are over.

        Run is never switched off, as it would lose the focus; until it is over, the page ignores its clicks.
        """
        return {
            self.status: text,
            self.run: gr.update(value="Running …" if going else "Run"),
            self.halt: gr.update(interactive=going),
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
