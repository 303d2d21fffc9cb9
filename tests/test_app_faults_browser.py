"""Faults that strangers met on the page, in Chromium at the size of a desktop, a tablet and a phone."""

import urllib.error
import urllib.request

import pytest
from chromium import MARKS
from test_app_browser import RUNNING, address, contexts, near, pipe, visit  # noqa: F401

pytestmark = MARKS
SIZES = ("desktop", "tablet", "phone")


def top(visitor, name, inside=""):
    """Upper edge and lower edge of something, in pixels below the window's top."""
    box = visitor.find(name, inside).first.bounding_box()
    return box["y"], box["y"] + box["height"]


@pytest.mark.parametrize("size", ["tablet", "phone"])
def test_a_run_is_in_sight_from_its_start(visit, pipe, monkeypatch, size):  # noqa: F811
    visitor = visit("image_label", size)
    monkeypatch.setattr(pipe, "step_seconds", 0.3)
    visitor.find("run").tap()
    visitor.status(RUNNING)
    near(lambda: 0 <= top(visitor, "run-panel")[0] < 60, 3)
    visitor.find("stop").tap()
    visitor.status("Stopped at step")


@pytest.mark.parametrize("size", SIZES)
def test_the_status_never_covers_the_scrubber(visit, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    visitor.run()
    visitor.done()
    for far in (200, 500):
        visitor.page.evaluate(
            f"scrollTo(0, document.getElementById('any_to_any-run-panel').offsetTop + {far})"
        )
        visitor.page.wait_for_timeout(200)
        status, bar = top(visitor, "status"), top(visitor, "player", ".bar")
        assert status[0] >= 0 and status[1] - 4 <= bar[0]


def test_rows_of_a_comparison_are_at_one_height(visit):  # noqa: F811
    visitor = visit("any_to_any")
    visitor.find("compare", "button").first.click()
    steps = visitor.find("other-steps", "input[type=number]")
    steps.wait_for()
    visitor.page.wait_for_timeout(500)
    steps.fill("3")  # fewer than there is room for
    steps.press("Tab")
    visitor.find("run-both").click()
    visitor.done()
    for row in (".heads", ".timeline", ".grid > .name", ".curves"):
        heights = [
            [one.bounding_box()["y"] for one in visitor.player(f'[data-track="{k}"] {row}').all()]
            for k in (0, 1)
        ]
        assert heights[0] and heights[0] == pytest.approx(heights[1], abs=1), row


@pytest.mark.parametrize("size", SIZES)
def test_an_error_is_said_once_and_goes_when_something_changes(visit, size):  # noqa: F811
    visitor = visit("image_label", size)
    visitor.choose("label", "I provide")
    visitor.plan("First choose a label")
    visitor.run()
    visitor.status("Choose one from the list")
    assert visitor.page.locator(".toast-body").count() == 0
    visitor.choose("label", "Create")
    visitor.status("Ready to run")


def test_what_is_wrong_with_a_download_leaves_the_menu_free(visit, monkeypatch):  # noqa: F811
    visitor = visit("image_label")
    monkeypatch.setattr(
        "app.export.download.to_json", lambda *run: (_ for _ in ()).throw(ValueError("No room."))
    )
    visitor.find("json").click()
    toast = visitor.page.locator(".toast-body")
    toast.get_by_text("No room.").wait_for()
    assert toast.count() == 1
    assert toast.bounding_box()["y"] > visitor.page.locator(".facts").bounding_box()["y"] + 200


def test_a_message_on_a_file_goes_when_a_run_starts(visit, photo_path):  # noqa: F811
    visitor = visit("image_label")
    with visitor.page.expect_file_chooser() as chooser:
        visitor.page.locator("#restore").click()
    chooser.value.set_files(photo_path)
    visitor.page.get_by_text("has no settings in it").wait_for()
    visitor.run()
    near(lambda: not visitor.page.locator("#message .message").count())
    visitor.done()


@pytest.fixture
def photo_path(tmp_path):
    from fakes import photo

    photo((64, 64)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


@pytest.mark.parametrize("size", SIZES)
def test_labels_are_searched_and_their_list_leaves_the_header_free(visit, size):  # noqa: F811
    visitor = visit("image_label", size)
    visitor.choose("label", "I provide")
    visitor.find("label-choice", "input").click()
    options = visitor.page.get_by_role("listbox")
    options.wait_for()
    header = visitor.page.locator("#header").bounding_box()
    assert options.bounding_box()["y"] >= header["y"] + header["height"]
    visitor.page.keyboard.type("wax")
    near(lambda: options.get_by_role("option").all_inner_texts() == ["Cherry Wax"])
    visitor.page.keyboard.press("Enter")
    visitor.plan("from the label")
    visitor.page.keyboard.press("Tab")
    visitor.find("label-choice", "input").click()  # what is typed replaces the name that is chosen
    visitor.page.keyboard.type("apple r")
    near(lambda: options.get_by_role("option").all_inner_texts() == ["Apple Red"])


def test_run_both_looks_like_a_button(visit):  # noqa: F811
    visitor = visit("image_label")
    visitor.find("compare", "button").first.click()
    button = visitor.find("run-both")
    button.wait_for()
    border, page = button.evaluate(
        "node => [getComputedStyle(node).borderTopColor, getComputedStyle(document.body).backgroundColor]"
    )
    assert (
        border != page and button.evaluate("node => parseFloat(getComputedStyle(node).borderTopWidth)") >= 1
    )
    assert button.bounding_box()["height"] >= 40


def test_an_unknown_address_gets_a_page_and_programs_get_json(visit, address):  # noqa: F811
    for accept, kind in (("text/html", "text/html"), ("*/*", "application/json")):
        with pytest.raises(urllib.error.HTTPError) as answer:
            urllib.request.urlopen(
                urllib.request.Request(f"{address}/%3Cnothing%3E", headers={"accept": accept})
            )
        assert answer.value.code == 404 and answer.value.headers["content-type"].startswith(kind)
        assert b"<nothing>" not in answer.value.read()
    visitor = visit("image_label")
    visitor.page.goto(f"{address}/nothing")
    visitor.leave(visitor.page.get_by_role("link", name="To the start of mmdiff").click, complained=True)
    visitor.page.locator("h1").wait_for()
