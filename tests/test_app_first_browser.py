"""The first minute in a real Chromium: what is there before Gradio, recorded runs, live mode, presenting."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import MARKS
from fakes import FakePipeline, served
from test_app_browser import SIZES, decode, near

from app.run.service import Service
from app.run.showcase import FOLDER, play

EVERYTHING = ("image", "mask", "label", "embedding")
WIDTHS = {**SIZES, "tablet": (768, 1024), "wall": (1920, 1080)}
pytestmark = MARKS


def with_showcase(pipe: FakePipeline, folder: Path) -> Service:
    """A service whose checkpoint has recorded scenes."""
    service = Service(pipe, "orchard", 15.8, folder)
    showcase = folder / FOLDER
    showcase.mkdir()
    for number, (scene, _) in enumerate(play(service, ["", "mask", "image"], seed=1)):
        (showcase / f"scene_{number}.json").write_text(json.dumps(scene))
    return service


@pytest.fixture(scope="module")
def pipe():
    return FakePipeline(modalities=EVERYTHING)


@pytest.fixture(scope="module")
def address(pipe, tmp_path_factory):
    service = with_showcase(pipe, tmp_path_factory.mktemp("orchard"))
    other = Service(FakePipeline(modalities=EVERYTHING), "second")
    with served(service, other) as address:
        yield address


@pytest.fixture
def opened(browser, address):
    """Opens a path of the page; nothing may go wrong in it, and nothing leave the machine."""
    pages = []

    def opened(path="/", size="desktop", **options):
        width, height = WIDTHS[size]
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        page.wrong = []
        page.on("pageerror", lambda error: page.wrong.append(str(error)))
        page.on("console", lambda m: page.wrong.append(m.text) if m.type == "error" else None)
        page.on("request", lambda r: page.wrong.append(r.url) if not r.url.startswith(OWN(address)) else None)
        pages.append(page)
        page.goto(address + path, wait_until="commit")
        return page

    yield opened
    for page in pages:
        assert not page.wrong
        page.close()


def OWN(address):
    return address, "data:", "blob:"


def state(page):
    """Number of the scene, how far it is, and which tile is pinned."""
    stage = page.locator(".opening .constellation")
    return stage.evaluate(
        "node => [Number(node.dataset.scene), Number(node.dataset.done), "
        "node.querySelector('.pinned')?.dataset.name ?? '']"
    )


def colours(page, name, where=".opening"):
    """What the tile of a picture shows without its noise, (H, W, 3)."""
    canvas = page.locator(f'{where} figure[data-name="{name}"] .drawn')
    return np.asarray(decode(canvas.evaluate("node => node.toDataURL()")).convert("RGB")).astype(int)


# -- the recorded runs -------------------------------------------------------------------------------


@pytest.mark.parametrize("size", WIDTHS)
def test_recorded_runs_play_at_once_out_of_noise_and_a_pinned_tile_stays(opened, pipe, size):
    calls = len(pipe.calls)
    page = opened(size=size)
    page.locator(".constellation[data-scene='0']").wait_for()
    opacity = "node => Number(getComputedStyle(node).opacity)"
    grain = page.locator(".opening figure[data-name=image] .noise")
    assert grain.evaluate(opacity) > 0.7 and state(page)[2] == ""
    page.locator(".constellation[data-done='1.00']").wait_for(timeout=10_000)
    assert grain.evaluate(opacity) == 0
    mask = colours(page, "mask")
    assert page.locator(".opening figure[data-name=label] .said").inner_text()
    page.locator(".constellation[data-scene='1']").wait_for(timeout=10_000)
    page.wait_for_timeout(1500)
    assert state(page)[2] == "mask" and grain.evaluate(opacity) > 0.7
    assert page.locator(".opening figure[data-name=mask] .noise").evaluate(opacity) == 0
    assert np.array_equal(colours(page, "mask"), mask)
    assert "Mask pinned" in page.locator(".told").inner_text()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert len(pipe.calls) == calls  # all without the model


def test_reduced_motion_gets_a_still(opened):
    page = opened(reduced_motion="reduce")
    page.locator(".constellation[data-done='1.00']").wait_for()
    picture = colours(page, "image")
    assert np.abs(picture - 255).max() > 60  # something is drawn
    page.wait_for_timeout(1500)
    assert np.array_equal(colours(page, "image"), picture) and state(page)[:2] == [0, 1]


def test_recorded_runs_pause_by_their_button_and_out_of_sight(opened):
    page = opened()
    page.locator(".constellation[data-scene='0']").wait_for()
    page.locator(".told button").click()
    page.wait_for_timeout(200)
    paused = state(page)
    page.wait_for_timeout(600)
    assert state(page) == paused
    page.locator(".told button").click()
    near(lambda: state(page) != paused)
    page.locator("#header").wait_for()
    page.evaluate("scrollTo(0, 5000)")
    page.wait_for_timeout(500)
    hidden = state(page)
    page.wait_for_timeout(600)
    assert state(page) == hidden


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_your_turn_leads_into_the_first_tab(opened, size):
    page = opened(size=size)
    page.locator("[role=tab]").first.wait_for()
    page.get_by_text("Your turn").click()
    first = page.get_by_role("tab", name="Image + mask")
    near(lambda: first.bounding_box() and first.bounding_box()["y"] < 250)
    assert first.get_attribute("aria-selected") == "true"


def test_a_link_to_a_run_and_a_model_without_recordings_open_with_words_only(opened):
    for path in ("/?task=image_label&seed=3&steps=2", "/second"):
        page = opened(path)
        page.locator("#header").wait_for()
        assert not page.locator(".constellation").count()
        assert page.locator("h1").inner_text() == "One model. Pin any one of the four; it makes the rest."


def test_addresses_that_do_not_exist_have_a_page(opened, address):
    page = opened("/nowhere/at-all")
    page.wrong.clear()  # of the answer 404
    page.get_by_role("heading", name="There is no page here").wait_for()
    page.get_by_role("link").click()
    page.locator(".constellation").wait_for()
    page.wrong.clear()
    assert re.fullmatch(re.escape(address) + "/?", page.url)
    answer = page.request.get(f"{address}/nowhere", headers={"accept": "application/json"})
    assert answer.status == 404 and answer.json()
    assert page.request.get(f"{address}/showcase/orchard/99.json").status == 404
