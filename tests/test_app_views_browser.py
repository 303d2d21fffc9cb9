"""Ways to look at pictures and masks on the page, in a real Chromium."""

import io
import re

import numpy as np
import pytest
from chromium import MARKS
from PIL import Image
from test_app_browser import address, contexts, near, pipe, visit  # noqa: F401

pytestmark = MARKS
SIZES = ("desktop", "tablet", "phone")
SHOWN = "canvas => canvas.toDataURL()"


def saved(visitor, link):
    """The picture that a link saves."""
    with visitor.page.expect_download() as download:
        link.click()
    return Image.open(io.BytesIO(download.value.path().read_bytes())), download.value.suggested_filename


def panel(visitor, modality, selector):
    return visitor.player(f'figure[data-modality="{modality}"] {selector}')


@pytest.fixture
def viewer(visit):  # noqa: F811
    def run(size="desktop"):
        visitor = visit("any_to_any", size)
        visitor.run()
        visitor.done()
        return visitor

    return run


@pytest.mark.parametrize("size", SIZES)
def test_the_size_is_said_and_enlarging_is_smooth_or_exact(viewer, size):
    visitor = viewer(size)
    line, image = panel(visitor, "image", ".size"), panel(visitor, "image", ".frame img").last
    width = image.bounding_box()["width"]
    assert line.inner_text() == f"64 × 64, enlarged × {width / 64:.1f}, smooth"
    if size == "phone":
        assert width > 280  # one column
    panel(visitor, "image", ".mode").click()
    near(lambda: line.inner_text().endswith("pixel-exact"))
    assert image.evaluate("node => getComputedStyle(node).imageRendering") == "pixelated"


@pytest.mark.parametrize("size", SIZES)
def test_a_picture_is_enlarged_by_a_click_and_closed_by_a_key(viewer, size):
    visitor = viewer(size)
    before = panel(visitor, "image", ".frame").bounding_box()["width"]
    panel(visitor, "image", ".frame").click()
    large = visitor.page.locator(".lightbox img")
    assert large.bounding_box()["width"] > before and visitor.fits()
    assert large.get_attribute("alt").startswith("Image at step 30 of 30")
    visitor.page.keyboard.press("Escape")
    near(lambda: not large.count())
    panel(visitor, "mask", ".enlarge").press("Enter")
    near(lambda: visitor.page.locator(".lightbox img").count() == 1)


def test_pictures_are_saved_as_they_are_and_four_times_as_large(viewer):
    visitor = viewer()
    exact, _ = saved(visitor, panel(visitor, "image", ".save").first)
    assert np.array_equal(np.asarray(exact), visitor.picture())
    panel(visitor, "image", ".mode").click()  # pixel-exact, so that it can be told what is in it
    large, name = saved(visitor, panel(visitor, "image", ".save").last)
    assert name.endswith("_x4.png")
    assert np.array_equal(np.asarray(large.convert("RGB")), visitor.picture().repeat(4, 0).repeat(4, 1))
    mask, _ = saved(visitor, panel(visitor, "mask", ".save").last)
    ground = np.asarray(mask.convert("RGB"))[0, 0]
    fruit = (np.asarray(mask.convert("RGB")) != ground).any(-1)
    assert np.array_equal(fruit, (visitor.picture("mask") == 1).repeat(4, 0).repeat(4, 1))


@pytest.mark.parametrize("size", SIZES)
def test_the_cut_out_has_the_photo_where_the_mask_is(viewer, size):
    visitor = viewer(size)
    photo, inside = visitor.picture(), visitor.picture("mask") == 1
    visitor.player(".views").get_by_role("button", name="Cut-out").click()
    panel(visitor, "mask", "canvas").wait_for()
    cut, name = saved(visitor, panel(visitor, "mask", ".save").first)
    cut = np.asarray(cut)
    assert name.endswith("_cut-out.png") and cut.shape == (64, 64, 4)
    assert np.array_equal(cut[..., 3] == 255, inside) and (cut[..., 3][~inside] == 0).all()
    assert np.array_equal(cut[inside][:, :3], photo[inside])
    panel(visitor, "mask", ".legend").get_by_role("button", name="background").click()
    near(lambda: (np.asarray(saved(visitor, panel(visitor, "mask", ".save").first)[0])[..., 3] == 255).all())


def test_a_mask_is_flat_or_an_outline(viewer):
    visitor = viewer()
    inside = visitor.picture("mask") == 1
    neighbours = [np.roll(inside, by, axis) for axis in (0, 1) for by in (-1, 1)]
    border = inside & ~np.all(neighbours, axis=0)

    def drawn():
        canvas = panel(visitor, "mask", "canvas")
        uri = canvas.evaluate(SHOWN)
        from test_app_browser import decode

        return np.asarray(decode(uri).convert("RGBA"))

    visitor.player(".views").get_by_role("button", name="Flat").click()
    near(lambda: (drawn()[..., 3] == 255).all())
    assert np.array_equal((drawn()[..., :3] != drawn()[0, 0, :3]).any(-1), inside)
    visitor.player(".views").get_by_role("button", name="Outline").click()
    near(lambda: np.array_equal(drawn()[..., 3] == 255, border))
    visitor.player(".scrubber").fill("3")
    visitor.player(".views").get_by_role("button", name="Overlay").click()
    assert panel(visitor, "mask", ".overlay").is_visible()


@pytest.mark.parametrize("size", SIZES)
def test_the_class_and_its_certainty_are_named_where_one_points(viewer, size):
    visitor = viewer(size)
    visitor.player(".scrubber").fill("15")
    box = panel(visitor, "mask", ".frame")
    box.scroll_into_view_if_needed()
    for x, y, name in ((0.5, 0.5, "fruit"), (0.05, 0.05, "background")):
        at = {"x": x * box.bounding_box()["width"], "y": y * box.bounding_box()["height"]}
        if size == "desktop":
            box.hover(position=at)
        else:
            box.dispatch_event(
                "pointerdown",
                {"clientX": box.bounding_box()["x"] + at["x"], "clientY": box.bounding_box()["y"] + at["y"]},
            )
        named = panel(visitor, "mask", ".named")
        named.filter(has_text=name).wait_for()
        assert (
            abs(int(named.inner_text().split(", ")[1].split("%")[0]) - 75) <= 2
        )  # half of the noise is left


def test_areas_have_a_curve_only_where_they_change(viewer):
    visitor = viewer()  # the areas of this model's masks never change
    titles = visitor.player(".curves figure").locator("visible=true").locator("h3").all_inner_texts()
    assert titles == ["Label: probability"]


@pytest.mark.parametrize("size", SIZES)
def test_it_is_seen_how_settled_every_head_is_and_told_in_the_end(visit, pipe, monkeypatch, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    monkeypatch.setattr(pipe, "step_seconds", 0.1)
    widths = "bars => bars.map((bar) => parseFloat(bar.style.width))"
    visitor.record(".settled .is-settled")
    visitor.run()
    visitor.status("Step")
    bars = visitor.player(".settled .track i")
    near(lambda: bars.count() == 4 and 0 < bars.evaluate_all(widths)[2] < 60)
    assert not visitor.player(".story").is_visible()
    visitor.done()
    assert visitor.seen()  # from nine tenths on a bar says “settled”
    assert not bars.first.is_visible()  # what was a guess is known now
    told = visitor.player(".story").inner_text()
    label = visitor.player('figure[data-modality="label"] .name').first.inner_text()
    assert re.match(rf"At step \d+ it settled .*{label}|At step \d+ .*{label}", told) and told.endswith(".")
    assert told in visitor.player(".announced").text_content()
    assert underlined_from(visitor, row=2) == at_step(told, "image")
    assert underlined_from(visitor, row=4) == at_step(told, "label")
    assert visitor.fits()


def at_step(told, name):
    """The step at which a sentence says that something was settled, "At step 3 it … ; the … at step 9."."""
    first, *others = told.split("; ")
    later = [part for other in others for part in other.split(", the ")]
    (found,) = [part for part in (first, *later) if name in part]
    return int(re.search(r"step (\d+)", found)[1])


def underlined_from(visitor, row):
    """The first step in a row of the timeline that is underlined, as a step that the sentence names."""
    columns = visitor.player(f'.cell.is-settled[style*="grid-area: {row} /"]').evaluate_all(
        "cells => cells.map((cell) => parseInt(cell.style.gridColumn))"
    )
    steps = [int(number) for number in visitor.player(".grid .number").all_inner_texts()]
    assert columns == list(range(min(columns), len(steps) + 2))  # it stays settled
    before = steps[min(columns) - 3] if min(columns) > 2 else 0
    told = at_step(visitor.player(".story").inner_text(), {2: "image", 4: "label"}[row])
    assert before < told <= steps[min(columns) - 2]
    return told
