"""What is decided first, on the page of a model with levels: chosen, watched, carried along; in Chromium."""

import re

import pytest
from chromium import MARKS
from fakes import FakePipeline, served
from test_app_browser import EVERYTHING, contexts, near, visit  # noqa: F401

from app.run.service import Service

pytestmark = MARKS
LEADS = {"label": 0.5, "embedding": 0.5, "mask": 0.2}


@pytest.fixture(scope="module")
def pipe():
    return FakePipeline(modalities=EVERYTHING, leads=LEADS)


@pytest.fixture(scope="module")
def address(pipe):
    with served(Service(pipe, "leading")) as address:
        yield address


def tracks(visitor):
    """Modality -> what its track says of all steps."""
    rows = visitor.player(".levels .row")
    return dict(rows.evaluate_all("rows => rows.map((r) => [r.dataset.level, r.firstChild.ariaLabel])"))


def half_from(said):
    """The step from which on a modality is more than half decided."""
    return int(re.search(r"more than half from step (\d+)", said)[1])


@pytest.mark.parametrize("size", ["desktop", "tablet", "phone"])
def test_the_tracks_below_the_scrubber_show_what_is_decided_when(visit, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    visitor.run()
    visitor.done()
    said = {name: half_from(words) for name, words in tracks(visitor).items()}
    assert said["label"] == said["embedding"] < said["mask"] < said["image"]
    label = visitor.player('.levels .row[data-level="label"] .text span').last
    shares = []
    for step in (1, 20, 30):
        visitor.player(".scrubber").fill(str(step))
        near(lambda step=step: visitor.at("step") == step)
        shares.append(int(label.inner_text().rstrip("%")))
    assert shares[0] < 5 and shares[0] < shares[1] < shares[2] == 100
    scrubber, shaded = (
        visitor.player(".scrubber").bounding_box(),
        visitor.player(".shades").first.bounding_box(),
    )
    assert abs(scrubber["x"] + 9 - shaded["x"]) < 1.5  # where the middle of the thumb is at the first step
    assert abs(scrubber["width"] - 18 - shaded["width"]) < 3
    assert visitor.fits()


def sliders(visitor):
    """Modality -> where its slider stands."""
    return {
        name: float(visitor.find(f"{name}-lead", "input[type=number]").input_value()) for name in EVERYTHING
    }


def test_a_preset_moves_the_sliders_and_a_moved_slider_drops_the_preset(visit, pipe):  # noqa: F811
    visitor = visit("any_to_any")
    visitor.find("leads", "button").first.click()
    chosen = visitor.find("first", "input:checked")
    assert sliders(visitor) == {"image": 0, "mask": 0.2, "label": 0.5, "embedding": 0.5}
    visitor.find("first").get_by_label("Image first").check()
    near(lambda: sliders(visitor) == {"image": 0.5, "mask": 0, "label": 0, "embedding": 0})
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].leads == {"image": 0.5, "mask": 0, "label": 0, "embedding": 0}
    said = {name: half_from(words) for name, words in tracks(visitor).items()}
    assert said["image"] < said["label"] == said["mask"]
    visitor.find("mask-lead", "input[type=range]").focus()
    visitor.page.keyboard.press("ArrowRight")
    near(lambda: chosen.count() == 0)
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].leads == {"image": 0.5, "mask": 0.05, "label": 0, "embedding": 0}
    visitor.find("first").get_by_label("Meaning first").check()
    near(lambda: sliders(visitor)["label"] == 0.5)
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].leads is None


def test_a_link_and_the_history_bring_the_leads_back_and_the_code_names_them(visit, pipe):  # noqa: F811
    visitor = visit("image_label")
    visitor.find("first").get_by_label("All together").check()
    visitor.run()
    visitor.done()
    visitor.find("code", "button").first.click()
    link = visitor.find("link", "textarea").input_value()
    assert '"label": 0' in visitor.find("library-code", ".cm-content").inner_text()
    again = visit("image_label", query=link[link.index("?") :])
    near(lambda: again.find("first").get_by_label("All together").is_checked(), 10)
    again.status("Done")
    assert pipe.calls[-1].leads == pipe.calls[-2].leads == dict.fromkeys(EVERYTHING, 0)
    again.find("first").get_by_label("Image first").check()
    again.find("leads", "button").first.click()
    again.find("label-lead", "input[type=number]").fill("0.333")
    again.find("label-lead", "input[type=number]").press("Tab")
    again.run()
    again.done()
    asked = pipe.calls[-1].leads
    assert asked["image"] == 0.5 and abs(asked["label"] - 0.333) < 0.03
    again.find("first").get_by_label("Meaning first").check()
    again.run()
    again.done()
    assert pipe.calls[-1].leads is None
    again.page.locator("#runs li .open").nth(1).click()
    near(lambda: pipe.calls[-1].leads == asked, 10)
    again.status("Done")
    assert again.find("first", "input:checked").count() == 0  # it is none of the presets
    assert {name: asked[name] for name in EVERYTHING} == sliders(again)


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_page_warns_of_a_sampler_that_does_not_go_with_the_picture_first(visit, size):  # noqa: F811
    visitor = visit("fill_in", size)  # whose sampler is that one
    warning = visitor.find("first-note", ".warning")
    assert not warning.count()
    visitor.find("first").get_by_label("Image first").check()
    warning.wait_for()
    assert "“Ancestral” makes poor results" in warning.inner_text() and visitor.fits()
    heights = visitor.find("first", "label").evaluate_all("all => all.map((one) => one.offsetHeight)")
    assert size == "desktop" or min(heights) >= 40
    visitor.find("first", "input:checked").focus()
    for key in ("Tab", "Shift+Tab", "ArrowLeft"):  # one stop, in which arrows choose
        visitor.page.keyboard.press(key)
    near(lambda: visitor.find("first").get_by_label("All together").is_checked() and not warning.count())


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_it_warns_of_that_sampler_side_by_side_too(visit, size):  # noqa: F811
    visitor = visit("image_label", size)
    visitor.find("first").get_by_label("Image first").check()
    visitor.find("compare", "button").first.click()
    warning = visitor.find("other-note", ".warning")
    for choice, warns in (("Ancestral", True), ("DDIM", False), ("Ancestral", True)):
        visitor.find("other-sampler", "input").click()
        visitor.page.get_by_role("option", name=choice).click()
        near(lambda warns=warns: warning.count() == int(warns))
    assert "“Ancestral” makes poor results" in warning.inner_text() and visitor.fits()
    assert not visitor.find("first-note", ".warning").count()  # the run itself has another one
    visitor.find("first").get_by_label("Meaning first").check()
    near(lambda: not warning.count())
