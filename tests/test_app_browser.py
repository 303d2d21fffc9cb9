"""The page in a real Chromium, every tab at desktop and phone size; nothing leaves the machine."""

import base64
import io
import json
import re
import time
import zipfile
from functools import partial
from urllib.parse import parse_qs, urlsplit

import av
import gradio as gr
import numpy as np
import pytest
from chromium import MARKS
from fakes import FakePipeline, photo, served
from gradio.state_holder import SessionState
from PIL import Image

from app.controls.settings import FILLING, PLAIN
from app.run.service import Service, Timing
from app.task import TASKS

RUNNING = re.compile(r"Step \d+ of")
RECORD = """([id, selector]) => {
  window.seen = new Set();
  const player = document.getElementById(id);
  const note = () => { const found = player.querySelector(selector); if (found) seen.add(found.outerHTML); };
  const options = { subtree: true, childList: true, characterData: true, attributes: true };
  new MutationObserver(note).observe(player, options);
}"""
COUNT_FRAMES = """
  window.framesAskedFor = 0;
  const native = window.requestAnimationFrame.bind(window);
  window.requestAnimationFrame = (callback) => { window.framesAskedFor += 1; return native(callback); };
"""
EVERYTHING = ("image", "mask", "label", "embedding")
SIZES = {"desktop": (1440, 1000), "phone": (390, 844)}
pytestmark = MARKS


@pytest.fixture(scope="module")
def pipe():
    return FakePipeline(step_seconds=0.03, modalities=EVERYTHING)


@pytest.fixture(scope="module")
def address(pipe):
    other = FakePipeline(step_seconds=0.03, modalities=EVERYTHING)
    with served(Service(pipe, "orchard", 15.8), Service(other, "second")) as address:
        yield address


class Visitor:
    """Somebody in front of a tab of the page."""

    def __init__(self, page, address, task):
        self.page, self.address, self.requests, self.errors = page, address, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        with page.expect_request("**/heartbeat/*"):  # sent once the page is ready to be used
            page.goto(address)
        self.open(task)
        if task == "fill_in" and "?" not in address:  # its photo and hole come a moment later
            self.page.locator("#fill_in-plan", has_text="in the hole").wait_for()

    def leave(self, action, complained=False):
        """An action that goes to another page, which complains of the requests that it cuts off."""
        assert complained or not self.errors
        with self.page.expect_request("**/heartbeat/*"):
            action()
        self.errors.clear()

    def open(self, task):
        self.task = task
        title = next(t.title for t in TASKS if t.name == task)
        self.page.locator("[role=tab]").first.wait_for()
        tab = self.page.get_by_role("tab", name=title, exact=True).locator("visible=true")
        if not tab.count():  # on a narrow page it is in the menu of tabs that do not fit
            self.page.locator(".overflow-menu > button").locator("visible=true").click()
            # unless a link has chosen it meanwhile, which takes it out of the menu
            tab = tab.or_(self.page.locator(".overflow-dropdown button", has_text=title))
        tab.first.click()
        self.find("run").wait_for()
        self.player("[data-run]").first.wait_for()
        self.before = self.shown()

    def find(self, name, inside=""):
        return self.page.locator(f"#{self.task}-{name} {inside}".strip())

    def player(self, selector):
        return self.find("player", selector)

    def choose(self, modality, role):
        self.find(f"{modality}-role").get_by_label(role, exact=True).check()

    def upload(self, name, path):
        with self.page.expect_file_chooser() as chooser:
            self.find(name).locator("visible=true").first.click()
        chooser.value.set_files(path)

    def give_photo(self, path):
        self.find("image-file", "input[type=file]").set_input_files(path)

    def paint(self, modality, start, end):
        """A stroke between two points, (x, y) as shares of the sheet; returns them in pixels of the model."""
        canvas = self.find(f"{modality}-painter", "canvas")
        canvas.evaluate("canvas => canvas.scrollIntoView({ block: 'center' })")  # clear of the bar with Run
        box = canvas.bounding_box()
        points = np.linspace(start, end, 12)
        for k, (x, y) in enumerate(points):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if k == 0:
                self.page.mouse.down()
        self.page.mouse.up()
        return np.linspace(start, end, 200) * 64

    def cells(self, modality):
        """What the paint area shows, (64, 64) bool, True where something is painted."""
        data = self.find(f"{modality}-painter", "canvas").evaluate("canvas => canvas.toDataURL()")
        pixels = np.asarray(decode(data).convert("RGBA"))
        return (pixels != pixels[0, 0]).any(2)

    def run(self):
        self.find("run").click()

    def status(self, text, timeout=15_000):
        self.page.bring_to_front()  # a page behind another one is not drawn
        self.page.locator(f"#{self.task}-status", has_text=text).wait_for(timeout=timeout)
        return self.find("status").inner_text()

    def done(self):
        """Waits for a run that has been started to end."""
        near(lambda: self.shown() not in (self.before, None), 15)
        status = self.status("Done")
        self.before = self.shown()
        return status

    def shown(self):
        """Which run the player shows."""
        track = self.player("[data-run]").last
        return track.get_attribute("data-run") if track.count() else None

    def plan(self, text):
        self.page.locator(f"#{self.task}-plan", has_text=text).wait_for(timeout=5_000)

    def picture(self, modality="image", track=0):
        """The exact picture of a modality, as its Save link has it."""
        link = self.player(f'[data-track="{track}"] [data-modality="{modality}"] .save')
        return np.asarray(decode(link.first.get_attribute("href")))

    def record(self, selector):
        """Notes every state of what `selector` finds in the player; `seen` counts them."""
        self.page.evaluate(RECORD, [f"{self.task}-player", selector])

    def seen(self):
        return self.page.evaluate("window.seen.size")

    def fits(self):
        return self.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    def at(self, name):
        return int(self.player(".player").get_attribute(f"data-{name}"))


@pytest.fixture(scope="module")
def contexts(browser):
    """One for each kind of window, so that the browser keeps the page's scripts."""
    return {}


@pytest.fixture
def visit(browser, contexts, address):
    visitors = []

    def visit(task="any_to_any", size="desktop", query="", **options):
        key = size, *options.values()
        if key not in contexts:
            width, height = {**SIZES, "tablet": (768, 1024)}[size]
            viewport = {"width": width, "height": height}
            contexts[key] = browser.new_context(viewport=viewport, has_touch=size != "desktop", **options)
        visitors.append(Visitor(contexts[key].new_page(), address + query, task))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        own = address, "data:", "blob:"
        away = [url for url in visitor.requests if not url.startswith(own)]
        assert not away, f"left the machine: {away}"
        assert not visitor.errors
        visitor.page.close()


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


@pytest.fixture
def photo_file(tmp_path):
    photo((64, 64)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def fetched(visitor, kind):
    """What the button of this kind of file downloads."""
    with visitor.page.expect_download() as download:
        visitor.find(kind).click()
    assert download.value.suggested_filename.endswith(f".{kind}")
    return download.value.path()


def near(condition, seconds=5):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# -- every tab ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_every_tab_has_something_to_look_at_and_runs_with_one_click(visit, pipe, task, size):
    visitor = visit(task, size)
    assert "example" in visitor.status("example") and visitor.fits()
    assert visitor.player(".panel, figure").count() >= 2 and visitor.at("step") > 1
    visitor.record('[data-modality="image"]')
    visitor.run()
    visitor.done()
    assert visitor.seen() >= 5  # live, at least a few of the steps
    steps = FILLING.steps if task == "fill_in" else PLAIN.steps
    assert visitor.player(".player").get_attribute("data-state") == "done" and visitor.at("step") == steps
    assert visitor.picture().shape == (64, 64, 3) and visitor.fits()
    shown = {m.get_attribute("data-modality") for m in visitor.player("[data-modality]").all()}
    wanted = next(t for t in TASKS if t.name == task).modalities(pipe.modalities)
    assert shown == set(wanted)
    if task == "fill_in":
        assert set(pipe.calls[-1].given) == {"image"}


@pytest.mark.parametrize("task", [task.name for task in TASKS])
def test_three_one_click_examples(visit, pipe, task):
    visitor = visit(task)
    examples = visitor.page.locator(".examples button").locator("visible=true")
    assert examples.count() >= 3
    for k in range(1, 3):
        before = len(pipe.calls)
        examples.nth(k).click()
        visitor.done()
        assert len(pipe.calls) == before + 1 and pipe.calls[-1].given


def test_checkpoint_size_and_device_are_shown(visit):
    visitor = visit()
    facts = visitor.page.locator(".facts").inner_text()
    assert all(words in facts for words in ("orchard", "16 MB", "CPU"))
    visitor.plan("Creates image, mask, label and embedding from noise alone")
    assert re.search(r"about [\d.]+ s on this CPU", visitor.find("estimate").inner_text())


def test_a_page_at_rest_draws_no_frames(browser, address):
    page = browser.new_page()
    page.add_init_script(COUNT_FRAMES)
    page.goto(address)
    page.locator("#header .facts").wait_for()
    page.wait_for_timeout(5000)
    before = page.evaluate("framesAskedFor")
    page.wait_for_timeout(3000)
    assert before > 0  # they are counted
    assert page.evaluate("framesAskedFor") - before <= 10  # of 180
    page.close()


def test_the_menu_leads_to_the_page_of_another_checkpoint(visit, address):
    visitor = visit()
    menu = visitor.page.locator(".facts select")
    assert menu.locator("option").all_inner_texts() == ["orchard", "second"]
    visitor.leave(lambda: menu.select_option("second"))
    visitor.page.wait_for_url(address + "/second#any_to_any")
    visitor.open("image_label")
    assert visitor.page.locator(".facts select").input_value() == "second"
    visitor.run()
    visitor.done()
    assert "second" in visitor.player(".save").first.get_attribute("download")
    visitor.leave(lambda: visitor.page.locator(".facts select").select_option("orchard"))
    visitor.page.wait_for_url(re.compile(re.escape(address) + "/?#image_label$"))


# -- what is given -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_fill_a_painted_hole_then_stop_a_second_run(visit, pipe, photo_file, monkeypatch, size):
    visitor = visit("any_to_any", size)
    visitor.choose("image", "I provide")
    visitor.plan("First upload a photo")
    visitor.give_photo(photo_file)
    visitor.plan("Creates mask, label and embedding from the image")
    path = visitor.paint("image", (0.3, 0.35), (0.65, 0.6))
    visitor.plan("image (in the hole)")

    hole = visitor.cells("image")
    rows, columns = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(columns[..., None] - path[:, 0], rows[..., None] - path[:, 1]).min(2)
    radius = float(visitor.find("image-painter", "input[type=range]").first.input_value()) / 2
    assert hole[distance < radius - 1].all() and not hole[distance > radius + 1].any()

    visitor.run()
    done = visitor.done()
    assert f"seed {visitor.find('seed', 'input').input_value()}" in done
    assert "repainted" in visitor.player('[data-modality="image"]').first.inner_text()
    result, original = visitor.picture(), np.asarray(photo((64, 64)))
    assert np.array_equal(result[~hole], original[~hole])
    assert (result[hole] != original[hole]).mean() > 0.5

    monkeypatch.setattr(pipe, "step_seconds", 0.3)
    visitor.run()
    visitor.status(RUNNING)
    visitor.find("stop").click()
    stopped = visitor.status("Stopped at step")
    index, total = map(int, re.search(r"step (\d+) of (\d+)", stopped).groups())
    assert index < total == 30 and visitor.at("step") == index
    assert visitor.player(".player").get_attribute("data-state") == "stopped"
    partial = visitor.picture()
    assert np.array_equal(partial[~hole], original[~hole]) and not np.array_equal(partial, result)
    assert visitor.find("run").is_enabled() and visitor.find("stop").is_disabled()


def test_before_and_after_of_inpainting(visit):
    visitor = visit("fill_in")
    visitor.run()
    visitor.done()
    slider = visitor.player(".before-after").first
    box = slider.bounding_box()
    before = visitor.page.screenshot(clip=box)
    handle = slider.locator("input, [role=slider]").first
    handle.focus()
    for _ in range(20):
        visitor.page.keyboard.press("ArrowRight")
    near(lambda: visitor.page.screenshot(clip=box) != before)


def test_a_painted_and_an_uploaded_mask_are_given(visit, pipe, tmp_path):
    visitor = visit("image_mask")
    visitor.choose("mask", "I provide")
    visitor.plan("First paint or upload a mask")
    visitor.paint("mask", (0.3, 0.5), (0.7, 0.5))
    visitor.plan("Creates image from the mask")
    painted = visitor.cells("mask")
    visitor.run()
    visitor.done()
    assert np.array_equal(visitor.picture("mask") == 1, painted)

    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:40, 8:30] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with visitor.page.expect_file_chooser() as chooser:
        visitor.page.get_by_role("button", name="Upload mask").locator("visible=true").click()
    chooser.value.set_files(tmp_path / "mask.png")
    near(lambda: np.array_equal(visitor.cells("mask"), mask == 1))


def test_an_impossible_request_is_explained_and_the_page_goes_on(visit, tmp_path):
    visitor = visit()
    page = visitor.page
    visitor.choose("image", "I provide")
    visitor.run()
    visitor.status("Nothing is provided for “image” yet. Upload a photo")
    assert visitor.find("run").is_enabled()
    (tmp_path / "diary.png").write_bytes(b"dear diary")
    visitor.give_photo(tmp_path / "diary.png")
    page.get_by_text("“diary.png” cannot be read as a picture").first.wait_for()
    for modality in EVERYTHING:
        visitor.choose(modality, "Leave out")
    visitor.plan("Nothing to create yet")
    visitor.run()
    visitor.status("There is nothing to create")
    visitor.choose("label", "I provide")
    visitor.plan("First choose a label")
    visitor.find("label-choice", "input").click()
    page.get_by_role("option", name="Cherry Wax").click()
    visitor.choose("image", "Create")
    visitor.plan("Creates image from the label")
    visitor.run()
    visitor.done()
    assert visitor.player("figure[data-modality]").count() == 2


def test_an_unexpected_error_is_said_in_plain_words(visit, pipe, monkeypatch):
    visitor = visit()
    monkeypatch.setattr(pipe, "broken", RuntimeError("secret path /root"))
    visitor.run()
    assert "secret" not in visitor.status("Something unexpected went wrong")
    monkeypatch.undo()
    visitor.run()
    visitor.done()


def test_a_text_or_a_photo_gives_the_embedding(visit, pipe, photo_file):
    visitor = visit("image_embedding")
    visitor.choose("embedding", "I provide")
    visitor.plan("First write a text or upload a photo")
    text = visitor.find("embedding-text", ":is(textarea, input)").first
    text.fill("a photo of a dark red cherry")
    visitor.plan("Creates image from the embedding")
    visitor.record('[data-modality="embedding"]')
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].given == {"embedding": "a photo of a dark red cherry"}
    words = visitor.player('figure[data-modality="embedding"]').inner_text()
    assert re.search(r"a photo of a dark red cherry\s+1\.00", words)

    text.fill("")
    visitor.plan("First write a text or upload a photo")
    visitor.find("embedding-file", "input[type=file]").set_input_files(photo_file)
    visitor.plan("Creates image from the embedding")
    visitor.run()
    visitor.done()
    assert np.array_equal(np.asarray(pipe.calls[-1].given["embedding"]), np.asarray(photo((64, 64))))


# -- how it is sampled -------------------------------------------------------------------------------


def test_the_seed_is_kept_on_request_and_gives_the_same_picture(visit):
    visitor = visit()
    visitor.run()
    visitor.done()
    seed, picture = visitor.find("seed", "input").input_value(), visitor.picture()
    visitor.find("keep-seed", "input").check()
    visitor.run()
    visitor.done()
    assert visitor.find("seed", "input").input_value() == seed
    assert np.array_equal(visitor.picture(), picture)
    visitor.find("new-seed").click()
    near(lambda: visitor.find("seed", "input").input_value() != seed)


def test_wrong_numbers_in_the_settings_are_corrected_or_explained(visit, pipe, monkeypatch):
    monkeypatch.setattr(Timing, "estimate", lambda timing, request: 10.0 * request.steps * request.rows())
    visitor = visit("image_mask")
    steps, estimate = visitor.find("steps", "input[type=number]"), visitor.find("estimate")

    def costs(typed, words):
        """The estimate follows what is typed; until the slider is ready it forgets what is written."""
        steps.fill(typed)
        visitor.page.wait_for_timeout(300)
        return words in estimate.inner_text()

    for typed, words in (("", "20 s"), ("100000", "33 min"), ("-5", "20 s"), ("1e5", "33 min")):
        near(partial(costs, typed, words))
    steps.press("Tab")
    near(lambda: steps.input_value() == "100")
    seed = visitor.find("seed", "input")
    visitor.find("keep-seed", "input").check()
    for typed in ("-1", "99999999999999"):
        seed.fill(typed)
        seed.press("Tab")
        visitor.run()
        assert "give a whole number from 0 to 21474836" in visitor.status(f"seed is {typed}")
    seed.fill("7")
    steps.fill("5")
    steps.press("Tab")
    visitor.run()
    visitor.done()
    assert (pipe.calls[-1].seed, pipe.calls[-1].steps) == (7, 5)


def test_guidance_is_set_for_each_modality(visit, pipe, monkeypatch):
    monkeypatch.setattr(Timing, "estimate", lambda timing, request: 10.0 * request.rows())
    visitor = visit()
    following = visitor.find("estimate").inner_text()
    visitor.choose("label", "I provide")
    visitor.find("label-choice", "input").click()
    visitor.page.get_by_role("option", name="Cherry Wax").click()
    visitor.plan("from the label")
    near(lambda: visitor.find("estimate").inner_text() != following)  # no label is sampled first any more
    plain = visitor.find("estimate").inner_text()
    visitor.find("more", "button").first.click()
    label = visitor.find("label-guidance", "input[type=number]")
    label.wait_for()
    assert visitor.page.locator(".guidance input[type=range]").locator("visible=true").count() == 4

    def costs_more():
        """The server has heard of the scale; until the slider is ready it forgets what is written."""
        label.fill("3")
        label.press("Tab")
        visitor.page.wait_for_timeout(300)
        return visitor.find("estimate").inner_text() != plain

    near(costs_more)
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].guidance_scale == {"label": 3}


def runs_with(visitor, pipe, name, value, scales):
    """Writes the value into a slider; a run has the scales. Until it is ready it forgets what is written."""
    slider = visitor.find(name, "input[type=number]")
    slider.wait_for()

    def arrives():
        slider.fill(value)
        slider.press("Tab")
        visitor.page.wait_for_timeout(300)
        visitor.run()
        visitor.done()
        return pipe.calls[-1].guidance_scale == scales

    near(arrives)


def test_holes_are_guided_by_the_photo_around_them(visit, pipe):
    visitor = visit("fill_in")
    visitor.run()
    visitor.done()
    asked = pipe.calls[-1]
    assert asked.steps == FILLING.steps and asked.guidance_scale == {"image": FILLING.guidance}
    visitor.find("more", "button").first.click()
    runs_with(visitor, pipe, "image-guidance", "2", {"image": 2})
    visitor.find("code", "button").first.click()
    link = visitor.find("link", ":is(textarea, input)").first
    near(lambda: "guide.image=2" in link.input_value())
    again = visit("fill_in", query="/?" + urlsplit(link.input_value()).query)  # the photo is missing still
    again.find("more", "button").first.click()
    near(lambda: again.find("image-guidance", "input[type=number]").input_value() == "2")


def test_photos_from_nothing_follow_their_label(visit, pipe):
    visitor = visit("image_mask")
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].guidance_scale == {"label": 2}  # although the label is not shown here
    assert pipe.calls[-1].sample_first == ("label",)
    visitor.find("more", "button").first.click()
    runs_with(visitor, pipe, "followed", "1", {})


@pytest.mark.parametrize("role", ["I provide", "Leave out"])
def test_a_label_that_is_given_or_ignored_is_not_sampled_first(visit, pipe, role):
    visitor = visit("any_to_any")
    visitor.choose("label", role)
    if role == "I provide":
        visitor.find("label-choice", "input").click()
        visitor.page.get_by_role("option", name="Cherry Wax").click()
    visitor.plan("from the label" if role == "I provide" else "from noise alone")
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].guidance_scale in ({}, {"label": 1}) and not pipe.calls[-1].sample_first


def test_visitors_run_at_the_same_time(visit, pipe, monkeypatch):
    first, second = visit(), visit("image_label")
    monkeypatch.setattr(pipe, "step_seconds", 0.3)
    first.run()
    first.status(RUNNING)
    second.run()
    second.status(RUNNING)
    assert "Step" in first.find("status").inner_text()
    first.page.bring_to_front()  # what is behind may be slowed down by the browser
    first.find("stop").click()
    first.status("Stopped at step")
    monkeypatch.undo()
    second.status("Done")


def test_the_place_in_line_is_shown(visit, pipe, monkeypatch):
    monkeypatch.setattr(pipe.engine, "_capacity", 1)
    monkeypatch.setattr(pipe, "step_seconds", 0.3)
    first, second = visit(), visit()
    first.run()
    first.status(RUNNING)
    second.run()
    second.status("Yours is the next run to start")
    first.page.bring_to_front()  # what is behind may be slowed down by the browser
    first.find("stop").click()
    first.status("Stopped at step")
    monkeypatch.setattr(pipe, "step_seconds", 0)
    second.status("Done")
    monkeypatch.setattr("app.run.service.MAX_WAITING", 0)
    second.run()
    second.status("Please try again in a minute")


def test_a_closed_tab_frees_its_place(visit, pipe, monkeypatch):
    monkeypatch.setattr(pipe, "step_seconds", 0.2)
    visitor = visit()
    visitor.run()
    visitor.status(RUNNING)
    assert pipe.engine._running
    visitor.page.goto("about:blank")
    near(lambda: not pipe.engine._running, 10)
    visitor.errors.clear()  # the page says that its request was cut off, which is the point


# -- what nobody has ---------------------------------------------------------------------------------


@pytest.mark.parametrize("size", SIZES)
def test_the_scrubber_moves_every_head_without_the_server(visit, size):
    visitor = visit("any_to_any", size)
    visitor.run()
    visitor.done()
    scrubber = visitor.player(".scrubber")
    scrubber.scroll_into_view_if_needed()
    before = {m: visitor.player(f'figure[data-modality="{m}"]').inner_html() for m in EVERYTHING}
    asked = len(visitor.requests)
    box = scrubber.bounding_box()
    visitor.page.mouse.move(box["x"] + box["width"] - 8, box["y"] + box["height"] / 2)
    visitor.page.mouse.down()
    for share in (0.8, 0.6, 0.4, 0.2):
        visitor.page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
    visitor.page.mouse.up()
    assert 5 <= visitor.at("step") <= 9  # a fifth of the way, which is step 6 or 7 of 30
    for modality, html in before.items():
        assert visitor.player(f'figure[data-modality="{modality}"]').inner_html() != html, modality
    assert not [url for url in visitor.requests[asked:] if "queue" in url or "/file=" in url]
    spent = visitor.page.evaluate(
        """scrubber => { const start = performance.now();
        for (let k = 1; k <= 30; k++) { scrubber.value = k; scrubber.dispatchEvent(new Event('input')); }
        return (performance.now() - start) / 30; }""",
        scrubber.element_handle(),
    )
    assert spent < 20  # ms; about 1 on a free machine


@pytest.mark.parametrize("size", SIZES)
def test_the_timeline_and_the_curves_follow_the_run(visit, size):
    visitor = visit("any_to_any", size)
    visitor.record(".curves svg")
    visitor.run()
    visitor.done()
    assert visitor.seen() >= 5  # drawn while it runs
    rows = visitor.player(".timeline").inner_text()
    assert all(head.capitalize() in rows for head in EVERYTHING)
    assert visitor.player(".curves svg").count() == 2  # areas of the mask, probabilities of labels
    before = visitor.at("step")
    cells = visitor.player(".timeline button")
    assert cells.count() >= 5
    cells.nth(2).click()
    assert visitor.at("step") != before


@pytest.mark.parametrize("size", SIZES)
def test_several_samples_have_cards_and_an_uncertainty_map(visit, size):
    visitor = visit("image_mask", size)
    visitor.find("more", "button").first.click()
    samples = visitor.find("samples", "input[type=number]")
    samples.wait_for()
    visitor.page.wait_for_timeout(500)
    samples.fill("4")
    samples.press("Tab")
    visitor.run()
    visitor.done()
    cards = visitor.player(".sample-card")
    assert cards.count() == 4
    assert visitor.player(".uncertainty img, .uncertainty canvas").count() == 2  # picture and mask
    first = visitor.picture()
    cards.nth(2).click()
    assert visitor.at("sample") == 2 and not np.array_equal(visitor.picture(), first)


@pytest.mark.parametrize("size", SIZES)
def test_the_same_seed_with_two_settings_side_by_side(visit, pipe, size):
    visitor = visit("image_label", size)
    visitor.find("compare", "button").first.click()
    visitor.find("run-both").wait_for()
    visitor.find("run-both").click()
    visitor.done()
    assert visitor.player("[data-track]").count() == 2 and visitor.fits()
    one, two = pipe.calls[-2:]
    assert one.seed == two.seed and {one.steps, two.steps} == {30, 10}
    assert one.guidance_scale == two.guidance_scale == {"label": 2}  # both follow the label
    words = visitor.find("player").inner_text()
    assert "30 steps" in words and "10 steps" in words


def test_two_checkpoints_side_by_side_and_two_equal_runs_refused(visit):
    visitor = visit("image_label")
    visitor.find("compare", "button").first.click()
    steps = visitor.find("other-steps", "input[type=number]")
    steps.wait_for()
    visitor.page.wait_for_timeout(500)
    steps.fill("0")
    steps.press("Tab")
    visitor.find("run-both").click()
    visitor.status("Both runs would be the same")
    visitor.find("other-checkpoint", "input").click()
    visitor.page.locator("li[role=option]", has_text="second").click()
    visitor.find("run-both").click()
    visitor.done()
    assert visitor.player("[data-track]").count() == 2
    assert "second" in visitor.find("player").inner_text()


@pytest.mark.parametrize("size", SIZES)
def test_fork_from_the_step_of_the_scrubber(visit, size):
    visitor = visit("image_label", size)
    visitor.run()
    visitor.done()
    visitor.find("fork").click()
    visitor.status("nothing is left to change")
    label = visitor.player('figure[data-modality="label"]').inner_text()
    scrubber = visitor.player(".scrubber")
    scrubber.fill("12")
    assert visitor.at("step") == 12
    visitor.choose("label", "I provide")
    visitor.find("label-choice", "input").click()
    other = "Cherry Wax" if "Cherry Wax" not in label else "Apple Golden"
    visitor.page.get_by_role("option", name=other).click()
    visitor.plan("Creates image from the label")
    original = visitor.picture()
    visitor.find("fork").click()
    visitor.done()
    assert visitor.player("[data-track]").count() == 2 and visitor.fits()
    assert "Branch after step 12" in visitor.find("player").inner_text()
    scrubber.fill("12")
    before = [visitor.player(f'[data-track="{k}"] [data-modality="image"] img').first for k in (0, 1)]
    assert before[0].get_attribute("src") == before[1].get_attribute("src")
    scrubber.fill("30")
    branch = visitor.player('[data-track="1"] figure[data-modality="label"]').inner_text()
    assert re.search(rf"{other}\s+100\s?%", branch)
    assert not np.array_equal(visitor.picture(track=1), visitor.picture(track=0))
    assert np.array_equal(visitor.picture(track=0)[..., :3].shape, original[..., :3].shape)


def test_a_fork_of_which_nothing_was_changed_says_so(visit):
    visitor = visit("image_mask")
    visitor.run()
    visitor.done()
    visitor.player(".scrubber").fill("12")
    visitor.find("fork").click()
    assert "Nothing was changed, so both are equal" in visitor.done()
    assert np.array_equal(visitor.picture(track=1), visitor.picture(track=0))
    assert not visitor.find("status", ".problem").count()


@pytest.mark.parametrize("size", SIZES)
def test_a_film_of_the_timeline(visit, size):
    visitor = visit("image_label", size)
    visitor.run()
    visitor.done()
    with Image.open(fetched(visitor, "gif")) as film:
        assert film.n_frames == 30
    with av.open(str(fetched(visitor, "mp4"))) as film:
        assert sum(1 for _ in film.decode(video=0)) >= 30


@pytest.mark.parametrize("size", SIZES)
def test_a_link_reproduces_the_run(visit, pipe, size):
    visitor = visit("image_label", size)
    visitor.choose("label", "I provide")
    visitor.find("label-choice", "input").click()
    visitor.page.get_by_role("option", name="Tomato Heart").click()
    visitor.plan("Creates image from the label")
    visitor.run()
    visitor.done()
    visitor.find("code", "button").first.click()
    link = visitor.find("link", ":is(textarea, input)").first
    near(lambda: "seed=" in link.input_value())
    url = urlsplit(link.input_value())
    assert parse_qs(url.query)["seed"] == [visitor.find("seed", "input").input_value()]
    assert link.input_value().startswith(visitor.address)

    again = visit("image_label", size, query=f"/?{url.query}")
    again.status("Done")
    assert np.array_equal(again.picture(), visitor.picture())
    assert pipe.calls[-1].given == {"label": "Tomato Heart"}
    assert "came from a link" in again.page.locator("#message").inner_text()
    assert again.find("seed", "input").input_value() == visitor.find("seed", "input").input_value()


def test_a_link_names_missing_values_and_unreadable_ones(visit, photo_file):
    visitor = visit("fill_in")
    visitor.run()
    visitor.done()
    visitor.find("code", "button").first.click()
    link = visitor.find("link", ":is(textarea, input)").first
    near(lambda: "seed=" in link.input_value())
    assert "settings" in visitor.find("link-note").inner_text()
    again = visit("fill_in", query="/?" + urlsplit(link.input_value()).query)
    message = again.page.locator("#message")
    near(lambda: "did not fit into it" in message.inner_text())
    assert again.find("keep-seed", "input").is_checked()
    assert "First upload a photo" in again.find("plan").inner_text()
    again.give_photo(photo_file)
    near(lambda: "in the hole" in again.find("plan").inner_text())
    assert np.array_equal(again.cells("image"), visitor.cells("image"))
    broken = visit("image_label", query="/?task=image_label&seed=many")
    words = "This link cannot be restored. In it “seed” is “many” and not a whole number."
    near(lambda: broken.page.locator("#message").inner_text() == words)


def test_another_hole_leaves_the_photo_that_was_chosen(visit, pipe, photo_file):
    visitor = visit("fill_in")
    visitor.give_photo(photo_file)
    near(lambda: visitor.find("image-painter", "canvas").count() == 1)
    visitor.run()
    visitor.done()
    chosen = pipe.calls[-1].given["image"]
    visitor.page.get_by_role("button", name="Fill a half").click()
    near(lambda: not pipe.calls[-1].known_pixels[:, -1].any())
    visitor.done()
    assert np.array_equal(pipe.calls[-1].given["image"], chosen)


def test_a_settings_file_restores_the_run(visit):
    visitor = visit("fill_in")
    visitor.page.get_by_role("button", name="Fill a half").click()
    visitor.done()
    file = fetched(visitor, "json")
    again = visit("image_label")
    with again.page.expect_file_chooser() as chooser:
        again.page.locator("#restore").click()
    chooser.value.set_files({"name": "run.json", "mimeType": "application/json", "buffer": file.read_bytes()})
    again.task = "fill_in"
    again.status("Done")
    assert np.array_equal(again.picture(), visitor.picture())
    assert np.array_equal(again.cells("image"), visitor.cells("image"))


def test_a_file_without_settings_is_refused(visit, photo_file):
    visitor = visit()
    with visitor.page.expect_file_chooser() as chooser:
        visitor.page.locator("#restore").click()
    chooser.value.set_files(photo_file)
    visitor.page.get_by_text("has no settings in it").first.wait_for()


def test_the_zip_has_everything_and_its_pictures_restore_the_run(visit, tmp_path):
    visitor = visit("image_mask")
    visitor.run()
    visitor.done()
    with zipfile.ZipFile(fetched(visitor, "zip")) as files:
        names = files.namelist()
        settings = json.loads(files.read("settings.json"))
        assert settings["seed"] == int(visitor.find("seed", "input").input_value())
        picture = next(name for name in names if name.endswith("image.png") and "sample" in name)
        (tmp_path / "image.png").write_bytes(files.read(picture))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "image.png")), visitor.picture())
    again = visit("any_to_any")
    with again.page.expect_file_chooser() as chooser:
        again.page.locator("#restore").click()
    chooser.value.set_files(tmp_path / "image.png")
    again.task = "image_mask"
    again.status("Done")
    assert np.array_equal(again.picture(), visitor.picture())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(visit, scheme, photo_file):
    visitor = visit("any_to_any", "phone", color_scheme=scheme)
    visitor.choose("image", "I provide")
    visitor.give_photo(photo_file)
    visitor.choose("mask", "I provide")
    visitor.find("more", "button").first.click()
    visitor.paint("mask", (0.3, 0.5), (0.7, 0.5))
    visitor.plan("Creates label and embedding from the image and mask")
    assert visitor.fits()
    visitor.run()
    visitor.done()
    assert visitor.fits()
    visitor.find("compare", "button").first.click()
    visitor.find("code", "button").first.click()
    visitor.find("link", ":is(textarea, input)").first.wait_for()
    assert visitor.fits()


def test_side_by_side_changes_guidance_only_by_choice(visit, pipe):
    visitor = visit("image_label")
    visitor.page.get_by_role("button", name="Cherry Rainier", exact=True).or_(
        visitor.page.get_by_role("button", name="Apple Golden", exact=True)
    ).first.click()
    visitor.done()
    visitor.find("compare", "button").first.click()
    guidance = visitor.find("other-guidance", "input")
    guidance.wait_for()
    for text, scale in [(None, 1), ("3", 3), ("The same", 1)]:  # at first as it stands, untouched
        if text:
            guidance.click()
            visitor.page.locator(f"li[role=option][aria-label='{text}']").click()
        visitor.find("run-both").click()
        visitor.done()
        scales = {call.steps: call.guidance_scale for call in pipe.calls[-2:]}
        assert scales == {30: {"label": 1}, 10: {"label": scale}}


def test_a_run_that_the_server_has_lost_is_not_forked(visit, monkeypatch):
    visitor = visit("image_label")
    keep = SessionState.__setitem__

    def forget(session, key, value):
        if not isinstance(session.blocks_config.blocks.get(key), gr.State):
            keep(session, key, value)

    monkeypatch.setattr(SessionState, "__setitem__", forget)
    visitor.player(".scrubber").fill("4")
    visitor.find("fork").click()  # of the example, which is never forgotten
    visitor.done()
    visitor.find("fork").click()
    visitor.status("nothing is left to change")
    visitor.run()
    visitor.done()
    visitor.player(".scrubber").fill("4")
    visitor.find("fork").click()
    visitor.status("no longer has the run that is shown")
    assert visitor.player("[data-track]").count() == 1
