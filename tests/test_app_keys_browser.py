"""The page by keys alone, in a real Chromium."""

from chromium import MARKS
from test_app_browser import address, contexts, near, pipe, visit  # noqa: F401

pytestmark = MARKS


def test_control_and_enter_run_from_anywhere(visit, pipe):  # noqa: F811
    visitor = visit("image_label")
    visitor.find("seed", "input").focus()
    visitor.page.keyboard.press("Control+Enter")
    visitor.done()
    visitor.page.evaluate("document.activeElement.blur()")
    before = len(pipe.calls)
    visitor.page.keyboard.press("Control+Enter")
    visitor.done()
    assert len(pipe.calls) == before + 1


def test_enter_in_the_text_runs_it(visit, pipe):  # noqa: F811
    visitor = visit("image_embedding")
    visitor.choose("embedding", "I provide")
    text = visitor.find("embedding-text", ":is(textarea, input)").first
    text.fill("a dark red cherry")
    text.press("Enter")
    visitor.done()
    assert pipe.calls[-1].given == {"embedding": "a dark red cherry"}
    text.press("?")  # belongs to the text
    assert text.input_value().endswith("?") and not visitor.page.locator("#keys").is_visible()


def test_space_plays_and_arrows_step(visit):  # noqa: F811
    visitor = visit("image_label")
    visitor.run()
    visitor.done()
    visitor.page.evaluate("document.activeElement.blur()")
    for key, step in (("ArrowLeft", 29), ("ArrowLeft", 28), ("ArrowRight", 29)):
        visitor.page.keyboard.press(key)
        assert visitor.at("step") == step
    visitor.page.keyboard.press(" ")
    near(lambda: visitor.player(".play").get_attribute("aria-label") == "Pause")
    visitor.page.keyboard.press(" ")
    near(lambda: visitor.player(".play").get_attribute("aria-label") == "Play")
    assert visitor.page.evaluate("scrollY") == 0


def test_a_question_mark_lists_the_keys(visit):  # noqa: F811
    visitor = visit("image_label")
    keys = visitor.page.locator("#keys")
    visitor.page.keyboard.press("?")
    near(keys.is_visible)
    assert all(key in keys.inner_text() for key in ("Ctrl Enter", "Space", "?"))
    visitor.page.keyboard.press("Escape")
    near(lambda: not keys.is_visible())
    visitor.page.get_by_role("button", name="List of keys").click()
    near(keys.is_visible)


def test_a_seed_that_is_typed_is_kept(visit, pipe):  # noqa: F811
    visitor = visit("image_label")
    assert not visitor.find("keep-seed", "input").is_checked()
    visitor.find("seed", "input").fill("4711")
    near(visitor.find("keep-seed", "input").is_checked)
    visitor.run()
    visitor.done()
    assert pipe.calls[-1].seed == 4711
