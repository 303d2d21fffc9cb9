"""The noisy states behind the predictions, on the page in a real Chromium."""

import numpy as np
import pytest
from chromium import MARKS
from test_app_browser import RUNNING, address, contexts, decode, near, pipe, visit  # noqa: F401

pytestmark = MARKS
ALIKE = 20  # grey levels between neighbours, in the mean: far below that of noise


def noisy(visitor, modality="image"):
    return visitor.player(f'figure[data-modality="{modality}"] .noisy')


def roughness(visitor, modality="image"):
    """How much the pixels of the noisy picture differ from their neighbours."""
    shown = np.asarray(decode(noisy(visitor, modality).get_attribute("src")).convert("L"), dtype=float)
    return np.abs(np.diff(shown)).mean()


def scrub(visitor, step):
    visitor.player(".scrubber").fill(str(step))
    near(lambda: visitor.at("step") == step)


def ticked(visitor):
    return visitor.find("noise", "input")


@pytest.mark.parametrize("size", ["desktop", "tablet", "phone"])
def test_the_noise_is_shown_over_the_run_that_is_there(visit, pipe, size):  # noqa: F811
    visitor = visit("any_to_any", size)
    visitor.run()
    visitor.done()
    before, picture, calls = visitor.shown(), visitor.picture(), len(pipe.calls)
    assert not noisy(visitor).count()
    ticked(visitor).check()
    noisy(visitor).wait_for()
    visitor.status("Done")
    near(lambda: len(pipe.calls) == calls + 1)
    assert visitor.shown() == before and np.array_equal(visitor.picture(), picture)
    for modality in ("image", "mask"):
        scrub(visitor, 1)
        first = roughness(visitor, modality)
        scrub(visitor, 30)
        assert roughness(visitor, modality) < ALIKE < first
        assert "step 30 of 30" in noisy(visitor, modality).get_attribute("alt")
    rows = visitor.player(".timeline .name").all_inner_texts()
    assert rows == ["Step", "Noisy image", "Image", "Noisy mask", "Mask", "Label", "Embedding"]
    assert visitor.fits()
    ticked(visitor).uncheck()
    near(lambda: not noisy(visitor).count())
    assert visitor.player(".timeline .name").count() == 5
    ticked(visitor).check()
    noisy(visitor).wait_for()
    assert len(pipe.calls) == calls + 1  # what has come stays


def test_a_run_is_watched_in_noise_or_not_as_the_box_says_when_it_begins(visit, pipe, monkeypatch):  # noqa: F811
    monkeypatch.setattr(pipe, "step_seconds", 0.1)
    visitor, before = visit("image_mask"), len(pipe.calls)
    visitor.run()
    visitor.status(RUNNING)
    ticked(visitor).check()  # too late for this run, which is made again once it is over
    noisy(visitor).wait_for()
    near(lambda: visitor.at("step") == 30 and roughness(visitor) < ALIKE, 20)
    assert len(pipe.calls) == before + 2
    visitor.done()
    visitor.run()
    visitor.status(RUNNING)
    noisy(visitor).wait_for()
    assert roughness(visitor) > ALIKE  # while it goes on
    visitor.done()
    ticked(visitor).uncheck()
    visitor.run()
    visitor.status(RUNNING)
    assert not noisy(visitor).count()
    visitor.done()
    assert len(pipe.calls) == before + 4


@pytest.mark.parametrize("size", ["desktop", "phone"])
def test_the_box_is_reached_by_keys_and_large_enough_for_fingers(visit, size):  # noqa: F811
    visitor = visit("image_label", size)
    ticked(visitor).focus()
    visitor.page.keyboard.press("Space")
    noisy(visitor).wait_for()  # of the example, which is made again
    visitor.status("Done")
    assert visitor.at("total") == 20 and ticked(visitor).is_checked()
    label = visitor.find("noise", "label")
    assert "noise that each step starts from" in label.inner_text()
    assert size == "desktop" or label.bounding_box()["height"] >= 40
    noisy(visitor).click()
    large = visitor.page.locator(".lightbox img")
    assert "under noise" in large.get_attribute("alt")
