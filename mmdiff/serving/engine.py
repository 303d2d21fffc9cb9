"""The step engine: one batched call of the network advances all running requests by a step.

A caller submits a `Member` and iterates over the `Ticket` it gets. Every turn of the engine collects the
calls that all members need for their next step, answers them in one batch, and gives each member its answers.
Members join and leave between turns, so they may stand at different times, do different tasks and take
different numbers of steps.

With `background` the engine computes in a thread of its own, for servers. Without it the thread that waits
for a step computes, for scripts: OpenMP keeps a pool of threads for every thread that computes, and becomes
much slower once there are more of them than cores.

A forked child begins with an engine without members: neither threads nor the holders of locks come along.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from itertools import accumulate
from typing import Any, Protocol, TypeVar

import torch

from mmdiff.device import usual_defaults

T = TypeVar("T")

CAPACITY = 32  # samples in one call of the network
AHEAD = 2  # steps that a member may be ahead of its reader, so that a slow reader delays nobody else
ASLEEP_SECONDS = 2.0  # a reader that leaves a finished step for so long may never come back
IDLE_SECONDS = 10.0


class Member(Protocol):
    """Samples that are denoised together.

    Attributes:
        rows: samples that its queries are in a batch, at most.
        done: whether it has made its last step.
    """

    rows: int

    @property
    def done(self) -> bool: ...

    def queries(self) -> Sequence[Any]:
        """The calls of the network for the next step."""
        ...

    def advance(self, answers: Sequence[Any]) -> Any:
        """Makes the step from the answers to `queries`."""
        ...


class Ticket(Iterator[Any]):
    """The steps of one member, in order; raises the error that ended them."""

    def __init__(self, engine: Engine, member: Member, owner: str = "") -> None:
        self._engine, self._member, self.owner = engine, member, owner
        self._process = os.getpid()
        self._steps: deque[Any] = deque()
        self._error: Exception | None = None
        self._over = False  # whether the last step has been made
        self._asked = time.monotonic()  # when its reader last took a step

    def __next__(self) -> Any:
        self._check_process()
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
        """Wait at most so long for a step or the end; whether there is one."""
        self._check_process()
        return self._engine.wait_for(self._ready, seconds)

    @property
    def ahead(self) -> int:
        """Its place in the queue, 1 is next; 0 once it runs."""
        with self._engine.changed:
            return self._engine.position(self)

    def close(self, process: Callable[[], int] = os.getpid) -> None:
        """Leave before the engine's next step and free the place; also while Python ends, without `os`."""
        if self._process != process():  # it goes on in the parent, whose locks may be held for ever here
            return
        with self._engine.changed:
            self._over = True
            self._engine.dismiss(self)

    def _check_process(self) -> None:
        if self._process != os.getpid():
            raise RuntimeError("this run was begun before the process was forked; begin another one here.")

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
        capacity: rows in a call of the network. Members that do not fit queue; a member that is larger than
            that runs alone. A member whose reader sleeps gives its place away.
        background: whether the engine computes in a thread of its own.

    Members may have owners. In the queue whose owner has the fewest rows running comes first, then who came
    first; and an owner with nothing running gets in although the call is full, up to twice the capacity, when
    the calls are made in turn. So nobody waits for all that another has asked for.

    Attributes:
        max_queue, max_queue_of_one: members that may queue, in all and of the same owner; None is no limit.
    """

    max_queue: int | None = None
    max_queue_of_one: int | None = None

    def __init__(
        self,
        answer: Callable[[list[Any]], Sequence[Any]],
        capacity: int = CAPACITY,
        background: bool = False,
    ) -> None:
        self._answer, self._capacity, self._background = answer, capacity, background
        self._begin()

    def _begin(self) -> None:
        self._process = os.getpid()
        self.changed = threading.Condition(threading.RLock())
        self._turn = threading.Lock()  # held by the thread that computes, if the engine has none of its own
        self._calls: deque[tuple[Callable[[], Any], Future]] = deque()
        self._running: list[Ticket] = []
        self._line: deque[Ticket] = deque()
        self._thread: threading.Thread | None = None
        self._ending = False

    def _enter(self) -> None:
        """Begin anew in a forked child."""
        if self._process != os.getpid():
            self._begin()
            torch.set_num_threads(1)  # OpenMP would wait for threads that are not there

    def submit(self, member: Member, owner: str = "") -> Ticket:
        """Let `member` join at the next step, or queue. Raises ValueError if the queue is full."""
        self._enter()
        ticket = Ticket(self, member, owner)
        with self.changed:
            self._line.append(ticket)
            queue = self._queue()
            if ticket in queue and (full := self._why_full(len(queue) - 1, self._own(queue, owner) - 1)):
                self._line.remove(ticket)
                raise ValueError(full)
            self._wake()
        return ticket

    def check_queue(self, owner: str = "") -> None:
        """Raises ValueError if the queue is full, before a member is made for nothing."""
        with self.changed:
            queue = self._queue()
        if full := self._why_full(len(queue), self._own(queue, owner)):
            raise ValueError(full)

    def _why_full(self, queueing: int, own: int) -> str:
        """Why no more may queue, "" if they may."""
        if self.max_queue_of_one is not None and own >= self.max_queue_of_one:
            return f"{own} of your runs are waiting already. Please try again when some have ended."
        if self.max_queue is not None and queueing >= self.max_queue:
            return f"{queueing} runs are waiting already. Please try again in a minute."
        return ""

    def _own(self, queue: list[Ticket], owner: str) -> int:
        return sum(ticket.owner == owner for ticket in queue) if owner else 0

    def call(self, function: Callable[[], T]) -> T:
        """The result of `function`, computed by the thread that computes the steps, also if that calls."""
        self._enter()
        if not self._background or threading.current_thread() is self._thread:
            with usual_defaults():
                return function()
        future: Future[T] = Future()
        with self.changed:
            self._calls.append((function, future))
            self._wake()
        return future.result()

    def wait_for(self, ready: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait at most so long until `ready`; whether it is. Without a background thread: make the steps."""
        if self._background:
            with self.changed:
                return self.changed.wait_for(ready, seconds)
        deadline = None if seconds is None else time.monotonic() + seconds
        while not ready():
            with self._turn:  # another thread's turn may have brought the step
                with self.changed:
                    going = [] if ready() else self._admitted()
                if going:
                    self._step(going)
            if not going and not ready():
                time.sleep(0.005)  # all places are held by members whose readers are behind
            if deadline is not None and time.monotonic() >= deadline:
                break
        return ready()

    def _wake(self) -> None:
        if self._background and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._work, name="mmdiff-engine", daemon=True)
            self._thread.start()
            atexit.register(self._end)  # a thread that computes while Python ends would crash it
        self.changed.notify_all()

    @property
    def waiting(self) -> int:
        """Length of the queue, without those who join at the next step."""
        with self.changed:
            return len(self._queue())

    def position(self, ticket: Ticket) -> int:
        """The place of `ticket` in the queue, 1 is next; 0 if it is not there."""
        queue = self._queue()
        return queue.index(ticket) + 1 if ticket in queue else 0

    def dismiss(self, ticket: Ticket) -> None:
        """Remove it, wherever it is."""
        if ticket in self._running:
            self._running.remove(ticket)
        elif ticket in self._line:
            self._line.remove(ticket)
        self.changed.notify_all()

    def _work(self) -> None:
        while self._next():
            pass

    def _end(self) -> None:
        if self._process != os.getpid():
            return
        with self.changed:
            self._ending, thread = True, self._thread
            self.changed.notify_all()
        if thread is not None:
            thread.join()

    def _next(self) -> bool:
        """Wait for work and do it; False after a long idle time."""
        with self.changed:
            while not ((going := self._admitted()) or self._calls):
                busy = self._running or self._line
                patience = ASLEEP_SECONDS if self._line else None if busy else IDLE_SECONDS
                woken = self._ending or self.changed.wait(patience)
                if self._ending or not (woken or self._line or self._calls):
                    self._thread = None  # so that nothing is kept alive by an idle engine
                    atexit.unregister(self._end)
                    return False
            calls = list(self._calls)
            self._calls.clear()
        for function, future in calls:
            try:
                with usual_defaults():
                    result = function()
                future.set_result(result)
            except Exception as error:
                future.set_exception(error)
        if going:
            self._step(going)
        return not self._ending

    def _admitted(self) -> list[Ticket]:
        """The members of the next step. Those whose readers sleep lose their places to the queue."""
        for ticket in self._sorted_line()[0]:
            self._line.remove(ticket)
            ticket._asked = time.monotonic()
            self._running.append(ticket)
        return self._fitting([ticket for ticket in self._running if ticket._hungry])

    def _queue(self) -> list[Ticket]:
        """Who does not join at the next step, in the order in which they will."""
        return self._sorted_line()[1]

    def _sorted_line(self) -> tuple[list[Ticket], list[Ticket]]:
        """Who joins at the next step, and who has to wait, both in order."""
        rows: Counter[str] = Counter()  # of each owner, with those who have joined
        for ticket in self._running:
            if not ticket._asleep:
                rows[ticket.owner] += ticket._member.rows
        joining: list[Ticket] = []
        waiting: list[Ticket] = []
        line = list(self._line)
        while line:
            ticket = min(line, key=lambda ticket: rows[ticket.owner])
            line.remove(ticket)
            fits = not waiting and self._has_room(ticket, rows)
            (joining if fits else waiting).append(ticket)
            rows[ticket.owner] += ticket._member.rows
        return joining, waiting

    def _has_room(self, ticket: Ticket, rows: Counter[str]) -> bool:
        most = 2 * self._capacity if ticket.owner and not rows[ticket.owner] else self._capacity
        return not rows.total() or rows.total() + ticket._member.rows <= most

    def _fitting(self, going: list[Ticket]) -> list[Ticket]:
        """As many of them as fit, in turn: sleeping readers may all wake at the same time."""
        ends = accumulate(ticket._member.rows for ticket in going)
        fitting = [t for t, end in zip(going, ends, strict=True) if end <= self._capacity] or going[:1]
        if len(fitting) < len(going):
            self._running.sort(key=lambda ticket: ticket in fitting)  # the others come first next time
        return fitting

    def _step(self, going: list[Ticket]) -> None:
        """A step of all of them, handed out once torch's defaults are as other threads know them again."""
        with usual_defaults():
            made = self._made(going)
        for ticket, step, error in made:
            self._deliver(ticket, step, error)

    def _made(self, going: list[Ticket]) -> list[tuple[Ticket, Any, Exception | None]]:
        """Each with its step or its error. If the call fails, one by one, so that only those at fault end."""
        try:
            queries = [ticket._member.queries() for ticket in going]
            answers = iter(self._answer([query for own in queries for query in own]))
        except Exception as error:
            if len(going) == 1:
                return [(going[0], None, error)]
            return [one for ticket in going for one in self._made([ticket])]
        made: list[tuple[Ticket, Any, Exception | None]] = []
        for ticket, own in zip(going, queries, strict=True):
            own_answers = [next(answers) for _ in own]
            try:
                made.append((ticket, ticket._member.advance(own_answers), None))
            except Exception as error:
                made.append((ticket, None, error))
        return made

    def _deliver(self, ticket: Ticket, step: Any, error: Exception | None) -> None:
        with self.changed:
            if error is None:
                ticket._steps.append(step)
            if error is not None or ticket._member.done:
                ticket._error, ticket._over = error, True
                self.dismiss(ticket)
            self.changed.notify_all()
