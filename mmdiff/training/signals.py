"""Ctrl-C and SIGTERM end a training cleanly."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def signals_stop(stopped: list[str]) -> Iterator[None]:
    """Inside, Ctrl-C and SIGTERM append "a signal" to ``stopped`` instead of ending the process.

    The training checks the list after every step, so that it can save its state first.
    """
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = {number: signal.signal(number, lambda *_: stopped.append("a signal")) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
