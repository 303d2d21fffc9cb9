"""The step engine: takes all running samples a step further, together.

Whoever samples submits a `Member` and iterates over the `Ticket` it gets. Every turn of the engine asks all
members what they want to know of the network, has that answered in one batch, and hands each member its
answers, which make its next step. Members join and leave between turns, so they may stand at different times,
do different tasks and take different numbers of steps.

In the background the engine has a thread of its own, which servers want. Otherwise the turn is made by the
thread that waits for a step, which suits scripts: OpenMP keeps a pool of threads for every thread that
computes, and is much slower once there are more of them than cores.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

CAPACITY = 32  # samples in one call of the network
AHEAD = 2  # steps made before somebody asks for them; a reader that falls behind only holds up itself
ASLEEP_SECONDS = 2.0  # without asking for a step that is ready; such a reader may never come back
IDLE_SECONDS = 10.0


class Member(Protocol):
    """Samples that are denoised together.

    Attributes:
        rows: how many samples of a batch its queries take, at most.
        done: whether it has made its last step.
    """

    rows: int

    @property
    def done(self) -> bool: ...

    def queries(self) -> Sequence[Any]:
        """What to ask for the next step."""
        ...

    def advance(self, answers: Sequence[Any]) -> Any:
        """Takes the answers to `queries` and makes the step."""
        ...


class Ticket(Iterator[Any]):
    """The steps of one member, in order; raises what went wrong in making them."""

    def __init__(self, engine: Engine, member: Member) -> None:
        self._engine, self._member = engine, member
        self._steps: deque[Any] = deque()
        self._error: Exception | None = None
        self._over = False  # whether no step is to come any more
        self._asked = time.monotonic()  # when its reader took a step last

    def __next__(self) -> Any:
        self._engine.wait_for(self._ready)
        with self._engine.changed:
            if self._steps:
                self._asked = time.monotonic()
                self._engine.changed.notify_all()  # there is room for another step
                return self._steps.popleft()
            if self._error is not None:
                raise self._error
            raise StopIteration

    def wait(self, seconds: float) -> bool:
        """Waits until there is something to take, at most so long; whether there is."""
        return self._engine.wait_for(self._ready, seconds)

    @property
    def ahead(self) -> int:
        """Its place in line, 1 is next; 0 for one that takes part already."""
        with self._engine.changed:
            return self._engine.position(self)

    def close(self) -> None:
        """Leaves before the engine's next step and frees the place."""
        with self._engine.changed:
            self._over = True
            self._engine.dismiss(self)

    def _ready(self) -> bool:
        return bool(self._steps) or self._over

    @property
    def _hungry(self) -> bool:
        return len(self._steps) < AHEAD

    @property
    def _asleep(self) -> bool:
        return not self._hungry and time.monotonic() - self._asked > ASLEEP_SECONDS


class Engine:
    """Advances all members together.

    Args:
        answer: queries of all members -> an answer to each, in order. Called by one thread only.
        capacity: rows in a call of the network. Who does not fit waits in line, first come, first served; a
            member that is larger than that runs alone. A reader that has stopped reading holds no place.
        background: whether the engine has a thread of its own.
    """

    def __init__(
        self,
        answer: Callable[[list[Any]], Sequence[Any]],
        capacity: int = CAPACITY,
        background: bool = False,
    ) -> None:
        self.changed = threading.Condition(threading.RLock())
        self._answer, self._capacity, self._background = answer, capacity, background
        self._turn = threading.Lock()  # whose turn it is, if there is no thread
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._running: list[Ticket] = []
        self._line: deque[Ticket] = deque()
        self._thread: threading.Thread | None = None
        self._ending = False

    def submit(self, member: Member) -> Ticket:
        """Has `member` join at the next step, or stand in line."""
        ticket = Ticket(self, member)
        with self.changed:
            self._line.append(ticket)
            self._wake()
        return ticket

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, computed by the thread that computes the steps."""
        if not self._background:
            return function()
        future: Future[T] = Future()
        with self.changed:
            self._calls.append((function, future))
            self._wake()
        return future.result()

    def wait_for(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """Waits until `ready`, at most so long (without a thread: at least a step); whether it is."""
        if self._background:
            with self.changed:
                return self.changed.wait_for(ready, seconds)
        deadline = None if seconds is None else time.monotonic() + seconds
        while not ready():
            with self._turn:  # perhaps after somebody else's turn, which brought the step
                with self.changed:
                    going = [] if ready() else self._admitted()
                if going:
                    self._step(going)
            if not going and not ready():
                time.sleep(0.005)  # those who have a place have steps to take first, or to fall asleep
            if deadline is not None and time.monotonic() >= deadline:
                break
        return ready()

    def _wake(self) -> None:
        if self._background and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._work, name="mmdiff-engine", daemon=True)
            self._thread.start()
        self.changed.notify_all()

    @property
    def waiting(self) -> int:
        """How many stand in line."""
        with self.changed:
            return len(self._line)

    def position(self, ticket: Ticket) -> int:
        """The place of `ticket` in line, 1 is next; 0 if it is not in line."""
        return self._line.index(ticket) + 1 if ticket in self._line else 0

    def dismiss(self, ticket: Ticket) -> None:
        """Takes it out, wherever it is."""
        if ticket in self._running:
            self._running.remove(ticket)
        elif ticket in self._line:
            self._line.remove(ticket)
        self.changed.notify_all()

    def _work(self) -> None:
        atexit.register(self._end)  # a thread that computes while Python ends would bring all down
        while self._next():
            pass
        atexit.unregister(self._end)

    def _end(self) -> None:
        with self.changed:
            self._ending, thread = True, self._thread
            self.changed.notify_all()
        if thread is not None:
            thread.join()

    def _next(self) -> bool:
        """Does what there is to do, as soon as there is something; False after a long idle time."""
        with self.changed:
            while not ((going := self._admitted()) or self._calls):
                busy = self._running or self._line
                patience = ASLEEP_SECONDS if self._line else None if busy else IDLE_SECONDS
                woken = self._ending or self.changed.wait(patience)
                if self._ending or not (woken or self._line or self._calls):
                    self._thread = None  # so that nothing is kept alive by an idle engine
                    return False
            calls = list(self._calls)
            self._calls.clear()
        for function, future in calls:
            try:
                future.set_result(function())
            except Exception as error:
                future.set_exception(error)
        if going:
            self._step(going)
        return not self._ending

    def _admitted(self) -> list[Ticket]:
        """Who makes the next step. Nobody holds a place whose reader has stopped reading."""
        awake = [ticket for ticket in self._running if not ticket._asleep]
        rows = sum(ticket._member.rows for ticket in awake)
        while self._line and (not awake or rows + self._line[0]._member.rows <= self._capacity):
            ticket = self._line.popleft()
            ticket._asked = time.monotonic()
            rows += ticket._member.rows
            self._running.append(ticket)
            awake.append(ticket)
        return self._fitting([ticket for ticket in self._running if ticket._hungry])

    def _fitting(self, going: list[Ticket]) -> list[Ticket]:
        """As many of them as have room, in turn: readers that were asleep may all come back at once."""
        ends = accumulate(ticket._member.rows for ticket in going)
        fitting = [t for t, end in zip(going, ends, strict=True) if end <= self._capacity] or going[:1]
        if len(fitting) < len(going):
            self._running.sort(key=lambda ticket: ticket in fitting)  # whose turn it is now stands behind
        return fitting

    def _step(self, going: list[Ticket]) -> None:
        """A step of all of them. If that fails, one by one, so that only those leave who are to blame."""
        try:
            queries = [ticket._member.queries() for ticket in going]
            answers = iter(self._answer([query for own in queries for query in own]))
        except Exception as error:
            if len(going) > 1:
                for ticket in going:
                    self._step([ticket])
            else:
                self._deliver(going[0], error=error)
            return
        for ticket, own in zip(going, queries, strict=True):
            own_answers = [next(answers) for _ in own]
            try:
                self._deliver(ticket, ticket._member.advance(own_answers))
            except Exception as error:
                self._deliver(ticket, error=error)

    def _deliver(self, ticket: Ticket, step: Any = None, error: Exception | None = None) -> None:
        with self.changed:
            if error is None:
                ticket._steps.append(step)
            if error is not None or ticket._member.done:
                ticket._error, ticket._over = error, True
                self.dismiss(ticket)
            self.changed.notify_all()
