"""Player, fork and downloads are of the same runs, whatever happens to them."""

import datetime
import itertools
import json
import threading
from dataclasses import replace
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
from fakes import FakePipeline
from gradio.state_holder import StateHolder

from app.controls.compare import Compare
from app.controls.form import Form
from app.export import settings_file
from app.export.link import from_query, to_query
from app.run.service import Service, Stops
from app.tabs.run_panel import RunPanel
from app.tabs.watch import Watch
from app.task import TASKS
from mmdiff.request import Request

EVERYTHING = ("image", "mask", "label", "embedding")
REQUEST = SimpleNamespace(session_hash="somebody", headers={"referer": "http://127.0.0.1:7860/"})
STEPS = 6


class NoApples(FakePipeline):
    """A model without a class that the other one has."""

    def start(self, request, limits):
        if request.given.get("label") == "Apple Red":
            raise ValueError("label: no class is called 'Apple Red'.")
        return super().start(request, limits)


class Page:
    """A tab of the page without a browser; keeps what the outputs are updated to."""

    def __init__(self, services, task="any_to_any"):
        task = next(t for t in TASKS if t.name == task)
        self.panel = RunPanel(task, services)
        with gr.Blocks() as self.demo:
            self.form = Form(services[0], task)
            self.compare = Compare(task, [service.name for service in services])
            self.panel.buttons()
            self.panel.view()
            self.panel.connect(self.form, self.compare)
        self.now = {self.panel.shown: None}
        self.sent = []  # messages to the player
        self.watch = Watch(1, False)

    def run(self, request, meanwhile=lambda: None):
        """The run of a request, to its end."""
        self._follow(
            lambda visitor: self.panel.replay(visitor, self.watch, self.panel.task.name, request), meanwhile
        )

    def run_both(self, request, meanwhile=lambda: None, **other):
        """The run of a request and of another one side by side."""
        self.form.read = lambda: request
        own = {"steps": 0, "guidance": "same", "sampler": "same", "checkpoint": "other"} | other
        self._follow(lambda visitor: self.panel._run_both(visitor, self.watch, *own.values()), meanwhile)

    def fork(self, step, run, request):
        self.form.read = lambda: request
        here = self.watch, step, run, self.now[self.panel.shown]
        self._follow(lambda visitor: self.panel._fork(visitor, *here))

    def make_again(self, run):
        here = self.watch, 1, run, self.now[self.panel.shown]
        self._follow(lambda visitor: self.panel._make_again(visitor, *here))

    def _follow(self, start, meanwhile=lambda: None):
        for updates in self.panel._guarded(lambda visitor, watch: start(visitor))(REQUEST, *self.watch):
            self.now |= updates
            if self.panel.player.component in updates:
                self.sent.append(json.loads(updates[self.panel.player.component])["tracks"])
                meanwhile()

    @property
    def status(self):
        return self.now[self.panel.status]

    @property
    def shown(self):
        return self.now[self.panel.shown]


@pytest.fixture(autouse=True)
def previews(monkeypatch):
    """A message for every step, however fast."""
    monkeypatch.setattr("app.tabs.run_panel.PREVIEW_SECONDS", 0)


@pytest.fixture(scope="module")
def orchard() -> FakePipeline:
    return FakePipeline(modalities=EVERYTHING)


@pytest.fixture
def services(orchard):
    stops = Stops()
    return Service(orchard, "orchard", stops=stops), Service(NoApples(), "other", stops=stops)


@pytest.fixture
def page(services):
    return Page(services)


def asked(label="Tomato Heart", seed=5) -> Request:
    return Request({"label": label}, ("image", "mask"), steps=STEPS, seed=seed)


def test_shown_runs_are_kept_while_the_page_is_open_and_no_longer(page):
    holder = StateHolder()
    holder.set_blocks(page.demo)
    session, key = holder["somebody"], page.panel.shown._id
    session[key] = "a run"
    time_to_live, _ = session._state_ttl[key]
    session._state_ttl[key] = time_to_live, datetime.datetime.now() - datetime.timedelta(days=1)
    holder.delete_all_expired_state()
    assert session[key] == "a run"
    session.is_closed = True
    holder.delete_all_expired_state()
    assert session[key] is None


def test_a_fork_of_a_run_that_the_server_has_forgotten_is_refused(page):
    page.run(asked())
    run = page.shown[0].id
    page.now[page.panel.shown] = None
    page.fork(3, run, asked("Cherry Wax"))
    assert len(page.sent[-1]) == 1 and "no longer has the run" in page.status


def test_a_fork_of_the_example_and_of_a_run(page):
    example = page.panel._opening[0]
    page.fork(2, example.id, asked("Cherry Wax"))
    assert page.shown[0].id == example.id and page.shown[1].fork_step == 2
    page.run(asked())
    run = page.shown[0].id
    page.fork(3, run, asked("Cherry Wax"))
    assert [track.id == run for track in page.shown] == [True, False]


def test_a_fork_without_a_change_says_that_both_are_equal(page):
    page.run(asked("Cherry Wax"))
    run = page.shown[0].id
    page.fork(3, run, asked("Cherry Wax", seed=9))
    assert "Nothing was changed, so both are equal" in page.status and "problem" not in page.status
    one, other = (track.record.last.x["image"] for track in page.shown)
    assert np.array_equal(one, other)
    page.fork(3, run, asked("Apple Red"))
    assert "Done" in page.status and "Nothing was changed" not in page.status


def test_a_comparison_that_one_checkpoint_cannot_do_changes_nothing(page):
    page.run(asked())
    before, sent = page.now.copy(), len(page.sent)
    page.run_both(asked("Apple Red", seed=9))
    assert "Checkpoint “other”: label: no class is called 'Apple Red'" in page.status
    changed = {key for key, value in page.now.items() if before.get(key) != value}
    assert len(page.sent) == sent and changed <= {page.panel.status}
    assert "Checkpoint “other”" in page.status and "problem" in page.status
    assert page.now[page.form.sampling.seed] == 5
    page.run_both(asked())  # and nothing is left in the way
    assert [track.record.checkpoint for track in page.shown] == ["orchard", "other"]


def test_two_lengths_side_by_side_are_both_said(page):
    page.run_both(asked(), steps=4, checkpoint="orchard")
    assert f"{STEPS} and 4 steps" in page.status
    page.run(asked())
    assert f"· {STEPS} steps" in page.status


def test_the_example_shows_every_fourth_step_from_its_first_to_its_last(page, services):
    shown, whole = page.panel._opening[0].record, services[0].example
    assert shown.frames[0] is whole.frames[0] and shown.last is whole.last
    assert len(shown.frames) == 1 + len(whole.frames) // 4


def test_previews_of_a_fast_run_come_seldom_and_miss_no_step(page, monkeypatch):
    page.run(asked())
    assert len(page.sent) == STEPS  # the last one with all steps
    assert [[f["i"] for f in tracks[0]["frames"]] for tracks in page.sent[1:4]] == [
        [1, 2],
        [1, 2, 3],
        [2, 3, 4],
    ]
    clock = itertools.count(step=0.03)  # between the looks at it
    monkeypatch.setattr("app.tabs.run_panel.PREVIEW_SECONDS", 0.08)
    monkeypatch.setattr("app.tabs.run_panel.time", SimpleNamespace(monotonic=lambda: next(clock)))
    page.sent.clear()
    page.run(replace(asked(), steps=30))
    live = [[frame["i"] for frame in tracks[0]["frames"]] for tracks in page.sent[:-1]]
    assert 5 < len(live) < 15 and live[0] == [1]
    assert {step for steps in live for step in steps} >= set(range(1, max(live[-1])))
    assert all(
        after[0] <= before[-1] for before, after in itertools.pairwise(live)
    )  # repeated, if one is skipped
    assert [frame["i"] for frame in page.sent[-1][0]["frames"]] == list(range(1, 31))


@pytest.fixture
def postponing(page, monkeypatch):
    """The page of a model whose pictures a network decodes, too quick for eyes."""
    monkeypatch.setattr("app.run.service.PREVIEW_SECONDS", 60.0)
    monkeypatch.setattr(page.panel.service.modalities["image"], "frozen_encoder", True, raising=False)
    return page


def test_a_run_is_done_before_the_steps_between_are_decoded(postponing):
    page = postponing
    page.run(asked())
    (done,) = page.sent[-1]
    assert "Done" in page.status and not done["running"] and done["story"] == []
    assert [frame["i"] for frame in done["frames"]] == [1, STEPS]
    (whole,) = json.loads(page.panel._complete(REQUEST, page.shown))["tracks"]
    assert [frame["i"] for frame in whole["frames"]] == list(range(2, STEPS)) and whole["id"] == done["id"]
    assert whole["story"] != []
    assert page.panel._complete(REQUEST, page.shown) == gr.skip()


def test_downloads_have_all_steps(postponing, tmp_path):
    postponing.run(asked())
    postponing.panel.downloads._write("zip", tmp_path / "run.zip", postponing.shown)
    assert len(postponing.shown[0].record.frames) == STEPS


def test_a_new_run_ends_the_decoding_of_the_last_one(postponing, monkeypatch):
    page = postponing
    page.run(asked())
    record, stop = page.shown[0].record, page.panel.service.stop
    first = record.between[0]
    record.between[0] = lambda: stop(page.panel.key(REQUEST)) and first()
    assert page.panel._complete(REQUEST, page.shown) == gr.skip()
    assert len(record.frames) == 3, "what was begun is kept"


def test_every_so_many_steps_are_shown(page):
    page._follow(lambda visitor: page.panel.start(visitor, [page.panel.track(asked())], Watch(4, False)))
    seen = [message[0]["frames"][-1]["i"] for message in page.sent if message[0]["running"]]
    assert seen == [1, 4]


def test_runs_have_noisy_states_where_they_are_watched_and_are_made_again_for_them(page, services):
    page.run_both(asked())
    plain = page.shown
    assert not any(frame.noisy for track in plain for frame in track.record.frames)
    page.watch = Watch(1, True)
    page.make_again(plain[0].id)
    assert [track.id for track in page.shown] == [track.id for track in plain]
    for before, again in zip(plain, page.shown, strict=True):
        assert before.record.request == again.record.request
        assert np.array_equal(before.record.last.x["image"], again.record.last.x["image"])
        assert all(set(frame.noisy) == {"image", "mask"} for frame in again.record.frames)
    assert page.shown[0].record.frames[0].noisy["mask"].dtype == np.uint8
    page.run(asked(seed=6))
    assert all(frame.noisy for frame in page.shown[0].record.frames)
    page.watch = Watch(1, False)
    page.run(asked(seed=6))
    assert not any(frame.noisy for frame in page.shown[0].record.frames)


def test_a_run_that_the_server_has_forgotten_is_not_made_again(page):
    page.run(asked())
    page.now[page.panel.shown] = None
    page.make_again("run-of-yesterday")
    assert "no longer has the run" in page.status


def test_no_checkpoint_is_named_where_there_is_one(page):
    page.run(Request(wanted=("image",), num_samples=99))
    assert "<p>num_samples is 99" in page.status


@pytest.mark.parametrize("broken", [0, 1])
def test_a_comparison_that_breaks_off_shows_its_steps_so_far(page, services, broken):
    def meanwhile():
        if len(page.sent) == 2:
            services[broken].pipe.broken = RuntimeError("out of memory")

    page.run_both(asked(), meanwhile)
    assert "unexpected" in page.status
    services[broken].pipe.broken = None
    last = page.sent[-1]
    assert [track["id"] for track in last] == [track.id for track in page.shown]
    assert not any(track["running"] for track in last) and all(track["stopped"] for track in last)
    assert all(0 < len(track.record.frames) < STEPS for track in page.shown)
    assert "problem" in page.status and page.now[page.panel.run]["value"] == "Run"
    assert f"seed={page.shown[-1].record.request.seed}" in page.now[page.panel.downloads.link]


def test_a_run_that_is_over_when_the_other_breaks_off_is_not_called_stopped(page, services):
    def meanwhile():
        if STEPS in [frame["i"] for frame in page.sent[-1][0]["frames"]]:
            services[1].pipe.broken = RuntimeError("out of memory")

    page.run_both(asked(), meanwhile, steps=30)
    assert "unexpected" in page.status
    assert [track.record.finished for track in page.shown] == [True, False]
    assert STEPS <= len(page.shown[1].record.frames) < 30


def test_a_run_beside_one_that_never_began_stays_when_stopped(orchard):
    small = FakePipeline(modalities=EVERYTHING, capacity=1, step_seconds=0.02)
    stops = Stops()
    full = Service(small, "other", stops=stops)
    page = Page((Service(orchard, "orchard", stops=stops), full))
    earlier = full.stream(full.record(Request(wanted=("image",), steps=100)), "somebody else")
    next(earlier)
    reader = threading.Thread(target=list, args=(earlier,))
    reader.start()
    page.run_both(asked(), lambda: page.panel._stop(REQUEST))
    stops.stop("somebody else")
    reader.join()
    assert [track.record.checkpoint for track in page.shown] == ["orchard"]
    assert [track["running"] for track in page.sent[-1]] == [False] and "Stopped" in page.status


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_the_settings_of_the_example_give_it_again(services, task):
    service = services[0]
    page = Page(services, task)
    (track,) = page.panel._opening
    example = service.filled if task == "fill_in" else service.example
    text = settings_file.to_json(track.record.request, track.record.checkpoint, task)
    saved = settings_file.from_json(text, service.modalities)
    assert saved.checkpoint == service.name and set(saved.request.wanted) == set(example.request.wanted)
    again = service.run(saved.request)
    assert set(track.record.modalities) == set(page.panel.task.modalities(service.modalities))
    for name in track.record.modalities:
        assert np.array_equal(again.last.x[name], track.record.last.x[name])
    if task != "fill_in":
        query, left_out = to_query(track.record.request, service.name, task)
        params = dict(pair.split("=") for pair in query.removeprefix("?").split("&"))
        assert (
            not left_out and from_query(params, service.modalities).request.wanted == example.request.wanted
        )


def test_a_fork_of_the_example_begins_as_the_example_and_shows_the_same(services):
    page = Page(services, "image_mask")
    (example,) = page.panel._opening
    page.fork(4, example.id, Request(wanted=("image", "mask")))
    branch = page.shown[1].record
    assert branch.request.wanted == services[0].example.request.wanted
    assert list(branch.modalities) == list(example.record.modalities) == ["image", "mask"]
