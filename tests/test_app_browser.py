"""The page in a real Chromium: upload, paint, watch, stop, on a phone, too; nothing leaves the machine."""

import base64
import io
import re
import shutil
import time

import numpy as np
import pytest
from fakes import FakePipeline, photo, served
from PIL import Image

from app.service import Service

sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright
RUNNING = re.compile(r"Step \d+ of")
RECORD_WORDS = """() => {
  window.words = new Set();
  const note = () => words.add(document.querySelector('[data-modality="embedding"]').innerText);
  const options = { subtree: true, childList: true, characterData: true };
  new MutationObserver(note).observe(document.getElementById('samples-view'), options);
}"""
RECORD_PICTURES = """() => {
  window.pictures = new Set();
  const note = () => pictures.add(document.querySelector('[data-modality="image"] img').src);
  const options = { subtree: true, childList: true, attributeFilter: ['src'] };
  new MutationObserver(note).observe(document.getElementById('samples-view'), options);
}"""
CHROMIUM = shutil.which("chromium")
FLAGS = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium as the command `chromium`"),
]


@pytest.fixture(scope="module")
def service():
    return Service(FakePipeline(step_seconds=0.03), "orchard", 15.8)


@pytest.fixture(scope="module")
def address(service):
    with served(service) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


class Visitor:
    """Somebody in front of the page."""

    def __init__(self, page, address):
        self.page, self.address, self.requests, self.errors = page, address, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        with page.expect_request("**/heartbeat/*"):  # sent once the page is ready to be used
            page.goto(address)
        page.locator("#run").wait_for()

    def choose(self, modality, role):
        self.page.locator(f"#{modality}-role").get_by_label(role, exact=True).check()

    def upload(self, modality, path):
        self.page.locator(f"#{modality}-file input[type=file]").set_input_files(path)

    def paint(self, modality, start, end):
        """A stroke between two points, (x, y) as shares of the sheet; returns them in pixels of the model."""
        canvas = self.page.locator(f"#{modality}-painter canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        points = np.linspace(start, end, 12)
        for k, (x, y) in enumerate(points):
            self.page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"])
            if k == 0:
                self.page.mouse.down()
        self.page.mouse.up()
        return np.linspace(start, end, 200) * 64

    def cells(self, modality):
        """What the paint area shows, (64, 64) bool, True where it is the second colour."""
        data = self.page.locator(f"#{modality}-painter canvas").evaluate("canvas => canvas.toDataURL()")
        pixels = np.asarray(decode(data).convert("RGBA"))
        return (pixels != pixels[0, 0]).any(2)

    def picture(self, modality="image"):
        return self.page.locator(f'[data-modality="{modality}"] .frame img').last.get_attribute("src")

    def status(self, text, timeout=15_000):
        self.page.locator("#status", has_text=text).wait_for(timeout=timeout)
        return self.page.locator("#status").inner_text()

    def plan(self, text):
        self.page.locator("#plan", has_text=text).wait_for(timeout=5_000)


@pytest.fixture(scope="module")
def wordy():
    """A model with an embedding, and its page."""
    pipe = FakePipeline(step_seconds=0.03, modalities=("image", "mask", "label", "embedding"))
    with served(Service(pipe, "wordy")) as address:
        yield pipe, address


@pytest.fixture
def visit(browser, address):
    visitors = []

    def visit(width=1440, height=1000, address=address, **options):
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        visitors.append(Visitor(page, address))
        return visitors[-1]

    yield visit
    for visitor in visitors:
        away = [url for url in visitor.requests if not url.startswith((visitor.address, "data:", "blob:"))]
        assert not away, f"left the machine: {away}"
        assert not visitor.errors
        visitor.page.close()


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


@pytest.fixture
def photo_file(tmp_path):
    photo((64, 64)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_something_to_look_at_before_the_first_run(visit):
    visitor = visit()
    facts = visitor.page.locator(".facts").inner_text()
    assert all(words in facts for words in ("orchard", "64 × 64 px", "16 MB", "CPU"))
    assert "example" in visitor.status("example")
    assert decode(visitor.picture()).size == (64, 64)
    visitor.plan("Generates image, mask and label from noise alone")
    assert re.search(r"about [\d.]+ s on this CPU", visitor.page.locator("#estimate").inner_text())


def test_fill_a_painted_hole_then_stop_a_second_run(visit, service, photo_file, monkeypatch):
    visitor = visit()
    page = visitor.page
    visitor.choose("image", "Given")
    visitor.plan("First upload a photo")
    visitor.upload("image", photo_file)
    visitor.plan("Generates mask and label from the image")
    path = visitor.paint("image", (0.3, 0.35), (0.65, 0.6))
    visitor.plan("image (in the hole)")

    hole = visitor.cells("image")
    rows, columns = np.mgrid[:64, :64] + 0.5
    distance = np.hypot(columns[..., None] - path[:, 0], rows[..., None] - path[:, 1]).min(2)
    radius = float(page.locator("#image-painter input[type=range]").input_value()) / 2
    assert hole[distance < radius - 1].all() and not hole[distance > radius + 1].any()

    page.evaluate(RECORD_PICTURES)
    page.click("#run")
    done = visitor.status("Done")
    assert page.evaluate("window.pictures.size") >= 10  # live
    assert f"seed {page.locator('#seed input').input_value()}" in done
    assert "filled in" in page.locator('[data-modality="image"]').inner_text()
    result, original = np.asarray(decode(visitor.picture())), np.asarray(photo((64, 64)))
    assert np.array_equal(result[~hole], original[~hole])
    assert (result[hole] != original[hole]).mean() > 0.5

    monkeypatch.setattr(service.pipe, "step_seconds", 0.2)
    page.click("#run")
    visitor.status(RUNNING)
    page.click("#stop")
    stopped = visitor.status("Stopped at step")
    index, total = map(int, re.search(r"step (\d+) of (\d+)", stopped).groups())
    assert index < total == 30
    partial = np.asarray(decode(visitor.picture()))
    assert np.array_equal(partial[~hole], original[~hole]) and not np.array_equal(partial, result)
    assert page.locator("#run").is_enabled() and page.locator("#stop").is_disabled()


def test_undo_erase_and_clear(visit, photo_file):
    visitor = visit()
    visitor.choose("image", "Given")
    visitor.upload("image", photo_file)
    visitor.page.locator("#image-painter canvas").wait_for()
    visitor.paint("image", (0.2, 0.2), (0.2, 0.8))
    first = visitor.cells("image")
    visitor.paint("image", (0.8, 0.2), (0.8, 0.8))
    assert visitor.cells("image").sum() > first.sum() > 0
    visitor.page.locator("#image-painter .undo").click()
    assert np.array_equal(visitor.cells("image"), first)
    visitor.page.locator("#image-painter").get_by_text("Erase").click()
    visitor.paint("image", (0.2, 0.2), (0.2, 0.5))
    assert 0 < visitor.cells("image").sum() < first.sum()
    visitor.choose("image", "Generate")
    visitor.choose("image", "Given")  # what was painted is still there
    assert 0 < visitor.cells("image").sum() < first.sum()
    visitor.page.locator("#image-painter .clear").click()
    visitor.plan("Generates mask and label from the image")
    visitor.page.get_by_text("Other photo").click()
    visitor.plan("First upload a photo")


def test_a_painted_and_an_uploaded_mask_are_given(visit, tmp_path):
    visitor = visit()
    visitor.choose("mask", "Given")
    visitor.plan("First paint or upload a mask")
    visitor.paint("mask", (0.3, 0.5), (0.7, 0.5))
    visitor.plan("Generates image and label from the mask")
    painted = visitor.cells("mask")
    visitor.page.click("#run")
    visitor.status("Done")
    saved = visitor.page.locator('[data-modality="mask"] .save').get_attribute("href")
    assert np.array_equal(np.asarray(decode(saved)) == 1, painted)

    mask = np.zeros((64, 64), dtype=np.uint8)
    mask[16:40, 8:30] = 1
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with visitor.page.expect_file_chooser() as chooser:
        visitor.page.get_by_role("button", name="Upload mask").click()
    chooser.value.set_files(tmp_path / "mask.png")
    deadline = time.time() + 5
    while not np.array_equal(visitor.cells("mask"), mask == 1):
        assert time.time() < deadline
        time.sleep(0.05)


def test_what_cannot_be_run_is_explained_and_the_page_goes_on(visit, tmp_path):
    visitor = visit()
    page = visitor.page
    visitor.choose("image", "Given")
    page.click("#run")
    visitor.status("nothing is given. Upload a photo")
    assert page.locator("#run").is_enabled()
    (tmp_path / "diary.png").write_bytes(b"dear diary")
    visitor.upload("image", tmp_path / "diary.png")
    page.get_by_text("“diary.png” cannot be read as a picture").wait_for()
    for modality in ("image", "mask", "label"):
        visitor.choose(modality, "Ignore")
    visitor.plan("Nothing to generate yet")
    page.click("#run")
    visitor.status("There is nothing to generate")
    visitor.choose("label", "Given")
    visitor.plan("First choose a label")
    page.locator("#label-choice input").click()
    page.get_by_role("option", name="Cherry Wax").click()
    visitor.choose("image", "Generate")
    visitor.plan("Generates image from the label")
    page.click("#run")
    visitor.status("Done")
    assert page.locator("#samples-view .panel").count() == 2


def test_the_seed_is_kept_on_request_and_gives_the_same_picture(visit):
    visitor = visit()
    page = visitor.page
    page.click("#run")
    visitor.status("Done")
    seed, picture = page.locator("#seed input").input_value(), visitor.picture()
    page.locator("#keep-seed input").check()
    page.click("#run")
    visitor.status(RUNNING)
    visitor.status("Done")
    assert page.locator("#seed input").input_value() == seed and visitor.picture() == picture
    page.click("#new-seed")
    page.wait_for_function("seed => document.querySelector('#seed input').value !== seed", arg=seed)


@pytest.mark.parametrize("example, role", [("Fill a hole", "filled in"), ("Read a photo", "given")])
def test_one_click_examples(visit, example, role):
    visitor = visit()
    visitor.page.get_by_role("button", name=example).click()
    visitor.status(RUNNING)
    visitor.status("Done")
    assert role in visitor.page.locator('[data-modality="image"]').inner_text()


def test_a_text_is_among_the_examples(visit, wordy):
    pipe, address = wordy
    visitor = visit(address=address)
    visitor.page.get_by_role("button", name="“a red apple”").click()
    visitor.status(RUNNING)
    visitor.status("Done")
    assert pipe.calls[-1]["given"] == {"embedding": "a red apple"}
    assert set(pipe.calls[-1]["wanted"]) == {"image", "mask", "label"}


def test_two_visitors_take_turns(visit, service, monkeypatch):
    first, second = visit(), visit()
    monkeypatch.setattr(service.pipe, "step_seconds", 0.5)
    first.page.click("#run")
    first.status(RUNNING)
    second.page.click("#run")
    second.status("Yours is next")
    monkeypatch.undo()
    first.page.click("#stop")
    first.status("Stopped at step")
    second.status("Done")


def words(visitor):
    """What the embedding's panel says: by group the texts with their cosines, in the order shown."""
    groups = {}
    for group in visitor.page.locator("[data-words]").all():
        rows = [row.inner_text().split("\n")[:2] for row in group.locator("li").all()]
        groups[group.get_attribute("data-words")] = {text: float(cosine) for text, cosine in rows}
    return groups


def test_an_embedding_is_shown_in_words_at_every_step(visit, wordy):
    visitor = visit(address=wordy[1])
    assert set(words(visitor)) == {"captions", "labels", "probes"}  # of the example
    visitor.page.evaluate(RECORD_WORDS)
    visitor.page.click("#run")
    visitor.status("Done")
    assert visitor.page.evaluate("window.words.size") >= 10  # live
    found = words(visitor)
    assert [len(found[name]) for name in ("captions", "labels", "probes")] == [3, 3, 4]
    for near in found.values():
        assert list(near.values()) == sorted(near.values(), reverse=True)


def test_a_text_or_a_photo_gives_the_embedding(visit, wordy, photo_file):
    pipe, address = wordy
    visitor = visit(address=address)
    page = visitor.page
    visitor.choose("embedding", "Given")
    visitor.plan("First write a text or upload a photo")
    page.locator("#embedding-text textarea, #embedding-text input").fill("a photo of a dark red cherry")
    visitor.plan("Generates image, mask and label from the embedding")
    page.click("#run")
    visitor.status("Done")
    assert pipe.calls[-1]["given"] == {"embedding": "a photo of a dark red cherry"}
    assert next(iter(words(visitor)["captions"].items())) == ("a photo of a dark red cherry", 1.0)

    page.locator("#embedding-text textarea, #embedding-text input").fill("")
    visitor.plan("First write a text or upload a photo")
    with page.expect_file_chooser() as chooser:
        page.locator("#embedding-file").get_by_role("button").first.click()
    chooser.value.set_files(photo_file)
    visitor.plan("Generates image, mask and label from the embedding")
    page.click("#run")
    visitor.status(RUNNING)
    visitor.status("Done")
    assert np.array_equal(np.asarray(pipe.calls[-1]["given"]["embedding"]), np.asarray(photo((64, 64))))


def test_guidance_is_set_for_each_modality(visit, wordy):
    pipe, address = wordy
    visitor = visit(address=address)
    page = visitor.page
    page.get_by_text("Sampler, samples, guidance").click()
    assert page.locator(".guidance input[type=range]").count() == 3  # of all but the image
    for modality, scale in (("label", "3"), ("embedding", "2")):
        page.locator(f"#{modality}-guidance input[type=number]").fill(scale)
    visitor.choose("label", "Given")
    page.locator("#label-choice input").click()
    page.get_by_role("option", name="Cherry Wax").click()
    visitor.plan("from the label")
    page.click("#run")
    visitor.status("Done")
    assert pipe.calls[-1]["guidance_scale"] == {"label": 3}  # the embedding is generated


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(visit, scheme, photo_file, wordy):
    visitor = visit(390, 844, address=wordy[1], color_scheme=scheme, has_touch=True)
    page = visitor.page

    def fits():
        return page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

    assert fits()
    visitor.choose("image", "Given")
    visitor.upload("image", photo_file)
    visitor.choose("mask", "Given")
    page.get_by_text("Sampler, samples, guidance").click()
    visitor.paint("mask", (0.3, 0.5), (0.7, 0.5))
    visitor.plan("Generates label and embedding from the image and mask")
    assert fits()
    page.click("#run")
    visitor.status("Done")
    assert fits()
