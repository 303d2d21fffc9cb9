"""The page for those who use it without a mouse, without seeing it, or with a finger: in a real Chromium."""

import re

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from chromium import MARKS
from test_app_browser import EVERYTHING, address, contexts, near, pipe, visit  # noqa: F401

from app.task import TASKS

pytestmark = MARKS
HEARD = ("serious", "critical")
# What can be pressed. A radio button and a tick box are as large as their labels, a list as its frame.
PRESSED = (
    "button, a[href], select, [role=tab], input[type=range], input[type=number], "
    "label:has([type=radio], [type=checkbox])"
)
SMALL = """(pressed) => [...document.querySelectorAll(pressed)]
  .filter((node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: true }))
  .map((node) => [node.innerText || node.ariaLabel || node.className, node.getBoundingClientRect()])
  .filter(([, { width, height }]) => height > 1 && width > 1 && (height < 39.5 || width < 39.5))
  .map(([name, { width, height }]) => `${name.trim()}: ${Math.round(width)} x ${Math.round(height)}`)"""
LAST_TAB = """[...document.querySelectorAll('[role=tab], .overflow-dropdown button')]
  .forEach((tab) => tab.innerText === 'How it works' && tab.click())"""


def complaints(page):
    """What axe finds that keeps people from using the page, and headings out of order."""
    found = Axe().run(page).response["violations"]
    grave = [v for v in found if v["impact"] in HEARD or v["id"] == "heading-order"]
    return [(v["id"], [node["target"] for node in v["nodes"]]) for v in grave]


def open_all(visitor):
    """Shows all controls of a tab."""
    for part in ("more", "compare", "code"):
        visitor.find(part, "button").first.click()
    for modality in EVERYTHING:
        if visitor.find(f"{modality}-role").locator("visible=true").count():
            visitor.choose(modality, "I provide")
    visitor.page.wait_for_timeout(500)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_axe_finds_nothing_serious_on_any_tab(visit, size, scheme):  # noqa: F811
    visitor = visit("image_mask", size, color_scheme=scheme)
    for task in [task.name for task in TASKS]:
        visitor.open(task)
        visitor.run()
        visitor.done()
        assert not complaints(visitor.page), task
        open_all(visitor)
        visitor.page.locator('.cm-scroller[tabindex="0"]').locator("visible=true").nth(1).wait_for()
        assert not complaints(visitor.page), task
    visitor.page.evaluate(LAST_TAB)
    visitor.page.locator(".how h2").first.wait_for()
    assert not complaints(visitor.page)


def test_a_group_of_radio_buttons_is_one_stop_and_arrows_choose(visit):  # noqa: F811
    visitor = visit("any_to_any")
    visitor.find("image-role", "input:checked").focus()
    visitor.page.keyboard.press("Tab")
    at = visitor.page.evaluate("document.activeElement.closest('fieldset')?.id")
    assert at == "any_to_any-mask-role"
    visitor.page.keyboard.press("ArrowRight")
    visitor.plan("Creates image, label and embedding from noise alone")


def test_run_keeps_the_focus_and_the_end_is_announced(visit, pipe, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pipe, "step_seconds", 0.05)  # it is to go on while it is asked for once more
    visitor = visit("image_label")
    visitor.find("steps", "input[type=number]").fill("100")
    visitor.page.keyboard.press("Tab")
    visitor.find("run").focus()
    visitor.page.keyboard.press("Enter")
    visitor.status("Step")
    assert visitor.page.evaluate("document.activeElement.id") == "image_label-run"
    before = len(pipe.calls)
    visitor.run()  # one run at a time
    visitor.done()
    assert len(pipe.calls) == before
    assert visitor.page.evaluate("document.activeElement.id") == "image_label-run"
    label = visitor.player('figure[data-modality="label"] .name').first.inner_text()
    announced = visitor.player(".announced")
    assert announced.get_attribute("aria-live") == "polite"
    assert announced.inner_text().startswith(f"Done. Image at step 100 of 100: {label}")


def test_pictures_say_what_they_show(visit):  # noqa: F811
    visitor = visit("any_to_any")
    visitor.run()
    visitor.done()
    label = visitor.player('figure[data-modality="label"] .name').first.inner_text()
    image = visitor.player('figure[data-modality="image"] .frame img').first.get_attribute("alt")
    assert image.startswith(f"Image at step 30 of 30: {label}")
    mask = visitor.player('figure[data-modality="mask"] .overlay').get_attribute("alt")
    share = (visitor.picture("mask") == 1).mean()
    assert abs(int(re.search(r"fruit (\d+)%", mask)[1]) / 100 - share) < 0.01


@pytest.mark.parametrize("modality", ["image", "mask"])
def test_who_cannot_paint_takes_a_ready_made_shape(visit, modality):  # noqa: F811
    visitor = visit("fill_in")
    if modality == "mask":
        visitor.choose("mask", "I provide")
    visitor.find(f"{modality}-painter", "[data-action=clear]").press("Enter")
    canvas = visitor.find(f"{modality}-painter", "canvas")
    near(lambda: "nothing painted" in canvas.get_attribute("aria-label") or modality == "mask")
    assert canvas.get_attribute("role") == "img"
    shape = "box" if modality == "image" else "disc"
    visitor.find(f"{modality}-painter", f"[data-preset={shape}]").press("Enter")
    rows, columns = np.mgrid[:64, :64] + 0.5 - 32
    expected = (
        np.hypot(rows, columns) < 0.32 * 64 if shape == "disc" else (np.abs([rows, columns]) < 16).all(0)
    )
    assert np.array_equal(visitor.cells(modality), expected)
    name = "fruit" if modality == "mask" else "Hole"
    assert f"{name} {round(100 * expected.mean())}%" in canvas.get_attribute("aria-label")


@pytest.mark.parametrize("task", ["fill_in", "any_to_any"])
@pytest.mark.parametrize("size", ["tablet", "phone"])
def test_everything_is_large_enough_for_a_finger(visit, size, task):  # noqa: F811
    visitor = visit(task, size)
    open_all(visitor)
    visitor.run()
    visitor.page.wait_for_timeout(500)
    assert visitor.page.evaluate(SMALL, PRESSED) == []
    assert visitor.fits()
