"""Many visitors for many minutes, half of whom leave in the middle of a run: does the demo stay as it is?

    python benchmarks/soak.py checkpoints/orchard --minutes 10 --out docs/results/orchard-soak.json

Visitors open the page, upload photos, run the form or call the API, and fetch the zip, each with a session of
its own every time. Now and then all pause, and what the process then has is measured: memory, threads, file
descriptors, temporary files, and whether a run finds a place at once. In the end it is ended by SIGTERM.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import socket
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import API, Client, Server, served  # noqa: E402
from mmdiff.images import encoded  # noqa: E402

PAUSES = 10  # in all
SETTLE_SECONDS = 6.0  # until what the visitors left behind is gone
TASK = "any_to_any"
# Since the warm-up, a third of the time. Memory goes on growing until there are as many sessions as are kept.
MAX_GROWTH = {"memory_mb": 100, "threads": 20, "descriptors": 15, "files": 4000}


class Page:
    """What a visitor's browser knows of the page.

    Attributes:
        run, zip: numbers of the events of the form's buttons. inputs: of `run`, as the form has them first.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        components = {c["id"]: c for c in config["components"]}
        ids = {c["props"].get("elem_id"): number for number, c in components.items()}

        def event(button: str) -> dict[str, Any]:
            target = [ids[f"{TASK}-{button}"], "click"]
            own = [d for d in config["dependencies"] if target in d["targets"] and d["backend_fn"]]
            return own[0]

        run = event("run")
        self.run, self.zip = run["id"], event("zip")["id"]
        self.inputs = [components[number]["props"].get("value") for number in run["inputs"]]
        self.steps = run["inputs"].index(ids[f"{TASK}-steps"])


class Visitor(threading.Thread):
    """Comes again and again until `over`; waits while `pause` is set."""

    def __init__(self, number: int, address: str, page: Page, counts: Counter[str]) -> None:
        super().__init__(daemon=True)
        self._draw, self._address, self._page, self._counts = random.Random(number), address, page, counts
        self._leaves = number % 2 == 1
        self.pause, self.over, self.idle = threading.Event(), threading.Event(), threading.Event()

    def run(self) -> None:
        """Visits."""
        while not self.over.is_set():
            if self.pause.is_set():
                self.idle.set()
                time.sleep(0.1)
                continue
            self.idle.clear()
            try:
                (self._browse if self._draw.random() < 0.7 else self._call)(Client(self._address))
            except Exception as error:
                self._counts[f"error: {type(error).__name__}: {str(error)[:80]}"] += 1
        self.idle.set()

    def _browse(self, client: Client) -> None:
        """Opens the page, runs the form, and fetches the zip or leaves."""
        client.send("/")
        with closing(self._connection(f"{API}/heartbeat/{client.session}")):
            if self._draw.random() < 0.5:
                client.upload("photo.png", photo(self._draw))
            inputs = list(self._page.inputs)
            inputs[self._page.steps] = self._draw.randint(5, 20)
            if self._event(client, self._page.run, inputs, self._leaves):
                self._event(client, self._page.zip, ["", None], False)

    def _call(self, client: Client) -> None:
        """Has the API make something of a photo."""
        sent = client.upload("photo.png", photo(self._draw))
        data = [sent, None, None, None, None, None, None, self._draw.randint(3, 15), None, 2]
        joined = client.send(f"{API}/call/generate", {"data": data})
        if not joined.ok:
            self._counts[f"refused: {joined.error}"] += 1
            return
        self._listen(f"{API}/call/generate/{json.loads(joined.body)['event_id']}", client, self._leaves)

    def _event(self, client: Client, index: int, data: list[Any], leaves: bool) -> bool:
        body = {"data": data, "fn_index": index, "session_hash": client.session}
        joined = client.send(f"{API}/queue/join", body)
        if not joined.ok:
            self._counts[f"refused: {joined.error}"] += 1
            return False
        return self._listen(f"{API}/queue/data?session_hash={client.session}", client, leaves)

    def _listen(self, path: str, client: Client, leaves: bool) -> bool:
        """Follows a stream to its end, or leaves after a while; whether it came to a good end."""
        until = time.monotonic() + self._draw.uniform(0.1, 3) if leaves else float("inf")
        with closing(client.lines(path)) as lines:
            for line in lines:
                if '"process_completed"' in line or line.startswith("event: complete"):
                    good = '"success":false' not in line
                    self._counts["finished" if good else f"refused: {_error(line)}"] += 1
                    return good
                if line.startswith("event: error"):
                    self._counts[f"refused: {_error(next(lines))}"] += 1
                    return False
                if time.monotonic() > until:
                    self._counts["left"] += 1
                    return False
        return False

    def _connection(self, path: str) -> socket.socket:
        """A stream that nobody reads, as a page keeps one open to say that it is there."""
        where = urlsplit(self._address)
        connection = socket.create_connection((where.hostname, where.port), 30)
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: {where.netloc}\r\n\r\n".encode())
        return connection


def _error(line: str) -> str:
    """What is said of the error in a message of a stream."""
    message = json.loads(line.removeprefix("data: "))
    said = message.get("output") or message if isinstance(message, dict) else {"error": message}
    return str(said.get("error"))[:100]


def photo(draw: random.Random) -> bytes:
    """A PNG that nobody has sent before."""
    numbers = np.random.default_rng(draw.randrange(2**32))
    return encoded(Image.fromarray(numbers.integers(0, 256, (200, 300, 3), dtype=np.uint8)))


def measured(server: Server, page: Page) -> dict[str, Any]:
    """What the process has now, and how a run fares that meets nobody."""
    process = psutil.Process(server.process.pid)
    files = [path.stat().st_size for path in server.folder.rglob("*") if path.is_file()]
    facts = {
        "memory_mb": round(process.memory_info().rss / 2**20),
        "threads": process.num_threads(),
        "descriptors": process.num_fds(),
        "files": len(files),
        "files_mb": round(sum(files) / 2**20, 1),
    }
    client, start, waits = Client(server.address), time.monotonic(), 0
    inputs = list(page.inputs)
    inputs[page.steps] = 4
    client.send(f"{API}/queue/join", {"data": inputs, "fn_index": page.run, "session_hash": client.session})
    for line in client.lines(f"{API}/queue/data?session_hash={client.session}"):
        waits += "All places are taken" in line
        if '"process_completed"' in line:
            break
    return facts | {"run_seconds": round(time.monotonic() - start, 2), "run_waits": waits}


def soak(server: Server, clients: int, minutes: float) -> dict[str, Any]:
    """So many visitors for so long; what was measured in the pauses, and what became of their runs."""
    page, counts = Page(Client(server.address).config()), Counter[str]()
    visitors = [Visitor(number, server.address, page, counts) for number in range(clients)]
    pauses = [{"minute": 0.0} | measured(server, page)]
    for visitor in visitors:
        visitor.start()
    for number in range(1, PAUSES + 1):
        time.sleep(60 * minutes / PAUSES)
        for visitor in visitors:
            visitor.pause.set()
        for visitor in visitors:
            visitor.idle.wait(120)
        time.sleep(SETTLE_SECONDS)
        pauses.append({"minute": round(minutes * number / PAUSES, 2)} | measured(server, page))
        print(json.dumps(pauses[-1]), flush=True)
        for visitor in visitors:
            if number == PAUSES:
                visitor.over.set()
            visitor.pause.clear()
    return {"clients": clients, "minutes": minutes, "runs": dict(counts), "pauses": pauses}


def growth(pauses: list[dict[str, Any]]) -> dict[str, int]:
    """From the pauses after the warm-up, a third of the time, to as many at the end."""
    count = max(1, PAUSES // 3)
    early, late = pauses[1 + count : 1 + 2 * count], pauses[-count:]
    return {name: round(mean(p[name] for p in late) - mean(p[name] for p in early)) for name in MAX_GROWTH}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("--clients", type=int, default=12, help="visitors at a time (%(default)s)")
    parser.add_argument("--minutes", type=float, default=10, help="how long they come (%(default)s)")
    parser.add_argument("--out", type=Path, help="JSON to write; printed in any case")
    arguments = parser.parse_args()
    with served(arguments.checkpoint) as server:
        result = soak(server, arguments.clients, arguments.minutes)
        log = server.log()
        end = {"seconds": round(server.end(), 2), "code": server.process.returncode}
        end["files_left"] = sum(path.is_file() for path in server.folder.rglob("*"))
    result |= {
        "checkpoint": Path(arguments.checkpoint).name,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "growth": growth(result["pauses"]),
        "end": end,
        "log_lines": len(log.splitlines()),
    }
    text = json.dumps(result, indent=1) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)
    grown = {name: by for name, by in result["growth"].items() if by > MAX_GROWTH[name]}
    waiting = [pause["minute"] for pause in result["pauses"] if pause["run_waits"]]
    if grown or waiting or end["files_left"] or end["code"]:
        print(log[-5000:], file=sys.stderr)
        raise SystemExit(
            f"it does not stay as it is: grown by {grown}, places taken at {waiting}, end {end}."
        )


if __name__ == "__main__":
    main()
