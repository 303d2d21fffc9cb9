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
