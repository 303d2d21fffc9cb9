"""The first minute in a real Chromium: what is there before Gradio, recorded runs, live mode, presenting."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from chromium import MARKS
from fakes import FakePipeline, served
from PIL import Image
from test_app_browser import SIZES, Visitor, decode, near

from app.controls.settings import FILLING, PLAIN
from app.run.service import EXAMPLE_STEPS, Service
from app.run.showcase import FOLDER, STEPS, play
from app.tabs.live import FEW
from app.task import TASKS

EVERYTHING = ("image", "mask", "label", "embedding")
WIDTHS = {**SIZES, "tablet": (768, 1024), "wall": (1920, 1080)}
pytestmark = MARKS


def with_showcase(pipe: FakePipeline, folder: Path) -> Service:
    """A service whose checkpoint has recorded scenes."""
    service = Service(pipe, "orchard", 15.8, folder)
    showcase = folder / FOLDER
    showcase.mkdir()
    for number, scene in enumerate(play(service, ["", "mask", "image"], seed=1)):
        (showcase / f"scene_{number}.json").write_text(json.dumps(scene))
    Image.new("RGB", (1200, 630)).save(showcase / "card.jpg")
    entries = []
    for title, colour in (("Red one", (200, 20, 20)), ("Green one", (20, 200, 20))):
        Image.new("RGB", (80, 80), colour).save(showcase / f"{title}.webp", lossless=True)
        entries.append({"title": title, "file": f"{title}.webp", "generated": False})
    (showcase / "examples.json").write_text(json.dumps(entries))
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
    assert "Mask pinned" in page.locator(".stage .told").inner_text()
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
    page.locator(".stage .told button").click()
    page.wait_for_timeout(200)
    paused = state(page)
    page.wait_for_timeout(600)
    assert state(page) == paused
    page.locator(".stage .told button").click()
    near(lambda: state(page) != paused)
    page.locator("#header").wait_for()
    page.evaluate("scrollTo(0, 5000)")
    page.wait_for_timeout(500)
    hidden = state(page)
    page.wait_for_timeout(600)
    assert state(page) == hidden


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_your_turn_leads_into_the_first_tab_and_starts_a_run_there(opened, pipe, size):
    page, calls = opened(size=size), len(pipe.calls)
    page.locator("[role=tab]").first.wait_for()
    page.get_by_text("Your turn").click()
    first = page.get_by_role("tab", name="Image + mask")
    near(lambda: first.bounding_box() and first.bounding_box()["y"] < 250)
    assert first.get_attribute("aria-selected") == "true"
    done(page)
    near(lambda: -30 < page.locator("#image_mask-run-panel").bounding_box()["y"] < 250)
    (call,) = pipe.calls[calls:]
    assert (call.seed, call.wanted, call.steps) == (
        1,
        ("image", "mask"),
        PLAIN.steps,
    )  # the first scene's seed
    assert page.locator("#image_mask-seed input").first.input_value() == "1"
    assert not page.locator("#image_mask-keep-seed input").is_checked()
    for _ in range(2):  # their own result stays
        page.get_by_text("Your turn").click()
        page.wait_for_timeout(1200)
    assert len(pipe.calls) == calls + 1


def done(page):
    page.locator("#image_mask-status", has_text="Done").wait_for(timeout=10_000)


def test_your_turn_starts_the_run_before_gradio_is_there_and_without_motion(opened, pipe):
    page, calls = opened(reduced_motion="reduce"), len(pipe.calls)
    page.get_by_text("Your turn").click()
    done(page)
    assert len(pipe.calls) == calls + 1


def test_your_turn_leaves_live_mode_a_locked_seed_and_what_is_set_alone(opened, pipe):
    page = opened()
    page.locator("#image_mask-player [data-run=example]").wait_for(state="attached")
    role = page.locator("#image_mask-image-role")
    role.get_by_label("I provide", exact=True).check()
    page.locator("#image_mask-plan .todo").wait_for()
    calls = len(pipe.calls)
    page.get_by_text("Your turn").click()
    page.wait_for_timeout(1200)
    assert len(pipe.calls) == calls  # a photo is still to be given
    role.get_by_label("Create", exact=True).check()
    page.locator("#image_mask-plan .ready").wait_for()
    page.locator("#image_mask-seed input").first.fill("77")
    page.get_by_text("Your turn").click()
    done(page)
    assert pipe.calls[-1].seed == 77
    page = opened()
    page.locator("#image_mask-live input").check()
    page.locator("#image_mask-status", has_text="Done").wait_for()  # live mode has refined its own run
    calls = len(pipe.calls)
    page.get_by_text("Your turn").click()
    page.wait_for_timeout(1200)
    assert len(pipe.calls) == calls


def test_a_link_to_a_run_and_a_model_without_recordings_open_with_words_only(opened):
    for path in ("/?task=image_label&seed=3&steps=2", "/second"):
        page = opened(path)
        page.locator("#header").wait_for()
        assert not page.locator(".constellation").is_visible()
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


# -- live mode ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def contexts(browser):
    return {
        size: browser.new_context(viewport=dict(zip(("width", "height"), WIDTHS[size], strict=True)))
        for size in WIDTHS
    }


@pytest.fixture
def visit(contexts, address):
    visitors = []

    def visit(task, size="desktop"):
        visitors.append(Visitor(contexts[size].new_page(), address, task))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        assert not visitor.errors
        visitor.page.close()


def switch_on(visitor):
    visitor.find("live", "input").check()
    visitor.page.locator(f".workbench[data-live] #{visitor.task}-live").wait_for()


def refined(visitor):
    """Waits until a whole run has taken the place of the live picture."""
    near(lambda: (visitor.shown() or "live").startswith("run"), 15)
    return visitor.status("Done")


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_every_tab_has_a_live_mode_that_keeps_the_seed_and_refines_what_rests(visit, pipe, task):
    visitor = visit(task)
    calls = len(pipe.calls)
    visitor.find("seed", "input").fill("7")
    switch_on(visitor)
    visitor.status("Live")
    assert visitor.shown() == f"live-{task}" and visitor.find("seed", "input").input_value() == "7"
    assert f"seed 7 · {'Ancestral' if task == 'fill_in' else 'DDIM'}" in refined(visitor)
    steps = FILLING.steps if task == "fill_in" else PLAIN.steps
    asked = [(call.steps, call.seed) for call in pipe.calls[calls:]]
    assert set(asked) == {(FEW["steps"], 7), (steps, 7)} and asked[-1][0] == steps


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_picture_follows_while_one_paints(visit, pipe, size):
    visitor = visit("image_mask", size)
    visitor.choose("mask", "I provide")
    visitor.plan("First paint")
    switch_on(visitor)
    calls, page = len(pipe.calls), visitor.page
    canvas = visitor.find("mask-painter", "canvas")
    canvas.evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 60)
    page.mouse.down()
    for k in range(60):
        page.mouse.move(box["x"] + 60 + 2 * k, box["y"] + 60 + k)
        page.wait_for_timeout(20)
    near(lambda: len(pipe.calls) > calls + 2)
    assert visitor.shown() == "live-image_mask"
    assert all(call.steps == FEW["steps"] for call in pipe.calls[calls:])  # not refined while one paints
    areas = [int((call.given["mask"] == 1).sum()) for call in pipe.calls[calls:]]
    assert areas == sorted(areas) and areas[-1] > areas[0]
    corner = page.locator(".live-corner").locator("visible=true")
    assert corner.count() == (1 if size == "phone" else 0)
    page.mouse.up()
    refined(visitor)
    assert (pipe.calls[-1].given["mask"] == 1).sum() == visitor.cells("mask").sum() >= areas[-1]


def test_a_change_ends_what_runs_within_a_step(visit, pipe, monkeypatch):
    visitor = visit("image_label")
    visitor.choose("label", "I provide")
    visitor.find("label-choice", "input").click()
    visitor.page.get_by_role("option", name="Cherry Wax").click()
    visitor.plan("from the label")
    monkeypatch.setattr(pipe, "step_seconds", 0.4)  # the whole run would take 12 s
    switch_on(visitor)
    visitor.status(re.compile(r"Step \d+ of 30"))  # it is being refined
    visitor.find("label-choice", "input").click()
    visitor.page.get_by_role("option", name="Apple Golden").click()
    near(lambda: pipe.calls[-1].given == {"label": "Apple Golden"}, 8)
    assert pipe.calls[-1].steps == FEW["steps"]
    near(lambda: len(pipe.engine._running) == 1, 2)  # the whole run has gone
    monkeypatch.setattr(pipe, "step_seconds", 0.0)
    refined(visitor)
    assert pipe.calls[-1].given == {"label": "Apple Golden"} and pipe.calls[-1].steps == 30


def test_numbers_that_are_still_typed_are_no_errors(visit, pipe):
    visitor = visit("image_mask")
    steps = visitor.find("steps", "input[type=number]")
    steps.fill("1000")  # live mode is off: there is nothing to say
    visitor.page.wait_for_timeout(800)
    assert "example" in visitor.find("status").inner_text()
    steps.press("Tab")
    switch_on(visitor)
    visitor.status("Live")
    refined(visitor)
    steps.fill("")
    visitor.status("Write one")
    steps.fill("6")
    visitor.status("Live")
    refined(visitor)
    assert pipe.calls[-1].steps == 6  # the fixture sees that the browser has met no error


def test_a_photo_that_is_uploaded_is_followed(visit, pipe, tmp_path):
    Image.new("RGB", (64, 64), (20, 200, 20)).save(tmp_path / "green.png")
    for task, name in (("image_label", "image"), ("image_embedding", "embedding")):
        visitor = visit(task)
        visitor.choose(name, "I provide")
        switch_on(visitor)
        visitor.status("Nothing is provided")
        visitor.find(f"{name}-file", "input[type=file]").set_input_files(tmp_path / "green.png")
        visitor.status("Live")
        refined(visitor)
        assert np.asarray(pipe.calls[-1].given[name])[0, 0].tolist() == [20, 200, 20]


def test_live_mode_says_what_is_missing_and_ends_with_its_switch(visit, pipe):
    visitor = visit("image_embedding")
    switch_on(visitor)
    refined(visitor)
    visitor.choose("embedding", "I provide")
    visitor.status("Nothing is provided")
    visitor.find("embedding-text", ":is(textarea, input)").first.fill("a red cherry")
    visitor.status("Live")
    refined(visitor)
    assert pipe.calls[-1].given == {"embedding": "a red cherry"}
    visitor.find("embedding-text", ":is(textarea, input)").first.fill("a green apple")
    visitor.status("Live")
    visitor.find("live", "input").uncheck()
    refined(visitor)  # what is seen can be downloaded
    calls = len(pipe.calls)
    visitor.find("embedding-text", ":is(textarea, input)").first.fill("a golden apple")
    visitor.page.wait_for_timeout(1200)
    assert len(pipe.calls) == calls


# -- examples ----------------------------------------------------------------------------------------


def drag(visitor, what, where):
    box = where.bounding_box()
    what.hover()
    visitor.page.mouse.down()
    for k in range(5):
        visitor.page.mouse.move(box["x"] + 20 + k, box["y"] + 10 + k)
        visitor.page.wait_for_timeout(50)
    visitor.page.mouse.up()


def test_example_photos_run_with_a_click_or_a_drag(visit, pipe):
    for task in ("image_label", "fill_in", "any_to_any"):
        visitor = visit(task)
        photos = visitor.page.locator(".photos button").locator("visible=true")
        assert photos.all_inner_texts() == ["Red one", "Green one"]
        picture = photos.first.locator("img")
        near(lambda picture=picture: picture.evaluate("image => image.naturalWidth") == 80)
        calls = len(pipe.calls)
        photos.nth(1).click()
        visitor.done()
        given = np.asarray(pipe.calls[-1].given["image"])
        assert len(pipe.calls) == calls + 1 and given.shape == (64, 64, 3) and given[32, 32, 1] > 150
        assert (pipe.calls[-1].known_pixels is None) == (task != "fill_in")
        drag(visitor, photos.first, visitor.find("live"))
        visitor.done()
        assert np.asarray(pipe.calls[-1].given["image"])[32, 32, 0] > 150


def test_the_first_result_that_a_visitor_sees_is_not_of_a_few_steps(visit):
    visitor = visit("image_mask")
    assert visitor.at("step") == EXAMPLE_STEPS >= 20


# -- present mode ------------------------------------------------------------------------------------


def caption(page):
    return page.locator(".present .caption").inner_text()


@pytest.mark.parametrize("size", ["wall", "phone"])
def test_presenting_plays_one_story_after_another_on_large_tiles(opened, pipe, size):
    page = opened(size=size)
    page.locator(".constellation[data-scene]").wait_for()
    page.get_by_role("button", name="Present").click()
    stage = page.locator(".present .constellation")
    page.locator(".present .constellation[data-scene='0']").wait_for()
    width, height = WIDTHS[size]
    tile = page.locator(".present figure[data-name=image] .plate").bounding_box()
    assert (
        tile["width"] >= min(0.43 * width, 0.6 * height)
        and stage.evaluate("node => node.scrollWidth") <= width
    )
    page.locator(".present.idle").wait_for()  # nothing to press in sight while nobody moves
    opacity = page.locator(".present nav").evaluate("node => getComputedStyle(node).opacity")
    assert float(opacity) < 1
    page.mouse.move(100, 100)
    page.mouse.move(120, 100)
    near(lambda: not page.locator(".present.idle").count())
    page.get_by_role("button", name="Next").click()
    page.locator(".present .constellation[data-scene='1']").wait_for()
    assert "Mask pinned" in caption(page)
    page.get_by_role("button", name="Previous").click()
    page.locator(".present .constellation[data-scene='0']").wait_for()
    page.locator(".present .constellation[data-scene='1']").wait_for(timeout=12_000)  # by itself
    page.keyboard.press("Escape")
    near(lambda: not page.locator(".present").count())
    assert page.evaluate("document.activeElement.className").endswith("present-button")


def test_after_the_recorded_stories_the_seed_advances(opened, pipe):
    page, calls = opened(), len(pipe.calls)
    page.locator(".constellation[data-scene]").wait_for()
    page.keyboard.press("f")
    page.locator(".present .constellation[data-scene='0']").wait_for()
    seen = []
    for number in range(1, 7):
        page.keyboard.press("ArrowRight")
        page.locator(f".present .constellation[data-scene='{number}']").wait_for()
        seen.append(caption(page))
    assert ["seed 1000" in text for text in seen] == [False, False, True, False, False, False]
    assert "seed 1001" in seen[3] and "Image pinned" in seen[3] and "seed 1001" in seen[4]
    asked = [(call.seed, set(call.given)) for call in pipe.calls[calls:] if call.steps == STEPS]
    assert asked[:4] == [(1000, set()), (1001, {"image"}), (1001, set()), (1002, {"mask"})]


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_after_the_recorded_stories_come_the_last_runs_of_this_browser(opened, pipe, size):
    page = opened(size=size)
    page.locator("#image_mask-player [data-run=example]").wait_for(state="attached")
    for k in (1, 2):
        page.locator("#image_mask-run").click()
        page.locator("#runs li").nth(k - 1).wait_for(timeout=10_000)
    newest = pipe.calls[-1].seed
    href = page.locator('#image_mask-player [data-modality="mask"] .save').first.get_attribute("href")
    made = np.asarray(decode(href).convert("RGB"))
    page.locator("body").press("f")
    page.locator(".present .constellation[data-scene='0']").wait_for()
    for number in range(1, 4):
        page.keyboard.press("ArrowRight")
        page.locator(f".present .constellation[data-scene='{number}']").wait_for()
    assert "Your run" in caption(page) and f"seed {newest}" in caption(page)
    shown = page.locator(".present figure").locator("visible=true")
    assert shown.evaluate_all("all => all.map((one) => one.dataset.name)") == ["image", "mask"]
    page.locator(".present .constellation[data-done='1.00']").wait_for(timeout=8_000)
    drawn = colours(page, "mask", ".present")
    assert np.abs(drawn[1::3, 1::3] - made).mean() < 2
    page.keyboard.press("ArrowRight")
    page.locator(".present .constellation[data-scene='4']").wait_for()
    assert "Your run" in caption(page) and f"seed {newest}" not in caption(page)
    page.keyboard.press("ArrowRight")
    page.locator(".present .constellation[data-scene='5']").wait_for()
    assert "seed 1000" in caption(page) and page.locator(".present figure:visible").count() == 4


def test_a_page_without_recordings_presents_the_runs_of_this_browser_first(opened):
    page = opened("/second")
    page.locator("#image_mask-player [data-run=example]").wait_for(state="attached")
    page.get_by_role("tab", name="Image + label").click()
    page.locator("#image_label-label-role").get_by_label("I provide", exact=True).check()
    page.locator("#image_label-label-choice input").click()
    page.get_by_role("option", name="Cherry Wax").click()
    page.locator("#image_label-plan", has_text="from the label").wait_for()
    page.locator("#image_label-run").click()
    page.locator("#runs li").first.wait_for(timeout=10_000)
    page.locator("body").press("f")
    page.locator(".present .constellation[data-scene='0']").wait_for()
    assert "Your run:Cherry Wax" in caption(page).replace("\n", "")
    assert page.locator(".present .pinned").get_attribute("data-name") == "label"


def test_presenting_goes_on_with_what_was_recorded_without_the_server(opened):
    page = opened()
    page.locator(".constellation[data-scene]").wait_for()
    page.route("**/new?*", lambda route: route.abort())
    page.keyboard.press("f")
    page.locator(".present .constellation[data-scene='0']").wait_for()
    for number in range(1, 5):
        page.keyboard.press("ArrowRight")
        page.locator(f".present .constellation[data-scene='{number}']").wait_for()
    assert "Mask pinned" in caption(page)
    page.wrong.clear()  # of the requests that were cut off


def test_f_types_an_f_where_one_writes(opened):
    page = opened("/?task=image_embedding&seed=3&steps=2")
    page.locator("#image_embedding-embedding-role").get_by_label("I provide", exact=True).check()
    text = page.locator("#image_embedding-embedding-text").locator("textarea, input").first
    text.click()
    page.keyboard.press("f")
    assert text.input_value() == "f" and not page.locator(".present").count()
    text.blur()
    page.keyboard.press("f")  # of a page without recordings in sight, too
    page.locator(".present .constellation[data-scene='0']").wait_for()
    page.keyboard.press("f")
    near(lambda: not page.locator(".present").count())


# -- a slow network ----------------------------------------------------------------------------------

SLOW = {"offline": False, "latency": 100, "downloadThroughput": 50 * 1024, "uploadThroughput": 50 * 1024}


def test_there_is_something_to_read_at_once_on_a_slow_network(browser, address):
    page = browser.new_page()
    session, received = page.context.new_cdp_session(page), {}
    session.send("Network.enable")
    session.send("Network.emulateNetworkConditions", SLOW)
    session.on("Network.loadingFinished", lambda e: received.update({e["requestId"]: e["encodedDataLength"]}))
    page.goto(address, wait_until="commit")
    page.locator(".constellation[data-scene='0']").wait_for(timeout=10_000)
    assert not page.locator("#header").count()  # Gradio is still on its way
    paint = "performance.getEntriesByName('first-contentful-paint')[0].startTime"
    assert page.evaluate(paint) < 2000
    page.locator("#header").wait_for(timeout=60_000)
    page.wait_for_timeout(1000)
    assert sum(received.values()) < 1_000_000
    page.close()


def test_a_shared_link_is_shown_with_a_card(opened, address):
    page = opened()
    page.locator(".opening").wait_for()
    found = page.locator("meta[property='og:title']")
    assert found.count() == 1 and "One model. Pin any one of the four" in found.get_attribute("content")
    picture = page.locator("meta[property='og:image']").get_attribute("content")
    assert picture == f"{address}/showcase/orchard/card.jpg"
    card = page.request.get(picture)
    assert card.ok and Image.open(io.BytesIO(card.body())).size == (1200, 630)
