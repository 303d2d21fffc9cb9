"""The heaviest run that the server takes: 100 steps of 8 samples, guided by three modalities, 32 rows a call.

    python benchmarks/heaviest.py checkpoints/orchard --out docs/results/orchard-heaviest.json

How long it takes, how much memory it adds at most, and how long the page takes to answer in the meantime.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import Client, Server, served  # noqa: E402
from benchmarks.soak import photo  # noqa: E402
from mmdiff.images import encoded  # noqa: E402

STEPS, SAMPLES, GUIDED = 100, 8, ("image", "label", "embedding")
LOOK_SECONDS = 0.2  # between two looks at the memory


class Watch(threading.Thread):
    """Looks at a server until `over`: its largest memory, and its slowest page."""

    def __init__(self, server: Server) -> None:
        super().__init__(daemon=True)
        self._process, self._address = psutil.Process(server.process.pid), server.address
        self.before = self.most = self._process.memory_info().rss
        self.slowest, self.over = 0.0, threading.Event()

    def run(self) -> None:
        """Looks."""
        while not self.over.wait(LOOK_SECONDS):
            start = time.monotonic()
            assert Client(self._address).send("/").ok
            self.slowest = max(self.slowest, time.monotonic() - start)
            self.most = max(self.most, self._process.memory_info().rss)


def hole() -> bytes:
    """A PNG by which the lower half of `photo` is to be filled in."""
    shape = np.zeros((200, 300), dtype=np.uint8)
    shape[100:] = 255
    return encoded(Image.fromarray(shape))


def inputs(client: Client, steps: int) -> list[Any]:
    """Of /generate, in its order."""
    answer = client.call("describe", [])
    (facts,) = answer.body
    label = next(iter(facts.values()))["label"]["classes"][0]
    sent = client.upload("photo.png", photo(random.Random(0))), client.upload("hole.png", hole())
    scales = dict.fromkeys(GUIDED, 2.0)
    return [*sent, None, label, "a photo", None, None, steps, 0, SAMPLES, scales]


def heaviest(server: Server, steps: int = STEPS) -> dict[str, Any]:
    """Runs it; what it took. Raises RuntimeError if it is refused."""
    client = Client(server.address, seconds=1800)
    data, watch = inputs(client, steps), Watch(server)
    watch.start()
    start = time.monotonic()
    answer = client.call("generate", data)
    seconds = time.monotonic() - start
    watch.over.set()
    watch.join()
    if not answer.ok:
        raise RuntimeError(f"the run was refused: {answer.error}")
    pictures = len(answer.body[0])
    return {
        "steps": steps,
        "samples": pictures,
        "rows_a_call": pictures * (1 + len(GUIDED)),
        "seconds": round(seconds, 1),
        "memory_before_mb": round(watch.before / 2**20),
        "memory_added_mb": round((watch.most - watch.before) / 2**20),
        "slowest_page_seconds": round(watch.slowest, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint with a photo, a label and an embedding")
    parser.add_argument("--out", type=Path, help="JSON to write; printed in any case")
    arguments = parser.parse_args()
    with served(arguments.checkpoint) as server:
        found = heaviest(server)
    facts = {"checkpoint": Path(arguments.checkpoint).name, "cores": os.cpu_count()}
    text = json.dumps(facts | found, indent=1) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
