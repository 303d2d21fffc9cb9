"""Impossible requests are explained, every step is there, runs take turns, Stop keeps the steps so far."""

import dataclasses
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import LABELS, FakePipeline, LetterEmbedder, photo

from app.run.defaults import FOLLOWED, LIMITS
from app.run.history import Frame
from app.run.service import MAX_WAITING, Service, Timing, Waiting, middle_known
from mmdiff.request import Change, Request

JOINT = Request(wanted=("image", "mask", "label"))


@pytest.fixture
def service() -> Service:
    return Service(FakePipeline(), "fake")


def stream(service, request, session=""):
    return service.stream(service.record(request), session)


def frames(service, request, session=""):
    return [event for event in stream(service, request, session) if isinstance(event, Frame)]


def test_the_page_is_not_part_of_it():
    code = "import sys, app.run.service, mmdiff.pipeline; sys.exit('gradio' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"wanted": ("sound",)}, "no modality is called 'sound'"),
        ({"given": {"label": "Apple Red"}}, "label: given and wanted at once"),
        ({"known_pixels": np.eye(64, dtype=bool)}, "no image is given"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 10_000}, "steps is 10000"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": None}, "steps is None"),
        ({"num_samples": 9}, "num_samples is 9"),
        ({"seed": -1}, "seed is -1"),
        ({"guidance_scale": 11}, "guidance_scale is 11"),
        ({"guidance_scale": None}, "guidance_scale is None"),
        ({"sampler": "euler"}, "no sampler is called 'euler'"),
    ],
)
def test_an_impossible_request_is_explained(service, changes, words):
    with pytest.raises(ValueError, match=words):
        next(stream(service, dataclasses.replace(JOINT, **changes)))
    assert frames(service, JOINT)[-1].index == JOINT.steps  # and nothing is left in the way


def test_a_photo_with_a_hole_may_be_given_and_wanted(service):
    known = np.ones((64, 64), dtype=bool)
    known[10:20] = False
    picture = photo((64, 64))
    *_, last = stream(service, Request(given={"image": picture}, wanted=("image",), known_pixels=known))
    result = last.x["image"][0]
    assert np.array_equal(result[known], np.asarray(picture)[known])
    assert not np.array_equal(result, np.asarray(picture))


@pytest.mark.parametrize("steps", [1, 2, 12, 100])
def test_every_step_has_a_frame(service, steps):
    seen = frames(service, dataclasses.replace(JOINT, steps=steps))
    assert [p.index for p in seen] == list(range(1, steps + 1))
    times = [p.t for p in seen]
    assert times[0] == 1000 and times == sorted(times, reverse=True)


def latent(pipe=None) -> Service:
    """A service whose pictures a network decodes."""
    pipe = pipe or FakePipeline()
    pipe.modalities["image"].frozen_encoder = True
    return Service(pipe, "fake")


def test_steps_that_nobody_could_see_are_decoded_when_asked_for(monkeypatch):
    monkeypatch.setattr("app.run.service.PREVIEW_SECONDS", 60.0)
    service = latent()
    record = service.record(dataclasses.replace(JOINT, steps=6, num_samples=2))
    order = [event.index for event in service.stream(record)]
    assert order == [1, 6] and len(record.between) == 4 and record.finished
    stop = threading.Event()
    stop.set()
    assert not record.complete(stop) and len(record.between) == 4
    assert record.complete() and not record.between
    assert [frame.index for frame in record.frames] == [1, 2, 3, 4, 5, 6]
    plain = Service(FakePipeline(), "fake").run(record.request)
    for one, other in zip(record.frames, plain.frames, strict=True):
        assert all(np.array_equal(one.x[name], other.x[name]) for name in other.x)
    # per step, so that a gap is no jump: 1 to 6 at once against one by one
    way = np.sum([frame.change["image"] for frame in plain.frames[1:]], axis=0)
    assert (record.frames[5].change["image"] <= way / 5 + 1e-6).all()


def test_a_stop_between_two_pictures_ends_the_run_at_its_next_step(monkeypatch):
    monkeypatch.setattr("app.run.service.PREVIEW_SECONDS", 60.0)
    service = latent(FakePipeline(step_seconds=0.01))
    record = service.record(dataclasses.replace(JOINT, steps=100))
    events = service.stream(record, "somebody")
    assert next(events).index == 1
    assert service.stop("somebody")
    assert [event.index for event in events] == [2] and not record.between


def test_steps_that_can_be_seen_are_decoded_at_once(monkeypatch):
    monkeypatch.setattr("app.run.service.PREVIEW_SECONDS", 0.0)
    assert [frame.index for frame in frames(latent(), JOINT)] == list(range(1, JOINT.steps + 1))


def test_a_run_of_latents_is_timed_without_what_is_decoded_later(monkeypatch):
    monkeypatch.setattr("app.run.service.PREVIEW_SECONDS", 60.0)
    service = latent(FakePipeline(step_seconds=0.01))
    learnt = []
    monkeypatch.setattr(service.timing, "learn", lambda request, seconds: learnt.append(seconds))
    service.run(JOINT)
    assert len(learnt) == 1 and 0.01 <= learnt[0] < 0.05


def test_frames_change_and_only_have_given_and_wanted_modalities(service):
    seen = frames(service, Request(given={"label": "Apple Red"}, wanted=("image",)))
    assert set(seen[0].x) == {"image", "label"}
    assert all(not np.array_equal(a.x["image"], b.x["image"]) for a, b in zip(seen, seen[1:], strict=False))


def test_stop_ends_the_run_within_a_step_and_keeps_the_prediction(service):
    record = service.record(dataclasses.replace(JOINT, steps=90))
    run = service.stream(record, "me")
    reached = next(run).index
    assert service.stop("me")
    rest = list(run)
    assert len(rest) == 1 and rest[0].index == reached + 1
    assert record.last is rest[0] and not record.finished
    assert rest[0].x["image"].shape == (1, 64, 64, 3)
    assert not service.stop("me")


def test_stop_ends_all_runs_of_a_session_and_no_others(service):
    mine = [stream(service, dataclasses.replace(JOINT, steps=90), "me") for _ in range(2)]
    other = stream(service, JOINT, "you")
    for run in (*mine, other):
        next(run)
    assert service.stop("me")
    assert all(list(run)[-1].index < 90 for run in mine)
    assert list(other)[-1].index == JOINT.steps


def test_a_closed_page_frees_the_model(service):
    run = stream(service, JOINT, "gone")
    next(run)
    run.close()
    assert not service.stop("gone")
    assert frames(service, JOINT)[-1].index == JOINT.steps


def test_an_error_frees_the_model(service):
    service.pipe.broken = RuntimeError("out of memory")
    with pytest.raises(RuntimeError):
        list(stream(service, JOINT))
    service.pipe.broken = None
    assert frames(service, JOINT)[-1].index == JOINT.steps


def test_a_run_without_a_place_waits_in_line():
    service = Service(FakePipeline(step_seconds=0.005, capacity=1), "small")
    first, second, third = (stream(service, JOINT, name) for name in "abc")
    next(first)
    assert next(second) == Waiting(1)
    assert next(third) == Waiting(2)
    service.stop("c")
    assert list(third) == []  # stopped before it began: nothing to keep
    assert list(first)[-1].index == JOINT.steps
    assert [event for event in second if isinstance(event, Frame)][-1].index == JOINT.steps


def test_eight_at_once_each_get_their_own(service):
    service.pipe.step_seconds = 0.001
    results = {}

    def run(seed):
        results[seed] = frames(service, dataclasses.replace(JOINT, seed=seed))[-1].x["image"]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=20)
    for seed, image in results.items():
        alone = frames(service, dataclasses.replace(JOINT, seed=seed))[-1].x["image"]
        assert np.array_equal(image, alone)
    assert len(results) == 8


def test_a_long_line_is_closed(monkeypatch):
    monkeypatch.setattr(
        "mmdiff.serving.engine.ASLEEP_SECONDS", 60
    )  # the first keeps its place, though unread
    service = Service(FakePipeline(step_seconds=0.001, capacity=1), "small")
    waiting = [stream(service, JOINT) for _ in range(MAX_WAITING + 1)]
    assert isinstance(next(waiting[0]), Frame)
    assert [next(run) for run in waiting[1:]] == [Waiting(k) for k in range(1, MAX_WAITING + 1)]
    with pytest.raises(ValueError, match="try again in a minute"):
        next(stream(service, JOINT))
    for run in waiting:
        run.close()
    assert frames(service, JOINT)[-1].index == JOINT.steps


def test_the_estimate_follows_the_last_runs():
    slow = Service(FakePipeline(step_seconds=0.02), "slow")
    how = {"guidance_scale": {"label": 2.0}, "sample_first": ("label",)}  # as the warm-up
    request = dataclasses.replace(JOINT, steps=10, **how)
    assert 0.2 <= slow.timing.estimate(request) < 0.6
    slow.pipe.step_seconds = 0.06
    for _ in range(3):
        list(stream(slow, dataclasses.replace(request, steps=5)))
    assert 0.6 <= slow.timing.estimate(request) < 1.8


def test_the_time_left():
    slow = Service(FakePipeline(step_seconds=0.02), "slow")
    record = slow.record(dataclasses.replace(JOINT, steps=10))
    for frame in slow.stream(record):
        left = 0.02 * (10 - frame.index)
        assert left <= record.seconds_left <= 5 * left


def test_a_batch_never_seen_costs_in_proportion():
    timing = Timing()
    timing.learn(dataclasses.replace(JOINT, num_samples=2), 0.1)
    assert timing.estimate(dataclasses.replace(JOINT, num_samples=2, steps=30)) == pytest.approx(3.0)
    assert timing.estimate(dataclasses.replace(JOINT, num_samples=4, steps=30)) == pytest.approx(6.0)


def test_inpainting_is_estimated_by_earlier_inpainting():
    timing = Timing()
    hole = Request({"image": photo()}, ("image",), middle_known(64), steps=10)
    timing.learn(dataclasses.replace(JOINT, num_samples=2), 0.1)
    assert timing.estimate(hole) == pytest.approx(0.5)  # of nothing but a guess
    timing.learn(hole, 0.3)
    guided = dataclasses.replace(hole, guidance_scale={"image": 1.5})
    assert timing.estimate(guided) == pytest.approx(6.0)
    assert timing.estimate(dataclasses.replace(JOINT, num_samples=2, steps=10)) == pytest.approx(1.0)


def test_guidance_counts_twice_only_if_something_is_given():
    assert dataclasses.replace(JOINT, guidance_scale=3.0, num_samples=4).rows() == 4
    assert Request(given={"label": "x"}, wanted=("image",), guidance_scale=3.0, num_samples=4).rows() == 8


def test_there_is_something_to_look_at_from_the_start(service):
    example, filled = service.example, service.filled
    assert len(example.frames) == example.request.steps and example.finished
    assert set(example.last.x) == set(example.request.wanted) == set(service.pipe.modalities)
    known = middle_known(64)
    assert np.array_equal(filled.request.known_pixels, known) and 0.05 < (~known).mean() < 0.3
    assert np.array_equal(filled.last.x["image"][0][known], example.last.x["image"][0][known])


def test_runs_of_early_visitors_wait_for_the_warm_up():
    early = Service(FakePipeline(), "early", warm=False)
    assert not early.ready and early.timing.estimate(JOINT) is None
    events = stream(early, JOINT)
    assert next(events) == Waiting(0)
    early.warm_up()
    assert [event.index for event in events] == list(range(1, JOINT.steps + 1))
    assert early.example.finished and early.timing.estimate(JOINT) > 0


def test_a_run_that_waits_for_the_warm_up_can_be_stopped():
    early = Service(FakePipeline(), "early", warm=False)
    events = stream(early, JOINT, "somebody")
    assert next(events) == Waiting(0) and early.stop("somebody")
    assert list(events) == [] and not early.stop("somebody")


def test_what_breaks_the_warm_up_is_said_to_visitors():
    pipe = FakePipeline()
    pipe.broken = RuntimeError("out of memory")
    early = Service(pipe, "early", warm=False)
    early.warm_up()
    assert early.error is pipe.broken
    with pytest.raises(RuntimeError, match="out of memory"):
        next(stream(early, JOINT))
    with pytest.raises(RuntimeError, match="out of memory"):
        _ = early.example
    with pytest.raises(RuntimeError, match="out of memory"):
        Service(pipe, "at once")


def test_a_fork_is_run_and_recorded(service):
    request = dataclasses.replace(
        JOINT, changes=(Change(10, Request({"label": "Cherry Wax"}, ("image", "mask"))),)
    )
    plain, forked = service.run(JOINT), service.run(request)
    for before, after in zip(plain.frames[:10], forked.frames[:10], strict=True):
        assert np.array_equal(before.x["image"], after.x["image"])
    assert LABELS[forked.last.x["label"][0].argmax()] == "Cherry Wax"
    assert forked.role("label") == "given" and plain.role("label") == "generated"
    assert set(forked.modalities) == {"image", "mask", "label"}


@pytest.mark.parametrize(
    "afters, words", [([0], "after step 0"), ([30], "from 1 to 29"), ([9, 9], "larger than the one before")]
)
def test_forks_at_impossible_steps_are_explained(service, afters, words):
    changes = tuple(Change(after, Request({}, ("image",))) for after in afters)
    with pytest.raises(ValueError, match=words):
        next(stream(service, dataclasses.replace(JOINT, changes=changes)))


def test_every_scale_of_a_given_modality_counts_once():
    given = {"image": None, "mask": None, "label": "x"}
    for scales, runs in [({}, 1), ({"mask": 1}, 1), ({"mask": 3}, 2), ({"mask": 3, "label": 0.5}, 3)]:
        request = Request(given=given, wanted=("embedding",), guidance_scale=scales, num_samples=4)
        assert request.rows() == 4 * runs
    kept = Request(given={"image": None}, guidance_scale=3.0, num_samples=4)
    assert kept.rows() == 4  # as it is, whatever the scale
    followed = Request((), ("image",), guidance_scale={"label": 2.0}, sample_first=("label",), num_samples=4)
    assert followed.rows() == 8


@pytest.mark.parametrize(
    "scales, words",
    [
        ({"mask": 2}, "'mask', which is not given"),
        ({"image": 2}, "'image', which is not given"),
        ({"label": 11}, "guidance_scale of 'label' is 11; give a number from 0 to 10"),
        ({"label": None}, "guidance_scale of 'label' is None"),
        (True, "guidance_scale is True"),
    ],
)
def test_guidance_that_cannot_be_is_explained(service, scales, words):
    request = Request(given={"label": "Apple Red"}, wanted=("image",), guidance_scale=scales)
    with pytest.raises(ValueError, match=words):
        next(stream(service, request))


def test_a_whole_photo_has_no_hole_to_guide(service):
    request = Request({"image": None}, ("mask",), guidance_scale={"image": 2})
    with pytest.raises(ValueError, match="'image', which is kept as it is given"):
        service.record(request)
    assert Request({"image": None}, guidance_scale=2).scales() == {}


def test_guidance_by_modality_reaches_the_model(pipe):
    request = Request(given={"label": 1}, wanted=("image",), steps=3, guidance_scale={"label": 4.0})
    last = Service(pipe, "tiny").run(request).last
    out = pipe(given={"label": 1}, wanted=("image",), steps=3, guidance_scale={"label": 4.0})
    assert np.array_equal(last.x["image"][0], np.asarray(out.image[0]))


def test_the_example_follows_its_label(pipe):
    service = Service(pipe, "tiny")
    request = service.example.request
    assert request.guidance_scale == {"label": FOLLOWED} and request.sample_first == ("label",)
    out = pipe(
        wanted=request.wanted,
        steps=request.steps,
        sampler=request.sampler,
        guidance_scale={"label": FOLLOWED},
        sample_first=("label",),
    )
    assert np.array_equal(service.example.last.x["image"][0], np.asarray(out.image[0]))


def test_an_embedding_is_put_into_words():
    service = Service(FakePipeline(modalities=("image", "label", "embedding")), "fake")
    vectors = LetterEmbedder().embed_texts(["a photo of a red cherry", "a photo of a dark red tomato"])
    red_cherry, tomato = service.describe(vectors.numpy())
    assert red_cherry.captions[0] == ("a photo of a red cherry", pytest.approx(1.0))
    assert tomato.captions[0] == ("a photo of a dark red tomato", pytest.approx(1.0))
    assert Service(FakePipeline(), "fake").describe(vectors.numpy()) == []


def test_putting_a_step_into_words_is_quick():
    service = Service(FakePipeline(modalities=("image", "embedding")), "fake")
    vectors = np.random.default_rng(0).normal(size=(8, 16))
    service.describe(vectors)
    started = time.perf_counter()
    for _ in range(20):
        service.describe(vectors)
    assert time.perf_counter() - started < 20 * 0.005


@pytest.mark.parametrize("kind, words", [("cpu", "CPU"), ("mps", "GPU (mps)")])
def test_the_device_is_named(service, kind, words):
    service.pipe.device = SimpleNamespace(type=kind)
    assert service.device == words


def test_with_the_real_pipeline(pipe):
    service = Service(pipe, "tiny")
    wanted = tuple(pipe.modalities)
    last = service.run(Request(wanted=wanted, steps=12, num_samples=2, seed=5)).last
    out = pipe(wanted=wanted, steps=12, num_samples=2, seed=5)
    assert np.array_equal(last.x["image"], np.stack([np.asarray(image) for image in out.image]))
    assert np.array_equal(last.classes["mask"], out.mask)
    assert np.array_equal(last.x["label"], out.label)
    assert service.describe(out.embedding) == []  # it has an embedder, but no vocabulary


def test_the_text_to_try_is_the_commonest_there_is():
    pipe = FakePipeline(modalities=("image", "embedding"))
    assert Service(pipe, "fake").example_text == "a red apple"
    assert Service(FakePipeline(), "fake").example_text == ""


def test_every_seed_below_2_31_goes_with_all_samples(service):
    largest = dataclasses.replace(JOINT, seed=2**31 - 1, num_samples=LIMITS.num_samples, steps=1)
    assert len(service.run(largest).last.x["image"]) == 8
