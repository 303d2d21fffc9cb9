"""The player in a real Chromium, on a page of its own: follow, scrub, compare, choose, save."""

import base64
import io
import re
import time

import gradio as gr
import numpy as np
import pytest
from chromium import MARKS
from fakes import photo
from PIL import Image
from records import PALETTE, describe, make_record

from app import theme
from app.export import settings_file
from app.run.history import Track
from app.run.player_data import Player

pytestmark = MARKS
HOTTEST, COLDEST = (252, 253, 191), (0, 0, 4)  # the ends of magma


class Table:
    """The page's server: a button brings whatever lies on it, another a whole stream of values at once."""

    def __init__(self):
        self.value, self.stream, self.brought = "", [], 0
        with gr.Blocks() as self.demo:
            with gr.Column(elem_classes="run-panel"):
                self.player = Player("player")
            count = gr.HTML("0", elem_id="count")
            bring, flood = gr.Button("Bring", elem_id="bring"), gr.Button("Flood", elem_id="flood")
            bring.click(self._bring, None, [self.player.component, count], show_progress="hidden")
            flood.click(self._flood, None, self.player.component, show_progress="hidden")

    def _bring(self):
        self.brought += 1
        return self.value, str(self.brought)

    def _flood(self):
        yield from self.stream


@pytest.fixture(scope="module")
def table():
    table = Table()
    yield table
    table.demo.close(verbose=False)


@pytest.fixture(scope="module")
def address(table):
    options = {"theme": theme.theme(), "css_paths": theme.STYLES, "ssr_mode": False, "quiet": True}
    return table.demo.launch(server_name="127.0.0.1", prevent_thread_lock=True, **options)[1]


class Viewer:
    """Somebody who looks at the player."""

    def __init__(self, page, table, address):
        self.page, self.table, self.requests, self.errors = page, table, [], []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda m: self.errors.append(m.text) if m.type == "error" else None)
        page.goto(address)
        self.root = page.locator(".player")
        self.scrubber = page.locator(".scrubber")
        page.locator(".scrubber[disabled]").wait_for(state="attached")  # the script has run

    def bring(self, *tracks):
        """Has the server send these tracks and waits until they are drawn."""
        self.table.value = self.table.player.value(tracks) if tracks else ""
        number = self.table.brought + 1
        self.page.click("#bring")
        self.page.locator("#count", has_text=re.compile(rf"^\s*{number}\s*$")).wait_for()
        self.wait(total=str(tracks[0].record.request.steps) if tracks else "0")

    def wait(self, timeout=10, **wanted):
        """Until the root's data attributes are these."""
        deadline = time.time() + timeout
        while not wanted.items() <= (seen := self.seen()).items():
            assert time.time() < deadline, f"{seen}, not {wanted}"
            time.sleep(0.03)

    def seen(self):
        return self.root.evaluate("node => ({...node.dataset})")

    def step(self):
        return int(self.seen()["step"])

    def scrub(self, step):
        self.scrubber.fill(str(step))

    def find(self, selector, track=0):
        return self.page.locator(f'[data-track="{track}"] {selector}')

    def picture(self, modality="image", track=0):
        """What the panel shows, as the server sent it."""
        return decode(self.find(f'[data-modality="{modality}"] .frame img', track).last.get_attribute("src"))

    def pixels(self, locator):
        """What is seen on the screen, (H, W, 3)."""
        locator.scroll_into_view_if_needed()
        self.page.wait_for_timeout(150)
        shot = Image.open(io.BytesIO(locator.screenshot(animations="disabled"))).convert("RGB")
        return np.asarray(shot, dtype=int)


@pytest.fixture
def look(browser, table, address):
    viewers = []

    def look(width=1200, height=1000, **options):
        page = browser.new_page(viewport={"width": width, "height": height}, **options)
        viewers.append(Viewer(page, table, address))
        return viewers[-1]

    yield look
    for viewer in viewers:
        away = [url for url in viewer.requests if not url.startswith((address, "data:", "blob:"))]
        assert not away, f"left the machine: {away}"
        assert not viewer.errors
        viewer.page.close()


def track(record, id="a", title="", **options):
    return Track(id, title, record, **options)


def partial(record, done):
    """The same run, at an earlier time."""
    now = make_record(names=tuple(record.modalities), steps=record.request.steps)
    now.request, now.frames, now.modalities = record.request, record.frames[:done], record.modalities
    return now


def decode(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))


def near(picture, array):
    return np.abs(np.asarray(picture.convert("RGB"), dtype=float) - array).mean() < 3


def test_nothing_then_a_run_then_nothing(look):
    viewer = look()
    assert viewer.seen()["state"] == "empty"
    assert viewer.page.locator(".nothing").is_visible() and not viewer.scrubber.is_visible()
    viewer.bring(track(make_record(done=3)))
    viewer.wait(state="stopped", step="3", total="10", sample="0")
    viewer.bring(track(make_record(), id="b"))
    viewer.wait(state="done", step="10")
    viewer.bring()
    viewer.wait(state="empty", step="0")


def test_it_follows_a_run_until_the_scrubber_is_moved(look):
    viewer, record = look(), make_record()
    for done in (1, 2, 5):
        viewer.bring(track(partial(record, done), running=True, since=max(0, done - 4)))
        viewer.wait(state="running", step=str(done))
        assert near(viewer.picture(), record.frames[done - 1].x["image"][0])
    viewer.scrub(2)
    viewer.bring(track(partial(record, 7), running=True, since=4))
    viewer.find(".timeline img:not([hidden])").nth(6).wait_for(state="attached")
    assert viewer.step() == 2  # stays where it was put
    viewer.scrub(9)
    assert viewer.step() == 7  # there is no more yet, so it follows again
    viewer.bring(track(partial(record, 8), running=True, since=5))
    viewer.wait(step="8")
    viewer.bring(track(record))
    viewer.wait(state="done", step="10")
    assert np.array_equal(viewer.picture(), record.last.x["image"][0])
    viewer.scrub(3)
    viewer.bring(track(make_record(seed=1), id="next"))
    viewer.wait(step="10")  # of another run the newest


def test_everything_follows_the_scrubber_without_the_server(look):
    viewer, record = look(), make_record()
    viewer.bring(track(record))
    viewer.requests.clear()
    for step in (4, 9):
        frame = record.frames[step - 1]
        viewer.scrub(step)
        assert viewer.step() == step and f"Step {step} of 10" in viewer.page.locator(".bar").inner_text()
        assert near(viewer.picture(), frame.x["image"][0])
        overlay = np.asarray(viewer.picture("mask").convert("RGBA"))
        assert np.array_equal(overlay[..., 3] > 127, frame.classes["mask"][0] > 0)
        shares = viewer.find('[data-modality="label"] .value').all_inner_texts()
        assert shares[0] == f"{frame.x['label'][0].max():.0%}"
        cosine = viewer.find('[data-words="captions"] .value').first.inner_text()
        assert cosine == f"{describe(frame.x['embedding'])[0].captions[0][1]:.2f}"
        area = (frame.classes["mask"][0] == 1).mean()
        keys = viewer.find(".curves .keys").all_inner_texts()
        assert any(re.search(rf"fruit\s*{area:.0%}", text) for text in keys)
    assert not [url for url in viewer.requests if not url.startswith(("data:", "blob:"))]


def test_a_move_takes_less_than_a_millisecond(look):
    viewer = look()
    viewer.bring(track(make_record(size=96, steps=30)), track(make_record(size=96, steps=30, seed=1), "b"))
    milliseconds = viewer.page.evaluate("""() => {
      const scrubber = document.querySelector('.scrubber');
      const rounds = Array.from({ length: 20 }, () => {
        const started = performance.now();
        for (let step = 1; step <= 30; step++) {
          scrubber.value = step;
          scrubber.dispatchEvent(new Event('input'));
        }
        return (performance.now() - started) / 30;
      });
      return Math.min(...rounds);
    }""")
    assert milliseconds < 1


def test_keys_play_and_the_timeline(look):
    viewer, record = look(), make_record(steps=40)
    viewer.bring(track(record))
    columns = viewer.find(".timeline .hit")
    numbers = [int(text) for text in viewer.find(".timeline .number").all_inner_texts()]
    assert numbers[0] == 1 and numbers[-1] == 40 and len(numbers) == columns.count() >= 10
    assert numbers == sorted(set(numbers))
    columns.nth(3).click()
    assert viewer.step() == numbers[3]
    thumbnail = viewer.find(".timeline img").nth(3).get_attribute("src")
    assert near(decode(thumbnail), record.frames[numbers[3] - 1].x["image"][0])
    viewer.page.keyboard.press("ArrowRight")
    assert viewer.step() == numbers[3] + 1
    viewer.scrubber.focus()
    viewer.page.keyboard.press("ArrowLeft")
    viewer.page.keyboard.press("ArrowLeft")
    assert viewer.step() == numbers[3] - 1
    viewer.scrub(36)
    play = viewer.page.locator(".play")
    play.click()
    assert play.get_attribute("aria-label") == "Pause"
    viewer.wait(step="40")
    viewer.page.get_by_role("button", name="Play").wait_for()
    play.click()  # from the start
    assert viewer.step() < 20
    play.click()
    assert play.get_attribute("aria-label") == "Play"
    rows = viewer.find(".timeline .grid > .name").all_inner_texts()
    assert rows == ["Step", "Image", "Mask", "Label", "Embedding"]


def test_two_tracks_stay_in_step_by_time(look):
    viewer, short, long = look(1400), make_record(), make_record(steps=50, seed=1)
    viewer.bring(track(short, "a", "Ten steps"), track(long, "b", "Fifty steps", fork_step=20))
    assert viewer.find("header").inner_text().split("\n") == ["Ten steps", "Step 10 of 10"]
    left, right = (viewer.page.locator(f'[data-track="{k}"]').bounding_box() for k in (0, 1))
    assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
    times = np.array([frame.t for frame in short.frames])
    for step in (1, 13, 26, 44, 50):
        viewer.scrub(step)
        nearest = int(np.abs(times - long.frames[step - 1].t).argmin()) + 1
        assert viewer.step() == nearest
        assert f"Step {step} of 50" in viewer.find("header", 1).inner_text()
        assert near(viewer.picture(track=1), long.frames[step - 1].x["image"][0])
    for where in (".timeline", ".curves svg"):
        assert viewer.find(f"{where} .fork", 1).count() >= 1 and not viewer.find(f"{where} .fork").count()
    viewer.bring(track(long, "b"))  # what is not named goes
    assert viewer.page.locator("[data-track]").count() == 1 and not viewer.find("header").is_visible()


def test_before_and_after(look):
    viewer = look()
    known = np.ones((32, 32), dtype=bool)
    known[8:24, 8:24] = False
    record = make_record(names=("image", "mask"), given={"image": photo((32, 32))}, known_pixels=known)
    viewer.bring(track(record))
    assert "repainted" in viewer.find('[data-modality="image"]').inner_text()
    frame, compare = viewer.find(".before-after"), viewer.find(".compare")
    assert np.array_equal(viewer.picture(), record.last.x["image"][0])
    box = frame.bounding_box()
    viewer.page.mouse.move(box["x"] + 3, box["y"] + box["height"] / 2)
    viewer.page.mouse.down()
    viewer.page.mouse.move(box["x"] + box["width"] * 0.5, box["y"] + box["height"] / 2, steps=5)
    viewer.page.mouse.up()
    dragged = int(compare.input_value())
    assert 40 <= dragged <= 60
    viewer.page.keyboard.press("ArrowRight")
    assert int(compare.input_value()) == dragged + 1 and viewer.step() == 10
    viewer.page.keyboard.press("ArrowLeft")
    shot = viewer.pixels(frame)
    height, width = shot.shape[:2]
    middle = slice(int(0.3 * height), int(0.4 * height))
    hole, filled = (
        shot[middle, int(0.3 * width) : int(0.4 * width)],
        shot[middle, int(0.6 * width) : int(0.7 * width)],
    )
    tint = hole.reshape(-1, 3).mean(0)
    assert tint[0] > tint[1] > tint[2]  # the tint over noise
    assert (
        np.abs(
            filled.reshape(-1, 3).mean(0) - record.last.x["image"][0, 8:13, 19:23].reshape(-1, 3).mean(0)
        ).max()
        < 25
    )


def test_the_opacity_of_the_mask(look):
    viewer, record = look(), make_record()
    viewer.bring(track(record))
    frame = viewer.find('[data-modality="mask"] .frame')
    picture, fruit = record.last.x["image"][0, 16, 16].astype(int), PALETTE[1].astype(int)
    for percent in (0, 30, 100):
        viewer.find(".opacity").fill(str(percent))
        shot = viewer.pixels(frame)
        seen = shot[shot.shape[0] // 2, shot.shape[1] // 2]
        assert np.abs(seen - (picture + (fruit - picture) * percent / 100)).max() < 12
    legend = viewer.find(".legend").inner_text().split()
    assert legend == ["background", "fruit", "leaf"]


def test_how_sure_a_reading_was_stands_beside_the_label_it_came_to(look):
    """A run settles on one label; what the photo alone said is its first step."""
    viewer = look()
    record = make_record(
        given={"image": photo((32, 32))}, wanted=("label",), names=("image", "label"), steps=4
    )
    for frame, shares in zip(
        record.frames, ((0.9, 0.08, 0.02, 0.0), *3 * [(0.0, 0.996, 0.004, 0.0)]), strict=True
    ):
        frame.x["label"][0] = np.pad(shares, (0, frame.x["label"].shape[1] - 4))
    viewer.bring(track(record))
    names = record.modalities["label"].classes
    rows, first = (
        viewer.find('[data-modality="label"] li:visible'),
        viewer.find('[data-modality="label"] .first'),
    )
    assert [row.strip().split("\n")[0] for row in rows.all_inner_texts()] == [names[1]]
    said = f"{names[0]} 90%, {names[1]} 8%, {names[2]} 2%"
    assert first.inner_text() == f"First guess from your input: {said}"
    assert sorted(viewer.find(".curves .keys .name").all_inner_texts()) == sorted(names[:3])
    viewer.scrub(1)
    assert rows.count() == 3 and not first.is_visible()
    viewer.bring(track(make_record(steps=4)))  # nothing is given
    assert not first.is_visible()


def test_several_samples(look):
    viewer, record = look(), make_record(num_samples=4)
    viewer.bring(track(record))
    cards = viewer.find(".sample-card")
    assert cards.count() == 4
    for k in (2, 3):
        cards.nth(k).click()
        assert viewer.seen()["sample"] == str(k)
        assert [card.get_attribute("aria-pressed") for card in cards.all()].index("true") == k
        assert np.array_equal(viewer.picture(), record.last.x["image"][k])
        top = viewer.find('[data-modality="label"] .name').first.inner_text()
        assert top == record.modalities["label"].classes[2 + k]
    viewer.scrub(4)
    assert viewer.seen()["sample"] == "3" and near(viewer.picture(), record.frames[3].x["image"][3])
    card = cards.nth(1).locator("img").get_attribute("src")
    assert near(decode(card), record.frames[3].x["image"][1])


def test_given_modalities_have_no_map_of_differences(look):
    viewer = look()
    mask = np.zeros((32, 32), dtype=np.uint8)
    viewer.bring(
        track(make_record(given={"mask": mask}, wanted=("image",), num_samples=2, names=("image", "mask")))
    )
    assert viewer.find(".uncertainty .about b").all_inner_texts() == ["Image"]


def test_where_samples_differ_in_the_colours_of_magma(look):
    viewer, record = look(), make_record(num_samples=2, names=("image", "mask"), steps=2)
    for frame, bright in zip(record.frames, (128, 255), strict=True):
        frame.x["image"][:] = 0
        frame.x["image"][1, :16] = bright
    viewer.bring(track(record))
    heat = viewer.find(".uncertainty .frame").first
    assert re.search(r"0, all alike\s+1\.00", viewer.find(".uncertainty figure").first.inner_text())
    shot = viewer.pixels(heat)
    quarter, x = shot.shape[0] // 4, shot.shape[1] // 2
    assert np.abs(shot[quarter, x] - HOTTEST).max() < 16
    assert np.abs(shot[3 * quarter, x] - COLDEST).max() < 12
    viewer.scrub(1)
    assert "mean 0.25, most 0.50" in viewer.find(".uncertainty .now").first.inner_text()
    half = viewer.pixels(heat)[quarter, x]
    assert half[0] > half[2] > half[1] and 150 < half[0] < 210  # the middle of the same scale


def test_curves(look):
    viewer, record = look(), make_record()
    viewer.bring(track(record))
    label = viewer.find(".curves svg").last
    assert "probability" in label.get_attribute("aria-label")
    lines = [
        np.array([point.split(",") for point in line.get_attribute("points").split()], dtype=float)
        for line in label.locator(".curve").all()
    ]
    assert len(lines) == 2 and all(len(line) == 10 for line in lines)
    rules = [float(rule.get_attribute("y1")) for rule in label.locator(".rule").all()]
    texts = label.locator("text").all_text_contents()
    assert texts[:3] == ["0%", "50%", "100%"] and {"1", "Step", "10"} <= set(texts)
    drawn = sorted(tuple((rules[0] - line[:, 1]) / (rules[0] - rules[2])) for line in lines)
    probabilities = np.stack([frame.x["label"][0] for frame in record.frames])
    likeliest = probabilities.max(0) > 0  # the others are left out
    assert np.allclose(drawn, sorted(map(tuple, probabilities.T[likeliest])), atol=2e-3)
    for step in (1, 7):
        viewer.scrub(step)
        assert float(label.locator(".cursor").get_attribute("x1")) == pytest.approx(
            lines[0][step - 1, 0], abs=0.06
        )


def test_saved_pictures(look):
    viewer, record = look(), make_record(seed=5)
    viewer.bring(track(record))
    link = viewer.find('[data-modality="image"] .save').first
    assert link.get_attribute("download") == "mmdiff_orchard_5_image_1.png"
    with viewer.page.expect_download() as download:
        link.click()
    assert np.array_equal(Image.open(download.value.path()), record.last.x["image"][0])
    assert settings_file.read(download.value.path(), record.modalities).request == record.request
    viewer.scrub(4)
    mask = viewer.find('[data-modality="mask"] .save').first
    assert mask.get_attribute("download") == "mmdiff_orchard_5_mask_1_step4.png"
    saved = decode(mask.get_attribute("href"))
    assert saved.mode == "P" and np.array_equal(saved, record.frames[3].classes["mask"][0])
    assert link.get_attribute("download").endswith("_step4.webp") and link.inner_text() == "Save WebP"


def test_messages_that_come_all_at_once(look, table):
    viewer, record = look(), make_record(steps=30)
    live = [track(partial(record, k), running=True, since=max(0, k - 4)) for k in range(1, 30)]
    table.stream = [table.player.value([one]) for one in [*live, track(record)]]
    viewer.page.click("#flood")
    viewer.wait(state="done", step="30", timeout=30)
    for step in range(1, 31):
        viewer.scrub(step)
        assert viewer.step() == step


def test_names_are_shown_as_they_are(look):
    viewer = look()
    nasty = '<img src=x onerror="document.title=`hacked`">'
    record = make_record(labels=("a", "b", nasty), classes=(nasty, "fruit", f"{nasty} again"))
    viewer.bring(track(record, title=nasty), track(record, "b", nasty))
    assert viewer.find(".title").inner_text() == nasty
    assert nasty in viewer.find(".legend").inner_text()
    assert nasty in viewer.find('[data-modality="label"]').inner_text()
    assert "<b>round</b>" in viewer.find('[data-words="probes"]').inner_text()
    assert viewer.page.title() != "hacked" and not viewer.page.locator('img[src="x"]').count()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_never_scrolls_sideways(look, scheme):
    viewer = look(390, 844, color_scheme=scheme, has_touch=True)
    long = "A title that is a good deal longer than the line it stands on"
    record = make_record(num_samples=8, steps=40, labels=[f"{long} {k}" for k in range(9)])
    viewer.bring(track(record, "a", long), track(partial(record, 7), "b", long, running=True))
    assert viewer.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    upper, lower = (viewer.page.locator(f'[data-track="{k}"]').bounding_box() for k in (0, 1))
    assert upper["y"] + upper["height"] <= lower["y"]
    viewer.find(".sample-card").nth(5).tap()
    assert viewer.seen()["sample"] == "5"
    unnamed = "node => !(node.ariaLabel || node.title || node.innerText.trim())"
    controls = viewer.page.locator(".player :is(button, input, a)")
    assert controls.count() > 20
    assert not [c for c in controls.all() if c.evaluate(unnamed)]


@pytest.mark.parametrize("width", [1200, 380])
def test_a_head_that_speaks_of_what_it_never_saw_says_so(look, width):
    viewer, record = look(width), make_record()
    final = record.modalities["label"].classes[2]
    record.taught = {"mask": {"by": "street photos", "labels": [final]}}
    viewer.bring(track(record))
    beyond = viewer.find('[data-modality="mask"] .beyond')
    viewer.wait(step="10")
    assert not beyond.is_visible()  # the label is one that had masks
    viewer.scrub(1)
    first = record.modalities["label"].classes[0]
    assert beyond.inner_text() == (
        f"The mask was learned from street photos alone; this looks like “{first}”, so take it with caution."
    )
    alone = make_record(names=("image", "mask"))
    alone.taught = record.taught
    viewer.bring(track(alone, id="b"))
    viewer.wait(step="10")
    assert "take it with caution elsewhere" in beyond.inner_text()
