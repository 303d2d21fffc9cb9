"""How fast the demo is: model against a plain DiT, engine against bare loops, the page, and its start.

    python benchmarks/engine.py checkpoints/orchard --out docs/results/orchard-speed.json

Every comparison is made in pairs, one after the other in turn, so that whatever else the machine does meets
both sides; the figure is the median of the pairs' ratios. The page is driven in Chromium on the same machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DiTTransformer2DModel

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.serving import free_port  # noqa: E402
from mmdiff.pipeline import Pipeline  # noqa: E402
from mmdiff.request import Request  # noqa: E402
from mmdiff.samplers import SampleNoise, sample_ddim, timesteps  # noqa: E402

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run".split()
STARTS = 3
# Resolves with the milliseconds from the click to the first step and to the end of the run.
TIME_A_RUN = """() => new Promise((resolve) => {
  const status = document.getElementById('any_to_any-status'), start = performance.now();
  let first = 0;
  const look = () => {
    const text = status.textContent;
    if (!first && /Step \\d+ of/.test(text)) first = performance.now() - start;
    if (first && /^Done/.test(text.trim())) resolve([first, performance.now() - start]);
  };
  new MutationObserver(look).observe(status, { subtree: true, childList: true, characterData: true });
  document.getElementById('any_to_any-run').click();
})"""


def loaded(checkpoint: str, precision: str = "auto") -> Pipeline:
    """As the app loads it, see `mmdiff.serving.engine`."""
    load = partial(Pipeline.from_pretrained, checkpoint, background=True, precision=precision)
    with ThreadPoolExecutor(1) as worker:
        pipe = worker.submit(load).result()
    pipe.compile()
    return pipe


def seconds(action: Callable[[], Any]) -> float:
    """Wall time of a call."""
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def paired(one: Callable[[], float], other: Callable[[], float], rounds: int) -> dict[str, Any]:
    """Seconds of both in turn, and the median of one / other."""
    pairs = []
    for k in range(rounds):
        ordered = (one, other) if k % 2 == 0 else (other, one)  # neither is always first
        times = {action: action() for action in ordered}
        pairs.append((times[one], times[other]))
    ratios = sorted(a / b for a, b in pairs)
    return {
        "seconds": round(statistics.median(a for a, _ in pairs), 3),
        "against_seconds": round(statistics.median(b for _, b in pairs), 3),
        "ratio": round(statistics.median(ratios), 3),
        "ratio_range": [round(ratios[0], 3), round(ratios[-1], 3)],
        "rounds": rounds,
    }


def bare_loop(pipe: Pipeline, steps: int, batch: int = 1) -> float:
    """Seconds of a loop over the model and nothing else, in the thread that the engine has."""
    return pipe.engine.call(lambda: seconds(lambda: _bare_loop(pipe, steps, batch)))


def _bare_loop(pipe: Pipeline, steps: int, batch: int) -> None:
    model, nothing = pipe.model, pipe.model.nothing_given(batch, pipe.device)
    z_T = SampleNoise(range(batch), pipe.device)(pipe.model.z_shape)
    sampler = sample_ddim(
        pipe.schedule, z_T, timesteps(pipe.schedule.num_steps, steps, pipe.schedule.spacing)
    )
    z, t, _ = next(sampler)
    while t > 0:
        (raw,) = pipe.answer([model.call_at(pipe.schedule, z, t, nothing)])
        z, t, _ = sampler.send(model.clean_encodings(raw, nothing))


class Peer:
    """A DiT of diffusers: photos alone, as many tokens as the model, more parameters than `orchard` has."""

    def __init__(self, pipe: Pipeline) -> None:
        size, self._pipe = pipe.model.config.image_size, pipe
        looks = {
            "num_attention_heads": 4,
            "attention_head_dim": 64,
            "num_layers": 6,
            "num_embeds_ada_norm": 1000,
        }
        patch = size // pipe.model.grid
        network = DiTTransformer2DModel(
            in_channels=3, out_channels=3, sample_size=size, patch_size=patch, **looks
        )
        self._network, self._size = network.to(pipe.device, pipe.precision).eval(), size
        self.parameters = sum(p.numel() for p in network.parameters())

    def loop(self, steps: int, batch: int) -> float:
        """Seconds of sampling with DDIM, in the thread that the engine has."""
        return self._pipe.engine.call(lambda: seconds(lambda: self._loop(steps, batch)))

    @torch.no_grad()
    def _loop(self, steps: int, batch: int) -> None:
        scheduler = DDIMScheduler()
        scheduler.set_timesteps(steps)
        x = torch.randn(batch, 3, self._size, self._size, device=self._pipe.device)
        labels = torch.zeros(batch, dtype=torch.long, device=x.device)
        for t in scheduler.timesteps:
            seen = x.to(self._pipe.precision)
            noise = self._network(seen, timestep=t.to(x.device).expand(batch), class_labels=labels).sample
            x = scheduler.step(noise.float(), t, x).prev_sample


def network_calls(pipe: Pipeline, calls: int, batch: int) -> float:
    """Seconds of some calls of the network and nothing else."""

    def call() -> float:
        nothing = pipe.model.nothing_given(batch, pipe.device)
        z = torch.randn(batch, *pipe.model.z_shape, device=pipe.device)
        one = pipe.model.call_at(pipe.schedule, z, pipe.schedule.num_steps // 2, nothing)
        return seconds(lambda: [pipe.answer([one]) for _ in range(calls)])

    return pipe.engine.call(call)  # no other thread computes, see `mmdiff.serving.engine`


def engine_alone(pipe: Pipeline, steps: int) -> float:
    """Seconds of the same through the engine."""
    return seconds(lambda: list(pipe.run_batch(Request(wanted=pipe.model.names, steps=steps), [0])))


def requests(pipe: Pipeline, count: int, steps: int, together: bool) -> None:
    """`count` people who want everything generated, at once or one after the other."""
    people = [
        threading.Thread(target=lambda k=k: pipe(steps=steps, seed=k, wanted=tuple(pipe.modalities)))
        for k in range(count)
    ]
    if together:
        for person in people:
            person.start()
        for person in people:
            person.join()
        return
    for person in people:
        person.start()
        person.join()


def differences(one: Sequence[Any], other: Sequence[Any]) -> dict[str, float]:
    """How far results of equal requests are apart, at most and in the mean over all pixels or numbers."""
    found = {}
    pictures = [np.stack([np.asarray(p, float) for out in side for p in out.image]) for side in (one, other)]
    levels = np.abs(pictures[0] - pictures[1])
    found |= {"grey_levels_mean": levels.mean(), "grey_levels_99_percent": np.quantile(levels, 0.99)}
    if one[0].mask is not None:
        masks = [np.concatenate([out.mask for out in side]) for side in (one, other)]
        found["mask_pixels_share"] = (masks[0] != masks[1]).mean()
    for name in ("label", "embedding"):
        if one[0].values.get(name) is not None:
            values = [np.concatenate([out.values[name] for out in side]) for side in (one, other)]
            found[f"{name}_largest"] = np.abs(values[0] - values[1]).max()
    return {name: round(float(value), 5) for name, value in found.items()}


def measure_bfloat16(checkpoint: str, steps: int, rounds: int) -> dict[str, Any]:
    """bfloat16 against float32: time of the network, and how far results are apart."""
    pipe, half = loaded(checkpoint, "float32"), loaded(checkpoint, "bfloat16")
    wanted = tuple(pipe.modalities)
    ask = {"wanted": wanted, "steps": steps}
    alone = [[p(**ask, seed=k) for k in range(8)] for p in (pipe, half)]
    with ThreadPoolExecutor(8) as people:
        among = list(people.map(lambda k: half(**ask, seed=k), range(8)))
    times = {
        f"bfloat16_against_float32_batch_{batch}": paired(
            lambda batch=batch: network_calls(half, 4, batch),
            lambda batch=batch: network_calls(pipe, 4, batch),
            rounds,
        )
        for batch in (1, 8)
    }
    return times | {
        "bfloat16_differences": differences(*alone),
        "bfloat16_differences_among_eight": differences(alone[1], among),
    }


@contextmanager
def served(checkpoint: str, precision: str = "auto") -> Iterator[tuple[str, float, int | None]]:
    """`python app.py` on a free port: address, seconds until the first page, and MB by then."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    start = time.perf_counter()
    command = [sys.executable, "app.py", "--checkpoint", checkpoint, "--port", str(port)]
    command += ["--precision", precision]
    with subprocess.Popen(command, cwd=Path(__file__).parents[1], stdout=subprocess.DEVNULL) as process:
        try:
            while not _answers(address):
                if process.poll() is not None:
                    raise RuntimeError("app.py ended before it served a page.")
                time.sleep(0.05)
            yield address, time.perf_counter() - start, _megabytes(process.pid)
        finally:
            process.terminate()


def _megabytes(pid: int) -> int | None:
    """Resident memory of a process where /proc tells."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGESIZE") // 2**20


def _help() -> float:
    """Seconds of `python app.py --help`."""
    command = [sys.executable, "app.py", "--help"]
    return seconds(
        lambda: subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, check=True)
    )


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as page:
            return page.status == 200
    except (urllib.error.URLError, OSError):
        return False


def replayed(address: str, request: dict[str, Any]) -> float:
    """Seconds of a run that a page once asked for, all its previews received by nobody's browser."""
    request = {**request, "session_hash": uuid.uuid4().hex}
    queue = f"{address}/gradio_api/queue"
    start = time.perf_counter()
    headers = {"Content-Type": "application/json"}
    join = urllib.request.Request(f"{queue}/join", json.dumps(request).encode(), headers)
    with urllib.request.urlopen(join, timeout=60):
        pass
    with urllib.request.urlopen(f"{queue}/data?session_hash={request['session_hash']}", timeout=60) as events:
        for line in events:
            if b'"process_completed"' in line:
                if b'"success":true' not in line.replace(b" ", b""):
                    raise RuntimeError(f"the run failed: {line[:500]!r}")
                return time.perf_counter() - start
    raise RuntimeError("the stream of the run ended before the run.")


def measure_model(pipe: Pipeline, steps: int, rounds: int, people: int) -> dict[str, Any]:
    """A loop over all heads against one over the DiT, for one and for several samples; a short run."""
    peer = Peer(pipe)
    peer.loop(5, 1)
    return {
        "parameters": sum(p.numel() for p in pipe.model.parameters()),
        "dit_parameters": peer.parameters,
        **{
            f"loop_against_dit_batch_{batch}": paired(
                lambda batch=batch: bare_loop(pipe, steps, batch),
                lambda batch=batch: peer.loop(steps, batch),
                rounds if batch == 1 else max(3, rounds // 2),
            )
            for batch in (1, people)
        },
        "four_steps_seconds": round(statistics.median(engine_alone(pipe, 4) for _ in range(rounds)), 3),
    }


def measure_engine(pipe: Pipeline, steps: int, rounds: int, people: int) -> dict[str, Any]:
    """The engine against a bare loop, and several requests together against one after the other."""
    return {
        "engine_against_bare_loop": paired(
            lambda: engine_alone(pipe, steps),
            lambda: bare_loop(pipe, steps),
            2 * rounds,
        ),
        "together_against_one_by_one": paired(
            lambda: seconds(lambda: requests(pipe, people, steps, True)),
            lambda: seconds(lambda: requests(pipe, people, steps, False)),
            max(3, rounds // 2),
        ),
        "network_together_against_one_by_one": paired(
            lambda: network_calls(pipe, 1, people),
            lambda: network_calls(pipe, people, 1),
            4 * rounds,
        ),
    }


def measure_page(app: Callable[[], Any], pipe: Pipeline, steps: int, rounds: int) -> dict[str, Any]:
    """The page in Chromium, and its stream without a browser, against the bare loop in this process."""
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        raise SystemExit("the page is measured in Chromium, which is not installed as `chromium`.")
    starts = []
    for _ in range(STARTS - 1):
        with app() as (_, started, _):
            starts.append(started)
    with app() as (address, started, megabytes), sync_playwright() as playwright:
        starts.append(started)
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page(viewport={"width": 1440, "height": 1000})
        page.goto(f"{address}/?task=any_to_any&steps=4&seed=1")  # opens the tab; its run is the warm-up
        page.locator("#any_to_any-status", has_text="Done").wait_for(timeout=60_000)
        page.locator("#any_to_any-steps input[type=number]").fill(str(steps))
        page.locator("#any_to_any-steps input[type=number]").press("Tab")
        page.wait_for_timeout(1000)
        firsts: list[float] = []
        joins: list[dict[str, Any]] = []
        page.on("request", lambda r: joins.append(r.post_data_json) if "/queue/join" in r.url else None)

        def through_the_page() -> float:
            first, total = page.evaluate(TIME_A_RUN)
            firsts.append(first / 1000)
            page.wait_for_timeout(300)
            return total / 1000

        through_the_page()
        firsts.clear()
        loop = lambda: bare_loop(pipe, steps)  # noqa: E731
        result = paired(through_the_page, loop, rounds)
        browser.close()
        run = max(joins, key=lambda request: len(request["data"]))  # the others tell less
        stream = paired(lambda: replayed(address, run), loop, rounds)
    return {
        "help_seconds": round(statistics.median(_help() for _ in range(STARTS)), 2),
        "start_to_first_page_seconds": round(statistics.median(starts), 2),
        "megabytes_at_first_page": megabytes,
        "first_preview_seconds": round(statistics.median(firsts), 3),
        "page_against_bare_loop": result,
        "stream_against_bare_loop": stream,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("--out", type=Path, help="JSON to write; printed in any case")
    parser.add_argument("--steps", type=int, default=30, help="steps of a request (%(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="pairs of each comparison (%(default)s)")
    parser.add_argument("--requests", type=int, default=8, help="people at once (%(default)s)")
    parser.add_argument("--precision", default="auto", help="auto, float32 or bfloat16 (%(default)s)")
    arguments = parser.parse_args()
    steps, rounds = arguments.steps, arguments.rounds
    pipe = loaded(arguments.checkpoint, arguments.precision)
    for warm_up in (bare_loop, engine_alone):
        warm_up(pipe, 5)
    app = partial(served, arguments.checkpoint, arguments.precision)
    results = {
        "checkpoint": Path(arguments.checkpoint).name,
        "device": str(pipe.device),
        "precision": str(pipe.precision).removeprefix("torch."),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "steps": steps,
        "requests": arguments.requests,
        **measure_model(pipe, steps, rounds, arguments.requests),
        **measure_bfloat16(arguments.checkpoint, steps, rounds),
        **measure_engine(pipe, steps, rounds, arguments.requests),
        **measure_page(app, pipe, steps, rounds),
    }
    text = json.dumps(results, indent=1) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
