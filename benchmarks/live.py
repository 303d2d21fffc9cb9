"""How well live mode keeps up: pictures a second while a mask is painted, and from a change to its picture.

    python benchmarks/live.py checkpoints/orchard --out docs/results/orchard-live.json

The page is driven in Chromium on the same machine, as fast as a hand would: a stroke goes round and round in
the paint area, and every picture that the player shows is counted.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.engine import FLAGS, served  # noqa: E402

TASK = "image_mask"
# Keeps the time of every picture that the player shows, and resolves with the milliseconds from a change (a
# ready-made shape or an undo) to the next of them.
WATCH = """task => {
  const player = document.getElementById(`${task}-player`);
  const shown = () => player.querySelector('[data-run^=live] figure[data-modality=image] .frame img')?.src;
  window.pictures = [];
  let last = shown();
  new MutationObserver(() => {
    if (shown() === last || !shown()) return;
    last = shown();
    pictures.push(performance.now());
  }).observe(player, { subtree: true, childList: true, attributes: true });
  window.change = (selector) => new Promise((resolve) => {
    const count = pictures.length, start = performance.now();
    document.querySelector(selector).click();
    const look = () => (pictures.length > count ? resolve(pictures[count] - start) : setTimeout(look, 2));
    look();
  });
}"""


def opened(browser: Any, address: str) -> Any:
    """The page with live mode on and a mask to paint."""
    page = browser.new_page(viewport={"width": 1440, "height": 1000})
    with page.expect_request("**/heartbeat/*"):
        page.goto(f"{address}/?task={TASK}&seed=1&steps=2")  # opens the tab
    page.locator(f"#{TASK}-status", has_text="Done").wait_for(timeout=60_000)
    page.locator(f"#{TASK}-mask-role input").first.check()
    page.locator(f"#{TASK}-live input").check()
    page.evaluate(WATCH, TASK)
    return page


def dragged(page: Any, seconds: float) -> tuple[int, float]:
    """Pictures shown during a stroke of so many seconds, and how long it was."""
    canvas = page.locator(f"#{TASK}-mask-painter canvas")
    canvas.evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")
    box = canvas.bounding_box()

    def go_to(turn: float) -> None:  # outwards, so that every move paints something new
        radius = 0.05 + 0.035 * turn
        x, y = 0.5 + radius * math.cos(turn), 0.5 + radius * math.sin(turn)
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])

    go_to(0)
    page.mouse.down()
    page.wait_for_timeout(500)
    before, start = page.evaluate("pictures.length"), time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        go_to(passed * 2)
        page.wait_for_timeout(16)
    count = page.evaluate("pictures.length") - before
    page.mouse.up()
    return count, time.perf_counter() - start


def measured(checkpoint: str, rounds: int, seconds: float) -> dict[str, Any]:
    """Rate and latency, from several strokes and single changes."""
    from playwright.sync_api import sync_playwright

    with served(checkpoint) as (address, *_), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        page = opened(browser, address)
        dragged(page, 1.0)  # stays, so that no mask is empty
        page.wait_for_timeout(3000)
        rates = []
        for _ in range(rounds):
            count, passed = dragged(page, seconds)
            rates.append(count / passed)
            page.wait_for_timeout(4000)  # refined by then
            page.locator(f"#{TASK}-mask-painter [data-action=undo]").click()  # room for the next stroke
            page.wait_for_timeout(4000)
        latencies = []
        for _ in range(rounds):
            for action in ("redo", "undo"):
                latencies.append(page.evaluate(f"change('#{TASK}-mask-painter [data-action={action}]')"))
                page.wait_for_timeout(300)
        browser.close()
    return {
        "pictures_per_second": round(statistics.median(rates), 2),
        "pictures_per_second_range": [round(min(rates), 2), round(max(rates), 2)],
        "change_to_picture_seconds": round(statistics.median(latencies) / 1000, 3),
        "change_to_picture_seconds_range": [round(f(latencies) / 1000, 3) for f in (min, max)],
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", help="folder of a checkpoint")
    parser.add_argument("--out", type=Path, help="JSON to write; printed in any case")
    parser.add_argument("--rounds", type=int, default=5, help="strokes (%(default)s)")
    parser.add_argument("--seconds", type=float, default=5, help="of a stroke (%(default)s)")
    arguments = parser.parse_args()
    results = {
        "checkpoint": Path(arguments.checkpoint).name,
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 1),  # of everything else on this machine
        "torch": torch.__version__,
        "python": platform.python_version(),
        **measured(arguments.checkpoint, arguments.rounds, arguments.seconds),
    }
    text = json.dumps(results, indent=1) + "\n"
    print(text, end="")
    if arguments.out:
        arguments.out.write_text(text)


if __name__ == "__main__":
    main()
