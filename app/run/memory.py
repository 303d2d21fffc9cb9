"""The memory of many threads, and of loading.

The C library of Linux gives threads arenas of their own, up to eight a core, and what is free in one is of no
use to the others: with a dozen visitors the process would grow to twice of what it needs.
"""

import ctypes
import os

M_ARENA_MAX = -8  # of malloc.h
ARENAS = 2


def limit_arenas() -> None:
    """Lets all threads share `ARENAS` arenas, unless MALLOC_ARENA_MAX says otherwise.

    To be called before there are threads. Does nothing under other C libraries than glibc.
    """
    if "MALLOC_ARENA_MAX" not in os.environ:
        _ask("mallopt", M_ARENA_MAX, ARENAS)


def give_back() -> None:
    """Returns what is free to the system, of which loading models leaves some fifty megabytes.

    Does nothing under other C libraries than glibc.
    """
    _ask("malloc_trim", 0)


def _ask(function: str, *arguments: int) -> None:
    try:
        getattr(ctypes.CDLL(None), function)(*arguments)
    except (AttributeError, OSError, TypeError):  # no such function, or no C library to be asked
        return
