"""The memory of many threads.

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
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    try:
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, ARENAS)
    except (AttributeError, OSError, TypeError):  # no such function, or no C library to be asked
        return
