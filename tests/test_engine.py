"""The step engine with members that only count, then with the pipeline: nobody's result depends on others."""

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from synthetic import lively_model, tiny_config

from mmdiff.pipeline import Pipeline
from mmdiff.request import Change, Request
from mmdiff.serving import engine as engine_module
from mmdiff.serving.engine import AHEAD, Engine


class Counter:
    """Asks for its own name and counts its steps."""

    def __init__(self, name, total=5, rows=1, fails_at=None):
        self.name, self.total, self.rows, self.fails_at, self.index = name, total, rows, fails_at, 0

    @property
    def done(self):
        return self.index == self.total

    def queries(self):
        return [self.name] * self.rows

    def advance(self, answers):
        assert answers == [self.name.upper()] * self.rows
        if self.index == self.fails_at:
            raise RuntimeError(f"{self.name} broke")
        self.index += 1
        return self.index


class Network:
    """Answers in capitals; remembers its batches; may be held up, and may refuse a name."""

    def __init__(self, refuses=None):
        self.batches, self.refuses, self.go = [], refuses, threading.Event()
        self.go.set()

    def __call__(self, queries):
        self.go.wait()
        self.batches.append(list(queries))
        if self.refuses in queries:
            raise RuntimeError(f"cannot answer {self.refuses}")
        return [query.upper() for query in queries]


def together(engine, network, members):
    """Everybody submitted before the first step, then all read to the end."""
    network.go.clear()
    tickets = [engine.submit(member) for member in members]
    network.go.set()
    with ThreadPoolExecutor(len(members)) as readers:
        return list(readers.map(list, tickets))


def until(condition):
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def test_members_share_batches_although_they_take_different_numbers_of_steps():
    network = Network()
    results = together(
        Engine(network, background=True), network, [Counter("a", 3), Counter("b", 6, rows=2), Counter("c", 1)]
    )
    assert results == [[1, 2, 3], [1, 2, 3, 4, 5, 6], [1]]
    rows = [query for batch in network.batches for query in batch]
    assert sorted(rows) == ["a"] * 3 + ["b"] * 12 + ["c"]
    assert max(map(len, network.batches)) >= 3 and len(network.batches) < 10


def test_a_newcomer_joins_at_the_next_step():
    network = Network()
    engine = Engine(network, background=True)
    first = engine.submit(Counter("a", 20))
    next(first)
    second = engine.submit(Counter("b", 20))
    next(second)
    assert not network.batches[-1] == ["a"] * 20 and 0 < len(network.batches) < 20
    assert list(first)[-1] == list(second)[-1] == 20


def test_who_does_not_fit_waits_in_line_first_come_first_served():
    network = Network()
    engine = Engine(network, background=True, capacity=3)
    network.go.clear()
    tickets = [engine.submit(Counter(name, 2, rows=2)) for name in "abc"]
    small = engine.submit(Counter("d", 2))
    until(lambda: engine.waiting == 3)
    assert [t.ahead for t in (*tickets, small)][1:] == [1, 2, 3]
    network.go.set()
    for ticket in (*tickets, small):
        assert list(ticket) == [1, 2]
    order = [batch[0] for batch in network.batches]
    assert order == sorted(order) and all(len(batch) <= 3 for batch in network.batches)
    assert ["c", "c", "d"] in network.batches  # and a place that is left is used


def test_the_queue_is_served_in_turn_by_owner_and_a_newcomer_is_not_kept_out():
    network = Network()
    engine = Engine(network, background=True, capacity=3)
    network.go.clear()
    greedy = [engine.submit(Counter("a", 6, rows=3), "greedy")]
    until(lambda: engine._running)
    greedy += [engine.submit(Counter(name, 6), "greedy") for name in "bcd"]
    one = engine.submit(Counter("one", 2), "one")
    assert one.ahead == 0  # it joins at the next step, and the calls are made in turn
    other = [engine.submit(Counter(name, 2, rows=2), "other") for name in ("p", "q")]
    assert [ticket.ahead for ticket in other] == [0, 1]
    assert [ticket.ahead for ticket in greedy] == [0, 2, 3, 4]
    network.go.set()
    with ThreadPoolExecutor(7) as readers:
        results = list(readers.map(list, (*greedy, one, *other)))
    assert results == [[*range(1, 7)]] * 4 + [[1, 2]] * 3
    assert max(map(len, network.batches)) <= 3
    order = [name for batch in network.batches for name in batch]
    assert max(order.index("one"), order.index("p"), order.index("q")) < order.index("b")


def test_one_owner_cannot_fill_the_queue():
    network = Network()
    engine = Engine(network, background=True, capacity=1)
    engine.max_queue, engine.max_queue_of_one = 3, 2
    network.go.clear()
    mine = [engine.submit(Counter("a", 2), "me")]
    until(lambda: engine._running)
    mine += [engine.submit(Counter("a", 2), "me") for _ in range(2)]
    for refused in (lambda: engine.submit(Counter("a"), "me"), lambda: engine.check_queue("me")):
        with pytest.raises(ValueError, match="2 of your runs are waiting already"):
            refused()
    engine.check_queue("you")
    yours = [engine.submit(Counter("b", 2), "you") for _ in range(2)]  # one joins, one queues
    with pytest.raises(ValueError, match="3 runs are waiting already"):
        engine.submit(Counter("c"), "you")
    network.go.set()
    with ThreadPoolExecutor(5) as readers:
        assert list(readers.map(list, (*mine, *yours))) == [[1, 2]] * 5


def test_one_that_is_larger_than_the_capacity_runs_alone():
    network = Network()
    assert (
        together(Engine(network, background=True, capacity=2), network, [Counter("a", rows=5), Counter("b")])
        == [[1, 2, 3, 4, 5]] * 2
    )
    assert all(len(set(batch)) == 1 for batch in network.batches)


def test_who_leaves_is_gone_at_the_next_step_and_frees_the_place():
    network = Network()
    engine = Engine(network, background=True, capacity=1)
    first = engine.submit(Counter("a", 50))
    next(first)
    network.go.clear()  # it may have made one step more, and begun another one
    second, third = (engine.submit(Counter(name, 50)) for name in "bc")
    third.close()
    first.close()
    before = len(network.batches)
    network.go.set()
    assert next(second) == 1 and engine.waiting == 0
    assert "a" not in sum(network.batches[before + 1 :], []) and list(third) == []
    assert list(second)[-1] == 50


def test_a_reader_that_falls_behind_holds_up_only_itself():
    network = Network()
    engine = Engine(network, background=True)
    slow = engine.submit(Counter("slow", 30))
    assert list(engine.submit(Counter("quick", 30)))[-1] == 30
    assert sum(batch.count("slow") for batch in network.batches) <= AHEAD
    assert list(slow)[-1] == 30


@pytest.mark.parametrize("background", [False, True])
def test_a_reader_that_stopped_reading_does_not_hold_up_who_is_in_line(background, monkeypatch):
    monkeypatch.setattr(engine_module, "ASLEEP_SECONDS", 0.05)
    network = Network()
    engine = Engine(network, background=background, capacity=3)
    slow = engine.submit(Counter("slow", 9, rows=2))
    assert next(slow) == 1
    assert list(engine.submit(Counter("quick", 9, rows=2))) == [*range(1, 10)]
    assert list(slow) == [*range(2, 10)]


@pytest.mark.parametrize("background", [False, True])
def test_one_thread_may_read_more_streams_in_turn_than_there_are_places_for(background, monkeypatch):
    monkeypatch.setattr(engine_module, "ASLEEP_SECONDS", 0.05)
    network = Network()
    engine = Engine(network, background=background, capacity=3)
    tickets = [
        engine.submit(Counter(name, 7, rows=rows)) for name, rows in zip("abcd", (2, 1, 2, 3), strict=True)
    ]
    assert list(zip(*tickets, strict=True)) == [(k,) * 4 for k in range(1, 8)]
    assert max(map(len, network.batches)) == 3


@pytest.mark.parametrize("culprit", ["network", "member"])
def test_only_who_fails_leaves(culprit):
    network = Network(refuses="bad" if culprit == "network" else None)
    engine = Engine(network, background=True)
    network.go.clear()
    good = [engine.submit(Counter(name)) for name in ("a", "b")]
    bad = engine.submit(Counter("bad", fails_at=2 if culprit == "member" else None))
    network.go.set()
    with pytest.raises(RuntimeError, match="bad"):
        list(bad)
    assert [list(ticket)[-1] for ticket in good] == [5, 5]
    assert list(engine.submit(Counter("later")))[-1] == 5


def test_the_last_step_is_not_lost_while_it_is_being_made():
    class Slow(Counter):
        def advance(self, answers):
            step = super().advance(answers)  # done already, but nothing is delivered yet
            time.sleep(0.02)
            return step

    assert list(Engine(Network(), background=True).submit(Slow("a", 3))) == [1, 2, 3]


def test_an_idle_engine_lets_go(monkeypatch):
    monkeypatch.setattr("mmdiff.serving.engine.IDLE_SECONDS", 0.05)
    engine = Engine(Network(), background=True)
    list(engine.submit(Counter("a")))
    gone = weakref.ref(engine)
    thread = engine._thread
    thread.join(5)
    assert not thread.is_alive()
    assert list(engine.submit(Counter("b")))[-1] == 5  # and starts again
    engine._thread.join(5)
    del engine
    gc.collect()
    assert gone() is None


def test_without_a_thread_of_its_own_the_readers_make_the_steps():
    network = Network()
    engine = Engine(network, capacity=3)
    makers = set()

    class Watched(Counter):
        def advance(self, answers):
            makers.add(threading.current_thread())
            time.sleep(0.0005)  # so that the others come along
            return super().advance(answers)

    assert list(engine.submit(Watched("a", 4))) == [1, 2, 3, 4]
    assert makers == {threading.main_thread()} and engine._thread is None
    begin = threading.Barrier(6)

    def read(member):
        begin.wait()
        return list(engine.submit(member))

    with ThreadPoolExecutor(6) as readers:  # half of them have to wait
        assert list(readers.map(read, [Watched(n, 40) for n in "bcdefg"])) == [list(range(1, 41))] * 6
    assert max(map(len, network.batches)) > 1 and len(makers) > 1
    slow = engine.submit(Counter("slow", 20, rows=3))
    next(slow)
    waiting = engine.submit(Counter("h"))
    assert not waiting.wait(0.02) and waiting.ahead == 1
    slow.close()
    assert waiting.wait(0.02) and list(waiting)[-1] == 5


def test_calls_are_made_by_the_thread_that_makes_the_steps():
    for background in (False, True):
        engine = Engine(Network(), background=background)
        thread = engine.call(threading.current_thread)
        assert (thread is threading.current_thread()) != background
        list(engine.submit(Counter("a")))
        assert engine.call(threading.current_thread) is thread
        assert engine.call(lambda engine=engine: engine.call(threading.current_thread)) is thread
        with pytest.raises(ZeroDivisionError):
            engine.call(lambda: 1 / 0)


# -- with the pipeline -----------------------------------------------------------------------------


REQUESTS = [
    {"wanted": ("image", "mask", "label"), "steps": 7, "seed": 1},
    {"given": {"label": 1}, "wanted": ("image",), "steps": 3, "seed": 2, "sampler": "dpmpp_2m"},
    {"given": {"mask": "mask"}, "steps": 5, "seed": 3, "eta": 0.7, "guidance_scale": {"mask": 3.0}},
    {"given": {"image": "photo"}, "wanted": ("label",), "steps": 4, "seed": 4},
    {"given": {"image": "photo"}, "known_pixels": "hole", "steps": 6, "seed": 5, "sampler": "ancestral"},
    {"given": {"label": 2}, "steps": 6, "seed": 6, "num_samples": 3, "guidance_scale": 2.0},
    {"given": {"embedding": "a red disc"}, "steps": 8, "seed": 7},
    {
        "wanted": ("mask",),
        "steps": 5,
        "seed": 8,
        "changes": [Change(2, Request({"label": 1}, ("mask", "image")))],
    },
    {"steps": 5, "seed": 9, "guidance_scale": {"label": 1.5}, "sample_first": ("label",)},
]


def arguments(request, size):
    rng = np.random.default_rng(0)
    values = {
        "photo": rng.integers(0, 256, (size, size, 3), dtype=np.uint8),
        "mask": rng.integers(0, 2, (size, size)),
        "hole": np.arange(size)[:, None] + np.arange(size) < size,
    }
    filled = dict(request)
    filled["given"] = {n: values.get(v, v) for n, v in request.get("given", {}).items()}
    if "known_pixels" in filled:
        filled["known_pixels"] = values["hole"]
    return filled


@pytest.mark.parametrize("background", [False, True])
def test_alone_or_among_eight_is_the_same(embedder, background):
    import torch

    model = lively_model(tiny_config(), seed=1)
    pipe = Pipeline(model, torch.device("cpu"), embedder, background=background)
    requests = [arguments(request, model.config.image_size) for request in REQUESTS]
    alone = [list(pipe.stream(**request)) for request in requests]

    batches, answer = [], pipe.engine._answer
    pipe.engine._answer = lambda queries: batches.append(len(queries)) or answer(queries)
    with ThreadPoolExecutor(len(requests)) as people:
        among = list(people.map(lambda request: list(pipe.stream(**request)), requests))
    assert max(batches) >= 3  # they did share
    for one, other in zip(alone, among, strict=True):
        for a, b in zip(one, other, strict=True):
            for name in a.x_hat:
                if name == "image":
                    levels = a.x_hat[name].astype(int) - b.x_hat[name].astype(int)
                    assert abs(levels).max() <= 1  # of 255, where rounding tips over
                else:
                    np.testing.assert_allclose(a.x_hat[name], b.x_hat[name], rtol=0, atol=1e-5)


def test_bfloat16_differs_little_and_no_more_in_company(embedder):
    """The bounds are about twice what is found; random weights make the differences large."""
    import torch

    model = lively_model(tiny_config(), seed=1)
    pipes = [
        Pipeline(model, torch.device("cpu"), embedder, background=True, precision=precision)
        for precision in ("float32", "bfloat16")
    ]
    requests = [{"steps": 10, "seed": seed} for seed in range(8)]
    exact, rough = ([pipe(**request) for request in requests] for pipe in pipes)
    with ThreadPoolExecutor(8) as people:
        among = list(people.map(lambda request: pipes[1](**request), requests))
    for one, other in ((exact, rough), (rough, among)):
        levels = [np.abs(np.array(a.image[0], int) - b.image[0]) for a, b in zip(one, other, strict=True)]
        masks = [a.mask != b.mask for a, b in zip(one, other, strict=True)]
        labels = [np.abs(a.label - b.label) for a, b in zip(one, other, strict=True)]
        assert np.mean(levels) < 3.5 and np.mean(masks) < 0.015 and np.max(labels) < 0.1
    assert any(
        (a.label != b.label).any() for a, b in zip(exact, rough, strict=True)
    )  # it is another precision


@pytest.mark.parametrize("leave", [lambda run: run.close(), lambda run: None], ids=["closed", "forgotten"])
def test_a_run_that_is_closed_or_forgotten_leaves_the_engine(pipe, leave):
    run = pipe.stream(steps=50)
    next(run)
    leave(run)
    del run
    gc.collect()
    assert not pipe.engine._running


@pytest.mark.parametrize("leave", [lambda run: run.close(), lambda run: None], ids=["closed", "forgotten"])
def test_a_run_that_never_began_leaves_no_trace(pipe, leave, monkeypatch):
    calls = []
    monkeypatch.setattr(pipe.engine, "_answer", calls.append)
    run = pipe.stream(steps=3)
    member = weakref.ref(run._member)
    leave(run)
    assert not pipe.engine._running and not pipe.engine.waiting and not calls
    del run
    gc.collect()
    assert member() is None


def test_a_run_closed_before_its_first_step_makes_none(pipe):
    run = pipe.stream(steps=3)
    run.close()
    run.close()
    assert list(run) == [] and run.wait(5) == 0
    assert not pipe.engine._running and not pipe.engine.waiting


def test_sampling_begins_with_the_first_step(pipe):
    run = pipe.stream(steps=3)
    time.sleep(0.05)
    assert not pipe.engine._running and not pipe.engine.waiting
    assert run.wait(5) == 0 and next(run).index == 1
    assert [step.index for step in run] == [2, 3]


def test_output_counts_the_seconds_of_sampling(pipe):
    started = time.perf_counter()
    out = pipe(steps=3)
    assert 0 < out.seconds <= time.perf_counter() - started
