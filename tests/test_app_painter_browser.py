"""Painting and uploading in a real Chromium, by mouse and finger: the model is given what is seen."""

import base64
import io
import time
from contextlib import contextmanager
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
import pytest
from chromium import MARKS
from fakes import make_specs, photo
from PIL import Image
from scipy import ndimage

from app import theme
from app.controls.inputs import QUIET, input_class
from mmdiff.evaluation.holes import BLOCKS_A_SIDE

pytestmark = MARKS

SIZE = 64
SPECS = make_specs(SIZE, ("Apple Red", "Cherry Wax"), ("void", "sky", "road", "tree"))
PALETTE = SPECS["mask"].palette
DESKTOP = {"viewport": {"width": 1440, "height": 1000}}
PHONE = {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 3, "has_touch": True}
ZOOMED = {"viewport": {"width": 820, "height": 1100}, "device_scale_factor": 1.5}


class Read(NamedTuple):
    """What the controls of a modality give."""

    value: Any
    known_pixels: np.ndarray | None = None


class Desk:
    """A page with every kind of input, a button that gives what they hold, and one that brings it back."""

    def __init__(self):
        self.given = {}  # name -> what `read` gave, or what it complained about
        self.kept = {}
        self.times = 0

    def build(self):
        with gr.Blocks(analytics_enabled=False) as page:
            give, restore = gr.Button("Give", elem_id="give"), gr.Button("Restore", elem_id="restore")
            with gr.Column(elem_classes="controls"), gr.Column(elem_classes="card"):
                with gr.Column(elem_classes="given"):
                    inputs = {name: input_class(spec)(spec, "desk") for name, spec in SPECS.items()}

            def read(*values):
                values = list(values)
                for name, control in inputs.items():
                    own = [values.pop(0) for _ in control.components]
                    try:
                        self.given[name] = Read(control.read(*own), control.known_pixels(*own))
                    except ValueError as error:
                        self.given[name] = str(error)
                self.times += 1

            def bring_back():
                return [update for name, c in inputs.items() for update in c.show(*self.kept[name])]

            give.click(read, [c for i in inputs.values() for c in i.components], None, **QUIET)
            restore.click(bring_back, None, [c for i in inputs.values() for c in i.shown], **QUIET)
        return page


@pytest.fixture(scope="module")
def desk():
    desk = Desk()
    page = desk.build()
    options = {"theme": theme.theme(), "css_paths": theme.STYLES, "footer_links": []}
    try:
        launched = page.launch(
            server_name="127.0.0.1", ssr_mode=False, prevent_thread_lock=True, quiet=True, **options
        )
        desk.address = launched[1].rstrip("/")
        yield desk
    finally:
        page.close(verbose=False)


class Visitor:
    """Somebody at the desk."""

    def __init__(self, page, desk):
        self.page, self.desk, self.requests, self.errors = page, desk, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        with page.expect_request("**/heartbeat/*"):  # sent once the page is ready to be used
            page.goto(desk.address)
        self.canvas("mask").wait_for()

    def canvas(self, name):
        return self.page.locator(f"#desk-{name}-painter canvas")

    def click(self, name, what):
        self.page.locator(f"#desk-{name}-painter {what}").click()

    def colour(self, name, title):
        self.page.locator(f"#desk-{name}-painter .colours").get_by_text(title, exact=True).click()

    def slide(self, name, slider, value):
        self.page.locator(f"#desk-{name}-painter .{slider} input").fill(str(value))

    def place(self, name, x, y):
        """A point in cells -> where it is in the window, having scrolled there."""
        self.canvas(name).scroll_into_view_if_needed()
        box = self.canvas(name).bounding_box()
        return box["x"] + x / SIZE * box["width"], box["y"] + y / SIZE * box["height"]

    def drag(self, name, *corners):
        """The mouse along straight lines between points in cells."""
        self.page.mouse.move(*self.place(name, *corners[0]))
        self.page.mouse.down()
        for corner in corners[1:]:
            self.page.mouse.move(*self.place(name, *corner), steps=7)
        self.page.mouse.up()

    def finger(self, name, *corners):
        """A finger along straight lines between points in cells."""
        client = self.page.context.new_cdp_session(self.page)
        points = [np.array(self.place(name, *corner)) for corner in corners]
        path = [
            a + (b - a) * k / 7 for a, b in zip(points[:-1], points[1:], strict=True) for k in range(1, 8)
        ]
        for kind, point in [("touchStart", points[0]), *(("touchMove", p) for p in path), ("touchEnd", None)]:
            touches = [] if point is None else [{"x": point[0], "y": point[1]}]
            client.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})

    def tap(self, name, x, y):
        self.page.mouse.click(*self.place(name, x, y))

    def seen(self, name):
        """The pixels that the painter shows, as numbers of its colours (SIZE, SIZE)."""
        uri = self.canvas(name).evaluate("canvas => canvas.toDataURL()")
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))).convert("RGBA"))
        assert pixels.shape == (SIZE, SIZE, 4)
        if name == "image":
            assert set(np.unique(pixels[..., 3])) <= {0, 255}
            return (pixels[..., 3] > 0).astype(int)
        return (pixels[..., None, :3] == PALETTE).all(-1).argmax(-1)

    def given(self, name):
        """What the server reads, once it agrees to read."""
        before = self.desk.times
        self.page.click("#give")
        wait_for(lambda: self.desk.times > before)
        return self.desk.given[name]

    def hole(self):
        """The hole that is given, (SIZE, SIZE), which is the one that is seen."""
        hole = ~self.given("image").known_pixels
        assert np.array_equal(hole, self.seen("image"))
        return hole

    def upload(self, name, path):
        self.page.locator(f"#desk-{name}-file input[type=file]").set_input_files(path)

    def upload_by_button(self, what, path):
        with self.page.expect_file_chooser() as chooser:
            self.page.locator(f"#desk-{what}-file").click()
        chooser.value.set_files(path)

    def note(self, which, text):
        note = self.page.locator(f"#desk-{which}", has_text=text)
        note.wait_for(timeout=5_000)
        return note

    def no_note(self, which):
        self.page.locator(f"#desk-{which}").wait_for(state="hidden", timeout=5_000)

    def with_photo(self, path):
        self.upload("image", path)
        self.canvas("image").wait_for()
        return self


@contextmanager
def visiting(browser, desk, **options):
    page = browser.new_page(**options)
    visitor = Visitor(page, desk)
    yield visitor
    away = [url for url in visitor.requests if not url.startswith((desk.address, "data:", "blob:"))]
    assert not away, f"left the machine: {away}"
    assert not visitor.errors
    page.close()


@pytest.fixture
def visitor(browser, desk):
    with visiting(browser, desk, **DESKTOP) as visitor:
        yield visitor


@pytest.fixture
def save(tmp_path):
    def save(picture, name="picture.png", **options):
        if isinstance(picture, np.ndarray):
            picture = Image.fromarray(picture)
        picture.save(tmp_path / name, **options)
        return tmp_path / name

    return save


@pytest.fixture
def photo_file(save):
    return save(photo((SIZE, SIZE)), "photo.png")


def wait_for(holds, seconds=5):
    deadline = time.time() + seconds
    while not holds():
        assert time.time() < deadline
        time.sleep(0.05)


def distance_to_path(*corners):
    """From the centre of every cell to the polyline through these points, (SIZE, SIZE)."""
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    path = np.concatenate([np.linspace(a, b, 500) for a, b in zip(corners[:-1], corners[1:], strict=True)])
    return np.hypot(columns[..., None] - path[:, 0], rows[..., None] - path[:, 1]).min(2)


@pytest.mark.parametrize("screen", [DESKTOP, ZOOMED, PHONE], ids=["desktop", "zoomed", "phone"])
@pytest.mark.parametrize("diameter", [1, 8, 21])
def test_a_stroke_covers_the_path_of_the_brush(browser, desk, photo_file, screen, diameter):
    corners = [(12.3, 14.6), (50.2, 20.9), (30.5, 52.4)]
    with visiting(browser, desk, **screen) as visitor:
        visitor.with_photo(photo_file).slide("image", "width", diameter)
        (visitor.finger if screen is PHONE else visitor.drag)("image", *corners)
        hole, distance = visitor.hole(), distance_to_path(*corners)
        cell = visitor.canvas("image").bounding_box()["width"] / SIZE  # in pixels of the page
        off = 1 / cell  # a pointer's place is known to a pixel of the page, and may be rounded
        assert off < 1
        assert hole[distance <= diameter / 2 - off].all()
        assert not hole[distance > max(diameter / 2, 0.71) + off].any()
        assert ndimage.label(hole, np.ones((3, 3)))[1] == 1  # no gaps


def test_cells_do_not_depend_on_opacity_or_size(browser, desk, photo_file, visitor):
    visitor.with_photo(photo_file).drag("image", (10, 10), (50, 40))
    before = visitor.hole()
    visitor.slide("image", "opacity", 30)
    assert visitor.canvas("image").evaluate("canvas => getComputedStyle(canvas).opacity") == "0.3"
    visitor.page.set_viewport_size({"width": 390, "height": 844})
    assert np.array_equal(visitor.hole(), before)


def test_erasing_a_rectangle_out_of_a_rectangle(visitor, photo_file):
    visitor.with_photo(photo_file).click("image", "[data-tool=rectangle]")
    visitor.drag("image", (40.5, 50.5), (10.5, 8.5))  # from the lower right, as good as any
    visitor.colour("image", "Erase")
    visitor.drag("image", (20.5, 20.5), (29.5, 23.5))
    expected = np.zeros((SIZE, SIZE), dtype=bool)
    expected[8:51, 10:41] = True
    expected[20:24, 20:30] = False
    assert np.array_equal(visitor.hole(), expected)


def test_ready_made_holes(visitor, photo_file):
    visitor.with_photo(photo_file)
    box = np.zeros((SIZE, SIZE), dtype=bool)
    box[SIZE // 4 : -SIZE // 4, SIZE // 4 : -SIZE // 4] = True
    left = np.arange(SIZE)[None].repeat(SIZE, 0) < SIZE // 2
    for name, expected in {"box": box, "left": left, "around": ~box}.items():
        visitor.click("image", f"[data-preset={name}]")
        assert np.array_equal(visitor.hole(), expected)


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_random_blocks_are_that_many_and_others_each_time(visitor, photo_file, percent):
    visitor.with_photo(photo_file).slide("image", "share", percent)
    side, drawn = SIZE // BLOCKS_A_SIDE, []
    for _ in range(2):
        visitor.click("image", "[data-preset=blocks]")
        hole = visitor.hole()
        blocks = hole[::side, ::side]
        assert np.array_equal(np.kron(blocks, np.ones((side, side), dtype=bool)), hole)
        assert blocks.sum() == round(BLOCKS_A_SIDE**2 * percent / 100)
        drawn.append(blocks)
    assert not np.array_equal(*drawn)


def test_inverting_twice_changes_nothing(visitor, photo_file):
    visitor.with_photo(photo_file).drag("image", (10, 10), (50, 40))
    before = visitor.hole()
    visitor.click("image", "[data-preset=invert]")
    assert np.array_equal(visitor.hole(), ~before)
    visitor.click("image", "[data-preset=invert]")
    assert np.array_equal(visitor.hole(), before)


def test_a_fill_colours_the_connected_area(visitor):
    visitor.slide("mask", "width", 3)
    visitor.drag("mask", (-1, 20), (30, 45), (65, 20))  # parts the sheet in two
    visitor.colour("mask", "road")
    visitor.drag("mask", (20, 50), (40, 50), (40, 60), (20, 60), (20, 50))  # a ring in the lower part
    visitor.click("mask", "[data-tool=fill]")
    visitor.colour("mask", "tree")
    for x, y in [(32, 10), (30, 55), (2, 60), (20, 50)]:  # above, in the ring, around it, the ring itself
        before = visitor.seen("mask")
        areas, _ = ndimage.label(before == before[y, x])
        visitor.tap("mask", x + 0.5, y + 0.5)
        mask = visitor.given("mask").value
        assert np.array_equal(mask, np.where(areas == areas[y, x], 3, before))
        assert np.array_equal(mask, visitor.seen("mask"))
    assert (mask == 3).mean() > 0.9
    visitor.tap("mask", 32, 10)  # already that colour
    assert np.array_equal(visitor.seen("mask"), mask)


def test_undo_and_redo_by_button_and_by_key(visitor):
    page, states = visitor.page, [visitor.seen("mask")]
    undo, redo = (page.locator(f"#desk-mask-painter [data-action={name}]") for name in ("undo", "redo"))
    assert undo.is_disabled() and redo.is_disabled()
    for y in (10, 30, 50):
        visitor.drag("mask", (10, y), (50, y))
        states.append(visitor.seen("mask"))
    assert len({state.tobytes() for state in states}) == 4

    def shows(k):
        return np.array_equal(visitor.seen("mask"), states[k])

    undo.click()
    assert shows(2) and np.array_equal(visitor.given("mask").value, states[2])
    visitor.canvas("mask").hover()
    page.keyboard.press("Control+z")
    assert shows(1)
    page.keyboard.press("Meta+z")
    assert shows(0) and undo.is_disabled()
    assert "Paint more than void" in visitor.given("mask")
    visitor.canvas("mask").hover()
    page.keyboard.press("Control+Shift+z")
    assert shows(1)
    redo.click()
    assert shows(2)
    page.mouse.move(2, 2)
    page.keyboard.press("Control+z")  # the painter still has the focus
    assert shows(1)
    visitor.drag("mask", (32, 5), (32, 60))
    assert redo.is_disabled()
    visitor.click("mask", "[data-action=clear]")
    assert shows(0)
    undo.click()
    undo.click()
    assert shows(1)


def test_keys_set_the_brush_only_at_the_painter(visitor):
    page, size = visitor.page, visitor.page.locator("#desk-mask-painter .width input")
    visitor.canvas("mask").hover()
    page.keyboard.press("]")
    page.keyboard.press("]")
    page.keyboard.press("[")
    assert size.input_value() == "9"
    ring = page.locator("#desk-mask-painter .ring").bounding_box()
    cell = visitor.canvas("mask").bounding_box()["width"] / SIZE
    assert ring["width"] == pytest.approx(9 * cell, abs=1)
    page.mouse.move(2, 2)
    page.keyboard.press("]")
    visitor.canvas("mask").hover()
    text = page.locator("#desk-embedding-text textarea, #desk-embedding-text input")
    text.focus()
    page.keyboard.type("a [red] apple")
    assert size.input_value() == "9" and text.input_value() == "a [red] apple"


def half_white(width, height):
    values = np.zeros((height, width), dtype=np.uint8)
    values[: height // 2] = 255
    return values


def test_an_uploaded_hole_is_checked_and_explained(visitor, save):
    visitor.with_photo(save(photo((160, 120)), "wide.png"))
    visitor.note("image-note", "160 × 120 pixels; its central 120 × 120 are used")
    upper = np.arange(SIZE)[:, None].repeat(SIZE, 1) < SIZE // 2

    visitor.upload_by_button("image-hole", save(half_white(320, 240), "hole.png"))
    visitor.note("image-hole-note", "covers 50% of the photo")
    assert np.array_equal(visitor.hole(), upper)

    visitor.upload_by_button("image-hole", save(half_white(200, 90), "hole.png"))
    problem = visitor.note("image-hole-note", "200 × 90 pixels and the photo 160 × 120: their shapes differ")
    assert problem.get_by_role("alert").count() == 1
    assert np.array_equal(visitor.hole(), upper)  # as before
    visitor.upload_by_button("image-hole", save(np.full((90, 90), 255, np.uint8), "hole.png"))
    visitor.note("image-hole-note", "white everywhere")  # the same name again is read again

    grey = half_white(SIZE, SIZE) // 2 + 20
    visitor.upload_by_button("image-hole", save(grey, "hole.png"))
    visitor.note("image-hole-note", "neither black nor white")
    assert np.array_equal(visitor.hole(), upper)

    mostly = np.full((SIZE, SIZE), 255, np.uint8)
    mostly[30:34] = 0
    visitor.upload_by_button("image-hole", save(mostly, "hole.png"))
    visitor.note("image-hole-note", "94% of the photo")
    visitor.note("image-hole-note", "press “Invert”")
    visitor.click("image", "[data-preset=invert]")
    assert np.array_equal(visitor.hole(), mostly == 0)
    visitor.no_note("image-hole-note")  # it was about the hole as it came
    visitor.click("image", "[data-action=undo]")
    visitor.click("image", "[data-action=undo]")
    assert np.array_equal(visitor.hole(), upper)  # an upload can be undone


def test_the_hole_is_kept_for_the_next_photo_unless_unticked(visitor, photo_file, save):
    visitor.with_photo(photo_file).drag("image", (10, 10), (50, 40))
    before, other = visitor.hole(), photo((SIZE, SIZE), seed=9)
    visitor.page.click("#desk-image-other")
    assert "Nothing is provided" in visitor.given("image")
    visitor.with_photo(save(other, "other.png"))
    assert np.array_equal(visitor.hole(), before)
    assert np.array_equal(visitor.desk.given["image"].value, other)
    visitor.page.locator("#desk-image-keep-hole input").uncheck()
    visitor.page.click("#desk-image-other")
    visitor.canvas("image").wait_for(state="hidden")
    visitor.with_photo(photo_file)
    assert visitor.given("image").known_pixels is None
    assert not visitor.seen("image").any()


def test_a_file_that_is_no_photo_is_explained_and_the_next_one_accepted(visitor, photo_file, tmp_path):
    (tmp_path / "diary.png").write_bytes(b"dear diary")
    visitor.upload("image", tmp_path / "diary.png")
    visitor.note("image-note", "“diary.png” cannot be read as a picture")
    visitor.page.locator("#desk-image-file input[type=file]").wait_for(state="attached")
    visitor.with_photo(photo_file)
    visitor.no_note("image-note")
    assert np.array_equal(visitor.given("image").value, photo((SIZE, SIZE)))


def test_an_uploaded_mask_is_explained(visitor, save):
    mask = np.repeat(np.repeat([[0, 1], [3, 2]], SIZE // 2, 0), SIZE // 2, 1)
    visitor.upload_by_button("mask", save(PALETTE[mask].repeat(2, 0).repeat(2, 1), "mask.png"))
    visitor.note("mask-note", "scaled from 128 × 128 to 64 × 64 pixels")
    assert np.array_equal(visitor.given("mask").value, mask)
    visitor.upload_by_button("mask", save(np.full((SIZE, SIZE), 9, np.uint8), "mask.png"))
    visitor.note("mask-note", "number 9, but the classes are 0 = void")
    assert np.array_equal(visitor.given("mask").value, mask)
    visitor.drag("mask", (10, 10), (20, 20))
    visitor.no_note("mask-note")


def same(a, b):
    if isinstance(a, str):
        return a == b
    return np.array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.parametrize("embedding", ["a dark red apple", photo((50, 30))], ids=["text", "photo"])
def test_given_values_can_be_restored(visitor, embedding):
    rng = np.random.default_rng(1)
    kept = {
        "image": Read(photo((SIZE, SIZE)), rng.random((SIZE, SIZE)) < 0.5),
        "mask": Read(rng.integers(0, 4, (SIZE, SIZE))),
        "label": Read("Cherry Wax"),
        "embedding": Read(embedding),
    }
    visitor.desk.kept = kept
    visitor.page.click("#restore")
    visitor.canvas("image").wait_for()
    wait_for(lambda: isinstance(visitor.given("embedding"), Read))
    for name, given in kept.items():
        read = visitor.desk.given[name]
        assert same(read.value, given.value), name
        assert same(read.known_pixels, given.known_pixels), name
    assert np.array_equal(visitor.seen("image") == 0, kept["image"].known_pixels)

    visitor.desk.kept = kept | {"image": Read(kept["image"].value), "embedding": Read("a pear")}
    visitor.page.click("#restore")
    wait_for(lambda: same(visitor.given("embedding").value, "a pear"))  # instead of the photo
    assert visitor.desk.given["image"].known_pixels is None


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways_and_has_room_for_fingers(browser, desk, photo_file, scheme):
    with visiting(browser, desk, **PHONE, color_scheme=scheme) as visitor:
        visitor.with_photo(photo_file)
        page = visitor.page
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        wide = page.locator(".painter").evaluate_all("all => all.map(e => e.scrollWidth - e.clientWidth)")
        assert wide == [0, 0]
        for button in page.locator(".painter button").all():
            box = button.bounding_box()
            assert box["height"] >= 36 and box["x"] >= 0 and box["x"] + box["width"] <= 390
