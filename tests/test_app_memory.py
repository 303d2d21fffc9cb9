"""Arenas of glibc's malloc, counted by its own report, and free memory, each in a process of its own."""

import os
import platform
import subprocess
import sys

import pytest

CODE = """
import ctypes, sys, tempfile, threading
from app.run.memory import limit_arenas
if sys.argv[1] == "limit":
    limit_arenas()
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
ready = threading.Barrier(8)
def allocate():
    ready.wait()  # all at once, so that each finds the others' arenas in use
    for _ in range(2000):
        libc.malloc(500)
threads = [threading.Thread(target=allocate) for _ in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
with tempfile.NamedTemporaryFile() as file:
    stream = ctypes.c_void_p(libc.fopen(file.name.encode(), b"w"))
    libc.malloc_info(0, stream)
    libc.fclose(stream)
    print(open(file.name).read().count("<heap nr="))
"""
# Small blocks of which every hundredth stays, so that freeing them alone returns nothing.
FREED = """
import ctypes, os
from app.run.memory import give_back
def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_void_p]
blocks = [libc.malloc(32768) for _ in range(2000)]
for block in blocks:
    ctypes.memset(block, 1, 32768)
for k, block in enumerate(blocks):
    if k % 100:
        libc.free(block)
before = resident()
give_back()
print(before - resident())
"""


def arenas(*arguments, **environment):
    done = subprocess.run(
        [sys.executable, "-c", CODE, *arguments],
        env={n: v for n, v in os.environ.items() if n != "MALLOC_ARENA_MAX"} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="arenas are glibc's")
def test_threads_share_two_arenas_unless_the_environment_says_otherwise():
    assert arenas("none") > 2
    assert arenas("limit") <= 2
    assert arenas("limit", MALLOC_ARENA_MAX="5") > 2


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="elsewhere nothing is given back")
def test_what_is_free_is_given_back():
    done = subprocess.run([sys.executable, "-c", FREED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 40  # of 62 MB
