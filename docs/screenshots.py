"""Screenshots of the demo for docs/: `python docs/screenshots.py` (needs Chromium and requirements-dev.txt).

What the page opens with, every tab after a run, and presenting: the three that docs/ shows, or with --all at
the sizes of a wall, a desktop, a tablet and a phone, in light and in dark, into a folder of one's own.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from app.run.checkpoints import load_all, warm_up  # noqa: E402
from app.run.defaults import FOLLOWED  # noqa: E402
from app.task import TASKS  # noqa: E402
from app.ui import build_demo, launch  # noqa: E402

FLAGS = "--no-sandbox --disable-gpu --disable-background-networking --disable-sync --no-first-run".split()
SIZES = {"wall": (1920, 1080), "desktop": (1440, 1000), "tablet": (768, 1024), "phone": (390, 844)}
KEPT = ("opening-desktop-light", "any_to_any-desktop-light", "image_label-desktop-dark")  # in docs/
# Run floats at the bottom of the window, which in a picture of the whole page is its middle.
AT_REST = ".run-row { position: static !important; } .opening { display: none !important; }"
SEED, STEPS = 18, 20  # so that the pictures are the same every time
FORMED = ".constellation[data-scene='1'][data-done='1.00']"  # around what was pinned

HALF_FORMED = """() => {
  const { scene, done } = document.querySelector('.present .constellation').dataset;
  return scene === '1' && Number(done) > 0.6;
}"""


def opening(page: Any, address: str) -> None:
    """What the page opens with, once a recorded run is over."""
    page.goto(address)
    page.locator("#header").wait_for()
    page.locator(FORMED).wait_for()


def present(page: Any, address: str) -> None:
    """Presenting, in the middle of a recorded run."""
    page.goto(address)
    page.locator(".constellation[data-scene]").wait_for()
    page.keyboard.press("f")
    page.keyboard.press("ArrowRight")
    page.wait_for_function(HALF_FORMED)


def run(page: Any, address: str, task: str) -> None:
    """Opens the page and runs the task, by a link where the given values fit into one."""
    if task == "fill_in":
        fill_in(page, address)
    else:
        page.goto(f"{address}?task={task}&seed={SEED}&steps={STEPS}&first=label&guide.label={FOLLOWED}")
    page.locator(f"#{task}-status", has_text="Done").wait_for(timeout=60_000)
    page.wait_for_timeout(800)
    if task == "image_label":
        fork(page)
    page.add_style_tag(content=AT_REST)
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_timeout(200)


def fill_in(page: Any, address: str) -> None:
    """Runs the photo and the hole that the tab opens with."""
    page.goto(address)
    page.get_by_role("tab", name="Fill in", exact=True).first.click()
    page.locator("#fill_in-plan", has_text="in the hole").wait_for()
    field = page.locator("#fill_in-seed input[type=number]")
    field.fill(str(SEED))
    field.press("Tab")
    page.locator("#fill_in-keep-seed input").check()
    page.wait_for_timeout(800)
    page.locator("#fill_in-run").click()


def fork(page: Any) -> None:
    """Image + label: a fork with another label from the sixth step on."""
    page.locator("#image_label-player .scrubber").fill("6")
    page.locator("#image_label-label-role").get_by_label("I provide", exact=True).check()
    page.locator("#image_label-label-choice input").click()
    page.get_by_role("option").nth(3).click()
    page.locator("#image_label-plan", has_text="from the label").wait_for()
    page.locator("#image_label-fork").click()
    page.locator("#image_label-player [data-track='1']").wait_for(timeout=60_000)
    page.locator("#image_label-status", has_text="Done").wait_for(timeout=60_000)
    page.wait_for_timeout(800)


def scenes() -> dict[str, Callable[[Any, str], None]]:
    """Name -> what is done before the picture is taken."""
    tabs = {t.name: lambda page, address, task=t.name: run(page, address, task) for t in TASKS}
    return {"opening": opening, "present": present, **tabs}


def main() -> None:
    from playwright.sync_api import sync_playwright

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", default="checkpoints/orchard")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "screenshots")
    parser.add_argument("--all", action="store_true", help="every size in light and dark")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    every = [f"{n}-{size}-{scheme}" for n in scenes() for size in SIZES for scheme in ("light", "dark")]
    services = load_all(arguments.checkpoint)
    demo = build_demo(services)
    warm_up(services)
    address = launch(demo, prevent_thread_lock=True, quiet=True)[1]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        for picture in every if arguments.all else KEPT:
            name, size, scheme = picture.split("-")
            viewport = dict(zip(("width", "height"), SIZES[size], strict=True))
            page = browser.new_page(viewport=viewport, color_scheme=scheme)
            scenes()[name](page, address)
            whole = name not in ("opening", "present")
            page.screenshot(path=arguments.out / f"{picture}.png", full_page=whole)
            page.close()
        browser.close()
    demo.close(verbose=False)


if __name__ == "__main__":
    main()
