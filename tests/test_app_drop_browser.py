"""Files that come by dropping, pasting and the camera, and what is made of them, in a real Chromium."""

import base64

import numpy as np
import pytest
from chromium import CHROMIUM, FLAGS, MARKS
from fakes import photo
from PIL import Image
from test_app_browser import Visitor, address, contexts, near, pipe, visit  # noqa: F401

pytestmark = MARKS
BRING = """([selector, name, type, data, kind]) => {
  const files = new DataTransfer();
  files.items.add(new File([Uint8Array.from(atob(data), (c) => c.charCodeAt(0))], name, { type }));
  const node = document.querySelector(selector), all = { bubbles: true, cancelable: true };
  const pasted = () => new ClipboardEvent('paste', { ...all, clipboardData: files });
  if (kind === 'paste') return node.dispatchEvent(pasted());
  node.dispatchEvent(new DragEvent('dragover', { ...all, dataTransfer: files }));
  return node.dispatchEvent(new DragEvent('drop', { ...all, dataTransfer: files }));
}"""


def bring(visitor, path, selector="body", kind="drop"):
    """Drops or pastes a file; returns whether the browser would do something with it, too."""
    types = {".png": "image/png", ".json": "application/json", ".txt": "text/plain"}
    data = base64.b64encode(path.read_bytes()).decode()
    return visitor.page.evaluate(BRING, [selector, path.name, types[path.suffix], data, kind])


@pytest.fixture
def files(tmp_path):
    """Two square photos, one in three colours that is three times as wide as high, and a text."""
    for seed, name in enumerate(("one", "two")):
        photo((64, 64), seed).save(tmp_path / f"{name}.png")
    bands = np.repeat(np.eye(3, dtype=np.uint8)[None] * 255, 64, 1).repeat(64, 0)
    Image.fromarray(bands).save(tmp_path / "bands.png")
    (tmp_path / "note.txt").write_text("dear diary")
    return {path.stem: path for path in tmp_path.iterdir()}


@pytest.mark.parametrize("size", ["desktop", "tablet", "phone"])
def test_a_photo_may_be_dropped_anywhere_and_replaced_by_a_pasted_one(visit, pipe, files, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    assert not bring(visitor, files["one"], "#any_to_any-run-panel")
    visitor.plan("from the image")
    visitor.run()
    visitor.done()
    assert np.array_equal(np.asarray(pipe.calls[-1].given["image"]), np.asarray(photo((64, 64), 0)))
    assert not bring(visitor, files["two"], kind="paste")
    visitor.page.wait_for_timeout(1000)
    visitor.run()
    visitor.done()
    assert np.array_equal(np.asarray(pipe.calls[-1].given["image"]), np.asarray(photo((64, 64), 1)))
    assert visitor.page.url.split("#")[0].rstrip("/") == visitor.address


def test_a_file_goes_to_the_row_that_it_is_dropped_on(visit, pipe, files):  # noqa: F811
    visitor = visit("image_embedding")
    bring(visitor, files["one"], "#image_embedding-embedding-row")
    visitor.plan("Creates image from the embedding")
    visitor.run()
    visitor.done()
    assert list(pipe.calls[-1].given) == ["embedding"]


def test_settings_may_be_dropped_and_other_files_do_not_replace_the_page(visit, files, tmp_path):  # noqa: F811
    visitor = visit("image_label")
    visitor.run()
    visitor.done()
    with visitor.page.expect_download() as download:
        visitor.find("json").click()
    download.value.save_as(tmp_path / "run.json")
    again = visit("image_mask")
    assert not bring(again, files["note"])
    toast = again.page.locator(".toast-body")
    toast.get_by_text("Invalid file type: note.txt").wait_for()
    assert toast.count() == 1 and again.page.url.split("#")[0].rstrip("/") == again.address
    bring(again, tmp_path / "run.json")
    again.task = "image_label"
    again.status("Done")
    assert np.array_equal(again.picture(), visitor.picture())


@pytest.mark.parametrize("size", ["desktop", "tablet", "phone"])
def test_a_wrong_file_leaves_the_box_usable_with_one_message(visit, files, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    visitor.choose("image", "I provide")
    visitor.give_photo(files["note"])
    toast = visitor.page.locator(".toast-body")
    toast.get_by_text("note.txt").wait_for()
    assert toast.count() == 1 and not visitor.find("image-note").inner_text().strip()
    box = visitor.find("image-file")
    assert "Error" not in box.inner_text() and box.locator(".upload-container").is_visible()
    visitor.give_photo(files["one"])
    near(lambda: not toast.count(), 1)  # the right one takes it away
    visitor.plan("from the image")


def test_a_message_on_a_wrong_file_goes_by_itself_and_by_a_click(visit, files):  # noqa: F811
    visitor = visit("any_to_any")
    visitor.choose("image", "I provide")
    toast = visitor.page.locator(".toast-body")
    visitor.give_photo(files["note"])
    toast.wait_for()
    visitor.page.wait_for_timeout(3000)
    assert toast.count() == 1
    near(lambda: not toast.count(), 3.5)
    visitor.give_photo({"name": "other.txt", "mimeType": "text/plain", "buffer": b"another"})
    toast.wait_for()
    visitor.choose("label", "I provide")
    near(lambda: not toast.count(), 1)


@pytest.mark.parametrize("size", ["desktop", "tablet", "phone"])
def test_another_part_of_a_photo_is_chosen(visit, pipe, files, tmp_path, size):  # noqa: F811
    visitor = visit("fill_in", size)
    visitor.find("image-other").click()
    near(lambda: "upload a photo" in visitor.find("plan").inner_text())
    visitor.give_photo(files["bands"])
    crop = visitor.find("image-crop", "input[type=range]")
    crop.wait_for()
    assert "left to right" in visitor.find("image-crop").inner_text()
    for end, colour in (("Home", (255, 0, 0)), ("End", (0, 0, 255))):
        crop.press(end)
        visitor.page.wait_for_timeout(1000)
        visitor.run()
        visitor.done()
        given = np.asarray(pipe.calls[-1].given["image"])
        assert (given == colour).all()
    hole = np.zeros((64, 192), dtype=np.uint8)
    hole[16:48, 144:176] = 255  # on the blue part
    Image.fromarray(hole).save(tmp_path / "hole.png")
    visitor.upload("image-hole-file", tmp_path / "hole.png")
    near(lambda: np.array_equal(visitor.cells("image"), hole[:, 128:] > 0))


def test_the_photo_is_seen_below_the_mask_that_is_painted(visit, files):  # noqa: F811
    visitor = visit("any_to_any")
    visitor.choose("mask", "I provide")
    below = visitor.find("mask-painter", ".sheet img")
    assert not below.is_visible()
    bring(visitor, files["bands"])
    near(below.is_visible)
    visitor.paint("mask", (0.3, 0.5), (0.7, 0.5))
    pixel = "(canvas, [x, y]) => [...canvas.getContext('2d').getImageData(x, y, 1, 1).data]"
    canvas = visitor.find("mask-painter", "canvas")
    assert canvas.evaluate(pixel, [2, 2])[3] == 0 and canvas.evaluate(pixel, [32, 32])[3] == 255
    visitor.choose("image", "Create")
    near(lambda: not below.is_visible())


@pytest.mark.parametrize("size", [(1440, 1000), (390, 844)])
def test_a_photo_is_taken_with_the_camera(browser, address, pipe, size):  # noqa: F811
    camera = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]
    filmed = browser.browser_type.launch(executable_path=CHROMIUM, args=[*FLAGS, *camera])
    viewport = {"width": size[0], "height": size[1]}
    visitor = Visitor(filmed.new_page(viewport=viewport), address, "image_label")
    visitor.choose("image", "I provide")
    visitor.page.locator(".camera").locator("visible=true").click()
    visitor.page.get_by_role("button", name="Take the photo").click()
    visitor.plan("Creates label from the image")
    assert not visitor.page.locator(".camera-dialog").count()
    visitor.run()
    visitor.done()
    assert np.asarray(pipe.calls[-1].given["image"]).std() > 10  # the test picture is colourful
    filmed.close()
