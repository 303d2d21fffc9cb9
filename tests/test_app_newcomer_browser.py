"""What met a newcomer who had never seen the page, in a real Chromium: its words, what it knows and shows."""

import pytest
from chromium import MARKS
from fakes import FakePipeline, served
from test_app_browser import contexts, near, visit  # noqa: F401
from test_app_first_browser import with_showcase
from test_app_gloss import PLAIN

from app.run.service import Service

pytestmark = MARKS
SIZES = ("desktop", "phone")


@pytest.fixture(scope="module")
def pipe():
    """A model with levels, as the flagship."""
    return FakePipeline(step_seconds=0.03, modalities=tuple(PLAIN), leads={"label": 0.5, "mask": 0.2})


@pytest.fixture(scope="module")
def address(pipe, tmp_path_factory):
    other = FakePipeline(modalities=("image", "mask"))
    with served(with_showcase(pipe, tmp_path_factory.mktemp("orchard")), Service(other, "second")) as address:
        yield address


@pytest.mark.parametrize("size", SIZES)
def test_the_first_screen_the_form_and_the_player_call_things_the_same(visit, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    for name, words in PLAIN.items():
        called = f"{name.capitalize()} {words}"
        tile = visitor.page.locator(f'.opening figure[data-name="{name}"] figcaption')
        assert tile.text_content().removesuffix("pinned") == called.replace(" ", "", 1)
        row = visitor.find(f"{name}-role")
        assert row.inner_text().split("\n")[:2] == [name.capitalize(), words]
        panel = visitor.player(f'[data-modality="{name}"] figcaption b')
        assert panel.inner_text().split("\n") == [name.capitalize(), words]
    assert visitor.fits()


@pytest.mark.parametrize("size", SIZES)
def test_what_the_model_knows_is_said_beside_its_name_and_changes_with_it(visit, size):  # noqa: F811
    visitor = visit("image_mask", size)
    knows = visitor.page.locator("#knows")
    assert "Knows 7 labels, such as" in knows.inner_text() and "64 × 64 pixels" in knows.inner_text()
    last = knows.get_by_text("Tomato Maroon")
    assert not last.is_visible()
    knows.locator("summary").tap() if size == "phone" else knows.locator("summary").click()
    last.wait_for()
    box = knows.locator("details > div").bounding_box()
    assert visitor.fits() and box["height"] <= 0.5 * visitor.page.viewport_size["height"] + 1
    visitor.leave(lambda: visitor.page.locator(".facts select").select_option("second"))
    visitor.page.wait_for_url("**/second**")
    near(lambda: "tell fruit from background" in knows.inner_text() and "labels" not in knows.inner_text())


@pytest.mark.parametrize("size", SIZES)
def test_a_mask_lies_on_the_photo_or_is_flat_where_there_is_none(visit, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    mask = visitor.player('figure[data-modality="mask"]')
    pressed = mask.locator('.views button[aria-pressed="true"]')
    assert pressed.inner_text() == "Overlay" and mask.locator(".overlay").is_visible()
    frame, legend = (mask.locator(part).bounding_box() for part in (".frame", ".legend"))
    assert 0 <= legend["y"] - frame["y"] - frame["height"] <= 10  # right below what it explains
    assert mask.locator(".legend").inner_text().split() == ["background", "fruit"]
    visitor.choose("image", "Leave out")
    visitor.plan("Creates mask")
    visitor.run()
    visitor.done()
    assert mask.locator(".views button").all_inner_texts() == ["Flat", "Outline"]
    assert pressed.inner_text() == "Flat" and mask.locator("canvas.view").is_visible()
    assert not mask.locator(".overlay").is_visible()


@pytest.mark.parametrize("size", SIZES)
def test_another_checkpoint_opens_at_the_same_tab_and_height(visit, size):  # noqa: F811
    visitor = visit("fill_in", size)
    height = "document.getElementById('header').getBoundingClientRect().top"
    menu, there = (
        visitor.page.locator(".facts select"),
        {"second": "**/second#fill_in", "orchard": "**/#fill_in"},
    )
    visitor.page.wait_for_timeout(500)
    visitor.page.evaluate(f"scrollBy(0, {height} + 60)")
    for name, address in there.items():  # one opens with recorded runs above, the other without
        assert visitor.page.evaluate(height) == pytest.approx(-60, abs=2)
        visitor.leave(lambda name=name: menu.select_option(name))
        visitor.page.wait_for_url(address)
        visitor.find("run").wait_for()
        near(lambda: abs(visitor.page.evaluate(height) + 60) <= 2)
        assert visitor.page.get_by_role("tab", name="Fill in").first.get_attribute("aria-selected") == "true"
    visitor.page.wait_for_timeout(2500)
    assert visitor.page.evaluate(height) == pytest.approx(-60, abs=2)


def test_how_it_works_stays_open_too(visit):  # noqa: F811
    visitor = visit("image_mask")
    visitor.page.get_by_role("tab", name="How it works").click()
    visitor.page.wait_for_url("**/#how_it_works")
    visitor.leave(lambda: visitor.page.locator(".facts select").select_option("second"))
    visitor.page.wait_for_url("**/second#how_it_works")
    visitor.page.locator(".how").wait_for()


def test_a_text_that_was_given_is_repeated_beside_the_result(visit):  # noqa: F811
    visitor = visit("image_embedding")
    visitor.choose("embedding", "I provide")
    visitor.find("embedding-text", ":is(textarea, input)").first.fill("an elephant")
    visitor.plan("Creates image from the embedding")
    visitor.run()
    visitor.done()
    assert "Your text: “an elephant”" in visitor.player('[data-modality="embedding"]').inner_text()
