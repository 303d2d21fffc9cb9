"""The last runs of a browser, and an address that brings them back, in a real Chromium."""

import numpy as np
import pytest
from chromium import MARKS
from test_app_browser import address, contexts, near, pipe, visit  # noqa: F401

pytestmark = MARKS
SIZES = ("desktop", "tablet", "phone")


@pytest.fixture
def fresh(visit):  # noqa: F811
    """A visitor whose browser has kept nothing."""

    def open_page(task="image_label", size="desktop", query=""):
        visitor = visit(task, size, query=query)
        visitor.page.evaluate("localStorage.clear()")
        return visitor

    return open_page


def runs(visitor):
    return visitor.page.locator("#runs li")


def run_some(visitor, count):
    """So many runs, and the picture of each."""
    pictures = []
    for _ in range(count):
        visitor.run()
        visitor.done()
        pictures.append(visitor.picture())
    near(lambda: runs(visitor).count() == min(count, 12))
    return pictures


def drag(visitor, source, panel):
    """Drags a picture onto the lower part of a panel."""
    source.scroll_into_view_if_needed()
    start, end, mouse = source.bounding_box(), panel.bounding_box(), visitor.page.mouse
    mouse.move(start["x"] + 40, start["y"] + 40)
    mouse.down()
    mouse.move(start["x"] + 60, start["y"] - 30, steps=6)
    mouse.move(end["x"] + end["width"] / 2, end["y"] + end["height"] - 60, steps=5)
    mouse.up()


@pytest.mark.parametrize("size", SIZES)
def test_the_last_runs_are_a_strip_and_a_click_restores_one(fresh, size):
    visitor = fresh(size=size)
    first, second = run_some(visitor, 2)
    assert visitor.fits()
    opened = runs(visitor).nth(1).locator(".open")
    opened.tap() if size != "desktop" else opened.click()
    visitor.done()
    assert np.array_equal(visitor.picture(), first) and not np.array_equal(first, second)
    assert runs(visitor).count() == 2  # the same run is not kept twice


def test_twelve_runs_are_kept_and_may_be_forgotten(fresh):
    visitor = fresh()
    visitor.find("steps", "input[type=number]").fill("2")
    visitor.find("steps", "input[type=number]").press("Tab")
    run_some(visitor, 13)
    visitor.page.get_by_role("button", name="Forget them").click()
    assert not runs(visitor).count() and not visitor.page.locator("#runs").is_visible()


@pytest.mark.parametrize("size", SIZES)
def test_reload_and_back_keep_tab_settings_and_result(fresh, pipe, size):  # noqa: F811
    visitor = fresh(size=size)
    visitor.choose("label", "I provide")
    visitor.find("label-choice", "input").click()
    visitor.page.get_by_role("option", name="Cherry Wax").click()
    visitor.plan("from the label")
    first, second = run_some(visitor, 2)
    visitor.leave(visitor.page.reload)
    visitor.task = "image_label"
    visitor.status("Done")
    assert np.array_equal(visitor.picture(), second)
    assert pipe.calls[-1].given == {"label": "Cherry Wax"}
    assert visitor.find("label-choice", "input").input_value() == "Cherry Wax"
    visitor.page.go_back()
    near(lambda: np.array_equal(visitor.picture(), first), 10)
    visitor.status("Done")


@pytest.mark.parametrize("size", SIZES)
def test_back_returns_to_the_tab_before_and_reload_to_the_same(fresh, size):
    visitor = fresh("image_label", size)
    visitor.page.wait_for_url("**/#image_label")
    visitor.open("any_to_any")
    visitor.page.wait_for_url("**/#any_to_any")
    visitor.page.go_back()
    visitor.page.locator("#image_label-run").wait_for()
    visitor.leave(visitor.page.reload)
    visitor.page.locator("#image_label-run").wait_for()


def test_a_run_that_is_dragged_onto_a_result_stands_beside_it(fresh):
    visitor = fresh()
    first, second = run_some(visitor, 2)
    drag(visitor, runs(visitor).nth(1).locator("img"), visitor.find("run-panel"))
    visitor.done()
    assert visitor.player("[data-track]").count() == 2
    assert np.array_equal(visitor.picture(track=0), second)
    assert np.array_equal(visitor.picture(track=1), first)


@pytest.mark.parametrize("size", ["tablet", "phone"])
def test_a_finger_compares_by_a_button(fresh, size):
    visitor = fresh(size=size)
    run_some(visitor, 2)
    runs(visitor).nth(1).get_by_role("button", name="Compare").tap()
    visitor.done()
    assert visitor.player("[data-track]").count() == 2 and visitor.fits()


def test_the_picture_of_a_run_is_used_as_input(fresh, pipe):  # noqa: F811
    visitor = fresh()
    (made,) = run_some(visitor, 1)
    runs(visitor).first.get_by_role("button", name="Use as input").click()
    visitor.plan("Creates label from the image")
    visitor.run()
    visitor.done()
    assert np.array_equal(np.asarray(pipe.calls[-1].given["image"]), made)


def test_another_checkpoint_asks_only_when_something_would_be_lost(fresh):
    visitor = fresh()
    asked = []
    visitor.page.on("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    menu = visitor.page.locator(".facts select")
    visitor.choose("label", "I provide")
    menu.select_option("second")
    near(lambda: len(asked) == 1)
    assert "lost" in asked[0] and menu.input_value() == ""
    run_some(fresh(), 1)
    visitor = fresh()
    visitor.leave(lambda: visitor.page.locator(".facts select").select_option("second"))
    visitor.page.wait_for_url("**/second#image_label")


def test_a_link_for_another_checkpoint_leads_there(fresh, address):  # noqa: F811
    visitor = fresh()
    visitor.page.goto(f"{address}/?task=image_label&seed=5&steps=4&model=second")
    visitor.page.wait_for_url(f"{address}/second?**")
    visitor.status("Done")
    assert "second" in visitor.player(".save").first.get_attribute("download")
    visitor.errors.clear()  # the first page complains of the requests that leaving it cuts off
